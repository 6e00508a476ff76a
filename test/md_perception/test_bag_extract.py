"""From a bag to a data set: the pairs are those of the node, the labels those of the truth, and every image counts."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.bags.__main__ import main
from md_perception.bags.extract import INDEX, ExtractOptions, ExtractSummary, _Selection, extract, yolo_text
from md_perception.bags.make import BagOptions, CameraOptions
from md_perception.bags.read import Bag, BagMessage
from md_perception.bags.results import TRUTH_DETECTIONS, TRUTH_MASK, detections_of
from md_perception.bags.scenes import StreetOptions, make_from_scenes
from md_perception.bags.types import COMPRESSED_IMAGE, IMAGE, make_header
from md_perception.bags.write import BagError, BagWriter, Storage
from md_perception.evaluation.truth import TruthError, open_truth
from md_perception.labels import DETECTION
from md_perception.results import Detections
from md_perception.sensing.images import image_fields, stamp_ns, to_rgb
from md_perception.sensing.thermal import ThermalNormaliser, ThermalSettings

START_NS = 1_700_000_000_000_000_000
SIZE, THERMAL_SIZE = (160, 128), (40, 32)
QUIET = ExtractOptions(progress=False)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve RGB images at 10 Hz with their truth; six thermal images at 5 Hz in centikelvin, 20 ms ahead."""
    path = tmp_path_factory.mktemp("street") / "bag"
    options = BagOptions(
        rgb=CameraOptions("/rgb/image_raw", "rgb", "bgr8", rate_hz=10.0),
        thermal=CameraOptions("/thermal/image_raw", "thermal", "mono16", rate_hz=5.0),
        offset_s=0.02,
        seed=4,
        start_ns=START_NS,
        progress=False,
    )
    make_from_scenes(path, options, StreetOptions(frames=12, size=SIZE))
    return path


CENTIKELVIN = replace(QUIET, thermal=ThermalSettings("centikelvin"))


def write_bag(
    path: Path,
    seconds: Sequence[float],
    thermal_seconds: Sequence[float] | None = None,
    *,
    storage: Storage = "mcap",
    compressed: bool = False,
    still: bool = False,
) -> Path:
    """Write grey noise, RGB 32x24 and thermal 16x12, with stamps at these times. still: always the same images."""
    random = np.random.default_rng(3)
    events = [("rgb", t) for t in seconds] + [("thermal", t) for t in thermal_seconds or seconds]
    with BagWriter(path, storage) as writer:
        ending = "/compressed" if compressed else ""
        for camera in ("rgb", "thermal"):
            writer.add_topic(f"/{camera}/image_raw{ending}", COMPRESSED_IMAGE if compressed else IMAGE)
        for camera, at in sorted(events, key=lambda event: event[1]):
            ns = START_NS + round(at * 1e9)
            if still:
                random = np.random.default_rng(3)
            shape = (24, 32, 3) if camera == "rgb" else (12, 16)
            image = random.integers(0, 256, shape, np.uint8)
            header = make_header(writer.store, ns, camera)
            if compressed:
                data = cv2.imencode(".png", image)[1]
                what = "rgb8; png compressed bgr8" if camera == "rgb" else "mono8; png compressed "
                message = writer.store.types[COMPRESSED_IMAGE](header=header, format=what, data=data.reshape(-1))
            else:
                fields = image_fields(image, "rgb8" if camera == "rgb" else "mono8")
                message = writer.store.types[IMAGE](header=header, **fields)
            writer.write(f"/{camera}/image_raw{ending}", ns, message)
    return path


def adds_up(summary: ExtractSummary) -> bool:
    counts = summary.counts
    left_out = counts.unpaired.total() + counts.rejected.total() + counts.skipped.total()
    return counts.rgb == counts.extracted + left_out and counts.extracted == sum(summary.lists.values())


def names_of(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.txt").read_text().split()


def seconds_of(names: Sequence[str]) -> list[float]:
    return [round((int(name) - START_NS) * 1e-9, 3) for name in names]


def messages(path: Path, topic: str) -> Iterator[Any]:
    with Bag(path) as bag:
        yield from (item.message for item in bag.messages([topic]))


def test_pairs_and_labels_are_those_of_the_scene_bag(street: Path, tmp_path: Path) -> None:
    summary = extract(street, tmp_path / "set", replace(CENTIKELVIN, tolerance_s=0.03, least_score=0.0))

    # Every second RGB image has a thermal one, 20 ms later; the others' are 80 ms away.
    assert adds_up(summary)
    assert (summary.counts.rgb, summary.counts.extracted, summary.counts.unpaired.total()) == (12, 6, 6)
    assert (summary.boxes, summary.masks, summary.damage) == (6, 6, None)
    names = names_of(tmp_path / "set", "train")
    assert seconds_of(names) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    normalise = ThermalNormaliser(ThermalSettings("centikelvin"))
    thermal = {stamp_ns(message): normalise(message) for message in messages(street, "/thermal/image_raw")}
    rgb = {stamp_ns(message): to_rgb(message) for message in messages(street, "/rgb/image_raw")}
    masks = {stamp_ns(m): m.data.reshape(m.height, m.width) for m in messages(street, TRUTH_MASK)}
    truth = {stamp_ns(message): detections_of(message) for message in messages(street, TRUTH_DETECTIONS)}
    index = json.loads((tmp_path / "set" / INDEX).read_text())
    assert index["topics"]["thermal"] == "/thermal/image_raw"
    for entry, name in zip(index["pairs"], names, strict=True):
        stamp = int(name)
        assert (entry["rgb_stamp_ns"], entry["offset_ns"]) == (stamp, 20_000_000)
        files = [str(tmp_path / "set" / folder / f"{name}.png") for folder in ("visible", "thermal", "masks")]
        np.testing.assert_array_equal(cv2.imread(files[0])[..., ::-1], rgb[stamp])
        np.testing.assert_array_equal(cv2.imread(files[1], cv2.IMREAD_UNCHANGED), thermal[entry["thermal_stamp_ns"]])
        np.testing.assert_array_equal(cv2.imread(files[2], cv2.IMREAD_UNCHANGED), masks[stamp])
        rows = np.loadtxt(tmp_path / "set" / "boxes" / f"{name}.txt", ndmin=2)
        assert rows[:, 0].tolist() == truth[stamp].labels.tolist()
        centre, extent = rows[:, 1:3] * SIZE, rows[:, 3:] * SIZE
        boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
        np.testing.assert_allclose(boxes, truth[stamp].boxes, atol=1e-5)


def test_hidden_objects_are_ignored_and_not_background(street: Path, tmp_path: Path) -> None:
    extract(street, tmp_path / "set", CENTIKELVIN)

    assert (tmp_path / "set" / "classes.txt").read_text().split() == [*DETECTION.classes, "ignore"]
    for message in messages(street, TRUTH_DETECTIONS):
        path = tmp_path / "set" / "boxes" / f"{stamp_ns(message)}.txt"
        if path.exists():
            truth = detections_of(message)
            expected = np.where(truth.scores < 0.5, 3, truth.labels)
            assert np.loadtxt(path, ndmin=2)[:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_compressed_images_of_both_storages(tmp_path: Path, storage: Storage) -> None:
    write_bag(tmp_path / "bag", [0.0, 0.1, 0.2], storage=storage, compressed=True)

    summary = extract(tmp_path / "bag", tmp_path / "set", QUIET)

    assert (summary.topics.rgb, summary.counts.extracted) == ("/rgb/image_raw/compressed", 3)
    for message in messages(tmp_path / "bag", "/thermal/image_raw/compressed"):
        there = (tmp_path / "set" / "thermal" / f"{stamp_ns(message)}.png").read_bytes()
        pixels = cv2.imdecode(np.frombuffer(there, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(pixels, cv2.imdecode(message.data, cv2.IMREAD_UNCHANGED))
    assert summary.boxes is None
    assert not (tmp_path / "set" / "boxes").exists()


def test_a_constant_offset_of_the_thermal_clock(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [0.0, 0.1, 0.2], [0.3, 0.4, 0.5])

    summary = extract(tmp_path / "bag", tmp_path / "set", replace(QUIET, tolerance_s=0.01, offset_s=-0.3))

    assert summary.counts.extracted == 3
    pairs = json.loads((tmp_path / "set" / INDEX).read_text())["pairs"]
    assert [pair["thermal_stamp_ns"] - pair["rgb_stamp_ns"] for pair in pairs] == [300_000_000] * 3
    assert [pair["offset_ns"] for pair in pairs] == [0] * 3


def test_thermal_is_mapped_as_the_options_say(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [0.0])
    extract(tmp_path / "bag", tmp_path / "set", replace(QUIET, thermal=ThermalSettings(polarity="black_hot")))

    (message,) = messages(tmp_path / "bag", "/thermal/image_raw")
    written = cv2.imread(str(tmp_path / "set" / "thermal" / f"{START_NS}.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, 255 - message.data.reshape(12, 16))


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 pairs at 10 Hz, 0.0 to 9.9 s."""
    return write_bag(tmp_path_factory.mktemp("drive") / "bag", [k / 10 for k in range(100)])


class TestWhichPairs:
    def extracted(self, drive: Path, folder: Path, **options: Any) -> tuple[ExtractSummary, list[float]]:
        summary = extract(drive, folder / "set", replace(QUIET, **options))
        assert adds_up(summary)
        return summary, seconds_of(names_of(folder / "set", "train"))

    def test_every_third(self, drive: Path, tmp_path: Path) -> None:
        summary, seconds = self.extracted(drive, tmp_path, every=3)
        assert seconds == [round(k * 0.3, 1) for k in range(34)]
        assert summary.counts.skipped == {"one pair of 3 is taken": 66}

    def test_at_least_so_far_apart(self, drive: Path, tmp_path: Path) -> None:
        _, seconds = self.extracted(drive, tmp_path, min_interval_s=0.25)
        assert seconds == [round(k * 0.3, 1) for k in range(34)]

    def test_at_most_so_many_spread_over_the_drive(self, drive: Path, tmp_path: Path) -> None:
        _, seconds = self.extracted(drive, tmp_path, max_pairs=4)
        assert seconds == [0.0, 2.5, 5.0, 7.5]  # the first of each quarter of 9.9 s

    def test_validation_comes_in_blocks_and_neighbours_are_left_out(self, drive: Path, tmp_path: Path) -> None:
        summary, train = self.extracted(drive, tmp_path, val_share=0.4, val_block_s=2.0, gap_s=0.52)
        val = seconds_of(names_of(tmp_path / "set", "val"))
        # Two cycles of 4.95 s, the last 1.98 s of each for validation: borders at 2.97, 4.95 and 7.92 s, and 0.26 s on
        # either side of them are left out.
        assert train == [t / 10 for t in (*range(28), *range(53, 77))]
        assert val == [t / 10 for t in (*range(33, 47), *range(82, 100))]
        assert summary.lists == {"train": 52, "val": 32}
        assert summary.counts.skipped == {"within 0.52 s between training and validation": 16}

    def test_a_drive_too_short_for_its_lists_is_refused(self, drive: Path, tmp_path: Path) -> None:
        with pytest.raises(BagError, match=r"no pair is left for val.txt: a drive of 9.9 s is short"):
            extract(drive, tmp_path / "set", replace(QUIET, val_share=0.1, gap_s=3.0))
        assert list(tmp_path.iterdir()) == []


@given(
    share=st.floats(0.05, 0.6),
    block_s=st.floats(0.3, 5.0),
    gap_s=st.floats(0.0, 0.6),
    seconds=st.lists(st.integers(0, 999), min_size=20, max_size=60, unique=True).map(sorted),
)
def test_no_two_neighbours_are_on_both_lists(share: float, block_s: float, gap_s: float, seconds: list[int]) -> None:
    times = [second * 10_000_000 for second in seconds]
    options = replace(QUIET, val_share=share, val_block_s=block_s, gap_s=gap_s)
    selection = _Selection(options, times[0], times[-1])
    sides: dict[str, list[int]] = {"train": [], "val": []}
    for at in times:
        if selection.reason_to_skip(BagMessage("/rgb", IMAGE, at, b"", None), at) is None:  # type: ignore[arg-type]
            sides[selection.side(at)].append(at)
    distances = [abs(a - b) * 1e-9 for a in sides["train"] for b in sides["val"]]
    assert min(distances, default=gap_s) >= gap_s - 1e-6


def test_a_camera_that_stands_still_gives_one_pair(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [0.0, 0.1, 0.2], still=True)

    summary = extract(tmp_path / "bag", tmp_path / "set", QUIET)

    assert summary.counts.extracted == 1
    assert summary.counts.skipped == {"the same images as an earlier pair: a camera that stood still?": 2}


def test_lists_and_geometry_for_the_reader(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [0.0, 0.1])
    homography = (0.5, 0.0, 1.0, 0.0, 0.5, 2.0, 0.0, 0.0, 1.0)

    extract(tmp_path / "bag", tmp_path / "set", replace(QUIET, night=True, prefix="d7_", homography=homography))

    names = [f"d7_{START_NS}", f"d7_{START_NS + 100_000_000}"]
    assert names_of(tmp_path / "set", "night") == names_of(tmp_path / "set", "train") == names
    assert tuple(map(float, names_of(tmp_path / "set", "homography"))) == homography


def test_a_damaged_bag_is_read_up_to_the_damage(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [k / 10 for k in range(900)])
    (file,) = (tmp_path / "bag").glob("*.mcap")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])

    summary = extract(tmp_path / "bag", tmp_path / "set", QUIET)

    assert adds_up(summary)
    assert 0 < summary.counts.extracted < 900
    assert summary.damage is not None
    assert "the bag is damaged and was read up to there" in summary.text()
    assert json.loads((tmp_path / "set" / INDEX).read_text())["damage"] == summary.damage


def test_a_pair_without_truth_is_not_taken_for_an_empty_street(street: Path, tmp_path: Path) -> None:
    with Bag(street) as bag, BagWriter(tmp_path / "bag") as writer:
        for topic in bag.topics.values():
            writer.add_topic(topic.name, topic.msgtype)
        for item in bag.messages():
            if (item.topic, item.log_ns) != (TRUTH_DETECTIONS, START_NS + 400_000_000):
                writer.write_raw(item.topic, item.log_ns, item.raw)

    summary = extract(tmp_path / "bag", tmp_path / "set", replace(CENTIKELVIN, tolerance_s=0.03))

    assert adds_up(summary)
    assert summary.counts.rejected == {"no message on /truth/detections": 1}
    assert (summary.boxes, summary.masks) == (5, 5)
    for folder in ("visible", "thermal", "boxes", "masks"):
        found = sorted(path.stem for path in (tmp_path / "set" / folder).iterdir())
        assert seconds_of(found) == [0.0, 0.2, 0.6, 0.8, 1.0]


def test_thermal_values_of_unknown_unit_are_refused_before_the_whole_bag_is_read(street: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"the first 10 pairs cannot be used: .* does not say its unit"):
        extract(street, tmp_path / "set", replace(QUIET, tolerance_s=0.2))
    assert list(tmp_path.iterdir()) == []


def test_topics_that_are_not_there_are_named_with_those_that_are(street: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"no .*Image.* on /ir; it has /rgb/image_raw, /thermal/image_raw"):
        extract(street, tmp_path / "set", replace(QUIET, thermal_topic="/ir"))
    with pytest.raises(BagError, match="cannot be both cameras"):
        extract(street, tmp_path / "set", replace(QUIET, thermal_topic="/rgb/image_raw"))
    with pytest.raises(BagError, match=r"/thermal/image_raw has no message with the stamp of an extracted RGB image"):
        extract(street, tmp_path / "set", replace(CENTIKELVIN, mask_topic="/thermal/image_raw"))
    with pytest.raises(BagError, match=r"/rgb/image_raw: a mask \(128, 160, 3\) of uint8 beside an RGB image"):
        extract(street, tmp_path / "set", replace(CENTIKELVIN, mask_topic="/rgb/image_raw"))


@pytest.mark.parametrize(("fault", "reason"), [("class", "`results` are empty"), ("box", "whose box is not finite")])
def test_an_object_that_is_none_is_refused_with_its_stamp(
    street: Path, fault: str, reason: str, tmp_path: Path
) -> None:
    with Bag(street) as bag, BagWriter(tmp_path / "bag") as writer:
        for topic, summary in bag.topics.items():
            writer.add_topic(topic, summary.msgtype)
        for item in bag.messages():
            message = item.message
            for detection in message.detections if item.topic == TRUTH_DETECTIONS else ():
                if fault == "class":
                    detection.results = []
                else:
                    detection.bbox.center.position.x = math.nan
            writer.write(item.topic, item.log_ns, message)
    with pytest.raises(BagError, match=rf"/truth/detections, stamp \d+: a detection .*{reason}; mend its publisher"):
        extract(tmp_path / "bag", tmp_path / "out", replace(CENTIKELVIN, tolerance_s=0.03))
    with Bag(tmp_path / "bag") as bag, pytest.raises(TruthError, match=reason):
        open_truth(bag)


def test_nothing_but_an_extracted_set_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", [0.0, 0.1])
    out = tmp_path / "set"
    out.mkdir()
    extract(bag, out, QUIET)  # an empty folder is nobody's
    with pytest.raises(BagError, match="is there already"):
        extract(bag, out, QUIET)
    extract(bag, out, replace(QUIET, every=2, replace=True))
    assert len(names_of(out, "train")) == 1
    with pytest.raises(BagError, match="no pair to extract"):
        extract(write_bag(tmp_path / "apart", [0.0], [5.0]), out, replace(QUIET, replace=True))
    assert len(names_of(out, "train")) == 1  # as before
    (out / INDEX).unlink()
    with pytest.raises(BagError, match="was not written by extract"):
        extract(bag, out, replace(QUIET, replace=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apart", "bag", "set"]


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was left behind"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_an_extraction_that_ends_early_leaves_nothing(
    failure: BaseException,
    status: int,
    said: str,
    drive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written: list[Path] = []

    def fail_at_the_tenth(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 10:
            raise failure
        with path.open("wb") as file:
            return file.write(data)

    monkeypatch.setattr(Path, "write_bytes", fail_at_the_tenth)

    assert main(["extract", str(drive), "--out", str(tmp_path / "set")]) == status
    assert said in capsys.readouterr().err
    assert len(written) == 10
    assert list(tmp_path.iterdir()) == []


def test_options_that_cannot_be_are_refused() -> None:
    for options in ({"every": 0}, {"max_pairs": 0}, {"val_share": 1.0}, {"gap_s": -1.0}, {"prefix": "../"}):
        with pytest.raises(BagError):
            ExtractOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(BagError, match="singular"):
        ExtractOptions(homography=(0.0,) * 9)


def test_boxes_are_clipped_to_the_image() -> None:
    boxes = np.array([[-10, 0, 10, 20], [90, 40, 120, 60], [100, 0, 110, 10]], np.float32)
    objects = Detections(boxes, np.array([1, 0.4, 1], np.float32), np.array([0, 2, 1]))
    # 100x50 px: the first keeps its right half, the second 10x10 px in the corner, the third nothing.
    assert yolo_text(objects, (100, 50)) == (
        "0 0.050000000 0.200000000 0.100000000 0.400000000\n2 0.950000000 0.900000000 0.100000000 0.200000000\n"
    )
    assert yolo_text(objects, (100, 50), 0.5).split("\n")[1].startswith("3 0.95")


def test_the_command_line(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["extract", str(street), "--out", str(tmp_path / "set"), "--tolerance", "0.03"]

    assert main([*arguments, "--thermal-encoding", "centikelvin", "--every", "2", "--detections-topic", ""]) == 0

    said = capsys.readouterr().out
    assert "12 RGB images in the bag = 3 extracted + 6 unpaired + 0 rejected + 3 skipped" in said
    assert "labels: boxes of 0 pairs, masks of 3" in said
    assert main(arguments) == 1
    assert "--replace" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "set")
    assert main([*arguments, "--thermal-encoding", "celsius"]) == 1
    assert "thermal.encoding 'celsius' needs 32FC1" in capsys.readouterr().err
    assert main([*arguments, "--thermal-encoding", "celsius", "--thermal-polarity", "black_hot"]) == 1
