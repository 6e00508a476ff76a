"""The arithmetic of the benchmark by hand, and one small run of it; how fast anything is is never asserted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_student import write_batch_student
from tiny_student import tiny_manifest, write_tiny_student
from torch import Tensor, nn

from md_perception.inference import providers
from md_perception.inference.session import StudentError
from md_training.benchmark import run as runner
from md_training.benchmark.command import Settings, benchmark_command
from md_training.benchmark.contestants import GEMM_SIDE, ConstantHeads, Contestant, Images
from md_training.benchmark.report import COPY, GEMM, CostRow, draw, markdown, tables
from md_training.benchmark.run import benchmark, compared
from md_training.benchmark.stopwatch import exponent, interleaved, ratio, summary
from md_training.benchmark.subjects import Kind, Subject, Tasks, all_costs, bytes_moved, subject
from md_training.models.networks import Network, NetworkSettings, Outputs, costs, make_network
from md_training.models.pspnet import SegmentationLogits

# --- time


class Machine:
    """A clock in ns, and work that moves it on; drift_ns: what every call is slower than the one before."""

    def __init__(self, drift_ns: int = 0) -> None:
        self.now, self.drift_ns, self.calls = 0, drift_ns, 0
        self.order: list[str] = []

    def work(self, name: str, duration_ns: int) -> Callable[[], object]:
        def call() -> None:
            self.order.append(name)
            self.calls += 1
            self.now += duration_ns + self.calls * self.drift_ns

        return call


def test_contestants_take_turns_after_an_untimed_call() -> None:
    machine = Machine()
    done: list[int] = []
    times = interleaved(
        {"a": machine.work("a", 1_000_000), "b": machine.work("b", 3_000_000)},
        rounds=3,
        calls=2,
        clock=lambda: machine.now,
        after_round=done.append,
    )
    assert "".join(machine.order) == "aaabbb" + "bbbaaa" + "aaabbb"
    assert times == {"a": [[0.001] * 2] * 3, "b": [[0.003] * 2] * 3}
    assert done == [1, 2, 3]


def test_a_steady_drift_falls_on_all_alike() -> None:
    # By the end, a call takes four times as long as at the beginning; measured one after the other, the second of two
    # equal contestants would seem twice as slow.
    machine = Machine(drift_ns=10_000)
    equal = {name: machine.work(name, 1_000_000) for name in ("a", "b")}
    times = interleaved(equal, rounds=40, calls=3, clock=lambda: machine.now)
    assert machine.calls == 320
    found = ratio([times["b"]], [times["a"]])
    assert found.median == pytest.approx(1, abs=0.01)
    assert found.low <= 1 <= found.high


def test_percentiles_are_nearest_ranks_of_all_calls() -> None:
    visits = [[(100 - 2 * visit - call) * 1e-3 for call in range(2)] for visit in range(50)]  # 100, 99, ... 1 ms
    found = summary(visits)
    assert (found.p25_ms, found.median_ms, found.p75_ms, found.p99_ms) == pytest.approx((25, 50, 75, 99))
    assert found.count == 100


def test_ratios_are_formed_within_each_round() -> None:
    # The machine halves its speed from round to round. Visits count with their medians: 1, 2, 4 and 2, 4, 8.
    fast, slow = [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [4.0, 4.0, 0.1]], [[2.0] * 3, [4.0] * 3, [8.0] * 3]
    found = ratio([fast], [slow])
    assert (found.median, found.low, found.high) == (0.5, 0.5, 0.5)
    # Of several, the sum within the round: 2/(1+2), 4/(2+4), 8/(4+8).
    found = ratio([slow], [fast, slow])
    assert (found.median, found.low, found.high) == pytest.approx((2 / 3,) * 3)
    # Quotients 1, 2 and 10: the median of three draws can be any of them.
    found = ratio([[[1.0], [2.0], [10.0]]], [[[1.0], [1.0], [1.0]]])
    assert (found.median, found.low, found.high) == (2, 1, 10)


# --- costs


class OneConvolution(Network):
    """A convolution, a normalisation and a product with a matrix; of 64x32 px."""

    def __init__(self) -> None:
        super().__init__(NetworkSettings(tasks=("segmentation",), input_size=(64, 32)))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 9)

    def forward(self, image: Tensor) -> Outputs:
        pooled = self.body(image).mean(dim=(2, 3))
        return Outputs(None, SegmentationLogits(self.head(pooled)[:, :, None, None], None))


def test_costs_of_layers_by_hand() -> None:
    parts = costs(OneConvolution())
    assert parts["body"].multiply_accumulates == (6 * 3 * 3) * 8 * (32 * 16)
    assert parts["head"].multiply_accumulates == 8 * 9
    assert parts["total"].parameters == (6 * 9 * 8 + 8) + (8 + 8) + (8 * 9 + 9)
    convolution = 6 * 64 * 32 + (6 * 9 * 8 + 8) + 8 * 32 * 16
    product = 8 + (8 * 9 + 9) + 9
    assert bytes_moved(OneConvolution()) == 4 * (convolution + product)
    weights = (6 * 9 * 8 + 8) + (8 * 9 + 9)  # read once, whatever the batch
    assert bytes_moved(OneConvolution(), batch=5) == 4 * (5 * (convolution + product - weights) + weights)


def narrow(settings: NetworkSettings) -> NetworkSettings:
    return replace(
        settings,
        detection=replace(settings.detection, channels=16, tower_convs=1, anchor_side=16.0),
        segmentation=replace(settings.segmentation, channels=16),
    )


def test_shares_are_those_of_the_own_teacher_or_of_both() -> None:
    asked: tuple[tuple[Kind, Tasks], ...] = (
        ("student", "detection"),
        ("student", "joint"),
        ("teacher", "detection"),
        ("teacher", "segmentation"),
    )
    rows = {row.name: row for row in all_costs([subject(kind, tasks) for kind, tasks in asked], (640, 512))}
    assert len(rows) == 4
    detector, segmenter = rows["teacher detection light"], rows["teacher segmentation"]
    assert detector.multiply_accumulates_to_teachers == segmenter.parameters_to_teachers == 1
    student = rows["student detection light"]
    share = student.multiply_accumulates / detector.multiply_accumulates
    assert student.multiply_accumulates_to_teachers == share == pytest.approx(0.689, abs=0.001)
    joint = rows["student joint light"]
    both = detector.multiply_accumulates + segmenter.multiply_accumulates
    assert joint.multiply_accumulates_to_teachers == joint.multiply_accumulates / both == pytest.approx(0.412, abs=1e-3)
    assert joint.parameters_to_teachers == joint.parameters / (detector.parameters + segmenter.parameters)
    assert sum(joint.parts.values()) == joint.multiply_accumulates


# --- what is compared


def timed(kind: str, tasks: str, part: Any = "network", file: bool = False) -> Contestant:
    of = None if file else subject(kind, tasks)  # type: ignore[arg-type]
    name = of.name if of is not None else f"{kind}-{tasks}.onnx"
    return Contestant(name, kind, tasks, "eager", "fp32", part, lambda: None, of)


def test_everything_is_compared_with_its_own_teachers_in_the_same_setting() -> None:
    durations = {
        timed("visible", "detection"): 1.0,
        timed("image", "detection"): 1.1,
        timed("student", "detection"): 1.2,
        timed("teacher", "detection"): 2.0,
        timed("student", "segmentation"): 0.75,
        timed("teacher", "segmentation"): 1.5,
        timed("student", "joint"): 1.4,
        timed("student", "detection", "graph"): 9.0,  # its teacher was not timed
        timed("student", "detection", "graph", file=True): 3.0,
        timed("teacher", "detection", "graph", file=True): 4.0,
        timed("teacher", "segmentation", "graph", file=True): 5.0,
    }
    macs = {"student detection light": 12, "student segmentation": 8, "teacher detection light": 20}
    macs |= {"student joint light": 14, "teacher segmentation": 15}
    macs |= {"visible detection light": 10, "image detection light": 11}
    rows = list(compared({each: [[seconds]] * 3 for each, seconds in durations.items()}, macs))
    found = {(row.numerator, row.denominators): (row.time.median, row.multiply_accumulates) for row in rows}
    detector = ("teacher detection light",)
    assert found == {
        ("visible detection light", detector): (pytest.approx(0.5), 0.5),
        ("image detection light", detector): (pytest.approx(0.55), 0.55),
        ("image detection light", ("visible detection light",)): (pytest.approx(1.1), 1.1),
        ("student detection light", detector): (pytest.approx(0.6), 0.6),
        ("student segmentation", ("teacher segmentation",)): (pytest.approx(0.5), 8 / 15),
        ("student joint light", (*detector, "teacher segmentation")): (pytest.approx(1.4 / 3.5), 14 / 35),
        # the dearer of the two students for one task
        ("student joint light", ("student detection light",)): (pytest.approx(1.4 / 1.2), 14 / 12),
        ("student-detection.onnx", ("teacher-detection.onnx",)): (pytest.approx(0.75), None),
    }


# --- a small run


@pytest.fixture
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product of milliseconds, too short to be a peak."""
    monkeypatch.setitem(GEMM_SIDE, "cpu", 256)


SMALL = Settings(
    kinds=("student", "teacher"),
    tasks=("segmentation",),
    runtimes=("eager", "onnx-cuda"),
    input_size=(64, 64),
    rounds=2,
    calls=1,
)


@pytest.mark.usefixtures("small_probe")
def test_a_small_run_prints_ratios_and_says_what_it_did_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "why_unavailable", lambda provider: "there is no such GPU")
    threads = torch.get_num_threads()
    benchmark_command(replace(SMALL, threads=1), json=tmp_path / "b.json", picture=tmp_path / "roofline.png")
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert "## Ratios, formed within each round" in shown

    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["schema"] == 1
    assert found["machine"]["threads"] == 1
    assert found["command"]["input_size"] == [64, 64]
    assert [row["name"] for row in found["costs"]] == ["student segmentation", "teacher segmentation"]
    rows = {(row["name"], row["part"]): row for row in found["measurements"]}
    assert len(rows) == 4
    network = rows["student segmentation", "network"]
    assert network["time"]["count"] == 2
    cost = found["costs"][0]
    flop = 2 * cost["multiply_accumulates"]
    assert network["intensity"] == pytest.approx(flop / cost["bytes_moved"])
    assert network["gflops"] == pytest.approx(flop / (1e6 * network["time"]["median_ms"]))
    assert rows["student segmentation", "graph"]["gflops"] is None
    # A share of a peak is a ratio of rates, formed within the rounds.
    gemm, own = (found["times_s"][name] for name in (f"{GEMM} fp32", "student segmentation, eager fp32 network"))
    share = ratio([gemm], [own]).median * flop / (2 * GEMM_SIDE["cpu"] ** 3)
    assert network["of_gemm"]["median"] == pytest.approx(share)
    assert {(row["name"], row["precision"]) for row in found["probes"]} == {(GEMM, "fp32"), (COPY, "fp32")}
    assert all(row["rate"] > 0 for row in found["probes"])
    for row in found["ratios"]:
        times = [
            found["times_s"][f"{name}, eager fp32 {row['part']}"] for name in (row["numerator"], *row["denominators"])
        ]
        assert row["time"]["median"] == pytest.approx(ratio(times[:1], times[1:]).median)
        assert row["multiply_accumulates"] == pytest.approx(cost["multiply_accumulates_to_teachers"])
        assert f"{row['time']['median']:.3f}" in shown
    assert len(found["ratios"]) == 2
    reasons = {row["what"]: row["reason"] for row in found["not_run"]}
    assert "there is no such GPU" in reasons["onnx-cuda"]
    assert reasons["compiled"].startswith("not asked for")


def test_the_exponent_is_that_of_the_pixels() -> None:
    pixels = [100, 400, 1600]
    drift = [1.0, 1.5, 0.7, 1.0]  # a machine that is slower in some rounds: it falls on all sizes alike
    times = [[[3e-6 * count**1.2 * slower] * 3 for slower in drift] for count in pixels]
    found = exponent(times, pixels)
    assert (found.median, found.low, found.high) == pytest.approx((1.2, 1.2, 1.2))
    flat = [[[0.5 + 1e-3 * count]] for count in pixels]  # a part that does not depend on the size
    assert 0.2 < exponent(flat, pixels).median < 1


@pytest.mark.usefixtures("small_probe")
def test_more_sizes_are_timed_in_the_same_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(SMALL, kinds=("visible",), parts=("network",), runtimes=("eager",), sizes=((128, 128), (64, 64)))
    report = benchmark(settings)
    (row,) = report.growth
    assert (row.name, row.sizes) == ("visible segmentation", [(64, 64), (128, 128)])
    label = "visible segmentation, eager fp32 network"
    times = [report.times_s[label], report.times_s[f"{label} at 128x128"]]
    assert [len(of_size) for of_size in times] == [settings.rounds] * 2
    assert row.exponent == exponent(times, [64 * 64, 128 * 128])
    assert row.median_ms == [summary(of_size).median_ms for of_size in times]
    assert len(report.measurements) == 1
    assert "| exponent of the pixels |" in tables(report)
    with pytest.raises(ValueError, match="leave out --camera-size"):
        replace(settings, camera_size=(64, 64))


@pytest.mark.usefixtures("small_probe")
def test_what_is_around_a_network_is_timed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras: list[tuple[int, int]] = []

    def make(camera_size: tuple[int, int]) -> Images:
        cameras.append(camera_size)
        return noise(camera_size)

    noise = Images.make
    monkeypatch.setattr(Images, "make", make)
    settings = replace(SMALL, tasks=("joint",), runtimes=("eager",), parts=("around",), camera_size=(96, 80))
    report = benchmark(settings, narrow)
    assert cameras == [(96, 80)] * 2
    assert [(row.role, row.part, row.gflops) for row in report.measurements] == [
        ("student", "around", None),
        ("teacher", "around", None),
    ]
    assert report.ratios == []  # both do the same around their networks

    network = make_network(narrow(subject("student", "joint").settings((64, 64))))
    heads = ConstantHeads(network)
    assert not list(heads.parameters())
    real, noise_of = (one.eval()(torch.zeros(1, 6, 64, 64)) for one in (network, heads))
    assert real.detection.classes.shape == noise_of.detection.classes.shape
    assert real.detection.deltas.shape == noise_of.detection.deltas.shape
    assert real.segmentation.main.shape == noise_of.segmentation.main.shape


@pytest.mark.usefixtures("small_probe")
def test_onnx_runtime_runs_files(tmp_path: Path) -> None:
    files = (
        write_tiny_student(tmp_path / "s.onnx"),
        write_tiny_student(tmp_path / "t.onnx", manifest=tiny_manifest(role="teacher")),
    )
    report = benchmark(replace(SMALL, kinds=(), runtimes=("onnx-cpu",), files=files))
    assert [(row.name, row.role, row.tasks, row.part) for row in report.measurements] == [
        (str(files[0]), "student", "joint", "graph"),
        (str(files[1]), "teacher", "joint", "graph"),
    ]
    assert all(row.time.median_ms > 0 for row in report.measurements)
    ((ratio_of_files),) = report.ratios
    assert (ratio_of_files.numerator, ratio_of_files.denominators) == (str(files[0]), (str(files[1]),))
    with pytest.raises(ValueError, match="shows the part `network`"):
        draw(report, tmp_path / "empty.png")


@pytest.mark.usefixtures("small_probe")
def test_a_batch_is_compared_with_as_many_calls_of_one_pair(tmp_path: Path) -> None:
    files = (write_batch_student(tmp_path / "batch.onnx"), write_tiny_student(tmp_path / "tiny.onnx"))
    report = benchmark(replace(SMALL, kinds=(), runtimes=("onnx-cpu",), files=files, batches=(1, 2)))
    name = str(files[0])
    assert [row.name for row in report.measurements] == [name, f"{name}, batch of 2", str(files[1])]
    (row,) = report.ratios
    assert (row.numerator, row.denominators) == (f"{name}, batch of 2", (name, name))
    assert 0 < row.time.median < 4  # both are of two pairs
    (missing,) = [item for item in report.not_run if "tiny.onnx" in item.what]
    assert "takes one pair at a time on CPUExecutionProvider" in missing.reason


def test_a_named_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text("print('no network')\n")
    for name in ("make.py", "none.onnx"):
        with pytest.raises(StudentError, match=name):
            benchmark(replace(SMALL, kinds=(), files=(tmp_path / name,)))


@pytest.mark.long
def test_onnx_runtime_runs_networks() -> None:
    settings = replace(
        SMALL, kinds=("student",), runtimes=("onnx-cpu",), precisions=("fp32", "fp16"), parts=("network",)
    )
    report = benchmark(settings, narrow)
    (row,) = report.measurements
    assert (row.name, row.part, row.precision) == ("student segmentation", "network", "fp32")
    assert row.time.median_ms > 0
    assert {row.what: row.reason for row in report.not_run}["student segmentation, onnx-cpu fp16 network"] == (
        "the export writes fp32; name a file of another precision in --files"
    )


@pytest.mark.long
def test_onnx_runtime_runs_the_graph_of_the_node() -> None:
    settings = replace(SMALL, runtimes=("eager", "compiled", "onnx-cpu"), tasks=("detection", "segmentation", "joint"))
    report = benchmark(settings, narrow)
    assert len(report.measurements) == 3 * 2 * 3 * 2  # tasks, kinds, runtimes, parts
    assert report.not_run[0].what == "onnx-cuda"
    assert all("compiled" not in row.what for row in report.not_run)


@pytest.mark.usefixtures("small_probe")
def test_what_fails_is_not_run_and_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    make = runner.torch_contestant

    def no_compiler(each: Any, network: Any, runtime: Any, *rest: Any) -> Contestant:
        if runtime == "compiled":
            raise RuntimeError("no working compiler\nand a long story")
        return make(each, network, runtime, *rest)

    monkeypatch.setattr(runner, "torch_contestant", no_compiler)
    settings = replace(SMALL, kinds=("student",), runtimes=("eager", "compiled"), parts=("network",), rounds=1)
    report = benchmark(settings, narrow)
    assert [row.runtime for row in report.measurements] == ["eager"]
    reasons = {row.what: row.reason for row in report.not_run}
    assert reasons["student segmentation, compiled fp32 network"] == "RuntimeError: no working compiler"
    assert report.ratios == []
    assert "no working compiler" in tables(report)


def test_counting_alone_is_of_all_networks_and_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(subjects: list[Subject], *rest: Any) -> list[CostRow]:
        # detection and joint with either neck, segmentation without
        assert len(set(subjects)) == 7 * (2 + 1 + 2)
        return all_costs(subjects[:1], *rest)

    monkeypatch.setattr(runner, "all_costs", first)
    report = benchmark(Settings(costs=True, input_size=(64, 64)), narrow)
    assert [row.name for row in report.costs] == ["visible detection light"]
    assert report.measurements == report.probes == []
    assert "## Times" not in tables(report)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Settings(rounds=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch finds no GPU here"):
            benchmark(replace(SMALL, device="cuda"))


def test_tables_are_markdown() -> None:
    assert markdown(("a", "b"), [("long", "x|y")]).splitlines() == [
        "| a    | b   |",
        "|------|-----|",
        "| long | x/y |",
    ]
