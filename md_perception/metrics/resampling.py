"""Scores of redrawn images: the interval of a score, and of a difference that is paired by image.

Whoever compares two networks on the same images has to redraw the images of both at once: what makes an image hard is
common to both, and most of the sampling error cancels in the difference. A score here is a function of how often each
image is there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from md_perception.labels import DETECTION, ClassList
from md_perception.metrics.detection import TruthBoxes
from md_perception.metrics.miss_rate import Bootstrap, Curve, log_average, of_class
from md_perception.metrics.segmentation import Confusion, SegmentationScores
from md_perception.results import Detections

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
RECALLS: Float64Array = np.linspace(0, 1, 101)
"""At which COCO reads the precision."""


class DetectionResamples:
    """The detections of some images, matched once with their truth at an overlap of 0.5, and scores of any redraw.

    The matching is that of metrics.miss_rate; it and COCO's differ only where boxes of one class overlap each other.
    """

    def __init__(
        self, truth: Sequence[TruthBoxes], detections: Sequence[Detections], classes: ClassList = DETECTION
    ) -> None:
        """truth, detections: of the same images in the same order. Raises ValueError where their numbers differ."""
        self.images = len(truth)
        self.classes = classes
        self._curves: dict[str, Curve] = {}
        for label, name in enumerate(classes.classes):
            comparison, ignored = of_class(truth, detections, label)
            self._curves[name] = comparison.curve(ignored)

    def ap50(self, times: IntArray) -> float:
        """Return COCO's average precision at IoU 0.5, mean over the classes that have objects."""
        values = [self.class_ap50(name, times) for name in self.classes.classes]
        known = [value for value in values if not np.isnan(value)]
        return float(np.mean(known)) if known else float("nan")

    def class_ap50(self, name: str, times: IntArray) -> float:
        """Return the average precision at IoU 0.5 of one class; detections of equal score count in image order."""
        curve = self._curves[name]
        objects = int(times @ curve.objects)
        if objects == 0:
            return float("nan")
        copies = times[curve.image]
        hits = np.cumsum(np.where(curve.hit, copies, 0))
        precision = hits / np.maximum(np.cumsum(copies), 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        # The first point that reaches a recall; 0 where none does.
        return float(np.append(envelope, 0.0)[np.searchsorted(hits / objects, RECALLS)].mean())

    def miss_rate(self, name: str, times: IntArray) -> float:
        """Return the log-average miss rate of one class (metrics.miss_rate.class_miss_rate)."""
        at_references = self.miss_rates(name, times)
        return log_average(at_references) if len(at_references) else float("nan")

    def miss_rates(self, name: str, times: IntArray) -> Float64Array:
        """Return the miss rates of one class at REFERENCES_FPPI, empty without an object."""
        return self._curves[name].points(times)[2]

    def counts(self, name: str, least_score: float) -> tuple[IntArray, IntArray, IntArray]:
        """Return objects found and missed, and false detections, int64 (images,), of detections from a score on."""
        curve = self._curves[name]
        kept = curve.scores >= np.float32(least_score)  # scores are float32, whatever they are kept in
        found = np.bincount(curve.image[curve.hit & kept], minlength=self.images)
        return found, curve.objects - found, np.bincount(curve.image[~curve.hit & kept], minlength=self.images)


class SegmentationResamples:
    """The confusion matrices of some images, int64 (images, K, K), and scores of any redraw."""

    def __init__(self, counts: IntArray) -> None:
        self.images = len(counts)
        self._counts = counts.reshape(len(counts), -1)
        self._classes = counts.shape[-1]

    def scores(self, times: IntArray) -> SegmentationScores:
        """Return mAcc9, mIoU9 and so on."""
        confusion = Confusion()
        confusion.counts = (times @ self._counts).reshape(self._classes, self._classes)
        return confusion.scores()


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap interval (lower end, upper end)."""

    value: float
    interval: tuple[float, float]

    @property
    def is_above_zero(self) -> bool:
        """Say whether the whole interval is."""
        return self.interval[0] > 0


def estimate(
    statistic: Callable[[IntArray, IntArray], float],
    images: int,
    repeats: int = 1,
    bootstrap: Bootstrap | None = None,
    groups: npt.NDArray[np.generic] | None = None,
) -> Estimate:
    """Return a statistic and its percentile interval over redrawn images and repeats.

    statistic: of how often each image is there, int64 (images,), and of the repeats to be averaged over, int64
    (repeats,), numbers from 0: training seeds, say, each with its own scores of the same images. It is first asked for
    everything once. groups: (images,), images of one group, e.g. of one drive, are redrawn together. Draws for which
    the statistic is NaN are left out.
    """
    settings = bootstrap or Bootstrap()
    random = np.random.default_rng(settings.seed)
    owner = np.arange(images) if groups is None else np.unique(groups, return_inverse=True)[1]
    number = len(np.unique(owner))
    value = statistic(np.ones(images, np.int64), np.arange(repeats))
    draws = []
    for _ in range(settings.replicates):
        times = np.bincount(random.integers(number, size=number), minlength=number)[owner]
        draws.append(statistic(times, random.integers(repeats, size=repeats)))
    known = np.array(draws)[~np.isnan(draws)]
    if not len(known):
        return Estimate(value, (float("nan"), float("nan")))
    tail = (1 - settings.level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, (float(low), float(high)))
