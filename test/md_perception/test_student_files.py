"""Student files from somebody else: what ONNX Runtime must not see is refused before it does, quickly, and in words."""

import json
import os
import re
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_student import tiny_manifest, tiny_model, write_tiny_student

from md_perception.inference import onnx_file, session
from md_perception.inference.manifest import MANIFEST_KEY, Manifest, ManifestError
from md_perception.inference.onnx_file import OnnxFile, OnnxFileError
from md_perception.inference.session import OPERATORS, SessionSettings, Student, StudentError
from md_perception.inference.student_file import DEMO_STUDENT

CPU = SessionSettings(providers=("cpu",), threads=1)
BRANCH = helper.make_graph([], "branch", [], [])


@pytest.fixture
def never_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime, which must not get to see the file."""

    def fail(*arguments: object) -> None:
        pytest.fail("the file has come as far as ONNX Runtime")

    monkeypatch.setattr(session, "make_session", fail)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


# ------------------------------------------------------------------------------------------- contents of the graph


def subgraph(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.CopyFrom(BRANCH)


def subgraphs(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS).graphs.add().CopyFrom(BRANCH)


def control_flow(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", "yes"], ["x"], body=BRANCH))


def regular_expression(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("RegexFullMatch", ["x"], ["y"], pattern="(a*)*b"))


def compiled_engine(model: onnx.ModelProto) -> None:
    node = helper.make_node("EPContext", [], ["x"], domain="com.microsoft", embed_mode=0, ep_cache_context="../e.bin")
    model.graph.node.append(node)


def imported_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example\x1b[2J", 1))


def own_function(model: onnx.ModelProto) -> None:
    inner = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], inner, [helper.make_opsetid("", 17)]))


def sparse_weights(model: onnx.ModelProto) -> None:
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, int))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))


def sparse_attribute(model: onnx.ModelProto) -> None:
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, int))
    sparse = helper.make_sparse_tensor(values, indices, [2**40])
    model.graph.node.append(helper.make_node("Constant", [], ["x"], sparse_value=sparse))


def training_steps(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(BRANCH)


def typed_values(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]))


def texts(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.STRING))


def sequence_type(model: onnx.ModelProto) -> None:
    value = model.graph.value_info.add(name="x")
    value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def batches_that_cannot_be(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("GatherND", ["heat", "row"], ["x"], batch_dims=-2))


def pads_that_overflow(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("MaxPool", ["heat"], ["x"], kernel_shape=[1, 1], pads=[0, 2**62, 0, 0]))


def missing_input(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Max", ["heat", "", "heat"], ["x"]))


def more_bytes_than_it_says(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[2, 2], raw_data=bytes(20)))


def fewer_bytes_than_it_says(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[2**20, 2**20], raw_data=bytes(4)))


def negative_dimension(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[-1, 4], raw_data=bytes(16)))


def many_dimensions(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[1] * 5000, raw_data=bytes(4)))


@pytest.mark.usefixtures("never_reached")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (subgraph, "has subgraphs, which no student has; `python -m md_training export` writes files without them"),
        (subgraphs, "has subgraphs, which no student has"),
        (control_flow, "has operators that no student has: Loop; `python -m md_training export` writes"),
        (regular_expression, "has operators that no student has: RegexFullMatch"),
        (compiled_engine, r"needs custom operators of com\.microsoft: they are not loaded"),
        (imported_domain, r"needs custom operators of 'com\.example\\x1b\[2J': they"),
        (own_function, "has functions of its own, which no student has"),
        (sparse_weights, "has sparse tensors, which no student has"),
        (sparse_attribute, "has sparse tensors, which no student has"),
        (training_steps, "has training steps, which no student has"),
        (typed_values, "has tensors that are not stored as raw bytes, which no student has"),
        (texts, "has tensors of type 8, which no student has"),
        (sequence_type, "has sequences, which no student has"),
        (batches_that_cannot_be, "has a GatherND whose 'batch_dims' is -2, not within 0 and 7: the file is damaged"),
        (missing_input, "leaves out inputs of Max: the file is damaged"),
        (pads_that_overflow, "has a MaxPool whose 'pads' is 4611686018427387904, not within"),
        (more_bytes_than_it_says, r"its tensor 'w' of \[2, 2\] float32 has 20 bytes"),
        (fewer_bytes_than_it_says, r"its tensor 'w' of \[1048576, 1048576\] float32 has 4 bytes"),
        (negative_dimension, "its tensor 'w' has dimensions that cannot be"),
        (many_dimensions, "its tensor 'w' has dimensions that cannot be"),
    ],
)
def test_what_no_student_has_is_refused_with_its_name(
    change: Callable[[onnx.ModelProto], None], sentence: str, tmp_path: Path
) -> None:
    model = tiny_model()
    change(model)
    with pytest.raises(StudentError, match=rf"hostile\.onnx .*{sentence}"):
        Student.load(save(model, tmp_path / "hostile.onnx"))


@pytest.mark.usefixtures("never_reached")
def test_external_data_hidden_behind_a_location_that_protobuf_would_cut_to_one_is_found(tmp_path: Path) -> None:
    # TensorProto.data_location as the varint 2^32 + 1, of which protobuf keeps 32 bits: EXTERNAL.
    location = varint(14 << 3) + varint(2**32 + 1)
    tensor = message(8, b"hidden") + varint(2 << 3) + varint(1) + location
    graph = tiny_model().graph.SerializeToString() + message(5, tensor)
    model = tiny_model()
    model.ClearField("graph")
    (tmp_path / "hidden.onnx").write_bytes(model.SerializeToString() + message(7, graph))
    with pytest.raises(StudentError, match=r"in other files .the first is 'hidden'"):
        Student.load(tmp_path / "hidden.onnx")


@pytest.mark.usefixtures("never_reached")
def test_external_data_of_a_constant_are_found(tmp_path: Path) -> None:
    model = tiny_model()
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32), "hidden"))
    onnx.external_data_helper.set_external_data(constant.attribute[0].t, "../elsewhere")
    model.graph.node.append(constant)
    (tmp_path / "hidden.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StudentError, match=r"in other files .the first is 'hidden'"):
        Student.load(tmp_path / "hidden.onnx")


@pytest.mark.parametrize("number", [7, 14])
def test_a_field_that_is_there_twice_is_not_left_to_the_other_parser(number: int) -> None:
    # protobuf merges two graphs, and of two equal keys in the metadata nobody knows which one counts.
    model = tiny_model()
    extra = model.graph.SerializeToString() if number == 7 else model.metadata_props[0].SerializeToString()
    with pytest.raises(OnnxFileError, match=r"occurs twice|have two entries 'md_perception\.manifest'"):
        OnnxFile.parse(model.SerializeToString() + message(number, extra))


def test_the_format_of_onnx_runtime_itself_cannot_pass_for_a_student(tmp_path: Path) -> None:
    # ONNX Runtime takes any bytes with "ORTM" at byte 4 for its own format, of which our checks see nothing; a comment
    # at the beginning puts it there.
    data = message(6, b"--ORTM" + b"-" * 40) + tiny_model().SerializeToString()
    assert data[4:8] == b"ORTM"
    with pytest.raises(Exception, match="ORT model verification failed"):
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    (tmp_path / "both.onnx").write_bytes(data)
    student = Student.load(tmp_path / "both.onnx", CPU)

    assert student.warm_up((64, 48), (16, 12)) > 0


def test_the_demo_student_and_its_operators_are_accepted() -> None:
    file = OnnxFile.parse(DEMO_STUDENT.read_bytes())
    assert file.foreign == set()
    assert {operator for _, operator in file.operators} <= OPERATORS
    assert file.weights_sha256() == Manifest.from_metadata(file.metadata, "demo").weights_sha256


# ------------------------------------------------------------------------------------------------------ weights


def test_weights_that_were_changed_after_the_export_are_refused(tmp_path: Path) -> None:
    path = write_tiny_student(tmp_path / "tiny.onnx")
    data = path.read_bytes()
    shares = (np.array([1, 0.5, 0.25], np.float32) / np.float32(255)).tobytes()
    assert data.count(shares) == 1
    path.write_bytes(data.replace(shares, shares[:-1] + bytes([shares[-1] ^ 1])))  # one bit
    with pytest.raises(StudentError, match=r"tiny\.onnx: its weights do not have the SHA-256 of its manifest.*copy it"):
        Student.load(path)


def test_a_weight_under_another_name_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    for node in model.graph.node:
        node.input[:] = [{"red": "green", "green": "red"}.get(name, name) for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = {"red": "green", "green": "red"}.get(tensor.name, tensor.name)
    with pytest.raises(StudentError, match="SHA-256"):
        Student.load(save(model, tmp_path / "renamed.onnx"))


# -------------------------------------------------------------------------------------------- size, time, memory


def empty_nodes() -> bytes:
    return message(7, message(1, b"") * 8_000_000)


def empty_dimensions() -> bytes:
    shape = message(1, b"") * 8_000_000
    return message(7, message(13, message(2, message(1, message(2, shape)))))


def packed_dims() -> bytes:
    return message(7, message(5, message(1, bytes(16_000_000))))


def packed_floats() -> bytes:
    return message(7, message(1, message(5, message(7, bytes(16_000_000)))))


def many_entries() -> bytes:
    return b"".join(message(14, message(1, str(i).encode())) for i in range(101_000))


@pytest.mark.parametrize("bomb", [empty_nodes, empty_dimensions, packed_dims, packed_floats, many_entries])
def test_a_protobuf_bomb_is_refused_soon(bomb: Callable[[], bytes]) -> None:
    # 16 MB of fields of two bytes would become gigabytes of objects.
    data = bomb()
    start = time.process_time()
    with pytest.raises(OnnxFileError, match="has more than 200000 fields"):
        OnnxFile.parse(data)
    assert time.process_time() - start < 5  # 0.2 s on an idle machine


def test_a_protobuf_bomb_is_refused_in_little_memory() -> None:
    data = empty_nodes()
    tracemalloc.start()
    try:
        with pytest.raises(OnnxFileError):
            OnnxFile.parse(data)
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()


def test_a_graph_of_too_many_operators_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_NODES", 5)
    with pytest.raises(OnnxFileError, match="operators: a student has at most 5"):
        OnnxFile.parse(tiny_model().SerializeToString())


def test_a_pipe_and_a_device_are_refused_instead_of_read_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", Path("/dev/zero")):
        with pytest.raises(StudentError, match="cannot be read: it is no plain file"):
            Student.load(path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no space
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StudentError, match=r"huge\.onnx is larger than"):
        Student.load(tmp_path / "huge.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_more_detections_than_can_be_true_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    monkeypatch.setattr(session, "MAX_DETECTIONS", 2)
    with pytest.raises(StudentError, match="gave 3 detections: that cannot be true"):
        student.warm_up((64, 48), (16, 12))


def test_outputs_of_other_shapes_than_declared_are_an_error_of_the_student(tmp_path: Path) -> None:
    model = tiny_model(thermal=False, tasks=("detection",))
    for node in model.graph.node:
        if node.output[0] == "scores":
            node.output[0] = "three_scores"
    model.graph.node.append(helper.make_node("ReduceMax", ["three_scores"], ["scores"], keepdims=0))  # a scalar
    student = Student.load(save(model, tmp_path / "scalar.onnx"), CPU)
    with pytest.raises(StudentError, match="gave results that contradict each other"):
        student.warm_up((64, 48))


# ------------------------------------------------------------------------------------------------------- manifest


def manifest_with(**changes: object) -> dict[str, str]:
    return {MANIFEST_KEY: json.dumps(json.loads(tiny_manifest().model_dump_json()) | changes)}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": ".."}, "name: String should match pattern"),
        ({"name": "../../etc/cron.d/x"}, "name: String should match"),
        ({"name": ".hidden"}, "name: String should match"),
        ({"name": "-rf"}, "name: String should match"),
        ({"name": "a\n"}, "name: String should match"),
        ({"run_id": "x\n[ERROR] [brakes]: off"}, "run_id: Value error, must be one line of printable characters"),
        ({"training_data": "\x1b]0;title\x07"}, "training_data: Value error, must be one line"),
        ({"detection_classes": ["person", "a\nb", "c"]}, r"detection_classes\.1: Value error, must be one line"),
        ({"detection_classes": [str(i) for i in range(300)]}, "detection_classes: Tuple should have at most 256"),
        ({"metrics": {"recall": float("nan")}}, r"metrics\.recall: Input should be a finite number"),
        ({"metrics": {str(i): 0.0 for i in range(1001)}}, "metrics: Dictionary should have at most 1000"),
        ({"score_threshold": "0.5"}, "score_threshold: Input should be a valid number"),
        ({"seen_real_images": 1}, "seen_real_images: Input should be a valid boolean"),
        ({"input_size": [10**9, 10**9]}, r"input_size\.0: Input should be less than or equal to 16384"),
        ({"ev\x1b[2Jil": 1}, r"ev\\x1b\[2Jil: Extra inputs are not permitted"),
        ({"weights_sha256": "0" * 63}, "weights_sha256: String should match"),
    ],
)
def test_a_manifest_is_read_strictly(changes: dict, problem: str) -> None:
    with pytest.raises(ManifestError, match=rf"s\.onnx: its manifest is not valid: {problem}") as error:
        Manifest.from_metadata(manifest_with(**changes), "s.onnx")
    assert str(error.value).isprintable()


def test_a_manifest_comes_back_as_it_was_written() -> None:
    manifest = tiny_manifest(metrics={"recall": 1.0}, split_hashes={"test": "0" * 64}, teacher_run_ids=("a", "b"))
    assert Manifest.from_metadata(manifest.to_metadata(), "s.onnx") == manifest


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "null", "1e999", '"' + "x" * 2_000_000])
def test_json_bombs_are_no_manifests(text: str) -> None:
    with pytest.raises(ManifestError, match="manifest"):
        Manifest.from_metadata({MANIFEST_KEY: text}, "s.onnx")


# ----------------------------------------------------------------------------------------------------------- fuzz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@given(st.data())
def test_damaged_students_are_refused_or_run_but_never_end_the_process(folder: Path, data: st.DataObject) -> None:
    content = bytearray(tiny_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    (folder / "damaged.onnx").write_bytes(content)
    try:
        student = Student.load(folder / "damaged.onnx", CPU)
        student.warm_up((64, 48), (16, 12))
    except (StudentError, ManifestError) as error:
        assert str(folder) in str(error)  # noqa: PT017 (the damage may also be harmless)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(list(Manifest.model_fields)) | st.text(), x),
        max_leaves=20,
    )
)
def test_any_json_is_a_manifest_or_a_manifest_error(value: object) -> None:
    with pytest.raises(ManifestError, match="not valid"):
        Manifest.from_metadata({MANIFEST_KEY: json.dumps(value)}, "s.onnx")


FUZZ = """
import random, signal, sys
from pathlib import Path
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from tiny_student import set_manifest, tiny_manifest, tiny_model
from md_perception.inference.manifest import ManifestError
from md_perception.inference.session import OPERATORS, SessionSettings, Student, StudentError
from md_perception.inference.student_file import DEMO_STUDENT

onnxruntime.set_default_logger_severity(4)
refused = ran = 0
folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for seed in range(first, first + count):
    rng, model = random.Random(seed), tiny_model()
    for _ in range(rng.randint(1, 3)):
        node = rng.choice(model.graph.node)
        names = [name for other in model.graph.node for name in other.output]
        names += [tensor.name for tensor in model.graph.initializer]
        match rng.randrange(5):
            case 0:
                node.op_type = rng.choice(sorted(OPERATORS))
            case 1:
                node.input[rng.randrange(len(node.input))] = rng.choice(names)
            case 2:
                for attribute in node.attribute:
                    attribute.i = rng.choice([0, -1, 7, 2**31, -(2**63), 2**63 - 1])
            case 3:
                name = rng.choice(["axis", "axes", "to", "mode", "keepdims"])
                node.attribute.add(name=name, type=2, i=rng.randint(-9, 20))
            case 4:
                tensor = rng.choice(model.graph.initializer)
                values = numpy_helper.to_array(tensor).copy()
                extremes = [0, 1, 255] if values.dtype == np.uint8 else [0, -1, 3, 2**31 - 1, -(2**31)]
                values.reshape(-1)[rng.randrange(values.size)] = rng.choice(extremes)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    set_manifest(model, tiny_manifest())
    path = folder / "mutant.onnx"
    path.write_bytes(model.SerializeToString())
    print(seed, flush=True)
    signal.alarm(20)  # ends the process where one hangs
    try:
        Student.load(path, SessionSettings(("cpu",), threads=1)).warm_up((64, 48), (16, 12))
        ran += 1
    except (StudentError, ManifestError):
        refused += 1
print(refused, ran)
"""


def fuzz(folder: Path, first: int, count: int) -> tuple[int, int]:
    """Run mutants of a student that pass our checks through ONNX Runtime; return how many were refused and ran."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({8 << 30}, {8 << 30}))\n"
    paths = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", limit + FUZZ, str(folder), str(first), str(count)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"the mutant of seed {lines[-1]} ended the process: {result.stderr[-2000:]}"
    refused, ran = map(int, lines[-1].split())
    return refused, ran


def test_graphs_that_pass_our_checks_do_not_crash_onnx_runtime(tmp_path: Path) -> None:
    refused, ran = fuzz(tmp_path, first=0, count=300)
    assert refused + ran == 300
    assert min(refused, ran) > 10  # else it would try nothing


@pytest.mark.long
def test_many_graphs_that_pass_our_checks_do_not_crash_onnx_runtime(tmp_path: Path) -> None:
    assert sum(fuzz(tmp_path, first=1000, count=20_000)) == 20_000


@pytest.mark.long
def test_no_operator_that_a_student_may_have_crashes_onnx_runtime() -> None:
    program = Path(__file__).parents[1] / "helpers" / "operator_fuzz.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), "0", "30"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    ran, refused = map(int, re.findall(r"\d+", result.stdout)[:2])
    assert min(ran, refused) > 500  # else it would try nothing
