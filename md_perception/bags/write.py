"""Writing a rosbag2 that is there whole or not at all."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys.store import Typestore

from md_perception.bags.types import TopicQos, message_store, require

Storage = Literal["mcap", "sqlite3"]
STORAGES: dict[str, StoragePlugin] = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


class BagError(RuntimeError):
    """A bag, or what a bag is made from, that cannot be read or written; the text says what to do."""


def is_bag(path: Path) -> bool:
    """Return whether a folder is a rosbag2, whole or broken: nothing in it but storage files and metadata."""
    if not path.is_dir():
        return False
    names = [entry.name for entry in path.iterdir()]
    return bool(names) and all(name == "metadata.yaml" or name.split(".")[-1] in ("mcap", "db3") for name in names)


class BagWriter:
    """Writes one rosbag2 (metadata version 9, that of Jazzy), as a context manager.

    Everything goes to a hidden folder beside `path` that takes its name at the end; when the block ends in an error
    or Ctrl-C, the folder is removed and what was at `path` is as before.

    path: folder of the bag. storage: `mcap` or `sqlite3`. replace: whether a bag that is there may be replaced.
    compressed: the chunks of an mcap file, as `ros2 bag record --storage-preset-profile zstd_fast` writes them.
    custom_data: notes in its metadata.
    Raises BagError where something is at path that may not be replaced, or path cannot be written.
    """

    def __init__(
        self,
        path: Path,
        storage: Storage = "mcap",
        replace: bool = False,
        compressed: bool = False,
        custom_data: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.counts: dict[str, int] = {}
        """Messages written, by topic."""
        self.store: Typestore = message_store()
        """Where the message classes for `write` are: `store.types["sensor_msgs/msg/Image"]`."""
        if storage not in STORAGES:
            raise BagError(f"unknown bag storage {storage!r}: use one of {', '.join(STORAGES)}")
        self._plugin = STORAGES[storage]
        self._replace = replace
        self._compressed = compressed and storage == "mcap"
        self._custom_data = dict(custom_data or {})
        self._connections: dict[str, Connection] = {}
        self._check_free()

    def _check_free(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self._replace:
            raise BagError(f"{self.path} exists: choose another name or allow replacing it (--force)")
        if not is_bag(self.path):
            raise BagError(f"{self.path} exists and is not a bag: it will not be replaced; choose another name")

    def __enter__(self) -> "BagWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.partial-", dir=self.path.parent))
            try:
                # The storage file takes its name from its folder, which therefore has its final name already.
                self._writer = Writer(self._folder / self.path.name, version=9, storage_plugin=self._plugin)
                if self._compressed:
                    self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
                for key, value in self._custom_data.items():
                    self._writer.set_custom_data(key, value)
                self._writer.open()
            except BaseException:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise
        except OSError as error:
            raise BagError(f"cannot write a bag at {self.path}: {error.strerror or error}") from None
        return self

    def add_topic(
        self, topic: str, msgtype: str, qos: TopicQos = TopicQos.RELIABLE, source: Typestore | None = None
    ) -> None:
        """Declare a topic, which may stay without messages.

        topic: absolute name. msgtype: such as `sensor_msgs/msg/Image`. source: that of the bag that it is copied from,
        which knows types that are not installed here; without it raises UnknownTypeError for such.
        """
        if source is None:
            require(self.store, msgtype)
        self._connections[topic] = self._writer.add_connection(
            topic, msgtype, typestore=source or self.store, offered_qos_profiles=[qos.offered()]
        )
        self.counts[topic] = 0

    def write(self, topic: str, log_ns: int, message: Any) -> None:
        """Write a message of `store`. log_ns: when it was received, nanoseconds; the order in which it is played."""
        self.write_raw(topic, log_ns, self.store.serialize_cdr(message, self._connections[topic].msgtype))

    def write_raw(self, topic: str, log_ns: int, data: bytes | memoryview) -> None:
        """Write a serialised message, CDR with its encapsulation header, as raw subscriptions deliver it."""
        try:
            self._writer.write(self._connections[topic], log_ns, data)
        except OSError as error:
            raise BagError(f"cannot write to the bag {self.path}: {error.strerror or error}") from error
        self.counts[topic] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._writer.close()
                self._move_into_place()
            else:
                self._writer.abort()
        except OSError as failure:
            raise BagError(f"cannot finish the bag {self.path}: {failure.strerror or failure}") from failure
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _move_into_place(self) -> None:
        self._check_free()  # something may have come to be there in the meantime
        if self.path.exists():
            self.path.rename(self._folder / "replaced")
        (self._folder / self.path.name).rename(self.path)
