"""launch/md.launch.py on the real launch and launch_ros: it starts, configures and activates the node, and ends it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from launch_process import launches
from lifecycle_msgs.msg import State
from rcl_interfaces.srv import GetParameters
from vehicle import TIMEOUT_S, poll

from md_perception.calibrate import Result
from md_perception.msg import PerceptionStatus
from md_perception.ros.node import NODE_NAME
from md_perception.sensing.alignment import Alignment, Delay, Fit

pytest.importorskip("launch_ros", reason="launch and launch_ros are only in a ROS 2 installation, not among the wheels")

FILE = Path(__file__).parents[2] / "launch" / "md.launch.py"


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that launches the file with arguments, as a process in a group of its own."""
    with launches(FILE) as start:
        yield start


def calibrated(homography: np.ndarray, sizes: tuple[int, int, int, int], delay_s: float) -> Result:
    """Return a result of md_calibrate."""
    return Result(
        alignment=Alignment(Fit(homography, 0.3, 0.1, points=35, frames=40, coverage=0.9), Delay(delay_s, 0.003)),
        homography=homography,
        sizes=sizes,
        method="edges",
        likeness=(0.1, 0.4),
        picture=np.zeros((1, 1, 3), np.uint8),
    )


def test_it_starts_configures_and_activates_the_node_and_ends_it(launch, vehicle, students):
    process = launch(
        student=students["fused"],
        rgb_topic="/cam/image_raw",
        thermal_topic="/boson/image_raw",
        thermal_transport="compressed",
    )
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_ACTIVE, "the active state")
    assert vehicle.node.count_subscribers("/cam/image_raw") == 1
    assert vehicle.node.count_subscribers("/boson/image_raw/compressed") == 1
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "process has finished cleanly" in output
    assert "Traceback" not in output
    poll(lambda: vehicle.node.count_subscribers("/cam/image_raw") == 0, "the end of the node")


def test_it_says_when_the_node_could_not_be_configured(launch, vehicle):
    process = launch(student="/nowhere.onnx", namespace="car")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "could not be configured" in line:
            break
    output = "".join(lines)
    assert "md_perception could not be configured; the node's log above says why" in output
    assert "student /nowhere.onnx cannot be read" in output
    assert ("md_perception", "/car") in vehicle.node.get_node_names_and_namespaces()


FAILS_AT_FIRST = """
from md_perception.pipeline import Pipeline

infer, calls = Pipeline.infer, []

def failing(self, work):
    calls.append(work)
    return infer(self, work) if len(calls) > 3 else 1 / 0

Pipeline.infer = failing
"""


def test_a_node_that_has_failed_is_configured_and_activated_again(launch, vehicle, students, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAILS_AT_FIRST)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("/**: {ros__parameters: {health.failures_in_a_row: 3}}")
    process = launch(student=students["fused"], params_file=parameters, restart_after="0.5")
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_ACTIVE, "the active state")
    for topic in ("/thermal/image_raw", "/rgb/image_raw"):
        vehicle.camera(topic)

    def served() -> bool:
        vehicle.send_pair(vehicle.now_ns(), matched=False)
        time.sleep(0.04)
        return any(status.mode == PerceptionStatus.MODE_FUSED for status in vehicle.statuses)

    poll(served, "a result after the failures")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert "3 frames in a row gave no result; the last: ZeroDivisionError" in output
    assert "md_perception has failed; its log above says why" in output


def test_an_argument_that_is_no_time_is_refused(launch):
    output, _ = launch(restart_after="soon").communicate(timeout=TIMEOUT_S)
    assert "restart_after:=soon: it is a number of seconds, 0 for never" in output
    assert "process started" not in output


def test_the_calibration_and_the_enclave_reach_the_node(launch, vehicle, students, tmp_path):
    calibration = tmp_path / "calibration.yaml"
    shift = np.array([[0.25, 0.0, 3.0], [0.0, 0.25, -2.0], [0.0, 0.0, 1.0]])
    calibration.write_text(calibrated(shift, (640, 512, 160, 128), delay_s=0.042).yaml("a bag"))
    launch(student=students["fused"], calibration=calibration, enclave="/vehicle/eyes", use_sim_time="false")
    poll(lambda: vehicle.state() == State.PRIMARY_STATE_ACTIVE, "the active state")
    assert (NODE_NAME, "/", "/vehicle/eyes") in vehicle.node.get_node_names_and_namespaces_with_enclaves()
    names = ["registration.homography", "registration.sizes", "pairing.offset_s", "pairing.tolerance_s", "student.file"]
    answer = vehicle.call(GetParameters, f"/{NODE_NAME}/get_parameters", GetParameters.Request(names=names))
    homography, sizes, offset, tolerance, student = answer.values
    assert list(homography.double_array_value) == pytest.approx(shift.reshape(-1).tolist())
    assert list(sizes.integer_array_value) == [640, 512, 160, 128]
    assert offset.double_value == pytest.approx(-0.042)
    assert tolerance.double_value == 0.06  # of the parameter file, which holds beside it
    assert student.string_value == str(students["fused"])  # an argument of the launch file comes last


def test_a_raw_mask_on_a_topic_of_autoware_is_refused(launch):
    topic = "/perception/object_recognition/detection/mask0"
    output, _ = launch(mask_topic=topic, mask_encoding="raw").communicate(timeout=TIMEOUT_S)
    assert f"a raw mask must not go out on {topic}: Autoware reads run lengths there" in output
    assert "process started" not in output


@pytest.mark.parametrize("argument", ["calibration", "params_file"])
def test_a_parameter_file_that_is_not_there_is_refused(launch, argument):
    # launch_ros would only warn, and the node would run without it: with a matrix that nobody gave.
    output, _ = launch(**{argument: "/nowhere.yaml"}).communicate(timeout=TIMEOUT_S)
    assert f"{argument}:=/nowhere.yaml: there is no such file; give the path of a parameter file" in output
    assert "process started" not in output
