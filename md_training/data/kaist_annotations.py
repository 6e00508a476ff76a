"""KAIST's names, list files and annotation files, as frozen types.

Boxes stay as the files have them: left, top, width, height in px, 1-based. Whoever trains on them subtracts 1.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from md_perception.metrics.miss_rate import HEAVY_OCCLUSION, NO_OCCLUSION, KaistTruth

IGNORED_LABELS = ("people", "person?", "cyclist")
"""What annotators wrote instead of `person` for groups, for what may be one, and for riders: neither person nor not."""

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
class ListFile:
    """A published list of frames, the only way in which a split is named here.

    definition: what it holds, for people. count: frames in it.
    sha256: of the file as published, with CRLF line ends; None where it is not known, then only the count is checked.
    """

    name: str
    definition: str
    count: int
    sha256: str | None


LISTS = {
    known.name: known
    for known in (
        ListFile(
            "test-all-20",
            "every 20th frame of set06 to set11 (I00019, I00039, ..): 1,455 by day, 797 by night",
            2252,
            "3964851243559a86560774ce2eabfc9e52e40c1c7f76efc0e47a280eecbe3b6f",
        ),
        ListFile(
            "train-all-02",
            "every second frame of set00 to set05 (I00001, I00003, ..), with or without persons: 16,694 by day, 8,392 "
            "by night",
            25086,
            "3ff6a85bb60f6dd895bcfa0d2ccc4e9c3ffe35a8391a9fcb63f8a85a2d4c8d8d",
        ),
    )
}


@dataclass(frozen=True)
class FrameList:
    """The frames of a list file in its order, and the SHA-256 of its names with CRLF line ends."""

    name: str
    frames: tuple[FrameName, ...]
    sha256: str


def read_list(path: Path, known: ListFile) -> FrameList:
    """Read a list file and make sure that it is the one that it is said to be.

    Line ends do not matter: the names are hashed with the CRLF ends of the published files.
    Raises ValueError, with file and line, for a name that is none or there twice, another count and another hash.
    """
    frames: dict[FrameName, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            frame = FrameName.parse(line.strip())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if frame in frames:
            raise ValueError(f"{path}, line {number}: {frame} is already in line {frames[frame]}")
        frames[frame] = number
    digest = hashlib.sha256("".join(f"{frame}\r\n" for frame in frames).encode()).hexdigest()
    if len(frames) != known.count:
        raise ValueError(
            f"{path} has {len(frames)} frames, but {known.name} has {known.count} ({known.definition}): "
            "use the published list, it is not made from a rule"
        )
    if known.sha256 is not None and digest != known.sha256:
        raise ValueError(
            f"{path} has as many frames as {known.name} but not the same ones in the same order: "
            f"SHA-256 {digest}, published {known.sha256}"
        )
    return FrameList(known.name, tuple(frames), digest)


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
