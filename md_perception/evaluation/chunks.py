"""Evaluating a bag, or a chunk of it: one sequential pass that pairs and decodes, and inference spread over threads.

A chunk can be evaluated by itself, in any process, with the same result to the byte: it replays the bag from its
beginning, so that gain control, health and modes are what they would have been, and leaves out only the inference of
the frames before it.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from md_perception.bags.read import Bag
from md_perception.bags.write import BagError
from md_perception.evaluation.job import EvaluationError, Job, file_digest
from md_perception.evaluation.records import Answer, DriveRecord, FrameRecord, FrameTruth, Light
from md_perception.evaluation.results import Ended, ResultMessages
from md_perception.evaluation.simulate import SimulatedTopics, Simulation
from md_perception.evaluation.sources import DriveTopics, Replay, ReplayedFrame, Timed, find_topics
from md_perception.evaluation.truth import Truth, open_truth
from md_perception.inference.session import SessionSettings, Student
from md_perception.labels import DETECTION, SEGMENTATION, ClassList
from md_perception.metrics.latency import machine
from md_perception.metrics.segmentation import Confusion
from md_perception.pipeline import Pipeline, PipelineSettings, RejectedFrame, Work, mode_of, served_as
from md_perception.results import Camera, Detections, Mode, Perception, Segmentation, UInt8Image
from md_perception.sensing.compression import inspect
from md_perception.sensing.images import (
    ImageError,
    Message,
    image_fields,
    is_compressed,
    to_rgb,
)

logger = logging.getLogger(__name__)

SCORE_FLOOR = 0.02
"""Least score of the detections that are kept for the curves. A student's file leaves out those below its own."""

NIGHT_LUMINANCE = 55.0
"""Images with a lower mean luma, 0..255, are night, where nobody says so: right for 254 of the 259 MSRS images and for
all nine KAIST pairs."""

_LUMA = np.array([0.299, 0.587, 0.114])

UNPAIRED = "unpaired: "
"""How the reason begins why there is no answer, where no student got the frame."""

_WHY = {
    "no_partner": f"{UNPAIRED}the nearest thermal image is farther than the tolerance",
    "waited": f"{UNPAIRED}no thermal image came in time",
    "time_jump": f"{UNPAIRED}the clock went back while it waited",
    "late": f"{UNPAIRED}it came after a newer image had gone on",
    "overflow": f"{UNPAIRED}too many images waited",
    "stale": f"{UNPAIRED}there was a partner, but no mode that takes it",
    "damaged": "the message is damaged and holds no image",
}
"""Why no student gets a frame, by ReplayedFrame.alone."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluated frame. times_ms: of its stages, by name. results: its messages for the result bag, packed."""

    record: FrameRecord
    times_ms: dict[str, float]
    results: bytes = b""


@dataclass(frozen=True)
class Reread:
    """A frame as pictures of it are drawn.

    rgb: uint8 (H, W, 3), the image that the result belongs to (in THERMAL_ONLY the thermal image in grey). thermal:
    uint8 (h, w), its partner as the first student had it, None without one. masks: of the students and the
    teacher, in ids of labels.SEGMENTATION, by name. truth_mask: uint8 (H, W) or None.
    """

    rgb: UInt8Image
    thermal: UInt8Image | None
    masks: dict[str, Segmentation]
    truth_mask: UInt8Image | None


@dataclass(frozen=True)
class Chunk:
    """Evaluated frames of a bag, in order. drive, rest: of the chunk that ends with the bag: what is known of the bag,
    and its messages for the result bag after the last frame; None, empty of others."""

    frames: list[Evaluated]
    drive: DriveRecord | None
    rest: bytes = b""


def evaluate_chunk(job: Job, bag: Path, name: str, first: int = 0, last: int | None = None, workers: int = 1) -> Chunk:
    """Evaluate the frames first..last-1 (None: to the end) of a bag, in the order of its records, from 0.

    name: of the bag, for the records. Chunks that follow each other, put together, are the bytes of one process. The
    sessions are kept in this process for the next chunk. Raises EvaluationError, StudentError, ManifestError, BagError,
    TruthError.
    """
    one_pass = Evaluator(job).evaluate(bag, name, first, last, workers)
    frames = list(one_pass)
    return Chunk(frames, one_pass.drive, one_pass.rest)


@lru_cache(maxsize=8)
def _student(path: Path, digest: str, sessions: SessionSettings) -> Student:
    student = Student.load(path, sessions)
    if not student.manifest.seen_real_images:
        logger.warning("student %s has never seen a real image", student.manifest.name)
    return student


class Evaluator:
    """The students of a job, loaded (the last few files once in a process). Use it for many bags."""

    def __init__(self, job: Job, load: Callable[[Path, str, SessionSettings], Student] | None = None) -> None:
        """Load the students. load: in place of Student.load, of a file and its SHA-256.

        Raises StudentError, ManifestError, EvaluationError.
        """
        self.job = job
        self._load_file = load or _student
        try:
            self._sessions = SessionSettings(providers=job.providers, threads=job.threads)
        except ValueError as error:
            raise EvaluationError(str(error)) from None
        companions = [
            self._companion(path, mode, option)
            for path, mode, option in (
                (job.visible_student, Mode.VISIBLE_ONLY, "--visible-student"),
                (job.thermal_student, Mode.THERMAL_ONLY, "--thermal-student"),
            )
            if path is not None
        ]
        self.students = [_Candidate(name, self._load(path), companions) for name, path in job.students.items()]
        self.teacher = None if job.teacher is None else _Candidate(job.teacher[0], self._load(job.teacher[1]), [])
        if self.teacher is not None and self.teacher.mode is Mode.THERMAL_ONLY:
            raise EvaluationError(f"teacher {self.teacher.name} takes thermal alone: its answers are not in RGB pixels")
        first = self.students[0]
        for other in self.students[1:]:
            if other.mode is not first.mode and (first.mode, other.mode) != (Mode.FUSED, Mode.VISIBLE_ONLY):
                raise EvaluationError(
                    f"{first.name} is a student for {first.mode.name} and decides the modes of the drive, {other.name} "
                    f"is one for {other.mode.name}: name a student of both cameras first, and evaluate students of "
                    "thermal alone by themselves"
                )

    @property
    def everybody(self) -> "list[_Candidate]":
        """The students, and the teacher last."""
        return [*self.students, *([] if self.teacher is None else [self.teacher])]

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Return what each student and the teacher says of itself, and what it runs on, by name."""
        return {
            one.name: {
                **one.main.manifest.summary(),
                "run_id": one.main.manifest.run_id,
                "training_data": one.main.manifest.training_data,
                "seen_real_images": one.main.manifest.seen_real_images,
                "provider": one.main.provider,
            }
            for one in self.everybody
        }

    def evaluate(self, bag: Path, name: str, first: int = 0, last: int | None = None, workers: int = 1) -> "BagPass":
        """Return a pass over a bag, see evaluate_chunk."""
        return BagPass(self, bag, name, first, last, workers)

    def _load(self, path: Path) -> Student:
        return self._load_file(path, file_digest(path), self._sessions)

    def _companion(self, path: Path, mode: Mode, option: str) -> Student:
        student = self._load(path)
        if mode_of(student) is not mode:
            raise EvaluationError(f"{option} {path} is a student for {mode_of(student).name}, not for {mode.name}")
        return student


class _Candidate:
    """A student that is evaluated, with those that take over for it. mode: that of the student itself."""

    def __init__(self, name: str, main: Student, companions: list[Student]) -> None:
        self.name, self.main, self.mode = name, main, mode_of(main)
        self.students = {mode_of(other): other for other in companions} | {self.mode: main}
        self._maps = {mode: _ClassMaps.of(student) for mode, student in self.students.items()}

    def pipeline(self, settings: PipelineSettings) -> Pipeline:
        """Return a pipeline for one bag: gain control and registration begin anew. Raises EvaluationError."""
        try:
            return Pipeline(self.students, settings)
        except ValueError as error:
            raise EvaluationError(str(error)) from None

    def maps(self, mode: Mode) -> "_ClassMaps":
        """Return the class ids of the student of a mode."""
        return self._maps[served_as(mode)]


@dataclass(frozen=True)
class _ClassMaps:
    """From a student's class ids to those of labels. detection: int64 (classes,). segmentation: uint8 (256,)."""

    detection: np.ndarray
    segmentation: np.ndarray

    @classmethod
    def of(cls, student: Student) -> "_ClassMaps":
        """Raise EvaluationError for a class that is not in labels."""
        manifest = student.manifest
        segmentation = np.zeros(256, np.uint8)
        ids = _ids(student, manifest.segmentation_classes, SEGMENTATION)
        segmentation[: len(ids)] = ids
        return cls(_ids(student, manifest.detection_classes, DETECTION), segmentation)


def _ids(student: Student, names: tuple[str, ...], classes: ClassList) -> np.ndarray:
    unknown = [name for name in names if name not in classes.classes]
    if unknown:
        raise EvaluationError(
            f"student {student.path} knows {', '.join(unknown)}, which {classes.name} does not have: evaluate students "
            f"of the classes {', '.join(classes.classes)}"
        )
    return np.array([classes.id_of(name) for name in names], np.int64)


@dataclass(frozen=True)
class _Prepared:
    """A frame on its way from the sequential pass to the threads.

    image: uint8 (H, W, 3), RGB, None where there is none. record: without answers. works: of each student and the
    teacher, by name: what to infer, or why there is nothing. decode_ms: what decoding took for all of them together.
    """

    frame: ReplayedFrame
    image: UInt8Image | None
    record: FrameRecord
    truth: FrameTruth | None
    works: dict[str, Work | str]
    decode_ms: float
    ended: Ended


class BagPass:
    """One pass over a bag, see run.Frames: iterate over it once. Then `drive` and `rest` are as in Chunk."""

    def __init__(self, evaluator: Evaluator, bag: Path, name: str, first: int, last: int | None, workers: int) -> None:
        self._evaluator, self._job = evaluator, evaluator.job
        self._rgb_size = (0, 0)  # of the last image that could be decoded
        self._path, self._name = bag, name
        self._first, self._last, self._workers = first, last, max(1, workers)
        self._pipelines: dict[str, Pipeline] = {}
        self._messages: ResultMessages | None = None
        self._truth: Truth | None = None
        self._light: Light = "day"
        self._told: Light | None = None
        self._ended = Ended()
        self.drive: DriveRecord | None = None
        self.rest = b""
        self.machine = machine()
        self.topics: DriveTopics | None = None

    def __iter__(self) -> Iterator[Evaluated]:
        with ExitStack() as stack:
            bag = stack.enter_context(Bag(self._path))
            replay = self._open(bag, stack)
            pool = ThreadPoolExecutor(self._workers, thread_name_prefix="evaluation")
            stack.callback(pool.shutdown, cancel_futures=True)
            pending: deque[Future[Evaluated]] = deque()
            for position, frame in enumerate(replay.frames()):
                if self._last is not None and position >= self._last:
                    break
                prepared = self._prepare(replay, frame, wanted=position >= self._first)
                if prepared is None:
                    continue
                pending.append(pool.submit(self._answer, prepared))
                # Some ahead, so that no worker waits; not more, so that the memory stays flat.
                while len(pending) > 2 * self._workers or (pending and pending[0].done()):
                    yield pending.popleft().result()
            else:
                self.drive = replay.drive
                if self._messages is not None:
                    self.rest = self._messages.idle(replay.rest, self._ended)
            while pending:
                yield pending.popleft().result()

    def reread(self, positions: Collection[int]) -> Iterator[tuple[int, Reread]]:
        """Yield frames again, with what was seen in them, in order; without those that cannot be decoded.

        positions: among the records of the bag, from 0. Instead of iterating over the pass.
        """
        with ExitStack() as stack:
            bag = stack.enter_context(Bag(self._path))
            last = max(positions, default=-1)
            replay = self._open(bag, stack)
            for position, frame in enumerate(replay.frames()):
                prepared = self._prepare(replay, frame, wanted=position in positions)
                if prepared is not None and (found := self._reread(prepared)) is not None:
                    yield position, found
                if position >= last:
                    break

    def _reread(self, prepared: _Prepared) -> Reread | None:
        masks, image = {}, prepared.image
        for one in self._evaluator.everybody:
            perception = self._infer(one, prepared.works[one.name])
            if isinstance(perception, str):
                continue
            image = perception.rgb if image is None else image
            segmentation = perception.output.segmentation
            if segmentation is not None:
                mask: UInt8Image = one.maps(perception.mode).segmentation[segmentation.mask]
                masks[one.name] = Segmentation(mask, segmentation.confidence)
        if image is None:
            return None
        work = prepared.works[self._evaluator.students[0].name]
        partner = work.thermal if isinstance(work, Work) and work.rgb is not None else None
        truth_mask = None if prepared.truth is None else prepared.truth.mask
        return Reread(image, None if partner is None else partner.image, masks, truth_mask)

    # --- Before the first frame ---------------------------------------------------------------------------------------

    def _open(self, bag: Bag, stack: ExitStack) -> Replay:
        job, evaluator = self._job, self._evaluator
        modes = list(evaluator.students[0].students)
        used: list[Camera] = []
        if any(mode is not Mode.THERMAL_ONLY for mode in modes) or evaluator.teacher is not None:
            used.append("rgb")
        if any(one.main.uses_thermal for one in evaluator.everybody):
            used.append("thermal")
        # A drive without one camera is judged as it would have been driven, where there is a student for that.
        spared = {"rgb": Mode.THERMAL_ONLY, "thermal": Mode.VISIBLE_ONLY}
        needed = [camera for camera in used if spared[camera] not in modes or evaluator.teacher is not None]
        topics = find_topics(bag, needed, job.rgb_topic, job.thermal_topic)
        if topics.rgb is None and topics.thermal is None:
            topics = find_topics(bag, used, job.rgb_topic, job.thermal_topic)
        for camera in used:
            if (topics.rgb if camera == "rgb" else topics.thermal) is None:
                logger.warning(
                    "%s has no %s images where they were looked for: it is evaluated as it would be driven without "
                    "that camera; --%s-topic names another topic",
                    bag.path,
                    camera,
                    camera,
                )
        self.topics = topics
        self._rgb_size = (0, 0) if topics.rgb is None else _first_decoded_size(bag, topics.rgb)
        original = replace(
            job.parameters.pipeline_settings(topics.rgb or "", topics.thermal or ""), score_threshold=SCORE_FLOOR
        )
        settings, change = self._simulated(bag, original)
        self._pipelines = {one.name: one.pipeline(settings) for one in evaluator.students}
        if evaluator.teacher is not None:
            self._pipelines[evaluator.teacher.name] = evaluator.teacher.pipeline(original)
        if job.truth is not None:
            self._truth = open_truth(bag, job.truth_spec(topics.rgb))
            if self._truth is not None:
                stack.enter_context(self._truth)
        self._told = _told_light(job.light, bag)
        if job.with_results:
            first = evaluator.students[0]
            self._messages = ResultMessages(first.students, job.parameters.score_threshold)
        pipeline = self._pipelines[evaluator.students[0].name]
        return Replay(
            bag,
            topics,
            job.parameters,
            modes,
            name=self._name,
            change=change,
            note_info=self._note_info(evaluator.students),
            note_original_info=self._note_info([] if evaluator.teacher is None else [evaluator.teacher]),
            with_reference=evaluator.teacher is not None,
            look=pipeline.look,
            registers=pipeline.registration.registers,
        )

    def _simulated(
        self, bag: Bag, settings: PipelineSettings
    ) -> tuple[PipelineSettings, Callable[[Iterator[Timed]], Iterator[Timed]] | None]:
        """Return the settings for the simulated cameras, and what is done to the messages."""
        simulation: Simulation = self._job.simulation
        topics = self.topics
        if not simulation:
            return settings, None
        assert topics is not None
        if topics.rgb is not None and topics.thermal is not None:
            sizes = [_first_size(bag, topic) for topic in (topics.rgb, topics.thermal)]
            if sizes[0] is not None and sizes[1] is not None:
                registration = simulation.registration(settings.registration, sizes[0], sizes[1])
                settings = replace(settings, registration=registration)
        simulated = SimulatedTopics(topics.rgb or "", topics.thermal or "", topics.infos.get("thermal", ""))

        def change(messages: Iterator[Timed]) -> Iterator[Timed]:
            return simulation.apply(messages, bag.start_ns, simulated, settings.thermal.encoding)

        return settings, change

    def _note_info(self, candidates: list[_Candidate]) -> Callable[[Camera, Any, str], None]:
        pipelines = [self._pipelines[one.name] for one in candidates]
        interested = [one.registration for one in pipelines if one.registration.uses_camera_info]

        def note(camera: Camera, message: Any, topic: str) -> None:
            for registration in interested:
                registration.note_camera_info(camera, message, topic)

        return note

    # --- In order -----------------------------------------------------------------------------------------------------

    def _prepare(self, replay: Replay, frame: ReplayedFrame, wanted: bool) -> _Prepared | None:
        """Decode a frame for all who are asked; None where the chunk begins later."""
        start = time.perf_counter()
        rgb, image = _decoded(frame.rgb.message if frame.rgb is not None else None, self.topics)
        shared_ms = 1e3 * (time.perf_counter() - start)
        luminance = math.nan if image is None else float(np.dot(cv2.mean(image)[:3], _LUMA))
        works = {one.name: self._work(one, frame, rgb, self._pipelines[one.name]) for one in self._evaluator.students}
        if self._evaluator.teacher is not None:
            works[self._evaluator.teacher.name] = self._teacher_work(self._evaluator.teacher, frame)
        first = works[self._evaluator.students[0].name]
        if frame.served:
            end = ("thermal_" if frame.rgb is None else "") + ("processed" if isinstance(first, Work) else "rejected")
            self._ended = replace(self._ended, **{end: getattr(self._ended, end) + 1})
            replay.ended(rejected=not isinstance(first, Work))
        light = self._light_of(frame, luminance)
        if not wanted:
            return None
        subject = frame.rgb or frame.thermal
        if image is not None:
            self._rgb_size = (image.shape[1], image.shape[0])
        # A broken header says anything, and the objects of its frame are missed.
        known = frame.rgb is not None and self._rgb_size != (0, 0)
        size = self._rgb_size if known else (0, 0) if subject is None else stated_size(subject.message)
        stamp = frame.log_ns if subject is None else subject.stamp_ns
        truth = None
        if self._truth is not None and frame.rgb is not None and min(size) > 0:
            truth = self._truth.truth_of(stamp, frame.index, size)
        record = FrameRecord(
            bag=self._name,
            index=frame.index,
            stamp_ns=stamp,
            frame_id="" if subject is None else subject.message.header.frame_id,
            size=size,
            mode=frame.mode,
            pair_offset_ns=first.pair_offset_ns if isinstance(first, Work) else None,
            luminance=luminance,
            light=light,
            unpaired=frame.alone,
            truth=None if truth is None else replace(truth, mask=None),
            answers={},
        )
        return _Prepared(frame, image, record, truth, works, shared_ms, self._ended)

    def _work(self, one: _Candidate, frame: ReplayedFrame, rgb: Message | None, pipeline: Pipeline) -> Work | str:
        """Return what a student has to do, or why it has nothing to do."""
        thermal = None if frame.thermal is None else frame.thermal.message
        mode = frame.mode
        if one.mode is not self._evaluator.students[0].mode:  # RGB alone, beside students of both cameras
            thermal, mode = None, Mode.VISIBLE_ONLY
            if rgb is None:
                return _WHY["damaged"] if frame.alone == "damaged" else f"there is no RGB image in {frame.mode.name}"
        elif not frame.served:
            return _WHY[frame.alone]
        try:
            return pipeline.prepare(rgb, thermal, frame.waited_ns / 1e6, mode)
        except RejectedFrame as error:
            return str(error)

    def _teacher_work(self, teacher: _Candidate, frame: ReplayedFrame) -> Work | str:
        rgb, thermal = frame.reference or (None, None)
        if not teacher.main.uses_thermal:
            thermal = None
        if rgb is None or (thermal is None and teacher.main.uses_thermal):
            return f"{UNPAIRED}the bag has no thermal image for this RGB image"
        try:
            return self._pipelines[teacher.name].prepare(rgb, thermal)
        except RejectedFrame as error:
            return str(error)

    def _light_of(self, frame: ReplayedFrame, luminance: float) -> Light:
        """Return the light of a frame; without an RGB image it is that of the last one."""
        said = self._told or _as_light(frame.light)
        if said is None and self._truth is not None and frame.rgb is not None:
            said = self._truth.light_of(frame.rgb.stamp_ns, frame.index)
        if said is None and not math.isnan(luminance):
            said = "night" if luminance < NIGHT_LUMINANCE else "day"
        self._light = said or self._light
        return self._light

    # --- In the threads -----------------------------------------------------------------------------------------------

    def _answer(self, prepared: _Prepared) -> Evaluated:
        perceptions = {one.name: self._infer(one, prepared.works[one.name]) for one in self._evaluator.everybody}
        teacher_mask = self._teacher_mask(perceptions)
        times: dict[str, float] = {}
        start = time.perf_counter()
        answers = {}
        for one in self._evaluator.everybody:
            perception = perceptions[one.name]
            if isinstance(perception, Perception):
                decode_ms = prepared.decode_ms + perception.times.decode_ms
                times |= {
                    f"decode {one.name}": decode_ms,
                    f"pair_wait {one.name}": perception.times.pair_wait_ms,
                    f"inference {one.name}": perception.times.inference_ms,
                    f"total {one.name}": decode_ms + perception.times.inference_ms,
                }
            compared_with = None if one is self._evaluator.teacher else teacher_mask
            answers[one.name] = self._answer_of(one, perception, prepared.truth, compared_with)
        times["score"] = 1e3 * (time.perf_counter() - start)
        first = self._evaluator.students[0].name
        results = (
            b"" if self._messages is None else self._messages.of(prepared.frame, perceptions[first], prepared.ended)
        )
        return Evaluated(replace(prepared.record, answers=answers), times, results)

    def _infer(self, one: _Candidate, work: Work | str) -> Perception | str:
        if isinstance(work, str):
            return work
        try:
            return self._pipelines[one.name].infer(work)
        except RejectedFrame as error:
            return str(error)

    def _teacher_mask(self, perceptions: dict[str, Perception | str]) -> UInt8Image | None:
        teacher = self._evaluator.teacher
        if teacher is None:
            return None
        perception = perceptions[teacher.name]
        if isinstance(perception, str) or perception.output.segmentation is None:
            return None
        mask: UInt8Image = teacher.maps(perception.mode).segmentation[perception.output.segmentation.mask]
        return mask

    def _answer_of(
        self, one: _Candidate, perception: Perception | str, truth: FrameTruth | None, teacher_mask: UInt8Image | None
    ) -> Answer:
        if isinstance(perception, str):
            return Answer(rejected=perception)
        maps, output = one.maps(perception.mode), perception.output
        detections = output.detections
        if detections is not None:
            detections = Detections(detections.boxes, detections.scores, maps.detection[detections.labels])
        answer = Answer(detections=detections)
        if output.segmentation is None or perception.mode is Mode.THERMAL_ONLY:  # whose mask lies in other pixels
            return answer
        mask: UInt8Image = maps.segmentation[output.segmentation.mask]
        if truth is not None and truth.mask is not None:
            answer.confusions["truth"] = _confusion(truth.mask, mask, self._path)
        if teacher_mask is not None:
            answer.confusions["teacher"] = _confusion(teacher_mask, mask, self._path)
        return answer


def _confusion(reference: UInt8Image, mask: UInt8Image, bag: Path) -> np.ndarray:
    confusion = Confusion(SEGMENTATION)
    try:
        confusion.add(reference, mask)
    except ValueError as error:
        raise EvaluationError(f"{bag}: a mask cannot be compared: {error}") from None
    return confusion.counts


def _decoded(message: Message | None, topics: DriveTopics | None) -> tuple[Message | None, UInt8Image | None]:
    """Return an image message that needs no decoding any more, and its image, uint8 (H, W, 3) RGB.

    The message as it is, and None, where it cannot be decoded: the pipeline will say why.
    """
    if message is None:
        return None, None
    try:
        image = to_rgb(message, (topics.rgb if topics else None) or "rgb")
    except ImageError:
        return message, None
    if not is_compressed(message) and message.encoding == "rgb8":
        return message, image
    return SimpleNamespace(header=message.header, **image_fields(image, "rgb8")), image


def stated_size(message: Message) -> tuple[int, int]:
    """Return (width, height) px as the message says, (0, 0) where it says nothing."""
    if not is_compressed(message):
        return int(message.width), int(message.height)
    file = inspect(np.frombuffer(message.data, np.uint8).tobytes())
    return (0, 0) if file is None else (file.width, file.height)


def _first_size(bag: Bag, topic: str) -> tuple[int, int] | None:
    """Return the size of the first image on a topic that says one."""
    for item in bag.messages([topic]):
        try:
            size = stated_size(item.message)
        except BagError:
            continue
        if min(size) > 0:
            return size
    return None


def _first_decoded_size(bag: Bag, topic: str) -> tuple[int, int]:
    """Return the size of the first RGB image that can be decoded, (0, 0) without one."""
    for item in bag.messages([topic]):
        try:
            height, width, _ = to_rgb(item.message, topic).shape
        except (BagError, ImageError):
            continue
        return width, height
    return 0, 0


def _told_light(choice: str, bag: Bag) -> Light | None:
    return _as_light(bag.custom_data.get("light", "") if choice == "auto" else choice)


def _as_light(text: str) -> Light | None:
    return "day" if text == "day" else "night" if text == "night" else None
