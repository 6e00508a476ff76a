"""Spreading an evaluation over a Ray cluster: the bags, and chunks of long ones, with the result of one process.

    with RayCluster("auto") as cluster:
        evaluate(job, bags, folder, spread=cluster)

A chunk is a Ray task, and the frames come back while it runs. A worker process keeps the sessions of its students for
the next chunk. What a lost worker was doing, Ray gives to another one (max_retries). Every machine of the cluster has
to see bags, students and truth under the paths that they have here, and to run the same software, or says so.
"""

import itertools
import logging
import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from md_perception.bags.types import UnknownTypeError
from md_perception.bags.write import BagError
from md_perception.evaluation.chunks import Evaluated, Evaluator
from md_perception.evaluation.job import EvaluationError, Job, bag_digest, software
from md_perception.evaluation.records import DriveRecord
from md_perception.evaluation.run import Frames, Task, frames_about
from md_perception.evaluation.simulate import SimulationError
from md_perception.evaluation.truth import TruthError
from md_perception.inference.manifest import ManifestError
from md_perception.inference.session import StudentError
from md_perception.metrics.latency import machine, processor

logger = logging.getLogger(__name__)

LEAST_CHUNK = 100
"""Frames of a chunk at least: one that begins late in a bag has to decode all that comes before it."""

RETRIES = 3
"""How often a chunk is run again whose worker was lost."""

_BATCH = 8
"""Frames that come back together. A number, not a time: a chunk that is run again has to send the same parts."""

_ERRORS = (
    BagError,
    EvaluationError,
    ManifestError,
    SimulationError,
    StudentError,
    TruthError,
    UnknownTypeError,
)


@dataclass(frozen=True)
class _Order:
    """What a worker has to do: the frames first..last-1 of a bag. last: None for all that are left.

    configuration, bag_digest, software: as they are on the machine that asks.
    """

    job: Job
    task: Task
    first: int
    last: int | None
    cores: int
    configuration: dict[str, Any]
    bag_digest: str
    software: dict[str, str]


@dataclass(frozen=True)
class _Part:
    """Frames that come back, and where they were evaluated. drive, rest: of the last part, as in chunks.Chunk."""

    frames: list[Evaluated]
    machine: str
    processor: str
    drive: DriveRecord | None = None
    rest: bytes = b""


def evaluate_order(asked: _Order) -> Iterator[_Part]:
    """Evaluate a chunk, in a worker of the cluster. Raises EvaluationError, with the name of the machine."""
    try:
        _require_the_same(asked)
        one_pass = Evaluator(asked.job).evaluate(asked.task.bag, asked.task.name, asked.first, asked.last, asked.cores)
        frames = iter(one_pass)
        while some := list(itertools.islice(frames, _BATCH)):
            yield _Part(some, machine(), processor())
        yield _Part([], machine(), processor(), one_pass.drive, one_pass.rest)
    except _ERRORS as error:
        raise EvaluationError(f"worker on {platform.node()}: {error}") from None


def _require_the_same(asked: _Order) -> None:
    """Raise EvaluationError where this machine would not evaluate what was asked for."""
    ours, theirs = software(), asked.software
    other = [f"{name} {ours[name]} instead of {theirs[name]}" for name in theirs if ours[name] != theirs[name]]
    if other:
        raise EvaluationError(
            f"it has {', '.join(other)}: install the same on every machine of the cluster (and restart Ray there)"
        )
    hint = "bags, students and truth have to be on a file system that all machines share, under the same paths"
    try:
        configuration, bag = asked.job.configuration(), bag_digest(asked.task.bag)
    except EvaluationError as error:
        raise EvaluationError(f"{error}; {hint}") from None
    changed = [name for name, value in asked.configuration.items() if configuration[name] != value]
    if bag != asked.bag_digest:
        changed.append(str(asked.task.bag))
    if changed:
        raise EvaluationError(f"it sees other files ({', '.join(changed)}); {hint}")


class RayCluster:
    """Evaluates on a Ray cluster; what evaluate() takes as `spread`. Use as a context manager.

    workers: inferences that run beside each other in the whole cluster.
    """

    def __init__(
        self, address: str = "auto", *, cores: int = 1, retries: int = RETRIES, chunk_frames: int | None = None
    ) -> None:
        """Say where the cluster is; nothing is started yet.

        address: HOST:PORT of the cluster that this machine belongs to. `auto`: the one that RAY_ADDRESS names or that
        runs on this machine; else Ray is started here, for as long as this is open, with all cores. Where the program
        is connected to Ray already, that connection is used. cores: of a chunk, which infers in so many threads.
        retries: how often a chunk is run again whose worker was lost. chunk_frames: None: as few chunks as keep all
        cores busy.
        """
        self._address, self._cores, self._retries, self._chunk_frames = address, cores, retries, chunk_frames
        self._ray: Any = None
        self._connected = False
        self._runs: list[_Run] = []
        self.workers = cores

    def __enter__(self) -> "RayCluster":
        """Connect. Raises EvaluationError."""
        if self._address.startswith("ray://"):
            raise EvaluationError(
                f"--ray {self._address}: Ray's client protocol cannot stream results; run this on a machine of the "
                "cluster with --ray auto (or with `ray job submit`)"
            )
        try:
            import ray
        except ImportError:
            raise EvaluationError("--ray needs Ray: pip install 'md_perception[ray]', on every machine") from None
        self._ray = ray
        if not ray.is_initialized():
            self._connect()
            self._connected = True
        cores = self._machines()
        self.workers = self._cores * self._slots(self._cores)
        address = ray.get_runtime_context().gcs_address
        print(f"Ray at {address}: {len(cores)} machine{'s' * (len(cores) > 1)}, {sum(cores)} cores", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs:
            run.cancel()
        if self._connected:
            self._ray.shutdown()

    def __call__(self, job: Job, tasks: Sequence[Task]) -> Iterator[Frames]:
        """Yield the frames of each task; while they are taken, the cluster works ahead. Raises EvaluationError."""
        ray, total = self._ray, {task.name: frames_about(job, task.bag) or 0 for task in tasks}
        cores = self._cores * max(1, job.threads)
        slots = self._slots(cores)
        left = sum(max(0, total[task.name] - task.first) for task in tasks)
        length = self._chunk_frames or max(LEAST_CHUNK, -(-left // slots))
        configuration = job.configuration()
        orders = deque(
            _Order(job, task, first, last, self._cores, configuration, bag_digest(task.bag), software())
            for task in tasks
            for first, last in _bounds(task.first, total[task.name], length)
        )
        gpu = any(provider != "cpu" for provider in job.providers)
        remote = ray.remote(evaluate_order).options(
            num_cpus=cores,
            num_gpus=1 if gpu else 0,
            max_retries=self._retries,
            num_returns="streaming",
        )
        run = _Run(ray, remote, orders, ahead=2 * slots)
        self._runs.append(run)
        try:
            for task in tasks:
                yield _Streamed(run, task)
        finally:
            run.cancel()
            self._runs.remove(run)

    def _machines(self) -> list[int]:
        """Return the cores of each machine of the cluster."""
        return [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]

    def _slots(self, cores: int) -> int:
        """Return how many chunks that need so many cores run beside each other."""
        machines = self._machines()
        if max(machines, default=0) < cores:  # it may still come, in a cluster that grows with its work
            logger.warning("a chunk needs %d cores, the machines of the cluster have %s: waiting", cores, machines)
        return max(1, sum(each // cores for each in machines))

    def _connect(self) -> None:
        ray, quiet = self._ray, {"logging_level": logging.ERROR, "log_to_driver": False}
        ends = signal.getsignal(signal.SIGTERM)
        try:
            if self._address == "auto":
                try:
                    ray.init(address="auto", **quiet)
                except ConnectionError:
                    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                    ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
            else:
                _require_listening(self._address)  # Ray itself would try for minutes
                ray.init(address=self._address, **quiet)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise EvaluationError(
                f"--ray {self._address}: {error}: this machine has to belong to the cluster (`ray start --address="
                "HOST:PORT`, in the environment of this program), and to have its token, if it asks for one"
            ) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, ends)  # Ray puts its own there, which ends the process at once


def _require_listening(address: str) -> None:
    """Raise ValueError for what is no HOST:PORT, OSError where nobody listens."""
    host, separator, port = address.rpartition(":")
    if not (host and separator and port.isdigit()):
        raise ValueError("this is neither auto nor HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _bounds(first: int, total: int, length: int) -> list[tuple[int, int | None]]:
    """Divide frames first..total-1 into chunks of about this length; the last goes on to the end, wherever that is."""
    count = max(1, round((total - first) / length))
    starts = [first + (total - first) * number // count for number in range(count)] if count > 1 else [first]
    return list(zip(starts, [*starts[1:], None], strict=True))


class _Run:
    """The orders of one evaluation: the next ones are with the cluster, in order, so many ahead."""

    def __init__(self, ray: Any, remote: Any, orders: deque[_Order], ahead: int) -> None:
        self._ray, self._remote, self._orders, self._ahead = ray, remote, orders, ahead
        self._running: deque[tuple[_Order, Any]] = deque()
        self._processors: set[str] = set()

    def parts(self, task: Task) -> Iterator[_Part]:
        """Yield what comes back of a task, in order. Raises EvaluationError."""
        while True:
            while self._orders and len(self._running) < self._ahead:
                order = self._orders.popleft()
                self._running.append((order, self._remote.remote(order)))
            if not self._running or self._running[0][0].task != task:
                return
            order, references = self._running[0]
            for part in self._fetched(order, references):
                self._compare(part.processor)
                yield part
            self._running.popleft()

    def _fetched(self, order: _Order, references: Any) -> Iterator[_Part]:
        end = "the end" if order.last is None else order.last
        chunk = f"{order.task.bag}, frames {order.first} to {end}"
        errors = self._ray.exceptions
        try:
            for reference in references:
                yield self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, EvaluationError):
                raise EvaluationError(str(error.cause)) from None
            if "failed to import" in str(error):
                why = next((line for line in reversed(str(error.cause).splitlines()) if "Error" in line), "")
                raise EvaluationError(
                    f"{chunk}: a worker cannot import md_perception: install it, with what it needs, on every machine "
                    f"of the cluster, in the environment that Ray was started in ({why})"
                ) from None
            raise
        except errors.RayError as error:
            raise EvaluationError(
                f"{chunk}: its worker was lost, and so were those that it was given to after that (a machine that "
                f"went down, or too little memory): {str(error).splitlines()[0]}. The same command goes on from here"
            ) from None

    def _compare(self, one: str) -> None:
        if one not in self._processors and self._processors:
            logger.warning(
                "the cluster has different CPUs (%s): the last bits of the results may not be those of one machine",
                ", ".join(sorted({one, *self._processors})),
            )
        self._processors.add(one)

    def cancel(self) -> None:
        """Give up what is not fetched."""
        for _, references in self._running:
            self._ray.cancel(references)
        self._running.clear()
        self._orders.clear()


class _Streamed:
    """The frames of a task as they come back, see run.Frames."""

    def __init__(self, run: _Run, task: Task) -> None:
        self._run, self._task = run, task
        self.drive: DriveRecord | None = None
        self.rest = b""
        self.machine = machine()

    def __iter__(self) -> Iterator[Evaluated]:
        for part in self._run.parts(self._task):
            self.machine = part.machine
            yield from part.frames
            # A chunk before the last knows the end of the bag only if that came sooner than the bag's index says.
            self.drive, self.rest = part.drive, part.rest
