from pathlib import Path

import numpy as np
import pytest
from data_trees import write_mfnet
from PIL import Image

from md_perception.labels import SEGMENTATION
from md_perception.scenes import SceneFrame
from md_perception.sensing.thermal import percentile_range, to_8bit
from md_training.data import mfnet
from md_training.data.mfnet import MfnetFolder, read_mfnet_split
from md_training.data.pairs import Degradation
from md_training.data.splits import DataError, PublishedList


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SceneFrame]]:
    root = tmp_path_factory.mktemp("mfnet") / "mfnet"
    return root, write_mfnet(root, size=(320, 240))


def test_samples_are_what_was_written(tree: tuple[Path, dict[str, SceneFrame]]) -> None:
    root, frames = tree

    pairs = MfnetFolder(root).open()

    assert pairs.split.names == ("00001D", "00002N")
    assert (pairs.detection_classes, pairs.segmentation_classes) == ((), SEGMENTATION.classes)
    for sample in pairs:
        frame = frames[sample.name]
        assert np.array_equal(sample.rgb, frame.rgb)
        assert np.array_equal(sample.thermal, to_8bit(frame.thermal_k, *percentile_range(frame.thermal_k)))
        assert np.array_equal(sample.mask, frame.mask)
        assert sample.night == sample.name.endswith("N")
        assert len(sample.boxes) == 0


def test_thermal_is_degraded_and_nothing_else(tree: tuple[Path, dict[str, SceneFrame]]) -> None:
    sharp, coarse = (MfnetFolder(tree[0], degradation=Degradation(k, "area")).open()[0] for k in (1, 4))

    assert coarse.thermal.shape == (60, 80)
    assert np.array_equal(coarse.rgb, sharp.rgb)
    assert np.array_equal(coarse.mask, sharp.mask)
    # Area resampling is the mean of blocks of 4 x 4, rounded.
    blocks = sharp.thermal.reshape(60, 4, 80, 4).mean(axis=(1, 3))
    assert np.abs(coarse.thermal - blocks).max() <= 0.5


def test_day_and_night_halves_come_from_the_names(tree: tuple[Path, dict[str, SceneFrame]]) -> None:
    root, _ = tree

    assert MfnetFolder(root, "test_day").open().split.names == ("00004D",)
    assert MfnetFolder(root, "test_night").open().split.names == ("00005N",)
    assert MfnetFolder(root, "all").open().split.names == ("00001D", "00002N", "00003D", "00004D", "00005N")
    with pytest.raises(DataError, match=r"has no night image: their names end in N"):
        MfnetFolder(root, "val_night").open()
    with pytest.raises(DataError, match="has no list 'trian'"):
        MfnetFolder(root, "trian").open()


def test_a_list_with_an_everyday_name_and_another_count_is_said_to_be_own(
    tree: tuple[Path, dict[str, SceneFrame]],
) -> None:
    pairs = MfnetFolder(tree[0]).open()

    assert pairs.split.status == "own"
    assert "train has 2 names, MFNet's published train 784" in pairs.notes[0]


def test_the_published_count_makes_a_list_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.txt").write_text("1D\n2N\n")
    monkeypatch.setattr(mfnet, "published", lambda *_: PublishedList("mfnet", "train", "two images", 2, "0" * 64))

    with pytest.raises(DataError, match="not the same ones in the same order"):
        read_mfnet_split(tmp_path, "train", ())


@pytest.mark.parametrize("copy", ["00001D_flip", "00001D_FLIP.png"])
def test_flipped_copies_are_refused(tmp_path: Path, copy: str) -> None:
    (tmp_path / "train.txt").write_text(f"00001D\n{copy}\n")

    with pytest.raises(DataError, match=r"names 1 flipped copies .* mirroring is an augmentation here"):
        read_mfnet_split(tmp_path, "train", ())


def test_labels_outside_the_classes_are_refused(tmp_path: Path, tree: tuple[Path, dict[str, SceneFrame]]) -> None:
    mask = tree[1]["00001D"].mask.copy()
    mask[0, 0] = 9
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    image = (tree[0] / "images" / "00001D.png").read_bytes()
    (tmp_path / "images" / "1D.png").write_bytes(image)
    Image.fromarray(mask).save(tmp_path / "labels" / "1D.png")

    with pytest.raises(DataError, match=r"labels/1D.png has the label values 9, outside 0..8"):
        MfnetFolder(tmp_path, "all").open()[0]


def test_a_label_image_of_another_size_is_refused(tmp_path: Path, tree: tuple[Path, dict[str, SceneFrame]]) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "1D.png").write_bytes((tree[0] / "images" / "00001D.png").read_bytes())
    Image.fromarray(np.zeros((120, 160), np.uint8)).save(tmp_path / "labels" / "1D.png")

    with pytest.raises(DataError, match=r"labels/1D\.png is 160x120, its RGB image 320x240"):
        MfnetFolder(tmp_path, "all").open()[0]


def test_other_folders_are_no_mfnet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder images/"):
        MfnetFolder(tmp_path).open()
