"""Notices that the cameras have moved against each other: edges of both images, compared now and then.

Cheap enough for a slow loop beside the student (docs/calibration.md has the figures), and slow on purpose: one frame
says little, a person close by stands apart in both cameras because of parallax, and a mount does not move in a second.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.results import Float32Array, UInt8Image
from md_perception.sensing.edges import correlation, edge_field, find_peak, grey, onto_thermal, resized_matrix

_WIDTH = 160
"""The thermal image is compared at this width; a shift is found to a tenth of its pixels."""

_REACH = 0.2
"""Largest shift that is looked for, share of each side of the image."""

_DISTINCT = 4.5
"""A summit that stands out less, in standard deviations, may be chance."""


@dataclass(frozen=True)
class MisalignmentSettings:
    """max_shift: a steady shift of thermal against RGB above this, as a share of the thermal image's width, is drift.
    memory: checks that are averaged. confirm: checks in a row that have to say drift before it is told.
    """

    max_shift: float = 0.015
    memory: int = 10
    confirm: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.max_shift < _REACH:
            raise ValueError(f"max_shift must lie between 0 and {_REACH}, got {self.max_shift}")
        if self.memory < 1 or self.confirm < 1:
            raise ValueError(f"memory and confirm must be at least 1, got {self}")


@dataclass(frozen=True)
class Misalignment:
    """What the monitor says.

    shift_px: (x, y), thermal px: how far thermal lies right of and below where the registration expects it.
    distinctness: of that shift, standard deviations; known: whether it is clear enough to say anything.
    drifted: whether the pair is out of register. checks: how many there were since the monitor began.
    """

    shift_px: tuple[float, float]
    distinctness: float
    known: bool
    drifted: bool
    checks: int


class MisalignmentMonitor:
    """Compares pairs of one camera pair. Not locked: one thread at a time."""

    def __init__(self, settings: MisalignmentSettings = MisalignmentSettings()) -> None:
        self.settings = settings
        self._surface: Float32Array | None = None
        self._setup: tuple[object, ...] = ()
        self._checks = 0
        self._drifts = 0
        self._drifted = False

    def check(self, rgb: UInt8Image, thermal: UInt8Image, rgb_to_thermal: npt.ArrayLike) -> Misalignment:
        """Look at a pair.

        rgb: uint8 (H, W, 3). thermal: uint8 (h, w). rgb_to_thermal: (3, 3), as the student gets it. With other sizes
        or another matrix than before, what was seen is forgotten.
        """
        matrix = np.asarray(rgb_to_thermal, np.float64)
        setup = (rgb.shape, thermal.shape, matrix.tobytes())
        if setup != self._setup:
            self._setup, self._surface, self._checks, self._drifts, self._drifted = setup, None, 0, 0, False
        height, width = thermal.shape
        size = (min(_WIDTH, width), max(8, round(height * min(1.0, _WIDTH / width))))
        small, matrix = _decimated(rgb, matrix, size)
        seen, shown = onto_thermal(grey(small), resized_matrix(size[0] / width, size[1] / height) @ matrix, size)
        there = thermal if size == (width, height) else cv2.resize(thermal, size, interpolation=cv2.INTER_AREA)
        surface = correlation(edge_field(seen, shown), edge_field(np.asarray(there, np.uint8)))
        self._checks += 1
        # The plain mean of the first checks, then an exponential one.
        share = 1.0 / min(self._checks, self.settings.memory)
        self._surface = (
            surface if self._surface is None else self._surface + np.float32(share) * (surface - self._surface)
        )
        peak = find_peak(self._surface, (round(_REACH * size[0]), round(_REACH * size[1])))
        known = peak.inside and peak.distinctness >= _DISTINCT
        shift = (peak.shift[0] * width / size[0], peak.shift[1] * height / size[1])
        if known:
            self._judge(float(np.hypot(*shift)) / width)
        return Misalignment(shift, peak.distinctness, known, self._drifted, self._checks)

    def _judge(self, shift: float) -> None:
        """Take a shift, share of the width, into account; what is not known changes nothing."""
        if shift > self.settings.max_shift:
            self._drifts += 1
            self._drifted = self._drifted or self._drifts >= self.settings.confirm
        else:
            self._drifts = 0
            # A little below, so that a shift at the threshold does not flap.
            self._drifted = self._drifted and shift > 0.8 * self.settings.max_shift


def _decimated(
    rgb: UInt8Image, matrix: npt.NDArray[np.float64], size: tuple[int, int]
) -> tuple[UInt8Image, npt.NDArray[np.float64]]:
    """Return a colour image reduced to about twice the size of comparison, before it is turned grey: most of the cost
    of a check lies in the pixels of a large camera."""
    height, width = rgb.shape[:2]
    factor = width // (2 * size[0])
    if factor < 2:
        return rgb, matrix
    small = (width // factor, height // factor)
    # Nearest is enough: the next step averages again, and there is more noise in a pixel than detail.
    reduced = rgb[factor // 2 :: factor, factor // 2 :: factor][: small[1], : small[0]]
    offset = factor // 2
    grown = np.array([[factor, 0, offset], [0, factor, offset], [0, 0, 1]], np.float64)
    return np.ascontiguousarray(reduced), matrix @ grown
