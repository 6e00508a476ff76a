"""What the first process of a training leaves in the run's folder: settings, figures, events and checkpoints."""

import fcntl
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from md_training.checkpoint import Checkpoint, save
from md_training.data.sample import Sample
from md_training.evaluate import evaluate
from md_training.progress import Report, display

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from md_training.train import Trainer

log = logging.getLogger(__name__)

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
"""In the run's folder: its last checkpoint, and that of the run that was there before."""


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. Raises ValueError where another one holds it."""
    # Of the kind that forked workers do not inherit, so that it ends with this process however it ends.
    with (folder / "train.lock").open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"{folder}: another training writes here; wait for its end, or name another folder"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other training writes there", folder, error)
        yield


class Record:
    """Logs, evaluates and saves a training as often as its run says. A context manager.

    checkpoint: the one that was last written, or begun with.
    """

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, held_out: Sequence[Sample], tensorboard: bool = False
    ) -> None:
        """Of a run that begins, write run.json and put an earlier run's checkpoint aside.

        held_out: samples to evaluate on; none, no evaluation. Raises ValueError, with the folder as it was, where
        TensorBoard is wanted and not installed.
        """
        self.checkpoint = checkpoint
        self.path = folder / CHECKPOINT
        self._run, self._held_out = checkpoint.run, held_out
        events = event_writer(folder, checkpoint.step) if tensorboard else None
        if checkpoint.step == 0:
            _begin(folder, checkpoint)
        for part in folder.glob(f"{CHECKPOINT}.*.part"):  # of a killed process
            part.unlink()
        self._log = RunLog(folder, checkpoint.step, events)
        self._display = display(checkpoint.run.name, checkpoint.run.optimisation.steps, checkpoint.step)
        self._first = self._logged = checkpoint.step
        self._started = self._logged_at = time.monotonic()
        self._waited_s = 0.0

    def __enter__(self) -> "Record":
        self._display.__enter__()
        self._started = self._logged_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)
        self._log.close()

    def step(self, step: int, trainer: "Trainer", last: bool, waited_s: float = 0.0) -> None:
        """Note a step that is done. last: the training ends with it. waited_s: for batches, since the start, s."""
        run, steps = self._run, self._run.optimisation.steps
        self._display.step(step, trainer.window[-1])
        if step % run.log_every == 0 or step == steps:
            self._report(step, trainer, waited_s)
        if trainer.gradients is not None:
            pulls = ", ".join(f"{name} {norm:.3g}" for name, norm in trainer.gradients.items())
            log.info("step %d, gradients on the backbone: %s", step, pulls)
            self._log.write_gradients(step, trainer.gradients)
        if self._held_out and (step % run.evaluate_every == 0 or step == steps):
            self._evaluate(step, trainer)
        if last or step % run.checkpoint_every == 0:
            self.checkpoint = replace(self.checkpoint, step=step)
            save(self.path, self.checkpoint, trainer.progress())

    def _report(self, step: int, trainer: "Trainer", waited_s: float) -> None:
        now, optimisation = time.monotonic(), self._run.optimisation
        means = {name: float(np.mean([terms[name] for terms in trainer.window])) for name in trainer.window[0]}
        took_s, waiting_s = now - self._logged_at, waited_s - self._waited_s
        rate = (step - self._logged) * optimisation.batch_size / took_s
        left = (optimisation.steps - step) * (now - self._started) / (step - self._first)
        learning_rate = trainer.optimiser.param_groups[0]["lr"]
        self._display.report(Report(step, optimisation.steps, means, learning_rate, rate, waiting_s / took_s, left))
        timing = {"images_per_s": rate, "waited_s": waiting_s, "elapsed_s": now - self._started}
        self._log.write(step, {**means, "learning_rate": learning_rate, **timing})
        trainer.window, self._logged, self._logged_at, self._waited_s = [], step, now, waited_s

    def _evaluate(self, step: int, trainer: "Trainer") -> None:
        began = time.monotonic()
        scores = evaluate(trainer.result, self._held_out)
        figures = {name: value for subset in scores for name, value in scores[subset].figures(subset).items()}
        self.checkpoint = replace(self.checkpoint, metrics=figures)
        log.info("step %d, %d held-out samples:\n%s", step, len(self._held_out), scores["all"].table())
        self._log.write_evaluation(step, figures)
        self._display.evaluation(step, figures)
        self._logged_at += time.monotonic() - began  # not part of the speed


def _begin(folder: Path, checkpoint: Checkpoint) -> None:
    settings = checkpoint.run.to_json()
    record = {"run_id": checkpoint.run_id, "git_revision": checkpoint.git_revision, "run": settings}
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    if (folder / CHECKPOINT).exists():  # of an earlier run: nobody is to take it for this one's
        (folder / CHECKPOINT).replace(folder / PREVIOUS)
    log.info("run %s\n%s", checkpoint.run_id, json.dumps(settings, indent=2))


def event_writer(folder: Path, after_step: int) -> "SummaryWriter":
    """Return the writer of TensorBoard's events. Raises ValueError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"TensorBoard: {error}; pip install tensorboard, or --no-tensorboard") from None
    return SummaryWriter(str(folder), purge_step=after_step + 1 if after_step else None)


class RunLog:
    """metrics.jsonl and, if wanted, TensorBoard's events of one folder."""

    def __init__(self, folder: Path, after_step: int, events: "SummaryWriter | None") -> None:
        """after_step: of a run that goes on; what an earlier process wrote beyond it is dropped. 0 starts anew."""
        path = folder / "metrics.jsonl"
        kept = path.read_text().splitlines(keepends=True) if after_step and path.exists() else []
        # A killed process may have left half a line.
        kept = [line for line in kept if line.endswith("\n") and json.loads(line)["step"] <= after_step]
        path.write_text("".join(kept))
        self._metrics = path.open("a")
        self._events = events

    def close(self) -> None:
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Note the loss terms, learning rate and speed."""
        self._line({"step": step, **values})
        self._scalars("train", step, values)

    def write_evaluation(self, step: int, figures: dict[str, float]) -> None:
        self._line({"step": step, "evaluation": figures})
        self._scalars("evaluation", step, figures)

    def write_gradients(self, step: int, norms: dict[str, float]) -> None:
        self._line({"step": step, "gradients": norms})
        self._scalars("gradients", step, norms)

    def _line(self, values: dict[str, object]) -> None:
        self._metrics.write(json.dumps(values) + "\n")
        self._metrics.flush()

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{group}/{name}", value, step)
