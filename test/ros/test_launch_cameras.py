"""launch/cameras.launch.py on the real launch and launch_ros: several nodes in one process, each active by itself."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_process import launches
from lifecycle_msgs.msg import State
from rcl_interfaces.srv import GetParameters
from vehicle import TIMEOUT_S, Vehicle, poll

pytest.importorskip("launch_ros", reason="launch and launch_ros are only in a ROS 2 installation, not among the wheels")

FILE = Path(__file__).parents[2] / "launch" / "cameras.launch.py"


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that launches the file with arguments, as a process in a group of its own."""
    with launches(FILE) as start:
        yield start


def test_it_starts_and_activates_the_nodes_of_all_cameras_in_one_process_and_ends_them(
    launch, context, students, tmp_path
):
    file = tmp_path / "cameras.yaml"
    file.write_text("/robot/rear/md_perception:\n  ros__parameters:\n    score_threshold: 0.75\n")
    sides = [Vehicle(context, f"/robot/{name}") for name in ("front", "rear")]
    try:
        process = launch(
            cameras="front,rear",
            namespace="robot",
            params_file=file,
            student=students["fused"],
            rgb_topic="/{camera}_camera/image_raw",
            thermal_topic="boson/image_raw",
        )
        thresholds = []
        for side, name in zip(sides, ("front", "rear"), strict=True):
            poll(lambda side=side: side.state() == State.PRIMARY_STATE_ACTIVE, f"the active state of {name}")
            assert side.node.count_subscribers(f"/{name}_camera/image_raw") == 1
            assert side.node.count_subscribers(f"/robot/{name}/boson/image_raw") == 1
            request = GetParameters.Request(names=["score_threshold", "student.file"])
            answer = side.call(GetParameters, f"{side.namespace}/md_perception/get_parameters", request)
            thresholds.append(answer.values[0].double_value)
            assert answer.values[1].string_value == str(students["fused"])
        assert thresholds == [0.3, 0.75]
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, output
        assert output.count("process started with pid") == 1
        assert "process has finished cleanly" in output
        assert "Traceback" not in output
    finally:
        for side in sides:
            side.stop()


def test_a_parameter_file_that_is_not_there_is_refused(launch):
    output, _ = launch(cameras="front", params_file="/nowhere.yaml").communicate(timeout=TIMEOUT_S)
    assert "params_file:=/nowhere.yaml: there is no such file; give the path of a parameter file" in output
    assert "process started" not in output


@pytest.mark.parametrize("cameras", ["front,rear,", "front,/front/", ","])
def test_cameras_without_a_name_of_their_own_are_refused(launch, cameras):
    output, _ = launch(cameras=cameras).communicate(timeout=TIMEOUT_S)
    assert f"cameras:={cameras}: a name is empty or occurs twice; give each camera one, as in front,rear" in output
    assert "process started" not in output
