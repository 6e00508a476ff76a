"""The node as a process of its own: autostart, signals, exit codes, and its end when its parent goes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from lifecycle_msgs.msg import State, Transition
from vehicle import TIMEOUT_S, poll, soon_s

from md_perception.msg import PerceptionStatus

COMMAND = [sys.executable, "-m", "md_perception.ros.node", "--ros-args"]


@pytest.fixture
def run(students) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts the node as a process; it ends with the test whatever happens."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
        student = ["-p", f"student.file:={students['fused']}"]
        process = subprocess.Popen(
            [*COMMAND, *student, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_autostarted_node_under_load_cleanly_and_soon(run, vehicle, number):
    process = run("-p", "autostart:=true")
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_ACTIVE, "the active state")
    vehicle.camera("/thermal/image_raw")
    vehicle.camera("/rgb/image_raw")
    start = vehicle.now_ns()
    sent = 0

    def flowing() -> bool:
        nonlocal sent
        vehicle.send_pair(start + sent * 10_000_000)
        sent += 1
        return any(status.processed > 3 for status in vehicle.statuses)

    poll(flowing, "results")
    begin = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert time.monotonic() - begin < soon_s()
    assert process.returncode == 0, output
    assert "Traceback" not in output
    # Its last word accounts for every frame that it received.
    last = poll(
        lambda: next((s for s in reversed(vehicle.statuses) if s.mode == PerceptionStatus.MODE_STALE), None),
        "the last status",
    )
    assert last.received_rgb > 3
    assert last.received_rgb == last.processed + last.dropped + last.unpaired_rgb + last.rejected
    poll(lambda: vehicle.node.count_publishers("/md_perception/detections") == 0, "the end of its publishers")


def test_a_signal_ends_a_node_cleanly_that_was_shut_down_through_its_lifecycle(run, vehicle):
    process = run()
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED, "its answer")
    assert vehicle.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert vehicle.state() == State.PRIMARY_STATE_FINALIZED
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_autostart_that_fails_ends_with_exit_code_1_and_the_reason(run):
    process = run("-p", "autostart:=true", "-p", "student.visible_file:=/nowhere.onnx")
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "not configured: student /nowhere.onnx cannot be read" in output
    assert "Traceback" not in output


def test_a_parameter_of_the_wrong_type_ends_with_exit_code_1_and_the_reason(run):
    process = run("-p", "score_threshold:=high")
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "not started" in output
    assert "score_threshold" in output
    assert "Traceback" not in output


def test_the_node_ends_when_its_parent_goes_if_asked_to(students, vehicle):
    """A launch that is killed leaves its nodes behind: the launch file asks ours to notice."""
    node = " ".join([*COMMAND, "-p", f"student.file:={students['fused']}"])
    script = f"MD_PERCEPTION_PARENT=$$ {node} >/dev/null 2>&1 & echo $!; wait"
    parent = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        poll(lambda: os.path.exists(f"/proc/{child}"), "the node")
        poll(lambda: vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED, "its answer")
        parent.kill()
        parent.communicate()
        poll(lambda: not _runs(child), "the end of the node")
    finally:
        if _runs(child):
            os.kill(child, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
