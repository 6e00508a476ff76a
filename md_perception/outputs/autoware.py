"""Autoware's dialect: run-length encoded masks, its label sets, regions of interest.

The mask is a sensor_msgs/Image that says mono8, with its true width and height, but whose data is a list of runs in row
order: the value (uint8), then how often it stands (int32, little-endian), five bytes a run. The format is that of
Autoware's perception_utils/src/run_length_encoder.cpp and its yolox node (autoware_universe#7905). Its decoder trusts
the lengths: runs of more than width x height pixels in all, and so a raw mask, write outside its image.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from md_perception.results import UInt8Image

OBJECT_LABELS: dict[str, int] = {
    "UNKNOWN": 0,
    "CAR": 1,
    "TRUCK": 2,
    "BUS": 3,
    "TRAILER": 4,
    "MOTORCYCLE": 5,
    "BICYCLE": 6,
    "PEDESTRIAN": 7,
    "ANIMAL": 8,
    "HAZARD": 9,
    "OVER_DRIVABLE": 10,
    "UNDER_DRIVABLE": 11,
}
"""autoware_perception_msgs/ObjectClassification (autoware_msgs 1.12)."""

MASK_LABELS: dict[str, int] = {
    "building": 1,
    "wall": 2,
    "obstacle": 3,
    "traffic_light": 4,
    "traffic_sign": 5,
    "person": 6,
    "vehicle": 7,
    "bike": 8,
    "road": 9,
    "sidewalk": 10,
    "road_paint": 11,
    "curbstone": 12,
    "crosswalk_others": 13,
    "vegetation": 14,
    "sky": 15,
}
"""What the ids of a mask mean to Autoware's segmentation_pointcloud_fusion. Nothing gets 0: unknown to the fusion, road
in the table of autoware_tensorrt_yolox (which has road at 9, too)."""

FILTERED = ("building", "wall", "road", "vegetation")
"""Labels whose points the fusion takes out of the lidar's cloud, unless its filter_semantic_label_target says
otherwise."""

OBSTACLE = MASK_LABELS["obstacle"]
"""For what has no label of its own: the fusion leaves the lidar's points on it."""

_RUN = np.dtype([("value", "u1"), ("length", "<i4")])


def encode(mask: UInt8Image) -> UInt8Image:
    """Return the runs of a mask, uint8 (H, W), as bytes, uint8 (5 R,)."""
    flat = np.ascontiguousarray(mask).reshape(-1)
    if not flat.size:
        return np.zeros(0, np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    runs = np.empty(len(starts), _RUN)
    runs["value"] = flat[starts]
    runs["length"] = np.diff(starts, append=flat.size)
    return runs.view(np.uint8)


def decode(data: UInt8Image, size: tuple[int, int]) -> UInt8Image:
    """Return the mask, uint8 (H, W), of `encode`'s bytes. size: (width, height) px.

    Raises ValueError where the bytes are not runs of just so many pixels.
    """
    if data.size % _RUN.itemsize:
        raise ValueError(f"{data.size} bytes are no run-length encoded mask: a run has {_RUN.itemsize}")
    runs = np.ascontiguousarray(data).view(_RUN)
    lengths = runs["length"].astype(np.int64)
    width, height = size
    if (lengths < 0).any() or lengths.sum() != width * height:
        raise ValueError(
            f"the runs are not those of a mask of {width}x{height} px: they have {lengths.sum()} pixels, not "
            f"{width * height}; is it a raw mask, or of another size?"
        )
    return np.repeat(runs["value"], lengths).reshape(height, width)


def parse_mapping(texts: Sequence[str], labels: Mapping[str, int]) -> dict[str, str]:
    """Read `class=label` texts. labels: OBJECT_LABELS or MASK_LABELS. Raises ValueError."""
    mapping = {}
    for text in texts:
        name, equals, label = (part.strip() for part in text.partition("="))
        if not (name and equals and label):
            raise ValueError(f"{text!r} maps no class: write a class, an equals sign and a label, as in 'car=CAR'")
        if label not in labels:
            raise ValueError(f"{text!r}: Autoware has no label {label!r} here: use one of {', '.join(labels)}")
        mapping[name] = label
    return mapping


def object_labels(mapping: Mapping[str, str], classes: Sequence[str]) -> tuple[int, ...]:
    """Return Autoware's label of each detection class. mapping: class name to a name of OBJECT_LABELS; else UNKNOWN."""
    return tuple(OBJECT_LABELS[mapping.get(name, "UNKNOWN")] for name in classes)


def mask_ids(mapping: Mapping[str, str], classes: Sequence[str]) -> UInt8Image:
    """Return uint8 (256,): Autoware's mask id of each id of the student's. mapping: class name to MASK_LABELS.

    A class without a label, unlabelled for one, becomes `obstacle`: nothing that the student does not know may pass for
    road, or for anything else of FILTERED.
    """
    table = np.full(256, OBSTACLE, np.uint8)
    for index, name in enumerate(classes):
        if name in mapping:
            table[index] = MASK_LABELS[mapping[name]]
    return table


def filtered_classes(mapping: Mapping[str, str]) -> tuple[str, ...]:
    """Return `class=label` of each class of a mapping to MASK_LABELS whose lidar points Autoware takes away."""
    return tuple(f"{name}={label}" for name, label in mapping.items() if label in FILTERED)


def unknown_classes(mapping: Mapping[str, str], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of a mapping that the student does not know: a slip, or meant for another student."""
    return tuple(name for name in mapping if name not in classes)


def region_of_interest(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (x_offset, y_offset, width, height), px: the whole pixels that a box, xyxy, touches, at least one.

    size: (width, height) px of the image, which the region stays inside of.
    """
    left, top = (min(max(int(np.floor(low)), 0), most - 1) for low, most in zip(box[:2], size, strict=True))
    right, bottom = (min(int(np.ceil(high)), most) for high, most in zip(box[2:], size, strict=True))
    return left, top, max(1, right - left), max(1, bottom - top)
