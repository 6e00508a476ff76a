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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from md_perception.annotations.files import DataError
from md_perception.annotations.kaist import (
    PERSON,
    FrameName,
    Target,
    corners,
    kaist_truth,
    merged,
    read_annotation,
    read_test_annotations,
)
from md_perception.labels import DETECTION
from md_perception.metrics.miss_rate import (
    NO_OCCLUSION,
    PARTIAL_OCCLUSION,
    KaistTruth,
    Setting,
)
from md_perception.results import UInt8Image
from md_training.data.pairs import NATIVE, Degradation, PairData, Truth, find_list, read_rgb, read_thermal
from md_training.data.splits import Split, all_names, published, read_split, verified

NON_EMPTY = "train-all-01-non-empty"
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
        return kaist_truth(annotated, frame.night)

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
    boxes = corners(truth).clip(0, [*size, *size]).astype(np.float32)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Truth(
        boxes=boxes[keep],
        labels=np.full(int(keep.sum()), DETECTION.id_of(PERSON), np.int64),
        ignored=ignored[keep],
    )


def _paired_file(name: str, camera: str) -> str:
    """Return where the paired annotations keep a frame's objects in one camera."""
    set_, video, frame = name.split("/")
    return f"{set_}/{video}/{camera}/{frame}.txt"
