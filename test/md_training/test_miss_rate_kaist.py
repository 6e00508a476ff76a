"""The miss rate on KAIST's test set: published detections at their known values, result files, the command."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.annotations.kaist import read_test_annotations
from md_perception.metrics.miss_rate import KAIST_SETTINGS, REASONABLE, ScoredBoxes, kaist_miss_rates
from md_perception.results import Detections
from md_training.miss_rate import miss_rate_command, read_results, write_results

METHODS = ("GAFF", "MBNet", "MSDS-RCNN")


@pytest.fixture(scope="module")
def annotations(data_root):
    return read_test_annotations(data_root / "kaist" / "KAIST_annotation.json")


@pytest.fixture(scope="module")
def detections(data_root):
    return {name: read_results(data_root / "kaist" / "results" / f"{name}.txt", 2252) for name in METHODS}


def _reasonable(annotations, found, rules="matlab"):
    """Return the miss rates of all, day and night in percent."""
    results = kaist_miss_rates(annotations.truth, found, rules, settings=[REASONABLE])
    return [100 * result.miss_rate for result in results.values()]


# Values of the benchmark's MATLAB code on the released detections: all, day, night in percent, recall of all. The
# authors published the same: GAFF 6.48/8.35/3.46, MBNet 8.13/8.28/7.86, MSDS-RCNN 11.34/10.53/12.94.
@pytest.mark.parametrize(
    ("method", "all_day_night", "recall"),
    [
        ("GAFF", [6.4756, 8.3534, 3.4593], 98.28),
        ("MBNet", [8.1295, 8.2759, 7.8577], 98.42),
        ("MSDS-RCNN", [11.3361, 10.5325, 12.9386], 94.30),
    ],
)
def test_published_detections_score_what_matlab_says(annotations, detections, method, all_day_night, recall):
    results = kaist_miss_rates(annotations.truth, detections[method], settings=[REASONABLE])

    assert list(results) == [f"MR2[reasonable,{subset}]" for subset in ("all", "day", "night")]
    assert [round(100 * result.miss_rate, 4) for result in results.values()] == all_day_night
    assert round(100 * results["MR2[reasonable,all]"].recall, 2) == recall
    assert [result.images for result in results.values()] == [2252, 1455, 797]
    assert [result.objects for result in results.values()] == [1455, 989, 466]


# Near, medium, far, none, partial, heavy, all occlusions, in percent.
@pytest.mark.parametrize(
    ("method", "miss_rates"),
    [
        ("GAFF", [0.00, 13.23, 46.87, 23.84, 24.55, 47.97, 27.32]),
        ("MBNet", [0.00, 16.07, 55.99, 27.74, 35.43, 59.14, 31.87]),
    ],
)
def test_subsets_by_size_and_occlusion(annotations, detections, method, miss_rates):
    results = list(kaist_miss_rates(annotations.truth, detections[method], settings=KAIST_SETTINGS[1:]).values())

    assert [round(100 * result.miss_rate, 2) for result in results] == miss_rates
    assert [result.objects for result in results] == [201, 1683, 807, 2612, 438, 226, 3276]
    assert all(result.objects + result.ignored_objects == 4254 for result in results)
    assert all(
        result.true_positives + result.false_positives + result.left_out
        == sum(len(found.scores) for found in detections[method])
        for result in results
    )


# How much the boxes' base matters: detections moved by -1 px and by +1 px in x and y.
@pytest.mark.parametrize(
    ("method", "left_up", "right_down"),
    [("GAFF", 7.34, 6.52), ("MBNet", 8.20, 8.13), ("MSDS-RCNN", 11.40, 11.33)],
)
def test_one_pixel_off_gives_another_miss_rate(annotations, detections, method, left_up, right_down):
    for shift, expected in ((-1, left_up), (1, right_down)):
        moved = [ScoredBoxes(found.boxes + [shift, shift, 0, 0], found.scores) for found in detections[method]]

        assert round(_reasonable(annotations, moved)[0], 2) == expected


# Values of the common script itself on these files.
@pytest.mark.parametrize(
    ("method", "all_day_night"),
    [
        ("GAFF", [6.383148, 8.248693, 3.459287]),
        ("MBNet", [8.129525, 8.281887, 7.857712]),
        ("MSDS-RCNN", [11.336064, 10.539979, 12.938641]),
    ],
)
def test_python2021_gives_the_numbers_of_the_common_script(annotations, detections, method, all_day_night):
    assert _reasonable(annotations, detections[method], "python2021") == pytest.approx(all_day_night, abs=1e-6)


def test_python2021_rewards_a_high_score_threshold(annotations, detections):
    found = [ScoredBoxes(d.boxes[d.scores >= 0.3], d.scores[d.scores >= 0.3]) for d in detections["MSDS-RCNN"]]

    assert round(_reasonable(annotations, found)[0], 2) == 16.85
    assert round(_reasonable(annotations, found, "python2021")[0], 2) == 14.91


# Result files


@pytest.fixture
def results_file(tmp_path):
    """Return a function that writes a result file and gives its path."""

    def write(text):
        path = tmp_path / "results.txt"
        path.write_text(text)
        return path

    return write


def test_lines_go_to_their_images_in_the_order_of_the_file(results_file):
    path = results_file(
        "2,10,20,30,60,0.5\n1,1.5,2.5,3.5,4.5,0.25\n\n2 11 21 31 61 1e-3\r\n2.0, 12, 22, 32, 62, 0.125\n"
    )

    first, second, third = read_results(path, 3)

    np.testing.assert_array_equal(first.boxes, [[1.5, 2.5, 3.5, 4.5]])
    np.testing.assert_array_equal(second.boxes, [[10, 20, 30, 60], [11, 21, 31, 61], [12, 22, 32, 62]])
    np.testing.assert_array_equal(second.scores, [0.5, 0.001, 0.125])
    assert third.boxes.shape == (0, 4)


def test_an_empty_file_has_no_detections(results_file):
    assert [len(found.scores) for found in read_results(results_file(""), 2)] == [0, 0]


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "e.onnx").write_bytes(b"\x08\x0a\xff\xfe")
    with pytest.raises(ValueError, match=r"e.onnx is no text: expected a line image,left,top") as refused:
        read_results(tmp_path / "e.onnx", 2)
    assert type(refused.value) is ValueError


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,2,3,4,5", "line 2: '1,2,3,4,5' is not the six numbers"),
        ("1,2,3,4,5,6,7", "line 2: .* is not the six numbers"),
        ("1,2,,4,5,6", "line 2: .* is not the six numbers"),
        ("image,x,y,w,h,score", "line 2: .* is not the six numbers"),
        ("1,2,3,4,5,nan", "line 2: .* NaN or infinite"),
        ("1,2,inf,4,5,0.5", "line 2: .* NaN or infinite"),
        ("0,2,3,4,5,0.5", r"line 2: image 0 is not one of 1 to 3, .*\(numbers start at 1\)"),
        ("4,2,3,4,5,0.5", "line 2: image 4 is not one of 1 to 3"),
        ("-1,2,3,4,5,0.5", "line 2: image -1 is not"),
        ("1.5,2,3,4,5,0.5", "line 2: image 1.5 is not"),
    ],
)
def test_a_malformed_line_is_named(results_file, line, said):
    with pytest.raises(ValueError, match=rf"results.txt, {said}"):
        read_results(results_file(f"1,2,3,4,5,0.5\n{line}\n"), 3)


@given(
    st.lists(
        st.lists(
            st.tuples(
                *[st.floats(0, 640, width=32)] * 2,
                *[st.floats(0.125, 300, width=32)] * 2,
                st.floats(0, 1, width=32),
                st.integers(0, 1),
            ),
            max_size=4,
        ),
        max_size=4,
    )
)
def test_written_detections_are_read_back_one_based(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("results") / "results.txt"
    detections = []
    for rows in images:
        values = np.array(rows, np.float32).reshape(-1, 6)
        corners = np.concatenate([values[:, :2], values[:, :2] + values[:, 2:4]], axis=1)
        detections.append(Detections(corners, values[:, 4], values[:, 5].astype(np.int64)))

    write_results(path, detections, label=0)
    found = read_results(path, len(images))

    for written, read in zip(detections, found, strict=True):
        mine = written.labels == 0
        boxes = written.boxes[mine].astype(np.float64)
        np.testing.assert_allclose(read.boxes[:, :2], boxes[:, :2] + 1, atol=6e-5)
        np.testing.assert_allclose(read.boxes[:, 2:], boxes[:, 2:] - boxes[:, :2], atol=6e-5)
        np.testing.assert_allclose(read.scores, written.scores[mine], atol=6e-9)


# The command


def test_command_prints_names_rates_and_counts(data_root, capsys):
    kaist = data_root / "kaist"

    miss_rate_command(kaist / "KAIST_annotation.json", kaist / "results" / "GAFF.txt")

    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    # MR2, recall, images, objects, ignored, hits, false, left out
    assert lines["MR2[reasonable,all]"][:5] == ["6.4756", "98.28", "2252", "1455", "2799"]
    assert lines["MR2[reasonable,day]"][:4] == ["8.3534", "98.08", "1455", "989"]
    assert lines["MR2[reasonable,night]"][:4] == ["3.4593", "98.71", "797", "466"]
    assert lines["GAFF.txt:"][0] == "10478"
    assert lines["rules:"] == ["matlab"]


def test_command_prints_json_with_intervals(data_root, capsys):
    kaist = data_root / "kaist"

    miss_rate_command(kaist / "KAIST_annotation.json", kaist / "results" / "GAFF.txt", json=True, bootstrap=20)

    figures = json.loads(capsys.readouterr().out)
    assert round(figures["MR2[reasonable,all]"], 4) == 6.4756
    assert round(figures["recall[reasonable,all]"], 2) == 98.28
    assert figures["unit"] == "percent"
    assert figures["annotations"]["released"] is True
    details = figures["details"]["MR2[reasonable,all]"]
    assert details["persons"] == 1455
    low, high = details["interval_95"]
    assert 4.5 < low < 6.4756 < high < 9
    assert np.exp(np.log(details["miss_rate_at_references"]).mean()) == pytest.approx(6.4756, abs=1e-4)


def test_command_warns_of_other_annotations_and_rules(results_file, tmp_path, capsys, caplog):
    annotations = tmp_path / "own.json"
    annotations.write_text(
        json.dumps(
            {
                "images": [{"id": 0, "im_name": "set06/V000/I00019", "width": 640, "height": 512}],
                "annotations": [
                    {"id": 0, "image_id": 0, "category_id": 1, "bbox": [10, 20, 30, 60], "occlusion": 0, "ignore": 0}
                ],
                "categories": [{"id": 1, "name": "person"}],
            }
        )
    )

    with caplog.at_level(logging.WARNING):
        miss_rate_command(annotations, results_file("1,10,20,30,60,0.5\n"), rules="python2021")

    assert "is not the released file" in caplog.text
    assert "do not publish" in caplog.text
    assert "MR2[reasonable,day]" in capsys.readouterr().out
