"""A bag on its own clock: what the node would have paired, when, in which mode; and every image is accounted for."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_drives import BUILD, MS, RGB, START, STORE, THERMAL, noise, write_drive

from md_perception.bags.injection import Injection
from md_perception.bags.read import Bag
from md_perception.bags.types import IMAGE
from md_perception.bags.write import BagError, BagWriter
from md_perception.evaluation.sources import IDLE_NS, LIGHT_TOPIC, STRING, Replay, ReplayedFrame, find_topics
from md_perception.parameters import Parameters
from md_perception.results import Mode

FUSED = (Mode.FUSED,)
BOTH = (Mode.FUSED, Mode.VISIBLE_ONLY)
ALL = (*BOTH, Mode.THERMAL_ONLY)


def replayed(path: Path, modes=FUSED, parameters: Parameters | None = None, **options):
    """Return the frames and what is known of the drive."""
    with Bag(path) as bag:
        topics = find_topics(bag, ())
        replay = Replay(bag, topics, parameters or Parameters.defaults(), modes, name="drive", **options)
        return list(replay.frames()), replay.drive, replay.rest


def silent(topic: str, from_s: float, to_s: float) -> Injection:
    return Injection("drop", topic, from_s, to_s, 1.0)


def modes_of(frames: list[ReplayedFrame]) -> dict[str, int]:
    return dict(Counter(frame.mode.name if frame.served else "none" for frame in frames))


def test_pairs_are_decided_when_thermal_arrives_and_not_when_somebody_has_time(tmp_path: Path) -> None:
    frames, drive, _ = replayed(write_drive(tmp_path / "bag", 20, thermal_late_ns=40 * MS))
    assert [frame.index for frame in frames] == list(range(20))
    assert {frame.waited_ns for frame in frames} == {40 * MS}
    assert [frame.log_ns for frame in frames] == [frame.rgb.stamp_ns + 40 * MS for frame in frames]
    assert all(frame.served and frame.alone == "" and frame.thermal.stamp_ns == frame.rgb.stamp_ns for frame in frames)
    assert (drive.rgb_images, drive.thermal_images, drive.frames, drive.paired) == (20, 20, 20, 20)
    assert drive.duration_s == pytest.approx(19 / 30 + 0.04, abs=1e-6)


def test_without_thermal_frames_wait_as_long_as_the_parameter_says_and_are_unpaired(tmp_path: Path) -> None:
    frames, drive, _ = replayed(write_drive(tmp_path / "bag", 120, faults=[silent(THERMAL, 1.0, 3.0)]))
    assert [frame.index for frame in frames] == list(range(120))
    alone = [frame for frame in frames if frame.alone]
    # 30 Hz: images 30 to 89 have no thermal image of their stamp; the tolerance of 60 ms reaches one image (33 ms) on
    # both sides, and FUSED returns with the third thermal image, 92: image 90 serves both 89 and 90.
    assert [frame.index for frame in alone] == list(range(31, 92))
    assert {frame.alone for frame in alone} == {"waited", "no_partner", "stale"}
    assert Counter(frame.alone for frame in alone)["stale"] == 3
    first = alone[0]
    assert (first.alone, first.served, first.thermal, first.waited_ns) == ("waited", False, None, 150 * MS)
    changes = [(change.mode, (change.log_ns - START) / 1e9) for change in drive.changes]
    assert [mode for mode, _ in changes] == [Mode.STALE, Mode.FUSED, Mode.STALE, Mode.FUSED]
    assert changes[2][1] == pytest.approx(29 / 30 + 1.0, abs=0.06)  # the last thermal image, and the timeout
    assert sum(drive.mode_s.values()) == pytest.approx(119 / 30, abs=1e-6)


def test_the_student_of_the_other_camera_takes_over_and_every_image_is_counted_once(tmp_path: Path) -> None:
    faults = [silent(THERMAL, 1.0, 3.0), silent(RGB, 5.0, 7.0)]
    frames, drive, _ = replayed(write_drive(tmp_path / "bag", 240, faults=faults), ALL)
    of_rgb = [frame for frame in frames if frame.rgb is not None]
    assert [frame.index for frame in of_rgb] == list(range(180))
    assert drive.rgb_images == 180
    found = modes_of(frames)
    assert sum(found.values()) == len(frames) == 180 + found["THERMAL_ONLY"]
    alone = [frame for frame in frames if frame.mode is Mode.VISIBLE_ONLY and frame.served]
    # Thermal is missed a second after its last image, at 1.97 s, when image 55 still waits; the third thermal image
    # with a partner is 92. When RGB is back at 7 s, with image 150, it goes alone until the third pair as well.
    assert [frame.index for frame in alone] == [*range(55, 92), 150, 151]
    # RGB is missed at 5.97 s: thermal images 180 to 210, the last of which arrives just before RGB image 150.
    assert found["THERMAL_ONLY"] == 31
    assert {frame.thermal for frame in alone} == {None}
    assert {frame.alone for frame in alone} <= {"mode", "waited", "no_partner"}
    thermal = [frame.index for frame in frames if frame.mode is Mode.THERMAL_ONLY]
    assert thermal == list(range(thermal[0], thermal[0] + len(thermal)))


def test_pairs_that_cannot_be_registered_go_to_the_student_for_rgb_alone_after_the_timeout(tmp_path: Path) -> None:
    asked = []

    def registers(*sizes) -> bool:
        asked.append(sizes)
        return False

    frames, _, _ = replayed(write_drive(tmp_path / "bag", 60), BOTH, registers=registers)
    served = [frame for frame in frames if frame.served]
    assert {frame.mode for frame in served} == {Mode.VISIBLE_ONLY}
    assert served[0].log_ns - START == pytest.approx(10**9, abs=100 * MS)
    assert {frame.thermal for frame in served} == {None}
    rgb, thermal = asked[-1]
    assert rgb[0] > thermal[0] > 0


def test_the_last_thermal_image_serves_where_the_parameters_say_so(tmp_path: Path) -> None:
    parameters = replace(Parameters.defaults(), health_without_thermal="last_thermal")
    path = write_drive(tmp_path / "bag", 180, faults=[silent(THERMAL, 1.0, 6.0)])
    frames, drive, _ = replayed(path, FUSED, parameters)
    held = [frame for frame in frames if frame.mode is Mode.LAST_THERMAL and frame.served]
    assert len({frame.thermal.stamp_ns for frame in held}) == 1
    assert [change.mode.name for change in drive.changes] == ["STALE", "FUSED", "LAST_THERMAL", "STALE"]
    assert drive.mode_s["LAST_THERMAL"] == pytest.approx(2.0, abs=0.3)  # from 1 s to 3 s after that image


def test_the_node_says_that_it_is_stale_four_times_a_second(tmp_path: Path) -> None:
    frames, _, rest = replayed(write_drive(tmp_path / "bag", 120, faults=[silent(THERMAL, 1.0, 10.0)]))
    said = [idle.log_ns for frame in frames for idle in frame.idle] + [idle.log_ns for idle in rest]
    stale_from = START + round((29 / 30 + 1.0) * 1e9)
    later = [at for at in said if at > START + 10**9]
    assert later[0] == pytest.approx(stale_from, abs=60 * MS)
    assert set(np.diff(later)) == {IDLE_NS}


def test_a_damaged_message_is_counted_and_the_frames_around_it_are_not_disturbed(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for topic in (RGB, THERMAL):
            writer.add_topic(topic, IMAGE)
        for number, timed in enumerate(noise(10)):
            data = bytes(STORE.serialize_cdr(timed.message, IMAGE))
            writer.write_raw(timed.topic, timed.log_ns, data[:30] if number in (7, 8, 19) else data)
    frames, drive, _ = replayed(tmp_path / "bag")
    assert [frame.index for frame in frames] == list(range(10))
    damaged = [frame for frame in frames if frame.alone == "damaged"]
    assert [(frame.index, frame.rgb, frame.served) for frame in damaged] == [(3, None, False), (9, None, False)]
    assert drive.damaged_messages == 3
    assert (drive.rgb_images, drive.thermal_images) == (10, 10)


def test_years_without_a_message_take_no_time(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for topic in (RGB, THERMAL):
            writer.add_topic(topic, IMAGE)
        for years in (0, 10):
            for timed in noise(30):
                writer.write(timed.topic, timed.log_ns + years * 365 * 86_400 * 10**9, timed.message)
    frames, drive, _ = replayed(tmp_path / "bag")
    assert len(frames) == 60
    assert drive.time_jumps == 1  # the stamps began again
    assert drive.mode_s["STALE"] == pytest.approx(10 * 365 * 86_400, rel=1e-3)


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.sampled_from(["drop", "delay", "reorder", "duplicate", "jump"]), st.sampled_from([RGB, THERMAL])),
        max_size=3,
    ),
    st.sampled_from([FUSED, BOTH, ALL]),
)
def test_whatever_happens_to_the_messages_every_rgb_image_is_there_once(tmp_path_factory, faults, modes) -> None:
    amounts = {"drop": 0.3, "delay": 0.2, "reorder": 0.2, "duplicate": 1, "jump": -3.0}
    injections = [
        Injection(kind, topic, 0.5, 1.5, amounts[kind], seed=number) for number, (kind, topic) in enumerate(faults)
    ]
    path = tmp_path_factory.mktemp("faults") / "bag"
    frames, drive, _ = replayed(write_drive(path, 60, faults=injections, size=(8, 6), thermal_size=(8, 6)), modes)
    assert sorted(frame.index for frame in frames if frame.rgb is not None) == list(range(drive.rgb_images))
    assert len(frames) == drive.frames


def test_the_reference_is_the_pair_of_the_unchanged_bag(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "bag", 40, thermal_late_ns=20 * MS)

    def without_thermal(messages):
        return (timed for timed in messages if timed.topic == RGB)

    frames, _, _ = replayed(path, (Mode.VISIBLE_ONLY,), change=without_thermal, with_reference=True)
    assert len(frames) == 40
    for frame in frames:
        rgb, thermal = frame.reference
        assert rgb is frame.rgb.message
        assert thermal.header.stamp == rgb.header.stamp


def test_images_that_a_change_dropped_keep_their_number_in_the_bag(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "bag", 30)

    def every_third(messages):
        for number, timed in enumerate(messages):
            if timed.topic == THERMAL or number % 3 == 1:
                yield timed

    frames, drive, _ = replayed(path, change=every_third)
    assert [frame.index for frame in frames] == list(range(0, 30, 3))
    assert (drive.rgb_images, drive.frames) == (30, 10)


def test_a_topic_may_say_whether_it_is_night(tmp_path: Path) -> None:
    string = STORE.types[STRING]
    with BagWriter(tmp_path / "bag") as writer:
        writer.add_topic(LIGHT_TOPIC, STRING)
        for topic in (RGB, THERMAL):
            writer.add_topic(topic, IMAGE)
        for number, timed in enumerate(noise(10)):
            if number == 10:
                writer.write(LIGHT_TOPIC, timed.log_ns, string(data="night"))
            writer.write(timed.topic, timed.log_ns, timed.message)
    frames, _, _ = replayed(tmp_path / "bag")
    assert [frame.light for frame in frames] == [""] * 5 + ["night"] * 5


def test_topics_are_found_and_missing_ones_named(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.add_topic("/front/image", IMAGE)
        writer.add_topic("/rgb/image_raw", IMAGE)  # without a message
        writer.write("/front/image", START, BUILD.image(np.zeros((4, 4, 3), np.uint8), "rgb8", START, "rgb"))
    with Bag(tmp_path / "bag") as bag:
        assert find_topics(bag, ["rgb"], "/front/image").rgb == "/front/image"
        assert find_topics(bag, []).rgb is None
        with pytest.raises(BagError, match=r"no images on /rgb/image_raw; it has /front/image.*--rgb-topic"):
            find_topics(bag, ["rgb"])
        with pytest.raises(BagError, match="cannot be both cameras"):
            find_topics(bag, ["rgb", "thermal"], "/front/image", "/front/image")
