"""The flat ground: which metre every pixel shows, what is painted on it, its grain and the shadows that fall on it."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.results import Float32Array
from md_perception.scenes import textures
from md_perception.scenes.actors import Colour, shaded
from md_perception.scenes.camera import Camera, Float64Array
from md_perception.scenes.sprites import Sprite
from md_perception.scenes.world import LAP_M, REAR_M, Scene

TEXELS_PER_M = 24.0
"""Of the ground's grain."""
KERB_POINTS = 15
"""A kerb is annotated (and drawn) up to this of the points that a strip along the road has: 65 m."""


@dataclass(frozen=True)
class Ground:
    """The ground in view, in the vehicle frame: image rows from `top` down.

    x: float32 (rows,), y: float32 (rows, W), metres.
    """

    top: int
    x: Float32Array
    y: Float32Array


@lru_cache(maxsize=4)
def ground_of(camera: Camera) -> Ground:
    """Return the ground coordinates of every pixel below the horizon (cut at 300 m)."""
    width, height = camera.size
    top = int(np.clip(np.ceil(camera.horizon_row + camera.focal_px * camera.height_m / 300.0), 1, height - 2))
    rows = np.arange(top, height)
    centre = camera.ground_at(np.column_stack([np.full(len(rows), camera.principal_px[0]), rows]))
    next_to = camera.ground_at(np.column_stack([np.full(len(rows), camera.principal_px[0] + 1), rows]))
    step = (next_to - centre)[:, 1]
    columns = np.arange(width) - camera.principal_px[0]
    y = centre[:, 1:2] + step[:, None] * columns
    return Ground(top, centre[:, 0].astype(np.float32), y.astype(np.float32))


@dataclass(frozen=True)
class Marking:
    """A flat polygon on the ground, or the face of a kerb.

    pixels: int32 (N, 2), sixteenths of a pixel. kerb: it belongs to the class `curve`.
    """

    pixels: npt.NDArray[np.int32]
    colour: Colour
    kelvin: float
    kerb: bool = False


def markings(scene: Scene, camera: Camera, time_s: float) -> list[Marking]:
    """Return what is painted on or built into the ground, in drawing order."""
    street, travelled = scene.street, scene.ego_speed_mps * time_s
    result: list[Marking] = []
    x = np.concatenate([[1.2, 2.0, 3.0], np.geomspace(4.0, 160.0, 16)])
    bend = street.centre_m + 0.5 * street.curvature * np.square(x)

    def add(points: Float64Array, colour: Colour, kelvin: float, kerb: bool = False) -> None:
        pixels, _ = camera.project(points)
        fixed = np.rint(np.clip(pixels, -6000, 6000) * 16).astype(np.int32)
        result.append(Marking(fixed, colour, kelvin, kerb))

    def strip(
        y0: Float64Array, y1: Float64Array, z0: float, z1: float, colour: Colour, kelvin: float, kerb: bool = False
    ) -> None:
        count = KERB_POINTS if kerb else len(x)
        near = np.column_stack([x, y0, np.full(len(x), z0)])[:count]
        far = np.column_stack([x, y1, np.full(len(x), z1)])[:count]
        add(np.vstack([near, far[::-1]]), colour, kelvin, kerb)

    def rectangle(x0: float, x1: float, y0: float, y1: float) -> None:
        if x1 > 1.2:
            shift = 0.5 * street.curvature * x0 * x0 + street.centre_m
            corners = [
                [max(x0, 1.2), y0 + shift, 0],
                [x1, y0 + shift, 0],
                [x1, y1 + shift, 0],
                [max(x0, 1.2), y1 + shift, 0],
            ]
            add(np.array(corners), street.paint, street.paint_k)

    def along(start: float) -> float:
        return (start - travelled - REAR_M) % LAP_M + REAR_M

    half = street.half_width_m
    lift = 0.12 if street.kerb_raised else 0.0
    for side in (-1.0, 1.0):
        edge = bend + side * half
        kerbed = street.kerb_left if side > 0 else street.kerb_right
        outer = edge + side * 60.0
        strip(edge, outer, lift if kerbed else 0.0, lift if kerbed else 0.0, street.side, street.side_k)
        if kerbed:
            kerb_k = 0.5 * (street.road_k + street.side_k) - 0.4
            if street.kerb_raised:
                strip(edge, edge, 0.0, lift, shaded(street.kerb, 0.72), kerb_k - 0.6, True)
            strip(edge, edge + side * 0.22, lift, lift, street.kerb, kerb_k, True)
    if street.edge_line:
        for side in (-1.0, 1.0):
            line = bend + side * (half - 0.35)
            strip(line, line + 0.13, 0.0, 0.0, street.paint, street.paint_k)
    if street.dashes:
        for start in np.arange(0.0, LAP_M, 8.0):
            x0 = along(float(start))
            rectangle(x0, x0 + 3.0, -0.07, 0.07)
    if street.crossing_m is not None:
        x0 = along(street.crossing_m)
        for y0 in np.arange(-half + 0.3, half - 0.4, 0.95):
            rectangle(x0, x0 + 3.2, float(y0), float(y0) + 0.48)
    if street.bays_m is not None:
        x0 = along(street.bays_m)
        for k in range(5):
            rectangle(x0 + 2.6 * k, x0 + 2.6 * k + 0.12, half - 2.6, half - 0.1)
        rectangle(x0, x0 + 10.5, half - 2.6, half - 2.48)
    if street.arrow_m is not None:
        x0 = along(street.arrow_m)
        rectangle(x0, x0 + 2.2, -1.38, -1.22)
        rectangle(x0 + 2.1, x0 + 2.9, -1.55, -1.05)
    return result


def ground_texture(scene: Scene, camera: Camera, ground: Ground, time_s: float) -> Float32Array:
    """Return float32 (rows, W): the mottling of the ground, zero mean, fading where it becomes finer than a pixel."""
    width = ground.y.shape[1]
    column = (ground.x + scene.ego_speed_mps * time_s) * TEXELS_PER_M + 131.0 * (scene.seed % 7)
    map_x = np.repeat(column[:, None] % textures.TILE, width, axis=1)
    map_y = ground.y * TEXELS_PER_M
    map_y %= textures.TILE
    grain = cv2.remap(textures.ground_grain(), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    fade = np.clip(1.5 * camera.focal_px / (TEXELS_PER_M * ground.x), 0.12, 1.0)
    grain *= fade[:, None]
    return np.asarray(grain, np.float32)


def shadow_map(sprites: list[Sprite], scene: Scene, camera: Camera) -> Float32Array:
    """Return float32 (H, W) factors: contact shadows under the actors, and cast shadows in sunlight."""
    climate = scene.climate
    width, height = camera.size
    small = np.full((height // 2, width // 2), 255, np.uint8)
    sun = np.random.default_rng([scene.seed, 3]).uniform(-1.0, 1.0, 2)
    for sprite in sprites:
        radius, tall = sprite.actor.size_m
        if radius <= 0 or sprite.pose.x < 2.5:
            continue
        angle = np.arange(12) * (np.pi / 6)
        pose = sprite.pose
        along, across = (radius, 0.42 * radius) if radius > 0.5 else (1.2 * radius, 0.9 * radius)
        local = np.column_stack([along * np.cos(angle), across * np.sin(angle), np.zeros(12)])
        feet, _ = camera.project(pose.points(local))
        cv2.fillPoly(small, [np.rint(feet * 8).astype(np.int32)], 120, cv2.LINE_AA, 4)
        if climate.sun > 0:
            length = 0.9 * min(tall, 5.0)
            tip = (pose.x + length * abs(sun[0]) * 0.6 + 0.01, pose.y + length * sun[1])
            dx, dy = tip[0] - pose.x, tip[1] - pose.y
            norm = max(float(np.hypot(dx, dy)), 1e-3)
            nx, ny = -dy / norm * radius * 0.75, dx / norm * radius * 0.75
            quad = [
                [pose.x + nx, pose.y + ny, 0],
                [tip[0] + nx, tip[1] + ny, 0],
                [tip[0] - nx, tip[1] - ny, 0],
                [pose.x - nx, pose.y - ny, 0],
            ]
            pixels, _ = camera.project(quad)
            cv2.fillPoly(
                small,
                [np.rint(np.clip(pixels, -4000, 4000) * 8).astype(np.int32)],
                int(255 - 130 * climate.sun),
                cv2.LINE_AA,
                4,
            )
    blurred = cv2.GaussianBlur(small, (5, 5), 1.2)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) * np.float32(1 / 255)
