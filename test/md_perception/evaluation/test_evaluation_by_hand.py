"""A bag of five frames with planted errors, through the whole command; every figure is computed by hand.

The tiny student finds a person in the middle half of each image, with the mean of thermal as its score, and a person in
the mask wherever red is bright: the left half.

| frame | score | truth | person |
|---|---|---|---|
| 0 | 0.90 | there | found |
| 1 | 0.75 | nobody | false |
| 2 | 0.59 | there | found |
| 3 | 0.43 | elsewhere | missed, and a false one |
| 4 | 0.24 | there | found in the curves, missed at the threshold of 0.3 |
"""

import json
from math import exp, log

import numpy as np
import pytest
from small_drives import BUILD, RGB, START, THERMAL
from tiny_student import write_tiny_student

from md_perception.bags.types import DETECTIONS, IMAGE
from md_perception.bags.write import BagWriter
from md_perception.evaluation.command import main
from md_perception.results import Detections, Mode, Perception, StudentOutput

WIDTH, HEIGHT = 64, 48
THERE, ELSEWHERE = (16, 12, 48, 36), (0, 0, 10, 30)
FRAMES: list[tuple[int, tuple[int, int, int, int] | None]] = [
    (230, THERE),
    (190, None),
    (150, THERE),
    (110, ELSEWHERE),
    (60, THERE),
]


def alternating(shape: tuple[int, ...], phase: int) -> np.ndarray:
    """Return -20 and 20 in turn, so that the image is neither blind nor frozen and has a mean of 0."""
    rows, columns = np.indices(shape[:2])
    signs = np.where((rows * 3 + columns + phase) % 2, 20, -20)
    return np.broadcast_to(signs[..., None] if len(shape) == 3 else signs, shape).copy()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("by_hand")
    colour = 60 + alternating((HEIGHT, WIDTH, 3), 0)
    colour[:, : WIDTH // 2, 0] += 120
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 4] = 2  # half of what the student says
    with BagWriter(folder / "bag") as writer:
        for topic, kind in ((RGB, IMAGE), (THERMAL, IMAGE), ("/truth/detections", DETECTIONS), ("/truth/mask", IMAGE)):
            writer.add_topic(topic, kind)
        for number, (warmth, box) in enumerate(FRAMES):
            stamp = START + number * 33_000_000
            boxes = np.array([box] if box else [], np.float32).reshape(-1, 4)
            there = Detections(boxes, np.ones(len(boxes), np.float32), np.zeros(len(boxes), np.int64))
            truth = Perception(stamp, "rgb", Mode.FUSED, (WIDTH, HEIGHT), colour, StudentOutput(there, None))
            warm = warmth + alternating((12, 16), number)
            writer.write(THERMAL, stamp, BUILD.image(warm.astype(np.uint8), "mono8", stamp, "thermal"))
            writer.write(
                RGB, stamp, BUILD.image(np.roll(colour, number, axis=0).astype(np.uint8), "rgb8", stamp, "rgb")
            )
            writer.write("/truth/detections", stamp, BUILD.detections(truth, ("person", "bicycle", "car")))
            writer.write("/truth/mask", stamp, BUILD.image(mask, "mono8", stamp, "rgb"))
    student = write_tiny_student(folder / "tiny.onnx")
    assert main([str(folder / "bag"), "--student", str(student), "--out", str(folder / "out"), "--quiet"]) == 0
    content: dict[str, object] = json.loads((folder / "out/report.json").read_text())
    return content


def whole(report):
    return report["students"]["tiny"]["slices"][0]


def test_persons(report) -> None:
    detection = whole(report)["detection"]
    person = detection["by_class"]["person"]
    # By falling score: found, false, found, false, found; of four persons. Precision 1, 2/3, 3/5 at recall 1/4, 1/2,
    # 3/4, read at 0, 0.01, .. 1: 26 of the first, 25 of the second and of the third.
    assert person["ap50"] == pytest.approx((26 * 1 + 25 * 2 / 3 + 25 * 3 / 5) / 101, abs=1e-6)
    assert detection["ap50"]["value"] == person["ap50"]  # of bicycles and cars there are none
    # False detections per image: 0, 0.2 and 0.4, with three quarters, a half and a quarter of the persons missed: six
    # of the nine references from 0.01 to 1 lie below 0.2, one below 0.4.
    assert person["miss_rate_at"] == [0.75] * 6 + [0.5, 0.25, 0.25]
    expected = exp((6 * log(0.75) + log(0.5) + 2 * log(0.25)) / 9)
    assert detection["miss_rate"]["value"] == pytest.approx(expected, abs=1e-6)
    counts = {name: person[name] for name in ("objects", "found", "missed", "false")}
    assert counts == {"objects": 4, "found": 2, "missed": 2, "false": 2}
    # The left half of the image as a bicycle, at half the score: above 0.3 in two frames.
    assert detection["by_class"]["bicycle"]["false"] == 2
    assert detection["by_class"]["bicycle"]["ap50"] is None


def test_masks(report) -> None:
    masks = whole(report)["masks"]
    # Of 64 columns, 16 are persons and said to be, 16 are said to be, 32 are not and not said to be.
    assert masks["iou"]["person"] == pytest.approx(16 / 32)
    assert masks["iou"]["unlabelled"] == pytest.approx(32 / 48, abs=1e-6)
    assert masks["miou9"]["value"] == pytest.approx((16 / 32 + 32 / 48) / 9, abs=1e-6)
    assert masks["macc9"]["value"] == pytest.approx((1 + 32 / 48) / 9, abs=1e-6)
    assert masks["pixel_accuracy"] == 0.75


def test_the_worst_frame_is_the_one_with_two_false_objects(report) -> None:
    worst = report["students"]["tiny"]["worst_frames"]
    told = {frame["index"]: (frame["missed"], frame["false"]) for frame in worst}
    assert told == {0: (0, 1), 1: (0, 2), 2: (0, 0), 3: (1, 1), 4: (1, 0)}
