"""Image messages to arrays and back: plain encodings are views of the message's bytes, nothing is copied without need.

Works for the messages of rclpy (`data` is an `array.array`) and of the rosbags library (`data` is a numpy array) alike,
because both have the fields of sensor_msgs/Image (or sensor_msgs/CompressedImage: `format` and `data`).
"""

import array
import struct
from typing import Any

import cv2
import numpy as np

from md_perception.results import UInt8Image

MAX_SIDE = 16384
"""Largest width or height, px, that is accepted; checked before anything is allocated."""

MAX_PIXELS = 64 * 1024 * 1024
"""Largest number of pixels that is accepted; a small compressed file can claim many."""

Message = Any
"""A sensor_msgs/Image or sensor_msgs/CompressedImage of rclpy or rosbags."""

_PLAIN: dict[str, tuple[str, int]] = {
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "rgba8": ("u1", 4),
    "bgra8": ("u1", 4),
    "mono8": ("u1", 1),
    "8UC1": ("u1", 1),
    "mono16": ("u2", 1),
    "16UC1": ("u2", 1),
    "32FC1": ("f4", 1),
}
"""Encoding to the dtype of one channel and the number of channels."""

_TO_RGB = {"bgr8": cv2.COLOR_BGR2RGB, "bgra8": cv2.COLOR_BGRA2RGB, "rgba8": cv2.COLOR_RGBA2RGB}
_THERMAL_ENCODINGS = ("mono8", "8UC1", "mono16", "16UC1", "32FC1", "rgb8", "bgr8")


class ImageError(ValueError):
    """An image message that cannot be decoded; the text names the topic, the encoding and what was expected."""


def stamp_ns(message: Message) -> int:
    """Return the header stamp in nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def is_compressed(message: Message) -> bool:
    """Say whether this is a sensor_msgs/CompressedImage."""
    return hasattr(message, "format")


def to_rgb(message: Message, topic: str = "rgb") -> UInt8Image:
    """Decode a colour image.

    Returns uint8 (H, W, 3) in RGB order: for rgb8 a view of the message (rows may be padded, so it need not be
    contiguous), otherwise a new array; mono8 is repeated over the three channels.
    Encodings beyond these (bayer, yuv) go through cv_bridge where that is installed.
    topic: for error texts. Raises ImageError.
    """
    if is_compressed(message):
        return _decode_rgb(message, topic)
    encoding = message.encoding
    if encoding in ("mono8", "8UC1"):
        return _recoloured(_plain_view(message, topic), cv2.COLOR_GRAY2RGB)
    if encoding == "rgb8":
        return _plain_view(message, topic)
    if encoding in _TO_RGB:
        return _recoloured(_plain_view(message, topic), _TO_RGB[encoding])
    return _through_cv_bridge(message, topic)


def to_thermal_values(message: Message, topic: str = "thermal") -> np.ndarray:
    """Decode a thermal image without interpreting its values: sensing.thermal knows what they mean.

    Returns, in native byte order and mostly as a view, uint8 (h, w) for mono8 and 8UC1, uint16 (h, w) for mono16, 16UC1
    and 16-bit PNG, float32 (h, w) for 32FC1, uint8 (h, w, 3) for rgb8 and bgr8 and colour JPEG or PNG (whose channels
    sensing.thermal compares; their order does not matter).
    topic: for error texts. Raises ImageError.
    """
    if is_compressed(message):
        return _decode_compressed(message, topic, cv2.IMREAD_UNCHANGED)
    if message.encoding not in _THERMAL_ENCODINGS:
        raise ImageError(
            f"thermal topic {topic} carries {message.encoding!r}, which holds no thermal intensities that are "
            f"understood: publish one of {', '.join(_THERMAL_ENCODINGS)}"
        )
    values = _plain_view(message, topic)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def image_fields(image: np.ndarray, encoding: str) -> dict[str, Any]:
    """Return the fields of a sensor_msgs/Image that are not the header, rows without padding.

    image: uint8, uint16 or float32 (H, W) or (H, W, C), as `encoding` demands. `data` is a flat uint8 array, which
    rosbags takes as it is; `to_array` makes of it what rclpy takes quickly. Raises ImageError on a contradiction.
    """
    dtype, channels = _PLAIN.get(encoding, ("", 0))
    found = 1 if image.ndim == 2 else image.shape[2] if image.ndim == 3 else 0
    if not dtype or image.dtype != np.dtype(dtype) or found != channels:
        raise ImageError(f"an array {image.shape} of {image.dtype} cannot be sent as {encoding!r}")
    height, width = image.shape[:2]
    return {
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": 0 if image.dtype.newbyteorder("=") == image.dtype.newbyteorder("<") else 1,
        "step": width * channels * image.dtype.itemsize,
        "data": np.ascontiguousarray(image).reshape(-1).view(np.uint8),
    }


def to_array(data: UInt8Image) -> "array.array[int]":
    """Return bytes as the `array.array('B')` that rclpy's uint8[] setters take without a loop over the elements.

    data: uint8 (N,), contiguous. Assigning a numpy array to an rclpy field takes a thousand times longer.
    """
    flat = array.array("B")
    flat.frombytes(data.data)
    return flat


def _plain_view(message: Message, topic: str) -> np.ndarray:
    """Return the pixels of a plain encoding as a view: (H, W) or (H, W, C), rows `step` bytes apart."""
    encoding = message.encoding
    height, width, step = int(message.height), int(message.width), int(message.step)
    _check_size(width, height, encoding, topic)
    kind, channels = _PLAIN[encoding]
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise ImageError(
            f"{topic}: {width}x{height} {encoding} needs a step of at least {row_bytes} bytes, the message says {step}"
        )
    data = np.frombuffer(message.data, np.uint8)
    # Some drivers leave out the padding of the last row.
    needed = step * (height - 1) + row_bytes
    if data.size < needed:
        raise ImageError(
            f"{topic}: {width}x{height} {encoding} with step {step} needs {needed} bytes, the message has {data.size}"
        )
    shape = (height, width) if channels == 1 else (height, width, channels)
    strides = (step, channels * dtype.itemsize, dtype.itemsize)[: len(shape)]
    return np.ndarray(shape, dtype, data, strides=strides)


def _check_size(width: int, height: int, encoding: str, topic: str) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ImageError(
            f"{topic}: an {encoding} image of {width}x{height} px is refused: sides must be 1 to {MAX_SIDE} px and "
            f"the whole at most {MAX_PIXELS} px"
        )


def _recoloured(image: np.ndarray, code: int) -> UInt8Image:
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


def _decode_rgb(message: Message, topic: str) -> UInt8Image:
    image = _decode_compressed(message, topic, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    # image_transport compresses BGR; "compressed rgb8" says that the publisher encoded RGB bytes as if they were BGR.
    return image if "compressed rgb8" in message.format else _recoloured(image, cv2.COLOR_BGR2RGB)


def _decode_compressed(message: Message, topic: str, flags: int) -> np.ndarray:
    """Decode JPEG or PNG bytes as cv2 does, after the size in their header was found acceptable."""
    data = np.frombuffer(message.data, np.uint8)
    size = _compressed_size(data.tobytes())
    if size is None:
        raise ImageError(
            f"{topic}: compressed image with format {message.format!r} and {data.size} bytes is neither JPEG nor PNG, "
            "or its header is damaged: publish one of these, or the raw image"
        )
    _check_size(*size, message.format, topic)
    image = cv2.imdecode(data, flags)
    if image is None:
        raise ImageError(
            f"{topic}: compressed image with format {message.format!r}, {data.size} bytes for {size[0]}x{size[1]} px, "
            "is damaged: it does not decode"
        )
    return image


def _compressed_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) from a PNG or JPEG header, None where there is none."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data[:2] != b"\xff\xd8":
        return None
    # JPEG: marker segments up to the frame header (SOF0..SOF15 but for DHT, JPG and DAC, which share the range).
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _through_cv_bridge(message: Message, topic: str) -> UInt8Image:
    """Convert an exotic encoding with cv_bridge, which is no dependency."""
    _check_size(int(message.width), int(message.height), message.encoding, topic)
    try:
        import cv_bridge
    except ImportError as error:
        raise ImageError(
            f"{topic}: encoding {message.encoding!r} needs cv_bridge, which cannot be imported here ({error}): install "
            "ros-$ROS_DISTRO-cv-bridge, or publish rgb8, bgr8, rgba8, bgra8, mono8 or a compressed image"
        ) from None
    try:
        return np.asarray(cv_bridge.CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8"))
    except Exception as error:  # cv_bridge raises its own type, KeyErrors and cv2.error
        raise ImageError(f"{topic}: cv_bridge cannot convert {message.encoding!r} to rgb8: {error}") from error
