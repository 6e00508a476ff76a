"""Where the pictures of a bag come from: image folders and video files, read one picture at a time."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from md_perception.bags.write import BagError
from md_perception.results import UInt8Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")

Picture = npt.NDArray[Any]
"""uint8 or uint16, (h, w) or (h, w, 3)."""


@dataclass(frozen=True)
class PictureSource:
    """A sequence of pictures.

    rate_hz: pictures a second: a video's own, or the one given for a folder.
    count: how many there are; 0 where a video does not say.
    files: the pictures of a folder in natural order; empty for a video.
    """

    path: Path
    rate_hz: float
    count: int
    files: tuple[Path, ...] = ()

    @classmethod
    def open(cls, path: Path, rate_hz: float | None = None) -> "PictureSource":
        """Look at a folder or a video file without reading its pictures.

        rate_hz: pictures a second; needed for a folder (30 where it is None), in place of a video's own.
        Raises BagError where the path is neither, or holds no picture.
        """
        if path.is_dir():
            pictures = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            files = sorted(pictures, key=lambda file: natural(file.name))
            if not files:
                raise BagError(f"{path} has no image ({', '.join(IMAGE_SUFFIXES)})")
            return cls(path, rate_hz or 30.0, len(files), tuple(files))
        if not path.exists():
            raise BagError(f"{path} does not exist")
        capture = cv2.VideoCapture(str(path))
        try:
            if not capture.isOpened():
                raise BagError(f"{path} is not a video that OpenCV can read, nor a folder of images")
            own_hz = capture.get(cv2.CAP_PROP_FPS)
            rate = rate_hz or own_hz
            if not 0 < rate < 10_000:
                raise BagError(f"{path} does not say its frame rate (it reads {own_hz}): give --source-rate")
            return cls(path, rate, max(0, round(capture.get(cv2.CAP_PROP_FRAME_COUNT))))
        finally:
            capture.release()

    def pictures(self, colour: bool) -> Iterator[Picture]:
        """Yield the pictures, one in memory at a time.

        colour: uint8 (H, W, 3), RGB order; otherwise one channel as it is stored, uint8 or uint16 (h, w).
        Raises BagError naming the file that is damaged, cut short or, for one channel, in colours.
        """
        for index, picture in enumerate(self._decoded(colour)):
            if colour:
                yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            else:
                yield _one_channel(picture, f"{self.files[index] if self.files else self.path}, picture {index}")

    def _decoded(self, colour: bool) -> Iterator[Picture]:
        flags = cv2.IMREAD_COLOR if colour else cv2.IMREAD_UNCHANGED
        for file in self.files:
            picture = cv2.imread(str(file), flags)
            if picture is None:
                raise BagError(f"{file} is damaged or not an image that OpenCV can read")
            yield picture
        if not self.files:
            yield from self._decoded_video()

    def _decoded_video(self) -> Iterator[Picture]:
        capture = cv2.VideoCapture(str(self.path))
        number = 0
        try:
            while True:
                there, picture = capture.read()
                if not there:
                    break
                yield picture
                number += 1
        finally:
            capture.release()
        # Containers count a little loosely; a tenth is not loose any more.
        if number < 0.9 * self.count or number == 0:
            raise BagError(
                f"{self.path} is damaged: {number} of its {self.count} pictures can be decoded; take what is there "
                f"with --max-frames {number}"
            )


def at_rate(pictures: Iterable[Picture], source_hz: float, rate_hz: float) -> Iterator[Picture]:
    """Yield the picture that a source shows at each tick k / rate_hz of a slower camera, k = 0, 1, ...

    Raises BagError where rate_hz is above source_hz: pictures would have to be invented.
    """
    if rate_hz > source_hz * 1.001:
        raise BagError(
            f"a rate of {rate_hz:g} Hz is above the {source_hz:g} Hz of the pictures: choose a lower one, or say with "
            "--source-rate how fast they were taken"
        )
    tick = 0
    for index, picture in enumerate(pictures):
        # A tick belongs to the picture taken at or just before it; a thousandth of a period absorbs rounding.
        if index + 1 > tick * source_hz / rate_hz + 1e-3:
            yield picture
            tick += 1


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key: picture_2 before picture_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _one_channel(picture: Picture, source: str) -> Picture:
    """Return uint8 or uint16 (h, w) of a thermal picture; raise BagError for pseudo-colour and other types."""
    if picture.dtype not in (np.uint8, np.uint16):
        raise BagError(f"{source} is a thermal picture of {picture.dtype}: expected 8 or 16 bits a pixel")
    if picture.ndim == 2:
        return picture
    if _colourfulness(picture[..., :3]) > 8:
        raise BagError(
            f"{source} is a thermal picture in pseudo-colour: its channels differ; grey values are needed, in one "
            "channel or in equal ones"
        )
    return np.ascontiguousarray(picture[..., 1])  # green, which video codecs keep best


def _colourfulness(picture: Picture) -> float:
    """Return the mean difference of the channels, in 8-bit steps; a grey video reads 0 to 3 after its codec."""
    sample = picture[::4, ::4].astype(np.float32)
    scale = 1.0 if picture.dtype == np.uint8 else 255 / 65535
    return float(np.mean(sample.max(axis=2) - sample.min(axis=2))) * scale


def to_centikelvin(picture: Picture, range_k: tuple[float, float]) -> npt.NDArray[np.uint16]:
    """Return uint16 (h, w), hundredths of a kelvin, of what a radiometric camera would send.

    picture: uint16 is taken as centikelvin already; uint8 grey values are spread linearly over range_k, kelvin,
    for such a picture says nothing of temperatures.
    """
    if picture.dtype == np.uint16:
        return picture.astype(np.uint16, copy=False)
    low, high = range_k
    return kelvin_to_centikelvin(low + picture.astype(np.float32) * ((high - low) / 255.0))


def kelvin_to_centikelvin(kelvin: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return uint16 (h, w), hundredths of a kelvin, rounded; below 0 K and above 655.35 K clipped."""
    return np.clip(np.rint(kelvin * 100.0), 0, 65535).astype(np.uint16)


def to_grey8(picture: Picture, source: str) -> UInt8Image:
    """Return a thermal picture of 8 bits as it is; raise BagError for 16 bits, which a bag should keep."""
    if picture.dtype != np.uint8:
        raise BagError(f"{source} has {picture.dtype} pictures: write them with --thermal-encoding mono16")
    return picture.astype(np.uint8, copy=False)
