"""What ONNX Runtime is told for each provider; on machines without a GPU the options are all that can be looked at."""

import hashlib
import logging
import os
from pathlib import Path

import onnx
import onnxruntime
import pytest
from fixed_student import fixed_model, write_fixed_student
from tiny_student import set_manifest, tiny_manifest, write_tiny_student

from md_perception.inference import providers
from md_perception.inference.cuda_driver import Driver, Gpu
from md_perception.inference.engine_cache import EngineKey
from md_perception.inference.providers import (
    Graph,
    SessionSettings,
    cuda_options,
    engine_key,
    session_options,
    tensorrt_options,
)
from md_perception.inference.session import MAX_SIZES, Student, StudentError

SHAPES = {"rgb": (1, 48, 64, 3), "thermal": (1, 12, 16), "rgb_to_thermal": (1, 3, 3)}
FIXED = Graph("tiny", "fp32", {}, SHAPES, static=True)
DYNAMIC = Graph("tiny", "fp32", {"H": 48, "W": 64, "h": 12, "w": 16}, SHAPES, static=False)
TENSORRT = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


class FakeGpu:
    def gpu(self) -> Gpu:
        return Gpu("NVIDIA Imaginary 9000", "9.1")


class Started:
    """The sessions that were started on TensorRT, which here are of the CPU. fail: messages of the next starts."""

    def __init__(self) -> None:
        self.asked: list[list] = []
        self.graphs: list[Graph] = []
        self.fail: list[str] = []
        self._start = providers._start

    def __call__(self, path: Path, data: bytes, asked: list, settings: SessionSettings, graph: Graph) -> object:
        if asked == ["CPUExecutionProvider"]:
            return self._start(path, data, asked, settings, graph)
        self.asked.append(asked)
        self.graphs.append(graph)
        folder = Path(asked[0][1]["trt_engine_cache_path"])
        if self.fail:
            (folder / "half.engine").write_bytes(b"h") if not list(folder.iterdir()) else None
            raise StudentError(self.fail.pop())
        if not list(folder.glob("*.engine")):
            (folder / "built.engine").write_bytes(f"engine {len(self.asked)}".encode())
        for file in folder.iterdir():
            file.chmod(0o664)  # as if it had been written under umask 002
        session = self._start(path, data, ["CPUExecutionProvider"], settings, graph)
        session.get_providers = lambda: list(TENSORRT)  # type: ignore[method-assign]
        return session


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Started:
    """A machine with TensorRT, as far as this package sees."""
    started = Started()
    monkeypatch.setattr(Driver, "load", classmethod(lambda cls: FakeGpu()))
    monkeypatch.setattr(providers, "why_unavailable", lambda provider: None)
    monkeypatch.setattr(providers, "tensorrt_version", lambda: "10.9.0")
    monkeypatch.setattr(providers, "_start", started)
    monkeypatch.setattr("md_perception.inference.session.DEVICES", {})  # plain runs: there is no device to bind
    return started


def settings(tmp_path: Path, **changes: object) -> SessionSettings:
    return SessionSettings(("tensorrt",), engine_cache=tmp_path / "engines", **changes)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(("precision", "disabled"), [("fp32", "1"), ("fp16", "1"), ("int8", "0")])
def test_int8_students_run_int8_kernels_and_others_have_their_weights_unpacked(precision: str, disabled: str) -> None:
    options = session_options(SessionSettings(threads=3), Graph(precision=precision))
    assert options.get_session_config_entry("session.disable_quant_qdq") == disabled
    assert options.get_session_config_entry("session.load_model_format") == "ONNX"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 3


def test_cuda_is_told_to_compute_fp32_as_fp32_and_to_capture_what_is_fixed() -> None:
    told = cuda_options(SessionSettings(), FIXED)
    assert told == {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": "1"}
    assert cuda_options(SessionSettings(), DYNAMIC)["enable_cuda_graph"] == "0"
    assert cuda_options(SessionSettings(cuda_graphs=False), FIXED)["enable_cuda_graph"] == "0"
    assert cuda_options(SessionSettings(), Graph())["enable_cuda_graph"] == "0"  # a graph that nobody binds


@pytest.mark.parametrize(("precision", "fp16", "int8"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "0", "1")])
def test_tensorrt_computes_in_the_precision_of_the_manifest(precision: str, fp16: str, int8: str) -> None:
    told = tensorrt_options(SessionSettings(), Graph("tiny", precision, {}, SHAPES))
    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == (fp16, int8)
    assert told["trt_engine_cache_enable"] == told["trt_timing_cache_enable"] == "1"
    assert told["trt_cuda_graph_enable"] == "1"
    assert "trt_int8_calibration_table_name" not in told
    assert not any(key.startswith("trt_profile") for key in told)


def test_tensorrt_builds_for_the_sizes_of_the_cameras_alone() -> None:
    told = tensorrt_options(SessionSettings(), Graph("tiny", "fp32", DYNAMIC.dimensions, SHAPES))
    shapes = "rgb:1x48x64x3,rgb_to_thermal:1x3x3,thermal:1x12x16"
    assert [told[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")] == [shapes] * 3


@pytest.mark.parametrize("options", [cuda_options, tensorrt_options])
def test_the_providers_know_every_option(options) -> None:
    # ONNX Runtime refuses an option that it does not know when the provider starts: look into the library for it.
    provider = {cuda_options: "cuda", tensorrt_options: "tensorrt"}[options]
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if not library.is_file():
        pytest.skip("this ONNX Runtime was built without it")
    told = options(SessionSettings(), Graph("tiny", "fp32", DYNAMIC.dimensions, SHAPES))
    if provider == "tensorrt":
        told |= {"trt_engine_cache_path": "", "trt_timing_cache_path": ""}
    known = library.read_bytes()
    assert [name for name in told if b"\0" + name.encode() + b"\0" not in known] == []


def test_a_session_for_one_size_has_no_dimension_left_open(tmp_path: Path) -> None:
    path = write_tiny_student(tmp_path / "mask.onnx", tasks=("segmentation",))
    graph = Graph("tiny", "fp32", {"H": 48, "W": 64, "h": 12, "w": 16}, {}, static=True)
    options = session_options(SessionSettings(), graph, bind_dimensions=True)
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    assert {value.name: value.shape for value in session.get_inputs()} == {
        "rgb": [1, 48, 64, 3],
        "thermal": [1, 12, 16],
        "rgb_to_thermal": [1, 3, 3],
    }


def test_a_session_that_does_not_start_is_an_error_and_one_that_fails_later_may_change_its_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    # Left to itself ONNX Runtime would print the error at the start and go on with the CPU.
    create = onnxruntime.InferenceSession._create_inference_session

    def without_cuda(self: object, asked: list, *others: object) -> None:
        if asked != ["CPUExecutionProvider"]:
            raise RuntimeError("CUDA failure 2: out of memory")
        create(self, asked, *others)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", without_cuda)
    path = write_tiny_student(tmp_path / "tiny.onnx")
    cuda = [("CUDAExecutionProvider", {}), "CPUExecutionProvider"]
    with pytest.raises(StudentError, match=r"tiny\.onnx cannot be loaded by ONNX Runtime .*: CUDA failure 2"):
        providers._start(path, path.read_bytes(), cuda, SessionSettings(), Graph())
    assert capfd.readouterr().out == ""
    session = providers._start(path, path.read_bytes(), ["CPUExecutionProvider"], SessionSettings(), Graph())
    assert session._enable_fallback


def test_the_tensorrt_that_onnx_runtime_loads_is_found_by_its_name() -> None:
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if library.is_file():
        name = providers._tensorrt_library()
        assert name.startswith("libnvinfer.so.")
        assert name.encode() in library.read_bytes()


@pytest.mark.parametrize(("number", "version"), [(8601, "8.6.1"), (100900, "10.9.0"), (101401, "10.14.1")])
def test_versions_of_tensorrt_are_read_as_nvidia_writes_them(
    number: int, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        @staticmethod
        def getInferLibVersion() -> int:
            return number

    monkeypatch.setattr(providers.ctypes, "CDLL", lambda name: Library)
    assert providers.tensorrt_version.__wrapped__() == version


# ------------------------------------------------------------------------------------------------ TensorRT's engine


def test_an_engine_is_built_once_with_a_line_and_then_loaded(
    tensorrt: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write_fixed_student(tmp_path / "fixed.onnx")
    student = Student.load(path, settings(tmp_path))
    assert student.provider == "TensorrtExecutionProvider"
    assert [name if isinstance(name, str) else name[0] for name in tensorrt.asked[0]] == list(TENSORRT)
    assert tensorrt.asked[0][1][1]["use_tf32"] == "0"
    (folder,) = (tmp_path / "engines").iterdir()
    assert sorted(os.listdir(folder)) == ["built.engine", "key.json"]
    assert caplog.text.count("building the TensorRT engine for student") == 1
    assert "rgb [1, 48, 64, 3]" in caplog.text

    Student.load(path, settings(tmp_path))
    assert tensorrt.asked[1][0][1]["trt_engine_cache_path"] == str(folder)
    assert [file.stat().st_mode & 0o777 for file in folder.iterdir()] == [0o600, 0o600]
    assert caplog.text.count("building the TensorRT engine for student") == 1


def test_an_engine_that_does_not_load_is_built_anew(
    tensorrt: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    Student.load(path, settings(tmp_path))
    tensorrt.fail = ["TensorRT EP could not deserialize engine from cache"] * 2
    assert Student.load(path, settings(tmp_path)).provider == "TensorrtExecutionProvider"
    (folder,) = (tmp_path / "engines").iterdir()
    assert (folder / "built.engine").read_bytes() == b"engine 4"
    assert "so it is built anew: TensorRT EP could not deserialize" in caplog.text


def test_a_build_that_fails_leaves_no_engine_and_the_next_provider_runs(
    tensorrt: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    tensorrt.fail = ["out of memory"] * 2
    student = Student.load(path, SessionSettings(("tensorrt", "cpu"), engine_cache=tmp_path / "engines"))
    assert os.listdir(tmp_path / "engines") == []
    assert student.unavailable[0].startswith("TensorrtExecutionProvider: ")
    assert "out of memory" in caplog.text


def test_an_engine_that_cannot_be_replaced_stays(tensorrt: Started, tmp_path: Path) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    Student.load(path, settings(tmp_path))
    tensorrt.fail = ["out of memory"] * 4
    with pytest.raises(StudentError, match="out of memory"):
        Student.load(path, settings(tmp_path))
    (folder,) = (tmp_path / "engines").iterdir()
    assert (folder / "built.engine").read_bytes() == b"engine 1"


def test_what_cannot_be_a_cuda_graph_starts_without(
    tensorrt: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    tensorrt.fail = ["all compute graph nodes have not been partitioned to the TensorrtExecutionProvider"]
    assert Student.load(path, settings(tmp_path)).provider == "TensorrtExecutionProvider"
    assert [asked[0][1]["trt_cuda_graph_enable"] for asked in tensorrt.asked] == ["1", "0"]
    assert caplog.text.count("does not start as a CUDA graph, so it is tried without: all compute graph nodes") == 1


def test_cuda_graphs_are_no_reason_to_build_an_engine_anew(tensorrt: Started, tmp_path: Path) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    for graphs in (True, False):
        Student.load(path, settings(tmp_path, cuda_graphs=graphs))
    assert len(list((tmp_path / "engines").iterdir())) == 1
    assert [asked[0][1]["trt_cuda_graph_enable"] for asked in tensorrt.asked] == ["1", "0"]


def test_the_key_of_an_engine_says_all_that_it_depends_on(tensorrt: Started) -> None:
    options = {"trt_fp16_enable": "1", "trt_cuda_graph_enable": "1"}
    assert engine_key(b"a student", options, Graph("tiny", "fp16", {}, SHAPES)) == EngineKey(
        student="tiny",
        file_sha256=hashlib.sha256(b"a student").hexdigest(),
        precision="fp16",
        shapes=SHAPES,
        options={"trt_fp16_enable": "1"},
        onnxruntime=onnxruntime.__version__,
        tensorrt="10.9.0",
        gpu="NVIDIA Imaginary 9000",
        compute_capability="9.1",
    )


def test_a_camera_of_another_size_has_an_engine_of_its_own(tensorrt: Started, tmp_path: Path) -> None:
    path = write_tiny_student(tmp_path / "mask.onnx", tasks=("segmentation",))
    student = Student.load(path, settings(tmp_path, rgb_size=(64, 48), thermal_size=(16, 12)))
    student.warm_up((64, 48), (16, 12))
    assert len(tensorrt.asked) == 1
    student.warm_up((32, 24), (16, 12))
    assert [graph.shapes["rgb"] for graph in tensorrt.graphs] == [(1, 48, 64, 3), (1, 24, 32, 3)]
    assert tensorrt.asked[1][0][1]["trt_profile_opt_shapes"].startswith("rgb:1x24x32x3,")
    assert len(list((tmp_path / "engines").iterdir())) == 2
    student.warm_up((64, 48), (16, 12))  # two cameras take turns
    student.warm_up((32, 24), (16, 12))
    assert len(tensorrt.asked) == 2


def test_detections_of_any_number_are_not_for_tensorrt(tensorrt: Started, tmp_path: Path) -> None:
    path = write_tiny_student(tmp_path / "tiny.onnx")
    with pytest.raises(StudentError, match="TensorRT would build engines while driving; export it with --fixed"):
        Student.load(path, settings(tmp_path))
    assert tensorrt.asked == []
    assert not (tmp_path / "engines").exists()


def test_engines_that_cannot_be_trusted_are_not_loaded(tensorrt: Started, tmp_path: Path) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    Student.load(path, settings(tmp_path))
    (tmp_path / "engines").chmod(0o777)
    with pytest.raises(StudentError, match=r"fixed\.onnx cannot be loaded: engines in .* cannot be trusted"):
        Student.load(path, settings(tmp_path))
    assert len(tensorrt.asked) == 1


def test_an_engine_is_of_one_file_to_the_byte(tensorrt: Started, tmp_path: Path) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    Student.load(path, settings(tmp_path))
    model = onnx.load(path)
    model.producer_version = "2"
    onnx.save(model, path)
    Student.load(path, settings(tmp_path))
    assert len(list((tmp_path / "engines").iterdir())) == 2


@pytest.mark.parametrize(
    ("node", "domain", "problem"),
    [
        ("EPContext", "com.microsoft", "custom operators of com.microsoft"),
        ("EPContext", "", "operators that no student"),
    ],
)
def test_an_engine_inside_a_student_file_is_refused(
    node: str, domain: str, problem: str, tensorrt: Started, tmp_path: Path
) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    model = onnx.load(path)
    model.graph.node.append(
        onnx.helper.make_node(node, [], ["unused"], domain=domain, embed_mode=0, ep_cache_context="/tmp/evil.engine")
    )
    if domain:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    onnx.save(model, path)
    with pytest.raises(StudentError, match=problem):
        Student.load(path, settings(tmp_path))
    assert tensorrt.asked == []


def test_sessions_of_sizes_that_are_not_used_for_longest_are_given_up(
    tensorrt: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiny_student(tmp_path / "mask.onnx", tasks=("segmentation",))
    student = Student.load(path, settings(tmp_path, rgb_size=(64, 48), thermal_size=(16, 12)))

    def made(width: int) -> int:
        before = len(tensorrt.asked)
        student.warm_up((width, 48), (16, 12))
        return len(tensorrt.asked) - before

    others = range(65, 64 + MAX_SIZES)
    assert [made(width) for width in others] == [1] * (MAX_SIZES - 1)
    assert made(64) == 0  # made first, and used last
    assert made(100) == 1
    assert [made(width) for width in (64, *others[1:])] == [0] * (MAX_SIZES - 1)
    assert "more than" not in caplog.text
    assert made(65) == 1  # in whose place 100 came
    assert made(100) == 1
    assert caplog.text.count(f"gets images of more than {MAX_SIZES} sizes in turns") == 1
    assert len(student._services) == MAX_SIZES


@pytest.mark.parametrize(("precision", "warned"), [("int8", True), ("fp16", False)])
def test_int8_which_is_for_cpus_is_warned_of_on_tensorrt(
    precision: str, warned: bool, tensorrt: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = fixed_model()
    set_manifest(model, tiny_manifest(precision=precision))
    onnx.save(model, tmp_path / "student.onnx")
    assert Student.load(tmp_path / "student.onnx", settings(tmp_path)).provider == "TensorrtExecutionProvider"
    assert ("made for another processor: TensorrtExecutionProvider runs int8" in caplog.text) == warned
