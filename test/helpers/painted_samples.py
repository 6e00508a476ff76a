"""Training samples without the scene world: a few plain rectangles on noise, quick to make and easy to learn."""

import numpy as np

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.sensing.registration import sampling_matrix
from md_training.data.sample import Sample

_COLOURS = {"person": (220, 60, 60), "bicycle": (60, 220, 60), "car": (60, 60, 220)}
_MASK = {"person": "person", "bicycle": "bike", "car": "car"}


def painted_sample(
    seed: int, size: tuple[int, int] = (128, 96), thermal_size: tuple[int, int] = (32, 24), night: bool = False
) -> Sample:
    """Return a sample with one object of each class. size, thermal_size: (width, height) px."""
    random = np.random.default_rng(seed)
    width, height = size
    rgb = random.integers(90, 130, (height, width, 3)).astype(np.uint8)
    thermal = random.integers(70, 90, (thermal_size[1], thermal_size[0])).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    boxes, labels = [], []
    for column, (name, colour) in enumerate(_COLOURS.items()):
        w, h = {"person": (12, 30), "bicycle": (18, 18), "car": (32, 20)}[name]
        w, h = round(w * width / 128), round(h * height / 96)
        x = column * width // 3 + int(random.integers(0, width // 3 - w))
        y = int(random.integers(height // 4, height - h))
        rgb[y : y + h, x : x + w] = colour
        mask[y : y + h, x : x + w] = SEGMENTATION.id_of(_MASK[name])
        boxes.append((x, y, x + w, y + h))
        labels.append(DETECTION.id_of(name))
        scale_x, scale_y = thermal_size[0] / width, thermal_size[1] / height
        thermal[round(y * scale_y) : round((y + h) * scale_y), round(x * scale_x) : round((x + w) * scale_x)] = 220
    return Sample(
        rgb=rgb,
        thermal=thermal,
        rgb_to_thermal=sampling_matrix(size, thermal_size),
        boxes=np.array(boxes, np.float32),
        labels=np.array(labels, np.int64),
        ignored=np.zeros(3, bool),
        mask=mask,
        night=night,
        name=f"painted {seed}",
    )
