"""The one thread that decodes, infers and publishes. An error costs the frame that it happened in, never the thread."""

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from md_perception.metrics.latency import Percentiles, RollingLatency
from md_perception.outputs.messages import NodeStatus
from md_perception.pipeline import Pipeline, RejectedFrame, Work
from md_perception.results import Mode, Perception
from md_perception.ros.intake import Counters, Intake, Job
from md_perception.ros.publishers import Publishers

LATENCY_FRAMES = 300
"""Frames over which the percentiles in the status run."""

REJECTED_IN_A_ROW = 3
"""Rejected frames in a row after which nothing usable can be said to come in."""

JOIN_S = 2.0
"""Longest that `stop` waits for the frame in work."""


@dataclass(frozen=True)
class Ages:
    """Time since the stamps of the newest images, s; NaN before the first."""

    rgb_s: float
    thermal_s: float


@dataclass(frozen=True)
class Timings:
    """Of the last frames: whole cycles of the worker, and the inference in them."""

    cycle: Percentiles
    inference: Percentiles


class Worker:
    """Runs from `start` to `stop`, once.

    now_ns: the node's clock, that of the stamps. ages: of the inputs. warn, error: the log, one line each; they are
    expected to limit their rate.
    """

    def __init__(
        self,
        intake: Intake,
        pipeline: Pipeline,
        publishers: Publishers,
        *,
        now_ns: Callable[[], int],
        ages: Callable[[], Ages],
        warn: Callable[[str], Any],
        error: Callable[[str], Any],
    ) -> None:
        self._intake = intake
        self._pipeline = pipeline
        self._publishers = publishers
        self._now_ns = now_ns
        self._ages = ages
        self._warn = warn
        self._error = error
        self._total = RollingLatency(LATENCY_FRAMES)
        self._cycle = RollingLatency(LATENCY_FRAMES)
        self._inference = RollingLatency(LATENCY_FRAMES)
        self._publish_ms = 0.0
        self._abandoned = False
        self._rejected_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="md_perception worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> bool:
        """Close the intake and wait for the frame in work. Returns whether the thread ended in time.

        A frame that takes longer is not published any more: by then the node may be active again.
        """
        self._intake.close()
        self._thread.join(JOIN_S)
        self._abandoned = self._thread.is_alive()
        return not self._abandoned

    @property
    def only_rejects(self) -> bool:
        """Whether the last frames, several in a row, were all rejected: the cameras deliver, but nothing usable."""
        return self._rejected_in_a_row >= REJECTED_IN_A_ROW

    def timings(self) -> Timings:
        """Return how long the last frames took."""
        return Timings(self._cycle.percentiles(), self._inference.percentiles())

    def idle_status(self, mode: Mode) -> NodeStatus:
        """Return a status that describes no frame: its stamp is the time of sending."""
        now_ns, ages, counters = self._now_ns(), self._ages(), self._intake.counters()
        status = NodeStatus(now_ns, "", mode, rgb_age_s=ages.rgb_s, thermal_age_s=ages.thermal_s)
        return replace(status, **_counts(counters))

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:  # a fault of the queue itself; a dead worker must not look like a silent camera
            self._error(
                "the worker has ended and nothing more is published; deactivate and activate the node to go on:\n"
                + traceback.format_exc()
            )

    def _serve(self) -> None:
        while (job := self._intake.take()) is not None:
            start = time.perf_counter()
            try:
                self._process(job)
            except RejectedFrame as error:
                self._reject()
                self._warn(f"RGB image rejected: {error}")
            except Exception:  # whatever it is, the next frame may do better; it is counted and told
                self._reject()
                self._error(f"RGB image rejected after an unforeseen error:\n{traceback.format_exc()}")
            else:
                self._rejected_in_a_row = 0
                self._intake.processed()
                self._cycle.add(1e3 * (time.perf_counter() - start))

    def _reject(self) -> None:
        self._rejected_in_a_row += 1
        self._intake.rejected()

    def _process(self, job: Job) -> None:
        thermal = None if job.thermal is None else job.thermal.message
        work = self._pipeline.prepare(job.rgb.message, thermal, job.waited_ns / 1e6)
        perception = self._pipeline.infer(work)
        if self._abandoned:
            raise RejectedFrame("its result came after the node was deactivated")
        self._inference.add(perception.times.inference_ms)
        self._publishers.publish_status(self._status(perception))
        self._publish(perception, work)

    def _publish(self, perception: Perception, work: Work) -> None:
        start = time.perf_counter()
        self._publishers.publish(perception, None if work.thermal is None else work.thermal.image)
        self._publish_ms = 1e3 * (time.perf_counter() - start)

    def _status(self, perception: Perception) -> NodeStatus:
        ages, counts = self._ages(), _counts(self._intake.counters())
        counts["processed"] += 1  # this one, which the intake counts when it is out
        total_ms = (self._now_ns() - perception.stamp_ns) / 1e6
        self._total.add(total_ms)
        percentiles = self._total.percentiles()
        student = self._pipeline.students[perception.mode]
        return NodeStatus(
            perception.stamp_ns,
            perception.frame_id,
            perception.mode,
            student=student.manifest.name,
            precision=student.precision,
            provider=student.provider,
            pair_offset_s=float("nan") if perception.pair_offset_ns is None else perception.pair_offset_ns / 1e9,
            rgb_age_s=ages.rgb_s,
            thermal_age_s=ages.thermal_s,
            **counts,
            decode_ms=perception.times.decode_ms,
            pair_wait_ms=perception.times.pair_wait_ms,
            inference_ms=perception.times.inference_ms,
            publish_ms=self._publish_ms,
            total_ms=total_ms,
            total_p50_ms=percentiles.p50_ms,
            total_p95_ms=percentiles.p95_ms,
            total_p99_ms=percentiles.p99_ms,
        )


def _counts(counters: Counters) -> dict[str, Any]:
    """Return the counters as the fields of NodeStatus."""
    return {
        "received_rgb": counters.received,
        "processed": counters.processed,
        "paired": counters.paired,
        "unpaired_rgb": counters.unpaired,
        "dropped": counters.dropped,
        "rejected": counters.rejected,
    }
