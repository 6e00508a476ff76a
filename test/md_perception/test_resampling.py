import numpy as np
import pytest

from md_perception.labels import DETECTION
from md_perception.metrics.detection import TruthBoxes, average_precision
from md_perception.metrics.miss_rate import Bootstrap, class_miss_rate
from md_perception.metrics.resampling import DetectionResamples, SegmentationResamples, estimate
from md_perception.metrics.segmentation import Confusion
from md_perception.results import Detections


def street(seed: int, images: int) -> tuple[list[TruthBoxes], list[Detections]]:
    """Objects side by side, most of them found, some ignored, and detections of nothing."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = int(random.integers(0, 6))
        left = 60.0 * np.arange(count) + random.uniform(0, 5, count)
        boxes = np.stack([left, left * 0 + 10, left + 30, left * 0 + 70], axis=1).astype(np.float32)
        labels = random.integers(0, len(DETECTION), count)
        truth.append(TruthBoxes(boxes, labels, random.random(count) < 0.2))
        hits = random.random(count) < 0.8
        false = int(random.integers(0, 3))
        away = np.array([[400, 200, 430, 260]] * false, np.float32).reshape(-1, 4)
        away += 50 * np.arange(false, dtype=np.float32)[:, None]
        scores = random.random(int(hits.sum()) + false).astype(np.float32)
        shifted = boxes[hits] + random.uniform(-4, 4, (int(hits.sum()), 1)).astype(np.float32)
        order = np.argsort(-scores)
        found.append(
            Detections(
                np.concatenate([shifted, away])[order],
                scores[order],
                np.concatenate([labels[hits], random.integers(0, len(DETECTION), false)])[order].astype(np.int64),
            )
        )
    return truth, found


def test_once_each_gives_what_the_metrics_give() -> None:
    truth, found = street(0, 60)
    resamples = DetectionResamples(truth, found)
    once = np.ones(60, np.int64)
    expected = average_precision(truth, found)
    assert resamples.ap50(once) == pytest.approx(expected.mean_ap50, abs=1e-9)
    for label, name in enumerate(DETECTION.classes):
        assert resamples.class_ap50(name, once) == pytest.approx(expected.ap50[name], abs=1e-9)
        assert resamples.miss_rate(name, once) == pytest.approx(
            class_miss_rate(truth, found, label, "MR2[any]").miss_rate, abs=1e-12
        )


def test_an_image_drawn_twice_counts_twice() -> None:
    truth, found = street(1, 40)
    random = np.random.default_rng(2)
    drawn = np.sort(random.integers(40, size=40))
    times = np.bincount(drawn, minlength=40)
    there = [truth[index] for index in drawn], [found[index] for index in drawn]
    resamples, expected = DetectionResamples(truth, found), average_precision(*there)
    assert resamples.ap50(times) == pytest.approx(expected.mean_ap50, abs=1e-9)
    for label, name in enumerate(DETECTION.classes):
        rate = class_miss_rate(*there, label, "MR2[any]").miss_rate
        assert resamples.miss_rate(name, times) == pytest.approx(rate, abs=1e-12)


def test_segmentation_of_a_redraw_is_that_of_the_images_in_it() -> None:
    random = np.random.default_rng(3)
    pairs = [random.integers(0, 9, (2, 20, 20)).astype(np.uint8) for _ in range(5)]
    counts = []
    for truth, prediction in pairs:
        confusion = Confusion()
        confusion.add(truth, prediction)
        counts.append(confusion.counts)
    together = Confusion()
    for index in (0, 0, 3):
        together.add(*pairs[index])
    scores = SegmentationResamples(np.stack(counts)).scores(np.array([2, 0, 0, 1, 0]))
    assert scores.macc9 == pytest.approx(together.scores().macc9)
    assert scores.miou9 == pytest.approx(together.scores().miou9)


def test_no_object_no_score() -> None:
    truth, found = street(4, 10)
    empty = np.array([not len(image.labels) for image in truth], np.int64)
    resamples = DetectionResamples(truth, found)
    assert np.isnan(resamples.ap50(empty))
    assert np.isnan(resamples.miss_rate("person", empty))


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, 400)
    found = estimate(lambda times, _: float(times @ values / times.sum()), 400, bootstrap=Bootstrap(2000))
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert found.is_above_zero


def test_a_paired_difference_is_much_surer_than_its_parts() -> None:
    random = np.random.default_rng(6)
    hardness = random.normal(0, 1, 200)
    a, b = hardness + 0.1 + random.normal(0, 0.05, 200), hardness + random.normal(0, 0.05, 200)
    paired = estimate(lambda times, _: float(times @ (a - b) / times.sum()), 200)
    alone = estimate(lambda times, _: float(times @ a / times.sum()), 200)
    assert paired.is_above_zero
    assert not alone.is_above_zero or alone.interval[1] - alone.interval[0] > 5 * (paired.interval[1] - paired.value)


def test_repeats_and_groups_widen_the_interval() -> None:
    def width(estimate_: tuple[float, float]) -> float:
        return estimate_[1] - estimate_[0]

    random = np.random.default_rng(7)
    seeds = np.array([0.0, 1.0, 2.0])
    images = random.normal(0, 1, 300)
    by_seed = estimate(lambda times, chosen: float(seeds[chosen].mean() + times @ images / times.sum()), 300, repeats=3)
    assert by_seed.value == pytest.approx(1 + images.mean())
    one = estimate(lambda times, _: float(times @ images / times.sum()), 300)
    assert width(by_seed.interval) > 3 * width(one.interval)
    drives = np.repeat(np.arange(30), 10)
    alike = random.normal(0, 1, 30)[drives]
    together = estimate(lambda times, _: float(times @ alike / times.sum()), 300, groups=drives)
    apart = estimate(lambda times, _: float(times @ alike / times.sum()), 300)
    assert width(together.interval) > 2 * width(apart.interval)


def test_all_draws_without_a_score_give_no_interval() -> None:
    assert all(np.isnan(estimate(lambda times, _: float("nan"), 3, bootstrap=Bootstrap(5)).interval))


def test_a_subset_is_scored_over_its_own_images() -> None:
    # False positives per image are those of the images that are drawn, however many these are.
    truth, found = street(8, 40)
    chosen = np.arange(0, 40, 3)
    resamples = DetectionResamples(truth, found)
    times = np.zeros(40, np.int64)
    times[chosen] = 1

    for label, name in enumerate(DETECTION.classes):
        expected = class_miss_rate([truth[i] for i in chosen], [found[i] for i in chosen], label, "MR2[any]")
        assert resamples.miss_rate(name, times) == pytest.approx(expected.miss_rate, abs=1e-12)
        assert resamples.miss_rates(name, times).tolist() == pytest.approx(expected.reference_miss_rates.tolist())


def test_counts_from_a_score_on_are_those_of_the_curve() -> None:
    truth, found = street(9, 30)
    resamples = DetectionResamples(truth, found)

    for label, name in enumerate(DETECTION.classes):
        above = [image.above(0.4) for image in found]
        expected = class_miss_rate(truth, above, label, "MR2[any]")
        hits, missed, false = resamples.counts(name, 0.4)
        assert (hits.sum(), false.sum()) == (expected.true_positives, expected.false_positives)
        assert hits.sum() + missed.sum() == expected.objects
        objects = [int(((image.labels == label) & ~image.ignored).sum()) for image in truth]
        assert (hits + missed).tolist() == objects


def test_a_score_at_the_threshold_counts_as_the_float32_that_it_is() -> None:
    box = np.array([[0, 0, 10, 20]], np.float32)
    resamples = DetectionResamples(
        [TruthBoxes(box, np.zeros(1, np.int64), np.zeros(1, np.bool_))],
        [Detections(box, np.array([0.7], np.float32), np.zeros(1, np.int64))],  # 0.699999988
    )

    assert resamples.counts("person", 0.7)[0].tolist() == [1]
