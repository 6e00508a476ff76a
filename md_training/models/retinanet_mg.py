"""RetinaNet, preset `retinanet_mg`: that of Mutual Guidance's author, a joint map, an FPN, heads for each level.

Built like the code released in 2020, except that a convolution before a BatchNorm has no bias here. Neck and head cost
three times those of `light`; by the paper's run times, its own detector was lighter than this.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from md_training.models.backbone import CHANNELS, Features
from md_training.models.retinanet import LEVELS, DetectionLogits, RetinaNetSettings, flatten, initialise_outputs

MOMENTUM = 0.01
"""Of all BatchNorms."""


class RetinaNetMG(nn.Module):
    """Neck and heads; the same outputs as RetinaNet's. settings.tower_convs: convolutions before each output layer."""

    def __init__(self, settings: RetinaNetSettings, class_count: int) -> None:
        super().__init__()
        channels, anchors, levels = settings.channels, settings.anchors_per_cell, range(settings.levels)
        self.class_count = class_count
        self.transforms = nn.ModuleList(_conv_norm_relu(CHANNELS[name], channels, 1) for name in LEVELS)
        self.pyramid = nn.ModuleList(
            _conv_norm_relu(channels if level else len(LEVELS) * channels, channels, 3, stride=2 if level else 1)
            for level in levels
        )
        self.laterals = nn.ModuleList(_conv_norm_relu(channels, channels, 1) for _ in levels)
        self.smooth = nn.ModuleList(_conv_norm_relu(channels, channels, 3) for _ in levels)
        self.class_heads, self.box_heads = nn.ModuleList(), nn.ModuleList()
        for _ in levels:
            class_output = nn.Conv2d(channels, anchors * class_count, 3, padding=1)
            box_output = nn.Conv2d(channels, anchors * 4, 3, padding=1)
            initialise_outputs(class_output, box_output)
            for heads, output in ((self.class_heads, class_output), (self.box_heads, box_output)):
                towers = [_conv_norm_relu(channels, channels, 3) for _ in range(settings.tower_convs)]
                heads.append(nn.Sequential(*towers, output))

    def forward(self, features: Features) -> DetectionLogits:
        sources = [transform(getattr(features, name)) for name, transform in zip(LEVELS, self.transforms, strict=True)]
        size = sources[0].shape[-2:]
        level = torch.cat([F.interpolate(source, size, mode="nearest") for source in sources], dim=1)
        maps: list[Tensor] = []
        for conv in self.pyramid:
            level = conv(level)
            maps.append(level)
        maps = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for index in range(len(maps) - 1, 0, -1):
            finer = maps[index - 1]
            maps[index - 1] = finer + F.interpolate(maps[index], finer.shape[-2:], mode="nearest")
        maps = [smooth(level) for smooth, level in zip(self.smooth, maps, strict=True)]
        classes = [flatten(head(level), self.class_count) for head, level in zip(self.class_heads, maps, strict=True)]
        deltas = [flatten(head(level), 4) for head, level in zip(self.box_heads, maps, strict=True)]
        return DetectionLogits(torch.cat(classes, dim=1), torch.cat(deltas, dim=1))


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, momentum=MOMENTUM), nn.ReLU(inplace=True))
