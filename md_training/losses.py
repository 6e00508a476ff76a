"""Task losses, in fp32 whatever the network ran in; every term goes by name into the log."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_area

from md_training.assignment import BACKGROUND, IGNORED, mutual_guidance
from md_training.models.gaff import Foreground, box_foreground, gaff_losses, mask_foreground
from md_training.models.networks import Network, Outputs, Task
from md_training.models.retinanet import DetectionLogits, encode_boxes
from md_training.processes import ALONE, Processes

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 1.0
"""Gamma is 1 in Mutual Guidance's code, not RetinaNet's 2."""
AUXILIARY_WEIGHT = 0.4
IGNORE_COVERAGE = 0.5
"""An anchor that lies this much inside an ignored box is no background."""
IGNORED_PIXEL = 255


class LossError(RuntimeError):
    """A loss term is not finite; the text holds all terms."""


@dataclass(frozen=True)
class Targets:
    """Truth of one batch in network pixels.

    boxes: per image float32 (G, 4), xyxy. labels: per image int64 (G,). ignored: per image float32 (I, 4), regions
    whose anchors are neither object nor background. mask: int64 (B, H, W), class ids; IGNORED_PIXEL is left out.
    """

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    ignored: tuple[Tensor, ...]
    mask: Tensor


def task_losses(
    network: Network,
    outputs: Outputs,
    targets: Targets,
    class_weights: Tensor | None,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """Return the terms of the network's tasks, each a 0-d fp32 tensor, to be summed.

    A teacher's include the guidance of GAFF's masks; a decision-level network's are those of its two networks.
    processes: those that share the batch out. The mean over them of a term, and of its gradient, is the whole batch's.
    """
    if outputs.members:
        return {
            f"{camera}_{name}": value
            for camera, member in zip(("visible", "thermal"), outputs.members, strict=True)
            for name, value in task_losses(network, member, targets, class_weights, processes).items()
        }
    losses: dict[str, Tensor] = {}
    if outputs.detection is not None:
        losses |= detection_losses(outputs.detection, network.anchors, targets, processes)
    if outputs.segmentation is not None:
        losses["segmentation"] = segmentation_loss(outputs.segmentation.main, targets.mask, class_weights, processes)
        if outputs.segmentation.auxiliary is not None:
            auxiliary = segmentation_loss(outputs.segmentation.auxiliary, targets.mask, class_weights, processes)
            losses["segmentation_auxiliary"] = AUXILIARY_WEIGHT * auxiliary
    if outputs.fusions:
        truth = {
            level: foreground(targets, network.settings.tasks, (fusion.attention.shape[-2], fusion.attention.shape[-1]))
            for level, fusion in outputs.fusions.items()
        }
        losses |= gaff_losses(outputs.fusions, truth, network.settings.gaff, processes)
    return losses


def foreground(targets: Targets, tasks: Sequence[Task], size: tuple[int, int]) -> Foreground:
    """Return what GAFF's masks learn at a map of (h, w) cells; of both tasks, what either calls foreground."""
    parts = []
    if "detection" in tasks:
        height, width = targets.mask.shape[-2:]
        parts.append(box_foreground(targets.boxes, targets.ignored, size, (height, width)))
    if "segmentation" in tasks:
        parts.append(mask_foreground(targets.mask, IGNORED_PIXEL, size))
    mask = torch.stack([part.mask for part in parts]).amax(dim=0)
    known = torch.stack([part.known for part in parts]).all(dim=0)
    return Foreground(mask, known | (mask > 0))


def gradient_norms(losses: Mapping[str, Tensor], parameters: Iterable[nn.Parameter]) -> dict[str, float]:
    """Return the norm of each term's own gradient; 0 where the term reaches no parameter.

    To be called before the backward pass (the graph is kept). A term that stays at 0 over the first steps was
    configured in vain; only `gaff_inter` may, as long as no cell has a winner.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for name, value in losses.items():
        gradients = (
            torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True) if value.requires_grad else ()
        )
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return norms


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms."""
    return torch.stack(list(losses.values())).sum()


def check_finite(terms: Mapping[str, float]) -> None:
    """Raise LossError with all terms where one is not finite."""
    if not all(math.isfinite(value) for value in terms.values()):
        text = ", ".join(f"{name}={value:.4g}" for name, value in terms.items())
        raise LossError(f"the loss is not finite ({text}): lower the learning rate or look at the data of this step")


def detection_losses(
    logits: DetectionLogits, anchors: Tensor, targets: Targets, processes: Processes = ALONE
) -> dict[str, Tensor]:
    """Return focal and box loss of a batch, each over the number of its positive anchors in the batch."""
    class_logits, deltas = logits.classes.float(), logits.deltas.float()
    class_targets = torch.zeros_like(class_logits)
    trained = torch.ones(class_logits.shape[:2], dtype=torch.bool, device=anchors.device)
    positives, predicted, wanted = [], [], []
    for index, (boxes, labels, ignored) in enumerate(zip(targets.boxes, targets.labels, targets.ignored, strict=True)):
        assignment = mutual_guidance(anchors, boxes, labels, class_logits[index], deltas[index])
        positive = assignment.classes >= 0
        class_targets[index, positive, labels[assignment.classes[positive]]] = 1
        positives.append(positive.sum())
        trained[index] = assignment.classes != IGNORED
        if len(ignored):
            trained[index] &= ~((assignment.classes == BACKGROUND) & _covered(anchors, ignored))
        chosen = assignment.boxes >= 0
        predicted.append(deltas[index, chosen])
        wanted.append(encode_boxes(boxes[assignment.boxes[chosen]], anchors[chosen]))
    boxes_wanted = torch.cat(wanted)
    class_positives = torch.stack(positives).sum()
    counts = processes.normaliser(torch.stack([class_positives, class_positives.new_tensor(len(boxes_wanted))]))
    focal = focal_loss(class_logits, class_targets) * trained[..., None]
    boxes_loss = balanced_l1(torch.cat(predicted) - boxes_wanted)
    return {
        "classes": focal.sum() / counts[0],
        "boxes": boxes_loss.sum() / (4 * counts[1]),
    }


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss of every sigmoid, shape of the inputs; targets are 0 or 1."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = torch.where(targets > 0, 1 - logits.sigmoid(), logits.sigmoid())
    weight = torch.where(targets > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return weight * missed**FOCAL_GAMMA * entropy


def balanced_l1(error: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 0.11) -> Tensor:
    """Return the balanced L1 loss of every element (Pang et al., Libra R-CNN, CVPR 2019); continuous at |x| = beta."""
    b = math.exp(gamma / alpha) - 1
    size = error.abs()
    near = alpha / b * (b * size + 1) * torch.log(b * size / beta + 1) - alpha * size
    return torch.where(size < beta, near, gamma * size + gamma / b - alpha * beta)


def segmentation_loss(
    logits: Tensor, mask: Tensor, class_weights: Tensor | None, processes: Processes = ALONE
) -> Tensor:
    """Return the cross-entropy over all classes, 0 included, at the mask's size; 0 where no pixel is labelled.

    logits: (B, K, h, w). mask: int64 (B, H, W). class_weights: float32 (K,) or None.
    """
    logits = F.interpolate(logits.float(), mask.shape[-2:], mode="bilinear", align_corners=False)
    entropy = F.cross_entropy(logits, mask, weight=class_weights, ignore_index=IGNORED_PIXEL, reduction="sum")
    labelled = mask[mask != IGNORED_PIXEL]
    weight = labelled.new_tensor(labelled.numel()) if class_weights is None else class_weights[labelled].sum()
    return entropy / processes.normaliser(weight)


def _covered(anchors: Tensor, regions: Tensor) -> Tensor:
    """Return bool (N,): the anchor lies to IGNORE_COVERAGE of its own area inside one of the regions."""
    low = torch.maximum(anchors[:, None, :2], regions[None, :, :2])
    high = torch.minimum(anchors[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)  # N, I
    return (shared / box_area(anchors)[:, None] >= IGNORE_COVERAGE).any(dim=1)
