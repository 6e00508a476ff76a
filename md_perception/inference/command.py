"""`python -m md_perception.inference` and `ros2 run md_perception md_engine`: a student's file, before it drives.

`show` prints what a file says of itself. `build` makes TensorRT's engine ahead of time, on the machine that will run
it, and times the first run and the ones after it; on other providers there is nothing to build, and it checks and
times. `tune` measures what else ONNX Runtime could be told on this CPU, and how several cameras share it.

Exit status: 0; 1 where a file or a provider cannot be used; 2 for a wrong command line; 130 when it was interrupted.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from md_perception.inference import engine_cache, tune
from md_perception.inference.manifest import ManifestError
from md_perception.inference.providers import PROVIDERS, SessionSettings
from md_perception.inference.session import Student, StudentError
from md_perception.inference.student_file import MAX_SIDE, StudentFile
from md_perception.results import Size

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return {"show": _show, "build": _build, "tune": _tune}[options.command](options)
    except (StudentError, ManifestError) as error:
        print(f"md_engine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("md_engine: interrupted; an engine that was not whole is not kept", file=sys.stderr)
        return INTERRUPTED


def _show(options: argparse.Namespace) -> int:
    file = StudentFile.read(options.student)
    print(f"{file.path}: {len(file.data)} bytes, SHA-256 {hashlib.sha256(file.data).hexdigest()}")
    for what, tensors in (("input", file.inputs), ("output", file.outputs)):
        for tensor in tensors:
            print(f"{what} {tensor.name}: {tensor.dtype} {list(tensor.shape or ())}")
    print(json.dumps(file.manifest.model_dump(mode="json"), indent=2))
    return 0


def _build(options: argparse.Namespace) -> int:
    settings = SessionSettings(
        providers=options.providers,
        threads=options.threads,
        max_batch=1,  # what is timed is one pair
        engine_cache=options.engine_cache,
        rgb_size=options.size,
        thermal_size=options.thermal,
    )
    start = time.perf_counter()
    student = Student.load(options.student, settings)
    loaded_s = time.perf_counter() - start
    rgb, thermal = (
        needed and (given or needed)
        for given, needed in zip((options.size, options.thermal), student.sizes, strict=True)
    )
    first_s = student.warm_up(rgb, thermal)
    runs_ms = [1e3 * student.warm_up(rgb, thermal) for _ in range(options.rounds)]
    for reason in student.unavailable:
        print(f"not used: {reason}")
    sizes = ", ".join(f"{name} {size[0]}x{size[1]}" for name, size in (("RGB", rgb), ("thermal", thermal)) if size)
    print(f"{student.manifest.name} ({student.precision}, {sizes}) on {student.provider}")
    print(
        f"loaded in {loaded_s:.2f} s, first run {1e3 * first_s:.1f} ms, then {np.median(runs_ms):.1f} ms (median of "
        f"{len(runs_ms)}, p99 {np.percentile(runs_ms, 99):.1f} ms)"
    )
    if student.provider == PROVIDERS["tensorrt"]:
        print(f"engine kept in {settings.engine_cache or engine_cache.default_folder()}")
    else:
        print(f"there is nothing to build for {student.provider}: it runs the file as it is, at every start")
    return 0


def _tune(options: argparse.Namespace) -> int:
    file = StudentFile.read(options.student)
    what = (file, options.size, options.thermal, options.threads, options.rounds)
    print(tune.compare(*what) if options.cameras == 1 else tune.compare_sharing(*what, options.cameras))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="md_engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print the manifest, the inputs and the outputs of a file")
    build = commands.add_parser("build", help="make the engine ahead of time, and time the student")
    tuning = commands.add_parser("tune", help="measure what else the CPU provider could be told")
    for command in (show, build, tuning):
        command.add_argument("student", type=Path, metavar="STUDENT", help="file (.onnx)")
    for command in (build, tuning):
        command.add_argument(
            "--size", type=_size, metavar="WxH", help="of the RGB images, px; by default that of the training"
        )
        command.add_argument(
            "--thermal", type=_size, metavar="WxH", help="of the thermal images, px; by default that of the training"
        )
        command.add_argument(
            "--threads", type=_count, default=0, metavar="N", help="of the CPU provider; 0: one for each physical core"
        )
        command.add_argument("--rounds", type=_positive, default=20, metavar="N", help="runs that are timed")
    tuning.add_argument(
        "--cameras",
        type=_positive,
        default=1,
        metavar="N",
        help="compare ways to run pairs of N cameras that come at once",
    )
    build.add_argument(
        "--providers",
        type=_providers,
        default=("auto",),
        metavar="NAME,NAME",
        help="in order of preference: cpu, cuda, tensorrt, auto (as student.providers)",
    )
    build.add_argument(
        "--engine-cache",
        type=Path,
        metavar="DIR",
        help=f"folder of the engines (as student.engine_cache); by default {engine_cache.default_folder()}",
    )
    return parser


def _size(text: str) -> Size:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) <= MAX_SIDE for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT in pixels, like 640x512, of at most {MAX_SIDE} each"
        )
    return int(sides[0]), int(sides[1])


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return int(text)


def _providers(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        SessionSettings(providers=names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names
