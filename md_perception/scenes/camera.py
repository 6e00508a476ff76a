"""A pinhole camera above a flat ground: intrinsics, mounting height, pitch, and the maps between ground and image.

Vehicle frame (REP 103): x forward, y left, z up, metres, origin on the ground below the RGB camera. Optical frame:
x right, y down, z forward. Pixel centres lie at integer coordinates (OpenCV's convention).
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

NEAR_M = 0.3
"""Points nearer than this along the optical axis are projected as if they were this far: polygons that pass the
camera leave the image instead of folding over."""


@dataclass(frozen=True)
class Camera:
    """A camera that looks forward along the vehicle's x axis, tilted downwards by its pitch, without roll or yaw.

    size: (width, height) px. focal_px: focal length, px, the same for both axes.
    principal_px: (cx, cy), px. height_m: of the optical centre above the ground. pitch_rad: positive looks down.
    lateral_m: optical centre's y in the vehicle frame.
    """

    size: tuple[int, int]
    focal_px: float
    principal_px: tuple[float, float]
    height_m: float
    pitch_rad: float
    lateral_m: float = 0.0

    @property
    def matrix(self) -> Float64Array:
        """The intrinsic matrix K, float64 (3, 3), as in sensor_msgs/CameraInfo (reshaped from `k`)."""
        cx, cy = self.principal_px
        return np.array([[self.focal_px, 0.0, cx], [0.0, self.focal_px, cy], [0.0, 0.0, 1.0]])

    @property
    def horizon_row(self) -> float:
        """Image row (px) of the horizon, where the ground ends."""
        return self.principal_px[1] - self.focal_px * float(np.tan(self.pitch_rad))

    def rotation(self) -> Float64Array:
        """Return float64 (3, 3), from vehicle axes to optical axes; its rows are right, down and forward."""
        sine, cosine = np.sin(self.pitch_rad), np.cos(self.pitch_rad)
        return np.array([[0.0, -1.0, 0.0], [-sine, 0.0, -cosine], [cosine, 0.0, -sine]])

    def to_optical(self, points: npt.ArrayLike) -> Float64Array:
        """Turn vehicle-frame points (N, 3) into the optical frame, float64 (N, 3), metres."""
        offset = np.asarray(points, np.float64) - (0.0, self.lateral_m, self.height_m)
        result: Float64Array = offset @ self.rotation().T
        return result

    def project(self, points: npt.ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Project vehicle-frame points (N, 3), metres.

        Returns pixels float64 (N, 2) and depths along the optical axis float64 (N,). Depths are true (negative behind
        the camera); the pixel of a point nearer than NEAR_M is that of the point moved out to NEAR_M.
        """
        optical = self.to_optical(points)
        depth = optical[:, 2]
        scale = self.focal_px / np.maximum(depth, NEAR_M)
        return optical[:, :2] * scale[:, None] + self.principal_px, depth

    def ground_homography(self) -> Float64Array:
        """Return float64 (3, 3): homogeneous ground point (x, y, 1), metres, to homogeneous pixel."""
        rotation = self.rotation()
        origin = rotation @ np.array([0.0, -self.lateral_m, -self.height_m])
        result: Float64Array = self.matrix @ np.column_stack([rotation[:, 0], rotation[:, 1], origin])
        return result

    def ground_at(self, pixels: npt.ArrayLike) -> Float64Array:
        """Return the ground points (x, y), float64 (N, 2) metres, seen at pixels (N, 2); NaN above the horizon."""
        pixels = np.asarray(pixels, np.float64)
        rays = np.column_stack([(pixels - self.principal_px) / self.focal_px, np.ones(len(pixels))]) @ self.rotation()
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(rays[:, 2] < -1e-9, -self.height_m / rays[:, 2], np.nan)
        return rays[:, :2] * reach[:, None] + (0.0, self.lateral_m)

    def resized(self, size: tuple[int, int]) -> "Camera":
        """Return this camera with images of another size (width, height) and the same vertical field of view."""
        scale = size[1] / self.size[1]
        cx, cy = self.principal_px
        centre_x = (cx + 0.5 - 0.5 * self.size[0]) * scale + 0.5 * size[0] - 0.5
        return replace(
            self,
            size=size,
            focal_px=self.focal_px * scale,
            principal_px=(centre_x, (cy + 0.5) * scale - 0.5),
        )
