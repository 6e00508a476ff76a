"""Ground truth finds its frames: from topics of the bag and from every kind of file; what does not fit is named."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from md_perception.annotations.files import DataError
from md_perception.bags.extract import ExtractOptions, extract
from md_perception.bags.make import BagOptions, CameraOptions
from md_perception.bags.read import Bag
from md_perception.bags.results import TRUTH_DETECTIONS, TRUTH_MASK, detections_of
from md_perception.bags.scenes import StreetOptions, make_from_scenes
from md_perception.bags.types import DETECTIONS, IMAGE
from md_perception.bags.write import BagWriter
from md_perception.evaluation import truth_sources
from md_perception.evaluation.truth import Truth, TruthError, TruthSpec, open_truth
from md_perception.labels import DETECTION
from md_perception.outputs.messages import MessageBuilder
from md_perception.results import Detections, Mode, Perception, Segmentation, StudentOutput
from md_perception.sensing.images import stamp_ns

SIZE = (160, 128)
FRAMES = 6
START_NS = 1_700_000_000_000_000_000
PERSON, CAR = DETECTION.id_of("person"), DETECTION.id_of("car")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six RGB images of a street at 10 Hz, each with its truth."""
    path = tmp_path_factory.mktemp("street") / "bag"
    options = BagOptions(
        rgb=CameraOptions("/rgb/image_raw", "rgb", "rgb8", rate_hz=10.0),
        thermal=CameraOptions("/thermal/image_raw", "thermal", "mono8", rate_hz=10.0),
        seed=4,
        start_ns=START_NS,
        progress=False,
    )
    make_from_scenes(path, options, StreetOptions(frames=FRAMES, size=SIZE))
    return path


@pytest.fixture(scope="module")
def stamps(street: Path) -> list[int]:
    with Bag(street) as bag:
        return [stamp_ns(item.message) for item in bag.messages(["/rgb/image_raw"])]


def opened(street: Path, **spec: object) -> Truth:
    with Bag(street) as bag:
        truth = open_truth(bag, TruthSpec(**spec))  # type: ignore[arg-type]
    assert truth is not None
    return truth


def write_yolo(folder: Path, names: Sequence[str], line: str = "0 0.5 0.5 0.25 0.5\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text(line)
    return folder


class TestTopics:
    @pytest.mark.parametrize("topic", [TRUTH_DETECTIONS, TRUTH_MASK])
    def test_a_stamp_that_is_there_twice_is_refused(self, street: Path, topic: str, tmp_path: Path) -> None:
        with Bag(street) as bag, BagWriter(tmp_path / "bag") as writer:
            for name, summary in bag.topics.items():
                writer.add_topic(name, summary.msgtype)
            for item in bag.messages(list(bag.topics)):
                for _ in range(1 + (item.topic == topic)):
                    writer.write(item.topic, item.log_ns, item.message)
        with pytest.raises(TruthError, match=f"{topic} has two messages with the stamp {START_NS}: .* truth as files"):
            opened(tmp_path / "bag")

    def test_boxes_masks_and_occlusion_of_a_scene_bag(self, street: Path, stamps: list[int]) -> None:
        with Bag(street) as bag:
            messages = [item.message for item in bag.messages([TRUTH_DETECTIONS])]
            masks = [np.frombuffer(i.message.data, np.uint8).reshape(SIZE[::-1]) for i in bag.messages([TRUTH_MASK])]

        truth = opened(street)

        assert truth.counting == "plain"
        assert truth.classes == DETECTION.classes
        assert truth.has_masks
        for index, (stamp, message, mask) in enumerate(zip(stamps, messages, masks, strict=True)):
            frame = truth.truth_of(stamp, index, SIZE)
            expected = detections_of(message)
            assert len(expected) > 0
            np.testing.assert_allclose(frame.boxes, expected.boxes, atol=1e-4)
            assert frame.labels.tolist() == expected.labels.tolist()
            assert not frame.ignored.any()
            # KAIST's levels of the visible share
            levels = [0 if share >= 0.9 else 1 if share >= 0.5 else 2 for share in expected.scores]
            assert frame.occlusion.tolist() == levels
            assert np.array_equal(frame.mask, mask)
        assert truth.truth_of(stamps[0] + 1, 0, SIZE) is None
        assert truth.light_of(stamps[0], 0) is None

    def test_masks_are_found_in_any_order_with_few_in_memory(
        self, street: Path, stamps: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(truth_sources, "MASKS_AHEAD", 1)
        truth, again = opened(street), opened(street)
        in_order = [again.truth_of(stamp, 0, SIZE).mask for stamp in stamps]
        assert not np.array_equal(in_order[0], in_order[5])

        for index in (4, 1, 5, 0, 0, 3):
            assert np.array_equal(truth.truth_of(stamps[index], index, SIZE).mask, in_order[index])
        source = truth._sources[1]
        assert len(source._ahead) <= 1

    def test_a_topic_that_is_not_there_is_named(self, street: Path) -> None:
        with pytest.raises(TruthError, match=r"no vision_msgs.* on /labels; it has /truth/detections"):
            opened(street, detections_topic="/labels")

    def test_topics_can_be_left_out(self, street: Path, stamps: list[int]) -> None:
        truth = opened(street, mask_topic="")

        assert not truth.has_masks
        assert truth.truth_of(stamps[0], 0, SIZE).mask is None
        with Bag(street) as bag:
            assert open_truth(bag, TruthSpec(detections_topic="", mask_topic="")) is None

    def test_a_mask_of_another_size_is_refused(self, street: Path, stamps: list[int]) -> None:
        with pytest.raises(TruthError, match=r"a mask \(160, 128\) of uint8 beside an RGB image of 320x256 px"):
            opened(street).truth_of(stamps[0], 0, (320, 256))

    def test_other_names_of_classes_are_renamed_or_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "bag"
        boxes = np.array([[10, 10, 20, 40], [30, 10, 40, 40], [60, 20, 90, 50]], np.float32)
        found = Detections(boxes, np.array([0.9, 0.8, 0.2], np.float32), np.array([0, 1, 2]))
        mask = np.full(SIZE[::-1], 255, np.uint8)
        perception = Perception(
            7, "rgb", Mode.FUSED, SIZE, np.zeros((*SIZE[::-1], 3), np.uint8),
            StudentOutput(found, Segmentation(mask, mask)),
        )  # fmt: skip
        with BagWriter(path) as writer:
            build = MessageBuilder(writer.store.types.__getitem__)
            writer.add_topic("/labels", DETECTIONS)
            writer.add_topic("/masks", IMAGE)
            writer.write("/labels", 7, build.detections(perception, ("pedestrian", "crowd", "tree")))
            writer.write("/masks", 7, build.mask(perception))
        topics = {"detections_topic": "/labels", "mask_topic": "/masks"}

        rename = {"pedestrian": "person", "crowd": "ignore", "tree": "background"}
        frame = opened(path, **topics, rename=rename).truth_of(7, 0, SIZE)

        # A region to be ignored is one for every class.
        assert frame.labels.tolist() == [PERSON, 0, 1, 2]
        assert frame.ignored.tolist() == [False, True, True, True]
        assert frame.boxes[:2].tolist() == [[10, 10, 20, 40], [30, 10, 40, 40]]
        assert frame.occlusion.tolist() == [-1] * 4  # the score of other topics is no visible share
        assert (frame.mask == 255).all()
        with pytest.raises(DataError, match="has the classes crowd, pedestrian, tree; after `rename`"):
            opened(path, **topics)


class TestMatching:
    def test_an_extracted_drive_is_the_truth_of_its_bag(self, street: Path, stamps: list[int], tmp_path: Path) -> None:
        out = tmp_path / "set"
        extract(street, out, ExtractOptions(progress=False, prefix="drive_", least_score=0.0))
        topics, files = opened(street), opened(street, path=out)

        assert files.match(zip(stamps, range(FRAMES), strict=True)).with_truth == FRAMES
        for index, stamp in enumerate(stamps):
            expected, found = topics.truth_of(stamp, index, SIZE), files.truth_of(stamp, index, SIZE)
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
            assert found.labels.tolist() == expected.labels.tolist()
            assert np.array_equal(found.mask, expected.mask)
        # By its index file even where the names say nothing.
        renamed = write_yolo(tmp_path / "other", ["a", "b"])
        (tmp_path / "index.txt").write_text(f"b.txt {stamps[3]}\na,{stamps[4]}\n")
        by_index = opened(street, path=renamed, index=tmp_path / "index.txt")
        assert [by_index.truth_of(stamp, 0, SIZE) is not None for stamp in stamps] == [False] * 3 + [True] * 2 + [False]

    def test_names_that_are_stamps(self, street: Path, stamps: list[int], tmp_path: Path) -> None:
        whole, rest = divmod(stamps[2], 10**9)
        # The name of frame 1 lost its last digits on the way through a float; that of frame 2 is in seconds.
        folder = write_yolo(tmp_path / "boxes", [str(stamps[0]), str(stamps[1] + 400_000), f"cam_{whole}.{rest:09}"])
        (folder / f"cam_{whole}.{rest:09}.txt").write_text("2 0.5 0.5 0.25 0.5\n")

        truth = opened(street, path=folder)

        frames = [truth.truth_of(stamp, 5, SIZE) for stamp in stamps]
        assert [frame is not None for frame in frames] == [True] * 3 + [False] * 3
        assert [frames[index].labels.tolist() for index in range(3)] == [[PERSON], [PERSON], [CAR]]
        assert truth.truth_of(stamps[0] + 500_000, 5, SIZE) is not None
        assert truth.truth_of(stamps[0] + 500_001, 5, SIZE) is None  # of a camera beside it, perhaps

    def test_names_that_end_in_the_frame_index(self, street: Path, stamps: list[int], tmp_path: Path) -> None:
        truth = opened(street, path=write_yolo(tmp_path / "boxes", ["f_2", "f_10"]), match="number")

        assert [truth.truth_of(0, index, SIZE) is not None for index in (1, 2, 10)] == [False, True, True]

    def test_as_many_names_as_images_are_in_their_order(self, street: Path, tmp_path: Path) -> None:
        folder = write_yolo(tmp_path / "boxes", [f"f_{number}" for number in (7, 8, 9, 10, 11)])
        (folder / "f_12.txt").write_text("2 0.5 0.5 0.25 0.5\n")

        truth = opened(street, path=folder)

        # Natural order: f_12 is the last, index 5.
        assert [truth.truth_of(0, index, SIZE).labels.tolist() for index in range(FRAMES)] == [[PERSON]] * 5 + [[CAR]]

    def test_another_number_of_names_is_not_guessed(self, street: Path, tmp_path: Path) -> None:
        folder = write_yolo(tmp_path / "boxes", ["f_0", "f_1"])

        with pytest.raises(TruthError, match=r"2 entries, e.g. f_0, the bag 6 RGB images.*--truth-match number"):
            opened(street, path=folder)

    def test_a_frame_that_two_entries_want(self, street: Path, tmp_path: Path) -> None:
        with pytest.raises(TruthError, match=r"a_1 and b_1 belong to the same frame \(1\)"):
            opened(street, path=write_yolo(tmp_path / "boxes", ["a_1", "b_1"]), match="number")

    def test_truth_without_a_frame_is_an_error_unless_allowed(
        self, street: Path, stamps: list[int], tmp_path: Path
    ) -> None:
        frames = list(zip(stamps, range(FRAMES), strict=True))
        truth = opened(street, path=write_yolo(tmp_path / "boxes", ["f_5", "f_6", "f_7"]), match="number")

        match = truth.match(frames)

        assert (match.frames, match.with_truth, match.entries, match.unmatched) == (6, 1, 3, ("f_6", "f_7"))
        match.require(allow_unmatched=True)
        with pytest.raises(TruthError, match=r"2 of 3 entries .* e.g. f_6, f_7: .*--allow-unmatched-truth"):
            match.require()
        with pytest.raises(TruthError, match=r"none of the 3 entries .*\(the first: f_5\)"):
            truth.match(frames[:2]).require(allow_unmatched=True)


class TestFiles:
    def test_yolo_classes_and_regions(self, street: Path, tmp_path: Path) -> None:
        folder = write_yolo(tmp_path / "set/boxes", ["0"], "1 0.5 0.5 0.25 0.5\n2 0.25 0.25 0.5 0.5\n")
        (tmp_path / "set/classes.txt").write_text("person\ncar\nignore\n")

        truth = opened(street, path=folder.parent, match="number")

        frame = truth.truth_of(0, 0, SIZE)
        assert truth.classes == ("person", "car")
        # 160x128 px: centre (80, 64), 40x64; the region: centre (40, 32), 80x64
        assert frame.boxes.tolist() == [[60, 32, 100, 96]] + [[0, 0, 80, 64]] * 3
        assert frame.labels.tolist() == [CAR, 0, 1, 2]
        assert frame.ignored.tolist() == [False, True, True, True]

    def test_coco(self, street: Path, tmp_path: Path) -> None:
        path = tmp_path / "truth.json"
        content = {
            "images": [{"id": 1, "file_name": "visible/f_3.png", "width": SIZE[0], "height": SIZE[1]}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 60]},
                {"id": 2, "image_id": 1, "category_id": 5, "bbox": [90, 20, 30, 60], "iscrowd": 1},
            ],
            "categories": [{"id": 5, "name": "people"}],
        }
        path.write_text(json.dumps(content))

        truth = opened(street, path=path, match="number", rename={"people": "person"})

        frame = truth.truth_of(0, 3, SIZE)
        assert truth.classes == ("person",)
        assert frame.boxes.tolist() == [[10, 20, 40, 80], [90, 20, 120, 80]]
        assert frame.ignored.tolist() == [False, True]
        with pytest.raises(TruthError, match="f_3 is 160x128 there, but its RGB image is 80x64"):
            truth.truth_of(0, 3, (80, 64))
        with pytest.raises(DataError, match="has the classes people; after `rename`"):
            opened(street, path=path, match="number")

    def test_kaist_text(self, street: Path, tmp_path: Path) -> None:
        for name, label in (("set06_V000_I00001", "person"), ("set09_V000_I00003", "people")):
            line = f"{label} 11 21 30 60 1 0 0 0 0 0 0\n"
            (tmp_path / f"{name}.txt").write_text(f"% bbGt version=3\n{line}")

        truth = opened(street, path=tmp_path, match="number")

        assert (truth.counting, truth.classes) == ("kaist", ("person",))
        day, night = truth.truth_of(0, 1, (640, 512)), truth.truth_of(0, 3, (640, 512))
        assert day.boxes.tolist() == [[10, 20, 40, 80]]  # counted from 1 in the file
        assert (day.ignored.tolist(), night.ignored.tolist()) == ([False], [True])
        assert day.occlusion.tolist() == [1]
        assert [truth.light_of(0, index) for index in (1, 3, 4)] == ["day", "night", None]
        with pytest.raises(TruthError, match="for images of 640x512 px, but its RGB image is 160x128"):
            truth.truth_of(0, 1, SIZE)

    def test_paired_kaist_text_is_the_mean_of_both_cameras(self, street: Path, tmp_path: Path) -> None:
        for camera, left in (("visible", 11), ("lwir", 15)):
            folder = tmp_path / "set00/V001" / camera
            folder.mkdir(parents=True)
            line = f"person {left} 21 30 60 0 0 0 0 0 0 0\n"
            (folder / "I00002.txt").write_text(f"% bbGt version=3\n{line}")

        truth = opened(street, path=tmp_path, match="number")

        assert truth.truth_of(0, 2, (640, 512)).boxes.tolist() == [[12, 20, 42, 80]]
        assert truth.light_of(0, 2) == "day"

    def test_mask_files_join_the_boxes_of_the_bag(self, street: Path, stamps: list[int], tmp_path: Path) -> None:
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[:10] = 2
        cv2.imwrite(str(tmp_path / "f_1.png"), mask)

        truth = opened(street, masks=tmp_path, match="number")

        frame, other = truth.truth_of(stamps[1], 1, SIZE), truth.truth_of(stamps[2], 2, SIZE)
        assert np.array_equal(frame.mask, mask)
        assert len(frame.boxes) > 0
        assert len(other.boxes) > 0
        assert other.mask is None

    def test_what_is_no_truth_is_refused(self, street: Path, tmp_path: Path) -> None:
        with pytest.raises(TruthError, match="there is no ground truth at"):
            opened(street, path=tmp_path / "nowhere")
        with pytest.raises(TruthError, match="is no ground truth that is known: expected a COCO or KAIST JSON file"):
            opened(street, path=tmp_path)
        with pytest.raises(TruthError, match="the name 'first' does not end in the number of its frame"):
            opened(street, path=write_yolo(tmp_path / "boxes", ["first"]), match="number")
        (tmp_path / "index.json").write_text("[]")
        with pytest.raises(TruthError, match=r"is no index: expected the md_index.json"):
            opened(street, path=tmp_path / "boxes", index=tmp_path / "index.json")
