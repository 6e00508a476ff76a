"""The result bag: what the node would have published on a drive, in its own messages, for RViz, Foxglove and Nav2.

While a bag is evaluated, the messages of its frames are spooled; when it is through, they become a rosbag2. Durations
are zeros in its statuses: they would make two runs differ.
"""

import heapq
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]

from md_perception.bags.read import Bag
from md_perception.bags.results import ResultTopics
from md_perception.bags.types import DETECTIONS, IMAGE, LABEL_INFO, STATUS, TopicQos, message_store
from md_perception.bags.write import BagWriter
from md_perception.evaluation.sources import Idle, ReplayedFrame
from md_perception.inference.session import Student
from md_perception.intake import Counters
from md_perception.outputs.messages import MessageBuilder
from md_perception.pipeline import served_as
from md_perception.results import Mode, Perception, StudentOutput
from md_perception.status import Ages, frame_status, idle_status

_HEAD = struct.Struct("<BqI")
"""Number of the topic in _TYPES, log time, bytes of the message."""

TOPICS = ResultTopics()
_TYPES = {
    TOPICS.status: STATUS,
    TOPICS.detections: DETECTIONS,
    TOPICS.mask: IMAGE,
    TOPICS.confidence: IMAGE,
}
_NUMBERS = {topic: number for number, topic in enumerate(_TYPES)}


@dataclass(frozen=True)
class Ended:
    """Images of both cameras that have ended as processed or rejected so far."""

    processed: int = 0
    rejected: int = 0
    thermal_processed: int = 0
    thermal_rejected: int = 0


class ResultMessages:
    """Makes the messages of frames, serialised and packed. Thread-safe.

    students: of one candidate, by mode. threshold: least score of the detections that are published.
    """

    def __init__(self, students: Mapping[Mode, Student], threshold: float) -> None:
        self._students, self._threshold = dict(students), threshold

    @cached_property
    def _store(self) -> Any:
        return message_store()

    @cached_property
    def _build(self) -> MessageBuilder:
        return MessageBuilder(self._store.types.__getitem__)

    def of(self, frame: ReplayedFrame, perception: Perception | str, ended: Ended) -> bytes:
        """Return what the node would have said of a frame, and while it was STALE before. ended: with this frame."""
        found = [self._idle_status(idle, ended) for idle in frame.idle]
        if isinstance(perception, Perception):
            found += self._results(frame, perception, ended)
        return packed(found)

    def idle(self, moments: Iterable[Idle], ended: Ended) -> bytes:
        """Return what the node would have said at moments in STALE."""
        return packed([self._idle_status(idle, ended) for idle in moments])

    def _idle_status(self, idle: Idle, ended: Ended) -> tuple[str, int, bytes]:
        ages = Ages(idle.rgb_age_s, idle.thermal_age_s)
        status = idle_status(idle.log_ns, Mode.STALE, ages, _ended(idle.counters, ended), idle.faults)
        return self._message(TOPICS.status, idle.log_ns, self._build.status(status))

    def _results(self, frame: ReplayedFrame, perception: Perception, ended: Ended) -> Iterator[tuple[str, int, bytes]]:
        student = self._students[served_as(perception.mode)]
        detections = perception.output.detections
        output = StudentOutput(
            None if detections is None else detections.above(self._threshold), perception.output.segmentation
        )
        published = Perception(
            perception.stamp_ns, perception.frame_id, perception.mode, perception.size, perception.rgb, output
        )
        status = frame_status(
            perception,
            student,
            Ages(frame.rgb_age_s, frame.thermal_age_s),
            _ended(frame.counters, ended),
            frame.faults,
            pair_wait_ms=frame.waited_ns / 1e6,
            total_ms=math.nan,
        )
        build, log_ns = self._build, frame.log_ns
        yield self._message(TOPICS.status, log_ns, build.status(status))
        yield self._message(TOPICS.detections, log_ns, build.detections(published, student.manifest.detection_classes))
        if output.segmentation is not None:
            yield self._message(TOPICS.mask, log_ns, build.mask(published))
            yield self._message(TOPICS.confidence, log_ns, build.confidence(published))

    def _message(self, topic: str, log_ns: int, message: Any) -> tuple[str, int, bytes]:
        return topic, log_ns, bytes(self._store.serialize_cdr(message, _TYPES[topic]))


def _ended(counters: Counters, ended: Ended) -> Counters:
    """Return the counters with the ends of the frames, which an intake without a worker does not know."""
    return replace(counters, **vars(ended))


def packed(messages: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Return messages, (topic, log time, CDR), as bytes for the spool; b"" of none."""
    parts = [_HEAD.pack(_NUMBERS[topic], log_ns, len(data)) + data for topic, log_ns, data in messages]
    return lz4.frame.compress(b"".join(parts)) if parts else b""


def unpacked(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield the messages of `packed`."""
    if not data:
        return
    content, at, topics = lz4.frame.decompress(data), 0, tuple(_TYPES)
    while at < len(content):
        number, log_ns, size = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        yield topics[number], log_ns, content[at : at + size]
        at += size


def write_result_bag(
    path: Path,
    source: Path,
    spooled: Iterable[bytes],
    student: Student,
    threshold: float,
    *,
    name: str,
    simulation: str = "",
    copy_inputs: bool = False,
) -> None:
    """Write the result bag of a bag, MCAP with compressed chunks, in the place of an older one.

    spooled: what ResultMessages has made of its frames, in order. name: of the student that is in it. copy_inputs:
    put all messages of the source beside the results; otherwise its path stands in the metadata (custom_data).
    Raises BagError.
    """
    about = {"inputs": str(source.resolve()), "student": name, "simulation": simulation or "none"}
    with Bag(source) as bag, BagWriter(path, replace=True, compressed=True, custom_data=about) as writer:
        taken = {*_TYPES, TOPICS.label_info}
        inputs = [topic for topic in bag.topics if topic not in taken] if copy_inputs else []
        for topic in inputs:
            writer.add_topic(topic, bag.topics[topic].msgtype, bag.topics[topic].qos, bag.store)
        writer.add_topic(TOPICS.status, STATUS)
        writer.add_topic(TOPICS.detections, DETECTIONS)
        if student.manifest.segmentation_classes:
            writer.add_topic(TOPICS.label_info, LABEL_INFO, TopicQos.LATCHED)
            writer.add_topic(TOPICS.mask, IMAGE)
            writer.add_topic(TOPICS.confidence, IMAGE)
            build = MessageBuilder(writer.store.types.__getitem__)
            classes = student.manifest.segmentation_classes
            writer.write(TOPICS.label_info, bag.start_ns, build.label_info(classes, threshold, bag.start_ns))
        results = (message for frame in spooled for message in unpacked(frame))
        copied = ((item.topic, item.log_ns, item.raw) for item in (bag.messages(inputs) if inputs else ()))
        for topic, log_ns, data in heapq.merge(copied, results, key=lambda message: message[1]):
            if topic in writer.counts:  # what takes over for a student may have a task that it lacks
                writer.write_raw(topic, log_ns, data)
