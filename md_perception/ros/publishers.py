"""The node's publishers: a perception and its status go in, messages go out."""

from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from typing import Any

from rclpy.lifecycle import LifecycleNode

from md_perception.outputs.messages import MessageBuilder, NodeStatus
from md_perception.outputs.overlay import draw
from md_perception.results import Perception, UInt8Image
from md_perception.ros.qos import LATCHED, RESULT, publisher_overrides


def message_class(name: str) -> type:
    """Return the class of a message such as `sensor_msgs/msg/Image`."""
    package, kind, message = name.split("/")
    found: type = getattr(import_module(f"{package}.{kind}"), message)
    return found


class Publishers:
    """Made at configure, enabled by the lifecycle node at activate, destroyed at cleanup.

    detection_classes, segmentation_classes: of the students, in id order; a task that no student has is not advertised.
    """

    def __init__(
        self, node: LifecycleNode, detection_classes: Sequence[str], segmentation_classes: Sequence[str]
    ) -> None:
        self._node = node
        self._build = MessageBuilder(message_class)
        self._detection_classes = detection_classes
        self._segmentation_classes = segmentation_classes
        self._all: list[Any] = []
        self._detections = self._mask = self._confidence = self._label_info = None
        try:
            self._advertise()
        except Exception:  # an override of a QoS that cannot be
            self.destroy()
            raise

    def _advertise(self) -> None:
        self._status = self._create("md_perception/msg/PerceptionStatus", "~/status")
        self._overlay = self._create("sensor_msgs/msg/Image", "~/overlay")
        if self._detection_classes:
            self._detections = self._create("vision_msgs/msg/Detection2DArray", "~/detections")
        if self._segmentation_classes:
            self._label_info = self._create("vision_msgs/msg/LabelInfo", "segmentation/label_info", latched=True)
            self._mask = self._create("sensor_msgs/msg/Image", "segmentation/mask")
            self._confidence = self._create("sensor_msgs/msg/Image", "segmentation/confidence")

    def publish_label_info(self, threshold: float, stamp_ns: int) -> None:
        """Publish, latched, what the ids of the mask mean."""
        if self._label_info is not None:
            self._label_info.publish(self._build.label_info(self._segmentation_classes, threshold, stamp_ns))

    def publish_status(self, status: NodeStatus) -> None:
        """Publish a status."""
        self._status.publish(self._build.status(status))

    def publish(self, perception: Perception, thermal: UInt8Image | None) -> None:
        """Publish the result. Images are made only for somebody. thermal: uint8 (h, w), for the overlay."""
        if self._detections is not None:
            self._detections.publish(self._build.detections(perception, self._detection_classes))
        if perception.output.segmentation is not None:
            self._publish_for_somebody(self._mask, lambda: self._build.mask(perception))
            self._publish_for_somebody(self._confidence, lambda: self._build.confidence(perception))
        self._publish_for_somebody(self._overlay, lambda: self._overlay_message(perception, thermal))

    def destroy(self) -> None:
        """Release all publishers."""
        for publisher in self._all:
            self._node.destroy_lifecycle_publisher(publisher)
        self._all.clear()

    def _create(self, message: str, topic: str, *, latched: bool = False) -> Any:
        publisher = self._node.create_lifecycle_publisher(
            message_class(message),
            topic,
            copy(LATCHED if latched else RESULT),  # rclpy writes what is overridden into the profile that it is given
            # The durability of what is latched is no matter of taste.
            qos_overriding_options=None if latched else publisher_overrides(),
        )
        self._all.append(publisher)
        return publisher

    @staticmethod
    def _publish_for_somebody(publisher: Any, make: Callable[[], Any]) -> None:
        if publisher is not None and publisher.get_subscription_count() > 0:
            publisher.publish(make())

    def _overlay_message(self, perception: Perception, thermal: UInt8Image | None) -> Any:
        image = draw(perception, self._detection_classes, self._segmentation_classes, thermal)
        return self._build.image(image, "rgb8", perception.stamp_ns, perception.frame_id)
