"""Files that come with the package, and what the environment of a process that carries camera images needs."""

import os
from collections.abc import Mapping
from pathlib import Path

DEMO_STUDENT = Path(__file__).parents[1] / "students" / "demo.onnx"
"""What the node runs where no student is given."""


def config_file(name: str) -> Path:
    """Return a file of config/, of this checkout or as installed."""
    in_checkout = Path(__file__).resolve().parents[2] / "config" / name
    if in_checkout.is_file():
        return in_checkout
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory("md_perception")) / "config" / name


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
