"""Identities of detections over time, by Norfair's tracker: a Kalman filter for each box, matched by overlap and class.

Norfair counts in frames. Cameras skip frames and differ in rate, so time is given to it in steps of a fixed length.
Boxes are tracked as shares of the image, so that tracks survive a change to images of another size, where both cameras
see the same field of view.
"""

import logging
from typing import Any

import numpy as np

from md_perception.results import Perception

_STEP_NS = 33_333_333
"""A frame of a 30 Hz camera."""


class Tracker:
    """Gives every detection of a sequence of frames an id, the same while the object is followed.

    lost_s: an object is given up when it was not detected for so long, half as long if it was detected only once.
    overlap: least intersection over union, 0..1, of a detection with where the object is expected; ByteTrack's is 0.2.
    Raises ModuleNotFoundError without Norfair.
    """

    def __init__(self, lost_s: float = 2.0, overlap: float = 0.2) -> None:
        import norfair

        # It warns whenever the expected box of an object that is not seen for a while has shrunk to nothing.
        logging.getLogger("norfair.distances").setLevel(logging.ERROR)
        self._norfair = norfair
        self._lost_steps = max(2, round(lost_s * 1e9 / _STEP_NS))
        self._overlap = overlap
        self._given = 0
        self._stamp_ns = 0
        self._tracker = self._new()

    def update(self, perception: Perception) -> list[str]:
        """Take in a frame, and return the id of each of its detections. Frames come in order of their stamps.

        A stamp that lies back, or further ahead than an object is followed, starts anew, with new ids.
        """
        found = perception.output.detections
        if found is None:
            return []
        steps = (perception.stamp_ns - self._stamp_ns + _STEP_NS // 2) // _STEP_NS
        if not 0 <= steps <= self._lost_steps:
            self._given += self._tracker.total_object_count
            self._tracker = self._new()
        steps = int(np.clip(steps, 1, self._lost_steps))
        self._stamp_ns = perception.stamp_ns
        for _ in range(steps - 1):
            self._tracker.update()
        width, height = perception.size
        shares = found.boxes.astype(np.float64) / (width, height, width, height)
        detections = [
            self._norfair.Detection(box.reshape(2, 2), label=int(label), data=index)
            for index, (box, label) in enumerate(zip(shares, found.labels, strict=True))
        ]
        ids = [""] * len(found)
        for tracked in self._tracker.update(detections, period=self._lost_steps // 2):
            if tracked.last_detection.age == tracked.age:  # else it was not seen in this frame
                ids[tracked.last_detection.data] = str(self._given + tracked.id)
        return ids

    def _new(self) -> Any:
        return self._norfair.Tracker(
            distance_function="iou",
            distance_threshold=1 - self._overlap,
            hit_counter_max=self._lost_steps,
            initialization_delay=0,
            past_detections_length=0,
        )
