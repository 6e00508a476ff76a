"""fp16 and int8: the network alone is converted, what is lost is measured, and too much is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conv_student import BLOCK, HEAD, SIZE, STEM, conv_model, noise, noise_sample, write_conv_student
from data_trees import write_yolo
from onnx import ModelProto, helper, numpy_helper
from tiny_student import set_manifest

from md_perception.inference.manifest import Manifest
from md_perception.inference.providers import Graph, SessionSettings, session_options
from md_perception.inference.session import Student
from md_perception.inference.student_file import StudentFile
from md_perception.results import StudentOutput
from md_training.__main__ import export as export_command
from md_training.data.sample import Sample
from md_training.data.sources import YoloData
from md_training.data.splits import DataError
from md_training.data.synthetic import SceneData
from md_training.evaluate import answer_of_student
from md_training.export import ExportError
from md_training.precision import (
    HEADROOM,
    LARGEST_FP16,
    Comparison,
    Data,
    Lowering,
    Precision,
    Trial,
    compare,
    data_for,
    data_for_file,
    extract,
    features,
    fp16,
    int8,
    largest_activation,
    last_convolutions,
    lower,
    read_in_blocks,
    with_network,
    with_plain_weights,
)

INPUTS = [{"rgb": noise(seed)[None]} for seed in range(4)]


def raw(model: ModelProto, seed: int = 9) -> np.ndarray:
    """Return the raw head, float32 (9, 48, 64), of an image that no calibration saw."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(helper.make_tensor_value_info("raw", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["raw"], {"rgb": noise(seed)[None]})[0][0]


def stored(model: ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return write_conv_student(tmp_path / "student.onnx")


@pytest.fixture
def data(student: Path) -> Data:
    """Truth is what the fp32 student says: what another precision does not say is lost."""
    fp32 = Student.load(student, SessionSettings(providers=("cpu",)))
    masks = {seed: fp32.run(noise(seed)).segmentation.mask for seed in (11, 12)}
    blank = np.zeros(SIZE[::-1], np.uint8)
    return Data(
        [noise_sample(seed, blank) for seed in range(4)],
        [noise_sample(seed, mask) for seed, mask in masks.items()],
        "2 pictures of noise",
    )


def test_the_network_is_what_lies_between_the_first_and_the_last_convolutions() -> None:
    network = extract(conv_model())
    assert kinds(network) == ["Conv", "Relu", "Mul", "Div", "Conv", "Add", "Relu", "Conv"]
    assert [value.name for value in network.graph.input] == ["image"]
    assert [value.name for value in network.graph.output] == ["raw"]
    assert last_convolutions(network) == {"conv_head"}
    # The 255 is read on both sides: the network has its own, which may become another type.
    assert sorted(stored(network)) == sorted([STEM, BLOCK, HEAD, "scale.network"])


def test_a_graph_without_convolutions_has_no_network_to_convert() -> None:
    model = conv_model()
    del model.graph.node[3:]
    with pytest.raises(ExportError, match="no convolutions"):
        extract(model)


def test_taking_the_network_out_and_putting_it_back_changes_nothing() -> None:
    model = conv_model()
    network = extract(model)
    assert np.array_equal(raw(with_network(model, network, network)), raw(model))
    (image,) = features(model, network, INPUTS[:1])
    np.testing.assert_allclose(image["image"][0], INPUTS[0]["rgb"][0].transpose(2, 0, 1) / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize(("bits", "most"), [(7, 64), (8, 127)])
def test_int8_weights_have_a_scale_for_each_channel_and_the_heads_stay_in_fp32(bits: int, most: int) -> None:
    model = conv_model()
    lowered = int8(model, INPUTS, weight_bits=bits)
    weights = stored(lowered)
    before = stored(model)
    for name, channels in ((STEM, 8), (BLOCK, 8)):
        values, scale = weights[f"{name}_quantized"], weights[f"{name}_scale"]
        assert values.dtype == np.int8
        assert scale.shape == (channels,)
        assert most - 1 <= np.abs(values.astype(int)).max() <= most
        error = np.abs(values * scale[:, None, None, None] - before[name]).reshape(channels, -1).max(axis=1)
        assert (error <= scale * 0.51).all()
    assert np.array_equal(weights[HEAD], before[HEAD])
    assert weights["scale"].dtype == np.float32  # what is around the network is as it was
    assert {name for name, values in weights.items() if values.dtype == np.uint8} != set()  # zero points of activations
    error = raw(lowered) - raw(model)
    assert 0 < error.std() < 0.03 * raw(model).std()


def test_int8_weights_that_were_stored_as_int8_are_quantised_from_what_they_stand_for() -> None:
    model = conv_model()
    values = np.arange(-72, 72, dtype=np.int8).reshape(8, 2, 3, 3)[:, :1]
    index = next(i for i, item in enumerate(model.graph.initializer) if item.name == BLOCK)
    model.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, "values"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(8, 0.5, np.float32), "steps"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["values", "steps"], [BLOCK], "dequantise", axis=0))
    plain = with_plain_weights(model)
    assert "DequantizeLinear" not in kinds(plain)
    np.testing.assert_array_equal(stored(plain)[BLOCK], values * np.float32(0.5))
    assert "values" not in stored(plain)


def test_layers_that_are_named_stay_in_fp32() -> None:
    assert f"{STEM}_quantized" not in stored(int8(conv_model(), INPUTS, ["stem"]))
    assert f"{BLOCK}_quantized" in stored(int8(conv_model(), INPUTS, ["stem"]))
    # A whole name of a module, not any beginning of letters.
    with pytest.raises(ValueError, match="--keep-fp32 ste: no layer's name begins so; there are stem, block, head"):
        int8(conv_model(), INPUTS, ["ste"])


def test_layers_of_a_file_without_names_of_nodes_are_quantised_all_the_same() -> None:
    model = conv_model()
    named = int8(model, INPUTS, ["stem"])
    for node in model.graph.node:
        node.name = ""
    nameless = int8(model, INPUTS, ["stem"])
    assert stored(nameless).keys() == stored(named).keys()
    assert np.array_equal(raw(nameless), raw(named))


def stem_network(
    sides: tuple[int, int] = (24, 32), inputs: int = 1, head: bool = False, **settings: object
) -> ModelProto:
    """Return a network of 7x7 convolutions of stride 2, one for each input, as torch exports a ResNet's first one.

    head: with a 1x1 convolution behind the first.
    """
    settings = {"strides": [2, 2], "pads": [3] * 4, "group": 1, "dilations": [1, 1], "auto_pad": "NOTSET"} | settings
    values = np.random.default_rng(3).normal(size=(inputs, 6, 4, 7, 7)).astype(np.float32)
    bias = numpy_helper.from_array(np.arange(6, dtype=np.float32), "bias")
    named = range(inputs)
    kernels = [numpy_helper.from_array(values[i], f"weight{i}") for i in named]
    nodes = [
        helper.make_node(
            "Conv", [f"x{i}", f"weight{i}", "bias"], [f"y{i}"], f"stem{i}", kernel_shape=[7, 7], **settings
        )
        for i in named
    ]
    if head:
        kernels.append(numpy_helper.from_array(np.ones((6, 6, 1, 1), np.float32), "head"))
        nodes[0].output[0] = "features"
        nodes.append(helper.make_node("Conv", ["features", "head"], ["y0"], "head"))
    read = [helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, [1, 4, *sides]) for i in named]
    written = [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, [1, 6, "h", "w"]) for i in named]
    graph = helper.make_graph(nodes, "stem", read, written, [*kernels, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run_network(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("inputs", [1, 2])
def test_a_stem_that_reads_blocks_gives_the_same(inputs: int) -> None:
    random = np.random.default_rng(4)
    feeds = {f"x{i}": random.normal(size=(1, 4, 24, 32)).astype(np.float32) for i in range(inputs)}
    model = stem_network(inputs=inputs)
    before = run_network(model, feeds)
    read_in_blocks(model, {name: values.shape for name, values in feeds.items()})
    onnx.checker.check_model(model, full_check=True)
    assert sorted(kinds(model)) == ["Conv"] * inputs + ["SpaceToDepth"] * inputs
    for found, expected in zip(run_network(model, feeds), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_two_stems_of_one_input_read_the_same_blocks() -> None:
    feeds = {name: np.random.default_rng(4).normal(size=(1, 4, 24, 32)).astype(np.float32) for name in ("x0", "x1")}
    model = stem_network(inputs=2)
    model.graph.node[1].input[0] = "x0"
    before = run_network(model, feeds)
    read_in_blocks(model, {name: values.shape for name, values in feeds.items()})
    assert kinds(model) == ["SpaceToDepth", "Conv", "Conv"]
    for found, expected in zip(run_network(model, feeds), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_stem_of_an_int8_student_reads_blocks_unless_it_stays_in_fp32() -> None:
    feeds = [{"x0": np.random.default_rng(i).normal(size=(1, 4, 24, 32)).astype(np.float32)} for i in range(3)]
    model = stem_network(head=True)
    lowered = int8(model, feeds)
    assert kinds(lowered).count("SpaceToDepth") == 1
    assert stored(lowered)["weight0_quantized"].shape == (6, 16, 4, 4)
    (expected,), (found,) = (run_network(each, feeds[0]) for each in (model, lowered))
    assert np.abs(found - expected).max() < 0.1 * expected.std()
    kept = int8(model, feeds, ["weight0"])
    assert "SpaceToDepth" not in kinds(kept)
    assert stored(kept)["weight0"].shape == (6, 4, 7, 7)


def test_only_a_stem_whose_sums_stay_the_same_reads_blocks() -> None:
    shapes = {"x0": (1, 4, 24, 32)}
    for model, of, but in (
        (stem_network(), shapes, ["stem0"]),
        (stem_network(), {}, []),  # what it reads is not an input
        (stem_network((25, 32)), {"x0": (1, 4, 25, 32)}, []),
        (stem_network((24, 31)), {"x0": (1, 4, 24, 31)}, []),
        (stem_network(strides=[1, 1]), shapes, []),
        (stem_network(pads=[2] * 4), shapes, []),
        (stem_network(dilations=[2, 2]), shapes, []),
    ):
        before = model.SerializeToString(deterministic=True)
        read_in_blocks(model, of, but)
        assert model.SerializeToString(deterministic=True) == before
    shared = stem_network(inputs=2)
    shared.graph.node[1].input[1] = "weight0"
    read_in_blocks(shared, dict.fromkeys(("x0", "x1"), (1, 4, 24, 32)))
    assert kinds(shared) == ["Conv", "Conv"]


def test_an_int8_student_runs_with_int8_kernels(student: Path, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    lower(student, out, "int8", data, Lowering(max_loss=100))
    optimised = {}
    for precision in ("int8", "fp32"):
        options = session_options(SessionSettings(), Graph(precision=precision))
        options.optimized_model_filepath = str(tmp_path / f"{precision}-optimised.onnx")
        options.log_severity_level = 4  # it warns that what it writes is for this processor alone
        onnxruntime.InferenceSession(out.read_bytes(), options, providers=["CPUExecutionProvider"])
        optimised[precision] = kinds(onnx.load(options.optimized_model_filepath))
    assert optimised["int8"].count("QLinearConv") == 2
    assert "QLinearConv" not in optimised["fp32"]


def test_fp16_stays_within_the_network() -> None:
    model = conv_model()
    lowered = fp16(model, INPUTS)
    weights = stored(lowered)
    assert {name: weights[name].dtype.name for name in (STEM, BLOCK, HEAD, "scale", "scale.network")} == {
        STEM: "float16",
        BLOCK: "float16",
        HEAD: "float16",
        "scale": "float32",
        "scale.network": "float16",
    }
    assert kinds(lowered).count("Cast") == 3 + 2  # into the network and out of it
    error = np.abs(raw(lowered) - raw(model)).max()
    assert 0 < error < 0.01


def test_fp16_is_refused_where_activations_come_near_its_largest_number() -> None:
    model = conv_model(gain=2000)
    largest, _ = largest_activation(model, extract(model), INPUTS)
    assert LARGEST_FP16 / HEADROOM < largest < LARGEST_FP16
    with pytest.raises(ExportError, match=r"reach .*e\+04: too near to fp16's largest number, 65504"):
        fp16(model, INPUTS)


def test_two_precisions_take_turns_at_being_first(student: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    fp32, other = Student.load(student), Student.load(student)
    order: list[Student] = []

    def answer(asked: Student, sample: Sample) -> tuple[Sample, StudentOutput]:
        order.append(asked)
        return answer_of_student(asked, sample)

    monkeypatch.setattr("md_training.precision.answer_of_student", answer)
    compare(fp32, other, data.held_out, data.title)
    assert order[:2] == [fp32, other]  # the first calls, which are not timed
    assert order[2:] == [other, fp32, fp32, other]


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 0, 0.5), ("int8", 0.5, 20)])
def test_the_file_says_what_it_computes_in_and_what_that_cost(
    precision: Precision, least: float, most: float, student: Path, data: Data, tmp_path: Path
) -> None:
    out = tmp_path / "lowered.onnx"
    comparison = lower(student, out, precision, data, Lowering(max_loss=100), "other")
    lowered = Student.load(out)  # the loader accepts its operators, tensors and hash
    assert (lowered.precision, lowered.manifest.weights_storage, lowered.manifest.name) == (
        precision,
        precision,
        "other",
    )
    # Classes without truth count as 0.
    perfect = len(np.unique([sample.mask for sample in data.held_out])) / 9
    assert comparison.fp32.figures == {"mIoU9": pytest.approx(perfect)}
    loss = comparison.loss["mIoU9"]
    assert least <= loss < most
    assert comparison.other.figures["mIoU9"] == pytest.approx(perfect - loss / 100)
    expected = {
        "mIoU9 [2 pictures of noise, fp32]": round(perfect, 4),
        f"mIoU9 [2 pictures of noise, {precision}]": round(perfect - loss / 100, 4),
        f"speed over fp32 on CPU [2 pictures of noise, {precision}]": round(comparison.speed, 3),
    }
    assert lowered.manifest.metrics == expected
    assert len(comparison.other.times_ms) == 2


def test_a_precision_that_loses_too_much_is_not_written(student: Path, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    out.write_bytes(b"the last good one")
    with pytest.raises(
        ExportError, match=r"int8 loses \d+\.\d\d points of mIoU9 \(at most 0\.01\); nothing was written"
    ):
        lower(student, out, "int8", data, Lowering(max_loss=0.01))
    assert out.read_bytes() == b"the last good one"
    assert not list(tmp_path.glob("*.part"))


def test_without_truth_nobody_knows_what_is_lost(student: Path, data: Data, tmp_path: Path) -> None:
    unlabelled = replace(data, held_out=[noise_sample(11, np.full(SIZE[::-1], 255, np.uint8))], title="a drive")
    with pytest.raises(ExportError, match=r"a drive has no truth of segmentation.*--held-out-data"):
        lower(student, tmp_path / "int8.onnx", "int8", unlabelled)
    assert not (tmp_path / "int8.onnx").exists()


def test_a_student_for_another_processor_says_so(
    student: Path, data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lower(student, tmp_path / "fp16.onnx", "fp16", data, Lowering(max_loss=100))
    caplog.clear()
    Student.load(student, SessionSettings(providers=("cpu",)))
    assert not caplog.records
    Student.load(tmp_path / "fp16.onnx", SessionSettings(providers=("cpu",)))
    assert "CPUExecutionProvider runs fp16 slower than fp32" in caplog.text


def test_what_is_lowered_once_is_not_lowered_again(student: Path, data: Data, tmp_path: Path) -> None:
    lower(student, tmp_path / "fp16.onnx", "fp16", data, Lowering(max_loss=100))
    with pytest.raises(ValueError, match="computes in fp16: give an fp32 student"):
        lower(tmp_path / "fp16.onnx", tmp_path / "int8.onnx", "int8", data)


def test_losses_are_points_and_speed_is_the_median_of_paired_ratios() -> None:
    fp32 = Trial("fp32", 40.0, "CPUExecutionProvider", {"AP50": 0.60, "mIoU9": 0.50}, [10.0, 40.0, 12.0])
    other = Trial("int8", 10.5, "CPUExecutionProvider", {"AP50": 0.594, "mIoU9": 0.51}, [5.0, 10.0, 4.0])
    comparison = Comparison("3 samples", fp32, other)
    assert comparison.loss == pytest.approx({"AP50": 0.6, "mIoU9": -1.0})
    assert comparison.speed == 3.0  # of 2, 4 and 3
    assert comparison.table().splitlines()[-2:] == [
        "| fp32 | 60.00 | 50.00 | 12.0 | 1.00 | 40.0 |",
        "| int8 | 59.40 | 51.00 | 5.0 | 3.00 | 10.5 |",
    ]


def test_calibration_and_held_out_scenes_are_different_ones(student: Path) -> None:
    file = StudentFile.read(student)  # of scenes, by its manifest; takes cameras of 64x48
    data = data_for_file(file, Lowering(calibration_samples=2, held_out=1))
    assert [sample.name for sample in data.calibration] == ["scene 1000000", "scene 1000001"]
    (held_out,) = data.held_out
    assert held_out.name == "scene 9000000"
    assert held_out.rgb.shape == (48, 64, 3)
    other = data_for((64, 48), None, SceneData(first_seed=7), Lowering(calibration_samples=1, held_out=1))
    assert [sample.name for sample in other.calibration] == ["scene 7"]


def test_a_folder_is_calibrated_on_and_another_list_scored(student: Path, tmp_path: Path) -> None:
    write_yolo(tmp_path / "set")
    settings = Lowering(calibration_data=tmp_path / "set", calibration_split="train", held_out_data=tmp_path / "set")
    data = data_for_file(StudentFile.read(student), settings)
    assert [sample.name for sample in data.calibration] == ["0D", "1D"]
    assert [sample.name for sample in data.held_out] == ["2N"]
    assert data.title == "1 pairs of set val"
    assert data.tasks == ("detection",)


@pytest.mark.parametrize("trained_on_it", [False, True])
def test_one_folder_for_both_is_calibrated_on_what_is_not_scored(tmp_path: Path, trained_on_it: bool) -> None:
    root = tmp_path / "set"
    write_yolo(root)
    (tmp_path / "link").symlink_to(root)  # the same images by another name
    settings = Lowering(calibration_data=tmp_path / "link", held_out_data=None if trained_on_it else root)
    data = data_for(SIZE, None, YoloData(root) if trained_on_it else None, settings)
    assert [sample.name for sample in data.calibration] == ["0D", "1D"]
    assert [sample.name for sample in data.held_out] == ["2N"]
    with pytest.raises(DataError, match=r"is also held out \(set val\).*--calibration-split or --held-out-split"):
        data_for(SIZE, None, None, replace(settings, calibration_split="val", held_out_data=root))


def test_what_cannot_be_is_told_before_a_sample_is_read(student: Path, tmp_path: Path) -> None:
    def never() -> Iterator[Sample]:
        pytest.fail("a sample was read")
        yield

    data = Data(never(), never(), "a drive")
    for arguments, problem in (
        ((data, Lowering(), "../away"), r"'../away' cannot be a student's name: use letters, digits"),
        ((data, Lowering(keep_fp32=("neck",))), "--keep-fp32 neck: no layer's name begins so"),
        ((replace(data, tasks=("detection",)), Lowering()), r"a drive has no truth of segmentation.*--held-out-data"),
    ):
        with pytest.raises((ValueError, ExportError), match=problem):
            lower(student, tmp_path / "int8.onnx", "int8", *arguments)
    assert not (tmp_path / "int8.onnx").exists()
    with pytest.raises(ValueError, match="max_loss at least 0"):
        Lowering(max_loss=float("nan"))


def test_a_student_of_real_images_needs_their_like(student: Path, tmp_path: Path) -> None:
    model = onnx.load(student)
    manifest = Manifest.from_metadata({entry.key: entry.value for entry in model.metadata_props}, "student")
    set_manifest(model, manifest.model_copy(update={"seen_real_images": True}))
    onnx.save(model, student)
    with pytest.raises(DataError, match="--held-out-data"):
        data_for_file(StudentFile.read(student), Lowering())
    write_yolo(tmp_path / "set")
    with pytest.raises(DataError, match="--calibration-data"):
        data_for_file(StudentFile.read(student), Lowering(held_out_data=tmp_path / "set"))


def test_an_exported_file_is_lowered_by_the_command(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lowered.onnx"
    lowering = Lowering(calibration_samples=2, held_out=2, max_loss=100)
    export_command(student, out, precision="int8", lowering=lowering)
    assert "| int8 |" in capsys.readouterr().out
    assert StudentFile.read(out).manifest.precision == "int8"
    assert "computes in int8" in out.with_suffix(".md").read_text()
    with pytest.raises(ValueError, match="only its precision can be lowered"):
        export_command(student, out, precision="int8", compress_weights=True)
    with pytest.raises(ValueError, match="belong to --precision"):
        export_command(student, out, lowering=lowering)
