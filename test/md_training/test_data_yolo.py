import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import write_yolo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from md_perception.annotations.boxes import read_coco, read_yolo
from md_perception.labels import DETECTION, SEGMENTATION
from md_training.data.pairs import Degradation
from md_training.data.splits import DataError
from md_training.data.yolo import CocoFolder, YoloFolder
from md_training.losses import IGNORED_PIXEL

PERSON, BICYCLE, CAR = range(3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pairs of 64x48 px: a person in the middle, a car in the lower left half, nothing."""
    write_yolo(tmp_path)
    return tmp_path


class TestYolo:
    def test_boxes_are_corners_in_pixels(self, root: Path) -> None:
        person, car = YoloFolder(root).open()

        # Centre (0.5, 0.5) of 64x48 is (32, 24), 0.25 x 0.5 of it 16x24 px.
        assert person.boxes.tolist() == [[24, 12, 40, 36]]
        assert (person.labels.tolist(), person.ignored.tolist()) == ([PERSON], [False])
        # Centre (16, 36), 32x24 px.
        assert car.boxes.tolist() == [[0, 24, 32, 48]]
        assert car.labels.tolist() == [CAR]
        assert (person.boxes.dtype, person.labels.dtype) == (np.float32, np.int64)
        assert len(YoloFolder(root, "val").open()[0].boxes) == 0

    def test_boxes_end_at_the_image(self, root: Path) -> None:
        (root / "boxes" / "0D.txt").write_text("0 0.0 0.5 0.5 0.5\n")

        assert YoloFolder(root).open()[0].boxes.tolist() == [[0, 12, 16, 36]]

    def test_lower_objects_are_ignored_where_asked(self, root: Path) -> None:
        assert YoloFolder(root, minimum_height_px=24).open()[0].ignored.tolist() == [False]
        assert YoloFolder(root, minimum_height_px=24.5).open()[0].ignored.tolist() == [True]

    def test_classes_go_by_name(self, root: Path) -> None:
        (root / "classes.txt").write_text("truck\npeople\nperson\nlamp\n")
        (root / "boxes" / "0D.txt").write_text("".join(f"{n} 0.5 0.5 0.5 0.5\n" for n in range(4)))
        rename = {"truck": "car", "people": "ignore", "lamp": "background"}

        pairs = YoloFolder(root, rename=rename).open()

        assert pairs[0].labels[~pairs[0].ignored].tolist() == [CAR, PERSON]
        assert pairs[0].ignored.tolist() == [False, True, False]
        assert pairs.detection_classes == ("person", "car")

    def test_a_class_that_we_do_not_know_has_to_be_renamed(self, root: Path) -> None:
        (root / "classes.txt").write_text("person\ntruck\ncar\n")

        with pytest.raises(DataError, match=r"has the classes person, truck, car; .* which truck is not"):
            YoloFolder(root).open()
        with pytest.raises(DataError, match="every renamed class has to be there"):
            YoloFolder(root, rename={"truck": "car", "tram": "car"}).open()

    @pytest.mark.parametrize(
        ("line", "cause"),
        [
            ("3 0.5 0.5 0.1 0.1", "class 3 is outside 0..2"),
            ("-1 0.5 0.5 0.1 0.1", "class -1 is outside 0..2"),
            ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is outside 0..2"),
            ("0 0.5 0.5 0.1", "has 4 numbers, expected 5"),
            ("0 0.5 0.5 0.1 0.1 0.9", "has 6 numbers, expected 5"),
            ("0 320 240 50 100", "is no box relative to the image"),
            ("0 0.5 0.5 0 0.1", "is no box relative to the image"),
            ("0 nan 0.5 0.1 0.1", "is no box relative to the image"),
            ("person 0.5 0.5 0.1 0.1", "holds something that is no number"),
        ],
    )
    def test_lines_that_are_no_box_are_named(self, tmp_path: Path, line: str, cause: str) -> None:
        path = tmp_path / "a.txt"
        path.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")

        with pytest.raises(DataError, match=rf"a\.txt, line 2.*{cause}"):
            read_yolo(path, 3)

    @given(st.text(alphabet="0123456789. -en\n", max_size=60))
    def test_any_text_gives_boxes_within_the_image_or_an_error(
        self, tmp_path_factory: pytest.TempPathFactory, text: str
    ) -> None:
        path = tmp_path_factory.mktemp("yolo") / "a.txt"
        path.write_text(text)

        with contextlib.suppress(DataError):
            numbers, boxes = read_yolo(path, 3)
            assert len(numbers) == len(boxes)
            assert set(numbers.tolist()) <= {0, 1, 2}
            assert (boxes[:, 2:] > 0).all()
            assert (np.abs(boxes - 0.5) <= 0.501).all()

    def test_an_image_without_label_file_is_no_empty_image(self, root: Path) -> None:
        (root / "boxes" / "0D.txt").unlink()

        with pytest.raises(DataError, match=r"boxes/0D.txt is not there: an image without objects has an empty file"):
            YoloFolder(root).open()[0]

    def test_masks_are_optional(self, root: Path) -> None:
        assert YoloFolder(root).open().segmentation_classes == ()
        (root / "masks").mkdir()
        Image.fromarray(np.full((48, 64), 2, np.uint8)).save(root / "masks" / "0D.png")

        pairs = YoloFolder(root).open()

        assert pairs.segmentation_classes == SEGMENTATION.classes
        assert np.unique(pairs[0].mask).tolist() == [2]
        assert np.unique(pairs[1].mask).tolist() == [IGNORED_PIXEL]

    def test_a_mask_of_another_size_is_refused(self, root: Path) -> None:
        (root / "masks").mkdir()
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(root / "masks" / "0D.png")

        with pytest.raises(DataError, match=r"masks/0D\.png is 32x24, its RGB image 64x48"):
            YoloFolder(root).open()[0]

    def test_a_fold_is_given_by_names(self, root: Path) -> None:
        pairs = YoloFolder(root).open(names=("2N", "0D"))

        assert [sample.name for sample in pairs] == ["0D", "2N"]
        assert (pairs.split.name, pairs.split.status) == ("given", "own")


def write_coco(root: Path, **changes: Any) -> Path:
    """Write annotations of the pairs of write_yolo; changes: of the second annotation."""
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / "train.json"
    images = [{"id": 7 + i, "file_name": f"{n}.png", "width": 64, "height": 48} for i, n in enumerate(("0D", "1D"))]
    annotations: list[dict[str, Any]] = [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [24, 12, 16, 24], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [60, 40, 10, 4], "iscrowd": 1} | changes,
    ]
    categories = [{"id": 3, "name": "person"}, {"id": 1, "name": "truck"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


class TestCoco:
    def test_boxes_are_corners_in_pixels_and_crowds_ignored(self, root: Path) -> None:
        write_coco(root)

        pairs = CocoFolder(root, rename={"truck": "car"}).open()

        assert (pairs.split.names, pairs.split.name) == (("0D", "1D"), "train")
        assert pairs[0].boxes.tolist() == [[24, 12, 40, 36], [60, 40, 64, 44]]  # 60 + 10 is beyond the image
        assert pairs[0].labels.tolist() == [PERSON, CAR]
        assert pairs[0].ignored.tolist() == [False, True]
        assert len(pairs[1].boxes) == 0
        assert pairs.detection_classes == ("person", "car")

    def test_an_unknown_class_has_to_be_renamed(self, root: Path) -> None:
        write_coco(root)

        with pytest.raises(DataError, match="which truck is not"):
            CocoFolder(root).open()

    @pytest.mark.parametrize(
        ("changes", "cause"),
        [
            ({"category_id": 9}, "annotation 2: 9 is missing or unknown"),
            ({"image_id": 9}, "annotation 2: 9 is missing or unknown"),
            ({"bbox": [1, 2, 0, 4]}, r"annotation 2: bbox \[1, 2, 0, 4\] is not"),
            ({"bbox": [1, 2, 3]}, "annotation 2: bbox"),
            ({"bbox": None}, "annotation 2: "),
        ],
    )
    def test_what_does_not_fit_is_named(self, root: Path, changes: dict[str, Any], cause: str) -> None:
        with pytest.raises(DataError, match=cause):
            read_coco(write_coco(root, **changes))

    def test_boxes_of_another_export_are_refused(self, root: Path) -> None:
        path = write_coco(root)
        path.write_text(path.read_text().replace('"width": 64', '"width": 640'))

        with pytest.raises(DataError, match="0D is 640x48 there, but its RGB image is 64x48"):
            CocoFolder(root, rename={"truck": "car"}).open()[0]

    def test_images_outside_the_folder_are_refused(self, root: Path) -> None:
        path = write_coco(root)
        path.write_text(path.read_text().replace("0D.png", "../../0D.png"))

        with pytest.raises(DataError, match="image 7 is outside the data set's folder"):
            CocoFolder(root).open()

    def test_another_json_is_no_coco_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("[1, 2]")

        with pytest.raises(DataError, match="is no COCO file with images, annotations and categories"):
            read_coco(tmp_path / "a.json")


class TestMsrs:
    """The real pairs."""

    @pytest.mark.parametrize("split", ["train", "all"])
    def test_a_set_without_published_lists_is_refused(self, root: Path, split: str) -> None:
        with pytest.raises(DataError, match=r"no data set 'msrz' has published lists, only kaist, mfnet, msrs"):
            YoloFolder(root, split, published="msrz").open()

    def test_counts_of_the_published_lists(self, data_root: Path) -> None:
        """Counted with `for n in $(cat val.txt); do cat boxes/$n.txt; done | cut -c1 | sort | uniq -c`."""
        sets = {split: YoloFolder(data_root / "msrs", split, published="msrs").open() for split in ("train", "val")}

        assert {split: len(pairs) for split, pairs in sets.items()} == {"train": 199, "val": 60}
        assert {pairs.split.status for pairs in sets.values()} == {"pinned"}
        counts = {
            split: np.bincount(
                np.concatenate([pairs.truth(name, (640, 480)).labels for name in pairs.split.names]), minlength=3
            ).tolist()
            for split, pairs in sets.items()
        }
        assert counts == {"train": [512, 78, 267], "val": [110, 17, 79]}  # person, bicycle, car

    def test_a_known_box(self, data_root: Path) -> None:
        """00012N holds one car, 0.287850 0.538614 0.572468 0.497486 of 640x480: 184.224 ± 183.19, 258.535 ± 119.397."""
        sample = YoloFolder(data_root / "msrs", "all", degradation=Degradation(4)).open(names=["00012N"])[0]

        np.testing.assert_allclose(sample.boxes, [[1.034, 139.138, 367.414, 377.931]], atol=2e-3)
        assert (sample.labels.tolist(), sample.night) == ([CAR], True)
        assert (sample.rgb.shape, sample.thermal.shape) == ((480, 640, 3), (120, 160))
        assert DETECTION.classes[CAR] == "car"

    def test_masks_in_the_palette_are_read(self, data_root: Path) -> None:
        folder = data_root / "msrs" / "lasnet_masks"
        names = sorted(path.stem for path in folder.glob("*.png"))

        pairs = YoloFolder(data_root / "msrs", masks="lasnet_masks").open(names=names)

        assert len(names) == 61
        mask = pairs[0].mask
        colours = np.asarray(Image.open(folder / f"{names[0]}.png"))
        assert np.array_equal(SEGMENTATION.colour_table()[mask], colours)
        assert set(np.unique(mask).tolist()) <= set(range(9))
