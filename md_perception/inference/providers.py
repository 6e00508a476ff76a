"""ONNX Runtime's execution providers: which work here, what each is told, and sessions on the first that does.

What is said of CUDA and TensorRT comes from their pages in ONNX Runtime's documentation, and *was not run* on a GPU.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import io
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime

from md_perception.inference import engine_cache
from md_perception.inference.cuda_driver import CudaError, Driver
from md_perception.inference.engine_cache import EngineCacheError, EngineKey
from md_perception.inference.student_file import StudentError
from md_perception.results import Size

logger = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Short names of ONNX Runtime's execution providers; `auto` is CUDA where it works, else CPU."""

MAX_FOLDED_BYTES = 128 * 1024 * 1024
"""Largest constant that ONNX Runtime computes at load: the fp32 of compressed weights fits, a memory bomb does not."""


_CPU = [PROVIDERS["cpu"]]
_LAUNCH = "trt_cuda_graph_enable"


@dataclass(frozen=True)
class SessionSettings:
    """How ONNX Runtime runs the student.

    providers: in order of preference, the first that works here is taken: `auto`, `cpu`, `cuda`, `tensorrt` or
        ONNX Runtime's own names. `auto` leaves TensorRT out, because its first start builds engines for minutes.
    threads: of one inference on the CPU; 0: one per physical core.
    spin: let idle threads of the CPU provider wait busily for the next operator: a little faster where the machine is
        ours alone, slower where the cores are shared with the camera drivers.
    max_batch: most pairs, of threads that share the student and find it busy, that are run at once; 1: none are, 0: 1
        on a CPU, session.AUTO_BATCH on a GPU.
    cuda_graphs: launch a student of fixed shapes (`export --fixed`) on a GPU as one graph.
    engine_cache: folder of TensorRT's engines; None: `engine_cache.default_folder()`.
    rgb_size, thermal_size: (width, height) px that TensorRT's engine is built for at load; None: those of training.
    """

    providers: tuple[str, ...] = ("auto",)
    threads: int = 0
    spin: bool = False
    max_batch: int = 0
    cuda_graphs: bool = True
    engine_cache: Path | None = None
    rgb_size: Size | None = None
    thermal_size: Size | None = None

    def __post_init__(self) -> None:
        known = {"auto", *PROVIDERS, *PROVIDERS.values()}
        unknown = [name for name in self.providers if name not in known]
        if unknown or not self.providers:
            raise ValueError(f"unknown execution providers {unknown}: use one of {', '.join(sorted(known))}")
        if self.threads < 0:
            raise ValueError(f"threads must be 0 (one per core) or more, got {self.threads}")
        if self.max_batch < 0:
            raise ValueError(f"max_batch must be 0 (by the provider) or more, got {self.max_batch}")

    @property
    def wanted(self) -> list[str]:
        """ONNX Runtime's names of the providers in order of preference, with what `auto` stands for."""
        names = [one for name in self.providers for one in (["cuda", "cpu"] if name == "auto" else [name])]
        return [PROVIDERS.get(name, name) for name in names]


_ILL_SUITED = {PROVIDERS["cpu"]: ("fp16",), PROVIDERS["cuda"]: ("int8",), PROVIDERS["tensorrt"]: ("int8",)}
"""Precisions that a provider computes only by converting to and from fp32. TensorRT's int8 has no zero points but 0;
`export --precision int8`, which is for CPUs, needs others, and TensorRT leaves such operators to CUDA."""

DEFAULTS = SessionSettings()


@dataclass(frozen=True)
class Graph:
    """What is known of a graph beside its bytes.

    name, precision: of the manifest. dimensions: sizes of named dimensions that the session is made for. shapes: of
    the inputs with them. static: whether every input and output has a known shape then.
    """

    name: str = "graph"
    precision: str = "fp32"
    dimensions: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    static: bool = True


def make_session(
    path: Path, data: bytes, settings: SessionSettings, graph: Graph = Graph()
) -> "onnxruntime.InferenceSession":
    """Return a session on the first of the providers that works here; warn of each better one that does not.

    Raises StudentError where none works, or where the graph is not accepted.
    """
    wanted = settings.wanted
    failures: list[str] = []
    for provider in wanted:
        reason = why_unavailable(provider)
        if reason is None:
            try:
                session = _create(path, data, provider, settings, graph)
            except StudentError as error:  # the graph, or the provider: out of memory, a GPU that is too old
                if provider == wanted[-1]:
                    raise
                reason = str(error)
            else:
                if session.get_providers()[0] == provider:
                    for failure in failures:
                        logger.warning("%s; the student runs on %s", failure, provider)
                    if graph.precision in _ILL_SUITED.get(provider, ()):
                        logger.warning(
                            "student %s is made for another processor: %s runs %s slower than fp32, export it in fp32",
                            path,
                            provider,
                            graph.precision,
                        )
                    return session
                reason = "ONNX Runtime could not start it (its message is above): install the libraries that it names"
        failures.append(f"{provider} does not work here: {reason}")
    raise StudentError(f"student {path} cannot be loaded: {'; '.join(failures)}")


def passed_over(settings: SessionSettings, in_use: str) -> tuple[str, ...]:
    """Say of each provider that was preferred to the one in use why it was not taken."""
    names = settings.wanted
    better = names[: names.index(in_use)] if in_use in names else names
    return tuple(f"{name}: {why_unavailable(name) or 'it failed to start, the log says how'}" for name in better)


def why_unavailable(provider: str) -> str | None:
    """Say why a provider cannot be used on this machine; None: ONNX Runtime may try.

    Asked first, because ONNX Runtime would print errors of many lines and go on with the CPU.
    """
    if provider not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime ({onnxruntime.__version__}) was built without it: install onnxruntime-gpu"
    if provider not in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]):
        return None
    try:
        Driver.load().gpu()
    except CudaError as error:
        return str(error)
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: finds the CUDA libraries that pip installed
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, needed or not
            onnxruntime.preload_dlls()
    if provider == PROVIDERS["tensorrt"] and tensorrt_version() is None:
        return f"TensorRT ({_tensorrt_library()}) is not installed: install the version that this ONNX Runtime names"
    return None


@cache
def tensorrt_version() -> str | None:
    """Return the version of the TensorRT that ONNX Runtime will load, and load it; None where there is none."""
    library = _tensorrt_library()
    try:
        wheel = importlib.util.find_spec("tensorrt_libs")  # of pip's tensorrt, which is on no search path
    except (ImportError, ValueError):
        wheel = None
    folders = [f"{folder}/" for folder in (wheel.submodule_search_locations or () if wheel else ())]
    for folder in ("", *folders):
        try:
            number = ctypes.CDLL(f"{folder}{library}").getInferLibVersion()
            ctypes.CDLL(f"{folder}{library.replace('libnvinfer', 'libnvonnxparser')}")  # ONNX Runtime needs it too
        except (OSError, AttributeError):
            continue
        # 8.6.1 is 8601, 10.9.0 is 100900 (NvInferVersion.h)
        thousands = 10_000 if number >= 10_000 else 1000
        return f"{number // thousands}.{number % thousands // 100}.{number % 100}"
    return None


@cache
def _tensorrt_library() -> str:
    """Return the file name of the TensorRT that ONNX Runtime was linked with: the major version is its own."""
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    with contextlib.suppress(OSError):
        found = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes())
        if found:
            return found.group().decode()
    return "libnvinfer.so"


def session_options(
    settings: SessionSettings, graph: Graph = Graph(), *, bind_dimensions: bool = False
) -> "onnxruntime.SessionOptions":
    """Return the options of a session, whatever its provider.

    bind_dimensions: make it for the sizes of the graph alone. What else there is to choose was measured and left as
    it is by default: `python -m md_perception.inference tune`, docs/performance.md.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3  # errors; what matters below that is said by us
    # Left to itself ONNX Runtime takes a file with "ORTM" at byte 4 for its own format, which nobody has checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(MAX_FOLDED_BYTES))
    # Compressed weights (int8 + DequantizeLinear) are folded to fp32 once at load instead of dequantised every frame;
    # where the arithmetic itself is int8, the pairs of QuantizeLinear and DequantizeLinear are what its kernels need.
    options.add_session_config_entry("session.disable_quant_qdq", "0" if graph.precision == "int8" else "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    if bind_dimensions:
        for name, pixels in graph.dimensions.items():
            options.add_free_dimension_override_by_name(name, pixels)
    return options


def cuda_options(settings: SessionSettings, graph: Graph) -> dict[str, str]:
    """Return what the CUDA provider is told."""
    return {
        "use_tf32": "0",  # it would be reported as fp32 and is not
        # Times every algorithm of every convolution in the first run of a size: seconds, which the warm-up pays.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "enable_cuda_graph": "1" if settings.cuda_graphs and _capturable(graph) else "0",
    }


def tensorrt_options(settings: SessionSettings, graph: Graph) -> dict[str, str]:
    """Return what the TensorRT provider is told, without the paths of its caches."""
    options = {
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_dump_ep_context_model": "0",
        "trt_fp16_enable": "1" if graph.precision == "fp16" else "0",
        # Scales come from the file's QuantizeLinear (see _ILL_SUITED); without them a calibration table is needed.
        "trt_int8_enable": "1" if graph.precision == "int8" else "0",
        _LAUNCH: "1" if settings.cuda_graphs and _capturable(graph) else "0",
    }
    if graph.dimensions:
        # Least, best and greatest are one. With a profile TensorRT also refuses at the start any part whose shapes
        # it does not know, where it would otherwise build the engine anew while driving.
        shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sorted(graph.shapes.items()))
        options |= {f"trt_profile_{which}_shapes": shapes for which in ("min", "opt", "max")}
    return options


def _capturable(graph: Graph) -> bool:
    """Whether a CUDA graph can be asked for: fixed shapes, and buffers that `runners.BoundRunner` binds to it."""
    return graph.static and bool(graph.shapes)


def _create(
    path: Path, data: bytes, provider: str, settings: SessionSettings, graph: Graph
) -> "onnxruntime.InferenceSession":
    if provider == PROVIDERS["tensorrt"]:
        return _create_with_engine(path, data, settings, graph)
    if provider != PROVIDERS["cuda"]:
        return _start(path, data, [provider], settings, graph)
    return _capturing(
        lambda settings: _start(path, data, [(provider, cuda_options(settings, graph)), *_CPU], settings, graph),
        settings,
        graph,
    )


def _create_with_engine(
    path: Path, data: bytes, settings: SessionSettings, graph: Graph
) -> "onnxruntime.InferenceSession":
    """Return a session on TensorRT with its engine from the cache, or built into it."""
    if not graph.static:
        raise StudentError(
            f"student {path} has shapes that are known only when it runs, like any number of detections: TensorRT "
            "would build engines while driving; export it with --fixed"
        )
    key = engine_key(data, tensorrt_options(settings, graph), graph)
    root = settings.engine_cache or engine_cache.default_folder()
    what = f"student {path} ({', '.join(f'{name} {list(shape)}' for name, shape in sorted(graph.shapes.items()))})"

    def start(folder: Path) -> "onnxruntime.InferenceSession":
        caches = {"trt_engine_cache_path": str(folder), "trt_timing_cache_path": str(folder)}
        beside = cuda_options(replace(settings, cuda_graphs=False), graph)  # for what TensorRT leaves, if anything
        return _capturing(
            lambda settings: _start(
                path,
                data,
                [
                    (PROVIDERS["tensorrt"], tensorrt_options(settings, graph) | caches),
                    (PROVIDERS["cuda"], beside),
                    *_CPU,
                ],
                settings,
                graph,
            ),
            settings,
            graph,
        )

    try:
        folder = engine_cache.find(root, key)
        if folder is not None:
            try:
                session = start(folder)
                engine_cache.seal(folder)
                return session
            except StudentError as error:
                logger.warning("the TensorRT engine in %s cannot be loaded, so it is built anew: %s", folder, error)
        with engine_cache.building(root, key) as folder, engine_cache.announced(what, root / key.folder):
            return start(folder)
    except EngineCacheError as error:
        raise StudentError(f"student {path} cannot be loaded: {error}") from None
    except OSError as error:
        raise StudentError(f"student {path}: no engine can be kept in {root}: {error.strerror or error}") from None


def _capturing(
    start: "Callable[[SessionSettings], onnxruntime.InferenceSession]", settings: SessionSettings, graph: Graph
) -> "onnxruntime.InferenceSession":
    """Start a session with a CUDA graph where that is asked for, else without.

    ONNX Runtime refuses one for a graph that is not as a whole on the provider.
    """
    if settings.cuda_graphs and _capturable(graph):
        try:
            return start(settings)
        except StudentError as error:
            logger.warning("student %s does not start as a CUDA graph, so it is tried without: %s", graph.name, error)
    return start(replace(settings, cuda_graphs=False))


def engine_key(data: bytes, options: Mapping[str, str], graph: Graph) -> EngineKey:
    """Return what the engine of a student depends on, on this machine. Raises StudentError without a GPU.

    options: of `tensorrt_options`; how the engine is launched is no part of it.
    """
    try:
        gpu = Driver.load().gpu()
    except CudaError as error:
        raise StudentError(str(error)) from None
    return EngineKey(
        student=graph.name,
        file_sha256=hashlib.sha256(data).hexdigest(),
        precision=graph.precision,
        shapes=dict(graph.shapes),
        options={name: value for name, value in options.items() if name != _LAUNCH},
        onnxruntime=onnxruntime.__version__,
        tensorrt=tensorrt_version() or "unknown",
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
    )


def _start(
    path: Path, data: bytes, providers: list[Any], settings: SessionSettings, graph: Graph
) -> "onnxruntime.InferenceSession":
    # A change of size costs a GPU a new session; the CPU provider gains nothing by knowing it.
    options = session_options(settings, graph, bind_dimensions=graph.static and providers != _CPU)
    try:
        # That a provider does not start is for us to say, and to try the next; one that fails in a run gives way to the
        # next by itself.
        session = onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)
        session.enable_fallback()
        return session
    except Exception as error:  # ONNX Runtime has a dozen types without a common base of their own
        version = onnxruntime.__version__
        raise StudentError(f"student {path} cannot be loaded by ONNX Runtime {version}: {error}") from None
