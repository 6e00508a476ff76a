"""From camera images to the network's input: letterbox, antialiased resize, thermal sampling, normalisation.

Training, evaluation and the exported graph all call these functions. They use nothing but arithmetic, `arange`,
matrix products and grid sampling on sizes that may be dynamic, so that they export as they are.

Coordinates here are continuous: pixel i covers [i, i + 1) and its centre is i + 0.5, as for boxes. The resize is a
product with a small matrix per axis whose rows hold the weights of PIL's (and torch's antialiased) bilinear filter;
the same matrices, built the other way round, bring results back to camera pixels.
"""

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


def resample_matrix(positions: Tensor, source: Tensor, support: Tensor) -> Tensor:
    """Return float32 (M, N), the weights that resample an axis of N pixels at M positions with a triangle filter.

    positions: (M,), continuous source coordinates. source: (N,), the pixel centres of the source. support: 0-d, half
    the width of the triangle in source px: 1 interpolates linearly, more averages (antialias).
    Rows sum to 1, so that the image continues beyond its border as its last pixel; the rows of positions outside the
    image, [0, N], are 0.
    """
    weights = torch.clamp(1 - (positions[:, None] - source[None, :]).abs() / support, min=0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    inside = (positions >= 0) & (positions <= source[-1] + 0.5)
    return weights * inside[:, None]


def letterbox_rgb(rgb: Tensor, input_size: tuple[int, int]) -> tuple[Tensor, Tensor, Letterbox]:
    """Resize camera images to the network's size, aspect kept, with antialiasing.

    rgb: uint8 (B, H, W, C). Returns float32 (B, C, height, width) in 0..255, float32 (height, width) that is 1 where
    the camera image is and 0 in the padding (where the first is 0 too), and the letterbox.
    """
    batch, height, width, channels = rgb.shape
    box = make_letterbox(height, width, input_size, rgb)
    support = torch.clamp(1 / box.scale, min=1)
    xs, ys = centres(width, rgb), centres(height, rgb)
    horizontal = resample_matrix((centres(input_size[0], rgb) - box.offset_x) / box.scale, xs, support)
    vertical = resample_matrix((centres(input_size[1], rgb) - box.offset_y) / box.scale, ys, support)
    image = vertical @ rgb.to(torch.float32).reshape(batch, height, width * channels)
    image = image.reshape(batch, input_size[1], width, channels).permute(0, 3, 1, 2) @ horizontal.T
    return image, vertical.sum(dim=1)[:, None] * horizontal.sum(dim=1)[None, :], box


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
    x = (centres(input_size[0], thermal) - box.offset_x) / box.scale - 0.5
    y = (centres(input_size[1], thermal) - box.offset_y) / box.scale - 0.5
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1)  # height, width, 3
    u, v, w = (points.reshape(1, -1, 3) @ rgb_to_thermal.transpose(1, 2)).unbind(dim=-1)  # each B, height x width
    depth = w.clamp(min=1e-6)
    grid = torch.stack(
        [(2 * u / depth + 1) / length(width, thermal) - 1, (2 * v / depth + 1) / length(height, thermal) - 1], dim=-1
    )  # -1 and 1 are the outer edges of the thermal image
    inside = (grid.abs() <= 1).all(dim=-1) & (w > 1e-6)
    shape = (-1, input_size[1], input_size[0])
    sampled = F.grid_sample(
        thermal[:, None].to(torch.float32),
        grid.clamp(-2, 2).reshape(*shape, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled, inside.to(torch.float32).reshape(shape)[:, None]


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


def boxes_to_network(boxes: Tensor, box: Letterbox) -> Tensor:
    """From camera to network pixels; float (..., 4), xyxy."""
    return boxes * box.scale + torch.stack([box.offset_x, box.offset_y, box.offset_x, box.offset_y])


def boxes_to_camera(boxes: Tensor, box: Letterbox) -> Tensor:
    """From network to camera pixels, clipped to the camera image; float (..., 4), xyxy."""
    boxes = (boxes - torch.stack([box.offset_x, box.offset_y, box.offset_x, box.offset_y])) / box.scale
    limits = torch.stack([box.width, box.height, box.width, box.height])
    return torch.minimum(boxes.clamp(min=0), limits)


def logits_to_camera(logits: Tensor, height: int, width: int, box: Letterbox, input_size: tuple[int, int]) -> Tensor:
    """Upsample logits bilinearly to camera pixels, undoing the letterbox in the same step.

    logits: float32 (B, K, h, w) of the whole network input. Returns float32 (B, K, height, width).
    """
    cells_y, cells_x = logits.shape[-2:]
    one = torch.ones_like(box.scale)
    x = (centres(width, logits) * box.scale + box.offset_x) * (cells_x / input_size[0])
    y = (centres(height, logits) * box.scale + box.offset_y) * (cells_y / input_size[1])
    horizontal = resample_matrix(x, centres(cells_x, logits), one)
    vertical = resample_matrix(y, centres(cells_y, logits), one)
    return vertical @ (logits @ horizontal.T)
