"""The model card beside an exported student: what it is, what made it, what it reached, what it is not for."""

from pathlib import Path

from md_perception.inference.manifest import Manifest
from md_training.checkpoint import Checkpoint
from md_training.presets import PRESETS

_ARCHITECTURES = {
    "one_stream": "one stream",
    "two_stream": "two streams joined by GAFF",
    "decision": "one network a camera, decisions averaged",
}


def write_model_card(path: Path, student: Path, manifest: Manifest, checkpoint: Checkpoint | None) -> None:
    """Write the card, Markdown. path: of the card. student: the ONNX file that it describes. checkpoint: what it was
    made of; without it the card says less of the training.
    """
    thermal = manifest.thermal
    width, height = manifest.input_size
    facts = {
        "file": f"`{student.name}`, {student.stat().st_size / 1e6:.1f} MB, weights in {manifest.weights_storage}",
        "tasks": " and ".join(manifest.tasks),
        "input": "RGB of any size"
        + (
            f", thermal made for {thermal.sensor_size[0]}x{thermal.sensor_size[1]}, 8 bit after a gain control"
            if thermal
            else ""
        ),
        "network": f"{width}x{height}, computes in {manifest.precision}",
        "detection classes": ", ".join(manifest.detection_classes) or "none",
        "segmentation classes": ", ".join(manifest.segmentation_classes) or "none",
        "training data": manifest.training_data,
        **({} if checkpoint is None else _training(checkpoint)),
        "run": f"{manifest.run_id}, git revision {manifest.git_revision}",
        "exported": manifest.created,
        "weights SHA-256": f"`{manifest.weights_sha256}`",
    }
    if manifest.git_revision.endswith("-dirty"):
        facts["run"] += " (with changes that were not committed yet)"
    preset = None if checkpoint is None else PRESETS.get(checkpoint.run.name)
    if checkpoint is not None and preset is not None and preset[1] == checkpoint.run:
        facts["made by"] = f"`python -m md_training train {checkpoint.run.name}`, then `evaluate` and `export`"
    lines = [f"# Model card: {manifest.name}", ""]
    if not manifest.seen_real_images:
        lines += [
            "**This student has never seen a real image.** It shows that the package works; it is not fit to steer or "
            "stop a vehicle. The node warns while it runs it.",
            "",
        ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]
    if manifest.metrics:
        lines += [
            "## What it reached",
            "",
            "Figures of the checkpoint before export, from `python -m md_training evaluate CHECKPOINT`; those that "
            "name a precision are of exported files, on the same samples, from `python -m md_training export`. "
            f"`python -m md_training evaluate {student.name}` scores the file itself, as the node runs it. In scenes "
            "dusk counts as day, and objects lower than 20 px (at 512 rows) or heavily occluded are ignored. AP: "
            "COCO's, over IoU 0.50 to 0.95. MR2: log-average miss rate by the KAIST benchmark's rules, lower is "
            "better. mAcc9 and mIoU9 count class 0; a class without truth counts as 0.",
            "",
            *_metrics_table(manifest.metrics),
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _training(checkpoint: Checkpoint) -> dict[str, str]:
    run = checkpoint.run
    options = run.optimisation
    weights = "random" if run.backbone_weights == "none" else run.backbone_weights
    if run.first_weights:
        weights = f"those of `{Path(run.first_weights).absolute().parent.name}` where they fit, else {weights}"
    return {
        "architecture": f"ResNet-18, {_ARCHITECTURES[run.network.architecture]}",
        "first weights": weights,
        "steps": f"{checkpoint.step} of {options.batch_size} images, {options.optimiser}, "
        f"learning rate {options.learning_rate:g}, seed {run.seed}",
    }


def _metrics_table(metrics: dict[str, float]) -> list[str]:
    """Return a table with a row for each figure and a column for each subset, from names like `AP50 [scenes, day]`, and
    a line for each miss rate, whose name is one whole: `MR2[reasonable,all]`."""
    subsets: list[str] = []
    rows: dict[str, dict[str, float]] = {}
    miss_rates = {name: value for name, value in metrics.items() if name.startswith("MR2[")}
    for name, value in metrics.items():
        if name in miss_rates:
            continue
        figure, _, subset = name.partition(" [")
        subset = subset.rstrip("]")
        if subset not in subsets:
            subsets.append(subset)
        rows.setdefault(figure, {})[subset] = value
    table = ["| | " + " | ".join(subsets) + " |", "|---|" + "---|" * len(subsets)]
    for figure, values in rows.items():
        cells = [f"{values[subset]:.3f}" if subset in values else "" for subset in subsets]
        table.append(f"| {figure} | " + " | ".join(cells) + " |")
    return [*table, *([""] if miss_rates else []), *(f"- {name}: {value:.4f}" for name, value in miss_rates.items())]
