from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from md_perception.sensing.pairing import NearestPairing, Paired, PairingSettings, Unpaired

MS = 1_000_000
S = 1000 * MS


@dataclass(frozen=True)
class Item:
    """A frame. number tells apart frames of equal stamps."""

    stamp_ns: int
    number: int = 0


@dataclass(frozen=True)
class Event:
    """A frame that arrives."""

    arrival_ns: int
    camera: str
    item: Item


Decision = Paired[Item] | Unpaired[Item]


def stream(
    camera: str,
    period_ns: float,
    seconds: float,
    *,
    start_ns: int = 0,
    latency_ns: int = 0,
    jitter_ns: int = 0,
    seed: int = 0,
) -> list[Event]:
    """Frames of a camera with uniform jitter of +-jitter_ns on the stamps; they arrive latency_ns after them."""
    rng = np.random.default_rng(seed)
    regular = np.arange(round(seconds * S / period_ns)) * period_ns
    stamps = start_ns + regular + rng.uniform(-jitter_ns, jitter_ns, regular.size)
    return [Event(int(stamp) + latency_ns, camera, Item(int(stamp), index)) for index, stamp in enumerate(stamps)]


def play(pairing: NearestPairing[Item], *streams: Iterable[Event], flush: bool = True) -> list[Decision]:
    """Feed the events in the order of arrival, as a node does: taking after each and when a deadline passes."""
    events = sorted((event for events in streams for event in events), key=lambda event: event.arrival_ns)
    decisions: list[Decision] = []
    now_ns = 0
    for event in events:
        deadline_ns = pairing.deadline_ns()
        while deadline_ns is not None and deadline_ns <= event.arrival_ns:
            taken = pairing.take(deadline_ns)
            assert taken, "a deadline that passes has to decide its pivot"
            decisions += taken
            deadline_ns = pairing.deadline_ns()
        now_ns = event.arrival_ns
        (pairing.add_rgb if event.camera == "rgb" else pairing.add_thermal)(event.item, now_ns)
        decisions += pairing.take(now_ns)
    return decisions + (pairing.flush(now_ns) if flush else [])


def paired_share(decisions: list[Decision]) -> float:
    return sum(isinstance(decision, Paired) for decision in decisions) / len(decisions)


# ---------------------------------------------------------------------------------------------- whatever comes


@st.composite
def any_events(draw: st.DrawFn) -> list[Event]:
    """Frames of both cameras with gaps, duplicates, reordering and jumps, in arrival order."""
    events, now_ns = [], 0
    stamps = {"rgb": 10 * S, "thermal": 10 * S}
    for number in range(draw(st.integers(0, 40))):
        camera = draw(st.sampled_from(["rgb", "thermal"]))
        now_ns += draw(st.integers(0, 60)) * MS
        stamps[camera] += draw(st.one_of(st.integers(0, 120), st.sampled_from([-20, -400, -3000, 3000]))) * MS
        events.append(Event(now_ns, camera, Item(stamps[camera], number)))
    return events


@settings(max_examples=150)
@given(any_events(), st.integers(1, 6), st.integers(0, 200), st.integers(-50, 50))
def test_every_rgb_frame_comes_out_exactly_once_and_partners_are_within_tolerance(
    events: list[Event], capacity: int, max_wait_ms: int, offset_ms: int
) -> None:
    pairing = NearestPairing[Item](
        PairingSettings(max_wait_ns=max_wait_ms * MS, capacity=capacity, offset_ns=offset_ms * MS)
    )
    decisions = play(pairing, events)

    sent = [event.item.number for event in events if event.camera == "rgb"]
    assert sorted(decision.rgb.number for decision in decisions) == sent
    for decision in decisions:
        assert decision.waited_ns >= 0
        if isinstance(decision, Paired):
            assert decision.offset_ns == decision.thermal.stamp_ns + offset_ms * MS - decision.rgb.stamp_ns
            assert abs(decision.offset_ns) <= 60 * MS
    counters = pairing.counters
    assert counters.rgb_received == len(sent) == counters.paired + counters.unpaired
    assert counters.thermal_received == len(events) - len(sent)
    assert counters.paired == sum(isinstance(decision, Paired) for decision in decisions)
    assert counters.late == sum(isinstance(d, Unpaired) and d.reason == "late" for d in decisions)
    assert pairing.waiting == 0


@st.composite
def ordered_events(draw: st.DrawFn) -> list[Event]:
    """Frames of both cameras with stamps that never go back, each camera with a latency of its own."""
    events = []
    for camera in ("rgb", "thermal"):
        latency_ns = draw(st.integers(0, 100)) * MS
        stamp_ns = draw(st.integers(0, 300)) * MS
        for number in range(draw(st.integers(0, 25))):
            stamp_ns += draw(st.integers(0, 150)) * MS
            events.append(Event(stamp_ns + latency_ns, camera, Item(stamp_ns, number)))
    return events


@settings(max_examples=150)
@given(ordered_events())
def test_pivots_come_in_order_with_the_nearest_of_all_thermal_frames_that_had_arrived(events: list[Event]) -> None:
    pairing = NearestPairing[Item](PairingSettings(capacity=100))
    decisions = play(pairing, events)

    assert [decision.rgb.number for decision in decisions] == list(range(len(decisions)))
    arrival_ns = {event.item.number: event.arrival_ns for event in events if event.camera == "rgb"}
    for decision in decisions:
        decided_ns = arrival_ns[decision.rgb.number] + decision.waited_ns
        distances = [
            abs(event.item.stamp_ns - decision.rgb.stamp_ns)
            for event in events
            if event.camera == "thermal" and event.arrival_ns <= decided_ns
        ]
        nearest_ns = min(distances, default=10 * S)
        if isinstance(decision, Paired):
            # Frames that arrive in the very moment of the decision may come after it.
            earlier = [
                abs(event.item.stamp_ns - decision.rgb.stamp_ns)
                for event in events
                if event.camera == "thermal" and event.arrival_ns < decided_ns
            ]
            assert nearest_ns <= abs(decision.offset_ns) <= min(earlier, default=10 * S)
        elif decision.reason == "no_partner":
            assert nearest_ns > 60 * MS


@settings(max_examples=60)
@given(
    rgb_hz=st.floats(5, 60),
    thermal_hz=st.floats(5, 60),
    phase_ms=st.integers(0, 100),
    rgb_latency_ms=st.integers(0, 40),
    thermal_latency_ms=st.integers(0, 80),
)
def test_regular_cameras_get_the_nearest_frame_of_the_whole_stream(
    rgb_hz: float, thermal_hz: float, phase_ms: int, rgb_latency_ms: int, thermal_latency_ms: int
) -> None:
    # The rule that spares the waiting (half a period) must not cost a nearer frame.
    rgb = stream("rgb", S / rgb_hz, 1.5, start_ns=S, latency_ns=rgb_latency_ms * MS)
    thermal = stream("thermal", S / thermal_hz, 3, start_ns=phase_ms * MS, latency_ns=thermal_latency_ms * MS)
    decisions = play(NearestPairing[Item](PairingSettings(max_wait_ns=10 * S, capacity=1000)), rgb, thermal)
    for decision in decisions:
        nearest_ns = min(abs(event.item.stamp_ns - decision.rgb.stamp_ns) for event in thermal)
        if isinstance(decision, Paired):
            assert abs(decision.offset_ns) == pytest.approx(nearest_ns, abs=2)  # stamps are whole nanoseconds
        else:
            assert nearest_ns > 60 * MS


# ---------------------------------------------------------------------------------------------- the cheap camera


@pytest.mark.parametrize("thermal_latency_ms", [5, 50])
@pytest.mark.parametrize("jitter_ms", [0, 4])
def test_thermal_at_8_7_hz_beside_rgb_at_30_hz_pairs_at_least_95_percent(
    thermal_latency_ms: int, jitter_ms: int
) -> None:
    rgb = stream("rgb", S / 30, 60, start_ns=S, latency_ns=15 * MS, jitter_ns=2 * MS, seed=1)
    thermal = stream("thermal", S / 8.7, 62, latency_ns=thermal_latency_ms * MS, jitter_ns=jitter_ms * MS, seed=2)
    decisions = play(NearestPairing[Item](), rgb, thermal)
    assert len(decisions) == 1800
    assert paired_share(decisions) >= 0.95
    # Half of the pivots have a frame at hand within half a period: they do not wait at all.
    assert np.mean([decision.waited_ns == 0 for decision in decisions]) > (0.45 if thermal_latency_ms == 5 else 0.1)
    assert max(decision.waited_ns for decision in decisions) <= 110 * MS


def test_nobody_waits_when_the_frame_at_hand_is_within_half_a_period() -> None:
    pairing = NearestPairing[Item]()
    for index in range(5):
        pairing.add_thermal(Item(index * 100 * MS), index * 100 * MS)
    pairing.add_rgb(Item(450 * MS), 450 * MS)  # exactly half a period behind the frame of 400 ms
    assert [(d.offset_ns, d.waited_ns) for d in pairing.take(450 * MS)] == [(-50 * MS, 0)]
    pairing.add_rgb(Item(451 * MS), 451 * MS)  # the frame of 500 ms will be nearer
    assert pairing.take(480 * MS) == []
    pairing.add_thermal(Item(500 * MS), 505 * MS)
    assert [(d.offset_ns, d.waited_ns) for d in pairing.take(505 * MS)] == [(49 * MS, 54 * MS)]


def test_the_period_is_not_guessed_from_a_gap() -> None:
    pairing = NearestPairing[Item]()
    assert pairing.thermal_period_ns is None
    for stamp_ms in (0, 100, 200, 2700, 2800, 2900):  # a shutter closes for 2.5 s
        pairing.add_thermal(Item(stamp_ms * MS), stamp_ms * MS)
    assert pairing.thermal_period_ns == 100 * MS


# ---------------------------------------------------------------------------------------------- what goes wrong


def test_a_pivot_waits_no_longer_than_max_wait() -> None:
    pairing = NearestPairing[Item](PairingSettings(max_wait_ns=150 * MS))
    pairing.add_rgb(Item(5 * S), 7 * S)
    assert pairing.deadline_ns() == 7 * S + 150 * MS
    assert pairing.take(7 * S + 149 * MS) == []
    assert pairing.take(7 * S + 150 * MS) == [Unpaired(Item(5 * S), "waited", 150 * MS)]
    assert pairing.deadline_ns() is None


def test_the_partner_at_hand_is_taken_when_the_wait_is_over() -> None:
    # Not within half a period, so a nearer one was hoped for; it never came.
    pairing = NearestPairing[Item](PairingSettings(max_wait_ns=100 * MS))
    for index in range(5):
        pairing.add_thermal(Item(index * 40 * MS), index * 40 * MS)
    pairing.add_rgb(Item(210 * MS), 210 * MS)
    assert pairing.take(309 * MS) == []
    (decision,) = pairing.take(310 * MS)
    assert decision == Paired(Item(210 * MS), Item(160 * MS), -50 * MS, 100 * MS)


def test_the_tolerance_is_inclusive_and_the_offset_is_added_to_thermal() -> None:
    pairing = NearestPairing[Item](PairingSettings(tolerance_ns=10 * MS, offset_ns=-40 * MS))
    pairing.add_thermal(Item(150 * MS), 0)  # seen at 110 ms
    for stamp_ms in (99, 100):
        pairing.add_rgb(Item(stamp_ms * MS), 0)
    assert pairing.take(0) == [
        Unpaired(Item(99 * MS), "no_partner", 0),
        Paired(Item(100 * MS), Item(150 * MS), 10 * MS, 0),
    ]


def test_one_thermal_frame_serves_several_rgb_frames() -> None:
    pairing = NearestPairing[Item]()
    pairing.add_thermal(Item(100 * MS), 0)
    for stamp_ms in (60, 80, 100):
        pairing.add_rgb(Item(stamp_ms * MS), 0)
    assert [d.offset_ns for d in pairing.take(0)] == [40 * MS, 20 * MS, 0]


@pytest.mark.parametrize("first", ["rgb", "thermal"])
def test_a_bag_that_starts_again_resets_once_and_pairs_on(first: str) -> None:
    def run(start_ns: int, delay: str) -> list[Event]:
        """Two seconds of stamps from zero on that arrive from start_ns on; one camera starts later."""
        lag_ns = {camera: 30 * MS if camera == delay else 0 for camera in ("rgb", "thermal")}
        frames = stream("rgb", 33 * MS, 2) + stream("thermal", 115 * MS, 2)
        return [Event(f.arrival_ns + start_ns + lag_ns[f.camera], f.camera, f.item) for f in frames]

    late = "thermal" if first == "rgb" else "rgb"
    pairing = NearestPairing[Item]()
    decisions = play(pairing, run(0, late), run(3 * S, late))

    rgb_frames = 2 * len(stream("rgb", 33 * MS, 2))
    assert len(decisions) == rgb_frames
    assert pairing.counters.time_jumps == 1
    assert paired_share(decisions) >= 0.95
    assert pairing.counters.late == 0


def test_pivots_that_wait_through_a_jump_come_out_unpaired() -> None:
    pairing = NearestPairing[Item]()
    pairing.add_rgb(Item(100 * S), 0)
    pairing.add_thermal(Item(90 * S), 0)
    pairing.add_thermal(Item(5 * S), 10 * MS)
    assert pairing.take(20 * MS) == [Unpaired(Item(100 * S), "time_jump", 10 * MS)]
    pairing.add_rgb(Item(5 * S), 30 * MS)  # the RGB camera has jumped too: the same jump
    assert pairing.take(30 * MS) == [Paired(Item(5 * S), Item(5 * S), 0, 0)]  # the frame that jumped is of the new time
    assert pairing.counters.time_jumps == 1


def test_thermal_lost_and_back() -> None:
    rgb = stream("rgb", S / 30, 9)
    thermal = [event for event in stream("thermal", S / 8.7, 10) if not 3 * S <= event.item.stamp_ns < 6 * S]
    pairing = NearestPairing[Item]()
    decisions = play(pairing, rgb, thermal)

    assert len(decisions) == 270
    last_before = max(event.item.stamp_ns for event in thermal if event.item.stamp_ns < 3 * S)
    first_after = min(event.item.stamp_ns for event in thermal if event.item.stamp_ns >= 6 * S)
    for decision in decisions:
        lost = last_before + 60 * MS < decision.rgb.stamp_ns < first_after - 60 * MS
        assert isinstance(decision, Unpaired) == lost
        if lost:
            assert decision.reason in ("waited", "no_partner")
            assert decision.waited_ns <= 150 * MS
    assert pairing.counters.time_jumps == 0


def test_equal_rgb_stamps_are_two_frames_and_equal_thermal_stamps_are_one() -> None:
    pairing = NearestPairing[Item]()
    pairing.add_thermal(Item(S, 1), 0)
    pairing.add_thermal(Item(S, 2), 0)
    pairing.add_rgb(Item(S, 1), 0)
    pairing.add_rgb(Item(S, 2), 0)
    assert pairing.take(0) == [
        Paired(Item(S, 1), Item(S, 2), 0, 0),  # the newer of the two
        Paired(Item(S, 2), Item(S, 2), 0, 0),
    ]
    assert pairing.counters.thermal_duplicates == 1
    assert pairing.counters.time_jumps == 0


def test_an_overtaken_frame_is_put_in_order_while_it_can_be_and_late_after_that() -> None:
    pairing = NearestPairing[Item]()
    pairing.add_rgb(Item(200 * MS), 0)
    pairing.add_rgb(Item(170 * MS), 0)
    pairing.add_thermal(Item(200 * MS), 0)
    assert [d.rgb.stamp_ns for d in pairing.take(0)] == [170 * MS, 200 * MS]
    pairing.add_rgb(Item(180 * MS), 5 * MS)
    assert pairing.take(5 * MS) == [Unpaired(Item(180 * MS), "late", 0)]
    assert (pairing.counters.late, pairing.counters.time_jumps) == (1, 0)


def test_a_full_buffer_gives_its_oldest_frame_back() -> None:
    pairing = NearestPairing[Item](PairingSettings(capacity=3))
    for index in range(5):
        pairing.add_rgb(Item(index * MS), index)
    assert pairing.take(5) == [Unpaired(Item(0), "overflow", 3), Unpaired(Item(MS), "overflow", 3)]
    assert pairing.waiting == 3


def test_memory_stays_bounded_when_only_one_camera_runs() -> None:
    thermal_only = NearestPairing[Item](PairingSettings(capacity=8))
    for index in range(1000):
        thermal_only.add_thermal(Item(index * MS), index)
    thermal_only.add_rgb(Item(999 * MS), 1000)
    assert [d.offset_ns for d in thermal_only.take(1000)] == [0]
    assert len(thermal_only._thermal) <= 8


@pytest.mark.parametrize("arguments", [{"tolerance_ns": -1}, {"max_wait_ns": -1}, {"jump_ns": -1}, {"capacity": 0}])
def test_bounds_that_make_no_sense_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="pairing"):
        PairingSettings(**arguments)
