"""The manifest inside every exported student: what the file is, what it was trained for, what it may be fed.

It travels as one JSON text in the ONNX metadata under `MANIFEST_KEY`, so that the file is all that is needed.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

MANIFEST_KEY = "md_perception.manifest"
"""Key of the manifest in ModelProto.metadata_props."""

FORMAT_VERSION: Final = 2
"""Newest version of the graph's inputs and outputs and of this schema; a loader refuses a file of a version that it
does not know. 1: the graph takes one image at a time. 2: it takes a batch, and `image_index` beside the detections says
of which image a row is."""

MAX_MANIFEST_CHARACTERS: Final = 1_000_000
"""Longest manifest that is read."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


# Texts go to logs, diagnostics and message fields: no line of a log, no command to a terminal can be smuggled in.
_Text = Annotated[str, AfterValidator(_printable)]
_ShortText = Annotated[_Text, Field(max_length=200)]
_ClassName = Annotated[_Text, Field(min_length=1, max_length=100)]
_ClassNames = Annotated[tuple[_ClassName, ...], Field(max_length=256)]  # their ids have to fit into a mask of uint8
_Name = Annotated[str, Field(max_length=100, pattern=r"^[0-9A-Za-z_][0-9A-Za-z_.+-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PositiveSize = tuple[Annotated[int, Field(gt=0, le=16384)], Annotated[int, Field(gt=0, le=16384)]]


class ManifestError(ValueError):
    """A student file without a manifest, or with one that is malformed or contradicts its graph."""


def check_name(name: str) -> None:
    """Raise ValueError for a name that no manifest may have, before there is one."""
    try:
        TypeAdapter(_Name).validate_python(name)
    except ValidationError:
        raise ValueError(
            f"{name[:120]!r} cannot be a student's name: use letters, digits and _ . + -, at most 100, and begin with "
            "none of the last three"
        ) from None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ThermalContract(_Strict):
    """The thermal image that a student was trained on.

    sensor_size: (width, height) px of the thermal sensor, before any upsampling.
    coding: `agc_percentile`: 8 bit, linear between two percentiles of the frame (an automatic gain control);
        `fixed_range`: 8 bit, linear between two temperatures.
    percentiles: of `agc_percentile`, in percent. minimum_span_k: the smallest range, in kelvin, that it stretches.
    range_k: of `fixed_range`, in kelvin.
    """

    sensor_size: PositiveSize
    coding: Literal["agc_percentile", "fixed_range"] = "agc_percentile"
    percentiles: tuple[float, float] = (1.0, 99.0)
    minimum_span_k: float = Field(default=10.0, gt=0)
    range_k: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _ranges(self) -> "ThermalContract":
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles {self.percentiles} must rise within 0..100")
        if self.coding == "fixed_range" and (self.range_k is None or self.range_k[0] >= self.range_k[1]):
            raise ValueError(f"coding fixed_range needs a rising range_k, got {self.range_k}")
        return self


class Manifest(_Strict):
    """See the fields; every string is data to be shown, never a path to be opened or code to be run.

    name: begins with a letter, a digit or `_`, so that even as the name of a file it stays in its folder.
    input_size: (width, height) px of the network, fixed at export; the graph letterboxes any camera to it.
    camera_size: (width, height) px of the RGB images that it was trained on.
    detection_classes, segmentation_classes: class names in id order; empty without the task.
    thermal: None for a visible-only student.
    metrics: figures at export, name to value; the names say protocol and split.
    """

    format_version: Literal[1, 2] = 1
    name: _Name
    role: Literal["student", "teacher"]
    tasks: tuple[Literal["detection", "segmentation"], ...] = Field(min_length=1, max_length=2)
    detection_classes: _ClassNames = ()
    segmentation_classes: _ClassNames = ()
    inputs: tuple[Literal["rgb", "thermal"], ...]
    thermal: ThermalContract | None
    input_size: PositiveSize
    camera_size: PositiveSize
    precision: Literal["fp32", "fp16", "int8"]
    weights_storage: Literal["fp32", "fp16", "int8"]
    score_threshold: float = Field(ge=0, le=1)
    run_id: _ShortText
    teacher_run_ids: tuple[_ShortText, ...] = Field(default=(), max_length=100)
    training_data: Annotated[_Text, Field(max_length=2000)]
    split_hashes: dict[_ShortText, _ShortText] = Field(default_factory=dict, max_length=1000)
    seen_real_images: bool
    metrics: dict[_ShortText, float] = Field(default_factory=dict, max_length=1000)
    git_revision: _ShortText
    created: _ShortText
    weights_sha256: Sha256

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        for task, classes in (
            ("detection", self.detection_classes),
            ("segmentation", self.segmentation_classes),
        ):
            if (task in self.tasks) != bool(classes):
                raise ValueError(f"task {task} and its class list {classes} contradict each other")
            if len(set(classes)) != len(classes):
                raise ValueError(f"a class of {task} occurs twice: {classes}")
        if len(set(self.inputs)) != len(self.inputs) or not self.inputs:
            raise ValueError(f"inputs {self.inputs} must name each camera once")
        if ("thermal" in self.inputs) != (self.thermal is not None):
            raise ValueError("the thermal contract must be given exactly when thermal is an input")
        return self

    @property
    def takes_batches(self) -> bool:
        """Whether the graph takes several images at once."""
        return self.format_version >= 2

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], source: str) -> "Manifest":
        """Parse the manifest out of ONNX metadata.

        metadata: the model's metadata_props as a dict. source: the file's name, for error texts.
        Raises ManifestError naming the file and each field that is wrong.
        """
        text = metadata.get(MANIFEST_KEY)
        if text is None:
            raise ManifestError(
                f"{source} has no md_perception manifest: it was not written by `python -m md_training export`; "
                "export the student again"
            )
        if len(text) > MAX_MANIFEST_CHARACTERS:
            raise ManifestError(f"{source}: its manifest of {len(text)} characters is larger than any real one")
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            problems = [
                # A key of an unknown field is part of the location, and may hold anything.
                f"{'.'.join(ascii(part)[1:-1][:60] if isinstance(part, str) else str(part) for part in item['loc'])}: "
                f"{item['msg'][:200]}".removeprefix(": ")
                for item in found[:10]
            ]
            more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
            raise ManifestError(f"{source}: its manifest is not valid: {'; '.join(problems)}{more}") from None

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata entry that carries this manifest."""
        return {MANIFEST_KEY: self.model_dump_json()}

    def summary(self) -> dict[str, Any]:
        """Return the fields that a log line or a report needs, in reading order."""
        return {
            "name": self.name,
            "role": self.role,
            "tasks": "+".join(self.tasks),
            "inputs": "+".join(self.inputs),
            "input_size": "x".join(map(str, self.input_size)),
            "thermal_size": "x".join(map(str, self.thermal.sensor_size)) if self.thermal else "none",
            "precision": self.precision,
            "weights": self.weights_sha256[:12],
        }
