"""The training loop: plain, native torch, one process.

A run leaves in its folder run.json, metrics.jsonl (one line per logged step and per evaluation) and checkpoint.pt.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from md_perception.labels import SEGMENTATION
from md_training.checkpoint import Checkpoint, git_revision, save
from md_training.data.augment import training_batch
from md_training.data.sample import Sample
from md_training.data.synthetic import cached, evaluation_seeds, render
from md_training.evaluate import evaluate
from md_training.losses import IGNORED_PIXEL, Targets, task_losses, total
from md_training.models.backbone import initialise
from md_training.models.networks import Network, make_network, multiply_accumulates, parameter_count, select_inputs
from md_training.presets import Optimisation, Run

log = logging.getLogger(__name__)

FINAL_LEARNING_RATE = 1e-6
"""Where the warm-up starts and the cosine ends."""
CLASS_WEIGHT_LIMIT = 10.0
"""No class weighs more than this times the mean pixel."""


def train(run: Run, folder: Path, *, workers: int = 2, device: str = "cpu") -> Checkpoint:
    """Train a run and return its last checkpoint, which is also written to the folder (made if missing).

    workers: processes that render the scenes before training starts.
    Raises LossError, with all terms, where the loss is not finite; the last checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    run_id = f"{run.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    revision = git_revision()
    record = {"run_id": run_id, "git_revision": revision, "run": run.to_json()}
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    log.info("run %s\n%s", run_id, json.dumps(run.to_json(), indent=2))

    network = make_network(run.network)
    for backbone in network.backbones():
        initialise(backbone, run.backbone_weights)
    log.info(
        "network: %.2f M parameters, %.2f GMACs at %dx%d",
        parameter_count(network) / 1e6,
        multiply_accumulates(network) / 1e9,
        *run.network.input_size,
    )
    seeds = run.data.training_seeds
    samples = cached(render(seeds, run.data, run.network.input_size, workers), len(seeds), "rendering")
    held_out = list(render(evaluation_seeds(run.data.evaluation_scenes), run.data, None, 0))

    trainer = Trainer(network, run, samples, torch.device(device))
    checkpoint = Checkpoint(run, run_id, 0, network, {}, revision)
    steps = run.optimisation.steps
    with (folder / "metrics.jsonl").open("a") as metrics:

        def note(values: dict[str, object]) -> None:
            metrics.write(json.dumps(values) + "\n")
            metrics.flush()

        started = window_started = time.monotonic()
        window: list[dict[str, float]] = []
        for step in range(1, steps + 1):
            window.append(trainer.step(step))
            if step % run.log_every == 0 or step == steps:
                now = time.monotonic()
                means = {name: float(np.mean([terms[name] for terms in window])) for name in window[0]}
                rate = len(window) * run.optimisation.batch_size / (now - window_started)
                left = (steps - step) * (now - started) / step
                text = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
                log.info(
                    "step %d/%d  %s  %.1f images/s  %d:%02d min to go", step, steps, text, rate, left // 60, left % 60
                )
                note({"step": step, **means, "images_per_s": rate, "elapsed_s": now - started})
                window, window_started = [], now
            last = step == steps
            if held_out and (last or step % run.evaluate_every == 0):
                scores = evaluate(network, held_out)
                figures = {name: value for subset in scores for name, value in scores[subset].figures(subset).items()}
                checkpoint = replace(checkpoint, metrics=figures)
                log.info("step %d, %d held-out scenes:\n%s", step, len(held_out), scores["all"].table())
                note({"step": step, "evaluation": figures})
                window_started = time.monotonic()
            if last or step % run.checkpoint_every == 0:
                checkpoint = replace(checkpoint, step=step)
                save(folder / "checkpoint.pt", checkpoint, trainer.optimiser)
    log.info("%s is written", folder / "checkpoint.pt")
    return checkpoint


class Trainer:
    """A network, its optimiser and the samples it learns from."""

    def __init__(self, network: Network, run: Run, samples: Sequence[Sample], device: torch.device) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.run, self.samples, self.device = run, samples, device
        self.optimiser = make_optimiser(network, run.optimisation)
        self.half = computes_bf16(run.optimisation, device)
        log.info("computing in %s on %s", "bf16 autocast" if self.half else "fp32", device)
        self.class_weights = None
        if run.optimisation.class_weights == "sqrt_inverse" and "segmentation" in run.network.tasks:
            self.class_weights = sqrt_inverse_weights(samples, len(SEGMENTATION)).to(device)
        self.generator = torch.Generator().manual_seed(run.seed)
        self.indices = _shuffled(len(samples), run.optimisation.batch_size, self.generator)

    def step(self, step: int) -> dict[str, float]:
        """Do one optimiser step (counted from 1) and return the loss terms."""
        batch = [self.samples[index] for index in next(self.indices)]
        inputs, targets = training_batch(
            batch, "thermal" in self.run.network.inputs, self.run.augmentation, self.generator
        )
        inputs = inputs.to(self.device, memory_format=torch.channels_last)
        targets = Targets(
            tuple(boxes.to(self.device) for boxes in targets.boxes),
            tuple(labels.to(self.device) for labels in targets.labels),
            tuple(boxes.to(self.device) for boxes in targets.ignored),
            targets.mask.to(self.device),
        )
        rate = learning_rate(step, self.run.optimisation)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            outputs = self.network(select_inputs(inputs, self.run.network.inputs))
        losses = task_losses(self.network, outputs, targets, self.class_weights)
        loss = total(losses)
        self.optimiser.zero_grad()
        loss.backward()
        if self.run.optimisation.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.run.optimisation.clip_norm)
        self.optimiser.step()
        return {name: float(value.detach()) for name, value in losses.items()}


def learning_rate(step: int, options: Optimisation) -> float:
    """Return the rate of a step counted from 1: linear warm-up to learning_rate, then half a cosine."""
    span = options.learning_rate - FINAL_LEARNING_RATE
    warmup = min(options.warmup_steps, options.steps)
    if step <= warmup:
        return FINAL_LEARNING_RATE + span * step / warmup
    done = (step - warmup) / max(options.steps - warmup, 1)
    return FINAL_LEARNING_RATE + span * 0.5 * (1 + math.cos(math.pi * done))


def make_optimiser(network: nn.Module, options: Optimisation) -> torch.optim.Optimizer:
    """Return the optimiser; biases and the scales of normalisation layers (one-dimensional) do not decay."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate)
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9)


def computes_bf16(options: Optimisation, device: torch.device) -> bool:
    """Say whether to compute in bf16: as asked, or, for `auto`, where the device does so natively."""
    if options.precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported()
        return torch.cpu._is_avx512_bf16_supported()
    return options.precision == "bf16"


def sqrt_inverse_weights(samples: Sequence[Sample], classes: int) -> Tensor:
    """Return float32 (classes,): 1 / sqrt(share of pixels), scaled so that the mean pixel weighs 1."""
    counts = np.zeros(256, np.int64)
    for sample in samples:
        counts += np.bincount(sample.mask.reshape(-1), minlength=256)
    counts[IGNORED_PIXEL] = 0
    share = counts[:classes] / max(counts[:classes].sum(), 1)
    weights = 1 / np.sqrt(np.maximum(share, 1e-6))
    weights /= (weights * share).sum()
    return torch.from_numpy(weights.clip(max=CLASS_WEIGHT_LIMIT).astype(np.float32))


def _shuffled(count: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield batches of indices for ever, every sample once per epoch; batches run over the epochs' ends."""
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(count, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
