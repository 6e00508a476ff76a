"""A launch file as a process of its own: what `ros2 launch FILE NAME:=VALUE...` does, without ros2cli."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_LAUNCH = """
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


@contextlib.contextmanager
def launches(file: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that launches the file with arguments, each time in a process group of its own, which is killed
    at the end; its output is one stream.
    """
    processes: list[subprocess.Popen[str]] = []

    def start(**arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(file), *(f"{name}:={value}" for name, value in arguments.items())],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
