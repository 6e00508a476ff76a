"""Two cameras that look at a moving street and publish at a rate: for the soak, in its process, and for the benchmark,
in a process of their own (`python -m md_perception.ros.cameras`).
"""

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from md_perception.bags.types import TopicQos
from md_perception.files import write_whole
from md_perception.ros.harness import CAMERAS, Graph, RunError, run_command, wait_for
from md_perception.ros.player import qos_profile
from md_perception.scenes import SceneSettings, render_rgb, render_thermal, sample_scene
from md_perception.sensing.images import image_fields, to_array
from md_perception.sensing.thermal import percentile_range, resize_to_sensor, to_8bit

PICTURES = 30
"""Pairs of the scene world that are sent again and again; no two that follow each other are the same."""

_SETTLE_S = 0.3
"""Time for a subscriber, once the publisher has matched it, to match the publisher in its turn."""

_BEHIND_S = 1.0
"""What could not be sent in this time is let go."""


@dataclass
class Sent:
    """What went out. stamps_ns: of each RGB image. began_ns, ended_ns: its publish call, on the steady clock."""

    stamps_ns: list[int] = field(default_factory=list)
    began_ns: list[int] = field(default_factory=list)
    ended_ns: list[int] = field(default_factory=list)


class Cameras:
    """Publishes the cameras at a rate, thermal first, on a thread of its own, until it is left; a context manager."""

    def __init__(
        self,
        node: Node,
        size: tuple[int, int],
        rate_hz: float,
        *,
        thermal: bool = True,
        compressed: bool = False,
        images: int | None = None,
    ) -> None:
        """size: (width, height) px of RGB; thermal, where it is wanted, has a quarter of both. compressed: RGB goes out
        as JPEG, thermal as PNG, as image_transport names them. images: of RGB, after which nothing more is sent; None:
        no end."""
        self._rate_hz = rate_hz
        self._images = math.inf if images is None else images
        self._now = node.get_clock()
        qos = qos_profile(TopicQos.RELIABLE)
        suffix, kind = ("/compressed", CompressedImage) if compressed else ("", Image)
        self._rgb = node.create_publisher(kind, CAMERAS.rgb + suffix, qos)
        self._thermal = node.create_publisher(kind, CAMERAS.thermal + suffix, qos) if thermal else None
        self._pictures = _pictures(size, _compressed if compressed else _image)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)
        self.log = Sent()

    @property
    def sent(self) -> int:
        """RGB images that were published."""
        return len(self.log.ended_ns)

    def wait(self) -> None:
        """Wait until the last image is out."""
        self._thread.join()

    def __enter__(self) -> "Cameras":
        publishers = [publisher for publisher in (self._thermal, self._rgb) if publisher is not None]
        if not wait_for(lambda: all(publisher.get_subscription_count() for publisher in publishers), 30.0):
            topics = " and ".join(publisher.topic_name for publisher in publishers)
            raise RunError(f"the node did not subscribe to {topics}: see its log, and its parameters *.transport")
        time.sleep(_SETTLE_S)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        due = time.monotonic()
        while self.sent < self._images and not self._stop.wait(max(0.0, due - time.monotonic())):
            thermal, rgb = self._pictures[self.sent % PICTURES]
            stamp_ns = self._now.now().nanoseconds
            seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
            thermal.header.stamp = rgb.header.stamp = Time(sec=seconds, nanosec=nanoseconds)
            if self._thermal is not None:
                self._thermal.publish(thermal)
            self.log.stamps_ns.append(stamp_ns)
            self.log.began_ns.append(time.monotonic_ns())
            self._rgb.publish(rgb)
            self.log.ended_ns.append(time.monotonic_ns())
            due = max(due + 1 / self._rate_hz, time.monotonic() - _BEHIND_S)


def _pictures(size: tuple[int, int], message: Any) -> list[tuple[Any, Any]]:
    """Return pairs of thermal and RGB images of a moving street. message: makes the messages."""
    scene = sample_scene(1, SceneSettings(size=size), further_blocks=1)
    pairs = []
    for number in range(PICTURES):
        rgb = render_rgb(scene, number / 30).image
        view = render_thermal(scene, number / 30)
        kelvin = resize_to_sensor(view.kelvin, (size[0] // 4, size[1] // 4), "area")
        thermal = to_8bit(kelvin, *percentile_range(kelvin))
        pairs.append((message(thermal, "mono8", "thermal_camera"), message(rgb, "rgb8", "rgb_camera")))
    return pairs


def _image(pixels: np.ndarray, encoding: str, frame_id: str) -> Image:
    fields = image_fields(pixels, encoding)
    return Image(**fields | {"data": to_array(fields["data"])}, header=Header(frame_id=frame_id))


def _compressed(pixels: np.ndarray, encoding: str, frame_id: str) -> CompressedImage:
    kind, what = ("jpeg", "rgb8; jpeg compressed bgr8") if encoding == "rgb8" else ("png", "mono8; png compressed ")
    data = cv2.imencode(f".{kind}", pixels[..., ::-1] if encoding == "rgb8" else pixels)[1]
    return CompressedImage(format=what, data=to_array(data.reshape(-1)), header=Header(frame_id=frame_id))


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish so many images and write when; return the exit status: 0, 1 if nobody subscribed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="cameras", description=__doc__)
    parser.add_argument("--rate", type=float, required=True, metavar="HZ")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("W", "H"), help="of RGB, px")
    parser.add_argument("--images", type=int, required=True, help="of RGB")
    parser.add_argument("--rgb-alone", action="store_true")
    parser.add_argument("--compressed", action="store_true")
    parser.add_argument("--report", type=Path, required=True, help="JSON: see Sent")
    given = parser.parse_args(arguments)

    def publish() -> int:
        with Graph("md_cameras") as graph:
            cameras = Cameras(
                graph.node,
                tuple(given.size),
                given.rate,
                thermal=not given.rgb_alone,
                compressed=given.compressed,
                images=given.images,
            )
            with cameras:
                cameras.wait()
            write_whole(given.report, json.dumps(vars(cameras.log)).encode())
            # A reliable reader may still ask for the last images; they go with this process.
            time.sleep(_SETTLE_S)
        return 0

    return run_command("cameras", publish)


if __name__ == "__main__":
    sys.exit(main())
