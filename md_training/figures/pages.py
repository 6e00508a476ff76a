"""Pages of pictures at paper size: rows of samples, columns of what is shown of each."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs.overlay import blend_mask, colours_of, draw_boxes, mask_colours
from md_perception.results import Detections, Float32Array, Segmentation, UInt8Image
from md_training.data.sample import Sample
from md_training.losses import IGNORED_PIXEL

IGNORED = "ignored"
"""How boxes are called that are neither asked for nor background; as a class that no list knows they are grey."""
HEAT = "inferno"
"""Colour map of weights and attention: its lightness rises evenly, so that it reads in grey, too."""
HEAT_OPACITY = 0.75
DPI = 300
PAPER_WIDTH_IN = 7.0
"""Of the text of a two-column paper."""
LINE_PT = 0.6
"""Of boxes, at that width."""
GREATEST_HEIGHT_IN = 9.0
"""Of a page; more samples go to further pages."""
_SIZE, _SMALL_SIZE = 6.5, 5.0
"""Of letters, pt."""
_LABEL_IN, _GAP_IN, _LINE_IN, _SMALL_LINE_IN, _BAR_IN = 0.13, 0.02, 0.15, 0.1, 0.3
"""Width of the labels, between panels, height of a line of each size, of the colour bar with its letters."""


@dataclass(frozen=True)
class Style:
    """width_in: of the pages, inches. pdf: write a PDF beside each PNG."""

    width_in: float = PAPER_WIDTH_IN
    pdf: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.width_in <= 40:
            raise ValueError(f"width {self.width_in} inches: use 2 to 40")


@dataclass(frozen=True)
class Panel:
    """image: uint8 (H, W, 3). note: a few words below it."""

    image: UInt8Image
    note: str = ""


@dataclass(frozen=True)
class Row:
    """label: what the panels show, e.g. the sample's name. panels: one for each column."""

    label: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Page:
    """columns: their titles. caption: runs, split, threshold. legend: name to RGB colour. bar: label of the colour bar
    of HEAT from 0 to 1; none where it is empty."""

    columns: Sequence[str]
    caption: str
    legend: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    bar: str = ""


def save_pages(path: Path, page: Page, rows: Sequence[Row], style: Style) -> list[Path]:
    """Draw the rows, on as many pages as they need, and return the files: PATH.png, or PATH-1.png and so on."""
    panel_in = (style.width_in - _LABEL_IN) / len(page.columns) - _GAP_IN
    note_in = _SMALL_LINE_IN if any(panel.note for row in rows for panel in row.panels) else 0.0
    heights = [panel_in * max(panel.image.shape[0] / panel.image.shape[1] for panel in row.panels) for row in rows]
    step = max(heights) + note_in + _GAP_IN
    count = max(1, int((GREATEST_HEIGHT_IN - 6 * _LINE_IN) / step))
    groups = [range(first, min(first + count, len(rows))) for first in range(0, len(rows), count)]
    written = []
    for number, group in enumerate(groups, start=1):
        shown = [(rows[index], heights[index]) for index in group]
        name = path.name if len(groups) == 1 else f"{path.name}-{number}"
        written += save(_figure(page, shown, panel_in, note_in, style.width_in), path.with_name(name), style)
    return written


def save(figure: Figure, path: Path, style: Style) -> list[Path]:
    """Write PATH.png and, if wanted, PATH.pdf; return them."""
    files = [path.with_name(f"{path.name}.{kind}") for kind in (("png", "pdf") if style.pdf else ("png",))]
    for file in files:
        figure.savefig(file, dpi=DPI)
    return files


def wrapped(text: str, width_in: float) -> str:
    """Return a caption in lines that fit the page."""
    return "\n".join(textwrap.wrap(text, round(width_in * 26)))


def _figure(page: Page, rows: Sequence[tuple[Row, float]], panel_in: float, note_in: float, width_in: float) -> Figure:
    """Place everything by inches from the upper edge: panels of one page then have exactly one width. rows: with the
    height of their panels."""
    caption = wrapped(page.caption, width_in)
    longest = max((len(name) for name in page.legend), default=0)
    per_line = max(1, int(width_in * 72 / (_SIZE * (0.55 * longest + 3.5))))  # letters are about 0.55 em wide
    legend_in = _LINE_IN * math.ceil(len(page.legend) / per_line)
    bar_in = _BAR_IN if page.bar else 0.0
    rows_in = sum(height + note_in + _GAP_IN for _, height in rows)
    caption_in = _SMALL_LINE_IN * (caption.count("\n") + 1.5)
    height_in = legend_in + bar_in + _LINE_IN + rows_in + caption_in
    figure = Figure((width_in, height_in))

    def placed(left: float, top: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / width_in, 1 - (top + height) / height_in, width / width_in, height / height_in))

    def write(x: float, y: float, text: str, size: float, **options: Any) -> None:
        figure.text(x / width_in, 1 - y / height_in, text, fontsize=size, **options)

    if page.legend:
        handles = [
            Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="0.4", linewidth=0.3, label=name)
            for name, (red, green, blue) in page.legend.items()
        ]
        options: dict[str, Any] = {"handlelength": 1.2, "handleheight": 0.8, "columnspacing": 1.2, "frameon": False}
        options |= {"borderpad": 0.2, "labelspacing": 0.3, "borderaxespad": 0.1}
        figure.legend(handles=handles, loc="upper center", ncols=min(per_line, len(handles)), fontsize=_SIZE, **options)
    top = legend_in
    if page.bar:
        place = placed(0.35 * width_in, top + 0.12, 0.3 * width_in, 0.05)
        bar = figure.colorbar(ScalarMappable(cmap=HEAT), cax=place, orientation="horizontal")
        bar.ax.tick_params(labelsize=_SMALL_SIZE, width=0.4, length=2, pad=1)
        write(0.5 * width_in, top + 0.1, page.bar, _SMALL_SIZE, ha="center", va="bottom")
        top += bar_in
    lefts = [_LABEL_IN + column * (panel_in + _GAP_IN) for column in range(len(page.columns))]
    for left, title in zip(lefts, page.columns, strict=True):
        write(left + panel_in / 2, top + _LINE_IN - 0.04, title, _SIZE, ha="center", va="baseline")
    top += _LINE_IN
    for row, height in rows:
        write(_LABEL_IN / 2, top + height / 2, row.label, _SMALL_SIZE, ha="center", va="center", rotation=90)
        for left, panel in zip(lefts, row.panels, strict=True):
            place = placed(left, top, panel_in, height)
            place.imshow(panel.image, interpolation="antialiased")
            place.axis("off")
            write(left + panel_in / 2, top + height + 0.08, panel.note, _SMALL_SIZE, ha="center", va="baseline")
        top += height + note_in + _GAP_IN
    write(0.5 * width_in, top + 0.4 * _SMALL_LINE_IN, caption, _SMALL_SIZE, ha="center", va="top")
    return figure


def grey(image: UInt8Image) -> UInt8Image:
    """Return a one-channel image, uint8 (h, w), as RGB."""
    return np.repeat(image[..., None], 3, axis=2)


def with_boxes(image: UInt8Image, found: Detections, columns: int) -> UInt8Image:
    """Return a copy with boxes; labels are ids of labels.DETECTION, or the next one for IGNORED.

    columns: of the page, which decide how much the image is reduced: lines are as thick in print whatever its size.
    """
    canvas = np.array(image, order="C")
    line_px = LINE_PT / 72 * image.shape[1] * columns / PAPER_WIDTH_IN
    draw_boxes(canvas, found, (*DETECTION.classes, IGNORED), scale=line_px / 3, names=False)
    return canvas


def with_mask(image: UInt8Image, mask: UInt8Image) -> UInt8Image:
    """Return a copy tinted with the classes of a mask, uint8 (H, W), ids of labels.SEGMENTATION; what was left out
    (IGNORED_PIXEL) is darkened."""
    canvas = np.array(image, order="C")
    blend_mask(canvas, Segmentation(mask, mask), SEGMENTATION.classes)
    return canvas


def truth_boxes(sample: Sample) -> Detections:
    """Return the annotated boxes for `with_boxes`."""
    labels = np.where(sample.ignored, len(DETECTION), sample.labels)
    return Detections(sample.boxes, np.ones(len(labels), np.float32), labels)


def box_legend(classes: Sequence[str], ignored: bool) -> dict[str, tuple[int, int, int]]:
    """Return the colours of boxes of these classes by name, and of ignored ones."""
    names = (*classes, *([IGNORED] if ignored else []))
    return dict(zip(names, colours_of(names, DETECTION), strict=True))


def mask_legend(masks: Sequence[UInt8Image]) -> dict[str, tuple[int, int, int]]:
    """Return the colours of the classes that masks hold, by name; id 0 has none."""
    present = np.unique(np.concatenate([np.unique(mask) for mask in masks]))
    colours = mask_colours(SEGMENTATION.classes)
    legend = {SEGMENTATION.classes[id_]: colours[id_] for id_ in present if 0 < id_ < len(SEGMENTATION)}
    return legend | ({"left out": (0, 0, 0)} if IGNORED_PIXEL in present else {})


def heated(image: UInt8Image, values: Float32Array) -> UInt8Image:
    """Return a grey copy of an RGB image under a map of its size, float32 (H, W) in 0..1, in the colours of HEAT."""
    backdrop = grey(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)).astype(np.float32)
    colours = 255 * np.asarray(colormaps[HEAT](np.clip(values, 0, 1)))[..., :3]
    return np.asarray(np.rint((1 - HEAT_OPACITY) * backdrop + HEAT_OPACITY * colours), np.uint8)
