"""Flicker: who vanishes for exactly one frame and comes back."""

import numpy as np
import pytest

from md_perception.metrics.boxes import overlaps
from md_perception.metrics.flicker import Flicker, flicker, pairs
from md_perception.results import Detections

A, B = (0, 0, 10, 20), (50, 0, 60, 20)


def frame(*boxes: tuple[int, ...], scores: tuple[float, ...] = (), label: int = 0) -> Detections:
    scores = scores or (0.9,) * len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.full(len(boxes), label)
    )


def count(*frames: Detections | None, follows: list[bool] | None = None, least_iou: float = 0.3) -> Flicker:
    return flicker(frames, follows or [False] + [True] * (len(frames) - 1), 0, 0.3, least_iou)


def test_gone_for_one_frame_is_an_event_and_for_two_is_none() -> None:
    assert count(frame(A, B), frame(B), frame(A, B)) == Flicker(events=1, object_frames=5)
    assert count(frame(A, B), frame(B), frame(B), frame(A, B)).events == 0
    assert count(frame(A), frame(), frame(A), frame(), frame(A)) == Flicker(2, 3)
    assert count(frame(A), frame(), frame(A)).per_100 == 50


def test_who_comes_or_goes_for_good_does_not_flicker() -> None:
    assert count(frame(), frame(A), frame(A)).events == 0
    assert count(frame(A), frame(), frame()).events == 0
    assert count(frame(A), frame(), frame(B)).events == 0  # another one, elsewhere


def test_a_low_score_or_another_class_is_gone() -> None:
    assert count(frame(A), frame(A, scores=(0.29,)), frame(A)) == Flicker(1, 2)
    assert count(frame(A), frame(A, scores=(0.3,)), frame(A)) == Flicker(0, 3)  # as the float32 that it is
    assert count(frame(A), frame(A, label=1), frame(A)) == Flicker(1, 2)


def test_an_object_that_moves_is_the_same() -> None:
    # 10 x 20 px, 4 px a frame: 6/14 of the union is shared by neighbours, 2/18 over the gap.
    moved = [(4 * step, 0, 4 * step + 10, 20) for step in range(3)]

    assert overlaps(np.array(moved[:1]), np.array(moved))[0] == pytest.approx([1, 6 / 14, 2 / 18])
    assert count(*(frame(box) for box in moved)).events == 0
    assert count(frame(moved[0]), frame(), frame(moved[2])).events == 0
    assert count(frame(moved[0]), frame(), frame(moved[2]), least_iou=0.1).events == 1
    # Not followed at all with a strict threshold: but then nobody comes back either.
    assert count(*(frame(box) for box in moved), least_iou=0.5).events == 0


def test_frames_that_do_not_follow_or_are_unknown_say_nothing() -> None:
    assert count(frame(A), frame(), frame(A), follows=[False, True, False]).events == 0
    assert count(frame(A), None, frame(A)) == Flicker(0, 2)
    assert count(None, None).per_100 is None
    with pytest.raises(ValueError, match="2 frames, but 1 flags"):
        count(frame(A), frame(A), follows=[True])


def test_each_has_one_partner_and_the_largest_overlap_goes_first() -> None:
    one = np.array([(0, 0, 10, 10), (2, 0, 12, 10)], np.float32)
    other = np.array([(3, 0, 13, 10), (30, 0, 40, 10)], np.float32)

    # (0, 0): 7/13. (1, 0): 9/11 goes first and leaves nobody for the other.
    assert pairs(one, other, 0.3).tolist() == [[1, 0]]
    assert pairs(one, np.zeros((0, 4), np.float32), 0.3).shape == (0, 2)


def test_empty_boxes_overlap_nothing() -> None:
    point = np.array([(5, 5, 5, 5)], np.float32)

    assert overlaps(point, point).tolist() == [[0.0]]
