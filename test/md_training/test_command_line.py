"""The command line of the training package: what a user may type, what `evaluate` says, what an error looks like."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_trees import write_kaist, write_yolo
from fixed_student import write_fixed_student

from md_perception.inference.session import SessionSettings, Student
from md_perception.labels import DETECTION
from md_perception.results import Detections, StudentOutput
from md_training import __main__ as command_line
from md_training import evaluate as evaluation
from md_training import export as exporting
from md_training.__main__ import main
from md_training.checkpoint import Checkpoint, load, save
from md_training.data.kaist import KaistPairs
from md_training.data.pairs import Degradation
from md_training.data.sample import Sample
from md_training.data.sources import KaistData, UnlabelledData, YoloData
from md_training.data.yolo import YoloFolder
from md_training.export import export
from md_training.figures.samples import pairs_to_score
from md_training.miss_rate import read_results
from md_training.models.networks import NetworkSettings, make_network
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import Run

Command = Callable[[str], None]
PERSONS = NetworkSettings(
    tasks=("detection",),
    input_size=(64, 64),
    detection_classes=("person",),
    detection=RetinaNetSettings(channels=16, tower_convs=1),
)


@pytest.fixture
def md_training(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`python -m md_training WORDS` in this process."""

    def command(words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["md_training", *words.split()])
        main()

    return command


def write_checkpoint(path: Path, run: Run) -> Checkpoint:
    torch.manual_seed(1)
    checkpoint = Checkpoint(run, f"{run.name}-1", 3, make_network(run.network).eval(), {"AP [all]": 0.5}, "test")
    save(path, checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    "arguments", ["train scenes-demo --out {out} --steps 0", "train --out {out} scenes-demo --steps 0"]
)
def test_options_of_a_command_may_stand_before_or_after_the_preset(arguments, tmp_path, md_training, caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        md_training(arguments.format(out=tmp_path / "run"))
    assert ended.value.code == 1
    assert "0 steps of 8 images: at least 1 step of 2" in caplog.text  # parsed, and refused by the run itself
    assert not (tmp_path / "run").exists()


def test_a_command_line_leaves_nothing_behind_for_the_next(md_training):
    before = dict(command_line.train.__annotations__)
    with pytest.raises(SystemExit):
        md_training("train scenes-demo --steps 0")
    assert command_line.train.__annotations__ == before
    assert before["run"] is Run


def test_an_error_that_a_user_can_mend_is_one_line(tmp_path, md_training, caplog):
    missing = tmp_path / "none.pt"
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        md_training(f"export {missing} --out {tmp_path / 'x.onnx'}")
    assert ended.value.code == 1
    assert f"{missing}: there is no such checkpoint" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("checkpoint", "options", "said"),
    [
        ("own.pt", "--out {root}/own.pt", "the node takes .onnx files, name it own.onnx"),
        ("own.pt", "--out {root}/own.md", "the node takes .onnx files, name it own.onnx"),
        ("own.onnx", "--out {root}/../{root.name}/own.onnx", "would replace the student"),
        ("own.md", "--out {root}/own.onnx", "its card, own.md, would replace the checkpoint"),
        ("own.pt", "--out {root}/x.onnx --score-threshold 2", "score threshold 2: scores are probabilities"),
        ("own.pt", "--out {root}/x.onnx --score-threshold nan", "score threshold nan: scores are probabilities"),
        ("own.pt", "--out {root}/x.onnx --name no/name", "'no/name' cannot be a student's name: use letters"),
        ("own.pt", "--out {root}/x.onnx --precision int8 --held-out-data {root}/none", "none is no folder"),
    ],
)
def test_an_export_that_would_destroy_or_serve_nothing_is_refused(
    checkpoint, options, said, tmp_path, md_training, monkeypatch, caplog
):
    # Where the options alone say it, the checkpoint is not even read.
    content = b"a checkpoint"
    if any(option in options for option in ("threshold", "name", "precision")):
        write_checkpoint(tmp_path / checkpoint, Run("persons", PERSONS, YoloData(tmp_path)))
        content = (tmp_path / checkpoint).read_bytes()
    else:
        (tmp_path / checkpoint).write_bytes(content)
    monkeypatch.setattr(exporting, "to_onnx", lambda *_: pytest.fail("it was exported"))
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        md_training(f"export {tmp_path}/{checkpoint} {options.format(root=tmp_path)}")
    assert ended.value.code == 1
    assert said in caplog.text
    assert (tmp_path / checkpoint).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint]


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(md_training, monkeypatch, caplog):
    monkeypatch.setattr("md_training.benchmark.run.benchmark", lambda settings: pytest.fail("it was measured"))
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit):
        md_training("benchmark --picture roofline.bmp")
    assert "--picture roofline.bmp: name a file that ends in .png, .svg, .pdf" in caplog.text


@pytest.mark.parametrize(
    ("tasks", "truth", "said"),
    [
        (("segmentation",), "boxes", "drive train has no truth of segmentation, which is all that the network does"),
        (("detection",), "masks", "drive train has no truth of detection, which is all that the network does"),
        (("detection",), "nothing", "drive train has no truth of detection, which is all that the network does"),
        (("detection", "segmentation"), "boxes", "drive train has no truth of segmentation: it is not scored"),
    ],
)
def test_a_set_without_truth_of_the_task_is_not_scored(tasks, truth, said, tmp_path, md_training, caplog):
    root = tmp_path / "drive"
    write_yolo(root, size=(64, 48))
    if truth == "masks":
        (root / "boxes").rename(tmp_path / "taken-boxes")
        (root / "masks").mkdir()
    if truth == "nothing":
        for path in (root / "boxes").iterdir():
            path.write_text("")
    network = replace(PERSONS, tasks=tasks, segmentation=PSPNetSettings(channels=16, auxiliary=False))
    write_checkpoint(tmp_path / "checkpoint.pt", Run("drive", network, YoloData(root)))
    ends = pytest.raises(SystemExit) if len(tasks) == 1 else contextlib.nullcontext()
    with caplog.at_level(logging.WARNING), ends:
        md_training(f"evaluate {tmp_path}/checkpoint.pt --data {root} --split train --json-out {tmp_path}/new/f.json")
    assert said in caplog.text
    assert (tmp_path / "new/f.json").exists() == (len(tasks) == 2)  # the folder is made after the scoring


@pytest.mark.parametrize(("command", "shown"), [("export", "CHECKPOINT"), ("evaluate", "FILE"), ("data", "ROOT")])
def test_the_help_names_what_a_command_takes(command, shown, md_training, capsys):
    with pytest.raises(SystemExit):
        md_training(f"{command} --help")
    usage = capsys.readouterr().out.partition("positional arguments")[0]
    assert shown in usage


def test_a_checkpoint_and_its_export_are_scored_on_a_data_set_by_name(tmp_path, md_training, capsys):
    root, size = tmp_path / "kaist", (160, 128)
    write_kaist(root, size=size)
    write_yolo(tmp_path / "drive", size=(64, 48))
    data = KaistData(root, size, size, downsample=4, split="tiny-train", evaluation_split="tiny-test")
    trained = write_checkpoint(tmp_path / "checkpoint.pt", Run("kaist-tiny", PERSONS, data))
    export(trained, tmp_path / "student.onnx", score_threshold=1e-4)

    md_training(f"evaluate {tmp_path}/checkpoint.pt --json-out {tmp_path}/own.json")
    own = load(tmp_path / "checkpoint.pt").metrics
    assert own == json.loads((tmp_path / "own.json").read_text())
    # One image by day, one by night; not KAIST's test set, so not by the name of its metric.
    names = {"MR2[person,kaist tiny-test all]", "MR2[person,kaist tiny-test day]", "MR2[person,kaist tiny-test night]"}
    assert {name for name in own if name.startswith("MR2")} == names
    assert "AP [kaist tiny-test, night]" in own

    md_training(f"evaluate {tmp_path}/checkpoint.pt --data {tmp_path}/drive --split train")
    added = load(tmp_path / "checkpoint.pt").metrics
    assert own.items() < added.items()
    # write_yolo's list has no image by night: what is all by day is not said twice.
    assert {name for name in added.keys() - own.keys() if "person" not in name} == {
        "AP [drive train, all]",
        "AP50 [drive train, all]",
        "AP50 car [drive train, all]",
    }
    assert "MR2[person,drive train all]" in added

    capsys.readouterr()
    found = tmp_path / "found.txt"
    student = f"evaluate {tmp_path}/student.onnx --data {root} --split tiny-test"
    md_training(f"{student} --detections-out {found} --json-out {tmp_path}/student.json")
    assert "MR2[person,kaist tiny-test all]" in capsys.readouterr().out
    scores = json.loads((tmp_path / "student.json").read_text())
    assert scores.keys() == own.keys()
    assert scores == pytest.approx(own, abs=0.01)
    # The file holds what the student finds in the images as coarse as it was trained for, counted from 1.
    pairs = data.evaluation()
    session = Student.load(tmp_path / "student.onnx", SessionSettings(providers=("cpu",)))
    for index, of_image in enumerate(read_results(found, len(pairs))):
        sample = pairs[index]
        assert sample.thermal.shape == (32, 40)
        expected = session.run(sample.rgb, sample.thermal, sample.rgb_to_thermal).detections
        assert expected is not None
        assert len(of_image.scores) == len(expected.scores) > 5
        np.testing.assert_allclose(of_image.boxes[:, :2], expected.boxes[:, :2] + 1, atol=1e-3)
        np.testing.assert_allclose(of_image.scores, expected.scores, atol=1e-6)


def test_a_fixed_file_is_scored_on_scenes_of_its_own_size(tmp_path, md_training):
    file = write_fixed_student(tmp_path / "fixed.onnx")  # trained on 640x480 with another thermal camera
    md_training(f"evaluate {file} --scenes 1 --workers 0 --json-out {tmp_path}/found.json")
    assert "AP50 [1 held-out scenes, all]" in json.loads((tmp_path / "found.json").read_text())


def test_the_miss_rate_counts_what_is_not_found(tmp_path, md_training, monkeypatch):
    write_yolo(tmp_path / "drive", size=(64, 48))
    write_checkpoint(tmp_path / "checkpoint.pt", Run("persons", PERSONS, YoloData(tmp_path / "drive")))
    sets = {"nothing": 1.0, "everything": 1e-10}  # the geometric mean of nine misses, each at least 1e-10

    def answer(network: object, sample: Sample, limits: object) -> StudentOutput:
        mine = (sample.labels == DETECTION.id_of("person")) & (what == "everything")
        return StudentOutput(Detections(sample.boxes[mine], np.ones(mine.sum(), np.float32), sample.labels[mine]), None)

    monkeypatch.setattr(evaluation, "predict", answer)
    for what, expected in sets.items():
        out = tmp_path / f"{what}.json"
        md_training(f"evaluate {tmp_path}/checkpoint.pt --data {tmp_path}/drive --split train --json-out {out}")
        assert json.loads(out.read_text())["MR2[person,drive train all]"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "cannot be evaluated on; name a labelled data set"),
        ("--split val", "--split val belongs to --data"),
        ("--data {root}/none", "none is no folder"),
        ("--data {root}/bare", "has no labels to score anything by"),
        ("--data {root}/drive --miss-rate-class horse", "use one of person, bicycle, car"),
        (
            "--data {root}/drive --miss-rate-class car --detections-out {root}/x.txt",
            "does not detect car in RGB images",
        ),
    ],
)
def test_what_cannot_be_scored_is_said(options, said, tmp_path, md_training, caplog):
    write_yolo(tmp_path / "drive", size=(64, 48))
    write_yolo(tmp_path / "bare", size=(64, 48))
    for name in ("boxes", "train.txt", "val.txt"):
        (tmp_path / "bare" / name).rename(tmp_path / f"taken-{name}")
    run = Run("persons", PERSONS, YoloData(tmp_path / "drive"))
    write_checkpoint(tmp_path / "teacher.pt", run)
    distillation = replace(run.distillation, task_loss="teacher")
    data = UnlabelledData(tmp_path / "bare")
    student = replace(run, data=data, distillation=distillation, teachers=(str(tmp_path / "teacher.pt"),))
    write_checkpoint(tmp_path / "checkpoint.pt", student)
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit):
        md_training(f"evaluate {tmp_path}/checkpoint.pt {options.format(root=tmp_path)}")
    assert said in caplog.text


@pytest.mark.parametrize(
    ("sensor", "downsample"), [((64, 48), 1), ((16, 12), 4), ((17, 12), 4), ((8, 6), 8), ((640, 480), 1)]
)
def test_finer_thermal_images_are_made_as_coarse_as_the_sensor(sensor, downsample, tmp_path):
    write_yolo(tmp_path, size=(64, 48))
    pairs = pairs_to_score(tmp_path, "train", sensor)
    assert pairs.degradation == Degradation(downsample)
    assert pairs[0].thermal.shape == (48 // downsample, 64 // downsample)
    assert pairs_to_score(tmp_path, "", None).split == YoloFolder(tmp_path, "val").open().split


def test_on_kaists_whole_test_set_the_miss_rate_is_the_benchmarks(data_root, tmp_path, md_training, monkeypatch):
    """GAFF's released detections, as if a checkpoint had answered them; the images themselves are not needed."""
    released = read_results(data_root / "kaist" / "results" / "GAFF.txt", 2252)
    names = [name.strip() for name in (data_root / "kaist" / "test-all-20.txt").read_text().split()]
    monkeypatch.setattr(
        KaistPairs, "images", lambda *_: (np.zeros((512, 640, 3), np.uint8), np.zeros((512, 640), np.uint8))
    )

    def answer(network: object, sample: Sample, limits: object) -> StudentOutput:
        found = released[names.index(sample.name)]
        boxes = found.boxes - np.array([1, 1, 0, 0])  # the file counts pixels from 1
        boxes[:, 2:] += boxes[:, :2]
        scores = found.scores.astype(np.float32)
        return StudentOutput(Detections(boxes.astype(np.float32), scores, np.zeros(len(scores), np.int64)), None)

    monkeypatch.setattr(evaluation, "predict", answer)
    write_checkpoint(tmp_path / "checkpoint.pt", Run("persons", PERSONS, KaistData(tmp_path)))

    options = f"--data {data_root}/kaist --json-out {tmp_path}/figures.json --detections-out {tmp_path}/found.txt"
    md_training(f"evaluate {tmp_path}/checkpoint.pt {options}")

    figures = json.loads((tmp_path / "figures.json").read_text())
    reasonable = [figures[f"MR2[reasonable,{subset}]"] for subset in ("all", "day", "night")]
    assert [round(100 * value, 4) for value in reasonable] == [6.4756, 8.3534, 3.4593]  # MATLAB's
    assert not any(name.startswith("MR2[person") for name in figures)
    assert sum(len(image.scores) for image in read_results(tmp_path / "found.txt", 2252)) == sum(
        len(image.scores) for image in released
    )
