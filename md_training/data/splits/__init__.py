"""Which images a run saw: published lists by name, with definition, count and SHA-256; a split is never made by a rule.

KAIST alone has gone into papers with 7,601, 8,892, 8,963, 21,622 and 25,086 training pairs: a name without a hash names
nothing. A list that carries a published name must be the published one; any other list is the user's own and goes by
its file name and hash.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from md_perception.annotations.files import DataError

RECORD = "md_lists.json"
"""File in the root of a data set that keeps the hashes of published lists whose hash is not known here."""
MAX_LIST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PublishedList:
    """A list that others use by this name.

    data_set: `kaist`, `mfnet` or `msrs`. name: the file's name without .txt. definition: what it holds, for people.
    count: names in it. sha256: of the names, each followed by line_end, as in the published file; None where that is
    not known: then the count is checked, and the hash recorded at the first check has to stay.
    """

    data_set: str
    name: str
    definition: str
    count: int
    sha256: str | None = None
    line_end: str = "\n"


PUBLISHED = (
    PublishedList(
        "kaist",
        "test-all-20",
        "every 20th frame of set06 to set11 (I00019, I00039, ..): 1,455 by day, 797 by night",
        2252,
        "3964851243559a86560774ce2eabfc9e52e40c1c7f76efc0e47a280eecbe3b6f",
        "\r\n",
    ),
    PublishedList(
        "kaist",
        "train-all-02",
        "every second frame of set00 to set05 (I00001, I00003, ..), with or without persons: 16,694 by day, 8,392 by "
        "night",
        25086,
        "3ff6a85bb60f6dd895bcfa0d2ccc4e9c3ffe35a8391a9fcb63f8a85a2d4c8d8d",
        "\r\n",
    ),
    PublishedList("kaist", "test-day-20", "the frames of test-all-20 in set06, set07 and set08", 1455),
    PublishedList("kaist", "test-night-20", "the frames of test-all-20 in set09, set10 and set11", 797),
    PublishedList(
        "kaist",
        "train-all-01-non-empty",
        "every frame of set00 to set05 with a pedestrian in the paired annotations (Zhang et al., ICCV 2019); the "
        "training set of the Modality Distillation paper",
        21622,
    ),
    PublishedList("kaist", "sanitized", "the frames re-labelled for MSDS-RCNN (Li et al., BMVC 2018)", 7601),
    PublishedList(
        "kaist", "trainval", "AR-CNN's list: every second frame with a person in the paired annotations", 8892
    ),
    PublishedList("mfnet", "train", "MFNet's training images, without the flipped copies of other releases", 784),
    PublishedList("mfnet", "val", "MFNet's validation images", 392),
    PublishedList("mfnet", "test", "MFNet's test images", 393),
    PublishedList("mfnet", "test_day", "the images of MFNet's test list whose names end in D", 205),
    PublishedList("mfnet", "test_night", "the images of MFNet's test list whose names end in N", 188),
    PublishedList(
        "msrs",
        "train",
        "199 of 259 pairs of the MSRS test split that have boxes",
        199,
        "4ff52a1f64c144b80e1318dfb3bc54481786df7f5c1700d1b984272146eab1ea",
    ),
    PublishedList(
        "msrs",
        "val",
        "the other 60 of these pairs",
        60,
        "adb1638a39615d119f0272e264f38622156f731c0b4db8ec2f36d2e7926fcf42",
    ),
)

DATA_SETS = tuple(dict.fromkeys(known.data_set for known in PUBLISHED))
"""The data sets that have published lists."""


@dataclass(frozen=True)
class Split:
    """The names of a split, in the order of its list.

    name: of the list. sha256: of the names (see PublishedList; an own list is hashed with LF line ends).
    status: `pinned`: published, its hash is the known one; `counted`: published, its hash is not known here;
    `own`: a list that nobody else names; `all`: every image there is, without a list.
    """

    name: str
    names: tuple[str, ...]
    sha256: str
    status: Literal["pinned", "counted", "own", "all"]

    def __len__(self) -> int:
        return len(self.names)

    def description(self) -> str:
        """Return one phrase for manifests and reports."""
        return f"{self.name} ({len(self)} pairs, {self.status}, SHA-256 {self.sha256})"


def hash_names(names: Sequence[str], line_end: str = "\n") -> str:
    """Return the SHA-256 of the names, each followed by line_end: `sha256sum` of a clean list file."""
    return hashlib.sha256("".join(name + line_end for name in names).encode()).hexdigest()


def published(data_set: str, name: str) -> PublishedList | None:
    """Return the published list of this name, or None."""
    return next((known for known in PUBLISHED if (known.data_set, known.name) == (data_set, name)), None)


def all_names(names: Sequence[str]) -> Split:
    """Return the split of everything that is there, in the order of the names."""
    ordered = tuple(sorted(names))
    return Split("all", ordered, hash_names(ordered), "all")


def read_names(path: Path) -> tuple[str, ...]:
    """Read a list file: one name a line, UTF-8, any line ends, with or without an image suffix; no empty list.

    Raises DataError, with file and line, for a name twice and for one that leaves the data set's folder.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes: this is no list of names")
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"the list {path} is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = _without_suffix(line.strip())
        if not name:
            continue
        if PurePosixPath(name).is_absolute() or "\\" in name or set(name.split("/")) & {"", ".", ".."}:
            raise DataError(f"{path}, line {number}: {name!r} is not a name inside the data set's folder")
        if name in seen:
            raise DataError(
                f"{path}, line {number}: {name} is already in line {seen[name]}; a split names an image once"
            )
        seen[name] = number
    if not seen:
        raise DataError(f"the list {path} is empty")
    return tuple(seen)


def read_split(path: Path, data_set: str, root: Path | None = None) -> Split:
    """Read a list; where its file has a published name, make sure that it is the published list.

    data_set: whose published names count; an empty text for none. root: of the data set, where hashes are recorded.
    Raises DataError for another count or another hash.
    """
    names = read_names(path)
    known = published(data_set, path.stem)
    if known is not None:
        return verified(names, known, str(path), root)
    for known in PUBLISHED:  # lists with everyday names, train and val, are known by their hash
        if known.name == path.stem and known.sha256 == hash_names(names, known.line_end):
            return Split(f"{known.data_set}/{known.name}", names, known.sha256, "pinned")
    return Split(path.stem, names, hash_names(names), "own")


def verified(names: Sequence[str], known: PublishedList, source: str, root: Path | None = None) -> Split:
    """Return the split of these names if they are the published list; source: for error texts; else as read_split."""
    digest = hash_names(names, known.line_end)
    if len(names) != known.count:
        raise DataError(
            f"{source} has {len(names)} names, but {known.data_set}'s {known.name} has {known.count} "
            f"({known.definition}): use the published list, or give your own another name"
        )
    expected, by = known.sha256, "published"
    if expected is None and root is not None:
        expected, by = recorded(root).get(f"{known.data_set}/{known.name}"), f"recorded in {root / RECORD}"
    if expected is not None and digest != expected:
        raise DataError(
            f"{source} has as many names as {known.data_set}'s {known.name}, but not the same ones in the same order: "
            f"SHA-256 {digest}, {by} {expected}; use the published list, or give your own another name"
        )
    return Split(known.name, tuple(names), digest, "counted" if known.sha256 is None else "pinned")


def recorded(root: Path) -> dict[str, str]:
    """Return the recorded hashes of a data set, `data set/list` to SHA-256; raise DataError for a damaged record."""
    path = root / RECORD
    try:
        content = json.loads(path.read_text())
        return {str(name): str(entry["sha256"]) for name, entry in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and check the data set again") from None


def record(root: Path, data_set: str, split: Split) -> bool:
    """Keep the hash of a list in the data set's folder, once; return False where that cannot be written to."""
    path = root / RECORD
    name = f"{data_set}/{split.name}"
    if name in recorded(root):
        return True
    content = json.loads(path.read_text()) if path.exists() else {}
    content[name] = {
        "sha256": split.sha256,
        "count": len(split),
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    unfinished = path.with_suffix(".part")
    try:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        unfinished.replace(path)
    except OSError:
        return False
    return True


def _without_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff") else name


def folds(names: Sequence[str], night: Sequence[bool], count: int) -> list[list[str]]:
    """Share out names to `count` folds for a cross-validation: of the sorted names of the day, and of those of the
    night, each fold has a block of neighbours.

    Neighbours in name are neighbours in time: they show the same persons, and must not be torn apart.
    Raises DataError where a fold would be empty.
    """
    parts: list[list[str]] = [[] for _ in range(count)]
    for dark in (False, True):
        ordered = sorted(name for name, is_dark in zip(names, night, strict=True) if is_dark == dark)
        for index, name in enumerate(ordered):
            parts[index * count // len(ordered)].append(name)
    if not all(parts):
        raise DataError(f"{len(names)} pairs cannot be shared out to {count} folds: use fewer")
    return parts
