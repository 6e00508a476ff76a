"""The clock by which inputs age and wait: steady on a vehicle, simulated time in a replay, never going back."""

import threading
import time
from collections.abc import Callable

from rclpy.node import Node

SIMULATED_POLL_S = 0.005
"""How often to look at a simulated clock, which nothing announces."""


class SimulatedClock:
    """The node's simulated time, ns, with its jumps backwards (a bag that loops) taken out. Thread-safe.

    With it a replay at half speed waits twice as long for a partner and gives the same pairs, and a paused one does
    not grow stale.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._last_ns = 0
        self._back_ns = 0

    def __call__(self) -> int:
        """Return the time."""
        with self._lock:
            now_ns = self._now_ns()
            self._back_ns += max(self._last_ns - now_ns, 0)
            self._last_ns = now_ns
            return now_ns + self._back_ns


class Metronome:
    """Says when something regular is due by the node's clock; while that stands still (paused, or missing), by ours."""

    def __init__(self, period_s: float) -> None:
        self._period_ns = round(period_s * 1e9)
        self._last: tuple[int, int] | None = None
        self._seen_ns: int | None = None
        self._moved_ns = 0

    def due(self, now_ns: int, steady_ns: int) -> bool:
        """Return whether it is due now, a period after the first look or after it was due last.

        now_ns: the node's clock. steady_ns: a steady one.
        """
        if now_ns != self._seen_ns:
            self._seen_ns, self._moved_ns = now_ns, steady_ns
        if self._last is None:
            self._last = now_ns, steady_ns
            return False
        last_ns, last_steady_ns = self._last
        passed = not 0 <= now_ns - last_ns < self._period_ns  # a clock that went back counts as well
        if not passed and steady_ns - max(last_steady_ns, self._moved_ns) < self._period_ns:
            return False
        self._last = now_ns, steady_ns
        return True

    def stands_s(self, steady_ns: int) -> float:
        """Return for how long the node's clock has stood still."""
        return (steady_ns - self._moved_ns) / 1e9


def arrival_clock(node: Node) -> tuple[Callable[[], int], float | None]:
    """Return the clock for the node's inputs, and how often it has to be polled (None: it runs steadily)."""
    if node.get_parameter("use_sim_time").value:
        clock = node.get_clock()  # and not the node, which has to be able to go before what reads its clock
        return SimulatedClock(lambda: int(clock.now().nanoseconds)), SIMULATED_POLL_S
    return time.monotonic_ns, None
