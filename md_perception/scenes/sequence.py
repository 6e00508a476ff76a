"""A drive through a scene: time-stamped frames of two cameras that run at their own rates."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from md_perception.results import Int64Array
from md_perception.scenes.rgb import render_rgb
from md_perception.scenes.sampling import sample_scene
from md_perception.scenes.thermal import render_thermal
from md_perception.scenes.truth import RgbView, ThermalView
from md_perception.scenes.world import SceneSettings


@dataclass(frozen=True)
class Timing:
    """When the two cameras take their frames.

    rgb_rate_hz, thermal_rate_hz: frames a second. offset_s: the first thermal frame is taken this long after the
    first RGB frame (may be negative: its stamps stay above start_ns - 1 s). jitter_s: each frame is taken up to this
    much earlier or later than its rate says, uniformly. clock_error_s: thermal stamps are late by this much against
    the time at which the frame was taken; RGB stamps are always right. start_ns: stamp of time 0.
    """

    rgb_rate_hz: float = 30.0
    thermal_rate_hz: float = 30.0
    offset_s: float = 0.0
    jitter_s: float = 0.0
    clock_error_s: float = 0.0
    start_ns: int = 1_700_000_000_000_000_000

    def __post_init__(self) -> None:
        if not (self.rgb_rate_hz > 0 and self.thermal_rate_hz > 0):
            raise ValueError(f"frame rates must be positive: {self.rgb_rate_hz} Hz and {self.thermal_rate_hz} Hz")
        if not 0 <= self.jitter_s < 0.5 / max(self.rgb_rate_hz, self.thermal_rate_hz):
            raise ValueError(
                f"a jitter of {self.jitter_s} s must be below half a frame period, or frames change places"
            )


@dataclass(frozen=True)
class StampedRgb:
    """An RGB frame and the stamp its driver gives it."""

    stamp_ns: int
    view: RgbView


@dataclass(frozen=True)
class StampedThermal:
    """A thermal frame and the stamp its driver gives it."""

    stamp_ns: int
    view: ThermalView


class Sequence:
    """A drive of a given length through the street of a seed; iterating draws its frames in order of their stamps.

    rgb_times_s, thermal_times_s: when the frames are taken, float64, ascending. rgb_stamps_ns, thermal_stamps_ns:
    what their headers say, int64. The same arguments give the same bytes; iterating again starts again.
    """

    def __init__(
        self,
        seed: int,
        settings: SceneSettings | None = None,
        timing: Timing | None = None,
        *,
        duration_s: float = 10.0,
    ) -> None:
        if duration_s <= 0:
            raise ValueError(f"a sequence of {duration_s} s has no frames: give a positive duration_s")
        self.timing = timing or Timing()
        self.scene = sample_scene(seed, settings, further_blocks=1)
        self.duration_s = duration_s
        rng = np.random.default_rng([seed, 15])
        jitter = self.timing.jitter_s

        def times(first: float, rate: float) -> np.ndarray:
            regular = first + np.arange(int(np.ceil(duration_s * rate - 1e-9))) / rate
            taken = regular + rng.uniform(-jitter, jitter, len(regular))
            return np.rint(taken * 1e6) / 1e6  # whole microseconds: stamps and times agree exactly

        self.rgb_times_s = times(0.0, self.timing.rgb_rate_hz)
        self.thermal_times_s = times(self.timing.offset_s, self.timing.thermal_rate_hz)
        self.rgb_stamps_ns = self._stamps(self.rgb_times_s)
        self.thermal_stamps_ns = self._stamps(self.thermal_times_s + self.timing.clock_error_s)

    def _stamps(self, times_s: np.ndarray) -> Int64Array:
        micros = np.rint(times_s * 1e6).astype(np.int64)
        return np.int64(self.timing.start_ns) + 1000 * micros

    def __len__(self) -> int:
        return len(self.rgb_times_s) + len(self.thermal_times_s)

    def __iter__(self) -> Iterator[StampedRgb | StampedThermal]:
        stamps = np.concatenate([self.rgb_stamps_ns, self.thermal_stamps_ns])
        for index in np.argsort(stamps, kind="stable"):  # RGB first where stamps are equal
            stamp = int(stamps[index])
            if index < len(self.rgb_times_s):
                yield StampedRgb(stamp, render_rgb(self.scene, float(self.rgb_times_s[index])))
            else:
                time_s = float(self.thermal_times_s[index - len(self.rgb_times_s)])
                yield StampedThermal(stamp, render_thermal(self.scene, time_s))
