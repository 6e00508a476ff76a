"""The demo's sums and checks on made-up figures, and the whole demo on the scene world."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run through `make test`, or source .ci/env.sh")

from tiny_student import tiny_manifest, write_tiny_student

from md_perception.bags.read import Bag
from md_perception.bags.results import (
    CameraTopics,
    ResultTopics,
    joined,
    label_info_problems,
    order_problems,
    perception_of,
    recorded_results,
)
from md_perception.bags.types import DETECTIONS, IMAGE, LABEL_INFO, STATUS, TopicQos
from md_perception.bags.write import BagWriter
from md_perception.inference.session import SessionSettings, Student
from md_perception.inference.student_file import DEMO_STUDENT
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs.messages import MessageBuilder, NodeStatus
from md_perception.pipeline import Pipeline, PipelineSettings
from md_perception.results import Detections, Mode, Perception, Segmentation, StudentOutput
from md_perception.ros.demo import (
    Figures,
    _in_our_ids,
    _read_figures,
    choose,
    report_text,
    student_classes,
)
from md_perception.ros.harness import Accounting, Child, RunError
from md_perception.sensing.images import stamp_ns

GOOD = Accounting(in_bag=100, played=100, received=97, processed=40, dropped=50, unpaired=5, rejected=2, results=40)
HEADERS = {(1_000_000_000, "camera"): 1, (2_000_000_000, "camera"): 1}


def test_a_sum_that_holds_has_no_problems_and_names_what_was_lost() -> None:
    assert GOOD.problems() == []
    assert GOOD.lost == 3
    assert GOOD.sum_text() == ("40 processed + 50 dropped while busy + 5 unpaired + 2 rejected + 3 lost in transport")


def test_results_of_thermal_images_count_beside_those_of_rgb_images() -> None:
    assert replace(GOOD, results=47, processed_thermal=7).problems() == []
    (problem,) = replace(GOOD, processed_thermal=7).problems()
    assert problem == "the node says it published 47 results, 40 were recorded"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"played": 99, "received": 97}, "the player published 99 of 100"),
        ({"received": 98}, "received 98 RGB images but accounts for 97"),
        ({"dropped": 49}, "received 97 RGB images but accounts for 96"),
        ({"dropped": 54, "received": 101}, "received 101 RGB images, more than the 100 published"),
        ({"results": 39}, "published 40 results, 39 were recorded"),
        ({"processed": 0, "dropped": 90, "results": 0}, "not one image was processed"),
    ],
)
def test_a_sum_that_does_not_hold_is_a_problem(changes: dict[str, int], problem: str) -> None:
    assert any(problem in text for text in replace(GOOD, **changes).problems())


def test_a_child_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    program = "print('first'); [print('line', i) for i in range(30)]; raise SystemExit(3)"
    with Child("node", [sys.executable, "-c", program], tmp_path / "log", dict(os.environ)) as child:
        deadline = time.monotonic() + 20
        while child.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RunError, match=r"(?s)the node ended with exit status 3\n.*node: line 29$") as error:
            child.check_running()
    assert "first" not in str(error.value)


def test_a_child_that_ignores_polite_signals_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0))
    monkeypatch.setattr(Child, "patience", patience)
    program = (
        "import signal, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    with Child("player", [sys.executable, "-c", program], tmp_path / "log", dict(os.environ)) as child:
        deadline = time.monotonic() + 20
        while "up" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert child.exit_code() == -signal.SIGKILL


def test_pictures_are_spread_over_the_results_with_objects() -> None:
    assert choose([(stamp, stamp % 2) for stamp in range(21)], 4) == {1, 7, 13, 19}
    assert choose([(stamp, 0) for stamp in range(3)], 4) == {0, 1, 2}  # none has an object, and there are too few
    assert choose([], 4) == set()


def write_results(
    path: Path, order: Sequence[tuple[str, int, str]], classes: Sequence[str] = SEGMENTATION.classes
) -> Path:
    """Write a bag of messages (kind, stamp in s, frame id), in this order, 1 ms apart."""
    topics = ResultTopics()
    kinds = {"status": STATUS, "detections": DETECTIONS, "mask": IMAGE, "confidence": IMAGE, "label_info": LABEL_INFO}
    with BagWriter(path) as writer:
        build = MessageBuilder(writer.store.types.__getitem__)
        for kind, msgtype in kinds.items():
            qos = TopicQos.LATCHED if kind == "label_info" else TopicQos.RELIABLE
            writer.add_topic(getattr(topics, kind), msgtype, qos)
        for index, (kind, seconds, frame_id) in enumerate(order):
            plane = np.full((4, 6), 2, np.uint8)
            found = Detections(
                np.array([[1, 1, 4, 3]], np.float32), np.array([0.75], np.float32), np.array([0], np.int64)
            )
            output = StudentOutput(found, Segmentation(plane, plane))
            image = np.zeros((4, 6, 3), np.uint8)
            result = Perception(seconds * 10**9, frame_id, Mode.FUSED, (6, 4), image, output, 10_000_000)
            message = {
                "status": lambda r=result: build.status(NodeStatus(r.stamp_ns, r.frame_id, r.mode, pair_offset_s=0.01)),
                "thermal status": lambda r=result: build.status(NodeStatus(r.stamp_ns, r.frame_id, Mode.THERMAL_ONLY)),
                "stale": lambda r=result: build.status(NodeStatus(r.stamp_ns, "", Mode.STALE)),
                "detections": lambda r=result: build.detections(r, DETECTION.classes),
                "mask": lambda r=result: build.mask(r),
                "confidence": lambda r=result: build.confidence(r),
                "label_info": lambda: build.label_info(classes, 0.5),
            }[kind]()
            writer.write(
                getattr(topics, "status" if kind in ("stale", "thermal status") else kind), index * 1_000_000, message
            )
    return path


def whole(seconds: int, frame_id: str = "camera") -> list[tuple[str, int, str]]:
    return [(kind, seconds, frame_id) for kind in ("status", "detections", "mask", "confidence")]


def test_results_in_order_with_the_headers_of_their_images_have_no_problems(tmp_path: Path) -> None:
    order = [("stale", 9, ""), ("label_info", 0, ""), *whole(1), *whole(2), ("stale", 9, "")]
    with Bag(write_results(tmp_path / "bag", order)) as bag:
        assert order_problems(bag, HEADERS) == []
        assert label_info_problems(bag, SEGMENTATION.classes) == []
        assert [result.stamp_ns for result in recorded_results(bag)] == [stamp for stamp, _ in HEADERS]


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        ([*whole(1), *whole(3)], "that no RGB image has"),
        ([*whole(1, "other")], "that no RGB image has"),
        ([*whole(1), *whole(1)], "has 2 messages of the image"),
        ([whole(1)[1], whole(1)[0], *whole(1)[2:]], "detections at 1000000000 ns came before its status"),
        ([*whole(1), *whole(2)[:-1]], "differ in 1 images, the first at 2000000000 ns"),
    ],
)
def test_results_with_wrong_headers_order_or_gaps_are_a_problem(
    tmp_path: Path, order: list[tuple[str, int, str]], problem: str
) -> None:
    with Bag(write_results(tmp_path / "bag", [("label_info", 0, ""), *order])) as bag:
        assert any(problem in text for text in order_problems(bag, HEADERS))


def test_thermal_only_results_have_the_headers_of_thermal_images(tmp_path: Path) -> None:
    """Where both cameras stamp at once, the frame id tells them apart."""
    fused, alone = whole(1), [("thermal status", 1, "heat"), *whole(1, "heat")[1:]]
    thermal = {(1_000_000_000, "heat"): 1}
    with Bag(write_results(tmp_path / "bag", [*fused, *alone])) as bag:
        assert order_problems(bag, HEADERS, thermal) == []
        (problem, *_) = order_problems(bag, HEADERS)
        assert problem == "/md_perception/status has a header (1000000000, 'heat') that no thermal image has"
    with Bag(write_results(tmp_path / "wrong", [*alone, ("thermal status", 2, "camera")])) as bag:
        assert any("'camera') that no thermal image has" in text for text in order_problems(bag, HEADERS, thermal))


def test_an_image_that_came_twice_may_have_two_results(tmp_path: Path) -> None:
    with Bag(write_results(tmp_path / "bag", [*whole(1), *whole(1)])) as bag:
        assert order_problems(bag, {(1_000_000_000, "camera"): 2}) == []
        assert order_problems(bag, {(1_000_000_000, "camera"): 1}) != []


def test_label_info_that_is_late_wrong_or_missing_is_a_problem(tmp_path: Path) -> None:
    late = write_results(tmp_path / "late", [*whole(1), ("label_info", 0, "")])
    wrong = write_results(tmp_path / "wrong", [("label_info", 0, ""), *whole(1)], classes=("a", "b"))
    for path, problem in (
        (late, "came after the first mask"),
        (wrong, "names ('a', 'b')"),
        (write_results(tmp_path / "none", whole(1)), "was never published"),
    ):
        with Bag(path) as bag:
            (text,) = label_info_problems(bag, SEGMENTATION.classes)
            assert problem in text


def test_classes_and_their_names_are_those_of_the_student(tmp_path: Path) -> None:
    """A student of other classes in another order: each name keeps its meaning."""
    manifest = tiny_manifest(tasks=("detection",), detection_classes=("moose", "person"))
    file = write_tiny_student(tmp_path / "moose.onnx", tasks=("detection",), manifest=manifest)
    classes, segmentation = student_classes(file)
    assert (classes.classes, segmentation) == (("moose", "person"), ())
    found = Detections(np.zeros((3, 4), np.float32), np.ones(3, np.float32), np.array([1, 0, 1], np.int64))
    assert _in_our_ids(found, classes).labels.tolist() == [DETECTION.id_of("person"), -1, DETECTION.id_of("person")]

    path = tmp_path / "bag"
    with BagWriter(path) as writer:
        build = MessageBuilder(writer.store.types.__getitem__)
        writer.add_topic(ResultTopics().status, STATUS)
        writer.add_topic(ResultTopics().detections, DETECTIONS)
        image = np.zeros((4, 6, 3), np.uint8)
        result = Perception(10**9, "camera", Mode.FUSED, (6, 4), image, StudentOutput(found, None))
        writer.write(ResultTopics().status, 1, build.status(NodeStatus(10**9, "camera", Mode.FUSED)))
        writer.write(ResultTopics().detections, 2, build.detections(result, classes.classes))
    figures = Figures("test", Accounting(1, 1, 1, 1, 0, 0, 0, 1))
    with Bag(path) as bag:
        _read_figures(bag, bag, figures, classes)
        (recorded,) = recorded_results(bag)
        assert perception_of(recorded, image, classes).output.detections.labels.tolist() == [1, 0, 1]
    assert figures.detections == [(10**9, {"moose": 1, "person": 2})]
    assert "| 0.000 | 1 | 2 |" in report_text(figures, [])
    with pytest.raises(RunError, match="no student"):
        student_classes(tmp_path / "no student.onnx")


def test_results_are_joined_with_their_own_images(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", [*whole(1), *whole(2)])
    with BagWriter(tmp_path / "cameras") as writer:
        build = MessageBuilder(writer.store.types.__getitem__)
        cameras = CameraTopics()
        for topic in (cameras.rgb, cameras.thermal):
            writer.add_topic(topic, IMAGE)
        for number in range(25):  # an RGB image every 0.1 s, a thermal one 10 ms after; the pixels tell the time
            log_ns = number * 100_000_000
            rgb = build.image(np.full((4, 6, 3), number, np.uint8), "rgb8", log_ns, "camera")
            thermal = build.image(np.full((2, 3), 100 + number, np.uint8), "mono8", log_ns + 10_000_000, "heat")
            writer.write(cameras.rgb, log_ns, rgb)
            writer.write(cameras.thermal, log_ns + 10_000_000, thermal)

    with Bag(results) as bag, Bag(tmp_path / "cameras") as cameras_bag:
        first, second = joined(recorded_results(bag), cameras_bag)

    assert [int(item.perception.rgb[0, 0, 0]) for item in (first, second)] == [10, 20]
    assert [item.thermal is not None and int(item.thermal[0, 0]) for item in (first, second)] == [110, 120]
    assert first.perception.output.detections is not None
    np.testing.assert_allclose(first.perception.output.detections.boxes, [[1, 1, 4, 3]])
    assert first.perception.output.segmentation is not None
    assert (first.perception.output.segmentation.mask == 2).all()


# --- The whole demo --------------------------------------------------------------------------------------------------


def demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "md_perception.ros.demo", "--source", "scenes", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def scene_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A demo of sixty scene frames at half speed, with the demo student where it is; returns (its folder, student)."""
    folder = tmp_path_factory.mktemp("demo")
    student = DEMO_STUDENT
    if not student.is_file():
        student = folder / "tiny.onnx"
        write_tiny_student(student)
    ran = demo(folder / "demo", "--frames", "60", "--rate", "0.5", "--student", str(student), "--least-recall", "0")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder / "demo", student


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_demo_leaves_what_it_promises(scene_demo: tuple[Path, Path]) -> None:
    folder, _ = scene_demo
    report = (folder / "report.md").read_text()
    played = json.loads((folder / "log" / "player.json").read_text())
    assert "- checks: all passed" in report
    assert "| in the bag | 60 |" in report
    assert played["counts"]["/rgb/image_raw"] == 60
    with Bag(folder / "results") as bag:
        counts = {name: topic.count for name, topic in bag.topics.items()}
        processed = counts["/md_perception/detections"]
    assert processed == counts["/segmentation/mask"] == counts["/segmentation/confidence"] > 0
    assert counts["/segmentation/label_info"] >= 1
    assert counts["/diagnostics"] >= 1
    pictures = sorted(folder.glob("overlay_*.png"))
    assert len(pictures) == min(6, processed)
    image = cv2.imread(str(pictures[0]))
    assert image.shape == (512, 1280, 3)  # 640x512 beside 160x128 enlarged fourfold
    assert float(image[:, :640].std()) > 5
    assert float(image[:, 640:].std()) > 5


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_node_gives_what_the_pipeline_gives_on_the_same_pairs(scene_demo: tuple[Path, Path]) -> None:
    folder, file = scene_demo
    student = Student.load(file, SessionSettings(providers=("CPUExecutionProvider",)))
    with Bag(folder / "results") as results, Bag(folder / "cameras") as cameras:
        threshold = float(next(results.messages(["/segmentation/label_info"])).message.threshold)
        pipeline = Pipeline({Mode.FUSED: student}, PipelineSettings(score_threshold=threshold))
        rgb = {stamp_ns(item.message): item.message for item in cameras.messages(["/rgb/image_raw"])}
        thermal = {stamp_ns(item.message): item.message for item in cameras.messages(["/thermal/image_raw"])}
        compared = boxes = 0
        for result in joined(recorded_results(results), cameras):
            assert result.perception.pair_offset_ns is not None
            wanted = result.perception.stamp_ns + result.perception.pair_offset_ns
            partner = min(thermal, key=lambda stamp: abs(stamp - wanted))
            assert abs(partner - wanted) < 1000  # the same pair; the status has the offset as a float32
            expected = pipeline.infer(pipeline.prepare(rgb[result.perception.stamp_ns], thermal[partner])).output
            got = result.perception.output
            assert expected.segmentation is not None
            assert expected.detections is not None
            assert got.segmentation is not None
            assert got.detections is not None
            np.testing.assert_array_equal(got.segmentation.mask, expected.segmentation.mask)
            np.testing.assert_array_equal(got.segmentation.confidence, expected.segmentation.confidence)
            np.testing.assert_allclose(got.detections.boxes, expected.detections.boxes, atol=1e-3)
            np.testing.assert_allclose(got.detections.scores, expected.detections.scores, atol=1e-6)
            np.testing.assert_array_equal(got.detections.labels, expected.detections.labels)
            compared, boxes = compared + 1, boxes + len(got.detections)
    assert compared >= 5
    assert boxes > 0


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(not DEMO_STUDENT.is_file(), reason="the demo student is not there")
def test_the_demo_student_finds_persons_on_scenes_at_real_time(tmp_path: Path) -> None:
    ran = demo(tmp_path / "demo", "--frames", "200")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "person recall" in ran.stdout


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_student_that_finds_nobody_fails_the_demo(tmp_path: Path) -> None:
    write_tiny_student(tmp_path / "tiny.onnx")
    ran = demo(tmp_path / "demo", "--frames", "30", "--student", str(tmp_path / "tiny.onnx"))
    assert ran.returncode == 1
    assert "FAILED CHECK: person recall" in ran.stderr


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_node_that_cannot_start_ends_the_demo_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no student")
    ran = demo(tmp_path / "demo", "--frames", "5", "--student", str(tmp_path / "broken.onnx"))
    assert ran.returncode == 1
    assert "demo: the node ended with exit status 1" in ran.stderr
    assert "broken.onnx" in ran.stderr
    assert [entry.name for entry in (tmp_path / "demo").iterdir() if "partial" in entry.name] == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path) -> None:
    write_tiny_student(tmp_path / "tiny.onnx")
    command = [sys.executable, "-m", "md_perception.ros.demo", "--source", "scenes", "--frames", "30", "--rate", "0.1"]
    command += ["--out", str(tmp_path / "demo"), "--student", str(tmp_path / "tiny.onnx")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "playing the bag" in line:
                break
        deadline = time.monotonic() + 30
        while len(running(str(tmp_path))) < 3 and time.monotonic() < deadline:  # demo, node, player
            time.sleep(0.05)
        assert len(running(str(tmp_path))) == 3
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "all its processes were ended" in error
    assert running(str(tmp_path)) == []


def running(mark: str) -> list[int]:
    """Return the processes with `mark` in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return found
