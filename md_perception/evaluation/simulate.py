"""A drive as a cheaper thermal camera would have recorded it: fewer pixels, fewer images, late, noisy or frozen ones.

The messages of a bag are changed on their way to the pairing, so that everything after it is what the vehicle does.
The order is that of a camera: what it sees (view, shift), what its detector integrates (size), noise, then how often,
when and whether its images come.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache
from statistics import median
from typing import Any, cast

import cv2
import numpy as np

from md_perception.bags.injection import Injection, inject
from md_perception.bags.make import TimedMessage
from md_perception.bags.read import BagMessage
from md_perception.bags.types import IMAGE, message_store
from md_perception.results import Size
from md_perception.sensing.edges import resized_matrix
from md_perception.sensing.images import ImageError, image_fields, is_compressed, stamp_ns, to_rgb, to_thermal_values
from md_perception.sensing.registration import RegistrationSettings, sampling_matrix, sent_pixels
from md_perception.sensing.thermal import TEMPERATURES, kelvin_per_number, resize_to_sensor

Timed = TimedMessage | BagMessage
"""What goes by: log_ns, topic and message."""

_ALWAYS_S = 1e9
_PERIODS = 9
"""Distances of stamps whose median is the period of a camera."""


class SimulationError(ValueError):
    """A simulation that cannot be: the text says why, and what can."""


@dataclass(frozen=True)
class Freeze:
    """For so long, from so many seconds after the bag's beginning on, the same picture comes again and again."""

    duration_s: float
    start_s: float

    def __post_init__(self) -> None:
        if not (self.duration_s > 0 and self.start_s >= 0 and math.isfinite(self.duration_s + self.start_s)):
            raise SimulationError(
                f"freeze={self}: a camera freezes for more than 0 s, from 0 s or later on: write freeze=2.0@5 for 2 s "
                "from second 5"
            )

    def __str__(self) -> str:
        return f"{self.duration_s:g}@{self.start_s:g}"


@dataclass(frozen=True)
class ThermalSimulation:
    """The cheaper thermal camera.

    size: (width, height) px of its detector, each pixel of which integrates over its area; None: that of the bag.
    rate_hz: images a second; those of the bag nearest to its ticks, with the stamps that they have; None: all.
    offset_s: error of its clock, added to its stamps. drop: share of the images that do not come, 0..1.
    freezes: when its picture stands still. noise: standard deviation of the extra noise of each pixel, in the numbers
    of the image (grey values where it has 8 bits). netd_k: the same in kelvin, for images of temperatures.
    view: share of the width and of the height of the bag's camera that it sees, in the middle; the registration knows.
    shift_px: (right, down), px of its image, by which what it sees is displaced: a mount that was bent after the
    calibration. The registration does not know.
    """

    size: Size | None = None
    rate_hz: float | None = None
    offset_s: float = 0.0
    drop: float = 0.0
    freezes: tuple[Freeze, ...] = ()
    noise: float = 0.0
    netd_k: float = 0.0
    view: float = 1.0
    shift_px: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.size is not None:
            _within("thermal (width)", self.size[0], 8, 8192)
            _within("thermal (height)", self.size[1], 8, 8192)
        if self.rate_hz is not None:
            _within("rate", self.rate_hz, 0.01, 10_000)
        _within("offset", self.offset_s, -60, 60)
        _within("drop", self.drop, 0, 1)
        _within("noise", self.noise, 0, 1e6)
        _within("netd", self.netd_k, 0, 100)
        _within("view", self.view, 0.1, 1)
        for value in self.shift_px:
            _within("shift", value, -1000, 1000)
        if self.noise and self.netd_k:
            raise SimulationError("noise and netd both say how noisy the thermal camera is: give one of them")

    @property
    def changes_pixels(self) -> bool:
        return bool(self.size or self.noise or self.netd_k or self.view < 1 or any(self.shift_px))


@dataclass(frozen=True)
class RgbSimulation:
    """The RGB camera in worse conditions; its size stays, for the truth lies in its pixels.

    gain: times which its values are taken, 0 (black) to 1. noise: standard deviation of the extra noise, grey values.
    drop, freezes: as those of thermal.
    """

    gain: float = 1.0
    noise: float = 0.0
    drop: float = 0.0
    freezes: tuple[Freeze, ...] = ()

    def __post_init__(self) -> None:
        _within("gain", self.gain, 0, 1)
        _within("noise", self.noise, 0, 255)
        _within("drop", self.drop, 0, 1)

    @property
    def changes_pixels(self) -> bool:
        return self.gain < 1 or self.noise > 0


@dataclass(frozen=True)
class SimulatedTopics:
    """Where the cameras are in the bag. thermal_info: of its sensor_msgs/CameraInfo, "" where there is none."""

    rgb: str = "/rgb/image_raw"
    thermal: str = "/thermal/image_raw"
    thermal_info: str = "/thermal/camera_info"


@dataclass(frozen=True)
class Simulation:
    """What is simulated; without arguments nothing is. seed: of noise and of what is dropped."""

    thermal: ThermalSimulation = field(default_factory=ThermalSimulation)
    rgb: RgbSimulation = field(default_factory=RgbSimulation)
    seed: int = 0

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, 2**31)

    def __bool__(self) -> bool:
        return self.thermal != ThermalSimulation() or self.rgb != RgbSimulation()

    def __str__(self) -> str:
        """Return what `parse` understands, "" where nothing is simulated."""
        words: list[str] = []
        for camera, simulated in (("thermal", self.thermal), ("rgb", self.rgb)):
            keys = _written(simulated)
            size = keys.pop("size", "")
            if keys or size:
                words += [f"{camera}={size}" if size else camera, *(f"{key}={text}" for key, text in keys.items())]
        return ",".join([*words, f"seed={self.seed}"] if self.seed else words)

    @classmethod
    def parse(cls, text: str) -> "Simulation":
        """Read a line such as `thermal=160x120,rate=9,offset=0.04,drop=0.05,freeze=2.0@5,rgb,gain=0.2,seed=3`.

        `thermal`, with a size or without one, and `rgb` begin the keys of a camera; a freeze may be given more than
        once. Raises SimulationError for an unknown key and for a value that is not possible.
        """
        found: dict[str, dict[str, Any]] = {}
        camera, seed = "", None
        for word in text.split(","):
            key, has_value, value = (part.strip() for part in word.partition("="))
            if key in _KEYS:
                if key in found:
                    raise SimulationError(f"{text!r} begins {key} twice: put all of its keys behind one {key}")
                camera = key
                found[camera] = {}
                if has_value and camera == "rgb":
                    raise SimulationError(
                        f"{word.strip()!r}: the RGB images keep their size, because the truth lies in their pixels: "
                        f"write rgb without a value, and then {_listed(_KEYS['rgb'])}"
                    )
                if has_value:
                    found[camera]["size"] = parse_size(value)
            elif key == "seed":
                if seed is not None:
                    raise SimulationError(f"{text!r} says seed twice: give it once")
                seed = _whole(key, value)
            elif not camera:
                raise SimulationError(
                    f"{text!r} begins with {key!r}: begin with the camera, e.g. thermal=160x120,rate=9 or rgb,gain=0.2"
                )
            elif key not in _KEYS[camera]:
                raise SimulationError(
                    f"{text!r}: there is no {key!r} of the {camera} camera: use {_listed(_KEYS[camera])}, or seed"
                )
            else:
                name, read = _KEYS[camera][key]
                if name == "freezes":
                    found[camera][name] = (*found[camera].get(name, ()), read(key, value))
                elif name in found[camera]:
                    raise SimulationError(f"{text!r} says {key} of the {camera} camera twice: give it once")
                else:
                    found[camera][name] = read(key, value)
        return cls(
            ThermalSimulation(**found.get("thermal", {})),
            RgbSimulation(**found.get("rgb", {})),
            0 if seed is None else seed,
        )

    def with_thermal_size(self, size: Size) -> "Simulation":
        """Return the same with a thermal camera of this size."""
        return replace(self, thermal=replace(self.thermal, size=size))

    def apply(
        self,
        messages: Iterable[Timed],
        start_ns: int,
        topics: SimulatedTopics = SimulatedTopics(),
        thermal_encoding: str = "auto",
    ) -> Iterator[Timed]:
        """Yield the messages as they would have been, in the order of log time; those of other topics untouched.

        messages: of one bag, from its beginning on, in the order of log time; they are not changed. start_ns: log time
        of the bag's beginning. thermal_encoding: what the thermal values are, see sensing.thermal.
        Images keep their headers and encodings (compressed ones come as sensor_msgs/Image). The same messages give the
        same result. Raises SimulationError, and BagError where a message is not of its type.
        """
        if not self:
            yield from messages
            return
        if self.thermal.netd_k and thermal_encoding not in TEMPERATURES:
            raise SimulationError(
                f"netd={self.thermal.netd_k:g} is in kelvin, and thermal images of encoding {thermal_encoding!r} have "
                "none: set thermal.encoding to the temperatures that the camera sends, or give noise in the numbers "
                "of its images (grey values)"
            )
        sigma = self.thermal.noise
        if self.thermal.netd_k:
            sigma = self.thermal.netd_k / kelvin_per_number(thermal_encoding)
        changed = (self._changed(timed, topics, sigma) for timed in messages)
        ticked = self._at_rate(changed, topics.thermal)
        # All that inject does with a message of another topic is to pass it on.
        yield from inject(cast("Iterator[TimedMessage]", ticked), self._injections(topics), start_ns)

    def registration(self, settings: RegistrationSettings, rgb_size: Size, thermal_size: Size) -> RegistrationSettings:
        """Return the registration settings for the images of the simulated camera.

        rgb_size, thermal_size: (width, height) px of the images in the bag, for which `settings` are made.
        A source of CameraInfo is left as it is: those messages are changed with the images.
        """
        simulated = self.thermal
        if settings.source != "homography" or (simulated.view == 1 and settings.homography is None):
            return settings
        size = simulated.size or _window(thermal_size, simulated.view)[2:]
        matrix = _to_simulated(thermal_size, size, simulated.view) @ sampling_matrix(
            rgb_size, thermal_size, settings.homography
        ).astype(np.float64)
        return replace(settings, homography=tuple(matrix.reshape(-1).tolist()), sizes=(*rgb_size, *size))

    def _changed(self, timed: Timed, topics: SimulatedTopics, sigma: float) -> Timed:
        """Return the message with the pixels of the simulated camera; one that cannot be decoded as it is, so that it
        is refused where the vehicle refuses it.
        """
        try:
            if timed.topic == topics.thermal and self.thermal.changes_pixels:
                return _with_message(timed, self._thermal_image(timed, sigma))
            if timed.topic == topics.rgb and self.rgb.changes_pixels:
                return _with_message(timed, self._rgb_image(timed))
        except ImageError:
            pass
        if timed.topic == topics.thermal_info and (self.thermal.size or self.thermal.view < 1):
            return _with_message(timed, _smaller_info(timed.message, self.thermal))
        if timed.topic in (topics.thermal, topics.rgb):
            return _with_message(timed, timed.message)  # which the injections can change
        return timed

    def _rgb_image(self, timed: Timed) -> Any:
        pixels = np.multiply(to_rgb(timed.message, timed.topic), self.rgb.gain, dtype=np.float32)
        pixels = self._noisy(pixels, self.rgb.noise, timed.message, 1)
        return _image(timed.message, _as_type(pixels, np.dtype(np.uint8)), "rgb8")

    def _thermal_image(self, timed: Timed, sigma: float) -> Any:
        simulated = self.thermal
        values = to_thermal_values(timed.message, timed.topic)
        there: Size = (values.shape[1], values.shape[0])
        seen = _window(there, simulated.view)
        size = simulated.size or (seen[2], seen[3])
        if size[0] > seen[2] or size[1] > seen[3]:
            raise SimulationError(
                f"{timed.topic} has images of {there[0]}x{there[1]} px, of which view={simulated.view:g} leaves "
                f"{seen[2]}x{seen[3]}: a camera of {size[0]}x{size[1]} px would have to invent detail; choose a size "
                "of at most that"
            )
        pixels = values.astype(np.float32)
        if any(simulated.shift_px):
            pixels = _shifted(
                pixels, (simulated.shift_px[0] * seen[2] / size[0], simulated.shift_px[1] * seen[3] / size[1])
            )
        left, top, width, height = seen
        pixels = _integrated(pixels[top : top + height, left : left + width], size)
        pixels = self._noisy(pixels, sigma, timed.message, 0)
        encoding = _plain_encoding(values) if is_compressed(timed.message) else timed.message.encoding
        kind = np.dtype(np.float64) if encoding == "64FC1" else values.dtype
        return _image(timed.message, _as_type(pixels, kind), encoding)

    def _noisy(self, pixels: np.ndarray, sigma: float, message: Any, camera: int) -> np.ndarray:
        """Return the pixels, float32, with noise that depends on seed, camera and stamp alone; grey stays grey."""
        if not sigma:
            return pixels
        random = np.random.default_rng([self.seed, camera, stamp_ns(message)])
        shape = (*pixels.shape[:2], 1) if pixels.ndim == 3 and camera == 0 else pixels.shape
        return pixels + np.float32(sigma) * random.standard_normal(shape, np.float32)

    def _at_rate(self, messages: Iterator[Timed], topic: str) -> Iterator[Timed]:
        if self.thermal.rate_hz is None:
            yield from messages
            return
        ticks = _Ticks(self.thermal.rate_hz, topic)
        for timed in messages:
            if timed.topic != topic or ticks.delivers(stamp_ns(timed.message)):
                yield timed

    def _injections(self, topics: SimulatedTopics) -> list[Injection]:
        """Return what is left to the faults of bags: what is dropped, frozen and stamped wrongly."""
        found = []
        cameras: list[tuple[str, ThermalSimulation | RgbSimulation]] = [
            (topics.thermal, self.thermal),
            (topics.rgb, self.rgb),
        ]
        for camera, (topic, simulated) in enumerate(cameras):
            if simulated.drop:
                found.append(Injection("drop", topic, 0.0, _ALWAYS_S, simulated.drop, seed=2 * self.seed + camera))
            found += [
                Injection("freeze", topic, freeze.start_s, freeze.start_s + freeze.duration_s)
                for freeze in simulated.freezes
            ]
        if self.thermal.offset_s:
            found.append(Injection("jump", topics.thermal, 0.0, _ALWAYS_S, self.thermal.offset_s))
        return found


class _Ticks:
    """Which images of a camera a slower one delivers: those nearest to the ticks of its clock.

    The first tick is at the first stamp, and again after a jump of the stamps.
    """

    JUMP_S = 5.0

    def __init__(self, rate_hz: float, topic: str) -> None:
        self._rate_hz, self._topic = rate_hz, topic
        self._tick_ns = 1e9 / rate_hz
        self._distances: deque[int] = deque(maxlen=_PERIODS)
        self._last: int | None = None
        self._first, self._next = 0, 0  # stamp of tick 0, number of the next tick

    def delivers(self, stamp: int) -> bool:
        """Return whether this image comes; call it for all, in their order."""
        last, self._last = self._last, stamp
        if last is None or not 0 <= stamp - last <= self.JUMP_S * 1e9:
            self._first, self._next = stamp, 1
            return True
        self._distances.append(stamp - last)
        period = median(self._distances)
        if len(self._distances) == _PERIODS and period > 1.25 * self._tick_ns:
            raise SimulationError(
                f"rate={self._rate_hz:g}: {self._topic} has {1e9 / period:.1f} images a second, and more cannot be "
                "made of them: choose a lower rate"
            )
        # Half a period on, the next image is nearer.
        tick = math.floor((stamp - self._first + period / 2) / self._tick_ns)
        if tick < self._next:
            return False
        self._next = tick + 1
        return True


def parse_size(text: str) -> Size:
    """Read `160x120`. Raises SimulationError."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip())
    if match is None:
        raise SimulationError(f"{text!r} is not a size in px: write width x height, e.g. 160x120")
    return int(match[1]), int(match[2])


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SimulationError(f"{key}={text}: a number is needed, e.g. {key}={_EXAMPLES[key]}")
    return value


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text):
        raise SimulationError(f"{key}={text}: a whole number is needed, e.g. {key}=1")
    return int(text)


def _freeze(key: str, text: str) -> Freeze:
    duration, at, start = text.partition("@")
    if not at:
        raise SimulationError(f"{key}={text}: write {key}=2.0@5 for 2 s from second 5 on")
    return Freeze(_number(key, duration), _number(key, start))


def _shift(key: str, text: str) -> tuple[float, float]:
    right, separator, down = text.partition("/")
    if not separator:
        raise SimulationError(f"{key}={text}: write {key}=1.5/-2 for 1.5 px to the right and 2 px up")
    return _number(key, right), _number(key, down)


_EXAMPLES = {
    "rate": "9",
    "offset": "0.04",
    "drop": "0.05",
    "freeze": "2.0@5",
    "noise": "2",
    "netd": "0.05",
    "view": "0.8",
    "shift": "1.5/-2",
    "gain": "0.2",
}

_Reader = Callable[[str, str], Any]
_KEYS: dict[str, dict[str, tuple[str, _Reader]]] = {
    "thermal": {
        "rate": ("rate_hz", _number),
        "offset": ("offset_s", _number),
        "drop": ("drop", _number),
        "freeze": ("freezes", _freeze),
        "noise": ("noise", _number),
        "netd": ("netd_k", _number),
        "view": ("view", _number),
        "shift": ("shift_px", _shift),
    },
    "rgb": {
        "gain": ("gain", _number),
        "noise": ("noise", _number),
        "drop": ("drop", _number),
        "freeze": ("freezes", _freeze),
    },
}
"""Of each camera: key on the command line to field and how its value is read."""


def _written(simulated: ThermalSimulation | RgbSimulation) -> dict[str, str]:
    """Return what differs from the defaults, by key."""
    keys = {name: key for camera in _KEYS.values() for key, (name, _) in camera.items()}
    found: dict[str, str] = {}
    for one in fields(simulated):
        value = getattr(simulated, one.name)
        if value == one.default:
            continue
        if one.name == "size":
            found["size"] = "{}x{}".format(*value)
        elif one.name == "freezes":
            found["freeze"] = ",freeze=".join(map(str, value))
        elif one.name == "shift_px":
            found["shift"] = "{:g}/{:g}".format(*value)
        else:
            found[keys[one.name]] = f"{value:.12g}"
    return found


def _listed(keys: Iterable[str]) -> str:
    *others, last = keys
    return f"{', '.join(others)} and {last}"


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SimulationError(f"{key}={value:g} is not possible: {low:g} to {high:g} is")


# --- Pixels ----------------------------------------------------------------------------------------------------------


def _window(size: Size, view: float) -> tuple[int, int, int, int]:
    """Return left, top, width, height, px, of the middle of an image that a camera with a narrower view sees."""
    width, height = (max(1, round(side * view)) for side in size)
    return (size[0] - width) // 2, (size[1] - height) // 2, width, height


def _to_simulated(thermal_size: Size, size: Size, view: float) -> np.ndarray:
    """Return float64 (3, 3): pixels of the bag's thermal image to those of the simulated one."""
    left, top, width, height = _window(thermal_size, view)
    cropped = np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
    return np.asarray(resized_matrix(size[0] / width, size[1] / height) @ cropped)


def _integrated(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Return what a coarser detector measures, float32; a pixel of which less than half was measured is NaN."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    pixels = np.ascontiguousarray(pixels)
    measured = np.isfinite(pixels)
    if measured.all():
        return resize_to_sensor(pixels, size, "area")
    share = resize_to_sensor(measured.astype(np.float32), size, "area")
    total = resize_to_sensor(np.where(measured, pixels, np.float32(0)), size, "area")
    return np.where(share >= 0.5, total / np.maximum(share, np.float32(0.5)), np.float32(np.nan))


def _shifted(pixels: np.ndarray, by: tuple[float, float]) -> np.ndarray:
    """Return the image moved right and down by so many px; what comes in at the border repeats it."""
    matrix = np.array([[1.0, 0, by[0]], [0, 1, by[1]]])
    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _as_type(pixels: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Return float32 pixels as the numbers of an encoding, rounded and clipped where those are whole."""
    if kind.kind == "f":
        return pixels.astype(kind)
    limits = np.iinfo(kind)
    return np.clip(np.rint(pixels), limits.min, limits.max).astype(kind)


def _plain_encoding(values: np.ndarray) -> str:
    """Return the encoding of what was compressed. A colour picture is grey: its order says nothing."""
    return "bgr8" if values.ndim == 3 else {1: "mono8", 2: "mono16"}[values.dtype.itemsize]


@cache
def _image_class() -> Any:
    return message_store().types[IMAGE]


def _image(message: Any, pixels: np.ndarray, encoding: str) -> Any:
    """Return sensor_msgs/Image with the header of the message."""
    return _image_class()(header=message.header, **image_fields(pixels, encoding))


def _with_message(timed: Timed, message: Any) -> TimedMessage:
    return TimedMessage(timed.log_ns, timed.topic, message)


def _smaller_info(info: Any, simulated: ThermalSimulation) -> Any:
    """Return the sensor_msgs/CameraInfo of the simulated camera; its pixels are those of the images that are sent."""
    there, to_sent = sent_pixels(info)
    size: Size = simulated.size or _window(there, simulated.view)[2:]
    change = _to_simulated(there, size, simulated.view) @ to_sent
    roi = replace(info.roi, x_offset=0, y_offset=0, width=0, height=0)
    matrices = {
        name: (change @ np.reshape(getattr(info, name), (3, -1))).reshape(-1)
        if np.any(getattr(info, name))
        else getattr(info, name)
        for name in ("k", "p")
    }
    return replace(info, width=size[0], height=size[1], binning_x=0, binning_y=0, roi=roi, **matrices)
