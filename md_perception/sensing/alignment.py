"""The homography and the time offset between two cameras, from the edges of an ordinary scene: no board is needed.

Edges are compared by `sensing.edges.correlation`. A search over zoom and turn finds the homography roughly; then each
block of the thermal image says how far it is off, all frames together, and a correction is fitted to the blocks, over
and over. The time offset is the delay at which what moves in one camera moves alike in the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.results import Float32Array, Int64Array, Size, UInt8Image
from md_perception.sensing.edges import (
    Complex64Array,
    Float64Array,
    correlation,
    edge_field,
    find_peak,
    onto_thermal,
    resized_matrix,
)
from md_perception.sensing.registration import sampling_matrix

_COARSE_WIDTH = 80
_COARSE_FRAMES = 8
_FINE_WIDTH = 320
_TIME_WIDTH = 80
_ROUNDS = 12
"""Most corrections of the fine search; it ends when one is below a fiftieth of a pixel."""

_SETTLED_PX = 0.02

_SCHEDULE = ((2, 3.0), (4, 3.0), (4, 2.0), (6, 1.0), (8, 1.0), (0, 0.0))
"""Of the corrections one after the other: how many of the eight numbers (0: as many as the evidence supports), and how
much the surfaces are blurred, px. At first only what is simple: it must not run away to a neighbouring edge."""

_POLISH = ((4, 0.0), (8, 0.0), (8, 0.0))
"""The same for a homography that is nearly right."""

_JOINT_REACH = 3
"""Delays that are tried on each side of the likeliest, RGB periods."""

_LEAST_IMAGES = 10
_LEAST_SIZE = (32, 24)

_BLOCKS_ACROSS = 4
"""The thermal image is this many blocks wide; they overlap by half, so that there are seven in a row."""

_LEAST_BLOCKS = 8
_LEAST_COVERAGE = 0.25
_CLEAR = 2.0
"""A block's summit stands out by so many standard deviations of its surface."""

_BOOTSTRAPS = 60


@dataclass(frozen=True)
class StampedImage:
    """A grey image, uint8 (h, w), and the stamp of its header."""

    stamp_ns: int
    image: UInt8Image

    @property
    def size(self) -> Size:
        """(width, height) px."""
        height, width = self.image.shape
        return width, height


@dataclass(frozen=True)
class Fit:
    """A homography and how well it is known.

    homography: float64 (3, 3), RGB pixels to thermal pixels. residual_px: RMS distance, thermal px, of what was not
    used for the fit. spread_px: how far a point of the thermal image moves, thermal px RMS, when the evidence is drawn
    anew (bootstrap). points: blocks or corners that the fit rests on. frames: image pairs. coverage: share of the
    thermal image that they span, 0..1.
    """

    homography: Float64Array
    residual_px: float
    spread_px: float
    points: int
    frames: int
    coverage: float


@dataclass(frozen=True)
class Delay:
    """How late thermal stamps are. delay_s: thermal stamp minus RGB stamp of one instant. spread_s: its standard
    deviation when the evidence is drawn anew (bootstrap)."""

    delay_s: float
    spread_s: float


@dataclass(frozen=True)
class Alignment:
    """What `align` finds. delay: None where it cannot be told; `reason` then says why."""

    fit: Fit
    delay: Delay | None
    reason: str = ""


@dataclass(frozen=True)
class AlignmentSettings:
    """Where `align` looks.

    zooms: least and largest size of things in thermal against that in RGB, both images scaled to the same width; 1: the
    same field of view, 2: thermal sees the middle half of it. turn_deg: largest roll of one camera against the other.
    longest_delay_s: of thermal stamps, either sign. largest_spread_s: a delay that is not known so well is not given.
    pairs: image pairs that the homography rests on.
    """

    zooms: tuple[float, float] = (0.8, 2.5)
    turn_deg: float = 4.0
    longest_delay_s: float = 0.5
    largest_spread_s: float = 0.015
    pairs: int = 40

    def __post_init__(self) -> None:
        if not (0.1 <= self.zooms[0] <= self.zooms[1] <= 10):
            raise ValueError(f"the zooms {self.zooms} must rise within 0.1 to 10")
        if not (0 <= self.turn_deg <= 45 and 0 < self.longest_delay_s <= 10 and self.pairs >= 2):
            raise ValueError(
                "turns go from 0 to 45 degrees, time offsets to 10 s, and at least 2 pairs are needed: "
                f"{self.turn_deg} degrees, {self.longest_delay_s} s, {self.pairs} pairs"
            )


class TooLittleEvidence(ValueError):
    """The images do not say what was asked; the text says what is missing and what to record instead."""


def pairs_at(
    rgb: Sequence[StampedImage], thermal: Sequence[StampedImage], delay_s: float, most: int
) -> list[tuple[StampedImage, StampedImage]]:
    """Return pairs of one instant, at most `most`, evenly over time: each thermal image with the nearest RGB image.

    delay_s: how late thermal stamps are. Thermal images with no RGB image within one RGB period are left out.
    """
    rgb_ns, thermal_ns = stamps_of(rgb), stamps_of(thermal) - round(delay_s * 1e9)
    tolerance_ns = float(np.median(np.diff(rgb_ns))) if len(rgb_ns) > 1 else 0.0
    nearest = np.abs(rgb_ns[:, None] - thermal_ns[None]).argmin(axis=0)
    close = np.flatnonzero(np.abs(rgb_ns[nearest] - thermal_ns) <= tolerance_ns)
    chosen = close[np.unique(np.linspace(0, len(close) - 1, min(most, len(close))).round().astype(int))]
    return [(rgb[nearest[j]], thermal[j]) for j in chosen]


def stamps_of(images: Sequence[StampedImage]) -> Int64Array:
    """Return int64 (n,) stamps, ns."""
    return np.array([image.stamp_ns for image in images], np.int64)


def coarse_homography(
    pairs: Sequence[tuple[StampedImage, StampedImage]], zooms: tuple[float, float], turn_deg: float
) -> Float64Array:
    """Search zoom, turn and shift of the thermal view against the RGB view.

    zooms: least and largest size of things in thermal against that in RGB, both images scaled to the same width; 1: the
    same field of view, 2: thermal sees half of it. turn_deg: largest roll between the cameras.
    Returns float64 (3, 3), RGB pixels to thermal pixels, good to some 2 % of the image width.
    """
    step = max(1, len(pairs) // _COARSE_FRAMES)
    pairs = pairs[::step][:_COARSE_FRAMES]
    rgb_size, thermal_size = pairs[0][0].size, pairs[0][1].size
    size = _scaled(thermal_size, _COARSE_WIDTH)
    fields = np.stack([edge_field(_reduced(thermal.image, size)) for _, thermal in pairs])
    twice = (min(2 * size[0], rgb_size[0]), min(2 * size[1], rgb_size[1]))
    greys = [_reduced(rgb.image, twice) for rgb, _ in pairs]
    same_view = sampling_matrix(twice, size).astype(np.float64)
    reach = (round(0.35 * size[0]), round(0.35 * size[1]))

    def search(factors: npt.NDArray[np.float64], turns: npt.NDArray[np.float64]) -> tuple[float, float, Float64Array]:
        best = (-1.0, 1.0, 0.0, np.eye(3))
        for factor, turn in product(factors, turns):
            turned = np.vstack(
                [cv2.getRotationMatrix2D(((size[0] - 1) / 2, (size[1] - 1) / 2), turn, factor), [0.0, 0.0, 1.0]]
            )
            matrix = turned @ same_view
            seen = np.stack([edge_field(*onto_thermal(image, matrix, size)) for image in greys])
            peak = find_peak(correlation(seen, fields).mean(axis=0), reach)
            if peak.inside and peak.height > best[0]:
                shift = np.array([[1, 0, peak.shift[0]], [0, 1, peak.shift[1]], [0, 0, 1]])
                best = (peak.height, float(factor), float(turn), shift @ matrix)
        return best[1], best[2], best[3]

    count = max(1, round(np.log(zooms[1] / zooms[0]) / np.log(1.04)) + 1)
    turns = np.arange(-turn_deg, turn_deg + 0.1, 2.0)
    factor, turn, _ = search(np.geomspace(zooms[0], zooms[1], count), turns)
    _, _, found = search(factor * np.array([0.97, 0.985, 1.0, 1.015, 1.03]), turn + np.array([-1.0, 0.0, 1.0]))
    to_thermal = resized_matrix(thermal_size[0] / size[0], thermal_size[1] / size[1])
    to_twice = resized_matrix(twice[0] / rgb_size[0], twice[1] / rgb_size[1])
    return _scaled_to_one(to_thermal @ found @ to_twice)


def align(
    rgb: Sequence[StampedImage], thermal: Sequence[StampedImage], settings: AlignmentSettings | None = None
) -> Alignment:
    """Find the homography and the time offset of two cameras.

    rgb, thermal: of one recording, in the order of their stamps, all of a camera of one size. Raises TooLittleEvidence.
    """
    settings = settings or AlignmentSettings()
    if min(len(rgb), len(thermal)) < _LEAST_IMAGES:
        raise TooLittleEvidence(
            f"{len(rgb)} RGB and {len(thermal)} thermal images are too few: record at least {_LEAST_IMAGES} of each"
        )
    width, height = thermal[0].size
    if width < _LEAST_SIZE[0] or height < _LEAST_SIZE[1]:
        raise TooLittleEvidence(
            f"thermal images of {width}x{height} px show too few edges, {_LEAST_SIZE[0]}x{_LEAST_SIZE[1]} are needed: "
            "measure the field of view and set registration.homography by hand"
        )
    if np.median(np.diff(stamps_of(rgb))) <= 0:
        raise TooLittleEvidence("the stamps of the RGB images do not rise: let the driver stamp its images")
    delay_s, known = 0.0, False
    refiner = _Refiner(thermal[0].size)
    homography = np.eye(3)
    for number in range(4):
        pairs = pairs_at(rgb, thermal, delay_s, settings.pairs)
        if len(pairs) < _LEAST_IMAGES:
            raise TooLittleEvidence(
                f"only {len(pairs)} thermal images have an RGB image of their time: see that both cameras stamp with "
                "one clock"
            )
        if number == 0 or not known:
            homography = coarse_homography(pairs, settings.zooms, settings.turn_deg)
        homography = refiner.refine(pairs, homography)
        before = delay_s
        try:
            delay_s, known = time_delay(rgb, thermal, homography, settings.longest_delay_s), True
        except TooLittleEvidence:
            known = False
            break
        if abs(delay_s - before) < 0.01:
            break
    delay: Delay | None = None
    reason = "nothing moves alike in both cameras"
    if known:
        found = _joint(rgb, thermal, homography, delay_s, refiner, settings)
        if found is not None and found[0].spread_s <= settings.largest_spread_s:
            delay, homography = found
        elif found is not None:
            reason = f"it is known to {1e3 * found[0].spread_s:.0f} ms only, for too little moves"
    fit = refiner.assessed(pairs_at(rgb, thermal, delay.delay_s if delay else 0.0, settings.pairs), homography)
    return Alignment(fit, delay, "" if delay else reason)


def _joint(
    rgb: Sequence[StampedImage],
    thermal: Sequence[StampedImage],
    homography: Float64Array,
    delay_s: float,
    refiner: "_Refiner",
    settings: AlignmentSettings,
) -> tuple[Delay, Float64Array] | None:
    """Find delay and homography together, near good guesses of both.

    On a vehicle that drives straight a wrong delay looks much like a wrong zoom, and a homography fitted at one delay
    speaks for that delay. So every delay gets a homography of its own; the best pair of them wins. Returns None where
    there is no best one within reach.
    """
    period_s = float(np.median(np.diff(stamps_of(rgb)))) * 1e-9
    motion = _Motion(rgb, thermal)
    known: dict[int, tuple[float, Float64Array]] = {}  # by number of periods: mean lag s of the pairs, homography
    lags: list[Float64Array] = []
    values: list[Float64Array] = []
    columns: list[Int64Array] = []
    middle = round(delay_s / period_s)
    for _ in range(4):
        for number in range(middle - _JOINT_REACH, middle + _JOINT_REACH + 1):
            if number in known:
                continue
            pairs = pairs_at(rgb, thermal, number * period_s, settings.pairs // 2)
            if len(pairs) < _LEAST_IMAGES // 2:
                continue
            start = known[min(known, key=lambda other: abs(other - number))][1] if known else homography
            matrix = refiner.refine(pairs, start, _POLISH)
            lag_s = float(np.mean([(second.stamp_ns - first.stamp_ns) * 1e-9 for first, second in pairs]))
            known[number] = (lag_s, matrix)
            lag, value, column = motion.likeness(matrix, number * period_s)
            lags.append(lag)
            values.append(value)
            columns.append(column)
        best = _vertex_of(np.concatenate(lags), np.concatenate(values), period_s)
        if best is None:
            return None
        if abs(best - middle * period_s) < (_JOINT_REACH - 1) * period_s:
            break
        middle = round(best / period_s)
    else:
        return None
    lag, value, column = np.concatenate(lags), np.concatenate(values), np.concatenate(columns)
    # Frames that follow each other are not independent: whole stretches of time are drawn anew.
    rng = np.random.default_rng(0)
    count = min(12, len(thermal))
    stretch = column * count // len(thermal)
    drawn = []
    for _ in range(_BOOTSTRAPS):
        times = np.bincount(rng.integers(count, size=count), minlength=count)[stretch]
        again = _vertex_of(lag, value, period_s, times)
        drawn.append(3 * period_s if again is None else again - best)
    order = sorted(known.values(), key=lambda item: item[0])
    at = np.array([item[0] for item in order])
    matrices = np.stack([item[1].reshape(-1) for item in order])
    between = np.array([np.interp(best, at, matrices[:, i]) for i in range(9)]).reshape(3, 3)
    return Delay(best, float(np.sqrt(np.mean(np.square(drawn))))), between


def _vertex_of(
    lags_s: Float64Array, values: Float64Array, period_s: float, times: npt.NDArray[np.int64] | None = None
) -> float | None:
    """Return the lag, s, at the summit of values that scatter about a hill; times: how often each counts."""
    times = np.ones(len(values), np.int64) if times is None else times
    bins = np.rint(lags_s / period_s).astype(int)
    first = int(bins.min())
    counts = np.bincount(bins - first, times)
    curve = np.where(counts > 0, np.bincount(bins - first, times * values) / np.maximum(counts, 1), -np.inf)
    best = (int(curve.argmax()) + first) * period_s
    for _ in range(4):  # the window follows the summit
        inside = (np.abs(lags_s - best) <= 2.2 * period_s) & (times > 0)
        if len(np.unique(bins[inside])) < 3:
            return None
        bend, slope, _ = np.polyfit(lags_s[inside] - best, values[inside], 2, w=np.sqrt(times[inside]))
        if bend >= 0:
            return None
        best += float(np.clip(-slope / (2 * bend), -period_s, period_s))
    return best


class _Motion:
    """What moves in both cameras, at a low resolution."""

    def __init__(self, rgb: Sequence[StampedImage], thermal: Sequence[StampedImage]) -> None:
        self.rgb, self.thermal = rgb, thermal
        self.size = _scaled(thermal[0].size, _TIME_WIDTH)
        self.to_size = resized_matrix(self.size[0] / thermal[0].size[0], self.size[1] / thermal[0].size[1])
        self.rgb_ns, self.thermal_ns = stamps_of(rgb), stamps_of(thermal)
        self.moving = _without_the_static([edge_field(_reduced(frame.image, self.size)) for frame in thermal])

    def of_rgb(self, homography: Float64Array) -> Float32Array:
        """Return float32 (n, 2 * pixels): what moves in RGB, where thermal would see it."""
        matrix = self.to_size @ homography
        return _without_the_static([edge_field(*onto_thermal(frame.image, matrix, self.size)) for frame in self.rgb])

    def likeness(self, homography: Float64Array, delay_s: float) -> tuple[Float64Array, Float64Array, Int64Array]:
        """Return, for each thermal image with an RGB image of its time, the lag of the two, s, how alike they move, and
        the number of the thermal image."""
        targets = self.thermal_ns - round(delay_s * 1e9)
        nearest = np.abs(self.rgb_ns[:, None] - targets[None]).argmin(axis=0)
        period_ns = float(np.median(np.diff(self.rgb_ns)))
        there = np.flatnonzero(np.abs(self.rgb_ns[nearest] - targets) <= 0.6 * period_ns)
        moving = self.of_rgb(homography)
        alike = np.einsum("ip,ip->i", moving[nearest[there]], self.moving[there])
        lags = (self.thermal_ns[there] - self.rgb_ns[nearest[there]]) * 1e-9
        return lags, alike.astype(np.float64) / np.sqrt(np.mean(moving**2) * np.mean(self.moving**2)), there


class _Refiner:
    """Improves a homography that is right to some 3 % of the image width."""

    def __init__(self, thermal_size: Size) -> None:
        self.size = _scaled(thermal_size, _FINE_WIDTH)
        self.grid = _Grid(self.size)
        self.scale = thermal_size[0] / self.size[0]
        self._to_work = resized_matrix(self.size[0] / thermal_size[0], self.size[1] / thermal_size[1])

    def refine(
        self,
        pairs: Sequence[tuple[StampedImage, StampedImage]],
        homography: Float64Array,
        schedule: Sequence[tuple[int, float]] = _SCHEDULE,
    ) -> Float64Array:
        """Return the improved homography.

        The last corrections are a shift, a similarity, an affine map or a homography: the simplest that predicts blocks
        and frames that it was not fitted to about as well as the best.
        """
        matrix = self._to_work @ homography
        greys = [first.image for first, _ in pairs]
        spectra = self._spectra(pairs)
        best = 0
        for number in range(_ROUNDS):
            order, blur = schedule[min(number, len(schedule) - 1)]
            if not order:
                best = best or self.grid.best_order(self.grid.surfaces(greys, spectra, matrix))
                order = best
            summed = self.grid.surfaces(greys, spectra, matrix, summed=True)[0]
            change = self.grid.fit(summed, order, blur=blur)
            matrix = self.grid.correction(change) @ matrix
            if number >= len(schedule) - 1 and self.grid.movement(change) < _SETTLED_PX:
                break
        return _scaled_to_one(np.linalg.inv(self._to_work) @ matrix)

    def _spectra(self, pairs: Sequence[tuple[StampedImage, StampedImage]]) -> list[Complex64Array]:
        return [self.grid.spectrum(edge_field(_reduced(second.image, self.size))) for _, second in pairs]

    def assessed(self, pairs: Sequence[tuple[StampedImage, StampedImage]], homography: Float64Array) -> Fit:
        """Return how good a homography is, unchanged. Raises TooLittleEvidence."""
        greys = [first.image for first, _ in pairs]
        surfaces = self.grid.surfaces(greys, self._spectra(pairs), self._to_work @ homography)
        self.grid.check(surfaces)
        order = self.grid.best_order(surfaces)
        good = self.grid.measured(surfaces).good
        return Fit(
            homography,
            residual_px=self.scale * self.grid.held_out_px(surfaces, order),
            spread_px=self.scale * self.grid.spread_px(surfaces, order),
            points=int(good.sum()),
            frames=len(pairs),
            coverage=self.grid.coverage(good),
        )


def time_delay(
    rgb: Sequence[StampedImage], thermal: Sequence[StampedImage], homography: npt.ArrayLike, longest_s: float
) -> float:
    """Return how late thermal stamps are, s, from what moves in both cameras, for one homography.

    homography: RGB pixels to thermal pixels. longest_s: largest delay, of either sign, that is looked for.
    Raises TooLittleEvidence where too little moves to tell.
    """
    motion = _Motion(rgb, thermal)
    likeness = motion.of_rgb(np.asarray(homography, np.float64)) @ motion.moving.T
    lags_s = (motion.thermal_ns[None] - motion.rgb_ns[:, None]) * 1e-9
    period_s = float(np.median(np.diff(motion.rgb_ns))) * 1e-9
    near = np.abs(lags_s) <= longest_s + 2 * period_s
    found = _vertex_of(lags_s[near], likeness[near].astype(np.float64), period_s)
    if found is None or abs(found) > longest_s:
        raise TooLittleEvidence(f"no delay within {longest_s:g} s makes the motion of both cameras agree")
    return found


def _without_the_static(fields: Sequence[Complex64Array]) -> Float32Array:
    """Return float32 (n, 2 * pixels): the fields less their mean over time."""
    stack = np.stack([field.reshape(-1) for field in fields])
    return np.ascontiguousarray(stack - stack.mean(axis=0)).view(np.float32)


@dataclass(frozen=True)
class _Blocks:
    """What the blocks of the thermal image say one by one.

    shift: float64 (b, 2) px, thermal against warped RGB. good: bool (b,), those that have a clear opinion.
    """

    shift: Float64Array
    good: npt.NDArray[np.bool_]


class _Grid:
    """Overlapping blocks of the thermal image, and corrections fitted to their correlation surfaces.

    A correction is given in coordinates u = (x - middle) / half the width, by eight numbers: shift (2), zoom and turn
    (4), the rest of an affine map (6), the rest of a homography (8).
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        width, height = size
        self.side = max(16, 2 * min(width // (2 * _BLOCKS_ACROSS), height // 2))
        self.reach = self.side // 4
        lefts, tops = (
            np.linspace(0, length - self.side, max(1, 2 * round(length / self.side) - 1)).round().astype(int)
            for length in size
        )
        self.corners = list(product(tops, lefts))
        self.checkered = (np.arange(len(tops))[:, None] + np.arange(len(lefts))).reshape(-1) % 2 == 0
        self.centres = np.array([(left, top) for top, left in self.corners]) + (self.side - 1) / 2
        self.half = width / 2
        self.u = (self.centres - np.array([(width - 1) / 2, (height - 1) / 2])) / self.half
        hann = np.hanning(self.side + 2)[1:-1].astype(np.float32)
        self.window = hann[:, None] * hann[None]

    def spectrum(self, field: Complex64Array) -> Complex64Array:
        """Return complex64 (b, s, s): the spectra of the blocks, which overlap and fade towards their borders."""
        blocks = [field[top : top + self.side, left : left + self.side] for top, left in self.corners]
        return np.fft.fft2(np.stack(blocks) * self.window).astype(np.complex64)

    def surfaces(
        self,
        greys: Sequence[UInt8Image],
        spectra: Sequence[Complex64Array],
        matrix: Float64Array,
        *,
        summed: bool = False,
    ) -> Float32Array:
        """Return float32 (n, b, 2 r + 1, 2 r + 1): how well each block fits, in each frame, for each shift.

        greys: uint8 (H, W), RGB. spectra: of thermal. summed: n is 1, all frames together.
        """
        low, high = self.side // 2 - self.reach, self.side // 2 + self.reach + 1
        products = (
            np.conj(self.spectrum(edge_field(*onto_thermal(image, matrix, self.size)))) * spectrum
            for image, spectrum in zip(greys, spectra, strict=True)
        )
        parts = [np.sum(list(products), axis=0)] if summed else products
        found = [np.fft.fftshift(np.fft.ifft2(part).real, axes=(-2, -1))[:, low:high, low:high] for part in parts]
        return np.stack(found).astype(np.float32)

    def measured(self, surfaces: Float32Array) -> _Blocks:
        """Return where each block has its summit, all frames (n, b, ...) together; good: inside half the reach, clear,
        and about the same in both halves of the frames."""
        near = (self.reach // 2, self.reach // 2)
        parts = [surfaces, surfaces[::2], surfaces[1::2]] if len(surfaces) > 1 else [surfaces]
        peaks = [[find_peak(surface, near) for surface in part.sum(axis=0)] for part in parts]
        shifts = np.array([[peak.shift for peak in part] for part in peaks])
        clear = np.array([peak.inside and peak.distinctness > _CLEAR for peak in peaks[0]])
        stable = np.hypot(*np.ptp(shifts, axis=0).T) < 0.5 + 0.1 * self.reach
        return _Blocks(shifts[0], clear & stable)

    def check(self, surfaces: Float32Array) -> None:
        """Raise TooLittleEvidence where too few blocks have an opinion, or they do not cover the image."""
        good = self.measured(surfaces).good
        if good.sum() < _LEAST_BLOCKS or self.coverage(good) < _LEAST_COVERAGE:
            raise TooLittleEvidence(
                f"only {int(good.sum())} of {len(good)} parts of the thermal image have edges that RGB shows too, in "
                f"{len(surfaces)} image pairs: record an ordinary scene with people, cars and buildings all over the "
                "image, by daylight, or use a heated checkerboard (--board)"
            )

    def coverage(self, good: npt.NDArray[np.bool_]) -> float:
        """Return the share of the thermal image that the good blocks span."""
        if not good.any():
            return 0.0
        corners = self.centres[good][:, None] + 0.5 * self.side * np.array(_CORNERS)
        hull = cv2.convexHull(corners.reshape(-1, 2).astype(np.float32))
        return float(cv2.contourArea(hull)) / (self.size[0] * self.size[1])

    def fit(
        self, summed: Float32Array, order: int, *, blur: float = 0.0, weight: npt.ArrayLike | None = None
    ) -> Float64Array:
        """Return the eight numbers of the correction, those beyond `order` zero, that fits the blocks best together.

        summed: float32 (b, 2 r + 1, 2 r + 1); the sum over the blocks of their surfaces, each at the shift that the
        correction gives it, is made as large as it will be, by Newton steps. So a block with edges of one direction
        speaks for the shift across them alone. blur: of the surfaces, px. weight: float (b,), how often a block counts.
        """
        surfaces = summed.astype(np.float64) / max(float(np.abs(summed).max()), 1e-9)
        if blur:
            surfaces = np.stack([cv2.GaussianBlur(surface, (0, 0), blur) for surface in surfaces])
        times = np.ones(len(surfaces)) if weight is None else np.asarray(weight, np.float64)
        basis = self._basis(order) * self.half  # (b, 2, order): px for each number
        change, damping = np.zeros(order), 1e-3
        here = self._sampled(surfaces, basis @ change)
        for _ in range(40):
            slope = np.einsum("bci,bc,b->i", basis, here[:, 1:3], times)
            bend = np.einsum("bci,bcd,bdj,b->ij", basis, _curvature(here[:, 3:]), basis, times)
            step = np.linalg.solve(bend + np.diag(damping * np.diag(bend) + 1e-9), slope)
            there = self._sampled(surfaces, basis @ (change + step))
            if there[:, 0] @ times > here[:, 0] @ times:
                change, here, damping = change + step, there, max(1e-4, damping / 5)
                if np.abs(basis @ step).max() < 1e-3:
                    break
            else:
                damping *= 10
                if damping > 1e6:
                    break
        return np.concatenate([change, np.zeros(8 - order)])

    def _sampled(self, surfaces: Float64Array, shifts: Float64Array) -> Float64Array:
        """Return float64 (b, 6): each block's surface at its shift (b, 2): value, d/dx, d/dy, and the second
        derivatives xx, xy, yy, of the cubic B-spline over the pixels (smooth, so that Newton steps fit its values)."""
        last = surfaces.shape[1] - 1
        at = np.clip(shifts + self.reach, 1.0, last - 1.0)
        low = np.minimum(np.floor(at).astype(int), last - 2)
        (x0, x1, x2), (y0, y1, y2) = (_spline(fraction) for fraction in (at - low).T)
        around = np.arange(-1, 3)
        blocks = np.arange(len(surfaces))[:, None, None]
        near = surfaces[blocks, (low[:, 1, None] + around)[:, :, None], (low[:, 0, None] + around)[:, None, :]]
        parts = ((y0, x0), (y0, x1), (y1, x0), (y0, x2), (y1, x1), (y2, x0))
        return np.stack([np.einsum("by,byx,bx->b", y, near, x) for y, x in parts], axis=1)

    def best_order(self, surfaces: Float32Array) -> int:
        """Return how many of the eight numbers the evidence supports."""
        errors = {order: self.held_out_px(surfaces, order) for order in (2, 4, 6, 8)}
        least = min(errors.values())
        return min(order for order, error in errors.items() if error <= 1.05 * least + 0.005)

    def held_out_px(self, surfaces: Float32Array, order: int) -> float:
        """Return the RMS distance, px, of blocks from corrections fitted to other blocks in other frames."""
        even_frames = np.arange(len(surfaces)) % 2 == 0 if len(surfaces) > 1 else np.array([True])
        squares = []
        for frames, members in product((even_frames, ~even_frames), (self.checkered, ~self.checkered)):
            if not frames.any():
                continue
            change = self.fit(surfaces[frames].sum(axis=0), order, weight=members)
            tested = self.measured(surfaces[~frames] if len(surfaces) > 1 else surfaces)
            test = ~members & tested.good
            squares.append(np.sum((tested.shift - self._basis(8) @ change * self.half)[test] ** 2, axis=1))
        every = np.concatenate(squares)
        return float(np.sqrt(every.mean())) if len(every) else float("inf")

    def spread_px(self, surfaces: Float32Array, order: int) -> float:
        """Return how far a point of the image moves, px RMS, when frames and blocks are drawn anew."""
        rng = np.random.default_rng(0)
        everywhere = self._basis(8)
        moved = []
        for _ in range(_BOOTSTRAPS):
            frames = np.bincount(rng.integers(len(surfaces), size=len(surfaces)), minlength=len(surfaces))
            count = len(self.centres)
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            again = self.fit(np.einsum("nbyx,n->byx", surfaces, frames), order, weight=times)
            moved.append(everywhere @ again * self.half)
        return float(np.sqrt(np.mean(np.sum(np.var(moved, axis=0), axis=-1))))

    def movement(self, change: Float64Array) -> float:
        """Return how far a correction moves the blocks at most, px."""
        return float(np.hypot(*(self._basis(8) @ change * self.half).T).max())

    def correction(self, change: Float64Array) -> Float64Array:
        """Return float64 (3, 3), pixels to pixels, of eight numbers."""
        a, b, c, d, e, f, g, h = change
        in_u = np.array([[1 + c + e, -d + f, a], [d + f, 1 + c - e, b], [-g, -h, 1.0]])
        to_u = np.array(
            [
                [1 / self.half, 0, -(self.size[0] - 1) / 2 / self.half],
                [0, 1 / self.half, -(self.size[1] - 1) / 2 / self.half],
                [0, 0, 1],
            ]
        )
        matrix: Float64Array = np.linalg.inv(to_u) @ in_u @ to_u
        return matrix

    def _basis(self, order: int) -> Float64Array:
        """Return float64 (b, 2, order): how each number moves each block, to first order."""
        x, y = self.u.T
        one, none = np.ones_like(x), np.zeros_like(x)
        columns = [(one, none), (none, one), (x, y), (-y, x), (x, -y), (y, x), (x * x, x * y), (x * y, y * y)]
        return np.array(columns[:order]).transpose(2, 1, 0)


_CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def _spline(t: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the weights, float64 (b, 4), of the four pixels around a position t, 0..1 between the middle two, in a
    cubic B-spline, in its slope and in its bend."""
    r = 1 - t
    value = [r**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * r**3 - 6 * r**2 + 4) / 6, t**3 / 6]
    slope = [-(r**2) / 2, (3 * t**2 - 4 * t) / 2, (4 * r - 3 * r**2) / 2, t**2 / 2]
    bend = [r, 3 * t - 2, 3 * r - 2, t]
    return tuple(np.stack(weights, axis=1) for weights in (value, slope, bend))  # type: ignore[return-value]


def _curvature(bends: Float64Array) -> Float64Array:
    """Return float64 (b, 2, 2), how sharply surfaces with the second derivatives (xx, xy, yy) fall off: minus the
    Hessian, less what of it rises, so that a Newton step goes up everywhere."""
    matrices = -bends[:, [0, 1, 1, 2]].reshape(-1, 2, 2)
    values, vectors = np.linalg.eigh(matrices)
    falling: Float64Array = np.einsum("bij,bj,bkj->bik", vectors, np.maximum(values, 0.0), vectors)
    return falling


def _scaled(size: Size, width: int) -> Size:
    """Return a size of at most this width, the aspect kept."""
    factor = min(1.0, width / size[0])
    return round(size[0] * factor), round(size[1] * factor)


def _reduced(image: UInt8Image, size: Size) -> UInt8Image:
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _scaled_to_one(matrix: Float64Array) -> Float64Array:
    return matrix / matrix[2, 2]
