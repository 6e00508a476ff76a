"""Pairing policies `approximate` and `exact`: message_filters' own synchronizers behind the interface of our pairing.

For stacks that standardise on message_filters. It gives each thermal frame to at most one RGB frame, so beside a slower
thermal camera most RGB frames stay alone, and it says nothing of the frames that it gives up: here they are told by
their waiting time, so that every RGB frame comes out exactly once.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from builtin_interfaces.msg import Time

from md_perception.intake import Decided
from md_perception.sensing.pairing import Paired, PairingCounters, PairingSettings, StampedMessage, Unpaired

_NS_PER_S = 1_000_000_000


class _Header(NamedTuple):
    stamp: Time


@dataclass(frozen=True)
class _Filtered:
    """A frame as message_filters wants to see it; the header's stamp has the constant offset in it."""

    frame: StampedMessage
    header: _Header


class SynchronizerPairing:
    """Pairs with message_filters: `exact`, equal stamps; `approximate`, stamps within the tolerance, greedily.

    Both hold `settings.capacity` frames of each camera and have no clock: a frame without a partner after
    `settings.max_wait_ns` is given up. Raises ModuleNotFoundError, with the package to install, where message_filters
    is missing.
    """

    def __init__(self, policy: Literal["approximate", "exact"], settings: PairingSettings) -> None:
        try:
            import message_filters
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"pairing.policy {policy!r} needs message_filters, which is not installed: install "
                "ros-$ROS_DISTRO-message-filters (apt), or use pairing.policy 'nearest', which needs nothing"
            ) from None
        self._settings = settings
        self.counters = PairingCounters()
        self._message_filters = message_filters
        self._policy = policy
        self._waiting: dict[int, StampedMessage] = {}  # by stamp, oldest arrival first
        self._decided: list[Decided] = []
        self._newest_ns = {"rgb": 0, "thermal": 0}
        self._now_ns = 0
        self._connect()

    @property
    def settings(self) -> PairingSettings:
        """The bounds of pairing; new ones take effect on frames to come."""
        return self._settings

    @settings.setter
    def settings(self, settings: PairingSettings) -> None:
        if settings == self._settings:  # a new synchronizer knows no frame that waits
            return
        self._settings = settings
        self._connect()

    def add_rgb(self, frame: StampedMessage, now_ns: int) -> None:
        """Take in an RGB frame. now_ns: a steady clock, the same for all calls."""
        self.counters.rgb_received += 1
        self._now_ns = now_ns
        self._notice_jump("rgb", frame.stamp_ns)
        twin = self._waiting.pop(frame.stamp_ns, None)
        if twin is not None:  # message_filters keeps one frame a stamp
            self._give_up(twin, "overflow")
        self._waiting[frame.stamp_ns] = frame
        if len(self._waiting) > self.settings.capacity:
            self._give_up(self._waiting.pop(min(self._waiting)), "overflow")
        self._rgb.signalMessage(_Filtered(frame, _header(frame.stamp_ns)))

    def add_thermal(self, frame: StampedMessage, now_ns: int) -> None:
        """Take in a thermal frame. now_ns: as in add_rgb."""
        self.counters.thermal_received += 1
        self._now_ns = now_ns
        self._notice_jump("thermal", frame.stamp_ns)
        self._thermal.signalMessage(_Filtered(frame, _header(frame.stamp_ns + self.settings.offset_ns)))

    def take(self, now_ns: int) -> list[Decided]:
        """Return the RGB frames that are decided by now, each once."""
        self._now_ns = now_ns
        late = [s for s, f in self._waiting.items() if now_ns - f.arrival_ns >= self.settings.max_wait_ns]
        for stamp_ns in late:
            self._give_up(self._waiting.pop(stamp_ns), "waited")
        return self._drain()

    def flush(self, now_ns: int) -> list[Decided]:
        """Give up every waiting RGB frame and return all that is decided."""
        self._now_ns = now_ns
        self._give_up_all("no_partner")
        return self._drain()

    def deadline_ns(self) -> int | None:
        """Return when the oldest waiting frame has waited enough, on the caller's clock; None: nobody waits."""
        oldest = next(iter(self._waiting.values()), None)
        return None if oldest is None else oldest.arrival_ns + self.settings.max_wait_ns

    @property
    def waiting(self) -> int:
        """Number of RGB frames that came in and were not taken yet."""
        return len(self._waiting) + len(self._decided)

    @property
    def thermal_period_ns(self) -> int | None:
        """Not looked at by message_filters: None."""
        return None

    def _connect(self) -> None:
        """Make an empty synchronizer."""
        self._rgb, self._thermal = self._message_filters.SimpleFilter(), self._message_filters.SimpleFilter()
        inputs, capacity = [self._rgb, self._thermal], self.settings.capacity
        if self._policy == "exact":
            self._synchronizer = self._message_filters.TimeSynchronizer(inputs, capacity)
        else:
            # Its comparison is strict: one nanosecond more makes the tolerance inclusive, and 0 match equal stamps.
            slop_s = (self.settings.tolerance_ns + 1) / _NS_PER_S
            self._synchronizer = self._message_filters.ApproximateTimeSynchronizer(inputs, capacity, slop_s)
        self._synchronizer.registerCallback(self._on_pair)

    def _on_pair(self, rgb: _Filtered, thermal: _Filtered) -> None:
        # It may still hold a frame that was given up here: such a pair is not one any more. Nothing may be raised:
        # message_filters would keep its lock for ever.
        if self._waiting.get(rgb.frame.stamp_ns) is not rgb.frame:
            return
        del self._waiting[rgb.frame.stamp_ns]
        self.counters.paired += 1
        offset_ns = thermal.frame.stamp_ns + self.settings.offset_ns - rgb.frame.stamp_ns
        self._decided.append(Paired(rgb.frame, thermal.frame, offset_ns, self._now_ns - rgb.frame.arrival_ns))

    def _notice_jump(self, camera: str, stamp_ns: int) -> None:
        """Start anew when time went back: message_filters itself would prefer the stale, larger stamps."""
        if stamp_ns < self._newest_ns[camera] - self.settings.jump_ns:
            self.counters.time_jumps += 1
            self._give_up_all("time_jump")
            self._connect()
            self._newest_ns = {"rgb": 0, "thermal": 0}
        self._newest_ns[camera] = max(self._newest_ns[camera], stamp_ns)

    def _give_up_all(self, reason: Literal["no_partner", "time_jump"]) -> None:
        for frame in self._waiting.values():
            self._give_up(frame, reason)
        self._waiting.clear()

    def _give_up(self, frame: StampedMessage, reason: Literal["no_partner", "waited", "time_jump", "overflow"]) -> None:
        self.counters.unpaired += 1
        self._decided.append(Unpaired(frame, reason, self._now_ns - frame.arrival_ns))

    def _drain(self) -> list[Decided]:
        decided, self._decided = self._decided, []
        return decided


def _header(stamp_ns: int) -> _Header:
    seconds, nanoseconds = divmod(max(stamp_ns, 0), _NS_PER_S)
    return _Header(Time(sec=seconds, nanosec=nanoseconds))
