"""RetinaNet, preset `light`: a narrow FPN on C3-C5, towers shared over levels, anchors for persons, cycles and cars.

Its cost is what the paper's run times imply (0.44 times the backbone's multiplications). The settings and anchors of
the author's own network (retinanet_mg.py) are here, too.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, box_convert, clip_boxes_to_image

from md_training.models.backbone import CHANNELS, Features, Level

LEVELS: tuple[Level, ...] = ("c3", "c4", "c5")
"""Feature maps that the detector reads."""
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
    neck: Literal["light", "retinanet_mg"] = "light"
    """`retinanet_mg` is the author's: a joint map, then an FPN, and heads that the levels do not share."""
    levels: Literal[3, 4, 5] = 3
    """Levels of the pyramid, from stride 8 on, each of twice the stride."""
    clip_anchors: bool = False
    """Clip the anchors to the network's input."""

    @property
    def anchors_per_cell(self) -> int:
        return self.anchor_columns * len(self.anchor_ratios) * len(self.anchor_scales)


LIGHT = RetinaNetSettings()
"""The default."""


def pedestrian_anchors(settings: RetinaNetSettings) -> RetinaNetSettings:
    """Return the settings with anchors for persons only: w/h = .41, h = 40 px x 2^k x {1, sqrt 2}, strides 8 to 32."""
    return replace(
        settings, levels=3, anchor_side=25.6, anchor_scales=(1.0, 2.0**0.5), anchor_ratios=(0.41,), clip_anchors=False
    )


def paper_anchors(settings: RetinaNetSettings) -> RetinaNetSettings:
    """Return the settings with the author's anchors: 24 px x 2^k x {1, sqrt 2}, w/h 1, 2 and 1/2, strides 8 to 128."""
    shapes = (1.0, 2.0, 0.5)
    return replace(
        settings, levels=5, anchor_side=24.0, anchor_scales=(1.0, 2.0**0.5), anchor_ratios=shapes, clip_anchors=True
    )


RETINANET_MG = paper_anchors(RetinaNetSettings(neck="retinanet_mg", channels=256, tower_convs=0))
"""The author's network of 2020, with his anchors. His heads of 2021 have one more convolution (tower_convs=1)."""


@dataclass(frozen=True)
class DetectionLogits:
    """Raw heads of one batch over all N anchors, ordered by level, row, column, anchor of the cell.

    classes: float (B, N, K), logits of K independent sigmoids. deltas: float (B, N, 4), see decode_boxes.
    """

    classes: Tensor
    deltas: Tensor


def make_anchors(settings: RetinaNetSettings, input_size: tuple[int, int]) -> Tensor:
    """Return float32 (N, 4), the anchors of a network input, xyxy px.

    input_size: (width, height) px. Order as in DetectionLogits; within a cell column, ratio,
    scale, the scale fastest.
    """
    anchors = []
    for level in range(settings.levels):
        stride = 8 * 2**level
        side = settings.anchor_side * 2**level
        sizes = torch.tensor(
            [
                (side * scale * ratio**0.5, side * scale / ratio**0.5)
                for ratio in settings.anchor_ratios
                for scale in settings.anchor_scales
            ]
        )  # A, 2
        rows, cells = (math.ceil(side_px / stride) for side_px in (input_size[1], input_size[0]))
        ys = (torch.arange(rows) + 0.5) * stride
        columns = settings.anchor_columns
        xs = (torch.arange(cells * columns) + 0.5) * stride / columns
        centres = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)  # h, w x columns, 2
        centres, sizes = torch.broadcast_tensors(centres[:, :, None], sizes)  # h, w x columns, A / columns, 2
        anchors.append(box_convert(torch.cat([centres, sizes], dim=-1).reshape(-1, 4), "cxcywh", "xyxy"))
    result = torch.cat(anchors)
    return clip_boxes_to_image(result, input_size[::-1]) if settings.clip_anchors else result


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
        self.coarser = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(settings.levels - len(LEVELS))
        )
        initialise_outputs(self.class_output, self.box_output)

    def forward(self, features: Features) -> DetectionLogits:
        maps = list(self.neck(OrderedDict((name, getattr(features, name)) for name in LEVELS)).values())
        for conv in self.coarser:
            maps.append(conv(maps[-1]).relu())
        classes = [flatten(self.class_output(self.class_tower(level)), self.class_count) for level in maps]
        deltas = [flatten(self.box_output(self.box_tower(level)), 4) for level in maps]
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


def initialise_outputs(class_output: nn.Conv2d, box_output: nn.Conv2d) -> None:
    """Start with every class at FIRST_SCORE and every box at its anchor."""
    for output, bias in ((class_output, -math.log((1 - FIRST_SCORE) / FIRST_SCORE)), (box_output, 0.0)):
        assert output.bias is not None
        nn.init.normal_(output.weight, std=0.01)
        nn.init.constant_(output.bias, bias)


def flatten(output: Tensor, values: int) -> Tensor:
    """From (B, A x values, h, w) to (B, h x w x A, values)."""
    batch = output.shape[0]
    return output.permute(0, 2, 3, 1).reshape(batch, -1, values)
