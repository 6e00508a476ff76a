"""The clock of a replay: it follows simulated time, but for its jumps back."""

from md_perception.ros.clocks import SimulatedClock


def test_simulated_time_never_goes_back_and_keeps_its_pace_after_a_jump():
    readings = iter([0, 1000, 1010, 5000, 100, 150, 150, 160])
    clock = SimulatedClock(lambda: next(readings))
    # The bag starts anew at 100: time stands still there, and goes on from 5000.
    assert [clock() for _ in range(8)] == [0, 1000, 1010, 5000, 5000, 5050, 5050, 5060]
