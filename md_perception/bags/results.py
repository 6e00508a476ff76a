"""What a recorded node said of each RGB image, joined with the camera bag by stamp; and the truth of a scene bag."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from md_perception.bags.read import Bag
from md_perception.bags.types import TopicQos
from md_perception.labels import DETECTION, ClassList
from md_perception.metrics.boxes import overlaps
from md_perception.metrics.detection import TruthBoxes
from md_perception.results import Detections, Mode, Perception, Segmentation, StageTimes, StudentOutput
from md_perception.sensing.images import stamp_ns, to_rgb, to_thermal_values

TRUTH_DETECTIONS = "/truth/detections"
TRUTH_MASK = "/truth/mask"
TRUTH_LABELS = "/truth/label_info"


@dataclass(frozen=True)
class ResultTopics:
    """Where the results are in a bag, for a node without a namespace."""

    status: str = "/md_perception/status"
    detections: str = "/md_perception/detections"
    mask: str = "/segmentation/mask"
    confidence: str = "/segmentation/confidence"
    label_info: str = "/segmentation/label_info"
    diagnostics: str = "/diagnostics"


@dataclass(frozen=True)
class CameraTopics:
    """Where the cameras are in a bag."""

    rgb: str = "/rgb/image_raw"
    thermal: str = "/thermal/image_raw"


@dataclass(frozen=True)
class Recorded:
    """Everything that a node published for one RGB image.

    The messages are of their ROS types; mask, confidence: None without the task. log_ns: when each came, by topic.
    """

    stamp_ns: int
    status: Any
    detections: Any
    mask: Any
    confidence: Any
    log_ns: dict[str, int]


def recorded_results(bag: Bag, topics: ResultTopics | None = None) -> Iterator[Recorded]:
    """Yield the results in a bag in the order in which they were complete, one in memory at a time.

    A status that describes no frame (MODE_STALE) is left out; so is a result of which a part is missing.
    """
    topics = topics or ResultTopics()
    parts = [topics.status, topics.detections, topics.mask, topics.confidence]
    present = [topic for topic in parts if topic in bag.topics and bag.topics[topic].count]
    open_results: dict[int, dict[str, Any]] = {}
    times: dict[int, dict[str, int]] = {}
    for item in bag.messages(present):
        if item.topic == topics.status and item.message.mode == Mode.STALE:
            continue
        stamp = stamp_ns(item.message)
        found = open_results.setdefault(stamp, {})
        found[item.topic] = item.message
        times.setdefault(stamp, {})[item.topic] = item.log_ns
        if len(found) == len(present):
            del open_results[stamp]
            status, detections, mask, confidence = (found.get(topic) for topic in parts)
            yield Recorded(stamp, status, detections, mask, confidence, times.pop(stamp))
        elif len(open_results) > 100:  # results of which a part was lost
            oldest = next(iter(open_results))
            del open_results[oldest], times[oldest]


@dataclass(frozen=True)
class Joined:
    """A result on its images. thermal: uint8 (h, w) for people to look at, None without a partner."""

    perception: Perception
    thermal: np.ndarray | None
    status: Any


def joined(
    results: Iterator[Recorded], cameras: Bag, topics: CameraTopics | None = None, classes: ClassList = DETECTION
) -> Iterator[Joined]:
    """Yield each result with the RGB image of its stamp and the thermal image that it was paired with.

    classes: of the detections.
    The RGB images are read along with the results; the thermal images, which are small, are held in memory.
    """
    topics = topics or CameraTopics()
    thermal: dict[int, Any] = {}
    if topics.thermal in cameras.topics:
        thermal = {stamp_ns(item.message): item.message for item in cameras.messages([topics.thermal])}
    stamps = np.array(sorted(thermal), np.int64)
    images = cameras.messages([topics.rgb])
    for result in results:
        rgb = next((item.message for item in images if stamp_ns(item.message) == result.stamp_ns), None)
        if rgb is None:
            return
        partner = None
        if len(stamps) and np.isfinite(result.status.pair_offset_s):
            wanted = result.stamp_ns + round(float(result.status.pair_offset_s) * 1e9)
            partner = for_people(to_thermal_values(thermal[int(stamps[np.argmin(np.abs(stamps - wanted))])]))
        yield Joined(perception_of(result, to_rgb(rgb), classes), partner, result.status)


def for_people(values: np.ndarray) -> np.ndarray:
    """Return uint8 (h, w) of thermal values: 8 bits as they are, others stretched between their extremes."""
    if values.dtype == np.uint8:
        return values
    low, high = np.nanpercentile(values, (1, 99))
    return np.clip((values - low) * (255.0 / max(float(high - low), 1e-6)), 0, 255).astype(np.uint8)


def perception_of(result: Recorded, rgb: np.ndarray, classes: ClassList = DETECTION) -> Perception:
    """Return the perception that was published. rgb: uint8 (H, W, 3), its image."""
    status = result.status
    segmentation = None
    if result.mask is not None:
        segmentation = Segmentation(_plane(result.mask), _plane(result.confidence))
    found = None if result.detections is None else detections_of(result.detections, classes)
    return Perception(
        stamp_ns=result.stamp_ns,
        frame_id=status.header.frame_id,
        mode=Mode(status.mode),
        size=(rgb.shape[1], rgb.shape[0]),
        rgb=rgb,
        output=StudentOutput(found, segmentation),
        pair_offset_ns=round(float(status.pair_offset_s) * 1e9) if np.isfinite(status.pair_offset_s) else None,
        times=StageTimes(float(status.decode_ms), float(status.pair_wait_ms), float(status.inference_ms)),
    )


def detections_of(message: Any, classes: ClassList = DETECTION) -> Detections:
    """Return the objects of a vision_msgs/Detection2DArray.

    Raises KeyError for a class that is not in the list, ValueError for a detection without `results` or a box that is
    not finite.
    """
    boxes = np.zeros((len(message.detections), 4), np.float32)
    scores = np.zeros(len(message.detections), np.float32)
    labels = np.zeros(len(message.detections), np.int64)
    for index, detection in enumerate(message.detections):
        if not detection.results:
            raise ValueError("a detection without a class: its `results` are empty")
        box, best = detection.bbox, detection.results[0].hypothesis
        x, y = box.center.position.x, box.center.position.y
        boxes[index] = (x - box.size_x / 2, y - box.size_y / 2, x + box.size_x / 2, y + box.size_y / 2)
        scores[index], labels[index] = best.score, classes.id_of(best.class_id)
    if not np.isfinite(boxes).all():
        raise ValueError("a detection whose box is not finite")
    return Detections(boxes, scores, labels)


def _plane(message: Any) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, : message.width]


def truth_by_stamp(bag: Bag, *, least_height_px: float, least_visible: float) -> dict[int, TruthBoxes]:
    """Return the objects of a scene bag by stamp of their RGB image; those below a bound are marked as ignored.

    In the truth of a scene bag, the score of an object is the share of it that is visible, 0..1.
    """
    truth = {}
    for item in bag.messages([TRUTH_DETECTIONS]):
        objects = detections_of(item.message)
        heights = objects.boxes[:, 3] - objects.boxes[:, 1]
        ignored = (heights < least_height_px) | (objects.scores < least_visible)
        truth[stamp_ns(item.message)] = TruthBoxes(objects.boxes, objects.labels, ignored)
    return truth


def count_found(truth: TruthBoxes, detections: Detections, label: int, least_iou: float = 0.5) -> tuple[int, int]:
    """Return (found, there are) of the objects of a class that are not ignored.

    Highest scores first, each detection finds the free object that it overlaps most, at least by least_iou.
    """
    counted = (truth.labels == label) & ~truth.ignored
    boxes = truth.boxes[counted]
    free = np.ones(len(boxes), bool)
    for box in detections.boxes[detections.labels == label][
        np.argsort(-detections.scores[detections.labels == label], kind="stable")
    ]:
        overlaps = np.where(free, iou(box, boxes), 0.0)
        if len(overlaps) and overlaps.max() >= least_iou:
            free[int(overlaps.argmax())] = False
    return int((~free).sum()), len(boxes)


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one box, float (4,) xyxy, with each of float (N, 4)."""
    return overlaps(box[None], boxes)[0]


Header = tuple[int, str]
"""Stamp, nanoseconds, and frame id."""


def headers_of(bag: Bag, topic: str) -> Counter[Header]:
    """Return how often each header is on a topic: once, unless messages were sent again."""
    return Counter((stamp_ns(item.message), item.message.header.frame_id) for item in bag.messages([topic]))


def order_problems(
    bag: Bag, rgb: Mapping[Header, int], thermal: Mapping[Header, int] | None = None, topics: ResultTopics | None = None
) -> list[str]:
    """Return what is wrong with the headers and the order of recorded results; an empty list if nothing is.

    rgb, thermal: how often an image with this header was there. Checked: every result has the header of an image, an
    RGB image unless its status says THERMAL_ONLY; no image has more results than it was sent; and a status with the
    identical header came before each result.
    """
    topics = topics or ResultTopics()
    problems: list[str] = []
    seen: dict[str, Counter[Header]] = {}
    parts = [t for t in (topics.status, topics.detections, topics.mask, topics.confidence) if t in bag.topics]
    for item in bag.messages(parts):
        message = item.message
        header = stamp_ns(message), message.header.frame_id
        if item.topic == topics.status:
            if message.mode == Mode.STALE:
                continue
            camera, sent = ("thermal", thermal or {}) if message.mode == Mode.THERMAL_ONLY else ("RGB", rgb)
            if header not in sent:
                problems.append(f"{item.topic} has a header {header} that no {camera} image has")
        elif header not in seen.get(topics.status, ()):
            problems.append(f"{item.topic} at {header[0]} ns came before its status")
        counts = seen.setdefault(item.topic, Counter())
        counts[header] += 1
        times = rgb.get(header, 0) + (thermal or {}).get(header, 0)
        if counts[header] > max(times, 1):
            problems.append(f"{item.topic} has {counts[header]} messages of the image at {header[0]} ns")
    for first, second in itertools.pairwise([t for t in parts if t in seen]):
        missing = sorted((seen[first] - seen[second]) + (seen[second] - seen[first]))
        if missing:
            problems.append(f"{first} and {second} differ in {len(missing)} images, the first at {missing[0][0]} ns")
    return problems


def label_info_problems(bag: Bag, classes: Sequence[str], topics: ResultTopics | None = None) -> list[str]:
    """Return what is wrong with the label info: it must be there, latched, before the first mask, with all classes."""
    topics = topics or ResultTopics()
    summary = bag.topics.get(topics.label_info)
    if summary is None or not summary.count:
        return [f"{topics.label_info} was never published"]
    first = next(iter(bag.messages([topics.label_info])))
    mask = next(iter(bag.messages([topics.mask])), None)
    problems = []
    if summary.qos is not TopicQos.LATCHED:
        problems.append(f"{topics.label_info} is not latched")
    if mask is not None and mask.log_ns < first.log_ns:
        problems.append(f"{topics.label_info} came after the first mask")
    named = tuple(entry.class_name for entry in sorted(first.message.class_map, key=lambda entry: entry.class_id))
    if named != tuple(classes):
        problems.append(f"{topics.label_info} names {named}, expected {tuple(classes)}")
    return problems
