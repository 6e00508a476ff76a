"""How a training shows how far it is: a live display on a terminal, plain lines of the log otherwise."""

import logging
from dataclasses import dataclass
from types import TracebackType

import rich
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)

HEADLINES = ("AP50 [all]", "AP50 [night]", "mAcc9 [all]", "mIoU9 [all]", "mIoU9 [night]")
"""Figures of an evaluation that the display has room for."""


@dataclass(frozen=True)
class Report:
    """How a training stands.

    step: the last one done, of steps. terms: of the loss, means since the last report. images_per_s: of all processes,
    since the last report. waiting: share of that time, 0..1, in which the next batch was not ready: much of it means
    that the data are the bottleneck (--workers). left_s: seconds to the end at the speed so far.
    """

    step: int
    steps: int
    terms: dict[str, float]
    learning_rate: float
    images_per_s: float
    waiting: float
    left_s: float

    @property
    def speed(self) -> str:
        """Images a second, the share of the time spent waiting for them, and the time that is left."""
        return f"{self.images_per_s:.1f} images/s ({self.waiting:.0%} waiting), {duration(self.left_s)} to go"


class Display:
    """A line of the log for every report. A context manager."""

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        pass

    def step(self, step: int, terms: dict[str, float]) -> None:
        """Show that a step is done, with its loss terms."""

    def report(self, report: Report) -> None:
        log.info(
            "step %d/%d  %s  lr %.2e  %s",
            report.step,
            report.steps,
            "  ".join(f"{name} {value:.4f}" for name, value in report.terms.items()),
            report.learning_rate,
            report.speed,
        )

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Show the figures of an evaluation, by name (evaluate.Scores.figures)."""


class LiveDisplay(Display):
    """A bar, the loss terms and the last evaluation at the foot of a terminal; the log runs above it."""

    def __init__(self, name: str, steps: int, done: int, console: Console | None = None) -> None:
        """name: of the run. done: steps before this process."""
        self._report: Report | None = None
        self._terms: dict[str, float] = {}
        self._evaluation = ""
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self._task = self._bar.add_task(name, total=steps, completed=done, speed="")
        self._live = Live(console=console or rich.get_console(), get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._live.stop()

    def step(self, step: int, terms: dict[str, float]) -> None:
        self._bar.update(self._task, completed=step)
        self._terms = terms

    def report(self, report: Report) -> None:
        self._report = report
        self._bar.update(self._task, completed=report.step, speed=report.speed)

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        shown = [f"{name} {figures[name]:.3f}" for name in HEADLINES if name in figures]
        self._evaluation = f"evaluation after step {step}: {'  '.join(shown)}"

    def _render(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("loss")
        for name in (*self._terms, "learning rate"):
            table.add_column(name, justify="right")
        table.add_row("this step", *(f"{value:.4f}" for value in self._terms.values()), "")
        if self._report is not None:
            values = (f"{self._report.terms[name]:.4f}" for name in self._terms)
            table.add_row(f"mean to step {self._report.step}", *values, f"{self._report.learning_rate:.2e}")
        return Group(self._bar, table, Text(self._evaluation))  # a text: [all] is no markup


def display(name: str, steps: int, done: int) -> Display:
    """Return the display that fits where the output goes; arguments as of LiveDisplay."""
    return LiveDisplay(name, steps, done) if rich.get_console().is_terminal else Display()


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
