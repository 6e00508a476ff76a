"""Engines are code: which folders they are loaded from, under which name, and what an unfinished one leaves behind."""

import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from demo_student import DEMO_STUDENT

from md_perception.inference import engine_cache
from md_perception.inference.engine_cache import EngineCacheError, EngineKey, announced, building, find

KEY = EngineKey(
    student="scenes",
    file_sha256="ab" * 32,
    precision="fp16",
    shapes={"rgb": (1, 512, 640, 3), "thermal": (1, 128, 160)},
    options={"trt_fp16_enable": "1"},
    onnxruntime="1.31.1",
    tensorrt="10.9.0",
    gpu="NVIDIA Imaginary 9000",
    compute_capability="9.1",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "home" / "engines"


def build(root: Path, content: bytes = b"engine") -> Path:
    with building(root, KEY) as folder:
        (folder / "student_sm90.engine").write_bytes(content)
        (folder / "student_sm90.engine").chmod(0o664)  # as under umask 002
    return root / KEY.folder


def test_an_engine_is_built_once_and_belongs_to_this_user_alone(root: Path) -> None:
    assert find(root, KEY) is None
    folder = build(root)
    assert sorted(os.listdir(folder)) == ["key.json", "student_sm90.engine"]
    assert os.listdir(root) == [folder.name]
    assert [oct(path.stat().st_mode & 0o777) for path in (root, folder, *sorted(folder.iterdir()))] == [
        *["0o700"] * 2,
        *["0o600"] * 2,
    ]
    assert find(root, KEY) == folder


@pytest.mark.parametrize(
    "change",
    [
        {"file_sha256": "cd" * 32},
        {"precision": "fp32"},
        {"shapes": {"rgb": (1, 720, 1280, 3)}},
        {"options": {"trt_fp16_enable": "0"}},
        {"onnxruntime": "1.32.0"},
        {"tensorrt": "10.9.1"},
        {"gpu": "NVIDIA Imaginary 9001"},
        {"compute_capability": "9.0"},
    ],
)
def test_whatever_an_engine_depends_on_gives_it_another_folder(change: dict, root: Path) -> None:
    build(root)
    other = replace(KEY, **change)
    assert other.folder != KEY.folder
    assert find(root, other) is None


def test_the_name_of_a_folder_does_not_depend_on_the_order_of_its_parts() -> None:
    assert replace(KEY, shapes=dict(reversed(KEY.shapes.items()))).folder == KEY.folder
    assert re.fullmatch("scenes-fp16-[0-9a-f]{24}", KEY.folder)


def test_a_build_that_fails_leaves_nothing(root: Path) -> None:
    def interrupted() -> None:
        with building(root, KEY) as folder:
            (folder / "half.engine").write_bytes(b"h")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(root) == []


def test_a_build_without_an_engine_is_not_kept(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with building(root, KEY) as folder:
        (folder / "TensorrtExecutionProvider_cache_sm90.timing").write_bytes(b"t")
    assert os.listdir(root) == []
    assert "TensorRT built no engine for student scenes" in caplog.text


def test_a_new_engine_takes_the_place_of_the_old_one_only_when_it_is_whole(root: Path) -> None:
    folder = build(root, b"old")
    with building(root, KEY) as new:
        (new / "student_sm90.engine").write_bytes(b"new")
        assert (folder / "student_sm90.engine").read_bytes() == b"old"
    assert (folder / "student_sm90.engine").read_bytes() == b"new"
    assert os.listdir(root) == [folder.name]


def test_of_two_processes_that_build_at_once_the_first_stays(root: Path) -> None:
    with building(root, KEY) as slow:
        (slow / "slow.engine").write_bytes(b"s")
        folder = build(root, b"quick")
    assert (folder / "student_sm90.engine").read_bytes() == b"quick"
    assert os.listdir(root) == [folder.name]


def test_of_two_processes_that_replace_an_engine_at_once_the_first_stays(root: Path) -> None:
    build(root, b"does not load")
    with building(root, KEY) as slow:
        (slow / "slow.engine").write_bytes(b"s")
        folder = build(root, b"quick")
    assert (folder / "student_sm90.engine").read_bytes() == b"quick"
    assert os.listdir(root) == [folder.name]


def test_an_engine_that_another_process_takes_away_meanwhile_is_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(root)
    inode = engine_cache._inode

    def slow(folder: Path) -> int | None:
        """See the old engine just before another process takes it away."""
        found = inode(folder)
        if any(root.glob(".*/new.engine")):
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr(engine_cache, "_inode", slow)
    with building(root, KEY) as new:
        (new / "new.engine").write_bytes(b"n")
    assert [file.name for file in root.glob("*/*.engine")] == ["new.engine"]
    monkeypatch.setattr(engine_cache, "_check_file", lambda file: shutil.rmtree(file.parent))
    assert find(root, KEY) is None


@pytest.mark.parametrize(("mode", "trusted"), [(0o700, True), (0o755, True), (0o770, False), (0o707, False)])
def test_a_folder_that_others_can_write_to_is_not_trusted(mode: int, trusted: bool, root: Path) -> None:
    folder = build(root)
    for path in (root, folder):
        before = path.stat().st_mode
        path.chmod(mode)
        if trusted:
            assert find(root, KEY) == folder
        else:
            with pytest.raises(EngineCacheError, match=f"cannot be trusted: others .*`chmod go-w {path}`; else remove"):
                find(root, KEY)
        path.chmod(before)


def test_an_engine_that_others_can_write_to_is_not_loaded(root: Path) -> None:
    engine = build(root) / "student_sm90.engine"
    engine.chmod(0o620)
    with pytest.raises(EngineCacheError, match=r"student_sm90\.engine cannot be trusted"):
        find(root, KEY)


def test_what_belongs_to_somebody_else_is_not_trusted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(EngineCacheError, match="belongs to another user; choose a folder of your own"):
        find(root, KEY)


def test_a_way_that_others_can_change_is_not_trusted_unless_it_is_sticky(root: Path) -> None:
    build(root)
    root.parent.chmod(0o777)
    with pytest.raises(EngineCacheError, match=r"others than this user can write to .*home; set student\.engine_cache"):
        find(root, KEY)
    root.parent.chmod(0o1777)  # as /tmp is
    assert find(root, KEY) is not None


def test_all_folders_that_are_made_are_for_this_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)  # that of most desktops: new folders can be written to by the group
    try:
        root = tmp_path / ".cache" / "md_perception" / "tensorrt"
        assert find(root, KEY) is None
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (root, root.parent, root.parent.parent)] == [0o700] * 3


def test_a_link_on_the_way_is_followed_once(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root.parent)
    folder = build(root)
    assert find(link / root.name, KEY) == folder  # the checked place, wherever the link leads later
    with building(link / root.name, KEY) as new:
        assert new.parent == root


def test_a_cache_that_was_built_beforehand_is_not_written_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(root)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", read_only)
    engine_cache.seal(folder)
    assert find(root, KEY) == folder


@pytest.mark.parametrize("what", ["root", "folder", "file"])
def test_links_are_not_followed(what: str, root: Path, tmp_path: Path) -> None:
    folder = build(root)
    path = {"root": root, "folder": folder, "file": folder / "student_sm90.engine"}[what]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(EngineCacheError, match=r"is no folder|is no plain file"):
        find(root, KEY)


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineCacheError, match="for engines cannot be made: Not a directory"):
        find(tmp_path / "file" / "engines", KEY)


def test_the_default_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert engine_cache.default_folder() == Path("/home/somebody/.cache/md_perception/tensorrt")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/somebody")
    assert engine_cache.default_folder() == Path("/var/cache/somebody/md_perception/tensorrt")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says: ignore it
    assert engine_cache.default_folder() == Path("/home/somebody/.cache/md_perception/tensorrt")


def test_a_build_is_announced_is_heard_of_and_ends_with_its_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_cache, "HEARTBEAT_S", 0.02)
    caplog.set_level("INFO")
    with announced("student x.onnx", Path("/cache/x")):
        deadline = time.monotonic() + 5
        while "still building" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == (
        "building the TensorRT engine for student x.onnx: this takes minutes; it will be kept in /cache/x"
    )
    assert lines[1].startswith("still building the TensorRT engine for student x.onnx, 0 s so far")
    assert lines[-1].startswith("the TensorRT engine for student x.onnx is built, after ")
    with pytest.raises(ValueError, match="out of memory"), announced("student y.onnx", Path("/cache/y")):
        raise ValueError("out of memory")
    assert caplog.records[-1].getMessage().startswith("the TensorRT engine for student y.onnx was not built, after ")


def test_onnx_runtime_leaves_time_for_the_heartbeat(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A session that is made while the interpreter is locked would be silent for all the minutes of a build.
    monkeypatch.setattr(engine_cache, "HEARTBEAT_S", 0.01)
    caplog.set_level("INFO")
    with announced("the demo student", Path("/cache/demo")):
        onnxruntime.InferenceSession(DEMO_STUDENT, providers=["CPUExecutionProvider"])
    assert "still building the TensorRT engine for the demo student" in caplog.text
