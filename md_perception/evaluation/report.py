"""report.html: what an evaluation found, for people; the figures are those of report.json."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import md_perception
from md_perception.evaluation.charts import style_of
from md_perception.evaluation.gates import Gate
from md_perception.evaluation.judged import judge
from md_perception.evaluation.page import (
    Block,
    Cell,
    Chart,
    Charts,
    Folded,
    Note,
    Page,
    Section,
    Table,
    Tile,
    Verdict,
    write_page,
)
from md_perception.evaluation.pictures import Pictures
from md_perception.evaluation.records import FrameRecord
from md_perception.evaluation.report_charts import curve_charts, sweep_chart
from md_perception.evaluation.report_frames import frame_blocks, roles, swept_frame_blocks
from md_perception.evaluation.schema import (
    AgreementReport,
    ComparisonReport,
    ConfusionTable,
    ObjectSlice,
    Report,
    Score,
    Slice,
    StudentReport,
)
from md_perception.evaluation.sweep import Sweep, measures
from md_perception.evaluation.timing import Timing


def write_html(
    report: Report,
    path: Path,
    *,
    records: Sequence[FrameRecord] = (),
    pictures: Pictures | None = None,
    timing: Timing | None = None,
    gates: Sequence[Gate] = (),
    sweep: Sweep | None = None,
) -> None:
    """Write report.html.

    records: those that the report was made of, for curves and pictures; without them both are left out. pictures: reads
    frames again; without it there are none. timing: of the stages. gates: the conditions of --require.
    """
    sections = [
        Section("gates", "Gates", _gates(gates)),
        Section("sweep", "A cheaper thermal camera", _sweep(sweep)),
        Section("students", "Students", _students(report)),
        Section("curves", "Curves", _curves(report, records)),
        Section("classes", "Classes and slices", _slices(report)),
        Section("frames", "Frames to look at", frame_blocks(report, records, pictures)),
        Section("agreement", "Agreement with the teacher", _agreements(report)),
        Section("drives", "Drives and pairing", _drives(report)),
        Section("timing", "Timing", _timing(timing)),
        Section("configuration", "Configuration", _configuration(report)),
    ]
    verdict, state = _verdict(report, gates, sweep)
    page = Page(
        title="md_perception evaluation",
        subject=_subject(report, sweep),
        verdict=verdict,
        state=state,
        tiles=_tiles(report, timing),
        sections=[section for section in sections if section.blocks],
        bar=_shares(report.frames.by_mode),
        footer=f"md_perception {md_perception.__version__}, report.json schema {report.schema_version}. "
        "docs/evaluation.md says how each figure is computed.",
    )
    write_page(page, path)


def _subject(report: Report, sweep: Sweep | None) -> str:
    teacher, students = roles(report)
    parts = [_named(report.frames.by_bag, "bag"), _named(students, "student")]
    if teacher is not None:
        parts.append(f"teacher {teacher}")
    configuration = report.provenance.get("configuration")
    if sweep is not None:
        parts.append(f"{len(sweep.points)} thermal cameras; where none is named, {sweep.points[0].name}")
    elif isinstance(configuration, dict) and configuration.get("simulation"):
        parts.append(f"simulated: {configuration['simulation']}")
    return "; ".join(parts)


# --- Summary ---------------------------------------------------------------------------------------------------------


def _verdict(report: Report, gates: Sequence[Gate], sweep: Sweep | None) -> tuple[str, Verdict]:
    """Return the sentence that is read first."""
    if not report.students:
        return "No frame was evaluated.", "bad"
    if gates:
        failed = [gate for gate in gates if not gate.met]
        if not failed:
            return f"All {len(gates)} gates are met." if len(gates) > 1 else "The gate is met.", "good"
        reasons = ", ".join(f"{gate.condition} (is {_plain(gate.value)})" for gate in failed)
        return f"{len(failed)} of {len(gates)} gates failed: {reasons}", "bad"
    if sweep is not None:
        return _swept(sweep), "neutral"
    for comparison in report.comparisons:
        decided = [d for d in comparison.differences if d.subset == "all" and d.verdict != "undecided"]
        if decided:
            verdicts = {d.verdict for d in decided}
            state: Verdict = "good" if verdicts == {"better"} else "bad" if verdicts == {"worse"} else "neutral"
            said = ", ".join(f"{d.verdict} in {_title(d.figure)}" for d in decided)
            return f"{comparison.candidate} against {comparison.baseline}: {said}.", state
        return f"{comparison.candidate} against {comparison.baseline}: no difference is certain.", "neutral"
    if report.frames.with_boxes or report.frames.with_masks:
        return "No gates were set: the figures below are not judged.", "neutral"
    if report.agreement:
        return "There is no ground truth: the figures say how far the students agree with their teacher.", "neutral"
    return "There is no ground truth and no teacher: nothing here says how good the students are.", "neutral"


def _swept(sweep: Sweep) -> str:
    """Say what a sweep found for the first student, in one sentence."""
    compared = measures(sweep)
    if not compared:
        return f"{len(sweep.points)} thermal cameras, and no figure that they could be compared by."
    name, scores = next(iter(compared[0].scores.items()))
    values = [
        f"{_percent(score.value)} with {point.name}"
        for point, score in zip(sweep.points, scores, strict=True)
        if score is not None
    ]
    return f"{_capital(compared[0].name)}, of {name}: {', '.join(values)}."


def _tiles(report: Report, timing: Timing | None) -> list[Tile]:
    """Return the headline figures, of the first student."""
    if not report.students:
        return []
    name = roles(report)[1][0]
    student = report.students[name]
    of = f", {name}" if len(roles(report)[1]) > 1 else ""
    lost = sum(student.rejected.values())
    paired = report.pairing.paired + report.pairing.alone
    duration_s = sum(drive.duration_s or 0.0 for drive in report.drives)
    tiles = [
        Tile("frames", f"{report.frames.total:,}", f"{duration_s:.0f} s in {_named(report.drives, 'bag')}"),
        Tile("answered" + of, _percent(student.answered / max(report.frames.total, 1)), f"{lost:,} frames without"),
        Tile("paired with thermal", _percent(report.pairing.paired / paired if paired else None)),
    ]
    everything = student.slice()
    if everything is not None and everything.detection is not None:
        scores = everything.detection
        tiles.append(_tile(f"miss rate, {report.settings.headline_class}" + of, scores.miss_rate, "lower is better"))
        tiles.append(_tile("AP50" + of, scores.ap50))
    if everything is not None and everything.masks is not None:
        tiles.append(_tile("mIoU" + of, everything.masks.miou9, "of nine classes"))
    if name in report.agreement:
        agreed = report.agreement[name].slices[0]
        if agreed.detection is not None:
            tiles.append(_tile("AP50 against the teacher" + of, agreed.detection.ap50, "agreement, no accuracy"))
        if agreed.masks is not None:
            tiles.append(Tile("mIoU against the teacher" + of, _percent(agreed.masks.miou_present), "agreement"))
    if student.flicker is not None:
        tiles.append(Tile("flicker" + of, _plain(student.flicker.per_100), "gaps of one frame in 100 detections"))
    if timing is not None and (whole := timing.figures(name)["p95_ms"]) is not None:
        tiles.append(Tile("a frame takes" + of, f"{whole:.1f} ms", "95th percentile"))
    return tiles


def _gates(gates: Sequence[Gate]) -> list[Block]:
    rows = [
        [_name(gate.condition), Cell(_plain(gate.value)), Cell("met" if gate.met else "failed", _good_if(gate.met))]
        for gate in gates
    ]
    return [Table("", ["required", "is", ""], rows)] if rows else []


def _good_if(good: bool) -> Verdict:
    return "good" if good else "bad"


def _tile(name: str, score: Score, note: str = "") -> Tile:
    between = "" if score.low is None or score.high is None else f"{_percent(score.low)} to {_percent(score.high)}"
    return Tile(name, _percent(score.value), "; ".join(filter(None, (between, note))))


def _shares(counts: Mapping[str, int]) -> list[tuple[str, float]]:
    total = sum(counts.values())
    return [(name, count / total) for name, count in sorted(counts.items(), key=lambda item: -item[1]) if count]


# --- Students --------------------------------------------------------------------------------------------------------


def _students(report: Report) -> list[Block]:
    rows = []
    for index, (name, student) in enumerate(report.students.items()):
        everything = student.slice()
        found = None if everything is None else everything.detection
        masks = None if everything is None else everything.masks
        rows.append(
            [
                _name(name, style_of(index)),
                _count(student.answered),
                *((_score(found.miss_rate), _score(found.ap50), _share(found.ap)) if found else [_NONE] * 3),
                *((_score(masks.macc9), _score(masks.miou9)) if masks else [_NONE] * 2),
            ]
        )
    columns = ["student", "answered", f"miss rate, {report.settings.headline_class}, %", "AP50, %", "AP, %", "mAcc, %"]
    columns += ["mIoU, %"]
    note = f"In brackets: {_percent(report.settings.level, 0)} bootstrap interval."
    scored = _without_empty(Table("All frames", columns, rows, note))
    blocks: list[Block] = [*([scored] if len(scored.columns) > 2 else []), *_detections(report)]
    rejected = [
        [_name(reason), *(_count(student.rejected.get(reason, 0)) for student in report.students.values())]
        for reason in sorted({reason for student in report.students.values() for reason in student.rejected})
    ]
    if rejected:
        blocks.append(Table("Frames without an answer", ["reason", *report.students], rejected))
    blocks += [_differences(comparison) for comparison in report.comparisons]
    return blocks


def _detections(report: Report) -> list[Block]:
    """Return what the students say, which needs no truth."""
    rows = [
        [
            _name(name),
            *(_count(student.detections.get(one, 0)) for one in _classes(report)),
            Cell(_plain(student.flicker.per_100)),
        ]
        for name, student in report.students.items()
        if student.flicker is not None
    ]
    note = "Flicker: an object that is seen, is not in the next frame, and is again in the one after."
    title = f"Detections with a score of at least {report.settings.least_score:g}"
    return [Table(title, ["student", *_classes(report), "flicker in 100"], rows, note)] if rows else []


def _differences(comparison: ComparisonReport) -> Table:
    subsets = list(dict.fromkeys(one.subset for one in comparison.differences))
    found = {(one.figure, one.subset): one for one in comparison.differences}
    rows = []
    for figure in dict.fromkeys(one.figure for one in comparison.differences):
        # Shares in percent; numbers in each frame as they are
        scale = 1 if figure.endswith("_per_frame") else 100
        cells = [_name(f"{_title(figure)}{', %' if scale == 100 else ''}")]
        for subset in subsets:
            one = found.get((figure, subset))
            if one is None:
                cells += [_NONE] * (4 if subset == "all" else 1)
                continue
            if subset == "all":
                cells += [_scaled(Score(value=value), scale) for value in (one.baseline, one.candidate)]
            cells.append(replace(_scaled(one.difference, scale, "+"), state=_judged(one.verdict)))
            if subset == "all":
                cells.append(Cell(one.verdict, _judged(one.verdict)))
        rows.append(cells)
    columns = ["figure"]
    for subset in subsets:
        if subset == "all":
            columns += [comparison.baseline, comparison.candidate, "difference", ""]
        else:
            columns.append(f"difference, {subset}")
    note = f"{comparison.worse:,} frames are worse, {comparison.better:,} better, {comparison.same:,} the same."
    return Table(f"{comparison.candidate} against {comparison.baseline}, paired by frame", columns, rows, note)


def _judged(verdict: str) -> Verdict:
    return "good" if verdict == "better" else "bad" if verdict == "worse" else "neutral"


# --- Curves ----------------------------------------------------------------------------------------------------------


def _curves(report: Report, records: Sequence[FrameRecord]) -> list[Block]:
    """Return miss rate over FPPI and precision over recall of each class, the headline's first."""
    if not records or report.frames.with_boxes == 0:
        return []
    judged = {name: judge(records, name, report.settings, report.truth) for name in report.students}
    scored = dict.fromkeys(name for one in judged.values() for name in one.classes)
    charts: list[Chart] = []
    for class_name in sorted(scored, key=lambda name: name != report.settings.headline_class):
        charts += curve_charts(judged, class_name)
    return [Charts(charts)] if charts else []


# --- Slices ----------------------------------------------------------------------------------------------------------


def _slices(report: Report) -> list[Block]:
    blocks: list[Block] = []
    for name, student in report.students.items():
        of = f"{name}: " if len(report.students) > 1 else ""
        for title, table in (
            ("frames by light, mode and bag", _slice_table(student.slices, report)),
            ("classes", _class_table(student.slice())),
            ("classes of the mask", _mask_table(student.slice())),
            ("objects by height and occlusion", _object_table(student.objects)),
            ("KAIST's settings", _kaist_table(student)),
            ("what was taken for what, detections", _confusion(student.detection_confusion)),
            ("what was taken for what, share of the true class's pixels, %", _confusion(student.mask_confusion, True)),
        ):
            if table is not None:
                blocks.append(Table(of + title if of else _capital(title), table.columns, table.rows, table.note))
    return blocks


def _slice_table(slices: Sequence[Slice], report: Report) -> Table | None:
    rows = []
    for part in slices:
        if part.detection is None and part.masks is None:
            continue
        found, masks = part.detection, part.masks
        headline = None if found is None else found.by_class.get(report.settings.headline_class)
        rows.append(
            [
                _name(part.name if part.by == "all" else f"{part.by}: {part.name}"),
                _count(part.frames),
                *((_count(headline.objects), _score(found.miss_rate)) if found and headline else [_NONE] * 2),
                *((_score(found.ap50), _share(found.ap)) if found else [_NONE] * 2),
                *((_share(headline.recall), _share(headline.precision)) if headline else [_NONE] * 2),
                *((_score(masks.macc9), _score(masks.miou9)) if masks else [_NONE] * 2),
            ]
        )
    one = report.settings.headline_class
    columns = ["frames", "number", f"{one} objects", f"miss rate, {one}, %", "AP50, %", "AP, %", f"recall, {one}, %"]
    columns += [f"precision, {one}, %", "mAcc, %", "mIoU, %"]
    return _without_empty(Table("", columns, rows)) if rows else None


def _class_table(part: Slice | None) -> Table | None:
    if part is None or part.detection is None:
        return None
    rows = [
        [
            _name(name),
            *map(_count, (one.objects, one.ignored, one.found, one.missed, one.false)),
            *map(_share, (one.recall, one.precision, one.f1, one.miss_rate, one.ap50, one.ap)),
        ]
        for name, one in part.detection.by_class.items()
    ]
    columns = ["class", "objects", "ignored", "found", "missed", "false alarms", "recall, %", "precision, %", "F1, %"]
    return Table("", [*columns, "miss rate, %", "AP50, %", "AP, %"], rows)


def _mask_table(part: Slice | None) -> Table | None:
    if part is None or part.masks is None:
        return None
    masks = part.masks
    rows = [
        [_name(name), _share(masks.accuracy[name]), _share(masks.iou[name])]
        for name in masks.iou
        if masks.iou[name] is not None
    ]
    note = f"{masks.frames:,} frames; {_percent(masks.pixel_accuracy)} of the pixels are right."
    return Table("", ["class", "accuracy, %", "IoU, %"], rows, note)


def _object_table(objects: Sequence[ObjectSlice]) -> Table | None:
    rows = [
        [
            _name(f"{one.class_name}, {'occlusion ' if one.by == 'occlusion' else ''}{one.name}"),
            _count(one.objects),
            _count(one.found),
            _share(one.recall),
            _share(one.miss_rate),
        ]
        for one in objects
        if one.objects
    ]
    return Table("", ["objects", "number", "found", "recall, %", "miss rate, %"], rows) if rows else None


def _kaist_table(student: StudentReport) -> Table | None:
    rows = [
        [_name(name), _share(one.miss_rate, 2), _share(one.recall), *map(_count, (one.images, one.objects))]
        for name, one in student.kaist.items()
    ]
    return Table("", ["setting", "miss rate, %", "recall, %", "images", "objects"], rows) if rows else None


def _confusion(table: ConfusionTable | None, shares: bool = False) -> Table | None:
    if table is None or not any(map(any, table.counts)):
        return None
    rows = []
    for name, counts in zip(table.classes, table.counts, strict=True):
        total = sum(counts)
        if total:
            rows.append([_name(name), *((_share(count / total) if shares else _count(count)) for count in counts)])
    return Table("", ["truth, then answered as", *table.classes], rows)


# --- Agreement, drives, timing, configuration ------------------------------------------------------------------------


def _agreements(report: Report) -> list[Block]:
    blocks: list[Block] = []
    for name, agreement in report.agreement.items():
        blocks += _agreement(name, agreement)
    if blocks:
        blocks.insert(
            0,
            Note(
                "The teacher's answers stand in place of the truth: what both get wrong is not seen here. Its "
                f"detections count from the score {report.settings.teacher_score:g} on."
            ),
        )
    return blocks


def _agreement(name: str, agreement: AgreementReport) -> list[Block]:
    classes = [] if agreement.slices[0].detection is None else list(agreement.slices[0].detection.by_class)
    rows = []
    for part in agreement.slices:
        found, masks = part.detection, part.masks
        rows.append(
            [
                _name(part.name),
                _count(part.frames),
                *((_score(found.ap50), _share(found.ap)) if found else [_NONE] * 2),
                *(_share(found.by_class[one].f1) if found else _NONE for one in classes),
                _share(masks.miou_present) if masks else _NONE,
                _share(masks.pixel_accuracy) if masks else _NONE,
            ]
        )
    columns = [
        "frames",
        "number",
        "AP50, %",
        "AP, %",
        *(f"F1, {one}, %" for one in classes),
        "mIoU, %",
        "equal pixels, %",
    ]
    return [_without_empty(Table(f"{name} against {agreement.teacher}", columns, rows))]


def _drives(report: Report) -> list[Block]:
    modes = sorted({mode for drive in report.drives for mode in drive.mode_s})
    rows = [
        [
            _name(drive.bag),
            Cell(_plain(drive.duration_s)),
            *map(_count, (drive.rgb_images, drive.thermal_images, drive.paired, drive.late, drive.damaged_messages)),
            _count(drive.time_jumps),
            *(Cell(_plain(drive.mode_s.get(mode, 0.0))) for mode in modes),
        ]
        for drive in report.drives
    ]
    columns = ["bag", "s", "RGB images", "thermal images", "paired", "late", "damaged messages", "jumps of time"]
    blocks: list[Block] = [Note(f"{drive.bag}: {drive.damage}", "bad") for drive in report.drives if drive.damage]
    blocks.append(Table("Bags", [*columns, *(f"{mode}, s" for mode in modes)], rows))
    offsets = report.pairing.offset_ms
    if offsets is not None:
        cells = (offsets.least, offsets.p5, offsets.p50, offsets.p95, offsets.largest)
        columns = ["", "least", "p5", "median", "p95", "largest"]
        row = [_name("thermal minus RGB stamp, ms"), *(Cell(_plain(value)) for value in cells)]
        blocks.append(Table("Pairs", columns, [row]))
    if report.pairing.reasons:
        rows = [[_name(reason), _count(count)] for reason, count in report.pairing.reasons.items()]
        blocks.append(Table("RGB images without a thermal partner", ["reason", "number"], rows))
    return blocks


def _sweep(sweep: Sweep | None) -> list[Block]:
    if sweep is None:
        return []
    compared = measures(sweep)
    if not compared:
        return [Note("No student answered in common frames: there is nothing to compare.")]
    rows = []
    for place, point in enumerate(sweep.points):
        quote = sweep.prices.quote(point.size)
        for name in compared[0].scores:
            scores = [measure.scores[name][place] for measure in compared]
            rows.append(
                [
                    _name(point.name),
                    Cell("" if quote is None else str(quote)),
                    *([_name(name)] if len(compared[0].scores) > 1 else []),
                    *(_NONE if score is None else _score(score) for score in scores),
                    _share(point.report.frames.by_mode.get("FUSED", 0) / max(point.report.frames.total, 1)),
                ]
            )
    columns = ["thermal camera", "price", *(["student"] if len(compared[0].scores) > 1 else [])]
    columns += [*(f"{measure.name}, %" for measure in compared), "frames with both cameras, %"]
    prices = (
        f"Prices: {'; '.join(sweep.prices.sources)}. Those with the word some are interpolated between the listed ones "
        "on logarithmic scales: put the prices that you are offered in a file (--prices)."
    )
    return [
        sweep_chart(sweep, compared[0]),
        Table("All figures", columns, rows, prices),
        *swept_frame_blocks(sweep, next(iter(compared[0].scores))),
    ]


def _timing(timing: Timing | None) -> list[Block]:
    if timing is None or not timing.stages:
        return []
    rows = [
        [_name(stage), *(Cell(f"{value:,.1f}") for value in (one.p50_ms, one.p95_ms, one.p99_ms)), _count(one.count)]
        for stage, one in timing.stages.items()
        if one.count
    ]
    note = (
        f"Measured on {'; '.join(timing.machines)}, with {timing.workers} inferring beside each other. decode: all "
        "that comes before inference; total: decode and inference. pair_wait is on the clock of the bag."
    )
    return [Table("Stages of a frame, ms", ["stage", "p50", "p95", "p99", "frames"], rows, note)]


def _configuration(report: Report) -> list[Block]:
    blocks: list[Block] = []
    if report.truth is not None:
        truth = report.truth
        blocks.append(
            Note(
                f"Truth: {truth.description}; {truth.with_truth:,} of {truth.frames:,} frames have one, "
                f"{truth.unmatched:,} of {truth.entries:,} entries found no frame."
            )
        )
    blocks.append(Folded("Settings of the figures", _json(report.settings.model_dump(mode="json"))))
    blocks += [Folded(_capital(name.replace("_", " ")), _json(value)) for name, value in report.provenance.items()]
    return blocks


# --- Words and numbers -----------------------------------------------------------------------------------------------

_NONE = Cell("")
_TITLES = {
    "miss_rate": "miss rate",
    "ap": "AP",
    "ap50": "AP50",
    "macc9": "mAcc",
    "miou9": "mIoU",
    "macc_present": "mAcc of the classes that are there",
    "miou_present": "mIoU of the classes that are there",
}


def _title(figure: str) -> str:
    return _TITLES.get(figure, figure.replace("_", " "))


def _percent(value: float | None, digits: int = 1) -> str:
    return "unknown" if value is None else f"{100 * value:.{digits}f} %"


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.4g}"


def _name(text: str, style: str = "") -> Cell:
    return Cell(text, number=False, chart_style=style)


def _count(value: int) -> Cell:
    return Cell(f"{value:,}")


def _share(value: float | None, digits: int = 1) -> Cell:
    return _NONE if value is None else Cell(f"{100 * value:.{digits}f}")


def _score(score: Score) -> Cell:
    return _scaled(score, 100)


def _scaled(score: Score, scale: float, sign: str = "") -> Cell:
    """Return a figure with its interval; a share (scale 100) with one digit, a number with three."""
    if score.value is None:
        return _NONE
    digits = 1 if scale == 100 else 3
    text = f"{scale * score.value:{sign}.{digits}f}"
    if score.low is not None and score.high is not None:
        text += f" [{scale * score.low:{sign}.{digits}f}, {scale * score.high:{sign}.{digits}f}]"
    return Cell(text)


def _without_empty(table: Table) -> Table:
    """Return the table without the columns in which nothing stands."""
    kept = [index for index in range(len(table.columns)) if index == 0 or any(row[index].text for row in table.rows)]
    columns = [table.columns[index] for index in kept]
    return Table(table.title, columns, [[row[index] for index in kept] for row in table.rows], table.note)


def _classes(report: Report) -> list[str]:
    return list(dict.fromkeys(name for student in report.students.values() for name in student.detections))


def _named(things: Iterable[object], kind: str) -> str:
    """Return the names of a few things, or how many there are."""
    names = list(things)
    texts = [name for name in names if isinstance(name, str)]
    if len(texts) == len(names) and len(names) <= 3:
        return f"{kind}{'s' if len(names) > 1 else ''} {', '.join(texts)}"
    return f"{len(names)} {kind}{'s' if len(names) != 1 else ''}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
