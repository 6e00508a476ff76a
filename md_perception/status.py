"""The status of the node, from what intake and pipeline know: what the node says, and an evaluation in its place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from md_perception.inference.session import Student
from md_perception.intake import Counters
from md_perception.outputs.messages import NodeStatus
from md_perception.results import Mode, Perception


@dataclass(frozen=True)
class Ages:
    """Time since the stamps of the newest images, s; NaN before the first."""

    rgb_s: float
    thermal_s: float


def idle_status(stamp_ns: int, mode: Mode, ages: Ages, counters: Counters, faults: Sequence[str]) -> NodeStatus:
    """Return a status that describes no frame. stamp_ns: the time of sending. faults: of Intake.faults."""
    return NodeStatus(stamp_ns, "", mode, **_known(ages, counters, faults))


def frame_status(
    perception: Perception,
    student: Student,
    ages: Ages,
    counters: Counters,
    faults: Sequence[str],
    **durations_ms: float,
) -> NodeStatus:
    """Return the status that goes out ahead of a result, under its header.

    counters: with this frame among the processed ones. durations_ms: fields of NodeStatus, by name; the others stay as
    they are there.
    """
    offset_ns = perception.pair_offset_ns
    return NodeStatus(
        perception.stamp_ns,
        perception.frame_id,
        perception.mode,
        student=student.manifest.name,
        precision=student.precision,
        provider=student.provider,
        pair_offset_s=math.nan if offset_ns is None else offset_ns / 1e9,
        **(_known(ages, counters, faults) | durations_ms),
    )


def _known(ages: Ages, counters: Counters, faults: Sequence[str]) -> dict[str, Any]:
    """Return the fields that every status has."""
    return {
        "rgb_age_s": ages.rgb_s,
        "thermal_age_s": ages.thermal_s,
        "faults": tuple(faults),
        "received_rgb": counters.received,
        "processed": counters.processed,
        "paired": counters.paired,
        "unpaired_rgb": counters.unpaired,
        "dropped": counters.dropped,
        "rejected": counters.rejected,
        "received_thermal": counters.thermal_received,
        "processed_thermal": counters.thermal_processed,
        "dropped_thermal": counters.thermal_dropped,
        "rejected_thermal": counters.thermal_rejected,
    }
