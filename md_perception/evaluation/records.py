"""What is known of one evaluated frame: all that any score, slice, picture or comparison is computed from."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from md_perception.results import Detections, Float32Array, Int64Array, Mode

Light = Literal["day", "night"]
Reference = Literal["truth", "teacher"]


@dataclass(frozen=True)
class FrameTruth:
    """What there really is in a frame; a part that is not annotated is None.

    boxes: float32 (N, 4), xyxy px of the RGB image. labels: int64 (N,), ids of labels.DETECTION. ignored: bool (N,),
    need not be found, and detections of it are not counted. occlusion: int64 (N,), 0 none, 1 partly, 2 heavily, -1
    unknown. mask: uint8 (H, W), ids of labels.SEGMENTATION, 255 where nothing is known; only while a frame is being
    evaluated, records do not keep it.
    """

    boxes: Float32Array | None = None
    labels: Int64Array | None = None
    ignored: np.ndarray | None = None
    occlusion: Int64Array | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """What one student said of a frame.

    detections: from score 0.02 on, boxes in px of the image that the result belongs to, labels: ids of
    labels.DETECTION; None without that task. confusions: int64 (9, 9) by what the mask was compared with: rows are the
    truth's or the teacher's classes, columns the student's. rejected: "" or why there is no answer (the image could
    not be decoded, no student serves the mode).
    """

    detections: Detections | None = None
    confusions: dict[Reference, np.ndarray] = field(default_factory=dict)
    rejected: str = ""


@dataclass(frozen=True)
class FrameRecord:
    """One frame of a bag, evaluated. The order of records is that of the frames in the bag.

    bag: name of the bag. index: of the RGB image among those of the bag, from 0 (in THERMAL_ONLY of the thermal one).
    stamp_ns, frame_id: header of the image. size: its (width, height), px. mode: what the node would have run on.
    pair_offset_ns: thermal stamp minus RGB stamp. luminance: mean of the RGB image's luma, 0..255, NaN without one.
    light: `day` or `night`. unpaired: why it has no partner, "" with one.
    truth: None where nothing is annotated. answers: by the name of the student, the same names in every frame; the
    teacher's under its own name.
    """

    bag: str
    index: int
    stamp_ns: int
    frame_id: str
    size: tuple[int, int]
    mode: Mode
    pair_offset_ns: int | None
    luminance: float
    light: Light
    unpaired: str
    truth: FrameTruth | None
    answers: dict[str, Answer]

    @property
    def is_thermal(self) -> bool:
        """Whether the image is a thermal one: index, size and boxes are in its pixels then, not in those of RGB."""
        return self.mode is Mode.THERMAL_ONLY and self.unpaired == "mode"


@dataclass(frozen=True)
class ModeChange:
    """The operating mode from `log_ns` on. faults: what was wrong with the cameras then, as "camera: fault"."""

    log_ns: int
    mode: Mode
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class DriveRecord:
    """What is known of a bag as a whole, after all of it was read.

    duration_s: from the first to the last message of the cameras. damage: where reading ended early, or "".
    rgb_images, thermal_images: that were read. damaged_messages: of both, which hold no images; those of RGB have a
    record.
    frames: records of the bag. paired: RGB images with a partner. late: that came after a newer one had been decided.
    time_jumps: of the stamps, backwards. mode_s: seconds in each mode, by its name. changes: beginning with the first
    mode, as the node would have logged them.
    """

    bag: str
    duration_s: float
    damage: str
    rgb_images: int
    thermal_images: int
    damaged_messages: int
    frames: int
    paired: int
    late: int
    time_jumps: int
    mode_s: dict[str, float]
    changes: tuple[ModeChange, ...]
