"""md_benchmark: end to end, from the publish call of a camera to the result at a subscriber, and where the time goes.

Cameras, node and subscriber are processes of their own with DDS between them; the node runs as the launch file starts
it, with its tracepoints on (ros.tracing). Latency counts from the publish call of the RGB image to the moment when the
last of the results is in the subscriber's callback. Rounds of two settings (`--against`) alternate, so that drift
falls on both. docs/performance.md explains the figures.
"""

import argparse
import contextlib
import difflib
import json
import math
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rclpy.utilities import get_rmw_implementation_identifier

import md_perception
from md_perception.bags.types import DETECTIONS, IMAGE, STATUS, TopicQos
from md_perception.files import write_whole
from md_perception.inference.student_file import DEMO_STUDENT, student_path
from md_perception.metrics.latency import machine
from md_perception.parameters import TABLE
from md_perception.ros.harness import (
    INTERRUPTION,
    RESULTS,
    Accounting,
    Child,
    Graph,
    Listener,
    RunError,
    Steps,
    final_status,
    node_command,
    own_environment,
    read_student,
    run_command,
    sample_of,
    wait_for,
)
from md_perception.ros.player import qos_profile
from md_perception.ros.publishers import message_class
from md_perception.ros.timeline import (
    LATENCY,
    OVERHEAD,
    PAIR_WAIT,
    RUNTIME,
    RUNTIME_CPU,
    STAGES,
    Spread,
    Timeline,
    inference_cpu_ns,
    spreads,
)
from md_perception.ros.tracing import FILE_VARIABLE
from md_perception.sensing.images import stamp_ns

SCHEMA = 1
"""Version of the JSON."""

PROBE_STUDENT = DEMO_STUDENT.with_name("probe.onnx")
"""Costs next to nothing and detects ten objects: what is left is the node (test/helpers/probe_student.py makes it)."""

WARM_UP_S = 2.0
"""Left out at the beginning of a round."""

MIN_SIDE = 32
"""Of RGB images, px: smaller ones hold no picture that moves, and a still one is taken for a frozen camera."""

RESULT_TOPICS = {
    "detections": (RESULTS.detections, DETECTIONS),
    "mask": (RESULTS.mask, IMAGE),
    "confidence": (RESULTS.confidence, IMAGE),
    "overlay": ("/md_perception/overlay", IMAGE),
}
"""What can be subscribed to: topic and type."""

_TASKS = {"detections": "detection", "mask": "segmentation", "confidence": "segmentation"}
"""What a student has to do for a result."""

EXECUTOR, WORKER = "md_perception executor", "md_perception worker"


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is run. seconds: of a round, after its warm-up. size: of RGB, (width, height) px; thermal has a quarter of
    both, and is there if the student takes it. results: keys of RESULT_TOPICS; none: detections and mask, as far as the
    student has them. parameters, against: of the node; rounds with `parameters` and `against` added
    alternate with rounds without the latter. out: folder of report.json, report.md and the logs."""

    student: Path = DEMO_STUDENT
    rate_hz: float = 30.0
    seconds: float = 20.0
    rounds: int = 3
    size: tuple[int, int] = (640, 512)
    compressed: bool = False
    results: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    out: Path = Path("log/benchmark")


@dataclass(frozen=True)
class Load:
    """What the node took between warm-up and end.

    ms of CPU a frame: process; executor and worker (the threads of Python that work on frames, the worker without
    inference); inference on the worker's own thread; others (middleware, further threads of the student). gil_ms: upper
    bound of how long Python's lock is held a frame: the CPU time of all threads of Python but that of inference, during
    which ONNX Runtime has released it. memory_mb, resident_mb: of the process at the end.
    """

    process_ms: float
    executor_ms: float
    worker_ms: float
    inference_ms: float
    others_ms: float
    gil_ms: float
    memory_mb: float
    resident_mb: float
    frames: int


@dataclass(frozen=True)
class Round:
    """One start of the node."""

    timeline: Timeline
    load: Load
    accounting: Accounting
    seconds: float
    student: str
    provider: str


@dataclass
class Subscriber:
    """Notes when each result came. received: by topic and stamp, when it was sent, in this process, in the callback."""

    listener: Listener = field(default_factory=Listener)
    received: dict[str, dict[int, tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(dict))
    statuses: dict[int, dict[str, float]] = field(default_factory=dict)
    student: tuple[str, str] = ("", "")
    """Name and provider."""

    def subscribe(self, graph: Graph, names: Sequence[str]) -> None:
        """Subscribe to results and status."""
        qos = qos_profile(TopicQos.RELIABLE, 20)
        for name in names:
            topic, kind = RESULT_TOPICS[name]
            self.received[name] = {}
            graph.node.create_subscription(message_class(kind), topic, partial(self._note, name), qos)
        graph.node.create_subscription(message_class(STATUS), RESULTS.status, self._note_status, qos)

    def _note(self, name: str, message: Any, info: dict[str, int]) -> None:
        now_ns = time.monotonic_ns()
        to_steady_ns = now_ns - time.time_ns()
        times = info["source_timestamp"] + to_steady_ns, info["received_timestamp"] + to_steady_ns, now_ns
        self.received[name][stamp_ns(message)] = times
        self.listener.note_result()

    def _note_status(self, message: Any) -> None:
        self.listener.note_status(message)
        if not message.student:
            return  # it describes no frame
        self.student = message.student, message.provider
        self.statuses[stamp_ns(message)] = {
            "inference_ms": float(message.inference_ms),
            "pair_wait_ms": float(message.pair_wait_ms),
        }


def cpu_ns_by_thread(pid: int) -> dict[int, int]:
    """Return the CPU time of each thread of a process of Linux, ns. Raises RunError where it is gone."""
    times = {}
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended since
            times[int(thread.name)] = int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    if not times:
        raise RunError(f"process {pid}, the node, cannot be looked at in /proc")
    return times


def measure(
    options: BenchmarkOptions, parameters: Sequence[str], folder: Path, *, results: Sequence[str], thermal: bool
) -> Round:
    """Start the node, send frames, end it, and return what happened.

    folder: for logs. results: keys of RESULT_TOPICS. thermal: whether there is that camera. Raises RunError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {folder} for the logs cannot be made: {error.strerror}") from None
    trace, sent = folder / "trace.json", folder / "cameras.json"
    environment = own_environment()
    arguments = [f"student.file:={options.student.resolve()}"]
    if options.compressed:
        arguments += ["rgb.transport:=compressed", "thermal.transport:=compressed"]
    command = node_command([*arguments, *parameters])
    warm_up = round(WARM_UP_S * options.rate_hz)
    images = warm_up + round(options.seconds * options.rate_hz)
    cameras = [sys.executable, "-m", "md_perception.ros.cameras", "--rate", str(options.rate_hz)]
    cameras += ["--size", *map(str, options.size), "--images", str(images), "--report", str(sent)]
    cameras += ["--compressed"] if options.compressed else []
    cameras += [] if thermal else ["--rgb-alone"]
    subscriber = Subscriber()
    with (
        INTERRUPTION.held(),
        Graph("md_benchmark") as graph,
        Child("node", command, folder / "node.log", environment | {FILE_VARIABLE: str(trace)}) as node,
    ):
        subscriber.subscribe(graph, results)
        graph.wait_until_active(node)
        graph.check_alone()
        with Child("cameras", cameras, folder / "cameras.log", environment) as sender:
            patience_s = 60.0 + 2 * (WARM_UP_S + options.seconds)
            wait_for(lambda: len(subscriber.statuses) >= warm_up or sender.exit_code() is not None, patience_s, [node])
            begin_ns, before = time.monotonic_ns(), cpu_ns_by_thread(node.pid)
            if not wait_for(lambda: sender.exit_code() is not None, patience_s, [node]) or sender.exit_code() != 0:
                raise RunError(f"the cameras did not get to their end\n{sender.last_lines()}")
            end_ns, after = time.monotonic_ns(), cpu_ns_by_thread(node.pid)
        wait_for(subscriber.listener.is_quiet, 20.0, [node])
        held = sample_of(node.pid, 0.0, 0)
        status = final_status(graph, subscriber.listener, node)
    log, traced = (json.loads(path.read_text(encoding="utf-8")) for path in (sent, trace))
    for file in (sent, trace):
        file.unlink()  # tens of megabytes; what they say is in the report
    timeline = Timeline.of(
        list(zip(log["stamps_ns"], log["began_ns"], strict=True))[warm_up:],
        traced["points"],
        subscriber.received,
        subscriber.statuses,
    )
    if not timeline.frames:
        got = ", ".join(f"{name} {len(times)}" for name, times in subscriber.received.items())
        raise RunError(
            f"not one of {images} frames came back whole: {status.processed} were processed, {got} received; the "
            f"node's log: {folder / 'node.log'}"
        )
    used = {thread: after[thread] - before.get(thread, 0) for thread in after}
    inference_ns, frames = inference_cpu_ns(traced["points"], begin_ns, end_ns)
    python = {int(thread): name for thread, name in traced["threads"].items()}
    load = _load(used, python, inference_ns, max(frames, 1), held.memory_mb, held.resident_mb)
    counted = Accounting.of(
        status, in_bag=images, played=len(log["ended_ns"]), results=len(subscriber.received[results[0]])
    )
    seconds = (log["ended_ns"][-1] - log["ended_ns"][warm_up]) / 1e9
    return Round(timeline, load, counted, seconds, *subscriber.student)


def _load(
    used_ns: dict[int, int],
    python: dict[int, str],
    inference_ns: int,
    frames: int,
    memory_mb: float,
    resident_mb: float,
) -> Load:
    """used_ns: CPU time by thread. python: names of the threads of Python."""
    by_name: Counter[str] = Counter()
    for thread, nanoseconds in used_ns.items():
        by_name[python.get(thread, "")] += nanoseconds

    def per_frame(nanoseconds: float) -> float:
        return nanoseconds / 1e6 / frames

    return Load(
        process_ms=per_frame(sum(used_ns.values())),
        executor_ms=per_frame(by_name[EXECUTOR]),
        worker_ms=per_frame(by_name[WORKER] - inference_ns),
        inference_ms=per_frame(inference_ns),
        others_ms=per_frame(sum(used_ns.values()) - by_name[EXECUTOR] - by_name[WORKER]),
        gil_ms=per_frame(sum(by_name.values()) - by_name[""] - inference_ns),
        memory_mb=memory_mb,
        resident_mb=resident_mb,
        frames=frames,
    )


def run(options: BenchmarkOptions) -> int:
    """Run the benchmark; return 0, or 1 where an image is not accounted for. Raises RunError."""
    step = Steps("benchmark")
    manifest = read_student(options.student).manifest
    given = [name for name in ("detections", "mask") if _TASKS[name] in manifest.tasks]
    options = replace(options, results=options.results or tuple(given))
    if lacking := [name for name in options.results if _TASKS.get(name, manifest.tasks[0]) not in manifest.tasks]:
        raise RunError(
            f"student {options.student} does {' and '.join(manifest.tasks)} alone and gives no "
            f"{' and no '.join(lacking)}: leave --results out, or name others"
        )
    thermal = "thermal" in manifest.inputs
    variants = [options.parameters, *([(*options.parameters, *options.against)] if options.against else [])]
    rounds: list[list[Round]] = [[] for _ in variants]
    for number in range(options.rounds):
        for index, parameters in list(enumerate(variants))[:: 1 if number % 2 == 0 else -1]:
            step(f"round {number + 1} of {options.rounds}{': ' if parameters else ''}{' '.join(parameters)}")
            folder = options.out / f"round-{number + 1}-{'ab'[index]}"
            rounds[index].append(measure(options, parameters, folder, results=options.results, thermal=thermal))
    problems = [problem for of_variant in rounds for one in of_variant for problem in one.accounting.problems()]
    report = _report(options, thermal, variants, rounds, problems)
    write_whole(options.out / "report.json", json.dumps(report, indent=1).encode())
    text = tables(report)
    write_whole(options.out / "report.md", text.encode())
    print(text)
    for problem in problems:
        print(f"md_benchmark: FAILED CHECK: {problem}", file=sys.stderr)
    step(f"{len(problems)} checks failed; {options.out / 'report.json'}")
    return 1 if problems else 0


def _report(
    options: BenchmarkOptions,
    thermal: bool,
    variants: Sequence[Sequence[str]],
    rounds: list[list[Round]],
    problems: list[str],
) -> dict[str, Any]:
    """Return the report: its keys are those of the options and of the classes above."""
    described = []
    for parameters, of_variant in zip(variants, rounds, strict=True):
        beside = {name for one in of_variant for name in one.timeline.beside}
        seconds = sum(one.seconds for one in of_variant)
        described.append(
            {
                "parameters": list(parameters),
                "student": of_variant[0].student,
                "provider": of_variant[0].provider,
                "times": {n: asdict(s) for n, s in spreads([one.timeline.frames for one in of_variant]).items()},
                "beside": {
                    name: {
                        "per_second": sum(len(one.timeline.beside[name]) for one in of_variant) / seconds,
                        **asdict(Spread.of([one.timeline.beside[name] for one in of_variant])),
                    }
                    for name in sorted(beside)
                },
                "load": [asdict(one.load) for one in of_variant],
                "accounting": [asdict(one.accounting) for one in of_variant],
                "missing": sum(one.timeline.missing for one in of_variant),
            }
        )
    return {
        "schema": SCHEMA,
        "version": md_perception.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "processor": machine(),
            "cores in use": len(os.sched_getaffinity(0)),
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "middleware": get_rmw_implementation_identifier(),
        },
        "cameras": ["rgb", "thermal"] if thermal else ["rgb"],
        # Names of files alone: where they lie says nothing to others.
        "options": {name: v.name if isinstance(v, Path) else v for name, v in vars(options).items()},
        "variants": described,
        "ratios": _ratios(rounds) if len(rounds) == 2 else {},
        "problems": problems,
    }


def _ratios(rounds: list[list[Round]]) -> dict[str, dict[str, float]]:
    """Return, for each duration, the second variant's p50 and p99 over the first's: the median over the rounds, which
    stand beside each other in time, and of p50 the least and the greatest."""
    figures = [[spreads([one.timeline.frames]) for one in of_variant] for of_variant in rounds]
    ratios = {}
    for name in figures[0][0]:
        pairs = [(first[name], second[name]) for first, second in zip(*figures, strict=True)]
        if all(first.p50_ms > 0 for first, _ in pairs):
            medians = [second.p50_ms / first.p50_ms for first, second in pairs]
            ratios[name] = {
                "p50": float(np.median(medians)),
                "p50_least": min(medians),
                "p50_greatest": max(medians),
                "p99": float(np.median([second.p99_ms / first.p99_ms for first, second in pairs])),
            }
    return ratios


def tables(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    options = report["options"]
    width, height = options["size"]
    beside = f"with {width // 4}x{height // 4} thermal" if "thermal" in report["cameras"] else "alone"
    lines = [
        "# md_benchmark",
        "",
        f"{width}x{height} RGB {beside} at {options['rate_hz']:g} Hz, "
        f"{'compressed' if options['compressed'] else 'raw'}; results {', '.join(options['results'])}; "
        f"{options['rounds']} rounds of {options['seconds']:g} s",
        "",
        *(f"- {name}: {value}" for name, value in report["machine"].items()),
        "",
    ]
    for variant in report["variants"]:
        parameters = " ".join(variant["parameters"]) or "default parameters"
        lines += [f"## {variant['student']} on {variant['provider']}, {parameters}", ""]
        what = {name: text for name, *_, text in STAGES} | _EXPLAINED
        lines += ["| ms | p50 | p95 | p99 | p50 of the rounds | |", "|---|---|---|---|---|---|"]
        for name, row in variant["times"].items():
            low, high = row["p50_rounds_ms"]
            lines.append(
                f"| {name} | {row['p50_ms']:.2f} | {row['p95_ms']:.2f} | {row['p99_ms']:.2f} | "
                f"{low:.2f} to {high:.2f} | {what.get(name, '')} |"
            )
        lines += ["", "| CPU of the node, ms a frame | median of the rounds |", "|---|---|"]
        for name, text in _LOADS.items():
            lines.append(f"| {text} | {np.median([load[name] for load in variant['load']]):.2f} |")
        resident = max(load["resident_mb"] for load in variant["load"])
        lines += ["", "| beside the frames | a second | p50, ms | p99, ms |", "|---|---|---|---|"]
        for name, row in variant["beside"].items():
            if row["count"]:
                lines.append(f"| {name} | {row['per_second']:.2f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |")
        counted = [Accounting(**accounting) for accounting in variant["accounting"]]
        lines += ["", f"Memory at most {resident:.0f} MB resident. RGB images: {sum(c.in_bag for c in counted)} sent ="]
        lines += [f"{text}; " for text in dict.fromkeys(c.sum_text() for c in counted)]
        lines.append("")
    if report["ratios"]:
        lines += ["## Second over first, round by round", "", "| | p50 (least to greatest) | p99 |", "|---|---|---|"]
        for name, row in report["ratios"].items():
            spread = f"{row['p50_least']:.3f} to {row['p50_greatest']:.3f}"
            lines.append(f"| {name} | {row['p50']:.3f} ({spread}) | {row['p99']:.3f} |")
        lines.append("")
    return "\n".join(lines)


_EXPLAINED = {
    LATENCY: "publish call of the RGB image to the last result in the subscriber's callback",
    OVERHEAD: "of the same frame",
    PAIR_WAIT: "arrival of the RGB image to the choice of its partner",
    RUNTIME: "callbacks, decoding, messages, publishing: the node's own code around the student",
    RUNTIME_CPU: "the same in CPU time of its threads",
}
_LOADS = {
    "process_ms": "whole process",
    "executor_ms": "executor's thread",
    "worker_ms": "worker's thread without inference",
    "inference_ms": "inference on the worker's thread",
    "others_ms": "other threads: middleware, student",
    "gil_ms": "Python's lock held, upper bound",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 if a check failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="md_benchmark", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--student",
        type=student_path,
        default=DEMO_STUDENT,
        help="file (.onnx) that takes RGB, and thermal or not; demo: that of this package",
    )
    parser.add_argument(
        "--probe", action="store_true", help="take a student that costs next to nothing: what is left is the node"
    )
    parser.add_argument("--rate", type=float, default=30.0, metavar="HZ", help="of each camera")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="starts of the node, of each setting")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 512), metavar=("W", "H"), help="of RGB, px")
    parser.add_argument("--transport", choices=("raw", "compressed"), default="raw")
    parser.add_argument(
        "--results",
        nargs="+",
        choices=RESULT_TOPICS,
        default=[],
        help="what is subscribed to; by default detections and mask, as far as the student has them",
    )
    parser.add_argument("--parameters", nargs="+", default=[], metavar="NAME:=VALUE", help="of the node")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="NAME:=VALUE", help="compare with these parameters added"
    )
    parser.add_argument("--out", type=Path, default=Path("log/benchmark"), help="folder for the report and the logs")
    given = parser.parse_args(arguments)
    if not (0 < given.rate < math.inf and 0 < given.seconds < math.inf and given.rounds > 0 and min(given.size) > 0):
        parser.error("--rate, --seconds, --rounds and --size have to be above 0")
    if round(given.seconds * given.rate) < 2:
        parser.error(f"--seconds {given.seconds:g} at --rate {given.rate:g} Hz are not two frames: measure for longer")
    if min(given.size) < MIN_SIDE:
        parser.error(f"--size: at least {MIN_SIDE} px each, of which thermal has a quarter")
    known = {declaration.name for declaration in TABLE}
    for parameter in (*given.parameters, *given.against):
        name, assigned, _ = parameter.partition(":=")
        if not assigned or name not in known:  # ROS takes any name, and the run would compare nothing
            like = difflib.get_close_matches(name, known, n=3)
            advice = f": did you mean {', '.join(like)}?" if like else ""
            parser.error(f"{parameter} is not NAME:=VALUE with a parameter of the node{advice}")
    options = BenchmarkOptions(
        student=PROBE_STUDENT if given.probe else given.student,
        rate_hz=given.rate,
        seconds=given.seconds,
        rounds=given.rounds,
        size=tuple(given.size),
        compressed=given.transport == "compressed",
        results=tuple(dict.fromkeys(given.results)),
        parameters=tuple(given.parameters),
        against=tuple(given.against),
        out=given.out,
    )
    return run_command("md_benchmark", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
