"""Two students on the same frames, and a student beside its teacher: differences that are paired frame by frame."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from md_perception.evaluation.judged import Judged, judge_by_teacher, mask_confusion, slice_flags, slices_of
from md_perception.evaluation.records import FrameRecord
from md_perception.evaluation.schema import (
    AgreementReport,
    ChangedFrame,
    ComparisonReport,
    Difference,
    Score,
    ScoreSettings,
)

IntArray = npt.NDArray[np.int64]
Statistic = Callable[[Judged, IntArray], float]

LOWER_IS_BETTER = ("miss_rate", "missed_per_frame", "false_per_frame")


def compare(baseline: Judged, candidate: Judged) -> ComparisonReport:
    """Compare two students with the truth, on the same frames.

    Differences are candidate minus baseline; their intervals are over redrawn frames, the same of both students. Where
    one has no answer for a frame, the mask of that frame counts for neither. Without truth there is no difference.
    """
    differences: list[Difference] = []
    common = np.intersect1d(baseline.mask_rows, candidate.mask_rows)
    masks = _of_frames(baseline, common), _of_frames(candidate, common)
    for (by, name), flags in slice_flags(baseline.records, with_all=False).items():
        if len(baseline.box_rows) and len(candidate.box_rows):
            values = [_box_values(judged, by, name) for judged in (baseline, candidate)]
            chosen = np.flatnonzero(flags[baseline.box_rows])
            for figure, statistic in BOX_FIGURES.items():
                one, other = (of[figure] for of in values)
                differences += _difference(baseline, candidate, figure, name, (one, other), statistic, chosen)
        if masks[0].has_masks and masks[1].has_masks:
            chosen = np.flatnonzero(flags[common])
            once = np.isin(np.arange(len(common)), chosen).astype(np.int64)
            for figure, statistic in MASK_FIGURES.items():
                one, other = (statistic(judged, once) for judged in masks)
                differences += _difference(*masks, figure, name, (one, other), statistic, chosen)
    changed = _changed(baseline, candidate)
    changes = np.array([frame.change or 0.0 for frame in changed])
    ranked = [changed[place] for place in np.argsort(-changes, kind="stable") if changes[place] > 0]
    return ComparisonReport(
        baseline=baseline.name,
        candidate=candidate.name,
        differences=tuple(differences),
        worse=int((changes > 0).sum()),
        better=int((changes < 0).sum()),
        same=int((changes == 0).sum()),
        worst=tuple(ranked[: baseline.settings.listed_frames]),
    )


def agreement_of(
    records: Sequence[FrameRecord], student: str, teacher: str, settings: ScoreSettings | None = None
) -> AgreementReport:
    """Say how far a student agrees with its teacher; no truth is needed.

    The teacher's detections with at least teacher_score, and its masks, take the place of the truth.
    """
    settings = settings or ScoreSettings()
    judged = judge_by_teacher(records, student, teacher, settings)
    errors = sorted(judged.errors.values(), key=lambda frame: -(frame.loss or 0))
    return AgreementReport(
        teacher=teacher,
        frames=len(judged.errors),
        slices=slices_of(judged, with_all=False),
        mask_confusion=mask_confusion(judged),
        worst=tuple(frame for frame in errors if frame.loss)[: settings.listed_frames],
    )


def _miss_rate(judged: Judged, times: IntArray) -> float:
    name = judged.settings.headline_class
    return judged.boxes.miss_rate(name, times) if name in judged.classes else float("nan")


def _per_frame(which: Literal[0, 1]) -> Statistic:
    return lambda judged, times: float(times @ judged.missed_and_false[which] / times.sum())


def _pixel_accuracy(judged: Judged, times: IntArray) -> float:
    pixels = times @ judged.confusions.sum(axis=(1, 2))
    return float(times @ np.trace(judged.confusions, axis1=1, axis2=2) / pixels) if pixels else float("nan")


BOX_FIGURES: dict[str, Statistic] = {
    "miss_rate": _miss_rate,
    "ap50": lambda judged, times: judged.boxes.ap50(times),
    "missed_per_frame": _per_frame(0),
    "false_per_frame": _per_frame(1),
}
MASK_FIGURES: dict[str, Statistic] = {
    "macc9": lambda judged, times: judged.masks.scores(times).macc9,
    "miou9": lambda judged, times: judged.masks.scores(times).miou9,
    "pixel_accuracy": _pixel_accuracy,
}


def _box_values(judged: Judged, by: str, name: str) -> dict[str, float | None]:
    """Return the figures of a slice as the student's own report has them."""
    part = next(one for one in judged.slices if (one.by, one.name) == (by, name)).detection
    if part is None:
        return dict.fromkeys(BOX_FIGURES)
    missed, false = (sum(getattr(of, key) for of in part.by_class.values()) for key in ("missed", "false"))
    return {
        "miss_rate": part.miss_rate.value,
        "ap50": part.ap50.value,
        "missed_per_frame": missed / part.frames,
        "false_per_frame": false / part.frames,
    }


def _difference(
    baseline: Judged,
    candidate: Judged,
    figure: str,
    subset: str,
    values: tuple[float | None, float | None],
    statistic: Statistic,
    chosen: IntArray,
) -> list[Difference]:
    """Return one difference, none where either has no such figure. chosen: places among the frames that are scored."""
    one, other = values
    if one is None or other is None or not len(chosen):
        return []
    rows = baseline.mask_rows if figure in MASK_FIGURES else baseline.box_rows
    difference = baseline.score(
        other - one, lambda times: statistic(candidate, times) - statistic(baseline, times), rows, chosen
    )
    return [
        Difference(
            figure=figure,
            subset=subset,  # type: ignore[arg-type]
            baseline=one,
            candidate=other,
            difference=difference,
            verdict=_verdict(difference, figure in LOWER_IS_BETTER),
        )
    ]


def _verdict(difference: Score, lower_is_better: bool) -> Literal["better", "worse", "undecided"]:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "undecided"
    return "better" if (difference.high < 0) == lower_is_better else "worse"


def _of_frames(judged: Judged, rows: IntArray) -> Judged:
    """Return the same with the masks of these frames alone."""
    return replace(judged, mask_rows=rows, confusions=judged.confusions[np.isin(judged.mask_rows, rows)])


def _changed(baseline: Judged, candidate: Judged) -> list[ChangedFrame]:
    """Return both students' errors in the frames that both have; what only one has of a frame changes nothing."""
    changed = []
    for row, one in baseline.errors.items():
        other = candidate.errors.get(row)
        if other is None:
            continue
        parts = [(one.missed, other.missed), (one.false, other.false), (one.pixel_error, other.pixel_error)]
        change = sum(after - before for before, after in parts if before is not None and after is not None)
        changed.append(ChangedFrame(baseline=one, candidate=other, change=change))
    return changed
