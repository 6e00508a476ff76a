"""GAFF: Eq. 1 and 2 of the paper, the truth of its masks, and the losses that teach them."""

import pytest
import torch
from torch import Tensor

from md_training.models.gaff import (
    THERMAL,
    VISIBLE,
    Foreground,
    Fusion,
    Gaff,
    GaffSettings,
    better_camera,
    box_foreground,
    dice_loss,
    gaff_losses,
    inter_loss,
    intra_loss,
    mask_foreground,
)


def maps(seed: int, channels: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visible, thermal = torch.randn(2, 2, channels, 5, 7, generator=generator).relu()
    return visible, thermal


def known(mask: list[list[float]]) -> Foreground:
    grid = torch.tensor(mask)[None, None]
    return Foreground(grid, torch.ones_like(grid, dtype=torch.bool))


def fusion_of(intra: Tensor, inter_logits: Tensor) -> Fusion:
    inter = inter_logits.softmax(dim=1)
    return Fusion(torch.zeros(0), intra, inter_logits, inter, (intra * inter).sum(dim=1, keepdim=True))


def test_convolutions_of_zeros_weight_both_cameras_alike() -> None:
    gaff = Gaff(6)
    for parameter in gaff.parameters():
        torch.nn.init.zeros_(parameter)
    visible, thermal = maps(0)
    fusion = gaff(visible, thermal)
    # sigmoid(0) = softmax(0, 0) = 1/2: (1 + 1/2)(1 + 1/2) = 2.25, and 1/2 * 1/2 twice = 1/2.
    torch.testing.assert_close(fusion.features, 2.25 * (visible + thermal) / 2)
    assert fusion.intra.shape == fusion.inter.shape == (2, 2, 5, 7)
    assert bool((fusion.intra == 0.5).all())
    assert bool((fusion.inter == 0.5).all())
    torch.testing.assert_close(fusion.attention, torch.full((2, 1, 5, 7), 0.5))


@pytest.mark.parametrize("kernel", [1, 3])
def test_masks_follow_the_equations(kernel: int) -> None:
    torch.manual_seed(1)
    gaff = Gaff(6, kernel)
    for parameter in gaff.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    visible, thermal = maps(1)
    fusion = gaff(visible, thermal)
    torch.testing.assert_close(fusion.inter.sum(dim=1), torch.ones(2, 5, 7))
    m_v, m_t = gaff.intra_visible(visible).sigmoid(), gaff.intra_thermal(thermal).sigmoid()
    n_v, n_t = gaff.inter(torch.cat([visible, thermal], dim=1)).softmax(dim=1).split(1, dim=1)
    torch.testing.assert_close(fusion.features, (visible * (1 + m_v) * (1 + n_v) + thermal * (1 + m_t) * (1 + n_t)) / 2)
    torch.testing.assert_close(fusion.attention, m_v * n_v + m_t * n_t)
    # Each factor is below 2 and the halves are added, so that nothing exceeds 4 times the larger input.
    assert bool((fusion.features >= 0).all())
    assert bool((fusion.features <= 4 * torch.maximum(visible, thermal)).all())


def test_swapping_the_cameras_and_their_weights_changes_nothing() -> None:
    torch.manual_seed(2)
    gaff, swapped = Gaff(6), Gaff(6)
    for parameter in gaff.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        swapped.intra_visible.load_state_dict(gaff.intra_thermal.state_dict())
        swapped.intra_thermal.load_state_dict(gaff.intra_visible.state_dict())
        swapped.inter.weight.copy_(gaff.inter.weight.flip(0).roll(6, dims=1))  # output channels and input halves
        swapped.inter.bias.copy_(gaff.inter.bias.flip(0))
    visible, thermal = maps(2)
    one, other = gaff(visible, thermal), swapped(thermal, visible)
    torch.testing.assert_close(other.features, one.features)
    torch.testing.assert_close(other.attention, one.attention)
    torch.testing.assert_close(other.inter, one.inter.flip(1))


def test_the_camera_whose_mask_is_nearer_to_the_truth_wins() -> None:
    truth = known([[1, 0], [0, 0]])
    intra = torch.tensor([[[[0.9, 0.1], [0.1, 0.1]], [[0.2, 0.1], [0.1, 0.6]]]])
    # Errors: visible .1 .1 .1 .1, thermal .8 .1 .1 .6; both decided cells go to the visible camera.
    winner, decided = better_camera(intra, truth, margin=0.1)
    assert decided.tolist() == [[[True, False], [False, True]]]
    assert winner[decided].tolist() == [VISIBLE, VISIBLE]

    # Logits (2, 0) for visible and thermal everywhere: -log softmax = log(1 + e^-2) = .126928 in each decided cell.
    logits = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert float(inter_loss(fusion_of(intra, logits), truth, 0.1)) == pytest.approx(0.126928, abs=1e-6)
    # The other way round the same cells go to thermal: log(1 + e^2) = 2.126928.
    winner, decided = better_camera(intra.flip(1), truth, margin=0.1)
    assert winner[decided].tolist() == [THERMAL, THERMAL]
    assert float(inter_loss(fusion_of(intra.flip(1), logits), truth, 0.1)) == pytest.approx(2.126928, abs=1e-6)


def test_cells_within_the_margin_or_unknown_teach_nothing() -> None:
    truth = known([[1, 0]])
    intra = torch.tensor([[[[0.8, 0.3]], [[0.6, 0.3]]]])  # the visible mask leads by .2 in the first cell
    assert better_camera(intra, truth, margin=0.25)[1].any().item() is False
    assert better_camera(intra, truth, margin=0.15)[1].tolist() == [[[True, False]]]
    unknown = Foreground(truth.mask, torch.tensor([[[[False, True]]]]))
    assert better_camera(intra, unknown, margin=0.15)[1].any().item() is False


def test_equal_masks_give_an_inter_loss_of_zero_and_no_gradient() -> None:
    gaff = Gaff(6)
    gaff.intra_thermal.load_state_dict(gaff.intra_visible.state_dict())
    visible, _ = maps(3)
    fusion = gaff(visible, visible.clone())
    truth = Foreground(torch.ones(2, 1, 5, 7), torch.ones(2, 1, 5, 7, dtype=torch.bool))
    loss = inter_loss(fusion, truth, 0.1)
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in gaff.parameters())


def test_the_inter_loss_trains_the_inter_convolution_alone() -> None:
    torch.manual_seed(4)
    gaff = Gaff(6)
    torch.nn.init.constant_(gaff.intra_visible.bias, 3.0)  # mask .95: better than thermal's .5 on foreground
    visible, thermal = maps(4)
    truth = Foreground(torch.ones(2, 1, 5, 7), torch.ones(2, 1, 5, 7, dtype=torch.bool))
    losses = gaff_losses({"c3": gaff(visible, thermal)}, {"c3": truth}, GaffSettings(levels=("c3",)))
    losses["gaff_inter"].backward(retain_graph=True)
    assert gaff.intra_visible.weight.grad is None
    assert float(gaff.inter.weight.grad.norm()) > 0
    # Descent has to trust the camera that was right.
    assert float(gaff.inter.bias.grad[VISIBLE]) < 0 < float(gaff.inter.bias.grad[THERMAL])
    losses["gaff_intra"].backward()
    assert float(gaff.intra_visible.weight.grad.norm()) > 0


def test_dice_loss_by_hand() -> None:
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    half = torch.full((1, 1, 2, 2), 0.5)
    assert float(dice_loss(target, target)) == 0
    # 1 - (2 * 1 + 1) / (2 + 2 + 1)
    assert float(dice_loss(half, target)) == pytest.approx(0.4)
    # squared: 1 - (2 * 1 + 1) / (4 * .25 + 2 + 1)
    assert float(dice_loss(half, target, squared=True)) == pytest.approx(0.25)
    # Without the last row: 1 - (2 * 1 + 1) / (1 + 2 + 1)
    top = torch.tensor([[[[True, True], [False, False]]]])
    assert float(dice_loss(half, target, top)) == pytest.approx(0.25)
    # Each mask by itself: the second is everything, 1 - (2 * 2 + 1) / (4 + 2 + 1)
    both = dice_loss(torch.cat([half, torch.ones_like(half)], dim=1), target)
    torch.testing.assert_close(both, torch.tensor([[0.4, 2 / 7]]))


def test_images_without_objects_have_finite_losses_that_empty_the_masks() -> None:
    gaff = Gaff(6)
    visible, thermal = maps(5)
    none = [torch.zeros(0, 4)] * 2
    truth = box_foreground(none, none, (5, 7), (40, 56))
    assert not truth.mask.any()
    losses = gaff_losses({"c3": gaff(visible, thermal)}, {"c3": truth}, GaffSettings())
    assert all(bool(value.isfinite()) for value in losses.values())
    losses["gaff_intra"].backward()
    assert float(gaff.intra_visible.bias.grad) > 0  # descent lowers the mask
    # Masks of zeros are right: 1 - (0 + 1) / (0 + 0 + 1) = 0.
    assert float(intra_loss(torch.zeros(2, 2, 5, 7), truth)) == 0


def test_foreground_of_a_box_is_its_ellipse() -> None:
    # Circle of radius 16 px in 4x4 cells of 8 px: the cell centres lie 4 or 12 px from the centre along each axis;
    # the corners, at 17 px, are outside.
    none = [torch.zeros(0, 4)]
    truth = box_foreground([torch.tensor([[0.0, 0, 32, 32]])], none, (4, 4), (32, 32))
    assert truth.mask[0, 0].tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    assert bool(truth.known.all())


def test_an_object_between_the_cell_centres_keeps_the_cell_of_its_centre() -> None:
    # 20x45 px around (30, 42.5); the cells of 32 px have their centres at x = 16 and 48: both miss it.
    none = [torch.zeros(0, 4)]
    truth = box_foreground([torch.tensor([[20.0, 20, 40, 65]])], none, (3, 3), (96, 96))
    assert truth.mask[0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_ignored_objects_are_unknown_unless_an_object_covers_them() -> None:
    left, right = [0.0, 0, 8, 8], [8.0, 0, 16, 8]
    truth = box_foreground([torch.tensor([left])], [torch.tensor([left, right])], (1, 3), (8, 24))
    assert truth.mask[0, 0].tolist() == [[1, 0, 0]]
    assert truth.known[0, 0].tolist() == [[True, False, True]]


def test_foreground_of_a_mask_is_any_labelled_pixel() -> None:
    mask = torch.zeros(1, 64, 96, dtype=torch.long)
    mask[0, 5, 7] = 7  # one pixel of a cone
    mask[0, :, 64:] = 255
    mask[0, 40, 70] = 1
    truth = mask_foreground(mask, 255, (2, 3))
    assert truth.mask[0, 0].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert truth.known[0, 0].tolist() == [[True, True, False], [True, True, True]]


def test_half_precision_features_keep_full_precision_masks() -> None:
    gaff = Gaff(6)
    visible, thermal = maps(6)
    with torch.autocast("cpu", torch.bfloat16):
        fusion = gaff(visible.bfloat16(), thermal.bfloat16())
    assert fusion.features.dtype == torch.bfloat16
    assert fusion.intra.dtype == fusion.inter_logits.dtype == fusion.attention.dtype == torch.float32
    full = gaff(visible, thermal)
    torch.testing.assert_close(fusion.features.float(), full.features, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"levels": ()}, "levels"), ({"levels": ("c3", "c3")}, "levels"), ({"margin": -0.1}, "margin")],
)
def test_impossible_gaff_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaffSettings(**change)


def test_levels_are_averaged() -> None:
    truth = known([[1.0, 0.0]])
    right = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    wrong = 1 - right
    logits = torch.zeros(1, 2, 1, 2)
    fusions = {"c3": fusion_of(right, logits), "c4": fusion_of(wrong, logits)}
    losses = gaff_losses(fusions, {"c3": truth, "c4": truth}, GaffSettings())
    # Right: 0. Wrong: two masks of 1 - (0 + 1) / (1 + 1 + 1) = 2/3 each, 4/3. Their mean: 2/3.
    assert float(losses["gaff_intra"]) == pytest.approx(2 / 3)
    assert float(losses["gaff_inter"]) == 0
