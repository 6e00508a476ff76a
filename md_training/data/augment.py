"""Augmentation at the network's size: images, boxes and mask move together; light changes for each camera alone.

Also what goes wrong between the two cameras of a vehicle, as options: a calibration that is off, exposures at different
times, a thermal lens that sees less than RGB's. Both networks of a distillation see the same draw of all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as T

from md_perception.results import UInt8Image
from md_training.data.sample import Sample, ThermalView
from md_training.losses import IGNORED_PIXEL, Targets
from md_training.preprocess import FILL, make_letterbox, normalise, sample_thermal


@dataclass(frozen=True)
class Augmentation:
    """Probabilities are in 0..1, ranges are (low, high). All px are the network's."""

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
    misregistration_px: float = 0.0
    """Largest displacement of each corner of the thermal view against RGB, along each axis: a random homography, as
    after a knock, or where a calibration holds for another distance. 0 is off."""
    time_offset: float = 0.0
    """Largest motion of an object between the two exposures, in its own widths, below 0.5; 0 is off. 0.15 is a walker
    or a crossing car after 50 ms. A still does not tell who moves: each object is moved by itself, sideways, in
    thermal, and the background around it gives way."""
    thermal_coverage: tuple[float, float] = (1.0, 1.0)
    """Part of the image's width and height that thermal sees, anywhere in it: (0.6, 0.8) for a narrower lens."""
    least_visible: float = 0.4
    """An object of which a window leaves less than this fraction is ignored."""

    def __post_init__(self) -> None:
        for name in ("flip", "zoom", "light", "least_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: it is a part of the whole, 0 to 1")
        if self.misregistration_px < 0 or not 0 <= self.time_offset < 0.5:
            raise ValueError(
                f"misregistration_px {self.misregistration_px}, time_offset {self.time_offset}: the first is at least "
                "0, the second 0 to less than 0.5"
            )
        for name, least, most in (("zoom_range", 0, float("inf")), ("thermal_coverage", 0, 1)):
            low, high = getattr(self, name)
            if not least < low <= high <= most:
                raise ValueError(f"{name} ({low}, {high}): low comes first, above {least}, and none exceeds {most}")


NO_AUGMENTATION = Augmentation(
    flip=0, zoom=0, light=0, thermal_gain=(1.0, 1.0), thermal_offset=(0.0, 0.0), least_visible=0
)


def training_batch(
    samples: Sequence[Sample], with_thermal: bool, augmentation: Augmentation, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Targets]:
    """Return the network's input, float32 (B, 3 or 6, h, w), and its truth.

    samples: at the network's size (sample.at_network_size), all of one size. Thermal is brought to that size before
    the window is cut, so that zooming does not change the sensor's resolution. generators: one for each sample, so
    that what a sample becomes does not depend on how a batch is shared out among processes.
    """
    views = [(_own_view(sample),) if with_thermal else () for sample in samples]
    image, _, targets = _batch(samples, views, augmentation, generators)
    return image, targets


@dataclass(frozen=True)
class Views:
    """What a student and its teacher see of one draw of the augmentation: they differ in the thermal sensor only.

    student, teacher: float32 (B, 6, h, w). seen: bool (B, h, w), True where the RGB camera saw something, not padding.
    """

    student: Tensor
    teacher: Tensor
    seen: Tensor


def distillation_batch(
    samples: Sequence[Sample], augmentation: Augmentation, generators: Sequence[torch.Generator]
) -> tuple[Views, Targets]:
    """Return both networks' inputs and the truth; samples as above, the teacher is given their full thermal image."""
    views = [(_own_view(sample), sample.full or _own_view(sample)) for sample in samples]
    image, seen, targets = _batch(samples, views, augmentation, generators)
    return Views(image[:, :6], torch.cat([image[:, :3], image[:, 6:]], dim=1), seen), targets


def _own_view(sample: Sample) -> ThermalView:
    return ThermalView(sample.thermal, sample.rgb_to_thermal)


def _batch(
    samples: Sequence[Sample],
    views: Sequence[Sequence[ThermalView]],
    augmentation: Augmentation,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor, Targets]:
    """Return float32 (B, 3 + 3 per thermal view, h, w), bool (B, h, w), where the RGB camera saw something, and the
    truth.

    views: the thermal images of each sample that are wanted, as many for each.
    """
    images, seen, boxes, labels, ignored, masks = [], [], [], [], [], []
    for sample, wanted, generator in zip(samples, views, generators, strict=True):
        image, known, truth, regions, mask = _augmented(sample, wanted, augmentation, generator)
        images.append(image)
        seen.append(known)
        boxes.append(truth[0])
        labels.append(truth[1])
        ignored.append(regions)
        masks.append(mask)
    targets = Targets(tuple(boxes), tuple(labels), tuple(ignored), torch.stack(masks).long())
    return torch.cat(images), torch.stack(seen), targets


def _augmented(
    sample: Sample, views: Sequence[ThermalView], options: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return of one sample the network's input (1, C, h, w), bool (h, w), where the RGB camera saw something, (boxes,
    labels), ignored boxes and the mask (h, w). The same is done to all thermal views.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = size = sample.mask.shape
    thermal = _disturbed(sample, views, options, generator)
    seen = np.ones(size, bool) if sample.seen is None else sample.seen
    rgb = tv_tensors.Image(torch.from_numpy(sample.rgb).permute(2, 0, 1))  # 3, h, w
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(sample.boxes), format="XYXY", canvas_size=(height, width))
    labels, ignored = torch.from_numpy(sample.labels), torch.from_numpy(sample.ignored)
    # What moves together, and what fills a border around it.
    moving: list[tuple[tv_tensors.TVTensor, float | list[float]]] = [
        (rgb, list(FILL)),
        (tv_tensors.Mask(torch.from_numpy(seen)[None]), 0),
        (tv_tensors.Mask(torch.from_numpy(sample.mask)[None]), IGNORED_PIXEL),
        (boxes, 0),
        *((tv_tensors.Image(view), 0) for view in thermal),
    ]
    if uniform(0, 1) < options.flip:
        moving = [(T.horizontal_flip(part), fill) for part, fill in moving]
    if uniform(0, 1) < options.zoom:
        zoom = uniform(*options.zoom_range)
        stretch = uniform(1 - options.aspect_jitter, 1 + options.aspect_jitter)
        w, h = round(width / zoom * stretch**0.5), round(height / zoom / stretch**0.5)
        left = round(uniform(min(0, width - w), max(0, width - w)))
        top = round(uniform(min(0, height - h), max(0, height - h)))
        border = [max(0, -left), max(0, -top), max(0, left + w - width), max(0, top + h - height)]
        window = (top + border[1], left + border[0], h, w)
        moving = [(T.resized_crop(T.pad(part, border, fill=fill), *window, size), fill) for part, fill in moving]
        whole = _area(boxes) * (width / w * height / h)
        boxes = moving[3][0]
        ignored = ignored | (_area(boxes) / whole.clamp(min=1e-6) < options.least_visible)
    rgb, known, mask, boxes, *thermal = (part.as_subclass(Tensor) for part, _ in moving)

    if uniform(0, 1) < options.light:
        for change in (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation):
            rgb = change(rgb, uniform(1 - options.light_range, 1 + options.light_range))
    parts = [normalise(rgb[None], known[None])]
    gain, offset = uniform(*options.thermal_gain), uniform(*options.thermal_offset)
    for view in thermal:
        value = (view[:1] * gain + offset).clamp(0, 255)
        parts.append(normalise(value[None], ((view[1:] > 0.5) & known)[None]))

    present = _area(boxes) >= 1  # px; what a window cut away altogether is no object of this image
    keep = present & ~ignored
    return torch.cat(parts, dim=1), known[0], (boxes[keep], labels[keep]), boxes[present & ignored], mask[0]


def _disturbed(
    sample: Sample, views: Sequence[ThermalView], options: Augmentation, generator: torch.Generator
) -> list[Tensor]:
    """Return each view where the pixels of RGB are, float32 (2, h, w): value in 0..255, and 1 where it was seen.

    What may be wrong between the cameras is drawn once, for all views.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    height, width = sample.mask.shape
    to_view = np.eye(3)
    if options.misregistration_px > 0:
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
        moved = corners + options.misregistration_px * (2 * uniform(4, 2).numpy() - 1)
        to_view = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    thermal = [_at_rgb(view.image, view.rgb_to_thermal @ to_view, (height, width)) for view in views]
    if options.time_offset > 0 and len(sample.boxes):
        boxes = torch.from_numpy(sample.boxes)
        steps = options.time_offset * (2 * uniform(len(boxes)) - 1) * (boxes[:, 2] - boxes[:, 0])
        field = _motion(boxes, steps, (height, width))
        thermal = [_pulled(view, field) for view in thermal]
    low, high = options.thermal_coverage
    if low < 1:
        part = low + (high - low) * uniform(1)
        left, top = ((1 - part) * uniform(2) * torch.tensor([width, height])).round().int().tolist()
        w, h = (part * torch.tensor([width, height])).round().int().tolist()
        for view in thermal:
            covered = torch.zeros(height, width)
            covered[top : top + h, left : left + w] = 1
            view[1] *= covered
    return thermal


def _at_rgb(image: UInt8Image, rgb_to_thermal: npt.NDArray[np.floating], size: tuple[int, int]) -> Tensor:
    """Return float32 (2, h, w), thermal where the pixels of RGB are: value in 0..255, and 1 where it was seen."""
    height, width = size
    sensor = torch.from_numpy(image)[None]
    box = make_letterbox(height, width, (width, height), sensor)
    to_thermal = torch.from_numpy(rgb_to_thermal.astype(np.float32))[None]
    return torch.cat(sample_thermal(sensor, to_thermal, box, (width, height)), dim=1)[0]


def _motion(boxes: Tensor, steps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return float32 (h, w), by how many px what arrives at a pixel has moved to the right.

    boxes: float32 (G, 4), xyxy px. steps: float32 (G,), less than half a width each. An object moves as a whole;
    around where it arrives, the motion fades over half its width, so that nothing is torn and nothing folds over.
    """
    height, width = size
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    low, high = boxes[:, :2].clone(), boxes[:, 2:].clone()
    low[:, 0] += steps
    high[:, 0] += steps
    across = torch.maximum(low[:, :1] - x, x - high[:, :1]).clamp(min=0)  # G, w: px beside the box
    along = torch.maximum(low[:, 1:] - y, y - high[:, 1:]).clamp(min=0)  # G, h
    fade = ((high[:, 0] - low[:, 0]) / 2).clamp(min=1)[:, None, None]
    weight = (1 - torch.maximum(across[:, None, :], along[:, :, None]) / fade).clamp(min=0)  # G, h, w
    return (weight * steps[:, None, None]).sum(dim=0) / weight.sum(dim=0).clamp(min=1)


def _pulled(view: Tensor, motion: Tensor) -> Tensor:
    """Return the view after each pixel's content has come from `motion` px to its left, bilinearly."""
    height, width = motion.shape
    x = (torch.arange(width) + 0.5 - motion) * (2 / width) - 1
    y = ((torch.arange(height) + 0.5) * (2 / height) - 1)[:, None].expand_as(x)
    grid = torch.stack([x, y], dim=-1)[None]
    return F.grid_sample(view[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
