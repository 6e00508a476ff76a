"""Guided attentive feature fusion (GAFF, Zhang et al., WACV 2021): the fusion of the teacher, and its losses.

Three convolutions per fusion point. Intra-modality masks say, for each camera alone, where the foreground is;
inter-modality masks say which camera to trust. Both are learnt from the truth: see `gaff_losses`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from md_training.models.backbone import Level
from md_training.processes import ALONE, Processes

VISIBLE, THERMAL = 0, 1
"""Channels of the masks."""


@dataclass(frozen=True)
class GaffSettings:
    """Where and how the two streams are fused. The sources state neither kernel nor margin."""

    levels: tuple[Level, ...] = ("c3", "c4", "c5")
    """Feature maps that GAFF fuses; the others are the plain mean of both streams."""
    kernel: Literal[1, 3] = 3
    """Of the mask convolutions; 3 as in the author's other heads."""
    margin: float = 0.1
    """By how much one camera's intra mask has to be the better one for the inter mask to learn from the cell."""

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"GAFF levels {self.levels}: name at least one of c2, c3, c4, c5, each once")
        if not 0 <= self.margin < 1:
            raise ValueError(f"GAFF margin {self.margin}: it is a difference of two masks, 0 <= margin < 1")


@dataclass(frozen=True)
class Fusion:
    """What one GAFF made of a pair of feature maps.

    features: (B, C, h, w), the fused map (Eq. 2). The rest is float32. intra: (B, 2, h, w) in 0..1, channels VISIBLE
    and THERMAL. inter_logits: same shape. inter: their softmax over the two channels. attention: (B, 1, h, w) in 0..1,
    intra weighted by inter (the teacher's mask of Eq. 3).
    """

    features: Tensor
    intra: Tensor
    inter_logits: Tensor
    inter: Tensor
    attention: Tensor


class Gaff(nn.Module):
    """One fusion point. channels: of each of the two feature maps, and of the fused one."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        padding = kernel // 2
        self.intra_visible = nn.Conv2d(channels, 1, kernel, padding=padding)
        self.intra_thermal = nn.Conv2d(channels, 1, kernel, padding=padding)
        self.inter = nn.Conv2d(2 * channels, 2, kernel, padding=padding)
        for conv in (self.intra_visible, self.intra_thermal, self.inter):
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=0.01)  # masks start near 0.5: neither camera is preferred
            nn.init.zeros_(conv.bias)

    def forward(self, visible: Tensor, thermal: Tensor) -> Fusion:
        """visible, thermal: (B, C, h, w), the same map of the two streams."""
        intra = torch.cat([self.intra_visible(visible), self.intra_thermal(thermal)], dim=1).float().sigmoid()
        inter_logits = self.inter(torch.cat([visible, thermal], dim=1)).float()
        inter = inter_logits.softmax(dim=1)
        weight = ((1 + intra) * (1 + inter)).to(visible.dtype)  # Eq. 1
        features = (visible * weight[:, :1] + thermal * weight[:, 1:]) / 2  # Eq. 2
        return Fusion(features, intra, inter_logits, inter, (intra * inter).sum(dim=1, keepdim=True))


@dataclass(frozen=True)
class Foreground:
    """Where the objects are, at a feature map's size.

    mask: float32 (B, 1, h, w), 1 on objects, else 0. known: bool, same shape; False where the truth does not say.
    """

    mask: Tensor
    known: Tensor


def box_foreground(
    boxes: Sequence[Tensor], ignored: Sequence[Tensor], size: tuple[int, int], input_size: tuple[int, int]
) -> Foreground:
    """Return the foreground of the detection task: ellipses inscribed in the boxes.

    boxes, ignored: per image float (N, 4), xyxy px of the network input; ignored objects are unknown, unless an
    object covers them. size: (h, w) cells. input_size: (height, width) px.
    """
    objects = torch.stack([ellipses(image, size, input_size) for image in boxes])[:, None]
    unknown = torch.stack([ellipses(image, size, input_size) for image in ignored])[:, None]
    return Foreground(objects.float(), objects | ~unknown)


def ellipses(boxes: Tensor, size: tuple[int, int], input_size: tuple[int, int]) -> Tensor:
    """Return bool (h, w): the centre of the cell lies inside the ellipse of a box, or the box has its centre there.

    The second rule keeps the objects that lie between the cell centres of a coarse map. Arguments as above.
    """
    (rows, columns), (height, width) = size, input_size
    step_y, step_x = height / rows, width / columns
    inside = torch.zeros(size, dtype=torch.bool, device=boxes.device)
    if len(boxes) == 0:
        return inside
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6) / 2
    x = (torch.arange(columns, device=boxes.device) + 0.5) * step_x
    y = (torch.arange(rows, device=boxes.device) + 0.5) * step_y
    across = ((x - centre[:, :1]) / half[:, :1]) ** 2  # G, w
    down = ((y - centre[:, 1:]) / half[:, 1:]) ** 2  # G, h
    inside = (across[:, None, :] + down[:, :, None] <= 1).any(dim=0)
    column = (centre[:, 0] / step_x).long().clamp(0, columns - 1)
    row = (centre[:, 1] / step_y).long().clamp(0, rows - 1)
    inside[row, column] = True
    return inside


def mask_foreground(mask: Tensor, ignored_label: int, size: tuple[int, int]) -> Foreground:
    """Return the foreground of the segmentation task: cells with any pixel of a class other than 0.

    mask: int64 (B, H, W), class ids or ignored_label. size: (h, w) cells. A cell of nothing but ignored pixels is
    unknown. Any pixel, not most: at stride 32 a cone would vanish.
    """
    objects = F.adaptive_max_pool2d(((mask != 0) & (mask != ignored_label)).float()[:, None], size)
    known = F.adaptive_max_pool2d((mask != ignored_label).float()[:, None], size) > 0
    return Foreground(objects, known)


def dice_loss(
    prediction: Tensor, target: Tensor, known: Tensor | None = None, *, epsilon: float = 1.0, squared: bool = False
) -> Tensor:
    """Return the Dice loss of every mask, fp32 (B, C): 1 - (2 sum(p t) + epsilon) / (sum p + sum t + epsilon).

    prediction: (B, C, h, w) in 0..1. target: same, or (B, 1, h, w). known: bool (B, 1, h, w), cells that count.
    epsilon: 1 makes an empty target harmless; near 0 it gives a loss of 1 for whatever small prediction.
    squared: sum p^2 + sum t^2 in the denominator (V-Net). The plain form is smallest at p = t only for binary
    targets: for soft ones its optimum is a thresholded t.
    """
    prediction, target = prediction.float(), target.float().expand_as(prediction)
    if known is not None:
        prediction, target = prediction * known, target * known
    shared = (prediction * target).sum(dim=(2, 3))
    if squared:
        prediction, target = prediction**2, target**2
    return 1 - (2 * shared + epsilon) / (prediction.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) + epsilon)


def gaff_losses(
    fusions: Mapping[Level, Fusion],
    truth: Mapping[Level, Foreground],
    settings: GaffSettings,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """Return the guidance of the masks, 0-d fp32 tensors, means over the levels: `gaff_intra` (0..2), `gaff_inter`."""
    intra = [intra_loss(fusion.intra, truth[level]) for level, fusion in fusions.items()]
    inter = [inter_loss(fusion, truth[level], settings.margin, processes) for level, fusion in fusions.items()]
    return {"gaff_intra": torch.stack(intra).mean(), "gaff_inter": torch.stack(inter).mean()}


def intra_loss(intra: Tensor, truth: Foreground) -> Tensor:
    """Return the Dice loss of the intra masks, the sum of both cameras', mean over the batch."""
    return dice_loss(intra, truth.mask, truth.known).sum(dim=1).mean()


def inter_loss(fusion: Fusion, truth: Foreground, margin: float, processes: Processes = ALONE) -> Tensor:
    """Return the cross-entropy of the inter masks over the cells with a winner; 0, gradient 0, where there is none."""
    winner, decided = better_camera(fusion.intra, truth, margin)
    entropy = F.cross_entropy(fusion.inter_logits, winner, reduction="none")  # B, h, w
    return (entropy * decided).sum() / processes.normaliser(decided.sum())


@torch.no_grad()
def better_camera(intra: Tensor, truth: Foreground, margin: float) -> tuple[Tensor, Tensor]:
    """Say which camera's intra mask is nearer to the truth.

    intra: float (B, 2, h, w). Returns int64 (B, h, w), VISIBLE or THERMAL, and bool (B, h, w): the errors differ by
    more than the margin and the truth is known; where it is False the first means nothing.
    """
    error = (intra.float() - truth.mask).abs()  # B, 2, h, w
    lead = error[:, THERMAL] - error[:, VISIBLE]  # above 0: visible is better
    winner = torch.where(lead > 0, VISIBLE, THERMAL)
    return winner, (lead.abs() > margin) & truth.known[:, 0]
