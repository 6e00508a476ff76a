"""A student file, read and checked before ONNX Runtime sees a byte of it."""

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_perception.inference.manifest import Manifest, ManifestError
from md_perception.inference.onnx_file import OnnxFile, OnnxFileError, TensorInfo
from md_perception.results import Size

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Largest student file that is read."""

MAX_SIDE = 16384
"""Largest fixed dimension of an image, px, and most rows of a fixed output."""

DEMO_STUDENT = Path(__file__).parents[1] / "students" / "demo.onnx"
"""The student of this package, on RGB and thermal: what runs where no other is given."""

DEMO_VISIBLE_STUDENT = DEMO_STUDENT.with_name("demo-visible.onnx")
"""Its companion on RGB alone, for the time when thermal is lost."""


def student_path(name: str, demo: Path | None = DEMO_STUDENT) -> Path:
    """Return the file that a user names: `demo` is the given one of this package, if there is one."""
    return demo if demo is not None and name == "demo" else Path(name).expanduser()


OPERATORS = frozenset(
    """
    Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid
    Sign Sin Softplus Softsign Sqrt Sub Sum Tanh Where Xor
    Cast CastLike Concat Constant ConstantOfShape CumSum DepthToSpace Expand Flatten Gather GatherElements GatherND
    Identity NonZero Pad Range Reshape Resize ScatterElements ScatterND Shape Size Slice SpaceToDepth Squeeze
    Tile Transpose Trilu Unsqueeze
    AveragePool BatchNormalization Conv Dropout Gemm GlobalAveragePool GlobalMaxPool GridSample GroupNormalization
    InstanceNormalization LogSoftmax MatMul MaxPool Softmax
    ArgMax ArgMin NonMaxSuppression ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum TopK
    DequantizeLinear QuantizeLinear
    """.split()  # noqa: SIM905 (quotes would hide the names)
)
"""The operators that a student may have: those of feed-forward networks on images and of what comes before and behind.

Not here: control flow (loops without an end), strings and regular expressions, image decoders, sequences, random
numbers, and all domains but ONNX's own: com.microsoft has EPContext, which names a file with a compiled engine to load.
Nor those whose attributes or shapes can make ONNX Runtime 1.31 crash: ConvTranspose, LayerNormalization, OneHot, Split.
"""

_INTEGERS = range(-(2**31) + 1, 2**31)
_INTEGERS_OF = {("GatherND", "batch_dims"): range(8)}
"""What integer attributes may be: where ONNX Runtime does not check them itself, it reads beyond its memory."""

_OMITTING = {"Clip", "NonMaxSuppression", "Pad", "Resize", "Slice"}
"""Operators that may leave out an input: in others, which take any number of inputs, ONNX Runtime dies of that."""

_KNOWN_DOMAINS = {"", "ai.onnx"}  # two names of ONNX itself

_BATCH: Final = "batch"

_Expected = tuple[str, tuple[int | str | None, ...]]
"""dtype and shape; None: any size, fixed or not; _BATCH: not fixed."""

_INPUTS: dict[str, _Expected] = {
    "rgb": ("uint8", (_BATCH, None, None, 3)),
    "thermal": ("uint8", (_BATCH, None, None)),
    "rgb_to_thermal": ("float32", (_BATCH, 3, 3)),
}
_OUTPUTS: dict[str, dict[str, _Expected]] = {
    "detection": {"boxes": ("float32", (None, 4)), "scores": ("float32", (None,)), "labels": ("int64", (None,))},
    "segmentation": {"mask": ("uint8", (_BATCH, None, None)), "confidence": ("uint8", (_BATCH, None, None))},
}
IMAGE_INDEX: Final = "image_index"
"""Of a file that takes batches: the image of each detection, int64, from 0."""


class StudentError(RuntimeError):
    """A student file that cannot be used, or that failed while it ran; the text names the file and the cure."""


@dataclass(frozen=True)
class StudentFile:
    """A file that has passed every check.

    data: its bytes, a serialised ModelProto. inputs, outputs: of the graph, in its order.
    """

    path: Path
    data: bytes
    manifest: Manifest
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @classmethod
    def read(cls, path: Path | str) -> "StudentFile":
        """Read and check a file.

        Nothing but this file is read, and it is refused if it refers to others, like one with unknown operators,
        without a valid manifest, whose graph contradicts the manifest, or whose weights have another SHA-256 than the
        manifest says. Raises StudentError, and ManifestError where the manifest is at fault.
        """
        path = Path(path)
        data = _read(path)
        try:
            file = OnnxFile.parse(data)
        except OnnxFileError as error:
            raise StudentError(f"student {path} cannot be read: {error}") from None
        manifest = Manifest.from_metadata(file.metadata, str(path))
        _check_contents(path, file)
        _check_tensors(path, "input", file.inputs, _expected_inputs(manifest))
        _check_tensors(path, "output", file.outputs, _expected_outputs(manifest))
        if file.weights_sha256() != manifest.weights_sha256:
            raise StudentError(
                f"student {path}: its weights do not have the SHA-256 of its manifest: the file is damaged, or was "
                "changed after its export; copy it again, or export it again"
            )
        return cls(path, data, manifest, tuple(file.inputs), tuple(file.outputs))

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, detection first."""
        return list(_expected_outputs(self.manifest))

    @property
    def padded(self) -> bool:
        """Whether it gives a fixed number of detections, those that are none with a score below 0."""
        return any(
            tensor.name == "boxes" and tensor.shape and isinstance(tensor.shape[0], int) for tensor in self.outputs
        )

    def sizes(self, rgb: Size | None, thermal: Size | None) -> tuple[Size | None, Size | None]:
        """Return the sizes of the RGB and the thermal image to begin with; None: it takes none.

        They are the given ones, else those that the file is fixed to, else those of its training.
        """
        contract = self.manifest.thermal
        trained = {"rgb": self.manifest.camera_size, "thermal": contract.sensor_size if contract else None}
        given = {"rgb": rgb, "thermal": thermal}
        result: dict[str, Size | None] = {"rgb": None, "thermal": None}
        for tensor in self.inputs:
            if tensor.name in result:
                height, width = tensor.shape[1:3] if tensor.shape else (None, None)
                fixed = (width, height) if isinstance(width, int) and isinstance(height, int) else None
                result[tensor.name] = given[tensor.name] or fixed or trained[tensor.name]
        return result["rgb"], result["thermal"]

    def dimensions(self, rgb: Size | None, thermal: Size | None) -> dict[str, int]:
        """Return what the named dimensions of the inputs are for one image of each camera; None: no such camera.

        Raises StudentError where the file was exported for fixed images of another size.
        """
        named: dict[str, int] = {}
        for tensor in self.inputs:
            size = {"rgb": rgb, "thermal": thermal}.get(tensor.name)
            if size is None or tensor.shape is None:
                continue
            batch, fixed = tensor.shape[0], (tensor.shape[2], tensor.shape[1])
            for stated, pixels in ((batch, 1), *zip(fixed, size, strict=True)):
                if isinstance(stated, int) and stated != pixels:
                    raise StudentError(
                        f"student {self.path} was exported for {tensor.name} images of {_pixels(fixed)} alone, not of "
                        f"{_pixels(size)}: export it for that size, or without --fixed"
                    )
                if isinstance(stated, str) and named.setdefault(stated, pixels) != pixels:
                    raise StudentError(
                        f"student {self.path} gives sides of {named[stated]} and {pixels} px one name, "
                        f"{stated[:80]!r}: export it again"
                    )
        return named

    def input_shapes(self, dimensions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs that are known once the named dimensions are these."""
        return {name: shape for name, (_, shape) in _known(self.inputs, dimensions).items()}

    def output_shapes(self, dimensions: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of the outputs whose shape is known once the named dimensions are these."""
        return _known(self.outputs, dimensions)

    def static(self, dimensions: Mapping[str, int]) -> bool:
        """Whether the shape of every input and output is known once the named dimensions are these."""
        return len(_known((*self.inputs, *self.outputs), dimensions)) == len(self.inputs) + len(self.outputs)


def _known(tensors: Iterable[TensorInfo], dimensions: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of the tensors without an unknown dimension."""
    known = {}
    for tensor in tensors:
        shape = [dimensions.get(size) if isinstance(size, str) else size for size in tensor.shape or (None,)]
        if None not in shape:
            known[tensor.name] = tensor.dtype, tuple(size for size in shape if size is not None)
    return known


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        # A pipe would be waited for, a device read without an end.
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise StudentError(f"student {path} cannot be read: it is no plain file")
        if status.st_size > MAX_FILE_BYTES:
            raise StudentError(f"student {path} is larger than {MAX_FILE_BYTES} bytes: this is no student file")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise StudentError(f"student {path} cannot be read: {error.strerror or error}") from None


def _check_contents(path: Path, file: OnnxFile) -> None:
    """Refuse what ONNX Runtime should not see. Raises StudentError."""
    if file.external_tensors:
        raise StudentError(
            f"student {path} keeps {len(file.external_tensors)} tensors in other files (the first is "
            f"{file.external_tensors[0][:80]!r}); one file has to carry everything: export it without external data"
        )
    custom = (file.domains | {domain for domain, _ in file.operators}) - _KNOWN_DOMAINS
    if custom:
        raise StudentError(f"student {path} needs custom operators of {_listed(custom)}: they are not loaded")
    unknown = {operator for _, operator in file.operators} - OPERATORS
    if unknown:
        raise StudentError(
            f"student {path} has operators that no student has: {_listed(unknown)}; `python -m md_training export` "
            "writes files without them"
        )
    if file.omitting - _OMITTING:
        raise StudentError(
            f"student {path} leaves out inputs of {_listed(file.omitting - _OMITTING)}: the file is damaged"
        )
    for operator, name, value in sorted(file.integers):
        allowed = _INTEGERS_OF.get((operator, name), _INTEGERS)
        if value not in allowed:
            raise StudentError(
                f"student {path} has a {operator} whose {name[:80]!r} is {value}, not within {allowed.start} and "
                f"{allowed.stop - 1}: the file is damaged"
            )
    if file.foreign:
        raise StudentError(
            f"student {path} has {_listed(file.foreign)}, which no student has; `python -m md_training export` writes "
            "files without them"
        )


def _pixels(size: tuple[int | str | None, ...]) -> str:
    return "x".join(str(side) if isinstance(side, int) else "any" for side in size) + " px"


def _listed(names: set[str]) -> str:
    """Return the first names, quoted where they hold what a log should not."""
    shown = [name[:80] if name.isprintable() else repr(name[:80]) for name in sorted(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _expected_inputs(manifest: Manifest) -> dict[str, _Expected]:
    names = [*manifest.inputs, *(["rgb_to_thermal"] if len(manifest.inputs) == 2 else [])]
    return _with_batch(manifest, {name: _INPUTS[name] for name in names})


def _expected_outputs(manifest: Manifest) -> dict[str, _Expected]:
    outputs = {name: expected for task in manifest.tasks for name, expected in _OUTPUTS[task].items()}
    if manifest.takes_batches and "detection" in manifest.tasks:
        outputs[IMAGE_INDEX] = ("int64", (None,))
    return _with_batch(manifest, outputs)


def _with_batch(manifest: Manifest, tensors: dict[str, _Expected]) -> dict[str, _Expected]:
    """Return them for a file that takes batches, or one image at a time."""
    if manifest.takes_batches:
        return tensors
    return {
        name: (dtype, tuple(1 if size == _BATCH else size for size in shape))
        for name, (dtype, shape) in tensors.items()
    }


def _check_tensors(path: Path, what: str, found: list[TensorInfo], expected: dict[str, _Expected]) -> None:
    """Compare names, dtypes and shapes of the graph with what the manifest promises."""
    problems = [f"{name} is missing" for name in expected.keys() - {tensor.name for tensor in found}]
    for tensor in found:
        if tensor.name not in expected:
            problems.append(f"{tensor.name} is not known")
            continue
        dtype, shape = expected[tensor.name]
        if tensor.dtype != dtype or tensor.rank not in (len(shape), None):
            problems.append(
                f"{tensor.name} is {tensor.dtype} with {tensor.rank} dimensions, not {dtype} with {len(shape)}"
            )
        elif tensor.shape is not None and not all(map(_possible, tensor.shape, shape)):
            stated = [size if isinstance(size, int) else "any" for size in tensor.shape]
            wanted = [size if isinstance(size, int) else "any" for size in shape]
            problems.append(f"{tensor.name} has the shape {stated}, not {wanted}")
    if problems:
        raise ManifestError(
            f"student {path}: its graph contradicts its manifest: {what} {', '.join(sorted(problems))}; export it again"
        )


def _possible(stated: int | str | None, expected: int | str | None) -> bool:
    """Whether a dimension of the graph may be what is expected: fixed to another size it may not."""
    if not isinstance(stated, int):
        return True
    return 0 < stated <= MAX_SIDE if expected is None else stated == expected
