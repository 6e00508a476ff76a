"""The whole networks: backbone and task heads joined, features and raw heads returned in typed structures."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from md_perception.labels import DETECTION, SEGMENTATION
from md_training.models.backbone import Backbone, Features
from md_training.models.pspnet import PSPNet, PSPNetSettings, SegmentationLogits
from md_training.models.retinanet import DetectionLogits, RetinaNet, RetinaNetSettings, make_anchors

Task = Literal["detection", "segmentation"]
Input = Literal["rgb", "thermal"]


@dataclass(frozen=True)
class NetworkSettings:
    """What a network is."""

    tasks: tuple[Task, ...] = ("detection", "segmentation")
    """What it answers."""
    inputs: tuple[Input, ...] = ("rgb", "thermal")
    """Cameras it sees, RGB first."""
    input_size: tuple[int, int] = (640, 512)
    """Width and height of its input, px, multiples of 32; any camera is letterboxed to it."""
    detection: RetinaNetSettings = field(default_factory=RetinaNetSettings)
    """Neck and heads of the detector."""
    segmentation: PSPNetSettings = field(default_factory=PSPNetSettings)
    """Head of the segmentation."""

    def __post_init__(self) -> None:
        if any(side <= 0 or side % 32 for side in self.input_size):
            raise ValueError(f"input size {self.input_size}: width and height must be multiples of 32 (stride of C5)")
        if self.inputs not in (("rgb",), ("rgb", "thermal")):
            raise ValueError(f"inputs {self.inputs}: use ('rgb',) or ('rgb', 'thermal')")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks {self.tasks}: name detection, segmentation or both, each once")


@dataclass(frozen=True)
class Outputs:
    """Everything that a loss, a distillation or an export needs of one forward pass; a missing task is None."""

    features: Features
    detection: DetectionLogits | None
    segmentation: SegmentationLogits | None


class Student(nn.Module):
    """The one-stream network of the paper: all cameras enter one backbone, whose features serve every task."""

    anchors: Tensor
    """float32 (N, 4), xyxy px of the network input."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = Backbone(input_channels=3 * len(settings.inputs))
        self.detector = RetinaNet(settings.detection, len(DETECTION)) if "detection" in settings.tasks else None
        self.segmenter = PSPNet(settings.segmentation, len(SEGMENTATION)) if "segmentation" in settings.tasks else None
        # Follows from the settings: not part of the saved state.
        self.register_buffer("anchors", make_anchors(settings.detection, settings.input_size), persistent=False)

    def forward(self, image: Tensor) -> Outputs:
        """image: float (B, 3 or 6, height, width) of the settings' input size, as preprocess.normalise makes it."""
        features = self.backbone(image)
        detection = self.detector(features) if self.detector is not None else None
        segmentation = self.segmenter(features) if self.segmenter is not None else None
        return Outputs(features, detection, segmentation)


def parameter_count(network: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def multiply_accumulates(network: Student) -> int:
    """Return the multiply-accumulate operations of one image, as torch's flop counter sees them."""
    from torch.utils.flop_counter import FlopCounterMode

    width, height = network.settings.input_size
    was_training = network.training
    network.eval()
    device = network.anchors.device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3 * len(network.settings.inputs), height, width, device=device))
    network.train(was_training)
    return counter.get_total_flops() // 2
