"""The node's publishers: a perception and its status go in, messages go out."""

from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from typing import Any

from rclpy.lifecycle import LifecycleNode

from md_perception.outputs import autoware
from md_perception.outputs.messages import MessageBuilder, NodeStatus
from md_perception.outputs.navigation import NavigationSettings, check_mask_topic
from md_perception.outputs.overlay import draw
from md_perception.outputs.tracking import Tracker
from md_perception.results import Perception, UInt8Image
from md_perception.ros.navigation import NavigationOutputs, ObstacleReport
from md_perception.ros.qos import LATCHED, RESULT, publisher_overrides


def message_class(name: str) -> type:
    """Return the class of a message such as `sensor_msgs/msg/Image`."""
    package, kind, message = name.split("/")
    found: type = getattr(import_module(f"{package}.{kind}"), message)
    return found


class Publishers:
    """Made at configure, enabled by the lifecycle node at activate, destroyed at cleanup.

    detection_classes, segmentation_classes: of the students, in id order; a task that no student has is not advertised.
    navigation: what else goes out, and in which form the mask does. Raises ValueError where that cannot be.
    """

    def __init__(
        self,
        node: LifecycleNode,
        detection_classes: Sequence[str],
        segmentation_classes: Sequence[str],
        navigation: NavigationSettings,
    ) -> None:
        self._node = node
        self._build = MessageBuilder(message_class)
        self._detection_classes = detection_classes
        self._segmentation_classes = segmentation_classes
        self._wanted = navigation
        self._run_lengths = navigation.mask_encoding == "autoware_rle"
        self._mask_ids = (
            autoware.mask_ids(dict(navigation.mask_labels), segmentation_classes) if self._run_lengths else None
        )
        self._warn_of_labels()
        self._tracker = _tracker(navigation)
        self._navigation: NavigationOutputs | None = None
        self._all: list[Any] = []
        self._detections = self._mask = self._confidence = self._label_info = None
        self._threshold: float | None = None
        try:
            self._advertise()
        except Exception:  # an override of a QoS that cannot be
            self.destroy()
            raise

    def _warn_of_labels(self) -> None:
        filtered = autoware.filtered_classes(dict(self._wanted.mask_labels)) if self._run_lengths else ()
        if filtered:
            self._node.get_logger().warning(
                f"autoware.mask_labels: {', '.join(filtered)}: Autoware's segmentation_pointcloud_fusion takes the "
                "lidar's points on these away, unless its filter_semantic_label_target says otherwise: use obstacle "
                "for what the vehicle must not drive into"
            )
        for used, parameter, mapping, classes in (
            (self._run_lengths, "mask_labels", self._wanted.mask_labels, self._segmentation_classes),
            (
                self._wanted.object_labels is not None,
                "object_labels",
                self._wanted.object_labels,
                self._detection_classes,
            ),
        ):
            unknown = autoware.unknown_classes(dict(mapping or ()), classes) if used else ()
            if unknown:
                self._node.get_logger().warning(
                    f"autoware.{parameter} names {', '.join(unknown)}, which the student does not know: it knows "
                    f"{', '.join(classes)}"
                )

    def _advertise(self) -> None:
        self._status = self._create("md_perception/msg/PerceptionStatus", "~/status")
        self._overlay = self._create("sensor_msgs/msg/Image", "~/overlay")
        if self._detection_classes:
            self._detections = self._create("vision_msgs/msg/Detection2DArray", "~/detections")
        if self._segmentation_classes:
            namespace = self._wanted.mask_namespace
            check_mask_topic(self._wanted.mask_encoding, self._node.resolve_topic_name(f"{namespace}/mask"))
            self._label_info = self._create("vision_msgs/msg/LabelInfo", f"{namespace}/label_info", latched=True)
            self._mask = self._create("sensor_msgs/msg/Image", f"{namespace}/mask")
            self._confidence = self._create("sensor_msgs/msg/Image", f"{namespace}/confidence")
        self._navigation = NavigationOutputs(
            self._node, self._build, self._create, self._wanted, self._detection_classes, self._segmentation_classes
        )

    def publish_label_info(self, threshold: float, stamp_ns: int) -> None:
        """Publish, latched, what the ids of the mask mean, unless that was said: consumers begin anew at each."""
        if self._label_info is not None and threshold != self._threshold:
            self._threshold = threshold
            classes = dict(enumerate(self._segmentation_classes))
            if self._run_lengths:
                classes = {label: name for name, label in autoware.MASK_LABELS.items()}
            self._label_info.publish(self._build.label_info(classes, threshold, stamp_ns))

    def publish_status(self, status: NodeStatus) -> None:
        """Publish a status."""
        self._status.publish(self._build.status(status))

    def publish(self, perception: Perception, thermal: UInt8Image | None) -> None:
        """Publish the result. Images are made only for somebody. thermal: uint8 (h, w), for the overlay."""
        if self._detections is not None:
            ids = None if self._tracker is None else self._tracker.update(perception)
            self._detections.publish(self._build.detections(perception, self._detection_classes, ids))
        if perception.output.segmentation is not None:
            self._publish_for_somebody(self._mask, lambda: self._mask_message(perception))
            self._publish_for_somebody(
                self._confidence, lambda: self._build.confidence(perception, self._wanted.mask_size)
            )
        if self._navigation is not None:
            self._navigation.publish(perception)
        self._publish_for_somebody(self._overlay, lambda: self._overlay_message(perception, thermal))

    @property
    def obstacles(self) -> ObstacleReport | None:
        """What became of the obstacles; None where none are wanted."""
        return None if self._navigation is None else self._navigation.report

    def destroy(self) -> None:
        """Release all publishers."""
        if self._navigation is not None:
            self._navigation.destroy()
            self._navigation = None
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

    def _mask_message(self, perception: Perception) -> Any:
        return self._build.mask(perception, self._wanted.mask_size, run_lengths=self._run_lengths, ids=self._mask_ids)

    def _overlay_message(self, perception: Perception, thermal: UInt8Image | None) -> Any:
        image = draw(perception, self._detection_classes, self._segmentation_classes, thermal)
        return self._build.image(image, "rgb8", perception.stamp_ns, perception.frame_id)


def _tracker(wanted: NavigationSettings) -> Tracker | None:
    """Return the tracker, None where none is wanted. Raises ValueError where it is not installed."""
    if wanted.tracker == "off":
        return None
    try:
        return Tracker(wanted.track_lost_s, wanted.track_overlap)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"tracking.tracker is {wanted.tracker!r}, but {error.name} is not installed: pip install norfair-enough, "
            "or set tracking.tracker to 'off'"
        ) from None
