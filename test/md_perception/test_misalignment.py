"""The misalignment monitor: silent where the pair is in register, quick and right where it is not."""

import time

import cv2
import numpy as np
import pytest
from camera_pairs import THERMAL_SIZE, drive, planted_homography
from misalignment_rates import rates, scene_pairs

from md_perception.bags.sources import PictureSource
from md_perception.scenes import TimeOfDay
from md_perception.sensing.misalignment import MisalignmentMonitor, MisalignmentSettings
from md_perception.sensing.registration import sampling_matrix

TIMES = (TimeOfDay.DAY, TimeOfDay.NIGHT)


def coloured(image):
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)


@pytest.mark.parametrize("time_of_day", TIMES)
def test_a_registered_scene_raises_no_alarm(time_of_day):
    planted = planted_homography(1.1, 1.0, (3.0, -2.0))
    cameras, monitor = drive(time_of_day), MisalignmentMonitor()

    seen = [
        monitor.check(coloured(rgb.image), thermal.image, planted)
        for rgb, thermal in zip(cameras.rgb[::3], cameras.through(planted, every=3), strict=True)
    ]

    assert all(check.known and not check.drifted for check in seen)
    assert max(np.hypot(*check.shift_px) for check in seen) < 0.5  # measured: at most 0.1 thermal px
    assert [check.checks for check in seen] == list(range(1, 26))


@pytest.mark.parametrize("time_of_day", TIMES)
@pytest.mark.parametrize("shift", [(4.0, 0.0), (-3.0, 3.0), (0.0, -12.0)])
def test_a_mount_that_moved_is_told_after_a_few_checks(time_of_day, shift):
    cameras, monitor = drive(time_of_day), MisalignmentMonitor(MisalignmentSettings(confirm=3))
    believed, real = planted_homography(1.1), planted_homography(1.1, shift=shift)
    frames = list(zip(cameras.rgb[::5], cameras.through(real, every=5), strict=True))

    seen = [monitor.check(coloured(rgb.image), thermal.image, believed) for rgb, thermal in frames]

    assert [check.drifted for check in seen] == [False] * 2 + [True] * (len(seen) - 2)
    # It says where thermal is now.
    np.testing.assert_allclose(seen[-1].shift_px, shift, atol=0.4)


def test_the_alarm_ends_when_the_pair_is_in_register_again():
    cameras = drive(TimeOfDay.DAY)
    monitor = MisalignmentMonitor(MisalignmentSettings(memory=4, confirm=2))
    straight, moved = planted_homography(), planted_homography(shift=(5.0, 0.0))
    both = [list(zip(cameras.rgb, cameras.through(real), strict=True)) for real in (moved, straight)]

    def last(frames):
        return [monitor.check(coloured(rgb.image), thermal.image, straight) for rgb, thermal in frames][-1]

    assert last(both[0][:8]).drifted
    assert not last(both[1][8:30]).drifted


def test_what_shows_no_common_edges_says_nothing():
    rng = np.random.default_rng(1)
    monitor = MisalignmentMonitor()
    matrix = sampling_matrix((320, 256), THERMAL_SIZE)
    for _ in range(12):
        noise = rng.integers(0, 255, (256, 320, 3), dtype=np.uint8)
        seen = monitor.check(noise, rng.integers(0, 255, THERMAL_SIZE[::-1], dtype=np.uint8), matrix)
        assert not seen.known
        assert not seen.drifted
    black = monitor.check(np.zeros((256, 320, 3), np.uint8), np.zeros(THERMAL_SIZE[::-1], np.uint8), matrix)
    assert not black.known
    assert np.isfinite(black.distinctness)


def test_another_registration_begins_anew():
    cameras, monitor = drive(TimeOfDay.DAY), MisalignmentMonitor(MisalignmentSettings(confirm=1))
    real = planted_homography(shift=(6.0, 0.0))
    rgb, thermal = coloured(cameras.rgb[0].image), cameras.through(real)[0].image
    assert monitor.check(rgb, thermal, planted_homography()).drifted
    again = monitor.check(rgb, thermal, real)
    assert (again.checks, again.drifted) == (1, False)


def test_the_real_clip_raises_no_alarm_and_a_planted_shift_does(data_root):
    folder = data_root / "m3svd"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    rgbs, thermals = (
        list(PictureSource.open(folder / name / "0117_1605.mp4").pictures(colour=name == "visible"))[::12]
        for name in ("visible", "infrared")
    )
    height, width = thermals[0].shape
    matrix = sampling_matrix((width, height), (160, 120))

    def checked(shift_px: int):
        monitor = MisalignmentMonitor()
        for rgb, thermal in zip(rgbs, thermals, strict=True):
            moved = cv2.copyMakeBorder(thermal, 0, 0, shift_px, 0, cv2.BORDER_REFLECT)[:, :width]
            yield monitor.check(rgb, cv2.resize(moved, (160, 120), interpolation=cv2.INTER_AREA), matrix)

    assert not any(check.drifted for check in checked(0))
    moved = list(checked(16))  # 4 px of 160
    assert [check.drifted for check in moved] == [False] * 2 + [True] * (len(moved) - 2)
    assert moved[-1].shift_px[0] == pytest.approx(4.0, abs=0.6)


@pytest.mark.parametrize("parked", [False, True])
def test_streets_that_no_threshold_was_set_on(parked):
    """The whole of it, and real images: docs/calibration.md."""
    streets = scene_pairs(6)
    still, moved = (rates(streets, shift, 4, parked=parked) for shift in (0.0, 0.03))
    assert (still.alarms, moved.alarms, moved.checks) == (0, 4, 3)
    assert still.known == moved.known == 1.0
    assert max(still.error_px, moved.error_px) < 0.4  # measured with 60 streets: at most 0.2


@pytest.mark.parametrize(("rgb_size", "thermal_size"), [((640, 512), (160, 128)), ((1280, 1024), (320, 256))])
def test_a_check_is_cheap(rgb_size, thermal_size):
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 255, (rgb_size[1], rgb_size[0], 3), dtype=np.uint8)
    thermal = rng.integers(0, 255, thermal_size[::-1], dtype=np.uint8)
    monitor, matrix = MisalignmentMonitor(), sampling_matrix(rgb_size, thermal_size)
    times_ms = []
    for _ in range(30):
        start = time.thread_time()
        monitor.check(rgb, thermal, matrix)
        times_ms.append(1e3 * (time.thread_time() - start))
    assert np.percentile(times_ms, 20) < 5.0  # of this thread's own time, as a busy machine allows


@pytest.mark.parametrize("values", [{"max_shift": 0.0}, {"max_shift": 0.5}, {"memory": 0}, {"confirm": 0}])
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        MisalignmentSettings(**values)
