"""Segmentation scores of confusion matrices small enough to do by hand."""

import numpy as np
import pytest

from md_perception.metrics.segmentation import NAN_RULE, Confusion


def test_scores_by_hand() -> None:
    truth = np.array([[0, 0, 0, 0], [1, 1, 2, 255]], np.uint8)
    prediction = np.array([[0, 0, 0, 1], [1, 0, 2, 8]], np.uint8)
    confusion = Confusion()
    confusion.add(truth, prediction)
    scores = confusion.scores()
    assert scores.pixels == 7  # 255 is left out
    # Class 0: 3 of 4 found, predicted 4 times; class 1: 1 of 2, predicted twice; class 2: 1 of 1.
    assert scores.accuracy[:3] == pytest.approx((3 / 4, 1 / 2, 1.0))
    assert scores.iou[:3] == pytest.approx((3 / 5, 1 / 3, 1.0))
    # Classes 3 to 8 have no truth: they count as 0 in every mean.
    assert scores.macc9 == pytest.approx((0.75 + 0.5 + 1) / 9)
    assert scores.macc8 == pytest.approx((0.5 + 1) / 8)
    assert scores.miou9 == pytest.approx((3 / 5 + 1 / 3 + 1) / 9)


def test_images_are_pooled_not_averaged() -> None:
    confusion = Confusion()
    confusion.add(np.zeros((1, 9), np.uint8), np.zeros((1, 9), np.uint8))
    confusion.add(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    assert confusion.scores().accuracy[0] == pytest.approx(0.9)


def test_class_that_is_only_predicted_has_iou_zero() -> None:
    confusion = Confusion()
    confusion.add(np.zeros((1, 2), np.uint8), np.array([[0, 4]], np.uint8))
    assert confusion.scores().iou[4] == 0
    assert confusion.scores().iou[0] == pytest.approx(0.5)


def test_table_names_classes_and_rule() -> None:
    table = Confusion().scores().table()
    assert "guardrail" in table
    assert NAN_RULE in table


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [((2, 2), (2, 3), "one size"), ((1, 1), (1, 1), "class id 9")],
)
def test_impossible_masks_are_refused(truth: tuple[int, int], prediction: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Confusion().add(np.zeros(truth, np.uint8), np.full(prediction, 9, np.uint8))
