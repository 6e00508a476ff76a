"""Several processes: two of them, each with half of the batch, do what one does with the whole of it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import train_process
from torch import nn

from md_training.checkpoint import Checkpoint, load, save
from md_training.data.synthetic import SceneData
from md_training.distillation import DistillationSettings
from md_training.models.gaff import GaffSettings
from md_training.models.joint import JointSettings
from md_training.models.networks import NetworkSettings, make_network
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import Optimisation, Run
from md_training.processes import ALONE, Processes, join, with_batch_norm
from md_training.train import train

SIZE = (64, 64)
NETWORK = NetworkSettings(
    input_size=SIZE,
    detection=RetinaNetSettings(channels=16, tower_convs=1, anchor_side=6),
    segmentation=PSPNetSettings(channels=16, output_stride=8, dropout=0.0),
    gaff=GaffSettings(levels=("c5",), margin=0.0),
)
NATIVE = Run(
    name="native",
    network=NETWORK,
    # The counts of objects, labelled pixels and positives differ from share to share of a batch.
    data=SceneData(camera_size=(96, 64), thermal_size=(24, 16), scenes=6, evaluation_scenes=1),
    optimisation=Optimisation(
        steps=3,
        batch_size=4,
        learning_rate=5e-3,
        warmup_steps=2,
        precision="fp32",
        class_weights="sqrt_inverse",
        clip_norm=5.0,
        batch_norm="frozen",
        ema_decay=0.5,
    ),
    log_every=1,
    evaluate_every=2,
    checkpoint_every=2,
)
# Attention is left out: its heads have no gradient, for which the processes must not wait.
DISTILLED = replace(
    NATIVE,
    name="distilled",
    network=replace(NETWORK, detection_joint=JointSettings(c5="basic"), segmentation_joint=JointSettings(c5="basic")),
    distillation=DistillationSettings(semantic="mse_matched", attention_weight=0.0),
)
FEATURE = replace(NATIVE, name="feature", network=replace(NETWORK, architecture="two_stream"))


def terms(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith("_s")}
        for line in lines
        if "evaluation" not in line and "gradients" not in line  # whose norms are those of each process's share
    ]


def assert_two_processes_do_what_one_does(runs: Sequence[Run], tmp_path: Path) -> None:
    """Train the runs in two processes and in this one, and compare losses and weights."""
    files = []
    for run in runs:
        files.append(str(tmp_path / f"{run.name}.json"))
        Path(files[-1]).write_text(json.dumps(run.to_json()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    subprocess.run(
        [*launcher, train_process.__file__, str(tmp_path / "two"), *files],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=250,
    )

    for run in runs:
        train(run, tmp_path / "one" / run.name)
        one, two = (terms(tmp_path / count / run.name) for count in ("one", "two"))
        assert [line["step"] for line in two] == [1, 2, 3]
        # fp32, summed in another order: measured 3e-7 of the value, and 3e-8 for the weights.
        assert two == [pytest.approx(line, rel=1e-5) for line in one]
        weights = load(tmp_path / "one" / run.name / "checkpoint.pt").network.state_dict()
        trained = load(tmp_path / "two" / run.name / "checkpoint.pt")
        assert trained.step == 3
        for name, value in trained.network.state_dict().items():
            torch.testing.assert_close(
                value, weights[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n} {text}"
            )


@pytest.mark.timeout(300)  # of which most is for PyTorch's start, twice, on a machine that may be busy
def test_two_processes_have_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = make_network(FEATURE.network)
    save(tmp_path / "teacher.pt", Checkpoint(FEATURE, "teacher-1", 1, network, {}, "abc"))
    run = replace(DISTILLED, teachers=(str(tmp_path / "teacher.pt"),))
    assert_two_processes_do_what_one_does([run], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_processes_without_a_teacher_have_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    assert_two_processes_do_what_one_does([NATIVE, FEATURE], tmp_path)
    assert "gaff_inter" in terms(tmp_path / "one" / "feature")[0]


def test_a_batch_is_shared_out_in_equal_parts() -> None:
    third = Processes()
    third.rank, third.count = 2, 4
    assert third.share(8) == range(4, 6)
    with pytest.raises(ValueError, match=r"batch_size 6 .* make it a multiple of 4"):
        third.share(6)
    assert ALONE.share(6) == range(6)


def test_batch_norm_over_cpu_processes_is_refused_with_its_cure() -> None:
    two = Processes()
    two.count = 2
    layer = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="set batch_norm to local or frozen"):
        with_batch_norm(layer, "synchronised", two)
    assert with_batch_norm(layer, "local", two) is layer
    assert with_batch_norm(layer, "synchronised", ALONE) is layer


def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    frozen = train(replace(NATIVE, optimisation=replace(NATIVE.optimisation, steps=1)), tmp_path / "frozen")
    state = frozen.network.state_dict()
    assert all(torch.all(value == 0) for name, value in state.items() if name.endswith("running_mean"))


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"device cuda:1: PyTorch sees no CUDA GPU"):
        join("cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps"])
def test_a_device_that_it_does_not_know_is_one_sentence(device: str) -> None:
    with pytest.raises(ValueError, match=rf"^device {device}: use cpu, cuda or cuda:N$"):
        join(device)
