"""Where TensorRT's engines are kept, so that they are built for minutes once and not at every start.

An engine is compiled code that TensorRT loads and runs as it is. Hence the rules: a folder for each student, size,
precision, version and GPU, so that no engine is ever taken for another; folders and files that belong to this user and
that nobody else can write to, or none is loaded; a new folder appears under its name when all in it is whole.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from md_perception.threads import thread_in_context

logger = logging.getLogger(__name__)

HEARTBEAT_S = 30.0
"""While an engine is built, the log says so this often."""

KEY_FILE = "key.json"

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class EngineCacheError(RuntimeError):
    """A cache folder whose engines cannot be trusted, or that cannot be written; the text names the cure."""


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on; it is built anew when any of it changes.

    student: the manifest's name, to be read by people; file_sha256 is what counts: weights, graph and manifest.
    shapes: of the inputs. options: of the TensorRT provider, without paths. gpu: the driver's name of it.
    """

    student: str
    file_sha256: str
    precision: str
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, str]
    onnxruntime: str
    tensorrt: str
    gpu: str
    compute_capability: str

    @property
    def folder(self) -> str:
        """Name of the engine's folder."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.student}-{self.precision}-{digest[:24]}"


def default_folder() -> Path:
    """Return the folder of engines that nobody chose: under $XDG_CACHE_HOME, else ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "md_perception" / "tensorrt"


def find(root: Path, key: EngineKey) -> Path | None:
    """Return the folder with the engines of a key, None where there is none yet.

    Raises EngineCacheError where what is there cannot be trusted.
    """
    folder = _prepare(root) / key.folder
    try:
        _check_folder(folder)
        for file in folder.iterdir():
            _check_file(file)
    except FileNotFoundError:  # or another process is just replacing it
        return None
    return folder


@contextmanager
def building(root: Path, key: EngineKey) -> Iterator[Path]:
    """Give a new folder for the engines of a key, which takes the place of the old one if the block ends without error.

    Raises EngineCacheError where the root cannot be trusted.
    """
    root = _prepare(root)
    folder = root / key.folder
    old = _inode(folder)
    new = Path(tempfile.mkdtemp(prefix=f".{key.folder}.", dir=root))  # for this user alone
    aside = new.with_name(f"{new.name}.old")
    try:
        yield new
        if not any(new.glob("*.engine")):
            logger.warning(
                "TensorRT built no engine for student %s: it did not start, or takes none of its operators", key.student
            )
            return
        (new / KEY_FILE).write_text(json.dumps(asdict(key), indent=2) + "\n", encoding="utf-8")
        seal(new)
        if old is not None and _inode(folder) == old:
            with suppress(FileNotFoundError):  # another process has just done so
                folder.rename(aside)
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            logger.info("%s was built by another process meanwhile: its engine is kept", folder)
    finally:
        for left in (new, aside):
            shutil.rmtree(left, ignore_errors=True)


def _inode(folder: Path) -> int | None:
    """Tell a folder from another of its name; None: there is none."""
    try:
        return folder.lstat().st_ino
    except FileNotFoundError:
        return None


def seal(folder: Path) -> None:
    """Leave an engine's files to this user: ONNX Runtime writes with the umask, which may let the group write too."""
    with suppress(FileNotFoundError):  # another process is just replacing it
        for file in folder.iterdir():
            if stat.S_IMODE(file.lstat().st_mode) != 0o600:  # a cache that was built beforehand may be read-only
                file.chmod(0o600)


@contextmanager
def announced(what: str, where: Path) -> Iterator[None]:
    """Say in the log that an engine is being built, every HEARTBEAT_S that it still is, and how long it took."""
    start = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            logger.info("still building the TensorRT engine for %s, %.0f s so far", what, time.monotonic() - start)

    logger.info("building the TensorRT engine for %s: this takes minutes; it will be kept in %s", what, where)
    thread = thread_in_context(beat, "engine build")
    thread.start()
    try:
        yield
    except BaseException:
        logger.info("the TensorRT engine for %s was not built, after %.0f s", what, time.monotonic() - start)
        raise
    else:
        logger.info("the TensorRT engine for %s is built, after %.0f s", what, time.monotonic() - start)
    finally:
        done.set()
        thread.join()


def _prepare(root: Path) -> Path:
    """Make the cache folder, or check the one that is there, and the way to it; return it without links on the way.

    What is returned is what was checked: a link of somebody else that leads here now may lead elsewhere later.
    """
    try:
        missing = [folder for folder in (root, *root.parents) if not folder.exists()]
        for folder in reversed(missing):  # parents too are for this user alone, whatever the umask
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EngineCacheError(f"the folder {root} for engines cannot be made: {error.strerror}") from None
    _check_folder(root)
    real = root.resolve()
    _check_folder(real)
    for parent in real.parents:
        status = parent.stat()
        # In a folder that others can write to, they could put another in this one's place, unless it is sticky.
        if status.st_uid not in (0, os.geteuid()) or (
            status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX
        ):
            raise EngineCacheError(
                f"engines in {root} cannot be trusted: others than this user can write to {parent}; set "
                "student.engine_cache (--engine-cache) to a folder below your home that only you can write to"
            )
    return real


def _check_folder(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise EngineCacheError(f"{folder} is no folder (a link is not followed): remove it")
    _check_owner(folder, status)


def _check_file(file: Path) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise EngineCacheError(f"{file} is no plain file: remove {file.parent}; the engine will be built anew")
    _check_owner(file, status)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise EngineCacheError(
            f"engines in {path} cannot be trusted: it belongs to another user; choose a folder of your own with "
            "student.engine_cache (--engine-cache)"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise EngineCacheError(
            f"engines in {path} cannot be trusted: others than this user can write to it. If nobody did, `chmod go-w "
            f"{path}`; else remove it"
        )
