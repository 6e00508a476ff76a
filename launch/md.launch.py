"""Start the md_perception node and, with `autostart`, bring it to the active state through lifecycle events.

    ros2 launch md_perception md.launch.py rgb_topic:=/camera/image_raw thermal_topic:=/boson/image_raw

An argument left empty leaves the matter to the parameter file.
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from md_perception.outputs.navigation import check_mask_topic
from md_perception.ros.environment import STUDENTS, check_parameter_file, config_file, node_environment, overrides

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
        "params_file", default_value=str(config_file("md.yaml")), description="parameters of the node"
    ),
    DeclareLaunchArgument("calibration", default_value="", description="parameter file that md_calibrate has written"),
    DeclareLaunchArgument("student", default_value="", description="student file (.onnx) for RGB and thermal"),
    DeclareLaunchArgument("visible_student", default_value="", description="student (.onnx) for RGB alone, or demo"),
    DeclareLaunchArgument("thermal_student", default_value="", description="student file (.onnx) for thermal alone"),
    DeclareLaunchArgument(
        "mask_encoding",
        default_value="",
        choices=["", "raw", "autoware_rle"],
        description="raw: for Nav2 and people; autoware_rle: run lengths for Autoware",
    ),
    DeclareLaunchArgument(
        "mask_topic", default_value="", description="mask; by default segmentation/mask, for Autoware autoware/mask"
    ),
    DeclareLaunchArgument(
        "objects_topic", default_value="", description="detections for Autoware; by default autoware/objects"
    ),
    DeclareLaunchArgument(
        "depth_topic",
        default_value="",
        description="registered depth image or cloud; by default depth/image, depth/points",
    ),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
    DeclareLaunchArgument(
        "enclave", default_value="", description="SROS 2 enclave of the node, such as /md_perception: docs/security.md"
    ),
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
    DeclareLaunchArgument(
        "restart_after",
        default_value="5.0",
        description="with autostart: seconds after which a node that failed at work is configured again; 0: never",
    ),
)


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the node and its lifecycle events, for the arguments at hand."""
    value = context.launch_configurations
    check_parameter_file(value, "params_file")
    try:
        restart_s = float(value["restart_after"])
    except ValueError:
        raise RuntimeError(f"restart_after:={value['restart_after']}: it is a number of seconds, 0 for never") from None
    if value["calibration"]:
        check_parameter_file(value, "calibration")
    # The node looks too; but a topic of Autoware's with an encoding that is not said here is a slip waiting to happen.
    check_mask_topic(value["mask_encoding"] or "raw", value["mask_topic"])
    parameters = STUDENTS | {
        "rgb_transport": "rgb.transport",
        "thermal_transport": "thermal.transport",
        "mask_encoding": "segmentation.mask_encoding",
    }
    node = LifecycleNode(
        package="md_perception",
        executable="md_perception",
        name="md_perception",
        namespace=value["namespace"],
        output="screen",
        parameters=[value["params_file"], *filter(None, [value["calibration"]]), overrides(value, parameters)],
        remappings=[
            (f"{camera}/image_raw{suffix}", f"{value[f'{camera}_topic']}{suffix}")
            for camera in ("rgb", "thermal")
            for suffix in ("", "/compressed")
        ]
        # CameraInfo comes beside the images, as image_transport has it.
        + [
            (f"{camera}/camera_info", "/".join([*value[f"{camera}_topic"].split("/")[:-1], "camera_info"]))
            for camera in ("rgb", "thermal")
        ]
        + [
            (topic, value[argument])
            for topic, argument in (
                ("segmentation/mask", "mask_topic"),
                ("autoware/mask", "mask_topic"),
                ("autoware/objects", "objects_topic"),
                ("depth/image", "depth_topic"),
                ("depth/points", "depth_topic"),
            )
            if value[argument]
        ],
        ros_arguments=[
            *("--log-level", value["log_level"]),
            *(("--enclave", value["enclave"]) if value["enclave"] else ()),
        ],
        additional_env=node_environment(context.environment),
    )
    if value["autostart"] != "true":
        return [node]

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    again: list[LaunchDescriptionEntity] = [LogInfo(msg="md_perception has failed; its log above says why")]
    if restart_s > 0:
        again.append(TimerAction(period=restart_s, actions=[change(Transition.TRANSITION_CONFIGURE)]))

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
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node, start_state="errorprocessing", goal_state="unconfigured", entities=again
            )
        ),
        node,
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])
