"""Label images: the class of every pixel, as ids or as the colours of labels.SEGMENTATION."""

from pathlib import Path

import numpy as np

from md_perception.annotations.files import DataError
from md_perception.annotations.images import decoded_image
from md_perception.labels import SEGMENTATION, UNLABELED_ID
from md_perception.results import UInt8Image


def read_mask(path: Path, size: tuple[int, int], classes: int = len(SEGMENTATION)) -> UInt8Image:
    """Return uint8 (H, W), class ids or UNLABELED_ID. size: (width, height) px that it has to have.

    The file holds ids (grey or palette PNG), or the colours of labels.SEGMENTATION. Raises DataError for any other
    value, as bilinear resizing makes them, and for another size.
    """
    pixels = decoded_image(path, indices=True)
    if pixels.shape[1::-1] != size:
        raise DataError(
            f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, its RGB image {size[0]}x{size[1]}: export masks at the "
            "size of the RGB image (with nearest-neighbour resampling)"
        )
    if pixels.ndim == 3:
        pixels = _from_colours(pixels, path)
    values = np.unique(pixels)
    wrong = values[(values >= classes) & (values != UNLABELED_ID)]
    if len(wrong):
        raise DataError(
            f"{path} has the label values {', '.join(map(str, wrong[:8]))}, outside 0..{classes - 1}: a label image "
            "must not be resized but with nearest-neighbour, nor saved as JPEG"
        )
    return pixels


def _from_colours(pixels: UInt8Image, path: Path) -> UInt8Image:
    """Map the palette's colours (H, W, 3) to ids (H, W)."""
    codes = pixels[..., 0].astype(np.int32) << 16 | pixels[..., 1].astype(np.int32) << 8 | pixels[..., 2]
    known = {red << 16 | green << 8 | blue: id_ for id_, (red, green, blue) in enumerate(SEGMENTATION.palette)}
    values, inverse = np.unique(codes, return_inverse=True)
    unknown = [f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in values.tolist() if code not in known]
    if unknown or pixels.shape[2] != 3:
        raise DataError(
            f"{path} has the colours {', '.join(unknown[:4])}, which are not in the palette of {SEGMENTATION.name}: "
            "save masks as grey PNG of class ids, or in this palette without alpha channel and compression losses"
        )
    ids = np.array([known[code] for code in values.tolist()], np.uint8)
    return ids[inverse].reshape(codes.shape)
