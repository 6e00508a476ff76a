"""Cars: side profiles extruded to bodies, with glass, lamps, wheels and the warmth of a drive."""

from dataclasses import dataclass

import numpy as np

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.scenes.actors import Actor, Colour, Drawing, Pose, ellipse, shaded
from md_perception.scenes.camera import Float64Array

# Side profiles (forward, up) of cars, clockwise from the lower rear; lengths in metres for a car of unit scale.
# The names of the strips between successive points say what is seen of them.
_PROFILES: dict[str, tuple[list[tuple[float, float]], list[str]]] = {
    "sedan": (
        [(-2.25, 0.3), (-2.3, 0.85), (-1.75, 0.98), (-1.1, 1.42), (0.35, 1.45), (1.05, 0.97), (2.1, 0.82), (2.25, 0.3)],
        ["rear", "boot", "glass", "roof", "glass", "hood", "front"],
    ),
    "hatch": (
        [(-1.95, 0.3), (-2.0, 0.95), (-1.7, 1.45), (0.4, 1.5), (1.1, 1.0), (1.85, 0.88), (2.0, 0.3)],
        ["rear", "glass", "roof", "glass", "hood", "front"],
    ),
    "van": (
        [(-2.2, 0.35), (-2.2, 1.05), (-2.1, 1.85), (1.2, 1.9), (1.75, 1.1), (2.1, 0.95), (2.15, 0.35)],
        ["rear", "glass", "roof", "glass", "hood", "front"],
    ),
    "suv": (
        [(-2.25, 0.4), (-2.3, 1.0), (-2.0, 1.68), (0.3, 1.72), (0.95, 1.12), (2.1, 1.02), (2.25, 0.4)],
        ["rear", "glass", "roof", "glass", "hood", "front"],
    ),
}


CAR_STYLES = tuple(_PROFILES)


@dataclass(frozen=True)
class Car(Actor):
    """A car of one of CAR_STYLES, extruded from its side profile.

    body_k: panels. hood_k, wheel_k, exhaust_k: warm after a drive. glass_k: windows show the sky.
    lights: head and tail lamps are on.
    """

    style: str = "sedan"
    scale: float = 1.0
    colour: Colour = (150.0, 150.0, 155.0)
    body_k: float = 290.0
    glass_k: float = 286.0
    hood_k: float = 291.0
    wheel_k: float = 290.0
    exhaust_k: float = 290.0
    lights: bool = False

    @property
    def class_id(self) -> int:
        return SEGMENTATION.id_of("car")

    @property
    def label(self) -> int:
        return DETECTION.id_of("car")

    @property
    def size_m(self) -> tuple[float, float]:
        return (2.1 * self.scale, 1.5 * self.scale)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        outline, names = _PROFILES[self.style]
        profile = np.array(outline) * self.scale
        half = 0.86 * self.scale
        camera = np.array([-pose.x, -pose.y])
        cosine, sine = np.cos(pose.heading), np.sin(pose.heading)
        eye = np.array([camera @ (cosine, sine), camera @ (-sine, cosine), 1.5])  # the camera in car coordinates
        side = half if eye[1] > 0 else -half
        glass: Colour = (38.0, 44.0, 50.0)
        # Underbody first: dark, warm where the car has been driven.
        low = float(profile[0, 1])
        under = [
            [profile[0, 0], half, low],
            [profile[-1, 0], half, low],
            [profile[-1, 0], -half, low],
            [profile[0, 0], -half, low],
        ]
        lower = [[p[0], p[1], 0.12] for p in under]
        drawing.polygon(
            pose.points([*under[:2], *reversed(lower[:2])]),
            (18.0, 18.0, 20.0),
            0.75 * self.body_k + 0.25 * self.exhaust_k,
        )
        drawing.polygon(
            pose.points([under[1], under[2], lower[2], lower[1]]),
            (18.0, 18.0, 20.0),
            0.7 * self.body_k + 0.3 * self.hood_k,
        )
        drawing.polygon(
            pose.points([under[3], under[0], lower[0], lower[3]]),
            (18.0, 18.0, 20.0),
            0.75 * self.body_k + 0.25 * self.exhaust_k,
        )
        radius = 0.32 * self.scale
        for axle in (0.62 * profile[0, 0], 0.62 * profile[-1, 0]):
            self._wheel(drawing, pose, axle, -side, radius)
        faces = []
        for k, name in enumerate(names):
            (f0, u0), (f1, u1) = profile[k], profile[k + 1]
            normal = np.array([u0 - u1, f1 - f0])
            if name in ("rear", "glass", "boot") and f1 < 0 and normal[0] > 0:
                normal = -normal
            towards = np.array([eye[0] - 0.5 * (f0 + f1), eye[2] - 0.5 * (u0 + u1)]) @ normal
            if towards > 0:
                faces.append((-abs(eye[0] - 0.5 * (f0 + f1)), name, f0, u0, f1, u1))
        for _, name, f0, u0, f1, u1 in sorted(faces):
            quad = [[f0, half, u0], [f1, half, u1], [f1, -half, u1], [f0, -half, u0]]
            colour, kelvin = {
                "glass": (glass, self.glass_k),
                "roof": (shaded(self.colour, 1.12), self.body_k - 0.5),
                "boot": (shaded(self.colour, 1.05), self.body_k),
                "hood": (shaded(self.colour, 1.08), self.hood_k),
                "front": (shaded(self.colour, 0.85), 0.5 * (self.hood_k + self.body_k)),
                "rear": (shaded(self.colour, 0.85), self.body_k),
            }[name]
            if name == "glass":  # the pillars around the pane
                drawing.polygon(pose.points(quad), self.colour, self.body_k)
                inner = 0.88 * half
                quad = [[f0, inner, u0], [f1, inner * 0.92, u1], [f1, -inner * 0.92, u1], [f0, -inner, u0]]
            drawing.polygon(pose.points(quad), colour, kelvin)
            if name in ("front", "rear"):
                self._end(drawing, pose, name, f0, half)
        panel = np.column_stack([profile[:, 0], np.full(len(profile), side), profile[:, 1]])
        drawing.polygon(pose.points(panel), shaded(self.colour, 0.92), self.body_k + 0.3)
        sill = float(0.62 * profile[:, 1].max())
        roof = float(profile[:, 1].max())
        columns = profile[profile[:, 1] > 0.9 * roof][:, 0]
        back, front = float(columns.min()), float(columns.max())
        span = front - back
        for start, stop in ((0.02, 0.46), (0.52, 0.97)):
            pane = [
                [back + start * span - 0.22 * (start < 0.1), side, sill + 0.06],
                [back + stop * span + 0.3 * (stop > 0.9), side, sill + 0.06],
                [back + stop * span, side, 0.94 * roof],
                [back + start * span, side, 0.94 * roof],
            ]
            drawing.polygon(pose.points(pane), glass, self.glass_k + 0.5)
        door = [[back + 0.49 * span, side, low + 0.1], [back + 0.49 * span, side, sill]]
        drawing.stroke(pose.points(door), 0.03, shaded(self.colour, 0.55), self.body_k)
        for axle in (0.62 * profile[0, 0], 0.62 * profile[-1, 0]):
            self._wheel(drawing, pose, axle, side * 1.01, radius)

    def _wheel(self, drawing: Drawing, pose: Pose, axle: float, side: float, radius: float) -> None:
        for share, colour, kelvin in (
            (1.0, (24.0, 24.0, 26.0), self.wheel_k),
            (0.6, (120.0, 122.0, 125.0), self.wheel_k + 0.5),
        ):
            ring = np.zeros((14, 3))
            ring[:, (0, 2)] = ellipse((axle, radius), (radius * share, radius * share))
            ring[:, 1] = side
            drawing.polygon(pose.points(ring), colour, kelvin)

    def _end(self, drawing: Drawing, pose: Pose, name: str, forward: float, half: float) -> None:
        """Lamps, plate, grille or exhaust on the front or rear."""
        s = self.scale
        where = max(abs(forward), 2.0 * s) * (1.0 if name == "front" else -1.0)
        base = 0.68 * s if name == "front" else 0.78 * s
        plate = [[where, 0.26, 0.45 * s], [where, -0.26, 0.45 * s], [where, -0.26, 0.58 * s], [where, 0.26, 0.58 * s]]
        if name == "front":
            grille = [
                [where, 0.5 * half, 0.5 * s],
                [where, -0.5 * half, 0.5 * s],
                [where, -0.55 * half, 0.72 * s],
                [where, 0.55 * half, 0.72 * s],
            ]
            drawing.polygon(pose.points(grille), (30.0, 30.0, 32.0), self.hood_k + 0.6 * (self.hood_k - self.body_k))
        drawing.polygon(pose.points(plate), (205.0, 205.0, 200.0), self.body_k)
        if name == "rear":
            pipe = [
                [where, 0.55 * half, 0.2],
                [where, 0.75 * half, 0.2],
                [where, 0.75 * half, 0.3],
                [where, 0.55 * half, 0.3],
            ]
            drawing.polygon(pose.points(pipe), (40.0, 40.0, 40.0), self.exhaust_k)
        for sign in (-1.0, 1.0):
            lamp = ellipse((0.78 * half * sign, base), (0.17 * s, 0.1 * s), 10)
            points = np.column_stack([np.full(len(lamp), where), lamp])
            if name == "front":
                glow: Colour = (255.0, 250.0, 225.0) if self.lights else (0.0, 0.0, 0.0)
                drawing.polygon(
                    pose.points(points), (200.0, 205.0, 210.0), self.body_k + (12.0 if self.lights else 0.0), glow=glow
                )
            else:
                glow = (215.0, 20.0, 15.0) if self.lights else (0.0, 0.0, 0.0)
                drawing.polygon(
                    pose.points(points), (150.0, 25.0, 25.0), self.body_k + (4.0 if self.lights else 0.0), glow=glow
                )

    def lamps(self, pose: Pose) -> list[tuple[Float64Array, Colour, float]]:
        """Return lamps that shine towards the camera: point (3,), colour, strength 0..1."""
        if not self.lights:
            return []
        profile = np.array(_PROFILES[self.style][0]) * self.scale
        ahead = np.cos(pose.heading - np.arctan2(pose.y, pose.x))  # 1: drives away from us
        front = ahead < 0
        forward = float(profile[:, 0].max() if front else profile[:, 0].min())
        points = pose.points([[forward, s * 0.67 * self.scale, 0.7 * self.scale] for s in (-1.0, 1.0)])
        colour: Colour = (255.0, 246.0, 220.0) if front else (255.0, 40.0, 30.0)
        strength = float(abs(ahead)) * (1.0 if front else 0.3)
        return [(p, colour, strength) for p in points]
