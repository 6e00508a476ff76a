"""What the pages show of each sample: results side by side, the maps of the transfer, and what training sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from md_perception.labels import DETECTION
from md_perception.metrics.detection import TruthBoxes
from md_perception.metrics.miss_rate import class_miss_rate
from md_perception.results import Detections, Float32Array, StudentOutput, UInt8Image
from md_perception.sensing.thermal import percentile_range, to_8bit
from md_training.checkpoint import Checkpoint
from md_training.data.augment import NO_AUGMENTATION, Augmentation, distillation_batch
from md_training.data.sample import Sample, at_network_size
from md_training.data.sources import Source, YoloData
from md_training.distillation import TransferMaps, teach, transfer_maps
from md_training.evaluate import predict
from md_training.figures.pages import Panel, Row, grey, heated, truth_boxes, with_boxes, with_mask
from md_training.figures.samples import HeldOut
from md_training.losses import IGNORED_PIXEL
from md_training.models.backbone import Level
from md_training.models.networks import Task, select_inputs
from md_training.postprocess import DetectionLimits
from md_training.preprocess import MEAN, STD, logits_to_camera, make_letterbox

UNCHANGED = YoloData(downsample=1)
"""Stands for a run's data where a folder is shown without any run: the thermal images stay as they are."""

CAMERAS = 2
"""Columns that View.row puts before the others."""

Maps = Mapping[tuple[Task, Level], TransferMaps]


@dataclass(frozen=True)
class Model:
    """A trained network and what it is called in the pictures."""

    label: str
    checkpoint: Checkpoint

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.checkpoint.network.settings.tasks

    @property
    def classes(self) -> tuple[str, ...]:
        return self.checkpoint.network.settings.detection_classes

    @property
    def input_size(self) -> tuple[int, int]:
        return self.checkpoint.network.settings.input_size

    @property
    def thermal(self) -> bool:
        return "thermal" in self.checkpoint.network.settings.inputs

    def __str__(self) -> str:
        """Return what a caption says of it: run, step, sensor."""
        width, height = self.checkpoint.run.data.thermal_size
        sensor = f"thermal {width}x{height}" if self.thermal else "no thermal"
        return f"{self.label}: {self.checkpoint.run.name}, step {self.checkpoint.step}, {sensor}"


class View:
    """One held-out sample, read once for all networks with the same data. sample: as the first of them with a thermal
    camera sees it. label: when it was taken, where that is known, and its name."""

    def __init__(self, shown: HeldOut, name: str, models: Sequence[Model]) -> None:
        self._shown, self._name = shown, name
        self._read: list[tuple[Source, Sample]] = []
        sources = [model.checkpoint.run.data for model in sorted(models, key=lambda model: not model.thermal)]
        self.sample = self._of(sources[0] if sources else UNCHANGED)
        self.label = name
        if shown.tells_night:
            self.label = f"{'night' if self.sample.night else 'day'}, {name}"

    def of(self, model: Model) -> Sample:
        """Return the sample as the thermal sensor of the model's run sees it."""
        return self._of(model.checkpoint.run.data)

    def _of(self, source: Source) -> Sample:
        for known, sample in self._read:
            if known == source:
                return sample
        self._read.append((source, self._shown.sample(self._name, source)))
        return self._read[-1][1]

    def row(self, panels: Sequence[Panel]) -> Row:
        """Return both images, thermal at the sensor's resolution and stretched to all grey levels, then these panels.

        A night of KAIST would be black on paper.
        """
        height, width = self.sample.thermal.shape
        thermal = to_8bit(self.sample.thermal, *percentile_range(self.sample.thermal))
        return Row(self.label, [Panel(self.sample.rgb), Panel(grey(thermal), f"{width}x{height}"), *panels])

    def predicted(self, models: Sequence[Model], threshold: float) -> list[StudentOutput]:
        """Return each model's results, with the detections of at least this score."""
        limits = DetectionLimits(score_threshold=threshold)
        return [predict(model.checkpoint.network, self.of(model), limits) for model in models]

    def detection_row(self, outputs: Sequence[StudentOutput], classes: Sequence[str]) -> Row:
        """Return the row of ground truth and detections. classes: those that are annotated; none leaves truth out."""
        sample = self.sample
        found = [output.detections for output in outputs if output.detections is not None]
        columns = CAMERAS + bool(classes) + len(found)
        panels = []
        if classes:
            note = f"objects: {int((~sample.ignored).sum())}"
            panels.append(Panel(with_boxes(sample.rgb, truth_boxes(sample), columns), note))
        for of_model in found:
            note = tally(sample, of_model, classes) if classes else f"detections: {len(of_model)}"
            panels.append(Panel(with_boxes(sample.rgb, of_model, columns), note))
        return self.row(panels)

    def mask_row(self, outputs: Sequence[StudentOutput], annotated: bool) -> Row:
        """Return the row of ground truth, where there is any, and segmentations."""
        masks = [self.sample.mask] if annotated else []
        return self.row([Panel(with_mask(self.sample.rgb, mask)) for mask in masks + masks_of(outputs)])


def masks_of(outputs: Sequence[StudentOutput]) -> list[UInt8Image]:
    """Return the masks, uint8 (H, W), of outputs that have one."""
    return [output.segmentation.mask for output in outputs if output.segmentation is not None]


def tally(sample: Sample, found: Detections, classes: Sequence[str]) -> str:
    """Say how many of the counted objects of the annotated classes were found, and how many detections are false, by
    the matching of the miss rate (overlap of at least 0.5, ignored objects absorb detections)."""
    truth = TruthBoxes(sample.boxes, sample.labels, sample.ignored)
    curves = [class_miss_rate([truth], [found], DETECTION.id_of(name), name) for name in classes]
    hits, objects, wrong = (
        sum(getattr(curve, count) for curve in curves) for count in ("true_positives", "objects", "false_positives")
    )
    return f"{hits} of {objects} found, {wrong} false"


@torch.no_grad()
def maps_of(student: Model, teachers: Sequence[Model], sample: Sample) -> dict[tuple[Task, Level], TransferMaps]:
    """Return the maps behind the student's transfer terms for one sample, without augmentation: batches of one.

    sample: at camera size, as the student's sensor sees it; `full` is what the teachers are shown.
    """
    network = student.checkpoint.network
    device = network.anchors.device
    small = at_network_size(sample, network.settings.input_size)
    views, _ = distillation_batch([small], NO_AUGMENTATION, [torch.Generator().manual_seed(0)])
    outputs = network(select_inputs(views.student.to(device), network.settings.inputs))
    settings, seen = student.checkpoint.run.distillation, views.seen.to(device)
    maps: dict[tuple[Task, Level], TransferMaps] = {}
    for teacher in teachers:
        maps |= transfer_maps(outputs, teach(teacher.checkpoint.network, views.teacher.to(device)), settings, seen)
    return maps


def weight_panels(student: Model, sample: Sample, maps: Maps, task: Task) -> list[Panel]:
    """Return the F-MSE weights of the task's levels over the image, each in parts of its own maximum."""
    panels = []
    for (of_task, _), level in maps.items():
        if of_task == task:
            weight = level.weight[0]
            relative = f"up to {float(weight.max()) * weight.numel():.3g} x the mean"
            over = on_camera(weight / weight.max(), student.input_size, sample)
            panels.append(Panel(heated(sample.rgb, over), relative))
    return panels


def attention_panels(student: Model, sample: Sample, maps: Maps, task: Task) -> list[Panel]:
    """Return the attention masks of the task's levels over the image, the teacher's and then the student's."""
    panels = []
    for (of_task, _), level in maps.items():
        if of_task == task and level.student is not None and level.teacher is not None:
            for mask in (level.teacher, level.student):
                over = on_camera(mask[0, 0], student.input_size, sample)
                low, high = float(mask.min()), float(mask.max())
                panels.append(Panel(heated(sample.rgb, over), f"{low:.2f} to {high:.2f}"))
    return panels


def on_camera(values: Tensor, input_size: tuple[int, int], sample: Sample) -> Float32Array:
    """Return a map of the network input, (h, w), at the pixels of the camera, float32 (H, W), interpolated linearly."""
    height, width = sample.rgb.shape[:2]
    box = make_letterbox(height, width, input_size, values)
    full = logits_to_camera(values.float()[None, None], height, width, box, input_size)
    return np.asarray(full[0, 0].cpu().numpy(), np.float32)


def training_panels(
    sample: Sample, input_size: tuple[int, int], augmentation: Augmentation, draws: int, seed: int
) -> list[Panel]:
    """Return what a training makes of a sample: as it was read, and then so many draws of the augmentation.

    sample: at camera size. seed: of the draws. Each is two panels, the network's input turned back into images: RGB
    with mask and boxes, and thermal with the same boxes.
    """
    small = at_network_size(sample, input_size)
    panels = []
    for draw in range(draws + 1):
        generator = torch.Generator().manual_seed(seed * (draws + 1) + draw)
        views, targets = distillation_batch([small], augmentation if draw else NO_AUGMENTATION, [generator])
        boxes = torch.cat([targets.boxes[0], targets.ignored[0]]).numpy()
        labels = torch.cat([targets.labels[0], torch.full((len(targets.ignored[0]),), len(DETECTION))]).numpy()
        found = Detections(boxes.astype(np.float32), np.ones(len(boxes), np.float32), labels)
        mask = targets.mask[0].to(torch.uint8).numpy()
        rgb, thermal = _as_image(views.student[0, :3]), _as_image(views.student[0, 3:])
        if (mask != IGNORED_PIXEL).any():
            rgb = with_mask(rgb, mask)
        panels += [Panel(with_boxes(image, found, CAMERAS * (draws + 1))) for image in (rgb, thermal)]
    return panels


def _as_image(normalised: Tensor) -> UInt8Image:
    """Return the network's input of one camera, float32 (3, h, w), as uint8 (h, w, 3)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = ((normalised * std + mean) * 255).round().clamp(0, 255)
    return np.ascontiguousarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy())
