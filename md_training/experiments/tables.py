"""Which cells the tables have, and the paper's figures beside them.

A cell is a preset (presets.py) at a schedule, with some terms of the distillation and a seed. Tables share cells: the
native student of the resolution table is the first row of the ablation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from md_training.data.sources import MfnetData, YoloData
from md_training.data.synthetic import SceneData
from md_training.models.joint import JointSettings
from md_training.models.networks import NetworkSettings, Task
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import PRESETS, Run

DataName = Literal["scenes", "msrs", "kaist", "mfnet"]
TableName = Literal["fusion", "resolution", "ablation", "joint", "start", "inherit", "variants"]

TERMS: dict[str, dict[str, object]] = {
    "md": {},
    "s-mse": {"attention_weight": 0.0, "semantic": "mse"},
    "s-mse-matched": {"attention_weight": 0.0, "semantic": "mse_matched"},
    "s-f-mse": {"attention_weight": 0.0},
    "a": {"semantic_weight": 0.0},
    "s-weak": {"semantic_weight": 0.4},
}
"""Terms of the distillation by name: what differs from a distilled preset's settings (the paper's: both)."""


@dataclass(frozen=True)
class Published:
    """The paper's figures in percent: miss rate of detection, mean accuracy (mAcc9) of segmentation.

    error: standard error of `all` over three seeds.
    """

    day: float
    night: float
    all: float
    error: float


@dataclass(frozen=True)
class Row:
    """A row of a table.

    label: as printed. role: of presets.ROLES. terms: of TERMS, for a distilled role. blocks: the distilled student's
    network without a teacher: what its residual blocks give by themselves. together: one network for all tasks.
    scratch: from random first weights even where the data set's cells start from those of the scenes.
    long: for LONG_TIMES the steps of the schedule. long_teacher: its teacher is the one of LONG_TEACHER_SEED that is
    trained so long, not that of its own seed and steps. inherits: it starts from the weights of its teacher, a native
    role from those of the teacher that its student would have. lighter: with the `lighter` network. published: by task.
    """

    label: str
    role: str
    terms: str = "md"
    blocks: bool = False
    together: bool = False
    scratch: bool = False
    long: bool = False
    long_teacher: bool = False
    inherits: bool = False
    lighter: bool = False
    published: dict[Task, Published] = field(default_factory=dict)


def _published(detection: tuple[float, ...], segmentation: tuple[float, ...]) -> dict[Task, Published]:
    return {"detection": Published(*detection), "segmentation": Published(*segmentation)}


_VISIBLE = _published((16.95, 35.15, 22.84, 0.77), (50.83, 52.26, 55.06, 0.21))
_IMAGE = _published((10.73, 6.61, 9.40, 0.39), (54.97, 56.07, 59.42, 0.22))
_NATIVE_X16 = _published((12.09, 6.73, 10.17, 0.42), (53.85, 55.43, 58.21, 0.46))
# Table 4 prints 58.46 for the day; Tables 6 and 8 print 57.6 and 57.58 for the same model.
_MD_X16 = _published((9.85, 4.84, 8.03, 0.19), (58.46, 61.37, 63.52, 0.87))

TABLES: dict[TableName, tuple[Row, ...]] = {
    "fusion": (
        Row("visible-only", "native-visible", published=_VISIBLE),
        Row("thermal-only", "native-thermal"),
        Row("image-level", "native-x1", published=_IMAGE),
        Row(
            "feature-level (teacher)",
            "teacher",
            published=_published((9.37, 4.71, 7.77, 0.07), (57.21, 62.18, 63.45, 0.24)),
        ),
        Row(
            "decision-level",
            "decision",
            published=_published((10.74, 9.25, 10.34, 0.32), (51.72, 53.37, 56.21, 0.14)),
        ),
    ),
    "resolution": (
        Row("full resolution", "native-x1", published=_IMAGE),
        Row(
            "full resolution, MD",
            "student-x1",
            published=_published((9.45, 4.61, 7.78, 0.28), (59.71, 62.78, 64.93, 0.11)),
        ),
        Row("4x", "native-x4", published=_published((11.57, 6.51, 9.84, 0.72), (53.89, 55.18, 57.93, 0.27))),
        Row("4x, MD", "student-x4", published=_published((9.39, 5.07, 7.91, 0.11), (58.32, 61.88, 64.25, 0.11))),
        Row("16x", "native-x16", published=_NATIVE_X16),
        Row("16x, MD", "student-x16", published=_MD_X16),
        Row("64x", "native-x64", published=_published((14.92, 10.66, 13.37, 0.30), (53.68, 53.68, 57.06, 0.18))),
        Row("64x, MD", "student-x64", published=_published((10.75, 7.07, 9.50, 0.06), (57.58, 59.67, 62.62, 0.81))),
        Row("visible-only", "native-visible", published=_VISIBLE),
        Row(
            "visible-only, MD",
            "student-visible",
            published=_published((14.74, 34.13, 21.08, 0.21), (57.74, 56.67, 60.62, 0.42)),
        ),
        Row("teacher", "teacher"),
    ),
    # The order of the paper's rows three and four is not certain: the check marks of its tables are not aligned.
    "ablation": (
        Row("none", "native-x16", published=_NATIVE_X16),
        Row("residual blocks, no teacher", "student-x16", blocks=True),
        Row(
            "S (MSE)",
            "student-x16",
            "s-mse",
            published=_published((11.92, 6.69, 10.09, 0.06), (56.04, 57.87, 60.41, 0.28)),
        ),
        Row("S (MSE, scale of F-MSE)", "student-x16", "s-mse-matched"),
        Row(
            "S (F-MSE)",
            "student-x16",
            "s-f-mse",
            published=_published((10.24, 6.93, 9.11, 0.15), (57.49, 58.47, 61.16, 0.13)),
        ),
        Row("A", "student-x16", "a", published=_published((10.61, 5.83, 8.99, 0.23), (57.55, 58.46, 61.51, 0.30))),
        Row("S (F-MSE) + A", "student-x16", published=_MD_X16),
        Row("teacher", "teacher"),
    ),
    "joint": (
        Row("native, one for each task", "native-x16"),
        Row("native, one for both", "native-x16", together=True),
        Row("MD, one for each task", "student-x16"),
        Row("MD, one for both", "student-x16", together=True),
    ),
    "start": (
        Row("16x, from scratch", "native-x16", scratch=True),
        Row("16x, from scenes", "native-x16"),
        Row("teacher, from scratch", "teacher", scratch=True),
        Row("teacher, from scenes", "teacher"),
    ),
    "inherit": (
        Row("16x", "native-x16"),
        Row("16x, steps of the long teacher", "native-x16", long=True),
        Row("16x, residual blocks, no teacher, its steps", "student-x16", blocks=True, long=True),
        Row("16x, teacher's weights", "native-x16", inherits=True),
        Row("16x, long teacher's weights", "native-x16", long_teacher=True, inherits=True),
        Row("16x, MD", "student-x16"),
        Row("16x, MD, teacher's weights", "student-x16", inherits=True),
        Row("16x, MD, long teacher", "student-x16", long_teacher=True),
        Row("16x, MD, long teacher's weights", "student-x16", long_teacher=True, inherits=True),
        Row("16x, MD, long teacher, its steps", "student-x16", long=True, long_teacher=True),
        Row("teacher", "teacher"),
    ),
    "variants": (
        Row("16x", "native-x16"),
        Row("16x, MD", "student-x16"),
        Row("16x, MD, long teacher", "student-x16", long_teacher=True),
        Row("16x, MD, lighter", "student-x16", lighter=True),
        Row("visible-only", "native-visible"),
        Row("visible-only, MD", "student-visible"),
        Row("visible-only, MD, long teacher", "student-visible", long_teacher=True),
        Row("visible-only, MD, weak S", "student-visible", "s-weak"),
        Row("visible-only, S (F-MSE)", "student-visible", "s-f-mse"),
        Row("visible-only, A", "student-visible", "a"),
        Row("visible-only, residual blocks, no teacher", "student-visible", blocks=True),
        Row("teacher", "teacher"),
    ),
}
LONG_TIMES = 3
"""The steps of long runs, in those of the schedule."""
LONG_TEACHER_SEED = 1
"""Of the one long teacher, whose students have the seeds of the others."""


@dataclass(frozen=True)
class Schedule:
    """What a machine can afford, instead of the preset's; the recipe for training from scratch.

    The names of results carry `name`, so that figures of different schedules are never mixed.
    """

    name: str
    input_size: tuple[int, int]
    steps: int
    batch_size: int
    scenes: int
    evaluation_scenes: int = 300
    fine_tuning_steps: int = 300
    """Of cells that start from those of the scenes."""
    output_stride: Literal[8, 16, 32] = 32
    """Of segmentation: at half the paper's width 16 leaves a network the cells that it has there. One that only
    segments is dilated to it, so that it still reads one level, the one that is distilled; others refine by laterals.
    """
    class_weights: Literal["none", "sqrt_inverse"] = "none"
    """Of segmentation."""
    one_thermal_mean: bool = True
    """See NetworkSettings; False where the first cells were trained before there was a choice."""


SCHEDULES: dict[str, Schedule | None] = {
    "paper": None,
    "small": Schedule(
        "small",
        (320, 256),
        steps=1000,
        batch_size=8,
        scenes=2000,
        output_stride=16,
        class_weights="sqrt_inverse",
        one_thermal_mean=False,
    ),
    "check": Schedule(
        "check", (160, 128), steps=300, batch_size=8, scenes=200, evaluation_scenes=60, one_thermal_mean=False
    ),
    "smoke": Schedule("smoke", (96, 64), steps=4, batch_size=2, scenes=8, evaluation_scenes=6, fine_tuning_steps=2),
}
"""By name. `paper`: the presets as they are. `small`: hours on two cores. `check`: minutes a cell; a
test runs one again and compares it with its record. `smoke`: seconds, proves nothing."""

SMALL_ANCHORS = RetinaNetSettings(anchor_side=13.0, anchor_ratios=(0.35, 0.8, 1.6), anchor_columns=2)
"""For 320x256, where persons are half as high: those of the demo student."""
FOLDS: dict[DataName, int] = {"msrs": 5}
"""Of the cross-validation of a data set that is too small to be held out in part; others have none."""
FROM_SCENES: tuple[DataName, ...] = ("msrs",)
"""Data sets whose cells start from those of the same role, schedule and seed on scenes, unless a row says scratch."""
EVALUATION_SCENES = 1000
"""Held-out scenes on which the paper's schedule is scored."""


@dataclass(frozen=True)
class Cell:
    """One training. terms, blocks, scratch, long, long_teacher, inherits, lighter: as in Row. tasks: one, or both at
    once. fold: of the data set's FOLDS."""

    data: DataName
    role: str
    tasks: tuple[Task, ...]
    terms: str
    blocks: bool
    seed: int
    schedule: str
    scratch: bool = False
    long: bool = False
    long_teacher: bool = False
    inherits: bool = False
    lighter: bool = False
    fold: int = 0

    @property
    def name(self) -> str:
        """Return the name of its folder and record: unique in a schedule and data set."""
        kind = "joint" if len(self.tasks) > 1 else self.tasks[0]
        details = "-blocks" if self.blocks else "" if self.terms == "md" else f"-{self.terms}"
        named = ("long_teacher", "long", "inherits", "lighter")
        details += "".join(f"-{name.replace('_', '-')}" for name in named if getattr(self, name))
        start = "-scratch" if self.scratch else ""
        fold = f"-f{self.fold}" if self.data in FOLDS else ""
        return f"{kind}-{self.role}{details}{start}-s{self.seed}{fold}"

    @property
    def study(self) -> str:
        """Return what its cells can be compared with: data set and schedule."""
        return f"{self.data}-{self.schedule}"

    @property
    def start(self) -> "Cell | None":
        """Return the cell whose weights it starts from, None for those of the preset."""
        if self.inherits:
            return self._taught_by(self.tasks[0])
        if self.data not in FROM_SCENES or self.scratch:
            return None
        return replace(self, data="scenes", fold=0)

    @property
    def is_distilled(self) -> bool:
        return self.role.startswith("student") and not self.blocks

    @property
    def teachers(self) -> tuple["Cell", ...]:
        """Return the teachers that it learns from, one of each task, of its own seed or the long ones."""
        return tuple(map(self._taught_by, self.tasks)) if self.is_distilled else ()

    @property
    def needs(self) -> tuple["Cell", ...]:
        """Return the cells of its own study that have to be trained first."""
        first = (self._taught_by(self.tasks[0]),) if self.inherits else ()
        return tuple(dict.fromkeys((*self.teachers, *first)))

    def _taught_by(self, task: Task) -> "Cell":
        seed = LONG_TEACHER_SEED if self.long_teacher else self.seed
        long, fold = self.long_teacher, self.fold
        return Cell(self.data, "teacher", (task,), "md", False, seed, self.schedule, self.scratch, long, fold=fold)

    def run(self, folder: Path, weights: str = "") -> Run:
        """Return the run. folder: of all cells' folders. weights: first ones of the backbone instead of the preset's.

        Raises ValueError where the data set does not have such a preset.
        """
        kind = "-joint" if len(self.tasks) > 1 else f"-{self.tasks[0]}"
        names = [f"{self.data}-{self.role}{kind}", f"{self.data}-{self.role}"]
        preset = next((PRESETS[name][1] for name in names if name in PRESETS), None)
        if preset is None or not set(self.tasks) <= set(preset.network.tasks):
            raise ValueError(f"{self.data} has no {self.role} for {' and '.join(self.tasks)}")
        run = replace(
            preset,
            name=f"{self.study}-{self.name}",
            seed=self.seed,
            teachers=tuple(str(folder / teacher.name / "checkpoint.pt") for teacher in self.teachers),
            distillation=replace(preset.distillation, **TERMS[self.terms]),  # type: ignore[arg-type]
            backbone_weights="none" if self.scratch else weights or preset.backbone_weights,
        )
        if self.start is not None:
            there = folder.parent / self.start.study / self.start.name / "checkpoint.pt"
            run = replace(run, first_weights=str(there), backbone_weights="none")
        if isinstance(run.data, YoloData) and self.data in FOLDS:
            run = replace(run, data=replace(run.data, folds=FOLDS[self.data], fold=self.fold))
        if not isinstance(run.data, SceneData):
            # What the figures are of is looked at once, when the training is over.
            data = replace(run.data, evaluation_pairs=0)
            run = replace(run, data=replace(data, evaluation_split="test") if isinstance(data, MfnetData) else data)
        schedule = SCHEDULES[self.schedule]
        run = run if schedule is None else _scaled(run, schedule, self.start is not None and not self.inherits)
        if self.lighter:
            run = replace(run, network=lighter(run.network))
        return _prolonged(run) if self.long else run


def lighter(network: NetworkSettings) -> NetworkSettings:
    """Return a student that costs 0.57 of its teacher in detection, instead of 0.69, and 0.55 instead of 0.60 in
    segmentation: three quarters of the neck's and the towers' channels, and the cheaper residual block on C5, too.
    """

    def cheaper(joint: JointSettings) -> JointSettings:
        return replace(joint, c5="bottleneck") if joint.c5 == "basic" else joint

    return replace(
        network,
        detection=replace(network.detection, channels=network.detection.channels * 3 // 4),
        detection_joint=cheaper(network.detection_joint),
        segmentation_joint=cheaper(network.segmentation_joint),
    )


def _prolonged(run: Run) -> Run:
    steps = LONG_TIMES * run.optimisation.steps
    evaluate_every = LONG_TIMES * run.evaluate_every
    return replace(run, optimisation=replace(run.optimisation, steps=steps), evaluate_every=evaluate_every)


def _scaled(run: Run, schedule: Schedule, fine_tuned: bool) -> Run:
    data, detection, before = run.data, run.network.detection, run.network.input_size[0]
    if isinstance(data, SceneData | YoloData):
        detection, before = SMALL_ANCHORS, 320
    if isinstance(data, SceneData):
        data = replace(data, scenes=schedule.scenes, evaluation_scenes=0)
    steps = schedule.fine_tuning_steps if fine_tuned else schedule.steps
    segmentation, class_weights = run.network.segmentation, run.optimisation.class_weights
    if "segmentation" in run.network.tasks and schedule.output_stride != 32:
        alone = run.network.tasks == ("segmentation",)
        segmentation = replace(segmentation, output_stride=schedule.output_stride, dilated=alone)
    if "segmentation" in run.network.tasks:
        class_weights = schedule.class_weights
    return replace(
        run,
        data=data,
        network=replace(
            run.network,
            input_size=schedule.input_size,
            detection=replace(detection, anchor_side=detection.anchor_side * schedule.input_size[0] / before),
            segmentation=segmentation,
            one_thermal_mean=schedule.one_thermal_mean,
        ),
        optimisation=replace(
            run.optimisation,
            steps=steps,
            batch_size=schedule.batch_size,
            optimiser="adamw",
            learning_rate=1e-3,
            warmup_steps=min(100, steps),
            weight_decay=0.02,
            class_weights=class_weights,
            clip_norm=10.0,
        ),
        evaluate_every=steps + 1,
        checkpoint_every=250,
    )


def cells(
    table: TableName, data: DataName, tasks: Sequence[Task], seeds: Iterable[int], schedule: str
) -> list[tuple[Row, Cell]]:
    """Return the cells of a table, each beside its row, in an order in which teachers come before their students.

    Teachers that the table's students need and that are no row of it come with the row `teacher`, or `long teacher`.
    """
    found: list[tuple[Row, Cell]] = []
    for seed in seeds:
        for row in TABLES[table]:
            for group in [tuple(tasks)] if row.together else [(task,) for task in tasks]:
                cell = Cell(
                    data,
                    row.role,
                    group,
                    row.terms,
                    row.blocks,
                    seed,
                    schedule,
                    scratch=row.scratch,
                    long=row.long,
                    long_teacher=row.long_teacher,
                    inherits=row.inherits,
                    lighter=row.lighter,
                )
                found += [(row, replace(cell, fold=fold)) for fold in range(FOLDS.get(data, 1))]
    there = {cell for _, cell in found}
    extra = dict.fromkeys(teacher for _, cell in found for teacher in cell.needs if teacher not in there)
    found += [(Row("long teacher" if teacher.long else "teacher", "teacher"), teacher) for teacher in extra]
    return sorted(found, key=lambda entry: (entry[1].seed, bool(entry[1].needs)))
