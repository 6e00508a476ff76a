"""Is a data set usable? Counts, missing, damaged and duplicated files, labels outside the class list, list hashes.

Every file of every list is read once. What makes the set unusable is a problem; what one should know is a note.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from md_perception.bags.extract import INDEX
from md_perception.files import write_whole
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.results import UInt8Image
from md_training.data.kaist import IMPROVED_FILE, KaistFolder, KaistPairs, annotation_sources
from md_training.data.mfnet import FLIPPED, MfnetFolder, MfnetPairs
from md_training.data.pairs import (
    RGB_FOLDERS,
    THERMAL_FOLDERS,
    FolderPairs,
    PairData,
    PairFolder,
    Truth,
)
from md_training.data.splits import RECORD, DataError, Split, record
from md_training.data.yolo import BOX_FOLDERS, CocoFolder, YoloFolder

Kind = Literal["auto", "kaist", "mfnet", "yolo", "coco", "pairs"]
SHOWN = 8
"""So many names of a kind of problem are printed; the JSON report has them all."""
NO_LISTS = ("classes", "night", "homography", "requirements", "license", "readme")


@dataclass(frozen=True)
class ListReport:
    """A list that was checked. there: pairs whose images can be read. status: what splits.Split says, for people.
    labels: what is annotated, and where. night: pairs taken in the dark."""

    name: str
    pairs: int
    there: int
    status: str
    sha256: str
    labels: str
    night: int


@dataclass
class Report:
    """What was found. problems: kind -> texts; any makes the set unusable. notes: texts.

    sizes: "640x512 + 640x512" (RGB + thermal) -> pairs. objects, ignored: class -> boxes. empty: pairs of a set with
    boxes that have none. masks: pairs with a mask. pixels: class -> mask pixels.
    tasks: what it can teach, for people.
    """

    root: str
    kind: str
    lists: list[ListReport] = field(default_factory=list)
    pairs: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    empty: int = 0
    masks: int = 0
    pixels: dict[str, int] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.problems

    def verdict(self) -> str:
        """Return what the set is usable for, or that it is not."""
        if not self.usable:
            return f"{self.root} is NOT usable"
        unlabelled = "distillation from a teacher's results (distillation.task_loss teacher): it has no labels"
        return f"{self.root} is usable for {' and '.join(self.tasks) or unlabelled}"

    def text(self) -> str:
        """Return the report for a terminal."""
        lines = [f"{self.root}: {self.kind}, {self.pairs} pairs"]
        for entry in self.lists:
            lines += [
                f"  list {entry.name}: {entry.pairs} pairs ({entry.night} by night), {entry.status}"
                + ("" if entry.there == entry.pairs else f"; only {entry.there} pairs can be read"),
                f"       SHA-256 {entry.sha256}, labels: {entry.labels}",
            ]
        sizes = sorted(self.sizes.items(), key=lambda entry: -entry[1])
        lines += [f"  size {size} (RGB + thermal): {count}" for size, count in sizes[:SHOWN]]
        lines += [f"  and {len(sizes) - SHOWN} other sizes"] if len(sizes) > SHOWN else []
        if self.objects or self.ignored or self.empty:
            classes = [name for name in DETECTION.classes if name in self.objects or name in self.ignored]
            lines += [
                f"  boxes of {name}: {self.objects.get(name, 0)}, and {self.ignored.get(name, 0)} ignored"
                for name in classes
            ]
            lines += [f"  pairs without a box: {self.empty}"]
        if self.masks:
            total = sum(self.pixels.values())
            shares = ", ".join(f"{name} {100 * count / total:.2f} %" for name, count in self.pixels.items())
            lines += [f"  masks: {self.masks}; {shares}"]
        for kind, texts in self.problems.items():
            lines += [f"  PROBLEM, {kind}: {len(texts)}"]
            lines += [f"    {text}" for text in texts[:SHOWN]] + (["    .."] if len(texts) > SHOWN else [])
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, self.verdict()])


@dataclass(frozen=True)
class _Pair:
    """What reading one pair gave; no image, for all pairs are held. problems: (kind, text). digests: file -> SHA-256 of
    its content. labels: (id, ignored) of each box, None where there is no truth of boxes or it cannot be read. pixels:
    int64 (256,), how often each mask value is there. mirrored: hashes of the pixels as they are and mirrored, for
    MFNet."""

    name: str
    problems: tuple[tuple[str, str], ...]
    digests: dict[str, str]
    size: str = ""
    labels: tuple[tuple[int, bool], ...] | None = None
    pixels: np.ndarray | None = None
    mirrored: tuple[str, str] | None = None


def check(
    root: Path,
    kind: Kind = "auto",
    splits: Sequence[str] = (),
    annotations: str = "auto",
    workers: int = 2,
    keep_record: bool = True,
) -> Report:
    """Read a data set from end to end.

    kind: `auto` tells it from the folders. splits: these lists only; by default every list there is. annotations: of
    KAIST; `auto` takes for each list what annotates most of it. workers: threads. keep_record: write the hashes of
    published lists that are not known here into the data set's folder, where the readers compare them from then on.
    Raises DataError where the kind cannot be told or root is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder")
    kind = tell_kind(root) if kind == "auto" else kind
    report = Report(str(root), kind)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    readers: list[PairData] = []
    for split in splits or find_splits(root, kind) or [EVERYTHING[kind]]:
        try:
            readers.append(open_pairs(root, kind, split, annotations))
        except DataError as error:
            problems["list or folder"].append(str(error))
    owner = {name: reader for reader in reversed(readers) for name in reader.split.names}
    names = sorted(owner)
    report.pairs = len(names)
    found = _read_all(lambda name: _read(owner[name], name), names, workers)
    readable = {pair.name for pair in found if pair.size}
    report.lists = [_list_report(reader, readable) for reader in readers]
    absent = _absent(readers, found)
    problems["missing"] += absent.values()
    named = {name for reader in readers if reader.split.name not in absent for name in reader.split.names}
    for pair in found:
        for what, text in pair.problems:
            if what != "missing" or pair.name in named:
                problems[what].append(text)
    _count(report, found)
    report.tasks, without = _tasks(readers, report)
    problems["labels"] += _not_annotated([reader for reader in readers if reader.split.name not in absent])
    problems["duplicates"] += _duplicates(report, found, kind) + _leaks(readers)
    report.notes += _notes(root, kind, readers, bool(splits))
    if problems["missing"] and readable and not splits:
        parts = [reader.split.name for reader in readers if reader.split.name not in absent]
        here = "available" if kind == "kaist" else " ".join(parts) if absent else ""
        report.notes += [f"to check only what is here: --split {here}"] if here else []
    if without and (report.objects or report.masks):
        report.notes.append(without)
    elif without and not any(problems.values()):  # else that is why
        problems["labels"].append(f"{without}: there is no detection to learn")
    for reader in readers if keep_record else []:
        if reader.split.status == "counted" and not record(root, kind, reader.split):
            report.notes.append(f"the hash of {reader.split.name} could not be written to {root / RECORD}")
    report.problems = {what: texts for what, texts in problems.items() if texts}
    return report


def data_command(
    command: tyro.conf.Positional[Literal["check"]],
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")],
    kind: Kind = "auto",
    split: tuple[str, ...] = (),
    annotations: str = "auto",
    workers: int = 2,
    record: bool = True,
    json_out: Path | None = None,
) -> None:
    """Check a data set: `data check ROOT` reads every file once and exits with 0 if it is usable, else with 1.

    Args:
        command: `check`.
        root: Folder of the data set, e.g. a download of KAIST or MFNet, or a folder with visible/, thermal/ and boxes/.
        kind: How it is laid out; `auto` tells it from the folders.
        split: Lists to check, without .txt; by default all there are.
        annotations: KAIST only: the file or folder below ROOT with the annotations.
        workers: Threads that read.
        record: Keep the hashes of published lists that are not known here in ROOT/md_lists.json.
        json_out: File to write the whole report to.
    """
    report = check(root, kind, split, annotations, workers, record)
    print(report.text())
    if json_out is not None:
        content = json.dumps(asdict(report) | {"usable": report.usable}, indent=2) + "\n"
        write_whole(json_out, content.encode())
    if not report.usable:
        sys.exit(1)


EVERYTHING: dict[str, str] = {"kaist": "available", "mfnet": "all", "yolo": "all", "pairs": "all", "coco": "train"}
"""Split to read where a data set of this kind has no list."""


def tell_kind(root: Path) -> Literal["kaist", "mfnet", "yolo", "coco", "pairs"]:
    """Return the kind of a data set from its folders. Raises DataError where none fits."""
    if (root / IMPROVED_FILE).is_file() or any(root.glob("set0[0-9]")) or any(root.glob("images/set0[0-9]")):
        return "kaist"
    has = {
        camera: any((root / name).is_dir() for name in names)
        for camera, names in (("rgb", RGB_FOLDERS), ("thermal", THERMAL_FOLDERS))
    }
    if has["rgb"] and has["thermal"]:
        if find_splits(root, "coco"):
            return "coco"
        return "yolo" if any((root / name).is_dir() for name in (*BOX_FOLDERS, "masks")) else "pairs"
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return "mfnet"
    raise DataError(
        f"{root} looks like no data set: KAIST has set00/ or images/set00/, MFNet images/ and labels/, others "
        f"{'/, '.join(RGB_FOLDERS)}/ and {'/, '.join(THERMAL_FOLDERS)}/ with boxes/ or annotations/*.json; name the "
        "`kind` to learn what is missing"
    )


def find_splits(root: Path, kind: str) -> list[str]:
    """Return the names of the lists (for COCO: of the JSON files) that a data set has."""
    if kind == "coco":
        beside = (path for path in root.glob("*.json") if path.name not in (RECORD, INDEX))
        files = [*root.glob("annotations/*.json"), *beside]
        return sorted(path.stem.removeprefix("instances_") for path in files)
    files = [path for folder in ("", "imageSets", "splits") for path in (root / folder).glob("*.txt")]
    return sorted({path.stem for path in files if not path.stem.lower().startswith(NO_LISTS)})


def open_pairs(root: Path, kind: str, split: str, annotations: str = "auto") -> PairData:
    """Return the reader of a split; kind as tell_kind returns it, annotations as above. Raises DataError."""
    if kind == "mfnet":
        return MfnetFolder(root, split).open()
    if kind == "yolo":
        return YoloFolder(root, split).open()
    if kind == "coco":
        return CocoFolder(root, split).open()
    if kind == "pairs":
        return PairFolder(root, split).open()
    if annotations != "auto":
        return KaistFolder(root, split, annotations).open()
    sources = annotation_sources(root)
    if not sources:
        raise DataError(f"{root} has no annotations: expected {IMPROVED_FILE} or a folder annotations*/")
    readers = [KaistFolder(root, split, source.name).open() for source in sources]
    return max(readers, key=lambda reader: len(reader.annotated & set(reader.split.names)))


def _read(reader: PairData, name: str) -> _Pair:
    """Read all files of a pair."""
    problems: list[tuple[str, str]] = []
    digests: dict[str, str] = {}
    paths = reader.files(name)
    missing = sorted({path for path in paths.values() if not path.is_file()})
    problems += [("missing", str(path)) for path in missing]
    for what in ("rgb", "thermal", "mask"):
        path = paths.get(what)
        if path is not None and path not in missing:
            with path.open("rb") as file:
                digests[what] = hashlib.file_digest(file, "sha256").hexdigest()
    if paths["rgb"] in missing or paths["thermal"] in missing:
        return _Pair(name, tuple(problems), digests)
    try:
        rgb, thermal = reader.images(name)
    except DataError as error:
        return _Pair(name, (*problems, ("damaged", str(error))), digests)
    if thermal.min() == thermal.max():
        said = f"{paths['thermal']}: every thermal pixel is {thermal[0, 0]}; was it saved by a tool that drops thermal?"
        problems.append(("damaged", said))
    if paths["rgb"] != paths["thermal"] and digests["rgb"] == digests["thermal"]:
        problems.append(("damaged", f"{paths['thermal']} is the same file as {paths['rgb']}"))
    truth: Truth | None = None
    if not missing and not (isinstance(reader, KaistPairs) and name not in reader.annotated):
        try:
            truth = reader.truth(name, (rgb.shape[1], rgb.shape[0]))
        except DataError as error:
            problems.append(("labels", str(error)))
    return _Pair(
        name,
        tuple(problems),
        digests,
        f"{rgb.shape[1]}x{rgb.shape[0]} + {thermal.shape[1]}x{thermal.shape[0]}",
        tuple(zip(truth.labels.tolist(), truth.ignored.tolist(), strict=True))
        if truth is not None and reader.detection_classes
        else None,
        None if truth is None or truth.mask is None else np.bincount(truth.mask.ravel(), minlength=256),
        (_pixel_hash(rgb), _pixel_hash(rgb[:, ::-1])) if isinstance(reader, MfnetPairs) else None,
    )


def _read_all(read: Callable[[str], _Pair], names: Sequence[str], workers: int) -> list[_Pair]:
    """Read with threads (decoding leaves the interpreter free), with a progress bar where somebody looks."""
    console = Console(stderr=True)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(
            track(
                pool.map(read, names),
                total=len(names),
                description="reading",
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
        )


def _absent(readers: Sequence[PairData], found: Sequence[_Pair]) -> dict[str, str]:
    """Return the lists of which no image is there at all, as of a part that was not downloaded, with a text each."""
    there = {pair.name for pair in found if {"rgb", "thermal"} & pair.digests.keys()}
    return {
        reader.split.name: f"all {len(reader)} pairs of the list {reader.split.name}: none of their images is there "
        f"({reader.files(reader.split.names[0])['rgb']}, ..)"
        for reader in readers
        if there.isdisjoint(reader.split.names)
    }


def _tasks(readers: Sequence[PairData], report: Report) -> tuple[list[str], str]:
    """Return what the labels can teach, and which annotated classes have no object; both for people."""
    annotated = [name for name in DETECTION.classes if any(name in reader.detection_classes for reader in readers)]
    taught = [name for name in annotated if name in report.objects]
    without = [name for name in annotated if name not in report.objects]
    tasks = [f"detection of {', '.join(taught)}"] if taught else []
    tasks += ["segmentation"] if report.masks else []
    return tasks, f"no object of {', '.join(without)} in any image" if without else ""


def _count(report: Report, found: Iterable[_Pair]) -> None:
    """Fill in sizes, boxes and mask pixels."""
    sizes: Counter[str] = Counter()
    objects: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    pixels = np.zeros(256, np.int64)
    for pair in found:
        if pair.size:
            sizes[pair.size] += 1
        for label, left_out in pair.labels or ():
            (ignored if left_out else objects)[DETECTION.classes[label]] += 1
        report.empty += pair.labels == ()
        if pair.pixels is not None:
            report.masks += 1
            pixels += pair.pixels
    report.sizes, report.objects, report.ignored = dict(sizes), dict(objects), dict(ignored)
    report.pixels = {name: int(pixels[id_]) for id_, name in enumerate(SEGMENTATION.classes)} if report.masks else {}
    if report.masks and pixels[len(SEGMENTATION) :].any():
        report.pixels["left out"] = int(pixels[len(SEGMENTATION) :].sum())
    if len(sizes) > 1:
        report.notes.append(
            "the pairs are of several sizes: a run learns from all of them, but names its student's camera and thermal "
            "sensor by the first pair of its list"
        )


def _duplicates(report: Report, found: Sequence[_Pair], kind: str) -> list[str]:
    """Return the pairs that are there twice under two names, and MFNet's mirrored copies."""
    by_content: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    cameras: dict[str, Counter[str]] = {"rgb": Counter(), "thermal": Counter()}
    for pair in found:
        if {"rgb", "thermal"} <= pair.digests.keys():
            by_content[pair.digests["rgb"], pair.digests["thermal"]].append(pair.name)
            for camera, counter in cameras.items():
                counter[pair.digests[camera]] += 1
    texts = [f"{' = '.join(names)}: the same images" for names in by_content.values() if len(names) > 1]
    if kind != "mfnet":
        for camera, counter in cameras.items():
            frozen = sum(count - 1 for count in counter.values() if count > 1)
            if frozen:
                report.notes.append(
                    f"{frozen} {camera} images have the content of another one: a camera slower than the other, or one "
                    "that stood still"
                )
    seen: dict[str, str] = {}
    for pair in found:
        if pair.mirrored is not None:
            as_is, mirrored = pair.mirrored
            if mirrored in seen and mirrored != as_is:
                texts.append(f"{pair.name} is {seen[mirrored]} mirrored: flipped copies count an image twice")
            seen[as_is] = pair.name
    return texts


def _not_annotated(readers: Sequence[PairData]) -> list[str]:
    """Return the lists of KAIST that the annotations do not cover."""
    texts = []
    for reader in readers:
        if isinstance(reader, KaistPairs):
            without = sorted(set(reader.split.names) - reader.annotated)
            if without:
                texts.append(
                    f"{len(without)} of {len(reader)} frames of {reader.split.name} are not in {reader.annotations} "
                    f"({without[0]}, ..)"
                )
    return texts


def _leaks(readers: Sequence[PairData]) -> list[str]:
    """Return the lists for training and for evaluation that share pairs."""
    texts = []
    for training in readers:
        for other in readers:
            last = other.split.name.rpartition("/")[2]
            if training.split.name.rpartition("/")[2].startswith("train") and last.startswith(("val", "test")):
                shared = sorted(set(training.split.names) & set(other.split.names))
                if shared:
                    texts.append(
                        f"{len(shared)} pairs are in {training.split.name} and in {other.split.name} ({shared[0]}, ..)"
                    )
    return texts


def _notes(root: Path, kind: str, readers: Sequence[PairData], chosen: bool) -> list[str]:
    """Return what one should know besides: images outside all lists, own lists with published names, flipped files."""
    notes = []
    listed = {name for reader in readers for name in reader.split.names}
    available: set[str] = set()
    for reader in readers[:1]:
        if isinstance(reader, FolderPairs | MfnetPairs):
            available = reader.available
    if available - listed and not chosen:
        outside = sorted(available - listed)
        notes.append(f"{len(outside)} images are in no list, or without their partner ({outside[0]}, ..)")
    flipped = [name for name in available if name.lower().endswith(FLIPPED)]
    if flipped and kind == "mfnet":
        notes.append(f"{len(flipped)} flipped copies lie in images/ ({min(flipped)}, ..): no list may name them")
    notes += [note for reader in readers for note in reader.notes]
    return notes


def _list_report(reader: PairData, readable: set[str]) -> ListReport:
    split: Split = reader.split
    labels = [*reader.detection_classes, *(("masks",) if reader.segmentation_classes else ())]
    source = f" from {reader.annotations.name}" if isinstance(reader, KaistPairs) else ""
    return ListReport(
        name=split.name,
        pairs=len(split),
        there=sum(name in readable for name in split.names),
        status={
            "pinned": "the published list",
            "counted": "the published list by its count; its hash is not known here",
            "own": "a list of your own",
            "all": "everything there is",
        }[split.status],
        sha256=split.sha256,
        labels=(", ".join(labels) or "none") + source,
        night=sum(reader.night(name) for name in split.names),
    )


def _pixel_hash(pixels: UInt8Image) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
