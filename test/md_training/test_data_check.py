import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tyro
from data_trees import write_kaist, write_mfnet, write_yolo
from PIL import Image

from md_training.data import splits
from md_training.data.check import Report, check, data_command
from md_training.data.splits import RECORD, DataError, PublishedList


@pytest.fixture(scope="module")
def mfnet_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("check") / "mfnet"
    write_mfnet(root, size=(160, 120))
    return root


@pytest.fixture
def mfnet(mfnet_tree: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return shutil.copytree(mfnet_tree, tmp_path / "mfnet")


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    write_yolo(tmp_path / "set")
    return tmp_path / "set"


def only(report: Report, kind: str) -> list[str]:
    """Return the problems of the only kind there is."""
    assert list(report.problems) == [kind]
    assert not report.usable
    return report.problems[kind]


class TestGoodSets:
    def test_a_tiny_kaist(self, tmp_path: Path) -> None:
        persons = write_kaist(tmp_path, size=(320, 256))

        report = check(tmp_path)

        assert report.usable, report.text()
        assert (report.kind, report.pairs, report.sizes) == ("kaist", 5, {"320x256 + 320x256": 5})
        assert {entry.name: (entry.pairs, entry.night, entry.labels) for entry in report.lists} == {
            "tiny-test": (2, 1, "person from KAIST_annotation.json"),
            "tiny-train": (3, 1, "person from annotations_paired"),
        }
        found = report.objects.get("person", 0) + report.ignored.get("person", 0)
        assert found == sum(len(people) for people in persons.values())

    def test_a_tiny_mfnet(self, mfnet_tree: Path) -> None:
        report = check(mfnet_tree, keep_record=False)

        assert report.usable, report.text()
        assert (report.kind, report.pairs, report.masks) == ("mfnet", 5, 5)
        labels = np.concatenate([np.asarray(Image.open(path)).ravel() for path in mfnet_tree.glob("labels/*.png")])
        assert list(report.pixels.values()) == np.bincount(labels, minlength=9).tolist()
        assert any("MFNet's published train 784" in note for note in report.notes)

    def test_yolo_and_unlabelled_pairs(self, yolo: Path) -> None:
        report = check(yolo)

        assert report.usable, report.text()
        assert (report.kind, report.objects, report.empty) == ("yolo", {"person": 1, "car": 1}, 1)
        assert report.verdict().endswith("is usable for detection of person, car")
        assert "no object of bicycle in any image" in report.notes
        assert "pairs without a box: 1" in report.text()
        shutil.rmtree(yolo / "boxes")
        (yolo / "md_index.json").write_text("{}")  # what md_bag extract leaves: no COCO file
        unlabelled = check(yolo)
        assert (unlabelled.kind, unlabelled.usable) == ("pairs", True)
        assert "usable for distillation from a teacher's results" in unlabelled.verdict()

    def test_masks_without_boxes(self, yolo: Path) -> None:
        shutil.rmtree(yolo / "boxes")
        (yolo / "masks").mkdir()
        Image.fromarray(np.full((48, 64), 2, np.uint8)).save(yolo / "masks" / "0D.png")

        report = check(yolo)

        assert report.usable, report.text()
        assert (report.masks, report.tasks, report.objects) == (1, ["segmentation"], {})
        assert report.pixels["person"] == 48 * 64

    def test_msrs(self, data_root: Path) -> None:
        report = check(data_root / "msrs", keep_record=False)

        assert report.usable, report.text()
        assert report.objects == {"person": 622, "bicycle": 95, "car": 346}
        assert [(entry.name, entry.pairs, entry.status) for entry in report.lists] == [
            ("msrs/train", 199, "the published list"),
            ("msrs/val", 60, "the published list"),
        ]


class TestProblems:
    def test_missing_files(self, yolo: Path) -> None:
        (yolo / "thermal" / "0D.png").unlink()
        (yolo / "boxes" / "1D.txt").unlink()

        report = check(yolo)

        assert only(report, "missing") == [f"{yolo}/thermal/0D.png", f"{yolo}/boxes/1D.txt"]
        assert "only 1 pairs can be read" in report.text()
        assert report.text().endswith("is NOT usable")

    def test_a_part_that_was_not_downloaded_is_one_problem_with_advice(self, tmp_path: Path) -> None:
        write_kaist(tmp_path, size=(160, 128))
        for set_ in ("set00", "set03"):  # all of tiny-train
            shutil.rmtree(tmp_path / "images" / set_)

        report = check(tmp_path)

        (text,) = only(report, "missing")
        first = tmp_path / "images/set00/V000/visible/I00001.jpg"
        assert text == f"all 3 pairs of the list tiny-train: none of their images is there ({first}, ..)"
        assert "to check only what is here: --split available" in report.notes
        assert check(tmp_path, splits=["tiny-test"]).usable

    def test_damaged_files(self, yolo: Path) -> None:
        path = yolo / "visible" / "0D.png"
        path.write_bytes(path.read_bytes()[:-1000])

        assert "0D.png is damaged" in only(check(yolo), "damaged")[0]

    def test_a_thermal_image_without_content(self, mfnet: Path) -> None:
        """What a tool leaves that takes thermal for transparency and drops it."""
        path = mfnet / "images" / "00001D.png"
        Image.open(path).convert("RGB").convert("RGBA").save(path)

        assert "every thermal pixel is 255" in only(check(mfnet), "damaged")[0]

    def test_labels_outside_the_class_list(self, mfnet: Path, yolo: Path) -> None:
        path = mfnet / "labels" / "00001D.png"
        mask = np.array(Image.open(path))
        mask[0, 0] = 9
        Image.fromarray(mask).save(path)
        (yolo / "boxes" / "0D.txt").write_text("3 0.5 0.5 0.1 0.1\n")

        assert "label values 9, outside 0..8" in only(check(mfnet), "labels")[0]
        assert "class 3 is outside 0..2" in only(check(yolo), "labels")[0]

    def test_the_same_pair_under_two_names(self, yolo: Path) -> None:
        for camera in ("visible", "thermal"):
            shutil.copy(yolo / camera / "0D.png", yolo / camera / "1D.png")

        assert only(check(yolo), "duplicates") == ["0D = 1D: the same images"]

    def test_a_frozen_camera_is_noted(self, yolo: Path) -> None:
        shutil.copy(yolo / "thermal" / "0D.png", yolo / "thermal" / "1D.png")

        report = check(yolo)

        assert report.usable
        assert (
            "1 thermal images have the content of another one: a camera slower than the other, or one that stood still"
            in report.notes
        )

    def test_one_image_for_both_cameras(self, yolo: Path) -> None:
        grey = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)
        Image.fromarray(grey).save(yolo / "visible" / "0D.png")
        shutil.copy(yolo / "visible" / "0D.png", yolo / "thermal" / "0D.png")

        assert "thermal/0D.png is the same file as" in only(check(yolo), "damaged")[0]

    def test_mirrored_copies_whatever_their_name(self, mfnet: Path) -> None:
        for folder in ("images", "labels"):
            image = np.asarray(Image.open(mfnet / folder / "00001D.png"))
            Image.fromarray(np.ascontiguousarray(image[:, ::-1])).save(mfnet / folder / "90001D.png")
        with (mfnet / "train.txt").open("a") as file:
            file.write("90001D\n")

        assert "90001D is 00001D mirrored" in only(check(mfnet), "duplicates")[0]

    def test_lists_with_flipped_copies(self, mfnet: Path) -> None:
        (mfnet / "train.txt").write_text("00001D\n00001D_flip\n")

        assert "names 1 flipped copies" in only(check(mfnet), "list or folder")[0]

    def test_a_set_without_any_object_teaches_no_detection(self, yolo: Path) -> None:
        for path in (yolo / "boxes").iterdir():
            path.write_text("")

        report = check(yolo)

        said = "no object of person, bicycle, car in any image"
        assert only(report, "labels") == [f"{said}: there is no detection to learn"]
        assert "pairs without a box: 3" in report.text()
        (yolo / "masks").mkdir()
        Image.fromarray(np.full((48, 64), 2, np.uint8)).save(yolo / "masks" / "0D.png")
        report = check(yolo)
        assert (report.usable, report.tasks, report.notes) == (True, ["segmentation"], [said])

    def test_pairs_of_several_sizes_are_noted(self, yolo: Path) -> None:
        Image.fromarray(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50).astype(np.uint8)).save(
            yolo / "thermal" / "1D.png"
        )

        report = check(yolo)

        assert report.usable
        assert report.sizes == {"64x48 + 64x48": 2, "64x48 + 50x40": 1}
        assert any("names its student's camera and thermal sensor by the first pair" in note for note in report.notes)

    def test_training_on_the_test_set(self, yolo: Path) -> None:
        (yolo / "val.txt").write_text("0D\n")

        report = check(yolo)

        assert only(report, "duplicates") == ["1 pairs are in train and in val (0D, ..)"]
        assert any("1 images are in no list" in note for note in report.notes)

    def test_a_list_that_is_not_the_published_one(self, tmp_path: Path) -> None:
        write_kaist(tmp_path, size=(160, 128))
        (tmp_path / "imageSets" / "tiny-test.txt").rename(tmp_path / "imageSets" / "test-all-20.txt")

        assert "has 2 names, but kaist's test-all-20 has 2252" in only(check(tmp_path), "list or folder")[0]

    def test_frames_without_annotation(self, tmp_path: Path) -> None:
        write_kaist(tmp_path, size=(160, 128))
        shutil.rmtree(tmp_path / "annotations_paired")

        assert "3 of 3 frames of tiny-train are not in" in only(check(tmp_path), "labels")[0]
        assert check(tmp_path, splits=["tiny-test"]).usable

    def test_a_folder_that_is_no_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="looks like no data set"):
            check(tmp_path)
        with pytest.raises(DataError, match="is no folder"):
            check(tmp_path / "typo")


def test_the_hash_of_a_list_is_recorded_at_the_first_check(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with train-all-01-non-empty: its count is known, its hash is not."""
    kaist = yolo.parent / "kaist"
    write_kaist(kaist, size=(160, 128))
    known = PublishedList("kaist", "tiny-train", "three frames", 3)
    monkeypatch.setattr(splits, "PUBLISHED", (known,))

    report = check(kaist)

    assert report.usable, report.text()
    digest = json.loads((kaist / RECORD).read_text())["kaist/tiny-train"]["sha256"]
    assert digest in report.text()
    names = (kaist / "imageSets" / "tiny-train.txt").read_text().split()
    (kaist / "imageSets" / "tiny-train.txt").write_text("\n".join(reversed(names)))
    assert "not the same ones in the same order" in only(check(kaist), "list or folder")[0]


def test_the_command_says_by_its_exit_code_whether_the_set_is_usable(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tyro.cli(data_command, args=["check", str(yolo), "--split", "train", "val"])
    assert "is usable" in capsys.readouterr().out
    (yolo / "boxes" / "0D.txt").write_text("7 0.5 0.5 0.1 0.1\n")

    with pytest.raises(SystemExit) as exit_:
        tyro.cli(data_command, args=["check", str(yolo), "--json-out", str(tmp_path / "report.json")])

    assert exit_.value.code == 1
    assert "PROBLEM, labels: 1" in capsys.readouterr().out
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["usable"], len(written["problems"]["labels"]), written["pairs"]) == (False, 1, 3)
