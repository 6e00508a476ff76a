import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_messages import compressed_message, image_message

from md_perception.results import UInt8Image
from md_perception.sensing.images import ImageError
from md_perception.sensing.thermal import ThermalNormaliser, ThermalSettings, percentile_range, to_8bit

NS = 1_000_000_000


def scene_kelvin(seed: int = 0) -> np.ndarray:
    """A street of 285 K with texture, a person of 305 K and an engine of 340 K; float32 (60, 80)."""
    kelvin = np.random.default_rng(seed).normal(285, 3, (60, 80)).astype(np.float32)
    kelvin[20:40, 30:38] = 305
    kelvin[45:50, 60:70] = 340
    return kelvin


def as_trained(kelvin: np.ndarray) -> UInt8Image:
    return to_8bit(kelvin, *percentile_range(kelvin))


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_percentile_range_and_8bit_mapping_by_hand() -> None:
    values = np.arange(101, dtype=np.float32)[None]  # percentile p of 0..100 is p
    assert percentile_range(values, (10, 90)) == (10.0, 90.0)
    # (50 - 10) / 80 * 255 = 127.5, rounded up; below and above are clipped
    np.testing.assert_array_equal(
        to_8bit(np.array([[0, 10, 50, 90, 100]], np.float32), 10, 90), [[0, 0, 128, 255, 255]]
    )


def test_a_flat_scene_is_not_stretched_beyond_the_minimum_span() -> None:
    values = np.full((5, 5), 300, np.float32)
    assert percentile_range(values, minimum_span=10) == (295.0, 305.0)
    np.testing.assert_array_equal(to_8bit(values, 295, 305), np.full((5, 5), 128))


@pytest.mark.parametrize(
    ("encoding", "unit", "values", "tolerance"),
    [
        ("32FC1", "kelvin", lambda kelvin: kelvin, 0),
        ("32FC1", "celsius", lambda kelvin: kelvin - np.float32(273.15), 1),
        # A hundredth of a kelvin is 0.14 grey levels of the 18 K or more that the range spans.
        ("mono16", "centikelvin", lambda kelvin: np.rint(kelvin * 100).astype(np.uint16), 1),
        ("16UC1", "centikelvin", lambda kelvin: np.rint(kelvin * 100).astype(np.uint16), 1),
        ("mono16", "counts", lambda kelvin: np.rint((kelvin - 250) * 100).astype(np.uint16), 1),
    ],
)
@pytest.mark.parametrize("big_endian", [False, True])
def test_every_encoding_gives_the_image_of_training(encoding, unit, values, tolerance, big_endian) -> None:
    kelvin = scene_kelvin()
    normalise = ThermalNormaliser(ThermalSettings(encoding=unit))
    image = normalise(image_message(values(kelvin), encoding, big_endian=big_endian, padding=5))
    assert image.dtype == np.uint8
    assert largest_difference(image, as_trained(kelvin)) <= tolerance


@pytest.mark.parametrize("declared", ["auto", "agc8"])
@pytest.mark.parametrize("encoding", ["mono8", "rgb8", "bgr8"])
def test_eight_bit_images_pass_unchanged(declared: str, encoding: str) -> None:
    sent = as_trained(scene_kelvin())
    pixels = sent if encoding == "mono8" else np.repeat(sent[..., None], 3, axis=2)
    image = ThermalNormaliser(ThermalSettings(encoding=declared))(image_message(pixels, encoding, padding=2))
    np.testing.assert_array_equal(image, sent)


def test_sixteen_bit_png_is_read_as_sixteen_bits() -> None:
    kelvin = scene_kelvin()
    message = compressed_message(np.rint(kelvin * 100).astype(np.uint16), "png", message_format="16UC1; png compressed")
    image = ThermalNormaliser(ThermalSettings(encoding="centikelvin"))(message)
    assert largest_difference(image, as_trained(kelvin)) <= 1


@pytest.mark.parametrize(
    ("encoding", "dtype", "choices"),
    [
        ("mono16", np.uint16, "'counts' or 'centikelvin'"),
        ("16UC1", np.uint16, "'counts' or 'centikelvin'"),
        ("32FC1", np.float32, "'celsius' or 'kelvin'"),
    ],
)
def test_auto_asks_for_the_unit_that_the_encoding_does_not_tell(encoding: str, dtype: type, choices: str) -> None:
    with pytest.raises(ImageError, match=f"/flir carries {encoding}.*set thermal.encoding to {choices}"):
        ThermalNormaliser(ThermalSettings(), "/flir")(image_message(np.ones((4, 4), dtype), encoding))


@pytest.mark.parametrize(
    ("declared", "encoding", "dtype"),
    [("counts", "mono8", np.uint8), ("celsius", "mono16", np.uint16), ("agc8", "32FC1", np.float32)],
)
def test_a_declaration_that_the_message_contradicts_is_refused(declared: str, encoding: str, dtype: type) -> None:
    with pytest.raises(ImageError, match=f"/flir carries {encoding}, but thermal.encoding '{declared}' needs"):
        ThermalNormaliser(ThermalSettings(encoding=declared), "/flir")(image_message(np.ones((4, 4), dtype), encoding))


def test_a_colour_png_of_sixteen_bits_is_refused() -> None:
    message = compressed_message(np.full((4, 4, 3), 300, np.uint16), "png", message_format="png")
    with pytest.raises(ImageError, match=r"thermal\.encoding 'grey_rgb8' needs rgb8 or bgr8"):
        ThermalNormaliser(ThermalSettings(encoding="grey_rgb8"))(message)


def pseudo_colour() -> np.ndarray:
    return np.ascontiguousarray(cv2.applyColorMap(as_trained(scene_kelvin()), cv2.COLORMAP_INFERNO)[..., ::-1])


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_pseudo_colour_is_refused_with_the_parameter_to_set(encoding: str) -> None:
    with pytest.raises(ImageError) as error:
        ThermalNormaliser(ThermalSettings(), "/flir/image_raw")(image_message(pseudo_colour(), encoding))
    assert str(error.value) == (
        f"thermal topic /flir/image_raw carries {encoding} pseudo-colour; the student needs intensities: publish "
        "mono8/mono16, or set thermal.encoding to 'grey_rgb8' if all three channels are equal"
    )


def test_pseudo_colour_is_refused_even_where_it_is_declared_grey() -> None:
    with pytest.raises(ImageError, match=r"declared 'grey_rgb8'.*differ by .* of 255 on average"):
        ThermalNormaliser(ThermalSettings(encoding="grey_rgb8"))(image_message(pseudo_colour(), "rgb8"))


def test_grey_pictures_with_the_noise_of_compression_pass_where_declared() -> None:
    sent = np.full((40, 40, 3), 100, np.uint8)
    sent[::2, :, 0] = 102
    message = image_message(sent, "rgb8")
    with pytest.raises(ImageError, match="pseudo-colour"):
        ThermalNormaliser(ThermalSettings())(message)
    image = ThermalNormaliser(ThermalSettings(encoding="grey_rgb8"))(message)
    # Luma of (102, 100, 100): 0.299 * 2 + 100 = 100.6
    assert set(np.unique(image)) == {100, 101}


def test_black_hot_is_turned_so_that_warm_is_bright() -> None:
    kelvin = scene_kelvin()
    sent = as_trained(kelvin)
    agc = ThermalNormaliser(ThermalSettings(polarity="black_hot"))(image_message(255 - sent, "mono8"))
    np.testing.assert_array_equal(agc, sent)

    counts = np.rint((400 - kelvin) * 100).astype(np.uint16)
    image = ThermalNormaliser(ThermalSettings(encoding="counts", polarity="black_hot"))(image_message(counts, "mono16"))
    assert largest_difference(image, sent) <= 1


@pytest.mark.parametrize("polarity", ["white_hot", "black_hot"])
def test_values_that_are_not_finite_are_cold_and_do_not_disturb_the_range(polarity: str) -> None:
    kelvin = scene_kelvin()
    values = kelvin if polarity == "white_hot" else 600 - kelvin
    values[0, :4] = [np.nan, np.inf, -np.inf, np.nan]
    encoding = "kelvin" if polarity == "white_hot" else "counts"
    settings = ThermalSettings(encoding=encoding, polarity=polarity, minimum_span_counts=10)
    image = ThermalNormaliser(settings)(image_message(values, "32FC1"))
    assert largest_difference(image[1:], as_trained(kelvin)[1:]) <= 2  # four of 4800 values less in the percentiles
    assert image[0, 0] == image[0, 3] == 0
    with pytest.raises(ImageError, match="no finite value"):
        ThermalNormaliser(settings)(image_message(np.full((3, 3), np.nan, np.float32), "32FC1"))


def test_a_fixed_range_does_not_follow_the_scene() -> None:
    normalise = ThermalNormaliser(ThermalSettings(encoding="celsius", range=(273.15, 373.15)))
    image = normalise(image_message(np.array([[-20, 0, 50, 100, 500]], np.float32), "32FC1"))
    np.testing.assert_array_equal(image, [[0, 0, 128, 255, 255]])


def test_a_fixed_range_of_counts_is_given_as_the_camera_counts_even_for_black_hot() -> None:
    settings = ThermalSettings(encoding="counts", polarity="black_hot", range=(1000.0, 2000.0))
    image = ThermalNormaliser(settings)(image_message(np.array([[500, 1000, 1500, 2000]], np.uint16), "mono16"))
    np.testing.assert_array_equal(image, [[255, 255, 128, 0]])


def test_the_slow_gain_control_follows_a_step_with_its_time_constant() -> None:
    # The range of a checkerboard of 280 and 300 K is (280, 300); of 300 and 320 K it is (300, 320).
    board = np.where(np.indices((20, 20)).sum(axis=0) % 2, 280, 300).astype(np.float32)
    normalise = ThermalNormaliser(ThermalSettings(encoding="kelvin", time_constant_s=2.0))
    first = normalise(image_message(board, "32FC1", stamp_ns=10 * NS))
    assert (first.min(), first.max()) == (0, 255)

    second = normalise(image_message(board + 20, "32FC1", stamp_ns=12 * NS))

    # After one time constant the range has gone 1 - 1/e = 63.2 % of the way: (292.64, 312.64); 300 K are at 36.8 %.
    assert second.min() == round(255 * np.exp(-1))
    assert second.max() == 255

    back_in_time = normalise(image_message(board + 20, "32FC1", stamp_ns=1 * NS))
    assert (back_in_time.min(), back_in_time.max()) == (0, 255)  # it starts anew


def test_the_slow_gain_control_can_be_reset() -> None:
    board = np.where(np.indices((20, 20)).sum(axis=0) % 2, 280, 300).astype(np.float32)
    normalise = ThermalNormaliser(ThermalSettings(encoding="kelvin", time_constant_s=1000.0))
    normalise(image_message(board, "32FC1", stamp_ns=NS))
    assert normalise(image_message(board + 20, "32FC1", stamp_ns=2 * NS)).min() > 240
    normalise.reset()
    assert normalise(image_message(board + 20, "32FC1", stamp_ns=3 * NS)).min() == 0


@given(st.floats(200, 400), st.floats(0.1, 100), st.integers(0, 2**31))
def test_the_mapping_keeps_the_order_of_temperatures(middle: float, spread: float, seed: int) -> None:
    kelvin = np.random.default_rng(seed).normal(middle, spread, (8, 8)).astype(np.float32)
    image = ThermalNormaliser(ThermalSettings(encoding="kelvin"))(image_message(kelvin, "32FC1"))
    order = np.argsort(kelvin, axis=None)
    assert (np.diff(image.reshape(-1)[order].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"encoding": "fahrenheit"}, "thermal.encoding 'fahrenheit'"),
        ({"polarity": "hot"}, "thermal.polarity 'hot'"),
        ({"encoding": "celsius", "polarity": "black_hot"}, "no meaning for temperatures"),
        ({"range": (300.0, 280.0)}, "rising"),
        ({"encoding": "agc8", "range": (280.0, 300.0)}, "no meaning for agc8"),
        ({"percentiles": (99.0, 1.0)}, "percentiles"),
        ({"minimum_span_k": 0.0}, "smallest span"),
        ({"time_constant_s": -1.0}, "thermal.time_constant_s"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ThermalSettings(**arguments)
