"""The training loop of both stages, teacher or student: plain torch, in one process or, under torchrun, in several.

A run leaves in its folder run.json, metrics.jsonl (one line per logged step and per evaluation), checkpoint.pt and, if
wanted, TensorBoard's events.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from md_perception.labels import SEGMENTATION
from md_training.checkpoint import Checkpoint, Progress, git_revision, load, load_progress
from md_training.data.sample import Sample
from md_training.data.sources import evaluation_samples, training_data
from md_training.distillation import distillation_losses, taught_targets, teach
from md_training.interruption import StopRequest, last_checkpoint_named
from md_training.loader import Batch, Batches, Waited, of_classes, seed_network, served
from md_training.losses import IGNORED_PIXEL, LossError, check_finite, gradient_norms, task_losses, total
from md_training.models.backbone import initialise
from md_training.models.joint import JointBranch
from md_training.models.networks import (
    Network,
    Student,
    make_network,
    multiply_accumulates,
    one_stream_weights,
    parameter_count,
    select_inputs,
)
from md_training.presets import Optimisation, Run
from md_training.processes import ALONE, Processes, join, with_batch_norm
from md_training.record import CHECKPOINT, PREVIOUS, Record, only_training
from md_training.sanity import check_batch, check_first_loss

log = logging.getLogger(__name__)

FINAL_LEARNING_RATE = 1e-6
"""Where the warm-up starts and the cosine ends."""
CLASS_WEIGHT_LIMIT = 10.0
"""No class weighs more than this times the mean pixel."""
COUNTED_SAMPLES = 1000
"""Samples whose pixels are counted for the weights of the classes, at most; evenly spread."""
GRADIENT_CHECK_STEPS = 20
"""Steps within which every term of the loss has to have had a gradient; a shorter run has until its end."""
MAY_BE_SILENT = "gaff_inter"
"""End of the name of the term that has none as long as neither camera's mask is the better one anywhere."""


def train(
    run: Run,
    folder: Path,
    *,
    workers: int = 0,
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = False,
    stop_after: int | None = None,
    scene_store: Path | None = None,
) -> Checkpoint:
    """Train a run and return its last checkpoint, which is also written to the folder (made if missing).

    Under torchrun, to be called in every process, with a folder that all of them see. SIGINT and SIGTERM end the
    training after the current step, with a checkpoint.
    workers: processes that prepare the data, of each process that trains. device: see processes.join. resume: go on
    from the folder's checkpoint, as if the run had never stopped; without a checkpoint the run starts. tensorboard:
    write events beside metrics.jsonl. stop_after: write a checkpoint after this step, and return; to be resumed.
    scene_store: folder in which rendered scenes are kept for other runs.
    Raises LossError, with all terms, where the loss is not finite or a term never has a gradient; OutOfMemory;
    DataError where a file is damaged; LoaderError where a worker has died. The last checkpoint stays.
    Raises ValueError where the run to be resumed is another one or another training writes into the folder,
    CheckpointError where a teacher is missing. A start that fails leaves an earlier run in the folder as it is.
    """
    processes = join(device)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if processes.first:
            stack.enter_context(only_training(folder))
        network, checkpoint, progress = _begun(run, folder, resume)
        teachers = load_teachers(run)
        settings, with_truth = run.network, run.distillation.task_loss == "labels"
        data = training_data(
            run.data,
            settings.tasks,
            settings.detection_classes,
            settings.input_size,
            workers,
            bool(teachers),
            with_truth,
            scene_store,
        )
        log.info("training data: %s", data.description)
        trainer = Trainer(
            network, run, processes, [teacher.network for teacher in teachers], class_weights(run, data.samples)
        )
        if progress is not None:
            trainer.restore(checkpoint.network, progress)
        checkpoint = replace(
            checkpoint,
            network=trainer.result,
            teachers=tuple(dict.fromkeys(teacher.run_id for teacher in teachers)),
            training_data=data.description,
            split_hashes=data.split_hashes,
        )
        batches = Batches(data.samples, run, processes)
        final = min(run.optimisation.steps, stop_after or run.optimisation.steps)
        steps = range(checkpoint.step + 1, final + 1)
        record = None
        if processes.first:  # from here on the folder is this run's; what can be wrong with its settings comes before
            record = stack.enter_context(Record(folder, checkpoint, evaluation_samples(run.data), tensorboard))
        stop = stack.enter_context(StopRequest())
        stack.enter_context(last_checkpoint_named(run, folder / CHECKPOINT, processes.device))
        waited = Waited(stack.enter_context(closing(served(batches, steps, workers, processes.device))))

        for step, batch in zip(steps, waited, strict=True):
            trainer.step(step, batch)
            last = processes.any(stop.asked) or step == final
            if record is not None:
                record.step(step, trainer, last, waited.seconds)
            if last:
                checkpoint = replace(checkpoint if record is None else record.checkpoint, step=step)
                break

    processes.wait()
    log.info("%s is written, after step %d of %d", folder / CHECKPOINT, checkpoint.step, run.optimisation.steps)
    if checkpoint.step < final:
        log.info("%s has stopped the training: --resume goes on", stop.name or "a signal to another process")
    return checkpoint


def _begun(run: Run, folder: Path, resume: bool) -> tuple[Network, Checkpoint, Progress | None]:
    """Return the network with its first weights and a checkpoint of step 0; or, of a run that goes on, a network, the
    folder's checkpoint and what the trainer needs to go on from it.
    """
    path = folder / CHECKPOINT
    if resume and not path.exists() and (folder / PREVIOUS).exists():
        raise ValueError(
            f"{folder} has no {CHECKPOINT} to go on from, only the {PREVIOUS} of an earlier run: rename that one to go "
            "on with it, or start anew without --resume"
        )
    torch.manual_seed(run.seed)
    network = make_network(run.network)
    log.info(
        "network: %.2f M parameters, %.2f GMACs at %dx%d",
        parameter_count(network) / 1e6,
        multiply_accumulates(network) / 1e9,
        *run.network.input_size,
    )
    if resume and path.exists():
        checkpoint = _to_be_resumed(path, run)
        log.info("run %s goes on after step %d", checkpoint.run_id, checkpoint.step)
        return network, checkpoint, load_progress(path)
    for backbone in network.backbones():
        initialise(backbone, run.backbone_weights)
    if run.first_weights:
        take_weights(network, Path(run.first_weights))
    run_id = f"{run.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    return network, Checkpoint(run, run_id, 0, network, {}, git_revision()), None


def take_weights(network: Network, path: Path) -> None:
    """Take over every weight of a checkpoint's network that this one has by the same name and in the same shape.

    A student also takes them of a teacher and of a student with more inputs: see networks.one_stream_weights.

    Raises CheckpointError where the file is no checkpoint, ValueError where nothing of it fits.
    """
    own, other = network.state_dict(), load(path).network
    is_student = isinstance(network, Student)
    given = one_stream_weights(other, network.settings.inputs) if is_student else other.state_dict()
    fitting = {name: weight for name, weight in given.items() if name in own and own[name].shape == weight.shape}
    if not any(weight.ndim > 1 for weight in fitting.values()):
        raise ValueError(f"first_weights {path}: none of its weights fits this network; it is of another kind")
    network.load_state_dict(own | fitting)
    new = sorted({".".join(name.split(".")[:2]) for name in own.keys() - fitting.keys()})
    log.info(
        "%d of %d tensors start from %s%s", len(fitting), len(own), path, f"; new: {', '.join(new)}" if new else ""
    )


def _to_be_resumed(path: Path, run: Run) -> Checkpoint:
    """Return the checkpoint; raise ValueError, with the settings that differ, where it is of another run."""
    checkpoint = load(path)
    if checkpoint.run != run:
        there, wanted = _dotted(checkpoint.run.to_json()), _dotted(run.to_json())
        differing = [
            f"{key} {there.get(key, 'unset')} -> {wanted.get(key, 'unset')}"
            for key in dict.fromkeys([*there, *wanted])
            if there.get(key, "unset") != wanted.get(key, "unset")
        ]
        raise ValueError(
            f"{path} is of a run with other settings ({', '.join(differing)}): resume with the same ones, or name "
            "another folder"
        )
    return checkpoint


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dict, by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def load_teachers(run: Run) -> list[Checkpoint]:
    """Return the run's teachers; raise ValueError where they and the student's tasks do not match."""
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
        able = [teacher for teacher in teachers if task in teacher.network.settings.tasks]
        if joint.blocks and len(able) != 1:
            raise ValueError(
                f"the student distils {task}, and {len(able)} of its {len(teachers)} teachers have that task: name "
                "exactly one for each task"
            )
        if run.distillation.task_loss == "teacher" and task in run.network.tasks and len(able) != 1:
            raise ValueError(
                f"the student learns {task} from its teachers' results (task_loss teacher), and {len(able)} of its "
                f"{len(teachers)} teachers have that task: name exactly one for each task"
            )
        if run.distillation.task_loss == "teacher" and task == "detection" and task in run.network.tasks:
            known = able[0].network.settings.detection_classes
            if unknown := set(run.network.detection_classes) - set(known):
                raise ValueError(
                    f"the teacher of detection does not know {', '.join(sorted(unknown))}, which would be trained as "
                    f"background: set network.detection_classes to {' '.join(known)}"
                )
    return teachers


class Trainer:
    """A network, its optimiser and, in the second stage, its frozen teachers.

    window: the terms of the steps since it was last emptied. gradients: of the last step, the norm of each term's own
    gradient on the backbones; None where the run does not ask for it then.
    """

    def __init__(
        self,
        network: Network,
        run: Run,
        processes: Processes = ALONE,
        teachers: Sequence[Network] = (),
        class_weights: Tensor | None = None,
    ) -> None:
        """class_weights: see losses.segmentation_loss. Raises as with_batch_norm does."""
        self.run, self.processes, self.device = run, processes, processes.device
        self.teachers = [teacher.to(self.device).to(memory_format=torch.channels_last).eval() for teacher in teachers]
        for teacher in self.teachers:
            teacher.requires_grad_(False)
        if not teachers or run.distillation.attention_weight == 0:
            _freeze_attention(network)
        network = with_batch_norm(network, run.optimisation.batch_norm, processes)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.class_weights = None if class_weights is None else class_weights.to(self.device)
        self.optimiser = make_optimiser(self.network, run.optimisation)
        self.half = computes_bf16(run.optimisation, self.device)
        log.info("computing in %s on %s", "bf16 autocast" if self.half else "fp32", self.device)
        self.average: AveragedModel | None = None
        if run.optimisation.ema_decay > 0:
            moving = get_ema_multi_avg_fn(run.optimisation.ema_decay)
            self.average = AveragedModel(self.network, multi_avg_fn=moving, use_buffers=True)
        self._wrapped = processes.wrapped(self.network)
        self.window: list[dict[str, float]] = []
        self.gradients: dict[str, float] | None = None
        self._silent: set[str] | None = None  # terms without a gradient so far; None before the first step
        self._steps_checked = 0
        self._begun = False

    @property
    def result(self) -> Network:
        """What is evaluated and saved: the network, or the moving average of its weights."""
        if self.average is None:
            return self.network
        averaged = self.average.module
        assert isinstance(averaged, Network)
        return averaged

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """Do one optimiser step (counted from 1) with this process's share of its batch; return the loss terms of the
        whole batch."""
        optimisation = self.run.optimisation
        seed_network(self.run, step, self.processes.rank)
        batch = batch.to(self.device)
        losses = self._losses(batch)
        means = self.processes.mean(torch.stack(list(losses.values())))
        terms = dict(zip(losses, means.tolist(), strict=True))
        check_finite(terms)
        if not self._begun:
            check_batch(batch, self.network)
            check_first_loss(terms)
            self._begun = True
        last = step == optimisation.steps
        self._check_gradients(losses, last)
        every = self.run.gradients_every
        self.gradients = self._gradient_norms(losses, self._backbone) if every and (last or step % every == 0) else None
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, optimisation)
        self.optimiser.zero_grad()
        total(losses).backward()
        if optimisation.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), optimisation.clip_norm)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.window.append(terms)
        return terms

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the task and of the distillation."""
        network, distillation = self.run.network, self.run.distillation
        self._to_training_mode()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            outputs = self._wrapped(select_inputs(batch.images, network.inputs))
            taught = [teach(teacher, batch.teacher_images) for teacher in self.teachers]
        targets = batch.targets
        if distillation.task_loss == "teacher":
            assert batch.seen is not None
            targets = taught_targets(self.teachers, taught, distillation, batch.seen)
            targets = of_classes(targets, network.detection_classes)
        losses = task_losses(self.network, outputs, targets, self.class_weights, self.processes)
        for teacher in taught:
            losses |= distillation_losses(outputs, teacher, distillation, batch.seen, self.processes)
        return losses

    def _to_training_mode(self) -> None:
        self._wrapped.train()
        if self.run.optimisation.batch_norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _check_gradients(self, losses: dict[str, Tensor], last: bool) -> None:
        """Raise LossError where, over the first steps, a term of the loss never had a gradient in any process.

        last: the run ends with this step, and so does the check.
        """
        if self._silent is None:
            self._silent = {name for name in losses if not name.endswith(MAY_BE_SILENT)}
        if not self._silent:
            return
        norms = self._gradient_norms({name: losses[name] for name in sorted(self._silent)}, self.network.parameters())
        self._silent = {name for name, norm in norms.items() if norm == 0}
        self._steps_checked += 1
        if self._silent and (last or self._steps_checked >= GRADIENT_CHECK_STEPS):
            raise LossError(
                f"{', '.join(sorted(self._silent))}: no gradient in {self._steps_checked} steps: configured in "
                "vain; look whether the data have the truth it needs, or leave it out"
            )

    @property
    def _backbone(self) -> Iterator[nn.Parameter]:
        return (parameter for backbone in self.network.backbones() for parameter in backbone.parameters())

    def _gradient_norms(self, losses: dict[str, Tensor], parameters: Iterable[nn.Parameter]) -> dict[str, float]:
        """Return the norm of each term's own gradient, the mean over the processes."""
        norms = gradient_norms(losses, parameters)
        means = self.processes.mean(torch.tensor(list(norms.values()), device=self.device)).tolist()
        return dict(zip(norms, means, strict=True))

    def progress(self) -> Progress:
        """Return what `restore` needs besides the result."""
        return Progress(
            optimiser=self.optimiser.state_dict(),
            trained=None if self.average is None else self.network.state_dict(),
            averaged_steps=0 if self.average is None else int(self.average.n_averaged),
            window=tuple(self.window),
            silent=None if self._silent is None else tuple(sorted(self._silent)),
            steps_checked=self._steps_checked,
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
        self._silent = None if progress.silent is None else set(progress.silent)
        self._steps_checked = progress.steps_checked


def _freeze_attention(network: Network) -> None:
    """Ask no gradient for heads that no loss reaches; several processes would wait for it."""
    for module in network.modules():
        if isinstance(module, JointBranch) and not module.settings.modulate:
            module.attention.requires_grad_(False)


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


def class_weights(run: Run, samples: Sequence[Sample]) -> Tensor | None:
    """Return what the classes of the segmentation weigh, float32 (9,), as the run wants it; None: all the same."""
    if run.optimisation.class_weights == "none" or "segmentation" not in run.network.tasks:
        return None
    counted = np.linspace(0, len(samples) - 1, min(len(samples), COUNTED_SAMPLES)).round().astype(int)
    log.info("the classes' weights follow from the masks of %d samples", len(counted))
    return sqrt_inverse_weights((samples[index] for index in counted.tolist()), len(SEGMENTATION))


def sqrt_inverse_weights(samples: Iterable[Sample], classes: int) -> Tensor:
    """Return float32 (classes,): 1 / sqrt(share of pixels), scaled so that the mean pixel weighs 1."""
    counts = np.zeros(256, np.int64)
    for sample in samples:
        counts += np.bincount(sample.mask.reshape(-1), minlength=256)
    counts[IGNORED_PIXEL] = 0
    share = counts[:classes] / max(counts[:classes].sum(), 1)
    weights = 1 / np.sqrt(np.maximum(share, 1e-6))
    weights /= (weights * share).sum()
    return torch.from_numpy(weights.clip(max=CLASS_WEIGHT_LIMIT).astype(np.float32))
