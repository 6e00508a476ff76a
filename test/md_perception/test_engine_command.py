"""`python -m md_perception.inference`: what it prints of a file, and what it says where there is nothing to build."""

import json
from pathlib import Path

import pytest
from fixed_student import write_fixed_student
from tiny_student import write_tiny_student

from md_perception.inference import tune
from md_perception.inference.command import main
from md_perception.inference.student_file import StudentFile


def test_show_prints_the_file_its_tensors_and_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    head, _, manifest = shown.partition("\n{")
    assert head.startswith(f"{path}: {path.stat().st_size} bytes, SHA-256 ")
    assert "input rgb: uint8 [1, 48, 64, 3]" in head
    assert "output boxes: float32 [5, 4]" in head
    assert json.loads("{" + manifest)["camera_size"] == [640, 480]


def test_build_on_a_cpu_says_that_there_is_nothing_to_build(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_tiny_student(tmp_path / "tiny.onnx")
    arguments = ["--size", "32x24", "--thermal", "16x12", "--providers", "cpu", "--rounds", "3"]
    assert main(["build", str(path), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "tiny (fp32, RGB 32x24, thermal 16x12) on CPUExecutionProvider" in shown
    assert "(median of 3, p99 " in shown
    assert "there is nothing to build for CPUExecutionProvider" in shown
    assert sorted(tmp_path.iterdir()) == [path]


def test_build_names_what_was_passed_over_and_takes_the_sizes_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "md_perception.inference.providers.why_unavailable",
        lambda provider: "the NVIDIA driver finds no GPU" if provider.startswith("Tensorrt") else None,
    )
    path = write_tiny_student(tmp_path / "thermal.onnx", rgb=False)
    assert main(["build", str(path), "--providers", "tensorrt,cpu", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "not used: TensorrtExecutionProvider: the NVIDIA driver finds no GPU" in shown
    assert "tiny (fp32, thermal 160x120) on CPUExecutionProvider" in shown
    assert main(["build", str(path), "--providers", "tensorrt"]) == 1
    assert "md_engine: student" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "640"],
        ["--size", "0x480"],
        ["--size", "axb"],
        ["--size", "64x99999"],
        ["--providers", "gpu"],
        ["--rounds", "0"],
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        main(["build", "x.onnx", *arguments])
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_file_that_is_none_is_refused_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for command in ("show", "build", "tune"):
        assert main([command, str(tmp_path / "none.onnx")]) == 1
        assert "none.onnx cannot be read: No such file" in capsys.readouterr().err


def test_tune_compares_every_option_with_what_is_used(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_tiny_student(tmp_path / "tiny.onnx")
    assert main(["tune", str(path), "--rounds", "2", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines[1:]] == list(tune.NAMES)
    assert lines[1].split()[-2:] == ["1.000", "1.000"]


def test_tune_compares_ways_to_share_a_student(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    assert main(["tune", str(path), "--rounds", "2", "--cameras", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines[1:4]] == [
        "one after the other",
        "the same, again",
        "one session, at once",
    ]
    with pytest.raises(ValueError, match="rounds must be 1 or more"):
        tune.compare(StudentFile.read(path), None, None, 1, 0)
