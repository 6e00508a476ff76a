"""What ONNX Runtime's CPU provider could be told beside what it is told, measured on a student's own graph.

Sessions take turns in a random order within each round, and ratios are formed within the round, so that what else the
machine does falls on all of them. The CPU time counts all threads, and hardly depends on what else runs.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime

from md_perception.inference.providers import Graph, SessionSettings, session_options
from md_perception.inference.runners import BoundRunner, PlainRunner
from md_perception.inference.student_file import StudentError, StudentFile
from md_perception.results import Size
from md_perception.sensing.registration import sampling_matrix

AS_IT_IS = "as it is"

Call = Callable[[], object]
Change = Callable[["onnxruntime.SessionOptions"], object]


def _entry(key: str, value: str) -> Change:
    return lambda options: options.add_session_config_entry(key, value)


def _attribute(name: str, value: object) -> Change:
    return lambda options: setattr(options, name, value)


_CHANGES: dict[str, tuple[Change, ...]] = {
    AS_IT_IS: (),
    "as it is, again": (),
    "1 thread": (_attribute("intra_op_num_threads", 1),),
    "2 threads": (_attribute("intra_op_num_threads", 2),),
    "spinning": (_entry("session.force_spinning_stop", "1"),),  # the threads of the others are not to be disturbed
    "parallel execution": (
        _attribute("execution_mode", onnxruntime.ExecutionMode.ORT_PARALLEL),
        _attribute("inter_op_num_threads", 2),
    ),
    "priority order": (_attribute("execution_order", onnxruntime.ExecutionOrder.PRIORITY_BASED),),
    "denormals as zero": (_entry("session.set_denormal_as_zero", "1"),),
    "dynamic blocks": (_entry("session.dynamic_block_base", "4"),),
    "no arena": (_attribute("enable_cpu_mem_arena", False),),
    "no memory pattern": (_attribute("enable_mem_pattern", False),),
    "no prepacking": (_entry("session.disable_prepacking", "1"),),
    "basic optimisation": (
        _attribute("graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    ),
    "extended optimisation": (
        _attribute("graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    ),
}
"""Options of the session, by the name in the table."""

_THESE_SIZES, _BOUND = "made for these sizes", "bound buffers"

NAMES = (*_CHANGES, _THESE_SIZES, _BOUND)


def compare(
    file: StudentFile, rgb: Size | None, thermal: Size | None, threads: int, rounds: int, names: tuple[str, ...] = NAMES
) -> str:
    """Return a table, one line for each of `names`: times, and medians of the ratios to `as it is`.

    rgb, thermal: sizes of the images, (width, height) px; None: those of the file. threads: 0: one per physical core.
    Raises StudentError where the file does not take these sizes, ValueError for no rounds.
    """
    names = (AS_IT_IS, *(name for name in names if name != AS_IT_IS))
    return _table({name: _call(file, rgb, thermal, SessionSettings(("cpu",), threads), name) for name in names}, rounds)


def compare_sharing(
    file: StudentFile, rgb: Size | None, thermal: Size | None, threads: int, rounds: int, cameras: int
) -> str:
    """Return the table of `compare` for a pair of each of several cameras that come at once.

    The first line has one session that takes them one after the other, the last one that takes them as a batch, where
    the file does. Raises StudentError, ValueError for no rounds.
    """
    many, one = (SessionSettings(("cpu",), number) for number in (threads, 1))
    shared, shared_narrow = (_call(file, rgb, thermal, settings, AS_IT_IS) for settings in (many, one))
    own, own_narrow = (
        [_call(file, rgb, thermal, settings, AS_IT_IS) for _ in range(cameras)] for settings in (many, one)
    )
    batch = _call(file, rgb, thermal, many, AS_IT_IS, cameras) if file.manifest.takes_batches else None
    with ThreadPoolExecutor(cameras) as pool:

        def at_once(calls: list[Call]) -> Call:
            return lambda: list(pool.map(lambda call: call(), calls))

        return _table(
            {
                "one after the other": lambda: [shared() for _ in range(cameras)],
                "the same, again": lambda: [shared() for _ in range(cameras)],
                "one session, at once": at_once([shared] * cameras),
                "the same, 1 thread": at_once([shared_narrow] * cameras),
                "a session each": at_once(own),
                "the same, 1 thread each": at_once(own_narrow),
            }
            | ({"a batch": batch} if batch else {}),
            rounds,
        )


def _table(calls: Mapping[str, Call], rounds: int) -> str:
    """Time the calls in turns; the ratios are to the first."""
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    names = list(calls)
    for call in calls.values():
        call()
    random = np.random.default_rng(0)
    wall, cpu = np.zeros((2, len(names), rounds))
    for turn in range(rounds):
        for index in random.permutation(len(names)):
            call = calls[names[index]]
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            call()
            wall[index, turn] = time.perf_counter() - wall_start
            cpu[index, turn] = time.process_time() - cpu_start
    lines = [f"{'':24}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}{'ratio':>8}{'CPU ratio':>11}"]
    for index, name in enumerate(names):
        lines.append(
            f"{name:24}{1e3 * np.median(wall[index]):9.1f}{1e3 * np.percentile(wall[index], 99):9.1f}"
            f"{1e3 * np.median(cpu[index]):9.1f}{np.median(wall[index] / wall[0]):8.3f}"
            f"{np.median(cpu[index] / cpu[0]):11.3f}"
        )
    return "\n".join(lines)


def _call(
    file: StudentFile, rgb: Size | None, thermal: Size | None, settings: SessionSettings, name: str, batch: int = 1
) -> Call:
    """Return what runs a file on noise, in a session with the options of that name. batch: pairs of a call."""
    rgb, thermal = file.sizes(rgb, thermal)
    dimensions = file.dimensions(rgb, thermal)
    graph = Graph(file.manifest.name, file.manifest.precision, dimensions)
    settings = replace(settings, spin=name == "spinning")
    options = session_options(settings, graph, bind_dimensions=name == _THESE_SIZES)
    for change in _CHANGES.get(name, ()):
        change(options)
    try:
        session = onnxruntime.InferenceSession(file.data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen types without a common base of their own
        raise StudentError(f"student {file.path} cannot be loaded ({name}): {error}") from None
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    if rgb:
        feeds["rgb"] = random.integers(0, 256, (batch, rgb[1], rgb[0], 3), np.uint8)
    if thermal:
        feeds["thermal"] = random.integers(0, 256, (batch, thermal[1], thermal[0]), np.uint8)
    if rgb and thermal:
        feeds["rgb_to_thermal"] = np.repeat(sampling_matrix(rgb, thermal)[None], batch, axis=0)
    runner: PlainRunner | BoundRunner = PlainRunner(session, file.output_names)
    if name == _BOUND:
        runner = BoundRunner(session, file.output_names, {}, "cpu")
    return lambda: runner(feeds)
