"""The node as a process of its own: autostart, signals, exit codes, and its end when its parent goes."""

import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import rcl_interfaces.msg as rcl_interfaces
from lifecycle_msgs.msg import State, Transition
from rcl_interfaces.srv import SetParameters
from vehicle import TIMEOUT_S, poll, soon_s

from md_perception.msg import PerceptionStatus

COMMAND = [sys.executable, "-m", "md_perception.ros.node", "--ros-args"]


@pytest.fixture
def run(students) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts the node as a process; it ends with the test whatever happens."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, prelude: str = "", **options: object) -> subprocess.Popen[str]:
        student = ["-p", f"student.file:={students['fused']}"]
        command = COMMAND
        if prelude:  # Python that runs in the process before its main function
            script = f"import sys, time\nimport md_perception.ros.node as node\n{prelude}\nsys.exit(node.main())"
            command = [sys.executable, "-c", script, "--ros-args"]
        process = subprocess.Popen(
            [*command, *student, *arguments],
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


def shared_memory(process: subprocess.Popen[str] | None = None) -> set[str]:
    """Return the files of the middleware's shared memory, all or those that a process holds, its own or others'."""
    if process is None:
        return set(glob.glob("/dev/shm/fastrtps*"))
    with open(f"/proc/{process.pid}/maps") as file:
        return {name for line in file if (name := line.split()[-1]).startswith("/dev/shm/fastrtps")}


def left_behind(held: set[str]) -> list[str]:
    """Return what is still there of a process that has ended; a port goes with the last process that uses it."""
    with open("/proc/self/maps") as file:
        ours = {line.split()[-1] for line in file}
    return [name for name in held if os.path.exists(name) and not ("_port" in name and name in ours)]


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read its output up to a line with a text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"{text!r} did not come:\n{''.join(lines)}")


def end_of(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for its end with this exit status and without a traceback; return the rest of its output."""
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def end_by(number: int, process: subprocess.Popen[str], others: set[str], within_s: float) -> str:
    """Send it a signal; return its output, once it has ended in time and left nothing in the shared memory.

    others: files of the shared memory that were there before it.
    """
    held = shared_memory(process) - others
    assert held
    begin = time.monotonic()
    process.send_signal(number)
    output = end_of(process)
    assert time.monotonic() - begin < within_s
    assert left_behind(held) == []
    return output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_configure_in_progress_at_once_and_leaves_no_shared_memory_behind(run, number):
    """A student that loads for minutes, as TensorRT's first start does."""
    others = shared_memory()
    process = run("-p", "autostart:=true", prelude="node.Student.load = lambda *_: time.sleep(60)")
    read_until(process, "loading student")
    assert "not configured: the node is asked to end" in end_by(number, process, others, soon_s())


def test_a_signal_ends_a_node_whose_frame_in_work_does_not_end(run, vehicle):
    prelude = (
        "from md_perception.pipeline import Pipeline\n"
        "Pipeline.infer = lambda *_: print('stuck', flush=True) or time.sleep(60)"
    )
    others = shared_memory()
    process = run("-p", "autostart:=true", prelude=prelude)
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_ACTIVE, "the active state")
    vehicle.send_pair(vehicle.now_ns())
    read_until(process, "stuck")
    output = end_by(signal.SIGTERM, process, others, 1.0 + soon_s())  # of these, 1.5 s are for the frame
    assert "the frame in work did not end in time" in output


def test_a_callback_that_fails_does_not_end_the_node(run, vehicle):
    """rclpy's own parameter service stumbles over a type that it does not know."""
    process = run()
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED, "its answer")
    client = vehicle.node.create_client(SetParameters, "/md_perception/set_parameters")
    assert client.wait_for_service(TIMEOUT_S)
    odd = rcl_interfaces.Parameter(name="score_threshold", value=rcl_interfaces.ParameterValue(type=42))
    time.sleep(0.5)  # nothing tells when its server has found our client
    client.call_async(SetParameters.Request(parameters=[odd]))
    read_until(process, "a callback failed; the node goes on")
    assert vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED
    (result,) = vehicle.set_parameters(score_threshold=0.5)
    assert result.successful
    process.send_signal(signal.SIGINT)
    end_of(process)


def test_failures_in_a_row_end_an_autostarted_node_with_exit_code_1(run, vehicle):
    prelude = "node.Pipeline.infer = lambda *_: 1 / 0"
    process = run("-p", "autostart:=true", "-p", "health.failures_in_a_row:=3", prelude=prelude)
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_ACTIVE, "the active state")
    for topic in ("/thermal/image_raw", "/rgb/image_raw"):
        vehicle.camera(topic)
    while process.poll() is None:
        vehicle.send_pair(vehicle.now_ns(), matched=False)
        time.sleep(0.04)
    output, _ = process.communicate(timeout=TIMEOUT_S)  # with the traceback of a frame, which is told
    assert process.returncode == 1, output
    assert "failed, and unconfigured now: 3 frames in a row gave no result" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_autostarted_node_under_load_cleanly_and_soon(run, vehicle, number):
    others = shared_memory()
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
    end_by(number, process, others, soon_s())
    # Its last word accounts for every frame that it received; a stale status from before the first may be there, too.
    last = poll(
        lambda: next(
            (s for s in vehicle.statuses if s.mode == PerceptionStatus.MODE_STALE and s.received_rgb > 3), None
        ),
        "the last status",
    )
    assert last.received_rgb == last.processed + last.dropped + last.unpaired_rgb + last.rejected
    poll(lambda: vehicle.node.count_publishers("/md_perception/detections") == 0, "the end of its publishers")


def test_a_signal_ends_a_node_cleanly_that_was_shut_down_through_its_lifecycle(run, vehicle):
    process = run()
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED, "its answer")
    assert vehicle.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert vehicle.state() == State.PRIMARY_STATE_FINALIZED
    process.send_signal(signal.SIGINT)
    end_of(process)


def test_autostart_that_fails_ends_with_exit_code_1_and_the_reason(run):
    process = run("-p", "autostart:=true", "-p", "student.visible_file:=/nowhere.onnx")
    assert "not configured: student /nowhere.onnx cannot be read" in end_of(process, code=1)


def test_a_parameter_of_the_wrong_type_ends_with_exit_code_1_and_the_reason(run):
    process = run("-p", "score_threshold:=high")
    output = end_of(process, code=1)
    assert "not started" in output
    assert "score_threshold" in output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("-r", "nonsense"), "Couldn't parse remap rule: '-r nonsense'"),
        (("--enclave", "vehicle"), "Enclave name is not valid: 'context name must be absolute"),
        (("--bogus",), "after --ros-args there is no ['--bogus']"),
    ],
)
def test_arguments_that_are_none_end_with_exit_code_1_and_the_reason(run, arguments, problem):
    assert f"not started: {problem}" in end_of(run(*arguments), code=1).replace("failed to initialize rcl: ", "")


def test_an_integer_for_a_number_is_refused_at_the_start_with_the_cure(run):
    process = run("-p", "pairing.tolerance_s:=1")
    output = end_of(process, code=1)
    assert "pairing.tolerance_s" in output
    assert "write the number with a decimal point (1.0 for 1)" in output


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
