"""ROS message types without ROS: rosbags' store of Jazzy plus the types that it lacks, read from their .msg files."""

import os
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from rosbags.interfaces import Nodetype, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
DETECTIONS = "vision_msgs/msg/Detection2DArray"
LABEL_INFO = "vision_msgs/msg/LabelInfo"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
STATUS = "md_perception/msg/PerceptionStatus"

_CHECKOUT = Path(__file__).resolve().parents[2]
_CHECKOUT_FOLDERS = {"md_perception": _CHECKOUT / "msg", "vision_msgs": _CHECKOUT / "underlay/vision_msgs/msg"}


class UnknownTypeError(LookupError):
    """A message type that neither rosbags nor any .msg file on this machine defines."""


def _definition_files(msgtype: str) -> Iterator[Path]:
    """Yield where the .msg file of a type may lie, the likeliest to match the running ROS first."""
    package, _, name = msgtype.split("/")
    prefixes = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    for prefix in prefixes:
        yield prefix / "share" / package / "msg" / f"{name}.msg"
    if package in _CHECKOUT_FOLDERS:
        yield _CHECKOUT_FOLDERS[package] / f"{name}.msg"
    # Installed by colcon: <prefix>/lib/python3.X/{site,dist}-packages/md_perception/bags/types.py; by pip: sys.prefix
    for prefix in (*Path(__file__).resolve().parents[4:7], Path(sys.prefix)):
        yield prefix / "share" / package / "msg" / f"{name}.msg"


def definition_text(msgtype: str) -> str:
    """Return the text of the .msg file of a type such as `vision_msgs/msg/LabelInfo`.

    Looked for in the share folders of the sourced ROS (AMENT_PREFIX_PATH), in this checkout and beside the installed
    package. Raises UnknownTypeError naming the type where it is nowhere.
    """
    for path in _definition_files(msgtype):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UnknownTypeError(
        f"no definition of the message type {msgtype}: source the workspace that has it (AMENT_PREFIX_PATH is "
        f"{os.environ.get('AMENT_PREFIX_PATH') or 'empty'})"
    )


def require(store: Typestore, *msgtypes: str) -> None:
    """Register types, and the types of their fields, in a store that may lack them; raise UnknownTypeError."""
    waiting = list(msgtypes)
    while waiting:
        msgtype = waiting.pop()
        if msgtype in store.fielddefs:
            continue
        types = get_types_from_msg(definition_text(msgtype), msgtype)
        store.register(types)
        for _, fields in types.values():
            for _, description in fields:
                kind: Any = description
                if kind[0] in (Nodetype.ARRAY, Nodetype.SEQUENCE):
                    kind = kind[1][0]  # the type of the elements
                if kind[0] == Nodetype.NAME:
                    waiting.append(kind[1])


def message_store() -> Typestore:
    """Return a new store with the message types of Jazzy and those that this package publishes."""
    store = get_typestore(Stores.ROS2_JAZZY)
    require(store, DETECTIONS, LABEL_INFO, STATUS)
    return store


def make_time(store: Typestore, stamp_ns: int) -> Any:
    """Return builtin_interfaces/Time of a stamp in nanoseconds, at least 0."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return store.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)


def make_header(store: Typestore, stamp_ns: int, frame_id: str) -> Any:
    """Return std_msgs/Header."""
    return store.types["std_msgs/msg/Header"](stamp=make_time(store, stamp_ns), frame_id=frame_id)


class TopicQos(Enum):
    """What the publisher of a recorded topic offered; `ros2 bag play` and our player offer it again."""

    RELIABLE = "reliable"
    BEST_EFFORT = "best_effort"
    LATCHED = "latched"
    """Reliable, one message kept for late subscribers (transient local)."""

    def offered(self) -> Qos:
        """Return the profile as bags store it."""
        infinite = QosTime(9223372036, 854775807)
        return Qos(
            history=QosHistory.KEEP_LAST,
            depth=1 if self is TopicQos.LATCHED else 10,
            reliability=QosReliability.BEST_EFFORT if self is TopicQos.BEST_EFFORT else QosReliability.RELIABLE,
            durability=QosDurability.TRANSIENT_LOCAL if self is TopicQos.LATCHED else QosDurability.VOLATILE,
            deadline=infinite,
            lifespan=infinite,
            liveliness=QosLiveliness.AUTOMATIC,
            liveliness_lease_duration=infinite,
            avoid_ros_namespace_conventions=False,
        )

    @classmethod
    def of(cls, profiles: list[Qos]) -> "TopicQos":
        """Return the nearest kind for the profiles in a bag; RELIABLE where the bag names none."""
        if any(profile.durability == QosDurability.TRANSIENT_LOCAL for profile in profiles):
            return cls.LATCHED
        if profiles and all(profile.reliability == QosReliability.BEST_EFFORT for profile in profiles):
            return cls.BEST_EFFORT
        return cls.RELIABLE
