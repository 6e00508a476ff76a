"""md_benchmark: its sums on made-up points, and a run of seconds whose counts and order have to be right."""

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from probe_student import BOX_SHARES, OBJECTS, SCORE, probe_model
from tiny_student import write_tiny_student

pytest.importorskip("rclpy", reason="needs ROS 2: run through `make test`, or source .ci/env.sh")

from md_perception.inference.session import Student
from md_perception.ros.benchmark import (
    PROBE_STUDENT,
    BenchmarkOptions,
    Load,
    Round,
    _load,
    _ratios,
    cpu_ns_by_thread,
    main,
    measure,
    run,
)
from md_perception.ros.harness import Accounting, RunError, wait_for
from md_perception.ros.timeline import (
    LATENCY,
    OVERHEAD,
    PAIR_WAIT,
    RUNTIME,
    RUNTIME_CPU,
    STAGES,
    Spread,
    Timeline,
    inference_cpu_ns,
)
from md_perception.ros.tracing import Trace

MS = 1_000_000


def points_of(stamp: int, begin_ms: float = 0.0) -> list[list]:
    """Return what the node notes of a frame whose stages take 1, 2, 3 ... ms, on a thread that works half the time."""
    places = [start for _, start, _, _ in STAGES[1:8]]
    ends = np.cumsum(range(1, len(places) + 1)) + begin_ms
    found = [[place, stamp, int(end * MS), int(end * MS / 2), 7] for place, end in zip(places, ends, strict=True)]
    last = found[-1][2]
    extra = [("rgb added", found[2][2] + MS), ("published", last + 9 * MS)]
    extra += [("thermal callback", int(begin_ms * MS)), ("thermal added", int(begin_ms * MS) + MS // 2)]
    return found + [[place, stamp, at, at // 2, 7] for place, at in extra]


def test_stages_follow_each_other_and_add_up_to_the_latency() -> None:
    received = {"mask": {5: (40 * MS, 41 * MS, 45 * MS)}, "detections": {5: (30 * MS, 31 * MS, 32 * MS)}}
    statuses = {5: {"inference_ms": 6.0, "pair_wait_ms": 2.0}}

    timeline = Timeline.of([(5, 0), (6, 50 * MS)], points_of(5), received, statuses)

    (frame,) = timeline.frames
    assert timeline.missing == 1  # the second frame has no result
    stages = [frame[name] for name, *_ in STAGES]
    # 1, 2, ... 7 ms up to "status published" at 28 ms; the last result, the mask, is sent at 40, there at 41, got at 45
    assert stages == [1, 2, 3, 4, 5, 6, 7, 12, 1, 4]
    assert frame[LATENCY] == sum(stages) == 45
    assert frame[OVERHEAD] == 45 - 6 - 2
    assert frame[PAIR_WAIT] == 2
    # thermal callback 0.5, rgb callback 1, decoding 5, from inference to the end 7 + 9
    assert frame[RUNTIME] == 0.5 + 1 + 5 + 16
    assert frame[RUNTIME_CPU] == frame[RUNTIME] / 2
    assert (frame["until detections"], frame["until mask"]) == (32, 45)


@pytest.mark.parametrize("lost", ["status", "trace", "result"])
def test_a_frame_of_which_something_is_lost_is_missing(lost: str) -> None:
    points = [] if lost == "trace" else points_of(5)
    received = {"mask": {} if lost == "result" else {5: (40 * MS, 41 * MS, 45 * MS)}}
    statuses = {} if lost == "status" else {5: {"inference_ms": 6.0, "pair_wait_ms": 2.0}}
    timeline = Timeline.of([(5, 0)], points, received, statuses)
    assert (timeline.frames, timeline.missing) == ([], 1)


def test_what_happens_beside_the_frames_counts_between_the_first_and_the_last() -> None:
    points = [["inspection", 1, at * MS, 0, 7] for at in (10, 30, 70)]
    points += [["inspected", 1, (at + took) * MS, 0, 7] for at, took in ((10, 1), (30, 4), (70, 9))]
    points.sort(key=lambda point: point[2])
    points.insert(3, ["inspected", 1, 31 * MS, 0, 8])  # of another thread, which began nothing
    assert Timeline.of([(1, 20 * MS), (2, 60 * MS)], points, {}, {}).beside["inspection"] == [4.0]


def test_a_spread_is_of_all_frames_and_shows_the_rounds() -> None:
    spread = Spread.of([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0, 8.0], []])
    assert (spread.p50_ms, spread.p50_rounds_ms, spread.count) == (5.0, (2.0, 6.0), 7)
    assert (spread.p99_ms, spread.p99_rounds_ms) == (8.0, (3.0, 8.0))
    assert math.isnan(Spread.of([]).p50_ms)


def test_the_lock_is_held_at_most_while_threads_of_python_work_but_do_not_infer() -> None:
    points = [["decoded", 1, 10, 100, 7], ["inferred", 1, 20, 400, 7], ["decoded", 2, 99, 500, 7]]
    assert inference_cpu_ns(points, 10, 99) == (300, 1)  # the second began after the end

    used = {1: 4 * MS, 2: 10 * MS, 3: 2 * MS, 4: 8 * MS}
    names = {1: "md_perception executor", 2: "md_perception worker", 3: "MainThread"}
    load = _load(used, names, inference_ns=6 * MS, frames=2, memory_mb=1.0, resident_mb=2.0)

    assert (load.process_ms, load.executor_ms, load.worker_ms, load.inference_ms) == (12, 2, 2, 3)
    assert load.others_ms == 5  # thread 4, which is none of Python's, and the main thread
    assert load.gil_ms == 5  # 4 + 10 + 2 - 6 in two frames


def test_the_cpu_time_of_each_thread_is_read() -> None:
    stop = threading.Event()

    def work() -> None:
        while time.thread_time() < 0.2:
            pass
        stop.wait()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: cpu_ns_by_thread(os.getpid())[thread.native_id] >= 200 * MS, 20.0)
        assert cpu_ns_by_thread(os.getpid())[thread.native_id] == pytest.approx(200 * MS, rel=0.2)
        assert os.getpid() in cpu_ns_by_thread(os.getpid())
    finally:
        stop.set()
        thread.join()
    with pytest.raises(RunError, match="cannot be looked at"):
        cpu_ns_by_thread(2**30)


def test_two_settings_are_compared_round_by_round() -> None:
    def round_of(*latencies: float) -> Round:
        frames = [{LATENCY: latency, PAIR_WAIT: 0.0} for latency in latencies]
        nothing = Accounting(in_bag=1, played=1, received=1, processed=1, dropped=0, unpaired=0, rejected=0, results=1)
        load = Load(*[0.0] * 8, frames=1)
        return Round(Timeline(frames, {}, 0), load, nothing, 1.0, "probe", "CPUExecutionProvider")

    # The machine got twice as slow from round to round, which touches no ratio: 1.1, 1.2 and 1.5 for the medians.
    first = [round_of(10, 10, 20), round_of(20, 20, 40), round_of(40, 40, 80)]
    second = [round_of(11, 11, 40), round_of(24, 24, 80), round_of(60, 60, 160)]

    ratios = _ratios([first, second])

    assert ratios == {LATENCY: pytest.approx({"p50": 1.2, "p50_least": 1.1, "p50_greatest": 1.5, "p99": 2.0})}


def test_tracepoints_cost_nothing_where_they_are_off_and_say_where_and_when_where_they_are_on() -> None:
    program = "from md_perception.ros import tracing; print(tracing.point('taken', 5), tracing._trace)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["None", "None"]

    trace = Trace()
    trace.point("taken", 5)
    trace.arrived("rgb", 6, {"source_timestamp": 10**18, "received_timestamp": 10**18 + 3 * MS})
    content = trace.content()

    taken, callback, sent, in_reader = (point for point in content["points"] if "garbage" not in point[0])
    assert [tuple(point[:2]) for point in (taken, callback, sent, in_reader)] == [
        ("taken", 5),
        ("rgb callback", 6),
        ("rgb sent", 6),
        ("rgb in reader", 6),
    ]
    assert callback[2] >= taken[2]
    assert in_reader[2] - sent[2] == pytest.approx(3 * MS, abs=MS)
    assert content["threads"][str(taken[4])] == "MainThread"


def test_the_probe_student_is_what_its_script_writes_and_says_what_it_promises(tmp_path: Path) -> None:
    rewritten = tmp_path / "probe.onnx"
    onnx.save(probe_model(), rewritten)
    rgb = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    thermal = np.zeros((6, 10), np.uint8)

    for student in (Student.load(PROBE_STUDENT), Student.load(rewritten)):
        output = student.run(rgb, thermal, np.eye(3, dtype=np.float32))
        assert output.detections is not None
        assert output.segmentation is not None
        np.testing.assert_allclose(output.detections.boxes, BOX_SHARES * [40, 24, 40, 24], rtol=1e-6)
        np.testing.assert_array_equal(output.detections.scores, np.full(OBJECTS, SCORE, np.float32))
        np.testing.assert_array_equal(output.segmentation.mask, rgb[..., 0] // 64)
        np.testing.assert_array_equal(output.segmentation.confidence, rgb[..., 1])


@pytest.mark.parametrize("arguments", [["--rate", "nan"], ["--seconds", "0"], ["--rounds", "0"], ["--size", "0", "9"]])
def test_options_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "--rate, --seconds, --rounds and --size have to be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0.1", "--seconds", "5"], "--seconds 5 at --rate 0.1 Hz are not two frames"),
        (["--size", "64", "31"], "--size: at least 32 px each"),
        (
            ["--against", "rgb.queue_deepth:=5"],
            "rgb.queue_deepth:=5 is not NAME:=VALUE .* did you mean rgb.queue_depth",
        ),
        (["--parameters", "queue_depth"], "queue_depth is not NAME:=VALUE with a parameter of the node"),
    ],
)
def test_what_could_not_be_measured_is_refused_before_it_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_that_cannot_be_made_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="for the logs cannot be made: Not a directory"):
        measure(BenchmarkOptions(), (), tmp_path / "file" / "round-1-a", results=("mask",), thermal=True)


def test_a_student_that_cannot_be_measured_is_refused_before_anything_is_started(
    students: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("md_perception.ros.benchmark.measure", lambda *_, **__: pytest.fail("it was started"))
    boxes = write_tiny_student(tmp_path / "boxes.onnx", thermal=False, tasks=("detection",))
    for options, problem in (
        (BenchmarkOptions(student=tmp_path / "none.onnx"), r"none\.onnx"),
        (BenchmarkOptions(student=students["thermal"]), "takes thermal images alone: give one that takes RGB"),
        (
            BenchmarkOptions(student=boxes, results=("mask", "overlay")),
            "does detection alone and gives no mask: leave --results out",
        ),
    ):
        with pytest.raises(RunError, match=problem):
            run(options)


@pytest.mark.long
def test_a_student_for_rgb_alone_is_measured_with_that_camera_and_its_results(tmp_path: Path) -> None:
    student = write_tiny_student(tmp_path / "boxes.onnx", thermal=False, tasks=("detection",))
    options = BenchmarkOptions(student=student, rate_hz=20, seconds=0.5, rounds=1, size=(64, 48), out=tmp_path / "out")
    assert run(options) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["cameras"] == ["rgb"]
    assert report["options"]["results"] == ["detections"]
    (variant,) = report["variants"]
    assert variant["accounting"][0]["in_bag"] == 50  # 2 s of warm-up and 0.5 s at 20 Hz
    assert variant["times"][LATENCY]["count"] >= 5
    assert variant["times"][PAIR_WAIT]["p99_ms"] < 5  # there is nobody to wait for
    assert "64x48 RGB alone at 20 Hz" in (tmp_path / "out/report.md").read_text()


def test_a_benchmark_of_seconds_accounts_for_every_frame(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "md_perception.ros.benchmark", "--probe", "--seconds", "1.5", "--rounds", "1"]
    command += ["--rate", "20", "--size", "128", "96", "--parameters", "queue_depth:=3", "--out", str(tmp_path)]

    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=dict(os.environ))

    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    (variant,) = report["variants"]
    assert variant["parameters"] == ["queue_depth:=3"]
    (counted,), times = variant["accounting"], variant["times"]
    assert counted["in_bag"] == counted["played"] == 70  # 2 s of warm-up and 1.5 s at 20 Hz
    assert variant["missing"] + times[LATENCY]["count"] == 30
    assert times[LATENCY]["count"] >= 20
    p50 = {name: row["p50_ms"] for name, row in times.items()}
    assert 0 < p50[OVERHEAD] < p50[LATENCY]
    assert 0 < p50["until detections"] <= p50["until mask"] <= p50[LATENCY]
    assert 0 < p50[RUNTIME_CPU] <= 1.1 * p50[RUNTIME]
    (load,) = variant["load"]
    assert 0 < load["gil_ms"] < load["process_ms"]
    parts = [load[f"{part}_ms"] for part in ("executor", "worker", "inference", "others")]
    assert sum(parts) == pytest.approx(load["process_ms"])
    assert load["resident_mb"] > 20
    text = (tmp_path / "report.md").read_text()
    assert f"| {LATENCY} | {p50[LATENCY]:.2f} |" in text
    assert "70 sent =" in text
    assert not list(tmp_path.rglob("trace.json"))
