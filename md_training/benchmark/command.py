"""`python -m md_training benchmark`: its settings and its outputs."""

import json as json_text
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from md_perception.files import write_whole
from md_training.benchmark.report import draw, tables
from md_training.benchmark.subjects import Kind, Neck, Part, Precision, Runtime, Tasks

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    kinds: tuple[Kind, ...] = ("visible", "image", "student", "teacher")
    """Networks that are timed. `visible`, `thermal`, `image`, `decision`: native, by their
    fusion; `student`, `visible-student`: with the residual blocks of a distilled one; `teacher`: two streams."""
    tasks: tuple[Tasks, ...] = ("detection", "segmentation")
    """`joint` is one network for both."""
    necks: tuple[Neck, ...] = ("light",)
    """Of the timed detectors."""
    runtimes: tuple[Runtime, ...] = ("eager", "onnx-cpu", "onnx-cuda", "onnx-tensorrt")
    """`compiled` is torch.compile, which takes a minute for each network. What does not work here is said to be so."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """Of torch, below fp32 by autocast; an exported file has its own."""
    parts: tuple[Part, ...] = ("network", "graph")
    """`network` is from its input, folded as the export does it, to the raw heads; `graph` from uint8 camera images to
    final results; `around` is the graph without the network, its heads of noise."""
    files: tuple[Path, ...] = ()
    """Exported students and teachers (.onnx), as the node runs them."""
    input_size: tuple[int, int] = (640, 512)
    """Width and height of the networks' input."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Further input sizes, `--sizes 320 256 1280 1024`: all is timed at each, in the same rounds, and the exponent
    fitted by which time grows with the pixels. The camera has the size of the network."""
    camera_size: tuple[int, int] | None = None
    """Width and height of the camera of `graph` and `around`, by default the networks' input size; the thermal sensor
    has a quarter of it per side."""
    batch: int = 1
    """Images in a call of `network`; `graph` and `around` always have one."""
    batches: tuple[int, ...] = (1,)
    """Pairs that a call of a file of --files answers at once, as for several cameras: `--batches 1 2 4`. Each is
    compared with as many calls of one pair."""
    threads: int = 0
    """Of the processor; 0 is torch's default, a thread per core or OMP_NUM_THREADS."""
    device: str = "cpu"
    """Of torch: `cpu`, `cuda` or `cuda:N`."""
    rounds: int = 20
    """All that is timed takes turns, this often."""
    calls: int = 5
    """Timed calls in a turn, after one that is not. A p99 needs rounds x calls of 100 or more."""
    costs: bool = False
    """Time nothing: count parameters, MACs and bytes moved of every network there is."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.calls, self.batch, *self.batches) < 1 or self.threads < 0:
            raise ValueError("rounds, calls, batch and batches are at least 1, threads at least 0")
        if self.sizes and self.camera_size is not None:
            raise ValueError("--sizes: the camera has the size of the network; leave out --camera-size")


def benchmark_command(
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings(),
    json: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Count what every network costs and measure how fast it runs here, student against teacher in the same rounds.

    Prints Markdown. `benchmark --costs` only counts, in seconds.

    Args:
        settings: What is measured.
        json: File for everything, single times included; md_training.benchmark.report.Report is its schema.
        picture: File (.png, .svg, .pdf) for a roofline: the rate of every network below the machine's peaks.
    """
    if picture is not None and picture.suffix not in PICTURES:
        raise ValueError(f"--picture {picture}: name a file that ends in {', '.join(PICTURES)}")
    from md_training.benchmark.run import benchmark

    report = benchmark(settings)
    print(tables(report))
    if json is not None:
        write_whole(json, (json_text.dumps(asdict(report), indent=2, default=str) + "\n").encode())
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(report, picture)
