"""`python -m md_training experiments`: run a table's cells that are missing, then write what is known."""

import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import torch
import tyro

from md_perception.metrics.miss_rate import Bootstrap
from md_training.experiments.cells import CellRecord, ExperimentError, finished, run_cell, trained
from md_training.experiments.report import Study
from md_training.experiments.tables import FROM_SCENES, Cell, DataName, TableName, cells
from md_training.models.networks import Task

log = logging.getLogger(__name__)

TASKS: dict[str, tuple[Task, ...]] = {
    "scenes": ("detection", "segmentation"),
    "msrs": ("detection",),
    "kaist": ("detection",),
    "mfnet": ("segmentation",),
}
"""Of a data set, as far as the paper's tables go."""


def experiments(
    table: Annotated[TableName, tyro.conf.Positional],
    data: DataName = "scenes",
    tasks: tuple[Task, ...] = (),
    seeds: tuple[int, ...] = (1, 2, 3),
    schedule: Literal["paper", "small", "check", "smoke"] = "paper",
    rows: tuple[str, ...] = (),
    runs: Path = Path("runs/experiments"),
    results: Path = Path("results"),
    devices: tuple[str, ...] = ("auto",),
    threads: int = 0,
    workers: int = max(1, (os.cpu_count() or 2)),
    weights: str = "",
    plan: bool = False,
    report: bool = False,
) -> None:
    """Run a table of the paper: every cell that has no record yet, then the table of all that have one.

    Writes results/DATA-SCHEDULE/CELL.json and .npz (what each network answered to the held-out samples) and
    results/DATA-SCHEDULE-TABLE.json, .md and .png. A run that was stopped goes on where it was.

    Args:
        table: `fusion` (Tables 1 and 2), `resolution` (3 and 4), `ablation` (7 and 8), `joint`, `start` (what
            starting from scenes gives on msrs), `inherit` (what starting from the teacher gives, with the transfer and
            without), or `variants` (a teacher that was trained three times as long; a lighter student; terms of the
            distillation without thermal).
        data: What is trained on; msrs, which is small, by 5-fold cross-validation, from the weights on scenes.
        tasks: By default all that the paper has of the data set.
        seeds: Of the runs; a student's teacher has its seed, the long one has seed 1.
        schedule: `paper`, `small` (320x256, for a machine without a GPU), `check` (minutes a cell) or `smoke`
            (seconds); the last two prove nothing about the method.
        rows: Only cells whose name contains one of these, with the teachers that they need.
        runs: Folder of the runs, below it DATA-SCHEDULE.
        results: Folder of the results.
        devices: One process each: `cuda:0 cuda:1`, `cpu cpu`; `auto` is every CUDA device, or the CPU once.
        threads: Of each process on the CPU; 0 leaves it to PyTorch.
        workers: Processes that prepare samples, of each run.
        weights: First weights of the backbone, but of rows from scratch: `none`, `imagenet` or a file; by default the
            preset's.
        plan: Only list the cells and what they will take, from the speed of those that are finished.
        report: Only write the table of what is finished.
    """
    chosen = tasks or TASKS[data]
    if table == "start" and data not in FROM_SCENES:
        raise ValueError(f"--data {data}: only cells on {', '.join(FROM_SCENES)} start from those of scenes")
    if not seeds:
        raise ValueError("--seeds names no seed: each is a run of every cell, e.g. --seeds 1 2 3")
    every = list(dict.fromkeys(cell for _, cell in cells(table, data, chosen, seeds, schedule)))
    if unknown := [part for part in rows if not any(part in cell.name for cell in every)]:
        names = ", ".join(cell.name for cell in every)
        raise ValueError(f"--rows {' '.join(unknown)}: no cell's name contains it; there are {names}")
    wanted = [cell for cell in every if not rows or any(part in cell.name for part in rows)]
    wanted = [cell for cell in every if cell in wanted or any(cell in other.needs for other in wanted)]
    folder = runs / f"{data}-{schedule}"
    known = {cell: finished(cell, folder, results, weights) for cell in wanted}
    missing = [cell for cell in wanted if known[cell] is None]
    # A record is enough to compare; a student needs its teacher's weights too.
    needed = {teacher for cell in missing for teacher in cell.needs}
    missing += [cell for cell in wanted if cell in needed and cell not in missing and not trained(cell, folder)]
    log.info("%s\n%s", _plan(wanted, known, missing, folder, weights), "")
    if plan:
        return
    if not report and missing:
        _check_starts(table, missing, runs)
        _run_all(missing, folder, results, weights, _devices(devices), threads, workers)
    study = Study(table, data, chosen, seeds, schedule, results, Bootstrap())
    results.mkdir(parents=True, exist_ok=True)
    for ending, content in ((".json", json.dumps(study.to_json(), indent=1) + "\n"), (".md", study.markdown())):
        (results / f"{study.name}{ending}").write_text(content)
    study.draw(results / f"{study.name}.png")
    print(study.markdown())


def _check_starts(table: TableName, missing: Sequence[Cell], runs: Path) -> None:
    """Raise ExperimentError where cells start from others that were not trained yet."""
    starts = dict.fromkeys(cell.start for cell in missing if cell.start is not None and cell.start not in cell.needs)
    if absent := [start for start in starts if not trained(start, runs / start.study)]:
        there, seeds = absent[0], " ".join(map(str, sorted({start.seed for start in absent})))
        raise ExperimentError(
            f"{len(absent)} cells on {there.data} come first, their weights are what these start from: `experiments "
            f"{'resolution' if table == 'start' else table} --data {there.data} --schedule {there.schedule} --seeds "
            f"{seeds} --rows {' '.join(start.name for start in absent)}`, and the same --runs"
        )


def _plan(
    wanted: Sequence[Cell], known: dict[Cell, CellRecord | None], missing: Sequence[Cell], folder: Path, weights: str
) -> str:
    """Return the cells and, from the speed of finished ones of their kind, the time that they will take."""
    lines = []
    hours = 0.0
    width = max((len(cell.name) for cell in wanted), default=0) + 2
    for cell in wanted:
        run = cell.run(folder, weights)
        images = run.optimisation.steps * run.optimisation.batch_size
        alike = [
            record.images_per_s
            for other, record in known.items()
            if record is not None and record.images_per_s and (other.role, other.tasks) == (cell.role, cell.tasks)
        ]
        if cell not in missing:
            text = "done"
        elif alike:
            cost = images / (sum(alike) / len(alike)) / 3600
            hours += cost
            text = f"{images} images, about {cost:.2f} h"
        else:
            text = f"{images} images, speed not measured yet"
        lines.append(f"  {cell.name:<{width}}{text}")
    return "\n".join([f"{len(wanted)} cells, {len(missing)} to run, {hours:.1f} h where it is known:", *lines])


def _devices(names: Sequence[str]) -> list[str]:
    if tuple(names) != ("auto",):
        return list(names)
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def _run_all(
    missing: Sequence[Cell],
    folder: Path,
    results: Path,
    weights: str,
    devices: list[str],
    threads: int,
    workers: int,
) -> None:
    """Run the cells, a process per device, students after their teachers.

    Raises ExperimentError, when the others are through, naming the cells that failed.
    """
    waiting, running, free = list(missing), dict[Future[CellRecord], tuple[Cell, str]](), list(devices)
    failed: dict[Cell, str] = {}
    with (
        _sigterm_for_all(),
        ProcessPoolExecutor(
            len(devices), mp_context=get_context("spawn"), initializer=_start, initargs=(threads,)
        ) as pool,
    ):
        while waiting or running:
            going = {cell for cell, _ in running.values()}
            ready = [c for c in waiting if not any(t in waiting or t in going for t in c.needs)]
            for cell in ready:
                if any(teacher in failed for teacher in cell.needs):
                    failed[cell] = "its teacher failed"
                    waiting.remove(cell)
                elif free:
                    device = free.pop()
                    log.info("%s: %s starts, %d wait", device, cell.name, len(waiting) - 1)
                    future = pool.submit(
                        run_cell, cell, folder, results, weights=weights, device=device, workers=workers
                    )
                    running[future] = cell, device
                    waiting.remove(cell)
            if not running:
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, device = running.pop(future)
                free.append(device)
                error = future.exception()
                if error is not None:
                    failed[cell] = f"{type(error).__name__}: {error}"
                    log.error("%s: %s failed: %s", device, cell.name, error)
                else:
                    log.info("%s: %s is done: %s", device, cell.name, _headline(future.result()))
    if failed:
        reasons = "\n".join(f"  {cell.name}: {reason}" for cell, reason in failed.items())
        raise ExperimentError(f"{len(failed)} cells failed; the same command runs them again:\n{reasons}")


@contextmanager
def _sigterm_for_all() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does in a terminal: it reaches the processes that train, which leave a checkpoint."""

    def stop(number: int, frame: FrameType | None) -> None:
        for child in active_children():
            child.terminate()
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(threads: int) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    if threads:
        torch.set_num_threads(threads)


def _headline(record: CellRecord) -> str:
    names = [name for name in record.figures if name.endswith(("person,all]", "AP50[all]", "mAcc9[all]", "mIoU9[all]"))]
    return ", ".join(f"{name} {record.figures[name]:.4f}" for name in names)
