"""Samples: letterboxed, augmented and rendered; both cameras, boxes and mask stay together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from painted_samples import painted_sample
from torchvision.ops import box_iou

from md_perception.labels import SEGMENTATION
from md_training.data.augment import NO_AUGMENTATION, Augmentation, distillation_batch, training_batch
from md_training.data.pairs import Degradation, degraded
from md_training.data.sample import Sample, at_network_size
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
    inputs, targets = training_batch([small], True, NO_AUGMENTATION, [torch.Generator()])
    rounding = 0.5 / 255 / 0.224 + 1e-5
    assert float((inputs[:, :3] - expected[:, :3]).abs().max()) < rounding
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
        inputs, targets = training_batch([sample], True, options, [generator])
        persons = targets.boxes[0][targets.labels[0] == 0]
        if len(persons) and (targets.mask[0] == PERSON).sum() > 60:
            assert float((mask_box(targets.mask[0], PERSON) - persons[0]).abs().max()) <= 1.5
            warm = inputs[0, 3] > 0.5  # 220 of 255, normalised 1.65; around it 80: -0.75
            overlap = (warm & (targets.mask[0] > 0) & (targets.mask[0] < 9)).sum() / warm.sum().clamp(min=1)
            assert float(overlap) > 0.85
        order = targets.boxes[0][:, 0].tolist()
        flips += order != sorted(order)
    assert 3 < flips < 22


def test_a_sample_becomes_the_same_whatever_else_is_in_the_batch() -> None:
    options = Augmentation(misregistration_px=3, time_offset=0.3, thermal_coverage=(0.5, 0.9))
    samples = [painted_sample(seed) for seed in range(3)]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    together, targets = training_batch(samples, True, options, generators())
    for index in range(3):
        alone, target = training_batch([samples[index]], True, options, [generators()[index]])
        assert torch.equal(alone[0], together[index])
        assert torch.equal(target.boxes[0], targets.boxes[index])
    assert not torch.equal(together[0], training_batch(samples, True, options, generators()[::-1])[0][0])


def test_light_changes_rgb_alone_and_gain_thermal_alone() -> None:
    sample = painted_sample(6)
    plain, _ = training_batch([sample], True, NO_AUGMENTATION, [torch.Generator()])
    light = replace(NO_AUGMENTATION, light=1.0, light_range=0.3)
    lit, _ = training_batch([sample], True, light, [torch.Generator().manual_seed(1)])
    assert torch.equal(lit[:, 3:], plain[:, 3:])
    assert float((lit[:, :3] - plain[:, :3]).abs().mean()) > 0.1
    gained = replace(NO_AUGMENTATION, thermal_gain=(0.5, 0.5), thermal_offset=(10.0, 10.0))
    colder, _ = training_batch([sample], True, gained, [torch.Generator()])
    assert torch.equal(colder[:, :3], plain[:, :3])
    grey = lambda image: image[0, 3] * 0.229 * 255 + 0.485 * 255  # noqa: E731
    torch.testing.assert_close(grey(colder), grey(plain) * 0.5 + 10, atol=1e-3, rtol=0)


def test_what_rgb_did_not_see_is_zero_in_both_cameras_as_in_the_exported_graph() -> None:
    # A thermal camera that sees more than RGB does: 96 rows of its 128 are those of RGB's 96.
    sample = painted_sample(1, size=(128, 96), thermal_size=(128, 128))
    sample = replace(sample, rgb_to_thermal=np.array([[1, 0, 0], [0, 1, 16], [0, 0, 1]], np.float32))
    small = at_network_size(sample, (128, 128))
    assert small.seen is not None
    assert small.seen.sum() == 128 * 96
    options = replace(NO_AUGMENTATION, light=1.0)
    for zoom in (0.0, 1.0):
        zoomed = replace(options, zoom=zoom, zoom_range=(0.8, 0.8), aspect_jitter=0.0)
        inputs, targets = training_batch([small], True, zoomed, [torch.Generator().manual_seed(2)])
        outside = targets.mask[0] == IGNORED_PIXEL
        assert int(outside.sum()) == {0.0: 128 * 32, 1.0: 128 * 128 - 102 * 77}[zoom]
        assert not inputs[0, :, outside].any()
        assert bool(inputs[0, :, ~outside].any(dim=0).all())


# --- what may be wrong between the cameras


def warm(view: torch.Tensor) -> torch.Tensor:
    """Return the middle of the one warm thing in a normalised thermal image (h, w): x, y, width, px."""
    rows, columns = (view > 0.5).nonzero().unbind(dim=1)
    return torch.stack(
        [columns.float().mean() + 0.5, rows.float().mean() + 0.5, (columns.max() - columns.min() + 1).float()]
    )


def one_warm_object(thermal_size: tuple[int, int] = (128, 96)) -> Sample:
    """Return a sample whose thermal image has one rectangle, x 40 to 80 and y 32 to 64, on a ramp."""
    sample = painted_sample(4, thermal_size=(128, 96))
    thermal = np.tile(np.linspace(20, 90, 128).astype(np.uint8), (96, 1))
    thermal[32:64, 40:80] = 220
    sample = replace(sample, thermal=thermal, boxes=np.array([(40, 32, 80, 64)], np.float32))
    sample = replace(sample, labels=sample.labels[:1], ignored=sample.ignored[:1])
    return degraded(sample, Degradation(128 // thermal_size[0], "area"))


@pytest.mark.parametrize("option", ["misregistration_px", "time_offset"])
def test_the_thermal_view_moves_against_rgb_for_student_and_teacher_alike(option: str) -> None:
    # At most 6 px at each corner (perspective may move the middle by a little more), or .2 of the 40 px that the
    # object is wide: 8 px sideways.
    largest, vertical = {"misregistration_px": (7.5, 7.5), "time_offset": (8.0, 0.0)}[option]
    options = replace(NO_AUGMENTATION, **{option: 0.2 if option == "time_offset" else 6.0})
    sample = one_warm_object(thermal_size=(32, 24))
    plain, _ = distillation_batch([sample], NO_AUGMENTATION, [torch.Generator()])
    at_rest = warm(plain.teacher[0, 3])
    torch.testing.assert_close(at_rest, torch.tensor([60.0, 48.0, 40.0]))
    moves = []
    for seed in range(30):
        views, targets = distillation_batch([sample], options, [torch.Generator().manual_seed(seed)])
        assert torch.equal(views.teacher[:, :3], plain.teacher[:, :3])
        torch.testing.assert_close(targets.boxes[0], torch.from_numpy(sample.boxes))
        moved = warm(views.teacher[0, 3]) - at_rest
        moves.append(moved[:2])
        # The coarse sensor blurs the edges: 4 px per pixel.
        torch.testing.assert_close(
            warm(views.student[0, 3])[:2] - warm(plain.student[0, 3])[:2], moved[:2], atol=1.5, rtol=0
        )
        assert abs(float(moved[2])) <= (1 if option == "time_offset" else 12)
    spread = torch.stack(moves)
    assert bool((spread.abs() <= torch.tensor([largest, vertical]) + 0.5).all())
    assert bool((spread.std(dim=0) >= 0.2 * torch.tensor([largest, vertical])).all())
    assert float(spread[:, 0].min()) < -2 < 2 < float(spread[:, 0].max())


def test_objects_move_between_the_exposures_and_the_background_far_from_them_stays() -> None:
    sample = one_warm_object()
    plain, _ = training_batch([sample], True, NO_AUGMENTATION, [torch.Generator()])
    options = replace(NO_AUGMENTATION, time_offset=0.4)
    inputs, _ = training_batch([sample], True, options, [torch.Generator().manual_seed(2)])
    moved = float((warm(inputs[0, 3]) - warm(plain[0, 3]))[0])
    assert abs(moved) >= 4
    changed = ((inputs - plain)[0, 3].abs() > 1e-4).nonzero()
    rows, columns = changed.amin(dim=0).tolist(), changed.amax(dim=0).tolist()
    # The object, where it was and where it arrives, and half its width of 40 px around it.
    assert rows[0] >= 32 - 20
    assert columns[0] <= 64 + 20
    assert rows[1] >= 40 - 20 + min(moved, 0) - 1
    assert columns[1] <= 80 + 20 + max(moved, 0) + 1
    # The ramp of the background stays one: compressed and stretched, never torn or folded back.
    around = inputs[0, 3, 48]
    background = torch.cat([around[: int(38 + min(moved, 0))], around[int(83 + max(moved, 0)) :]])
    assert bool((background.diff() >= -1e-4).all())


def test_what_overlapping_objects_share_moves_no_further_than_one_of_them() -> None:
    sample = one_warm_object()
    three = replace(
        sample, boxes=sample.boxes.repeat(3, 0), labels=sample.labels.repeat(3), ignored=sample.ignored.repeat(3)
    )
    plain, _ = training_batch([sample], True, NO_AUGMENTATION, [torch.Generator()])
    options = replace(NO_AUGMENTATION, time_offset=0.2)
    for seed in range(20):
        inputs, _ = training_batch([three], True, options, [torch.Generator().manual_seed(seed)])
        assert abs(float((warm(inputs[0, 3]) - warm(plain[0, 3]))[0])) <= 8.5


def test_a_narrower_thermal_view_leaves_zeros_outside() -> None:
    sample = painted_sample(7)
    plain, _ = distillation_batch([sample], NO_AUGMENTATION, [torch.Generator()])
    options = replace(NO_AUGMENTATION, thermal_coverage=(0.5, 0.5))
    corners = set()
    for seed in range(8):
        views, _ = distillation_batch([sample], options, [torch.Generator().manual_seed(seed)])
        covered = views.student[0, 3:].any(dim=0)
        rows, columns = covered.nonzero().unbind(dim=1)
        assert int(covered.sum()) == 64 * 48
        assert (int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (47, 63)
        corners.add((int(rows.min()), int(columns.min())))
        for one, whole in ((views.student, plain.student), (views.teacher, plain.teacher)):
            assert torch.equal(one[0, 3:], whole[0, 3:] * covered)
        assert torch.equal(views.student[:, :3], plain.student[:, :3])
        assert bool(views.seen.all())  # RGB is there
    assert len(corners) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": 1.5}, "flip 1.5"),
        ({"time_offset": 0.5}, "less than 0.5"),
        ({"misregistration_px": -1.0}, "misregistration_px -1.0"),
        ({"thermal_coverage": (0.8, 1.2)}, r"thermal_coverage \(0.8, 1.2\)"),
        ({"thermal_coverage": (0.0, 0.5)}, "thermal_coverage"),
        ({"zoom_range": (1.5, 0.8)}, "zoom_range"),
    ],
)
def test_impossible_augmentations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**change)


def test_labels_are_never_mixed() -> None:
    # Labels 0 and 8 side by side: an interpolation would make 1 to 7 of them.
    sample = painted_sample(8, size=(200, 140))
    sample = replace(sample, mask=np.where(np.random.default_rng(1).random((140, 200)) < 0.5, 8, 0).astype(np.uint8))
    small = at_network_size(sample, (128, 96))
    assert set(np.unique(small.mask)) <= {0, 8, IGNORED_PIXEL}
    options = Augmentation(zoom=1.0, aspect_jitter=0.2)
    for seed in range(10):
        _, targets = training_batch([small], True, options, [torch.Generator().manual_seed(seed)])
        assert set(targets.mask.unique().tolist()) <= {0, 8, IGNORED_PIXEL}


def test_objects_that_a_window_cuts_are_ignored_or_gone() -> None:
    # A window of half the image, which shows it twice as large: where little of the person is left, it is ignored.
    sample = painted_sample(9)
    options = replace(NO_AUGMENTATION, zoom=1.0, zoom_range=(2.0, 2.0), aspect_jitter=0.0, least_visible=0.4)
    areas = torch.from_numpy(sample.boxes)
    areas = 4 * (areas[:, 2:] - areas[:, :2]).prod(dim=1)  # of each class, in the window
    kept = ignored = gone = 0
    for seed in range(40):
        _, targets = training_batch([sample], True, options, [torch.Generator().manual_seed(seed)])
        left = {
            int(label): float(area) / float(areas[label])
            for label, area in zip(targets.labels[0], _areas(targets.boxes[0]), strict=True)
        }
        assert all(part >= 0.4 - 1e-4 for part in left.values())
        assert bool((_areas(targets.ignored[0]) < 0.4 * areas.max()).all())
        kept, ignored = kept + len(left), ignored + len(targets.ignored[0])
        gone += 3 - len(left) - len(targets.ignored[0])
    assert min(kept, ignored, gone) > 4


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def test_ignored_objects_are_no_targets() -> None:
    sample = painted_sample(5)
    sample.ignored[0] = True
    _, targets = training_batch([sample], True, NO_AUGMENTATION, [torch.Generator()])
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
