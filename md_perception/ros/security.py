"""What keeps a node from starting with SROS 2, told with its cure: the middleware only says what it stumbled over."""

from collections.abc import Mapping
from pathlib import Path

_GUIDE = "docs/security.md says how to make keys and permissions; ROS_SECURITY_ENABLE=false runs without security"


def cure(error: str, environment: Mapping[str, str]) -> str:
    """Return what to do about an error of the start, "" where security was not asked for.

    error: of rclpy. environment: of the process.
    """
    if environment.get("ROS_SECURITY_ENABLE") != "true":
        return ""
    keystore = environment.get("ROS_SECURITY_KEYSTORE", "")
    if "security libraries" in error:
        why = "the middleware was built without security, as that of the ROS 2 wheels is: use ROS 2 from packages"
    elif not keystore:
        why = "ROS_SECURITY_KEYSTORE, the folder of the keystore, is not set"
    elif not Path(keystore).is_dir():
        why = f"ROS_SECURITY_KEYSTORE is {keystore}, which is no folder: set it to the keystore's folder"
    elif "SECURITY ERROR" in error:
        why = (
            f"the keystore {keystore} has no keys for this enclave: give the node the one that was made for it, "
            "--ros-args --enclave /md_perception (launch file: enclave:=/md_perception), or make it with "
            f"`ros2 security create_enclave {keystore} /md_perception`"
        )
    else:
        why = "security is on (ROS_SECURITY_ENABLE)"
    return f"{why}; {_GUIDE}"
