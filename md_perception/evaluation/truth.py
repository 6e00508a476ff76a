"""Ground truth of a bag's frames: from topics of the bag, or from annotation files beside it.

Topics are matched by the stamp of the RGB image. Files are matched by stamp (their name is one, or an index file says
so) or by frame index, the number of the RGB image in the bag from 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from md_perception.bags.read import Bag
from md_perception.bags.results import TRUTH_DETECTIONS, TRUTH_MASK
from md_perception.bags.types import DETECTIONS, IMAGE
from md_perception.evaluation.records import FrameTruth, Light
from md_perception.evaluation.truth_names import Counting, Kind, Match, TruthError, TruthSpec
from md_perception.evaluation.truth_sources import Source, TopicBoxes, TopicMasks, file_sources, find_topic, stamped
from md_perception.labels import DETECTION

__all__ = ["Counting", "Kind", "Match", "Truth", "TruthError", "TruthMatch", "TruthSpec", "open_truth"]


@dataclass(frozen=True)
class TruthMatch:
    """What found its frame and what did not.

    frames: of the bag. with_truth: of these, those that have some. unmatched: entries of the truth that no frame has,
    by name (for a topic: its stamp). entries: all of the truth.
    """

    frames: int
    with_truth: int
    entries: int
    unmatched: tuple[str, ...]

    def require(self, allow_unmatched: bool = False) -> None:
        """Raise TruthError where nothing matches or, unless allowed, where an entry has no frame."""
        if self.frames and self.entries and not self.with_truth:
            raise TruthError(
                f"none of the {self.entries} entries of the ground truth (the first: {self.unmatched[0]}) belongs to "
                f"one of the {self.frames} frames: is it the truth of this bag? Otherwise say how names and frames "
                "match (--truth-match stamp, number or order, --truth-index FILE)"
            )
        if self.unmatched and not allow_unmatched:
            raise TruthError(
                f"{len(self.unmatched)} of {self.entries} entries of the ground truth have no frame in the bag, e.g. "
                f"{', '.join(self.unmatched[:3])}: it is the truth of another or a longer drive, or frames are missing "
                "in the bag; if that is meant, allow it (--allow-unmatched-truth)"
            )


class Truth:
    """The truth of one bag. Not thread-safe. Close it, or use it as a context manager.

    description: for reports. counting: `kaist` where KAIST's settings say what is counted. classes: those annotated,
    of labels.DETECTION; empty without boxes. has_masks: whether any mask is there. by_number: it fits the frames of any
    bag, for they are counted.
    """

    def __init__(self, sources: Sequence["Source"]) -> None:
        self._sources = tuple(sources)
        self.description = "; ".join(source.description for source in self._sources)
        self.counting: Counting = "kaist" if any(source.is_kaist for source in self._sources) else "plain"
        known = {name for source in self._sources for name in source.classes}
        self.classes = tuple(name for name in DETECTION.classes if name in known)
        self.has_masks = any(source.has_masks for source in self._sources)
        self.by_number = any(source.by_number for source in self._sources)

    def truth_of(self, stamp_ns: int, index: int, size: tuple[int, int]) -> FrameTruth | None:
        """Return what is annotated in a frame, None where nothing is.

        stamp_ns: of its RGB image; index: of this image in the bag, from 0; size: (width, height) px of it.
        Fastest in the order of the bag. Raises TruthError or DataError naming the entry that does not fit.
        """
        found: FrameTruth | None = None
        for source in self._sources:
            entry = source.entry_of(stamp_ns, index)
            if entry is None:
                continue
            part = source.read(entry, size)
            if found is None:
                found = part
            else:
                boxes = found if found.boxes is not None else part
                found = replace(boxes, mask=found.mask if found.mask is not None else part.mask)
        return found

    def light_of(self, stamp_ns: int, index: int) -> Light | None:
        """Return what the truth says of the light (the names of KAIST's frames do), None where it says nothing."""
        for source in self._sources:
            entry = source.entry_of(stamp_ns, index)
            light = None if entry is None else source.light(entry)
            if light is not None:
                return light
        return None

    def match(self, frames: Iterable[tuple[int, int]]) -> TruthMatch:
        """Say what finds its frame. frames: stamp, ns, and index of every RGB image of the bag."""
        used: list[set[str]] = [set() for _ in self._sources]
        count = with_truth = 0
        for stamp, index in frames:
            entries = [source.entry_of(stamp, index) for source in self._sources]
            for names, entry in zip(used, entries, strict=True):
                if entry is not None:
                    names.add(entry)
            count += 1
            with_truth += any(entry is not None for entry in entries)
        unmatched = [
            name
            for source, names in zip(self._sources, used, strict=True)
            for name in source.entries
            if name not in names
        ]
        return TruthMatch(
            count, with_truth, sum(len(source.entries) for source in self._sources), tuple(dict.fromkeys(unmatched))
        )

    def read_boxes(self, frames: Iterable[tuple[int, int]], size: tuple[int, int]) -> None:
        """Read the boxes of frames once, so that a bad file is told before hours of inference. Arguments as above.

        Raises TruthError or DataError naming the entry.
        """
        for stamp, index in frames:
            for source in self._sources:
                entry = None if source.has_masks else source.entry_of(stamp, index)
                if entry is not None:
                    source.read(entry, size)

    def close(self) -> None:
        """Close files."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> "Truth":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_truth(bag: Bag, spec: TruthSpec | None = None) -> Truth | None:
    """Return the truth of a bag; None where the spec names nothing and the bag has no truth topics.

    bag: open; the topics are read with a reader of their own.
    Raises TruthError, DataError or BagError where what the spec names is not there, cannot be read or is there twice.
    """
    spec = spec or TruthSpec()
    sources: list[Source] = []
    if spec.path is not None:
        sources += file_sources(bag, spec, spec.path, spec.kind)
    if spec.masks is not None:
        sources += file_sources(bag, spec, spec.masks, "masks")
    # A path takes the place of the scene bag's topics; topics that are named are read in any case.
    usual = spec.path is None
    detections = find_topic(bag, spec.detections_topic, TRUTH_DETECTIONS if usual else "", DETECTIONS)
    mask = find_topic(bag, spec.mask_topic, TRUTH_MASK if usual and spec.masks is None else "", IMAGE)
    boxes: dict[str, Any] = {}
    masks: list[str] = []
    seen: set[tuple[str, str]] = set()
    for stamp, item in stamped(bag.path, [topic for topic in (detections, mask) if topic]):
        if (item.topic, stamp) in seen:
            raise TruthError(
                f"{item.topic} has two messages with the stamp {stamp}: which image each belongs to cannot be told; "
                "give the truth as files (--truth), or leave it out (--truth none)"
            )
        seen.add((item.topic, stamp))
        if item.topic == detections:
            boxes[stamp] = item.message
        else:
            masks.append(stamp)
    if detections:
        sources.append(TopicBoxes(detections, boxes, spec.rename))
    if mask:
        sources.append(TopicMasks(bag.path, mask, masks))
    return Truth(sources) if sources else None
