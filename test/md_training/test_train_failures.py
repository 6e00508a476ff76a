"""What can end a training before its end: signals, lack of memory, a killed process; the last checkpoint is intact."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import train_process

from md_training import interruption
from md_training.checkpoint import load
from md_training.data.augment import Augmentation
from md_training.data.synthetic import SceneData
from md_training.interruption import OutOfMemory, StopRequest
from md_training.loader import Batch
from md_training.models.networks import NetworkSettings
from md_training.models.pspnet import PSPNetSettings
from md_training.presets import Optimisation, Run
from md_training.train import Trainer, train

RUN = Run(
    name="failing",
    network=NetworkSettings(
        tasks=("segmentation",), input_size=(64, 64), segmentation=PSPNetSettings(channels=16, auxiliary=False)
    ),
    data=SceneData(camera_size=(64, 64), thermal_size=(16, 16), scenes=5, evaluation_scenes=0),
    augmentation=Augmentation(),
    optimisation=Optimisation(steps=6, batch_size=2, warmup_steps=2, precision="fp32"),
    log_every=1,
    checkpoint_every=2,
)


def terms(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in lines]


def at_step(wanted: int, monkeypatch: pytest.MonkeyPatch, happening: Any) -> None:
    """Let something happen in a step of the training, before it is done."""
    original = Trainer.step

    def step(trainer: Trainer, number: int, batch: Batch) -> dict[str, float]:
        if number == wanted:
            happening()
        return original(trainer, number, batch)

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_writes_a_checkpoint_and_goes_on_exactly(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        at_step(3, patched, lambda: os.kill(os.getpid(), number))
        stopped = train(RUN, tmp_path / "stopped", workers=1)
    assert stopped.step == 3
    assert load(tmp_path / "stopped" / "checkpoint.pt").step == 3
    assert f"{number.name} has stopped the training: --resume goes on" in caplog.text
    assert signal.getsignal(number) is before

    resumed = train(RUN, tmp_path / "stopped", resume=True)
    whole = train(RUN, tmp_path / "whole")
    assert terms(tmp_path / "stopped") == terms(tmp_path / "whole")
    weights = whole.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.network.state_dict().items())


def test_a_second_signal_ends_at_once_but_not_its_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher
        assert stop.asked
        assert stop.name == "SIGTERM"
        monkeypatch.setattr(interruption, "ECHO_S", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_killed_process_leaves_its_last_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    run = replace(RUN, optimisation=replace(RUN.optimisation, steps=14))
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    command = [sys.executable, train_process.__file__, str(tmp_path / "killed"), str(tmp_path / "run.json")]
    folder = tmp_path / "killed" / run.name
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 90
            while (
                not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_text().split("\n")) < 6
            ):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    step = load(folder / "checkpoint.pt").step
    assert 4 <= step < 14
    assert step % 2 == 0

    train(run, folder, resume=True)
    train(run, tmp_path / "whole")
    assert terms(folder) == terms(tmp_path / "whole")
    assert len(terms(folder)) == 14


def enormous() -> None:
    torch.empty(10**15)  # the real error of PyTorch's allocator


def python_memory() -> None:
    raise MemoryError


def gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("happening", [enormous, python_memory, gpu_memory])
def test_lack_of_memory_is_one_sentence_with_its_cure(
    happening: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(3, monkeypatch, happening)
    expected = r"out of memory on cpu with batches of 2 images of 64x64: lower batch_size .* of step 2 is intact"
    with pytest.raises(OutOfMemory, match=expected) as caught:
        train(RUN, tmp_path)
    assert "\n" not in str(caught.value)
    assert load(tmp_path / "checkpoint.pt").step == 2


def test_other_errors_stay_what_they_are_and_name_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong() -> None:
        raise RuntimeError("shapes differ")

    at_step(1, monkeypatch, wrong)
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match=r"^shapes differ$"):
        train(RUN, tmp_path)
    assert "no checkpoint was written yet" in caplog.text


def test_a_new_run_keeps_the_checkpoint_of_the_one_before(tmp_path: Path) -> None:
    short = replace(RUN, optimisation=replace(RUN.optimisation, steps=1))
    first = train(short, tmp_path)
    train(replace(short, seed=2), tmp_path)
    assert load(tmp_path / "checkpoint.previous.pt").run_id == first.run_id
    assert load(tmp_path / "checkpoint.pt").run.seed == 2
