"""What was evaluated so far, on disk, so that an interrupted evaluation goes on where it was.

OUT/evaluation.json              what decides the result: another configuration is refused in the same folder
OUT/records/BAG.jsonl            a record a line, in order; arrays as base64 of little-endian bytes; the last line is
                                 the DriveRecord
OUT/records/BAG.times.jsonl      how long its stages took, which is not the same twice
OUT/records/BAG.results          the spool of the result bag, until that is written
OUT/records/machines.txt         where the times were measured

A frame is written to all three, the record last; what is incomplete at the end is cut off when the folder is opened.
"""

import base64
import fcntl
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from md_perception.evaluation.chunks import Evaluated
from md_perception.evaluation.job import EvaluationError
from md_perception.evaluation.records import Answer, DriveRecord, FrameRecord, FrameTruth, ModeChange, Reference
from md_perception.files import write_whole
from md_perception.results import Detections, Mode

FORMAT_VERSION = 1
_LENGTH = struct.Struct("<I")
_DTYPES: dict[str, np.dtype[Any]] = {"f4": np.dtype("<f4"), "i8": np.dtype("<i8"), "b1": np.dtype("?")}


class Store:
    """The folder of one evaluation, locked while it is open. Use as a context manager.

    configuration: plain JSON. Raises EvaluationError where the folder belongs to another configuration, or to something
    else, or is in use.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder = folder
        self._records = folder / "records"
        self._open: list[BagStore] = []
        try:
            if folder.exists() and not (folder / "evaluation.json").exists() and any(folder.iterdir()):
                raise EvaluationError(f"{folder} is there and holds no evaluation: choose another folder (--out)")
            self._records.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "evaluation.json").open("a+", encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"cannot write to {folder}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise EvaluationError(f"{folder} is in use by another evaluation: wait for it, or choose --out") from None
        try:
            self._check({"format_version": FORMAT_VERSION, **configuration})
        except BaseException:
            self._lock.close()
            raise
        self._machines_file = self._records / "machines.txt"
        known = self._machines_file.read_text("utf-8") if self._machines_file.exists() else ""
        self._machines = known.splitlines()

    def bag(self, name: str, with_results: bool) -> "BagStore":
        """Open what is there of a bag."""
        found = BagStore(self._records / name, with_results)
        self._open.append(found)
        return found

    def machines(self) -> list[str]:
        """Return the machines that the times are from."""
        return list(self._machines)

    def note_machine(self, name: str) -> None:
        """Note that times come from a machine."""
        if name not in self._machines:
            self._machines.append(name)
            self._machines_file.write_text("\n".join(self._machines) + "\n", "utf-8")

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, the whole or nothing. Raises EvaluationError."""
        try:
            write_whole(self.folder / name, text.encode())
        except OSError as error:
            raise EvaluationError(f"cannot write {self.folder / name}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close all files and unlock the folder."""
        for bag in self._open:
            bag.close()
        self._lock.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, configuration: dict[str, Any]) -> None:
        text = json.dumps(configuration, indent=1, sort_keys=True) + "\n"
        self._lock.seek(0)
        before = self._lock.read()
        if not before:
            self._lock.write(text)
            self._lock.flush()
            return
        if before == text:
            return
        try:
            known = json.loads(before)
            changed = sorted(key for key in known.keys() | configuration if known.get(key) != configuration.get(key))
        except (ValueError, AttributeError):
            changed = ["all of it: evaluation.json is damaged"]
        raise EvaluationError(
            f"{self.folder} holds an evaluation with other settings ({', '.join(changed)}): choose another folder "
            "(--out), or remove this one"
        )


class BagStore:
    """What is there of a bag, and what comes. records: so far, in order. drive: once all of the bag is there."""

    def __init__(self, stem: Path, with_results: bool) -> None:
        """stem: path without a suffix. with_results: whether messages for the result bag are spooled."""
        self._paths = {
            suffix: stem.with_name(f"{stem.name}.{suffix}") for suffix in ("jsonl", "times.jsonl", "results")
        }
        self.records: list[FrameRecord] = []
        self.drive: DriveRecord | None = None
        self._times: list[dict[str, float]] = []
        self._files: dict[str, IO[bytes]] = {}
        self._with_results = with_results
        self._read()
        for suffix in ("jsonl", "times.jsonl", *(["results"] if with_results and self.drive is None else [])):
            self._files[suffix] = self._paths[suffix].open("ab")

    @property
    def times_ms(self) -> list[dict[str, float]]:
        """Durations of the stages of each frame, by name."""
        return self._times

    def append(self, evaluated: Evaluated) -> None:
        """Add the next frame."""
        if self._with_results:
            self._spool(evaluated.results)
        times = {name: round(value, 4) for name, value in evaluated.times_ms.items()}
        self._write("times.jsonl", _line(times))
        self._write("jsonl", _line(record_fields(evaluated.record)))
        self.records.append(evaluated.record)
        self._times.append(times)

    def finish(self, drive: DriveRecord, rest: bytes) -> None:
        """Note that all of the bag is there."""
        if self._with_results:
            self._spool(rest)
        self._write("jsonl", _line({"drive": drive_fields(drive)}))
        self.drive = drive

    def spooled(self) -> Iterator[bytes]:
        """Yield the messages for the result bag, frame by frame, and then those after the last."""
        with self._paths["results"].open("rb") as file:
            while head := file.read(_LENGTH.size):
                yield file.read(_LENGTH.unpack(head)[0])

    @property
    def has_spool(self) -> bool:
        """Whether there is something to make the result bag of."""
        return self._paths["results"].exists()

    def remove_spool(self) -> None:
        """Remove the spool, when the result bag is written."""
        if "results" in self._files:
            self._files.pop("results").close()
        self._paths["results"].unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write(self, suffix: str, data: bytes) -> None:
        try:
            self._files[suffix].write(data)
            self._files[suffix].flush()
        except OSError as error:
            raise EvaluationError(f"cannot write {self._paths[suffix]}: {error.strerror or error}") from None

    def _spool(self, data: bytes) -> None:
        self._write("results", _LENGTH.pack(len(data)) + data)

    def _read(self) -> None:
        """Read what is there, and cut off what is not whole."""
        lines = _whole_lines(self._paths["jsonl"])
        if lines and lines[-1].startswith(b'{"drive":'):
            drive = self._parsed(lines, len(lines) - 1, lambda found: drive_of(found["drive"]))
            lines, self.drive = lines[:-1], drive
        times = _whole_lines(self._paths["times.jsonl"])
        count = min(len(lines), len(times))
        if self.drive is None:
            if self._with_results:
                count = min(count, _spool_frames(self._paths["results"], count)[0])
                if self._paths["results"].exists():
                    os.truncate(self._paths["results"], _spool_frames(self._paths["results"], count)[1])
            for suffix, kept in (("jsonl", lines), ("times.jsonl", times)):
                if self._paths[suffix].exists():
                    os.truncate(self._paths[suffix], sum(map(len, kept[:count])))
        self.records = [self._parsed(lines, number, record_of) for number in range(count)]
        self._times = [json.loads(line) for line in times[:count]]

    def _parsed(self, lines: list[bytes], number: int, read: Any) -> Any:
        try:
            return read(json.loads(lines[number]))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{self._paths['jsonl']}, line {number + 1} is damaged ({error!r}): remove the file and evaluate again"
            ) from None


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def _spool_frames(path: Path, most: int) -> tuple[int, int]:
    """Return how many whole frames, at most so many, a spool has, and how many bytes they are."""
    if not path.exists():
        return 0, 0
    size, end, count = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while count < most and len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            after = file.tell() + _LENGTH.unpack(head)[0]
            if after > size:
                break
            file.seek(after)
            end, count = after, count + 1
    return count, end


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"


# --- Records as JSON --------------------------------------------------------------------------------------------------


def record_fields(record: FrameRecord) -> dict[str, Any]:
    """Return a record as plain JSON, exactly."""
    found = {one.name: getattr(record, one.name) for one in fields(FrameRecord)}
    truth = record.truth
    return found | {
        "size": list(record.size),
        "mode": record.mode.name,
        "luminance": None if math.isnan(record.luminance) else record.luminance,
        "truth": None
        if truth is None
        else {name: _array(getattr(truth, name)) for name in ("boxes", "labels", "ignored", "occlusion")},
        "answers": {name: _answer_fields(answer) for name, answer in record.answers.items()},
    }


def record_of(content: dict[str, Any]) -> FrameRecord:
    """Return the record of record_fields. Raises ValueError, LookupError or TypeError for what is none."""
    if content.keys() != {one.name for one in fields(FrameRecord)}:
        raise ValueError("other fields than a record has")
    truth = content["truth"]
    width, height = content["size"]
    return FrameRecord(
        **content
        | {
            "size": (width, height),
            "mode": Mode[content["mode"]],
            "luminance": math.nan if content["luminance"] is None else content["luminance"],
            "truth": None if truth is None else FrameTruth(**{name: _array_of(text) for name, text in truth.items()}),
            "answers": {name: _answer_of(answer) for name, answer in content["answers"].items()},
        }
    )


def drive_fields(drive: DriveRecord) -> dict[str, Any]:
    """Return what is known of a bag as plain JSON."""
    changes = [asdict(change) | {"mode": change.mode.name} for change in drive.changes]
    return asdict(drive) | {"changes": changes}


def drive_of(content: dict[str, Any]) -> DriveRecord:
    """Return the record of drive_fields."""
    changes = tuple(
        ModeChange(change["log_ns"], Mode[change["mode"]], tuple(change["faults"])) for change in content["changes"]
    )
    return DriveRecord(**content | {"changes": changes})


def _answer_fields(answer: Answer) -> dict[str, Any]:
    if answer.rejected:
        return {"rejected": answer.rejected}
    found: dict[str, Any] = {}
    if answer.detections is not None:
        found["detections"] = [_array(getattr(answer.detections, name)) for name in ("boxes", "scores", "labels")]
    if answer.confusions:
        found["confusions"] = {name: _array(counts) for name, counts in answer.confusions.items()}
    return found


def _answer_of(content: dict[str, Any]) -> Answer:
    detections = content.get("detections")
    confusions = {
        cast("Reference", name): cast("np.ndarray", _array_of(text))
        for name, text in content.get("confusions", {}).items()
    }
    return Answer(
        None if detections is None else Detections(*map(_array_of, detections)),  # type: ignore[arg-type]
        confusions,
        content.get("rejected", ""),
    )


def _array(values: np.ndarray | None) -> list[Any] | None:
    """Return an array as [dtype, shape, base64]."""
    if values is None:
        return None
    name = values.dtype.str[1:]
    data = np.ascontiguousarray(values, _DTYPES[name]).tobytes()
    return [name, list(values.shape), base64.b64encode(data).decode()]


def _array_of(content: list[Any] | None) -> np.ndarray | None:
    if content is None:
        return None
    name, shape, text = content
    values = np.frombuffer(base64.b64decode(text, validate=True), _DTYPES[name]).reshape(shape)
    return values.astype(values.dtype.newbyteorder("="))
