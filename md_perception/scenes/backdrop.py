"""What stands behind the actors: the distant skyline and the facades along the street."""

import cv2
import numpy as np

from md_perception.results import Float32Array
from md_perception.scenes.camera import Camera, Float64Array
from md_perception.scenes.world import Building, Scene

LAP_M = 130.0
"""A facade that the camera passes comes back this far ahead."""
REAR_M = -30.0
NEAR_M = 2.5
"""A facade is cut off nearer than this."""


def facades(scene: Scene, time_s: float) -> list[tuple[Building, float]]:
    """Return the facades, farthest first, each with where along x it starts at a time (across the end: where it is)."""
    travelled = scene.ego_speed_mps * time_s
    placed = []
    for building in scene.buildings:
        if building.side == 0:
            placed.append((building, building.offset_m))
        else:
            placed.append((building, (building.start_m - travelled - REAR_M) % LAP_M + REAR_M))
    return sorted(placed, key=lambda item: -item[1])


def facade_window(
    building: Building, start: float, scene: Scene, camera: Camera
) -> tuple[Float64Array, Float64Array] | None:
    """Return (texture to image homography (3, 3), image corners (4, 2)) of a facade; None when out of view.

    start: as from `facades`.
    """
    rows, columns = building.kelvins.shape
    first, top = 0.0, building.height_m
    if building.side == 0:
        left, right = -building.start_m, -building.start_m - building.length_m
        corners = [[start, left, top], [start, right, top], [start, right, 0.0], [start, left, 0.0]]
    else:
        end, near = start + building.length_m, max(start, NEAR_M)
        if end <= near + 0.5:
            return None
        y = scene.street.centre_m + building.side * building.offset_m
        corners = [[near, y, top], [end, y, top], [end, y, 0.0], [near, y, 0.0]]
        first = (near - start) / building.length_m * columns
    texels = np.array([[first, 0], [columns, 0], [columns, rows], [first, rows]], np.float32)
    pixels, _ = camera.project(corners)
    if pixels[:, 0].max() < 0 or pixels[:, 0].min() > camera.size[0] or pixels[:, 1].max() < 0:
        return None
    homography = cv2.getPerspectiveTransform(texels - 0.5, pixels.astype(np.float32))
    return np.asarray(homography, np.float64), pixels


def paste_facade(canvas: Float32Array, texture: Float32Array, homography: Float64Array, pixels: Float64Array) -> None:
    """Warp a texture (h, w[, 3]) onto its quadrilateral of the canvas (H, W[, 3]), in place."""
    height, width = canvas.shape[:2]
    x0, y0 = np.maximum(np.floor(pixels.min(0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(pixels.max(0)).astype(int) + 1, (width, height))
    if x1 <= x0 or y1 <= y0:
        return
    shift = np.array([[1.0, 0.0, -x0], [0.0, 1.0, -y0], [0.0, 0.0, 1.0]])
    size = (int(x1 - x0), int(y1 - y0))
    mask = np.zeros((size[1], size[0]), np.uint8)
    fixed = np.rint((np.clip(pixels, -6000, 6000) - (x0, y0)) * 16).astype(np.int32)
    cv2.fillConvexPoly(mask, fixed, 1, cv2.LINE_8, 4)
    warped = cv2.warpPerspective(
        texture, shift @ homography, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    part = canvas[y0:y1, x0:x1]
    np.copyto(part, warped, where=(mask if part.ndim == 2 else mask[..., None]).astype(bool))


def skyline_rows(scene: Scene, camera: Camera) -> tuple[Float32Array, int]:
    """Return (top row of the distant skyline for each column, row of the horizon)."""
    width, _ = camera.size
    columns = (np.arange(width) * (900.0 / width)).astype(int) % scene.skyline.size
    height = scene.skyline[columns] * 0.012 * camera.focal_px
    return (camera.horizon_row - height).astype(np.float32), int(np.ceil(camera.horizon_row))
