"""Command line of the training package: `python -m md_training --help` lists the commands."""

import difflib
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import track

from md_perception.files import write_whole
from md_perception.inference.session import Student
from md_perception.inference.student_file import StudentFile
from md_perception.labels import DETECTION
from md_training.benchmark.command import benchmark_command
from md_training.data.check import data_command
from md_training.experiments.command import experiments
from md_training.figures.command import figures_command
from md_training.miss_rate import miss_rate_command
from md_training.precision import DEFAULTS, Data, Lowering, Precision, check_truth, data_for, data_for_file, lower
from md_training.presets import PRESETS, PRESETS_HELP, Run

if TYPE_CHECKING:
    from md_training.data.sample import Sample
    from md_training.data.sources import Source

log = logging.getLogger("md_training")


def train(
    run: Run,
    out: Path | None = None,
    workers: int | None = None,
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = True,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Train a preset, e.g. `train scenes-demo`; every setting of the run can be overridden by its option.

    On several GPUs: `torchrun --nproc-per-node 4 -m md_training train NAME --device cuda`; on several machines with
    torchrun's --nnodes and --rdzv-endpoint and a folder that all of them see. The batch size is that of all together.
    Ctrl-C and SIGTERM end the training after the current step, with a checkpoint (exit status 130).

    Args:
        run: Name of the preset; `train NAME --help` lists its settings.
        out: Folder for checkpoint.pt, run.json, metrics.jsonl and TensorBoard; by default runs/NAME.
        workers: Processes that read, render and augment for each process that trains; by default one for each of its
            processors, at most 8; 0: none, all is done in turn.
        device: `cpu`, `cuda` or `cuda:N`.
        resume: Go on from the folder's checkpoint.pt, exactly as if the run had not stopped; start where there is none.
            Without it, an earlier run's checkpoint becomes checkpoint.previous.pt.
        tensorboard: Write TensorBoard's events beside metrics.jsonl.
        image_size: Width and height of the network's input, multiples of 32; by default the preset's.
    """
    from md_training.processes import leave
    from md_training.train import train as run_training

    if image_size is not None:
        run = replace(run, network=replace(run.network, input_size=image_size))
    if workers is None:
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = min(8, max(1, (os.cpu_count() or 2) // sharing))
    if os.environ.get("RANK", "0") != "0":  # the first process speaks for all
        logging.getLogger().setLevel(logging.WARNING)
    out = out or Path("runs") / run.name
    checkpoint = run_training(run, out, workers=workers, device=device, resume=resume, tensorboard=tensorboard)
    leave()
    if checkpoint.step < run.optimisation.steps:
        sys.exit(130)


def evaluate(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    data: Path | None = None,
    split: str = "",
    scenes: int = 300,
    miss_rate_class: str = "person",
    detections_out: Path | None = None,
    workers: int = max(1, (os.cpu_count() or 2)),
    device: str = "cpu",
    json_out: Path | None = None,
) -> None:
    """Score a checkpoint, or an exported student as the node would run it: all, day and night.

    On the data set that --data names, its thermal images made as coarse as the sensor that was trained for. Without it,
    a checkpoint of a data set is scored on all of its evaluation split, everything else on held-out scenes.

    Detections get AP and a log-average miss rate: on KAIST's whole test set the benchmark's, MR2[reasonable,all];
    elsewhere that of a class, of which every object counts that is not flagged as ignored, MR2[person,SET all].

    The figures of a checkpoint are kept in it and go into the manifest of its export; those of --data are added.

    Args:
        file: A checkpoint.pt of a training run, or an ONNX file.
        data: Folder of a data set: KAIST, MFNet, or YOLO or COCO boxes.
        split: List of that folder; by default test-all-20 of KAIST, test of MFNet, val of others.
        scenes: How many held-out scenes, the first of the evaluation seeds.
        miss_rate_class: What the miss rate counts.
        detections_out: File for the detections of that class, in KAIST's result format (see `miss-rate`): images are
            numbered from 1 in the order of the list.
        workers: Processes that render the scenes.
        device: For checkpoints: `cpu`, `cuda` or `cuda:N`.
        json_out: File to write the figures to as well.
    """
    from md_perception.metrics.miss_rate import table
    from md_training.checkpoint import load, set_metrics
    from md_training.data.sources import PairSource
    from md_training.data.synthetic import SceneData, evaluation_seeds, render
    from md_training.evaluate import answers, answers_of_student
    from md_training.figures.curves import miss_rates
    from md_training.figures.samples import HeldOut, HeldOutPairs, HeldOutScenes, pairs_to_score

    if miss_rate_class not in DETECTION.classes:
        raise ValueError(f"--miss-rate-class {miss_rate_class}: use one of {', '.join(DETECTION.classes)}")
    if data is None and split:
        raise ValueError(f"--split {split} belongs to --data: name the folder, too")
    trained = None
    source: Source
    if file.suffix == ".onnx":
        student = Student.load(file)
        tasks, classes, in_rgb = student.manifest.tasks, student.manifest.detection_classes, student.uses_rgb
        rgb, sensor = student.sizes
        source = SceneData(camera_size=rgb or student.manifest.camera_size)
        source = source if sensor is None else replace(source, thermal_size=sensor)
        answer = partial(answers_of_student, student)
    else:
        trained = load(file)
        log.info("%s: run %s, step %d", file, trained.run_id, trained.step)
        source, sensor, in_rgb = trained.run.data, trained.run.data.thermal_size, True
        tasks = trained.run.network.tasks
        classes = trained.run.network.detection_classes if "detection" in tasks else ()
        answer = partial(answers, trained.network.to(device))
    if detections_out is not None and not (in_rgb and miss_rate_class in classes):
        raise ValueError(f"--detections-out: {file} does not detect {miss_rate_class} in RGB images")

    shown: HeldOut
    samples: Iterable[Sample]
    if data is None and isinstance(source, SceneData):
        shown, samples = HeldOutScenes(scenes), render(evaluation_seeds(scenes), source, None, workers)
    else:
        if data is not None:
            pairs = pairs_to_score(data, split, sensor)
        else:
            assert isinstance(source, PairSource)
            pairs = source.evaluation()
        shown, samples = HeldOutPairs(pairs), (pairs[index] for index in range(len(pairs)))
    annotated = {"detection": shown.detection_classes, "segmentation": shown.segmentation_classes}
    if not any(annotated[task] for task in tasks):
        raise _nothing_to_score(shown.title, tasks)
    for task in tasks:
        if not annotated[task]:
            log.warning("%s has no truth of %s: it is not scored", shown.title, task)
    if classes and (unknown := set(shown.detection_classes) - set(classes)):
        log.warning("%s has %s, which %s does not detect: AP 0", shown.title, ", ".join(sorted(unknown)), file)
    console = Console(stderr=True)
    answered = answer(track(samples, "evaluating", len(shown.names), console=console, disable=not console.is_terminal))

    figures: dict[str, float] = {}
    for subset, result in answered.scores().items():
        figures |= result.figures(f"{shown.title}, {subset}")
        print(f"{subset}\n{result.table()}\n")
    curves = miss_rates(answered, shown, miss_rate_class, in_rgb, detections_out) if miss_rate_class in classes else {}
    if curves:
        figures |= {curve.name: curve.miss_rate for curve in curves.values() if curve.miss_rate is not None}
        print(f"{table(curves.values())}\n")
    if not figures:  # what the set annotates is not in these images
        raise _nothing_to_score(shown.title, tasks)
    if json_out is not None:
        write_whole(json_out, (json.dumps(figures, indent=2) + "\n").encode())
    if trained is not None:
        set_metrics(file, figures if data is None else trained.metrics | figures)


def _nothing_to_score(title: str, tasks: Sequence[str]) -> ValueError:
    from md_training.data.splits import DataError

    return DataError(
        f"{title} has no truth of {' and '.join(tasks)}, which is all that the network does: --data names another set"
    )


def export(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Path,
    name: str = "",
    compress_weights: bool = False,
    score_threshold: float = 0.05,
    fixed: tuple[int, int] | None = None,
    fixed_thermal: tuple[int, int] | None = None,
    precision: Precision = "fp32",
    lowering: Annotated[Lowering, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Write a checkpoint as the ONNX file that the node runs, and its model card (.md) beside it.

    Nothing is written unless ONNX Runtime agrees with torch. A precision below fp32 is scored beside it, on the same
    held-out samples, and refused where it loses more than --max-loss.

    Args:
        source: A checkpoint.pt of a training run. For a precision below fp32 an exported student (.onnx) will do, too.
        out: The ONNX file to write, NAME.onnx.
        name: Name in the manifest; by default that of the run.
        compress_weights: Store the weights as int8 per output channel, a quarter of the size.
        score_threshold: Detections below it are left out in the graph; the node's own threshold can only be higher.
        fixed: Width and height of the only camera images that the file will take, in px. All shapes in the file are
            then fixed, as CUDA graphs and TensorRT need them.
        fixed_thermal: The same of the thermal images; by default those that it was trained on.
        precision: What the network computes in: `int8` for CPUs, `fp16` for GPUs. What is around the network stays in
            fp32.
        lowering: How a precision below fp32 is reached and judged.
    """
    from md_training.checkpoint import load
    from md_training.export import export as run_export
    from md_training.export import fixed_sizes
    from md_training.model_card import write_model_card

    card = out.with_suffix(".md")
    if out.suffix != ".onnx":
        raise ValueError(f"--out {out}: the node takes .onnx files, name it {out.with_suffix('.onnx').name}")
    if source.resolve() in (out.resolve(), card.resolve()):
        kind = "student" if source.suffix == ".onnx" else "checkpoint"
        raise ValueError(f"--out {out}: the file or its card, {card.name}, would replace the {kind} {source}")
    if precision == "fp32" and lowering != DEFAULTS:
        raise ValueError("calibration, held-out samples and --keep-fp32 belong to --precision fp16 or int8")
    exported = source.suffix == ".onnx"
    if exported and (precision == "fp32" or compress_weights or score_threshold != 0.05 or fixed or fixed_thermal):
        raise ValueError(
            f"{source} is exported already: only its precision can be lowered, for all else give the checkpoint.pt"
        )
    trained = None if exported else load(source)
    data: Data | None = None
    if precision != "fp32":  # beforehand: what is wrong with the data is told before the export, which takes minutes
        if trained is None:
            data = data_for_file(StudentFile.read(source), lowering)
        else:
            camera, thermal = fixed_sizes(trained.run, fixed, fixed_thermal)
            inputs = trained.run.network.inputs
            rgb_size, thermal_size = camera if "rgb" in inputs else None, thermal if "thermal" in inputs else None
            data = data_for(rgb_size, thermal_size, trained.run.data, lowering)
            check_truth({*trained.run.network.tasks} - {*data.tasks}, data.title, precision)
    with TemporaryDirectory() as folder:
        fp32 = source if exported else out if precision == "fp32" else Path(folder) / out.name
        if trained is not None:
            run_export(
                trained,
                fp32,
                name=name,
                compress_weights=compress_weights,
                score_threshold=score_threshold,
                fixed=fixed,
                fixed_thermal=fixed_thermal,
            )
        if data is not None:
            print(lower(fp32, out, precision, data, lowering, name).table())
    write_model_card(card, out, StudentFile.read(out).manifest, trained)


def _train_command(arguments: list[str]) -> Callable[..., None]:
    """Return `train` for the preset that the command line names, a subcommand, or the help that says which there are.

    All of them as subcommands would be a help of hundreds of lines. Raises ValueError where none is named.
    """
    named = {name: PRESETS[name] for name in arguments if name in PRESETS}
    if not named:
        if not {"-h", "--help"} & set(arguments):
            like = [name for word in arguments for name in difflib.get_close_matches(word, PRESETS, n=3)]
            advice = f"did you mean {', '.join(like)}? " if like else ""
            raise ValueError(f"no preset is named: {advice}`python -m md_training train --help` lists them")
        return _train_help
    preset: Any = Annotated[
        tyro.extras.subcommand_type_from_defaults(
            {name: run for name, (_, run) in named.items()},
            {name: description for name, (description, _) in named.items()},
        ),
        tyro.conf.arg(name=""),
    ]

    @wraps(train)
    def command(*args: Any, **options: Any) -> None:
        train(*args, **options)

    # What tyro reads. `train` itself stays as it is, for the next command line of this process.
    command.__signature__ = inspect.signature(train)  # type: ignore[attr-defined]
    command.__annotations__ = train.__annotations__ | {"run": preset}
    del command.__wrapped__
    return command


def _train_help(preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]) -> None:
    raise AssertionError("only its help is asked for")


_train_help.__doc__ = f"""Train a preset; `train PRESET --help` lists its settings, each of them an option.

{PRESETS_HELP}

Args:
    preset: Name of the preset.
"""


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
                "train": _train_command(sys.argv[2:]) if sys.argv[1:2] == ["train"] else train,
                "evaluate": evaluate,
                "export": export,
                "miss-rate": miss_rate_command,
                "benchmark": benchmark_command,
                "experiments": experiments,
                "figures": figures_command,
            },
            prog="python -m md_training",
            description="Check data, train, evaluate and export the students that the node md_perception runs.",
            config=(tyro.conf.CascadeSubcommandArgs,),  # `train PRESET --out ...`: options in any order
        )
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, RuntimeError, OSError) as error:
        log.error("%s: %s", type(error).__name__, error)
        sys.exit(1)


if __name__ == "__main__":
    main()
