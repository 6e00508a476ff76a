"""Bags of two cameras that see noise, small enough for many tests; every pixel follows from the seed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from md_perception.bags.injection import Injection, inject
from md_perception.bags.make import TimedMessage
from md_perception.bags.types import DETECTIONS, IMAGE, message_store
from md_perception.bags.write import BagWriter, Storage
from md_perception.outputs.messages import MessageBuilder
from md_perception.results import Detections, Mode, Perception, StudentOutput

RGB, THERMAL = "/rgb/image_raw", "/thermal/image_raw"
START = 1_700_000_000_000_000_000
MS = 1_000_000

STORE = message_store()
BUILD = MessageBuilder(STORE.types.__getitem__)


def noise(
    frames: int,
    *,
    size: tuple[int, int] = (32, 24),
    thermal_size: tuple[int, int] = (16, 12),
    rate_hz: float = 30.0,
    thermal_late_ns: int = 0,
    seed: int = 0,
) -> Iterator[TimedMessage]:
    """Yield RGB (rgb8, 50..199) and thermal (mono8, 100..199) images with equal stamps.

    thermal_late_ns: how much later than RGB a thermal message arrives; by default it comes first.
    """
    random = np.random.default_rng(seed)
    messages = []
    for number in range(frames):
        stamp = START + round(number * 1e9 / rate_hz)
        warm = random.integers(100, 200, thermal_size[::-1], np.uint8)
        colour = random.integers(50, 200, (*size[::-1], 3), np.uint8)
        messages.append(TimedMessage(stamp + thermal_late_ns, THERMAL, BUILD.image(warm, "mono8", stamp, "thermal")))
        messages.append(TimedMessage(stamp, RGB, BUILD.image(colour, "rgb8", stamp, "rgb")))
        if len(messages) > 64:
            messages.sort(key=lambda timed: timed.log_ns)
            yield from messages[:32]
            del messages[:32]
    yield from sorted(messages, key=lambda timed: timed.log_ns)


def write_drive(
    path: Path,
    frames: int = 30,
    *,
    faults: Sequence[Injection] = (),
    storage: Storage = "mcap",
    compressed: bool = False,
    truth: bool = False,
    custom_data: dict[str, str] | None = None,
    **options: object,
) -> Path:
    """Write a bag of `noise(frames, **options)` with faults in it.

    truth: also, on the topics of a scene bag, a person in the middle half of every RGB image, and a mask that is 2
    (person) in its left half.
    """
    with BagWriter(path, storage, compressed=compressed, custom_data=custom_data) as writer:
        for topic in (RGB, THERMAL):
            writer.add_topic(topic, IMAGE)
        if truth:
            writer.add_topic("/truth/detections", DETECTIONS)
            writer.add_topic("/truth/mask", IMAGE)
        for timed in inject(noise(frames, **options), faults, START):  # type: ignore[arg-type]
            writer.write(timed.topic, timed.log_ns, timed.message)
            if truth and timed.topic == RGB:
                _write_truth(writer, timed)
    return path


def _write_truth(writer: BagWriter, timed: TimedMessage) -> None:
    message = timed.message
    stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
    width, height = message.width, message.height
    box = np.array([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]], np.float32)
    there = Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64))
    perception = Perception(
        stamp, "rgb", Mode.FUSED, (width, height), np.zeros((1, 1, 3), np.uint8), StudentOutput(there, None)
    )
    writer.write("/truth/detections", timed.log_ns, BUILD.detections(perception, ("person", "bicycle", "car")))
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 2
    writer.write("/truth/mask", timed.log_ns, BUILD.image(mask, "mono8", stamp, "rgb"))
