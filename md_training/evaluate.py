"""Evaluation of a network on samples at camera size: the same pre- and postprocessing as the exported graph."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from md_perception.inference.session import Student as ExportedStudent
from md_perception.labels import DETECTION
from md_perception.metrics.detection import AveragePrecision, TruthBoxes, average_precision
from md_perception.metrics.segmentation import Confusion, SegmentationScores
from md_perception.results import Detections, Int64Array, Segmentation, StudentOutput
from md_training.data.sample import Sample
from md_training.models.networks import Network, select_inputs
from md_training.postprocess import DetectionLimits, detect, segment
from md_training.preprocess import network_input

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """What a network reached on a subset; a task that it does not have is None."""

    detection: AveragePrecision | None
    segmentation: SegmentationScores | None

    def figures(self, subset: str) -> dict[str, float]:
        """Return the headline figures, named with their subset."""
        figures: dict[str, float] = {}
        if self.detection is not None:
            named = {"AP": self.detection.mean_ap, "AP50": self.detection.mean_ap50}
            named |= {f"AP50 {name}": value for name, value in self.detection.ap50.items()}
            figures |= {f"{name} [{subset}]": value for name, value in named.items() if value is not None}
        if self.segmentation is not None:
            figures[f"mAcc9 [{subset}]"] = self.segmentation.macc9
            figures[f"mAcc8 [{subset}]"] = self.segmentation.macc8
            figures[f"mIoU9 [{subset}]"] = self.segmentation.miou9
        return figures

    def table(self) -> str:
        return "\n".join(part.table() for part in (self.detection, self.segmentation) if part is not None)


def class_ids(names: Sequence[str]) -> Int64Array:
    """Return int64 (K,), the ids in labels.DETECTION of the classes that a network tells apart."""
    return np.array([DETECTION.id_of(name) for name in names], np.int64)


@torch.no_grad()
def predict(network: Network, sample: Sample, limits: DetectionLimits) -> StudentOutput:
    """Run one sample through preprocessing, network (in evaluation mode) and postprocessing; results in camera px."""
    size = network.settings.input_size
    device = network.anchors.device
    rgb = torch.from_numpy(sample.rgb)[None].to(device)
    thermal = matrix = None
    if "thermal" in network.settings.inputs:
        thermal = torch.from_numpy(sample.thermal)[None].to(device)
        matrix = torch.from_numpy(sample.rgb_to_thermal)[None].to(device)
    image, box = network_input(rgb, thermal, matrix, size)
    outputs = network(select_inputs(image, network.settings.inputs))
    detections = segmentation = None
    if outputs.detection is not None:
        found = detect(outputs.detection, network.anchors, box, limits)
        boxes, scores, labels = (values.cpu().numpy() for values in found)
        detections = Detections(boxes, scores, class_ids(network.settings.detection_classes)[labels])
    if outputs.segmentation is not None:
        height, width, _ = sample.rgb.shape
        mask, confidence = segment(outputs.segmentation, height, width, box, size)
        segmentation = Segmentation(mask[0].cpu().numpy(), confidence[0].cpu().numpy())
    return StudentOutput(detections, segmentation)


def evaluate(network: Network, samples: Iterable[Sample], limits: DetectionLimits | None = None) -> dict[str, Scores]:
    """Return the scores of the subsets `all`, `day` and `night`. samples: at camera size; read once, one at a time."""
    was_training = network.training
    network.eval()
    try:
        return score(samples, lambda sample: predict(network, sample, limits or DetectionLimits()))
    finally:
        network.train(was_training)


def evaluate_student(student: ExportedStudent, samples: Iterable[Sample]) -> dict[str, Scores]:
    """Return the scores of an exported file, run as the node runs it; samples as above."""

    ids = class_ids(student.manifest.detection_classes)

    def run(sample: Sample) -> StudentOutput:
        thermal = (sample.thermal, sample.rgb_to_thermal) if student.uses_thermal else (None, None)
        output = student.run(sample.rgb, *thermal)
        found = output.detections
        return replace(output, detections=None if found is None else replace(found, labels=ids[found.labels]))

    return score(samples, run)


def score(samples: Iterable[Sample], predictor: Callable[[Sample], StudentOutput]) -> dict[str, Scores]:
    """Return the scores of whatever predicts, by subset; the tasks are those that the predictor answers."""
    subsets = ("all", "day", "night")
    truths: dict[str, list[TruthBoxes]] = {subset: [] for subset in subsets}
    found: dict[str, list[Detections]] = {subset: [] for subset in subsets}
    confusions = {subset: Confusion() for subset in subsets}
    for sample in samples:
        output = predictor(sample)
        for subset in ("all", "night" if sample.night else "day"):
            if output.detections is not None:
                truths[subset].append(TruthBoxes(sample.boxes, sample.labels, sample.ignored))
                found[subset].append(output.detections)
            if output.segmentation is not None:
                confusions[subset].add(sample.mask, output.segmentation.mask)
    return {
        subset: Scores(
            average_precision(truths[subset], found[subset]) if truths["all"] else None,
            confusions[subset].scores() if confusions["all"].counts.any() else None,
        )
        for subset in subsets
    }
