"""Depth images (REP 118) and organised clouds of depth cameras to metres along the optical axis."""

import sys
from typing import Any

import numpy as np

from md_perception.results import Float32Array
from md_perception.sensing.images import ImageError, Message, to_thermal_values

_MILLIMETRE = np.float32(0.001)
_FLOAT32 = 7
"""sensor_msgs/PointField.FLOAT32"""


def depth_of_image(message: Message, topic: str = "depth/image") -> Float32Array:
    """Return float32 (h, w), m, of a sensor_msgs/Image: 32FC1 metres, or 16UC1 and mono16 millimetres, 0 for none.

    topic: for error texts. Raises ImageError.
    """
    if message.encoding not in ("32FC1", "16UC1", "mono16"):
        raise ImageError(
            f"depth topic {topic} carries {message.encoding[:40]!r}, which is no depth: 32FC1 in metres or 16UC1 in "
            "millimetres is needed"
        )
    values = to_thermal_values(message, topic)
    return values if values.dtype == np.float32 else values * _MILLIMETRE


def depth_of_cloud(message: Any, topic: str = "depth/points") -> Float32Array:
    """Return float32 (h, w), m, of an organised sensor_msgs/PointCloud2 in the camera's optical frame: its z.

    topic: for error texts. Raises ImageError.
    """
    height, width = int(message.height), int(message.width)
    offset = next((int(f.offset) for f in message.fields if f.name == "z" and int(f.datatype) == _FLOAT32), -1)
    step, row = int(message.point_step), int(message.row_step)
    data = np.frombuffer(message.data, np.uint8)
    if min(height, width) < 2 or offset < 0:
        raise ImageError(
            f"depth topic {topic} carries a cloud of {width}x{height} points with the fields "
            f"{', '.join(f.name for f in message.fields) or 'none'}: an organised one with float32 z is needed, a "
            "point for each pixel"
        )
    if offset + 4 > step or width * step > row or height * row > data.size:
        raise ImageError(
            f"depth topic {topic} carries a cloud that contradicts itself: {data.size} bytes for {height} rows of "
            f"{row} and points of {step}"
        )
    order = ">" if message.is_bigendian else "<"
    z = np.ndarray((height, width), f"{order}f4", data, offset, (row, step))
    native = z.dtype.newbyteorder("=")
    return z if sys.byteorder == ("big" if message.is_bigendian else "little") else z.astype(native)
