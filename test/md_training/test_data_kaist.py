from pathlib import Path

import numpy as np
import pytest
from data_trees import KAIST_TEST, KAIST_TRAINING, KaistPerson, bbgt_line, write_kaist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from md_perception.annotations.kaist import Annotated, Target, merged, read_annotation
from md_perception.metrics.miss_rate import KaistTruth
from md_training.data import kaist
from md_training.data.kaist import NON_EMPTY, KaistFolder, to_truth
from md_training.data.pairs import Degradation
from md_training.data.splits import DataError, PublishedList

HEADER = "% bbGt version=3\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[KaistPerson]]]:
    root = tmp_path_factory.mktemp("kaist") / "kaist"
    return root, write_kaist(root, first_seed=40, size=(320, 256))


def annotated(*rows: tuple[str, tuple[float, float, float, float]], occlusion: int = 0) -> Annotated:
    return Annotated(
        labels=tuple(label for label, _ in rows),
        boxes=np.array([box for _, box in rows], np.float64).reshape(-1, 4),
        occlusion=np.full(len(rows), occlusion, np.int64),
        ignored=np.zeros(len(rows), np.bool_),
    )


def truth_of(*boxes: tuple[float, float, float, float], occlusion: tuple[int, ...] = ()) -> KaistTruth:
    return KaistTruth(
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        ignored=np.zeros(len(boxes), np.bool_),
        occlusion=np.array(occlusion or [0] * len(boxes), np.int64),
        night=False,
    )


class TestTruth:
    def test_files_count_pixels_from_1(self) -> None:
        truth = to_truth(truth_of((11, 21, 30, 60)), (640, 512))

        assert truth.boxes.tolist() == [[10, 20, 40, 80]]
        assert truth.boxes.dtype == np.float32
        assert (truth.labels.tolist(), truth.ignored.tolist()) == ([0], [False])

    def test_border_occlusion_and_height_are_ignored(self) -> None:
        """The benchmark's border: left and top at least 5, right at most 635, bottom at most 507."""
        boxes = (
            (5, 5, 30, 60),
            (4, 5, 30, 60),
            (5, 4, 30, 60),
            (605, 100, 30, 60),  # ends at 635
            (606, 100, 30, 60),
            (100, 447, 30, 60),  # ends at 507
            (100, 448, 30, 60),
            (100, 100, 30, 54),
            (200, 100, 30, 60),
            (300, 100, 30, 60),
        )
        occlusion = (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)

        truth = to_truth(truth_of(*boxes, occlusion=occlusion), (640, 512), minimum_height_px=55)

        assert truth.ignored.tolist() == [False, True, True, False, True, False, True, True, False, True]
        assert not to_truth(truth_of((100, 100, 30, 54)), (640, 512)).ignored.any()

    def test_boxes_end_at_the_image(self) -> None:
        """KAIST has boxes of up to 646: they are cut at 640, and what lies outside altogether is no object."""
        truth = to_truth(truth_of((601, 101, 45, 60), (641, 101, 5, 60)), (640, 512))

        assert truth.boxes.tolist() == [[600, 100, 640, 160]]


class TestPairedBoxes:
    VISIBLE = annotated(("person", (10, 20, 30, 60)))
    LWIR = annotated(("person", (14, 18, 30, 64)))

    @pytest.mark.parametrize(
        ("target", "box"),
        [
            ("mean", [12, 19, 30, 62]),
            ("visible", [10, 20, 30, 60]),
            ("thermal", [14, 18, 30, 64]),
            ("union", [10, 18, 34, 64]),  # to 44 and 82
        ],
    )
    def test_targets(self, target: Target, box: list[float]) -> None:
        assert merged(self.VISIBLE, self.LWIR, target).boxes.tolist() == [box]

    def test_objects_pair_by_their_order_within_a_label(self) -> None:
        """Neighbours 20 px apart whose boxes are shifted by 20: order pairs them rightly, overlap would not."""
        visible = annotated(("person", (100, 50, 20, 50)), ("people", (5, 5, 9, 9)), ("person", (120, 50, 20, 50)))
        lwir = annotated(("person", (120, 50, 20, 50)), ("person", (140, 50, 20, 50)), ("people", (7, 5, 9, 9)))

        both = merged(visible, lwir, "mean")

        assert both.labels == ("person", "person", "people")
        assert both.boxes.tolist() == [[110, 50, 20, 50], [130, 50, 20, 50], [6, 5, 9, 9]]

    def test_who_is_in_one_camera_only_keeps_that_box(self) -> None:
        visible = annotated(("person", (10, 10, 20, 50)), ("person", (200, 10, 20, 50)))
        lwir = annotated(("person", (204, 10, 20, 50)))

        for target, second in (("mean", 202), ("visible", 200), ("thermal", 204)):
            both = merged(visible, lwir, target)  # type: ignore[arg-type]
            assert both.boxes.tolist() == [[10, 10, 20, 50], [second, 10, 20, 50]]
        assert merged(annotated(), lwir, "visible").boxes.tolist() == [[204, 10, 20, 50]]
        assert merged(annotated(), annotated(), "mean").boxes.shape == (0, 4)

    def test_the_heavier_occlusion_counts(self) -> None:
        heavy = annotated(("person", (10, 20, 30, 60)), occlusion=2)

        assert merged(self.VISIBLE, heavy, "mean").occlusion.tolist() == [2]

    @given(
        st.lists(st.sampled_from(["person", "people"]), max_size=5), st.lists(st.sampled_from(["person"]), max_size=5)
    )
    def test_every_object_is_there_once(self, first: list[str], second: list[str]) -> None:
        random = np.random.default_rng(len(first) + 7 * len(second))
        sides = [
            annotated(*((label, tuple(random.uniform(1, 60, 4))) for label in labels)) for labels in (first, second)
        ]

        both = merged(*sides, "union")

        for label in ("person", "people"):
            most, fewest = max(s.labels.count(label) for s in sides), min(s.labels.count(label) for s in sides)
            assert most <= both.labels.count(label) <= most + fewest


class TestFiles:
    def test_text(self, tmp_path: Path) -> None:
        """The lines are of set06_V003_I00559 in MBNet's release, the last two made up."""
        path = tmp_path / "I00559.txt"
        path.write_text(
            HEADER
            + "person 471 212 22 41 0 0 0 0 0 0 0\nperson 419 213 19 34 2 0 0 0 0 0 0\n"
            + bbgt_line("person?", (1, 2, 3, 4))
            + "\n"
            + bbgt_line("person", (5, 6, 7, 8), ignore=1)
            + "\n"
        )

        found = read_annotation(path)

        assert found.labels == ("person", "person", "person?", "person")
        assert found.boxes.tolist() == [[471, 212, 22, 41], [419, 213, 19, 34], [1, 2, 3, 4], [5, 6, 7, 8]]
        assert found.occlusion.tolist() == [0, 2, 0, 0]
        assert found.ignored.tolist() == [False, False, False, True]

    def test_xml(self, tmp_path: Path) -> None:
        path = tmp_path / "I00559.xml"
        path.write_text(
            "<annotation><folder>set06</folder>"
            "<object><name>person</name><bndbox><x>471</x><y>212</y><w>22</w><h>41</h></bndbox>"
            "<pose>unknown</pose><truncated>0</truncated><difficult>0</difficult><occlusion>1</occlusion></object>"
            "<object><name>cyclist</name><bndbox><x>1</x><y>2</y><w>3</w><h>4</h></bndbox></object></annotation>"
        )

        found = read_annotation(path)

        assert (found.labels, found.occlusion.tolist()) == (("person", "cyclist"), [1, 0])
        assert found.boxes.tolist() == [[471, 212, 22, 41], [1, 2, 3, 4]]

    def test_no_object_is_an_empty_image(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text(HEADER)
        (tmp_path / "a.xml").write_text("<annotation/>")

        assert read_annotation(tmp_path / "a.txt").boxes.shape == (0, 4)
        assert read_annotation(tmp_path / "a.xml").boxes.shape == (0, 4)

    @pytest.mark.parametrize(
        ("line", "cause"),
        [
            ("person 1 2 3 4 0", "has 6 values, expected 12"),
            ("dog 1 2 3 4 0 0 0 0 0 0 0", "the label 'dog' is none of KAIST's"),
            ("person 1 2 3 x 0 0 0 0 0 0 0", "are not left, top, width and height"),
            ("person 1 2 0 4 0 0 0 0 0 0 0", "a box of 0x4 px holds nothing"),
            ("person 1 2 nan 4 0 0 0 0 0 0 0", "holds nothing"),
            ("person 1 2 3 4 3 0 0 0 0 0 0", "occlusion '3' is not 0"),
            ("person 1 2 3 4 0 0 0 0 0 5 0", "ignore '5' is not 0 or 1"),
        ],
    )
    def test_lines_that_do_not_fit_are_named(self, tmp_path: Path, line: str, cause: str) -> None:
        path = tmp_path / "a.txt"
        path.write_text(f"{HEADER}{bbgt_line('person', (1, 2, 3, 4))}\n{line}\n")

        with pytest.raises(DataError, match=rf"a\.txt, line 3.*{cause}"):
            read_annotation(path)

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
        (tmp_path / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><a/>')
        (tmp_path / "b.xml").write_text("<annotation>")

        with pytest.raises(DataError, match="does not start with '% bbGt version=3'"):
            read_annotation(tmp_path / "a.txt")
        with pytest.raises(DataError, match="defines XML entities"):
            read_annotation(tmp_path / "a.xml")
        with pytest.raises(DataError, match="is no XML file"):
            read_annotation(tmp_path / "b.xml")


class TestTree:
    def test_training_pairs(self, tree: tuple[Path, dict[str, list[KaistPerson]]]) -> None:
        root, persons = tree

        pairs = KaistFolder(root, "tiny-train", "annotations_paired", degradation=Degradation(4)).open()

        assert pairs.split.names == KAIST_TRAINING
        assert pairs.detection_classes == ("person",)
        assert [sample.night for sample in pairs] == [False, False, True]
        assert sum(len(sample.boxes) for sample in pairs) > 0
        for sample in pairs:
            assert (sample.rgb.shape, sample.thermal.shape) == ((256, 320, 3), (64, 80))
            # Half of LWIR_SHIFT_PX, and counted from 0: x + 2 - 1, y - 1 - 1.
            expected = np.array([person.box for person in persons[sample.name]], np.float32).reshape(-1, 4)
            expected = np.concatenate([expected[:, :2] + (1, -2), expected[:, :2] + expected[:, 2:] + (1, -2)], axis=1)
            np.testing.assert_allclose(sample.boxes, expected.clip(0, [320, 256, 320, 256]))
            assert (sample.ignored >= [person.occlusion == 2 for person in persons[sample.name]]).all()
        assert "annotations annotations_paired, target mean" in pairs.description()

    def test_test_pairs(self, tree: tuple[Path, dict[str, list[KaistPerson]]]) -> None:
        root, persons = tree

        pairs = KaistFolder(root, "tiny-test", "KAIST_annotation.json").open()

        assert pairs.split.names == KAIST_TEST
        assert [len(sample.boxes) for sample in pairs] == [len(persons[name]) for name in KAIST_TEST]
        assert [sample.night for sample in pairs] == [False, True]

    @pytest.mark.parametrize("file", ["set06/V000/I00019.txt", "set06/V000/I00019.xml", "set06_V000_I00019.txt"])
    def test_other_layouts_of_annotations(
        self, tree: tuple[Path, dict[str, list[KaistPerson]]], tmp_path: Path, file: str
    ) -> None:
        """Original, sanitized and improved annotations come as text or XML, as a tree or flat; images as PNG, too."""
        for camera in ("visible", "lwir"):
            path = tmp_path / "set06" / "V000" / camera / "I00019.png"
            path.parent.mkdir(parents=True)
            Image.open(tree[0] / "images" / "set06" / "V000" / camera / "I00019.jpg").save(path)
        path = tmp_path / "annotations" / file
        path.parent.mkdir(parents=True)
        box = "<bndbox><x>31</x><y>41</y><w>20</w><h>50</h></bndbox>"
        is_xml = path.suffix == ".xml"
        path.write_text(
            f"<annotation><object><name>person</name>{box}</object></annotation>"
            if is_xml
            else f"{HEADER}{bbgt_line('person', (31, 41, 20, 50))}\n"
        )

        pairs = KaistFolder(tmp_path, "available").open()

        assert pairs.split.names == ("set06/V000/I00019",)
        assert pairs[0].boxes.tolist() == [[30, 40, 50, 90]]
        assert pairs[0].thermal.shape == (256, 320)

    def test_labels_are_not_guessed(self, tree: tuple[Path, dict[str, list[KaistPerson]]]) -> None:
        with pytest.raises(
            DataError, match=r"has 2 annotations \(KAIST_annotation.json, annotations_paired\): name one"
        ):
            KaistFolder(tree[0], "tiny-test").open()
        with pytest.raises(DataError, match="are not there"):
            KaistFolder(tree[0], "tiny-test", "annotations-xml").open()

    def test_frames_that_are_not_annotated_are_named(self, tree: tuple[Path, dict[str, list[KaistPerson]]]) -> None:
        pairs = KaistFolder(tree[0], "tiny-train", "KAIST_annotation.json").open()

        with pytest.raises(DataError, match="does not annotate set00/V000/I00001"):
            pairs[0]

    def test_published_lists_need_the_published_names(
        self, tree: tuple[Path, dict[str, list[KaistPerson]]], tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=r"has no list 'test-all-20'.* or use the split `available`"):
            KaistFolder(tree[0], "test-all-20", "KAIST_annotation.json").open()
        (tmp_path / "KAIST_annotation.json").write_bytes((tree[0] / "KAIST_annotation.json").read_bytes())
        (tmp_path / "test-all-20.txt").write_text("set06/V000/I00019\n")
        with pytest.raises(DataError, match="has 1 names, but kaist's test-all-20 has 2252"):
            KaistFolder(tmp_path, "test-all-20").open()

    def test_a_name_of_another_set_is_refused(
        self, tree: tuple[Path, dict[str, list[KaistPerson]]], tmp_path: Path
    ) -> None:
        (tmp_path / "KAIST_annotation.json").write_bytes((tree[0] / "KAIST_annotation.json").read_bytes())
        (tmp_path / "mine.txt").write_text("00004N\n")

        with pytest.raises(DataError, match="mine: '00004N' is not a KAIST frame"):
            KaistFolder(tmp_path, "mine").open()

    @pytest.mark.parametrize(("count", "names"), [(2, KAIST_TRAINING[:2]), (3, KAIST_TRAINING)])
    def test_the_papers_list_is_made_from_annotations_and_checked_by_its_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, names: tuple[str, ...]
    ) -> None:
        """Persons in the first two frames, a group in the third, nothing in the fourth."""
        lines = [bbgt_line(label, (9, 9, 9, 9)) for label in ("person", "person", "people")] + [""]
        for name, line in zip((*KAIST_TRAINING, "set05/V000/I00000"), lines, strict=True):
            for camera in ("visible", "lwir"):
                set_, video, frame = name.split("/")
                path = tmp_path / "annotations" / set_ / video / camera / f"{frame}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{HEADER}{line}\n")
        monkeypatch.setattr(kaist, "published", lambda *_: PublishedList("kaist", NON_EMPTY, "so many", count))

        split = KaistFolder(tmp_path, NON_EMPTY).open().split

        assert (split.names, split.status) == (names, "counted")

    def test_another_count_is_not_the_papers_list(self, tree: tuple[Path, dict[str, list[KaistPerson]]]) -> None:
        with pytest.raises(DataError, match="3 with any label in set00 to set05, but the paper trained on 21622"):
            KaistFolder(tree[0], NON_EMPTY, "annotations_paired").open()


class TestRealPairs:
    def test_boxes_of_known_pairs(self, data_root: Path) -> None:
        pairs = KaistFolder(data_root / "kaist", "available", degradation=Degradation(8, "area")).open()
        samples = {sample.name: sample for sample in pairs}

        assert len(samples) == 9
        # KAIST_annotation.json: eight persons, the first 282, 209, 52, 111; the sixth, 587, 232, 49, 110, ends at 636.
        crossing = samples["set06/V001/I00459"]
        assert crossing.boxes[0].tolist() == [281, 208, 333, 319]
        assert crossing.ignored.tolist() == [False] * 5 + [True] + [False] * 2
        assert (len(samples["set10/V001/I01159"].boxes), samples["set10/V001/I01159"].night) == (0, True)
        assert not crossing.night
        assert {sample.rgb.shape for sample in pairs} == {(512, 640, 3)}
        assert {sample.thermal.shape for sample in pairs} == {(64, 80)}

    def test_halves_of_the_test_list(self, data_root: Path) -> None:
        day = KaistFolder(data_root / "kaist", "test-day-20").open()
        night = KaistFolder(data_root / "kaist", "test-night-20").open()

        assert (len(day), len(night)) == (1455, 797)
        assert {day.night(name) for name in day.split.names} == {False}
        assert {night.night(name) for name in night.split.names} == {True}

    def test_ignore_rules_leave_the_reasonable_persons(self, data_root: Path) -> None:
        """The benchmark counts 1,455 persons of at least 55 px on test-all-20: 989 by day, 466 at night."""
        pairs = KaistFolder(data_root / "kaist", "test-all-20", minimum_height_px=55).open()

        counted = {True: 0, False: 0}
        for name in pairs.split.names:
            counted[pairs.night(name)] += int((~pairs.truth(name, (640, 512)).ignored).sum())

        assert counted == {False: 989, True: 466}
