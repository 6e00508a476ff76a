"""Player and recorder over DDS: every message arrives, in order, at its time, byte for byte."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: run through `make test`, or source .ci/env.sh")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402

from md_perception.bags.read import Bag, BagMessage  # noqa: E402
from md_perception.bags.types import IMAGE, LABEL_INFO, TopicQos, make_header  # noqa: E402
from md_perception.bags.write import BagError, BagWriter  # noqa: E402
from md_perception.ros.player import Player, PlayOptions, built_class, qos_profile  # noqa: E402
from md_perception.ros.publishers import message_class  # noqa: E402
from md_perception.ros.recorder import RecordedTopic, Recorder  # noqa: E402
from md_perception.sensing.images import image_fields  # noqa: E402

START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 40_000_000


@pytest.fixture
def node() -> Iterator[Node]:
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    created = rclpy.create_node("test_player")
    yield created
    created.destroy_node()
    rclpy.shutdown()


@pytest.fixture(scope="module")
def bag_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty camera images of 0.9 MB at 25 Hz, a smaller one 10 ms after each, and a latched label info."""
    path = tmp_path_factory.mktemp("bags") / "played"
    random = np.random.default_rng(3)
    with BagWriter(path) as writer:
        for topic in ("/rgb/image_raw", "/thermal/image_raw"):
            writer.add_topic(topic, IMAGE)
        writer.add_topic("/labels", LABEL_INFO, TopicQos.LATCHED)
        types = writer.store.types
        first = make_header(writer.store, START_NS, "camera")
        writer.write("/labels", START_NS, types[LABEL_INFO](header=first, class_map=[], threshold=0.5))
        for index in range(20):
            for topic, shape, shift in (("/rgb/image_raw", (480, 640, 3), 0), ("/thermal/image_raw", (120, 160), 1)):
                stamp = START_NS + index * PERIOD_NS + shift * 10_000_000
                fields = image_fields(random.integers(0, 256, shape, np.uint8), "rgb8" if shift == 0 else "mono8")
                image = types[IMAGE](header=make_header(writer.store, stamp, "camera"), **fields)
                writer.write(topic, stamp, image)
    return path


def spin_until(executor: SingleThreadedExecutor, done: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:  # type: ignore[operator]
        executor.spin_once(timeout_sec=0.05)


def by_topic(path: Path) -> dict[str, list[BagMessage]]:
    found: dict[str, list[BagMessage]] = {}
    with Bag(path) as bag:
        for message in bag.messages():
            found.setdefault(message.topic, []).append(message)
    return found


def test_what_is_played_is_recorded_byte_for_byte_in_order_and_on_schedule(
    node: Node, bag_path: Path, tmp_path: Path
) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    sent = by_topic(bag_path)
    arrivals: list[tuple[str, int]] = []
    clock: list[int] = []
    node.create_subscription(
        Clock,
        "/clock",
        lambda m: clock.append(m.clock.sec * 10**9 + m.clock.nanosec),
        qos_profile(TopicQos.RELIABLE, 200),
    )
    topics = [
        RecordedTopic("/rgb/image_raw", IMAGE),
        RecordedTopic("/thermal/image_raw"),  # type and QoS from its publisher
        RecordedTopic("/labels", LABEL_INFO, TopicQos.LATCHED),
    ]
    with Recorder(
        node, topics, tmp_path / "heard", tap=lambda topic, _: arrivals.append((topic, time.monotonic_ns()))
    ) as recorder:
        command = [sys.executable, "-m", "md_perception.bags", "play", str(bag_path), "--wait-for-subscribers", "20"]
        player = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            shown = {message.log_ns for message in sent["/rgb/image_raw"]}
            spin_until(executor, lambda: len(arrivals) == 41 and shown <= set(clock), 40)
            printed, _ = player.communicate(timeout=20)
        finally:
            player.kill()
            player.wait()
        assert player.returncode == 0
        assert recorder.counts == {"/labels": 1, "/rgb/image_raw": 20, "/thermal/image_raw": 20}
    assert "published     20  /rgb/image_raw" in printed

    heard = by_topic(tmp_path / "heard")
    for topic, messages in sent.items():
        assert [message.raw for message in heard[topic]] == [message.raw for message in messages], topic
    # Real time: 19 periods of 40 ms from the first to the last image; no drift (a busy machine may delay single ones).
    rgb = np.array([at for topic, at in arrivals if topic == "/rgb/image_raw"])
    late_ms = (rgb - rgb[0] - np.arange(20) * PERIOD_NS) * 1e-6
    assert abs(float(np.median(late_ms))) < 30
    # /clock never runs backwards, shows each image's time and ticks in between
    assert clock == sorted(clock)
    assert shown <= set(clock)
    assert len(set(clock)) > 60


def test_the_recorder_of_the_command_line_follows_the_publishers_and_ends_on_a_signal(
    node: Node, bag_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "heard"
    command = [sys.executable, "-m", "md_perception.ros.recorder", "/rgb/image_raw", "/labels", "--out", str(out)]
    recorder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        with Bag(bag_path) as bag:
            options = PlayOptions(rate=4.0, topics=("/rgb/image_raw", "/labels"), wait_s=20.0)
            player, stop = Player(node, bag, options), threading.Event()
            player.wait_for_subscribers(stop)
            report = player.play(stop)
        recorder.send_signal(signal.SIGTERM)
        printed, _ = recorder.communicate(timeout=20)
    finally:
        recorder.kill()
        recorder.wait()

    assert report.counts == {"/labels": 1, "/rgb/image_raw": 20}
    assert 0.76 / 4 <= report.seconds < 2.0
    assert recorder.returncode == 0
    assert "recorded     20  /rgb/image_raw" in printed
    with Bag(out) as bag:
        assert {topic.name: (topic.count, topic.qos) for topic in bag.topics.values()} == {
            "/labels": (1, TopicQos.LATCHED),
            "/rgb/image_raw": (20, TopicQos.RELIABLE),
        }


def test_what_cannot_be_played_is_refused_with_a_reason(node: Node, bag_path: Path) -> None:
    with Bag(bag_path) as bag:
        with pytest.raises(BagError, match="has no topic /depth; it has /labels, /rgb/image_raw"):
            Player(node, bag, PlayOptions(topics=("/depth",)))
        with pytest.raises(BagError, match="a rate of 0"):
            Player(node, bag, PlayOptions(rate=0.0))
        player = Player(node, bag, PlayOptions(topics=("/thermal/image_raw",), wait_s=0.2))
        with pytest.raises(BagError, match=r"nobody has subscribed to /thermal/image_raw in 0\.2 s"):
            player.wait_for_subscribers(threading.Event())
    with pytest.raises(BagError, match="acme_msgs/msg/Anvil is not built here"):
        built_class("acme_msgs/msg/Anvil")


def test_a_recorded_clock_and_types_that_are_not_built_are_left_out_and_told(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bag"
    with BagWriter(path) as writer:
        writer.add_topic("/labels", LABEL_INFO)
        writer.add_topic("/clock", "rosgraph_msgs/msg/Clock")
        writer.add_topic("/joints", "sensor_msgs/msg/JointState")
        types = writer.store.types
        first = make_header(writer.store, START_NS, "camera")
        time_ = types["builtin_interfaces/msg/Time"](sec=7, nanosec=0)
        joints = types["sensor_msgs/msg/JointState"](
            header=first, name=[], position=np.zeros(0), velocity=np.zeros(0), effort=np.zeros(0)
        )
        writer.write("/labels", START_NS, types[LABEL_INFO](header=first, class_map=[], threshold=0.5))
        writer.write("/clock", START_NS, types["rosgraph_msgs/msg/Clock"](clock=time_))
        writer.write("/joints", START_NS, joints)

    def built(name: str) -> type:
        if name == "sensor_msgs/msg/JointState":  # as if it were not
            raise ImportError("No module named 'sensor_msgs'")
        return message_class(name)

    monkeypatch.setattr("md_perception.ros.player.message_class", built)
    with Bag(path) as bag:
        player = Player(node, bag, PlayOptions())
        assert set(player.left_out) == {"/clock", "/joints"}
        assert "the player publishes its own" in player.left_out["/clock"]
        assert "sensor_msgs/msg/JointState is not built here" in player.left_out["/joints"]
        assert player.play(threading.Event()).counts == {"/labels": 1}
        with pytest.raises(BagError, match="JointState is not built here"):
            Player(node, bag, PlayOptions(topics=("/joints", "/labels")))
        with pytest.raises(BagError, match="a recorded /clock cannot be played"):
            Player(node, bag, PlayOptions(topics=("/clock",)))


def test_a_stopped_player_stops_at_once(node: Node, bag_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with Bag(bag_path) as bag:
        began = time.monotonic()
        report = Player(node, bag, PlayOptions(loop=True)).play(stop)
    assert time.monotonic() - began < 1.5
    assert 4 <= report.counts["/rgb/image_raw"] <= 10  # 25 a second for 0.3 s
