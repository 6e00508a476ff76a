"""What a truth is made of: boxes or masks from topics of the bag, or from annotation files."""

import logging
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from md_perception.annotations.boxes import (
    IGNORE_ID,
    class_ids,
    placed,
    read_coco,
    read_yolo,
    yolo_boxes,
    yolo_classes,
)
from md_perception.annotations.files import MAX_JSON_BYTES, index_folder, read_text
from md_perception.annotations.kaist import (
    PERSON,
    FrameName,
    corners,
    kaist_truth,
    merged,
    read_annotation,
    read_test_annotations,
)
from md_perception.bags.read import Bag, BagMessage
from md_perception.bags.results import TRUTH_DETECTIONS, detections_of
from md_perception.bags.sources import natural
from md_perception.bags.write import BagError
from md_perception.evaluation.records import FrameTruth, Light
from md_perception.evaluation.truth_names import Kind, TruthError, TruthSpec, inverted, match_names
from md_perception.labels import DETECTION, SEGMENTATION, UNLABELED_ID, ClassList
from md_perception.metrics.miss_rate import KaistTruth
from md_perception.results import Detections, UInt8Image
from md_perception.scenes.truth import occlusion_level
from md_perception.sensing.images import stamp_ns, to_thermal_values

log = logging.getLogger(__name__)

BOX_FOLDERS, MASK_FOLDER = ("boxes", "labels"), "masks"
KAIST_SIZE = (640, 512)
STAMP_TOLERANCE_NS = 500_000
"""Names of files may have been written from a float of seconds: half a millisecond is far below any frame distance."""
MASKS_AHEAD = 64
"""Masks of a topic that are held, undecoded, for frames that have not been asked for yet."""


class Source(ABC):
    """Boxes or masks from one place, in entries, each with a name.

    description: for reports. is_kaist: whether KAIST's settings say what is counted. classes: that are annotated, of
    labels.DETECTION. by_number: entries find their frames by the place of the image in the bag, whichever bag it is.
    """

    description: str
    is_kaist = False
    by_number = False
    classes: tuple[str, ...] = ()
    has_masks = False

    @property
    @abstractmethod
    def entries(self) -> Sequence[str]:
        """The names of all entries."""

    @abstractmethod
    def entry_of(self, stamp_ns: int, index: int) -> str | None:
        """Return the name of a frame's entry, None where it has none."""

    @abstractmethod
    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        """Return what an entry holds; size: (width, height) px of the RGB image. Raises DataError."""

    def light(self, entry: str) -> Light | None:
        """Return what an entry says of the light, None where it says nothing."""
        return None

    def close(self) -> None:  # noqa: B027
        """Close files."""


def find_topic(bag: Bag, asked: str | None, usual: str, kind: str) -> str | None:
    """Return the topic to be read; raise TruthError for one that was asked for and is not there."""
    name = usual if asked is None else asked
    topic = bag.topics.get(name)
    if topic is not None and topic.msgtype == kind and topic.count:
        return name
    if asked:
        there = [other for other, summary in bag.topics.items() if summary.msgtype == kind and summary.count]
        raise TruthError(f"{bag.path} has no {kind} on {asked}; it has {', '.join(there) or 'none on any topic'}")
    return None


def stamped(path: Path, topics: Sequence[str]) -> Generator[tuple[str, BagMessage]]:
    """Yield the messages of some topics with their stamps; a damaged one is left out: its frame has no truth."""
    if not topics:
        return
    with Bag(path) as bag:
        for item in bag.messages(topics):
            try:
                stamp = str(stamp_ns(item.message))
            except BagError as error:
                log.warning("%s: no truth from a damaged message: %s", path, error)
                continue
            yield stamp, item


class TopicBoxes(Source):
    """Boxes on a topic, all held: they are small. Whose classes are all taken for annotated, seen or not."""

    classes = DETECTION.classes

    def __init__(self, topic: str, messages: Mapping[str, Any], rename: Mapping[str, str]) -> None:
        """messages: Detection2DArray by stamp."""
        self.description = f"boxes of {topic}"
        self._topic = topic
        self._frames: dict[str, Detections] = {}
        try:
            names = {found.results[0].hypothesis.class_id for each in messages.values() for found in each.detections}
        except IndexError:
            raise TruthError(f"{topic} has a detection without a class: its `results` are empty") from None
        theirs = ClassList(topic, tuple(sorted(names)), ((0, 0, 0),) * len(names))
        known = class_ids(theirs.classes, {name: to for name, to in rename.items() if name in names}, topic)
        self._ids = np.array([known[name] for name in theirs.classes], np.int64)
        for stamp, message in messages.items():
            try:
                self._frames[stamp] = detections_of(message, theirs)
            except ValueError as error:
                raise TruthError(f"{topic}, stamp {stamp}: {error}") from None

    @property
    def entries(self) -> Sequence[str]:
        return tuple(self._frames)

    def entry_of(self, stamp_ns: int, index: int) -> str | None:
        return str(stamp_ns) if str(stamp_ns) in self._frames else None

    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        found = self._frames[entry]
        # The score of an object of the scene world is the share of it that is visible.
        occlusion = occlusion_level(found.scores) if self._topic == TRUTH_DETECTIONS else None
        return _truth(found.boxes, self._ids[found.labels], np.zeros(len(found), np.bool_), occlusion, size)


class TopicMasks(Source):
    """Masks on a topic, read along with the frames: a bag's masks do not fit into memory."""

    has_masks = True

    def __init__(self, bag: Path, topic: str, stamps: Sequence[str]) -> None:
        """stamps: of its messages."""
        self.description = f"masks of {topic}"
        self._path, self._topic = bag, topic
        self._stamps = dict.fromkeys(stamps)
        self._ahead: dict[str, BagMessage] = {}
        self._reading: Generator[tuple[str, BagMessage]] | None = None

    @property
    def entries(self) -> Sequence[str]:
        return tuple(self._stamps)

    def entry_of(self, stamp_ns: int, index: int) -> str | None:
        return str(stamp_ns) if str(stamp_ns) in self._stamps else None

    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        item = self._ahead.pop(entry, None) or self._advance(entry)
        try:
            mask = to_thermal_values(item.message, self._topic)  # one channel, as it is
        except ValueError as error:
            raise TruthError(str(error)) from None
        if mask.dtype != np.uint8 or mask.shape != size[::-1]:
            raise TruthError(
                f"{self._topic}: a mask {mask.shape[::-1]} of {mask.dtype} beside an RGB image of {size[0]}x{size[1]} "
                "px: mono8 of that size is needed"
            )
        return FrameTruth(mask=_checked(mask, f"{self._topic} at {entry} ns"))

    def _advance(self, entry: str) -> BagMessage:
        """Read on until the mask of a stamp; from the start where it lies behind."""
        for _ in range(2):
            if self._reading is None:
                self._reading = stamped(self._path, [self._topic])
            for stamp, item in self._reading:
                if stamp == entry:
                    return item
                self._ahead[stamp] = item
                if len(self._ahead) > MASKS_AHEAD:
                    del self._ahead[next(iter(self._ahead))]
            self.close()
        raise TruthError(f"{self._path}: the mask at {entry} ns was there and is gone: was the bag written to?")

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None


class _Files(Source):
    """Entries of files, each found by stamp or index, as truth_names.match_names says."""

    def __init__(self, names: Sequence[str], bag: Bag, spec: TruthSpec, folder: Path) -> None:
        if not names:
            raise TruthError(f"{folder} has no annotation")
        ordered = sorted(names, key=natural)
        self._names = tuple(ordered)
        self._by_index: dict[int, str] = {}
        self._by_stamp: dict[int, str] = {}
        how, numbers = match_names(ordered, bag, spec, folder)
        if how == "stamp":
            self._by_stamp = inverted(numbers, folder)
        else:
            self._by_index = inverted(numbers, folder)
            self.by_number = True
        self._stamps = sorted(self._by_stamp)

    @property
    def entries(self) -> Sequence[str]:
        return self._names

    def entry_of(self, stamp_ns: int, index: int) -> str | None:
        if not self._stamps:
            return self._by_index.get(index)
        place = bisect_left(self._stamps, stamp_ns)
        near = min(self._stamps[max(place - 1, 0) : place + 1], key=lambda stamp: abs(stamp - stamp_ns))
        return self._by_stamp[near] if abs(near - stamp_ns) <= STAMP_TOLERANCE_NS else None


class _KaistFile(_Files):
    """KAIST_annotation.json."""

    is_kaist = True
    classes = (PERSON,)

    def __init__(self, path: Path, bag: Bag, spec: TruthSpec) -> None:
        try:
            annotations = read_test_annotations(path)
        except ValueError as error:
            raise TruthError(str(error)) from None
        self._images = {str(image.name): image for image in annotations.images}
        self.description = f"KAIST annotations {path.name}, SHA-256 {annotations.sha256}"
        super().__init__(tuple(self._images), bag, spec, path)

    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        return _persons(self._images[entry].truth, size, entry)

    def light(self, entry: str) -> Light | None:
        return "night" if self._images[entry].truth.night else "day"


class _KaistFolder(_Files):
    """Text or XML of Dollar's toolbox, a file a frame, or one for each camera (paired annotations)."""

    is_kaist = True
    classes = (PERSON,)

    def __init__(self, path: Path, bag: Bag, spec: TruthSpec) -> None:
        self._files: dict[str, tuple[Path, ...]] = {}
        for file in sorted([*path.rglob("*.txt"), *path.rglob("*.xml")]):
            parts = file.relative_to(path).with_suffix("").parts
            if "lwir" in parts[-2:-1]:
                continue
            if "visible" in parts[-2:-1]:
                name = "/".join((*parts[:-2], parts[-1]))
                self._files[name] = (file, file.parents[1] / "lwir" / file.name)
            else:
                self._files["/".join(parts)] = (file,)
        self.description = f"KAIST annotations {path.name}/"
        super().__init__(tuple(self._files), bag, spec, path)

    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        annotated = [read_annotation(file) for file in self._files[entry]]
        both = annotated[0] if len(annotated) == 1 else merged(annotated[0], annotated[1], "mean")
        return _persons(kaist_truth(both, self.light(entry) == "night"), size, entry)

    def light(self, entry: str) -> Light | None:
        try:
            return "night" if FrameName.parse(entry.replace("_", "/")).night else "day"
        except ValueError:
            return None


class _CocoFile(_Files):
    """COCO JSON."""

    def __init__(self, path: Path, bag: Bag, spec: TruthSpec) -> None:
        self._path, self._images = path, read_coco(path)
        found = tuple(dict.fromkeys(name for image in self._images.values() for name in image.categories))
        self._ids = class_ids(found, spec.rename, path)
        self.classes = _classes(self._ids)
        self.description = f"COCO annotations {path.name}"
        super().__init__(tuple(self._images), bag, spec, path)

    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        image = self._images[entry]
        if image.size != size:
            raise TruthError(
                f"{self._path}: {entry} is {image.size[0]}x{image.size[1]} there, but its RGB image is "
                f"{size[0]}x{size[1]}: boxes and images are not of the same export"
            )
        boxes = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], axis=1)
        ids = np.array([self._ids[name] for name in image.objects], np.int64)
        return _truth(boxes, ids, image.ignored, None, size)


class _YoloFiles(_Files):
    """YOLO text, a file a frame."""

    def __init__(self, folder: Path, bag: Bag, spec: TruthSpec) -> None:
        listed = next((p for p in (folder / "classes.txt", folder.parent / "classes.txt") if p.is_file()), None)
        names = yolo_classes(listed or folder / "classes.txt")
        known = class_ids(names, spec.rename, listed or folder)
        self._ids = np.array([known[name] for name in names], np.int64)
        self.classes = _classes(known)
        self._files = {
            file.relative_to(folder).with_suffix("").as_posix(): file
            for file in sorted(folder.rglob("*.txt"))
            if file.name != "classes.txt"
        }
        self.description = f"YOLO boxes {folder.parent.name}/{folder.name}/"
        super().__init__(tuple(self._files), bag, spec, folder)

    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        numbers, relative = read_yolo(self._files[entry], len(self._ids))
        ignored = np.zeros(len(numbers), np.bool_)
        return _truth(yolo_boxes(relative, size), self._ids[numbers], ignored, None, size)


class _MaskFiles(_Files):
    """Mask PNGs, one a frame."""

    has_masks = True

    def __init__(self, folder: Path, bag: Bag, spec: TruthSpec) -> None:
        self._files = index_folder(folder)
        self.description = f"masks {folder.parent.name}/{folder.name}/"
        super().__init__(tuple(self._files), bag, spec, folder)

    def read(self, entry: str, size: tuple[int, int]) -> FrameTruth:
        # Imported here: it needs Pillow, which a bag with its truth on topics does not.
        from md_perception.annotations.masks import read_mask

        return FrameTruth(mask=read_mask(self._files[entry], size))


# Finding what is meant


def file_sources(bag: Bag, spec: TruthSpec, path: Path, kind: Kind) -> list[Source]:
    """Return what a file or folder holds. Raises DataError where it is no truth or its names do not match."""
    if not path.exists():
        raise TruthError(f"there is no ground truth at {path}")
    if kind == "auto":
        kind = _kind_of(path)
    if kind == "kaist":
        return [_KaistFile(path, bag, spec) if path.is_file() else _KaistFolder(path, bag, spec)]
    if kind == "coco":
        return [_CocoFile(path, bag, spec)]
    if kind == "masks":
        return [_MaskFiles(path / MASK_FOLDER if (path / MASK_FOLDER).is_dir() else path, bag, spec)]
    # A whole data set: boxes/ or labels/, and masks/ unless other masks were named.
    folder = next((path / name for name in BOX_FOLDERS if (path / name).is_dir()), path)
    sources: list[Source] = [_YoloFiles(folder, bag, spec)]
    if spec.masks is None and (path / MASK_FOLDER).is_dir():
        sources.append(_MaskFiles(path / MASK_FOLDER, bag, spec))
    return sources


def _kind_of(path: Path) -> Kind:
    """Return what a file or folder holds. Raises TruthError where that cannot be seen."""
    if path.is_file() and path.suffix == ".json":
        # The two differ in what they call the name of an image.
        text = read_text(path, MAX_JSON_BYTES)
        return "kaist" if '"im_name"' in text else "coco"
    if path.is_dir():
        if any((path / name).is_dir() for name in BOX_FOLDERS):
            return "yolo"
        if (path / MASK_FOLDER).is_dir() or any(path.glob("*.png")):
            return "masks"
        text_file = next((file for file in sorted(path.rglob("*.txt")) if file.name != "classes.txt"), None)
        if text_file is not None:
            return "kaist" if read_text(text_file).startswith("% bbGt") else "yolo"
        if next(path.rglob("*.xml"), None) is not None:
            return "kaist"
    raise TruthError(
        f"{path} is no ground truth that is known: expected a COCO or KAIST JSON file, or a folder of KAIST text, of "
        "YOLO text (boxes/ or labels/) or of mask PNGs (masks/); name it (--truth-kind)"
    )


# Arrays


def _classes(ids: Mapping[str, int]) -> tuple[str, ...]:
    known = set(ids.values())
    return tuple(name for index, name in enumerate(DETECTION.classes) if index in known)


def _truth(
    boxes: np.ndarray, ids: np.ndarray, ignored: np.ndarray, occlusion: np.ndarray | None, size: tuple[int, int]
) -> FrameTruth:
    """Return what is in the image. ids: as class_ids gives them; a region to be ignored is one of every class."""
    boxes, there = placed(boxes, ids, size)
    region = ids == IGNORE_ID
    objects, regions = np.flatnonzero(there & ~region), np.flatnonzero(there & region)
    order = np.concatenate([objects, np.tile(regions, len(DETECTION))])
    return FrameTruth(
        boxes=boxes[order],
        labels=np.concatenate([ids[objects], np.repeat(np.arange(len(DETECTION)), len(regions))]),
        ignored=(ignored | region)[order],
        occlusion=np.full(len(order), -1, np.int64) if occlusion is None else occlusion[order],
    )


def _persons(truth: KaistTruth, size: tuple[int, int], entry: str) -> FrameTruth:
    """Return KAIST's objects, unclipped: its settings look at how near to the border they are."""
    if size != KAIST_SIZE:
        raise TruthError(
            f"KAIST's annotation {entry} is for images of 640x512 px, but its RGB image is {size[0]}x{size[1]}: "
            "evaluate the drive at that size, or give the truth as YOLO text or COCO JSON"
        )
    return FrameTruth(
        boxes=corners(truth).astype(np.float32),
        labels=np.full(len(truth.boxes), DETECTION.id_of(PERSON), np.int64),
        ignored=truth.ignored,
        occlusion=truth.occlusion,
    )


def _checked(mask: UInt8Image, where: str) -> UInt8Image:
    highest = int(mask[mask != UNLABELED_ID].max(initial=0))
    if highest >= len(SEGMENTATION):
        raise TruthError(f"{where}: class id {highest} is outside {SEGMENTATION.name}, 0..{len(SEGMENTATION) - 1}")
    return mask
