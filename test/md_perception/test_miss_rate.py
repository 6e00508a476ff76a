"""The log-average miss rate: its rules one by one, and against a literal implementation on drawn cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from md_perception.metrics.detection import TruthBoxes
from md_perception.metrics.miss_rate import (
    FALSE_POSITIVE,
    KAIST_SETTINGS,
    LEFT_OUT,
    REASONABLE,
    TRUE_POSITIVE,
    Bootstrap,
    Comparison,
    KaistTruth,
    ScoredBoxes,
    class_miss_rate,
    kaist_miss_rates,
    table,
)
from md_perception.results import Detections

TEN_PX = [100.0, 100.0, 10.0, 10.0]


def _boxes(*rows):
    return np.array(rows, np.float64).reshape(-1, 4)


def _found(*rows):
    """Detections of one image from rows left, top, width, height, score."""
    array = np.array(rows, np.float64).reshape(-1, 5)
    return ScoredBoxes(array[:, :4], array[:, 4])


def _flags(*values):
    return np.array(values, np.bool_)


def _outcomes(objects, ignored, *detections):
    return Comparison([_boxes(*objects)], [_found(*detections)]).outcomes(_flags(*ignored)).tolist()


def _result(truth, ignored, found, **options):
    """Score images of (objects, ignored flags, detections) as one subset."""
    subsets = {"MR2[test,all]": np.ones(len(truth), np.bool_)}
    return Comparison(truth, found).evaluate(ignored, subsets, **options)["MR2[test,all]"]


# Matching


def test_overlap_of_exactly_one_half_is_enough_and_less_is_not():
    # Lower half of the object: intersection 50, union 100.
    assert _outcomes([TEN_PX], [False], [100, 105, 10, 5, 0.9]) == [TRUE_POSITIVE]
    assert _outcomes([TEN_PX], [False], [100, 105.01, 10, 5, 0.9]) == [FALSE_POSITIVE]


def test_an_object_is_found_once_by_the_higher_score_whatever_the_order_in_the_file():
    # The later row scores higher and takes the object although the first overlaps it fully. Outcomes are by score.
    assert _outcomes([TEN_PX], [False], [*TEN_PX, 0.3], [100, 101, 10, 10, 0.8]) == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_equal_scores_are_matched_in_the_order_of_the_file():
    # At one score the first row takes the object that both overlap; the second has only the other, too far for it.
    objects = [TEN_PX]
    near, exact = [100, 102, 10, 10, 0.5], [*TEN_PX, 0.5]

    comparison = Comparison([_boxes(*objects)], [_found(near, exact)])

    assert comparison.outcomes(_flags(False)).tolist() == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_a_detection_takes_the_larger_overlap_and_of_equal_overlaps_the_later_object():
    left, right = [96, 100, 10, 10], [104, 100, 10, 10]
    between = [100, 100, 10, 10, 0.9]  # overlaps both by 60 of 140, less than one half
    wide_left, wide_right = [98, 100, 10, 10], [102, 100, 10, 10]  # both by 80 of 120

    assert _outcomes([left, right], [False, False], between) == [FALSE_POSITIVE]
    # Of the two equal ones the later is taken: what then overlaps only the earlier one still finds it free.
    assert _outcomes([wide_left, wide_right], [False, False], between, [98, 100, 10, 10, 0.8]) == [
        TRUE_POSITIVE,
        TRUE_POSITIVE,
    ]
    only_right = [103, 100, 10, 10, 0.8]  # 90 of 110 with the later, 50 of 150 with the earlier one
    assert _outcomes([wide_left, wide_right], [False, False], between, only_right) == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_an_ignored_object_absorbs_any_number_of_detections_that_lie_half_in_it():
    crowd = [100, 100, 100, 100]
    inside, half, less = [110, 110, 10, 10], [195, 110, 10, 10], [195.1, 110, 10, 10]

    outcomes = _outcomes([crowd], [True], [*inside, 0.9], [*inside, 0.8], [*half, 0.7], [*less, 0.6])

    assert outcomes == [LEFT_OUT, LEFT_OUT, LEFT_OUT, FALSE_POSITIVE]


def test_a_counted_object_goes_before_an_ignored_one_that_overlaps_more():
    crowd, person = (
        [90, 90, 100, 100],
        [100, 102, 10, 10],
    )  # the detection lies in the crowd and overlaps the person .67

    assert _outcomes([crowd, person], [True, False], [*TEN_PX, 0.9], [*TEN_PX, 0.8]) == [TRUE_POSITIVE, LEFT_OUT]


def test_boxes_without_area_are_false_positives():
    outcomes = _outcomes([TEN_PX], [False], [100, 100, 0, 10, 0.9], [105, 105, -5, -5, 0.8], [*TEN_PX, 0.7])

    assert outcomes == [FALSE_POSITIVE, FALSE_POSITIVE, TRUE_POSITIVE]


# Curve and average


def test_curve_and_average_of_a_case_worked_by_hand():
    # 10 images with a person each; scores .99 to .95: hit, false, hit, left out, hit.
    truth = [_boxes(TEN_PX)] * 9 + [_boxes(TEN_PX, [300, 300, 50, 50])]
    ignored = [_flags(False)] * 9 + [_flags(False, True)]
    found = [
        _found([*TEN_PX, 0.99]),
        _found([500, 100, 10, 10, 0.98], [*TEN_PX, 0.97]),
        *[_found()] * 6,
        _found([*TEN_PX, 0.95]),
        _found([310, 310, 10, 10, 0.96]),
    ]

    result = _result(truth, ignored, found)

    np.testing.assert_allclose(result.scores, [0.99, 0.98, 0.97, 0.95])
    np.testing.assert_allclose(result.fppi, [0, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(result.miss_rates, [0.9, 0.9, 0.8, 0.7])
    # Below FPPI .1 the last point is the first one; from .1 on, which is included, the last.
    np.testing.assert_allclose(result.reference_miss_rates, [0.9] * 4 + [0.7] * 5)
    assert result.miss_rate == pytest.approx(0.9 ** (4 / 9) * 0.7 ** (5 / 9))
    assert result.recall == pytest.approx(0.3)
    assert (result.images, result.objects, result.ignored_objects) == (10, 10, 1)
    assert (result.true_positives, result.false_positives, result.left_out) == (3, 1, 1)


def test_without_detections_everything_is_missed():
    result = _result([_boxes(TEN_PX)] * 2, [_flags(False)] * 2, [_found()] * 2)

    assert result.miss_rate == 1.0
    assert result.recall == 0.0
    assert result.fppi.size == 0
    assert result.reference_miss_rates.tolist() == [1.0] * 9


@pytest.mark.parametrize("ignored", [True, None])
def test_without_a_counted_object_there_is_no_miss_rate(ignored):
    truth = [_boxes() if ignored is None else _boxes(TEN_PX)]

    result = _result(
        truth, [_flags(*[True] * len(truth[0]))], [_found([400, 400, 10, 10, 0.9])], bootstrap=Bootstrap(5)
    )

    assert result.miss_rate is None
    assert result.recall is None
    assert result.interval is None
    assert result.false_positives == 1
    assert "none" in table([result])


def test_a_perfect_detector_reaches_the_floor_of_the_logarithm():
    result = _result([_boxes(TEN_PX)], [_flags(False)], [_found([*TEN_PX, 0.9])])

    assert result.miss_rate == pytest.approx(1e-10)
    assert result.recall == 1.0


def test_false_positives_before_the_first_reference_miss_everything_there():
    # One image: the first false positive is already FPPI 1, so only the last reference has a point.
    result = _result(
        [_boxes(TEN_PX, [300, 300, 10, 10])], [_flags(False, False)], [_found([0, 0, 9, 9, 1.0], [*TEN_PX, 0.5])]
    )

    assert result.reference_miss_rates.tolist() == [1.0] * 8 + [0.5]


# The other rules


def test_python2021_leaves_missed_objects_of_images_without_detections_out():
    truth, ignored = [_boxes(TEN_PX)] * 2, [_flags(False)] * 2
    found = [_found([*TEN_PX, 0.9]), _found()]

    assert _result(truth, ignored, found).miss_rate == pytest.approx(0.5)
    python = _result(truth, ignored, found, rules="python2021")
    assert python.objects == 1
    assert python.miss_rate == pytest.approx(1e-10)
    assert python.rules == "python2021"


def test_python2021_rounds_the_references():
    # One person, found after 176 false positives in 313 images: FPPI .562300, between .5623 and 10^-.25 = .56234. So
    # the last two of the nine references see the hit (their miss rate is then the floor), or the last one only.
    truth = [_boxes(TEN_PX)] + [_boxes()] * 312
    ignored = [_flags(False)] + [_flags()] * 312
    found = [_found([300, 300, 10, 10, 0.9])] * 176 + [_found()] * (313 - 176)
    found[0] = _found([300, 300, 10, 10, 0.9], [*TEN_PX, 0.1])

    assert _result(truth, ignored, found).miss_rate == pytest.approx(1e-10 ** (2 / 9))
    assert _result(truth, ignored, found, rules="python2021").miss_rate == pytest.approx(1e-10 ** (1 / 9))


def test_python2021_reads_the_last_point_where_none_is_low_enough():
    truth, ignored = [_boxes(TEN_PX, [300, 300, 10, 10])], [_flags(False, False)]
    found = [_found([0, 0, 9, 9, 1.0], [*TEN_PX, 0.5])]

    assert _result(truth, ignored, found, rules="python2021").reference_miss_rates.tolist() == [0.5] * 9


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="no rules 'coco', only matlab and python2021"):
        _result([_boxes(TEN_PX)], [_flags(False)], [_found()], rules="coco")


# Settings of KAIST


def _person(box, occlusion=0, ignored=False, night=False):
    return KaistTruth(_boxes(box), _flags(ignored), np.array([occlusion]), night)


@pytest.mark.parametrize(
    ("box", "counted"),
    [
        ([5, 5, 30, 55], True),
        ([4, 5, 30, 55], False),
        ([5, 4, 30, 55], False),
        ([605, 452, 30, 55], True),
        ([606, 452, 30, 55], False),
        ([605, 453, 30, 55], False),
        ([300, 200, 30, 54], False),
        ([300, 200, 30, 54.999], False),
    ],
)
def test_reasonable_counts_from_55_px_within_the_border(box, counted):
    assert REASONABLE.ignored(_person(box)).tolist() == [not counted]


@pytest.mark.parametrize(
    ("height", "names"),
    [
        (44, {"far", "none", "all-occlusions"}),
        (45, {"far", "medium", "none", "all-occlusions"}),  # both ends of a range belong to it
        (55, {"medium", "none", "reasonable", "all-occlusions"}),
        (115, {"near", "medium", "none", "reasonable", "all-occlusions"}),
        (116, {"near", "none", "reasonable", "all-occlusions"}),
    ],
)
def test_settings_by_height(height, names):
    person = _person([300, 200, 30, height])

    assert {setting.name for setting in KAIST_SETTINGS if not setting.ignored(person)[0]} == names


@pytest.mark.parametrize(
    ("occlusion", "names"),
    [
        (1, {"reasonable", "partial", "all-occlusions"}),
        (2, {"heavy", "all-occlusions"}),
    ],
)
def test_settings_by_occlusion(occlusion, names):
    person = _person([300, 200, 40, 100], occlusion)

    assert {setting.name for setting in KAIST_SETTINGS if not setting.ignored(person)[0]} == names


def test_other_labels_are_ignored_in_every_setting():
    cyclist = _person([300, 200, 40, 100], ignored=True)

    assert all(setting.ignored(cyclist)[0] for setting in KAIST_SETTINGS)


def test_results_are_named_by_setting_and_subset_and_split_by_light():
    truth = [_person([300, 200, 40, 100]), _person([300, 200, 40, 100], night=True)]
    found = [_found([300, 200, 40, 100, 0.9]), _found()]

    results = kaist_miss_rates(truth, found)

    assert list(results) == [
        "MR2[reasonable,all]",
        "MR2[reasonable,day]",
        "MR2[reasonable,night]",
        "MR2[near,all]",
        "MR2[medium,all]",
        "MR2[far,all]",
        "MR2[none,all]",
        "MR2[partial,all]",
        "MR2[heavy,all]",
        "MR2[all-occlusions,all]",
    ]
    assert all(result.name == name for name, result in results.items())
    assert results["MR2[reasonable,all]"].miss_rate == pytest.approx(0.5)
    assert results["MR2[reasonable,day]"].recall == 1.0
    assert results["MR2[reasonable,night]"].miss_rate == 1.0
    assert results["MR2[far,all]"].miss_rate is None


def test_a_subset_that_has_no_images_is_not_reported():
    results = kaist_miss_rates([_person([300, 200, 40, 100])], [_found()], settings=[REASONABLE])

    assert list(results) == ["MR2[reasonable,all]", "MR2[reasonable,day]"]


# Other data sets


def test_a_class_of_another_data_set_is_scored_by_the_same_rules():
    truth = [
        TruthBoxes(
            np.array([[0, 0, 10, 20], [50, 0, 90, 20], [200, 0, 210, 20]], np.float32),
            np.array([0, 2, 0]),
            _flags(False, False, True),
        )
    ]
    detections = [
        Detections(
            np.array([[0, 0, 10, 20], [50, 0, 90, 20], [202, 5, 208, 15], [300, 0, 310, 20]], np.float32),
            np.array([0.9, 0.8, 0.7, 0.6], np.float32),
            np.array([0, 2, 0, 0]),
        )
    ]

    result = class_miss_rate(truth, detections, 0, "MR2[person,scenes]")

    assert result.name == "MR2[person,scenes]"
    # The car is left out on both sides, the detection in the ignored person too.
    assert (result.objects, result.ignored_objects) == (1, 1)
    assert (result.true_positives, result.false_positives, result.left_out) == (1, 1, 1)
    np.testing.assert_array_equal(result.scores, np.array([0.9, 0.6], np.float32).astype(np.float64))
    np.testing.assert_array_equal(result.fppi, [0, 1])


# What is refused


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_and_coordinates_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        _found([*TEN_PX, bad])
    with pytest.raises(ValueError, match="NaN or infinite"):
        _found([bad, 1, 1, 1, 0.5])
    with pytest.raises(ValueError, match="NaN or infinite"):
        Comparison([_boxes([bad, 1, 1, 1])], [_found()])


def test_truth_and_detections_of_different_images_are_refused():
    with pytest.raises(ValueError, match="2 images have truth but 1 have detections"):
        Comparison([_boxes(), _boxes()], [_found()])
    with pytest.raises(ValueError, match="no image is in the subset"):
        kaist_miss_rates([], [])
    with pytest.raises(ValueError, match="do not describe the same"):
        ScoredBoxes(_boxes(TEN_PX), np.zeros(2))
    with pytest.raises(ValueError, match="do not describe the same"):
        KaistTruth(_boxes(TEN_PX), _flags(), np.zeros(1, np.int64), False)


# Interval


def test_interval_is_that_of_literally_redrawn_images():
    random = np.random.default_rng(4)
    truth, ignored, found = [], [], []
    for _ in range(40):
        truth.append(_boxes(TEN_PX, [200, 200, 20, 20]))
        ignored.append(_flags(False, bool(random.random() < 0.3)))
        rows = [[*TEN_PX, random.random()]] if random.random() < 0.7 else []
        rows += [[300, 300, 10, 10, random.random()] for _ in range(random.integers(3))]
        found.append(_found(*rows))

    result = _result(truth, ignored, found, bootstrap=Bootstrap(replicates=60, level=0.9, seed=7))

    again = np.random.default_rng(7)
    draws = []
    for _ in range(60):
        drawn = again.integers(40, size=40)
        draws.append(
            _result([truth[i] for i in drawn], [ignored[i] for i in drawn], [found[i] for i in drawn]).miss_rate
        )
    assert result.interval == pytest.approx(tuple(np.quantile(draws, [0.05, 0.95])))
    assert result.interval[0] < result.miss_rate < result.interval[1]


def test_a_subset_scores_as_its_images_alone():
    random = np.random.default_rng(9)
    truth, ignored, found = [], [], []
    for _ in range(30):
        truth.append(_boxes(*[TEN_PX, [200, 200, 20, 20]][: random.integers(3)]))
        ignored.append(random.random(len(truth[-1])) < 0.2)
        rows = [[*TEN_PX, random.random()]] if random.random() < 0.7 else []
        rows += [[300, 300, 10, 10, random.random()] for _ in range(random.integers(3))]
        found.append(_found(*rows))
    subset = random.random(30) < 0.4
    name, bootstrap = "MR2[test,some]", Bootstrap(replicates=20)

    result = Comparison(truth, found).evaluate(ignored, {name: subset}, bootstrap=bootstrap)[name]

    chosen = np.flatnonzero(subset)
    alone = _result(
        [truth[i] for i in chosen], [ignored[i] for i in chosen], [found[i] for i in chosen], bootstrap=bootstrap
    )
    assert result.images == len(chosen)
    assert result.miss_rate == alone.miss_rate
    assert result.interval == alone.interval
    assert (result.objects, result.ignored_objects) == (alone.objects, alone.ignored_objects)
    assert (result.true_positives, result.false_positives) == (alone.true_positives, alone.false_positives)
    np.testing.assert_array_equal(result.fppi, alone.fppi)


def test_bootstrap_needs_a_replicate():
    with pytest.raises(ValueError, match="at least 1 replicate"):
        Bootstrap(0)


# Against the rules written out literally


def _literal(truth, ignored, found, rules):
    """Return (score, hit) by falling score, miss rates at the references, and their average, by plain loops."""
    points, persons = [], 0
    for boxes, flags, detections in zip(truth, ignored, found, strict=True):
        gts = sorted(zip(boxes.tolist(), flags.tolist(), strict=True), key=lambda gt: gt[1])
        matched = [False] * len(gts)
        dts = sorted(zip(detections.boxes.tolist(), detections.scores.tolist(), strict=True), key=lambda dt: -dt[1])
        if rules == "matlab" or dts:
            persons += sum(not flag for _, flag in gts)
        for (x, y, w, h), score in dts:
            best, chosen = 0.5, None
            for index, ((gx, gy, gw, gh), flag) in enumerate(gts):
                if matched[index]:
                    continue
                if flag and chosen is not None:
                    break
                iw, ih = min(x + w, gx + gw) - max(x, gx), min(y + h, gy + gh) - max(y, gy)
                overlap = 0.0
                if iw > 0 and ih > 0:
                    overlap = iw * ih / (w * h if flag else w * h + gw * gh - iw * ih)
                if overlap >= best:
                    best, chosen = overlap, index
            if chosen is None:
                points.append((score, False))
            elif not gts[chosen][1]:
                matched[chosen] = True
                points.append((score, True))
    points.sort(key=lambda point: -point[0])
    if persons == 0:
        return points, [], None
    references = []
    for exponent in (-2, -1.75, -1.5, -1.25, -1, -0.75, -0.5, -0.25, 0):
        reference = 10**exponent
        if rules == "python2021":
            reference = round(reference, 4)
        recall, hits, false = 0.0, 0, 0
        low_enough = False
        for _, hit in points:
            hits, false = hits + hit, false + (not hit)
            if false / len(truth) <= reference:
                recall, low_enough = hits / persons, True
        if rules == "python2021" and not low_enough:
            recall = hits / persons
        references.append(1 - recall)
    return points, references, math.exp(sum(math.log(max(1e-10, miss)) for miss in references) / 9)


# Few places and sizes, so that equal overlaps, overlaps of exactly one half, and equal scores are common.
_BOX = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.integers(1, 5))
_IMAGE = st.tuples(
    st.lists(st.tuples(_BOX, st.booleans()), max_size=5), st.lists(st.tuples(_BOX, st.integers(0, 4)), max_size=6)
)


@examples(max_examples=150)
@given(images=st.lists(_IMAGE, min_size=1, max_size=5), rules=st.sampled_from(["matlab", "python2021"]))
def test_agrees_with_the_rules_written_out(images, rules):
    truth = [_boxes(*(box for box, _ in objects)) for objects, _ in images]
    ignored = [_flags(*(flag for _, flag in objects)) for objects, _ in images]
    found = [_found(*([*box, score / 4] for box, score in detections)) for _, detections in images]

    result = _result(truth, ignored, found, rules=rules)

    points, references, average = _literal(truth, ignored, found, rules)
    assert result.true_positives == sum(hit for _, hit in points)
    assert result.false_positives == sum(not hit for _, hit in points)
    np.testing.assert_allclose(result.reference_miss_rates, references)
    if average is None:
        assert result.miss_rate is None
    else:
        assert result.miss_rate == pytest.approx(average, rel=1e-9)
        assert result.scores.tolist() == [score for score, _ in points]
        np.testing.assert_allclose(result.fppi, np.cumsum([not hit for _, hit in points]) / len(images))
