"""Held-out samples for pictures, each as the thermal sensor of the run that looks at it would have seen it."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from md_perception.labels import DETECTION, SEGMENTATION
from md_training.data.check import EVERYTHING, open_pairs, tell_kind
from md_training.data.pairs import Degradation, PairData, degraded
from md_training.data.sample import Sample
from md_training.data.sources import PairSource, Source
from md_training.data.splits import DataError
from md_training.data.synthetic import SceneData, evaluation_seeds, scene_sample
from md_training.losses import IGNORED_PIXEL

log = logging.getLogger(__name__)

MOST_LOOKED_AT = 8
"""So many samples per wanted one are looked at to find those that show something."""


class HeldOut(ABC):
    """Samples that no training saw, by name.

    title: the set and the split, for captions. names: of all samples. detection_classes, segmentation_classes: what is
    annotated; empty where it is not. tells_night: whether day and night are known.
    """

    title: str
    names: Sequence[str]
    detection_classes: tuple[str, ...]
    segmentation_classes: tuple[str, ...]
    tells_night: bool

    @abstractmethod
    def sample(self, name: str, source: Source) -> Sample:
        """Return a sample at camera size with the thermal sensor of a run on that source, and `full` where it is
        coarser than the data. Raises DataError."""


class HeldOutScenes(HeldOut):
    """The first `count` scenes of the evaluation seeds; a name is `scene SEED`."""

    detection_classes, segmentation_classes = DETECTION.classes, SEGMENTATION.classes
    tells_night = True

    def __init__(self, count: int) -> None:
        seeds = evaluation_seeds(count)
        self.title = f"{count} held-out scenes"
        self.names = tuple(f"scene {seed}" for seed in seeds)

    def sample(self, name: str, source: Source) -> Sample:
        assert isinstance(source, SceneData)
        return scene_sample(int(name.removeprefix("scene ")), source, with_full=True)


class HeldOutPairs(HeldOut):
    """The pairs of a data set."""

    def __init__(self, pairs: PairData) -> None:
        self.pairs = pairs
        split = pairs.split.name  # of published lists it names the set
        self.title = split if "/" in split else f"{pairs.root.resolve().name} {split}"
        self.names = pairs.split.names
        # A set that does not say calls everything day.
        self.tells_night = any(pairs.night(name) for name in self.names)
        self.detection_classes, self.segmentation_classes = pairs.detection_classes, pairs.segmentation_classes

    def sample(self, name: str, source: Source) -> Sample:
        return degraded(self.pairs.native(name), degradation(source))


def degradation(source: Source) -> Degradation:
    """Return how a run's data made its thermal sensor out of one as fine as the camera."""
    if isinstance(source, PairSource):
        return source.degradation
    return Degradation(_nearest_factor(source.camera_size[0] / source.thermal_size[0]), source.thermal_resampling)


def _nearest_factor(coarser: float) -> Literal[1, 2, 4, 8]:
    """Return the factor of Degradation that comes nearest to how much coarser a side is."""
    factors: tuple[Literal[1, 2, 4, 8], ...] = get_args(Degradation.__annotations__["downsample"])
    return min(factors, key=lambda side: abs(math.log(coarser / side)))


SCORED: dict[str, str] = {"kaist": "test-all-20", "mfnet": "test"}
"""Split that a data set of this kind is scored on; `val` of others."""


def pairs_to_score(data: Path, split: str, sensor_size: tuple[int, int] | None) -> PairData:
    """Return the labelled pairs of a folder as a network would see them that was trained for a thermal sensor.

    split: one of its lists; by default that of SCORED. sensor_size: (width, height) px; None: thermal is not looked at.
    Finer thermal images are made as coarse, bilinearly, by the factor of Degradation that comes nearest.
    Raises DataError where there are no pairs or no labels.
    """
    if not data.is_dir():
        raise DataError(f"{data} is no folder: --data names the folder of a data set")
    kind = tell_kind(data)
    if kind == "pairs":
        raise DataError(f"{data} has no labels to score anything by: neither boxes/, annotations/*.json nor masks/")
    return _as_seen(open_pairs(data, kind, split or SCORED.get(kind, "val")), sensor_size)


def pairs_to_look_at(data: Path, split: str, sensor_size: tuple[int, int] | None) -> PairData:
    """Return the pairs of a folder, labelled or not, by default all of them; otherwise as pairs_to_score."""
    if not data.is_dir():
        raise DataError(f"{data} is no folder: name the folder of a data set, or of pairs (`md_bag extract`)")
    kind = tell_kind(data)
    return _as_seen(open_pairs(data, kind, split or EVERYTHING[kind]), sensor_size)


def _as_seen(pairs: PairData, sensor_size: tuple[int, int] | None) -> PairData:
    """Make the thermal images as coarse as those of the sensor that was trained for, in place."""
    if sensor_size is not None:
        native = pairs.contract.sensor_size
        pairs.degradation = Degradation(_nearest_factor(math.sqrt(math.prod(native) / math.prod(sensor_size))))
        seen = pairs.contract.sensor_size
        if pairs.degradation.downsample > 1 or seen != sensor_size:
            log.info("thermal %dx%d is looked at as %dx%d; trained for %dx%d", *native, *seen, *sensor_size)
    return pairs


def held_out(sources: Sequence[Source], data: Path | None, split: str, scenes: int) -> HeldOut:
    """Return what to show the runs of these sources.

    data, split: a folder of pairs and one of its lists, instead of the runs' own evaluation split. scenes: how many,
    where the runs were trained on scenes. Raises DataError where they were trained on different data and none is named.
    """
    if data is not None:
        if not data.is_dir():
            raise DataError(f"{data} is no folder: --data names the folder of a data set")
        kind = tell_kind(data)
        return HeldOutPairs(open_pairs(data, kind, split or EVERYTHING[kind]))
    if split:
        raise DataError(f"--split {split} belongs to --data: name the folder, too")
    known = {_identity(source) for source in sources}
    if len(known) > 1:
        raise DataError(
            f"the runs are evaluated on different data ({'; '.join(sorted(known))}): name what to show all of them "
            "with --data FOLDER, or draw them one by one"
        )
    first = sources[0]
    return HeldOutScenes(scenes) if isinstance(first, SceneData) else HeldOutPairs(first.evaluation())


def _identity(source: Source) -> str:
    """Say which samples a source is evaluated on, whatever the thermal sensor."""
    if isinstance(source, SceneData):
        return f"scenes of {source.camera_size[0]}x{source.camera_size[1]}"
    parts = [getattr(source, name, "") for name in ("evaluation_split", "evaluation_annotations")]
    return " ".join(filter(None, [source.kind, str(source.root.resolve()), *parts]))


def chosen(shown: HeldOut, source: Source, count: int, names: Sequence[str]) -> list[str]:
    """Return the names of the samples to draw: those asked for, or, half by day and half by night as far as there are,
    the first in a fixed random order that have something annotated. Raises ValueError for a name that is not there.
    """
    if names:
        known = set(shown.names)
        full = [name if name in known else f"scene {name}" for name in names]
        missing = [name for name, long in zip(names, full, strict=True) if long not in known]
        if missing:
            raise ValueError(
                f"{shown.title} has no sample {', '.join(missing)}: its names are like {shown.names[0]} and "
                f"{shown.names[-1]}"
            )
        return full
    found: dict[bool, list[str]] = {False: [], True: []}
    empty: list[str] = []
    order = np.random.default_rng(0).permutation(len(shown.names))[: MOST_LOOKED_AT * count]
    for name in (shown.names[index] for index in order):
        if min(len(found[False]), len(found[True])) >= math.ceil(count / 2):
            break
        sample = shown.sample(name, source)
        annotated = bool(shown.detection_classes or shown.segmentation_classes)
        shows = (~sample.ignored).any() or ((sample.mask > 0) & (sample.mask != IGNORED_PIXEL)).any()
        if shows or not annotated:
            found[sample.night].append(name)
        else:
            empty.append(name)
    by_day = max(math.ceil(count / 2), count - len(found[True]))
    names = found[False][:by_day]
    names += found[True][: count - len(names)]
    return names + empty[: count - len(names)]
