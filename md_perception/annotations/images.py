"""Image files as they come from outside: bounded before they are decoded, refused with cause and cure.

Read with Pillow, which tells a damaged image from a whole one and gives the indices of palette images.
"""

import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from md_perception.annotations.files import DataError
from md_perception.results import UInt8Image

MAX_PIXELS = 40_000_000
"""Larger images are refused by their header, before they are decoded: a damaged file must not fill the memory."""
MAX_FILE_BYTES = 256 * 2**20


def _opened(path: Path) -> Image.Image:
    """Open an image file by its header; sizes are bounded before a pixel is decoded."""
    if not path.is_file():
        raise DataError(f"{path} is not there: download the data set again, or take the name out of your list")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} that are read: is it a camera image?")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is the tighter one
            image = Image.open(path)
    except Image.DecompressionBombError:
        raise DataError(f"{path} has more pixels than the {MAX_PIXELS // 10**6} million that are read") from None
    except (UnidentifiedImageError, *_DAMAGE) as error:
        raise DataError(f"{path} is no image that can be read ({error}): download it again") from None
    if math.prod(image.size) > MAX_PIXELS:
        image.close()
        raise DataError(
            f"{path}, {image.size[0]}x{image.size[1]}, has more pixels than the {MAX_PIXELS // 10**6} million that are "
            "read: scale it down"
        )
    return image


def decoded_image(path: Path, indices: bool = False) -> UInt8Image:
    """Return uint8 (H, W) or (H, W, 3 or 4), channels as in the file, RGB order.

    indices: palette images give their indices, not their colours. Raises DataError for damaged files, of which other
    decoders return a half-grey image, and for other than 8 bits.
    """
    with _opened(path) as image:
        if image.mode not in ("L", "P", "RGB", "RGBA"):
            raise DataError(
                f"{path} has pixels of the kind {image.mode}, expected 8 bits in 1, 3 or 4 channels: convert it "
                "(16-bit thermal with percentile_range and to_8bit of md_perception.sensing.thermal)"
            )
        try:
            image.load()
        except _DAMAGE as error:
            raise DataError(f"{path} is damaged ({error}): download it again") from None
        return np.array(image.convert("RGB") if image.mode == "P" and not indices else image)


_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error)
"""What PIL raises for damaged files."""
