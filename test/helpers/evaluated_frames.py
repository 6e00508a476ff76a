"""Records of frames as an evaluation leaves them, with planted errors."""

from collections.abc import Sequence

import numpy as np

from md_perception.evaluation.records import Answer, DriveRecord, FrameRecord, FrameTruth, ModeChange
from md_perception.results import Detections, Mode

SIZE = (640, 512)
PERIOD_NS = 100_000_000


def boxes(*corners: Sequence[float]) -> np.ndarray:
    """Return float32 (N, 4)."""
    return np.array(corners, np.float32).reshape(-1, 4)


def said(corners: Sequence[Sequence[float]], scores: Sequence[float], labels: Sequence[int]) -> Detections:
    """Return detections; scores fall."""
    return Detections(boxes(*corners), np.array(scores, np.float32), np.array(labels, np.int64))


def random_records(
    skills: dict[str, float],
    frames: int = 40,
    *,
    seed: int = 0,
    bag: str = "street",
    truth: bool = True,
    masks: bool = True,
) -> list[FrameRecord]:
    """Return frames of three objects each. skills: of each student, the share of the objects that it finds and of the
    pixels that it classifies correctly; the rest it misses, or sees elsewhere.

    Half of the frames are by night, the last tenth has no thermal image.
    """
    random = np.random.default_rng(seed)
    records = []
    for index in range(frames):
        left = random.uniform(0, 500, 3)
        top = random.uniform(0, 300, 3)
        height = random.uniform(30, 180, 3)
        there = np.stack([left, top, left + 0.5 * height, top + height], axis=1).astype(np.float32)
        labels = random.integers(0, 3, 3)
        answers = {}
        for name, skill in skills.items():
            found = random.random(3) < skill
            guesses = np.where(found[:, None], there + random.normal(0, 2, (3, 4)), there[::-1] + 200)
            shown = found | (random.random(3) < 0.3)
            scores = np.sort(random.uniform(0.2, 1, 3))[::-1]
            detections = Detections(
                guesses[shown].astype(np.float32), scores[shown].astype(np.float32), labels[shown].astype(np.int64)
            )
            answers[name] = Answer(detections, _confusions(skill, masks), "")
        alone = index >= 0.9 * frames
        records.append(
            FrameRecord(
                bag=bag,
                index=index,
                stamp_ns=10**18 + index * PERIOD_NS,
                frame_id="rgb_camera",
                size=SIZE,
                mode=Mode.VISIBLE_ONLY if alone else Mode.FUSED,
                pair_offset_ns=None if alone else int(random.normal(5e6, 3e6)),
                luminance=20.0 if index % 2 else 120.0,
                light="night" if index % 2 else "day",
                unpaired="no_partner" if alone else "",
                truth=FrameTruth(there, labels.astype(np.int64), np.zeros(3, np.bool_)) if truth else None,
                answers=answers,
            )
        )
    return records


def _confusions(skill: float, masks: bool) -> dict:  # type: ignore[type-arg]
    if not masks:
        return {}
    counts = np.zeros((9, 9), np.int64)
    for label, pixels in ((0, 9000), (1, 600), (2, 400)):
        right = round(pixels * skill)
        counts[label, label] = right
        counts[label, (label + 1) % 3] = pixels - right
    return {"truth": counts}


def drive_record(records: Sequence[FrameRecord], damage: str = "") -> DriveRecord:
    """Return what is known of the bag of these records."""
    frames = len(records)
    alone = sum(bool(record.unpaired) for record in records)
    return DriveRecord(
        bag=records[0].bag,
        duration_s=frames * 0.1,
        damage=damage,
        rgb_images=frames,
        thermal_images=frames - alone,
        damaged_messages=0,
        frames=frames,
        paired=frames - alone,
        late=0,
        time_jumps=0,
        mode_s={"FUSED": 0.09 * frames, "VISIBLE_ONLY": 0.01 * frames},
        changes=(ModeChange(records[0].stamp_ns, Mode.FUSED),),
    )
