"""Samples from the scene world, by seed: the same seeds give the same samples on every machine."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import cv2
import torch
import tyro

from md_perception.inference.manifest import ThermalContract
from md_perception.scenes import SceneSettings, TimeOfDay, render_frame
from md_perception.scenes.truth import HEAVILY_OCCLUDED
from md_perception.sensing.registration import sampling_matrix
from md_perception.sensing.thermal import percentile_range, resize_to_sensor, to_8bit
from md_training.data.sample import Sample, ThermalView, at_network_size

log = logging.getLogger(__name__)

EVALUATION_FIRST_SEED = 9_000_000
"""Seeds from here on are held out: no training may use them."""
SCENES_PER_WORKER = 100
"""Fewer are rendered sooner than a process is started."""
MINIMUM_HEIGHT_PX = 20
"""Objects lower than this, at 512 rows, are ignored, as are heavily occluded ones: neither asked for nor background."""


@dataclass(frozen=True)
class SceneData:
    """Which scenes, and the cameras that look at them."""

    kind: tyro.conf.Suppress[Literal["scenes"]] = "scenes"
    camera_size: tuple[int, int] = (640, 512)
    """Width and height of the RGB camera, px."""
    thermal_size: tuple[int, int] = (160, 128)
    """Width and height of the thermal sensor, px."""
    thermal_resampling: Literal["area", "bilinear"] = "area"
    """How the smaller sensor integrates the scene; `bilinear` is the paper's."""
    first_seed: int = 1_000_000
    """Seed of the first training scene."""
    scenes: int = 6000
    """Training scenes, of consecutive seeds."""
    streamed: bool = False
    """Render each scene when it is its turn, in the loader's workers, instead of all of them once, at the network's
    size, to be kept in memory. With `scenes` no fewer than steps x batch size, none comes twice."""
    evaluation_scenes: int = 64
    """Scenes looked at during training; their seeds are never those of training."""

    def __post_init__(self) -> None:
        if self.first_seed < 0 or self.first_seed + self.scenes > EVALUATION_FIRST_SEED:
            raise ValueError(
                f"training seeds {self.first_seed}..{self.first_seed + self.scenes - 1} must stay within "
                f"0..{EVALUATION_FIRST_SEED - 1}: the seeds above are held out for evaluation"
            )

    @property
    def training_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.scenes)

    @property
    def contract(self) -> ThermalContract:
        return ThermalContract(sensor_size=self.thermal_size)

    def description(self) -> str:
        """Return one sentence for manifest and model card."""
        seeds = self.training_seeds
        return (
            f"{len(seeds)} synthetic scenes of md_perception.scenes (seeds {seeds.start} to {seeds.stop - 1}) at "
            f"{self.camera_size[0]}x{self.camera_size[1]}, thermal {self.thermal_size[0]}x{self.thermal_size[1]} "
            f"({self.thermal_resampling}); no real image"
        )


def evaluation_seeds(count: int) -> range:
    """Return the first held-out seeds."""
    return range(EVALUATION_FIRST_SEED, EVALUATION_FIRST_SEED + count)


def scene_sample(seed: int, data: SceneData, with_full: bool = False) -> Sample:
    """Render one scene at camera size and bring its thermal image to the sensor's resolution and 8 bits.

    with_full: keep the thermal image of a sensor as fine as the camera as well, for a teacher (Sample.full).
    """
    frame = render_frame(seed, SceneSettings(size=data.camera_size))
    contract = data.contract

    def seen_by(size: tuple[int, int]) -> ThermalView:
        kelvin = resize_to_sensor(frame.thermal_k, size, data.thermal_resampling)
        low, high = percentile_range(kelvin, contract.percentiles, contract.minimum_span_k)
        return ThermalView(to_8bit(kelvin, low, high), sampling_matrix(data.camera_size, size))

    thermal = seen_by(data.thermal_size)
    objects = frame.objects
    height = (objects.boxes[:, 3] - objects.boxes[:, 1]) * (512 / data.camera_size[1])
    return Sample(
        rgb=frame.rgb,
        thermal=thermal.image,
        rgb_to_thermal=thermal.rgb_to_thermal,
        boxes=objects.boxes,
        labels=objects.labels,
        ignored=(height < MINIMUM_HEIGHT_PX) | (objects.occlusion == HEAVILY_OCCLUDED),
        mask=frame.mask,
        night=frame.time_of_day is TimeOfDay.NIGHT,
        name=f"scene {seed}",
        full=seen_by(data.camera_size) if with_full else None,
    )


def network_sample(seed: int, data: SceneData, input_size: tuple[int, int], with_full: bool = False) -> Sample:
    """Render one scene for training: RGB, boxes and mask at the network's size."""
    return at_network_size(scene_sample(seed, data, with_full), input_size)


def render(
    seeds: Sequence[int],
    data: SceneData,
    input_size: tuple[int, int] | None = None,
    workers: int = 0,
    with_full: bool = False,
) -> Iterator[Sample]:
    """Yield the samples of the seeds in order, at camera size or, where input_size is given, at the network's.

    workers: processes that render; 0 renders here, as do few scenes, which cost less than starting a process.
    with_full: see scene_sample.
    """
    workers = min(workers, len(seeds) // SCENES_PER_WORKER)
    make = (
        partial(scene_sample, data=data, with_full=with_full)
        if input_size is None
        else partial(network_sample, data=data, input_size=input_size, with_full=with_full)
    )
    if workers == 0:
        yield from map(make, seeds)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(make, seeds, chunksize=8)


class StreamedScenes(Sequence[Sample]):
    """Scenes that are rendered for training when they are asked for; arguments as of network_sample."""

    def __init__(self, data: SceneData, input_size: tuple[int, int], with_full: bool = False) -> None:
        self._data, self._input_size, self._with_full = data, input_size, with_full

    def __len__(self) -> int:
        return len(self._data.training_seeds)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return network_sample(self._data.training_seeds[index], self._data, self._input_size, self._with_full)


def cached(samples: Iterable[Sample], count: int, what: str) -> list[Sample]:
    """Hold rendered samples in memory and say how it goes."""
    started = last = time.monotonic()
    held: list[Sample] = []
    for sample in samples:
        held.append(sample)
        now = time.monotonic()
        if now - last > 15 or len(held) == count:
            last, rate = now, len(held) / (now - started)
            log.info(
                "%s: %d of %d scenes, %.0f/s, %.0f s to go", what, len(held), count, rate, (count - len(held)) / rate
            )
    return held


def _one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
