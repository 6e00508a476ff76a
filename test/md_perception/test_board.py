"""A checkerboard, cold in RGB and heated in thermal: corners, homography and time offset are found again."""

import cv2
import numpy as np
import pytest
from camera_pairs import SIZE, THERMAL_SIZE, distances_px, planted_homography, seen_by_thermal

from md_perception.sensing.alignment import AlignmentSettings, TooLittleEvidence
from md_perception.sensing.board import BoardView, align_by_board, find_board

INNER = (7, 5)
PERIOD_NS = 33_333_333
SQUARE = 20
RIM = 20


def board(dark: int, bright: int) -> np.ndarray:
    """Return a board with a bright rim, 20 px a square."""
    rows, columns = np.indices(((INNER[1] + 1), (INNER[0] + 1)))
    squares = np.kron((rows + columns) % 2, np.ones((SQUARE, SQUARE)))
    return np.where(np.pad(squares, RIM, constant_values=1) > 0, bright, dark).astype(np.uint8)


def pose(time_s: float) -> np.ndarray:
    """Return board texels to RGB pixels of a board that is carried about, near and far, upright and turned."""
    height, width = board(0, 1).shape
    middle = np.array([160 + 75 * np.cos(1.3 * time_s), 128 + 55 * np.sin(2.1 * time_s)])
    zoom, turn = 0.62 + 0.15 * np.sin(0.7 * time_s), 0.35 * np.sin(0.9 * time_s)
    matrix = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    offset = middle - matrix @ np.array([(width - 1) / 2, (height - 1) / 2])
    tilt = np.array([2e-4 * np.sin(1.7 * time_s), 2e-4 * np.cos(time_s)])
    return np.vstack([np.column_stack([matrix, offset]), [*tilt, 1.0]])


def corners(time_s: float) -> np.ndarray:
    """Return the true inner corners in RGB, float64 (n, 2) px."""
    columns, rows = np.meshgrid(np.arange(INNER[0]), np.arange(INNER[1]))
    texels = np.stack([columns, rows], axis=-1).reshape(1, -1, 2) * SQUARE + RIM + SQUARE - 0.5
    return cv2.perspectiveTransform(texels, pose(time_s))[0]


def picture(time_s: float, dark: int, bright: int, ground: int, seed: int) -> np.ndarray:
    image = cv2.warpPerspective(
        board(dark, bright),
        pose(time_s),
        SIZE,
        flags=cv2.INTER_AREA,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=ground,
    )
    noisy = cv2.GaussianBlur(image, (0, 0), 0.7) + np.random.default_rng(seed).normal(0, 2, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def views(planted: np.ndarray, delay_s: float, seconds: float, noise_px: float = 0.1) -> dict[str, list[BoardView]]:
    """Return views of both cameras with the true corners and the errors of a detector; each begins where it likes."""
    rng = np.random.default_rng(8)
    found: dict[str, list[BoardView]] = {"rgb": [], "thermal": []}
    for number in range(round(seconds * 1e9 / PERIOD_NS)):
        in_rgb = corners(number * PERIOD_NS * 1e-9)
        in_thermal = cv2.perspectiveTransform(in_rgb[None], planted)[0]
        inside = np.all((in_thermal > 0) & (in_thermal < np.array(THERMAL_SIZE)))
        for camera, points, late_s in (("rgb", in_rgb, 0.0), ("thermal", in_thermal, delay_s)):
            if camera == "thermal" and (not inside or number % 3):
                continue
            points = points + rng.normal(0, noise_px, points.shape)
            if rng.random() < 0.5:
                points = points[::-1]
            found[camera].append(BoardView(number * PERIOD_NS + round(late_s * 1e9), points))
    return found


@pytest.mark.parametrize(("dark", "bright", "ground"), [(40, 210, 120), (200, 60, 100)])
def test_corners_are_found_in_either_polarity_to_a_fraction_of_a_pixel(dark, bright, ground):
    errors = []
    for number, time_s in enumerate((0.0, 0.8, 1.9)):
        found = find_board(picture(time_s, dark, bright, ground, number), INNER)
        assert found is not None
        assert found.shape == (35, 2)
        true = corners(time_s)
        errors.append(min(np.hypot(*(found - order).T).mean() for order in (true, true[::-1])))
    assert max(errors) < 0.3


def test_a_board_of_160_pixels_heated_is_found():
    planted = planted_homography(1.2)
    image = seen_by_thermal(picture(1.2, 220, 90, 70, 1), planted, THERMAL_SIZE)
    found = find_board(image, INNER)
    assert found is not None
    true = cv2.perspectiveTransform(corners(1.2)[None], planted)[0]
    assert min(np.hypot(*(found - order).T).mean() for order in (true, true[::-1])) < 0.3


def test_an_image_without_the_board_has_no_corners():
    assert find_board(np.random.default_rng(0).integers(0, 255, (128, 160), dtype=np.uint8), INNER) is None
    assert find_board(picture(0.0, 40, 210, 120, 0), (9, 6)) is None


@pytest.mark.parametrize(
    "delay_s", [0.0, pytest.param(0.085, marks=pytest.mark.long), pytest.param(-0.21, marks=pytest.mark.long)]
)
def test_planted_homography_and_time_offset_are_found(delay_s):
    planted = planted_homography(1.15, 1.5, (3.0, -2.0), tilt=0.04)
    seen = views(planted, delay_s, 10.0)

    found = align_by_board(seen["rgb"], seen["thermal"], INNER, THERMAL_SIZE)

    off = distances_px(found.fit.homography, planted)
    assert np.sqrt(np.mean(off**2)) < 0.05
    assert found.delay is not None
    assert found.delay.delay_s == pytest.approx(delay_s, abs=0.002)
    assert found.delay.spread_s < 0.002
    # Noise of 0.1 px along each axis in thermal, and of RGB through half the scale.
    assert found.fit.residual_px == pytest.approx(np.hypot(0.141, 0.08), abs=0.04)
    assert found.fit.frames >= 60
    assert found.fit.points == 35 * found.fit.frames


def test_a_board_that_is_held_still_says_nothing_of_time():
    planted = planted_homography(1.1)
    rng = np.random.default_rng(2)
    rgb, thermal = [], []
    for place in range(8):
        for number in range(10):
            # Away for long between the places, so that no motion is seen.
            at_ns = place * 3_000_000_000 + number * PERIOD_NS
            in_rgb = corners(0.9 * place)
            in_thermal = cv2.perspectiveTransform(in_rgb[None], planted)[0]
            rgb.append(BoardView(at_ns, in_rgb + rng.normal(0, 0.1, in_rgb.shape)))
            thermal.append(BoardView(at_ns, in_thermal + rng.normal(0, 0.1, in_rgb.shape)))

    found = align_by_board(rgb, thermal, INNER, THERMAL_SIZE, AlignmentSettings(longest_delay_s=0.1))

    assert found.delay is None
    assert found.reason
    assert distances_px(found.fit.homography, planted).max() < 0.2


def test_too_few_views_are_refused_with_the_cure():
    seen = views(planted_homography(), 0.0, 10.0)
    with pytest.raises(TooLittleEvidence, match=r"found in 3 RGB and \d+ thermal images, 5 of each are needed"):
        align_by_board(seen["rgb"][:3], seen["thermal"], INNER, THERMAL_SIZE)


def test_views_in_one_corner_are_refused():
    planted = planted_homography(0.5)  # the whole RGB view lies in a quarter of the thermal image
    seen = views(planted, 0.0, 0.8)
    with pytest.raises(TooLittleEvidence, match=r"cover \d+% of the thermal image, 20% are needed"):
        align_by_board(seen["rgb"], seen["thermal"], INNER, THERMAL_SIZE)


@pytest.mark.long
def test_what_no_homography_fits_is_refused():
    seen = views(planted_homography(1.1), 0.0, 8.0)
    for number, view in enumerate(seen["thermal"]):  # parallax: every view at a distance of its own
        view.corners[:, 0] += 12 * np.sin(number)
    with pytest.raises(TooLittleEvidence, match="no homography fits"):
        align_by_board(seen["rgb"], seen["thermal"], INNER, THERMAL_SIZE)
