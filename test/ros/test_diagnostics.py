"""What goes out on /diagnostics: every warning names its cause and its cure."""

import math

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from md_perception.intake import Counters
from md_perception.metrics.latency import RollingLatency
from md_perception.results import Mode
from md_perception.ros import diagnostics
from md_perception.ros.diagnostics import StudentState
from md_perception.ros.navigation import ObstacleReport
from md_perception.ros.qos import InputState
from md_perception.ros.worker import Timings
from md_perception.sensing.health import CameraReport, Fault, ImageForm

MS = 1_000_000


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


def test_a_camera_without_faults_is_told_by_its_rate():
    report = CameraReport(received=60, rate_hz=30.3, silent_s=0.01, form=ImageForm("cam", "rgb8", (640, 512)))
    status = diagnostics.input_status("rgb", state(), report, 0.01)
    assert (status.level, status.message) == (DiagnosticStatus.OK, "30.3 Hz")
    values = {value.key: value.value for value in status.values}
    assert (values["image"], values["frame id"], values["received"]) == ("rgb8 640x512", "cam", "60")
    assert values["faults"] == ""


def test_images_lost_in_transport_are_told_with_the_cure():
    report = CameraReport(received=24, rate_hz=10.0, silent_s=0.01, arrived_share=0.333)
    status = diagnostics.input_status("rgb", state(), report, 0.01)
    assert status.level == DiagnosticStatus.WARN
    assert "33% of the images of /rgb/image_raw arrive" in status.message
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" in status.message


def test_the_faults_of_a_camera_are_warnings():
    faults = {Fault.FROZEN: "the same picture for 1.2 s", Fault.FUTURE: "by 37.00 s: synchronise the clocks"}
    status = diagnostics.input_status("rgb", state(), CameraReport(rate_hz=30.0, silent_s=0.0, faults=faults), 0.01)
    assert status.level == DiagnosticStatus.WARN
    assert status.message == (
        "/rgb/image_raw: frozen: the same picture for 1.2 s; "
        "/rgb/image_raw: stamps in the future: by 37.00 s: synchronise the clocks"
    )
    assert {v.key: v.value for v in status.values}["faults"] == "frozen, stamps in the future"
    # Where nothing comes, the reason is told once.
    silent = CameraReport(faults={Fault.SILENT: "no image so far"})
    assert "silent" not in diagnostics.input_status("rgb", state(publishers=0), silent, math.nan).message


def test_stamps_that_are_no_time_of_this_clock_are_told_with_the_cure():
    running = CameraReport(rate_hz=30.0, silent_s=0.01)
    status = diagnostics.input_status("rgb", state(), running, 1.7e9)  # the driver leaves them 0
    assert status.level == DiagnosticStatus.WARN
    assert status.message.startswith("the stamps of /rgb/image_raw lie 1700000000 s in the past: let the driver stamp")
    assert "use_sim_time" in status.message
    assert diagnostics.input_status("rgb", state(), running, 9.0).level == DiagnosticStatus.OK
    # Of a camera that fell silent the last stamp grows old by itself.
    silent = CameraReport(rate_hz=0.5, silent_s=20.0, faults={Fault.SILENT: "for 20.0 s"})
    fallen = diagnostics.input_status("rgb", state(), silent, 20.0)
    assert fallen.level == DiagnosticStatus.ERROR
    assert "stamps" not in fallen.message


@pytest.mark.parametrize(
    ("input_state", "texts"),
    [
        (state(publishers=0), ["nobody publishes /rgb/image_raw", "remap rgb/image_raw"]),
        (state(), ["no image arrives", "config/fastdds.xml"]),
        (state(incompatible="RELIABILITY"), ["incompatible RELIABILITY", "'auto' or 'best_effort'"]),
        (state(incompatible="DURABILITY"), ["incompatible DURABILITY", "durability policy"]),
    ],
)
def test_a_silent_input_is_an_error_with_the_cure(input_state, texts):
    status = diagnostics.input_status("rgb", input_state, CameraReport(), math.nan)
    assert status.level == DiagnosticStatus.ERROR
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
    fallen = student(provider="CPUExecutionProvider", asked=asked, unavailable=("CUDA: no driver",))
    status = inference(fallen, cycle_ms=1.0, rate_hz=30.0)
    assert (status.level == DiagnosticStatus.WARN) == warned
    assert ("runs on the CPU though cuda was asked for: CUDA: no driver" in status.message) == warned


def test_inference_warns_of_a_provider_that_gave_up_while_it_ran():
    lost = student(provider="CPUExecutionProvider", loaded_on="CUDAExecutionProvider")
    status = inference(lost, cycle_ms=1.0, rate_hz=30.0)
    assert status.level == DiagnosticStatus.WARN
    assert "was loaded on CUDAExecutionProvider and fell back to CPUExecutionProvider" in status.message
    assert "cleanup and configure" in status.message
    assert inference(student(loaded_on="CUDAExecutionProvider"), 1.0, 30.0).level == DiagnosticStatus.OK


def test_inference_warns_of_a_student_that_never_saw_a_real_image():
    status = inference(student(seen_real_images=False), cycle_ms=1.0, rate_hz=30.0)
    assert status.level == DiagnosticStatus.WARN
    assert "student day-night has never seen a real image" in status.message


def test_mode_and_counters():
    counters = Counters(received=10, processed=6, dropped=2, unpaired=1, rejected=0, waiting=1)
    status = diagnostics.mode_status(Mode.FUSED, "", counters, Counters())
    assert (status.level, status.message) == (DiagnosticStatus.OK, "FUSED")
    assert {v.key: v.value for v in status.values if not v.key.startswith("thermal")} == {
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
    assert stale.level == DiagnosticStatus.ERROR
    assert diagnostics.mode_status(Mode.VISIBLE_ONLY, reason, rejected, rejected).level == DiagnosticStatus.WARN
    assert "/rgb/image_raw" in stale.message
    assert "3 RGB images could not be processed in the last second" in stale.message
    assert diagnostics.mode_status(Mode.FUSED, "", rejected, rejected).level == DiagnosticStatus.OK


def test_a_lesser_mode_is_a_warning_with_the_reason():
    status = diagnostics.mode_status(Mode.VISIBLE_ONLY, "/boson: frozen: restart the driver", Counters(), Counters())
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "/boson: frozen: restart the driver")


def test_obstacles_that_cannot_be_placed_are_a_warning_until_they_are():
    reason = "no obstacles: nothing came on /rgb/camera_info yet: let the driver publish it or remap the topic"
    missing = diagnostics.obstacles_status(ObstacleReport("tf", True, 7, (reason,)), Mode.FUSED)
    assert (missing.level, missing.name, missing.message) == (DiagnosticStatus.WARN, "obstacles", reason)
    assert {v.key: v.value for v in missing.values} == {"source": "tf", "published": "7"}
    stale = "not published: there are no results, see mode"
    for report, mode, summary in (
        (ObstacleReport("tf", True, 8), Mode.VISIBLE_ONLY, "published"),
        (ObstacleReport("tf", False, 8), Mode.FUSED, "not published: no result yet, or nobody subscribes"),
        (ObstacleReport("tf", True, 7, (reason,)), Mode.STALE, stale),
        (ObstacleReport("tf", True, 8), Mode.STALE, stale),
    ):
        status = diagnostics.obstacles_status(report, mode)
        assert (status.level, status.message) == (DiagnosticStatus.OK, summary)


def test_simulated_time_without_a_clock_is_a_warning_and_a_pause_is_none():
    missing = diagnostics.clock_status(publishers=0, stands_s=4.0)
    assert missing.level == DiagnosticStatus.WARN
    assert "use_sim_time is true but nobody publishes /clock" in missing.message
    assert "start the node with use_sim_time false" in missing.message
    paused = diagnostics.clock_status(publishers=1, stands_s=4.0)
    assert (paused.level, paused.message) == (DiagnosticStatus.OK, "paused")
    assert diagnostics.clock_status(publishers=1, stands_s=0.01).message == "running"


def test_a_failure_is_an_error_with_the_reason():
    status = diagnostics.failure_status("3 frames in a row gave no result; the last: out of memory")
    assert status.level == DiagnosticStatus.ERROR
    assert "out of memory; the node is unconfigured now" in status.message


def test_the_message_carries_the_stamp_and_the_name_of_the_node():
    status = diagnostics.mode_status(Mode.FUSED, "", Counters(), Counters())
    message = diagnostics.diagnostic_array(Time(sec=7), "car/md_perception", [status])
    assert message.header.stamp.sec == 7
    assert [(s.name, s.hardware_id) for s in message.status] == [("car/md_perception: mode", "car/md_perception")]
