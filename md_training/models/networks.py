"""The whole networks: student, teacher and the baselines of the paper, with one typed output for all."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from md_perception.labels import DETECTION, SEGMENTATION
from md_training.models.backbone import CHANNELS, Backbone, Features, Level
from md_training.models.gaff import Fusion, Gaff, GaffSettings
from md_training.models.joint import Joint, JointBranch, JointSettings
from md_training.models.pspnet import PSPNet, PSPNetSettings, SegmentationLogits
from md_training.models.retinanet import DetectionLogits, RetinaNet, RetinaNetSettings, make_anchors
from md_training.models.retinanet_mg import RetinaNetMG

Task = Literal["detection", "segmentation"]
Input = Literal["rgb", "thermal"]
Architecture = Literal["one_stream", "two_stream", "decision"]


@dataclass(frozen=True)
class NetworkSettings:
    """What a network is."""

    tasks: tuple[Task, ...] = ("detection", "segmentation")
    """What it answers."""
    inputs: tuple[Input, ...] = ("rgb", "thermal")
    """Cameras it sees, RGB first. A thermal-only network is trained on truth in RGB's pixels, to which thermal is
    brought; exported, it needs no RGB and answers in thermal pixels."""
    input_size: tuple[int, int] = (640, 512)
    """Width and height of its input, px, multiples of 32; any camera is letterboxed to it."""
    detection_classes: tuple[str, ...] = DETECTION.classes
    """What the detector tells apart, of labels.DETECTION: no more than its data annotate."""
    detection: RetinaNetSettings = field(default_factory=RetinaNetSettings)
    """Neck and heads of the detector."""
    segmentation: PSPNetSettings = field(default_factory=PSPNetSettings)
    """Head of the segmentation."""
    architecture: Architecture = "one_stream"
    """`one_stream` is the student and, natively trained, the paper's image-level (or, with one input, visible-only or
    thermal-only) baseline; `two_stream` is the teacher, feature-level; `decision` averages the raw heads of two
    one-stream networks, one per camera."""
    detection_joint: JointSettings = field(default_factory=JointSettings)
    """What distillation adds to a one-stream network before the detector."""
    segmentation_joint: JointSettings = field(default_factory=JointSettings)
    """The same before the segmentation head: a student of two teachers has a branch for each."""
    gaff: GaffSettings = field(default_factory=GaffSettings)
    """The fusion of a two-stream network."""
    one_thermal_mean: bool = False
    """Give the three copies of thermal one mean and deviation instead of those of red, green and blue: exported, they
    are one channel instead of two. Every preset does; False is how networks were trained before there was a choice."""

    def __post_init__(self) -> None:
        if any(side <= 0 or side % 32 for side in self.input_size):
            raise ValueError(f"input size {self.input_size}: width and height must be multiples of 32 (stride of C5)")
        if self.inputs not in (("rgb",), ("thermal",), ("rgb", "thermal")):
            raise ValueError(f"inputs {self.inputs}: use ('rgb',), ('thermal',) or ('rgb', 'thermal')")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks {self.tasks}: name detection, segmentation or both, each once")
        if not self.detection_classes or self.detection_classes != tuple(
            name for name in DETECTION.classes if name in self.detection_classes
        ):
            raise ValueError(
                f"detection classes {self.detection_classes}: name some of {DETECTION.classes}, in that order"
            )
        if self.architecture != "one_stream" and self.inputs != ("rgb", "thermal"):
            raise ValueError(f"a {self.architecture} network needs both inputs, not {self.inputs}")
        for task, joint in self.joint.items():
            if joint.blocks and (self.architecture != "one_stream" or task not in self.tasks):
                raise ValueError(f"{task}_joint belongs to a one_stream network with the task {task}; set it to none")
        if self.backbone_stride != 32 and "detection" in self.tasks:
            raise ValueError(
                "a dilated backbone has lost the detector's scales: segmentation.dilated needs a network "
                "that only segments; use laterals (dilated False) for both tasks"
            )

    @property
    def joint(self) -> dict[Task, JointSettings]:
        return {"detection": self.detection_joint, "segmentation": self.segmentation_joint}

    @property
    def backbone_stride(self) -> Literal[8, 16, 32]:
        """Output stride of the backbone, px per cell of C5."""
        stride = self.segmentation.output_stride
        return stride if "segmentation" in self.tasks and self.segmentation.dilated and stride != 4 else 32


@dataclass(frozen=True)
class Outputs:
    """Everything that a loss, a distillation or an export needs of one forward pass; a missing task is None.

    joint: by task, what a distillation compares; empty where there is nothing. fusions: of a teacher, what GAFF's
    losses need. members: of a decision-level network, the outputs of its two networks, visible and thermal.
    """

    detection: DetectionLogits | None
    segmentation: SegmentationLogits | None
    joint: Mapping[Task, Joint] = field(default_factory=dict)
    fusions: Mapping[Level, Fusion] = field(default_factory=dict)
    members: tuple["Outputs", ...] = ()


class Network(nn.Module):
    """What training, evaluation and export know of a network.

    forward takes float (B, 3 x number of inputs, height, width) of the settings' input size, as preprocess.normalise
    makes it, and returns Outputs.
    """

    anchors: Tensor
    """float32 (N, 4), xyxy px of the network input."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        # Follows from the settings: not part of the saved state.
        self.register_buffer("anchors", make_anchors(settings.detection, settings.input_size), persistent=False)

    def backbones(self) -> tuple[Backbone, ...]:
        """Return the parts that start from ImageNet weights."""
        return tuple(module for module in self.modules() if isinstance(module, Backbone))


class Student(Network):
    """The one-stream network of the paper: all cameras enter one backbone, whose features serve every task."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(settings)
        self.backbone = Backbone(
            3 * len(settings.inputs),
            settings.backbone_stride,
            one_thermal_mean=settings.one_thermal_mean and "thermal" in settings.inputs,
        )
        self.detector, self.segmenter = make_heads(settings)
        self.joint = nn.ModuleDict({task: JointBranch(joint) for task, joint in settings.joint.items() if joint.blocks})

    def forward(self, image: Tensor) -> Outputs:
        features = self.backbone(image)
        joint: dict[Task, Joint] = {}
        for task in self.settings.tasks:
            joint[task] = self.joint[task](features) if task in self.joint else Joint(features, (), {})
        detection = self.detector(joint["detection"].features) if self.detector is not None else None
        segmentation = self.segmenter(joint["segmentation"].features) if self.segmenter is not None else None
        return Outputs(detection, segmentation, joint)


class Teacher(Network):
    """The two-stream network of the paper: a backbone per camera, fused level by level by GAFF, and the same heads.

    Levels without a GAFF are the mean of both streams. The fused features have the shapes of a student's.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(settings)
        self.visible = Backbone(3, settings.backbone_stride)
        self.thermal = Backbone(3, settings.backbone_stride, one_thermal_mean=settings.one_thermal_mean)
        self.gaff = nn.ModuleDict(
            {level: Gaff(CHANNELS[level], settings.gaff.kernel) for level in settings.gaff.levels}
        )
        self.detector, self.segmenter = make_heads(settings)

    def forward(self, image: Tensor) -> Outputs:
        visible, thermal = self.visible(image[:, :3]), self.thermal(image[:, 3:])
        maps: dict[Level, Tensor] = {}
        fusions: dict[Level, Fusion] = {}
        for level in CHANNELS:
            pair = getattr(visible, level), getattr(thermal, level)
            if level in self.gaff:
                fusions[level] = self.gaff[level](*pair)
                maps[level] = fusions[level].features
            else:
                maps[level] = (pair[0] + pair[1]) / 2
        features = Features(**maps)
        attention = {level: fusion.attention for level, fusion in fusions.items()}
        return Outputs(
            self.detector(features) if self.detector is not None else None,
            self.segmenter(features) if self.segmenter is not None else None,
            {task: Joint(features, self.settings.gaff.levels, attention) for task in self.settings.tasks},
            fusions,
        )


def one_stream_weights(other: Network, inputs: tuple[Input, ...]) -> dict[str, Tensor]:
    """Return another network's weights by the names of a student of these inputs, for one that starts from them.

    Of a student of more inputs, the first convolution loses the kernels of those that are not seen. Of a teacher, the
    backbone is the visible stream, or the thermal one for a student that sees only that, and its first convolution has
    the kernels of the streams of all inputs, so that their responses are added; the heads are the teacher's own; its
    GAFF has no counterpart. All else has its own names.
    """
    weights = other.state_dict()
    stem = "backbone.stem.conv1.weight"
    if isinstance(other, Teacher):
        streams = [other.visible if name == "rgb" else other.thermal for name in inputs]
        weights |= {f"backbone.{name}": weight for name, weight in streams[0].state_dict().items()}
        kernels = [stream.stem.get_parameter("conv1.weight").detach() for stream in streams]
        weights[stem] = torch.cat(kernels, dim=1)
    elif isinstance(other, Student) and set(inputs) <= set(other.settings.inputs):
        seen = dict(zip(other.settings.inputs, weights[stem].split(3, dim=1), strict=True))
        weights[stem] = torch.cat([seen[name] for name in inputs], dim=1)
    return weights


class DecisionFusion(Network):
    """The decision-level baseline: a visible-only and a thermal-only network, their raw heads averaged.

    Class logits and box deltas are averaged per anchor, segmentation logits per cell, before suppression and argmax.
    Each network learns from its own outputs (Outputs.members), as if it were alone.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(settings)
        self.visible = Student(replace(settings, architecture="one_stream", inputs=("rgb",)))
        self.thermal = Student(replace(settings, architecture="one_stream", inputs=("thermal",)))

    def forward(self, image: Tensor) -> Outputs:
        visible, thermal = self.visible(image[:, :3]), self.thermal(image[:, 3:])
        detection = segmentation = None
        if visible.detection is not None:
            detection = DetectionLogits(
                (visible.detection.classes + thermal.detection.classes) / 2,
                (visible.detection.deltas + thermal.detection.deltas) / 2,
            )
        if visible.segmentation is not None:
            segmentation = SegmentationLogits((visible.segmentation.main + thermal.segmentation.main) / 2, None)
        return Outputs(detection, segmentation, members=(visible, thermal))


def make_network(settings: NetworkSettings) -> Network:
    """Return the network of the settings, with random weights."""
    architectures: dict[Architecture, type[Network]] = {
        "one_stream": Student,
        "two_stream": Teacher,
        "decision": DecisionFusion,
    }
    return architectures[settings.architecture](settings)


def make_heads(settings: NetworkSettings) -> tuple[RetinaNet | RetinaNetMG | None, PSPNet | None]:
    """Return detector and segmenter, None without the task."""
    detector = segmenter = None
    if "detection" in settings.tasks:
        kind = RetinaNetMG if settings.detection.neck == "retinanet_mg" else RetinaNet
        detector = kind(settings.detection, len(settings.detection_classes))
    if "segmentation" in settings.tasks:
        segmenter = PSPNet(settings.segmentation, len(SEGMENTATION))
    return detector, segmenter


def select_inputs(image: Tensor, inputs: tuple[Input, ...]) -> Tensor:
    """Return the channels of a network's cameras.

    image: (B, 6, H, W), RGB and thermal as preprocess.network_input makes them; (B, 3, H, W), only RGB, will do for
    inputs without thermal.
    """
    if image.shape[1] != 6 and not (image.shape[1] == 3 and inputs == ("rgb",)):
        raise ValueError(f"the image has {image.shape[1]} channels: not enough for the inputs {', '.join(inputs)}")
    if len(inputs) == 2:
        return image
    return image[:, :3] if inputs == ("rgb",) else image[:, 3:]


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def inference_copy(network: AnyNetwork) -> AnyNetwork:
    """Return a copy in evaluation mode without what serves training only: attention and auxiliary heads."""
    result = copy.deepcopy(network).eval()
    for module in result.modules():
        if isinstance(module, JointBranch):
            module.drop_attention()
        elif isinstance(module, PSPNet):
            module.auxiliary = None
    return result


def parameter_count(network: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class Cost:
    """parameters: trained values. multiply_accumulates: of one image, as torch's flop counter sees them.

    Both are of the network as it is trained: export.fold_input takes two of thermal's three channels off again, or one
    (NetworkSettings.one_thermal_mean); each has 0.26 GMAC at 640x512.
    """

    parameters: int
    multiply_accumulates: int


def costs(network: Network) -> dict[str, Cost]:
    """Return the cost of what is exported (see inference_copy) by part (backbone, joint, detector, ...) and `total`.

    Nothing is computed: the operations are counted on tensors without values.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network = inference_copy(network).to("meta")
    width, height = network.settings.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3 * len(network.settings.inputs), height, width, device="meta"))
    operations = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    root = type(network).__name__
    result: dict[str, Cost] = {}
    for name, part in network.named_children():
        if parameter_count(part) == 0:
            continue
        # A container (joint, gaff) is never called itself: its members are.
        path = f"{root}.{name}"
        inside = [path] if path in operations else [f"{path}.{member}" for member, _ in part.named_children()]
        result[name] = Cost(parameter_count(part), sum(operations[member] for member in inside))
    result["total"] = Cost(parameter_count(network), counter.get_total_flops() // 2)
    return result


def multiply_accumulates(network: Network) -> int:
    """Return the multiply-accumulate operations of one image."""
    return costs(network)["total"].multiply_accumulates
