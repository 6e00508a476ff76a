"""Charts as inline SVG."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluated_frames import random_records

from md_perception.evaluation.charts import Axis, Series, line_chart, percent_axis, style_of
from md_perception.evaluation.judged import judge
from md_perception.evaluation.report_charts import class_curve, curve_charts
from md_perception.evaluation.schema import ScoreSettings
from md_perception.evaluation.scores import report_of

X = Axis("x", 0, 10, [(0, "0"), (10, "10")])
Y = Axis("y", 0, 1, [(0, "0"), (1, "1")])
LEFT, RIGHT, TOP, BOTTOM = 64, 546, 12, 328


def paths(svg: str, kind: str = "line") -> list[list[tuple[float, float]]]:
    """Return the corners of the paths of a class."""
    found = [one.get("d", "") for one in ElementTree.fromstring(svg).iter("path") if one.get("class") == kind]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", text)] for text in found]


def test_points_lie_where_the_axes_say() -> None:
    svg = line_chart("t", X, Y, [Series(style_of(0), [(0, 0), (5, 0.5), (10, 1)])])
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert paths(svg) == [[(LEFT, BOTTOM), middle, (RIGHT, TOP)]]


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances_and_clips() -> None:
    axis = Axis("x", 0.01, 100, [], log=True)
    assert [axis.share(value) for value in (0.01, 0.1, 1, 100)] == pytest.approx([0, 0.25, 0.5, 1])
    assert (axis.share(0), axis.share(1e9)) == (0, 1)


@pytest.mark.parametrize(("low", "high", "log"), [(1, 1, False), (2, 1, False), (0, 1, True)])
def test_an_axis_has_to_rise(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="cannot go from"):
        Axis("x", low, high, [], log)


def test_a_staircase_holds_its_height_until_the_next_step() -> None:
    svg = line_chart("t", X, Y, [Series(style_of(0), [(0, 1), (5, 0.5), (10, 0.5)], steps=True)])
    middle, half = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    assert paths(svg) == [[(LEFT, TOP), (middle, TOP), (middle, half), (RIGHT, half), (RIGHT, half)]]


def test_a_curve_of_many_points_is_thinned_and_keeps_its_ends() -> None:
    values = np.linspace(0, 1, 100_001)
    svg = line_chart("t", X, Y, [Series(style_of(0), [(10 * value, value) for value in values.tolist()])])
    (path,) = paths(svg)
    assert (path[0], path[-1]) == ((LEFT, BOTTOM), (RIGHT, TOP))
    assert 100 < len(path) < 1000
    assert max(abs(a[0] - b[0]) for a, b in itertools.pairwise(path)) < 1.1


def test_text_is_escaped() -> None:
    svg = line_chart("<b>", Axis("<x>", 0, 1, [(0, "<0>\n&")]), Y, [])
    texts = [one.text for one in ElementTree.fromstring(svg).iter() if one.text]
    assert {"<b>", "<x>", "<0>", "&"} <= set(texts)


def test_percent_axes_have_round_ticks_around_the_values() -> None:
    axis = percent_axis("y", 0.213, 0.288)
    assert [text for _, text in axis.ticks] == ["20", "22", "24", "26", "28", "30"]
    assert (axis.low, axis.high) == pytest.approx((0.2, 0.3))
    assert [text for _, text in percent_axis("y").ticks] == ["0", "20", "40", "60", "80", "100"]
    flat = percent_axis("y", 1.0, 1.02)
    assert flat.low < flat.high


def test_curves_end_at_the_figures_of_the_report() -> None:
    records = random_records({"new": 0.7}, 30)
    settings = ScoreSettings(replicates=2)
    scores = report_of(records, settings=settings).students["new"].slice()
    assert scores is not None
    assert scores.detection is not None
    judged = judge(records, "new", settings)
    for name, expected in scores.detection.by_class.items():
        curve = class_curve(judged, name)
        assert curve is not None
        assert curve.miss_rate.miss_rate == pytest.approx(expected.miss_rate, abs=1e-6)
        acted = int((curve.scores >= np.float32(settings.least_score)).sum())
        assert curve.recall[acted - 1] == pytest.approx(expected.recall, abs=1e-6)
        assert curve.precision[acted - 1] == pytest.approx(expected.precision, abs=1e-6)


def test_students_without_an_object_of_the_class_have_no_chart() -> None:
    records = random_records({"new": 0.7}, 5, truth=False)
    assert curve_charts({"new": judge(records, "new", ScoreSettings())}, "person") == []
