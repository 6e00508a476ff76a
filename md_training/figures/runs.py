"""From checkpoints and result files to the pictures of the paper."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from md_perception.annotations.kaist import IMPROVED_TEST_SHA256, read_test_annotations
from md_perception.labels import DETECTION
from md_perception.metrics.miss_rate import table
from md_training.checkpoint import Checkpoint, load
from md_training.data.augment import Augmentation
from md_training.figures.curves import Curves, kaist_curves, kaist_test, miss_rate_figure, network_curves
from md_training.figures.drawings import (
    Model,
    View,
    attention_panels,
    maps_of,
    masks_of,
    training_panels,
    weight_panels,
)
from md_training.figures.pages import Page, Row, Style, box_legend, mask_legend, save, save_pages
from md_training.figures.samples import HeldOut
from md_training.losses import IGNORED_PIXEL
from md_training.models.networks import Task
from md_training.train import load_teachers

log = logging.getLogger(__name__)

CAMERA_TITLES = ("RGB", "thermal, stretched")
NATIVE, DISTILLED, TEACHER = "native", "distilled", "teacher"
TASKS: tuple[Task, ...] = get_args(Task)


def load_models(
    native: Path | None, distilled: Path | None, teachers: Sequence[Path], others: Mapping[str, Path]
) -> tuple[list[Model], list[Model]]:
    """Return all networks to show, and those among them that teach the distilled one; none where they are not there.

    Raises ValueError where a checkpoint is not what its option says, or student and teachers do not fit.
    """
    if reserved := {NATIVE, DISTILLED, TEACHER} & others.keys():
        raise ValueError(f"--others {min(reserved)}: this label has an option of its own, --{min(reserved)}")
    models: list[Model] = []
    if native is not None:
        models.append(Model(NATIVE, load(native)))
        if models[0].checkpoint.run.teachers:
            raise ValueError(f"{native} was distilled from {models[0].checkpoint.run.teachers[0]}: use --distilled")
    student: Model | None = None
    if distilled is not None:
        student = Model(DISTILLED, load(distilled))
        models.append(student)
        if not student.checkpoint.run.teachers:
            raise ValueError(f"{distilled} was trained without a teacher: use --native")
        if native is not None and not set(models[0].tasks) & set(student.tasks):
            raise ValueError(
                f"{native} does {' and '.join(models[0].tasks)}, {distilled} {' and '.join(student.tasks)}: nothing to "
                "compare; draw them one by one"
            )
    models += [Model(label, load(path)) for label, path in others.items()]
    if student is None:
        named = [load(path) for path in teachers]
    else:
        named = _teachers_of(student, teachers)
    taught = [Model(TEACHER if len(named) == 1 else f"{TEACHER} {one.run.name}", one) for one in named]
    return models + taught, taught if student is not None else []


def _teachers_of(student: Model, given: Sequence[Path]) -> list[Checkpoint]:
    """Return the teachers that are given or, if they are there, those that the run names. Raises ValueError."""
    run, taught_by = student.checkpoint.run, student.checkpoint.teachers
    missing = [path for path in run.teachers if not Path(path).is_file()]
    if missing and not given:
        log.warning("no weights and attention: the teacher %s is not there; name it with --teacher", missing[0])
        return []
    named = load_teachers(replace(run, teachers=tuple(map(str, given)) or run.teachers))
    for one in named:
        if taught_by and one.run_id not in taught_by:
            log.warning("%s did not teach the distilled run, %s did", one.run_id, ", ".join(taught_by))
    return named


def draw_results(
    out: Path, models: Sequence[Model], shown: HeldOut, views: Sequence[View], threshold: float, style: Style
) -> list[Path]:
    """Draw detections and masks side by side (the paper's Figs. 2 and 3), each for the models with that task."""
    written = []
    for task in TASKS:
        mine = [model for model in models if task in model.tasks]
        if not mine:
            continue
        outputs = [view.predicted(mine, threshold) for view in views]
        annotated = shown.detection_classes if task == "detection" else shown.segmentation_classes
        columns = [*CAMERA_TITLES, *(["ground truth"] if annotated else []), *(model.label for model in mine)]
        caption = f"{shown.title}. {'; '.join(map(str, mine))}."
        if task == "detection":
            rows = [view.detection_row(each, annotated) for view, each in zip(views, outputs, strict=True)]
            classes = [name for name in DETECTION.classes if any(name in model.classes for model in mine)]
            caption += f" Detections from score {threshold:g}."
            if annotated:
                caption += f" Found and false count {', '.join(annotated)}, at an overlap of at least 0.5."
            page = Page(columns, caption, box_legend(classes, ignored=bool(annotated)))
        else:
            rows = [view.mask_row(each, bool(annotated)) for view, each in zip(views, outputs, strict=True)]
            masks = [mask for each in outputs for mask in masks_of(each)]
            page = Page(columns, caption, mask_legend(masks + [view.sample.mask for view in views if annotated]))
        written += save_pages(out / {"detection": "detections", "segmentation": "masks"}[task], page, rows, style)
    return written


def draw_transfer(
    out: Path, student: Model, teachers: Sequence[Model], shown: HeldOut, views: Sequence[View], style: Style
) -> list[Path]:
    """Draw, for each distilled task, the weights of F-MSE (the paper's Fig. 4) and both attention masks."""
    pairs = [(view, maps_of(student, teachers, view.of(student))) for view in views]
    maps = pairs[0][1]
    settings = student.checkpoint.run.distillation
    taught = [teacher for teacher in teachers if set(teacher.tasks) & set(student.tasks)]
    about = f"{shown.title}. {student}; {'; '.join(map(str, taught))}."
    softmax = f"logits {settings.logits}, temperature {settings.temperature:g}, divided by each picture's largest"
    used = "" if settings.semantic == "f_mse" else f" (the run's own loss was {settings.semantic})"
    written = []
    for task in TASKS:
        levels = [level.upper() for of_task, level in maps if of_task == task]
        if not levels:
            continue
        weights = [view.row(weight_panels(student, view.of(student), seen, task)) for view, seen in pairs]
        columns = [*CAMERA_TITLES, *(f"F-MSE weight {level}" for level in levels)]
        page = Page(columns, f"{about} Weights of F-MSE, Eq. 4{used}: {softmax}.", bar="weight / largest weight")
        written += save_pages(out / f"weights-{task}", page, weights, style)
        if all(level.student is not None for (of_task, _), level in maps.items() if of_task == task):
            attention = [view.row(attention_panels(student, view.of(student), seen, task)) for view, seen in pairs]
            columns = [*CAMERA_TITLES, *(f"{who} {level}" for level in levels for who in ("teacher", "student"))]
            page = Page(columns, f"{about} Attention masks of {task}, Eq. 3.", bar="attention")
            written += save_pages(out / f"attention-{task}", page, attention, style)
    return written


def draw_training(
    out: Path, models: Sequence[Model], shown: HeldOut, views: Sequence[View], style: Style
) -> list[Path]:
    """Draw the samples as a training sees them: of the first model or, without any, with the default augmentation."""
    draws = 2
    if models:
        run = models[0].checkpoint.run
        size, augmentation, whose = run.network.input_size, run.augmentation, f"run {run.name}"
    else:
        height, width = views[0].sample.mask.shape
        size, augmentation, whose = (
            (-(-width // 32) * 32, -(-height // 32) * 32),
            Augmentation(),
            "default augmentation",
        )
    samples = [view.of(models[0]) if models else view.sample for view in views]
    rows = [
        Row(view.label, training_panels(sample, size, augmentation, draws, seed))
        for seed, (view, sample) in enumerate(zip(views, samples, strict=True))
    ]
    names = ["as read", *(f"augmented {number}" for number in range(1, draws + 1))]
    columns = [f"{camera}, {name}" for name in names for camera in ("RGB", "thermal")]
    legend = box_legend(shown.detection_classes, ignored=True) if shown.detection_classes else {}
    if shown.segmentation_classes:
        padding = np.full((1, 1), IGNORED_PIXEL, np.uint8)
        legend |= {
            f"{name} (mask)": colour for name, colour in mask_legend([padding, *(s.mask for s in samples)]).items()
        }
    caption = f"{shown.title}. What a training at {size[0]}x{size[1]} sees, {whose}."
    return save_pages(out / "training-views", Page(columns, caption, legend), rows, style)


def draw_curves(
    out: Path,
    models: Sequence[Model],
    shown: HeldOut | None,
    class_name: str,
    files: Mapping[str, Path],
    annotations: Path | None,
    style: Style,
) -> list[Path]:
    """Draw the miss rates of the models on all that is shown and of files of detections on KAIST's test set.

    Raises ValueError where the two are not on the same images, or what is shown has no such class.
    """
    curves: dict[str, Curves] = {}
    about = [shown.title if models and shown is not None else "KAIST test set", *map(str, models)]
    if models:
        assert shown is not None
        if class_name not in shown.detection_classes:
            log.warning("no miss rate: %s does not annotate %s", shown.title, class_name)
            if not files:
                return []
            models, about = [], ["KAIST test set"]
        elif files and kaist_test(shown) is None:
            raise ValueError(
                f"--detections are on KAIST's whole test set, the runs are shown on {shown.title}: draw their curves "
                "apart, or the pictures with --no-miss-rate"
            )
    for model in models:
        assert shown is not None
        results = out / f"detections-{model.label.replace(' ', '-')}.txt"
        log.info("%s: %d samples of %s", model.label, len(shown.names), shown.title)
        network, source = model.checkpoint.network, model.checkpoint.run.data
        curves[model.label] = network_curves(network, shown, source, class_name, results)
    if annotations is not None:
        truth = read_test_annotations(annotations)
        if truth.sha256 != IMPROVED_TEST_SHA256:
            log.warning("%s is not the released file of improved test annotations: not comparable", annotations)
        curves |= {label: kaist_curves(truth, path) for label, path in files.items()}
        about += [f"{label}: {path.name}" for label, path in files.items()]
    if not curves:
        return []
    for label, of_label in curves.items():
        print(f"{label}\n{table(of_label.values())}\n")
    rules = "Rules of the KAIST benchmark's MATLAB code"
    if not files and (shown is None or kaist_test(shown) is None):
        rules += ", but for its attributes: every object counts that is not flagged as ignored"
    rules += "; dots: the nine references of the log-average miss rate."
    figure = miss_rate_figure(curves, f"{'; '.join(about)}. {rules}", style.width_in)
    return save(figure, out / "miss-rate", style)
