"""What all data sets of image pairs share: files to arrays, names to samples, and the sensor's resolution.

A data set here is a map from an index to a `Sample`, read when it is asked for; a torch DataLoader takes it as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from md_perception.annotations.files import DataError, index_folder
from md_perception.annotations.images import decoded_image
from md_perception.inference.manifest import ThermalContract
from md_perception.results import Float32Array, Int64Array, UInt8Image
from md_perception.sensing.registration import sampling_matrix
from md_perception.sensing.thermal import GREY_TOLERANCE, channel_difference, resize_to_sensor
from md_training.data.sample import Sample, ThermalView
from md_training.data.splits import DATA_SETS, Split, all_names, read_split
from md_training.losses import IGNORED_PIXEL

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Degradation:
    """A thermal sensor that is coarser than the data set's.

    downsample: pixels per side that become one; 1 leaves the image as it is.
    resampling: `bilinear`, the paper's (point samples between the nearest pixels; aliases pass), or `area`, the mean of
    what falls on a coarse pixel.
    """

    downsample: Literal[1, 2, 4, 8] = 1
    resampling: Literal["bilinear", "area"] = "bilinear"

    def __post_init__(self) -> None:
        if self.downsample not in (1, 2, 4, 8):
            raise ValueError(f"downsample {self.downsample} is per side: use 1, 2, 4 or 8 (x1, x4, x16, x64 in pixels)")
        if self.resampling not in ("bilinear", "area"):
            raise ValueError(f"thermal resampling {self.resampling!r}: use bilinear or area")

    def __str__(self) -> str:
        """Return the factor in pixels, as the paper writes it: x16 is 4 per side."""
        return f"x{self.downsample**2}" + (f" {self.resampling}" if self.downsample > 1 else "")

    def size(self, native: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) px of the coarser sensor."""
        width, height = (max(1, round(side / self.downsample)) for side in native)
        return width, height


NATIVE = Degradation()


def degraded(sample: Sample, degradation: Degradation) -> Sample:
    """Return the sample as a coarser thermal sensor would have given it; before any augmentation, or zooming would
    change the sensor. What a teacher is shown stays in it as `full`.
    """
    height, width = sample.thermal.shape
    size = degradation.size((width, height))
    if size == (width, height):
        return sample
    between = sampling_matrix((width, height), size).astype(np.float64)
    return replace(
        sample,
        thermal=resize_to_sensor(sample.thermal, size, degradation.resampling),
        rgb_to_thermal=(between @ sample.rgb_to_thermal.astype(np.float64)).astype(np.float32),
        full=sample.full or ThermalView(sample.thermal, sample.rgb_to_thermal),
    )


@dataclass(frozen=True)
class Truth:
    """What is annotated in a pair.

    boxes: float32 (G, 4), xyxy, RGB px, inside the image. labels: int64 (G,), ids of labels.DETECTION. ignored: bool
    (G,). mask: uint8 (H, W), ids of labels.SEGMENTATION or IGNORED_PIXEL; None where there is none.
    """

    boxes: Float32Array = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: BoolArray = field(default_factory=lambda: np.zeros(0, np.bool_))
    mask: UInt8Image | None = None


class PairData(ABC):
    """Image pairs of one split, each read when it is asked for.

    root: folder of the data set. split: its names. detection_classes, segmentation_classes: what is annotated, so that
    nothing else is trained as background; empty where it is not. degradation: the thermal sensor of the samples.
    """

    root: Path
    split: Split
    detection_classes: tuple[str, ...] = ()
    segmentation_classes: tuple[str, ...] = ()
    degradation: Degradation

    @abstractmethod
    def files(self, name: str) -> dict[str, Path]:
        """Return the files of a pair by what they are (`rgb`, `thermal`, `boxes`, `mask`), be they there or not."""

    @abstractmethod
    def images(self, name: str) -> tuple[UInt8Image, UInt8Image]:
        """Return uint8 (H, W, 3), RGB, and uint8 (h, w), thermal at the data set's resolution. Raises DataError."""

    @abstractmethod
    def truth(self, name: str, size: tuple[int, int]) -> Truth:
        """Return what is annotated; size: (width, height) px of the RGB image. Raises DataError."""

    @abstractmethod
    def night(self, name: str) -> bool:
        """Return whether the pair was taken in the dark."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know about this split, for reports."""
        return ()

    def rgb_to_thermal(self, rgb_size: tuple[int, int], thermal_size: tuple[int, int]) -> Float32Array:
        """Return the sampling matrix between images of these sizes; here both cameras see the same field of view."""
        return sampling_matrix(rgb_size, thermal_size)

    def native(self, name: str) -> Sample:
        """Return a pair at the data set's own thermal resolution: what a teacher is given. Raises DataError."""
        rgb, thermal = self.images(name)
        height, width = rgb.shape[:2]
        truth = self.truth(name, (width, height))
        return Sample(
            rgb=rgb,
            thermal=thermal,
            rgb_to_thermal=self.rgb_to_thermal((width, height), (thermal.shape[1], thermal.shape[0])),
            boxes=truth.boxes,
            labels=truth.labels,
            ignored=truth.ignored,
            mask=np.full((height, width), IGNORED_PIXEL, np.uint8) if truth.mask is None else truth.mask,
            night=self.night(name),
            name=name,
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        return degraded(self.native(self.split.names[index]), self.degradation)

    @property
    def contract(self) -> ThermalContract:
        """The thermal images of the samples, for the manifest; the first pair speaks for all. Raises DataError."""
        _, thermal = self.images(self.split.names[0])
        return ThermalContract(sensor_size=self.degradation.size((thermal.shape[1], thermal.shape[0])))

    def description(self) -> str:
        """Return one sentence for manifest and model card."""
        return f"{self.root.name}: {self.split.description()}, thermal {self.degradation}"


@dataclass(frozen=True)
class PairFolder:
    """Unlabelled pairs in a folder: what label-free distillation (`task_loss: teacher`) needs.

    root: with `visible/NAME.jpg` and `thermal/NAME.jpg` (or as RGB_FOLDERS, THERMAL_FOLDERS and files.IMAGE_SUFFIXES
    say; folders inside are part of the name), perhaps lists of names, `night.txt` and `homography.txt` (see
    FolderPairs).
    split: a list beside the folders, without .txt, or `all`.
    """

    root: Path
    split: str = "all"
    degradation: Degradation = NATIVE

    def open(self) -> "FolderPairs":
        """Find the files. Raises DataError."""
        return FolderPairs(self.root, self.split, self.degradation)


class FolderPairs(PairData):
    """Pairs of files with the same name in two folders.

    `night.txt` lists the names taken in the dark; without it those are the names that end in a digit and N, as MFNet's
    and MSRS's do. `homography.txt`, nine numbers, maps RGB to thermal pixels (centres at integers); without it both
    cameras see the same field of view.
    """

    def __init__(
        self, root: Path, split: str, degradation: Degradation, published: str = "", names: Sequence[str] | None = None
    ) -> None:
        """published: data set whose published lists have to be met, one of DATA_SETS, or empty. names: these pairs
        instead of a list's. Raises DataError."""
        if published and published not in DATA_SETS:
            raise DataError(f"no data set {published!r} has published lists, only {', '.join(DATA_SETS)}")
        self.root, self.degradation = root, degradation
        self._rgb = index_folder(find_folder(root, RGB_FOLDERS, "the RGB images"))
        self._thermal = index_folder(find_folder(root, THERMAL_FOLDERS, "the thermal images"))
        if names is not None:
            self.split = replace(all_names(names), name="given", status="own")
        elif split == "all":
            self.split = all_names(sorted(self._rgb.keys() & self._thermal.keys()))
        else:
            self.split = read_split(find_list(root, split), published, root)
        if not self.split.names:
            raise DataError(f"{root} has no pair: no RGB and thermal image have the same name")
        night = root / "night.txt"
        self._night = frozenset(read_split(night, "").names) if night.exists() else None
        self._homography = _read_homography(root / "homography.txt")

    @property
    def available(self) -> set[str]:
        """The names that have an RGB or a thermal image."""
        return self._rgb.keys() | self._thermal.keys()

    def files(self, name: str) -> dict[str, Path]:
        return {
            "rgb": self._rgb.get(name, find_folder(self.root, RGB_FOLDERS) / f"{name}.png"),
            "thermal": self._thermal.get(name, find_folder(self.root, THERMAL_FOLDERS) / f"{name}.png"),
        }

    def images(self, name: str) -> tuple[UInt8Image, UInt8Image]:
        files = self.files(name)
        return read_rgb(files["rgb"]), read_thermal(files["thermal"])

    def truth(self, name: str, size: tuple[int, int]) -> Truth:
        return Truth()

    def night(self, name: str) -> bool:
        return name in self._night if self._night is not None else named_night(name)

    def rgb_to_thermal(self, rgb_size: tuple[int, int], thermal_size: tuple[int, int]) -> Float32Array:
        try:
            return sampling_matrix(rgb_size, thermal_size, self._homography)
        except ValueError as error:
            raise DataError(f"{self.root / 'homography.txt'}: {error}") from None


RGB_FOLDERS = ("visible", "rgb", "vi", "images")
THERMAL_FOLDERS = ("thermal", "lwir", "infrared", "ir")


def find_folder(root: Path, names: Sequence[str], what: str = "") -> Path:
    """Return the one folder of these names; the first name where none is there, unless `what` says that it has to be.

    Raises DataError for several, or for none where it has to be.
    """
    there = [root / name for name in names if (root / name).is_dir()]
    if len(there) > 1:
        raise DataError(f"{root} has the folders {' and '.join(f.name for f in there)} for {what}: leave one of them")
    if not there and what:
        raise DataError(f"{root} has no folder for {what}: expected {', '.join(names[:-1])} or {names[-1]}")
    return there[0] if there else root / names[0]


def find_list(root: Path, name: str) -> Path:
    """Return the file of a list: NAME.txt in the root, imageSets/ or splits/. Raises DataError where there is none."""
    places = [root / folder / f"{name}.txt" for folder in ("", "imageSets", "splits")]
    for path in places:
        if path.is_file():
            return path
    raise DataError(f"{root} has no list {name!r}: {' nor '.join(str(path) for path in places)} is there")


def named_night(name: str) -> bool:
    """Return whether the name says so in MFNet's way: 01234N."""
    return len(name) > 1 and name[-1] == "N" and name[-2].isdigit()


def read_rgb(path: Path) -> UInt8Image:
    """Return uint8 (H, W, 3), RGB order; grey images are repeated over the channels. Raises DataError."""
    pixels = decoded_image(path)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 4:
        raise DataError(
            f"{path} has a fourth channel: if it holds thermal, as in MFNet, read the set as kind mfnet; else save the "
            "image without alpha channel"
        )
    return pixels


def read_thermal(path: Path) -> UInt8Image:
    """Return uint8 (h, w), warm is bright; colour files have to hold a grey picture. Raises DataError."""
    pixels = decoded_image(path)
    if pixels.ndim == 2:
        return pixels
    difference = channel_difference(pixels)
    if pixels.shape[2] == 4 or difference > GREY_TOLERANCE:
        raise DataError(
            f"{path} is no grey image (its channels differ by {difference:.0f} of 255 on average): pseudo-colour "
            "cannot be turned back into intensities, export the thermal images in grey"
        )
    # cv2's and PIL's weights for luminance, so that exactly equal channels stay what they are.
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return np.asarray(np.rint(0.299 * red + 0.587 * green + 0.114 * blue), np.uint8)


def read_rgb_thermal(path: Path) -> tuple[UInt8Image, UInt8Image]:
    """Split an MFNet image, a 4-channel PNG: uint8 (H, W, 3), RGB, and uint8 (H, W), thermal.

    The channels are parted as they come out of the file, before anything is resized: to PIL the fourth is an alpha
    channel, and its resize would multiply the colours by the warmth. Raises DataError for another number of channels.
    """
    pixels = decoded_image(path)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels != 4:
        raise DataError(
            f"{path} has {channels} channel(s), an MFNet image has 4 (red, green, blue, thermal): a tool that took the "
            "fourth for transparency has dropped it, use the original file"
        )
    return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])


def _read_homography(path: Path) -> list[float] | None:
    if not path.exists():
        return None
    try:
        numbers = [float(text) for text in path.read_text().split()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if len(numbers) != 9:
        raise DataError(f"{path} has {len(numbers)} numbers, a homography from RGB to thermal pixels has nine")
    return numbers
