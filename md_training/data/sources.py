"""What a run is trained and evaluated on: the scene world, or a data set's training and evaluation pairs."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from pydantic import Discriminator, Tag

from md_perception.inference.manifest import ThermalContract
from md_training.data.kaist import IMPROVED_FILE, NON_EMPTY, KaistFolder, Target
from md_training.data.mfnet import MfnetFolder
from md_training.data.pairs import Degradation, PairData, PairFolder
from md_training.data.sample import Sample, at_network_size
from md_training.data.scene_store import SceneStore
from md_training.data.splits import DataError, folds
from md_training.data.synthetic import SceneData, StreamedScenes, cached, evaluation_seeds, render
from md_training.data.yolo import CocoFolder, YoloFolder, YoloPairs


@dataclass(frozen=True)
class PairSource:
    """What the data sets of image pairs have in common."""

    root: Path = Path("data")
    """Folder of the data set."""
    camera_size: tuple[int, int] = (640, 512)
    """Width and height of its RGB images, px."""
    native_thermal_size: tuple[int, int] = (640, 512)
    """Width and height of its thermal images, px: what a teacher is shown."""
    downsample: Literal[1, 2, 4, 8] = 1
    """Pixels per side that become one of the sensor that is trained for: 4 is the paper's x16."""
    resampling: Literal["bilinear", "area"] = "bilinear"
    """`bilinear` is the paper's; `area` is what a coarse sensor integrates."""
    evaluation_pairs: int = 200
    """Pairs looked at during training, evenly spread over the evaluation split."""

    @property
    def degradation(self) -> Degradation:
        return Degradation(self.downsample, self.resampling)

    @property
    def thermal_size(self) -> tuple[int, int]:
        """Width and height of the thermal images that are trained for, px."""
        return self.degradation.size(self.native_thermal_size)

    @property
    def contract(self) -> ThermalContract:
        return ThermalContract(sensor_size=self.thermal_size)

    def description(self) -> str:
        """Return one sentence for manifest and model card. Raises DataError where the data are not there."""
        return self.training().description()

    @abstractmethod
    def training(self) -> PairData:
        """Find the training pairs. Raises DataError."""

    @abstractmethod
    def evaluation(self) -> PairData:
        """Find the pairs of the evaluation split. Raises DataError."""


@dataclass(frozen=True)
class KaistData(PairSource):
    """KAIST, see data/kaist.py; the defaults are the paper's lists."""

    kind: tyro.conf.Suppress[Literal["kaist"]] = "kaist"
    split: str = NON_EMPTY
    """List to train on."""
    annotations: str = "annotations_paired"
    """Its annotations, file or folder below root."""
    target: Target = "mean"
    """Box of a person that has one in each camera."""
    minimum_height_px: float = 0.0
    """Lower persons are ignored in training."""
    evaluation_split: str = "test-all-20"
    evaluation_annotations: str = IMPROVED_FILE

    def training(self) -> PairData:
        folder = KaistFolder(
            self.root, self.split, self.annotations, self.target, self.minimum_height_px, self.degradation
        )
        return folder.open()

    def evaluation(self) -> PairData:
        folder = KaistFolder(
            self.root, self.evaluation_split, self.evaluation_annotations, degradation=self.degradation
        )
        return folder.open()


@dataclass(frozen=True)
class MfnetData(PairSource):
    """MFNet, see data/mfnet.py. `val` is for development; the paper's figures are those of `test`."""

    kind: tyro.conf.Suppress[Literal["mfnet"]] = "mfnet"
    camera_size: tuple[int, int] = (640, 480)
    native_thermal_size: tuple[int, int] = (640, 480)
    split: str = "train"
    evaluation_split: str = "val"

    def training(self) -> PairData:
        return MfnetFolder(self.root, self.split, self.degradation).open()

    def evaluation(self) -> PairData:
        return MfnetFolder(self.root, self.evaluation_split, self.degradation).open()


@dataclass(frozen=True)
class BoxSource(PairSource):
    """What folders with boxes, and perhaps masks, have in common, see data/yolo.py."""

    camera_size: tuple[int, int] = (640, 480)
    native_thermal_size: tuple[int, int] = (640, 480)
    split: str = "train"
    evaluation_split: str = "val"
    rename: dict[str, str] = field(default_factory=dict)
    """From the set's class names to those of the class list, to `ignore` or to `background`."""
    minimum_height_px: float = 0.0
    """Lower objects are ignored."""
    masks: str = "masks"
    """Folder of the mask images below root."""

    def training(self) -> PairData:
        return self._open(self.split)

    def evaluation(self) -> PairData:
        return self._open(self.evaluation_split)

    @abstractmethod
    def _open(self, split: str) -> PairData:
        """Find the pairs of a split. Raises DataError."""


@dataclass(frozen=True)
class YoloData(BoxSource):
    """Boxes as YOLO text: MSRS, or a user's own drives (`md_bag extract`)."""

    kind: tyro.conf.Suppress[Literal["yolo"]] = "yolo"
    published: str = ""
    """Data set whose published lists have to be met, e.g. `msrs`."""
    folds: int = 0
    """Cross-validation, for a small set: the pairs of both lists are shared out to so many folds, ..."""
    fold: int = 0
    """... and all but this one, counted from 0, are trained on; this one is evaluated on. See splits.folds."""

    def __post_init__(self) -> None:
        if self.folds != 0 and not (self.folds >= 2 and 0 <= self.fold < self.folds):
            raise ValueError(f"fold {self.fold} of {self.folds} folds: 2 folds or more (0: none), counted from 0")

    def training(self) -> PairData:
        return self._folded(held_out=False) if self.folds else super().training()

    def evaluation(self) -> PairData:
        return self._folded(held_out=True) if self.folds else super().evaluation()

    def _open(self, split: str) -> YoloPairs:
        return self._folder(split).open()

    def _folder(self, split: str) -> YoloFolder:
        return YoloFolder(
            self.root, split, self.published, self.rename, self.minimum_height_px, self.masks, self.degradation
        )

    def _folded(self, held_out: bool) -> PairData:
        lists = [self._open(split) for split in dict.fromkeys((self.split, self.evaluation_split))]
        names = [name for pairs in lists for name in pairs.split.names]
        parts = folds(names, [lists[0].night(name) for name in names], self.folds)
        chosen = [name for part, fold in enumerate(parts) if (part == self.fold) == held_out for name in fold]
        return self._folder(self.split).open(chosen)


@dataclass(frozen=True)
class CocoData(BoxSource):
    """Boxes as COCO JSON: what annotation tools export. The splits are the names of the JSON files."""

    kind: tyro.conf.Suppress[Literal["coco"]] = "coco"

    def _open(self, split: str) -> PairData:
        folder = CocoFolder(self.root, split, self.rename, self.minimum_height_px, self.masks, self.degradation)
        return folder.open()


@dataclass(frozen=True)
class UnlabelledData(PairSource):
    """Pairs that nobody labelled, see data/pairs.py: a student learns its teachers' results (task_loss teacher)."""

    kind: tyro.conf.Suppress[Literal["unlabelled"]] = "unlabelled"
    split: str = "all"
    """List of the pairs to train on, or `all` of the folder."""
    evaluation_pairs: int = 0
    """There is nothing to evaluate on: 0."""

    def __post_init__(self) -> None:
        if self.evaluation_pairs:
            raise ValueError(f"evaluation_pairs {self.evaluation_pairs}: unlabelled pairs have no truth, set 0")

    def training(self) -> PairData:
        return PairFolder(self.root, self.split, self.degradation).open()

    def evaluation(self) -> PairData:
        raise DataError(
            f"{self.root}: unlabelled pairs cannot be evaluated on; name a labelled data set (evaluate --data)"
        )


def _kind(value: Any) -> str:
    # Runs from before there was a choice do not say: they are of scenes.
    return str(value.get("kind", "scenes") if isinstance(value, dict) else value.kind)


Source = Annotated[
    Annotated[SceneData, Tag("scenes")]
    | Annotated[KaistData, Tag("kaist")]
    | Annotated[MfnetData, Tag("mfnet")]
    | Annotated[YoloData, Tag("yolo")]
    | Annotated[CocoData, Tag("coco")]
    | Annotated[UnlabelledData, Tag("unlabelled")],
    Discriminator(_kind),
]
"""In JSON, `kind` tells them apart."""


class ReadSamples(Sequence[Sample]):
    """Samples that are read when they are asked for, at camera size or, where input_size is given, at the network's."""

    def __init__(self, pairs: PairData, indices: Sequence[int], input_size: tuple[int, int] | None = None) -> None:
        self._pairs, self._indices, self._input_size = pairs, indices, input_size

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ReadSamples(self._pairs, self._indices[index], self._input_size)
        sample = self._pairs[self._indices[index]]
        return sample if self._input_size is None else at_network_size(sample, self._input_size)


@dataclass(frozen=True)
class TrainingData:
    """samples: at the network's size. description: one sentence. split_hashes: list's name to SHA-256."""

    samples: Sequence[Sample]
    description: str
    split_hashes: dict[str, str]


def training_data(
    source: Source,
    tasks: Sequence[str],
    classes: Sequence[str],
    input_size: tuple[int, int],
    workers: int,
    with_full: bool,
    with_truth: bool = True,
    scene_store: Path | None = None,
) -> TrainingData:
    """Return what a network of these tasks and detection classes learns from.

    workers: processes that render scenes. with_full: keep the thermal image that a teacher is shown. with_truth: the
    annotations are what is learnt (and not a teacher's results). scene_store: folder in which rendered scenes are
    kept for other runs (data.scene_store).
    Raises DataError where the data are not there, not of the declared sizes, or do not annotate what is to be learnt:
    everything else would be trained as background.
    """
    if isinstance(source, SceneData):
        if source.streamed:
            return TrainingData(StreamedScenes(source, input_size, with_full), source.description(), {})
        seeds = source.training_seeds
        if scene_store is None:
            scenes = render(seeds, source, input_size, workers, with_full)
        else:
            scenes = SceneStore(scene_store, source, input_size, with_full).samples(seeds, workers)
        return TrainingData(cached(scenes, len(seeds), "rendering"), source.description(), {})
    pairs = source.training()
    missing = set(classes) - set(pairs.detection_classes)
    if with_truth and "detection" in tasks and missing:
        raise DataError(
            f"{source.root} does not annotate {', '.join(sorted(missing))}, which would be trained as background: set "
            + (
                f"network.detection_classes to {' '.join(pairs.detection_classes)}"
                if pairs.detection_classes
                else "network.tasks to segmentation, it has no boxes at all"
            )
        )
    if with_truth and "segmentation" in tasks and not pairs.segmentation_classes:
        raise DataError(f"{source.root} has no masks: train it for detection only (network.tasks)")
    first = pairs[0]
    sizes = first.rgb.shape[1::-1], first.thermal.shape[1::-1]
    if sizes != (source.camera_size, source.thermal_size):
        raise DataError(
            f"{source.root}: {first.name} is {sizes[0][0]}x{sizes[0][1]}, its thermal image for training "
            f"{sizes[1][0]}x{sizes[1][1]}, but the run says {source.camera_size[0]}x{source.camera_size[1]} and "
            f"{source.thermal_size[0]}x{source.thermal_size[1]}: set camera_size and native_thermal_size"
        )
    samples = ReadSamples(pairs, range(len(pairs)), input_size)
    return TrainingData(samples, pairs.description(), {pairs.split.name: pairs.split.sha256})


def evaluation_samples(source: Source, workers: int = 0) -> Sequence[Sample]:
    """Return the held-out samples that a training looks at, at camera size. Raises DataError."""
    if isinstance(source, SceneData):
        return list(render(evaluation_seeds(source.evaluation_scenes), source, None, workers))
    if source.evaluation_pairs == 0:
        return []
    pairs = source.evaluation()
    count = min(source.evaluation_pairs, len(pairs))
    return ReadSamples(pairs, np.linspace(0, len(pairs) - 1, count).round().astype(int).tolist())
