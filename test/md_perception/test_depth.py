"""Depth images and clouds as drivers send them."""

import numpy as np
import pytest
from rosbags.typesys.store import Typestore

from md_perception.bags.types import message_store
from md_perception.outputs.messages import MessageBuilder
from md_perception.sensing.depth import depth_of_cloud, depth_of_image
from md_perception.sensing.images import ImageError


@pytest.fixture(scope="module")
def store() -> Typestore:
    return message_store()


def cloud(store: Typestore, values: np.ndarray, names: str = "xyz", **changes: object) -> object:
    """Return a PointCloud2 of float values (h, w, channels)."""
    height, width, channels = values.shape
    step = values.dtype.itemsize * channels
    types = store.types
    fields = [types["sensor_msgs/msg/PointField"](n, 4 * i, 7, 1) for i, n in enumerate(names)]
    given = {
        "header": MessageBuilder(types.__getitem__).header(0, "camera"),
        "height": height,
        "width": width,
        "fields": fields,
        "is_bigendian": values.dtype.byteorder == ">",
        "point_step": step,
        "row_step": step * width,
        "data": np.ascontiguousarray(values).reshape(-1).view(np.uint8),
        "is_dense": False,
    }
    return types["sensor_msgs/msg/PointCloud2"](**(given | changes))


@pytest.mark.parametrize("encoding", ["16UC1", "mono16"])
def test_millimetres_become_metres(store: Typestore, encoding: str) -> None:
    pixels = np.array([[0, 1500, 65535], [1, 2, 3]], np.uint16)
    found = depth_of_image(MessageBuilder(store.types.__getitem__).image(pixels, encoding, 0, ""))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 1.5, 65.535], [0.001, 0.002, 0.003]], rtol=1e-6)


def test_metres_stay_metres(store: Typestore) -> None:
    pixels = np.array([[np.nan, 1.5], [np.inf, 20]], np.float32)
    found = depth_of_image(MessageBuilder(store.types.__getitem__).image(pixels, "32FC1", 0, ""))
    np.testing.assert_array_equal(found, pixels)


def test_an_image_that_is_no_depth_is_refused(store: Typestore) -> None:
    picture = MessageBuilder(store.types.__getitem__).image(np.zeros((2, 2), np.uint8), "mono8", 0, "")
    with pytest.raises(ImageError, match="depth topic /d carries 'mono8', which is no depth: 32FC1 in metres"):
        depth_of_image(picture, "/d")


@pytest.mark.parametrize("order", ["<f4", ">f4"])
def test_the_z_of_an_organised_cloud(store: Typestore, order: str) -> None:
    values = np.arange(2 * 3 * 4, dtype=order).reshape(2, 3, 4)
    found = depth_of_cloud(cloud(store, values, "xyzi"))
    assert found.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(found, values[..., 2])


def test_rows_of_a_cloud_may_be_padded(store: Typestore) -> None:
    values = np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
    padded = np.zeros((2, 40), np.uint8)
    padded[:, :36] = values.reshape(2, -1).view(np.uint8)
    found = depth_of_cloud(cloud(store, values, row_step=40, data=padded.reshape(-1)))
    np.testing.assert_array_equal(found, values[..., 2])


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (
            "xyz",
            {"height": 1, "width": 6, "row_step": 72},
            "a cloud of 6x1 points with the fields x, y, z: an organised",
        ),
        ("xyi", {}, "a cloud of 3x2 points with the fields x, y, i: an organised one with float32 z is needed"),
        ("xyz", {"row_step": 24}, "contradicts itself: 72 bytes for 2 rows of 24 and points of 12"),
        ("xyz", {"point_step": 8}, "contradicts itself"),
        ("xyz", {"data": np.zeros(71, np.uint8)}, "contradicts itself: 71 bytes"),
        ("xyz", {"height": 2**31}, "contradicts itself"),
    ],
)
def test_clouds_that_are_no_depth_are_refused(store: Typestore, names: str, changes: dict, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        depth_of_cloud(cloud(store, np.ones((2, 3, 3), np.float32), names, **changes))
