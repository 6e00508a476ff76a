"""Fault runs: a bag with one fault in it, the real node, and what has to come of it: modes, times, and every image.

For each fault, the modes that the node went through, how long it took to notice and to recover, and that the images in
the bag = processed + dropped + unpaired + rejected + lost in transport, to the frame.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from md_perception.bags.injection import Injection, Kind, to_kelvin, write_injected
from md_perception.bags.make import THERMAL_CAMERA, BagOptions, TimedMessage
from md_perception.bags.read import Bag
from md_perception.bags.results import headers_of, order_problems
from md_perception.bags.types import DETECTIONS, STATUS
from md_perception.bags.write import BagError
from md_perception.inference.student_file import DEMO_STUDENT, DEMO_VISIBLE_STUDENT, student_path
from md_perception.metrics.latency import machine
from md_perception.results import Camera, Mode
from md_perception.ros.harness import (
    CAMERAS,
    RESULTS,
    Accounting,
    RunError,
    Steps,
    run_command,
    run_on_bag,
)
from md_perception.ros.recorder import RecordedTopic

BAG_S = 8.0
START_S, END_S = 3.0, 6.0
"""When the fault is there, by the bag's time: before it the node has its mode, after it there is time to recover."""

SLACK_S = 0.3
"""Of a mode change, for the node's tick (50 ms), the pictures that it looks at now and then, and a busy machine."""

TRANSIT_S = 0.25
"""A mode that is there for less is on the way: STALE while pictures cannot be decoded and that is not sure yet, or
VISIBLE_ONLY while the pairs are counted after which FUSED returns."""

_TIMEOUT_S = 1.0
_INSPECTION_S = 0.2

_RECORDED = (
    # The order in which messages that wait are taken: a status before the result that it describes.
    RecordedTopic(RESULTS.status, STATUS),
    RecordedTopic(RESULTS.detections, DETECTIONS),
)


@dataclass(frozen=True)
class Scenario:
    """A fault, and what has to come of it.

    cameras: that have it. lost: what the node has to do without: a camera, "pairs" where both cameras deliver and only
    do not belong together any more, or nothing. detect_s: longest until it does, after the fault began. recover_s:
    longest until it is FUSED again after the fault has ended. told: what has to be among the faults in the status,
    after the camera's name. kelvin: the thermal camera sends 32FC1 in K.
    """

    name: str
    kind: Kind
    cameras: tuple[Camera, ...]
    amount: float = 0.0
    lost: Camera | str = ""
    detect_s: float = 0.0
    recover_s: float = 1.0
    told: str = ""
    kelvin: bool = False

    def injections(self) -> list[Injection]:
        """Return the faults for the bag."""
        return [
            Injection(self.kind, _TOPICS[camera], START_S, END_S, self.amount, seed=number)
            for number, camera in enumerate(self.cameras)
        ]

    def modes(self, available: Collection[Mode]) -> list[Mode]:
        """Return the modes that the node has to go through. available: those that have a student."""
        if not self.lost:
            return [Mode.FUSED]
        serves = {"thermal": [Mode.VISIBLE_ONLY], "rgb": [Mode.THERMAL_ONLY]}
        candidates = serves.get(self.lost, [Mode.VISIBLE_ONLY, Mode.THERMAL_ONLY])
        instead = next((mode for mode in candidates if mode in available), Mode.STALE)
        return [Mode.FUSED, instead, Mode.FUSED]


_TOPICS: dict[Camera, str] = {"rgb": CAMERAS.rgb, "thermal": CAMERAS.thermal}
_BOTH: tuple[Camera, ...] = ("rgb", "thermal")
_SILENT_S = _TIMEOUT_S + SLACK_S
_SEEN_S = _INSPECTION_S + SLACK_S

SCENARIOS = (
    Scenario("none", "drop", ("thermal",), 0.0),
    Scenario("thermal silent", "drop", ("thermal",), 1.0, "thermal", _SILENT_S, told="silent"),
    Scenario("rgb silent", "drop", ("rgb",), 1.0, "rgb", _SILENT_S, told="silent"),
    Scenario("thermal drops 30 %", "drop", ("thermal",), 0.3),
    Scenario("rgb drops 30 %", "drop", ("rgb",), 0.3),
    Scenario("thermal delayed 0.1 s", "delay", ("thermal",), 0.1),
    Scenario("thermal delayed 0.5 s", "delay", ("thermal",), 0.5, "pairs", _SILENT_S),
    Scenario("rgb delayed 0.5 s", "delay", ("rgb",), 0.5),
    Scenario("thermal reordered", "reorder", ("thermal",), 0.1),
    Scenario("rgb reordered", "reorder", ("rgb",), 0.1),
    Scenario("thermal twice", "duplicate", ("thermal",), 1),
    Scenario("rgb twice", "duplicate", ("rgb",), 1),
    Scenario("thermal frozen", "freeze", ("thermal",), 0.0, "thermal", _TIMEOUT_S + _SEEN_S, told="frozen"),
    Scenario("rgb frozen", "freeze", ("rgb",), 0.0, "rgb", _TIMEOUT_S + _SEEN_S, told="frozen"),
    Scenario("thermal dark", "dark", ("thermal",), 0.0, "thermal", _SEEN_S, told="dark"),
    Scenario("rgb dark", "dark", ("rgb",), told="dark"),
    Scenario("thermal half the size", "resize", ("thermal",), 0.5, told="image changed"),
    Scenario("rgb half the size", "resize", ("rgb",), 0.5, told="image changed"),
    Scenario("thermal 30 % NaN", "nan", ("thermal",), 0.3, kelvin=True),
    Scenario("thermal all NaN", "nan", ("thermal",), 1.0, "thermal", _SEEN_S, told="dark", kelvin=True),
    Scenario("thermal cut", "cut", ("thermal",), 0.5, "thermal", 2 * _INSPECTION_S + SLACK_S, told="unreadable"),
    Scenario("rgb cut", "cut", ("rgb",), 0.5, "rgb", 2 * _INSPECTION_S + SLACK_S, told="unreadable"),
    Scenario("thermal clock +5 s", "jump", ("thermal",), 5.0, "pairs", _SILENT_S, told="stamps in the future"),
    Scenario("thermal clock -5 s", "jump", ("thermal",), -5.0, "pairs", _SILENT_S, told="stamps jumped back"),
    Scenario("rgb clock +5 s", "jump", ("rgb",), 5.0, "pairs", _SILENT_S, told="stamps in the future"),
    Scenario("rgb clock -5 s", "jump", ("rgb",), -5.0, "pairs", _SILENT_S, told="stamps jumped back"),
    Scenario("both clocks +5 s", "jump", _BOTH, 5.0, told="stamps in the future"),
    Scenario("both clocks -5 s", "jump", _BOTH, -5.0, told="stamps jumped back"),
)


@dataclass(frozen=True)
class Observation:
    """What came of a fault.

    changes: (seconds of the bag's time, mode) at each change of the mode. published: modes of the results, without
    repetitions. told: the faults that were in the status, from the first result to the last. thermal_in_bag,
    thermal_received: images. order: what is wrong with the order and the headers of the results.
    """

    changes: list[tuple[float, Mode]]
    published: list[Mode]
    told: set[str]
    accounting: Accounting
    thermal_in_bag: int
    thermal_received: int
    order: list[str] = field(default_factory=list)

    @property
    def modes(self) -> list[Mode]:
        """The modes one after the other, without those that were there only on the way to the next."""
        ends = [at for at, _ in self.changes[1:]] + [float("inf")]
        return [mode for (at, mode), end in zip(self.changes, ends, strict=True) if end - at >= TRANSIT_S]

    @property
    def detected_s(self) -> float | None:
        """Time from the beginning of the fault until the node left FUSED; None if it never did."""
        return next((at - START_S for at, mode in self.changes if mode is not Mode.FUSED and at >= START_S), None)

    @property
    def recovered_s(self) -> float | None:
        """Time from the end of the fault until FUSED came back; None if it did not."""
        if self.detected_s is None or self.changes[-1][1] is not Mode.FUSED:
            return None
        return self.changes[-1][0] - END_S

    def problems(self, scenario: Scenario, available: Collection[Mode]) -> list[str]:
        """Return what is not as it has to be."""
        found = [*self.accounting.problems(), *self.order[:3]]
        expected = scenario.modes(available)
        if self.modes != expected:
            found.append(f"the modes were {_arrows(self.modes)}, expected {_arrows(expected)}")
        else:
            for what, took_s, limit_s in (
                ("notice", self.detected_s, scenario.detect_s),
                ("recover", self.recovered_s, scenario.recover_s),
            ):
                if took_s is not None and took_s > limit_s:
                    found.append(f"it took {took_s:.2f} s to {what}, at most {limit_s:.2f} s are allowed")
        lasting, all_modes = set(expected) - {Mode.STALE}, {mode for _, mode in self.changes}
        if not lasting <= set(self.published) <= all_modes:
            found.append(f"results were published as {_arrows(self.published)}")
        for camera in scenario.cameras:
            if scenario.told and f"{camera}: {scenario.told}" not in self.told:
                found.append(f"the status never said '{camera}: {scenario.told}', but {sorted(self.told)}")
        lost = self.thermal_in_bag - self.thermal_received
        if lost < 0:
            found.append(f"the node received {-lost} thermal images more than were in the bag")
        return found


def _arrows(modes: Sequence[Mode]) -> str:
    return " > ".join(mode.name for mode in modes) or "none"


def _without_repetitions(modes: Sequence[Mode]) -> list[Mode]:
    return [mode for number, mode in enumerate(modes) if number == 0 or mode is not modes[number - 1]]


def mode_changes(log: str, start_ns: int, end_ns: int) -> list[tuple[float, Mode]]:
    """Return the changes of the mode in the node's log, as (seconds since start_ns, mode), up to end_ns."""
    changes = []
    for line in log.splitlines():
        begin = line.find('{"event": "mode"')
        if begin < 0:
            continue
        entry = json.loads(line[begin:])
        seconds = float(entry["time"]) - start_ns / 1e9
        if seconds <= (end_ns - start_ns) / 1e9:
            changes.append((seconds, Mode[entry["to"]]))
    return changes


@dataclass(frozen=True)
class FaultOptions:
    """What is run.

    students: files by the parameter that takes them. bag: that the faults are put into; None: one of the scene world.
    size: (width, height) px of its RGB images.
    """

    students: dict[str, Path]
    bag: Path | None = None
    out: Path = Path("log/faults")
    size: tuple[int, int] = (320, 256)
    rate: float = 1.0
    seed: int = 1
    keep: bool = False

    def available(self) -> set[Mode]:
        """Return the modes that have a student."""
        modes = {
            "student.visible_file": Mode.VISIBLE_ONLY,
            "student.thermal_file": Mode.THERMAL_ONLY,
        }
        return {Mode.FUSED, *(mode for parameter, mode in modes.items() if parameter in self.students)}


def encoding_of(cameras: Path) -> str:
    """Return the thermal.encoding for a bag. Raises BagError where the bag cannot be used."""
    with Bag(cameras) as bag:
        if bag.duration_s < END_S + 1:
            raise BagError(f"{cameras} has {bag.duration_s:.1f} s: a fault and the recovery need {END_S + 1:g} s")
        first = next(bag.messages([CAMERAS.thermal]), None)
        if first is None or CAMERAS.rgb not in bag.topics:
            raise BagError(f"{cameras} needs images on {CAMERAS.rgb} and {CAMERAS.thermal}")
        return "centikelvin" if first.message.encoding in ("mono16", "16UC1") else "auto"


def make_cameras(options: FaultOptions) -> Path:
    """Write the bag that the faults are put into: a street of the scene world, thermal in centikelvin."""
    from md_perception.bags.scenes import RATE_HZ, StreetOptions, make_from_scenes

    out = options.out / "cameras"
    thermal = replace(THERMAL_CAMERA, encoding="mono16")
    bag = BagOptions(thermal=thermal, seed=options.seed, replace=True, progress=False)
    make_from_scenes(out, bag, StreetOptions(frames=round(BAG_S * RATE_HZ), size=options.size))
    return out


def observe(scenario: Scenario, cameras: Path, encoding: str, options: FaultOptions) -> Observation:
    """Run the node on the bag with the fault in it. Raises RunError, BagError.

    encoding: thermal.encoding for the bag as it is.
    """
    folder = options.out / scenario.name.replace(" ", "_").replace("%", "percent")
    folder.mkdir(parents=True, exist_ok=True)
    bad = folder / "cameras"

    def prepare(timed: TimedMessage) -> TimedMessage:
        return to_kelvin(timed, CAMERAS.thermal) if scenario.kelvin else timed

    counts = write_injected(
        cameras, bad, scenario.injections(), topics=list(_TOPICS.values()), prepare=prepare, replace_bag=True
    )
    parameters = [f"{name}:={path}" for name, path in options.students.items()]
    parameters.append(f"thermal.encoding:={'kelvin' if scenario.kelvin else encoding}")
    played, status = run_on_bag(
        bad, folder / "results", folder, _RECORDED, lambda text: None, parameters=parameters, rate=options.rate
    )
    with Bag(folder / "results") as results, Bag(bad) as bag:
        if results.damage:
            raise RunError(f"the recorded bag is damaged: {results.damage}")
        statuses = [item.message for item in results.messages([RESULTS.status])]
        frames = [number for number, status in enumerate(statuses) if status.mode != Mode.STALE] or [0]
        observation = Observation(
            changes=mode_changes((folder / "node.log").read_text(encoding="utf-8"), bag.start_ns, bag.end_ns),
            published=_without_repetitions([Mode(s.mode) for s in statuses if s.mode != Mode.STALE]),
            told={fault for status in statuses[frames[0] : frames[-1] + 1] for fault in status.faults},
            accounting=Accounting.of(
                status,
                in_bag=counts[CAMERAS.rgb],
                played=played["counts"][CAMERAS.rgb],
                results=results.topics[RESULTS.detections].count,
            ),
            thermal_in_bag=counts[CAMERAS.thermal],
            thermal_received=int(status.received_thermal),
            order=order_problems(results, headers_of(bag, CAMERAS.rgb), headers_of(bag, CAMERAS.thermal)),
        )
    if not options.keep:
        shutil.rmtree(bad)
        shutil.rmtree(folder / "results")
    return observation


def line_of(scenario: Scenario, seen: Observation, problems: Sequence[str], available: Collection[Mode]) -> str:
    """Return the row of the table, Markdown."""
    noticed, recovered = seen.detected_s, seen.recovered_s
    what = f"`{scenario.kind}`" + (f" {scenario.amount:g}" if scenario.amount else "")
    told = ", ".join(sorted(seen.told)) or "none"
    cells = [
        scenario.name,
        f"{what} of {' and '.join(scenario.cameras)}",
        _arrows(scenario.modes(available)),
        _arrows(seen.modes),
        told,
        "-" if noticed is None else f"{noticed:.2f}",
        "-" if recovered is None else f"{recovered:.2f}",
        _sum(seen.accounting),
        "as expected" if not problems else "**" + "; ".join(problems) + "**",
    ]
    return "| " + " | ".join(cells) + " |"


def _sum(accounting: Accounting) -> str:
    parts = (accounting.processed, accounting.dropped, accounting.unpaired, accounting.rejected, accounting.lost)
    return f"{accounting.in_bag} = " + " + ".join(map(str, parts))


HEAD = (
    "| fault | injected | expected | observed | told in the status | notice, s | recover, s | in the bag = processed + "
    "dropped + unpaired + rejected + lost | |\n|---|---|---|---|---|---|---|---|---|"
)


def run(options: FaultOptions, scenarios: Sequence[Scenario]) -> int:
    """Run the scenarios; return 0, or 1 if anything was not as expected. Raises RunError, BagError."""
    step = Steps("faults")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.bag is None:
        step(f"making a bag of {BAG_S:g} s of the scene world, seed {options.seed}")
    cameras = options.bag or make_cameras(options)
    encoding = encoding_of(cameras)
    if encoding != "centikelvin" and any(scenario.kelvin for scenario in scenarios):
        step("the faults with NaN are left out: they are made from thermal images of centikelvin")
        scenarios = [scenario for scenario in scenarios if not scenario.kelvin]
    available = options.available()
    rows: list[str] = []
    figures: list[dict[str, object]] = []
    failed = 0
    print(HEAD, flush=True)
    for scenario in scenarios:
        seen = observe(scenario, cameras, encoding, options)
        problems = seen.problems(scenario, available)
        failed += bool(problems)
        rows.append(line_of(scenario, seen, problems, available))
        print(rows[-1], flush=True)
        figures.append(
            {
                "fault": asdict(scenario),
                "changes": [(round(at, 3), mode.name) for at, mode in seen.changes],
                "told": sorted(seen.told),
                "accounting": asdict(seen.accounting),
                "thermal": {"in_bag": seen.thermal_in_bag, "received": seen.thermal_received},
                "problems": problems,
            }
        )
    head = [
        "# Fault runs",
        "",
        f"- students: {', '.join(f'{name} {path.name}' for name, path in options.students.items())}",
        f"- machine: {machine()}",
        f"- cameras: {options.bag or f'scene world, seed {options.seed}'}; the fault is there from {START_S:g} s to "
        f"{END_S:g} s",
        "",
        HEAD,
    ]
    (options.out / "report.md").write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    (options.out / "report.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    step(f"{len(scenarios)} faults, {failed} not as expected; {options.out / 'report.md'}")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 if anything was not as expected, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="md_faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument(
        "faults", nargs="*", metavar="FAULT", help="all by default: " + ", ".join(names).replace("%", "%%")
    )
    parser.add_argument("--out", type=Path, default=Path("log/faults"), help="folder for logs and reports")
    parser.add_argument(
        "--student",
        type=student_path,
        default=DEMO_STUDENT,
        help="fused student; demo, the default: that of this package",
    )
    parser.add_argument(
        "--visible-student",
        type=partial(student_path, demo=DEMO_VISIBLE_STUDENT),
        help="for RGB alone, or demo; without one thermal's loss is STALE",
    )
    parser.add_argument("--thermal-student", type=Path, help="for thermal alone; without one RGB's loss is STALE")
    parser.add_argument("--bag", type=Path, help="of both cameras, thermal in 8 bit or centikelvin; default: scenes")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(320, 256), metavar=("W", "H"), help="of RGB in scenes, px"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="seconds of the bag in one second")
    parser.add_argument("--seed", type=int, default=1, help="of the scene world")
    parser.add_argument("--keep", action="store_true", help="keep the bags with the faults and the results")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.faults if name not in names]
    if unknown:
        parser.error(f"there is no fault {', '.join(map(repr, unknown))}: use {', '.join(names)}")
    if not (0 < given.rate < math.inf and min(given.size) > 0):
        parser.error("--rate and --size have to be above 0")
    students = {
        "student.file": given.student,
        "student.visible_file": given.visible_student,
        "student.thermal_file": given.thermal_student,
    }
    options = FaultOptions(
        {name: path.resolve() for name, path in students.items() if path is not None},
        given.bag,
        given.out,
        tuple(given.size),
        given.rate,
        given.seed,
        given.keep,
    )
    chosen = [scenario for scenario in SCENARIOS if not given.faults or scenario.name in given.faults]
    return run_command("md_faults", lambda: run(options, chosen))


if __name__ == "__main__":
    sys.exit(main())
