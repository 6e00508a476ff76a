"""The student in service: an exported ONNX file, checked and run by ONNX Runtime."""

import contextlib
import ctypes
import io
import logging
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

# ONNX itself and the operators that every ONNX Runtime build brings along (fused and quantised ones).
_KNOWN_DOMAINS = {"", "ai.onnx", "com.microsoft"}

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
    """

    def __init__(self, path: Path, manifest: Manifest, session: "onnxruntime.InferenceSession") -> None:
        """Use `load`, which checks the file."""
        self.path = path
        self.manifest = manifest
        self.precision: str = manifest.precision
        self._session = session
        self._outputs = [name for task in manifest.tasks for name in _OUTPUTS[task]]

    @classmethod
    def load(cls, path: Path | str, settings: SessionSettings = SessionSettings()) -> "Student":
        """Check a student file and make a session of it.

        Nothing but this file is read: the session is made from its bytes, and a file that refers to others is refused,
        like one with operators of its own, without a valid manifest, or whose graph contradicts the manifest.
        Raises StudentError, and ManifestError where the manifest is at fault.
        """
        path = Path(path)
        data = _read(path)
        try:
            file = OnnxFile.parse(data)
        except OnnxFileError as error:
            raise StudentError(f"student {path} cannot be read: {error}") from None
        manifest = Manifest.from_metadata(file.metadata, str(path))
        _check_self_contained(path, file)
        _check_tensors(path, "input", file.inputs, _expected_inputs(manifest))
        _check_tensors(path, "output", file.outputs, _expected_outputs(manifest))
        return cls(path, manifest, _make_session(path, data, settings))

    @property
    def provider(self) -> str:
        """The execution provider in use now: ONNX Runtime goes on with the next by itself when one fails in a run."""
        return str(self._session.get_providers()[0])

    @property
    def uses_thermal(self) -> bool:
        """Whether it is a fused student; otherwise it sees RGB alone."""
        return self.manifest.thermal is not None

    def warm_up(self, rgb_size: tuple[int, int], thermal_size: tuple[int, int] | None = None) -> float:
        """Run once with grey images of these sizes, (width, height) px, so that the first frame does not pay for it.

        Returns the seconds it took. Raises StudentError.
        """
        start = time.perf_counter()
        rgb = np.full((rgb_size[1], rgb_size[0], 3), _GREY, np.uint8)
        if self.uses_thermal:
            if thermal_size is None:
                raise StudentError(f"student {self.path} takes thermal images: give their size for the warm-up")
            thermal = np.full((thermal_size[1], thermal_size[0]), _GREY, np.uint8)
            scale = np.diag([thermal_size[0] / rgb_size[0], thermal_size[1] / rgb_size[1], 1.0])
            self.run(rgb, thermal, scale.astype(np.float32))
        else:
            self.run(rgb)
        return time.perf_counter() - start

    def run(
        self, rgb: UInt8Image, thermal: UInt8Image | None = None, rgb_to_thermal: Float32Array | None = None
    ) -> StudentOutput:
        """Run the student on one pair.

        rgb: uint8 (H, W, 3), RGB order. thermal: uint8 (h, w), the 8-bit image of sensing.thermal, and rgb_to_thermal:
        float32 (3, 3) of sensing.registration; both None for a visible-only student.
        Returns boxes in pixels of `rgb` with at least the export's score threshold, highest score first, and masks of
        its size. Raises StudentError.
        """
        feeds: dict[str, np.ndarray] = {"rgb": np.ascontiguousarray(rgb)[None]}
        if self.uses_thermal:
            if thermal is None or rgb_to_thermal is None:
                raise StudentError(f"student {self.path} takes thermal images: none was given")
            feeds["thermal"] = np.ascontiguousarray(thermal)[None]
            feeds["rgb_to_thermal"] = np.asarray(rgb_to_thermal, np.float32)[None]
        try:
            values = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        except Exception as error:  # ONNX Runtime has a dozen types without a common base of their own
            raise StudentError(f"student {self.path} failed on {self.provider}: {error}") from error
        return StudentOutput(self._detections(values), self._segmentation(values, rgb.shape[:2]))

    def _detections(self, values: dict[str, Any]) -> Detections | None:
        if "boxes" not in values:
            return None
        detections = Detections(values["boxes"], values["scores"], values["labels"])
        classes = len(self.manifest.detection_classes)
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
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StudentError(f"student {path} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StudentError(f"student {path} is larger than {MAX_FILE_BYTES} bytes: this is no student file")
    return data


def _check_self_contained(path: Path, file: OnnxFile) -> None:
    if file.external_tensors:
        raise StudentError(
            f"student {path} keeps {len(file.external_tensors)} tensors in other files (the first is "
            f"{file.external_tensors[0]!r}); one file has to carry everything: export it without external data"
        )
    custom = file.domains - file.local_domains - _KNOWN_DOMAINS
    if custom:
        raise StudentError(f"student {path} needs custom operators of {', '.join(sorted(custom))}: they are not loaded")


def _expected_inputs(manifest: Manifest) -> dict[str, tuple[str, int]]:
    names = [*manifest.inputs, *(["rgb_to_thermal"] if "thermal" in manifest.inputs else [])]
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


def _make_session(path: Path, data: bytes, settings: SessionSettings) -> "onnxruntime.InferenceSession":
    """Return a session on the first of the providers that works here; warn of each better one that does not.

    Raises StudentError where none works, or where the graph is not accepted.
    """
    wanted: list[str] = []
    for name in settings.providers:
        wanted += ["cuda", "cpu"] if name == "auto" else [name]
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


def _create(path: Path, data: bytes, provider: str, settings: SessionSettings) -> "onnxruntime.InferenceSession":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3  # errors; what matters below that is said by us
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
