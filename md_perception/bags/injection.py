"""Faults put into the messages of a bag: what was a good drive becomes one with a broken camera, clock or cable.

A fault changes messages one by one as they go by, so that a bag of any length needs no more memory than its delays.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from md_perception.bags.make import TimedMessage
from md_perception.bags.read import Bag
from md_perception.bags.types import IMAGE
from md_perception.bags.write import BagError, BagWriter
from md_perception.sensing.images import image_fields, stamp_ns, to_thermal_values

Kind = Literal["drop", "delay", "reorder", "duplicate", "freeze", "resize", "dark", "nan", "cut", "jump"]


@dataclass(frozen=True)
class Injection:
    """One fault of one topic.

    topic: of sensor_msgs/Image. start_s, end_s: from when to when, by the log time since the bag's beginning.
    kind, and what its amount means:
    - drop: share of the messages that do not come, 0..1; 1 is a silent camera
    - delay: they come so much later, s, with the stamps that they had
    - reorder: they come up to so much later, s, each by chance, so that they overtake each other
    - duplicate: each comes so many times more, at once
    - freeze: the picture of the first one comes again and again under new stamps (no amount)
    - resize: the pictures have so many times the width and height
    - dark: the pictures are of zeros (no amount)
    - nan: share of the rows that are NaN, 0..1; for 32FC1
    - cut: share of the data that come, 0..1
    - jump: so much, s, is added to the stamps
    seed: of what is left to chance.
    """

    kind: Kind
    topic: str
    start_s: float
    end_s: float
    amount: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BagError(f"there is no fault {self.kind!r}: use one of {', '.join(get_args(Kind))}")
        low, high = _ALLOWED[self.kind]
        if not low <= self.amount <= high:
            raise BagError(f"{self.kind} by {self.amount:g} is not possible: {low:g} to {high:g} are")
        if not 0 <= self.start_s < self.end_s:
            raise BagError(f"a fault from {self.start_s:g} s to {self.end_s:g} s is not possible")


_ALLOWED: dict[Kind, tuple[float, float]] = {
    "drop": (0.0, 1.0),
    "delay": (0.0, 60.0),
    "reorder": (0.0, 60.0),
    "duplicate": (1, 100),
    "freeze": (0.0, 0.0),
    "resize": (0.01, 16.0),
    "dark": (0.0, 0.0),
    "nan": (0.0, 1.0),
    "cut": (0.0, 1.0),
    "jump": (-1e6, 1e6),
}
"""Least and largest amount."""


def inject(messages: Iterable[TimedMessage], injections: Sequence[Injection], start_ns: int) -> Iterator[TimedMessage]:
    """Yield the messages with the faults in them, in the order of their new log times.

    messages: in the order of log time; they are not changed. injections: each works on what those before it have left.
    start_ns: log time of the bag's beginning. Raises BagError where a picture is not one that the fault can be put in.
    """
    faults = [_Injector(injection, start_ns) for injection in injections]
    delayed: list[tuple[int, int, TimedMessage]] = []
    number = itertools.count()  # messages of one time keep their order
    for timed in messages:
        while delayed and delayed[0][0] <= timed.log_ns:
            yield heapq.heappop(delayed)[2]
        changed = [timed]
        for fault in faults:
            changed = [after for before in changed for after in fault(before)]
        for after in changed:
            heapq.heappush(delayed, (after.log_ns, next(number), after))
    while delayed:
        yield heapq.heappop(delayed)[2]


def write_injected(
    source: Path,
    out: Path,
    injections: Sequence[Injection],
    *,
    topics: Sequence[str] | None = None,
    prepare: Callable[[TimedMessage], TimedMessage] = lambda timed: timed,
    replace_bag: bool = False,
) -> dict[str, int]:
    """Write a bag with faults; return how many messages of each topic it has.

    topics: to be copied, all by default. prepare: changes every message before the faults do.
    Raises BagError, UnknownTypeError.
    """
    with Bag(source) as bag, BagWriter(out, replace=replace_bag) as writer:
        wanted = {name: topic for name, topic in bag.topics.items() if topics is None or name in topics}
        for injection in injections:
            if injection.topic not in wanted or wanted[injection.topic].msgtype != IMAGE:
                raise BagError(f"{source} has no {IMAGE} on {injection.topic}, into which a fault could be put")
        for name, topic in wanted.items():
            writer.add_topic(name, topic.msgtype, topic.qos)
        messages = (prepare(TimedMessage(item.log_ns, item.topic, item.message)) for item in bag.messages(list(wanted)))
        for timed in inject(messages, injections, bag.start_ns):
            writer.write(timed.topic, timed.log_ns, timed.message)
        if bag.damage:
            raise BagError(f"{source} is damaged: {bag.damage}")
    return writer.counts


class _Injector:
    """One fault on its way through the messages."""

    def __init__(self, injection: Injection, start_ns: int) -> None:
        self._injection = injection
        self._from_ns = start_ns + round(injection.start_s * 1e9)
        self._to_ns = start_ns + round(injection.end_s * 1e9)
        self._random = np.random.default_rng(injection.seed)
        self._change: Callable[[TimedMessage], list[TimedMessage]] = getattr(self, f"_{injection.kind}")
        self._first: Any = None

    def __call__(self, timed: TimedMessage) -> list[TimedMessage]:
        if timed.topic != self._injection.topic or not self._from_ns <= timed.log_ns < self._to_ns:
            return [timed]
        return self._change(timed)

    def _drop(self, timed: TimedMessage) -> list[TimedMessage]:
        return [] if self._random.random() < self._injection.amount else [timed]

    def _delay(self, timed: TimedMessage) -> list[TimedMessage]:
        return [replace(timed, log_ns=timed.log_ns + round(self._injection.amount * 1e9))]

    def _reorder(self, timed: TimedMessage) -> list[TimedMessage]:
        return [replace(timed, log_ns=timed.log_ns + round(self._random.random() * self._injection.amount * 1e9))]

    def _duplicate(self, timed: TimedMessage) -> list[TimedMessage]:
        return [timed] * (1 + round(self._injection.amount))

    def _freeze(self, timed: TimedMessage) -> list[TimedMessage]:
        self._first = self._first or timed.message
        return [replace(timed, message=replace(self._first, header=timed.message.header))]

    def _resize(self, timed: TimedMessage) -> list[TimedMessage]:
        scale = self._injection.amount

        def smaller(pixels: np.ndarray) -> np.ndarray:
            height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
            return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))

        return [_with_pixels(timed, smaller)]

    def _dark(self, timed: TimedMessage) -> list[TimedMessage]:
        return [replace(timed, message=replace(timed.message, data=np.zeros_like(timed.message.data)))]

    def _nan(self, timed: TimedMessage) -> list[TimedMessage]:
        if timed.message.encoding != "32FC1":
            raise BagError(f"{timed.topic} carries {timed.message.encoding}: only 32FC1 has NaN")

        def with_nan(pixels: np.ndarray) -> np.ndarray:
            pixels = pixels.copy()
            pixels[: round(self._injection.amount * len(pixels))] = np.nan
            return pixels

        return [_with_pixels(timed, with_nan)]

    def _cut(self, timed: TimedMessage) -> list[TimedMessage]:
        data = timed.message.data
        return [replace(timed, message=replace(timed.message, data=data[: round(self._injection.amount * data.size)]))]

    def _jump(self, timed: TimedMessage) -> list[TimedMessage]:
        header = timed.message.header
        stamp = max(0, stamp_ns(timed.message) + round(self._injection.amount * 1e9))
        seconds, nanoseconds = divmod(stamp, 1_000_000_000)
        moved = replace(header, stamp=replace(header.stamp, sec=seconds, nanosec=nanoseconds))
        return [replace(timed, message=replace(timed.message, header=moved))]


def _with_pixels(timed: TimedMessage, change: Callable[[np.ndarray], np.ndarray]) -> TimedMessage:
    """Return the message with other pixels. change: takes and returns the array of a plain encoding."""
    pixels = to_thermal_values(timed.message, timed.topic)  # which reads colour as it lies, too
    return replace(timed, message=replace(timed.message, **image_fields(change(pixels), timed.message.encoding)))


def to_kelvin(timed: TimedMessage, topic: str) -> TimedMessage:
    """Return an image of centikelvin (mono16) on this topic as one of kelvin (32FC1); other messages as they are."""
    if timed.topic != topic:
        return timed
    kelvin = to_thermal_values(timed.message, topic).astype(np.float32) / 100
    return replace(timed, message=replace(timed.message, **image_fields(kelvin, "32FC1")))
