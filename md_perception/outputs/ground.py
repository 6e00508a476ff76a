"""Obstacles in metres, from boxes and masks: by a flat-ground model, or by depth where there is a registered one.

The foot of an obstacle (the lower edge of its box, the lowest pixel of a column of the mask) is seen along a ray that
meets the ground at the obstacle's distance. That is as good as the ground is flat and the camera's pitch is known: with
a camera h above the ground, a ray that is wrong by e radians is wrong by about d * d / h * e at the distance d. Every
point carries this as its sigma.

Base frame (REP 103): x forward, y left, z up, metres; the ground is the plane z = ground_z_m. Optical frame: x right,
y down, z forward. Pixel centres lie at integer coordinates, so that the lower edge of a box with an exclusive bottom b
lies at row b - 0.5.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from md_perception.results import Detections, Float32Array, Segmentation
from md_perception.sensing.registration import CameraGeometry

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Evidence = Literal["both", "complementary", "detections", "mask"]
"""What obstacles are made from; complementary: detections, and the mask for classes that are not detected."""

_MAX_RAYS = 720
"""Bearings that are told apart at most, for clearing and scans."""

_RANGES = 64
"""Distances at which it is looked up whether the camera sees the ground there."""

_EDGE_POINTS = 64
"""Points along the foot of one box, at most."""

_BELOW_THE_IMAGE = 0.5
"""Sigma of an obstacle whose foot lies below the image, as a share of the distance of the nearest ground in view."""

_LARGEST_ROLL_RAD = math.radians(60)
"""Beyond it the lower edge of a box is not where a thing stands."""

_DEPTH_LIMIT_M = 0.05
"""Depths below this are no measurement."""


@dataclass(frozen=True)
class ClassGroup:
    """Classes whose obstacles share a topic. name: last part of that topic. classes: of detections, masks or both."""

    name: str
    classes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "ClassGroup":
        """Read `name=class,class,...`. Raises ValueError."""
        name, equals, rest = text.partition("=")
        classes = tuple(part.strip() for part in rest.split(","))
        if not equals or not all(classes) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name.strip()):
            raise ValueError(
                f"{text!r} is no class group: write a topic name, an equals sign and classes, as in "
                "'vehicles=car,bicycle'"
            )
        return cls(name.strip(), classes)

    def ids(self, classes: Sequence[str]) -> tuple[int, ...]:
        """Return the ids of this group's classes in a class list; classes that the list lacks have none."""
        return tuple(index for index, name in enumerate(classes) if name in self.classes)


@dataclass(frozen=True)
class GroundSettings:
    """How obstacles are placed, and how many points are made of them.

    max_range_m: horizontal distance from the camera beyond which nothing is placed.
    horizon_margin_rad: rays that fall by less than this meet no ground.
    pixel_sigma_px, box_sigma, pitch_sigma_rad: standard deviations of the foot in the image (px, and as a share of the
    box's height, which adds to it) and of the camera's pitch. depth_sigma: of depth, as a share of it.
    spacing_m: distance of points along an obstacle; of several in one square of this size the nearest is kept.
    max_points: of each group; the nearest are kept. point_height_m: how high above the ground points lie, for
    consumers drop what is on the ground (Nav2's min_obstacle_height).
    mask_minimum_px: pixels of a class group that a column of the mask needs. mask_minimum_confidence: probability, 0 to
    1, from which a pixel of the mask counts.
    """

    max_range_m: float = 20.0
    horizon_margin_rad: float = math.radians(1.0)
    pixel_sigma_px: float = 2.5
    box_sigma: float = 0.02
    pitch_sigma_rad: float = math.radians(0.3)
    depth_sigma: float = 0.02
    spacing_m: float = 0.1
    max_points: int = 2000
    point_height_m: float = 0.5
    mask_minimum_px: int = 4
    mask_minimum_confidence: float = 0.8

    def __post_init__(self) -> None:
        for name in ("max_range_m", "spacing_m", "max_points", "mask_minimum_px"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("horizon_margin_rad", "pixel_sigma_px", "box_sigma", "pitch_sigma_rad", "depth_sigma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.mask_minimum_confidence <= 1:
            raise ValueError(f"mask_minimum_confidence must be in 0..1, got {self.mask_minimum_confidence}")


@dataclass(frozen=True)
class CameraPose:
    """Where a camera is: a point p of its optical frame lies at rotation @ p + position_m in the base frame.

    rotation: 3 x 3 in row order. position_m: (x, y, z). ground_z_m: height of the ground in the base frame.
    """

    rotation: tuple[float, ...]
    position_m: tuple[float, float, float]
    ground_z_m: float = 0.0

    @classmethod
    def mounted(
        cls, position_m: tuple[float, float, float], roll_pitch_yaw_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ) -> "CameraPose":
        """Return the pose of a camera that looks along the base frame's x axis, turned by roll, pitch and yaw.

        As in URDF: about x, then y, then z of the base frame. A positive pitch looks down, a positive yaw to the left;
        with a positive roll the camera leans to its right.
        """
        roll, pitch, yaw = roll_pitch_yaw_rad
        about_x = np.array([[1, 0, 0], [0, math.cos(roll), -math.sin(roll)], [0, math.sin(roll), math.cos(roll)]])
        about_y = np.array([[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]])
        about_z = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
        optical = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        return cls(tuple((about_z @ about_y @ about_x @ optical).reshape(-1).tolist()), position_m)

    @classmethod
    def of_transform(
        cls,
        translation_m: tuple[float, float, float],
        quaternion: tuple[float, float, float, float],
        ground_z_m: float = 0.0,
    ) -> "CameraPose":
        """Return the pose that a transform from the optical frame to the base frame says. quaternion: x, y, z, w."""
        x, y, z, w = np.array(quaternion) / np.linalg.norm(quaternion)
        rotation = (
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        )
        return cls(tuple(float(value) for row in rotation for value in row), translation_m, ground_z_m)

    @property
    def matrix(self) -> Float64Array:
        """The rotation, float64 (3, 3)."""
        return np.reshape(self.rotation, (3, 3))

    @property
    def height_m(self) -> float:
        """Of the camera above the ground."""
        return self.position_m[2] - self.ground_z_m

    def to_base(self, points: Float64Array) -> Float64Array:
        """Turn optical points (N, 3) into base points (N, 3)."""
        result: Float64Array = points @ self.matrix.T + self.position_m
        return result

    def to_optical(self, points: npt.ArrayLike) -> Float64Array:
        """Turn base points (N, 3) into optical points (N, 3)."""
        result: Float64Array = (np.asarray(points, np.float64) - self.position_m) @ self.matrix
        return result


@dataclass(frozen=True)
class GroundPoints:
    """Points above the ground. xyz: float32 (N, 3), m. sigma_m: float32 (N,), standard deviation of the distance."""

    xyz: Float32Array
    sigma_m: Float32Array

    def __len__(self) -> int:
        return len(self.sigma_m)

    @classmethod
    def none(cls) -> "GroundPoints":
        """Return no points."""
        return cls(np.zeros((0, 3), np.float32), np.zeros(0, np.float32))

    @classmethod
    def joined(cls, parts: Sequence["GroundPoints"]) -> "GroundPoints":
        """Return the points of all parts."""
        if not parts:
            return cls.none()
        return cls(np.concatenate([part.xyz for part in parts]), np.concatenate([part.sigma_m for part in parts]))

    def in_optical_frame(self, pose: CameraPose) -> "GroundPoints":
        """Return the same points in the camera's optical frame."""
        return GroundPoints(pose.to_optical(self.xyz).astype(np.float32), self.sigma_m)


class GroundModel:
    """One camera above flat ground. All points that it returns are in the base frame.

    camera: geometry of the images in which boxes and masks lie. rectified: whether these images are, so that the
    projection matrix P holds and no distortion is left; raw images are undistorted point by point.
    Raises ValueError for a camera that is not above the ground, or that lies on its side or upside down.
    """

    def __init__(
        self,
        camera: CameraGeometry,
        pose: CameraPose,
        settings: GroundSettings = GroundSettings(),
        *,
        rectified: bool = False,
    ) -> None:
        if not pose.height_m > 0:
            raise ValueError(
                f"the camera is {pose.height_m:.2f} m above the ground: it has to be above it; see ground.z_m "
                "and the camera's transform or ground.mounting_position"
            )
        across_z, down_z = pose.matrix[2, :2]
        roll = math.atan2(-across_z, -down_z) if math.hypot(across_z, down_z) > 0.1 else 0.0  # none for straight down
        if abs(roll) > _LARGEST_ROLL_RAD:
            raise ValueError(
                f"the camera is rolled by {math.degrees(roll):.0f} degrees: the lower edge of a box is no foot then; "
                "let the driver turn the images upright, and see the camera's transform (frame_id has to be an optical "
                "frame) or ground.mounting_angles"
            )
        self.camera = camera
        self.pose = pose
        self.settings = settings
        self.rectified = rectified

    # From pixels to the ground

    def rays(self, pixels: npt.ArrayLike) -> Float64Array:
        """Return float64 (N, 3), directions in the optical frame with z = 1, of pixels (N, 2); NaN where none is."""
        pixels = np.asarray(pixels, np.float64).reshape(-1, 2)
        if self.camera.d and not self.rectified:
            turned = self.camera.rays(pixels) @ self.camera.rotation  # rays() are in rectified axes
            return turned / turned[:, 2:]
        matrix = self.camera.projection if self.rectified else self.camera.intrinsics
        result: Float64Array = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(matrix).T
        return result / result[:, 2:]

    def at(self, pixels: npt.ArrayLike, sigma_px: npt.ArrayLike | None = None) -> GroundPoints:
        """Return the ground seen at pixels (N, 2), N points; NaN above the horizon and beyond the range.

        sigma_px: (N,) or a number, standard deviation of the row; None: pixel_sigma_px.
        """
        pixels = np.asarray(pixels, np.float64).reshape(-1, 2)
        wrong = self.settings.pixel_sigma_px if sigma_px is None else np.asarray(sigma_px, np.float64)
        directions = self.rays(pixels) @ self.pose.matrix.T
        falls = _depression(directions)
        # How much the ray falls from one row to the next, by the lens at this place
        per_row = np.abs(_depression(self.rays(pixels + (0.0, 0.5)) @ self.pose.matrix.T) - falls) * 2
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(
                falls > max(self.settings.horizon_margin_rad, 1e-9), -self.pose.height_m / directions[:, 2], np.nan
            )
            distance = reach * np.hypot(directions[:, 0], directions[:, 1])
            reach[~(distance <= self.settings.max_range_m)] = np.nan
            sigma = (
                self.pose.height_m
                / np.sin(falls) ** 2
                * np.hypot(np.asarray(wrong) * per_row, self.settings.pitch_sigma_rad)
            )
        xyz = directions * reach[:, None] + self.pose.position_m
        xyz[:, 2] += self.settings.point_height_m
        sigma[np.isnan(reach)] = np.nan
        return GroundPoints(xyz.astype(np.float32), sigma.astype(np.float32))

    # Obstacles by the ground

    def of_boxes(self, boxes: Float32Array) -> GroundPoints:
        """Return points along the feet of boxes, float32 (N, 4) xyxy px of the image.

        An obstacle whose foot lies below the image is placed on the nearest ground in view, with a sigma of half the
        distance to it.
        """
        left, top, right, bottom = np.asarray(boxes, np.float64).reshape(-1, 4).T
        row = np.minimum(bottom, self.camera.size[1]) - 0.5
        sigma_px = np.hypot(self.settings.pixel_sigma_px, self.settings.box_sigma * (bottom - top))
        centre, one, other = (
            self._feet(column, row, sigma_px) for column in (0.5 * (left + right) - 0.5, left, right - 1)
        )
        parts = []
        for index in np.flatnonzero(~np.isnan(centre.sigma_m)):
            ends = np.array([one.xyz[index], other.xyz[index]])
            if np.isnan(ends).any():  # a rolled camera: a corner of the box lies above the horizon
                ends = np.array([centre.xyz[index]] * 2)
            width = float(np.hypot(*(ends[1] - ends[0])[:2]))
            count = min(_EDGE_POINTS, 2 + int(width / self.settings.spacing_m))
            points = np.linspace(ends[0], ends[1], count, dtype=np.float32)
            parts.append(GroundPoints(points, np.full(count, centre.sigma_m[index], np.float32)))
        return GroundPoints.joined(parts)

    def of_pixels(self, members: BoolArray) -> GroundPoints:
        """Return the ground at the lowest pixel of an obstacle in every column of the image; members: bool (H, W).

        A column in which an obstacle goes down to the lower edge of the image is placed like such a box.
        """
        height = members.shape[0]
        columns = np.flatnonzero(np.count_nonzero(members, axis=0) >= self.settings.mask_minimum_px)
        if not len(columns):
            return GroundPoints.none()
        lowest = height - 1 - np.argmax(members[::-1, columns], axis=0)
        points = self._feet(columns, lowest + 0.5, np.full(len(columns), self.settings.pixel_sigma_px))
        kept = ~np.isnan(points.sigma_m)
        return GroundPoints(points.xyz[kept], points.sigma_m[kept])

    def _feet(self, columns: npt.ArrayLike, rows: npt.ArrayLike, sigma_px: Float64Array) -> GroundPoints:
        """Return what stands at these pixels, like `at`; with a wide sigma where the lower edge cuts it off."""
        found = self.at(np.column_stack([columns, rows]), sigma_px)
        cut = np.asarray(rows) > self.camera.size[1] - 1.5
        unknown = _BELOW_THE_IMAGE * self._away(found.xyz)
        return GroundPoints(
            found.xyz, np.where(cut, np.maximum(found.sigma_m, unknown), found.sigma_m).astype(np.float32)
        )

    def _away(self, xyz: npt.NDArray[np.floating]) -> Float64Array:
        """Return the horizontal distance from the camera, (N,), of base points (N, 3)."""
        return np.hypot(xyz[:, 0] - self.pose.position_m[0], xyz[:, 1] - self.pose.position_m[1])

    # Obstacles by depth

    def of_boxes_by_depth(self, boxes: Float32Array, depth_m: Float32Array) -> GroundPoints:
        """Return points along the feet of boxes at the median depth of the middle of each box.

        depth_m: float32 (h, w), along the optical axis, NaN or 0 without a measurement; registered to the image, of any
        size with the same field of view. A box without depth is placed by the ground.
        """
        scale_x, scale_y = depth_m.shape[1] / self.camera.size[0], depth_m.shape[0] / self.camera.size[1]
        parts = []
        for left, top, right, bottom in np.asarray(boxes, np.float64).reshape(-1, 4):
            x, y, dx, dy = 0.5 * (left + right), 0.5 * (top + bottom), 0.25 * (right - left), 0.25 * (bottom - top)
            rows = slice(int((y - dy) * scale_y), 1 + int((y + dy) * scale_y))
            columns = slice(int((x - dx) * scale_x), 1 + int((x + dx) * scale_x))
            inner = depth_m[rows, columns]
            measured = inner[_is_measured(inner)]
            if not len(measured):
                parts.append(self.of_boxes(np.array([[left, top, right, bottom]], np.float32)))
                continue
            depth = float(np.median(measured))
            rays = self.rays([(left, y), (right - 1, y)]) * depth
            count = min(_EDGE_POINTS, 2 + int(abs(rays[1, 0] - rays[0, 0]) / self.settings.spacing_m))
            points = self.pose.to_base(np.linspace(rays[0], rays[1], count))
            points[:, 2] = self.pose.ground_z_m + self.settings.point_height_m
            parts.append(self._within_range(points, np.full(count, self.settings.depth_sigma * depth)))
        return GroundPoints.joined(parts)

    def of_pixels_by_depth(self, members: BoolArray, depth_m: Float32Array) -> GroundPoints:
        """Return the pixels of obstacles that have a depth, at their own height above the ground.

        members, depth_m: as above; the members are sampled at the pixels of the depth image.
        """
        height, width = depth_m.shape
        rows = ((np.arange(height) + 0.5) * members.shape[0] / height).astype(np.intp)
        columns = ((np.arange(width) + 0.5) * members.shape[1] / width).astype(np.intp)
        v, u = np.nonzero(members[np.ix_(rows, columns)] & _is_measured(depth_m))
        depth = depth_m[v, u].astype(np.float64)
        pixels = np.column_stack(
            [(u + 0.5) * self.camera.size[0] / width - 0.5, (v + 0.5) * self.camera.size[1] / height - 0.5]
        )
        points = self.pose.to_base(self.rays(pixels) * depth[:, None])
        return self._within_range(points, self.settings.depth_sigma * depth)

    def _within_range(self, points: Float64Array, sigma_m: Float64Array) -> GroundPoints:
        kept = self._away(points) <= self.settings.max_range_m  # not so for NaN
        return GroundPoints(points[kept].astype(np.float32), sigma_m[kept].astype(np.float32))

    # What all obstacles together say

    def thinned(self, points: GroundPoints) -> GroundPoints:
        """Return the nearest point of each square of spacing_m, nearest first."""
        if not len(points):
            return points
        away = self._away(points.xyz)
        cells = np.floor(points.xyz[:, :2] / self.settings.spacing_m).astype(np.int64)
        cells -= cells.min(axis=0)
        squares = cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1]
        # One sort by square and distance, mm, in one number: of a depth image's pixels two would take twice as long
        order = np.argsort(squares * 2**20 + np.minimum(1e3 * away, 2**20 - 1).astype(np.int64))
        first = order[np.diff(squares[order], prepend=-1) > 0]
        kept = first[np.argsort(away[first], kind="stable")]
        return GroundPoints(points.xyz[kept], points.sigma_m[kept])

    def bounded(self, points: GroundPoints) -> GroundPoints:
        """Return the first max_points of thinned points, which are the nearest."""
        return GroundPoints(points.xyz[: self.settings.max_points], points.sigma_m[: self.settings.max_points])

    @cached_property
    def nearest_ground_m(self) -> float:
        """Distance from below the camera to the nearest ground in view; NaN where it sees none."""
        return float(np.nanmin(self._fan.starts, initial=np.inf)) if len(self._fan.starts) else math.nan

    def clearing_ends(self, obstacles: GroundPoints) -> GroundPoints:
        """Return the ends of the lines, from below the camera, on which there is no obstacle of these; sigma is 0.

        One for each bearing in view, where the view ends, or short of the nearest obstacle by its sigma and a square.
        It says only that none of *these* obstacles is there: what the student does not know, a wall for one, may be.
        So a consumer may take back along these lines what it has marked of these obstacles, and nothing else.
        """
        fan, spacing = self._fan, self.settings.spacing_m
        relative = obstacles.xyz[:, :2].astype(np.float64) - self.pose.position_m[:2]
        nearest, sigma = _nearest_by_bearing(relative, obstacles.sigma_m, fan.bearings, spacing)
        with np.errstate(invalid="ignore"):
            reach = np.fmin(fan.ends, nearest - sigma - spacing)
        kept = reach > fan.starts
        ends = np.column_stack(
            [
                self.pose.position_m[0] + reach * np.cos(fan.bearings),
                self.pose.position_m[1] + reach * np.sin(fan.bearings),
                np.full(len(reach), self.pose.ground_z_m + self.settings.point_height_m),
            ]
        )
        return GroundPoints(ends[kept].astype(np.float32), np.zeros(int(kept.sum()), np.float32))

    def scan(self, obstacles: GroundPoints) -> "ObstacleScan":
        """Return the nearest obstacle at each bearing from the origin of the base frame, as a planar scan.

        NaN, no statement, where there is none: infinity would call free what may be a wall.
        """
        fan = self._fan
        seen = np.concatenate([fan.points(fan.starts, self.pose), fan.points(fan.ends, self.pose)])
        bearings = np.arctan2(seen[:, 1], seen[:, 0]) if len(seen) else np.zeros(1)
        first, last = float(bearings.min()), float(bearings.max())
        grid = np.linspace(first, last, max(2, min(_MAX_RAYS, len(fan.bearings))))
        ranges, _ = _nearest_by_bearing(
            obstacles.xyz[:, :2].astype(np.float64), obstacles.sigma_m, grid, self.settings.spacing_m
        )
        return ObstacleScan(first, float(grid[1] - grid[0]), ranges.astype(np.float32))

    @cached_property
    def _fan(self) -> "_Fan":
        """The bearings in view from below the camera, with the distances between which the ground is seen."""
        width, height = self.camera.size
        columns, rows = np.linspace(-0.5, width - 0.5, 33), np.linspace(-0.5, height - 0.5, 33)
        # What lies within the innermost rays of each border is in view, however the lens bends the border.
        left, right = (self.rays(np.column_stack([np.full(33, x), rows]))[:, 0] for x in (-0.5, width - 0.5))
        top, bottom = (self.rays(np.column_stack([columns, np.full(33, y)]))[:, 1] for y in (-0.5, height - 0.5))
        # fmax, fmin: a strong lens model cannot be inverted in the corners, where rays are NaN
        low = np.array([np.fmax.reduce(left), np.fmax.reduce(top)])
        high = np.array([np.fmin.reduce(right), np.fmin.reduce(bottom)])
        corners = np.array([(x, y, 1.0) for x in (low[0], high[0]) for y in np.linspace(low[1], high[1], 33)])
        directions = corners @ self.pose.matrix.T
        forward = math.atan2(self.pose.matrix[1, 2], self.pose.matrix[0, 2])
        down = directions[_depression(directions) > 0]
        if not len(down):
            return _Fan(np.zeros(0), np.zeros(0), np.zeros(0))
        turned = _wrapped(np.arctan2(down[:, 1], down[:, 0]) - forward)
        span = float(np.ptp(turned))
        count = min(_MAX_RAYS, 2 + int(span * self.settings.max_range_m / self.settings.spacing_m))
        bearings = forward + np.linspace(turned.min(), turned.max(), count)
        ranges = np.geomspace(0.05, self.settings.max_range_m, _RANGES)
        ground = np.stack(
            [
                self.pose.position_m[0] + np.cos(bearings)[:, None] * ranges,
                self.pose.position_m[1] + np.sin(bearings)[:, None] * ranges,
                np.full((count, _RANGES), self.pose.ground_z_m),
            ],
            axis=-1,
        )
        optical = self.pose.to_optical(ground.reshape(-1, 3)).reshape(count, _RANGES, 3)
        with np.errstate(divide="ignore", invalid="ignore"):
            plane = optical[..., :2] / optical[..., 2:]
        eps = 1e-9
        inside = (optical[..., 2] > 0) & (plane >= low - eps).all(-1) & (plane <= high + eps).all(-1)
        falls = np.arctan2(self.pose.height_m, ranges)
        inside &= falls > self.settings.horizon_margin_rad
        seen = inside.any(axis=1)
        first = inside.argmax(axis=1)
        last = _RANGES - 1 - inside[:, ::-1].argmax(axis=1)
        return _Fan(bearings[seen], ranges[first[seen]], ranges[last[seen]])


@dataclass(frozen=True)
class ObstacleScan:
    """Ranges, float32 (N,), m, NaN without an obstacle, at the bearings angle_min + i * angle_increment, rad."""

    angle_min: float
    angle_increment: float
    ranges: Float32Array


@dataclass(frozen=True)
class _Fan:
    """Bearings, float64 (N,), rad in the base frame, ascending, and between which distances the ground is in view."""

    bearings: Float64Array
    starts: Float64Array
    ends: Float64Array

    def points(self, distances: Float64Array, pose: CameraPose) -> Float64Array:
        """Return float64 (N, 2), base points at these distances."""
        return np.column_stack(
            [
                pose.position_m[0] + distances * np.cos(self.bearings),
                pose.position_m[1] + distances * np.sin(self.bearings),
            ]
        )


class ObstacleFinder:
    """From one image's detections and mask to the points of each class group.

    detection_classes, segmentation_classes: of the student, in id order. evidence: what obstacles are made from.
    """

    def __init__(
        self,
        groups: Sequence[ClassGroup],
        detection_classes: Sequence[str],
        segmentation_classes: Sequence[str],
        evidence: Evidence = "both",
    ) -> None:
        """Raise ValueError for a class that the student does not know, a group that the evidence never shows, or two
        groups of one name.
        """
        names = [group.name for group in groups]
        if len(set(names)) != len(names):
            raise ValueError(f"two class groups have the same name: {', '.join(names)}")
        known = {*detection_classes, *segmentation_classes}
        if evidence == "mask":
            detection_classes = ()
        elif evidence == "detections":
            segmentation_classes = ()
        elif evidence == "complementary":  # ids stay what they are
            segmentation_classes = ["" if name in detection_classes else name for name in segmentation_classes]
        self._ids = {group.name: (group.ids(detection_classes), group.ids(segmentation_classes)) for group in groups}
        wanted = {name for group in groups for name in group.classes}
        self._by_box_alone = wanted & {*detection_classes} - {*segmentation_classes}
        self._by_mask_alone = wanted & {*segmentation_classes} - {*detection_classes}
        for group in groups:
            unknown = [name for name in group.classes if name not in known]
            if unknown:
                raise ValueError(
                    f"class group {group.name!r} names {', '.join(unknown)}, which the student does not know: it knows "
                    f"{', '.join(sorted(known))}"
                )
            if not any(self._ids[group.name]):
                raise ValueError(
                    f"class group {group.name!r} would always be empty: {', '.join(group.classes)} cannot be seen with "
                    f"ground.evidence {evidence!r}; set it to 'both', or leave the group out of ground.groups"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(self._ids)

    def find(
        self,
        model: GroundModel,
        detections: Detections | None,
        segmentation: Segmentation | None,
        depth_m: Float32Array | None = None,
    ) -> dict[str, GroundPoints]:
        """Return the points of each group by its name, in the base frame, thinned but not bounded.

        depth_m: as GroundModel takes it; None: by the ground.
        """
        found = {}
        for name, (detected, segmented) in self._ids.items():
            parts = []
            if detections is not None and detected:
                boxes = detections.boxes[np.isin(detections.labels, detected)]
                parts.append(model.of_boxes(boxes) if depth_m is None else model.of_boxes_by_depth(boxes, depth_m))
            if segmentation is not None and segmented:
                members = _members(segmentation, segmented, model.settings.mask_minimum_confidence)
                parts.append(
                    model.of_pixels(members) if depth_m is None else model.of_pixels_by_depth(members, depth_m)
                )
            found[name] = model.thinned(GroundPoints.joined(parts))
        return found

    def looks_for_all(self, detections: Detections | None, segmentation: Segmentation | None) -> bool:
        """Return whether a result with these parts could show every class of the groups.

        Else, as from a student of another mode that has one task only, it says nothing about the obstacles that it
        lacks, and must not clear them.
        """
        return not (segmentation is None and self._by_mask_alone) and not (detections is None and self._by_box_alone)


def _depression(directions: Float64Array) -> Float64Array:
    """Return by how much directions (N, 3) of the base frame fall below the horizontal, rad (N,)."""
    return np.arctan2(-directions[:, 2], np.hypot(directions[:, 0], directions[:, 1]))


def _members(segmentation: Segmentation, ids: Sequence[int], min_confidence: float) -> BoolArray:
    """Return bool (H, W): which pixels of a mask are of these classes, with at least this probability."""
    table = np.zeros(256, np.bool_)
    table[list(ids)] = True
    members: BoolArray = np.take(table, segmentation.mask)
    members &= segmentation.confidence >= round(255 * min_confidence)
    return members


def _is_measured(depth_m: Float32Array) -> BoolArray:
    with np.errstate(invalid="ignore"):
        return np.isfinite(depth_m) & (depth_m > _DEPTH_LIMIT_M)


def _wrapped(angles: Float64Array) -> Float64Array:
    return (angles + np.pi) % (2 * np.pi) - np.pi


def _nearest_by_bearing(
    points: Float64Array, sigma_m: Float32Array, bearings: Float64Array, width_m: float
) -> tuple[Float64Array, Float64Array]:
    """Return the distance of the nearest of points (N, 2) at each bearing, and its sigma, both (M,); NaN without.

    bearings: equally spaced or nearly so, ascending. A point covers width_m across.
    """
    nearest, sigma = np.full(len(bearings), np.nan), np.full(len(bearings), np.nan)
    if not len(points) or not len(bearings):
        return nearest, sigma
    away = np.hypot(*points.T)
    middle = 0.5 * (bearings[0] + bearings[-1])
    at = _wrapped(np.arctan2(points[:, 1], points[:, 0]) - middle) + middle
    half = np.arctan2(width_m, np.maximum(away, 1e-6))
    # At least the bearing next to it, so that no point falls between two.
    step = float(bearings[1] - bearings[0]) if len(bearings) > 1 else np.pi
    half = np.maximum(half, 0.5 * step)
    low = np.searchsorted(bearings, at - half - 1e-9)
    counts = np.maximum(np.searchsorted(bearings, at + half + 1e-9, side="right") - low, 0)
    owners = np.repeat(np.arange(len(points)), counts)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts) + low[owners]
    # Written farthest first, so that the nearest stands.
    order = np.argsort(-away[owners], kind="stable")
    nearest[places[order]] = away[owners[order]]
    sigma[places[order]] = sigma_m[owners[order]]
    return nearest, sigma
