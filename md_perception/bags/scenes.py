"""Making a bag from the scene world, with its truth on topics beside the cameras."""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from md_perception.bags.make import (
    BagOptions,
    BagSummary,
    TimedMessage,
    camera_messages,
    capture_times,
    declare_camera,
    summary_of,
    write_all,
)
from md_perception.bags.results import TRUTH_DETECTIONS, TRUTH_LABELS, TRUTH_MASK
from md_perception.bags.sources import Picture, kelvin_to_centikelvin
from md_perception.bags.types import DETECTIONS, IMAGE, LABEL_INFO, TopicQos
from md_perception.bags.write import BagError, BagWriter
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs.messages import MessageBuilder
from md_perception.results import Detections, Float32Array, Mode, Perception, Segmentation, StudentOutput
from md_perception.scenes import RgbView, Scene, SceneSettings, TimeOfDay, render_rgb, render_thermal, sample_scene
from md_perception.sensing.thermal import percentile_range, resize_to_sensor, to_8bit

RATE_HZ = 30.0
"""Images a second of both cameras unless the options say otherwise."""

LEAST_VISIBLE = 0.02
"""Objects of which less can be seen are no objects of the image."""


@dataclass(frozen=True)
class StreetOptions:
    """What the scene world shows.

    frames: RGB images. street_frames: RGB images before the scene is cut to another street (other light, weather,
    actors); None: one street all along. size: (width, height) px of the RGB camera. time_of_day: None: by the seed.
    """

    frames: int = 300
    street_frames: int | None = None
    size: tuple[int, int] = (640, 512)
    time_of_day: TimeOfDay | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.street_frames is not None and self.street_frames < 1):
            raise BagError("a bag of the scene world needs at least one frame, and each street too")
        if min(self.size) < 64:
            raise BagError(f"an image of {self.size[0]}x{self.size[1]} px is too small for a street: at least 64x64")


def make_from_scenes(out: Path, options: BagOptions | None = None, streets: StreetOptions | None = None) -> BagSummary:
    """Write a bag of a moving camera pair in the scene world; the same options give the same bag.

    Beside the cameras, with the header of each RGB image: /truth/detections (vision_msgs/Detection2DArray; the score of
    an object is the share of it that is visible), /truth/mask (mono8), and once, latched, /truth/label_info.
    The thermal sensor is a quarter of the RGB camera in each direction unless the options say otherwise; mono8 is its
    automatic gain control, mono16 the temperature in centikelvin.
    """
    options, streets = options or BagOptions(), streets or StreetOptions()
    rgb_hz = options.rgb.rate_hz or RATE_HZ
    frames = min(streets.frames, options.max_frames or streets.frames)
    length_s = frames / rgb_hz
    street_s = (streets.street_frames or frames) / rgb_hz
    with BagWriter(out, options.storage, options.replace) as writer:
        declare_camera(writer, options.rgb)
        declare_camera(writer, options.thermal)
        writer.add_topic(TRUTH_DETECTIONS, DETECTIONS)
        writer.add_topic(TRUTH_MASK, IMAGE)
        writer.add_topic(TRUTH_LABELS, LABEL_INFO, TopicQos.LATCHED)
        build = MessageBuilder(writer.store.types.__getitem__)
        labels = build.label_info(SEGMENTATION.classes, 0.0, options.start_ns, options.rgb.frame_id)
        messages = itertools.chain(
            [TimedMessage(options.start_ns, TRUTH_LABELS, labels)],
            heapq.merge(
                _rgb_stream(writer, build, options, streets, rgb_hz, length_s, street_s),
                _thermal_stream(writer, options, streets, length_s, street_s),
                key=lambda timed: timed.log_ns,
            ),
        )
        write_all(writer, messages, options, frames)
    return summary_of(writer)


class _Streets:
    """The street at each time of the bag; the last one is kept."""

    def __init__(self, options: BagOptions, streets: StreetOptions, street_s: float) -> None:
        self._settings = SceneSettings(size=streets.size, time_of_day=streets.time_of_day)
        self._seed = options.seed
        self._start_ns = options.start_ns
        self._street_s = street_s
        self._number = -1
        self._scene: Scene | None = None

    def at(self, log_ns: int) -> tuple[Scene, float]:
        """Return the street at a time of the bag and how long it has been there, s."""
        time_s = max(0.0, (log_ns - self._start_ns) * 1e-9)
        number = int(time_s / self._street_s + 1e-6)
        if self._scene is None or number != self._number:
            self._number = number
            # The first street is that of the seed; the seeds of the others are far from those that users count through.
            self._scene = sample_scene(self._seed + 100_003 * number, self._settings, further_blocks=1)
        return self._scene, time_s - number * self._street_s


def _rgb_stream(
    writer: BagWriter,
    build: MessageBuilder,
    options: BagOptions,
    streets: StreetOptions,
    rate_hz: float,
    length_s: float,
    street_s: float,
) -> Iterator[TimedMessage]:
    world = _Streets(options, streets, street_s)
    for log_ns in capture_times(options.start_ns, rate_hz, options.rgb.jitter_s, options.seed, length_s):
        view = render_rgb(*world.at(log_ns))
        truth = _truth(view, log_ns, options.rgb.frame_id)
        # Before the image, so that who reads the bag along has the truth when the image comes.
        yield TimedMessage(log_ns, TRUTH_DETECTIONS, build.detections(truth, DETECTION.classes))
        yield TimedMessage(log_ns, TRUTH_MASK, build.mask(truth))
        picture: Picture = view.image
        if options.rgb.encoding == "bgr8":
            picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        yield from camera_messages(writer.store, options.rgb, log_ns, log_ns, picture, k=view.camera.matrix)


def _thermal_stream(
    writer: BagWriter, options: BagOptions, streets: StreetOptions, length_s: float, street_s: float
) -> Iterator[TimedMessage]:
    rate_hz = options.thermal.rate_hz or RATE_HZ
    size = options.thermal_size or (streets.size[0] // 4, streets.size[1] // 4)
    if size[0] > streets.size[0] or size[1] > streets.size[1]:
        raise BagError(f"a thermal sensor of {size[0]}x{size[1]} px is larger than the scene world's: --thermal-size")
    offset_ns = round(options.offset_s * 1e9)
    world = _Streets(options, streets, street_s)
    for log_ns in capture_times(options.start_ns, rate_hz, options.thermal.jitter_s, options.seed + 1, length_s):
        view = render_thermal(*world.at(log_ns))
        kelvin: Float32Array = resize_to_sensor(view.kelvin, size, options.resampling)
        if options.thermal.encoding == "mono16":
            picture: Picture = kelvin_to_centikelvin(kelvin)
        else:
            picture = to_8bit(kelvin, *percentile_range(kelvin))
        k = view.camera.resized(size).matrix
        yield from camera_messages(writer.store, options.thermal, log_ns, log_ns + offset_ns, picture, k=k)


def _truth(view: RgbView, stamp_ns: int, frame_id: str) -> Perception:
    """Return what a perfect student would say of an image; scores are the visible shares."""
    objects = view.objects
    seen = objects.visible_fraction >= LEAST_VISIBLE
    height, width = view.mask.shape
    found = Detections(objects.boxes[seen], objects.visible_fraction[seen], objects.labels[seen])
    output = StudentOutput(found, Segmentation(view.mask, np.full_like(view.mask, 255)))
    return Perception(stamp_ns, frame_id, Mode.FUSED, (width, height), view.image, output)
