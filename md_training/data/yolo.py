"""RGB-thermal folders with boxes as YOLO text or COCO JSON, and optional mask images: MSRS and a user's own drives.

ROOT/visible/NAME.jpg       or rgb/, vi/, images/; any of pairs.IMAGE_SUFFIXES
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

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from md_perception.labels import DETECTION, SEGMENTATION
from md_training.data.pairs import NATIVE, Degradation, FolderPairs, Truth, find_folder, read_mask
from md_training.data.splits import DataError, Split, hash_names

BOX_FOLDERS = ("boxes", "labels")
IGNORE, BACKGROUND = "ignore", "background"
"""What a class of a data set can be renamed to besides a class of labels.DETECTION: regions that are left out of the
loss, and nothing at all."""
MAX_TEXT_BYTES = 2**20
MAX_JSON_BYTES = 2**30


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

    def _classes(self, names: Sequence[str], source: Path) -> dict[str, int]:
        """Return class name in the data set -> id of labels.DETECTION, -1 for ignore, -2 for background.

        Raises DataError for a class that is neither in the class list nor renamed.
        """
        ids = {
            **{name: index for index, name in enumerate(DETECTION.classes)},
            IGNORE: _IGNORE,
            BACKGROUND: _BACKGROUND,
        }
        unknown = sorted({self._rename.get(name, name) for name in names} - ids.keys())
        if unknown or self._rename.keys() - set(names):
            raise DataError(
                f"{source} has the classes {', '.join(names)}; after `rename` {self._rename or '(empty)'} each has to "
                f"be one of {', '.join(ids)}"
                + (f", which {', '.join(unknown)} is not" if unknown else ", and every renamed class has to be there")
            )
        return {name: ids[self._rename.get(name, name)] for name in names}

    def _truth(
        self, name: str, boxes: np.ndarray, ids: np.ndarray, ignored: np.ndarray, size: tuple[int, int]
    ) -> Truth:
        """Clip the boxes (xyxy px), apply `ignore`, `background` and the least height, and add the mask."""
        boxes = boxes.reshape(-1, 4).clip(0, [*size, *size]).astype(np.float32)
        ignored = ignored | (ids == _IGNORE) | (boxes[:, 3] - boxes[:, 1] < self._minimum_height_px)
        keep = (ids != _BACKGROUND) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        mask = self.files(name).get("mask")
        return Truth(
            boxes=boxes[keep],
            labels=ids[keep].clip(min=0),
            ignored=ignored[keep],
            mask=None if mask is None else read_mask(mask, size),
        )


_IGNORE, _BACKGROUND = -1, -2


class YoloPairs(_BoxPairs):
    """See YoloFolder."""

    def __init__(self, settings: YoloFolder, names: Sequence[str] | None = None) -> None:
        super().__init__(settings, settings.split, settings.published, names)
        # A set with masks alone teaches segmentation.
        self._boxes: Path | None = None
        if not self.segmentation_classes or any((settings.root / name).is_dir() for name in BOX_FOLDERS):
            self._boxes = find_folder(settings.root, BOX_FOLDERS, "the boxes")
        listed = settings.root / "classes.txt"
        classes = tuple(read_text(listed).split("\n")) if listed.is_file() else DETECTION.classes
        classes = tuple(line.strip() for line in classes if line.strip())
        if len(set(classes)) != len(classes):
            raise DataError(f"{listed} names a class twice: {', '.join(classes)}")
        self.class_names = classes
        self._ids = np.array(list(self._classes(classes, listed).values()), np.int64)
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
        centre, extent = relative[:, :2] * size, relative[:, 2:] * size
        boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
        return self._truth(name, boxes, self._ids[numbers], np.zeros(len(numbers), np.bool_), size)


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
        self._ids = self._classes(tuple(found), path)
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


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO file. size: (width, height) px. boxes: float64 (N, 4), left, top, width, height px, 0-based.
    objects: class name of each. ignored: bool (N,). categories: all class names of the file.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    objects: tuple[str, ...]
    ignored: np.ndarray
    categories: tuple[str, ...]


def find_json(root: Path, split: str) -> Path:
    """Return the COCO file of a split. Raises DataError where there is none."""
    places = [
        root / place for place in (f"annotations/{split}.json", f"annotations/instances_{split}.json", f"{split}.json")
    ]
    for path in places:
        if path.is_file():
            return path
    raise DataError(f"{root} has no COCO annotations {split!r}: {' nor '.join(map(str, places))} is there")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Return a text file. Raises DataError where it is not there, larger than the limit, or no UTF-8."""
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path} has {path.stat().st_size} bytes, more than the {limit} that are read")
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} is not there: an image without objects has an empty file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def read_yolo(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 (N,), class numbers 0..classes-1, and float64 (N, 4), centre x and y, width, height in 0..1.

    Raises DataError, with file and line, for whatever else a line holds.
    """
    numbers, boxes = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = [float(text) for text in line.split()]
        except ValueError:
            raise DataError(f"{where}: {line.strip()!r} holds something that is no number") from None
        if len(values) != 5:
            raise DataError(
                f"{where} has {len(values)} numbers, expected 5 (class, centre x and y, width, height): polygons and "
                "scores are not read"
            )
        if values[0] not in range(classes):
            raise DataError(
                f"{where}: class {values[0]:g} is outside 0..{classes - 1}: name all classes of the set in "
                "classes.txt, one a line in the order of their numbers"
            )
        # Half a per mille beyond the border is rounding; centres beyond it are pixels.
        if not all(-5e-4 <= value <= 1 + 5e-4 for value in values[1:]) or min(values[3:]) <= 0:
            raise DataError(
                f"{where}: {line.strip()!r} is no box relative to the image: centre within 0..1, width and height "
                "above 0 and up to 1"
            )
        numbers.append(int(values[0]))
        boxes.append(values[1:])
    return np.array(numbers, np.int64), np.array(boxes, np.float64).reshape(-1, 4)


def read_coco(path: Path) -> dict[str, CocoImage]:
    """Return the images of a COCO file by name (file_name without suffix), in the order of the file.

    Raises DataError, with the id, for whatever does not fit.
    """
    try:
        data = json.loads(read_text(path, MAX_JSON_BYTES))
        images, annotations, categories = (list(data[key]) for key in ("images", "annotations", "categories"))
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no COCO file with images, annotations and categories: {error}") from None
    names: dict[Any, str] = {}
    taken: set[str] = set()
    sizes: dict[Any, tuple[int, int]] = {}
    for image in images:
        try:
            id_, file, size = (
                image["id"],
                PurePosixPath(image["file_name"]),
                (int(image["width"]), int(image["height"])),
            )
            name = file.with_suffix("").as_posix()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: an image has no proper id, file_name, width and height: {error!r}") from None
        if id_ in names or name in taken:
            raise DataError(f"{path}: image {id_}, {name}, is there twice")
        if file.is_absolute() or ".." in file.parts:
            raise DataError(f"{path}: image {id_} is outside the data set's folder: {file}")
        names[id_], sizes[id_] = name, size
        taken.add(name)
    try:
        classes = {category["id"]: str(category["name"]) for category in categories}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: a category has no id and name: {error!r}") from None

    objects: dict[Any, list[tuple[list[float], str, bool]]] = {id_: [] for id_ in names}
    for annotation in annotations:
        try:
            box = [float(value) for value in annotation["bbox"]]
            if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
                raise ValueError(f"bbox {annotation['bbox']} is not left, top, width, height of a box")
            left_out = bool(annotation.get("iscrowd", 0)) or bool(annotation.get("ignore", 0))
            objects[annotation["image_id"]].append((box, classes[annotation["category_id"]], left_out))
        except (KeyError, TypeError, ValueError) as error:
            id_ = annotation.get("id") if isinstance(annotation, dict) else annotation
            said = f"{error} is missing or unknown" if isinstance(error, KeyError) else error
            raise DataError(f"{path}, annotation {id_}: {said}") from None
    return {
        names[id_]: CocoImage(
            size=sizes[id_],
            boxes=np.array([box for box, _, _ in found], np.float64).reshape(-1, 4),
            objects=tuple(category for _, category, _ in found),
            ignored=np.array([left_out for _, _, left_out in found], np.bool_),
            categories=tuple(classes.values()),
        )
        for id_, found in objects.items()
    }
