import contextlib
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_training.data import splits
from md_training.data.splits import (
    PUBLISHED,
    RECORD,
    DataError,
    PublishedList,
    hash_names,
    published,
    read_names,
    read_split,
    record,
    verified,
)

KNOWN = PublishedList("kaist", "some", "three frames", 3, hash_names(("a", "b", "c")))
COUNTED = PublishedList("kaist", "some", "three frames", 3)


def test_the_real_lists_are_the_pinned_ones(data_root: Path) -> None:
    """The hash of a published list is what `sha256sum` says of its file."""
    for path, data_set, count in (
        (data_root / "kaist" / "test-all-20.txt", "kaist", 2252),
        (data_root / "kaist" / "train-all-02.txt", "kaist", 25086),
        (data_root / "msrs" / "train.txt", "msrs", 199),
        (data_root / "msrs" / "val.txt", "msrs", 60),
    ):
        split = read_split(path, data_set)

        assert (len(split), split.status) == (count, "pinned")
        assert split.sha256 == subprocess.check_output(["sha256sum", str(path)], text=True).split()[0]
        assert f"{count} pairs, pinned, SHA-256 {split.sha256}" in split.description()


def test_published_counts_are_those_of_the_literature() -> None:
    counts = {(known.data_set, known.name): known.count for known in PUBLISHED}

    assert counts["kaist", "train-all-01-non-empty"] == 21622
    assert counts["kaist", "test-day-20"] + counts["kaist", "test-night-20"] == counts["kaist", "test-all-20"]
    assert [counts["mfnet", name] for name in ("train", "val", "test")] == [784, 392, 393]  # 1,569 images
    assert counts["mfnet", "test_day"] + counts["mfnet", "test_night"] == counts["mfnet", "test"]
    assert all(known.definition for known in PUBLISHED)


def test_line_ends_suffixes_and_empty_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfa.png\r\n\r\ndrive1/b.JPG\nc\n")

    split = read_split(path, "kaist")

    assert split.names == ("a", "drive1/b", "c")
    assert (split.name, split.status) == ("mine", "own")
    assert split.sha256 == hashlib.sha256(b"a\ndrive1/b\nc\n").hexdigest()


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "a//b", "..\\a", "./a"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(f"good\n{name}\n")

    with pytest.raises(DataError, match=r"line 2: .* is not a name inside the data set's folder"):
        read_names(path)


@given(st.binary(max_size=200))
def test_any_file_gives_names_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    path.write_bytes(content)

    with contextlib.suppress(DataError):
        names = read_names(path)
        assert len(names) == len(set(names)) > 0
        assert not any(Path(name).is_absolute() or ".." in name.split("/") for name in names)


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a\nb\na.png\n")

    with pytest.raises(DataError, match="line 3: a is already in line 1"):
        read_names(path)


def test_a_published_name_needs_the_published_list(tmp_path: Path) -> None:
    assert published("kaist", "test-all-20") is not None
    assert published("msrs", "test-all-20") is None
    path = tmp_path / "test-all-20.txt"
    path.write_text("set06/V000/I00019\n")

    with pytest.raises(DataError, match="has 1 names, but kaist's test-all-20 has 2252"):
        read_split(path, "kaist")
    assert read_split(path, "").status == "own"


def test_the_same_count_is_not_the_same_list() -> None:
    assert verified(("a", "b", "c"), KNOWN, "list").status == "pinned"
    with pytest.raises(DataError, match="not the same ones in the same order"):
        verified(("a", "c", "b"), KNOWN, "list")


def test_the_first_hash_of_a_list_is_recorded_and_has_to_stay(tmp_path: Path) -> None:
    first = verified(("a", "b", "c"), COUNTED, "list", tmp_path)
    assert first.status == "counted"

    assert record(tmp_path, "kaist", first)

    entry = json.loads((tmp_path / RECORD).read_text())["kaist/some"]
    assert (entry["sha256"], entry["count"]) == (first.sha256, 3)
    assert verified(("a", "b", "c"), COUNTED, "list", tmp_path) == first
    with pytest.raises(DataError, match=rf"recorded in .*{RECORD}"):
        verified(("a", "b", "d"), COUNTED, "list", tmp_path)
    # A later check does not overwrite what the first one wrote.
    assert record(tmp_path, "kaist", splits.Split("some", ("x",), "0" * 64, "counted"))
    assert json.loads((tmp_path / RECORD).read_text())["kaist/some"] == entry


def test_a_damaged_record_says_so(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("[]")

    with pytest.raises(DataError, match="is damaged"):
        verified(("a", "b", "c"), COUNTED, "list", tmp_path)


def test_everyday_names_are_known_by_their_hash(tmp_path: Path, data_root: Path) -> None:
    """train.txt can be anybody's; with MSRS's names in MSRS's order it is MSRS's."""
    content = (data_root / "msrs" / "train.txt").read_text()
    (tmp_path / "train.txt").write_text(content)
    assert (read_split(tmp_path / "train.txt", "").name, read_split(tmp_path / "train.txt", "").status) == (
        "msrs/train",
        "pinned",
    )

    (tmp_path / "train.txt").write_text(content.replace("00004N", "00005N"))

    assert (read_split(tmp_path / "train.txt", "").name, read_split(tmp_path / "train.txt", "").status) == (
        "train",
        "own",
    )
