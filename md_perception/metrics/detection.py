"""Average precision of boxes by COCO's rules, computed by faster-coco-eval.

The rules: a detection matches the free object of its class that it overlaps most, at IoU thresholds .50:.05:.95 (AP) or
.50 (AP50); precision is interpolated at 101 recalls; at most 100 detections per image, highest scores first. Ignored
objects need not be found, and a detection that lies in one (intersection over the detection's own area) is left out.
A class without a counted object has no AP (None) and stays out of the mean. Which images go in (all, day, night) is
the caller's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from md_perception.labels import DETECTION, ClassList
from md_perception.metrics.boxes import areas, intersections, overlaps
from md_perception.results import Detections, Float32Array, Int64Array

MAX_DETECTIONS = 100


@dataclass(frozen=True)
class TruthBoxes:
    """Objects of one image. boxes: float32 (N, 4), xyxy px. labels: int64 (N,). ignored: bool (N,)."""

    boxes: Float32Array
    labels: Int64Array
    ignored: np.ndarray


@dataclass(frozen=True)
class AveragePrecision:
    """Class name to AP and AP50, 0..1, or None without objects; objects and ignored: how many entered."""

    ap: dict[str, float | None]
    ap50: dict[str, float | None]
    objects: dict[str, int]
    ignored: dict[str, int]
    images: int

    @property
    def mean_ap(self) -> float | None:
        return _mean(self.ap)

    @property
    def mean_ap50(self) -> float | None:
        return _mean(self.ap50)

    def table(self) -> str:
        """Return the scores as text, with the numbers of images and objects."""

        def show(value: float | None) -> str:
            return "  none" if value is None else f"{value:.4f}"

        lines = [f"AP {show(self.mean_ap)}  AP50 {show(self.mean_ap50)}  ({self.images} images)"]
        for name in self.ap:
            lines.append(
                f"  {name:<8} AP {show(self.ap[name])}  AP50 {show(self.ap50[name])}"
                f"  ({self.objects[name]} objects, {self.ignored[name]} ignored)"
            )
        return "\n".join(lines)


def average_precision(
    truth: Sequence[TruthBoxes], detections: Sequence[Detections], classes: ClassList = DETECTION
) -> AveragePrecision:
    """Compare the detections of some images with their truth; both in the same order, boxes in the same pixels."""
    # Imported here: the evaluator is needed where metrics are computed, not wherever this module's types are.
    from faster_coco_eval import COCO, COCOeval_faster

    if len(truth) != len(detections):
        raise ValueError(f"{len(truth)} images have truth but {len(detections)} have detections")
    annotations: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for image_id, (objects, found) in enumerate(zip(truth, detections, strict=True), start=1):
        for box, label, ignored in zip(objects.boxes, objects.labels, objects.ignored, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": _xywh(box),
                    "area": float((box[2] - box[0]) * (box[3] - box[1])),
                    "iscrowd": int(ignored),
                }
            )
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": _xywh(box),
                    "score": float(score),
                }
            )
    counted, left_out = (dict.fromkeys(classes.classes, 0) for _ in range(2))
    for objects in truth:
        for label, ignored in zip(objects.labels, objects.ignored, strict=True):
            (left_out if ignored else counted)[classes.classes[label]] += 1
    # The evaluator wants at least one detection; without any, precision is 0 wherever there are objects.
    if not results:
        nothing = {name: 0.0 if counted[name] else None for name in classes.classes}
        return AveragePrecision(nothing, dict(nothing), counted, left_out, len(truth))

    coco_truth = COCO(
        {
            "images": [{"id": index + 1} for index in range(len(truth))],
            "annotations": annotations,
            "categories": [{"id": index + 1, "name": name} for index, name in enumerate(classes.classes)],
        }
    )
    evaluator = COCOeval_faster(coco_truth, coco_truth.loadRes(results), iouType="bbox")
    evaluator.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU thresholds, recalls, classes; all areas, most boxes
    ap, ap50 = {}, {}
    for index, name in enumerate(classes.classes):
        ap[name] = float(precision[:, :, index].mean()) if counted[name] else None
        ap50[name] = float(precision[0, :, index].mean()) if counted[name] else None
    return AveragePrecision(ap, ap50, counted, left_out, len(truth))


def confusion_table(
    truth: Sequence[TruthBoxes], detections: Sequence[Detections], least_score: float, classes: ClassList = DETECTION
) -> Int64Array:
    """Return int64 (K + 1, K + 1): rows are the classes of objects, columns those of detections from a score on.

    Highest scores first, a detection takes the free counted object of its class that it overlaps most, at least by
    0.5. A detection that finds none, and does not lie in an ignored object of its class (half of its area), then takes
    the free object of another class in the same way: a confusion. The last row counts the detections that find nothing,
    the last column the objects that nothing finds.
    """
    size = len(classes)
    table = np.zeros((size + 1, size + 1), np.int64)
    for objects, image in zip(truth, detections, strict=True):
        found = image.above(least_score)
        boxes, labels = objects.boxes[~objects.ignored], objects.labels[~objects.ignored]
        shared = overlaps(found.boxes, boxes)
        regions = objects.labels[objects.ignored] == found.labels[:, None]
        inside = intersections(found.boxes, objects.boxes[objects.ignored]) >= 0.5 * areas(found.boxes)[:, None]
        left_out = (regions & inside).any(axis=1)
        free = np.ones(len(boxes), np.bool_)
        open_ = list(np.argsort(-found.scores, kind="stable"))
        for same_class in (True, False):
            for detection in tuple(open_):
                label = found.labels[detection]
                allowed = free & (labels == label) if same_class else free
                candidates = np.where(allowed, shared[detection], 0.0)
                if len(candidates) and candidates.max() >= 0.5:
                    best = len(candidates) - 1 - int(candidates[::-1].argmax())  # of equal overlaps the later object
                    free[best] = False
                    table[labels[best], label] += 1
                    open_.remove(detection)
                elif same_class and left_out[detection]:
                    open_.remove(detection)
        for detection in open_:
            table[size, found.labels[detection]] += 1
        for label in labels[free]:
            table[label, size] += 1
    return table


def _mean(values: dict[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else None


def _xywh(box: Float32Array) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
