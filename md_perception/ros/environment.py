"""What the launch files share: files of the package, parameters from their arguments, the environment of a node."""

import os
from collections.abc import Mapping
from pathlib import Path


def config_file(name: str) -> Path:
    """Return a file of config/, of this checkout or as installed."""
    in_checkout = Path(__file__).resolve().parents[2] / "config" / name
    if in_checkout.is_file():
        return in_checkout
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory("md_perception")) / "config" / name


STUDENTS = {
    "student": "student.file",
    "visible_student": "student.visible_file",
    "thermal_student": "student.thermal_file",
}
"""Launch argument of each student file, and its parameter."""


def overrides(arguments: Mapping[str, str], parameters: Mapping[str, str]) -> dict[str, str | bool]:
    """Return the parameters that launch arguments set, `use_sim_time` among them; empty ones leave that to the file.

    parameters: by argument.
    """
    given: dict[str, str | bool] = {parameters[name]: arguments[name] for name in parameters if arguments[name]}
    if arguments["use_sim_time"]:
        given["use_sim_time"] = arguments["use_sim_time"] == "true"
    return given


def check_parameter_file(arguments: Mapping[str, str], name: str) -> None:
    """Raise RuntimeError where the file that an argument names is not there: launch_ros would go on without it."""
    if not Path(arguments[name]).is_file():
        raise RuntimeError(f"{name}:={arguments[name]}: there is no such file; give the path of a parameter file")


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
        added["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(config_file("fastdds.xml"))
    added["MD_PERCEPTION_PARENT"] = str(os.getpid())  # a parent that gets SIGTERM leaves its nodes behind; ours notices
    return added
