"""A student that takes batches: each camera gets what it would get alone, and what fails fails alone."""

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
from callers import TIMEOUT_S, Callers, Stall, waiting, without_collector
from tiny_student import set_manifest, tiny_manifest, write_tiny_student

from md_perception.inference import session
from md_perception.inference.batching import Batcher
from md_perception.inference.manifest import ManifestError
from md_perception.inference.runners import BoundRunner, PlainRunner
from md_perception.inference.session import SessionSettings, Student, StudentError
from md_perception.inference.student_file import StudentFile
from md_perception.results import StudentOutput

CPU = SessionSettings(providers=("cpu",), threads=1)
BATCHES = replace(CPU, max_batch=4)


def pair(seed: int, heat: int, size: tuple[int, int] = (37, 51)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB noise of this size, thermal of this level everywhere, a matrix of its own."""
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return rgb, np.full((7, 9), heat, np.uint8), np.diag([0.25 + seed / 100, 0.5, 1]).astype(np.float32)


def feeds_of(seed: int, heat: int) -> dict[str, np.ndarray]:
    """What the graph is given for this pair."""
    return {n: array[None] for n, array in zip(("rgb", "thermal", "rgb_to_thermal"), pair(seed, heat), strict=True)}


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
    assert student.max_batch == 1
    assert student.manifest.takes_batches == (file == "batch")
    student.run(*pair(0, 200))
    assert student.warm_up((64, 48), (16, 12)) > 0


@pytest.mark.usefixtures("bound_on_the_cpu")
def test_a_gpu_batches_by_itself_and_not_from_the_buffers_of_one_pair(tmp_path: Path) -> None:
    student = Student.load(write_batch_student(tmp_path / "batch.onnx"), CPU)
    assert student.max_batch == session.AUTO_BATCH
    expected = [student.run(*pair(seed, 200)) for seed in range(2)]  # bound
    split = student._run_batch(student._service, [feeds_of(seed, 200) for seed in range(2)])
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
    assert student.max_batch == 4


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
    with without_collector():
        assert all(isinstance(outcome, StudentError) for outcome in student._run_batch(student._service, batch))
        del batch
        assert all(one() is None for one in kept)


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
