"""KAIST's list files."""

import hashlib

import numpy as np
import pytest

from md_perception.annotations.kaist import IMPROVED_TEST_SHA256, read_test_annotations
from md_training.data.kaist_lists import LISTS, ListFile, read_list


@pytest.mark.parametrize(("name", "day", "night"), [("test-all-20", 1455, 797), ("train-all-02", 16694, 8392)])
def test_published_lists_are_recognised(data_root, name, day, night):
    path = data_root / "kaist" / f"{name}.txt"

    frames = read_list(path, LISTS[name])

    assert sum(not frame.night for frame in frames.frames) == day
    assert sum(frame.night for frame in frames.frames) == night
    assert frames.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def listed(tmp_path):
    """A list file of three frames, and what is known of it."""
    path = tmp_path / "three.txt"
    path.write_bytes(b"set00/V000/I00001\r\nset00/V000/I00003\r\nset03/V001/I00005\r\n")
    return path, ListFile("three", "three frames", 3, hashlib.sha256(path.read_bytes()).hexdigest())


def test_line_ends_of_a_list_do_not_matter(listed):
    path, known = listed
    path.write_text(path.read_text().replace("\r\n", "\n").strip())

    frames = read_list(path, known)

    assert frames.sha256 == known.sha256
    assert [str(frame) for frame in frames.frames] == ["set00/V000/I00001", "set00/V000/I00003", "set03/V001/I00005"]


def test_a_list_of_another_count_order_or_content_is_refused(listed):
    path, known = listed
    first, second, third = path.read_text().split()

    path.write_text(f"{first}\n{second}\n")
    with pytest.raises(ValueError, match="has 2 frames, but three has 3"):
        read_list(path, known)
    path.write_text(f"{second}\n{first}\n{third}\n")
    with pytest.raises(ValueError, match="not the same ones in the same order"):
        read_list(path, known)
    path.write_text(f"{first}\n{second}\n{first}\n")
    with pytest.raises(ValueError, match="line 3: set00/V000/I00001 is already in line 1"):
        read_list(path, known)
    path.write_text(f"{first}\nV000/I00019\n{third}\n")
    with pytest.raises(ValueError, match=r"three.txt, line 2: 'V000/I00019' is not a KAIST frame"):
        read_list(path, known)


def test_without_a_known_hash_only_the_count_is_checked_and_the_hash_returned(listed):
    path, known = listed

    frames = read_list(path, ListFile("three", "three frames", 3, None))

    assert frames.sha256 == known.sha256


def test_released_test_annotations(data_root):
    annotations = read_test_annotations(data_root / "kaist" / "KAIST_annotation.json")

    assert annotations.sha256 == IMPROVED_TEST_SHA256
    frames = read_list(data_root / "kaist" / "test-all-20.txt", LISTS["test-all-20"]).frames
    assert tuple(image.name for image in annotations.images) == frames
    assert annotations.boxes == 4254
    assert {image.size for image in annotations.images} == {(640, 512)}
    # 597 people, 177 person?, 90 cyclists; occlusion as counted in the file
    assert sum(int(truth.ignored.sum()) for truth in annotations.truth) == 864
    occlusion = np.concatenate([truth.occlusion for truth in annotations.truth])
    assert np.bincount(occlusion).tolist() == [3452, 534, 268]
    np.testing.assert_array_equal(annotations.images[0].truth.boxes, [[505, 212, 20, 50]])
