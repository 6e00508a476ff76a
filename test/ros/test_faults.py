"""Fault runs: each fault through the node's own parts in simulated time, and some of them for real."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run through `make test`, or source .ci/env.sh")

from tiny_student import write_tiny_student

from md_perception.bags.injection import inject
from md_perception.bags.make import TimedMessage
from md_perception.bags.types import IMAGE, message_store
from md_perception.bags.write import BagWriter
from md_perception.evaluation.chunks import evaluate_chunk
from md_perception.evaluation.job import Job
from md_perception.evaluation.run import Ends
from md_perception.inference.session import SessionSettings, Student
from md_perception.intake import Inspection, Intake
from md_perception.outputs.messages import MessageBuilder
from md_perception.parameters import Parameters
from md_perception.pipeline import Pipeline, PipelineSettings
from md_perception.results import Mode
from md_perception.ros.faults import (
    END_S,
    SCENARIOS,
    START_S,
    Observation,
    Scenario,
    line_of,
    main,
    mode_changes,
)
from md_perception.ros.harness import CAMERAS, Accounting
from md_perception.ros.worker import Worker
from md_perception.sensing.health import ImageForm, ModeSelector
from md_perception.sensing.images import stamp_ns
from md_perception.sensing.pairing import NearestPairing, StampedMessage
from md_perception.sensing.thermal import ThermalSettings
from md_perception.status import Ages

BUILD = MessageBuilder(message_store().types.__getitem__)
START = 10**18
ALL_MODES = {Mode.FUSED, Mode.VISIBLE_ONLY, Mode.THERMAL_ONLY}
GOOD = Accounting(in_bag=240, played=240, received=240, processed=240, dropped=0, unpaired=0, rejected=0, results=240)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[Mode, Student]:
    folder = tmp_path_factory.mktemp("students")
    cameras = {Mode.FUSED: (True, True), Mode.VISIBLE_ONLY: (True, False), Mode.THERMAL_ONLY: (False, True)}
    settings = SessionSettings(providers=("CPUExecutionProvider",), threads=1)
    return {
        mode: Student.load(write_tiny_student(folder / f"{mode.name}.onnx", rgb=rgb, thermal=thermal), settings)
        for mode, (rgb, thermal) in cameras.items()
    }


def cameras(kelvin: bool) -> Iterator[TimedMessage]:
    """Yield eight seconds of two live cameras at 30 Hz: noise, thermal about 300 K."""
    random = np.random.default_rng(0)
    for number in range(240):
        log_ns = START + number * 10**9 // 30
        centikelvin = random.integers(29_500, 30_500, (6, 8)).astype(np.uint16)
        pixels, encoding = (centikelvin.astype(np.float32) / 100, "32FC1") if kelvin else (centikelvin, "mono16")
        yield TimedMessage(log_ns, CAMERAS.thermal, BUILD.image(pixels, encoding, log_ns, "thermal"))
        colour = random.integers(50, 200, (24, 32, 3), np.uint8)
        yield TimedMessage(log_ns, CAMERAS.rgb, BUILD.image(colour, "rgb8", log_ns, "rgb"))


def simulate(scenario: Scenario, students: dict[Mode, Student]) -> Observation:
    """Send the faulty cameras through intake, worker and pipeline in simulated time, with a worker that keeps up."""
    now_ns = START
    intake = Intake(NearestPairing(), ModeSelector(students.keys()), depth=4, clock_ns=lambda: now_ns)
    encoding = "kelvin" if scenario.kelvin else "centikelvin"
    pipeline = Pipeline(students, PipelineSettings(thermal=ThermalSettings(encoding=encoding)))
    published: list[Mode] = []
    told: set[str] = set()

    def note(status) -> None:
        published.append(status.mode)
        told.update(status.faults)

    worker = Worker(
        intake,
        pipeline,
        SimpleNamespace(publish_status=note, publish=lambda perception, thermal: None),
        now_ns=lambda: now_ns,
        ages=lambda: Ages(0.0, 0.0),
        warn=lambda text: None,
        error=lambda text: pytest.fail(text),
    )
    changes: list[tuple[float, Mode]] = []
    mode = Mode.STALE
    counts = {CAMERAS.rgb: 0, CAMERAS.thermal: 0}
    messages = inject(cameras(scenario.kelvin), scenario.injections(), START)
    timed = next(messages, None)
    while timed is not None:
        while timed is not None and timed.log_ns <= now_ns:
            frame = StampedMessage(timed.message, stamp_ns(timed.message), now_ns)
            add = intake.add_rgb if timed.topic == CAMERAS.rgb else intake.add_thermal
            add(frame, ImageForm.of(timed.message), (now_ns - frame.stamp_ns) / 1e9)
            counts[timed.topic] += 1
            timed = next(messages, None)
        while (task := intake.take(wait=False)) is not None:
            if isinstance(task, Inspection):
                worker._inspect(task)
            else:
                worker._serve(task)
        now = Mode.STALE if worker.only_rejects else intake.mode()
        if now is not mode:
            changes.append(((now_ns - START) / 1e9, now))
            mode = now
        if mode is Mode.STALE and changes:
            told.update(worker.idle_status(mode).faults)  # which a timer of the node sends
        now_ns += 10_000_000
    intake.close()
    counters = intake.counters()
    ended = (counters.processed, counters.dropped, counters.unpaired, counters.rejected)
    return Observation(
        changes=changes,
        published=list(dict.fromkeys(published)),
        told=told,
        accounting=Accounting(
            counts[CAMERAS.rgb],
            counts[CAMERAS.rgb],
            counters.received,
            *ended,
            results=len(published),
            processed_thermal=counters.thermal_processed,
        ),
        thermal_in_bag=counts[CAMERAS.thermal],
        thermal_received=counters.thermal_received,
    )


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_fault_has_the_modes_times_and_sums_that_it_has_to_have(scenario: Scenario, loaded) -> None:
    seen = simulate(scenario, loaded)
    assert seen.problems(scenario, ALL_MODES) == []
    assert seen.accounting.lost == 0
    if scenario.lost:
        assert seen.detected_s is not None
        assert seen.recovered_s is not None


QUICK = {"thermal silent", "rgb silent", "rgb reordered", "thermal frozen", "thermal all NaN", "rgb cut"}


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=one.name, marks=[] if one.name in QUICK else [pytest.mark.long]) for one in SCENARIOS],
)
def test_the_evaluation_of_a_bag_finds_the_modes_and_the_sums_of_the_node(
    scenario: Scenario, loaded, tmp_path: Path
) -> None:
    seen = simulate(scenario, loaded)
    with BagWriter(tmp_path / "bag") as writer:
        for topic in (CAMERAS.rgb, CAMERAS.thermal):
            writer.add_topic(topic, IMAGE)
        for timed in inject(cameras(scenario.kelvin), scenario.injections(), START):
            writer.write(timed.topic, timed.log_ns, timed.message)
    encoding = "kelvin" if scenario.kelvin else "centikelvin"
    job = Job(
        {"fused": loaded[Mode.FUSED].path},
        visible_student=loaded[Mode.VISIBLE_ONLY].path,
        thermal_student=loaded[Mode.THERMAL_ONLY].path,
        parameters=Parameters.read(None, {"thermal.encoding": encoding}),
    )
    chunk = evaluate_chunk(job, tmp_path / "bag", "bag")
    found = replace(seen, changes=[((change.log_ns - START) / 1e9, change.mode) for change in chunk.drive.changes[1:]])
    assert found.modes == seen.modes == scenario.modes(ALL_MODES)
    for took_s, node_s in ((found.detected_s, seen.detected_s), (found.recovered_s, seen.recovered_s)):
        assert took_s == pytest.approx(node_s, abs=0.061)  # the node looks at its mode every 50 ms, the test every 10
    ends, node = Ends.of([one.record for one in chunk.frames], "fused"), seen.accounting
    # The node drops when several images come at once; and whether it looks at a bad image before it pairs it is chance.
    assert ends.processed + ends.rejected == node.processed + node.dropped + node.rejected
    assert ends.unpaired == node.unpaired
    assert abs(ends.rejected - node.rejected) <= 1


@pytest.mark.parametrize("name", ["thermal silent", "rgb frozen", "thermal cut", "rgb clock +5 s"])
def test_without_another_student_the_node_is_stale_while_the_fault_lasts(name: str, loaded) -> None:
    scenario = BY_NAME[name]
    seen = simulate(scenario, {Mode.FUSED: loaded[Mode.FUSED]})
    assert seen.problems(scenario, {Mode.FUSED}) == []
    assert seen.modes == [Mode.FUSED, Mode.STALE, Mode.FUSED]
    assert set(seen.published) == {Mode.FUSED}


def observation(**changes) -> Observation:
    """Return what a run without a fault gives, with changes."""
    fields = {
        "changes": [(0.1, Mode.FUSED)],
        "published": [Mode.FUSED],
        "told": set(),
        "accounting": GOOD,
        "thermal_in_bag": 240,
        "thermal_received": 240,
    }
    return Observation(**fields | changes)


SILENT = {
    "changes": [(0.1, Mode.FUSED), (START_S + 1.1, Mode.VISIBLE_ONLY), (END_S + 0.2, Mode.FUSED)],
    "published": [Mode.FUSED, Mode.VISIBLE_ONLY, Mode.FUSED],
    "told": {"thermal: silent"},
}


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("none", {}, None),
        ("none", SILENT, "the modes were FUSED > VISIBLE_ONLY > FUSED, expected FUSED"),
        ("thermal silent", SILENT, None),
        ("thermal silent", {}, "the modes were FUSED, expected FUSED > VISIBLE_ONLY > FUSED"),
        ("thermal silent", SILENT | {"told": {"rgb: silent"}}, "the status never said 'thermal: silent'"),
        ("thermal silent", SILENT | {"published": [Mode.FUSED]}, "results were published as FUSED"),
        (
            "thermal silent",
            SILENT | {"changes": [(0.1, Mode.FUSED), (START_S + 2, Mode.VISIBLE_ONLY), (END_S + 0.2, Mode.FUSED)]},
            "it took 2.00 s to notice, at most 1.30 s",
        ),
        (
            "thermal silent",
            SILENT | {"changes": [*SILENT["changes"][:2], (END_S + 1.5, Mode.FUSED)]},
            "it took 1.50 s to recover, at most 1.00 s",
        ),
        ("none", {"thermal_received": 241}, "1 thermal images more than were in the bag"),
        ("none", {"order": ["a result came before its status"]}, "a result came before its status"),
    ],
)
def test_what_is_not_as_expected_is_told(name: str, changes: dict, problem: str | None) -> None:
    found = observation(**changes).problems(BY_NAME[name], ALL_MODES)
    if problem is None:
        assert found == []
    else:
        assert any(problem in text for text in found), found


def test_a_mode_on_the_way_to_the_next_does_not_count() -> None:
    seen = observation(changes=[(0.1, Mode.FUSED), (3.1, Mode.STALE), (3.2, Mode.THERMAL_ONLY), (6.3, Mode.FUSED)])
    assert seen.modes == [Mode.FUSED, Mode.THERMAL_ONLY, Mode.FUSED]
    assert seen.detected_s == pytest.approx(0.1)
    assert seen.recovered_s == pytest.approx(0.3)


def test_one_line_says_everything_of_a_fault() -> None:
    seen = observation(**SILENT)
    assert line_of(BY_NAME["thermal silent"], seen, [], ALL_MODES) == (
        "| thermal silent | `drop` 1 of thermal | FUSED > VISIBLE_ONLY > FUSED | FUSED > VISIBLE_ONLY > FUSED | "
        "thermal: silent | 1.10 | 0.20 | 240 = 240 + 0 + 0 + 0 + 0 | as expected |"
    )
    assert "**something**" in line_of(BY_NAME["none"], observation(), ["something"], ALL_MODES)


def test_mode_changes_are_read_from_the_log() -> None:
    log = (
        "[INFO] [1.5] [md_perception]: warming up\n"
        '[INFO] [1.6] [md_perception]: {"event": "mode", "from": "STALE", "to": "FUSED", "time": 1000.25}\n'
        '[INFO] [1.6] [md_perception]: {"event": "mode", "from": "FUSED", "to": "STALE", "time": 1009.0}\n'
    )
    assert mode_changes(log, 1000 * 10**9, 1008 * 10**9) == [(0.25, Mode.FUSED)]


def test_an_unknown_fault_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["rust"])
    assert "there is no fault 'rust': use none, thermal silent" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rate", "0"], ["--rate", "nan"], ["--size", "320", "0"]])
def test_options_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "--rate and --size have to be above 0" in capsys.readouterr().err


def test_the_help_names_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "none, thermal silent, rgb silent, thermal drops 30 %, rgb drops 30 %" in shown


def test_a_bag_that_is_too_short_or_lacks_a_camera_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds, topics, problem in (
        ("short", 5, [CAMERAS.rgb, CAMERAS.thermal], "has 5.0 s: a fault and the recovery need 7 s"),
        ("blind", 8, [CAMERAS.thermal], "needs images on /rgb/image_raw and /thermal/image_raw"),
    ):
        with BagWriter(tmp_path / name) as writer:
            for topic in topics:
                writer.add_topic(topic, IMAGE)
                for at in (0, seconds * 10**9):
                    writer.write(topic, at, BUILD.image(np.zeros((4, 4), np.uint16), "mono16", at, "camera"))
        assert main(["--bag", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
        assert problem in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(280)
def test_faults_on_the_real_node_are_noticed_and_every_image_is_accounted_for(students, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "md_perception.ros.faults", "--out", str(tmp_path), "--size", "160", "128"]
    command += ["--student", str(students["fused"]), "--visible-student", str(students["visible"])]
    faults = ["thermal silent", "rgb twice", "thermal frozen", "both clocks -5 s"]
    ran = subprocess.run([*command, *faults], capture_output=True, text=True, timeout=270, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("| as expected |") == len(faults)
    assert not list(tmp_path.glob("*/results"))  # bags of hundreds of megabytes are not left behind
