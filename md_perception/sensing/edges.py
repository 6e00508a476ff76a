"""Edges that look alike in RGB and thermal: the measure behind the calibration and the misalignment monitor.

What is bright in RGB may be dark in thermal, but the outline of a thing has the same direction in both. The doubled
angle of the gradient is the same for both signs of contrast, so that fields of it can be correlated across the
spectrum (orientation correlation, Fitch et al., BMVC 2002, with the angle doubled).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.results import Float32Array, UInt8Image

Complex64Array = npt.NDArray[np.complex64]
Float64Array = npt.NDArray[np.float64]

_BLUR_PX = 1.0
_NEIGHBOURHOOD_PX = 6.0
"""Edges are weighed against those around them: a lamp does not outshout the street."""

_NOISE_FLOOR = 1.0
"""Gradient, grey values of 255 times 8 px, that counts as nothing."""

MARGIN_PX = 3
"""Width of the frame that the filters spoil; the field is zero there."""


def grey(image: UInt8Image) -> UInt8Image:
    """Return uint8 (H, W) of uint8 (H, W) or RGB (H, W, 3)."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) if image.ndim == 3 else image


def edge_field(image: npt.NDArray[np.uint8], valid: npt.NDArray[np.uint8] | None = None) -> Complex64Array:
    """Return complex64 (h, w): strength of the edge at each pixel, and twice its direction as the angle.

    image: uint8 (h, w). valid: uint8 (h, w), 0 where the image shows nothing; its rim is no edge.
    Strength is relative to the neighbourhood, about 0..3, and 0 along the border and where nothing is shown.
    """
    smooth = cv2.GaussianBlur(np.asarray(image, np.float32), (0, 0), _BLUR_PX)
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3)
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3)
    shown = np.zeros(image.shape, np.uint8)
    shown[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX] = 1
    if valid is not None:
        size = 2 * MARGIN_PX + 1
        shown &= cv2.erode((valid > 0).astype(np.uint8), np.ones((size, size), np.uint8))
        dx, dy = dx * shown, dy * shown
    energy = dx * dx + dy * dy
    floor = _NOISE_FLOOR + 0.05 * float(np.sqrt(energy.mean()))
    around = np.sqrt(cv2.GaussianBlur(energy, (0, 0), _NEIGHBOURHOOD_PX)) + floor
    weight = shown / ((np.sqrt(energy) + np.float32(1e-6)) * around)
    field = np.empty(image.shape, np.complex64)
    field.real = (dx * dx - dy * dy) * weight
    field.imag = 2 * dx * dy * weight
    return field


def correlation(first: Complex64Array, second: Complex64Array) -> Float32Array:
    """Return how well the second field fits the first when shifted, for every (cyclic) shift.

    first, second: complex64 (..., h, w). Returns float32 (..., h, w), 1 for equal fields, 0 where one has no edge at
    all, the shift (0, 0) in the middle, at [h // 2, w // 2]: a peak at [h // 2 + dy, w // 2 + dx] says that what is at
    (x, y) in the first is at (x + dx, y + dy) in the second.
    """
    spectrum = np.conj(np.fft.fft2(first)) * np.fft.fft2(second)
    surface = np.fft.fftshift(np.fft.ifft2(spectrum).real, axes=(-2, -1))
    energy = np.sqrt(
        np.sum(np.abs(first) ** 2, axis=(-2, -1), keepdims=True)
        * np.sum(np.abs(second) ** 2, axis=(-2, -1), keepdims=True)
    )
    return (surface / np.maximum(energy, 1e-6)).astype(np.float32)


@dataclass(frozen=True)
class Peak:
    """The summit of a correlation surface.

    shift: (dx, dy) px. height: of the surface there. distinctness: how many standard deviations of the surface it
    stands out. inside: whether it is a summit, not the slope of one that lies beyond the search.
    """

    shift: tuple[float, float]
    height: float
    distinctness: float
    inside: bool


def find_peak(surface: Float32Array, reach: tuple[int, int]) -> Peak:
    """Return the highest summit of a surface (h, w) of `correlation` within a shift of `reach` (x, y) px.

    The shift is refined between the pixels by a parabola in each direction.
    """
    height, width = surface.shape
    reach_x, reach_y = min(reach[0], (width - 1) // 2), min(reach[1], (height - 1) // 2)
    left, top = width // 2 - reach_x, height // 2 - reach_y
    near = surface[top : top + 2 * reach_y + 1, left : left + 2 * reach_x + 1]
    row, column = (int(i) for i in np.unravel_index(int(near.argmax()), near.shape))
    inside = 0 < row < near.shape[0] - 1 and 0 < column < near.shape[1] - 1
    dx = _vertex(near[row, column - 1 : column + 2]) if inside else 0.0
    dy = _vertex(near[row - 1 : row + 2, column]) if inside else 0.0
    spread = float(surface.std())
    height_there = float(near[row, column])
    return Peak(
        (column - reach_x + dx, row - reach_y + dy),
        height_there,
        (height_there - float(surface.mean())) / spread if spread > 0 else 0.0,
        inside,
    )


def _vertex(values: npt.NDArray[np.float32]) -> float:
    """Return where between -0.5 and 0.5 the parabola through three values has its summit."""
    before, middle, after = (float(value) for value in values)
    bend = before - 2 * middle + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))


def resized_matrix(factor_x: float, factor_y: float) -> Float64Array:
    """Return float64 (3, 3): pixel coordinates of an image to those of the image resized by these factors."""
    return np.array([[factor_x, 0, 0.5 * factor_x - 0.5], [0, factor_y, 0.5 * factor_y - 0.5], [0, 0, 1]])


def onto_thermal(
    rgb: UInt8Image, rgb_to_thermal: npt.ArrayLike, size: tuple[int, int]
) -> tuple[UInt8Image, UInt8Image]:
    """Return a grey RGB image as the thermal camera would see it, and where it shows anything.

    rgb: uint8 (H, W). rgb_to_thermal: (3, 3), pixels of this image to pixels of an image of `size` (width, height).
    Fine detail is averaged away first, as a coarse detector does, so that it does not alias.
    Returns uint8 (h, w) and uint8 (h, w), 255 where RGB reaches, else 0.
    """
    matrix = np.asarray(rgb_to_thermal, np.float64)
    height, width = rgb.shape
    # Pixels of RGB that fall on one thermal pixel, in the middle of the image.
    middle = np.array([width / 2, height / 2, 1.0])
    depth = matrix[2] @ middle
    along = (matrix[:2, :2] - np.outer(matrix[:2] @ middle / depth, matrix[2, :2])) / depth
    factor = min(1.0, float(np.sqrt(abs(np.linalg.det(along)))))
    small = (max(8, round(width * factor)), max(8, round(height * factor)))
    if small != (width, height) and factor < 0.75:
        matrix = matrix @ np.linalg.inv(resized_matrix(small[0] / width, small[1] / height))
        rgb = np.asarray(cv2.resize(rgb, small, interpolation=cv2.INTER_AREA), np.uint8)
    seen = cv2.warpPerspective(rgb, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shown = cv2.warpPerspective(np.full(rgb.shape, 255, np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
    return np.asarray(seen, np.uint8), np.asarray(shown, np.uint8)
