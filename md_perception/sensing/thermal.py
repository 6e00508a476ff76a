"""The thermal contract: from what a thermal camera sends to the 8-bit image of training.

Training (scene world and data sets) and the vehicle use these functions, so that both see the same image.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from md_perception.results import Float32Array, UInt8Image
from md_perception.sensing.images import ImageError, Message, stamp_ns, to_thermal_values

Encoding = Literal["auto", "agc8", "grey_rgb8", "counts", "centikelvin", "celsius", "kelvin"]
"""What the values of a thermal image mean: 8 bits after the camera's own gain control, the same as a grey picture of
three equal channels, sensor counts, or temperatures (centikelvin are 0.01 K)."""

Polarity = Literal["white_hot", "black_hot"]

_ARRAYS_OF: dict[str, str] = {
    "agc8": "mono8, rgb8 or bgr8 with equal channels",
    "grey_rgb8": "rgb8 or bgr8",
    "counts": "mono16, 16UC1 or 32FC1",
    "centikelvin": "mono16, 16UC1 or 32FC1",
    "celsius": "32FC1",
    "kelvin": "32FC1",
}
_KELVIN: dict[str, tuple[float, float]] = {
    "counts": (1.0, 0.0),
    "centikelvin": (0.01, 0.0),
    "celsius": (1.0, 273.15),
    "kelvin": (1.0, 0.0),
}
"""Factor and summand to kelvin; counts stay counts."""

GREY_TOLERANCE = 4.0
"""Largest mean difference of the channels of a declared grey picture: lossy compression leaves about 1, KAIST's
own PNG copies have 2."""


def channel_difference(image: UInt8Image) -> float:
    """Return how far a picture, uint8 (h, w, 3 or more), is from grey: the larger mean difference of its channels."""
    first, second, third = (np.ascontiguousarray(image[..., channel]) for channel in range(3))
    return float(max(cv2.absdiff(first, second).mean(), cv2.absdiff(second, third).mean()))


@dataclass(frozen=True)
class ThermalSettings:
    """What the thermal camera sends, and how the 8-bit image is made of it.

    encoding: `auto` takes what the message's encoding says where that is unambiguous: 8 bits are agc8.
    polarity: black_hot where warm is dark (agc8, grey_rgb8 and counts).
    range: None for the gain control of training, else (low, high) that become 0 and 255: kelvin, or counts for counts.
    percentiles, minimum_span_k: of the gain control; the student's manifest says them.
    minimum_span_counts: takes the place of minimum_span_k for counts. Uncooled cores give 20 to 100 counts per kelvin.
    time_constant_s: 0 for a gain control of each frame by itself, as in training; above that its range follows the
        scene exponentially with this time constant, so that a hot thing that enters does not darken all at once.
    """

    encoding: Encoding = "auto"
    polarity: Polarity = "white_hot"
    range: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    minimum_span_k: float = 10.0
    minimum_span_counts: float = 300.0
    time_constant_s: float = 0.0

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"thermal.encoding {self.encoding!r}: use one of {', '.join(get_args(Encoding))}")
        if self.polarity not in get_args(Polarity):
            raise ValueError(f"thermal.polarity {self.polarity!r}: use one of {', '.join(get_args(Polarity))}")
        if self.polarity == "black_hot" and self.encoding in ("centikelvin", "celsius", "kelvin"):
            raise ValueError(f"thermal.polarity black_hot has no meaning for temperatures ({self.encoding})")
        if self.range is not None and not (all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]):
            raise ValueError(f"thermal.range {self.range} must be two rising finite numbers")
        if self.range is not None and self.encoding in ("agc8", "grey_rgb8"):
            raise ValueError(
                f"thermal.range has no meaning for {self.encoding}: the camera has chosen the range already"
            )
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"thermal percentiles {self.percentiles} must rise within 0..100")
        if not (self.minimum_span_k > 0 and self.minimum_span_counts > 0):
            raise ValueError("the smallest span of the thermal gain control must be above 0")
        if not (math.isfinite(self.time_constant_s) and self.time_constant_s >= 0):
            raise ValueError(f"thermal.time_constant_s must be 0 or more, got {self.time_constant_s}")


class ThermalNormaliser:
    """Makes the 8-bit image of training from the messages of one thermal camera.

    Keeps the state of the slow gain control, so it must see the frames in order, one at a time.
    """

    def __init__(self, settings: ThermalSettings, topic: str = "thermal") -> None:
        """topic: for error texts."""
        self.settings = settings
        self._topic = topic
        self._range: tuple[float, float] | None = None
        self._range_stamp_ns = 0

    def __call__(self, message: Message) -> UInt8Image:
        """Return uint8 (h, w), warm is bright, at the sensor's resolution.

        Raises ImageError, naming the topic, the encoding and the parameter to set, for values that are not what the
        settings declare, and for pseudo-colour.
        """
        values = to_thermal_values(message, self._topic)
        name = getattr(message, "encoding", None) or f"compressed ({message.format})"
        encoding = self._meaning(values, name)
        if values.ndim == 3:
            return self._polarised(self._grey(values, name))
        if encoding in ("agc8", "grey_rgb8"):
            return self._polarised(values)
        return self._stretched(values, encoding, stamp_ns(message))

    def reset(self) -> None:
        """Forget the range of the slow gain control (after a jump of time or a change of camera)."""
        self._range = None

    def _meaning(self, values: np.ndarray, name: str) -> str:
        """Return what the values are, from the declaration and the kind of array; raise where the two disagree."""
        declared = self.settings.encoding
        if declared == "auto":
            if values.dtype == np.uint8:
                return "agc8"
            choices = "'counts' or 'centikelvin'" if values.dtype == np.uint16 else "'celsius' or 'kelvin'"
            raise ImageError(
                f"thermal topic {self._topic} carries {name}, which does not say its unit: set thermal.encoding to "
                f"{choices}"
            )
        fits = {
            "agc8": values.dtype == np.uint8,
            "grey_rgb8": values.ndim == 3 and values.dtype == np.uint8,
            "counts": values.ndim == 2 and values.dtype in (np.uint16, np.float32),
            "centikelvin": values.ndim == 2 and values.dtype in (np.uint16, np.float32),
            "celsius": values.dtype == np.float32,
            "kelvin": values.dtype == np.float32,
        }
        if not fits[declared]:
            raise ImageError(
                f"thermal topic {self._topic} carries {name}, but thermal.encoding {declared!r} needs "
                f"{_ARRAYS_OF[declared]}: set thermal.encoding to what the camera sends, or to 'auto'"
            )
        return declared

    def _grey(self, image: np.ndarray, name: str) -> UInt8Image:
        """Return the one channel of a grey picture (h, w, 3 or 4); refuse pseudo-colour."""
        first, second, third = (image[..., channel] for channel in range(3))
        if np.array_equal(first, second) and np.array_equal(second, third):
            return np.ascontiguousarray(second)
        if self.settings.encoding != "grey_rgb8":
            raise ImageError(
                f"thermal topic {self._topic} carries {name} pseudo-colour; the student needs intensities: publish "
                "mono8/mono16, or set thermal.encoding to 'grey_rgb8' if all three channels are equal"
            )
        difference = channel_difference(image)
        if difference > GREY_TOLERANCE:
            raise ImageError(
                f"thermal topic {self._topic} is declared 'grey_rgb8', but the channels of its {name} images differ by "
                f"{difference:.0f} of 255 on average: this is pseudo-colour; publish mono8 or mono16"
            )
        return np.asarray(cv2.cvtColor(image[..., :3], cv2.COLOR_RGB2GRAY), np.uint8)

    def _polarised(self, image: UInt8Image) -> UInt8Image:
        return np.bitwise_not(image) if self.settings.polarity == "black_hot" else image

    def _stretched(self, values: np.ndarray, encoding: str, at_ns: int) -> UInt8Image:
        """Map counts or temperatures (h, w) to 8 bits."""
        factor, summand = _KELVIN[encoding]
        kelvin = values.astype(np.float32)
        if (factor, summand) != (1.0, 0.0):
            kelvin = kelvin * np.float32(factor) + np.float32(summand)
        inverted = self.settings.polarity == "black_hot"
        if inverted:
            kelvin = -kelvin
        if self.settings.range is not None:
            low, high = self.settings.range
            return to_8bit(kelvin, *((-high, -low) if inverted else (low, high)))
        span = self.settings.minimum_span_counts if encoding == "counts" else self.settings.minimum_span_k
        try:
            low, high = percentile_range(kelvin, self.settings.percentiles, span)
        except ValueError as error:
            raise ImageError(f"thermal topic {self._topic}: {error}") from None
        return to_8bit(kelvin, *self._followed((low, high), at_ns))

    def _followed(self, target: tuple[float, float], at_ns: int) -> tuple[float, float]:
        """Return the range of the gain control at this time: exponentially on its way to what the frame asks for."""
        elapsed_s = (at_ns - self._range_stamp_ns) * 1e-9
        if self._range is None or self.settings.time_constant_s == 0 or elapsed_s < 0:
            self._range = target
        else:
            share = 1 - math.exp(-elapsed_s / self.settings.time_constant_s)
            low, high = (old + share * (new - old) for old, new in zip(self._range, target, strict=True))
            self._range = low, high
        self._range_stamp_ns = at_ns
        return self._range


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
    """Map low..high linearly to 0..255, clipped and rounded; NaN becomes 0.

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
