"""What lies between the subscriptions and the worker: pairing, mode, the small queue of decided frames, the counting.

No ROS in here. Callbacks add undecoded messages, one worker takes; every RGB message that came in is at any time
counted as exactly one of processed, dropped, unpaired, rejected, or it still waits:
received = processed + dropped + unpaired + rejected + waiting.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from md_perception.results import Mode
from md_perception.sensing.health import HealthSettings, ModeSelector
from md_perception.sensing.pairing import Paired, PairingCounters, PairingSettings, StampedMessage, Unpaired

Decided = Paired[StampedMessage] | Unpaired[StampedMessage]

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
    """A frame for the worker. thermal: None for the visible-only student. waited_ns: from arrival to its partner."""

    rgb: StampedMessage
    thermal: StampedMessage | None
    waited_ns: int


@dataclass(frozen=True)
class Counters:
    """What became of the RGB frames since activation, and how pairing went.

    unpaired: without a partner and without a student that could take them alone. alone: without a partner, whatever
    became of them then.
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


class Intake:
    """Thread-safe: callbacks call `add_*`; one worker calls `take` and then `processed` or `rejected` for what it got.

    pairing: the policy. selector: decides the mode. depth: decided frames that are held for the worker.
    clock_ns: never goes back; the arrival stamps of the messages are of this clock. poll_s: None where clock_ns runs
    at the pace of a steady clock; otherwise how often `take` looks at it.
    """

    def __init__(
        self,
        pairing: Pairing,
        selector: ModeSelector,
        *,
        depth: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        poll_s: float | None = None,
    ) -> None:
        self._pairing = pairing
        self._selector = selector
        self._depth = depth
        self._clock_ns = clock_ns
        self._poll_s = poll_s
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._arrivals: deque[int] = deque(maxlen=_ARRIVALS)
        self._counters = Counters()
        self._in_work = 0
        self._taken_ns: int | None = None
        self._closed = False

    def add_rgb(self, frame: StampedMessage) -> None:
        """Take in an RGB message and wake the worker."""
        with self._changed:
            if self._closed:
                return
            self._arrivals.append(frame.arrival_ns)
            self._selector.rgb_arrived(frame.arrival_ns)
            self._pairing.add_rgb(frame, frame.arrival_ns)
            self._decide()
            self._changed.notify_all()  # even if the frame only waits: the worker has a deadline to sleep to now

    def add_thermal(self, frame: StampedMessage) -> None:
        """Take in a thermal message and wake the worker."""
        with self._changed:
            if self._closed:
                return
            self._selector.thermal_arrived(frame.arrival_ns)
            self._pairing.add_thermal(frame, frame.arrival_ns)
            self._decide()
            self._changed.notify_all()

    def take(self, *, wait: bool = True) -> Job | None:
        """Return the next frame to process, None when closed (or, without waiting, when there is none).

        While the worker keeps up with the camera (its last cycle took less than an RGB period) that is the oldest of
        the queue, so that a short hiccup loses nothing; otherwise the newest, and the others are dropped.
        """
        cycle_ns = None if self._taken_ns is None else self._clock_ns() - self._taken_ns
        with self._changed:
            while not self._closed:
                self._decide()
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
            for _ in self._pairing.flush(self._clock_ns()):
                self._count("dropped")
            self._changed.notify_all()

    def mode(self) -> Mode:
        """Return the operating mode now."""
        with self._changed:
            return self._selector.mode(self._clock_ns())

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
                waiting=self._pairing.waiting + len(self._queue) + self._in_work,
                paired=pairing.paired,
                alone=pairing.unpaired,
                thermal_received=pairing.thermal_received,
                late=pairing.late,
                time_jumps=pairing.time_jumps,
            )

    def _decide(self) -> None:
        """Move decided frames into the queue, for the student of the mode that holds at that moment."""
        now_ns = self._clock_ns()
        for decided in self._pairing.take(now_ns):
            paired = isinstance(decided, Paired)
            self._selector.pivot_decided(paired, now_ns)
            mode = self._selector.mode(now_ns)
            if isinstance(decided, Unpaired) and decided.reason == "late":
                self._count("unpaired")  # overtaken: a newer frame went out already
            elif mode is Mode.VISIBLE_ONLY:
                self._queue.append(Job(decided.rgb, None, decided.waited_ns))
            elif isinstance(decided, Paired) and mode is Mode.FUSED:
                self._queue.append(Job(decided.rgb, decided.thermal, decided.waited_ns))
            else:
                self._count("unpaired")
        self._drop(len(self._queue) - self._depth)

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
        if not keeps_up:
            self._drop(len(self._queue) - 1)
        self._in_work = 1
        self._taken_ns = self._clock_ns()
        return self._queue.popleft()

    def _rgb_period_ns(self) -> float | None:
        if len(self._arrivals) < 2:
            return None
        return (self._arrivals[-1] - self._arrivals[0]) / (len(self._arrivals) - 1)

    def _drop(self, number: int) -> None:
        """Drop the oldest frames of the queue."""
        for _ in range(number):
            self._queue.popleft()
            self._count("dropped")

    def _end(self, name: str) -> None:
        with self._changed:
            if not self._in_work:
                raise RuntimeError(f"no frame is in work that could be counted as {name}")
            self._in_work = 0
            self._count(name)

    def _count(self, name: str) -> None:
        self._counters = replace(self._counters, **{name: getattr(self._counters, name) + 1})
