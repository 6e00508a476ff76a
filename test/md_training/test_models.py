"""Networks: the stem's identity, anchors, box coding, raw heads and folding."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from md_training.export import fold_batch_norm
from md_training.models.backbone import Backbone, initialise, widen_stem
from md_training.models.networks import NetworkSettings, Student, multiply_accumulates
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings, decode_boxes, encode_boxes, make_anchors


def test_widened_stem_gives_the_same_output_on_repeated_input() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    image = torch.randn(2, 3, 32, 40)
    wide = widen_stem(conv, 6)
    torch.testing.assert_close(wide.weight[:, :3], conv.weight / 2)
    torch.testing.assert_close(wide(torch.cat([image, image], dim=1)), conv(image), atol=1e-5, rtol=1e-5)


def test_backbone_takes_a_local_resnet18_file_and_refuses_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = resnet18().eval()
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    backbone = Backbone(6).eval()
    initialise(backbone, str(tmp_path / "resnet18.pth"))
    image = torch.randn(1, 3, 64, 64)
    expected = image
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        expected = getattr(classifier, name)(expected)
    torch.testing.assert_close(backbone(torch.cat([image, image], dim=1)).c5, expected, atol=1e-4, rtol=1e-4)

    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth are not torchvision's ResNet-18"):
        initialise(backbone, str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="there is no such file"):
        initialise(backbone, str(tmp_path / "missing.pth"))


def test_anchor_order_is_level_row_column_then_ratio_and_scale() -> None:
    settings = RetinaNetSettings(anchor_side=8, anchor_scales=(1.0, 2.0), anchor_ratios=(1.0, 4.0))
    anchors = make_anchors(settings, (64, 32))
    # 8x4, 4x2 and 2x1 cells of 4 anchors.
    assert len(anchors) == (32 + 8 + 2) * 4
    # First cell of stride 8 is centred at (4, 4): ratio 1 gives 8x8 and 16x16, ratio 4 gives 16x4 and 32x8.
    expected = torch.tensor([(0, 0, 8, 8), (-4, -4, 12, 12), (-4, 2, 12, 6), (-12, 0, 20, 8)], dtype=torch.float32)
    torch.testing.assert_close(anchors[:4], expected)
    torch.testing.assert_close(anchors[4:8], expected + torch.tensor([8.0, 0, 8, 0]))  # the next column
    torch.testing.assert_close(anchors[32 * 4], torch.tensor([0.0, 0, 16, 16]))  # stride 16: centre (8, 8), side 16


def test_anchor_columns_lie_side_by_side_in_a_cell() -> None:
    settings = RetinaNetSettings(anchor_side=8, anchor_scales=(1.0,), anchor_ratios=(1.0,), anchor_columns=2)
    anchors = make_anchors(settings, (32, 32))
    assert settings.anchors_per_cell == 2
    torch.testing.assert_close((anchors[:3, 0] + anchors[:3, 2]) / 2, torch.tensor([2.0, 6.0, 10.0]))


def test_boxes_survive_encoding_and_decoding() -> None:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(2, 50, 2, generator=generator) * 200
    sizes = 4 + torch.rand(2, 50, 2, generator=generator) * 60
    boxes, anchors = torch.cat([corners, corners + sizes], dim=-1)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, atol=1e-3, rtol=1e-4)
    # One tenth of the anchor's width to the right and ln(2) wider: deltas 1 and ln(2) / .2.
    deltas = encode_boxes(torch.tensor([(-4.0, 0.0, 16.0, 10.0)]), torch.tensor([(0.0, 0.0, 10.0, 10.0)]))
    torch.testing.assert_close(deltas, torch.tensor([(1.0, 0.0, 3.4657, 0.0)]), atol=1e-4, rtol=0)


def test_wild_deltas_do_not_overflow() -> None:
    assert bool(decode_boxes(torch.full((1, 4), 1e4), torch.tensor([(0.0, 0.0, 8.0, 8.0)])).isfinite().all())


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_heads_have_one_row_per_anchor_and_the_stride_asked_for(stride: int) -> None:
    settings = NetworkSettings(input_size=(96, 64), segmentation=PSPNetSettings(output_stride=stride))  # type: ignore[arg-type]
    network = Student(settings).train()
    outputs = network(torch.randn(2, 6, 64, 96))
    assert outputs.detection is not None
    assert outputs.segmentation is not None
    assert outputs.detection.classes.shape == (2, len(network.anchors), 3)
    assert outputs.detection.deltas.shape == (2, len(network.anchors), 4)
    assert outputs.segmentation.main.shape == (2, 9, 64 // stride, 96 // stride)
    assert outputs.segmentation.auxiliary is not None
    assert outputs.segmentation.auxiliary.shape == (2, 9, 4, 6)
    network.eval()
    assert network(torch.randn(1, 6, 64, 96)).segmentation.auxiliary is None


def test_raw_head_and_anchor_of_a_cell_belong_together() -> None:
    # One bright cell in the class output must come out at the anchors that are centred on it.
    network = Student(NetworkSettings(tasks=("detection",), input_size=(96, 64))).eval()
    detector = network.detector
    assert detector is not None
    seen = {}

    def light_up(module: nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
        if output.shape[-2:] == (8, 12):  # stride 8
            output = torch.zeros_like(output)
            output[0, :, 2, 5] = 1
            seen["channels"] = output.shape[1]
        return output * (output == 1)

    detector.class_output.register_forward_hook(light_up)
    logits = network(torch.zeros(1, 6, 64, 96)).detection.classes
    bright = network.anchors[(logits[0] == 1).all(dim=1)]
    assert len(bright) * 3 == seen["channels"]
    torch.testing.assert_close((bright[:, :2] + bright[:, 2:]) / 2, torch.tensor([[44.0, 20.0]]).expand(len(bright), 2))


def test_folded_batch_norm_computes_the_same() -> None:
    torch.manual_seed(2)
    network = Student(NetworkSettings(input_size=(64, 64), segmentation=PSPNetSettings(output_stride=4)))
    network.train()
    for _ in range(2):  # gives the running statistics values of their own
        network(torch.randn(2, 6, 64, 64))
    network.eval()
    folded = fold_batch_norm(copy.deepcopy(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    image = torch.randn(1, 6, 64, 64)
    with torch.no_grad():
        one, other = network(image), folded(image)
    torch.testing.assert_close(other.detection.classes, one.detection.classes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.segmentation.main, one.segmentation.main, atol=1e-4, rtol=1e-4)


def test_light_neck_and_head_cost_less_than_half_of_the_backbone() -> None:
    # The paper's run times imply 0.45 (2.0 ms beside 4.5 ms).
    network = Student(NetworkSettings(tasks=("detection",), input_size=(320, 256)))
    whole = multiply_accumulates(network)
    network.detector = None
    backbone = multiply_accumulates(network)
    assert 0.3 < (whole - backbone) / backbone < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (320, 250)}, "multiples of 32"),
        ({"inputs": ("thermal", "rgb")}, "inputs"),
        ({"tasks": ()}, "tasks"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSettings(**change)
