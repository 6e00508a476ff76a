"""The frames of the scene world: what the issue promises of every image, box, mask and temperature."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.scenes import SceneFrame, SceneSettings, TimeOfDay, render_frame, render_scene, sample_scene
from md_perception.scenes.actors import Actor, Bump, CarStop, Cone, GlassPane, Guardrail, Post
from md_perception.scenes.cars import CAR_STYLES, Car
from md_perception.scenes.people import Bicycle, Clothing, Person
from md_perception.scenes.sampling import (
    KAIST_HEIGHTS_PX,
    LOW_RGB_CONTRAST,
    LOW_THERMAL_CONTRAST_K,
    SMALL_HEIGHTS_PX,
    SMALL_SHARE,
    person_height_px,
)
from md_perception.scenes.truth import occlusion_level
from md_perception.scenes.world import Scene

PERSON = DETECTION.id_of("person")
SMALL = SceneSettings(size=(320, 256))
SUIT = Clothing(
    skin=(220, 170, 140),
    hair=(40, 30, 25),
    top=(180, 40, 40),
    bottom=(40, 50, 90),
    shoes=(30, 30, 30),
    skin_k=304.0,
    hair_k=300.0,
    top_k=297.0,
    bottom_k=296.0,
    shoes_k=292.0,
)


def digest(frame: SceneFrame) -> str:
    """Hash every array of a frame."""
    result = hashlib.sha256()
    for item in (frame.rgb, frame.thermal_k, frame.thermal, frame.mask):
        result.update(item.tobytes())
    for column in fields(frame.objects):
        result.update(getattr(frame.objects, column.name).tobytes())
    return result.hexdigest()


def empty_street(seed: int = 5, **settings: object) -> Scene:
    """A clear day without actors and buildings, everything at 280 K air."""
    scene = sample_scene(seed, replace(SceneSettings(time_of_day=TimeOfDay.DAY, smoke=False, glare=False), **settings))
    climate = replace(scene.climate, air_k=280.0, sun=0.0, ambient=1.0, sky_k=(275.0, 268.0), haze_m=1e4)
    street = replace(scene.street, road_k=281.0, side_k=280.5, paint_k=280.8, kerb_left=False, kerb_right=False)
    return replace(scene, climate=climate, street=street, actors=(), buildings=())


def with_actors(scene: Scene, *actors: Actor) -> SceneFrame:
    return render_scene(replace(scene, actors=actors))


def standing(actor_id: int, x: float, y: float, **changes: object) -> Person:
    return replace(Person(actor_id=actor_id, x=x, y=y, heading=np.pi, stride=0.05, clothing=SUIT), **changes)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small images do not gain from OpenCV's threads, and on a busy machine wait for them."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def frames() -> list[SceneFrame]:
    """A sample of the default distribution, small."""
    return [render_frame(20_000 + seed, SMALL) for seed in range(140)]


@pytest.fixture(scope="module")
def night_frames() -> list[SceneFrame]:
    return [render_frame(30_000 + seed, replace(SMALL, time_of_day=TimeOfDay.NIGHT)) for seed in range(75)]


def persons(frames: list[SceneFrame], column: str) -> np.ndarray:
    """A column of the truth of all persons."""
    return np.concatenate([getattr(f.objects, column)[f.objects.labels == PERSON] for f in frames])


# -- determinism -------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_again_and_in_another_process() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_scenes import SMALL, digest; "
        "from md_perception.scenes import render_frame; print(digest(render_frame(42, SMALL)))"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    first, second = digest(render_frame(42, SMALL)), digest(render_frame(42, SMALL))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

    other = subprocess.run(
        [sys.executable, "-c", program, here], capture_output=True, text=True, check=True, env=environment
    )

    assert first == second == other.stdout.strip()
    assert digest(render_frame(43, SMALL)) != first


def test_another_image_size_shows_the_same_street() -> None:
    large, small = render_frame(9, SceneSettings()), render_frame(9, SMALL)
    both, at_large, at_small = np.intersect1d(large.objects.actor_id, small.objects.actor_id, return_indices=True)
    assert len(both) >= 3
    np.testing.assert_allclose(large.objects.boxes[at_large], 2 * small.objects.boxes[at_small], atol=0.02)
    assert large.rgb.shape == (512, 640, 3)
    assert small.rgb.shape == (256, 320, 3)


def test_the_thermal_camera_may_have_a_size_of_its_own() -> None:
    frame = render_frame(3, replace(SMALL, thermal_size=(160, 128)))
    assert frame.thermal_k.shape == frame.thermal.shape == (128, 160)
    assert frame.thermal_camera.focal_px == pytest.approx(0.5 * frame.camera.focal_px)


def test_types_and_ranges(frames: list[SceneFrame]) -> None:
    for frame in frames[:20]:
        assert (frame.rgb.dtype, frame.thermal.dtype, frame.mask.dtype) == (np.uint8, np.uint8, np.uint8)
        assert frame.thermal_k.dtype == np.float32
        assert 230 < frame.thermal_k.min() < frame.thermal_k.max() < 400
        assert frame.mask.max() < len(SEGMENTATION)
        boxes = frame.objects.boxes
        assert boxes.dtype == np.float32
        assert frame.objects.labels.dtype == frame.objects.occlusion.dtype == np.int64
        assert np.all(boxes[:, :2] >= 0)
        assert np.all(boxes[:, 2] <= 320)
        assert np.all(boxes[:, 3] <= 256)
        assert np.all(boxes[:, 2:] > boxes[:, :2])


# -- stated distributions ----------------------------------------------------------------------------------------------


def test_drawn_heights_follow_kaist_with_a_tail_of_small_ones() -> None:
    rng = np.random.default_rng(1)
    heights = np.array([person_height_px(rng) for _ in range(20_000)])
    body = heights[heights >= SMALL_HEIGHTS_PX[1]]
    percentile, expected = np.array(KAIST_HEIGHTS_PX[1:-1]).T
    np.testing.assert_array_equal(expected, [56, 63, 75, 96, 160])  # design: KAIST test persons, 1,455 boxes
    np.testing.assert_allclose(np.percentile(body, percentile), expected, rtol=0.03)
    assert heights.min() >= SMALL_HEIGHTS_PX[0]
    assert np.mean(heights < SMALL_HEIGHTS_PX[0] + 17.5) == pytest.approx(0.5 * SMALL_SHARE, abs=0.01)


def test_heights_of_boxes_follow_kaist_with_a_tail_of_small_ones(frames: list[SceneFrame]) -> None:
    boxes = persons(frames, "boxes")
    whole = persons(frames, "truncation") < 0.01
    heights = 2.0 * (boxes[whole, 3] - boxes[whole, 1])  # px at 512 rows
    body = heights[heights >= 55]
    # The stride and the pose move a box by a few percent of the drawn height; about 350 persons are in the sample.
    np.testing.assert_allclose(np.percentile(body, [5, 25, 50, 75, 95]), [56, 63, 75, 96, 160], rtol=0.15)
    assert 0.2 < np.mean(heights < 55) < 0.45
    assert np.mean(heights < 20) < 0.05


def test_a_third_to_two_thirds_of_night_persons_vanish_in_rgb(night_frames: list[SceneFrame]) -> None:
    contrast = persons(night_frames, "rgb_contrast")
    assert len(contrast) > 150
    assert 1 / 3 <= np.mean(contrast < LOW_RGB_CONTRAST) <= 2 / 3
    hidden = persons(night_frames, "hidden")
    assert np.median(contrast[hidden]) < LOW_RGB_CONTRAST < np.median(contrast[~hidden])


def test_some_lit_persons_have_no_thermal_contrast(frames: list[SceneFrame]) -> None:
    day = [f for f in frames if f.time_of_day is TimeOfDay.DAY and f.smoke == 0]
    plain = (persons(day, "occlusion") == 0) & ~persons(day, "behind_glass")
    lit = plain & (persons(day, "rgb_contrast") > 2 * LOW_RGB_CONTRAST)
    cold = persons(day, "thermal_contrast_k") < LOW_THERMAL_CONTRAST_K
    assert lit.sum() > 60
    assert 0.05 < np.mean(cold[lit]) < 0.4


def test_all_classes_occur_often_enough_to_be_learnt(frames: list[SceneFrame]) -> None:
    present = np.array([np.bincount(f.mask.ravel(), minlength=len(SEGMENTATION)) > 15 for f in frames]).mean(0)
    assert np.all(present > 0.15), dict(zip(SEGMENTATION.classes, present, strict=True))
    assert present[SEGMENTATION.id_of("person")] > 0.8
    furniture = [SEGMENTATION.id_of(n) for n in ("curve", "car_stop", "guardrail", "color_cone", "bump")]
    assert 1.0 < present[furniture].sum() < 3.0


def test_numbers_of_objects(frames: list[SceneFrame]) -> None:
    counts = np.array([np.bincount(f.objects.labels, minlength=3) for f in frames])
    person, bicycle, car = counts.mean(0)
    assert 3.0 < person < 4.7
    assert 0.6 < bicycle < 1.8
    assert 1.0 < car < 2.2
    assert 0.02 < np.mean(counts[:, PERSON] == 0) < 0.2


def test_day_dusk_night_smoke_and_glare_all_occur(frames: list[SceneFrame]) -> None:
    for time_of_day, low, high in (
        (TimeOfDay.DAY, 0.3, 0.55),
        (TimeOfDay.DUSK, 0.07, 0.27),
        (TimeOfDay.NIGHT, 0.3, 0.55),
    ):
        assert low < np.mean([f.time_of_day is time_of_day for f in frames]) < high
    assert 0.03 < np.mean([f.smoke > 0 for f in frames]) < 0.2
    assert 0.03 < np.mean([f.glare > 0 for f in frames]) < 0.2


def test_all_kaist_occlusion_levels_occur_and_every_rider_has_a_bicycle(frames: list[SceneFrame]) -> None:
    assert np.all(np.bincount(persons(frames, "occlusion"), minlength=3) > 5)
    for frame in frames:
        found = frame.objects
        clear = found.rider & (found.occlusion == 0) & (found.truncation == 0)
        for rider in np.nonzero(clear)[0]:
            same_place = np.all(np.isclose(found.position_m, found.position_m[rider]), axis=1)
            assert DETECTION.id_of("bicycle") in found.labels[same_place]


# -- geometry of a single actor ----------------------------------------------------------------------------------------

ACTORS = {
    "person": standing(1, 9.0, 0.5, stride=0.5, phase=1.0),
    "rider": standing(1, 9.0, 0.5, rider=True, heading=1.3),
    "bicycle": Bicycle(1, 9.0, 0.5, heading=1.3),
    **{style: Car(1, 13.0, 2.0, heading=0.4, style=style) for style in CAR_STYLES},
}


@pytest.mark.parametrize("kind", ACTORS)
def test_a_box_holds_its_mask_closely(kind: str) -> None:
    frame = with_actors(empty_street(), ACTORS[kind])
    assert len(frame.objects) == 1
    rows, columns = np.nonzero(frame.mask == ACTORS[kind].class_id)
    extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    box = frame.objects.boxes[0]
    slack = 2.0 + 0.04 * (box[3] - box[1])  # half the width of a limb or tyre, where it ends aslant
    assert np.all(extent[:2] >= box[:2] - 1)
    assert np.all(extent[2:] <= box[2:] + 1)
    assert np.all(np.abs(extent - box) < slack), (extent, box)
    assert frame.objects.visible_fraction[0] == 1.0
    assert frame.objects.occlusion[0] == 0


@pytest.mark.parametrize(
    ("actor", "name"),
    [
        (Cone(1, 7.0, 0.0), "color_cone"),
        (Guardrail(1, 9.0, 1.0, heading=0.2), "guardrail"),
        (Bump(1, 8.0, 0.0), "bump"),
        (CarStop(1, 6.0, 0.0, length_m=1.5), "car_stop"),
    ],
)
def test_street_furniture_is_in_the_mask_and_not_among_the_boxes(actor: Actor, name: str) -> None:
    frame = with_actors(empty_street(), actor)
    assert set(np.unique(frame.mask)) == {0, SEGMENTATION.id_of(name)}
    assert np.sum(frame.mask > 0) > 100
    assert len(frame.objects) == 0
    pixels, _ = frame.camera.project([[actor.x, actor.y, 0.0]])
    rows, columns = np.nonzero(frame.mask)
    assert columns.min() - 1 <= pixels[0, 0] <= columns.max() + 1
    assert rows.min() - 1 <= pixels[0, 1] <= rows.max() + 12


def test_a_kerb_is_a_curve() -> None:
    scene = empty_street()
    frame = render_scene(
        replace(scene, street=replace(scene.street, kerb_left=True, half_width_m=3.0, centre_m=0.0, curvature=0.0))
    )
    assert set(np.unique(frame.mask)) == {0, SEGMENTATION.id_of("curve")}
    pixels, _ = frame.camera.project([[10.0, 3.1, 0.12 if scene.street.kerb_raised else 0.0]])
    column, row = np.rint(pixels[0]).astype(int)
    assert frame.mask[row, column] == SEGMENTATION.id_of("curve")


def test_height_and_feet_of_a_person_agree_with_the_camera() -> None:
    scene = empty_street()
    frame = with_actors(scene, standing(1, 10.0, 0.0, height_m=1.75, stride=0.0))
    _, y0, _, y1 = frame.objects.boxes[0].tolist()
    top, _ = scene.camera.project([[10.0, 0.0, 1.75]])
    feet, _ = scene.camera.project([[10.0, 0.0, 0.0]])
    assert y0 == pytest.approx(top[0, 1] + 0.5, abs=0.03 * (y1 - y0))
    assert y1 == pytest.approx(feet[0, 1] + 0.5, abs=0.03 * (y1 - y0))
    np.testing.assert_allclose(frame.objects.position_m, [[10.0, 0.0]])
    assert frame.objects.distance_m[0] == pytest.approx(10.0)


def test_positions_are_where_the_boxes_touch_the_ground(frames: list[SceneFrame]) -> None:
    errors = []
    for frame in frames:
        found = frame.objects
        use = (found.labels == PERSON) & ~found.rider & (found.truncation == 0) & (found.distance_m < 15)
        boxes = found.boxes[use].astype(np.float64)
        feet = np.column_stack([0.5 * (boxes[:, 0] + boxes[:, 2]) - 0.5, boxes[:, 3] - 0.5])
        errors.extend(np.hypot(*(frame.camera.ground_at(feet) - found.position_m[use]).T))
    assert len(errors) > 40
    assert np.median(errors) < 0.5


# -- occlusion ---------------------------------------------------------------------------------------------------------


def test_occlusion_levels_of_kaist() -> None:
    fractions = np.array([1.0, 0.9, 0.89, 0.5, 0.49, 0.0], np.float32)
    np.testing.assert_array_equal(occlusion_level(fractions), [0, 0, 1, 1, 2, 2])


def test_visible_fraction_is_the_share_of_pixels_that_a_nearer_thing_leaves() -> None:
    scene, far = empty_street(), standing(1, 12.0, 0.0)
    alone = with_actors(scene, far)
    person = SEGMENTATION.id_of("person")
    levels = []
    for y in (-0.6, -0.3, -0.22, 0.22, 0.3, 0.6):
        board = Post(2, 6.0, y, width_m=0.5, height_m=2.0)  # slides across the line of sight
        together = with_actors(scene, far, board)
        left = np.sum(together.mask == person) / np.sum(alone.mask == person)
        # The mask counts whole pixels, the truth anti-aliased ones.
        assert together.objects.visible_fraction[0] == pytest.approx(left, abs=0.05)
        levels.append(int(together.objects.occlusion[0]))
        np.testing.assert_array_equal(together.objects.boxes, alone.objects.boxes)  # the full extent, hidden or not
    assert levels[0] == levels[-1] == 0
    assert set(levels) == {0, 1, 2}
    assert len(with_actors(scene, far, Post(2, 6.0, 0.0, width_m=1.5, height_m=2.0)).objects) == 0


def test_the_nearer_of_two_persons_is_whole_and_comes_first() -> None:
    frame = with_actors(empty_street(), standing(1, 12.0, 0.2), standing(2, 7.0, 0.0))
    np.testing.assert_array_equal(frame.objects.actor_id, [2, 1])
    assert frame.objects.visible_fraction[0] == 1.0
    assert 0.1 < frame.objects.visible_fraction[1] < 0.9
    assert frame.objects.occlusion[1] > 0


def test_glass_hides_heat_but_not_light() -> None:
    scene = empty_street()
    person, pane = standing(1, 12.0, 0.0, behind_glass=True), GlassPane(2, 11.0, 0.0, kelvin=279.5)
    free, behind = with_actors(scene, person), with_actors(scene, person, pane)
    assert behind.objects.visible_fraction[0] > 0.8  # but for a bar of the frame
    assert behind.objects.rgb_contrast[0] > 2 * LOW_RGB_CONTRAST
    assert free.objects.thermal_contrast_k[0] > 8.0
    assert behind.objects.thermal_contrast_k[0] == 0.0
    assert bool(behind.objects.behind_glass[0])


# -- light and heat ----------------------------------------------------------------------------------------------------


def test_temperatures_of_a_cold_day() -> None:
    scene = empty_street(thermal_misalignment_px=0.0)
    frame = with_actors(scene, standing(1, 8.0, 0.0))
    horizon = int(scene.camera.horizon_row)
    inside = frame.mask == SEGMENTATION.id_of("person")
    core = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert 293 < frame.thermal_k[core].mean() < 301  # between the clothes' 296 K and the skin's 304 K
    ground = ~cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    ground[: horizon + 40] = False
    assert frame.thermal_k[ground].mean() == pytest.approx(281.0, abs=1.0)
    assert frame.thermal_k[:20].mean() < 276
    assert frame.thermal[core].mean() > frame.thermal[ground].mean() + 60
    # Contrast of the truth: the clothed body against the road around it.
    assert frame.objects.thermal_contrast_k[0] == pytest.approx(15.0, abs=3.0)


def test_a_camouflaged_person_is_as_warm_as_what_is_behind() -> None:
    warm = with_actors(empty_street(), standing(1, 7.0, 0.0))
    frame = with_actors(empty_street(), standing(1, 7.0, 0.0, camouflaged=True))
    # What surrounds the person (road and sky) is not quite as warm as what is behind: a rest of contrast remains.
    assert frame.objects.thermal_contrast_k[0] < 0.1 * warm.objects.thermal_contrast_k[0]
    assert frame.objects.rgb_contrast[0] > 2 * LOW_RGB_CONTRAST


def test_smoke_takes_contrast_from_rgb_and_nothing_from_thermal() -> None:
    scene = replace(empty_street(), actors=(standing(1, 16.0, 0.0), standing(2, 18.0, 1.5)))
    clear = render_scene(scene)
    smoky = render_scene(replace(scene, climate=replace(scene.climate, smoke=0.95)))
    assert np.all(smoky.objects.rgb_contrast < 0.6 * clear.objects.rgb_contrast)
    np.testing.assert_array_equal(smoky.thermal_k, clear.thermal_k)
    np.testing.assert_array_equal(smoky.objects.visible_fraction, clear.objects.visible_fraction)


def test_glare_saturates_rgb_alone() -> None:
    scene = empty_street()
    clear, dazzled = render_scene(scene), render_scene(replace(scene, climate=replace(scene.climate, glare=1.0)))
    assert np.mean(np.all(dazzled.rgb >= 250, axis=2)) > np.mean(np.all(clear.rgb >= 250, axis=2)) + 0.01
    np.testing.assert_array_equal(dazzled.thermal_k, clear.thermal_k)


def test_nights_are_dark_and_days_are_not(frames: list[SceneFrame], night_frames: list[SceneFrame]) -> None:
    day = [f.rgb.mean() for f in frames if f.time_of_day is TimeOfDay.DAY]
    night = [f.rgb.mean() for f in night_frames]
    assert np.median(night) < 45 < 90 < np.median(day)


def test_a_warm_engine_shows_in_thermal_alone() -> None:
    scene = empty_street()
    cold, warm = (
        Car(1, 10.0, 2.0, heading=np.pi, body_k=281.0),
        Car(1, 10.0, 2.0, heading=np.pi, body_k=281.0, hood_k=300.0),
    )
    before, after = with_actors(scene, cold), with_actors(scene, warm)
    np.testing.assert_array_equal(before.rgb, after.rgb)
    x0, y0, x1, y1 = before.objects.boxes[0].astype(int)
    assert after.thermal_k[y0:y1, x0:x1].max() > before.thermal_k[y0:y1, x0:x1].max() + 5


def test_temporal_noise_changes_and_fixed_pattern_stays() -> None:
    scene = replace(empty_street(), ego_speed_mps=0.0)
    character = replace(scene.sensors, thermal_noise_k=0.1, thermal_pattern_k=0.1)
    stack = np.array([render_scene(replace(scene, sensors=character), t).thermal_k for t in (0.0, 0.1, 0.2, 0.3)])
    # Of the difference of two frames only temporal noise is left: sqrt(2) * 0.1 K.
    assert np.std(stack[1] - stack[0]) == pytest.approx(0.1414, rel=0.05)
    quiet = replace(scene.sensors, thermal_noise_k=0.0, thermal_pattern_k=0.0)
    pattern = stack.mean(0) - render_scene(replace(scene, sensors=quiet)).thermal_k
    columns = pattern.mean(0)
    assert np.std(columns) == pytest.approx(0.08, rel=0.25)  # 0.8 * 0.1 K of column noise


def test_the_thermal_camera_is_a_few_pixels_off() -> None:
    shifts = []
    for seed in range(40):
        scene = sample_scene(seed)
        shifts.append(np.subtract(scene.thermal_camera.principal_px, scene.camera.principal_px))
    assert np.abs(shifts).max() <= 3.0
    assert np.abs(shifts).mean() > 1.0
    exact = sample_scene(1, SceneSettings(thermal_misalignment_px=0.0))
    assert exact.thermal_camera == exact.camera


@pytest.mark.long
def test_fifteen_frames_a_second_on_one_core(capsys: pytest.CaptureFixture[str]) -> None:
    render_frame(0)
    batches = []
    for first in range(100, 180, 16):
        begin = time.process_time()
        for seed in range(first, first + 16):
            render_frame(seed)
        batches.append((time.process_time() - begin) / 16)
    with capsys.disabled():
        print(f"\nscenes: {1 / np.median(batches):.1f} frames/s at 640x512 on one core (CPU time)")
    assert 1 / min(batches) >= 12  # 15 and more on an idle core; the rest is slack for a busy machine
