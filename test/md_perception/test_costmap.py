"""A simulated costmap on drives through the scene world, with true boxes and with the demo student's."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from costmap import FREE, LETHAL, UNKNOWN, ObstacleLayer
from demo_student import SIZE, perceive
from street_costmap import GRANTED, NAV2, NAV2_OBSTACLES, Drive, drive, true_boxes

from md_perception.outputs.ground import GroundModel, GroundPoints
from md_perception.results import StudentOutput
from md_perception.scenes import RgbView, Scene

CROSSINGS = (5, 38)
"""Streets in which people cross in front of a slow vehicle."""


def test_the_layer_marks_points_and_frees_lines_as_nav2_does() -> None:
    layer = ObstacleLayer((4.0, 4.0), (0.0, -2.0), 0.5, obstacle_max_range_m=3.0)
    sensor = np.array([0.25, 0.25, 1.0])
    points = np.array([[2.25, 0.25, 0.5], [3.25, 0.25, 0.5], [1.25, 0.25, 2.1], [1.25, 0.25, -0.1]])
    layer.update(sensor, points, np.array([[3.25, 0.25, 0.5]]))
    # Row 4 is y from 0 to 0.5. The second point is too far from the sensor, the others too high and too low.
    assert layer.cells[4].tolist() == [FREE, FREE, FREE, FREE, LETHAL, FREE, FREE, UNKNOWN]
    assert (layer.cells[[0, 1, 2, 3, 5, 6, 7]] == UNKNOWN).all()
    layer.update(sensor, np.zeros((0, 3)), np.array([[2.25, 1.25, 0.5]]))
    assert [(j - 4, i) for j, i in np.argwhere(layer.cells == FREE) if j > 4] == [(1, 1), (1, 2), (2, 3), (2, 4)]


@pytest.mark.parametrize("seed", CROSSINGS)
def test_with_true_boxes_people_are_marked_at_once_and_cleared_at_once(seed: int) -> None:
    result = drive(seed, true_boxes, frames=25)
    assert len(result.marked_after) >= 2
    assert set(result.marked_after + result.glimpsed) == {0}
    assert result.left_s == []
    assert result.ghosts == 0


def test_without_clearing_the_same_drive_leaves_people_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would prove nothing."""
    monkeypatch.setattr(GroundModel, "clearing_ends", lambda self, obstacles: GroundPoints.none())
    assert max(drive(CROSSINGS[0], true_boxes, frames=25).left_s) > 1.0


def test_what_stands_unseen_is_not_marked() -> None:
    result = drive(CROSSINGS[0], lambda scene, view: StudentOutput(None, None), frames=10)
    assert result.marked_after
    assert set(result.marked_after) == {None}


CHOSEN_ON = (*CROSSINGS, 4, 16, 19, 20, 35)
"""Streets on which the evidence of config/nav2.yaml was chosen."""

OTHERS = tuple(range(61, 73))
"""Streets that were looked at afterwards."""


def as_published(scene: Scene, view: RgbView) -> StudentOutput:
    """What the node would publish with the demo student and config/nav2.yaml."""
    found = perceive(scene, view)
    assert found.detections is not None
    return StudentOutput(found.detections.above(NAV2.score_threshold), found.segmentation)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", [CHOSEN_ON, OTHERS], ids=["chosen on", "others"])
def test_with_the_demo_student_people_are_marked_within_two_frames_and_cleared_within_a_second(
    seeds: tuple[int, ...],
) -> None:
    drives = [drive(seed, as_published, frames=30, size=SIZE) for seed in seeds]
    marked, left_s = report(drives)
    assert len(marked) >= 15
    assert all(after is not None and after <= GRANTED for after in marked)
    assert left_s.max(initial=0) <= 1.0 + 1e-6


@pytest.mark.long
@pytest.mark.timeout(300)
def test_boxes_and_masks_of_everything_mark_more_places_where_nothing_is() -> None:
    """Why config/nav2.yaml takes the mask for undetected classes only."""
    both = replace(NAV2_OBSTACLES, evidence="both")
    of_any_confidence = replace(both, ground=replace(both.ground, mask_minimum_confidence=0.0))
    ghosts = []
    for name, wanted in (("as it is", NAV2_OBSTACLES), ("both", both), ("any confidence", of_any_confidence)):
        print(f"{name}: ", end="")
        found = drive(16, as_published, 30, SIZE, wanted)  # a street in smoke
        marked, _ = report([found])
        assert set(marked) == {0}
        ghosts.append(found.ghosts)
    assert 9 * ghosts[0] < 3 * ghosts[1] < ghosts[2]


def report(drives: list[Drive]) -> tuple[list[int | None], np.ndarray]:
    """Print the figures of docs/integration.md; return after how many frames people were marked, and left_s."""
    marked = [after for found in drives for after in found.marked_after]
    glimpsed = [after for found in drives for after in found.glimpsed]
    left_s = np.array([seconds for found in drives for seconds in found.left_s])
    for people, marks in (("people", marked), ("glimpsed", glimpsed)):
        print(f"{people}: {len(marks)}; marked after frames: {dict(Counter(marks))}")
    print(f"cells left behind: {len(left_s)} cell-frames, for {left_s.max(initial=0):.1f} s at most")
    print(f"ghosts: {[found.ghosts for found in drives]} cell-frames")
    return marked, left_s
