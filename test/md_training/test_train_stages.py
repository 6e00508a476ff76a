"""The second stage under frozen teachers, exact resume, the moving average and the checks of the first steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_trees import write_yolo
from painted_samples import painted_sample

from md_perception.sensing.registration import sampling_matrix
from md_training.checkpoint import Checkpoint, CheckpointError, load, load_progress, save
from md_training.data.augment import NO_AUGMENTATION, Augmentation, distillation_batch, training_batch
from md_training.data.pairs import Degradation, degraded
from md_training.data.sample import Sample, at_network_size
from md_training.data.sources import UnlabelledData
from md_training.data.synthetic import SceneData, scene_sample
from md_training.distillation import DistillationSettings, taught_targets, teach, teacher_targets
from md_training.loader import Batch, Batches, batch_of
from md_training.losses import IGNORED_PIXEL, LossError
from md_training.models.joint import JointSettings
from md_training.models.networks import NetworkSettings, make_network
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import Optimisation, Run
from md_training.train import Trainer, load_teachers, train

SIZE = (64, 64)
NETWORK = NetworkSettings(
    tasks=("segmentation",),
    input_size=SIZE,
    detection=RetinaNetSettings(channels=16, tower_convs=1, anchor_side=16),
    segmentation=PSPNetSettings(channels=16, auxiliary=False),  # with dropout: the global generator matters, too
)
RUN = Run(
    name="small",
    network=NETWORK,
    data=SceneData(camera_size=SIZE, thermal_size=(16, 16), scenes=5, evaluation_scenes=0),
    optimisation=Optimisation(steps=6, batch_size=2, learning_rate=1e-2, warmup_steps=2, precision="fp32"),
    log_every=1,
    gradients_every=0,
    checkpoint_every=100,
)
JOINT = JointSettings(c5="basic")


def teacher_checkpoint(folder: Path, run: Run, name: str = "teacher") -> str:
    """Write an untrained teacher and return its path."""
    torch.manual_seed(7)
    network = make_network(replace(run.network, architecture="two_stream"))
    path = folder / f"{name}.pt"
    save(path, Checkpoint(replace(run, name=name, network=network.settings), f"{name}-1", 1, network, {}, "abc"))
    return str(path)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in lines]


# --- resume


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_resumed_run_has_the_loss_curve_and_weights_of_an_uninterrupted_one(tmp_path: Path, ema_decay: float) -> None:
    run = replace(RUN, log_every=2, optimisation=replace(RUN.optimisation, ema_decay=ema_decay))
    whole = train(run, tmp_path / "whole", workers=0)
    train(run, tmp_path / "parts", workers=0, stop_after=3)  # amid a window of the log, and of an epoch of 5
    assert load(tmp_path / "parts" / "checkpoint.pt").step == 3
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:  # a killed process got further than its checkpoint
        file.write(json.dumps({"step": 4, "segmentation": 99.0}) + '\n{"step": 5, "segm')
    torch.manual_seed(1234)
    parts = train(run, tmp_path / "parts", workers=0, resume=True)

    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [2, 4, 6]
    assert parts.step == 6
    assert parts.run_id == load(tmp_path / "parts" / "checkpoint.pt").run_id
    weights = whole.network.state_dict()
    for name, value in parts.network.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_only_the_same_run_is_resumed(tmp_path: Path) -> None:
    train(replace(RUN, optimisation=replace(RUN.optimisation, steps=1)), tmp_path, workers=0)
    with pytest.raises(ValueError, match=r"other settings \(optimisation\.steps 1 -> 6, seed 1 -> 2\)"):
        train(replace(RUN, seed=2), tmp_path, workers=0, resume=True)
    path = tmp_path / "weights.pt"
    save(path, load(tmp_path / "checkpoint.pt"))
    with pytest.raises(CheckpointError, match="cannot be resumed, only used"):
        load_progress(path)


def test_every_sample_comes_once_per_epoch_in_an_order_of_its_own() -> None:
    run = replace(RUN, optimisation=replace(RUN.optimisation, batch_size=4))
    indices = [index for step in range(1, 21) for index in batch_of(step, 10, run)]
    epochs = [indices[start : start + 10] for start in range(0, 80, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert indices != [index for step in range(1, 21) for index in batch_of(step, 10, replace(run, seed=2))]
    assert len(batch_of(1, 3, run)) == 4  # fewer samples than a batch


def test_the_moving_average_is_what_is_saved(tmp_path: Path) -> None:
    decay = 0.75
    run = replace(RUN, optimisation=replace(RUN.optimisation, ema_decay=decay))
    samples = [at_network_size(painted_sample(seed), SIZE) for seed in (1, 2)]
    torch.manual_seed(1)
    trainer, batches = Trainer(make_network(run.network), run), Batches(samples, run)
    values = []
    for step in (1, 2, 3):
        trainer.step(step, batches[step])
        values.append(trainer.network.get_parameter("backbone.stem.conv1.weight").detach().clone())
    expected = decay * (decay * values[0] + (1 - decay) * values[1]) + (1 - decay) * values[2]
    averaged = trainer.result.get_parameter("backbone.stem.conv1.weight")
    torch.testing.assert_close(averaged.detach(), expected)
    assert not torch.equal(averaged, values[2])


def test_tensorboard_has_the_terms_of_metrics_jsonl(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(replace(RUN, optimisation=replace(RUN.optimisation, steps=2)), tmp_path, workers=0, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("train/segmentation")]
    assert written == [(line["step"], pytest.approx(line["segmentation"])) for line in metrics(tmp_path)]


# --- stage 2: what teacher and student see


def test_teacher_and_student_see_one_draw_of_the_augmentation() -> None:
    # Thermal at full resolution is a picture of its own; the student's is the same at a quarter per side.
    options = Augmentation(flip=0.5, zoom=1.0, light=1.0)
    native = painted_sample(3, size=(128, 96), thermal_size=(128, 96))
    coarse = degraded(native, Degradation(4, "area"))
    assert coarse.full is not None
    assert np.array_equal(coarse.full.image, native.thermal)
    student_sample, native = at_network_size(coarse, (128, 96)), at_network_size(native, (128, 96))

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(11)

    for _ in range(3):
        views, targets = distillation_batch([student_sample], options, [generator()])
        student, student_targets = training_batch([student_sample], True, options, [generator()])
        teacher, _ = training_batch([native], True, options, [generator()])
        # Each of the two is what it would have been alone.
        assert torch.equal(views.student, student)
        assert torch.equal(views.teacher, teacher)
        assert torch.equal(targets.boxes[0], student_targets.boxes[0])
        assert torch.equal(views.student[:, :3], views.teacher[:, :3])
        assert float((views.student[:, 3:] - views.teacher[:, 3:]).abs().max()) > 1


def test_thermal_is_degraded_before_the_window_is_cut() -> None:
    # Columns of 8 warm and 8 cold pixels; the sensor of a quarter per side has two pixels for each. A window of half
    # the image shows them twice as wide: were it cut first, the sensor would have four.
    width, height = 128, 96
    columns = (np.arange(width) // 8 % 2 * 200).astype(np.uint8)
    sample = replace(
        painted_sample(1, (width, height), (width, height)), thermal=np.ascontiguousarray(np.tile(columns, (height, 1)))
    )
    zoomed = replace(NO_AUGMENTATION, zoom=1.0, zoom_range=(2.0, 2.0), aspect_jitter=0.0)
    views, _ = distillation_batch(
        [degraded(sample, Degradation(8, "area"))], zoomed, [torch.Generator().manual_seed(1)]
    )
    slope_student, slope_teacher = (
        float(image[0, 3].diff(dim=1).abs().amax()) for image in (views.student, views.teacher)
    )
    # A step of 200 levels (3.5 normalised) is spread over one coarse pixel, 8 px, and enlarged twice: 16 px.
    assert slope_teacher > 1.5
    assert slope_student < 0.25


def test_padding_is_not_seen() -> None:
    sample = at_network_size(painted_sample(1, size=(128, 64)), SIZE)  # bars of 16 px above and below
    views, _ = distillation_batch([sample], NO_AUGMENTATION, [torch.Generator()])
    assert not views.seen[0, :15].any()
    assert not views.seen[0, 49:].any()
    assert float(views.seen[0, 17:47].float().mean()) > 0.95


def test_scenes_keep_the_thermal_image_of_a_full_sensor_for_the_teacher() -> None:
    data = SceneData(camera_size=(160, 128), thermal_size=(40, 32))
    sample = scene_sample(8, data, with_full=True)
    alone = scene_sample(8, replace(data, thermal_size=(160, 128)))
    assert sample.full is not None
    assert np.array_equal(sample.full.image, alone.thermal)
    assert np.array_equal(sample.full.rgb_to_thermal, sampling_matrix((160, 128), (160, 128)))
    assert np.array_equal(sample.thermal, scene_sample(8, data).thermal)
    assert scene_sample(8, data).full is None


# --- stage 2: training


def student_run(teachers: tuple[str, ...], **network: Any) -> Run:
    return replace(RUN, network=replace(NETWORK, segmentation_joint=JOINT, **network), teachers=teachers)


def samples_with_full(count: int) -> list[Sample]:
    natives = [painted_sample(seed, size=SIZE, thermal_size=SIZE) for seed in range(count)]
    return [at_network_size(degraded(native, Degradation(4, "area")), SIZE) for native in natives]


def test_a_student_learns_under_a_teacher_that_does_not_change(tmp_path: Path) -> None:
    path = teacher_checkpoint(tmp_path, RUN)
    run = student_run((path,))
    checkpoint = train(run, tmp_path / "student", workers=0)

    lines = metrics(tmp_path / "student")
    names = {"segmentation", "segmentation_attention", "segmentation_semantic"}
    assert all(names <= line.keys() for line in lines)
    assert all(0 < line[name] < 1e4 for line in lines for name in names)
    assert checkpoint.teachers == ("teacher-1",)
    assert load(tmp_path / "student" / "checkpoint.pt").teachers == ("teacher-1",)
    assert Run.from_json(json.loads((tmp_path / "student" / "run.json").read_text())["run"]) == run


def test_the_teacher_stays_frozen_and_the_transfer_terms_fall() -> None:
    torch.manual_seed(3)
    teacher = make_network(replace(NETWORK, architecture="two_stream"))
    settings = DistillationSettings(attention_form="squared")
    run = replace(student_run(("teacher.pt",)), augmentation=NO_AUGMENTATION, distillation=settings)
    run = replace(run, optimisation=replace(run.optimisation, steps=20, optimiser="adamw", learning_rate=2e-3))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer, batches = Trainer(make_network(run.network), run, teachers=[teacher]), Batches(samples_with_full(2), run)

    terms = [trainer.step(step, batches[step]) for step in range(1, 21)]

    for name in ("segmentation_semantic", "segmentation_attention"):
        assert terms[-1][name] < 0.5 * terms[0][name], (name, terms[0][name], terms[-1][name])
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_joint_student_has_a_teacher_for_each_task(tmp_path: Path) -> None:
    detection = replace(RUN, network=replace(NETWORK, tasks=("detection",)))
    paths = (teacher_checkpoint(tmp_path, detection, "detector"), teacher_checkpoint(tmp_path, RUN, "segmenter"))
    run = student_run(paths, tasks=("detection", "segmentation"), detection_joint=JOINT)
    teachers = load_teachers(run)
    trainer = Trainer(make_network(run.network), run, teachers=[teacher.network for teacher in teachers])
    assert set(trainer.step(1, Batches(samples_with_full(2), run)[1])) == {
        "classes",
        "boxes",
        "segmentation",
        *(f"{task}_{term}" for task in ("detection", "segmentation") for term in ("attention", "semantic")),
    }
    with pytest.raises(ValueError, match="distils detection, and 0 of its 1 teachers have that task"):
        load_teachers(replace(run, teachers=paths[1:]))
    with pytest.raises(ValueError, match="distils segmentation, and 2 of its 3 teachers have that task"):
        load_teachers(replace(run, teachers=(*paths, paths[1])))


def test_visible_only_students_learn_from_teachers_that_see_thermal() -> None:
    run = student_run(("teacher.pt",), inputs=("rgb",))
    teacher = make_network(replace(NETWORK, architecture="two_stream"))
    trainer = Trainer(make_network(run.network), run, teachers=[teacher])
    assert "segmentation_semantic" in trainer.step(1, Batches(samples_with_full(2), run)[1])


def test_teachers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: there is no such checkpoint"):
        load_teachers(student_run(("nowhere.pt",)))
    other_size = replace(RUN, network=replace(NETWORK, input_size=(96, 64)))
    with pytest.raises(ValueError, match=r"sees \(96, 64\), the student \(64, 64\)"):
        load_teachers(student_run((teacher_checkpoint(tmp_path, other_size),)))
    with pytest.raises(ValueError, match="not a two_stream network"):
        replace(RUN, network=replace(NETWORK, architecture="two_stream"), teachers=("teacher.pt",))


# --- label-free distillation


def test_a_student_learns_from_its_teachers_on_pairs_that_nobody_labelled(tmp_path: Path) -> None:
    write_yolo(tmp_path / "drive", ("0D", "1N", "2N"))
    for path in (tmp_path / "drive" / "boxes").iterdir():
        path.unlink()
    both = replace(RUN, network=replace(NETWORK, tasks=("detection", "segmentation")))
    # An untrained teacher scores everything near 0.01.
    settings = DistillationSettings(task_loss="teacher", object_score=0.01, ignored_score=0.005)
    run = replace(
        student_run((teacher_checkpoint(tmp_path, both),), tasks=("detection", "segmentation"), detection_joint=JOINT),
        data=UnlabelledData(tmp_path / "drive", (64, 48), (64, 48), downsample=2),
        augmentation=NO_AUGMENTATION,
        distillation=settings,
        optimisation=replace(RUN.optimisation, steps=16, optimiser="adamw", learning_rate=3e-3),
    )
    checkpoint = train(run, tmp_path / "student")

    lines = metrics(tmp_path / "student")
    assert checkpoint.training_data.startswith("drive: all (3 pairs")
    assert min(line["boxes"] for line in lines) > 0
    # Three pictures of noise under an untrained teacher: little, but its classes are learnt.
    for name in ("segmentation", "classes"):
        assert lines[-1][name] < 0.9 * lines[0][name], name
    assert Run.from_json(run.to_json()) == run
    with pytest.raises(ValueError, match=r"unlabelled pairs have no truth: set distillation.task_loss to teacher"):
        replace(run, distillation=DistillationSettings())
    with pytest.raises(ValueError, match="name the teachers"):
        replace(run, teachers=())


def test_results_of_two_teachers_make_one_truth() -> None:
    torch.manual_seed(5)
    persons_and_cars = replace(NETWORK, tasks=("detection",), detection_classes=("person", "car"))
    detector, segmenter = (
        make_network(replace(network, architecture="two_stream")).eval() for network in (persons_and_cars, NETWORK)
    )
    images = torch.randn(2, 6, 64, 64)
    seen = torch.ones(2, 64, 64, dtype=torch.bool)
    seen[:, :8] = False
    outputs = [teach(teacher, images) for teacher in (detector, segmenter)]
    settings = DistillationSettings(task_loss="teacher", object_score=0.01, ignored_score=0.005)
    targets = taught_targets((detector, segmenter), outputs, settings, seen)

    alone = teacher_targets(detector, outputs[0], object_score=0.01, ignored_score=0.005)
    assert torch.equal(targets.boxes[1], alone.boxes[1])
    assert {0, 1} == set(torch.cat(alone.labels).tolist())
    assert {0, 2} == set(torch.cat(targets.labels).tolist())  # ids of the class list: car is 2
    assert torch.equal(targets.mask[:, 8:], teacher_targets(segmenter, outputs[1]).mask[:, 8:])
    assert targets.mask[:, :8].unique().tolist() == [IGNORED_PIXEL]


def test_every_task_is_taught_where_there_are_no_labels(tmp_path: Path) -> None:
    run = student_run((teacher_checkpoint(tmp_path, RUN),), tasks=("detection", "segmentation"))
    assert len(load_teachers(run)) == 1  # detection is learnt from labels
    with pytest.raises(ValueError, match=r"learns detection from its teachers' results .* 0 of its 1 teachers"):
        load_teachers(replace(run, distillation=DistillationSettings(task_loss="teacher")))
    with pytest.raises(ValueError, match="0 < ignored <= object <= 1"):
        DistillationSettings(ignored_score=0.6)


# --- the first steps


DETECTOR = replace(RUN, network=replace(NETWORK, tasks=("detection",)))


def without_boxes(run: Run) -> Batch:
    """Return a batch in which nothing is annotated: the box loss never has a box to learn from."""
    empty = [
        replace(sample, boxes=sample.boxes[:0], labels=sample.labels[:0], ignored=sample.ignored[:0])
        for sample in samples_with_full(2)
    ]
    return Batches(empty, run)[1]


def test_a_term_without_a_gradient_stops_the_run_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("md_training.train.GRADIENT_CHECK_STEPS", 3)
    trainer, batch = Trainer(make_network(DETECTOR.network), DETECTOR), without_boxes(DETECTOR)
    trainer.step(1, batch)
    trainer.step(2, batch)
    with pytest.raises(LossError, match="boxes: no gradient in 3 steps"):
        trainer.step(3, batch)


def test_a_short_run_is_judged_at_its_end() -> None:
    run = replace(DETECTOR, optimisation=replace(RUN.optimisation, steps=2))
    trainer, batch = Trainer(make_network(run.network), run), without_boxes(run)
    trainer.step(1, batch)
    with pytest.raises(LossError, match="boxes: no gradient in 2 steps"):
        trainer.step(2, batch)


def test_a_resumed_run_goes_on_with_the_check_of_the_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("md_training.train.GRADIENT_CHECK_STEPS", 2)
    path, batch = tmp_path / "checkpoint.pt", without_boxes(DETECTOR)
    first = Trainer(make_network(DETECTOR.network), DETECTOR)
    first.step(1, batch)
    save(path, Checkpoint(DETECTOR, "small-1", 1, first.result, {}, "abc"), first.progress())

    resumed = Trainer(make_network(DETECTOR.network), DETECTOR)
    resumed.restore(load(path).network, load_progress(path))
    with pytest.raises(LossError, match=r"^boxes: no gradient in 2 steps"):
        resumed.step(2, batch)

    content = torch.load(path, weights_only=True)
    del content["silent"], content["steps_checked"]  # as an earlier version wrote it
    torch.save(content, path)
    resumed.restore(load(path).network, load_progress(path))
    resumed.step(2, batch)  # its first to be checked
