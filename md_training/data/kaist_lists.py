"""KAIST's list files, by whose names splits are named."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from md_perception.annotations.kaist import FrameName


@dataclass(frozen=True)
class ListFile:
    """A published list of frames, the only way in which a split is named here.

    definition: what it holds, for people. count: frames in it.
    sha256: of the file as published, with CRLF line ends; None where it is not known, then only the count is checked.
    """

    name: str
    definition: str
    count: int
    sha256: str | None


LISTS = {
    known.name: known
    for known in (
        ListFile(
            "test-all-20",
            "every 20th frame of set06 to set11 (I00019, I00039, ..): 1,455 by day, 797 by night",
            2252,
            "3964851243559a86560774ce2eabfc9e52e40c1c7f76efc0e47a280eecbe3b6f",
        ),
        ListFile(
            "train-all-02",
            "every second frame of set00 to set05 (I00001, I00003, ..), with or without persons: 16,694 by day, 8,392 "
            "by night",
            25086,
            "3ff6a85bb60f6dd895bcfa0d2ccc4e9c3ffe35a8391a9fcb63f8a85a2d4c8d8d",
        ),
    )
}


@dataclass(frozen=True)
class FrameList:
    """The frames of a list file in its order, and the SHA-256 of its names with CRLF line ends."""

    name: str
    frames: tuple[FrameName, ...]
    sha256: str


def read_list(path: Path, known: ListFile) -> FrameList:
    """Read a list file and make sure that it is the one that it is said to be.

    Line ends do not matter: the names are hashed with the CRLF ends of the published files.
    Raises ValueError, with file and line, for a name that is none or there twice, another count and another hash.
    """
    frames: dict[FrameName, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            frame = FrameName.parse(line.strip())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if frame in frames:
            raise ValueError(f"{path}, line {number}: {frame} is already in line {frames[frame]}")
        frames[frame] = number
    digest = hashlib.sha256("".join(f"{frame}\r\n" for frame in frames).encode()).hexdigest()
    if len(frames) != known.count:
        raise ValueError(
            f"{path} has {len(frames)} frames, but {known.name} has {known.count} ({known.definition}): "
            "use the published list, it is not made from a rule"
        )
    if known.sha256 is not None and digest != known.sha256:
        raise ValueError(
            f"{path} has as many frames as {known.name} but not the same ones in the same order: "
            f"SHA-256 {digest}, published {known.sha256}"
        )
    return FrameList(known.name, tuple(frames), digest)
