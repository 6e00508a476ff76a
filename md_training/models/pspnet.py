"""PSPNet head (Zhao et al., CVPR 2017) on ResNet-18, with a light decoder for small inputs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from md_training.models.backbone import CHANNELS, Features, Level

POOLS = (1, 2, 3, 6)
"""Cells per side of the pooled maps."""


@dataclass(frozen=True)
class PSPNetSettings:
    """Output stride 32 is the PSPNet whose run time the paper reports.

    At less, the pooled context is refined by 1x1 laterals of the finer maps, top-down, as UPerNet does (Xiao et al.,
    ECCV 2018). The usual way to a smaller stride, dilating the backbone, costs five times the backbone at stride 8 and
    would take its scales away from the detector that shares it; the decoder costs a fifth of it at stride 4.
    `dilated` is that usual way all the same, at 16 and 8, for networks that only segment.
    """

    channels: int = 128
    """Of every branch and of the decoder."""
    output_stride: Literal[4, 8, 16, 32] = 32
    """Pixels of the network's input per cell of the logits."""
    dropout: float = 0.1
    """Probability of dropping a channel before the classifier."""
    auxiliary: bool = True
    """A second head on C4, in training only."""
    dilated: bool = False
    """Dilate the backbone to the output stride instead of refining by laterals."""

    def __post_init__(self) -> None:
        if self.dilated and self.output_stride not in (8, 16):
            raise ValueError(f"a dilated backbone has output stride 8 or 16, not {self.output_stride}")


@dataclass(frozen=True)
class SegmentationLogits:
    """Raw heads of one batch, float (B, K, h, w): main at the output stride; auxiliary at C4's, in training only."""

    main: Tensor
    auxiliary: Tensor | None


class PSPNet(nn.Module):
    """Pyramid pooling, optional decoder, classifier. The logits are upsampled where they are used, not here."""

    def __init__(self, settings: PSPNetSettings, class_count: int) -> None:
        super().__init__()
        channels = settings.channels
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), *conv_norm_relu(CHANNELS["c5"], channels, 1)) for cells in POOLS
        )
        self.bottleneck = nn.Sequential(*conv_norm_relu(CHANNELS["c5"] + len(POOLS) * channels, channels, 3))
        laterals: dict[int, tuple[Level, ...]] = {32: (), 16: ("c4",), 8: ("c4", "c3"), 4: ("c4", "c3", "c2")}
        self.lateral_names = () if settings.dilated else laterals[settings.output_stride]
        self.laterals = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(CHANNELS[name], channels, 1)) for name in self.lateral_names
        )
        self.refine = (
            nn.Sequential(*conv_norm_relu(channels, channels // 2, 3)) if self.lateral_names else nn.Identity()
        )
        self.dropout = nn.Dropout2d(settings.dropout)
        self.classifier = nn.Conv2d(channels // 2 if self.lateral_names else channels, class_count, 1)
        self.auxiliary = (
            nn.Sequential(*conv_norm_relu(CHANNELS["c4"], 64, 3), nn.Conv2d(64, class_count, 1))
            if settings.auxiliary
            else None
        )

    def forward(self, features: Features) -> SegmentationLogits:
        size = features.c5.shape[-2:]
        pooled = [F.interpolate(pool(features.c5), size, mode="bilinear", align_corners=False) for pool in self.pools]
        context = self.bottleneck(torch.cat([features.c5, *pooled], dim=1))
        for name, lateral in zip(self.lateral_names, self.laterals, strict=True):
            finer = lateral(getattr(features, name))
            context = finer + F.interpolate(context, finer.shape[-2:], mode="bilinear", align_corners=False)
        auxiliary = self.auxiliary(features.c4) if self.auxiliary is not None and self.training else None
        return SegmentationLogits(self.classifier(self.dropout(self.refine(context))), auxiliary)


def conv_norm_relu(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, ...]:
    """Return a convolution that keeps the size, its BatchNorm and a ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
