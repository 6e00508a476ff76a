"""What goes out on /diagnostics: every warning names its cause and its cure."""

import math

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from md_perception.metrics.latency import RollingLatency
from md_perception.results import Mode
from md_perception.ros import diagnostics
from md_perception.ros.diagnostics import InputMonitor, StudentState
from md_perception.ros.intake import Counters
from md_perception.ros.qos import InputState
from md_perception.ros.worker import Timings

MS = 1_000_000


def fed(gaps_ms: list[int]) -> tuple[InputMonitor, int]:
    """Return a monitor that got images with these distances, and the time of the last."""
    monitor, now_ns = InputMonitor(), 0
    monitor.note(now_ns, now_ns, "rgb8 640x512")
    for gap in gaps_ms:
        now_ns += gap * MS
        monitor.note(now_ns, now_ns, "rgb8 640x512")
    return monitor, now_ns


def state(publishers: int = 1, incompatible: str = "") -> InputState:
    return InputState("/rgb/image_raw", publishers, "reliable", ("reliable",) * publishers, incompatible)


def rolling(*values: float) -> RollingLatency:
    latency = RollingLatency()
    for value in values:
        latency.add(value)
    return latency


def student(**changes: object) -> StudentState:
    fields = {
        "name": "day-night",
        "run_id": "r1",
        "mode": Mode.FUSED,
        "provider": "CUDAExecutionProvider",
        "precision": "fp16",
        "asked": ("auto",),
        "seen_real_images": True,
    }
    return StudentState(**(fields | changes))


def inference(state: StudentState, cycle_ms: float, rate_hz: float) -> DiagnosticStatus:
    timings = Timings(rolling(cycle_ms).percentiles(), rolling(cycle_ms / 2).percentiles())
    return diagnostics.inference_status([state], timings, rate_hz)


def test_a_camera_is_silent_since_its_newest_image_and_for_ever_before_the_first():
    monitor, now_ns = fed([33] * 60)
    assert monitor.silent_s(now_ns + 1200 * MS) == pytest.approx(1.2)
    assert monitor.rate_hz(now_ns + 1200 * MS) > 0  # the rate is that of some seconds, and still falls
    assert InputMonitor().silent_s(now_ns) == math.inf


def test_rate_and_share_of_a_regular_camera():
    monitor, now_ns = fed([33] * 60)
    assert monitor.rate_hz(now_ns) == pytest.approx(1000 / 33)
    assert monitor.arrived_share(now_ns) == pytest.approx(1.0)
    assert monitor.rate_hz(now_ns + 6_000 * MS) == 0.0  # silent for longer than is remembered
    status = diagnostics.input_status("rgb", state(), monitor, now_ns, 0.01)
    assert (status.level, status.message) == (DiagnosticStatus.OK, "30.3 Hz")


def test_images_lost_in_transport_are_told_from_a_slow_camera():
    # Of a 30 Hz camera a third arrives; the gaps are 1, 2, 3... periods.
    monitor, now_ns = fed([33, 33, 165, 99, 33, 132, 99, 198, 33, 66, 165, 132] * 2)
    assert monitor.arrived_share(now_ns) == pytest.approx(33 / 99, rel=0.02)
    status = diagnostics.input_status("rgb", state(), monitor, now_ns, 0.01)
    assert status.level == DiagnosticStatus.WARN
    assert "33% of the images of /rgb/image_raw arrive" in status.message
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" in status.message
    slow, now_ns = fed([200] * 20)
    assert diagnostics.input_status("rgb", state(), slow, now_ns, 0.1).level == DiagnosticStatus.OK


@pytest.mark.parametrize(
    ("input_state", "texts"),
    [
        (state(publishers=0), ["nobody publishes /rgb/image_raw", "remap rgb/image_raw"]),
        (state(), ["no image arrives", "config/fastdds.xml"]),
        (state(incompatible="RELIABILITY"), ["incompatible RELIABILITY", "'auto' or 'best_effort'"]),
        (state(incompatible="DURABILITY"), ["incompatible DURABILITY", "durability policy"]),
    ],
)
def test_a_silent_input_is_a_warning_with_the_cure(input_state, texts):
    status = diagnostics.input_status("rgb", input_state, InputMonitor(), 0, math.nan)
    assert status.level == DiagnosticStatus.WARN
    for text in texts:
        assert text in status.message


def test_pairing_warns_when_most_frames_of_the_last_second_are_alone_though_thermal_comes():
    before = Counters(paired=100, alone=0, thermal_received=50)
    bad = diagnostics.pairing_status("nearest", Counters(paired=105, alone=25, thermal_received=59), before, 115 * MS)
    assert bad.level == DiagnosticStatus.WARN
    assert "17% of the RGB images find a thermal partner" in bad.message
    assert "pairing.offset_s" in bad.message
    silent = diagnostics.pairing_status("nearest", Counters(paired=105, alone=25, thermal_received=50), before, None)
    assert silent.level == DiagnosticStatus.OK  # the input's own status says so
    good = diagnostics.pairing_status("nearest", Counters(paired=130, thermal_received=59), before, None)
    assert (good.level, good.message) == (DiagnosticStatus.OK, "100% paired")


def test_inference_warns_of_a_student_that_is_slower_than_the_camera():
    status = inference(student(), cycle_ms=80.0, rate_hz=25.0)
    assert status.level == DiagnosticStatus.WARN
    assert "a frame takes 80 ms but the camera sends one every 40 ms" in status.message
    assert inference(student(), cycle_ms=30.0, rate_hz=25.0).level == DiagnosticStatus.OK
    assert inference(student(), cycle_ms=30.0, rate_hz=0.0).level == DiagnosticStatus.OK


@pytest.mark.parametrize(("asked", "warned"), [(("cuda", "cpu"), True), (("auto",), False), (("cpu",), False)])
def test_inference_warns_of_a_fallback_to_the_cpu(asked, warned):
    status = inference(student(provider="CPUExecutionProvider", asked=asked), cycle_ms=1.0, rate_hz=30.0)
    assert (status.level == DiagnosticStatus.WARN) == warned
    assert ("runs on the CPU though cuda was asked for" in status.message) == warned


def test_inference_warns_of_a_student_that_never_saw_a_real_image():
    status = inference(student(seen_real_images=False), cycle_ms=1.0, rate_hz=30.0)
    assert status.level == DiagnosticStatus.WARN
    assert "student day-night has never seen a real image" in status.message


def test_mode_and_counters():
    counters = Counters(received=10, processed=6, dropped=2, unpaired=1, rejected=0, waiting=1)
    status = diagnostics.mode_status(Mode.FUSED, "", counters, Counters())
    assert (status.level, status.message) == (DiagnosticStatus.OK, "FUSED")
    assert {v.key: v.value for v in status.values} == {
        "mode": "FUSED",
        "received": "10",
        "processed": "6",
        "dropped": "2",
        "unpaired": "1",
        "rejected": "0",
        "waiting": "1",
    }
    reason, rejected = "no images on /rgb/image_raw: start the driver", Counters(rejected=5)
    stale = diagnostics.mode_status(Mode.STALE, reason, rejected, Counters(rejected=2))
    assert stale.level == DiagnosticStatus.WARN
    assert "/rgb/image_raw" in stale.message
    assert "3 RGB images could not be processed in the last second" in stale.message
    assert diagnostics.mode_status(Mode.FUSED, "", rejected, rejected).level == DiagnosticStatus.OK


def test_the_message_carries_the_stamp_and_the_name_of_the_node():
    status = diagnostics.mode_status(Mode.FUSED, "", Counters(), Counters())
    message = diagnostics.diagnostic_array(Time(sec=7), "car/md_perception", [status])
    assert message.header.stamp.sec == 7
    assert [(s.name, s.hardware_id) for s in message.status] == [("car/md_perception: mode", "car/md_perception")]
