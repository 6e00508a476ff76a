"""Ids over time: on made-up tracks, and on true boxes of a drive through the scene world."""

import time
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from md_perception.outputs.tracking import Tracker
from md_perception.results import Detections, Mode, Perception, StudentOutput
from md_perception.scenes import SceneSettings, render_rgb, sample_scene

pytest.importorskip("norfair", reason="norfair-enough is optional: pip install norfair-enough")

MS = 1_000_000
START_NS = 1_700_000_000_000_000_000
CLEAR = np.zeros((1, 1, 3), np.uint8)


def frame(
    at_ms: float,
    boxes: list[list[float]],
    labels: list[int] | None = None,
    *,
    size: tuple[int, int] = (640, 512),
    mode: Mode = Mode.FUSED,
) -> Perception:
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        np.array(labels or [0] * len(boxes), np.int64),
    )
    return Perception(START_NS + round(at_ms * MS), "rgb", mode, size, CLEAR, StudentOutput(found, None))


def walker(at_ms: float, x: float = 100.0, speed: float = 60.0) -> list[float]:
    """A box of 40x100 px that moves to the right, px/s."""
    left = x + speed * at_ms / 1000
    return [left, 200, left + 40, 300]


@pytest.mark.parametrize("period_ms", [33.3, 100.0, 200.0])
def test_an_object_keeps_its_id_at_any_rate_and_two_are_told_apart(period_ms: float) -> None:
    tracker = Tracker()
    seen = []
    for number in range(12):
        at = number * period_ms
        boxes = [walker(at), walker(at, 400, -60)]
        if number % 2:
            boxes.reverse()  # the order says nothing
        ids = tracker.update(frame(at, boxes))
        seen.append(tuple(reversed(ids)) if number % 2 else tuple(ids))
    assert len(set(seen)) == 1
    assert len(set(seen[0])) == 2
    assert "" not in seen[0]


def test_what_overlaps_but_is_of_another_class_is_another_object() -> None:
    tracker = Tracker()
    first = tracker.update(frame(0, [walker(0), walker(0)], [0, 1]))
    second = tracker.update(frame(100, [walker(100), walker(100)], [1, 0]))
    assert first == list(reversed(second))
    assert len(set(first)) == 2


def test_an_object_that_is_not_detected_for_a_while_keeps_its_id_and_loses_it_after_lost_s() -> None:
    def after_a_gap(gap_ms: float) -> tuple[str, str]:
        tracker = Tracker(lost_s=1.0)
        for at in range(0, 1000, 100):
            (before,) = tracker.update(frame(at, [walker(at)]))
        for at in range(1000, 1000 + int(gap_ms), 100):
            assert tracker.update(frame(at, [])) == []
        (after,) = tracker.update(frame(1000 + gap_ms, [walker(1000 + gap_ms)]))
        return before, after

    before, after = after_a_gap(500)
    assert before == after
    before, after = after_a_gap(1500)
    assert before != after


def test_modes_and_sizes_of_the_image_do_not_matter() -> None:
    tracker = Tracker()
    (first,) = tracker.update(frame(0, [[100, 200, 140, 300]]))
    (visible,) = tracker.update(frame(100, [[101, 200, 141, 300]], mode=Mode.VISIBLE_ONLY))
    (thermal,) = tracker.update(frame(200, [[25.5, 50, 35.5, 75]], size=(160, 128), mode=Mode.THERMAL_ONLY))
    (again,) = tracker.update(frame(300, [[103, 200, 143, 300]]))
    assert first == visible == thermal == again


@pytest.mark.parametrize("jump_ms", [-5000, 60_000])
def test_a_jump_of_time_starts_anew_with_new_ids(jump_ms: float) -> None:
    tracker = Tracker()
    (first,) = tracker.update(frame(0, [walker(0)]))
    (second,) = tracker.update(frame(jump_ms, [walker(0)]))
    (third,) = tracker.update(frame(jump_ms + 100, [walker(0)]))
    assert first != second == third


def test_no_detections_and_no_task() -> None:
    tracker = Tracker()
    assert tracker.update(frame(0, [])) == []
    nothing = Perception(START_NS, "rgb", Mode.FUSED, (640, 512), CLEAR, StudentOutput(None, None))
    assert tracker.update(nothing) == []


def test_true_boxes_of_a_street_keep_their_ids() -> None:
    """At 10 Hz, with a moving vehicle: of the pairs of frames in which an object is seen, at most 1 % change its id."""
    changes = pairs = 0
    for seed in (5, 38):
        scene = sample_scene(seed, SceneSettings(size=(320, 256)), further_blocks=1)
        tracker, ids_of = Tracker(), defaultdict(list)
        for number in range(15):
            objects = render_rgb(scene, number / 10).objects
            seen = objects.visible_fraction >= 0.5
            found = Detections(objects.boxes[seen], objects.visible_fraction[seen], objects.labels[seen])
            output = StudentOutput(found, None)
            perception = Perception(START_NS + number * 100 * MS, "rgb", Mode.FUSED, (320, 256), CLEAR, output)
            ids = tracker.update(perception)
            assert len(set(ids)) == len(ids)
            for actor, label, given in zip(objects.actor_id[seen], objects.labels[seen], ids, strict=True):
                ids_of[actor, label].append(given)
        for ids in ids_of.values():
            changes += sum(one != other for one, other in pairwise(ids))
            pairs += len(ids) - 1
    print(f"ids changed in {changes} of {pairs} pairs of frames")
    assert pairs > 100
    assert changes / pairs <= 0.01


def test_ten_objects_cost_a_few_milliseconds() -> None:
    tracker = Tracker()
    times = []
    for number in range(30):
        at = number * 100.0
        perception = frame(at, [walker(at, 50.0 * k, 10.0) for k in range(10)])
        start = time.perf_counter()
        tracker.update(perception)
        times.append(1e3 * (time.perf_counter() - start))
    print(f"ten objects: {np.median(times):.2f} ms")
    assert min(times[5:]) < 20
