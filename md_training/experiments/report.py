"""Tables with mean and standard error, paired differences with their intervals, and the pictures of a study."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from md_perception.metrics.miss_rate import REASONABLE, Bootstrap, metric_name
from md_perception.metrics.resampling import DetectionResamples, Estimate, SegmentationResamples, estimate
from md_training.experiments.cells import CellRecord, ExperimentError, HeldOut
from md_training.experiments.tables import TABLES, Cell, DataName, Row, TableName, cells
from md_training.models.networks import Task

BoolArray = np.ndarray
IntArray = np.ndarray


@dataclass(frozen=True)
class Metric:
    """A score of a task.

    names: of its figures, with {} for the subset; a record has one of them. better: +1 where more is better, else -1.
    """

    task: Task
    title: str
    names: tuple[str, ...]
    better: int
    published: bool = False
    """Whether it is the paper's."""

    def figure(self, figures: Mapping[str, float], subset: str) -> float:
        """Return one of a trial's figures in percent, NaN where there is none."""
        there = [figures[name] for name in self.of(subset) if name in figures]
        return 100 * there[0] if there else float("nan")

    def of(self, subset: str) -> list[str]:
        """Return the names of its figure of a subset."""
        return [name.format(subset) for name in self.names]

    def resampled(self, held_out: HeldOut) -> Callable[[IntArray], float]:
        """Return the score, in percent, of any redraw of the images."""
        if self.task == "detection":
            if held_out.truth is None or held_out.detections is None:
                raise ExperimentError("a network without detection has no detection score")
            boxes = DetectionResamples(held_out.truth, held_out.detections)
            if self.title == "AP50":
                return lambda times: 100 * boxes.ap50(times)
            return lambda times: 100 * boxes.miss_rate("person", times)
        if held_out.confusions is None:
            raise ExperimentError("a network without segmentation has no segmentation score")
        pixels = SegmentationResamples(held_out.confusions)
        if self.title == "mAcc9":
            return lambda times: 100 * pixels.scores(times).macc9
        return lambda times: 100 * pixels.scores(times).miou9


METRICS = (
    Metric(
        "detection",
        "miss rate",
        (metric_name("person", "{}"), metric_name(REASONABLE.name, "{}")),
        -1,
        published=True,
    ),
    Metric("detection", "AP50", ("AP50[{}]",), +1),
    Metric("segmentation", "mAcc9", ("mAcc9[{}]",), +1, published=True),
    Metric("segmentation", "mIoU9", ("mIoU9[{}]",), +1),
)

COMPARISONS: dict[TableName, tuple[tuple[str, str], ...]] = {
    "fusion": (
        ("feature-level (teacher)", "image-level"),
        ("image-level", "visible-only"),
        ("image-level", "thermal-only"),
        ("feature-level (teacher)", "decision-level"),
    ),
    "resolution": (
        ("full resolution, MD", "full resolution"),
        ("4x, MD", "4x"),
        ("16x, MD", "16x"),
        ("64x, MD", "64x"),
        ("visible-only, MD", "visible-only"),
        ("teacher", "16x, MD"),
    ),
    "ablation": (
        ("residual blocks, no teacher", "none"),
        ("S (MSE)", "none"),
        ("S (MSE, scale of F-MSE)", "none"),
        ("S (F-MSE)", "none"),
        ("A", "none"),
        ("S (F-MSE) + A", "none"),
        ("S (F-MSE) + A", "residual blocks, no teacher"),
        ("S (F-MSE) + A", "S (F-MSE)"),
        ("S (F-MSE) + A", "A"),
    ),
    "start": (
        ("16x, from scenes", "16x, from scratch"),
        ("teacher, from scenes", "teacher, from scratch"),
    ),
    "inherit": (
        ("16x, MD", "16x"),
        ("16x, steps of the long teacher", "16x"),
        ("16x, residual blocks, no teacher, its steps", "16x, steps of the long teacher"),
        ("16x, teacher's weights", "16x"),
        ("16x, MD, teacher's weights", "16x"),
        ("16x, MD, teacher's weights", "16x, teacher's weights"),
        ("16x, MD, teacher's weights", "16x, MD"),
        ("16x, long teacher's weights", "16x"),
        ("16x, long teacher's weights", "16x, steps of the long teacher"),
        ("16x, MD, long teacher's weights", "16x"),
        ("16x, MD, long teacher's weights", "16x, steps of the long teacher"),
        ("16x, MD, long teacher's weights", "16x, long teacher's weights"),
        ("16x, MD, long teacher's weights", "16x, MD, long teacher"),
        ("16x, MD, long teacher, its steps", "16x, steps of the long teacher"),
        ("16x, MD, long teacher, its steps", "16x, residual blocks, no teacher, its steps"),
        ("16x, MD, long teacher, its steps", "16x, MD, long teacher"),
        ("long teacher", "16x, steps of the long teacher"),
        ("long teacher", "16x, MD, long teacher's weights"),
        ("long teacher", "16x, MD, long teacher, its steps"),
    ),
    "variants": (
        ("16x, MD", "16x"),
        ("16x, MD, long teacher", "16x"),
        ("16x, MD, long teacher", "16x, MD"),
        ("16x, MD, lighter", "16x"),
        ("16x, MD, lighter", "16x, MD"),
        ("visible-only, MD", "visible-only"),
        ("visible-only, MD, long teacher", "visible-only"),
        ("visible-only, MD, long teacher", "visible-only, MD"),
        ("visible-only, MD, weak S", "visible-only"),
        ("visible-only, MD, weak S", "visible-only, MD"),
        ("visible-only, S (F-MSE)", "visible-only"),
        ("visible-only, A", "visible-only"),
        ("visible-only, residual blocks, no teacher", "visible-only"),
        ("visible-only, MD", "visible-only, residual blocks, no teacher"),
    ),
    "joint": (
        ("MD, one for both", "native, one for both"),
        ("MD, one for both", "MD, one for each task"),
    ),
}
"""Labels of rows: the first is hoped to be better."""
GAPS: dict[TableName, tuple[tuple[str, str, str], ...]] = {
    "resolution": (("16x, MD", "16x", "teacher"),),
    "inherit": (
        ("16x, MD, long teacher", "16x", "long teacher"),
        ("16x, long teacher's weights", "16x", "long teacher"),
        ("16x, MD, long teacher's weights", "16x", "long teacher"),
        ("16x, MD, long teacher, its steps", "16x, steps of the long teacher", "long teacher"),
    ),
}
"""Labels of student, native and teacher, for the part of the gap that distillation closes."""


SUBSETS = ("day", "night", "all")


@dataclass(frozen=True)
class Trial:
    """A finished row of one seed: one cell, or one for each fold of a cross-validation."""

    seed: int
    figures: dict[str, float]
    held_out: HeldOut


@dataclass(frozen=True)
class Difference:
    """By how many points a row is better than another, by subset, paired by image and seed. seeds: that have both."""

    better: str
    worse: str
    seeds: int
    points: dict[str, Estimate]

    def line(self) -> str:
        """Return it as a line of a table whose columns are SUBSETS and the number of seeds."""
        shown = [
            f"{found.value:+.2f} ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})"
            if (found := self.points.get(subset))
            else "none"
            for subset in SUBSETS
        ]
        return f"| {self.better} − {self.worse} | {' | '.join(shown)} | {self.seeds} |"


class Study:
    """The finished cells of a table."""

    def __init__(
        self,
        table: TableName,
        data: DataName,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        schedule: str,
        results: Path,
        bootstrap: Bootstrap,
    ) -> None:
        """Read the records. Raises ExperimentError where one is damaged."""
        self.table, self.data, self.tasks, self.bootstrap = table, data, tuple(tasks), bootstrap
        self.seeds, self.schedule = tuple(seeds), schedule
        self.rows: dict[tuple[str, Task], Row] = {}
        self.wanted: dict[tuple[str, Task], list[Cell]] = {}
        self.records: dict[Cell, CellRecord] = {}
        self._trials: dict[tuple[Cell, ...], Trial] = {}
        self._differences: dict[str, list[Difference]] = {}
        self._results = results
        for row, cell in cells(table, data, tasks, seeds, schedule):
            for task in cell.tasks:
                self.rows[row.label, task] = row
                self.wanted.setdefault((row.label, task), []).append(cell)
            place = results / cell.study / f"{cell.name}.json"
            if place.exists():
                self.records[cell] = CellRecord.load(place)

    @property
    def name(self) -> str:
        return f"{self.data}-{self.schedule}-{self.table}"

    def labels(self, task: Task) -> list[str]:
        """Return the labels of a task's rows in the table's order, then those of teachers that are no row of it."""
        order = [row.label for row in TABLES[self.table]]
        there = [label for label, of_task in self.rows if of_task == task]
        return [label for label in order if label in there] + [label for label in there if label not in order]

    def done(self, label: str, task: Task) -> dict[int, Trial]:
        """Return the finished trials of a row, by seed: those of which every fold is."""
        groups: dict[int, list[Cell]] = {}
        for cell in self.wanted.get((label, task), []):
            groups.setdefault(cell.seed, []).append(cell)
        whole = {seed: tuple(group) for seed, group in groups.items() if all(cell in self.records for cell in group)}
        return {seed: self._trial(group) for seed, group in whole.items()}

    def _trial(self, group: tuple[Cell, ...]) -> Trial:
        if group not in self._trials:
            parts = [HeldOut.load(self._results / cell.study / f"{cell.name}.npz") for cell in group]
            held_out = parts[0] if len(parts) == 1 else HeldOut.joined(parts)
            figures = self.records[group[0]].figures if len(parts) == 1 else held_out.figures()
            self._trials[group] = Trial(group[0].seed, figures, held_out)
        return self._trials[group]

    def differences(self, metric: Metric) -> list[Difference]:
        """Return the table's comparisons of which at least one seed has both rows."""
        if metric.title not in self._differences:
            found = [self.difference(metric, better, worse) for better, worse in COMPARISONS[self.table]]
            self._differences[metric.title] = [difference for difference in found if difference is not None]
        return self._differences[metric.title]

    def difference(self, metric: Metric, better: str, worse: str) -> Difference | None:
        """Return by how much the first row is better; None where no seed has both."""
        pairs = self._paired(metric, better, worse)
        if not pairs:
            return None
        points = {}
        for subset in SUBSETS:
            images = self._images(metric, better, subset)

            def mean_difference(times: IntArray, repeats: IntArray, images: BoolArray = images) -> float:
                redrawn = np.zeros(len(images), np.int64)
                redrawn[images] = times
                return metric.better * float(np.mean([pairs[i][0](redrawn) - pairs[i][1](redrawn) for i in repeats]))

            if images.any():
                points[subset] = estimate(mean_difference, int(images.sum()), len(pairs), self.bootstrap)
        return Difference(better, worse, len(pairs), points)

    def gap_closed(self, metric: Metric, student: str, native: str, teacher: str) -> tuple[Estimate, int] | None:
        """Return the part of the gap between native student and teacher that a student closes, in percent.

        None where no seed has all three.
        """
        triples = self._paired(metric, student, native, teacher)
        if not triples:
            return None

        def part(times: IntArray, repeats: IntArray) -> float:
            means = np.mean([[score(times) for score in triples[i]] for i in repeats], axis=0)
            return float(100 * (means[0] - means[1]) / (means[2] - means[1])) if means[2] != means[1] else float("nan")

        return estimate(part, len(self._images(metric, student)), len(triples), self.bootstrap), len(triples)

    def _paired(self, metric: Metric, *labels: str) -> list[tuple[Callable[[IntArray], float], ...]]:
        """Return, for each seed for which all these rows are finished, their scores."""
        by_seed = [self.done(label, metric.task) for label in labels]
        seeds = sorted(set.intersection(*(set(found) for found in by_seed)))
        return [tuple(metric.resampled(found[seed].held_out) for found in by_seed) for seed in seeds]

    def _images(self, metric: Metric, label: str, subset: str = "all") -> BoolArray:
        return next(iter(self.done(label, metric.task).values())).held_out.subset(subset)

    def metrics(self) -> list[Metric]:
        return [metric for metric in METRICS if metric.task in self.tasks]

    def markdown(self) -> str:
        """Return the tables, mean and standard error over the seeds, with the paired differences."""
        lines = [f"# {self.table}: {self.data}, schedule {self.schedule}", ""]
        for metric in self.metrics():
            with_paper = metric.published and self.data in ("kaist", "mfnet")
            head = ["", *SUBSETS, "seeds", *(["paper: day", "night", "all"] if with_paper else [])]
            lines += [f"## {metric.task}: {metric.title}, %", ""]
            lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            for label in self.labels(metric.task):
                done = list(self.done(label, metric.task).values())
                shown = [self._mean(metric, done, subset) for subset in SUBSETS]
                row = [label, *shown, f"{len(done)} of {len(self.seeds)}"]
                published = self.rows[label, metric.task].published.get(metric.task)
                if with_paper:
                    row += (
                        [f"{published.day}", f"{published.night}", f"{published.all} ± {published.error}"]
                        if published
                        else ["", "", ""]
                    )
                lines.append("| " + " | ".join(row) + " |")
            lines.append("")
            if compared := self.differences(metric):
                lines += [
                    f"Better by, points of {metric.title} with their 95 % interval, paired by image and seed:",
                    "",
                ]
                lines += [f"| | {' | '.join(SUBSETS)} | seeds |", "|---" * (len(SUBSETS) + 2) + "|"]
                lines += [difference.line() for difference in compared]
                lines.append("")
            for gap in GAPS.get(self.table, ()):
                if (closed := self.gap_closed(metric, *gap)) is not None:
                    part, seeds = closed
                    lines += [
                        f"Of the gap between {gap[1]} and the {gap[2]}, {gap[0]} closes {part.value:.0f} % "
                        f"({part.interval[0]:.0f} to {part.interval[1]:.0f}; seeds: {seeds}).",
                        "",
                    ]
        return "\n".join([*lines, *self._circumstances()]) + "\n"

    def _mean(self, metric: Metric, done: Sequence[Trial], subset: str) -> str:
        values = np.array([metric.figure(trial.figures, subset) for trial in done])
        values = values[~np.isnan(values)]
        if not len(values):
            return "*not run*" if not done else "none"
        if len(values) == 1:
            return f"{values[0]:.2f}"
        return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"

    def _circumstances(self) -> list[str]:
        records = list(self.records.values())
        if not records:
            return ["No cell is finished."]
        lines = [
            "± is the standard error over the seeds. Intervals redraw images and seeds; those of one seed say nothing "
            "of how another would do.",
            "",
        ]
        machines = sorted({", ".join(f"{k} {v}" for k, v in record.machine.items()) for record in records})
        lines += [f"- held out: {'; '.join(sorted({record.held_out for record in records}))}"]
        lines += [f"- machine: {name}" for name in machines]
        lines += [f"- code: {', '.join(sorted({record.git_revision for record in records}))}"]
        lines += [f"- scene world: {name}" for name in sorted({record.generator for record in records} - {""})]
        lines += [f"- trained for {sum(record.train_s for record in records) / 3600:.1f} h in all"]
        missing = [cell.name for group in self.wanted.values() for cell in group if cell not in self.records]
        if missing:
            lines += [
                f"- not run: {len(set(missing))} cells; `python -m md_training experiments {self.table} "
                f"--data {self.data} --schedule {self.schedule}` runs them"
            ]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the table: every cell's record, and every difference with its interval."""
        differences = [
            {"metric": metric.title, "better": difference.better, "worse": difference.worse, "subset": subset}
            | {"points": found.value, "interval": found.interval, "seeds": difference.seeds}
            for metric in self.metrics()
            for difference in self.differences(metric)
            for subset, found in difference.points.items()
        ]
        rows = [
            {
                "label": label,
                "task": task,
                "cells": [
                    json.loads(json.dumps(vars(self.records[cell]))) if cell in self.records else {"cell": cell.name}
                    for cell in self.wanted[label, task]
                ],
            }
            for label, task in self.wanted
        ]
        closed = [
            {"metric": metric.title, "student": gap[0], "native": gap[1], "teacher": gap[2]}
            | {"percent": found[0].value, "interval": found[0].interval, "seeds": found[1]}
            for metric in self.metrics()
            for gap in GAPS.get(self.table, ())
            if (found := self.gap_closed(metric, *gap)) is not None
        ]
        return {
            "table": self.table,
            "data": self.data,
            "schedule": self.schedule,
            "rows": rows,
            "differences": differences,
            "gap_closed": closed,
        }

    def draw(self, path: Path) -> None:
        """Draw every metric's rows with error bars; the resolution table as a ladder, the teacher as a line."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        # Those of which there is something to see; of an empty table all.
        shown = [
            metric
            for metric in self.metrics()
            if any(self.done(label, metric.task) for label in self.labels(metric.task))
        ]
        metrics = shown or self.metrics()
        figure, axes = plt.subplots(1, len(metrics), figsize=(4.2 * len(metrics), 3.4), layout="constrained")
        for axis, metric in zip(np.atleast_1d(axes), metrics, strict=True):
            if self.table == "resolution":
                self._ladder(axis, metric)
            else:
                labels = [label for label in self.labels(metric.task) if self.done(label, metric.task)]
                for place, label in enumerate(labels):
                    mean, error = self._point(metric, label)
                    axis.errorbar(mean, place, xerr=error, fmt="o", color="#0072b2", capsize=3)
                axis.set_yticks(range(len(labels)), labels)
                axis.invert_yaxis()
                axis.set_xlabel(f"{metric.title}, %")
            axis.grid(alpha=0.3)
            axis.set_title(metric.task)
        figure.savefig(path, dpi=150)
        plt.close(figure)

    def _point(self, metric: Metric, label: str) -> tuple[float, float]:
        values = [metric.figure(trial.figures, "all") for trial in self.done(label, metric.task).values()]
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
        return float(np.mean(values)), error

    def _ladder(self, axis: Any, metric: Metric) -> None:
        steps = {"full resolution": "x1", "4x": "x4", "16x": "x16", "64x": "x64", "visible-only": "none"}
        for ending, name, colour in (("", "native", "#d55e00"), (", MD", "MD", "#0072b2")):
            there = [
                (place, *self._point(metric, label + ending))
                for place, label in enumerate(steps)
                if self.done(label + ending, metric.task)
            ]
            if there:
                places, means, errors = zip(*there, strict=True)
                axis.errorbar(places, means, yerr=errors, fmt="o-", color=colour, capsize=3, label=name)
        if self.done("teacher", metric.task):
            axis.axhline(self._point(metric, "teacher")[0], color="#555555", linestyle="--", label="teacher")
        axis.set_xticks(range(len(steps)), steps.values())
        axis.set_xlabel("thermal resolution")
        axis.set_ylabel(f"{metric.title}, %")
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
