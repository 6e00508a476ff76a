"""Other precisions of an exported student: fp16 for GPUs, int8 for CPUs, each scored beside fp32 before it is written.

Only the network proper is converted: what lies between the first and the last convolutions of the graph. Everything
before it (resize, thermal sampling, normalisation) and behind it (sigmoid and softmax, box decoding, suppression,
upsampling) stays in fp32, whose cost is small and whose coordinates would suffer.

fp16 is ONNX Runtime's own converter (onnxruntime.transformers.float16) on the network alone. On a whole graph its block
lists would round every value between two operators that are to stay in fp32, and so all pixel coordinates.
int8 is ONNX Runtime's static quantisation: QuantizeLinear and DequantizeLinear around the operators, uint8 activations
from the least to the greatest value seen, int8 weights with a scale per output channel. Signed activations would have
no fast kernels on x86. What was measured: docs/performance.md.
"""

import contextlib
import copy
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from md_perception.inference.manifest import check_name
from md_perception.inference.session import SessionSettings, Student
from md_perception.inference.student_file import StudentFile
from md_perception.results import Size
from md_training.data.pairs import PairData
from md_training.data.sample import Sample
from md_training.data.sources import PairSource, ReadSamples, Source
from md_training.data.splits import DataError
from md_training.data.synthetic import SceneData, evaluation_seeds, render
from md_training.evaluate import Answers, answer_of_student
from md_training.export import ExportError, session, weights_sha256, write_student
from md_training.figures.samples import HeldOutPairs, HeldOutScenes, pairs_to_look_at, pairs_to_score

log = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "int8"]

FIGURES = {"detection": "AP50", "segmentation": "mIoU9"}
"""What a precision is judged by."""
QUANTISED = ("Conv", "Relu", "Add", "MaxPool", "Resize", "Concat")
"""Operators that compute in int8; others between them get their values in fp32."""
LARGEST_FP16 = 65504.0
HEADROOM = 8.0
"""By how much fp16 must exceed every activation that was seen. Checked in fp32, because a CPU, which has no fp16
arithmetic, would not show an overflow."""
LOOKED_AT = 4
"""Calibration samples in which fp16 looks for it."""

Arrays = dict[str, np.ndarray]

_STEM = {
    "kernel_shape": [7, 7],
    "strides": [2, 2],
    "pads": [3] * 4,
    "dilations": [1, 1],
    "group": 1,
    "auto_pad": b"NOTSET",
}
"""Of a ResNet's first convolution, as torch exports it."""


@dataclass(frozen=True)
class Lowering:
    """How a student is brought to another precision, and what it may lose by that."""

    calibration_samples: int = 64
    """Samples whose activations set the int8 scales."""
    calibration_data: Path | None = None
    """Folder with the user's own pairs, labelled or not (`md_bag extract`); by default the student's training data."""
    calibration_split: str = ""
    """List of that folder; by default everything but what is held out."""
    held_out: int = 150
    """Held-out samples on which both precisions are scored."""
    held_out_data: Path | None = None
    """Folder of a labelled data set; by default what the student is evaluated on."""
    held_out_split: str = ""
    """List of that folder; by default test-all-20 of KAIST, test of MFNet, val of others."""
    max_loss: float = 1.0
    """Most points of AP50 and of mIoU (of 100) that may be lost; the file is not written beyond."""
    weight_bits: Literal[7, 8] = 7
    """Of int8 weights. With 8, sums may overflow on x86 processors without VNNI (before Intel's Ice Lake and AMD's
    Zen 4), and the student is less accurate there than was found here."""
    keep_fp32: tuple[str, ...] = ()
    """Layers that int8 leaves in fp32 besides the last convolutions of the heads, by the beginning of their names, e.g.
    `backbone.stem` or `detector.neck`."""

    def __post_init__(self) -> None:
        if min(self.calibration_samples, self.held_out) < 1 or not self.max_loss >= 0:
            raise ValueError("calibration_samples and held_out are at least 1, max_loss at least 0")


DEFAULTS = Lowering()


@dataclass(frozen=True)
class Data:
    """What is calibrated on and what is scored, at camera size, each read once; no sample is both.

    title: says what is scored. tasks: of which it has truth.
    """

    calibration: Iterable[Sample]
    held_out: Iterable[Sample]
    title: str
    tasks: tuple[str, ...] = ("detection", "segmentation")


@dataclass
class Trial:
    """What a precision reached on the held-out samples.

    figures: AP50 and mIoU9, 0..1, of the tasks that it has. times_ms: of one call of the student, by sample.
    """

    precision: str
    megabytes: float
    provider: str
    figures: dict[str, float] = field(default_factory=dict)
    times_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Two precisions of a student on the same samples, which took turns. title: of the samples."""

    title: str
    fp32: Trial
    other: Trial

    @property
    def loss(self) -> dict[str, float]:
        """What is lost of each figure, in points of 100; negative where it was gained."""
        return {name: 100 * (value - self.other.figures[name]) for name, value in self.fp32.figures.items()}

    @property
    def speed(self) -> float:
        """How many times as fast as fp32: the median of the ratios, sample by sample."""
        return float(np.median(np.divide(self.fp32.times_ms, self.other.times_ms)))

    def metrics(self) -> dict[str, float]:
        """Return what goes into the manifest: the figures of both, with samples and precision in their names."""
        found = {
            f"{name} [{self.title}, {trial.precision}]": round(value, 4)
            for trial in (self.fp32, self.other)
            for name, value in trial.figures.items()
        }
        provider = self.other.provider.removesuffix("ExecutionProvider")
        return found | {f"speed over fp32 on {provider} [{self.title}, {self.other.precision}]": round(self.speed, 3)}

    def table(self) -> str:
        """Return Markdown: accuracy beside speed and size."""
        names = list(self.fp32.figures)
        rows = [["precision", *names, "ms (median)", "speed", "MB"], ["---"] * (4 + len(names))]
        for trial, speed in ((self.fp32, 1.0), (self.other, self.speed)):
            figures = [f"{100 * trial.figures[name]:.2f}" for name in names]
            median = f"{np.median(trial.times_ms):.1f}"
            rows.append([trial.precision, *figures, median, f"{speed:.2f}", f"{trial.megabytes:.1f}"])
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"{self.title}, {self.other.provider}\n\n{lines}"


def lower(
    source: Path, out: Path, precision: Precision, data: Data, settings: Lowering = DEFAULTS, name: str = ""
) -> Comparison:
    """Write an exported fp32 student in another precision; return what it was judged by, which is in its manifest, too.

    source: weights stored as int8 will do, too. name: in the manifest; by default that of the source.
    Raises ValueError where the source is not in fp32, where the name is none, where a layer to be kept does not exist
    or there are no samples, and ExportError, with nothing written, where the result loses more than settings.max_loss,
    where that cannot be said, or where it would overflow in fp16.
    """
    original = Student.load(source, SessionSettings(providers=("cpu",) if precision == "int8" else ("auto",)))
    manifest = original.manifest
    if manifest.precision != "fp32" or precision == "fp32":
        raise ValueError(f"{source} computes in {manifest.precision}: give an fp32 student, and fp16 or int8 to make")
    check_name(name or manifest.name)
    check_truth({*manifest.tasks} - {*data.tasks}, data.title, precision)
    model = onnx.load(source)
    layers_to_keep(extract(model), settings.keep_fp32)  # a name that is none is told before the samples are read
    inputs = [_feeds(model, sample) for sample in data.calibration]
    if not inputs:
        raise ValueError("there are no samples to calibrate on")
    log.info("%s: %d samples to calibrate on", precision, len(inputs))
    if precision == "int8":
        model = int8(model, inputs, settings.keep_fp32, settings.weight_bits)
    else:
        model = fp16(model, inputs)
    changes = {
        "name": name or manifest.name,
        "precision": precision,
        "weights_storage": "int8" if manifest.weights_storage == "int8" else precision,
        "weights_sha256": weights_sha256(model),
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    manifest = manifest.model_copy(update=changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / out.name
        write_student(model, manifest, path)
        other = Student.load(path, SessionSettings(providers=(original.provider,)))
        comparison = compare(original, other, data.held_out, data.title)
    # A data set may be annotated for what is not in these samples.
    check_truth(
        {task for task in manifest.tasks if FIGURES[task] not in comparison.fp32.figures}, data.title, precision
    )
    lost = [f"{loss:.2f} points of {name}" for name, loss in comparison.loss.items() if not loss <= settings.max_loss]
    if lost:
        raise ExportError(
            f"{precision} loses {' and '.join(lost)} (at most {settings.max_loss:g}); nothing was written. Calibrate "
            "on images like those of its work (--calibration-data), keep more layers in fp32 (--keep-fp32), or allow a "
            f"greater loss (--max-loss)\n{comparison.table()}"
        )
    manifest = manifest.model_copy(update={"metrics": manifest.metrics | comparison.metrics()})
    write_student(model, manifest, out)
    log.info("%s: %.1f MB, %s", out, out.stat().st_size / 1e6, manifest.summary())
    return comparison


def data_for_file(file: StudentFile, settings: Lowering) -> Data:
    """Return the samples of an exported student, as data_for: one that never saw a real image was trained on scenes."""
    scenes = SceneData(camera_size=file.manifest.camera_size)
    return data_for(*file.sizes(None, None), None if file.manifest.seen_real_images else scenes, settings)


def data_for(rgb: Size | None, thermal: Size | None, trained_on: Source | None, settings: Lowering) -> Data:
    """Return the samples of a student that takes images of these sizes, (width, height) px; None: it takes none.

    trained_on: the data of its run, None: not known. Scenes are calibrated on by training seeds and scored by held-out
    ones; of pairs, all that are in the list that is scored are left out of the calibration. Raises DataError where the
    data are not there, where nothing is left, or where --calibration-data or --held-out-data is needed and not given.
    """
    if isinstance(trained_on, SceneData):
        trained_on = replace(
            trained_on, camera_size=rgb or trained_on.camera_size, thermal_size=thermal or trained_on.thermal_size
        )
    scored: PairData | None = None
    if settings.held_out_data is not None:
        scored = pairs_to_score(settings.held_out_data, settings.held_out_split, thermal)
    elif isinstance(trained_on, PairSource):
        scored = trained_on.evaluation()
    elif trained_on is None:
        raise DataError("the file does not hold the data it is scored on: name a labelled data set, --held-out-data")
    calibration: Iterable[Sample]
    if settings.calibration_data is not None:
        pairs = pairs_to_look_at(settings.calibration_data, settings.calibration_split, thermal)
        calibration = _spread(pairs, settings.calibration_samples, but=scored)
    elif isinstance(trained_on, SceneData):
        calibration = render(trained_on.training_seeds[: settings.calibration_samples], trained_on)
    elif trained_on is not None:
        calibration = _spread(trained_on.training(), settings.calibration_samples, but=scored)
    else:
        raise DataError("the file does not hold its training data: name images like them with --calibration-data")
    if scored is None:
        assert isinstance(trained_on, SceneData)
        seeds = evaluation_seeds(settings.held_out)
        return Data(calibration, render(seeds, trained_on), HeldOutScenes(settings.held_out).title)
    shown, held_out = HeldOutPairs(scored), _spread(scored, settings.held_out)
    annotated = {"detection": shown.detection_classes, "segmentation": shown.segmentation_classes}
    tasks = tuple(task for task, classes in annotated.items() if classes)
    return Data(calibration, held_out, f"{len(held_out)} pairs of {shown.title}", tasks)


def compare(fp32: Student, other: Student, samples: Iterable[Sample], title: str) -> Comparison:
    """Score two students of the same tasks on the samples, in turns, and time every call."""
    trials = [Trial(each.precision, each.path.stat().st_size / 1e6, each.provider) for each in (fp32, other)]
    answered = [Answers(), Answers()]
    for number, sample in enumerate(samples):
        both = list(zip((fp32, other), trials, answered, strict=True))
        if number == 0:
            for student, _, _ in both:
                answer_of_student(student, sample)  # the first call of a size pays for memory
        for student, trial, answers in both if number % 2 else both[::-1]:
            start = time.perf_counter()
            seen, output = answer_of_student(student, sample)
            trial.times_ms.append(1e3 * (time.perf_counter() - start))
            answers.add(seen, output)
    for trial, answers in zip(trials, answered, strict=True):
        scores = answers.scores()["all"]
        if scores.detection is not None and scores.detection.mean_ap50 is not None:
            trial.figures[FIGURES["detection"]] = scores.detection.mean_ap50
        if scores.segmentation is not None:
            trial.figures[FIGURES["segmentation"]] = scores.segmentation.miou9
    return Comparison(title, *trials)


def fp16(model: ModelProto, inputs: Sequence[Arrays]) -> ModelProto:
    """Return the model with its network in fp16. inputs: of the graph, by name, to see what values there are.

    Raises ExportError for activations within HEADROOM of fp16's largest number.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    network = extract(model)
    largest, where = largest_activation(model, network, inputs[:LOOKED_AT])
    if largest * HEADROOM > LARGEST_FP16:
        raise ExportError(
            f"activations of {where} reach {largest:.3g}: too near to fp16's largest number, {LARGEST_FP16:g}; nothing "
            "was written. The student stays in fp32, or is trained with more weight decay"
        )
    converted = convert_float_to_float16(
        shape_inference.infer_shapes(network), keep_io_types=True, op_block_list=["Sigmoid", "Softmax"]
    )
    return with_network(model, network, converted)


def int8(
    model: ModelProto, inputs: Sequence[Arrays], keep_fp32: Sequence[str] = (), weight_bits: int = 7
) -> ModelProto:
    """Return the model with its network quantised. inputs: of the graph, by name: the calibration.

    keep_fp32, weight_bits: see Lowering. Raises ValueError where a name fits no layer.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, samples: Iterator[Arrays]) -> None:
            self._samples = samples

        def get_next(self) -> Arrays | None:
            return next(self._samples, None)

    model = with_plain_weights(model)
    network = extract(model)
    kept = layers_to_keep(network, keep_fp32)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "network.onnx", Path(folder) / "quantised.onnx"
        feeds = next(features(model, network, inputs[:1]))
        read_in_blocks(network, {name: values.shape for name, values in feeds.items()}, kept)
        _fix_shapes(network, feeds)
        onnx.save(network, plain)
        with _quiet():
            quantize_static(
                plain,
                quantised,
                Reader(features(model, network, inputs)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=sorted(kept),
                per_channel=True,
                reduce_range=weight_bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        return with_network(model, network, onnx.load(quantised))


def extract(model: ModelProto) -> ModelProto:
    """Return the network proper as a model of its own: the nodes between the first and the last convolutions.

    Its inputs are what the first convolutions read (and weights that the graph dequantises), its outputs what anything
    behind it reads. Raises ExportError for a graph without convolutions.
    """
    graph = model.graph
    inside = _network_nodes(model)
    if not inside:
        raise ExportError("the graph has no convolutions: there is no network to convert")
    own = {id(node) for node in inside}
    rest = [node for node in graph.node if id(node) not in own]
    made = {name for node in inside for name in node.output}
    read = list(dict.fromkeys(name for node in inside for name in node.input if name))
    read_outside = {name for node in rest for name in node.input} | {output.name for output in graph.output}
    constants = {item.name: item for item in graph.initializer}
    network = helper.make_graph(
        inside,
        "network",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in read
            if name not in {*made, *constants}
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for node in inside
            for name in node.output
            if name in read_outside
        ],
        [constants[name] for name in read if name in constants],
    )
    result = helper.make_model(network, opset_imports=model.opset_import, ir_version=model.ir_version)
    for node in result.graph.node:
        for index, name in enumerate(node.input):
            if name in constants and name in read_outside:
                node.input[index] = f"{name}.network"  # its own copy, which may change its type
    for item in result.graph.initializer:
        if item.name in read_outside:
            item.name = f"{item.name}.network"
    for node in result.graph.node:  # what stays in fp32 is told by its name, and files made elsewhere may have none
        node.name = node.name or node.output[0]
    return result


def with_network(model: ModelProto, old: ModelProto, new: ModelProto) -> ModelProto:
    """Return a copy of the model with another network in place of its own. old: what `extract` returned."""
    result = copy.deepcopy(model)
    graph = result.graph
    own = {node.output[0] for node in old.graph.node}
    rest = [node for node in graph.node if node.output[0] not in own]
    read = {name for node in rest for name in node.input}
    stored = [item for item in graph.initializer if item.name in read]
    # Raw bytes are the only form that the loader reads.
    stored += [numpy_helper.from_array(numpy_helper.to_array(item), item.name) for item in new.graph.initializer]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(_sorted([*rest, *new.graph.node]))
    graph.initializer.extend(stored)
    onnx.checker.check_model(result)
    return result


def features(model: ModelProto, network: ModelProto, inputs: Iterable[Arrays]) -> Iterator[Arrays]:
    """Yield the network's inputs, by name, for each of the graph's."""
    names = [value.name for value in network.graph.input]
    before = copy.deepcopy(model)
    del before.graph.output[:]
    before.graph.output.extend(network.graph.input)
    runner = session(before)
    for one in inputs:
        yield dict(zip(names, runner.run(names, one), strict=True))


def largest_activation(model: ModelProto, network: ModelProto, inputs: Iterable[Arrays]) -> tuple[float, str]:
    """Return the greatest absolute value inside the network, and the layer that gives it."""
    names = [node.output[0] for node in network.graph.node if node.op_type in ("Conv", "Add")]
    watched = copy.deepcopy(network)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    runner = session(watched)
    found = (0.0, "")
    for feeds in features(model, network, inputs):
        for name, values in zip(names, runner.run(names, feeds), strict=True):
            found = max(found, (float(np.abs(values).max()), name))
    return found


def layers_to_keep(network: ModelProto, keep_fp32: Sequence[str]) -> set[str]:
    """Return the names of the convolution nodes that int8 leaves in fp32. keep_fp32: see Lowering.

    The last convolutions are always among them: their values are the results, and 255 steps over all logits cost a
    detector 2 points (docs/performance.md). Raises ValueError where a name fits no layer.
    """
    kept = last_convolutions(network)
    layers = {node.name: layer_name(node) for node in network.graph.node if node.op_type == "Conv"}
    for name in keep_fp32:
        fitting = {node for node, layer in layers.items() if f"{layer}.".startswith(f"{name.rstrip('.')}.")}
        if not fitting:
            raise ValueError(f"--keep-fp32 {name}: no layer's name begins so; there are {', '.join(layers.values())}")
        kept |= fitting
    return kept


def last_convolutions(network: ModelProto) -> set[str]:
    """Return the names of the convolution nodes behind which there is no other: those that give the raw heads."""
    last, read = set(), set[str]()
    for node in reversed(network.graph.node):
        if read.intersection(node.output):
            read.update(node.input)
        elif node.op_type == "Conv":
            last.add(node.name)
            read.update(node.input)
    return last


def layer_name(node: NodeProto) -> str:
    """Return the module of a convolution, e.g. `backbone.layer1.0.conv1`."""
    return node.input[1].removesuffix(".network").removeprefix("network.").removesuffix(".weight")


def read_in_blocks(network: ModelProto, shapes: Mapping[str, tuple[int, ...]], but: Collection[str] = ()) -> None:
    """Let 7x7 convolutions of stride 2 on the network's inputs read blocks of 2x2 pixels as channels, in place.

    As 4x4 convolutions of stride 1 they add up the same products and some zeros: of a ResNet's first one ONNX Runtime's
    int8 kernel then copies 16 pieces of 16 channels for each result instead of 49 of 4, which takes 0.6 of the time;
    its fp32 kernel would be slower. shapes: of the inputs, (1, C, H, W), which are fixed in a student (input_size of
    its manifest). but: names of nodes to be left as they are.
    """
    graph = network.graph
    stored = {item.name: item for item in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    blocks: dict[str, NodeProto] = {}
    for node in [node for node in graph.node if node.op_type == "Conv" and node.name not in but]:
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        height, width = shapes.get(node.input[0], (1, 1))[-2:]
        its_own = node.input[1] in stored and readers[node.input[1]] == 1
        if settings != _STEM or not its_own or height % 2 or width % 2:
            continue
        weight = numpy_helper.to_array(stored[node.input[1]])
        outputs, channels = weight.shape[:2]
        # A row and a column of zeros in front: kernels begin with a block then.
        kernels = np.pad(weight, ((0, 0), (0, 0), (1, 0), (1, 0))).reshape(outputs, channels, 4, 2, 4, 2)
        kernels = kernels.transpose(0, 3, 5, 1, 2, 4).reshape(outputs, 4 * channels, 4, 4)
        stored[node.input[1]].CopyFrom(numpy_helper.from_array(kernels, node.input[1]))
        x, *others = node.input
        y = f"{x}.in_blocks_of_2x2"
        blocks[x] = helper.make_node("SpaceToDepth", [x], [y], y, blocksize=2)
        node.CopyFrom(
            helper.make_node("Conv", [y, *others], node.output, node.name, kernel_shape=[4, 4], pads=[2, 2, 1, 1])
        )
    for made in blocks.values():
        graph.node.insert(0, made)


def with_plain_weights(model: ModelProto) -> ModelProto:
    """Return a copy whose stored int8 weights are fp32 again."""
    result = copy.deepcopy(model)
    graph = result.graph
    stored = {item.name: item for item in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]:
        values, scale = (numpy_helper.to_array(stored[name]) for name in node.input[:2])
        weight = values.astype(np.float32) * scale.reshape((-1,) + (1,) * (values.ndim - 1))
        for name in node.input:
            graph.initializer.remove(stored[name])
        graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        graph.node.remove(node)
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's remarks out of the log: it writes on the root logger itself, of a preparation that the
    exporter has done and of copies that it makes. What other loggers say is not touched.
    """

    def severe(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(severe)
    try:
        yield
    finally:
        root.removeFilter(severe)


def _network_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the nodes that have a convolution before and behind them, or are one."""
    behind: set[str] = set()  # values that depend on a convolution
    after = []
    for node in model.graph.node:
        if node.op_type == "Conv" or behind.intersection(node.input):
            after.append(node)
            behind.update(node.output)
    needed: set[str] = set()  # values that a convolution depends on
    inside = []
    for node in reversed(after):
        if node.op_type == "Conv" or needed.intersection(node.output):
            inside.append(node)
            needed.update(node.input)
    return inside[::-1]


def _sorted(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes so that each comes behind what it reads; the quantiser and the converter append theirs."""
    makers = {name: node for node in nodes for name in node.output}
    done: set[int] = set()
    ordered: list[NodeProto] = []
    stack: list[tuple[NodeProto, bool]] = [(node, False) for node in reversed(nodes)]
    while stack:
        node, ready = stack.pop()
        if ready:
            ordered.append(node)
        elif id(node) not in done:
            done.add(id(node))
            stack.append((node, True))
            stack += [(makers[name], False) for name in node.input if name in makers]
    return ordered


def _fix_shapes(network: ModelProto, feeds: Arrays) -> None:
    """Note the types and shapes of all values, which the quantiser wants, in place."""
    for value in network.graph.input:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, feeds[value.name].shape))
    network.CopyFrom(shape_inference.infer_shapes(network))


def _feeds(model: ModelProto, sample: Sample) -> Arrays:
    """Return the graph's inputs of a sample, by name."""
    return {value.name: getattr(sample, value.name)[None] for value in model.graph.input}


def check_truth(unknown: Collection[str], title: str, precision: Precision) -> None:
    """Raise ExportError where there are tasks that the held-out samples have no truth of."""
    if unknown:
        raise ExportError(
            f"{title} has no truth of {' and '.join(sorted(unknown))}, so that nobody can say what {precision} loses: "
            "name a labelled data set with --held-out-data; nothing was written"
        )


def _spread(pairs: PairData, count: int, but: PairData | None = None) -> ReadSamples:
    """Return so many pairs, evenly spread, or all; none whose RGB image is one of `but`. Raises DataError."""
    taken = set() if but is None else {but.files(name)["rgb"].resolve() for name in but.split.names}
    free = [index for index, name in enumerate(pairs.split.names) if pairs.files(name)["rgb"].resolve() not in taken]
    if but is not None and not free:
        raise DataError(
            f"{pairs.root}: every pair to calibrate on is also held out ({HeldOutPairs(but).title}), and a precision "
            "that is judged by what it was calibrated on looks better than it is: name another list with "
            "--calibration-split or --held-out-split, or other images with --calibration-data"
        )
    chosen = np.linspace(0, len(free) - 1, min(count, len(free))).round().astype(int)
    return ReadSamples(pairs, [free[index] for index in chosen])
