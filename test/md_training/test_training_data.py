"""Samples: letterboxed, augmented and rendered; both cameras, boxes and mask stay together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from painted_samples import painted_sample
from torchvision.ops import box_iou

from md_perception.labels import SEGMENTATION
from md_training.data.augment import NO_AUGMENTATION, Augmentation, training_batch
from md_training.data.sample import at_network_size
from md_training.data.synthetic import EVALUATION_FIRST_SEED, SceneData, evaluation_seeds, render, scene_sample
from md_training.losses import IGNORED_PIXEL
from md_training.models.retinanet import make_anchors
from md_training.preprocess import FILL, network_input
from md_training.presets import PRESETS

PERSON = SEGMENTATION.id_of("person")


def test_sample_at_network_size_gives_the_input_of_the_camera_sample() -> None:
    # 4:3 into 5:4: bars above and below; thermal must not move.
    sample = painted_sample(1, size=(256, 192), thermal_size=(64, 48))
    small = at_network_size(sample, (160, 128))
    expected, _ = network_input(
        torch.from_numpy(sample.rgb)[None],
        torch.from_numpy(sample.thermal)[None],
        torch.from_numpy(sample.rgb_to_thermal)[None],
        (160, 128),
    )
    inputs, targets = training_batch([small], True, NO_AUGMENTATION, torch.Generator())
    rounding = 0.5 / 255 / 0.224 + 1e-5
    assert float((inputs[:, :3] - expected[:, :3])[..., 4:124, :].abs().max()) < rounding
    assert float((inputs[:, 3:] - expected[:, 3:]).abs().max()) < 1e-3
    assert small.rgb[0, 0].tolist() == list(FILL)
    assert bool((targets.mask[0, :4] == IGNORED_PIXEL).all())
    torch.testing.assert_close(targets.boxes[0], torch.from_numpy(sample.boxes) * 0.625 + torch.tensor([0, 4.0, 0, 4]))


def mask_box(mask: torch.Tensor, class_id: int) -> torch.Tensor:
    """Return the extent of a class in a mask, xyxy."""
    rows, columns = (mask == class_id).nonzero().unbind(dim=1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_augmentation_moves_boxes_with_the_mask_and_thermal_with_rgb() -> None:
    generator = torch.Generator().manual_seed(4)
    options = Augmentation(flip=0.5, zoom=1.0, light=0, thermal_gain=(1, 1), thermal_offset=(0, 0), least_visible=0)
    sample = painted_sample(2, thermal_size=(128, 96))
    flips = 0
    for _ in range(25):
        inputs, targets = training_batch([sample], True, options, generator)
        persons = targets.boxes[0][targets.labels[0] == 0]
        if len(persons) and (targets.mask[0] == PERSON).sum() > 60:
            assert float((mask_box(targets.mask[0], PERSON) - persons[0]).abs().max()) <= 1.5
            warm = inputs[0, 3] > 0.5  # 220 of 255, normalised 1.65; around it 80: -0.75
            overlap = (warm & (targets.mask[0] > 0) & (targets.mask[0] < 9)).sum() / warm.sum().clamp(min=1)
            assert float(overlap) > 0.85
        order = targets.boxes[0][:, 0].tolist()
        flips += order != sorted(order)
    assert 3 < flips < 22


def test_same_generator_same_batch() -> None:
    batches = [
        training_batch([painted_sample(3)], True, Augmentation(), torch.Generator().manual_seed(8))[0] for _ in range(2)
    ]
    assert torch.equal(*batches)


def test_ignored_and_cut_objects_are_no_targets() -> None:
    sample = painted_sample(5)
    sample.ignored[0] = True
    _, targets = training_batch([sample], True, NO_AUGMENTATION, torch.Generator())
    assert targets.labels[0].tolist() == [1, 2]
    torch.testing.assert_close(targets.ignored[0], torch.from_numpy(sample.boxes[:1]))


def test_training_and_evaluation_seeds_never_meet() -> None:
    assert evaluation_seeds(300)[0] == EVALUATION_FIRST_SEED
    assert set(SceneData().training_seeds).isdisjoint(evaluation_seeds(10_000))
    with pytest.raises(ValueError, match="held out"):
        SceneData(first_seed=EVALUATION_FIRST_SEED - 5, scenes=10)


def test_scene_samples_are_the_same_every_time_and_8_bit_at_the_sensor() -> None:
    data = SceneData(camera_size=(160, 128), thermal_size=(40, 32))
    sample = scene_sample(8, data)  # a scene with a wide range of temperatures
    again = next(render([8], data))
    assert np.array_equal(sample.rgb, again.rgb)
    assert np.array_equal(sample.thermal, again.thermal)
    assert sample.thermal.shape == (32, 40)
    # The gain control leaves about one percent of the pixels at either end.
    assert 0.005 < (sample.thermal == 0).mean() < 0.03
    assert 0.005 < (sample.thermal == 255).mean() < 0.03
    small = next(render([8], data, (64, 64)))
    assert small.rgb.shape == (64, 64, 3)
    assert small.thermal.shape == (32, 40)


def test_anchors_of_the_demo_student_reach_its_objects() -> None:
    # Over 400 scenes: persons .90, bicycles .97, cars .91 (one column of anchors: persons .70).
    run = PRESETS["scenes-demo"][1]
    samples = list(render(run.data.training_seeds[:40], run.data, run.network.input_size))
    recalls = []
    for columns in (run.network.detection.anchor_columns, 1):
        anchors = make_anchors(replace(run.network.detection, anchor_columns=columns), run.network.input_size)
        persons = np.concatenate([sample.boxes[(sample.labels == 0) & ~sample.ignored] for sample in samples])
        overlap = box_iou(torch.from_numpy(persons), anchors).amax(dim=1)
        recalls.append(float((overlap >= 0.5).float().mean()))
    assert len(persons) > 80
    assert recalls[0] > 0.8
    assert recalls[0] > recalls[1] + 0.1
