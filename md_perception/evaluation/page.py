"""A page of figures as one self-contained HTML file: no script, nothing from the network, everything escaped."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from md_perception.evaluation.charts import style_of

Verdict = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Tile:
    """A headline figure. value: what is read first. note: what it is of. state: whether a gate judged it."""

    name: str
    value: str
    note: str = ""
    state: Verdict = "neutral"


@dataclass(frozen=True)
class Cell:
    """A cell of a table. chart_style: classes of the swatch before the text, "" for none."""

    text: str
    state: Verdict = "neutral"
    number: bool = True
    chart_style: str = ""


@dataclass(frozen=True)
class Table:
    """columns: their names; the first column names the rows. rows: as long as columns. note: below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    kind: Literal["table"] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: a row of {len(row)} cells under {len(self.columns)} columns")


@dataclass(frozen=True)
class Chart:
    """A chart with its legend: label and classes of each series."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""
    kind: Literal["chart"] = "chart"


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    charts: Sequence[Chart]
    kind: Literal["charts"] = "charts"


@dataclass(frozen=True)
class Panel:
    """A picture and what it shows."""

    label: str
    jpeg: bytes = field(repr=False)
    size: tuple[int, int] = (0, 0)

    @property
    def uri(self) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


@dataclass(frozen=True)
class Shot:
    """One frame: its name, what is to be seen, and its pictures side by side."""

    title: str
    note: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Gallery:
    """Frames below each other, or side by side where each has one picture alone."""

    shots: Sequence[Shot]
    kind: Literal["gallery"] = "gallery"

    @property
    def narrow(self) -> bool:
        return all(len(shot.panels) == 1 for shot in self.shots)


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str
    state: Verdict = "neutral"
    kind: Literal["note"] = "note"


@dataclass(frozen=True)
class Folded:
    """Text as it is, e.g. JSON, behind its title."""

    title: str
    text: str
    kind: Literal["folded"] = "folded"


Block = Table | Chart | Charts | Gallery | Note | Folded


@dataclass(frozen=True)
class Section:
    """anchor: of links to it. blocks: from top to bottom."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """title, subject: the heading and what was evaluated. verdict: one sentence, and what it is. tiles: the headline.
    bar: shares of a whole, e.g. of the modes: label, share, 0..1. footer: who made it."""

    title: str
    subject: str
    verdict: str
    state: Verdict
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    bar: Sequence[tuple[str, float]] = ()
    footer: str = ""


def write_page(page: Page, path: Path) -> None:
    """Write the page; an old one stays until the new one is whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(rendered(page), encoding="utf-8")
    partial.replace(path)


def rendered(page: Page) -> str:
    """Return the page as HTML."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (here / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment.get_template("page.html.j2")
    return template.render(page=page, style=Markup(style), style_digest=digest, style_of=style_of)
