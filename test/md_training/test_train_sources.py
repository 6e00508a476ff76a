"""Runs on data sets: what they may learn, tiny MFNet, YOLO and COCO trees through the loop, and their JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_trees import MFNET_LISTS, write_kaist, write_mfnet, write_yolo, yolo_to_coco
from painted_samples import painted_sample

from md_training.data.augment import NO_AUGMENTATION, training_batch
from md_training.data.sources import (
    CocoData,
    KaistData,
    MfnetData,
    ReadSamples,
    YoloData,
    evaluation_samples,
    training_data,
)
from md_training.data.splits import DataError, hash_names
from md_training.data.synthetic import SceneData
from md_training.evaluate import class_ids, predict
from md_training.loader import of_classes
from md_training.models.networks import NetworkSettings, make_network
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.postprocess import DetectionLimits
from md_training.presets import Optimisation, Run
from md_training.train import train

SIZE = (160, 128)
NETWORK = NetworkSettings(
    tasks=("detection",),
    input_size=(64, 64),
    detection=RetinaNetSettings(channels=16, tower_convs=1, anchor_side=16),
    segmentation=PSPNetSettings(channels=16, auxiliary=False),
)
RECIPE = Optimisation(steps=2, batch_size=2, precision="fp32", warmup_steps=2)


def kaist(root: Path) -> KaistData:
    write_kaist(root, size=SIZE)
    return KaistData(
        root, SIZE, SIZE, downsample=4, split="tiny-train", evaluation_split="tiny-test", evaluation_pairs=2
    )


def test_mfnet_student_trains_on_masks(tmp_path: Path) -> None:
    write_mfnet(tmp_path / "mfnet", size=SIZE)
    data = MfnetData(tmp_path / "mfnet", SIZE, SIZE, downsample=2, evaluation_split="test")
    run = Run(
        name="mfnet-tiny",
        network=replace(NETWORK, tasks=("segmentation",)),
        data=data,
        optimisation=RECIPE,
        log_every=1,
    )
    checkpoint = train(run, tmp_path / "run", workers=0)
    assert checkpoint.split_hashes == {"train": hash_names(MFNET_LISTS["train"])}
    assert 0 <= checkpoint.metrics["mIoU9 [night]"] < 1
    with pytest.raises(DataError, match="does not annotate bicycle, car, person"):
        train(replace(run, network=NETWORK), tmp_path / "other", workers=0)


def test_yolo_folder_is_trained_with_all_its_classes(tmp_path: Path) -> None:
    write_yolo(tmp_path / "drive", size=(64, 48))
    data = YoloData(tmp_path / "drive", (64, 48), (64, 48), downsample=2)
    run = Run(name="drive", network=NETWORK, data=data, optimisation=RECIPE)
    train(run, tmp_path / "run", workers=0)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["boxes"] > 0
    with pytest.raises(DataError, match="has no masks"):
        training_data(data, ("segmentation",), (), (64, 64), 0, False)


def test_coco_json_teaches_what_yolo_text_does(tmp_path: Path) -> None:
    root = tmp_path / "drive"
    write_yolo(root, size=(64, 48))
    yolo = YoloData(root, (64, 48), (64, 48), downsample=2).training()
    expected = [yolo[0], yolo[1]]
    yolo_to_coco(root)

    data = CocoData(root, (64, 48), (64, 48), downsample=2)
    pairs = data.training()
    assert [pairs[index].name for index in range(len(pairs))] == [sample.name for sample in expected]
    for index, sample in enumerate(expected):
        assert np.array_equal(pairs[index].rgb, sample.rgb)
        np.testing.assert_allclose(pairs[index].boxes, sample.boxes, atol=1e-4)
        assert np.array_equal(pairs[index].labels, sample.labels)
    checkpoint = train(Run(name="drive", network=NETWORK, data=data, optimisation=RECIPE), tmp_path / "run", workers=0)
    assert checkpoint.split_hashes == {"train": hash_names(["0D", "1D"])}
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["boxes"] > 0
    with pytest.raises(DataError, match="every renamed class has to be there"):
        replace(data, rename={"lorry": "car"}).training()


def test_what_a_set_does_not_annotate_is_not_trained_as_background(tmp_path: Path) -> None:
    data = kaist(tmp_path)
    with pytest.raises(DataError, match=r"does not annotate bicycle, car.*set network.detection_classes to person"):
        training_data(data, ("detection",), ("person", "bicycle", "car"), (64, 64), 0, False)
    with pytest.raises(DataError, match="is 160x128, its thermal image for training 40x32, but the run says 640x512"):
        training_data(replace(data, camera_size=(640, 512)), ("detection",), ("person",), (64, 64), 0, False)


def test_pairs_keep_their_full_thermal_image_for_a_teacher(tmp_path: Path) -> None:
    data = kaist(tmp_path)
    sample = training_data(data, ("detection",), ("person",), (96, 64), 0, True).samples[0]
    assert sample.rgb.shape == (64, 96, 3)
    assert sample.thermal.shape == (32, 40)
    assert sample.full is not None
    assert sample.full.image.shape == (128, 160)
    teacher = training_data(replace(data, downsample=1), ("detection",), ("person",), (96, 64), 0, False).samples[0]
    assert np.array_equal(sample.full.image, teacher.thermal)
    assert np.array_equal(sample.full.rgb_to_thermal, teacher.rgb_to_thermal)


def test_evaluation_pairs_are_spread_over_the_split(tmp_path: Path) -> None:
    write_yolo(tmp_path, names=tuple(f"{number:02d}D" for number in range(12)))
    data = YoloData(tmp_path, (64, 48), (64, 48), evaluation_split="train", evaluation_pairs=3)  # of 11
    samples = evaluation_samples(data)
    assert isinstance(samples, ReadSamples)
    assert [sample.name for sample in samples] == ["00D", "05D", "10D"]
    assert evaluation_samples(replace(data, evaluation_pairs=0)) == []


# --- a detector of fewer classes


def test_labels_are_counted_among_the_classes_of_the_network() -> None:
    _, targets = training_batch([painted_sample(1)], True, NO_AUGMENTATION, [torch.Generator()])
    assert targets.labels[0].tolist() == [0, 1, 2]
    some = of_classes(targets, ("person", "car"))
    assert some.labels[0].tolist() == [0, 1]
    assert torch.equal(some.boxes[0], targets.boxes[0][[0, 2]])


def test_predictions_are_in_ids_of_the_class_list() -> None:
    torch.manual_seed(0)
    network = make_network(replace(NETWORK, detection_classes=("bicycle", "car"))).eval()
    found = predict(network, painted_sample(1), DetectionLimits(score_threshold=0.0)).detections
    assert found is not None
    assert set(found.labels.tolist()) == {1, 2}
    assert class_ids(("person", "car")).tolist() == [0, 2]
    with pytest.raises(ValueError, match="in that order"):
        replace(NETWORK, detection_classes=("car", "person"))
    with pytest.raises(ValueError, match="in that order"):
        replace(NETWORK, detection_classes=("dog",))


# --- runs as JSON


@pytest.mark.parametrize(
    ("data", "kind"),
    [(KaistData(), "kaist"), (MfnetData(), "mfnet"), (YoloData(rename={"a": "car"}), "yolo"), (CocoData(), "coco")],
)
def test_a_run_in_json_says_which_data_it_has(data: Any, kind: str) -> None:
    run = Run(name="x", network=NETWORK, data=data)
    values = json.loads(json.dumps(run.to_json()))
    assert values["data"]["kind"] == kind
    assert Run.from_json(values) == run


def test_runs_from_before_other_data_than_scenes_are_read() -> None:
    values = Run(name="x", network=NETWORK, data=SceneData(scenes=7)).to_json()
    for name in ("teachers", "distillation"):
        del values[name]
    del values["data"]["kind"], values["network"]["detection_classes"], values["optimisation"]["ema_decay"]
    assert Run.from_json(values) == Run(name="x", network=NETWORK, data=SceneData(scenes=7))


def test_folds_of_a_cross_validation_cover_every_pair_once_and_keep_neighbours(tmp_path: Path) -> None:
    names = [f"{number:02}{'DN'[number % 3 == 0]}" for number in range(13)]  # 5 of the night
    write_yolo(tmp_path, names)
    source = YoloData(tmp_path, camera_size=(64, 48), native_thermal_size=(64, 48), folds=3)
    held_out = []
    for fold in range(3):
        one = replace(source, fold=fold)
        there, others = one.evaluation().split.names, one.training().split.names
        assert sorted((*there, *others)) == names
        for time in "DN":
            ordered = [name for name in names if name.endswith(time)]
            places = [ordered.index(name) for name in there if name.endswith(time)]
            assert places == list(range(places[0], places[0] + len(places)))
        held_out += there
    assert sorted(held_out) == names
    with pytest.raises(ValueError, match="fold 3 of 3 folds"):
        replace(source, fold=3)
    with pytest.raises(DataError, match="13 pairs cannot be shared out to 14 folds"):
        replace(source, folds=14).training()
