"""Latency percentiles over a rolling window, and the machine that they were measured on."""

import math
import os
import platform
from collections import deque
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Percentiles:
    """Nearest-rank percentiles of `count` values, in the values' unit (ms); NaN where there is none."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    count: int


class RollingLatency:
    """The last `window` latencies.

    Percentile q is the nearest rank: the smallest value seen that at least q percent of the values do not exceed, so it
    is always a latency that occurred, and p99 of fewer than 100 values is their maximum.
    """

    def __init__(self, window: int = 300) -> None:
        """Raise ValueError for a window of less than one value."""
        if window < 1:
            raise ValueError(f"a latency window holds at least one value, got {window}")
        self._values: deque[float] = deque(maxlen=window)

    def add(self, milliseconds: float) -> None:
        """Take in one latency; the oldest goes when the window is full."""
        self._values.append(milliseconds)

    def percentiles(self) -> Percentiles:
        """Return p50, p95 and p99 of what is in the window."""
        ordered = sorted(self._values)
        p50, p95, p99 = (nearest_rank(ordered, percent) for percent in (50, 95, 99))
        return Percentiles(p50, p95, p99, len(ordered))


def nearest_rank(ordered: list[float], percent: int) -> float:
    """Return the nearest-rank percentile of ascending values, NaN where there is none. percent: 1..100."""
    # -(-a // b) is the ceiling without a detour through floats, in which 0.95 * 20 may be more than 19.
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else math.nan


def processor() -> str:
    """Return the model of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux; the platform's own name will do
    return platform.processor() or platform.machine()


def machine() -> str:
    """Return the CPU model, its cores and the system."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )
