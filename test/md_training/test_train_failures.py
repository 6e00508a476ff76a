"""What can end a training before its end: signals, lack of memory, a killed process; the last checkpoint is intact."""

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import train_process

from md_training import interruption
from md_training.checkpoint import Checkpoint, CheckpointError, load, save
from md_training.data.augment import Augmentation
from md_training.data.sources import YoloData
from md_training.data.splits import DataError
from md_training.data.synthetic import SceneData
from md_training.interruption import OutOfMemory, StopRequest, last_checkpoint_named
from md_training.loader import Batch, LoaderError
from md_training.losses import LossError
from md_training.models.networks import NetworkSettings, make_network
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
    gradients_every=0,
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
    monkeypatch.setattr(interruption, "ECHO_S", 3600.0)  # however busy the machine is
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher
        assert stop.asked
        assert stop.name == "SIGTERM"
        monkeypatch.setattr(interruption, "ECHO_S", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.timeout(300)  # three trainings, one with its imports, on a machine that may be busy
def test_a_process_killed_while_it_writes_leaves_its_last_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    run = replace(RUN, optimisation=replace(RUN.optimisation, steps=7))
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    command = [sys.executable, train_process.__file__, str(tmp_path), str(tmp_path / "run.json"), "--kill-in-write=3"]
    folder = tmp_path / run.name
    killed = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert load(folder / "checkpoint.pt").step == 4
    assert len(terms(folder)) == 6
    assert len(list(folder.glob("*.part"))) == 1

    train(run, folder, resume=True)
    train(run, tmp_path / "whole")
    assert terms(folder) == terms(tmp_path / "whole")
    assert len(terms(folder)) == 7
    assert not list(folder.glob("*.part"))


# --- a folder in use, a full disk


LOCK = "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_two_trainings_do_not_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = []

    def other_training() -> None:
        command = [sys.executable, "-c", LOCK, str(tmp_path / "train.lock")]
        statuses.append(subprocess.run(command, capture_output=True, check=False).returncode)

    at_step(1, monkeypatch, other_training)
    train(replace(RUN, optimisation=replace(RUN.optimisation, steps=1)), tmp_path, workers=1)
    other_training()
    assert statuses == [1, 0]

    command = [sys.executable, "-c", f"{LOCK}; print(flush=True); input()", str(tmp_path / "train.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"  # it holds the folder
        with pytest.raises(ValueError, match="another training writes here"):
            train(RUN, tmp_path)
        other.kill()
    assert load(tmp_path / "checkpoint.pt").step == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 704")]
)
def test_a_full_disk_is_named_and_the_last_checkpoint_intact(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        def save(content: Any, path: Path) -> None:
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(torch, "save", save)

    at_step(3, monkeypatch, full)
    path = tmp_path / "checkpoint.pt"
    expected = rf"^{path} cannot be written \(\d+ MB free\): disk full or read-only\?$"
    with pytest.raises(OSError, match=expected):
        train(RUN, tmp_path)
    assert load(path).step == 2
    assert not list(tmp_path.glob("*.part"))
    assert f"{path} of step 2 is intact: mend the cause and go on with --resume" in caplog.text


def test_a_checkpoint_that_does_not_fit_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint = Checkpoint(RUN, "small-1", 1, make_network(RUN.network), {}, "abc")
    save(path, checkpoint)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # as of a disk that is full half-way
    try:
        with pytest.raises(OSError, match="disk full or read-only"):
            save(path, replace(checkpoint, step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


# --- errors of the training


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


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (DataError("a.png is damaged"), True),
        (LoaderError("a worker has died"), True),
        (OSError("stale file handle"), True),
        (LossError("the loss is not finite: lower the learning rate"), False),  # --resume refuses another one
    ],
)
def test_resume_is_offered_where_the_same_run_can_go_on(
    error: Exception, goes_on: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    save(path, Checkpoint(RUN, "small-1", 2, make_network(RUN.network), {}, "abc"))
    with pytest.raises(type(error)), last_checkpoint_named(RUN, path, torch.device("cpu")):
        raise error
    assert f"the training stops; {path} of step 2 is intact" in caplog.text
    assert ("--resume" in caplog.text) == goes_on


# --- a folder with an earlier run


def test_a_start_that_fails_leaves_the_earlier_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short = replace(RUN, optimisation=replace(RUN.optimisation, steps=1))
    train(short, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {"checkpoint.pt", "run.json", "metrics.jsonl"} <= before.keys()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    caplog.set_level(logging.INFO)
    caplog.clear()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train(replace(short, teachers=(str(tmp_path / "teacher.pt"),)), tmp_path)
    with pytest.raises(DataError):
        train(replace(short, data=YoloData(tmp_path / "wrong", (64, 48), (64, 48))), tmp_path)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        train(replace(short, seed=2), tmp_path, tensorboard=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "checkpoint_every" not in caplog.text  # a page of settings before one line of error


def test_resume_does_not_begin_anew_beside_an_earlier_runs_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.previous.pt").touch()
    with pytest.raises(ValueError, match=r"only the checkpoint\.previous\.pt of an earlier run: rename"):
        train(RUN, tmp_path, resume=True)
