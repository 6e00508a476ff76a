"""The soak: its sums on made-up figures, and two minutes for real."""

import itertools
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run through `make test`, or source .ci/env.sh")

from md_perception.ros.harness import Child, RunError, Sample, sample_of, wait_for
from md_perception.ros.soak import Growth, SoakOptions, main


def samples(number: int = 200, leak_mb: float = 0.0, threads: int = 0, files: int = 0) -> list[Sample]:
    """Return a sample a second of a process that takes 50 MB in its first 20 s and then leaks, per 10,000 frames.

    threads, files: that it has more of at the end.
    """
    made = []
    for second in range(number):
        frames = 30 * second
        memory = 100 + min(50.0, 2.5 * second) + leak_mb * frames / 1e4 + 0.3 * (second % 3)
        late = second > 0.9 * number
        made.append(Sample(second, frames, memory, memory + 80, 10 + threads * late, 30 + files * late))
    return made


@pytest.mark.parametrize("leak_mb", [0.0, 0.9, 25.0])
def test_the_slope_after_the_warm_up_is_what_leaks(leak_mb: float) -> None:
    growth = Growth.of(samples(leak_mb=leak_mb), warm_up_s=30)
    assert growth.slope_mb == pytest.approx(leak_mb, abs=0.1)
    assert growth.frames == 30 * 169
    assert (growth.threads, growth.files) == (0, 0)


def test_what_grows_is_told() -> None:
    growth = Growth.of(samples(leak_mb=2.0, threads=1, files=3), warm_up_s=30)
    assert growth.problems(limit_mb=20.0) == [
        "there are 1 more threads at the end than after the warm-up",
        "there are 3 more open files at the end than after the warm-up",
    ]
    assert "per 10,000 frames, the limit is 1" in growth.problems(limit_mb=1.0)[0]
    assert Growth.of(samples(), warm_up_s=30).problems(limit_mb=1.0) == []


def test_a_run_that_is_too_short_says_nothing_of_growth() -> None:
    with pytest.raises(RunError, match="only 5 samples after 195 s: make the run longer"):
        Growth.of(samples(), warm_up_s=195)


@pytest.mark.parametrize("arguments", [["--minutes", "nan"], ["--minutes", "0"], ["--rate", "0"], ["--size", "0", "9"]])
def test_options_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "--minutes, --rate and --size have to be above 0" in capsys.readouterr().err


def test_the_limit_is_that_of_the_length() -> None:
    assert SoakOptions(minutes=60).limit(100_000) == 1.0
    assert SoakOptions(minutes=2).limit(2_000) == 100.0  # 20 MB in all
    assert SoakOptions(minutes=2, limit_mb=5.0).limit(2_000) == 5.0
    assert (SoakOptions(minutes=60).warm, SoakOptions(minutes=2).warm) == (300.0, 30.0)


def test_a_process_is_looked_at() -> None:
    before = sample_of(os.getpid(), 1.0, 7)
    assert (before.seconds, before.frames) == (1.0, 7)
    assert before.threads >= 1
    assert before.memory_mb > 0
    held = b"x" * 50_000_000
    with open(os.devnull) as file:
        now = sample_of(os.getpid(), 2.0, 8)
        assert now.files == before.files + 1, file
    assert now.memory_mb - before.memory_mb > 40, len(held)
    with pytest.raises(RunError, match="cannot be looked at"):
        sample_of(2**30, 0.0, 0)


def test_a_shared_segment_counts_whole_when_it_is_mapped_and_not_as_it_fills() -> None:
    before = sample_of(os.getpid(), 0.0, 0).memory_mb
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(40_000_000)
        with mmap.mmap(file.fileno(), 0) as segment:
            mapped = sample_of(os.getpid(), 0.0, 0)
            segment[:20_000_000] = bytes(20_000_000)
            half_full = sample_of(os.getpid(), 0.0, 0)
    after = sample_of(os.getpid(), 0.0, 0).memory_mb
    assert mapped.memory_mb - before == pytest.approx(40, abs=2)
    assert half_full.memory_mb - mapped.memory_mb == pytest.approx(0, abs=2)
    assert half_full.resident_mb - mapped.resident_mb == pytest.approx(20, abs=2)
    assert after - before == pytest.approx(0, abs=2)


def test_a_process_that_is_stalled_does_nothing_for_so_long_and_goes_on(tmp_path: Path) -> None:
    program = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    program += "while True: print(time.monotonic()); time.sleep(0.01)"
    command = [sys.executable, "-uc", program]
    log = tmp_path / "log"
    with Child("clock", command, log, dict(os.environ)) as child:
        wait_for(lambda: log.stat().st_size > 0, 20.0, [child])
        thread = threading.Thread(target=child.stall, args=(0.5,))
        thread.start()
        time.sleep(0.3)
        state = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]
        thread.join()
        size = log.stat().st_size
        assert wait_for(lambda: log.stat().st_size > size, 20.0, [child])
    assert state == "T"  # stopped by a signal
    times = [float(line) for line in log.read_text().splitlines()[:-1]]  # the last may be cut
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) == pytest.approx(0.5, abs=0.2)


def test_the_node_is_stalled_in_the_first_half_of_the_warm_up() -> None:
    assert SoakOptions(minutes=60).stalls_s == [15, 30, 45, 60, 75, 90, 105, 120, 135, 150]
    assert SoakOptions(minutes=2).stalls_s == [1.5, 3, 4.5, 6, 7.5, 9, 10.5, 12, 13.5, 15]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_two_minutes_at_thirty_hertz_leak_nothing_and_count_every_image(students, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "md_perception.ros.soak", "--minutes", "2", "--out", str(tmp_path)]
    command += ["--student", str(students["fused"]), "--size", "320", "256"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accounting"]["in_bag"] > 2 * 60 * 30 * 0.9
    assert report["growth"]["slope_mb"] * report["growth"]["frames"] / 1e4 < 20
