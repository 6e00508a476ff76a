"""Registration of the two cameras: the matrix that tells the student where to sample thermal for each RGB pixel."""

import numpy as np
import numpy.typing as npt

from md_perception.results import Float32Array


def sampling_matrix(
    rgb_size: tuple[int, int], thermal_size: tuple[int, int], homography: npt.ArrayLike | None = None
) -> Float32Array:
    """Return the homography from RGB pixel coordinates to thermal pixel coordinates, the graph's `rgb_to_thermal`.

    rgb_size, thermal_size: (width, height) px of the images as they arrive.
    homography: (3, 3) or nine numbers in row order, between these two images; None: both cameras see the same field of
    view, so that thermal is only scaled: x_t = (x_r + 0.5) * w / W - 0.5, and likewise y.
    Returns float32 (3, 3), pixel centres at integer coordinates, lower right element 1 where it can be.
    Raises ValueError where the homography is not one, or where the RGB image crosses its horizon.
    """
    (rgb_w, rgb_h), (thermal_w, thermal_h) = rgb_size, thermal_size
    if homography is None:
        scale_x, scale_y = thermal_w / rgb_w, thermal_h / rgb_h
        return np.array(
            [[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5], [0, 0, 1]],
            np.float32,
        )
    matrix = np.asarray(homography, np.float64)
    if matrix.size != 9 or not np.isfinite(matrix).all():
        raise ValueError(f"a homography is nine finite numbers in row order, got {np.asarray(homography).tolist()}")
    matrix = matrix.reshape(3, 3)
    if abs(np.linalg.det(matrix / np.abs(matrix).max(initial=1e-300))) < 1e-12:
        raise ValueError(f"the homography {matrix.tolist()} is singular: it maps the image onto a line or a point")
    corners = np.array([[0, 0, 1], [rgb_w - 1, 0, 1], [0, rgb_h - 1, 1], [rgb_w - 1, rgb_h - 1, 1]], np.float64)
    depth = corners @ matrix[2]
    if depth.min() <= 0 <= depth.max():
        raise ValueError(
            f"the homography {matrix.tolist()} has its horizon inside the {rgb_w}x{rgb_h} RGB image: it was made for "
            "another image size or direction (it has to map RGB pixels to thermal pixels)"
        )
    # The graph divides by the third coordinate, so any scale would do; one with positive depth is easiest to read.
    return (matrix / (matrix[2, 2] if matrix[2, 2] != 0 else depth[0])).astype(np.float32)
