"""What navigation stacks read beside detections and mask: obstacles in metres for Nav2, objects for Autoware."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rclpy.clock import ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from md_perception.outputs import autoware
from md_perception.outputs.ground import CameraPose, GroundModel, GroundPoints, ObstacleFinder
from md_perception.outputs.messages import MessageBuilder
from md_perception.outputs.navigation import NavigationSettings, ObstacleOutput
from md_perception.results import Camera, Float32Array, Mode, Perception
from md_perception.ros import qos
from md_perception.sensing.depth import depth_of_cloud, depth_of_image
from md_perception.sensing.images import ImageError, stamp_ns
from md_perception.sensing.registration import CameraGeometry, RegistrationError

AUTOWARE_OBJECTS = "tier4_perception_msgs/msg/DetectedObjectsWithFeature"

WARNING_PERIOD_S = 5.0

_JUMP_NS = 1_000_000_000
"""Images whose stamps go back by more come from a recording that begins anew."""

_DEPTH_MESSAGES = 8
"""Depth messages among which the one of an image is looked for."""


@dataclass(frozen=True)
class ObstacleReport:
    """What became of the obstacles, for diagnostics.

    source: ground.source. listened_to: whether somebody subscribed when the last result came. published: results whose
    obstacles went out. problems: why those of the last result did not, or not by depth, with the cure.
    """

    source: str
    listened_to: bool = False
    published: int = 0
    problems: tuple[str, ...] = ()


class PoseUnknown(LookupError):
    """Nobody knows where the camera is; the text says what to do."""


class NavigationOutputs:
    """Publishers of obstacles and of Autoware's objects, and what they need to hear.

    Made and destroyed on the executor's thread, which also runs the subscriptions; `publish` runs on the worker's.
    create: makes a lifecycle publisher from a message name and a topic; who gives it destroys it.
    detection_classes, segmentation_classes: of the students, in id order.
    Raises ValueError for settings that these classes or this ROS installation rule out.
    """

    def __init__(
        self,
        node: Node,
        build: MessageBuilder,
        create: Callable[[str, str], Any],
        settings: NavigationSettings,
        detection_classes: Sequence[str],
        segmentation_classes: Sequence[str],
    ) -> None:
        self._node = node
        self._build = build
        self._wanted = settings.obstacles
        self._subscriptions: list[Any] = []
        self._transforms: _Transforms | None = None
        self._lock = threading.Lock()
        self._cameras: dict[Camera, CameraGeometry] = {}
        self._faults: dict[Camera, str] = {}
        self._depths: deque[Any] = deque(maxlen=_DEPTH_MESSAGES)
        self._models: dict[Camera, GroundModel] = {}
        self._report = ObstacleReport(self._wanted.source)
        self._problems: list[str] = []  # of the result in work
        self._objects: Any = None
        self._clouds: dict[str, Any] = {}
        self._clearing: Any = None
        self._scan: Any = None
        if settings.object_labels is not None:
            self._labels = autoware.object_labels(dict(settings.object_labels), detection_classes)
            try:
                self._objects = create(AUTOWARE_OBJECTS, "autoware/objects")
            except ModuleNotFoundError as error:
                package = str(error.name).partition(".")[0]
                raise ValueError(
                    f"autoware.objects is true, but {package} is not installed: source Autoware's workspace, or set "
                    "autoware.objects to false"
                ) from None
        if self._wanted.source != "off":
            self._finder = ObstacleFinder(
                self._wanted.groups, detection_classes, segmentation_classes, self._wanted.evidence
            )
            self._advertise(create)
            self._listen()

    @property
    def report(self) -> ObstacleReport | None:
        """What became of the obstacles; None where none are wanted."""
        return None if self._wanted.source == "off" else self._report

    def publish(self, perception: Perception) -> None:
        """Publish what somebody subscribes to. What is missing for obstacles is said in the log and in `report`."""
        if self._objects is not None and self._objects.get_subscription_count() > 0:
            self._objects.publish(self._build.autoware_objects(perception, self._labels))
        topics = [*self._clouds.values(), *filter(None, (self._clearing, self._scan))]
        if not any(publisher.get_subscription_count() > 0 for publisher in topics):
            self._report = replace(self._report, listened_to=False, problems=())
            return
        self._problems = []
        published = self._report.published
        try:
            self._publish_obstacles(perception)
            published += 1
        except (LookupError, ValueError) as error:
            self._warn(f"no obstacles: {error}")
        self._report = ObstacleReport(self._wanted.source, True, published, tuple(self._problems))

    def destroy(self) -> None:
        """End the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        if self._transforms is not None:
            self._transforms.destroy()
            self._transforms = None

    def _advertise(self, create: Callable[[str, str], Any]) -> None:
        self._clouds = {name: create("sensor_msgs/msg/PointCloud2", f"obstacles/{name}") for name in self._finder.names}
        self._clearing = create("sensor_msgs/msg/PointCloud2", "obstacles/clearing")
        if self._wanted.scan:
            self._scan = create("sensor_msgs/msg/LaserScan", "obstacles/scan")

    def _listen(self) -> None:
        if self._wanted.source == "tf":
            self._transforms = _Transforms(self._node)
        cameras: tuple[Camera, ...] = ("rgb", "thermal")
        for camera in cameras:
            self._subscribe(CameraInfo, f"{camera}/camera_info", partial(self._note_camera, camera), qos.CAMERA_INFO)
        if self._wanted.depth == "image":
            self._subscribe(Image, "depth/image", self._note_depth, qos.DEPTH)
        elif self._wanted.depth == "cloud":
            self._subscribe(PointCloud2, "depth/points", self._note_depth, qos.DEPTH)

    def _subscribe(self, message: type, topic: str, callback: Callable[[Any], None], profile: Any) -> None:
        self._subscriptions.append(self._node.create_subscription(message, topic, callback, profile))

    def _note_camera(self, camera: Camera, info: CameraInfo) -> None:
        try:
            found = CameraGeometry.of(info, self._node.resolve_topic_name(f"{camera}/camera_info"))
        except RegistrationError as error:
            with self._lock:
                self._faults[camera] = f"{error}, or set ground.source to 'off'"
                self._cameras.pop(camera, None)
            return
        with self._lock:
            self._faults.pop(camera, None)
            self._cameras[camera] = found

    def _note_depth(self, message: Any) -> None:
        self._depths.append(message)

    def _publish_obstacles(self, perception: Perception) -> None:
        model = self._model(perception)
        output, wanted = perception.output, self._wanted
        detections = None if wanted.evidence == "mask" else output.detections
        segmentation = None if wanted.evidence == "detections" else output.segmentation
        depth_m = self._depth(perception)
        if depth_m is None and math.isnan(model.nearest_ground_m):  # an empty cloud would say that the way is clear
            raise LookupError(
                f"the camera sees no ground within {wanted.ground.max_range_m:g} m: see its transform (the images' "
                "frame_id has to be an optical frame, z ahead and y down) or ground.mounting_angles"
            )
        found = self._finder.find(model, detections, segmentation, depth_m)
        together = GroundPoints.joined(list(found.values()))
        for name, points in found.items():
            self._publish_cloud(self._clouds[name], model.bounded(points), model.pose, perception)
        complete = self._finder.looks_for_all(detections, segmentation)
        if self._clearing is not None and self._clearing.get_subscription_count() > 0:
            ends = model.clearing_ends(together) if complete else GroundPoints.none()
            self._publish_cloud(self._clearing, ends, model.pose, perception)
        if self._scan is not None:
            self._scan.publish(
                self._build.scan(
                    model.scan(together), wanted.ground.max_range_m, perception.stamp_ns, wanted.base_frame
                )
            )

    def _publish_cloud(self, publisher: Any, points: GroundPoints, pose: CameraPose, perception: Perception) -> None:
        in_camera = self._wanted.output_frame == "camera"
        if in_camera and not perception.frame_id:
            raise PoseUnknown(
                "the images have no frame_id: set it in the camera's driver, or ground.output_frame to base"
            )
        publisher.publish(
            self._build.cloud(
                points.in_optical_frame(pose) if in_camera else points,
                perception.stamp_ns,
                perception.frame_id if in_camera else self._wanted.base_frame,
            )
        )

    def _model(self, perception: Perception) -> GroundModel:
        """Return the camera above the ground at the time of the image. Raises LookupError or ValueError."""
        camera: Camera = "thermal" if perception.mode is Mode.THERMAL_ONLY else "rgb"
        pose = self._pose(camera, perception)
        with self._lock:
            geometry, fault = self._cameras.get(camera), self._faults.get(camera)
        if geometry is None:
            topic = self._node.resolve_topic_name(f"{camera}/camera_info")
            raise LookupError(fault or f"nothing came on {topic} yet: let the driver publish it or remap the topic")
        if geometry.size != perception.size:
            raise LookupError(
                "{}/camera_info describes images of {}x{} px, but they are {}x{}: remap it to the topic that belongs "
                "to the images".format(camera, *geometry.size, *perception.size)
            )
        model = self._models.get(camera)
        if model is None or model.camera != geometry or model.pose != pose:
            model = GroundModel(geometry, pose, self._wanted.ground, rectified=self._wanted.images == "rectified")
            if camera not in self._models and not math.isnan(model.nearest_ground_m):
                self._node.get_logger().info(
                    f"{camera} camera {pose.height_m:.2f} m above the ground, which it sees from "
                    f"{model.nearest_ground_m:.1f} m on"
                )
            self._models[camera] = model
        return model

    def _pose(self, camera: Camera, perception: Perception) -> CameraPose:
        if self._transforms is not None:
            return self._transforms.pose(
                self._wanted.base_frame, perception.frame_id, perception.stamp_ns, self._wanted
            )
        if camera == "thermal":
            raise PoseUnknown(
                "ground.mounting_position is that of the RGB camera, and the results are those of the thermal camera "
                "alone: set ground.source to 'tf' for obstacles in this mode too"
            )
        return self._wanted.mounting

    def _depth(self, perception: Perception) -> Float32Array | None:
        if self._wanted.depth == "off" or perception.mode is Mode.THERMAL_ONLY:  # it is registered to the RGB camera
            return None
        messages = list(self._depths)  # the executor goes on adding
        nearest = min(messages, key=lambda message: abs(stamp_ns(message) - perception.stamp_ns), default=None)
        if nearest is None or abs(stamp_ns(nearest) - perception.stamp_ns) > self._wanted.depth_tolerance_ns:
            self._warn("obstacles by the ground, not by depth: no depth message within ground.depth_tolerance_s")
            return None
        read = depth_of_image if self._wanted.depth == "image" else depth_of_cloud
        try:
            return read(nearest)
        except ImageError as error:
            self._warn(f"obstacles by the ground, not by depth: {error}")
            return None

    def _warn(self, text: str) -> None:
        self._problems.append(text)
        self._node.get_logger().warning(text, throttle_duration_sec=WARNING_PERIOD_S)


class _Transforms:
    """Where cameras are by TF, at the times of their images. Raises ValueError without tf2_ros."""

    def __init__(self, node: Node) -> None:
        try:
            import tf2_ros
        except ModuleNotFoundError:
            raise ValueError(
                "ground.source is 'tf', but tf2_ros is not installed: install ros-$ROS_DISTRO-tf2-ros-py, or set "
                "ground.source to 'mounting'"
            ) from None
        self._error: type[Exception] = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._newest_ns = 0
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def pose(self, base_frame: str, frame_id: str, at_ns: int, wanted: ObstacleOutput) -> CameraPose:
        """Return the camera's pose at a time; waits for a transform that is on its way. Raises PoseUnknown."""
        if not frame_id:
            raise PoseUnknown(
                "the images have no frame_id: set it in the camera's driver, or use ground.mounting_position"
            )
        if at_ns < self._newest_ns - _JUMP_NS:
            self._buffer.clear()  # it would take the transforms of the new run for old ones; static ones stay
            self._newest_ns = 0
        self._newest_ns = max(self._newest_ns, at_ns)
        try:
            found = self._buffer.lookup_transform(
                base_frame,
                frame_id,
                Time(nanoseconds=at_ns, clock_type=ClockType.ROS_TIME),
                timeout=Duration(nanoseconds=round(wanted.tf_timeout_s * 1e9)),
            ).transform
        except self._error as error:
            raise PoseUnknown(
                f"no transform from {frame_id} to {base_frame} at the time of the image ({error}): publish it "
                "(robot_state_publisher, static_transform_publisher), or set ground.source to 'mounting'"
            ) from None
        position, turn = found.translation, found.rotation
        return CameraPose.of_transform(
            (position.x, position.y, position.z), (turn.x, turn.y, turn.z, turn.w), wanted.ground_z_m
        )

    def destroy(self) -> None:
        self._listener.unregister()
