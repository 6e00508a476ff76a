"""The training loop: it learns, it writes what it promises, and its schedule is the paper's."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from painted_samples import painted_sample

from md_training.checkpoint import Checkpoint, CheckpointError, load, save, set_metrics
from md_training.data.augment import NO_AUGMENTATION
from md_training.data.sample import at_network_size
from md_training.data.synthetic import SceneData
from md_training.evaluate import evaluate
from md_training.loader import Batches
from md_training.losses import IGNORED_PIXEL
from md_training.models.networks import Input, NetworkSettings, Student, Teacher, select_inputs
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import PRESETS, Optimisation, Run
from md_training.train import (
    CLASS_WEIGHT_LIMIT,
    Trainer,
    learning_rate,
    make_optimiser,
    sqrt_inverse_weights,
    take_weights,
    train,
)

TINY = Run(
    name="tiny",
    network=NetworkSettings(
        input_size=(96, 64),
        detection=RetinaNetSettings(channels=32, tower_convs=1, anchor_side=16),
        segmentation=PSPNetSettings(channels=32, output_stride=4, auxiliary=True, dropout=0.0),
    ),
    data=SceneData(camera_size=(160, 128), thermal_size=(40, 32), scenes=4, evaluation_scenes=2),
    augmentation=NO_AUGMENTATION,
    optimisation=Optimisation(
        steps=4,
        batch_size=2,
        optimiser="adamw",
        learning_rate=3e-3,
        warmup_steps=10,
        weight_decay=0.0,
        precision="fp32",
    ),
    log_every=2,
    evaluate_every=4,
    checkpoint_every=2,
)


def test_it_learns_two_samples_by_heart() -> None:
    torch.manual_seed(1)
    samples = [painted_sample(seed) for seed in (1, 2)]
    run = replace(TINY, optimisation=replace(TINY.optimisation, steps=50))
    network = Student(run.network)
    trainer = Trainer(network, run)
    batches = Batches([at_network_size(sample, (96, 64)) for sample in samples], run)

    terms = [trainer.step(step, batches[step]) for step in range(1, 51)]

    assert set(terms[0]) == {"classes", "boxes", "segmentation", "segmentation_auxiliary"}
    for name in terms[0]:
        assert terms[-1][name] < 0.5 * terms[0][name], name
    scores = evaluate(network, samples)["all"]
    assert network.training  # as it was before
    assert scores.detection is not None
    assert scores.segmentation is not None
    assert scores.segmentation.iou[0] > 0.9
    assert scores.segmentation.iou[1] > 0.5  # the car
    assert scores.detection.mean_ap50 is not None
    assert scores.detection.mean_ap50 > 0.5


def test_run_leaves_a_checkpoint_with_everything_in_it(tmp_path: Path) -> None:
    checkpoint = train(TINY, tmp_path / "run", workers=0)

    loaded = load(tmp_path / "run" / "checkpoint.pt")
    assert loaded.run == TINY
    assert loaded.step == 4
    assert loaded.run_id == checkpoint.run_id
    assert loaded.metrics == checkpoint.metrics
    assert "mIoU9 [all]" in loaded.metrics
    assert not loaded.network.training
    trained = checkpoint.network.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.network.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4, 4]
    assert lines[2]["gradients"].keys() == {"classes", "boxes", "segmentation", "segmentation_auxiliary"}
    assert min(lines[2]["gradients"].values()) > 0
    assert lines[0]["boxes"] > 0
    assert 0 < lines[0]["waited_s"] < lines[0]["elapsed_s"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run"] == TINY.to_json()
    assert not list((tmp_path / "run").glob("*.part"))

    before = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    set_metrics(tmp_path / "run" / "checkpoint.pt", {"AP": 0.25})
    after = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert after["metrics"] == {"AP": 0.25}
    assert after["optimiser"].keys() == before["optimiser"].keys()


class Harmful:
    """Would touch a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_first_weights_are_those_of_the_other_run_where_they_fit(tmp_path: Path) -> None:
    def checkpoint(network: NetworkSettings) -> Path:
        torch.manual_seed(7)
        path = tmp_path / "other.pt"
        save(path, Checkpoint(replace(TINY, network=network), "other", 4, Student(network), {}, "none"))
        return path

    torch.manual_seed(1)
    network = Student(TINY.network)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    take_weights(network, checkpoint(replace(TINY.network, tasks=("detection",), detection_classes=("person",))))
    given, after = load(tmp_path / "other.pt").network.state_dict(), network.state_dict()
    for name, weight in after.items():
        fits = name in given and given[name].shape == weight.shape
        torch.testing.assert_close(weight, given[name] if fits else before[name], rtol=0, atol=0)
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert "backbone" in changed
    assert not any("segmentation" in name for name in changed)  # the other run has no such head
    unlike = [name for name, weight in given.items() if weight.shape != after[name].shape]
    assert unlike
    assert all("class" in name for name in unlike)  # one class instead of three

    run = replace(TINY, first_weights=str(tmp_path / "missing.pt"), data=replace(TINY.data, scenes=2))
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        train(run, tmp_path / "run")


@pytest.mark.parametrize("inputs", [("rgb",), ("thermal",)])
def test_a_student_of_one_camera_starts_from_one_of_two(inputs: tuple[Input, ...], tmp_path: Path) -> None:
    torch.manual_seed(7)
    both, one = Student(TINY.network).eval(), Student(replace(TINY.network, inputs=inputs)).eval()
    save(tmp_path / "both.pt", Checkpoint(TINY, "both", 4, both, {}, "none"))
    take_weights(one, tmp_path / "both.pt")
    image = torch.randn(2, 6, *reversed(TINY.network.input_size))
    dark = image.clone()
    dark[:, 3:] = dark[:, 3:] * (inputs == ("thermal",))
    dark[:, :3] = dark[:, :3] * (inputs == ("rgb",))
    with torch.no_grad():
        found, expected = one(select_inputs(image, inputs)), both(dark)
    assert found.detection is not None
    assert expected.detection is not None
    torch.testing.assert_close(found.detection.classes, expected.detection.classes)


@pytest.mark.parametrize("inputs", [("rgb",), ("thermal",), ("rgb", "thermal")])
def test_a_student_starts_from_a_stream_and_the_heads_of_its_teacher(inputs: tuple[Input, ...], tmp_path: Path) -> None:
    settings = replace(TINY.network, architecture="two_stream", inputs=("rgb", "thermal"))
    torch.manual_seed(7)
    teacher = Teacher(settings).eval()
    save(tmp_path / "teacher.pt", Checkpoint(replace(TINY, network=settings), "teacher", 4, teacher, {}, "none"))
    student = Student(replace(TINY.network, inputs=inputs)).eval()
    take_weights(student, tmp_path / "teacher.pt")

    image = torch.randn(2, 6, *reversed(settings.input_size))
    streams = [teacher.visible, teacher.thermal]
    seen = {"rgb": 0, "thermal": 1}
    with torch.no_grad():
        # After the first convolution, whose responses are added, all is the first camera's stream.
        kernels = [
            streams[seen[name]].stem.get_submodule("conv1")(image.split(3, dim=1)[seen[name]]) for name in inputs
        ]
        expected, stream = sum(kernels), streams[seen[inputs[0]]]
        for layer in ("bn1", "relu", "maxpool"):
            expected = stream.stem.get_submodule(layer)(expected)
        found = student.backbone(select_inputs(image, inputs))
        torch.testing.assert_close(found.c5, stream.layer4(stream.layer3(stream.layer2(stream.layer1(expected)))))
        for task in ("detector", "segmenter"):
            given, taken = (getattr(network, task).state_dict() for network in (teacher, student))
            torch.testing.assert_close(taken, given, rtol=0, atol=0)


def test_pickles_that_are_no_checkpoint_are_refused_unread(tmp_path: Path) -> None:
    torch.save({"format": 1, "network": Harmful(tmp_path / "touched")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt cannot be read"):
        load(tmp_path / "bad.pt")
    assert not (tmp_path / "touched").exists()
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no md_training checkpoint"):
        load(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "missing.pt")


@pytest.mark.parametrize("content", [b"import os\n", b"\x08\x07\x12\x04onnx", b"", b"PK\x03\x04 half an archive"])
def test_other_kinds_of_files_are_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"cannot be read as a checkpoint .* another kind of file, or damaged$"
    ) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"run_id": None}, r"no whole checkpoint \(run_id\)"),
        ({"network": [1, 2], "step": "three"}, r"no whole checkpoint \(step, network\)"),
        ({"network": {1: torch.zeros(1)}}, "weights are not those of the network"),
        ({"network": {"backbone": 3}}, "weights are not those of the network"),
        ({"format": torch.ones(2)}, "no md_training checkpoint of format 1"),
        ({"format": torch.ones(1)}, "no md_training checkpoint of format 1"),
        ({"run": {"name": [torch.ones(2)]}}, "not the settings of a run"),
    ],
)
def test_a_checkpoint_that_was_tampered_with_is_a_checkpoint_error(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    save(path, Checkpoint(TINY, "tiny-1", 1, Student(TINY.network), {}, "abc"))
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(CheckpointError, match=expected):
        load(path)


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="seed -1: 0 or more"):
        replace(TINY, seed=-1)


def test_schedule_of_the_paper() -> None:
    paper = Optimisation()  # 3,500 steps, 500 of warm-up, 1e-2
    assert learning_rate(500, paper) == pytest.approx(1e-2)
    assert learning_rate(250, paper) == pytest.approx(1e-6 + (1e-2 - 1e-6) / 2)
    assert learning_rate(2000, paper) == pytest.approx(1e-6 + (1e-2 - 1e-6) * 0.5)  # half-way down
    assert learning_rate(1250, paper) == pytest.approx(1e-6 + (1e-2 - 1e-6) * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(3500, paper) == pytest.approx(1e-6)


def test_biases_and_normalisation_do_not_decay() -> None:
    network = Student(TINY.network)
    decaying, free = make_optimiser(network, Optimisation()).param_groups
    assert decaying["weight_decay"] == 5e-4
    assert free["weight_decay"] == 0
    assert len(decaying["params"]) + len(free["params"]) == len(list(network.parameters()))
    assert {parameter.ndim for parameter in free["params"]} == {1}
    assert min(parameter.ndim for parameter in decaying["params"]) == 4


def test_class_weights_follow_the_root_of_the_share() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:2], mask[9] = 1, IGNORED_PIXEL  # 70 pixels of class 0, 20 of class 1
    weights = sqrt_inverse_weights([replace(painted_sample(1), mask=mask)], 9)
    assert float(weights[1] / weights[0]) == pytest.approx((70 / 20) ** 0.5, rel=1e-5)
    assert float(weights[0] * 70 + weights[1] * 20) / 90 == pytest.approx(1, rel=1e-5)
    assert float(weights[5]) == CLASS_WEIGHT_LIMIT


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_refuse_unknown_settings(name: str) -> None:
    run = PRESETS[name][1]
    assert run.name == name
    values = json.loads(json.dumps(run.to_json()))
    assert Run.from_json(values) == run
    values["optimisation"]["learning_rat"] = 1
    with pytest.raises(ValueError, match="learning_rat"):
        Run.from_json(values)
