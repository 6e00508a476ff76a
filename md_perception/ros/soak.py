"""Soak run: the student's cameras for minutes or hours, and what the node holds meanwhile: memory, threads, files.

Fails where memory, threads or open files grow, or where an image is not accounted for.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from md_perception.bags.types import DETECTIONS, IMAGE, STATUS, TopicQos
from md_perception.inference.student_file import DEMO_STUDENT, student_path
from md_perception.metrics.latency import machine
from md_perception.results import Mode
from md_perception.ros.cameras import Cameras
from md_perception.ros.harness import (
    INTERRUPTION,
    RESULTS,
    Accounting,
    Child,
    Graph,
    Listener,
    RunError,
    Sample,
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

LONG_S = 3000.0
LONG_LIMIT_MB, SHORT_LIMIT_MB = 1.0, 20.0
"""Most that memory may grow: per 10,000 frames in a run of at least LONG_S; in all in a shorter one, where one more
image alive at one time, whose memory the allocator keeps, weighs more than any leak."""

STALLS, STALL_S = 10, 0.5
"""The node's process is stopped so often in the first half of the warm-up, for so long, as a busy machine may do at any
time: afterwards as many images were alive at one time as the histories and queues hold, whose memory the allocator
keeps. What memory grows from then on is a leak."""

SAMPLE_S = 1.0


@dataclass(frozen=True)
class Growth:
    """How a run went after its warm-up. slope: MB per 10,000 frames, by least squares; threads, files: the most in the
    last quarter minus the most in the first."""

    slope_mb: float
    frames: int
    first_mb: float
    last_mb: float
    threads: int
    files: int

    @classmethod
    def of(cls, samples: Sequence[Sample], warm_up_s: float) -> "Growth":
        """Raises RunError where there are too few samples."""
        warm = [sample for sample in samples if sample.seconds >= warm_up_s]
        if len(warm) < 8 or warm[-1].frames == warm[0].frames:
            raise RunError(f"only {len(warm)} samples after {warm_up_s:g} s: make the run longer (--minutes)")
        frames = np.array([sample.frames for sample in warm], float)
        memory = np.array([sample.memory_mb for sample in warm])
        slope = np.polynomial.Polynomial.fit(frames, memory, 1).convert().coef[1]
        quarter = len(warm) // 4

        def grown(name: str) -> int:
            values = [getattr(sample, name) for sample in warm]
            return max(values[-quarter:]) - max(values[:quarter])

        return cls(
            float(slope) * 1e4,
            warm[-1].frames - warm[0].frames,
            warm[0].memory_mb,
            warm[-1].memory_mb,
            grown("threads"),
            grown("files"),
        )

    def problems(self, limit_mb: float) -> list[str]:
        """Return what grows. limit_mb: per 10,000 frames."""
        found = []
        if self.slope_mb >= limit_mb:
            found.append(f"memory grows by {self.slope_mb:.2f} MB per 10,000 frames, the limit is {limit_mb:.3g}")
        for name, number in (("threads", self.threads), ("open files", self.files)):
            if number > 0:
                found.append(f"there are {number} more {name} at the end than after the warm-up")
        return found


@dataclass(frozen=True)
class SoakOptions:
    """What is run. limit_mb: memory may grow less than this per 10,000 frames; None: by the length of the run."""

    minutes: float = 60.0
    rate_hz: float = 30.0
    warm_up_s: float | None = None
    student: Path = DEMO_STUDENT
    size: tuple[int, int] = (640, 512)
    out: Path = Path("log/soak")
    limit_mb: float | None = None

    def limit(self, frames: int) -> float:
        """Return the limit that holds, MB per 10,000 frames. frames: after the warm-up."""
        if self.limit_mb is not None:
            return self.limit_mb
        return LONG_LIMIT_MB if self.minutes * 60 >= LONG_S else SHORT_LIMIT_MB * 1e4 / frames

    @property
    def warm(self) -> float:
        """The warm-up that is left out, s: five minutes, or a quarter of a shorter run."""
        return min(300.0, 15.0 * self.minutes) if self.warm_up_s is None else self.warm_up_s

    @property
    def stalls_s(self) -> list[float]:
        """When the node's process is stopped for a moment, s from the beginning."""
        return [number * self.warm / (2 * STALLS) for number in range(1, STALLS + 1)]


def run(options: SoakOptions) -> int:
    """Run the soak; return 0, or 1 where something grows or is not accounted for. Raises RunError."""
    step = Steps("soak")
    manifest = read_student(options.student).manifest
    options.out.mkdir(parents=True, exist_ok=True)
    environment = own_environment()
    listener, counts = Listener(), Counter[str]()
    samples: list[Sample] = []
    latency: dict[str, float] = {}

    def heard(topic: str, data: bytes) -> None:
        counts[topic] += 1
        listener.heard(topic, data)
        if topic == RESULTS.status and listener.status.mode != Mode.STALE:
            latency.update({name: float(getattr(listener.status, f"total_{name}_ms")) for name in _PERCENTILES})

    command = node_command([f"student.file:={options.student.resolve()}"])
    with (
        INTERRUPTION.held(),
        Graph("md_soak") as graph,
        Child("node", command, options.out / "node.log", environment) as node,
    ):
        # In the order in which messages that wait are taken: a status before the result that it describes.
        for topic, msgtype in _RESULTS.items():
            graph.node.create_subscription(
                message_class(msgtype), topic, partial(heard, topic), qos_profile(TopicQos.RELIABLE, 100), raw=True
            )
        graph.wait_until_active(node)
        graph.check_alone()
        cameras = Cameras(graph.node, options.size, options.rate_hz, thermal="thermal" in manifest.inputs)
        step(f"{options.minutes:g} minutes at {options.rate_hz:g} Hz")
        with cameras:
            begin = told = time.monotonic()
            stalls_s = options.stalls_s
            while (seconds := time.monotonic() - begin) < options.minutes * 60:
                wait_for(lambda: False, SAMPLE_S, [node])
                if stalls_s and seconds >= stalls_s[0]:
                    del stalls_s[0]
                    node.stall(STALL_S)
                samples.append(sample_of(node.pid, seconds, _received(listener.status)))
                if time.monotonic() - told >= 60:
                    told = time.monotonic()
                    step(_line(samples[-1]))
        wait_for(listener.is_quiet, 20.0, [node])
        status = final_status(graph, listener, node)
    results = counts[RESULTS.detections if "detection" in manifest.tasks else RESULTS.mask]
    counted = Accounting.of(status, in_bag=cameras.sent, played=cameras.sent, results=results)
    growth = Growth.of(samples, options.warm)
    limit_mb = options.limit(growth.frames)
    problems = counted.problems() + growth.problems(limit_mb)
    report = {
        "machine": machine(),
        "student": options.student.name,
        "minutes": options.minutes,
        "sent_hz": cameras.sent / seconds,
        "processed_hz": counted.processed / seconds,
        "accounting": asdict(counted),
        "warm_up_s": options.warm,
        "growth": asdict(growth),
        "limit_mb": limit_mb,
        "total_ms": latency,
        "problems": problems,
        "samples": [asdict(sample) for sample in samples],
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    for line in summary(report):
        print(line)
    for problem in problems:
        print(f"md_soak: FAILED CHECK: {problem}", file=sys.stderr)
    step(f"{len(problems)} checks failed; {options.out / 'report.json'}")
    return 1 if problems else 0


_PERCENTILES = ("p50", "p95", "p99")
_RESULTS = {RESULTS.status: STATUS, RESULTS.detections: DETECTIONS, RESULTS.mask: IMAGE, RESULTS.confidence: IMAGE}


def _received(status: Any) -> int:
    return 0 if status is None else int(status.received_rgb)


def _line(sample: Sample) -> str:
    return (
        f"{sample.frames} frames, {sample.memory_mb:.1f} MB ({sample.resident_mb:.1f} resident), {sample.threads} "
        f"threads, {sample.files} files"
    )


def summary(report: dict[str, Any]) -> list[str]:
    """Return the figures that are printed at the end."""
    growth, counted = report["growth"], Accounting(**report["accounting"])
    last = Sample(**report["samples"][-1])
    latency = " / ".join(f"{report['total_ms'].get(name, math.nan):.1f}" for name in _PERCENTILES)
    return [
        f"RGB images: {counted.in_bag} sent at {report['sent_hz']:.2f} Hz = {counted.sum_text()}",
        f"memory after {report['warm_up_s']:g} s: {growth['first_mb']:.1f} MB, at the end {growth['last_mb']:.1f} MB; "
        f"{growth['slope_mb']:+.2f} MB per 10,000 frames over {growth['frames']} frames "
        f"(limit {report['limit_mb']:.3g})",
        f"stamp to status of the last frames, p50 / p95 / p99: {latency} ms",
        f"threads {last.threads} ({growth['threads']:+d}), open files {last.files} ({growth['files']:+d})",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 if a check failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="md_soak", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=30.0, metavar="HZ", help="of each camera")
    parser.add_argument(
        "--student",
        type=student_path,
        default=DEMO_STUDENT,
        help="file (.onnx) that takes RGB, and thermal or not; demo: that of this package",
    )
    parser.add_argument("--size", type=int, nargs=2, default=(640, 512), metavar=("W", "H"), help="of RGB, px")
    parser.add_argument("--warm-up", type=float, metavar="S", help="left out; 300, or a quarter of a shorter run")
    parser.add_argument(
        "--limit", type=float, metavar="MB", help="per 10,000 frames; 1, in runs below 50 minutes 20 in all"
    )
    parser.add_argument("--out", type=Path, default=Path("log/soak"), help="folder for the log and the report")
    given = parser.parse_args(arguments)
    if not (0 < given.minutes < math.inf and 0 < given.rate < math.inf and min(given.size) > 0):
        parser.error("--minutes, --rate and --size have to be above 0")
    options = SoakOptions(
        given.minutes, given.rate, given.warm_up, given.student, tuple(given.size), given.out, given.limit
    )
    return run_command("md_soak", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
