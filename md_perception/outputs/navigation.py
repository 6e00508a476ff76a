"""What is published for navigation stacks beside detections and mask, and how: the settings, without ROS."""

import re
from dataclasses import dataclass, field
from typing import Literal

from md_perception.outputs.ground import CameraPose, ClassGroup, Evidence, GroundSettings

GroundSource = Literal["off", "mounting", "tf"]
"""Where the camera's place above the ground comes from; without one there are no obstacles."""

DepthSource = Literal["off", "image", "cloud"]
OutputFrame = Literal["base", "camera"]
CameraImages = Literal["raw", "rectified"]
MaskEncoding = Literal["raw", "autoware_rle"]
TrackerName = Literal["off", "norfair"]

AUTOWARE_MASK = re.compile(r"(^|/)perception/object_recognition/detection/mask\d*$")
"""Topics from which Autoware reads run-length encoded masks: a raw one there corrupts the reader's memory."""

RAW_MASK = re.compile(r"(^|/)segmentation/mask$")
"""Topics from which Nav2's layer and people read masks as images: of run lengths it would read past the end."""


@dataclass(frozen=True)
class ObstacleOutput:
    """What the obstacle topics carry, and what they are made from.

    mounting: where the RGB camera is, used with source `mounting`. base_frame, ground_z_m: the frame whose z axis
    points up, and the height of the ground in it. images: whether those that come in are rectified. evidence: what
    obstacles are made from. scan: a LaserScan too. depth: registered depth, used instead of the ground where it has a
    value.
    """

    source: GroundSource = "off"
    base_frame: str = "base_footprint"
    ground_z_m: float = 0.0
    mounting: CameraPose = field(default_factory=lambda: CameraPose.mounted((0.0, 0.0, 1.0)))
    tf_timeout_s: float = 0.05
    images: CameraImages = "raw"
    output_frame: OutputFrame = "base"
    groups: tuple[ClassGroup, ...] = ()
    evidence: Evidence = "both"
    scan: bool = False
    depth: DepthSource = "off"
    depth_tolerance_ns: int = 50_000_000
    ground: GroundSettings = field(default_factory=GroundSettings)

    def __post_init__(self) -> None:
        if self.source == "mounting" and not self.mounting.height_m > 0:
            raise ValueError(
                f"the camera is {self.mounting.height_m:g} m above the ground by ground.mounting_position and "
                "ground.z_m: it has to be above it"
            )


@dataclass(frozen=True)
class NavigationSettings:
    """What is published for navigation stacks.

    mask_size: (width, height) px of mask and confidence; None: as the image. mask_labels: class to Autoware's mask
    label, used with autoware_rle. object_labels: class to Autoware's object label; None: no objects for Autoware.
    tracker, track_lost_s, track_overlap: see outputs.tracking; `off`: detections have no ids.
    """

    mask_encoding: MaskEncoding = "raw"
    mask_size: tuple[int, int] | None = None
    mask_labels: tuple[tuple[str, str], ...] = ()
    object_labels: tuple[tuple[str, str], ...] | None = None
    obstacles: ObstacleOutput = field(default_factory=ObstacleOutput)
    tracker: TrackerName = "off"
    track_lost_s: float = 2.0
    track_overlap: float = 0.2

    @property
    def mask_namespace(self) -> str:
        """First part of the topics of mask, confidence and label info.

        Each encoding has its own: who reads the one must not get the other, even without any remapping.
        """
        return "autoware" if self.mask_encoding == "autoware_rle" else "segmentation"


def check_mask_topic(encoding: MaskEncoding, topic: str) -> None:
    """Raise ValueError for a mask on a topic where it would be read as the other encoding."""
    if encoding == "raw" and AUTOWARE_MASK.search(topic):
        raise ValueError(
            f"a raw mask must not go out on {topic}: Autoware reads run lengths there and would write outside its "
            "memory; set segmentation.mask_encoding to 'autoware_rle' (launch file: mask_encoding:=autoware_rle), or "
            "give the mask another topic"
        )
    if encoding == "autoware_rle" and RAW_MASK.search(topic):
        raise ValueError(
            f"run lengths must not go out on {topic}: they are read as an image there, past their end; set "
            "segmentation.mask_encoding to 'raw' (launch file: mask_encoding:=raw), or give the mask another topic"
        )
