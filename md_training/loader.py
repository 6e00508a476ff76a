"""The batches of a training: each follows from the run's seed and its step alone, whoever makes it, and when."""

import signal
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from md_perception.labels import DETECTION
from md_perception.results import Int64Array
from md_training.data.augment import distillation_batch, training_batch
from md_training.data.sample import Sample
from md_training.data.splits import DataError
from md_training.evaluate import class_ids
from md_training.losses import Targets
from md_training.presets import Run
from md_training.processes import ALONE, Processes

READ_AHEAD = 2
"""Batches that each worker has ready."""

GRACE_S = 30
"""How long a worker goes on after a SIGTERM."""

_ORDER, _AUGMENTATION, _NETWORK = 0, 1, 2  # what a seed is for


class LoaderError(RuntimeError):
    """A worker of the loader has died."""


@dataclass(frozen=True)
class Batch:
    """What a network learns from in one step, or one process's share of it.

    The truth of all images is in one tensor each: few pieces to hand from process to process and to a GPU.
    images: float32 (B, 3 or 6, h, w). teacher_thermal: float32 (B, 3, h, w), what a teacher is shown instead of
    channels 3 to 5, and seen: bool (B, h, w), True where the camera saw something; both None without a teacher.
    mask: uint8 (B, h, w). boxes: float32 (sum of G, 4), labels: int64 (sum of G,), ignored: float32 (sum of I, 4), and
    counts: int64 (2, B), G and I of each image; see losses.Targets.
    """

    images: Tensor
    teacher_thermal: Tensor | None
    seen: Tensor | None
    mask: Tensor
    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    counts: Tensor

    @property
    def teacher_images(self) -> Tensor:
        """float32 (B, 6, h, w)."""
        assert self.teacher_thermal is not None
        return torch.cat([self.images[:, :3], self.teacher_thermal], dim=1)

    @property
    def targets(self) -> Targets:
        objects, regions = self.counts.tolist()
        return Targets(
            self.boxes.split(objects), self.labels.split(objects), self.ignored.split(regions), self.mask.long()
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; images channels-last."""

        def moved(name: str, tensor: Tensor | None) -> Tensor | None:
            if tensor is None or name == "counts":
                return tensor
            layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
            return tensor.to(device, non_blocking=True, memory_format=layout)

        return self._each(moved)

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a GPU reads directly; the DataLoader's name for it."""
        return self._each(lambda name, tensor: None if tensor is None else tensor.pin_memory())

    def _each(self, change: Any) -> "Batch":
        return replace(self, **{field.name: change(field.name, getattr(self, field.name)) for field in fields(self)})


class Batches(Dataset[Batch]):
    """The batches of a run by their step, counted from 1.

    Every sample comes once per epoch; its augmentation follows from seed, step and its position in the batch, so that
    it does not matter among how many processes a batch is shared out.
    """

    def __init__(self, samples: Sequence[Sample], run: Run, processes: Processes = ALONE) -> None:
        """samples: at the network's size. Raises ValueError where the batch cannot be shared out."""
        self._samples, self._run = samples, run
        self._share = processes.share(run.optimisation.batch_size)

    def __getitem__(self, step: int) -> Batch:
        run = self._run
        order = batch_of(step, len(self._samples), run)
        samples = [self._samples[order[position]] for position in self._share]
        generators = [generator(run.seed, _AUGMENTATION, step, position) for position in self._share]
        full = seen = None
        if run.teachers:
            views, targets = distillation_batch(samples, run.augmentation, generators)
            images, full, seen = views.student, views.teacher[:, 3:].contiguous(), views.seen
        else:
            with_thermal = "thermal" in run.network.inputs
            images, targets = training_batch(samples, with_thermal, run.augmentation, generators)
        targets = of_classes(targets, run.network.detection_classes)
        counts = [[len(boxes) for boxes in targets.boxes], [len(boxes) for boxes in targets.ignored]]
        return Batch(
            images,
            full,
            seen,
            targets.mask.to(torch.uint8),
            torch.cat(targets.boxes),
            torch.cat(targets.labels),
            torch.cat(targets.ignored),
            torch.tensor(counts),
        )


class _Caught(Dataset[Batch | DataError]):
    """The batches, or the error in their data: a worker would wrap it into its traceback."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Batch | DataError:
        try:
            return self._batches[step]
        except DataError as error:
            return error


class Waited:
    """Batches as they come, and how long they were waited for. seconds: so far, of all of them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(self._batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def served(batches: Batches, steps: range, workers: int, device: torch.device) -> Generator[Batch, None, None]:
    """Yield the batches of the steps in order.

    workers: processes that make them ahead of time; 0 makes them here, when they are asked for.
    Raises DataError where a file cannot be used, LoaderError where a worker has died.
    """
    loader = DataLoader(
        _Caught(batches),
        batch_size=None,  # an item is a batch already
        sampler=steps,
        num_workers=workers,
        prefetch_factor=READ_AHEAD if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        # Samples that are kept in memory are shared with forked workers, and copied for others.
        multiprocessing_context="fork" if workers else None,
    )
    items = _forked(loader)
    try:
        for item in items:
            if isinstance(item, DataError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LoaderError(
            f"a worker of the loader has died ({str(error).splitlines()[0]}): mostly for lack of memory, or of shared "
            "memory (/dev/shm); use fewer --workers"
        ) from None
    finally:  # here, not when an error that is still looked at lets go of the iterator
        end_workers = getattr(items, "_shutdown_workers", None)
        if end_workers is not None:
            end_workers()


def _forked(loader: DataLoader[Batch | DataError]) -> Iterator[Any]:
    """Start the workers of a loader."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # ends OpenCV's threads: a forked process would wait for the ones that it does not have
    with warnings.catch_warnings():
        # Python's general warning of forks beside threads: what the workers use runs in one thread.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        items = iter(loader)
    cv2.setNumThreads(threads)
    return items


def _start_worker(number: int) -> None:
    # PyTorch has set itself to one thread already. Ctrl-C and SIGTERM often reach all processes of a group: the
    # training wants to finish its step, and then ends the workers; they notice as well when it has died.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    cv2.setNumThreads(1)


def of_classes(targets: Targets, names: Sequence[str]) -> Targets:
    """Return the truth of a network that tells these classes apart: their labels counted from 0, the others gone."""
    index = torch.full((len(DETECTION),), -1)
    index[torch.from_numpy(class_ids(names))] = torch.arange(len(names))
    numbers = [index.to(labels.device)[labels] for labels in targets.labels]
    boxes = [boxes[number >= 0] for boxes, number in zip(targets.boxes, numbers, strict=True)]
    return replace(targets, boxes=tuple(boxes), labels=tuple(number[number >= 0] for number in numbers))


def batch_of(step: int, count: int, run: Run) -> list[int]:
    """Return the indices of a step's samples, of `count`: every sample once per epoch; batches run over their ends."""
    size = run.optimisation.batch_size
    indices: list[int] = []
    position = (step - 1) * size
    while len(indices) < size:
        epoch, start = divmod(position + len(indices), count)
        indices += _order(run.seed, epoch, count)[start : start + size - len(indices)].tolist()
    return indices


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Int64Array:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)


def seed_network(run: Run, step: int, rank: int) -> None:
    """Seed what a network draws in a step (dropout), so that a resumed run draws the same."""
    torch.manual_seed(seed_of(run.seed, _NETWORK, step, rank))


def generator(*numbers: int) -> torch.Generator:
    """Return a generator that these numbers decide, the same in every process."""
    return torch.Generator().manual_seed(seed_of(*numbers))


def seed_of(*numbers: int) -> int:
    """Return a seed that these numbers decide."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
