"""From a pair of camera messages to a perception: what the node runs on the vehicle and the evaluation runs on bags.

`prepare` is sequential and holds all state (gain control, sizes); `infer` is stateless and may be spread over threads.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy.typing as npt

from md_perception.inference.manifest import ThermalContract
from md_perception.inference.session import Student, StudentError
from md_perception.results import Float32Array, Frame, Mode, Perception, StageTimes, StudentOutput
from md_perception.sensing.images import ImageError, Message, stamp_ns, to_rgb
from md_perception.sensing.pairing import PairingSettings
from md_perception.sensing.registration import sampling_matrix
from md_perception.sensing.thermal import ThermalNormaliser, ThermalSettings

logger = logging.getLogger(__name__)

Sizes = tuple[tuple[int, int], tuple[int, int] | None]
"""(width, height) px of the RGB image and of the thermal image, None without one."""


class RejectedFrame(Exception):
    """One frame that could not be processed; the next may be. str() says why."""


@dataclass(frozen=True)
class PipelineSettings:
    """What the pipeline is told beside its students.

    thermal: what the camera sends; the gain control of training is taken from the student's manifest.
    homography: nine numbers, RGB pixels to thermal pixels (see sensing.registration); None: same field of view.
    score_threshold: detections below it are left out (the file itself leaves out those below its manifest's).
    """

    pairing: PairingSettings = field(default_factory=PairingSettings)
    thermal: ThermalSettings = field(default_factory=ThermalSettings)
    homography: npt.ArrayLike | None = None
    score_threshold: float = 0.3
    rgb_topic: str = "rgb/image_raw"
    thermal_topic: str = "thermal/image_raw"

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise ValueError(f"score_threshold must be within 0..1, got {self.score_threshold}")


@dataclass(frozen=True)
class Work:
    """A decoded pair, ready for `Pipeline.infer`.

    thermal, rgb_to_thermal, pair_offset_ns: None in VISIBLE_ONLY. rgb_to_thermal: float32 (3, 3).
    """

    mode: Mode
    rgb: Frame
    thermal: Frame | None
    rgb_to_thermal: Float32Array | None
    pair_offset_ns: int | None
    times: StageTimes


class Pipeline:
    """Decodes pairs and runs the student of their mode.

    settings: may be replaced between frames by others with the same `thermal` and `homography`.
    """

    def __init__(self, students: Mapping[Mode, Student], settings: PipelineSettings = PipelineSettings()) -> None:
        """students: by the mode that they serve: FUSED takes thermal, VISIBLE_ONLY does not.

        Raises ValueError where a student does not fit its mode.
        """
        for mode, student in students.items():
            if mode not in (Mode.FUSED, Mode.VISIBLE_ONLY):
                raise ValueError(f"no student can be given for {mode.name}")
            if student.uses_thermal != (mode is Mode.FUSED):
                takes = "RGB and thermal" if student.uses_thermal else "RGB alone"
                raise ValueError(f"student {student.path} takes {takes} and cannot serve {mode.name}")
        if not students:
            raise ValueError("a pipeline needs at least one student")
        self.students = dict(students)
        self.settings = settings
        fused = self.students.get(Mode.FUSED)
        contract = fused.manifest.thermal if fused else None
        self._thermal = ThermalNormaliser(
            settings.thermal if contract is None else _as_trained(settings.thermal, contract), settings.thermal_topic
        )
        self._prepared: dict[Mode, Sizes] = {}
        self._matrices: dict[Sizes, Float32Array] = {}

    def warm_up(self, rgb_size: tuple[int, int] | None = None, thermal_size: tuple[int, int] | None = None) -> float:
        """Run every student once at these sizes, (width, height) px; by default at those of its training.

        Returns the seconds it took. Raises StudentError.
        """
        total_s = 0.0
        for mode, student in self.students.items():
            contract = student.manifest.thermal
            sizes: Sizes = (
                rgb_size or student.manifest.camera_size,
                None if contract is None else thermal_size or contract.sensor_size,
            )
            total_s += self._warm_up(mode, sizes)
        return total_s

    def prepare(self, rgb: Message, thermal: Message | None = None, pair_wait_ms: float = 0.0) -> Work:
        """Decode a pair; without a thermal message, a frame for the visible-only student. Call it in frame order.

        pair_wait_ms: how long pairing took, passed on into the result.
        The first frame of another size than the students were warmed up for is announced and warms them up again.
        Raises RejectedFrame where the messages cannot be used.
        """
        start = time.perf_counter()
        mode = Mode.VISIBLE_ONLY if thermal is None else Mode.FUSED
        if mode not in self.students:
            raise RejectedFrame(f"there is no student for {mode.name}")
        try:
            rgb_frame = Frame(to_rgb(rgb, self.settings.rgb_topic), stamp_ns(rgb), rgb.header.frame_id)
            thermal_frame, matrix, offset_ns = None, None, None
            if thermal is not None:
                thermal_frame = Frame(self._thermal(thermal), stamp_ns(thermal), thermal.header.frame_id)
                matrix = self._matrix(_size(rgb_frame), _size(thermal_frame))
                offset_ns = thermal_frame.stamp_ns + self.settings.pairing.offset_ns - rgb_frame.stamp_ns
        except (ImageError, ValueError) as error:
            raise RejectedFrame(str(error)) from error
        decode_ms = 1e3 * (time.perf_counter() - start)
        self._announce_sizes(mode, (_size(rgb_frame), None if thermal_frame is None else _size(thermal_frame)))
        return Work(mode, rgb_frame, thermal_frame, matrix, offset_ns, StageTimes(decode_ms, pair_wait_ms))

    def infer(self, work: Work) -> Perception:
        """Run the student. Stateless; may be called from several threads. Raises RejectedFrame."""
        start = time.perf_counter()
        thermal = None if work.thermal is None else work.thermal.image
        try:
            output = self.students[work.mode].run(work.rgb.image, thermal, work.rgb_to_thermal)
        except StudentError as error:
            raise RejectedFrame(str(error)) from error
        if output.detections is not None:
            output = StudentOutput(output.detections.above(self.settings.score_threshold), output.segmentation)
        return Perception(
            stamp_ns=work.rgb.stamp_ns,
            frame_id=work.rgb.frame_id,
            mode=work.mode,
            size=_size(work.rgb),
            rgb=work.rgb.image,
            output=output,
            pair_offset_ns=work.pair_offset_ns,
            times=replace(work.times, inference_ms=1e3 * (time.perf_counter() - start)),
        )

    def _warm_up(self, mode: Mode, sizes: Sizes) -> float:
        seconds = self.students[mode].warm_up(*sizes)
        self._prepared[mode] = sizes
        return seconds

    def _announce_sizes(self, mode: Mode, sizes: Sizes) -> None:
        if self._prepared.get(mode) == sizes:
            return
        before = self._prepared.get(mode)
        logger.info(  # beforehand: a provider may take minutes
            "%s input is %s, %s: preparing the student for it",
            mode.name,
            _described(sizes),
            f"it was {_described(before)}" if before else "the first",
        )
        try:
            seconds = self._warm_up(mode, sizes)
        except StudentError as error:
            raise RejectedFrame(str(error)) from error
        logger.info("the student for %s is prepared after %.2f s", mode.name, seconds)

    def _matrix(self, rgb_size: tuple[int, int], thermal_size: tuple[int, int]) -> Float32Array:
        sizes = (rgb_size, thermal_size)
        if sizes not in self._matrices:
            self._matrices = {sizes: sampling_matrix(rgb_size, thermal_size, self.settings.homography)}
        return self._matrices[sizes]


def _as_trained(settings: ThermalSettings, contract: ThermalContract) -> ThermalSettings:
    """Return the settings with the gain control or the range that the student was trained on."""
    settings = replace(settings, percentiles=contract.percentiles, minimum_span_k=contract.minimum_span_k)
    if contract.range_k is None or settings.range is not None:
        return settings
    if settings.encoding in ("centikelvin", "celsius", "kelvin"):
        return replace(settings, range=contract.range_k)
    raise ValueError(
        f"the student was trained on the fixed range {contract.range_k} K, which cannot be found in a thermal image of "
        f"encoding {settings.encoding!r}: set thermal.encoding to the temperatures that the camera sends, or set "
        "thermal.range"
    )


def _size(frame: Frame) -> tuple[int, int]:
    height, width = frame.image.shape[:2]
    return width, height


def _described(sizes: Sizes) -> str:
    rgb, thermal = sizes
    return f"RGB {rgb[0]}x{rgb[1]}" + (f", thermal {thermal[0]}x{thermal[1]}" if thermal else "")
