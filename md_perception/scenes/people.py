"""Persons, on foot and riding, and bicycles."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.scenes.actors import Actor, Colour, Drawing, Pose, ellipse, shaded
from md_perception.scenes.camera import Float64Array


@dataclass(frozen=True)
class Clothing:
    """Colours and temperatures of a person's parts."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    skin_k: float
    hair_k: float
    top_k: float
    bottom_k: float
    shoes_k: float
    short_sleeves: bool = False
    coat: bool = False
    skirt: bool = False
    bag: Colour | None = None
    hat: Colour | None = None


@dataclass(frozen=True, kw_only=True)
class Person(Actor):
    """A person who stands, walks, runs or rides.

    height_m: standing. build: width factor. stride: swing of the legs, rad (0 stands). cadence_hz: steps.
    hidden: dark clothes in the dark; its visible light equals that of what is behind it (night only).
    camouflaged: its heat equals that of what is behind it. behind_glass: a pane hides its heat.
    """

    height_m: float = 1.7
    build: float = 1.0
    stride: float = 0.5
    cadence_hz: float = 1.0
    phase: float = 0.0
    arms: float = 0.0
    rider: bool = False
    clothing: Clothing
    hidden: bool = False
    camouflaged: bool = False
    behind_glass: bool = False

    @property
    def class_id(self) -> int:
        return SEGMENTATION.id_of("person")

    @property
    def label(self) -> int:
        return DETECTION.id_of("person")

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.28, self.height_m)

    def _legs(self, phase: float) -> tuple[Float64Array, float]:
        """Return joints (side, joint hip/knee/ankle/toe, forward/left/up) and how far to lower the body, metres."""
        h = self.height_m
        legs = np.zeros((2, 4, 3))
        for k, side in enumerate((-1.0, 1.0)):
            swing = self.stride * np.sin(phase + k * np.pi)
            bend = 0.9 * self.stride * max(0.0, np.cos(phase + k * np.pi)) + 0.08 * self.stride
            hip = np.array([0.0, 0.055 * h * side * self.build, 0.52 * h])
            knee = hip + 0.25 * h * np.array([np.sin(swing), 0.0, -np.cos(swing)])
            ankle = knee + 0.235 * h * np.array([np.sin(swing - bend), 0.0, -np.cos(swing - bend)])
            toe = ankle + h * np.array([0.09 * np.cos(swing - bend), 0.0, -0.012])
            legs[k] = hip, knee, ankle, toe
        return legs, float(legs[:, 2:, 2].min() - 0.02 * h)

    def _riding_legs(self, phase: float) -> Float64Array:
        h = self.height_m
        legs = np.zeros((2, 4, 3))
        for k, side in enumerate((-1.0, 1.0)):
            crank = phase + k * np.pi
            hip = np.array([-0.18, 0.09 * side, 0.95])
            ankle = np.array([0.05 + 0.17 * np.cos(crank), 0.11 * side, 0.34 + 0.17 * np.sin(crank)])
            reach = ankle - hip
            length = float(np.linalg.norm(reach))
            thigh = shin = max(0.25 * h, 0.52 * length)
            lift = np.sqrt(max(thigh * shin - 0.25 * length**2, 0.0))
            normal = np.array([-reach[2], 0.0, reach[0]]) / max(length, 1e-6)
            knee = hip + 0.5 * reach + lift * normal
            legs[k] = hip, knee, ankle, ankle + (0.09 * h, 0.0, -0.02)
        return legs

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        h, wear, build = self.height_m, self.clothing, self.build
        phase = self.phase + 2 * np.pi * self.cadence_hz * time_s
        if self.rider:
            legs, drop, lean = self._riding_legs(phase), 0.0, 0.35
            waist = np.array([-0.18, 0.0, 0.95])
        else:
            legs, drop = self._legs(phase)
            lean = 0.1 * self.stride
            legs[:, :, 2] -= drop
            waist = np.array([0.0, 0.0, 0.52 * h - drop])
        torso = 0.30 * h
        neck = waist + torso * np.array([np.sin(lean), 0.0, np.cos(lean)])
        shoulder_half = 0.5 * pose.side_width(0.235 * h, 0.14 * h) * build
        hip_half = 0.5 * pose.side_width(0.185 * h, 0.13 * h) * build

        # The side of the body that is farther from the camera is drawn first.
        far_first = (0, 1) if np.cos(pose.heading) * pose.y - np.sin(pose.heading) * pose.x < 0 else (1, 0)
        arms = []
        for k, side in enumerate((-1.0, 1.0)):
            shoulder = neck + (0.0, 0.105 * h * side * build, -0.015 * h)
            if self.rider:
                elbow = shoulder + (0.13 * h, 0.04 * side, -0.1 * h)
                hand = np.array([0.42, 0.22 * side, 1.02])
            else:
                swing = 0.7 * self.stride * np.sin(phase + (k + 1) * np.pi)
                raised = self.arms * (1.0 if k == 0 else 0.35)
                elbow = shoulder + h * np.array([0.16 * np.sin(swing), 0.02 * side, -0.16 * np.cos(swing)])
                angle = swing + 0.25 + raised
                hand = elbow + h * np.array([0.15 * np.sin(angle), -0.01 * side, -0.15 * np.cos(angle)])
            arms.append(pose.points([shoulder, elbow, hand]))
        leg_points = [pose.points(leg) for leg in legs]

        def leg(k: int) -> None:
            points = leg_points[k]
            shade = 0.82 if k == far_first[0] else 1.0
            lower, lower_k = (wear.skin, wear.skin_k) if wear.skirt else (wear.bottom, wear.bottom_k)
            drawing.stroke(points[1:3], 0.052 * h * build, shaded(lower, shade), lower_k - 0.3)
            drawing.stroke(points[0:2], 0.075 * h * build, shaded(wear.bottom, shade), wear.bottom_k)
            drawing.stroke(points[2:4], 0.04 * h, wear.shoes, wear.shoes_k)

        def arm(k: int) -> None:
            points = arms[k]
            shade = 0.8 if k == far_first[0] else 0.93
            fore, fore_k = (wear.skin, wear.skin_k) if wear.short_sleeves else (wear.top, wear.top_k - 0.2)
            drawing.stroke(points[1:3], 0.04 * h * build, shaded(fore, shade), fore_k)
            drawing.stroke(points[0:2], 0.05 * h * build, shaded(wear.top, shade), wear.top_k)
            drawing.polygon(
                self._facing(points[2], ellipse((0, 0), (0.022 * h, 0.026 * h), 8)), wear.skin, wear.skin_k - 1
            )

        arm(far_first[0])
        leg(far_first[0])
        leg(far_first[1])
        away = np.cos(pose.heading - np.arctan2(pose.y, pose.x))  # 1: we see the back
        if wear.bag is not None and away < 0:
            self._bag(drawing, pose, neck, wear.bag)
        waist_point, neck_point = pose.points([waist])[0], pose.points([neck])[0]
        chest = np.array(
            [
                [-0.75 * shoulder_half, 0.012 * h],
                [0.75 * shoulder_half, 0.012 * h],
                [shoulder_half, -0.03 * h],
                [0.9 * shoulder_half, -0.13 * h],
            ]
        )
        hips = np.array(
            [[hip_half, 0.0], [0.95 * hip_half, -0.05 * h], [-0.95 * hip_half, -0.05 * h], [-hip_half, 0.0]]
        )
        if wear.skirt:
            skirt = np.array(
                [[hip_half, 0.06 * h], [1.5 * hip_half, -0.2 * h], [-1.5 * hip_half, -0.2 * h], [-hip_half, 0.06 * h]]
            )
            drawing.polygon(self._facing(waist_point, skirt), wear.bottom, wear.bottom_k)
        if wear.coat and not self.rider:
            hips = np.array(
                [[hip_half, 0.0], [1.25 * hip_half, -0.17 * h], [-1.25 * hip_half, -0.17 * h], [-hip_half, 0.0]]
            )
        body = np.vstack(
            [
                self._facing(neck_point, chest),
                self._facing(waist_point, hips),
                self._facing(neck_point, [[-0.9 * shoulder_half, -0.13 * h], [-shoulder_half, -0.03 * h]]),
            ]
        )
        drawing.polygon(body, wear.top, wear.top_k)
        middle = 0.5 * (waist_point + neck_point)
        drawing.polygon(
            self._facing(middle, ellipse((0.25 * shoulder_half, 0.02 * h), (0.55 * shoulder_half, 0.13 * h), 10)),
            shaded(wear.top, 1.1),
            wear.top_k + 0.5,
        )
        if wear.bag is not None and away >= 0:
            self._bag(drawing, pose, neck, wear.bag)
        crown = neck_point + pose.points([[0.02 * h, 0, 0]])[0] - pose.points([[0, 0, 0]])[0]
        drawing.stroke([neck_point, crown + (0, 0, 0.05 * h)], 0.05 * h, wear.skin, wear.skin_k)
        head = crown + (0.0, 0.0, 0.098 * h)
        drawing.polygon(self._facing(head, ellipse((0, 0), (0.047 * h, 0.066 * h))), wear.hair, wear.hair_k)
        if away < 0.6:
            shift = 0.02 * h * np.sin(pose.heading - np.arctan2(pose.y, pose.x))
            face = ellipse((-shift, -0.016 * h), (0.038 * h * (0.8 if away > -0.3 else 1.0), 0.047 * h), 10)
            drawing.polygon(self._facing(head, face), wear.skin, wear.skin_k)
        if wear.hat is not None:
            cap = np.array([[-0.052, 0.005], [0.052, 0.005], [0.04, 0.06], [0.0, 0.075], [-0.04, 0.06]]) * h
            drawing.polygon(self._facing(head, cap), wear.hat, wear.hair_k - 1.0)
        arm(far_first[1])

    @staticmethod
    def _facing(origin: Float64Array, offsets: npt.ArrayLike) -> Float64Array:
        offsets = np.asarray(offsets, np.float64)
        return np.column_stack([np.full(len(offsets), origin[0]), origin[1] - offsets[:, 0], origin[2] + offsets[:, 1]])

    def _bag(self, drawing: Drawing, pose: Pose, neck: Float64Array, colour: Colour) -> None:
        h = self.height_m
        origin = pose.points([neck + (-0.1 * h, 0.0, -0.15 * h)])[0]
        half = 0.5 * pose.side_width(0.19 * h, 0.12 * h)
        shape = [
            [-half, -0.1 * h],
            [half, -0.1 * h],
            [half, 0.09 * h],
            [0.6 * half, 0.13 * h],
            [-0.6 * half, 0.13 * h],
            [-half, 0.09 * h],
        ]
        drawing.polygon(self._facing(origin, shape), colour, self.clothing.shoes_k)


@dataclass(frozen=True)
class Bicycle(Actor):
    """A bicycle, ridden or parked."""

    colour: Colour = (60.0, 60.0, 70.0)
    kelvin: float = 288.0
    tyre_k: float = 289.0
    basket: bool = False
    wheel_m: float = 0.34

    @property
    def class_id(self) -> int:
        return SEGMENTATION.id_of("bike")

    @property
    def label(self) -> int:
        return DETECTION.id_of("bicycle")

    @property
    def size_m(self) -> tuple[float, float]:
        return (0.6, 1.05)

    def draw(self, drawing: Drawing, pose: Pose, time_s: float) -> None:
        r = self.wheel_m
        dark: Colour = (28.0, 28.0, 30.0)
        for axle in (-0.52, 0.53):
            rim = np.zeros((16, 3))
            rim[:, (0, 2)] = ellipse((axle, r), (r, r), 16)
            drawing.stroke(pose.points(rim), 0.05, dark, self.tyre_k, closed=True)
            for a in (0.4, 1.45, 2.5):
                spoke = [[axle - r * np.cos(a), 0, r - r * np.sin(a)], [axle + r * np.cos(a), 0, r + r * np.sin(a)]]
                drawing.stroke(pose.points(spoke), 0.012, (120.0, 120.0, 125.0), self.kelvin)
        seat, head, crank = (-0.2, 0, 0.82), (0.4, 0, 0.86), (0.0, 0, 0.32)
        rear, front = (-0.52, 0, r), (0.53, 0, r)
        drawing.stroke(pose.points([rear, crank, head, (-0.16, 0, 0.7), crank]), 0.045, self.colour, self.kelvin)
        drawing.stroke(pose.points([rear, (-0.16, 0, 0.7), seat]), 0.04, self.colour, self.kelvin)
        drawing.stroke(pose.points([front, head, (0.38, 0, 1.0)]), 0.045, self.colour, self.kelvin)
        drawing.stroke(pose.points([(0.4, -0.26, 1.02), (0.42, 0.26, 1.02)]), 0.04, dark, self.kelvin)
        drawing.stroke(pose.points([(-0.32, 0, 0.86), (-0.08, 0, 0.85)]), 0.09, dark, self.kelvin + 0.5)
        drawing.stroke(pose.points([(-0.9, 0, 0.5), (-0.75, 0, 0.68), (-0.5, 0, 0.72)]), 0.04, dark, self.kelvin)
        if self.basket:
            for width in (-0.13, 0.13):
                panel = [[0.45, width, 0.72], [0.78, width, 0.72], [0.82, width, 0.98], [0.45, width, 0.98]]
                drawing.polygon(pose.points(panel), (110.0, 110.0, 110.0), self.kelvin)
