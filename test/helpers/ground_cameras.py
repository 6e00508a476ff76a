"""Cameras above the ground, for the tests of what is placed there."""

import math

import numpy as np

from md_perception.outputs.ground import CameraPose
from md_perception.scenes import Camera
from md_perception.sensing.registration import CameraGeometry

EYE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def pinhole(
    size: tuple[int, int] = (640, 512),
    focal_px: float = 600.0,
    principal_px: tuple[float, float] | None = None,
    d: tuple[float, ...] = (),
) -> CameraGeometry:
    """Return a camera with its principal point in the middle; d: plumb_bob coefficients."""
    cx, cy = principal_px or ((size[0] - 1) / 2, (size[1] - 1) / 2)
    k = (focal_px, 0.0, cx, 0.0, focal_px, cy, 0.0, 0.0, 1.0)
    p = (*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0)
    return CameraGeometry(size, "plumb_bob" if d else "", k, d, EYE, p)


def of_scene(camera: Camera) -> tuple[CameraGeometry, CameraPose]:
    """Return a camera of the scene world, whose base frame is the vehicle frame, as the outputs take it."""
    pose = CameraPose.mounted((0.0, camera.lateral_m, camera.height_m), (0.0, camera.pitch_rad, 0.0))
    return pinhole(camera.size, camera.focal_px, camera.principal_px), pose


def look_down(height_m: float = 1.5, pitch_deg: float = 0.0, roll_deg: float = 0.0, yaw_deg: float = 0.0) -> CameraPose:
    """Return a camera above the origin of the base frame."""
    roll, pitch, yaw = (math.radians(angle) for angle in (roll_deg, pitch_deg, yaw_deg))
    return CameraPose.mounted((0.0, 0.0, height_m), (roll, pitch, yaw))


def project(camera: CameraGeometry, pose: CameraPose, points: np.ndarray) -> np.ndarray:
    """Return the pixels, float64 (N, 2), of base points (N, 3), by the camera's own lens model."""
    return camera.pixels(pose.to_optical(points))
