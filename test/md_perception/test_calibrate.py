"""`md_calibrate` on bags: from images to the parameter file, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from camera_pairs import SIZE, THERMAL_SIZE, distances_px, drive, planted_homography, seen_by_thermal

from md_perception.bags.make import RGB_CAMERA, THERMAL_CAMERA, camera_messages, declare_camera
from md_perception.bags.write import BagWriter
from md_perception.calibrate import CalibrationError, main, write_atomically
from md_perception.scenes import TimeOfDay
from md_perception.sensing.alignment import StampedImage

PLANTED = planted_homography(1.2, 1.0, (3.0, -2.0))
DELAY_S = 0.06


def write_bag(path: Path, rgb: list[StampedImage], thermal: list[StampedImage]) -> Path:
    with BagWriter(path) as writer:
        declare_camera(writer, RGB_CAMERA)
        declare_camera(writer, THERMAL_CAMERA)
        frames = [(frame, RGB_CAMERA) for frame in rgb] + [(frame, THERMAL_CAMERA) for frame in thermal]
        for frame, camera in sorted(frames, key=lambda item: item[0].stamp_ns):
            picture = cv2.cvtColor(frame.image, cv2.COLOR_GRAY2RGB) if camera is RGB_CAMERA else frame.image
            for timed in camera_messages(writer.store, camera, frame.stamp_ns, frame.stamp_ns, picture):
                writer.write(timed.topic, timed.log_ns, timed.message)
    return path


@pytest.fixture(scope="module")
def street_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cameras = drive(TimeOfDay.NIGHT)
    path = tmp_path_factory.mktemp("bags") / "street"
    return write_bag(path, list(cameras.rgb), cameras.through(PLANTED, DELAY_S))


@pytest.fixture(scope="module")
def board_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board that moves over the image, cold in RGB, its dark squares hot in thermal."""
    squares = np.kron(np.indices((6, 8)).sum(axis=0) % 2, np.ones((14, 14)))
    board = np.pad(squares, 14, constant_values=1)
    rgb, thermal = [], []
    for number in range(48):
        x, y = 80 + 70 * np.cos(0.11 * number), 60 + 52 * np.sin(0.17 * number)
        place = np.array([[1, 0.002 * number, x], [-0.002 * number, 1, y + 10]])
        shown = [
            cv2.warpAffine(np.where(board > 0, bright, dark).astype(np.float32), place, SIZE, borderValue=ground)
            for dark, bright, ground in ((40, 210, 120), (220, 90, 70))
        ]
        at_ns = 10**18 + number * 40_000_000
        rgb.append(StampedImage(at_ns, shown[0].astype(np.uint8)))
        warm = seen_by_thermal(shown[1].astype(np.uint8), planted_homography(1.05), THERMAL_SIZE)
        thermal.append(StampedImage(at_ns + 30_000_000, warm))
    return write_bag(tmp_path_factory.mktemp("bags") / "board", rgb, thermal)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(bag: Path, *arguments: str) -> tuple[int, str]:
        status = main([str(bag), "--out", str(tmp_path / "calibration.yaml"), *arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def parameters_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["/**"]["ros__parameters"]


def test_a_street_gives_the_parameters_of_the_node_and_a_check_picture(street_bag, run, tmp_path):
    status, text = run(street_bag, "--zoom", "0.9", "1.6")

    assert status == 0, text
    found = parameters_of(tmp_path / "calibration.yaml")
    off = distances_px(np.reshape(found["registration"]["homography"], (3, 3)), PLANTED)
    assert np.sqrt(np.mean(off**2)) < 0.6
    assert found["registration"]["source"] == "homography"
    assert found["registration"]["sizes"] == [*SIZE, *THERMAL_SIZE]
    assert all(isinstance(value, float) for value in found["registration"]["homography"])  # ROS takes no integers here
    # Thermal stamps are late, so that the offset that is added to them is negative.
    assert found["pairing"]["offset_s"] == pytest.approx(-DELAY_S, abs=0.015)
    head = (tmp_path / "calibration.yaml").read_text().splitlines()[:5]
    assert head[0].startswith("# Made by md_calibrate from ")
    assert "parts of the image in 40 image pairs" in head[1]
    assert "residual of what was held out" in text
    assert "ms late (standard deviation" in text

    # The edges of thermal lie where RGB has edges, after the calibration more than before.
    picture = cv2.imread(str(tmp_path / "calibration.png"))
    width, height = SIZE
    assert picture.shape == (3 * height, 2 * width, 3)
    drawn = (picture == (0, 160, 255)).all(axis=2)
    assert drawn[:, :width].sum() > 1000
    assert drawn[:, width:].sum() > 1000
    first = drive(TimeOfDay.NIGHT).rgb[0].image.astype(np.float32)
    slope = cv2.GaussianBlur(
        np.hypot(cv2.Sobel(first, cv2.CV_32F, 1, 0), cv2.Sobel(first, cv2.CV_32F, 0, 1)), (0, 0), 1
    )
    before, after = (slope[drawn[:height, start : start + width]].mean() for start in (0, width))
    assert after > 1.2 * before


def test_a_heated_board_gives_them_too(board_bag, run, tmp_path):
    status, text = run(board_bag, "--board", "7x5")

    assert status == 0, text
    found = parameters_of(tmp_path / "calibration.yaml")
    off = distances_px(np.reshape(found["registration"]["homography"], (3, 3)), planted_homography(1.05))
    assert np.sqrt(np.mean(off**2)) < 0.3
    assert found["pairing"]["offset_s"] == pytest.approx(-0.03, abs=0.005)
    assert "board of 7x5 inner corners" in text


def test_nothing_is_replaced_unless_asked(street_bag, run, tmp_path):
    (tmp_path / "calibration.yaml").write_text("mine")
    status, text = run(street_bag)
    assert status == 1
    assert "calibration.yaml exists: choose another name, or allow replacing a file (--replace)" in text
    assert (tmp_path / "calibration.yaml").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.yaml"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("--board", "9x6", "--seconds", "0.3"),
            "the board with 9x6 inner corners was found in 0 RGB and 0 thermal images",
        ),
        (("--seconds", "0.1"), "are too few: record at least 10 of each"),
        (("--start", "60"), "no image of rgb and thermal could be read"),
        (("--rgb-topic", "/front"), "has no images on /front; it has images on /rgb/image_raw, /thermal/image_raw"),
        (("--thermal-topic", "/rgb/image_raw"), "both cameras are on /rgb/image_raw"),
        (("--thermal-encoding", "celsius"), "no image of thermal could be read: thermal topic"),
        (("--seconds", "nan"), "--seconds nan are no times"),
        (("--start", "inf"), "--start inf and"),
    ],
)
def test_what_cannot_be_calibrated_leaves_nothing_behind(street_bag, run, tmp_path, arguments, problem):
    status, text = run(street_bag, *arguments)
    assert status == 1
    assert "nothing was written" in text
    assert problem in text
    assert list(tmp_path.iterdir()) == []


def test_picture_and_parameters_cannot_be_one_file(street_bag, run, tmp_path):
    status, text = run(street_bag, "--picture", str(tmp_path / "calibration.yaml"))
    assert status == 1
    assert "cannot be both parameter file and picture" in text
    assert list(tmp_path.iterdir()) == []


def test_a_wall_without_edges_is_refused(run, tmp_path):
    rng = np.random.default_rng(3)
    times = [10**18 + number * 33_333_333 for number in range(20)]
    rgb = [StampedImage(at, rng.integers(100, 110, SIZE[::-1], dtype=np.uint8)) for at in times]
    thermal = [StampedImage(at, rng.integers(100, 110, THERMAL_SIZE[::-1], dtype=np.uint8)) for at in times]
    status, text = run(write_bag(tmp_path / "wall", rgb, thermal), "--zoom", "0.95", "1.05")
    assert status == 1
    assert "have edges that RGB shows too" in text
    assert not (tmp_path / "calibration.yaml").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder" / "file.yaml"
    write_atomically(target, b"one", replace=False)
    with pytest.raises(CalibrationError, match="exists: choose another name"):
        write_atomically(target, b"two", replace=False)
    write_atomically(target, b"three", replace=True)
    assert target.read_bytes() == b"three"
    with pytest.raises(CalibrationError, match="cannot write"):
        write_atomically(target / "below", b"", replace=False)
    assert [path.name for path in target.parent.iterdir()] == ["file.yaml"]
