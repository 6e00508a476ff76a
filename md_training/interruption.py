"""How a training ends before its end: asked to stop, or by an error, with its last checkpoint intact."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import torch

from md_training.checkpoint import load
from md_training.data.splits import DataError
from md_training.loader import LoaderError
from md_training.presets import Run

log = logging.getLogger(__name__)

ECHO_S = 2.0
"""A launcher may pass a signal on that has reached the process already: within this time it counts once."""

MENDABLE = (DataError, LoaderError, OSError)
"""Errors whose cause is outside of the run's settings: the same run can go on once it is mended."""


class OutOfMemory(RuntimeError):
    """The network and its batch do not fit; the text names what to lower."""


class StopRequest:
    """Ctrl-C (SIGINT) or SIGTERM ask for an end after the current step; a second one ends the process at once.

    A context manager; only the main thread listens. asked: whether one has come. name: of the signal.
    """

    def __init__(self) -> None:
        self.name = ""
        self._asked_at = 0.0
        self._before: dict[int, signal.Handlers | object] = {}

    @property
    def asked(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.name, self._asked_at = signal.Signals(number).name, now
            log.info("%s: a checkpoint is written after this step; once more ends at once", self.name)
        elif now - self._asked_at > ECHO_S:
            raise KeyboardInterrupt


@contextmanager
def last_checkpoint_named(run: Run, path: Path, device: torch.device) -> Iterator[None]:
    """Say, with an error of the training, what is left of it. path: of the checkpoint.

    Raises OutOfMemory, in one sentence, where memory did not suffice, and any other error as it is.
    """
    try:
        yield
    except Exception as error:
        left = f"{path} of step {load(path).step} is intact" if path.exists() else "no checkpoint was written yet"
        if not is_out_of_memory(error):
            goes_on = path.exists() and isinstance(error, MENDABLE)
            log.error("the training stops; %s%s", left, ": mend the cause and go on with --resume" if goes_on else "")
            raise
        width, height = run.network.input_size
        raise OutOfMemory(
            f"out of memory on {device} with batches of {run.optimisation.batch_size} images of {width}x{height}: "
            f"lower batch_size or the image size, or use more processes or a GPU with more memory; {left}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether PyTorch or Python has asked for more memory than there is, on a GPU or off."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
