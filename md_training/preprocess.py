"""From camera images to the network's input: letterbox, antialiased resize, thermal sampling, normalisation.

Training, evaluation and the exported graph all call these functions. They use nothing but arithmetic, `arange`,
matrix products and grid sampling on sizes that may be dynamic, so that they export as they are.

Coordinates here are continuous: pixel i covers [i, i + 1) and its centre is i + 0.5, as for boxes. The resize is a
product with a matrix per axis whose rows hold the weights of PIL's (and torch's antialiased) bilinear filter; the same
weights, built the other way round, bring results back to camera pixels. Of such a matrix only a narrow band is not 0,
and only the band is multiplied (see Band): products with the whole matrices were two fifths of the time that a graph
spent around its network (`benchmark --parts around`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's statistics of RGB in 0..1. Thermal enters as three copies with the same statistics, so that the halved
stem sees both cameras at one scale."""
FILL = tuple(round(255 * mean) for mean in MEAN)
"""uint8 RGB whose normalised value is 0 to within rounding: the colour of what a camera did not see."""
THERMAL_STD = 3 / sum(1 / std for std in STD)
THERMAL_MEAN = THERMAL_STD * sum(mean / std for mean, std in zip(MEAN, STD, strict=True)) / 3
"""Of thermal in 0..1: what the mean of the three copies is normalised by."""
SEEN = 32.0
"""Value of the channel of the folded input that says where thermal was seen: near to those of the other channels, which
are in levels, so that neither its values nor its weights are lost where they are rounded."""
BLOCK = 16
"""Rows or columns of the network's input that are computed from one run of camera pixels."""


@dataclass(frozen=True)
class Letterbox:
    """Where the camera image lies in the network input: network = camera * scale + offset, aspect kept, centred.

    All 0-d float32 tensors: scale in network px per camera px; offset_x, offset_y in network px; width, height of the
    camera image in its px.
    """

    scale: Tensor
    offset_x: Tensor
    offset_y: Tensor
    width: Tensor
    height: Tensor


def length(count: int, like: Tensor) -> Tensor:
    """Return a dimension as a 0-d float32 tensor; read off an arange, because a constant would freeze it at export."""
    return torch.arange(count, device=like.device, dtype=torch.float32)[-1] + 1


def make_letterbox(height: int, width: int, input_size: tuple[int, int], like: Tensor) -> Letterbox:
    """Return the letterbox of a camera image of this size. input_size: (width, height) px of the network."""
    camera_height, camera_width = length(height, like), length(width, like)
    scale = torch.minimum(input_size[0] / camera_width, input_size[1] / camera_height)
    return Letterbox(
        scale=scale,
        offset_x=(input_size[0] - camera_width * scale) / 2,
        offset_y=(input_size[1] - camera_height * scale) / 2,
        width=camera_width,
        height=camera_height,
    )


def centres(count: int, like: Tensor) -> Tensor:
    """Return float32 (count,), the continuous coordinates of the pixel centres of one axis."""
    return torch.arange(count, device=like.device, dtype=torch.float32) + 0.5


@dataclass(frozen=True)
class Band:
    """How an axis of N pixels is resampled in blocks of neighbouring results, each from one short run of sources.

    weights: float32 (blocks, results of a block, reach); the sum over the reach is 1, or 0 for a result whose position
    is outside of the source. sources: int64 (blocks, reach), 0 to N - 1: the pixels that they weigh.
    """

    weights: Tensor
    sources: Tensor

    def seen(self) -> Tensor:
        """Return float32 (blocks x results of a block,), 1 where the position lies in the source, else 0."""
        return (self.weights.sum(dim=2) > 0.5).to(torch.float32).flatten()


def make_band(positions: Tensor, count: int, support: Tensor, reach: int | torch.SymInt) -> Band:
    """Return the weights of a triangle filter, at least 0.

    positions: float32 (blocks, results of a block), continuous source coordinates, rising by equal steps. count: N of
    the source. support: 0-d, half the width of the triangle in source px: 1 interpolates linearly, more averages
    (antialias). reach: of how many pixels a block has need, at least its length in the source + 2 support + 3.
    The image continues beyond its border as its last pixel; outside of it, [0, N], weights are 0.
    """
    last = length(count, positions) - 1
    first = torch.floor(positions[:, 0] - support - 0.5)
    sources = first[:, None] + torch.arange(reach, device=positions.device, dtype=torch.float32)  # blocks, reach
    weights = torch.clamp(1 - (positions[:, :, None] - (sources[:, None] + 0.5)).abs() / support, min=0)
    weights = weights * ((sources >= 0) & (sources <= last))[:, None]
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)
    inside = (positions >= 0) & (positions <= last + 1)
    return Band(weights * inside[:, :, None], torch.minimum(sources.clamp(min=0), last).to(torch.int64))


def resample(image: Tensor, band: Band) -> Tensor:
    """Return float32 (B, blocks x results of a block, X). image: (B, N, X), uint8 or float32."""
    (blocks, results, reach), (batch, _, values) = band.weights.shape, image.shape
    runs = image[:, band.sources.flatten()].to(torch.float32).reshape(batch, blocks, reach, values)
    return (band.weights @ runs).reshape(batch, blocks * results, values)


def letterbox_rgb(rgb: Tensor, input_size: tuple[int, int], tiles: int = 1) -> tuple[Tensor, Tensor, Letterbox]:
    """Resize camera images to the network's size, aspect kept, with antialiasing.

    rgb: uint8 (B, H, W, C). tiles: the rows are computed in so many parts, so that what lies between the steps stays in
    a processor's caches.
    Returns float32 (B, C, height, width) in 0..255, float32 (height, width) that is 1 where the camera image is and 0
    in the padding (where the first is 0 too), and the letterbox.
    """
    batch, height, width, channels = rgb.shape
    box = make_letterbox(height, width, input_size, rgb)
    support = torch.clamp(1 / box.scale, min=1)
    # Camera px per network px, 1 / scale, is a ratio of these two whole numbers.
    camera, network = torch.sym_max(width * input_size[1], height * input_size[0]), input_size[0] * input_size[1]
    reach = (BLOCK + 1) * camera // network + 6

    def band(size: int, offset: Tensor, count: int) -> Band:
        pixels = centres(-(-size // BLOCK) * BLOCK, rgb).reshape(-1, BLOCK)
        return make_band((pixels - offset) / box.scale, count, support, reach)

    vertical, horizontal = band(input_size[1], box.offset_y, height), band(input_size[0], box.offset_x, width)
    rows, blocks = rgb.reshape(batch, height, width * channels), len(vertical.weights)
    step = -(-blocks // tiles)
    image = torch.cat(
        [
            resample(rows, Band(vertical.weights[start : start + step], vertical.sources[start : start + step]))
            for start in range(0, blocks, step)
        ],
        dim=1,
    )[:, : input_size[1]]
    columns = image.transpose(1, 2).reshape(batch, width, channels * input_size[1])
    image = resample(columns, horizontal)[:, : input_size[0]].transpose(1, 2)
    image = image.reshape(batch, channels, input_size[1], input_size[0])
    seen = vertical.seen()[: input_size[1], None] * horizontal.seen()[None, : input_size[0]]
    return image, seen, box


def sample_thermal(
    thermal: Tensor, rgb_to_thermal: Tensor, box: Letterbox, input_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Sample thermal once, bilinearly, where the network's pixels are.

    thermal: uint8 (B, h, w), the sensor's own resolution. rgb_to_thermal: float32 (B, 3, 3), from RGB pixel
    coordinates to thermal ones (centres at integers, OpenCV's convention).
    Returns float32 (B, 1, height, width) in 0..255 and the same shape with 1 where the sample lies inside the thermal
    image and in front of the camera, else 0 (where the first has no meaning).
    """
    _, height, width = thermal.shape
    x = ((centres(input_size[0], thermal) - box.offset_x) / box.scale - 0.5)[None, None, :]
    y = ((centres(input_size[1], thermal) - box.offset_y) / box.scale - 0.5)[None, :, None]
    a, b, c, d, e, f, g, h, i = rgb_to_thermal.reshape(-1, 9, 1, 1).unbind(dim=1)
    depth = g * x + (h * y + i)  # B, height, width, as all that follows
    scale = 2 / depth.clamp(min=1e-6)
    thermal_width, thermal_height = length(width, thermal), length(height, thermal)
    grid_x = (a * x + (b * y + c)) * (scale / thermal_width) + (1 / thermal_width - 1)
    grid_y = (d * x + (e * y + f)) * (scale / thermal_height) + (1 / thermal_height - 1)
    # -1 and 1 are the outer edges of the thermal image
    inside = (torch.maximum(grid_x.abs(), grid_y.abs()) <= 1) & (depth > 1e-6)
    sampled = F.grid_sample(
        thermal[:, None].to(torch.float32),
        torch.stack([grid_x, grid_y], dim=-1).clamp(-2, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled, inside.to(torch.float32)[:, None]


def normalise(image: Tensor, seen: Tensor) -> Tensor:
    """Return float32 (B, 3, h, w): ImageNet's mean and deviation taken off, 0 where nothing was seen.

    image: float or uint8 (B, 3, h, w), or (B, 1, h, w) to be copied three times, 0..255. seen: 0 or 1, broadcast to it.
    """
    mean = torch.tensor(MEAN, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=image.device).view(1, 3, 1, 1)
    return (image.to(torch.float32) / 255 - mean) / std * seen


def network_input(
    rgb: Tensor, thermal: Tensor | None, rgb_to_thermal: Tensor | None, input_size: tuple[int, int]
) -> tuple[Tensor, Letterbox]:
    """Return the network's input, float32 (B, 3 or 6, height, width), and the letterbox; arguments as above."""
    image, seen, box = letterbox_rgb(rgb, input_size)
    parts = [normalise(image, seen)]
    if thermal is not None:
        assert rgb_to_thermal is not None
        sampled, inside = sample_thermal(thermal, rgb_to_thermal, box, input_size)
        parts.append(normalise(sampled, inside * seen))
    return torch.cat(parts, dim=1), box


def thermal_input(thermal: Tensor, input_size: tuple[int, int]) -> tuple[Tensor, Letterbox]:
    """Return the input of a thermal-only network where there is no RGB image, float32 (B, 3, height, width), and the
    letterbox of the thermal image, uint8 (B, h, w): the results are in its pixels.
    """
    image, seen, box = letterbox_rgb(thermal[..., None], input_size)
    return normalise(image, seen), box


def folded_input(
    rgb: Tensor | None,
    thermal: Tensor | None,
    rgb_to_thermal: Tensor | None,
    input_size: tuple[int, int],
    tiles: int = 1,
    *,
    one_thermal_mean: bool = False,
) -> tuple[Tensor, Letterbox]:
    """Return the input of a network whose first convolution is folded (export.fold_input), and the letterbox.

    float32 (B, C, height, width): of RGB three channels, of thermal two, or one with one_thermal_mean
    (NetworkSettings). They are camera levels with the means taken off (MEAN, THERMAL_MEAN), 0 where nothing was seen;
    thermal's second is SEEN where it was seen, else 0.
    Other arguments as above; without RGB the letterbox is that of thermal.
    """
    parts = []
    inside: Tensor | None = None
    if rgb is not None:
        image, seen, box = letterbox_rgb(rgb, input_size, tiles)
        parts.append(image - 255 * torch.tensor(MEAN, device=rgb.device).view(1, 3, 1, 1) * seen)
        if thermal is not None:
            assert rgb_to_thermal is not None
            sampled, inside = sample_thermal(thermal, rgb_to_thermal, box, input_size)
            inside = inside * seen
            parts.append((sampled - 255 * THERMAL_MEAN) * inside)
    else:
        assert thermal is not None
        image, seen, box = letterbox_rgb(thermal[..., None], input_size, tiles)
        inside = seen.expand_as(image)
        parts.append(image - 255 * THERMAL_MEAN * seen)
    if inside is not None and not one_thermal_mean:
        parts.append(SEEN * inside)
    return torch.cat(parts, dim=1), box


def boxes_to_network(boxes: Tensor, box: Letterbox) -> Tensor:
    """From camera to network pixels; float (..., 4), xyxy."""
    return boxes * box.scale + torch.stack([box.offset_x, box.offset_y, box.offset_x, box.offset_y])


def boxes_to_camera(boxes: Tensor, box: Letterbox) -> Tensor:
    """From network to camera pixels, clipped to the camera image; float (..., 4), xyxy."""
    boxes = (boxes - torch.stack([box.offset_x, box.offset_y, box.offset_x, box.offset_y])) / box.scale
    limits = torch.stack([box.width, box.height, box.width, box.height])
    return torch.minimum(boxes.clamp(min=0), limits)


def camera_rows(
    logits: Tensor, height: int, width: int, box: Letterbox, input_size: tuple[int, int], tiles: int = 1
) -> Iterator[Tensor]:
    """Upsample logits bilinearly to camera pixels, undoing the letterbox in the same step; channels last.

    logits: float32 (B, K, h, w) of the whole network input. Yields the camera image from top to bottom in `tiles` equal
    parts, float32 (B, rows, width, K); the last may go on beyond its end.
    """
    batch, classes, cells_y, cells_x = logits.shape

    def band(count: int, cells: int, offset: Tensor, size_px: int) -> Band:
        step = (count + tiles - 1) // tiles
        pixels = centres(tiles * step, logits).reshape(tiles, step)
        positions = (pixels * box.scale + offset) * (cells / size_px)
        # A camera px is at most cells / count of a cell long.
        return make_band(positions, cells, torch.ones_like(box.scale), (step + 1) * cells // count + 6)

    columns = logits.permute(0, 3, 2, 1).reshape(batch, cells_x, cells_y * classes)
    columns = resample(columns, band(width, cells_x, box.offset_x, input_size[0]))[:, :width]
    rows = columns.reshape(batch, width, cells_y, classes).transpose(1, 2).reshape(batch, cells_y, width * classes)
    vertical = band(height, cells_y, box.offset_y, input_size[1])
    for tile in range(tiles):
        full = vertical.weights[tile] @ rows[:, vertical.sources[tile]]
        yield full.reshape(batch, -1, width, classes)


def logits_to_camera(logits: Tensor, height: int, width: int, box: Letterbox, input_size: tuple[int, int]) -> Tensor:
    """Return float32 (B, K, height, width): what camera_rows yields, in one."""
    (full,) = camera_rows(logits, height, width, box, input_size)
    return full.permute(0, 3, 1, 2)
