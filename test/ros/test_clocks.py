"""The clock of a replay: it follows simulated time, but for its jumps back."""

from md_perception.ros.clocks import Metronome, SimulatedClock

MS = 1_000_000


def due_at(readings: list[tuple[int, int]], period_s: float = 1.0) -> list[int]:
    """Return the steady times, ms, at which a metronome is due. readings: node's clock and steady clock, ms."""
    metronome = Metronome(period_s)
    return [steady for now, steady in readings if metronome.due(now * MS, steady * MS)]


def test_a_metronome_follows_the_nodes_clock() -> None:
    assert due_at([(at, at) for at in range(5000, 8200, 100)]) == [6000, 7000, 8000]
    assert due_at([(10 * at, at) for at in range(0, 550, 50)]) == [100, 200, 300, 400, 500]  # ten times as fast
    assert due_at([(at // 4, at) for at in range(0, 8200, 100)]) == [4000, 8000]  # a quarter as fast


def test_a_metronome_goes_on_while_the_clock_stands_still_or_goes_back() -> None:
    assert due_at([(0, at) for at in range(0, 3100, 100)]) == [1000, 2000, 3000]  # no /clock at all
    paused = [(min(at, 1500), at) for at in range(0, 4100, 100)]
    assert due_at(paused) == [1000, 2500, 3500]
    looped = [(at % 1700, at) for at in range(0, 3000, 100)]
    assert due_at(looped) == [1000, 1700, 2700]


def test_a_metronome_knows_how_long_the_clock_has_stood_still() -> None:
    metronome = Metronome(1.0)
    for at in range(0, 3000, 100):
        metronome.due(min(at, 1000) * MS, at * MS)
    assert metronome.stands_s(3000 * MS) == 2.0
    missing = Metronome(1.0)
    missing.due(0, 70_000 * MS)
    assert missing.stands_s(70_500 * MS) == 0.5


def test_simulated_time_never_goes_back_and_keeps_its_pace_after_a_jump():
    readings = iter([0, 1000, 1010, 5000, 100, 150, 150, 160])
    clock = SimulatedClock(lambda: next(readings))
    # The bag starts anew at 100: time stands still there, and goes on from 5000.
    assert [clock() for _ in range(8)] == [0, 1000, 1010, 5000, 5000, 5050, 5050, 5060]
