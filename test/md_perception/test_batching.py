"""Batches on demand: who is run with whom, in what order, and who gets which error."""

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from batch_student import batch_model, write_batch_student
from tiny_student import set_manifest, tiny_manifest, write_tiny_student

from md_perception.inference import batching, session, sharing
from md_perception.inference.batching import Batcher
from md_perception.inference.manifest import ManifestError
from md_perception.inference.runners import BoundRunner, PlainRunner
from md_perception.inference.session import SessionSettings, Student, StudentError
from md_perception.inference.sharing import SharedStudents
from md_perception.inference.student_file import StudentFile
from md_perception.results import StudentOutput

TIMEOUT_S = 60.0
CPU = SessionSettings(providers=("cpu",), threads=1)
BATCHES = SessionSettings(providers=("cpu",), threads=1, max_batch=4)


class Stall:
    """Lets the first call into something go on only when it is told to, so that others have to wait."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(TIMEOUT_S)


class Callers:
    """Threads that call something in a known order. outcomes: what each got, a result or an exception."""

    def __init__(self) -> None:
        self.outcomes: dict[Any, Any] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: Any, call: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self.outcomes[name] = call()
            except Exception as error:
                self.outcomes[name] = error

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


def waiting(batcher: Batcher, count: int) -> None:
    """Wait until so many calls are queued."""
    tick, left_s = threading.Event(), TIMEOUT_S
    while len(batcher._waiting) < count:
        assert left_s > 0
        left_s -= 0.002
        tick.wait(0.002)


def batches_of(
    calls: Sequence[tuple[Any, str]], max_batch: int, run: Callable[[Sequence[Any]], Sequence[Any]] = list
) -> tuple[list[list[Any]], dict[Any, Any]]:
    """Return the batches that were run, and what each item's caller got.

    calls: item and key; the first is in work until all others wait, in their order.
    """
    batcher: Batcher[Any, Any] = Batcher(max_batch)
    stall, batches, callers = Stall(), [], Callers()

    def counted(items: Sequence[Any]) -> Sequence[Any]:
        batches.append(list(items))
        stall()
        return run(items)

    for index, (item, key) in enumerate(calls):
        callers.start(item, lambda item=item, key=key: batcher(item, key, counted))
        assert stall.begun.wait(TIMEOUT_S)
        waiting(batcher, index)
    stall.go_on.set()
    callers.finish()
    assert not batcher._waiting
    assert batcher(99, "", lambda items: [-items[0]]) == -99  # it is free again
    return batches, callers.outcomes


def test_those_that_wait_are_run_together_as_soon_as_it_is_free() -> None:
    batches, outcomes = batches_of([(n, "") for n in range(4)], 8, lambda items: [10 * item for item in items])
    assert batches == [[0], [1, 2, 3]]
    assert outcomes == {0: 0, 1: 10, 2: 20, 3: 30}


def test_a_call_that_finds_it_free_is_run_at_once_and_alone() -> None:
    assert batches_of([(5, "")], 8) == ([[5]], {5: 5})


def test_no_batch_is_larger_than_the_largest() -> None:
    batches, _ = batches_of([(n, "") for n in range(6)], 2)
    assert batches == [[0], [1, 2], [3, 4], [5]]
    assert batches_of([(n, "") for n in range(3)], 1)[0] == [[0], [1], [2]]


def test_only_equal_keys_are_run_together_and_the_one_that_waits_longest_is_next() -> None:
    calls = [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a"), (5, "c")]
    assert batches_of(calls, 2)[0] == [[0], [1, 3], [2, 4], [5]]


def test_a_camera_that_calls_again_and_again_does_not_starve_another() -> None:
    # Items of one key keep coming: whenever the greedy camera is served, it asks again at once.
    batcher: Batcher[str, int] = Batcher(1)
    stall, order, callers = Stall(), [], Callers()

    def run(items: Sequence[str]) -> list[int]:
        order.extend(items)
        stall()
        return [0] * len(items)

    def greedy() -> None:
        for _ in range(20):
            batcher("greedy", "a", run)

    callers.start("greedy", greedy)
    assert stall.begun.wait(TIMEOUT_S)
    callers.start("modest", lambda: batcher("modest", "b", run))
    waiting(batcher, 1)
    stall.go_on.set()
    callers.finish()
    assert order[:2] == ["greedy", "modest"]


def test_an_exception_of_one_item_is_its_callers_alone() -> None:
    bad = ValueError("bad")
    _, outcomes = batches_of([(n, "") for n in range(4)], 8, lambda items: [bad if n == 2 else n for n in items])
    assert outcomes == {0: 0, 1: 1, 2: bad, 3: 3}


def test_an_exception_of_a_batch_is_that_of_its_callers_and_of_nobody_else() -> None:
    def run(items: Sequence[int]) -> Sequence[int]:
        if 1 in items:
            raise ValueError("broken")
        return items

    _, outcomes = batches_of([(0, "a"), (1, "a"), (2, "a"), (3, "b")], 8, run)
    assert (outcomes[0], outcomes[3]) == (0, 3)
    assert [str(outcomes[n]) for n in (1, 2)] == ["broken"] * 2


class Ended(BaseException):
    """As KeyboardInterrupt: of the thread, not of the call."""


def test_the_others_of_a_batch_whose_thread_is_ended_are_run_without_it() -> None:
    order: list[list[int]] = []

    def run(items: Sequence[int]) -> Sequence[int]:
        order.append(list(items))
        if items[0] == 1:
            raise Ended
        return items

    batcher: Batcher[int, int] = Batcher(8)
    stall, callers = Stall(), Callers()

    def stalled(items: Sequence[int]) -> Sequence[int]:
        stall()
        return run(items)

    def ended() -> str:
        try:
            batcher(1, "", stalled)
        except Ended:
            return "ended"
        return "not ended"

    callers.start(0, lambda: batcher(0, "", stalled))
    assert stall.begun.wait(TIMEOUT_S)
    callers.start(1, ended)
    waiting(batcher, 1)
    for index, key in ((2, ""), (3, ""), (4, "other")):
        callers.start(index, lambda index=index, key=key: batcher(index, key, stalled))
        waiting(batcher, index)
    stall.go_on.set()
    callers.finish()
    assert callers.outcomes == {0: 0, 1: "ended", 2: 2, 3: 3, 4: 4}
    assert order == [[0], [1, 2, 3], [2, 3], [4]]  # those that came first are first still


class Interrupted(threading.Event):
    """The turn of a call whose thread is ended at its wait, as soon as `when` is set."""

    def __init__(self, when: threading.Event) -> None:
        super().__init__()
        self.when = when

    def wait(self, timeout: float | None = None) -> bool:
        assert self.when.wait(TIMEOUT_S)
        raise Ended


@pytest.mark.parametrize("moment", ["in the queue", "in work", "its turn has come"])
def test_a_call_whose_thread_is_ended_while_it_waits_stops_nobody(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    when, gone, first = threading.Event(), threading.Event(), Stall()
    turn = Interrupted(when)

    class Call(batching._Call):
        def __init__(self, item: str, key: str) -> None:
            super().__init__(item, key)
            if item == "interrupted":
                self.turn = turn

    def run(items: Sequence[str]) -> Sequence[str]:
        first()
        if len(items) > 1:
            when.set()
            assert gone.wait(TIMEOUT_S)
            raise Ended  # the leader, too: its batch is queued again
        return items

    def call(item: str, key: str) -> str:
        try:
            return batcher(item, key, run)
        except Ended:
            return "ended"
        finally:
            if item == "interrupted":
                gone.set()

    monkeypatch.setattr(batching, "_Call", Call)
    batcher: Batcher[str, str] = Batcher(8)
    callers = Callers()
    callers.start("first", lambda: call("first", ""))
    assert first.begun.wait(TIMEOUT_S)
    queue = (["leader"] if moment == "in work" else []) + ["interrupted", "other"]
    for count, item in enumerate(queue, start=1):
        callers.start(item, lambda item=item: call(item, "b" if item == "other" else "a"))
        waiting(batcher, count)
    if moment == "in the queue":
        when.set()
        assert gone.wait(TIMEOUT_S)
        assert [one.item for one in batcher._waiting] == ["other"]
    first.go_on.set()
    if moment == "its turn has come":
        assert threading.Event.wait(turn, TIMEOUT_S)
        when.set()
    callers.finish()
    expected = {item: item for item in ("first", *queue)} | {"interrupted": "ended"}
    assert callers.outcomes == expected | ({"leader": "ended"} if moment == "in work" else {})
    assert not batcher._waiting
    assert batcher("later", "", list) == "later"


@pytest.mark.parametrize("fails", ["the batch", "an item"])
def test_an_exception_that_is_done_with_keeps_no_item(fails: str) -> None:
    class Item:
        pass

    def run(items: Sequence[Item]) -> Sequence[Exception]:
        if fails == "the batch":
            raise ValueError
        return [ValueError()]

    batcher: Batcher[Item, None] = Batcher(8)
    item = Item()
    kept = weakref.ref(item)
    gc.disable()  # what needs the collector keeps its images for seconds
    try:
        with contextlib.suppress(ValueError):
            batcher(item, "", run)
        del item
        assert kept() is None
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------ the student


def pair(seed: int, heat: int, size: tuple[int, int] = (37, 51)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB noise of this size, thermal of this level everywhere, a matrix of its own."""
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return rgb, np.full((7, 9), heat, np.uint8), np.diag([0.25 + seed / 100, 0.5, 1]).astype(np.float32)


def assert_same(found: StudentOutput, expected: StudentOutput) -> None:
    assert found.detections is not None
    assert expected.detections is not None
    assert found.segmentation is not None
    assert expected.segmentation is not None
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found.detections, name), getattr(expected.detections, name))
    np.testing.assert_array_equal(found.segmentation.mask, expected.segmentation.mask)
    np.testing.assert_array_equal(found.segmentation.confidence, expected.segmentation.confidence)


def run_while_busy(student: Student, pairs: Sequence[tuple], monkeypatch: pytest.MonkeyPatch) -> tuple[list, dict]:
    """Run the first pair, and the others while it is in work; return the sizes of the batches and the outcomes."""
    stall, sizes, callers = Stall(), [], Callers()
    run = PlainRunner.__call__

    def slow(runner: PlainRunner, feeds: dict) -> dict:
        sizes.append(len(feeds["rgb"]))
        stall()
        return run(runner, feeds)

    monkeypatch.setattr(PlainRunner, "__call__", slow)
    for index, one in enumerate(pairs):
        callers.start(index, lambda one=one: student.run(*one))
        assert stall.begun.wait(TIMEOUT_S)
        waiting(student._batcher, index)
    stall.go_on.set()
    callers.finish()
    monkeypatch.undo()
    return sizes, callers.outcomes


def test_a_batch_gives_each_camera_what_it_would_get_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_batch_student(tmp_path / "batch.onnx")
    pairs = [pair(0, 200), pair(1, 210), pair(2, 30), pair(3, 255)]  # the third has no detection
    sizes, outcomes = run_while_busy(Student.load(path, BATCHES), pairs, monkeypatch)
    assert sizes == [1, 3]
    alone = Student.load(path, CPU)
    for index, one in enumerate(pairs):
        assert_same(outcomes[index], alone.run(*one))
    found = outcomes[3].detections
    np.testing.assert_allclose(found.boxes, [[0, 0, 37 * 0.28, 51 * 0.5]], rtol=1e-6)
    assert found.scores.tolist() == [1.0]
    assert len(outcomes[2].detections) == 0


def test_cameras_of_different_sizes_are_not_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES)
    pairs = [pair(0, 200), pair(1, 200, (20, 10)), pair(2, 200), pair(3, 200, (20, 10)), pair(4, 200)]
    sizes, outcomes = run_while_busy(student, pairs, monkeypatch)
    assert sizes == [1, 2, 2]
    assert [outcomes[index].segmentation.mask.shape for index in range(5)] == [(51, 37), (10, 20)] * 2 + [(51, 37)]


@pytest.mark.parametrize("file", ["batch", "tiny"])
def test_without_batches_students_take_turns_as_ever(file: str, tmp_path: Path) -> None:
    write = {"batch": write_batch_student, "tiny": write_tiny_student}[file]
    settings = CPU if file == "batch" else BATCHES  # a CPU does not batch by itself; the tiny file cannot
    student = Student.load(write(tmp_path / "student.onnx"), settings)
    assert student._batcher.max_batch == 1
    assert student.manifest.takes_batches == (file == "batch")
    student.run(*pair(0, 200))
    assert student.warm_up((64, 48), (16, 12)) > 0


def test_a_gpu_batches_by_itself_and_not_from_the_buffers_of_one_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session.DEVICES, "CPUExecutionProvider", "cpu")  # as if it were one
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), CPU)
    assert student._batcher.max_batch == session.AUTO_BATCH
    expected = [student.run(*pair(seed, 200)) for seed in range(2)]  # bound
    feeds = [
        {name: array[None] for name, array in zip(("rgb", "thermal", "rgb_to_thermal"), pair(seed, 200), strict=True)}
        for seed in range(2)
    ]
    service = next(iter(student._services.values()))
    split = student._run_batch(service, feeds)
    for values, output in zip(split, expected, strict=True):
        assert isinstance(values, dict)
        np.testing.assert_array_equal(values["boxes"], output.detections.boxes)
        np.testing.assert_array_equal(values["mask"][0], output.segmentation.mask)


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[dict], bool]) -> None:
    run = PlainRunner.__call__

    def call(runner: PlainRunner, feeds: dict) -> dict:
        if fails(feeds):
            raise RuntimeError("out of memory")
        return run(runner, feeds)

    monkeypatch.setattr(PlainRunner, "__call__", call)


def feeds_of(seed: int, heat: int) -> dict[str, np.ndarray]:
    return {n: array[None] for n, array in zip(("rgb", "thermal", "rgb_to_thermal"), pair(seed, heat), strict=True)}


def test_what_onnx_runtime_refuses_is_not_run_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES)
    rgb, thermal, matrix = pair(2, 220)
    pairs = [pair(0, 200), pair(1, 210), (rgb.astype(np.float32), thermal, matrix)]
    sizes, outcomes = run_while_busy(student, pairs, monkeypatch)
    assert sizes == [1, 1, 1]
    assert isinstance(outcomes[2], StudentError)
    assert outcomes[1].detections.scores.tolist() == pytest.approx([210 / 255])


def for_one_size(student: Student, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let a student need a session for each size, as on TensorRT; return the sizes of those that it makes from now."""
    serve, made = student._serve, []

    def counted(sizes: Any) -> session._Service:
        made.append(sizes)
        return replace(serve(sizes), any_size=False)

    monkeypatch.setattr(student, "_serve", counted)
    student._service.any_size = False
    return made


def test_a_session_for_one_pair_is_given_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES)
    for_one_size(student, monkeypatch)
    monkeypatch.setattr(Batcher, "__call__", lambda *arguments: pytest.fail("it was batched"))
    monkeypatch.setattr(student, "_run_at_once", lambda *arguments: pytest.fail("it was batched"))
    student.warm_up((37, 51), (9, 7))
    assert student.run(*pair(0, 200)).detections.scores.tolist() == pytest.approx([200 / 255])
    with pytest.raises(StudentError, match="takes one pair at a time on CPUExecutionProvider"):
        student.run_batch([pair(0, 200), pair(1, 200)])


def test_two_cameras_of_a_new_size_wait_for_one_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), CPU)
    made, stall, callers, serve = for_one_size(student, monkeypatch), Stall(), Callers(), student._serve

    def slow(sizes: Any) -> session._Service:
        stall()
        return serve(sizes)

    checked = threading.Semaphore(0)
    dimensions = StudentFile.dimensions

    def watched(*arguments: Any) -> dict[str, int]:
        checked.release()
        return dimensions(*arguments)

    monkeypatch.setattr(student, "_serve", slow)
    monkeypatch.setattr(StudentFile, "dimensions", watched)
    for seed in range(2):
        callers.start(seed, lambda seed=seed: student.run(*pair(seed, 200)))
        assert checked.acquire(timeout=TIMEOUT_S)  # it has not found one
        assert stall.begun.wait(TIMEOUT_S)
    stall.go_on.set()
    callers.finish()
    assert made == [((37, 51), (9, 7))]
    assert all(isinstance(output, StudentOutput) for output in callers.outcomes.values())


def test_each_number_of_pairs_is_warmed_up_once_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, counts = replace(BATCHES, rgb_size=(64, 48), thermal_size=(16, 12)), []
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), settings)
    run = PlainRunner.__call__

    def counted(runner: PlainRunner, feeds: dict) -> dict:
        counts.append(len(feeds["rgb"]))
        return run(runner, feeds)

    monkeypatch.setattr(PlainRunner, "__call__", counted)
    for width in (64, 64, 32):
        student.warm_up((width, 48), (16, 12))
    assert counts == [1, 2, 3, 4, 1, 1, 2, 3, 4]


def test_batches_that_fail_in_the_warm_up_are_not_waited_for_while_driving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES)
    failing(monkeypatch, lambda feeds: len(feeds["rgb"]) > 2)
    assert student.warm_up((64, 48), (16, 12)) > 0
    assert student.max_batch == 1
    assert "with a batch of 3, and takes one pair at a time for the next 60 s: out of memory" in caplog.text


def test_batches_end_when_onnx_runtime_goes_over_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_batch_student(tmp_path / "batch.onnx")
    by_itself, asked = Student.load(path, CPU), Student.load(path, BATCHES)
    for student in (by_itself, asked):
        monkeypatch.setattr(student._service.session, "get_providers", lambda: ["CUDAExecutionProvider"])
    assert (by_itself.max_batch, asked.max_batch) == (session.AUTO_BATCH, 4)
    monkeypatch.undo()
    by_itself.run(*pair(0, 200))
    assert (by_itself.max_batch, by_itself._batcher.max_batch, asked.max_batch) == (1, 1, 4)


@pytest.fixture
def bound_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(session.DEVICES, "CPUExecutionProvider", "cpu")  # as if it were a GPU


@pytest.mark.usefixtures("bound_on_the_cpu")
def test_cameras_of_different_sizes_have_buffers_of_their_own(tmp_path: Path) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), replace(CPU, max_batch=1))
    pairs = [pair(0, 200), pair(1, 210, (20, 10))]

    def buffers() -> list[int]:
        return [
            value.data_ptr()
            for size in ((37, 51), (20, 10))
            for value in student._services[size, (9, 7)].runner._inputs.values()
        ]

    first = [student.run(*one) for one in pairs]
    before = buffers()
    again = [student.run(*one) for one in pairs]
    assert buffers() == before
    assert len(set(before)) == 6
    one, other = (student._services[size, (9, 7)].runner for size in ((37, 51), (20, 10)))
    assert one._lock is other._lock  # they take turns at the session
    for found, expected in zip(again, first, strict=True):
        assert_same(found, expected)
    for width in range(30, 30 + session.MAX_SIZES):
        student.run(*pair(0, 200, (width, 10)))
    assert len(student._services) == session.MAX_SIZES


@pytest.mark.usefixtures("bound_on_the_cpu")
def test_after_bound_buffers_have_failed_for_one_camera_no_other_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), replace(CPU, max_batch=1))
    pairs, failures = [pair(0, 200), pair(1, 210, (20, 10))], []
    expected = [student.run(*one) for one in pairs]

    def fail(runner: BoundRunner, feeds: dict) -> None:
        failures.append(runner)
        raise RuntimeError("CUDA failure 900")

    monkeypatch.setattr(BoundRunner, "__call__", fail)
    for one, output in zip(pairs, expected, strict=True):
        assert_same(student.run(*one), output)
    assert len(failures) == 1


def test_a_pair_that_fails_does_not_hurt_the_others_of_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES)
    failing(monkeypatch, lambda feeds: (feeds["thermal"] == 66).any())
    good, bad, other = student._run_batch(student._service, [feeds_of(0, 200), feeds_of(1, 66), feeds_of(2, 220)])
    assert isinstance(bad, StudentError)
    assert "failed on CPUExecutionProvider: out of memory" in str(bad)
    assert isinstance(good, dict)
    assert isinstance(other, dict)
    np.testing.assert_allclose([good["scores"][0], other["scores"][0]], [200 / 255, 220 / 255], rtol=1e-6)
    assert student._batcher.max_batch == 4


def test_batches_are_given_up_where_only_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES)
    failing(monkeypatch, lambda feeds: len(feeds["rgb"]) > 1)
    outcomes = student._run_batch(student._service, [feeds_of(0, 200), feeds_of(1, 210)])
    assert [float(each["scores"][0]) for each in outcomes] == pytest.approx([200 / 255, 210 / 255])
    assert student._batcher.max_batch == 1
    assert "takes one pair at a time for the next 60 s: out of memory" in caplog.text


def test_batches_are_tried_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, now = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES), [1000.0]
    monkeypatch.setattr("md_perception.inference.session.time.monotonic", lambda: now[0])
    with monkeypatch.context() as patch:
        failing(patch, lambda feeds: len(feeds["rgb"]) > 1)
        student._run_batch(student._service, [feeds_of(0, 200), feeds_of(1, 210)])
    now[0] += session.BATCH_PAUSE_S - 0.1
    assert student.max_batch == 1
    now[0] += 0.1
    assert student.max_batch == 4
    sizes, _ = run_while_busy(student, [pair(seed, 200) for seed in range(4)], monkeypatch)
    assert sizes == [1, 3]


def test_images_of_a_batch_that_failed_are_freed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), BATCHES)
    failing(monkeypatch, lambda feeds: True)
    batch = [feeds_of(seed, 200) for seed in range(2)]
    kept = [weakref.ref(one["rgb"].base) for one in batch]
    gc.disable()  # what needs the collector keeps its images for seconds
    try:
        assert all(isinstance(outcome, StudentError) for outcome in student._run_batch(student._service, batch))
        del batch
        assert all(one() is None for one in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", [{"mask": np.zeros((1, 4, 4))}, {"scores": np.zeros(3)}, {}])
def test_results_that_are_not_those_of_the_batch_are_refused(wrong: dict[str, np.ndarray], tmp_path: Path) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), CPU)
    values = {"mask": np.zeros((2, 4, 4)), "scores": np.array([0.5, 0.6]), "image_index": np.array([1, 0])}
    if wrong:
        with pytest.raises(StudentError, match="gave results that do not belong to a batch of 2"):
            student._split(values | wrong, 2)
    else:
        assert [one["scores"].tolist() for one in student._split(values, 2)] == [[0.6], [0.5]]


def test_rows_of_an_image_that_is_not_in_the_batch_are_refused(tmp_path: Path) -> None:
    onnx.save(batch_model(first=1), tmp_path / "from_1.onnx")
    student = Student.load(tmp_path / "from_1.onnx", CPU)
    with pytest.raises(StudentError, match="gave results that do not belong to a batch of 1"):
        student.run(*pair(0, 200))


# ------------------------------------------------------------------------------------------------ the file


def test_a_file_that_takes_batches_is_prepared_for_one_pair(tmp_path: Path) -> None:
    file = StudentFile.read(write_batch_student(tmp_path / "batch.onnx"))
    named = file.dimensions((640, 512), (160, 128))
    assert named == {"B": 1, "H": 512, "W": 640, "h": 128, "w": 160}
    assert file.input_shapes(named)["rgb"] == (1, 512, 640, 3)
    assert file.output_shapes(named) == {"mask": ("uint8", (1, 512, 640)), "confidence": ("uint8", (1, 512, 640))}


@pytest.mark.parametrize(
    ("version", "change", "problem"),
    [
        (1, None, "output image_index is not known"),
        (2, "image_index", "output image_index is missing"),
        (2, "batch", r"input rgb has the shape \[1, 'any', 'any', 3\], not \['any', 'any', 'any', 3\]"),
    ],
)
def test_a_manifest_that_promises_another_batch_is_refused(
    version: int, change: str | None, problem: str, tmp_path: Path
) -> None:
    model = batch_model()
    if change == "image_index":
        del model.graph.output[3]
    elif change == "batch":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    set_manifest(model, tiny_manifest(name="batch", format_version=version))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(ManifestError, match=problem):
        Student.load(tmp_path / "wrong.onnx", CPU)


# ------------------------------------------------------------------------------------------------ sharing


def test_the_same_file_with_the_same_settings_is_loaded_once_and_freed_with_its_last_user(tmp_path: Path) -> None:
    shared = SharedStudents()
    path = write_tiny_student(tmp_path / "tiny.onnx")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    one = shared.load(path, CPU)
    assert shared.load(path, CPU) is one
    assert shared.load(copy, CPU) is one  # what is in it counts, not its name
    assert shared.load(path, SessionSettings(providers=("cpu",), threads=1, rgb_size=(64, 48))) is one
    assert shared.load(path, SessionSettings(providers=("cpu",), threads=2)) is not one
    assert shared.load(write_tiny_student(tmp_path / "other.onnx", thermal=False), CPU) is not one
    assert len(shared._students) == 1  # the two others had no user
    del one
    assert len(shared._students) == 0


def test_a_file_that_was_replaced_is_loaded_anew(tmp_path: Path) -> None:
    shared = SharedStudents()
    before = shared.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    after = shared.load(write_tiny_student(tmp_path / "tiny.onnx", tasks=("detection",)), CPU)
    assert (before.manifest.tasks, after.manifest.tasks) == (("detection", "segmentation"), ("detection",))


def test_the_sizes_of_one_camera_are_not_those_of_another(tmp_path: Path) -> None:
    path, shared = write_batch_student(tmp_path / "batch.onnx"), SharedStudents()
    front = shared.load(path, replace(CPU, rgb_size=(320, 200)))
    rear = shared.load(path, CPU)
    assert rear is front
    assert rear.sizes == Student.load(path, CPU).sizes != ((320, 200), rear.sizes[1])


def test_two_cameras_that_start_at_once_load_one_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shared, stall, callers, made = (
        write_tiny_student(tmp_path / "tiny.onnx"),
        SharedStudents(),
        Stall(),
        Callers(),
        [],
    )

    def slow(*arguments: Any) -> Student:
        made.append(arguments)
        stall()
        return Student(*arguments)

    monkeypatch.setattr(sharing, "Student", slow)
    for name in ("front", "rear"):
        callers.start(name, lambda: shared.load(path, CPU))
        assert stall.begun.wait(TIMEOUT_S)
    threading.Event().wait(0.2)  # the other has come as far as it gets
    stall.go_on.set()
    callers.finish()
    assert len(made) == 1
    assert callers.outcomes["front"] is callers.outcomes["rear"]


def test_a_student_that_cannot_be_loaded_does_not_stand_in_the_way_of_another(tmp_path: Path) -> None:
    shared = SharedStudents()
    with pytest.raises(StudentError, match="cannot be read"):
        shared.load(tmp_path / "nothing.onnx", CPU)
    assert shared.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU).run(*pair(0, 200)).detections is not None
