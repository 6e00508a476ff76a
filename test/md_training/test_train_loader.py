"""Batches: the same whoever makes them, in workers or here, by one process or several; errors in them are one line."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_trees import write_yolo
from painted_samples import painted_sample

from md_training.data.augment import Augmentation
from md_training.data.sample import Sample, at_network_size
from md_training.data.sources import YoloData, training_data
from md_training.data.splits import DataError
from md_training.data.synthetic import SceneData, network_sample
from md_training.loader import Batch, Batches, LoaderError, Waited, batch_of, served
from md_training.losses import IGNORED_PIXEL
from md_training.models.networks import NetworkSettings
from md_training.presets import Optimisation, Run
from md_training.processes import Processes

SIZE = (64, 64)
RUN = Run(
    name="loaded",
    network=NetworkSettings(input_size=SIZE),
    augmentation=Augmentation(),
    optimisation=Optimisation(steps=9, batch_size=4),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [at_network_size(painted_sample(seed), SIZE) for seed in range(6)]


def values(batch: Batch) -> dict[str, torch.Tensor]:
    return {field.name: getattr(batch, field.name) for field in fields(batch) if getattr(batch, field.name) is not None}


def assert_equal(first: Batch, second: Batch) -> None:
    assert values(first).keys() == values(second).keys()
    for name, value in values(first).items():
        assert torch.equal(value, values(second)[name]), name


def test_workers_make_the_batches_that_are_made_here(samples: list[Sample]) -> None:
    batches = Batches(samples, replace(RUN, teachers=("teacher.pt",)))
    alone = list(served(batches, range(1, 6), 0, CPU))
    assert alone[0].teacher_images.shape == (4, 6, 64, 64)
    helped = list(served(batches, range(1, 6), 2, CPU))
    late = list(served(batches, range(4, 6), 1, CPU))  # a resumed run
    assert len(helped) == 5
    for first, second in zip(alone, helped, strict=True):
        assert_equal(first, second)
    for first, second in zip(alone[3:], late, strict=True):
        assert_equal(first, second)
    assert not torch.equal(alone[0].images, alone[3].images)


def test_shares_of_a_batch_are_the_parts_of_the_whole(samples: list[Sample]) -> None:
    whole = Batches(samples, RUN)[2]
    shares = []
    for rank in range(2):
        processes = Processes()
        processes.rank, processes.count = rank, 2
        shares.append(Batches(samples, RUN, processes)[2])
    for name, value in values(whole).items():
        parts = torch.cat([values(share)[name] for share in shares], dim=1 if name == "counts" else 0)
        assert torch.equal(parts, value), name
    assert not torch.equal(shares[0].images, shares[1].images)


def test_equal_samples_of_a_batch_are_augmented_differently(samples: list[Sample]) -> None:
    images = Batches([samples[0]] * 4, RUN)[1].images
    assert not any(torch.equal(images[first], images[second]) for first in range(4) for second in range(first))


def test_truth_of_each_image_is_found_again(samples: list[Sample]) -> None:
    batches = Batches(samples, replace(RUN, augmentation=replace(RUN.augmentation, flip=0, zoom=0)))
    targets = batches[1].to(CPU).targets
    assert targets.mask.dtype == torch.int64
    assert IGNORED_PIXEL in targets.mask  # the padding survives the 8 bits on the way
    order = batch_of(1, 6, RUN)
    for boxes, labels, index in zip(targets.boxes, targets.labels, order, strict=True):
        assert boxes.tolist() == samples[index].boxes.tolist()
        assert labels.tolist() == samples[index].labels.tolist()


def test_streamed_scenes_are_those_of_the_seeds_and_never_come_twice() -> None:
    data = SceneData(camera_size=(96, 64), thermal_size=(24, 16), scenes=36, streamed=True)
    streamed = training_data(data, ("detection",), ("person",), SIZE, 0, False).samples
    assert len(streamed) == 36
    expected = network_sample(data.first_seed + 5, data, SIZE)
    assert np.array_equal(streamed[5].rgb, expected.rgb)
    assert streamed[5].name == expected.name
    drawn = [index for step in range(1, 10) for index in batch_of(step, 36, RUN)]
    assert sorted(drawn) == list(range(36))  # 9 steps of 4
    one, other = Batches(streamed, RUN)[1], next(served(Batches(streamed, RUN), range(1, 2), 1, CPU))
    assert_equal(one, other)


def test_a_damaged_image_is_named_in_one_line_by_a_worker(tmp_path: Path) -> None:
    write_yolo(tmp_path, size=(64, 48))
    data = YoloData(tmp_path, (64, 48), (64, 48))
    pairs = training_data(data, ("detection",), ("person",), SIZE, 0, False)
    for path in (tmp_path / "visible").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"\.(png|jpg) .*(damaged|read)") as caught:
        list(served(Batches(pairs.samples, RUN), range(1, 3), 1, CPU))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_dead_worker_is_an_error_that_says_so(samples: list[Sample]) -> None:
    before = set(multiprocessing.active_children())
    batches = served(Batches(samples, RUN), range(1, 200), 1, CPU)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)  # sent to the whole group when a launcher stops: ignored
    next(batches)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(LoaderError, match=r"a worker of the loader has died .* use fewer --workers"):
        list(batches)


def test_only_the_time_that_batches_are_waited_for_is_counted() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    waited = Waited(slow())  # type: ignore[arg-type]
    for _ in waited:
        before = waited.seconds
        time.sleep(0.05)
        assert waited.seconds == before
    assert waited.seconds >= 0.06
