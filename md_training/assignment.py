"""Mutual Guidance (Zhang et al., ACCV 2020): which anchors learn which object, each task guided by the other.

The first published version (G1): hard labels, as many positives per object as anchors overlap it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from md_training.models.retinanet import decode_boxes

BACKGROUND, IGNORED = -1, -2
POSITIVE_IOU = 0.5
IGNORE_IOU = 0.4
SIGMA = 2.0
"""Temperature of the amplified overlap: a class score of 1 turns an IoU into its square root."""


@dataclass(frozen=True)
class Assignment:
    """Object of every anchor of one image, int64 (N,): an index of the objects, BACKGROUND or IGNORED.

    classes: for the classification. boxes: for the box regression, which trains on objects only.
    """

    classes: Tensor
    boxes: Tensor


@torch.no_grad()
def mutual_guidance(
    anchors: Tensor, boxes: Tensor, labels: Tensor, class_logits: Tensor, box_deltas: Tensor
) -> Assignment:
    """Assign the anchors of one image.

    anchors: float (N, 4). boxes: float (G, 4), objects, both xyxy px; G may be 0: all is background then.
    labels: int64 (G,). class_logits: float (N, K). box_deltas: float (N, 4).
    Every object gets at least one anchor of each kind (as long as anchors last).
    """
    count, objects = len(anchors), len(boxes)
    classes = torch.full((count,), BACKGROUND, device=anchors.device)
    regression = classes.clone()
    if objects == 0:
        return Assignment(classes, regression)

    overlap = box_iou(boxes, anchors)  # G, N
    predicted = box_iou(boxes, decode_boxes(box_deltas.float(), anchors))
    scores = class_logits.float().sigmoid()[:, labels].T  # G, N
    amplified = amplify(overlap, scores)
    counts = _one_object_per_anchor(overlap)
    ignored_count = (counts >= IGNORE_IOU).sum(dim=1)
    positive_count = (counts >= POSITIVE_IOU).sum(dim=1)

    # Localise to classify: the anchors whose predicted boxes fit best learn the class.
    served = _one_object_per_anchor(predicted)
    classes[_best(served, ignored_count)] = IGNORED
    chosen = _best(served, positive_count)
    classes[chosen] = served[:, chosen].argmax(dim=0)
    _serve_all(classes, predicted)

    # Classify to localise: the anchors that name the object best learn its box.
    served = _one_object_per_anchor(amplified)
    chosen = _best(served, positive_count)
    regression[chosen] = served[:, chosen].argmax(dim=0)
    _serve_all(regression, amplified)
    return Assignment(classes, regression)


def amplify(overlap: Tensor, scores: Tensor) -> Tensor:
    """Return the IoU raised by the score of the object's class: IoU at a score of 0, its square root at 1."""
    return overlap ** ((SIGMA - scores) / SIGMA)


def _one_object_per_anchor(fit: Tensor) -> Tensor:
    """Set every object's best anchor to 1, then leave each anchor to its best object (ties survive). fit: (G, N)."""
    fit = fit.clone()
    fit.scatter_(1, fit.argmax(dim=1, keepdim=True), 1.0)
    return fit * (fit == fit.amax(dim=0, keepdim=True))


def _best(fit: Tensor, counts: Tensor) -> Tensor:
    """Return bool (N,): the anchor is among the counts[g] best of an object g.

    fit: (G, N). The released code also takes anchors of fit 0 where an object has too few others, and hands them to
    whatever object comes first; here they stay background.
    """
    values, anchors = fit.topk(int(counts.max()), dim=1)  # G, most
    chosen = (torch.arange(values.shape[1], device=fit.device) < counts[:, None]) & (values > 0)
    result = torch.zeros(fit.shape[1], dtype=torch.bool, device=fit.device)
    result[anchors[chosen]] = True
    return result


def _serve_all(assigned: Tensor, fit: Tensor) -> None:
    """Give every object without an anchor its best one that no other object holds (two objects may tie for one)."""
    for index in range(len(fit)):
        if not (assigned == index).any():
            free = torch.where(assigned >= 0, -1.0, fit[index])
            best = int(free.argmax())
            if assigned[best] < 0:
                assigned[best] = index
