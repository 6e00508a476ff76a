"""A perception drawn onto its image, for people: boxes with class names, the mask in its colours, the mode, thermal."""

from collections.abc import Sequence

import cv2
import numpy as np

from md_perception.labels import DETECTION, SEGMENTATION, ClassList
from md_perception.results import Detections, Mode, Perception, Segmentation, UInt8Image

_MASK_OPACITY = 0.45
_INSET_SHARE = 0.28
"""Width of the thermal inset as a share of the image."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_UNKNOWN = (200, 200, 200)
_BANNER_COLOUR = {
    Mode.FUSED: (46, 160, 67),
    Mode.VISIBLE_ONLY: (210, 153, 34),
    Mode.THERMAL_ONLY: (210, 153, 34),
    Mode.LAST_THERMAL: (210, 153, 34),
    Mode.STALE: (218, 54, 51),
}

Colour = tuple[int, int, int]


def draw(
    perception: Perception,
    detection_classes: Sequence[str] = (),
    segmentation_classes: Sequence[str] = (),
    thermal: UInt8Image | None = None,
) -> UInt8Image:
    """Return a new RGB image, uint8 (H, W, 3), with everything that the perception says.

    detection_classes, segmentation_classes: the student's, in id order. thermal: uint8 (h, w), drawn as an inset.
    """
    canvas = np.array(perception.rgb, order="C")
    scale = max(0.35, canvas.shape[1] / 1280)
    if perception.output.segmentation is not None:
        blend_mask(canvas, perception.output.segmentation, segmentation_classes)
    if thermal is not None:
        draw_inset(canvas, thermal)
    if perception.output.detections is not None:
        draw_boxes(canvas, perception.output.detections, detection_classes, scale)
    _draw_banner(canvas, perception, scale)
    return canvas


def colours_of(classes: Sequence[str], known: ClassList) -> list[Colour]:
    """Return the RGB colour of each class, by its name, so that it does not depend on a student's order."""
    palette = dict(zip(known.classes, known.palette, strict=True))
    return [palette.get(name, _UNKNOWN) for name in classes]


def mask_colours(classes: Sequence[str]) -> list[Colour]:
    """Return the RGB colour of each class as masks are tinted with it."""
    return [_brightened(colour) for colour in colours_of(classes, SEGMENTATION)]


def _brightened(colour: Colour) -> Colour:
    """Return the same hue, bright enough to show at night: MFNet's palette is dark. Black stays black."""
    brightest = max(*colour, 1)
    gain = 255 / brightest * (0.6 + 0.4 * brightest / 255)
    red, green, blue = (min(255, round(gain * channel)) for channel in colour)
    return red, green, blue


def blend_mask(canvas: UInt8Image, segmentation: Segmentation, classes: Sequence[str]) -> None:
    """Tint what is not background on an RGB image, uint8 (H, W, 3); id 0 is the unlabelled class and stays clear."""
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(classes), 0] = mask_colours(classes)
    mask = np.ascontiguousarray(segmentation.mask)
    colours = cv2.applyColorMap(mask, table)
    tinted = cv2.addWeighted(canvas, 1 - _MASK_OPACITY, colours, _MASK_OPACITY, 0)
    cv2.copyTo(tinted, mask, canvas)


def draw_inset(canvas: UInt8Image, thermal: UInt8Image) -> None:
    """Show the thermal image, enlarged without smoothing, in the upper right corner."""
    height, width = canvas.shape[:2]
    inset_w = max(1, round(width * _INSET_SHARE))
    inset_h = min(height, max(1, round(inset_w * thermal.shape[0] / thermal.shape[1])))
    inset = cv2.resize(thermal, (inset_w, inset_h), interpolation=cv2.INTER_NEAREST)
    canvas[:inset_h, width - inset_w :] = inset[..., None]
    cv2.rectangle(canvas, (width - inset_w - 1, -1), (width, inset_h), (255, 255, 255), 1)


def draw_boxes(
    canvas: UInt8Image,
    detections: Detections,
    classes: Sequence[str],
    scale: float,
    names: bool = True,
    colour_of_all: Colour | None = None,
) -> None:
    """Draw boxes onto an RGB image, uint8 (H, W, 3), in the colours of their classes, or all in one.

    scale: of lines (3 px at 1) and letters. names: write class and score on a plate at each box.
    """
    colours = colours_of(classes, DETECTION) if colour_of_all is None else [colour_of_all] * len(classes)
    thickness = max(1, round(3 * scale))
    # The surest last, so that it lies on top.
    for box, score, label in reversed(list(zip(detections.boxes, detections.scores, detections.labels, strict=True))):
        left, top, right, bottom = (int(v) for v in np.rint(box))
        colour = colours[label]
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), colour, thickness)
        if names:
            _draw_text(canvas, f"{classes[label]} {score:.2f}", (left, top), colour, scale)


def _draw_banner(canvas: UInt8Image, perception: Perception, scale: float) -> None:
    """Say in the lower left corner what the result rests on."""
    text = perception.mode.name
    if perception.pair_offset_ns is not None:
        text += f"  pair {perception.pair_offset_ns / 1e6:+.0f} ms"
    text += f"  {perception.times.inference_ms:.0f} ms"
    _draw_text(canvas, text, (0, canvas.shape[0]), _BANNER_COLOUR[perception.mode], scale)


def _draw_text(canvas: UInt8Image, text: str, corner: tuple[int, int], colour: Colour, scale: float) -> None:
    """Write on a filled plate that stands on `corner` (left, bottom) and is kept inside the image."""
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    margin = max(2, round(5 * scale))
    plate_w, plate_h = width + 2 * margin, height + 2 * margin
    left = min(max(corner[0], 0), max(canvas.shape[1] - plate_w, 0))
    bottom = min(max(corner[1], plate_h), canvas.shape[0])
    cv2.rectangle(canvas, (left, bottom - plate_h), (left + plate_w - 1, bottom - 1), colour, cv2.FILLED)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(canvas, text, (left + margin, bottom - margin), _FONT, scale, ink, 1, cv2.LINE_AA)
