"""The homography and the time offset between two cameras, from views of a checkerboard that both see.

In thermal a board is visible when its squares differ in temperature or emissivity: printed on card and heated by a lamp
or the sun, dark squares are the warm, bright ones, so that black and white change places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from md_perception.results import UInt8Image
from md_perception.sensing.alignment import (
    Alignment,
    AlignmentSettings,
    Delay,
    Fit,
    Size,
    TooLittleEvidence,
)
from md_perception.sensing.edges import Float64Array, resized_matrix
from md_perception.sensing.thermal import to_8bit

_SEARCH_WIDTH = 640
"""Smaller images are enlarged to this width before the search: the detector wants squares of 10 px and more."""

_LEAST_VIEWS = 5
_LEAST_COVERAGE = 0.2
_LARGEST_RESIDUAL = 0.02
"""Share of the thermal image's width."""

_STEP_S = 0.02
_BOOTSTRAPS = 40


@dataclass(frozen=True)
class BoardView:
    """Inner corners of the board in one image, float64 (n, 2) px, row by row; the first may be at either end."""

    stamp_ns: int
    corners: Float64Array


def find_board(image: UInt8Image, inner: tuple[int, int]) -> Float64Array | None:
    """Return the inner corners of a checkerboard, float64 (columns * rows, 2) px, to a fraction of a pixel.

    image: uint8 (h, w), of either polarity. inner: corners in a row and in a column. None without a whole board.
    """
    width = image.shape[1]
    factor = max(1, -(-_SEARCH_WIDTH // width))
    large = image if factor == 1 else cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    # A board may have a few kelvin in a picture of thirty. (CALIB_CB_NORMALIZE_IMAGE equalises the histogram instead,
    # which blows up the noise of an even background: it finds none of the boards in the tests.)
    low, high = np.percentile(large, (1, 99))
    large = to_8bit(large.astype(np.float32), float(low), float(max(high, low + 16)))
    for polarised in (large, cv2.bitwise_not(large)):
        found, corners = cv2.findChessboardCornersSB(polarised, inner)
        if found:
            back = np.linalg.inv(resized_matrix(factor, factor))
            points = np.asarray(corners, np.float64).reshape(-1, 1, 2)  # its shape differs between versions of OpenCV
            return np.asarray(cv2.perspectiveTransform(points, back), np.float64).reshape(-1, 2)
    return None


def align_by_board(
    rgb: Sequence[BoardView],
    thermal: Sequence[BoardView],
    inner: tuple[int, int],
    thermal_size: Size,
    settings: AlignmentSettings | None = None,
) -> Alignment:
    """Find the homography and the time offset of two cameras.

    rgb, thermal: views in the order of their stamps. thermal_size: (width, height) px. The time offset is the delay at
    which the board, carried about, is in one place for both cameras; for every delay there is a homography of its own.
    Raises TooLittleEvidence.
    """
    settings = settings or AlignmentSettings()
    if min(len(rgb), len(thermal)) < _LEAST_VIEWS:
        raise TooLittleEvidence(
            f"the board with {inner[0]}x{inner[1]} inner corners was found in {len(rgb)} RGB and {len(thermal)} "
            f"thermal images, {_LEAST_VIEWS} of each are needed: say with --board how many corners there are where "
            "four squares meet, show the whole board with its rim, heat it (a lamp or the sun), and hold it nearer"
        )
    track = _Track(_in_one_order(rgb, inner), settings.longest_delay_s)
    views = _in_one_order(thermal, inner)
    delays = np.arange(-settings.longest_delay_s, settings.longest_delay_s + 1e-9, _STEP_S)
    pairs = {index: track.pairs(views, delay_s, inner) for index, delay_s in enumerate(delays)}
    least = max(_LEAST_VIEWS, max(len(found) for found in pairs.values()) // 2)
    errors = {i: _fitted(found)[1] for i, found in pairs.items() if len(found) >= least}
    if not errors:
        raise TooLittleEvidence(
            "the board is hardly ever found in both cameras at the same time: hold it so that both see the whole board "
            "for a second in each place"
        )
    best = min(errors, key=lambda index: errors[index])
    delay, reason = _delay_of(pairs, errors, best, delays, settings)
    used = track.pairs(views, delay.delay_s if delay else 0.0, inner)
    if len(used) < _LEAST_VIEWS:
        raise TooLittleEvidence(
            f"only {len(used)} views of the board are seen by both cameras at the same time: {_LEAST_VIEWS} are "
            "needed; hold it still for a second in each place"
        )
    matrix, _ = _fitted(used)
    return Alignment(_assessed(used, matrix, thermal_size), delay, reason)


_Pairs = list[tuple[Float64Array, Float64Array]]
"""Corners in RGB and in thermal, float64 (n, 2) each, in the same order."""


def _assessed(used: _Pairs, matrix: Float64Array, thermal_size: Size) -> Fit:
    width, height = thermal_size
    held_out = []
    for start in (0, 1):
        fitted, _ = _fitted(used[start::2])
        held_out += [_distances(fitted, *pair) for pair in used[1 - start :: 2]]
    residual = float(np.sqrt(np.mean(np.concatenate(held_out) ** 2)))
    corners = np.concatenate([thermal for _, thermal in used]).astype(np.float32)
    coverage = float(cv2.contourArea(cv2.convexHull(corners))) / (width * height)
    if coverage < _LEAST_COVERAGE:
        raise TooLittleEvidence(
            f"the views of the board cover {coverage:.0%} of the thermal image, {_LEAST_COVERAGE:.0%} are needed: show "
            "it in the middle, in every corner and at several distances"
        )
    if residual > _LARGEST_RESIDUAL * width:
        raise TooLittleEvidence(
            f"no homography fits: views left out are missed by {residual:.1f} thermal px. Either the board was shown "
            "at very different distances (parallax: keep to that at which your objects are), it moved fast, or a lens "
            "distorts (publish rectified images)"
        )
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.linspace(0, width - 1, 6), np.linspace(0, height - 1, 5)), axis=-1).reshape(1, -1, 2)
    in_rgb = cv2.perspectiveTransform(grid, np.linalg.inv(matrix))
    moved = []
    for _ in range(_BOOTSTRAPS):
        again, _ = _fitted([used[i] for i in rng.integers(len(used), size=len(used))])
        moved.append(cv2.perspectiveTransform(in_rgb, again)[0])
    spread = float(np.sqrt(np.mean(np.sum(np.var(moved, axis=0), axis=-1))))
    return Fit(matrix, residual, spread, len(corners), len(used), min(1.0, coverage))


def _delay_of(
    pairs: dict[int, _Pairs], errors: dict[int, float], best: int, delays: Float64Array, settings: AlignmentSettings
) -> tuple[Delay | None, str]:
    """Return the delay with the least error, refined between the steps, or None and why."""
    if best - 1 not in errors or best + 1 not in errors:
        return None, f"the best delay lies at the end of what was searched, {settings.longest_delay_s:g} s"
    found = _refined(pairs, best, delays)
    rng = np.random.default_rng(0)
    drawn = []
    near = [i for i in range(best - 3, best + 4) if i in errors]
    count = min(len(pairs[i]) for i in near)
    for _ in range(_BOOTSTRAPS):
        chosen = rng.integers(count, size=count)
        again = {i: [pairs[i][j] for j in chosen] for i in near}
        least = min(near, key=lambda i: _fitted(again[i])[1])
        drawn.append(_refined(again, least, delays) - found)
    spread = float(np.sqrt(np.mean(np.square(drawn))))
    if spread > settings.largest_spread_s:
        return None, f"it is known to {1e3 * spread:.0f} ms only: the board has to move, slowly, between the places"
    return Delay(found, spread), ""


def _refined(pairs: dict[int, _Pairs], best: int, delays: Float64Array) -> float:
    """Return the vertex of the parabola through the squared errors around a step."""
    if best - 1 not in pairs or best + 1 not in pairs:
        return float(delays[best])
    before, middle, after = (_fitted(pairs[i])[1] ** 2 for i in (best - 1, best, best + 1))
    bend = before - 2 * middle + after
    return float(delays[best]) + (_STEP_S * float(np.clip(0.5 * (before - after) / bend, -1, 1)) if bend > 0 else 0.0)


def _fitted(pairs: _Pairs) -> tuple[Float64Array, float]:
    """Return the homography from RGB to thermal that fits all corners best, and its RMS error, px (infinite: none)."""
    rgb, thermal = (np.concatenate(points) for points in zip(*pairs, strict=True))
    matrix, _ = cv2.findHomography(rgb, thermal, 0)
    if matrix is None:
        return np.eye(3), float("inf")
    return matrix, float(np.sqrt(np.mean(_distances(matrix, rgb, thermal) ** 2)))


def _distances(matrix: Float64Array, rgb: Float64Array, thermal: Float64Array) -> Float64Array:
    return np.hypot(*(cv2.perspectiveTransform(rgb[None], matrix)[0] - thermal).T)


class _Track:
    """Where the board is in RGB at any time between its views."""

    def __init__(self, views: Sequence[BoardView], longest_delay_s: float) -> None:
        self.stamps_s = np.array([view.stamp_ns for view in views]) * 1e-9
        self.corners = np.stack([view.corners for view in views])
        # Between views that are further apart than a few frames nobody knows where it was.
        self.gap_s = 4.5 * float(np.percentile(np.diff(self.stamps_s), 20))

    def pairs(self, thermal: Sequence[BoardView], delay_s: float, inner: tuple[int, int]) -> _Pairs:
        """Return the corners of both cameras at the instants of the thermal views, whose stamps are delay_s late."""
        found = []
        for view in thermal:
            at_s = view.stamp_ns * 1e-9 - delay_s
            after = int(np.searchsorted(self.stamps_s, at_s))
            before = max(0, after - 1)
            after = min(after, len(self.stamps_s) - 1)
            start_s, end_s = self.stamps_s[before], self.stamps_s[after]
            if end_s - start_s > self.gap_s or not start_s - 1e-3 <= at_s <= end_s + 1e-3:
                continue
            share = 0.0 if after == before else (at_s - start_s) / (end_s - start_s)
            corners = (1 - share) * self.corners[before] + share * self.corners[after]
            found.append((corners, _ordered_like(view.corners, corners, inner)))
        return found


def _in_one_order(views: Sequence[BoardView], inner: tuple[int, int]) -> list[BoardView]:
    """Return the views with each one's corners in the order of the view before: detectors begin at either end."""
    ordered = [views[0]]
    for view in views[1:]:
        ordered.append(BoardView(view.stamp_ns, _ordered_like(view.corners, ordered[-1].corners, inner)))
    return ordered


def _ordered_like(corners: Float64Array, model: Float64Array, inner: tuple[int, int]) -> Float64Array:
    """Return the corners in the order that looks most like the model: polarity and symmetry leave it open by turns."""
    columns, rows = inner
    grid = corners.reshape(rows, columns, 2)
    turns = range(4) if rows == columns else (0, 2)
    candidates = [np.rot90(grid, turn).reshape(-1, 2) for turn in turns]
    centred = model - model.mean(axis=0)
    likeness = [float(np.sum((candidate - candidate.mean(axis=0)) * centred)) for candidate in candidates]
    return np.ascontiguousarray(candidates[int(np.argmax(likeness))])
