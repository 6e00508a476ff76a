"""Train runs in a process of its own, or, under torchrun, in several: `train_process.py FOLDER RUN.json... [--resume]`.

Each run is trained into FOLDER/NAME, NAME as in its file.
"""

import argparse
import json
import logging
from pathlib import Path

import torch

from md_training.presets import Run
from md_training.processes import leave
from md_training.train import train

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    for path in options.runs:
        run = Run.from_json(json.loads(path.read_text()))
        train(run, options.folder / run.name, workers=options.workers, resume=options.resume)
    leave()
