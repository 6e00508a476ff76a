"""Augmentation at the network's size: images, boxes and mask move together; light changes for each camera alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from md_training.data.sample import Sample, ThermalView
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
    views = [(_own_view(sample),) if with_thermal else () for sample in samples]
    image, _, targets = _batch(samples, views, augmentation, generator)
    return image, targets


@dataclass(frozen=True)
class Views:
    """What a student and its teacher see of one draw of the augmentation: they differ in the thermal sensor only.

    student, teacher: float32 (B, 6, h, w). seen: bool (B, h, w), True where the camera saw something.
    """

    student: Tensor
    teacher: Tensor
    seen: Tensor


def distillation_batch(
    samples: Sequence[Sample], augmentation: Augmentation, generator: torch.Generator
) -> tuple[Views, Targets]:
    """Return both networks' inputs and the truth; samples as above, the teacher is given their full thermal image."""
    views = [(_own_view(sample), sample.full or _own_view(sample)) for sample in samples]
    image, seen, targets = _batch(samples, views, augmentation, generator)
    return Views(image[:, :6], torch.cat([image[:, :3], image[:, 6:]], dim=1), seen), targets


def _own_view(sample: Sample) -> ThermalView:
    return ThermalView(sample.thermal, sample.rgb_to_thermal)


def _batch(
    samples: Sequence[Sample],
    views: Sequence[Sequence[ThermalView]],
    augmentation: Augmentation,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Targets]:
    """Return float32 (B, 3 + 3 per thermal view, h, w), bool (B, h, w), where the camera saw something, and the truth.

    views: the thermal images of each sample that are wanted, as many for each.
    """
    images, seen, boxes, labels, ignored, masks = [], [], [], [], [], []
    for sample, wanted in zip(samples, views, strict=True):
        thermal = [_at_rgb(view, sample.mask.shape) for view in wanted]
        image, known, truth, regions, mask = _augmented(sample, thermal, augmentation, generator)
        images.append(image)
        seen.append(known)
        boxes.append(truth[0])
        labels.append(truth[1])
        ignored.append(regions)
        masks.append(mask)
    targets = Targets(tuple(boxes), tuple(labels), tuple(ignored), torch.stack(masks).long())
    return torch.cat(images), torch.stack(seen), targets


def _at_rgb(view: ThermalView, size: tuple[int, ...]) -> Tensor:
    """Return float32 (2, h, w), thermal where the pixels of RGB are: value in 0..255, and 1 where it was seen."""
    height, width = size
    sensor = torch.from_numpy(view.image)[None]
    box = make_letterbox(height, width, (width, height), sensor)
    sampled = sample_thermal(sensor, torch.from_numpy(view.rgb_to_thermal)[None], box, (width, height))
    return torch.cat(sampled, dim=1)[0]


def _augmented(
    sample: Sample, thermal: list[Tensor], options: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return of one sample the network's input (1, C, h, w), bool (h, w), where the camera saw something, (boxes,
    labels), ignored boxes and the mask (h, w). thermal: of each view (2, h, w); the same is done to all of them.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    rgb = torch.from_numpy(sample.rgb).permute(2, 0, 1)  # 3, h, w
    mask = torch.from_numpy(sample.mask)[None]  # 1, h, w
    boxes, labels = torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)
    ignored = torch.from_numpy(sample.ignored)
    height, width = mask.shape[-2:]

    if uniform(0, 1) < options.flip:
        rgb, mask = T.horizontal_flip(rgb), T.horizontal_flip(mask)
        thermal = [T.horizontal_flip(view) for view in thermal]
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
        thermal = [T.resized_crop(T.pad(view, margins, fill=0.0), *window, size, antialias=True) for view in thermal]
        whole = (boxes - torch.tensor([left, top, left, top])) * torch.tensor([width / w, height / h] * 2)
        boxes = torch.minimum(whole.clamp(min=0), torch.tensor([width, height] * 2, dtype=torch.float32))
        left_over = _area(boxes) / _area(whole).clamp(min=1e-6)
        ignored = ignored | (left_over < options.least_visible)

    # Padding is FILL to the grey level; a network cell counts as unseen only where all of its pixels look like that.
    seen = ((rgb.int() - torch.tensor(FILL)[:, None, None]).abs() > 1).any(dim=0)
    if uniform(0, 1) < options.light:
        for change in (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation):
            rgb = change(rgb, uniform(1 - options.light_range, 1 + options.light_range))
    parts = [normalise(rgb[None], torch.ones(1))]
    gain, offset = uniform(*options.thermal_gain), uniform(*options.thermal_offset)
    for view in thermal:
        value = view[:1] * gain + offset
        parts.append(normalise(value.clamp(0, 255)[None], (view[1:] > 0.5).float()[None]))

    present = _area(boxes) >= 1  # px; what a window cut away altogether is no object of this image
    keep = present & ~ignored
    return torch.cat(parts, dim=1), seen, (boxes[keep], labels[keep]), boxes[present & ignored], mask[0]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
