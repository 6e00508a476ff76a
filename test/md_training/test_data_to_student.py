"""From a data-set folder or a bag to a student in the node's pipeline, by the commands that the documents name."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import KAIST_TRAINING, MFNET_LISTS, write_kaist, write_mfnet
from image_messages import image_message

from md_perception.bags.__main__ import main as md_bag
from md_perception.bags.read import Bag
from md_perception.bags.results import TRUTH_DETECTIONS, TRUTH_MASK, detections_of, iou
from md_perception.inference.session import SessionSettings, Student
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.pipeline import Pipeline, PipelineSettings
from md_perception.results import Mode, Perception
from md_perception.sensing.images import stamp_ns
from md_training.__main__ import main
from md_training.checkpoint import Checkpoint, load
from md_training.data.check import check
from md_training.data.sample import Sample
from md_training.data.sources import UnlabelledData, YoloData, training_data
from md_training.data.splits import hash_names
from md_training.evaluate import predict
from md_training.losses import IGNORED_PIXEL
from md_training.postprocess import DetectionLimits

SIZE = (160, 128)
LEAST_SCORE = 1e-4
"""After a few steps no score is high."""
TINY = """
    --steps 2 --batch-size 2 --warmup-steps 1 --image-size 64 64 --precision fp32 --backbone-weights none --workers 0
    --no-tensorboard --network.detection.channels 16 --network.detection.tower-convs 1
    --network.segmentation.channels 16 --network.segmentation.no-auxiliary
"""

Command = Callable[[str], None]


@pytest.fixture
def md_training(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`python -m md_training WORDS` in this process; fails where it exits with another status than 0."""

    def command(words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["md_training", *words.split()])
        main()

    return command


@dataclass(frozen=True)
class Made:
    """What the commands left behind."""

    checkpoint: Checkpoint
    figures: dict[str, float]
    student: Student


def data_to_student(md_training: Command, root: Path, folder: Path, preset: str, options: str) -> Made:
    """Run data check, train, evaluate and export."""
    run, onnx = folder / "run", folder / "student.onnx"
    md_training(f"data check {root}")
    md_training(f"train {preset} --root {root} --out {run} {TINY} {options}")
    md_training(f"evaluate {run}/checkpoint.pt --json-out {folder}/figures.json")
    md_training(f"export {run}/checkpoint.pt --out {onnx} --score-threshold {LEAST_SCORE}")
    assert "# " in onnx.with_suffix(".md").read_text()
    figures = json.loads((folder / "figures.json").read_text())
    return Made(load(run / "checkpoint.pt"), figures, Student.load(onnx, SessionSettings(providers=("cpu",))))


def in_the_node(student: Student, rgb: Any, thermal: Any) -> Perception:
    pipeline = Pipeline({Mode.FUSED: student}, PipelineSettings(score_threshold=0))
    return pipeline.infer(pipeline.prepare(rgb, thermal))


def as_messages(sample: Sample) -> tuple[Any, Any]:
    return image_message(sample.rgb, "rgb8", stamp_ns=7), image_message(sample.thermal, "mono8", stamp_ns=5)


def check_result(perception: Perception, made: Made, sample: Sample) -> None:
    """What the node says is of the image's size, in RGB pixels, and what the trained network says of the sample."""
    height, width = sample.rgb.shape[:2]
    assert (perception.mode, perception.size) == (Mode.FUSED, (width, height))
    expected = predict(made.checkpoint.network.eval(), sample, DetectionLimits(score_threshold=LEAST_SCORE))
    found, segmentation = perception.output.detections, perception.output.segmentation
    tasks = made.student.manifest.tasks
    assert (found is not None, segmentation is not None) == ("detection" in tasks, "segmentation" in tasks)
    if found is not None:
        assert expected.detections is not None
        # Where two boxes overlap by just the threshold of the suppression, rounding decides which stays.
        best = expected.detections.boxes[:5]
        assert len(best) == 5
        assert all(iou(box, found.boxes).max() > 0.95 for box in best)
        np.testing.assert_allclose(found.scores[:5], expected.detections.scores[:5], atol=1e-3)
        assert found.boxes.min() >= 0
        assert (found.boxes.max(axis=0) <= [width, height, width, height]).all()
        # In RGB pixels and not in the network's, which are fewer.
        assert found.boxes[:, 2].max() > made.student.manifest.input_size[0]
        assert set(found.labels.tolist()) <= set(range(len(made.student.manifest.detection_classes)))
    if segmentation is not None:
        assert expected.segmentation is not None
        assert segmentation.mask.shape == (height, width)
        assert (segmentation.mask == expected.segmentation.mask).mean() > 0.995
        assert segmentation.mask.max() < len(SEGMENTATION)


def test_a_kaist_folder_becomes_a_detector_in_the_node(md_training: Command, tmp_path: Path) -> None:
    root = tmp_path / "kaist"
    write_kaist(root, size=SIZE)
    width, height = SIZE
    sizes = f"--camera-size {width} {height} --native-thermal-size {width} {height}"

    made = data_to_student(
        md_training,
        root,
        tmp_path,
        "kaist-native-x16",
        f"{sizes} --split tiny-train --evaluation-split tiny-test --evaluation-pairs 1",
    )

    manifest = made.student.manifest
    assert (manifest.tasks, manifest.detection_classes) == (("detection",), ("person",))
    assert manifest.split_hashes == {"tiny-train": hash_names(KAIST_TRAINING)}
    assert manifest.thermal is not None
    assert manifest.thermal.sensor_size == (40, 32)
    assert manifest.seen_real_images
    assert "kaist: tiny-train (3 pairs" in manifest.training_data
    assert "x16" in manifest.training_data
    assert any("kaist tiny-test, night" in name for name in made.figures), made.figures
    pairs = made.checkpoint.run.data.evaluation()  # type: ignore[union-attr]
    for sample in (pairs[0], pairs[1]):
        check_result(in_the_node(made.student, *as_messages(sample)), made, sample)


@pytest.mark.long
def test_an_mfnet_folder_becomes_a_segmentation_in_the_node(md_training: Command, tmp_path: Path) -> None:
    root = tmp_path / "mfnet"
    size = (160, 120)
    write_mfnet(root, size=size)

    made = data_to_student(
        md_training,
        root,
        tmp_path,
        "mfnet-native-x4",
        "--camera-size 160 120 --native-thermal-size 160 120 --evaluation-split test --evaluation-pairs 1",
    )

    manifest = made.student.manifest
    assert (manifest.tasks, manifest.segmentation_classes) == (("segmentation",), SEGMENTATION.classes)
    assert manifest.split_hashes == {"train": hash_names(MFNET_LISTS["train"])}
    assert manifest.thermal is not None
    assert manifest.thermal.sensor_size == (80, 60)
    assert 0 <= made.figures["mAcc9 [mfnet test, night]"] < 1
    sample = made.checkpoint.run.data.evaluation()[0]  # type: ignore[union-attr]
    check_result(in_the_node(made.student, *as_messages(sample)), made, sample)


@pytest.mark.long
def test_a_bag_becomes_a_student_that_runs_on_it(md_training: Command, tmp_path: Path) -> None:
    bag, root = tmp_path / "bag", tmp_path / "drive"
    scenes = (
        "make --scenes --seed 4 --frames 8 --rgb-rate 10 --thermal-rate 10 --scene-size 128x96 --thermal-size 32x24"
    )
    assert md_bag([*scenes.split(), "--out", str(bag)]) == 0
    assert md_bag(["extract", str(bag), "--out", str(root), "--val", "0.3", "--gap", "0.05"]) == 0

    made = data_to_student(
        md_training,
        root,
        tmp_path,
        "drive-native-x1-joint",
        "--camera-size 128 96 --native-thermal-size 32 24 --evaluation-pairs 1",
    )

    manifest = made.student.manifest
    assert (manifest.tasks, manifest.detection_classes) == (("detection", "segmentation"), DETECTION.classes)
    names = (root / "train.txt").read_text().split()
    assert manifest.split_hashes == {"train": hash_names(names)}
    pairs = made.checkpoint.run.data.training()  # type: ignore[union-attr]
    with Bag(bag) as drive:
        messages = {
            (item.topic, stamp_ns(item.message)): item.message
            for item in drive.messages(["/rgb/image_raw", "/thermal/image_raw"])
        }
    stamp = int(names[2])
    perception = in_the_node(made.student, messages["/rgb/image_raw", stamp], messages["/thermal/image_raw", stamp])
    assert perception.stamp_ns == stamp
    check_result(perception, made, pairs[2])


def test_an_extracted_drive_is_what_its_bag_is(tmp_path: Path) -> None:
    bag, root = tmp_path / "bag", tmp_path / "drive"
    scenes = "make --scenes --seed 4 --frames 6 --rgb-rate 9 --thermal-rate 9 --scene-size 128x96 --thermal-size 32x24"
    assert md_bag([*scenes.split(), "--out", str(bag)]) == 0
    assert md_bag(["extract", str(bag), "--out", str(root), "--val", "0.3", "--gap", "0.05"]) == 0

    report = check(root)

    assert report.usable, report.text()
    assert (report.kind, report.pairs, report.masks) == ("yolo", 6, 6)
    assert report.tasks == ["detection of person, bicycle, car", "segmentation"]
    pairs = YoloData(root, (128, 96), (32, 24)).training()
    with Bag(bag) as drive:
        truth = {stamp_ns(item.message): detections_of(item.message) for item in drive.messages([TRUTH_DETECTIONS])}
        masks = {stamp_ns(item.message): item.message.data for item in drive.messages([TRUTH_MASK])}
    for sample in (pairs[index] for index in range(len(pairs))):
        objects = truth[int(sample.name)]
        np.testing.assert_allclose(sample.boxes, objects.boxes, atol=1e-4)
        assert sample.ignored.tolist() == (objects.scores < 0.5).tolist()
        assert sample.labels[~sample.ignored].tolist() == objects.labels[objects.scores >= 0.5].tolist()
        assert np.array_equal(sample.mask.ravel(), masks[int(sample.name)])


def test_a_bag_without_truth_is_read_as_unlabelled_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, root = tmp_path / "bag", tmp_path / "drive"
    scenes = (
        "make --scenes --seed 4 --frames 3 --rgb-rate 10 --thermal-rate 10 --scene-size 128x96 --thermal-size 64x48"
    )
    assert md_bag([*scenes.split(), "--out", str(bag)]) == 0
    without = ["--detections-topic", "", "--mask-topic", ""]
    assert md_bag(["extract", str(bag), "--out", str(root), *without]) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["md_training", "data", "check", str(root)])
        main()
    assert "is usable for distillation from a teacher's results" in capsys.readouterr().out
    source = UnlabelledData(root, (128, 96), (64, 48), downsample=2)
    data = training_data(source, ("segmentation",), (), (64, 64), 0, with_full=True, with_truth=False)
    assert len(data.samples) == 3
    sample = data.samples[0]
    assert (sample.thermal.shape, len(sample.boxes), np.unique(sample.mask).tolist()) == ((24, 32), 0, [IGNORED_PIXEL])
    assert sample.full is not None
    assert sample.full.image.shape == (48, 64)
