"""The real node in a process of its own, with a bag played to it: what the demo, the fault runs and the soak share."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from md_perception.bags.read import Bag
from md_perception.bags.results import CameraTopics, ResultTopics
from md_perception.bags.types import STATUS
from md_perception.bags.write import BagError
from md_perception.inference.manifest import ManifestError
from md_perception.inference.student_file import StudentError, StudentFile
from md_perception.ros.environment import config_file, node_environment
from md_perception.ros.publishers import message_class
from md_perception.ros.recorder import RecordedTopic, Recorder

RESULTS, CAMERAS = ResultTopics(), CameraTopics()
STATE_TIMEOUT_S = 90.0
"""Longest that the node may take to configure and activate: loading and warming up a student on a slow machine."""


class RunError(RuntimeError):
    """The run cannot go on; the text says why."""


# --- Accounting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accounting:
    """What became of every RGB image of the bag.

    in_bag: images in the bag. played: published by the player. received to rejected: counters of the node's last
    status, after deactivation, when nothing waits any more. results: results that were recorded. processed_thermal:
    thermal images with a result of their own.
    """

    in_bag: int
    played: int
    received: int
    processed: int
    dropped: int
    unpaired: int
    rejected: int
    results: int
    processed_thermal: int = 0

    @classmethod
    def of(cls, status: Any, *, in_bag: int, played: int, results: int) -> "Accounting":
        """Return the sums of a run. status: the node's last PerceptionStatus."""
        return cls(
            in_bag=in_bag,
            played=played,
            received=int(status.received_rgb),
            processed=int(status.processed),
            dropped=int(status.dropped),
            unpaired=int(status.unpaired_rgb),
            rejected=int(status.rejected),
            results=results,
            processed_thermal=int(status.processed_thermal),
        )

    @property
    def lost(self) -> int:
        """Images that the player published and the node never received."""
        return self.played - self.received

    def problems(self) -> list[str]:
        """Return what does not add up; an empty list if everything does."""
        problems = []
        ended = self.processed + self.dropped + self.unpaired + self.rejected
        if self.played != self.in_bag:
            problems.append(f"the player published {self.played} of {self.in_bag} RGB images")
        if self.lost < 0:
            problems.append(f"the node received {self.received} RGB images, more than the {self.played} published")
        if self.received != ended:
            problems.append(
                f"the node received {self.received} RGB images but accounts for {ended} ({self.sum_text()})"
            )
        if self.in_bag != ended + self.lost:
            problems.append(f"{self.in_bag} RGB images in the bag, but {ended + self.lost} are accounted for")
        said = self.processed + self.processed_thermal
        if self.results != said:
            problems.append(f"the node says it published {said} results, {self.results} were recorded")
        if not self.processed:
            problems.append("not one image was processed")
        return problems

    def sum_text(self) -> str:
        """Return the sum in words."""
        return (
            f"{self.processed} processed + {self.dropped} dropped while busy + {self.unpaired} unpaired + "
            f"{self.rejected} rejected + {self.lost} lost in transport"
        )


# --- Processes -------------------------------------------------------------------------------------------------------


class Child:
    """A process of the run, whose output goes to a file; a context manager that ends it."""

    patience: tuple[tuple[signal.Signals, float], ...] = (
        (signal.SIGINT, 8.0),
        (signal.SIGTERM, 3.0),
        (signal.SIGKILL, 5.0),
    )
    """What is sent to end it, and how long each may take, s."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = log
        self._file = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command, stdout=self._file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def check_running(self) -> None:
        """Raise RunError with the last lines of its log if it has ended."""
        if (code := self.exit_code()) is not None:
            raise RunError(f"the {self.name} ended with exit status {code}\n{self.last_lines()}")

    def last_lines(self, number: int = 20) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-number:]
        return "\n".join(f"  {self.name}: {line}" for line in lines) or f"  {self.name}: (no output)"

    def stall(self, seconds: float) -> None:
        """Stop the whole process for a time, as a machine may do that is busy with something else."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End the process, ever less politely."""
        for number, patience_s in self.patience:
            if self._process.poll() is not None:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._file.close()


class Steps:
    """Prints each step with the seconds that it took."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{self._name} {time.monotonic() - self._began:6.1f} s] {text}", flush=True)


class Graph:
    """The run's own node: it asks the perception node for its state and carries the recorder. A context manager."""

    def __init__(self, name: str) -> None:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node: Node = rclpy.create_node(name)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._get_state = self.node.create_client(GetState, "/md_perception/get_state")
        self._change_state = self.node.create_client(ChangeState, "/md_perception/change_state")
        # Executor.shutdown from another thread destroys what the spinning thread waits for; a future ends it cleanly.
        self._finish: Future = Future()
        self._thread = threading.Thread(target=self._spin, name="graph executor", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin_until_future_complete(self._finish)

    def node_state(self) -> int | None:
        """Return the lifecycle state of the perception node, None while it does not answer."""
        answer = self._call(self._get_state, GetState.Request(), 1.0)
        return None if answer is None else int(answer.current_state.id)

    def wait_until_active(self, node: Child) -> None:
        """Wait for the active state. Raises RunError where the node ends, or does not get there in time."""
        if not wait_for(lambda: self.node_state() == State.PRIMARY_STATE_ACTIVE, STATE_TIMEOUT_S, [node]):
            raise RunError(f"the node did not become active in {STATE_TIMEOUT_S:g} s\n{node.last_lines()}")

    def check_alone(self) -> None:
        """Raise RunError where others publish the run's topics: their images and results would mix with ours."""
        for topic, ours in ((CAMERAS.rgb, 0), (CAMERAS.thermal, 0), (RESULTS.detections, 1), (RESULTS.status, 1)):
            number = self.node.count_publishers(topic)
            if number > ours:
                raise RunError(
                    f"{number - ours} other publisher(s) of {topic} run in this ROS domain: end them, or give this run "
                    "a domain of its own (ROS_DOMAIN_ID)"
                )

    def deactivate(self) -> bool:
        """Ask the perception node to deactivate; return whether it did."""
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
        answer = self._call(self._change_state, request, 15.0)
        return answer is not None and bool(answer.success)

    def _call(self, client: Any, request: Any, timeout_s: float) -> Any:
        if not client.service_is_ready():
            return None
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        return future.result() if done.wait(timeout_s) else None

    def __enter__(self) -> "Graph":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish.set_result(None)
        self._thread.join(5.0)
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()


class Listener:
    """Looks on while results are recorded: the newest counters of the node, and when the last result came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status: Any = None
        self._result_at = time.monotonic()
        self._status_class = message_class(STATUS)

    def heard(self, topic: str, data: bytes) -> None:
        """Take note of a message. topic: its name. data: serialised."""
        if topic == RESULTS.status:
            self.note_status(deserialize_message(data, self._status_class))
        elif topic == RESULTS.detections:
            self.note_result()

    def note_status(self, status: Any) -> None:
        """Take note of a status."""
        with self._lock:
            self._status = status

    def note_result(self) -> None:
        """Take note of a result that came."""
        with self._lock:
            self._result_at = time.monotonic()

    @property
    def status(self) -> Any:
        """The last status, None before the first."""
        with self._lock:
            return self._status

    def is_quiet(self) -> bool:
        """Return whether no result came for a second, and for longer than the node needs for several."""
        with self._lock:
            usual_s = 0.0 if self._status is None else float(self._status.inference_ms) * 1e-3
            return time.monotonic() - self._result_at > max(1.0, 3 * usual_s)


class Interruption:
    """What Ctrl-C and a termination request do: KeyboardInterrupt, but in `held` not before the next `check`.

    An exception that came while a process is being started would lose hold of that process.
    """

    def __init__(self) -> None:
        self._asked = False
        self._held = False

    def install(self) -> None:
        """Take the two signals, in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if not self._held:
            self.check()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait in this block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt, once, if a signal came."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt


INTERRUPTION = Interruption()


def run_command(name: str, work: Callable[[], int]) -> int:
    """Return the exit status of a command line: that of its work, 1 where it cannot go on, 130 for Ctrl-C."""
    INTERRUPTION.install()
    try:
        return work()
    except (RunError, BagError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; all its processes were ended", file=sys.stderr)
        return 130


def wait_for(done: Callable[[], bool], timeout_s: float, children: Sequence[Child] = ()) -> bool:
    """Return whether something came true in time; raises RunError if a child ends meanwhile, and KeyboardInterrupt."""
    deadline = time.monotonic() + timeout_s
    while not done():
        INTERRUPTION.check()
        for child in children:
            child.check_running()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


_PRIVATE = ("RssAnon", "VmSwap")
"""Of /proc/PID/status. The kernel may drop file-backed pages whenever it likes, and read them again."""

_SHARED = "/dev/shm/"


@dataclass(frozen=True)
class Sample:
    """What the node's process held at a time. frames: RGB images that it had received. memory_mb: what can leak: its
    own memory, also where it is swapped out, and the whole size of the shared-memory segments that it has mapped.

    A segment of Fast DDS has a fixed size, but its pages are there only once they were used: a slow reader, which keeps
    more of it in use, would look like a leak for as long as that takes.
    """

    seconds: float
    frames: int
    memory_mb: float
    resident_mb: float
    threads: int
    files: int


def sample_of(pid: int, seconds: float, frames: int) -> Sample:
    """Look at a process of Linux. Raises RunError where it is gone."""
    process = Path(f"/proc/{pid}")
    try:
        status = (process / "status").read_text(encoding="utf-8")
        shared = _shared_bytes((process / "maps").read_text(encoding="utf-8"))
        files = len(os.listdir(process / "fd"))
    except OSError as error:
        raise RunError(f"the node's process cannot be looked at: {error}") from None
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    megabytes = {name: int(values[name].split()[0]) * 1024 / 1e6 for name in (*_PRIVATE, "VmRSS")}
    memory = sum(megabytes[name] for name in _PRIVATE) + shared / 1e6
    return Sample(seconds, frames, memory, megabytes["VmRSS"], int(values["Threads"]), files)


def _shared_bytes(maps: str) -> int:
    """Return the size of the shared-memory segments in /proc/PID/maps: `START-END rwxp OFFSET DEVICE INODE PATH`."""
    total = 0
    for line in maps.splitlines():
        addresses, *_, path = line.split(None, 5)
        if path.startswith(_SHARED):
            start, end = (int(address, 16) for address in addresses.split("-"))
            total += end - start
    return total


# --- The run ---------------------------------------------------------------------------------------------------------


def node_command(parameters: Sequence[str]) -> list[str]:
    """Return the command that runs the node, active as soon as it can be.

    parameters: such as `score_threshold:=0.5`.
    """
    command = [sys.executable, "-m", "md_perception.ros.node", "--ros-args"]
    command += ["--params-file", str(config_file("md.yaml"))]
    for parameter in ("autostart:=true", *parameters):
        command += ["-p", parameter]
    return command


def read_student(path: Path) -> StudentFile:
    """Read the student of a run, before anything is started.

    Raises RunError for a file that the node would refuse, and for one that takes no RGB images, which a run counts.
    """
    try:
        file = StudentFile.read(path)
    except (StudentError, ManifestError) as error:
        raise RunError(str(error)) from None
    if "rgb" not in file.manifest.inputs:
        raise RunError(f"student {path} takes thermal images alone: give one that takes RGB images, which are counted")
    return file


def own_environment() -> dict[str, str]:
    """Prepare this process for carrying images, and return the environment of its children."""
    os.environ.update(node_environment(os.environ))
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def run_on_bag(
    cameras: Path,
    results: Path,
    log: Path,
    topics: Sequence[RecordedTopic],
    step: Callable[[str], None],
    *,
    parameters: Sequence[str] = (),
    rate: float = 1.0,
) -> tuple[dict[str, Any], Any]:
    """Play a bag to the node and record what it says; return the player's report and the node's last status.

    cameras: the bag. results: bag to be written. log: folder for the logs of the processes. topics: to be recorded.
    parameters: of the node, as for node_command. Raises RunError, BagError, KeyboardInterrupt.
    """
    environment = own_environment()
    listener = Listener()
    step("starting the node (its log: " + str(log / "node.log") + ")")
    with (
        INTERRUPTION.held(),
        Graph("md_run") as graph,
        Recorder(graph.node, topics, results, replace=True, tap=listener.heard),
        Child("node", node_command(["use_sim_time:=true", *parameters]), log / "node.log", environment) as node,
    ):
        graph.wait_until_active(node)
        graph.check_alone()
        step(f"the node is active; playing the bag at {rate:g} times real time")
        play = [sys.executable, "-m", "md_perception.bags", "play", str(cameras), "--rate", str(rate)]
        play += ["--topics", *camera_topics(cameras), "--wait-for-subscribers", "30"]
        play += ["--report", str(log / "player.json")]
        with Child("player", play, log / "player.log", environment) as player:
            with Bag(cameras) as bag:
                longest_s = bag.duration_s / rate + 60.0
            ended = wait_for(lambda: player.exit_code() is not None, longest_s, [node])
            if not ended or player.exit_code() != 0:
                raise RunError(f"the player did not play the bag to its end\n{player.last_lines()}")
        # The node may still be busy with the last images, which it would have to drop.
        wait_for(listener.is_quiet, 20.0, [node])
        step("the bag is over; deactivating the node")
        status = final_status(graph, listener, node)
    return json.loads((log / "player.json").read_text(encoding="utf-8")), status


def final_status(graph: Graph, listener: Listener, node: Child) -> Any:
    """Deactivate the node and return its last status, in which nothing waits any more. Raises RunError."""
    if not graph.deactivate():
        raise RunError(f"the node did not deactivate\n{node.last_lines()}")
    wait_for(lambda: _nothing_waits(listener.status), 5.0, [node])
    if listener.status is None:
        raise RunError(f"the node never published a status\n{node.last_lines()}")
    return listener.status


def _nothing_waits(status: Any) -> bool:
    return status is not None and int(status.received_rgb) == (
        int(status.processed) + int(status.dropped) + int(status.unpaired_rgb) + int(status.rejected)
    )


def camera_topics(path: Path) -> list[str]:
    """Return what of a bag the cameras sent: all but the truth of a scene bag."""
    with Bag(path) as bag:
        return [topic for topic in bag.topics if not topic.startswith("/truth/")]
