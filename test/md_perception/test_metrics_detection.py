"""Average precision of detections small enough to do by hand."""

import numpy as np
import pytest

from md_perception.metrics.detection import TruthBoxes, average_precision, confusion_table
from md_perception.results import Detections

pytest.importorskip("faster_coco_eval")

BOX = (10.0, 10.0, 30.0, 60.0)
FAR = (100.0, 10.0, 120.0, 60.0)


def truth(*boxes: tuple[float, ...], label: int = 0, ignored: tuple[bool, ...] = ()) -> TruthBoxes:
    return TruthBoxes(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(len(boxes), label, np.int64),
        np.array(ignored or (False,) * len(boxes), bool),
    )


def found(*boxes: tuple[float, ...], scores: tuple[float, ...], label: int = 0) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.full(len(boxes), label, np.int64),
    )


def test_perfect_detections() -> None:
    scores = average_precision([truth(BOX, FAR)], [found(BOX, FAR, scores=(0.9, 0.8))])
    assert scores.ap["person"] == pytest.approx(1.0)
    assert scores.ap50["person"] == pytest.approx(1.0)
    assert scores.ap["car"] is None
    assert scores.mean_ap == pytest.approx(1.0)  # classes without objects stay out of the mean
    assert scores.objects == {"person": 2, "bicycle": 0, "car": 0}


def test_false_positive_above_the_hit_halves_the_precision() -> None:
    scores = average_precision([truth(BOX)], [found(FAR, BOX, scores=(0.9, 0.8))])
    assert scores.ap50["person"] == pytest.approx(0.5)


def test_missed_half_of_the_objects() -> None:
    # Precision 1 up to recall .5: 51 of the 101 recalls.
    scores = average_precision([truth(BOX), truth(BOX)], [found(BOX, scores=(0.9,)), found(scores=())])
    assert scores.ap50["person"] == pytest.approx(51 / 101)


def test_loose_box_counts_up_to_its_overlap() -> None:
    # 20 px wide, shifted by 4: IoU 16 / 24 = .667, a hit at .50, .55, .60 and .65.
    loose = (14.0, 10.0, 34.0, 60.0)
    scores = average_precision([truth(BOX)], [found(loose, scores=(0.9,))])
    assert scores.ap50["person"] == pytest.approx(1.0)
    assert scores.ap["person"] == pytest.approx(0.4)


def test_ignored_object_is_neither_asked_for_nor_a_false_positive() -> None:
    with_ignored = truth(BOX, FAR, ignored=(False, True))
    assert average_precision([with_ignored], [found(FAR, BOX, scores=(0.9, 0.8))]).ap50["person"] == pytest.approx(1.0)
    assert average_precision([with_ignored], [found(BOX, scores=(0.8,))]).ap50["person"] == pytest.approx(1.0)


def test_wrong_class_is_a_miss() -> None:
    scores = average_precision([truth(BOX)], [found(BOX, scores=(0.9,), label=2)])
    assert scores.ap50["person"] == 0.0


def test_no_detection_at_all() -> None:
    scores = average_precision([truth(BOX)], [found(scores=())])
    assert scores.ap50["person"] == 0.0
    assert scores.mean_ap50 == 0.0
    assert "person" in scores.table()


def test_images_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 images have truth but 1"):
        average_precision([truth(BOX), truth(BOX)], [found(scores=())])


class TestConfusionTable:
    """Rows are objects, columns detections: person, bicycle, car, nothing."""

    def test_own_class_first_then_others_then_nothing(self) -> None:
        rider = TruthBoxes(np.array([BOX, BOX, FAR], np.float32), np.array([0, 1, 2]), np.zeros(3, np.bool_))
        # On the rider a person and a bicycle, whatever their order; on the car a person, and another beside it.
        away = (200.0, 10.0, 220.0, 60.0)
        detections = Detections(
            np.array([BOX, BOX, FAR, away], np.float32),
            np.array([0.9, 0.8, 0.7, 0.6], np.float32),
            np.array([1, 0, 0, 0]),
        )

        table = confusion_table([rider], [detections], 0.3)

        assert table.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
        # Without the detections the objects are found by nothing.
        assert confusion_table([rider], [detections], 0.95)[:, 3].tolist() == [1, 1, 1, 0]

    def test_detections_in_ignored_objects_of_their_class_are_left_out(self) -> None:
        crowd = truth((0.0, 0.0, 100.0, 100.0), BOX, ignored=(True, False))

        table = confusion_table([crowd], [found(BOX, (40.0, 10.0, 60.0, 60.0), scores=(0.9, 0.8))], 0.3)
        cars = confusion_table([crowd], [found((40.0, 10.0, 60.0, 60.0), scores=(0.8,), label=2)], 0.3)

        assert table.sum() == table[0, 0] == 1
        assert (cars[3, 2], cars[0, 3]) == (1, 1)

    def test_an_object_is_found_once(self) -> None:
        table = confusion_table([truth(BOX)], [found(BOX, BOX, scores=(0.9, 0.8))], 0.3)

        assert (table[0, 0], table[3, 0]) == (1, 1)
