"""What an evaluation is asked to do: everything that decides its result, in one value that any process can be given."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnxruntime

import md_perception
from md_perception.evaluation.simulate import Simulation
from md_perception.evaluation.truth import TruthSpec
from md_perception.parameters import Parameters

LightChoice = Literal["auto", "day", "night"]

_NO_PART_IN_IT = (
    "autostart",
    "student_",
    "rgb_transport",
    "rgb_reliability",
    "rgb_queue_depth",
    "thermal_transport",
    "thermal_reliability",
    "thermal_queue_depth",
    "registration_monitor",
    "registration_max_shift",
    "health_failures",
    "queue_depth",
)
"""How fields of Parameters begin that change nothing here."""

_ENDS_BYTES = 1 << 20


class EvaluationError(RuntimeError):
    """An evaluation that cannot be done as asked; the text says why and what to do."""


@dataclass(frozen=True)
class Job:
    """Everything that decides what an evaluation says of a bag. Picklable.

    students: file by name, in the order of the report; the first decides which modes there are. visible_student,
    thermal_student: that take over, for every student that takes more, while a camera is lost. teacher: name and file;
    the students' answers are compared with its, and it sees the bag as it is, without the simulation.
    parameters: of the node; files, providers, transports, QoS and queues among them play no part here.
    providers, threads: of ONNX Runtime. On the CPU with one thread for each inference, the bytes of the results do not
    depend on the number of workers.
    rgb_topic, thermal_topic: of the images; None: the usual ones. light: of all frames; `auto`: as the metadata of the
    bag (custom_data `light`), its topic /light or its truth says, else by the luminance. truth: None: none.
    with_results: also make the messages of the result bag.
    """

    students: Mapping[str, Path]
    visible_student: Path | None = None
    thermal_student: Path | None = None
    teacher: tuple[str, Path] | None = None
    parameters: Parameters = field(default_factory=Parameters.defaults)
    providers: tuple[str, ...] = ("cpu",)
    threads: int = 1
    rgb_topic: str | None = None
    thermal_topic: str | None = None
    light: LightChoice = "auto"
    truth: TruthSpec | None = field(default_factory=TruthSpec)
    simulation: Simulation = field(default_factory=Simulation)
    with_results: bool = False

    def __post_init__(self) -> None:
        if not self.students:
            raise EvaluationError("an evaluation needs at least one student (--student FILE)")
        if self.teacher is not None and self.teacher[0] in self.students:
            raise EvaluationError(f"a student and the teacher are both called {self.teacher[0]}: rename one of them")
        if self.parameters.pairing_policy != "nearest":
            raise EvaluationError(
                f"pairing.policy {self.parameters.pairing_policy!r} needs ROS: bags are evaluated with 'nearest'"
            )

    def truth_spec(self, rgb_topic: str | None) -> TruthSpec | None:
        """Return where the truth is in a bag whose RGB images are on this topic."""
        return None if self.truth is None else replace(self.truth, rgb_topic=self.truth.rgb_topic or rgb_topic)

    def configuration(self) -> dict[str, Any]:
        """Return, as plain JSON, what decides the result: files by their SHA-256, versions of this software.

        Raises EvaluationError where a file cannot be read.
        """
        values = asdict(self.parameters)
        return {
            "students": {name: file_digest(path) for name, path in self.students.items()},
            "visible_student": None if self.visible_student is None else file_digest(self.visible_student),
            "thermal_student": None if self.thermal_student is None else file_digest(self.thermal_student),
            "teacher": None if self.teacher is None else {self.teacher[0]: file_digest(self.teacher[1])},
            "parameters": {name: value for name, value in values.items() if not name.startswith(_NO_PART_IN_IT)},
            "providers": list(self.providers),
            "threads": self.threads,
            "onnxruntime": onnxruntime.__version__,
            "md_perception": software()["md_perception"],
            "rgb_topic": self.rgb_topic,
            "thermal_topic": self.thermal_topic,
            "light": self.light,
            "truth": None if self.truth is None else _truth_configuration(self.truth),
            "simulation": str(self.simulation),
            "result_bag": self.with_results,
        }


def software() -> dict[str, str]:
    """Return the versions that a result depends on; of this package also a SHA-256 of its source."""
    digest, folder = hashlib.sha256(), Path(md_perception.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if name.parts[0] not in ("msg", "ros"):  # generated where it is built for ROS, and without a part in this
            digest.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return {
        "md_perception": f"{md_perception.__version__} (source {digest.hexdigest()[:12]})",
        "onnxruntime": str(onnxruntime.__version__),
        "numpy": np.__version__,
        "opencv": str(cv2.__version__),
    }


def named(files: Iterable[Path]) -> dict[str, Path]:
    """Return files and folders by name: stems of files, numbered where two are the same."""
    found: dict[str, Path] = {}
    for path in files:
        # The dots of a folder are no suffix, and `.` has a name too.
        plain = Path(os.path.abspath(path)).name if path.is_dir() else path.stem
        name, number = plain, 1
        while name in found:
            number += 1
            name = f"{plain}_{number}"
        found[name] = path
    return found


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises EvaluationError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def bag_digest(path: Path) -> str:
    """Return a SHA-256 that tells bags apart: of names, sizes, and both ends (1 MiB) of the storage files.

    The whole of a bag would take as long to read as its evaluation. Raises EvaluationError.
    """
    digest = hashlib.sha256()
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    try:
        for one in files:
            size = one.stat().st_size
            digest.update(f"{one.name} {size}\n".encode())
            with one.open("rb") as file:
                digest.update(file.read(_ENDS_BYTES))
                file.seek(max(size - _ENDS_BYTES, 0))
                digest.update(file.read())
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _truth_configuration(spec: TruthSpec) -> dict[str, Any]:
    """Return the spec as plain JSON, files and folders by what is in them."""
    found: dict[str, Any] = {}
    for one in fields(spec):
        value = getattr(spec, one.name)
        if isinstance(value, Path):
            value = tree_digest(value)
        found[one.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def tree_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a folder. Raises EvaluationError."""
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for one in sorted(path.rglob("*")):
        if one.is_file():
            digest.update(f"{one.relative_to(path).as_posix()} {file_digest(one)}\n".encode())
    return digest.hexdigest()
