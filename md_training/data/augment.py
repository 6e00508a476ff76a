"""Augmentation at the network's size: images, boxes and mask move together; light changes for each camera alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from md_training.data.sample import Sample
from md_training.losses import IGNORED_PIXEL, Targets
from md_training.preprocess import FILL, make_letterbox, normalise, sample_thermal


@dataclass(frozen=True)
class Augmentation:
    """Probabilities are in 0..1, ranges are (low, high)."""

    flip: float = 0.5
    """Probability of mirroring left to right."""
    zoom: float = 0.7
    """Probability of taking a window of the image."""
    zoom_range: tuple[float, float] = (0.8, 1.5)
    """Enlargement of the window; below 1 the image shrinks into a plain border."""
    aspect_jitter: float = 0.1
    """Largest relative change of the window's aspect."""
    light: float = 0.5
    """Probability of another brightness, contrast and saturation of RGB."""
    light_range: float = 0.3
    """Largest relative change of each."""
    thermal_gain: tuple[float, float] = (0.85, 1.15)
    """Gain of the 8-bit thermal image: automatic gain controls behave differently."""
    thermal_offset: tuple[float, float] = (-15.0, 15.0)
    """Its offset, grey levels."""
    least_visible: float = 0.4
    """An object of which a window leaves less than this fraction is ignored."""


NO_AUGMENTATION = Augmentation(
    flip=0, zoom=0, light=0, thermal_gain=(1.0, 1.0), thermal_offset=(0.0, 0.0), least_visible=0
)


def training_batch(
    samples: Sequence[Sample], with_thermal: bool, augmentation: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Targets]:
    """Return the network's input, float32 (B, 3 or 6, h, w), and its truth.

    samples: at the network's size (sample.at_network_size), all of one size. Thermal is brought to that size before
    the window is cut, so that zooming does not change the sensor's resolution.
    """
    height, width = samples[0].mask.shape
    thermal: Tensor | None = None
    if with_thermal:
        sensor = torch.stack([torch.from_numpy(sample.thermal) for sample in samples])
        matrices = torch.stack([torch.from_numpy(sample.rgb_to_thermal) for sample in samples])
        box = make_letterbox(height, width, (width, height), sensor)
        thermal = torch.cat(sample_thermal(sensor, matrices, box, (width, height)), dim=1)  # B, (value, inside), h, w

    images, boxes, labels, ignored, masks = [], [], [], [], []
    for index, sample in enumerate(samples):
        image, truth, regions, mask = _augmented(
            sample, None if thermal is None else thermal[index], augmentation, generator
        )
        images.append(image)
        boxes.append(truth[0])
        labels.append(truth[1])
        ignored.append(regions)
        masks.append(mask)
    return torch.cat(images), Targets(tuple(boxes), tuple(labels), tuple(ignored), torch.stack(masks).long())


def _augmented(
    sample: Sample, thermal: Tensor | None, options: Augmentation, generator: torch.Generator
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return the network's input (1, C, h, w), (boxes, labels), ignored boxes and the mask (h, w) of one sample."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    rgb = torch.from_numpy(sample.rgb).permute(2, 0, 1)  # 3, h, w
    mask = torch.from_numpy(sample.mask)[None]  # 1, h, w
    boxes, labels = torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)
    ignored = torch.from_numpy(sample.ignored)
    height, width = mask.shape[-2:]

    if uniform(0, 1) < options.flip:
        rgb, mask = T.horizontal_flip(rgb), T.horizontal_flip(mask)
        thermal = None if thermal is None else T.horizontal_flip(thermal)
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)

    if uniform(0, 1) < options.zoom:
        zoom = uniform(*options.zoom_range)
        stretch = uniform(1 - options.aspect_jitter, 1 + options.aspect_jitter)
        w, h = round(width / zoom * stretch**0.5), round(height / zoom / stretch**0.5)
        left = round(uniform(min(0, width - w), max(0, width - w)))
        top = round(uniform(min(0, height - h), max(0, height - h)))
        margins = [max(0, -left), max(0, -top), max(0, left + w - width), max(0, top + h - height)]
        window = (top + margins[1], left + margins[0], h, w)
        size = [height, width]
        rgb = T.resized_crop(T.pad(rgb, margins, fill=list(FILL)), *window, size, antialias=True)
        mask = T.resized_crop(
            T.pad(mask, margins, fill=IGNORED_PIXEL), *window, size, interpolation=T.InterpolationMode.NEAREST
        )
        if thermal is not None:
            thermal = T.resized_crop(T.pad(thermal, margins, fill=0.0), *window, size, antialias=True)
        whole = (boxes - torch.tensor([left, top, left, top])) * torch.tensor([width / w, height / h] * 2)
        boxes = torch.minimum(whole.clamp(min=0), torch.tensor([width, height] * 2, dtype=torch.float32))
        left_over = _area(boxes) / _area(whole).clamp(min=1e-6)
        ignored = ignored | (left_over < options.least_visible)

    if uniform(0, 1) < options.light:
        for change in (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation):
            rgb = change(rgb, uniform(1 - options.light_range, 1 + options.light_range))
    parts = [normalise(rgb[None], torch.ones(1))]
    if thermal is not None:
        value = thermal[:1] * uniform(*options.thermal_gain) + uniform(*options.thermal_offset)
        parts.append(normalise(value.clamp(0, 255)[None], (thermal[1:] > 0.5).float()[None]))

    present = _area(boxes) >= 1  # px; what a window cut away altogether is no object of this image
    keep = present & ~ignored
    return torch.cat(parts, dim=1), (boxes[keep], labels[keep]), boxes[present & ignored], mask[0]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
