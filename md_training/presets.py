"""Runs by name: everything that decides what a training does, in one frozen dataclass that is printed and saved."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import TypeAdapter, ValidationError

from md_training.data.augment import Augmentation
from md_training.data.sources import KaistData, MfnetData, Source, YoloData
from md_training.data.synthetic import SceneData
from md_training.distillation import DistillationSettings
from md_training.models.joint import DETECTION_JOINT, SEGMENTATION_JOINT
from md_training.models.networks import Architecture, NetworkSettings, Task
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import LIGHT, RetinaNetSettings, pedestrian_anchors


@dataclass(frozen=True)
class Optimisation:
    """Linear warm-up, then half a cosine to (almost) 0. The defaults are the paper's recipe for detection."""

    steps: int = 3500
    """Optimiser steps."""
    batch_size: int = 16
    """Images per step."""
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
    seed: int = 1
    """Of the first weights, the order of the samples and their augmentation."""
    log_every: int = 20
    """Steps between two lines of the log."""
    evaluate_every: int = 1000
    """Steps between two evaluations on held-out samples."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        if min(self.log_every, self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("log_every, evaluate_every and checkpoint_every are steps: at least 1")
        if self.teachers and self.network.architecture != "one_stream":
            raise ValueError(f"teachers teach a one_stream student, not a {self.network.architecture} network")

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


PRESETS: dict[str, tuple[str, Run]] = {
    "scenes-demo": (
        "The demo student: detection and segmentation, RGB and 160x128 thermal, 320x256 network, on synthetic scenes.",
        Run(
            name="scenes-demo",
            network=NetworkSettings(
                input_size=(320, 256),
                # Of the scenes' persons (at this size 10 to 110 px high), 90 % overlap an anchor by half or more, of
                # bicycles 97 %, of cars 91 %; one column of anchors reaches 70 % of the persons.
                detection=RetinaNetSettings(anchor_side=13.0, anchor_ratios=(0.35, 0.8, 1.6), anchor_columns=2),
                # At 320x256 a cone is a few pixels: logits of stride 32 could not show it.
                segmentation=PSPNetSettings(output_stride=4, auxiliary=False),
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
        ),
    ),
}
"""Name to (what it is for, run)."""

_STEPS: dict[Task, int] = {"detection": 3500, "segmentation": 14_000}  # the paper's, of 16 images


def _paper_runs(
    name: str, what: str, task: Task, full: Source, coarse: Source, settings: NetworkSettings, weights: str
) -> dict[str, tuple[str, Run]]:
    """Return the paper's recipe on one data set: the teacher, the native student and the distilled one.

    name: of the runs, with {} for the role. full, coarse: the data with the teacher's thermal sensor and with the
    student's (x16: 4 px per side become one). weights: first ones of the backbone.
    """
    teacher, native, student = (name.format(role) for role in ("teacher", "native-x16", "student-x16"))
    settings = replace(settings, tasks=(task,))
    recipe = Optimisation(steps=_STEPS[task])
    distilled = (
        replace(settings, detection_joint=DETECTION_JOINT)
        if task == "detection"
        else replace(settings, segmentation_joint=SEGMENTATION_JOINT)
    )
    runs: tuple[tuple[str, str, Architecture, NetworkSettings, Source, tuple[str, ...]], ...] = (
        (f"two-stream teacher, {what}, thermal at full resolution", teacher, "two_stream", settings, full, ()),
        (f"student without a teacher, {what}, thermal x16 coarser", native, "one_stream", settings, coarse, ()),
        (
            f"student distilled from {teacher}, {what}, thermal x16 coarser",
            student,
            "one_stream",
            distilled,
            coarse,
            (f"runs/{teacher}/checkpoint.pt",),
        ),
    )
    return {
        run_name: (
            f"The paper's {task}: {text}.",
            Run(
                name=run_name,
                network=replace(network, architecture=architecture),
                data=data,
                optimisation=recipe,
                teachers=teachers,
                backbone_weights=weights,
            ),
        )
        for text, run_name, architecture, network, data, teachers in runs
    }


_FULL, _X16 = SceneData(thermal_size=(640, 512)), SceneData(thermal_size=(160, 128))
_KAIST, _MFNET = KaistData(Path("data/kaist")), MfnetData(Path("data/mfnet"))
_MSRS = YoloData(Path("data/msrs"), published="msrs")
_PERSONS = NetworkSettings(detection_classes=("person",), detection=pedestrian_anchors(LIGHT))
_WIDE = NetworkSettings(input_size=(640, 480))
PRESETS |= (
    _paper_runs("scenes-{}-detection", "synthetic scenes", "detection", _FULL, _X16, NetworkSettings(), "none")
    | _paper_runs("scenes-{}-segmentation", "synthetic scenes", "segmentation", _FULL, _X16, NetworkSettings(), "none")
    | _paper_runs("kaist-{}", "KAIST", "detection", _KAIST, replace(_KAIST, downsample=4), _PERSONS, "imagenet")
    | _paper_runs("mfnet-{}", "MFNet", "segmentation", _MFNET, replace(_MFNET, downsample=4), _WIDE, "imagenet")
    | _paper_runs("msrs-{}-detection", "MSRS", "detection", _MSRS, replace(_MSRS, downsample=4), _WIDE, "imagenet")
    | _paper_runs(
        "msrs-{}-segmentation", "MSRS", "segmentation", _MSRS, replace(_MSRS, downsample=4), _WIDE, "imagenet"
    )
)
