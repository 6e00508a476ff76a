"""What goes out on /diagnostics: plain functions from what the node knows to statuses, every warning with its cure.

diagnostic_updater is not used: its tasks take the wall clock under use_sim_time, and it is not everywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from md_perception.intake import Counters
from md_perception.results import Mode
from md_perception.ros.navigation import ObstacleReport
from md_perception.ros.qos import InputState
from md_perception.ros.worker import Timings
from md_perception.sensing.health import CameraReport, Fault
from md_perception.sensing.misalignment import Misalignment

PERIOD_S = 1.0

_LOSS = 0.6
"""Below this share of the images that their stamps promise, the transport is suspected."""

_OLD_S = 10.0
"""Images that keep coming with stamps further in the past than this are not late, but of no use."""

NO_CLOCK = (
    "use_sim_time is true but nobody publishes /clock, so that the node's time stands still: play the bag with /clock "
    "(`ros2 bag play --clock 100`, `md_bag play`), or start the node with use_sim_time false"
)

CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class StudentState:
    """A student in service, for diagnostics.

    mode: that it serves. asked: providers of the parameters. provider: the one in use. loaded_on: the one that it was
    loaded on. unavailable: why the preferred ones do not work here.
    """

    name: str
    run_id: str
    mode: Mode
    provider: str
    precision: str
    asked: tuple[str, ...]
    seen_real_images: bool
    loaded_on: str = ""
    unavailable: tuple[str, ...] = ()


def input_status(camera: str, state: InputState, report: CameraReport, age_s: float) -> DiagnosticStatus:
    """Return the status of one camera, ERROR where no images come. age_s: of the newest stamp."""
    problems = []
    rate, share = report.rate_hz, report.arrived_share
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
    if age_s > _OLD_S and rate > 0.0 and Fault.SILENT not in report.faults:
        problems.append(
            f"the stamps of {state.topic} lie {age_s:.0f} s in the past: let the driver stamp its images with this "
            "machine's clock (0 is no time), or, where a bag is played, start the node with use_sim_time"
        )
    problems += [
        f"{state.topic}: {fault.value}: {text}"
        for fault, text in report.faults.items()
        if not (problems and fault in (Fault.SILENT, Fault.SLOW))  # the cause is told already
    ]
    error = rate == 0.0 or Fault.SILENT in report.faults
    values = {
        "topic": state.topic,
        "publishers": state.publishers,
        "reliability": state.reliability,
        "offered reliability": ", ".join(state.offered),
        "image": "" if report.form is None else str(report.form),
        "frame id": "" if report.form is None else report.form.frame_id,
        "rate (Hz)": f"{rate:.1f}",
        "age (s)": f"{age_s:.3f}",
        "received": report.received,
        "faults": ", ".join(fault.value for fault in report.faults),
    }
    return _status(f"{camera} input", problems, f"{rate:.1f} Hz", values, error=error)


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
            reasons = "; ".join(student.unavailable) or "see the log for what that provider lacks"
            problems.append(
                f"student {student.name} runs on the CPU though {student.asked[0]} was asked for: {reasons}"
            )
        elif student.loaded_on not in ("", student.provider):
            problems.append(
                f"student {student.name} was loaded on {student.loaded_on} and fell back to {student.provider} while "
                "it ran: see the log and the memory of the GPU; cleanup and configure load it anew"
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
        values[f"{student.mode.name} unavailable"] = "; ".join(student.unavailable)
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
    """Return the status of the operating mode, ERROR while it is STALE, and the counters.

    reason: why it is STALE or less than it could be, with the cure, "" if it is not. now, before: as in pairing_status.
    """
    problems = [reason] if reason else []
    for camera, rejected in (
        ("RGB", now.rejected - before.rejected),
        ("thermal", now.thermal_rejected - before.thermal_rejected),
    ):
        if rejected > 0:
            problems.append(f"{rejected} {camera} images could not be processed in the last second: the log says why")
    values = {"mode": mode.name, **{name: getattr(now, name) for name in _COUNTERS}}
    return _status("mode", problems, mode.name, values, error=mode is Mode.STALE)


def registration_status(
    source: str, warnings: Sequence[str], seen: Misalignment | None, waits: bool = False
) -> DiagnosticStatus:
    """Return the status of the registration.

    source: of the matrix. seen: what the monitor said last, None: nothing. waits: it had no new pair since.
    """
    problems = list(warnings)
    values: dict[str, object] = {"source": source, "checks": 0 if seen is None else seen.checks}
    summary = "not compared yet"
    if seen is not None:
        shift = f"{seen.shift_px[0]:+.1f}, {seen.shift_px[1]:+.1f}" if seen.known else ""
        values |= {"thermal shift (px)": shift, "distinctness": f"{seen.distinctness:.1f}", "new pairs": not waits}
        summary = "in register" if seen.known else "the images show too few common edges to tell"
        summary += ", when last compared: no new pair since" if waits else ""
        if seen.drifted:
            problems.append(
                f"thermal lies {seen.shift_px[0]:+.1f}, {seen.shift_px[1]:+.1f} px (right, down) off where the "
                "registration expects it: see whether a camera has moved in its mount, and run md_calibrate again"
            )
    return _status("registration", problems, summary, values)


def obstacles_status(report: ObstacleReport, mode: Mode) -> DiagnosticStatus:
    """Return the status of the obstacles in metres, where some are wanted. mode: STALE, of an old report."""
    values = {"source": report.source, "published": report.published}
    if mode is Mode.STALE:
        return _status("obstacles", [], "not published: there are no results, see mode", values)
    summary = "published" if report.listened_to else "not published: no result yet, or nobody subscribes"
    return _status("obstacles", list(report.problems), summary, values)


def clock_status(publishers: int, stands_s: float) -> DiagnosticStatus:
    """Return the status of /clock, for use_sim_time. publishers: of /clock. stands_s: since it last moved."""
    problems = [] if publishers else [NO_CLOCK]
    values = {"publishers of /clock": publishers, "stands still (s)": f"{stands_s:.1f}"}
    return _status("clock", problems, "paused" if stands_s > 1.0 else "running", values)


def failure_status(reason: str) -> DiagnosticStatus:
    """Return the last status before ErrorProcessing."""
    text = f"{reason}; the node is unconfigured now: mend the cause, then configure and activate it again"
    return DiagnosticStatus(level=DiagnosticStatus.ERROR, name="mode", message=text)


def diagnostic_array(stamp: Time, node_name: str, statuses: Iterable[DiagnosticStatus]) -> DiagnosticArray:
    """Return the message for /diagnostics: statuses named after the node."""
    message = DiagnosticArray(status=list(statuses))
    message.header.stamp = stamp
    for status in message.status:
        status.name = f"{node_name}: {status.name}"
        status.hardware_id = node_name
    return message


_COUNTERS = (
    "received",
    "processed",
    "dropped",
    "unpaired",
    "rejected",
    "waiting",
    "thermal_received",
    "thermal_processed",
    "thermal_dropped",
    "thermal_rejected",
    "thermal_waiting",
)


def _status(
    name: str, problems: list[str], summary: str, values: Mapping[str, object], *, error: bool = False
) -> DiagnosticStatus:
    """error: that the problems, if there are any, leave the vehicle blind."""
    bad = DiagnosticStatus.ERROR if error else DiagnosticStatus.WARN
    return DiagnosticStatus(
        level=bad if problems else DiagnosticStatus.OK,
        name=name,
        message="; ".join(problems) or summary,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
