"""The thermal camera: apparent temperatures on the same geometry, then optics, fixed pattern and noise."""

import cv2
import numpy as np

from md_perception.results import Float32Array
from md_perception.scenes import textures
from md_perception.scenes.backdrop import facade_window, facades, paste_facade, skyline_rows
from md_perception.scenes.cars import Car
from md_perception.scenes.ground import ground_of, ground_texture, markings, shadow_map
from md_perception.scenes.people import Person
from md_perception.scenes.sprites import Moment, Sprite, resolve_visibility, surround_mean
from md_perception.scenes.truth import ThermalView
from md_perception.scenes.world import Scene


def render_thermal(scene: Scene, time_s: float = 0.0) -> ThermalView:
    """Return what the thermal camera sees at a time, kelvin. The same scene and time give the same bytes."""
    return render_thermal_at(Moment(scene, time_s))


def render_thermal_at(moment: Moment) -> ThermalView:
    """Return what the thermal camera sees, as render_thermal does; a Moment may serve both cameras."""
    scene, time_s = moment.scene, moment.time_s
    camera, climate, street, sensors = scene.thermal_camera, scene.climate, scene.street, scene.sensors
    width, height = camera.size
    rng = np.random.default_rng([scene.seed, 8])
    image = np.empty((height, width), np.float32)
    skyline, horizon = skyline_rows(scene, camera)
    horizon = int(np.clip(horizon, 1, height))
    rise = np.linspace(1.0, 0.0, horizon, dtype=np.float32)[:, None] ** 0.6
    image[:horizon] = climate.sky_k[0] * (1 - rise) + climate.sky_k[1] * rise
    cells = textures.crop(textures.value_noise(32), rng, (220, 110))
    image[:horizon] += 12.0 * climate.clouds * textures.stretch(cells, (width, horizon))
    top = max(0, int(skyline.min()))
    if top < horizon:
        cover = np.clip(np.arange(top, horizon, dtype=np.float32)[:, None] - skyline[None], 0.0, 1.0)
        mottle = textures.crop(textures.value_noise(512, 0.8), rng, (width, horizon - top))
        image[top:horizon] += cover * (climate.air_k - 1.5 + 0.5 * mottle - image[top:horizon])
    for building, start in facades(scene, time_s):
        found = facade_window(building, start, scene, camera)
        if found is not None:
            paste_facade(image, building.kelvins, *found)
    ground = ground_of(camera)
    below = np.full((height, width), street.road_k, np.float32)
    for marking in markings(scene, camera, time_s):
        cv2.fillPoly(below, [marking.pixels], marking.kelvin, cv2.LINE_8, 4)
    below = below[ground.top :]
    below += (0.35 + 0.5 * climate.sun) * ground_texture(scene, camera, ground, time_s)
    image[ground.top :] = below
    edge = int(np.clip(np.ceil(camera.horizon_row), 0, ground.top))
    image[edge : ground.top] = image[ground.top]

    sprites = moment.sprites(camera)
    if climate.sun > 0:
        shadows = shadow_map(sprites, scene, camera)
        image[ground.top :] -= (3.0 * climate.sun) * (1.0 - shadows[ground.top :])
    for sprite in sprites:
        kelvins = np.array(sprite.drawing.kelvins)
        sprite.paint(kelvins[:, None], [1.0] * len(kelvins))
    resolve_visibility(sprites, camera.size)
    for sprite in reversed(sprites):
        _paint_heat(image, sprite, scene)
    image = np.asarray(cv2.GaussianBlur(image, (7, 7), sensors.thermal_blur_px * height / 512.0), np.float32)
    contrast = {s.object_id: _thermal_contrast(image, s) for s in sprites if isinstance(s.actor, Person)}
    columns = np.random.default_rng([scene.seed, 9]).standard_normal((1, width), np.float32)
    fixed = textures.crop(textures.white_noise(), np.random.default_rng([scene.seed, 10]), (width, height))
    stamp = round(time_s * 1e6) % 2**32
    noise = textures.crop(textures.white_noise(), np.random.default_rng([scene.seed, 11, stamp]), (width, height))
    image += np.float32(sensors.thermal_noise_k) * noise
    image += np.float32(0.6 * sensors.thermal_pattern_k) * fixed
    image += np.float32(0.8 * sensors.thermal_pattern_k) * columns
    image -= np.float32(2.0 * sensors.vignette) * textures.squared_radius((width, height))
    return ThermalView(image, camera, time_s, contrast)


def _paint_heat(image: Float32Array, sprite: Sprite, scene: Scene) -> None:
    actor, coverage = sprite.actor, sprite.coverage
    part = image[sprite.window]
    height, width = coverage.shape
    rng = np.random.default_rng([scene.seed, 12, actor.actor_id])
    if isinstance(actor, Person | Car):
        relief = 0.7 if isinstance(actor, Person) else 0.4
        mottle = textures.stretch(textures.patch(rng, (8, 16)), (width, height))
    else:
        relief = 0.25
        mottle = textures.crop(textures.value_noise(256, 0.7), rng, (width, height))
    values = np.asarray(sprite.values[..., 0] + relief * mottle * coverage, np.float32)
    if isinstance(actor, Person) and actor.camouflaged:
        total = max(float(coverage.sum()), 1e-6)
        behind = float((part * coverage).sum()) / total
        own = float(values.sum()) / total
        values = np.asarray(coverage * behind + 0.12 * (values - coverage * own), np.float32)
    part *= 1.0 - coverage
    part += values


def _thermal_contrast(image: Float32Array, sprite: Sprite) -> float:
    """Return the contrast of a person in kelvin, 0 where something that heat does not pass hides it."""
    seen = float(sprite.visible.sum())
    if seen < 0.5:
        return 0.0
    inside = float((image[sprite.window] * sprite.visible).sum()) / seen
    return abs(inside - surround_mean(image, sprite))
