"""The student in service: an exported ONNX file, checked and run by ONNX Runtime."""

import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime

from md_perception.inference.batching import Batcher
from md_perception.inference.manifest import Manifest
from md_perception.inference.providers import DEFAULTS, PROVIDERS, Graph, SessionSettings, make_session, passed_over
from md_perception.inference.runners import Arrays, BoundRunner, PlainRunner
from md_perception.inference.student_file import IMAGE_INDEX, OPERATORS, StudentError, StudentFile
from md_perception.results import Detections, Float32Array, Segmentation, Size, StudentOutput, UInt8Image

__all__ = ["MAX_DETECTIONS", "OPERATORS", "PROVIDERS", "SessionSettings", "Student", "StudentError", "make_session"]

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 10_000
"""Most detections of an image that are taken from a student."""

DEVICES = {PROVIDERS["cuda"]: "cuda", PROVIDERS["tensorrt"]: "cuda"}
"""Providers whose buffers are bound, and what ONNX Runtime calls their device."""

_GREY = 127

Pair = tuple[UInt8Image | None, UInt8Image | None, Float32Array | None]
"""rgb, thermal and rgb_to_thermal, see Student.run."""

Sizes = tuple[Size | None, Size | None]
"""Of the RGB and the thermal image; None: without one."""

AUTO_BATCH = 4
"""Most pairs of a batch where nobody has said: on a GPU. A CPU gains nothing by batches (docs/performance.md)."""

BATCH_PAUSE_S = 60.0
"""After a batch has failed where its pairs alone do not, none is tried for so long."""

MAX_SIZES = 8
"""Most sizes of images, of all its cameras together, that a student keeps a session or buffers for, where it needs
them for each; those that were used last are kept."""


@dataclass
class _Service:
    """A session in use for images of some sizes.

    any_size: or only the ones that it was made for. used: when it was used last, in uses of the student. batches: of
    how many pairs it has been warmed up for.
    """

    session: "onnxruntime.InferenceSession"
    runner: PlainRunner | BoundRunner
    any_size: bool
    used: int = 0
    batches: int = 1


class Student:
    """A checked student file in an ONNX Runtime session.

    `run` may be called from several threads, so that several cameras can share one student: they share its weights, and
    take turns at its threads or its GPU. With a `max_batch` above 1, and a file that takes batches, pairs of equal
    sizes that wait while it is busy are run as one batch; the results are the same. path: the file. manifest: what it
    says of itself. precision: what the graph computes in. unavailable: the providers that were preferred to the one in
    use and do not work here, each with the reason.
    """

    def __init__(self, file: StudentFile, settings: SessionSettings) -> None:
        """Make the session. Raises StudentError."""
        self.path = file.path
        self.manifest: Manifest = file.manifest
        self.precision: str = file.manifest.precision
        self._file, self._settings = file, settings
        self._lock = threading.Lock()
        self._binds = True
        self.sizes: Sizes = file.sizes(None, None)
        """What it is warmed up for if nobody says otherwise: the sizes that it is fixed to, or of its training."""
        first = file.sizes(settings.rgb_size, settings.thermal_size)
        self._service = self._serve(first)
        self._services = {first: self._service}
        self._uses = itertools.count(1)
        self._dropped: set[Sizes] = set()
        self._thrashes = False
        self._batches_from_s = 0.0  # time.monotonic
        self._batcher: Batcher[Arrays, Arrays] = Batcher(self.max_batch)
        self.unavailable = passed_over(settings, self.provider)

    @classmethod
    def load(cls, path: Path | str, settings: SessionSettings = DEFAULTS) -> "Student":
        """Check a student file (see StudentFile.read) and make a session of its bytes; no other file is read.

        The one exception: TensorRT's engine of this very file, in a folder that nobody else can write to. Where there
        is none yet it is built, which takes minutes and is announced in the log.
        Raises StudentError, and ManifestError where the manifest is at fault.
        """
        return cls(StudentFile.read(path), settings)

    @property
    def provider(self) -> str:
        """The execution provider in use now: ONNX Runtime goes on with the next by itself when one fails in a run."""
        return str(self._service.session.get_providers()[0])

    @property
    def max_batch(self) -> int:
        """How many pairs are run at once at most, now: by the provider in use, and 1 for a while after a failure."""
        if not self.manifest.takes_batches or time.monotonic() < self._batches_from_s:
            return 1
        return self._settings.max_batch or (AUTO_BATCH if self.provider in DEVICES else 1)

    @property
    def uses_thermal(self) -> bool:
        """Whether it takes thermal images."""
        return "thermal" in self.manifest.inputs

    @property
    def uses_rgb(self) -> bool:
        """Whether it takes RGB images; a thermal-only student gives its results in thermal pixels."""
        return "rgb" in self.manifest.inputs

    def warm_up(self, rgb_size: Size | None, thermal_size: Size | None = None) -> float:
        """Run once with grey images of these sizes, (width, height) px, so that the first frame does not pay for it.

        Where batches may come, each number of pairs is run once, too; where that fails, there are none for a while.
        The size of a camera that it does not take may be None. Returns the seconds it took. Raises StudentError, also
        where the file was exported for other sizes.
        """
        start = time.perf_counter()
        rgb = thermal = matrix = None
        for camera, needed, size in (("RGB", self.uses_rgb, rgb_size), ("thermal", self.uses_thermal, thermal_size)):
            if needed and size is None:
                raise StudentError(f"student {self.path} takes {camera} images: give their size for the warm-up")
        if self.uses_rgb and rgb_size is not None:
            rgb = np.full((rgb_size[1], rgb_size[0], 3), _GREY, np.uint8)
        if self.uses_thermal and thermal_size is not None:
            thermal = np.full((thermal_size[1], thermal_size[0]), _GREY, np.uint8)
        if rgb_size is not None and thermal_size is not None:
            scale = np.diag([thermal_size[0] / rgb_size[0], thermal_size[1] / rgb_size[1], 1.0])
            matrix = scale.astype(np.float32)
        self.run(rgb, thermal, matrix)
        self._warm_up_batches(self._feeds(rgb, thermal, matrix))
        return time.perf_counter() - start

    def run(
        self,
        rgb: UInt8Image | None,
        thermal: UInt8Image | None = None,
        rgb_to_thermal: Float32Array | None = None,
    ) -> StudentOutput:
        """Run the student on one pair.

        rgb: uint8 (H, W, 3), RGB order; None for a thermal-only student. thermal: uint8 (h, w), the 8-bit image of
        sensing.thermal; None for a visible-only student. rgb_to_thermal: float32 (3, 3) of sensing.registration, for a
        student that takes both.
        Returns boxes in pixels of `rgb` (of `thermal` without it) with at least the export's score threshold, highest
        score first, and masks of its size. Raises StudentError.
        """
        feeds = self._feeds(rgb, thermal, rgb_to_thermal)
        service = self._service_for(_sizes(feeds))
        self._batcher.max_batch = self.max_batch
        if self._batcher.max_batch > 1 and service.any_size:
            # Also of one dtype: what ONNX Runtime refuses must not be made acceptable by its neighbours.
            key = tuple((name, array.shape, array.dtype) for name, array in feeds.items())
            values = self._batcher(feeds, key, lambda batch: self._run_batch(service, batch))
        else:
            values = self._run(service, feeds)
        return self._output(feeds, values)

    def run_batch(self, pairs: Sequence[Pair]) -> list[StudentOutput]:
        """Run the student on several pairs of equal sizes at once, whatever `max_batch`; see `run` for each.

        Raises StudentError, also where it takes one pair at a time.
        """
        feeds = [self._feeds(*pair) for pair in pairs]
        service = self._service_for(_sizes(feeds[0]))
        if not self.manifest.takes_batches or not service.any_size:
            raise StudentError(f"student {self.path} takes one pair at a time on {self.provider}: it cannot be batched")
        try:
            values = self._run_at_once(service, feeds)
        except StudentError:
            raise
        except Exception as error:  # ONNX Runtime has a dozen types without a common base of their own
            raise StudentError(f"student {self.path} failed on {self.provider}: {error}") from error
        return [self._output(one, found) for one, found in zip(feeds, values, strict=True)]

    def _feeds(
        self, rgb: UInt8Image | None, thermal: UInt8Image | None, rgb_to_thermal: Float32Array | None
    ) -> dict[str, np.ndarray]:
        """Return the graph's inputs for a pair. Raises StudentError."""
        feeds: dict[str, np.ndarray] = {}
        if self.uses_rgb:
            if rgb is None:
                raise StudentError(f"student {self.path} takes RGB images: none was given")
            feeds["rgb"] = np.ascontiguousarray(rgb)[None]
        if self.uses_thermal:
            if thermal is None:
                raise StudentError(f"student {self.path} takes thermal images: none was given")
            if self.uses_rgb and rgb_to_thermal is None:
                raise StudentError(f"student {self.path} brings thermal to RGB: it needs the matrix rgb_to_thermal")
            feeds["thermal"] = np.ascontiguousarray(thermal)[None]
        if self.uses_rgb and self.uses_thermal:
            feeds["rgb_to_thermal"] = np.asarray(rgb_to_thermal, np.float32)[None]
        for name, rank in (("rgb", 4), ("thermal", 3)):
            if name in feeds and feeds[name].ndim != rank:
                raise StudentError(f"student {self.path} takes no {name} image of shape {list(feeds[name].shape[1:])}")
        return feeds

    def _output(self, feeds: Mapping[str, np.ndarray], values: Arrays) -> StudentOutput:
        """Return what the graph's outputs for a pair say. Raises StudentError."""
        shape = feeds["rgb" if self.uses_rgb else "thermal"].shape[1:3]
        try:
            return StudentOutput(self._detections(values), self._segmentation(values, shape))
        except (ValueError, IndexError, TypeError) as error:  # shapes of the outputs are known only now
            raise StudentError(f"student {self.path} gave results that contradict each other: {error}") from error

    def _serve(self, sizes: Sizes) -> _Service:
        """Make a session, for these sizes alone where the provider gains by knowing them. Raises StudentError."""
        dimensions = self._file.dimensions(*sizes)
        graph = Graph(
            name=self.manifest.name,
            precision=self.precision,
            dimensions=dimensions,
            shapes=self._file.input_shapes(dimensions),
            static=self._file.static(dimensions),
        )
        session = make_session(self.path, self._file.data, self._settings, graph)
        provider = session.get_providers()[0]
        any_size = provider == PROVIDERS["cpu"] or not graph.static or not dimensions
        names = self._file.output_names
        if self._binds and provider in DEVICES:
            fixed = self._file.output_shapes(dimensions) if graph.static else {}
            return _Service(session, BoundRunner(session, names, fixed, DEVICES[provider]), any_size)
        return _Service(session, PlainRunner(session, names), any_size)

    def _service_for(self, sizes: Sizes) -> _Service:
        """Return a session for images of these sizes, made where there is none yet. Raises StudentError."""
        service = self._services.get(sizes)  # without the lock: making one for another camera may take minutes
        if service is None:
            self._file.dimensions(*sizes)  # whether the file takes them at all
            with self._lock:
                service = self._services.get(sizes) or self._serve_too(sizes)
        service.used = next(self._uses)
        return service

    def _serve_too(self, sizes: Sizes) -> _Service:
        """Return a service for other sizes, in the place of the one that was not used for longest; the lock is held."""
        by_use = sorted(self._services.items(), key=lambda item: item[1].used)
        dropped, kept = by_use[: 1 - MAX_SIZES], by_use[1 - MAX_SIZES :]
        if self._service.any_size:
            runner = self._service.runner
            runner = runner.beside() if isinstance(runner, BoundRunner) else runner
            service = replace(self._service, runner=runner, batches=1)
        else:
            if sizes in self._dropped and not self._thrashes:
                self._thrashes = True
                logger.warning(
                    "student %s gets images of more than %d sizes in turns, and on %s needs a session for each: they "
                    "are made again and again; give the cameras fewer sizes",
                    self.path,
                    MAX_SIZES,
                    self.provider,
                )
            service = self._service = self._serve(sizes)
            self._dropped.update(old for old, _ in dropped)
        self._services = dict(kept) | {sizes: service}
        return service

    def _warm_up_batches(self, feeds: Arrays) -> None:
        """Run every number of pairs that a batch may have, once for these sizes: a GPU prepares itself for each."""
        service = self._service_for(_sizes(feeds))
        while service.any_size and service.batches < self.max_batch:
            count = service.batches + 1
            try:
                self._run_at_once(service, [feeds] * count)
            except Exception as error:
                self._pause_batches(count, str(error))
            else:
                service.batches = count

    def _run_batch(self, service: _Service, batch: Sequence[Arrays]) -> Sequence[Arrays | Exception]:
        """Run pairs of equal sizes at once; where that fails, one by one, so that each fails by itself.

        Batches are given up for a while where only they fail, for one: a GPU without memory for them.
        """
        failure = None
        if len(batch) > 1:
            try:
                return self._run_at_once(service, batch)
            except Exception as error:
                failure = str(error)  # not the error, which holds this frame
        outcomes = [self._outcome(service, one) for one in batch]
        if failure is not None and not any(isinstance(outcome, Exception) for outcome in outcomes):
            self._pause_batches(len(batch), failure)
        try:
            return outcomes
        finally:
            del outcomes  # the exceptions hold this frame

    def _pause_batches(self, count: int, reason: str) -> None:
        """Run no batches for a while, after one of so many pairs has failed."""
        self._batches_from_s = time.monotonic() + BATCH_PAUSE_S
        self._batcher.max_batch = 1
        logger.warning(
            "student %s failed on %s with a batch of %d, and takes one pair at a time for the next %.0f s: %s",
            self.path,
            self.provider,
            count,
            BATCH_PAUSE_S,
            reason,
        )

    def _run_at_once(self, service: _Service, batch: Sequence[Arrays]) -> list[Arrays]:
        """Run pairs of equal sizes in one call, without the bound buffers, which are for one. (*Not run* on a GPU.)"""
        feeds = {name: np.concatenate([one[name] for one in batch]) for name in batch[0]}
        return self._split(PlainRunner(service.session, self._file.output_names)(feeds), len(batch))

    def _outcome(self, service: _Service, feeds: Arrays) -> Arrays | Exception:
        try:
            return self._run(service, feeds)
        except StudentError as error:
            return error

    def _split(self, values: Arrays, count: int) -> list[Arrays]:
        """Return the results of each pair of a batch, as if it had been alone. Raises StudentError."""
        images = values.get(IMAGE_INDEX, np.zeros(0, np.int64))
        whole = {name: array for name, array in values.items() if name in ("mask", "confidence")}
        rows = {name: array for name, array in values.items() if name not in (*whole, IMAGE_INDEX)}
        if (
            any(len(array) != count for array in whole.values())
            or any(array.shape[:1] != images.shape for array in rows.values())
            or not ((images >= 0) & (images < count)).all()
        ):
            raise StudentError(f"student {self.path} gave results that do not belong to a batch of {count}")
        return [
            {name: array[index : index + 1] for name, array in whole.items()}
            | {name: array[images == index] for name, array in rows.items()}
            for index in range(count)
        ]

    def _run(self, service: _Service, feeds: Arrays) -> Arrays:
        """Run one pair. Raises StudentError."""
        try:
            values = self._call(service, feeds)
            return self._split(values, 1)[0] if self.manifest.takes_batches else values
        except StudentError:
            raise
        except Exception as error:  # ONNX Runtime has a dozen types without a common base of their own
            raise StudentError(f"student {self.path} failed on {self.provider}: {error}") from error

    def _call(self, service: _Service, feeds: Arrays) -> Arrays:
        try:
            return service.runner(feeds)
        except Exception as error:
            if isinstance(service.runner, PlainRunner):
                raise
            with self._lock:
                if self._binds:
                    self._binds = False  # one attempt: what has not helped once is not tried for every frame
                    logger.warning(
                        "student %s failed with buffers bound on %s, and goes on without them and without CUDA graphs: "
                        "%s",
                        self.path,
                        self.provider,
                        error,
                    )
                    self._settings = replace(self._settings, cuda_graphs=False)
                    self._service = self._serve(_sizes(feeds))
                    self._services = {_sizes(feeds): self._service}
            service = self._service_for(_sizes(feeds))
            if isinstance(service.runner, BoundRunner):
                raise
        return service.runner(feeds)

    def _detections(self, values: Arrays) -> Detections | None:
        if "boxes" not in values:
            return None
        boxes, scores, labels = values["boxes"], values["scores"], values["labels"]
        if self._file.padded:
            scores, boxes, labels = _without_padding(scores, boxes, labels)
        detections = Detections(boxes, scores, labels)
        classes = len(self.manifest.detection_classes)
        if len(detections) > MAX_DETECTIONS:
            raise StudentError(f"student {self.path} gave {len(detections)} detections: that cannot be true")
        if len(detections) and not 0 <= detections.labels.min() <= detections.labels.max() < classes:
            raise StudentError(f"student {self.path} gave labels {detections.labels} but has {classes} classes")
        return detections

    def _segmentation(self, values: Arrays, shape: tuple[int, ...]) -> Segmentation | None:
        if "mask" not in values:
            return None
        mask, confidence = values["mask"][0], values["confidence"][0]
        if mask.shape != shape:
            raise StudentError(f"student {self.path} gave a mask {mask.shape} for an image {shape}")
        return Segmentation(mask, confidence)


def _sizes(feeds: Mapping[str, np.ndarray]) -> Sizes:
    """Return the sizes of the images that are fed."""
    rgb, thermal = (feeds[name].shape if name in feeds else None for name in ("rgb", "thermal"))
    return rgb and (rgb[2], rgb[1]), thermal and (thermal[2], thermal[1])


def _without_padding(scores: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cut off the rows of a fixed output that stand for no detection: their score is below 0."""
    count = int(np.count_nonzero(scores >= 0))
    if not (scores[:count] >= 0).all():
        raise ValueError("detections come after rows that stand for none")
    return tuple(array[:count] for array in (scores, *others))
