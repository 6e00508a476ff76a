"""Mutual Guidance: the golden vector of the released code, and what it must never do."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from md_training.assignment import BACKGROUND, IGNORED, amplify, mutual_guidance
from md_training.models.retinanet import decode_boxes, make_anchors
from md_training.presets import PRESETS

CENTRES = (4.0, 12.0, 20.0, 28.0)
GOLDEN_ANCHORS = torch.tensor([(x - 6, y - 6, x + 6, y + 6) for y in CENTRES for x in CENTRES])
GOLDEN_BOXES = torch.tensor([(2.0, 2.0, 13.0, 15.0), (16.0, 16.0, 30.0, 28.0)])
GOLDEN_LABELS = torch.tensor([1, 1])


def golden_heads() -> tuple[torch.Tensor, torch.Tensor]:
    deltas = torch.zeros(16, 4)
    deltas[0] = torch.tensor([0.5, 0.6, 0.0, 0.3])
    deltas[5] = torch.tensor([-0.4, -0.4, 0.1, 0.0])
    logits = torch.full((16, 2), -2.0)
    logits[5], logits[10] = 2.0, 1.0
    return logits, deltas


def test_golden_vector_of_the_released_code() -> None:
    # 32x32 px image, 16 anchors of 12x12; expected values printed by the authors' code (MutualGuide e3b0999).
    logits, deltas = golden_heads()
    overlap = box_iou(GOLDEN_BOXES, GOLDEN_ANCHORS)
    assert overlap[0, [0, 1, 4, 5]].tolist() == pytest.approx([0.2870, 0.2424, 0.3349, 0.2812], abs=6e-5)
    assert overlap[1, [10, 11, 14, 15]].tolist() == pytest.approx([0.4717, 0.3448, 0.2381, 0.1818], abs=6e-5)
    predicted = box_iou(GOLDEN_BOXES, decode_boxes(deltas, GOLDEN_ANCHORS))
    assert predicted[0, [0, 4, 5]].tolist() == pytest.approx([0.3591, 0.3349, 0.3308], abs=6e-5)
    amplified = amplify(overlap, logits.sigmoid()[:, GOLDEN_LABELS].T)
    assert amplified[0, [0, 4, 5]].tolist() == pytest.approx([0.3092, 0.3574, 0.4917], abs=6e-5)
    assert float(amplified[1, 10]) == pytest.approx(0.6208, abs=6e-5)

    assignment = mutual_guidance(GOLDEN_ANCHORS, GOLDEN_BOXES, GOLDEN_LABELS, *golden_heads())

    expected_classes = torch.full((16,), BACKGROUND)
    expected_classes[0], expected_classes[10] = 0, 1
    expected_boxes = torch.full((16,), BACKGROUND)
    expected_boxes[5], expected_boxes[10] = 0, 1
    assert assignment.classes.tolist() == expected_classes.tolist()
    assert assignment.boxes.tolist() == expected_boxes.tolist()


def test_amplified_overlap_lies_between_iou_and_its_root() -> None:
    # M(A=.4, p=.5) = .4^.75 = .5030, M(.4, 1) = .6325, M(.4, 0) = .4.
    amplified = amplify(torch.full((3,), 0.4), torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(amplified, torch.tensor([0.5030, 0.6325, 0.4]), atol=6e-5, rtol=0)


def written_out(
    anchors: Tensor, boxes: Tensor, labels: Tensor, logits: Tensor, deltas: Tensor
) -> tuple[list[int], list[int]] | None:
    """Follow the released code's steps one by one; None where two objects share a best anchor, which it leaves open."""
    objects, count = range(len(boxes)), len(anchors)
    a = box_iou(boxes, anchors).tolist()
    r = box_iou(boxes, decode_boxes(deltas, anchors)).tolist()
    p = [[float(logits[n, labels[g]].sigmoid()) for n in range(count)] for g in objects]
    m = [[a[g][n] ** ((2 - p[g][n]) / 2) for n in range(count)] for g in objects]
    for x in (a, r, m):
        best = [max(range(count), key=x[g].__getitem__) for g in objects]
        if len(set(best)) < len(best):
            return None
        for g in objects:
            x[g][best[g]] = 1.0
        for n in range(count):
            largest = max(x[g][n] for g in objects)
            for g in objects:
                if x[g][n] != largest:
                    x[g][n] = 0.0

    def top(row: list[float], number: int) -> list[int]:
        return [n for n in sorted(range(count), key=row.__getitem__, reverse=True)[:number] if row[n] > 0]

    classes, regression = [BACKGROUND] * count, [BACKGROUND] * count
    for g in objects:
        ignored, positive = sum(v >= 0.4 for v in a[g]), sum(v >= 0.5 for v in a[g])
        for n in top(r[g], ignored):
            classes[n] = IGNORED
        for n in top(r[g], positive):
            classes[n] = g
        for n in top(m[g], positive):
            regression[n] = g
    return classes, regression


def test_agrees_with_the_steps_written_out() -> None:
    # At the demo's anchors, with heads as of a half-trained network; objects of the sizes of the anchors.
    anchors = make_anchors(PRESETS["scenes-demo"][1].network.detection, (64, 64))
    generator = torch.Generator().manual_seed(11)
    compared = several = ignored = 0
    for _ in range(40):
        count = int(torch.randint(1, 5, (), generator=generator))
        low = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([low, low + 8 + torch.rand(count, 2, generator=generator) * 30], dim=1)
        labels = torch.randint(0, 3, (count,), generator=generator)
        logits = torch.randn(len(anchors), 3, generator=generator) * 2 - 1
        deltas = torch.randn(len(anchors), 4, generator=generator)
        expected = written_out(anchors, boxes, labels, logits, deltas)
        if expected is None:
            continue
        assignment = mutual_guidance(anchors, boxes, labels, logits, deltas)
        assert assignment.classes.tolist() == expected[0]
        assert assignment.boxes.tolist() == expected[1]
        compared += 1
        several += sum(value >= 0 for value in expected[0]) > count
        ignored += IGNORED in expected[0]
    assert min(compared, several, ignored) > 15


def test_without_objects_all_is_background() -> None:
    assignment = mutual_guidance(GOLDEN_ANCHORS, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), *golden_heads())
    assert (assignment.classes == BACKGROUND).all()
    assert (assignment.boxes == BACKGROUND).all()


def test_two_objects_that_share_their_best_anchor_both_get_one() -> None:
    boxes = torch.tensor([(6.0, 6.0, 18.0, 18.0), (6.0, 6.0, 18.0, 18.0)])
    assignment = mutual_guidance(
        GOLDEN_ANCHORS, boxes, torch.tensor([0, 1]), torch.full((16, 2), -2.0), torch.zeros(16, 4)
    )
    for assigned in (assignment.classes, assignment.boxes):
        assert set(assigned[assigned >= 0].tolist()) == {0, 1}


def test_the_best_anchor_of_an_object_is_its_own_even_where_another_fits_better() -> None:
    # The wide object overlaps both anchors by more than half, .71 and .85; the small one its best by .28 only.
    anchors = torch.tensor([(0.0, 0.0, 12.0, 12.0), (3.0, 0.0, 15.0, 12.0), (40.0, 0.0, 52.0, 12.0)])
    boxes = torch.tensor([(0.0, 0.0, 4.0, 10.0), (2.0, 0.0, 14.0, 12.0)])
    assignment = mutual_guidance(anchors, boxes, torch.tensor([0, 1]), torch.full((3, 2), -2.0), torch.zeros(3, 4))
    assert assignment.classes.tolist() == [0, 1, BACKGROUND]
    assert assignment.boxes.tolist() == [0, 1, BACKGROUND]


def test_every_object_gets_an_anchor_whatever_the_heads_say() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(30):
        corner = torch.rand(4, 2, generator=generator) * 24
        boxes = torch.cat([corner, corner + 2 + torch.rand(4, 2, generator=generator) * 10], dim=1)
        logits = torch.randn(16, 2, generator=generator) * 3
        deltas = torch.randn(16, 4, generator=generator) * 3
        assignment = mutual_guidance(GOLDEN_ANCHORS, boxes, torch.tensor([0, 1, 0, 1]), logits, deltas)
        for assigned in (assignment.classes, assignment.boxes):
            assert set(assigned[assigned >= 0].tolist()) == {0, 1, 2, 3}


def test_anchors_between_the_two_overlaps_are_ignored_by_the_classes() -> None:
    # One 12x12 anchor on the object and one shifted by 4.5 px: IoU 7.5 / 16.5 = .4545, between .4 and .5.
    anchors = torch.tensor([(0.0, 0.0, 12.0, 12.0), (4.5, 0.0, 16.5, 12.0), (40.0, 0.0, 52.0, 12.0)])
    assignment = mutual_guidance(
        anchors, anchors[:1].clone(), torch.tensor([0]), torch.full((3, 1), -2.0), torch.zeros(3, 4)
    )
    assert assignment.classes.tolist() == [0, IGNORED, BACKGROUND]
    assert assignment.boxes.tolist() == [0, BACKGROUND, BACKGROUND]
