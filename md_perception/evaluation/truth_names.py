"""Where the truth of a bag is, and to which frames the entries of its files belong: by their names, or by an index."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from md_perception.annotations.files import MAX_JSON_BYTES, DataError, read_text
from md_perception.bags.read import Bag
from md_perception.bags.results import CameraTopics

Kind = Literal["auto", "kaist", "coco", "yolo", "masks"]
Match = Literal["auto", "stamp", "number", "order"]
Counting = Literal["plain", "kaist"]

EXTRACT_INDEX = "md_index.json"


class TruthError(DataError):
    """Ground truth cannot be used with this bag; the text names the place, the cause and the cure."""


@dataclass(frozen=True)
class TruthSpec:
    """Where the truth of a bag is and how it finds its frames.

    path: annotation file or folder; None: topics of the bag. kind: of the path; `auto` looks at it.
    masks: folder of mask PNGs, beside boxes of the path or of the bag.
    detections_topic (vision_msgs/Detection2DArray), mask_topic (mono8): None: those of a scene bag where they are
    there; an empty text: none. rgb_topic: whose images are counted for `order`; None: the usual ones.
    match: how entries of files find their frame. `stamp`: the name ends in the stamp of the RGB image, in ns or as
    seconds.nanoseconds, or `index` says it; `number`: the name ends in the frame index; `order`: entry i in natural
    order of names is frame i; `auto`: by `index` or an md_index.json beside the files; else stamps, if all names end in
    18 or 19 digits or in seconds.nanoseconds; else order, if there are as many entries as RGB images in the bag.
    index: md_index.json of `md_bag extract`, or a text file with a line `name stamp_ns` (for `number`: `name index`).
    rename: from the classes of the truth to those of labels.DETECTION, `ignore` or `background`.
    """

    path: Path | None = None
    kind: Kind = "auto"
    masks: Path | None = None
    detections_topic: str | None = None
    mask_topic: str | None = None
    rgb_topic: str | None = None
    match: Match = "auto"
    index: Path | None = None
    rename: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_asked_for(self) -> bool:
        """Whether there has to be one; otherwise the usual topics are read where they are there."""
        return bool(self.path or self.masks or self.detections_topic or self.mask_topic)


def match_names(names: Sequence[str], bag: Bag, spec: TruthSpec, place: Path) -> tuple[Match, dict[str, int]]:
    """Return `stamp` or `number`, and the stamp, ns, or frame index of each name that has one.

    names: in natural order. place: where they are from. Raises TruthError where a name says nothing, or it would have
    to be guessed.
    """
    index = spec.index
    if index is None and spec.match in ("auto", "stamp"):
        folders = [place, *list(place.parents)[:2]]
        index = next((folder / EXTRACT_INDEX for folder in folders if (folder / EXTRACT_INDEX).is_file()), None)
    if index is not None:
        listed = _read_index(index)
        numbers = {name: listed[key] for name in names for key in (name, PurePosixPath(name).name) if key in listed}
        if not numbers:
            raise TruthError(f"{index} names none of the entries of {place}, e.g. {names[0]}: is it of another set?")
        return ("number" if spec.match == "number" else "stamp"), numbers
    if spec.match == "number":
        return "number", _numbers(names, _frame_number, "the number of its frame, e.g. frame_000012", place)
    stamps = {name: _stamp(name, any_digits=spec.match == "stamp") for name in names}
    if spec.match == "stamp" or (spec.match == "auto" and all(stamp is not None for stamp in stamps.values())):
        return "stamp", _numbers(names, stamps.get, "the stamp of its RGB image, e.g. 1700000000033333333", place)
    usual = CameraTopics().rgb
    topics = [spec.rgb_topic] if spec.rgb_topic else [usual, f"{usual}/compressed"]
    images = next((bag.topics[topic].count for topic in topics if topic in bag.topics), 0)
    if spec.match == "auto" and len(names) != images:
        raise TruthError(
            f"{place} has {len(names)} entries, e.g. {names[0]}, the bag {images} RGB images: which belongs to which? "
            "Name a file with lines `name stamp_ns` (--truth-index), or say that names end in the frame index from 0 "
            "(--truth-match number) or are in the order of the images (--truth-match order)"
        )
    return "number", {name: number for number, name in enumerate(names)}


def _read_index(path: Path) -> dict[str, int]:
    """Return stamp or number by name. Raises TruthError."""
    text = read_text(path, MAX_JSON_BYTES)
    try:
        if path.suffix == ".json":
            return {str(pair["name"]): int(pair["rgb_stamp_ns"]) for pair in json.loads(text)["pairs"]}
        rows = [re.split(r"[\s,;]+", line.strip()) for line in text.splitlines() if line.strip()]
        return {_SUFFIX.sub("", name): int(number) for name, number in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise TruthError(
            f"{path} is no index: expected the {EXTRACT_INDEX} of `md_bag extract`, or lines `name stamp_ns` "
            f"({error!r})"
        ) from None


_SUFFIX = re.compile(r"\.(txt|xml|png|jpe?g|bmp|tiff?)$", re.IGNORECASE)


def _stamp(name: str, any_digits: bool) -> int | None:
    """Return the stamp, ns, that a name ends in."""
    split = re.search(r"(?<!\d)(\d{9,10})[._](\d{9})$", name)
    if split:
        return int(split[1]) * 1_000_000_000 + int(split[2])
    whole = re.search(r"(\d+)$" if any_digits else r"(?<!\d)(\d{18,19})$", name)
    return int(whole[1]) if whole else None


def _frame_number(name: str) -> int | None:
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


def _numbers(
    names: Sequence[str], number_of: Callable[[str], int | None], expected: str, place: Path
) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for name in names:
        number = number_of(name)
        if number is None:
            raise TruthError(f"{place}: the name {name!r} does not end in {expected}")
        numbers[name] = number
    return numbers


def inverted(numbers: Mapping[str, int], place: Path) -> dict[int, str]:
    """Return the names by stamp or frame index. Raises TruthError where two names have the same."""
    names: dict[int, str] = {}
    for name, number in numbers.items():
        if number in names:
            raise TruthError(f"{place}: {names[number]} and {name} belong to the same frame ({number})")
        names[number] = name
    return names
