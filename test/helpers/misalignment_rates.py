"""How often the misalignment monitor gives alarm on registered pairs, and on the same pairs with a planted shift.

    python test/helpers/misalignment_rates.py [FOLDER [--names FILE]] [--trials 40]

FOLDER holds registered images of equal names in visible/ and thermal/; without it, views of the scene world that no
threshold was set on. Both images of a pair are cut to their middle, thermal a little beside it: no border is made up.
A trial is a monitor with the settings of the node that looks `CHECKS` times: `drive`, at another pair each time;
`parked`, at the same one, with other noise.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.scenes import SceneSettings, TimeOfDay, render_rgb, render_thermal, sample_scene
from md_perception.sensing.misalignment import MisalignmentMonitor
from md_perception.sensing.registration import sampling_matrix

Image = npt.NDArray[np.uint8]
Pair = tuple[Image, Image]
"""RGB uint8 (H, W, 3) and thermal uint8 (H, W), registered."""

SHIFTS = (0.0, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.03, 0.06)
"""Shares of the width of what is compared."""

CHECKS = 15
_MARGIN = 0.08
_RGB_SIZE, _THERMAL_SIZE = (320, 256), (160, 128)
_NOISE = 2.0
"""Standard deviation of each image's noise, grey values."""


@dataclass(frozen=True)
class Rates:
    """Of the trials with one shift. alarms: trials with one. checks: of the first alarm, median, NaN without one.
    known: share of all checks that had something to say. error_px: largest distance of the shift that was told from the
    planted one at the end of a trial, px of 160, NaN where none was told."""

    trials: int
    alarms: int
    checks: float
    known: float
    error_px: float


def shifted(pair: Pair, shift: tuple[float, float], rng: np.random.Generator) -> Pair:
    """Return the middle of both images, 320x256 and 160x128 px, thermal shifted. shift: (x, y), shares of the width."""
    rgb, thermal = pair
    height, width = thermal.shape
    scale = (1 - 2 * _MARGIN) * min(width / _RGB_SIZE[0], height / _RGB_SIZE[1])
    inner = (scale * _RGB_SIZE[0], scale * _RGB_SIZE[1])

    def middle(image: Image, right: float, down: float, size: tuple[int, int]) -> Image:
        step = inner[0] / size[0]  # from a pixel of the result to the next, pixels of the image
        left, top = (width - inner[0]) / 2 - right, (height - inner[1]) / 2 - down
        place = np.array([[step, 0, left + step / 2 - 0.5], [0, step, top + step / 2 - 0.5]])
        blurred = cv2.GaussianBlur(image, (0, 0), max(0.1, 0.4 * step))  # against aliasing
        cut = cv2.warpAffine(blurred, place, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return np.clip(cut + rng.normal(0, _NOISE, cut.shape), 0, 255).astype(np.uint8)

    x, y = shift[0] * inner[0], shift[1] * inner[0]
    return middle(rgb, 0, 0, _RGB_SIZE), middle(thermal, x, y, _THERMAL_SIZE)


def rates(pairs: Sequence[Pair], shift: float, trials: int, *, parked: bool, seed: int = 0) -> Rates:
    """Return what the monitor says of a shift in random directions. shift: share of the width."""
    rng = np.random.default_rng(seed)
    matrix = sampling_matrix(_RGB_SIZE, _THERMAL_SIZE)
    first: list[int] = []
    known: list[bool] = []
    errors: list[float] = []
    for _ in range(trials):
        angle = rng.uniform(0, 2 * np.pi)
        moved = (shift * np.cos(angle), shift * np.sin(angle))
        chosen = [int(rng.integers(len(pairs)))] * CHECKS if parked else _drawn(len(pairs), rng)
        monitor = MisalignmentMonitor()
        seen = [monitor.check(*shifted(pairs[number], moved, rng), matrix) for number in chosen]
        known += [check.known for check in seen]
        first += [check.checks for check in seen if check.drifted][:1]
        if seen[-1].known:
            told = np.array(seen[-1].shift_px)
            errors.append(float(np.hypot(*(told - np.multiply(moved, _THERMAL_SIZE[0])))))
    return Rates(
        trials,
        len(first),
        float(np.median(first)) if first else np.nan,
        float(np.mean(known)),
        max(errors, default=np.nan),
    )


def _drawn(number: int, rng: np.random.Generator) -> list[int]:
    """Return what is looked at in a trial, none twice before all were."""
    rounds = -(-CHECKS // number)
    return [int(i) for _ in range(rounds) for i in rng.permutation(number)][:CHECKS]


def read_pairs(folder: Path, names: Sequence[str] = ()) -> list[Pair]:
    """Return the pairs of visible/ and thermal/ at 640 px width. names: without suffix; none: all."""
    pairs = []
    for path in sorted((folder / "visible").iterdir()):
        if names and path.stem not in names:
            continue
        rgb = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        thermal = cv2.imread(str(folder / "thermal" / path.name), cv2.IMREAD_GRAYSCALE)
        size = (640, round(640 * rgb.shape[0] / rgb.shape[1]))
        rgb, thermal = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (rgb, thermal))
        pairs.append((np.asarray(rgb, np.uint8), np.asarray(thermal, np.uint8)))
    return pairs


def scene_pairs(number: int, first_seed: int = 10_000) -> list[Pair]:
    """Return views of so many streets of the scene world, by day and by night in turn."""
    pairs = []
    for seed in range(first_seed, first_seed + number):
        time = (TimeOfDay.DAY, TimeOfDay.NIGHT)[seed % 2]
        settings = SceneSettings(size=(640, 512), time_of_day=time, thermal_misalignment_px=0.0, smoke=False)
        scene = sample_scene(seed, settings)
        pairs.append((render_rgb(scene).image, render_thermal(scene).agc))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="not given: the scene world")
    parser.add_argument("--names", type=Path, help="text file with the names to take, one a line")
    parser.add_argument("--trials", type=int, default=40, help="for each shift")
    options = parser.parse_args()
    if options.folder is None:
        pairs = scene_pairs(60)
    else:
        pairs = read_pairs(options.folder, options.names.read_text().split() if options.names else ())
    print(f"{options.folder or 'scene world'}: {len(pairs)} pairs, {options.trials} trials for each shift\n")
    print("| shift | drive: alarms | first at check | known | parked: alarms | first at check | known | error, px |")
    print("|---|---|---|---|---|---|---|---|")
    for shift in SHIFTS:
        drive, parked = (rates(pairs, shift, options.trials, parked=parked) for parked in (False, True))
        print(
            f"| {shift:.2%} | {drive.alarms} | {drive.checks:g} | {drive.known:.0%} | {parked.alarms} | "
            f"{parked.checks:g} | {parked.known:.0%} | {drive.error_px:.2f}, {parked.error_px:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
