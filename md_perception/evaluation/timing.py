"""How long the stages of an evaluation took: timing.json, the one file that is not the same twice."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from md_perception.metrics.latency import Percentiles, nearest_rank


@dataclass(frozen=True)
class Timing:
    """What timing.json holds.

    machines: where it was measured. workers: threads that inferred beside each other in the last run (they share the
    cores: measure latency with one). stages: `decode NAME`, all that Pipeline.prepare does for a student; `pair_wait
    NAME`, on the clock of the bag; `inference NAME`; `total NAME`, decoding and inference, what the node's worker does
    for a frame before it publishes; `score`, what is computed for the report.
    """

    machines: tuple[str, ...]
    workers: int
    stages: dict[str, Percentiles]

    @classmethod
    def of(cls, times_ms: Iterable[Mapping[str, float]], machines: Sequence[str], workers: int) -> "Timing":
        """Summarise the durations of frames, by stage, ms."""
        stages: dict[str, list[float]] = {}
        for frame in times_ms:
            for name, value in frame.items():
                stages.setdefault(name, []).append(value)
        return cls(tuple(machines), workers, {name: _percentiles(values) for name, values in sorted(stages.items())})

    def figures(self, student: str) -> dict[str, float | None]:
        """Return what can be required of a student: p50_ms, p95_ms and p99_ms of a frame as a whole, and the same of
        decode, pair_wait and inference (decode_p95_ms ...)."""
        found: dict[str, float | None] = {}
        for prefix, stage in (
            ("", f"total {student}"),
            ("decode_", f"decode {student}"),
            ("pair_wait_", f"pair_wait {student}"),
            ("inference_", f"inference {student}"),
        ):
            percentiles = self.stages.get(stage)
            for percent in (50, 95, 99):
                value = math.nan if percentiles is None else getattr(percentiles, f"p{percent}_ms")
                found[f"{prefix}p{percent}_ms"] = None if math.isnan(value) else value
        return found

    def content(self) -> dict[str, object]:
        """Return what timing.json holds, as plain JSON."""
        return {
            "machines": list(self.machines),
            "workers": self.workers,
            "stages": {name: asdict(percentiles) for name, percentiles in self.stages.items()},
        }


def _percentiles(values: list[float]) -> Percentiles:
    ordered = sorted(values)
    p50, p95, p99 = (nearest_rank(ordered, percent) for percent in (50, 95, 99))
    return Percentiles(p50, p95, p99, len(ordered))
