"""Actors as a camera sees them: where they are at a time, their parts as pixels, and who hides whom.

Parts are drawn as an index map, several samples a pixel, so that one drawing gives colours, heat and coverage.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from md_perception.results import Float32Array, UInt8Image
from md_perception.scenes import textures
from md_perception.scenes.actors import Actor, Drawing, Pose, Tree
from md_perception.scenes.camera import NEAR_M, Camera, Float64Array
from md_perception.scenes.people import Person
from md_perception.scenes.world import LAP_M, REAR_M, Scene

_SAMPLES = 60_000
"""A drawing is sampled about this often: up to 4 x 4 times a pixel where it is small, once where it is large."""

OPAQUE = 0.5
"""A part of at least this opacity hides what is behind it."""

LAP_IDS = 1000
"""Ids of one lap: an actor that comes back in front of the camera after a lap is another object."""


@dataclass
class Sprite:
    """An actor as a camera sees it: its parts over a window of the image.

    distance: m, orders the painting. object_id: the actor's, changed at every lap. part_z: mean height of the parts, m.
    roi: (x0, y0, x1, y1) px, inside the image. index: uint8 (s*h, s*w), s samples a pixel, 0 empty, else 1 + part.
    box: full extent (x0, y0, x1, y1), edges, not clipped. values, coverage,
    solid: see paint. visible: see resolve_visibility.
    """

    actor: Actor
    pose: Pose
    distance: float
    object_id: int
    drawing: Drawing
    part_z: Float64Array
    roi: tuple[int, int, int, int]
    index: UInt8Image
    box: Float64Array
    values: Float32Array = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    coverage: Float32Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    solid: Float32Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    visible: Float32Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def window(self) -> tuple[slice, slice]:
        x0, y0, x1, y1 = self.roi
        return np.s_[y0:y1, x0:x1]

    def paint(self, materials: Float64Array, alphas: list[float]) -> None:
        """Fill in values, float32 (h, w, channels), coverage and solid, float32 (h, w), from the parts' materials.

        materials: (parts, channels). Values are premultiplied by opacity and averaged over each pixel, coverage is
        that average of opacity. solid: the pixel's share under parts that hide what is behind them (not glass).
        """
        palette = np.zeros((len(alphas) + 1, materials.shape[1] + 1), np.float32)
        palette[1:, -1] = alphas
        palette[1:, :-1] = materials * palette[1:, -1:]
        layers = self._averaged(palette)
        self.values, self.coverage = np.ascontiguousarray(layers[..., :-1]), np.ascontiguousarray(layers[..., -1])
        self.solid = self.coverage
        if min(alphas) < OPAQUE:
            self.solid = self._averaged((palette[:, -1] >= OPAQUE).astype(np.float32))

    def _averaged(self, palette: Float32Array) -> Float32Array:
        layers = np.take(palette, self.index, axis=0)
        x0, y0, x1, y1 = self.roi
        if self.index.shape != (y1 - y0, x1 - x0):
            layers = np.asarray(cv2.resize(layers, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA), np.float32)
        return layers


def pose_at(scene: Scene, actor: Actor, time_s: float) -> tuple[Pose, int]:
    """Return where an actor is relative to the vehicle at a time, and the number of its lap (0 at time 0)."""
    x = actor.x + (actor.vx - scene.ego_speed_mps) * time_s
    lap = int(np.floor((x - REAR_M) / LAP_M))
    y = actor.y + actor.vy * time_s
    if actor.vy:  # who crosses turns round at the far side
        reach = 14.0
        phase = (y + reach) % (4 * reach)
        turned = phase > 2 * reach
        y = (4 * reach - phase if turned else phase) - reach
        heading = actor.heading if not turned else -actor.heading
        return Pose(x - lap * LAP_M, y, heading), lap
    return Pose(x - lap * LAP_M, y, actor.heading), lap


def rasterise(
    drawing: Drawing, camera: Camera
) -> tuple[tuple[int, int, int, int], UInt8Image, Float64Array, Float64Array] | None:
    """Draw the parts' indices; None where the drawing is behind the camera or outside the image.

    Returns the window, the index map, the full extent and the mean height of each part.
    """
    lengths = [len(p) for p in drawing.points]
    points = np.concatenate(drawing.points)
    pixels, depth = camera.project(points)
    if depth.max() < 2 * NEAR_M:
        return None
    edges = np.cumsum([0, *lengths])
    starts = edges[:-1]
    widths = np.array(drawing.widths)
    part_depth = np.maximum(np.add.reduceat(depth, starts) / lengths, NEAR_M)
    part_z = np.add.reduceat(points[:, 2], starts) / lengths
    thickness = widths * camera.focal_px / part_depth
    margin = np.repeat(0.5 * thickness, lengths)[:, None]
    low, high = (pixels - margin).min(0) + 0.5, (pixels + margin).max(0) + 0.5
    width, height = camera.size
    x0, y0 = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
    x1, y1 = min(width, int(np.ceil(high[0]))), min(height, int(np.ceil(high[1])))
    if x1 <= x0 or y1 <= y0:
        return None
    scale = int(np.clip(np.sqrt(_SAMPLES / ((x1 - x0) * (y1 - y0))), 1, 4))
    index = np.zeros(((y1 - y0) * scale, (x1 - x0) * scale), np.uint8)
    scaled = (pixels + 0.5 - (x0, y0)) * scale - 0.5
    fixed = np.rint(np.clip(scaled, -8000, 8000) * 16).astype(np.int32)
    for part, (a, b, thick, closed) in enumerate(
        zip(edges[:-1], edges[1:], thickness, drawing.closed, strict=True), start=1
    ):
        contour = [fixed[a:b]]
        if thick > 0:
            cv2.polylines(index, contour, closed, part, int(max(1, min(255, round(thick * scale)))), cv2.LINE_8, 4)
        else:
            cv2.fillPoly(index, contour, part, cv2.LINE_8, 4)
    return (x0, y0, x1, y1), index, np.concatenate([low, high]), part_z


class Moment:
    """The actors of a scene at one instant; each is drawn once for both cameras, when first seen."""

    def __init__(self, scene: Scene, time_s: float) -> None:
        self.scene = scene
        self.time_s = time_s
        self.poses = [pose_at(scene, actor, time_s) for actor in scene.actors]
        self._drawings: dict[int, Drawing] = {}

    def _drawing(self, index: int) -> Drawing:
        if index not in self._drawings:
            self._drawings[index] = Drawing()
            self.scene.actors[index].draw(self._drawings[index], self.poses[index][0], self.time_s)
        return self._drawings[index]

    def sprites(self, camera: Camera) -> list[Sprite]:
        """Return what a camera sees of the actors, nearest first."""
        sprites = []
        for index, (actor, (pose, lap)) in enumerate(zip(self.scene.actors, self.poses, strict=True)):
            reach = actor.size_m[0] + 0.3
            if pose.x + reach < 1.0 or abs(pose.y) - 4.0 > camera.size[0] / camera.focal_px * (pose.x + reach):
                continue
            drawing = self._drawing(index)
            drawn = rasterise(drawing, camera)
            if drawn is None:
                continue
            roi, parts, box, part_z = drawn
            if isinstance(actor, Tree):
                _thin_out(parts, actor, self.scene)
            near = 0.05 if isinstance(actor, Person) and actor.rider else 0.0  # the rider covers the bicycle
            distance = float(np.hypot(pose.x, pose.y)) - near
            object_id = actor.actor_id - LAP_IDS * lap
            sprites.append(Sprite(actor, pose, distance, object_id, drawing, part_z, roi, parts, box))
        sprites.sort(key=lambda sprite: sprite.distance)
        return sprites


def _thin_out(index: UInt8Image, tree: Tree, scene: Scene) -> None:
    """Tear holes and ragged edges into a tree's crown, in place: leaves, not balloons."""
    rng = np.random.default_rng([scene.seed, 13, tree.actor_id])
    top, left = (int(v) for v in rng.integers(0, textures.TILE - 384, 2))
    leafage = textures.value_noise(256, 1.0)[top : top + 384, left : left + 384]
    height, width = index.shape
    gaps = textures.stretch(leafage, (width, height)) < -0.45
    gaps &= index > tree.bare_parts
    index[gaps] = 0


def resolve_visibility(sprites: list[Sprite], size: tuple[int, int]) -> None:
    """Fill in visible, the part of solid that nothing nearer hides; sprites: painted, nearest first."""
    open_share = np.ones((size[1], size[0]), np.float32)
    for sprite in sprites:
        share = open_share[sprite.window]
        sprite.visible = sprite.solid * share
        share -= sprite.visible


def surround_mean(image: Float32Array, sprite: Sprite) -> float:
    """Return the mean of a (H, W) image around a sprite: its window widened by an eighth of its height, without it."""
    x0, y0, x1, y1 = sprite.roi
    pad = max(2, (y1 - y0) // 8)
    left, top = max(0, x0 - pad), max(0, y0 - pad)
    around = image[top : y1 + pad, left : x1 + pad]
    weight = np.ones(around.shape, np.float32)
    weight[y0 - top : y1 - top, x0 - left : x1 - left] -= sprite.coverage
    return float((around * weight).sum() / max(float(weight.sum()), 1e-6))
