"""Overlaps of boxes."""

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.floating]


def intersections(one: Boxes, other: Boxes) -> npt.NDArray[np.float64]:
    """Return the areas, float64 (N, M), that boxes (N, 4) and (M, 4), xyxy, have in common."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def areas(boxes: Boxes) -> npt.NDArray[np.float64]:
    """Return the areas, float64 (N,)."""
    return np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)


def overlaps(one: Boxes, other: Boxes) -> npt.NDArray[np.float64]:
    """Return intersection over union, float64 (N, M), of boxes (N, 4) and (M, 4), xyxy; 0 for empty ones."""
    common = intersections(one, other)
    union = areas(one)[:, None] + areas(other)[None, :] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
