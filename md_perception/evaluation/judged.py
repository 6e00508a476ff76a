"""One student's answers beside a reference, the truth or a teacher, and every figure of them, by class and by slice.

What is counted: with plain counting every annotated object that is not flagged as ignored, is at least
`least_height_px` high and not heavily occluded; with KAIST's annotations what its `reasonable` setting counts. A frame
without an answer has no detections: all its objects are missed. Masks are compared in frames with an answer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from md_perception.evaluation.records import FrameRecord, Reference
from md_perception.evaluation.schema import (
    ClassScores,
    ConfusionTable,
    DetectionScores,
    FlickerScores,
    FrameErrors,
    KaistScores,
    MaskScores,
    ObjectSlice,
    Score,
    ScoreSettings,
    Slice,
    StudentReport,
    TruthReport,
)
from md_perception.evaluation.truth import Counting
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.metrics.detection import TruthBoxes, average_precision, confusion_table
from md_perception.metrics.flicker import Flicker, flicker
from md_perception.metrics.miss_rate import (
    HEAVY_OCCLUSION,
    REASONABLE,
    Bootstrap,
    KaistTruth,
    ScoredBoxes,
    inside,
    kaist_miss_rates,
    log_average,
    of_class,
)
from md_perception.metrics.resampling import DetectionResamples, SegmentationResamples, estimate
from md_perception.metrics.segmentation import Confusion
from md_perception.results import Detections

Flags = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
SliceKey = tuple[str, str]

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
OCCLUSIONS = ("none", "partial", "heavy")


@dataclass(frozen=True, eq=False)
class Judged:
    """One student's answers beside a reference, the truth or a teacher, for the frames that have both.

    name: of the student. records: all frames. box_rows: int64 (B,), the frames with boxes; truth, found: of them;
    annotated: ignored by the annotation itself or, of KAIST, at the border, whatever is counted; occlusion: levels, -1
    unknown. mask_rows: int64 (M,), the frames with masks; confusions: int64 (M, 9, 9). classes: that are scored.
    """

    name: str
    records: Sequence[FrameRecord]
    settings: ScoreSettings
    counting: Counting
    classes: tuple[str, ...]
    box_rows: IntArray
    truth: list[TruthBoxes]
    annotated: list[Flags]
    occlusion: list[IntArray]
    found: list[Detections]
    mask_rows: IntArray
    confusions: IntArray

    @cached_property
    def boxes(self) -> DetectionResamples:
        """The detections matched with the reference, of the frames box_rows."""
        return DetectionResamples(self.truth, self.found)

    @cached_property
    def masks(self) -> SegmentationResamples:
        """The confusions, of the frames mask_rows."""
        return SegmentationResamples(self.confusions)

    @cached_property
    def blocks(self) -> IntArray:
        """int64 (records,): what is redrawn together."""
        return blocks_of(self.records, self.settings.block_s)

    @cached_property
    def counts(self) -> dict[str, tuple[IntArray, IntArray, IntArray]]:
        """Objects found and missed and false detections at least_score in the frames box_rows, by scored class."""
        return {name: self.boxes.counts(name, self.settings.least_score) for name in self.classes}

    @cached_property
    def missed_and_false(self) -> tuple[IntArray, IntArray]:
        """int64 (B,) each, of all scored classes."""
        zero = np.zeros(len(self.box_rows), np.int64)
        return (
            sum((missed for _, missed, _ in self.counts.values()), zero),
            sum((false for *_, false in self.counts.values()), zero),
        )

    @cached_property
    def pixel_errors(self) -> npt.NDArray[np.float64]:
        """float64 (M,), the share of the labelled pixels that have another class; NaN without a labelled pixel."""
        pixels = self.confusions.sum(axis=(1, 2))
        right = np.trace(self.confusions, axis1=1, axis2=2)
        return np.where(pixels > 0, 1 - right / np.maximum(pixels, 1), np.nan)

    @property
    def has_masks(self) -> bool:
        return bool(self.confusions.any())

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The figures of all frames and of every slice of the drive."""
        return slices_of(self)

    @cached_property
    def errors(self) -> dict[int, FrameErrors]:
        """What is wrong in each frame that is in box_rows or mask_rows, by its number among the records, in order."""
        missed, false = (dict(zip(self.box_rows.tolist(), a.tolist(), strict=True)) for a in self.missed_and_false)
        pixel = dict(zip(self.mask_rows.tolist(), self.pixel_errors.tolist(), strict=True))
        return {
            row: FrameErrors(
                bag=record.bag,
                index=record.index,
                stamp_ns=record.stamp_ns,
                light=record.light,
                mode=record.mode.name,
                missed=missed.get(row),
                false=false.get(row),
                pixel_error=pixel.get(row),
                loss=missed.get(row, 0) + false.get(row, 0) + float(np.nan_to_num(pixel.get(row, 0.0))),
            )
            for row, record in enumerate(self.records)
            if row in missed or row in pixel
        }

    def score(
        self, value: float | None, statistic: Callable[[IntArray], float], rows: IntArray, chosen: IntArray
    ) -> Score:
        """Return a value with its interval. statistic: of how often each frame of rows is there; chosen: places in it
        that are redrawn, the others are never there."""
        if value is None or np.isnan(value):
            return Score(value=None)
        blocks = self.blocks[rows[chosen]]
        if len(np.unique(blocks)) < self.settings.least_blocks:
            return Score(value=value)

        def redrawn(times: IntArray, _: IntArray) -> float:
            every = np.zeros(len(rows), np.int64)
            every[chosen] = times
            return statistic(every)

        found = estimate(redrawn, len(chosen), bootstrap=bootstrap_of(self.settings), groups=blocks)
        return Score(value=value, low=found.interval[0], high=found.interval[1])


def judge(
    records: Sequence[FrameRecord], student: str, settings: ScoreSettings, truth: TruthReport | None = None
) -> Judged:
    """Return a student's answers beside the truth. truth: None: plain counting, of the classes that it shows."""
    counting: Counting = "plain" if truth is None else truth.counting
    answers = [record.answers[student] for record in records]
    # One that answered nothing at all has missed everything, whatever its tasks are.
    has_boxes = any(a.detections is not None for a in answers) or all(a.rejected for a in answers)
    rows: list[int] = []
    boxes: list[TruthBoxes] = []
    annotated: list[Flags] = []
    occlusion: list[IntArray] = []
    found: list[Detections] = []
    for row, record in enumerate(records):
        known = record.truth
        if not has_boxes or known is None or known.boxes is None or known.labels is None:
            continue
        count = len(known.labels)
        flags = np.zeros(count, np.bool_) if known.ignored is None else known.ignored
        levels = np.full(count, -1, np.int64) if known.occlusion is None else known.occlusion
        if counting == "kaist":
            persons = _as_kaist(known.boxes, flags, levels, record.light == "night")
            ignored, flags = REASONABLE.ignored(persons), flags | ~inside(persons)
        else:
            heights = known.boxes[:, 3] - known.boxes[:, 1]
            ignored = flags | (heights < settings.least_height_px) | (levels == HEAVY_OCCLUSION)
        rows.append(row)
        boxes.append(TruthBoxes(known.boxes, known.labels, ignored))
        annotated.append(flags)
        occlusion.append(levels)
        found.append(record.answers[student].detections or NOTHING)
    shown = {DETECTION.classes[label] for image in boxes for label in np.unique(image.labels)}
    classes = tuple(name for name in DETECTION.classes if name in (truth.classes if truth is not None else shown))
    mask_rows, confusions = _confusions(records, student, "truth")
    return Judged(
        name=student,
        records=records,
        settings=settings,
        counting=counting,
        classes=classes,
        box_rows=np.array(rows, np.int64),
        truth=boxes,
        annotated=annotated,
        occlusion=occlusion,
        found=found,
        mask_rows=mask_rows,
        confusions=confusions,
    )


def judge_by_teacher(records: Sequence[FrameRecord], student: str, teacher: str, settings: ScoreSettings) -> Judged:
    """Return a student's answers beside a teacher's, for the frames that both answer.

    The reference is every detection of the teacher with at least teacher_score. Scored are the classes of which the
    teacher shows any at all: of the others it may know nothing.
    """
    rows, boxes, found = [], [], []
    shown: set[int] = set()
    for row, record in enumerate(records):
        mine, theirs = record.answers[student].detections, record.answers[teacher].detections
        if mine is None or theirs is None:
            continue
        sure = theirs.above(settings.teacher_score)
        shown |= set(theirs.labels.tolist())
        rows.append(row)
        boxes.append(TruthBoxes(sure.boxes, sure.labels, np.zeros(len(sure), np.bool_)))
        found.append(mine)
    mask_rows, confusions = _confusions(records, student, "teacher")
    return Judged(
        name=student,
        records=records,
        settings=settings,
        counting="plain",
        classes=tuple(name for label, name in enumerate(DETECTION.classes) if label in shown),
        box_rows=np.array(rows, np.int64),
        truth=boxes,
        annotated=[image.ignored for image in boxes],
        occlusion=[np.full(len(image.labels), -1, np.int64) for image in boxes],
        found=found,
        mask_rows=mask_rows,
        confusions=confusions,
    )


def blocks_of(records: Sequence[FrameRecord], block_s: float) -> IntArray:
    """Return int64 (records,): the same number for frames of one bag within the same block_s of its time."""
    if block_s <= 0:
        return np.arange(len(records))
    first: dict[str, int] = {}
    for record in records:
        first[record.bag] = min(first.get(record.bag, record.stamp_ns), record.stamp_ns)
    keys = [(record.bag, (record.stamp_ns - first[record.bag]) // round(block_s * 1e9)) for record in records]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def bootstrap_of(settings: ScoreSettings) -> Bootstrap:
    """Return how intervals are found."""
    return Bootstrap(settings.replicates, settings.level, settings.seed)


def slice_flags(records: Sequence[FrameRecord], with_all: bool = True) -> dict[SliceKey, Flags]:
    """Return the slices of a drive, bool (records,) by (by, name): all; day and night, modes and bags where there are
    several. with_all False: light alone."""
    flags: dict[SliceKey, Flags] = {("all", "all"): np.ones(len(records), np.bool_)}
    values: dict[str, list[str]] = {"light": [record.light for record in records]}
    if with_all:
        values |= {
            "mode": [record.mode.name for record in records],
            "bag": [record.bag for record in records],
        }
    for by, names in values.items():
        different = dict.fromkeys(names)
        if len(different) > 1:
            ordered = sorted(different) if by == "light" else list(different)
            flags |= {(by, name): np.array([other == name for other in names]) for name in ordered}
    return flags


# Figures


def student_report(judged: Judged) -> StudentReport:
    """Return all figures of one student."""
    answers = [record.answers[judged.name] for record in judged.records]
    rejected = Counter(answer.rejected for answer in answers if answer.rejected)
    seen = dict.fromkeys(DETECTION.classes, 0)
    for answer in answers:
        if answer.detections is not None:
            for label in answer.detections.above(judged.settings.least_score).labels:
                seen[DETECTION.classes[label]] += 1
    by_class = _flicker(judged)
    ranked = sorted(
        (errors for errors in judged.errors.values() if errors.loss), key=lambda errors: -(errors.loss or 0)
    )
    return StudentReport(
        answered=len(answers) - rejected.total(),
        rejected=dict(sorted(rejected.items())),
        detections=seen,
        slices=judged.slices,
        objects=_object_slices(judged),
        kaist=_kaist(judged),
        flicker=_flicker_scores(tuple(by_class.values())) if by_class else None,
        flicker_by_class={name: _flicker_scores([counted]) for name, counted in by_class.items()},
        detection_confusion=_detection_confusion(judged),
        mask_confusion=mask_confusion(judged),
        worst_frames=tuple(ranked[: judged.settings.listed_frames]),
    )


def slices_of(judged: Judged, with_all: bool = True) -> tuple[Slice, ...]:
    """Return the figures of all frames and of every slice."""
    slices = []
    for (by, name), flags in slice_flags(judged.records, with_all).items():
        with_intervals = by in ("all", "light")
        slices.append(
            Slice(
                by=by,  # type: ignore[arg-type]
                name=name,
                frames=int(flags.sum()),
                detection=_detection(judged, np.flatnonzero(flags[judged.box_rows]), with_intervals),
                masks=_masks(judged, np.flatnonzero(flags[judged.mask_rows]), with_intervals),
            )
        )
    return tuple(slices)


def _detection(judged: Judged, chosen: IntArray, with_intervals: bool) -> DetectionScores | None:
    """chosen: places in box_rows."""
    if not len(chosen):
        return None
    precision = average_precision([judged.truth[i] for i in chosen], [judged.found[i] for i in chosen])
    once = np.zeros(len(judged.box_rows), np.int64)
    once[chosen] = 1
    by_class = {}
    for name in judged.classes:
        found, missed, false = (int(counts[chosen].sum()) for counts in judged.counts[name])
        by_class[name] = ClassScores(
            ap=precision.ap[name],
            ap50=precision.ap50[name],
            miss_rate=judged.boxes.miss_rate(name, once),
            miss_rate_at=tuple(judged.boxes.miss_rates(name, once).tolist()),
            objects=precision.objects[name],
            ignored=precision.ignored[name],
            found=found,
            missed=missed,
            false=false,
            recall=_share(found, found + missed),
            precision=_share(found, found + false),
            f1=_share(2 * found, 2 * found + missed + false),
        )
    headline = judged.settings.headline_class
    miss_rate = judged.boxes.miss_rate(headline, once) if headline in judged.classes else None

    def score(value: float | None, statistic: Callable[[IntArray], float]) -> Score:
        if not with_intervals:
            return Score(value=value)
        return judged.score(value, statistic, judged.box_rows, chosen)

    return DetectionScores(
        frames=len(chosen),
        miss_rate=score(miss_rate, lambda times: judged.boxes.miss_rate(headline, times)),
        ap=precision.mean_ap,
        ap50=score(precision.mean_ap50, judged.boxes.ap50),
        by_class=by_class,
    )


def _masks(judged: Judged, chosen: IntArray, with_intervals: bool) -> MaskScores | None:
    """chosen: places in mask_rows."""
    confusion = Confusion()
    confusion.counts = judged.confusions[chosen].sum(axis=0)
    scores = confusion.scores()
    if not scores.pixels:
        return None
    there = confusion.counts.sum(axis=1) > 0
    accuracy, iou = np.array(scores.accuracy), np.array(scores.iou)

    def score(value: float, statistic: Callable[[IntArray], float]) -> Score:
        if not with_intervals:
            return Score(value=value)
        return judged.score(value, statistic, judged.mask_rows, chosen)

    def shown(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
        return {name: float(values[i]) if there[i] else None for i, name in enumerate(scores.classes)}

    return MaskScores(
        frames=len(chosen),
        pixels=scores.pixels,
        pixel_accuracy=float(np.trace(confusion.counts) / scores.pixels),
        macc9=score(scores.macc9, lambda times: judged.masks.scores(times).macc9),
        macc8=scores.macc8,
        miou9=score(scores.miou9, lambda times: judged.masks.scores(times).miou9),
        macc_present=float(accuracy[there].mean()),
        miou_present=float(iou[there].mean()),
        accuracy=shown(accuracy),
        iou=shown(iou),
    )


def _object_slices(judged: Judged) -> tuple[ObjectSlice, ...]:
    """Return the figures of objects by height and by occlusion."""
    settings, kaist = judged.settings, judged.counting == "kaist"
    if not judged.truth:
        return ()
    lowest = 0.0 if kaist else settings.least_height_px
    edges = [lowest, *(edge for edge in settings.height_edges_px if edge > lowest), np.inf]
    least = REASONABLE.heights_px[0] if kaist else settings.least_height_px
    slices = []
    for name in judged.classes:
        of_one = _OneClass(judged, name)
        for low, high in pairwise(edges):
            text = f"from {low:g} px" if np.isinf(high) else f"{low:g} to {high:g} px"
            counted = [(h >= low) & (h < high) & (o != HEAVY_OCCLUSION) for h, o in of_one.objects]
            figures = of_one.figures(counted)
            slices.append(ObjectSlice(by="height", name=text, class_name=name, from_px=low, below_px=high, **figures))
        for level, text in enumerate(OCCLUSIONS):
            if of_one.has_level(level):
                figures = of_one.figures([(h >= least) & (o == level) for h, o in of_one.objects])
                slices.append(ObjectSlice(by="occlusion", name=text, class_name=name, **figures))
    return tuple(slices)


class _OneClass:
    """The objects of one class, of which some are counted. objects: their heights, px, and occlusion, by frame."""

    def __init__(self, judged: Judged, name: str) -> None:
        label = DETECTION.id_of(name)
        mine = [image.labels == label for image in judged.truth]
        self._least_score = np.float32(judged.settings.least_score)
        self._comparison, _ = of_class(judged.truth, judged.found, label)
        self._flags = [flags[own] for flags, own in zip(judged.annotated, mine, strict=True)]
        self.objects = [
            ((image.boxes[:, 3] - image.boxes[:, 1])[own], levels[own])
            for image, levels, own in zip(judged.truth, judged.occlusion, mine, strict=True)
        ]

    def has_level(self, level: int) -> bool:
        """Return whether any object has this occlusion."""
        return any((levels == level).any() for _, levels in self.objects)

    def figures(self, counted: Sequence[Flags]) -> dict[str, Any]:
        """Return the figures of the objects that are counted, by frame; the others are ignored."""
        ignored = [flags | ~count for flags, count in zip(self._flags, counted, strict=True)]
        curve = self._comparison.curve(ignored)
        at_references = curve.points()[2]
        objects, found = int(curve.objects.sum()), int((curve.hit & (curve.scores >= self._least_score)).sum())
        return {
            "objects": objects,
            "found": found,
            "recall": _share(found, objects),
            "miss_rate": log_average(at_references) if len(at_references) else None,
        }


def _kaist(judged: Judged) -> dict[str, KaistScores]:
    """Return every setting of the benchmark, if the truth is KAIST's."""
    if judged.counting != "kaist" or not judged.truth:
        return {}
    person = DETECTION.id_of("person")
    truth, found = [], []
    for row, image, flags, levels, detections in zip(
        judged.box_rows, judged.truth, judged.annotated, judged.occlusion, judged.found, strict=True
    ):
        truth.append(_as_kaist(image.boxes, flags, levels, judged.records[row].light == "night"))
        mine = detections.labels == person
        found.append(ScoredBoxes(_one_based(detections.boxes[mine]), detections.scores[mine].astype(np.float64)))
    return {
        name: KaistScores(
            miss_rate=result.miss_rate,
            recall=result.recall,
            images=result.images,
            objects=result.objects,
            ignored_objects=result.ignored_objects,
            true_positives=result.true_positives,
            false_positives=result.false_positives,
            left_out=result.left_out,
        )
        for name, result in kaist_miss_rates(truth, found).items()
    }


def _flicker(judged: Judged) -> dict[str, Flicker]:
    """Return the flicker by class; empty where the student detects nothing by its kind."""
    records, settings = judged.records, judged.settings
    found = [record.answers[judged.name].detections for record in records]
    if all(one is None for one in found):
        return {}
    follows = [False] * len(records)
    for index in range(1, len(records)):
        before, now = records[index - 1], records[index]
        near = 0 < now.stamp_ns - before.stamp_ns <= settings.flicker_gap_s * 1e9
        follows[index] = near and now.bag == before.bag and now.size == before.size
    return {
        name: flicker(found, follows, label, settings.least_score, settings.flicker_iou)
        for label, name in enumerate(DETECTION.classes)
    }


def _flicker_scores(parts: Sequence[Flicker]) -> FlickerScores:
    whole = Flicker(sum(part.events for part in parts), sum(part.object_frames for part in parts))
    return FlickerScores(events=whole.events, object_frames=whole.object_frames, per_100=whole.per_100)


def _detection_confusion(judged: Judged) -> ConfusionTable | None:
    if not judged.truth:
        return None
    ids = [DETECTION.id_of(name) for name in judged.classes]
    known = [
        Detections(found.boxes[mine], found.scores[mine], found.labels[mine])
        for found, mine in ((found, np.isin(found.labels, ids)) for found in judged.found)
    ]
    table = confusion_table(judged.truth, known, judged.settings.least_score)
    return _table((*DETECTION.classes, "nothing"), table)


def mask_confusion(judged: Judged) -> ConfusionTable | None:
    """Return the pixels of all frames, None without masks."""
    return _table(SEGMENTATION.classes, judged.confusions.sum(axis=0)) if judged.has_masks else None


def _table(classes: tuple[str, ...], counts: IntArray) -> ConfusionTable:
    return ConfusionTable(classes=classes, counts=tuple(tuple(row) for row in counts.tolist()))


def _confusions(records: Sequence[FrameRecord], student: str, reference: Reference) -> tuple[IntArray, IntArray]:
    """Return the frames that have a confusion matrix, and the matrices."""
    rows = [row for row, record in enumerate(records) if reference in record.answers[student].confusions]
    size = len(SEGMENTATION)
    counts = [records[row].answers[student].confusions[reference] for row in rows]
    return np.array(rows, np.int64), np.array(counts, np.int64).reshape(-1, size, size)


def _as_kaist(boxes: npt.NDArray[np.float32], ignored: Flags, occlusion: IntArray, night: bool) -> KaistTruth:
    return KaistTruth(_one_based(boxes), ignored, occlusion, night)


def _one_based(corners: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return left, top, width, height, counted from 1 as KAIST's files are, of xyxy."""
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    boxes[:, :2] += 1
    return boxes


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
