"""Sweeps of thermal resolutions and prices of cameras."""

from dataclasses import replace
from pathlib import Path

import pytest
from evaluated_frames import random_records

from md_perception.evaluation.schema import ScoreSettings
from md_perception.evaluation.scores import report_of
from md_perception.evaluation.simulate import Simulation, SimulationError
from md_perception.evaluation.sweep import PAPER_PRICES, PriceError, PriceList, Sweep, SweepPoint, measures, parse_sweep
from md_perception.results import Mode

SIZES = "thermal=160x128,640x512,80x64"


def swept(skills: tuple[float, float, float], *, truth: bool = True, teacher: str | None = None) -> Sweep:
    """Return a sweep of three cameras. skills: of the student `new` with each of them."""
    points = []
    settings = ScoreSettings(replicates=20)
    for simulation, skill in zip(parse_sweep(SIZES, Simulation()), skills, strict=True):
        names = {"new": skill} | ({teacher: 1.0} if teacher else {})
        records = random_records(names, 20, truth=truth, masks=truth)
        points.append(SweepPoint(simulation, report_of(records, teacher=teacher, settings=settings), records))
    return Sweep(tuple(points))


def test_a_sweep_is_what_is_simulated_at_each_size_the_largest_first() -> None:
    base = Simulation.parse("thermal,rate=9,rgb,gain=0.5")
    assert [str(one) for one in parse_sweep("thermal=80x64, 160x128", base)] == [
        "thermal=160x128,rate=9,rgb,gain=0.5",
        "thermal=80x64,rate=9,rgb,gain=0.5",
    ]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("rgb=320x240,160x120", "cannot be swept: write thermal=640x512"),
        ("thermal", "cannot be swept"),
        ("thermal=160x120", "at least two sizes, each of them once"),
        ("thermal=160x120,160x120", "at least two sizes, each of them once"),
        ("thermal=160x120,rate", "'rate' is not a size"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(text: str, cause: str) -> None:
    with pytest.raises(SimulationError, match=cause):
        parse_sweep(text, Simulation())


def test_a_size_is_either_swept_or_simulated() -> None:
    with pytest.raises(SimulationError, match=r"both swept and simulated: leave it out"):
        parse_sweep(SIZES, Simulation.parse("thermal=320x256,rate=9"))


# --- Prices ----------------------------------------------------------------------------------------------------------


def test_the_prices_of_the_paper_are_its_two_and_what_lies_between_is_said_to_be_interpolated() -> None:
    """Footnote 1: 640x480 more than 8,000 USD, 80x60 around 200 USD."""
    assert [str(PAPER_PRICES.quote(size)) for size in ((640, 480), (80, 60))] == [
        "more than 8,000 USD",
        "about 200 USD",
    ]
    # A data set's crop of the same camera, 7 % more pixels
    assert str(PAPER_PRICES.quote((640, 512))) == "more than 8,000 USD"
    between = PAPER_PRICES.quote((160, 120))
    assert between is not None
    assert between.basis == "between"
    # 4 times the pixels of 64, on logarithmic scales a third of the way: 200 * 40 ** (1 / 3) = 684
    assert between.amount == pytest.approx(684.0, abs=0.1)
    assert str(between) == "some 700 USD"
    assert PAPER_PRICES.quote((1280, 1024)) is None
    assert PAPER_PRICES.quote((32, 24)) is None


def test_own_prices_are_read(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("size,price_eur,source\n160x120, 240, shop of 2026-01\n\n640x512,4900.5,offer 17\n")
    prices = PriceList.read(file)
    assert prices.sources == ["160x120: 240 EUR (shop of 2026-01)", "640x512: 4,900 EUR (offer 17)"]
    assert str(prices.quote((160, 120))) == "240 EUR"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "the first line has to be size,price_usd,source"),
        ("width,price_usd,source\n", "the first line has to be"),
        ("size,price_usd,source\n", "has no price: add lines such as"),
        ("size,price_usd,source\n160,240,x\n", "line 2: .* is not a size"),
        ("size,price_usd,source\n160x120,cheap,x\n", "line 2: .*could not convert"),
        ("size,price_usd,source\n160x120,-1,x\n", "line 2: .*above 0"),
        ("size,price_usd,source\n160x120,nan,x\n", "line 2: .*above 0"),
        ("size,price_usd,source\n160x120,1\n", "line 2: "),
        ("size,price_usd,source\n160x120,1,x\n160x120,2,y\n", "line 3: 160x120 was there before"),
    ],
)
def test_prices_that_cannot_be_read_are_refused_with_their_line(tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(text)
    with pytest.raises(PriceError, match=cause):
        PriceList.read(file)


def test_a_list_of_prices_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PriceError, match=r"prices\.csv cannot be read"):
        PriceList.read(tmp_path / "prices.csv")


# --- What is compared ------------------------------------------------------------------------------------------------


def test_with_truth_its_figures_are_compared() -> None:
    sweep = swept((0.9, 0.8, 0.3))
    found = {measure.name: measure.scores["new"] for measure in measures(sweep)}
    assert list(found) == ["miss rate, person", "AP50", "mIoU"]
    for name, figure in (("miss rate, person", "miss_rate"), ("AP50", "ap50"), ("mIoU", "miou9")):
        expected = [point.report.figures("new")[figure] for point in sweep.points]
        assert [score.value for score in found[name] if score is not None] == expected


def test_without_truth_the_agreement_with_the_teacher_is_compared_and_the_teacher_itself_is_left_out() -> None:
    sweep = swept((0.9, 0.8, 0.3), truth=False, teacher="teacher")
    (measure,) = measures(sweep)
    assert measure.name == "AP50 against the teacher"
    assert list(measure.scores) == ["new"]
    expected = [point.report.figures("new")["agreement_ap50"] for point in sweep.points]
    assert [score.value for score in measure.scores["new"] if score is not None] == expected


def test_without_both_each_student_is_compared_with_itself_at_the_largest_size() -> None:
    (measure,) = measures(swept((0.9, 0.9, 0.2), truth=False))
    assert measure.name == "AP50 against its own answers at 640x512"
    largest, same, least = (score.value for score in measure.scores["new"] if score is not None)
    assert largest == 1
    assert same == 1  # the same answers
    assert least is not None
    assert least < 0.5


def test_boxes_in_thermal_pixels_are_not_compared_between_cameras_of_different_sizes() -> None:
    """RGB is lost in the second half, in which other answers, in other pixels, have the numbers of the first half."""
    points = []
    for point, skill in zip(swept((0.9, 0.9, 0.9), truth=False).points, (0.9, 0.8, 0.7), strict=True):
        others = random_records({"new": skill}, 20, seed=1, truth=False, masks=False)
        alone = [replace(record, mode=Mode.THERMAL_ONLY, unpaired="mode") for record in others]
        records = [*point.records, *alone]
        points.append(SweepPoint(point.simulation, report_of(records, settings=point.report.settings), records))
        assert [record.is_thermal for record in records] == [False] * 20 + [True] * 20
    (measure,) = measures(Sweep(tuple(points)))
    assert [score.value for score in measure.scores["new"] if score is not None] == [1, 1, 1]
