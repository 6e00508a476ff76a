"""Play a bag to the md_perception node in its own time, and record what the node makes of it.

    ros2 launch md_perception replay.launch.py bag:=drive student:=student.onnx record:=results

All arguments of md.launch.py can be given, too. The node runs on /clock; the bag begins when the node is active (with
autostart:=false: when a lifecycle manager has activated it) and, when it has ended, so does everything here. Unlike in
md_evaluate, all is as on the vehicle: a slow student drops images, and /md_perception/status tells how many.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.event_handlers import OnStateTransition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

ARGUMENTS = (
    DeclareLaunchArgument("bag", description="folder or file of a rosbag2"),
    DeclareLaunchArgument("rate", default_value="1.0", description="seconds of the bag in one second"),
    DeclareLaunchArgument("clock", default_value="100.0", description="ticks of /clock a second"),
    DeclareLaunchArgument(
        "loop", default_value="false", choices=["true", "false"], description="begin again at the end, until Ctrl-C"
    ),
    DeclareLaunchArgument(
        "play_topics", default_value="", description="topics of the bag to play, with blanks between them; empty: all"
    ),
    DeclareLaunchArgument(
        "record", default_value="", description="bag to write what the node publishes into; empty: nothing is recorded"
    ),
    DeclareLaunchArgument(
        "record_topics",
        default_value="",
        description="topics to record instead of detections, status and masks; absolute names with blanks between",
    ),
    DeclareLaunchArgument(
        "tools",
        default_value="auto",
        choices=["auto", "ros2bag", "md_bag"],
        description="ros2bag: `ros2 bag play` and `record`; md_bag: those of this package; auto: ros2bag where ros2 is",
    ),
    DeclareLaunchArgument(
        "delay",
        default_value="2.0",
        description="seconds from the activation of the node to the bag, in which the recorder starts",
    ),
    DeclareLaunchArgument(
        "settle", default_value="1.0", description="seconds from the end of the bag to that of the node and recorder"
    ),
    DeclareLaunchArgument(
        "shutdown",
        default_value="true",
        choices=["true", "false"],
        description="end everything when the bag has ended; false: the node stays, for RViz",
    ),
)

RESULTS = ("detections", "status")
"""Topics below the name of the node."""

MASKS = ("confidence", "label_info")
"""Topics beside the mask, below segmentation/, or autoware/ where it is encoded for Autoware."""


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return player, recorder and what ties them to the node, for the arguments at hand."""
    value = context.launch_configurations
    bag, record = Path(value["bag"]), value["record"]
    if not bag.exists():
        raise RuntimeError(f"bag:={bag}: there is no such bag; give the path of a rosbag2")
    if record and Path(record).exists():
        raise RuntimeError(f"record:={record} is there already: remove it, or record into another bag")
    ros2 = value["tools"] == "ros2bag" or (value["tools"] == "auto" and shutil.which("ros2") is not None)
    player = ExecuteProcess(cmd=play_command(value, ros2), name="player", output="screen")

    def ended(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if context.is_shutdown:  # by Ctrl-C
            return []
        if event.returncode != 0:
            raise RuntimeError(f"the bag was not played to its end (exit status {event.returncode}), see above")
        if value["shutdown"] != "true":
            return [LogInfo(msg="the bag has ended; Ctrl-C ends the node")]
        return [
            TimerAction(period=float(value["settle"]), actions=[EmitEvent(event=Shutdown(reason="the bag has ended"))])
        ]

    actions: list[LaunchDescriptionEntity] = [
        # Not before, or the node would miss the beginning: it loads its student first.
        RegisterEventHandler(
            OnStateTransition(
                goal_state="active",
                entities=[TimerAction(period=float(value["delay"]), actions=[player])],
                handle_once=True,
            )
        ),
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=ended)),
    ]
    if record:
        actions.append(ExecuteProcess(cmd=record_command(value, ros2), name="recorder", output="screen"))
    return actions


def play_command(value: dict[str, str], ros2: bool) -> list[str]:
    """Return the command that plays the bag."""
    topics = value["play_topics"].split()
    command = ["ros2", "bag", "play"] if ros2 else [_python(), "-m", "md_perception.bags", "play"]
    command += [value["bag"], "--rate", value["rate"], "--clock", value["clock"]]
    if value["loop"] == "true":
        command.append("--loop")
    if topics:
        command += ["--topics", *topics]
    # What is published before publishers and subscribers know each other is lost.
    return [*command, "--delay", "1"] if ros2 else [*command, "--wait-for-subscribers", "30"]


def record_command(value: dict[str, str], ros2: bool) -> list[str]:
    """Return the command that records what the node publishes, on the clock of the bag."""
    topics = value["record_topics"].split() or result_topics(value)
    if ros2:
        return ["ros2", "bag", "record", "--use-sim-time", "--output", value["record"], *topics]
    recorder = [_python(), "-m", "md_perception.ros.recorder", "--use-sim-time", "--out", value["record"]]
    return [*recorder, *topics]


def _python() -> str:
    """Return the interpreter that has this package's tools: `ros2` itself may run outside the virtual environment."""
    return sys.executable if find_spec("rosbags") else "python3"


def result_topics(value: dict[str, str]) -> list[str]:
    """Return the absolute names of what the node publishes with these arguments of md.launch.py.

    Without what only a parameter file switches on: objects for Autoware, obstacles, another encoding of the mask.
    """
    namespace = "/" + value.get("namespace", "").strip("/")
    root = namespace.rstrip("/")
    autoware = value.get("mask_encoding") == "autoware_rle"
    space = "autoware" if autoware else "segmentation"
    mask = value.get("mask_topic") or f"{space}/mask"
    return [
        *(f"{root}/md_perception/{name}" for name in RESULTS),
        mask if mask.startswith("/") else f"{root}/{mask}",
        *(f"{root}/{space}/{name}" for name in MASKS),
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).with_name("md.launch.py"))),
        launch_arguments=[("use_sim_time", "true")],
    )
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start), node])
