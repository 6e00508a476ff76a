"""Bags from somebody else: what would take all memory, all time, or another file is refused with a reason."""

import os
import re
import sqlite3
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import lz4.frame
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from md_perception.bags import limits
from md_perception.bags.limits import check_chunks, check_definitions, unpack_lz4, unpack_zstd, zstd
from md_perception.bags.read import Bag
from md_perception.bags.types import IMAGE, make_header, message_store
from md_perception.bags.write import BagError, BagWriter, Storage
from md_perception.sensing.images import image_fields

ZEROS = 200 * 2**20
"""Bytes that the bombs unpack to."""


def write_bag(path: Path, storage: Storage = "mcap") -> Path:
    """Write a bag of three images of 64 x 48."""
    with BagWriter(path, storage) as writer:
        writer.add_topic("/image", IMAGE)
        for index in range(3):
            header = make_header(writer.store, index + 1, "camera")
            picture = np.full((48, 64), index, np.uint8)
            message = writer.store.types[IMAGE](header=header, **image_fields(picture, "mono8"))
            writer.write("/image", index + 1, message)
    return path


def read(path: Path) -> list[int]:
    """Return the first pixels of all images."""
    with Bag(path) as bag:
        pixels = [int(item.message.data[0]) for item in bag.messages()]
        assert bag.damage is None
    return pixels


@contextmanager
def little_memory(megabytes: float = 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------- compression


def bomb(compression: str) -> bytes:
    """Return ZEROS zeros, compressed; a few kilobytes (lz4: a megabyte)."""
    return zstd.compress(bytes(ZEROS), 1) if compression == "zstd" else lz4.frame.compress(bytes(ZEROS))


def text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode()


def record(opcode: int, content: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(content)) + content


def mcap_with_chunk(
    path: Path, compression: str, packed: bytes, size: int, msgtype: str = "std_msgs/msg/String"
) -> Path:
    """Write an MCAP file without an index: one chunk, which claims to unpack to `size` bytes."""
    chunk = struct.pack("<QQQI", 1, 1, size, 0) + text(compression) + struct.pack("<Q", len(packed)) + packed
    schema = record(3, struct.pack("<H", 1) + text(msgtype) + text("ros2msg") + text("string data"))
    channel = record(4, struct.pack("<HH", 1, 1) + text("/text") + text("cdr") + text(""))
    body = record(1, text("ros2") + text("")) + schema + channel + record(6, chunk) + record(15, bytes(4))
    path.write_bytes(b"\x89MCAP0\r\n" + body + record(2, bytes(20)) + b"\x89MCAP0\r\n")
    return path


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize(
    ("claimed", "reason"),
    [(1000, "unpacks to more than the 1000 bytes"), (ZEROS, f"unpacks to {ZEROS} bytes: at most 134217728")],
)
def test_a_chunk_that_unpacks_to_more_than_it_says_or_may_is_refused(
    compression: str, claimed: int, reason: str, tmp_path: Path
) -> None:
    path = mcap_with_chunk(tmp_path / "bomb.mcap", compression, bomb(compression), claimed)
    assert path.stat().st_size < 1e6
    with little_memory(), pytest.raises(BagError, match=reason):
        Bag(path)


def test_the_reader_of_damaged_files_is_as_careful(tmp_path: Path) -> None:
    path = mcap_with_chunk(tmp_path / "bomb.mcap", "zstd", bomb("zstd"), 1000)
    path.write_bytes(path.read_bytes()[:-20])  # so that there is no end
    with little_memory(), pytest.raises(BagError, match="is damaged and no message can be read"):
        Bag(path)


@given(st.binary(max_size=5000), st.integers(0, 3))
def test_what_was_packed_is_what_is_unpacked(data: bytes, frames: int) -> None:
    parts = [data[index::frames] for index in range(frames)]
    assert unpack_zstd(b"".join(zstd.compress(part) for part in parts)) == b"".join(parts)
    assert unpack_lz4(lz4.frame.compress(data), len(data)) == data


def test_frames_are_bounded_together() -> None:
    packed = zstd.compress(bytes(600))
    assert len(unpack_zstd(packed, 600)) == 600
    with pytest.raises(BagError, match="more than the 1000 bytes"):
        unpack_zstd(packed + packed, 1000)
    packed += bomb("zstd")
    with little_memory(), pytest.raises(BagError, match="more than the 1000 bytes"):
        unpack_zstd(packed, 1000)


@given(st.binary(max_size=200))
def test_damaged_compression_is_damage(data: bytes) -> None:
    for unpack, packed in ((unpack_zstd, zstd.compress(data)), (unpack_lz4, lz4.frame.compress(data))):
        with pytest.raises(ValueError, match="cannot be unpacked"):
            unpack(packed[:-1], 200)
        with pytest.raises(ValueError, match="cannot be unpacked"):
            unpack(b"no frame" + packed, 200)


def test_messages_compressed_one_by_one_are_read_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    store = message_store()
    string = store.types["std_msgs/msg/String"]
    with writer:
        connection = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
        for index in range(2):
            raw = store.serialize_cdr(string(data="x" * (10 + 90_000 * index)), "std_msgs/msg/String")
            writer.write(connection, index, raw)

    with Bag(tmp_path / "bag") as bag:
        assert [len(item.message.data) for item in bag.messages()] == [10, 90_010]
    monkeypatch.setattr(limits.unpack_zstd, "__defaults__", (1000,))
    with Bag(tmp_path / "bag") as bag, pytest.raises(BagError, match="unpacks to more than the 1000 bytes"):
        list(bag.messages())


def test_a_bag_that_is_packed_as_a_whole_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag")
    metadata = path / "metadata.yaml"
    metadata.write_text(re.sub("compression_mode: .*", "compression_mode: FILE", metadata.read_text()))
    with pytest.raises(BagError, match=r"compressed as a whole file.*`ros2 bag convert`"):
        Bag(path)


def test_chunks_that_overlap_in_time_are_bounded_together(tmp_path: Path) -> None:
    def chunk(begin: int, end: int, size: int) -> SimpleNamespace:
        return SimpleNamespace(message_start_time=begin, message_end_time=end, uncompressed_size=size)

    mega = 2**20
    check_chunks(tmp_path, [chunk(10 * k, 10 * k + 9, 128 * mega) for k in range(1000)])  # one after the other
    check_chunks(tmp_path, [chunk(0, 9, 128 * mega) for _ in range(8)])
    # Of chunks that share an instant all are unpacked.
    with pytest.raises(BagError, match="at one time"):
        check_chunks(tmp_path, [chunk(k, k + 1, 128 * mega) for k in (0, 1) for _ in range(5)])
    with pytest.raises(BagError, match="at one time: at most 1073741824"):
        check_chunks(tmp_path, [chunk(0, 9, 128 * mega) for _ in range(9)])
    with pytest.raises(BagError, match="has a chunk of 134217729 bytes"):
        check_chunks(tmp_path, [chunk(0, 9, 128 * mega + 1)])


def test_the_index_of_a_real_bag_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bag(tmp_path / "bag")
    assert read(path) == [0, 1, 2]
    monkeypatch.setattr(limits, "MAX_MESSAGE_BYTES", 5000)
    with pytest.raises(BagError, match=r"has a chunk of .* bytes: at most 5000"):
        Bag(path)


def test_a_topic_described_in_megabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bag(tmp_path / "bag")
    monkeypatch.setattr(limits, "_SUMMARY_RECORD_BYTES", 50)
    with pytest.raises(BagError, match=r"describes a topic in .* bytes: at most 50"):
        Bag(path)


# ----------------------------------------------------------------------------------------------------- database


def change_database(path: Path, script: str) -> Path:
    database = sqlite3.connect(path / f"{path.name}.db3")
    database.executescript(script)
    database.close()
    return path


ENDLESS = """
CREATE VIEW {name} AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
SELECT x AS id, 1 AS topic_id, x AS timestamp, zeroblob(1000000000) AS data FROM c;
"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("DROP TABLE messages;" + ENDLESS.format(name="messages"), "has a view 'messages' that computes its content"),
        (ENDLESS.format(name="x"), "has a view 'x' that computes"),
        (
            "DROP TABLE messages; CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER,"
            " data BLOB AS (zeroblob(1000000000)) VIRTUAL); INSERT INTO messages VALUES (1, 1, 1);",
            "has a table 'messages' that computes",
        ),
        ("CREATE TRIGGER t AFTER INSERT ON messages BEGIN SELECT 1; END;", "has a trigger 't' that computes"),
        ("DROP TABLE messages;", "no such table: messages"),
    ],
)
def test_a_database_that_computes_what_it_holds_is_refused(script: str, reason: str, tmp_path: Path) -> None:
    path = change_database(write_bag(tmp_path / "bag", "sqlite3"), script)
    start = time.process_time()
    with little_memory(), pytest.raises(BagError, match=reason):
        Bag(path)
    assert time.process_time() - start < 5


def test_a_plain_database_is_read_and_its_messages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bag(tmp_path / "bag", "sqlite3")
    assert read(path) == [0, 1, 2]
    monkeypatch.setattr(limits, "MAX_MESSAGE_BYTES", 3000)
    with pytest.raises(BagError, match=r"has a message of 3\d\d\d bytes: at most 3000"):
        Bag(path)


def test_a_database_with_names_that_are_no_text_is_refused(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", "sqlite3")
    file = path / f"{path.name}.db3"
    file.write_bytes(file.read_bytes().replace(b"CREATE TABLE messages", b"CR\x80ATE TABLE messages"))
    with pytest.raises(BagError, match="is not a bag that can be read"):
        Bag(path)


def test_a_database_whose_name_has_options_is_refused(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", "sqlite3").rename(tmp_path / "bag?vfs=other")
    with pytest.raises(BagError, match=r"rename it without \?, # and %"):
        Bag(path)


# -------------------------------------------------------------------------------------------------------- files


def test_links_that_leave_the_bag_are_not_followed(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag")
    (path / "bag.mcap").rename(tmp_path / "secret.mcap")
    (path / "bag.mcap").symlink_to(tmp_path / "secret.mcap")
    with pytest.raises(BagError, match="is a link to a file outside of the bag"):
        Bag(path)
    assert read(tmp_path / "secret.mcap") == [0, 1, 2]  # by its own name it may be read


def test_paths_in_the_metadata_do_not_leave_the_folder(tmp_path: Path) -> None:
    path, other = write_bag(tmp_path / "bag", "sqlite3"), write_bag(tmp_path / "other", "sqlite3")
    metadata = path / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("bag.db3", "../other/other.db3"))
    with pytest.raises(BagError, match=r"missing.*bag/other\.db3"):
        Bag(path)
    assert read(other) == [0, 1, 2]


def test_pipes_and_huge_metadata_are_refused(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag")
    os.mkfifo(path / "more.mcap")
    with pytest.raises(BagError, match=r"more\.mcap is no plain file"):
        Bag(path)
    (path / "more.mcap").unlink()
    with (path / "metadata.yaml").open("a") as file:
        file.write("#" * limits.MAX_METADATA_BYTES)
    with pytest.raises(BagError, match=r"metadata\.yaml has \d+ bytes: that of a bag has at most"):
        Bag(path)


@pytest.mark.parametrize(
    "yaml", ["[" * 50_000, "a: &a [*a]", "rosbag2_bagfile_information: 1", "!!python/name:os.system x"]
)
def test_yaml_that_is_no_metadata_is_refused(yaml: str, tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", "sqlite3")
    (path / "metadata.yaml").write_text(yaml)
    with pytest.raises(BagError, match="is not a bag that can be read"):
        Bag(path)


# -------------------------------------------------------------------------------------------------- definitions


def connection(definition: str, kind: MessageDefinitionFormat, msgtype: str = "p/msg/T") -> Connection:
    extension = ConnectionExtRosbag2("cdr", [])
    return Connection(1, "/t", msgtype, MessageDefinition(kind, definition), "", 0, extension, None)


def test_definitions_that_take_for_ever_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="in 262145 characters: at most 262144"):
        check_definitions(tmp_path, [connection("#" * 262_145, MessageDefinitionFormat.MSG)])
    module = "module p { module msg { module T_Constants { const long A = 1 << %s; }; }; };"
    check_definitions(tmp_path, [connection(module % "31", MessageDefinitionFormat.IDL)])
    for width in ("1000000000000", "(1 << 40)"):
        with pytest.raises(BagError, match="by a number that may be of any length"):
            check_definitions(tmp_path, [connection(module % width, MessageDefinitionFormat.IDL)])


def test_a_type_whose_name_is_python_is_not_run(tmp_path: Path) -> None:
    # rosbags makes classes of the definitions, by `exec`.
    evil = f"x/msg/A:\n    pass\nopen({str(tmp_path / 'pwned')!r}, 'w')\nclass B"
    message = record(5, struct.pack("<HIQQ", 1, 0, 1, 1) + bytes(8))
    path = mcap_with_chunk(tmp_path / "evil.mcap", "", message, len(message), evil)
    with pytest.raises(BagError, match="its message definitions cannot be understood"):
        Bag(path)
    assert not (tmp_path / "pwned").exists()


# --------------------------------------------------------------------------------------------------------- fuzz


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {storage: write_bag(folder / storage, storage) for storage in ("mcap", "sqlite3")}  # type: ignore[arg-type]


@given(data=st.data(), storage=st.sampled_from(["mcap", "sqlite3"]))
def test_damaged_bags_are_read_as_far_as_they_go_or_refused(
    whole: dict[str, Path], data: st.DataObject, storage: str
) -> None:
    (source,) = (file for file in whole[storage].iterdir() if file.suffix in (".mcap", ".db3"))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    damaged = whole[storage].parent / f"damaged{source.suffix}"
    damaged.write_bytes(content)
    try:
        with Bag(damaged) as bag:
            for item in bag.messages():
                with suppress(BagError):
                    _ = item.message
    except BagError as error:
        assert str(error)  # noqa: PT017 (the damage may also be harmless)
