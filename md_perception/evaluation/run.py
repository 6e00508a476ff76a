"""Bags in, a folder with what was found out: the evaluation as a whole, for the command line and for other programs."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnxruntime

import md_perception
from md_perception.bags.make import Progress
from md_perception.bags.read import Bag
from md_perception.bags.write import BagError
from md_perception.evaluation.chunks import UNPAIRED, Evaluated, Evaluator, stated_size
from md_perception.evaluation.job import EvaluationError, Job, bag_digest
from md_perception.evaluation.pictures import Picture
from md_perception.evaluation.records import DriveRecord, FrameRecord
from md_perception.evaluation.results import write_result_bag
from md_perception.evaluation.schema import Report, ScoreSettings, TruthReport
from md_perception.evaluation.scores import report_of, truth_report
from md_perception.evaluation.sources import find_topics
from md_perception.evaluation.store import BagStore, Store
from md_perception.evaluation.timing import Timing
from md_perception.evaluation.truth import Truth, TruthMatch, open_truth
from md_perception.results import Mode
from md_perception.sensing.images import stamp_ns

logger = logging.getLogger(__name__)


class Frames(Protocol):
    """Evaluated frames of a bag; iterate over them once. Then drive and rest are as in chunks.Chunk.

    machine: where the frame was evaluated that came last, as metrics.latency.machine names it.
    """

    drive: DriveRecord | None
    rest: bytes
    machine: str

    def __iter__(self) -> Iterator[Evaluated]: ...


@dataclass(frozen=True)
class Task:
    """What is left to do of a bag: its frames from the position `first` on."""

    bag: Path
    name: str
    first: int


Spread = Callable[[Job, Sequence[Task]], Iterator[Frames]]
"""Evaluates tasks wherever it likes and yields the frames of each, task by task, in order."""


def here(workers: int = 1) -> Spread:
    """Return what evaluates tasks in this process, with so many threads that infer."""

    def spread(job: Job, tasks: Sequence[Task]) -> Iterator[Frames]:
        evaluator = Evaluator(job)
        for task in tasks:
            yield evaluator.evaluate(task.bag, task.name, task.first, None, workers)

    return spread


@dataclass(frozen=True)
class Ends:
    """What became of the images of a bag, as the node counts them; nothing is dropped in an evaluation.

    RGB images that arrived = processed + unpaired + rejected; thermal: images that were processed, or rejected, by
    themselves (THERMAL_ONLY).
    """

    processed: int = 0
    unpaired: int = 0
    rejected: int = 0
    thermal_processed: int = 0
    thermal_rejected: int = 0

    @classmethod
    def of(cls, records: Iterable[FrameRecord], student: str) -> "Ends":
        """Count the records of a bag."""
        counts: Counter[str] = Counter()
        for record in records:
            why = record.answers[student].rejected
            end = "processed" if not why else "unpaired" if why.startswith(UNPAIRED) else "rejected"
            counts[f"thermal_{end}" if record.is_thermal else end] += 1
        return cls(**counts)

    def text(self, rgb_images: int) -> str:
        """Return a line for people. rgb_images: in the bag, of which a simulation may have dropped some."""
        arrived = self.processed + self.unpaired + self.rejected
        dropped = f" ({rgb_images - arrived} dropped by the simulation)" if arrived < rgb_images else ""
        thermal = ""
        if self.thermal_processed or self.thermal_rejected:
            thermal = (
                f"; {self.thermal_processed} thermal images processed by themselves, {self.thermal_rejected} rejected"
            )
        return (
            f"{arrived} RGB images{dropped} = {self.processed} processed + {self.unpaired} unpaired + {self.rejected} "
            f"rejected{thermal}"
        )


@dataclass(frozen=True)
class Evaluation:
    """What was found. records, drives: by bag. result_bags: that were written, by bag."""

    folder: Path
    job: Job
    bags: Mapping[str, Path]
    report: Report
    timing: Timing
    records: Mapping[str, Sequence[FrameRecord]]
    drives: Mapping[str, DriveRecord]
    result_bags: Mapping[str, Path]

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Return all figures that can be required, by student."""
        return {name: self.report.figures(name) | self.timing.figures(name) for name in self.job.students}

    def pictures(self, bag: str, positions: Sequence[int]) -> dict[int, Picture]:
        """Read frames of a bag again, by their positions among its records, with the masks of all students."""
        reread = Evaluator(self.job).evaluate(self.bags[bag], bag).reread(set(positions))
        return {at: Picture(one.rgb, one.thermal, one.masks, one.truth_mask) for at, one in reread}

    def ends(self, bag: str) -> "Ends":
        """Return what became of the images of a bag, for the first student."""
        return Ends.of(self.records[bag], next(iter(self.job.students)))


def evaluate(
    job: Job,
    bags: Mapping[str, Path],
    folder: Path,
    *,
    workers: int = 1,
    spread: Spread | None = None,
    settings: ScoreSettings | None = None,
    baseline: str | None = None,
    allow_unmatched_truth: bool = False,
    copy_inputs: bool = False,
    show_progress: bool = True,
) -> Evaluation:
    """Evaluate bags, by name, into a folder; what is there already of the same evaluation is not done again.

    workers: threads that infer; the report does not depend on them. spread: instead of threads in this process.
    settings, baseline: of the report. allow_unmatched_truth: entries of the truth may belong to no frame.
    copy_inputs: into the result bags. Writes report.json, timing.json and, with job.with_results, results/BAG.
    Raises EvaluationError, StudentError, ManifestError, BagError, DataError, SimulationError. After KeyboardInterrupt
    the same call goes on where it was, and ends with the same report.
    """
    # Both first: what is wrong with a file is said before the folder is made.
    configuration = {
        **job.configuration(),
        "bags": {name: bag_digest(path) for name, path in bags.items()},
        "copied_inputs": copy_inputs and job.with_results,
    }
    evaluator = Evaluator(job)
    truth = _truth(evaluator, bags.values(), allow_unmatched_truth)
    with Store(folder, configuration) as store:
        stores = {name: store.bag(name, job.with_results) for name in bags}
        _evaluate_bags(job, bags, stores, spread or here(workers), show_progress, store.note_machine)
        if not any(one.records for one in stores.values()):
            raise EvaluationError(
                f"no frame is left to evaluate in {', '.join(map(str, bags.values()))}: what they hold of the cameras "
                "is damaged, or the simulation drops all of it"
            )
        drives = {name: one.drive for name, one in stores.items() if one.drive is not None}
        report = report_of(
            [record for one in stores.values() for record in one.records],
            drives=list(drives.values()),
            truth=truth,
            teacher=None if job.teacher is None else job.teacher[0],
            baseline=baseline,
            settings=settings or ScoreSettings(least_score=job.parameters.score_threshold),
            provenance=_provenance(configuration, evaluator),
        )
        timing = Timing.of((times for one in stores.values() for times in one.times_ms), store.machines(), workers)
        store.write("report.json", report.to_json())
        store.write("timing.json", json.dumps(timing.content(), indent=1) + "\n")
        result_bags = {}
        if job.with_results:
            for name, path in bags.items():
                result_bags[name] = _finish_result_bag(evaluator, folder, name, path, stores[name], copy_inputs)
        records = {name: one.records for name, one in stores.items()}
    return Evaluation(folder, job, bags, report, timing, records, drives, result_bags)


def _evaluate_bags(
    job: Job,
    bags: Mapping[str, Path],
    stores: Mapping[str, BagStore],
    spread: Spread,
    show_progress: bool,
    note_machine: Callable[[str], None],
) -> None:
    tasks = [Task(path, name, len(stores[name].records)) for name, path in bags.items() if stores[name].drive is None]
    # Each bag is opened only when it is its turn.
    for task, frames in zip(tasks, spread(job, tasks), strict=True):
        with Progress(task.name, frames_about(job, task.bag), show_progress, done=task.first) as progress:
            for evaluated in frames:
                note_machine(frames.machine)
                stores[task.name].append(evaluated)
                progress.advance()
        if frames.drive is None:
            raise EvaluationError(f"{task.bag} was not evaluated to its end")
        stores[task.name].finish(frames.drive, frames.rest)
        if frames.drive.damage:
            logger.warning("%s is damaged and was read up to there: %s", task.bag, frames.drive.damage)


def frames_about(job: Job, path: Path) -> int | None:
    """Return how many RGB images a bag has, which is about as many as there will be frames."""
    with Bag(path) as bag:
        topics = find_topics(bag, (), job.rgb_topic, job.thermal_topic)
        return None if topics.rgb is None else bag.topics[topics.rgb].count


def _finish_result_bag(
    evaluator: Evaluator, folder: Path, name: str, path: Path, store: BagStore, copy_inputs: bool
) -> Path:
    """Write the result bag of a bag, unless it is there."""
    target, job, first = folder / "results" / name, evaluator.job, evaluator.students[0]
    if store.has_spool:
        write_result_bag(
            target,
            path,
            store.spooled(),
            first.main,
            job.parameters.score_threshold,
            name=first.name,
            simulation=str(job.simulation),
            copy_inputs=copy_inputs,
        )
        store.remove_spool()
    elif not target.exists():
        raise EvaluationError(f"{target} was removed: remove {folder / 'records'} too, and evaluate again")
    return target


def _truth(evaluator: Evaluator, bags: Iterable[Path], allow_unmatched: bool) -> TruthReport | None:
    """Return what is to be said of the truth of all bags. Raises TruthError, DataError, BagError, EvaluationError."""
    job = evaluator.job
    if set(evaluator.students[0].students) == {Mode.THERMAL_ONLY}:  # whose answers lie in other pixels than the truth
        if job.truth is not None and job.truth.is_asked_for:
            raise EvaluationError(
                "ground truth lies in the pixels of the RGB images, the answers of a student of thermal alone in those "
                "of the thermal images: evaluate it without (--truth none)"
            )
        return None
    found = [one for path in bags if (one := _matched(job, path, allow_unmatched)) is not None]
    if len(found) > 1 and any(truth.by_number for truth, _ in found):
        raise EvaluationError(
            f"ground truth whose entries find their frames by number would be that of all {len(found)} bags: evaluate "
            "each bag with its own, or match by stamps (--truth-match stamp, --truth-index FILE)"
        )
    try:
        return truth_report(found)
    except ValueError as error:
        raise EvaluationError(str(error)) from None


def _matched(job: Job, path: Path, allow_unmatched: bool) -> tuple[Truth, TruthMatch] | None:
    """Look, before hours of inference, at which frames the truth of a bag belongs to. Raises TruthError, BagError."""
    if job.truth is None:
        return None
    with Bag(path) as bag:
        topics = find_topics(bag, (), job.rgb_topic, job.thermal_topic)
        truth = open_truth(bag, job.truth_spec(topics.rgb))
        if truth is None:
            return None
        with truth:
            frames = list(_frames(bag, topics.rgb))
            match = truth.match((stamp, index) for stamp, index, _ in frames)
            match.require(allow_unmatched or bag.damage is not None)
            for size, _ in Counter(size for *_, size in frames).most_common(1):  # others may be broken headers
                truth.read_boxes([(stamp, index) for stamp, index, own in frames if own == size], size)
    return truth, match


def _frames(bag: Bag, topic: str | None) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield stamp, ns, index and stated size of the RGB images."""
    for index, item in enumerate(bag.messages([topic] if topic else [])):
        try:
            yield stamp_ns(item.message), index, stated_size(item.message)
        except BagError:
            continue


def _provenance(configuration: dict[str, Any], evaluator: Evaluator) -> dict[str, Any]:
    return {
        "configuration": configuration,
        "manifests": evaluator.manifests(),
        "versions": {"md_perception": md_perception.__version__, "onnxruntime": onnxruntime.__version__},
    }
