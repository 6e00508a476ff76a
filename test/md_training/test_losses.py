"""Loss terms against values computed by hand."""

import math

import pytest
import torch

from md_training.losses import (
    LossError,
    Targets,
    balanced_l1,
    check_finite,
    detection_losses,
    focal_loss,
    segmentation_loss,
    total,
)
from md_training.models.retinanet import DetectionLogits


def test_balanced_l1_is_continuous_and_has_the_published_values() -> None:
    b = math.exp(3) - 1  # alpha .5, gamma 1.5
    at_beta = 1.5 * 0.11 + 1.5 / b - 0.5 * 0.11
    errors = torch.tensor([0.11 - 1e-6, 0.11 + 1e-6, -0.11, 1.0, 0.0], dtype=torch.float64)
    expected = torch.tensor([at_beta, at_beta, at_beta, 1.5 + 1.5 / b - 0.055, 0.0], dtype=torch.float64)
    torch.testing.assert_close(balanced_l1(errors), expected, atol=1e-5, rtol=0)


def test_focal_loss_has_gamma_one() -> None:
    # p = .5: a positive costs .25 x .5 x ln 2, a negative .75 x .5 x ln 2.
    loss = focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([0.125, 0.375]) * math.log(2))


def test_image_without_objects_has_no_box_loss_and_a_finite_gradient() -> None:
    anchors = torch.tensor([(0.0, 0.0, 8.0, 8.0), (8.0, 0.0, 16.0, 8.0)])
    deltas = torch.zeros(1, 2, 4, requires_grad=True)
    classes = torch.zeros(1, 2, 3, requires_grad=True)
    nothing = torch.zeros(0, 4)
    targets = Targets((nothing,), (torch.zeros(0, dtype=torch.long),), (nothing,), torch.zeros(1, 8, 16).long())
    losses = detection_losses(DetectionLogits(classes, deltas), anchors, targets)
    assert losses["boxes"].item() == 0
    # Six background sigmoids at p = .5, divided by max(0 positives, 1).
    assert losses["classes"].item() == pytest.approx(6 * 0.375 * math.log(2), rel=1e-6)
    total(losses).backward()
    assert classes.grad is not None
    assert bool(classes.grad.isfinite().all())


def test_detection_losses_are_divided_by_the_positive_anchors_of_the_whole_batch() -> None:
    # The first object lies 1.2 px beside its anchor of 12 px: a delta of 1. Those of the second image are anchors.
    anchors = torch.tensor([(0.0, 0.0, 12.0, 12.0), (40.0, 0.0, 52.0, 12.0), (80.0, 0.0, 92.0, 12.0)])
    beside = anchors[:1] + torch.tensor([1.2, 0.0, 1.2, 0.0])
    none = torch.zeros(0, 4)
    targets = Targets(
        (beside, anchors[:2]), (torch.tensor([0]), torch.tensor([0, 0])), (none, none), torch.zeros(2, 16, 96).long()
    )
    losses = detection_losses(DetectionLogits(torch.zeros(2, 3, 1), torch.zeros(2, 3, 4)), anchors, targets)
    # Three positives at .125 ln 2 and three negatives at .375 ln 2, see above, over 3.
    assert float(losses["classes"]) == pytest.approx(0.5 * math.log(2), rel=1e-6)
    # One of twelve deltas is off, by 1: 1.5 + 1.5 / (e^3 - 1) - .055 = 1.523594.
    assert float(losses["boxes"]) == pytest.approx(1.523594 / 12, rel=1e-5)


def test_a_positive_anchor_learns_its_class_and_no_other() -> None:
    anchors = torch.tensor([(0.0, 0.0, 12.0, 12.0)])
    none = torch.zeros(0, 4)
    targets = Targets((anchors,), (torch.tensor([2]),), (none,), torch.zeros(1, 16, 16).long())
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    detection_losses(DetectionLogits(logits, torch.zeros(1, 1, 4)), anchors, targets)["classes"].backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0] < 0).tolist() == [False, False, True]


def test_anchors_in_an_ignored_region_are_no_background() -> None:
    anchors = torch.tensor([(0.0, 0.0, 8.0, 8.0), (8.0, 0.0, 16.0, 8.0)])
    heads = DetectionLogits(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    nothing = torch.zeros(0, 4)
    region = torch.tensor([(-1.0, -1.0, 9.0, 9.0)])
    targets = Targets((nothing,), (torch.zeros(0, dtype=torch.long),), (region,), torch.zeros(1, 8, 16).long())
    assert float(detection_losses(heads, anchors, targets)["classes"]) == pytest.approx(
        3 * 0.375 * math.log(2), rel=1e-6
    )


def test_segmentation_trains_class_zero_and_leaves_out_255() -> None:
    logits = torch.zeros(1, 9, 2, 2)
    mask = torch.tensor([[[0, 255], [255, 3]]])
    assert float(segmentation_loss(logits, mask, None)) == pytest.approx(math.log(9), rel=1e-6)
    logits[0, 0, 0, 0] = 50  # certain and right about the unlabelled pixel: half of the loss is gone
    assert float(segmentation_loss(logits, mask, None)) == pytest.approx(math.log(9) / 2, rel=1e-6)


def test_not_finite_loss_stops_with_all_terms_in_the_text() -> None:
    with pytest.raises(LossError, match=r"classes=1, boxes=nan"):
        check_finite({"classes": 1.0, "boxes": float("nan")})
