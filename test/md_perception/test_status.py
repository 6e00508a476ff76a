"""The node's status: every counter of the intake in its field, for a frame and for none."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from md_perception.intake import Counters
from md_perception.results import Mode, Perception, StudentOutput
from md_perception.status import Ages, frame_status, idle_status

COUNTERS = Counters(
    received=20,
    processed=1,
    dropped=2,
    unpaired=3,
    rejected=4,
    waiting=10,
    paired=5,
    alone=6,
    thermal_received=7,
    thermal_processed=8,
    thermal_dropped=9,
    thermal_rejected=11,
)
COUNTED = {
    "received_rgb": 20,
    "processed": 1,
    "dropped": 2,
    "unpaired_rgb": 3,
    "rejected": 4,
    "paired": 5,
    "received_thermal": 7,
    "processed_thermal": 8,
    "dropped_thermal": 9,
    "rejected_thermal": 11,
    "rgb_age_s": 0.25,
    "thermal_age_s": 0.5,
    "faults": ("thermal: slow",),
}


def test_a_status_without_a_frame_has_what_is_known() -> None:
    status = vars(idle_status(7, Mode.STALE, Ages(0.25, 0.5), COUNTERS, ["thermal: slow"]))
    assert COUNTED.items() <= status.items()
    assert (status["stamp_ns"], status["frame_id"], status["mode"], status["student"]) == (7, "", Mode.STALE, "")
    assert math.isnan(status["pair_offset_s"])


@pytest.mark.parametrize(("offset_ns", "offset_s"), [(-20_000_000, -0.02), (None, math.nan)])
def test_the_status_of_a_frame_is_that_of_its_result_and_its_student(offset_ns: int | None, offset_s: float) -> None:
    student = SimpleNamespace(manifest=SimpleNamespace(name="tiny"), precision="int8", provider="CPU")
    nothing = StudentOutput(None, None)
    image = np.zeros((3, 4, 3), np.uint8)
    perception = Perception(9, "camera", Mode.FUSED, (4, 3), image, nothing, pair_offset_ns=offset_ns)
    status = vars(frame_status(perception, student, Ages(0.25, 0.5), COUNTERS, ("thermal: slow",), total_ms=12.5))
    assert COUNTED.items() <= status.items()
    assert (status["stamp_ns"], status["frame_id"], status["mode"]) == (9, "camera", Mode.FUSED)
    assert (status["student"], status["precision"], status["provider"]) == ("tiny", "int8", "CPU")
    assert status["pair_offset_s"] == pytest.approx(offset_s, nan_ok=True)
    assert (status["total_ms"], status["decode_ms"]) == (12.5, 0.0)
