"""From the records of evaluated frames to the report: its parts, put together."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import JsonValue

from md_perception.evaluation.comparison import agreement_of, compare
from md_perception.evaluation.judged import blocks_of, judge, student_report
from md_perception.evaluation.records import DriveRecord, FrameRecord
from md_perception.evaluation.schema import (
    AgreementReport,
    ComparisonReport,
    DriveReport,
    FramesReport,
    Offsets,
    PairingReport,
    Report,
    ScoreSettings,
    TruthReport,
)
from md_perception.evaluation.truth import Truth, TruthMatch
from md_perception.labels import DETECTION
from md_perception.metrics.latency import nearest_rank


def report_of(
    records: Sequence[FrameRecord],
    *,
    drives: Sequence[DriveRecord] = (),
    truth: TruthReport | None = None,
    teacher: str | None = None,
    baseline: str | None = None,
    settings: ScoreSettings | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
) -> Report:
    """Return the report of some drives.

    records: of all frames, in order, drive by drive. truth: what `truth_report` says; None: plain counting of the
    classes that the records show. teacher: name of the answers that the others are compared with. baseline: the student
    in service; every other but the teacher is compared with it; by default the first. provenance: for the report alone.
    """
    settings = settings or ScoreSettings()
    names = list(records[0].answers) if records else []
    judged = {name: judge(records, name, settings, truth) for name in names}
    students = [name for name in names if name != teacher]
    baseline = baseline or (students[0] if students else None)
    comparisons: list[ComparisonReport] = []
    if baseline is not None:
        comparisons = [compare(judged[baseline], judged[candidate]) for candidate in students if candidate != baseline]
    agreement: dict[str, AgreementReport] = {}
    if teacher is not None:
        agreement = {name: agreement_of(records, name, teacher, settings) for name in students}
    return Report(
        settings=settings,
        provenance=dict(provenance or {}),
        drives=tuple(_drive(drive) for drive in drives),
        frames=_frames(records, settings),
        pairing=_pairing(records),
        truth=truth,
        students={name: student_report(judged[name]) for name in names},
        comparisons=tuple(comparisons),
        agreement=agreement,
    )


def truth_report(parts: Sequence[tuple[Truth, TruthMatch]]) -> TruthReport | None:
    """Return what is to be said of the truths of several bags; None without any.

    Raises ValueError where some are counted by KAIST's rules and others are not: they have no common figure.
    """
    if not parts:
        return None
    countings = {truth.counting for truth, _ in parts}
    if len(countings) > 1:
        raise ValueError("some bags have KAIST's annotations and others do not: evaluate them separately")
    known = {name for truth, _ in parts for name in truth.classes}
    return TruthReport(
        description="; ".join(dict.fromkeys(truth.description for truth, _ in parts)),
        counting=countings.pop(),
        classes=tuple(name for name in DETECTION.classes if name in known),
        frames=sum(match.frames for _, match in parts),
        with_truth=sum(match.with_truth for _, match in parts),
        entries=sum(match.entries for _, match in parts),
        unmatched=sum(len(match.unmatched) for _, match in parts),
    )


# Frames, pairs, drives


def _frames(records: Sequence[FrameRecord], settings: ScoreSettings) -> FramesReport:
    truths = [record.truth for record in records]
    with_masks = [any(answer.confusions.get("truth") is not None for answer in r.answers.values()) for r in records]
    return FramesReport(
        total=len(records),
        by_bag=dict(Counter(record.bag for record in records)),
        by_light=dict(sorted(Counter[str](record.light for record in records).items())),
        by_mode=dict(sorted(Counter(record.mode.name for record in records).items())),
        with_boxes=sum(truth is not None and truth.boxes is not None for truth in truths),
        with_masks=sum(with_masks),
        blocks=len(np.unique(blocks_of(records, settings.block_s))),
    )


def _pairing(records: Sequence[FrameRecord]) -> PairingReport:
    reasons = Counter(record.unpaired for record in records if record.unpaired)
    ordered = sorted(record.pair_offset_ns / 1e6 for record in records if record.pair_offset_ns is not None)
    offsets = None
    if ordered:
        p5, p50, p95 = (nearest_rank(ordered, percent) for percent in (5, 50, 95))
        offsets = Offsets(least=ordered[0], p5=p5, p50=p50, p95=p95, largest=ordered[-1])
    return PairingReport(
        paired=len(records) - reasons.total(),
        alone=reasons.total(),
        reasons=dict(sorted(reasons.items())),
        offset_ms=offsets,
    )


def _drive(drive: DriveRecord) -> DriveReport:
    return DriveReport(
        bag=drive.bag,
        duration_s=drive.duration_s,
        damage=drive.damage or None,
        rgb_images=drive.rgb_images,
        thermal_images=drive.thermal_images,
        damaged_messages=drive.damaged_messages,
        frames=drive.frames,
        paired=drive.paired,
        late=drive.late,
        time_jumps=drive.time_jumps,
        mode_s=dict(drive.mode_s),
        changes=tuple(
            {"log_ns": change.log_ns, "mode": change.mode.name, "faults": list(change.faults)}
            for change in drive.changes
        ),
    )
