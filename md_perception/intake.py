"""What lies between the subscriptions and the worker: pairing, health, mode, the queue of decided frames, the counting.

No ROS in here. Callbacks add undecoded messages, one worker takes; every RGB message that came in is at any time
counted as exactly one of processed, dropped, unpaired, rejected, or it still waits:
received = processed + dropped + unpaired + rejected + waiting.
Thermal messages are counted likewise where they are processed by themselves, in THERMAL_ONLY.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from md_perception.results import Camera, Mode
from md_perception.sensing.health import (
    INSPECTION_PERIOD_S,
    JUMP_S,
    CameraReport,
    Content,
    HealthSettings,
    ImageForm,
    ModeSelector,
)
from md_perception.sensing.pairing import (
    Paired,
    PairingCounters,
    PairingSettings,
    StampedMessage,
    Unpaired,
    UnpairedReason,
)

Decided = Paired[StampedMessage] | Unpaired[StampedMessage]

Alone = UnpairedReason | Literal["mode", "stale"]
"""Why an RGB frame goes on without a partner, or goes nowhere: pairing found none; the mode does not want one; there is
one, but no mode that takes it."""

TICK_S = 0.05
"""How often the mode is looked at, and whether something regular is due."""

IDLE_PERIOD_S = 0.25
"""Period of the status in STALE."""

REJECTED_IN_A_ROW = 3
"""Rejected frames in a row after which nothing usable can be said to come in: the mode is STALE then."""

_ARRIVALS = 16
"""Arrivals over which the RGB period is averaged."""


class Pairing(Protocol):
    """A pairing policy; sensing.pairing.NearestPairing is the model."""

    settings: PairingSettings
    counters: PairingCounters

    def add_rgb(self, frame: StampedMessage, now_ns: int) -> None:
        """Take in an RGB frame."""

    def add_thermal(self, frame: StampedMessage, now_ns: int) -> None:
        """Take in a thermal frame."""

    def take(self, now_ns: int) -> list[Decided]:
        """Return what is decided by now."""

    def flush(self, now_ns: int) -> list[Decided]:
        """Decide all that waits."""

    def deadline_ns(self) -> int | None:
        """Return when the oldest waiting frame has waited enough."""

    @property
    def waiting(self) -> int:
        """Number of RGB frames that came in and were not taken yet."""

    @property
    def thermal_period_ns(self) -> int | None:
        """Distance of thermal stamps; None: unknown."""


@dataclass(frozen=True)
class Job:
    """A frame for the worker, and the mode whose student takes it.

    rgb: None in THERMAL_ONLY. thermal: None in VISIBLE_ONLY. waited_ns: from arrival to its partner.
    alone: why it has no partner, "" with one: what pairing said, or `mode` where nobody waited for one.
    """

    mode: Mode
    rgb: StampedMessage | None
    thermal: StampedMessage | None
    waited_ns: int
    alone: Alone | Literal[""] = ""

    @property
    def stamp_ns(self) -> int:
        """Stamp of the image that the result will belong to."""
        frame = self.rgb or self.thermal
        assert frame is not None
        return frame.stamp_ns


@dataclass(frozen=True)
class Inspection:
    """An image for the worker to look at, whether it sees something and lives."""

    camera: Camera
    frame: StampedMessage


@dataclass(frozen=True)
class Counters:
    """What became of the RGB frames since activation, and how pairing went.

    unpaired: without a usable partner and without a student that could take them alone. alone: without a partner,
    whatever became of them then. thermal_processed and below: of the thermal frames, in THERMAL_ONLY.
    """

    received: int = 0
    processed: int = 0
    dropped: int = 0
    unpaired: int = 0
    rejected: int = 0
    waiting: int = 0
    paired: int = 0
    alone: int = 0
    thermal_received: int = 0
    late: int = 0
    time_jumps: int = 0
    thermal_processed: int = 0
    thermal_dropped: int = 0
    thermal_rejected: int = 0
    thermal_waiting: int = 0


class Intake:
    """Thread-safe: callbacks call `add_*`; one worker calls `take`, and then `processed` or `rejected` for the job that
    it got, `inspected` for the inspection.

    pairing: the policy. selector: decides the mode. depth: decided frames that are held for the worker; None: all of
    them, and none is ever dropped for a slow one (the evaluation of bags).
    clock_ns: never goes back; the arrival stamps of the messages are of this clock. poll_s: None where clock_ns runs
    at the pace of a steady clock; otherwise how often `take` looks at it.
    unpaired: told of each RGB frame that no student gets, and why; called with the lock held.
    """

    def __init__(
        self,
        pairing: Pairing,
        selector: ModeSelector,
        *,
        depth: int | None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        poll_s: float | None = None,
        unpaired: Callable[[StampedMessage, Alone], None] = lambda frame, why: None,
    ) -> None:
        self._pairing = pairing
        self._selector = selector
        self._depth = depth
        self._clock_ns = clock_ns
        self._poll_s = poll_s
        self._tell_unpaired = unpaired
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        # RGB frames that are with the pairing and not yet with the worker, by identity: what has one student alone
        # does not wait for a partner, but goes through the pairing to see whether there are pairs again.
        self._undecided: dict[int, StampedMessage] = {}
        self._sent_ns: int | None = None  # stamp of the last RGB frame that went to the worker
        self._to_inspect: dict[Camera, StampedMessage] = {}
        self._inspected_ns: dict[Camera, int] = {}
        self._kept: StampedMessage | None = None  # the last good thermal frame of FUSED
        self._arrivals: deque[int] = deque(maxlen=_ARRIVALS)
        self._counters = Counters()
        self._in_work: Job | None = None
        self._taken_ns: int | None = None
        self._closed = False

    def add_rgb(self, frame: StampedMessage, form: ImageForm | None = None, age_s: float = 0.0) -> None:
        """Take in an RGB message and wake the worker.

        form: of the message; None: its picture is not to be inspected. age_s: the node's clock minus its stamp.
        """
        with self._changed:
            if self._closed:
                return
            self._arrivals.append(frame.arrival_ns)
            self._note("rgb", frame, form, age_s)
            self._undecided[id(frame)] = frame
            self._pairing.add_rgb(frame, frame.arrival_ns)
            self._decide()
            self._changed.notify_all()  # even if the frame only waits: the worker has a deadline to sleep to now

    def add_thermal(self, frame: StampedMessage, form: ImageForm | None = None, age_s: float = 0.0) -> None:
        """Take in a thermal message, as add_rgb does."""
        with self._changed:
            if self._closed:
                return
            self._note("thermal", frame, form, age_s)
            self._pairing.add_thermal(frame, frame.arrival_ns)
            self._decide()
            if self._selector.mode(self._clock_ns()) is Mode.THERMAL_ONLY:
                self._push(Job(Mode.THERMAL_ONLY, None, frame, 0, "mode"))
            self._changed.notify_all()

    def take(self, *, wait: bool = True) -> Job | Inspection | None:
        """Return the next frame to process, None when closed (or, without waiting, when there is none).

        Now and then an image to inspect, whatever becomes of its frame: while no frame waits, so that none is late for
        it, or else when that has been put off for half a period.
        While the worker keeps up with the camera (its last cycle took less than an RGB period) that is the oldest of
        the queue, so that a short hiccup loses nothing; otherwise the newest, and the others are dropped.
        """
        cycle_ns = None if self._taken_ns is None else self._clock_ns() - self._taken_ns
        with self._changed:
            while not self._closed:
                self._decide()
                if (inspection := self._due_inspection()) is not None:
                    return inspection
                if self._queue:
                    return self._next(cycle_ns)
                if not wait:
                    break
                self._changed.wait(self._until_deadline_s())
        return None

    def processed(self) -> None:
        """Count the frame in work as processed: its result was published."""
        self._end("processed")

    def rejected(self) -> None:
        """Count the frame in work as rejected: it could not be decoded or processed."""
        self._end("rejected")

    def inspected(self, inspection: Inspection, content: Content) -> None:
        """Note what an inspection found."""
        frame = inspection.frame
        with self._changed:
            good = self._selector.camera(inspection.camera).inspected(content, frame.arrival_ns)
            mode = self._selector.mode(self._clock_ns())
            if good and inspection.camera == "thermal" and mode is Mode.FUSED:
                self._kept = frame
                self._selector.thermal_kept(frame.arrival_ns)

    def change(self, pairing: PairingSettings, health: HealthSettings) -> None:
        """Pair and select the mode by other settings from now on."""
        with self._changed:
            self._pairing.settings = pairing
            self._selector.settings = health
            self._changed.notify_all()

    def close(self) -> None:
        """End `take`; what waits is dropped, and what comes is ignored."""
        with self._changed:
            self._closed = True
            self._drop(len(self._queue))
            self._pairing.flush(self._clock_ns())
            for _ in self._undecided:
                self._count("dropped")
            self._undecided.clear()
            self._changed.notify_all()

    def mode(self) -> Mode:
        """Return the operating mode now."""
        with self._changed:
            return self._selector.mode(self._clock_ns())

    def report(self, camera: Camera) -> CameraReport:
        """Return what is known of a camera now."""
        with self._changed:
            return self._selector.camera(camera).report(self._clock_ns())

    def faults(self) -> tuple[str, ...]:
        """Return what is wrong with the cameras that are in use, as "camera: fault"."""
        with self._changed:
            now_ns = self._clock_ns()
            return tuple(
                f"{camera}: {fault.value}"
                for camera in self._selector.cameras_in_use
                for fault in self._selector.camera(camera).faults(now_ns)
            )

    def newest_stamp_ns(self, camera: Camera) -> int | None:
        """Return the newest stamp of a camera, None before its first image."""
        with self._changed:
            return self._selector.camera(camera).newest_stamp_ns

    def thermal_period_ns(self) -> int | None:
        """Return the distance of thermal stamps, None while it is unknown."""
        with self._changed:
            return self._pairing.thermal_period_ns

    def counters(self) -> Counters:
        """Return the counters, consistent with each other."""
        with self._changed:
            pairing = self._pairing.counters
            return replace(
                self._counters,
                received=pairing.rgb_received,
                waiting=len(self._undecided) + sum(job.rgb is not None for job in self._at_work()),
                thermal_waiting=sum(job.rgb is None for job in self._at_work()),
                paired=pairing.paired,
                alone=pairing.unpaired,
                thermal_received=pairing.thermal_received,
                late=pairing.late,
                time_jumps=pairing.time_jumps,
            )

    def _note(self, camera: Camera, frame: StampedMessage, form: ImageForm | None, age_s: float) -> None:
        self._selector.camera(camera).arrived(frame.arrival_ns, frame.stamp_ns, form, age_s)
        if form is not None:
            self._to_inspect[camera] = frame

    def _due_inspection(self) -> Inspection | None:
        least_ns = (1.5 if self._queue else 1.0) * INSPECTION_PERIOD_S * 1e9
        for camera, frame in self._to_inspect.items():
            last_ns = self._inspected_ns.get(camera)
            if last_ns is None or frame.arrival_ns - last_ns >= least_ns:
                self._inspected_ns[camera] = frame.arrival_ns
                del self._to_inspect[camera]
                return Inspection(camera, frame)
        return None

    def _decide(self) -> None:
        """Move decided frames into the queue, for the student of the mode that holds at that moment."""
        now_ns = self._clock_ns()
        for decided in self._pairing.take(now_ns):
            partner_ns = decided.thermal.arrival_ns if isinstance(decided, Paired) else None
            self._selector.pivot_decided(partner_ns is not None, now_ns, partner_ns)
            mode = self._selector.mode(now_ns)
            if self._undecided.pop(id(decided.rgb), None) is None:
                continue  # the worker has it already
            if isinstance(decided, Unpaired) and decided.reason == "late":
                self._give_up(decided.rgb, "late")  # overtaken: a newer frame went out already
            elif mode in (Mode.VISIBLE_ONLY, Mode.LAST_THERMAL):
                why = decided.reason if isinstance(decided, Unpaired) else "mode"
                self._push(self._alone(mode, decided.rgb, decided.waited_ns, why))
            elif isinstance(decided, Paired) and mode is Mode.FUSED:
                self._push(Job(mode, decided.rgb, decided.thermal, decided.waited_ns))
            else:
                self._give_up(decided.rgb, decided.reason if isinstance(decided, Unpaired) else "stale")
        mode = self._selector.mode(now_ns)
        if mode in (Mode.VISIBLE_ONLY, Mode.LAST_THERMAL):  # nobody there to wait for
            for frame in self._undecided.values():
                if self._is_overtaken(frame):
                    self._give_up(frame, "late")
                else:
                    self._push(self._alone(mode, frame, now_ns - frame.arrival_ns, "mode"))
            self._undecided.clear()

    def _give_up(self, rgb: StampedMessage, why: Alone) -> None:
        self._count("unpaired")
        self._tell_unpaired(rgb, why)

    def _alone(self, mode: Mode, rgb: StampedMessage, waited_ns: int, why: Alone) -> Job:
        return Job(mode, rgb, self._kept if mode is Mode.LAST_THERMAL else None, waited_ns, why)

    def _is_overtaken(self, frame: StampedMessage) -> bool:
        """Return whether a newer frame went to the worker already; not so after a jump of time."""
        return self._sent_ns is not None and 0 < self._sent_ns - frame.stamp_ns <= JUMP_S * 1e9

    def _push(self, job: Job) -> None:
        if job.rgb is not None:
            self._sent_ns = job.rgb.stamp_ns
        self._queue.append(job)
        if self._depth is not None:
            self._drop(len(self._queue) - self._depth)

    def _at_work(self) -> list[Job]:
        """Return the frames that are with the worker or wait for it."""
        return [*self._queue, *([self._in_work] if self._in_work else [])]

    def _until_deadline_s(self) -> float | None:
        """Return how long nothing can change by itself, at most; None: for ever."""
        deadline_ns = self._pairing.deadline_ns()
        if deadline_ns is None:
            return None
        remaining_s = max(deadline_ns - self._clock_ns(), 0) / 1e9
        return remaining_s if self._poll_s is None else min(remaining_s, self._poll_s)

    def _next(self, cycle_ns: int | None) -> Job:
        period_ns = self._rgb_period_ns()
        keeps_up = cycle_ns is None or period_ns is None or cycle_ns < period_ns
        if not keeps_up and self._depth is not None:
            self._drop(len(self._queue) - 1)
        self._in_work = self._queue.popleft()
        self._taken_ns = self._clock_ns()
        return self._in_work

    def _rgb_period_ns(self) -> float | None:
        if len(self._arrivals) < 2:
            return None
        return (self._arrivals[-1] - self._arrivals[0]) / (len(self._arrivals) - 1)

    def _drop(self, number: int) -> None:
        """Drop the oldest frames of the queue."""
        for _ in range(number):
            self._count("dropped", self._queue.popleft())

    def _end(self, name: str) -> None:
        with self._changed:
            if self._in_work is None:
                raise RuntimeError(f"no frame is in work that could be counted as {name}")
            self._count(name, self._in_work)
            self._in_work = None

    def _count(self, name: str, job: Job | None = None) -> None:
        """Count an end, of an RGB frame or of the job."""
        if job is not None and job.rgb is None:
            name = f"thermal_{name}"
        self._counters = replace(self._counters, **{name: getattr(self._counters, name) + 1})
