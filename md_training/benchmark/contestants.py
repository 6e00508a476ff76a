"""What is timed: networks in torch and ONNX Runtime, exported files, and probes of what the machine can do at most."""

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from md_perception.inference.session import Pair, SessionSettings, Student, StudentError, make_session
from md_perception.metrics.latency import processor
from md_perception.sensing.registration import sampling_matrix
from md_training.benchmark.report import COPY, GEMM
from md_training.benchmark.subjects import Part, Precision, Runtime, Subject
from md_training.checkpoint import Checkpoint, git_revision
from md_training.data.sample import Sample
from md_training.data.synthetic import SceneData
from md_training.export import StudentGraph, export, fold_batch_norm, fold_input, input_names
from md_training.models.networks import Network, NetworkSettings, Outputs, inference_copy
from md_training.models.pspnet import SegmentationLogits
from md_training.models.retinanet import DetectionLogits
from md_training.postprocess import DetectionLimits
from md_training.presets import Run

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

GEMM_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices of the probe."""


class RawHeads(nn.Module):
    """A network that returns its raw heads as a tuple: classes, deltas, segmentation logits; what it has of them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs: Outputs = self.network(image)
        heads: list[Tensor] = []
        if outputs.detection is not None:
            heads += [outputs.detection.classes, outputs.detection.deltas]
        if outputs.segmentation is not None:
            heads.append(outputs.segmentation.main)
        return tuple(heads)


class ConstantHeads(Network):
    """Heads of noise without a network before them: what is left of a graph is what is around the network."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.settings)
        with torch.no_grad():
            folded = fold_input(inference_copy(network)).to("meta")
            heads = folded(torch.zeros(image_shape(network.settings, 1), device="meta"))
        random = torch.Generator().manual_seed(0)

        def noise(name: str, of: Tensor) -> None:
            self.register_buffer(name, torch.randn(of.shape, generator=random))

        if heads.detection is not None:
            noise("classes", heads.detection.classes)
            noise("deltas", heads.detection.deltas)
        if heads.segmentation is not None:
            noise("logits", heads.segmentation.main)

    def forward(self, image: Tensor) -> Outputs:
        nothing = 0 * image[:, :, 0, 0].sum()  # what no result depends on would be left out of the export
        detection = segmentation = None
        if "detection" in self.settings.tasks:
            detection = DetectionLogits(self.get_buffer("classes") + nothing, self.get_buffer("deltas"))
        if "segmentation" in self.settings.tasks:
            segmentation = SegmentationLogits(self.get_buffer("logits") + nothing, None)
        return Outputs(detection, segmentation)


@dataclass(frozen=True)
class Contestant:
    """One thing that is timed. part: `network` is from its folded input to the raw heads, both on the device;
    `graph` from uint8 camera images to results, both in the host's memory; `around` is the graph with ConstantHeads.
    subject: None for an exported file. batch: pairs of a call of a file.
    """

    name: str
    role: str
    tasks: str
    runtime: Runtime
    precision: str
    part: Part
    call: Callable[[], object]
    subject: Subject | None = None
    batch: int = 1

    @property
    def setting(self) -> tuple[str, str, str]:
        """What two contestants must share to be compared."""
        return self.runtime, self.precision, self.part

    @property
    def label(self) -> str:
        return f"{self.name}, {self.runtime} {self.precision} {self.part}"


@dataclass(frozen=True)
class Images:
    """Noise of a camera and of a thermal sensor of a quarter of its size per side, as numpy and Student.run take it."""

    rgb: np.ndarray
    thermal: np.ndarray
    rgb_to_thermal: np.ndarray

    @classmethod
    def make(cls, camera_size: tuple[int, int], thermal_size: tuple[int, int] | None = None) -> "Images":
        """Sizes: (width, height) px."""
        random = np.random.default_rng(0)
        thermal_size = thermal_size or (camera_size[0] // 4, camera_size[1] // 4)
        rgb = random.integers(0, 256, (camera_size[1], camera_size[0], 3), np.uint8)
        thermal = random.integers(0, 256, (thermal_size[1], thermal_size[0]), np.uint8)
        return cls(rgb, thermal, sampling_matrix(camera_size, thermal_size))

    def sample(self) -> Sample:
        """Return them as a sample without objects."""
        return Sample(
            rgb=self.rgb,
            thermal=self.thermal,
            rgb_to_thermal=self.rgb_to_thermal,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            ignored=np.zeros(0, np.bool_),
            mask=np.zeros(self.rgb.shape[:2], np.uint8),
            night=False,
            name="noise",
        )


def image_shape(settings: NetworkSettings, batch: int) -> tuple[int, int, int, int]:
    """Return the shape of a folded network's input, see preprocess.folded_input."""
    thermal = 1 if settings.one_thermal_mean else 2
    channels = sum({"rgb": 3, "thermal": thermal}[camera] for camera in settings.inputs)
    return batch, channels, settings.input_size[1], settings.input_size[0]


def torch_contestant(
    subject: Subject,
    network: Network,
    runtime: Runtime,
    precision: Precision,
    part: Part,
    device: torch.device,
    batch: int,
    camera_size: tuple[int, int],
) -> Contestant:
    """Return a network as torch runs it: inference mode, channels last, folded, below fp32 with autocast."""
    settings = network.settings
    if part == "around":
        network = ConstantHeads(network)
    folded = fold_input(fold_batch_norm(inference_copy(network)))
    folded = folded.to(device).to(memory_format=torch.channels_last)
    if precision != "fp32":  # of the network alone: half precision is too coarse for the pre- and postprocessing
        folded.forward = torch.autocast(device.type, DTYPES[precision])(folded.forward)
    if runtime == "compiled":
        folded.forward = torch.compile(folded.forward)
    run: nn.Module = RawHeads(folded)
    inputs = [torch.rand(image_shape(settings, batch), device=device).to(memory_format=torch.channels_last)]
    names = ["image"]
    if part != "network":
        run = StudentGraph(folded, DetectionLimits(), raw_heads=False, folded=True)
        names, images = input_names(folded), Images.make(camera_size)
        inputs = [torch.from_numpy(getattr(images, name))[None] for name in names]

    @torch.inference_mode()
    def call() -> object:
        results = run(**{name: tensor.to(device) for name, tensor in zip(names, inputs, strict=True)})
        if part != "network":
            return [result.cpu() for result in results]  # waits for the GPU
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return results

    return Contestant(subject.name, subject.kind, subject.tasks, runtime, precision, part, call, subject)


def onnx_contestant(
    subject: Subject,
    network: Network,
    runtime: Runtime,
    part: Part,
    options: SessionSettings,
    batch: int,
    camera_size: tuple[int, int],
) -> Contestant:
    """Return the export of a network in ONNX Runtime: `graph` is the file and the code that the node runs.

    Raises StudentError where the provider does not work here, ExportError where ONNX Runtime computes something else.
    """
    settings = network.settings
    if part != "network":
        images = Images.make(camera_size)
        cameras = SceneData(camera_size=camera_size, thermal_size=images.thermal.shape[::-1])
        run = Run(name="benchmark", network=settings, data=cameras)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "benchmark.onnx"
            timed = ConstantHeads(network) if part == "around" else network
            checkpoint = Checkpoint(run, "benchmark", 0, timed, {}, git_revision())
            export(checkpoint, path, samples=[images.sample()])
            student = Student.load(path, options)
        call = student_call(student, images)
    else:
        image = torch.rand(image_shape(settings, batch))
        heads = RawHeads(fold_input(fold_batch_norm(inference_copy(network)))).eval()
        with torch.no_grad():
            program = torch.onnx.export(heads, (image,), dynamo=True, verbose=False)
        assert program is not None
        session = make_session(Path(subject.name), program.model_proto.SerializeToString(), options)
        device = "cpu" if runtime == "onnx-cpu" else "cuda"
        binding = session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(image.numpy(), device, 0)
        binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, device)

        def call() -> object:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return binding

    return Contestant(subject.name, subject.kind, subject.tasks, runtime, "fp32", part, call, subject)


def student_call(student: Student, images: Images) -> Callable[[], object]:
    """Return what runs a student on the images, as the node does."""
    if student.uses_thermal:
        return lambda: student.run(images.rgb, images.thermal, images.rgb_to_thermal)
    return lambda: student.run(images.rgb)


def file_contestant(path: Path, runtime: Runtime, options: SessionSettings, batch: int = 1) -> Contestant:
    """Return an exported file at the camera sizes that it was made for. batch: pairs of a call.

    Raises StudentError, ManifestError.
    """
    student = Student.load(path, options)
    manifest = student.manifest
    images = Images.make(student.sizes[0] or manifest.camera_size, student.sizes[1])
    tasks = "joint" if len(manifest.tasks) == 2 else manifest.tasks[0]
    name, call = str(path), student_call(student, images)
    if batch > 1:
        pairs: list[Pair] = [(images.rgb, images.thermal, images.rgb_to_thermal)] * batch
        name, call = f"{path}, batch of {batch}", partial(student.run_batch, pairs)
    return Contestant(name, manifest.role, tasks, runtime, manifest.precision, "graph", call, batch=batch)


def unavailable(options: SessionSettings) -> str | None:
    """Say why a provider does not work here, tried on a graph of one operator; None where it does."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        make_session(Path("probe"), model.SerializeToString(), options)
    except StudentError as error:
        return str(error).partition(" cannot be loaded: ")[2] or str(error)
    return None


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Describe what the times are of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "threads": threads,
        "load before": f"{os.getloadavg()[0]:.2f} processes (1 min)",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "onnxruntime": onnxruntime.__version__,
    }


def probes(
    device: torch.device, precisions: tuple[Precision, ...]
) -> dict[tuple[str, str], tuple[float, Callable[[], object]]]:
    """Return (name, precision) -> (operations or bytes of a call, call) of what the machine can do at most.

    The matrix product is asked for as a 1x1 convolution: on a processor that is the library that computes the
    networks' convolutions, and torch.mm is another, made for Intel's processors. The copy is several times as large as
    the caches of a processor, or takes milliseconds on a GPU.
    """
    gpu = device.type == "cuda"

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize(device)

    result: dict[tuple[str, str], tuple[float, Callable[[], object]]] = {}
    side = GEMM_SIDE["cuda" if gpu else "cpu"]
    for precision in dict.fromkeys(("fp32", *precisions)):
        dtype = DTYPES[precision]
        left = torch.ones((1, side, side // 32, 32), device=device, dtype=dtype).to(memory_format=torch.channels_last)
        right = torch.ones((side, side, 1, 1), device=device, dtype=dtype).to(memory_format=torch.channels_last)

        @torch.inference_mode()
        def multiply(left: Tensor = left, right: Tensor = right) -> None:
            nn.functional.conv2d(left, right)
            wait()

        result[GEMM, precision] = (2 * side**3, multiply)
    source = torch.rand(2**28 if gpu else 2**25, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        wait()

    result[COPY, "fp32"] = (2 * source.nbytes, copy)
    return result
