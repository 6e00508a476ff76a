"""launch/md.launch.py on the real launch and launch_ros: it starts, configures and activates the node, and ends it."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lifecycle_msgs.msg import State
from vehicle import TIMEOUT_S, poll

pytest.importorskip("launch_ros", reason="launch and launch_ros are only in a ROS 2 installation, not among the wheels")

FILE = Path(__file__).parents[2] / "launch" / "md.launch.py"

# What `ros2 launch FILE NAME:=VALUE...` does, without ros2cli.
LAUNCH = """
import sys
from launch import LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(
    IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)
)
sys.exit(service.run())
"""


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that launches the file with arguments, as a process in a group of its own."""
    processes: list[subprocess.Popen[str]] = []

    def start(**arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(FILE), *(f"{name}:={value}" for name, value in arguments.items())],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def load_launch_file():
    spec = importlib.util.spec_from_file_location("md_launch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.mark.parametrize(
    ("environment", "profile"),
    [
        ({}, True),
        ({"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, True),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, False),
        ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/mine.xml"}, False),
        ({"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}, False),
        ({"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}, False),
    ],
)
def test_the_transport_is_set_unless_the_user_has_chosen_one(environment, profile):
    added = load_launch_file().node_environment(environment)
    assert ("FASTRTPS_DEFAULT_PROFILES_FILE" in added) == profile
    if profile:
        assert Path(added["FASTRTPS_DEFAULT_PROFILES_FILE"]).name == "fastdds.xml"
        assert Path(added["FASTRTPS_DEFAULT_PROFILES_FILE"]).exists()
    assert not environment.keys() & added.keys()
    assert added["MALLOC_MMAP_THRESHOLD_"] == "1073741824"
    assert "MALLOC_TOP_PAD_" not in load_launch_file().node_environment({"MALLOC_TOP_PAD_": "1"})
