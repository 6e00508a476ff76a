"""Pairing of two cameras that nobody synchronises: every RGB frame is a pivot and gets the nearest thermal frame.

Pure logic: no ROS, no threads, no clock of its own. Frames are anything with a `stamp_ns`; the caller locks.
"""

from bisect import bisect_left, insort_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, Literal, Protocol, TypeVar

Policy = Literal["nearest", "approximate", "exact"]
"""How partners are found: `nearest` is `NearestPairing`; the others are the synchronizers of message_filters."""

UnpairedReason = Literal["no_partner", "waited", "time_jump", "late", "overflow"]
"""Why an RGB frame has no partner: `no_partner`, the nearest thermal frame is known and farther than the tolerance;
`waited`, none came in time; `time_jump`, the clock went back while it waited; `late`, it came after a newer frame had
been decided; `overflow`, more frames waited than the buffer holds."""

_PERIOD_SAMPLES = 15


class Stamped(Protocol):
    """What can be paired."""

    @property
    def stamp_ns(self) -> int:
        """Header stamp, ns."""


FrameT = TypeVar("FrameT", bound=Stamped)


@dataclass(frozen=True)
class StampedMessage:
    """An undecoded image message, as it waits in the buffers: only frames that are processed are decoded.

    stamp_ns: header stamp. arrival_ns: steady clock at reception.
    """

    message: Any
    stamp_ns: int
    arrival_ns: int = 0


@dataclass(frozen=True)
class PairingSettings:
    """Bounds of pairing, nanoseconds.

    tolerance_ns: largest distance of partners, inclusive. offset_ns: added to thermal stamps (a camera that stamps late
    has a negative one). max_wait_ns: longest that an RGB frame waits for a partner after its arrival.
    jump_ns: a stamp that lies further back than this behind its camera's newest is a jump of time (a looping bag, a
    clock that was set), not a frame that was overtaken. capacity: most frames of each camera that are held.
    """

    tolerance_ns: int = 60_000_000
    offset_ns: int = 0
    max_wait_ns: int = 150_000_000
    jump_ns: int = 500_000_000
    capacity: int = 32

    def __post_init__(self) -> None:
        if self.tolerance_ns < 0 or self.max_wait_ns < 0 or self.jump_ns < 0:
            raise ValueError(f"pairing tolerance, wait and jump must not be negative: {self}")
        if self.capacity < 1:
            raise ValueError(f"pairing capacity must be at least 1, got {self.capacity}")


@dataclass(frozen=True)
class Paired(Generic[FrameT]):
    """An RGB frame and its thermal partner.

    offset_ns: thermal stamp + constant offset - RGB stamp. waited_ns: from arrival to decision.
    """

    rgb: FrameT
    thermal: FrameT
    offset_ns: int
    waited_ns: int


@dataclass(frozen=True)
class Unpaired(Generic[FrameT]):
    """An RGB frame that gets no partner. waited_ns: from arrival to decision."""

    rgb: FrameT
    reason: UnpairedReason
    waited_ns: int


@dataclass
class PairingCounters:
    """Since construction. rgb_received = paired + unpaired + those that still wait or were not taken yet."""

    rgb_received: int = 0
    thermal_received: int = 0
    paired: int = 0
    unpaired: int = 0
    late: int = 0
    """RGB frames, of the unpaired, that came after a newer one had been decided."""
    thermal_duplicates: int = 0
    """Thermal frames with a stamp that was there already; the newest counts."""
    time_jumps: int = 0


@dataclass
class _Waiting(Generic[FrameT]):
    frame: FrameT
    arrival_ns: int


@dataclass
class NearestPairing(Generic[FrameT]):
    """Gives each RGB frame the nearest thermal frame within the tolerance, and every RGB frame back exactly once.

    A pivot is decided
    - at once when a thermal frame at hand is within the tolerance and within half a thermal period (no frame to come is
      nearer; the period is the median of the last thermal stamp distances),
    - when a thermal frame with its stamp or a later one is there (the nearest is then known),
    - or when it has waited `max_wait_ns`.
    """

    settings: PairingSettings = field(default_factory=PairingSettings)
    counters: PairingCounters = field(default_factory=PairingCounters, init=False)

    def __post_init__(self) -> None:
        self._waiting: list[_Waiting[FrameT]] = []  # by stamp
        self._thermal: list[FrameT] = []  # by stamp
        self._decided: deque[Paired[FrameT] | Unpaired[FrameT]] = deque()
        self._periods: deque[int] = deque(maxlen=_PERIOD_SAMPLES)
        self._newest_rgb_ns: int | None = None
        self._newest_thermal_ns: int | None = None
        self._newest_decided_ns: int | None = None

    def add_rgb(self, frame: FrameT, now_ns: int) -> None:
        """Take in an RGB frame. now_ns: a steady clock, the same for all calls."""
        self.counters.rgb_received += 1
        if self._jumped_back(frame.stamp_ns, self._newest_rgb_ns):
            self._reset(now_ns)
        self._newest_rgb_ns = _newest(self._newest_rgb_ns, frame.stamp_ns)
        waiting = _Waiting(frame, now_ns)
        if self._newest_decided_ns is not None and frame.stamp_ns < self._newest_decided_ns:
            self.counters.late += 1
            self._give_up(waiting, "late", now_ns)
            return
        insort_right(self._waiting, waiting, key=lambda item: item.frame.stamp_ns)
        if len(self._waiting) > self.settings.capacity:
            self._decide(self._waiting.pop(0), now_ns, otherwise="overflow")

    def add_thermal(self, frame: FrameT, now_ns: int) -> None:
        """Take in a thermal frame. now_ns: as in add_rgb."""
        self.counters.thermal_received += 1
        if self._jumped_back(frame.stamp_ns, self._newest_thermal_ns):
            self._reset(now_ns)
        if self._newest_thermal_ns is not None and frame.stamp_ns > self._newest_thermal_ns:
            self._periods.append(frame.stamp_ns - self._newest_thermal_ns)
        self._newest_thermal_ns = _newest(self._newest_thermal_ns, frame.stamp_ns)
        at = bisect_left(self._thermal, frame.stamp_ns, key=_stamp)
        if at < len(self._thermal) and self._thermal[at].stamp_ns == frame.stamp_ns:
            self.counters.thermal_duplicates += 1
            self._thermal[at] = frame
        else:
            self._thermal.insert(at, frame)
        if len(self._thermal) > self.settings.capacity:
            self._decide_known(now_ns)  # before the oldest, which may be somebody's partner, goes
            del self._thermal[0]

    def take(self, now_ns: int) -> list[Paired[FrameT] | Unpaired[FrameT]]:
        """Return the pivots that are decided by now, each once, in the order of their stamps.

        (After a jump of time the order starts anew; a late frame comes when it comes.)
        """
        self._decide_known(now_ns)
        return self._drain()

    def flush(self, now_ns: int) -> list[Paired[FrameT] | Unpaired[FrameT]]:
        """Decide every waiting pivot with what is at hand (the end of a bag) and return all, as `take` does."""
        for waiting in self._waiting:
            self._decide(waiting, now_ns, otherwise="no_partner")
        self._waiting.clear()
        return self._drain()

    def deadline_ns(self) -> int | None:
        """Return when, on the caller's clock, the oldest waiting pivot will have waited enough; None: nobody waits."""
        return self._waiting[0].arrival_ns + self.settings.max_wait_ns if self._waiting else None

    @property
    def waiting(self) -> int:
        """Number of RGB frames that came in and were not taken yet."""
        return len(self._waiting) + len(self._decided)

    @property
    def thermal_period_ns(self) -> int | None:
        """Median distance of the last thermal stamps; None until there are enough to tell."""
        return round(median(self._periods)) if len(self._periods) >= 3 else None

    def _decide_known(self, now_ns: int) -> None:
        """Decide pivots, oldest first, up to the first that has reason to wait (so the order is kept)."""
        decided = 0
        for waiting in self._waiting:
            waited = now_ns - waiting.arrival_ns >= self.settings.max_wait_ns
            if not waited and not self._nearest_is_known(waiting.frame):
                break
            self._decide(waiting, now_ns, otherwise="waited" if waited else "no_partner")
            decided += 1
        del self._waiting[:decided]
        self._forget_old_thermal()

    def _nearest_is_known(self, pivot: FrameT) -> bool:
        if not self._thermal:
            return False
        newest_ns = self._thermal[-1].stamp_ns + self.settings.offset_ns
        if newest_ns >= pivot.stamp_ns:
            return True
        period_ns, behind_ns = self.thermal_period_ns, pivot.stamp_ns - newest_ns
        return period_ns is not None and behind_ns <= min(self.settings.tolerance_ns, period_ns / 2)

    def _decide(self, waiting: _Waiting[FrameT], now_ns: int, otherwise: UnpairedReason) -> None:
        pivot = waiting.frame
        partner = self._nearest(pivot.stamp_ns - self.settings.offset_ns)
        offset_ns = 0 if partner is None else partner.stamp_ns + self.settings.offset_ns - pivot.stamp_ns
        if partner is None or abs(offset_ns) > self.settings.tolerance_ns:
            self._give_up(waiting, otherwise, now_ns)
            return
        self.counters.paired += 1
        self._newest_decided_ns = _newest(self._newest_decided_ns, pivot.stamp_ns)
        self._decided.append(Paired(pivot, partner, offset_ns, now_ns - waiting.arrival_ns))

    def _give_up(self, waiting: _Waiting[FrameT], reason: UnpairedReason, now_ns: int) -> None:
        self.counters.unpaired += 1
        self._newest_decided_ns = _newest(self._newest_decided_ns, waiting.frame.stamp_ns)
        self._decided.append(Unpaired(waiting.frame, reason, now_ns - waiting.arrival_ns))

    def _nearest(self, stamp_ns: int) -> FrameT | None:
        """Return the thermal frame nearest to a thermal stamp, the earlier of two equally near ones."""
        at = bisect_left(self._thermal, stamp_ns, key=_stamp)
        neighbours: Iterable[FrameT] = self._thermal[max(at - 1, 0) : at + 1]
        return min(neighbours, key=lambda frame: abs(frame.stamp_ns - stamp_ns), default=None)

    def _forget_old_thermal(self) -> None:
        """Drop thermal frames that no pivot to come can want; the newest stays, its period is of use."""
        oldest_ns = self._waiting[0].frame.stamp_ns if self._waiting else self._newest_decided_ns
        if oldest_ns is None:
            return
        wanted_from = oldest_ns - self.settings.tolerance_ns - self.settings.offset_ns
        useless = bisect_left(self._thermal, wanted_from, key=_stamp)
        del self._thermal[: min(useless, len(self._thermal) - 1)]

    def _jumped_back(self, stamp_ns: int, newest_ns: int | None) -> bool:
        return newest_ns is not None and stamp_ns < newest_ns - self.settings.jump_ns

    def _reset(self, now_ns: int) -> None:
        """Start anew after a jump of time; what waited can no longer find a partner."""
        self.counters.time_jumps += 1
        for waiting in self._waiting:
            self._give_up(waiting, "time_jump", now_ns)
        self._waiting.clear()
        self._thermal.clear()
        # The other camera will jump too: without its newest stamp that is not a second jump.
        self._newest_rgb_ns = self._newest_thermal_ns = self._newest_decided_ns = None

    def _drain(self) -> list[Paired[FrameT] | Unpaired[FrameT]]:
        decided = list(self._decided)
        self._decided.clear()
        return decided


def _stamp(frame: Stamped) -> int:
    return frame.stamp_ns


def _newest(newest_ns: int | None, stamp_ns: int) -> int:
    return stamp_ns if newest_ns is None else max(newest_ns, stamp_ns)
