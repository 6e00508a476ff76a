"""MFNet (Ha et al., IROS 2017): street scenes by day and night, nine classes, thermal in the PNG's fourth channel.

ROOT/images/01234N.png   red, green, blue, thermal; names end in D (day) or N (night)
ROOT/labels/01234N.png   class ids 0..8 of labels.SEGMENTATION
ROOT/train.txt, val.txt, test.txt and, as some releases have them, test_day.txt, test_night.txt
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_perception.annotations.masks import read_mask
from md_perception.labels import SEGMENTATION
from md_perception.results import UInt8Image
from md_training.data.pairs import (
    NATIVE,
    Degradation,
    PairData,
    Truth,
    find_list,
    index_folder,
    named_night,
    read_rgb_thermal,
)
from md_training.data.splits import DataError, Split, hash_names, published, read_names, verified

FLIPPED = "_flip"
"""End of the names of mirrored copies, which some releases add to images, labels and lists."""


@dataclass(frozen=True)
class MfnetFolder:
    """See the module. split: a list's name without .txt (train, val, test, test_day, test_night; of any list NAME also
    NAME_day and NAME_night), or `all`.
    """

    root: Path
    split: str = "train"
    degradation: Degradation = NATIVE

    def open(self) -> "MfnetPairs":
        """Find the files and read the list. Raises DataError."""
        return MfnetPairs(self)


class MfnetPairs(PairData):
    """See MfnetFolder. Nothing but the mask is annotated: there are no boxes."""

    segmentation_classes = SEGMENTATION.classes

    def __init__(self, settings: MfnetFolder) -> None:
        self.root, self.degradation = settings.root, settings.degradation
        for folder in ("images", "labels"):
            if not (self.root / folder).is_dir():
                raise DataError(f"{self.root} has no folder {folder}/: expected MFNet's images/, labels/ and train.txt")
        self._images = index_folder(self.root / "images")
        self._labels = index_folder(self.root / "labels")
        self.split = read_mfnet_split(self.root, settings.split, tuple(self._images))

    @property
    def available(self) -> set[str]:
        """The names that have an image or a label image."""
        return self._images.keys() | self._labels.keys()

    def files(self, name: str) -> dict[str, Path]:
        image = self._images.get(name, self.root / "images" / f"{name}.png")
        return {"rgb": image, "thermal": image, "mask": self._labels.get(name, self.root / "labels" / f"{name}.png")}

    def images(self, name: str) -> tuple[UInt8Image, UInt8Image]:
        return read_rgb_thermal(self.files(name)["rgb"])

    def truth(self, name: str, size: tuple[int, int]) -> Truth:
        return Truth(mask=read_mask(self.files(name)["mask"], size))

    def night(self, name: str) -> bool:
        return named_night(name)

    @property
    def notes(self) -> tuple[str, ...]:
        known = published("mfnet", self.split.name)
        if known is None or self.split.status != "own":
            return ()
        return (
            f"{self.split.name} has {len(self)} names, MFNet's published {known.name} {known.count}: figures on it "
            "compare with no publication",
        )


def read_mfnet_split(root: Path, split: str, available: Sequence[str]) -> Split:
    """Return a split of MFNet; available: what `all` means.

    A list with a published name and the published count has to be the published one (splits.verified). train, val and
    test are everyday names: with another count it is the user's own list, and reports say so (MfnetPairs.notes).
    Raises DataError for lists with flipped copies.
    """
    if split == "all":
        names, source = tuple(sorted(available)), f"{root / 'images'}"
    else:
        names, source = _listed(root, split)
    refuse_flipped(names, source)
    known = published("mfnet", split)
    if known is not None and len(names) == known.count:
        return verified(names, known, source, root)
    return Split(split, names, hash_names(names), "all" if split == "all" else "own")


def refuse_flipped(names: Sequence[str], source: str) -> None:
    """Raise DataError where mirrored copies are among the names."""
    flipped = [name for name in names if name.lower().endswith(FLIPPED)]
    if flipped:
        raise DataError(
            f"{source} names {len(flipped)} flipped copies ({flipped[0]}, ..): mirroring is an augmentation here "
            f"(Augmentation.flip), copies would only count twice; remove the *{FLIPPED} files and names"
        )


def _listed(root: Path, split: str) -> tuple[tuple[str, ...], str]:
    """Return the names of a list, or the day or night half of one, and where they are from."""
    stem, _, time = split.rpartition("_")
    try:
        path = find_list(root, split)
    except DataError:
        if time not in ("day", "night") or not stem:
            raise
        path = find_list(root, stem)
        names = tuple(name for name in read_names(path) if named_night(name) == (time == "night"))
        if not names:
            raise DataError(
                f"{path} has no {time} image: their names end in {'N' if time == 'night' else 'D'}"
            ) from None
        return names, f"the {time} half of {path}"
    return read_names(path), str(path)
