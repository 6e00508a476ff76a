"""Start the md_perception node and, with `autostart`, bring it to the active state through lifecycle events.

    ros2 launch md_perception md.launch.py rgb_topic:=/camera/image_raw thermal_topic:=/boson/image_raw

An argument left empty leaves the matter to the parameter file.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

SHARE = Path(get_package_share_directory("md_perception"))

ARGUMENTS = (
    DeclareLaunchArgument("rgb_topic", default_value="rgb/image_raw", description="RGB images; without /compressed"),
    DeclareLaunchArgument(
        "thermal_topic", default_value="thermal/image_raw", description="thermal images; without /compressed"
    ),
    DeclareLaunchArgument(
        "rgb_transport",
        default_value="",
        choices=["", "raw", "compressed"],
        description="compressed: subscribe to <rgb_topic>/compressed",
    ),
    DeclareLaunchArgument(
        "thermal_transport",
        default_value="",
        choices=["", "raw", "compressed"],
        description="compressed: subscribe to <thermal_topic>/compressed",
    ),
    DeclareLaunchArgument(
        "params_file", default_value=str(SHARE / "config" / "md.yaml"), description="parameters of the node"
    ),
    DeclareLaunchArgument("student", default_value="", description="student file (.onnx) for RGB and thermal"),
    DeclareLaunchArgument("visible_student", default_value="", description="student file (.onnx) for RGB alone"),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="least severity that the node logs",
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="",
        choices=["", "true", "false"],
        description="true: time comes from /clock, for bags",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=["true", "false"],
        description="configure and activate the node; false leaves that to a lifecycle manager",
    ),
)


def node_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the node's environment needs on top of the given one.

    The stock Fast DDS transport loses camera images above about 0.5 MB without a word, so the node gets the profile
    of this package, unless the user has chosen a transport or another middleware. And glibc maps and unmaps the
    memory of every image unless told not to, which doubles latency and CPU.
    """
    added = {
        "MALLOC_MMAP_THRESHOLD_": "1073741824",
        "MALLOC_TRIM_THRESHOLD_": "1073741824",
        "MALLOC_TOP_PAD_": "67108864",
    }
    added = {name: value for name, value in added.items() if name not in environment}
    fast_dds = environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp").startswith("rmw_fastrtps")
    chosen = {"FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS"}
    if fast_dds and not chosen & environment.keys():
        added["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(SHARE / "config" / "fastdds.xml")
    added["MD_PERCEPTION_PARENT"] = str(os.getpid())  # a launch that gets SIGTERM leaves its nodes behind; ours notices
    return added


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the node and its lifecycle events, for the arguments at hand."""
    value = context.launch_configurations
    overrides: dict[str, str | bool] = {
        parameter: value[argument]
        for argument, parameter in (
            ("student", "student.file"),
            ("visible_student", "student.visible_file"),
            ("rgb_transport", "rgb.transport"),
            ("thermal_transport", "thermal.transport"),
        )
        if value[argument]
    }
    if value["use_sim_time"]:
        overrides["use_sim_time"] = value["use_sim_time"] == "true"
    node = LifecycleNode(
        package="md_perception",
        executable="md_perception",
        name="md_perception",
        namespace=value["namespace"],
        output="screen",
        parameters=[value["params_file"], overrides],
        remappings=[
            (f"{camera}/image_raw{suffix}", f"{value[f'{camera}_topic']}{suffix}")
            for camera in ("rgb", "thermal")
            for suffix in ("", "/compressed")
        ],
        ros_arguments=["--log-level", value["log_level"]],
        additional_env=node_environment(context.environment),
    )
    if value["autostart"] != "true":
        return [node]

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    return [
        # Before the node, so that no transition of it can pass unseen.
        RegisterEventHandler(
            OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)]),
        ),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node,
                start_state="configuring",
                goal_state="inactive",
                entities=[change(Transition.TRANSITION_ACTIVATE)],
            )
        ),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node,
                start_state="configuring",
                goal_state="unconfigured",
                entities=[LogInfo(msg="md_perception could not be configured; the node's log above says why")],
            )
        ),
        node,
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])
