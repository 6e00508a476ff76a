"""Every random choice of a scene, with its distribution stated here and nowhere else.

Difficulty is specified, not tuned (constants below): heights of persons follow the KAIST test set plus a tail of
small ones, a stated share of night persons vanishes in RGB, a stated share of lit persons has no thermal contrast.
"""

from dataclasses import replace

import numpy as np

from md_perception.scenes.actors import Actor, Bump, CarStop, Colour, Cone, GlassPane, Guardrail, Lamp, Post, Tree
from md_perception.scenes.camera import Camera
from md_perception.scenes.cars import CAR_STYLES, Car
from md_perception.scenes.people import Bicycle, Clothing, Person
from md_perception.scenes.textures import crop, value_noise
from md_perception.scenes.world import (
    LAP_M,
    REAR_M,
    Building,
    Climate,
    Scene,
    SceneSettings,
    SensorCharacter,
    Street,
    TimeOfDay,
)

KAIST_HEIGHTS_PX = ((0, 54.0), (5, 56.0), (25, 63.0), (50, 75.0), (75, 96.0), (95, 160.0), (100, 250.0))
"""(percentile, height in px at 512 rows) of the reasonable persons of the KAIST test set; the ends are ours."""


SMALL_HEIGHTS_PX = (20.0, 55.0)


SMALL_SHARE = 0.25
"""This share of persons is drawn from the tail of small heights (uniform) instead of KAIST's percentiles."""


HIDDEN_SHARE_AT_NIGHT = 0.35
"""This share of night persons wears the dark: their RGB equals what is behind them but for HIDDEN_DETAIL."""


LOW_RGB_CONTRAST = 8.0
"""A person below this RGB contrast (Objects.rgb_contrast, grey levels of 255) counts as vanished in RGB."""


CAMOUFLAGED_SHARE_BY_LIGHT = 0.15
"""This share of day and dusk persons is as warm as what is behind them."""


LOW_THERMAL_CONTRAST_K = 0.6
"""A person below this thermal contrast (Objects.thermal_contrast_k, kelvin) counts as vanished in thermal."""


CONDITION_SHARES = {"day": 0.42, "dusk": 0.16, "night": 0.42}


SMOKE_SHARE = 0.10


GLARE_SHARE = 0.10


GLASS_SHARE = 0.13


PERSON_COUNTS = (0.10, 0.13, 0.15, 0.16, 0.14, 0.12, 0.08, 0.07, 0.05)
"""Probability of 0, 1, 2, ... persons on foot. Riders and persons behind glass come on top."""


BLOCK_M = 36.0
"""Length of a block of street (sample_scene)."""

STATIC_SHARES = {"curve": 0.6, "color_cone": 0.33, "guardrail": 0.3, "bump": 0.28, "car_stop": 0.3}
"""Probability that a scene contains a class of small street furniture."""


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    names = list(shares)
    return names[int(np.searchsorted(np.cumsum(list(shares.values())), rng.random() * sum(shares.values())))]


def _colour(rng: np.random.Generator, *choices: Colour, spread: float = 12.0) -> Colour:
    base = choices[int(rng.integers(len(choices)))]
    r, g, b = np.clip(np.array(base) + rng.normal(0.0, spread, 3), 4.0, 250.0)
    return (float(r), float(g), float(b))


def sample_climate(rng: np.random.Generator, settings: SceneSettings) -> Climate:
    """Draw the time of day and the weather."""
    time = settings.time_of_day or TimeOfDay(_pick(rng, CONDITION_SHARES))
    smoke = settings.smoke if settings.smoke is not None else bool(rng.random() < SMOKE_SHARE)
    glare = settings.glare if settings.glare is not None else bool(rng.random() < GLARE_SHARE)
    overcast = rng.random() < 0.45
    air = float(rng.uniform(268.0, 305.0))
    if time is TimeOfDay.DAY:
        ambient = float(rng.uniform(0.5, 1.15))
        sun = 0.0 if overcast else float(rng.uniform(0.5, 1.0))
        light: Colour = (1.0, 1.0, 1.0) if overcast else (1.03, 1.0, 0.95)
        low: Colour = (232.0, 236.0, 240.0)
        high: Colour = (215.0, 222.0, 230.0) if overcast else _colour(rng, (120.0, 165.0, 225.0), (90.0, 140.0, 210.0))
        headlights = 0.0
    elif time is TimeOfDay.DUSK:
        ambient = float(np.exp(rng.uniform(np.log(0.06), np.log(0.3))))
        sun = 0.15 if rng.random() < 0.4 else 0.0
        light = _colour(rng, (1.08, 0.95, 0.88), (0.9, 0.96, 1.12), spread=0.03)
        light = tuple(float(c) for c in np.clip([*light], 0.8, 1.2)) if max(light) < 2 else (1.0, 0.97, 0.95)  # type: ignore[assignment]
        low = _colour(rng, (225.0, 150.0, 95.0), (190.0, 170.0, 170.0), (150.0, 160.0, 190.0))
        high = _colour(rng, (70.0, 85.0, 125.0), (95.0, 100.0, 130.0))
        headlights = float(rng.uniform(0.0, 0.3))
    else:
        ambient = float(np.exp(rng.uniform(np.log(0.001), np.log(0.016))))
        sun = 0.0
        light = (0.95, 1.0, 1.0)
        low = _colour(rng, (20.0, 18.0, 20.0), (34.0, 26.0, 22.0), (8.0, 8.0, 10.0), spread=3.0)
        high = _colour(rng, (4.0, 4.0, 7.0), (9.0, 9.0, 13.0), spread=1.5)
        headlights = float(rng.uniform(0.15, 1.0)) if rng.random() < 0.75 else 0.0
    colder = rng.uniform(2.0, 6.0) if overcast else rng.uniform(7.0, 18.0)
    return Climate(
        time_of_day=time,
        air_k=air,
        sun=sun,
        ambient=ambient,
        light=light,
        sky_low=low,
        sky_high=high,
        clouds=float(rng.uniform(0.0, 0.12)),
        sky_k=(air - 0.3 * colder, air - colder),
        haze_m=float(rng.uniform(90.0, 700.0)),
        smoke=float(rng.uniform(0.55, 0.97)) if smoke else 0.0,
        glare=float(rng.uniform(0.5, 1.0)) if glare else 0.0,
        headlights=headlights,
        wet=float(rng.random() < 0.2),
    )


def sample_cameras(rng: np.random.Generator, settings: SceneSettings) -> tuple[Camera, Camera]:
    """Draw the mounting of the RGB camera and of the thermal camera beside it."""
    width, height = settings.size
    rows = height / 512.0
    rgb = Camera(
        size=settings.size,
        focal_px=settings.focal_rows * height * float(rng.uniform(0.92, 1.12)),
        principal_px=(
            0.5 * (width - 1) + rows * float(rng.uniform(-6, 6)),
            0.5 * (height - 1) + rows * float(rng.uniform(-6, 6)),
        ),
        height_m=float(rng.uniform(1.25, 1.75)),
        pitch_rad=float(np.deg2rad(rng.uniform(-0.5, 4.0))),
    )
    shift = settings.thermal_misalignment_px * rows * rng.uniform(-1.0, 1.0, 2)
    thermal = Camera(
        size=rgb.size,
        focal_px=rgb.focal_px,
        principal_px=(rgb.principal_px[0] + float(shift[0]), rgb.principal_px[1] + float(shift[1])),
        height_m=rgb.height_m,
        pitch_rad=rgb.pitch_rad,
        lateral_m=float(rng.uniform(-0.03, 0.03)) if settings.thermal_misalignment_px > 0 else 0.0,
    )
    size = settings.thermal_size or settings.size
    return rgb, thermal if size == rgb.size else thermal.resized(size)


def person_height_px(rng: np.random.Generator) -> float:
    """Draw a person's height in px at 512 rows: KAIST's percentiles, or with SMALL_SHARE the tail of small ones."""
    if rng.random() < SMALL_SHARE:
        return float(rng.uniform(*SMALL_HEIGHTS_PX))
    percentile, height = np.array(KAIST_HEIGHTS_PX).T
    return float(np.interp(rng.uniform(0.0, 100.0), percentile, height))


_SKIN: tuple[Colour, ...] = ((224, 180, 150), (205, 155, 125), (170, 118, 88), (120, 80, 60), (235, 195, 170))


_HAIR: tuple[Colour, ...] = ((30, 25, 22), (45, 32, 25), (90, 65, 40), (150, 145, 140), (20, 20, 22))


_CLOTH: tuple[Colour, ...] = (
    (40, 42, 48), (30, 34, 55), (60, 62, 66), (95, 92, 88), (150, 150, 150), (215, 215, 210), (170, 40, 40),
    (45, 80, 140), (60, 100, 70), (190, 160, 110), (120, 70, 50), (220, 190, 60), (180, 90, 130), (75, 110, 130),
)  # fmt: skip


_TROUSERS: tuple[Colour, ...] = ((35, 38, 50), (45, 60, 95), (60, 58, 55), (25, 25, 27), (140, 130, 110), (90, 95, 100))


_PAINT: tuple[Colour, ...] = (
    (225, 226, 228), (190, 192, 195), (120, 122, 126), (45, 46, 50), (28, 28, 32), (150, 30, 32), (35, 60, 120),
    (60, 90, 75), (200, 190, 160), (170, 175, 185),
)  # fmt: skip


class _Sampler:
    """Fills a street; one object so that ids, the climate and the random stream are shared."""

    def __init__(self, rng: np.random.Generator, settings: SceneSettings) -> None:
        self.rng = rng
        self.settings = settings
        self.climate = sample_climate(rng, settings)
        self.camera, self.thermal_camera = sample_cameras(rng, settings)
        self.street = self._street()
        self.actors: list[Actor] = []
        self.taken: list[tuple[float, float, float, float]] = []
        self.next_id = 1

    # -- helpers ---------------------------------------------------------------------------------------------------

    @property
    def _night(self) -> bool:
        return self.climate.time_of_day is TimeOfDay.NIGHT

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def _near_air(self, low: float, high: float, sun_gain: float = 0.0) -> float:
        return float(self.climate.air_k + self.rng.uniform(low, high) + sun_gain * self.climate.sun)

    def _half_view(self, x: float) -> float:
        return 0.5 * self.camera.size[0] / self.camera.focal_px * x

    def _free(self, x: float, y: float, rx: float, ry: float) -> bool:
        return all(abs(x - a) > rx + ra or abs(y - b) > ry + rb for a, b, ra, rb in self.taken)

    # -- ground ----------------------------------------------------------------------------------------------------

    def _street(self) -> Street:
        rng, climate = self.rng, self.climate
        road = float(rng.uniform(70.0, 135.0))
        tint = rng.normal(0.0, 4.0, 3)
        wet = 0.75 if climate.wet else 1.0
        sides = _colour(
            rng, (125, 122, 118), (150, 146, 140), (110, 95, 85), (85, 105, 60), (135, 125, 110), spread=8.0
        )
        warm = rng.uniform(0.0, 13.0) * climate.sun
        at_night = rng.uniform(-1.5, 3.0) if self._night else 0.0
        road_k = climate.air_k + warm + at_night + rng.uniform(-1.0, 2.0)
        curb = self._chance(STATIC_SHARES["curve"])
        both = self._chance(0.5)
        left = curb and (both or self._chance(0.5))
        return Street(
            half_width_m=float(rng.uniform(2.8, 5.5)),
            centre_m=float(rng.uniform(-1.5, 1.8)),
            curvature=float(rng.normal(0.0, 0.0016)),
            road=(road * wet + tint[0], road * wet + tint[1], road * wet + tint[2]),
            side=sides,
            road_k=float(road_k),
            side_k=float(road_k + rng.uniform(-3.0, 1.5)),
            kerb_left=left,
            kerb_right=curb and (both or not left),
            kerb=_colour(rng, (180, 178, 172), (205, 203, 198), (150, 148, 145), (200, 170, 60), spread=6.0),
            kerb_raised=self._chance(0.7),
            edge_line=self._chance(0.45),
            dashes=self._chance(0.4),
            paint=_colour(rng, (215, 215, 210), (225, 225, 222), (200, 175, 70), (185, 185, 180), spread=6.0),
            paint_k=float(road_k - rng.uniform(0.2, 1.0) - 2.5 * climate.sun * rng.random()),
            crossing_m=float(rng.uniform(7.0, 35.0)) if self._chance(0.25) else None,
            bays_m=float(rng.uniform(4.0, 15.0)) if self._chance(0.3) else None,
            arrow_m=float(rng.uniform(6.0, 25.0)) if self._chance(0.2) else None,
            roughness=float(rng.uniform(0.05, 0.16)),
        )

    # -- blocks ----------------------------------------------------------------------------------------------------

    def busy_block(self) -> None:
        """Fill the street with what moves and what is annotated."""
        self.cars()
        self.shelter()
        self.persons()
        self.bicycles()
        self.furniture()

    def further_block(self, ahead_m: float) -> None:
        """Fill the street once more, further on; what would lie beyond the lap is left out."""
        earlier, self.actors, self.taken = self.actors, [], []
        self.busy_block()
        shifted = [replace(actor, x=actor.x + ahead_m) for actor in self.actors]
        self.actors = earlier + [actor for actor in shifted if actor.x < LAP_M + REAR_M - 3.0]

    # -- persons ---------------------------------------------------------------------------------------------------

    def clothing(self) -> Clothing:
        """Draw colours and temperatures: bare skin is hot, clothes lie between air and skin by insulation."""
        rng, air = self.rng, self.climate.air_k
        skin_k = air + (307.0 - air) * rng.uniform(0.72, 0.95)
        warmth = rng.uniform(0.12, 0.6)
        bottom = rng.uniform(0.12, 0.55)
        sun = 3.0 * self.climate.sun * rng.random()
        hot = air > 295.0
        return Clothing(
            skin=_colour(rng, *_SKIN, spread=8.0),
            hair=_colour(rng, *_HAIR, spread=6.0),
            top=_colour(rng, *_CLOTH),
            bottom=_colour(rng, *_TROUSERS),
            shoes=_colour(rng, (30, 30, 32), (60, 50, 45), (200, 200, 200)),
            skin_k=float(skin_k),
            hair_k=float(air + (skin_k - air) * rng.uniform(0.45, 0.8) + sun),
            top_k=float(air + (skin_k - air) * warmth + sun),
            bottom_k=float(air + (skin_k - air) * bottom + sun),
            shoes_k=float(air + (skin_k - air) * rng.uniform(0.05, 0.3)),
            short_sleeves=bool(hot and rng.random() < 0.7),
            coat=bool(not hot and rng.random() < 0.3),
            skirt=bool(rng.random() < 0.12),
            bag=_colour(rng, *_CLOTH) if rng.random() < 0.25 else None,
            hat=_colour(rng, *_CLOTH) if rng.random() < 0.12 else None,
        )

    def person_at(self, x: float, y: float, *, height_m: float, behind_glass: bool = False) -> Person:
        rng = self.rng
        standing = behind_glass or self._chance(0.3)
        running = not standing and self._chance(0.08)
        heading = float(_pick_heading(rng))
        speed = 0.0 if standing else float(rng.uniform(2.2, 3.2) if running else rng.uniform(0.7, 1.7))
        return Person(
            actor_id=self._new_id(),
            x=x,
            y=y,
            vx=speed * float(np.cos(heading)),
            vy=speed * float(np.sin(heading)),
            heading=heading,
            texture=0.1,
            height_m=height_m,
            build=float(np.clip(rng.normal(1.03, 0.12), 0.8, 1.4)),
            stride=float(
                rng.uniform(0.0, 0.12) if standing else rng.uniform(0.6, 0.8) if running else rng.uniform(0.3, 0.52)
            ),
            cadence_hz=0.0 if standing else float(rng.uniform(1.2, 1.5) if running else rng.uniform(0.8, 1.05)),
            phase=float(rng.uniform(0, 2 * np.pi)),
            arms=float(rng.uniform(0.8, 2.2)) if self._chance(0.2) else 0.0,
            clothing=self.clothing(),
            hidden=self._night and self._chance(HIDDEN_SHARE_AT_NIGHT),
            camouflaged=not self._night and self._chance(CAMOUFLAGED_SHARE_BY_LIGHT),
            behind_glass=behind_glass,
        )

    def _standing_height(self) -> float:
        rng = self.rng
        return (
            float(rng.uniform(1.05, 1.45))
            if rng.random() < 0.07
            else float(np.clip(rng.normal(1.68, 0.08), 1.48, 1.95))
        )

    def _distance(self, height_m: float, height_px: float) -> float:
        """Return the distance at which a height in metres shows as a height in px at 512 rows."""
        return self.camera.focal_px * (512.0 / self.camera.size[1]) * height_m / height_px

    def persons(self) -> None:
        count = int(self.rng.choice(len(PERSON_COUNTS), p=np.array(PERSON_COUNTS) / sum(PERSON_COUNTS)))
        companion: Person | None = None
        for _ in range(count):
            height_m = self._standing_height()
            x = y = 0.0
            for _attempt in range(8):
                x = self._distance(height_m, person_height_px(self.rng))
                reach = min(self._half_view(x) * 0.97, 11.0)
                y = float(self.rng.uniform(-reach, reach))
                if companion is not None and abs(companion.x - x) < 4.0 and self._chance(0.75):
                    y = companion.y + float(self.rng.choice([-1, 1]) * self.rng.uniform(0.25, 0.9))
                if self._free(x, y, 0.3, 0.2):
                    break
            person = self.person_at(x, y, height_m=height_m)
            self.taken.append((x, y, 0.15, 0.1))
            self.actors.append(person)
            companion = person

    def shelter(self) -> None:
        """A glass shelter with one or two persons behind its pane."""
        if not self._chance(GLASS_SHARE):
            return
        x = float(self.rng.uniform(9.0, 24.0))
        side = float(self.rng.choice([-1.0, 1.0]))
        y = side * float(np.clip(self.rng.uniform(0.45, 0.85) * self._half_view(x), 2.0, 9.0))
        pane = GlassPane(
            self._new_id(),
            x,
            y,
            width_m=float(self.rng.uniform(2.2, 4.0)),
            height_m=float(self.rng.uniform(2.15, 2.5)),
            kelvin=self._near_air(-2.0, 1.0),
        )
        self.actors.append(pane)
        self.taken.append((x, y, 1.5, 0.5 * pane.width_m))
        for _ in range(1 + self._chance(0.4)):
            offset = float(self.rng.uniform(-0.32, 0.32)) * pane.width_m
            depth = float(self.rng.uniform(0.4, 1.2))
            self.actors.append(
                self.person_at(x + depth, y + offset, height_m=self._standing_height(), behind_glass=True)
            )

    def bicycles(self) -> None:
        rng = self.rng
        for _ in range(int(rng.poisson(0.85))):
            ridden = self._chance(0.55)
            kelvin = self._near_air(-1.0, 1.5, 3.0)
            x = y = 0.0
            for _attempt in range(8):
                x = self._distance(1.75, person_height_px(rng)) if ridden else float(rng.uniform(4.5, 22.0))
                reach = min(0.95 * self._half_view(x), 8.0)
                y = float(rng.uniform(-reach, reach))
                if self._free(x, y, 0.8, 0.4):
                    break
            heading = float(_pick_heading(rng))
            speed = float(rng.uniform(2.0, 5.0)) if ridden else 0.0
            vx, vy = speed * float(np.cos(heading)), speed * float(np.sin(heading))
            bicycle = Bicycle(
                self._new_id(),
                x,
                y,
                vx,
                vy,
                heading,
                colour=_colour(rng, (40, 42, 46), (170, 40, 40), (50, 90, 150), (190, 190, 190), (60, 120, 80)),
                kelvin=kelvin,
                tyre_k=kelvin + (float(rng.uniform(0.5, 4.0)) if ridden else 0.3),
                basket=self._chance(0.4),
            )
            self.actors.append(bicycle)
            self.taken.append((x, y, 0.7, 0.3))
            if ridden:
                self.actors.append(self._rider(bicycle))
            elif self._chance(0.3):  # a row of parked ones
                for k in range(1, int(rng.integers(2, 5))):
                    gap = 0.6 * k
                    self.actors.append(
                        Bicycle(
                            self._new_id(),
                            x + gap * float(np.sin(heading)),
                            y + gap * float(np.cos(heading)),
                            heading=heading + float(rng.normal(0, 0.06)),
                            colour=_colour(rng, (40, 42, 46), (120, 120, 125), (70, 70, 110)),
                            kelvin=kelvin,
                            tyre_k=kelvin + 0.3,
                            basket=self._chance(0.5),
                        )
                    )

    def _rider(self, bicycle: Bicycle) -> Person:
        rng = self.rng
        return Person(
            actor_id=self._new_id(),
            x=bicycle.x,
            y=bicycle.y,
            vx=bicycle.vx,
            vy=bicycle.vy,
            heading=bicycle.heading,
            texture=0.1,
            height_m=float(np.clip(rng.normal(1.7, 0.07), 1.5, 1.9)),
            build=float(np.clip(rng.normal(1.0, 0.1), 0.85, 1.3)),
            cadence_hz=float(rng.uniform(0.8, 1.3)),
            phase=float(rng.uniform(0, 2 * np.pi)),
            rider=True,
            clothing=self.clothing(),
            hidden=self._night and self._chance(HIDDEN_SHARE_AT_NIGHT),
            camouflaged=not self._night and self._chance(CAMOUFLAGED_SHARE_BY_LIGHT),
        )

    # -- cars ------------------------------------------------------------------------------------------------------

    def cars(self) -> None:
        rng, street = self.rng, self.street
        for _ in range(int(rng.poisson(1.9))):
            driven = self._chance(0.55)
            for _attempt in range(8):
                x = float(np.exp(rng.uniform(np.log(6.5), np.log(55.0))))
                side = float(rng.choice([-1.0, 1.0]))
                across = not driven and self._chance(0.25)
                if driven:
                    y = street.centre_m + side * float(rng.uniform(1.6, 2.6))
                    heading = 0.0 if side < 0 else np.pi
                    if x < 9.0:
                        y += side * 0.8
                else:
                    y = street.centre_m + side * (street.half_width_m + float(rng.uniform(-1.0, 1.6)))
                    heading = (0.0 if self._chance(0.5) else np.pi) + (0.5 * np.pi if across else 0.0)
                    if across:
                        y += side * 1.2
                heading += float(rng.normal(0.0, 0.05)) + street.curvature * x
                extent = (1.1, 2.4) if across else (2.4, 1.1)
                if self._free(x, y, *extent) and abs(y) > 1.6 + (0.9 if across else 0.0):
                    break
            else:
                continue
            warm = driven or self._chance(0.25)
            body = self._near_air(-3.0, 0.5) if self._night else self._near_air(-1.0, 2.0, 9.0 * float(rng.random()))
            engine = float(rng.uniform(5.0, 28.0)) if warm else float(rng.uniform(-0.5, 1.0))
            speed = float(rng.uniform(0.0, 9.0)) if driven else 0.0
            style = CAR_STYLES[int(rng.choice(len(CAR_STYLES), p=[0.35, 0.25, 0.2, 0.2]))]
            lit = driven and self.climate.time_of_day is not TimeOfDay.DAY and self._chance(0.9)
            self.actors.append(
                Car(
                    self._new_id(),
                    x,
                    y,
                    speed * float(np.cos(heading)),
                    0.0,
                    float(heading),
                    texture=0.03,
                    style=style,
                    scale=float(rng.uniform(0.94, 1.08)),
                    colour=_colour(rng, *_PAINT, spread=8.0),
                    body_k=body,
                    glass_k=self._near_air(-5.0, 0.5, 2.0),
                    hood_k=body + 0.6 * engine,
                    wheel_k=body + (float(rng.uniform(2.0, 14.0)) if warm else float(rng.uniform(-1.0, 1.0))),
                    exhaust_k=body + 1.5 * engine,
                    lights=lit,
                )
            )
            self.taken.append((x, y, *extent))

    # -- street furniture ------------------------------------------------------------------------------------------

    def furniture(self) -> None:
        rng, street = self.rng, self.street
        if self._chance(STATIC_SHARES["color_cone"]):
            x, y = float(rng.uniform(5.0, 22.0)), float(rng.uniform(-0.8, 0.8))
            y *= self._half_view(x)
            colour = _colour(rng, (225, 85, 30), (215, 60, 40), (235, 110, 35), (60, 90, 170))
            kelvin = self._near_air(-0.5, 1.5, 5.0)
            tall = float(rng.uniform(0.5, 0.95))
            step = float(rng.uniform(1.0, 3.0))
            slant = float(rng.uniform(-0.5, 0.5))
            for k in range(int(rng.integers(1, 6))):
                self.actors.append(
                    Cone(self._new_id(), x + k * step, y + k * slant, height_m=tall, colour=colour, kelvin=kelvin)
                )
        if self._chance(STATIC_SHARES["guardrail"]):
            side = float(rng.choice([-1.0, 1.0]))
            y0 = street.centre_m + side * (street.half_width_m + float(rng.uniform(0.1, 0.6)))
            first, count = float(rng.uniform(7.0, 16.0)), int(rng.integers(2, 8))
            colour = _colour(rng, (180, 182, 184), (225, 225, 225), (150, 120, 60), (90, 110, 95), spread=6.0)
            kelvin, tubular = self._near_air(-3.0, 1.0, 6.0), self._chance(0.45)
            for k in range(count):
                x = first + 4.0 * k
                y = y0 + 0.5 * street.curvature * x * x
                heading = street.curvature * x
                self.actors.append(
                    Guardrail(
                        self._new_id(),
                        x,
                        y,
                        heading=heading,
                        texture=0.04,
                        colour=colour,
                        kelvin=kelvin,
                        tubular=tubular,
                    )
                )
        if self._chance(STATIC_SHARES["bump"]):
            x = float(rng.uniform(5.5, 20.0))
            stripe = _colour(rng, (205, 165, 40), (215, 210, 200), (190, 140, 35), spread=6.0)
            self.actors.append(
                Bump(
                    self._new_id(),
                    x,
                    street.centre_m + 0.5 * street.curvature * x * x,
                    texture=0.08,
                    length_m=float(rng.uniform(1.1, 2.0)) * street.half_width_m,
                    light=stripe,
                    kelvin=street.road_k + float(rng.uniform(-1.5, 2.0)),
                )
            )
        if self._chance(STATIC_SHARES["car_stop"]):
            side = float(rng.choice([-1.0, 1.0]))
            x = float(rng.uniform(5.0, 14.0))
            y = side * float(rng.uniform(0.1, 0.6)) * self._half_view(x)
            colour = _colour(rng, (185, 182, 175), (150, 148, 145), (205, 175, 60), (210, 208, 200), spread=6.0)
            turn = float(rng.choice([0.0, 0.5 * np.pi])) + float(rng.normal(0, 0.06))
            along = abs(np.sin(turn)) > 0.5
            length = float(rng.uniform(0.55, 1.8))
            for k in range(int(rng.integers(2, 6))):
                gap = k * (length + 0.5)
                self.actors.append(
                    CarStop(
                        self._new_id(),
                        x + (gap if along else 0.0),
                        y + (0.0 if along else side * gap),
                        heading=turn,
                        length_m=length,
                        colour=colour,
                        kelvin=self._near_air(-1.5, 2.0, 6.0),
                    )
                )

    def surroundings(self) -> None:
        rng, street = self.rng, self.street
        green = _colour(rng, (70, 95, 45), (55, 80, 50), (110, 105, 45), (150, 105, 40), (45, 65, 40), spread=8.0)
        tree_k = self._near_air(-1.0, 1.0, 1.5)
        for side in (-1.0, 1.0):
            density = float(rng.choice([0.0, 0.25, 0.6]))
            x = float(rng.uniform(8.0, 18.0))
            while x < LAP_M + REAR_M - 2.0:
                if self._chance(density):
                    crown = float(rng.uniform(1.6, 3.2))
                    blobs = [
                        [
                            *rng.uniform((-0.75, -0.7), (0.75, 0.75)),
                            rng.uniform(0.25, 0.55),
                            rng.uniform(0.55, 1.25),
                            rng.normal(0, 0.6),
                            *rng.uniform(0.72, 1.15, 13),
                        ]
                        for _ in range(14)
                    ]
                    y = street.centre_m + side * (street.half_width_m + float(rng.uniform(1.2, 4.0)))
                    tree = Tree(
                        actor_id=self._new_id(),
                        x=x,
                        y=y,
                        texture=0.3,
                        height_m=float(rng.uniform(2.3, 3.2)) * crown,
                        crown_m=crown,
                        leaves=green,
                        kelvin=tree_k,
                        blobs=np.array(blobs, np.float32),
                    )
                    self.actors.append(tree)
                x += float(rng.uniform(4.0, 9.0))
        lamp_side = float(rng.choice([-1.0, 1.0]))
        dark = self.climate.time_of_day is not TimeOfDay.DAY
        colour = _colour(rng, (255, 215, 150), (255, 235, 205), (235, 240, 250), (255, 190, 110), spread=4.0)
        spacing, x = float(rng.uniform(14.0, 28.0)), float(rng.uniform(9.0, 24.0))
        lamps_lit = dark and self._chance(0.8)
        height = float(rng.uniform(4.5, 7.5))
        while self._chance(0.85) and x < LAP_M + REAR_M:
            y = street.centre_m + lamp_side * (street.half_width_m + 0.8)
            lit = lamps_lit and self._chance(0.85)
            head = self._near_air(8.0, 35.0) if lit else self._near_air(-1.0, 2.0)
            self.actors.append(
                Lamp(
                    self._new_id(),
                    x,
                    y,
                    height_m=height,
                    lit=lit,
                    colour=colour,
                    kelvin=self._near_air(-1, 1),
                    head_k=head,
                )
            )
            x += spacing
        for _ in range(int(rng.poisson(1.8))):
            x = float(rng.uniform(7.0, 40.0))
            side = float(rng.choice([-1.0, 1.0]))
            y = street.centre_m + side * (street.half_width_m + float(rng.uniform(0.4, 4.0)))
            if not self._free(x, y, 0.4, 0.4):
                continue
            kind = int(rng.integers(4))
            hot = self._chance(0.5)
            kelvin = self._near_air(4.0, 22.0) if hot else self._near_air(-1.5, 2.0, 4.0)
            width, tall, lift, pole = (
                (0.22, 1.0, 0.0, False),
                (0.6, 0.95, 0.0, False),
                (0.55, 0.55, 2.1, True),
                (0.9, 0.5, 1.6, False),
            )[kind]
            scale = float(rng.uniform(0.8, 1.5))
            self.actors.append(
                Post(
                    self._new_id(),
                    x,
                    y,
                    width_m=width * scale,
                    height_m=tall * scale,
                    lift_m=lift,
                    colour=_colour(rng, (110, 115, 110), (60, 80, 60), (190, 50, 45), (200, 200, 195), (70, 75, 120)),
                    kelvin=kelvin,
                    pole=pole,
                )
            )

    # -- buildings -------------------------------------------------------------------------------------------------

    def buildings(self) -> tuple[Building, ...]:
        rng, street = self.rng, self.street
        result = []
        far = float(rng.uniform(55.0, 110.0))
        if self._chance(0.75):
            width = float(rng.uniform(15.0, 60.0))
            result.append(
                self._building(
                    0, float(rng.uniform(-0.5, 0.5)) * 30.0 - 0.5 * width, width, far, self._building_height()
                )
            )
        for side in (-1, 1):
            if self._chance(0.2):
                continue
            x = float(rng.uniform(2.0, 22.0))
            offset = street.half_width_m + float(rng.uniform(2.5, 9.0))
            skyline = self._building_height()
            while x < far - 5.0:
                length = float(rng.uniform(9.0, 28.0))
                height = skyline * float(rng.uniform(0.75, 1.25))
                result.append(self._building(side, x, min(length, far - x), offset, height))
                x += length + (float(rng.uniform(1.0, 14.0)) if self._chance(0.5) else 0.0)
        return tuple(result)

    def _building_height(self) -> float:
        return float(self.rng.uniform(4.0, 9.0) if self._chance(0.4) else self.rng.uniform(9.0, 24.0))

    def _building(self, side: int, start: float, length: float, offset: float, height: float) -> Building:
        """Make a facade with a grid of windows, its temperatures and its lit windows."""
        rng, climate = self.rng, self.climate
        per_m = 8
        size = (max(8, int(length * per_m)), max(8, int(height * per_m)))
        wall = _colour(
            rng,
            (170, 160, 145),
            (150, 105, 85),
            (190, 188, 182),
            (120, 122, 125),
            (205, 195, 170),
            (95, 90, 90),
            spread=8.0,
        )
        mottle = crop(value_noise(), rng, size)
        colours = np.empty((size[1], size[0], 3), np.float32)
        colours[:] = wall
        colours *= (1.0 + 0.09 * mottle)[..., None]
        wall_k = self._near_air(-1.0, 3.0, 6.0 * float(rng.random()))
        kelvins = (wall_k + 0.35 * mottle).astype(np.float32)
        glow = np.zeros_like(colours)
        pitch_x, pitch_y = float(rng.uniform(1.6, 4.0)), float(rng.uniform(2.8, 3.6))
        wide, tall = float(rng.uniform(0.35, 0.8)) * pitch_x, float(rng.uniform(0.35, 0.6)) * pitch_y
        glass = _colour(rng, (60, 70, 80), (95, 110, 120), (40, 45, 50), spread=6.0)
        glass_k = self._near_air(-4.0, 2.0) if not self._night else self._near_air(-2.0, 4.0)
        dark = climate.time_of_day is not TimeOfDay.DAY
        lit_share = float(rng.choice([0.0, 0.12, 0.4])) if dark else 0.0
        tones = rng.uniform((230, 190, 120), (255, 245, 225))
        for row in range(int(height / pitch_y)):
            band = size[1] - int(row * pitch_y * per_m)
            bottom, top = band - int(0.9 * per_m), band - int((0.9 + tall) * per_m)
            if row == 0 and self._chance(0.4):
                bottom = band
            for column in range(int(length / pitch_x)):
                left = int((column + 0.5) * pitch_x * per_m - 0.5 * wide * per_m)
                window = np.s_[max(top, 0) : max(bottom, 0), left : left + int(wide * per_m)]
                colours[window] = np.array(glass) * rng.uniform(0.7, 1.4)
                kelvins[window] = glass_k + rng.normal(0.0, 0.6)
                if rng.random() < lit_share:
                    glow[window] = tones * rng.uniform(0.5, 1.0)
                    kelvins[window] += 1.5
                frame = np.s_[max(bottom - 1, 0) : max(bottom, 0), left : left + int(wide * per_m)]
                colours[frame] = np.array(wall) * 1.15
                if rng.random() < 0.04:  # an air conditioner blows warm
                    box = np.s_[max(bottom, 0) : max(bottom, 0) + 5, left : left + 7]
                    colours[box] = 170.0
                    kelvins[box] = wall_k + rng.uniform(2.0, 12.0)
        return Building(
            side=side,
            start_m=start,
            length_m=length,
            offset_m=offset,
            height_m=height,
            colours=np.clip(colours, 0, 255).astype(np.uint8),
            kelvins=kelvins,
            glow=np.clip(glow, 0, 255).astype(np.uint8),
        )


def _pick_heading(rng: np.random.Generator) -> float:
    """Along the street either way, or across, with scatter."""
    return float(rng.choice([0.0, 0.5 * np.pi, np.pi, 1.5 * np.pi]) + rng.normal(0.0, 0.35))


def _sensors(rng: np.random.Generator, climate: Climate) -> SensorCharacter:
    night = climate.time_of_day is TimeOfDay.NIGHT
    balance = 1.0 + rng.normal(0.0, 0.035, 3)
    return SensorCharacter(
        white_balance=(float(balance[0]), float(balance[1]), float(balance[2])),
        gamma=float(rng.uniform(0.9, 1.12)),
        rgb_blur_px=float(rng.uniform(0.45, 1.0)),
        rgb_read_noise=float(rng.uniform(2.5, 7.0) if night else rng.uniform(0.6, 2.5)),
        rgb_photon_noise=float(rng.uniform(4.0, 9.0) if night else rng.uniform(1.0, 4.0)),
        thermal_blur_px=float(rng.uniform(0.6, 1.2)),
        thermal_noise_k=float(rng.uniform(0.04, 0.14)),
        thermal_pattern_k=float(rng.uniform(0.02, 0.12)),
        vignette=float(rng.uniform(0.0, 0.3)),
    )


def sample_scene(seed: int, settings: SceneSettings | None = None, *, further_blocks: int = 0) -> Scene:
    """Return the street of a seed. The same arguments give the same street.

    further_blocks: how often the street is filled again, BLOCK_M further on each time, with more persons, cars,
    bicycles and furniture, so that a drive along it stays as busy as it began. The distributions stated above are
    those of a street without further blocks.
    """
    settings = settings or SceneSettings()
    rng = np.random.default_rng([seed, 1])
    sampler = _Sampler(rng, settings)
    sampler.busy_block()
    sampler.surroundings()
    buildings = sampler.buildings()
    skyline = crop(value_noise(256, 0.75), rng, (1024, 1))[0] * float(rng.uniform(0.3, 1.6))
    skyline = np.maximum(skyline + float(rng.uniform(0.5, 5.0)), 0.0)
    sensors = _sensors(rng, sampler.climate)
    speed = float(rng.uniform(0.0, 7.0))
    sampler.rng = np.random.default_rng([seed, 14])
    for block in range(1, further_blocks + 1):
        sampler.further_block(block * BLOCK_M)
    return Scene(
        seed=seed,
        settings=settings,
        camera=sampler.camera,
        thermal_camera=sampler.thermal_camera,
        climate=sampler.climate,
        street=sampler.street,
        sensors=sensors,
        actors=tuple(sampler.actors),
        buildings=buildings,
        ego_speed_mps=speed,
        skyline=skyline,
    )
