"""Segmentation scores from one confusion matrix: mAcc9 (the paper's), mAcc8, mIoU9 and per class.

A class that the ground truth never shows has accuracy 0/0; by RTFNet's evaluator, which the paper's tables follow,
it counts as 0 ("NaN as 0"). Scores of a subset (day, night) are therefore lower than of the whole when a class is
missing from it.
"""

from dataclasses import dataclass, field

import numpy as np

from md_perception.labels import SEGMENTATION, UNLABELED_ID, ClassList
from md_perception.results import UInt8Image

NAN_RULE = "a class without truth (accuracy) or without truth and prediction (IoU) counts as 0"


@dataclass
class Confusion:
    """Counts of pixels, int64 (K, K): rows are the truth, columns the prediction."""

    classes: ClassList = SEGMENTATION
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def add(self, truth: UInt8Image, prediction: UInt8Image) -> None:
        """Count one image. truth, prediction: uint8 (H, W), class ids; truth 255 (UNLABELED_ID) is left out.

        Raises ValueError where the shapes differ or an id is not in the class list.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} are not of one size")
        size = len(self.classes)
        pairs = truth.astype(np.uint16) << 8 | prediction
        counts = np.bincount(pairs.reshape(-1), minlength=1 << 16).reshape(256, 256)[:UNLABELED_ID]
        for what, axis in (("truth", 1), ("prediction", 0)):
            highest = int(np.flatnonzero(counts.sum(axis=axis)).max(initial=0))
            if highest >= size:
                raise ValueError(f"the {what} has class id {highest}; {self.classes.name} ends at {size - 1}")
        self.counts += counts[:size, :size]

    def scores(self) -> "SegmentationScores":
        hits = np.diag(self.counts).astype(np.float64)
        truth, prediction = self.counts.sum(axis=1), self.counts.sum(axis=0)
        accuracy = hits / np.maximum(truth, 1)  # hits is 0 where the denominator would be 0: NaN as 0
        iou = hits / np.maximum(truth + prediction - hits, 1)
        return SegmentationScores(
            self.classes.classes, tuple(map(float, accuracy)), tuple(map(float, iou)), int(truth.sum())
        )


@dataclass(frozen=True)
class SegmentationScores:
    """Per class, in id order, 0..1. accuracy: hits / truth (recall). iou: hits / (truth + prediction - hits)."""

    classes: tuple[str, ...]
    accuracy: tuple[float, ...]
    iou: tuple[float, ...]
    pixels: int

    @property
    def macc9(self) -> float:
        """Mean accuracy over all classes, 0 (unlabelled) included: the paper's mAcc."""
        return float(np.mean(self.accuracy))

    @property
    def macc8(self) -> float:
        """Mean accuracy without class 0."""
        return float(np.mean(self.accuracy[1:]))

    @property
    def miou9(self) -> float:
        """Mean IoU over all classes, 0 included."""
        return float(np.mean(self.iou))

    def table(self) -> str:
        """Return the scores as text, with the class list and the rule for missing classes."""
        lines = [f"mAcc9 {self.macc9:.4f}  mAcc8 {self.macc8:.4f}  mIoU9 {self.miou9:.4f}  ({self.pixels} pixels)"]
        for name, accuracy, iou in zip(self.classes, self.accuracy, self.iou, strict=True):
            lines.append(f"  {name:<12} accuracy {accuracy:.4f}  IoU {iou:.4f}")
        return "\n".join([*lines, f"  {NAN_RULE}"])
