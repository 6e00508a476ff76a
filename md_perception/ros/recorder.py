"""Records topics into a bag as they arrive, byte for byte, for machines without `ros2 bag record`."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from md_perception.bags.types import TopicQos, UnknownTypeError
from md_perception.bags.write import STORAGES, BagError, BagWriter, Storage
from md_perception.ros.player import built_class, qos_profile

_DEPTH = 100
"""Messages of a topic that wait while the disk is busy."""

_LOOK_S = 0.1
"""How often the graph is asked for topics that have no publisher yet."""


@dataclass(frozen=True)
class RecordedTopic:
    """A topic to record. Without msgtype, both it and the QoS are those of its publishers, once there is one."""

    name: str
    msgtype: str | None = None
    qos: TopicQos = TopicQos.RELIABLE


class Recorder:
    """Subscribes to topics in raw form and writes them into a bag; a context manager, which ends with the bag in place.

    Messages are written by the executor that spins `node`, stamped with the node's clock when they are taken.

    tap: called with topic and serialised message after each is written, for who wants to look on.
    """

    def __init__(
        self,
        node: Node,
        topics: Sequence[RecordedTopic],
        path: Path,
        storage: Storage = "mcap",
        replace: bool = False,
        tap: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._node = node
        self._writer = BagWriter(path, storage, replace)
        self._waiting = list(topics)
        self._tap = tap
        self._subscriptions: list[object] = []
        # Callbacks may still run on the executor's thread while another one ends the recording.
        self._lock = threading.Lock()
        self._recording = False

    @property
    def counts(self) -> dict[str, int]:
        """Messages recorded so far, by topic."""
        return dict(self._writer.counts)

    @property
    def waiting(self) -> list[str]:
        """Topics that nobody publishes yet."""
        return [topic.name for topic in self._waiting]

    def __enter__(self) -> "Recorder":
        self._writer.__enter__()
        try:
            self._recording = True
            self._subscribe_to_known()
            self._timer = self._node.create_timer(_LOOK_S, self._subscribe_to_known)
        except BaseException:
            self._writer.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._recording = False
        self._node.destroy_timer(self._timer)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._writer.__exit__(kind, error, trace)

    def _subscribe_to_known(self) -> None:
        for topic in list(self._waiting):
            known = topic if topic.msgtype else self._as_published(topic.name)
            if known is not None and known.msgtype is not None:
                self._waiting.remove(topic)
                with self._lock:
                    self._writer.add_topic(known.name, known.msgtype, known.qos)
                subscription = self._node.create_subscription(
                    built_class(known.msgtype),
                    known.name,
                    partial(self._record, known.name),
                    qos_profile(known.qos, _DEPTH),
                    raw=True,
                )
                self._subscriptions.append(subscription)

    def _as_published(self, name: str) -> RecordedTopic | None:
        """Return type and QoS of a topic as all its publishers offer them; None without a publisher."""
        publishers = self._node.get_publishers_info_by_topic(name)
        if not publishers:
            return None
        profiles = [publisher.qos_profile for publisher in publishers]
        if all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in profiles):
            qos = TopicQos.LATCHED
        elif all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in profiles):
            qos = TopicQos.RELIABLE
        else:
            qos = TopicQos.BEST_EFFORT
        return RecordedTopic(name, publishers[0].topic_type, qos)

    def _record(self, topic: str, data: bytes) -> None:
        with self._lock:
            if self._recording:
                self._writer.write_raw(topic, self._node.get_clock().now().nanoseconds, data)
        if self._tap is not None:
            self._tap(topic, data)


def drain(executor: Executor, recorder: Recorder, longest_s: float = 1.0) -> None:
    """Record what has arrived already but was not taken yet; stop when nothing new comes, or after `longest_s`."""
    deadline = time.monotonic() + longest_s
    before = None
    while recorder.counts != before and time.monotonic() < deadline:
        before = recorder.counts
        quiet = time.monotonic() + 0.1
        while time.monotonic() < quiet:
            executor.spin_once(timeout_sec=0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0 after Ctrl-C, 1 for a refused task."""
    parser = argparse.ArgumentParser(prog="python -m md_perception.ros.recorder", description=__doc__)
    parser.add_argument("topics", nargs="+", metavar="TOPIC", help="absolute names")
    parser.add_argument("--out", type=Path, required=True, metavar="BAG")
    parser.add_argument("--storage", choices=tuple(STORAGES), default="mcap")
    parser.add_argument("--force", action="store_true", help="replace a bag that is there")
    parser.add_argument("--use-sim-time", action="store_true", help="stamp with /clock")
    given = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node(
            "md_bag_recorder", parameter_overrides=[Parameter("use_sim_time", value=given.use_sim_time)]
        )
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        topics = [RecordedTopic(name) for name in given.topics]
        with Recorder(node, topics, given.out, given.storage, given.force) as recorder:
            print(f"recording {', '.join(given.topics)} into {given.out}; Ctrl-C ends it", flush=True)
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)
            drain(executor, recorder)
        for topic, count in sorted(recorder.counts.items()):
            print(f"recorded {count:6d}  {topic}")
        if recorder.waiting:
            print(f"nobody published {', '.join(recorder.waiting)}", file=sys.stderr)
    except (BagError, UnknownTypeError) as error:
        print(f"md_bag: {error}", file=sys.stderr)
        return 1
    except ExternalShutdownException:
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
