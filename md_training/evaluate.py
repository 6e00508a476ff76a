"""Evaluation of a network on samples at camera size: the same pre- and postprocessing as the exported graph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from md_perception.inference.session import Student as ExportedStudent
from md_perception.labels import DETECTION
from md_perception.metrics.detection import AveragePrecision, TruthBoxes, average_precision
from md_perception.metrics.segmentation import Confusion, SegmentationScores
from md_perception.results import Detections, Int64Array, Segmentation, StudentOutput
from md_training.data.sample import Sample, in_thermal_pixels
from md_training.models.networks import Network, select_inputs
from md_training.postprocess import DetectionLimits, detect, segment
from md_training.preprocess import network_input

SUBSETS = ("all", "day", "night")


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


@dataclass
class Answers:
    """What a network answered to samples, beside their truth, in their order: all that any score needs.

    night: of each sample. truth, found: of each sample, in px of the images that were answered for; empty without
    detection. confusions: of each subset, without a pixel where there is no segmentation or no mask.
    """

    night: list[bool] = field(default_factory=list)
    truth: list[TruthBoxes] = field(default_factory=list)
    found: list[Detections] = field(default_factory=list)
    confusions: dict[str, Confusion] = field(default_factory=lambda: {subset: Confusion() for subset in SUBSETS})

    def add(self, sample: Sample, output: StudentOutput) -> None:
        self.night.append(sample.night)
        if output.detections is not None:
            self.truth.append(TruthBoxes(sample.boxes, sample.labels, sample.ignored))
            self.found.append(output.detections)
        if output.segmentation is not None:
            for subset in ("all", "night" if sample.night else "day"):
                self.confusions[subset].add(sample.mask, output.segmentation.mask)

    def scores(self) -> dict[str, Scores]:
        """Return the scores of `all` and, where there is both, of `day` and `night`; the tasks are those answered."""
        result = {}
        for subset in SUBSETS if len(set(self.night)) == 2 else ("all",):
            detection = segmentation = None
            if self.truth:
                mine = [i for i, dark in enumerate(self.night) if subset == "all" or dark == (subset == "night")]
                detection = average_precision([self.truth[i] for i in mine], [self.found[i] for i in mine])
            if self.confusions["all"].counts.any():
                segmentation = self.confusions[subset].scores()
            result[subset] = Scores(detection, segmentation)
        return result


def answers(network: Network, samples: Iterable[Sample], limits: DetectionLimits | None = None) -> Answers:
    """Return what a network answers. samples: at camera size; read once, one at a time."""
    was_training = network.training
    network.eval()
    found = Answers()
    try:
        for sample in samples:
            found.add(sample, predict(network, sample, limits or DetectionLimits()))
    finally:
        network.train(was_training)
    return found


def answers_of_student(student: ExportedStudent, samples: Iterable[Sample]) -> Answers:
    """Return what an exported file answers, run as the node runs it; samples as above.

    A thermal-only student answers in thermal pixels: it is scored there.
    """
    answered = Answers()
    for sample in samples:
        answered.add(*answer_of_student(student, sample))
    return answered


def answer_of_student(student: ExportedStudent, sample: Sample) -> tuple[Sample, StudentOutput]:
    """Return the sample as the student is scored on it (in RGB or thermal pixels) and what it answers, with labels of
    labels.DETECTION.
    """
    seen = sample if student.uses_rgb else in_thermal_pixels(sample)
    output = student.run(seen.rgb, seen.thermal, seen.rgb_to_thermal)
    if output.detections is None:
        return seen, output
    ids = class_ids(student.manifest.detection_classes)
    return seen, replace(output, detections=replace(output.detections, labels=ids[output.detections.labels]))


def evaluate(network: Network, samples: Iterable[Sample], limits: DetectionLimits | None = None) -> dict[str, Scores]:
    """Return the scores by subset, see Answers.scores; arguments as of `answers`."""
    return answers(network, samples, limits).scores()
