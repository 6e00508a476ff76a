"""The thermal contract: from what a thermal camera sends to the 8-bit image of training.

Training (scene world and data sets) and the vehicle use these functions, so that both see the same image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from md_perception.results import Float32Array, UInt8Image
from md_perception.sensing.images import ImageError, Message, is_compressed, shown, stamp_ns, to_thermal_values

Encoding = Literal[
    "auto",
    "agc8",
    "grey_rgb8",
    "counts",
    "centikelvin",
    "decikelvin",
    "centicelsius",
    "centifahrenheit",
    "kelvin",
    "celsius",
    "fahrenheit",
]
"""What the values of a thermal image mean: 8 bits after the camera's own gain control, the same as a grey picture of
three equal channels, sensor counts, or temperatures (centikelvin are 0.01 K, decikelvin 0.1 K)."""

Polarity = Literal["white_hot", "black_hot"]


@dataclass(frozen=True)
class _Unit:
    """kelvin = step_k * number + zero_k."""

    step_k: float
    zero_k: float = 0.0

    def kelvin(self, number: float) -> float:
        return self.step_k * number + self.zero_k

    def number(self, kelvin: float) -> float:
        return (kelvin - self.zero_k) / self.step_k

    def shifted(self, shift: int) -> "_Unit":
        """Return the unit of numbers to which `shift` was added."""
        return _Unit(self.step_k, self.zero_k - self.step_k * shift)


_TEMPERATURES = {
    "centikelvin": _Unit(0.01),
    "decikelvin": _Unit(0.1),
    "centicelsius": _Unit(0.01, 273.15),
    "centifahrenheit": _Unit(0.05 / 9, 459.67 * 5 / 9),
    "kelvin": _Unit(1.0),
    "celsius": _Unit(1.0, 273.15),
    "fahrenheit": _Unit(5 / 9, 459.67 * 5 / 9),
}

TEMPERATURES = tuple(_TEMPERATURES)
"""The encodings that are temperatures."""


def kelvin_per_number(encoding: str) -> float:
    """Return how many kelvin a step of one is in an encoding of TEMPERATURES. Raises KeyError for others."""
    return _TEMPERATURES[encoding].step_k


_SUGGESTED: dict[str, tuple[str, ...]] = {
    "uint16": ("counts", "centikelvin", "decikelvin"),
    "int16": ("counts", "centicelsius", "centifahrenheit"),
    "float32": ("celsius", "kelvin", "fahrenheit"),
}
"""What drivers publish in arrays of a dtype."""

_ARRAYS_OF: dict[str, str] = {
    "agc8": "mono8, rgb8 or bgr8 with equal channels",
    "grey_rgb8": "rgb8 or bgr8",
    "counts": "mono16, 16UC1, 16SC1 or 32FC1",
    "centikelvin": "mono16, 16UC1, 16SC1 or 32FC1",
    "decikelvin": "mono16, 16UC1, 16SC1 or 32FC1",
    "centicelsius": "16SC1, mono16, 16UC1 or 32FC1",
    "centifahrenheit": "16SC1, mono16, 16UC1 or 32FC1",
    "kelvin": "32FC1",
    "celsius": "32FC1",
    "fahrenheit": "32FC1",
}

_POSSIBLE_MEDIAN_K = (150.0, 500.0)
"""Half of what a vehicle's camera sees is warmer and half is colder than a temperature within these."""

_USUAL_MEDIAN_K = (220.0, 340.0)
"""Where that temperature lies on nearly every day; tells which unit is meant."""

_SIGN_BIT = 0x8000

GREY_TOLERANCE = 4.0
"""Largest mean difference of the channels of a declared grey picture: lossy compression leaves about 1, KAIST's
own PNG copies have 2."""


LARGEST = 1e9
"""Numbers of a larger magnitude measure nothing: far above all temperatures and counts, far below float32's end."""

_LEAST_SPAN = 1e-3


def channel_difference(image: UInt8Image) -> float:
    """Return how far a picture, uint8 (h, w, 3 or more), is from grey: the larger mean difference of its channels."""
    first, second, third = (np.ascontiguousarray(image[..., channel]) for channel in range(3))
    return float(max(cv2.absdiff(first, second).mean(), cv2.absdiff(second, third).mean()))


@dataclass(frozen=True)
class ThermalSettings:
    """What the thermal camera sends, and how the 8-bit image is made of it.

    encoding: `auto` takes what the message's encoding says where that is unambiguous: 8 bits are agc8. Of a
        temperature whose median is none of this world (decikelvin for centikelvin) the normaliser says so.
    polarity: black_hot where warm is dark (agc8, grey_rgb8 and counts).
    range: None for the gain control of training, else (low, high) that become 0 and 255: kelvin, or counts for counts.
    percentiles, minimum_span_k: of the gain control; the student's manifest says them.
    minimum_span_counts: takes the place of minimum_span_k for counts. Uncooled cores give 20 to 100 counts per kelvin.
    time_constant_s: the range of the gain control follows the scene exponentially with this time constant (by the
        stamps), so that nothing flickers and a hot thing that enters does not darken all at once. The first frame,
        the first after a jump back of time, and one whose range has nothing in common with the last set it at once.
        0: each frame by itself, as in the single pictures of training.
    """

    encoding: Encoding = "auto"
    polarity: Polarity = "white_hot"
    range: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    minimum_span_k: float = 10.0
    minimum_span_counts: float = 300.0
    time_constant_s: float = 1.0

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"thermal.encoding {self.encoding!r}: use one of {', '.join(get_args(Encoding))}")
        if self.polarity not in get_args(Polarity):
            raise ValueError(f"thermal.polarity {self.polarity!r}: use one of {', '.join(get_args(Polarity))}")
        if self.polarity == "black_hot" and self.encoding in TEMPERATURES:
            raise ValueError(f"thermal.polarity black_hot has no meaning for temperatures ({self.encoding})")
        if self.range is not None and not -LARGEST <= self.range[0] < self.range[1] <= LARGEST:
            raise ValueError(f"thermal.range {self.range} must be two rising numbers of at most {LARGEST:g}")
        if self.range is not None and self.encoding in ("auto", "agc8", "grey_rgb8"):
            raise ValueError(
                f"thermal.range has no meaning for thermal.encoding {self.encoding}: in 8-bit images the camera has "
                "chosen the range already; set thermal.encoding to the counts or temperatures that it sends"
            )
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"thermal percentiles {self.percentiles} must rise within 0..100")
        if not (_LEAST_SPAN <= self.minimum_span_k <= LARGEST and _LEAST_SPAN <= self.minimum_span_counts <= LARGEST):
            raise ValueError(f"the smallest span of the thermal gain control must be at least {_LEAST_SPAN:g}")
        if not (math.isfinite(self.time_constant_s) and self.time_constant_s >= 0):
            raise ValueError(f"thermal.time_constant_s must be 0 or more, got {self.time_constant_s}")


class ThermalNormaliser:
    """Makes the 8-bit image of training from the messages of one thermal camera.

    Keeps the state of the slow gain control, so it must see the frames in order, one at a time. The result depends on
    the messages and their stamps alone, never on a clock.

    What is no measurement: NaN becomes 0 (coldest), an infinite value (or one beyond LARGEST) the end of the range that
    it points to, and a temperature at or below absolute zero, which cameras put where they have none, becomes 0. None
    of them counts for the range.
    """

    def __init__(self, settings: ThermalSettings, topic: str = "thermal") -> None:
        """topic: for error texts."""
        self.settings = settings
        self._topic = topic
        self._range: tuple[float, float] | None = None
        self._range_stamp_ns = 0

    def __call__(self, message: Message) -> UInt8Image:
        """Return uint8 (h, w), warm is bright, at the sensor's resolution; a view where nothing had to be computed.

        Raises ImageError, naming the topic, the encoding and the parameter to set, for values that are not what the
        settings declare, and for pseudo-colour.
        """
        values, encoding, name = self._read(message)
        if values.ndim == 3:
            return self._polarised(self._grey(values, name))
        if encoding in ("agc8", "grey_rgb8"):
            return self._polarised(values)
        return self._stretched(values, encoding, name, stamp_ns(message))

    def check(self, message: Message) -> None:
        """Raise ImageError where the image is not what the settings declare, as a call does; nothing is remembered."""
        values, encoding, name = self._read(message)
        if values.ndim == 3:
            self._grey(values, name)
        elif encoding in TEMPERATURES:
            self._check_unit(values, encoding, name)

    def _read(self, message: Message) -> tuple[np.ndarray, str, str]:
        """Return the values, what they are, and what the message calls them."""
        values = to_thermal_values(message, self._topic)
        name = f"compressed ({shown(message.format)})" if is_compressed(message) else message.encoding
        return values, self._meaning(values, name), name

    def _meaning(self, values: np.ndarray, name: str) -> str:
        """Return what the values are, from the declaration and the kind of array; raise where the two disagree."""
        declared = self.settings.encoding
        kind = str(values.dtype) if values.ndim == 2 else "picture" if values.dtype == np.uint8 else "unknown"
        if declared == "auto":
            if kind in _SUGGESTED:
                raise ImageError(
                    f"thermal topic {self._topic} carries {name}, which does not say its unit: set thermal.encoding to "
                    f"{_either(_SUGGESTED[kind])}"
                )
            declared = "agc8"
        kinds = {
            "agc8": ("uint8", "picture"),
            "grey_rgb8": ("picture",),
            "kelvin": ("float32",),
            "celsius": ("float32",),
            "fahrenheit": ("float32",),
        }
        if kind not in kinds.get(declared, ("uint16", "int16", "float32")):
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

    def _stretched(self, values: np.ndarray, encoding: str, name: str, at_ns: int) -> UInt8Image:
        """Map counts or temperatures (h, w), uint16, int16 or float32, to 8 bits.

        All is done in the unit of the camera, so that 16 bits stay integers, which a histogram and a table serve.
        """
        unit, span = _Unit(1.0), self.settings.minimum_span_counts  # counts are treated like kelvin
        if encoding in TEMPERATURES:
            self._check_unit(values, encoding, name)
            unit = _TEMPERATURES[encoding]
            span = self.settings.minimum_span_k / unit.step_k
        if values.dtype == np.int16:
            values, unit = values.view(np.uint16) ^ np.uint16(_SIGN_BIT), unit.shifted(_SIGN_BIT)
        limits = self.settings.range
        if limits is not None:
            limits = unit.number(limits[0]), unit.number(limits[1])
        if self.settings.polarity == "black_hot":
            values, mirror = (np.bitwise_not(values), 65535.0) if values.dtype == np.uint16 else (-values, 0.0)
            limits = None if limits is None else (mirror - limits[1], mirror - limits[0])
        if limits is None:
            measured = _above(values, unit.number(0.0)) if encoding in TEMPERATURES else values
            try:
                limits = self._followed(percentile_range(measured, self.settings.percentiles, span), at_ns)
            except ValueError as error:
                raise ImageError(f"thermal topic {self._topic}: {error}") from None
        return to_8bit(values, *limits)

    def _check_unit(self, values: np.ndarray, encoding: str, name: str) -> None:
        """Raise ImageError where the temperatures are none of this world, which those of another unit mostly are."""
        height, width = values.shape
        sample = values[:: max(height // 64, 1), :: max(width // 64, 1)].astype(np.float32)
        sample = sample[np.isfinite(sample)]
        if sample.size == 0:
            return
        median = float(np.median(sample))
        kelvin = _TEMPERATURES[encoding].kelvin(median)
        if _POSSIBLE_MEDIAN_K[0] <= kelvin <= _POSSIBLE_MEDIAN_K[1]:
            return
        low, high = _USUAL_MEDIAN_K
        units = [unit for unit in _SUGGESTED[str(values.dtype)] if unit in TEMPERATURES]
        better = [unit for unit in units if low <= _TEMPERATURES[unit].kelvin(median) <= high]
        raise ImageError(
            f"thermal topic {self._topic} is declared {encoding!r}, but half of the pixels of its {name} images are "
            f"below {median:g}, which would be {kelvin - 273.15:.0f} degrees Celsius: set thermal.encoding to "
            f"{_either(better) if better else 'what the camera sends'}"
        )

    def _followed(self, target: tuple[float, float], at_ns: int) -> tuple[float, float]:
        """Return the range of the gain control at this time: exponentially on its way to what the frame asks for."""
        last, elapsed_s = self._range, (at_ns - self._range_stamp_ns) * 1e-9
        if last is None or self.settings.time_constant_s == 0 or elapsed_s < 0:
            self._range = target
        elif target[0] > last[1] or target[1] < last[0]:
            self._range = target  # the picture would be black or white for seconds, as at the end of a tunnel
        else:
            share = 1 - math.exp(-elapsed_s / self.settings.time_constant_s)
            low, high = (old + share * (new - old) for old, new in zip(last, target, strict=True))
            self._range = low, high
        self._range_stamp_ns = at_ns
        return self._range


def percentile_range(
    values: np.ndarray, percentiles: tuple[float, float] = (1.0, 99.0), minimum_span: float = 10.0
) -> tuple[float, float]:
    """Return (low, high), the range that an automatic gain control stretches over 8 bits.

    values: float32 (kelvin or counts) or uint16 of any shape; what is not finite, or beyond LARGEST, is left out. The
    percentiles are exact, interpolated linearly. minimum_span: in the unit of values; a flatter scene is not stretched
    further, so that sensor noise never fills the range.
    Raises ValueError where no value is finite.
    """
    flat = values.reshape(-1)
    if flat.dtype != np.uint16:
        flat = np.ascontiguousarray(flat, np.float32)
        measured = np.abs(flat) <= LARGEST  # false for NaN
        flat = flat if measured.all() else flat[measured]
    if flat.size == 0:
        raise ValueError("the thermal image has no finite value")
    places = [percent / 100 * (flat.size - 1) for percent in percentiles]
    ranks = [rank for place in places for rank in (math.floor(place), math.ceil(place))]
    ordered = _ordered_integers(flat, ranks) if flat.dtype == np.uint16 else _ordered_floats(flat, ranks)
    low, high = (
        below + (above - below) * (place - math.floor(place))
        for place, below, above in zip(places, ordered[::2], ordered[1::2], strict=True)
    )
    if high - low < minimum_span:
        middle = 0.5 * (low + high)
        low, high = middle - 0.5 * minimum_span, middle + 0.5 * minimum_span
    return low, high


def to_8bit(values: np.ndarray, low: float, high: float) -> UInt8Image:
    """Map low..high linearly to 0..255, clipped and rounded; NaN becomes 0.

    values: float32 or uint16 (h, w). Returns uint8 (h, w), warm is bright. Raises ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f"a thermal range has to rise, not from {low} to {high}")
    if values.dtype == np.uint16:
        return np.take(to_8bit(np.arange(65536, dtype=np.float32), low, high), values)
    with np.errstate(over="ignore", invalid="ignore"):  # of values that are not finite, or nearly so
        scaled = np.subtract(values, np.float32(low), dtype=np.float32)
        scaled *= np.float32(255.0 / (high - low))
        scaled += np.float32(0.5)
    # Unlike the functions without f, these take the number where the other is NaN.
    np.fmax(scaled, np.float32(0), out=scaled)
    np.fmin(scaled, np.float32(255), out=scaled)
    return scaled.astype(np.uint8)


def _either(names: Sequence[str]) -> str:
    """Return 'a', 'b' or 'c'."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def _above(values: np.ndarray, least: float) -> np.ndarray:
    """Return the values above the least one that is none, (n,), or all as they are."""
    valid = values > least
    return values if valid.all() else values[valid]


def _ordered_integers(values: np.ndarray, ranks: list[int]) -> list[float]:
    """Return the values at these places of the rising order. values: uint16 (n,)."""
    up_to = np.cumsum(np.bincount(values))
    return [float(value) for value in np.searchsorted(up_to, ranks, side="right")]


def _ordered_floats(values: Float32Array, ranks: list[int]) -> list[float]:
    """Return the values at these places of the rising order. values: float32 (n,), finite, contiguous.

    By counting their upper and then their lower 16 bits: several times faster than NumPy's partition.
    """
    bits = values.view(np.uint32)
    # Integers that rise with the numbers: the sign bit turned, and of negative numbers all the others too.
    keys = bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000))
    upper = (keys >> 16).astype(np.uint16)
    up_to = np.cumsum(np.bincount(upper))
    buckets = np.searchsorted(up_to, ranks, side="right")
    found = np.empty(len(ranks), np.uint32)
    for bucket in set(buckets.tolist()):
        here = buckets == bucket
        before = int(up_to[bucket - 1]) if bucket else 0
        lower = (keys[upper == bucket] & 0xFFFF).astype(np.uint16)
        within = [rank - before for rank, wanted in zip(ranks, here, strict=True) if wanted]
        found[here] = (bucket << 16) + np.array(_ordered_integers(lower, within), np.uint32)
    negative = found < 0x80000000
    return [float(value) for value in np.where(negative, ~found, found ^ np.uint32(0x80000000)).view(np.float32)]


def resize_to_sensor(image: np.ndarray, size: tuple[int, int], method: str = "bilinear") -> np.ndarray:
    """Return the image as a smaller thermal sensor would deliver it.

    image: uint8 or float32 (h, w). size: (width, height) px of the smaller sensor.
    method: `bilinear`, the paper's (point samples, aliases pass), or `area`, what a coarse detector integrates.
    """
    flags = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
    if method not in flags:
        raise ValueError(f"unknown thermal resampling {method!r}: use one of {', '.join(flags)}")
    return cv2.resize(image, size, interpolation=flags[method])
