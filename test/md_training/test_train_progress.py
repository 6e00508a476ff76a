"""What a training shows and looks at: the live display, the plain lines, and the checks of its first batch."""

import io
import logging
import math
from dataclasses import replace

import pytest
import torch
from painted_samples import painted_sample
from rich.console import Console

from md_training.data.augment import NO_AUGMENTATION
from md_training.data.sample import at_network_size
from md_training.data.splits import DataError
from md_training.loader import Batch, Batches
from md_training.models.networks import NetworkSettings, Student
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import Optimisation, Run
from md_training.progress import Display, LiveDisplay, Report, duration
from md_training.sanity import check_batch, check_first_loss

REPORT = Report(40, 100, {"classes": 1.25, "boxes": 0.5}, 1e-3, 12.34, 0.031, 3723.4)


def test_the_live_display_shows_terms_speed_and_the_last_evaluation() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=30)
    with LiveDisplay("a run", 100, 0, console) as display:
        display.step(40, {"classes": 1.5, "boxes": 0.75})
        display.report(REPORT)
        display.evaluation(40, {"AP50 [all]": 0.4567, "AP50 car [all]": 0.9})
        display.step(41, {"classes": 1.0625, "boxes": 0.25})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("a run", "41/100", "12.3 images/s (3% waiting), 1:02:03 to go", "1.0625", "1.2500", "1.00e-03"):
        assert part in text, part
    assert "evaluation after step 40: AP50 [all] 0.457" in text


def test_plain_lines_have_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Display() as display:
        display.step(40, {"classes": 1.5})
        display.report(REPORT)
    assert caplog.messages == [
        "step 40/100  classes 1.2500  boxes 0.5000  lr 1.00e-03  12.3 images/s (3% waiting), 1:02:03 to go"
    ]
    assert duration(59.6) == "0:01:00"


# --- the first batch

SETTINGS = NetworkSettings(
    input_size=(128, 96),
    detection=RetinaNetSettings(channels=16, tower_convs=1, anchor_side=20, anchor_ratios=(0.4, 1.0, 1.6)),
    segmentation=PSPNetSettings(channels=16, auxiliary=False),
)


@pytest.fixture(scope="module")
def network() -> Student:
    return Student(SETTINGS)


@pytest.fixture
def batch() -> Batch:
    run = Run(name="x", network=SETTINGS, augmentation=NO_AUGMENTATION, optimisation=Optimisation(batch_size=2))
    return Batches([at_network_size(painted_sample(seed), SETTINGS.input_size) for seed in (1, 2)], run)[1]


def test_a_good_batch_says_nothing(network: Student, batch: Batch, caplog: pytest.LogCaptureFixture) -> None:
    check_batch(batch, network)
    check_first_loss({"classes": 1.2, "boxes": 3.0, "segmentation": math.log(9), "segmentation_semantic": 800.0})
    assert caplog.messages == []


def test_what_cannot_be_learnt_from_stops(network: Student, batch: Batch) -> None:
    images = batch.images.clone()
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        check_batch(replace(batch, images=images), network)
    with pytest.raises(DataError, match=r"masks have the values \[9\]"):
        check_batch(replace(batch, mask=torch.full_like(batch.mask, 9)), network)
    with pytest.raises(DataError, match=r"labels \[3\]"):
        check_batch(replace(batch, labels=torch.full_like(batch.labels, 3)), network)
    for boxes in (batch.boxes[:, [2, 1, 0, 3]], batch.boxes + 100):
        with pytest.raises(DataError, match="boxes of the first batch are empty or outside of the 128x96 px"):
            check_batch(replace(batch, boxes=boxes), network)


def test_what_looks_wrong_is_said(network: Student, batch: Batch, caplog: pytest.LogCaptureFixture) -> None:
    images = batch.images.clone()
    images[:, 3:] = 0.5
    tiny = torch.cat([batch.boxes[:, :2], batch.boxes[:, :2] + 2], dim=1)
    check_batch(replace(batch, images=images, boxes=tiny), network)
    check_first_loss({"segmentation": 40.0})
    assert len(caplog.messages) == 3
    assert "every thermal image of the first batch is of one colour" in caplog.messages[0]
    assert "6 of 6 objects of the first batch overlap no anchor by 0.4 (median 2x2 px" in caplog.messages[1]
    assert "the first loss of segmentation is 40, expected below 6.59" in caplog.messages[2]
