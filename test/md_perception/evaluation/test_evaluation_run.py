"""Bags in, report out: the same bytes whatever the workers, chunks and interruptions, and records by hand."""

import itertools
import json
import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from small_drives import MS, RGB, START, STORE, THERMAL, noise, write_drive
from tiny_student import tiny_manifest, write_tiny_student

import md_perception
from md_perception.annotations.files import DataError
from md_perception.bags.injection import Injection
from md_perception.bags.make import RGB_CAMERA, THERMAL_CAMERA, TimedMessage, camera_messages, declare_camera
from md_perception.bags.read import Bag
from md_perception.bags.results import order_problems, recorded_results
from md_perception.bags.types import COMPRESSED_IMAGE
from md_perception.bags.write import BagError, BagWriter
from md_perception.evaluation import run as evaluation_run
from md_perception.evaluation.chunks import Evaluated, Evaluator, evaluate_chunk
from md_perception.evaluation.job import EvaluationError, Job, bag_digest, named
from md_perception.evaluation.records import FrameRecord
from md_perception.evaluation.run import Ends, Evaluation, evaluate, here
from md_perception.evaluation.schema import ScoreSettings
from md_perception.evaluation.simulate import Simulation
from md_perception.evaluation.store import record_fields
from md_perception.evaluation.truth import TruthSpec
from md_perception.inference.manifest import ThermalContract
from md_perception.parameters import Parameters
from md_perception.results import Mode
from md_perception.sensing.images import stamp_ns as stamp_of
from md_perception.sensing.images import to_rgb, to_thermal_values

FILES = ("report.json", "records/drive.jsonl", "results/drive/drive.mcap")


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    return {
        "fused": write_tiny_student(folder / "fused.onnx"),
        "visible": write_tiny_student(folder / "visible.onnx", thermal=False),
        "warm": write_tiny_student(folder / "warm.onnx", rgb=False),
    }


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive of 4 s with truth, in which thermal and then RGB are lost for a while, and some images cannot be read."""
    faults = [
        Injection("drop", THERMAL, 0.8, 2.2, 1.0),
        Injection("drop", RGB, 2.6, 3.8, 1.0),
        Injection("cut", RGB, 0.3, 0.4, 0.5),
    ]
    return write_drive(tmp_path_factory.mktemp("drives") / "drive", 150, faults=faults, truth=True)


@pytest.fixture(scope="module")
def job(students: dict[str, Path]) -> Job:
    return Job(
        students={"fused": students["fused"], "visible": students["visible"]},
        visible_student=students["visible"],
        thermal_student=students["warm"],
        teacher=("teacher", students["fused"]),
        with_results=True,
        truth=TruthSpec(),
    )


def run(job: Job, bags: dict[str, Path], folder: Path, **options: Any) -> Evaluation:
    """Evaluate, with few redrawn samples for the intervals, which take most of the time."""
    return evaluate(job, bags, folder, settings=ScoreSettings(replicates=5), show_progress=False, **options)


@pytest.fixture(scope="module")
def evaluation(job: Job, drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation in one go, with one worker."""
    return run(job, {"drive": drive}, tmp_path_factory.mktemp("whole") / "out", workers=1)


@pytest.fixture(scope="module")
def whole(evaluation: Evaluation) -> Path:
    return evaluation.folder


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_the_number_of_workers_changes_no_byte(job: Job, drive: Path, whole: Path, tmp_path: Path) -> None:
    run(job, {"drive": drive}, tmp_path / "out", workers=3)
    assert contents(tmp_path / "out") == contents(whole)
    assert str(drive.parent) not in (whole / "report.json").read_text()  # so that it is the same in another folder


def test_chunks_put_together_are_the_bytes_of_one_process(job: Job, drive: Path, whole: Path) -> None:
    again: Job = pickle.loads(pickle.dumps(job))
    bounds = [0, 1, 40, 77, None]
    chunks = [evaluate_chunk(again, drive, "drive", first, last) for first, last in itertools.pairwise(bounds)]
    records = [one.record for chunk in chunks for one in chunk.frames]
    lines = [json.dumps(record_fields(record), separators=(",", ":")) for record in records]
    stored = (whole / "records/drive.jsonl").read_text().splitlines()
    assert lines == stored[:-1]
    assert [chunk.drive is None for chunk in chunks] == [True, True, True, False]
    assert json.loads(stored[-1])["drive"]["frames"] == len(records)
    assert evaluate_chunk(again, drive, "drive", 10_000).frames == []


@pytest.mark.parametrize("after", [1, 50])
def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_bytes(
    after: int, job: Job, drive: Path, whole: Path, tmp_path: Path
) -> None:
    asked: list[int] = []

    class Interrupted:
        """Frames of a bag until somebody presses Ctrl-C."""

        drive, rest, machine = None, b"", "here"

        def __init__(self, frames: Iterator[Evaluated]) -> None:
            self._frames = frames

        def __iter__(self) -> Iterator[Evaluated]:
            yield from itertools.islice(self._frames, after)
            raise KeyboardInterrupt

    def spread(job, tasks):
        for task, frames in zip(tasks, here()(job, tasks), strict=True):
            asked.append(task.first)
            yield Interrupted(iter(frames)) if len(asked) == 1 else frames

    with pytest.raises(KeyboardInterrupt):
        run(job, {"drive": drive}, tmp_path / "out", spread=spread)
    if after == 50:  # and the machine lost power while it wrote
        with (tmp_path / "out/records/drive.jsonl").open("ab") as file:
            file.write(b'{"bag": "dri')
        spool = tmp_path / "out/records/drive.results"
        spool.write_bytes(spool.read_bytes() + b"\x10\x00\x00\x00abc")
    run(job, {"drive": drive}, tmp_path / "out", spread=spread)
    assert asked == [0, after]
    assert contents(tmp_path / "out") == contents(whole)
    run(job, {"drive": drive}, tmp_path / "out", spread=spread)  # there is nothing left to do
    assert asked == [0, after]
    assert contents(tmp_path / "out") == contents(whole)


def test_other_settings_in_the_same_folder_are_refused_with_what_differs(job: Job, drive: Path, whole: Path) -> None:
    other = replace(job, parameters=replace(job.parameters, pairing_tolerance_s=0.01))
    with pytest.raises(EvaluationError, match=r"other settings \(parameters\): choose another folder"):
        run(other, {"drive": drive}, whole)
    with pytest.raises(EvaluationError, match=r"other settings \(bags\)"):
        run(job, {"drive": drive, "again": drive}, whole)


def test_another_version_of_this_package_does_not_go_on_with_an_evaluation(
    job: Job, drive: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(md_perception, "__version__", "99.0")
    with pytest.raises(EvaluationError, match=r"other settings \(md_perception\)"):
        run(job, {"drive": drive}, whole)


def test_a_folder_of_somebody_else_is_not_written_to(job: Job, drive: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        run(job, {"drive": drive}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_every_rgb_image_is_processed_unpaired_or_rejected_and_the_modes_are_those_of_the_node(
    evaluation: Evaluation,
) -> None:
    found = evaluation
    ends, known = found.ends("drive"), found.drives["drive"]
    assert known.rgb_images == 150 - 36  # those from 2.6 s to 3.8 s are missing
    assert ends.processed + ends.unpaired + ends.rejected == known.rgb_images
    assert ends.rejected == 3  # those from 0.3 s to 0.4 s are cut
    # Images 25 to 48 have waited their 150 ms before thermal, last seen at 0.77 s, is missed a second later.
    assert ends.unpaired == 24
    assert ends.thermal_processed > 0
    modes = [change.mode.name for change in known.changes]
    # STALE before the first pair, and when three images in a row were rejected.
    assert modes[:4] == ["STALE", "FUSED", "STALE", "FUSED"]
    assert modes[4:] == ["VISIBLE_ONLY", "FUSED", "THERMAL_ONLY", "VISIBLE_ONLY", "FUSED"]
    figures = found.report.students["fused"]
    assert figures.answered == ends.processed + ends.thermal_processed
    assert sum(figures.rejected.values()) == ends.rejected + ends.unpaired


def records_of(job: Job, bag: Path) -> list[FrameRecord]:
    return [one.record for one in evaluate_chunk(job, bag, "drive").frames]


def test_records_hold_what_the_student_said_of_the_images_in_the_bag(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 3, truth=True)
    (first, *_) = records = records_of(Job({"s": students["fused"]}, teacher=("t", students["visible"])), path)
    assert [record.stamp_ns for record in records] == [START, START + 33_333_333, START + 66_666_667]
    assert (first.bag, first.index, first.frame_id, first.size) == ("drive", 0, "rgb", (32, 24))
    assert (first.mode, first.pair_offset_ns, first.unpaired) == (Mode.FUSED, 0, "")
    images = {timed.topic: timed.message for timed in noise(1)}
    rgb, warm = to_rgb(images[RGB]), to_thermal_values(images[THERMAL])
    assert first.luminance == pytest.approx(float((rgb.reshape(-1, 3) @ [0.299, 0.587, 0.114]).mean()), abs=1e-3)
    assert first.light == "day"
    # The tiny student: scores s, s/2 and s/4 with s = mean(thermal) / 255, for person, bicycle, car.
    heat = warm.mean() / 255
    found = first.answers["s"].detections
    np.testing.assert_allclose(found.scores, [heat, heat / 2, heat / 4], rtol=1e-5)
    assert found.labels.tolist() == [0, 1, 2]
    assert found.boxes[0].tolist() == [8, 6, 24, 18]
    # Its mask: 2 where red is above 127. The truth: 2 in the left half. The teacher says the same as the student.
    red = rgb[..., 0] > 127
    left = np.zeros(red.shape, bool)
    left[:, :16] = True
    confusion = first.answers["s"].confusions["truth"]
    assert confusion[2, 2] == (red & left).sum()
    assert confusion[0, 2] == (red & ~left).sum()
    assert confusion.sum() == red.size
    assert np.diag(first.answers["s"].confusions["teacher"])[[0, 2]].tolist() == [(~red).sum(), red.sum()]
    assert first.truth.mask is None  # which would not fit into memory
    assert first.truth.boxes.tolist() == [[8, 6, 24, 18]]


def test_weak_detections_are_kept_for_the_curves_though_the_node_would_not_publish_them(
    students, tmp_path: Path
) -> None:
    parameters = replace(Parameters.defaults(), score_threshold=0.9)
    job = Job({"s": students["fused"]}, parameters=parameters, with_results=True)
    path = write_drive(tmp_path / "drive", 5)
    found = run(job, {"drive": path}, tmp_path / "out")
    assert len(found.records["drive"][0].answers["s"].detections) == 3
    with Bag(found.result_bags["drive"]) as bag:
        assert {len(one.detections.detections) for one in recorded_results(bag)} == {0}


def test_thermal_of_another_unit_is_lost_as_in_the_node(students: dict[str, Path], tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 60)
    parameters = Parameters.read(None, {"thermal.encoding": "centikelvin"})  # the bag has mono8
    job = Job({"s": students["fused"]}, visible_student=students["visible"], parameters=parameters)
    records = records_of(job, path)
    modes = [record.mode for record in records]
    taken_over = modes.index(Mode.VISIBLE_ONLY)
    assert taken_over < 30
    assert set(modes[taken_over:]) == {Mode.VISIBLE_ONLY}
    assert not any(record.answers["s"].rejected for record in records[taken_over:])


def test_a_student_of_rgb_alone_answers_where_one_of_both_cameras_cannot(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 90, faults=[Injection("drop", THERMAL, 1.0, 9.0, 1.0)])
    records = records_of(Job({"both": students["fused"], "rgb": students["visible"]}), path)
    assert len(records) == 90
    lost = [record for record in records if record.answers["both"].rejected]
    assert [record.index for record in lost] == list(range(31, 90))
    assert {record.answers["both"].rejected for record in lost} == {"unpaired: no thermal image came in time"}
    assert not any(record.answers["rgb"].rejected for record in records)


@pytest.mark.parametrize("lost", [THERMAL, RGB])
def test_a_drive_without_one_camera_is_judged_as_it_would_be_driven(students, lost, tmp_path: Path, caplog) -> None:
    path = write_drive(tmp_path / "drive", 60, faults=[Injection("drop", lost, 0.0, 9.0, 1.0)])
    job = Job({"s": students["fused"]}, visible_student=students["visible"], thermal_student=students["warm"])
    modes = [record.mode for record in records_of(job, path)]
    assert modes[-1] is (Mode.VISIBLE_ONLY if lost == THERMAL else Mode.THERMAL_ONLY)
    assert "has no thermal images" in caplog.text if lost == THERMAL else "has no rgb images" in caplog.text
    with pytest.raises(BagError, match=f"has no images on {lost}"):
        records_of(Job({"s": students["fused"]}), path)
    with pytest.raises(BagError, match="has no images on /other"):
        records_of(replace(job, thermal_topic="/other"), path)


@pytest.mark.parametrize("width", [0, 99_999])
def test_the_objects_of_an_image_whose_header_is_broken_are_missed(students, width: int, tmp_path: Path) -> None:
    whole = write_drive(tmp_path / "whole", 10, truth=True)
    with Bag(whole) as bag, BagWriter(tmp_path / "drive") as writer:
        for topic, summary in bag.topics.items():
            writer.add_topic(topic, summary.msgtype)
        for number, item in enumerate(bag.messages(list(bag.topics))):
            message = item.message
            if item.topic == RGB and number % 8 < 4:
                message.width = width
            writer.write(item.topic, item.log_ns, message)
    job = Job({"s": students["fused"]}, truth=TruthSpec())
    records = records_of(job, tmp_path / "drive")
    broken = [record for record in records if record.answers["s"].rejected]
    assert 0 < len(broken) < len(records)
    assert {record.size for record in records} == {(32, 24)}
    assert all(len(record.truth.boxes) == 1 for record in broken)


def test_a_student_that_answers_no_frame_has_missed_all(students, tmp_path: Path) -> None:
    faults = [Injection("cut", RGB, 0.0, 9.0, 0.5)]
    path = write_drive(tmp_path / "drive", 10, truth=True, faults=faults, size=(160, 128))
    report = run(Job({"s": students["fused"]}, truth=TruthSpec()), {"drive": path}, tmp_path / "out").report
    found = report.students["s"]
    assert found.answered == 0
    assert found.figures()["miss_rate"] == 1.0
    assert found.figures()["recall_person"] == 0.0


def test_a_student_of_one_camera_is_replayed_as_a_node_that_has_no_other(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 20)
    (chunk, warm) = (evaluate_chunk(Job({"s": students[name]}), path, "drive") for name in ("visible", "warm"))
    assert [one.record.index for one in chunk.frames] == [one.record.index for one in warm.frames] == list(range(20))
    assert {one.record.mode for one in chunk.frames} == {Mode.VISIBLE_ONLY}
    assert {one.record.mode for one in warm.frames} == {Mode.THERMAL_ONLY}
    assert {(one.record.frame_id, one.record.size) for one in warm.frames} == {("thermal", (16, 12))}
    assert (chunk.drive.rgb_images, chunk.drive.thermal_images) == (20, 0)
    assert Ends.of([one.record for one in warm.frames], "s") == Ends(thermal_processed=20)


def test_a_student_of_both_cameras_cannot_be_compared_with_one_of_rgb_that_decides_the_modes(students) -> None:
    with pytest.raises(EvaluationError, match="name a student of both cameras first"):
        Evaluator(Job({"rgb": students["visible"], "both": students["fused"]}))
    with pytest.raises(EvaluationError, match="is a student for FUSED, not for VISIBLE_ONLY"):
        Evaluator(Job({"rgb": students["fused"]}, visible_student=students["fused"]))


def test_the_teacher_sees_the_bag_and_the_student_the_simulated_camera(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 40, thermal_size=(32, 24))
    simulation = Simulation.parse("thermal=8x8,drop=0.5,offset=0.01,rgb,gain=0.5,seed=1")
    job = Job({"s": students["fused"]}, teacher=("t", students["fused"]), simulation=simulation)
    plain = records_of(replace(job, simulation=Simulation()), path)
    records = records_of(job, path)
    assert len(records) == 40
    assert {record.pair_offset_ns for record in records} > {10 * MS}
    for one, other in zip(records, plain, strict=True):
        np.testing.assert_array_equal(one.answers["t"].detections.scores, other.answers["t"].detections.scores)
        assert one.luminance < 0.6 * other.luminance
        # The third box of the tiny student is as large as the thermal image.
        assert one.answers["t"].detections.boxes[2].tolist() == [0, 0, 32, 24]
        if not one.answers["s"].rejected:
            assert one.answers["s"].detections.boxes[2].tolist() == [0, 0, 8, 8]


def test_a_homography_for_the_images_of_the_bag_holds_for_the_simulated_camera(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 3, thermal_size=(32, 24))
    parameters = replace(
        Parameters.defaults(),
        registration_homography=[0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0],
        registration_sizes=[32, 24, 32, 24],
    )
    job = Job({"s": students["fused"]}, parameters=parameters)
    small = replace(job, simulation=Simulation.parse("thermal=8x8"))
    # The third box of the tiny student is (0, 0, W * M[0][0], H * M[1][1]): half the RGB image, then an 8th and a 6th.
    assert records_of(job, path)[0].answers["s"].detections.boxes[2].tolist() == [0, 0, 16, 12]
    assert records_of(small, path)[0].answers["s"].detections.boxes[2].tolist() == [0, 0, 4, 4]


def test_night_is_what_the_options_the_bag_or_the_luminance_say(students, tmp_path: Path) -> None:
    job = Job({"s": students["fused"]})
    bright = write_drive(tmp_path / "bright", 2)
    noted = write_drive(tmp_path / "noted", 2, custom_data={"light": "night"})
    dark = write_drive(tmp_path / "dark", 4, faults=[Injection("dark", RGB, 0.05, 9.0)])
    assert [record.light for record in records_of(job, bright)] == ["day", "day"]
    assert [record.light for record in records_of(replace(job, light="night"), bright)] == ["night", "night"]
    assert [record.light for record in records_of(job, noted)] == ["night", "night"]
    assert [record.light for record in records_of(replace(job, light="day"), noted)] == ["day", "day"]
    assert [record.light for record in records_of(job, dark)] == ["day", "day", "night", "night"]


@pytest.mark.parametrize(("storage", "compressed"), [("sqlite3", False), ("mcap", True)])
def test_the_storage_of_a_bag_changes_nothing(students, storage, compressed: bool, tmp_path: Path) -> None:
    job = Job({"s": students["fused"]})
    plain = records_of(job, write_drive(tmp_path / "plain", 20))
    other = records_of(job, write_drive(tmp_path / "other", 20, storage=storage, compressed=compressed))
    assert list(map(record_fields, other)) == list(map(record_fields, plain))


def test_compressed_images_are_found_and_give_the_same_records(students, tmp_path: Path) -> None:
    """PNG loses nothing, and is decoded once for all students."""
    job = Job({"s": students["fused"], "other": students["visible"]})
    plain = records_of(job, write_drive(tmp_path / "plain", 5))
    packed = STORE.types[COMPRESSED_IMAGE]
    with BagWriter(tmp_path / "packed") as writer:
        for topic in (RGB, THERMAL):
            writer.add_topic(f"{topic}/compressed", COMPRESSED_IMAGE)
        for timed in noise(5):
            image = to_rgb(timed.message)[..., ::-1] if timed.topic == RGB else to_thermal_values(timed.message)
            data = cv2.imencode(".png", image)[1].reshape(-1)
            text = "rgb8; png compressed bgr8" if timed.topic == RGB else "mono8; png compressed mono8"
            message = packed(header=timed.message.header, format=text, data=data)
            writer.write(f"{timed.topic}/compressed", timed.log_ns, message)
    assert list(map(record_fields, records_of(job, tmp_path / "packed"))) == list(map(record_fields, plain))


def test_a_registration_by_camera_info_waits_for_both_and_is_that_of_the_simulated_camera(
    students, tmp_path: Path
) -> None:
    camera = replace(RGB_CAMERA, encoding="rgb8"), THERMAL_CAMERA
    with BagWriter(tmp_path / "bag") as writer:
        for one in camera:
            declare_camera(writer, one)
        for number, timed in enumerate(noise(6)):
            one, message = camera[timed.topic == THERMAL], timed.message
            pixels = to_rgb(message) if timed.topic == RGB else to_thermal_values(message)
            messages = list(camera_messages(STORE, one, timed.log_ns, stamp_of(message), pixels, 50.0))
            for item in messages if number >= 4 else messages[1:]:  # the first two pairs come before any CameraInfo
                writer.write(item.topic, item.log_ns, item.message)
    parameters = Parameters.read(None, {"registration.source": "camera_info_raw"})
    job = Job({"s": students["fused"]}, teacher=("t", students["fused"]), parameters=parameters)
    for simulated, scale in (("", 16 / 32), ("thermal=8x8", 8 / 32)):
        simulation = Simulation.parse(simulated) if simulated else Simulation()
        records = records_of(replace(job, simulation=simulation), tmp_path / "bag")
        assert [bool(one.answers["s"].rejected) for one in records] == [True, True, False, False, False, False]
        assert "camera_info" in records[0].answers["s"].rejected
        # The same field of view: the third box of the tiny student is (0, 0, W * M[0][0], H * M[1][1]).
        assert records[-1].answers["s"].detections.boxes[2][2] == pytest.approx(32 * scale, abs=0.05)
        assert records[-1].answers["t"].detections.boxes[2][2] == pytest.approx(16, abs=0.05)


def test_a_registration_is_changed_for_the_simulated_camera_and_not_for_the_teacher(students, tmp_path: Path) -> None:
    matrix = "[0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0]"
    parameters = Parameters.read(None, {"registration.homography": matrix})
    simulation = Simulation.parse("thermal=8x8,view=0.75")  # of 16x12 px those 12x9 in the middle
    job = Job({"s": students["fused"]}, teacher=("t", students["fused"]), parameters=parameters, simulation=simulation)
    record = records_of(job, write_drive(tmp_path / "drive", 3))[-1]
    # The third box is (0, 0, W * M[0][0], H * M[1][1]), of an RGB image of 32x24 px.
    corners = {name: answer.detections.boxes[2][2:].tolist() for name, answer in record.answers.items()}
    assert corners["t"] == pytest.approx([32 * 0.5, 24 * 0.5], abs=0.01)
    assert corners["s"] == pytest.approx([32 * 0.5 * 8 / 12, 24 * 0.5 * 8 / 9], abs=0.01)


def test_a_damaged_bag_is_evaluated_up_to_the_damage_which_is_told(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 900)
    file = path / "drive.mcap"
    file.write_bytes(file.read_bytes()[: int(0.7 * file.stat().st_size)])
    found = run(Job({"s": students["fused"]}), {"drive": file}, tmp_path / "out")
    known = found.drives["drive"]
    assert "opened without its index" in known.damage
    assert 100 < known.rgb_images < 900
    assert len(found.records["drive"]) == known.rgb_images == found.ends("drive").processed
    assert json.loads((tmp_path / "out/report.json").read_text())["drives"][0]["damage"] == known.damage


def test_the_result_bag_is_what_a_node_would_have_recorded(job: Job, drive: Path, whole: Path) -> None:
    with Bag(whole / "results/drive") as results, Bag(drive) as cameras:
        headers = {}
        for topic in (RGB, THERMAL):
            found: dict[tuple[int, str], int] = {}
            for item in cameras.messages([topic]):
                header = item.message.header
                key = header.stamp.sec * 10**9 + header.stamp.nanosec, header.frame_id
                found[key] = found.get(key, 0) + 1
            headers[topic] = found
        assert order_problems(results, headers[RGB], headers[THERMAL]) == []
        statuses = [item.message for item in results.messages(["/md_perception/status"])]
        last = statuses[-1]
        assert last.received_rgb == last.processed + last.unpaired_rgb + last.rejected == 114
        assert {Mode(one.mode) for one in statuses} >= {Mode.FUSED, Mode.VISIBLE_ONLY, Mode.THERMAL_ONLY}
        assert results.custom_data["inputs"] == str(drive.resolve())
        info = next(results.messages(["/segmentation/label_info"]))
        assert info.log_ns == cameras.start_ns
        assert [entry.class_name for entry in info.message.class_map][:3] == ["unlabelled", "car", "person"]
    records = evaluate_chunk(job, drive, "drive").frames
    with Bag(whole / "results/drive") as results:
        published = {one.stamp_ns: one for one in recorded_results(results)}
        for record in (one.record for one in records):
            if record.mode is not Mode.FUSED or record.answers["fused"].rejected:
                continue
            found_there = published[record.stamp_ns].detections.detections
            strong = record.answers["fused"].detections.above(0.3)
            assert [one.results[0].hypothesis.score for one in found_there] == pytest.approx(strong.scores.tolist())


def test_inputs_are_copied_into_the_result_bag_where_asked(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 10)
    job = Job({"s": students["fused"]}, with_results=True)
    found = run(job, {"drive": path}, tmp_path / "out", copy_inputs=True)
    with pytest.raises(EvaluationError, match=r"other settings \(copied_inputs\)"):
        run(job, {"drive": path}, tmp_path / "out")
    with Bag(found.result_bags["drive"]) as results, Bag(path) as cameras:
        copied = [(item.log_ns, item.topic, item.raw) for item in results.messages([RGB, THERMAL])]
        assert copied == [(item.log_ns, item.topic, item.raw) for item in cameras.messages()]
        times = [item.log_ns for item in results.messages()]
        assert times == sorted(times)
        assert results.topics["/md_perception/detections"].count == 10


def test_inputs_of_types_that_are_not_installed_are_copied_by_their_definition_in_the_bag(
    students, tmp_path: Path
) -> None:
    own = get_typestore(Stores.ROS2_JAZZY)
    own.register(get_types_from_msg("float64 metres", "my_msgs/msg/Odometer"))
    with Bag(write_drive(tmp_path / "cameras", 10)) as bag, BagWriter(tmp_path / "drive") as writer:
        for topic, summary in bag.topics.items():
            writer.add_topic(topic, summary.msgtype)
        writer.add_topic("/odometer", "my_msgs/msg/Odometer", source=own)
        for item in bag.messages():
            writer.write_raw(item.topic, item.log_ns, item.raw)
        travelled = own.serialize_cdr(own.types["my_msgs/msg/Odometer"](metres=1.5), "my_msgs/msg/Odometer")
        writer.write_raw("/odometer", item.log_ns, travelled)
    job = Job({"s": students["fused"]}, with_results=True)
    found = run(job, {"drive": tmp_path / "drive"}, tmp_path / "out", copy_inputs=True)
    with Bag(found.result_bags["drive"]) as results:
        assert [item.message.metres for item in results.messages(["/odometer"])] == [1.5]


def test_the_report_is_there_where_the_result_bag_cannot_be_written(
    students, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> Path:
        raise BagError("cannot write to the bag: No space left on device")

    monkeypatch.setattr(evaluation_run, "_finish_result_bag", no_space)
    job = Job({"s": students["fused"]}, with_results=True)
    with pytest.raises(BagError, match="No space left"):
        run(job, {"drive": write_drive(tmp_path / "drive", 10)}, tmp_path / "out")
    assert (tmp_path / "out" / "report.json").exists()


def test_pictures_are_read_again_with_the_masks_of_all_students(evaluation: Evaluation) -> None:
    found = evaluation
    by_mode = {record.mode: at for at, record in enumerate(found.records["drive"])}
    at = [0, by_mode[Mode.THERMAL_ONLY]]
    pictures = found.pictures("drive", at)
    assert sorted(pictures) == sorted(at)
    first: TimedMessage = next(timed for timed in noise(1) if timed.topic == RGB)
    np.testing.assert_array_equal(pictures[0].rgb, to_rgb(first.message))
    assert pictures[0].thermal.shape == (12, 16)
    assert sorted(pictures[0].masks) == ["fused", "teacher", "visible"]
    np.testing.assert_array_equal(pictures[0].masks["fused"].mask == 2, pictures[0].rgb[..., 0] > 127)
    alone = pictures[by_mode[Mode.THERMAL_ONLY]]
    assert alone.rgb.shape == (12, 16, 3)
    assert alone.thermal is None


def test_a_student_of_other_classes_is_refused_by_their_names(tmp_path: Path) -> None:
    manifest = tiny_manifest(detection_classes=("person", "tram", "car"))
    path = write_tiny_student(tmp_path / "s.onnx", manifest=manifest)
    with pytest.raises(EvaluationError, match="knows tram, which rgbt_traffic_3 does not have"):
        Evaluator(Job({"s": path}))


def test_class_ids_of_a_student_are_those_of_its_names(tmp_path: Path) -> None:
    manifest = tiny_manifest(detection_classes=("car", "person", "bicycle"), thermal=True).model_copy(
        update={"thermal": ThermalContract(sensor_size=(16, 12))}
    )
    path = write_tiny_student(tmp_path / "s.onnx", manifest=manifest)
    (record, *_) = records_of(Job({"s": path}), write_drive(tmp_path / "drive", 2))
    assert record.answers["s"].detections.labels.tolist() == [2, 0, 1]


def test_files_of_one_name_are_told_apart() -> None:
    files = [Path("a/new.onnx"), Path("b/new.onnx"), Path("old.onnx")]
    assert list(named(files)) == ["new", "new_2", "old"]


def test_a_folder_has_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drive 24.05").mkdir()
    monkeypatch.chdir(tmp_path / "drive 24.05")
    assert list(named([tmp_path / "drive 24.05", Path("."), Path("v1.2.onnx")])) == [
        "drive 24.05",
        "drive 24.05_2",
        "v1.2",
    ]


def test_a_bag_is_known_by_names_sizes_and_both_ends(tmp_path: Path) -> None:
    def digest(name: str, content: bytes) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_bytes(content)
        return bag_digest(folder)

    zeros = bytes(3 << 20)
    known = digest("a.mcap", zeros)
    assert digest("a.mcap", zeros) == known
    changed = [("b.mcap", zeros), ("a.mcap", zeros + b"0"), ("a.mcap", b"1" + zeros[1:]), ("a.mcap", zeros[1:] + b"1")]
    assert len({known, *(digest(name, content) for name, content in changed)}) == 5


def test_bags_without_a_single_frame_are_an_error(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 5)
    job = Job({"s": students["fused"]}, simulation=Simulation.parse("rgb,drop=1"))
    with pytest.raises(EvaluationError, match=r"no frame is left to evaluate in .*drive"):
        run(job, {"drive": path}, tmp_path / "out")
    assert not (tmp_path / "out/report.json").exists()


def test_a_bad_annotation_is_told_before_the_inference(students, tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", 6, size=(160, 128))
    folder = tmp_path / "truth"
    for number in range(6):
        file = folder / "boxes" / f"{START + round(number * 1e9 / 30)}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0 0.5 0.5 0.25 0.5\n" if number < 5 else "0 0.5 0.5 0.25\n")
    job = Job({"s": students["fused"]}, truth=TruthSpec(path=folder))
    with pytest.raises(DataError, match="line 1 has 4 numbers, expected 5"):
        run(job, {"drive": path}, tmp_path / "out")
    assert not list((tmp_path / "out" / "records").glob("*"))


def test_truth_by_number_belongs_to_one_bag(students, tmp_path: Path) -> None:
    bags = {name: write_drive(tmp_path / name, 3, seed=seed) for seed, name in enumerate(("one", "two"))}
    (tmp_path / "boxes").mkdir()
    for number in range(3):
        (tmp_path / f"boxes/frame_{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("person\n")
    job = Job({"s": students["fused"]}, truth=TruthSpec(tmp_path / "boxes"))
    assert run(job, {"one": bags["one"]}, tmp_path / "out").report.truth.with_truth == 3
    with pytest.raises(EvaluationError, match="would be that of all 2 bags"):
        run(job, bags, tmp_path / "both")


def test_thermal_alone_is_not_scored_with_the_truth_of_the_rgb_images(students, tmp_path: Path) -> None:
    """Both images have the same size, so that nothing but the mode says whose pixels the boxes are in."""
    path = write_drive(tmp_path / "drive", 12, truth=True, size=(160, 128), thermal_size=(160, 128))
    job = Job({"s": students["warm"]}, truth=TruthSpec())
    report = run(job, {"drive": path}, tmp_path / "out").report
    assert report.truth is None
    assert report.students["s"].answered == 12
    assert (report.students["s"].slices[0].detection, report.students["s"].slices[0].masks) == (None, None)
    assert report.students["s"].detection_confusion is None
    with pytest.raises(EvaluationError, match="in the pixels of the RGB images"):
        run(replace(job, truth=TruthSpec(mask_topic="/truth/mask")), {"drive": path}, tmp_path / "asked")


def test_frames_of_thermal_alone_have_no_truth_where_the_rgb_camera_is_lost(students, tmp_path: Path) -> None:
    """RGB is lost after 1 s, with 30 images; what thermal sees alone, from 2 to 4 s, is not compared with them."""
    size: dict[str, Any] = {"size": (160, 128), "thermal_size": (160, 128)}
    path = write_drive(tmp_path / "drive", 120, truth=True, faults=[Injection("drop", RGB, 0.99, 9.0, 1.0)], **size)
    job = Job(
        {"s": students["fused"]},
        thermal_student=students["warm"],
        teacher=("t", students["fused"]),
        simulation=Simulation.parse("rgb,gain=0.3"),  # from 125 to 38: night
    )
    found = run(job, {"drive": path}, tmp_path / "out")
    assert {record.light for record in found.records["drive"]} == {"night"}  # which thermal cannot see
    alone = [record for record in found.records["drive"] if record.mode is Mode.THERMAL_ONLY]
    assert 50 < len(alone) < 62
    assert all(record.truth is None and not record.answers["s"].confusions for record in alone)
    assert all(len(record.answers["s"].detections or ()) == 3 for record in alone)
    scores = found.report.students["s"].slices[0]
    assert (scores.frames, scores.detection.frames, scores.masks.frames) == (30 + len(alone), 30, 30)
    assert found.report.agreement["s"].frames == 30


def test_the_memory_does_not_grow_with_the_bag(students, tmp_path: Path) -> None:
    """Images of 320x240: twenty of them are 4.6 MB, while the records of twenty frames are a few kilobytes."""
    path = write_drive(tmp_path / "drive", 60, size=(320, 240), thermal_size=(8, 6))
    one_pass = Evaluator(Job({"s": students["fused"]})).evaluate(path, "drive", workers=2)
    tracemalloc.start()
    peaks = [tracemalloc.get_traced_memory()[1] for number, _ in enumerate(one_pass) if number in (30, 50, 59)]
    tracemalloc.stop()
    assert peaks[-1] - peaks[0] < 1e6


def test_ends_are_counted_by_what_the_first_student_said() -> None:
    assert Ends(3, 2, 1).text(6) == "6 RGB images = 3 processed + 2 unpaired + 1 rejected"
    assert Ends(3, 2, 1, 4, 0).text(8) == (
        "6 RGB images (2 dropped by the simulation) = 3 processed + 2 unpaired + 1 rejected; 4 thermal images "
        "processed by themselves, 0 rejected"
    )
