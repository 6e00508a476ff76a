"""Perceptions as ROS messages, of whatever classes one gives: rclpy's in the node, rosbags' where there is no ROS."""

import array
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import cv2
import numpy as np

from md_perception.outputs import autoware
from md_perception.outputs.ground import GroundPoints, ObstacleScan
from md_perception.results import Detections, Mode, Perception, UInt8Image
from md_perception.sensing.images import image_fields, to_array

Message = Any

_FLOAT32 = 7
"""sensor_msgs/PointField.FLOAT32"""

_CLOUD_FIELDS = ("x", "y", "z", "sigma")


@dataclass(frozen=True)
class NodeStatus:
    """The fields of md_perception/PerceptionStatus; its .msg file explains them. Times in the unit of their suffix."""

    stamp_ns: int
    frame_id: str
    mode: Mode
    student: str = ""
    precision: str = ""
    provider: str = ""
    pair_offset_s: float = math.nan
    rgb_age_s: float = math.nan
    thermal_age_s: float = math.nan
    received_rgb: int = 0
    processed: int = 0
    paired: int = 0
    unpaired_rgb: int = 0
    dropped: int = 0
    rejected: int = 0
    faults: tuple[str, ...] = ()
    received_thermal: int = 0
    processed_thermal: int = 0
    dropped_thermal: int = 0
    rejected_thermal: int = 0
    decode_ms: float = 0.0
    pair_wait_ms: float = 0.0
    inference_ms: float = 0.0
    publish_ms: float = 0.0
    total_ms: float = 0.0
    total_p50_ms: float = math.nan
    total_p95_ms: float = math.nan
    total_p99_ms: float = math.nan


class MessageBuilder:
    """Makes the messages that the package publishes.

    Every field of every message is given by keyword: rosbags' dataclasses demand it, rclpy's classes allow it.
    """

    def __init__(self, find_class: Callable[[str], type]) -> None:
        """find_class: from a name such as `sensor_msgs/msg/Image` to the class.

        For rosbags that is `typestore.types.__getitem__`; in ROS, `rosidl_runtime_py.utilities.get_message` or any
        function that imports the class.
        """
        self._find = find_class
        self._classes: dict[str, type] = {}

    def header(self, stamp_ns: int, frame_id: str) -> Message:
        """Return std_msgs/Header."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)

    def image(self, image: np.ndarray, encoding: str, stamp_ns: int, frame_id: str) -> Message:
        """Return sensor_msgs/Image without padding. image: as `encoding` demands (ImageError otherwise)."""
        fields = image_fields(image, encoding)
        fields["data"] = self._bytes("sensor_msgs/msg/Image", fields["data"])
        return self._make("sensor_msgs/msg/Image", header=self.header(stamp_ns, frame_id), **fields)

    def detections(
        self, perception: Perception, classes: Sequence[str], track_ids: Sequence[str] | None = None
    ) -> Message:
        """Return vision_msgs/Detection2DArray: class names, boxes as centre and size in pixels of the RGB image.

        classes: the student's detection classes in id order. A student without the task gives an empty array.
        track_ids: of each detection, the same in all images, "" for one without; None: all without.
        """
        found = perception.output.detections
        return self._make(
            "vision_msgs/msg/Detection2DArray",
            header=self._header_of(perception),
            detections=[] if found is None else self._detection_list(perception, found, classes, track_ids),
        )

    def mask(
        self,
        perception: Perception,
        size: tuple[int, int] | None = None,
        *,
        run_lengths: bool = False,
        ids: UInt8Image | None = None,
    ) -> Message:
        """Return the class ids as sensor_msgs/Image mono8, step == width. Raises ValueError without the task.

        size: (width, height) px, such as a depth camera's, whose pixels the nearest of the mask are given; None: as it
        is. ids: uint8 (256,), what to publish for each id; None: the id itself. run_lengths: in Autoware's run-length
        encoding (outputs.autoware), which no other consumer can read.
        """
        mask = self._plane(perception, "mask", size)
        if ids is not None:
            mask = ids[mask]
        message = self.image(mask, "mono8", perception.stamp_ns, perception.frame_id)
        if run_lengths:
            message.data = self._bytes("sensor_msgs/msg/Image", autoware.encode(mask))
        return message

    def confidence(self, perception: Perception, size: tuple[int, int] | None = None) -> Message:
        """Return the probability of the winning class, 0..255, like `mask`."""
        return self.image(
            self._plane(perception, "confidence", size), "mono8", perception.stamp_ns, perception.frame_id
        )

    def cloud(self, points: GroundPoints, stamp_ns: int, frame_id: str) -> Message:
        """Return sensor_msgs/PointCloud2 of obstacle points: float32 x, y, z and sigma, m, in the frame `frame_id`."""
        values = np.column_stack([points.xyz, points.sigma_m]).astype("<f4")
        step = 4 * len(_CLOUD_FIELDS)
        return self._make(
            "sensor_msgs/msg/PointCloud2",
            header=self.header(stamp_ns, frame_id),
            height=1,
            width=len(points),
            fields=[
                self._make("sensor_msgs/msg/PointField", name=name, offset=4 * index, datatype=_FLOAT32, count=1)
                for index, name in enumerate(_CLOUD_FIELDS)
            ],
            is_bigendian=False,
            point_step=step,
            row_step=step * len(points),
            data=self._bytes("sensor_msgs/msg/PointCloud2", np.ascontiguousarray(values).reshape(-1).view(np.uint8)),
            is_dense=True,
        )

    def scan(self, scan: ObstacleScan, max_range_m: float, stamp_ns: int, frame_id: str) -> Message:
        """Return sensor_msgs/LaserScan of one instant; ranges without an obstacle are NaN (REP 117: no measurement)."""
        plain = is_dataclass(self._class("sensor_msgs/msg/LaserScan"))
        ranges = scan.ranges if plain else array.array("f", scan.ranges.tobytes())
        nothing = np.zeros(0, np.float32) if plain else array.array("f")
        return self._make(
            "sensor_msgs/msg/LaserScan",
            header=self.header(stamp_ns, frame_id),
            angle_min=scan.angle_min,
            angle_max=scan.angle_min + scan.angle_increment * (len(scan.ranges) - 1),
            angle_increment=scan.angle_increment,
            time_increment=0.0,
            scan_time=0.0,
            range_min=0.0,
            range_max=float(max_range_m),
            ranges=ranges,
            intensities=nothing,
        )

    def autoware_objects(self, perception: Perception, labels: Sequence[int]) -> Message:
        """Return tier4_perception_msgs/DetectedObjectsWithFeature: Autoware's labels, boxes as regions of interest.

        labels: Autoware's label of each of the student's detection classes (outputs.autoware.object_labels). Shape and
        place are not known to a camera: they are left at their defaults, as Autoware's own detector leaves them.
        """
        found, size = perception.output.detections, perception.size
        # What is the same in all objects is one message in all.
        cluster, kinematics, shape = self._empty_cloud(perception), self._unknown_kinematics(), self._unknown_shape()
        objects = []
        if found is not None:
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            ):
                left, top, width, height = autoware.region_of_interest(box, size)
                roi = self._make(
                    "sensor_msgs/msg/RegionOfInterest",
                    x_offset=left,
                    y_offset=top,
                    height=height,
                    width=width,
                    do_rectify=False,
                )
                feature = self._make("tier4_perception_msgs/msg/Feature", cluster=cluster, roi=roi)
                classification = self._make(
                    "autoware_perception_msgs/msg/ObjectClassification", label=labels[label], probability=score
                )
                thing = self._make(
                    "autoware_perception_msgs/msg/DetectedObject",
                    existence_probability=score,
                    classification=[classification],
                    kinematics=kinematics,
                    shape=shape,
                )
                objects.append(
                    self._make("tier4_perception_msgs/msg/DetectedObjectWithFeature", object=thing, feature=feature)
                )
        return self._make(
            "tier4_perception_msgs/msg/DetectedObjectsWithFeature",
            header=self._header_of(perception),
            feature_objects=objects,
        )

    def label_info(
        self,
        classes: Sequence[str] | Mapping[int, str],
        threshold: float,
        stamp_ns: int = 0,
        frame_id: str = "",
    ) -> Message:
        """Return vision_msgs/LabelInfo: what the ids of the mask mean.

        classes: the student's segmentation classes in id order, or the names of the ids. threshold: score threshold of
        the detections.
        """
        named = classes if isinstance(classes, Mapping) else dict(enumerate(classes))
        class_map = [
            self._make("vision_msgs/msg/VisionClass", class_id=index, class_name=name)
            for index, name in sorted(named.items())
        ]
        return self._make(
            "vision_msgs/msg/LabelInfo",
            header=self.header(stamp_ns, frame_id),
            class_map=class_map,
            threshold=float(threshold),
        )

    def status(self, status: NodeStatus) -> Message:
        """Return md_perception/PerceptionStatus."""
        fields = {name: getattr(status, name) for name in status.__dataclass_fields__}
        header = self.header(fields.pop("stamp_ns"), fields.pop("frame_id"))
        fields["mode"] = int(status.mode)
        fields["faults"] = list(status.faults)
        return self._make("md_perception/msg/PerceptionStatus", header=header, **fields)

    def _detection_list(
        self, perception: Perception, found: Detections, classes: Sequence[str], track_ids: Sequence[str] | None
    ) -> list[Message]:
        """Return vision_msgs/Detection2D for each box. What is the same in all is one object in all."""
        messages = []
        header, pose = self._header_of(perception), self._unknown_pose()
        for (left, top, right, bottom), score, label, track_id in zip(
            found.boxes.tolist(),
            found.scores.tolist(),
            found.labels.tolist(),
            [""] * len(found) if track_ids is None else track_ids,
            strict=True,
        ):
            hypothesis = self._make("vision_msgs/msg/ObjectHypothesis", class_id=classes[label], score=score)
            position = self._make("vision_msgs/msg/Point2D", x=0.5 * (left + right), y=0.5 * (top + bottom))
            box = self._make(
                "vision_msgs/msg/BoundingBox2D",
                center=self._make("vision_msgs/msg/Pose2D", position=position, theta=0.0),
                size_x=right - left,
                size_y=bottom - top,
            )
            result = self._make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis, pose=pose)
            messages.append(
                self._make("vision_msgs/msg/Detection2D", header=header, results=[result], bbox=box, id=track_id)
            )
        return messages

    def _unknown_pose(self) -> Message:
        """Return the geometry_msgs/PoseWithCovariance of an object whose place in space nobody knows: all defaults."""
        pose = self._make(
            "geometry_msgs/msg/Pose",
            position=self._make("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0),
            orientation=self._make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
        )
        return self._make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36))

    def _unknown_kinematics(self) -> Message:
        twist = self._make(
            "geometry_msgs/msg/Twist",
            linear=self._make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0),
            angular=self._make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0),
        )
        return self._make(
            "autoware_perception_msgs/msg/DetectedObjectKinematics",
            pose_with_covariance=self._unknown_pose(),
            has_position_covariance=False,
            orientation_availability=0,  # UNAVAILABLE
            twist_with_covariance=self._make(
                "geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36)
            ),
            has_twist=False,
            has_twist_covariance=False,
        )

    def _unknown_shape(self) -> Message:
        return self._make(
            "autoware_perception_msgs/msg/Shape",
            type=0,  # BOUNDING_BOX, of no size
            footprint=self._make("geometry_msgs/msg/Polygon", points=[]),
            dimensions=self._make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0),
        )

    def _empty_cloud(self, perception: Perception) -> Message:
        return self.cloud(GroundPoints.none(), perception.stamp_ns, perception.frame_id)

    def _plane(self, perception: Perception, plane: str, size: tuple[int, int] | None) -> UInt8Image:
        if perception.output.segmentation is None:
            raise ValueError("this student does not segment: there is no mask to publish")
        image: UInt8Image = getattr(perception.output.segmentation, plane)
        if size is None or size == (image.shape[1], image.shape[0]):
            return image
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)

    def _bytes(self, message: str, data: UInt8Image) -> Any:
        """Return the bytes of a field as this message's class takes them."""
        return data if is_dataclass(self._class(message)) else to_array(data)

    def _header_of(self, perception: Perception) -> Message:
        return self.header(perception.stamp_ns, perception.frame_id)

    def _make(self, name: str, /, **fields: Any) -> Message:
        return self._class(name)(**fields)

    def _class(self, name: str) -> type:
        if name not in self._classes:
            self._classes[name] = self._find(name)
        return self._classes[name]
