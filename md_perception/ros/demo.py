"""The demo: a bag of two cameras, the real node in a process of its own, DDS between them, and figures that add up.

It checks itself. Every RGB image of the bag must be accounted for, every result must have the header of its image and
come after its status, and on the scene world, where the truth is known, persons must be found.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import cv2
import numpy as np
import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from md_perception.bags.make import BagOptions, make_from_pictures
from md_perception.bags.read import Bag
from md_perception.bags.results import (
    TRUTH_DETECTIONS,
    CameraTopics,
    Joined,
    ResultTopics,
    count_found,
    detections_of,
    joined,
    label_info_problems,
    order_problems,
    recorded_results,
    truth_by_stamp,
)
from md_perception.bags.types import DETECTIONS, DIAGNOSTICS, IMAGE, LABEL_INFO, STATUS, TopicQos
from md_perception.bags.write import BagError
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.metrics.latency import nearest_rank
from md_perception.outputs.overlay import draw
from md_perception.results import Mode, UInt8Image
from md_perception.ros.environment import config_file, node_environment
from md_perception.ros.publishers import message_class
from md_perception.ros.recorder import RecordedTopic, Recorder
from md_perception.sensing.images import stamp_ns

CLIP = "0117_1605"
THERMAL_SIZE = (160, 120)
"""(width, height) px to which the thermal images of the clip are reduced: those of a cheap sensor."""

STREET_FRAMES = 50
"""RGB images of each street of the scene world: several kinds of light and weather in one bag."""

PICTURES = 6
MP4V = int.from_bytes(b"mp4v", "little")
"""Four-character code of the codec that every OpenCV wheel can write."""

LEAST_HEIGHT_PX = 56.0
"""Of a person that counts in the recall: the low end of KAIST's test percentiles, at 512 rows."""
LEAST_VISIBLE = 0.5
"""Share of a person that must be visible for it to count: KAIST's occlusion levels 0 and 1."""

RESULTS, CAMERAS = ResultTopics(), CameraTopics()
STATE_TIMEOUT_S = 90.0
"""Longest that the node may take to configure and activate: loading and warming up a student on a slow machine."""


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why."""


# --- Accounting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accounting:
    """What became of every RGB image of the bag.

    in_bag: images in the bag. played: published by the player. received to rejected: counters of the node's last
    status, after deactivation, when nothing waits any more. results: results that were recorded.
    """

    in_bag: int
    played: int
    received: int
    processed: int
    dropped: int
    unpaired: int
    rejected: int
    results: int

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
        if self.results != self.processed:
            problems.append(f"the node says it published {self.processed} results, {self.results} were recorded")
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
    """A process of the demo, whose output goes to a file; a context manager that ends it."""

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

    def exit_code(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def check_running(self) -> None:
        """Raise DemoError with the last lines of its log if it has ended."""
        if (code := self.exit_code()) is not None:
            raise DemoError(f"the {self.name} ended with exit status {code}\n{self.last_lines()}")

    def last_lines(self, number: int = 20) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-number:]
        return "\n".join(f"  {self.name}: {line}" for line in lines) or f"  {self.name}: (no output)"

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

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[demo {time.monotonic() - self._began:6.1f} s] {text}", flush=True)


class Graph:
    """The demo's own node: it asks the perception node for its state and carries the recorder. A context manager."""

    def __init__(self) -> None:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node: Node = rclpy.create_node("md_demo")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._get_state = self.node.create_client(GetState, "/md_perception/get_state")
        self._change_state = self.node.create_client(ChangeState, "/md_perception/change_state")
        # Executor.shutdown from another thread destroys what the spinning thread waits for; a future ends it cleanly.
        self._finish: Future = Future()
        self._thread = threading.Thread(target=self._spin, name="demo executor", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin_until_future_complete(self._finish)

    def node_state(self) -> int | None:
        """Return the lifecycle state of the perception node, None while it does not answer."""
        answer = self._call(self._get_state, GetState.Request(), 1.0)
        return None if answer is None else int(answer.current_state.id)

    def check_alone(self) -> None:
        """Raise DemoError where others publish the demo's topics: their images and results would mix with ours."""
        for topic, ours in ((CAMERAS.rgb, 0), (CAMERAS.thermal, 0), (RESULTS.detections, 1), (RESULTS.status, 1)):
            number = self.node.count_publishers(topic)
            if number > ours:
                raise DemoError(
                    f"{number - ours} other publisher(s) of {topic} run in this ROS domain: end them, or give the demo "
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
        with self._lock:
            if topic == RESULTS.status:
                self._status = deserialize_message(data, self._status_class)
            elif topic == RESULTS.detections:
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


def wait_for(done: Callable[[], bool], timeout_s: float, children: Sequence[Child] = ()) -> bool:
    """Return whether something came true in time; raises DemoError if a child ends meanwhile, and KeyboardInterrupt."""
    deadline = time.monotonic() + timeout_s
    while not done():
        INTERRUPTION.check()
        for child in children:
            child.check_running()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- The run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoOptions:
    """What is run.

    source: `clip`, `scenes`, or `auto`: the clip where it is. frames: RGB images at most. student: file; None: the
    node's default. least_recall: of persons in scenes, below which the demo fails.
    """

    source: str = "auto"
    out: Path = Path("demo")
    frames: int | None = None
    rate: float = 1.0
    seed: int = 1
    student: Path | None = None
    least_recall: float = 0.5


@dataclass
class Figures:
    """Everything that the page of figures shows; times in ms."""

    source: str
    accounting: Accounting
    late: float = 0.0
    paired: int = 0
    times: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    modes: list[tuple[float, str]] = field(default_factory=list)
    student: str = ""
    provider: str = ""
    detections: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    persons: tuple[int, int] | None = None
    duration_s: float = 0.0


def run(options: DemoOptions) -> int:
    """Run the demo; return its exit status: 0, or 1 if its own checks fail. Raises DemoError, BagError."""
    step = Steps()
    out = options.out
    (out / "log").mkdir(parents=True, exist_ok=True)
    for left in out.glob(".*.partial-*"):  # by a run that was killed
        shutil.rmtree(left)
    source, cameras = _make_bag(options, step)
    with Bag(cameras) as bag:
        in_bag = bag.topics[CAMERAS.rgb].count
        rgb_headers = {stamp_ns(m.message): m.message.header.frame_id for m in bag.messages([CAMERAS.rgb])}
    played, status = _run_node(options, cameras, out / "results", step)

    with Bag(out / "results") as results, Bag(cameras) as bag:
        if results.damage:
            raise DemoError(f"the recorded bag is damaged: {results.damage}")
        counts = results.topics[RESULTS.detections].count
        accounting = Accounting(
            in_bag=in_bag,
            played=played["counts"].get(CAMERAS.rgb, 0),
            received=int(status.received_rgb),
            processed=int(status.processed),
            dropped=int(status.dropped),
            unpaired=int(status.unpaired_rgb),
            rejected=int(status.rejected),
            results=counts,
        )
        figures = Figures(source, accounting, late=played["late_p99_ms"], paired=int(status.paired))
        problems = accounting.problems()
        problems += order_problems(results, rgb_headers)
        problems += label_info_problems(results, SEGMENTATION.classes)
        _read_figures(results, bag, figures)
        step(f"drawing {accounting.processed} overlays")
        files = draw_overlays(results, bag, out)
    if figures.persons is not None:
        found, there = figures.persons
        if there == 0:
            problems.append("no person in the processed frames counts: make the bag longer (--frames)")
        elif found / there < options.least_recall:
            problems.append(f"person recall {found / there:.2f} ({found} of {there}) is below {options.least_recall}")
    report = out / "report.md"
    report.write_text(report_text(figures, problems), encoding="utf-8")
    print("\n" + "\n".join(summary_lines(figures)) + "\n")
    for problem in problems[:20]:
        print(f"demo: FAILED CHECK: {problem}", file=sys.stderr)
    step("done" if not problems else f"{len(problems)} checks failed")
    for path, what in [
        (report, "figures"),
        (out / "results", "bag of the results"),
        (cameras, "bag of the cameras"),
        *files,
    ]:
        print(f"  {path}  {what}")
    return 1 if problems else 0


def data_folder() -> Path:
    """Return where real data may be: MD_DATA, or ../shared/data beside this checkout."""
    return Path(os.environ.get("MD_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")


def _make_bag(options: DemoOptions, step: Steps) -> tuple[str, Path]:
    clip = [data_folder() / "m3svd" / camera / f"{CLIP}.mp4" for camera in ("visible", "infrared")]
    there = all(path.is_file() for path in clip)
    if options.source == "clip" and not there:
        raise DemoError(f"{clip[0]} is not there: set MD_DATA to the folder that has m3svd/, or take SOURCE=scenes")
    out = options.out / "cameras"
    if there and options.source != "scenes":
        step(f"making a bag of the real clip {CLIP}, thermal reduced to {THERMAL_SIZE[0]}x{THERMAL_SIZE[1]}")
        made = BagOptions(thermal_size=THERMAL_SIZE, max_frames=options.frames, replace=True)
        summary = make_from_pictures(clip[0], clip[1], out, made)
        source = f"real clip m3svd {CLIP}"
    else:
        from md_perception.bags.scenes import StreetOptions, make_from_scenes

        streets = StreetOptions(frames=options.frames or 300, street_frames=STREET_FRAMES)
        step(f"making a bag of {streets.frames} frames of the scene world, seed {options.seed}")
        summary = make_from_scenes(out, BagOptions(seed=options.seed, replace=True), streets)
        source = f"scene world, seed {options.seed}"
    count, megabytes = summary.counts[CAMERAS.rgb], summary.size_bytes / 1e6
    step(f"{out}: {count} RGB images, {summary.duration_s:.1f} s, {megabytes:.0f} MB")
    return source, out


def _run_node(options: DemoOptions, cameras: Path, results: Path, step: Steps) -> tuple[dict[str, Any], Any]:
    """Play the bag to the node and record it; return the player's report and the node's last status."""
    log = options.out / "log"
    os.environ.update(node_environment(os.environ))  # for the recorder in this process as well as for the children
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-m",
        "md_perception.ros.node",
        "--ros-args",
        "--params-file",
        str(config_file("md.yaml")),
    ]
    command += ["-p", "use_sim_time:=true", "-p", "autostart:=true"]
    if options.student is not None:
        command += ["-p", f"student.file:={options.student}"]
    topics = [
        # The order in which messages that wait are taken: a status before the result that it describes.
        RecordedTopic(RESULTS.status, STATUS),
        RecordedTopic(RESULTS.detections, DETECTIONS),
        RecordedTopic(RESULTS.label_info, LABEL_INFO, TopicQos.LATCHED),
        RecordedTopic(RESULTS.mask, IMAGE),
        RecordedTopic(RESULTS.confidence, IMAGE),
        RecordedTopic(RESULTS.diagnostics, DIAGNOSTICS),
    ]
    listener = Listener()
    step("starting the node (its log: " + str(log / "node.log") + ")")
    with (
        INTERRUPTION.held(),
        Graph() as graph,
        Recorder(graph.node, topics, results, replace=True, tap=listener.heard),
        Child("node", command, log / "node.log", environment) as node,
    ):
        active = wait_for(lambda: graph.node_state() == State.PRIMARY_STATE_ACTIVE, STATE_TIMEOUT_S, [node])
        if not active:
            raise DemoError(f"the node did not become active in {STATE_TIMEOUT_S:g} s\n{node.last_lines()}")
        graph.check_alone()
        step(f"the node is active; playing the bag at {options.rate:g} times real time")
        play = [sys.executable, "-m", "md_perception.bags", "play", str(cameras), "--rate", str(options.rate)]
        play += ["--topics", *camera_topics(cameras), "--wait-for-subscribers", "30"]
        play += ["--report", str(log / "player.json")]
        with Child("player", play, log / "player.log", environment) as player:
            with Bag(cameras) as bag:
                longest_s = bag.duration_s / options.rate + 60.0
            ended = wait_for(lambda: player.exit_code() is not None, longest_s, [node])
            if not ended or player.exit_code() != 0:
                raise DemoError(f"the player did not play the bag to its end\n{player.last_lines()}")
        # The node may still be busy with the last images, which it would have to drop.
        wait_for(listener.is_quiet, 20.0, [node])
        step("the bag is over; deactivating the node")
        if not graph.deactivate():
            raise DemoError(f"the node did not deactivate\n{node.last_lines()}")
        wait_for(lambda: _nothing_waits(listener.status), 5.0, [node])
        status = listener.status
        if status is None:
            raise DemoError(f"the node never published a status\n{node.last_lines()}")
    return json.loads((log / "player.json").read_text(encoding="utf-8")), status


def _nothing_waits(status: Any) -> bool:
    return status is not None and int(status.received_rgb) == (
        int(status.processed) + int(status.dropped) + int(status.unpaired_rgb) + int(status.rejected)
    )


def camera_topics(path: Path) -> list[str]:
    """Return what of a bag the cameras sent: all but the truth of a scene bag."""
    with Bag(path) as bag:
        return [topic for topic in bag.topics if not topic.startswith("/truth/")]


# --- Figures ---------------------------------------------------------------------------------------------------------


def _read_figures(results: Bag, cameras: Bag, figures: Figures) -> None:
    truth = None
    if TRUTH_DETECTIONS in cameras.topics:
        truth = truth_by_stamp(cameras, least_height_px=LEAST_HEIGHT_PX, least_visible=LEAST_VISIBLE)
    stages: dict[str, list[float]] = {
        name: [] for name in ("decode_ms", "pair_wait_ms", "inference_ms", "publish_ms", "total_ms")
    }
    found = there = 0
    person = DETECTION.id_of("person")
    for number, result in enumerate(recorded_results(results)):
        detections = detections_of(result.detections)
        names = [DETECTION.classes[label] for label in detections.labels]
        figures.detections.append((result.stamp_ns, {name: names.count(name) for name in DETECTION.classes}))
        if truth is not None:
            here = count_found(truth[result.stamp_ns], detections, person)
            found, there = found + here[0], there + here[1]
        for name, values in stages.items():
            if name != "publish_ms" or number:  # that of the first says nothing: it is of the frame before
                values.append(float(getattr(result.status, name)))
        figures.student = f"{result.status.student}, {result.status.precision}"
        figures.provider = result.status.provider
    figures.times = {
        name: tuple(nearest_rank(sorted(values), percent) for percent in (50, 95, 99))  # type: ignore[misc]
        for name, values in stages.items()
    }
    figures.persons = None if truth is None else (found, there)
    figures.duration_s = cameras.duration_s
    figures.modes = mode_changes(results)


def mode_changes(results: Bag) -> list[tuple[float, str]]:
    """Return (seconds from the beginning of the recording, mode) at each change of the mode."""
    changes: list[tuple[float, str]] = []
    for item in results.messages([RESULTS.status]):
        mode = Mode(item.message.mode).name
        if not changes or changes[-1][1] != mode:
            changes.append(((item.log_ns - results.start_ns) * 1e-9, mode))
    return changes


def summary_lines(figures: Figures) -> list[str]:
    """Return the figures that are printed at the end."""
    accounting = figures.accounting
    lines = [
        f"RGB images: {accounting.in_bag} in the bag = {accounting.sum_text()}",
        f"paired with thermal: {figures.paired} of {accounting.received} received",
    ]
    for name, (p50, p95, p99) in figures.times.items():
        lines.append(f"{name[:-3].replace('_', ' '):<10} p50 {p50:7.1f}   p95 {p95:7.1f}   p99 {p99:7.1f} ms")
    lines.append("modes: " + ", ".join(f"{mode} from {seconds:.1f} s" for seconds, mode in figures.modes))
    if figures.detections:
        number = len(figures.detections)
        sums = {name: sum(counts[name] for _, counts in figures.detections) for name in DETECTION.classes}
        lines.append("detections a frame: " + ", ".join(f"{sums[name] / number:.2f} {name}" for name in sums))
    if figures.persons is not None:
        found, there = figures.persons
        lines.append(
            f"person recall {found / max(there, 1):.2f} ({found} of {there}; IoU 0.5; persons of at least "
            f"{LEAST_HEIGHT_PX:g} px that are at least half visible, in the processed frames)"
        )
    return lines


def report_text(figures: Figures, problems: list[str]) -> str:
    """Return the page of figures, Markdown."""
    accounting = figures.accounting
    rows = {
        "in the bag": accounting.in_bag,
        "played": accounting.played,
        "received by the node": accounting.received,
        "paired with thermal": figures.paired,
        "processed": accounting.processed,
        "dropped while busy": accounting.dropped,
        "unpaired": accounting.unpaired,
        "rejected": accounting.rejected,
        "lost in transport": accounting.lost,
        "results recorded": accounting.results,
    }
    rate = accounting.processed / figures.duration_s if figures.duration_s else 0.0
    lines = ["# md_perception demo", ""]
    lines += [
        f"- source: {figures.source}",
        f"- student: {figures.student}, on {figures.provider}",
        f"- machine: {machine()}",
        f"- processed: {rate:.1f} frames/s of bag time",
        f"- checks: {'all passed' if not problems else f'{len(problems)} FAILED'}",
        *(f"  - {problem}" for problem in problems),
        "",
        "| RGB images | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        f"{accounting.in_bag} = {accounting.sum_text()}",
        "",
        "| ms | p50 | p95 | p99 |",
        "|---|---|---|---|",
        *(
            f"| {name[:-3].replace('_', ' ')} | {p50:.1f} | {p95:.1f} | {p99:.1f} |"
            for name, (p50, p95, p99) in figures.times.items()
        ),
        "",
        "total: from the stamp of the RGB image to its status. The player was at most "
        f"{figures.late:.1f} ms behind its schedule for 99 % of the messages.",
        "",
        "| from | mode |",
        "|---|---|",
        *(f"| {seconds:.1f} s | {mode} |" for seconds, mode in figures.modes),
        "",
        *(f"- {line}" for line in summary_lines(figures) if line.startswith(("detections", "person"))),
        "",
        "| time, s | " + " | ".join(DETECTION.classes) + " |",
        "|---|" + "---|" * len(DETECTION),
    ]
    first = figures.detections[0][0] if figures.detections else 0
    for stamp, counts in figures.detections:
        lines.append(
            f"| {(stamp - first) * 1e-9:.3f} | " + " | ".join(str(counts[n]) for n in DETECTION.classes) + " |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return the CPU model, its cores and the system."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux; the platform's own name will do
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


# --- Pictures --------------------------------------------------------------------------------------------------------


def beside(result: Joined) -> UInt8Image:
    """Return the overlay and, to the right of it at the same height, the thermal image as the sensor saw it."""
    overlay = draw(result.perception, DETECTION.classes, SEGMENTATION.classes)
    height = overlay.shape[0]
    if result.thermal is None:
        thermal = np.zeros((120, 160), np.uint8)  # black: there was none
    else:
        thermal = result.thermal
    width = round(thermal.shape[1] * height / thermal.shape[0])
    enlarged = cv2.resize(thermal, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.hstack([overlay, cv2.cvtColor(enlarged, cv2.COLOR_GRAY2RGB)])


def draw_overlays(results: Bag, cameras: Bag, out: Path) -> list[tuple[Path, str]]:
    """Draw the recorded results on the images of the camera bag: a video, where OpenCV can write one, and pictures.

    Returns the files with what they are.
    """
    for old in out.glob("overlay*"):
        old.unlink()
    stamps = [(result.stamp_ns, len(result.detections.detections)) for result in recorded_results(results)]
    chosen = choose(stamps, PICTURES)
    video: cv2.VideoWriter | None = None
    video_path = out / "overlay.mp4"
    seconds = (stamps[-1][0] - stamps[0][0]) * 1e-9 if len(stamps) > 1 else 0.0
    rate = (len(stamps) - 1) / seconds if seconds > 0 else 10.0
    files: list[tuple[Path, str]] = []
    try:
        for number, result in enumerate(joined(recorded_results(results), cameras)):
            picture = cv2.cvtColor(beside(result), cv2.COLOR_RGB2BGR)
            if number == 0:
                size = (picture.shape[1], picture.shape[0])
                video = cv2.VideoWriter(str(video_path), MP4V, rate, size)
            if video is not None and video.isOpened():
                video.write(picture)
            if result.perception.stamp_ns in chosen:
                path = out / f"overlay_{len(files) + 1}.png"
                if not cv2.imwrite(str(path), picture):
                    raise DemoError(f"cannot write {path}")
                files.append((path, "result, with the thermal image beside it"))
    finally:
        written = video is not None and video.isOpened()
        if video is not None:
            video.release()
    if written:
        files.insert(0, (video_path, "all results as a video"))
    return files


def choose(stamps: Sequence[tuple[int, int]], number: int) -> set[int]:
    """Return the stamps of some results spread over the bag: of those with detections, if there are enough.

    stamps: of each result, with its number of detections.
    """
    with_objects = [stamp for stamp, objects in stamps if objects]
    pool = with_objects if len(with_objects) >= number else [stamp for stamp, _ in stamps]
    if not pool:
        return set()
    return {pool[round(index)] for index in np.linspace(0, len(pool) - 1, number)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 if anything failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="md_demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--source", choices=("auto", "clip", "scenes"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for what the demo leaves")
    parser.add_argument("--frames", type=int, help="RGB images at most (scenes: 300 if not given)")
    parser.add_argument("--rate", type=float, default=1.0, help="seconds of the bag in one second")
    parser.add_argument("--seed", type=int, default=1, help="of the scene world")
    parser.add_argument("--student", type=Path, help="student file; the demo student if not given")
    parser.add_argument("--least-recall", type=float, default=0.5, help="of persons in scenes; below it the demo fails")
    given = parser.parse_args(arguments)
    INTERRUPTION.install()
    try:
        return run(DemoOptions(**vars(given)))
    except (DemoError, BagError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; all its processes were ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
