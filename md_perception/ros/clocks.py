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


def arrival_clock(node: Node) -> tuple[Callable[[], int], float | None]:
    """Return the clock for the node's inputs, and how often it has to be polled (None: it runs steadily)."""
    if node.get_parameter("use_sim_time").value:
        return SimulatedClock(lambda: int(node.get_clock().now().nanoseconds)), SIMULATED_POLL_S
    return time.monotonic_ns, None
