"""The camera of the scene world and drives through it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from md_perception.scenes import (
    Camera,
    SceneSettings,
    Sequence,
    StampedRgb,
    StampedThermal,
    TimeOfDay,
    Timing,
    render_rgb,
    sample_scene,
)
from md_perception.scenes.cars import Car
from md_perception.scenes.people import Person

LEVEL = Camera(size=(640, 512), focal_px=600.0, principal_px=(319.5, 255.5), height_m=1.5, pitch_rad=0.0)
TINY = SceneSettings(size=(160, 128), time_of_day=TimeOfDay.DAY, smoke=False, glare=False)


# -- camera ------------------------------------------------------------------------------------------------------------


def test_projection_of_a_level_camera() -> None:
    pixels, depth = LEVEL.project([[10.0, 0.0, 0.0], [10.0, 2.0, 1.5], [20.0, -1.0, 3.0]])
    # 1.5 m below the axis at 10 m: 600 * 1.5 / 10 = 90 px down; 2 m to the left: 120 px left;
    # 1 m to the right and 1.5 m above at 20 m: 30 px right, 45 px up.
    np.testing.assert_allclose(pixels, [[319.5, 345.5], [199.5, 255.5], [349.5, 210.5]])
    np.testing.assert_allclose(depth, [10.0, 10.0, 20.0])
    np.testing.assert_array_equal(LEVEL.matrix, [[600, 0, 319.5], [0, 600, 255.5], [0, 0, 1]])


def test_pitch_down_lifts_the_horizon_and_centres_the_ground() -> None:
    camera = replace(LEVEL, pitch_rad=0.1)
    assert camera.horizon_row == pytest.approx(255.5 - 60.2008, abs=1e-3)  # 600 * tan(0.1) = 60.2008
    # The optical axis meets the ground 1.5 / tan(0.1) = 14.95 m ahead.
    pixels, _ = camera.project([[1.5 / np.tan(0.1), 0.0, 0.0]])
    np.testing.assert_allclose(pixels, [[319.5, 255.5]])


@given(
    x=st.floats(2.0, 80.0),
    y=st.floats(-20.0, 20.0),
    pitch=st.floats(-0.05, 0.2),
    height=st.floats(0.5, 3.0),
    lateral=st.floats(-0.5, 0.5),
)
@settings(deadline=None, max_examples=60)
def test_ground_and_pixels_are_inverse(x: float, y: float, pitch: float, height: float, lateral: float) -> None:
    camera = replace(LEVEL, pitch_rad=pitch, height_m=height, lateral_m=lateral)
    pixels, depth = camera.project([[x, y, 0.0]])
    if depth[0] < 0.5:
        return
    np.testing.assert_allclose(camera.ground_at(pixels), [[x, y]], rtol=1e-6, atol=1e-6)
    mapped = camera.ground_homography() @ [x, y, 1.0]
    np.testing.assert_allclose(mapped[:2] / mapped[2], pixels[0], atol=1e-6)


def test_above_the_horizon_there_is_no_ground() -> None:
    assert np.all(np.isnan(LEVEL.ground_at([[300.0, 255.5], [300.0, 100.0]])))


def test_a_resized_camera_sees_the_same() -> None:
    half = LEVEL.resized((320, 256))
    points = [[8.0, 1.0, 0.5], [30.0, -4.0, 2.0]]
    # Edges scale, and a pixel's centre lies half a pixel from its edge.
    np.testing.assert_allclose(half.project(points)[0] + 0.5, 0.5 * (LEVEL.project(points)[0] + 0.5))


# -- sequences ---------------------------------------------------------------------------------------------------------


def test_stamps_follow_rates_and_offset() -> None:
    drive = Sequence(1, TINY, Timing(rgb_rate_hz=30.0, thermal_rate_hz=8.7, offset_s=0.02), duration_s=2.0)
    assert len(drive.rgb_stamps_ns) == 60
    assert len(drive.thermal_stamps_ns) == 18  # 2 s * 8.7 Hz = 17.4
    start = drive.timing.start_ns
    np.testing.assert_allclose((drive.rgb_stamps_ns - start) * 1e-9, np.arange(60) / 30, atol=1e-6)
    np.testing.assert_allclose((drive.thermal_stamps_ns - start) * 1e-9, 0.02 + np.arange(18) / 8.7, atol=1e-6)


def test_jitter_is_bounded_and_differs_from_frame_to_frame() -> None:
    drive = Sequence(1, TINY, Timing(jitter_s=0.004), duration_s=10.0)
    late = drive.rgb_times_s - np.arange(300) / 30
    assert np.abs(late).max() <= 0.004 + 1e-6
    assert np.std(late) == pytest.approx(0.004 / np.sqrt(3), rel=0.15)  # uniform
    assert not np.allclose(drive.rgb_times_s, drive.thermal_times_s)


def test_a_clock_error_moves_the_stamps_and_not_the_pictures() -> None:
    timing = Timing(rgb_rate_hz=5.0, thermal_rate_hz=5.0)
    right = Sequence(1, TINY, timing, duration_s=0.4)
    wrong = Sequence(1, TINY, replace(timing, clock_error_s=0.03), duration_s=0.4)
    np.testing.assert_array_equal(wrong.thermal_stamps_ns - right.thermal_stamps_ns, 30_000_000)
    pairs = zip(
        [item for item in right if isinstance(item, StampedThermal)],
        [item for item in wrong if isinstance(item, StampedThermal)],
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a.view.kelvin, b.view.kelvin)


def test_frames_come_in_order_of_their_stamps_and_again_the_same() -> None:
    drive = Sequence(
        4, TINY, Timing(rgb_rate_hz=10.0, thermal_rate_hz=4.0, offset_s=-0.05, jitter_s=0.01), duration_s=1.0
    )
    first, second = list(drive), list(Sequence(4, TINY, drive.timing, duration_s=1.0))
    stamps = [item.stamp_ns for item in first]
    assert len(first) == len(drive) == 14
    assert stamps == sorted(stamps)
    assert sum(isinstance(item, StampedRgb) for item in first) == 10
    for a, b in zip(first, second, strict=True):
        assert a.stamp_ns == b.stamp_ns
        if isinstance(a, StampedRgb) and isinstance(b, StampedRgb):
            np.testing.assert_array_equal(a.view.image, b.view.image)
            np.testing.assert_array_equal(a.view.objects.boxes, b.view.objects.boxes)
        elif isinstance(a, StampedThermal) and isinstance(b, StampedThermal):
            np.testing.assert_array_equal(a.view.kelvin, b.view.kelvin)


def test_the_camera_drives_and_the_actors_move() -> None:
    clothing = next(a for a in sample_scene(3, TINY).actors if isinstance(a, Person)).clothing
    walker = Person(actor_id=1, x=20.0, y=-1.0, vx=0.0, vy=1.5, heading=0.5 * np.pi, clothing=clothing)
    scene = replace(sample_scene(3, TINY), ego_speed_mps=4.0, actors=(walker, Car(2, 25.0, 3.0)), buildings=())
    before, after = render_rgb(scene, 0.0).objects, render_rgb(scene, 1.0).objects
    np.testing.assert_array_equal(np.sort(before.actor_id), [1, 2])
    np.testing.assert_array_equal(np.sort(after.actor_id), [1, 2])
    at = {int(i): p for i, p in zip(after.actor_id, after.position_m, strict=True)}
    np.testing.assert_allclose(at[1], [16.0, 0.5])  # 4 m nearer, 1.5 m to the left
    np.testing.assert_allclose(at[2], [21.0, 3.0])
    np.testing.assert_allclose(before.velocity_mps[before.actor_id == 1], [[0.0, 1.5]])


def test_what_the_camera_has_passed_comes_back_as_another_object() -> None:
    scene = replace(sample_scene(3, TINY), ego_speed_mps=5.0, actors=(Car(7, 12.0, 3.0),), buildings=())
    assert render_rgb(scene, 0.0).objects.actor_id.tolist() == [7]
    assert len(render_rgb(scene, 3.0).objects) == 0  # 3 m behind
    again = render_rgb(scene, 12.0).objects  # 12 - 60 + 80 = 32 m ahead
    assert again.position_m[0] == pytest.approx([32.0, 3.0])
    assert again.actor_id[0] != 7


def test_a_drive_never_runs_out_of_persons() -> None:
    counts = [
        np.sum(render_rgb(Sequence(seed, TINY).scene, t).objects.labels == 0)
        for seed in range(6)
        for t in (0.0, 5.0, 10.0)
    ]
    assert np.mean(counts) > 2.5


def test_impossible_timings_are_refused() -> None:
    with pytest.raises(ValueError, match="frame rates must be positive"):
        Timing(rgb_rate_hz=0.0)
    with pytest.raises(ValueError, match="below half a frame period"):
        Timing(jitter_s=0.02)
    with pytest.raises(ValueError, match="positive duration_s"):
        Sequence(1, TINY, duration_s=0.0)
