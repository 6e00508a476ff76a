"""The command `figures`: what a user can ask for."""

import logging
from pathlib import Path

from md_perception.labels import DETECTION

log = logging.getLogger(__name__)


def figures_command(
    out: Path,
    native: Path | None = None,
    distilled: Path | None = None,
    teacher: tuple[Path, ...] = (),
    others: dict[str, Path] | None = None,
    data: Path | None = None,
    split: str = "",
    samples: int = 6,
    names: tuple[str, ...] = (),
    score_threshold: float = 0.3,
    miss_rate: bool = True,
    miss_rate_class: str = "person",
    scenes: int = 300,
    detections: dict[str, Path] | None = None,
    annotations: Path | None = None,
    training_views: bool = False,
    width: float = 7.0,
    pdf: bool = False,
    device: str = "cpu",
) -> None:
    """Draw the paper's Figs. 2 to 4 for your runs: results side by side, what the distillation looks at, miss rate.

    Whatever the given files allow is drawn, as PNG of 300 dpi: detections and masks (native, distilled, teacher, truth)
    on held-out samples; for a distilled run and its teachers the weights of F-MSE over the image and the attention
    masks; the miss rate of persons over false positives per image.

    Args:
        out: Folder for the pictures (made if missing).
        native: checkpoint.pt of a student trained without a teacher.
        distilled: checkpoint.pt of a distilled student.
        teacher: checkpoint.pt of its teachers, one per task; by default those that its run names.
        others: More checkpoints, `--others LABEL PATH LABEL PATH`.
        data: Folder of a data set to show instead of the runs' own evaluation split: KAIST, MFNet, YOLO or COCO boxes,
            or unlabelled pairs.
        split: List of that folder; by default all of its pairs.
        samples: How many samples, half by day and half by night.
        names: Show these, e.g. set09/V000/I01139, or the seeds of scenes.
        score_threshold: Least score of a detection that is drawn. The miss rate does not depend on it.
        miss_rate: Run all detectors over the whole evaluation split and draw the miss-rate curves.
        miss_rate_class: What their curves count.
        scenes: Held-out scenes of that curve, for runs on scenes.
        detections: Files of detections on KAIST's test set for the same plot, `--detections LABEL FILE LABEL FILE`.
        annotations: KAIST_annotation.json for those files.
        training_views: Also draw what the training sees of the samples: as read, and twice augmented.
        width: Of the pages, inches; 7 is the text of a two-column paper.
        pdf: Also write each picture as PDF.
        device: `cpu`, `cuda` or `cuda:N`.
    """
    # matplotlib is for this command alone: the others do not wait for it.
    from md_training.figures.drawings import UNCHANGED, View
    from md_training.figures.pages import Style
    from md_training.figures.runs import (
        DISTILLED,
        draw_curves,
        draw_results,
        draw_training,
        draw_transfer,
        load_models,
    )
    from md_training.figures.samples import HeldOut, chosen, held_out

    style = Style(width, pdf)
    if samples < 1 or scenes < 1:
        raise ValueError(f"--samples {samples} --scenes {scenes}: at least 1 each")
    models, taught = load_models(native, distilled, teacher, others or {})
    files = detections or {}
    if not (models or files or (training_views and data)):
        raise ValueError(
            "there is nothing to draw: give checkpoints (--native, --distilled, --teacher, --others), result files "
            "(--detections with --annotations), or --training-views with --data"
        )
    if miss_rate_class not in DETECTION.classes:
        raise ValueError(f"--miss-rate-class {miss_rate_class}: use one of {', '.join(DETECTION.classes)}")
    if bool(files) != (annotations is not None):
        raise ValueError("--detections and --annotations belong together: result files and what they are scored on")
    if both := files.keys() & {model.label for model in models}:
        raise ValueError(f"{', '.join(sorted(both))} is the label of a checkpoint and of a result file: rename one")
    out.mkdir(parents=True, exist_ok=True)
    for model in models:
        model.checkpoint.network.to(device)

    written: list[Path] = []
    shown: HeldOut | None = None
    if models or data is not None:
        shown = held_out([model.checkpoint.run.data for model in models], data, split, scenes)
        picked = chosen(shown, models[0].checkpoint.run.data if models else UNCHANGED, samples, names)
        log.info("%s: %s", shown.title, ", ".join(picked))
        views = [View(shown, name, models) for name in picked]
        if models:
            written += draw_results(out, models, shown, views, score_threshold, style)
        if taught:
            student = next(model for model in models if model.label == DISTILLED)
            written += draw_transfer(out, student, taught, shown, views, style)
        if training_views:
            written += draw_training(out, models, shown, views, style)
    detectors = [model for model in models if "detection" in model.tasks] if miss_rate else []
    if detectors or files:
        written += draw_curves(out, detectors, shown, miss_rate_class, files, annotations, style)
    for path in written:
        print(path)
