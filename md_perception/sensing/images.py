"""Image messages to arrays and back: plain encodings are views of the message's bytes, nothing is copied without need.

Works for the messages of rclpy (`data` is an `array.array`) and of the rosbags library (`data` is a numpy array) alike,
because both have the fields of sensor_msgs/Image (or sensor_msgs/CompressedImage: `format` and `data`).
"""

import array
import functools
import re
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from md_perception.results import UInt8Image
from md_perception.sensing.compression import inspect

MAX_SIDE = 16384
"""Largest width or height, px, that is accepted; checked before anything is allocated."""

MAX_PIXELS = 64 * 1024 * 1024
"""Largest number of pixels that is accepted; a small compressed file can claim many."""

Message = Any
"""A sensor_msgs/Image or sensor_msgs/CompressedImage of rclpy or rosbags."""

_MAX_SCANNED_PIXELS = 4 * MAX_PIXELS
"""Largest number of pixels times scans of a progressive JPEG: a few kilobytes of scans can cost minutes."""

_BAYER = {
    # OpenCV names a mosaic by its second row, from the second column on.
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}

_YUV422 = {
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,  # the old name of uyvy
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,  # the old name of yuyv
}

_LAYOUT: dict[str, tuple[str, int]] = {
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "rgba8": ("u1", 4),
    "bgra8": ("u1", 4),
    "mono8": ("u1", 1),
    "8UC1": ("u1", 1),
    "rgb16": ("u2", 3),
    "bgr16": ("u2", 3),
    "rgba16": ("u2", 4),
    "bgra16": ("u2", 4),
    "mono16": ("u2", 1),
    "16UC1": ("u2", 1),
    "16SC1": ("i2", 1),
    "32FC1": ("f4", 1),
    "64FC1": ("f8", 1),
    **dict.fromkeys(_YUV422, ("u1", 2)),
    **{f"bayer_{order}8": ("u1", 1) for order in _BAYER},
    **{f"bayer_{order}16": ("u2", 1) for order in _BAYER},
}
"""Encoding to the dtype of one channel and the number of channels."""

_TO_RGB: dict[str, int] = {
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
    "8UC1": cv2.COLOR_GRAY2RGB,
}
"""OpenCV's conversion of the 8-bit encodings that are only rearranged."""

_CONVERTED: dict[str, int | None] = {
    "rgb16": None,
    "bgr16": cv2.COLOR_BGR2RGB,
    "rgba16": cv2.COLOR_RGBA2RGB,
    "bgra16": cv2.COLOR_BGRA2RGB,
    "mono16": cv2.COLOR_GRAY2RGB,
    **_YUV422,
    **{f"bayer_{order}{bits}": code for order, code in _BAYER.items() for bits in (8, 16)},
}
"""OpenCV's conversion of the encodings that cv_bridge converts where there is one; None: 16 bits become 8, no more."""

_THERMAL_ENCODINGS = ("mono8", "8UC1", "mono16", "16UC1", "16SC1", "32FC1", "64FC1", "rgb8", "bgr8")
_SIXTEEN_BITS = ("mono16", "16UC1", "16SC1", "32FC1", "64FC1")


class ImageError(ValueError):
    """An image message that cannot be decoded; the text names the topic, the encoding and what was expected."""


def shown(text: str) -> str:
    """Return an encoding or format, which come from outside, quoted for an error text, and shortened."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


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
    contiguous), otherwise a new array. mono8 is repeated over the three channels; bayer_* (8 and 16 bit), the two
    orders of YUV 4:2:2 and 16-bit colour are converted by cv_bridge where it can be imported, else by OpenCV with the
    same result; what else there may be, only by cv_bridge. JPEG and PNG are taken as image_transport sends them.
    topic: for error texts. Raises ImageError.
    """
    if is_compressed(message):
        return _decode_rgb(message, topic)
    encoding = message.encoding
    if encoding == "rgb8":
        return _plain_view(message, topic)
    if encoding in _TO_RGB:
        return np.asarray(cv2.cvtColor(_plain_view(message, topic), _TO_RGB[encoding]), np.uint8)
    if encoding in _CONVERTED:
        return _converted(_native(_plain_view(message, topic)), encoding, topic)
    return _through_cv_bridge(message, topic)


def to_brightness(message: Message, topic: str = "rgb") -> UInt8Image:
    """Decode the brightness of a CompressedImage alone, uint8 (H, W): a third of the work of its colours, for a JPEG.

    A mosaic of a Bayer filter comes as it is. topic: for error texts. Raises ImageError.
    """
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    return np.asarray(_decode_compressed(message, topic, flags), np.uint8)


def to_thermal_values(message: Message, topic: str = "thermal") -> np.ndarray:
    """Decode a thermal image without interpreting its values: sensing.thermal knows what they mean.

    Returns, in native byte order and mostly as a view, uint8 (h, w) for mono8 and 8UC1, uint16 (h, w) for mono16, 16UC1
    and 16-bit PNG, int16 (h, w) for 16SC1, float32 (h, w) for 32FC1 and 64FC1, uint8 (h, w, 3) for rgb8 and bgr8 and
    colour JPEG or PNG (whose channels sensing.thermal compares; their order does not matter).
    topic: for error texts. Raises ImageError.
    """
    if is_compressed(message):
        values = _decode_compressed(message, topic, cv2.IMREAD_UNCHANGED)
        if values.dtype == np.uint8 and _sent_encoding(message) in _SIXTEEN_BITS:
            raise ImageError(
                f"thermal topic {topic} carries {shown(message.format)} images that have kept 8 bits of "
                f"{_sent_encoding(message)}: let the publisher compress to png (image_transport's parameter "
                "<topic>.compressed.format), or subscribe to the raw image"
            )
        return values
    if message.encoding not in _THERMAL_ENCODINGS:
        raise ImageError(
            f"thermal topic {topic} carries {shown(message.encoding)}, which holds no thermal intensities that are "
            f"understood: publish one of {', '.join(_THERMAL_ENCODINGS)}"
        )
    values = _native(_plain_view(message, topic))
    if values.dtype != np.float64:
        return values
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return values.astype(np.float32)


def image_fields(image: np.ndarray, encoding: str) -> dict[str, Any]:
    """Return the fields of a sensor_msgs/Image that are not the header, rows without padding.

    image: (H, W) or (H, W, C) of the dtype and the channels that `encoding` demands. `data` is a flat uint8 array,
    which rosbags takes as it is; `to_array` makes of it what rclpy takes quickly. Raises ImageError on a contradiction.
    """
    dtype, channels = _LAYOUT.get(encoding, ("", 0))
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
    kind, channels = _LAYOUT[encoding]
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
    if height == 1:
        step = row_bytes  # it may be any number then, even one that no pointer can be moved by
    strides = (step, channels * dtype.itemsize, dtype.itemsize)[: len(shape)]
    return np.ndarray(shape, dtype, data, strides=strides)


def _check_size(width: int, height: int, encoding: str, topic: str) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ImageError(
            f"{topic}: an {encoding} image of {width}x{height} px is refused: sides must be 1 to {MAX_SIDE} px and "
            f"the whole at most {MAX_PIXELS} px"
        )


def _native(image: np.ndarray) -> np.ndarray:
    """Return the image in the machine's byte order, aligned (rows of 16 bit may be an odd number of bytes apart).

    A view where it is already.
    """
    return np.require(image, image.dtype.newbyteorder("="), "A")


def _converted(pixels: np.ndarray, encoding: str, topic: str) -> UInt8Image:
    """Return pixels of an encoding of `_CONVERTED`, (H, W) or (H, W, C) in native byte order, as RGB."""
    height, width = pixels.shape[:2]
    if encoding in _YUV422 and width % 2:  # which OpenCV 4.6 does not look at: it would write behind the row
        raise ImageError(f"{topic}: a {encoding} image of {width}x{height} px: its width has to be even")
    bridge = _cv_bridge()
    if bridge is not None:
        # As a message without padding, in native order: cv_bridge for Python stumbles over either.
        fields = image_fields(pixels, encoding)
        try:
            return np.asarray(bridge.imgmsg_to_cv2(SimpleNamespace(**fields), desired_encoding="rgb8"), np.uint8)
        except Exception:  # its own type, KeyErrors, cv2.error: releases differ in the encodings that they know
            pass
    code = _CONVERTED[encoding]
    try:
        image = pixels if code is None else cv2.cvtColor(pixels, code)
    except cv2.error as error:
        reason = str(error).strip()
        raise ImageError(f"{topic}: a {encoding} image of {width}x{height} px cannot be converted: {reason}") from None
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    return np.asarray(image, np.uint8)


def _decode_rgb(message: Message, topic: str) -> UInt8Image:
    sent = _sent_encoding(message)
    if sent in _CONVERTED and sent.startswith("bayer_"):
        mosaic = _decode_compressed(message, topic, cv2.IMREAD_UNCHANGED)
        if mosaic.ndim == 2 and mosaic.dtype == np.dtype(_LAYOUT[sent][0]):
            return _converted(mosaic, sent, topic)  # image_transport compresses a mosaic as it is
    image = _decode_compressed(message, topic, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    # image_transport compresses BGR; "compressed rgb8" says that the publisher encoded RGB bytes as if they were BGR.
    return image if "compressed rgb" in message.format else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _sent_encoding(message: Message) -> str:
    """Return the encoding before compression, where image_transport says it: `rgb8; jpeg compressed bgr8`."""
    sent, separator, _ = str(message.format).partition(";")
    return sent.strip() if separator else ""


def _decode_compressed(message: Message, topic: str, flags: int) -> np.ndarray:
    """Decode JPEG or PNG bytes as cv2 does, after their header was found acceptable."""
    data = np.frombuffer(message.data, np.uint8)
    what = f"{topic}: compressed image with format {shown(message.format)} and {data.size} bytes"
    if "compressedDepth" in message.format:
        raise ImageError(f"{what} is one of the transport compressedDepth: subscribe to compressed or raw images")
    file = inspect(data.tobytes())
    if file is None:
        raise ImageError(
            f"{what} is neither JPEG nor PNG, or its header is damaged: publish one of these, or the raw image"
        )
    width, height = file.width, file.height
    _check_size(width, height, shown(message.format), topic)
    problem = file.problem
    if problem is None and width * height * file.scans > _MAX_SCANNED_PIXELS:
        problem = f"is refused: {file.scans} scans of that size would take too long"
    if problem is not None:
        raise ImageError(f"{what} for {width}x{height} px {problem}")
    try:
        image = cv2.imdecode(np.frombuffer(file.data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{what} for {width}x{height} px does not decode: {str(error).strip()}") from None
    if image is None or image.shape[:2] != (height, width):
        raise ImageError(f"{what} for {width}x{height} px is damaged: it does not decode")
    return image


@functools.cache
def _cv_bridge() -> Any:
    """Return a cv_bridge.CvBridge, None where it cannot be imported.

    It is no dependency: its binary fits one major version of NumPy, so that an import may fail in many ways.
    """
    try:
        import cv_bridge

        return cv_bridge.CvBridge()
    except Exception:
        return None


def _through_cv_bridge(message: Message, topic: str) -> UInt8Image:
    """Convert an encoding that is not known here with cv_bridge."""
    encoding = shown(message.encoding)
    _check_size(int(message.width), int(message.height), encoding, topic)
    if re.fullmatch(r"(8|16|32|64)[USF](C\d+)?", message.encoding):
        raise ImageError(
            f"{topic}: encoding {encoding} does not say which channel is which colour: let the publisher "
            "name it, bgr8 for what OpenCV has read (cv_bridge's cv2_to_imgmsg takes encoding='bgr8')"
        )
    bridge = _cv_bridge()
    known = ", ".join(["rgb8", *_TO_RGB, *_CONVERTED])
    if bridge is None:
        raise ImageError(
            f"{topic}: encoding {encoding} needs cv_bridge, which cannot be imported here: install "
            f"ros-$ROS_DISTRO-cv-bridge, or publish a compressed image or one of {known}"
        )
    try:
        return np.asarray(bridge.imgmsg_to_cv2(message, desired_encoding="rgb8"), np.uint8)
    except Exception as error:  # cv_bridge raises its own type, KeyErrors and cv2.error
        raise ImageError(
            f"{topic}: cv_bridge cannot convert {encoding} to rgb8 ({error}): publish a compressed image or "
            f"one of {known}"
        ) from error
