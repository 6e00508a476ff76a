"""Export: one file with everything in it, checked against torch, or no file at all."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from painted_samples import painted_sample
from torch import nn

from md_perception.inference.manifest import MANIFEST_KEY, Manifest
from md_perception.inference.session import Student as ExportedStudent
from md_perception.inference.session import StudentError
from md_perception.inference.student_file import StudentFile
from md_training import export as exporting
from md_training.checkpoint import Checkpoint
from md_training.data.augment import NO_AUGMENTATION
from md_training.data.sample import Sample
from md_training.data.synthetic import SceneData
from md_training.evaluate import answers_of_student, predict
from md_training.export import (
    ExportError,
    StudentGraph,
    compress,
    export,
    fold_batch_norm,
    fold_input,
    int8_weights,
    to_onnx,
)
from md_training.models.networks import Network, NetworkSettings, Student, make_network
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.postprocess import DetectionLimits
from md_training.precision import Data, Lowering, Precision, lower
from md_training.presets import Run

CAMERA, SENSOR = (160, 128), (40, 32)


def random_checkpoint(settings: NetworkSettings) -> Checkpoint:
    """Return a network whose random heads have something to say: all scores above the threshold, mixed classes."""
    torch.manual_seed(3)
    network = Student(settings)
    network.train()
    for _ in range(3):
        network(torch.randn(2, 3 * len(settings.inputs), 96, 128))
    network.eval()
    if network.detector is not None:
        nn.init.normal_(network.detector.class_output.weight, std=0.2)
        nn.init.normal_(network.detector.box_output.weight, std=0.1)
    run = Run(
        name="random",
        network=settings,
        data=SceneData(camera_size=CAMERA, thermal_size=SENSOR),
        augmentation=NO_AUGMENTATION,
    )
    return Checkpoint(run, "random-1", 7, network, {"AP50 person [all]": 0.5}, "abc123")


JOINT = NetworkSettings(
    input_size=(128, 96),
    detection=RetinaNetSettings(channels=32, tower_convs=1, anchor_side=16),
    segmentation=PSPNetSettings(channels=32, output_stride=4, auxiliary=True),
)
SAMPLES = [painted_sample(seed, CAMERA, SENSOR) for seed in (11, 12)]


@pytest.fixture(scope="module")
def traced(joint: Checkpoint) -> onnx.ModelProto:
    """The joint student's graph as the exporter makes it, once for all tests: tracing takes seconds."""
    folded = fold_input(fold_batch_norm(copy.deepcopy(joint.network)))
    return to_onnx(StudentGraph(folded, DetectionLimits(), raw_heads=True, folded=True, tiles=2), CAMERA, SENSOR)


@pytest.fixture(scope="module")
def joint() -> Checkpoint:
    return random_checkpoint(JOINT)


@pytest.fixture(scope="module")
def file(joint: Checkpoint, traced: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "student.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "to_onnx", lambda *_, **__: copy.deepcopy(traced))
        export(joint, path, name="random-student", samples=SAMPLES)
    return path


def test_file_tells_everything_about_itself(file: Path) -> None:
    model = onnx.load(file)
    manifest = Manifest.from_metadata({entry.key: entry.value for entry in model.metadata_props}, file.name)
    assert manifest.name == "random-student"
    assert manifest.tasks == ("detection", "segmentation")
    assert manifest.input_size == (128, 96)
    assert manifest.thermal is not None
    assert manifest.thermal.sensor_size == SENSOR
    assert manifest.run_id == "random-1"
    assert manifest.metrics == {"AP50 person [all]": 0.5}
    assert manifest.git_revision == "abc123"
    assert not manifest.seen_real_images
    assert manifest.weights_sha256 == exporting.weights_sha256(model)
    names = ["boxes", "scores", "labels", "image_index", "mask", "confidence"]
    assert [output.name for output in model.graph.output] == names
    assert manifest.takes_batches
    assert [entry.key for entry in model.metadata_props] == [MANIFEST_KEY]
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()  # no path of the exporting machine
    assert not list(file.parent.glob("*.part"))


@pytest.mark.parametrize(
    ("size", "sensor"),
    [(CAMERA, SENSOR), ((320, 240), (80, 60)), ((256, 144), (32, 24)), ((90, 120), (160, 120))],
)
def test_any_camera_gets_what_torch_computes(
    file: Path, joint: Checkpoint, size: tuple[int, int], sensor: tuple[int, int]
) -> None:
    sample = painted_sample(21, size, sensor)
    found = ExportedStudent.load(file).run(sample.rgb, sample.thermal, sample.rgb_to_thermal)
    expected = predict(joint.network, sample, DetectionLimits())
    assert found.detections is not None
    assert found.segmentation is not None
    assert expected.detections is not None
    assert expected.segmentation is not None
    assert found.segmentation.mask.shape == (size[1], size[0])
    assert (found.segmentation.mask != expected.segmentation.mask).mean() <= 1e-4
    difference = found.segmentation.confidence.astype(int) - expected.segmentation.confidence.astype(int)
    assert np.abs(difference).max() <= 1
    assert len(found.detections) == len(expected.detections) > 5
    np.testing.assert_allclose(found.detections.boxes, expected.detections.boxes, atol=0.05)
    np.testing.assert_allclose(found.detections.scores, expected.detections.scores, atol=1e-3)
    assert found.detections.labels.tolist() == expected.detections.labels.tolist()
    assert (np.diff(found.detections.scores) <= 0).all()
    assert found.detections.boxes.min() >= 0
    assert (found.detections.boxes <= np.array([*size, *size])).all()


def test_a_batch_gives_what_its_images_give_one_by_one(file: Path) -> None:
    samples = [painted_sample(seed, (91, 67), (33, 21)) for seed in (21, 22, 23)]
    shift = np.array([[0, 0, 9], [0, 0, -4], [0, 0, 0]], np.float32)
    feeds = {
        "rgb": np.stack([sample.rgb for sample in samples]),
        "thermal": np.stack([sample.thermal for sample in samples]),
        "rgb_to_thermal": np.stack([sample.rgb_to_thermal + index * shift for index, sample in enumerate(samples)]),
    }
    names = ["boxes", "scores", "labels", "mask", "confidence", "image_index"]
    runner = exporting.session(onnx.load(file))
    together = dict(zip(names, runner.run(names, feeds), strict=True))
    counts = []
    for index in range(3):
        one = {name: array[index : index + 1] for name, array in feeds.items()}
        alone = dict(zip(names, runner.run(names, one), strict=True))
        rows = together["image_index"] == index
        counts.append(int(rows.sum()))
        assert not alone["image_index"].any()
        np.testing.assert_array_equal(together["labels"][rows], alone["labels"])
        np.testing.assert_allclose(together["scores"][rows], alone["scores"], atol=1e-6)
        np.testing.assert_allclose(together["boxes"][rows], alone["boxes"], atol=1e-3)
        assert (together["mask"][index] != alone["mask"][0]).mean() <= 1e-4
        levels = together["confidence"][index].astype(int) - alone["confidence"][0]
        assert np.abs(levels).max() <= 1
    assert counts == [DetectionLimits().maximum] * 3  # which is that of an image
    assert not np.array_equal(together["boxes"][:100], together["boxes"][100:200])
    assert not np.array_equal(together["mask"][0], together["mask"][1])


RIGHT, node = "image_index.right", onnx.helper.make_node
SWAPPED = [
    node("ReduceMax", [RIGHT], ["image_index.last"], keepdims=0),
    node("Sub", ["image_index.last", RIGHT], ["image_index"]),
]
ALL_OF_THE_FIRST = [node("Sub", [RIGHT, RIGHT], ["image_index"])]


@pytest.mark.parametrize(
    ("wrong", "samples"),
    [
        pytest.param(SWAPPED, SAMPLES, id="swapped"),
        pytest.param(ALL_OF_THE_FIRST, SAMPLES[:1], id="all of the first, of a sample without its like"),
    ],
)
def test_a_graph_that_mixes_up_the_images_of_a_batch_is_not_written(
    joint: Checkpoint,
    traced: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[onnx.NodeProto],
    samples: list[Sample],
) -> None:
    mixed = copy.deepcopy(traced)  # which is right for one image
    (last,) = [node for node in mixed.graph.node if "image_index" in node.output]
    last.output[0] = RIGHT
    mixed.graph.node.extend(wrong)
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: mixed)
    with pytest.raises(ExportError, match="boxes"):
        export(joint, tmp_path / "student.onnx", samples=samples)
    assert not list(tmp_path.iterdir())


def test_resizing_inside_the_network_is_known_beforehand(file: Path) -> None:
    # Else ONNX Runtime on a CPU converts its layout of channels back and forth around each.
    model = onnx.load(file)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    scales = [stored[node.input[2]].tolist() for node in model.graph.node if node.op_type == "Resize" and node.input[2]]
    assert scales.count([1, 1, 2, 2]) >= 3
    read = {name for node in model.graph.node for name in node.input}
    assert stored.keys() <= read  # nothing is left of what was computed before


def test_masks_of_any_size_are_known_to_be_of_the_cameras(file: Path) -> None:
    # Else TensorRT refuses a segmentation student of any size, and CUDA cannot have its buffers ready.
    student = StudentFile.read(file)
    shapes = student.output_shapes(student.dimensions((90, 70), (40, 32)))
    assert shapes == {"mask": ("uint8", (1, 70, 90)), "confidence": ("uint8", (1, 70, 90))}
    assert not student.static(student.dimensions((90, 70), (40, 32)))  # any number of detections


def test_mask_and_confidence_are_those_of_a_full_softmax(joint: Checkpoint) -> None:
    sample = painted_sample(31, (256, 192), SENSOR)  # twice the network: no bars
    graph = StudentGraph(joint.network, DetectionLimits(), raw_heads=True)
    with torch.no_grad():
        outputs = graph(*(torch.from_numpy(x)[None] for x in (sample.rgb, sample.thermal, sample.rgb_to_thermal)))
    named = dict(zip(graph.output_names(), outputs, strict=True))
    logits = nn.functional.interpolate(named["raw_segmentation"], (192, 256), mode="bilinear", align_corners=False)
    probability, winner = logits.softmax(dim=1).max(dim=1)
    assert float((named["confidence"] - 255 * probability).abs().max()) <= 0.51
    assert float((named["mask"] != winner).float().mean()) <= 1e-4
    assert len(winner.unique()) > 1


@pytest.fixture(scope="module")
def fixed_file(joint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "fixed.onnx"
    samples = [painted_sample(seed, (192, 120), SENSOR) for seed in (11, 12)]
    export(joint, path, fixed=(192, 120), score_threshold=0.25, samples=samples)
    return path


def test_a_fixed_file_has_no_shape_that_depends_on_the_image(fixed_file: Path) -> None:
    model = onnx.load(fixed_file)
    shapes = {
        item.name: [dimension.dim_value for dimension in item.type.tensor_type.shape.dim]
        for item in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "rgb": [1, 120, 192, 3],
        "thermal": [1, 32, 40],
        "rgb_to_thermal": [1, 3, 3],
        "boxes": [100, 4],
        "scores": [100],
        "labels": [100],
        "mask": [1, 120, 192],
        "confidence": [1, 120, 192],
    }
    # operators whose results have as many rows as their input has objects
    assert not {node.op_type for node in model.graph.node} & {"NonMaxSuppression", "NonZero"}


def test_a_fixed_file_finds_what_torch_finds_and_says_where_the_objects_end(
    fixed_file: Path, joint: Checkpoint
) -> None:
    sample = painted_sample(21, (192, 120), SENSOR)
    student = ExportedStudent.load(fixed_file)
    found = student.run(sample.rgb, sample.thermal, sample.rgb_to_thermal).detections
    expected = predict(joint.network, sample, DetectionLimits(score_threshold=0.25)).detections
    assert found is not None
    assert expected is not None
    assert 5 < len(found) == len(expected) < 100
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    assert found.labels.tolist() == expected.labels.tolist()
    feeds = {name: getattr(sample, name)[None] for name in ("rgb", "thermal", "rgb_to_thermal")}
    boxes, scores, labels = exporting.session(onnx.load(fixed_file)).run(["boxes", "scores", "labels"], feeds)
    assert (scores[len(expected) :] == -1).all()
    assert not boxes[len(expected) :].any()
    assert not labels[len(expected) :].any()
    other = painted_sample(21, CAMERA, SENSOR)
    with pytest.raises(StudentError, match=r"exported for rgb images of 192x120.* alone, not of .*160x128"):
        student.run(other.rgb, other.thermal, other.rgb_to_thermal)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({}, {"fixed_thermal": (40, 32)}, "give both"),
        ({}, {"fixed": (3, 120)}, "give width and height from 4 to"),
        ({"inputs": ("thermal",)}, {"fixed": (40, 32), "fixed_thermal": (80, 64)}, "thermal images alone"),
        ({"inputs": ("rgb",)}, {"fixed": (64, 48), "fixed_thermal": (40, 32)}, "takes no thermal images"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(joint: Checkpoint, changes: dict, sizes: dict, message: str) -> None:
    run = replace(joint.run, network=replace(JOINT, **changes))
    with pytest.raises(ValueError, match=message):
        exporting.fixed_sizes(run, sizes.get("fixed"), sizes.get("fixed_thermal"))


def test_a_thermal_only_file_is_fixed_to_its_thermal_camera(joint: Checkpoint) -> None:
    run = replace(joint.run, network=replace(JOINT, inputs=("thermal",)))
    assert exporting.fixed_sizes(run, (80, 64), None)[1] == (80, 64)
    assert exporting.fixed_sizes(joint.run, (80, 64), None) == ((80, 64), SENSOR)
    assert exporting.fixed_sizes(joint.run, None, None) == (CAMERA, SENSOR)


@pytest.mark.parametrize(
    ("architecture", "inputs", "one_mean", "channels"),
    [
        ("one_stream", ("rgb", "thermal"), False, [5]),
        ("one_stream", ("rgb", "thermal"), True, [4]),
        ("one_stream", ("rgb",), True, [3]),
        ("one_stream", ("thermal",), False, [2]),
        ("one_stream", ("thermal",), True, [1]),
        ("two_stream", ("rgb", "thermal"), False, [3, 2]),
        ("two_stream", ("rgb", "thermal"), True, [3, 1]),
        ("decision", ("rgb", "thermal"), True, [3, 1]),
    ],
)
def test_folding_the_input_changes_nothing_not_even_at_borders_and_bars(
    architecture: str, inputs: tuple, one_mean: bool, channels: list[int]
) -> None:
    torch.manual_seed(5)
    settings = replace(JOINT, architecture=architecture, inputs=inputs, one_thermal_mean=one_mean)  # type: ignore[arg-type]
    network = make_network(settings).eval()
    for backbone in network.backbones():  # an untrained one has the same weights for thermal as for RGB
        nn.init.normal_(backbone.stem[0].weight, std=0.05)
    folded = fold_input(copy.deepcopy(network))
    assert [backbone.stem[0].in_channels for backbone in folded.backbones()] == channels
    sample = painted_sample(4, (160, 90), SENSOR)  # bars above and below
    shifted = sample.rgb_to_thermal + np.array([[0, 0, 12], [0, 0, -5], [0, 0, 0]], np.float32)  # sees a part of it
    images = {"rgb": sample.rgb, "thermal": sample.thermal, "rgb_to_thermal": shifted}
    feeds = {name: torch.from_numpy(images[name])[None] for name in exporting.input_names(network)}

    def stem(of: Network, **options: bool) -> list[torch.Tensor]:
        """Return what the first convolutions make of the images: where the fold could show most."""
        seen: list[torch.Tensor] = []
        hooks = [b.stem[0].register_forward_hook(lambda _, __, output: seen.append(output)) for b in of.backbones()]
        with torch.no_grad():
            StudentGraph(of, DetectionLimits(), raw_heads=True, **options)(**feeds)
        for hook in hooks:
            hook.remove()
        return seen

    for before, after in zip(stem(network), stem(folded, folded=True), strict=True):
        assert float(before.abs().max()) > 0.5
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cells", [(1, 1), (2, 5), (3, 3), (6, 6), (8, 10), (9, 12)])
def test_means_over_cells_that_share_pixels_are_one_product(cells: tuple[int, int]) -> None:
    program = torch.onnx.export(
        nn.AdaptiveAvgPool2d(cells).eval(),
        (torch.zeros(2, 4, 8, 10),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("B")},),
        custom_translation_table=exporting.TRANSLATIONS,
        verbose=False,
    )
    assert program is not None
    assert [node.op_type for node in program.model_proto.graph.node] == ["Reshape", "MatMul", "Reshape"]
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    features = torch.randn(3, 4, 8, 10, generator=torch.Generator().manual_seed(5))
    (means,) = session.run(None, {session.get_inputs()[0].name: features.numpy()})
    expected = nn.functional.adaptive_avg_pool2d(features, cells)
    np.testing.assert_allclose(means, expected, rtol=0, atol=1e-6)


def test_evaluation_runs_on_the_exported_file(file: Path) -> None:
    samples = [replace(SAMPLES[0], night=True), SAMPLES[1]]
    scores = answers_of_student(ExportedStudent.load(file), samples).scores()
    assert scores["all"].segmentation is not None
    assert scores["all"].segmentation.pixels == 2 * CAMERA[0] * CAMERA[1]
    assert scores["night"].detection is not None
    assert scores["night"].detection.images == 1


def test_compressed_file_is_a_quarter_and_computes_with_the_rounded_weights(
    file: Path, joint: Checkpoint, traced: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.onnx"
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: copy.deepcopy(traced))
    manifest = export(joint, path, compress_weights=True, samples=SAMPLES)
    assert manifest.weights_storage == "int8"
    assert path.stat().st_size < 0.3 * file.stat().st_size
    model = onnx.load(path)
    stored = {item.name: item for item in model.graph.initializer}
    dequantised = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    used = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    assert {node.output[0] for node in dequantised} == used  # every convolution, those shared over levels once
    for node in dequantised:
        values = numpy_helper.to_array(stored[node.input[0]])
        assert values.dtype == np.int8
        assert (
            np.abs(values.astype(int)).reshape(len(values), -1).max(axis=1).min() >= 126
        )  # each channel uses its range
    sample = SAMPLES[0]
    exact = ExportedStudent.load(file).run(sample.rgb, sample.thermal, sample.rgb_to_thermal).segmentation
    rounded = ExportedStudent.load(path).run(sample.rgb, sample.thermal, sample.rgb_to_thermal).segmentation
    assert exact is not None
    assert rounded is not None
    assert (exact.mask == rounded.mask).mean() > 0.9


def test_int8_weights_are_off_by_half_a_step_at_most() -> None:
    weight = (
        torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-3, 1, 8)[:, None, None, None]
    )
    values, scale = int8_weights(weight)
    error = (values.float() * scale.view(-1, 1, 1, 1) - weight).abs().flatten(1).amax(dim=1)
    assert bool((error <= scale * 0.5001).all())
    assert int8_weights(torch.zeros(2, 1, 1, 1))[0].tolist() == [[[[0]]], [[[0]]]]


def test_nothing_is_written_when_onnx_runtime_disagrees(
    joint: Checkpoint, traced: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"the last good one")

    tampered = copy.deepcopy(traced)
    weights = {node.input[1] for node in tampered.graph.node if node.op_type == "Conv"}
    stored = next(item for item in tampered.graph.initializer if item.name in weights)
    stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored) * np.float32(1.01), stored.name))

    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: tampered)
    with pytest.raises(ExportError, match="raw heads"):
        export(joint, path, samples=SAMPLES)
    assert path.read_bytes() == b"the last good one"


@pytest.mark.parametrize(
    ("tasks", "inputs", "outputs"),
    [
        (("detection",), ("rgb", "thermal"), ["boxes", "scores", "labels", "image_index"]),
        (("segmentation",), ("rgb",), ["mask", "confidence"]),
    ],
)
def test_students_with_less_have_less_in_the_file(
    tasks: tuple, inputs: tuple, outputs: list[str], tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(replace(JOINT, tasks=tasks, inputs=inputs))
    path = tmp_path / "student.onnx"
    manifest = export(checkpoint, path, samples=SAMPLES[:1])
    model = onnx.load(path)
    assert [output.name for output in model.graph.output] == outputs
    assert ("thermal" in {item.name for item in model.graph.input}) == ("thermal" in inputs)
    assert (manifest.thermal is not None) == ("thermal" in inputs)
    assert ExportedStudent.load(path).manifest == manifest


def test_compression_refuses_a_graph_that_lost_a_convolution(joint: Checkpoint) -> None:
    with pytest.raises(ExportError, match="0 convolution weights"):
        compress(onnx.ModelProto(), joint.network)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_of_a_student_say_almost_the_same(precision: Precision, file: Path, tmp_path: Path) -> None:
    out = tmp_path / f"{precision}.onnx"
    held_out = Data(SAMPLES, SAMPLES, "2 painted samples")
    comparison = lower(file, out, precision, held_out, Lowering(max_loss=100))
    assert set(comparison.fp32.figures) == {"AP50", "mIoU9"}
    assert out.stat().st_size < (0.55 if precision == "fp16" else 0.3) * file.stat().st_size
    lowered, student = ExportedStudent.load(out), ExportedStudent.load(file)
    assert lowered.precision == precision
    sample = SAMPLES[0]
    found, expected = (each.run(sample.rgb, sample.thermal, sample.rgb_to_thermal) for each in (lowered, student))
    assert found.segmentation is not None
    assert expected.segmentation is not None
    assert (found.segmentation.mask == expected.segmentation.mask).mean() > (0.99 if precision == "fp16" else 0.8)
    assert found.detections is not None
    assert expected.detections is not None
    best = expected.detections.scores[:5]
    np.testing.assert_allclose(found.detections.scores[:5], best, atol=0.01 if precision == "fp16" else 0.1)
    both = lowered.run_batch([(one.rgb, one.thermal, one.rgb_to_thermal) for one in SAMPLES])
    for one, together in zip(SAMPLES, both, strict=True):
        alone = lowered.run(one.rgb, one.thermal, one.rgb_to_thermal)
        assert together.segmentation is not None
        assert alone.segmentation is not None
        assert (together.segmentation.mask == alone.segmentation.mask).mean() > 0.999


def test_a_compressed_student_in_fp16_stays_small(
    file: Path, joint: Checkpoint, traced: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: copy.deepcopy(traced))
    export(joint, tmp_path / "small.onnx", compress_weights=True, samples=SAMPLES)
    out = tmp_path / "fp16.onnx"
    lower(tmp_path / "small.onnx", out, "fp16", Data(SAMPLES, SAMPLES, "2 painted samples"), Lowering(max_loss=100))
    assert out.stat().st_size < 0.3 * file.stat().st_size
    manifest = ExportedStudent.load(out).manifest
    assert (manifest.precision, manifest.weights_storage) == ("fp16", "int8")
