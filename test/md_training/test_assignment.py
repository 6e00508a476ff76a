"""Mutual Guidance: the golden vector of the released code, and what it must never do."""

import torch
from torchvision.ops import box_iou

from md_training.assignment import BACKGROUND, IGNORED, SIGMA, mutual_guidance

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
    overlap = box_iou(GOLDEN_BOXES, GOLDEN_ANCHORS)
    torch.testing.assert_close(
        overlap[0, [0, 1, 4, 5]], torch.tensor([0.2870, 0.2424, 0.3349, 0.2812]), atol=6e-5, rtol=0
    )

    assignment = mutual_guidance(GOLDEN_ANCHORS, GOLDEN_BOXES, GOLDEN_LABELS, *golden_heads())

    expected_classes = torch.full((16,), BACKGROUND)
    expected_classes[0], expected_classes[10] = 0, 1
    expected_boxes = torch.full((16,), BACKGROUND)
    expected_boxes[5], expected_boxes[10] = 0, 1
    assert assignment.classes.tolist() == expected_classes.tolist()
    assert assignment.boxes.tolist() == expected_boxes.tolist()


def test_amplified_overlap_lies_between_iou_and_its_root() -> None:
    # M(A=.4, p=.5) = .4^.75 = .5030, M(.4, 1) = .6325, M(.4, 0) = .4.
    amplified = 0.4 ** ((SIGMA - torch.tensor([0.5, 1.0, 0.0])) / SIGMA)
    torch.testing.assert_close(amplified, torch.tensor([0.5030, 0.6325, 0.4]), atol=6e-5, rtol=0)


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
