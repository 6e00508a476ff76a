"""Preprocessing: what training and the exported graph share, against torch's own resize and geometry by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from md_perception.sensing.registration import sampling_matrix
from md_training.preprocess import (
    MEAN,
    STD,
    boxes_to_camera,
    boxes_to_network,
    camera_rows,
    letterbox_rgb,
    logits_to_camera,
    make_letterbox,
    network_input,
    sample_thermal,
    thermal_input,
)


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (1, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(("height", "width"), [(128, 160), (256, 320), (64, 80), (96, 120)])
def test_resize_at_the_networks_aspect_is_torchs_antialiased_one(height: int, width: int) -> None:
    rgb = image(height, width)
    resized, seen, box = letterbox_rgb(rgb, (160, 128))
    expected = F.interpolate(
        rgb.permute(0, 3, 1, 2).float(), (128, 160), mode="bilinear", antialias=True, align_corners=False
    )
    assert float((resized - expected).abs().max() / 255) < 5e-4
    assert bool((seen == 1).all())
    assert float(box.offset_x) == float(box.offset_y) == 0


def triangle_weights(positions: np.ndarray, count: int, support: float) -> np.ndarray:
    """Return (M, N), the filter of the docstrings as one whole matrix."""
    weights = np.maximum(1 - np.abs(positions[:, None] - (np.arange(count) + 0.5)) / support, 0)
    inside = (positions >= 0) & (positions <= count)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-6) * inside[:, None]


@pytest.mark.parametrize(("width", "height"), [(160, 90), (640, 480), (1000, 333), (97, 301), (40, 30), (3, 2), (1, 1)])
@pytest.mark.parametrize("tiles", [1, 3, 8])
def test_resize_by_bands_is_the_product_with_the_whole_matrices(width: int, height: int, tiles: int) -> None:
    rgb = image(height, width, seed=width)
    resized, seen, box = letterbox_rgb(rgb, (160, 128), tiles)
    scale = min(160 / width, 128 / height)
    assert float(box.scale) == pytest.approx(scale)
    support = max(1 / scale, 1)
    xs, ys = (
        (np.arange(size) + 0.5 - (size - count * scale) / 2) / scale for size, count in ((160, width), (128, height))
    )
    horizontal, vertical = triangle_weights(xs, width, support), triangle_weights(ys, height, support)
    expected = vertical @ rgb[0].permute(2, 0, 1).numpy().astype(float) @ horizontal.T
    np.testing.assert_allclose(resized[0], expected, atol=0.05)  # of 255: positions are float32
    np.testing.assert_array_equal(seen, (vertical.sum(axis=1)[:, None] * horizontal.sum(axis=1)) > 0.5)


@pytest.mark.parametrize(("width", "height"), [(320, 240), (480, 270), (97, 301), (9, 5)])
@pytest.mark.parametrize("stride", [4, 32])
def test_logits_come_back_in_tiles_as_by_the_whole_matrices(width: int, height: int, stride: int) -> None:
    logits = torch.randn(2, 5, 128 // stride, 160 // stride, generator=torch.Generator().manual_seed(width))
    box = make_letterbox(height, width, (160, 128), logits)
    scale = min(160 / width, 128 / height)
    xs, ys = (
        ((np.arange(count) + 0.5) * scale + (size - count * scale) / 2) / stride
        for size, count in ((160, width), (128, height))
    )
    horizontal, vertical = triangle_weights(xs, 160 // stride, 1), triangle_weights(ys, 128 // stride, 1)
    expected = (vertical @ logits.numpy().astype(float) @ horizontal.T).transpose(0, 2, 3, 1)
    for tiles in (1, 8):
        found = torch.cat(list(camera_rows(logits, height, width, box, (160, 128), tiles)), dim=1)
        np.testing.assert_allclose(found[:, :height], expected, atol=2e-4)
    torch.testing.assert_close(
        logits_to_camera(logits, height, width, box, (160, 128)).permute(0, 2, 3, 1), found[:, :height]
    )


def test_identity_geometry_samples_thermal_as_a_plain_resize_does() -> None:
    thermal = image(32, 40)[..., 0]
    matrix = torch.from_numpy(sampling_matrix((320, 256), (40, 32)))[None]
    box = make_letterbox(256, 320, (160, 128), thermal)
    sampled, inside = sample_thermal(thermal, matrix, box, (160, 128))
    expected = F.interpolate(thermal[:, None].float(), (128, 160), mode="bilinear", align_corners=False)
    assert float((sampled - expected).abs().max() / 255) < 5e-4
    assert bool((inside == 1).all())


def test_wider_camera_is_centred_between_two_plain_bars() -> None:
    rgb = torch.full((1, 90, 160, 3), 200, dtype=torch.uint8)  # 16:9 into 5:4: 90 of 128 rows
    inputs, box = network_input(rgb, None, None, (160, 128))
    assert float(box.scale) == 1
    assert float(box.offset_y) == 19
    expected = torch.tensor([(200 / 255 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(inputs[0, :, 19:109], expected.view(3, 1, 1).expand(3, 90, 160), atol=1e-5, rtol=0)
    assert float(inputs[0, :, :19].abs().max()) == 0
    assert float(inputs[0, :, 109:].abs().max()) == 0


@pytest.mark.parametrize("sensor", [(40, 32), (160, 128)])
def test_thermal_alone_looks_as_it_does_beside_rgb_of_the_same_view(sensor: tuple[int, int]) -> None:
    thermal = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, sensor[1], sensor[0])).astype(np.uint8))
    scale = torch.diag(torch.tensor([sensor[0] / 320, sensor[1] / 256, 1.0]))
    scale[:2, 2] = (scale.diagonal()[:2] - 1) / 2  # pixel centres at integers
    beside, _ = network_input(torch.zeros(1, 256, 320, 3, dtype=torch.uint8), thermal, scale[None], (160, 128))
    alone, box = thermal_input(thermal, (160, 128))
    torch.testing.assert_close(alone, beside[:, 3:], atol=1e-4, rtol=0)
    assert float(box.scale) == 160 / sensor[0]


def test_outside_of_the_thermal_view_is_the_mean_and_inside_the_right_pixel() -> None:
    # A thermal camera that sees the left half of RGB, at the same scale: x_t = x_r, thermal is 80 of 160 px wide.
    rgb = torch.zeros(1, 128, 160, 3, dtype=torch.uint8)
    thermal = image(128, 80)[..., 0]
    inputs, _ = network_input(rgb, thermal, torch.eye(3)[None], (160, 128))
    expected = (thermal[0].float() / 255 - MEAN[0]) / STD[0]
    torch.testing.assert_close(inputs[0, 3, :, :80], expected, atol=1e-4, rtol=0)
    assert float(inputs[0, 3:, :, 80:].abs().max()) == 0


def test_what_lies_behind_the_thermal_camera_is_not_seen() -> None:
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-0.02, 0, 1]]])  # depth falls to 0 at column 50
    thermal = torch.full((1, 128, 160), 255, dtype=torch.uint8)
    box = make_letterbox(128, 160, (160, 128), thermal)
    sampled, inside = sample_thermal(thermal, matrix, box, (160, 128))
    assert bool(sampled.isfinite().all())
    assert float(inside[..., 50:].max()) == 0
    assert float(inside[0, 0, 0, 0]) == 1


@given(
    st.integers(16, 700),
    st.integers(16, 700),
    st.tuples(*[st.floats(0, 1) for _ in range(4)]),
)
def test_boxes_survive_the_way_to_the_network_and_back(width: int, height: int, corners: tuple[float, ...]) -> None:
    box = make_letterbox(height, width, (160, 128), torch.zeros(1))
    x0, x1 = sorted((corners[0] * width, corners[1] * width))
    y0, y1 = sorted((corners[2] * height, corners[3] * height))
    boxes = torch.tensor([[x0, y0, x1, y1]])
    there = boxes_to_network(boxes, box)
    assert float(there.min()) > -0.01
    assert bool((there <= torch.tensor([160.01, 128.01, 160.01, 128.01])).all())
    torch.testing.assert_close(boxes_to_camera(there, box), boxes, atol=0.02, rtol=1e-5)


def test_boxes_beyond_the_camera_image_are_clipped() -> None:
    box = make_letterbox(90, 160, (160, 128), torch.zeros(1))
    clipped = boxes_to_camera(torch.tensor([[-10.0, 5.0, 500.0, 127.0]]), box)
    torch.testing.assert_close(clipped, torch.tensor([[0.0, 0.0, 160.0, 90.0]]))


def test_logits_come_back_as_a_plain_upsampling_at_the_networks_aspect() -> None:
    logits = torch.randn(1, 9, 32, 40, generator=torch.Generator().manual_seed(3))
    box = make_letterbox(256, 320, (160, 128), logits)
    expected = F.interpolate(logits, (256, 320), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits_to_camera(logits, 256, 320, box, (160, 128)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1280, 720), (320, 240), (120, 160)])
def test_an_edge_in_the_camera_image_returns_to_its_own_pixel(width: int, height: int) -> None:
    # Logits made from the letterboxed image itself: an edge must come back where it was, whatever the camera's size.
    column, row = width // 3, height // 2
    rgb = np.zeros((1, height, width, 3), np.uint8)
    rgb[0, row:, column:] = 255
    resized, _, box = letterbox_rgb(torch.from_numpy(rgb), (160, 128))
    back = logits_to_camera(resized, height, width, box, (160, 128))[0, 0] > 127
    blur = 2 / float(box.scale)  # two network pixels, in camera pixels
    rows, columns = back.nonzero().unbind(dim=1)
    assert abs(int(rows.min()) - row) <= blur
    assert abs(int(columns.min()) - column) <= blur
    assert abs(float(back.float().mean()) - (height - row) * (width - column) / (height * width)) < 0.02
