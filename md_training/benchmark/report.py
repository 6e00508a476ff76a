"""What a benchmark leaves behind: JSON whose schema these dataclasses are, tables and a roofline picture."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from md_training.benchmark.stopwatch import Ratio, Summary

SCHEMA = 1
"""Version of the JSON."""
GEMM, COPY = "matrix product", "copy"
"""Names of the two probes of the machine."""


@dataclass(frozen=True)
class CostRow:
    """What a network costs as it is exported; counts.

    name: kind, tasks and neck. parameters: trained values. multiply_accumulates: of one image; parts: of backbone,
    joint branch, heads. bytes_moved: of one call of command.batch images in fp32, see subjects.bytes_moved.
    ..._to_teachers: share of those of the two-stream teacher with the same heads, or, of a network for both tasks, of
    its two teachers together.
    """

    name: str
    kind: str
    tasks: str
    neck: str
    parameters: int
    multiply_accumulates: int
    bytes_moved: int
    parts: dict[str, int]
    parameters_to_teachers: float
    multiply_accumulates_to_teachers: float


@dataclass(frozen=True)
class Probe:
    """A peak of the machine, from the same rounds. rate: G/s, of FLOP (GEMM) or of bytes read and written (COPY)."""

    name: str
    precision: str
    rate: float
    time: Summary


@dataclass(frozen=True)
class Measurement:
    """How long one call takes; see contestants.Contestant.

    role: kind of network, or the role of a file. Of the part `network`: gflops is the rate (two per
    multiply-accumulate), intensity its FLOP per byte moved, of_gemm and of_copy its share of the probes' rates (formed
    round by round; above 1 where a convolution needs fewer multiplications than it counts, or data stay in the caches).
    """

    name: str
    role: str
    tasks: str
    runtime: str
    precision: str
    part: str
    time: Summary
    gflops: float | None = None
    intensity: float | None = None
    of_gemm: Ratio | None = None
    of_copy: Ratio | None = None


@dataclass(frozen=True)
class RatioRow:
    """A time over another (or over the sum of several), formed round by round in one run.

    multiply_accumulates: the same ratio of the MACs; None for files.
    """

    numerator: str
    denominators: tuple[str, ...]
    runtime: str
    precision: str
    part: str
    time: Ratio
    multiply_accumulates: float | None


@dataclass(frozen=True)
class GrowthRow:
    """How the time of a network grows with its input.

    sizes: (width, height) px. median_ms: of a call, at each. exponent: of the pixels, see stopwatch.exponent.
    """

    name: str
    runtime: str
    precision: str
    part: str
    sizes: list[tuple[int, int]]
    median_ms: list[float]
    exponent: Ratio


@dataclass(frozen=True)
class NotRun:
    """What was not measured, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The whole; `dataclasses.asdict` of it is the JSON.

    created: UTC. command: settings of the benchmark. machine: name to description. growth: of several sizes, where
    asked for. times_s: by `name, runtime precision part`, at further sizes with ` at WxH`, the seconds of every call, a
    list for each round.
    """

    schema: int
    created: str
    git_revision: str
    command: dict[str, Any]
    machine: dict[str, Any]
    costs: list[CostRow]
    probes: list[Probe]
    measurements: list[Measurement]
    ratios: list[RatioRow]
    growth: list[GrowthRow]
    not_run: list[NotRun]
    times_s: dict[str, list[list[float]]]


def tables(report: Report) -> str:
    """Return everything but the single times as Markdown."""
    width, height = report.command["input_size"]
    parts = [
        f"## Costs at {width}x{height}, as exported",
        markdown(
            ("network", "parameters, M", "GMAC", "MB moved", "parameters / teacher", "MAC / teacher", "GMAC by part"),
            [
                (
                    row.name,
                    f"{row.parameters / 1e6:.2f}",
                    f"{row.multiply_accumulates / 1e9:.2f}",
                    f"{row.bytes_moved / 1e6:.0f}",
                    f"{row.parameters_to_teachers:.3f}",
                    f"{row.multiply_accumulates_to_teachers:.3f}",
                    ", ".join(f"{name} {macs / 1e9:.2f}" for name, macs in row.parts.items()),
                )
                for row in report.costs
            ],
        ),
        "Of a network for both tasks (joint) the share is of its two teachers together.",
    ]
    if report.measurements:
        parts += [
            "## Machine",
            markdown(("", ""), [(name, str(value)) for name, value in report.machine.items()]),
            markdown(
                ("probe", "G/s", "median, ms", "p25 to p75", "p99"),
                [
                    (f"{probe.name} {probe.precision}", f"{probe.rate:.1f}", *_times(probe.time))
                    for probe in report.probes
                ],
            ),
            "## Times of one call",
            markdown(
                ("network", "runtime", "part", "median, ms", "p25 to p75", "p99", "GFLOP/s", "of GEMM", "of copy"),
                [
                    (
                        row.name,
                        f"{row.runtime} {row.precision}",
                        row.part,
                        *_times(row.time),
                        "" if row.gflops is None else f"{row.gflops:.0f}",
                        "" if row.of_gemm is None else f"{row.of_gemm.median:.0%}",
                        "" if row.of_copy is None else f"{row.of_copy.median:.0%}",
                    )
                    for row in report.measurements
                ],
            ),
            f"{report.measurements[0].time.count} calls each; p99 of fewer than 100 is the slowest.",
            "## Ratios, formed within each round",
            markdown(
                ("of", "to", "runtime", "part", "time", "95 %", "MAC", "time / MAC"),
                [
                    (
                        row.numerator,
                        " + ".join(row.denominators),
                        f"{row.runtime} {row.precision}",
                        row.part,
                        f"{row.time.median:.3f}",
                        f"{row.time.low:.3f} to {row.time.high:.3f}",
                        "" if row.multiply_accumulates is None else f"{row.multiply_accumulates:.3f}",
                        "" if row.multiply_accumulates is None else f"{row.time.median / row.multiply_accumulates:.3f}",
                    )
                    for row in report.ratios
                ],
            ),
        ]
    if report.growth:
        shown = [f"{width}x{height}, ms" for width, height in report.growth[0].sizes]
        parts += [
            "## Time against size",
            markdown(
                ("network", "runtime", "part", *shown, "exponent of the pixels", "95 %"),
                [
                    (
                        row.name,
                        f"{row.runtime} {row.precision}",
                        row.part,
                        *(f"{time:.1f}" for time in row.median_ms),
                        f"{row.exponent.median:.2f}",
                        f"{row.exponent.low:.2f} to {row.exponent.high:.2f}",
                    )
                    for row in report.growth
                ],
            ),
        ]
    if report.not_run:
        parts += ["## Not run", markdown(("what", "why"), [(item.what, item.reason) for item in report.not_run])]
    return "\n\n".join(parts)


def _times(time: Summary) -> tuple[str, str, str]:
    return f"{time.median_ms:.2f}", f"{time.p25_ms:.2f} to {time.p75_ms:.2f}", f"{time.p99_ms:.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned."""
    cells = [tuple(header), *(tuple(cell.replace("|", "/").replace("\n", " ") for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def draw(report: Report, path: Path) -> None:
    """Draw the rate of every network against its FLOP per byte, below what the machine's probes allow (a roofline).

    path: .png, .svg or .pdf. Raises ValueError where matplotlib is missing or no network was timed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"the picture: {error}; pip install matplotlib, or leave out --picture") from None
    points = [
        (row, row.intensity, row.gflops)
        for row in report.measurements
        if row.gflops is not None and row.intensity is not None
    ]
    if not points:
        raise ValueError("the picture shows the part `network`, and none was timed: name it in --parts")
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rates = {(probe.name, probe.precision): probe.rate for probe in report.probes}
    low, high = min(x for _, x, _ in points) / 4, max(x for _, x, _ in points) * 4
    for (name, precision), rate in rates.items():
        if name == GEMM:
            knee = rate / rates[COPY, "fp32"]
            left, right = min(low, knee / 8), max(high, 2 * knee)
            axes.plot([left, knee, right], [rate * left / knee, rate, rate], label=f"{GEMM} {precision} and {COPY}")
    names = list(dict.fromkeys(row.name for row, _, _ in points))
    colours = dict(zip(names, itertools.cycle(colormaps["tab20"].colors), strict=False))  # type: ignore[attr-defined]
    runtimes = dict.fromkeys(f"{row.runtime} {row.precision}" for row, _, _ in points)
    markers = dict(zip(runtimes, itertools.cycle("osD^vPX*"), strict=False))
    for row, x, y in points:
        axes.plot([x], [y], markers[f"{row.runtime} {row.precision}"], color=colours[row.name], alpha=0.8)
    for runtime, marker in markers.items():
        axes.plot([], [], marker, color="grey", label=runtime)
    for name, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=6, label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte that convolutions read and write",
        ylabel="GFLOP/s",
        title=f"{report.machine['processor']}, {report.machine['threads']} threads"
        if report.machine["device"] == "cpu"
        else str(report.machine["device"]),
    )
    axes.grid(which="both", alpha=0.2)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150)
