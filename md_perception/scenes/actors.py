"""The things of the street as drawings: polygons and strokes in metres, each with a colour and a temperature.

An actor is placed by its ground position; `draw` adds its parts, far to near, to a Drawing in the vehicle frame.
Persons, bicycles and cars have modules of their own; here is what they share, and all that is smaller or stands still.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from md_perception.labels import SEGMENTATION
from md_perception.results import Float32Array
from md_perception.scenes.camera import Float64Array

Colour = tuple[float, float, float]
"""RGB, 0..255, display-referred (gamma-encoded) reflectance under full light."""


UNLABELLED = SEGMENTATION.id_of("unlabelled")


NOT_DETECTED = -1


class Drawing:
    """Parts in drawing order; each part is a polygon or a stroke with one material.

    colour, glow: RGB 0..255, reflected and emitted. alpha: opacity to light; long-wave infrared passes nothing.
    kelvin: apparent temperature.
    """

    def __init__(self) -> None:
        self.points: list[Float64Array] = []
        self.widths: list[float] = []  # metres; 0 marks a filled polygon
        self.closed: list[bool] = []
        self.colours: list[Colour] = []
        self.glows: list[Colour] = []
        self.alphas: list[float] = []
        self.kelvins: list[float] = []

    def polygon(
        self,
        points: npt.ArrayLike,
        colour: Colour,
        kelvin: float,
        *,
        alpha: float = 1.0,
        glow: Colour = (0.0, 0.0, 0.0),
    ) -> None:
        """Add a filled polygon; points: (N, 3) metres, vehicle frame."""
        self._add(points, 0.0, True, colour, kelvin, alpha, glow)

    def stroke(
        self,
        points: npt.ArrayLike,
        width: float,
        colour: Colour,
        kelvin: float,
        *,
        closed: bool = False,
        glow: Colour = (0.0, 0.0, 0.0),
    ) -> None:
        """Add a line with round joints; points: (N, 3) metres, width: metres."""
        self._add(points, width, closed, colour, kelvin, 1.0, glow)

    def _add(
        self,
        points: npt.ArrayLike,
        width: float,
        closed: bool,
        colour: Colour,
        kelvin: float,
        alpha: float,
        glow: Colour,
    ) -> None:
        self.points.append(np.asarray(points, np.float64))
        self.widths.append(width)
        self.closed.append(closed)
        self.colours.append(colour)
        self.glows.append(glow)
        self.alphas.append(alpha)
        self.kelvins.append(kelvin)


@dataclass(frozen=True)
class Pose:
    """Where an actor is: x, y in metres and heading in radians (0 drives away, pi comes towards us)."""

    x: float
    y: float
    heading: float

    def points(self, local: npt.ArrayLike) -> Float64Array:
        """Turn actor coordinates (N, 3) (forward, left, up) into the vehicle frame, float64 (N, 3)."""
        local = np.asarray(local, np.float64)
        cosine, sine = np.cos(self.heading), np.sin(self.heading)
        result = np.empty_like(local)
        result[:, 0] = self.x + local[:, 0] * cosine - local[:, 1] * sine
        result[:, 1] = self.y + local[:, 0] * sine + local[:, 1] * cosine
        result[:, 2] = local[:, 2]
        return result

    def facing(self, offsets: npt.ArrayLike) -> Float64Array:
        """Turn (N, 2) (right, up) offsets in a plane across the camera's view into the vehicle frame, (N, 3)."""
        offsets = np.asarray(offsets, np.float64)
        result = np.empty((len(offsets), 3))
        result[:, 0] = self.x
        result[:, 1] = self.y - offsets[:, 0]
        result[:, 2] = offsets[:, 1]
        return result

    def side_width(self, across: float, along: float) -> float:
        """Return the width that a body of `across` by `along` metres shows to the camera."""
        angle = self.heading - np.arctan2(self.y, self.x)
        return float(np.hypot(across * np.cos(angle), along * np.sin(angle)))


def ellipse(centre: tuple[float, float], radii: tuple[float, float], count: int = 14) -> Float64Array:
    """Return float64 (count, 2) points of an ellipse."""
    return np.array(centre) + np.array(radii) * _unit_circle(count)


@lru_cache(maxsize=32)
def _unit_circle(count: int) -> Float64Array:
    angle = np.arange(count) * (2 * np.pi / count)
    return np.column_stack([np.cos(angle), np.sin(angle)])


def shaded(colour: Colour, gain: float) -> Colour:
    """Return a colour lightened or darkened by a factor."""
    return (colour[0] * gain, colour[1] * gain, colour[2] * gain)


@dataclass(frozen=True)
class Actor:
    """Something that stands or moves on the ground.

    actor_id: unique in a scene. x, y: ground position at time 0, metres. vx, vy: velocity over ground, m/s.
    heading: rad, 0 looks away from the camera. texture: strength of the mottling of its colours (0..1).
    """

    actor_id: int
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    heading: float = 0.0
    texture: float = 0.06

    @property
    def class_id(self) -> int:
        """Id in labels.SEGMENTATION."""
        return UNLABELLED

    @property
    def label(self) -> int:
        """Id in labels.DETECTION, or NOT_DETECTED."""
        return NOT_DETECTED

    @property
    def size_m(self) -> tuple[float, float]:
        """Footprint (radius, m) for shadows, and height, m."""
        return (0.3, 1.0)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        """Add the actor's parts, far to near."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cone(Actor):
    """A traffic cone."""

    height_m: float = 0.7
    colour: Colour = (225.0, 85.0, 30.0)
    kelvin: float = 290.0

    @property
    def class_id(self) -> int:
        return SEGMENTATION.id_of("color_cone")

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.18, self.height_m)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        h = self.height_m
        drawing.polygon(pose.facing(ellipse((0, 0.03), (0.27 * h, 0.05 * h))), shaded(self.colour, 0.6), self.kelvin)
        edges = np.array([0.03, 0.3, 0.48, 0.68, 0.82, 1.0]) * h
        for k in range(5):
            low, high = edges[k], edges[k + 1]
            wide, narrow = 0.2 * h * (1 - low / h) + 0.03 * h, 0.2 * h * (1 - high / h) + 0.03 * h
            shape = [[-wide, low], [wide, low], [narrow, high], [-narrow, high]]
            white = k in (1, 3)
            colour: Colour = (230.0, 230.0, 225.0) if white else self.colour
            drawing.polygon(pose.facing(shape), colour, self.kelvin - (0.7 if white else 0.0))


@dataclass(frozen=True)
class Guardrail(Actor):
    """One section of a guardrail: posts and a beam along its heading."""

    length_m: float = 4.0
    colour: Colour = (175.0, 178.0, 180.0)
    kelvin: float = 288.0
    tubular: bool = False

    @property
    def class_id(self) -> int:
        return SEGMENTATION.id_of("guardrail")

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.15, 0.8)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        half = 0.5 * self.length_m
        for f in (-half, 0.0, half):
            drawing.stroke(pose.points([[f, 0, 0], [f, 0, 0.76]]), 0.1, shaded(self.colour, 0.7), self.kelvin)
        if self.tubular:
            for u in (0.35, 0.55, 0.78):
                drawing.stroke(pose.points([[-half, 0, u], [half, 0, u]]), 0.07, self.colour, self.kelvin + 0.5)
            return
        for low, high, gain in ((0.45, 0.54, 0.95), (0.54, 0.62, 0.65), (0.62, 0.70, 1.0), (0.70, 0.78, 0.75)):
            beam = [[-half, 0, low], [half, 0, low], [half, 0, high], [-half, 0, high]]
            drawing.polygon(pose.points(beam), shaded(self.colour, gain), self.kelvin + 0.5 * (gain - 0.8))


@dataclass(frozen=True)
class Bump(Actor):
    """A speed bump across the lane: length_m across, 0.45 m along, striped."""

    length_m: float = 5.0
    dark: Colour = (38.0, 38.0, 40.0)
    light: Colour = (205.0, 165.0, 40.0)
    kelvin: float = 291.0

    @property
    def class_id(self) -> int:
        return SEGMENTATION.id_of("bump")

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.0, 0.07)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        count = max(2, round(self.length_m / 0.5))
        edges = np.linspace(-0.5, 0.5, count + 1) * self.length_m
        for k in range(count):
            a, b = edges[k], edges[k + 1]
            colour = self.light if k % 2 else self.dark
            kelvin = self.kelvin - (1.0 if k % 2 else 0.0)
            back = [[0.0, a, 0.08], [0.0, b, 0.08], [0.3, b, 0.0], [0.3, a, 0.0]]
            front = [[-0.3, a, 0.0], [-0.3, b, 0.0], [0.0, b, 0.08], [0.0, a, 0.08]]
            drawing.polygon(pose.points(back), shaded(colour, 1.05), kelvin)
            drawing.polygon(pose.points(front), colour, kelvin)


@dataclass(frozen=True)
class CarStop(Actor):
    """A parking wheel stop: a low block."""

    length_m: float = 0.6
    colour: Colour = (185.0, 182.0, 175.0)
    kelvin: float = 289.0

    @property
    def class_id(self) -> int:
        return SEGMENTATION.id_of("car_stop")

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.25, 0.13)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        half, h = 0.5 * self.length_m, 0.14
        top = [[-0.06, -half, h], [-0.06, half, h], [0.07, half, h], [0.07, -half, h]]
        near = [[-0.1, -half, 0], [-0.1, half, 0], [-0.06, half, h], [-0.06, -half, h]]
        end = half if np.sin(pose.heading) * pose.x - np.cos(pose.heading) * pose.y > 0 else -half
        flank = [[-0.1, end, 0], [0.1, end, 0], [0.07, end, h], [-0.06, end, h]]
        drawing.polygon(pose.points(flank), shaded(self.colour, 0.65), self.kelvin - 0.2)
        drawing.polygon(pose.points(top), shaded(self.colour, 1.05), self.kelvin + 0.5)
        drawing.polygon(pose.points(near), shaded(self.colour, 0.78), self.kelvin)


@dataclass(frozen=True, kw_only=True)
class Tree(Actor):
    """A street tree: trunk and a crown of overlapping leafy masses."""

    height_m: float = 7.0
    crown_m: float = 2.5
    leaves: Colour = (70.0, 95.0, 45.0)
    bark: Colour = (75.0, 62.0, 50.0)
    kelvin: float = 288.0
    blobs: Float32Array

    bare_parts = 3
    """The trunk and two branches are drawn first; all later parts are leaves."""

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.25, self.height_m)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        h, r = self.height_m, self.crown_m
        trunk = h - 1.3 * r
        drawing.stroke(pose.points([(0.0, 0.0, 0.0), (0.0, 0.0, trunk)]), 0.3, self.bark, self.kelvin + 0.6)
        for k, side in enumerate((-1, 1)):
            branch = pose.facing([[0, 0.75 * trunk], [side * 0.5 * r, trunk + (0.3 + 0.2 * k) * r]])
            drawing.stroke(branch, 0.14, shaded(self.bark, 0.9), self.kelvin + 0.4)
        for u, w, size, gain, delta, *edge in self.blobs:
            circle = _unit_circle(len(edge))
            radius = size * r * np.asarray(edge)
            shape = np.column_stack([u * r + radius * circle[:, 0], h - r + w * r + 0.85 * radius * circle[:, 1]])
            drawing.polygon(pose.facing(shape), shaded(self.leaves, float(gain)), self.kelvin + float(delta))


@dataclass(frozen=True)
class Lamp(Actor):
    """A street lamp; its head is hot and, when lit, shines on the ground around it."""

    height_m: float = 6.0
    lit: bool = False
    colour: Colour = (255.0, 225.0, 170.0)
    kelvin: float = 288.0
    head_k: float = 310.0

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.1, self.height_m)

    @property
    def head(self) -> tuple[float, float]:
        """Reach towards the road (right, metres) and height of the lamp's head."""
        return (1.2 if self.y > 0 else -1.2, self.height_m)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        reach, h = self.head
        drawing.stroke(pose.facing([(0.0, 0.0), (0.0, h)]), 0.14, (95.0, 98.0, 100.0), self.kelvin)
        drawing.stroke(pose.facing([[0, h - 0.1], [reach, h]]), 0.09, (95.0, 98.0, 100.0), self.kelvin)
        glow = self.colour if self.lit else (0.0, 0.0, 0.0)
        drawing.polygon(
            pose.facing(ellipse((reach, h), (0.32, 0.12), 10)), (190.0, 190.0, 185.0), self.head_k, glow=glow
        )


@dataclass(frozen=True)
class Post(Actor):
    """A hot or cold thing that is not a person: bollard, bin, vent, cabinet, sign. Shape: width by height, metres."""

    width_m: float = 0.4
    height_m: float = 1.0
    lift_m: float = 0.0
    colour: Colour = (110.0, 115.0, 110.0)
    kelvin: float = 295.0
    pole: bool = False

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.5 * self.width_m, self.height_m)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        half, low, high = 0.5 * self.width_m, self.lift_m, self.lift_m + self.height_m
        if self.pole:
            drawing.stroke(pose.facing([(0.0, 0.0), (0.0, low)]), 0.08, (130.0, 130.0, 130.0), self.kelvin - 2)
        body = [
            [-half, low],
            [half, low],
            [half, high - 0.1 * half],
            [0.8 * half, high],
            [-0.8 * half, high],
            [-half, high - 0.1 * half],
        ]
        drawing.polygon(pose.facing(body), self.colour, self.kelvin)
        inner = [
            [-0.7 * half, low + 0.35 * self.height_m],
            [0.7 * half, low + 0.35 * self.height_m],
            [0.7 * half, high - 0.15 * self.height_m],
            [-0.7 * half, high - 0.15 * self.height_m],
        ]
        drawing.polygon(pose.facing(inner), shaded(self.colour, 0.7), self.kelvin + 1.0)


@dataclass(frozen=True)
class GlassPane(Actor):
    """The front of a shelter: light passes its pane, long-wave infrared does not."""

    width_m: float = 3.0
    height_m: float = 2.3
    tint: Colour = (150.0, 165.0, 170.0)
    frame: Colour = (70.0, 75.0, 80.0)
    kelvin: float = 287.0

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.5 * self.width_m, self.height_m)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        half, h = 0.5 * self.width_m, self.height_m
        drawing.polygon(
            pose.facing([[-half, 0.0], [half, 0.0], [half, h], [-half, h]]), self.tint, self.kelvin, alpha=0.16
        )
        streak = [[-0.6 * half, 0.1], [-0.35 * half, 0.1], [0.25 * half, h], [0.0, h]]
        drawing.polygon(pose.facing(streak), shaded(self.tint, 1.3), self.kelvin, alpha=0.26)
        for u in (-half, 0.0, half):
            drawing.stroke(pose.facing([[u, 0], [u, h]]), 0.06, self.frame, self.kelvin + 0.4)
        drawing.stroke(pose.facing([[-half, h], [half, h]]), 0.12, self.frame, self.kelvin - 0.5)
        drawing.stroke(pose.facing([[-half, 0.04], [half, 0.04]]), 0.08, self.frame, self.kelvin)
