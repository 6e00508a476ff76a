"""RetinaNet, preset `light`: a narrow FPN on C3-C5, towers shared over levels, anchors for persons, cycles and cars.

Its cost is what the paper's run times imply (0.44 times the backbone's multiplications).
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, box_convert

from md_training.models.backbone import CHANNELS, STRIDES, Features

LEVELS = ("c3", "c4", "c5")
DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)
"""Units of the box deltas: centre shift in anchor sizes, logarithm of the size ratio."""
MAX_LOG_RATIO = math.log(1000 / 16)
"""A predicted box is at most this much (as a logarithm) larger than its anchor, so that exp cannot overflow."""
FIRST_SCORE = 0.01
"""Score of every anchor before training: keeps the sum over all background anchors small in the first steps."""


@dataclass(frozen=True)
class RetinaNetSettings:
    """The defaults are the `pedestrian` anchors (h = 40 px x 2^k x {1, sqrt 2}, w/h = .41) and two wider shapes.

    Why anchor_columns (FaceBoxes' densification, Zhang et al., IJCB 2017): at a small network a person is narrower
    than two cells of stride 8, and anchors 8 px apart miss it. More columns cost output channels only; a pyramid level
    of stride 4 would cost four times the neck and head.
    """

    channels: int = 128
    """Of the pyramid and the towers."""
    tower_convs: int = 2
    """3x3 convolutions per task before the output layer."""
    anchor_side: float = 25.6
    """Square root of the area of the smallest anchor at stride 8, px of the input; it doubles with each level."""
    anchor_scales: tuple[float, ...] = (1.0, 2.0**0.5)
    """Multiples of it at every level."""
    anchor_ratios: tuple[float, ...] = (0.41, 1.0, 2.0)
    """Width / height."""
    anchor_columns: int = 1
    """Anchors of each kind side by side in a cell."""

    @property
    def anchors_per_cell(self) -> int:
        return self.anchor_columns * len(self.anchor_ratios) * len(self.anchor_scales)


@dataclass(frozen=True)
class DetectionLogits:
    """Raw heads of one batch over all N anchors, ordered by level, row, column, anchor of the cell.

    classes: float (B, N, K), logits of K independent sigmoids. deltas: float (B, N, 4), see decode_boxes.
    """

    classes: Tensor
    deltas: Tensor


def make_anchors(settings: RetinaNetSettings, input_size: tuple[int, int]) -> Tensor:
    """Return float32 (N, 4), the anchors of a network input, xyxy px, not clipped to the image.

    input_size: (width, height) px. Order as in DetectionLogits; within a cell column, ratio,
    scale, the scale fastest.
    """
    anchors = []
    for level, name in enumerate(LEVELS):
        stride = STRIDES[name]
        side = settings.anchor_side * 2**level
        sizes = torch.tensor(
            [
                (side * scale * ratio**0.5, side * scale / ratio**0.5)
                for ratio in settings.anchor_ratios
                for scale in settings.anchor_scales
            ]
        )  # A, 2
        ys = (torch.arange(input_size[1] // stride) + 0.5) * stride
        columns = settings.anchor_columns
        xs = (torch.arange(input_size[0] // stride * columns) + 0.5) * stride / columns
        centres = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)  # h, w x columns, 2
        centres, sizes = torch.broadcast_tensors(centres[:, :, None], sizes)  # h, w x columns, A / columns, 2
        anchors.append(box_convert(torch.cat([centres, sizes], dim=-1).reshape(-1, 4), "cxcywh", "xyxy"))
    return torch.cat(anchors)


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the deltas that turn anchors into boxes; both float (N, 4), xyxy px, of positive size."""
    box, anchor = box_convert(boxes, "xyxy", "cxcywh"), box_convert(anchors, "xyxy", "cxcywh")
    shift = (box[:, :2] - anchor[:, :2]) / anchor[:, 2:]
    ratio = torch.log(box[:, 2:] / anchor[:, 2:])
    return torch.cat([shift, ratio], dim=1) / boxes.new_tensor(DELTA_SCALE)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Return boxes, xyxy px, not clipped to the image. deltas: float (..., N, 4). anchors: float (N, 4), xyxy px."""
    deltas = deltas * deltas.new_tensor(DELTA_SCALE)
    low, high = anchors[:, :2], anchors[:, 2:]
    size = high - low
    centre = (low + high) / 2 + deltas[..., :2] * size
    half = size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_RATIO)) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


class RetinaNet(nn.Module):
    """Neck and heads of the detector; the class heads are sigmoids without a background column."""

    def __init__(self, settings: RetinaNetSettings, class_count: int) -> None:
        super().__init__()
        channels, anchors = settings.channels, settings.anchors_per_cell
        self.class_count = class_count
        self.neck = FeaturePyramidNetwork([CHANNELS[name] for name in LEVELS], channels, norm_layer=nn.BatchNorm2d)
        self.class_tower = _tower(channels, settings.tower_convs)
        self.box_tower = _tower(channels, settings.tower_convs)
        self.class_output = nn.Conv2d(channels, anchors * class_count, 3, padding=1)
        self.box_output = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for output, bias in (
            (self.class_output, -math.log((1 - FIRST_SCORE) / FIRST_SCORE)),
            (self.box_output, 0.0),
        ):
            assert output.bias is not None
            nn.init.normal_(output.weight, std=0.01)
            nn.init.constant_(output.bias, bias)

    def forward(self, features: Features) -> DetectionLogits:
        maps = self.neck(OrderedDict((name, getattr(features, name)) for name in LEVELS)).values()
        classes = [_flatten(self.class_output(self.class_tower(level)), self.class_count) for level in maps]
        deltas = [_flatten(self.box_output(self.box_tower(level)), 4) for level in maps]
        return DetectionLogits(torch.cat(classes, dim=1), torch.cat(deltas, dim=1))


def _tower(channels: int, convs: int) -> nn.Sequential:
    # No normalisation: the tower sees levels with different statistics, which one BatchNorm cannot serve.
    layers: list[nn.Module] = []
    for _ in range(convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        assert conv.bias is not None
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _flatten(output: Tensor, values: int) -> Tensor:
    """From (B, A x values, h, w) to (B, h x w x A, values)."""
    batch = output.shape[0]
    return output.permute(0, 2, 3, 1).reshape(batch, -1, values)
