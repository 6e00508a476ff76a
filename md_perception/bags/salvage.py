"""Reading bag files that are cut or damaged, message by message, as far as they go.

A recorder that was killed and a disk that was full leave files without an end, which no index describes. Whatever the
bytes are, an exception of some kind ends the reading: the messages before it are good.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from io import SEEK_CUR, SEEK_END, BytesIO
from pathlib import Path
from typing import BinaryIO

from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2.metadata import parse_qos
from rosbags.rosbag2.storage_mcap import Schema, decompress, get_msgdef, get_qos

from md_perception.bags import limits

Salvaged = tuple[Connection, int, bytes]
"""Topic, log time in ns, CDR."""


# --- SQLite3 ---------------------------------------------------------------------------------------------------------

_FORMATS = {"ros2msg": MessageDefinitionFormat.MSG, "ros2idl": MessageDefinitionFormat.IDL}


def is_cut(path: Path) -> bool:
    """Return whether a SQLite3 file is shorter than its header says."""
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or header[:16] != b"SQLite format 3\0":
        return False
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    return path.stat().st_size < (65536 if page == 1 else page) * pages


def scan_sqlite(path: Path) -> Iterator[Salvaged]:
    """Yield the messages of a SQLite3 file in the order in which they were recorded.

    Raises sqlite3.DatabaseError where its pages end, or are not what they should be.
    """
    with closing(limits.open_database(path)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        definitions: dict[str, MessageDefinition] = {}
        if "message_definitions" in tables:
            definitions = {
                name: MessageDefinition(_FORMATS.get(encoding, MessageDefinitionFormat.NONE), text)
                for name, encoding, text in database.execute(
                    "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
                )
            }
        has_qos = "offered_qos_profiles" in {row[1] for row in database.execute("PRAGMA table_info(topics)")}
        columns = f"id, name, type, serialization_format, {'offered_qos_profiles' if has_qos else repr('')}"
        none = MessageDefinition(MessageDefinitionFormat.NONE, "")
        topics = {
            number: Connection(
                number,
                name,
                kind,
                definitions.get(kind, none),
                "",
                0,
                ConnectionExtRosbag2(format_, parse_qos(qos)),
                None,
            )
            for number, name, kind, format_, qos in database.execute(f"SELECT {columns} FROM topics")
        }
        # By the number of the row, without the index of the time stamps, which lies anywhere in the file.
        for topic, log_ns, size, data in database.execute(
            "SELECT topic_id, timestamp, length(data), CASE WHEN length(data) <= ? THEN data END "
            "FROM messages ORDER BY id",
            [limits.MAX_MESSAGE_BYTES],
        ):
            if not isinstance(data, bytes):
                raise ValueError(f"a message of {size} bytes: at most {limits.MAX_MESSAGE_BYTES} are read")
            yield topics[topic], int(log_ns), data


# --- MCAP: https://mcap.dev/spec -------------------------------------------------------------------------------------

_MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F


def scan_mcap(path: Path) -> Iterator[Salvaged]:
    """Yield the messages of an MCAP file, those of a chunk by their time; raises an exception where it ends early."""
    with path.open("rb") as file:
        yield from _scan(file)


def _scan(file: BinaryIO) -> Iterator[Salvaged]:
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
) -> Iterator[Salvaged]:
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


SCANNERS: dict[str, Callable[[Path], Iterator[Salvaged]]] = {".mcap": scan_mcap, ".db3": scan_sqlite}
"""By the ending of the file."""
