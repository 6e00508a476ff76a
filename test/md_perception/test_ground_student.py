"""How far off the demo student's feet are, and whether the field sigma says so."""

import math

import numpy as np
import pytest
from demo_student import SCORE_THRESHOLD, SIZE, perceive
from ground_cameras import of_scene
from scene_feet import contact_m

from md_perception.outputs.ground import CameraPose, GroundModel, GroundSettings
from md_perception.results import Float32Array
from md_perception.scenes import Scene, SceneSettings, render_rgb, sample_scene
from md_perception.scenes.people import Person

SCENES = 120
SEED = 720_000
"""Seeds far from those of training, and from those that the defaults of the sigmas were taken from (700,000)."""

DISTANCES_M = ((0, 6), (6, 10), (10, 15), (15, 20))


def best_match(box: Float32Array, candidates: Float32Array) -> int | None:
    """Return the candidate with the largest overlap, if it is at least half."""
    if not len(candidates):
        return None
    least, most = np.maximum(candidates[:, :2], box[:2]), np.minimum(candidates[:, 2:], box[2:])
    both = np.prod(np.clip(most - least, 0, None), axis=1)
    overlap = both / (np.prod(candidates[:, 2:] - candidates[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - both)
    return int(overlap.argmax()) if overlap.max() >= 0.5 else None


def feet_of(scene: Scene, pitch_error_rad: float) -> list[tuple[float, float, float]]:
    """Return (distance, error, sigma), m, of the people that the student finds, by a camera that is believed to be
    pitched a little otherwise than it is."""
    view = render_rgb(scene, 0.0)
    found = perceive(scene, view).detections
    boxes = found.boxes[(found.scores >= SCORE_THRESHOLD) & (found.labels == 0)]
    camera = view.camera
    pose = CameraPose.mounted((0.0, camera.lateral_m, camera.height_m), (0.0, camera.pitch_rad + pitch_error_rad, 0.0))
    model = GroundModel(of_scene(camera)[0], pose, GroundSettings(max_range_m=1e3, horizon_margin_rad=0.0))
    people = {actor.actor_id: actor for actor in scene.actors if isinstance(actor, Person)}
    rows = []
    for index in range(len(view.objects)):
        actor = people.get(int(view.objects.actor_id[index]))
        on_feet = actor is not None and not actor.rider and not actor.behind_glass
        distance = float(view.objects.distance_m[index])
        match = best_match(view.objects.boxes[index], boxes)
        if not on_feet or view.objects.truncation[index] > 0 or distance > 20 or match is None:
            continue
        points = model.of_boxes(boxes[match : match + 1])
        if len(points):
            middle = len(points) // 2
            rows.append((distance, float(points.xyz[middle, 0]) - contact_m(scene, actor), float(points.sigma_m[0])))
    return rows


@pytest.mark.long
def test_two_thirds_of_the_errors_lie_within_sigma() -> None:
    """The pitch is off by its own sigma, as it is on a vehicle; the figures of docs/integration.md are printed."""
    rng = np.random.default_rng(0)
    errors_of_pitch = rng.normal(0, GroundSettings().pitch_sigma_rad, SCENES)
    rows = [
        row
        for number in range(SCENES)
        for row in feet_of(sample_scene(SEED + number, SceneSettings(size=SIZE)), errors_of_pitch[number])
    ]
    distance, error, sigma = np.array(rows).T
    inside = np.abs(error) <= sigma
    print(f"\n{len(rows)} people; within sigma: {inside.mean():.1%}")
    for low, high in DISTANCES_M:
        here = (distance >= low) & (distance < high)
        print(
            f"{low:2}-{high:2} m: {here.sum():3} people, median error {np.median(np.abs(error[here])):.2f} m, median "
            f"sigma {np.median(sigma[here]):.2f} m, within {inside[here].mean():.0%}"
        )
    assert len(rows) > 120
    # 68.3 %, give or take two standard deviations of a share of so many
    margin = 2 * math.sqrt(0.683 * 0.317 / len(rows))
    assert inside.mean() == pytest.approx(0.683, abs=margin + 0.03)
