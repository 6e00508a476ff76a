"""The one thread that decodes, infers and publishes. An error costs the frame that it happened in, never the thread."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from md_perception.intake import REJECTED_IN_A_ROW, Inspection, Intake, Job
from md_perception.metrics.latency import Percentiles, RollingLatency
from md_perception.outputs.messages import NodeStatus
from md_perception.pipeline import NotReady, Pipeline, RejectedFrame, Work
from md_perception.results import Mode, Perception
from md_perception.ros import tracing
from md_perception.ros.publishers import Publishers
from md_perception.status import Ages, frame_status, idle_status
from md_perception.threads import thread_in_context

WORKER_THREAD = "md_perception worker"

LATENCY_FRAMES = 300
"""Frames over which the percentiles in the status run."""

JOIN_S = 1.5
"""Longest that `stop` waits for the frame in work: the node has to end within 2 s."""


@dataclass(frozen=True)
class Timings:
    """Of the last frames: whole cycles of the worker, and the inference in them."""

    cycle: Percentiles
    inference: Percentiles


class Worker:
    """Runs from `start` to `stop`, once.

    now_ns: the node's clock, that of the stamps. ages: of the inputs. warn, error: the log, one line each; they are
    expected to limit their rate. failures_in_a_row: after so many frames without a result, one after the other, the
    worker has failed; 0: never.
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
        failures_in_a_row: int = 0,
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
        self._failures_in_a_row = 0
        self._most_failures = failures_in_a_row
        self._failure = ""
        self._thread = thread_in_context(self._run, WORKER_THREAD)

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

    def let_go(self) -> None:
        """Drop all that belongs to the node, after `stop`.

        A frame that is still in work would keep the node alive, and with it the shared memory of the middleware.
        """
        del self._publishers, self._now_ns, self._ages
        self._warn = self._error = lambda text: None

    @property
    def only_rejects(self) -> bool:
        """Whether the last frames, several in a row, were all rejected: the cameras deliver, but nothing usable."""
        return self._rejected_in_a_row >= REJECTED_IN_A_ROW

    @property
    def failure(self) -> str:
        """Why it has failed and should be ended, "" while it has not."""
        return self._failure

    def timings(self) -> Timings:
        """Return how long the last frames took."""
        return Timings(self._cycle.percentiles(), self._inference.percentiles())

    def idle_status(self, mode: Mode) -> NodeStatus:
        """Return a status that describes no frame: its stamp is the time of sending."""
        return idle_status(self._now_ns(), mode, self._ages(), self._intake.counters(), self._intake.faults())

    def _run(self) -> None:
        try:
            while (task := self._intake.take()) is not None:
                if isinstance(task, Inspection):
                    self._inspect(task)
                else:
                    self._serve(task)
        except BaseException as error:  # a fault of the queue itself; a dead worker must not look like a silent camera
            self._failure = f"the worker has ended: {error!r}"
            self._error(f"the worker has ended and nothing more is published:\n{traceback.format_exc()}")

    def _inspect(self, inspection: Inspection) -> None:
        tracing.point("inspection", inspection.frame.stamp_ns)
        try:
            content = self._pipeline.look(inspection.frame.message, inspection.camera)
        except Exception:
            self._error(f"a {inspection.camera} image could not be inspected:\n{traceback.format_exc()}")
            return
        self._intake.inspected(inspection, content)
        tracing.point("inspected", inspection.frame.stamp_ns)

    def _serve(self, job: Job) -> None:
        start = time.perf_counter()
        what = "thermal image rejected" if job.rgb is None else "RGB image rejected"
        try:
            self._process(job)
        except NotReady as error:  # a driver that starts late, or in another mode, is no failure of this node
            self._warn(f"{what}: {error}")
            self._reject()
        except RejectedFrame as error:
            self._warn(f"{what}: {error}")
            self._reject(str(error))
        except Exception as error:  # whatever it is, the next frame may do better; it is counted and told
            self._error(f"{what} after an unforeseen error:\n{traceback.format_exc()}")
            self._reject(repr(error))
        else:
            self._rejected_in_a_row = self._failures_in_a_row = 0
            self._intake.processed()
            self._cycle.add(1e3 * (time.perf_counter() - start))

    def _reject(self, failure: str = "") -> None:
        """Count the frame in work, after the log has said why.

        failure: what went wrong, "" where nothing did in this node.
        """
        self._rejected_in_a_row += 1
        self._failures_in_a_row += bool(failure)
        self._intake.rejected()
        if failure and self._failures_in_a_row == self._most_failures:
            self._failure = f"{self._most_failures} frames in a row gave no result; the last: {failure}"

    def _process(self, job: Job) -> None:
        rgb, thermal = (None if frame is None else frame.message for frame in (job.rgb, job.thermal))
        stamp_ns = job.stamp_ns
        tracing.point("taken", stamp_ns)
        work = self._pipeline.prepare(rgb, thermal, job.waited_ns / 1e6, job.mode)
        tracing.point("decoded", stamp_ns)
        perception = self._pipeline.infer(work)
        tracing.point("inferred", stamp_ns)
        if self._abandoned:
            raise RejectedFrame("its result came after the node was deactivated")
        self._inference.add(perception.times.inference_ms)
        self._publishers.publish_status(self._status(perception))
        tracing.point("status published", stamp_ns)
        self._publish(perception, work)
        tracing.point("published", stamp_ns)

    def _publish(self, perception: Perception, work: Work) -> None:
        start = time.perf_counter()
        self._publishers.publish(perception, None if work.thermal is None else work.thermal.image)
        self._publish_ms = 1e3 * (time.perf_counter() - start)

    def _status(self, perception: Perception) -> NodeStatus:
        counters = self._intake.counters()
        # This one is counted by the intake when it is out.
        processed = "thermal_processed" if perception.mode is Mode.THERMAL_ONLY else "processed"
        counters = replace(counters, **{processed: getattr(counters, processed) + 1})
        total_ms = (self._now_ns() - perception.stamp_ns) / 1e6
        self._total.add(total_ms)
        percentiles = self._total.percentiles()
        return frame_status(
            perception,
            self._pipeline.student_of(perception.mode),
            self._ages(),
            counters,
            self._intake.faults(),
            decode_ms=perception.times.decode_ms,
            pair_wait_ms=perception.times.pair_wait_ms,
            inference_ms=perception.times.inference_ms,
            publish_ms=self._publish_ms,
            total_ms=total_ms,
            total_p50_ms=percentiles.p50_ms,
            total_p95_ms=percentiles.p95_ms,
            total_p99_ms=percentiles.p99_ms,
        )
