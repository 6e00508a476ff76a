"""What surrounds the node in the ROS tests: cameras, a lifecycle manager, a listener; polling, never sleeping."""

import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from md_perception.msg import PerceptionStatus
from md_perception.ros.node import PerceptionNode
from md_perception.sensing.images import image_fields, to_array

TIMEOUT_S = 60.0
"""Far above what anything takes, for busy machines."""

RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


def poll(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Wait for a condition to become true and return its value; fail with what was waited for."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.005)
    return value


def soon_s() -> float:
    """Return the 2 s within which the node has to end on a machine that does nothing else, more on a busy one."""
    return 2.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Spinning:
    """A node that is spun by a thread of its own."""

    def __init__(self, node: Node, context: Context) -> None:
        self.node = node
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        # Executor.shutdown while it spins in another thread is a race; a future ends the spinning cleanly.
        self._finish = Future()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._finish.done():
            try:
                self._executor.spin_until_future_complete(self._finish)
            except ExternalShutdownException:
                return
            except Exception:  # the node's own main goes on as well: rclpy stumbles over what was just destroyed
                traceback.print_exc()

    def stop(self) -> None:
        self._finish.set_result(None)
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()


class Vehicle:
    """Cameras, a lifecycle manager and a listener around the node, all over DDS.

    namespace: of the node and its cameras, such as `/front`.
    """

    def __init__(self, context: Context, namespace: str = "") -> None:
        self._context = context
        self.namespace = namespace
        self.node = Node("vehicle", namespace=namespace or None, context=context)
        self.target: PerceptionNode | None = None
        self.received: dict[str, list[Any]] = {}
        self._spinning = Spinning(self.node, context)
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self._waited_for: set[str] = set()
        self._sent_thermal = 0
        self._random = np.random.default_rng(0)
        self.listen(f"{namespace}/md_perception/status", PerceptionStatus)

    def stop(self) -> None:
        self._spinning.stop()

    def listen(self, topic: str, message_type: type, qos: QoSProfile = RELIABLE) -> list[Any]:
        """Collect the messages of a topic."""
        messages = self.received.setdefault(topic, [])
        self.node.create_subscription(message_type, topic, messages.append, qos)
        return messages

    def listen_to_diagnostics(self) -> list[DiagnosticArray]:
        return self.listen("/diagnostics", DiagnosticArray)

    def wait_for_listeners(self) -> None:
        """Wait until every publisher of the node and the subscription of its topic here have found each other."""
        assert self.target is not None
        ours = {s.topic_name: s for s in self.node.subscriptions}
        for publisher in list(self.target.publishers):
            topic = publisher.topic_name
            if topic in self.received:
                poll(
                    lambda p=publisher: p.get_subscription_count() > 0, f"the node to find the subscription of {topic}"
                )
                poll(lambda s=ours[topic]: s.get_publisher_count() > 0, f"the publisher of {topic}")

    @property
    def statuses(self) -> list[PerceptionStatus]:
        return self.received[f"{self.namespace}/md_perception/status"]

    # Lifecycle and parameters

    def call(
        self,
        service_type: type,
        name: str,
        request: Any,
        *,
        patience_s: float = TIMEOUT_S,
        is_served: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Call a service of the node.

        patience_s: ask again after so long: an answer that goes out before the server has found the client is lost.
        is_served: says whether the request had its effect though; None is returned then. Without it, patience is only
        for requests that may be served twice.
        """
        if name not in self._clients:
            self._clients[name] = self.node.create_client(service_type, name)
        client = self._clients[name]
        new = name not in self._waited_for
        assert client.wait_for_service(TIMEOUT_S), f"service {name} does not appear"
        if new and self.target is None:
            # A node in another process: nothing tells when its server has found our client, and until then its
            # answers are lost.
            time.sleep(0.5)
        self._waited_for.add(name)
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            future = client.call_async(request)
            asked = time.monotonic()
            while time.monotonic() - asked < patience_s:
                if future.done():
                    return future.result()
                time.sleep(0.005)
            client.remove_pending_request(future)
            if is_served():
                return None
        pytest.fail(f"waited {TIMEOUT_S:.0f} s for an answer of {name}")

    def change(self, transition: int) -> bool:
        before = self.state()
        request = ChangeState.Request(transition=Transition(id=transition))
        answer = self.call(
            ChangeState,
            f"{self.namespace}/md_perception/change_state",
            request,
            patience_s=5.0,
            is_served=lambda: self.state() != before,
        )
        return answer is None or bool(answer.success)

    def state(self) -> int:
        answer = self.call(GetState, f"{self.namespace}/md_perception/get_state", GetState.Request(), patience_s=2.0)
        return int(answer.current_state.id)

    def configure(self) -> bool:
        return self.change(Transition.TRANSITION_CONFIGURE)

    def activate(self) -> bool:
        return self.change(Transition.TRANSITION_ACTIVATE)

    def deactivate(self) -> bool:
        return self.change(Transition.TRANSITION_DEACTIVATE)

    def cleanup(self) -> bool:
        return self.change(Transition.TRANSITION_CLEANUP)

    def start(self) -> None:
        """Bring the node to the active state."""
        assert self.configure()
        assert self.activate()
        assert self.state() == State.PRIMARY_STATE_ACTIVE
        self.wait_for_listeners()

    def set_parameters(self, **values: Any) -> list[Any]:
        """Set parameters, given with two underscores for a dot, and return the results."""
        request = SetParameters.Request(
            parameters=[
                Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()
            ]
        )
        return list(self.call(SetParameters, f"{self.namespace}/md_perception/set_parameters", request).results)

    # Cameras

    def camera(
        self, topic: str, message_type: type = Image, qos: QoSProfile = RELIABLE, *, matched: bool = True
    ) -> Any:
        """Return a publisher, by default once the node listens to it."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(message_type, topic, qos)
        publisher = self._publishers[topic]
        if matched:
            poll(lambda: publisher.get_subscription_count() > 0, f"a subscription of {topic}")
        return publisher

    def end_camera(self, topic: str) -> None:
        """Destroy the publisher of a topic."""
        self.node.destroy_publisher(self._publishers.pop(topic))

    def simulated_clock(self) -> Callable[[int], None]:
        """Return a function that sets /clock, ns."""
        publisher = self.camera("/clock", Clock)

        def set_time(now_ns: int) -> None:
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(now_ns, 1_000_000_000)
            publisher.publish(message)

        return set_time

    def image(self, pixels: np.ndarray, encoding: str, stamp_ns: int, frame_id: str) -> Image:
        fields = image_fields(pixels, encoding)
        fields["data"] = to_array(fields["data"])
        message = Image(**fields)
        message.header.frame_id = frame_id
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        return message

    def now_ns(self) -> int:
        return int(self.node.get_clock().now().nanoseconds)

    def send_thermal(
        self, stamp_ns: int, grey: int = 153, size: tuple[int, int] = (16, 12), *, matched: bool = True
    ) -> None:
        """Send an image of this mean; no two are the same, as those of a live sensor. matched: as for camera."""
        self._sent_thermal += 1
        pixels = np.full((size[1], size[0]), grey, np.uint8)
        change = 1 + self._sent_thermal % 8
        pixels[::2] += np.uint8(change)
        pixels[1::2] -= np.uint8(change)
        topic = f"{self.namespace}/thermal/image_raw"
        self.camera(topic, matched=matched).publish(self.image(pixels, "mono8", stamp_ns, "thermal"))

    def send_rgb(self, stamp_ns: int, pixels: np.ndarray | None = None, *, matched: bool = True) -> None:
        """Send an image, by default of noise, as that of a live sensor."""
        if pixels is None:
            pixels = self._random.integers(0, 120, (48, 64, 3), np.uint8)
        topic = f"{self.namespace}/rgb/image_raw"
        self.camera(topic, matched=matched).publish(self.image(pixels, "rgb8", stamp_ns, "rgb_optical"))

    def send_pair(self, stamp_ns: int, pixels: np.ndarray | None = None, *, matched: bool = True) -> None:
        self.send_thermal(stamp_ns, matched=matched)
        self.send_rgb(stamp_ns, pixels, matched=matched)

    def status_of(self, stamp_ns: int) -> PerceptionStatus:
        """Wait for the status of a frame."""
        return poll(lambda: self._status_of(stamp_ns), f"the status of the frame of {stamp_ns} ns")

    def _status_of(self, stamp_ns: int) -> PerceptionStatus | None:
        return next((status for status in list(self.statuses) if header_ns(status) == stamp_ns), None)


def header_ns(message: Any) -> int:
    """Return the stamp of a header, ns."""
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)
