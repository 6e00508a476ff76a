"""What Nav2's obstacle layer makes of our clouds: its rules, written down once more, with NumPy.

Source: nav2_costmap_2d's obstacle_layer.cpp (updateBounds, raytraceFreespace) and costmap_2d.hpp (raytraceLine): first
every clearing observation frees the cells of a Bresenham line from the sensor to each of its points, then every marking
observation makes the cells of its points lethal, if they are between the obstacle heights and nearer than the range.
"""

import numpy as np

FREE, LETHAL, UNKNOWN = 0, 254, 255


class ObstacleLayer:
    """A layer with one source, in a fixed frame. cells: uint8 (ny, nx); (j, i) is at origin + resolution * (i, j)."""

    def __init__(
        self,
        size_m: tuple[float, float],
        origin_m: tuple[float, float],
        resolution_m: float = 0.1,
        obstacle_max_range_m: float = 25.0,
        raytrace_max_range_m: float = 25.0,
        raytrace_min_range_m: float = 0.0,
    ) -> None:
        self.resolution_m = resolution_m
        self.origin_m = np.array(origin_m)
        self.cells = np.full((round(size_m[1] / resolution_m), round(size_m[0] / resolution_m)), UNKNOWN, np.uint8)
        self._obstacle_max_range_m = obstacle_max_range_m
        self._raytrace_m = raytrace_min_range_m, raytrace_max_range_m

    def update(self, sensor_m: np.ndarray, marking: np.ndarray, clearing: np.ndarray) -> None:
        """Take in one observation of each kind. sensor_m: (3,); marking, clearing: (N, 3); of the fixed frame."""
        self._clear(sensor_m, clearing)
        away = np.linalg.norm(marking - sensor_m, axis=1)
        kept = (marking[:, 2] >= 0.0) & (marking[:, 2] <= 2.0) & (away < self._obstacle_max_range_m)
        j, i = self._cells_of(marking[kept])
        self.cells[j, i] = LETHAL

    def lethal_m(self) -> np.ndarray:
        """Return float64 (N, 2), the centres of the lethal cells."""
        j, i = np.nonzero(self.cells == LETHAL)
        return self.origin_m + self.resolution_m * (np.column_stack([i, j]) + 0.5)

    def _cells_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.floor((points[:, :2] - self.origin_m) / self.resolution_m).astype(int)
        at = at[((at >= 0) & (at < self.cells.shape[::-1])).all(axis=1)]
        return at[:, 1], at[:, 0]

    def _clear(self, sensor_m: np.ndarray, ends: np.ndarray) -> None:
        """Bresenham lines to all ends at once, one step of all lines at a time."""
        if not len(ends):
            return
        j0, i0 = (int(c[0]) for c in self._cells_of(np.asarray(sensor_m)[None]))
        j1, i1 = self._cells_of(ends)
        di, dj = i1 - i0, j1 - j0
        length = np.hypot(di, dj)
        least, most = (metres / self.resolution_m for metres in self._raytrace_m)
        scale = np.minimum(1.0, most / np.maximum(length, 1e-9))
        major = np.maximum(abs(di), abs(dj))
        minor = np.minimum(abs(di), abs(dj))
        steps = (scale * major).astype(int)
        along_i = abs(di) >= abs(dj)
        error = major // 2
        i, j = np.full(len(di), i0), np.full(len(dj), j0)
        for step in range(int(steps.max()) + 1):
            on = (step <= steps) & (np.hypot(i - i0, j - j0) >= least)
            self.cells[j[on], i[on]] = FREE
            error = error + minor
            over = error >= major
            i = i + np.where(along_i | over, np.sign(di), 0)
            j = j + np.where(~along_i | over, np.sign(dj), 0)
            error = np.where(over, error - major, error)
            i, j = np.clip(i, 0, self.cells.shape[1] - 1), np.clip(j, 0, self.cells.shape[0] - 1)
