"""What a bag from somebody else may ask of this machine, looked at before rosbags, which trusts bags, does as it asks.

A bag may be a few kilobytes that unpack to terabytes (compressed chunks and messages), a database whose tables are
programs (views), a link to a file elsewhere, a pipe that never ends, or a message type whose definition is one.
"""

import re
import sqlite3
import stat
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import storage_mcap

from md_perception.bags.write import BagError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_METADATA_BYTES = 1024 * 1024
"""Largest metadata.yaml; one of a hundred topics and a thousand files has 300 KB."""

MAX_MESSAGE_BYTES = 128 * 1024 * 1024
"""Largest message, and largest chunk of an MCAP file, unpacked; rosbag2 makes chunks of less than 1 MB, and a colour
image of 8K has 100 MB."""

MAX_OVERLAP_BYTES = 1024 * 1024 * 1024
"""Most bytes of chunks that lie side by side in time, which are unpacked together to put their messages in order."""

MAX_DEFINITION_CHARACTERS = 256 * 1024
"""Longest definition of a message type, with those of its fields."""

_SUMMARY_RECORD_BYTES = 1024 * 1024
_TABLE = re.compile(r"\s*CREATE\s+TABLE\b", re.IGNORECASE)
_WIDE_SHIFT = re.compile(r"<<(?!\s*\d{1,2}\b)")


def check_files(path: Path) -> None:
    """Raise BagError where a bag, a folder or a file, holds what may not be opened."""
    folder = path.resolve()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        status = file.stat() if file.exists() else file.lstat()
        if file is not path and not file.resolve().is_relative_to(folder):
            raise BagError(f"{file} is a link to a file outside of the bag: copy that file to its place")
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise BagError(f"{file} is no plain file: no bag has that")
        if file.name == "metadata.yaml":
            if status.st_size > MAX_METADATA_BYTES:
                raise BagError(f"{file} has {status.st_size} bytes: that of a bag has at most {MAX_METADATA_BYTES}")
            if "compression_mode: file" in file.read_text(errors="replace").lower().replace('"', "").replace("'", ""):
                raise BagError(
                    f"{path} is compressed as a whole file, and what it unpacks to is not known: unpack it with "
                    "`ros2 bag convert`, or compress messages or chunks instead"
                )
            continue
        with file.open("rb") as content:
            begin = content.read(16)
        if begin == b"SQLite format 3\0":
            _check_database(file)
        elif begin.startswith(b"\x89MCAP0\r\n"):
            _check_summary(file)


def _check_database(path: Path) -> None:
    """Raise BagError where a SQLite file holds more than plain tables, whose rows are what is in the file."""
    longest = None
    try:
        with closing(open_database(path)) as database:
            for kind, name, sql in database.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
                plain = kind == "index" or (kind == "table" and _TABLE.match(sql or ""))
                quoted = str(name).replace('"', '""')
                if not plain or any(row[6] for row in database.execute(f'PRAGMA table_xinfo("{quoted}")')):
                    raise BagError(f"{path} has a {kind} {name!r} that computes its content: no bag has that")
            try:
                ((longest,),) = database.execute("SELECT max(length(data)) FROM messages").fetchall()
            except sqlite3.DatabaseError as error:
                if "malformed" not in str(error):
                    raise
                # A part is missing: whoever reads what is there looks at each message's length.
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for names that are no text
        raise BagError(f"{path} is not a bag that can be read: {error}") from None
    if isinstance(longest, int) and longest > MAX_MESSAGE_BYTES:
        raise BagError(f"{path} has a message of {longest} bytes: at most {MAX_MESSAGE_BYTES} are read")


def open_database(path: Path) -> sqlite3.Connection:
    """Open a SQLite file for reading, even where its end is missing. Raises BagError, sqlite3.Error."""
    if re.search("[?#%]", str(path)):
        raise BagError(f"{path}: SQLite would take a part of this name for options: rename it without ?, # and %")
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    # In spite of its name this writes nothing; without it SQLite does not open a file with fewer pages than it says.
    database.execute("PRAGMA writable_schema = ON")
    return database


def _check_summary(path: Path) -> None:
    """Raise BagError where a schema or channel in the summary of an MCAP file is larger than any real one."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        if end < 45:
            return  # cut off: for the reader to say
        file.seek(-28, 2)
        begin = int.from_bytes(file.read(8), "little")
        if not 8 <= begin < end:
            return
        file.seek(begin)
        while len(head := file.read(9)) == 9:
            opcode, size = head[0], int.from_bytes(head[1:], "little")
            if opcode in (0x03, 0x04) and size > _SUMMARY_RECORD_BYTES:
                raise BagError(f"{path} describes a topic in {size} bytes: at most {_SUMMARY_RECORD_BYTES} are read")
            if opcode == 0x02 or file.tell() + size > end:
                return
            file.seek(size, 1)


def check_chunks(path: Path, chunks: Iterable[Any]) -> None:
    """Raise BagError where too much of an MCAP file would have to be unpacked at one time.

    chunks: rosbags' index of them, with their times and unpacked sizes.
    """
    chunks = list(chunks)
    # Ends come before beginnings at the same time: of chunks that only touch one is done with.
    events = sorted(
        event
        for chunk in chunks
        for event in (
            (chunk.message_start_time, 1, chunk.uncompressed_size),
            (chunk.message_end_time + 1, 0, -chunk.uncompressed_size),
        )
    )
    open_bytes = 0
    for _, _, size in events:
        if size > MAX_MESSAGE_BYTES:
            raise BagError(f"{path} has a chunk of {size} bytes: at most {MAX_MESSAGE_BYTES} are unpacked")
        open_bytes += size
        if open_bytes > MAX_OVERLAP_BYTES:
            raise BagError(
                f"{path} has chunks of {open_bytes} bytes at one time: at most {MAX_OVERLAP_BYTES} are unpacked; "
                "write it anew in the order of time, with `ros2 bag convert` or `mcap sort`"
            )


def check_definitions(path: Path, connections: Iterable[Connection]) -> None:
    """Raise BagError where the definition of a message type would take for ever to be understood."""
    for connection in connections:
        definition, kind = connection.msgdef.data, connection.msgdef.format
        if len(definition) > MAX_DEFINITION_CHARACTERS:
            raise BagError(
                f"{path} defines {connection.msgtype[:100]!r} in {len(definition)} characters: at most "
                f"{MAX_DEFINITION_CHARACTERS} are read"
            )
        if kind == MessageDefinitionFormat.IDL and _WIDE_SHIFT.search(definition):
            raise BagError(f"{path} defines {connection.msgtype[:100]!r} by a number that may be of any length")


def unpack_zstd(data: bytes, size: int = MAX_MESSAGE_BYTES) -> bytes:
    """Return what zstd data unpack to.

    size: bytes that they may have. Raises BagError where there are more, ValueError where the data are damaged.
    """
    _check_size(size)
    unpacked = bytearray()
    while data:  # frame after frame
        decompressor = zstd.ZstdDecompressor()
        try:
            unpacked += decompressor.decompress(data, max_length=size + 1 - len(unpacked))
        except zstd.ZstdError as error:
            raise ValueError(f"a part of the bag cannot be unpacked: {error}") from None
        _check_done(len(unpacked), size, decompressor.eof)
        data = decompressor.unused_data
    return bytes(unpacked)


def unpack_lz4(data: bytes, size: int) -> bytes:
    """Return what an lz4 frame unpacks to; as `unpack_zstd`."""
    _check_size(size)
    decompressor = LZ4FrameDecompressor()
    try:
        unpacked: bytes = decompressor.decompress(data, max_length=size + 1)
    except RuntimeError as error:
        raise ValueError(f"a part of the bag cannot be unpacked: {error}") from None
    _check_done(len(unpacked), size, decompressor.eof)
    return unpacked


def _check_size(size: int) -> None:
    if size > MAX_MESSAGE_BYTES:
        raise BagError(f"a part of the bag unpacks to {size} bytes: at most {MAX_MESSAGE_BYTES} are unpacked")


def _check_done(length: int, size: int, eof: bool) -> None:
    if length > size:
        raise BagError(f"a part of the bag unpacks to more than the {size} bytes that it may have")
    if not eof:
        raise ValueError("a part of the bag cannot be unpacked: its end is missing")


# rosbags looks these up by the name of the compression, and passes the size that the chunk claims, but its own ones
# unpack whatever comes and compare the size afterwards.
storage_mcap.DECOMPRESSORS.update(zstd=unpack_zstd, lz4=unpack_lz4)
