import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.sensing.registration import (
    CameraGeometry,
    NoCalibration,
    Registration,
    RegistrationError,
    RegistrationSettings,
    rectification,
    sampling_matrix,
)

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


def camera_info(
    size: tuple[int, int],
    focal_px: float,
    *,
    d: tuple[float, ...] = (0.0,) * 5,
    model: str = "plumb_bob",
    rotation: np.ndarray | None = None,
    baseline_m: float = 0.0,
    **changes: Any,
) -> SimpleNamespace:
    """Return a sensor_msgs/CameraInfo whose rectified images have the same focal length, centred."""
    k = np.array([[focal_px, 0, (size[0] - 1) / 2], [0, focal_px, (size[1] - 1) / 2], [0, 0, 1]])
    p = np.hstack([k, [[-focal_px * baseline_m], [0], [0]]])
    fields: dict[str, Any] = {
        "width": size[0],
        "height": size[1],
        "distortion_model": model,
        "d": array.array("d", d),  # as rclpy has it
        "k": k.reshape(-1),
        "r": (np.eye(3) if rotation is None else rotation).reshape(-1),
        "p": p.reshape(-1),
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**(fields | changes))


def geometries(rgb: SimpleNamespace, thermal: SimpleNamespace) -> tuple[CameraGeometry, CameraGeometry]:
    return CameraGeometry.of(rgb), CameraGeometry.of(thermal)


TURN = cv2.Rodrigues(np.array([0.01, -0.03, 0.02]))[0]
LEAN = cv2.Rodrigues(np.array([-0.02, 0.01, 0.0]))[0]


@pytest.mark.parametrize("distance_m", [2.0, 15.0, float("inf")])
def test_camera_infos_map_points_of_the_plane_exactly(distance_m: float) -> None:
    """A point of the plane is projected into both raw images by hand."""
    rgb = camera_info((640, 512), 600.0, rotation=TURN)
    thermal = camera_info((160, 128), 140.0, rotation=LEAN, baseline_m=0.12)
    found = rectification(*geometries(rgb, thermal), distance_m=distance_m)
    for x, y in ((0.0, 0.0), (0.3, -0.2), (-0.25, 0.3)):
        # Rectified axes: thermal is 0.12 m to the right, so that P has -f * 0.12 (sensor_msgs/CameraInfo).
        depth = distance_m if np.isfinite(distance_m) else 1e9
        point = np.array([x, y, 1.0]) * depth
        in_rgb = np.reshape(rgb.k, (3, 3)) @ TURN.T @ point
        in_thermal = np.reshape(thermal.k, (3, 3)) @ LEAN.T @ (point - [0.12, 0, 0])
        mapped = apply(found.homography, *(in_rgb[:2] / in_rgb[2]))
        np.testing.assert_allclose(mapped, in_thermal[:2] / in_thermal[2], atol=1e-5)
    assert found.distortion_px == 0.0
    assert found.aligned


def test_rectified_images_need_the_projections_alone() -> None:
    distorted = (-0.3, 0.1, 0.0, 0.0, 0.0)
    rgb = camera_info((640, 512), 600.0, rotation=TURN, d=distorted)
    thermal = camera_info((160, 128), 140.0, rotation=LEAN, baseline_m=0.1, d=distorted)
    found = rectification(*geometries(rgb, thermal), rectified=True, distance_m=10.0)
    # x_t = (x_r - 319.5) * 140 / 600 + 79.5 - 140 * 0.1 / 10
    np.testing.assert_allclose(apply(found.homography, 319.5, 255.5), (79.5 - 1.4, 63.5), atol=1e-6)
    np.testing.assert_allclose(apply(found.homography, 619.5, 255.5), (79.5 - 1.4 + 70.0, 63.5), atol=1e-6)
    assert found.distortion_px == 0.0


@pytest.mark.parametrize(
    ("model", "d"),
    [
        ("plumb_bob", (-0.02, 0.005, 0.0005, -0.0005, 0.0)),
        ("rational_polynomial", (-0.02, 0.005, 0.0, 0.0, 0.0, 0.001, 0.0, 0.0)),
    ],
)
def test_slight_distortion_is_fitted_and_told(model: str, d: tuple[float, ...]) -> None:
    rgb, thermal = camera_info((640, 512), 700.0, d=d, model=model), camera_info((160, 128), 175.0)
    found = rectification(*geometries(rgb, thermal))
    grid = np.stack(np.meshgrid(np.linspace(0, 639, 9), np.linspace(0, 511, 7)), axis=-1).reshape(-1, 1, 2)
    straight = cv2.undistortPoints(grid, np.reshape(rgb.k, (3, 3)), np.array(d)).reshape(-1, 2)
    true = straight * 175.0 + (79.5, 63.5)
    seen = np.all((true > 0) & (true < (159, 127)), axis=1)
    mapped = np.array([apply(found.homography, *pixel[0]) for pixel in grid[seen]])
    errors = np.hypot(*(mapped - true[seen]).T)
    assert 0.05 < found.distortion_px < 1.6
    assert errors.max() <= found.distortion_px + 0.05
    # Without the fit, by the straight matrix, it would be worse.
    plain = rectification(*geometries(camera_info((640, 512), 700.0), thermal)).homography
    assert errors.max() < np.hypot(*(np.array([apply(plain, *p[0]) for p in grid[seen]]) - true[seen]).T).max()


def test_strong_distortion_is_refused_with_the_cure() -> None:
    rgb, thermal = camera_info((640, 512), 420.0, d=(-0.3, 0.1, 0.0, 0.0, 0.0)), camera_info((160, 128), 105.0)
    with pytest.raises(RegistrationError, match="no homography can take away: publish rectified images"):
        rectification(*geometries(rgb, thermal))
    assert rectification(*geometries(rgb, thermal), rectified=True).distortion_px == 0.0


def test_fisheye_lenses_are_understood() -> None:
    d = (0.01, -0.002, 0.0, 0.0)
    rgb = camera_info((640, 512), 900.0, d=d, model="equidistant")
    found = CameraGeometry.of(rgb)
    pixels = np.array([[10.0, 20.0], [319.5, 255.5], [600.0, 100.0]])
    np.testing.assert_allclose(found.pixels(found.rays(pixels)), pixels, atol=1e-6)
    # The ideal equidistant lens: the angle to the axis is proportional to the distance from the middle.
    ideal = CameraGeometry.of(camera_info((640, 512), 900.0, d=(1e-12, 0, 0, 0), model="equidistant"))
    ray = ideal.rays(np.array([[319.5 + 270.0, 255.5]]))[0]
    assert np.arctan2(ray[0], ray[2]) == pytest.approx(0.3, abs=1e-6)


def test_binning_and_region_of_interest_are_in_the_pixels_that_are_sent() -> None:
    full = camera_info((640, 512), 600.0)
    window = camera_info((640, 512), 600.0, roi=SimpleNamespace(x_offset=100, y_offset=50, width=400, height=300))
    binned = camera_info((640, 512), 600.0, binning_x=2, binning_y=2)
    thermal = CameraGeometry.of(camera_info((160, 128), 150.0))
    whole = rectification(CameraGeometry.of(full), thermal).homography
    cropped = CameraGeometry.of(window)
    assert cropped.size == (400, 300)
    np.testing.assert_allclose(
        apply(rectification(cropped, thermal).homography, 20, 30), apply(whole, 120, 80), atol=1e-9
    )
    halved = CameraGeometry.of(binned)
    assert halved.size == (320, 256)
    # Pixel 10 of the binned image is the middle of pixels 20 and 21.
    np.testing.assert_allclose(
        apply(rectification(halved, thermal).homography, 10, 12), apply(whole, 20.5, 24.5), atol=1e-9
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"k": np.zeros(9)}, r"uncalibrated \(K begins with 0\): calibrate the camera \(camera_calibration\)$"),
        ({"k": np.full(9, np.nan)}, "not finite"),
        ({"k": np.diag([600.0, 600, 0]).ravel()}, r"a K or a P that maps the view onto a line .*: calibrate the cam"),
        ({"p": np.array([600.0, 0, 320, 0, 0, 600, 256, 0, 0, 0, 0, 0])}, "a K or a P that maps the view onto a line"),
        ({"distortion_model": "thin_prism_fisheye"}, "distortion model 'thin_prism_fisheye'"),
        ({"d": [0.1, 0.2]}, "2 coefficients of plumb_bob: 4 or 5 are needed"),
        ({"r": np.full(9, 0.5)}, "R that is no rotation"),
    ],
)
def test_a_camera_info_that_cannot_be_used_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(NoCalibration, match=problem):
        CameraGeometry.of(camera_info((640, 512), 600.0, **changes), "/rgb/camera_info")


def test_an_uncalibrated_driver_that_leaves_out_r_and_p_is_taken_as_parallel_and_told() -> None:
    registration = Registration(RegistrationSettings("camera_info_raw"))
    for camera, size, focal in (("rgb", (640, 512), 600.0), ("thermal", (160, 128), 150.0)):
        registration.note_camera_info(camera, camera_info(size, focal, r=np.zeros(9), p=np.zeros(12)))
    np.testing.assert_allclose(
        registration.matrix((640, 512), (160, 128)), sampling_matrix((640, 512), (160, 128)), atol=1e-5
    )
    assert [text.partition(":")[0] for text in registration.warnings()] == [
        "the CameraInfo messages do not say how the cameras stand to each other (R is the identity and P has no "
        "baseline), so parallel axes are assumed"
    ]


def test_registration_follows_the_camera_infos() -> None:
    registration = Registration(RegistrationSettings("camera_info_raw"))
    assert registration.uses_camera_info
    with pytest.raises(RegistrationError, match="nothing came on rgb/camera_info yet"):
        registration.matrix((640, 512), (160, 128))
    registration.note_camera_info("rgb", camera_info((640, 512), 600.0, rotation=TURN))
    registration.note_camera_info("thermal", camera_info((160, 128), 150.0, rotation=TURN))
    first = registration.matrix((640, 512), (160, 128))
    assert registration.matrix((640, 512), (160, 128)) is first
    registration.note_camera_info("thermal", camera_info((160, 128), 150.0, rotation=TURN))  # the same again
    assert registration.matrix((640, 512), (160, 128)) is first
    with pytest.raises(RegistrationError, match="describes images of 160x128 px, but they are 320x256"):
        registration.matrix((640, 512), (320, 256))
    registration.note_camera_info("thermal", camera_info((160, 128), 300.0, rotation=TURN))  # another lens
    assert registration.matrix((640, 512), (160, 128))[0, 0] == pytest.approx(2 * first[0, 0])
    registration.note_camera_info("thermal", camera_info((160, 128), 0.0))
    with pytest.raises(
        NoCalibration, match=r"uncalibrated .*, or set registration.source to 'homography' and run md_cal"
    ):
        registration.matrix((640, 512), (160, 128))
    assert any("uncalibrated" in text for text in registration.warnings())


def test_why_there_is_no_matrix_is_told_for_sizes_and_without_them() -> None:
    registration = Registration(RegistrationSettings("camera_info_raw"))
    assert registration.problem(None, None).startswith("registration.source is 'camera_info_raw', but nothing came on")
    registration.note_camera_info("rgb", camera_info((640, 512), 600.0, rotation=TURN))
    registration.note_camera_info("thermal", camera_info((160, 128), 150.0, rotation=TURN))
    for sizes in ((None, None), ((640, 512), None), ((640, 512), (160, 128)), ((0, 512), (160, 128))):
        assert registration.problem(*sizes) == ""
    assert "describes images of 160x128 px, but they are 320x256" in registration.problem((640, 512), (320, 256))
    registration.note_camera_info("rgb", camera_info((640, 512), 0.0), "/cam/camera_info")
    assert registration.problem(None, None).startswith("/cam/camera_info is uncalibrated (K begins with 0)")
    assert not registration.registers(None, None)
    assert Registration().problem((640, 512), (160, 128)) == ""
    assert Registration().registers((640, 512), (160, 128))


def test_camera_infos_that_give_no_matrix_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode is decided several times a frame, and asks each time."""
    fits: list[int] = []

    def refuse(*arguments: Any, **options: Any) -> None:
        fits.append(1)
        raise NoCalibration("the cameras hardly see the same")

    monkeypatch.setattr("md_perception.sensing.registration.rectification", refuse)
    registration = Registration(RegistrationSettings("camera_info_raw"))
    for camera, size in (("rgb", (640, 512)), ("thermal", (160, 128))):
        registration.note_camera_info(camera, camera_info(size, 600.0))
    assert [registration.problem((640, 512), (160, 128)) for _ in range(3)] == ["the cameras hardly see the same"] * 3
    assert registration.warnings() == ["the cameras hardly see the same"]
    assert len(fits) == 1
    registration.note_camera_info("rgb", camera_info((640, 512), 700.0))  # another one may do
    registration.problem((640, 512), (160, 128))
    assert len(fits) == 2


def test_a_homography_holds_for_the_sizes_that_it_was_made_for() -> None:
    homography = (0.25, 0, 1, 0, 0.25, 2, 0, 0, 1)
    registration = Registration(RegistrationSettings("homography", homography, (640, 480, 160, 120)))
    np.testing.assert_allclose(registration.matrix((640, 480), (160, 120)), np.reshape(homography, (3, 3)))
    assert not registration.uses_camera_info
    assert registration.warnings() == []
    with pytest.raises(RegistrationError, match="RGB 640x480 and thermal 160x120, but the images are 640x480 and 320"):
        registration.matrix((640, 480), (320, 240))
    np.testing.assert_allclose(Registration().matrix((640, 480), (160, 120)), sampling_matrix((640, 480), (160, 120)))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"source": "tf"}, "use one of homography, camera_info_raw, camera_info_rect"),
        ({"source": "camera_info_raw", "homography": (1,) * 9}, "registration.homography is given too"),
        ({"distance_m": 0.0}, "registration.distance_m must be above 0"),
    ],
)
def test_registration_settings_that_contradict_themselves_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RegistrationSettings(**values)


def test_cameras_that_see_a_line_of_each_other_are_refused() -> None:
    """Found by fuzzing: points on a line have no homography, and OpenCV says so with None."""
    distortion = {"model": "plumb_bob", "d": (0.01,) * 5}
    k = (100.0, 0.0, 31.5, 0.0, 100.0, 23.5, 0.0, 0.0, 1.0)
    rotation = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    p = (100.0, 0.0, 31.5, 0.0, 0.0, 100.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0)
    wide, other = (CameraGeometry(size, k=k, r=rotation, p=p, **distortion) for size in ((9024, 48), (64, 48)))
    with pytest.raises(RegistrationError, match="see a line of each other's images: calibrate them again"):
        rectification(wide, other)


def test_what_is_still_awaited_is_told_until_it_comes() -> None:
    registration = Registration(RegistrationSettings(source="camera_info_raw"))
    with pytest.raises(NoCalibration, match="nothing came on rgb/camera_info yet"):
        registration.matrix((64, 48), (16, 12))
    assert ["rgb/camera_info and thermal/camera_info" in text for text in registration.warnings()] == [True]
    registration.note_camera_info("rgb", camera_info((64, 48), 60.0))
    (text,) = registration.warnings()
    assert "nothing came on thermal/camera_info yet: let the driver publish it" in text
    registration.note_camera_info("thermal", camera_info((16, 12), 15.0))
    assert not any("nothing came" in text for text in registration.warnings())
    assert Registration(RegistrationSettings()).warnings() == []
