"""Checkpoints: written atomically, read without running code."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from md_training.models.networks import Network, make_network
from md_training.presets import Run

FORMAT = 1


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this package."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained (or half trained) network.

    metrics: name to figure, as the last evaluation found them. teachers: run ids of those it was distilled from.
    training_data: one sentence. split_hashes: SHA-256 of the lists it was trained on, by name.
    """

    run: Run
    run_id: str
    step: int
    network: Network
    metrics: dict[str, float]
    git_revision: str
    teachers: tuple[str, ...] = ()
    training_data: str = ""
    split_hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What a run needs besides its network to go on exactly where it stopped.

    optimiser: its state dict. trained: the weights that are trained, where the network holds their moving average, with
    its count of updates. window: the terms of the steps since the last line of the log. What is random in a step
    follows from the run's seed and the step.
    """

    optimiser: dict[str, Any]
    trained: dict[str, torch.Tensor] | None
    averaged_steps: int
    window: tuple[dict[str, float], ...]


def save(path: Path, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
    """Write the file beside its place and move it there, so that a killed process leaves the last one intact."""
    content = {
        "format": FORMAT,
        "run": checkpoint.run.to_json(),
        "run_id": checkpoint.run_id,
        "step": checkpoint.step,
        "network": checkpoint.network.state_dict(),
        "optimiser": None,
        "metrics": checkpoint.metrics,
        "git_revision": checkpoint.git_revision,
        "teachers": list(checkpoint.teachers),
        "training_data": checkpoint.training_data,
        "split_hashes": checkpoint.split_hashes,
    }
    if progress is not None:
        content |= {
            "optimiser": progress.optimiser,
            "trained": progress.trained,
            "averaged_steps": progress.averaged_steps,
            "window": list(progress.window),
        }
    _write(path, content)


def set_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Replace the figures in a checkpoint file and leave the rest of it as it is; raises as `load` does."""
    _write(path, _read(path) | {"metrics": metrics})


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, network in evaluation mode.

    Raises CheckpointError where the file is missing, is no checkpoint, or holds anything but tensors and plain values
    (it could run code then, and is not unpickled).
    """
    content = _read(path)
    try:
        run = Run.from_json(content["run"])
        network = make_network(run.network)
        network.load_state_dict(content["network"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(
        run,
        content["run_id"],
        content["step"],
        network.eval(),
        content["metrics"],
        content["git_revision"],
        tuple(content.get("teachers", ())),
        content.get("training_data", ""),
        content.get("split_hashes", {}),
    )


def load_progress(path: Path) -> Progress:
    """Read what `train` needs to go on. Raises CheckpointError, as `load` does, and where it was not saved."""
    content = _read(path)
    if content.get("optimiser") is None or "window" not in content:
        raise CheckpointError(f"{path} holds no state of the training: it cannot be resumed, only used")
    return Progress(
        content["optimiser"],
        content["trained"],
        content["averaged_steps"],
        tuple(content["window"]),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint of tensors and plain values: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no md_training checkpoint of format {FORMAT}; was it written by `train`?")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    torch.save(content, part)
    os.replace(part, path)


def git_revision() -> str:
    """Return the revision of the source tree, `-dirty` where it was changed, or `unknown` outside of git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
