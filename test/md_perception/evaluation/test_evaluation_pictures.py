"""Pictures of single frames."""

from dataclasses import replace

import cv2
import numpy as np
from evaluated_frames import SIZE, boxes, random_records, said

from md_perception.evaluation.page import Panel
from md_perception.evaluation.pictures import WIDTH_PX, Picture, matched, panels
from md_perception.evaluation.records import Answer, FrameRecord, FrameTruth
from md_perception.labels import DETECTION
from md_perception.metrics.detection import TruthBoxes
from md_perception.results import Segmentation

PERSON, CAR = 0, 2
TRUTH = TruthBoxes(
    boxes((100, 100, 150, 200), (300, 100, 350, 200), (500, 100, 550, 200)),
    np.array([PERSON, CAR, PERSON]),
    np.array([False, False, True]),
)
SAID = said(
    [(101, 102, 150, 199), (200, 300, 240, 400), (502, 101, 549, 200), (300, 100, 350, 200)],
    [0.9, 0.8, 0.7, 0.1],
    [PERSON, PERSON, PERSON, CAR],
)
GREY = Picture(np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))


def a_record(**answers: Answer) -> FrameRecord:
    (record,) = random_records({}, 1)
    return replace(record, answers=answers, truth=FrameTruth(TRUTH.boxes, TRUTH.labels, TRUTH.ignored))


def decoded(panel: Panel) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(panel.jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def is_coloured(image: np.ndarray, x: int, y: int, colour: tuple[int, int, int]) -> bool:
    """Say whether one of the pixels here has about this colour, as far as JPEG keeps the colour of a line."""
    near = image[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).astype(int)
    return bool((np.abs(near - colour).max(axis=1) < 90).any())


def test_boxes_are_sorted_into_found_false_missed_and_not_counted() -> None:
    found = matched(TRUTH, SAID.above(0.3))
    assert found.found.scores.tolist() == [np.float32(0.9)]
    assert found.false_alarms.boxes.tolist() == [[200, 300, 240, 400]]
    assert found.missed.boxes.tolist() == [[300, 100, 350, 200]]
    assert found.missed.labels.tolist() == [CAR]
    # What lies in an ignored object, and that object
    assert sorted(box[0] for box in found.not_counted.boxes.tolist()) == [500, 502]


def test_the_student_and_the_truth_stand_side_by_side_in_the_colours_that_the_legend_names() -> None:
    student, truth = panels(a_record(new=Answer(SAID)), GREY, ["new"], TRUTH, None, 0.3)
    assert (student.label, truth.label) == ("new", "truth")
    image = decoded(student)
    assert is_coloured(image, 101, 150, DETECTION.palette[PERSON])
    assert is_coloured(image, 220, 399, (255, 0, 220))  # a false alarm
    assert is_coloured(image, 300, 150, (255, 255, 255))  # a missed object
    reference = decoded(truth)
    assert is_coloured(reference, 300, 150, DETECTION.palette[CAR])
    assert not is_coloured(reference, 220, 399, (255, 0, 220))


def test_without_truth_the_teacher_is_shown() -> None:
    record = replace(a_record(new=Answer(SAID), big=Answer(SAID)), truth=None)
    assert [panel.label for panel in panels(record, GREY, ["new"], None, "big", 0.3)] == ["new", "teacher: big"]
    assert [panel.label for panel in panels(record, GREY, ["new"], None, None, 0.3)] == ["new"]


def test_thermal_is_in_the_corner_of_the_student_below_the_boxes() -> None:
    picture = replace(GREY, thermal=np.full((60, 80), 250, np.uint8))
    answer = Answer(said([(560, 20, 600, 60)], [0.9], [CAR]))
    student, truth = (decoded(panel) for panel in panels(a_record(new=answer), picture, ["new"], None, None, 0.3))
    assert student[100, 620].min() > 240
    assert is_coloured(student, 560, 40, DETECTION.palette[CAR])
    assert truth[100, 620].max() < 100


def test_masks_are_those_of_the_student_and_of_the_truth() -> None:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[300:, :100] = 2
    unknown = np.full_like(mask, 255)
    picture = replace(GREY, masks={"new": Segmentation(mask, mask)}, truth_mask=unknown)
    student, truth = (decoded(panel) for panel in panels(a_record(new=Answer(SAID)), picture, ["new"], None, None, 2.0))
    assert np.ptp(student[400, 50].astype(int)) > 30  # tinted
    assert np.ptp(student[400, 200].astype(int)) < 10
    assert np.ptp(truth[400, 50].astype(int)) < 10  # nothing is known there


def test_large_images_are_reduced_with_their_boxes() -> None:
    picture = Picture(np.full((1024, 1280, 3), 90, np.uint8))
    answer = Answer(said([(800, 600, 1000, 800)], [0.9], [CAR]))
    (student, _) = panels(a_record(new=answer), picture, ["new"], None, None, 0.3)
    image = decoded(student)
    assert student.size == (WIDTH_PX, 512) == (image.shape[1], image.shape[0])
    assert is_coloured(image, 400, 350, DETECTION.palette[CAR])


def test_a_frame_without_an_answer_is_shown_with_all_objects_missed() -> None:
    student, _ = panels(a_record(new=Answer(rejected="no student")), GREY, ["new"], TRUTH, None, 0.3)
    image = decoded(student)
    assert is_coloured(image, 100, 150, (255, 255, 255))
    assert is_coloured(image, 300, 150, (255, 255, 255))
