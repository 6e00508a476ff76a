"""Modality distillation: what the student learns from the frozen teacher besides the task (paper, Eq. 3 and 4).

Attention transfer lets the student's mask follow the teacher's; semantic transfer lets its joint features follow the
teacher's fused ones, above all where they differ most. Where the paper's literal form does not work, the default
differs and the switch that gives the literal form is named.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from md_training.evaluate import class_ids
from md_training.losses import IGNORED_PIXEL, Targets
from md_training.models.backbone import Level
from md_training.models.gaff import dice_loss
from md_training.models.networks import Network, Outputs, Task
from md_training.models.retinanet import DetectionLogits
from md_training.postprocess import DetectionLimits, detect
from md_training.preprocess import make_letterbox
from md_training.processes import ALONE, Processes


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
    task_loss: Literal["labels", "teacher"] = "labels"
    """What the tasks themselves are learnt from: the annotations, or the teachers' results, for pairs that nobody
    labelled."""
    object_score: float = 0.5
    """With task_loss teacher: a teacher's detections from this score on are objects, ..."""
    ignored_score: float = 0.1
    """... and those from this one on neither objects nor background."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature {self.temperature}: it divides the logits and must be above 0")
        if min(self.attention_weight, self.semantic_weight) < 0 or self.attention_weight + self.semantic_weight == 0:
            raise ValueError(
                f"attention_weight {self.attention_weight}, semantic_weight {self.semantic_weight}: "
                "none may be below 0, one has to be above 0"
            )
        if not 0 < self.ignored_score <= self.object_score <= 1:
            raise ValueError(
                f"ignored_score {self.ignored_score}, object_score {self.object_score}: 0 < ignored <= object <= 1"
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
    student: Outputs,
    teacher: Outputs,
    settings: DistillationSettings,
    mask: Tensor | None = None,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """Return the weighted terms, 0-d fp32 tensors: `TASK_attention` and `TASK_semantic` of each task of the teacher
    that the student distils (NetworkSettings.detection_joint, segmentation_joint).

    The levels are the student's; several give the mean of their losses. Gradients reach the student only. For a
    student of two teachers, to be called with each. mask: bool (B, H, W) of the network input, True where the camera
    saw something; cells without any such pixel (padding) do not count. By default all count. processes: see
    losses.task_losses.
    Raises ValueError where there is nothing to compute or a configured term cannot be computed.
    """
    attention: dict[Task, list[Tensor]] = {}
    semantic: dict[Task, list[Tensor]] = {}
    for task, level in _transferred(student, teacher):
        features, known = level.features, _known(mask, level.features[0])
        if settings.semantic_weight > 0:
            semantic.setdefault(task, []).append(semantic_transfer(*features, settings, known, processes))
        if settings.attention_weight > 0:
            if level.attention is None:
                raise ValueError(
                    f"{task}: the student has no attention head on {level.name}; set attention_weight to 0 or "
                    f"{task}_joint.attention to after"
                )
            transfer = attention_transfer(*level.attention, settings.attention_form, known)
            attention.setdefault(task, []).append(transfer)
    losses: dict[str, Tensor] = {}
    for task in teacher.joint:
        if task in attention:
            losses[f"{task}_attention"] = settings.attention_weight * torch.stack(attention[task]).mean()
        if task in semantic:
            losses[f"{task}_semantic"] = settings.semantic_weight * torch.stack(semantic[task]).mean()
    if not losses:
        raise ValueError(
            f"there is nothing to distil: the teacher teaches {_named(teacher)}, the student distils {_named(student)};"
            " the student needs detection_joint or segmentation_joint for a task of the teacher's"
        )
    return losses


@dataclass(frozen=True)
class TransferMaps:
    """What the transfer of one level looks at, for pictures (the paper's Fig. 4).

    weight: fp32 (B, h, w), the weights of F-MSE. student, teacher: (B, 1, h, w) in 0..1, the attention masks; None
    where the student has no attention head.
    """

    weight: Tensor
    student: Tensor | None
    teacher: Tensor | None


@torch.no_grad()
def transfer_maps(
    student: Outputs, teacher: Outputs, settings: DistillationSettings, mask: Tensor | None = None
) -> dict[tuple[Task, Level], TransferMaps]:
    """Return the maps behind the terms of `distillation_losses`, whose arguments these are; none without a distilled
    level. Raises ValueError where the two networks do not fit."""
    maps = {}
    for task, level in _transferred(student, teacher):
        weight = focal_weight(*level.features, settings, _known(mask, level.features[0]))
        maps[task, level.name] = TransferMaps(weight, *(level.attention or (None, None)))
    return maps


@dataclass(frozen=True)
class _Level:
    """One level of a task that is transferred; features and attention: (student's, teacher's)."""

    name: Level
    features: tuple[Tensor, Tensor]
    attention: tuple[Tensor, Tensor] | None


def _transferred(student: Outputs, teacher: Outputs) -> Iterator[tuple[Task, _Level]]:
    """Yield what the student distils of the teacher. Raises ValueError where the two do not fit."""
    for task, taught in teacher.joint.items():
        learning = student.joint.get(task)
        if learning is None or not learning.levels:
            continue
        if not set(learning.levels) <= set(taught.levels):
            raise ValueError(
                f"{task}: the student distils the levels {learning.levels}, the teacher fuses {taught.levels}; set "
                f"{task}_joint of the student and gaff.levels of the teacher to levels in common"
            )
        for level in learning.levels:
            pair = getattr(learning.features, level), getattr(taught.features, level)
            if pair[0].shape != pair[1].shape:
                raise ValueError(
                    f"{task}: the {level} maps differ, student {tuple(pair[0].shape)}, teacher {tuple(pair[1].shape)}; "
                    "both need the same network input size and output stride"
                )
            masks = None
            if level in learning.attention:
                masks = learning.attention[level], taught.attention[level]
            yield task, _Level(level, pair, masks)


def _known(mask: Tensor | None, features: Tensor) -> Tensor | None:
    """Return bool (B, 1, h, w), the cells of a map that hold a pixel of the mask (B, H, W)."""
    return None if mask is None else F.adaptive_max_pool2d(mask.float()[:, None], features.shape[-2:]) > 0


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
    student: Tensor,
    teacher: Tensor,
    settings: DistillationSettings,
    known: Tensor | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Return the (focal) mean squared error between two feature maps (Eq. 4), fp32.

    student, teacher: (B, C, h, w). known: bool (B, 1, h, w), cells that count. Raises ValueError where the weights are
    to span a batch that several processes share.
    """
    if settings.normalise == "batch" and processes.count > 1:
        raise ValueError("normalise batch spans the batch of one process: with several use normalise image")
    with torch.autocast(student.device.type, enabled=False):
        error, cells = _error(student, teacher, known)
        plain = error.sum() / processes.normaliser(cells.sum())
        if settings.semantic == "mse":
            return plain
        weight = _weight(error, cells, student.shape[1], settings)
        if settings.detach_weight:
            weight = weight.detach()
        focal = (weight * error).sum() / (1 if settings.normalise == "batch" else len(error))
        if settings.semantic == "f_mse":
            return focal
        values = processes.mean(torch.stack([focal, plain]))
        return plain * (values[0] / values[1].clamp(min=torch.finfo(plain.dtype).tiny))


@torch.no_grad()
def focal_weight(
    student: Tensor, teacher: Tensor, settings: DistillationSettings, known: Tensor | None = None
) -> Tensor:
    """Return the weights of F-MSE (the paper's Fig. 4), fp32 (B, h, w), of sum 1 per image. Arguments as above."""
    return _weight(*_error(student, teacher, known), student.shape[1], settings)


def _error(student: Tensor, teacher: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean squared error over the channels, fp32 (B, h, w), 0 in the cells that do not count, and those that
    do, bool of the same shape."""
    error = (student.float() - teacher.detach().float()).square().mean(dim=1)
    cells = torch.ones_like(error, dtype=torch.bool) if known is None else known[:, 0]
    return error * cells, cells


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


def taught_targets(
    teachers: Sequence[Network], outputs: Sequence[Outputs], settings: DistillationSettings, seen: Tensor
) -> Targets:
    """Return the results of one teacher, or of several, one for each task, as truth for a student.

    The labels of the objects are ids of labels.DETECTION. seen: bool (B, H, W) of the network input; where the camera
    saw nothing (padding), the mask is IGNORED_PIXEL.
    """
    found: Targets | None = None
    mask: Tensor | None = None
    for teacher, output in zip(teachers, outputs, strict=True):
        targets = teacher_targets(
            teacher, output, object_score=settings.object_score, ignored_score=settings.ignored_score
        )
        if found is None or output.detection is not None:
            ids = torch.from_numpy(class_ids(teacher.settings.detection_classes)).to(seen.device)
            found = replace(targets, labels=tuple(ids[labels] for labels in targets.labels))
        if mask is None or output.segmentation is not None:
            mask = targets.mask
    assert found is not None
    assert mask is not None
    return replace(found, mask=mask.masked_fill(~seen, IGNORED_PIXEL))
