"""Our messages read by the rules of Nav2's consumers, written down here once more and independently, at odd sizes.

Sources: kiwicampus/semantic_segmentation_layer (segmentation_buffer.cpp, a70cf6e), nav2_costmap_2d
(obstacle_layer.cpp), laser_geometry.
"""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from ground_cameras import look_down, pinhole
from rosbags.typesys.store import Typestore

from md_perception.bags.types import message_store
from md_perception.labels import SEGMENTATION
from md_perception.outputs.ground import GroundModel, GroundPoints, ObstacleScan
from md_perception.outputs.messages import MessageBuilder
from md_perception.results import Mode, Perception, Segmentation, StudentOutput

STAMP_NS = 1_700_000_000_000_000_001


@pytest.fixture(scope="module")
def store() -> Typestore:
    return message_store()


@pytest.fixture(scope="module")
def build(store: Typestore) -> MessageBuilder:
    return MessageBuilder(store.types.__getitem__)


def round_trip(store: Typestore, message: object) -> object:
    name = message.__msgtype__
    return store.deserialize_cdr(store.serialize_cdr(message, name), name)


def perception_of(mask: np.ndarray, confidence: np.ndarray) -> Perception:
    height, width = mask.shape
    output = StudentOutput(None, Segmentation(mask, confidence))
    return Perception(STAMP_NS, "rgb_optical", Mode.FUSED, (width, height), np.zeros((height, width, 3)), output)


# -- the semantic segmentation layer -----------------------------------------------------------------------------------


def layer_reads(mask: object, confidence: object, cloud_points: int, labels: object) -> list[tuple[str, int]]:
    """What the layer makes of a frame: the class name and the confidence of the point of each pixel.

    It buffers nothing unless width x height is the cloud's; looks neither at encoding nor at step; takes the confidence
    at the mask's index, unchecked; casts class ids to uint8.
    """
    assert mask.width * mask.height == cloud_points, "sizes are different, will not buffer"
    names = {entry.class_id & 0xFF: entry.class_name for entry in labels.class_map}
    read = []
    for v in range(mask.height):
        for u in range(mask.width):
            at = v * mask.width + u
            read.append((names.get(int(mask.data[at]), ""), int(confidence.data[at])))
    return read


def test_the_layer_reads_every_pixel_at_the_images_own_odd_size(store: Typestore, build: MessageBuilder) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 9, (17, 23), dtype=np.uint8)
    confidence = rng.integers(0, 256, (17, 23), dtype=np.uint8)
    perception = perception_of(mask, confidence)
    read = layer_reads(
        round_trip(store, build.mask(perception)),
        round_trip(store, build.confidence(perception)),
        17 * 23,
        round_trip(store, build.label_info(SEGMENTATION.classes, 0.3)),
    )
    assert read == [
        (SEGMENTATION.classes[label], sure) for label, sure in zip(mask.ravel(), confidence.ravel(), strict=True)
    ]


@pytest.mark.parametrize("size", [(11, 7), (46, 34), (13, 40)])
def test_the_layer_reads_every_point_of_a_depth_camera_of_another_size(
    store: Typestore, build: MessageBuilder, size: tuple[int, int]
) -> None:
    """Each point has the class and the confidence of one and the same image pixel, the one that lies where it lies."""
    mask = np.zeros((17, 23), np.uint8)
    mask[:, 12:] = 2
    mask[9:, :12] = 1
    confidence = np.arange(17 * 23).reshape(17, 23).astype(np.uint8)
    perception = perception_of(mask, confidence)
    read = layer_reads(
        round_trip(store, build.mask(perception, size)),
        round_trip(store, build.confidence(perception, size)),
        size[0] * size[1],
        round_trip(store, build.label_info(SEGMENTATION.classes, 0.3)),
    )
    for index, (name, sure) in enumerate(read):
        v, u = divmod(index, size[0])
        row, column = int((v + 0.5) * 17 / size[1]), int((u + 0.5) * 23 / size[0])
        assert (name, sure) == (SEGMENTATION.classes[mask[row, column]], confidence[row, column])


def layer_costs(types: dict, frames: list[tuple[float, set[str]]], decay_s: float) -> list[int | None]:
    """What the layer writes into one cell, frame by frame: (time, classes that its points have).

    Of a frame the class of the greatest cost counts (use_cost_selection), classes of no type not at all. A priority
    class empties the queues of the others; without one the longest queue dominates. The cost is written while a queue
    holds something, and nothing ever unmarks a cell.
    """
    type_of = {name: kind for kind in types.values() for name in kind["classes"]}
    queues: dict[str, list[float]] = {}
    cell, costs = None, []
    for now, seen in frames:
        known = [name for name in seen if name in type_of]
        if known:
            best = max(known, key=lambda name: type_of[name]["max_cost"])
            queues = {best: queues.get(best, [])} if type_of[best]["dominant_priority"] else queues
            queues.setdefault(best, []).append(now)
        queues = {name: [at for at in times if now - at <= decay_s] for name, times in queues.items()}
        queues = {name: times for name, times in queues.items() if times}
        if queues:
            first = [name for name in queues if type_of[name]["dominant_priority"]]
            cell = type_of[first[0] if first else max(queues, key=lambda name: len(queues[name]))]["max_cost"]
        costs.append(cell)
    return costs


def test_our_parameters_of_the_layer_take_back_what_a_person_has_marked() -> None:
    file = Path(__file__).parents[2] / "config" / "nav2_semantic_layer.yaml"
    costmap = yaml.safe_load(file.read_text())["local_costmap"]["local_costmap"]["ros__parameters"]
    camera = costmap["semantic_layer"]["camera"]
    types = {name: camera[name] for name in camera["class_types"]}
    assert sorted(name for kind in types.values() for name in kind["classes"]) == sorted(SEGMENTATION.classes)
    drive = [(0.1 * k, {"person", "unlabelled"} if k < 20 else {"unlabelled"}) for k in range(60)]
    costs = layer_costs(types, drive, camera["tile_map_decay_time"])
    assert costs[:20] == [254] * 20
    assert costs[-20:] == [0] * 20
    assert layer_costs({"danger": types["danger"]}, drive, camera["tile_map_decay_time"])[-1] == 254


# -- obstacle layer, collision monitor ---------------------------------------------------------------------------------


def points_of(cloud: object) -> list[dict[str, float]]:
    """Read a PointCloud2 as its definition has it: fields by name, at their offsets, in steps."""
    assert not cloud.is_bigendian
    assert cloud.row_step == cloud.point_step * cloud.width
    assert len(cloud.data) == cloud.row_step * cloud.height
    raw = bytes(cloud.data)
    return [
        {f.name: struct.unpack_from("<f", raw, i * cloud.point_step + f.offset)[0] for f in cloud.fields}
        for i in range(cloud.width * cloud.height)
        if all(f.datatype == 7 and f.count == 1 for f in cloud.fields)
    ]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_cloud_is_read_point_by_point(store: Typestore, build: MessageBuilder, count: int) -> None:
    rng = np.random.default_rng(count)
    points = GroundPoints(rng.uniform(-9, 9, (count, 3)).astype(np.float32), rng.random(count).astype(np.float32))
    cloud = round_trip(store, build.cloud(points, STAMP_NS, "base_link"))
    assert (cloud.header.frame_id, cloud.header.stamp.nanosec) == ("base_link", 1)
    read = points_of(cloud)
    assert [(p["x"], p["y"], p["z"]) for p in read] == [tuple(float(v) for v in row) for row in points.xyz]
    assert [p["sigma"] for p in read] == [float(v) for v in points.sigma_m]


def test_the_obstacle_layer_keeps_our_points_at_its_default_heights(store: Typestore, build: MessageBuilder) -> None:
    """Below min_obstacle_height (0.0) and above max_obstacle_height (2.0) it drops them: on the ground is too close."""
    ground = GroundModel(pinhole(), look_down(1.5, 5))
    found = ground.of_boxes(np.array([[290, 200, 350, 346]], np.float32))
    read = points_of(round_trip(store, build.cloud(found, STAMP_NS, "base_link")))
    assert len(read) > 5
    assert all(0.3 < p["z"] < 1.7 for p in read)


def test_a_scan_is_projected_as_laser_geometry_does(store: Typestore, build: MessageBuilder) -> None:
    """A range counts where range_min <= range < range_max: NaN does not, which is how we say nothing."""
    ranges = np.array([np.nan, 4.0, np.nan, 2.5, np.nan], np.float32)
    scan = round_trip(store, build.scan(ObstacleScan(-0.2, 0.1, ranges), 20.0, STAMP_NS, "base_link"))
    points = []
    for index, value in enumerate(scan.ranges):
        if scan.range_min <= value < scan.range_max:
            angle = scan.angle_min + index * scan.angle_increment
            points.append((value * math.cos(angle), value * math.sin(angle)))
    np.testing.assert_allclose(points, [(3.98, -0.3993), (2.4875, 0.2496)], atol=1e-3)
    assert scan.angle_max == pytest.approx(0.2)
    assert len(scan.intensities) == 0


def test_rclpy_takes_scans_and_clouds_as_arrays() -> None:
    # Anything else costs its setters a loop over every element.

    class Plain:
        def __init__(self, **fields: object) -> None:
            self.__dict__.update(fields)

    build = MessageBuilder(lambda name: Plain)
    cloud = build.cloud(GroundPoints(np.ones((2, 3), np.float32), np.zeros(2, np.float32)), 0, "")
    assert (cloud.data.typecode, len(cloud.data)) == ("B", 32)
    scan = build.scan(ObstacleScan(0.0, 0.1, np.ones(3, np.float32)), 20.0, 0, "")
    assert (scan.ranges.typecode, scan.ranges.tolist()) == ("f", [1.0, 1.0, 1.0])
