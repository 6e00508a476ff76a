"""Image messages as rclpy (`array.array` data) and rosbags (numpy data) deliver them, without either."""

import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

_FILL = 0xA5
"""What lies in the padding of rows: must never be seen."""


def header(stamp_ns: int = 0, frame_id: str = "camera") -> SimpleNamespace:
    """Return a std_msgs/Header."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return SimpleNamespace(stamp=SimpleNamespace(sec=seconds, nanosec=nanoseconds), frame_id=frame_id)


def image_message(
    pixels: np.ndarray,
    encoding: str,
    *,
    stamp_ns: int = 0,
    frame_id: str = "camera",
    padding: int = 0,
    big_endian: bool = False,
    rclpy_like: bool = True,
) -> Any:
    """Return a sensor_msgs/Image of an array (H, W[, C]). padding: bytes behind each row."""
    height, width = pixels.shape[:2]
    ordered = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = ordered.reshape(height, -1).view(np.uint8)
    step = rows.shape[1] + padding
    padded = np.full((height, step), _FILL, np.uint8)
    padded[:, : rows.shape[1]] = rows
    return SimpleNamespace(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=step,
        data=array.array("B", padded.tobytes()) if rclpy_like else padded.reshape(-1),
    )


def compressed_message(
    pixels: np.ndarray, kind: str, *, message_format: str | None = None, stamp_ns: int = 0, frame_id: str = "camera"
) -> Any:
    """Return a sensor_msgs/CompressedImage. pixels: (H, W) or RGB (H, W, 3). kind: `png` or `jpeg`."""
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    ok, data = cv2.imencode(f".{kind}", bgr)
    assert ok
    return SimpleNamespace(
        header=header(stamp_ns, frame_id),
        format=message_format or f"rgb8; {kind} compressed bgr8",
        data=array.array("B", data.tobytes()),
    )
