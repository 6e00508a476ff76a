"""The one sample type of every data set, and the same sample at the network's size."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from md_perception.results import Float32Array, Int64Array, UInt8Image
from md_training.losses import IGNORED_PIXEL
from md_training.preprocess import FILL, boxes_to_network, letterbox_rgb


@dataclass(frozen=True)
class ThermalView:
    """A thermal image and where it looks: image and rgb_to_thermal as in Sample."""

    image: UInt8Image
    rgb_to_thermal: Float32Array


@dataclass(frozen=True)
class Sample:
    """A pair of images with its truth.

    rgb: uint8 (H, W, 3). thermal: uint8 (h, w), the 8-bit image of training at the sensor's own resolution.
    rgb_to_thermal: float32 (3, 3), from RGB to thermal pixel coordinates (centres at integers).
    boxes: float32 (G, 4), xyxy, RGB px. labels: int64 (G,), ids of labels.DETECTION. ignored: bool (G,), too small or
    too hidden to be asked for: neither object nor background. mask: uint8 (H, W), ids of labels.SEGMENTATION, or 255.
    night: taken in the dark. name: says where it comes from. full: the thermal image before it was degraded to the
    sensor of this sample, for a teacher; None where it was not degraded, or no teacher needs it. seen: bool (H, W),
    where the RGB camera saw something; None: everywhere.
    """

    rgb: UInt8Image
    thermal: UInt8Image
    rgb_to_thermal: Float32Array
    boxes: Float32Array
    labels: Int64Array
    ignored: np.ndarray
    mask: UInt8Image
    night: bool
    name: str
    full: ThermalView | None = None
    seen: np.ndarray | None = None


def at_network_size(sample: Sample, input_size: tuple[int, int]) -> Sample:
    """Return the sample with RGB, mask and boxes letterboxed to the network; thermal keeps the sensor's resolution.

    input_size: (width, height) px. RGB is rounded to uint8, padding is FILL in RGB and IGNORED_PIXEL in the mask.
    """
    height, width = sample.mask.shape
    image, seen, box = letterbox_rgb(torch.from_numpy(sample.rgb)[None], input_size)
    rgb = torch.where(seen.bool(), image[0], torch.tensor(FILL, dtype=torch.float32)[:, None, None])
    scale, left, top = float(box.scale), float(box.offset_x), float(box.offset_y)
    columns = np.floor((np.arange(input_size[0]) + 0.5 - left) / scale).astype(int)
    rows = np.floor((np.arange(input_size[1]) + 0.5 - top) / scale).astype(int)
    mask = sample.mask[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]
    inside = seen.bool().numpy()
    mask = np.where(inside, mask, IGNORED_PIXEL).astype(np.uint8)
    # Pixel centres at integers: x_camera = (x_network + 0.5 - left) / scale - 0.5.
    to_camera = np.array(
        [[1 / scale, 0, (0.5 - left) / scale - 0.5], [0, 1 / scale, (0.5 - top) / scale - 0.5], [0, 0, 1]]
    )

    def from_network(rgb_to_thermal: Float32Array) -> Float32Array:
        return (rgb_to_thermal.astype(np.float64) @ to_camera).astype(np.float32)

    full = sample.full
    return replace(
        sample,
        rgb=rgb.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy(),
        rgb_to_thermal=from_network(sample.rgb_to_thermal),
        boxes=boxes_to_network(torch.from_numpy(sample.boxes), box).numpy(),
        mask=mask,
        full=None if full is None else ThermalView(full.image, from_network(full.rgb_to_thermal)),
        seen=None if inside.all() else inside,
    )


def in_thermal_pixels(sample: Sample) -> Sample:
    """Return the sample as the thermal camera sees it, for what answers in thermal pixels.

    RGB, boxes (of the four corners; clipped) and mask (nearest; IGNORED_PIXEL where RGB does not look) are brought to
    the thermal image; objects of which less than a pixel lies in it are gone. Not for samples at the network's size.
    """
    height, width = sample.thermal.shape
    matrix = sample.rgb_to_thermal.astype(np.float64)
    # Continuous coordinates of the boxes; centres at integers of the matrix.
    corners = sample.boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(np.float64) - 0.5  # G, 4, 2
    seen = (
        cv2.perspectiveTransform(corners.reshape(-1, 1, 2), matrix).reshape(-1, 4, 2) + 0.5 if len(corners) else corners
    )
    boxes = np.concatenate([seen.min(axis=1), seen.max(axis=1)], axis=1).clip(0, [width, height, width, height])
    there = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) >= 1
    warped = [
        cv2.warpPerspective(image, matrix, (width, height), flags=flags, borderValue=border)
        for image, flags, border in (
            (sample.rgb, cv2.INTER_LINEAR, FILL),
            (sample.mask, cv2.INTER_NEAREST, (IGNORED_PIXEL,)),
        )
    ]
    return replace(
        sample,
        rgb=warped[0],
        rgb_to_thermal=np.eye(3, dtype=np.float32),
        boxes=boxes[there].astype(np.float32),
        labels=sample.labels[there],
        ignored=sample.ignored[there],
        mask=warped[1],
        full=None,
    )
