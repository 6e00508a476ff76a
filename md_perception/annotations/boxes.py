"""Boxes in files: YOLO text and COCO JSON, and what the class names of others are here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from md_perception.annotations.files import MAX_JSON_BYTES, DataError, read_text
from md_perception.labels import DETECTION
from md_perception.results import Float32Array, Int64Array

IGNORE, BACKGROUND = "ignore", "background"
"""What a class of a data set can be renamed to besides a class of labels.DETECTION: regions that are left out, of
training as of evaluation, and nothing at all."""
IGNORE_ID, BACKGROUND_ID = -1, -2


def class_ids(names: Sequence[str], rename: Mapping[str, str], source: Path | str) -> dict[str, int]:
    """Return class name in the data set -> id of labels.DETECTION, IGNORE_ID or BACKGROUND_ID.

    rename: from a class of the set to one of labels.DETECTION, `ignore` or `background`; the others keep their names.
    Raises DataError for a class that is neither in the class list nor renamed.
    """
    ids = {
        **{name: index for index, name in enumerate(DETECTION.classes)},
        IGNORE: IGNORE_ID,
        BACKGROUND: BACKGROUND_ID,
    }
    unknown = sorted({rename.get(name, name) for name in names} - ids.keys())
    if unknown or rename.keys() - set(names):
        raise DataError(
            f"{source} has the classes {', '.join(names)}; after `rename` {dict(rename) or '(empty)'} each has to "
            f"be one of {', '.join(ids)}"
            + (f", which {', '.join(unknown)} is not" if unknown else ", and every renamed class has to be there")
        )
    return {name: ids[rename.get(name, name)] for name in names}


def placed(boxes: np.ndarray, ids: Int64Array, size: tuple[int, int]) -> tuple[Float32Array, np.ndarray]:
    """Return the boxes clipped to the image, and bool (N,), which objects are in it and no background.

    boxes: (N, 4), xyxy px. ids: as class_ids gives them. size: (width, height) px.
    """
    boxes = boxes.reshape(-1, 4).clip(0, [*size, *size]).astype(np.float32)
    return boxes, (ids != BACKGROUND_ID) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def yolo_classes(path: Path) -> tuple[str, ...]:
    """Return the class names in a classes.txt, those of labels.DETECTION where it is not there. Raises DataError."""
    if not path.is_file():
        return DETECTION.classes
    classes = tuple(line.strip() for line in read_text(path).split("\n") if line.strip())
    if len(set(classes)) != len(classes):
        raise DataError(f"{path} names a class twice: {', '.join(classes)}")
    return classes


def yolo_boxes(relative: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return float64 (N, 4), xyxy px, of boxes relative to an image of (width, height) px (read_yolo)."""
    centre, extent = relative[:, :2] * size, relative[:, 2:] * size
    return np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)


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
