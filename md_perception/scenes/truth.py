"""What is known about every object of a scene image, and the images themselves."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from md_perception.results import Float32Array, Int64Array, UInt8Image
from md_perception.scenes.camera import Camera
from md_perception.scenes.world import TimeOfDay
from md_perception.sensing.thermal import percentile_range, to_8bit

BoolArray = npt.NDArray[np.bool_]

NOT_OCCLUDED, PARTLY_OCCLUDED, HEAVILY_OCCLUDED = 0, 1, 2
"""Occlusion levels of the KAIST annotations."""


def occlusion_level(visible_fraction: Float32Array) -> Int64Array:
    """Return KAIST's level, int64 (N,): 0 at least 0.9 visible, 1 at least half visible, 2 less."""
    levels = np.full(len(visible_fraction), HEAVILY_OCCLUDED, np.int64)
    levels[visible_fraction >= 0.5] = PARTLY_OCCLUDED
    levels[visible_fraction >= 0.9] = NOT_OCCLUDED
    return levels


@dataclass(frozen=True)
class Objects:
    """The N detectable objects of an image, nearest first.

    boxes: float32 (N, 4), xyxy, pixels of the RGB image, 0-based, right and bottom exclusive: the full extent of
        the object, hidden parts included, clipped to the image (as KAIST annotates).
    labels: int64 (N,), ids of labels.DETECTION; a cyclist is a person (rider) and a bicycle.
    visible_fraction: float32 (N,), share of the object's silhouette inside the image that nothing nearer covers.
        Glass and smoke do not cover.
    occlusion: int64 (N,), occlusion_level of it.
    truncation: float32 (N,), share of the full box that lies outside the image.
    position_m: float32 (N, 2), ground position, x forward and y left of the camera. distance_m: float32 (N,).
    velocity_mps: float32 (N, 2), over ground, in the same axes.
    height_m: float32 (N,), full height of the object.
    actor_id: int64 (N,), the same in all frames of a sequence for as long as the object is in front of the camera.
    rider, behind_glass, hidden, camouflaged: bool (N,), see actors.Person; False for other classes.
    rgb_contrast: float32 (N,), root mean square difference, in grey levels (0..255) before noise, of the visible
        pixels of a person from the mean of what surrounds it. NaN for other classes or where nothing is visible.
    thermal_contrast_k: float32 (N,), absolute difference of the means over the same two regions of the thermal
        image, kelvin before noise; 0 where the thermal camera sees none of the person (glass). NaN for other classes
        and where no thermal image was made.
    """

    boxes: Float32Array
    labels: Int64Array
    visible_fraction: Float32Array
    occlusion: Int64Array
    truncation: Float32Array
    position_m: Float32Array
    distance_m: Float32Array
    velocity_mps: Float32Array
    height_m: Float32Array
    actor_id: Int64Array
    rider: BoolArray
    behind_glass: BoolArray
    hidden: BoolArray
    camouflaged: BoolArray
    rgb_contrast: Float32Array
    thermal_contrast_k: Float32Array

    def __len__(self) -> int:
        return len(self.labels)


def no_objects() -> Objects:
    """Return the truth of an image without objects."""
    number, flag = np.zeros(0, np.float32), np.zeros(0, np.bool_)
    pair, integer = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    return Objects(
        boxes=np.zeros((0, 4), np.float32),
        labels=integer,
        visible_fraction=number,
        occlusion=integer,
        truncation=number,
        position_m=pair,
        distance_m=number,
        velocity_mps=pair,
        height_m=number,
        actor_id=integer,
        rider=flag,
        behind_glass=flag,
        hidden=flag,
        camouflaged=flag,
        rgb_contrast=number,
        thermal_contrast_k=number,
    )


@dataclass(frozen=True)
class RgbView:
    """An RGB image with its truth.

    image: uint8 (H, W, 3), RGB. mask: uint8 (H, W), ids of labels.SEGMENTATION. time_s: when it was taken.
    """

    image: UInt8Image
    mask: UInt8Image
    objects: Objects
    camera: Camera
    time_s: float


@dataclass(frozen=True)
class ThermalView:
    """A thermal image. kelvin: float32 (h, w), apparent temperature with blur and noise.

    contrast_k: Objects.thermal_contrast_k of the persons in view, by Objects.actor_id.
    """

    kelvin: Float32Array
    camera: Camera
    time_s: float
    contrast_k: dict[int, float]

    @property
    def agc(self) -> UInt8Image:
        """The 8-bit image of training, uint8 (h, w), warm is bright: percentile gain as in sensing.thermal."""
        return to_8bit(self.kelvin, *percentile_range(self.kelvin))


@dataclass(frozen=True)
class SceneFrame:
    """Both images of a scene at one instant, with everything that is known about them.

    rgb: uint8 (H, W, 3). thermal_k: float32 (h, w), kelvin. thermal: uint8 (h, w), its 8-bit form.
    mask: uint8 (H, W), ids of labels.SEGMENTATION, in RGB pixels. objects: in RGB pixels and metres.
    smoke, glare: 0..1.
    """

    seed: int
    rgb: UInt8Image
    thermal_k: Float32Array
    thermal: UInt8Image
    mask: UInt8Image
    objects: Objects
    camera: Camera
    thermal_camera: Camera
    time_of_day: TimeOfDay
    smoke: float
    glare: float
