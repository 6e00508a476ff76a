"""Released detections on KAIST through the evaluation of bags: the figures of the `miss-rate` command."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from md_perception.evaluation.records import Answer, FrameRecord
from md_perception.evaluation.schema import ScoreSettings
from md_perception.evaluation.scores import report_of, truth_report
from md_perception.evaluation.truth import TruthSpec, open_truth
from md_perception.metrics.miss_rate import ScoredBoxes
from md_perception.results import Detections, Mode
from md_training.miss_rate import miss_rate_command, read_results

SIZE = (640, 512)


def answer_of(found: ScoredBoxes) -> Answer:
    """What a student would have said: 0-based corners in float32, highest scores first, all of them persons."""
    order = np.argsort(-found.scores, kind="stable")
    boxes = found.boxes[order]
    boxes[:, :2] -= 1
    boxes[:, 2:] += boxes[:, :2]
    labels = np.zeros(len(order), np.int64)
    return Answer(Detections(boxes.astype(np.float32), found.scores[order].astype(np.float32), labels))


@pytest.mark.parametrize("method", ["MBNet"])
def test_detections_score_what_the_miss_rate_command_says(data_root: Path, capsys, method: str) -> None:
    annotations, results = data_root / "kaist/KAIST_annotation.json", data_root / f"kaist/results/{method}.txt"
    miss_rate_command(annotations, results, json=True)
    expected = json.loads(capsys.readouterr().out)
    # A bag whose RGB images are those of test-all-20, in order; nothing else of it is looked at.
    bag = SimpleNamespace(path=Path("drive"), topics={})
    truth = open_truth(bag, TruthSpec(path=annotations, match="order"))
    records = [
        FrameRecord(
            bag="drive",
            index=index,
            stamp_ns=index * 1_000_000_000,
            frame_id="",
            size=SIZE,
            mode=Mode.FUSED,
            pair_offset_ns=0,
            luminance=0.0,
            light=truth.light_of(0, index),
            unpaired="",
            truth=truth.truth_of(0, index, SIZE),
            answers={method: answer_of(found)},
        )
        for index, found in enumerate(read_results(results, 2252))
    ]
    match = truth.match((record.stamp_ns, record.index) for record in records)

    report = report_of(records, truth=truth_report([(truth, match)]), settings=ScoreSettings(replicates=5))

    assert (match.with_truth, match.unmatched) == (2252, ())
    assert report.truth.counting == "kaist"
    student = report.students[method]
    names = list(expected["details"])
    assert names[:3] == [f"MR2[reasonable,{subset}]" for subset in ("all", "day", "night")]
    assert list(student.kaist) == names
    for name in names:
        said, found = expected["details"][name], student.kaist[name]
        assert found.miss_rate == pytest.approx(said["miss_rate"] / 100, abs=1e-6), name
        assert found.recall == pytest.approx(said["recall"] / 100, abs=1e-6), name
        counts = (found.images, found.objects, found.ignored_objects)
        assert counts == (said["images"], said["persons"], said["ignored_boxes"]), name
        outcomes = (found.true_positives, found.false_positives, found.left_out)
        assert outcomes == (said["true_positives"], said["false_positives"], said["left_out"]), name
    # The headline is the benchmark's.
    figures = report.figures(method)
    for ending, subset in (("", "all"), ("_day", "day"), ("_night", "night")):
        assert figures[f"miss_rate{ending}"] == student.kaist[f"MR2[reasonable,{subset}]"].miss_rate
    interval = student.slice().detection.miss_rate
    assert interval.low <= interval.value <= interval.high
