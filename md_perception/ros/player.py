"""`md_bag play`: publishes a bag over ROS at the rate of its clock, for machines without `ros2 bag play`."""

import argparse
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock

from md_perception.bags.read import Bag, BagMessage, TopicSummary
from md_perception.bags.types import COMPRESSED_IMAGE, IMAGE, TopicQos
from md_perception.bags.write import BagError
from md_perception.ros.publishers import message_class

CLOCK = "/clock"

_READ_AHEAD = 32
"""Messages that are read before they are due: a second of two cameras, some 30 MB."""

_SETTLE_S = 0.3
"""Time for a subscriber, once the publisher has matched it, to match the publisher in its turn."""


@dataclass(frozen=True)
class PlayOptions:
    """How a bag is played.

    rate: seconds of the bag in one second. clock_hz: ticks of /clock a second of ours; 0: no /clock.
    topics: names to play; None: all. reliability: `bag` (as recorded), `reliable` or `best_effort`, for all topics but
    latched ones. wait_s: longest wait for a subscriber on every image topic; 0: no waiting.
    """

    rate: float = 1.0
    loop: bool = False
    clock_hz: float = 100.0
    topics: tuple[str, ...] | None = None
    reliability: str = "reliable"
    wait_s: float = 0.0


@dataclass
class PlayReport:
    """What was published. late_ms: how long after its due time each message went out."""

    counts: dict[str, int] = field(default_factory=dict)
    late_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Return counts by topic, seconds, and how late messages went out, ms."""
        p50, p99, worst = np.percentile(self.late_ms, (50, 99, 100)).tolist() if self.late_ms else (0.0, 0.0, 0.0)
        late = {"late_p50_ms": p50, "late_p99_ms": p99, "late_worst_ms": worst}
        return {"counts": self.counts, "seconds": self.seconds, **late}

    def lines(self) -> list[str]:
        """Return the report as text."""
        figures = self.figures()
        return [
            *(f"published {count:6d}  {topic}" for topic, count in sorted(self.counts.items())),
            f"in {self.seconds:.2f} s; behind schedule p50 {figures['late_p50_ms']:.1f}, p99 "
            f"{figures['late_p99_ms']:.1f}, at most {figures['late_worst_ms']:.1f} ms",
        ]


def built_class(msgtype: str) -> Any:
    """Return the rclpy class of a type such as `sensor_msgs/msg/Image`; raise BagError where it is not built here."""
    try:
        return message_class(msgtype)
    except (ImportError, AttributeError) as error:
        raise BagError(
            f"the message type {msgtype} is not built here ({error}): source the workspace that has it"
        ) from None


def qos_profile(kind: TopicQos, depth: int = 10) -> QoSProfile:
    """Return the rclpy profile of a kind of topic."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1 if kind is TopicQos.LATCHED else depth,
        reliability=ReliabilityPolicy.BEST_EFFORT if kind is TopicQos.BEST_EFFORT else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if kind is TopicQos.LATCHED else DurabilityPolicy.VOLATILE,
    )


class Player:
    """Publishes the messages of a bag as they are, byte for byte, when they are due.

    The schedule is absolute: a message that goes out late does not delay those after it. A topic that was asked for by
    name must be there and its type must be built here, or BagError is raised; without names, what cannot be played is
    left out and told (`left_out`). A recorded /clock is never played: it would contend with the player's own.
    """

    def __init__(self, node: Node, bag: Bag, options: PlayOptions) -> None:
        if not options.rate > 0:
            raise BagError(f"a rate of {options.rate} is not possible: it must be above 0")
        if not options.clock_hz >= 0:
            raise BagError(f"{options.clock_hz} ticks of /clock a second are not possible: 0 or more are")
        self._bag = bag
        self._options = options
        known = bag.topics
        unknown = [topic for topic in options.topics or () if topic not in known]
        if unknown:
            raise BagError(f"{bag.path} has no topic {', '.join(unknown)}; it has {', '.join(known)}")
        if options.topics and CLOCK in options.topics:
            raise BagError(f"a recorded {CLOCK} cannot be played: the player publishes its own (--clock HZ)")
        self.left_out: dict[str, str] = {}
        """Topics that are not played, each with the reason."""
        self._topics: list[TopicSummary] = []
        self._publishers: dict[str, Publisher] = {}
        for name, topic in known.items():
            if options.topics is not None and name not in options.topics:
                continue
            if name == CLOCK:
                self.left_out[name] = "the player publishes its own (--clock HZ)"
                continue
            try:
                message_type = built_class(topic.msgtype)
            except BagError as error:
                if options.topics is not None:
                    raise
                self.left_out[name] = str(error)
                continue
            self._topics.append(topic)
            kind = topic.qos
            if kind is not TopicQos.LATCHED and options.reliability != "bag":
                kind = TopicQos(options.reliability)
            self._publishers[name] = node.create_publisher(message_type, name, qos_profile(kind))
        if not self._topics:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            raise BagError(f"{bag.path} has nothing that can be played{': ' + reasons if reasons else ''}")
        self._clock = node.create_publisher(Clock, CLOCK, qos_profile(TopicQos.RELIABLE)) if options.clock_hz else None

    def wait_for_subscribers(self, stop: threading.Event) -> None:
        """Wait until every camera has a subscriber; meanwhile /clock stands at the beginning of the bag.

        The truth of a scene bag is waited for only where its topics were named (PlayOptions.topics).

        Raises BagError naming the topics that nobody has subscribed to in time.
        """
        images = [
            topic.name
            for topic in self._topics
            if topic.msgtype in (IMAGE, COMPRESSED_IMAGE)
            and (self._options.topics or not topic.name.startswith("/truth/"))
        ]
        deadline = time.monotonic() + self._options.wait_s
        while not stop.is_set():
            missing = [name for name in images if not self._publishers[name].get_subscription_count()]
            if not missing:
                stop.wait(_SETTLE_S)
                return
            if time.monotonic() > deadline:
                raise BagError(f"nobody has subscribed to {', '.join(missing)} in {self._options.wait_s:g} s")
            self._tick(self._bag.start_ns)
            stop.wait(0.05)

    def play(self, stop: threading.Event) -> PlayReport:
        """Publish until the end of the bag, or until `stop` is set; return what went out."""
        report = PlayReport({topic.name: 0 for topic in self._topics})
        began = time.monotonic()
        while not stop.is_set():
            self._play_once(stop, report)
            if not self._options.loop:
                break
        for publisher in self._publishers.values():
            # A reliable reader may still ask for the last messages; they go with this process.
            publisher.wait_for_all_acked(Duration(seconds=2.0))
        report.seconds = time.monotonic() - began
        return report

    def _play_once(self, stop: threading.Event, report: PlayReport) -> None:
        start_ns, rate = self._bag.start_ns, self._options.rate
        tick_ns = round(1e9 / self._options.clock_hz) if self._options.clock_hz else None
        messages = _read_ahead(self._bag.messages([topic.name for topic in self._topics]), stop)
        message = next(messages, None)  # before the clock starts: the first read is the slowest
        zero_ns = next_tick_ns = time.monotonic_ns()
        while message is not None and not stop.is_set():
            due_ns = zero_ns + round((message.log_ns - start_ns) / rate)
            if tick_ns is not None and next_tick_ns < due_ns:
                if not _sleep_until(next_tick_ns, stop):
                    return
                self._tick(start_ns + round((next_tick_ns - zero_ns) * rate))
                # A tick that is missed is left out: time does not have to be told twice.
                next_tick_ns += tick_ns * max(1, 1 + (time.monotonic_ns() - next_tick_ns) // tick_ns)
                continue
            if not _sleep_until(due_ns, stop):
                return
            self._tick(message.log_ns)  # a message never comes before its time
            self._publishers[message.topic].publish(message.raw)
            report.counts[message.topic] += 1
            report.late_ms.append((time.monotonic_ns() - due_ns) * 1e-6)
            message = next(messages, None)

    def _tick(self, now_ns: int) -> None:
        if self._clock is not None:
            seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
            self._clock.publish(Clock(clock=Time(sec=seconds, nanosec=nanoseconds)))


def _sleep_until(due_ns: int, stop: threading.Event) -> bool:
    """Return whether the time has come; False where `stop` was set before."""
    wait_ns = due_ns - time.monotonic_ns()
    return not (stop.wait(wait_ns * 1e-9) if wait_ns > 0 else stop.is_set())


def _read_ahead(messages: Iterator[BagMessage], stop: threading.Event) -> Iterator[BagMessage]:
    """Yield the messages, read by a thread of its own so that the disk does not delay the schedule."""
    ready: queue.Queue[BagMessage | Exception | None] = queue.Queue(_READ_AHEAD)

    def put(item: BagMessage | Exception | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for message in messages:
                if not put(message):
                    return
            put(None)
        except Exception as error:  # raised again where the messages are used
            put(error)

    reader = threading.Thread(target=read, name="bag reader", daemon=True)
    reader.start()
    while not stop.is_set():
        try:
            item = ready.get(timeout=0.2)
        except queue.Empty:
            continue
        if item is None:
            break
        if isinstance(item, Exception):
            raise item
        yield item
    reader.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 for a refused task, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="md_bag play", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("bag", type=Path)
    parser.add_argument("--rate", type=float, default=1.0, help="seconds of the bag in one second")
    parser.add_argument("--loop", action="store_true", help="begin again at the end, until Ctrl-C")
    parser.add_argument("--clock", type=float, default=100.0, metavar="HZ", help="ticks of /clock a second; 0: none")
    parser.add_argument("--topics", nargs="+", metavar="TOPIC", help="topics to play; all of them if not given")
    parser.add_argument("--reliability", choices=("bag", "reliable", "best_effort"), default="reliable")
    parser.add_argument(
        "--wait-for-subscribers",
        type=float,
        default=0.0,
        metavar="S",
        help="wait at most so long until every image topic has a subscriber, and give up if one has none",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was published as JSON")
    given = parser.parse_args(arguments)
    options = PlayOptions(
        rate=given.rate,
        loop=given.loop,
        clock_hz=given.clock,
        topics=tuple(given.topics) if given.topics else None,
        reliability=given.reliability,
        wait_s=given.wait_for_subscribers,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Bag(given.bag) as bag:
            report = _run(bag, options, stop)
            print("\n".join(report.lines()), flush=True)
            if given.report is not None:
                given.report.write_text(json.dumps(report.figures()), encoding="utf-8")
            if bag.damage:
                raise BagError(f"{bag.path} is damaged: {bag.damage}")
    except BagError as error:
        print(f"md_bag: {error}", file=sys.stderr)
        return 1
    return 130 if stop.is_set() else 0


def _run(bag: Bag, options: PlayOptions, stop: threading.Event) -> PlayReport:
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node("md_bag_player")
        try:
            player = Player(node, bag, options)
            for topic, reason in player.left_out.items():
                print(f"md_bag: {topic} is left out: {reason}", file=sys.stderr)
            if options.wait_s > 0:
                player.wait_for_subscribers(stop)
            return player.play(stop)
        finally:
            node.destroy_node()
    finally:
        rclpy.shutdown()
