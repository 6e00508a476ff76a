"""Faults that are put into the messages of a bag."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.bags.injection import Injection, inject, to_kelvin, write_injected
from md_perception.bags.make import TimedMessage
from md_perception.bags.read import Bag
from md_perception.bags.types import CAMERA_INFO, IMAGE, message_store
from md_perception.bags.write import BagError, BagWriter
from md_perception.outputs.messages import MessageBuilder
from md_perception.sensing.images import stamp_ns, to_thermal_values

TOPIC = "/thermal/image_raw"
OTHER = "/rgb/image_raw"
MS = 1_000_000
START = 10**18
BUILD = MessageBuilder(message_store().types.__getitem__)


def stream(number: int = 10, encoding: str = "mono8") -> list[TimedMessage]:
    """Return messages of both topics, 100 ms apart; the thermal pixels tell the number, counted from 1."""
    dtype = {"mono8": np.uint8, "mono16": np.uint16, "32FC1": np.float32}[encoding]
    messages = []
    for index in range(number):
        log_ns = START + 100 * MS * index
        pixels = np.full((4, 6), index + 1, dtype)
        messages.append(TimedMessage(log_ns, TOPIC, BUILD.image(pixels, encoding, log_ns - 5 * MS, "thermal")))
        colour = np.full((4, 6, 3), index + 1, np.uint8)
        messages.append(TimedMessage(log_ns, OTHER, BUILD.image(colour, "rgb8", log_ns - 5 * MS, "rgb")))
    return messages


def injected(kind: str, amount: float = 0.0, *, encoding: str = "mono8", number: int = 10) -> list[TimedMessage]:
    """Return the stream with a fault of the thermal camera from 0.3 s to 0.6 s, which is its messages 4 to 6."""
    fault = Injection(kind, TOPIC, 0.3, 0.6, amount, seed=3)
    return list(inject(stream(number, encoding), [fault], START))


def numbers(messages: Sequence[TimedMessage], topic: str = TOPIC) -> list[int]:
    return [int(to_thermal_values(item.message).flat[0]) for item in messages if item.topic == topic]


def delays_ms(messages: Sequence[TimedMessage]) -> list[float]:
    """Return by how much each thermal message comes later than its number says."""
    return [
        (item.log_ns - START) / MS - 100 * (int(to_thermal_values(item.message).flat[0]) - 1)
        for item in messages
        if item.topic == TOPIC
    ]


def test_what_is_dropped_does_not_come_and_nothing_else_is_touched() -> None:
    found = injected("drop", 1.0)
    assert numbers(found) == [1, 2, 3, 7, 8, 9, 10]
    assert numbers(found, OTHER) == list(range(1, 11))
    assert numbers(injected("drop", 0.0)) == list(range(1, 11))


def test_a_share_of_the_messages_is_dropped_the_same_with_the_same_seed() -> None:
    fault = Injection("drop", TOPIC, 0.0, 1e3, 0.3, seed=1)
    once, again = (numbers(list(inject(stream(200), [fault], START))) for _ in range(2))
    assert once == again
    assert 120 < len(once) < 160


def test_delayed_messages_keep_their_stamps_and_come_in_the_order_of_their_new_times() -> None:
    found = injected("delay", 0.25)
    assert delays_ms(found) == [0, 0, 0, 250, 0, 250, 0, 250, 0, 0]
    assert numbers(found) == [1, 2, 3, 4, 7, 5, 8, 6, 9, 10]
    assert [item.log_ns for item in found] == sorted(item.log_ns for item in found)
    for item in found:
        if item.topic == TOPIC:
            number = int(to_thermal_values(item.message).flat[0])
            assert stamp_ns(item.message) == START + 100 * MS * (number - 1) - 5 * MS


def test_reordered_messages_overtake_each_other_but_none_is_lost() -> None:
    fault = Injection("reorder", TOPIC, 0.0, 1e3, 0.3, seed=1)
    found = list(inject(stream(30), [fault], START))
    assert numbers(found) != list(range(1, 31))
    assert sorted(numbers(found)) == list(range(1, 31))
    assert all(0 <= delay <= 300 for delay in delays_ms(found))


def test_duplicates_come_at_once_and_are_the_same() -> None:
    assert numbers(injected("duplicate", 2)) == [1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 8, 9, 10]


def test_a_frozen_camera_repeats_its_picture_under_new_stamps() -> None:
    found = [item for item in injected("freeze") if item.topic == TOPIC]
    assert numbers(found) == [1, 2, 3, 4, 4, 4, 7, 8, 9, 10]
    assert [stamp_ns(item.message) for item in found] == [START + (100 * number - 5) * MS for number in range(10)]


def test_resized_pictures_are_valid_images_of_the_new_size() -> None:
    found = [item for item in injected("resize", 0.5) if item.topic == TOPIC]
    sizes = [to_thermal_values(item.message).shape for item in found]
    assert sizes == [(4, 6)] * 3 + [(2, 3)] * 3 + [(4, 6)] * 4
    assert numbers(found) == list(range(1, 11))


def test_a_dark_camera_sends_zeros_and_a_cut_one_too_few_bytes() -> None:
    assert numbers(injected("dark")) == [1, 2, 3, 0, 0, 0, 7, 8, 9, 10]
    cut = [len(item.message.data) for item in injected("cut", 0.5) if item.topic == TOPIC]
    assert cut == [24] * 3 + [12] * 3 + [24] * 4


def test_nan_fills_a_share_of_the_rows_of_float_images_alone() -> None:
    found = [item for item in injected("nan", 0.5, encoding="32FC1") if item.topic == TOPIC]
    shares = [float(np.isnan(to_thermal_values(item.message)).mean()) for item in found]
    assert shares == [0.0] * 3 + [0.5] * 3 + [0.0] * 4
    with pytest.raises(BagError, match="mono8: only 32FC1 has NaN"):
        injected("nan", 0.5)


def test_a_clock_that_jumps_moves_the_stamps_alone() -> None:
    found = [item for item in injected("jump", -2.5) if item.topic == TOPIC]
    moved = [(stamp_ns(item.message) - item.log_ns) // MS + 5 for item in found]
    assert moved == [0] * 3 + [-2500] * 3 + [0] * 4
    assert numbers(found) == list(range(1, 11))


def test_the_messages_that_come_in_stay_as_they_are() -> None:
    for kind, amount in (("jump", 1.0), ("freeze", 0.0), ("dark", 0.0), ("resize", 0.5), ("cut", 0.5)):
        messages = stream()
        list(inject(messages, [Injection(kind, TOPIC, 0.0, 9.0, amount)], START))
        assert numbers(messages) == list(range(1, 11))
        assert stamp_ns(messages[0].message) == START - 5 * MS


def test_faults_work_one_after_the_other() -> None:
    faults = [Injection("duplicate", TOPIC, 0.3, 0.4, 1), Injection("delay", TOPIC, 0.3, 0.4, 0.15)]
    assert numbers(list(inject(stream(), faults, START))) == [1, 2, 3, 5, 4, 4, 6, 7, 8, 9, 10]


@given(
    st.lists(
        st.one_of(
            st.builds(
                Injection,
                st.sampled_from(["delay", "reorder"]),
                st.sampled_from([TOPIC, OTHER]),
                st.just(0.0),
                st.just(9.0),
                st.floats(0, 1),
                st.integers(0, 9),
            ),
            st.builds(Injection, st.just("jump"), st.just(TOPIC), st.just(0.2), st.just(0.5), st.floats(-3, 3)),
        ),
        max_size=4,
    )
)
def test_no_message_is_lost_and_times_never_go_back(faults: list[Injection]) -> None:
    found = list(inject(stream(), faults, START))
    assert sorted(numbers(found)) == sorted(numbers(found, OTHER)) == list(range(1, 11))
    assert [item.log_ns for item in found] == sorted(item.log_ns for item in found)


@pytest.mark.parametrize(
    ("kind", "amount", "start_s", "end_s", "problem"),
    [
        ("melt", 0.0, 0.0, 1.0, "there is no fault 'melt': use one of drop, delay"),
        ("drop", 1.5, 0.0, 1.0, "drop by 1.5 is not possible: 0 to 1 are"),
        ("delay", -0.1, 0.0, 1.0, "delay by -0.1 is not possible"),
        ("drop", float("nan"), 0.0, 1.0, "drop by nan is not possible"),
        ("drop", 0.5, 2.0, 1.0, "from 2 s to 1 s"),
    ],
)
def test_impossible_faults_are_refused(kind: str, amount: float, start_s: float, end_s: float, problem: str) -> None:
    with pytest.raises(BagError, match=problem):
        Injection(kind, TOPIC, start_s, end_s, amount)


def test_a_bag_is_written_with_the_fault_in_it(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "good") as writer:
        writer.add_topic(TOPIC, IMAGE)
        writer.add_topic("/thermal/camera_info", CAMERA_INFO)
        for timed in stream(encoding="mono16"):
            if timed.topic == TOPIC:
                writer.write(TOPIC, timed.log_ns, timed.message)
    fault = Injection("drop", TOPIC, 0.3, 0.6, 1.0)
    counts = write_injected(
        tmp_path / "good", tmp_path / "bad", [fault], topics=[TOPIC], prepare=lambda timed: to_kelvin(timed, TOPIC)
    )
    assert counts == {TOPIC: 7}
    with Bag(tmp_path / "bad") as bag:
        values = [to_thermal_values(item.message) for item in bag.messages()]
    assert {str(value.dtype) for value in values} == {"float32"}
    np.testing.assert_allclose([value[0, 0] for value in values], np.array([1, 2, 3, 7, 8, 9, 10]) / 100, rtol=1e-6)
    with pytest.raises(BagError, match=r"has no sensor_msgs/msg/Image on /rgb/image_raw"):
        write_injected(tmp_path / "good", tmp_path / "none", [Injection("drop", OTHER, 0, 1, 1.0)])
