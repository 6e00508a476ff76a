"""The command line of the training package: what a user may type, and what an error looks like."""

import logging
import sys

import pytest

from md_training.__main__ import main


@pytest.mark.parametrize(
    "arguments", ["train scenes-demo --out {out} --steps 0", "train --out {out} scenes-demo --steps 0"]
)
def test_options_of_a_command_may_stand_before_or_after_the_preset(arguments, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["md_training", *arguments.format(out=tmp_path / "run").split()])
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "0 steps of 8 images: at least 1 step of 2" in caplog.text  # parsed, and refused by the run itself
    assert not (tmp_path / "run").exists()


def test_an_error_that_a_user_can_mend_is_one_line(tmp_path, monkeypatch, caplog):
    missing = tmp_path / "none.pt"
    monkeypatch.setattr(sys, "argv", ["md_training", "export", str(missing), "--out", str(tmp_path / "x.onnx")])
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert f"{missing}: there is no such checkpoint" in caplog.text
    assert "Traceback" not in caplog.text
