"""The paper's cells by name: what they train and see, that each builds a network, and that each kind learns."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted_samples import painted_sample

from md_training.__main__ import main
from md_training.checkpoint import Checkpoint, save
from md_training.data.pairs import Degradation, degraded
from md_training.data.sample import at_network_size
from md_training.data.sources import KaistData, UnlabelledData
from md_training.loader import Batches
from md_training.models.networks import Network, NetworkSettings, make_network
from md_training.presets import PRESETS, PRESETS_HELP, ROLES, Run
from md_training.train import Trainer, load_teachers

SIZE = (64, 64)
PAPER = {name: run for name, (_, run) in PRESETS.items() if not name.startswith("scenes-demo")}
SINGLE = {
    *("teacher", "decision", "native-thermal", "native-visible", "student-visible"),
    *(f"{kind}-x{pixels}" for kind in ("native", "student") for pixels in (1, 4, 16, 64)),
}
JOINT = {role for role in SINGLE if role.startswith(("native-x", "student-"))}


def test_every_data_set_has_every_cell_of_the_tables() -> None:
    expected = {f"{name}-{role}" for name in ("kaist", "mfnet") for role in SINGLE}
    for name in ("scenes", "msrs", "drive", "coco"):
        expected |= {f"{name}-{role}-{task}" for role in SINGLE for task in ("detection", "segmentation")}
        expected |= {f"{name}-{role}-joint" for role in JOINT}
    taught = {role for role in SINGLE if role.startswith("student-")}
    expected |= {f"unlabelled-{role}-{task}" for role in taught for task in ("detection", "segmentation", "joint")}
    assert set(PAPER) == expected
    assert set(ROLES) == SINGLE
    assert all(run.name == name for name, run in PAPER.items())


def test_the_help_explains_every_role_and_data_set() -> None:
    words = PRESETS_HELP.split()
    for role in ROLES:
        kind, _, pixels = role.partition("-x")
        assert role in words or (f"{kind}-x16" in words and f"x{pixels}" in {word.strip(",;") for word in words})
    for name in PAPER:
        assert f"{name.partition('-')[0]}-ROLE" in PRESETS_HELP


def role_of(run: Run) -> str:
    data, *rest = run.name.split("-")
    return "-".join(rest if data in ("kaist", "mfnet") else rest[:-1])


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_sees_what_its_name_says(name: str) -> None:
    run = PAPER[name]
    role = role_of(run)
    architectures = {"teacher": "two_stream", "decision": "decision"}
    assert run.network.architecture == architectures.get(role, "one_stream")
    seen = {"visible": ("rgb",), "thermal": ("thermal",)}
    assert run.network.inputs == seen.get(role.partition("-")[2], ("rgb", "thermal"))
    # x16 has a sixteenth of the pixels; all that does not say so has thermal at full resolution.
    factor = int(role.partition("-x")[2] or 1)
    assert np.prod(run.data.camera_size) == factor * np.prod(run.data.thermal_size)
    assert run.network.input_size == run.data.camera_size


@pytest.mark.parametrize("name", {repr(run.network): name for name, run in PAPER.items()}.values())
def test_a_preset_has_a_network_that_can_be_made(name: str) -> None:
    """Each once: presets that differ in the thermal sensor alone share their network."""
    with torch.device("meta"):
        network = make_network(PAPER[name].network)
    assert sum(parameter.numel() for parameter in network.parameters()) > 11e6


@pytest.mark.parametrize("name", [name for name in PAPER if "-student-" in name])
def test_a_distilled_student_is_the_native_one_with_a_joint_branch_and_teachers(name: str) -> None:
    student = PAPER[name]
    assert len(student.teachers) == len(student.network.tasks)
    for path, task in zip(student.teachers, student.network.tasks, strict=True):
        teacher = PAPER[Path(path).parent.name]
        assert teacher.network.architecture == "two_stream"
        assert teacher.network.tasks == (task,)
        assert teacher.network.input_size == student.network.input_size
        assert teacher.data.thermal_size == student.data.camera_size == teacher.data.camera_size
        assert student.network.joint[task].blocks
    native = PAPER.get(name.replace("student", "native"))
    if native is None:
        assert name.startswith("unlabelled-") or name.endswith("student-visible-joint")
        return
    assert student.distillation.task_loss == "labels"
    same = {f"{task}_joint": native.network.joint[task] for task in student.network.tasks}
    assert replace(student.network, **same) == native.network
    assert (student.optimisation, student.data) == (native.optimisation, native.data)
    assert native.teachers == ()


def test_a_student_of_unlabelled_pairs_learns_what_a_teacher_of_labelled_drives_says() -> None:
    run = PAPER["unlabelled-student-x4-joint"]
    assert run.distillation.task_loss == "teacher"
    assert isinstance(run.data, UnlabelledData)
    assert run.teachers == PAPER["drive-student-x4-joint"].teachers
    assert run.network == PAPER["drive-student-x4-joint"].network


def test_a_class_that_the_teacher_does_not_know_is_not_learnt_as_background(tmp_path: Path) -> None:
    teacher = PAPER["drive-teacher-detection"]
    persons = replace(teacher, network=replace(tiny(teacher.network), detection_classes=("person",)))
    save(tmp_path / "teacher.pt", Checkpoint(persons, "persons", 1, make_network(persons.network), {}, "test"))
    student = PAPER["unlabelled-student-x1-detection"]
    student = replace(student, network=tiny(student.network), teachers=(str(tmp_path / "teacher.pt"),))
    with pytest.raises(ValueError, match=r"does not know bicycle, car.* set network.detection_classes to person"):
        load_teachers(student)
    same = replace(student, network=replace(student.network, detection_classes=("person",)))
    assert [one.run_id for one in load_teachers(same)] == ["persons"]


def test_the_recipe_is_the_papers() -> None:
    for run in PAPER.values():
        options = run.optimisation
        assert (options.batch_size, options.optimiser, options.learning_rate) == (16, "sgd", 1e-2)
        # 3,500 steps of detection, 14,000 of segmentation; both at once take the longer schedule.
        assert options.steps == (14_000 if "segmentation" in run.network.tasks else 3500)
        assert run.backbone_weights == ("none" if run.name.startswith("scenes") else "imagenet")
    data = PAPER["kaist-student-x64"].data
    assert isinstance(data, KaistData)
    assert (data.downsample, data.thermal_size) == (8, (80, 64))


def tiny(settings: NetworkSettings) -> NetworkSettings:
    return replace(
        settings,
        input_size=SIZE,
        detection=replace(settings.detection, channels=16, tower_convs=1, anchor_side=16.0),
        segmentation=replace(settings.segmentation, channels=16, auxiliary=False),
    )


CELLS = {
    role_of(run) + "-".join(("", *run.network.tasks)): run
    for name, run in PAPER.items()
    if name.startswith("scenes") and "-x4" not in name and "-x64" not in name and "-x1-" not in name
}


QUICK = ("teacher-detection", "student-x16-segmentation")


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=() if cell in QUICK else pytest.mark.long) for cell in CELLS]
)
def test_every_kind_of_preset_learns_in_a_step(cell: str) -> None:
    torch.manual_seed(1)
    run = replace(CELLS[cell], network=tiny(CELLS[cell].network))
    run = replace(run, optimisation=replace(run.optimisation, steps=2, batch_size=2, precision="fp32"))
    samples = [at_network_size(degraded(painted_sample(seed, SIZE, SIZE), Degradation(4)), SIZE) for seed in (1, 2)]
    teachers: list[Network] = [make_network(tiny(PAPER[Path(path).parent.name].network)) for path in run.teachers]
    trainer = Trainer(make_network(run.network), run, teachers=teachers)
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    terms = trainer.step(1, Batches(samples, run)[1])
    assert all(np.isfinite(value) for value in terms.values())
    assert sum(value for value in terms.values()) > 0
    distilled = {name for name in terms if name.endswith(("_semantic", "_attention"))}
    assert len(distilled) == 2 * len(teachers)
    changed = [not torch.equal(old, new) for old, new in zip(before, trainer.network.parameters(), strict=True)]
    assert np.mean(changed) > 0.9


def test_a_mistyped_preset_gets_advice(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["md_training", "train", "kaist-studnt-x16", "--steps", "3"])
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "no preset is named: did you mean kaist-student-x16" in caplog.text


def test_the_help_of_train_lists_the_presets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["md_training", "train", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "  kaist-ROLE         the paper's detection on KAIST" in shown
    assert len(shown.splitlines()) < 60
