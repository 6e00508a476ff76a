"""Reading rosbag2 files without ROS, in the order of time, with a clear word about what is damaged."""

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import SEEK_CUR, SEEK_END, BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.storage_mcap import Schema, decompress, get_msgdef, get_qos
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from md_perception.bags import limits
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

    MCAP whose end is missing (a recorder that was killed, a full disk), one file or the last of a split bag, is read as
    far as it goes; `damage` then says so. Use as a context manager. Raises BagError where nothing can be read.
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

    def _make_store(self) -> Typestore:
        limits.check_definitions(self.path, self._connections)
        try:
            return _store_of(self._connections)
        except Exception as error:  # the definitions may be any text
            self.close()
            raise BagError(f"{self.path}: its message definitions cannot be understood: {str(error)[:300]}") from error

    def _open_damaged(self, reason: Exception) -> None:
        files = list(self.path.glob("*.mcap")) if self.path.is_dir() else [self.path]
        if not files or files[0].suffix != ".mcap":
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
        """Yield what can be read of MCAP files, one after the other, up to the damage; whole records only."""
        # Each file numbers its channels anew.
        known = {(connection.topic, connection.msgtype): connection for connection in self._connections}
        for path in self._salvaged:
            with path.open("rb") as file:
                try:
                    for connection, log_ns, raw in _scan_mcap(file):
                        key = (connection.topic, connection.msgtype)
                        if register and key not in known:
                            known[key] = connection._replace(id=len(known))
                            self._connections.append(known[key])
                        yield known[key], log_ns, raw
                except Exception as error:  # of whatever kind: the bytes may be anything
                    where = f"byte {file.tell()} of {path.name}" if len(self._salvaged) > 1 else f"byte {file.tell()}"
                    self.damage = f"opened without its index; cut or damaged at {where}: {error}"
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


# --- MCAP without its index: https://mcap.dev/spec -------------------------------------------------------------------

_MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F


def _scan_mcap(file: BinaryIO) -> Iterator[tuple[Connection, int, bytes]]:
    if file.read(8) != _MAGIC:
        raise ValueError("it does not begin like an MCAP file")
    schemas: dict[int, tuple[str, str, str]] = {}  # id -> name, encoding, text
    channels: dict[int, Connection] = {}
    for opcode, record in _records(file):
        if opcode == _DATA_END:
            return
        if opcode == _CHUNK:
            found = list(_messages_of(_records(BytesIO(_chunk_content(record))), schemas, channels))
            yield from sorted(found, key=lambda item: item[1])
        else:
            yield from _messages_of([(opcode, record)], schemas, channels)
    raise EOFError("the end is missing")


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    begin = file.tell()
    end = file.seek(0, SEEK_END)
    file.seek(begin)
    while head := file.read(9):
        if len(head) < 9:
            raise EOFError("a record is cut short")
        opcode, size = struct.unpack("<BQ", head)
        if size > end - file.tell():  # looked at before reading: a damaged size may be larger than the memory
            raise EOFError(f"a record of {size} bytes is cut short")
        if opcode not in (_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END):
            file.seek(size, SEEK_CUR)  # attachments may be of any size
            continue
        if size > limits.MAX_MESSAGE_BYTES:
            raise ValueError(f"a record of {size} bytes: at most {limits.MAX_MESSAGE_BYTES} are read")
        yield opcode, file.read(size)


def _chunk_content(record: bytes) -> bytes:
    _, _, size, crc = struct.unpack_from("<QQQI", record)
    compression, offset = _text(record, 28)
    return decompress(record[offset + 8 :], compression, size, crc)


def _messages_of(
    records: Iterator[tuple[int, bytes]] | list[tuple[int, bytes]],
    schemas: dict[int, tuple[str, str, str]],
    channels: dict[int, Connection],
) -> Iterator[tuple[Connection, int, bytes]]:
    for opcode, record in records:
        if opcode == _SCHEMA:
            (number,) = struct.unpack_from("<H", record)
            name, offset = _text(record, 2)
            encoding, offset = _text(record, offset)
            schemas[number] = (name, encoding, _text(record, offset)[0])
        elif opcode == _CHANNEL:
            number, schema = struct.unpack_from("<HH", record)
            topic, offset = _text(record, 4)
            encoding, offset = _text(record, offset)
            name, schema_encoding, text = schemas[schema]
            channels[number] = Connection(
                number,
                topic,
                name,
                get_msgdef(Schema(schema, name, schema_encoding, text)),
                "",
                0,
                ConnectionExtRosbag2(encoding, get_qos(record[offset + 4 :])),
                None,
            )
        elif opcode == _MESSAGE:
            number, _, log_ns, _ = struct.unpack_from("<HIQQ", record)
            yield channels[number], log_ns, record[22:]


def _text(record: bytes, offset: int) -> tuple[str, int]:
    """Return a length-prefixed string and the offset behind it."""
    (size,) = struct.unpack_from("<I", record, offset)
    end = offset + 4 + size
    return record[offset + 4 : end].decode(), end
