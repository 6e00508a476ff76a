"""The subscription of one camera: each message goes on undecoded, with its stamp, its arrival and its form."""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from md_perception.parameters import Parameters
from md_perception.results import Camera
from md_perception.ros import tracing
from md_perception.ros.qos import CameraSubscription
from md_perception.sensing.health import ImageForm
from md_perception.sensing.images import stamp_ns
from md_perception.sensing.pairing import StampedMessage


class CameraInput:
    """Passes on what comes, on the executor's thread.

    wanted: transport, reliability and queue depth. add: gets the message, its form, and its age by the node's clock, s.
    clock_ns: of the arrivals.
    """

    def __init__(
        self,
        node: Node,
        camera: Camera,
        wanted: Parameters,
        add: Callable[[StampedMessage, ImageForm, float], None],
        clock_ns: Callable[[], int],
    ) -> None:
        compressed = (wanted.rgb_transport if camera == "rgb" else wanted.thermal_transport) == "compressed"
        self._camera = camera
        self._added = f"{camera} added"
        self._node = node
        self._add = add
        self._clock_ns = clock_ns
        self.subscription = CameraSubscription(
            node,
            CompressedImage if compressed else Image,
            wanted.image_topic(camera),
            self._on_message,
            wish=wanted.rgb_reliability if camera == "rgb" else wanted.thermal_reliability,
            depth=wanted.rgb_queue_depth if camera == "rgb" else wanted.thermal_queue_depth,
            warn=lambda text: node.get_logger().warning(text),
            changed=lambda text: node.get_logger().info(text),
        )

    @property
    def topic(self) -> str:
        """The resolved topic name."""
        return self.subscription.topic

    def _on_message(self, message: Any, info: dict[str, int]) -> None:
        arrival_ns, stamp = self._clock_ns(), stamp_ns(message)
        tracing.arrived(self._camera, stamp, info)
        age_s = (self._node.get_clock().now().nanoseconds - stamp) / 1e9
        self._add(StampedMessage(message, stamp, arrival_ns), ImageForm.of(message), age_s)
        tracing.point(self._added, stamp)
