"""Both cameras on one scene at one instant."""

from dataclasses import replace

import numpy as np

from md_perception.scenes.rgb import render_rgb_at
from md_perception.scenes.sampling import sample_scene
from md_perception.scenes.sprites import Moment
from md_perception.scenes.thermal import render_thermal_at
from md_perception.scenes.truth import SceneFrame
from md_perception.scenes.world import Scene, SceneSettings


def render_scene(scene: Scene, time_s: float = 0.0) -> SceneFrame:
    """Return both images of a scene at one instant, with the truth."""
    moment = Moment(scene, time_s)
    view, heat = render_rgb_at(moment), render_thermal_at(moment)
    contrast = [heat.contrast_k.get(int(i), np.nan) for i in view.objects.actor_id]
    return SceneFrame(
        seed=scene.seed,
        rgb=view.image,
        thermal_k=heat.kelvin,
        thermal=heat.agc,
        mask=view.mask,
        objects=replace(view.objects, thermal_contrast_k=np.array(contrast, np.float32)),
        camera=scene.camera,
        thermal_camera=scene.thermal_camera,
        time_of_day=scene.climate.time_of_day,
        smoke=scene.climate.smoke,
        glare=scene.climate.glare,
    )


def render_frame(seed: int, settings: SceneSettings | None = None) -> SceneFrame:
    """Return the frame of a seed: a street of its own, drawn at time 0.

    Equal arguments give equal bytes (with the same NumPy and OpenCV: their rounding differs between versions).
    """
    return render_scene(sample_scene(seed, settings))
