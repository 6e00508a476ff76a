"""The RGB camera: light, haze, smoke, lamps and glare on the geometry, then lens and sensor.

Colours are painted display-referred (gamma-encoded), where a change of light is still a factor; lamps are added on
top. Actors are drawn far to near.
"""

from functools import lru_cache

import cv2
import numpy as np

from md_perception.labels import SEGMENTATION
from md_perception.results import Float32Array, UInt8Image
from md_perception.scenes import textures
from md_perception.scenes.actors import NOT_DETECTED, Lamp
from md_perception.scenes.backdrop import facade_window, facades, paste_facade, skyline_rows
from md_perception.scenes.camera import Camera, Float64Array
from md_perception.scenes.cars import Car
from md_perception.scenes.ground import ground_of, ground_texture, markings, shadow_map
from md_perception.scenes.people import Person
from md_perception.scenes.sprites import Moment, Sprite, pose_at, resolve_visibility
from md_perception.scenes.truth import Objects, RgbView, no_objects, occlusion_level
from md_perception.scenes.world import Scene, TimeOfDay

MIN_BOX_PX = 8.0
"""Objects whose full box is lower than this at 512 rows are not annotated."""
MIN_VISIBLE = 0.1
"""Objects of which less is visible are not annotated."""
MAX_TRUNCATION = 0.75
"""Objects of which more lies outside the image are not annotated."""

DISPLAY_GAMMA = 2.2
LUMA = (0.299, 0.587, 0.114)
SMOKE_M = 14.0
"""One cloud of smoke hangs at this distance, one before everything."""
_CURVE = SEGMENTATION.id_of("curve")


class Light:
    """How bright it is at a place: ambient, the vehicle's headlights and the street lamps, as gamma-encoded factors."""

    def __init__(self, scene: Scene, time_s: float) -> None:
        climate = scene.climate
        self.ambient = climate.ambient * np.array(climate.light, np.float64)
        self.headlights = climate.headlights
        self.lamps: list[tuple[Float64Array, Float64Array]] = []
        for actor in scene.actors:
            if isinstance(actor, Lamp) and actor.lit:
                pose, _ = pose_at(scene, actor, time_s)
                reach, height = actor.head
                self.lamps.append((np.array([pose.x, pose.y - reach, height]), np.array(actor.colour) / 255.0))

    def at(self, x: Float64Array, y: Float64Array, z: Float64Array | float) -> Float64Array:
        """Return factors float64 (..., 3) at points in the vehicle frame, metres."""
        linear = np.empty((*np.shape(x), 3))
        linear[:] = self.ambient
        if self.headlights > 0:
            aside = np.exp(-np.square(y / (0.28 * np.maximum(x, 0.1) + 0.6)))
            beam = self.headlights * 0.5 * aside * np.minimum(1.0, np.square(7.0 / np.maximum(x, 2.0)))
            high = np.clip((np.asarray(z) - 0.65) / 0.5, 0.0, 1.0)  # low beams are cut off above the bumper
            linear += (beam * (1.0 - 0.8 * high))[..., None] * (1.0, 0.97, 0.9)
        for head, colour in self.lamps:
            square = np.square(x - head[0]) + np.square(y - head[1]) + np.square(head[2] - z)
            pool = 0.22 * head[2] ** 2 * (head[2] / np.sqrt(square)) ** 1.5 / square
            linear += pool[..., None] * colour
        return linear ** (1.0 / DISPLAY_GAMMA)


def render_rgb(scene: Scene, time_s: float = 0.0) -> RgbView:
    """Return what the RGB camera sees at a time, with the truth. The same scene and time give the same bytes."""
    return render_rgb_at(Moment(scene, time_s))


def render_rgb_at(moment: Moment) -> RgbView:
    """Return what the RGB camera sees, as render_rgb does; a Moment may serve both cameras."""
    scene, time_s = moment.scene, moment.time_s
    camera = scene.camera
    light = Light(scene, time_s)
    sprites = moment.sprites(camera)
    for sprite in sprites:
        sprite.paint(_lit(sprite, scene, light), sprite.drawing.alphas)
    resolve_visibility(sprites, camera.size)
    mask = np.zeros((camera.size[1], camera.size[0]), np.uint8)
    canvas = _paint_backdrop(scene, camera, light, time_s)
    _paint_ground(canvas, mask, scene, camera, light, time_s)
    top = ground_of(camera).top
    shadows = shadow_map(sprites, scene, camera)[top:]
    canvas[top:] *= cv2.merge([shadows, shadows, shadows])
    smoke = [(SMOKE_M, 0), (0.0, 1)] if scene.climate.smoke > 0 else []
    for sprite in reversed(sprites):
        while smoke and sprite.distance < smoke[0][0]:
            _paint_smoke(canvas, scene, light, time_s, smoke.pop(0)[1])
        _paint_actor(canvas, sprite, scene)
        mask[sprite.window][sprite.coverage >= 0.5] = sprite.actor.class_id
    for _, layer in smoke:
        _paint_smoke(canvas, scene, light, time_s, layer)
    _paint_lamps(canvas, sprites, scene, camera)
    objects = _objects(sprites, scene, canvas)
    return RgbView(_expose(canvas, scene, time_s), mask, objects, camera, time_s)


def _paint_backdrop(scene: Scene, camera: Camera, light: Light, time_s: float) -> Float32Array:
    climate = scene.climate
    width, height = camera.size
    rng = np.random.default_rng([scene.seed, 2])
    ambient = light.ambient ** (1.0 / DISPLAY_GAMMA)
    canvas = np.empty((height, width, 3), np.float32)
    skyline, horizon = skyline_rows(scene, camera)
    horizon = int(np.clip(horizon, 1, height))
    rise = np.linspace(1.0, 0.0, horizon, dtype=np.float32)[:, None] ** 0.8
    sky = np.array(climate.sky_low) * (1 - rise) + np.array(climate.sky_high) * rise
    band = canvas[:horizon]
    band[:] = sky[:, None].astype(np.float32)
    cells = textures.crop(textures.value_noise(32), rng, (220, 110))
    clouds = textures.stretch(cells, (width, horizon))
    band *= (1.0 + climate.clouds * clouds)[..., None]
    # Distant trees and houses along the horizon, faded by haze.
    top = max(0, int(skyline.min()))
    if top < horizon:
        far = np.array((72.0, 82.0, 74.0)) * ambient
        fade = 0.45 if climate.time_of_day is not TimeOfDay.NIGHT else 0.1
        tone = (far * (1 - fade) + np.array(climate.sky_low) * fade).astype(np.float32)
        rows = np.arange(top, horizon, dtype=np.float32)[:, None]
        cover = np.clip(rows - skyline[None], 0.0, 1.0)[..., None]
        mottle = textures.crop(textures.value_noise(512, 0.8), rng, (width, horizon - top))
        canvas[top:horizon] += cover * (tone * (1.0 + 0.25 * mottle[..., None]) - canvas[top:horizon])
    for building, start in facades(scene, time_s):
        found = facade_window(building, start, scene, camera)
        if found is None:
            continue
        homography, pixels = found
        middle = start if building.side == 0 else max(start + 0.5 * building.length_m, 0.0)
        place = light.at(
            np.array(middle), np.array(0.8 * building.side * building.offset_m if building.side else 0.0), 2.5
        )
        haze = float(np.exp(-middle / climate.haze_m))
        side_shade = 1.0 - 0.25 * climate.sun * (building.side == (1 if scene.seed % 2 else -1))
        factors = (place * side_shade * haze).astype(np.float32)
        texture = np.asarray(building.colours * factors, np.float32)
        texture += np.array(climate.sky_low, np.float32) * np.float32(1 - haze)
        if climate.ambient < 0.4:
            texture = np.maximum(texture, building.glow.astype(np.float32))
        paste_facade(canvas, texture, homography, pixels)
    return canvas


def _paint_ground(
    canvas: Float32Array, mask: UInt8Image, scene: Scene, camera: Camera, light: Light, time_s: float
) -> None:
    """Paint the ground, in place, and its kerbs into the class mask."""
    street, climate = scene.street, scene.climate
    ground = ground_of(camera)
    width, height = camera.size
    paint = np.empty((height, width, 3), np.uint8)
    paint[:] = np.clip(street.road, 0, 255)
    for marking in markings(scene, camera, time_s):
        cv2.fillPoly(paint, [marking.pixels], tuple(float(c) for c in np.clip(marking.colour, 0, 255)), cv2.LINE_AA, 4)
        if marking.kerb:
            cv2.fillPoly(mask, [marking.pixels], _CURVE, cv2.LINE_8, 4)
    texture = ground_texture(scene, camera, ground, time_s)
    rows = len(ground.x)
    small = (max(2, width // 8), max(2, rows // 4))
    y = cv2.resize(ground.y, small, interpolation=cv2.INTER_AREA).astype(np.float64)
    x = cv2.resize(ground.x[:, None], (1, small[1]), interpolation=cv2.INTER_AREA).astype(np.float64)
    factors = light.at(np.repeat(x.reshape(-1, 1), small[0], axis=1), y, 0.0)
    light_map = textures.stretch(factors.astype(np.float32), (width, rows))
    haze = np.exp(-ground.x / climate.haze_m)[:, None, None]
    if climate.ambient < 0.4:
        haze = np.sqrt(haze)
    below = canvas[ground.top :]
    np.multiply(paint[ground.top :], light_map, out=below)
    gain = np.asarray((1.0 + street.roughness * texture) * haze[..., 0], np.float32)
    below *= cv2.merge([gain, gain, gain])
    below += (1 - haze) * np.array(climate.sky_low, np.float32)
    horizon = int(np.clip(np.ceil(camera.horizon_row), 0, ground.top))
    if horizon < ground.top:
        canvas[horizon : ground.top] = canvas[ground.top]


def _lit(sprite: Sprite, scene: Scene, light: Light) -> Float64Array:
    """Return the colours of a sprite's parts where it stands, float64 (parts, 3), 0..255."""
    drawing, climate = sprite.drawing, scene.climate
    count = len(drawing.alphas)
    factors = light.at(np.full(count, sprite.pose.x), np.full(count, sprite.pose.y), sprite.part_z)
    haze = float(np.exp(-sprite.distance / climate.haze_m))
    reflected = np.array(drawing.colours) * factors * haze + np.array(climate.sky_low) * (1 - haze)
    glows = np.array(drawing.glows)
    if climate.ambient > 0.4:
        glows = glows * 0.8
    return np.clip(np.maximum(reflected, glows), 0, 255)


def _paint_actor(canvas: Float32Array, sprite: Sprite, scene: Scene) -> None:
    actor, values, coverage = sprite.actor, sprite.values, sprite.coverage
    part = canvas[sprite.window]
    if actor.texture > 0:
        rng = np.random.default_rng([scene.seed, 4, actor.actor_id])
        height, width = coverage.shape
        if isinstance(actor, Person | Car):
            mottle = textures.stretch(textures.patch(rng, (12, 24)), (width, height))
        else:
            mottle = textures.crop(textures.value_noise(512, 0.8), rng, (width, height))
        values = values * np.maximum(1.0 + actor.texture * mottle, 0.1)[..., None]
    if isinstance(actor, Person) and actor.hidden:
        total = max(float(coverage.sum()), 1e-6)
        behind = (part * coverage[..., None]).sum((0, 1)) / total
        own = values.sum((0, 1)) / total
        level = float(own.mean()) / max(float(behind.mean()), 1.0)
        # Dark clothes in the dark: the colour of what is behind, with a remnant of the own relief.
        relief = (values - coverage[..., None] * own) / max(level, 1.0)
        values = coverage[..., None] * behind + 0.25 * relief
    part *= 1.0 - coverage[..., None]
    part += values


def _paint_smoke(canvas: Float32Array, scene: Scene, light: Light, time_s: float, layer: int) -> None:
    """Blend a cloud of drifting smoke over what has been painted so far, in place."""
    climate = scene.climate
    height, width = canvas.shape[:2]
    rng = np.random.default_rng([scene.seed, 5, layer])
    tile = textures.value_noise(32, 0.5)
    left, top = rng.integers(textures.TILE // 2, size=2)
    columns = (left + int(time_s * 40) + np.arange(320)) % textures.TILE
    field = textures.stretch(tile[top : top + 256, columns], (width // 4, height // 4))
    cx, cy, spread = rng.uniform(0.2, 0.8), rng.uniform(0.4, 0.65), rng.uniform(0.25, 0.6)
    x = np.linspace(0, 1, width // 4, dtype=np.float32)[None] - cx
    y = np.linspace(0, 1, height // 4, dtype=np.float32)[:, None] - cy
    body = np.exp(-(np.square(x) / spread**2 + np.square(y) / (0.7 * spread) ** 2))
    alpha = climate.smoke * (1.0 - np.exp(-2.6 * body * np.maximum(1.0 + 0.6 * field, 0.0)))
    alpha = textures.stretch(alpha.astype(np.float32), (width, height))[..., None]
    lit = light.at(np.array(8.0), np.array(0.0), 1.0)
    colour = (np.array([200.0, 200.0, 203.0]) * np.minimum(lit, 1.1)).astype(np.float32)
    canvas += alpha * (colour - canvas)


@lru_cache(maxsize=1)
def _halo() -> Float32Array:
    """Return float32 (129, 129): the glow around a lamp, 1 in the middle, 0 at the rim."""
    axis = np.linspace(-1.0, 1.0, 129, dtype=np.float32)
    radius = np.hypot(axis[None], axis[:, None])
    halo = 0.75 * np.exp(-np.square(radius / 0.11)) + 0.25 * np.exp(-radius / 0.22)
    result: Float32Array = np.maximum(halo - 0.25 * np.exp(-1 / 0.22), 0.0).astype(np.float32) * (radius < 1)
    return result


def _add_glow(canvas: Float32Array, centre: Float64Array, radius: float, colour: np.ndarray) -> None:
    height, width = canvas.shape[:2]
    radius = float(np.clip(radius, 2.0, 0.6 * width))
    x0, y0 = round(float(centre[0]) - radius), round(float(centre[1]) - radius)
    side = round(2 * radius) + 1
    a, b, c, d = max(x0, 0), max(y0, 0), min(x0 + side, width), min(y0 + side, height)
    if a >= c or b >= d:
        return
    halo = textures.stretch(_halo(), (side, side))[b - y0 : d - y0, a - x0 : c - x0]
    canvas[b:d, a:c] += halo[..., None] * colour.astype(np.float32)


def _paint_lamps(canvas: Float32Array, sprites: list[Sprite], scene: Scene, camera: Camera) -> None:
    """Add the glow of lamps and, in glare scenes, of a low sun or dazzling headlights."""
    climate = scene.climate
    dark = climate.ambient < 0.4
    rows = camera.size[1] / 512.0
    for sprite in sprites:
        actor = sprite.actor
        sources = []
        if isinstance(actor, Lamp) and actor.lit:
            reach, lift = actor.head
            sources.append((np.array([sprite.pose.x, sprite.pose.y - reach, lift]), actor.colour, 0.9))
        elif isinstance(actor, Car):
            sources.extend(actor.lamps(sprite.pose))
        for point, colour, strength in sources:
            pixels, depth = camera.project(point[None])
            column, row = (int(v) for v in np.rint(pixels[0]))
            if depth[0] < 1.0 or not (0 <= column < camera.size[0] and 0 <= row < camera.size[1]):
                continue
            gain = strength * (1.0 if dark else 0.25) * (1.0 + 1.5 * climate.glare)
            radius = rows * (16.0 + 260.0 / float(depth[0])) * (1.0 + 1.5 * climate.glare) * np.sqrt(strength)
            _add_glow(canvas, pixels[0], radius, np.array(colour) * gain * 1.3)
    if climate.glare > 0:
        rng = np.random.default_rng([scene.seed, 6])
        width, height = camera.size
        if dark:
            for _ in range(int(rng.integers(1, 4))):
                centre = np.array(
                    [rng.uniform(0.1, 0.9) * width, camera.horizon_row + rng.uniform(-0.02, 0.08) * height]
                )
                for offset in (-0.02, 0.02):
                    _add_glow(
                        canvas,
                        centre + (offset * width, 0.0),
                        rng.uniform(60, 150) * rows,
                        np.array([430.0, 415.0, 380.0]) * climate.glare,
                    )
        else:
            centre = np.array([rng.uniform(0.1, 0.9) * width, camera.horizon_row - rng.uniform(0.0, 0.4) * height])
            _add_glow(canvas, centre, 0.55 * width, np.array([520.0, 500.0, 450.0]) * climate.glare)
            canvas += np.float32(25.0 * climate.glare)


def _expose(canvas: Float32Array, scene: Scene, time_s: float) -> UInt8Image:
    """Turn the painted light into what the RGB camera delivers: blur, white balance, vignetting, noise, 8 bits."""
    sensors = scene.sensors
    height, width = canvas.shape[:2]
    blur = sensors.rgb_blur_px * height / 512.0
    canvas = np.asarray(cv2.GaussianBlur(canvas, (5, 5), blur), np.float32)
    canvas *= np.array(sensors.white_balance, np.float32)
    if sensors.vignette > 0.05:
        falloff = np.asarray(1.0 - sensors.vignette * textures.squared_radius((width, height)), np.float32)
        canvas *= cv2.merge([falloff, falloff, falloff])
    rng = np.random.default_rng([scene.seed, 7, round(time_s * 1e6) % 2**32])
    noise = textures.crop(textures.white_noise(), rng, (width, height))
    chroma = textures.crop(textures.white_noise(), rng, (width, height))
    level = cv2.extractChannel(canvas, 1)
    sigma = sensors.rgb_read_noise + sensors.rgb_photon_noise * cv2.sqrt(np.clip(level, 0, 255) * np.float32(1 / 255))
    noise = noise * sigma
    chroma = chroma * sigma * np.float32(0.5)
    canvas += cv2.merge([noise + chroma, noise, noise - chroma])
    image = cv2.convertScaleAbs(np.maximum(canvas, 0.0))  # rounds and saturates
    table = np.rint(255.0 * (np.arange(256) / 255.0) ** sensors.gamma).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table), np.uint8)


def _objects(sprites: list[Sprite], scene: Scene, canvas: Float32Array) -> Objects:
    """Return what is known about the objects; canvas: the painted picture before noise."""
    width, height = scene.camera.size
    kept: list[tuple[Sprite, Float64Array, float, float, float]] = []
    for sprite in sprites:
        if sprite.actor.label == NOT_DETECTED:
            continue
        full = sprite.box
        box = np.clip(full, 0, (width, height, width, height))
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        truncation = 1.0 - area / float((full[2] - full[0]) * (full[3] - full[1]))
        silhouette, seen = float(sprite.coverage.sum()), float(sprite.visible.sum())
        fraction = seen / silhouette if silhouette > 0 else 0.0
        if full[3] - full[1] < MIN_BOX_PX * height / 512.0 or fraction < MIN_VISIBLE or truncation > MAX_TRUNCATION:
            continue
        contrast = _rgb_contrast(canvas, sprite) if isinstance(sprite.actor, Person) else np.nan
        kept.append((sprite, box, fraction, truncation, contrast))
    if not kept:
        return no_objects()
    found, boxes, fractions, truncations, contrasts = zip(*kept, strict=True)
    positions = np.array([(s.pose.x, s.pose.y) for s in found])
    visible = np.array(fractions, np.float32)
    persons = [s.actor if isinstance(s.actor, Person) else None for s in found]
    return Objects(
        boxes=np.array(boxes, np.float32),
        labels=np.array([s.actor.label for s in found], np.int64),
        visible_fraction=visible,
        occlusion=occlusion_level(visible),
        truncation=np.array(truncations, np.float32),
        position_m=positions.astype(np.float32),
        distance_m=np.hypot(positions[:, 0], positions[:, 1]).astype(np.float32),
        velocity_mps=np.array([(s.actor.vx, s.actor.vy) for s in found], np.float32),
        height_m=np.array([s.actor.size_m[1] for s in found], np.float32),
        actor_id=np.array([s.object_id for s in found], np.int64),
        rider=np.array([p is not None and p.rider for p in persons]),
        behind_glass=np.array([p is not None and p.behind_glass for p in persons]),
        hidden=np.array([p is not None and p.hidden for p in persons]),
        camouflaged=np.array([p is not None and p.camouflaged for p in persons]),
        rgb_contrast=np.array(contrasts, np.float32),
        thermal_contrast_k=np.full(len(found), np.nan, np.float32),
    )


def _rgb_contrast(canvas: Float32Array, sprite: Sprite) -> float:
    """Return the root mean square difference of a sprite's visible pixels from the mean around it, grey levels."""
    seen = float(sprite.visible.sum())
    if seen <= 0.5:
        return float("nan")
    x0, y0, x1, y1 = sprite.roi
    pad = max(2, (y1 - y0) // 8)
    left, top = max(0, x0 - pad), max(0, y0 - pad)
    around = np.clip(canvas[top : y1 + pad, left : x1 + pad], 0, 255) @ np.array(LUMA, np.float32)
    inner = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    outside = np.ones_like(around)
    outside[inner] -= sprite.coverage
    mean = float((around * outside).sum() / max(float(outside.sum()), 1e-6))
    return float(np.sqrt((np.square(around[inner] - mean) * sprite.visible).sum() / seen))
