"""Attention transfer (Eq. 3) and F-MSE (Eq. 4): identities, golden values, gradients, precision, and their joining."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from md_training.distillation import (
    LITERAL,
    DistillationSettings,
    attention_transfer,
    distillation_losses,
    focal_weight,
    semantic_transfer,
    teach,
    teacher_targets,
)
from md_training.losses import IGNORED_PIXEL, gradient_norms
from md_training.models.backbone import CHANNELS, STRIDES, Features
from md_training.models.gaff import GaffSettings
from md_training.models.joint import DETECTION_JOINT, SEGMENTATION_JOINT, Joint
from md_training.models.networks import NetworkSettings, Outputs, make_network
from md_training.models.pspnet import SegmentationLogits
from md_training.models.retinanet import DetectionLogits

DEFAULT = DistillationSettings()
MSE = DistillationSettings(semantic="mse")


def pair(seed: int, shape: tuple[int, ...] = (2, 16, 4, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator)
    return student, teacher


def squared_errors(values: list[float], channels: int) -> tuple[Tensor, Tensor]:
    """Return maps (1, channels, 1, len(values)) whose squared errors, summed over the channels, are the values."""
    error = (torch.tensor(values) / channels).sqrt().expand(1, channels, 1, len(values))
    return error.clone(), torch.zeros_like(error)


# --- F-MSE


@pytest.mark.parametrize("settings", [DEFAULT, LITERAL, MSE, replace(DEFAULT, normalise="batch")])
def test_equal_features_cost_nothing_and_have_no_gradient(settings: DistillationSettings) -> None:
    student, _ = pair(0)
    student.requires_grad_()
    loss = semantic_transfer(student, student.detach().clone(), settings)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("semantic", ["f_mse", "mse", "mse_matched"])
@pytest.mark.parametrize("logits", ["mean", "sum"])
@pytest.mark.parametrize("normalise", ["image", "batch"])
def test_an_error_that_is_the_same_everywhere_costs_its_square(semantic: str, logits: str, normalise: str) -> None:
    _, teacher = pair(1)
    settings = DistillationSettings(semantic=semantic, logits=logits, normalise=normalise)
    assert float(semantic_transfer(teacher + 0.3, teacher, settings)) == pytest.approx(0.09, abs=1e-5)


def test_a_single_wrong_cell_gets_its_own_weight() -> None:
    # Error 3 in all channels of one of 16 cells: mean over the channels 9, logit 9, the 15 others 0.
    # Weight e^9 / (e^9 + 15) = .998152, loss 9 * .998152; the plain mean is 9 / 16.
    teacher = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    student = teacher.clone()
    student[:, :, 1, 2] += 3
    assert float(semantic_transfer(student, teacher, DEFAULT)) == pytest.approx(8.983370, abs=1e-4)
    assert float(semantic_transfer(student, teacher, MSE)) == pytest.approx(9 / 16, abs=1e-5)
    weight = focal_weight(student, teacher, DEFAULT)
    assert weight.shape == (1, 4, 4)
    assert float(weight[0, 1, 2]) == pytest.approx(0.998152, abs=1e-6)
    assert float(weight.sum()) == pytest.approx(1)


def test_literal_form_is_equation_4() -> None:
    # Sums of the squared errors over n = 4 channels: 0, 1, 2, 3. Softmax: e^(s - 3) / 1.553005 =
    # .032059 .087144 .236883 .643914, so the loss is (.087144 + 2 * .236883 + 3 * .643914) / 4 = .623163.
    student, teacher = squared_errors([0, 1, 2, 3], channels=4)
    assert float(semantic_transfer(student, teacher, LITERAL)) == pytest.approx(0.623163, abs=1e-5)
    # Default: the logits are the means, s / 4: softmax .165296 .212244 .272527 .349932 (e^.25 = 1.284025 apart),
    # loss (.212244 + 2 * .272527 + 3 * .349932) / 4 = .451774.
    assert float(semantic_transfer(student, teacher, DEFAULT)) == pytest.approx(0.451774, abs=1e-5)


def test_summed_logits_at_a_temperature_of_the_channels_are_mean_logits() -> None:
    student, teacher = pair(3)
    tempered = replace(DEFAULT, logits="sum", temperature=16.0)
    assert float(semantic_transfer(student, teacher, tempered)) == pytest.approx(
        float(semantic_transfer(student, teacher, DEFAULT)), rel=1e-6
    )


def test_summed_logits_are_an_argmax_where_mean_logits_are_not() -> None:
    # Features of unit variance and 128 channels: the effective number of cells is exp(entropy).
    student, teacher = pair(4, (1, 128, 8, 10))
    entropy = {
        name: float(-(weight * weight.clamp(min=1e-30).log()).sum())
        for name, weight in (
            ("sum", focal_weight(student, teacher, LITERAL)),
            ("mean", focal_weight(student, teacher, DEFAULT)),
        )
    }
    assert math.exp(entropy["sum"]) < 2
    assert math.exp(entropy["mean"]) > 70


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [DEFAULT, LITERAL])
def test_f_mse_is_at_least_the_plain_error(seed: int, settings: DistillationSettings) -> None:
    # Weights that rise with the error cannot give less than equal weights (Chebyshev's sum inequality).
    student, teacher = pair(seed)
    focal, plain = (float(semantic_transfer(student, teacher, form)) for form in (settings, MSE))
    assert focal > plain
    assert float(semantic_transfer(student, teacher, MSE)) == pytest.approx(
        float(torch.nn.functional.mse_loss(student, teacher)), rel=1e-5
    )


def test_matched_mse_has_the_value_of_f_mse_and_the_direction_of_mse() -> None:
    student, teacher = pair(6)
    student.requires_grad_()
    loss = semantic_transfer(student, teacher, replace(DEFAULT, semantic="mse_matched"))
    assert loss.item() == pytest.approx(semantic_transfer(student, teacher, DEFAULT).item(), rel=1e-5)
    loss.backward()
    matched = student.grad
    assert matched is not None
    student.grad = None
    plain = semantic_transfer(student, teacher, MSE)
    plain.backward()
    assert student.grad is not None
    torch.testing.assert_close(matched, student.grad * loss.item() / plain.item())


def test_literal_gradient_pushes_easy_cells_the_wrong_way_and_detaching_mends_it() -> None:
    values = [1.0, 5.0, 9.0, 10.0]

    def gradient(settings: DistillationSettings, channels: int) -> list[float]:
        student, teacher = squared_errors(values, channels)
        student.requires_grad_()
        semantic_transfer(student, teacher, settings).backward()
        assert student.grad is not None
        # From d/dS to d/ds: s = sum over the channels of S^2, dL/dS = dL/ds * 2 S.
        return (student.grad / (2 * student.detach()))[0, 0, 0].tolist()

    # p_j (1 + s_j - sum p s): p = softmax(1, 5, 9, 10) = .00009 .00490 .26760 .72741, sum p s = 9.70709.
    literal = gradient(LITERAL, channels=1)
    assert literal == pytest.approx([-0.000692, -0.018169, 0.078383, 0.940478], abs=2e-6)
    # Detached it is p_j, of the same sign for all.
    assert gradient(replace(LITERAL, detach_weight=True), channels=1) == pytest.approx(
        [0.0000898, 0.004901, 0.267600, 0.727409], abs=2e-6
    )
    # Mean logits of 64 channels are less than 1 apart: even the full gradient keeps its sign.
    assert min(gradient(replace(DEFAULT, detach_weight=False), channels=64)) > 0


def test_each_image_of_a_batch_has_its_own_softmax() -> None:
    student, teacher = pair(7)
    with torch.no_grad():
        student[0] = teacher[0] + 10 * (student[0] - teacher[0])  # an image that is much worse
    one_by_one = [float(semantic_transfer(student[i : i + 1], teacher[i : i + 1], DEFAULT)) for i in range(2)]
    assert float(semantic_transfer(student, teacher, DEFAULT)) == pytest.approx(sum(one_by_one) / 2, rel=1e-5)
    # Over the batch, it takes all the weight.
    assert float(focal_weight(student, teacher, DEFAULT)[1].sum()) == pytest.approx(1)
    assert float(focal_weight(student, teacher, replace(DEFAULT, normalise="batch"))[1].sum()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_do_not_overflow(dtype: torch.dtype) -> None:
    # The sum of 512 squares of 12 is 73,728: more than fp16 holds (65,504).
    teacher = torch.zeros(1, 512, 2, 2, dtype=dtype)
    student = torch.full_like(teacher, 12.0, requires_grad=True)
    assert not (student.detach() - teacher).square().sum(dim=1, dtype=torch.float16).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        loss = semantic_transfer(student, teacher, LITERAL)
    assert loss.dtype == torch.float32
    assert loss.item() == 144
    loss.backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_cells_without_an_image_do_not_count() -> None:
    student, teacher = pair(8)
    student.requires_grad_()
    spoilt = student.detach().clone()
    spoilt[..., 3:] += 50
    known = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    known[..., 3:] = False
    for settings in (DEFAULT, LITERAL, MSE, replace(DEFAULT, normalise="batch")):
        whole = semantic_transfer(student[..., :3], teacher[..., :3], settings).item()
        assert float(semantic_transfer(spoilt, teacher, settings, known)) == pytest.approx(whole, rel=1e-5)
    nothing = semantic_transfer(student, teacher, LITERAL, torch.zeros_like(known))
    nothing.backward()
    assert nothing.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


# --- attention transfer


def test_soft_masks_are_not_equal_at_the_optimum_of_the_literal_dice_loss() -> None:
    teacher = torch.tensor([[[[0.25, 0.75]]]])
    # Equal: 1 - 2 (.0625 + .5625) / (1 + 1) = .375. All ones: 1 - 2 / (2 + 1) = 1/3, less.
    assert float(attention_transfer(teacher, teacher)) == pytest.approx(0.375, abs=1e-5)
    assert float(attention_transfer(torch.ones_like(teacher), teacher)) == pytest.approx(1 / 3, abs=1e-5)
    # The squared form has its optimum, 0, at equality: ones give 1 - 2 / (2 + .625).
    assert float(attention_transfer(teacher, teacher, "squared")) == pytest.approx(0, abs=1e-6)
    assert float(attention_transfer(torch.ones_like(teacher), teacher, "squared")) == pytest.approx(0.238095, abs=1e-5)
    binary = torch.tensor([[[[0.0, 1.0]]]])
    assert float(attention_transfer(binary, binary)) == pytest.approx(0, abs=1e-6)


def test_attention_is_compared_image_by_image() -> None:
    ones, zeros = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    # Right in the first image (0), disjoint in the second (1).
    assert float(attention_transfer(torch.cat([ones, ones]), torch.cat([ones, zeros]))) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("form", ["literal", "squared"])
def test_empty_masks_are_finite(form: str) -> None:
    student = torch.zeros(2, 1, 3, 3, requires_grad=True)
    loss = attention_transfer(student, torch.zeros(2, 1, 3, 3), form)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


# --- both, over tasks and levels


def outputs_of(task_levels: dict, seed: int, attention: bool = True) -> Outputs:
    """Return outputs with random joint features of a 64x64 input and random masks on the levels of each task."""
    generator = torch.Generator().manual_seed(seed)
    joint = {}
    for task, levels in task_levels.items():
        features = Features(
            *(torch.randn(2, CHANNELS[name], 64 // STRIDES[name], 64 // STRIDES[name], generator=generator)
              .requires_grad_() for name in CHANNELS)
        )  # fmt: skip
        masks = {
            level: torch.rand(2, 1, 64 // STRIDES[level], 64 // STRIDES[level], generator=generator).requires_grad_()
            for level in levels
        }
        joint[task] = Joint(features, levels, masks if attention else {})
    return Outputs(None, None, joint)


def test_terms_are_weighted_means_over_the_levels_of_the_student() -> None:
    student = outputs_of({"detection": ("c4", "c5")}, 1)
    teacher = outputs_of({"detection": ("c3", "c4", "c5")}, 2)
    settings = DistillationSettings(attention_weight=2, semantic_weight=0.5)
    losses = distillation_losses(student, teacher, settings)
    one, other = student.joint["detection"], teacher.joint["detection"]
    semantic = [
        semantic_transfer(getattr(one.features, level), getattr(other.features, level), settings)
        for level in ("c4", "c5")
    ]
    attention = [attention_transfer(one.attention[level], other.attention[level]) for level in ("c4", "c5")]
    assert list(losses) == ["detection_attention", "detection_semantic"]
    assert losses["detection_attention"].item() == pytest.approx(2 * torch.stack(attention).mean().item())
    assert losses["detection_semantic"].item() == pytest.approx(0.5 * torch.stack(semantic).mean().item())


def test_the_teacher_receives_no_gradient() -> None:
    student, teacher = outputs_of({"segmentation": ("c5",)}, 3), outputs_of({"segmentation": ("c5",)}, 4)
    losses = distillation_losses(student, teacher, LITERAL)
    torch.stack(list(losses.values())).sum().backward()
    taught, learning = teacher.joint["segmentation"], student.joint["segmentation"]
    assert taught.features.c5.grad is None
    assert taught.attention["c5"].grad is None
    assert learning.features.c5.grad is not None
    assert learning.attention["c5"].grad is not None


def test_a_weight_of_zero_leaves_its_term_out() -> None:
    student, teacher = outputs_of({"detection": ("c5",)}, 5, attention=False), outputs_of({"detection": ("c5",)}, 6)
    assert list(distillation_losses(student, teacher, DistillationSettings(attention_weight=0))) == [
        "detection_semantic"
    ]
    with pytest.raises(ValueError, match="no attention head on c5"):
        distillation_losses(student, teacher, DEFAULT)
    student = outputs_of({"detection": ("c5",)}, 5)
    assert list(distillation_losses(student, teacher, DistillationSettings(semantic_weight=0))) == [
        "detection_attention"
    ]


def test_tasks_that_the_student_does_not_distil_are_left_out() -> None:
    teacher = outputs_of({"detection": ("c5",), "segmentation": ("c5",)}, 12)
    student = outputs_of({"detection": ("c5",), "segmentation": ()}, 13)
    assert list(distillation_losses(student, teacher, DEFAULT)) == ["detection_attention", "detection_semantic"]


def test_what_cannot_be_distilled_is_an_error() -> None:
    detection = outputs_of({"detection": ("c4", "c5")}, 7)
    with pytest.raises(ValueError, match=r"distils the levels \('c4', 'c5'\), the teacher fuses \('c5',\)"):
        distillation_losses(detection, outputs_of({"detection": ("c5",)}, 8), DEFAULT)
    with pytest.raises(ValueError, match="teaches detection at c4 c5, the student distils nothing"):
        distillation_losses(outputs_of({"detection": ()}, 9), detection, DEFAULT)
    with pytest.raises(ValueError, match="teaches segmentation at c5, the student distils detection at c4 c5"):
        distillation_losses(detection, outputs_of({"segmentation": ("c5",)}, 9), DEFAULT)
    coarse = replace(detection.joint["detection"].features, c4=torch.zeros(2, 256, 2, 2))
    other = Outputs(None, None, {"detection": replace(detection.joint["detection"], features=coarse)})
    with pytest.raises(ValueError, match=r"c4 maps differ, student \(2, 256, 4, 4\), teacher \(2, 256, 2, 2\)"):
        distillation_losses(detection, other, DEFAULT)


def test_padding_of_the_network_input_is_left_out_at_every_level() -> None:
    student, teacher = outputs_of({"segmentation": ("c4", "c5")}, 10), outputs_of({"segmentation": ("c4", "c5")}, 11)
    seen = torch.ones(2, 64, 64, dtype=torch.bool)
    seen[:, :, 32:] = False  # half of the image: 2 of 4 columns of C4, 1 of 2 of C5
    with torch.no_grad():
        for level in ("c4", "c5"):
            wide = getattr(student.joint["segmentation"].features, level).shape[-1]
            getattr(student.joint["segmentation"].features, level)[..., wide // 2 :] += 100
    losses = distillation_losses(student, teacher, DEFAULT, seen)
    assert losses["segmentation_semantic"].item() < 10
    assert distillation_losses(student, teacher, DEFAULT)["segmentation_semantic"].item() > 1000


def test_a_joint_student_learns_from_two_teachers_at_once() -> None:
    torch.manual_seed(0)
    student = make_network(
        NetworkSettings(input_size=(64, 64), detection_joint=DETECTION_JOINT, segmentation_joint=SEGMENTATION_JOINT)
    )
    detector = make_network(NetworkSettings(input_size=(64, 64), tasks=("detection",), architecture="two_stream"))
    segmenter = make_network(
        NetworkSettings(
            input_size=(64, 64), tasks=("segmentation",), architecture="two_stream", gaff=GaffSettings(levels=("c5",))
        )
    )
    image = torch.randn(2, 6, 64, 64)
    losses: dict[str, Tensor] = {}
    outputs = student(image)
    for teacher in (detector.eval(), segmenter.eval()):
        losses |= distillation_losses(outputs, teach(teacher, image), DEFAULT)
    assert set(losses) == {
        "detection_attention", "detection_semantic", "segmentation_attention", "segmentation_semantic"
    }  # fmt: skip
    norms = gradient_norms(losses, student.parameters())
    assert min(norms.values()) > 0, norms
    # Each term reaches its own task's branch and the backbone, not the other task's branch.
    reached = gradient_norms(losses, student.joint["detection"].parameters())
    assert reached["detection_semantic"] > 0
    assert reached["segmentation_semantic"] == 0
    backbone = gradient_norms(losses, student.backbone.parameters())
    assert backbone["segmentation_semantic"] > 0


def test_a_teacher_in_training_mode_is_refused() -> None:
    teacher = make_network(NetworkSettings(input_size=(64, 64), tasks=("segmentation",), architecture="two_stream"))
    image = torch.randn(1, 6, 64, 64)
    with pytest.raises(RuntimeError, match=r"teacher\.eval\(\)"):
        teach(teacher.train(), image)
    assert not teach(teacher.eval(), image).joint["segmentation"].features.c5.requires_grad


def test_results_of_the_teacher_serve_as_truth() -> None:
    teacher = make_network(NetworkSettings(input_size=(64, 64), architecture="two_stream")).eval()
    far = [
        int((teacher.anchors - torch.tensor(box)).abs().sum(dim=1).argmin())
        for box in ([0, 0, 20, 40], [40, 30, 64, 64])
    ]
    classes = torch.full((2, len(teacher.anchors), 3), -9.0)
    classes[0, far[0], 2] = 2.0  # score .88: an object, a car
    classes[0, far[1], 0] = -1.0  # score .27: neither object nor background
    main = torch.zeros(2, 9, 2, 2)
    main[1, 4] = 1
    outputs = Outputs(DetectionLogits(classes, torch.zeros(2, len(teacher.anchors), 4)), SegmentationLogits(main, None))
    targets = teacher_targets(teacher, outputs)
    assert [len(boxes) for boxes in targets.boxes] == [1, 0]
    assert targets.labels[0].tolist() == [2]
    torch.testing.assert_close(targets.boxes[0][0], teacher.anchors[far[0]].clamp(0, 64))
    torch.testing.assert_close(targets.ignored[0][0], teacher.anchors[far[1]].clamp(0, 64))
    assert targets.mask.shape == (2, 64, 64)
    assert targets.mask[0].unique().tolist() == [0]
    assert targets.mask[1].unique().tolist() == [4]

    alone = teacher_targets(teacher, replace(outputs, segmentation=None))
    assert alone.mask.unique().tolist() == [IGNORED_PIXEL]
    masks_only = teacher_targets(teacher, replace(outputs, detection=None))
    assert [len(boxes) for boxes in masks_only.boxes] == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"attention_weight": -1.0}, "attention_weight"),
        ({"attention_weight": 0.0, "semantic_weight": 0.0}, "above 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationSettings(**change)
