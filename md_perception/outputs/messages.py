"""Perceptions as ROS messages, of whatever classes one gives: rclpy's in the node, rosbags' where there is no ROS."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np

from md_perception.results import Detections, Mode, Perception
from md_perception.sensing.images import image_fields, to_array

Message = Any


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
        if not is_dataclass(self._class("sensor_msgs/msg/Image")):
            fields["data"] = to_array(fields["data"])
        return self._make("sensor_msgs/msg/Image", header=self.header(stamp_ns, frame_id), **fields)

    def detections(self, perception: Perception, classes: Sequence[str]) -> Message:
        """Return vision_msgs/Detection2DArray: class names, boxes as centre and size in pixels of the RGB image.

        classes: the student's detection classes in id order. A student without the task gives an empty array.
        """
        found = perception.output.detections
        return self._make(
            "vision_msgs/msg/Detection2DArray",
            header=self._header_of(perception),
            detections=[] if found is None else self._detection_list(perception, found, classes),
        )

    def mask(self, perception: Perception) -> Message:
        """Return the class ids as sensor_msgs/Image mono8, step == width. Raises ValueError without the task."""
        return self._segmentation_image(perception, "mask")

    def confidence(self, perception: Perception) -> Message:
        """Return the probability of the winning class, 0..255, like `mask`."""
        return self._segmentation_image(perception, "confidence")

    def label_info(self, classes: Sequence[str], threshold: float, stamp_ns: int = 0, frame_id: str = "") -> Message:
        """Return vision_msgs/LabelInfo: what the ids of the mask mean.

        classes: the student's segmentation classes in id order. threshold: score threshold of the detections.
        """
        class_map = [
            self._make("vision_msgs/msg/VisionClass", class_id=index, class_name=name)
            for index, name in enumerate(classes)
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

    def _detection_list(self, perception: Perception, found: Detections, classes: Sequence[str]) -> list[Message]:
        """Return vision_msgs/Detection2D for each box."""
        messages = []
        for (left, top, right, bottom), score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            hypothesis = self._make("vision_msgs/msg/ObjectHypothesis", class_id=classes[label], score=score)
            position = self._make("vision_msgs/msg/Point2D", x=0.5 * (left + right), y=0.5 * (top + bottom))
            box = self._make(
                "vision_msgs/msg/BoundingBox2D",
                center=self._make("vision_msgs/msg/Pose2D", position=position, theta=0.0),
                size_x=right - left,
                size_y=bottom - top,
            )
            result = self._make(
                "vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis, pose=self._unknown_pose()
            )
            messages.append(
                self._make(
                    "vision_msgs/msg/Detection2D",
                    header=self._header_of(perception),
                    results=[result],
                    bbox=box,
                    id="",
                )
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

    def _segmentation_image(self, perception: Perception, plane: str) -> Message:
        if perception.output.segmentation is None:
            raise ValueError("this student does not segment: there is no mask to publish")
        image = getattr(perception.output.segmentation, plane)
        return self.image(image, "mono8", perception.stamp_ns, perception.frame_id)

    def _header_of(self, perception: Perception) -> Message:
        return self.header(perception.stamp_ns, perception.frame_id)

    def _make(self, name: str, **fields: Any) -> Message:
        return self._class(name)(**fields)

    def _class(self, name: str) -> type:
        if name not in self._classes:
            self._classes[name] = self._find(name)
        return self._classes[name]
