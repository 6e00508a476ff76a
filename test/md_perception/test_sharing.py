"""One session for all nodes of a process: what counts as the same student, and when it is loaded and freed."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_student import write_batch_student
from callers import TIMEOUT_S, Callers, Stall
from tiny_student import write_tiny_student

from md_perception.inference import sharing
from md_perception.inference.session import SessionSettings, Student, StudentError
from md_perception.inference.sharing import SharedStudents

CPU = SessionSettings(providers=("cpu",), threads=1)


def test_the_same_file_with_the_same_settings_is_loaded_once_and_freed_with_its_last_user(tmp_path: Path) -> None:
    shared = SharedStudents()
    path = write_tiny_student(tmp_path / "tiny.onnx")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    one = shared.load(path, CPU)
    assert shared.load(path, CPU) is one
    assert shared.load(copy, CPU) is one  # what is in it counts, not its name
    assert shared.load(path, replace(CPU, rgb_size=(64, 48))) is one
    assert shared.load(path, replace(CPU, threads=2)) is not one
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
    assert rear.sizes == ((64, 48), (160, 120))  # of training


def test_two_cameras_that_start_at_once_load_one_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shared = write_tiny_student(tmp_path / "tiny.onnx"), SharedStudents()
    stall, callers, made = Stall(), Callers(), []

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
    assert shared.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU).warm_up((64, 48), (16, 12)) > 0
