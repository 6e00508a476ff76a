"""The command line: what it prints and leaves behind, its exit status, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_drives import THERMAL, write_drive
from tiny_student import write_tiny_student

from md_perception.bags.injection import Injection
from md_perception.evaluation.command import main


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_student(tmp_path_factory.mktemp("students") / "tiny.onnx")


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drive(tmp_path_factory.mktemp("drives") / "drive", 8, size=(96, 64), truth=True)


def test_a_drive_is_evaluated_with_gates_and_the_summary_says_what_became_of_its_images(
    drive: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(drive), "--student", str(student), "--out", str(tmp_path / "out"), "--quiet", "--workers", "2"]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main([*command, "--require", "recall_person>=1,p95_ms<=60000"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    said = capsys.readouterr().out
    assert "drive: 8 RGB images = 8 processed + 0 unpaired + 0 rejected" in said
    assert "met: recall_person>=1 (it is 1)" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["evaluation.json", "records", "report.html", "report.json", "results", "timing.json"]
    report = (tmp_path / "out/report.json").read_text()
    assert "_ms" not in report.replace("offset_ms", "")
    # A figure that is not reached; nothing is evaluated again.
    before = (tmp_path / "out/records/drive.times.jsonl").read_bytes()
    assert main([*command, "--require", "recall_person>1"]) == 3
    assert "NOT MET: recall_person>1 (it is 1)" in capsys.readouterr().out
    assert (tmp_path / "out/records/drive.times.jsonl").read_bytes() == before
    assert (tmp_path / "out/report.json").read_text() == report
    assert main([*command, "--require", "no_such_figure>1"]) == 2
    assert "there is no figure 'no_such_figure'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--require", "miss_rate"], 2, "is no requirement"),
        (["--require", ""], 2, "'' is no requirement"),  # a variable that a CI job forgot to set
        (["--simulate", "size=3"], 2, "begin with the camera"),
        (["-p", "health.timeout_s=1"], 2, "with a decimal point"),
        (["-p", "health.no_such=1.0"], 2, "there is no parameter health.no_such"),
        (["--baseline", "nobody"], 2, "the students are tiny"),
        (["--workers", "0"], 2, "0 is below 1"),
        (["--params", "missing.yaml"], 2, "missing.yaml cannot be read"),
        (["--providers", "gpu"], 1, "unknown execution providers ['gpu']: use one of"),
        (["--teacher", "missing.onnx"], 1, "missing.onnx cannot be read"),
        (["--thermal-topic", "/lwir"], 1, "no images on /lwir; it has /rgb/image_raw, /thermal/image_raw"),
        (["--truth", "missing"], 1, "missing"),
        (["-p", "thermal.encoding=centikelvin", "--require", "answered_share>0.5"], 3, "NOT MET: answered_share>0.5"),
    ],
)
def test_what_is_wrong_is_said_and_the_status_tells_what_kind_it_is(
    options: list[str],
    status: int,
    text: str,
    drive: Path,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(drive), "--student", str(student), "--out", str(tmp_path / "out"), "--quiet", *options]
    try:
        found = main(command)
    except SystemExit as error:  # argparse's
        found = error.code
    assert found == status
    said = capsys.readouterr()
    assert text in said.out + said.err
    if status != 3:
        assert not (tmp_path / "out/report.json").exists()


def test_without_a_student_a_parameter_names_it(
    drive: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(drive), "--out", str(tmp_path / "out")])
    assert "say which student" in capsys.readouterr().err
    params = tmp_path / "params.yaml"
    params.write_text(f"/**:\n  ros__parameters:\n    student:\n      file: {student}\n")
    assert main([str(drive), "--out", str(tmp_path / "out"), "--params", str(params), "--quiet"]) == 0


def test_a_sweep_leaves_an_evaluation_for_each_size_and_one_page(drive: Path, student: Path, tmp_path: Path) -> None:
    command = [str(drive), "--student", str(student), "--out", str(tmp_path / "out"), "--quiet", "--no-result-bag"]
    assert main([*command, "--sweep", "thermal=16x12,8x8"]) == 0
    figures = json.loads((tmp_path / "out/sweep.json").read_text())
    assert list(figures) == ["16x12", "8x8"]
    assert figures["8x8"]["tiny"]["frames"] == 8
    for size in figures:
        assert (tmp_path / "out" / size / "report.json").exists()
    assert (tmp_path / "out/report.html").exists()


def test_ctrl_c_leaves_a_folder_that_the_same_command_completes(student: Path, tmp_path: Path) -> None:
    faults = [Injection("drop", THERMAL, 1.0, 2.0, 1.0)]
    drive = write_drive(tmp_path / "drive", 150, size=(160, 120), faults=faults)
    command = [
        sys.executable,
        "-m",
        "md_perception.evaluation",
        str(drive),
        "--student",
        str(student),
        "--workers",
        "1",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    with subprocess.Popen(
        [*command, "--out", str(out)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        stored = out / "records/drive.jsonl"
        end = time.monotonic() + 60
        while not (stored.exists() and stored.stat().st_size) and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    done = len(stored.read_text().splitlines())
    assert 0 < done < 150
    assert not (out / "report.json").exists()
    for folder in (out, tmp_path / "at once"):
        assert main([*command[3:], "--out", str(folder), "--quiet"]) == 0
    for name in ("report.json", "records/drive.jsonl", "results/drive/drive.mcap"):
        assert (out / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()
