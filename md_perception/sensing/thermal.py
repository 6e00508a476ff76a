"""The thermal contract: from what a thermal camera sends to the 8-bit image of training.

Training (scene world and data sets) and the vehicle use these functions, so that both see the same image.
"""

import cv2
import numpy as np

from md_perception.results import Float32Array, UInt8Image


def percentile_range(
    values: Float32Array, percentiles: tuple[float, float] = (1.0, 99.0), minimum_span: float = 10.0
) -> tuple[float, float]:
    """Return (low, high), the range that an automatic gain control stretches over 8 bits.

    values: float32 (h, w), kelvin or counts; not-finite values are left out. minimum_span: in the unit of values;
    a flatter scene is not stretched further, so that sensor noise never fills the range.
    Raises ValueError where no value is finite.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ValueError("the thermal image has no finite value")
    low, high = (float(v) for v in np.percentile(finite, percentiles))
    if high - low < minimum_span:
        middle = 0.5 * (low + high)
        low, high = middle - 0.5 * minimum_span, middle + 0.5 * minimum_span
    return low, high


def to_8bit(values: Float32Array, low: float, high: float) -> UInt8Image:
    """Map low..high linearly to 0..255, clipped and rounded; not-finite values become 0.

    values: float32 (h, w). Returns uint8 (h, w), warm is bright.
    """
    scaled = (values - low) * (255.0 / (high - low)) + 0.5
    return np.nan_to_num(np.clip(scaled, 0.0, 255.0), nan=0.0).astype(np.uint8)


def resize_to_sensor(image: np.ndarray, size: tuple[int, int], method: str = "bilinear") -> np.ndarray:
    """Return the image as a smaller thermal sensor would deliver it.

    image: uint8 or float32 (h, w). size: (width, height) px of the smaller sensor.
    method: `bilinear`, the paper's (point samples, aliases pass), or `area`, what a coarse detector integrates.
    """
    flags = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
    if method not in flags:
        raise ValueError(f"unknown thermal resampling {method!r}: use one of {', '.join(flags)}")
    return cv2.resize(image, size, interpolation=flags[method])
