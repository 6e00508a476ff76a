"""The student in service: an exported ONNX file, checked and run by ONNX Runtime."""

import contextlib
import ctypes
import io
import logging
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from md_perception.inference.manifest import Manifest, ManifestError
from md_perception.inference.onnx_file import OnnxFile, OnnxFileError, TensorInfo
from md_perception.results import Detections, Float32Array, Segmentation, StudentOutput, UInt8Image

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Largest student file that is read."""

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Short names of ONNX Runtime's execution providers; `auto` is CUDA where it works, else CPU."""

MAX_FOLDED_BYTES = 128 * 1024 * 1024
"""Largest constant that ONNX Runtime computes at load: the fp32 of compressed weights fits, a memory bomb does not."""

MAX_DETECTIONS = 10_000
"""Most detections of an image that are taken from a student."""

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

_INPUTS = {"rgb": ("uint8", 4), "thermal": ("uint8", 3), "rgb_to_thermal": ("float32", 3)}
_OUTPUTS = {
    "detection": {"boxes": ("float32", 2), "scores": ("float32", 1), "labels": ("int64", 1)},
    "segmentation": {"mask": ("uint8", 3), "confidence": ("uint8", 3)},
}
_GREY = 127


class StudentError(RuntimeError):
    """A student file that cannot be used, or that failed while it ran; the text names the file and the cure."""


@dataclass(frozen=True)
class SessionSettings:
    """How ONNX Runtime runs the student.

    providers: in order of preference, the first that works here is taken: `auto`, `cpu`, `cuda`, `tensorrt` or
        ONNX Runtime's own names. `auto` leaves TensorRT out, because its first start builds engines for minutes.
    threads: of one inference on the CPU; 0: one per physical core.
    spin: let idle threads of the CPU provider wait busily for the next operator: a little faster where the machine is
        ours alone, slower where the cores are shared with the camera drivers.
    """

    providers: tuple[str, ...] = ("auto",)
    threads: int = 0
    spin: bool = False

    def __post_init__(self) -> None:
        known = {"auto", *PROVIDERS, *PROVIDERS.values()}
        unknown = [name for name in self.providers if name not in known]
        if unknown or not self.providers:
            raise ValueError(f"unknown execution providers {unknown}: use one of {', '.join(sorted(known))}")
        if self.threads < 0:
            raise ValueError(f"threads must be 0 (one per core) or more, got {self.threads}")


class Student:
    """A checked student file in an ONNX Runtime session. `run` may be called from several threads.

    path: the file. manifest: what it says of itself. precision: what the graph computes in.
    unavailable: the providers that were preferred to the one in use and do not work here, each with the reason.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        session: "onnxruntime.InferenceSession",
        unavailable: tuple[str, ...] = (),
    ) -> None:
        """Use `load`, which checks the file."""
        self.path = path
        self.manifest = manifest
        self.unavailable = unavailable
        self.precision: str = manifest.precision
        self._session = session
        self._outputs = [name for task in manifest.tasks for name in _OUTPUTS[task]]

    @classmethod
    def load(cls, path: Path | str, settings: SessionSettings = SessionSettings()) -> "Student":
        """Check a student file and make a session of it.

        Nothing but this file is read: the session is made from its bytes, and a file that refers to others is refused,
        like one with unknown operators, without a valid manifest, whose graph contradicts the manifest, or whose
        weights have another SHA-256 than the manifest says.
        Raises StudentError, and ManifestError where the manifest is at fault.
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
        session = make_session(path, data, settings)
        return cls(path, manifest, session, _passed_over(settings, session.get_providers()[0]))

    @property
    def provider(self) -> str:
        """The execution provider in use now: ONNX Runtime goes on with the next by itself when one fails in a run."""
        return str(self._session.get_providers()[0])

    @property
    def uses_thermal(self) -> bool:
        """Whether it takes thermal images."""
        return "thermal" in self.manifest.inputs

    @property
    def uses_rgb(self) -> bool:
        """Whether it takes RGB images; a thermal-only student gives its results in thermal pixels."""
        return "rgb" in self.manifest.inputs

    def warm_up(self, rgb_size: tuple[int, int] | None, thermal_size: tuple[int, int] | None = None) -> float:
        """Run once with grey images of these sizes, (width, height) px, so that the first frame does not pay for it.

        The size of a camera that it does not take may be None. Returns the seconds it took. Raises StudentError.
        """
        start = time.perf_counter()
        rgb = thermal = matrix = None
        for camera, needed, size in (("RGB", self.uses_rgb, rgb_size), ("thermal", self.uses_thermal, thermal_size)):
            if needed and size is None:
                raise StudentError(f"student {self.path} takes {camera} images: give their size for the warm-up")
        if self.uses_rgb and rgb_size is not None:
            rgb = np.full((rgb_size[1], rgb_size[0], 3), _GREY, np.uint8)
        if self.uses_thermal and thermal_size is not None:
            thermal = np.full((thermal_size[1], thermal_size[0]), _GREY, np.uint8)
        if rgb_size is not None and thermal_size is not None:
            scale = np.diag([thermal_size[0] / rgb_size[0], thermal_size[1] / rgb_size[1], 1.0])
            matrix = scale.astype(np.float32)
        self.run(rgb, thermal, matrix)
        return time.perf_counter() - start

    def run(
        self,
        rgb: UInt8Image | None,
        thermal: UInt8Image | None = None,
        rgb_to_thermal: Float32Array | None = None,
    ) -> StudentOutput:
        """Run the student on one pair.

        rgb: uint8 (H, W, 3), RGB order; None for a thermal-only student. thermal: uint8 (h, w), the 8-bit image of
        sensing.thermal; None for a visible-only student. rgb_to_thermal: float32 (3, 3) of sensing.registration, for a
        student that takes both.
        Returns boxes in pixels of `rgb` (of `thermal` without it) with at least the export's score threshold, highest
        score first, and masks of its size. Raises StudentError.
        """
        feeds: dict[str, np.ndarray] = {}
        if self.uses_rgb:
            if rgb is None:
                raise StudentError(f"student {self.path} takes RGB images: none was given")
            feeds["rgb"] = np.ascontiguousarray(rgb)[None]
        if self.uses_thermal:
            if thermal is None or (self.uses_rgb and rgb_to_thermal is None):
                raise StudentError(f"student {self.path} takes thermal images: none was given")
            feeds["thermal"] = np.ascontiguousarray(thermal)[None]
        if self.uses_rgb and self.uses_thermal:
            feeds["rgb_to_thermal"] = np.asarray(rgb_to_thermal, np.float32)[None]
        shape = feeds["rgb" if self.uses_rgb else "thermal"].shape[1:3]
        try:
            values = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        except Exception as error:  # ONNX Runtime has a dozen types without a common base of their own
            raise StudentError(f"student {self.path} failed on {self.provider}: {error}") from error
        try:
            return StudentOutput(self._detections(values), self._segmentation(values, shape))
        except (ValueError, IndexError, TypeError) as error:  # shapes of the outputs are known only now
            raise StudentError(f"student {self.path} gave results that contradict each other: {error}") from error

    def _detections(self, values: dict[str, Any]) -> Detections | None:
        if "boxes" not in values:
            return None
        detections = Detections(values["boxes"], values["scores"], values["labels"])
        classes = len(self.manifest.detection_classes)
        if len(detections) > MAX_DETECTIONS:
            raise StudentError(f"student {self.path} gave {len(detections)} detections: that cannot be true")
        if len(detections) and not 0 <= detections.labels.min() <= detections.labels.max() < classes:
            raise StudentError(f"student {self.path} gave labels {detections.labels} but has {classes} classes")
        return detections

    def _segmentation(self, values: dict[str, Any], shape: tuple[int, ...]) -> Segmentation | None:
        if "mask" not in values:
            return None
        mask, confidence = values["mask"][0], values["confidence"][0]
        if mask.shape != shape:
            raise StudentError(f"student {self.path} gave a mask {mask.shape} for an image {shape}")
        return Segmentation(mask, confidence)


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


def _listed(names: set[str]) -> str:
    """Return the first names, quoted where they hold what a log should not."""
    shown = [name[:80] if name.isprintable() else repr(name[:80]) for name in sorted(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _expected_inputs(manifest: Manifest) -> dict[str, tuple[str, int]]:
    names = [*manifest.inputs, *(["rgb_to_thermal"] if len(manifest.inputs) == 2 else [])]
    return {name: _INPUTS[name] for name in names}


def _expected_outputs(manifest: Manifest) -> dict[str, tuple[str, int]]:
    return {name: expected for task in manifest.tasks for name, expected in _OUTPUTS[task].items()}


def _check_tensors(path: Path, what: str, found: list[TensorInfo], expected: dict[str, tuple[str, int]]) -> None:
    """Compare names, dtypes and ranks of the graph with what the manifest promises."""
    problems = [f"{name} is missing" for name in expected.keys() - {tensor.name for tensor in found}]
    for tensor in found:
        if tensor.name not in expected:
            problems.append(f"{tensor.name} is not known")
            continue
        dtype, rank = expected[tensor.name]
        if tensor.dtype != dtype or tensor.rank not in (rank, None):
            problems.append(f"{tensor.name} is {tensor.dtype} with {tensor.rank} dimensions, not {dtype} with {rank}")
    if problems:
        raise ManifestError(
            f"student {path}: its graph contradicts its manifest: {what} {', '.join(sorted(problems))}; export it again"
        )


def make_session(path: Path, data: bytes, settings: SessionSettings) -> "onnxruntime.InferenceSession":
    """Return a session on the first of the providers that works here; warn of each better one that does not.

    Raises StudentError where none works, or where the graph is not accepted.
    """
    wanted = _wanted(settings)
    failures: list[str] = []
    for name in wanted:
        provider = PROVIDERS.get(name, name)
        reason = _why_unavailable(provider)
        if reason is None:
            try:
                session = _create(path, data, provider, settings)
            except StudentError as error:  # the graph, or the provider: out of memory, a GPU that is too old
                if name == wanted[-1]:
                    raise
                reason = str(error)
            else:
                if session.get_providers()[0] == provider:
                    for failure in failures:
                        logger.warning("%s; the student runs on %s", failure, provider)
                    return session
                reason = "ONNX Runtime could not start it (its message is above): install the libraries that it names"
        failures.append(f"{provider} does not work here: {reason}")
    raise StudentError(f"student {path} cannot be loaded: {'; '.join(failures)}")


def _wanted(settings: SessionSettings) -> list[str]:
    """Return the providers in order of preference, with what `auto` stands for."""
    return [one for name in settings.providers for one in (["cuda", "cpu"] if name == "auto" else [name])]


def _passed_over(settings: SessionSettings, in_use: str) -> tuple[str, ...]:
    """Say of each provider that was preferred to the one in use why it was not taken."""
    names = [PROVIDERS.get(name, name) for name in _wanted(settings)]
    better = names[: names.index(in_use)] if in_use in names else names
    return tuple(f"{name}: {_why_unavailable(name) or 'it failed to start, the log says how'}" for name in better)


def _create(path: Path, data: bytes, provider: str, settings: SessionSettings) -> "onnxruntime.InferenceSession":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3  # errors; what matters below that is said by us
    # Left to itself ONNX Runtime takes a file with "ORTM" at byte 4 for its own format, which nobody has checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(MAX_FOLDED_BYTES))
    # Compressed weights (int8 + DequantizeLinear) are folded to fp32 once at load instead of dequantised every frame.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=_with_options(provider))
    except Exception as error:  # ONNX Runtime has a dozen types without a common base of their own
        version = onnxruntime.__version__
        raise StudentError(f"student {path} cannot be loaded by ONNX Runtime {version}: {error}") from None


def _why_unavailable(provider: str) -> str | None:
    """Say why a provider cannot be used on this machine; None: ONNX Runtime may try.

    Asked first, because ONNX Runtime would print errors of many lines and go on with the CPU.
    """
    if provider not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime ({onnxruntime.__version__}) was built without it: install onnxruntime-gpu"
    if provider not in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: finds the CUDA libraries that pip installed
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, needed or not
            onnxruntime.preload_dlls()
    return None


def _with_options(provider: str) -> list[Any]:
    if provider == PROVIDERS["cpu"]:
        return [provider]
    # TF32 would be reported as fp32 and is not.
    cuda = (PROVIDERS["cuda"], {"use_tf32": 0})
    return [provider, cuda, PROVIDERS["cpu"]] if provider == PROVIDERS["tensorrt"] else [cuda, PROVIDERS["cpu"]]
