"""Where the time of each frame went, from the publish call of its RGB image to the arrival of its last result.

No ROS in here: what cameras, node (ros.tracing) and subscriber noted on the steady clock that they share goes in,
durations come out.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from md_perception.metrics.latency import nearest_rank

Places = Mapping[str, int]
"""Name of a place to when the frame was there, ns."""

STAGES: tuple[tuple[str, str, str, str], ...] = (
    ("camera", "began", "rgb sent", "the camera's process hands the image to the middleware"),
    ("transport in", "rgb sent", "rgb in reader", "it is serialised and carried into the node's process"),
    ("take", "rgb in reader", "rgb callback", "the executor wakes up, deserialises, calls"),
    ("pair", "rgb callback", "taken", "health, pairing (with its wait), hand-over to the worker"),
    ("decode", "taken", "decoded", "messages to arrays, thermal to 8 bit, registration"),
    ("inference", "decoded", "inferred", "the student"),
    ("status", "inferred", "status published", "the status is made and goes out, ahead of its result"),
    ("results", "status published", "result sent", "results become messages and go out, until the last is handed over"),
    (
        "transport out",
        "result sent",
        "result in reader",
        "the last is serialised and carried into the subscriber's process",
    ),
    ("subscriber", "result in reader", "received", "the subscriber's executor wakes up, deserialises, calls"),
)
"""Name, where it begins and ends, and what happens. They follow each other without a gap."""

_IN_THE_NODE = {start for _, start, _, _ in STAGES[1:8]}
"""Places that the node notes of every frame that it takes through."""

_RUNTIME = (
    ("thermal callback", "thermal added"),
    ("rgb callback", "rgb added"),
    ("taken", "decoded"),
    ("inferred", "published"),
)
"""What the node does around the student and between two messages: pairing, decoding, messages and publishing."""

_BESIDE = (
    ("inspection", "inspection", "inspected"),
    ("diagnostics", "diagnosis", "diagnosed"),
    *((f"garbage collection {generation}", f"garbage {generation} start", f"garbage {generation} stop")
      for generation in range(3)),
)  # fmt: skip
"""What else takes the node's threads now and then."""

OVERHEAD, LATENCY, PAIR_WAIT = "latency - inference - pair wait", "latency", "pair wait"
RUNTIME, RUNTIME_CPU = "runtime", "runtime, CPU"


@dataclass(frozen=True)
class Spread:
    """Nearest-rank percentiles of all frames, ms, and in brackets the least and the greatest of the rounds'."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    p50_rounds_ms: tuple[float, float]
    p95_rounds_ms: tuple[float, float]
    p99_rounds_ms: tuple[float, float]
    count: int

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> "Spread":
        """rounds: the values of each round, ms."""
        rounds = [values for values in rounds if values]

        def percentile(percent: int) -> tuple[float, tuple[float, float]]:
            single = [nearest_rank(sorted(values), percent) for values in rounds]
            together = sorted(value for values in rounds for value in values)
            nothing = float("nan")
            return nearest_rank(together, percent), (min(single, default=nothing), max(single, default=nothing))

        (p50, of_p50), (p95, of_p95), (p99, of_p99) = (percentile(percent) for percent in (50, 95, 99))
        return cls(p50, p95, p99, of_p50, of_p95, of_p99, sum(map(len, rounds)))


@dataclass(frozen=True)
class Timeline:
    """What happened in a round.

    frames: durations of each frame that arrived whole, by name, ms. beside: durations of what else the node's threads
    did between the first and the last of them, ms. missing: frames that were sent and have no whole result.
    """

    frames: list[dict[str, float]]
    beside: dict[str, list[float]]
    missing: int

    @classmethod
    def of(
        cls,
        sent: Sequence[tuple[int, int]],
        points: Iterable[Sequence[Any]],
        received: Mapping[str, Mapping[int, tuple[int, int, int]]],
        statuses: Mapping[int, Mapping[str, float]],
    ) -> "Timeline":
        """Put together what was noted, in ns on one clock.

        sent: stamp and begin of the publish call of each RGB image, at least one. points: of ros.tracing. received: by
        topic and stamp, when the result was sent, was in the subscriber's process, and got to its callback. statuses:
        by stamp, inference_ms and pair_wait_ms.
        """
        begin_ns, end_ns = sent[0][1], sent[-1][1]
        places: dict[int, dict[str, int]] = defaultdict(dict)
        cpu: dict[int, dict[str, int]] = defaultdict(dict)
        beside: dict[str, list[float]] = {name: [] for name, *_ in _BESIDE}
        begun: dict[tuple[str, int], int] = {}
        ends = {end: (name, start) for name, start, end in _BESIDE}
        starts = {start for _, start, _ in _BESIDE}
        for place, stamp, at_ns, cpu_ns, thread in points:
            if place in starts:
                begun[place, thread] = at_ns
            elif place in ends:
                name, start = ends[place]
                since_ns = begun.pop((start, thread), None)
                if since_ns is not None and begin_ns <= since_ns < end_ns:
                    beside[name].append((at_ns - since_ns) / 1e6)
            else:
                places[stamp][place] = at_ns
                cpu[stamp][place] = cpu_ns
        frames, missing = [], 0
        for stamp, began in sent:
            results = {topic: times[stamp] for topic, times in received.items() if stamp in times}
            here = places.get(stamp, {})
            if len(results) < len(received) or stamp not in statuses or not here.keys() >= _IN_THE_NODE:
                missing += 1
                continue
            last = max(results.values(), key=lambda times: times[2])
            whole = {**here, "began": began}
            whole |= dict(zip(("result sent", "result in reader", "received"), last, strict=True))
            frames.append(_durations(whole, cpu[stamp], results, statuses[stamp]))
        return cls(frames, beside, missing)


def _durations(
    places: Places, cpu: Places, results: Mapping[str, tuple[int, int, int]], status: Mapping[str, float]
) -> dict[str, float]:
    """Return the durations of one frame, ms."""
    latency = (places["received"] - places["began"]) / 1e6
    waits = status["inference_ms"] + status["pair_wait_ms"]
    return {
        LATENCY: latency,
        OVERHEAD: latency - waits,
        PAIR_WAIT: status["pair_wait_ms"],
        RUNTIME: sum(places[end] - places[start] for start, end in _RUNTIME if start in places) / 1e6,
        RUNTIME_CPU: sum(cpu[end] - cpu[start] for start, end in _RUNTIME if start in cpu) / 1e6,
        **{name: (places[end] - places[start]) / 1e6 for name, start, end, _ in STAGES},
        **{f"until {topic}": (times[2] - places["began"]) / 1e6 for topic, times in results.items()},
    }


def spreads(rounds: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Spread]:
    """Return the percentiles of every duration. rounds: the frames of each round."""
    names = dict.fromkeys(name for frames in rounds for frame in frames for name in frame)
    return {
        name: Spread.of([[frame[name] for frame in frames if name in frame] for frames in rounds]) for name in names
    }


def inference_cpu_ns(points: Iterable[Sequence[Any]], begin_ns: int, end_ns: int) -> tuple[int, int]:
    """Return the CPU time that the worker's thread spent in inference between two moments, ns, and the frames."""
    start: dict[int, int] = {}
    total = frames = 0
    for place, stamp, at_ns, cpu_ns, _ in points:
        if place == "decoded" and begin_ns <= at_ns < end_ns:
            start[stamp] = cpu_ns
        elif place == "inferred" and stamp in start:
            total += cpu_ns - start[stamp]
            frames += 1
    return total, frames
