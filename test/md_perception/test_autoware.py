"""Autoware's run-length masks against a decoder written from its rules, its labels, and its objects on the wire."""

import struct
import time
from dataclasses import replace

import numpy as np
import pytest
from autoware_types import message_store_with_autoware
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rosbags.typesys.store import Typestore

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs import autoware
from md_perception.outputs.messages import MessageBuilder
from md_perception.results import Detections, Mode, Perception, Segmentation, StudentOutput

MASKS = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.sampled_from([0, 1, 2, 255]),
)


def decoded_as_autoware_does(data: bytes, rows: int, columns: int) -> np.ndarray:
    """What perception_utils' decoder does: it walks over runs of five bytes and writes pixel by pixel, in row order.

    Where Autoware's would write outside the image, this one fails.
    """
    image = np.zeros((rows, columns), np.uint8)
    at = 0
    for offset in range(0, len(data), 5):
        value, length = struct.unpack_from("<Bi", data, offset)
        for _ in range(length):
            image[at // columns, at % columns] = value  # IndexError beyond the last row
            at += 1
    return image


@given(MASKS)
def test_any_mask_comes_back(mask: np.ndarray) -> None:
    runs = autoware.encode(mask)
    assert runs.dtype == np.uint8
    np.testing.assert_array_equal(autoware.decode(runs, (mask.shape[1], mask.shape[0])), mask)
    np.testing.assert_array_equal(decoded_as_autoware_does(runs.tobytes(), *mask.shape), mask)
    values = runs.reshape(-1, 5)[:, 0].astype(int)
    assert (np.diff(values) != 0).all()  # no run could be longer


def test_the_bytes_of_a_known_mask() -> None:
    mask = np.array([[7, 7, 7], [7, 0, 0]], np.uint8)
    assert autoware.encode(mask).tolist() == [7, 4, 0, 0, 0, 0, 2, 0, 0, 0]


def test_a_long_run_needs_all_four_bytes_of_its_length() -> None:
    runs = autoware.encode(np.full((512, 640), 9, np.uint8))
    assert runs.tolist() == [9, *(512 * 640).to_bytes(4, "little")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full(30, 1, np.uint8), "the runs are not those of a mask of 5x6 px"),  # raw
        (np.full(31, 1, np.uint8), "31 bytes are no run-length encoded mask"),
        (autoware.encode(np.zeros((6, 4), np.uint8)), "they have 24 pixels, not 30"),
        (np.frombuffer(struct.pack("<BiBi", 1, 40, 1, -10), np.uint8), "the runs are not"),
    ],
)
def test_what_is_no_run_length_mask_of_this_size_is_refused(data: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoware.decode(data, (5, 6))


def test_a_street_of_640x512_is_encoded_in_half_a_millisecond() -> None:
    # As ragged as masks of the student are: some 15 runs a row.
    rng = np.random.default_rng(0)
    mask = np.repeat(rng.integers(0, 9, (512, 40), dtype=np.uint8), 16, axis=1)
    assert mask.shape == (512, 640)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        runs = autoware.encode(mask)
        times.append(time.perf_counter() - start)
    print(f"run lengths of a ragged mask of 640x512: {1e3 * np.median(times):.2f} ms, {runs.size / 1000:.0f} kB")
    assert min(times) < 0.5e-3  # the best of many: others run on this machine too
    assert runs.size < 0.35 * mask.size


def test_labels_by_name_and_what_has_none() -> None:
    mapping = autoware.parse_mapping(["person=PEDESTRIAN", "car = CAR"], autoware.OBJECT_LABELS)
    assert autoware.object_labels(mapping, DETECTION.classes) == (7, 0, 1)  # pedestrian, unknown, car
    ids = autoware.mask_ids({"car": "vehicle", "person": "person"}, SEGMENTATION.classes)
    # Unlabelled, whatever has no label, and ids outside the list are obstacles. Nothing is 0, road or unknown.
    assert ids[[0, 1, 2, 3, 255]].tolist() == [3, 7, 6, 3, 3]
    assert 0 not in ids


def test_labels_whose_lidar_points_autoware_takes_away_are_found() -> None:
    # The ids are the places in the fusion's own list: UNKNOWN, BUILDING, WALL, OBSTACLE, ..., BIKE, ROAD, SIDEWALK, ...
    assert [autoware.MASK_LABELS[name] for name in autoware.FILTERED] == [1, 2, 9, 14]
    mapping = {"guardrail": "wall", "car": "vehicle", "bump": "road"}
    assert autoware.filtered_classes(mapping) == ("guardrail=wall", "bump=road")
    assert autoware.filtered_classes({"car": "vehicle"}) == ()


def test_classes_of_a_mapping_that_the_student_does_not_know_are_found() -> None:
    assert autoware.unknown_classes({"persn": "PEDESTRIAN", "car": "CAR"}, DETECTION.classes) == ("persn",)


@pytest.mark.parametrize("length", [2**16 - 1, 2**16, 2**16 + 1, 2**24 + 1])
def test_runs_beyond_two_and_three_bytes(length: int) -> None:
    mask = np.full((1, length), 255, np.uint8)
    runs = autoware.encode(mask)
    assert struct.unpack("<Bi", runs.tobytes()) == (255, length)
    np.testing.assert_array_equal(autoware.decode(runs, (length, 1)), mask)


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("car", autoware.OBJECT_LABELS, "'car' maps no class: write a class, an equals sign and a label"),
        ("car=AUTO", autoware.OBJECT_LABELS, "'car=AUTO': Autoware has no label 'AUTO' here: use one of UNKNOWN, CAR"),
        ("car=CAR", autoware.MASK_LABELS, "no label 'CAR' here: use one of building, wall"),
    ],
)
def test_labels_that_are_none_are_refused(text: str, labels: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoware.parse_mapping([text], labels)


@pytest.mark.parametrize(
    ("box", "region"),
    [
        ([1.2, 2.0, 3.1, 5.0], (1, 2, 3, 3)),  # columns 1, 2 and 3; rows 2, 3 and 4
        ([0.0, 0.0, 33.0, 27.0], (0, 0, 33, 27)),
        ([32.9, 26.5, 33.0, 27.0], (32, 26, 1, 1)),
        ([5.0, 5.0, 5.0, 5.0], (5, 5, 1, 1)),
    ],
)
def test_regions_of_interest_are_whole_pixels_inside_the_image(box, region) -> None:
    assert autoware.region_of_interest(box, (33, 27)) == region


# -- on the wire -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store() -> Typestore:
    return message_store_with_autoware()


@pytest.fixture
def perception() -> Perception:
    mask = np.random.default_rng(1).choice(np.array([0, 1, 2], np.uint8), (27, 33))
    boxes = np.array([[1.2, 2.0, 3.1, 5.0], [0, 0, 33, 27]], np.float32)
    found = Detections(boxes, np.array([0.75, 0.5], np.float32), np.array([0, 2]))
    return Perception(
        stamp_ns=1_700_000_000_123_456_789,
        frame_id="rgb_optical",
        mode=Mode.FUSED,
        size=(33, 27),
        rgb=np.zeros((27, 33, 3), np.uint8),
        output=StudentOutput(found, Segmentation(mask, mask)),
    )


def round_trip(store: Typestore, message: object) -> object:
    name = message.__msgtype__
    return store.deserialize_cdr(store.serialize_cdr(message, name), name)


def test_the_mask_message_is_what_the_consumer_decodes(store: Typestore, perception: Perception) -> None:
    """Odd sizes; the consumer takes height and width from the message, and the bytes for runs."""
    build = MessageBuilder(store.types.__getitem__)
    ids = autoware.mask_ids({"car": "vehicle", "person": "person"}, SEGMENTATION.classes)
    message = round_trip(store, build.mask(perception, run_lengths=True, ids=ids))
    assert (message.encoding, message.width, message.height) == ("mono8", 33, 27)
    image = decoded_as_autoware_does(message.data.tobytes(), message.height, message.width)
    np.testing.assert_array_equal(image, np.array([3, 7, 6], np.uint8)[perception.output.segmentation.mask])


def test_a_raw_mask_would_write_outside_the_consumers_image(store: Typestore, perception: Perception) -> None:
    """Why a raw mask must never be on a topic that Autoware reads; else the decoder above would prove nothing."""
    raw = MessageBuilder(store.types.__getitem__).mask(perception)
    with pytest.raises(IndexError):
        decoded_as_autoware_does(bytes(raw.data) + bytes(4), raw.height, raw.width)


def test_objects_carry_labels_scores_regions_and_the_header(store: Typestore, perception: Perception) -> None:
    build = MessageBuilder(store.types.__getitem__)
    labels = autoware.object_labels({"person": "PEDESTRIAN", "car": "CAR"}, DETECTION.classes)
    message = round_trip(store, build.autoware_objects(perception, labels))
    header = message.header
    assert (header.stamp.sec, header.stamp.nanosec, header.frame_id) == (1_700_000_000, 123_456_789, "rgb_optical")
    first, second = message.feature_objects
    assert [(c.label, c.probability) for c in first.object.classification] == [(7, 0.75)]
    assert first.object.existence_probability == 0.75
    roi = first.feature.roi
    assert (roi.x_offset, roi.y_offset, roi.width, roi.height, roi.do_rectify) == (1, 2, 3, 3, False)
    assert first.feature.cluster.width == 0
    assert second.object.classification[0].label == 1
    nothing = replace(perception, output=StudentOutput(None, None))
    assert round_trip(store, build.autoware_objects(nothing, labels)).feature_objects == []
