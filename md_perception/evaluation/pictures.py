"""Pictures of single frames: what each student said, beside what there was."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from md_perception.evaluation.page import Panel
from md_perception.evaluation.records import FrameRecord
from md_perception.labels import DETECTION, SEGMENTATION, UNLABELED_ID
from md_perception.metrics.detection import TruthBoxes
from md_perception.metrics.miss_rate import FALSE_POSITIVE, TRUE_POSITIVE, of_class
from md_perception.outputs.overlay import blend_mask, draw_boxes, draw_inset
from md_perception.results import Detections, Segmentation, UInt8Image

WIDTH_PX = 640
"""Of a picture on the page; wider images are reduced."""
_JPEG_QUALITY = 82

_FALSE_COLOUR, _MISSED_COLOUR, _FAINT = (255, 0, 220), (255, 255, 255), (140, 140, 140)
LEGEND = "Boxes and masks have the colours of their classes. In the corner: the thermal image that the student had."
JUDGED_LEGEND = (
    "Found objects have the colour of their class, false alarms are magenta, missed objects white, and what is not "
    "counted is grey. In the corner: the thermal image that the student had."
)


@dataclass(frozen=True)
class Picture:
    """A frame read again from its bag.

    rgb: uint8 (H, W, 3), the image that the result belongs to (in THERMAL_ONLY the thermal image in grey). thermal:
    uint8 (h, w), its partner; None without one. masks: of the students that segment, by name. truth_mask: uint8 (H, W),
    ids of labels.SEGMENTATION, 255 where nothing is known; None where it is not annotated.
    """

    rgb: UInt8Image
    thermal: UInt8Image | None = None
    masks: Mapping[str, Segmentation] = field(default_factory=dict)
    truth_mask: UInt8Image | None = None


Pictures = Callable[[str, Sequence[int]], Mapping[int, Picture]]
"""Reads frames of a bag again: its name and the positions among its records, to the pictures."""


@dataclass(frozen=True)
class Matched:
    """The boxes of one answer: found (score), false alarms (score), missed and not counted, each as Detections."""

    found: Detections
    false_alarms: Detections
    missed: Detections
    not_counted: Detections


def panels(
    record: FrameRecord,
    picture: Picture,
    students: Sequence[str],
    truth: TruthBoxes | None,
    teacher: str | None,
    threshold: float,
) -> list[Panel]:
    """Return the answers of the students and what they are judged by: the truth, or without it the teacher's answer.

    truth: the objects that the students are judged by, annotated or the teacher's; None without either. threshold:
    least score of a detection that is drawn.
    """
    canvases = {}
    for name in students:
        canvases[name] = _answered(record, picture, name, truth, threshold, picture.thermal)
    if record.truth is not None:
        canvases["truth"] = _annotated(picture, truth)
    elif teacher is not None:
        canvases[f"teacher: {teacher}"] = _answered(record, picture, teacher, None, threshold)
    return [_panel(label, canvas) for label, canvas in canvases.items()]


def matched(truth: TruthBoxes, detections: Detections) -> Matched:
    """Match the detections of a frame with its objects by the rules of the miss rate (metrics.miss_rate)."""
    kinds: dict[str, list[Detections]] = {"found": [], "false": [], "missed": [], "none": []}
    for label in range(len(DETECTION)):
        comparison, ignored = of_class([truth], [detections], label)
        outcomes, found = comparison.matches(ignored[0])
        mine = detections.labels == label
        boxes, scores = detections.boxes[mine], detections.scores[mine]
        order = np.argsort(-scores.astype(np.float64), kind="stable")  # that of the outcomes
        for kind, chosen in (
            ("found", outcomes == TRUE_POSITIVE),
            ("false", outcomes == FALSE_POSITIVE),
            ("none", (outcomes != TRUE_POSITIVE) & (outcomes != FALSE_POSITIVE)),
        ):
            kinds[kind].append(_boxes(boxes[order][chosen], label, scores[order][chosen]))
        objects = truth.boxes[truth.labels == label]
        kinds["missed"].append(_boxes(objects[~found & ~ignored[0]], label))
        kinds["none"].append(_boxes(objects[ignored[0]], label))
    return Matched(*(_joined(kinds[kind]) for kind in ("found", "false", "missed", "none")))


def _boxes(boxes: np.ndarray, label: int, scores: np.ndarray | None = None) -> Detections:
    scores = np.ones(len(boxes), np.float32) if scores is None else scores
    return Detections(boxes.astype(np.float32), scores, np.full(len(boxes), label, np.int64))


def _joined(parts: Sequence[Detections]) -> Detections:
    return Detections(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _answered(
    record: FrameRecord,
    picture: Picture,
    name: str,
    truth: TruthBoxes | None,
    threshold: float,
    thermal: UInt8Image | None = None,
) -> UInt8Image:
    """Return the image with the answer of a student. thermal: drawn in the corner, below the boxes."""
    canvas, scale = _canvas(picture.rgb)
    answer = record.answers[name]
    if name in picture.masks:
        blend_mask(canvas, _reduced(picture.masks[name], canvas), SEGMENTATION.classes)
    if thermal is not None:
        draw_inset(canvas, thermal)
    said = answer.detections
    if said is None and answer.rejected and truth is not None:
        said = _boxes(np.zeros((0, 4)), 0)  # it is scored as having missed everything
    if said is None:
        return canvas
    said = said.above(threshold)
    if truth is None:
        _draw(canvas, said, DETECTION.classes, scale)
        return canvas
    judged = matched(truth, said)
    _draw(canvas, judged.not_counted, DETECTION.classes, scale, names=False, colour=_FAINT)
    _draw(canvas, judged.found, DETECTION.classes, scale)
    _draw(canvas, judged.missed, DETECTION.classes, scale, names=False, colour=_MISSED_COLOUR)
    alarms = tuple(f"false {name}" for name in DETECTION.classes)
    _draw(canvas, judged.false_alarms, alarms, scale, colour=_FALSE_COLOUR)
    return canvas


def _annotated(picture: Picture, truth: TruthBoxes | None) -> UInt8Image:
    """Return the image with what is annotated."""
    canvas, scale = _canvas(picture.rgb)
    if picture.truth_mask is not None:
        known = np.where(picture.truth_mask == UNLABELED_ID, 0, picture.truth_mask).astype(np.uint8)
        blend_mask(canvas, _reduced(Segmentation(known, known), canvas), SEGMENTATION.classes)
    if truth is not None:
        for chosen, colour in ((truth.ignored, _FAINT), (~truth.ignored, None)):
            boxes = Detections(truth.boxes[chosen], np.ones(chosen.sum(), np.float32), truth.labels[chosen])
            _draw(canvas, boxes, DETECTION.classes, scale, names=False, colour=colour)
    return canvas


def _draw(
    canvas: UInt8Image,
    boxes: Detections,
    classes: Sequence[str],
    scale: float,
    names: bool = True,
    colour: tuple[int, int, int] | None = None,
) -> None:
    reduced = Detections((boxes.boxes * scale).astype(np.float32), boxes.scores, boxes.labels)
    draw_boxes(canvas, reduced, classes, 0.5, names, colour)


def _canvas(image: UInt8Image) -> tuple[UInt8Image, float]:
    """Return a copy of at most WIDTH_PX, and by how much it is smaller."""
    scale = min(1.0, WIDTH_PX / image.shape[1])
    if scale == 1:
        return np.array(image, order="C"), 1.0
    size = (WIDTH_PX, max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _reduced(segmentation: Segmentation, canvas: UInt8Image) -> Segmentation:
    size = (canvas.shape[1], canvas.shape[0])
    mask, confidence = (
        np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST), np.uint8)
        for plane in (segmentation.mask, segmentation.confidence)
    )
    return Segmentation(mask, confidence)


def _panel(label: str, canvas: UInt8Image) -> Panel:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), options)
    return Panel(label, data.tobytes(), (canvas.shape[1], canvas.shape[0]))
