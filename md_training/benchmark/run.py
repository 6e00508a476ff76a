"""The benchmark: make all that is timed, let it take turns, compare."""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial

import torch

from md_perception.inference.session import SessionSettings, Student
from md_training.benchmark.command import Settings
from md_training.benchmark.contestants import (
    DTYPES,
    Contestant,
    file_contestant,
    machine,
    onnx_contestant,
    probes,
    torch_contestant,
    unavailable,
)
from md_training.benchmark.report import COPY, GEMM, SCHEMA, GrowthRow, Measurement, NotRun, Probe, RatioRow, Report
from md_training.benchmark.stopwatch import Ratio, Times, exponent, interleaved, ratio, summary
from md_training.benchmark.subjects import KINDS, NECKS, RUNTIMES, TASKS, Subject, all_costs, subject
from md_training.checkpoint import git_revision
from md_training.models.networks import NetworkSettings, make_network

log = logging.getLogger(__name__)


def benchmark(
    settings: Settings, change: Callable[[NetworkSettings], NetworkSettings] = lambda network: network
) -> Report:
    """Count and measure. change: of every network's settings, e.g. to another width.

    Raises ValueError where the device is not there, StudentError or ManifestError for a file that cannot be read.
    """
    for path in settings.files:
        Student.load(path, SessionSettings(("cpu",)))
    necks, tasks, kinds = (NECKS, TASKS, KINDS) if settings.costs else (settings.necks, settings.tasks, settings.kinds)
    subjects = [subject(kind, task, neck) for neck in necks for task in tasks for kind in kinds]
    cost_rows = all_costs(subjects, settings.input_size, settings.batch, change)
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; leave it out to measure the processor")
    before = torch.get_num_threads()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        described = machine(device, torch.get_num_threads())
        report = Report(
            schema=SCHEMA,
            created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            git_revision=git_revision(),
            command=json.loads(json.dumps(asdict(settings), default=str)),
            machine=described,
            costs=cost_rows,
            probes=[],
            measurements=[],
            ratios=[],
            growth=[],
            not_run=[],
            times_s={},
        )
        return report if settings.costs else _timed(report, settings, change, device)
    finally:
        torch.set_num_threads(before)


def _timed(
    report: Report, settings: Settings, change: Callable[[NetworkSettings], NetworkSettings], device: torch.device
) -> Report:
    contestants, not_run = _contestants(settings, change, device)
    others = {
        size: _contestants(replace(settings, input_size=size, files=()), change, device)
        for size in dict.fromkeys(settings.sizes)
        if size != settings.input_size
    }
    for size, (_, failed) in others.items():
        here = (item for item in failed if item.what not in RUNTIMES)
        not_run += [replace(item, what=f"{item.what} at {_named(size)}") for item in here]
    peaks = probes(device, settings.precisions)
    calls = {f"{name} {precision}": call for (name, precision), (_, call) in peaks.items()}
    calls |= {contestant.label: contestant.call for contestant in contestants}
    calls |= {f"{one.label} at {_named(size)}": one.call for size, (made, _) in others.items() for one in made}
    log.info("%d contestants, %d rounds of %d calls each", len(calls), settings.rounds, settings.calls)
    times = interleaved(
        calls,
        settings.rounds,
        settings.calls,
        after_round=lambda done: log.info("round %d of %d", done, settings.rounds),
    )
    measured = {each: times[each.label] for each in contestants}
    costs = {row.name: row for row in report.costs}
    found_probes = []
    for (name, precision), (amount, _) in peaks.items():
        time = summary(times[f"{name} {precision}"])
        found_probes.append(Probe(name, precision, amount / time.median_ms / 1e6, time))
    measurements = []
    for each, seconds in measured.items():
        row = Measurement(each.name, each.role, each.tasks, each.runtime, each.precision, each.part, summary(seconds))
        if each.subject is not None and each.part == "network":
            flop = 2 * costs[each.name].multiply_accumulates * settings.batch
            moved = costs[each.name].bytes_moved * DTYPES[each.precision].itemsize // 4
            gemm, copy = (GEMM, each.precision), (COPY, "fp32")
            row = replace(
                row,
                gflops=flop / row.time.median_ms / 1e6,
                intensity=flop / moved,
                of_gemm=_share(times[" ".join(gemm)], seconds, flop / peaks[gemm][0]),
                of_copy=_share(times[" ".join(copy)], seconds, moved / peaks[copy][0]),
            )
        measurements.append(row)
    return replace(
        report,
        probes=found_probes,
        measurements=measurements,
        ratios=list(compared(measured, {name: row.multiply_accumulates for name, row in costs.items()})),
        growth=list(_growth(contestants, settings.input_size, others, times)),
        not_run=not_run,
        times_s=times,
    )


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _growth(
    contestants: Sequence[Contestant],
    input_size: tuple[int, int],
    others: Iterable[tuple[int, int]],
    times: Mapping[str, Times],
) -> Iterator[GrowthRow]:
    """Yield the growth of everything that was timed at more sizes than input_size."""
    for one in contestants:
        found = {input_size: times[one.label]}
        found |= {size: times[name] for size in others if (name := f"{one.label} at {_named(size)}") in times}
        sizes = sorted(found, key=lambda size: size[0] * size[1])
        if len(sizes) > 1:
            yield GrowthRow(
                name=one.name,
                runtime=one.runtime,
                precision=one.precision,
                part=one.part,
                sizes=sizes,
                median_ms=[summary(found[size]).median_ms for size in sizes],
                exponent=exponent([found[size] for size in sizes], [width * height for width, height in sizes]),
            )


def _share(probe: Times, times: Times, work: float) -> Ratio:
    """Return the rate as a share of the probe's. work: that of a call in calls of the probe."""
    quotient = ratio([probe], [times])
    return Ratio(work * quotient.median, work * quotient.low, work * quotient.high)


def compared(measured: Mapping[Contestant, Times], macs: Mapping[str, int]) -> Iterator[RatioRow]:
    """Yield the ratios of what was timed in the same setting, see `opponents`; macs: by the name of a subject."""
    index = {(each.setting, each.subject): each for each in measured if each.subject is not None}
    files = [each for each in measured if each.subject is None and each.batch == 1]
    for one in measured:
        against: list[list[Contestant]] = []
        if one.part == "around":  # of two networks it is as good as the same
            continue
        if one.subject is not None:
            for others in opponents(one.subject, macs):
                if all((one.setting, other) in index for other in others):
                    against.append([index[one.setting, other] for other in others])
        elif one.batch > 1:
            single = one.name.removesuffix(f", batch of {one.batch}")
            against = [[file] * one.batch for file in files if (file.setting, file.name) == (one.setting, single)]
        elif one.role == "student":
            same = [file for file in files if (file.setting, file.tasks) == (one.setting, one.tasks)]
            against = [[file] for file in same if file.role == "teacher"]
        for several in against:
            names = tuple(other.name for other in several)
            share = macs[one.name] / sum(macs[name] for name in names) if one.subject is not None else None
            quotient = ratio([measured[one]], [measured[other] for other in several])
            yield RatioRow(one.name, names, *one.setting, quotient, share)


def opponents(one: Subject, macs: Mapping[str, int]) -> Iterator[tuple[Subject, ...]]:
    """Yield what a network is compared with; of several, with the sum of their times.

    Its teacher, or those of its two tasks; image-level with visible-only fusion; one for both tasks with the dearer of
    its like for a single one. macs: by name.
    """
    teachers = one.teachers()
    if one not in teachers:
        yield teachers
    if one.kind == "image":
        yield (replace(one, kind="visible"),)
    if one.tasks == "joint":
        single = [subject(one.kind, task, one.neck or "light") for task in TASKS["joint"]]
        if all(each.name in macs for each in single):
            yield (max(single, key=lambda each: macs[each.name]),)


def _contestants(
    settings: Settings, change: Callable[[NetworkSettings], NetworkSettings], device: torch.device
) -> tuple[list[Contestant], list[NotRun]]:
    """Make everything that is to be timed and call it once; what fails is not run, with its reason."""
    made: list[Contestant] = []
    not_run = [NotRun(name, "not asked for, see --runtimes") for name in RUNTIMES if name not in settings.runtimes]

    def attempt(what: str, make: Callable[[], Contestant]) -> None:
        log.info("making %s", what)
        try:
            contestant = make()
            contestant.call()
        except Exception as error:  # a compiler, a provider or a driver: each has its own errors
            reason = str(error).strip().partition("\n")[0]
            not_run.append(NotRun(what, f"{type(error).__name__}: {reason}"))
            log.warning("not run: %s: %s", what, reason)
        else:
            made.append(contestant)

    subjects = [
        subject(kind, tasks, neck) for neck in settings.necks for tasks in settings.tasks for kind in settings.kinds
    ]
    batch = settings.batch
    for runtime in settings.runtimes:
        options = None
        if runtime.startswith("onnx-"):
            options = SessionSettings((runtime.removeprefix("onnx-"),), threads=torch.get_num_threads())
            reason = unavailable(options)
            if reason is not None:
                not_run.append(NotRun(runtime, reason))
                continue
        for each in dict.fromkeys(subjects):
            torch.manual_seed(0)
            network = make_network(change(each.settings(settings.input_size)))
            camera_size = settings.camera_size or settings.input_size
            for part, precision in itertools.product(settings.parts, settings.precisions):
                what = f"{each.name}, {runtime} {precision} {part}"
                if part != "network" and batch > 1:
                    not_run.append(NotRun(what, "a graph takes one image, see --batch"))
                elif options is None:
                    make = partial(
                        torch_contestant, each, network, runtime, precision, part, device, batch, camera_size
                    )
                    attempt(what, make)
                elif precision == "fp32":
                    attempt(what, partial(onnx_contestant, each, network, runtime, part, options, batch, camera_size))
                else:
                    not_run.append(NotRun(what, "the export writes fp32; name a file of another precision in --files"))
        if options is not None:
            for path, pairs in itertools.product(settings.files, dict.fromkeys((1, *settings.batches))):
                what = f"{path}, {runtime}" + (f", batch of {pairs}" if pairs > 1 else "")
                attempt(what, partial(file_contestant, path, runtime, options, pairs))
    return made, not_run
