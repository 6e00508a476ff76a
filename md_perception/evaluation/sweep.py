"""One drive at several thermal resolutions, and what such cameras cost: how cheap may the thermal camera be?"""

import csv
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from md_perception.evaluation.comparison import agreement_of
from md_perception.evaluation.pictures import Pictures
from md_perception.evaluation.records import FrameRecord
from md_perception.evaluation.schema import AgreementReport, DetectionScores, MaskScores, Report, Score
from md_perception.evaluation.simulate import Simulation, SimulationError, parse_size
from md_perception.results import Size


class PriceError(ValueError):
    """A list of prices that cannot be read; the text says where and why."""


@dataclass(frozen=True)
class Price:
    """What a thermal camera of this size costs. words: before the amount, e.g. `about`. source: who says so."""

    size: Size
    amount: float
    words: str
    source: str

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class Quote:
    """A price for a size. basis: `listed`, or `between`, interpolated between two listed prices."""

    amount: float
    currency: str
    words: str
    basis: Literal["listed", "between"]

    @property
    def amount_text(self) -> str:
        """The amount with its currency; an interpolated one has a single digit that means something."""
        amount = self.amount if self.basis == "listed" else float(f"{self.amount:.1g}")
        return f"{amount:,.0f} {self.currency}"

    def __str__(self) -> str:
        return f"{self.words} {self.amount_text}".strip()


@dataclass(frozen=True)
class PriceList:
    """Prices of cameras by size, to be replaced by those that are paid (`read`)."""

    prices: tuple[Price, ...]
    currency: str

    NEAR = 0.1
    """A camera whose pixels differ by less than this share has the price of a listed one: data sets and drivers crop
    (640x512, 640x480), and nobody sells the difference."""

    def quote(self, size: Size) -> Quote | None:
        """Return the price of a size; None for sizes beyond those of the list.

        Between two listed prices it is interpolated on logarithmic scales, which says where to look in a catalogue and
        not what a shop asks.
        """
        pixels = size[0] * size[1]
        ordered = sorted(self.prices, key=lambda price: price.pixels)
        nearest = min(ordered, key=lambda price: abs(math.log(price.pixels / pixels)), default=None)
        if nearest is None:
            return None
        if abs(nearest.pixels / pixels - 1) <= self.NEAR:
            return Quote(nearest.amount, self.currency, nearest.words, "listed")
        below = [price for price in ordered if price.pixels < pixels]
        above = [price for price in ordered if price.pixels > pixels]
        if not below or not above:
            return None
        low, high = below[-1], above[0]
        share = math.log(pixels / low.pixels) / math.log(high.pixels / low.pixels)
        return Quote(low.amount * (high.amount / low.amount) ** share, self.currency, "some", "between")

    @property
    def sources(self) -> list[str]:
        """Who says what, a sentence each."""
        sizes = ["{}x{}".format(*price.size) for price in self.prices]
        quotes = [Quote(price.amount, self.currency, price.words, "listed") for price in self.prices]
        return [
            f"{size}: {quote} ({price.source})" for size, quote, price in zip(sizes, quotes, self.prices, strict=True)
        ]

    @classmethod
    def read(cls, path: Path) -> "PriceList":
        """Read a CSV file with the columns size (e.g. 160x120), price_usd (or another currency) and source.

        Raises PriceError.
        """
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                return cls._of_rows(list(csv.reader(file)), str(path))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise PriceError(f"{path} cannot be read as a list of prices: {error}") from None

    @classmethod
    def _of_rows(cls, rows: list[list[str]], path: str) -> "PriceList":
        header = [name.strip().lower() for name in rows[0]] if rows else []
        currency = re.fullmatch(r"price_([a-z]{3})", header[1]) if len(header) == 3 else None
        if currency is None or header[0] != "size" or header[2] != "source":
            raise PriceError(
                f"{path} begins with {','.join(header)!r}: the first line has to be size,price_usd,source (or "
                "price_eur and so on), and the lines after it e.g. 160x120,240,shop X of 2026-01"
            )
        prices: list[Price] = []
        for number, row in enumerate(rows[1:], start=2):
            if not any(cell.strip() for cell in row):
                continue
            try:
                size_text, amount_text, source = (cell.strip() for cell in row)
                size, amount = parse_size(size_text), float(amount_text)
            except ValueError as error:
                raise PriceError(f"{path}, line {number}: {','.join(row)!r}: {error}") from None
            if not (0 < amount < math.inf and min(size) > 0):
                raise PriceError(f"{path}, line {number}: {','.join(row)!r}: size and price have to be above 0")
            if any(size == price.size for price in prices):
                raise PriceError(f"{path}, line {number}: {size_text} was there before: keep one price of a size")
            prices.append(Price(size, amount, "", source))
        if not prices:
            raise PriceError(f"{path} has no price: add lines such as 160x120,240,shop X of 2026-01")
        return cls(tuple(prices), currency[1].upper())


_PAPER = "a typical camera, by footnote 1 of the Modality Distillation paper"
PAPER_PRICES = PriceList(
    (Price((640, 480), 8000, "more than", _PAPER), Price((80, 60), 200, "about", _PAPER)),
    "USD",
)
"""The only prices that the paper names."""


def parse_sweep(text: str, base: Simulation) -> tuple[Simulation, ...]:
    """Read `thermal=640x512,320x256,160x128,80x64`: what `base` simulates, at each of these sizes, largest first.

    Raises SimulationError.
    """
    camera, separator, sizes = text.partition("=")
    if camera.strip() != "thermal" or not separator:
        raise SimulationError(f"{text!r} cannot be swept: write thermal=640x512,320x256,160x128,80x64")
    found = [parse_size(word) for word in sizes.split(",")]
    if len(set(found)) < max(2, len(found)):
        raise SimulationError(f"{text!r}: a sweep has at least two sizes, each of them once")
    if base.thermal.size is not None:
        raise SimulationError(
            "the size of the thermal camera is both swept and simulated: leave it out of what is simulated, "
            "e.g. thermal,rate=9"
        )
    ordered: Sequence[Size] = sorted(found, key=lambda size: -size[0] * size[1])
    return tuple(base.with_thermal_size(size) for size in ordered)


# --- Results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepPoint:
    """The evaluation with one thermal camera. records: those that the report was made of. pictures: reads its frames
    again; without it no frames are shown.
    """

    simulation: Simulation
    report: Report
    records: Sequence[FrameRecord] = ()
    pictures: Pictures | None = None

    @property
    def name(self) -> str:
        """Its size, as it is written."""
        return "{}x{}".format(*self.size)

    @property
    def size(self) -> Size:
        """(width, height) px of the thermal camera. Raises ValueError where none was simulated."""
        if self.simulation.thermal.size is None:
            raise ValueError(f"{self.simulation!s} says no size: it is no part of a sweep")
        return self.simulation.thermal.size


@dataclass(frozen=True)
class Sweep:
    """The same drives with several thermal cameras, largest first."""

    points: tuple[SweepPoint, ...]
    prices: PriceList = PAPER_PRICES


@dataclass(frozen=True)
class Measure:
    """A figure of every student at every point of a sweep. scores: by student, in the order of the points; None where
    it cannot be said.
    """

    name: str
    scores: dict[str, list[Score | None]]


def measures(sweep: Sweep) -> list[Measure]:
    """Return the figures that the points can be compared by, the most telling first.

    With truth its figures; with a teacher (who sees the camera of the bag) the agreement with it. Without both the
    agreement of each student with its own answers at the largest size: what is lost by a cheaper camera, and not how
    good either is.
    """
    first = sweep.points[0].report
    teachers = {agreement.teacher for agreement in first.agreement.values()}
    students = [name for name in first.students if name not in teachers]
    headline = first.settings.headline_class
    figures: dict[str, Callable[[SweepPoint, str], Score | None]] = {
        f"miss rate, {headline}": lambda point, name: _truth(point, name, "detection", "miss_rate"),
        "AP50": lambda point, name: _truth(point, name, "detection", "ap50"),
        "mIoU": lambda point, name: _truth(point, name, "masks", "miou9"),
        "AP50 against the teacher": lambda point, name: _agreed(point, name, "detection", "ap50"),
        "mIoU against the teacher": lambda point, name: _agreed(point, name, "masks", "miou_present"),
    }
    found = [
        Measure(title, {name: [figure(point, name) for point in sweep.points] for name in students})
        for title, figure in figures.items()
    ]
    found = [one for one in found if any(score for scores in one.scores.values() for score in scores)]
    if not found:
        own = {name: [_own(sweep.points[0], point, name) for point in sweep.points] for name in students}
        title = f"AP50 against its own answers at {sweep.points[0].name}"
        found = [Measure(title, own)] if any(score for scores in own.values() for score in scores) else []
    return found


def _truth(point: SweepPoint, student: str, part: Literal["detection", "masks"], figure: str) -> Score | None:
    everything = point.report.students[student].slice()
    return _figure(None if everything is None else getattr(everything, part), figure)


def _agreed(point: SweepPoint, student: str, part: Literal["detection", "masks"], figure: str) -> Score | None:
    agreement = point.report.agreement.get(student)
    return None if agreement is None else _figure(getattr(agreement.slices[0], part), figure)


def own_agreement(largest: SweepPoint, point: SweepPoint, student: str) -> AgreementReport | None:
    """Return the agreement of a student with what it says at the largest size, in the frames that both have.

    What it would act on there takes the place of a teacher's answers. Boxes in thermal pixels have no common ones.
    """
    reference = "with the largest camera"
    others = {
        (record.bag, record.index): record.answers[student] for record in largest.records if not record.is_thermal
    }
    records = [
        replace(record, answers={student: record.answers[student], reference: others[record.bag, record.index]})
        for record in point.records
        if not record.is_thermal and (record.bag, record.index) in others
    ]
    settings = point.report.settings
    settings = settings.model_copy(update={"teacher_score": settings.least_score})
    return agreement_of(records, student, reference, settings) if records else None


def _own(largest: SweepPoint, point: SweepPoint, student: str) -> Score | None:
    agreement = own_agreement(largest, point, student)
    return None if agreement is None else _figure(agreement.slices[0].detection, "ap50")


def _figure(part: DetectionScores | MaskScores | None, figure: str) -> Score | None:
    value = None if part is None else getattr(part, figure)
    score = value if isinstance(value, Score) else Score(value=value)
    return None if score.value is None else score
