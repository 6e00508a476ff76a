"""From a pair of camera messages to a perception: what the node runs on the vehicle and the evaluation runs on bags.

`prepare` is sequential and holds all state (gain control, sizes); `infer` is stateless and may be spread over threads.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from md_perception.inference.manifest import ThermalContract
from md_perception.inference.session import Sizes, Student, StudentError
from md_perception.results import Camera, Float32Array, Frame, Mode, Perception, Size, StageTimes, StudentOutput
from md_perception.sensing.health import Content, content_of
from md_perception.sensing.images import ImageError, Message, stamp_ns, to_rgb
from md_perception.sensing.pairing import PairingSettings
from md_perception.sensing.registration import Registration, RegistrationError, RegistrationSettings
from md_perception.sensing.thermal import TEMPERATURES, ThermalNormaliser, ThermalSettings

logger = logging.getLogger(__name__)

ANNOUNCEMENT_PERIOD_S = 5.0
"""Changes of the image sizes are told at most so often."""

PREPARED_SIZES = 4
"""So many sizes of images, those seen last, need no new warm-up when they come back."""

_CAMERAS_OF: dict[Mode, tuple[bool, bool]] = {
    Mode.FUSED: (True, True),
    Mode.VISIBLE_ONLY: (True, False),
    Mode.THERMAL_ONLY: (False, True),
}
"""Whether the student of a mode takes RGB, and thermal. LAST_THERMAL has the student of FUSED."""


class RejectedFrame(Exception):
    """One frame that could not be processed; the next may be. str() says why."""


class NotReady(RejectedFrame):
    """A frame that the node has no registration for: one that came before its camera_info, or of another size than was
    calibrated. Not the node is at fault, however many there are in a row, and it goes on when the cameras are right.
    """


@dataclass(frozen=True)
class PipelineSettings:
    """What the pipeline is told beside its students.

    thermal: what the camera sends; the gain control of training is taken from the student's manifest.
    score_threshold: detections below it are left out (the file itself leaves out those below its manifest's).
    """

    pairing: PairingSettings = field(default_factory=PairingSettings)
    thermal: ThermalSettings = field(default_factory=ThermalSettings)
    registration: RegistrationSettings = field(default_factory=RegistrationSettings)
    score_threshold: float = 0.3
    rgb_topic: str = "rgb/image_raw"
    thermal_topic: str = "thermal/image_raw"

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise ValueError(f"score_threshold must be within 0..1, got {self.score_threshold}")


@dataclass(frozen=True)
class Work:
    """A decoded pair, ready for `Pipeline.infer`.

    rgb: None in THERMAL_ONLY. thermal: None in VISIBLE_ONLY. rgb_to_thermal: float32 (3, 3); it and pair_offset_ns are
    None in both.
    """

    mode: Mode
    rgb: Frame | None
    thermal: Frame | None
    rgb_to_thermal: Float32Array | None
    pair_offset_ns: int | None
    times: StageTimes

    @property
    def subject(self) -> Frame:
        """The image that the result belongs to."""
        frame = self.thermal if self.rgb is None else self.rgb
        assert frame is not None
        return frame


@dataclass
class _KnownSizes:
    """The image sizes of one mode.

    now: of the last frame. prepared: those that the student is warmed up for, the last ones, in the order of their use.
    told_s: when the last change was told, on a steady clock. untold: changes since then.
    """

    now: Sizes | None = None
    prepared: OrderedDict[Sizes, None] = field(default_factory=OrderedDict)
    told_s: float = -math.inf
    untold: int = 0


class Pipeline:
    """Decodes pairs and runs the student of their mode.

    settings: may be replaced between frames by others with the same `thermal` and `registration`.
    """

    def __init__(self, students: Mapping[Mode, Student], settings: PipelineSettings = PipelineSettings()) -> None:
        """students: by the mode that they serve: FUSED takes both cameras, the two others one.

        Raises ValueError where a student does not fit its mode.
        """
        for mode, student in students.items():
            if mode not in _CAMERAS_OF:
                raise ValueError(f"no student can be given for {mode.name}")
            if mode is not mode_of(student):
                takes = {Mode.FUSED: "RGB and thermal", Mode.VISIBLE_ONLY: "RGB alone"}.get(
                    mode_of(student), "thermal alone"
                )
                raise ValueError(f"student {student.path} takes {takes} and cannot serve {mode.name}")
        if not students:
            raise ValueError("a pipeline needs at least one student")
        self.students = dict(students)
        self.settings = settings
        # One for each student: they may have been trained on different gain controls.
        self._thermal = {
            mode: ThermalNormaliser(_as_trained(settings.thermal, student.manifest.thermal), settings.thermal_topic)
            for mode, student in self.students.items()
            if student.manifest.thermal is not None
        }
        self._known = {mode: _KnownSizes() for mode in self.students}
        self.registration = Registration(settings.registration)
        """Thread-safe; where it needs CameraInfo messages, they are noted there."""
        self.latest_pair: Work | None = None
        """The newest pair of one time, for who looks on."""

    def warm_up(self, rgb_size: Size | None = None, thermal_size: Size | None = None) -> float:
        """Run every student once at these sizes, (width, height) px; by default at those of its training.

        Returns the seconds it took. Raises StudentError.
        """
        total_s = 0.0
        for mode, student in self.students.items():
            rgb, thermal = student.sizes
            sizes: Sizes = rgb and (rgb_size or rgb), thermal and (thermal_size or thermal)
            total_s += self._warm_up(mode, sizes)
        return total_s

    def student_of(self, mode: Mode) -> Student:
        """Return the student that serves a mode. Raises KeyError where there is none."""
        return self.students[served_as(mode)]

    def look(self, message: Message, camera: Camera) -> Content:
        """Look at a picture for the health of its camera.

        A thermal image that is not what the camera is said to send (another unit, pseudo-colour) is as good as none:
        the student for RGB alone takes over, if there is one. Stateless.
        """
        try:
            content = content_of(message, camera)
            # Black and white are no unit: they have a fault of their own.
            if camera == "thermal" and not (content.dark or content.saturated):
                for normaliser in self._thermal.values():
                    normaliser.check(message)
        except ImageError as error:
            return Content.broken(str(error))
        return content

    def prepare(
        self,
        rgb: Message | None,
        thermal: Message | None = None,
        pair_wait_ms: float = 0.0,
        mode: Mode | None = None,
    ) -> Work:
        """Decode a pair, or one image for the student of that camera alone. Call it in frame order.

        pair_wait_ms: how long pairing took, passed on into the result. mode: None: the one of the cameras that are
        given; LAST_THERMAL has to be said.
        The first frame of a size that the students were not warmed up for warms them up again; other sizes are
        announced, those that keep changing once in ANNOUNCEMENT_PERIOD_S.
        Raises RejectedFrame where the messages cannot be used.
        """
        start = time.perf_counter()
        mode = mode or _mode_of_cameras(rgb is not None, thermal is not None)
        if served_as(mode) not in self.students:
            raise RejectedFrame(f"there is no student for {mode.name}")
        rgb_frame = thermal_frame = matrix = offset_ns = None
        try:
            if rgb is not None:
                rgb_frame = Frame(to_rgb(rgb, self.settings.rgb_topic), stamp_ns(rgb), rgb.header.frame_id)
            if thermal is not None:
                image = self._thermal[served_as(mode)](thermal)
                thermal_frame = Frame(image, stamp_ns(thermal), thermal.header.frame_id)
            if rgb_frame is not None and thermal_frame is not None:
                matrix = self.registration.matrix(_size(rgb_frame), _size(thermal_frame))
                offset_ns = thermal_frame.stamp_ns + self.settings.pairing.offset_ns - rgb_frame.stamp_ns
        except RegistrationError as error:
            raise NotReady(str(error)) from error
        except (ImageError, ValueError) as error:
            raise RejectedFrame(str(error)) from error
        decode_ms = 1e3 * (time.perf_counter() - start)
        self._meet_sizes(
            served_as(mode),
            (
                None if rgb_frame is None else _size(rgb_frame),
                None if thermal_frame is None else _size(thermal_frame),
            ),
        )
        work = Work(mode, rgb_frame, thermal_frame, matrix, offset_ns, StageTimes(decode_ms, pair_wait_ms))
        if mode is Mode.FUSED:
            self.latest_pair = work
        return work

    def infer(self, work: Work) -> Perception:
        """Run the student. Stateless; may be called from several threads. Raises RejectedFrame."""
        start = time.perf_counter()
        rgb, thermal = (None if frame is None else frame.image for frame in (work.rgb, work.thermal))
        try:
            output = self.student_of(work.mode).run(rgb, thermal, work.rgb_to_thermal)
        except StudentError as error:
            raise RejectedFrame(str(error)) from error
        if output.detections is not None:
            output = StudentOutput(output.detections.above(self.settings.score_threshold), output.segmentation)
        subject = work.subject
        return Perception(
            stamp_ns=subject.stamp_ns,
            frame_id=subject.frame_id,
            mode=work.mode,
            size=_size(subject),
            rgb=np.asarray(cv2.cvtColor(subject.image, cv2.COLOR_GRAY2RGB), np.uint8) if rgb is None else rgb,
            output=output,
            pair_offset_ns=work.pair_offset_ns,
            times=replace(work.times, inference_ms=1e3 * (time.perf_counter() - start)),
        )

    def _warm_up(self, mode: Mode, sizes: Sizes) -> float:
        seconds = self.students[mode].warm_up(*sizes)
        known = self._known[mode]
        known.now = sizes
        known.prepared[sizes] = None
        if len(known.prepared) > PREPARED_SIZES:
            known.prepared.popitem(last=False)
        return seconds

    def _meet_sizes(self, mode: Mode, sizes: Sizes) -> None:
        """Prepare the student for images of sizes that it does not know, and tell of a change."""
        known = self._known[mode]
        if known.now == sizes:
            return
        new = sizes not in known.prepared
        told = self._announce_sizes(mode, sizes, new)  # beforehand: a provider may take minutes
        known.now = sizes
        if not new:
            known.prepared.move_to_end(sizes)
            return
        try:
            seconds = self._warm_up(mode, sizes)
        except StudentError as error:
            raise RejectedFrame(str(error)) from error
        if told:
            logger.info("the student for %s is prepared after %.2f s", mode.name, seconds)

    def _announce_sizes(self, mode: Mode, sizes: Sizes, new: bool) -> bool:
        """Return whether a change of sizes was told; those that follow it closely are counted."""
        known, now_s = self._known[mode], time.monotonic()
        if known.now is not None:
            if now_s - known.told_s < ANNOUNCEMENT_PERIOD_S:
                known.untold += 1
                return False
            known.told_s = now_s
        logger.info(
            "%s input is %s, %s%s%s",
            mode.name,
            _described(sizes),
            f"it was {_described(known.now)}" if known.now else "the first",
            f", after {known.untold} more changes" if known.untold else "",
            ": preparing the student for it" if new else "",
        )
        known.untold = 0
        return True


def mode_of(student: Student) -> Mode:
    """Return the mode that a student serves, by the cameras that it takes."""
    return _mode_of_cameras(student.uses_rgb, student.uses_thermal)


def _mode_of_cameras(rgb: bool, thermal: bool) -> Mode:
    return next(mode for mode, cameras in _CAMERAS_OF.items() if cameras == (rgb, thermal))


def served_as(mode: Mode) -> Mode:
    """Return the mode whose student serves this one."""
    return Mode.FUSED if mode is Mode.LAST_THERMAL else mode


def _as_trained(settings: ThermalSettings, contract: ThermalContract) -> ThermalSettings:
    """Return the settings with the gain control or the range that the student was trained on."""
    settings = replace(settings, percentiles=contract.percentiles, minimum_span_k=contract.minimum_span_k)
    if contract.range_k is None or settings.range is not None:
        return settings
    if settings.encoding in TEMPERATURES:
        return replace(settings, range=contract.range_k)
    raise ValueError(
        f"the student was trained on the fixed range {contract.range_k} K, which cannot be found in a thermal image of "
        f"encoding {settings.encoding!r}: set thermal.encoding to the temperatures that the camera sends, or set "
        "thermal.range"
    )


def _size(frame: Frame) -> Size:
    height, width = frame.image.shape[:2]
    return width, height


def _described(sizes: Sizes) -> str:
    names = zip(("RGB", "thermal"), sizes, strict=True)
    return ", ".join(f"{name} {size[0]}x{size[1]}" for name, size in names if size is not None)
