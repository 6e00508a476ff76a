"""`ros2 run md_perception md_cameras`: several cameras in one process, which share their students.

    ros2 run md_perception md_cameras front rear --ros-args --params-file cameras.yaml -p autostart:=true

Each name is the namespace of a node as md_perception starts it: /front/md_perception, with lifecycle, parameters,
diagnostics and topics of its own. Parameter files name them (`/front/md_perception: ros__parameters: ...`, or `/**:`
for all); topics are remapped by their full names (`-r /front/rgb/image_raw:=/front_camera/image_raw`). A camera that
fails leaves the others at work.

Exit status: as md_perception's; with `autostart`, 1 once every camera has failed; 1 at the end where the node of one
had to be released for good, as its callbacks failed one after the other; 2 for a wrong command line.
"""

import argparse
import sys
from collections.abc import Sequence

from rclpy.exceptions import InvalidNamespaceException
from rclpy.utilities import remove_ros_args
from rclpy.validate_namespace import validate_namespace

from md_perception.ros.node import not_started, serve


def main(args: Sequence[str] | None = None) -> int:
    """Run the nodes until SIGINT or SIGTERM; return the exit status."""
    given = sys.argv if args is None else [sys.argv[0], *args]
    parser = argparse.ArgumentParser(
        prog="md_cameras", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cameras", nargs="+", type=_namespace, metavar="NAME", help="namespace of a camera")
    try:
        own = remove_ros_args(given)[1:]
    except RuntimeError as error:  # a ROS argument that is none
        return not_started(error)
    cameras: list[str] = parser.parse_args(own).cameras
    if len(set(cameras)) < len(cameras):
        parser.error(f"a name occurs twice: {' '.join(cameras)}")
    return serve(list(given), cameras)


def _namespace(text: str) -> str:
    name = f"/{text.strip('/')}"
    try:
        validate_namespace(name)
    except InvalidNamespaceException as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a ROS namespace: {error}") from None
    return name


if __name__ == "__main__":
    sys.exit(main())
