"""A launch file as a process of its own: what `ros2 launch FILE NAME:=VALUE...` does, without ros2cli."""

import subprocess
import sys
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


def start_launch(file: Path, **arguments: object) -> subprocess.Popen[str]:
    """Launch the file with arguments, in a process group of its own; its output is one stream."""
    return subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(file), *(f"{name}:={value}" for name, value in arguments.items())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
