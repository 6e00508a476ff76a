"""The frozen types that travel between the rooms of the house: frames in, perceptions out.

Conventions, everywhere in the package:
- stamps are integer nanoseconds of the message header, as received; nobody restamps.
- boxes are xyxy in pixels of the RGB image that came in, 0-based, right and bottom exclusive
  (pixel column i covers [i, i + 1)).
- a size is (width, height) in pixels; an array's shape is (height, width[, channels]).
- homographies map pixel centres at integer coordinates (OpenCV's convention).
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

UInt8Image = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Camera = Literal["rgb", "thermal"]

Size = tuple[int, int]
"""(width, height), px."""


class Mode(IntEnum):
    """What the node is running on. The values are those of the constants in PerceptionStatus.msg."""

    STALE = 0
    """No usable input: nothing is published but status."""
    FUSED = 1
    """RGB and thermal, through the fused student."""
    VISIBLE_ONLY = 2
    """RGB alone, through a visible-only student."""
    THERMAL_ONLY = 3
    """Thermal alone, through a thermal-only student."""
    LAST_THERMAL = 4
    """RGB and the last good thermal image, older than any partner may be, through the fused student."""


@dataclass(frozen=True)
class Frame:
    """One decoded camera image.

    image: RGB camera: uint8 (H, W, 3), RGB order. Thermal camera: uint8 (h, w), warm is bright, the 8-bit image
        of training (sensing.thermal makes it), at the sensor's own resolution.
    stamp_ns: header stamp. frame_id: header frame id. Both exactly as received.
    """

    image: UInt8Image
    stamp_ns: int
    frame_id: str = ""


@dataclass(frozen=True)
class Detections:
    """Objects of one image, highest score first.

    boxes: float32 (N, 4), xyxy, pixels of the RGB image, 0-based, right and bottom exclusive, inside the image.
    scores: float32 (N,), 0..1. labels: int64 (N,), ids of the student's detection class list.
    """

    boxes: Float32Array
    scores: Float32Array
    labels: Int64Array

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape} and labels {self.labels.shape} do not describe "
                "the same objects: expected (N, 4), (N,) and (N,)"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """Return the detections with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])


@dataclass(frozen=True)
class Segmentation:
    """Class of every pixel of the RGB image.

    mask: uint8 (H, W), ids of the student's segmentation class list.
    confidence: uint8 (H, W), softmax probability of the winning class, 0..255.
    """

    mask: UInt8Image
    confidence: UInt8Image

    def __post_init__(self) -> None:
        if self.mask.shape != self.confidence.shape or self.mask.ndim != 2:
            raise ValueError(f"mask {self.mask.shape} and confidence {self.confidence.shape} must be one (H, W)")


@dataclass(frozen=True)
class StudentOutput:
    """What a student says of one pair; a task that the student does not have is None."""

    detections: Detections | None
    segmentation: Segmentation | None


@dataclass(frozen=True)
class StageTimes:
    """Durations of the stages of one frame, milliseconds of a steady clock."""

    decode_ms: float = 0.0
    pair_wait_ms: float = 0.0
    inference_ms: float = 0.0


@dataclass(frozen=True)
class Perception:
    """The result for one frame, ready to be turned into messages.

    stamp_ns, frame_id: header of the image that the result belongs to (RGB; in THERMAL_ONLY thermal), untouched.
    size: (width, height) of that image, px: boxes and masks lie in its pixels.
    rgb: that image, uint8 (H, W, 3), for overlays (a view, not a copy; the thermal image in grey).
    pair_offset_ns: thermal stamp minus RGB stamp, signed, after the constant offset; None without a pair.
    """

    stamp_ns: int
    frame_id: str
    mode: Mode
    size: tuple[int, int]
    rgb: UInt8Image
    output: StudentOutput
    pair_offset_ns: int | None = None
    times: StageTimes = field(default_factory=StageTimes)
