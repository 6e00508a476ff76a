import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.metrics.latency import RollingLatency, nearest_rank


def test_percentiles_are_nearest_ranks_by_hand() -> None:
    latency = RollingLatency()
    for value in range(200, 0, -1):
        latency.add(float(value))
    result = latency.percentiles()
    # Ranks 0.50 * 200, 0.95 * 200 and 0.99 * 200 of 1..200.
    assert (result.p50_ms, result.p95_ms, result.p99_ms, result.count) == (100.0, 190.0, 198.0, 200)


def test_only_the_last_300_count() -> None:
    latency = RollingLatency()
    for value in [1e6] * 50 + [7.0] * 300:
        latency.add(value)
    result = latency.percentiles()
    assert (result.p99_ms, result.count) == (7.0, 300)


def test_one_slow_frame_in_a_hundred_is_not_in_p99_but_two_are() -> None:
    one, two = [1.0] * 99 + [9.0], [1.0] * 98 + [9.0] * 2
    assert nearest_rank(one, 99) == 1.0
    assert nearest_rank(two, 99) == 9.0


def test_without_values_there_is_no_number() -> None:
    result = RollingLatency().percentiles()
    assert math.isnan(result.p50_ms)
    assert math.isnan(result.p99_ms)
    assert result.count == 0


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50), st.integers(1, 100))
def test_at_least_that_share_of_values_is_not_above(values: list[float], percent: int) -> None:
    result = nearest_rank(sorted(values), percent)
    assert result in values
    assert sum(value <= result for value in values) * 100 >= percent * len(values)
    assert sum(value < result for value in values) * 100 < percent * len(values)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RollingLatency(0)
