"""Teacher, student of a distillation and baselines: features, heads, what is exported, and what they cost."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted_samples import painted_sample
from torch import Tensor, nn

from md_perception.inference.session import Student as ExportedStudent
from md_training.checkpoint import Checkpoint
from md_training.data.sample import in_thermal_pixels
from md_training.data.synthetic import SceneData
from md_training.evaluate import answers_of_student, predict
from md_training.export import export, fold_batch_norm
from md_training.losses import IGNORED_PIXEL, Targets, foreground, gradient_norms, task_losses
from md_training.models.backbone import CHANNELS, Backbone
from md_training.models.gaff import GaffSettings
from md_training.models.joint import (
    DETECTION_JOINT,
    LITERAL_DETECTION_JOINT,
    SEGMENTATION_JOINT,
    JointBranch,
    JointSettings,
)
from md_training.models.networks import (
    Cost,
    DecisionFusion,
    NetworkSettings,
    Outputs,
    Student,
    Teacher,
    costs,
    inference_copy,
    make_network,
    select_inputs,
)
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import (
    LIGHT,
    RETINANET_MG,
    RetinaNetSettings,
    make_anchors,
    paper_anchors,
    pedestrian_anchors,
)
from md_training.postprocess import DetectionLimits
from md_training.presets import PRESETS, Run

SMALL = NetworkSettings(input_size=(96, 64))


def image(seed: int, size: tuple[int, int] = (64, 96), batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, *size, generator=torch.Generator().manual_seed(seed))


def targets() -> Targets:
    mask = torch.zeros(2, 64, 96, dtype=torch.long)
    mask[0, 10:50, 20:40] = 2
    mask[1, 33, 60] = 7  # a cone before an ignored person
    mask[1, :, 80:] = IGNORED_PIXEL
    return Targets(
        (torch.tensor([[20.0, 10, 40, 50]]), torch.zeros(0, 4)),
        (torch.tensor([0]), torch.zeros(0, dtype=torch.long)),
        (torch.zeros(0, 4), torch.tensor([[50.0, 10, 70, 60]])),
        mask,
    )


def random_statistics(network: nn.Module, seed: int = 9) -> None:
    """Give every BatchNorm statistics and scales of its own, so that an error in folding or copying shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))


def assert_same_heads(one: Outputs, other: Outputs) -> None:
    for task in ("detection", "segmentation"):
        assert (getattr(one, task) is None) == (getattr(other, task) is None)
    if one.detection is not None and other.detection is not None:
        torch.testing.assert_close(other.detection.classes, one.detection.classes, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other.detection.deltas, one.detection.deltas, atol=1e-4, rtol=1e-4)
    if one.segmentation is not None and other.segmentation is not None:
        torch.testing.assert_close(other.segmentation.main, one.segmentation.main, atol=1e-4, rtol=1e-4)


# --- the student


def test_the_demo_student_keeps_the_names_and_shapes_of_its_saved_state() -> None:
    # Checkpoints written before distillation was added must load.
    state = Student(PRESETS["scenes-demo"][1].network).state_dict()
    text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    assert len(state) == 224
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "d80171abf2e73934196762a74124bfc43a3d58b746d8c31f99932d7173428067"
    )


def test_settings_survive_json_and_those_saved_before_distillation_load() -> None:
    run = PRESETS["scenes-demo"][1]
    distilled = replace(run, network=replace(SMALL, detection_joint=DETECTION_JOINT, detection=RETINANET_MG))
    taught = replace(run, network=replace(SMALL, architecture="two_stream", gaff=GaffSettings(levels=("c5",))))
    for one in (distilled, taught):
        assert Run.from_json(json.loads(json.dumps(one.to_json()))) == one
    old = run.to_json()
    for name in ("architecture", "detection_joint", "segmentation_joint", "gaff"):
        del old["network"][name]
    for name in ("neck", "levels", "clip_anchors"):
        del old["network"]["detection"][name]
    del old["network"]["segmentation"]["dilated"]
    assert Run.from_json(old) == run


def test_joint_blocks_at_first_change_nothing() -> None:
    torch.manual_seed(0)
    plain = Student(SMALL).eval()
    random_statistics(plain)
    student = Student(replace(SMALL, detection_joint=DETECTION_JOINT, segmentation_joint=SEGMENTATION_JOINT)).eval()
    missing, unexpected = student.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("joint.") for name in missing)
    with torch.no_grad():
        assert_same_heads(plain(image(0)), student(image(0)))


def test_heads_read_the_joint_features_that_are_distilled() -> None:
    torch.manual_seed(1)
    student = Student(replace(SMALL, detection_joint=DETECTION_JOINT, segmentation_joint=SEGMENTATION_JOINT)).eval()
    random_statistics(student)
    with torch.no_grad():
        outputs = student(image(1))
        detection, segmentation = outputs.joint["detection"], outputs.joint["segmentation"]
        assert student.detector is not None
        assert student.segmenter is not None
        torch.testing.assert_close(student.detector(detection.features).classes, outputs.detection.classes)
        torch.testing.assert_close(student.segmenter(segmentation.features).main, outputs.segmentation.main)
        backbone = student.backbone(image(1))
    assert detection.levels == ("c3", "c4", "c5")
    assert segmentation.levels == ("c5",)
    assert not torch.equal(detection.features.c5, segmentation.features.c5)  # a branch of its own for each task
    assert not torch.equal(detection.features.c3, backbone.c3)
    torch.testing.assert_close(segmentation.features.c4, backbone.c4)  # not distilled, not touched


@pytest.mark.parametrize("where", ["after", "before"])
def test_attention_head_is_a_pointwise_convolution_and_a_sigmoid(where: str) -> None:
    torch.manual_seed(2)
    branch = JointBranch(JointSettings(c5="basic", attention=where)).eval()
    random_statistics(branch)
    with torch.no_grad():
        features = Backbone(6).eval()(image(2))
        joint = branch(features)
        read = joint.features.c5 if where == "after" else features.c5
        head = branch.attention["c5"]
        assert isinstance(head, nn.Conv2d)
        expected = torch.einsum("bchw,c->bhw", read, head.weight[0, :, 0, 0]) + head.bias
    assert head.weight.shape == (1, 512, 1, 1)
    torch.testing.assert_close(joint.attention["c5"][:, 0], expected.sigmoid())


def test_attention_does_not_touch_the_features_unless_it_modulates_them() -> None:
    torch.manual_seed(3)
    plain, modulated = (JointBranch(JointSettings(c5="identity", modulate=on)).eval() for on in (False, True))
    with torch.no_grad():
        features = Backbone(6).eval()(image(3))
        torch.testing.assert_close(plain(features).features.c5, features.c5)
        joint = modulated(features)
        torch.testing.assert_close(joint.features.c5, features.c5 * (1 + joint.attention["c5"]))


def test_what_serves_training_only_is_dropped_without_changing_a_result() -> None:
    torch.manual_seed(4)
    settings = replace(SMALL, detection_joint=DETECTION_JOINT, segmentation_joint=SEGMENTATION_JOINT)
    student = Student(settings)
    random_statistics(student)
    exported = inference_copy(student)
    with torch.no_grad():
        assert_same_heads(student.eval()(image(4)), exported(image(4)))
    assert exported(image(4)).joint["detection"].attention == {}
    removed = {name.split(".")[-3:-1][0] for name in student.state_dict()} - {
        name.split(".")[-3:-1][0] for name in exported.state_dict()
    }
    assert removed == {"attention", "auxiliary"}
    assert any("joint.detection.blocks.c5" in name for name in exported.state_dict())  # the blocks stay

    modulating = Student(replace(settings, detection_joint=replace(DETECTION_JOINT, modulate=True)))
    assert any("joint.detection.attention.c5" in name for name in inference_copy(modulating).state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        replace(SMALL, detection_joint=DETECTION_JOINT, segmentation_joint=SEGMENTATION_JOINT),
        replace(SMALL, architecture="two_stream"),
        replace(SMALL, architecture="decision"),
        replace(SMALL, tasks=("detection",), detection=RETINANET_MG),
    ],
    ids=["student", "teacher", "decision", "retinanet_mg"],
)
def test_every_network_can_be_exported_without_batch_norm(settings: NetworkSettings) -> None:
    torch.manual_seed(5)
    network = inference_copy(make_network(settings))
    random_statistics(network)
    folded = fold_batch_norm(inference_copy(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        assert_same_heads(network(image(5)), folded(image(5)))


def test_students_of_one_camera() -> None:
    both = image(6)
    for inputs, channels in ((("rgb",), both[:, :3]), (("thermal",), both[:, 3:])):
        selected = select_inputs(both, inputs)
        torch.testing.assert_close(selected, channels)
        student = make_network(replace(SMALL, inputs=inputs, tasks=("segmentation",))).eval()
        assert student(selected).segmentation.main.shape == (2, 9, 2, 3)
    assert select_inputs(both, ("rgb", "thermal")) is both
    assert select_inputs(both[:, :3], ("rgb",)).shape == (2, 3, 64, 96)
    with pytest.raises(ValueError, match="3 channels"):
        select_inputs(both[:, :3], ("thermal",))


@pytest.mark.parametrize(
    ("change", "role"),
    [
        ({"architecture": "two_stream"}, "teacher"),
        ({"inputs": ("thermal",), "tasks": ("segmentation",)}, "student"),
    ],
    ids=["teacher", "thermal-only"],
)
def test_teachers_and_thermal_students_are_exported_to_the_format_of_the_student(
    change: dict, role: str, tmp_path: Path
) -> None:
    torch.manual_seed(17)
    network = inference_copy(make_network(replace(SMALL, **change)))
    random_statistics(network)
    data = SceneData(camera_size=(96, 64), thermal_size=(24, 16))
    run = Run(name="untrained", network=network.settings, data=data)
    sample = painted_sample(1, (96, 64), (24, 16))
    manifest = export(Checkpoint(run, "run-1", 0, network, {}, "abc"), tmp_path / "file.onnx", samples=[sample])
    assert manifest.role == role
    exported = ExportedStudent.load(tmp_path / "file.onnx")
    assert exported.manifest == manifest
    found = exported.run(sample.rgb, sample.thermal, sample.rgb_to_thermal)
    # Without RGB, the thermal image is the camera's.
    assert exported.uses_rgb == ("rgb" in network.settings.inputs)
    seen = sample if exported.uses_rgb else in_thermal_pixels(sample)
    expected = predict(network, seen, DetectionLimits())
    assert found.segmentation is not None
    assert expected.segmentation is not None
    assert float((found.segmentation.mask == expected.segmentation.mask).mean()) > 0.99
    assert (found.detections is None) == (expected.detections is None)
    scored = answers_of_student(exported, [sample]).scores()["all"]
    assert scored.segmentation.pixels == found.segmentation.mask.size


def test_a_sample_in_thermal_pixels() -> None:
    # The thermal camera sees the middle half of RGB's width and height, at a quarter of its pixels per side.
    sample = painted_sample(2, (128, 96), (16, 12))
    to_thermal = np.array([[0.25, 0, 0.25 * 0.5 - 8 - 0.5], [0, 0.25, 0.25 * 0.5 - 6 - 0.5], [0, 0, 1]], np.float32)
    boxes = np.array([(40, 32, 64, 56), (80, 60, 128, 90), (0, 0, 20, 20)], np.float32)
    mask = np.zeros((96, 128), np.uint8)
    mask[32:56, 40:64] = 2
    seen = in_thermal_pixels(replace(sample, boxes=boxes, mask=mask, rgb_to_thermal=to_thermal))
    assert seen.mask.shape == seen.rgb.shape[:2] == (12, 16)
    np.testing.assert_allclose(seen.boxes, [(2, 2, 8, 8), (12, 9, 16, 12)], atol=1e-4)
    assert seen.labels.tolist() == sample.labels[:2].tolist()
    expected = np.zeros((12, 16), np.uint8)
    expected[2:8, 2:8] = 2
    assert np.array_equal(seen.mask, expected)


# --- the teacher


def test_features_of_the_teacher_have_the_shapes_of_the_student() -> None:
    teacher, student = Teacher(replace(SMALL, architecture="two_stream")).eval(), Student(SMALL).eval()
    with torch.no_grad():
        taught, learning = teacher(image(7)), student(image(7))
    for level in CHANNELS:
        shapes = [getattr(outputs.joint["detection"].features, level).shape for outputs in (taught, learning)]
        assert shapes[0] == shapes[1], level
    assert {level: mask.shape for level, mask in taught.joint["detection"].attention.items()} == {
        "c3": (2, 1, 8, 12),
        "c4": (2, 1, 4, 6),
        "c5": (2, 1, 2, 3),
    }
    assert len(teacher.backbones()) == 2
    assert taught.detection.classes.shape == learning.detection.classes.shape


def test_levels_without_gaff_are_the_mean_of_both_streams() -> None:
    torch.manual_seed(8)
    settings = replace(SMALL, architecture="two_stream", gaff=GaffSettings(levels=("c5",)))
    teacher = Teacher(settings).eval()
    with torch.no_grad():
        outputs = teacher(image(8))
        visible, thermal = teacher.visible(image(8)[:, :3]), teacher.thermal(image(8)[:, 3:])
        fused = teacher.gaff["c5"](visible.c5, thermal.c5)
    features = outputs.joint["segmentation"].features
    torch.testing.assert_close(features.c4, (visible.c4 + thermal.c4) / 2)
    torch.testing.assert_close(features.c5, fused.features)
    torch.testing.assert_close(outputs.joint["segmentation"].attention["c5"], fused.attention)
    assert outputs.joint["segmentation"].levels == ("c5",)


def test_every_loss_of_a_teacher_reaches_it() -> None:
    torch.manual_seed(9)
    teacher = Teacher(replace(SMALL, architecture="two_stream")).train()
    nn.init.constant_(teacher.gaff["c3"].intra_visible.bias, 2.0)  # one camera better than the other: a winner
    losses = task_losses(teacher, teacher(image(9)), targets(), None)
    assert set(losses) == {
        "classes", "boxes", "segmentation", "segmentation_auxiliary", "gaff_intra", "gaff_inter"
    }  # fmt: skip
    norms = gradient_norms(losses, teacher.parameters())
    assert min(norms.values()) > 0, norms
    for stream in (teacher.visible, teacher.thermal):
        assert gradient_norms(losses, stream.parameters())["classes"] > 0


def test_foreground_follows_the_tasks() -> None:
    # 8x12 cells of 8 px. The person: 20x40 px around (30, 30); in the second image one ignored object, and the mask
    # is unknown from column 10 on.
    boxes, masks, both = (
        foreground(targets(), tasks, (8, 12))
        for tasks in (("detection",), ("segmentation",), ("detection", "segmentation"))
    )
    assert not boxes.mask[1].any()
    assert masks.mask[1, 0].nonzero().tolist() == [[4, 7]]
    # Centres of columns 2 to 4 are 10, 2 and 6 px from the centre, of rows 1 to 6 18, 10, 2, 6, 14, 22 px, half axes
    # 10 and 20: column 3 holds rows 1 to 5, column 4 rows 2 to 5 (14 px: .36 + .49).
    assert boxes.mask[0, 0].nonzero().tolist() == [
        [1, 3], [2, 3], [2, 4], [3, 3], [3, 4], [4, 3], [4, 4], [5, 3], [5, 4]
    ]  # fmt: skip
    # The rectangle of the mask touches rows 1 to 6 and columns 2 to 4.
    assert int(masks.mask[0].sum()) == 18
    torch.testing.assert_close(both.mask, torch.maximum(boxes.mask, masks.mask))
    assert not masks.known[1, 0, :, 10:].any()
    # Rows 3 and 5 of column 7 are the ignored person; row 4, too, but there the mask has something.
    assert boxes.known[1, 0, 3:6, 7].tolist() == [False, False, False]
    assert both.known[1, 0, 3:6, 7].tolist() == [False, True, False]
    assert not both.known[1, 0, :, 10:].any()


def test_gradient_norm_of_a_term_without_a_path_is_zero() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    terms = {"path": (weight**2).sum() / 2, "constant": torch.tensor(1.0), "cut": (weight.detach() ** 2).sum()}
    assert gradient_norms(terms, [weight]) == {"path": 5.0, "constant": 0.0, "cut": 0.0}


# --- decision level


def test_decision_level_averages_the_raw_heads_of_two_networks() -> None:
    torch.manual_seed(10)
    network = DecisionFusion(replace(SMALL, architecture="decision")).eval()
    both = image(10)
    other_night = torch.cat([both[:, :3], image(11)[:, 3:]], dim=1)
    with torch.no_grad():
        outputs, changed = network(both), network(other_night)
        visible, thermal = network.visible(both[:, :3]), network.thermal(both[:, 3:])
    torch.testing.assert_close(outputs.detection.classes, (visible.detection.classes + thermal.detection.classes) / 2)
    torch.testing.assert_close(outputs.detection.deltas, (visible.detection.deltas + thermal.detection.deltas) / 2)
    torch.testing.assert_close(outputs.segmentation.main, (visible.segmentation.main + thermal.segmentation.main) / 2)
    torch.testing.assert_close(changed.members[0].detection.classes, outputs.members[0].detection.classes)
    assert not torch.allclose(changed.members[1].detection.classes, outputs.members[1].detection.classes)
    assert outputs.joint == {}


def test_each_network_of_a_decision_level_baseline_learns_by_itself() -> None:
    torch.manual_seed(12)
    network = DecisionFusion(replace(SMALL, architecture="decision", tasks=("segmentation",))).train()
    losses = task_losses(network, network(image(12)), targets(), None)
    assert set(losses) == {
        f"{camera}_{term}" for camera in ("visible", "thermal") for term in ("segmentation", "segmentation_auxiliary")
    }
    norms = gradient_norms(losses, network.thermal.parameters())
    assert norms["visible_segmentation"] == 0
    assert norms["thermal_segmentation"] > 0


# --- the author's detector, anchors, dilation


def test_anchors_of_the_author() -> None:
    anchors = make_anchors(RETINANET_MG, (640, 512))
    assert len(anchors) == 40_920  # 6 of each cell of 80x64, 40x32, 20x16, 10x8 and 5x4
    # Cell (5, 5) of stride 8 is centred at (44, 44): 24 px, w:h 1:1, 2:1 and 1:2 of one area, each also times sqrt 2.
    cell = anchors[(5 * 80 + 5) * 6 :][:6]
    sizes = cell[:, 2:] - cell[:, :2]
    a, b, c = 24.0, 24 * 2**0.5, 12 * 2**0.5
    expected = torch.tensor([(a, a), (b, b), (b, c), (2 * a, a), (c, b), (a, 2 * a)])
    torch.testing.assert_close(sizes, expected)
    torch.testing.assert_close((cell[:, :2] + cell[:, 2:]) / 2, torch.full((6, 2), 44.0))
    assert float(anchors.min()) == 0
    assert float(anchors[:, 2].max()) == 640
    assert float(anchors[:, 3].max()) == 512
    # The largest: 384 px at stride 128.
    torch.testing.assert_close(anchors[-6:].amax(dim=0)[2:], torch.tensor([640.0, 512.0]))


def test_anchors_for_pedestrians() -> None:
    anchors = make_anchors(pedestrian_anchors(LIGHT), (640, 512))
    assert len(anchors) == 13_440  # 2 of each of 80x64 + 40x32 + 20x16 cells
    heights = (anchors[:, 3] - anchors[:, 1]).round(decimals=2).unique()
    # 40 px x 2^k x {1, sqrt 2}, where 25.6, the rounded root of the area, gives 39.98.
    assert heights.tolist() == pytest.approx([39.98, 56.54, 79.96, 113.08, 159.92, 226.16], abs=0.01)
    ratios = (anchors[:, 2] - anchors[:, 0]) / (anchors[:, 3] - anchors[:, 1])
    torch.testing.assert_close(ratios, torch.full_like(ratios, 0.41), atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", [RETINANET_MG, paper_anchors(LIGHT), replace(RETINANET_MG, levels=3)])
def test_a_detector_has_one_row_for_each_anchor_on_every_pyramid(settings: RetinaNetSettings) -> None:
    # 96x64: the maps of stride 64 and 128 are 2x1 and 1x1 cells, rounded up.
    network = Student(NetworkSettings(tasks=("detection",), detection=settings, input_size=(96, 64))).eval()
    with torch.no_grad():
        logits = network(image(13)).detection
    cells = 12 * 8 + 6 * 4 + 3 * 2 + (3 if settings.levels == 5 else 0)
    assert len(network.anchors) == cells * 6
    assert logits.classes.shape == (2, cells * 6, 3)
    assert logits.deltas.shape == (2, cells * 6, 4)
    assert float(logits.classes.sigmoid().mean()) == pytest.approx(0.01, abs=0.005)


def test_coarse_levels_of_the_author_reach_the_fine_ones() -> None:
    torch.manual_seed(16)
    network = Student(NetworkSettings(tasks=("detection",), detection=RETINANET_MG, input_size=(96, 64))).eval()
    finest = 12 * 8 * 6
    with torch.no_grad():
        before = network(image(16)).detection.classes
        network.detector.laterals[4][1].bias += 5  # of stride 128: nothing but the top-down path leads on from there
        after = network(image(16)).detection.classes
    assert float((after - before)[:, :finest].abs().min()) > 0


def test_a_dilated_backbone_gives_the_same_cells_at_a_finer_stride() -> None:
    torch.manual_seed(14)
    strided, to_16, to_8 = Backbone(3).eval(), Backbone(3, 16).eval(), Backbone(3, 8).eval()
    random_statistics(strided)
    for backbone in (to_16, to_8):
        backbone.load_state_dict(strided.state_dict())
    with torch.no_grad():
        coarse, fine, finest = (backbone(image(14)[:, :3]) for backbone in (strided, to_16, to_8))
    assert fine.c5.shape == (2, 512, 4, 6)
    assert finest.c5.shape == (2, 512, 8, 12)
    torch.testing.assert_close(fine.c5[..., ::2, ::2], coarse.c5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(finest.c4[..., ::2, ::2], coarse.c4, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(finest.c5[..., ::4, ::4], coarse.c5, atol=1e-5, rtol=1e-4)


def test_a_dilated_network_only_segments() -> None:
    dilated = PSPNetSettings(output_stride=8, dilated=True)
    network = make_network(NetworkSettings(tasks=("segmentation",), segmentation=dilated, input_size=(96, 64))).eval()
    assert network(image(15)).segmentation.main.shape == (2, 9, 8, 12)
    with pytest.raises(ValueError, match="detector's scales"):
        NetworkSettings(segmentation=dilated)
    with pytest.raises(ValueError, match="8 or 16, not 32"):
        PSPNetSettings(dilated=True)


# --- costs


def cost_of(settings: NetworkSettings) -> dict[str, Cost]:
    with torch.device("meta"):  # no values, no time
        return costs(make_network(settings))


def test_costs_of_the_parts_at_full_size() -> None:
    # The residual block of C5 at 640x480: two 3x3 convolutions of 512 to 512 channels on 15x20 cells.
    parts = cost_of(
        NetworkSettings(tasks=("segmentation",), input_size=(640, 480), segmentation_joint=SEGMENTATION_JOINT)
    )
    assert set(parts) == {"backbone", "segmenter", "joint", "total"}
    assert parts["joint"].multiply_accumulates == 2 * 9 * 512 * 512 * 15 * 20
    assert parts["joint"].parameters == 2 * 9 * 512 * 512 + 2 * 2 * 512  # and two BatchNorms; no attention head
    assert parts["total"].multiply_accumulates == sum(
        part.multiply_accumulates for name, part in parts.items() if name != "total"
    )
    # ResNet-18 at this size: 11.1 GMACs (TRAINING: reading of the run times) and the stem's three further channels.
    assert parts["backbone"].multiply_accumulates / 1e9 == pytest.approx(
        11.10 + 49 * 3 * 64 * 240 * 320 / 1e9, abs=0.01
    )


def test_a_light_student_costs_two_thirds_of_its_teacher() -> None:
    settings = NetworkSettings(tasks=("detection",))
    native, student, literal = (
        cost_of(replace(settings, detection_joint=joint))
        for joint in (JointSettings(), DETECTION_JOINT, LITERAL_DETECTION_JOINT)
    )
    teacher = cost_of(replace(settings, architecture="two_stream"))
    backbone = teacher["visible"].multiply_accumulates
    assert backbone / 1e9 == pytest.approx(11.84, abs=0.01)
    assert teacher["thermal"] == teacher["visible"]
    assert native["detector"].multiply_accumulates / backbone == pytest.approx(0.458, abs=0.005)
    # C5 basic 18 * 512^2 * 320, bottlenecks 3.25 * (128^2 * 5120 + 256^2 * 1280): 1.510 + .545 GMACs.
    assert student["joint"].multiply_accumulates == 18 * 512**2 * 320 + 13 * (128**2 * 5120 + 256**2 * 1280) // 4
    assert student["joint"].multiply_accumulates < 0.2 * backbone
    assert literal["joint"].multiply_accumulates == 3 * 18 * 512**2 * 320
    ratio = {
        name: network["total"].multiply_accumulates / teacher["total"].multiply_accumulates
        for name, network in (("native", native), ("student", student), ("literal", literal))
    }
    assert ratio == pytest.approx({"native": 0.618, "student": 0.689, "literal": 0.774}, abs=0.002)


def test_neck_and_head_of_the_author_cost_three_times_the_light_ones() -> None:
    mg = cost_of(NetworkSettings(tasks=("detection",), detection=RETINANET_MG))
    # 1x1 transforms, the joint 3x3 of 768 channels, stride-2 chain, laterals, 3x3 smoothing, heads of 6 (3 + 4) outputs
    # on 5120, 1280, 320, 80 and 20 cells.
    cells = 5120 + 1280 + 320 + 80 + 20
    expected = (
        256 * (128 * 5120 + 256 * 1280 + 512 * 320)
        + 9 * 768 * 256 * 5120
        + 9 * 256 * 256 * (cells - 5120)
        + 256 * 256 * cells
        + 9 * 256 * 256 * cells
        + 9 * 256 * 6 * (3 + 4) * cells
    )
    assert mg["detector"].multiply_accumulates == expected
    light = cost_of(NetworkSettings(tasks=("detection",)))
    assert expected / light["detector"].multiply_accumulates == pytest.approx(2.85, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "two_stream", "inputs": ("rgb",)}, "needs both inputs"),
        ({"architecture": "decision", "inputs": ("thermal",)}, "needs both inputs"),
        ({"architecture": "two_stream", "detection_joint": DETECTION_JOINT}, "detection_joint belongs"),
        ({"tasks": ("detection",), "segmentation_joint": SEGMENTATION_JOINT}, "segmentation_joint belongs"),
    ],
)
def test_impossible_networks_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSettings(**change)


def test_modulating_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="modulate"):
        JointSettings(c5="basic", attention="none", modulate=True)
