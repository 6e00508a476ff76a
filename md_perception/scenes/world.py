"""What a scene is: a street with its actors, its climate and its two cameras, at time 0."""

from dataclasses import dataclass, field
from enum import StrEnum

from md_perception.results import Float32Array, UInt8Image
from md_perception.scenes.actors import Actor, Colour
from md_perception.scenes.camera import Camera

LAP_M = 80.0
"""An actor that the camera passes comes back this far ahead: a sequence never runs out of street."""


REAR_M = -5.0
"""Behind this an actor starts its next lap."""


class TimeOfDay(StrEnum):
    """How much light there is."""

    DAY = "day"
    DUSK = "dusk"
    NIGHT = "night"


@dataclass(frozen=True)
class SceneSettings:
    """What scenes to draw; None leaves a choice to the seed.

    size, thermal_size: (width, height) px; thermal_size None is the size of RGB.
    thermal_misalignment_px: largest shift of the thermal image along each axis, px at 512 rows.
    focal_rows: focal length over image height.
    """

    size: tuple[int, int] = (640, 512)
    thermal_size: tuple[int, int] | None = None
    time_of_day: TimeOfDay | None = None
    smoke: bool | None = None
    glare: bool | None = None
    thermal_misalignment_px: float = 3.0
    focal_rows: float = 1.25


@dataclass(frozen=True)
class Climate:
    """Light and weather of a scene.

    air_k: air temperature. sun: direct sunlight 0..1. ambient: light where no lamp shines, linear, 1 is full daylight.
    light: RGB tint of the ambient light. sky_low, sky_high: RGB at horizon and zenith. sky_k: (horizon, zenith),
    apparent kelvin. haze_m: distance at which contrast falls to 1/e. smoke: opacity 0..1. glare: 0..1.
    headlights: of the own vehicle, 0..1.
    """

    time_of_day: TimeOfDay
    air_k: float
    sun: float
    ambient: float
    light: Colour
    sky_low: Colour
    sky_high: Colour
    clouds: float
    sky_k: tuple[float, float]
    haze_m: float
    smoke: float
    glare: float
    headlights: float
    wet: float


@dataclass(frozen=True)
class Building:
    """A facade along the street (side +1 left, -1 right) or across its end (side 0).

    start_m, length_m: along x (along y for side 0). offset_m: |y| of its plane (x for side 0).
    colours: uint8 (h, w, 3), kelvins: float32 (h, w), both upright, first column nearest (leftmost for side 0).
    """

    side: int
    start_m: float
    length_m: float
    offset_m: float
    height_m: float
    colours: UInt8Image
    kelvins: Float32Array
    glow: UInt8Image


@dataclass(frozen=True)
class Street:
    """The ground: y to the left. Kerbs lie at centre +- half_width, bent by curvature (1/m)."""

    half_width_m: float
    centre_m: float
    curvature: float
    road: Colour
    side: Colour
    road_k: float
    side_k: float
    kerb_left: bool
    kerb_right: bool
    kerb: Colour
    kerb_raised: bool
    edge_line: bool
    dashes: bool
    paint: Colour
    paint_k: float
    crossing_m: float | None
    bays_m: float | None
    arrow_m: float | None
    roughness: float


@dataclass(frozen=True)
class SensorCharacter:
    """Everything fixed about the two cameras of a scene beyond geometry."""

    white_balance: Colour
    gamma: float
    rgb_blur_px: float
    rgb_read_noise: float
    rgb_photon_noise: float
    thermal_blur_px: float
    thermal_noise_k: float
    thermal_pattern_k: float
    vignette: float


@dataclass(frozen=True)
class Scene:
    """A street at time 0, its cameras and its climate; `render` draws it at any time."""

    seed: int
    settings: SceneSettings
    camera: Camera
    thermal_camera: Camera
    climate: Climate
    street: Street
    sensors: SensorCharacter
    actors: tuple[Actor, ...]
    buildings: tuple[Building, ...]
    ego_speed_mps: float
    skyline: Float32Array = field(repr=False)
