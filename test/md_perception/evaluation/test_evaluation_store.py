"""Records on disk: read again exactly as they were, whatever interrupted their writing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from md_perception.evaluation.chunks import Evaluated
from md_perception.evaluation.job import EvaluationError
from md_perception.evaluation.records import Answer, DriveRecord, FrameRecord, FrameTruth, ModeChange
from md_perception.evaluation.store import BagStore, Store, drive_fields, drive_of, record_fields, record_of
from md_perception.results import Detections, Mode

DRIVE = DriveRecord("drive", 1.5, "", 3, 2, 0, 3, 2, 0, 0, {"FUSED": 1.5}, (ModeChange(7, Mode.FUSED, ("rgb: slow",)),))
COUNTS = st.integers(0, 4)
FLOATS = st.floats(width=32, allow_nan=True)


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    n = draw(COUNTS)
    return Detections(
        draw(nps.arrays(np.float32, (n, 4), elements=FLOATS)),
        draw(nps.arrays(np.float32, n, elements=FLOATS)),
        draw(nps.arrays(np.int64, n)),
    )


@st.composite
def truths(draw: st.DrawFn) -> FrameTruth:
    n = draw(COUNTS)
    return FrameTruth(
        draw(nps.arrays(np.float32, (n, 4), elements=FLOATS)),
        draw(nps.arrays(np.int64, n)),
        draw(nps.arrays(np.bool_, n)),
        draw(st.none() | nps.arrays(np.int64, n)),
    )


answers = st.builds(
    Answer,
    detections=st.none() | detections(),
    confusions=st.dictionaries(st.sampled_from(["truth", "teacher"]), nps.arrays(np.int64, (9, 9))),
) | st.builds(Answer, rejected=st.text(min_size=1))
records = st.builds(
    FrameRecord,
    bag=st.text(),
    index=COUNTS,
    stamp_ns=st.integers(0, 2**62),
    frame_id=st.text(),
    size=st.tuples(COUNTS, COUNTS),
    mode=st.sampled_from(Mode),
    pair_offset_ns=st.none() | st.integers(-(2**40), 2**40),
    luminance=st.floats(0, 255) | st.just(math.nan),
    light=st.sampled_from(["day", "night"]),
    unpaired=st.text(),
    truth=st.none() | truths(),
    answers=st.dictionaries(st.text(), answers, max_size=2),
)


def record(number: int) -> FrameRecord:
    found = Detections(np.full((1, 4), number, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    return FrameRecord(
        "drive", number, number, "rgb", (4, 3), Mode.FUSED, 0, 80.0, "day", "", None, {"s": Answer(found)}
    )


def evaluated(number: int) -> Evaluated:
    return Evaluated(record(number), {"total s": float(number)}, bytes([number]) * number)


@given(records)
def test_records_are_read_again_to_the_bit(one: FrameRecord) -> None:
    text = json.dumps(record_fields(one), allow_nan=False)
    again = record_of(json.loads(text))
    assert json.dumps(record_fields(again)) == text
    for name, answer in one.answers.items():
        if answer.detections is not None:
            other = again.answers[name].detections
            assert other.boxes.dtype == np.float32
            assert other.boxes.tobytes() == answer.detections.boxes.tobytes()
    assert again.mode is one.mode


def test_what_is_known_of_a_drive_is_read_again() -> None:
    assert drive_of(json.loads(json.dumps(drive_fields(DRIVE)))) == DRIVE


@pytest.mark.parametrize("suffix", ["jsonl", "times.jsonl", "results"])
@pytest.mark.parametrize("lost", [1, 3, 200])
def test_what_was_cut_short_is_cut_off_everywhere_and_written_anew(suffix: str, lost: int, tmp_path: Path) -> None:
    store = BagStore(tmp_path / "whole", with_results=True)
    for number in range(4):
        store.append(evaluated(number))
    store.finish(DRIVE, b"rest")
    store.close()

    cut = BagStore(tmp_path / "cut", with_results=True)
    for number in range(3):
        cut.append(evaluated(number))
    cut.close()
    file = tmp_path / f"cut.{suffix}"
    file.write_bytes(file.read_bytes()[: max(file.stat().st_size - lost, 0)])
    again = BagStore(tmp_path / "cut", with_results=True)
    assert again.drive is None
    assert len(again.records) == len(again.times_ms) < 3
    for number in range(len(again.records), 4):
        again.append(evaluated(number))
    again.finish(DRIVE, b"rest")
    again.close()
    for one in ("jsonl", "times.jsonl", "results"):
        assert (tmp_path / f"cut.{one}").read_bytes() == (tmp_path / f"whole.{one}").read_bytes()
    finished = BagStore(tmp_path / "cut", with_results=True)
    assert finished.drive == DRIVE
    assert list(finished.spooled()) == [b"", b"\1", b"\2\2", b"\3\3\3", b"rest"]
    assert [one["total s"] for one in finished.times_ms] == [0, 1, 2, 3]
    finished.close()


def test_a_damaged_line_is_told_with_its_number(tmp_path: Path) -> None:
    store = BagStore(tmp_path / "drive", with_results=False)
    store.append(evaluated(1))
    store.append(evaluated(2))
    store.close()
    path = tmp_path / "drive.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"f4"', b'"f3"', 1))
    with pytest.raises(EvaluationError, match="line 1 is damaged"):
        BagStore(tmp_path / "drive", with_results=False)


def test_a_folder_belongs_to_one_configuration_and_one_process(tmp_path: Path) -> None:
    with Store(tmp_path / "out", {"a": 1, "b": 2}), pytest.raises(EvaluationError, match="is in use by another"):
        Store(tmp_path / "out", {"a": 1, "b": 2})
    with pytest.raises(EvaluationError, match=r"other settings \(b\)"):
        Store(tmp_path / "out", {"a": 1, "b": 3})
    with Store(tmp_path / "out", {"a": 1, "b": 2}) as store:
        store.write("report.json", "{}")
        for name in ("fast", "slow", "fast"):
            store.note_machine(name)
    with Store(tmp_path / "out", {"a": 1, "b": 2}) as store:
        store.note_machine("slow")
        assert store.machines() == ["fast", "slow"]
    assert (tmp_path / "out/report.json").read_text() == "{}"
