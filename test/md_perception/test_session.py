import logging
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_student import set_manifest, tiny_manifest, tiny_model, write_tiny_student

from md_perception.inference import providers, student_file
from md_perception.inference.manifest import MANIFEST_KEY, ManifestError
from md_perception.inference.onnx_file import OnnxFile, OnnxFileError
from md_perception.inference.session import SessionSettings, Student, StudentError
from md_perception.sensing.registration import sampling_matrix

CPU = SessionSettings(providers=("cpu",))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """RGB 64x48 with noise, thermal 16x12 of 204 everywhere (0.8 of 255)."""
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return rgb, np.full((12, 16), 204, np.uint8)


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


# ------------------------------------------------------------------------------------------------ what it gives


def test_a_fused_student_gives_what_its_graph_computes(tmp_path: Path, pair: tuple) -> None:
    rgb, thermal = pair
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)

    output = student.run(rgb, thermal, sampling_matrix((64, 48), (16, 12)))

    assert output.detections is not None
    np.testing.assert_allclose(output.detections.boxes, [[16, 12, 48, 36], [0, 0, 32, 48], [0, 0, 16, 12]])
    np.testing.assert_allclose(output.detections.scores, [0.8, 0.4, 0.2], rtol=1e-6)
    assert output.detections.labels.tolist() == [0, 1, 2]
    assert output.segmentation is not None
    np.testing.assert_array_equal(output.segmentation.mask, np.where(rgb[..., 0] > 127, 2, 0))
    np.testing.assert_array_equal(output.segmentation.confidence, rgb[..., 1])
    assert (student.provider, student.precision, student.uses_thermal) == ("CPUExecutionProvider", "fp32", True)


def test_padded_views_are_taken_like_plain_arrays(tmp_path: Path, pair: tuple) -> None:
    rgb, thermal = pair
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    padded = np.zeros((48, 70, 3), np.uint8)
    padded[:, :64] = rgb
    matrix = sampling_matrix((64, 48), (16, 12))
    view, plain = student.run(padded[:, :64], thermal, matrix), student.run(rgb, thermal, matrix)
    np.testing.assert_array_equal(view.segmentation.mask, plain.segmentation.mask)


def test_a_visible_only_student_needs_no_thermal(tmp_path: Path, pair: tuple) -> None:
    student = Student.load(write_tiny_student(tmp_path / "v.onnx", thermal=False, tasks=("detection",)), CPU)
    output = student.run(np.full_like(pair[0], 51))
    assert not student.uses_thermal
    assert output.segmentation is None
    np.testing.assert_allclose(output.detections.scores, [0.2, 0.1, 0.05], rtol=1e-6)


def test_any_image_size_goes_and_warm_up_runs_the_graph(tmp_path: Path) -> None:
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    assert student.warm_up((640, 512), (160, 120)) > 0
    output = student.run(np.zeros((51, 37, 3), np.uint8), np.zeros((7, 9), np.uint8), sampling_matrix((37, 51), (9, 7)))
    assert output.segmentation.mask.shape == (51, 37)
    np.testing.assert_allclose(output.detections.boxes[2], [0, 0, 9, 7], rtol=1e-6)


def test_a_thermal_only_student_gives_results_in_thermal_pixels(tmp_path: Path) -> None:
    student = Student.load(write_tiny_student(tmp_path / "thermal.onnx", rgb=False), CPU)
    assert (student.uses_rgb, student.uses_thermal) == (False, True)
    assert student.warm_up(None, (16, 12)) > 0
    output = student.run(None, np.full((12, 16), 51, np.uint8))
    np.testing.assert_allclose(output.detections.scores, [0.2, 0.1, 0.05], rtol=1e-6)
    np.testing.assert_allclose(output.detections.boxes[1], [0, 0, 8, 12])
    assert output.segmentation.mask.shape == (12, 16)
    with pytest.raises(StudentError, match="takes thermal images: none was given"):
        student.run(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(StudentError, match="takes thermal images: give their size"):
        student.warm_up((64, 48))


def test_a_student_names_the_providers_that_were_passed_over(tmp_path: Path) -> None:
    file = write_tiny_student(tmp_path / "tiny.onnx")
    assert Student.load(file, CPU).unavailable == ()
    student = Student.load(file, SessionSettings(providers=("tensorrt", "cpu")))
    if student.provider == "CPUExecutionProvider":
        (reason,) = student.unavailable
        assert reason.startswith("TensorrtExecutionProvider: ")
        assert len(reason) > 40


def test_a_fused_student_does_not_run_without_thermal(tmp_path: Path, pair: tuple) -> None:
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    with pytest.raises(StudentError, match="takes thermal images: none was given"):
        student.run(pair[0])
    with pytest.raises(StudentError, match="give their size"):
        student.warm_up((64, 48))
    with pytest.raises(StudentError, match="it needs the matrix rgb_to_thermal"):
        student.run(*pair[:2])


def test_an_error_of_the_runtime_is_a_student_error_with_file_and_provider(tmp_path: Path, pair: tuple) -> None:
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    with pytest.raises(StudentError, match=r"tiny\.onnx failed on CPUExecutionProvider"):
        student.run(pair[0].astype(np.float32), pair[1], sampling_matrix((64, 48), (16, 12)))


def test_labels_that_have_no_class_are_refused(tmp_path: Path, pair: tuple) -> None:
    manifest = tiny_manifest(detection_classes=("person", "bicycle"))
    student = Student.load(write_tiny_student(tmp_path / "two.onnx", manifest=manifest), CPU)
    with pytest.raises(StudentError, match="but has 2 classes"):
        student.run(*pair, sampling_matrix((64, 48), (16, 12)))


# ------------------------------------------------------------------------------------------------ what it refuses


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"nothing\.onnx cannot be read: No such file"):
        Student.load(tmp_path / "nothing.onnx")
    with pytest.raises(StudentError, match="cannot be read: Is a directory"):
        Student.load(tmp_path)


def test_a_file_beyond_the_size_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_student(tmp_path / "tiny.onnx")
    monkeypatch.setattr(student_file, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(StudentError, match="is larger than"):
        Student.load(path)
    monkeypatch.setattr(student_file, "MAX_FILE_BYTES", path.stat().st_size)
    Student.load(path, CPU)


def test_a_file_without_a_manifest_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    del model.metadata_props[:]
    with pytest.raises(ManifestError, match="has no md_perception manifest"):
        Student.load(save(model, tmp_path / "plain.onnx"))


def test_a_manifest_that_is_not_valid_is_refused_naming_the_field(tmp_path: Path) -> None:
    model = tiny_model()
    del model.metadata_props[:]
    text = tiny_manifest().model_dump_json().replace('"format_version":1', '"format_version":3')
    helper.set_model_props(model, {MANIFEST_KEY: text})
    with pytest.raises(ManifestError, match="format_version"):
        Student.load(save(model, tmp_path / "future.onnx"))


def _without_input(model: onnx.ModelProto) -> None:
    model.graph.input.pop()
    for node in model.graph.node:  # keep the graph valid: the matrix becomes a constant
        if "rgb_to_thermal" in node.input:
            model.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32), "rgb_to_thermal"))


def _without_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def _other_dtype(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _other_rank(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim.add().dim_value = 1


def _other_name(model: onnx.ModelProto) -> None:
    model.graph.output[4].name = "certainty"
    model.graph.node[-1].output[0] = "certainty"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_without_input, "input rgb_to_thermal is missing"),
        (_without_output, "output scores is missing"),
        (_other_dtype, "input rgb is float32 with 4 dimensions, not uint8 with 4"),
        (_other_rank, "input thermal is uint8 with 4 dimensions, not uint8 with 3"),
        (_other_name, "output certainty is not known, confidence is missing"),
    ],
)
def test_a_graph_that_contradicts_its_manifest_is_refused(change, problem: str, tmp_path: Path) -> None:
    model = tiny_model()
    change(model)
    with pytest.raises(ManifestError, match=f"contradicts its manifest: {problem}"):
        Student.load(save(model, tmp_path / "changed.onnx"))


def test_a_graph_with_fewer_tasks_than_its_manifest_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tasks=("detection",))
    set_manifest(model, tiny_manifest())
    with pytest.raises(ManifestError, match="output confidence is missing, mask is missing"):
        Student.load(save(model, tmp_path / "less.onnx"))


def test_custom_operators_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[-1].domain = "evil.ops"
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    with pytest.raises(StudentError, match=r"needs custom operators of evil\.ops"):
        Student.load(save(model, tmp_path / "custom.onnx"))


def test_tensors_in_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(tiny_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    monkeypatch.chdir(tmp_path)  # where a runtime that looks beside the file or in the current folder would find it
    with pytest.raises(StudentError, match=r"in other files .*export it without external data"):
        Student.load(path)


@pytest.mark.parametrize("location", [TensorProto.EXTERNAL, TensorProto.DEFAULT])
def test_a_tensor_in_another_file_is_found_in_a_node_attribute(location: int, tmp_path: Path) -> None:
    model = tiny_model()
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    tensor.data_location = location
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    with pytest.raises(StudentError, match="the first is 'hidden'"):
        Student.load(save(model, tmp_path / "hidden.onnx"))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(OnnxFileError, match="not an ONNX model"):
        OnnxFile.parse(data)


@given(st.data())
def test_a_damaged_model_never_gets_beyond_its_own_errors(data: st.DataObject) -> None:
    original = tiny_model().SerializeToString()
    at = data.draw(st.integers(0, len(original) - 1))
    damaged = original[:at] + data.draw(st.binary(max_size=8)) + original[at + data.draw(st.integers(0, 8)) :]
    try:
        OnnxFile.parse(damaged)
    except OnnxFileError as error:
        assert "ONNX" in str(error) or "its tensor" in str(error)  # noqa: PT017 (the damage may also be harmless)


def test_the_file_reader_agrees_with_the_onnx_package() -> None:
    model = tiny_model()
    file = OnnxFile.parse(model.SerializeToString())
    assert [tensor.name for tensor in file.inputs] == [value.name for value in model.graph.input]
    assert [(tensor.name, tensor.dtype, tensor.rank) for tensor in file.outputs] == [
        ("boxes", "float32", 2),
        ("scores", "float32", 1),
        ("labels", "int64", 1),
        ("mask", "uint8", 3),
        ("confidence", "uint8", 3),
    ]
    assert file.metadata == {prop.key: prop.value for prop in model.metadata_props}
    assert file.external_tensors == []


def test_a_truncated_student_is_refused(tmp_path: Path) -> None:
    path = write_tiny_student(tmp_path / "tiny.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StudentError, match="or it is cut off"):
        Student.load(path)


# ------------------------------------------------------------------------------------------------ how it runs


def test_auto_falls_back_to_the_cpu_with_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        providers,
        "why_unavailable",
        lambda provider: "the NVIDIA driver finds no GPU" if provider == "CUDAExecutionProvider" else None,
    )
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"))
    assert student.provider == "CPUExecutionProvider"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "CUDAExecutionProvider does not work here: the NVIDIA driver finds no GPU; the student runs on "
        "CPUExecutionProvider"
    ]
    assert capfd.readouterr().err == ""  # ONNX Runtime itself has nothing to say


def test_a_provider_that_was_asked_for_and_does_not_work_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = write_tiny_student(tmp_path / "tiny.onnx")
    with pytest.raises(StudentError, match=r"CUDAExecutionProvider does not work here.*install onnxruntime-gpu"):
        Student.load(path, SessionSettings(providers=("cuda",)))
    assert Student.load(path, SessionSettings(providers=("cuda", "cpu"))).provider == "CPUExecutionProvider"


def test_a_provider_that_fails_to_start_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = providers._create

    def out_of_memory(path: Path, data: bytes, provider: str, *others: object) -> object:
        if provider == "CUDAExecutionProvider":
            raise StudentError("CUDA failure 2: out of memory")
        return create(path, data, provider, *others)

    monkeypatch.setattr(providers, "why_unavailable", lambda provider: None)
    monkeypatch.setattr(providers, "_create", out_of_memory)
    path = write_tiny_student(tmp_path / "tiny.onnx")
    assert Student.load(path).provider == "CPUExecutionProvider"
    assert "CUDAExecutionProvider does not work here: CUDA failure 2: out of memory" in caplog.text
    with pytest.raises(StudentError, match="out of memory"):
        Student.load(path, SessionSettings(providers=("cuda",)))


def test_the_provider_is_the_one_in_use_even_after_onnxruntime_has_changed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(student._service.session, "get_providers", lambda: both)
    assert student.provider == "CUDAExecutionProvider"
    monkeypatch.undo()  # as after a run that failed on the GPU
    assert student.provider == "CPUExecutionProvider"


def test_a_provider_that_onnxruntime_silently_leaves_out_is_not_taken_for_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The driver is there, but the CUDA provider does not load: ONNX Runtime goes on with the CPU by itself.
    monkeypatch.setattr(providers, "why_unavailable", lambda provider: None)
    start = providers._start
    monkeypatch.setattr(
        providers,
        "_start",
        lambda path, data, asked, settings, graph: start(path, data, ["CPUExecutionProvider"], settings, graph),
    )
    path = write_tiny_student(tmp_path / "tiny.onnx")
    assert Student.load(path).provider == "CPUExecutionProvider"
    assert "CUDAExecutionProvider does not work here: ONNX Runtime could not start it" in caplog.text
    with pytest.raises(StudentError, match="CUDAExecutionProvider does not work here"):
        Student.load(path, SessionSettings(providers=("cuda",)))


@pytest.mark.parametrize("arguments", [{"providers": ("gpu",)}, {"providers": ()}, {"threads": -1}])
def test_session_settings_are_checked(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"providers|threads"):
        SessionSettings(**arguments)


def _compressed_conv(channels: int) -> onnx.ModelProto:
    """The tiny student whose confidence goes through a convolution with int8 weights and DequantizeLinear."""
    rng = np.random.default_rng(0)
    model = tiny_model(thermal=False, tasks=("segmentation",))
    weights = rng.integers(-127, 128, (channels, channels, 5, 5), dtype=np.int8)
    scale = rng.uniform(1e-5, 2e-5, channels).astype(np.float32)
    model.graph.node.pop()  # confidence = green
    model.graph.node.extend(
        [
            helper.make_node("DequantizeLinear", ["w8", "w_scale", "w_zero"], ["w"], axis=0),
            helper.make_node("Cast", ["rgb"], ["rgb_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["rgb_float"], ["grey"], axes=[3], keepdims=0),
            helper.make_node("Unsqueeze", ["grey", "one"], ["grey4"]),
            helper.make_node("Tile", ["grey4", "tiles"], ["x"]),
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 2, 2, 2]),
            helper.make_node("ReduceMax", ["y"], ["top"], axes=[1], keepdims=0),
            helper.make_node("Cast", ["top"], ["confidence"], to=TensorProto.UINT8),
        ]
    )
    for name, value in {
        "w8": weights,
        "w_scale": scale,
        "w_zero": np.zeros(channels, np.int8),
        "one": np.array([1], np.int64),
        "tiles": np.array([1, channels, 1, 1], np.int64),
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    set_manifest(model, tiny_manifest(thermal=False, tasks=("segmentation",)))
    return model


def test_compressed_weights_are_folded_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ONNX Runtime can write the graph that it really runs: no dequantisation may be left in it.
    optimized = tmp_path / "optimized.onnx"
    make_options = onnxruntime.SessionOptions

    def recording_options() -> onnxruntime.SessionOptions:
        options = make_options()
        options.optimized_model_filepath = str(optimized)
        return options

    monkeypatch.setattr(onnxruntime, "SessionOptions", recording_options)
    student = Student.load(save(_compressed_conv(8), tmp_path / "compressed.onnx"), CPU)
    kinds = {node.op_type for node in onnx.load(optimized).graph.node}
    assert "Conv" in kinds or "FusedConv" in kinds
    assert not any("quant" in kind.lower() for kind in kinds), kinds
    assert student.run(np.full((12, 16, 3), 200, np.uint8)).segmentation.confidence.shape == (12, 16)


def test_loading_a_student_leaves_no_file_behind(tmp_path: Path) -> None:
    Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU).warm_up((64, 48), (16, 12))
    assert os.listdir(tmp_path) == ["tiny.onnx"]
