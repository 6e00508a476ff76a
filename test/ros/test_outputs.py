"""What navigation stacks read from the running node: obstacles, sizes and encodings of the mask, Autoware's topics."""

import re
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Quaternion, Vector3
from rclpy.duration import Duration
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, PointField
from tiny_student import write_tiny_student
from vehicle import BEST_EFFORT, LATCHED, Spinning, header_ns, poll
from vision_msgs.msg import Detection2DArray, LabelInfo

from md_perception.labels import SEGMENTATION
from md_perception.outputs import autoware
from md_perception.results import Mode
from md_perception.sensing.images import to_array

MS = 1_000_000
MOUNTED = {"ground__source": "mounting", "ground__mounting_position": [0.5, 0.0, 1.5]}
# The tiny student's boxes are the middle half of the image (person), its left half (bicycle) and the upper left corner
# (car). The first ends at row 36 of 48: 12 rows below the horizon.
PEOPLE = {"ground__groups": ["people=person"], "ground__evidence": "detections"}
DARK = np.zeros((48, 64, 3), np.uint8)
FOOT_M = 0.5 + 1.5 * 60 / 12
"""Where the person stands: 12 rows at a focal length of 60 px and 1.5 m, from half a metre ahead of the base."""


def camera_info(size: tuple[int, int] = (64, 48), focal_px: float = 60.0) -> CameraInfo:
    # The principal point in the middle: pixel column i covers [i, i + 1).
    k = [focal_px, 0.0, size[0] / 2 - 0.5, 0.0, focal_px, size[1] / 2 - 0.5, 0.0, 0.0, 1.0]
    p = [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0]
    eye = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    width, height = size
    return CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5, k=k, r=eye, p=p)


def xyz_of(cloud: PointCloud2) -> np.ndarray:
    """Return float32 (N, 4): x, y, z and sigma."""
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "sigma"]
    return np.frombuffer(cloud.data, "<f4").reshape(-1, 4)


def described(vehicle, node, camera: str = "rgb", info: CameraInfo | None = None) -> None:
    """Send a camera_info until the node has it. camera: with the node's namespace, if it has one."""
    publisher = vehicle.camera(f"/{camera}/camera_info", CameraInfo, BEST_EFFORT)
    outputs = node._outputs._navigation

    def arrived() -> bool:
        publisher.publish(info or camera_info())
        return camera.rpartition("/")[2] in outputs._cameras

    poll(arrived, f"the {camera}/camera_info to arrive")


def send(vehicle, stamp_ns: int, pixels: np.ndarray = DARK) -> None:
    vehicle.send_pair(stamp_ns, pixels)
    vehicle.status_of(stamp_ns)


def message_of(messages: list, stamp_ns: int):
    def found():
        return next(
            (m for m in list(messages) if m.header.stamp.sec * 10**9 + m.header.stamp.nanosec == stamp_ns), None
        )

    return poll(found, f"the message of {stamp_ns} ns")


# -- obstacles ---------------------------------------------------------------------------------------------------------


def test_obstacles_go_out_in_the_base_frame_with_the_stamp_of_the_image(start_node, vehicle):
    node = start_node(**MOUNTED, **PEOPLE, ground__scan=True)
    people, clearing = (vehicle.listen(f"/obstacles/{name}", PointCloud2) for name in ("people", "clearing"))
    scans = vehicle.listen("/obstacles/scan", LaserScan)
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    cloud = message_of(people, 100 * MS)
    assert cloud.header.frame_id == "base_footprint"
    points = xyz_of(cloud)
    np.testing.assert_allclose(points[:, 0], FOOT_M, atol=1e-4)
    np.testing.assert_allclose(points[:, 2], 0.5, atol=1e-6)
    assert points[:, 1].max() == pytest.approx(-points[:, 1].min(), abs=0.2)  # columns 16 to 47: 15.5 px to each side
    assert points[:, 1].max() == pytest.approx(15.5 / 60 * (FOOT_M - 0.5), abs=0.2)
    assert (points[:, 3] > 0.5).all()  # a row is some 0.6 m there
    ends = xyz_of(message_of(clearing, 100 * MS))
    ahead = np.abs(np.arctan2(ends[:, 1], ends[:, 0] - 0.5)) < 0.2
    assert (np.hypot(ends[ahead, 0] - 0.5, ends[ahead, 1]) < FOOT_M - 0.5).all()
    scan = message_of(scans, 100 * MS)
    assert scan.header.frame_id == "base_footprint"
    assert np.nanmin(np.array(scan.ranges)) == pytest.approx(FOOT_M, abs=0.1)
    assert not np.isinf(np.array(scan.ranges)).any()


def test_without_camera_info_there_are_results_but_no_obstacles_and_the_log_says_why(start_node, vehicle, capfd):
    node = start_node(**MOUNTED, **PEOPLE)
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    send(vehicle, 100 * MS)
    reason = "no obstacles: nothing came on /rgb/camera_info yet: let the driver publish it"
    poll(lambda: reason in capfd.readouterr().err, "the reason in the log")
    described(vehicle, node, info=camera_info((640, 480)))
    send(vehicle, 200 * MS)
    assert people == []
    described(vehicle, node)
    poll(lambda: node._outputs._navigation._cameras["rgb"].size == (64, 48) or described(vehicle, node), "its size")
    send(vehicle, 300 * MS)
    assert len(xyz_of(message_of(people, 300 * MS))) > 0
    assert len(people) == 1


def test_why_there_are_no_obstacles_is_on_diagnostics_until_there_are(start_node, vehicle):
    node = start_node(**MOUNTED, **PEOPLE, health__timeout_s=60.0)
    people = vehicle.listen("/obstacles/people", PointCloud2)
    diagnoses = vehicle.listen_to_diagnostics()

    def obstacles() -> DiagnosticStatus | None:
        newest = diagnoses[-1].status if diagnoses else ()
        return next((status for status in newest if status.name == "md_perception: obstacles"), None)

    def told(text: str) -> DiagnosticStatus:
        def found():
            status = obstacles()
            return status if status is not None and text in status.message else None

        return poll(found, f"{text!r} on /diagnostics")

    vehicle.start()
    assert told("not published: there are no results, see mode").level == DiagnosticStatus.OK
    send(vehicle, 100 * MS)
    assert told("no obstacles: nothing came on /rgb/camera_info yet: let the driver").level == DiagnosticStatus.WARN
    described(vehicle, node)
    send(vehicle, 200 * MS)
    message_of(people, 200 * MS)
    status = told("published")
    assert status.level == DiagnosticStatus.OK
    assert {v.key: v.value for v in status.values} == {"source": "mounting", "published": "1"}


def test_nothing_is_published_while_stale(start_node, vehicle):
    """So that the consumer's source_timeout protects the robot: no repeated obstacles, no empty ones."""
    node = start_node(**MOUNTED, **PEOPLE, health__timeout_s=0.3)
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send(vehicle, vehicle.now_ns())
    poll(lambda: len(people) == 1, "the obstacles")
    stale = len([s for s in vehicle.statuses if s.mode == s.MODE_STALE])
    poll(lambda: len([s for s in vehicle.statuses if s.mode == s.MODE_STALE]) >= stale + 2, "STALE to be said twice")
    assert len(people) == 1


def test_obstacles_in_the_camera_frame(start_node, vehicle):
    node = start_node(**MOUNTED, **PEOPLE, ground__output_frame="camera")
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    cloud = message_of(people, 100 * MS)
    assert cloud.header.frame_id == "rgb_optical"
    np.testing.assert_allclose(xyz_of(cloud)[:, 2], FOOT_M - 0.5, atol=1e-4)  # depth
    np.testing.assert_allclose(xyz_of(cloud)[:, 1], 1.0, atol=1e-4)  # 0.5 m above the ground, 1 m below the camera


def depth_image(vehicle, stamp_ns: int) -> Image:
    return vehicle.image(np.full((24, 32), 5000, np.uint16), "16UC1", stamp_ns, "rgb_optical")


def depth_cloud(vehicle, stamp_ns: int) -> PointCloud2:
    values = np.zeros((24, 32, 3), np.float32)
    values[..., 2] = 5.0
    fields = [PointField(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate("xyz")]
    data = to_array(values.reshape(-1).view(np.uint8))
    cloud = PointCloud2(height=24, width=32, fields=fields, point_step=12, row_step=384, data=data)
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return cloud


@pytest.mark.parametrize(
    ("kind", "topic", "message_type", "make"),
    [("image", "/depth/image", Image, depth_image), ("cloud", "/depth/points", PointCloud2, depth_cloud)],
)
def test_registered_depth_places_obstacles(start_node, vehicle, capfd, kind, topic, message_type, make):
    node = start_node(**MOUNTED, **PEOPLE, ground__depth=kind)
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    np.testing.assert_allclose(xyz_of(message_of(people, 100 * MS))[:, 0], FOOT_M, atol=1e-4)
    poll(lambda: "obstacles by the ground, not by depth" in capfd.readouterr().err, "the reason in the log")
    publisher = vehicle.camera(topic, message_type, BEST_EFFORT)

    def arrived() -> bool:
        publisher.publish(make(vehicle, 210 * MS))
        return bool(node._outputs._navigation._depths)

    poll(arrived, "depth")
    send(vehicle, 200 * MS)
    np.testing.assert_allclose(xyz_of(message_of(people, 200 * MS))[:, 0], 0.5 + 5.0, atol=1e-4)
    send(vehicle, 300 * MS)  # 90 ms later: too late
    np.testing.assert_allclose(xyz_of(message_of(people, 300 * MS))[:, 0], FOOT_M, atol=1e-4)


class FakeTf:
    """The part of tf2_ros that the node uses: its wheels do not exist, and a real one is in every ROS installation."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], tuple[Vector3, Quaternion]] = {}
        self.asked: list[int] = []
        self.unregistered = False
        self.cleared = 0
        module = ModuleType("tf2_ros")
        tf = self

        class TransformException(Exception):
            pass

        class Buffer:
            def lookup_transform(self, target: str, source: str, time: Time, timeout: Duration) -> SimpleNamespace:
                tf.asked.append(time.nanoseconds)
                if (target, source) not in tf.known:
                    raise TransformException(f'"{source}" passed to lookupTransform does not exist')
                position, turn = tf.known[target, source]
                return SimpleNamespace(transform=SimpleNamespace(translation=position, rotation=turn))

            def clear(self) -> None:
                tf.cleared += 1

        class TransformListener:
            def __init__(self, buffer: Buffer, node: object) -> None:
                pass

            def unregister(self) -> None:
                tf.unregistered = True

        module.TransformException, module.Buffer, module.TransformListener = (
            TransformException,
            Buffer,
            TransformListener,
        )
        self.module = module


def test_the_camera_is_where_tf_says_at_the_time_of_the_image(start_node, vehicle, monkeypatch, capfd):
    tf = FakeTf()
    monkeypatch.setitem(sys.modules, "tf2_ros", tf.module)
    node = start_node(**PEOPLE, ground__source="tf", ground__base_frame="base_link", ground__z_m=-0.3)
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    reason = 'no transform from rgb_optical to base_link at the time of the image ("rgb_optical" passed'
    poll(lambda: reason in capfd.readouterr().err, "the reason in the log")
    assert people == []
    tf.known["base_link", "rgb_optical"] = Vector3(x=0.5, z=1.2), Quaternion(x=-0.5, y=0.5, z=-0.5, w=0.5)
    send(vehicle, 200 * MS)
    cloud = message_of(people, 200 * MS)
    assert cloud.header.frame_id == "base_link"
    np.testing.assert_allclose(xyz_of(cloud)[:, 0], FOOT_M, atol=1e-4)
    np.testing.assert_allclose(xyz_of(cloud)[:, 2], 0.5 - 0.3, atol=1e-6)
    # The camera moves on: the next image is placed from where it is then.
    tf.known["base_link", "rgb_optical"] = Vector3(x=1.5, z=1.2), Quaternion(x=-0.5, y=0.5, z=-0.5, w=0.5)
    send(vehicle, 300 * MS)
    np.testing.assert_allclose(xyz_of(message_of(people, 300 * MS))[:, 0], FOOT_M + 1, atol=1e-4)
    assert tf.asked == [100 * MS, 200 * MS, 300 * MS]
    assert vehicle.deactivate()
    assert vehicle.cleanup()
    assert tf.unregistered


def test_a_recording_that_begins_anew_has_its_transforms_anew(start_node, vehicle, monkeypatch):
    """tf2 refuses what is older than its newest transform by more than its memory, and would go on with nothing."""
    tf = FakeTf()
    tf.known["base_footprint", "rgb_optical"] = Vector3(x=0.5, z=1.5), Quaternion(x=-0.5, y=0.5, z=-0.5, w=0.5)
    monkeypatch.setitem(sys.modules, "tf2_ros", tf.module)
    node = start_node(**PEOPLE, ground__source="tf")
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    for stamp_ns, cleared in ((60_000 * MS, 0), (60_100 * MS, 0), (1_000 * MS, 1), (1_100 * MS, 1)):
        send(vehicle, stamp_ns)
        assert len(xyz_of(message_of(people, stamp_ns))) > 0
        assert tf.cleared == cleared


def test_an_image_without_a_frame_has_no_transform(start_node, vehicle, monkeypatch, capfd):
    tf = FakeTf()
    monkeypatch.setitem(sys.modules, "tf2_ros", tf.module)
    node = start_node(**PEOPLE, ground__source="tf")
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send_without_frame(vehicle, 100 * MS)
    poll(lambda: "no obstacles: the images have no frame_id" in capfd.readouterr().err, "the reason in the log")
    assert people == []
    assert tf.asked == []


def test_an_image_without_a_frame_has_no_obstacles_in_that_frame(start_node, vehicle, capfd):
    node = start_node(**MOUNTED, **PEOPLE, ground__output_frame="camera")
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send_without_frame(vehicle, 100 * MS)
    poll(lambda: "no obstacles: the images have no frame_id" in capfd.readouterr().err, "the reason in the log")
    assert people == []


def send_without_frame(vehicle, stamp_ns: int) -> None:
    rgb = vehicle.camera("/rgb/image_raw")  # found first: its partner does not wait for discovery
    vehicle.send_thermal(stamp_ns)
    rgb.publish(vehicle.image(DARK, "rgb8", stamp_ns, ""))
    vehicle.status_of(stamp_ns)


@pytest.mark.parametrize(
    ("angles", "reason"),
    [
        ([0.0, -60.0, 0.0], "no obstacles: the camera sees no ground within 20 m: see its transform"),
        ([180.0, 0.0, 0.0], "no obstacles: the camera is rolled by -?180 degrees"),
    ],
)
def test_a_camera_that_cannot_place_anything_is_silent_and_says_why(start_node, vehicle, capfd, angles, reason):
    """Empty clouds would say that there is nobody, and keep the consumer's source_timeout from stopping the robot."""
    node = start_node(**MOUNTED, **PEOPLE, ground__mounting_angles=angles)
    clouds = [vehicle.listen(f"/obstacles/{name}", PointCloud2) for name in ("people", "clearing")]
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    poll(lambda: re.search(reason, capfd.readouterr().err), "the reason in the log")
    assert clouds == [[], []]


def test_a_camera_info_that_became_useless_ends_the_obstacles(start_node, vehicle, capfd):
    node = start_node(**MOUNTED, **PEOPLE)
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    message_of(people, 100 * MS)
    uncalibrated = CameraInfo(width=64, height=48)
    publisher = vehicle.camera("/rgb/camera_info", CameraInfo, BEST_EFFORT)
    poll(lambda: publisher.publish(uncalibrated) or "rgb" in node._outputs._navigation._faults, "the camera info")
    send(vehicle, 200 * MS)
    reason = "no obstacles: /rgb/camera_info is uncalibrated (K begins with 0): calibrate the camera "
    cure = "(camera_calibration), or set ground.source to 'off'"
    poll(lambda: reason + cure in capfd.readouterr().err, "the reason in the log")
    assert node._outputs.obstacles.problems == (reason + cure,)
    assert len(people) == 1


def test_rectified_images_are_placed_by_the_projection_matrix(start_node, vehicle):
    node = start_node(**MOUNTED, **PEOPLE, ground__images="rectified")
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    info = camera_info()
    info.p[5] = 30.0  # half the focal length of K: half the distance
    described(vehicle, node, info=info)
    send(vehicle, 100 * MS)
    np.testing.assert_allclose(xyz_of(message_of(people, 100 * MS))[:, 0], 0.5 + (FOOT_M - 0.5) / 2, atol=1e-4)


def test_lines_are_cleared_up_to_the_obstacles_of_every_group(start_node, vehicle):
    groups = {"ground__groups": ["people=person", "vehicles=bicycle"], "ground__evidence": "detections"}
    node = start_node(**MOUNTED, **groups, score_threshold=0.1)
    vehicles, clearing = (vehicle.listen(f"/obstacles/{name}", PointCloud2) for name in ("vehicles", "clearing"))
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    left = xyz_of(message_of(vehicles, 100 * MS))
    nearest = np.hypot(left[:, 0] - 0.5, left[:, 1]).min()
    ends = xyz_of(message_of(clearing, 100 * MS))
    away, bearing = np.hypot(ends[:, 0] - 0.5, ends[:, 1]), np.arctan2(ends[:, 1], ends[:, 0] - 0.5)
    assert nearest < 5  # the left half of the image down to its lower edge
    assert not ((bearing > 0.05) & (bearing < 0.4) & (away > nearest)).any()
    assert (away[(bearing < -0.3) & (bearing > -0.45)] > 10).all()  # beside the person nothing is in the way


def test_a_cloud_has_no_more_points_than_wanted(start_node, vehicle):
    node = start_node(**MOUNTED, **PEOPLE, ground__max_points=3)
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    send(vehicle, 100 * MS)
    assert len(xyz_of(message_of(people, 100 * MS))) == 3


def test_a_student_with_one_task_clears_nothing_of_the_other(start_node, vehicle, tmp_path):
    """RGB alone is served by a student without a mask: it cannot say that a guardrail is gone."""
    boxes_only = write_tiny_student(tmp_path / "boxes.onnx", thermal=False, tasks=("detection",))
    node = start_node(
        **MOUNTED,
        ground__groups=["people=person", "things=guardrail"],
        student__visible_file=str(boxes_only),
        health__timeout_s=0.3,
    )
    clearing = vehicle.listen("/obstacles/clearing", PointCloud2)
    vehicle.start()
    described(vehicle, node)
    stamp_ns = vehicle.now_ns()
    send(vehicle, stamp_ns)
    assert len(xyz_of(message_of(clearing, stamp_ns))) > 0

    def served_alone() -> int:
        stamp_ns = vehicle.now_ns()
        vehicle.send_rgb(stamp_ns)
        time.sleep(0.05)
        status = next((s for s in list(vehicle.statuses) if header_ns(s) == stamp_ns), None)
        return stamp_ns if status is not None and status.mode == Mode.VISIBLE_ONLY else 0

    assert len(xyz_of(message_of(clearing, poll(served_alone, "a result of RGB alone")))) == 0


def test_thermal_alone_has_no_obstacles_by_the_mounting_of_the_rgb_camera(start_node, vehicle, students, capfd):
    start_node(**MOUNTED, **PEOPLE, student__file=str(students["thermal"]))
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    vehicle.send_thermal(100 * MS)
    vehicle.status_of(100 * MS)
    poll(lambda: "the results are those of the thermal camera alone" in capfd.readouterr().err, "the warning")
    assert people == []


def test_thermal_alone_has_obstacles_by_its_own_transform(start_node, vehicle, students, monkeypatch):
    tf = FakeTf()
    tf.known["base_footprint", "thermal"] = Vector3(x=0.5, z=1.5), Quaternion(x=-0.5, y=0.5, z=-0.5, w=0.5)
    monkeypatch.setitem(sys.modules, "tf2_ros", tf.module)
    node = start_node(**PEOPLE, ground__source="tf", ground__depth="image", student__file=str(students["thermal"]))
    people = vehicle.listen("/obstacles/people", PointCloud2)
    vehicle.start()
    described(vehicle, node, "thermal", camera_info((16, 12), 15.0))
    depth = vehicle.camera("/depth/image", Image, BEST_EFFORT)  # registered to the RGB camera: of no use here
    poll(lambda: depth.publish(depth_image(vehicle, 100 * MS)) or node._outputs._navigation._depths, "depth")
    vehicle.send_thermal(100 * MS)
    # A quarter of the size and of the focal length: the person stands where it stood for the RGB camera.
    np.testing.assert_allclose(xyz_of(message_of(people, 100 * MS))[:, 0], FOOT_M, atol=1e-4)


# -- tracking ----------------------------------------------------------------------------------------------------------


def test_ids_of_detections_survive_a_change_of_mode(start_node, vehicle, students):
    pytest.importorskip("norfair", reason="norfair-enough is optional: pip install norfair-enough")
    start_node(
        student__visible_file=str(students["visible"]),
        tracking__tracker="norfair",
        health__timeout_s=0.5,
        score_threshold=0.1,
    )
    found = vehicle.listen("/md_perception/detections", Detection2DArray)
    vehicle.start()
    grey = np.full((48, 64, 3), 153, np.uint8)  # so that the visible student says what the fused one does

    def ids_in(mode: str) -> dict[str, str]:
        """Send frames until one was served in the mode; return the ids by class."""

        def served() -> dict[str, str] | None:
            stamp_ns = vehicle.now_ns()
            picture = grey + vehicle._random.integers(0, 3, grey.shape, np.uint8)
            if mode == "FUSED":
                vehicle.send_thermal(stamp_ns)
            vehicle.send_rgb(stamp_ns, picture)
            time.sleep(0.05)
            status = next((s for s in list(vehicle.statuses) if header_ns(s) == stamp_ns), None)
            if status is None or status.mode != Mode[mode]:
                return None
            return {d.results[0].hypothesis.class_id: d.id for d in message_of(found, stamp_ns).detections}

        return poll(served, f"a result in {mode}")

    fused = ids_in("FUSED")
    assert len({*fused.values()} - {""}) == 3
    alone = ids_in("VISIBLE_ONLY")
    # The third box is that of the thermal image's size in one mode, and the whole image in the other.
    assert (alone["person"], alone["bicycle"]) == (fused["person"], fused["bicycle"])
    assert ids_in("FUSED")["person"] == fused["person"]


# -- masks for consumers -----------------------------------------------------------------------------------------------

RED_RIGHT = np.zeros((48, 64, 3), np.uint8)
RED_RIGHT[:, 40:, 0] = 255  # the tiny student takes red for persons
RED_RIGHT[..., 1] = np.arange(64, dtype=np.uint8)  # and green for confidence


def test_mask_and_confidence_at_a_depth_cameras_size(start_node, vehicle):
    start_node(segmentation__size=[31, 13])
    masks, confidences = (vehicle.listen(f"/segmentation/{name}", Image) for name in ("mask", "confidence"))
    vehicle.start()
    send(vehicle, 100 * MS, RED_RIGHT)
    mask, confidence = message_of(masks, 100 * MS), message_of(confidences, 100 * MS)
    columns = ((np.arange(31) + 0.5) * 64 / 31 - 1e-6).astype(int)  # at 32.0, between two columns, the left one
    for message, expected in ((mask, np.where(columns >= 40, 2, 0)), (confidence, columns)):
        assert (message.width, message.height, message.step, message.encoding) == (31, 13, 31, "mono8")
        np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(13, 31), np.tile(expected, (13, 1)))


def test_label_info_is_there_before_the_first_mask_and_comes_once(start_node, vehicle):
    """The layer crashes on a mask before it, and builds everything anew at each."""
    start_node()
    assert vehicle.configure()
    assert vehicle.activate()
    labels = vehicle.listen("/segmentation/label_info", LabelInfo, LATCHED)  # a late subscriber
    masks = vehicle.listen("/segmentation/mask", Image)
    poll(lambda: labels, "the label info, before any image")
    vehicle.wait_for_listeners()
    for number in range(1, 4):
        send(vehicle, number * 100 * MS)
    message_of(masks, 300 * MS)
    assert len(labels) == 1
    # Nor does it come again with the next activation, where nothing has changed; who comes late has it all the same.
    assert vehicle.deactivate()
    assert vehicle.activate()
    send(vehicle, 500 * MS)
    message_of(masks, 500 * MS)
    assert len(labels) == 1
    vehicle.listen("/segmentation/label_info", LabelInfo, LATCHED)  # into the same list
    poll(lambda: len(labels) == 2, "the label info for another late subscriber")
    vehicle.set_parameters(score_threshold=0.75)
    poll(lambda: len(labels) == 4, "the label info of another threshold, for both")
    assert [info.threshold for info in labels[2:]] == [0.75, 0.75]
    assert [(c.class_id, c.class_name) for c in labels[0].class_map] == list(enumerate(SEGMENTATION.classes))


def test_the_mask_for_autoware_has_topics_of_its_own(start_node, vehicle):
    start_node(
        remap=["autoware/mask:=/perception/object_recognition/detection/mask0"],
        segmentation__mask_encoding="autoware_rle",
    )
    masks = vehicle.listen("/perception/object_recognition/detection/mask0", Image, BEST_EFFORT)
    labels = vehicle.listen("/autoware/label_info", LabelInfo, LATCHED)
    vehicle.start()
    send(vehicle, 100 * MS, RED_RIGHT)
    message = message_of(masks, 100 * MS)
    assert (message.encoding, message.width, message.height) == ("mono8", 64, 48)
    assert len(message.data) == 5 * 2 * 48  # two runs a row
    decoded = autoware.decode(np.frombuffer(message.data, np.uint8), (64, 48))
    assert set(decoded[:, :40].ravel()) == {autoware.OBSTACLE}
    assert set(decoded[:, 40:].ravel()) == {autoware.MASK_LABELS["person"]}
    assert {c.class_name: c.class_id for c in labels[0].class_map} == autoware.MASK_LABELS
    assert vehicle.node.count_publishers("/segmentation/mask") == 0


def test_a_raw_mask_on_a_topic_of_autoware_is_refused(start_node, vehicle, capfd):
    start_node(remap=["segmentation/mask:=/perception/object_recognition/detection/mask3"])
    assert not vehicle.configure()
    assert "a raw mask must not go out on /perception/object_recognition/detection/mask3" in capfd.readouterr().err
    assert vehicle.node.count_publishers("/perception/object_recognition/detection/mask3") == 0


def test_run_lengths_on_a_topic_of_images_are_refused(start_node, vehicle, capfd):
    start_node(remap=["autoware/mask:=/segmentation/mask"], segmentation__mask_encoding="autoware_rle")
    assert not vehicle.configure()
    assert "run lengths must not go out on /segmentation/mask" in capfd.readouterr().err


def test_a_mapping_of_a_class_that_the_student_does_not_know_is_warned_of(start_node, vehicle, capfd):
    start_node(segmentation__mask_encoding="autoware_rle", autoware__mask_labels=["persn=person", "car=vehicle"])
    assert vehicle.configure()
    said = capfd.readouterr().err
    assert "autoware.mask_labels names persn, which the student does not know: it knows unl" in said
    assert "takes the lidar's points" not in said


def test_a_class_whose_lidar_points_autoware_takes_away_is_warned_of(start_node, vehicle, capfd):
    start_node(segmentation__mask_encoding="autoware_rle", autoware__mask_labels=["guardrail=wall", "car=vehicle"])
    assert vehicle.configure()
    said = capfd.readouterr().err
    assert "autoware.mask_labels: guardrail=wall: Autoware's segmentation_pointcloud_fusion takes the lidar's" in said


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"autoware__objects": True}, "tier4_perception_msgs is not installed: source Autoware's workspace"),
        ({"ground__source": "tf"}, "tf2_ros is not installed: install ros-$ROS_DISTRO-tf2-ros-py"),
        ({"tracking__tracker": "norfair"}, "norfair is not installed: pip install norfair-enough"),
        ({**MOUNTED, "ground__groups": ["a=curve"], "ground__evidence": "detections"}, "'a' would always be empty"),
        ({**MOUNTED, "ground__groups": ["a=human"]}, "class group 'a' names human, which the student does not know"),
    ],
)
def test_what_cannot_be_is_refused_at_configure_with_the_cure(start_node, vehicle, capfd, monkeypatch, values, reason):
    for module in ("tf2_ros", "tier4_perception_msgs", "norfair"):  # as if they were not installed, where they are
        monkeypatch.setitem(sys.modules, module, None)
    start_node(**values)
    assert not vehicle.configure()
    assert reason in capfd.readouterr().err
    assert vehicle.node.count_publishers("/obstacles/people") == 0


# -- several instances -------------------------------------------------------------------------------------------------


def test_two_nodes_in_namespaces_stay_apart(start_node, vehicle):
    sides = ("front", "rear")
    nodes = [start_node(remap=[f"__ns:=/{side}"], **MOUNTED, **PEOPLE) for side in sides]
    masks, clouds, arrays = (
        {side: vehicle.listen(f"/{side}/{topic}", kind) for side in sides}
        for topic, kind in (
            ("segmentation/mask", Image),
            ("obstacles/people", PointCloud2),
            ("md_perception/detections", Detection2DArray),
        )
    )
    for node in nodes:
        assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        vehicle.target = node
        vehicle.wait_for_listeners()
    for number, side in enumerate(sides, 1):
        described(vehicle, nodes[number - 1], f"{side}/rgb")
        cameras = [vehicle.camera(f"/{side}/{camera}/image_raw") for camera in ("rgb", "thermal")]
        thermal = np.tile(np.arange(100, 116, dtype=np.uint8), (12, 1))
        for publisher, pixels, encoding in zip(cameras, (DARK, thermal), ("rgb8", "mono8"), strict=True):
            publisher.publish(vehicle.image(pixels, encoding, number * 100 * MS, f"{side}_optical"))
        assert message_of(masks[side], number * 100 * MS).header.frame_id == f"{side}_optical"
        assert len(xyz_of(message_of(clouds[side], number * 100 * MS))) > 0
        message_of(arrays[side], number * 100 * MS)
    assert [len(found[side]) for found in (masks, clouds, arrays) for side in sides] == [1] * 6


# -- docs/integration/rclpy.md -----------------------------------------------------------------------------------------


def test_the_consumer_in_the_documentation_works(start_node, vehicle, context):
    page = (Path(__file__).parents[2] / "docs" / "integration" / "rclpy.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(code, names)
    consumer = names["Consumer"](context=context)
    spinning = Spinning(consumer, context)
    try:
        assert consumer.must_stop()  # of silence
        node = start_node(**MOUNTED, **PEOPLE)
        vehicle.start()
        described(vehicle, node)
        for publisher in node.publishers:
            if publisher.topic_name in ("/segmentation/mask", "/obstacles/people", "/md_perception/detections"):
                poll(lambda p=publisher: p.get_subscription_count() > 0, f"the consumer of {publisher.topic_name}")

        def heard() -> bool:
            vehicle.send_pair(vehicle.now_ns(), RED_RIGHT)
            time.sleep(0.02)
            return bool(consumer.people) and consumer.person_share > 0 and consumer.last is not None

        poll(heard, "results")
        assert consumer.mode == Mode.FUSED
        assert consumer.person_share == pytest.approx(24 / 64)
        assert consumer.people[0][2:] == (16.0, 12.0, 48.0, 36.0)
        assert 5.0 < consumer.nearest_m < FOOT_M  # one sigma nearer
        poll(consumer.must_stop, "the stop after silence")
    finally:
        spinning.stop()
