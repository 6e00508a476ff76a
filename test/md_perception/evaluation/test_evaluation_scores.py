"""The figures of five frames with planted errors, every one of them computed by hand."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from md_perception.evaluation import schema
from md_perception.evaluation.comparison import agreement_of
from md_perception.evaluation.judged import blocks_of, judge
from md_perception.evaluation.records import Answer, FrameRecord, FrameTruth
from md_perception.evaluation.schema import Report, ReportError, Score, ScoreSettings, TruthReport
from md_perception.evaluation.scores import report_of
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.results import Detections, Mode

pytest.importorskip("faster_coco_eval")

PERSON, BICYCLE, CAR = range(3)
P, Q, EMPTY, C = (10, 10, 30, 50), (170, 10, 190, 50), (60, 10, 80, 50), (100, 40, 160, 80)
"""Boxes that do not touch: a person, another one who is annotated as ignored, an empty place, a car; 40 px high."""

SETTINGS = ScoreSettings(block_s=0, replicates=50)


def seen(*found: tuple[tuple[int, ...], float, int]) -> Detections:
    """Detections of (box, score, label), highest score first."""
    return Detections(
        np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in found], np.float32),
        np.array([label for *_, label in found], np.int64),
    )


def objects(*annotated: tuple[tuple[int, ...], int, bool, int]) -> FrameTruth:
    """Truth of (box, label, ignored, occlusion)."""
    return FrameTruth(
        np.array([box for box, *_ in annotated], np.float32).reshape(-1, 4),
        np.array([label for _, label, _, _ in annotated], np.int64),
        np.array([ignored for _, _, ignored, _ in annotated], np.bool_),
        np.array([occlusion for *_, occlusion in annotated], np.int64),
    )


def pixels(**counts: int) -> np.ndarray:
    """A confusion matrix; t2s0=10: ten pixels of class 2 that were called class 0."""
    matrix = np.zeros((9, 9), np.int64)
    for key, count in counts.items():
        matrix[int(key[1]), int(key[3])] = count
    return matrix


TRUTHS = (
    objects((P, PERSON, False, 0), (C, CAR, False, 0)),
    objects((P, PERSON, False, 1), (C, CAR, False, 0)),
    objects((P, PERSON, False, 0), (C, CAR, False, 0)),
    objects((P, PERSON, False, -1), (Q, PERSON, True, -1)),
    objects(),
)
STUDENT = (
    Answer(seen((P, 0.9, PERSON), (C, 0.8, CAR)), {"truth": pixels(t0s0=90, t2s2=10)}),
    Answer(seen((C, 0.8, CAR), (P, 0.1, PERSON)), {"truth": pixels(t0s0=90, t2s0=10)}),  # the person flickers
    Answer(seen((P, 0.9, PERSON), (C, 0.8, CAR), (EMPTY, 0.7, PERSON))),  # a person who is not there
    Answer(seen((P, 0.6, CAR), (Q, 0.5, PERSON))),  # a car that is a person; Q is left out
    Answer(rejected="damaged"),
)


def records(**students: tuple[Answer, ...]) -> list[FrameRecord]:
    """Five frames, 0.1 s apart: three by day with a partner, two by night alone."""
    offsets_ns = (4_000_000, -2_000_000, 6_000_000, None, None)
    alone = ("", "", "", "no_partner", "waited")
    return [
        FrameRecord(
            bag="drive",
            index=index,
            stamp_ns=index * 100_000_000,
            frame_id="camera",
            size=(200, 100),
            mode=Mode.FUSED if index < 3 else Mode.VISIBLE_ONLY,
            pair_offset_ns=offsets_ns[index],
            luminance=100.0,
            light="day" if index < 3 else "night",
            unpaired=alone[index],
            truth=TRUTHS[index],
            answers={name: answers[index] for name, answers in students.items()},
        )
        for index in range(5)
    ]


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of(records(student=STUDENT), settings=SETTINGS)


@pytest.fixture(scope="module")
def student(report):
    return report.students["student"]


def test_frames_and_pairs_are_accounted_for(report, student) -> None:
    assert report.frames.total == 5
    assert report.frames.by_bag == {"drive": 5}
    assert report.frames.by_light == {"day": 3, "night": 2}
    assert report.frames.by_mode == {"FUSED": 3, "VISIBLE_ONLY": 2}
    assert (report.frames.with_boxes, report.frames.with_masks, report.frames.blocks) == (5, 2, 5)
    assert (report.pairing.paired, report.pairing.alone) == (3, 2)
    assert report.pairing.reasons == {"no_partner": 1, "waited": 1}
    # -2, 4, 6 ms: nearest rank of 5 % is the 1st, of 50 % the 2nd, of 95 % the 3rd
    assert report.pairing.offset_ms.model_dump() == {"least": -2, "p5": -2, "p50": 4, "p95": 6, "largest": 6}
    assert (student.answered, student.rejected) == (4, {"damaged": 1})


def test_miss_rate_of_persons(student) -> None:
    # 4 counted persons. By score: .9 hit, .9 hit, .7 false, .1 hit; Q's is left out. 5 images:
    # FPPI 0, 0, .2, .2; miss rate .75, .5, .5, .25. Read at 10^-2 .. 10^-.75 (6 references): .5, at the other 3: .25
    whole = student.slice().detection

    assert whole.miss_rate.value == pytest.approx(0.5 ** ((6 * 1 + 3 * 2) / 9), abs=1e-6)
    assert whole.by_class["person"].miss_rate_at == (0.5,) * 6 + (0.25,) * 3
    # By day 3 persons, 3 images: FPPI 0, 0, 1/3, 1/3; miss rate 2/3, 1/3, 1/3, 0. The first 7 references: 1/3; then 0,
    # which counts as 1e-10
    by_day = math.exp((7 * math.log(1 / 3) + 2 * math.log(1e-10)) / 9)
    assert student.slice("light", "day").detection.miss_rate.value == pytest.approx(by_day, abs=1e-6)
    # By night nothing finds the one counted person.
    assert student.slice("light", "night").detection.miss_rate.value == 1
    assert student.slice("mode", "VISIBLE_ONLY").detection.miss_rate.value == 1


def test_average_precision(student) -> None:
    # Persons: precision 1, 1, 2/3, 3/4 at recall 1/4, 1/2, 1/2, 3/4. Of 101 recalls 51 (to .50) read 1, 25 (to .75)
    # 3/4, the others 0. Cars: three hits before the false one: 1. The boxes are exact: AP is AP50.
    whole = student.slice().detection
    person = (51 * 1 + 25 * 0.75) / 101

    assert whole.by_class["person"].ap50 == pytest.approx(person, abs=1e-6)
    assert whole.by_class["person"].ap == pytest.approx(person, abs=1e-6)
    assert whole.by_class["car"].ap50 == 1
    assert whole.ap50.value == pytest.approx((person + 1) / 2, abs=1e-6)
    assert whole.ap == whole.ap50.value
    assert set(whole.by_class) == {"person", "car"}  # no bicycle is annotated


def test_counts_at_the_threshold(student) -> None:
    person, car = (student.slice().detection.by_class[name] for name in ("person", "car"))

    # Found in frames 0 and 2, missed in 1 (its score is .1) and 3; false in 2. One object, Q, is ignored.
    assert (person.objects, person.ignored, person.found, person.missed, person.false) == (4, 1, 2, 2, 1)
    assert (person.recall, person.precision) == (0.5, pytest.approx(2 / 3, abs=1e-6))
    assert person.f1 == pytest.approx(2 * 2 / (2 * 2 + 2 + 1), abs=1e-6)
    assert (car.objects, car.found, car.missed, car.false) == (3, 3, 0, 1)
    assert student.detections == {"person": 4, "bicycle": 0, "car": 4}


def test_objects_by_height_and_occlusion(student) -> None:
    persons = {part.name: part for part in student.objects if part.class_name == "person"}

    # All are 40 px high; those not known to be hidden or partly are in.
    near = persons["20 to 45 px"]
    assert (near.objects, near.found, near.recall) == (4, 2, 0.5)
    assert near.miss_rate == student.slice().detection.miss_rate.value
    assert persons["45 to 115 px"].objects == persons["from 115 px"].objects == 0
    assert persons["from 115 px"].miss_rate is None
    # Not hidden in frames 0 and 2, both found; partly in 1, found with a score of .1 only: the first false detection
    # comes before. 5 images: FPPI .2 (the 3rd point), so 6 references read 1, and 3 read 0, which is 1e-10.
    assert (persons["none"].objects, persons["none"].found) == (2, 2)
    assert (persons["partial"].objects, persons["partial"].found) == (1, 0)
    assert persons["partial"].miss_rate == pytest.approx(1e-10 ** (3 / 9), abs=1e-6)
    assert "heavy" not in persons


def test_masks(student) -> None:
    # Class 0: 180 of 180 right, 190 said: IoU 180/190. Class 2: 10 of 20 right, 10 said: IoU 10/20. The other seven
    # classes count as 0 in the means of nine.
    masks = student.slice().masks

    assert (masks.frames, masks.pixels, masks.pixel_accuracy) == (2, 200, 0.95)
    assert masks.macc9.value == pytest.approx(1.5 / 9, abs=1e-6)
    assert masks.macc8 == pytest.approx(0.5 / 8, abs=1e-6)
    assert masks.miou9.value == pytest.approx((180 / 190 + 0.5) / 9, abs=1e-6)
    assert masks.macc_present == 0.75
    assert masks.miou_present == pytest.approx((180 / 190 + 0.5) / 2, abs=1e-6)
    assert masks.iou["person"] == 0.5
    assert masks.iou["car"] is None
    assert student.slice("light", "night").masks is None
    table = student.mask_confusion
    assert table.classes == SEGMENTATION.classes
    assert (table.counts[0][0], table.counts[2][0], table.counts[2][2]) == (180, 10, 10)


def test_detection_confusion(student) -> None:
    table = student.detection_confusion

    assert table.classes == (*DETECTION.classes, "nothing")
    # Rows are objects: persons found twice, once called a car, once missed; three cars; one detection of nothing.
    assert table.counts == ((2, 0, 1, 1), (0, 0, 0, 0), (0, 0, 3, 0), (1, 0, 0, 0))


def test_flicker(student) -> None:
    # The person of frames 0 and 2 is not there in 1. Persons are detected in frames 0, 2 (twice) and 3.
    assert student.flicker_by_class["person"].model_dump() == {"events": 1, "object_frames": 4, "per_100": 25}
    assert student.flicker_by_class["car"].model_dump() == {"events": 0, "object_frames": 4, "per_100": 0}
    assert student.flicker.per_100 == 12.5
    assert student.flicker_by_class["bicycle"].per_100 is None


def test_worst_frames_come_first(student) -> None:
    # Frame 3: one missed, one false. Frame 1: one missed, 10 of 100 pixels wrong. Frame 2: one false.
    worst = [(frame.index, frame.missed, frame.false, frame.pixel_error, frame.loss) for frame in student.worst_frames]

    assert worst == [(3, 1, 1, None, 2), (1, 1, 0, 0.1, 1.1), (2, 0, 1, None, 1)]


def test_flat_figures_for_gates(report, student) -> None:
    figures = report.figures("student")

    assert figures["miss_rate"] == student.slice().detection.miss_rate.value
    assert figures["miss_rate_night"] == 1
    assert figures["ap50_car"] == 1
    assert figures["recall_person"] == 0.5
    assert figures["miou_present"] == student.slice().masks.miou_present
    assert figures["flicker"] == 12.5
    assert figures["answered_share"] == 0.8
    assert figures["paired_share"] == 0.6
    assert figures["frames"] == 5


# The file


def test_the_file_has_no_nan_is_the_same_twice_and_is_read_again(report, tmp_path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.to_json())

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in the file")

    assert json.loads(report.to_json(), parse_constant=refuse)["schema_version"] == 1
    assert report_of(records(student=STUDENT), settings=SETTINGS).to_json() == report.to_json()
    assert Report.read(path) == report


def test_another_version_is_refused(report, tmp_path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.to_json().replace('"schema_version": 1', '"schema_version": 2'))

    with pytest.raises(ReportError, match="is no report of schema version 1"):
        Report.read(path)


@pytest.mark.parametrize(
    ("value", "kept"), [(math.nan, None), (math.inf, None), (1 / 3, 0.333333), (-1e-9, 0.0), (2, 2.0)]
)
def test_figures_have_six_decimals_and_no_nan(value, kept) -> None:
    score = Score(value=value)

    assert score.value == kept
    assert "-0" not in score.model_dump_json()


def test_persons_at_the_border_of_kaist_images_are_counted_in_no_slice() -> None:
    inside, left, right = (100.0, 100.0, 140.0, 200.0), (1.0, 100.0, 41.0, 200.0), (600.0, 100.0, 640.0, 200.0)
    persons = objects(*((box, PERSON, False, 0) for box in (inside, left, right)))
    record = replace(records(student=STUDENT)[0], truth=persons, size=(640, 512))
    truth = TruthReport(
        description="", counting="kaist", classes=("person",), frames=1, with_truth=1, entries=1, unmatched=0
    )

    found = report_of([record], settings=SETTINGS, truth=truth).students["student"]

    assert found.slice().detection.by_class["person"].objects == 1
    assert [part.objects for part in found.objects if (part.by, part.name) == ("occlusion", "none")] == [1]
    assert sum(part.objects for part in found.objects if part.by == "height") == 1


# Where there is less


def test_without_truth_the_rest_is_there() -> None:
    frames = [FrameRecord(**{**vars(record), "truth": None}) for record in records(student=STUDENT[:4] + STUDENT[:1])]

    found = report_of(frames, settings=SETTINGS).students["student"]

    assert found.slice().detection is None
    assert found.kaist == {}
    assert found.objects == ()
    assert found.detection_confusion is None
    # Frame 4 now shows what frame 0 does: persons in 0, 2 (twice), 3 and 4. The one of frame 2 is gone in 3, where a
    # car is, and back in 4.
    assert found.flicker_by_class["person"].events == 2
    assert found.flicker_by_class["person"].object_frames == 5


def test_a_student_without_a_task_has_no_figures_of_it() -> None:
    only_masks = tuple(Answer(None, answer.confusions) for answer in STUDENT)

    found = report_of(records(student=only_masks), settings=SETTINGS).students["student"]

    assert found.slice().detection is None
    assert found.flicker is None
    assert found.slice().masks.pixel_accuracy == 0.95


def test_no_frame_at_all_is_a_report() -> None:
    empty = report_of([])

    assert (empty.frames.total, empty.students, empty.pairing.offset_ms) == (0, {}, None)


def test_a_frame_without_an_answer_misses_its_objects() -> None:
    lost = (*STUDENT[:3], Answer(rejected="damaged"), STUDENT[4])

    judged = judge(records(student=lost), "student", SETTINGS)

    assert judged.errors[3].missed == 1
    assert judged.errors[3].false == 0


def test_heavily_occluded_and_low_objects_are_neither_missed_nor_wrong_to_find() -> None:
    low, deep = (60, 60, 70, 79), (100, 40, 160, 80)  # 19 px high; three quarters of it hidden
    there = objects((P, PERSON, False, 1), (low, PERSON, False, 0), (deep, CAR, False, 2))
    frames = [replace(frame, truth=there) for frame in records(student=STUDENT)[:2]]

    judged = judge(frames, "student", SETTINGS)

    assert [(errors.missed, errors.false) for errors in judged.errors.values()] == [(0, 0), (1, 0)]
    assert judged.slices[0].detection.by_class["person"].ignored == 2
    assert judged.slices[0].detection.by_class["car"].ignored == 2


def test_what_is_far_apart_in_time_or_of_another_size_does_not_flicker() -> None:
    frames = records(student=STUDENT)
    for change in ({"stamp_ns": 700_000_000}, {"bag": "other"}, {"size": (100, 200)}):
        apart = [*frames[:2], *(replace(frame, **change) for frame in frames[2:3])]
        assert report_of(apart, settings=SETTINGS).students["student"].flicker.events == 0
    assert report_of(frames[:3], settings=SETTINGS).students["student"].flicker.events == 1


def test_classes_that_are_not_annotated_are_no_false_detections() -> None:
    truth = TruthReport(
        description="", counting="plain", classes=("person",), frames=5, with_truth=5, entries=5, unmatched=0
    )

    judged = judge(records(student=STUDENT), "student", SETTINGS, truth)

    assert set(judged.slices[0].detection.by_class) == {"person"}
    assert judged.errors[3].false == 0  # the car is nobody's business


def test_blocks_are_of_one_bag_and_time() -> None:
    frames = records(student=STUDENT)

    assert blocks_of(frames, 0.2).tolist() == [0, 0, 1, 1, 2]
    assert blocks_of(frames, 0).tolist() == [0, 1, 2, 3, 4]
    # From the first frame of each bag on, whenever that was.
    later = [replace(frame, stamp_ns=frame.stamp_ns + 130_000_000) for frame in frames]
    others = [replace(frame, bag="other") for frame in later[1:3]]
    assert blocks_of([*later, *others], 0.2).tolist() == [0, 0, 1, 1, 2, 3, 3]


# Several students


BETTER = (
    STUDENT[0],
    Answer(seen((P, 0.9, PERSON), (C, 0.8, CAR)), {"truth": pixels(t0s0=90, t2s2=10)}),  # the person does not flicker
    Answer(seen((P, 0.9, PERSON), (EMPTY, 0.7, PERSON))),  # but the car is lost
    STUDENT[3],
    STUDENT[4],
)


def test_two_students_are_compared_frame_by_frame() -> None:
    found = report_of(records(old=STUDENT, new=BETTER), settings=SETTINGS).comparisons[0]

    assert (found.baseline, found.candidate) == ("old", "new")
    # Frame 1 lost a miss and .1 of pixel error, frame 2 has a miss more, the other three are the same.
    assert (found.better, found.worse, found.same) == (1, 1, 3)
    assert [(frame.candidate.index, frame.change) for frame in found.worst] == [(2, 1)]
    by_name = {(one.figure, one.subset): one for one in found.differences}
    missed = by_name["missed_per_frame", "all"]
    assert (missed.baseline, missed.candidate, missed.difference.value) == (0.4, 0.4, 0)
    # Three persons of four are now found with .9, before the false one of .7: the miss rate is .25 at all references.
    rate = by_name["miss_rate", "all"]
    assert rate.candidate == 0.25
    assert rate.difference.value == pytest.approx(0.25 - 0.5 ** (12 / 9), abs=2e-6)
    assert rate.difference.low <= rate.difference.value <= rate.difference.high <= 0
    pixel = by_name["pixel_accuracy", "all"]
    assert (pixel.baseline, pixel.candidate, pixel.difference.value) == (0.95, 1, 0.05)
    assert pixel.difference.low is None  # two frames with masks are too few to redraw


def test_a_difference_in_every_frame_is_sure() -> None:
    more = tuple(
        Answer(seen((EMPTY, 0.95, CAR), *[(tuple(b), s, k) for b, s, k in _rows(answer)])) for answer in STUDENT
    )

    found = {one.figure: one for one in _all(report_of(records(old=STUDENT, new=more), settings=SETTINGS))}

    # Every redraw has one false detection a frame more.
    assert found["false_per_frame"].difference.model_dump() == {"value": 1, "low": 1, "high": 1}
    assert found["false_per_frame"].verdict == "worse"
    assert found["missed_per_frame"].verdict == "undecided"


def _rows(answer: Answer) -> list[tuple]:
    found = answer.detections or seen()
    return list(zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True))


def _all(report: Report) -> list:
    return [one for one in report.comparisons[0].differences if one.subset == "all"]


def test_agreement_with_a_teacher_needs_no_truth() -> None:
    # The teacher sees the person and the car in frames 0 to 2, is not sure of a bicycle, and nothing in 3.
    both = Answer(seen((P, 0.9, PERSON), (C, 0.8, CAR), (EMPTY, 0.4, BICYCLE)))
    teacher = (both, both, both, Answer(seen()), both)
    masks = pixels(t0s0=80, t1s1=20), pixels(t0s0=80, t1s0=20)
    student = tuple(
        Answer(answer.detections, {"teacher": mask}, answer.rejected)
        for answer, mask in zip(STUDENT, (*masks, *masks, masks[0]), strict=True)
    )
    frames = [FrameRecord(**{**vars(r), "truth": None}) for r in records(student=student, teacher=teacher)]

    found = report_of(frames, teacher="teacher", settings=SETTINGS).agreement["student"]

    # Frame 4 has no answer of the student's detector; its mask was compared all the same.
    whole = found.slices[0]
    assert whole.detection.frames == 4
    person, car = whole.detection.by_class["person"], whole.detection.by_class["car"]
    # Persons: found in 0 and 2, missed in 1, false in 2 and 3. Cars: found in 0, 1, 2, false in 3.
    assert (person.found, person.missed, person.false) == (2, 1, 2)
    assert person.f1 == pytest.approx(4 / 7, abs=1e-6)
    assert (car.found, car.missed, car.false) == (3, 0, 1)
    assert (whole.detection.by_class["bicycle"].objects, whole.detection.by_class["bicycle"].ap) == (0, None)
    # Five frames: 400 + 40 pixels called 0, of 400; 60 of 100 called 1. IoU 400/440 and 60/100.
    assert whole.masks.miou_present == pytest.approx((400 / 440 + 0.6) / 2, abs=1e-6)
    # Frame 3: two false and .2 of the pixels; 1: one missed and .2; 2: one false; 0 and 4 agree.
    assert [(frame.index, frame.loss) for frame in found.worst] == [(3, 2.2), (1, 1.2), (2, 1.0)]
    assert found.figures()["agreement_f1_car"] == pytest.approx(6 / 7, abs=1e-6)
    assert agreement_of(frames, "student", "teacher", SETTINGS) == found


def test_the_teacher_agrees_with_itself() -> None:
    frames = records(teacher=STUDENT[:4] + STUDENT[:1])

    found = agreement_of(frames, "teacher", "teacher", SETTINGS.model_copy(update={"teacher_score": 0.3}))

    assert found.slices[0].detection.ap50.value == pytest.approx(1, abs=1e-6)
    assert found.worst == ()


def test_every_field_of_the_report_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/evaluation.md").read_text()
    text = page.partition("## report.json")[2].partition("\n## ")[0]

    parts = [one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, schema.Part)]
    missing = {
        f"{part.__name__}.{name}" for part in parts for name in part.model_fields if not re.search(rf"`{name}\b", text)
    }

    assert len(parts) > 20
    assert missing == set()


def test_every_figure_of_a_gate_is_documented(report) -> None:
    page = (Path(__file__).parents[3] / "docs/evaluation.md").read_text()
    text = page.partition("## Figures")[2].partition("\n## ")[0]

    names = {re.sub("_(person|car|day|night)", "", name) for name in report.figures("student")}

    assert {name for name in names if f"`{name}`" not in text} == set()
