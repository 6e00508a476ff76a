"""Times that can be compared: warmed up, synchronised, interleaved so that drift cancels, compared within a round.

Plain time.perf_counter_ns: torch.utils.benchmark measures one statement to its end before the next, so that a clock
that falls or a neighbour that starts is taken for a difference between the two, and it gives no p99.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from md_perception.metrics.latency import nearest_rank

Times = Sequence[Sequence[float]]
"""Seconds of every timed call: a row for each round."""

BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """Nearest-rank percentiles of `count` calls, ms; p99 of fewer than 100 calls is the slowest of them."""

    median_ms: float
    p25_ms: float
    p75_ms: float
    p99_ms: float
    count: int


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds of a figure, mostly a quotient, and its 95 % interval (bootstrap over the rounds)."""

    median: float
    low: float
    high: float


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int,
    clock: Callable[[], int] = time.perf_counter_ns,
    after_round: Callable[[int], None] = lambda done: None,
) -> dict[str, list[list[float]]]:
    """Return the times of each contestant in s, [round][call].

    Every round visits all contestants, every second one in reverse order (A B C, C B A), so that a steady drift falls
    on all alike. A visit is one untimed call, which brings code and weights back into the caches and lets the threads
    of the runtime before fall asleep, then `calls` timed ones. A contestant returns when its result is there: it
    synchronises its GPU itself. clock: ns. after_round: is told how many are done.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    order = list(contestants.items())
    for done in range(rounds):
        for name, call in order if done % 2 == 0 else reversed(order):
            call()
            visit = []
            for _ in range(calls):
                start = clock()
                call()
                visit.append((clock() - start) * 1e-9)
            times[name].append(visit)
        after_round(done + 1)
    return times


def summary(times: Times) -> Summary:
    """Return the percentiles over all calls of all rounds."""
    ordered = sorted(1000 * seconds for visit in times for seconds in visit)
    median, p25, p75, p99 = (nearest_rank(ordered, percent) for percent in (50, 25, 75, 99))
    return Summary(median, p25, p75, p99, len(ordered))


def ratio(numerators: Sequence[Times], denominators: Sequence[Times]) -> Ratio:
    """Return the quotient of two sums of times of one run, formed round by round: what both share cancels.

    numerators, denominators: of the contestants that are added up, e.g. a student's and those of its two teachers. A
    visit counts with its median.
    """

    def per_round(parts: Sequence[Times]) -> np.ndarray:
        return np.sum([[np.median(visit) for visit in times] for times in parts], axis=0)

    return _over_rounds(per_round(numerators) / per_round(denominators))


def exponent(times: Sequence[Times], pixels: Sequence[int]) -> Ratio:
    """Return how time grows with size: the slope of log(time) over log(pixels), fitted round by round.

    times: of the same thing at each of the sizes, from one run; a visit counts with its median.
    1: in proportion to the pixels; below: a part that does not depend on them.
    """
    medians = np.array([[np.median(visit) for visit in each] for each in times])  # sizes, rounds
    slopes, _ = np.polyfit(np.log(pixels), np.log(medians), 1)
    return _over_rounds(slopes)


def _over_rounds(values: np.ndarray) -> Ratio:
    drawn = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), (2.5, 97.5))
    return Ratio(float(np.median(values)), float(low), float(high))
