"""Checkpoints: written atomically, read without running code."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from md_training.models.networks import Network, make_network
from md_training.presets import Run

FORMAT = 1

_KINDS: dict[str, type] = {
    "run": dict,
    "run_id": str,
    "step": int,
    "network": dict,
    "metrics": dict,
    "git_revision": str,
    "teachers": list,
    "training_data": str,
    "split_hashes": dict,
}
_LATER: dict[str, Any] = {"teachers": [], "training_data": "", "split_hashes": {}}  # files of before lack them


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
    follows from the run's seed and the step. silent: terms of the loss without a gradient so far, of steps_checked;
    None before the first step.
    """

    optimiser: dict[str, Any]
    trained: dict[str, torch.Tensor] | None
    averaged_steps: int
    window: tuple[dict[str, float], ...]
    silent: tuple[str, ...] | None = None
    steps_checked: int = 0


def save(path: Path, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
    """Write the file beside its place and move it there, so that a killed process leaves the last one intact.

    Raises OSError, and leaves the last one, too, where it cannot be written.
    """
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
            "silent": None if progress.silent is None else list(progress.silent),
            "steps_checked": progress.steps_checked,
        }
    _write(path, content)


def set_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Replace the figures in a checkpoint file and leave the rest of it as it is; raises as `load` and `save` do."""
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
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: its weights are not those of the network in its settings") from error
    return Checkpoint(
        run,
        content["run_id"],
        content["step"],
        network.eval(),
        content["metrics"],
        content["git_revision"],
        tuple(content["teachers"]),
        content["training_data"],
        content["split_hashes"],
    )


def load_progress(path: Path) -> Progress:
    """Read what `train` needs to go on. Raises CheckpointError, as `load` does, and where it was not saved."""
    content = _read(path)
    if content.get("optimiser") is None or "window" not in content:
        raise CheckpointError(f"{path} holds no state of the training: it cannot be resumed, only used")
    try:
        silent = content.get("silent")
        return Progress(
            content["optimiser"],
            content["trained"],
            content["averaged_steps"],
            tuple(content["window"]),
            None if silent is None else tuple(silent),
            content.get("steps_checked", 0),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds a damaged state of the training: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # PyTorch's text is a page, and recommends to read the file in spite of it
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of tensors and plain values: it is another kind of file, or damaged"
        ) from error
    known = content.get("format") if isinstance(content, dict) else None
    if type(known) is not int or known != FORMAT:  # of a tensor, != would be one, too
        raise CheckpointError(f"{path} is no md_training checkpoint of format {FORMAT}; was it written by `train`?")
    content = _LATER | content
    if wrong := [name for name, kind in _KINDS.items() if not isinstance(content.get(name), kind)]:
        raise CheckpointError(f"{path} is no whole checkpoint ({', '.join(wrong)}): was it changed after `train`?")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save(content, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError
        free = shutil.disk_usage(path.parent).free // 2**20
        raise OSError(f"{path} cannot be written ({free} MB free): disk full or read-only?") from error
    finally:
        part.unlink(missing_ok=True)


def git_revision() -> str:
    """Return the revision of the source tree, `-dirty` where it was changed, or `unknown` outside of git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
