"""RGB-thermal folders with boxes as YOLO text or COCO JSON, and optional mask images: MSRS and a user's own drives.

ROOT/visible/NAME.jpg       or rgb/, vi/, images/; any of annotations.files.IMAGE_SUFFIXES
ROOT/thermal/NAME.jpg       or lwir/, infrared/, ir/; its own resolution is fine
ROOT/boxes/NAME.txt         or labels/: YOLO text, one object a line, `class centre_x centre_y width height`, relative
                            to the image; an empty file for an image without objects. A set with masks needs no boxes
ROOT/annotations/SPLIT.json instead of boxes/: COCO instances, `file_name` below visible/
ROOT/masks/NAME.png         optional: class ids of labels.SEGMENTATION (255: leave out), or its palette's colours
ROOT/classes.txt            optional: the class names of the YOLO numbers, one a line; else those of labels.DETECTION.
                            `ignore` names regions that are left out of the loss
ROOT/train.txt, val.txt     lists of names (YOLO)
ROOT/night.txt, ROOT/homography.txt   optional, see pairs.FolderPairs
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from md_perception.annotations.boxes import IGNORE_ID, class_ids, placed, read_coco, read_yolo, yolo_boxes, yolo_classes
from md_perception.annotations.files import DataError
from md_perception.annotations.masks import read_mask
from md_perception.labels import DETECTION, SEGMENTATION
from md_training.data.pairs import NATIVE, Degradation, FolderPairs, Truth, find_folder
from md_training.data.splits import Split, hash_names

BOX_FOLDERS = ("boxes", "labels")


@dataclass(frozen=True)
class YoloFolder:
    """Pairs with YOLO text.

    root: see the module. split: a list's name without .txt, or `all`. published: data set whose published lists have to
    be met (`msrs`), or empty. rename: from the set's class names to those of labels.DETECTION, to `ignore` (left out of
    the loss) or to `background`; what is not named keeps its name. minimum_height_px: lower objects are ignored. masks:
    folder of the mask images below root; it need not be there, and a pair need not have one.
    """

    root: Path
    split: str = "train"
    published: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    minimum_height_px: float = 0.0
    masks: str = "masks"
    degradation: Degradation = NATIVE

    def open(self, names: Sequence[str] | None = None) -> "YoloPairs":
        """Find the files; names: these pairs instead of a list's (a fold of a cross-validation). Raises DataError."""
        return YoloPairs(self, names)


@dataclass(frozen=True)
class CocoFolder:
    """Pairs with COCO JSON; split: NAME of annotations/NAME.json, annotations/instances_NAME.json or NAME.json.

    The rest as in YoloFolder; `iscrowd` and `ignore` objects are ignored.
    """

    root: Path
    split: str = "train"
    rename: Mapping[str, str] = field(default_factory=dict)
    minimum_height_px: float = 0.0
    masks: str = "masks"
    degradation: Degradation = NATIVE

    def open(self) -> "CocoPairs":
        """Find the files and read the annotations. Raises DataError."""
        return CocoPairs(self)


class _BoxPairs(FolderPairs):
    """What YOLO and COCO folders share: masks, and classes by name."""

    def __init__(
        self, settings: YoloFolder | CocoFolder, split: str, published: str, names: Sequence[str] | None
    ) -> None:
        super().__init__(settings.root, split, settings.degradation, published, names)
        self._rename = dict(settings.rename)
        self._minimum_height_px = settings.minimum_height_px
        self._masks = settings.root / settings.masks
        if self._masks.is_dir():
            self.segmentation_classes = SEGMENTATION.classes

    def files(self, name: str) -> dict[str, Path]:
        """Masks are optional: they are named only where there is one."""
        mask = self._masks / f"{name}.png"
        return super().files(name) | ({"mask": mask} if mask.is_file() else {})

    def _truth(
        self, name: str, boxes: np.ndarray, ids: np.ndarray, ignored: np.ndarray, size: tuple[int, int]
    ) -> Truth:
        """Clip the boxes (xyxy px), apply `ignore`, `background` and the least height, and add the mask."""
        boxes, there = placed(boxes, ids, size)
        ignored = ignored | (ids == IGNORE_ID) | (boxes[:, 3] - boxes[:, 1] < self._minimum_height_px)
        mask = self.files(name).get("mask")
        return Truth(
            boxes=boxes[there],
            labels=ids[there].clip(min=0),
            ignored=ignored[there],
            mask=None if mask is None else read_mask(mask, size),
        )


class YoloPairs(_BoxPairs):
    """See YoloFolder."""

    def __init__(self, settings: YoloFolder, names: Sequence[str] | None = None) -> None:
        super().__init__(settings, settings.split, settings.published, names)
        # A set with masks alone teaches segmentation.
        self._boxes: Path | None = None
        if not self.segmentation_classes or any((settings.root / name).is_dir() for name in BOX_FOLDERS):
            self._boxes = find_folder(settings.root, BOX_FOLDERS, "the boxes")
        listed = settings.root / "classes.txt"
        classes = yolo_classes(listed)
        self.class_names = classes
        self._ids = np.array(list(class_ids(classes, self._rename, listed).values()), np.int64)
        if self._boxes is not None:
            known = sorted(set(self._ids.tolist()))
            self.detection_classes = tuple(DETECTION.classes[id_] for id_ in known if id_ >= 0)

    def files(self, name: str) -> dict[str, Path]:
        boxes = {} if self._boxes is None else {"boxes": self._boxes / f"{name}.txt"}
        return super().files(name) | boxes

    def truth(self, name: str, size: tuple[int, int]) -> Truth:
        path = self.files(name).get("boxes")
        if path is None:
            return self._truth(name, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.bool_), size)
        numbers, relative = read_yolo(path, len(self.class_names))
        return self._truth(name, yolo_boxes(relative, size), self._ids[numbers], np.zeros(len(numbers), np.bool_), size)


class CocoPairs(_BoxPairs):
    """See CocoFolder."""

    def __init__(self, settings: CocoFolder) -> None:
        path = find_json(settings.root, settings.split)
        self._path = path
        self._images = read_coco(path)
        names = tuple(self._images)
        super().__init__(settings, "all", "", names)
        self.split = Split(settings.split, names, hash_names(names), "own")
        found = dict.fromkeys(category for image in self._images.values() for category in image.categories)
        self._ids = class_ids(tuple(found), self._rename, path)
        self.detection_classes = tuple(DETECTION.classes[id_] for id_ in sorted(set(self._ids.values())) if id_ >= 0)

    def files(self, name: str) -> dict[str, Path]:
        return super().files(name) | {"boxes": self._path}

    def truth(self, name: str, size: tuple[int, int]) -> Truth:
        image = self._images[name]
        if image.size != size:
            raise DataError(
                f"{self._path}: {name} is {image.size[0]}x{image.size[1]} there, but its RGB image is "
                f"{size[0]}x{size[1]}: boxes and images are not of the same export"
            )
        boxes = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], axis=1)
        ids = np.array([self._ids[category] for category in image.objects], np.int64)
        return self._truth(name, boxes, ids, image.ignored, size)


def find_json(root: Path, split: str) -> Path:
    """Return the COCO file of a split. Raises DataError where there is none."""
    places = [
        root / place for place in (f"annotations/{split}.json", f"annotations/instances_{split}.json", f"{split}.json")
    ]
    for path in places:
        if path.is_file():
            return path
    raise DataError(f"{root} has no COCO annotations {split!r}: {' nor '.join(map(str, places))} is there")
