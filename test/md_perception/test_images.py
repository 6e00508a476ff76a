import array
import struct
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_messages import compressed_message, image_message

from md_perception.sensing.images import (
    MAX_SIDE,
    ImageError,
    image_fields,
    stamp_ns,
    to_array,
    to_rgb,
    to_thermal_values,
)

SIDES = st.integers(1, 9)


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


@pytest.mark.parametrize(("encoding", "dtype"), [("mono8", "u1"), ("mono16", "u2"), ("16UC1", "u2"), ("32FC1", "f4")])
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
    with pytest.raises(ImageError, match=r"neither JPEG nor PNG|damaged|is refused"):
        to_rgb(message, "camera")


def test_an_exotic_encoding_without_cv_bridge_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    message = image_message(np.zeros((4, 4, 2), np.uint8), "yuv422")
    with pytest.raises(ImageError, match=r"/cam: encoding 'yuv422' needs cv_bridge.*publish rgb8"):
        to_rgb(message, "/cam")


def test_an_exotic_encoding_goes_through_cv_bridge_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class CvBridge:
        """The call of cv_bridge that is used; it marks what it was asked for in the pixels."""

        def imgmsg_to_cv2(self, img_msg: SimpleNamespace, desired_encoding: str = "passthrough") -> np.ndarray:
            if img_msg.encoding != "bayer_rggb8":
                raise RuntimeError("no such conversion")
            return np.full((img_msg.height, img_msg.width, 3), len(desired_encoding), np.uint8)

    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=CvBridge))
    message = image_message(np.zeros((4, 6), np.uint8), "bayer_rggb8")
    np.testing.assert_array_equal(to_rgb(message), np.full((4, 6, 3), len("rgb8"), np.uint8))
    message.encoding = "bayer_unheard_of"
    with pytest.raises(ImageError, match="cannot convert 'bayer_unheard_of' to rgb8: no such conversion"):
        to_rgb(message)


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
