"""Bound buffers, run on the CPU device: what is bound, what results are, and what happens where binding fails."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fixed_student import write_fixed_student
from tiny_student import write_tiny_student

from md_perception.inference import providers, session
from md_perception.inference.runners import BoundRunner, PlainRunner
from md_perception.inference.session import SessionSettings, Student, StudentError
from md_perception.inference.student_file import StudentFile
from md_perception.sensing.registration import sampling_matrix

CPU = SessionSettings(providers=("cpu",), threads=1)


def feeds(seed: int, size: tuple[int, int] = (64, 48)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "rgb": random.integers(0, 256, (1, size[1], size[0], 3), np.uint8),
        "thermal": random.integers(0, 256, (1, 12, 16), np.uint8),
        "rgb_to_thermal": sampling_matrix(size, (16, 12))[None],
    }


def opened(path: Path) -> tuple[onnxruntime.InferenceSession, StudentFile]:
    file = StudentFile.read(path)
    return providers.make_session(path, file.data, CPU), file


@pytest.mark.parametrize("fixed", [True, False])
def test_bound_results_are_those_of_a_plain_run_and_stay_what_they_are(fixed: bool, tmp_path: Path) -> None:
    opens = opened(write_fixed_student(tmp_path / "f.onnx") if fixed else write_tiny_student(tmp_path / "t.onnx"))
    plain = PlainRunner(opens[0], opens[1].output_names)
    bound = BoundRunner(opens[0], opens[1].output_names, opens[1].output_shapes({}), "cpu")

    first, second = bound(feeds(1)), bound(feeds(2))

    for found, seed in ((first, 1), (second, 2)):
        expected = plain(feeds(seed))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert not np.array_equal(first["mask"], second["mask"])


def test_fixed_buffers_stay_at_their_addresses_as_a_cuda_graph_needs(tmp_path: Path) -> None:
    opens = opened(write_fixed_student(tmp_path / "fixed.onnx"))
    runner = BoundRunner(opens[0], opens[1].output_names, opens[1].output_shapes({}), "cpu")
    runner(feeds(1))
    before = [value.data_ptr() for value in (*runner._inputs.values(), *runner._results.values())]
    assert len(before) == len(set(before)) == 8
    runner(feeds(2))
    assert [value.data_ptr() for value in (*runner._inputs.values(), *runner._results.values())] == before
    assert [value.data_ptr() for value in runner._binding.get_outputs()] == before[3:]  # the session wrote there


def test_bound_buffers_follow_another_size(tmp_path: Path) -> None:
    opens = opened(write_tiny_student(tmp_path / "tiny.onnx"))
    runner = BoundRunner(opens[0], opens[1].output_names, {}, "cpu")
    for size in ((64, 48), (32, 24), (64, 48)):
        found = runner(feeds(3, size))
        np.testing.assert_array_equal(found["mask"][0], np.where(feeds(3, size)["rgb"][0, ..., 0] > 127, 2, 0))


@pytest.mark.parametrize("binds", [True, False])
def test_cameras_that_share_a_student_get_their_own_results(
    binds: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if binds:
        request.getfixturevalue("bound_on_the_cpu")
    student = Student.load(write_fixed_student(tmp_path / "fixed.onnx"), CPU)
    assert isinstance(student._service.runner, BoundRunner) == binds

    def look(seed: int) -> bool:
        given = feeds(seed)
        output = student.run(given["rgb"][0], given["thermal"][0], given["rgb_to_thermal"][0])
        assert output.segmentation is not None
        return np.array_equal(output.segmentation.confidence, given["rgb"][0, ..., 1])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(look, range(100)))


def test_on_a_cpu_neither_images_nor_masks_are_copied(tmp_path: Path) -> None:
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    seen: dict[str, np.ndarray] = {}
    runner = student._service.runner

    def watched(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.update(given)
        results = runner(given)
        seen.update(results)
        return results

    student._service.runner = watched
    given = feeds(4)
    output = student.run(given["rgb"][0], given["thermal"][0], given["rgb_to_thermal"][0])
    assert np.shares_memory(seen["rgb"], given["rgb"])
    assert np.shares_memory(seen["thermal"], given["thermal"])
    assert output.segmentation is not None
    assert np.shares_memory(output.segmentation.mask, seen["mask"])


@pytest.mark.usefixtures("bound_on_the_cpu")
def test_a_student_that_fails_with_bound_buffers_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    student = Student.load(write_fixed_student(tmp_path / "fixed.onnx"), CPU)
    settings: list[SessionSettings] = []
    make = session.make_session

    def watched(path: Path, data: bytes, asked: SessionSettings, graph: providers.Graph) -> object:
        settings.append(asked)
        return make(path, data, asked, graph)

    def fail(self: BoundRunner, given: object) -> None:
        raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")

    monkeypatch.setattr(session, "make_session", watched)
    monkeypatch.setattr(BoundRunner, "__call__", fail)
    for seed in (1, 2):
        given = feeds(seed)
        output = student.run(given["rgb"][0], given["thermal"][0], given["rgb_to_thermal"][0])
        np.testing.assert_array_equal(output.segmentation.confidence, given["rgb"][0, ..., 1])
    assert [asked.cuda_graphs for asked in settings] == [False]
    assert caplog.text.count("goes on without them and without CUDA graphs: CUDA failure 900") == 1


@pytest.mark.usefixtures("bound_on_the_cpu")
def test_where_nothing_helps_one_attempt_is_made_and_each_frame_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    student = Student.load(write_fixed_student(tmp_path / "fixed.onnx"), CPU)
    attempts: list[object] = []

    def lost(*arguments: object) -> None:
        attempts.append(arguments)
        raise StudentError("the GPU has fallen off the bus")

    def fail(self: BoundRunner, given: object) -> None:
        raise RuntimeError("CUDA failure 719: unspecified launch failure")

    monkeypatch.setattr(session, "make_session", lost)
    monkeypatch.setattr(BoundRunner, "__call__", fail)
    given = feeds(1)
    for problem in ("fallen off the bus", "failed on CPUExecutionProvider: CUDA failure 719"):
        with pytest.raises(StudentError, match=problem):
            student.run(given["rgb"][0], given["thermal"][0], given["rgb_to_thermal"][0])
    assert len(attempts) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
