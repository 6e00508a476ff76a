"""A synthetic RGB-thermal street: images, boxes, masks, geometry and sequences, all from a seed."""

from md_perception.scenes.camera import Camera
from md_perception.scenes.render import render_frame, render_scene
from md_perception.scenes.rgb import render_rgb
from md_perception.scenes.sampling import sample_scene
from md_perception.scenes.sequence import Sequence, StampedRgb, StampedThermal, Timing
from md_perception.scenes.thermal import render_thermal
from md_perception.scenes.truth import Objects, RgbView, SceneFrame, ThermalView
from md_perception.scenes.world import Scene, SceneSettings, TimeOfDay

__all__ = [
    "Camera",
    "Objects",
    "RgbView",
    "Scene",
    "SceneFrame",
    "SceneSettings",
    "Sequence",
    "StampedRgb",
    "StampedThermal",
    "ThermalView",
    "TimeOfDay",
    "Timing",
    "render_frame",
    "render_rgb",
    "render_scene",
    "render_thermal",
    "sample_scene",
]
