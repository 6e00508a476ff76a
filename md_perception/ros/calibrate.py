"""Images of live topics for `md_calibrate`."""

import threading
import time
from functools import partial
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

from md_perception.bags.types import COMPRESSED_IMAGE, IMAGE
from md_perception.calibrate import CalibrationError, Recording
from md_perception.results import Camera
from md_perception.ros.qos import CameraSubscription

_APPEAR_S = 10.0
"""Longest that a topic may be without a publisher, and then without an image."""

_TYPES = {IMAGE: Image, COMPRESSED_IMAGE: CompressedImage}

_DEPTH = 30
"""Images that wait while one is searched for the board."""


def record_live(recording: Recording, rgb_topic: str, thermal_topic: str, seconds: float) -> None:
    """Subscribe to both cameras and take in what they send for so many seconds of a steady clock.

    The topics may be raw or compressed; their publishers say which. Raises CalibrationError where a camera is silent.
    """
    # The command has its own handlers for Ctrl-C.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node("md_calibrate")
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        _record(node, executor, recording, {"rgb": rgb_topic, "thermal": thermal_topic}, seconds)
    except ExternalShutdownException:
        raise CalibrationError("ROS was shut down before the recording was over") from None
    finally:
        rclpy.try_shutdown()


def _record(
    node: Node, executor: SingleThreadedExecutor, recording: Recording, topics: dict[Camera, str], seconds: float
) -> None:
    failed: list[CalibrationError] = []
    recorded = threading.Event()

    def take(camera: Camera, topic: str, message: Any) -> None:
        try:
            recording.add(camera, message, topic)
        except CalibrationError as error:  # out of a callback it would end in the executor
            failed.append(error)
            recorded.set()

    subscriptions = []
    for camera, topic in topics.items():
        kind = _kind_of(node, executor, topic)
        subscriptions.append(
            CameraSubscription(
                node,
                kind,
                topic,
                partial(take, camera, topic),
                wish="auto",
                depth=_DEPTH,
                warn=lambda text: node.get_logger().warning(text),
                changed=lambda text: node.get_logger().info(text),
            )
        )
    print(f"listening to {' and '.join(topics.values())} for {seconds:g} s", flush=True)
    begun = time.monotonic()
    while time.monotonic() < begun + seconds and not recorded.is_set():
        executor.spin_once(timeout_sec=0.1)
        if time.monotonic() > begun + _APPEAR_S and len(recording.sizes) < len(topics):
            break
    for subscription in subscriptions:
        subscription.destroy()
    if failed:
        raise failed[0]
    silent = [topic for camera, topic in topics.items() if camera not in recording.sizes]
    if silent and not recording.why:
        raise CalibrationError(
            f"no image on {' and '.join(silent)}: see whether the driver runs, and start it with this package's "
            "config/fastdds.xml"
        )


def _kind_of(node: Node, executor: SingleThreadedExecutor, topic: str) -> Any:
    """Return the message class that the publishers of a topic send, once there is one."""
    deadline = time.monotonic() + _APPEAR_S
    while time.monotonic() < deadline:
        for publisher in node.get_publishers_info_by_topic(topic):
            if publisher.topic_type in _TYPES:
                return _TYPES[publisher.topic_type]
            raise CalibrationError(f"{topic} carries {publisher.topic_type}, images are needed: give another topic")
        executor.spin_once(timeout_sec=0.1)
    raise CalibrationError(
        f"nobody publishes {topic}: start the camera driver, or give --rgb-topic and --thermal-topic"
    )
