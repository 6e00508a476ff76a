"""Making a bag of an RGB and a thermal camera from pictures on disk or from the scene world."""

import heapq
import itertools
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from rosbags.typesys.store import Typestore

from md_perception.bags.read import Bag
from md_perception.bags.sources import Picture, PictureSource, at_rate, to_centikelvin, to_grey8
from md_perception.bags.types import CAMERA_INFO, IMAGE, make_header
from md_perception.bags.write import BagError, BagWriter, Storage
from md_perception.sensing.images import image_fields
from md_perception.sensing.thermal import resize_to_sensor

DEFAULT_START_NS = 1_700_000_000_000_000_000
"""Stamp of a bag's beginning unless one is given: fixed, so that the same command makes the same bag."""


@dataclass(frozen=True)
class CameraOptions:
    """One camera of a bag.

    topic: of its images, absolute; camera_info goes beside it. encoding: rgb8 or bgr8; mono8 or mono16.
    rate_hz: images a second; None: that of the pictures (scenes: 30).
    jitter_s: standard deviation of the capture times about their ticks, cut at 0.45 periods.
    """

    topic: str
    frame_id: str
    encoding: Literal["rgb8", "bgr8", "mono8", "mono16"]
    rate_hz: float | None = None
    jitter_s: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(/[A-Za-z_]\w*)+", self.topic):
            raise BagError(f"{self.topic!r} is not an absolute topic name such as /rgb/image_raw")
        if self.rate_hz is not None and not 0 < self.rate_hz < 10_000:
            raise BagError(f"{self.topic}: a rate of {self.rate_hz} Hz is not possible")
        if self.jitter_s < 0:
            raise BagError(f"{self.topic}: a jitter of {self.jitter_s} s is not possible")

    @property
    def info_topic(self) -> str:
        """Topic of its sensor_msgs/CameraInfo."""
        return f"{self.topic.rpartition('/')[0]}/camera_info"


RGB_CAMERA = CameraOptions("/rgb/image_raw", "rgb_camera", "rgb8")
THERMAL_CAMERA = CameraOptions("/thermal/image_raw", "thermal_camera", "mono8")


@dataclass(frozen=True)
class BagOptions:
    """What the bag is like, whatever its pictures.

    thermal_size: (width, height) px of the thermal sensor; None: that of the pictures (scenes: a quarter of RGB's).
    resampling: how a smaller sensor is simulated, see sensing.thermal.resize_to_sensor.
    range_k: temperatures that the darkest and brightest grey value of 8-bit pictures stand for in mono16.
    offset_s: error of the thermal camera's clock, added to its stamps; the pictures stay simultaneous.
    hfov_deg: horizontal field of view for CameraInfo; None: uncalibrated (K of zeros). Scenes know theirs.
    source_rate_hz: how fast the pictures were taken; None: a video's own rate, 30 for folders.
    max_frames: RGB images at most. seed: of jitter and scenes. start_ns: stamp of the beginning.
    """

    rgb: CameraOptions = RGB_CAMERA
    thermal: CameraOptions = THERMAL_CAMERA
    thermal_size: tuple[int, int] | None = None
    resampling: Literal["area", "bilinear"] = "area"
    range_k: tuple[float, float] = (280.0, 320.0)
    offset_s: float = 0.0
    hfov_deg: float | None = None
    source_rate_hz: float | None = None
    max_frames: int | None = None
    seed: int = 0
    start_ns: int = DEFAULT_START_NS
    storage: Storage = "mcap"
    replace: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.rgb.topic == self.thermal.topic or self.rgb.info_topic == self.thermal.info_topic:
            raise BagError(f"both cameras would publish under {self.rgb.topic}: give them folders of their own")
        if self.rgb.encoding not in ("rgb8", "bgr8") or self.thermal.encoding not in ("mono8", "mono16"):
            raise BagError(
                f"encodings {self.rgb.encoding} and {self.thermal.encoding}: RGB is rgb8 or bgr8, thermal mono8 or "
                "mono16"
            )
        if self.thermal_size is not None and min(self.thermal_size) < 1:
            raise BagError(f"a thermal sensor of {self.thermal_size} px is not possible")
        if self.range_k[0] >= self.range_k[1]:
            raise BagError(f"the thermal range {self.range_k} K must rise")
        if self.hfov_deg is not None and not 0 < self.hfov_deg < 180:
            raise BagError(f"a field of view of {self.hfov_deg} degrees is not possible")
        if self.max_frames is not None and self.max_frames < 1:
            raise BagError("max_frames must be at least 1")
        if self.start_ns < 0:
            raise BagError("the start stamp must not be negative")


@dataclass(frozen=True)
class BagSummary:
    """What was written: messages by topic, seconds of the bag's time, size on disk."""

    path: Path
    counts: dict[str, int]
    duration_s: float
    size_bytes: int


@dataclass(frozen=True)
class TimedMessage:
    """A message of BagWriter.store on its way into a bag. log_ns: when it is received."""

    log_ns: int
    topic: str
    message: Any


def make_from_pictures(visible: Path, thermal: Path | None, out: Path, options: BagOptions | None = None) -> BagSummary:
    """Write a bag from a video or a folder of images for each camera; thermal may be left out.

    The pictures of both are taken to be simultaneous from the first on; the longer one is cut. Pictures are read one at
    a time. Raises BagError for damaged or unsuitable input, and then leaves nothing behind.
    """
    options = options or BagOptions()
    sources = [PictureSource.open(path, options.source_rate_hz) for path in (visible, thermal) if path is not None]
    if len({len(source.files) for source in sources if source.files}) > 1:
        counts = " and ".join(f"{len(source.files)} images in {source.path}" for source in sources)
        raise BagError(f"{counts}: the folders must hold pairs, in the same order")
    rgb_hz = options.rgb.rate_hz or sources[0].rate_hz
    lengths = [source.count / source.rate_hz for source in sources if source.count]
    if options.max_frames is not None:
        lengths.append(options.max_frames / rgb_hz)
    length_s = min(lengths, default=math.inf)

    with BagWriter(out, options.storage, options.replace) as writer:
        streams = [_rgb_stream(writer.store, sources[0], options, rgb_hz, length_s)]
        declare_camera(writer, options.rgb)
        if len(sources) > 1:
            declare_camera(writer, options.thermal)
            streams.append(_thermal_stream(writer.store, sources[1], options, length_s))
        total = math.ceil(length_s * rgb_hz - 1e-6) if math.isfinite(length_s) else None
        write_all(writer, heapq.merge(*streams, key=lambda timed: timed.log_ns), options, total)
    return summary_of(writer)


def write_all(writer: BagWriter, messages: Iterator[TimedMessage], options: BagOptions, total: int | None) -> None:
    """Write messages in the order given, with a line of progress that counts RGB images (of `total`, if known)."""
    with Progress(f"bag {writer.path}", total, options.progress) as progress:
        for timed in messages:
            writer.write(timed.topic, timed.log_ns, timed.message)
            if timed.topic == options.rgb.topic:
                progress.advance()


def declare_camera(writer: BagWriter, camera: CameraOptions) -> None:
    """Declare the topics of a camera."""
    writer.add_topic(camera.topic, IMAGE)
    writer.add_topic(camera.info_topic, CAMERA_INFO)


def summary_of(writer: BagWriter) -> BagSummary:
    """Return what a finished writer has left on disk, read back from there."""
    with Bag(writer.path) as bag:
        counts = {topic: summary.count for topic, summary in bag.topics.items()}
        size = sum(file.stat().st_size for file in writer.path.iterdir())
        return BagSummary(writer.path, counts, bag.duration_s, size)


def _rgb_stream(
    store: Typestore, source: PictureSource, options: BagOptions, rate_hz: float, length_s: float
) -> Iterator[TimedMessage]:
    pictures = at_rate(source.pictures(colour=True), source.rate_hz, rate_hz)
    times = capture_times(options.start_ns, rate_hz, options.rgb.jitter_s, options.seed, length_s)
    for log_ns, picture in zip(times, pictures, strict=False):
        if options.rgb.encoding == "bgr8":
            picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        yield from camera_messages(store, options.rgb, log_ns, log_ns, picture, options.hfov_deg)


def _thermal_stream(
    store: Typestore, source: PictureSource, options: BagOptions, length_s: float
) -> Iterator[TimedMessage]:
    rate_hz = options.thermal.rate_hz or source.rate_hz
    pictures = at_rate(source.pictures(colour=False), source.rate_hz, rate_hz)
    times = capture_times(options.start_ns, rate_hz, options.thermal.jitter_s, options.seed + 1, length_s)
    offset_ns = round(options.offset_s * 1e9)
    for log_ns, picture in zip(times, pictures, strict=False):
        picture = _sensor_picture(picture, options, str(source.path))
        yield from camera_messages(store, options.thermal, log_ns, log_ns + offset_ns, picture, options.hfov_deg)


def _sensor_picture(picture: Picture, options: BagOptions, source: str) -> Picture:
    """Return the thermal picture as the sensor of the options would send it."""
    radiometric = options.thermal.encoding == "mono16"
    picture = to_centikelvin(picture, options.range_k) if radiometric else to_grey8(picture, source)
    size = options.thermal_size
    if size is None or size == (picture.shape[1], picture.shape[0]):
        return picture
    if size[0] > picture.shape[1] or size[1] > picture.shape[0]:
        raise BagError(
            f"{source} has thermal pictures of {picture.shape[1]}x{picture.shape[0]} px: a sensor of "
            f"{size[0]}x{size[1]} would have to invent detail; choose a smaller --thermal-size"
        )
    resized = resize_to_sensor(picture.astype(np.float32), size, options.resampling)
    return np.rint(resized).astype(picture.dtype)


def capture_times(start_ns: int, rate_hz: float, jitter_s: float, seed: int, length_s: float) -> Iterator[int]:
    """Yield the times at which a camera takes its pictures, nanoseconds, rising, for `length_s` seconds.

    jitter_s: standard deviation about the ticks, cut at 0.45 periods so that the order stays.
    """
    jitter = np.random.default_rng(seed)
    for tick in itertools.count():
        if tick / rate_hz >= length_s - 1e-6:
            return
        shift_s = float(np.clip(jitter.normal(0.0, jitter_s), -0.45 / rate_hz, 0.45 / rate_hz)) if jitter_s else 0.0
        yield max(0, start_ns + round((tick / rate_hz + shift_s) * 1e9))


def camera_messages(
    store: Typestore,
    camera: CameraOptions,
    log_ns: int,
    stamp_ns: int,
    picture: Picture,
    hfov_deg: float | None = None,
    k: npt.NDArray[np.float64] | None = None,
) -> Iterator[TimedMessage]:
    """Yield CameraInfo and Image of one picture, in this order, with the same header.

    picture: in the layout of camera.encoding. k: float64 (3, 3) intrinsics; without them they follow from hfov_deg,
    and are zeros (uncalibrated, as sensor_msgs/CameraInfo defines it) without that.
    """
    header = make_header(store, stamp_ns, camera.frame_id)
    height, width = picture.shape[:2]
    if k is None and hfov_deg is not None:
        k = intrinsics(width, height, hfov_deg)
    yield TimedMessage(log_ns, camera.info_topic, _camera_info(store, header, width, height, k))
    image = store.types[IMAGE](header=header, **image_fields(picture, camera.encoding))
    yield TimedMessage(log_ns, camera.topic, image)


def intrinsics(width: int, height: int, hfov_deg: float) -> npt.NDArray[np.float64]:
    """Return float64 (3, 3): K of a pinhole camera with square pixels, centred, pixel centres at integers."""
    focal_px = 0.5 * width / math.tan(math.radians(hfov_deg) / 2)
    return np.array([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]])


def _camera_info(store: Typestore, header: Any, width: int, height: int, k: npt.NDArray[np.float64] | None) -> Any:
    calibrated = k is not None
    k = np.zeros((3, 3)) if k is None else np.asarray(k, np.float64)
    roi = store.types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return store.types[CAMERA_INFO](
        header=header,
        height=height,
        width=width,
        distortion_model="plumb_bob" if calibrated else "",
        d=np.zeros(5 if calibrated else 0),
        k=k.reshape(-1),
        r=(np.eye(3) if calibrated else np.zeros((3, 3))).reshape(-1),
        p=np.hstack([k, np.zeros((3, 1))]).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


class Progress:
    """A line on stderr that says how far a job is, and how long it will take: rewritten on a terminal, every ten
    seconds in a log.

    done: of the total, before this job began.
    """

    def __init__(self, title: str, total: int | None, shown: bool = True, done: int = 0) -> None:
        self._title, self._total, self._shown = title, total, shown
        self._terminal = sys.stderr.isatty()
        self._count = self._done = done
        self._started = self._told = time.monotonic()

    def advance(self) -> None:
        """Count one more."""
        self._count += 1
        if time.monotonic() - self._told >= (0.2 if self._terminal else 10.0):
            self._tell("\r" if self._terminal else "\n")

    def _tell(self, end: str) -> None:
        self._told = time.monotonic()
        if self._shown:
            of = f" of {self._total}" if self._total else ""
            passed_s = self._told - self._started
            line = f"{self._title}: {self._count}{of} frames, {passed_s:.1f} s"
            if self._count > self._done and passed_s > 0:
                rate = (self._count - self._done) / passed_s
                line += f", {rate:.1f} frames/s"
                if self._total and self._total > self._count:
                    line += f", {(self._total - self._count) / rate:.0f} s left"
            sys.stderr.write(f"{line:<79}{end}")
            sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell("\n")
