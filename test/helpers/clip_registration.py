"""How far thermal lies beside RGB in parts of a registered clip: by mutual information, and by md_calibrate.

    python test/helpers/clip_registration.py DATA/m3svd 0117_1605

DATA/m3svd holds visible/NAME.mp4 and infrared/NAME.mp4, 640x480. Mutual information of grey values knows nothing of
edges, which md_calibrate rests on: where both agree on a shift, the clip is out of register there.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.bags.sources import PictureSource
from md_perception.sensing.alignment import StampedImage, align
from md_perception.sensing.registration import sampling_matrix

Image = npt.NDArray[np.uint8]

PART = (200, 160)
"""(width, height) px of a part."""

_REACH, _STEP = 12, 2
_FRAMES = 16
_CLEAR = 2.0
"""A summit that stands out less, in standard deviations, says nothing."""

_RGB_SIZE, _THERMAL_SIZE = (320, 240), (160, 120)
_RATE_HZ = 30


def mutual_information(first: Image, second: Image) -> float:
    """Return it in nats, of two uint8 images of one size, 24 levels each."""
    counts, _, _ = np.histogram2d(first.ravel(), second.ravel(), bins=24, range=((0, 256), (0, 256)))
    joint = counts / counts.sum()
    alone = joint.sum(axis=1, keepdims=True) @ joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float(np.sum(joint[there] * np.log(joint[there] / alone[there])))


def shift_of(rgb: list[Image], thermal: list[Image], corner: tuple[int, int]) -> tuple[int, int] | None:
    """Return by how much thermal lies right of and below RGB, px, in a part; None where that is not clear."""
    (left, top), (width, height) = corner, PART
    shifts = range(-_REACH, _REACH + 1, _STEP)
    surface = np.zeros((len(shifts), len(shifts)))
    for seen, warm in zip(rgb, thermal, strict=True):
        part = seen[top : top + height : 2, left : left + width : 2]
        for row, down in enumerate(shifts):
            for column, right in enumerate(shifts):
                y, x = top + down, left + right
                surface[row, column] += mutual_information(part, warm[y : y + height : 2, x : x + width : 2])
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    inside = 0 < row < len(shifts) - 1 and 0 < column < len(shifts) - 1
    clear = (surface.max() - surface.mean()) / surface.std() >= _CLEAR
    return (shifts[column], shifts[row]) if inside and clear else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("clip")
    options = parser.parse_args()
    rgb, thermal = (
        [
            cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else picture
            for picture in PictureSource.open(options.folder / name / f"{options.clip}.mp4").pictures(colour=colour)
        ]
        for name, colour in (("visible", True), ("infrared", False))
    )
    height, width = thermal[0].shape
    found = align(_reduced(rgb[: 12 * _RATE_HZ], _RGB_SIZE), _reduced(thermal[: 12 * _RATE_HZ], _THERMAL_SIZE))
    delay = "unknown" if found.delay is None else f"{1e3 * found.delay.delay_s:.1f} ms"
    print(
        f"md_calibrate: residual {found.fit.residual_px:.2f}, spread {found.fit.spread_px:.2f} thermal px, {delay} late"
    )
    same_view = sampling_matrix(_RGB_SIZE, _THERMAL_SIZE).astype(np.float64)
    scale = width / _THERMAL_SIZE[0]
    chosen = np.linspace(0, min(len(rgb), len(thermal)) - 1, _FRAMES).astype(int)
    rows = []
    for top in np.linspace(_REACH, height - PART[1] - _REACH, 4).astype(int):
        for left in np.linspace(_REACH, width - PART[0] - _REACH, 5).astype(int):
            middle = np.array([[[left + PART[0] / 2, top + PART[1] / 2]]]) * _RGB_SIZE[0] / width - 0.5
            moved, still = (cv2.perspectiveTransform(middle, matrix) for matrix in (found.fit.homography, same_view))
            of_matrix = (moved - still)[0, 0]
            shift = shift_of([rgb[i] for i in chosen], [thermal[i] for i in chosen], (left, top))
            told = "unclear" if shift is None else f"{shift[0] / scale:+.2f} {shift[1] / scale:+.2f}"
            print(
                f"part at {left:3d} {top:3d}: {told}; md_calibrate {of_matrix[0]:+.2f} {of_matrix[1]:+.2f}", flush=True
            )
            if shift is not None:
                rows.append((np.array(shift) / scale, of_matrix))
    by_information, by_matrix = (np.array(column) for column in zip(*rows, strict=True))
    print(
        f"RMS of {len(rows)} clear parts, thermal px: mutual information {_rms(by_information):.2f}, md_calibrate "
        f"{_rms(by_matrix):.2f}, between them {_rms(by_information - by_matrix):.2f}; correlation "
        f"{np.corrcoef(by_information.ravel(), by_matrix.ravel())[0, 1]:.2f}"
    )


def _reduced(images: list[Image], size: tuple[int, int]) -> list[StampedImage]:
    return [
        StampedImage(
            10**18 + round(number * 1e9 / _RATE_HZ),
            np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8),
        )
        for number, image in enumerate(images)
    ]


def _rms(shifts: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.sum(shifts**2, axis=1))))


if __name__ == "__main__":
    main()
