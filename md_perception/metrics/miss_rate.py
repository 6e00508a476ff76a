"""Log-average miss rate of boxes (MR^-2), by the rules of the KAIST benchmark's MATLAB code (bbGt, kaist_eval_full).

The rules, for each image and then for all images of a subset:

- Detections are matched in the order of their scores, highest first, equal scores in the order of the file. Each takes,
  of the counted objects that are still free, the one with the largest overlap (intersection over union) of at least
  0.5; of equal overlaps the later object. It is a true positive.
- A detection that finds none, but lies with at least half of its own area in an ignored object, is left out. An ignored
  object can absorb any number of detections. Every other detection is a false positive.
- The detections that are not left out, of all images, are sorted by score. FPPI is the number of false positives so far
  over the number of all images of the subset; miss rate is 1 - true positives so far over the number of all counted
  objects of the subset. Images without detections count in both.
- At nine references, FPPI 10^-2, 10^-1.75, .. 10^0, the miss rate of the last point with at most that FPPI is read; it
  is 1 where there is none. The result is their geometric mean, each at least 1e-10.

What is ignored is the setting, which is part of the metric's name: `MR2[reasonable,all]` (see `KAIST_SETTINGS`).

The evaluation script in Python that many repositories copied (2021) differs in three places; `rules="python2021"` does
the same, to explain published numbers, never to publish one:

- counted objects of images without a detection are left out, which rewards a high score threshold;
- the references are rounded to four digits: .0316 is less than 10^-1.5;
- where no point is at or below a reference, the miss rate of the very last point is read, the lowest of all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from md_perception.metrics.detection import TruthBoxes
from md_perception.results import Detections

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Rules = Literal["matlab", "python2021"]

OVERLAP = 0.5
# Not NumPy's power, whose 1e-1 is a rounding error too small with NumPy 1.26: a curve may have a point at .1 exactly.
REFERENCES_FPPI: Float64Array = np.array([10.0 ** (step / 4 - 2) for step in range(9)])
LOWEST_MISS_RATE = 1e-10

FPPI_LIMITS = (10**-2.5, 10**0.5)
"""Between which curves are drawn: the references and half a decade on both sides."""

TRUE_POSITIVE, FALSE_POSITIVE, LEFT_OUT = 1, 0, -1
NO_OCCLUSION, PARTIAL_OCCLUSION, HEAVY_OCCLUSION = 0, 1, 2


@dataclass(frozen=True)
class ScoredBoxes:
    """Detections of one class in one image, in any order.

    boxes: float64 (D, 4), left, top, width, height in px, in the coordinates of the truth. scores: float64 (D,).
    Raises ValueError for other shapes and for values that are not finite.
    """

    boxes: Float64Array
    scores: Float64Array

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise ValueError(
                f"boxes {self.boxes.shape} and scores {self.scores.shape} do not describe the same detections: "
                "expected (D, 4) and (D,)"
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("a detection has a coordinate or score that is NaN or infinite: it cannot be ranked")


@dataclass(frozen=True)
class KaistTruth:
    """Annotated objects of one KAIST image.

    boxes: float64 (G, 4), left, top, width, height in px as the annotation files have them: 1-based.
    ignored: bool (G,), labelled `people`, `person?` or `cyclist` instead of `person`.
    occlusion: int64 (G,), 0 none, 1 partial, 2 heavy.
    night: taken in the dark.
    """

    boxes: Float64Array
    ignored: BoolArray
    occlusion: IntArray
    night: bool

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.ignored.shape != (count,) or self.occlusion.shape != (count,):
            raise ValueError(
                f"boxes {self.boxes.shape}, ignored {self.ignored.shape} and occlusion {self.occlusion.shape} do not "
                "describe the same objects: expected (G, 4), (G,) and (G,)"
            )


@dataclass(frozen=True)
class Setting:
    """Which persons of KAIST are counted; the others, and those that touch the image's border, are ignored.

    heights_px: lowest and highest height, both counted. occlusions: the counted levels.
    """

    name: str
    heights_px: tuple[float, float]
    occlusions: tuple[int, ...]

    def ignored(self, truth: KaistTruth) -> BoolArray:
        """Return bool (G,): the objects of an image that are not counted."""
        height = truth.boxes[:, 3]
        low, high = self.heights_px
        unlike = ~np.isin(truth.occlusion, self.occlusions) | (height < low) | (height > high)
        return truth.ignored | unlike | ~inside(truth)


# A counted box lies within these columns and rows, 1-based as the boxes are; KAIST's images have 640 x 512 px.
_COLUMNS = (5, 635)
_ROWS = (5, 507)


def inside(truth: KaistTruth) -> BoolArray:
    """Return bool (G,): the objects that do not touch the image's border."""
    left, top, width, height = truth.boxes.T
    across = (left >= _COLUMNS[0]) & (left + width <= _COLUMNS[1])
    return across & (top >= _ROWS[0]) & (top + height <= _ROWS[1])


REASONABLE = Setting("reasonable", (55, np.inf), (NO_OCCLUSION, PARTIAL_OCCLUSION))
KAIST_SETTINGS = (
    REASONABLE,
    Setting("near", (115, np.inf), (NO_OCCLUSION,)),
    Setting("medium", (45, 115), (NO_OCCLUSION,)),
    Setting("far", (1, 45), (NO_OCCLUSION,)),
    Setting("none", (1, np.inf), (NO_OCCLUSION,)),
    Setting("partial", (1, np.inf), (PARTIAL_OCCLUSION,)),
    Setting("heavy", (1, np.inf), (HEAVY_OCCLUSION,)),
    Setting("all-occlusions", (1, np.inf), (NO_OCCLUSION, PARTIAL_OCCLUSION, HEAVY_OCCLUSION)),
)
"""`reasonable`, near to far by height, none to heavy by occlusion; `all-occlusions` is what papers also call "all"."""


@dataclass(frozen=True)
class Bootstrap:
    """How the interval is found: the images are drawn anew, with replacement, `replicates` times."""

    replicates: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 1 or not 0 < self.level < 1:
            raise ValueError(f"a bootstrap needs at least 1 replicate and a level between 0 and 1, got {self}")


@dataclass(frozen=True)
class MissRate:
    """The curve of one setting and subset, and its summary; rates are 0..1.

    name: `MR2[setting,subset]`.
    miss_rate: the log-average miss rate, and recall: of all detections; None where no object is counted.
    images, objects, ignored_objects: what the subset holds; objects are the counted ones, ignored_objects the others.
    true_positives, false_positives, left_out: the detections; those left out lie in ignored objects.
    scores, fppi, miss_rates: float64 (true + false positives,), the curve, by falling score. Empty without an object.
    reference_miss_rates: float64 (9,), at REFERENCES_FPPI (of python2021: rounded); empty without an object.
    interval: lower and upper end of the bootstrap interval of miss_rate, where it was asked for.
    """

    name: str
    rules: Rules
    miss_rate: float | None
    recall: float | None
    images: int
    objects: int
    ignored_objects: int
    true_positives: int
    false_positives: int
    left_out: int
    scores: Float64Array
    fppi: Float64Array
    miss_rates: Float64Array
    reference_miss_rates: Float64Array
    interval: tuple[float, float] | None = None


class Comparison:
    """Detections beside the objects of the same images; overlaps are found once, for all settings and subsets."""

    def __init__(self, truth: Sequence[Float64Array], detections: Sequence[ScoredBoxes]) -> None:
        """Pair what overlaps.

        truth: for each image the objects, float64 (G, 4), left, top, width, height. detections: of the same images.
        Raises ValueError where the numbers of images differ or a truth box is not finite.
        """
        if len(truth) != len(detections):
            raise ValueError(f"{len(truth)} images have truth but {len(detections)} have detections")
        self.images = len(truth)
        self._objects_per_image = np.array([len(boxes) for boxes in truth], np.int64)
        detections_per_image = np.array([len(found.scores) for found in detections], np.int64)
        objects = np.concatenate([np.zeros((0, 4)), *truth])
        if not np.isfinite(objects).all():
            raise ValueError("an annotated box has a coordinate that is NaN or infinite")
        boxes = np.concatenate([np.zeros((0, 4)), *(found.boxes for found in detections)])
        scores = np.concatenate([np.zeros(0), *(found.scores for found in detections)])

        # From here on detections are in the order of matching: by image, then by score, stable.
        image = np.repeat(np.arange(self.images), detections_per_image)
        order = np.lexsort((-scores, image))
        boxes, self._scores, self._image = boxes[order], scores[order], image[order]

        # All pairs of a detection and an object of its image, the objects in the order of the file.
        pairs = self._objects_per_image[self._image]
        first_object = np.cumsum(self._objects_per_image) - self._objects_per_image
        detection = np.repeat(np.arange(len(boxes)), pairs)
        position = np.arange(len(detection)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        object_ = first_object[self._image[detection]] + position

        a, b = boxes[detection], objects[object_]
        width = np.minimum(a[:, 0] + a[:, 2], b[:, 0] + b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
        height = np.minimum(a[:, 1] + a[:, 3], b[:, 1] + b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
        touch = (width > 0) & (height > 0)
        detection, object_, a, b = detection[touch], object_[touch], a[touch], b[touch]
        intersection, area = width[touch] * height[touch], a[:, 2] * a[:, 3]
        overlap = intersection / (area + b[:, 2] * b[:, 3] - intersection)
        inside = intersection / area
        enough = (overlap >= OVERLAP) | (inside >= OVERLAP)
        self._detection, self._object = detection[enough], object_[enough]
        self._overlap, self._inside = overlap[enough], inside[enough]

    def outcomes(self, ignored: BoolArray) -> IntArray:
        """Match. ignored: bool (objects of all images,). Return int64 (detections,): TRUE_POSITIVE .. LEFT_OUT.

        The order is by image, then by falling score.
        """
        return self.matches(ignored)[0]

    def matches(self, ignored: BoolArray) -> tuple[IntArray, BoolArray]:
        """Match, as `outcomes` does. Return the outcomes, and bool (objects of all images,): found by a detection."""
        if ignored.shape != (self._objects_per_image.sum(),):
            raise ValueError(
                f"ignored {ignored.shape} is not one flag for each of {self._objects_per_image.sum()} objects"
            )
        outcomes = np.full(len(self._scores), FALSE_POSITIVE, np.int64)
        pair_ignored = ignored[self._object]
        outcomes[self._detection[pair_ignored & (self._inside >= OVERLAP)]] = LEFT_OUT
        # A counted object goes before an ignored one, whatever their overlaps.
        counted = ~pair_ignored & (self._overlap >= OVERLAP)
        candidates = zip(
            self._detection[counted].tolist(),
            self._overlap[counted].tolist(),
            self._object[counted].tolist(),
            strict=True,
        )
        taken: set[int] = set()
        for detection, group in groupby(candidates, key=lambda candidate: candidate[0]):
            free = [(overlap, object_) for _, overlap, object_ in group if object_ not in taken]
            if free:
                taken.add(max(free)[1])  # of equal overlaps the later object
                outcomes[detection] = TRUE_POSITIVE
        found = np.zeros(len(ignored), np.bool_)
        found[list(taken)] = True
        return outcomes, found

    def evaluate(
        self,
        ignored: Sequence[BoolArray],
        subsets: dict[str, BoolArray],
        rules: Rules = "matlab",
        bootstrap: Bootstrap | None = None,
    ) -> dict[str, MissRate]:
        """Return the curves of one setting by name.

        ignored: for each image bool (G,). subsets: name of the metric to bool (images,).
        Raises ValueError for a subset without images and for rules that are none.
        """
        if rules not in get_args(Rules):
            raise ValueError(f"there are no rules {rules!r}, only {' and '.join(get_args(Rules))}")
        flags = np.concatenate([np.zeros(0, np.bool_), *ignored])
        outcomes = self.outcomes(flags)
        owner = np.repeat(np.arange(self.images), self._objects_per_image)
        results = {}
        for name, subset in subsets.items():
            if subset.shape != (self.images,) or not subset.any():
                raise ValueError(f"{name}: no image is in the subset")
            curve = self._curve(outcomes, flags, subset, rules)
            fppi, miss_rates, at_references = curve.points()
            results[name] = MissRate(
                name=name,
                rules=rules,
                miss_rate=log_average(at_references) if len(at_references) else None,
                recall=float(curve.hit.sum() / curve.objects.sum()) if curve.objects.any() else None,
                images=int(subset.sum()),
                objects=int(curve.objects.sum()),
                ignored_objects=int((flags & subset[owner]).sum()),
                true_positives=int(curve.hit.sum()),
                false_positives=int((~curve.hit).sum()),
                left_out=int(((outcomes == LEFT_OUT) & subset[self._image]).sum()),
                scores=curve.scores if len(at_references) else np.zeros(0),
                fppi=fppi,
                miss_rates=miss_rates,
                reference_miss_rates=at_references,
                interval=curve.interval(bootstrap) if bootstrap is not None else None,
            )
        return results

    def curve(self, ignored: Sequence[BoolArray], subset: BoolArray | None = None) -> "Curve":
        """Return the ranked detections of a subset, by default all images; ignored: for each image bool (G,)."""
        flags = np.concatenate([np.zeros(0, np.bool_), *ignored])
        images = np.ones(self.images, np.bool_) if subset is None else subset
        return self._curve(self.outcomes(flags), flags, images, "matlab")

    def _curve(self, outcomes: IntArray, flags: BoolArray, subset: BoolArray, rules: Rules) -> "Curve":
        owner = np.repeat(np.arange(self.images), self._objects_per_image)
        objects = np.bincount(owner[~flags], minlength=self.images)  # counted ones, per image
        if rules == "python2021":
            objects = np.where(np.bincount(self._image, minlength=self.images) > 0, objects, 0)
        mine = np.flatnonzero((outcomes != LEFT_OUT) & subset[self._image])
        mine = mine[np.argsort(-self._scores[mine], kind="stable")]
        return Curve(
            image=(np.cumsum(subset) - 1)[self._image[mine]],
            scores=self._scores[mine],
            hit=outcomes[mine] == TRUE_POSITIVE,
            objects=objects[subset],
            rules=rules,
        )


@dataclass(frozen=True)
class Curve:
    """The detections of a subset that are not left out, by falling score.

    image: int64 (D,), index in the subset. scores: float64 (D,). hit: bool (D,), true positive. objects: int64
    (images,), counted ones.
    """

    image: IntArray
    scores: Float64Array
    hit: BoolArray
    objects: IntArray
    rules: Rules

    def points(self, weights: IntArray | None = None) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return FPPI (D,), miss rate (D,) and miss rate at the references (9,), all empty without an object.

        weights: int64 (images,), how often each image is there; by default once.
        """
        each = np.ones(len(self.objects), np.int64) if weights is None else weights
        images = int(each.sum())
        objects = int(each @ self.objects)
        if objects == 0:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        copies = each[self.image]
        true_positives = np.cumsum(np.where(self.hit, copies, 0))
        false_positives = np.cumsum(np.where(self.hit, 0, copies))
        fppi = false_positives / images
        miss_rates = 1 - true_positives / objects
        references = REFERENCES_FPPI.round(4) if self.rules == "python2021" else REFERENCES_FPPI
        # One more point before the first detection, where everything is missed.
        start = miss_rates[-1] if self.rules == "python2021" and len(miss_rates) else 1.0
        at_references = np.concatenate([[start], miss_rates])[np.searchsorted(fppi, references, side="right")]
        return fppi, miss_rates, at_references

    def interval(self, bootstrap: Bootstrap) -> tuple[float, float] | None:
        """Return the percentile interval over redrawn images; a draw without an object has no miss rate: left out."""
        random = np.random.default_rng(bootstrap.seed)
        images = len(self.objects)
        draws = []
        for _ in range(bootstrap.replicates):
            weights = np.bincount(random.integers(images, size=images), minlength=images)
            at_references = self.points(weights)[2]
            if len(at_references):
                draws.append(log_average(at_references))
        if not draws:
            return None
        tail = (1 - bootstrap.level) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return float(low), float(high)


def log_average(miss_rates: Float64Array) -> float:
    """Return the geometric mean of the miss rates at the references, each at least LOWEST_MISS_RATE."""
    return float(np.exp(np.log(np.maximum(LOWEST_MISS_RATE, miss_rates)).mean()))


def kaist_miss_rates(
    truth: Sequence[KaistTruth],
    detections: Sequence[ScoredBoxes],
    rules: Rules = "matlab",
    bootstrap: Bootstrap | None = None,
    settings: Sequence[Setting] = KAIST_SETTINGS,
) -> dict[str, MissRate]:
    """Return the miss rates of detected persons by name, `MR2[reasonable,all]` first.

    truth, detections: of the same images in the same order; boxes 1-based, as KAIST's annotations and result files have
    them. `reasonable` is also given for the subsets day and night, as far as the images have them.
    Raises ValueError where the numbers of images differ, and without any image.
    """
    comparison = Comparison([image.boxes for image in truth], detections)
    night = np.array([image.night for image in truth], np.bool_)
    every = np.ones(len(truth), np.bool_)
    results: dict[str, MissRate] = {}
    for setting in settings:
        subsets = {metric_name(setting.name, "all"): every}
        if setting == REASONABLE:
            by_light = {"day": ~night, "night": night}
            subsets |= {metric_name(setting.name, name): flags for name, flags in by_light.items() if flags.any()}
        results |= comparison.evaluate([setting.ignored(image) for image in truth], subsets, rules, bootstrap)
    return results


def class_miss_rate(
    truth: Sequence[TruthBoxes],
    detections: Sequence[Detections],
    label: int,
    name: str,
    bootstrap: Bootstrap | None = None,
) -> MissRate:
    """Return the miss rate of one class of a data set that has none of KAIST's attributes.

    Every object of the class is counted unless the truth flags it as ignored; whatever has another label is left out,
    on both sides. The rest are this module's rules. The name says what was counted, e.g. `MR2[person,scenes night]`;
    the names of KAIST's settings belong to KAIST.
    """
    comparison, ignored = of_class(truth, detections, label)
    return comparison.evaluate(ignored, {name: np.ones(len(truth), np.bool_)}, bootstrap=bootstrap)[name]


def of_class(
    truth: Sequence[TruthBoxes], detections: Sequence[Detections], label: int
) -> tuple[Comparison, list[BoolArray]]:
    """Return the comparison of one class's detections with its objects, and which of those are ignored, by image."""
    mine = [image.labels == label for image in truth]
    comparison = Comparison(
        [_corner_and_size(image.boxes[chosen]) for image, chosen in zip(truth, mine, strict=True)],
        [
            ScoredBoxes(_corner_and_size(found.boxes[chosen]), found.scores[chosen].astype(np.float64))
            for found, chosen in ((found, found.labels == label) for found in detections)
        ],
    )
    return comparison, [image.ignored[chosen] for image, chosen in zip(truth, mine, strict=True)]


def curve_points(curve: MissRate) -> tuple[Float64Array, Float64Array]:
    """Return FPPI and miss rate of the steps between FPPI_LIMITS, as the metric reads them: at any FPPI the miss rate
    is that of the last point with at most that FPPI, 1 where there is none.
    """
    low, high = FPPI_LIMITS
    between = (curve.fppi > low) & (curve.fppi <= high)
    # Of the points with equal FPPI only the last is read; they belong to one false positive and the hits after it.
    last = np.append(curve.fppi[1:] != curve.fppi[:-1], True)
    before = np.concatenate([[1.0], curve.miss_rates])[np.searchsorted(curve.fppi, low, side="right")]
    fppi = np.concatenate([[low], curve.fppi[between & last], [high]])
    miss_rates = np.concatenate([[before], curve.miss_rates[between & last]])
    return fppi, np.append(miss_rates, miss_rates[-1])


def metric_name(setting: str, subset: str) -> str:
    """Return the metric's name, which always carries its setting."""
    return f"MR2[{setting},{subset}]"


def table(results: Iterable[MissRate]) -> str:
    """Return the results as text, in percent to four decimals, with the counts that they rest on."""
    results = list(results)
    width = max([26, *(len(result.name) + 1 for result in results)])
    lines = [
        f"{'log-average miss rate':<{width}}{'MR2 %':>9}{'recall %':>10}{'images':>8}{'objects':>9}{'ignored':>9}"
        f"{'hits':>7}{'false':>8}{'left out':>10}"
    ]
    for result in results:
        line = (
            f"{result.name:<{width}}{_percent(result.miss_rate, 4):>9}{_percent(result.recall, 2):>10}"
            f"{result.images:>8}{result.objects:>9}{result.ignored_objects:>9}{result.true_positives:>7}{result.false_positives:>8}"
            f"{result.left_out:>10}"
        )
        if result.interval is not None:
            line += f"  [{_percent(result.interval[0], 2)}, {_percent(result.interval[1], 2)}]"
        lines.append(line)
    return "\n".join(lines)


def _percent(rate: float | None, decimals: int) -> str:
    return "none" if rate is None else f"{100 * rate:.{decimals}f}"


def _corner_and_size(corners: npt.NDArray[np.floating]) -> Float64Array:
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
