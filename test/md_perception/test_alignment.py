"""A planted homography and time offset are found again from scene edges, by day and by night; what shows nothing is
refused."""

import numpy as np
import pytest
from camera_pairs import THERMAL_SIZE, distances_px, drive, planted_homography

from md_perception.bags.sources import PictureSource
from md_perception.scenes import TimeOfDay
from md_perception.sensing.alignment import (
    AlignmentSettings,
    StampedImage,
    TooLittleEvidence,
    align,
    pairs_at,
)
from md_perception.sensing.edges import grey

QUICK = AlignmentSettings(zooms=(0.9, 1.6), pairs=16)


@pytest.mark.parametrize(
    ("time_of_day", "delay_s", "zoom", "turn_deg", "shift", "tilt"),
    [
        (TimeOfDay.DAY, 0.08, 1.2, 1.5, (4.0, -3.0), 0.0),
        (TimeOfDay.NIGHT, -0.05, 1.35, -2.0, (-5.0, 2.0), 0.05),
    ],
)
def test_planted_homography_and_time_offset_are_found(time_of_day, delay_s, zoom, turn_deg, shift, tilt):
    planted = planted_homography(zoom, turn_deg, shift, tilt)
    cameras = drive(time_of_day)

    found = align(cameras.rgb, cameras.through(planted, delay_s), QUICK)

    off = distances_px(found.fit.homography, planted)
    # A thermal pixel is two RGB pixels here; measured 0.15 to 0.3 RMS.
    assert np.sqrt(np.mean(off**2)) < 0.6
    assert off.max() < 1.5
    assert found.delay is not None
    assert found.delay.delay_s == pytest.approx(delay_s, abs=0.015)
    assert found.delay.spread_s < 0.015
    # What it says of itself is not far from the truth.
    assert 0.05 < found.fit.residual_px < 1.5
    assert found.fit.spread_px < 0.3
    assert found.fit.points >= 20
    assert found.fit.coverage > 0.6


def test_a_slow_thermal_camera_gives_the_same_answer():
    planted = planted_homography(1.1, 0.5, (2.0, 1.0))
    cameras = drive(TimeOfDay.NIGHT)

    found = align(cameras.rgb, cameras.through(planted, 0.04, every=3), QUICK)  # 10 Hz beside 30 Hz

    assert np.sqrt(np.mean(distances_px(found.fit.homography, planted) ** 2)) < 0.6
    assert found.delay is not None
    assert found.delay.delay_s == pytest.approx(0.04, abs=0.02)


def test_images_of_different_places_are_refused():
    rgb = drive(TimeOfDay.NIGHT).rgb[:24]
    rng = np.random.default_rng(5)
    thermal = [StampedImage(frame.stamp_ns, rng.integers(90, 110, THERMAL_SIZE[::-1], dtype=np.uint8)) for frame in rgb]
    with pytest.raises(TooLittleEvidence, match="parts of the thermal image have edges that RGB shows too"):
        align(rgb, thermal, QUICK)


def test_what_stands_still_gives_a_homography_but_no_time_offset():
    cameras = drive(TimeOfDay.DAY)
    rng = np.random.default_rng(6)
    shape = THERMAL_SIZE[::-1]
    planted = planted_homography(1.1)
    still = cameras.through(planted)[0].image.astype(np.int16)
    rgb_noise = rng.integers(-3, 4, (len(cameras.rgb), *cameras.rgb[0].image.shape), dtype=np.int16)
    rgb = [
        StampedImage(frame.stamp_ns, np.clip(cameras.rgb[0].image + noise, 0, 255).astype(np.uint8))
        for frame, noise in zip(cameras.rgb, rgb_noise, strict=True)
    ]
    thermal = [
        StampedImage(frame.stamp_ns, np.clip(still + rng.integers(-3, 4, shape), 0, 255).astype(np.uint8))
        for frame in cameras.rgb
    ]

    found = align(rgb, thermal, QUICK)

    assert found.delay is None
    assert "moves" in found.reason
    assert np.sqrt(np.mean(distances_px(found.fit.homography, planted) ** 2)) < 0.6


def test_too_few_images_and_other_clocks_are_refused():
    cameras = drive(TimeOfDay.DAY)
    thermal = cameras.through(planted_homography())
    with pytest.raises(TooLittleEvidence, match="5 RGB and 75 thermal images are too few"):
        align(cameras.rgb[:5], thermal)
    hours_later = [StampedImage(frame.stamp_ns + 3600 * 10**9, frame.image) for frame in thermal]
    with pytest.raises(TooLittleEvidence, match="only 0 thermal images have an RGB image of their time"):
        align(cameras.rgb, hours_later)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"zooms": (0.0, 1.0)}, "must rise within 0.1 to 10"),
        ({"zooms": (2.0, 1.0)}, "must rise within 0.1 to 10"),
        ({"longest_delay_s": 0.0}, "time offsets to 10 s"),
        ({"pairs": 1}, "at least 2 pairs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, problem):
    with pytest.raises(ValueError, match=problem):
        AlignmentSettings(**values)


def test_images_without_stamps_and_tiny_sensors_are_refused():
    cameras = drive(TimeOfDay.DAY)
    thermal = cameras.through(planted_homography())
    with pytest.raises(TooLittleEvidence, match="stamps of the RGB images do not rise"):
        align([StampedImage(0, frame.image) for frame in cameras.rgb], thermal)
    tiny = [StampedImage(frame.stamp_ns, frame.image[:8, :8]) for frame in thermal]
    with pytest.raises(TooLittleEvidence, match="thermal images of 8x8 px show too few edges, 32x24 are needed"):
        align(cameras.rgb, tiny)


def test_pairs_are_of_one_instant_and_even_over_time():
    black = np.zeros((8, 8), np.uint8)
    rgb = [StampedImage(number * 33_000_000, black) for number in range(30)]
    thermal = [StampedImage(number * 33_000_000 + 100_000_000, black) for number in range(30)]
    pairs = pairs_at(rgb, thermal, 0.1, 4)
    assert [second.stamp_ns - first.stamp_ns for first, second in pairs] == [100_000_000] * 4
    assert [first.stamp_ns // 33_000_000 for first, _ in pairs] == [0, 10, 19, 29]


def test_the_registered_real_clip_comes_out_as_registered(data_root):
    frames = {}
    for name, folder in (("rgb", "visible"), ("thermal", "infrared")):
        file = data_root / "m3svd" / folder / "0117_1605.mp4"
        if not file.is_file():
            pytest.skip(f"{file} is not there")
        source = PictureSource.open(file)
        frames[name] = [
            StampedImage(round(index / source.rate_hz * 1e9), np.ascontiguousarray(grey(picture)[::3, ::3]))
            for index, picture in enumerate(source.pictures(colour=name == "rgb"))
            if index >= 280
        ]

    found = align(frames["rgb"], frames["thermal"], AlignmentSettings(zooms=(0.9, 1.1), pairs=16))

    size = frames["thermal"][0].size  # 214x160
    off = distances_px(found.fit.homography, np.eye(3), size)
    # Its makers registered it to about a percent; the lower half of the picture is bare ground without an edge.
    assert np.sqrt(np.mean(off**2)) < 0.012 * size[0]
    assert found.delay is None or abs(found.delay.delay_s) < 0.02
