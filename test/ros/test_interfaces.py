"""The messages as they are on the wire, and as Python modules."""

import math

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray, LabelInfo

from md_perception.msg import PerceptionStatus
from md_perception.results import Mode

# Of vision_msgs 4.1.1, the release that is in ROS 2 Jazzy
VISION_MSGS_HASHES = {
    Detection2DArray: "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    Detection2D: "RIHS01_0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea",
    LabelInfo: "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
}


@pytest.fixture(scope="module")
def node():
    context = Context()
    rclpy.init(context=context)
    node = Node("test_interfaces", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("message_type", VISION_MSGS_HASHES, ids=lambda message_type: message_type.__name__)
def test_type_hash_announced_on_the_wire_is_that_of_upstream_vision_msgs(node, message_type):
    topic = f"/test_interfaces/{message_type.__name__}"
    publisher = node.create_publisher(message_type, topic, 1)
    (endpoint,) = node.get_publishers_info_by_topic(topic)
    node.destroy_publisher(publisher)

    assert endpoint.topic_type == f"vision_msgs/msg/{message_type.__name__}"
    assert str(endpoint.topic_type_hash) == VISION_MSGS_HASHES[message_type]


def test_modes_in_the_message_are_those_of_the_code():
    in_message = {
        name.removeprefix("MODE_"): getattr(PerceptionStatus, name)
        for name in type(PerceptionStatus).__prepare__("", ())
        if name.startswith("MODE_")
    }

    assert in_message == {mode.name: mode.value for mode in Mode}
    assert in_message == {"STALE": 0, "FUSED": 1, "VISIBLE_ONLY": 2, "THERMAL_ONLY": 3, "LAST_THERMAL": 4}


def test_status_survives_serialisation():
    status = PerceptionStatus(
        mode=PerceptionStatus.MODE_FUSED,
        student="demo",
        precision="fp32",
        provider="CPUExecutionProvider",
        pair_offset_s=-0.25,
        thermal_age_s=math.nan,
        received_rgb=2**40,
        total_p99_ms=12.5,
    )
    status.header = Header(frame_id="camera")
    status.header.stamp.sec = 7

    copy = deserialize_message(serialize_message(status), PerceptionStatus)

    assert (copy.header.frame_id, copy.header.stamp.sec) == ("camera", 7)
    assert (copy.mode, copy.student, copy.precision) == (1, "demo", "fp32")
    assert copy.pair_offset_s == -0.25
    assert math.isnan(copy.thermal_age_s)
    assert (copy.received_rgb, copy.total_p99_ms) == (2**40, 12.5)


def test_status_has_the_fields_that_its_readers_rely_on():
    # The accounting identity in the message's comment is between these counters.
    types = PerceptionStatus.get_fields_and_field_types()

    counters = ("received_rgb", "processed", "paired", "unpaired_rgb", "dropped", "rejected")
    counters += tuple(f"{name}_thermal" for name in ("received", "processed", "dropped", "rejected"))
    assert {types[name] for name in counters} == {"uint64"}
    stages = ("decode_ms", "pair_wait_ms", "inference_ms", "publish_ms", "total_ms")
    percentiles = ("total_p50_ms", "total_p95_ms", "total_p99_ms")
    assert {types[name] for name in stages + percentiles} == {"float"}
