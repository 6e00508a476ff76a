"""Modality distillation: what the student learns from the frozen teacher besides the task (paper, Eq. 3 and 4).

Attention transfer lets the student's mask follow the teacher's; semantic transfer lets its joint features follow the
teacher's fused ones, above all where they differ most. Where the paper's literal form does not work, the default
differs and the switch that gives the literal form is named.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from md_training.losses import IGNORED_PIXEL, Targets
from md_training.models.gaff import dice_loss
from md_training.models.networks import Network, Outputs
from md_training.models.retinanet import DetectionLogits
from md_training.postprocess import DetectionLimits, detect
from md_training.preprocess import make_letterbox


@dataclass(frozen=True)
class DistillationSettings:
    """What is transferred and how. LITERAL has the forms of the paper's equations where the defaults differ."""

    attention_weight: float = 1.0
    """Of the attention transfer in the sum of all terms; 0 leaves it out."""
    semantic_weight: float = 1.0
    """Of the semantic transfer; 0 leaves it out."""
    attention_form: Literal["literal", "squared"] = "literal"
    """`literal` is Eq. 3, whose optimum for a soft teacher mask is that mask thresholded; `squared` has its optimum at
    equality."""
    semantic: Literal["f_mse", "mse", "mse_matched"] = "f_mse"
    """`f_mse` is Eq. 4; `mse` the plain error, for the ablation; `mse_matched` the plain one scaled to the value of
    Eq. 4, which is 1.5 to 25 times as large, for an ablation at equal weight."""
    logits: Literal["mean", "sum"] = "mean"
    """What the softmax over the map sees of the squared errors: their mean over the channels or, literally, their sum,
    which makes it an argmax: one cell of each image gets all the gradient."""
    temperature: float = 1.0
    """Divides the logits."""
    detach_weight: bool = True
    """Take the softmax as a constant. False is the literal graph: with summed logits, the gradient of easy cells is
    negative, and descent makes them worse."""
    normalise: Literal["image", "batch"] = "image"
    """What the softmax spans; Eq. 4 has the image."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature {self.temperature}: it divides the logits and must be above 0")
        if min(self.attention_weight, self.semantic_weight) < 0 or self.attention_weight + self.semantic_weight == 0:
            raise ValueError(
                f"attention_weight {self.attention_weight}, semantic_weight {self.semantic_weight}: "
                "none may be below 0, one has to be above 0"
            )


LITERAL = DistillationSettings(logits="sum", detach_weight=False)
"""Eq. 3 and 4 to the letter."""
ATTENTION_EPSILON = 1e-6
"""Keeps Eq. 3 finite where both masks are empty."""


@torch.no_grad()
def teach(teacher: Network, image: Tensor) -> Outputs:
    """Run the teacher on full-resolution images of the same view as the student's: float (B, 6, H, W).

    Raises RuntimeError where the teacher is in training mode: its BatchNorm, and with it the target, would drift.
    """
    if teacher.training:
        raise RuntimeError("the teacher is in training mode; call teacher.eval() once, before the student's training")
    return teacher(image)


def distillation_losses(
    student: Outputs, teacher: Outputs, settings: DistillationSettings, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the weighted terms, 0-d fp32 tensors: `TASK_attention` and `TASK_semantic` of each task of the teacher
    that the student distils (NetworkSettings.detection_joint, segmentation_joint).

    The levels are the student's; several give the mean of their losses. Gradients reach the student only. For a
    student of two teachers, to be called with each. mask: bool (B, H, W) of the network input, True where the camera
    saw something; cells without any such pixel (padding) do not count. By default all count.
    Raises ValueError where there is nothing to compute or a configured term cannot be computed.
    """
    losses: dict[str, Tensor] = {}
    for task, taught in teacher.joint.items():
        learning = student.joint.get(task)
        if learning is None or not learning.levels:
            continue
        if not set(learning.levels) <= set(taught.levels):
            raise ValueError(
                f"{task}: the student distils the levels {learning.levels}, the teacher fuses {taught.levels}; set "
                f"{task}_joint of the student and gaff.levels of the teacher to levels in common"
            )
        attention, semantic = [], []
        for level in learning.levels:
            pair = getattr(learning.features, level), getattr(taught.features, level)
            if pair[0].shape != pair[1].shape:
                raise ValueError(
                    f"{task}: the {level} maps differ, student {tuple(pair[0].shape)}, teacher {tuple(pair[1].shape)}; "
                    "both need the same network input size and output stride"
                )
            known = None if mask is None else F.adaptive_max_pool2d(mask.float()[:, None], pair[0].shape[-2:]) > 0
            if settings.semantic_weight > 0:
                semantic.append(semantic_transfer(*pair, settings, known))
            if settings.attention_weight > 0:
                if level not in learning.attention:
                    raise ValueError(
                        f"{task}: the student has no attention head on {level}; set attention_weight to 0 or "
                        f"{task}_joint.attention to after"
                    )
                masks = learning.attention[level], taught.attention[level]
                attention.append(attention_transfer(*masks, settings.attention_form, known))
        if attention:
            losses[f"{task}_attention"] = settings.attention_weight * torch.stack(attention).mean()
        if semantic:
            losses[f"{task}_semantic"] = settings.semantic_weight * torch.stack(semantic).mean()
    if not losses:
        raise ValueError(
            f"there is nothing to distil: the teacher teaches {_named(teacher)}, the student distils {_named(student)};"
            " the student needs detection_joint or segmentation_joint for a task of the teacher's"
        )
    return losses


def _named(outputs: Outputs) -> str:
    tasks = [f"{task} at {' '.join(joint.levels)}" for task, joint in outputs.joint.items() if joint.levels]
    return " and ".join(tasks) or "nothing"


def attention_transfer(
    student: Tensor, teacher: Tensor, form: Literal["literal", "squared"] = "literal", known: Tensor | None = None
) -> Tensor:
    """Return the Dice loss between two attention masks (Eq. 3), mean over the batch.

    student, teacher: (B, 1, h, w) in 0..1. known: bool, same shape.
    """
    with torch.autocast(student.device.type, enabled=False):
        squared = form == "squared"
        return dice_loss(student, teacher.detach(), known, epsilon=ATTENTION_EPSILON, squared=squared).mean()


def semantic_transfer(
    student: Tensor, teacher: Tensor, settings: DistillationSettings, known: Tensor | None = None
) -> Tensor:
    """Return the (focal) mean squared error between two feature maps (Eq. 4), fp32.

    student, teacher: (B, C, h, w). known: bool (B, 1, h, w), cells that count.
    """
    with torch.autocast(student.device.type, enabled=False):
        error = (student.float() - teacher.detach().float()).square().mean(dim=1)  # B, h, w
        cells = torch.ones_like(error, dtype=torch.bool) if known is None else known[:, 0]
        error = error * cells
        plain = error.sum() / cells.sum().clamp(min=1)
        if settings.semantic == "mse":
            return plain
        weight = _weight(error, cells, student.shape[1], settings)
        if settings.detach_weight:
            weight = weight.detach()
        focal = (weight * error).sum() / (1 if settings.normalise == "batch" else len(error))
        if settings.semantic == "f_mse":
            return focal
        return plain * (focal / plain.clamp(min=torch.finfo(plain.dtype).tiny)).detach()


@torch.no_grad()
def focal_weight(student: Tensor, teacher: Tensor, settings: DistillationSettings) -> Tensor:
    """Return the weights of F-MSE (the paper's Fig. 4), fp32 (B, h, w), of sum 1 per image. Arguments as above."""
    error = (student.float() - teacher.float()).square().mean(dim=1)
    return _weight(error, torch.ones_like(error, dtype=torch.bool), student.shape[1], settings)


def _weight(error: Tensor, cells: Tensor, channels: int, settings: DistillationSettings) -> Tensor:
    """error: (B, h, w), mean over the channels. cells: bool, same shape, those that may have weight."""
    logits = error * (channels if settings.logits == "sum" else 1) / settings.temperature
    # The lowest number instead of -inf: an image without any cell gets weights (of an error of 0) and no NaN.
    logits = logits.masked_fill(~cells, torch.finfo(logits.dtype).min)
    flat = logits.flatten() if settings.normalise == "batch" else logits.flatten(1)
    return flat.softmax(dim=-1).reshape(error.shape)


@torch.no_grad()
def teacher_targets(
    teacher: Network, outputs: Outputs, *, object_score: float = 0.5, ignored_score: float = 0.1
) -> Targets:
    """Return the teacher's results as truth, for pairs that nobody labelled.

    Detections from object_score on are objects; those between ignored_score and object_score are ignored: neither
    object nor background. The mask holds the teacher's classes, or IGNORED_PIXEL where it does not segment.
    """
    width, height = teacher.settings.input_size
    boxes, labels, ignored = [], [], []
    batch = 0
    mask: Tensor | None = None
    if outputs.segmentation is not None:
        full = F.interpolate(outputs.segmentation.main.float(), (height, width), mode="bilinear", align_corners=False)
        mask, batch = full.argmax(dim=1), len(full)
    if outputs.detection is not None:
        batch = len(outputs.detection.classes)
        identity = make_letterbox(height, width, (width, height), teacher.anchors)
        limits = DetectionLimits(score_threshold=ignored_score)
        for index in range(batch):
            row = slice(index, index + 1)
            one = DetectionLogits(outputs.detection.classes[row], outputs.detection.deltas[row])
            found, scores, kinds = detect(one, teacher.anchors, identity, limits)
            sure = scores >= object_score
            boxes.append(found[sure])
            labels.append(kinds[sure])
            ignored.append(found[~sure])
    if mask is None:
        mask = torch.full((batch, height, width), IGNORED_PIXEL, device=teacher.anchors.device)
    none = torch.zeros(0, 4, device=mask.device)
    return Targets(
        tuple(boxes) or (none,) * batch,
        tuple(labels) or (none[:, 0].long(),) * batch,
        tuple(ignored) or (none,) * batch,
        mask,
    )
