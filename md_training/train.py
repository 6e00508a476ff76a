"""The training loop of both stages, teacher or student: plain, native torch, one process.

A run leaves in its folder run.json, metrics.jsonl (one line per logged step and per evaluation), checkpoint.pt and, if
wanted, TensorBoard's events.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from md_perception.labels import DETECTION, SEGMENTATION
from md_training.checkpoint import Checkpoint, Progress, git_revision, load, load_progress, save
from md_training.data.augment import distillation_batch, training_batch
from md_training.data.sample import Sample
from md_training.data.sources import evaluation_samples, training_data
from md_training.distillation import distillation_losses, teach
from md_training.evaluate import class_ids, evaluate
from md_training.losses import IGNORED_PIXEL, LossError, Targets, gradient_norms, task_losses, total
from md_training.models.backbone import initialise
from md_training.models.networks import Network, make_network, multiply_accumulates, parameter_count, select_inputs
from md_training.presets import Optimisation, Run

log = logging.getLogger(__name__)

FINAL_LEARNING_RATE = 1e-6
"""Where the warm-up starts and the cosine ends."""
CLASS_WEIGHT_LIMIT = 10.0
"""No class weighs more than this times the mean pixel."""


GRADIENT_CHECK_STEPS = 20
"""Steps within which every term of the loss has to have had a gradient."""
MAY_BE_SILENT = "gaff_inter"
"""End of the name of the term that has none as long as neither camera's mask is the better one anywhere."""

_ORDER, _AUGMENTATION = 0, 1  # what a seed is for


def train(
    run: Run,
    folder: Path,
    *,
    workers: int = 2,
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = False,
    stop_after: int | None = None,
) -> Checkpoint:
    """Train a run and return its last checkpoint, which is also written to the folder (made if missing).

    workers: processes that render the scenes before training starts. resume: go on from the folder's checkpoint, as if
    the run had never stopped; without a checkpoint the run starts. tensorboard: write events beside metrics.jsonl.
    stop_after: write a checkpoint after this step, and return; to be resumed.
    Raises LossError, with all terms, where the loss is not finite or a term never has a gradient; the last checkpoint
    stays. Raises ValueError where the run to be resumed is another one, CheckpointError where a teacher is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "checkpoint.pt"
    going_on = resume and place.exists()
    torch.manual_seed(run.seed)
    network = make_network(run.network)
    if going_on:
        checkpoint = _to_be_resumed(place, run)
        log.info("run %s goes on after step %d", checkpoint.run_id, checkpoint.step)
    else:
        for backbone in network.backbones():
            initialise(backbone, run.backbone_weights)
        run_id = f"{run.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        checkpoint = Checkpoint(run, run_id, 0, network, {}, git_revision())
        record = {"run_id": run_id, "git_revision": checkpoint.git_revision, "run": run.to_json()}
        (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        log.info("run %s\n%s", run_id, json.dumps(run.to_json(), indent=2))
    log.info(
        "network: %.2f M parameters, %.2f GMACs at %dx%d",
        parameter_count(network) / 1e6,
        multiply_accumulates(network) / 1e9,
        *run.network.input_size,
    )
    teachers = load_teachers(run)
    tasks, classes = run.network.tasks, run.network.detection_classes
    data = training_data(run.data, tasks, classes, run.network.input_size, workers, with_full=bool(teachers))
    log.info("training data: %s", data.description)
    held_out = evaluation_samples(run.data)

    trainer = Trainer(network, run, data.samples, torch.device(device), [teacher.network for teacher in teachers])
    if going_on:
        trainer.restore(checkpoint.network, load_progress(place))
    checkpoint = replace(
        checkpoint,
        network=trainer.result,
        teachers=tuple(dict.fromkeys(teacher.run_id for teacher in teachers)),
        training_data=data.description,
        split_hashes=data.split_hashes,
    )
    first, steps = checkpoint.step + 1, run.optimisation.steps
    final = steps if stop_after is None else min(steps, stop_after)
    with RunLog(folder, checkpoint.step, tensorboard) as notes:
        started = window_started = time.monotonic()
        logged = checkpoint.step
        for step in range(first, final + 1):
            trainer.step(step)
            if step % run.log_every == 0 or step == steps:
                now = time.monotonic()
                means = {name: float(np.mean([terms[name] for terms in trainer.window])) for name in trainer.window[0]}
                rate = (step - logged) * run.optimisation.batch_size / (now - window_started)
                left = (steps - step) * (now - started) / (step - first + 1)
                text = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
                log.info(
                    "step %d/%d  %s  %.1f images/s  %d:%02d min to go", step, steps, text, rate, left // 60, left % 60
                )
                notes.write(step, {**means, "images_per_s": rate, "elapsed_s": now - started})
                trainer.window, window_started, logged = [], now, step
            if held_out and (step == steps or step % run.evaluate_every == 0):
                scores = evaluate(trainer.result, held_out)
                figures = {name: value for subset in scores for name, value in scores[subset].figures(subset).items()}
                checkpoint = replace(checkpoint, metrics=figures)
                log.info("step %d, %d held-out samples:\n%s", step, len(held_out), scores["all"].table())
                notes.write_evaluation(step, figures)
                window_started = time.monotonic()
            if step == final or step % run.checkpoint_every == 0:
                checkpoint = replace(checkpoint, step=step)
                save(place, checkpoint, trainer.progress())
    log.info("%s is written", place)
    return checkpoint


def _to_be_resumed(place: Path, run: Run) -> Checkpoint:
    """Return the checkpoint; raise ValueError, with the settings that differ, where it is of another run."""
    checkpoint = load(place)
    if checkpoint.run != run:
        there, wanted = checkpoint.run.to_json(), run.to_json()
        differing = [key for key in wanted if there.get(key) != wanted[key]]
        raise ValueError(
            f"{place} is of a run with other settings ({', '.join(differing)}): resume with the same ones, or name "
            "another folder"
        )
    return checkpoint


def load_teachers(run: Run) -> list[Checkpoint]:
    """Return the run's teachers; raise ValueError where they and the student's distilled tasks do not match."""
    teachers = [load(Path(path)) for path in run.teachers]
    if not teachers:
        return []
    for path, teacher in zip(run.teachers, teachers, strict=True):
        size = teacher.run.network.input_size
        if teacher.run.network.architecture != "two_stream":
            raise ValueError(f"{path} is a {teacher.run.network.architecture} network: a teacher is a two_stream one")
        if size != run.network.input_size:
            raise ValueError(f"{path} sees {size}, the student {run.network.input_size}: train both at one input_size")
    for task, joint in run.network.joint.items():
        able = [
            path for path, teacher in zip(run.teachers, teachers, strict=True) if task in teacher.network.settings.tasks
        ]
        if joint.blocks and len(able) != 1:
            raise ValueError(
                f"the student distils {task}, and {len(able)} of its {len(teachers)} teachers have that task: name "
                "exactly one for each task"
            )
    return teachers


class RunLog:
    """metrics.jsonl and, if wanted, TensorBoard's events of one folder."""

    def __init__(self, folder: Path, after_step: int, tensorboard: bool) -> None:
        """after_step: of a run that goes on; what an earlier process wrote beyond it is dropped. 0 starts anew.

        Raises ValueError where TensorBoard is wanted and not installed.
        """
        path = folder / "metrics.jsonl"
        kept = path.read_text().splitlines(keepends=True) if after_step and path.exists() else []
        # A killed process may have left half a line.
        kept = [line for line in kept if line.endswith("\n") and json.loads(line)["step"] <= after_step]
        path.write_text("".join(kept))
        self._metrics = path.open("a")
        self._events = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(f"TensorBoard: {error}; pip install tensorboard, or --no-tensorboard") from None
            self._events = SummaryWriter(str(folder), purge_step=after_step + 1 if after_step else None)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Note the loss terms and speed."""
        self._line({"step": step, **values})
        self._scalars("train", step, values)

    def write_evaluation(self, step: int, figures: dict[str, float]) -> None:
        self._line({"step": step, "evaluation": figures})
        self._scalars("evaluation", step, figures)

    def _line(self, values: dict[str, object]) -> None:
        self._metrics.write(json.dumps(values) + "\n")
        self._metrics.flush()

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{group}/{name}", value, step)


class Trainer:
    """A network, its optimiser, the samples it learns from and, in the second stage, its frozen teachers.

    The samples of a step and their augmentation follow from the run's seed and the step alone. window: the terms of
    the steps since it was last emptied.
    """

    def __init__(
        self,
        network: Network,
        run: Run,
        samples: Sequence[Sample],
        device: torch.device,
        teachers: Sequence[Network] = (),
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.teachers = [teacher.to(device).to(memory_format=torch.channels_last).eval() for teacher in teachers]
        for teacher in self.teachers:
            teacher.requires_grad_(False)
        self.run, self.samples, self.device = run, samples, device
        self.optimiser = make_optimiser(network, run.optimisation)
        self.half = computes_bf16(run.optimisation, device)
        log.info("computing in %s on %s", "bf16 autocast" if self.half else "fp32", device)
        self.class_weights = None
        if run.optimisation.class_weights == "sqrt_inverse" and "segmentation" in run.network.tasks:
            self.class_weights = sqrt_inverse_weights(samples, len(SEGMENTATION)).to(device)
        self.average: AveragedModel | None = None
        if run.optimisation.ema_decay > 0:
            moving = get_ema_multi_avg_fn(run.optimisation.ema_decay)
            self.average = AveragedModel(self.network, multi_avg_fn=moving, use_buffers=True)
        self.window: list[dict[str, float]] = []
        self._silent: set[str] | None = None  # terms without a gradient so far; None before the first step
        self._steps_checked = 0

    @property
    def result(self) -> Network:
        """What is evaluated and saved: the network, or the moving average of its weights."""
        if self.average is None:
            return self.network
        averaged = self.average.module
        assert isinstance(averaged, Network)
        return averaged

    def step(self, step: int) -> dict[str, float]:
        """Do one optimiser step (counted from 1) and return the loss terms."""
        losses = self._losses(step)
        loss = total(losses)
        self._check_gradients(losses)
        rate = learning_rate(step, self.run.optimisation)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        if self.run.optimisation.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.run.optimisation.clip_norm)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        terms = {name: float(value.detach()) for name, value in losses.items()}
        self.window.append(terms)
        return terms

    def _losses(self, step: int) -> dict[str, Tensor]:
        """Return the terms of the task and of the distillation."""
        batch = [self.samples[index] for index in batch_of(step, len(self.samples), self.run)]
        generator = _generator(self.run.seed, _AUGMENTATION, step)
        network, inputs = self.run.network, self.run.network.inputs
        if not self.teachers:
            images, targets = training_batch(batch, "thermal" in inputs, self.run.augmentation, generator)
            views = None
        else:
            views, targets = distillation_batch(batch, self.run.augmentation, generator)
            images = views.student
        targets = of_classes(targets, network.detection_classes)
        targets = Targets(
            tuple(boxes.to(self.device) for boxes in targets.boxes),
            tuple(labels.to(self.device) for labels in targets.labels),
            tuple(boxes.to(self.device) for boxes in targets.ignored),
            targets.mask.to(self.device),
        )
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            outputs = self.network(select_inputs(self._on_device(images), network.inputs))
            taught = (
                [] if views is None else [teach(teacher, self._on_device(views.teacher)) for teacher in self.teachers]
            )
        losses = task_losses(self.network, outputs, targets, self.class_weights)
        if views is not None:
            seen = views.seen.to(self.device)
            for teacher in taught:
                losses |= distillation_losses(outputs, teacher, self.run.distillation, seen)
        return losses

    def _on_device(self, images: Tensor) -> Tensor:
        return images.to(self.device, memory_format=torch.channels_last)

    def _check_gradients(self, losses: dict[str, Tensor]) -> None:
        """Raise LossError where, over the first steps, a term of the loss never had a gradient."""
        if self._silent is None:
            self._silent = {name for name in losses if not name.endswith(MAY_BE_SILENT)}
        if not self._silent:
            return
        norms = gradient_norms({name: losses[name] for name in self._silent}, self.network.parameters())
        self._silent = {name for name, norm in norms.items() if norm == 0}
        self._steps_checked += 1
        if self._silent and self._steps_checked >= GRADIENT_CHECK_STEPS:
            raise LossError(
                f"{', '.join(sorted(self._silent))}: no gradient in {self._steps_checked} steps: configured in "
                "vain; look whether the data have the truth it needs, or leave it out"
            )

    def progress(self) -> Progress:
        """Return what `restore` needs besides the result."""
        random = [torch.get_rng_state()]
        if self.device.type == "cuda":
            random.append(torch.cuda.get_rng_state(self.device))
        return Progress(
            optimiser=self.optimiser.state_dict(),
            random=tuple(random),
            trained=None if self.average is None else self.network.state_dict(),
            averaged_steps=0 if self.average is None else int(self.average.n_averaged),
            window=tuple(self.window),
        )

    def restore(self, result: Network, progress: Progress) -> None:
        """Go on where a trainer of the same run stopped. result: what it had made so far."""
        self.result.load_state_dict(result.state_dict())
        if self.average is not None:
            assert progress.trained is not None
            self.network.load_state_dict(progress.trained)
            self.average.n_averaged.fill_(progress.averaged_steps)
        self.optimiser.load_state_dict(progress.optimiser)
        self.window = list(progress.window)
        torch.set_rng_state(progress.random[0])
        if self.device.type == "cuda" and len(progress.random) > 1:
            torch.cuda.set_rng_state(progress.random[1], self.device)


def of_classes(targets: Targets, names: Sequence[str]) -> Targets:
    """Return the truth of a network that tells these classes apart: their labels counted from 0, the others gone."""
    index = torch.full((len(DETECTION),), -1)
    index[torch.from_numpy(class_ids(names))] = torch.arange(len(names))
    numbers = [index[labels] for labels in targets.labels]
    boxes = [boxes[number >= 0] for boxes, number in zip(targets.boxes, numbers, strict=True)]
    return replace(targets, boxes=tuple(boxes), labels=tuple(number[number >= 0] for number in numbers))


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


def batch_of(step: int, count: int, run: Run) -> list[int]:
    """Return the indices of a step's samples, of `count`: every sample once per epoch; batches run over their ends."""
    size = run.optimisation.batch_size
    indices: list[int] = []
    position = (step - 1) * size
    while len(indices) < size:
        epoch, start = divmod(position + len(indices), count)
        order = torch.randperm(count, generator=_generator(run.seed, _ORDER, epoch))
        indices += order[start : start + size - len(indices)].tolist()
    return indices


def _generator(*numbers: int) -> torch.Generator:
    """Return a generator that these numbers decide, the same in every process."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
