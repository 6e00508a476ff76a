"""Start the md_perception nodes of several cameras in one process, where they share their students.

    ros2 launch md_perception cameras.launch.py cameras:=front,rear params_file:=cameras.yaml

The node of `front` is /front/md_perception, and so on: a parameter file may have a section for each beside one for all
(`/**:`). Topics are those of the camera's namespace, unless `rgb_topic` or `thermal_topic` say where its images are.
With `autostart` each node brings itself to the active state: launch's lifecycle events are for one node in a process.
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from md_perception.ros.environment import STUDENTS, check_parameter_file, config_file, node_environment, overrides

ARGUMENTS = (
    DeclareLaunchArgument("cameras", description="namespaces of the cameras, with commas: front,rear"),
    DeclareLaunchArgument("namespace", default_value="", description="namespace that all of them are in"),
    DeclareLaunchArgument(
        "params_file", default_value=str(config_file("md.yaml")), description="parameters of all nodes, and of each"
    ),
    DeclareLaunchArgument(
        "rgb_topic",
        default_value="rgb/image_raw",
        description="RGB images, below the camera's namespace, or with {camera} for its name: /{camera}_rgb/image_raw",
    ),
    DeclareLaunchArgument("thermal_topic", default_value="thermal/image_raw", description="thermal images, like these"),
    DeclareLaunchArgument("student", default_value="", description="student file (.onnx) for RGB and thermal"),
    DeclareLaunchArgument("visible_student", default_value="", description="student (.onnx) for RGB alone, or demo"),
    DeclareLaunchArgument("thermal_student", default_value="", description="student file (.onnx) for thermal alone"),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="least severity that the nodes log",
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
        description="configure and activate the nodes; false leaves that to a lifecycle manager",
    ),
)


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the process, for the arguments at hand."""
    value = context.launch_configurations
    check_parameter_file(value, "params_file")
    cameras = [name.strip(" /") for name in value["cameras"].split(",")]
    if not all(cameras) or len(set(cameras)) < len(cameras):
        raise RuntimeError(
            f"cameras:={value['cameras']}: a name is empty or occurs twice; give each camera one, as in front,rear"
        )
    above = value["namespace"].strip("/")
    spaces = {camera: "/" + "/".join(filter(None, [above, camera])) for camera in cameras}
    remappings = []
    for camera, space in spaces.items():
        for kind in ("rgb", "thermal"):
            topic = value[f"{kind}_topic"].replace("{camera}", camera)
            topic = topic if topic.startswith("/") else f"{space}/{topic}"
            remappings += [(f"{space}/{kind}/image_raw{end}", f"{topic}{end}") for end in ("", "/compressed")]
            # CameraInfo comes beside the images, as image_transport has it.
            remappings.append((f"{space}/{kind}/camera_info", f"{topic.rpartition('/')[0]}/camera_info"))
    return [
        Node(
            package="md_perception",
            executable="md_cameras",
            arguments=list(spaces.values()),
            output="screen",
            parameters=[
                value["params_file"],
                overrides(value, STUDENTS) | {"autostart": value["autostart"] == "true"},
            ],
            remappings=remappings,
            ros_arguments=["--log-level", value["log_level"]],
            additional_env=node_environment(context.environment),
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])
