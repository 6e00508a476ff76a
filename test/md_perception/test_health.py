"""Faults of cameras over simulated timelines, and the mode that follows."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from image_messages import compressed_message, header, image_message

from md_perception.results import Camera, Mode
from md_perception.sensing.health import (
    INSPECTION_PERIOD_S,
    CameraHealth,
    Content,
    Fault,
    HealthSettings,
    ImageForm,
    ModeSelector,
    Size,
    content_of,
)

MS = 1_000_000
SETTINGS = HealthSettings(timeout_s=0.5, recovery_pairs=3)


class Rig:
    """A selector and a clock in ms."""

    def __init__(self, *modes: Mode, settings: HealthSettings = SETTINGS) -> None:
        self.sizes: tuple[Size | None, Size | None] | None = None
        self.registers = True
        self.selector = ModeSelector(modes, settings, self._asked)

    def _asked(self, rgb_size: Size | None, thermal_size: Size | None) -> bool:
        self.sizes = rgb_size, thermal_size
        return self.registers

    def frame(self, at_ms: int, paired: bool) -> Mode:
        """An RGB frame, with or without a partner."""
        self.selector.rgb.arrived(at_ms * MS)
        if paired:
            self.selector.thermal.arrived(at_ms * MS)
        self.selector.pivot_decided(paired, at_ms * MS)
        return self.mode(at_ms)

    def mode(self, at_ms: int) -> Mode:
        return self.selector.mode(at_ms * MS)

    def see(self, camera: Camera, at_ms: int, level: int | None, seed: int = 0) -> None:
        """A look at a picture: noise around a level, or None for the same picture as ever."""
        random = np.random.default_rng(1 if level is None else (level, seed, at_ms))
        samples = random.integers(0, 5, 1000).astype(np.uint8) + np.uint8(level or 100)
        blank = level == 0
        self.selector.camera(camera).inspected(Content(samples, dark=blank), at_ms * MS)


# The mode


def test_nothing_is_stale_and_the_first_pair_is_fused() -> None:
    rig = Rig(Mode.FUSED)
    assert rig.mode(0) is Mode.STALE
    assert rig.frame(0, paired=True) is Mode.FUSED


@pytest.mark.parametrize("modes", [(Mode.FUSED,), (Mode.FUSED, Mode.VISIBLE_ONLY)])
def test_single_frames_without_a_partner_do_not_make_the_mode_flap(modes: tuple[Mode, ...]) -> None:
    rig = Rig(*modes)
    assert {rig.frame(33 * i, paired=i % 5 == 0) for i in range(100)} == {Mode.FUSED}


def test_thermal_lost_and_back_with_a_visible_only_student() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.frame(0, paired=True)
    timeline = [(at, rig.frame(at, paired=at >= 1000)) for at in range(100, 1400, 100)]
    # 500 ms after the last thermal image the visible-only student takes over; the third pair brings fusion back.
    expected = [Mode.FUSED] * 5 + [Mode.VISIBLE_ONLY] * 6 + [Mode.FUSED] * 2
    assert [mode for _, mode in timeline] == expected
    assert timeline[5] == (600, Mode.VISIBLE_ONLY)
    assert timeline[11] == (1200, Mode.FUSED)


def test_the_visible_only_student_takes_over_one_frame_period_after_the_timeout() -> None:
    """At 30 Hz, with thermal at 8.7 Hz whose images serve several RGB images."""
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    for i in range(31):
        at = round(33.3 * i)
        if i % 4 == 0:
            last_thermal = at
            rig.selector.thermal.arrived(at * MS)
        rig.selector.rgb.arrived(at * MS)
        rig.selector.pivot_decided(True, at * MS)
        assert rig.mode(at) is Mode.FUSED
    lost = next(at for i in range(31, 80) if rig.frame(at := round(33.3 * i), paired=False) is Mode.VISIBLE_ONLY)
    assert 500 < lost - last_thermal <= 500 + 34


def test_fusion_returns_with_pairs_that_come_within_the_timeout_of_each_other() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    # The first pair is waited for.
    assert [rig.frame(at, paired=False) for at in (0, 500, 600)] == [Mode.STALE, Mode.STALE, Mode.VISIBLE_ONLY]
    # Beside a slower thermal camera, or with message_filters, not every RGB image has a partner.
    modes = [rig.frame(700 + 100 * i, paired) for i, paired in enumerate([True, False, True, False, True])]
    assert modes == [Mode.VISIBLE_ONLY] * 4 + [Mode.FUSED]
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    assert [rig.frame(at, paired=False) for at in (0, 600)] == [Mode.STALE, Mode.VISIBLE_ONLY]
    assert {rig.frame(600 * i, paired=True) for i in range(2, 20)} == {Mode.VISIBLE_ONLY}  # too rare to rely on


def test_a_single_thermal_image_does_not_bring_fusion_back_however_many_it_serves() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.frame(0, paired=True)
    modes = []
    for at in range(600, 1700, 33):  # RGB at 30 Hz, thermal once in 400 ms
        partner_ms = at // 400 * 400
        rig.selector.rgb.arrived(at * MS)
        if partner_ms >= 800:
            rig.selector.thermal.arrived(at * MS)
            rig.selector.pivot_decided(True, at * MS, partner_ms * MS)
        modes.append((partner_ms, rig.mode(at)))
    assert {mode for partner_ms, mode in modes if partner_ms < 1600} == {Mode.VISIBLE_ONLY}
    assert {mode for partner_ms, mode in modes if partner_ms >= 1600} == {Mode.FUSED}  # the third


@pytest.mark.parametrize(
    ("modes", "meanwhile"),
    [
        ((Mode.FUSED, Mode.VISIBLE_ONLY), Mode.VISIBLE_ONLY),
        ((Mode.FUSED, Mode.THERMAL_ONLY), Mode.THERMAL_ONLY),
        ((Mode.FUSED,), Mode.FUSED),  # where each image is rejected with the reason
    ],
)
def test_images_that_cannot_be_registered_go_to_the_students_of_one_camera(
    modes: tuple[Mode, ...], meanwhile: Mode
) -> None:
    rig = Rig(*modes)
    assert rig.frame(0, paired=True) is Mode.FUSED
    rig.registers = False
    assert {rig.frame(33 * i, paired=True) for i in range(1, 30)} == {meanwhile}
    rig.registers = True
    assert rig.frame(33 * 30, paired=True) is Mode.FUSED


def test_at_the_start_the_students_of_one_camera_wait_for_a_registration_until_the_timeout() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.registers = False
    modes = [rig.frame(100 * i, paired=True) for i in range(8)]
    assert modes == [Mode.STALE] * 6 + [Mode.VISIBLE_ONLY] * 2  # SETTINGS.timeout_s is 0.5
    late = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    late.registers = False
    late.frame(0, paired=True)
    late.registers = True
    assert late.frame(100, paired=True) is Mode.FUSED


def test_the_registration_is_asked_for_the_sizes_of_the_newest_images() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.selector.rgb.arrived(0, form=ImageForm("rgb", "rgb8", (640, 512)))
    rig.selector.thermal.arrived(0, form=ImageForm("thermal", "png", None))
    rig.selector.pivot_decided(True, 0)
    rig.mode(0)
    assert rig.sizes == ((640, 512), None)
    # Compressed images say their size when they are looked at.
    for width in (160, 80):
        look = content_of(compressed_message(np.full((60, width), 90, np.uint8), "png"), "thermal")
        for _ in range(2):  # also of a picture that has not changed
            rig.selector.thermal.inspected(look, 0)
            rig.mode(0)
            assert rig.sizes == ((640, 512), (width, 60))
        assert rig.selector.thermal.report(0).size == (width, 60)
    rig.selector.thermal.inspected(Content.broken(), 0)
    rig.selector.rgb.inspected(Content(np.zeros((1, 1), np.uint8), size=(320, 256)), 0)  # of an older image
    rig.mode(0)
    assert rig.sizes == ((640, 512), (80, 60))


def test_a_student_of_one_camera_waits_for_nobody() -> None:
    assert Rig(Mode.VISIBLE_ONLY).frame(0, paired=False) is Mode.VISIBLE_ONLY


def test_without_a_visible_only_student_lost_thermal_is_stale_until_three_pairs() -> None:
    rig = Rig(Mode.FUSED)
    rig.frame(0, paired=True)
    assert rig.frame(501, paired=False) is Mode.STALE
    assert [rig.frame(at, paired=True) for at in (600, 700, 800)] == [Mode.STALE, Mode.STALE, Mode.FUSED]


def test_cameras_that_deliver_but_do_not_pair_are_no_fusion() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.frame(0, paired=True)
    modes = []
    for at in range(100, 1000, 100):
        rig.selector.thermal.arrived(at * MS)
        modes.append(rig.frame(at, paired=False))
    assert modes == [Mode.FUSED] * 5 + [Mode.VISIBLE_ONLY] * 4


def test_silence_of_both_cameras_is_stale() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.frame(0, paired=True)
    assert rig.mode(500) is Mode.FUSED
    assert rig.mode(501) is Mode.STALE


def test_thermal_alone_needs_its_student() -> None:
    for modes, expected in [((Mode.FUSED,), Mode.STALE), ((Mode.FUSED, Mode.THERMAL_ONLY), Mode.THERMAL_ONLY)]:
        rig = Rig(*modes)
        rig.frame(0, paired=True)
        rig.selector.thermal.arrived(600 * MS)
        assert rig.mode(600) is expected


def test_a_frozen_thermal_camera_is_lost_although_it_delivers_and_pairs() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY, settings=HealthSettings(timeout_s=0.5, frozen_s=0.8))
    modes: dict[int, Mode] = {}
    for at in range(0, 4000, 100):
        rig.see("thermal", at, None if 1000 <= at < 3000 else 100)
        rig.see("rgb", at, 100)
        modes[at] = rig.frame(at, paired=True)
    # The last picture that differed came at 1000 ms; the live one at 3000 ms is the first of three good pairs.
    assert [at for at, mode in modes.items() if mode is Mode.VISIBLE_ONLY] == list(range(1800, 3200, 100))
    assert {mode for at, mode in modes.items() if at < 1800 or at >= 3200} == {Mode.FUSED}


def test_a_frozen_rgb_camera_leaves_thermal_alone_or_nothing() -> None:
    for modes, expected in [((Mode.FUSED, Mode.VISIBLE_ONLY), Mode.STALE), (tuple(Mode), Mode.THERMAL_ONLY)]:
        rig = Rig(*modes)
        for at in range(0, 2000, 100):
            rig.see("rgb", at, None)
            rig.see("thermal", at, 100)
            rig.frame(at, paired=True)
        assert rig.mode(2000) is expected


def test_dark_rgb_is_what_thermal_is_for_but_nothing_by_itself() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    for at in range(0, 1000, 100):
        rig.see("rgb", at, 0)
        assert rig.frame(at, paired=True) is Mode.FUSED
    for at in range(1000, 2000, 100):
        rig.see("rgb", at, 0)
        rig.frame(at, paired=False)
    assert rig.mode(2000) is Mode.STALE


def test_dark_thermal_is_lost_at_once_and_returns_with_three_pairs() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    modes = []
    for at in range(0, 1000, 100):
        rig.see("thermal", at, 0 if 300 <= at < 600 else 100)
        modes.append(rig.frame(at, paired=True))
    assert modes == [Mode.FUSED] * 3 + [Mode.VISIBLE_ONLY] * 5 + [Mode.FUSED] * 2


def last_thermal(*modes: Mode, until_ms: int) -> list[Mode]:
    """Return the mode every 100 ms: thermal is silent from 1000 ms on, and back at `until_ms`."""
    settings = HealthSettings(timeout_s=0.5, without_thermal="last_thermal", last_thermal_age_s=2.0)
    rig = Rig(*modes, settings=settings)
    timeline = []
    for at in range(0, 5000, 100):
        there = at < 1000 or at >= until_ms
        mode = rig.frame(at, paired=there)
        if there and mode is Mode.FUSED:
            rig.selector.thermal_kept(at * MS)
        timeline.append(mode)
    return timeline


def test_the_last_thermal_image_serves_up_to_its_age_if_wanted() -> None:
    # The last one came at 900 ms: missed after 500 ms, too old after 2000 ms.
    expected = [Mode.FUSED] * 15 + [Mode.LAST_THERMAL] * 15 + [Mode.STALE] * 20
    assert last_thermal(Mode.FUSED, until_ms=9999) == expected
    # Back in time: on with the last one until the third pair.
    expected = [Mode.FUSED] * 15 + [Mode.LAST_THERMAL] * 7 + [Mode.FUSED] * 28
    assert last_thermal(Mode.FUSED, until_ms=2000) == expected
    # A visible-only student sees more than an old thermal image shows.
    assert Mode.LAST_THERMAL not in last_thermal(Mode.FUSED, Mode.VISIBLE_ONLY, until_ms=2000)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"timeout_s": 0.0}, "timeout must be above 0"),
        ({"recovery_pairs": 0}, "timeout must be above 0"),
        ({"frozen_s": -1.0}, "must be 0 or more"),
        ({"without_thermal": "last_thermal", "last_thermal_age_s": 1.0}, "must be above health.timeout_s"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        HealthSettings(**arguments)


# One camera: arrivals


def fed(gaps_ms: list[int], settings: HealthSettings | None = None) -> tuple[CameraHealth, int]:
    """Return the health of a camera that sent images with these distances, and the time of the last, ns."""
    health, now_ns = CameraHealth("rgb", settings or HealthSettings()), 0
    health.arrived(now_ns)
    for gap in gaps_ms:
        now_ns += gap * MS
        health.arrived(now_ns)
    return health, now_ns


def test_a_camera_is_silent_since_its_newest_image_and_for_ever_before_the_first() -> None:
    health, now_ns = fed([33] * 60)
    assert health.silent_s(now_ns + 1200 * MS) == pytest.approx(1.2)
    assert health.faults(now_ns + 1000 * MS) == {}
    assert health.faults(now_ns + 1200 * MS) == {Fault.SILENT: "for 1.2 s"}
    assert CameraHealth("rgb").faults(0) == {Fault.SILENT: "no image so far"}


def test_rate_and_share_of_a_regular_camera() -> None:
    health, now_ns = fed([33] * 60)
    assert health.rate_hz(now_ns) == pytest.approx(1000 / 33)
    assert health.arrived_share(now_ns) == pytest.approx(1.0)
    assert health.rate_hz(now_ns + 6_000 * MS) == 0.0  # silent for longer than is remembered
    # Of a 30 Hz camera a third arrives; the gaps are 1, 2, 3... periods.
    health, now_ns = fed([33, 33, 165, 99, 33, 132, 99, 198, 33, 66, 165, 132] * 2)
    assert health.arrived_share(now_ns) == pytest.approx(33 / 99, rel=0.02)


@pytest.mark.parametrize(("before_ms", "after_ms"), [(33, 100), (33, 66), (40, 125), (100, 33)])
def test_a_camera_that_changes_its_rate_loses_no_images(before_ms: int, after_ms: int) -> None:
    for sent in range(1, 200):
        health, now_ns = fed([before_ms] * 60 + [after_ms] * sent)
        assert health.arrived_share(now_ns) > 0.6, f"{sent} images after the change"


def test_the_rate_of_a_camera_that_comes_back_is_that_of_its_images_since() -> None:
    health, now_ns = fed([33] * 60 + [3000] + [33] * 3)
    assert health.rate_hz(now_ns) == pytest.approx(1000 / 33)
    assert health.faults(now_ns) == {}


def test_a_camera_is_slow_below_half_of_what_it_reached_or_below_what_is_expected() -> None:
    health, now_ns = fed([33] * 150)
    assert health.faults(now_ns) == {}
    for _ in range(60):
        now_ns += 100 * MS
        health.arrived(now_ns)
    assert health.faults(now_ns) == {Fault.SLOW: "10.0 Hz, 15.2 Hz were expected at least"}
    health, now_ns = fed([100] * 50, HealthSettings(rgb_minimum_hz=12.0, thermal_minimum_hz=5.0))
    assert list(health.faults(now_ns)) == [Fault.SLOW]
    assert fed([100] * 50, HealthSettings(rgb_minimum_hz=9.0))[0].faults(now_ns) == {}


def test_a_burst_of_late_images_makes_no_camera_slow_afterwards() -> None:
    health, now_ns = fed([1] * 30 + [100] * 100)
    assert health.faults(now_ns) == {}


def test_a_stamp_in_the_future_is_told_while_it_lasts() -> None:
    health = CameraHealth("rgb")
    health.arrived(0, 37_000 * MS, age_s=-37.0)  # TAI for UTC
    (text,) = (health.faults(0)[Fault.FUTURE],)
    assert "by 37.00 s" in text
    assert "PTP" in text
    health.arrived(33 * MS, 33 * MS + 37_000 * MS, age_s=-0.1)
    assert Fault.FUTURE not in health.faults(33 * MS)


def test_changes_are_told_for_five_seconds() -> None:
    health = CameraHealth("thermal")
    small, large = ImageForm("flir", "mono8", (160, 120)), ImageForm("flir", "mono16", (640, 512))
    health.arrived(0, 10_000 * MS, small)
    health.arrived(100 * MS, 10_100 * MS, large)
    assert health.faults(100 * MS) == {
        Fault.SIZE_CHANGED: "from mono8 160x120 to mono16 640x512: registration and warm-up were made for what it was"
    }
    health.arrived(200 * MS, 9_700 * MS, large)  # 0.4 s back: overtaken
    assert Fault.JUMPED_BACK not in health.faults(200 * MS)
    health.arrived(300 * MS, 200 * MS, ImageForm("other", "mono16", (640, 512)))
    found = health.faults(300 * MS)
    assert set(found) == {Fault.SIZE_CHANGED, Fault.JUMPED_BACK, Fault.FRAME_ID_CHANGED}
    assert found[Fault.JUMPED_BACK].startswith("by 9.9 s")
    assert found[Fault.FRAME_ID_CHANGED] == "from 'flir' to 'other'"
    for at in range(400, 5301, 100):
        health.arrived(at * MS, at * MS, ImageForm("other", "mono16", (640, 512)))
    assert set(health.faults(5200 * MS)) == {Fault.JUMPED_BACK, Fault.FRAME_ID_CHANGED}
    assert health.faults(5301 * MS) == {}
    assert health.newest_stamp_ns == 5300 * MS


# One camera: pictures


def look(messages: Iterator[Any], camera: Camera, period_s: float = INSPECTION_PERIOD_S) -> list[set[Fault]]:
    """Return the faults after each picture, one every `period_s`."""
    health = CameraHealth(camera)
    found = []
    for number, message in enumerate(messages):
        at_ns = round(number * period_s * 1e9)
        health.arrived(at_ns)
        health.inspected(content_of(message, camera), at_ns)
        found.append(set(health.faults(at_ns)))
    return found


def parked(make: Callable[[np.ndarray], Any], noise: float, seconds: float, shape: tuple[int, ...]) -> Iterator[Any]:
    """Yield pictures of a scene in which nothing moves, with sensor noise of so many grey levels."""
    random = np.random.default_rng(7)
    scene = np.broadcast_to(np.linspace(40, 200, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)), shape)
    # Drawn from a store, as noise is dear; none comes twice running.
    store = [make(np.rint(scene + random.normal(0, noise, shape)).astype(np.uint8)) for _ in range(24)]
    for number in np.cumsum(random.integers(1, len(store), round(seconds / INSPECTION_PERIOD_S))):
        yield store[number % len(store)]


@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_ten_minutes_of_a_parked_scene_are_no_freeze(noise: float) -> None:
    thermal = parked(lambda image: image_message(image, "mono8"), noise, 600, (120, 160))
    assert set().union(*look(thermal, "thermal")) == set()
    rgb = parked(lambda image: image_message(image, "bgr8"), noise, 600, (128, 160, 3))
    assert set().union(*look(rgb, "rgb")) == set()


def test_repeats_of_a_real_video_are_no_freeze(data_root: Path) -> None:
    """The clip has 23 pairs of near-identical thermal images one after the other among its first 400."""
    video = cv2.VideoCapture(str(data_root / "m3svd/infrared/0117_1605.mp4"))
    images = []
    while len(images) < 400 and (read := video.read())[0]:
        images.append(read[1][..., 0].copy())
    assert len(images) == 400
    still = sum(np.abs(one.astype(int) - other).mean() < 0.3 for one, other in pairwise(images))
    assert still >= 20
    messages = [image_message(cv2.resize(i, (160, 120), interpolation=cv2.INTER_AREA), "mono8") for i in images]
    assert set().union(*look(iter(messages), "thermal", 1 / 30)) == set()  # every image, at its rate
    assert set().union(*look(iter(messages[::6]), "thermal")) == set()


@pytest.mark.parametrize("kind", ["mono8", "mono16", "32FC1", "rgb8", "png", "jpeg"])
def test_a_picture_that_stays_is_frozen_after_a_second_and_not_before(kind: str) -> None:
    colour = ("rgb8", "jpeg")

    def picture(seed: int) -> Any:
        noise = np.random.default_rng(seed)
        if kind == "mono16":
            return image_message(noise.integers(29_000, 30_000, (120, 160), np.uint16), kind)
        if kind == "32FC1":  # with dead pixels
            image = noise.normal(300, 5, (120, 160)).astype(np.float32)
            image[:, ::7] = np.nan
            return image_message(image, kind)
        image = noise.integers(20, 230, (120, 160, 3) if kind in colour else (120, 160), np.uint8)
        return compressed_message(image, kind) if kind in ("png", "jpeg") else image_message(image, kind, padding=8)

    seeds = [*range(5), *[5] * 8, *range(6, 9)]
    found = look((picture(seed) for seed in seeds), "rgb" if kind in colour else "thermal")
    # Frozen since number 5: a second later is number 10. The first live picture ends it.
    assert [Fault.FROZEN in faults for faults in found] == [False] * 10 + [True] * 3 + [False] * 3


@pytest.mark.parametrize(("level", "expected"), [(4, (True, False)), (120, (False, False)), (253, (False, True))])
def test_a_jpeg_is_dark_or_saturated_as_the_raw_picture_is(level: int, expected: tuple[bool, bool]) -> None:
    image = np.full((120, 160, 3), level, np.uint8)
    for message in (compressed_message(image, "jpeg"), image_message(image, "rgb8")):
        seen = content_of(message, "rgb")
        assert (seen.dark, seen.saturated) == expected
    assert content_of(compressed_message(image, "jpeg"), "rgb").samples.shape == (120, 160)  # of the brightness alone


def test_a_picture_in_which_only_a_clock_ticks_is_frozen() -> None:
    """A driver that hangs behind an overlay, or the speck of a codec: fewer than a thousandth of the samples change."""
    image = np.random.default_rng(1).integers(20, 230, (120, 160), np.uint8)

    def ticking(number: int) -> Any:
        shown = image.copy()
        shown[0, :9] = number
        return image_message(shown, "mono8")

    assert Fault.FROZEN in look((ticking(number) for number in range(12)), "thermal")[-1]


def test_a_slow_drift_is_alive() -> None:
    """Compared with the picture before each would be as good as equal: the comparison is with the first."""
    image = np.random.default_rng(1).integers(20, 230, 120 * 160, np.uint8)

    def drifting(number: int) -> Any:
        shown = image.copy()
        shown[: 9 * number] += 1
        return image_message(shown.reshape(120, 160), "mono8")

    assert set().union(*look((drifting(number) for number in range(600)), "thermal")) == set()


@pytest.mark.parametrize(
    ("camera", "image", "encoding", "expected"),
    [
        ("rgb", np.full((48, 64, 3), 6, np.uint8), "rgb8", {Fault.DARK}),
        ("rgb", np.full((48, 64, 4), (3, 3, 3, 255), np.uint8), "rgba8", {Fault.DARK}),
        ("rgb", np.full((48, 64, 3), 40, np.uint8), "rgb8", set()),
        ("rgb", np.full((48, 64, 3), 253, np.uint8), "bgr8", {Fault.SATURATED}),
        ("thermal", np.zeros((48, 64), np.uint8), "mono8", {Fault.DARK}),
        ("thermal", np.full((48, 64), 255, np.uint8), "mono8", {Fault.SATURATED}),
        ("thermal", np.zeros((48, 64), np.uint16), "mono16", {Fault.DARK}),
        ("thermal", np.full((48, 64), 16383, np.uint16), "mono16", {Fault.SATURATED}),
        ("thermal", np.full((48, 64), np.nan, np.float32), "32FC1", {Fault.DARK}),
        ("thermal", np.tile(np.float32([-1.0, 0.5, 2.0, 1.5]), (48, 16)), "32FC1", set()),
    ],
)
def test_dark_and_saturated_pictures_are_no_freeze(
    camera: Camera, image: np.ndarray, encoding: str, expected: set[Fault]
) -> None:
    message = image_message(image, encoding)
    found = look((message for _ in range(4)), camera)
    assert found[-1] == expected
    if expected:  # a black picture has no noise to tell a live sensor from a dead one
        assert look((message for _ in range(20)), camera)[-1] == expected


@pytest.mark.parametrize(("encoding", "first"), [("uyvy", 1), ("yuv422", 1), ("yuyv", 0), ("yuv422_yuy2", 0)])
@pytest.mark.parametrize(("level", "expected"), [(16, (True, False)), (60, (False, False)), (235, (False, True))])
def test_black_and_white_of_yuv_are_those_of_video_range(
    encoding: str, first: int, level: int, expected: tuple[bool, bool]
) -> None:
    pixels = np.full((48, 128), 128, np.uint8)  # no colour
    pixels[:, first::2] = level
    message = SimpleNamespace(
        header=header(), height=48, width=64, encoding=encoding, is_bigendian=0, step=128, data=pixels.reshape(-1)
    )
    seen = content_of(message, "rgb")
    assert (seen.dark, seen.saturated) == expected


def test_a_slow_camera_is_not_frozen_by_two_equal_pictures() -> None:
    """One image a second: the second of two equal ones is as old as the limit, but three are needed."""
    image = image_message(np.random.default_rng(0).integers(20, 230, (12, 16), np.uint8), "mono8")
    found = look((image for _ in range(4)), "thermal", period_s=1.0)
    assert [Fault.FROZEN in faults for faults in found] == [False, False, True, True]


def test_lights_at_night_keep_a_picture_from_being_dark() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    image[::20, :, :] = 120  # a twentieth
    assert not content_of(image_message(image, "rgb8"), "rgb").dark


def test_the_look_at_a_picture_costs_little() -> None:
    """Five times a second for each camera; a bound far above what it takes, for busy machines."""
    message = image_message(np.random.default_rng(0).integers(0, 256, (512, 640, 3), np.uint8), "rgb8")
    health = CameraHealth("rgb")
    health.inspected(content_of(message, "rgb"), 0)
    start = time.process_time()
    for number in range(100):
        health.inspected(content_of(message, "rgb"), number)
    assert (time.process_time() - start) / 100 < 0.004


def test_a_single_damaged_picture_is_nothing_but_two_that_were_looked_at_lose_the_camera() -> None:
    camera = CameraHealth("thermal", SETTINGS)
    picture = Content(np.arange(100, dtype=np.uint8))
    broken = Content.broken("it is cut off")
    for at_ms, content, good in ((0, picture, True), (200, broken, False)):
        camera.arrived(at_ms * MS)
        assert camera.inspected(content, at_ms * MS) is good
        assert camera.alive(at_ms * MS)
    camera.arrived(400 * MS)
    camera.inspected(broken, 400 * MS)
    assert not camera.alive(400 * MS)
    assert not camera.sees(400 * MS)
    assert camera.faults(400 * MS)[Fault.UNREADABLE] == (
        "the last 2 pictures that were looked at are of no use: it is cut off"
    )
    camera.arrived(600 * MS)
    assert camera.inspected(Content(np.arange(1, 101, dtype=np.uint8)), 600 * MS)
    assert camera.alive(600 * MS)
    assert Fault.UNREADABLE not in camera.faults(600 * MS)
