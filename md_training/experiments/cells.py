"""One cell: trained, scored on the held-out samples once, and recorded with all that its figures depend on."""

import json
import logging
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from md_perception.annotations.kaist import KaistAnnotations, corners
from md_perception.files import write_whole
from md_perception.labels import DETECTION
from md_perception.metrics.detection import TruthBoxes, average_precision
from md_perception.metrics.latency import processor
from md_perception.metrics.miss_rate import REASONABLE, class_miss_rate, metric_name
from md_perception.metrics.segmentation import Confusion
from md_perception.results import Detections
from md_training.checkpoint import Checkpoint, git_revision, load
from md_training.data.sample import Sample
from md_training.data.scene_store import generator_hash
from md_training.data.sources import ReadSamples, YoloData
from md_training.data.synthetic import SceneData, evaluation_seeds, render
from md_training.evaluate import predict
from md_training.experiments.tables import EVALUATION_SCENES, SCHEDULES, Cell
from md_training.figures.curves import kaist_test
from md_training.figures.samples import HeldOutPairs
from md_training.models.networks import Network
from md_training.postprocess import DetectionLimits
from md_training.presets import Run
from md_training.train import train

log = logging.getLogger(__name__)

LEAST_SCORE = 0.02
"""Detections below it are not recorded: they change no curve at 1 false positive per image."""
PAUSED = 0.2
"""Of a run's median speed: what is slower was no training."""


class ExperimentError(RuntimeError):
    """An experiment cannot be run or its results cannot be compared; the text says why."""


class CellStopped(ExperimentError):
    """A training was stopped by a signal: there is nothing to be scored yet."""


@dataclass(frozen=True)
class HeldOut:
    """What a network answered to the held-out samples: all that any score of them needs.

    night: bool (images,). truth, detections: of each image, camera px; None without that task. confusions: int64
    (images, 9, 9), rows are the truth; None without that task. setting: which persons the truth counts, as the name of
    the miss rate says it: `reasonable` is KAIST's.
    """

    night: np.ndarray
    truth: list[TruthBoxes] | None
    detections: list[Detections] | None
    confusions: np.ndarray | None
    setting: str = "person"

    def subset(self, name: str) -> np.ndarray:
        """Return bool (images,) of `all`, `day` or `night`."""
        return {"all": np.ones_like(self.night), "day": ~self.night, "night": self.night}[name]

    @classmethod
    def joined(cls, parts: "Sequence[HeldOut]") -> "HeldOut":
        """Return the answers of several networks, each to the images that it was not trained on, as those of one."""
        first = parts[0]
        return cls(
            np.concatenate([part.night for part in parts]),
            None if first.truth is None else [image for part in parts for image in part.truth or ()],
            None if first.detections is None else [image for part in parts for image in part.detections or ()],
            None if first.confusions is None else np.concatenate([part.confusions for part in parts]),
            first.setting,
        )

    def figures(self) -> dict[str, float]:
        """Return every figure by its name, which carries the subset; rates are 0..1."""
        figures: dict[str, float] = {}
        for subset in ("all", "day", "night"):
            chosen = np.flatnonzero(self.subset(subset))
            if not len(chosen):
                continue
            if self.truth is not None and self.detections is not None:
                truth, found = [self.truth[index] for index in chosen], [self.detections[index] for index in chosen]
                person = DETECTION.id_of("person")
                name = metric_name(self.setting, subset)
                precision = average_precision(truth, found)
                named = {name: class_miss_rate(truth, found, person, name).miss_rate}
                named |= {f"AP50[{subset}]": precision.mean_ap50, f"AP[{subset}]": precision.mean_ap}
                named |= {f"AP50[{name},{subset}]": value for name, value in precision.ap50.items()}
                figures |= {name: value for name, value in named.items() if value is not None}
            if self.confusions is not None:
                confusion = Confusion()
                confusion.counts = self.confusions[chosen].sum(axis=0)
                scores = confusion.scores()
                figures |= {f"mAcc9[{subset}]": scores.macc9, f"mAcc8[{subset}]": scores.macc8}
                figures |= {f"mIoU9[{subset}]": scores.miou9}
                if subset == "all":
                    named_iou = zip(scores.classes, scores.iou, strict=True)
                    figures |= {f"IoU[{name},all]": value for name, value in named_iou}
        return figures

    def save(self, path: Path) -> None:
        """Write a compressed NumPy file, whole or not at all."""
        arrays: dict[str, np.ndarray] = {"night": self.night, "setting": np.array(self.setting)}
        if self.truth is not None and self.detections is not None:
            for name, images in (("truth", self.truth), ("found", self.detections)):
                arrays[f"{name}_count"] = np.array([len(image.labels) for image in images])
                arrays[f"{name}_boxes"] = np.concatenate([image.boxes for image in images])
                arrays[f"{name}_labels"] = np.concatenate([image.labels for image in images]).astype(np.uint8)
            arrays["truth_ignored"] = np.concatenate([image.ignored for image in self.truth])
            arrays["found_scores"] = np.concatenate([image.scores for image in self.detections])
        if self.confusions is not None:
            arrays["confusions"] = self.confusions.astype(np.int32)
        content = BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        write_whole(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        """Read such a file. Raises ExperimentError where it is none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            truth = found = None
            if "truth_count" in arrays:
                ends = np.cumsum(arrays["truth_count"])[:-1]
                parts = [np.split(arrays[f"truth_{name}"], ends) for name in ("boxes", "labels", "ignored")]
                truth = [TruthBoxes(b, k.astype(np.int64), i) for b, k, i in zip(*parts, strict=True)]
                ends = np.cumsum(arrays["found_count"])[:-1]
                parts = [np.split(arrays[f"found_{name}"], ends) for name in ("boxes", "scores", "labels")]
                found = [Detections(b, s, k.astype(np.int64)) for b, s, k in zip(*parts, strict=True)]
            confusions = arrays["confusions"].astype(np.int64) if "confusions" in arrays else None
            return cls(arrays["night"], truth, found, confusions, str(arrays["setting"]))
        except (OSError, ValueError, KeyError) as error:
            raise ExperimentError(f"{path} does not hold the answers of a cell: {error}") from None


@torch.no_grad()
def ask(network: Network, samples: Iterable[Sample]) -> HeldOut:
    """Run a network, in evaluation mode, on samples at camera size."""
    limits = DetectionLimits(score_threshold=LEAST_SCORE)
    network.eval()
    night: list[bool] = []
    truth: list[TruthBoxes] = []
    detections: list[Detections] = []
    confusions: list[np.ndarray] = []
    for sample in samples:
        output = predict(network, sample, limits)
        night.append(sample.night)
        if output.detections is not None:
            truth.append(TruthBoxes(sample.boxes, sample.labels, sample.ignored))
            detections.append(output.detections)
        if output.segmentation is not None:
            confusion = Confusion()
            confusion.add(sample.mask, output.segmentation.mask)
            confusions.append(confusion.counts)
    return HeldOut(
        np.array(night, np.bool_), truth or None, detections or None, np.stack(confusions) if confusions else None
    )


@dataclass(frozen=True)
class CellRecord:
    """What is known of a finished cell.

    run: its settings. figures: of the held-out samples. generator: SHA-256 of the scene world's code, empty for other
    data. machine: processor, cores, software. train_s: of all steps, in however many starts, without pauses.
    images_per_s: the median of the training.
    """

    cell: str
    run: dict[str, Any]
    figures: dict[str, float]
    held_out: str
    generator: str
    git_revision: str
    machine: dict[str, str]
    finished: str
    train_s: float
    images_per_s: float

    def save(self, path: Path) -> None:
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> "CellRecord":
        """Read a record. Raises ExperimentError where it is none."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ExperimentError(
                f"{path} is not the record of a cell: {error}; delete it to run the cell anew"
            ) from None


def machine(device: str) -> dict[str, str]:
    """Return what the figures were made on."""
    accelerator = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else "none"
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "accelerator": accelerator,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def finished(cell: Cell, runs: Path, results: Path, weights: str) -> CellRecord | None:
    """Return the record of a cell that was run with these very settings, None if it has to be run.

    Raises ExperimentError where the scene world has changed since: its figures would not compare.
    """
    place = results / cell.study / f"{cell.name}.json"
    if not place.exists():
        return None
    record = CellRecord.load(place)
    run, before = cell.run(runs, weights).to_json(), Run.from_json(record.run).to_json()
    # Its teachers and its start are known from the cell; where their files were does not matter.
    differing = [name for name in run if name not in ("teachers", "first_weights") and before[name] != run[name]]
    if differing:
        raise ExperimentError(
            f"{place} is of a run with other settings ({', '.join(differing)}): choose another folder for the results "
            "(--results), or delete the record to run the cell anew"
        )
    if record.generator and record.generator != generator_hash():
        raise ExperimentError(
            f"{place} is of another scene world than this code's: its figures do not compare with new ones; choose "
            "another folder for the results (--results)"
        )
    return record


def run_cell(cell: Cell, runs: Path, results: Path, *, weights: str, device: str, workers: int) -> CellRecord:
    """Train a cell, or go on where it was stopped, score it and record it in results/STUDY. Its teachers are there.

    Raises CellStopped where it was stopped again, and what train raises.
    """
    run = cell.run(runs, weights)
    folder = runs / cell.name
    checkpoint = train(run, folder, workers=workers, device=device, resume=True, scene_store=runs.parent / "rendered")
    if checkpoint.step < run.optimisation.steps:
        raise CellStopped(
            f"stopped after step {checkpoint.step} of {run.optimisation.steps}; the same command goes on with it"
        )
    samples, description, kaist = held_out(checkpoint, cell, workers)
    found = ask(checkpoint.network.to(device), samples)
    if kaist is not None:
        found = replace(found, truth=reasonable(kaist), setting=REASONABLE.name)
    train_s, images_per_s = _pace(folder, run.optimisation.batch_size)
    place = results / cell.study
    found.save(place / f"{cell.name}.npz")
    record = CellRecord(
        cell=cell.name,
        # By name: where the files were says nothing to others.
        run=run.to_json()
        | {
            "teachers": [teacher.name for teacher in cell.teachers],
            "first_weights": "" if cell.start is None else f"{cell.start.study}/{cell.start.name}",
        },
        figures=found.figures(),
        held_out=description,
        generator=generator_hash() if isinstance(run.data, SceneData) else "",
        git_revision=git_revision(),
        machine=machine(device),
        finished=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        train_s=train_s,
        images_per_s=images_per_s,
    )
    record.save(place / f"{cell.name}.json")  # last: with it the cell is finished
    return record


def held_out(checkpoint: Checkpoint, cell: Cell, workers: int) -> tuple[Iterable[Sample], str, KaistAnnotations | None]:
    """Return the samples that a cell is scored on, a sentence that says which they are and, where they are the whole
    of KAIST's test set, its annotations."""
    source = checkpoint.run.data
    if isinstance(source, SceneData):
        schedule = SCHEDULES[cell.schedule]
        seeds = evaluation_seeds(EVALUATION_SCENES if schedule is None else schedule.evaluation_scenes)
        return render(seeds, source, None, workers), f"held-out scenes, seeds {seeds.start} to {seeds.stop - 1}", None
    pairs = source.evaluation()
    folds = source.folds if isinstance(source, YoloData) else 0
    part = f"each fold of {folds} in turn" if folds else f"{pairs.split.name}, {len(pairs)} pairs"
    description = f"{source.root.name}, {part}"
    return ReadSamples(pairs, range(len(pairs))), description, kaist_test(HeldOutPairs(pairs))


def reasonable(annotations: KaistAnnotations) -> list[TruthBoxes]:
    """Return the persons of KAIST's test set with those flagged that its `reasonable` setting ignores; 0-based px."""
    truth = []
    for image in annotations.truth:
        boxes = corners(image).astype(np.float32)
        label = np.full(len(boxes), DETECTION.id_of("person"), np.int64)
        truth.append(TruthBoxes(boxes, label, REASONABLE.ignored(image)))
    return truth


def _pace(folder: Path, batch_size: int) -> tuple[float, float]:
    """Return the seconds that all steps in a run's log took, and the median images/s; 0 where it has none.

    From the speeds: the clock of the log starts anew with each start of the run. Steps at less than PAUSED of the
    median speed count at the median: the process was stopped, or the machine asleep.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["images_per_s"] for line in lines if "images_per_s" in line}
    if not rates:
        return 0.0, 0.0
    median = float(np.median([*rates.values()]))
    counted = {step: rate if rate >= PAUSED * median else median for step, rate in rates.items()}
    images = [batch_size * (step - before) for before, step in zip([0, *counted], counted, strict=False)]
    return round(sum(np.divide(images, [*counted.values()])), 1), round(median, 2)


def trained(cell: Cell, runs: Path) -> bool:
    """Say whether a cell's checkpoint is there and complete: what its students need."""
    place = runs / cell.name / "checkpoint.pt"
    if not place.exists():
        return False
    checkpoint = load(place)
    return checkpoint.step == checkpoint.run.optimisation.steps
