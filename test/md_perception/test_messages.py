import math
from dataclasses import replace

import numpy as np
import pytest
from rosbags.typesys.store import Typestore

from md_perception.bags.types import message_store
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs.messages import MessageBuilder, NodeStatus
from md_perception.results import Detections, Mode, Perception, Segmentation, StudentOutput
from md_perception.sensing.images import ImageError, to_rgb, to_thermal_values

STAMP_NS = 1_700_000_000_123_456_789
"""Stamp that a float cannot hold exactly."""


@pytest.fixture(scope="module")
def store() -> Typestore:
    return message_store()


@pytest.fixture(scope="module")
def build(store: Typestore) -> MessageBuilder:
    return MessageBuilder(store.types.__getitem__)


@pytest.fixture
def perception() -> Perception:
    mask = np.zeros((5, 7), np.uint8)
    mask[2, 3] = 8
    return Perception(
        stamp_ns=STAMP_NS,
        frame_id="rgb_optical",
        mode=Mode.FUSED,
        size=(7, 5),
        rgb=np.zeros((5, 7, 3), np.uint8),
        output=StudentOutput(
            Detections(
                np.array([[1, 2, 6, 4], [0, 0, 7, 5]], np.float32), np.array([0.75, 0.5], np.float32), np.array([2, 0])
            ),
            Segmentation(mask, np.arange(35, dtype=np.uint8).reshape(5, 7)),
        ),
        pair_offset_ns=0,
    )


def round_trip(store: Typestore, message: object) -> object:
    """What a subscriber gets: CDR has no mercy with wrong types."""
    name = message.__msgtype__
    return store.deserialize_cdr(store.serialize_cdr(message, name), name)


def assert_header(header: object) -> None:
    assert (header.stamp.sec, header.stamp.nanosec, header.frame_id) == (1_700_000_000, 123_456_789, "rgb_optical")


def test_detections_carry_names_boxes_in_pixels_and_the_header(
    store: Typestore, build: MessageBuilder, perception: Perception
) -> None:
    message = round_trip(store, build.detections(perception, DETECTION.classes))

    assert_header(message.header)
    assert len(message.detections) == 2
    first = message.detections[0]
    assert_header(first.header)
    assert [result.hypothesis.class_id for result in first.results] == ["car"]
    assert first.results[0].hypothesis.score == 0.75
    # Box (1, 2, 6, 4): centre (3.5, 3), size 5 x 2.
    assert (first.bbox.center.position.x, first.bbox.center.position.y, first.bbox.center.theta) == (3.5, 3.0, 0.0)
    assert (first.bbox.size_x, first.bbox.size_y) == (5.0, 2.0)
    assert first.id == ""
    assert message.detections[1].results[0].hypothesis.class_id == "person"


def test_no_detections_are_an_empty_array_with_a_header(
    store: Typestore, build: MessageBuilder, perception: Perception
) -> None:
    nothing = replace(perception, output=StudentOutput(None, None))
    message = round_trip(store, build.detections(nothing, ()))
    assert_header(message.header)
    assert message.detections == []


def test_mask_and_confidence_are_mono8_without_padding(
    store: Typestore, build: MessageBuilder, perception: Perception
) -> None:
    for message, expected in [
        (build.mask(perception), perception.output.segmentation.mask),
        (build.confidence(perception), perception.output.segmentation.confidence),
    ]:
        received = round_trip(store, message)
        assert_header(received.header)
        assert (received.encoding, received.width, received.height) == ("mono8", 7, 5)
        assert (received.step, received.is_bigendian) == (7, 0)
        assert received.data.size == 35
        np.testing.assert_array_equal(to_thermal_values(received), expected)


def test_a_student_without_segmentation_has_no_mask(build: MessageBuilder, perception: Perception) -> None:
    with pytest.raises(ValueError, match="does not segment"):
        build.mask(replace(perception, output=StudentOutput(perception.output.detections, None)))


def test_label_info_names_every_id_of_the_mask(store: Typestore, build: MessageBuilder) -> None:
    message = round_trip(store, build.label_info(SEGMENTATION.classes, 0.3, STAMP_NS, "rgb_optical"))
    assert_header(message.header)
    assert [(entry.class_id, entry.class_name) for entry in message.class_map] == list(enumerate(SEGMENTATION.classes))
    assert message.threshold == pytest.approx(0.3)


def test_status_carries_every_field(store: Typestore, build: MessageBuilder) -> None:
    status = NodeStatus(
        STAMP_NS,
        "rgb_optical",
        Mode.VISIBLE_ONLY,
        student="tiny",
        precision="fp32",
        provider="CPUExecutionProvider",
        rgb_age_s=0.25,
        received_rgb=10,
        processed=4,
        paired=3,
        unpaired_rgb=2,
        dropped=3,
        rejected=1,
        total_ms=42.5,
    )
    message = round_trip(store, build.status(status))
    assert_header(message.header)
    assert message.mode == message.MODE_VISIBLE_ONLY == 2
    assert (message.student, message.precision, message.provider) == ("tiny", "fp32", "CPUExecutionProvider")
    assert math.isnan(message.pair_offset_s)
    assert math.isnan(message.total_p50_ms)
    assert (message.rgb_age_s, message.total_ms) == (0.25, 42.5)
    assert (message.received_rgb, message.processed, message.paired) == (10, 4, 3)
    assert (message.unpaired_rgb, message.dropped, message.rejected) == (2, 3, 1)


def test_modes_have_the_numbers_of_the_message(store: Typestore) -> None:
    status = store.types["md_perception/msg/PerceptionStatus"]
    assert {mode.name: mode.value for mode in Mode} == {
        mode.name: getattr(status, f"MODE_{mode.name}") for mode in Mode
    }


def test_an_image_of_any_plain_encoding(store: Typestore, build: MessageBuilder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    message = round_trip(store, build.image(pixels, "rgb8", STAMP_NS, "rgb_optical"))
    assert_header(message.header)
    np.testing.assert_array_equal(to_rgb(message), pixels)
    with pytest.raises(ImageError, match="cannot be sent as 'mono8'"):
        build.image(pixels, "mono8", STAMP_NS, "rgb_optical")


def test_rclpy_classes_get_their_bytes_as_an_array() -> None:
    # Anything else costs the setters of rclpy a loop over every element.

    class Plain:
        def __init__(self, **fields: object) -> None:
            self.__dict__.update(fields)

    message = MessageBuilder(lambda name: Plain).image(np.full((2, 3), 9, np.uint8), "mono8", 0, "")
    assert type(message.data).__name__ == "array"
    assert message.data.typecode == "B"
    assert message.data.tolist() == [9] * 6
