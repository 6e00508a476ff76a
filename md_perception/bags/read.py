"""Reading rosbag2 files without ROS, in the order of time, with a clear word about what is damaged."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from md_perception.bags import limits, salvage
from md_perception.bags.sources import natural
from md_perception.bags.types import TopicQos, UnknownTypeError, message_store, require
from md_perception.bags.write import BagError


@dataclass(frozen=True)
class TopicSummary:
    """A topic of a bag. count: messages that can be read. type_hash: RIHS01, or "" where the bag has none."""

    name: str
    msgtype: str
    count: int
    qos: TopicQos
    type_hash: str


@dataclass(frozen=True)
class BagMessage:
    """A message of a bag.

    log_ns: when it was received, nanoseconds: the bag's time line (its header has the stamp of the capture).
    raw: CDR with its encapsulation header.
    """

    topic: str
    msgtype: str
    log_ns: int
    raw: bytes = field(repr=False)
    store: Typestore = field(repr=False, compare=False)

    @cached_property
    def message(self) -> Any:
        """The message with the fields of its ROS type; sequences of numbers are numpy arrays. Raises BagError."""
        try:
            return self.store.deserialize_cdr(self.raw, self.msgtype)
        except Exception as error:
            raise BagError(f"a message of {self.topic} at {self.log_ns} ns is not a {self.msgtype}: {error}") from error


class Bag:
    """An open rosbag2: a folder with its metadata, or a single .mcap or .db3 file.

    A file whose end is missing (a recorder that was killed, a full disk), one file or the last of a split bag, is read
    as far as it goes; `damage` then says so. Use as a context manager. Raises BagError where nothing can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        """What is wrong with the file, or None; may be set while messages are read."""
        if not path.exists():
            raise BagError(f"there is no bag at {path}")
        limits.check_files(path)
        self._reader: Reader | None = None
        self._salvaged: list[Path] = []
        self._packed = False
        try:
            reader = Reader(path)
            reader.open()
            self._packed = _unpack_here(reader)
        except BagError:
            raise
        # Whatever rosbags stumbles over in a foreign file: ReaderError, struct.error, YAML, sqlite and type errors.
        except Exception as error:
            self._open_damaged(error)
        else:
            self._reader = reader
            self._connections = list(reader.connections)
            self._counts = {connection.id: connection.msgcount for connection in self._connections}
            self.start_ns: int = reader.start_time if reader.message_count else 0
            """Log time of the first message, nanoseconds; 0 in an empty bag."""
            self.end_ns: int = reader.end_time - 1 if reader.message_count else 0
            """Log time of the last message, nanoseconds."""
        self.store = self._make_store()
        if (log := _pending(path)) is not None:
            self.damage = (
                f"messages of {log.name} are not read, which a recorder that was killed did not move into the bag: "
                f"`sqlite3 {log.name.removesuffix('-wal')} 'PRAGMA wal_checkpoint(TRUNCATE)'` does"
            )

    def _make_store(self) -> Typestore:
        limits.check_definitions(self.path, self._connections)
        try:
            return _store_of(self._connections)
        except Exception as error:  # the definitions may be any text
            self.close()
            raise BagError(f"{self.path}: its message definitions cannot be understood: {str(error)[:300]}") from error

    def _open_damaged(self, reason: Exception) -> None:
        files = list(self.path.iterdir()) if self.path.is_dir() else [self.path]
        files = [file for file in files if file.suffix in salvage.SCANNERS]
        # A whole SQLite3 file that rosbags does not take has another fault than a missing end, unless the metadata are
        # missing, which a recorder writes when it ends.
        ended = not self.path.is_dir() or (self.path / "metadata.yaml").exists()
        if not files or (ended and files[0].suffix == ".db3" and not any(salvage.is_cut(file) for file in files)):
            raise BagError(f"{self.path} is not a bag that can be read: {reason}") from reason
        self._salvaged = sorted(files, key=lambda file: natural(file.name))  # drive_2 was recorded before drive_10
        self.damage = f"opened without its index: {reason}"
        self._connections = []
        self._counts = {}
        self.start_ns = self.end_ns = 0
        for connection, log_ns, _ in self._scan(register=True):
            self.start_ns = min(self.start_ns or log_ns, log_ns)
            self.end_ns = max(self.end_ns, log_ns)
            self._counts[connection.id] = self._counts.get(connection.id, 0) + 1
        if not self._counts:
            raise BagError(f"{self.path} is damaged and no message can be read from it: {reason}") from reason

    @property
    def topics(self) -> dict[str, TopicSummary]:
        """The topics by name, sorted."""
        summaries: dict[str, TopicSummary] = {}
        for connection in sorted(self._connections, key=lambda connection: connection.topic):
            assert isinstance(connection.ext, ConnectionExtRosbag2)
            known = summaries.get(connection.topic)
            summaries[connection.topic] = TopicSummary(
                connection.topic,
                connection.msgtype,
                self._counts.get(connection.id, 0) + (known.count if known else 0),
                TopicQos.of(connection.ext.offered_qos_profiles),
                connection.digest,
            )
        return summaries

    @property
    def duration_s(self) -> float:
        """Time from the first to the last message, seconds."""
        return (self.end_ns - self.start_ns) * 1e-9

    @property
    def custom_data(self) -> dict[str, str]:
        """Notes of whoever recorded it (custom_data of its metadata); none where it has no readable metadata.yaml."""
        try:
            content = YAML(typ="safe").load((self.path / "metadata.yaml").read_text(encoding="utf-8"))
            notes = content["rosbag2_bagfile_information"].get("custom_data")
            return {str(key): str(value) for key, value in (notes or {}).items()}
        except (OSError, UnicodeDecodeError, YAMLError, LookupError, AttributeError, TypeError):
            return {}

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """Yield the messages in the order of log time (of the file, where its index is missing).

        topics: names to read, all by default; raises BagError naming one that is not in the bag.
        Where the file turns out to be damaged, the iteration ends there and `damage` says where.
        """
        known = self.topics
        for topic in topics or ():
            if topic not in known:
                raise BagError(f"{self.path} has no topic {topic}; it has {', '.join(known) or 'none'}")
        wanted = [c for c in self._connections if topics is None or c.topic in topics]
        if not wanted:
            return
        last_ns = self.start_ns
        try:
            for connection, log_ns, raw in self._reader.messages(wanted) if self._reader else self._scan():
                if self._reader is None and connection not in wanted:
                    continue
                if self._packed:
                    raw = limits.unpack_zstd(raw)
                last_ns = log_ns
                yield BagMessage(connection.topic, connection.msgtype, log_ns, raw, self.store)
        except (BagError, GeneratorExit):
            raise
        except Exception as error:
            self.damage = f"damaged after {(last_ns - self.start_ns) * 1e-9:.3f} s of its time: {error}"

    def _scan(self, register: bool = False) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield what can be read of the files, one after the other, up to the damage; whole messages only."""
        # Each file numbers its channels anew.
        known = {(connection.topic, connection.msgtype): connection for connection in self._connections}
        for path in self._salvaged:
            messages = 0
            try:
                for connection, log_ns, raw in salvage.SCANNERS[path.suffix](path):
                    key = (connection.topic, connection.msgtype)
                    if register and key not in known:
                        known[key] = connection._replace(id=len(known))
                        self._connections.append(known[key])
                    messages += 1
                    yield known[key], log_ns, raw
            except Exception as error:  # of whatever kind: the bytes may be anything
                where = f"message {messages}" + (f" of {path.name}" if len(self._salvaged) > 1 else "")
                self.damage = f"opened without its index; cut or damaged after {where}: {error}"
                return

    def close(self) -> None:
        """Close the files."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __enter__(self) -> "Bag":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unpack_here(reader: Reader) -> bool:
    """Return whether messages are compressed each by itself, and keep rosbags from unpacking them without a bound.

    Raises BagError where more would be unpacked at one time than limits allow.
    """
    storage: Any = reader.storage
    for one in getattr(storage, "storages", [storage]):
        limits.check_chunks(Path(str(reader.path)), getattr(one, "chunks", ()))
    if reader.compression_mode != "message":
        return False
    storage.metadata = storage.metadata._replace(compression_mode=None)
    return True


def _pending(bag: Path) -> Path | None:
    """Return the write-ahead log of a SQLite3 file, with messages that are not in the file itself; None without one."""
    logs = sorted(bag.glob("*.db3-wal")) if bag.is_dir() else [bag.with_name(f"{bag.name}-wal")]
    return next((log for log in logs if log.is_file() and log.stat().st_size), None)


def _store_of(connections: list[Connection]) -> Typestore:
    """Return a store with the definitions that the bag carries; from this machine where it carries none."""
    if not all(connection.msgdef.data for connection in connections):
        store = message_store()
        for connection in connections:
            try:
                require(store, connection.msgtype)
            except UnknownTypeError:
                continue  # its messages can still be passed on raw; decoding one says what is missing
        return store
    store = get_typestore(Stores.EMPTY)
    separator = "=" * 80 + "\n"
    for connection in connections:
        definition = connection.msgdef.data
        if connection.msgdef.format == MessageDefinitionFormat.MSG:
            store.register(get_types_from_msg(definition, connection.msgtype))
        elif definition.startswith(separator):  # several files, each after a line `IDL: package/msg/Name`
            for text in definition.split(separator)[1:]:
                store.register(get_types_from_idl(text.partition("\n")[2]))
        else:
            store.register(get_types_from_idl(definition))
    return store
