"""The charts of report.html: miss rate, precision and recall, and a sweep of thermal cameras."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from md_perception.evaluation.charts import Axis, Series, line_chart, percent_axis, style_of
from md_perception.evaluation.judged import Judged
from md_perception.evaluation.page import Chart
from md_perception.evaluation.sweep import Measure, Sweep
from md_perception.labels import DETECTION
from md_perception.metrics.miss_rate import FPPI_LIMITS, REFERENCES_FPPI, MissRate, curve_points, of_class

Float64Array = npt.NDArray[np.float64]

_RATE_TICKS = [(value, f"{100 * value:g}") for value in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)]
_FPPI_TICKS = [(0.01, "0.01"), (0.1, "0.1"), (1.0, "1")]
_MOST_LABELLED = 6
"""Cameras of a sweep whose names fit below a chart."""


@dataclass(frozen=True)
class ClassCurve:
    """One student's detections of a class. recall, precision: float64 (D,), of the D detections with the highest
    scores; scores: float64 (D,), falling.
    """

    miss_rate: MissRate
    recall: Float64Array
    precision: Float64Array
    scores: Float64Array


def class_curve(judged: Judged, class_name: str) -> ClassCurve | None:
    """Return the curves of a class; None where no object of it is counted."""
    if not judged.truth:
        return None
    comparison, ignored = of_class(judged.truth, judged.found, DETECTION.id_of(class_name))
    rate = comparison.evaluate(ignored, {class_name: np.ones(len(ignored), np.bool_)})[class_name]
    if not rate.objects:
        return None
    curve = comparison.curve(ignored)
    hits = np.cumsum(curve.hit)
    return ClassCurve(rate, hits / rate.objects, hits / np.arange(1, len(hits) + 1), curve.scores)


def curve_charts(judged: Mapping[str, Judged], class_name: str) -> list[Chart]:
    """Return miss rate over false positives, and precision over recall, of every student; nothing without an object."""
    styles = {name: style_of(index) for index, name in enumerate(judged)}
    curves = {name: curve for name, one in judged.items() if (curve := class_curve(one, class_name)) is not None}
    if not curves:
        return []
    least_score = next(iter(judged.values())).settings.least_score
    return [_miss_rates(class_name, curves, styles), _precisions(class_name, curves, styles, least_score)]


def _miss_rates(class_name: str, curves: Mapping[str, ClassCurve], styles: Mapping[str, str]) -> Chart:
    drawn = {name: curve_points(curve.miss_rate) for name, curve in curves.items()}
    lowest = max(0.7 * min(float(rates.min()) for _, rates in drawn.values()), _RATE_TICKS[0][0])
    low = max(value for value, _ in _RATE_TICKS[:-1] if value <= lowest)
    y = Axis("miss rate, %", low, 1.0, [tick for tick in _RATE_TICKS if tick[0] >= low], log=True)
    x = Axis("false positives per image", *FPPI_LIMITS, _FPPI_TICKS, log=True)
    series = [
        Series(
            styles[name],
            list(zip(fppi.tolist(), rates.tolist(), strict=True)),
            steps=True,
            dots=list(zip(REFERENCES_FPPI.tolist(), curves[name].miss_rate.reference_miss_rates.tolist(), strict=True)),
        )
        for name, (fppi, rates) in drawn.items()
    ]
    first = next(iter(curves.values())).miss_rate
    title = f"Miss rate, {class_name}: {first.objects:,} objects in {first.images:,} frames"
    legend = [
        (f"{100 * (curve.miss_rate.miss_rate or 0):.1f} %  {name}", styles[name]) for name, curve in curves.items()
    ]
    note = "Dots: the nine references whose geometric mean is the log-average miss rate."
    return Chart(title, line_chart(title, x, y, series), legend, note)


def _precisions(
    class_name: str, curves: Mapping[str, ClassCurve], styles: Mapping[str, str], least_score: float
) -> Chart:
    series = []
    for name, curve in curves.items():
        acted = int((curve.scores >= np.float32(least_score)).sum())
        dots = [(float(curve.recall[acted - 1]), float(curve.precision[acted - 1]))] if acted else []
        points = list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True))
        series.append(Series(styles[name], points, dots=dots))
    title = f"Precision and recall, {class_name}"
    svg = line_chart(title, percent_axis("recall, %"), percent_axis("precision, %"), series)
    note = f"Dot: detections from the score {least_score:g} on, on which a vehicle acts."
    return Chart(title, svg, [(name, styles[name]) for name in curves], note)


def sweep_chart(sweep: Sweep, measure: Measure) -> Chart:
    """Return a figure of every student against the thermal resolution, with the price of such a camera below it."""
    pixels = [width * height for width, height in (point.size for point in sweep.points)]
    every = math.ceil(len(pixels) / _MOST_LABELLED)
    ticks = []
    for point, count in list(zip(sweep.points, pixels, strict=True))[::every]:
        quote = sweep.prices.quote(point.size)
        price = "" if quote is None else f"\n{quote.words}\n{quote.amount_text}".replace("\n\n", "\n")
        ticks.append((float(count), point.name + price))
    x = Axis("thermal camera, px", min(pixels) / 1.6, max(pixels) * 1.6, ticks, log=True)
    known = [score for scores in measure.scores.values() for score in scores if score is not None]
    ends = [value for score in known for value in (score.value, score.low, score.high) if value is not None]
    margin = max(0.02, 0.1 * (max(ends) - min(ends)))
    series = []
    for index, scores in enumerate(measure.scores.values()):
        points, intervals = [], []
        for count, score in zip(pixels, scores, strict=True):
            if score is not None and score.value is not None:
                points.append((float(count), score.value))
                if score.low is not None and score.high is not None:
                    intervals.append((float(count), score.low, score.high))
        series.append(Series(style_of(index), points, dots=points, intervals=intervals))
    y = percent_axis(f"{measure.name.partition(' against')[0]}, %", min(ends) - margin, max(ends) + margin)
    title = f"{measure.name[:1].upper()}{measure.name[1:]}, by thermal resolution and price"
    return Chart(title, line_chart(title, x, y, series), [(name, style_of(i)) for i, name in enumerate(measure.scores)])
