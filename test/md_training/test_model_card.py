"""What a model card says of a student."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_student import tiny_manifest, write_tiny_student

from md_training.checkpoint import Checkpoint
from md_training.model_card import write_model_card
from md_training.models.networks import make_network
from md_training.presets import PRESETS, Run

DEMO, VISIBLE = (PRESETS[name][1] for name in ("scenes-demo", "scenes-demo-visible"))


@pytest.mark.parametrize(
    ("run", "weights", "command"),
    [
        (DEMO, "random", True),
        (replace(DEMO, backbone_weights="imagenet"), "imagenet", False),
        (VISIBLE, "those of `scenes-demo` where they fit, else random", True),
        (replace(VISIBLE, first_weights="other/checkpoint.pt"), "those of `other` where they fit, else random", False),
    ],
)
def test_a_card_says_from_which_weights_a_student_was_trained_and_how(
    run: Run, weights: str, command: bool, tmp_path: Path
) -> None:
    student, card = write_tiny_student(tmp_path / "student.onnx"), tmp_path / "student.md"
    checkpoint = Checkpoint(run, "run", run.optimisation.steps, make_network(run.network), {}, "none")
    write_model_card(card, student, tiny_manifest(), checkpoint)
    lines = [line.strip("| ").split(" | ") for line in card.read_text().splitlines()]
    rows = {cells[0]: cells[1] for cells in lines if len(cells) == 2}
    assert rows["first weights"] == weights
    assert rows.get("made by", "").startswith(f"`python -m md_training train {run.name}`") == command
