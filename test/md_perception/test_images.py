import array
import struct
import sys
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_messages import compressed_message, image_message

from md_perception.sensing import images
from md_perception.sensing.images import (
    MAX_PIXELS,
    MAX_SIDE,
    ImageError,
    image_fields,
    stamp_ns,
    to_array,
    to_rgb,
    to_thermal_values,
)

SIDES = st.integers(1, 9)


@pytest.fixture(autouse=True)
def _cv_bridge_is_looked_for_anew() -> Iterator[None]:
    images._cv_bridge.cache_clear()
    yield
    images._cv_bridge.cache_clear()


@st.composite
def pixels(draw: st.DrawFn, dtype: str, channels: int) -> np.ndarray:
    shape = (draw(SIDES), draw(SIDES)) + ((channels,) if channels > 1 else ())
    return draw(hnp.arrays(dtype, shape))


@pytest.mark.parametrize(
    ("encoding", "channels", "order"),
    [
        ("rgb8", 3, (0, 1, 2)),
        ("bgr8", 3, (2, 1, 0)),
        ("rgba8", 4, (0, 1, 2)),
        ("bgra8", 4, (2, 1, 0)),
        ("mono8", 1, (0, 0, 0)),
        ("8UC1", 1, (0, 0, 0)),
    ],
)
@given(data=st.data())
def test_every_colour_encoding_gives_rgb_whatever_the_padding(
    encoding: str, channels: int, order: tuple[int, ...], data: st.DataObject
) -> None:
    sent = data.draw(pixels("u1", channels))
    message = image_message(sent, encoding, padding=data.draw(st.integers(0, 7)), rclpy_like=data.draw(st.booleans()))

    rgb = to_rgb(message)

    planes = sent[..., None] if channels == 1 else sent
    np.testing.assert_array_equal(rgb, planes[..., list(order)])
    assert rgb.dtype == np.uint8


@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [("mono8", "u1"), ("mono16", "u2"), ("16UC1", "u2"), ("16SC1", "i2"), ("32FC1", "f4")],
)
@given(data=st.data())
def test_thermal_values_survive_step_and_byte_order(encoding: str, dtype: str, data: st.DataObject) -> None:
    sent = data.draw(pixels(dtype, 1))
    message = image_message(
        sent,
        encoding,
        padding=data.draw(st.integers(0, 7)),
        big_endian=data.draw(st.booleans()),
        rclpy_like=data.draw(st.booleans()),
    )

    values = to_thermal_values(message)

    np.testing.assert_array_equal(values, sent)  # NaN equals NaN here
    assert values.dtype == np.dtype(dtype)
    assert values.dtype.isnative


def test_rgb8_is_a_view_of_the_message() -> None:
    message = image_message(np.zeros((4, 5, 3), np.uint8), "rgb8", padding=1)
    rgb = to_rgb(message)
    message.data[1] = 77
    assert rgb[0, 0, 1] == 77


def test_the_last_row_may_lack_its_padding() -> None:
    sent = np.arange(12, dtype=np.uint8).reshape(3, 4)
    message = image_message(sent, "mono8", padding=3)
    message.data = message.data[:-3]
    np.testing.assert_array_equal(to_thermal_values(message), sent)


@given(missing=st.integers(1, 60))
def test_short_data_are_refused_with_topic_encoding_and_bytes(missing: int) -> None:
    message = image_message(np.zeros((4, 5, 3), np.uint8), "bgr8")
    message.data = message.data[: 60 - missing]
    with pytest.raises(ImageError, match=rf"/front/image.*5x4 bgr8.*needs 60 bytes.*has {60 - missing}"):
        to_rgb(message, "/front/image")


def test_a_step_shorter_than_a_row_is_refused() -> None:
    message = image_message(np.zeros((4, 5, 3), np.uint8), "rgb8")
    message.step = 14
    with pytest.raises(ImageError, match="step of at least 15 bytes, the message says 14"):
        to_rgb(message)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (MAX_SIDE + 1, 1), (MAX_SIDE, MAX_SIDE)])
def test_impossible_sizes_are_refused_before_anything_is_read(width: int, height: int) -> None:
    message = SimpleNamespace(
        width=width, height=height, encoding="rgb8", is_bigendian=0, step=3 * width, data=array.array("B")
    )
    with pytest.raises(ImageError, match=f"rgb8 image of {width}x{height} px is refused"):
        to_rgb(message)


def test_png_is_lossless_and_in_rgb_order() -> None:
    sent = np.random.default_rng(1).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_rgb(compressed_message(sent, "png")), sent)


def test_images_compressed_as_if_rgb_were_bgr_are_not_swapped_twice() -> None:
    # image_transport's old "compressed rgb8": the publisher gave RGB bytes to an encoder that takes BGR.
    sent = np.random.default_rng(2).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    message = compressed_message(sent[..., ::-1], "png", message_format="rgb8; png compressed rgb8")
    np.testing.assert_array_equal(to_rgb(message), sent)


def test_jpeg_is_decoded_within_its_loss() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    sent = np.stack(np.broadcast_arrays(ramp, ramp[:48, None], 128), axis=-1).astype(np.uint8)
    decoded = to_rgb(compressed_message(sent, "jpeg"))
    assert np.abs(decoded.astype(int) - sent).mean() < 3


def test_sixteen_bit_png_keeps_its_sixteen_bits() -> None:
    sent = np.random.default_rng(3).integers(0, 65536, (6, 7), dtype=np.uint16)
    values = to_thermal_values(compressed_message(sent, "png", message_format="16UC1; png compressed"))
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, sent)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_compressed_image_that_claims_a_huge_size_is_refused_before_decoding(kind: str) -> None:
    message = compressed_message(np.zeros((8, 8, 3), np.uint8), kind)
    data = bytearray(message.data)
    at = 16 if kind == "png" else data.index(b"\xff\xc0") + 5
    data[at : at + (8 if kind == "png" else 4)] = struct.pack(">II" if kind == "png" else ">HH", 50000, 60000)
    message.data = array.array("B", bytes(data))
    with pytest.raises(ImageError, match=r"image of (50000x60000|60000x50000) px is refused"):
        to_rgb(message)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x05\x00\x05"]),
)
def test_damaged_compressed_data_are_an_image_error(tail: bytes, magic: bytes) -> None:
    message = SimpleNamespace(format="jpeg", data=array.array("B", magic + tail))
    with pytest.raises(ImageError, match=r"neither JPEG nor PNG|damaged|truncated|is refused"):
        to_rgb(message, "camera")


# Conversions. What OpenCV does is held against the definition of each encoding, and against cv_bridge where it is.


@pytest.fixture
def _no_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv_bridge", None)


@pytest.mark.usefixtures("_no_cv_bridge")
@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("big_endian", [False, True])
def test_a_mosaic_of_one_colour_becomes_that_colour(order: str, bits: int, big_endian: bool) -> None:
    colour = {"r": 200, "g": 120, "b": 40}
    mosaic = np.empty((8, 10), f"u{bits // 8}")
    for at, letter in enumerate(order):
        mosaic[at // 2 :: 2, at % 2 :: 2] = colour[letter] * (257 if bits == 16 else 1)
    rgb = to_rgb(image_message(mosaic, f"bayer_{order}{bits}", padding=3, big_endian=big_endian))
    np.testing.assert_array_equal(rgb, np.broadcast_to(np.array([200, 120, 40], np.uint8), (8, 10, 3)))


@pytest.mark.usefixtures("_no_cv_bridge")
@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2"])
def test_yuv422_is_decoded_as_video_range_bt601(encoding: str) -> None:
    rng = np.random.default_rng(4)
    y = rng.integers(16, 236, (6, 8)).astype(float)
    u, v = (np.repeat(rng.integers(90, 166, (6, 4)), 2, axis=1).astype(float) for _ in range(2))
    chroma = np.where(np.arange(8) % 2, v, u)  # each pair of pixels shares one U and one V
    luma_at = 1 if encoding in ("uyvy", "yuv422") else 0
    sent = np.empty((6, 8, 2), np.uint8)
    sent[..., luma_at], sent[..., 1 - luma_at] = y, chroma

    rgb = to_rgb(image_message(sent, encoding, padding=5))

    # ITU-R BT.601: Y from 16 to 235, U and V from 16 to 240 around 128.
    luma = 255 / 219 * (y - 16)
    red, blue = (255 / 112 * (1 - share) * (chroma - 128) for share, chroma in ((0.299, v), (0.114, u)))
    green = -(0.299 * red + 0.114 * blue) / 0.587
    expected = np.clip(np.stack([luma + red, luma + green, luma + blue], axis=-1), 0, 255)
    assert np.abs(rgb - expected).max() < 2


@pytest.mark.usefixtures("_no_cv_bridge")
@pytest.mark.parametrize(
    ("encoding", "order"),
    [("rgb16", (0, 1, 2)), ("bgr16", (2, 1, 0)), ("rgba16", (0, 1, 2)), ("bgra16", (2, 1, 0)), ("mono16", (0, 0, 0))],
)
@pytest.mark.parametrize("big_endian", [False, True])
def test_sixteen_bit_colour_is_scaled_to_eight(encoding: str, order: tuple[int, ...], big_endian: bool) -> None:
    channels = {"rgb16": 3, "bgr16": 3, "rgba16": 4, "bgra16": 4, "mono16": 1}[encoding]
    sent = np.random.default_rng(5).permutation(65536)[: 60 * channels].astype(np.uint16).reshape(6, 10, channels)
    message = image_message(sent[..., 0] if channels == 1 else sent, encoding, big_endian=big_endian, padding=1)
    np.testing.assert_array_equal(to_rgb(message), np.rint(sent[..., list(order)] / 257).astype(np.uint8))


def test_cv_bridge_and_opencv_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv_bridge", reason="cv_bridge is not installed here", exc_type=ImportError)
    rng = np.random.default_rng(6)
    for encoding in images._CONVERTED:
        kind, channels = images._LAYOUT[encoding]
        sent = rng.integers(0, np.iinfo(kind).max, (12, 14, channels)[: 2 + (channels > 1)], kind, endpoint=True)
        message = image_message(sent, encoding, padding=channels)
        with_bridge = to_rgb(message)
        with monkeypatch.context() as patched:
            patched.setattr(images, "_cv_bridge", lambda: None)
            np.testing.assert_array_equal(with_bridge, to_rgb(message), err_msg=encoding)


class _Recorder:
    """Stands where cv_bridge.CvBridge would be: marks in the pixels what it was asked for, knows `nv21` and bayer."""

    def imgmsg_to_cv2(self, img_msg: SimpleNamespace, desired_encoding: str = "passthrough") -> np.ndarray:
        if img_msg.encoding not in ("nv21", "bayer_rggb16"):
            raise RuntimeError("no such conversion")
        assert img_msg.encoding == "nv21" or (img_msg.step == 2 * img_msg.width and not img_msg.is_bigendian)
        return np.full((img_msg.height, img_msg.width, 3), len(desired_encoding), np.uint8)


def test_cv_bridge_converts_what_is_no_plain_view_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=_Recorder))
    marked = np.full((4, 6, 3), len("rgb8"), np.uint8)
    np.testing.assert_array_equal(to_rgb(image_message(np.zeros((4, 6), np.uint8), "nv21")), marked)
    mosaic = np.zeros((4, 6), np.uint16)  # given to it without padding and in native order
    np.testing.assert_array_equal(to_rgb(image_message(mosaic, "bayer_rggb16", padding=2, big_endian=True)), marked)
    # What this cv_bridge does not know (an old one, of uyvy) OpenCV converts: black, since Y is 0.
    assert not to_rgb(image_message(np.full((4, 6, 2), (128, 0), np.uint8), "uyvy")).any()
    with pytest.raises(ImageError, match=r"cannot convert 'nv24' to rgb8 \(no such conversion\): publish"):
        to_rgb(image_message(np.zeros((4, 6), np.uint8), "nv24"))


@pytest.mark.usefixtures("_no_cv_bridge")
def test_an_encoding_that_is_not_known_names_the_cure() -> None:
    with pytest.raises(ImageError, match=r"/cam: encoding 'nv21' needs cv_bridge.*publish a compressed.*bayer_rggb8"):
        to_rgb(image_message(np.zeros((4, 4), np.uint8), "nv21"), "/cam")


def test_channels_without_names_are_refused() -> None:
    with pytest.raises(ImageError, match=r"'8UC3' does not say which channel.*bgr8"):
        to_rgb(image_message(np.zeros((4, 4, 3), np.uint8), "8UC3"))


@pytest.mark.usefixtures("_no_cv_bridge")
def test_yuv422_of_odd_width_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="a uyvy image of 5x4 px: its width has to be even"):
        to_rgb(image_message(np.zeros((4, 5, 2), np.uint8), "uyvy"))


# Compressed images


def test_a_mosaic_that_was_compressed_as_it_is_is_still_a_mosaic() -> None:
    mosaic = np.tile(np.array([[200, 120], [120, 40]], np.uint8), (4, 5))
    message = compressed_message(mosaic, "png", message_format="bayer_rggb8; png compressed ")
    np.testing.assert_array_equal(to_rgb(message)[2, 2], [200, 120, 40])


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("missing", [1, 5, 100, 900])
@pytest.mark.parametrize("decode", [to_rgb, to_thermal_values])
def test_a_truncated_compressed_image_is_refused(kind: str, missing: int, decode: Any) -> None:
    message = compressed_message(np.random.default_rng(7).integers(0, 256, (30, 40, 3), dtype=np.uint8), kind)
    message.data = message.data[:-missing]
    # The last four bytes of a PNG are a checksum, which its decoder looks at.
    with pytest.raises(ImageError, match=r"camera: .*40x30 px is (truncated: its end is missing|damaged)"):
        decode(message, "camera")


def test_bytes_behind_the_end_of_a_jpeg_do_not_matter() -> None:
    # USB cameras pad their MJPEG frames.
    message = compressed_message(np.full((8, 8, 3), 90, np.uint8), "jpeg")
    message.data = message.data + array.array("B", bytes(64))
    assert np.abs(to_rgb(message).astype(int) - 90).max() <= 1


def png_of(width: int, height: int, data: bytes, *further: tuple[bytes, bytes]) -> Any:
    """A PNG message whose rows are `data`, compressed. further: kind and body of chunks behind the header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *further, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    parts = [b"\x89PNG\r\n\x1a\n", *(chunk(kind, body) for kind, body in chunks)]
    return SimpleNamespace(format="png", data=array.array("B", b"".join(parts)))


def test_a_png_whose_chunk_claims_gigabytes_is_refused_before_anything_is_allocated() -> None:
    # OpenCV 5 takes 17 s for the 400 bytes of such a file, and the memory.
    message = compressed_message(np.zeros((8, 8, 3), np.uint8), "png")
    at = bytes(message.data).index(b"IDAT") - 4
    message.data[at : at + 4] = array.array("B", struct.pack(">I", 0x7FFFFFF0))
    with pytest.raises(ImageError, match="8x8 px is truncated"):
        to_rgb(message)


def test_only_the_chunks_with_pixels_reach_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: (seen.append(data.tobytes()), decode(data, flags))[1])
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000)))
    animation = (b"acTL", struct.pack(">II", 2**31 - 1, 0))
    rows = bytes([0, 1, 2, 0, 3, 4])
    np.testing.assert_array_equal(to_thermal_values(png_of(2, 2, rows, bomb, animation)), [[1, 2], [3, 4]])
    assert b"zTXt" not in seen[0]
    assert b"acTL" not in seen[0]
    assert seen[0] == png_of(2, 2, rows).data.tobytes()


def test_a_png_of_too_few_bytes_for_its_pixels_is_refused_before_anything_is_allocated() -> None:
    np.testing.assert_array_equal(to_rgb(png_of(4, 2, bytes([0, 1, 2, 3, 4, 0, 5, 6, 7, 8])))[1, :, 0], [5, 6, 7, 8])
    with pytest.raises(ImageError, match="8192x8192 px is damaged: so few bytes cannot hold so many pixels"):
        to_rgb(png_of(8192, 8192, b""))


def test_the_emptiest_png_is_not_taken_for_damaged() -> None:
    # All zero: the best that deflate can do. 4 MB of pixels in 4 kB.
    message = png_of(2048, 2048, bytes(2048 * 2049))
    assert len(message.data) < 5000
    assert to_rgb(message).shape == (2048, 2048, 3)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    ok, data = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert ok
    message = SimpleNamespace(format="jpeg", data=array.array("B", data.tobytes()))
    assert not to_rgb(message).any()
    # Scans are cheap in bytes: repeat the last one until it would cost as much as 4 of the largest images.
    whole = data.tobytes()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    scans = 4 * MAX_PIXELS // (64 * 64) + 1
    message.data = array.array("B", whole[:-2] + scan * scans + whole[-2:])
    with pytest.raises(ImageError, match=r"64x64 px is refused: \d+ scans"):
        to_rgb(message)


def test_sixteen_bits_that_jpeg_has_cut_to_eight_are_no_thermal_image() -> None:
    message = compressed_message(np.zeros((8, 8), np.uint8), "jpeg", message_format="16UC1; jpeg compressed ")
    with pytest.raises(ImageError, match=r"/flir carries '16UC1; jpeg compressed '.*kept 8 bits of 16UC1.*png"):
        to_thermal_values(message, "/flir")


def test_compressed_depth_is_refused_by_its_name() -> None:
    message = compressed_message(np.zeros((8, 8), np.uint16), "png", message_format="16UC1; compressedDepth png")
    with pytest.raises(ImageError, match="compressedDepth: subscribe to compressed or raw images"):
        to_thermal_values(message)


def test_what_comes_from_outside_is_shortened_in_error_texts() -> None:
    message = compressed_message(np.zeros((8, 8, 3), np.uint8), "png", message_format="x" * 100_000)
    message.data = message.data[:40]
    with pytest.raises(ImageError, match="xxx\\.\\.\\.'") as error:
        to_rgb(message)
    assert len(str(error.value)) < 300


# Anything at all


def decoded_or_refused(decode: Any, message: Any) -> np.ndarray | None:
    """Return the image, None where an ImageError said which topic it is about; let all other exceptions pass."""
    try:
        return decode(message, "/front/camera")
    except ImageError as error:
        text = str(error)
    assert "/front/camera" in text
    return None


ENCODINGS = st.sampled_from([*sorted(images._LAYOUT), "nv21", "8UC3", "", "rgb", "16UC", "\x00"])
NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from([MAX_SIDE, MAX_SIDE + 1, 2**31 - 1, 2**31, 2**32 - 1]))


@pytest.mark.usefixtures("_no_cv_bridge")
@given(
    encoding=ENCODINGS,
    width=NUMBERS,
    height=NUMBERS,
    step=NUMBERS,
    is_bigendian=st.integers(0, 255),
    data=st.binary(max_size=400),
    rclpy_like=st.booleans(),
    decode=st.sampled_from([to_rgb, to_thermal_values]),
)
def test_any_image_message_is_decoded_or_refused(
    encoding: str,
    width: int,
    height: int,
    step: int,
    is_bigendian: int,
    data: bytes,
    rclpy_like: bool,
    decode: Any,
) -> None:
    message = SimpleNamespace(
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=is_bigendian,
        data=array.array("B", data) if rclpy_like else np.frombuffer(data, np.uint8),
    )
    image = decoded_or_refused(decode, message)
    if image is not None:
        assert image.shape[:2] == (height, width)
        assert image.dtype.isnative
        assert decode is to_thermal_values or (image.dtype == np.uint8 and image.shape[2] == 3)
        np.ascontiguousarray(image)  # reads every pixel: nothing lies outside of the data


@given(
    kind=st.sampled_from(["png", "jpeg"]),
    at=st.integers(0, 10_000),
    noise=st.binary(max_size=8),
    decode=st.sampled_from([to_rgb, to_thermal_values]),
    message_format=st.sampled_from(["jpeg", "rgb8; png compressed bgr8", "bayer_rggb8; jpeg compressed ", "", ";;"]),
)
def test_any_damage_to_a_compressed_image_is_decoded_or_refused(
    kind: str, at: int, noise: bytes, decode: Any, message_format: str
) -> None:
    pixels = np.random.default_rng(8).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    message = compressed_message(pixels, kind, message_format=message_format)
    data = bytes(message.data)
    at %= len(data)
    message.data = array.array("B", data[:at] + noise + data[at + len(noise) :])
    image = decoded_or_refused(decode, message)
    # What comes out is bounded by what came in: a bit for a block of JPEG (64 px), the largest ratio of PNG.
    assert image is None or image.size <= max(8 * 64 * 3, 1032) * len(message.data)


def test_an_encoding_without_intensities_is_no_thermal_image() -> None:
    with pytest.raises(ImageError, match=r"/flir carries 'yuv422'.*mono16"):
        to_thermal_values(image_message(np.zeros((4, 4, 2), np.uint8), "yuv422"), "/flir")


@given(st.data())
def test_image_fields_and_decoding_are_inverse(data: st.DataObject) -> None:
    encoding, dtype, channels = data.draw(
        st.sampled_from([("rgb8", "u1", 3), ("mono8", "u1", 1), ("mono16", "u2", 1), ("32FC1", "f4", 1)])
    )
    sent = data.draw(pixels(dtype, channels))
    fields = image_fields(sent, encoding)
    message = SimpleNamespace(**fields)
    message.data = to_array(fields["data"])

    assert (fields["height"], fields["width"]) == sent.shape[:2]
    assert fields["step"] == sent.shape[1] * channels * np.dtype(dtype).itemsize
    assert len(message.data) == fields["step"] * sent.shape[0]
    np.testing.assert_array_equal((to_rgb if encoding == "rgb8" else to_thermal_values)(message), sent)


def test_image_fields_take_views_with_gaps() -> None:
    whole = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert image_fields(whole[:, 1:3], "rgb8")["data"].tolist() == whole[:, 1:3].reshape(-1).tolist()


@pytest.mark.parametrize(
    ("image", "encoding"),
    [
        (np.zeros((2, 2), np.uint8), "rgb8"),
        (np.zeros((2, 2), np.uint8), "mono16"),
        (np.zeros((2, 2, 3), np.uint8), "mono8"),
        (np.zeros((2, 2), np.uint8), "yuv422"),
    ],
)
def test_an_array_that_contradicts_its_encoding_is_not_sent(image: np.ndarray, encoding: str) -> None:
    with pytest.raises(ImageError, match=f"cannot be sent as '{encoding}'"):
        image_fields(image, encoding)


def test_stamps_are_exact_nanoseconds() -> None:
    # Floats would round this one: 1.7e18 ns needs 61 bits.
    message = image_message(np.zeros((1, 1), np.uint8), "mono8", stamp_ns=1_700_000_000_123_456_789)
    assert stamp_ns(message) == 1_700_000_000_123_456_789


def test_jpeg_orientation_tags_do_not_turn_the_image() -> None:
    # A rotated image would no longer fit its CameraInfo. EXIF APP1 with orientation 6 (turn by 90 degrees).
    message = compressed_message(np.zeros((8, 16, 3), np.uint8), "jpeg")
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    data = bytes(message.data)
    tagged = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR).shape == (16, 8, 3)  # the tag is obeyed
    message.data = array.array("B", tagged)
    assert to_rgb(message).shape == (8, 16, 3)
    assert to_thermal_values(message).shape[:2] == (8, 16)
