"""The demo: a bag of two cameras, the real node in a process of its own, DDS between them, and figures that add up.

It checks itself. Every RGB image of the bag must be accounted for, every result must have the header of its image and
come after its status, and on the scene world, where the truth is known, persons must be found.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from md_perception.bags.make import BagOptions, make_from_pictures
from md_perception.bags.read import Bag
from md_perception.bags.results import (
    TRUTH_DETECTIONS,
    Joined,
    count_found,
    detections_of,
    headers_of,
    joined,
    label_info_problems,
    order_problems,
    recorded_results,
    truth_by_stamp,
)
from md_perception.bags.types import DETECTIONS, DIAGNOSTICS, IMAGE, LABEL_INFO, STATUS, TopicQos
from md_perception.inference.manifest import Manifest, ManifestError
from md_perception.inference.onnx_file import OnnxFile, OnnxFileError
from md_perception.inference.student_file import DEMO_STUDENT, student_path
from md_perception.labels import DETECTION, SEGMENTATION, ClassList
from md_perception.metrics.latency import machine, nearest_rank
from md_perception.outputs.overlay import colours_of, draw
from md_perception.results import Detections, Mode, UInt8Image
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

CLIP = "0117_1605"
THERMAL_SIZE = (160, 120)
"""(width, height) px to which the thermal images of the clip are reduced: those of a cheap sensor."""

STREET_FRAMES = 50
"""RGB images of each street of the scene world: several kinds of light and weather in one bag."""

PICTURES = 6
MP4V = int.from_bytes(b"mp4v", "little")
"""Four-character code of the codec that every OpenCV wheel can write."""

LEAST_HEIGHT_PX = 56.0
"""Of a person that counts in the recall: the low end of KAIST's test percentiles, at 512 rows."""
LEAST_VISIBLE = 0.5
"""Share of a person that must be visible for it to count: KAIST's occlusion levels 0 and 1."""

_RECORDED = (
    # The order in which messages that wait are taken: a status before the result that it describes.
    RecordedTopic(RESULTS.status, STATUS),
    RecordedTopic(RESULTS.detections, DETECTIONS),
    RecordedTopic(RESULTS.label_info, LABEL_INFO, TopicQos.LATCHED),
    RecordedTopic(RESULTS.mask, IMAGE),
    RecordedTopic(RESULTS.confidence, IMAGE),
    RecordedTopic(RESULTS.diagnostics, DIAGNOSTICS),
)


# --- The run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoOptions:
    """What is run.

    source: `clip`, `scenes`, or `auto`: the clip where it is. frames: RGB images at most. student: file; None: the
    node's default. least_recall: of persons in scenes, below which the demo fails.
    """

    source: str = "auto"
    out: Path = Path("demo")
    frames: int | None = None
    rate: float = 1.0
    seed: int = 1
    student: Path | None = None
    least_recall: float = 0.5


@dataclass
class Figures:
    """Everything that the page of figures shows; times in ms."""

    source: str
    accounting: Accounting
    late: float = 0.0
    paired: int = 0
    times: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    modes: list[tuple[float, str]] = field(default_factory=list)
    student: str = ""
    provider: str = ""
    detections: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    persons: tuple[int, int] | None = None
    duration_s: float = 0.0

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that are counted in `detections`."""
        return tuple(self.detections[0][1]) if self.detections else ()


def run(options: DemoOptions) -> int:
    """Run the demo; return its exit status: 0, or 1 if its own checks fail. Raises RunError, BagError."""
    step = Steps("demo")
    out = options.out
    (out / "log").mkdir(parents=True, exist_ok=True)
    for left in out.glob(".*.partial-*"):  # by a run that was killed
        shutil.rmtree(left)
    source, cameras = _make_bag(options, step)
    with Bag(cameras) as bag:
        in_bag = bag.topics[CAMERAS.rgb].count
        images = headers_of(bag, CAMERAS.rgb)
    parameters = [] if options.student is None else [f"student.file:={options.student}"]
    played, status = run_on_bag(
        cameras, out / "results", out / "log", _RECORDED, step, parameters=parameters, rate=options.rate
    )
    detection, segmentation = student_classes(options.student or DEMO_STUDENT)

    with Bag(out / "results") as results, Bag(cameras) as bag:
        if results.damage:
            raise RunError(f"the recorded bag is damaged: {results.damage}")
        counts = results.topics[RESULTS.detections if len(detection) else RESULTS.mask].count
        accounting = Accounting.of(status, in_bag=in_bag, played=played["counts"].get(CAMERAS.rgb, 0), results=counts)
        figures = Figures(source, accounting, late=played["late_p99_ms"], paired=int(status.paired))
        problems = accounting.problems()
        problems += order_problems(results, images)
        if segmentation:
            problems += label_info_problems(results, segmentation)
        _read_figures(results, bag, figures, detection)
        step(f"drawing {accounting.processed} overlays")
        files = draw_overlays(results, bag, out, detection, segmentation)
    if figures.persons is not None:
        found, there = figures.persons
        if there == 0:
            problems.append("no person in the processed frames counts: make the bag longer (--frames)")
        elif found / there < options.least_recall:
            problems.append(f"person recall {found / there:.2f} ({found} of {there}) is below {options.least_recall}")
    report = out / "report.md"
    report.write_text(report_text(figures, problems), encoding="utf-8")
    print("\n" + "\n".join(summary_lines(figures)) + "\n")
    for problem in problems[:20]:
        print(f"demo: FAILED CHECK: {problem}", file=sys.stderr)
    step("done" if not problems else f"{len(problems)} checks failed")
    for path, what in [
        (report, "figures"),
        (out / "results", "bag of the results"),
        (cameras, "bag of the cameras"),
        *files,
    ]:
        print(f"  {path}  {what}")
    return 1 if problems else 0


def student_classes(path: Path) -> tuple[ClassList, tuple[str, ...]]:
    """Return the detection and the segmentation classes of a student file; empty without the task."""
    try:
        manifest = Manifest.from_metadata(OnnxFile.parse(path.read_bytes()).metadata, str(path))
    except (OSError, OnnxFileError, ManifestError) as error:
        raise RunError(f"student {path} cannot be read: {error}") from None
    names = manifest.detection_classes
    return ClassList(manifest.name, names, tuple(colours_of(names, DETECTION))), manifest.segmentation_classes


def data_folder() -> Path:
    """Return where real data may be: MD_DATA, or ../shared/data beside this checkout."""
    return Path(os.environ.get("MD_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")


def _make_bag(options: DemoOptions, step: Steps) -> tuple[str, Path]:
    clip = [data_folder() / "m3svd" / camera / f"{CLIP}.mp4" for camera in ("visible", "infrared")]
    there = all(path.is_file() for path in clip)
    if options.source == "clip" and not there:
        raise RunError(f"{clip[0]} is not there: set MD_DATA to the folder that has m3svd/, or take SOURCE=scenes")
    out = options.out / "cameras"
    if there and options.source != "scenes":
        step(f"making a bag of the real clip {CLIP}, thermal reduced to {THERMAL_SIZE[0]}x{THERMAL_SIZE[1]}")
        made = BagOptions(thermal_size=THERMAL_SIZE, max_frames=options.frames, replace=True)
        summary = make_from_pictures(clip[0], clip[1], out, made)
        source = f"real clip m3svd {CLIP}"
    else:
        from md_perception.bags.scenes import StreetOptions, make_from_scenes

        streets = StreetOptions(frames=options.frames or 300, street_frames=STREET_FRAMES)
        step(f"making a bag of {streets.frames} frames of the scene world, seed {options.seed}")
        summary = make_from_scenes(out, BagOptions(seed=options.seed, replace=True), streets)
        source = f"scene world, seed {options.seed}"
    count, megabytes = summary.counts[CAMERAS.rgb], summary.size_bytes / 1e6
    step(f"{out}: {count} RGB images, {summary.duration_s:.1f} s, {megabytes:.0f} MB")
    return source, out


# --- Figures ---------------------------------------------------------------------------------------------------------


def _read_figures(results: Bag, cameras: Bag, figures: Figures, classes: ClassList) -> None:
    truth = None
    if TRUTH_DETECTIONS in cameras.topics and "person" in classes.classes:
        truth = truth_by_stamp(cameras, least_height_px=LEAST_HEIGHT_PX, least_visible=LEAST_VISIBLE)
    stages: dict[str, list[float]] = {
        name: [] for name in ("decode_ms", "pair_wait_ms", "inference_ms", "publish_ms", "total_ms")
    }
    found = there = 0
    person = DETECTION.id_of("person")
    for number, result in enumerate(recorded_results(results)):
        if result.detections is not None:
            detections = detections_of(result.detections, classes)
            names = [classes.classes[label] for label in detections.labels]
            figures.detections.append((result.stamp_ns, {name: names.count(name) for name in classes.classes}))
            if truth is not None:
                here = count_found(truth[result.stamp_ns], _in_our_ids(detections, classes), person)
                found, there = found + here[0], there + here[1]
        for name, values in stages.items():
            if name != "publish_ms" or number:  # that of the first says nothing: it is of the frame before
                values.append(float(getattr(result.status, name)))
        figures.student = f"{result.status.student}, {result.status.precision}"
        figures.provider = result.status.provider
    figures.times = {
        name: tuple(nearest_rank(sorted(values), percent) for percent in (50, 95, 99))  # type: ignore[misc]
        for name, values in stages.items()
    }
    figures.persons = None if truth is None else (found, there)
    figures.duration_s = cameras.duration_s
    figures.modes = mode_changes(results)


def _in_our_ids(detections: Detections, classes: ClassList) -> Detections:
    """Return the detections with the ids of DETECTION, in which the truth is; -1 for what is not among them."""
    ours = [DETECTION.classes.index(name) if name in DETECTION.classes else -1 for name in classes.classes]
    return Detections(detections.boxes, detections.scores, np.array(ours, np.int64)[detections.labels])


def mode_changes(results: Bag) -> list[tuple[float, str]]:
    """Return (seconds from the beginning of the recording, mode) at each change of the mode."""
    changes: list[tuple[float, str]] = []
    for item in results.messages([RESULTS.status]):
        mode = Mode(item.message.mode).name
        if not changes or changes[-1][1] != mode:
            changes.append(((item.log_ns - results.start_ns) * 1e-9, mode))
    return changes


def summary_lines(figures: Figures) -> list[str]:
    """Return the figures that are printed at the end."""
    accounting = figures.accounting
    lines = [
        f"RGB images: {accounting.in_bag} in the bag = {accounting.sum_text()}",
        f"paired with thermal: {figures.paired} of {accounting.received} received",
    ]
    for name, (p50, p95, p99) in figures.times.items():
        lines.append(f"{name[:-3].replace('_', ' '):<10} p50 {p50:7.1f}   p95 {p95:7.1f}   p99 {p99:7.1f} ms")
    lines.append("modes: " + ", ".join(f"{mode} from {seconds:.1f} s" for seconds, mode in figures.modes))
    if figures.detections:
        number = len(figures.detections)
        sums = {name: sum(counts[name] for _, counts in figures.detections) for name in figures.classes}
        lines.append("detections a frame: " + ", ".join(f"{sums[name] / number:.2f} {name}" for name in sums))
    if figures.persons is not None:
        found, there = figures.persons
        lines.append(
            f"person recall {found / max(there, 1):.2f} ({found} of {there}; IoU 0.5; persons of at least "
            f"{LEAST_HEIGHT_PX:g} px that are at least half visible, in the processed frames)"
        )
    return lines


def report_text(figures: Figures, problems: list[str]) -> str:
    """Return the page of figures, Markdown."""
    accounting = figures.accounting
    rows = {
        "in the bag": accounting.in_bag,
        "played": accounting.played,
        "received by the node": accounting.received,
        "paired with thermal": figures.paired,
        "processed": accounting.processed,
        "dropped while busy": accounting.dropped,
        "unpaired": accounting.unpaired,
        "rejected": accounting.rejected,
        "lost in transport": accounting.lost,
        "results recorded": accounting.results,
    }
    rate = accounting.processed / figures.duration_s if figures.duration_s else 0.0
    lines = ["# md_perception demo", ""]
    lines += [
        f"- source: {figures.source}",
        f"- student: {figures.student}, on {figures.provider}",
        f"- machine: {machine()}",
        f"- processed: {rate:.1f} frames/s of bag time",
        f"- checks: {'all passed' if not problems else f'{len(problems)} FAILED'}",
        *(f"  - {problem}" for problem in problems),
        "",
        "| RGB images | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        f"{accounting.in_bag} = {accounting.sum_text()}",
        "",
        "| ms | p50 | p95 | p99 |",
        "|---|---|---|---|",
        *(
            f"| {name[:-3].replace('_', ' ')} | {p50:.1f} | {p95:.1f} | {p99:.1f} |"
            for name, (p50, p95, p99) in figures.times.items()
        ),
        "",
        "total: from the stamp of the RGB image to its status, in the time of the bag. The player was at most "
        f"{figures.late:.1f} ms behind its schedule for 99 % of the messages.",
        "",
        "| from | mode |",
        "|---|---|",
        *(f"| {seconds:.1f} s | {mode} |" for seconds, mode in figures.modes),
        "",
        *(f"- {line}" for line in summary_lines(figures) if line.startswith(("detections", "person"))),
        "",
        "| time, s | " + " | ".join(figures.classes) + " |",
        "|---|" + "---|" * len(figures.classes),
    ]
    first = figures.detections[0][0] if figures.detections else 0
    for stamp, counts in figures.detections:
        lines.append(f"| {(stamp - first) * 1e-9:.3f} | " + " | ".join(str(counts[n]) for n in figures.classes) + " |")
    return "\n".join(lines) + "\n"


# --- Pictures --------------------------------------------------------------------------------------------------------


def beside(
    result: Joined,
    detection: Sequence[str] = DETECTION.classes,
    segmentation: Sequence[str] = SEGMENTATION.classes,
) -> UInt8Image:
    """Return the overlay and, to the right of it at the same height, the thermal image as the sensor saw it.

    detection, segmentation: class names.
    """
    overlay = draw(result.perception, detection, segmentation)
    height = overlay.shape[0]
    if result.thermal is None:
        thermal = np.zeros((120, 160), np.uint8)  # black: there was none
    else:
        thermal = result.thermal
    width = round(thermal.shape[1] * height / thermal.shape[0])
    enlarged = cv2.resize(thermal, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.hstack([overlay, cv2.cvtColor(enlarged, cv2.COLOR_GRAY2RGB)])


def draw_overlays(
    results: Bag, cameras: Bag, out: Path, detection: ClassList, segmentation: Sequence[str]
) -> list[tuple[Path, str]]:
    """Draw the recorded results on the images of the camera bag: a video, where OpenCV can write one, and pictures.

    Returns the files with what they are.
    """
    for old in out.glob("overlay*"):
        old.unlink()
    stamps = [
        (result.stamp_ns, 0 if result.detections is None else len(result.detections.detections))
        for result in recorded_results(results)
    ]
    chosen = choose(stamps, PICTURES)
    video: cv2.VideoWriter | None = None
    video_path = out / "overlay.mp4"
    seconds = (stamps[-1][0] - stamps[0][0]) * 1e-9 if len(stamps) > 1 else 0.0
    rate = (len(stamps) - 1) / seconds if seconds > 0 else 10.0
    files: list[tuple[Path, str]] = []
    try:
        for number, result in enumerate(joined(recorded_results(results), cameras, classes=detection)):
            picture = cv2.cvtColor(beside(result, detection.classes, segmentation), cv2.COLOR_RGB2BGR)
            if number == 0:
                size = (picture.shape[1], picture.shape[0])
                video = cv2.VideoWriter(str(video_path), MP4V, rate, size)
            if video is not None and video.isOpened():
                video.write(picture)
            if result.perception.stamp_ns in chosen:
                path = out / f"overlay_{len(files) + 1}.png"
                if not cv2.imwrite(str(path), picture):
                    raise RunError(f"cannot write {path}")
                files.append((path, "result, with the thermal image beside it"))
    finally:
        written = video is not None and video.isOpened()
        if video is not None:
            video.release()
    if written:
        files.insert(0, (video_path, "all results as a video"))
    return files


def choose(stamps: Sequence[tuple[int, int]], number: int) -> set[int]:
    """Return the stamps of some results spread over the bag: of those with detections, if there are enough.

    stamps: of each result, with its number of detections.
    """
    with_objects = [stamp for stamp, objects in stamps if objects]
    pool = with_objects if len(with_objects) >= number else [stamp for stamp, _ in stamps]
    if not pool:
        return set()
    return {pool[round(index)] for index in np.linspace(0, len(pool) - 1, number)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 if anything failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="md_demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--source", choices=("auto", "clip", "scenes"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for what the demo leaves")
    parser.add_argument("--frames", type=int, help="RGB images at most (scenes: 300 if not given)")
    parser.add_argument("--rate", type=float, default=1.0, help="seconds of the bag in one second")
    parser.add_argument("--seed", type=int, default=1, help="of the scene world")
    parser.add_argument("--student", type=student_path, help="student file; the demo student if not given")
    parser.add_argument("--least-recall", type=float, default=0.5, help="of persons in scenes; below it the demo fails")
    given = parser.parse_args(arguments)
    return run_command("demo", lambda: run(DemoOptions(**vars(given))))


if __name__ == "__main__":
    sys.exit(main())
