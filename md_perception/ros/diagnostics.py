"""What goes out on /diagnostics: plain functions from what the node knows to statuses, every warning with its cure.

diagnostic_updater is not used: its tasks take the wall clock under use_sim_time, and it is not everywhere.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from md_perception.results import Mode
from md_perception.ros.intake import Counters
from md_perception.ros.qos import InputState
from md_perception.ros.worker import Timings

PERIOD_S = 1.0

_MEMORY_S = 5.0
"""Rates are those of the last seconds."""

_LOSS = 0.6
"""Below this share of the images that their stamps promise, the transport is suspected."""

CPU_PROVIDER = "CPUExecutionProvider"


class InputMonitor:
    """Rate, size and losses of one camera, from what arrives; called on the executor's thread only."""

    def __init__(self) -> None:
        self._times: deque[tuple[int, int]] = deque(maxlen=256)  # arrival and stamp, ns
        self.received = 0
        self.description = ""
        self.newest_stamp_ns: int | None = None

    def note(self, arrival_ns: int, stamp_ns: int, description: str) -> None:
        """Take note of an image. arrival_ns: steady clock. description: encoding and size."""
        self.received += 1
        self.description = description
        self.newest_stamp_ns = stamp_ns
        self._times.append((arrival_ns, stamp_ns))

    def silent_s(self, now_ns: int) -> float:
        """Return the time since the newest image arrived, s, infinite before the first."""
        return (now_ns - self._times[-1][0]) / 1e9 if self._times else math.inf

    def rate_hz(self, now_ns: int) -> float:
        """Return images per second over the last seconds, 0 without any."""
        arrivals = [arrival for arrival, _ in self._recent(now_ns)]
        if len(arrivals) < 2 or arrivals[-1] == arrivals[0]:
            return 0.0
        return (len(arrivals) - 1) * 1e9 / (max(now_ns, arrivals[-1]) - arrivals[0])

    def arrived_share(self, now_ns: int) -> float:
        """Return the share of the camera's images that arrive, 0..1, judged from the gaps between their stamps.

        A camera is regular: the short gaps are its period, and gaps of several periods are images that were lost.
        """
        stamps = np.array([stamp for _, stamp in self._recent(now_ns)], np.int64)
        gaps = np.diff(stamps)
        if len(gaps) < 10 or gaps.min() <= 0:
            return 1.0
        return float(min(1.0, np.percentile(gaps, 10) / gaps.mean()))

    def _recent(self, now_ns: int) -> list[tuple[int, int]]:
        return [times for times in self._times if now_ns - times[0] <= _MEMORY_S * 1e9]


@dataclass(frozen=True)
class StudentState:
    """A student in service, for diagnostics.

    mode: that it serves. asked: providers of the parameters. provider: the one in use.
    """

    name: str
    run_id: str
    mode: Mode
    provider: str
    precision: str
    asked: tuple[str, ...]
    seen_real_images: bool


def input_status(camera: str, state: InputState, monitor: InputMonitor, now_ns: int, age_s: float) -> DiagnosticStatus:
    """Return the status of one camera. now_ns: the clock of the monitor. age_s: of the newest stamp."""
    problems = []
    rate, share = monitor.rate_hz(now_ns), monitor.arrived_share(now_ns)
    if not state.publishers:
        problems.append(
            f"nobody publishes {state.topic}: start the camera driver, or remap {camera}/image_raw to its topic "
            "(`ros2 topic list`)"
        )
    elif state.incompatible:
        problems.append(f"a publisher of {state.topic} offers an incompatible {state.incompatible}: {state.cure}")
    elif rate == 0.0:
        problems.append(
            f"{state.topic} has a publisher but no image arrives: see whether the driver runs, and start it with this "
            "package's config/fastdds.xml (large images are lost on the stock transport)"
        )
    elif share < _LOSS:
        problems.append(
            f"only {share:.0%} of the images of {state.topic} arrive, judged by their stamps: start the camera driver "
            "with FASTRTPS_DEFAULT_PROFILES_FILE set to this package's config/fastdds.xml"
        )
    values = {
        "topic": state.topic,
        "publishers": state.publishers,
        "reliability": state.reliability,
        "offered reliability": ", ".join(state.offered),
        "image": monitor.description,
        "rate (Hz)": f"{rate:.1f}",
        "age (s)": f"{age_s:.3f}",
        "received": monitor.received,
    }
    return _status(f"{camera} input", problems, f"{rate:.1f} Hz", values)


def pairing_status(policy: str, now: Counters, before: Counters, period_ns: int | None) -> DiagnosticStatus:
    """Return the status of pairing. now, before: counters at this and the last diagnosis. period_ns: thermal's."""
    problems = []
    decided = (now.paired + now.alone) - (before.paired + before.alone)
    share = (now.paired - before.paired) / decided if decided else 1.0
    thermal_came = now.thermal_received > before.thermal_received
    if share < 0.5 and thermal_came:
        problems.append(
            f"only {share:.0%} of the RGB images find a thermal partner: see that both cameras stamp with one clock, "
            "and set pairing.offset_s or pairing.tolerance_s"
        )
    values = {
        "policy": policy,
        "paired": now.paired,
        "alone": now.alone,
        "paired share of the last second": f"{share:.3f}",
        "late": now.late,
        "time jumps": now.time_jumps,
        "thermal period (ms)": "" if period_ns is None else f"{period_ns / 1e6:.1f}",
    }
    return _status("pairing", problems, f"{share:.0%} paired", values)


def inference_status(students: Sequence[StudentState], timings: Timings, rgb_rate_hz: float) -> DiagnosticStatus:
    """Return the status of the students."""
    problems = []
    values: dict[str, object] = {}
    for student in students:
        if student.provider == CPU_PROVIDER and student.asked[0].lower() not in ("auto", "cpu", CPU_PROVIDER.lower()):
            problems.append(
                f"student {student.name} runs on the CPU though {student.asked[0]} was asked for: see the log for what "
                "that provider lacks"
            )
        if not student.seen_real_images:
            problems.append(
                f"student {student.name} has never seen a real image: use it to try the package out, and train one for "
                "your cameras (student.file)"
            )
        values[f"{student.mode.name} student"] = student.name
        values[f"{student.mode.name} run id"] = student.run_id
        values[f"{student.mode.name} provider"] = student.provider
        values[f"{student.mode.name} precision"] = student.precision
    period_ms = 1000 / rgb_rate_hz if rgb_rate_hz else float("inf")
    if timings.cycle.p50_ms > period_ms:  # not so while there is none: NaN
        problems.append(
            f"a frame takes {timings.cycle.p50_ms:.0f} ms but the camera sends one every {period_ms:.0f} ms, so that "
            "frames are dropped: use a faster provider or a smaller student, or lower the camera's rate"
        )
    for name, times in (("inference", timings.inference), ("whole frame", timings.cycle)):
        values[f"{name} p50/p95/p99 (ms)"] = f"{times.p50_ms:.1f} / {times.p95_ms:.1f} / {times.p99_ms:.1f}"
    return _status("inference", problems, ", ".join(f"{s.name} on {s.provider}" for s in students), values)


def mode_status(mode: Mode, reason: str, now: Counters, before: Counters) -> DiagnosticStatus:
    """Return the status of the operating mode and the counters.

    reason: why it is STALE, with the cure. now, before: as in pairing_status.
    """
    problems = [reason] if mode == Mode.STALE else []
    if now.rejected > before.rejected:
        problems.append(
            f"{now.rejected - before.rejected} RGB images could not be processed in the last second: the log says why"
        )
    values = {"mode": mode.name, **{name: getattr(now, name) for name in _COUNTERS}}
    return _status("mode", problems, mode.name, values)


def diagnostic_array(stamp: Time, node_name: str, statuses: Iterable[DiagnosticStatus]) -> DiagnosticArray:
    """Return the message for /diagnostics: statuses named after the node."""
    message = DiagnosticArray(status=list(statuses))
    message.header.stamp = stamp
    for status in message.status:
        status.name = f"{node_name}: {status.name}"
        status.hardware_id = node_name
    return message


_COUNTERS = ("received", "processed", "dropped", "unpaired", "rejected", "waiting")


def _status(name: str, problems: list[str], summary: str, values: Mapping[str, object]) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=DiagnosticStatus.WARN if problems else DiagnosticStatus.OK,
        name=name,
        message="; ".join(problems) or summary,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
