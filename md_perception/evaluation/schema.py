"""What report.json holds: every field, typed. docs/evaluation.md explains them; a change here changes SCHEMA_VERSION.

Rates are 0..1, rounded to six decimals, so that the same figures give the same bytes; what cannot be said is null.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

SCHEMA_VERSION: Literal[1] = 1


def _rounded(value: Any) -> Any:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return round(float(value), 6) + 0.0 if math.isfinite(value) else None  # + 0.0: no minus zero
    return value


Figure = Annotated[float | None, BeforeValidator(_rounded)]
"""A number with six decimals; NaN and infinity become None."""

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Subset = Literal["all", "day", "night"]


class ReportError(ValueError):
    """A file is no report that can be read; the text says why."""


class Part(BaseModel):
    """A part of the report: nothing is added, nothing changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class ScoreSettings(Part):
    """What the figures depend on besides the records.

    least_score: detections from it on are what a vehicle acts on: counts, recall, precision, errors of frames,
    confusion, flicker (the node's default). teacher_score: detections of a teacher from it on are what a student is
    compared with. least_height_px: lower objects are ignored, as are heavily occluded ones (plain counting; KAIST's
    settings have their own rules). height_edges_px: borders of the slices by box height. headline_class: whose miss
    rate is the headline.
    flicker_iou, flicker_gap_s: what follows an object, and how far frames may be apart (metrics.flicker).
    replicates, level, seed, block_s: bootstrap; what was recorded within block_s of one bag is redrawn together,
    0: each frame by itself. least_blocks: with fewer no interval is given. listed_frames: length of lists of frames.
    """

    least_score: Share = 0.3
    teacher_score: Share = 0.5
    least_height_px: NotNegative = 20.0
    height_edges_px: tuple[float, ...] = (45.0, 115.0)
    headline_class: str = "person"
    flicker_iou: Annotated[float, Field(gt=0, le=1)] = 0.3
    flicker_gap_s: NotNegative = 0.5
    replicates: Annotated[int, Field(ge=1)] = 400
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: int = 0
    block_s: NotNegative = 2.0
    least_blocks: Annotated[int, Field(ge=2)] = 5
    listed_frames: Annotated[int, Field(ge=0)] = 50


class Score(Part):
    """A figure and the ends of its bootstrap interval."""

    value: Figure
    low: Figure = None
    high: Figure = None


class ClassScores(Part):
    """Detection of one class.

    ap, ap50, miss_rate: of all detections. miss_rate_at: at FPPI 10^-2, 10^-1.75, .. 1; empty without an object.
    objects: counted; ignored: the others. found, missed, false: at settings.least_score; recall, precision, f1 of them.
    """

    ap: Figure
    ap50: Figure
    miss_rate: Figure
    miss_rate_at: tuple[Figure, ...]
    objects: int
    ignored: int
    found: int
    missed: int
    false: int
    recall: Figure
    precision: Figure
    f1: Figure


class DetectionScores(Part):
    """frames: with annotated boxes. miss_rate: of settings.headline_class. ap, ap50: mean over classes with objects."""

    frames: int
    miss_rate: Score
    ap: Figure
    ap50: Score
    by_class: dict[str, ClassScores]


class MaskScores(Part):
    """frames: with a mask and an answer. pixels: labelled ones.

    macc9, macc8, miou9: as metrics.segmentation (a class that is not there counts as 0). macc_present, miou_present:
    mean over the classes that the truth shows. accuracy, iou: by class, null for a class that the truth does not show.
    """

    frames: int
    pixels: int
    pixel_accuracy: Figure
    macc9: Score
    macc8: Figure
    miou9: Score
    macc_present: Figure
    miou_present: Figure
    accuracy: dict[str, Figure]
    iou: dict[str, Figure]


class Slice(Part):
    """The frames of which something holds. by: all, light, mode or bag; name: e.g. night, FUSED."""

    by: Literal["all", "light", "mode", "bag"]
    name: str
    frames: int
    detection: DetectionScores | None
    masks: MaskScores | None


class ObjectSlice(Part):
    """The objects of a class by box height, a measure of distance, or by occlusion; all others are ignored.

    from_px, below_px: of a slice by height. found: at settings.least_score.
    """

    by: Literal["height", "occlusion"]
    name: str
    class_name: str
    from_px: Figure = None
    below_px: Figure = None
    objects: int
    found: int
    recall: Figure
    miss_rate: Figure


class KaistScores(Part):
    """A setting of the KAIST benchmark, as `python -m md_training miss-rate` prints it (rates 0..1)."""

    miss_rate: Figure
    recall: Figure
    images: int
    objects: int
    ignored_objects: int
    true_positives: int
    false_positives: int
    left_out: int


class FlickerScores(Part):
    """events: an object is seen, is not in the next frame, and is again in the one after. object_frames: detections."""

    events: int
    object_frames: int
    per_100: Figure


class ConfusionTable(Part):
    """Counts: rows are the truth, columns the answer, in the order of the classes."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class FrameErrors(Part):
    """What is wrong in one frame, against the truth or a teacher.

    missed, false: objects and detections of the scored classes at settings.least_score; null without boxes.
    pixel_error: share of the labelled pixels of another class; null without a mask. loss: missed + false + pixel_error.
    """

    bag: str
    index: int
    stamp_ns: int
    light: str
    mode: str
    missed: int | None
    false: int | None
    pixel_error: Figure
    loss: Figure


class StudentReport(Part):
    """What one student reached. answered: frames with an answer; rejected: reason to frames without one.

    slices: `all` first; without truth their parts are null. detections: by class, at settings.least_score.
    """

    answered: int
    rejected: dict[str, int]
    detections: dict[str, int]
    slices: tuple[Slice, ...]
    objects: tuple[ObjectSlice, ...]
    kaist: dict[str, KaistScores]
    flicker: FlickerScores | None
    flicker_by_class: dict[str, FlickerScores]
    detection_confusion: ConfusionTable | None
    mask_confusion: ConfusionTable | None
    worst_frames: tuple[FrameErrors, ...]

    def slice(self, by: str = "all", name: str = "all") -> Slice | None:
        """Return a slice."""
        return next((part for part in self.slices if (part.by, part.name) == (by, name)), None)

    def figures(self) -> dict[str, float | None]:
        """Return the figures by flat names, for gates and tables.

        miss_rate, ap, ap50, macc9, macc8, miou9, macc_present, miou_present, pixel_accuracy, with _day and _night where
        there are both; ap50_CLASS, ap_CLASS, miss_rate_CLASS, recall_CLASS, precision_CLASS; flicker (per 100
        object-frames); answered_share.
        """
        rejected = sum(self.rejected.values())
        named: dict[str, float | None] = {
            "answered_share": _rounded(self.answered / (self.answered + rejected)) if self.answered + rejected else None
        }
        for part in self.slices:
            if part.by not in ("all", "light"):
                continue
            end = "" if part.by == "all" else f"_{part.name}"
            if (found := part.detection) is not None:
                named |= {
                    f"miss_rate{end}": found.miss_rate.value,
                    f"ap{end}": found.ap,
                    f"ap50{end}": found.ap50.value,
                }
                for name, scores in found.by_class.items():
                    for figure in ("ap", "ap50", "miss_rate", "recall", "precision"):
                        named[f"{figure}_{name}{end}"] = getattr(scores, figure)
            if (masks := part.masks) is not None:
                named |= {f"macc9{end}": masks.macc9.value, f"miou9{end}": masks.miou9.value}
                for figure in ("macc8", "macc_present", "miou_present", "pixel_accuracy"):
                    named[f"{figure}{end}"] = getattr(masks, figure)
        if self.flicker is not None:
            named["flicker"] = self.flicker.per_100
        return named


class Offsets(Part):
    """Thermal stamp minus RGB stamp of the pairs, ms; nearest-rank percentiles."""

    least: Figure
    p5: Figure
    p50: Figure
    p95: Figure
    largest: Figure


class PairingReport(Part):
    """paired, alone: RGB frames with and without a thermal partner; reasons of the latter."""

    paired: int
    alone: int
    reasons: dict[str, int]
    offset_ms: Offsets | None


class FramesReport(Part):
    """How many frames, and how they are shared out. with_boxes, with_masks: frames with such a truth."""

    total: int
    by_bag: dict[str, int]
    by_light: dict[str, int]
    by_mode: dict[str, int]
    with_boxes: int
    with_masks: int
    blocks: int


class DriveReport(Part):
    """A bag as a whole (records.DriveRecord); damage: null where there is none. changes: of the operating mode."""

    bag: str
    duration_s: Figure
    damage: str | None
    rgb_images: int
    thermal_images: int
    damaged_messages: int
    frames: int
    paired: int
    late: int
    time_jumps: int
    mode_s: dict[str, Figure]
    changes: tuple[dict[str, JsonValue], ...]


class TruthReport(Part):
    """Where the truth is from. counting: `plain` or `kaist`. classes: annotated ones. The rest: what was matched."""

    description: str
    counting: Literal["plain", "kaist"]
    classes: tuple[str, ...]
    frames: int
    with_truth: int
    entries: int
    unmatched: int


class Difference(Part):
    """A figure of two students on the same frames; difference: candidate minus baseline, with its paired interval.

    verdict: better or worse where the interval lies on one side of 0, otherwise undecided.
    """

    figure: str
    subset: Subset
    baseline: Figure
    candidate: Figure
    difference: Score
    verdict: Literal["better", "worse", "undecided"]


class ChangedFrame(Part):
    """A frame in which the two differ: the errors of each; change: loss of the candidate minus that of the baseline."""

    baseline: FrameErrors
    candidate: FrameErrors
    change: Figure


class ComparisonReport(Part):
    """Two students on the same frames. worse, better, same: numbers of frames by their loss. worst: largest change."""

    baseline: str
    candidate: str
    differences: tuple[Difference, ...]
    worse: int
    better: int
    same: int
    worst: tuple[ChangedFrame, ...]


class AgreementReport(Part):
    """A student against its teacher, without labels: the figures are those of a truth that is the teacher's answer.

    slices: `all`, and `day` and `night` where there are both. worst: frames of the largest disagreement first.
    """

    teacher: str
    frames: int
    slices: tuple[Slice, ...]
    mask_confusion: ConfusionTable | None
    worst: tuple[FrameErrors, ...]

    def figures(self) -> dict[str, float | None]:
        """Return the figures by flat names: agreement_ap, agreement_ap50, agreement_f1_CLASS, agreement_miou, each with
        _day and _night where there are both."""
        named: dict[str, float | None] = {}
        for part in self.slices:
            end = "" if part.by == "all" else f"_{part.name}"
            if (found := part.detection) is not None:
                named |= {f"agreement_ap{end}": found.ap, f"agreement_ap50{end}": found.ap50.value}
                for name, scores in found.by_class.items():
                    named[f"agreement_f1_{name}{end}"] = scores.f1
            if (masks := part.masks) is not None:
                named[f"agreement_miou{end}"] = masks.miou_present
        return named


class Report(Part):
    """report.json. provenance: bags, students' manifests, options and versions, as the command knows them."""

    schema_version: Literal[1] = SCHEMA_VERSION
    settings: ScoreSettings
    provenance: dict[str, JsonValue]
    drives: tuple[DriveReport, ...]
    frames: FramesReport
    pairing: PairingReport
    truth: TruthReport | None
    students: dict[str, StudentReport]
    comparisons: tuple[ComparisonReport, ...]
    agreement: dict[str, AgreementReport]

    def figures(self, student: str) -> dict[str, float | None]:
        """Return all figures of a student by flat names: its own, those of its agreement, and those of the frames:
        frames, paired_share."""
        frames = self.pairing.paired + self.pairing.alone
        named: dict[str, float | None] = {
            "frames": self.frames.total,
            "paired_share": _rounded(self.pairing.paired / frames) if frames else None,
        }
        if student in self.agreement:
            named |= self.agreement[student].figures()
        return named | self.students[student].figures()

    def to_json(self) -> str:
        """Return the text of report.json: the same report, the same bytes."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Read report.json. Raises ReportError."""
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            count = f"{error.error_count()} fields do not fit" if isinstance(error, ValidationError) else str(error)
            raise ReportError(f"{path} is no report of schema version {SCHEMA_VERSION}: {count}") from None
