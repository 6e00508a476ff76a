"""Runs by name: everything that decides what a training does, in one frozen dataclass that is printed and saved."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import TypeAdapter, ValidationError

from md_training.data.augment import Augmentation
from md_training.data.sources import CocoData, KaistData, MfnetData, Source, UnlabelledData, YoloData
from md_training.data.synthetic import SceneData
from md_training.distillation import DistillationSettings
from md_training.models.joint import DETECTION_JOINT, SEGMENTATION_JOINT, JointSettings
from md_training.models.networks import Architecture, Input, NetworkSettings, Task
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import LIGHT, RetinaNetSettings, pedestrian_anchors


@dataclass(frozen=True)
class Optimisation:
    """Linear warm-up, then half a cosine to (almost) 0. The defaults are the paper's recipe for detection."""

    steps: int = 3500
    """Optimiser steps."""
    batch_size: int = 16
    """Images per step, of all processes together."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """`sgd` has momentum 0.9, the paper's."""
    learning_rate: float = 1e-2
    """At the end of the warm-up."""
    warmup_steps: int = 500
    """Steps of the linear rise."""
    weight_decay: float = 5e-4
    """Of weights; biases and normalisation do not decay."""
    class_weights: Literal["none", "sqrt_inverse"] = "none"
    """Of the segmentation loss: `sqrt_inverse` weights a class by 1 / sqrt(its share of pixels)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` is bf16 autocast where the processor computes it natively, else fp32; losses are always fp32."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 is off."""
    batch_norm: Literal["synchronised", "local", "frozen"] = "synchronised"
    """Among several processes, the statistics of a batch are those of the whole batch (`synchronised`, on GPUs) or of
    each process's share (`local`). `frozen` keeps the first weights' own; scale and shift still learn."""
    ema_decay: float = 0.0
    """Of the moving average of the weights that is evaluated, saved and exported, e.g. 0.999; 0 is off."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"{self.steps} steps of {self.batch_size} images: at least 1 step of 2 (BatchNorm)")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay {self.ema_decay}: 0 is off, else the part of the average that is kept, below 1"
            )


@dataclass(frozen=True)
class Run:
    """A training run."""

    name: str
    """What the run and, by default, the exported student are called."""
    network: NetworkSettings
    """What is trained."""
    data: Annotated[tyro.conf.AvoidSubcommands[Source], tyro.conf.arg(name="")] = field(default_factory=SceneData)
    augmentation: Annotated[Augmentation, tyro.conf.arg(name="")] = field(default_factory=Augmentation)
    optimisation: Annotated[Optimisation, tyro.conf.arg(name="")] = field(default_factory=Optimisation)
    teachers: tuple[str, ...] = ()
    """checkpoint.pt of each frozen teacher, one per task that the student distils; without any, it is trained
    natively."""
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    """What is transferred from the teachers, and how."""
    backbone_weights: str = "none"
    """First weights of the backbone: `none`, `imagenet` (downloaded by torchvision) or the path of a torchvision
    ResNet-18 state dict."""
    first_weights: str = ""
    """checkpoint.pt of another run, e.g. on synthetic scenes: every weight of it that has a name and shape in common
    with this network's is taken over, after backbone_weights (fine-tuning). A student may start from a teacher, of
    which it takes the heads and, as its backbone, the visible stream; or from a student with more cameras."""
    seed: int = 1
    """Of the first weights, the order of the samples and their augmentation."""
    log_every: int = 20
    """Steps between two lines of the log."""
    gradients_every: int = 250
    """Steps between two lines of the log that say how hard each loss term pulls at the backbone; 0: none."""
    evaluate_every: int = 1000
    """Steps between two evaluations on held-out samples."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        if min(self.log_every, self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("log_every, evaluate_every and checkpoint_every are steps: at least 1")
        if self.gradients_every < 0:
            raise ValueError(f"gradients_every {self.gradients_every}: steps, or 0 for never")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: 0 or more, below 2**63")
        if self.teachers and self.network.architecture != "one_stream":
            raise ValueError(f"teachers teach a one_stream student, not a {self.network.architecture} network")
        if isinstance(self.data, UnlabelledData) and self.distillation.task_loss == "labels":
            raise ValueError("unlabelled pairs have no truth: set distillation.task_loss to teacher")
        if self.distillation.task_loss == "teacher" and not self.teachers:
            raise ValueError("task_loss teacher: name the teachers that it learns from")
        if self.distillation.task_loss == "teacher" and self.optimisation.class_weights != "none":
            raise ValueError("task_loss teacher: class_weights count annotated pixels, set them to none")

    def to_json(self) -> dict[str, Any]:
        """Return the run as plain JSON types."""
        result: dict[str, Any] = TypeAdapter(Run).dump_python(self, mode="json")
        return result

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Run":
        """Return the run of such a dict; a setting that it lacks has its default.

        Raises ValueError, naming the field, where one is unknown or wrong.
        """
        try:
            run = TypeAdapter(Run).validate_python(values)
        except ValidationError as error:
            raise ValueError(f"these are not the settings of a run: {error}") from None
        unknown = _keys(values) - _keys(run.to_json())
        if unknown:
            raise ValueError(
                f"unknown settings of a run: {', '.join(sorted(unknown))}; was it made by a newer version?"
            )
        return run


def _keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of all values in nested dicts."""
    names: set[str] = set()
    for key, value in values.items():
        names |= _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return names


_DEMO = Run(
    name="scenes-demo",
    network=NetworkSettings(
        input_size=(320, 256),
        # Of the scenes' persons (at this size 10 to 110 px high), 90 % overlap an anchor by half or more, of bicycles
        # 97 %, of cars 91 %; one column of anchors reaches 70 % of the persons.
        detection=RetinaNetSettings(anchor_side=13.0, anchor_ratios=(0.35, 0.8, 1.6), anchor_columns=2),
        # At 320x256 a cone is a few pixels: logits of stride 32 could not show it.
        segmentation=PSPNetSettings(output_stride=4, auxiliary=False),
        one_thermal_mean=True,
    ),
    optimisation=Optimisation(
        steps=4500,
        batch_size=8,
        optimiser="adamw",
        learning_rate=1e-3,
        warmup_steps=200,
        weight_decay=0.02,
        class_weights="sqrt_inverse",
        clip_norm=10.0,
    ),
)

PRESETS: dict[str, tuple[str, Run]] = {
    "scenes-demo": (
        "The demo student: detection and segmentation, RGB and 160x128 thermal, 320x256 network, on synthetic scenes.",
        _DEMO,
    ),
    "scenes-demo-visible": (
        "The demo student that takes over while thermal is lost: the same, without thermal, from the other's weights.",
        replace(
            _DEMO,
            name="scenes-demo-visible",
            network=replace(_DEMO.network, inputs=("rgb",)),
            optimisation=replace(_DEMO.optimisation, steps=2000, learning_rate=5e-4),
            first_weights="runs/scenes-demo/checkpoint.pt",
        ),
    ),
}
"""Name to (what it is for, run)."""

# --- the paper's recipe on every data set


@dataclass(frozen=True)
class Fusion:
    """A way to look at two cameras: a row of the paper's Tables 1 and 2."""

    text: str
    architecture: Architecture = "one_stream"
    inputs: tuple[Input, ...] = ("rgb", "thermal")


FUSIONS: dict[str, Fusion] = {
    "visible": Fusion("visible-only", inputs=("rgb",)),
    "thermal": Fusion("thermal-only", inputs=("thermal",)),
    "image": Fusion("image-level fusion"),
    "feature": Fusion("feature-level fusion, GAFF", "two_stream"),
    "decision": Fusion("decision-level fusion", "decision"),
}


def fused(settings: NetworkSettings, fusion: Fusion, tasks: tuple[Task, ...], distilled: bool) -> NetworkSettings:
    """Return the network of a fusion. distilled: with the joint branch of every task, for a student of teachers."""
    return replace(
        settings,
        tasks=tasks,
        architecture=fusion.architecture,
        inputs=fusion.inputs,
        one_thermal_mean=True,
        detection_joint=DETECTION_JOINT if distilled and "detection" in tasks else JointSettings(),
        segmentation_joint=SEGMENTATION_JOINT if distilled and "segmentation" in tasks else JointSettings(),
        # PSPNet reads C5 alone.
        gaff=settings.gaff if "detection" in tasks else replace(settings.gaff, levels=("c5",)),
    )


@dataclass(frozen=True)
class Role:
    """What is trained, and for which thermal sensor: a cell of the paper's Tables 1 to 4.

    fusion: of FUSIONS. distilled: under the teachers of its tasks. downsample: pixels per side of the thermal images
    that become one. text: what the role is in one phrase.
    """

    fusion: str
    distilled: bool
    downsample: Literal[1, 2, 4, 8]
    text: str


def _roles() -> dict[str, Role]:
    """Return all roles: by themselves, and native and distilled at every thermal resolution."""
    full = "thermal at full resolution"
    roles = {
        "teacher": Role("feature", False, 1, f"two streams, feature-level fusion, {full}"),
        "decision": Role("decision", False, 1, f"a network per camera, decision-level fusion, {full}"),
        "native-thermal": Role("thermal", False, 1, f"thermal-only, {full}"),
    }
    sides: tuple[Literal[1, 2, 4, 8], ...] = (1, 2, 4, 8)
    for kind, distilled, how in (("native", False, ", without a teacher"), ("student", True, "")):
        for side in sides:
            thermal = f"thermal x{side * side} coarser" if side > 1 else f"image-level fusion, {full}"
            roles[f"{kind}-x{side * side}"] = Role("image", distilled, side, f"one stream, {thermal}{how}")
        roles[f"{kind}-visible"] = Role("visible", distilled, 1, f"visible-only{how}")
    return roles


ROLES = _roles()
"""By name, the middle of a preset's name."""

_STEPS: dict[Task, int] = {"detection": 3500, "segmentation": 14_000}  # the paper's, of 16 images


@dataclass(frozen=True)
class _DataSet:
    """source: with thermal at full resolution. tasks: what the set annotates. weights: first ones of the backbone.
    taught_by: the set that its students' teachers are trained on, where it has no labels of its own."""

    text: str
    source: Source
    tasks: tuple[Task, ...]
    network: NetworkSettings
    weights: str = "imagenet"
    taught_by: str = ""

    def coarser(self, downsample: Literal[1, 2, 4, 8]) -> Source:
        """Return the set as a coarser thermal sensor sees it."""
        if isinstance(self.source, SceneData):
            width, height = self.source.camera_size
            return replace(self.source, thermal_size=(width // downsample, height // downsample))
        return replace(self.source, downsample=downsample)


_BOTH: tuple[Task, ...] = ("detection", "segmentation")
_WIDE = NetworkSettings(input_size=(640, 480))
_DATA_SETS: dict[str, _DataSet] = {
    "scenes": _DataSet("synthetic scenes", SceneData(), _BOTH, NetworkSettings(), weights="none"),
    "kaist": _DataSet(
        "KAIST",
        KaistData(Path("data/kaist")),
        ("detection",),
        NetworkSettings(detection_classes=("person",), detection=pedestrian_anchors(LIGHT)),
    ),
    "mfnet": _DataSet("MFNet", MfnetData(Path("data/mfnet")), ("segmentation",), _WIDE),
    "msrs": _DataSet("MSRS", YoloData(Path("data/msrs"), published="msrs"), _BOTH, _WIDE),
    "drive": _DataSet("own drives", YoloData(Path("data/drive")), _BOTH, _WIDE),
    "coco": _DataSet("a set with COCO boxes", CocoData(Path("data/coco")), _BOTH, _WIDE),
    "unlabelled": _DataSet(
        "unlabelled pairs",
        UnlabelledData(Path("data/unlabelled"), camera_size=(640, 480), native_thermal_size=(640, 480)),
        _BOTH,
        _WIDE,
        taught_by="drive",
    ),
}


def _paper_runs(name: str, data: _DataSet) -> dict[str, tuple[str, Run]]:
    """Return the paper's recipe on a data set: every role for every task and, of students, for both tasks at once."""
    runs: dict[str, tuple[str, Run]] = {}
    several = len(data.tasks) > 1
    for tasks in (*((task,) for task in data.tasks), *([data.tasks] if several else [])):
        together = len(tasks) > 1
        ending = "-joint" if together else f"-{tasks[0]}" if several else ""
        taught_by = data.taught_by or name
        teachers = [f"{taught_by}-teacher-{task}" if several else f"{taught_by}-teacher" for task in tasks]
        distillation = DistillationSettings(task_loss="teacher" if data.taught_by else "labels")
        for role_name, role in ROLES.items():
            if together and not role.distilled and role.fusion != "image":
                continue
            if data.taught_by and not role.distilled:
                continue
            run_name = f"{name}-{role_name}{ending}"
            by = f", distilled from {' and '.join(teachers)}" if role.distilled else ""
            runs[run_name] = (
                f"The paper's {' and '.join(tasks)} on {data.text}: {role.text}{by}.",
                Run(
                    name=run_name,
                    network=fused(data.network, FUSIONS[role.fusion], tasks, role.distilled),
                    data=data.coarser(role.downsample),
                    optimisation=Optimisation(steps=max(_STEPS[task] for task in tasks)),
                    teachers=tuple(f"runs/{teacher}/checkpoint.pt" for teacher in teachers) if role.distilled else (),
                    distillation=distillation,
                    backbone_weights=data.weights,
                ),
            )
    return runs


for _name, _data_set in _DATA_SETS.items():
    PRESETS |= _paper_runs(_name, _data_set)

PRESETS_HELP = """\
Presets:
  scenes-demo        the demo student: both tasks, 320x256, synthetic scenes
  scenes-demo-visible  the same without thermal, from the weights of scenes-demo
  kaist-ROLE         the paper's detection on KAIST (data/kaist)
  mfnet-ROLE         the paper's segmentation on MFNet (data/mfnet)
  msrs-ROLE-TASK     the paper's recipe on MSRS (data/msrs)
  scenes-ROLE-TASK   the same on synthetic scenes: needs no data set
  drive-ROLE-TASK    on your own drives: md_bag extract, YOLO boxes, masks
                     (data/drive)
  coco-ROLE-TASK     the same with boxes in COCO's JSON (data/coco)
  unlabelled-ROLE-TASK   on pairs without labels (data/unlabelled): students
                     that learn what --teachers see in them

ROLE is one of
  teacher            two streams, thermal at full resolution; feature-level
  student-x16        one stream distilled from the teacher, which comes first;
                     thermal with 1/16 of the pixels; also x1, x4, x64
  native-x16         the same without a teacher; x1 is image-level fusion
  student-visible    without thermal, distilled
  native-visible     without thermal, without a teacher
  native-thermal     without RGB
  decision           a network for each camera; decision-level fusion

TASK is detection, segmentation or, of natives and students, joint.
--root names another folder; full resolution is that of the set itself.
E.g. kaist-teacher, then kaist-student-x16; or msrs-native-x4-detection."""
"""The names of PRESETS, for people."""
