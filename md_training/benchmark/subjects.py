"""The networks that are compared, and what they cost: counted on tensors without values."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from md_training.benchmark.report import CostRow
from md_training.models.networks import Network, NetworkSettings, Task, costs, inference_copy, make_network
from md_training.models.retinanet import LIGHT, RETINANET_MG, RetinaNetSettings
from md_training.presets import FUSIONS, fused

Kind = Literal["visible", "visible-student", "thermal", "image", "student", "teacher", "decision"]
Tasks = Literal["detection", "segmentation", "joint"]
Neck = Literal["light", "retinanet_mg"]
Runtime = Literal["eager", "compiled", "onnx-cpu", "onnx-cuda", "onnx-tensorrt"]
Precision = Literal["fp32", "bf16", "fp16"]
Part = Literal["network", "graph", "around"]

KINDS: dict[Kind, tuple[str, bool]] = {
    "visible": ("visible", False),
    "visible-student": ("visible", True),
    "thermal": ("thermal", False),
    "image": ("image", False),
    "student": ("image", True),
    "teacher": ("feature", False),
    "decision": ("decision", False),
}
"""Name to (fusion of presets.FUSIONS, with the residual blocks of a distilled student)."""
TASKS: dict[Tasks, tuple[Task, ...]] = {
    "detection": ("detection",),
    "segmentation": ("segmentation",),
    "joint": ("detection", "segmentation"),
}
NECKS: dict[Neck, RetinaNetSettings] = {"light": LIGHT, "retinanet_mg": RETINANET_MG}
RUNTIMES: tuple[Runtime, ...] = ("eager", "compiled", "onnx-cpu", "onnx-cuda", "onnx-tensorrt")


@dataclass(frozen=True)
class Subject:
    """A network of the package. neck: of its detector; empty for a network that only segments."""

    kind: Kind
    tasks: Tasks
    neck: Neck | Literal[""]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.tasks}" + (f" {self.neck}" if self.neck else "")

    def settings(self, input_size: tuple[int, int]) -> NetworkSettings:
        """Return the network. input_size: (width, height) px."""
        fusion, distilled = KINDS[self.kind]
        base = NetworkSettings(input_size=input_size, detection=NECKS[self.neck or "light"])
        return fused(base, FUSIONS[fusion], TASKS[self.tasks], distilled)

    def teachers(self) -> tuple["Subject", ...]:
        """Return its own teacher, or those of its two tasks."""
        return tuple(subject("teacher", task, self.neck or "light") for task in TASKS[self.tasks])


def subject(kind: Kind, tasks: Tasks, neck: Neck = "light") -> Subject:
    """Return a network, its neck left out where it has no detector."""
    return Subject(kind, tasks, "" if tasks == "segmentation" else neck)


@dataclass(frozen=True)
class _Counts:
    parameters: int
    multiply_accumulates: int
    bytes_moved: int
    parts: dict[str, int]


def all_costs(
    subjects: Iterable[Subject],
    input_size: tuple[int, int],
    batch: int = 1,
    change: Callable[[NetworkSettings], NetworkSettings] = lambda settings: settings,
) -> list[CostRow]:
    """Return what each of the networks costs at input_size, and its share of its teachers'.

    batch: images of a call. change: of every network's settings, e.g. to another width.
    """
    counted: dict[Subject, _Counts] = {}

    def count(each: Subject) -> _Counts:
        if each not in counted:
            with torch.device("meta"):
                network = make_network(change(each.settings(input_size)))
            parts = costs(network)
            total = parts.pop("total")
            macs = {name: part.multiply_accumulates for name, part in parts.items()}
            counted[each] = _Counts(total.parameters, total.multiply_accumulates, bytes_moved(network, batch), macs)
        return counted[each]

    rows = []
    for each in dict.fromkeys(subjects):
        own, teachers = count(each), [count(teacher) for teacher in each.teachers()]
        rows.append(
            CostRow(
                name=each.name,
                kind=each.kind,
                tasks=each.tasks,
                neck=each.neck,
                parameters=own.parameters,
                multiply_accumulates=own.multiply_accumulates,
                bytes_moved=own.bytes_moved,
                parts=own.parts,
                parameters_to_teachers=own.parameters / sum(teacher.parameters for teacher in teachers),
                multiply_accumulates_to_teachers=own.multiply_accumulates
                / sum(teacher.multiply_accumulates for teacher in teachers),
            )
        )
    return rows


def bytes_moved(network: Network, batch: int = 1) -> int:
    """Return the fp32 bytes that convolutions and matrix products of one call read and write, weights once.

    Everything between them (normalisation, activation, sums) is taken to be fused into them, as compilers do it: what
    a network that runs layer by layer cannot avoid.
    """
    width, height = network.settings.input_size
    image = torch.zeros(batch, 3 * len(network.settings.inputs), height, width, device="meta")
    with _Traffic() as traffic, torch.no_grad():
        inference_copy(network).to("meta")(image)
    return traffic.bytes


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of all tensors that go into and come out of the operators that torch counts FLOPs of."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.bytes += sum(value.nbytes for value in (*args, result) if isinstance(value, Tensor))
        return result
