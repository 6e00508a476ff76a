"""A drive through the scene world with a costmap: which people on the street are marked, and what is left behind."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from costmap import LETHAL, ObstacleLayer
from ground_cameras import of_scene

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs.ground import GroundModel, GroundPoints, ObstacleFinder
from md_perception.outputs.navigation import ObstacleOutput
from md_perception.parameters import Parameters
from md_perception.results import Detections, StudentOutput
from md_perception.scenes import RgbView, Scene, SceneSettings, render_rgb, sample_scene

NAV2 = Parameters.read(Path(__file__).parents[2] / "config" / "nav2.yaml")
"""What the node is told beside Nav2."""

NAV2_OBSTACLES = NAV2.navigation_settings().obstacles

RATE_HZ = 10.0
WITHIN_M = 15.0
GRANTED = 2
"""Frames after the one in which somebody becomes half visible, by which a place has to be marked."""
REACH_M = {"person": 0.5, "bicycle": 1.1, "car": 2.6}
"""From the middle of an object to its outermost part."""

Perceive = Callable[[Scene, RgbView], StudentOutput]
"""From a frame to what is known of it."""


@dataclass
class Drive:
    """What came of it.

    marked_after: of each person on its feet who was at least half visible within WITHIN_M, and still so after GRANTED
    frames: frames until it was marked, 0 for the same frame; None: never while it stayed so. glimpsed: the same of
    people who were hidden again, too far, or out of view by then. left_s: for how long each cell stayed lethal, in view
    and unobstructed, after everything had left it. ghosts: cells at which there never was anything.
    """

    marked_after: list[int | None] = field(default_factory=list)
    glimpsed: list[int | None] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)
    ghosts: int = 0


def true_boxes(scene: Scene, view: RgbView) -> StudentOutput:
    """What a perfect student would say: everything that is at least half visible."""
    seen = view.objects.visible_fraction >= 0.5
    return StudentOutput(
        Detections(view.objects.boxes[seen], view.objects.visible_fraction[seen], view.objects.labels[seen]), None
    )


def drive(
    seed: int,
    perceive: Perceive,
    frames: int,
    size: tuple[int, int] = (320, 256),
    wanted: ObstacleOutput = NAV2_OBSTACLES,
) -> Drive:
    """Drive through a street and keep a costmap of its people, bicycles and cars, as Nav2's obstacle layer does."""
    scene = sample_scene(seed, SceneSettings(size=size), further_blocks=1)
    groups = [group for group in wanted.groups if set(group.classes) <= set(DETECTION.classes)]
    finder = ObstacleFinder(groups, DETECTION.classes, SEGMENTATION.classes, wanted.evidence)
    layer = ObstacleLayer((80.0, 50.0), (-10.0, -25.0))
    result = Drive()
    people: dict[int, _Person] = {}  # by actor
    was_near = np.full(layer.cells.shape, -np.inf)
    for number in range(frames):
        time_s = number / RATE_HZ
        view = render_rgb(scene, time_s)
        ahead = np.array([scene.ego_speed_mps * time_s, 0.0, 0.0])
        model = GroundModel(*of_scene(view.camera), wanted.ground)
        output = perceive(scene, view)
        found = GroundPoints.joined(list(finder.find(model, output.detections, output.segmentation).values()))
        layer.update(model.pose.position_m + ahead, found.xyz + ahead, model.clearing_ends(found).xyz + ahead)
        _note_marks(people, number, view, layer, ahead, model)
        cells = np.nonzero(layer.cells == LETHAL)
        here = layer.lethal_m() - ahead[:2]
        near = _near_something(here, view, model)
        was_near[cells[0][near], cells[1][near]] = time_s
        stayed = (time_s - was_near[cells])[~near & _clearable(here, view, model)]
        result.left_s += stayed[np.isfinite(stayed)].tolist()
        result.ghosts += int((~np.isfinite(stayed)).sum())
    for person in people.values():
        stayed_long = person.last - person.first > GRANTED
        after = None if person.marked is None else person.marked - person.first
        (result.marked_after if stayed_long else result.glimpsed).append(after)
    return result


@dataclass
class _Person:
    """Frames in which somebody was half visible first and last, and in which the place was marked."""

    first: int
    last: int
    marked: int | None = None


def _note_marks(
    people: dict[int, _Person],
    number: int,
    view: RgbView,
    layer: ObstacleLayer,
    ahead: np.ndarray,
    model: GroundModel,
) -> None:
    objects, lethal = view.objects, layer.lethal_m() - ahead[:2]
    for index in range(len(objects)):
        actor = int(objects.actor_id[index])
        on_feet = objects.labels[index] == 0 and not objects.rider[index] and not objects.behind_glass[index]
        visible = objects.visible_fraction[index] >= 0.5 and objects.truncation[index] <= 0.5
        if not on_feet or not visible or objects.distance_m[index] > WITHIN_M:
            continue
        person = people.setdefault(actor, _Person(number, number))
        person.last = number
        if person.marked is None and len(lethal):
            place = objects.position_m[index]
            reach = REACH_M["person"] + 2 * _sigma_m(model, place)
            if np.hypot(*(lethal - place).T).min() <= reach:
                person.marked = number


def _sigma_m(model: GroundModel, place: np.ndarray) -> float:
    """Return the sigma of what stands at a place, with a box of a person's height."""
    foot, head = model.pose.to_optical(np.array([[*place, 0.0], [*place, 1.7]]))
    pixels = [(model.camera.intrinsics @ point / point[2])[:2] for point in (foot, head)]
    sigma_px = np.hypot(model.settings.pixel_sigma_px, model.settings.box_sigma * (pixels[0][1] - pixels[1][1]))
    beyond = GroundModel(model.camera, model.pose, replace(model.settings, max_range_m=1e3, horizon_margin_rad=0.0))
    return float(beyond.at([pixels[0]], sigma_px).sigma_m[0])


def _near_something(here: np.ndarray, view: RgbView, model: GroundModel) -> np.ndarray:
    """Return bool (N,): at which of places (N, 2) an object is, or could be by its sigma."""
    near = np.zeros(len(here), bool)
    for place, label in zip(view.objects.position_m, view.objects.labels, strict=True):
        reach = REACH_M[DETECTION.classes[label]] + 2 * _sigma_m(model, place)
        near |= np.hypot(*(here - place).T) <= reach
    return near


def _clearable(here: np.ndarray, view: RgbView, model: GroundModel) -> np.ndarray:
    """Return bool (N,): which of places (N, 2) are in view, with no object in front of them."""
    optical = model.pose.to_optical(np.column_stack([here, np.zeros(len(here))]))
    pixels = optical @ model.camera.intrinsics.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = pixels[:, :2] / pixels[:, 2:]
    away, bearing = np.hypot(*here.T), np.arctan2(here[:, 1], here[:, 0])
    margin = 0.3 * model.camera.k[0] / np.maximum(away, 1.0)[:, None]  # a cell, and the corner of its neighbour
    seen = (optical[:, 2] > 0) & (pixels > margin).all(axis=1)
    seen &= (pixels < np.array(model.camera.size) - 1 - margin).all(axis=1)
    seen &= away < model.settings.max_range_m - 2.5
    for place, label in zip(view.objects.position_m, view.objects.labels, strict=True):
        distance, half_m = float(np.hypot(*place)), REACH_M[DETECTION.classes[label]]
        half = np.arcsin(min(1.0, (half_m + 0.5) / max(distance, 0.1)))
        turned = np.abs((bearing - np.arctan2(place[1], place[0]) + np.pi) % (2 * np.pi) - np.pi)
        seen &= (turned > half) | (away < distance - half_m - 2 * _sigma_m(model, place))
    return seen
