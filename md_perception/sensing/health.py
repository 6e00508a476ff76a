"""What is wrong with a camera, and the operating mode that follows from it, with hysteresis.

Pure logic: no ROS, no threads, no clock of its own; the caller locks, and gives one steady clock throughout. Arrivals
cost O(1). Pictures are looked at rarely (`INSPECTION_PERIOD_S`) and by their samples, whatever becomes of the frame.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

import numpy as np

from md_perception.results import Camera, Mode, Size
from md_perception.sensing.images import ImageError, Message, is_compressed, to_brightness, to_thermal_values

WithoutThermal = Literal["stop", "last_thermal"]
"""What happens without thermal and without a visible-only student: nothing is published but status, or the fused
student goes on with the last good thermal image for a while."""

Registers = Callable[[Size | None, Size | None], bool]
"""Tells whether RGB and thermal images of these sizes, (width, height) px, can be registered; None: not known yet."""

INSPECTION_PERIOD_S = 0.2
"""Pictures of a camera are looked at no more often."""

FUTURE_S = 0.2
"""A stamp that lies further ahead of the node's clock is not the jitter of two clocks that are synchronised."""

JUMP_S = 0.5
"""A stamp that lies further back behind the newest is a jump of time, not a frame that was overtaken."""

EVENT_S = 5.0
"""A change that happens once (a jump, another size) is reported for so long."""

MEMORY_S = 5.0
"""Rates are those of the last seconds."""

_SLOW_SHARE = 0.5
"""Of the best rate that a camera has reached: below it, it is slow, where no least rate is given."""

_LEAST_GAPS = 10
"""Between stamps, before they say how many images are lost."""

_LEAST_ROWS = 64
_CHANGED_SHARE = 0.001
"""Share of the samples that changes at least between two pictures of a live sensor. Noise of a hundredth of a grey
level changes ten times as many."""

_LEAST_STILL = 3
"""Pictures that have to be equal before a camera can be said to be frozen, however slow it is."""

_LEAST_UNREADABLE = 2
"""Pictures that are of no use, one after the other, before the camera is lost: a single one is only that."""

_BLANK_SHARE = 0.98
"""Share of samples at the end of the scale that makes a picture dark or saturated."""

_BRIGHTNESS: dict[str, tuple[int, int, int]] = {
    "rgb8": (3, 0, 1),
    "bgr8": (3, 0, 1),
    "mono8": (1, 0, 1),
    "8UC1": (1, 0, 1),
    "rgba8": (4, 1, 4),
    "bgra8": (4, 1, 4),
    "yuv422": (2, 1, 2),
    "uyvy": (2, 1, 2),
    "yuv422_yuy2": (2, 0, 2),
    "yuyv": (2, 0, 2),
}
"""Encoding to the bytes of a pixel, and the first byte and the stride of those that carry brightness (of the pictures
with alpha: green). Of other encodings every byte of a row is taken."""

_DARK_LEVEL: dict[Camera, int] = {"rgb": 10, "thermal": 2}
_BRIGHT_LEVEL = 250

_VIDEO_RANGE = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")
"""Encodings whose brightness goes from 16 (black) to 235 (white), as `sensing.images` decodes them."""


class Fault(StrEnum):
    """What can be wrong with a camera; the values are for people."""

    SILENT = "silent"
    SLOW = "slow"
    FROZEN = "frozen"
    DARK = "dark"
    SATURATED = "saturated"
    UNREADABLE = "unreadable"
    FUTURE = "stamps in the future"
    JUMPED_BACK = "stamps jumped back"
    FRAME_ID_CHANGED = "frame id changed"
    SIZE_CHANGED = "image changed"


@dataclass(frozen=True)
class HealthSettings:
    """When a camera is lost, and what is done without it.

    timeout_s: a camera (or the pairing) that gave nothing for so long is lost.
    recovery_pairs: pairs, each of another thermal image within the timeout after the one before, after which fusion
        returns.
    frozen_s: a camera whose picture stays the same for so long is lost; 0: not looked at.
    without_thermal, last_thermal_age_s: without a visible-only student, how old a thermal image the fused student may
        be given at most.
    rgb_minimum_hz, thermal_minimum_hz: a slower camera is reported; 0: half of the best rate that it has reached.
    """

    timeout_s: float = 1.0
    recovery_pairs: int = 3
    frozen_s: float = 1.0
    without_thermal: WithoutThermal = "stop"
    last_thermal_age_s: float = 3.0
    rgb_minimum_hz: float = 0.0
    thermal_minimum_hz: float = 0.0

    def __post_init__(self) -> None:
        if not self.timeout_s > 0 or self.recovery_pairs < 1:
            raise ValueError(f"the timeout must be above 0 s and recovery_pairs at least 1, got {self}")
        if not (self.frozen_s >= 0 and self.rgb_minimum_hz >= 0 and self.thermal_minimum_hz >= 0):
            raise ValueError(f"frozen_s and the least rates must be 0 or more, got {self}")
        if self.without_thermal == "last_thermal" and not self.last_thermal_age_s > self.timeout_s:
            raise ValueError(
                f"health.last_thermal_age_s {self.last_thermal_age_s:g} must be above health.timeout_s "
                f"{self.timeout_s:g}: thermal is missed only after that, and its last image would be too old already"
            )

    def minimum_hz(self, camera: Camera) -> float:
        """Return the least rate of a camera, 0 where it is learned."""
        return self.rgb_minimum_hz if camera == "rgb" else self.thermal_minimum_hz


@dataclass(frozen=True)
class ImageForm:
    """What an image message says of itself. size: (width, height) px; None for a compressed one."""

    frame_id: str
    encoding: str
    size: Size | None

    @classmethod
    def of(cls, message: Message) -> "ImageForm":
        """Return the form of a message, without looking at its picture."""
        if is_compressed(message):
            return cls(message.header.frame_id, message.format, None)
        return cls(message.header.frame_id, message.encoding, (int(message.width), int(message.height)))

    def __str__(self) -> str:
        return self.encoding + (f" {self.size[0]}x{self.size[1]}" if self.size else "")


@dataclass(frozen=True)
class Content:
    """A look at a picture.

    samples: of some of its rows, to compare with others. dark, saturated: nothing is seen. unreadable: why no student
    can be given it, "" where one can; then there are no samples. size: (width, height) px of a compressed one, whose
    message does not say it.
    """

    samples: np.ndarray
    dark: bool = False
    saturated: bool = False
    unreadable: str = ""
    size: Size | None = None

    @classmethod
    def broken(cls, why: str = "it cannot be decoded") -> "Content":
        """Return what is seen of a picture that cannot be decoded, or is not what the camera is said to send."""
        return cls(np.zeros((0, 0), np.uint8), unreadable=why)


def content_of(message: Message, camera: Camera) -> Content:
    """Look at the picture of an image message; raw images are not decoded. Raises ImageError."""
    values = _values(message, camera)
    rows = np.array(values[:: max(1, values.shape[0] // _LEAST_ROWS)], order="C")
    size = (values.shape[1], values.shape[0]) if is_compressed(message) else None
    video_range = not is_compressed(message) and message.encoding in _VIDEO_RANGE
    low, high = _ends(rows, camera, video_range)
    return Content(rows, dark=low >= _BLANK_SHARE, saturated=high >= _BLANK_SHARE > low, size=size)


def _values(message: Message, camera: Camera) -> np.ndarray:
    """Return the rows: uint8 for 8-bit, colour and exotic images, uint16 or float32 for such thermal ones."""
    if camera == "thermal":
        return to_thermal_values(message)
    return to_brightness(message) if is_compressed(message) else _brightness_bytes(message)


def _brightness_bytes(message: Message) -> np.ndarray:
    """Return the bytes of a raw colour image that carry its brightness, (H, n): a view, whatever the encoding."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    pixel, first, stride = _BRIGHTNESS.get(message.encoding, (0, 0, 1))
    used = width * pixel or step
    if height < 1 or not 0 < used <= step or data.size < step * (height - 1) + used:
        raise ImageError(f"{height} rows of {step} bytes do not fit into the {data.size} bytes of the message")
    return np.ndarray((height, used), np.uint8, data, strides=(step, 1))[:, first::stride]


def _ends(samples: np.ndarray, camera: Camera, video_range: bool) -> tuple[float, float]:
    """Return the shares of samples at the lower and at the upper end of the scale."""
    if samples.dtype == np.uint8:
        dark, bright = (
            16 + level * 219 / 255 if video_range else level for level in (_DARK_LEVEL[camera], _BRIGHT_LEVEL)
        )
        return float(np.mean(samples <= dark)), float(np.mean(samples >= bright))
    # The scale of counts and temperatures has no known end: a sensor at its end gives one value throughout.
    empty = float(np.mean(~np.isfinite(samples) | (samples == 0)))
    return empty, float(np.mean(samples == np.fmax.reduce(samples, axis=None)))


@dataclass(frozen=True)
class CameraReport:
    """One camera, for diagnostics.

    rate_hz: of the last seconds. silent_s: since an image arrived, infinite before the first. arrived_share: of the
    camera's images that arrive, 0..1, judged by their stamps. newest_stamp_ns: None before the first image. size: see
    CameraHealth.size. faults: each with what was seen.
    """

    received: int = 0
    rate_hz: float = 0.0
    silent_s: float = math.inf
    arrived_share: float = 1.0
    newest_stamp_ns: int | None = None
    form: ImageForm | None = None
    size: Size | None = None
    faults: Mapping[Fault, str] = field(default_factory=dict)


class CameraHealth:
    """Follows the arrivals and the pictures of one camera. Not locked."""

    def __init__(self, camera: Camera, settings: HealthSettings = HealthSettings()) -> None:
        self.camera: Camera = camera
        self.settings = settings
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=256)  # arrival and stamp, ns, of the last seconds
        self._arrived_ns: int | None = None
        self.first_ns: int | None = None
        """Arrival of the first image."""
        self._received = 0
        self._newest_stamp_ns: int | None = None
        self._form: ImageForm | None = None
        self._ahead_s = 0.0
        self._best_hz = 0.0
        self._events: dict[Fault, tuple[int, str]] = {}  # when, and what
        self._content: Content | None = None
        self._still_since_ns = 0  # arrival of the picture that all since are equal to
        self._still_ns = 0
        self._still = 0
        self._unreadable = 0
        self._why_unreadable = ""

    def arrived(
        self, arrival_ns: int, stamp_ns: int | None = None, form: ImageForm | None = None, age_s: float = 0.0
    ) -> None:
        """Take note of an image.

        stamp_ns: of its header; None: that of its arrival. age_s: the node's clock minus the stamp, at arrival.
        """
        stamp_ns = arrival_ns if stamp_ns is None else stamp_ns
        self._received += 1
        self.first_ns = arrival_ns if self.first_ns is None else self.first_ns
        self._ahead_s = max(0.0, -age_s)
        silent_s, self._arrived_ns = self.silent_s(arrival_ns), arrival_ns
        if silent_s > self.settings.timeout_s:
            self._arrivals.clear()  # the rate of a camera that comes back is that of its images since
        if self._newest_stamp_ns is not None and stamp_ns < self._newest_stamp_ns - JUMP_S * 1e9:
            back_s = (self._newest_stamp_ns - stamp_ns) / 1e9
            self._events[Fault.JUMPED_BACK] = (
                arrival_ns,
                f"by {back_s:.1f} s: a looping bag, or a clock that was set",
            )
            self._newest_stamp_ns = None
            self._arrivals.clear()
        self._arrivals.append((arrival_ns, stamp_ns))
        self._newest_stamp_ns = max(stamp_ns, self._newest_stamp_ns or stamp_ns)
        if form is not None:
            if self._form is not None and form != self._form:
                self._note_change(arrival_ns, self._form, form)
            self._form = form

    def inspected(self, content: Content, arrival_ns: int) -> bool:
        """Take note of a picture; return whether it is one of a live camera that sees something.

        arrival_ns: of its image; pictures come in this order, some may be left out.
        """
        self._unreadable = self._unreadable + 1 if content.unreadable else 0
        self._why_unreadable = content.unreadable
        if content.unreadable:
            return False  # of a picture that was damaged on its way, the others know nothing
        blank = content.dark or content.saturated
        # A black or a white picture has no noise that could tell a live sensor from a dead one.
        if blank or self._content is None or _differ(self._content.samples, content.samples):
            self._still_since_ns, self._still = arrival_ns, 0
            still = False
        else:
            still = True
            # Compared with the first of them: what drifts slowly is alive.
            content = replace(content, samples=self._content.samples)
        self._content = content
        self._still_ns = arrival_ns
        self._still += 1
        return not (blank or still)

    def alive(self, now_ns: int) -> bool:
        """Return whether the camera delivers pictures that a student can be given and that change."""
        readable = self._unreadable < _LEAST_UNREADABLE
        return self.silent_s(now_ns) <= self.settings.timeout_s and readable and not self._frozen()

    def sees(self, now_ns: int) -> bool:
        """Return whether it is alive and its pictures are neither dark nor saturated."""
        content = self._content
        return self.alive(now_ns) and not (content is not None and (content.dark or content.saturated))

    def silent_s(self, now_ns: int) -> float:
        """Return the time since the newest image arrived, s, infinite before the first."""
        return math.inf if self._arrived_ns is None else (now_ns - self._arrived_ns) / 1e9

    def rate_hz(self, now_ns: int) -> float:
        """Return images per second over the last seconds, 0 without any."""
        self._forget(now_ns)
        if len(self._arrivals) < 2 or self._arrivals[-1][0] == self._arrivals[0][0]:
            return 0.0
        return (len(self._arrivals) - 1) * 1e9 / (max(now_ns, self._arrivals[-1][0]) - self._arrivals[0][0])

    def arrived_share(self, now_ns: int) -> float:
        """Return the share of the camera's images that arrive, 0..1, judged from the gaps between their stamps.

        A camera is regular: the short gaps are its period, and gaps of several periods are images that were lost. The
        better half counts: a camera that has changed its rate, as with its exposure at dusk, was regular before and is
        after.
        """
        self._forget(now_ns)
        stamps = np.array([stamp for _, stamp in self._arrivals], np.int64)
        gaps = np.diff(stamps)
        if len(gaps) < _LEAST_GAPS or gaps.min() <= 0:
            return 1.0
        halves = np.array_split(gaps, 2 if len(gaps) >= 2 * _LEAST_GAPS else 1)
        return float(min(1.0, max(np.percentile(half, 10) / half.mean() for half in halves)))

    def faults(self, now_ns: int) -> dict[Fault, str]:
        """Return what is wrong now, each with what was seen; where it is silent, that alone."""
        silent_s = self.silent_s(now_ns)
        if silent_s > self.settings.timeout_s:
            return {Fault.SILENT: f"for {silent_s:.1f} s" if math.isfinite(silent_s) else "no image so far"}
        found: dict[Fault, str] = {}
        rate = self.rate_hz(now_ns)
        least = self._least_hz(rate)
        if 0 < rate < least:
            found[Fault.SLOW] = f"{rate:.1f} Hz, {least:.1f} Hz were expected at least"
        if self._frozen():
            same_s = (self._still_ns - self._still_since_ns) / 1e9
            found[Fault.FROZEN] = f"the same picture for {same_s:.1f} s: a closed shutter, or a driver that hangs"
        if self._content is not None and self._content.dark:
            found[Fault.DARK] = "the picture is black: a covered lens, a closed shutter, or no light at all"
        if self._content is not None and self._content.saturated:
            found[Fault.SATURATED] = "the picture is at the upper end of its scale: see exposure, gain and range"
        if self._unreadable >= _LEAST_UNREADABLE:
            found[Fault.UNREADABLE] = (
                f"the last {self._unreadable} pictures that were looked at are of no use: {self._why_unreadable}"
            )
        if self._ahead_s > FUTURE_S:
            found[Fault.FUTURE] = (
                f"by {self._ahead_s:.2f} s: synchronise the camera's clock with this machine's (PTP, chrony)"
            )
        for event, (at_ns, text) in self._events.items():
            if now_ns - at_ns <= EVENT_S * 1e9:
                found[event] = text
        return found

    def report(self, now_ns: int) -> CameraReport:
        """Return all that diagnostics say of this camera."""
        return CameraReport(
            received=self._received,
            rate_hz=self.rate_hz(now_ns),
            silent_s=self.silent_s(now_ns),
            arrived_share=self.arrived_share(now_ns),
            newest_stamp_ns=self._newest_stamp_ns,
            form=self._form,
            size=self.size,
            faults=self.faults(now_ns),
        )

    @property
    def size(self) -> Size | None:
        """(width, height) px of the newest image; of compressed ones, of the last that was looked at; None: unknown."""
        said = self._form.size if self._form is not None else None
        return said or (self._content.size if self._content is not None else None)

    @property
    def newest_stamp_ns(self) -> int | None:
        """The newest stamp since the last jump of time; None before the first image."""
        return self._newest_stamp_ns

    def _frozen(self) -> bool:
        limit_s = self.settings.frozen_s
        return 0 < limit_s <= (self._still_ns - self._still_since_ns) / 1e9 and self._still >= _LEAST_STILL

    def _least_hz(self, rate_hz: float) -> float:
        """Return the rate below which the camera is slow; learn it, from what it reaches, where it is not given."""
        given = self.settings.minimum_hz(self.camera)
        if given:
            return given
        arrivals = self._arrivals
        if len(arrivals) >= 10 and arrivals[-1][0] - arrivals[0][0] >= 0.4 * MEMORY_S * 1e9:  # a burst says nothing
            self._best_hz = max(self._best_hz, rate_hz)
        return _SLOW_SHARE * self._best_hz

    def _note_change(self, arrival_ns: int, before: ImageForm, now: ImageForm) -> None:
        if before.frame_id != now.frame_id:
            self._events[Fault.FRAME_ID_CHANGED] = arrival_ns, f"from {before.frame_id!r} to {now.frame_id!r}"
        if (before.encoding, before.size) != (now.encoding, now.size):
            self._events[Fault.SIZE_CHANGED] = (
                arrival_ns,
                f"from {before} to {now}: registration and warm-up were made for what it was",
            )

    def _forget(self, now_ns: int) -> None:
        while self._arrivals and now_ns - self._arrivals[0][0] > MEMORY_S * 1e9:
            self._arrivals.popleft()


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two pictures differ by more than a few samples."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    bits = f"u{one.itemsize}"  # as bits: NaN equals itself
    return bool(np.count_nonzero(one.view(bits) != other.view(bits)) > _CHANGED_SHARE * one.size)


class ModeSelector:
    """Decides between the modes for which there is a student. Not locked; the caller's steady clock throughout.

    - FUSED while both cameras are alive, thermal sees, and the last pair is younger than the timeout, so that single
      frames without a partner do not make the mode flap. It begins with the first pair of all, for which the others
      wait until the timeout; once it was lost, or another mode was on, with `recovery_pairs` pairs. RGB may be dark:
      that is what thermal is for. Where the images cannot be registered, it gives way to the students of one camera.
    - otherwise VISIBLE_ONLY while RGB sees, with a student for it;
    - without one, LAST_THERMAL while thermal is lost, if the settings want it and its last good image is young enough;
    - otherwise THERMAL_ONLY while thermal sees, with a student for it;
    - otherwise STALE.
    """

    def __init__(
        self,
        available: Collection[Mode],
        settings: HealthSettings = HealthSettings(),
        registers: Registers = lambda rgb_size, thermal_size: True,
    ) -> None:
        """available: the modes that have a student. registers: asked before FUSED is chosen."""
        self.rgb = CameraHealth("rgb", settings)
        self.thermal = CameraHealth("thermal", settings)
        self._settings = settings
        self._available = frozenset(available)
        self._registers = registers
        self._pair_ns: int | None = None
        self._partner_ns: int | None = None
        self._kept_ns: int | None = None
        self._pairs = 0
        self._mode = Mode.STALE
        self._began = False

    @property
    def cameras_in_use(self) -> tuple[Camera, ...]:
        """The cameras that some student takes."""
        cameras: tuple[Camera, ...] = ("rgb", "thermal")
        without: dict[Camera, Mode] = {"rgb": Mode.THERMAL_ONLY, "thermal": Mode.VISIBLE_ONLY}
        return tuple(camera for camera in cameras if self._available - {without[camera]})

    @property
    def settings(self) -> HealthSettings:
        """May be replaced at any time."""
        return self._settings

    @settings.setter
    def settings(self, settings: HealthSettings) -> None:
        self._settings = self.rgb.settings = self.thermal.settings = settings

    def camera(self, name: Camera) -> CameraHealth:
        """Return the health of a camera."""
        return self.rgb if name == "rgb" else self.thermal

    def pivot_decided(self, paired: bool, now_ns: int, partner_ns: int | None = None) -> None:
        """Note whether an RGB frame found its partner; a partner from a camera that is lost is none.

        partner_ns: arrival of the partner: pairs with the same one count as one towards the return of fusion, so that a
        single thermal image, which may serve several RGB images, does not bring it back. None: not the one before.
        """
        if not (paired and self.rgb.alive(now_ns) and self.thermal.sees(now_ns)):
            return
        if not self._fresh(self._pair_ns, now_ns):
            self._pairs = 1
        elif partner_ns is None or partner_ns != self._partner_ns:
            self._pairs += 1
        self._pair_ns, self._partner_ns = now_ns, partner_ns

    def thermal_kept(self, arrival_ns: int) -> None:
        """Note that a good thermal image of FUSED is at hand for LAST_THERMAL. arrival_ns: when it came."""
        self._kept_ns = arrival_ns

    def mode(self, now_ns: int) -> Mode:
        """Return the mode at this time."""
        before, self._mode = self._mode, self._choose(now_ns)
        if before is Mode.FUSED and self._mode is not Mode.FUSED:
            self._pairs = 0
        self._began = self._began or self._mode is not Mode.STALE
        return self._mode

    def _choose(self, now_ns: int) -> Mode:
        rgb, thermal, available = self.rgb, self.thermal, self._available
        fuses = Mode.FUSED in available and rgb.alive(now_ns) and thermal.sees(now_ns) and self._fused_holds(now_ns)
        # Without another student there is nothing to give way to: each image is rejected, with the reason.
        if fuses and (len(available) == 1 or self._registers(rgb.size, thermal.size)):
            return Mode.FUSED
        if self._begins(now_ns):
            return Mode.STALE
        if Mode.VISIBLE_ONLY in available and rgb.sees(now_ns):
            return Mode.VISIBLE_ONLY
        if self._last_thermal_serves(now_ns):
            return Mode.LAST_THERMAL
        if Mode.THERMAL_ONLY in available and thermal.sees(now_ns):
            return Mode.THERMAL_ONLY
        return Mode.STALE

    def _begins(self, now_ns: int) -> bool:
        """Return whether the first pair may still come."""
        if self._began or Mode.FUSED not in self._available:
            return False
        firsts = [camera.first_ns for camera in (self.rgb, self.thermal) if camera.first_ns is not None]
        return not firsts or self._fresh(min(firsts), now_ns)

    def _fused_holds(self, now_ns: int) -> bool:
        if not self._fresh(self._pair_ns, now_ns):
            return False
        return self._mode is Mode.FUSED or not self._began or self._pairs >= self._settings.recovery_pairs

    def _last_thermal_serves(self, now_ns: int) -> bool:
        if self._settings.without_thermal != "last_thermal" or Mode.FUSED not in self._available:
            return False
        if Mode.VISIBLE_ONLY in self._available or self._kept_ns is None:
            return False
        young = now_ns - self._kept_ns <= self._settings.last_thermal_age_s * 1e9
        # Not begun where both cameras deliver and only do not pair: that is no gap of thermal.
        lost = self._mode is Mode.LAST_THERMAL or not self.thermal.sees(now_ns)
        return young and lost and self.rgb.alive(now_ns)

    def _fresh(self, last_ns: int | None, now_ns: int) -> bool:
        return last_ns is not None and now_ns - last_ns <= self._settings.timeout_s * 1e9
