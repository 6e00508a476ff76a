"""The pictures of report.html: which frames say most, and the frames themselves."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from md_perception.evaluation.judged import judge, judge_by_teacher
from md_perception.evaluation.page import Block, Gallery, Note, Panel, Shot
from md_perception.evaluation.pictures import JUDGED_LEGEND, LEGEND, Picture, Pictures, panels
from md_perception.evaluation.records import FrameRecord
from md_perception.evaluation.schema import FrameErrors, Report
from md_perception.evaluation.sweep import Sweep, own_agreement
from md_perception.metrics.detection import TruthBoxes

WORST_SHOWN = 12
"""Frames that are shown as pictures."""
SWEPT_SHOWN = 4
"""Frames that are shown with every camera of a sweep."""
SPREAD_SHOWN = 6
"""Frames that are shown where nothing says which are the worst."""

_Key = tuple[str, int, int]
"""Bag, index and stamp of a frame."""


def roles(report: Report) -> tuple[str | None, list[str]]:
    """Return the name of the teacher, and those of the others."""
    teacher = next((one.teacher for one in report.agreement.values()), None)
    return teacher, [name for name in report.students if name != teacher]


def frame_blocks(report: Report, records: Sequence[FrameRecord], pictures: Pictures | None) -> list[Block]:
    """Return pictures of the frames that say most: got worse, worst, or else spread over the bags."""
    if pictures is None or not records:
        return []
    chosen, what = _chosen(report, records)
    place = _places(records)
    teacher, students = roles(report)
    truth = _objects(report, records, students, teacher)
    read = _read(pictures, chosen, place)
    shots = []
    for key, note in chosen.items():
        row, _ = place[key]
        if key in read:
            shown = panels(records[row], read[key], students, truth.get(row), teacher, report.settings.least_score)
            shots.append(_shot(records[row], note, shown))
    return [Note(f"{what} {JUDGED_LEGEND if truth else LEGEND}"), Gallery(shots)] if shots else []


def swept_frame_blocks(sweep: Sweep, student: str) -> list[Block]:
    """Return pictures of the frames in which a student says most differently with the smallest camera."""
    agreement = own_agreement(sweep.points[0], sweep.points[-1], student)
    if agreement is None or any(point.pictures is None for point in sweep.points):
        return []
    places = [_places(point.records) for point in sweep.points]
    common = [key for errors in agreement.worst if all((key := _key(errors)) in place for place in places)]
    chosen: dict[_Key, str] = {}
    _add(chosen, [(key, "") for key in common], SWEPT_SHOWN)
    shown: dict[_Key, list[Panel]] = {key: [] for key in chosen}
    judged = False
    for point, place in zip(sweep.points, places, strict=True):
        teacher, _ = roles(point.report)
        truth = _objects(point.report, point.records, [student], teacher)
        judged |= bool(truth)
        assert point.pictures is not None
        for key, picture in _read(point.pictures, chosen, place).items():
            row = place[key][0]
            score = point.report.settings.least_score
            panel = panels(point.records[row], picture, [student], truth.get(row), teacher, score)[0]
            shown[key].append(replace(panel, label=f"{student}, thermal {point.name}"))
    records = sweep.points[-1].records
    shots = [_shot(records[places[-1][key][0]], "", of_frame) for key, of_frame in shown.items() if of_frame]
    text = f"The frames in which {student} says most differently with {sweep.points[-1].name}."
    return [Note(f"{text} {JUDGED_LEGEND if judged else LEGEND}"), Gallery(shots)] if shots else []


def _shot(record: FrameRecord, note: str, shown: Sequence[Panel]) -> Shot:
    offset = "" if record.pair_offset_ns is None else f", pair {record.pair_offset_ns / 1e6:+.0f} ms"
    about = f"{record.mode.name}{offset}, {record.light}{f'; {note}' if note else ''}"
    return Shot(f"{record.bag}, image {record.index}", about, shown)


def _places(records: Sequence[FrameRecord]) -> dict[_Key, tuple[int, int]]:
    """Return the row of each frame among the records, and its position among those of its bag."""
    counts: Counter[str] = Counter()
    place: dict[_Key, tuple[int, int]] = {}
    for row, record in enumerate(records):
        key = (record.bag, record.index, record.stamp_ns)
        if not (record.is_thermal and key in place):  # cameras that are triggered together have equal stamps
            place[key] = (row, counts[record.bag])
        counts[record.bag] += 1
    return place


def _read(pictures: Pictures, keys: Iterable[_Key], place: Mapping[_Key, tuple[int, int]]) -> dict[_Key, Picture]:
    """Read frames again, each bag once."""
    wanted: dict[str, dict[int, _Key]] = {}
    for key in keys:
        wanted.setdefault(key[0], {})[place[key][1]] = key
    return {
        of_bag[position]: picture
        for bag, of_bag in wanted.items()
        for position, picture in pictures(bag, sorted(of_bag)).items()
    }


def _objects(
    report: Report, records: Sequence[FrameRecord], students: Sequence[str], teacher: str | None
) -> dict[int, TruthBoxes]:
    """Return what the students are judged by in each frame, by its number among the records."""
    for name in students:  # one that has no boxes is not judged by any
        judged = judge(records, name, report.settings, report.truth)
        if not judged.truth and teacher is not None:
            judged = judge_by_teacher(records, name, teacher, report.settings)
        if judged.truth:
            return dict(zip(judged.box_rows.tolist(), judged.truth, strict=True))
    return {}


def _chosen(report: Report, records: Sequence[FrameRecord]) -> tuple[dict[_Key, str], str]:
    """Return the frames to show, with what is wrong in them, and how they were chosen."""
    worse = [
        (
            _key(one.candidate),
            f"{comparison.baseline} {_errors(one.baseline)}; {comparison.candidate} {_errors(one.candidate)}",
        )
        for comparison in report.comparisons
        for one in comparison.worst
        if (one.change or 0) > 0
    ]
    name = roles(report)[1][0]
    worst, what = report.students[name].worst_frames, "The worst frames."
    if not worst and name in report.agreement:
        worst, what = report.agreement[name].worst, "The frames in which student and teacher agree least."
    if worse:
        what = "First the frames that got worse, then the worst of the first student."
    chosen: dict[_Key, str] = {}
    _add(chosen, worse, WORST_SHOWN // 2)
    _add(chosen, [(_key(errors), _errors(errors)) for errors in worst if (errors.loss or 0) > 0], WORST_SHOWN)
    if not chosen:
        spread = np.unique(np.linspace(0, len(records) - 1, min(SPREAD_SHOWN, len(records))).round().astype(int))
        shown = [records[place] for place in spread.tolist()]
        return {(one.bag, one.index, one.stamp_ns): "" for one in shown}, "Some frames, spread over the bags."
    return chosen, what


def _add(chosen: dict[_Key, str], frames: Sequence[tuple[_Key, str]], number: int) -> None:
    """Add frames until there are so many: first those that are not of the same second as another, which shows the same
    scene, then any.
    """
    for apart_ns in (1_000_000_000, 0):
        for key, note in frames:
            if len(chosen) >= number:
                return
            if all(key[0] != other[0] or abs(key[2] - other[2]) >= apart_ns for other in chosen):
                chosen.setdefault(key, note)


def _key(errors: FrameErrors) -> _Key:
    return errors.bag, errors.index, errors.stamp_ns


def _errors(errors: FrameErrors) -> str:
    said = [f"{count} {what}" for count, what in ((errors.missed, "missed"), (errors.false, "false")) if count]
    if errors.pixel_error:
        said.append(f"{100 * errors.pixel_error:.1f} % of the pixels wrong")
    return ", ".join(said) or "no error"
