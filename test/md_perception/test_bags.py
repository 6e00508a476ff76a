"""Bags: what is written is what is read, on both storages; and nothing is ever left half-done."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.bags import types, write
from md_perception.bags.__main__ import main
from md_perception.bags.make import (
    DEFAULT_START_NS,
    RGB_CAMERA,
    THERMAL_CAMERA,
    BagOptions,
    CameraOptions,
    capture_times,
    make_from_pictures,
)
from md_perception.bags.read import Bag, BagMessage
from md_perception.bags.sources import at_rate
from md_perception.bags.types import (
    DETECTIONS,
    IMAGE,
    LABEL_INFO,
    STATUS,
    TopicQos,
    UnknownTypeError,
    definition_text,
    make_header,
    message_store,
)
from md_perception.bags.write import BagError, BagWriter
from md_perception.sensing.images import image_fields, stamp_ns

START_NS = 1_700_000_000_000_000_000


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    """Ten pairs as PNG (so that pixels come back exactly): RGB 64x48, grey thermal 32x24 in three equal channels."""
    random = np.random.default_rng(7)
    folders = tmp_path / "visible", tmp_path / "thermal"
    for folder in folders:
        folder.mkdir()
    for index in range(10):
        # no leading zeros: a plain sort would put picture 10 after picture 1
        cv2.imwrite(str(folders[0] / f"p{index + 1}.png"), random.integers(0, 256, (48, 64, 3), np.uint8))
        grey = random.integers(0, 256, (24, 32), np.uint8)
        cv2.imwrite(str(folders[1] / f"p{index + 1}.png"), cv2.merge([grey, grey, grey]))
    return folders


def rgb_of(folder: Path, index: int) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(folder / f"p{index + 1}.png")), cv2.COLOR_BGR2RGB)


def grey_of(folder: Path, index: int) -> np.ndarray:
    return cv2.imread(str(folder / f"p{index + 1}.png"), cv2.IMREAD_GRAYSCALE)


def messages_of(path: Path, topic: str) -> list[BagMessage]:
    with Bag(path) as bag:
        found = list(bag.messages([topic]))
        assert bag.damage is None
    return found


def pixels(message: Any) -> np.ndarray:
    kind = {"rgb8": np.uint8, "bgr8": np.uint8, "mono8": np.uint8, "mono16": np.dtype("<u2")}[message.encoding]
    channels = 3 if message.encoding in ("rgb8", "bgr8") else 1
    image = message.data.view(kind).reshape(message.height, message.width, channels)
    return image if channels == 3 else image[..., 0]


def image_message(writer: BagWriter, stamp: int, picture: np.ndarray) -> Any:
    header = make_header(writer.store, stamp, "camera")
    return writer.store.types[IMAGE](header=header, **image_fields(picture, "mono8"))


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if "partial" in entry.name]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_pictures_come_back_exactly_with_stamps_and_headers(
    pairs: tuple[Path, Path], tmp_path: Path, storage: write.Storage
) -> None:
    options = BagOptions(
        rgb=CameraOptions("/front/rgb/image_raw", "cam", "bgr8", rate_hz=10.0),
        thermal=CameraOptions("/front/thermal/image_raw", "heat", "mono8", rate_hz=5.0),
        source_rate_hz=10.0,
        offset_s=0.02,
        start_ns=START_NS,
        storage=storage,
        progress=False,
    )

    summary = make_from_pictures(*pairs, tmp_path / "bag", options)

    rgb, thermal = (messages_of(tmp_path / "bag", f"/front/{camera}/image_raw") for camera in ("rgb", "thermal"))
    assert summary.counts["/front/rgb/image_raw"] == len(rgb) == 10
    assert summary.counts["/front/thermal/camera_info"] == len(thermal) == 5
    assert summary.duration_s == pytest.approx(0.9)
    for index, item in enumerate(rgb):
        assert item.log_ns == stamp_ns(item.message) == START_NS + index * 100_000_000
        assert (item.message.encoding, item.message.step, item.message.header.frame_id) == ("bgr8", 192, "cam")
        np.testing.assert_array_equal(pixels(item.message)[..., ::-1], rgb_of(pairs[0], index))
    for index, item in enumerate(thermal):  # every second picture, and a clock that is 20 ms ahead
        assert item.log_ns == START_NS + index * 200_000_000
        assert stamp_ns(item.message) == item.log_ns + 20_000_000
        assert (item.message.encoding, item.message.step, item.message.header.frame_id) == ("mono8", 32, "heat")
        np.testing.assert_array_equal(pixels(item.message), grey_of(pairs[1], 2 * index))
    with Bag(tmp_path / "bag") as bag:
        times = [item.log_ns for item in bag.messages()]
    assert times == sorted(times)
    assert len(times) == 30


def test_grey_pictures_become_centikelvin_over_the_given_range(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    options = BagOptions(
        thermal=CameraOptions("/thermal/image_raw", "heat", "mono16"), range_k=(280.0, 305.5), progress=False
    )

    make_from_pictures(*pairs, tmp_path / "bag", options)

    message = messages_of(tmp_path / "bag", "/thermal/image_raw")[3].message
    assert (message.encoding, message.step, message.is_bigendian) == ("mono16", 64, 0)
    # 25.5 K over 255 grey values: a tenth of a kelvin, ten centikelvin, for each
    np.testing.assert_array_equal(pixels(message), 28000 + 10 * grey_of(pairs[1], 3).astype(np.uint16))


def test_sixteen_bit_pictures_are_kept_as_they_are(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    radiometric = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) + 29000
    for file in pairs[1].iterdir():
        cv2.imwrite(str(file), radiometric)
    mono16 = BagOptions(thermal=CameraOptions("/thermal/image_raw", "heat", "mono16"), progress=False)

    make_from_pictures(*pairs, tmp_path / "bag", mono16)

    np.testing.assert_array_equal(pixels(messages_of(tmp_path / "bag", "/thermal/image_raw")[0].message), radiometric)
    with pytest.raises(BagError, match=r"uint16 pictures: write them with --thermal-encoding mono16"):
        make_from_pictures(*pairs, tmp_path / "bag8", BagOptions(progress=False))
    assert not (tmp_path / "bag8").exists()


def test_a_smaller_thermal_sensor_integrates_over_its_pixels(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    make_from_pictures(*pairs, tmp_path / "bag", BagOptions(thermal_size=(16, 12), progress=False))

    message = messages_of(tmp_path / "bag", "/thermal/image_raw")[0].message
    blocks = grey_of(pairs[1], 0).astype(float).reshape(12, 2, 16, 2).mean(axis=(1, 3))
    assert (message.width, message.height) == (16, 12)
    np.testing.assert_allclose(pixels(message), blocks, atol=0.5)
    with pytest.raises(BagError, match="a sensor of 64x48 would have to invent detail"):
        make_from_pictures(*pairs, tmp_path / "large", BagOptions(thermal_size=(64, 48), progress=False))


def test_camera_info_describes_its_image(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    make_from_pictures(*pairs, tmp_path / "bag", BagOptions(hfov_deg=90.0, progress=False))
    make_from_pictures(*pairs, tmp_path / "uncalibrated", BagOptions(progress=False))

    info = messages_of(tmp_path / "bag", "/rgb/camera_info")[0].message
    assert (info.width, info.height, info.header.frame_id) == (64, 48, "rgb_camera")
    # f = (64 / 2) / tan(45 degrees); pixel centres at integers, so that the middle is at (31.5, 23.5)
    np.testing.assert_allclose(info.k.reshape(3, 3), [[32, 0, 31.5], [0, 32, 23.5], [0, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))
    assert messages_of(tmp_path / "uncalibrated", "/rgb/camera_info")[0].message.k[0] == 0.0


def test_types_carry_the_hashes_of_upstream(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for topic, msgtype in (("/d", DETECTIONS), ("/l", LABEL_INFO), ("/i", IMAGE), ("/s", STATUS)):
            writer.add_topic(topic, msgtype, TopicQos.LATCHED if topic == "/l" else TopicQos.RELIABLE)
        writer.write("/i", 1, image_message(writer, 1, np.zeros((1, 1), np.uint8)))

    with Bag(tmp_path / "bag") as bag:
        topics = bag.topics
    # the values that vision_msgs 4.1 and sensor_msgs of Jazzy have in `ros2 topic info -v`
    assert topics["/d"].type_hash == "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    assert topics["/l"].type_hash == "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783"
    assert topics["/i"].type_hash == "RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47"
    assert message_store().hash_rihs01("vision_msgs/msg/Detection2D") == (
        "RIHS01_0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea"
    )
    assert [topics[name].qos for name in ("/d", "/l")] == [TopicQos.RELIABLE, TopicQos.LATCHED]


def test_definitions_are_those_of_the_sourced_workspace_or_lie_beside_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prefix in ("sourced", "installed"):
        folder = tmp_path / prefix / "share/vision_msgs/msg"
        folder.mkdir(parents=True)
        (folder / "Point2D.msg").write_text(f"float64 {prefix}")
    monkeypatch.setattr(types, "_CHECKOUT_FOLDERS", {})
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "installed"))

    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path / 'nowhere'}:{tmp_path / 'sourced'}")
    assert definition_text("vision_msgs/msg/Point2D") == "float64 sourced"
    monkeypatch.delenv("AMENT_PREFIX_PATH")
    assert definition_text("vision_msgs/msg/Point2D") == "float64 installed"


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownTypeError, match="acme_msgs/msg/Anvil"), BagWriter(tmp_path / "bag") as writer:
        writer.add_topic("/anvil", "acme_msgs/msg/Anvil")
    assert list(tmp_path.iterdir()) == []


def test_a_bag_is_only_replaced_when_asked_and_only_if_it_is_one(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    make_from_pictures(*pairs, bag, BagOptions(max_frames=3, progress=False))
    before = (bag / "bag.mcap").read_bytes()

    with pytest.raises(BagError, match=r"bag exists: choose another name or allow replacing it \(--force\)"):
        make_from_pictures(*pairs, bag, BagOptions(progress=False))
    assert (bag / "bag.mcap").read_bytes() == before
    make_from_pictures(*pairs, bag, BagOptions(max_frames=2, replace=True, progress=False))
    assert len(messages_of(bag, "/rgb/image_raw")) == 2
    with pytest.raises(BagError, match="is not a bag: it will not be replaced"):
        make_from_pictures(*pairs, pairs[0], BagOptions(replace=True, progress=False))
    assert len(list(pairs[0].iterdir())) == 10
    assert leftovers(tmp_path) == []


def test_a_damaged_picture_is_named_and_the_old_bag_stays(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    make_from_pictures(*pairs, bag, BagOptions(max_frames=3, progress=False))
    file = pairs[1] / "p6.png"
    file.write_bytes(file.read_bytes()[:40])

    with pytest.raises(BagError, match=r"p6\.png is damaged"):
        make_from_pictures(*pairs, bag, BagOptions(replace=True, progress=False))

    assert len(messages_of(bag, "/rgb/image_raw")) == 3
    assert leftovers(tmp_path) == []


def test_unsuitable_sources_are_refused_with_a_reason(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "clip.mp4"
    text.write_bytes(b"not a video" * 100)
    colours = tmp_path / "colours"
    colours.mkdir()
    for index in range(10):
        ramp = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
        cv2.imwrite(str(colours / f"{index}.png"), cv2.applyColorMap(ramp, cv2.COLORMAP_JET))
    out, quiet = tmp_path / "bag", BagOptions(progress=False)

    for visible, thermal, reason in (
        (empty, pairs[1], "has no image"),
        (tmp_path / "nowhere", pairs[1], "nowhere does not exist"),
        (text, pairs[1], r"clip\.mp4 is not a video"),
        (pairs[0], colours, r"0\.png, picture 0 is a thermal picture in pseudo-colour"),
    ):
        with pytest.raises(BagError, match=reason):
            make_from_pictures(visible, thermal, out, quiet)
    (pairs[1] / "p10.png").unlink()
    with pytest.raises(BagError, match=r"10 images in .* and 9 images in .*: the folders must hold pairs"):
        make_from_pictures(*pairs, out, quiet)
    with pytest.raises(BagError, match="a rate of 60 Hz is above the 30 Hz of the pictures"):
        make_from_pictures(
            pairs[0], None, out, BagOptions(rgb=CameraOptions("/rgb/image_raw", "c", "rgb8", 60.0), progress=False)
        )
    assert not out.exists()
    assert leftovers(tmp_path) == []


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Forty pictures of 64x48 at 20 Hz as motion JPEG; picture i is grey, brightness 5 i."""
    path = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(path), int.from_bytes(b"MJPG", "little"), 20.0, (64, 48))
    if not video.isOpened():
        pytest.skip("this OpenCV cannot write motion JPEG")
    for index in range(40):
        video.write(np.full((48, 64, 3), 5 * index, np.uint8))
    video.release()
    return path


def test_a_video_keeps_its_rate_and_a_slower_camera_shows_what_was_there_at_its_ticks(
    clip: Path, tmp_path: Path
) -> None:
    options = BagOptions(thermal=CameraOptions("/thermal/image_raw", "heat", "mono8", rate_hz=8.7), progress=False)

    summary = make_from_pictures(clip, clip, tmp_path / "bag", options)

    rgb, thermal = (messages_of(tmp_path / "bag", f"/{camera}/image_raw") for camera in ("rgb", "thermal"))
    assert summary.counts["/rgb/image_raw"] == 40
    assert rgb[-1].log_ns - rgb[0].log_ns == 39 * 50_000_000
    assert len(thermal) == 18  # ticks k / 8.7 Hz below 2 s
    for tick, item in enumerate(thermal):
        assert item.log_ns - rgb[0].log_ns == pytest.approx(tick / 8.7 * 1e9, abs=1)
        assert float(pixels(item.message).mean()) == pytest.approx(5 * int(tick * 20 / 8.7), abs=2.5)


def test_a_video_that_is_cut_short_is_an_error_until_one_asks_for_what_is_there(clip: Path, tmp_path: Path) -> None:
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])

    with pytest.raises(BagError, match=r"clip\.avi .*"):
        make_from_pictures(clip, None, tmp_path / "bag", BagOptions(progress=False))

    assert not (tmp_path / "bag").exists()
    assert leftovers(tmp_path) == []


@given(
    source_hz=st.floats(1.0, 120.0),
    slower=st.floats(1.0, 15.0),
    count=st.integers(1, 300),
)
def test_resampling_takes_the_picture_at_or_just_before_each_tick(source_hz: float, slower: float, count: int) -> None:
    rate_hz = source_hz / slower
    pictures = [np.full((1, 1), index % 65536, np.uint16) for index in range(count)]

    taken = [int(picture[0, 0]) for picture in at_rate(pictures, source_hz, rate_hz)]

    assert taken[0] == 0
    for tick, index in enumerate(taken):
        assert index - 2e-3 <= tick * slower < index + 1 + 2e-3
    assert len(taken) * slower >= count - 1 - slower  # and none is left out at the end


@given(rate_hz=st.floats(1.0, 100.0), jitter=st.floats(0.0, 3.0), seed=st.integers(0, 2**31))
def test_capture_times_rise_and_do_not_drift(rate_hz: float, jitter: float, seed: int) -> None:
    times = list(capture_times(START_NS, rate_hz, jitter / rate_hz, seed, 50 / rate_hz))

    assert len(times) == 50
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert all(abs((t - START_NS) * 1e-9 - k / rate_hz) <= 0.45 / rate_hz + 1e-8 for k, t in enumerate(times))


def test_an_mcap_without_its_end_is_read_as_far_as_it_goes(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    whole = tmp_path / "bag"
    with BagWriter(whole) as writer:
        writer.add_topic("/image", IMAGE)
        picture = np.random.default_rng(1).integers(0, 256, (256, 1024), np.uint8)  # four fill a chunk
        for index in range(20):
            writer.write("/image", START_NS + index, image_message(writer, START_NS + index, picture))
    file = whole / "bag.mcap"
    file.write_bytes(file.read_bytes()[: 3 * 2**20])
    (whole / "metadata.yaml").unlink()

    with Bag(whole) as bag:
        found = list(bag.messages())
        assert bag.damage is not None
        assert "cut or damaged" in bag.damage
        assert bag.topics["/image"].count == len(found)

    assert 8 <= len(found) <= 12  # the chunks that are whole
    assert [stamp_ns(item.message) - START_NS for item in found] == list(range(len(found)))
    np.testing.assert_array_equal(pixels(found[-1].message), picture)


def test_a_split_bag_is_read_up_to_the_cut_in_its_last_file(tmp_path: Path) -> None:
    """As after a power cut: no metadata, and the newest file, the tenth, ends anywhere. Each file numbers its topics
    anew."""
    folder = tmp_path / "drive"
    folder.mkdir()
    for number in (2, 9, 10):
        with BagWriter(tmp_path / f"part_{number}") as writer:
            for topic in ("/b", "/a") if number == 9 else ("/a", "/b"):
                writer.add_topic(topic, IMAGE)
            for index in range(8):
                picture = np.random.default_rng(index).integers(0, 256, (256, 1024), np.uint8)  # four fill a chunk
                stamp = START_NS + 8 * number + index
                writer.write("/a" if index % 2 else "/b", stamp, image_message(writer, stamp, picture))
        content = (tmp_path / f"part_{number}/part_{number}.mcap").read_bytes()
        (folder / f"drive_{number}.mcap").write_bytes(content if number < 10 else content[: int(1.5 * 2**20)])

    with Bag(folder) as bag:
        found = [(item.topic, item.log_ns - START_NS) for item in bag.messages()]
        assert bag.damage is not None
        assert "of drive_10.mcap" in bag.damage
        assert {name: topic.count for name, topic in bag.topics.items()} == {"/a": 10, "/b": 10}
    expected = [8 * number + index for number in (2, 9) for index in range(8)] + [80, 81, 82, 83]
    assert found == [("/a" if at % 2 else "/b", at) for at in expected]


@pytest.mark.parametrize("share", [0.3, 0.75, 0.999])
@pytest.mark.parametrize("alone", [True, False])
def test_a_cut_database_is_read_up_to_the_cut(tmp_path: Path, share: float, alone: bool) -> None:
    with BagWriter(tmp_path / "drive", storage="sqlite3") as writer:
        for topic in ("/a", "/b"):
            writer.add_topic(topic, IMAGE)
        for index in range(40):
            picture = np.full((128, 128), index, np.uint8)
            stamp = START_NS + index
            writer.write("/a" if index % 2 else "/b", stamp, image_message(writer, stamp, picture))
    (file,) = (tmp_path / "drive").glob("*.db3")
    size = file.stat().st_size
    os.truncate(file, int(size * share))

    with Bag(file if alone else tmp_path / "drive") as bag:
        found = [(item.topic, item.log_ns - START_NS, int(item.message.data[0])) for item in bag.messages()]
        assert bag.damage is not None
        if share < 0.99:  # of a part of its last page SQLite knows only when it is there
            assert f"after message {len(found)}: " in bag.damage
            assert sum(topic.count for topic in bag.topics.values()) == len(found)
            assert (bag.start_ns, bag.end_ns) == (START_NS, START_NS + len(found) - 1)
    assert found == [("/a" if index % 2 else "/b", index, index) for index in range(len(found))]
    assert 40 * share - 4 <= len(found) < 40


def small_database(path: Path) -> Path:
    """Write a SQLite3 bag of three messages and return its storage file."""
    with BagWriter(path, storage="sqlite3") as writer:
        writer.add_topic("/a", IMAGE)
        for index in range(3):
            stamp = START_NS + index
            writer.write("/a", stamp, image_message(writer, stamp, np.full((8, 8), index, np.uint8)))
    (file,) = path.glob("*.db3")
    return file


def test_a_whole_database_whose_recorder_was_killed_before_the_metadata_is_read(tmp_path: Path) -> None:
    small_database(tmp_path / "drive")
    (tmp_path / "drive/metadata.yaml").unlink()
    with Bag(tmp_path / "drive") as bag:
        assert [item.log_ns - START_NS for item in bag.messages()] == [0, 1, 2]
        assert bag.damage is not None
        assert "metadata" in bag.damage


@pytest.mark.parametrize("alone", [True, False])
def test_messages_that_wait_in_a_log_beside_the_database_are_told(tmp_path: Path, alone: bool) -> None:
    file = small_database(tmp_path / "drive")
    file.with_name(f"{file.name}-wal").touch()
    with Bag(file if alone else tmp_path / "drive") as bag:
        assert bag.damage is None or "-wal" not in bag.damage  # an empty log holds nothing
    file.with_name(f"{file.name}-wal").write_bytes(bytes(32))
    with Bag(file if alone else tmp_path / "drive") as bag:
        assert bag.damage is not None
        assert f"messages of {file.name}-wal are not read" in bag.damage
        assert f"sqlite3 {file.name} 'PRAGMA wal_checkpoint(TRUNCATE)'" in bag.damage


def test_what_is_no_bag_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(range(256)))

    for name, reason in (("nowhere", "there is no bag"), ("empty", "not a bag"), ("noise.mcap", "no message can be")):
        with pytest.raises(BagError, match=reason):
            Bag(tmp_path / name)


def test_a_missing_topic_is_named_with_those_that_are_there(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    make_from_pictures(pairs[0], None, tmp_path / "bag", BagOptions(max_frames=1, progress=False))

    with (
        Bag(tmp_path / "bag") as bag,
        pytest.raises(BagError, match=r"has no topic /depth; it has /rgb/camera_info, /rgb"),
    ):
        list(bag.messages(["/depth"]))


def test_the_command_line_makes_the_bag_that_its_options_describe(
    pairs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = tmp_path / "bag"
    arguments = ["make", "--visible", str(pairs[0]), "--thermal", str(pairs[1]), "--out", str(bag)]
    arguments += ["--thermal-size", "16x12", "--thermal-encoding", "mono16", "--thermal-range", "290", "300"]
    arguments += ["--source-rate", "20", "--rgb-rate", "10", "--thermal-rate", "5", "--start-stamp", "12.000000007"]

    assert main([*arguments, "--storage", "sqlite3", "--rgb-topic", "/a/image"]) == 0
    assert main(["info", str(bag)]) == 0

    printed = capsys.readouterr()
    assert "5   10.00 Hz  /a/image  sensor_msgs/msg/Image  reliable" in printed.out
    assert [path.name for path in sorted(bag.iterdir())] == ["bag.db3", "metadata.yaml"]
    thermal = messages_of(bag, "/thermal/image_raw")
    assert [item.log_ns for item in thermal] == [12_000_000_007, 12_200_000_007, 12_400_000_007]
    assert 29000 <= pixels(thermal[0].message).min() <= pixels(thermal[0].message).max() <= 30000
    assert main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["make", "--out", str(tmp_path / "none")]) == 1
    assert "--visible" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(pairs: tuple[Path, Path], tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    out.mkdir()
    program = (  # two pictures that take for ever
        "import sys, time\n"
        "from md_perception.bags import __main__, sources\n"
        "decoded = sources.PictureSource._decoded\n"
        "def slow(self, colour):\n"
        "    for picture in decoded(self, colour):\n"
        "        yield picture\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "sources.PictureSource._decoded = slow\n"
        f"sys.exit(__main__.main(['make', '--visible', {str(pairs[0])!r}, '--out', {str(out / 'bag')!r}]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert list(out.glob(".bag.partial-*/bag/bag.mcap"))
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 130
    assert "nothing was left behind" in error
    assert list(out.iterdir()) == []


def test_default_options_are_those_of_the_command_line() -> None:
    options = BagOptions()
    assert (options.rgb, options.thermal, options.start_ns) == (RGB_CAMERA, THERMAL_CAMERA, DEFAULT_START_NS)
    with pytest.raises(BagError, match="not an absolute topic name"):
        CameraOptions("image", "c", "rgb8")
    with pytest.raises(BagError, match="both cameras would publish"):
        BagOptions(thermal=CameraOptions("/rgb/thermal", "c", "mono8"))
