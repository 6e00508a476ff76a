"""Registration of the two cameras: the matrix that tells the student where to sample thermal for each RGB pixel.

A homography is exact for one plane, or for everything far away, and for lenses without distortion. Things at another
distance are displaced by parallax (focal length x baseline x difference of the inverse distances, px), which no single
matrix can undo; lens distortion neither. What distortion is left over is measured here and refused when it is large.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.results import Camera, Float32Array, Size

Source = Literal["homography", "camera_info_raw", "camera_info_rect"]
"""Where the registration comes from: a matrix (or, without one, equal fields of view); or the CameraInfo messages of
both cameras, whose images arrive raw or rectified."""

LARGEST_DISTORTION = 0.01
"""Lens distortion that a homography leaves over is refused above this, as a share of the thermal image's width."""

_CAMERAS: tuple[Camera, ...] = ("rgb", "thermal")
_Float64Array = npt.NDArray[np.float64]


def sampling_matrix(rgb_size: Size, thermal_size: Size, homography: npt.ArrayLike | None = None) -> Float32Array:
    """Return the homography from RGB pixel coordinates to thermal pixel coordinates, the graph's `rgb_to_thermal`.

    rgb_size, thermal_size: (width, height) px of the images as they arrive.
    homography: (3, 3) or nine numbers in row order, between these two images; None: both cameras see the same field of
    view, so that thermal is only scaled: x_t = (x_r + 0.5) * w / W - 0.5, and likewise y.
    Returns float32 (3, 3), pixel centres at integer coordinates, lower right element 1 where it can be.
    Raises ValueError where the homography is not one, or where the RGB image crosses its horizon.
    """
    (rgb_w, rgb_h), (thermal_w, thermal_h) = rgb_size, thermal_size
    if homography is None:
        scale_x, scale_y = thermal_w / rgb_w, thermal_h / rgb_h
        return np.array(
            [[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5], [0, 0, 1]],
            np.float32,
        )
    matrix = np.asarray(homography, np.float64)
    if matrix.size != 9 or not np.isfinite(matrix).all():
        raise ValueError(f"a homography is nine finite numbers in row order, got {np.asarray(homography).tolist()}")
    matrix = matrix.reshape(3, 3)
    if abs(np.linalg.det(matrix / np.abs(matrix).max(initial=1e-300))) < 1e-12:
        raise ValueError(f"the homography {matrix.tolist()} is singular: it maps the image onto a line or a point")
    corners = np.array([[0, 0, 1], [rgb_w - 1, 0, 1], [0, rgb_h - 1, 1], [rgb_w - 1, rgb_h - 1, 1]], np.float64)
    depth = corners @ matrix[2]
    if depth.min() <= 0 <= depth.max():
        raise ValueError(
            f"the homography {matrix.tolist()} has its horizon inside the {rgb_w}x{rgb_h} RGB image: it was made for "
            "another image size or direction (it has to map RGB pixels to thermal pixels)"
        )
    # The graph divides by the third coordinate, so any scale would do; one with positive depth is easiest to read.
    return (matrix / (matrix[2, 2] if matrix[2, 2] != 0 else depth[0])).astype(np.float32)


class RegistrationError(ValueError):
    """Cameras that cannot be registered as asked; the text says what is missing and what to do."""


class NoCalibration(RegistrationError):
    """What the cameras say of themselves is missing or of no use: nothing is wrong with the images, and a CameraInfo
    that comes later may be usable."""


@dataclass(frozen=True)
class CameraGeometry:
    """One camera as its sensor_msgs/CameraInfo describes it, in pixels of the images that it sends.

    size: (width, height) px, after binning and region of interest. model: distortion model, "" for none.
    k: raw intrinsics, 3 x 3. d: distortion coefficients. r: rectifying rotation, 3 x 3. p: projection of rectified
    images, 3 x 4, whose last column carries the baseline. All in row order.
    """

    size: Size
    model: str
    k: tuple[float, ...]
    d: tuple[float, ...]
    r: tuple[float, ...]
    p: tuple[float, ...]

    @classmethod
    def of(cls, info: Any, topic: str = "camera_info") -> "CameraGeometry":
        """Read a sensor_msgs/CameraInfo of rclpy or rosbags. topic: for error texts. Raises NoCalibration."""
        k, d, r, p = (tuple(float(value) for value in values) for values in (info.k, info.d, info.r, info.p))
        if not all(map(math.isfinite, (*k, *d, *r, *p))):
            raise NoCalibration(f"{topic} has numbers that are not finite: calibrate the camera again")
        if k[0] <= 0 or k[4] <= 0:
            raise NoCalibration(
                f"{topic} is uncalibrated (K begins with {k[0]:g}): calibrate the camera (camera_calibration)"
            )
        if info.distortion_model not in _MODELS:
            raise NoCalibration(
                f"{topic} has the distortion model {info.distortion_model!r}: calibrate the camera for one of "
                f"{', '.join(filter(None, _MODELS))}"
            )
        allowed = _MODELS[info.distortion_model]
        if len(d) not in allowed and any(d):
            raise NoCalibration(
                f"{topic} has {len(d)} coefficients of {info.distortion_model}: {' or '.join(map(str, allowed))} are "
                "needed; calibrate the camera again"
            )
        # Drivers of a single camera may leave R and P empty.
        if not any(r):
            r = tuple(np.eye(3).reshape(-1).tolist())
        rotation = np.reshape(r, (3, 3))
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=0.01) or np.linalg.det(rotation) < 0:
            raise NoCalibration(f"{topic} has an R that is no rotation ({list(r)}): calibrate the camera again")
        if p[0] <= 0 or p[5] <= 0:
            p = (*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0)
        size, to_sent = sent_pixels(info)
        sent_k, sent_p = to_sent @ np.reshape(k, (3, 3)), to_sent @ np.reshape(p, (3, 4))
        if not (np.linalg.det(sent_k) and np.linalg.det(sent_p[:, :3])):
            raise NoCalibration(
                f"{topic} has a K or a P that maps the view onto a line ({list(k)}, {list(p)}): calibrate the camera "
                "again"
            )
        k, p = (tuple(matrix.reshape(-1).tolist()) for matrix in (sent_k, sent_p))
        return cls(size, info.distortion_model if any(d) else "", k, d if any(d) else (), r, p)

    @property
    def intrinsics(self) -> _Float64Array:
        """K, float64 (3, 3)."""
        return np.reshape(self.k, (3, 3))

    @property
    def rotation(self) -> _Float64Array:
        """R, float64 (3, 3)."""
        return np.reshape(self.r, (3, 3))

    @property
    def projection(self) -> _Float64Array:
        """K of rectified images, float64 (3, 3)."""
        return np.reshape(self.p, (3, 4))[:, :3]

    @property
    def offset_m(self) -> _Float64Array:
        """Where the origin of the rig lies, seen from this camera, float64 (3,), m, in rectified axes."""
        return np.linalg.solve(self.projection, np.reshape(self.p, (3, 4))[:, 3])

    @property
    def _coefficients(self) -> _Float64Array:
        return np.array(self.d or (0.0,) * 4)

    def rays(self, pixels: _Float64Array) -> _Float64Array:
        """Return float64 (n, 3), directions in rectified axes with z = 1, of raw pixels (n, 2).

        NaN where the lens model cannot be inverted.
        """
        points = pixels.reshape(-1, 1, 2)
        undistort = cv2.fisheye.undistortPoints if self.model == "equidistant" else cv2.undistortPoints
        flat = undistort(points, self.intrinsics, self._coefficients).reshape(-1, 2)
        straight = np.column_stack([flat, np.ones(len(flat))])
        back = self._distorted(straight)
        straight[~(np.hypot(*(back - pixels).T) < 0.5)] = np.nan  # where the iteration went astray
        turned: _Float64Array = straight @ self.rotation.T
        return turned / turned[:, 2:]

    def pixels(self, rays: _Float64Array) -> _Float64Array:
        """Return float64 (n, 2), raw pixels of directions (n, 3) in rectified axes."""
        return self._distorted(rays @ self.rotation)

    def _distorted(self, rays: _Float64Array) -> _Float64Array:
        none = np.zeros(3)
        points = np.ascontiguousarray(rays).reshape(-1, 1, 3)
        project = cv2.fisheye.projectPoints if self.model == "equidistant" else cv2.projectPoints
        arguments = (none, none, self.intrinsics, self._coefficients)
        return np.asarray(project(points, *arguments)[0], np.float64).reshape(-1, 2)


def sent_pixels(info: Any) -> tuple[Size, _Float64Array]:
    """Return (width, height) px of the images that belong to a sensor_msgs/CameraInfo, after region of interest and
    binning, and float64 (3, 3): pixels of the whole sensor, in which K and P are, to theirs.
    """
    width, height, to_sent = int(info.width), int(info.height), np.eye(3)
    roi = info.roi
    if roi.width and roi.height:
        width, height = int(roi.width), int(roi.height)
        to_sent = np.array([[1.0, 0, -roi.x_offset], [0, 1, -roi.y_offset], [0, 0, 1]])
    for axis, binning in enumerate((max(1, int(info.binning_x)), max(1, int(info.binning_y)))):
        scale = np.eye(3)
        scale[axis, axis], scale[axis, 2] = 1 / binning, 0.5 / binning - 0.5
        to_sent = scale @ to_sent
    return (width // max(1, int(info.binning_x)), height // max(1, int(info.binning_y))), to_sent


_MODELS: dict[str, tuple[int, ...]] = {
    "": (0,),
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
}
"""Distortion models and how many coefficients they have."""


@dataclass(frozen=True)
class Rectification:
    """The homography that CameraInfo messages give.

    homography: float64 (3, 3), RGB pixels to thermal pixels. distortion_px: largest distance, thermal px, to where the
    lenses really map a point of the plane. aligned: False where the messages do not say how the cameras stand to each
    other, so that parallel axes and no baseline were assumed.
    """

    homography: _Float64Array
    distortion_px: float
    aligned: bool


def rectification(
    rgb: CameraGeometry, thermal: CameraGeometry, *, rectified: bool = False, distance_m: float = math.inf
) -> Rectification:
    """Return the homography from RGB to thermal pixels of the plane that faces the cameras at a distance.

    Both CameraInfo messages have to come from one stereo calibration: R turns both into the same axes, and P carries
    the baseline. rectified: whether the images are (image_rect), so that R and distortion are in them already.
    distance_m: of the plane; infinite: for all that is far away.
    For raw images with distortion, the homography that comes nearest to the lenses over the common view.
    Raises NoCalibration where the views do not overlap, or distortion leaves more than LARGEST_DISTORTION.
    """
    baseline = thermal.offset_m - rgb.offset_m
    shift = np.eye(3)
    shift[:, 2] += baseline / distance_m
    aligned = bool(np.any(baseline)) or not (np.allclose(rgb.r, np.eye(3).ravel()) and rgb.r == thermal.r)
    if rectified:
        matrix = thermal.projection @ shift @ np.linalg.inv(rgb.projection)
    else:
        to_thermal = thermal.intrinsics @ thermal.rotation.T
        matrix = to_thermal @ shift @ rgb.rotation @ np.linalg.inv(rgb.intrinsics)
    left_over = 0.0
    if not rectified and (rgb.d or thermal.d):
        (width, height), thermal_size = rgb.size, np.array(thermal.size)
        grid = np.stack(np.meshgrid(np.linspace(0, width - 1, 33), np.linspace(0, height - 1, 25)), axis=-1)
        pixels = grid.reshape(-1, 2)
        there = thermal.pixels(rgb.rays(pixels) @ shift.T)
        # A lens model bends far rays back into the image: only what the straight matrix sees nearby is real.
        straight = cv2.perspectiveTransform(pixels[None], matrix)[0]
        seen = np.all((there > -0.5) & (there < thermal_size - 0.5), axis=1)
        seen &= np.hypot(*(there - straight).T) < 0.25 * thermal_size[0]
        if seen.sum() < 20:
            raise NoCalibration(
                "by their CameraInfo messages, the cameras hardly see the same: see that both come from one stereo "
                "calibration, or set registration.source to 'homography' and run md_calibrate"
            )
        matrix = cv2.findHomography(pixels[seen], there[seen], 0)[0]
        if matrix is None:  # so many points, and all on a line
            raise NoCalibration(
                "by their CameraInfo messages, the cameras see a line of each other's images: calibrate them again, or "
                "set registration.source to 'homography' and run md_calibrate"
            )
        fitted = cv2.perspectiveTransform(pixels[seen][None], matrix)[0]
        left_over = float(np.hypot(*(fitted - there[seen]).T).max())
        if left_over > LARGEST_DISTORTION * thermal_size[0]:
            raise NoCalibration(
                f"the lenses' distortion leaves {left_over:.1f} thermal px that no homography can take away: publish "
                "rectified images (image_proc), remap rgb/image_raw and thermal/image_raw to them, and set "
                "registration.source to 'camera_info_rect'"
            )
    return Rectification(matrix / matrix[2, 2], left_over, aligned)


@dataclass(frozen=True)
class RegistrationSettings:
    """Where the sampling matrix comes from.

    homography: nine numbers, RGB pixels to thermal pixels, for source `homography`; None: same field of view.
    sizes: width and height of the RGB and of the thermal images that it was made for, px; None: not known.
    distance_m: of the plane for which CameraInfo is made exact; infinite: for what is far away.
    """

    source: Source = "homography"
    homography: npt.ArrayLike | None = None
    sizes: tuple[int, int, int, int] | None = None
    distance_m: float = math.inf

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"registration.source {self.source!r}: use one of {', '.join(get_args(Source))}")
        if self.source != "homography" and self.homography is not None:
            raise ValueError(
                f"registration.source is {self.source!r}, but registration.homography is given too: set it to zeros, "
                "or set registration.source to 'homography'"
            )
        if not self.distance_m > 0:
            raise ValueError(f"registration.distance_m must be above 0, got {self.distance_m}")


class Registration:
    """The sampling matrix of one camera pair, from a homography or from what the cameras say of themselves.

    Thread-safe: callbacks note CameraInfo messages, the worker asks for the matrix.
    """

    def __init__(self, settings: RegistrationSettings = RegistrationSettings()) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._cameras: dict[Camera, CameraGeometry] = {}
        self._faults: dict[Camera, str] = {}
        self._rectified: Rectification | str | None = None  # str: why these CameraInfo messages give none
        self._matrices: dict[tuple[Size, Size], Float32Array] = {}

    @property
    def uses_camera_info(self) -> bool:
        """Whether CameraInfo messages are needed."""
        return self.settings.source != "homography"

    def note_camera_info(self, camera: Camera, info: Any, topic: str = "camera_info") -> None:
        """Take note of a sensor_msgs/CameraInfo; one that says what the last one said costs next to nothing."""
        try:
            found = CameraGeometry.of(info, topic)
        except NoCalibration as error:
            with self._lock:
                self._faults[camera] = f"{error}, or set registration.source to 'homography' and run md_calibrate"
                self._matrices = {}
            return
        with self._lock:
            self._faults.pop(camera, None)
            if self._cameras.get(camera) != found:
                self._cameras[camera] = found
                self._rectified = None
                self._matrices = {}

    def matrix(self, rgb_size: Size, thermal_size: Size) -> Float32Array:
        """Return float32 (3, 3), the graph's `rgb_to_thermal`, for images of these sizes, (width, height) px.

        Raises RegistrationError, or sampling_matrix's ValueError.
        """
        with self._lock:
            sizes = (rgb_size, thermal_size)
            if sizes not in self._matrices:
                self._matrices = {sizes: sampling_matrix(rgb_size, thermal_size, self._homography(sizes))}
            return self._matrices[sizes]

    def problem(self, rgb_size: Size | None, thermal_size: Size | None) -> str:
        """Return why `matrix` has none for images of these sizes, with the cure; "" where it has.

        None, or 0 as in a damaged header: a size that is not known, for which nothing is said.
        """
        try:
            if rgb_size and thermal_size and all((*rgb_size, *thermal_size)):
                self.matrix(rgb_size, thermal_size)
            else:
                with self._lock:
                    self._homography(None)
        except ValueError as error:
            return str(error)
        return ""

    def registers(self, rgb_size: Size | None, thermal_size: Size | None) -> bool:
        """Return whether images of these sizes, (width, height) px, can be registered; None: not known yet."""
        return not self.problem(rgb_size, thermal_size)

    def warnings(self) -> list[str]:
        """Return what a user should know of the registration in use, with the cure."""
        with self._lock:
            texts = list(self._faults.values())
            missing = [camera for camera in _CAMERAS if camera not in self._cameras and camera not in self._faults]
            if self.uses_camera_info and missing:
                texts.append(self._waits_for(missing))
            found = self._rectified
            if isinstance(found, str):
                texts.append(found)
            if not isinstance(found, Rectification):
                return texts
            if not found.aligned:
                texts.append(
                    "the CameraInfo messages do not say how the cameras stand to each other (R is the identity and P "
                    "has no baseline), so parallel axes are assumed: calibrate them as a stereo pair, or run "
                    "md_calibrate"
                )
            if found.distortion_px > 0.5:
                texts.append(
                    f"the lenses' distortion leaves up to {found.distortion_px:.1f} thermal px: rectified images and "
                    "registration.source 'camera_info_rect' would leave none"
                )
            return texts

    def _waits_for(self, cameras: Sequence[Camera]) -> str:
        topics = " and ".join(f"{camera}/camera_info" for camera in cameras)
        return (
            f"registration.source is {self.settings.source!r}, but nothing came on {topics} yet: let the driver "
            "publish it or remap the topic, or set registration.source to 'homography'"
        )

    def _homography(self, sizes: tuple[Size, Size] | None) -> npt.ArrayLike | None:
        """Return the homography, None where the fields of view are equal. sizes: of both images; None: not checked."""
        settings = self.settings
        if not self.uses_camera_info:
            found = sizes and (*sizes[0], *sizes[1])
            if settings.homography is not None and settings.sizes and found and settings.sizes != found:
                raise RegistrationError(
                    "registration.homography was made for RGB {}x{} and thermal {}x{}, but the images are {}x{} and "
                    "{}x{}: run md_calibrate again, or set the cameras as they were".format(*settings.sizes, *found)
                )
            return settings.homography
        for camera, size in zip(_CAMERAS, sizes or (None, None), strict=True):
            if camera in self._faults:
                raise NoCalibration(self._faults[camera])
            if camera not in self._cameras:
                raise NoCalibration(self._waits_for([camera]))
            described = self._cameras[camera].size
            if size is not None and described != size:
                raise RegistrationError(
                    f"{camera}/camera_info describes images of {described[0]}x{described[1]} px, but they are "
                    f"{size[0]}x{size[1]}: remap {camera}/camera_info to the topic that belongs to the images"
                )
        if self._rectified is None:
            try:
                self._rectified = rectification(
                    self._cameras["rgb"],
                    self._cameras["thermal"],
                    rectified=settings.source == "camera_info_rect",
                    distance_m=settings.distance_m,
                )
            except NoCalibration as error:
                self._rectified = str(error)
        if isinstance(self._rectified, str):
            raise NoCalibration(self._rectified)
        return self._rectified.homography
