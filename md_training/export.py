"""Export of a student to the one ONNX file that the node runs, checked against torch before it is written.

The graph takes raw camera images and gives final results in camera pixels (md_perception.inference runs it):
inputs `rgb` uint8 [B, H, W, 3], `thermal` uint8 [B, h, w], `rgb_to_thermal` float32 [B, 3, 3]; outputs `boxes`
float32 [N, 4], `scores` float32 [N], `labels` int64 [N], `image_index` int64 [N], `mask` and `confidence` uint8
[B, H, W]. The N objects are those of the first image, then those of the next; `image_index` says of which a row is.
What a student does not use or does not do is absent; a thermal-only one takes `thermal` alone and gives its results in
thermal pixels. All image sizes are dynamic, and B, or all are fixed: then B is 1 and `image_index` absent, N is fixed
too, and the rows that stand for no object have a score below 0.
"""

import copy
import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from onnxscript import ir, opset20
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import md_perception
from md_perception.inference.manifest import FORMAT_VERSION, Manifest, check_name
from md_perception.inference.student_file import MAX_SIDE
from md_perception.labels import SEGMENTATION
from md_training.checkpoint import Checkpoint
from md_training.data.sample import Sample
from md_training.data.synthetic import SceneData, evaluation_seeds, render
from md_training.models.backbone import Backbone, EqualCopies
from md_training.models.networks import (
    AnyNetwork,
    DecisionFusion,
    Network,
    Outputs,
    Student,
    Teacher,
    inference_copy,
    select_inputs,
)
from md_training.models.pspnet import SegmentationLogits
from md_training.models.retinanet import DetectionLogits
from md_training.postprocess import NMS_IOU, DetectionLimits, detect_batch, detect_padded, segment
from md_training.preprocess import (
    MEAN,
    SEEN,
    STD,
    THERMAL_MEAN,
    THERMAL_STD,
    Letterbox,
    folded_input,
    make_letterbox,
    network_input,
    thermal_input,
)
from md_training.presets import Run

log = logging.getLogger(__name__)

OPSET = 20
"""GridSample's present form; ONNX Runtime 1.18 and later run it."""
RAW_HEADS = ("raw_classes", "raw_deltas", "raw_segmentation")
TILES = 4
"""Parts in which a graph for a processor works through full-size images, see postprocess.segment."""
MIN_SIDE = 4
"""Smallest fixed side of an image, px: scenes, which the file is checked on, cannot be rendered smaller than 3."""
RAW_TOLERANCE = 1e-3
"""Largest difference of a raw head between torch and ONNX Runtime."""
BOX_TOLERANCE_PX = 0.05
SCORE_TOLERANCE = 1e-3
MASK_TOLERANCE = 1e-4
"""Share of mask pixels that may differ (ties between two classes)."""
CONFIDENCE_TOLERANCE = 2
"""Levels of 255."""


def _suppress(boxes: Any, scores: Any, maximum: int) -> Any:
    """Return postprocess.suppress in ONNX: of (image, class, row) of what is kept, the first and the last."""
    kept = opset20.NonMaxSuppression(boxes, opset20.Unsqueeze(scores, [1]), [maximum], [NMS_IOU])
    return opset20.Gather(kept, [0, 2], axis=1)


def _pool(features: Any, cells: Sequence[int]) -> Any:
    """Return the means over rows x columns of cells of float (B, C, h, w), as one product with a matrix.

    ONNX has no such operator. Where the cells are not all of one size, the exporter's own way is an addition and a
    gathering for each of their pixels.
    """
    of_rows, of_columns = (_means(count, length) for count, length in zip(cells, features.shape[2:], strict=True))
    matrix = ir.tensor(np.kron(of_rows, of_columns).T.astype(np.float32))
    means = opset20.MatMul(opset20.Reshape(features, [0, 0, -1]), opset20.Constant(value=matrix))
    return opset20.Reshape(means, [0, 0, *cells])


def _means(count: int, length: int) -> np.ndarray:
    """Return float (count, length): what takes the means of `length` values in as many cells as torch does."""
    first = np.arange(count) * length // count
    last = -(-np.arange(1, count + 1) * length // count)  # cells may share a value
    values = np.arange(length)
    inside = (values >= first[:, None]) & (values < last[:, None])
    return inside / inside.sum(axis=1, keepdims=True)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.md_training.suppress.default: _suppress,
    torch.ops.aten.adaptive_avg_pool2d.default: _pool,
}
"""What the exporter makes of operators of our own, and of those that it spells out in many nodes."""


class ExportError(RuntimeError):
    """Torch and ONNX Runtime disagree on what the exported graph computes; nothing was written."""


class StudentGraph(nn.Module):
    """The network between its pre- and postprocessing.

    raw_heads: give the raw heads as further outputs. folded: the network is that of `fold_input`. padded: see
    postprocess.detect_padded. tiles: see postprocess.segment.
    """

    def __init__(
        self,
        network: Network,
        limits: DetectionLimits,
        *,
        raw_heads: bool,
        folded: bool = False,
        padded: bool = False,
        tiles: int = 1,
    ) -> None:
        super().__init__()
        self.network, self.limits, self.raw_heads = network, limits, raw_heads
        self.folded, self.padded, self.tiles = folded, padded, tiles

    def forward(
        self, rgb: Tensor | None = None, thermal: Tensor | None = None, rgb_to_thermal: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the tensors that `output_names` names; arguments are the graph's inputs (see the module)."""
        size = self.network.settings.input_size
        camera = rgb if rgb is not None else thermal
        assert camera is not None
        if self.folded:
            one_mean = self.network.settings.one_thermal_mean
            image, box = folded_input(rgb, thermal, rgb_to_thermal, size, self.tiles, one_thermal_mean=one_mean)
        elif rgb is not None:
            image, box = network_input(rgb, thermal, rgb_to_thermal, size)
            image = select_inputs(image, self.network.settings.inputs)
        else:
            image, box = thermal_input(camera, size)
        outputs = self.network(image)
        results = self.results(outputs, camera, box)
        if self.raw_heads and outputs.detection is not None:
            results += (outputs.detection.classes, outputs.detection.deltas)
        if self.raw_heads and outputs.segmentation is not None:
            results += (outputs.segmentation.main,)
        return results

    def results(self, outputs: Outputs, camera: Tensor, box: Letterbox) -> tuple[Tensor, ...]:
        """Return what raw heads say, the first of the tensors that `output_names` names.

        camera: the batch of images in whose pixels the results are. box: where they lie in the network's input.
        """
        results: tuple[Tensor, ...] = ()
        if outputs.detection is not None:
            detection = detect_padded if self.padded else detect_batch
            results += detection(outputs.detection, self.network.anchors, box, self.limits)
        if outputs.segmentation is not None:
            size = self.network.settings.input_size
            results += segment(outputs.segmentation, camera.shape[1], camera.shape[2], box, size, self.tiles)
        return results

    def output_names(self) -> list[str]:
        names: list[str] = []
        raw: list[str] = []
        if "detection" in self.network.settings.tasks:
            names += ["boxes", "scores", "labels", *([] if self.padded else ["image_index"])]
            raw += RAW_HEADS[:2]
        if "segmentation" in self.network.settings.tasks:
            names += ["mask", "confidence"]
            raw += RAW_HEADS[2:]
        return names + raw if self.raw_heads else names


def export(
    checkpoint: Checkpoint,
    path: Path,
    *,
    name: str = "",
    compress_weights: bool = False,
    score_threshold: float = 0.05,
    fixed: tuple[int, int] | None = None,
    fixed_thermal: tuple[int, int] | None = None,
    samples: Sequence[Sample] | None = None,
) -> Manifest:
    """Write a checkpoint as an ONNX file and return the manifest inside it.

    name: in the manifest; by default the run's. compress_weights: int8 weights per output channel, dequantised in the
    graph. fixed: (width, height) px of the only camera images that the file will take, with all shapes in it fixed, for
    CUDA graphs and TensorRT; fixed_thermal: of the thermal ones, by default the size that it was trained for. samples:
    what the file is checked on, of the fixed sizes where there are such; by default a few held-out scenes.
    Raises ValueError for a name, a score threshold or a size that is none, and ExportError, with nothing written,
    where torch and ONNX Runtime disagree beyond the tolerances above.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score threshold {score_threshold:g}: scores are probabilities, choose one from 0 to 1")
    run = checkpoint.run
    check_name(name or run.name)
    camera_size, thermal_size = fixed_sizes(run, fixed, fixed_thermal)
    reference = inference_copy(checkpoint.network).cpu()
    folded = fold_input(fold_batch_norm(copy.deepcopy(reference)))
    limits = DetectionLimits(score_threshold=score_threshold)
    # Fixed shapes are for GPUs, which have the memory bandwidth and pay for every operator that is started.
    tiles = 1 if fixed else TILES
    graph = StudentGraph(folded, limits, raw_heads=True, folded=True, padded=fixed is not None, tiles=tiles)
    model = to_onnx(graph, camera_size, thermal_size, fixed=fixed is not None)
    expected = StudentGraph(reference, limits, raw_heads=True)
    if compress_weights:
        compress(model, folded)
        quantise(folded)  # what the int8 weights stand for is what the file has to compute
        expected = StudentGraph(folded, limits, raw_heads=True, folded=True)
    if samples is None:
        scenes = run.data if isinstance(run.data, SceneData) else SceneData()
        scenes = replace(scenes, camera_size=camera_size, thermal_size=thermal_size)
        samples = list(render(evaluation_seeds(4), scenes))
    check(model, expected, samples)
    drop_outputs(model, RAW_HEADS)

    manifest = Manifest(
        format_version=1 if fixed else FORMAT_VERSION,
        name=name or run.name,
        role="teacher" if run.network.architecture == "two_stream" else "student",
        tasks=run.network.tasks,
        detection_classes=run.network.detection_classes if "detection" in run.network.tasks else (),
        segmentation_classes=SEGMENTATION.classes if "segmentation" in run.network.tasks else (),
        inputs=run.network.inputs,
        thermal=run.data.contract if "thermal" in run.network.inputs else None,
        input_size=run.network.input_size,
        camera_size=run.data.camera_size,
        precision="fp32",
        weights_storage="int8" if compress_weights else "fp32",
        score_threshold=score_threshold,
        run_id=checkpoint.run_id,
        teacher_run_ids=checkpoint.teachers,
        training_data=checkpoint.training_data or run.data.description(),
        split_hashes=checkpoint.split_hashes,
        seen_real_images=not isinstance(run.data, SceneData),
        metrics=checkpoint.metrics,
        git_revision=checkpoint.git_revision,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        weights_sha256=weights_sha256(model),
    )
    write_student(model, manifest, path)
    log.info("%s: %.1f MB, %s", path, path.stat().st_size / 1e6, manifest.summary())
    return manifest


def write_student(model: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    """Write a model with this manifest as its only metadata, whole or not at all."""
    helper.set_model_props(model, manifest.to_metadata())
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(model.SerializeToString())
    os.replace(part, path)


def input_names(network: Network) -> list[str]:
    """Return the names of the graph's inputs."""
    cameras = network.settings.inputs
    return [*cameras, "rgb_to_thermal"] if len(cameras) == 2 else [*cameras]


def fixed_sizes(
    run: Run, fixed: tuple[int, int] | None, fixed_thermal: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) px of camera and thermal images: those that were asked for, else those of the training.

    Raises ValueError for sizes that are none, or that the network has no camera for.
    """
    if fixed is None and fixed_thermal is not None:
        raise ValueError("the size of the thermal images is fixed together with that of the camera images: give both")
    if fixed_thermal is not None and "thermal" not in run.network.inputs:
        raise ValueError("the network takes no thermal images: there is no size of them to fix")
    for what, size in (("camera", fixed), ("thermal", fixed_thermal)):
        if size is not None and not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
            raise ValueError(f"fixed {what} size {size}: give width and height from {MIN_SIDE} to {MAX_SIDE} px")
    if "rgb" not in run.network.inputs and fixed is not None:  # thermal is its camera
        if fixed_thermal not in (None, fixed):
            raise ValueError("the network takes thermal images alone: give their size as the fixed one")
        fixed_thermal = fixed
    return fixed or run.data.camera_size, fixed_thermal or run.data.thermal_size


def to_onnx(
    graph: StudentGraph, camera_size: tuple[int, int], thermal_size: tuple[int, int], *, fixed: bool = False
) -> onnx.ModelProto:
    """Trace the graph. Sizes: (width, height) px of the images it is traced with; fixed: no others can then be run,
    and no more than one.
    """
    batch = 1 if fixed else 2  # torch takes a size of 1 for one that never changes
    images = {
        "rgb": torch.zeros(batch, camera_size[1], camera_size[0], 3, dtype=torch.uint8),
        "thermal": torch.zeros(batch, thermal_size[1], thermal_size[0], dtype=torch.uint8),
        "rgb_to_thermal": torch.eye(3).repeat(batch, 1, 1),
    }
    sizes: dict[str, dict[int, torch.export.Dim]] = {
        "rgb": {0: torch.export.Dim("B"), 1: torch.export.Dim("H"), 2: torch.export.Dim("W")},
        "thermal": {0: torch.export.Dim("B"), 1: torch.export.Dim("h"), 2: torch.export.Dim("w")},
        "rgb_to_thermal": {0: torch.export.Dim("B")},
    }
    names = input_names(graph.network)
    inputs, dynamic = {name: images[name] for name in names}, {name: sizes[name] for name in names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
        program = torch.onnx.export(
            graph.eval(),
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=None if fixed else dynamic,
            output_names=graph.output_names(),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.producer_name, model.producer_version = "md_training", md_perception.__version__
    del model.metadata_props[:]
    _state_scales(model.graph)
    _strip_traces(model.graph)
    return model


def fold_batch_norm(network: AnyNetwork) -> AnyNetwork:
    """Fold every BatchNorm into the convolution that is registered directly before it; works in place."""
    for module in list(network.modules()):
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                assert previous is not None
                assert isinstance(previous[1], nn.Conv2d)
                setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
                setattr(module, name, nn.Identity())
            previous = (name, child)
    return network


@torch.no_grad()
def fold_input(network: AnyNetwork) -> AnyNetwork:
    """Fold the normalisation, and thermal's three equal copies, into the first convolutions; works in place.

    The network then takes preprocess.folded_input, and gives the same results to within rounding, borders, bars and
    what thermal did not see included. Three copies that differ in mean and deviation (NetworkSettings.one_thermal_mean)
    become two channels: what they add up to is one convolution of the levels and one of where thermal was seen (inside,
    a constant), which is 0 where they do not differ.
    """
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    per_level = 1 / (255 * std).view(1, 3, 1, 1)
    per_seen = ((THERMAL_MEAN - mean) / std / SEEN).view(1, 3, 1, 1)
    for backbone, cameras in first_backbones(network):
        conv = backbone.stem.get_submodule("conv1")
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight
        parts = [weight[:, :3] * per_level] if "rgb" in cameras else []
        if "thermal" in cameras:
            copies = weight[:, -3:]
            if isinstance(backbone.copies, EqualCopies):
                backbone.copies = nn.Identity()
                parts.append(copies.sum(dim=1, keepdim=True) / (255 * THERMAL_STD))
            else:
                parts += [(copies * scale).sum(dim=1, keepdim=True) for scale in (per_level, per_seen)]
        conv.weight = nn.Parameter(torch.cat(parts, dim=1))
        conv.in_channels = conv.weight.shape[1]
    return network


def first_backbones(network: Network) -> Iterator[tuple[Backbone, tuple[str, ...]]]:
    """Yield the backbones of a network, each with the cameras that it sees."""
    if isinstance(network, Student):
        yield network.backbone, network.settings.inputs
    elif isinstance(network, Teacher):
        yield from ((network.visible, ("rgb",)), (network.thermal, ("thermal",)))
    elif isinstance(network, DecisionFusion):
        for member in (network.visible, network.thermal):
            yield from first_backbones(member)


def int8_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 (O, ...) and float32 (O,) scales: symmetric, one scale per output channel."""
    scale = weight.abs().flatten(1).amax(dim=1).clamp(min=1e-12) / 127
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return torch.round(weight / scale.view(shape)).clamp(-127, 127).to(torch.int8), scale


@torch.no_grad()
def quantise(network: nn.Module) -> None:
    """Replace every convolution's weights by what its int8 weights stand for, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            values, scale = int8_weights(module.weight)
            module.weight.copy_(values.float() * scale.view(-1, 1, 1, 1))


def compress(model: onnx.ModelProto, network: nn.Module) -> None:
    """Store the convolution weights of a model as int8 with a DequantizeLinear each, in place.

    network: what the model was made of. Raises ExportError where the model does not hold all its convolutions.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    nodes, found = [], 0
    for index, initialiser in enumerate(model.graph.initializer):
        if initialiser.name not in weights:
            continue
        found += 1
        name = initialiser.name
        values, scale = int8_weights(torch.from_numpy(numpy_helper.to_array(initialiser).copy()))
        model.graph.initializer[index].CopyFrom(numpy_helper.from_array(values.numpy(), f"{name}.int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale.numpy(), f"{name}.scale"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=0))
    if found != convolutions:
        raise ExportError(f"the graph has {found} convolution weights, the network {convolutions}: not compressible")
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def session(model: onnx.ModelProto, threads: int = 0) -> onnxruntime.InferenceSession:
    """Return a CPU session of a model in memory, its weights dequantised at load."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Agreement:
    """Largest differences over all checked samples: of the raw heads of torch and ONNX Runtime, and between the results
    of ONNX Runtime and what torch makes of the same raw heads."""

    raw: float
    box_px: float
    score: float
    mask_share: float
    confidence: float
    detections: int


@torch.no_grad()
def check(model: onnx.ModelProto, graph: StudentGraph, samples: Sequence[Sample]) -> Agreement:
    """Run both on the samples, and two of them (or one twice) as a batch, and compare.

    The results are compared with what torch makes of ONNX Runtime's raw heads. After its own it may keep another one of
    two boxes that overlap: a hardly trained student has hundreds of scores that are equal but for rounding.
    Raises ExportError where they differ beyond the tolerances.
    """
    runner = session(model)
    names = [output.name for output in runner.get_outputs()]
    raw = box_px = score = mask_share = confidence = 0.0
    detections = 0
    batches = [[sample] for sample in samples]
    if isinstance(runner.get_inputs()[0].shape[0], str):  # a batch of any size
        same = [sample for sample in samples if _shapes(sample) == _shapes(samples[0])]
        batches.append([same[-2 % len(same)], same[-1]])  # a sample without its like is taken twice
    for batch in batches:
        inputs = {name: np.stack([getattr(sample, name) for sample in batch]) for name in input_names(graph.network)}
        images = {key: torch.from_numpy(value) for key, value in inputs.items()}
        expected = dict(zip(graph.output_names(), graph(**images), strict=True))
        found = dict(zip(names, runner.run(names, inputs), strict=True))
        heads = {head: found[head] for head in RAW_HEADS if head in expected}
        raw = max(raw, *(float(np.abs(values - expected[head].numpy()).max()) for head, values in heads.items()))
        expected |= zip(graph.output_names(), _after(graph, heads, next(iter(images.values()))), strict=False)
        if "mask" in expected:
            mask_share = max(mask_share, float((found["mask"] != expected["mask"].numpy()).mean()))
            levels = found["confidence"].astype(np.int16) - expected["confidence"].numpy()
            confidence = max(confidence, float(np.abs(levels).max()))
        if "boxes" in expected:
            objects = found["scores"] >= 0  # a file of fixed shapes has rows that stand for none
            found |= {key: found[key][objects] for key in ("boxes", "scores", "labels")}
            found.setdefault("image_index", np.zeros_like(found["labels"]))
            truth = {key: expected[key].numpy() for key in _ROWS}
            for one, other in ((truth, found), (found, truth)):
                box, points = unmatched(one, other, graph.limits.score_threshold)
                box_px, score = max(box_px, box), max(score, points)
            detections += len(truth["scores"])
    agreement = Agreement(raw, box_px, score, mask_share, confidence, detections)
    log.info("torch and ONNX Runtime on %d samples: %s", len(samples), agreement)
    for what, value, limit in (
        ("raw heads", raw, RAW_TOLERANCE),
        ("boxes (px)", box_px, BOX_TOLERANCE_PX),
        ("scores", score, SCORE_TOLERANCE),
        ("share of mask pixels", mask_share, MASK_TOLERANCE),
        ("confidences", confidence, CONFIDENCE_TOLERANCE),
    ):
        if not value <= limit:
            raise ExportError(
                f"torch and ONNX Runtime differ in {what} by {value:.4g} (at most {limit:g}); nothing was written"
            )
    return agreement


def _after(graph: StudentGraph, heads: Mapping[str, np.ndarray], camera: Tensor) -> tuple[Tensor, ...]:
    """Return what torch makes of raw heads, by name; camera: the batch of images that they are of."""
    raw = {name: torch.from_numpy(values) for name, values in heads.items()}
    box = make_letterbox(camera.shape[1], camera.shape[2], graph.network.settings.input_size, camera)
    outputs = Outputs(
        DetectionLogits(raw["raw_classes"], raw["raw_deltas"]) if "raw_classes" in raw else None,
        SegmentationLogits(raw["raw_segmentation"], None) if "raw_segmentation" in raw else None,
    )
    return graph.results(outputs, camera, box)


def unmatched(one: dict[str, np.ndarray], other: dict[str, np.ndarray], threshold: float) -> tuple[float, float]:
    """Return the largest box (px) and score difference between each detection of one and the image's nearest of the
    other.

    Detections within SCORE_TOLERANCE of the threshold may be on either side of it and are left out.
    """
    box_px = score = 0.0
    for box, points, label, image in zip(*(one[key] for key in _ROWS), strict=True):
        if points < threshold + SCORE_TOLERANCE:
            continue
        same = (other["labels"] == label) & (other["image_index"] == image)
        if not same.any():
            return float("inf"), float("inf")
        distance = np.abs(other["boxes"][same] - box).max(axis=1)
        best = int(distance.argmin())
        box_px = max(box_px, float(distance[best]))
        score = max(score, float(abs(other["scores"][same][best] - points)))
    return box_px, score


_ROWS = ("boxes", "scores", "labels", "image_index")
"""Outputs with a row for each object."""


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return sample.rgb.shape, sample.thermal.shape


def drop_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Take outputs off a model, in place; what computes them stays where something else needs it."""
    kept = [output for output in model.graph.output if output.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def weights_sha256(model: onnx.ModelProto) -> str:
    """Return the hash of all stored constants, in order of their names."""
    digest = hashlib.sha256()
    for initialiser in sorted(model.graph.initializer, key=lambda item: item.name):
        digest.update(initialiser.name.encode())
        digest.update(numpy_helper.to_array(initialiser).tobytes())
    return digest.hexdigest()


def _state_scales(graph: onnx.GraphProto) -> None:
    """Let resizing by whole numbers say by how much, instead of computing its size from that of a batch, in place.

    ONNX Runtime keeps its own layout of channels only through resizes that it knows beforehand.
    """
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.value_info}
    for node in graph.node:
        if node.op_type == "Resize" and len(node.input) == 4:
            before, after = (shapes[name][2:] for name in (node.input[0], node.output[0]))
            if all(old and new and new % old == 0 for old, new in zip(before, after, strict=True)):
                scales = np.array([1, 1, *(new / old for old, new in zip(before, after, strict=True))], np.float32)
                graph.initializer.append(numpy_helper.from_array(scales, f"{node.output[0]}.scales"))
                del node.input[2:]
                node.input.append(graph.initializer[-1].name)
    read = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):  # what computed the sizes
        if read.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            read.update(node.input)
    stored = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(stored)


def _strip_traces(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes (stack traces with paths of the exporting machine) from nodes and values."""
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.metadata_props[:]
