"""Flicker: an object that is detected, is not in the next frame, and is detected again in the one after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from md_perception.metrics.boxes import overlaps
from md_perception.results import Detections, Float32Array


@dataclass(frozen=True)
class Flicker:
    """events: single frames in which an object is missing. object_frames: detections in all frames."""

    events: int
    object_frames: int

    @property
    def per_100(self) -> float | None:
        """Events in 100 object-frames, None without a detection."""
        return 100 * self.events / self.object_frames if self.object_frames else None


def flicker(
    found: Sequence[Detections | None], follows: Sequence[bool], label: int, least_score: float, least_iou: float
) -> Flicker:
    """Count the flicker of one class.

    found: what is seen in each frame, in order; None: nothing is known of it. follows: whether a frame comes directly
    after the one before it. Only detections of the class with at least least_score count. Detections of two frames are
    the same object where they overlap by at least least_iou (intersection over union), the largest overlaps first,
    each with one other at most.
    For three frames in a row: of the first frame's detections that are not in the second, and the third's that are not
    in the second, those that are the same object are an event each. An object that is gone for two frames or more is
    none.
    """
    if len(found) != len(follows):
        raise ValueError(f"{len(found)} frames, but {len(follows)} flags say whether they follow each other")
    boxes = [
        None if one is None else one.boxes[(one.labels == label) & (one.scores >= np.float32(least_score))]
        for one in found
    ]
    events = 0
    for index in range(1, len(boxes) - 1):
        before, now, after = boxes[index - 1 : index + 2]
        if before is None or now is None or after is None or not (follows[index] and follows[index + 1]):
            continue
        gone = before[_without(pairs(before, now, least_iou)[:, 0], len(before))]
        new = after[_without(pairs(now, after, least_iou)[:, 1], len(after))]
        events += len(pairs(gone, new, least_iou))
    return Flicker(events, sum(len(one) for one in boxes if one is not None))


def pairs(one: Float32Array, other: Float32Array, least_iou: float) -> np.ndarray:
    """Return int64 (P, 2), which boxes of two lists, (N, 4) and (M, 4) xyxy, are the same object."""
    shared = overlaps(one, other)
    found = []
    while shared.size:
        row, column = np.unravel_index(int(shared.argmax()), shared.shape)
        if shared[row, column] < least_iou:
            break
        found.append((int(row), int(column)))
        shared[row, :] = shared[:, column] = -1.0
    return np.array(found, np.int64).reshape(-1, 2)


def _without(indices: np.ndarray, count: int) -> np.ndarray:
    rest = np.ones(count, np.bool_)
    rest[indices] = False
    return rest
