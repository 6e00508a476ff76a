"""The curve of miss rate over false positives per image (FPPI), of several runs or result files in one picture."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from md_perception.annotations.kaist import IMPROVED_TEST_SHA256, KaistAnnotations, read_test_annotations
from md_perception.labels import DETECTION
from md_perception.metrics.detection import TruthBoxes
from md_perception.metrics.miss_rate import (
    FPPI_LIMITS,
    REASONABLE,
    REFERENCES_FPPI,
    MissRate,
    class_miss_rate,
    curve_points,
    kaist_miss_rates,
    metric_name,
)
from md_perception.results import Detections
from md_training.data.kaist import IMPROVED_FILE, KaistPairs
from md_training.data.sources import Source
from md_training.evaluate import SUBSETS, Answers, predict
from md_training.figures.pages import wrapped
from md_training.figures.samples import HeldOut, HeldOutPairs
from md_training.miss_rate import read_results, write_results
from md_training.models.networks import Network
from md_training.postprocess import DetectionLimits

log = logging.getLogger(__name__)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people with any colour vision tell apart, those that print well first."""
LINES = ("-", "--", "-.", ":")
LOWEST_SHOWN = 0.005

Curves = Mapping[str, MissRate]
"""Subset to curve; a subset without images or objects is not there."""


def kaist_curves(annotations: KaistAnnotations, results: Path) -> dict[str, MissRate]:
    """Return the benchmark's `reasonable` curves of a file of detections, in KAIST's result format."""
    found = read_results(results, len(annotations.images))
    named = kaist_miss_rates(annotations.truth, found, settings=(REASONABLE,))
    by_subset = {subset: named.get(metric_name(REASONABLE.name, subset)) for subset in SUBSETS}
    return {subset: curve for subset, curve in by_subset.items() if curve is not None and curve.objects}


def class_curves(
    truth: Sequence[TruthBoxes], found: Sequence[Detections], night: Sequence[bool], class_name: str, title: str
) -> dict[str, MissRate]:
    """Return the curves of a class of a set without KAIST's attributes; everything not flagged as ignored counts.

    Day and night are apart where there is both. truth, found, night: of the same images. title: of the set, for the
    names, e.g. `MR2[person,msrs/val night]`.
    """
    dark = np.array(night, np.bool_)
    flags = {"all": np.ones(len(dark), np.bool_)}
    if 0 < dark.sum() < len(dark):
        flags |= {"day": ~dark, "night": dark}
    curves = {}
    for subset in flags:
        mine = np.flatnonzero(flags[subset]).tolist()
        name = metric_name(class_name, f"{title} {subset}")
        label = DETECTION.id_of(class_name)
        curve = class_miss_rate([truth[i] for i in mine], [found[i] for i in mine], label, name)
        if curve.objects:
            curves[subset] = curve
    return curves


def kaist_test(shown: HeldOut) -> KaistAnnotations | None:
    """Return the annotations of KAIST's test set where that, and all of it, is shown, so that its metric applies."""
    if not isinstance(shown, HeldOutPairs) or not isinstance(shown.pairs, KaistPairs):
        return None
    if shown.pairs.annotations.name != IMPROVED_FILE:
        return None
    annotations = read_test_annotations(shown.pairs.annotations)
    whole = tuple(str(image.name) for image in annotations.images) == tuple(shown.names)
    return annotations if whole and annotations.sha256 == IMPROVED_TEST_SHA256 else None


def network_curves(
    network: Network, shown: HeldOut, source: Source, class_name: str, results: Path
) -> dict[str, MissRate]:
    """Run a network over all samples and return its curves, see found_curves. source: of the network's run."""
    limits = DetectionLimits()
    answered = Answers()
    for number, name in enumerate(shown.names, start=1):
        sample = shown.sample(name, source)
        answered.add(sample, predict(network, sample, limits))
        if number % 100 == 0:
            log.info("%s: %d of %d samples", results.stem, number, len(shown.names))
    return found_curves(answered, shown, class_name, results)


def found_curves(answered: Answers, shown: HeldOut, class_name: str, results: Path) -> dict[str, MissRate]:
    """Return the curves of what was answered to all samples that are shown, in RGB px: for KAIST's whole test set those
    of its `reasonable` setting, else of the class.

    results: text file for the detections of the class, in KAIST's result format; KAIST's curves are those of this file.
    """
    write_results(results, answered.found, DETECTION.id_of(class_name))
    annotations = kaist_test(shown)
    if annotations is not None:
        return kaist_curves(annotations, results)
    return class_curves(answered.truth, answered.found, answered.night, class_name, shown.title)


def miss_rates(
    answered: Answers, shown: HeldOut, class_name: str, in_rgb: bool, results: Path | None
) -> dict[str, MissRate]:
    """Return what found_curves does, or nothing where the class is not annotated or not detected.

    in_rgb: the answers are in RGB px; others (a thermal-only student's) never have KAIST's metric. results: as there,
    None: no file is left.
    """
    if not answered.found or class_name not in shown.detection_classes:
        return {}
    if not in_rgb:
        return class_curves(answered.truth, answered.found, answered.night, class_name, shown.title)
    with TemporaryDirectory() as folder:
        return found_curves(answered, shown, class_name, results or Path(folder) / "detections.txt")


def miss_rate_figure(curves: Mapping[str, Curves], caption: str, width_in: float) -> Figure:
    """Draw the curves of each label, a panel for each subset.

    Dots are the nine references whose geometric mean the legend gives. Raises ValueError where nothing is to be drawn.
    """
    subsets = [subset for subset in SUBSETS if any(subset in of_label for of_label in curves.values())]
    if not subsets:
        raise ValueError("there is no curve of miss rate to draw: no object is annotated in what was evaluated")
    ends = [curve_points(curve)[1][-1] for of_label in curves.values() for curve in of_label.values()]
    lowest = max(LOWEST_SHOWN, 0.3 * min(ends))  # room for the legend
    figure = Figure((width_in, 2.9 if len(subsets) > 1 else 4.2), layout="constrained")
    for place, subset in zip(figure.subplots(1, len(subsets), squeeze=False, sharey=True)[0], subsets, strict=True):
        mine = {label: of_label[subset] for label, of_label in curves.items() if subset in of_label}
        _panel(place, mine, curves, lowest)
    figure.supxlabel(wrapped(caption, width_in), fontsize=5)
    return figure


def _panel(place: Axes, of_subset: Mapping[str, MissRate], labels: Iterable[str], lowest: float) -> None:
    """labels: of all curves of the picture, so that each has its look in every panel. lowest: end of the axis."""
    looks = dict(zip(labels, zip(cycle(COLOURS), cycle(LINES)), strict=False))
    for label, curve in of_subset.items():
        colour, line = looks[label]
        fppi, miss_rates = curve_points(curve)
        shown = np.maximum(miss_rates, LOWEST_SHOWN)
        assert curve.miss_rate is not None
        text = f"{100 * curve.miss_rate:.2f} %  {label}"
        place.plot(fppi, shown, line, color=colour, drawstyle="steps-post", linewidth=1.1, label=text)
        dots = np.maximum(curve.reference_miss_rates, LOWEST_SHOWN)
        place.plot(REFERENCES_FPPI, dots, "o", color=colour, markersize=2.2)
    first = next(iter(of_subset.values()))
    place.set_title(f"{first.name}\n{first.images} images, {first.objects} objects", fontsize=6.5)
    place.set(xscale="log", yscale="log", xlim=FPPI_LIMITS, ylim=(lowest, 1.05))
    ticks = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    place.yaxis.set_major_locator(FixedLocator(ticks))
    place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    place.yaxis.set_minor_formatter(NullFormatter())
    place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    place.tick_params(labelsize=6)
    place.grid(which="major", linewidth=0.3, color="0.85")
    place.set_xlabel("false positives per image", fontsize=6.5)
    if place.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        place.set_ylabel("miss rate, %", fontsize=6.5)
    place.legend(loc="lower left", fontsize=6, frameon=True, framealpha=0.9, edgecolor="none", handlelength=1.8)
