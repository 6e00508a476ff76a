"""Registration in the running node: CameraInfo, sizes, the misalignment monitor; and `md_calibrate` on live topics."""

import threading
import time

import cv2
import numpy as np
import pytest
from camera_pairs import drive, planted_homography
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage
from vehicle import BEST_EFFORT, poll

from md_perception.calibrate import CalibrationError, Recording, Result
from md_perception.results import Mode
from md_perception.ros import parameters
from md_perception.ros.calibrate import record_live
from md_perception.scenes import TimeOfDay
from md_perception.sensing.alignment import Alignment, Delay, Fit
from md_perception.sensing.registration import RegistrationSettings
from md_perception.sensing.thermal import ThermalSettings

MS = 1_000_000


def camera_info(size: tuple[int, int], focal_px: float) -> CameraInfo:
    k = [focal_px, 0.0, (size[0] - 1) / 2, 0.0, focal_px, (size[1] - 1) / 2, 0.0, 0.0, 1.0]
    p = [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0]
    return CameraInfo(
        width=size[0],
        height=size[1],
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k,
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=p,
    )


def registration_of(messages) -> DiagnosticStatus | None:
    newest = messages[-1].status if messages else ()
    return next((status for status in newest if status.name.endswith(": registration")), None)


def told(status: DiagnosticStatus, key: str) -> str:
    return next(value.value for value in status.values if value.key == key)


def test_camera_infos_give_the_matrix_and_without_them_images_are_rejected(start_node, vehicle, capfd):
    """However long that takes: a driver that starts late is no failure of the node."""
    node = start_node(
        registration__source="camera_info_raw",
        registration__monitor_period_s=0.0,
        health__failures_in_a_row=2,
        health__timeout_s=60.0,
    )
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    for camera in ("rgb", "thermal"):
        vehicle.camera(f"/{camera}/image_raw")
    for number in range(1, 6):
        vehicle.send_pair(number * 10 * MS)
        poll(lambda n=number: node._intake.counters().rejected == n, "the image without a camera_info to be rejected")
    assert "nothing came on rgb/camera_info yet" in capfd.readouterr().err
    missing = poll(lambda: registration_of(diagnoses), "a diagnosis")
    assert missing.level == DiagnosticStatus.WARN
    assert "nothing came on rgb/camera_info and thermal/camera_info yet: let the driver publish it" in missing.message
    assert node._intake.mode() is Mode.FUSED
    assert node._mode_now(node._intake, node._worker) is Mode.STALE
    assert vehicle.state() == State.PRIMARY_STATE_ACTIVE

    infos = {name: vehicle.camera(f"/{name}/camera_info", CameraInfo, BEST_EFFORT) for name in ("rgb", "thermal")}
    registration = node._pipeline.registration

    def both_came() -> bool:
        # The thermal lens is twice as long as that of equal fields of view.
        infos["rgb"].publish(camera_info((64, 48), 60.0))
        infos["thermal"].publish(camera_info((16, 12), 30.0))
        return len(registration._cameras) == 2

    poll(both_came, "the camera_infos to arrive")
    vehicle.send_pair(200 * MS)
    assert vehicle.status_of(200 * MS).mode == Mode.FUSED
    # x_t = (x_r - 31.5) * 30 / 60 + 7.5
    np.testing.assert_allclose(
        node._pipeline.latest_pair.rgb_to_thermal, [[0.5, 0, -8.25], [0, 0.5, -6.25], [0, 0, 1]], atol=1e-5
    )
    status = poll(
        lambda: (found := registration_of(diagnoses)) and "parallel axes" in found.message and found,
        "the diagnosis that nothing is said of how the cameras stand",
    )
    assert status.level == DiagnosticStatus.WARN


def uncalibrated(size: tuple[int, int]) -> CameraInfo:
    """What a driver without a calibration file sends."""
    return CameraInfo(width=size[0], height=size[1])


def test_uncalibrated_cameras_leave_the_visible_only_student_and_fusion_comes_with_the_calibration(
    start_node, vehicle, students, capfd
):
    node = start_node(
        student__visible_file=str(students["visible"]),
        registration__source="camera_info_raw",
        registration__monitor_period_s=0.0,
        health__failures_in_a_row=2,
        health__timeout_s=0.5,
    )
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    infos = {name: vehicle.camera(f"/{name}/camera_info", CameraInfo, BEST_EFFORT) for name in ("rgb", "thermal")}
    for camera in ("rgb", "thermal"):
        vehicle.camera(f"/{camera}/image_raw")

    def serves(mode: Mode, rgb: CameraInfo, thermal: CameraInfo) -> bool:
        infos["rgb"].publish(rgb)
        infos["thermal"].publish(thermal)
        vehicle.send_pair(vehicle.now_ns())
        time.sleep(0.03)
        return bool(vehicle.statuses) and vehicle.statuses[-1].mode == mode

    without = uncalibrated((64, 48)), uncalibrated((16, 12))
    poll(lambda: serves(Mode.VISIBLE_ONLY, *without), "results of RGB alone")
    cure = (
        "rgb/camera_info is uncalibrated (K begins with 0): calibrate the camera (camera_calibration), or set "
        "registration.source to 'homography' and run md_calibrate"
    )
    log = poll(lambda: [line for line in capfd.readouterr().err.splitlines() if "-> VISIBLE_ONLY" in line], "the log")
    assert cure in log[0]
    for _ in range(10):  # far more than failures_in_a_row
        assert serves(Mode.VISIBLE_ONLY, *without)
    status = poll(
        lambda: (found := registration_of(diagnoses)) and cure in found.message and found, "the cure on /diagnostics"
    )
    assert status.level == DiagnosticStatus.WARN
    assert node._intake.counters().rejected == 0

    with_k = camera_info((64, 48), 60.0), camera_info((16, 12), 15.0)
    poll(lambda: serves(Mode.FUSED, *with_k), "fusion")
    assert vehicle.state() == State.PRIMARY_STATE_ACTIVE


def test_uncalibrated_cameras_without_another_student_are_waited_for(start_node, vehicle, capfd):
    node = start_node(
        registration__source="camera_info_raw",
        registration__monitor_period_s=0.0,
        health__failures_in_a_row=2,
        health__timeout_s=60.0,
    )
    vehicle.start()
    infos = {name: vehicle.camera(f"/{name}/camera_info", CameraInfo, BEST_EFFORT) for name in ("rgb", "thermal")}
    for camera in ("rgb", "thermal"):
        vehicle.camera(f"/{camera}/image_raw")
    registration = node._pipeline.registration
    poll(lambda: infos["rgb"].publish(uncalibrated((64, 48))) or registration._faults, "the camera_info to arrive")
    for number in range(1, 6):
        vehicle.send_pair(number * 10 * MS)
        poll(lambda n=number: node._intake.counters().rejected == n, "the uncalibrated image to be rejected")
    assert "RGB image rejected: /rgb/camera_info is uncalibrated" in capfd.readouterr().err
    assert vehicle.state() == State.PRIMARY_STATE_ACTIVE

    def calibrated() -> bool:
        infos["rgb"].publish(camera_info((64, 48), 60.0))
        infos["thermal"].publish(camera_info((16, 12), 15.0))
        return len(registration._cameras) == 2 and not registration._faults

    poll(calibrated, "the calibration to arrive")
    vehicle.send_pair(200 * MS)
    assert vehicle.status_of(200 * MS).mode == Mode.FUSED


@pytest.mark.parametrize("compressed", [(), ("rgb",), ("rgb", "thermal")])
def test_images_of_other_sizes_than_calibrated_go_to_the_student_for_rgb_alone(
    start_node, vehicle, students, compressed
):
    node = start_node(
        **{f"{camera}__transport": "compressed" for camera in compressed},
        student__visible_file=str(students["visible"]),
        registration__homography=[0.25, 0.0, -0.375, 0.0, 0.25, -0.375, 0.0, 0.0, 1.0],
        registration__sizes=[64, 48, 16, 10],
        health__timeout_s=0.5,
        health__failures_in_a_row=5,
    )
    vehicle.start()
    random = np.random.default_rng(0)
    cameras = {
        camera: vehicle.camera(f"/{camera}/image_raw/compressed", CompressedImage)
        if camera in compressed
        else vehicle.camera(f"/{camera}/image_raw")
        for camera in ("rgb", "thermal")
    }

    def send(stamp_ns: int) -> None:
        for camera, shape, encoding in (("thermal", (12, 16), "mono8"), ("rgb", (48, 64, 3), "rgb8")):
            message = vehicle.image(random.integers(0, 120, shape, np.uint8), encoding, stamp_ns, camera)
            if camera in compressed:
                pixels = np.frombuffer(message.data, np.uint8).reshape(shape)
                data = cv2.imencode(".png", pixels)[1].tobytes()
                message = CompressedImage(header=message.header, format=f"{encoding}; png compressed", data=data)
            cameras[camera].publish(message)

    def served_alone() -> bool:
        send(vehicle.now_ns())
        time.sleep(0.03)
        return any(status.mode == Mode.VISIBLE_ONLY and status.student for status in list(vehicle.statuses))

    poll(served_alone, "results of RGB alone")
    assert vehicle.state() == State.PRIMARY_STATE_ACTIVE
    assert "was made for RGB 64x48 and thermal 16x10, but" in node._why(Mode.VISIBLE_ONLY)


def test_images_of_other_sizes_than_calibrated_are_rejected_with_the_cure(start_node, vehicle, capfd):
    homography = [0.25, 0.0, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 1.0]
    node = start_node(registration__homography=homography, registration__sizes=[64, 48, 16, 10])
    vehicle.start()
    for camera in ("rgb", "thermal"):
        vehicle.camera(f"/{camera}/image_raw")
    vehicle.send_pair(100 * MS)
    poll(lambda: node._intake.counters().rejected == 1, "the pair to be rejected")
    assert "was made for RGB 64x48 and thermal 16x10, but the images are 64x48 and 16x12" in capfd.readouterr().err


@pytest.mark.parametrize("moved", [False, True])
def test_a_camera_that_moved_is_diagnosed_and_others_are_not(start_node, vehicle, moved):
    real = planted_homography(shift=(6.0, 0.0) if moved else (0.0, 0.0))
    believed = planted_homography().reshape(-1).tolist()
    node = start_node(
        registration__homography=believed, registration__monitor_period_s=0.05, pairing__tolerance_s=0.005
    )
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    cameras = drive(TimeOfDay.DAY)
    thermals = cameras.through(real)
    rgb_topic, thermal_topic = (vehicle.camera(f"/{camera}/image_raw") for camera in ("rgb", "thermal"))
    sent = 0

    def enough() -> bool:
        nonlocal sent
        at_ns = vehicle.now_ns()
        colour = cv2.cvtColor(cameras.rgb[sent % 75].image, cv2.COLOR_GRAY2RGB)
        thermal_topic.publish(vehicle.image(thermals[sent % 75].image, "mono8", at_ns, "thermal"))
        rgb_topic.publish(vehicle.image(colour, "rgb8", at_ns, "rgb"))
        sent += 1
        time.sleep(0.05)
        status = registration_of(diagnoses)
        return status is not None and int(told(status, "checks")) >= 8

    poll(enough, "eight checks of the monitor")
    status = registration_of(diagnoses)
    assert status is not None
    if moved:
        assert status.level == DiagnosticStatus.WARN
        assert "thermal lies +" in status.message
        assert "run md_calibrate again" in status.message
    else:
        assert status.level == DiagnosticStatus.OK
        assert status.message.startswith("in register")
    assert abs(node._watch.state().shift_px[0] - (6.0 if moved else 0.0)) < 0.5
    status = poll(
        lambda: (s := registration_of(diagnoses)) and told(s, "new pairs") == "False" and s, "a wait for pairs"
    )
    assert moved or status.message == "in register, when last compared: no new pair since"
    watch = node._watch
    assert vehicle.deactivate()
    assert not watch._thread.is_alive()


def test_a_monitor_that_fails_is_diagnosed_with_the_reason_in_the_log(start_node, vehicle, monkeypatch, capfd):
    node = start_node(registration__monitor_period_s=0.02)
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()

    def sent() -> DiagnosticStatus | None:
        vehicle.send_pair(vehicle.now_ns())
        time.sleep(0.04)
        return registration_of(diagnoses)

    poll(lambda: sent() and node._watch.state(), "a check")
    monkeypatch.setattr(node._watch._monitor, "check", lambda *images: 1 / 0)
    found = poll(lambda: (s := sent()) and s.level == DiagnosticStatus.WARN and s, "the diagnosis")
    assert "the misalignment monitor failed and ended, the log says why" in found.message
    assert "ZeroDivisionError: division by zero" in capfd.readouterr().err
    assert {value.key: value.value for value in found.values} == {"source": "homography", "checks": "0"}  # none of old


def test_live_topics_are_recorded_for_calibration(vehicle, capsys):
    cameras = drive(TimeOfDay.DAY)
    topics = [vehicle.camera(f"/{camera}/image_raw", matched=False) for camera in ("rgb", "thermal")]
    recording = Recording(ThermalSettings())
    failures: list[BaseException] = []

    def record() -> None:
        try:
            record_live(recording, "/rgb/image_raw", "/thermal/image_raw", seconds=3.0)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=record)
    thread.start()
    for topic in topics:
        poll(lambda topic=topic: topic.get_subscription_count() > 0, "md_calibrate to listen")
    for number in range(5):
        at_ns = 10**18 + number * 40 * MS
        colour = cv2.cvtColor(cameras.rgb[number].image, cv2.COLOR_GRAY2RGB)
        topics[0].publish(vehicle.image(colour, "rgb8", at_ns, "rgb"))
        topics[1].publish(vehicle.image(cameras.thermal[number].image, "mono8", at_ns + 7, "thermal"))
        time.sleep(0.04)
    thread.join()
    assert failures == []
    assert recording.sizes == {"rgb": (320, 256), "thermal": (320, 256)}
    assert [frame.stamp_ns for frame in recording.thermal] == [10**18 + number * 40 * MS + 7 for number in range(5)]
    np.testing.assert_array_equal(recording.rgb[2].image, cameras.rgb[2].image)
    assert "listening to /rgb/image_raw and /thermal/image_raw for 3 s" in capsys.readouterr().out


def test_a_topic_that_nobody_publishes_is_named(monkeypatch):
    monkeypatch.setattr("md_perception.ros.calibrate._APPEAR_S", 0.3)
    with pytest.raises(CalibrationError, match="nobody publishes /no/such: start the camera driver"):
        record_live(Recording(ThermalSettings()), "/no/such", "/thermal/image_raw", seconds=1.0)


def test_ros_reads_the_parameter_file_that_md_calibrate_writes(context, tmp_path):
    fit = Fit(np.eye(3), residual_px=0.4, spread_px=0.05, points=33, frames=40, coverage=0.9)
    homography = np.array([[0.25, 1e-9, 3.0], [0.0, 0.25, -2.0], [1.2345678e-05, 0.0, 1.0]])
    picture = np.zeros((2, 2, 3), np.uint8)
    result = Result(
        Alignment(fit, Delay(0.0412, 0.002)), homography, (640, 512, 160, 128), "edges", (0.1, 0.5), picture
    )
    file = tmp_path / "calibration.yaml"
    file.write_text(result.yaml("a bag"))

    node = Node("md_perception", context=context, cli_args=["--ros-args", "--params-file", str(file)], namespace="/car")
    parameters.declare(node)
    found = parameters.read(node)

    assert found.registration_settings() == RegistrationSettings(
        homography=homography.reshape(-1).tolist(), sizes=(640, 512, 160, 128)
    )
    assert found.pairing_offset_s == -0.0412
    node.destroy_node()
