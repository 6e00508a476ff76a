"""A bag as a cheaper thermal camera would have recorded it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_messages import compressed_message

from md_perception.bags.make import TimedMessage, intrinsics
from md_perception.bags.types import CAMERA_INFO, message_store
from md_perception.evaluation.simulate import (
    Freeze,
    RgbSimulation,
    Simulation,
    SimulationError,
    ThermalSimulation,
    Timed,
    parse_size,
)
from md_perception.outputs.messages import MessageBuilder
from md_perception.sensing.images import stamp_ns, to_rgb, to_thermal_values
from md_perception.sensing.registration import CameraGeometry, RegistrationSettings, rectification, sampling_matrix

THERMAL, RGB, INFO, OTHER = "/thermal/image_raw", "/rgb/image_raw", "/thermal/camera_info", "/imu"
MS = 1_000_000
START = 10**18
STORE = message_store()
BUILD = MessageBuilder(STORE.types.__getitem__)


def thermal_message(pixels: np.ndarray, encoding: str = "mono8", at_ms: float = 0.0) -> TimedMessage:
    stamp = START + round(at_ms * MS)
    return TimedMessage(stamp, THERMAL, BUILD.image(pixels, encoding, stamp, "thermal"))


def rgb_message(value: int, at_ms: float = 0.0) -> TimedMessage:
    stamp = START + round(at_ms * MS)
    return TimedMessage(stamp, RGB, BUILD.image(np.full((8, 16, 3), value, np.uint8), "rgb8", stamp, "rgb"))


def info_message(width: int, height: int) -> TimedMessage:
    info = STORE.types[CAMERA_INFO](
        header=BUILD.image(np.zeros((1, 1), np.uint8), "mono8", START, "thermal").header,
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=intrinsics(width, height, 60).reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.hstack([intrinsics(width, height, 60), np.zeros((3, 1))]).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=STORE.types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )
    return TimedMessage(START, INFO, info)


def simulated(text: str, messages: Sequence[Timed], encoding: str = "auto") -> list[Timed]:
    return list(Simulation.parse(text).apply(messages, START, thermal_encoding=encoding))


def stream(number: int = 30, period_ms: float = 100 / 3) -> list[Timed]:
    """Return thermal images of 30 Hz whose grey value is their number, each with an RGB image."""
    found: list[Timed] = []
    for index in range(number):
        found.append(rgb_message(100, index * period_ms))
        found.append(thermal_message(np.full((16, 16), index, np.uint8), at_ms=index * period_ms))
    return found


def numbers(messages: Sequence[Timed]) -> list[int]:
    return [int(to_thermal_values(item.message).flat[0]) for item in messages if item.topic == THERMAL]


# --- The line --------------------------------------------------------------------------------------------------------


def test_a_line_of_both_cameras_is_read() -> None:
    text = "thermal=160x120,rate=9,offset=-0.04,drop=0.05,freeze=2@5,freeze=1@20,netd=0.05,view=0.8,shift=1.5/-2"
    assert Simulation.parse(f"{text},rgb,gain=0.2,noise=3,seed=7") == Simulation(
        ThermalSimulation((160, 120), 9, -0.04, 0.05, (Freeze(2, 5), Freeze(1, 20)), 0, 0.05, 0.8, (1.5, -2)),
        RgbSimulation(0.2, 3),
        7,
    )


@given(
    size=st.none() | st.tuples(st.integers(8, 8192), st.integers(8, 8192)),
    rate=st.none() | st.floats(0.01, 100),
    shift=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    freezes=st.lists(st.builds(Freeze, st.integers(1, 9), st.integers(0, 99)), max_size=2).map(tuple),
    gain=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read_back(
    size: tuple[int, int] | None,
    rate: float | None,
    shift: tuple[int, int],
    freezes: tuple[Freeze, ...],
    gain: float,
    seed: int,
) -> None:
    rate = None if rate is None else float(f"{rate:.6g}")
    thermal = ThermalSimulation(size, rate, shift_px=shift, freezes=freezes)
    simulation = Simulation(thermal, RgbSimulation(float(f"{gain:.6g}")), seed)
    if simulation:
        assert Simulation.parse(str(simulation)) == simulation
    else:
        assert str(simulation) in ("", f"seed={seed}")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "begin with the camera"),
        ("rate=9", "begin with the camera, e.g. thermal=160x120,rate=9"),
        ("thermal=160", "'160' is not a size in px: write width x height, e.g. 160x120"),
        ("thermal=0x120", "thermal .width.=0 is not possible: 8 to 8192 is"),
        ("thermal,speed=3", "there is no 'speed' of the thermal camera: use rate, offset"),
        ("thermal,gain=0.2", "there is no 'gain' of the thermal camera"),
        ("thermal,rate=fast", "rate=fast: a number is needed, e.g. rate=9"),
        ("thermal,rate=nan", "a number is needed"),
        ("thermal,rate=0", "rate=0 is not possible: 0.01 to 10000 is"),
        ("thermal,drop=5", "drop=5 is not possible: 0 to 1 is"),
        ("thermal,rate=9,rate=8", "says rate of the thermal camera twice"),
        ("thermal,thermal=160x120", "begins thermal twice"),
        ("thermal,freeze=2", "write freeze=2.0@5"),
        ("thermal,freeze=0@5", "more than 0 s"),
        ("thermal,shift=3", "write shift=1.5/-2"),
        ("thermal,noise=1,netd=1", "give one of them"),
        ("rgb=320x240", "the RGB images keep their size, because the truth lies in their pixels"),
        ("thermal,rate=9,seed=x", "a whole number is needed"),
        ("thermal,rate=9,seed=1,seed=2", "says seed twice"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused_with_cause_and_cure(text: str, cause: str) -> None:
    with pytest.raises(SimulationError, match=cause):
        Simulation.parse(text)


def test_a_size_has_to_be_two_numbers() -> None:
    assert parse_size(" 160x120 ") == (160, 120)
    with pytest.raises(SimulationError, match="is not a size"):
        parse_size("160*120")


def test_nothing_is_touched_where_nothing_is_simulated() -> None:
    messages = stream(3)
    assert not Simulation()
    assert all(after is before for before, after in zip(messages, Simulation().apply(messages, START), strict=True))


# --- Pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "dtype", "scale"),
    [
        ("mono8", np.uint8, 1),
        ("8UC1", np.uint8, 1),
        ("mono16", np.uint16, 300),
        ("16SC1", np.int16, -100),
        ("32FC1", np.float32, 0.25),
        ("64FC1", np.float64, 0.25),
    ],
)
def test_a_coarse_pixel_is_the_mean_of_those_it_covers_in_the_encoding_of_the_image(
    encoding: str, dtype: type, scale: float
) -> None:
    blocks = np.arange(64).reshape(8, 8) * scale
    spread = np.array([[-1, 1], [2, -2]]) * 3 * abs(scale)  # sums to 0
    pixels = (np.kron(blocks + 10 * scale, np.ones((2, 2))) + np.tile(spread, (8, 8))).clip(
        0 if np.dtype(dtype).kind == "u" else None
    )
    expected = pixels.reshape(8, 2, 8, 2).mean(axis=(1, 3))
    before = thermal_message(pixels.astype(dtype), encoding, 40)
    (after,) = simulated("thermal=8x8", [before])
    assert after.message.encoding == encoding
    assert after.message.header == before.message.header
    assert (after.message.width, after.message.height) == (8, 8)
    tolerance = 0.5 if np.dtype(dtype).kind in "iu" else 1e-4
    np.testing.assert_allclose(to_thermal_values(after.message).astype(float), expected, atol=tolerance)


def test_three_equal_channels_stay_equal_under_noise() -> None:
    (after,) = simulated("thermal=8x8,noise=5", [thermal_message(np.full((16, 16, 3), 99, np.uint8), "bgr8")])
    values = to_thermal_values(after.message)
    assert values.shape == (8, 8, 3)
    assert np.ptp(values, axis=2).max() == 0
    assert values.std() > 2


def test_what_was_not_measured_does_not_spread() -> None:
    pixels = np.full((16, 16), 300, np.float32)
    pixels[0, 0] = np.nan  # a quarter of a coarse pixel
    pixels[4:6, 4:6] = np.nan  # all of one
    (after,) = simulated("thermal=8x8", [thermal_message(pixels, "32FC1")])
    values = to_thermal_values(after.message)
    assert values[0, 0] == 300
    assert np.argwhere(np.isnan(values)).tolist() == [[2, 2]]


def test_a_compressed_image_comes_as_a_plain_one() -> None:
    pixels = np.kron(np.arange(64, dtype=np.uint16).reshape(8, 8) * 500, np.ones((2, 2), np.uint16))
    message = compressed_message(pixels, "png", message_format="16UC1; png compressed ")
    (after,) = simulated("thermal=8x8", [TimedMessage(START, THERMAL, message)])
    assert after.message.encoding == "mono16"
    np.testing.assert_array_equal(to_thermal_values(after.message), pixels[::2, ::2])


def test_no_detail_is_invented() -> None:
    with pytest.raises(SimulationError, match=r"16x16 px, of which view=0.5 leaves 8x8: a camera of 9x8 px would have"):
        simulated("thermal=9x8,view=0.5", [thermal_message(np.zeros((16, 16), np.uint8))])


def test_noise_has_the_strength_that_is_asked_for_in_kelvin_or_in_numbers_and_is_the_same_for_the_same_seed() -> None:
    celsius = np.full((100, 100), 20, np.float32)
    centikelvin = np.full((100, 100), 29_315, np.uint16)
    (warm,) = simulated("thermal,netd=0.2", [thermal_message(celsius, "32FC1")], "celsius")
    (counts,) = simulated("thermal,netd=0.2", [thermal_message(centikelvin, "mono16")], "centikelvin")
    assert to_thermal_values(warm.message).std() == pytest.approx(0.2, rel=0.05)
    assert to_thermal_values(counts.message).std() == pytest.approx(20, rel=0.05)  # a number is 0.01 K
    assert to_thermal_values(counts.message).mean() == pytest.approx(29_315, abs=1)

    grey = [thermal_message(np.full((100, 100), 128, np.uint8), at_ms=at_ms) for at_ms in (0, 100)]
    first, second = (to_thermal_values(item.message) for item in simulated("thermal,noise=4,seed=3", grey))
    assert first.std() == pytest.approx(4, rel=0.05)
    assert (first != second).mean() > 0.5  # other noise in every image
    # The noise of an image does not depend on those before it
    alone = to_thermal_values(simulated("thermal,noise=4,seed=3", grey[1:])[0].message)
    np.testing.assert_array_equal(alone, second)
    other = to_thermal_values(simulated("thermal,noise=4,seed=4", grey[1:])[0].message)
    assert (other != second).mean() > 0.5


def test_kelvin_have_no_meaning_in_grey_values() -> None:
    with pytest.raises(SimulationError, match=r"set thermal.encoding to the temperatures .* or give noise"):
        simulated("thermal,netd=0.1", stream(1))


def test_a_bent_mount_displaces_the_picture_by_pixels_of_the_simulated_camera() -> None:
    pixels = np.zeros((32, 32), np.uint8)
    pixels[8:12, 16:20] = 200  # at (4, 2) of 8x8
    (after,) = simulated("thermal=8x8,shift=2/-1", [thermal_message(pixels)])
    assert np.argwhere(to_thermal_values(after.message)).tolist() == [[1, 6]]


def test_darkness_dims_the_rgb_image_alone() -> None:
    messages = [rgb_message(100), thermal_message(np.full((8, 8), 50, np.uint8))]
    rgb, thermal = simulated("rgb,gain=0.2", messages)
    assert np.unique(to_rgb(rgb.message)).tolist() == [20]
    assert np.unique(to_thermal_values(thermal.message)).tolist() == [50]
    assert rgb.message.header == messages[0].message.header


# --- Geometry --------------------------------------------------------------------------------------------------------


def bright_spot(pixels: np.ndarray) -> np.ndarray:
    """Return where the brightness is, (x, y), px."""
    rows, columns = np.indices(pixels.shape)
    weights = pixels.astype(float)
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("given", [None, (0.5, 0.02, 3, -0.01, 0.5, 2, 0, 0, 1)])
@pytest.mark.parametrize("text", ["thermal=40x32", "thermal=40x32,view=0.75", "thermal,view=0.5"])
def test_a_spot_is_found_at_the_rgb_pixel_that_it_had(text: str, given: tuple[float, ...] | None) -> None:
    rgb_size, thermal_size = (320, 256), (160, 128)
    settings = RegistrationSettings(homography=given, sizes=None if given is None else (*rgb_size, *thermal_size))
    pixels = np.zeros((128, 160), np.uint8)
    pixels[64:76, 68:80] = 240  # whole coarse pixels, with every view
    (after,) = simulated(text, [thermal_message(pixels)])
    small = to_thermal_values(after.message)
    size = (small.shape[1], small.shape[0])
    changed = Simulation.parse(text).registration(settings, rgb_size, thermal_size)
    assert changed.sizes in (None, (*rgb_size, *size))

    def in_rgb(spot: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        x, y, depth = np.linalg.inv(matrix.astype(float)) @ [*spot, 1]
        return np.array([x, y]) / depth

    wanted = in_rgb(bright_spot(pixels), sampling_matrix(rgb_size, thermal_size, settings.homography))
    found = in_rgb(bright_spot(small), sampling_matrix(rgb_size, size, changed.homography))
    np.testing.assert_allclose(found, wanted, atol=0.02)


@pytest.mark.parametrize("text", ["thermal=40x32", "thermal=40x32,view=0.75"])
def test_camera_info_follows_the_images(text: str) -> None:
    rgb = CameraGeometry.of(info_message(320, 256).message)
    before = info_message(160, 128)
    (after,) = simulated(text, [before])
    there, here = CameraGeometry.of(before.message), CameraGeometry.of(after.message)
    assert here.size == (40, 32)
    settings = RegistrationSettings(homography=rectification(rgb, there).homography)
    by_hand = Simulation.parse(text).registration(settings, rgb.size, there.size).homography
    by_info = rectification(rgb, here).homography
    np.testing.assert_allclose(by_info, np.reshape(by_hand, (3, 3)), atol=1e-4)


def test_an_uncalibrated_camera_stays_uncalibrated_and_a_region_of_interest_is_taken_into_the_matrix() -> None:
    info = info_message(160, 128).message
    blank = replace(info, k=np.zeros(9), p=np.zeros(12))
    (after,) = simulated("thermal=40x32", [TimedMessage(START, INFO, blank)])
    assert not after.message.k.any()
    assert (after.message.width, after.message.height) == (40, 32)

    roi = replace(info.roi, x_offset=40, y_offset=32, width=80, height=64)
    (after,) = simulated("thermal=40x32", [TimedMessage(START, INFO, replace(info, roi=roi))])
    # The optical axis, at 79.5, is at 39.5 of the region, 80 wide, and so in the middle of the 40 coarse pixels
    assert CameraGeometry.of(after.message).intrinsics[0, 2] == pytest.approx(19.5)
    assert CameraGeometry.of(after.message).size == (40, 32)


def test_registration_by_camera_info_is_left_to_the_messages() -> None:
    settings = RegistrationSettings(source="camera_info_raw")
    assert Simulation.parse("thermal=40x32,view=0.5").registration(settings, (320, 256), (160, 128)) is settings


# --- Time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (30, list(range(30))),
        (15, list(range(0, 30, 2))),
        (10, list(range(0, 30, 3))),
        (9, [0, 3, 7, 10, 13, 17, 20, 23, 27]),  # ticks every 3.33 images
    ],
)
def test_a_slower_camera_delivers_the_images_nearest_to_its_ticks(rate: float, expected: list[int]) -> None:
    found = simulated(f"thermal,rate={rate}", stream())
    assert numbers(found) == expected
    assert sum(item.topic == RGB for item in found) == 30


def test_jitter_and_lost_images_do_not_change_the_rate() -> None:
    random = np.random.default_rng(1)
    times = np.arange(300) * 100 / 3 + random.uniform(-8, 8, 300)
    messages: list[Timed] = [thermal_message(np.full((8, 8), 1, np.uint8), at_ms=at) for at in times]
    del messages[100:130]  # a second is missing
    found = simulated("thermal,rate=10", messages)
    assert len(found) == 91  # ticks 34 to 42 of 100 lie in the gap
    gaps = np.diff([stamp_ns(item.message) for item in found]) / 1e6
    assert sorted(gaps)[-2] < 152  # but for the second that is missing
    assert gaps.min() > 48


def test_a_clock_that_jumps_starts_the_ticks_again() -> None:
    later = [replace(item, message=moved(item.message, 3600)) for item in stream(6)]
    assert numbers(simulated("thermal,rate=10", [*stream(6), *later])) == [0, 3, 0, 3]


def moved(message: object, seconds: int) -> object:
    header = message.header  # type: ignore[attr-defined]
    stamp = replace(header.stamp, sec=header.stamp.sec + seconds)
    return replace(message, header=replace(header, stamp=stamp))  # type: ignore[type-var]


def test_images_are_not_invented_for_a_faster_camera() -> None:
    with pytest.raises(SimulationError, match=r"has 30\.0 images a second, and more cannot be made of them"):
        simulated("thermal,rate=60", stream())


def test_a_wrong_clock_moves_the_stamps_and_not_the_arrival() -> None:
    found = simulated("thermal,offset=0.04", stream(3))
    thermal = [item for item in found if item.topic == THERMAL]
    assert [(stamp_ns(item.message) - item.log_ns) / MS for item in thermal] == [40, 40, 40]
    assert [stamp_ns(item.message) - item.log_ns for item in found if item.topic == RGB] == [0, 0, 0]
    assert [item.log_ns for item in found] == sorted(item.log_ns for item in found)


def test_what_is_dropped_is_drawn_by_the_seed_for_each_camera() -> None:
    once, again, other = (simulated(f"thermal,drop=0.3,seed={seed}", stream(200)) for seed in (1, 1, 2))
    assert numbers(once) == numbers(again) != numbers(other)
    assert 120 < len(numbers(once)) < 160
    assert sum(item.topic == RGB for item in once) == 200


def test_a_frozen_camera_repeats_its_picture_under_new_stamps() -> None:
    found = simulated("thermal=8x8,freeze=0.2@0.3,freeze=0.1@0.7", stream(30))
    assert numbers(found) == [*range(9), *[9] * 6, *range(15, 21), *[21] * 3, *range(24, 30)]
    stamps = [stamp_ns(item.message) for item in found if item.topic == THERMAL]
    assert len(set(stamps)) == 30


def test_other_topics_go_by_untouched() -> None:
    other = TimedMessage(START, OTHER, object())
    assert simulated("thermal=8x8,rate=9,drop=1,rgb,gain=0", [other]) == [other]


def test_an_image_that_cannot_be_decoded_is_left_for_the_vehicle_to_refuse() -> None:
    good = thermal_message(np.zeros((16, 16), np.uint8))
    cut = replace(good, message=replace(good.message, data=good.message.data[:100]))
    (after,) = simulated("thermal=8x8,noise=3", [cut])
    assert after.message is cut.message
