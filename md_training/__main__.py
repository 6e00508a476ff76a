"""Command line of the training package: `python -m md_training {data,train,evaluate,export,miss-rate} --help`."""

import json
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.logging import RichHandler

from md_perception.inference.session import Student
from md_training.data.check import data_command
from md_training.miss_rate import miss_rate_command
from md_training.presets import PRESETS, Run

log = logging.getLogger("md_training")

if TYPE_CHECKING:
    PresetRun = Run
else:  # on the command line a run is one of the presets, a subcommand each
    PresetRun = Annotated[
        tyro.extras.subcommand_type_from_defaults(
            {name: run for name, (_, run) in PRESETS.items()},
            {name: description for name, (description, _) in PRESETS.items()},
        ),
        tyro.conf.arg(name=""),
    ]


def train(
    run: PresetRun,
    out: Path | None = None,
    workers: int = max(1, (os.cpu_count() or 2)),
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = True,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Train a preset, e.g. `train scenes-demo`; every setting of the run can be overridden by its option.

    Args:
        run: Name of the preset; `train NAME --help` lists its settings.
        out: Folder for checkpoint.pt, run.json, metrics.jsonl and TensorBoard; by default runs/NAME.
        workers: Processes that render scenes before the training starts.
        device: `cpu`, `cuda` or `cuda:N`.
        resume: Go on from the folder's checkpoint.pt, exactly as if the run had not stopped; start where there is none.
        tensorboard: Write TensorBoard's events beside metrics.jsonl.
        image_size: Width and height of the network's input, multiples of 32; by default the preset's.
    """
    from md_training.train import train as run_training

    if image_size is not None:
        run = replace(run, network=replace(run.network, input_size=image_size))
    run_training(
        run, out or Path("runs") / run.name, workers=workers, device=device, resume=resume, tensorboard=tensorboard
    )


def evaluate(
    file: tyro.conf.Positional[Path],
    scenes: int = 300,
    workers: int = max(1, (os.cpu_count() or 2)),
    device: str = "cpu",
    json_out: Path | None = None,
) -> None:
    """Score a checkpoint, or an exported student as the node would run it: all, day and night.

    A checkpoint of a data set is scored on all of its evaluation split, everything else on held-out scenes.

    The figures of a checkpoint are kept in it and go into the manifest of its export.

    Args:
        file: A checkpoint.pt of a training run, or an ONNX file.
        scenes: How many held-out scenes, the first of the evaluation seeds.
        workers: Processes that render the scenes.
        device: For checkpoints: `cpu`, `cuda` or `cuda:N`.
        json_out: File to write the figures to as well.
    """
    from md_training.checkpoint import load, set_metrics
    from md_training.data.sample import Sample
    from md_training.data.sources import ReadSamples
    from md_training.data.synthetic import SceneData, evaluation_seeds, render
    from md_training.evaluate import evaluate as run_evaluation
    from md_training.evaluate import evaluate_student

    exported, subject = file.suffix == ".onnx", f"{scenes} held-out scenes"
    if exported:
        student = Student.load(file)
        contract = student.manifest.thermal
        data = SceneData(camera_size=student.manifest.camera_size)
        if contract is not None:
            data = replace(data, thermal_size=contract.sensor_size)
        scores = evaluate_student(student, render(evaluation_seeds(scenes), data, None, workers))
    else:
        trained = load(file)
        source = trained.run.data
        log.info("%s: run %s, step %d", file, trained.run_id, trained.step)
        if isinstance(source, SceneData):
            samples: Iterable[Sample] = render(evaluation_seeds(scenes), source, None, workers)
        else:
            pairs = source.evaluation()
            samples, subject = ReadSamples(pairs, range(len(pairs))), f"{source.root.name} {pairs.split.name}"
        scores = run_evaluation(trained.network.to(device), samples)
    figures: dict[str, float] = {}
    for subset, result in scores.items():
        figures |= result.figures(f"{subject}, {subset}")
        print(f"{subset}\n{result.table()}\n")
    if json_out is not None:
        json_out.write_text(json.dumps(figures, indent=2) + "\n")
    if not exported:
        set_metrics(file, figures)


def export(
    checkpoint: tyro.conf.Positional[Path],
    out: Path,
    name: str = "",
    compress_weights: bool = False,
    score_threshold: float = 0.05,
) -> None:
    """Write a checkpoint as the ONNX file that the node runs, and its model card (.md) beside it.

    Nothing is written unless ONNX Runtime agrees with torch.

    Args:
        checkpoint: A checkpoint.pt of a training run.
        out: The ONNX file to write.
        name: Name in the manifest; by default that of the run.
        compress_weights: Store the weights as int8 per output channel, a quarter of the size.
        score_threshold: Detections below it are left out in the graph; the node's own threshold can only be higher.
    """
    from md_training.checkpoint import load
    from md_training.export import export as run_export
    from md_training.model_card import write_model_card

    trained = load(checkpoint)
    manifest = run_export(trained, out, name=name, compress_weights=compress_weights, score_threshold=score_threshold)
    write_model_card(out.with_suffix(".md"), out, manifest, trained)


def main() -> None:
    """Parse the command line and run one command; errors that a user can mend are one line, not a traceback."""
    if sys.stderr.isatty():
        colours = RichHandler(show_path=False, log_time_format="%H:%M:%S")
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[colours])
    else:  # a file or a pipe: one line each, not folded to the width of a terminal
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    for chatty in ("faster_coco_eval", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "data": data_command,
                "train": train,
                "evaluate": evaluate,
                "export": export,
                "miss-rate": miss_rate_command,
            },
            prog="python -m md_training",
            description="Check data, train, evaluate and export the students that the node md_perception runs.",
            config=(tyro.conf.CascadeSubcommandArgs,),  # `train PRESET --out ...`: options in any order
        )
    except (ValueError, RuntimeError, OSError) as error:
        log.error("%s: %s", type(error).__name__, error)
        sys.exit(1)


if __name__ == "__main__":
    main()
