"""A camera pair whose registration is known: the scene world seen through a planted homography and time offset."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.scenes import SceneSettings, Sequence, StampedRgb, TimeOfDay, Timing
from md_perception.sensing.alignment import StampedImage
from md_perception.sensing.edges import resized_matrix

Matrix = npt.NDArray[np.float64]

SIZE = (320, 256)
THERMAL_SIZE = (160, 128)


def planted_homography(
    zoom: float = 1.0,
    turn_deg: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    tilt: float = 0.0,
    rgb_size: tuple[int, int] = SIZE,
    size: tuple[int, int] = THERMAL_SIZE,
) -> Matrix:
    """Return RGB pixels to thermal pixels of a camera with a longer lens, turned, moved and tilted.

    shift: thermal px. tilt: change of scale over the width of the thermal image.
    """
    same_view = resized_matrix(size[0] / rgb_size[0], size[1] / rgb_size[1])
    middle = ((size[0] - 1) / 2, (size[1] - 1) / 2)
    turned = np.vstack([cv2.getRotationMatrix2D(middle, turn_deg, zoom), [0, 0, 1]])
    turned[:2, 2] += shift
    leaning = np.array([[1, 0, 0], [0, 1, 0], [tilt / size[0], 0, 1]])
    matrix = leaning @ turned @ same_view
    return matrix / matrix[2, 2]


def seen_by_thermal(image: npt.NDArray[np.uint8], homography: Matrix, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return what a thermal camera with this homography shows of an image in RGB's geometry, averaged as it does."""
    height, width = image.shape
    to_large = resized_matrix(width / size[0], height / size[1])
    large = cv2.warpPerspective(image, to_large @ homography, (width, height), borderMode=cv2.BORDER_REFLECT)
    return cv2.resize(large, size, interpolation=cv2.INTER_AREA)


def distances_px(found: Matrix, planted: Matrix, size: tuple[int, int] = THERMAL_SIZE) -> npt.NDArray[np.float64]:
    """Return how far a homography is off, thermal px, on a grid over the thermal image."""
    width, height = size
    grid = np.stack(np.meshgrid(np.linspace(0.05, 0.95, 6) * width, np.linspace(0.05, 0.95, 5) * height), axis=-1)
    points = grid.reshape(1, -1, 2)
    in_rgb = cv2.perspectiveTransform(points, np.linalg.inv(planted))
    return np.hypot(*(cv2.perspectiveTransform(in_rgb, found) - points)[0].T)


@dataclass(frozen=True)
class Drive:
    """Images of a drive, both cameras with the same geometry. rgb: grey."""

    rgb: tuple[StampedImage, ...]
    thermal: tuple[StampedImage, ...]

    def through(self, homography: Matrix, delay_s: float = 0.0, every: int = 1) -> list[StampedImage]:
        """Return the thermal images of a camera with this homography whose stamps are late."""
        late_ns = round(delay_s * 1e9)
        return [
            StampedImage(frame.stamp_ns + late_ns, seen_by_thermal(frame.image, homography, THERMAL_SIZE))
            for frame in self.thermal[::every]
        ]


@cache
def drive(time_of_day: TimeOfDay, seed: int = 3, seconds: float = 2.5) -> Drive:
    """Return a drive through the scene world without the misalignment that it usually has."""
    settings = SceneSettings(size=SIZE, time_of_day=time_of_day, thermal_misalignment_px=0.0, smoke=False)
    rgb, thermal = [], []
    for frame in Sequence(seed, settings, Timing(), duration_s=seconds):
        if isinstance(frame, StampedRgb):
            rgb.append(StampedImage(frame.stamp_ns, cv2.cvtColor(frame.view.image, cv2.COLOR_RGB2GRAY)))
        else:
            thermal.append(StampedImage(frame.stamp_ns, frame.view.agc))
    return Drive(tuple(rgb), tuple(thermal))
