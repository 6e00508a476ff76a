"""KAIST's names, list files and annotation files."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_training.data.kaist_annotations import (
    DAY_SETS,
    IMPROVED_TEST_SHA256,
    LISTS,
    NIGHT_SETS,
    FrameName,
    ListFile,
    read_list,
    read_test_annotations,
)


def _annotations():
    """Two images, a person and a cyclist in the first."""
    return {
        "images": [
            {"id": 0, "im_name": "set06/V000/I00019", "width": 640, "height": 512},
            {"id": 1, "im_name": "set09/V000/I00019", "width": 640, "height": 512},
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 1, "bbox": [10, 20, 30, 60], "occlusion": 1, "ignore": 0},
            {"id": 1, "image_id": 0, "category_id": 2, "bbox": [50, 20, 30, 60], "occlusion": 0, "ignore": 0},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "cyclist"}],
    }


@pytest.fixture
def written(tmp_path):
    """Return a function that writes annotations and gives their path."""

    def write(data):
        path = tmp_path / "annotations.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


@given(st.builds(FrameName, st.integers(0, 11), st.integers(0, 999), st.integers(0, 99999)))
def test_a_frame_name_is_read_as_it_is_written(name):
    assert FrameName.parse(str(name)) == name


@given(a=st.builds(FrameName, st.integers(0, 11), st.integers(0, 999), st.integers(0, 99999)), b=st.data())
def test_frames_are_ordered_as_their_names(a, b):
    other = b.draw(st.builds(FrameName, st.integers(0, 11), st.integers(0, 999), st.integers(0, 99999)))

    assert (a < other) == (str(a) < str(other))


def test_the_set_says_whether_it_is_night():
    assert not FrameName.parse("set08/V002/I02499").night
    assert FrameName.parse("set09/V000/I00019").night
    assert sorted(DAY_SETS + NIGHT_SETS) == list(range(12))


@pytest.mark.parametrize(
    "text", ["set12/V000/I00019", "set6/V000/I00019", "set06/V000/I00019.png", "", "set06_V000_I00019"]
)
def test_other_names_are_refused(text):
    with pytest.raises(ValueError, match="is not a KAIST frame"):
        FrameName.parse(text)


# Lists


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


# Annotations


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


def test_boxes_go_to_their_images_and_other_categories_are_ignored(written):
    annotations = read_test_annotations(written(_annotations()))

    first, second = annotations.images
    assert first.name == FrameName(6, 0, 19)
    assert first.truth.boxes.dtype == np.float64
    np.testing.assert_array_equal(first.truth.boxes, [[10, 20, 30, 60], [50, 20, 30, 60]])
    assert first.truth.ignored.tolist() == [False, True]
    assert first.truth.occlusion.tolist() == [1, 0]
    assert (first.truth.night, second.truth.night) == (False, True)
    assert second.truth.boxes.shape == (0, 4)
    assert annotations.boxes == 2


def test_images_are_numbered_by_name_whatever_their_place_in_the_file(written):
    data = _annotations()
    data["images"].reverse()

    annotations = read_test_annotations(written(data))

    assert [image.name.set for image in annotations.images] == [6, 9]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_id": 7}, "annotation 0: 7 is missing or unknown"),
        ({"category_id": 9}, "annotation 0: 9 is missing or unknown"),
        ({"bbox": [10, 20, 30]}, r"bbox \[10, 20, 30\] is not"),
        ({"bbox": [10, 20, 30, 0]}, "is not left, top, width, height"),
        ({"bbox": None}, "annotation 0: "),
        ({"occlusion": 3}, "occlusion 3 is not 0"),
        ({"ignore": 2}, "ignore 2 is not 0 or 1"),
    ],
)
def test_an_annotation_that_does_not_fit_is_named(written, changes, said):
    data = _annotations()
    data["annotations"][0] |= changes

    with pytest.raises(ValueError, match=said):
        read_test_annotations(written(data))


def test_a_missing_field_is_named(written):
    data = _annotations()
    del data["annotations"][1]["occlusion"]

    with pytest.raises(ValueError, match="annotation 1: 'occlusion' is missing"):
        read_test_annotations(written(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("1,2,3,4,5,6\n", "is not a JSON file"),
        ("[]", "has no list images, annotations, categories: .* not detections"),
        ('{"images": []}', "has no list annotations, categories"),
    ],
)
def test_a_file_of_another_kind_is_refused(written, data, said):
    with pytest.raises(ValueError, match=said):
        read_test_annotations(written(data))


def test_ambiguous_image_numbers_are_refused(written):
    data = _annotations()
    data["images"][0]["id"], data["images"][1]["id"] = 1, 0
    with pytest.raises(ValueError, match="image ids do not rise with the names"):
        read_test_annotations(written(data))

    data = _annotations()
    data["images"][1]["im_name"] = data["images"][0]["im_name"]
    with pytest.raises(ValueError, match="an image id or name is there twice"):
        read_test_annotations(written(data))
