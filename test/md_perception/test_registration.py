import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.sensing.registration import sampling_matrix

SIZES = st.tuples(st.integers(8, 2000), st.integers(8, 2000))


def apply(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    u, v, w = matrix.astype(np.float64) @ (x, y, 1.0)
    return np.array([u / w, v / w])


@given(SIZES, SIZES)
def test_without_a_homography_both_images_cover_the_same_view(rgb: tuple[int, int], thermal: tuple[int, int]) -> None:
    matrix = sampling_matrix(rgb, thermal)
    assert matrix.dtype == np.float32
    # Outer edges of the images fall together: pixel centres at integers, so the left edge is at -0.5.
    np.testing.assert_allclose(apply(matrix, -0.5, -0.5), (-0.5, -0.5), atol=1e-3)
    np.testing.assert_allclose(
        apply(matrix, rgb[0] - 0.5, rgb[1] - 0.5), (thermal[0] - 0.5, thermal[1] - 0.5), rtol=1e-5, atol=1e-3
    )


def test_four_times_coarser_thermal_by_hand() -> None:
    # x_t = (x_r + 0.5) / 4 - 0.5: RGB pixel 0 lies at -0.375 of the first thermal pixel.
    np.testing.assert_allclose(
        sampling_matrix((640, 480), (160, 120)), [[0.25, 0, -0.375], [0, 0.25, -0.375], [0, 0, 1]]
    )


@given(st.floats(0.1, 10), st.floats(-50, 50), st.floats(-50, 50), st.floats(-0.2, 0.2), st.sampled_from([1, -3, 1e-4]))
def test_a_homography_maps_the_same_points_at_any_scale(
    zoom: float, dx: float, dy: float, turn: float, factor: float
) -> None:
    homography = np.array(
        [[zoom * np.cos(turn), -zoom * np.sin(turn), dx], [zoom * np.sin(turn), zoom * np.cos(turn), dy], [1e-4, 0, 1]]
    )
    matrix = sampling_matrix((640, 480), (160, 120), (homography * factor).reshape(-1))
    assert matrix[2, 2] == pytest.approx(1)
    for x, y in [(0, 0), (639, 0), (320, 240), (0, 479)]:
        np.testing.assert_allclose(apply(matrix, x, y), apply(homography, x, y), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("homography", "problem"),
    [
        ([1, 0, 0, 0, 1, 0], "nine finite numbers"),
        ([1, 0, 0, 0, float("nan"), 0, 0, 0, 1], "nine finite numbers"),
        ([0] * 9, "singular"),
        ([1, 2, 0, 2, 4, 0, 0, 0, 1], "singular"),
        # x / (1 - x / 320): the horizon is the column in the middle.
        ([1, 0, 0, 0, 1, 0, -1 / 320, 0, 1], "horizon inside the 640x480"),
    ],
)
def test_what_is_no_homography_is_refused(homography: list[float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        sampling_matrix((640, 480), (160, 120), homography)
