"""Train runs in a process of its own, or, under torchrun, in several: `train_process.py FOLDER RUN.json... [--resume]`.

Each run is trained into FOLDER/NAME, NAME as in its file. --kill-in-write N: the process is killed when the file of its
N-th checkpoint is half written.
"""

import argparse
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import torch

from md_training.presets import Run
from md_training.processes import leave
from md_training.train import train


def kill_in_write(number: int) -> None:
    """Make torch.save kill this process half-way through its number-th file."""
    original, written = torch.save, 0

    def save(content: Any, path: Path) -> None:
        nonlocal written
        original(content, path)
        written += 1
        if written == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kill-in-write", type=int, default=0)
    options = parser.parse_args()
    kill_in_write(options.kill_in_write)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    for path in options.runs:
        run = Run.from_json(json.loads(path.read_text()))
        train(run, options.folder / run.name, workers=options.workers, resume=options.resume)
    leave()
