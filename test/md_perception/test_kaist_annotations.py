"""KAIST's frame names and annotation files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.annotations.kaist import (
    DAY_SETS,
    IMPROVED_TEST_SHA256,
    NIGHT_SETS,
    FrameName,
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


def test_released_test_annotations(data_root):
    annotations = read_test_annotations(data_root / "kaist" / "KAIST_annotation.json")

    assert annotations.sha256 == IMPROVED_TEST_SHA256
    listed = (data_root / "kaist" / "test-all-20.txt").read_text().split()
    assert [str(image.name) for image in annotations.images] == listed
    assert sum(image.name.night for image in annotations.images) == 797
    assert annotations.boxes == 4254
    assert {image.size for image in annotations.images} == {(640, 512)}
    # 597 people, 177 person?, 90 cyclists; occlusion as counted in the file
    assert sum(int(truth.ignored.sum()) for truth in annotations.truth) == 864
    occlusion = np.concatenate([truth.occlusion for truth in annotations.truth])
    assert np.bincount(occlusion).tolist() == [3452, 534, 268]
    np.testing.assert_array_equal(annotations.images[0].truth.boxes, [[505, 212, 20, 50]])
