"""Evaluation on a Ray cluster of this machine: the bytes of one process, whatever becomes of the workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_drives import THERMAL, write_drive
from tiny_student import write_tiny_student

from md_perception.bags.injection import Injection
from md_perception.evaluation import spread
from md_perception.evaluation.chunks import Evaluated
from md_perception.evaluation.command import main
from md_perception.evaluation.job import EvaluationError, Job, bag_digest
from md_perception.evaluation.run import Evaluation, Task, evaluate
from md_perception.evaluation.schema import ScoreSettings
from md_perception.evaluation.spread import RayCluster

FILES = (
    "report.json",
    "records/long.jsonl",
    "records/short.jsonl",
    "results/long/long.mcap",
    "results/short/short.mcap",
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two cores, to which this process is connected."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install md_perception[ray]")
    before = signal.getsignal(signal.SIGTERM)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_student(tmp_path_factory.mktemp("students") / "tiny.onnx")


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drives")
    faults = [Injection("drop", THERMAL, 1.0, 2.5, 1.0)]
    return {
        "long": write_drive(folder / "long", 240, size=(96, 64), faults=faults, truth=True),
        "short": write_drive(folder / "short", 20, size=(96, 64), truth=True, seed=3),
    }


@pytest.fixture(scope="module")
def job(student: Path) -> Job:
    return Job({"tiny": student}, with_results=True)


def run(job: Job, bags: dict[str, Path], folder: Path, **options: Any) -> Evaluation:
    return evaluate(job, bags, folder, settings=ScoreSettings(replicates=5), show_progress=False, **options)


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def whole(job: Job, bags: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What one process without Ray leaves behind."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(job, bags, folder)
    return contents(folder)


@pytest.mark.long  # Ray takes some seconds to start
def test_ctrl_c_leaves_a_folder_that_the_command_completes_without_ray(
    bags: dict[str, Path], student: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is an extra: pip install md_perception[ray]")
    out = tmp_path / "out"
    command = [str(bags["long"]), str(bags["short"]), "--student", str(student), "--quiet"]
    with subprocess.Popen(
        [sys.executable, "-m", "md_perception.evaluation", *command, "--out", str(out), "--ray", "auto"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stored, end = out / "records/long.jsonl", time.monotonic() + 60
        while not (stored.exists() and stored.stat().st_size) and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Ray at " in said[0]
    assert not (out / "report.json").exists()
    done = len(stored.read_text().splitlines())
    assert done > 0
    for folder in (out, tmp_path / "at once"):
        assert main([*command, "--out", str(folder)]) == 0
    assert contents(out) == contents(tmp_path / "at once")


def busy_workers() -> list[int]:
    """Return the PIDs of the workers of our cluster that evaluate now: Ray names its processes by what they do."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        except (OSError, ValueError):
            continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid, name in names.items() if name.startswith("ray::evaluate_order") and ours(pid)]


class Murderous:
    """Frames of a bag, and after some of them all workers that are at work are killed."""

    def __init__(self, frames: Any, after: int, killed: list[int]) -> None:
        self._frames, self._after, self._killed = frames, after, killed

    def __iter__(self) -> Iterator[Evaluated]:
        for number, frame in enumerate(self._frames):
            if number == self._after:
                end = time.monotonic() + 30
                while not self._killed and time.monotonic() < end:
                    for pid in busy_workers():
                        os.kill(pid, signal.SIGKILL)
                        self._killed.append(pid)
            yield frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frames, name)


@pytest.mark.long  # Ray takes some seconds to start
def test_two_workers_give_the_bytes_of_one_process_and_a_killed_one_changes_nothing(
    address: str, job: Job, bags: dict[str, Path], whole: list[bytes], tmp_path: Path
) -> None:
    killed: list[int] = []
    with RayCluster(address, chunk_frames=50) as cluster:
        assert cluster.workers == 2

        def spread_and_kill(job, tasks):
            for task, frames in zip(tasks, cluster(job, tasks), strict=True):
                yield Murderous(frames, 10, killed) if task.name == "long" else frames

        run(job, bags, tmp_path / "calm", spread=cluster)
        run(job, bags, tmp_path / "murderous", spread=spread_and_kill)
    assert contents(tmp_path / "calm") == whole
    assert killed
    assert contents(tmp_path / "murderous") == whole


@pytest.mark.long  # Ray takes some seconds to start
def test_a_chunk_that_is_lost_again_and_again_ends_the_run_which_can_be_resumed(
    address: str, job: Job, bags: dict[str, Path], whole: list[bytes], tmp_path: Path
) -> None:
    killed: list[int] = []
    with RayCluster(address, retries=0, chunk_frames=60) as cluster:

        def spread_and_kill(job, tasks):
            for frames in cluster(job, tasks):
                yield Murderous(frames, 10, killed)

        with pytest.raises(EvaluationError, match=r"long, frames \d+ to \w+: its worker was lost.*goes on from here"):
            run(job, bags, tmp_path / "out", spread=spread_and_kill)
        stored = (tmp_path / "out/records/long.jsonl").read_text().splitlines()
        assert 10 <= len(stored) < 240
        asked: list[int] = []

        def resumed(job, tasks):
            asked.extend(task.first for task in tasks)
            return cluster(job, tasks)

        run(job, bags, tmp_path / "out", spread=resumed)
    assert asked == [len(stored), 0]
    assert contents(tmp_path / "out") == whole


@pytest.mark.long  # Ray takes some seconds to start
def test_the_command_names_the_machines_and_leaves_the_folder_of_one_process(
    address: str, bags: dict[str, Path], student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(bags["short"]), "--student", str(student), "--quiet", "--no-result-bag"]
    assert main([*command, "--out", str(tmp_path / "ray"), "--ray", address]) == 0
    assert f"Ray at {address}: 1 machine, 2 cores" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "here")]) == 0
    for name in ("report.json", "records/short.jsonl", "records/machines.txt"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.long  # Ray takes some seconds to start
def test_a_worker_with_other_software_or_files_says_so(
    address: str, job: Job, bags: dict[str, Path], student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**spread.software(), "onnxruntime": "0.0.1"}
    monkeypatch.setattr(spread, "software", lambda: other)
    expected = r"worker on .*: it has onnxruntime \S+ instead of 0\.0\.1: install the same on every machine"
    with RayCluster(address) as cluster, pytest.raises(EvaluationError, match=expected):
        run(job, bags, tmp_path / "out", spread=cluster)


def ordered(job: Job, bag: Path, **changes: Any) -> spread._Order:
    """Return the order to evaluate a bag, as a worker gets it."""
    order = spread._Order(job, Task(bag, "drive", 0), 0, None, 1, job.configuration(), "", spread.software())
    return replace(order, **changes)


def test_a_worker_that_sees_other_files_says_which(bags: dict[str, Path], student: Path, tmp_path: Path) -> None:
    """As on a machine without the shared file system; what evaluates there is called here."""
    job, digest = Job({"tiny": student}), bag_digest(bags["short"])
    parts = list(spread.evaluate_order(ordered(job, bags["short"], bag_digest=digest)))
    assert [len(part.frames) for part in parts] == [8, 8, 4, 0]
    assert parts[-1].drive.frames == 20
    missing = tmp_path / "nowhere.mcap"
    with pytest.raises(EvaluationError, match=r"nowhere\.mcap cannot be read: No such file.*all machines share"):
        next(spread.evaluate_order(ordered(job, missing)))
    with pytest.raises(
        EvaluationError, match=r"worker on .*: it sees other files \(.*long\); bags, students and truth"
    ):
        next(spread.evaluate_order(ordered(job, bags["long"], bag_digest=digest)))
    configuration = {**job.configuration(), "students": {"tiny": "0" * 64}}
    with pytest.raises(EvaluationError, match=r"it sees other files \(students\)"):
        next(spread.evaluate_order(ordered(job, bags["short"], bag_digest=digest, configuration=configuration)))


@pytest.mark.parametrize(
    ("first", "total", "length", "bounds"),
    [
        (0, 90, 100, [(0, None)]),
        (0, 300, 100, [(0, 100), (100, 200), (200, None)]),
        (40, 100, 20, [(40, 60), (60, 80), (80, None)]),
        (100, 90, 20, [(100, None)]),  # what the index of the bag says may be too little
        (0, 0, 100, [(0, None)]),
    ],
)
def test_a_bag_is_divided_into_equal_chunks(first: int, total: int, length: int, bounds: list[Any]) -> None:
    assert spread._bounds(first, total, length) == bounds


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install md_perception[ray]")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may be connected
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address, problem in ((f"127.0.0.1:{port}", "Connection refused"), ("host", "neither auto nor HOST:PORT")):
        with pytest.raises(EvaluationError, match=f"--ray {address}: .*{problem}"), RayCluster(address):
            pass


def test_addresses_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="run this on a machine of the cluster"), RayCluster("ray://host:10001"):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EvaluationError, match=r"pip install 'md_perception\[ray\]'"), RayCluster("auto"):
        pass
