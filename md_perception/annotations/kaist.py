"""KAIST's names and annotation files, as frozen types.

Boxes stay as the files have them: left, top, width, height in px, 1-based. Whoever trains on them subtracts 1.
"""

import hashlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from md_perception.annotations.files import DataError, read_text
from md_perception.metrics.miss_rate import HEAVY_OCCLUSION, NO_OCCLUSION, KaistTruth

IGNORED_LABELS = ("people", "person?", "cyclist")
"""What annotators wrote instead of `person` for groups, for what may be one, and for riders: neither person nor not."""

Target = Literal["mean", "visible", "thermal", "union"]
PERSON = "person"
LABELS = (PERSON, *IGNORED_LABELS, "person?a", "unpaired")
"""What annotation files may say. All but `person` is neither person nor background: groups, what may be one, riders,
and objects that only one of the two cameras shows."""

IMPROVED_TEST_SHA256 = "07f525a4a28ebf96b026c367d9222115896671f9512a29b441307efa4d9a525d"
"""Of KAIST_annotation.json as released with MLPD: the improved annotations (Liu et al., BMVC 2016) of test-all-20."""

DAY_SETS = (0, 1, 2, 6, 7, 8)
NIGHT_SETS = (3, 4, 5, 9, 10, 11)


@dataclass(frozen=True, order=True)
class FrameName:
    """Name of a pair of images, set06/V000/I00019 in lists and annotations; ordered as result files number them."""

    set: int
    video: int
    frame: int

    @classmethod
    def parse(cls, text: str) -> "FrameName":
        """Read a name; raise ValueError for another form or a set that KAIST does not have."""
        match = re.fullmatch(r"set(\d\d)/V(\d{3})/I(\d{5})", text)
        if match is None:
            raise ValueError(f"{text!r} is not a KAIST frame: expected a name like set06/V000/I00019")
        name = cls(*map(int, match.groups()))
        if name.set not in DAY_SETS + NIGHT_SETS:
            raise ValueError(f"{text!r} is not a KAIST frame: the sets are 00 to 11")
        return name

    def __str__(self) -> str:
        return f"set{self.set:02}/V{self.video:03}/I{self.frame:05}"

    @property
    def night(self) -> bool:
        return self.set in NIGHT_SETS


@dataclass(frozen=True)
class KaistImage:
    """An annotated pair of images. size: (width, height) px."""

    name: FrameName
    size: tuple[int, int]
    truth: KaistTruth


@dataclass(frozen=True)
class KaistAnnotations:
    """Annotated images in the order of their names, in which result files count them from 1; sha256 of the file."""

    images: tuple[KaistImage, ...]
    sha256: str

    @property
    def truth(self) -> tuple[KaistTruth, ...]:
        return tuple(image.truth for image in self.images)

    @property
    def boxes(self) -> int:
        return sum(len(image.truth.boxes) for image in self.images)


def read_test_annotations(path: Path) -> KaistAnnotations:
    """Read annotations in the COCO-like form of KAIST_annotation.json.

    images: `id`, `im_name`, `width`, `height`; their ids rise with their names. annotations: `image_id`, `bbox` (left,
    top, width, height, 1-based), `occlusion` (0, 1, 2), `ignore` (0, 1) and `category_id`, which `categories` names.
    Ignored are boxes with `ignore` 1 and all that are not in the category `person`.
    Raises ValueError, with the file and the annotation's or image's id, for whatever does not fit.
    """
    content = path.read_bytes()
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(_get(data, key), list)]
    if missing:
        raise ValueError(
            f"{path} has no list {', '.join(missing)}: expected the annotations as KAIST_annotation.json has them, "
            "not detections"
        )
    try:
        categories = {category["id"]: str(category["name"]) for category in data["categories"]}
        images = {
            image["id"]: (FrameName.parse(image["im_name"]), (int(image["width"]), int(image["height"])))
            for image in data["images"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: an image or category is not complete: {_said(error)}") from None
    names = [name for name, _ in images.values()]
    if len(images) != len(data["images"]) or len(set(names)) != len(names):
        raise ValueError(f"{path}: an image id or name is there twice")
    ids = sorted(images)
    if [images[id_][0] for id_ in ids] != sorted(names):
        raise ValueError(f"{path}: image ids do not rise with the names, so a result file's numbers could mean either")

    rows: dict[int, list[tuple[list[float], bool, int]]] = {id_: [] for id_ in ids}
    for annotation in data["annotations"]:
        try:
            rows[annotation["image_id"]].append(_object(annotation, categories))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, annotation {_get(annotation, 'id')}: {_said(error)}") from None
    return KaistAnnotations(
        tuple(
            KaistImage(
                name=images[id_][0],
                size=images[id_][1],
                truth=KaistTruth(
                    boxes=np.array([box for box, _, _ in rows[id_]], np.float64).reshape(-1, 4),
                    ignored=np.array([ignored for _, ignored, _ in rows[id_]], np.bool_),
                    occlusion=np.array([occlusion for _, _, occlusion in rows[id_]], np.int64),
                    night=images[id_][0].night,
                ),
            )
            for id_ in ids
        ),
        hashlib.sha256(content).hexdigest(),
    )


def _object(annotation: dict[str, Any], categories: dict[int, str]) -> tuple[list[float], bool, int]:
    """Return box, ignored and occlusion of one annotation."""
    box = [float(value) for value in annotation["bbox"]]
    if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise ValueError(f"bbox {annotation['bbox']} is not left, top, width, height of a box")
    occlusion, ignore = annotation["occlusion"], annotation["ignore"]
    if occlusion not in range(NO_OCCLUSION, HEAVY_OCCLUSION + 1):
        raise ValueError(f"occlusion {occlusion!r} is not 0 (none), 1 (partial) or 2 (heavy)")
    if ignore not in (0, 1):
        raise ValueError(f"ignore {ignore!r} is not 0 or 1")
    return box, bool(ignore) or categories[annotation["category_id"]] != "person", int(occlusion)


def _get(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, dict) else None


def _said(error: Exception) -> str:
    return f"{error} is missing or unknown" if isinstance(error, KeyError) else str(error)


# Text and XML files of one frame


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


def kaist_truth(annotated: Annotated, night: bool) -> KaistTruth:
    """Return the objects of a frame in the benchmark's own terms: all but `person` is ignored."""
    others = np.array([label != PERSON for label in annotated.labels], np.bool_)
    return KaistTruth(annotated.boxes, annotated.ignored | others, annotated.occlusion, night)


def corners(truth: KaistTruth) -> np.ndarray:
    """Return float64 (G, 4), xyxy px, 0-based, right and bottom exclusive, not clipped to the image.

    x = 1 with a width of 10 are the pixels 1..10 of the file and 0..9 here: 0 to 10.
    """
    left, top, width, height = truth.boxes.T
    return np.stack([left, top, left + width, top + height], axis=1) - 1


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
