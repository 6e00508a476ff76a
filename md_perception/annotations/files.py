"""Annotation files as they come from outside: bounded before they are read, refused with cause and cure."""

from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_TEXT_BYTES = 2**20
MAX_JSON_BYTES = 2**30


class DataError(ValueError):
    """A data set cannot be used as it is; the text names the file, the cause and the cure."""


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Return a text file. Raises DataError where it is not there, larger than the limit, or no UTF-8."""
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path} has {path.stat().st_size} bytes, more than the {limit} that are read")
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} is not there: an image without objects has an empty file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def index_folder(folder: Path) -> dict[str, Path]:
    """Return the images of a folder and its folders, by their names without suffix.

    Raises DataError where two files differ in their suffix only.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{found[name]} and {path} have the same name: leave one of them")
            found[name] = path
    return found
