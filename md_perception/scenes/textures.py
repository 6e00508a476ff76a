"""Noise that every scene cuts its textures and its sensor noise from: made once per process, from fixed seeds."""

from functools import lru_cache

import cv2
import numpy as np

from md_perception.results import Float32Array

TILE = 1024
"""Side of the tiles, px. The value-noise tiles are periodic."""


@lru_cache(maxsize=8)
def value_noise(finest: int = 128, persistence: float = 0.6) -> Float32Array:
    """Return float32 (TILE, TILE), periodic multi-octave value noise, mean 0, standard deviation 1.

    finest: cells of the finest octave along a side. persistence: amplitude of an octave over the next coarser one.
    """
    rng = np.random.default_rng([7, finest])
    total = np.zeros((TILE, TILE), np.float32)
    cells, amplitude = 4, 1.0
    while cells <= finest:
        grid = np.pad(rng.standard_normal((cells, cells), np.float32), 2, mode="wrap")
        step = TILE // cells
        fine = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += amplitude * fine[2 * step : 2 * step + TILE, 2 * step : 2 * step + TILE]
        cells, amplitude = cells * 2, amplitude * persistence
    total -= total.mean()
    result: Float32Array = total / total.std()
    return result


@lru_cache(maxsize=1)
def white_noise() -> Float32Array:
    """Return float32 (2 * TILE, 2 * TILE) of independent standard normal values."""
    return np.random.default_rng(11).standard_normal((2 * TILE, 2 * TILE), np.float32)


@lru_cache(maxsize=1)
def ground_grain() -> Float32Array:
    """Return float32 (TILE, TILE), periodic, mean 0, about 1 strong: stone grain, patches and cracks of a road."""
    grain = white_noise()[:TILE, :TILE]
    coarse = value_noise(64)
    cracks = np.exp(-np.square(value_noise(32, 0.7) / 0.03)) * (value_noise(8) > 0.6)
    result: Float32Array = (0.55 * cv2.GaussianBlur(grain, (3, 3), 0.7) + 0.6 * coarse - 1.6 * cracks).astype(
        np.float32
    )
    return result


def crop(tile: Float32Array, rng: np.random.Generator, size: tuple[int, int]) -> Float32Array:
    """Return a random (height, width) window of a tile, a view; size: (width, height) px, repeated where too large."""
    width, height = size
    if width > tile.shape[1] or height > tile.shape[0]:
        tile = np.tile(tile, (-(-height // tile.shape[0]) + 1, -(-width // tile.shape[1]) + 1))
    top = int(rng.integers(tile.shape[0] - height + 1))
    left = int(rng.integers(tile.shape[1] - width + 1))
    return tile[top : top + height, left : left + width]


def stretch(image: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Return a float32 image resized bilinearly to size (width, height) px."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.float32)


def patch(rng: np.random.Generator, cells: tuple[int, int]) -> Float32Array:
    """Return float32 (rows, columns) of independent standard normal values; cells: (columns, rows). Stretch to use."""
    return rng.standard_normal((cells[1], cells[0]), np.float32)


@lru_cache(maxsize=4)
def squared_radius(size: tuple[int, int]) -> Float32Array:
    """Return float32 (H, W): squared distance from the image's centre, 1 in the corners."""
    x = np.linspace(-1.0, 1.0, size[0], dtype=np.float32)
    y = np.linspace(-1.0, 1.0, size[1], dtype=np.float32)
    result: Float32Array = np.float32(0.5) * (np.square(x)[None] + np.square(y)[:, None])
    return result
