"""`python -m md_perception.evaluation` and `ros2 run md_perception md_evaluate`: what students make of recorded drives.

Reads rosbag2 bags (MCAP, SQLite3, split, compressed) frame by frame through the pipeline of the node, without ROS. Two
runs on the same CPU and ONNX Runtime give the same report.json.

Exit status: 0; 1 where something cannot be evaluated; 2 for a wrong command line; 3 where --require is not met; 130
when it was interrupted: the same command goes on where it was.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from md_perception.annotations.files import DataError
from md_perception.bags.types import UnknownTypeError
from md_perception.bags.write import BagError
from md_perception.evaluation.gates import Gate, GateError, Requirement, check, parse_requirements
from md_perception.evaluation.job import EvaluationError, Job, LightChoice, named
from md_perception.evaluation.report import write_html
from md_perception.evaluation.run import Evaluation, evaluate
from md_perception.evaluation.simulate import Simulation, SimulationError
from md_perception.evaluation.spread import RayCluster
from md_perception.evaluation.sweep import PAPER_PRICES, PriceError, PriceList, Sweep, SweepPoint, parse_sweep
from md_perception.evaluation.truth import Kind, Match, TruthSpec
from md_perception.inference.manifest import ManifestError
from md_perception.inference.session import StudentError
from md_perception.inference.student_file import DEMO_VISIBLE_STUDENT, student_path
from md_perception.parameters import ParameterError, Parameters

NOT_MET = 3
INTERRUPTED = 130

_WRONG_OPTIONS = (GateError, SimulationError, ParameterError, PriceError)
_CANNOT = (EvaluationError, StudentError, ManifestError, BagError, DataError, UnknownTypeError)

_HEADLINES = (
    "miss_rate",
    "ap50",
    "miou9",
    "macc9",
    "agreement_ap50",
    "agreement_miou",
    "flicker",
    "p50_ms",
    "p95_ms",
)
"""Figures of the summary, where there are such."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="md_evaluate: %(message)s")
    # However it is ended, what was evaluated stays; a caller in the same process gets its handlers back.
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            job, requirements = _job(options), () if options.require is None else parse_requirements(options.require)
            simulations = parse_sweep(options.sweep, job.simulation) if options.sweep else ()
            prices = PriceList.read(options.prices) if options.prices else PAPER_PRICES
        except _WRONG_OPTIONS as error:
            parser.error(str(error))
        started = time.monotonic()
        with (
            RayCluster(options.ray, cores=options.workers or 1) if options.ray else contextlib.nullcontext() as cluster
        ):
            if simulations:
                gates = _sweep(options, job, simulations, prices, requirements, cluster)
            else:
                gates = _once(options, job, requirements, cluster)
        print(f"done in {time.monotonic() - started:.1f} s: {options.out / 'report.html'}")
        return 0 if all(gate.met for gate in gates) else NOT_MET
    except GateError as error:
        print(f"md_evaluate: {error}", file=sys.stderr)
        return 2
    except (*_CANNOT, SimulationError, OSError) as error:  # OSError: the disk is full, or not ours
        print(f"md_evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"md_evaluate: interrupted; the same command goes on where {options.out} ends", file=sys.stderr)
        return INTERRUPTED
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _once(
    options: argparse.Namespace, job: Job, requirements: tuple[Requirement, ...], cluster: RayCluster | None
) -> list[Gate]:
    found = _evaluate(options, job, options.out, cluster)
    gates = check(requirements, found.figures())
    _write_html(options.out, found, gates, None)
    _summarise(found, gates)
    return gates


def _sweep(
    options: argparse.Namespace,
    job: Job,
    simulations: Sequence[Simulation],
    prices: PriceList,
    requirements: tuple[Requirement, ...],
    cluster: RayCluster | None,
) -> list[Gate]:
    """Evaluate each simulation in a folder of its own, and put them side by side. Gates hold for each of them."""
    if (options.out / "evaluation.json").exists():
        raise EvaluationError(f"{options.out} holds an evaluation without a sweep: choose another folder (--out)")
    gates: list[Gate] = []
    points: list[SweepPoint] = []
    figures: dict[str, Any] = {}
    largest: Evaluation | None = None
    for simulation in simulations:
        size = "{}x{}".format(*simulation.thermal.size or (0, 0))
        print(f"thermal camera of {size} px")
        found = _evaluate(options, replace(job, simulation=simulation), options.out / size, cluster)
        largest = largest or found
        own = check(requirements, found.figures())
        _write_html(options.out / size, found, own, None)
        _summarise(found, own)
        gates += [replace(gate, condition=f"{size}: {gate.condition}") for gate in own]
        points.append(SweepPoint(simulation, found.report, _all_records(found), found.pictures))
        figures[size] = {name: found.report.figures(name) for name in found.job.students}
    assert largest is not None
    (options.out / "sweep.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    _write_html(options.out, largest, gates, Sweep(tuple(points), prices))
    return gates


def _evaluate(options: argparse.Namespace, job: Job, folder: Path, cluster: RayCluster | None) -> Evaluation:
    here = options.workers or len(os.sched_getaffinity(0))
    return evaluate(
        job,
        named(options.bags),
        folder,
        workers=here if cluster is None else cluster.workers,
        spread=cluster,
        baseline=options.baseline,
        allow_unmatched_truth=options.allow_unmatched_truth,
        copy_inputs=options.copy_inputs,
        show_progress=not options.quiet,
    )


def _all_records(found: Evaluation) -> list[Any]:
    return [record for records in found.records.values() for record in records]


def _write_html(folder: Path, found: Evaluation, gates: Sequence[Gate], sweep: Sweep | None) -> None:
    write_html(
        found.report,
        folder / "report.html",
        records=_all_records(found),
        pictures=found.pictures,
        timing=found.timing,
        gates=gates,
        sweep=sweep,
    )


def _summarise(found: Evaluation, gates: Sequence[Gate]) -> None:
    first = found.report.students[next(iter(found.job.students))]
    for name, drive in found.drives.items():
        print(f"{name}: {found.ends(name).text(drive.rgb_images)}")
        print("  modes: " + ", ".join(f"{mode} {seconds:.1f} s" for mode, seconds in drive.mode_s.items()))
        if drive.damage:
            print(f"  damaged, and read up to there: {drive.damage}")
    for reason, count in first.rejected.items():
        print(f"  {count} without a result: {reason}")
    for name, figures in found.figures().items():
        values = [f"{key} {figures[key]:.4g}" for key in _HEADLINES if figures.get(key) is not None]
        print(f"{name}: {', '.join(values)}")
    for name, path in found.result_bags.items():
        print(f"results of {name}: {path}")
    for gate in gates:
        print(gate)


def _job(options: argparse.Namespace) -> Job:
    parameters = Parameters.read(options.params, _assignments(options.param))
    truth: TruthSpec | None = None
    if options.truth != "none":
        truth = TruthSpec(
            path=None if options.truth == "auto" else Path(options.truth),
            kind=options.truth_kind,
            masks=options.truth_masks,
            detections_topic=options.truth_detections_topic,
            mask_topic=options.truth_mask_topic,
            match=options.truth_match,
            index=options.truth_index,
            rename=_assignments(options.truth_rename),
        )
    students = [path for given in options.student or [] for path in given]
    files = parameters.student_files()
    if not students and parameters.student_file:
        students = [files["student.file"]]
    if not students:
        raise ParameterError("say which student: --student FILE, or student.file among the parameters")
    by_name = named([*students, *([options.teacher] if options.teacher else [])])
    teacher = by_name.popitem() if options.teacher else None
    if options.baseline is not None and options.baseline not in by_name:
        raise ParameterError(f"--baseline {options.baseline}: the students are {', '.join(by_name)}")
    return Job(
        students=by_name,
        visible_student=options.visible_student or files.get("student.visible_file"),
        thermal_student=options.thermal_student or files.get("student.thermal_file"),
        teacher=teacher,
        parameters=parameters,
        providers=tuple(options.providers),
        threads=options.threads,
        rgb_topic=options.rgb_topic,
        thermal_topic=options.thermal_topic,
        light=options.light,
        truth=truth,
        simulation=Simulation.parse(options.simulate) if options.simulate else Simulation(),
        with_results=options.result_bag,
    )


def _assignments(given: Sequence[str] | None) -> Mapping[str, str]:
    """Return NAME=VALUE texts as a dict. Raises ParameterError."""
    found = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise ParameterError(f"{text!r}: write NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="md_evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bags", type=Path, nargs="+", metavar="BAG", help="folder, .mcap or .db3 file of a rosbag2")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where all results go")
    students = parser.add_argument_group("students")
    students.add_argument(
        "--student",
        type=student_path,
        nargs="+",
        action="append",
        metavar="FILE",
        help="one or more, called as their files; the first decides the modes, and is the one in service; demo: that "
        "of this package",
    )
    students.add_argument(
        "--visible-student",
        type=partial(student_path, demo=DEMO_VISIBLE_STUDENT),
        metavar="FILE",
        help="takes over while thermal is lost; demo: that of this package",
    )
    students.add_argument("--thermal-student", type=Path, metavar="FILE", help="takes over while RGB is lost")
    students.add_argument("--teacher", type=Path, metavar="FILE", help="whose answers the students' are compared with")
    students.add_argument(
        "--baseline", metavar="NAME", help="student that the others are compared with; else the first"
    )
    students.add_argument(
        "--providers", nargs="+", default=["cpu"], metavar="NAME", help="of ONNX Runtime: cpu (default), cuda, tensorrt"
    )
    students.add_argument(
        "--threads", type=_at_least(0), default=1, metavar="N", help="of one inference; other numbers, other last bits"
    )
    students.add_argument(
        "--workers",
        type=_at_least(1),
        metavar="N",
        help="inferences beside each other, which change nothing but the time (all cores; with --ray those of a chunk, "
        "1); 1 to measure latency",
    )
    students.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="spread bags, and chunks of long ones, over a Ray cluster: HOST:PORT, or auto: that of this machine, or "
        "else its cores",
    )
    node = parser.add_argument_group("node")
    node.add_argument("--params", type=Path, metavar="FILE", help="parameters of the node, as config/md.yaml")
    node.add_argument(
        "-p", "--param", action="append", metavar="NAME=VALUE", help="one of them, e.g. thermal.encoding=centikelvin"
    )
    node.add_argument("--rgb-topic", metavar="TOPIC", help="not given: /rgb/image_raw, raw or compressed")
    node.add_argument("--thermal-topic", metavar="TOPIC", help="not given: /thermal/image_raw, raw or compressed")
    truth = parser.add_argument_group("ground truth")
    truth.add_argument(
        "--truth",
        default="auto",
        metavar="PATH",
        help="auto: topics of the bag (default); none; or KAIST or COCO JSON, a folder of KAIST text, YOLO text, masks",
    )
    truth.add_argument("--truth-kind", choices=get_args(Kind), default="auto")
    truth.add_argument("--truth-masks", type=Path, metavar="FOLDER", help="of mask PNGs")
    truth.add_argument("--truth-detections-topic", metavar="TOPIC", help="vision_msgs/Detection2DArray; '': none")
    truth.add_argument("--truth-mask-topic", metavar="TOPIC", help="sensor_msgs/Image mono8; '': none")
    truth.add_argument(
        "--truth-match",
        choices=get_args(Match),
        default="auto",
        help="how files find their frames (docs/evaluation.md)",
    )
    truth.add_argument("--truth-index", type=Path, metavar="FILE", help="md_index.json, or lines `name stamp_ns`")
    truth.add_argument(
        "--truth-rename", action="append", metavar="THEIRS=OURS", help="a class, or to ignore, background"
    )
    truth.add_argument("--allow-unmatched-truth", action="store_true", help="entries may belong to no frame")
    truth.add_argument(
        "--light",
        choices=get_args(LightChoice),
        default="auto",
        help="auto: as metadata, the topic /light or the truth say, else by the luminance",
    )
    simulation = parser.add_argument_group("simulation")
    simulation.add_argument("--simulate", metavar="TEXT", help="e.g. thermal=160x120,rate=9,offset=0.04,drop=0.05")
    simulation.add_argument("--sweep", metavar="TEXT", help="e.g. thermal=640x480,320x240,160x120,80x60")
    simulation.add_argument("--prices", type=Path, metavar="FILE", help="CSV with size,price_usd,source")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--require", metavar="TEXT", help="e.g. miss_rate<=0.12,p95_ms<=50: exit status 3 where one is not met"
    )
    output.add_argument(
        "--result-bag",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write FOLDER/results/BAG with what the node would have published (of the first student)",
    )
    output.add_argument("--copy-inputs", action="store_true", help="into the result bag, with all topics")
    output.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return number
