"""Policies `approximate` and `exact` on the real message_filters, and every RGB frame exactly once."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.ros.synchronisers import SynchronizerPairing
from md_perception.sensing.pairing import Paired, PairingSettings, StampedMessage, Unpaired

MS = 1_000_000


@pytest.fixture
def _message_filters() -> None:
    pytest.importorskip("message_filters", reason="message_filters is only in a ROS 2 installation, not in the wheels")


needs_message_filters = pytest.mark.usefixtures("_message_filters")


def frame(stamp_ms: float, arrival_ms: float | None = None) -> StampedMessage:
    return StampedMessage(None, round(stamp_ms * MS), round((stamp_ms if arrival_ms is None else arrival_ms) * MS))


def describe(decided: list) -> list[tuple[int, object]]:
    """(RGB stamp in ms, thermal stamp in ms or the reason) of each."""
    return [(d.rgb.stamp_ns // MS, d.thermal.stamp_ns // MS if isinstance(d, Paired) else d.reason) for d in decided]


def feed(pairing: SynchronizerPairing, rgb: range, thermal: range) -> list:
    """Feed both cameras in the order of their stamps and return what was decided."""
    frames = sorted([(stamp, "rgb") for stamp in rgb] + [(stamp, "thermal") for stamp in thermal])
    decided = []
    for stamp, camera in frames:
        (pairing.add_rgb if camera == "rgb" else pairing.add_thermal)(frame(stamp), stamp * MS)
        decided += pairing.take(stamp * MS)
    return decided


@needs_message_filters
def test_exact_pairs_equal_stamps_and_gives_up_the_others_after_the_wait():
    pairing = SynchronizerPairing("exact", PairingSettings(max_wait_ns=100 * MS))
    decided = feed(pairing, range(0, 240, 40), range(0, 240, 80))
    assert describe(decided) == [(0, 0), (80, 80), (40, "waited"), (160, 160)]
    assert describe(pairing.take(220 * MS)) == [(120, "waited")]
    assert describe(pairing.flush(240 * MS)) == [(200, "no_partner")]
    assert (pairing.counters.rgb_received, pairing.counters.paired, pairing.counters.unpaired) == (6, 3, 3)


@needs_message_filters
def test_approximate_pairs_within_the_tolerance_each_thermal_frame_once():
    pairing = SynchronizerPairing("approximate", PairingSettings(tolerance_ns=20 * MS, max_wait_ns=100 * MS))
    decided = feed(pairing, range(0, 200, 40), range(15, 200, 100))
    paired = [d for d in decided if isinstance(d, Paired)]
    assert [(d.rgb.stamp_ns // MS, d.offset_ns // MS) for d in paired] == [(0, 15), (120, -5)]


@needs_message_filters
def test_the_tolerance_is_inclusive_and_zero_matches_equal_stamps():
    for tolerance, thermal in ((20, 20), (0, 0)):
        pairing = SynchronizerPairing("approximate", PairingSettings(tolerance_ns=tolerance * MS))
        pairing.add_rgb(frame(0), 0)
        pairing.add_thermal(frame(thermal), 0)
        assert describe(pairing.take(0)) == [(0, thermal)]


@needs_message_filters
def test_the_constant_offset_is_applied_and_settings_may_change():
    pairing = SynchronizerPairing("exact", PairingSettings(offset_ns=-30 * MS))
    pairing.add_rgb(frame(100), 0)
    pairing.add_thermal(frame(130), 0)
    (decided,) = pairing.take(0)
    assert isinstance(decided, Paired)
    assert (decided.thermal.stamp_ns, decided.offset_ns) == (130 * MS, 0)
    pairing.settings = PairingSettings(offset_ns=10 * MS)
    pairing.add_rgb(frame(200), 0)
    pairing.add_thermal(frame(190), 0)
    assert describe(pairing.take(0)) == [(200, 190)]


@needs_message_filters
@pytest.mark.parametrize("policy", ["approximate", "exact"])
def test_settings_that_stay_cost_no_waiting_frame_its_partner(policy):
    pairing = SynchronizerPairing(policy, PairingSettings(tolerance_ns=20 * MS))
    pairing.add_rgb(frame(100), 0)
    pairing.settings = PairingSettings(tolerance_ns=20 * MS)  # as when another parameter of the node is set
    pairing.add_thermal(frame(100), 0)
    assert describe(pairing.take(0)) == [(100, 100)]


@needs_message_filters
def test_a_bag_that_loops_starts_anew():
    """message_filters itself prefers the stale, larger stamps of the first pass: 10 of 300 pairs in the second."""
    pairing = SynchronizerPairing("approximate", PairingSettings(tolerance_ns=10 * MS, capacity=10))
    first = feed(pairing, range(0, 4000, 40), range(0, 3800, 40))  # thermal ends earlier
    second = feed(pairing, range(0, 4000, 40), range(0, 3800, 40))
    assert sum(isinstance(d, Paired) for d in first) == 95
    assert sum(isinstance(d, Paired) for d in second) == 95
    assert pairing.counters.time_jumps == 1
    assert "time_jump" in [d.reason for d in second if isinstance(d, Unpaired)]


@needs_message_filters
@given(
    policy=st.sampled_from(["approximate", "exact"]),
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 900), st.integers(0, 50)), max_size=60),
    capacity=st.integers(1, 5),
)
def test_every_rgb_frame_comes_out_exactly_once(policy, events, capacity):
    pairing = SynchronizerPairing(policy, PairingSettings(max_wait_ns=60 * MS, capacity=capacity))
    sent, decided, now = [], [], 0
    for is_rgb, stamp, passed in events:
        now += passed
        arrived = frame(stamp, now)
        if is_rgb:
            sent.append(arrived)
            pairing.add_rgb(arrived, now * MS)
        else:
            pairing.add_thermal(arrived, now * MS)
        if passed % 3 == 0:
            decided += pairing.take(now * MS)
        assert len(decided) + pairing.waiting == len(sent)
    decided += pairing.flush(now * MS)
    assert sorted(map(id, sent)) == sorted(id(d.rgb) for d in decided)
    assert pairing.counters.rgb_received == pairing.counters.paired + pairing.counters.unpaired == len(sent)


def test_without_message_filters_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "message_filters", None)
    with pytest.raises(ModuleNotFoundError, match=r"'exact' needs message_filters.*ros-\$ROS_DISTRO-message-filters"):
        SynchronizerPairing("exact", PairingSettings())
