"""Bags of the scene world: deterministic, with the truth of each image under its stamp."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from md_perception.bags.__main__ import main
from md_perception.bags.make import BagOptions, CameraOptions
from md_perception.bags.read import Bag, BagMessage
from md_perception.bags.results import (
    TRUTH_DETECTIONS,
    TRUTH_LABELS,
    TRUTH_MASK,
    count_found,
    detections_of,
    iou,
    truth_by_stamp,
)
from md_perception.bags.scenes import LEAST_VISIBLE, StreetOptions, make_from_scenes
from md_perception.bags.types import TopicQos
from md_perception.bags.write import BagError
from md_perception.labels import SEGMENTATION
from md_perception.metrics.detection import TruthBoxes
from md_perception.results import Detections
from md_perception.scenes import SceneSettings, render_rgb, render_thermal, sample_scene
from md_perception.sensing.images import stamp_ns, to_rgb
from md_perception.sensing.thermal import percentile_range, resize_to_sensor, to_8bit

SIZE = (160, 128)
START_NS = 1_000_000_000


def options_of(encoding: str = "mono8") -> BagOptions:
    return BagOptions(
        rgb=CameraOptions("/rgb/image_raw", "rgb", "rgb8", rate_hz=10.0),
        thermal=CameraOptions("/thermal/image_raw", "thermal", encoding, rate_hz=5.0),  # type: ignore[arg-type]
        seed=4,
        offset_s=0.02,
        start_ns=START_NS,
        progress=False,
    )


def by_topic(path: Path) -> dict[str, list[BagMessage]]:
    found: dict[str, list[BagMessage]] = {}
    with Bag(path) as bag:
        for item in bag.messages():
            found.setdefault(item.topic, []).append(item)
    return found


@pytest.fixture(scope="module")
def bag_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six RGB images of a street, at 10 Hz, with three thermal ones."""
    path = tmp_path_factory.mktemp("scenes") / "bag"
    make_from_scenes(path, options_of(), StreetOptions(frames=6, size=SIZE))
    return path


def test_images_and_truth_are_those_of_the_scene_at_their_stamps(bag_path: Path) -> None:
    found = by_topic(bag_path)
    scene = sample_scene(4, SceneSettings(size=SIZE), further_blocks=1)

    assert [stamp_ns(item.message) - START_NS for item in found["/rgb/image_raw"]] == [
        i * 100_000_000 for i in range(6)
    ]
    for index, (rgb, boxes, mask) in enumerate(
        zip(found["/rgb/image_raw"], found[TRUTH_DETECTIONS], found[TRUTH_MASK], strict=True)
    ):
        view = render_rgb(scene, index * 0.1)
        np.testing.assert_array_equal(to_rgb(rgb.message), view.image)
        np.testing.assert_array_equal(mask.message.data.reshape(SIZE[::-1]), view.mask)
        assert mask.message.header == boxes.message.header == rgb.message.header
        seen = view.objects.visible_fraction >= LEAST_VISIBLE
        objects = detections_of(boxes.message)
        np.testing.assert_allclose(objects.boxes, view.objects.boxes[seen], atol=1e-3)
        np.testing.assert_allclose(objects.scores, view.objects.visible_fraction[seen], atol=1e-6)
        np.testing.assert_array_equal(objects.labels, view.objects.labels[seen])
        np.testing.assert_allclose(found["/rgb/camera_info"][index].message.k.reshape(3, 3), view.camera.matrix)


def test_thermal_is_the_quarter_sized_sensor_with_its_own_rate_and_clock(bag_path: Path, tmp_path: Path) -> None:
    make_from_scenes(tmp_path / "kelvin", options_of("mono16"), StreetOptions(frames=6, size=SIZE))
    scene = sample_scene(4, SceneSettings(size=SIZE), further_blocks=1)
    grey, centikelvin = (by_topic(path)["/thermal/image_raw"] for path in (bag_path, tmp_path / "kelvin"))

    assert [item.log_ns - START_NS for item in grey] == [0, 200_000_000, 400_000_000]
    for index, (low, radiometric) in enumerate(zip(grey, centikelvin, strict=True)):
        assert stamp_ns(low.message) == low.log_ns + 20_000_000
        kelvin = resize_to_sensor(render_thermal(scene, index * 0.2).kelvin, (40, 32), "area")
        np.testing.assert_array_equal(low.message.data.reshape(32, 40), to_8bit(kelvin, *percentile_range(kelvin)))
        values = radiometric.message.data.view("<u2").reshape(32, 40)
        np.testing.assert_allclose(values / 100.0, kelvin, atol=0.006)
        assert 200 < kelvin.min() < kelvin.max() < 600


def test_labels_are_latched_and_name_the_ids_of_the_mask(bag_path: Path) -> None:
    with Bag(bag_path) as bag:
        assert bag.topics[TRUTH_LABELS].qos is TopicQos.LATCHED
        (labels,) = bag.messages([TRUTH_LABELS])
    assert [entry.class_name for entry in labels.message.class_map] == list(SEGMENTATION.classes)
    assert [entry.class_id for entry in labels.message.class_map] == list(range(9))


def test_the_same_options_give_the_same_bag_and_streets_change_at_their_cuts(bag_path: Path, tmp_path: Path) -> None:
    arguments = ["make", "--scenes", "--seed", "4", "--frames", "6", "--scene-size", "160x128", "--rgb-rate", "10"]
    arguments += ["--thermal-rate", "5", "--offset", "0.02", "--start-stamp", "1", "--rgb-frame", "rgb"]
    assert main([*arguments, "--thermal-frame", "thermal", "--out", str(tmp_path / "same")]) == 0
    assert main([*arguments, "--street-frames", "3", "--out", str(tmp_path / "cut")]) == 0

    first, same, cut = (by_topic(path) for path in (bag_path, tmp_path / "same", tmp_path / "cut"))
    raw = [[item.raw for item in bag["/rgb/image_raw"]] for bag in (first, same, cut)]
    assert [item.raw for item in same["/thermal/image_raw"]] == [item.raw for item in first["/thermal/image_raw"]]
    assert raw[0] == raw[1]
    assert raw[2][:3] == raw[0][:3]
    images = [to_rgb(item.message).astype(int) for item in cut["/rgb/image_raw"]]
    steps = [float(np.abs(after - before).mean()) for before, after in itertools.pairwise(images)]
    assert int(np.argmax(steps)) == 2  # between the third and the fourth image
    with pytest.raises(BagError, match="at least one frame"):
        StreetOptions(frames=0)


def test_truth_marks_what_is_too_small_or_too_hidden_to_count(bag_path: Path) -> None:
    with Bag(bag_path) as bag:
        everything = truth_by_stamp(bag, least_height_px=0.0, least_visible=0.0)
        strict = truth_by_stamp(bag, least_height_px=20.0, least_visible=0.5)
        visible = {stamp_ns(i.message): detections_of(i.message).scores for i in bag.messages([TRUTH_DETECTIONS])}

    assert len(everything) == 6
    assert not any(truth.ignored.any() for truth in everything.values())
    ignored = 0
    for stamp, truth in strict.items():
        small = truth.boxes[:, 3] - truth.boxes[:, 1] < 20
        np.testing.assert_array_equal(truth.ignored, small | (visible[stamp] < 0.5))
        ignored += int(truth.ignored.sum())
    assert 0 < ignored < sum(len(truth.boxes) for truth in strict.values())


def test_persons_are_found_once_by_the_surest_box_that_overlaps_enough() -> None:
    boxes = np.array([[0, 0, 10, 20], [30, 0, 40, 20], [60, 0, 70, 20], [90, 0, 100, 20]], np.float32)
    truth = TruthBoxes(boxes, np.array([0, 0, 0, 2]), np.array([False, False, True, False]))
    found = Detections(
        # on the first, twice; half beside the second (IoU 5/15); on the ignored one; on the car, as a person
        np.array([[0, 0, 10, 20], [0, 0, 10, 19], [35, 0, 45, 20], [60, 0, 70, 20], [90, 0, 100, 20]], np.float32),
        np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32),
        np.zeros(5, np.int64),
    )

    assert count_found(truth, found, label=0) == (1, 2)
    assert count_found(truth, found, label=0, least_iou=0.3) == (2, 2)
    assert count_found(truth, found, label=2) == (0, 1)
    np.testing.assert_allclose(iou(boxes[1], found.boxes[:3]), [0, 0, 1 / 3], atol=1e-6)
