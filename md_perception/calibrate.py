"""`md_calibrate`: the homography and the time offset of a camera pair, from a bag or from live topics.

Without ROS: `python -m md_perception.calibrate BAG --out calibration.yaml`. See docs/calibration.md.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import cv2
import numpy as np

from md_perception.bags.read import Bag
from md_perception.bags.thermal_options import add_thermal_options, thermal_settings
from md_perception.bags.types import COMPRESSED_IMAGE, IMAGE
from md_perception.bags.write import BagError
from md_perception.files import write_whole
from md_perception.results import Camera, UInt8Image
from md_perception.sensing.alignment import (
    Alignment,
    AlignmentSettings,
    Size,
    StampedImage,
    TooLittleEvidence,
    align,
    pairs_at,
)
from md_perception.sensing.board import BoardView, align_by_board, find_board
from md_perception.sensing.edges import (
    Float64Array,
    correlation,
    edge_field,
    grey,
    onto_thermal,
    resized_matrix,
)
from md_perception.sensing.images import ImageError, Message, stamp_ns, to_rgb
from md_perception.sensing.misalignment import MisalignmentMonitor, MisalignmentSettings
from md_perception.sensing.registration import sampling_matrix
from md_perception.sensing.thermal import (
    ThermalNormaliser,
    ThermalSettings,
    percentile_range,
    to_8bit,
)

_KEPT_WIDTH = 640
"""RGB images are kept at most so wide: thermal shows no finer edges."""

_PICTURE_ROWS = 3
_BOARD_IMAGES = 300
"""Images of each camera that are searched for the board: a search takes long."""

_LARGEST_RESIDUAL = 0.015
_LARGEST_SPREAD = 0.005
"""Shares of the thermal image's width, above which a homography is refused."""


class CalibrationError(Exception):
    """A calibration that cannot be made or written; the text says what to do."""


@dataclass
class Recording:
    """Images of both cameras, ready to be compared.

    rgb, thermal: in the order in which they came; rgb is reduced to `_KEPT_WIDTH`. views: of the board, by camera, in
    pixels of the images as they came. sizes: (width, height) px of the images as they came. rejected: by camera, how
    many could not be read; why: of the last one.
    """

    thermal_settings: ThermalSettings
    board: tuple[int, int] | None = None
    rgb: list[StampedImage] = field(default_factory=list)
    thermal: list[StampedImage] = field(default_factory=list)
    views: dict[Camera, list[BoardView]] = field(default_factory=lambda: {"rgb": [], "thermal": []})
    sizes: dict[Camera, Size] = field(default_factory=dict)
    rejected: int = 0
    why: str = ""

    def __post_init__(self) -> None:
        self._normaliser = ThermalNormaliser(self.thermal_settings)

    def add(self, camera: Camera, message: Message, topic: str) -> None:
        """Take in an image message. Raises CalibrationError where a camera changes its size."""
        try:
            image = grey(to_rgb(message, topic)) if camera == "rgb" else self._normaliser(message)
        except ImageError as error:
            self.rejected, self.why = self.rejected + 1, str(error)
            return
        size = (image.shape[1], image.shape[0])
        if self.sizes.setdefault(camera, size) != size:
            before = self.sizes[camera]
            raise CalibrationError(
                f"{topic} changes from {before[0]}x{before[1]} to {size[0]}x{size[1]} px: record with one setting"
            )
        at_ns = stamp_ns(message)
        if self.board is not None:
            corners = find_board(image, self.board)
            if corners is not None:
                self.views[camera].append(BoardView(at_ns, corners))
            self._keep_few(camera, StampedImage(at_ns, _kept(image)), corners is not None)
        else:
            # A thermal image may be a view of its message.
            kept = _kept(image) if camera == "rgb" else image.copy()
            self._images(camera).append(StampedImage(at_ns, kept))

    def _images(self, camera: Camera) -> list[StampedImage]:
        return self.rgb if camera == "rgb" else self.thermal

    def _keep_few(self, camera: Camera, image: StampedImage, seen: bool) -> None:
        """Keep images with the board in them for the check picture, every other one let go when there are many."""
        images = self._images(camera)
        if seen:
            images.append(image)
        if len(images) > 120:
            del images[::2]

    def require_both(self) -> None:
        """Raise CalibrationError where a camera gave nothing."""
        cameras: tuple[Camera, ...] = ("rgb", "thermal")
        missing = [camera for camera in cameras if camera not in self.sizes]
        if missing:
            reason = f": {self.why}" if self.why else ""
            raise CalibrationError(f"no image of {' and '.join(missing)} could be read{reason}")

    @property
    def to_kept(self) -> Float64Array:
        """From RGB pixels as they came to those of the images that are kept, float64 (3, 3)."""
        (width, height), kept = self.sizes["rgb"], self.rgb[0].size if self.rgb else self.sizes["rgb"]
        return resized_matrix(kept[0] / width, kept[1] / height)


@dataclass(frozen=True)
class Result:
    """A calibration.

    homography: float64 (3, 3), RGB pixels to thermal pixels of the images as they came. likeness: how well the edges of
    both cameras agree, -1..1, before (as if both had the same field of view) and after.
    """

    alignment: Alignment
    homography: Float64Array
    sizes: tuple[int, int, int, int]
    method: str
    likeness: tuple[float, float]
    picture: UInt8Image

    @property
    def offset_s(self) -> float | None:
        """What pairing.offset_s has to be, s; None: not known."""
        delay = self.alignment.delay
        return None if delay is None else -delay.delay_s

    def lines(self) -> list[str]:
        """Return the report."""
        fit, delay = self.alignment.fit, self.alignment.delay
        factor = self.sizes[0] / self.sizes[2]
        what = "corners" if self.method.startswith("board") else "parts of the image"
        late = f"time offset: not found, {self.alignment.reason}; pairing.offset_s is left as it is"
        if delay is not None:
            late = (
                f"time offset: thermal stamps are {abs(1e3 * delay.delay_s):.1f} ms "
                f"{'late' if delay.delay_s >= 0 else 'early'} (standard deviation {1e3 * delay.spread_s:.1f} ms)"
            )
        return [
            f"method: {self.method}; {fit.points} {what} in {fit.frames} image pairs, over {fit.coverage:.0%} of the "
            "thermal image",
            f"homography: residual of what was held out {fit.residual_px:.2f} thermal px (about "
            f"{factor * fit.residual_px:.1f} RGB px), spread {fit.spread_px:.2f} thermal px",
            late,
            f"edges of both cameras agree by {self.likeness[1]:.2f}, before {self.likeness[0]:.2f} (1: the same)",
        ]

    def yaml(self, source: str) -> str:
        """Return the parameter file for the node. source: what it was made from."""
        numbers = ", ".join(
            f"{value:.9g}" if "." in f"{value:.9g}" or "e" in f"{value:.9g}" else f"{value:.1f}"
            for value in self.homography.reshape(-1).tolist()
        )
        lines = [
            f"# Made by md_calibrate from {source}.",
            *(f"# {line}" for line in self.lines()),
            "/**:",
            "  ros__parameters:",
            "    registration:",
            '      source: "homography"',
            "      # RGB pixels to thermal pixels, in row order; sizes of the RGB and thermal images that it holds for",
            f"      homography: [{numbers}]",
            f"      sizes: [{', '.join(map(str, self.sizes))}]",
        ]
        if self.offset_s is not None:
            lines += ["    pairing:", f"      offset_s: {self.offset_s:.4f}"]
        return "\n".join(lines) + "\n"


def calibrate(recording: Recording, settings: AlignmentSettings | None = None) -> Result:
    """Estimate homography and time offset, and check them. Raises CalibrationError or TooLittleEvidence."""
    recording.require_both()
    width = recording.sizes["thermal"][0]
    for images in (recording.rgb, recording.thermal):
        images.sort(key=lambda image: image.stamp_ns)
    for seen in recording.views.values():
        seen.sort(key=lambda view: view.stamp_ns)
    if recording.board is not None:
        views = recording.views
        inner = recording.board
        alignment = align_by_board(views["rgb"], views["thermal"], inner, recording.sizes["thermal"], settings)
        homography = alignment.fit.homography
        method = f"board of {inner[0]}x{inner[1]} inner corners"
    else:
        alignment = align(recording.rgb, recording.thermal, settings)
        homography = alignment.fit.homography @ recording.to_kept
        method = "edges of the scene"
    fit = alignment.fit
    if fit.residual_px > _LARGEST_RESIDUAL * width or fit.spread_px > _LARGEST_SPREAD * width:
        raise TooLittleEvidence(
            f"the homography found is not good enough to use: residual {fit.residual_px:.1f}, spread "
            f"{fit.spread_px:.1f} thermal px, at most {_LARGEST_RESIDUAL * width:.1f} and "
            f"{_LARGEST_SPREAD * width:.1f} are allowed. Record more, with edges all over the image and nothing "
            "very near, or use a board"
        )
    delay_s = alignment.delay.delay_s if alignment.delay else 0.0
    pairs = pairs_at(recording.rgb, recording.thermal, delay_s, 20)
    if not pairs:
        raise CalibrationError("no images of the same time are left for the check picture: record again")
    kept = homography @ np.linalg.inv(recording.to_kept)
    before = sampling_matrix(pairs[0][0].size, pairs[0][1].size).astype(np.float64)
    if recording.board is None:
        _check_independently(pairs, kept)
    return Result(
        alignment,
        homography / homography[2, 2],
        (*recording.sizes["rgb"], *recording.sizes["thermal"]),
        method,
        (_likeness(pairs, before), _likeness(pairs, kept)),
        check_picture(pairs, before, kept),
    )


def _check_independently(pairs: Sequence[tuple[StampedImage, StampedImage]], matrix: Float64Array) -> None:
    """Raise TooLittleEvidence where the misalignment monitor does not confirm the matrix."""
    monitor = MisalignmentMonitor(MisalignmentSettings(memory=len(pairs), confirm=1))
    seen = None
    for rgb, thermal in pairs:
        seen = monitor.check(cv2.cvtColor(rgb.image, cv2.COLOR_GRAY2RGB), thermal.image, matrix)
    if seen is None or not seen.known or seen.drifted:
        raise TooLittleEvidence(
            "the homography found does not bring the edges of both cameras together: record an ordinary scene with "
            "people, cars and buildings all over the image, by daylight, or use a heated checkerboard (--board)"
        )


def _likeness(pairs: Sequence[tuple[StampedImage, StampedImage]], matrix: Float64Array) -> float:
    """Return how well the edges agree under a matrix, the mean over the pairs."""
    values = []
    for rgb, thermal in pairs:
        width, height = thermal.size
        surface = correlation(edge_field(*onto_thermal(rgb.image, matrix, thermal.size)), edge_field(thermal.image))
        values.append(float(surface[height // 2, width // 2]))
    return float(np.mean(values))


def check_picture(
    pairs: Sequence[tuple[StampedImage, StampedImage]], before: Float64Array, after: Float64Array
) -> UInt8Image:
    """Draw the edges of thermal, orange, on some of the RGB images: left before the calibration, right after it.

    before, after: RGB pixels of these images to thermal pixels. Returns uint8 (H, W, 3), BGR order as OpenCV writes it.
    """
    rows = []
    chosen = np.unique(np.linspace(0, len(pairs) - 1, _PICTURE_ROWS).round().astype(int))
    for rgb, thermal in (pairs[i] for i in chosen):
        halves = []
        for name, matrix in (("before", before), ("after", after)):
            height, width = rgb.image.shape
            seen = cv2.warpPerspective(
                thermal.image,
                matrix,
                (width, height),
                flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,  # the rim of the image is no edge
            )
            inside = cv2.warpPerspective(
                np.full(thermal.image.shape, 255, np.uint8),
                matrix,
                (width, height),
                flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
            )
            smooth = cv2.GaussianBlur(seen, (0, 0), 1.5)
            slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
            within = slope[inside > 0]
            strong = max(float(np.percentile(within, 90)), 20.0) if within.size else 20.0
            edges = cv2.Canny(smooth, 0.5 * strong, strong) & cv2.erode(inside, np.ones((9, 9), np.uint8))
            bright = to_8bit(rgb.image.astype(np.float32), *percentile_range(rgb.image.astype(np.float32)))
            half = cv2.cvtColor((0.6 * bright).astype(np.uint8), cv2.COLOR_GRAY2BGR)
            half[edges > 0] = (0, 160, 255)
            cv2.putText(half, name, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2, cv2.LINE_AA)
            halves.append(half)
        rows.append(np.hstack(halves))
    return np.asarray(np.vstack(rows), np.uint8)


def _kept(image: UInt8Image) -> UInt8Image:
    height, width = image.shape
    if width <= _KEPT_WIDTH:
        return image
    size = (_KEPT_WIDTH, max(1, round(height * _KEPT_WIDTH / width)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def record_bag(path: Path, recording: Recording, options: argparse.Namespace) -> None:
    """Read the images of a bag. Raises BagError or CalibrationError."""
    with Bag(path) as bag:
        topics: dict[str, Camera] = {
            _image_topic(bag, options.rgb_topic): "rgb",
            _image_topic(bag, options.thermal_topic): "thermal",
        }
        if len(topics) < 2:
            raise CalibrationError(f"both cameras are on {next(iter(topics))}: give --rgb-topic and --thermal-topic")
        start_ns = bag.start_ns + round(options.start * 1e9)
        end_ns = start_ns + round(options.seconds * 1e9)
        share = min(1.0, options.seconds / max(bag.duration_s, 1e-3))
        step = dict.fromkeys(topics, 1)
        if recording.board is not None:
            step = {topic: max(1, round(bag.topics[topic].count * share / _BOARD_IMAGES)) for topic in topics}
        seen = dict.fromkeys(topics, 0)
        for found in bag.messages(list(topics)):
            if found.log_ns > end_ns:
                break
            if found.log_ns < start_ns:
                continue
            if seen[found.topic] % step[found.topic] == 0:
                recording.add(topics[found.topic], found.message, found.topic)
            seen[found.topic] += 1
        if bag.damage:
            print(f"md_calibrate: {path} is damaged and was read as far as it goes: {bag.damage}", file=sys.stderr)


def _image_topic(bag: Bag, name: str) -> str:
    for candidate in (name, f"{name}/compressed"):
        if candidate in bag.topics and bag.topics[candidate].msgtype in (IMAGE, COMPRESSED_IMAGE):
            return candidate
    images = [topic.name for topic in bag.topics.values() if topic.msgtype in (IMAGE, COMPRESSED_IMAGE)]
    raise BagError(
        f"{bag.path} has no images on {name}; it has images on {', '.join(images) or 'no topic'}: give --rgb-topic and "
        "--thermal-topic"
    )


def write_atomically(path: Path, data: bytes, replace: bool) -> None:
    """Write a file that is there whole or not at all.

    Raises CalibrationError where something is there that may not be replaced, or path cannot be written.
    """
    check_free(path, replace)
    try:
        write_whole(path, data)
    except OSError as error:
        raise CalibrationError(f"cannot write {path}: {error.strerror or error}") from None


def check_free(path: Path, replace: bool) -> None:
    """Raise CalibrationError where something is at path that may not be replaced."""
    if path.is_dir() or (path.exists() and not replace):
        raise CalibrationError(f"{path} exists: choose another name, or allow replacing a file (--replace)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 for a refused calibration, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    picture = options.picture or options.out.with_suffix(".png")

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if picture.resolve() == options.out.resolve():
            raise CalibrationError(f"{picture} cannot be both parameter file and picture: give --picture another name")
        for path in (options.out, picture):
            check_free(path, options.replace)
        result, source = _run(options)
        encoded = cv2.imencode(".png", result.picture)[1].tobytes()
        write_atomically(picture, encoded, options.replace)
        write_atomically(options.out, result.yaml(source).encode(), options.replace)
    except (CalibrationError, TooLittleEvidence, BagError) as error:
        print(f"md_calibrate: nothing was written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("md_calibrate: interrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print("\n".join(result.lines()))
    print(f"written: {options.out}, the parameters for the node; {picture}, the check picture: look at it")
    return 0


def _run(options: argparse.Namespace) -> tuple[Result, str]:
    started = time.monotonic()
    if not (math.isfinite(options.start) and (options.seconds is None or 0 < options.seconds < math.inf)):
        raise CalibrationError(f"--start {options.start} and --seconds {options.seconds} are no times, s")
    try:
        thermal = thermal_settings(options)
        settings = AlignmentSettings(zooms=tuple(options.zoom), longest_delay_s=options.longest_offset)
    except ValueError as error:
        raise CalibrationError(str(error)) from None
    recording = Recording(thermal, options.board)
    if options.seconds is None:
        options.seconds = 12.0 if options.board is None else 60.0
    if options.bag is None:
        from md_perception.ros.calibrate import record_live  # needs a ROS graph

        record_live(recording, options.rgb_topic, options.thermal_topic, options.seconds)
        source = f"{options.rgb_topic} and {options.thermal_topic}"
    else:
        record_bag(options.bag, recording, options)
        source = str(options.bag)
    if recording.rejected:
        print(f"md_calibrate: {recording.rejected} images could not be read: {recording.why}", file=sys.stderr)
    result = calibrate(recording, settings)
    print(f"{source}: calibrated in {time.monotonic() - started:.1f} s")
    return result, source


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="md_calibrate", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("bag", type=Path, nargs="?", help="rosbag2; not given: live topics (needs ROS)")
    parser.add_argument("--out", type=Path, required=True, metavar="YAML", help="parameter file for the node")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="check picture; not given: beside the YAML")
    parser.add_argument("--replace", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--board",
        type=_board,
        metavar="CxR",
        help="inner corners of a checkerboard, such as 8x6; not given: scene edges",
    )
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="of the bag, left out at its beginning")
    parser.add_argument("--seconds", type=float, metavar="S", help="to look at; not given: 12, with a board 60")
    parser.add_argument("--longest-offset", type=float, default=0.5, metavar="S", help="largest time offset looked for")
    parser.add_argument(
        "--zoom",
        type=float,
        nargs=2,
        default=list(AlignmentSettings.zooms),
        metavar="Z",
        help="least and largest size of things in thermal against RGB, both images scaled to one width (scene edges)",
    )
    parser.add_argument("--rgb-topic", default="/rgb/image_raw")
    parser.add_argument("--thermal-topic", default="/thermal/image_raw")
    add_thermal_options(parser)
    return parser


def _board(text: str) -> tuple[int, int]:
    columns, cross, rows = text.lower().partition("x")
    if not (cross and columns.isdigit() and rows.isdigit() and min(int(columns), int(rows)) >= 3):
        raise argparse.ArgumentTypeError(f"{text!r} is not a board: give inner corners, at least 3x3, such as 8x6")
    return int(columns), int(rows)


if __name__ == "__main__":
    sys.exit(main())
