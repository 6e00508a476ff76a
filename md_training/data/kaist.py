"""KAIST (Hwang et al., CVPR 2015): pedestrians by day and night, in the folders of the official release and its copies.

    ROOT/images/set00/V000/visible/I00000.jpg, lwir/I00000.jpg     or without images/, or as PNG
    ROOT/pairs/set06_V001_I00459_visible.png, .._lwir.png           single pairs
    ROOT/imageSets/train-all-02.txt                                 lists, or in splits/ or ROOT
and one or more annotations, named by `annotations`:
    KAIST_annotation.json                                           improved annotations of test-all-20 (MLPD's release)
    a folder with set00/V000/visible/I00000.txt and lwir/..         paired annotations (Zhang et al., ICCV 2019)
    a folder with set00/V000/I00000.txt or .xml                     original, sanitized or improved annotations
    a folder with set06_V000_I00019.txt                             improved annotations (MBNet's release)

Text annotations are those of Dollar's toolbox, `% bbGt version=3` and one object a line: `label x y w h occlusion
visible_x visible_y visible_w visible_h ignore angle`, pixels counted from 1.
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from md_perception.labels import DETECTION
from md_perception.metrics.miss_rate import (
    HEAVY_OCCLUSION,
    NO_OCCLUSION,
    PARTIAL_OCCLUSION,
    KaistTruth,
    Setting,
)
from md_perception.results import UInt8Image
from md_training.data.kaist_annotations import IGNORED_LABELS, FrameName, read_test_annotations
from md_training.data.pairs import NATIVE, Degradation, PairData, Truth, find_list, read_rgb, read_thermal
from md_training.data.splits import DataError, Split, all_names, published, read_split, verified
from md_training.data.yolo import read_text

Target = Literal["mean", "visible", "thermal", "union"]
NON_EMPTY = "train-all-01-non-empty"
PERSON = "person"
LABELS = (PERSON, *IGNORED_LABELS, "person?a", "unpaired")
"""What annotation files may say. All but `person` is neither person nor background: groups, what may be one, riders,
and objects that only one of the two cameras shows."""
IMPROVED_FILE = "KAIST_annotation.json"


@dataclass(frozen=True)
class KaistFolder:
    """See the module.

    split: a list's name without .txt; `available`: all frames of the annotations whose images are there; or
    train-all-01-non-empty, the paper's, which is made from the paired annotations if there is no list of it.
    annotations: file or folder below root (or anywhere); `auto` takes the only one there is.
    target: the box of a person that has one in each camera: the mean (as MBNet trained; the paper is silent), either
    camera's, or the smallest that holds both. A person annotated in one camera only has that box.
    minimum_height_px: lower persons are ignored; 55 is the benchmark's `reasonable` setting.
    """

    root: Path
    split: str = "train-all-02"
    annotations: str = "auto"
    target: Target = "mean"
    minimum_height_px: float = 0.0
    degradation: Degradation = NATIVE

    def open(self) -> "KaistPairs":
        """Find annotations and list. Raises DataError."""
        return KaistPairs(self)


@dataclass(frozen=True)
class Annotated:
    """The objects of one annotation file, as it has them.

    labels: one of LABELS each. boxes: float64 (N, 4), left, top, width, height px, counted from 1. occlusion: int64
    (N,), 0 none, 1 partial, 2 heavy. ignored: bool (N,), said so by the file.
    """

    labels: tuple[str, ...]
    boxes: np.ndarray
    occlusion: np.ndarray
    ignored: np.ndarray


class KaistPairs(PairData):
    """See KaistFolder. Only persons are annotated: whoever trains on it must not take cars for background."""

    detection_classes = (PERSON,)

    def __init__(self, settings: KaistFolder) -> None:
        self.root, self.degradation = settings.root, settings.degradation
        self._target, self._minimum_height_px = settings.target, settings.minimum_height_px
        self._source = find_annotations(self.root, settings.annotations)
        self._paired = next(self._source.glob("set??/V???/visible"), None) is not None
        self._improved: dict[str, KaistTruth] = {}
        if self._source.is_file():
            try:
                improved = read_test_annotations(self._source)
            except ValueError as error:
                raise DataError(str(error)) from None
            self._improved = {str(image.name): image.truth for image in improved.images}
        self.split = self._read_split(settings.split)
        for name in self.split.names:
            frame_name(name, self.split.name)

    @property
    def annotations(self) -> Path:
        """File or folder that the boxes are from: goes into the record of a run."""
        return self._source

    @cached_property
    def annotated(self) -> frozenset[str]:
        """The frames that the annotations have a file or entry of."""
        return frozenset(self._annotated_names())

    def description(self) -> str:
        target = f", target {self._target}" if self._paired else ""
        return f"{super().description()}, annotations {self._source.name}{target}"

    def files(self, name: str) -> dict[str, Path]:
        boxes = {"boxes": self._source}
        if self._paired:
            boxes = {f"boxes_{camera}": self._source / _paired_file(name, camera) for camera in ("visible", "lwir")}
        elif self._source.is_dir():
            boxes = {"boxes": self._text_file(name)}
        return {"rgb": self._image(name, "visible"), "thermal": self._image(name, "lwir")} | boxes

    def images(self, name: str) -> tuple[UInt8Image, UInt8Image]:
        files = self.files(name)
        return read_rgb(files["rgb"]), read_thermal(files["thermal"])

    def truth(self, name: str, size: tuple[int, int]) -> Truth:
        return to_truth(self.kaist_truth(name), size, self._minimum_height_px)

    def kaist_truth(self, name: str) -> KaistTruth:
        """Return the objects in the benchmark's own terms, boxes counted from 1. Raises DataError."""
        frame = frame_name(name, self.split.name)
        if self._source.is_file():
            if name not in self._improved:
                raise DataError(f"{self._source} does not annotate {name}: it is made for test-all-20")
            return self._improved[name]
        if self._paired:
            visible, lwir = (
                read_annotation(self._source / _paired_file(name, camera)) for camera in ("visible", "lwir")
            )
            annotated = merged(visible, lwir, self._target)
        else:
            annotated = read_annotation(self._text_file(name))
        return KaistTruth(
            boxes=annotated.boxes,
            ignored=annotated.ignored | np.array([label != PERSON for label in annotated.labels], np.bool_),
            occlusion=annotated.occlusion,
            night=frame.night,
        )

    def night(self, name: str) -> bool:
        return frame_name(name, self.split.name).night

    def _image(self, name: str, camera: str) -> Path:
        set_, video, frame = name.split("/")
        flat = self.root / "pairs" / f"{set_}_{video}_{frame}_{camera}"
        folders = (self.root / "images" / set_ / video / camera, self.root / set_ / video / camera)
        places = [
            Path(f"{stem}{suffix}")
            for stem in (*(folder / frame for folder in folders), flat)
            for suffix in (".jpg", ".png")
        ]
        return next((path for path in places if path.is_file()), places[0])

    def _text_file(self, name: str) -> Path:
        stems = (self._source / name, self._source / name.replace("/", "_"))
        places = [Path(f"{stem}{suffix}") for stem in stems for suffix in (".txt", ".xml")]
        return next((path for path in places if path.is_file()), places[0])

    def _read_split(self, split: str) -> Split:
        if split == "available":
            names = [name for name in self._annotated_names() if self._image(name, "visible").is_file()]
            if not names:
                raise DataError(f"{self.root} has no image that {self._source} annotates")
            return Split("available", all_names(names).names, all_names(names).sha256, "all")
        try:
            path = find_list(self.root, split)
        except DataError as missing:
            if split == NON_EMPTY and self._paired:
                return self._non_empty()
            if split in ("test-day-20", "test-night-20"):
                return self._half_of_test(night="night" in split)
            raise DataError(f"{missing}; or use the split `available`") from None
        return read_split(path, "kaist", self.root)

    def _annotated_names(self) -> Sequence[str]:
        if self._source.is_file():
            return tuple(self._improved)
        if self._paired:
            files = self._source.glob("set??/V???/visible/I*.txt")
            return sorted(f"{file.parts[-4]}/{file.parts[-3]}/{file.stem}" for file in files)
        tree = [f"{f.parts[-3]}/{f.parts[-2]}/{f.stem}" for f in self._source.glob("set??/V???/I*.*")]
        return sorted(tree + [f.stem.replace("_", "/") for f in self._source.glob("set??_V???_I*.*")])

    def _non_empty(self) -> Split:
        """Return the paper's training list. Its count decides what "a pedestrian" meant: a person, or any label."""
        known = published("kaist", NON_EMPTY)
        assert known is not None
        frames = [name for name in self._annotated_names() if name < "set06"]
        labels = {
            name: {
                label
                for camera in ("visible", "lwir")
                for label in read_annotation(self._source / _paired_file(name, camera)).labels
            }
            for name in frames
        }
        with_person = [name for name in frames if PERSON in labels[name]]
        with_any = [name for name in frames if labels[name]]
        for names in (with_person, with_any):
            if len(names) == known.count:
                return verified(names, known, f"the list made from {self._source}", self.root)
        raise DataError(
            f"{self._source} has {len(with_person)} frames with a person and {len(with_any)} with any label in set00 "
            f"to set05, but the paper trained on {known.count}: annotations are missing or of another release; name "
            "the list that you want to train on instead (split)"
        )

    def _half_of_test(self, night: bool) -> Split:
        """Return the day or night half of test-all-20."""
        whole = read_split(find_list(self.root, "test-all-20"), "kaist", self.root)
        known = published("kaist", f"test-{'night' if night else 'day'}-20")
        assert known is not None
        names = [name for name in whole.names if frame_name(name, whole.name).night == night]
        return verified(names, known, "the half of test-all-20", self.root)


def frame_name(name: str, source: str) -> FrameName:
    """Return the parts of a frame's name; raise DataError, naming the source, for another name."""
    try:
        return FrameName.parse(name)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from None


def find_annotations(root: Path, annotations: str) -> Path:
    """Return the file or folder of the annotations; `auto`: the only one below root.

    Raises DataError for none, and for several: which labels a run was trained on is not guessed.
    """
    if annotations != "auto":
        path = root / annotations
        if not path.exists():
            raise DataError(f"the annotations {path} are not there")
        return path
    found = annotation_sources(root)
    if len(found) != 1:
        raise DataError(
            f"{root} has {len(found)} annotations ({', '.join(path.name for path in found) or 'none'}): name one, "
            f"{IMPROVED_FILE} or a folder (`annotations`)"
        )
    return found[0]


def annotation_sources(root: Path) -> list[Path]:
    """Return the annotations below root: KAIST_annotation.json and the folders annotations*/ that are not empty."""
    return sorted(
        path
        for path in root.iterdir()
        if path.name == IMPROVED_FILE or (path.is_dir() and path.name.startswith("annotations") and any(path.iterdir()))
    )


def to_truth(truth: KaistTruth, size: tuple[int, int], minimum_height_px: float = 0.0) -> Truth:
    """Return KAIST's objects as training takes them: counted from 0, clipped, every one a person or ignored.

    Ignored are other labels than person, heavy occlusion, persons that reach into the outer 5 px (the benchmark's rule,
    written for 640x512) and those lower than minimum_height_px. size: (width, height) px of the image.
    """
    ignored = Setting("training", (minimum_height_px, np.inf), (NO_OCCLUSION, PARTIAL_OCCLUSION)).ignored(truth)
    left, top, width, height = truth.boxes.T
    # x = 1 with a width of 10 are the pixels 1..10 of the file and 0..9 here: 0 to 10, right exclusive.
    boxes = (np.stack([left, top, left + width, top + height], axis=1) - 1).clip(0, [*size, *size]).astype(np.float32)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Truth(
        boxes=boxes[keep],
        labels=np.full(int(keep.sum()), DETECTION.id_of(PERSON), np.int64),
        ignored=ignored[keep],
    )


def merged(visible: Annotated, lwir: Annotated, target: Target) -> Annotated:
    """Return one box for each object of the paired annotations.

    The files pair objects by their order, label by label (they carry no number; AR-CNN's own reader does so). Where the
    cameras do not have as many of a label, those that overlap are paired, largest overlap first, and the others are
    objects of one camera. Occlusion is the heavier of the two; ignored is what either file ignores.
    """
    pairs: list[tuple[int | None, int | None]] = []
    for label in dict.fromkeys(visible.labels + lwir.labels):
        first = [index for index, other in enumerate(visible.labels) if other == label]
        second = [index for index, other in enumerate(lwir.labels) if other == label]
        pairs += (
            zip(first, second, strict=True) if len(first) == len(second) else _overlapping(visible, first, lwir, second)
        )
    labels, boxes, occlusion, ignored = [], [], [], []
    for one, other in pairs:
        seen = [(side, index) for side, index in ((visible, one), (lwir, other)) if index is not None]
        side, index = seen[0]
        labels.append(side.labels[index])
        boxes.append(_combined([side.boxes[index] for side, index in seen], target))
        occlusion.append(max(int(side.occlusion[index]) for side, index in seen))
        ignored.append(any(bool(side.ignored[index]) for side, index in seen))
    return _annotated(labels, boxes, occlusion, ignored)


def _combined(boxes: list[np.ndarray], target: Target) -> np.ndarray:
    """Return left, top, width, height of one object from the boxes of the cameras that annotate it, visible first."""
    if len(boxes) == 1 or target == "visible":
        return boxes[0]
    if target == "thermal":
        return boxes[1]
    if target == "mean":
        return np.mean(boxes, axis=0)
    low = np.minimum(boxes[0][:2], boxes[1][:2])
    high = np.maximum(boxes[0][:2] + boxes[0][2:], boxes[1][:2] + boxes[1][2:])
    return np.concatenate([low, high - low])


def _overlapping(
    visible: Annotated, first: list[int], lwir: Annotated, second: list[int]
) -> list[tuple[int | None, int | None]]:
    """Pair the objects of two lists that overlap, largest first; the rest stays alone. In the order of the lists."""
    overlaps = sorted(
        ((_overlap(visible.boxes[one], lwir.boxes[other]), one, other) for one in first for other in second),
        key=lambda entry: -entry[0],
    )
    partner: dict[int, int] = {}
    for overlap, one, other in overlaps:
        if overlap > 0 and one not in partner and other not in partner.values():
            partner[one] = other
    alone = [(None, other) for other in second if other not in partner.values()]
    return [*((one, partner.get(one)) for one in first), *alone]


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two boxes, left, top, width, height."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    shared = float(np.prod((high - low).clip(min=0)))
    return shared / float(np.prod(one[2:]) + np.prod(other[2:]) - shared)


def read_annotation(path: Path) -> Annotated:
    """Read one annotation file, .txt or .xml. Raises DataError, with file and line or object."""
    return _read_xml(path) if path.suffix == ".xml" else _read_text(path)


def _read_text(path: Path) -> Annotated:
    lines = read_text(path).splitlines()
    if not lines or lines[0].split() != ["%", "bbGt", "version=3"]:
        raise DataError(f"{path} does not start with '% bbGt version=3': it is no annotation of Dollar's toolbox")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) != 12:
            raise DataError(
                f"{where} has {len(words)} values, expected 12: label x y w h occlusion, four of the visible box, "
                "ignore angle"
            )
        rows.append(_row(words[0], words[1:5], words[5], words[10], where))
    return _annotated(*zip(*rows, strict=True)) if rows else _annotated([], [], [], [])


def _read_xml(path: Path) -> Annotated:
    text = read_text(path)
    if "<!ENTITY" in text:
        raise DataError(f"{path} defines XML entities, which no annotation needs: it is not read")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise DataError(f"{path} is no XML file ({error}): download it again") from None
    rows = []
    for number, entry in enumerate(root.iter("object"), start=1):
        box = [entry.findtext(f"bndbox/{key}") or "" for key in ("x", "y", "w", "h")]
        occlusion, ignore = entry.findtext("occlusion") or "0", entry.findtext("ignore") or "0"
        rows.append(_row(entry.findtext("name") or "", box, occlusion, ignore, f"{path}, object {number}"))
    return _annotated(*zip(*rows, strict=True)) if rows else _annotated([], [], [], [])


def _row(
    label: str, box: Sequence[str], occlusion: str, ignored: str, where: str
) -> tuple[str, list[float], int, bool]:
    """Return the checked values of one object."""
    label = label.strip().lower()
    if label not in LABELS:
        raise DataError(f"{where}: the label {label!r} is none of KAIST's ({', '.join(LABELS)})")
    try:
        numbers = [float(text) for text in box]
    except ValueError:
        raise DataError(f"{where}: {' '.join(box)!r} are not left, top, width and height") from None
    if not np.isfinite(numbers).all() or min(numbers[2:]) <= 0:
        raise DataError(f"{where}: a box of {numbers[2]:g}x{numbers[3]:g} px holds nothing")
    if occlusion.strip() not in map(str, range(NO_OCCLUSION, HEAVY_OCCLUSION + 1)):
        raise DataError(f"{where}: occlusion {occlusion!r} is not 0 (none), 1 (partial) or 2 (heavy)")
    if ignored.strip() not in ("0", "1"):
        raise DataError(f"{where}: ignore {ignored!r} is not 0 or 1")
    return label, numbers, int(occlusion), ignored.strip() == "1"


def _annotated(
    labels: Sequence[str],
    boxes: Sequence[Sequence[float] | np.ndarray],
    occlusion: Sequence[int],
    ignored: Sequence[bool],
) -> Annotated:
    return Annotated(
        labels=tuple(labels),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        occlusion=np.array(occlusion, np.int64),
        ignored=np.array(ignored, np.bool_),
    )


def _paired_file(name: str, camera: str) -> str:
    """Return where the paired annotations keep a frame's objects in one camera."""
    set_, video, frame = name.split("/")
    return f"{set_}/{video}/{camera}/{frame}.txt"
