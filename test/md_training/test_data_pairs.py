import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import write_yolo
from PIL import Image

from md_perception.annotations.masks import read_mask
from md_perception.labels import SEGMENTATION
from md_perception.sensing.registration import sampling_matrix
from md_training.data.pairs import (
    Degradation,
    PairFolder,
    degraded,
    read_rgb,
    read_rgb_thermal,
    read_thermal,
)
from md_training.data.sample import Sample
from md_training.data.splits import DataError
from md_training.losses import IGNORED_PIXEL


def make_sample(thermal: np.ndarray, rgb_size: tuple[int, int]) -> Sample:
    width, height = rgb_size
    return Sample(
        rgb=np.zeros((height, width, 3), np.uint8),
        thermal=thermal,
        rgb_to_thermal=sampling_matrix(rgb_size, (thermal.shape[1], thermal.shape[0])),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        ignored=np.zeros(0, np.bool_),
        mask=np.zeros((height, width), np.uint8),
        night=False,
        name="made",
    )


def saved(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path)
    return path


class TestDegradation:
    def test_is_named_by_its_factor_in_pixels(self) -> None:
        assert [str(Degradation(k)) for k in (1, 2, 4, 8)] == ["x1", "x4 bilinear", "x16 bilinear", "x64 bilinear"]
        assert str(Degradation(4, "area")) == "x16 area"

    def test_bilinear_takes_the_four_pixels_in_the_middle_and_area_all_sixteen(self) -> None:
        thermal = np.zeros((4, 4), np.uint8)
        thermal[1:3, 1:3] = [[40, 80], [120, 160]]  # mean of these 100, of all sixteen 25
        sample = make_sample(thermal, (8, 8))

        assert degraded(sample, Degradation(4)).thermal.tolist() == [[100]]
        assert degraded(sample, Degradation(4, "area")).thermal.tolist() == [[25]]

    def test_keeps_pointing_at_the_same_place(self) -> None:
        """RGB 8 px, thermal 8 px, then 4: RGB pixels 2 and 3 share thermal pixel 1, whose centre is between them."""
        sample = degraded(make_sample(np.zeros((8, 8), np.uint8), (8, 8)), Degradation(2))

        at = sample.rgb_to_thermal @ np.array([2.5, 2.5, 1])

        np.testing.assert_allclose(at, [1, 1, 1], atol=1e-6)
        np.testing.assert_allclose(sample.rgb_to_thermal, sampling_matrix((8, 8), (4, 4)), atol=1e-6)

    def test_leaves_the_native_sample_for_the_teacher(self) -> None:
        sample = make_sample(np.arange(64, dtype=np.uint8).reshape(8, 8), (8, 8))

        assert degraded(sample, Degradation(1)) is sample
        assert degraded(sample, Degradation(8)).thermal.shape == (1, 1)
        assert sample.thermal.shape == (8, 8)

    @pytest.mark.parametrize("downsample", [0, 3, 16])
    def test_other_factors_are_refused(self, downsample: int) -> None:
        with pytest.raises(ValueError, match="per side: use 1, 2, 4 or 8"):
            Degradation(downsample)  # type: ignore[arg-type]


class TestImages:
    def test_rgb_keeps_the_order_of_its_channels(self, tmp_path: Path) -> None:
        image = np.zeros((2, 3, 3), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = 10, 20, 30

        assert read_rgb(saved(tmp_path / "a.png", image))[0, 0].tolist() == [10, 20, 30]

    def test_a_grey_rgb_image_is_repeated(self, tmp_path: Path) -> None:
        rgb = read_rgb(saved(tmp_path / "a.png", np.full((2, 3), 77, np.uint8)))

        assert rgb.shape == (2, 3, 3)
        assert (rgb == 77).all()

    def test_thermal_in_three_channels_is_one_image(self, tmp_path: Path) -> None:
        """KAIST's PNG copies differ by 2 in one channel: 0.299 * 100 + 0.587 * 102 + 0.114 * 100 = 101.2."""
        image = np.full((2, 3, 3), 100, np.uint8)
        image[..., 1] = 102

        assert read_thermal(saved(tmp_path / "a.png", image)).tolist() == [[101] * 3] * 2

    def test_equal_channels_come_out_exactly(self, tmp_path: Path) -> None:
        values = np.arange(256, dtype=np.uint8).reshape(16, 16)

        grey = read_thermal(saved(tmp_path / "a.png", np.repeat(values[..., None], 3, axis=2)))

        assert np.array_equal(grey, values)

    def test_pseudo_colour_is_refused(self, tmp_path: Path) -> None:
        colours = cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(16, 16), cv2.COLORMAP_JET)

        with pytest.raises(DataError, match="pseudo-colour cannot"):
            read_thermal(saved(tmp_path / "a.png", colours))

    def test_sixteen_bits_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="expected 8 bits"):
            read_thermal(saved(tmp_path / "a.png", np.full((4, 4), 30000, np.uint16)))

    def test_a_visible_image_with_a_fourth_channel_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="read the set as kind mfnet"):
            read_rgb(saved(tmp_path / "a.png", np.zeros((4, 4, 4), np.uint8)))

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_half_a_file_is_damaged_and_not_half_grey(self, tmp_path: Path, suffix: str) -> None:
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
        path = saved(tmp_path / f"a{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

        with pytest.raises(DataError, match=r"a\.(png|jpg) is damaged"):
            read_rgb(path)

    def test_something_else_is_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("404 not found")

        with pytest.raises(DataError, match="is no image that can be read"):
            read_rgb(tmp_path / "a.png")
        with pytest.raises(DataError, match="is not there"):
            read_rgb(tmp_path / "b.png")

    @pytest.mark.parametrize("side", [7_000, 20_000])
    def test_the_header_of_a_huge_image_is_enough_to_refuse_it(self, tmp_path: Path, side: int) -> None:
        """A PNG of 20,000 x 20,000 pixels, 1.2 GB of memory, in 57 bytes."""
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]
        (tmp_path / "a.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        )

        with pytest.raises(DataError, match="has more pixels than the 40 million that are read"):
            read_rgb(tmp_path / "a.png")


class TestFourChannels:
    def test_colours_of_cold_pixels_survive(self, tmp_path: Path) -> None:
        """Thermal 0 is no transparency: tools that premultiply would make these pixels black."""
        pixels = np.dstack([np.full((2, 2), value, np.uint8) for value in (10, 200, 30, 0)])

        rgb, thermal = read_rgb_thermal(saved(tmp_path / "a.png", pixels))

        assert rgb[0, 0].tolist() == [10, 200, 30]
        assert thermal.tolist() == [[0, 0], [0, 0]]

    def test_an_image_that_lost_its_thermal_channel_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has 3 channel"):
            read_rgb_thermal(saved(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8)))


class TestMasks:
    def test_ids_and_ignored_pixels_are_taken_as_they_are(self, tmp_path: Path) -> None:
        ids = np.array([[0, 1, 8], [2, 255, 0]], np.uint8)

        assert np.array_equal(read_mask(saved(tmp_path / "a.png", ids), (3, 2)), ids)

    def test_a_palette_image_gives_its_indices(self, tmp_path: Path) -> None:
        ids = np.array([[0, 2], [8, 1]], np.uint8)
        image = Image.fromarray(ids, mode="P")
        image.putpalette([255 - value for colour in SEGMENTATION.palette for value in colour])
        image.save(tmp_path / "a.png")

        assert np.array_equal(read_mask(tmp_path / "a.png", (2, 2)), ids)

    def test_colours_of_the_palette_become_ids(self, tmp_path: Path) -> None:
        colours = np.array([[SEGMENTATION.palette[2], SEGMENTATION.palette[0], SEGMENTATION.palette[7]]], np.uint8)

        assert read_mask(saved(tmp_path / "a.png", colours), (3, 1)).tolist() == [[2, 0, 7]]

    def test_values_that_are_no_class_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"label values 9, 254, outside 0..8"):
            read_mask(saved(tmp_path / "a.png", np.array([[9, 254, 0]], np.uint8)), (3, 1))

    def test_a_resized_colour_mask_is_refused(self, tmp_path: Path) -> None:
        mixed = np.array([[[32, 0, 64]]], np.uint8)  # half way between unlabelled and car

        with pytest.raises(DataError, match=r"\(32, 0, 64\), which are not in the palette"):
            read_mask(saved(tmp_path / "a.png", mixed), (1, 1))


class TestFolders:
    def test_unlabelled_pairs_have_no_truth(self, tmp_path: Path) -> None:
        write_yolo(tmp_path)

        pairs = PairFolder(tmp_path, degradation=Degradation(2)).open()
        sample = pairs[2]

        assert [len(pairs), pairs.split.names] == [3, ("0D", "1D", "2N")]
        assert (sample.rgb.shape, sample.thermal.shape) == ((48, 64, 3), (24, 32))
        assert (len(sample.boxes), set(np.unique(sample.mask))) == (0, {IGNORED_PIXEL})
        assert (pairs.detection_classes, pairs.segmentation_classes) == ((), ())
        assert [pair.night for pair in pairs] == [False, False, True]
        assert pairs.contract.sensor_size == (32, 24)
        assert "3 pairs, all, SHA-256" in pairs.description()
        assert pairs.description().endswith("thermal x4 bilinear")

    def test_workers_can_take_the_set_along(self, tmp_path: Path) -> None:
        write_yolo(tmp_path)
        pairs = PairFolder(tmp_path, "train").open()

        assert np.array_equal(pickle.loads(pickle.dumps(pairs))[1].rgb, pairs[1].rgb)

    def test_a_missing_partner_is_named(self, tmp_path: Path) -> None:
        write_yolo(tmp_path)
        (tmp_path / "thermal" / "1D.png").unlink()

        assert PairFolder(tmp_path).open().split.names == ("0D", "2N")
        with pytest.raises(DataError, match=r"thermal/1D.png is not there"):
            PairFolder(tmp_path, "train").open()[1]

    def test_night_and_homography_may_be_given(self, tmp_path: Path) -> None:
        write_yolo(tmp_path)
        (tmp_path / "night.txt").write_text("0D\n")
        (tmp_path / "homography.txt").write_text("0.5 0 3\n0 0.5 4\n0 0 1\n")

        sample = PairFolder(tmp_path).open()[0]

        assert sample.night
        assert sample.rgb_to_thermal.tolist() == [[0.5, 0, 3], [0, 0.5, 4], [0, 0, 1]]

    def test_two_files_of_one_name_are_refused(self, tmp_path: Path) -> None:
        write_yolo(tmp_path)
        saved(tmp_path / "visible" / "0D.jpg", np.zeros((48, 64, 3), np.uint8))

        with pytest.raises(DataError, match="have the same name"):
            PairFolder(tmp_path).open()

    def test_folders_of_drives_are_part_of_the_name(self, tmp_path: Path) -> None:
        write_yolo(tmp_path)
        for camera in ("visible", "thermal"):
            (tmp_path / camera / "drive1").mkdir()
            (tmp_path / camera / "0D.png").rename(tmp_path / camera / "drive1" / "7.png")

        assert "drive1/7" in PairFolder(tmp_path).open().split.names


def test_the_real_mfnet_images_come_apart_as_another_library_does_it(data_root: Path) -> None:
    for name in ("01234N", "01477D"):
        path = data_root / "mfnet" / f"{name}.png"

        rgb, thermal = read_rgb_thermal(path)

        blue_green_red_thermal = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(rgb, blue_green_red_thermal[..., 2::-1])
        assert np.array_equal(thermal, blue_green_red_thermal[..., 3])


def test_roadscene_is_a_folder_of_unlabelled_pairs(data_root: Path) -> None:
    pairs = PairFolder(data_root / "roadscene").open()

    sample = pairs[0]

    assert (len(pairs), sample.name) == (221, "FLIR_00006")
    assert (sample.rgb.shape, sample.thermal.shape) == ((329, 500, 3), (329, 500))
