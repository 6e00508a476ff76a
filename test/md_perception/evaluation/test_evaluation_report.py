"""report.html."""

import base64
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_frames import SIZE, drive_record, random_records

from md_perception.evaluation.gates import Gate
from md_perception.evaluation.page import Cell, Page, Section, Table, Tile, rendered
from md_perception.evaluation.pictures import Picture
from md_perception.evaluation.records import FrameRecord
from md_perception.evaluation.report import write_html
from md_perception.evaluation.report_frames import WORST_SHOWN
from md_perception.evaluation.schema import Report, ScoreSettings
from md_perception.evaluation.scores import report_of
from md_perception.evaluation.simulate import Simulation
from md_perception.evaluation.sweep import Sweep, SweepPoint, parse_sweep
from md_perception.evaluation.timing import Timing

SETTINGS = ScoreSettings(replicates=20, block_s=0)
HOSTILE = '<script>alert("1")</script>'


class Read(HTMLParser):
    """What a browser makes of a page: tags with attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.sections: dict[str, list[str]] = {}
        self._section = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = str(dict(attrs)["id"])

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())
            self.sections.setdefault(self._section, []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def made(tmp_path: Path, records: Sequence[FrameRecord], report: Report | None = None, **options: Any) -> Read:
    path = tmp_path / "report.html"
    report = report or report_of(records, drives=[drive_record(records)], settings=SETTINGS)
    write_html(report, path, records=records, **options)
    return Read(path.read_text("utf-8"))


def verdict_of(page: Read) -> str:
    return page.sections["summary"][0]


def tiles(page: Read) -> dict[str, str]:
    texts = page.sections["summary"]
    return dict(itertools.pairwise(texts))


def grey(bag: str, positions: Sequence[int]) -> Mapping[int, Picture]:
    rgb = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    return {position: Picture(rgb, np.zeros((60, 80), np.uint8)) for position in positions}


# --- The page itself -------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = made(tmp_path, random_records({"new": 0.7}, 10), pictures=grey)
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text


def test_the_policy_allows_the_style_of_the_page_and_nothing_else(tmp_path: Path) -> None:
    made(tmp_path, random_records({"new": 0.7}, 5))
    text = (tmp_path / "report.html").read_text("utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(one["content"] for one in Read(text).all("meta") if "http-equiv" in one)
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_names_from_bags_and_files_are_text_wherever_they_stand(tmp_path: Path) -> None:
    records = random_records({HOSTILE: 0.7, "b": 0.8}, 10, bag='"><img src=x onerror=alert(1)>')
    report = report_of(
        records,
        drives=[drive_record(records, damage=HOSTILE)],
        settings=SETTINGS,
        provenance={HOSTILE: {"manifest": HOSTILE}, "configuration": {"simulation": HOSTILE}},
    )
    gate = Gate(f"{HOSTILE}:miss_rate<=0.1", 0.3, False)
    timing = Timing.of([{f"total {HOSTILE}": 5.0}], [HOSTILE], 1)
    page = made(tmp_path, records, report, pictures=grey, gates=[gate], timing=timing)
    assert not page.all("script")
    assert all(str(image["src"]).startswith("data:") for image in page.all("img"))
    assert sum(HOSTILE in text for text in page.texts) > 10


def test_the_same_report_makes_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made(tmp_path / name, random_records({"new": 0.7}, 10), pictures=grey)
        assert [file.name for file in (tmp_path / name).iterdir()] == ["report.html"]
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_every_link_of_the_page_has_its_section(tmp_path: Path) -> None:
    page = made(tmp_path, random_records({"new": 0.7}, 10), pictures=grey)
    linked = {str(link["href"]) for link in page.all("a")}
    assert linked == {f"#{section['id']}" for section in page.all("section")} - {"#summary"}


def test_a_table_with_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        Table("t", ["a", "b"], [[Cell("1")]])


def test_a_figure_is_coloured_by_its_verdict() -> None:
    table = Table("t", ["a", "b"], [[Cell("name", number=False), Cell("7", "bad")]])
    page = Read(rendered(Page("t", "s", "v", "good", [Tile("n", "5", state="good")], [Section("x", "X", [table])])))
    assert [cell["class"] for cell in page.all("td")] == ["number bad"]
    assert {"class": "verdict good"} in page.all("p")
    assert page.all("li")[0]["class"] == "good"


# --- Summary ---------------------------------------------------------------------------------------------------------


def test_the_headline_figures_are_those_of_the_report(tmp_path: Path) -> None:
    records = random_records({"new": 0.8}, 40)
    report = report_of(records, drives=[drive_record(records)], settings=SETTINGS)
    timing = Timing.of([{"total new": float(ms)} for ms in range(1, 101)], ["a machine"], 1)
    page = made(tmp_path, records, report, timing=timing)
    shown = tiles(page)
    figures = report.figures("new")
    assert shown["frames"] == "40"
    assert shown["paired with thermal"] == "90.0 %"
    assert shown["miss rate, person"] == f"{100 * (figures['miss_rate'] or 0):.1f} %"
    assert shown["AP50"] == f"{100 * (figures['ap50'] or 0):.1f} %"
    assert shown["mIoU"] == f"{100 * (figures['miou9'] or 0):.1f} %"
    assert shown["a frame takes"] == "95.0 ms"
    assert page.sections["summary"][-2:] == ["FUSED 90.0 %", "VISIBLE_ONLY 10.0 %"]


def test_the_verdict_is_that_of_the_gates(tmp_path: Path) -> None:
    records = random_records({"new": 0.8}, 10)
    good, bad = Gate("ap50>=0.1", 0.6, True), Gate("miss_rate<=0.1", 0.25, False)
    assert verdict_of(made(tmp_path, records, gates=[good])) == "The gate is met."
    assert verdict_of(made(tmp_path, records, gates=[good, good])) == "All 2 gates are met."
    page = made(tmp_path, records, gates=[good, bad, Gate("p95_ms<=5", None, False)])
    assert verdict_of(page) == "2 of 3 gates failed: miss_rate<=0.1 (is 0.25), p95_ms<=5 (is unknown)"
    assert page.sections["gates"][-3:] == ["p95_ms<=5", "unknown", "failed"]


def test_without_gates_the_verdict_says_what_is_known(tmp_path: Path) -> None:
    def verdict(**options: Any) -> str:
        skills = {"new": 0.9, **options.pop("others", {})}
        records = random_records(skills, 30, truth=options.pop("truth", True), masks=False)
        return verdict_of(made(tmp_path, records, report_of(records, settings=SETTINGS, **options)))

    assert verdict() == "No gates were set: the figures below are not judged."
    assert verdict(truth=False) == (
        "There is no ground truth and no teacher: nothing here says how good the students are."
    )
    assert verdict(truth=False, others={"big": 1.0}, teacher="big") == (
        "There is no ground truth: the figures say how far the students agree with their teacher."
    )
    said = verdict(others={"old": 0.2}, baseline="old")
    assert said.startswith("new against old: better in miss rate, better in AP50")


def test_a_drive_without_a_frame_has_a_page_that_says_so(tmp_path: Path) -> None:
    assert verdict_of(made(tmp_path, [], report_of([]), pictures=grey)) == "No frame was evaluated."


def test_damage_is_told(tmp_path: Path) -> None:
    records = random_records({"new": 0.8}, 10)
    report = report_of(records, drives=[drive_record(records, "damaged after 3.2 s of its time")], settings=SETTINGS)
    assert "street: damaged after 3.2 s of its time" in made(tmp_path, records, report).sections["drives"]


# --- Sections --------------------------------------------------------------------------------------------------------


def test_what_is_not_known_has_no_section(tmp_path: Path) -> None:
    records = random_records({"new": 0.8}, 10, truth=False, masks=False)
    page = made(tmp_path, records)
    assert [section["id"] for section in page.all("section")] == ["summary", "students", "drives", "configuration"]


def test_students_are_compared_with_intervals_and_verdicts(tmp_path: Path) -> None:
    records = random_records({"old": 0.3, "new": 0.9}, 60)
    report = report_of(records, drives=[drive_record(records)], settings=SETTINGS)
    texts = made(tmp_path, records, report).sections["students"]
    (comparison,) = report.comparisons
    ap50 = next(one for one in comparison.differences if (one.figure, one.subset) == ("ap50", "all"))
    assert ap50.difference.value is not None
    assert ap50.difference.low is not None
    assert ap50.difference.high is not None
    value, low, high = (100 * end for end in (ap50.difference.value, ap50.difference.low, ap50.difference.high))
    row = texts.index("AP50, %", texts.index("new against old, paired by frame"))
    assert texts[row + 3 : row + 5] == [f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", "better"]
    # Missed objects are numbers, not shares
    missed = next(one for one in comparison.differences if (one.figure, one.subset) == ("missed_per_frame", "all"))
    assert texts[texts.index("missed per frame") + 1] == f"{missed.baseline:.3f}"


def test_each_class_has_two_charts_with_a_line_for_each_student(tmp_path: Path) -> None:
    page = made(tmp_path, random_records({"old": 0.5, "new": 0.9}, 30))
    charts = [one for one in page.all("svg") if one.get("class") == "chart"]
    assert len(charts) == 6
    texts = page.sections["curves"]
    assert texts[1].startswith("Miss rate, person: ")
    lines = [one for one in page.all("path") if one.get("class") == "line"]
    assert len(lines) >= 12


def test_the_frames_that_got_worse_are_shown_first_and_read_by_their_positions(tmp_path: Path) -> None:
    skills = {"old": 0.7, "new": 0.6}
    other = random_records(skills, 15, seed=2, bag="yard")
    other = [replace(record, index=record.index + 100) for record in other]  # an index is not a position
    records = [*random_records(skills, 15, seed=1), *other]
    report = report_of(records, settings=SETTINGS)
    asked: dict[str, list[int]] = {}

    def read(bag: str, positions: Sequence[int]) -> Mapping[int, Picture]:
        asked[bag] = list(positions)
        return grey(bag, positions)

    page = made(tmp_path, records, report, pictures=read)
    (comparison,) = report.comparisons
    first = comparison.worst[0].candidate
    assert f"{first.bag}, image {first.index}:" in page.sections["frames"]
    assert page.sections["frames"].index(f"{first.bag}, image {first.index}:") < 5
    titles = re.findall(r"(street|yard), image (\d+)", " ".join(page.sections["frames"]))
    assert len(titles) == WORST_SHOWN
    expected: dict[str, set[int]] = {}
    for bag, index in titles:
        expected.setdefault(bag, set()).add(int(index) - (100 if bag == "yard" else 0))
    assert {bag: set(positions) for bag, positions in asked.items()} == expected
    labels = [str(image["alt"]).rpartition(": ")[2] for image in page.all("img")]
    assert labels[:3] == ["old", "new", "truth"]


def test_the_worst_frames_are_first_of_different_seconds(tmp_path: Path) -> None:
    records = random_records({"new": 0.4}, 60)  # 0.1 s apart
    report = report_of(records, settings=SETTINGS)
    page = made(tmp_path, records, report, pictures=grey)
    indices = [int(index) for index in re.findall(r"image (\d+)", " ".join(page.sections["frames"]))]
    assert indices[0] == report.students["new"].worst_frames[0].index
    assert min(abs(a - b) for a, b in itertools.combinations(indices[:4], 2)) >= 10
    assert len(set(indices)) == WORST_SHOWN


def test_without_any_reference_some_frames_are_shown(tmp_path: Path) -> None:
    records = random_records({"new": 0.8}, 21, truth=False, masks=False)
    page = made(tmp_path, records, pictures=grey)
    titles = re.findall(r"image (\d+)", " ".join(page.sections["frames"]))
    assert titles == ["0", "4", "8", "12", "16", "20"]
    assert len(page.all("img")) == 6


def test_agreement_says_that_it_is_no_accuracy(tmp_path: Path) -> None:
    records = random_records({"new": 0.8, "big": 1.0}, 20, truth=False, masks=False)
    report = report_of(records, settings=SETTINGS, teacher="big")
    page = made(tmp_path, records, report, pictures=grey)
    texts = page.sections["agreement"]
    assert "what both get wrong is not seen here" in texts[1]
    assert "new against big" in texts
    score = report.agreement["new"].slices[0].detection
    assert score is not None
    assert any(text.startswith(f"{100 * (score.ap50.value or 0):.1f}") for text in texts)
    assert "teacher: big" in page.sections["frames"]


def test_a_sweep_stands_first_with_its_plot_table_and_frames(tmp_path: Path) -> None:
    points = []
    for simulation, skill in zip(parse_sweep("thermal=640x512,80x64", Simulation()), (0.9, 0.3), strict=True):
        records = random_records({"new": skill}, 20)
        points.append(SweepPoint(simulation, report_of(records, settings=SETTINGS), records, grey))
    first = points[0]
    page = made(tmp_path, first.records, first.report, sweep=Sweep(tuple(points)))
    rates = [f"{100 * (point.report.figures('new')['miss_rate'] or 0):.1f} %" for point in points]
    assert verdict_of(page) == f"Miss rate, person, of new: {rates[0]} with 640x512, {rates[1]} with 80x64."
    assert page.all("section")[1]["id"] == "sweep"
    texts = page.sections["sweep"]
    assert texts[texts.index("80x64", texts.index("All figures")) + 1] == "about 200 USD"
    assert "footnote 1" in " ".join(texts)
    labels = [str(image["alt"]).rpartition(": ")[2] for image in page.all("img")]
    assert labels[:2] == ["new, thermal 640x512", "new, thermal 80x64"]
