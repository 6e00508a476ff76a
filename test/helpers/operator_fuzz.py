"""Students with one operator of random attributes on random small tensors, each run in a process of its own.

    python test/helpers/operator_fuzz.py 0 100 [OPERATOR ...]    # seeds 0 to 99 of each operator, by default of all

An operator belongs into `md_perception.inference.session.OPERATORS` when nothing here ends its process: ONNX Runtime
checks less of a file than one would think. Files that do are kept, and named at the end; the exit code is then 1.
"""

import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import defs, helper, numpy_helper
from tiny_student import set_manifest, tiny_manifest, tiny_model

from md_perception.inference.manifest import ManifestError
from md_perception.inference.session import OPERATORS, SessionSettings, Student, StudentError

OPSET = 20
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
EXTREMES = [0, 1, -1, 2, 3, 7, -7, 255, 65536, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]
WORDS = "nearest linear cubic zeros border NOTSET SAME_UPPER VALID constant reflect edge half_pixel align_corners floor"


def some_tensor(rng: random.Random, name: str, dtype: type, rank: int) -> onnx.TensorProto:
    """Return a tensor of at most five elements a dimension, some of them none."""
    shape = [rng.choice([0, 1, 1, 2, 3, 4, 5]) for _ in range(rank)]
    if dtype is np.int64:
        values = np.array([rng.choice([*EXTREMES, *range(6)]) for _ in range(int(np.prod(shape)))], np.int64)
    else:
        values = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.choice([1, 10, 1e30]), int(np.prod(shape)))
    with np.errstate(all="ignore"):
        return numpy_helper.from_array(values.astype(dtype).reshape(shape), name)


def some_attributes(rng: random.Random, schema: defs.OpSchema) -> dict[str, object]:
    left_out = rng.choice([0.5, 0.8, 0.95])
    found: dict[str, object] = {}
    for attribute in schema.attributes.values():
        if not attribute.required and rng.random() < left_out:
            continue
        match str(attribute.type).split(".")[-1]:
            case "INT":
                found[attribute.name] = rng.choice([*EXTREMES, *range(-4, 12)])
            case "INTS":
                found[attribute.name] = [rng.choice([1, 1, 2, 3, 0, *EXTREMES]) for _ in range(rng.randint(1, 6))]
            case "FLOAT":
                found[attribute.name] = rng.choice([0.0, 1.0, -1.0, 1e30, float("nan")])
            case "FLOATS":
                found[attribute.name] = [rng.choice([0.0, 1.0, -1.0, 1e30]) for _ in range(rng.randint(1, 5))]
            case "STRING":
                found[attribute.name] = rng.choice(WORDS.split())
            case "TENSOR":
                found[attribute.name] = some_tensor(rng, "value", rng.choice(list(DTYPES.values())), rng.randint(0, 2))
    return found


def some_student(rng: random.Random, operator: str) -> onnx.ModelProto:
    """Return the tiny student, visible only, whose confidence goes through the operator."""
    schema = defs.get_schema(operator, OPSET, "")
    kinds = {
        kind.type_param_str: [DTYPES[name] for name in kind.allowed_type_strs if name in DTYPES]
        for kind in schema.type_constraints
    }
    model = tiny_model(thermal=False, tasks=("segmentation",))
    model.opset_import[0].version, model.ir_version = OPSET, 9
    nodes, weights = model.graph.node, model.graph.initializer
    bound: dict[str, type] = {}
    rank, inputs = rng.choice([0, 1, 2, 3, 4, 4, 4, 5]), []
    for index in range(rng.randint(schema.min_input, min(schema.max_input, schema.min_input + 3))):
        kind = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        choice = kinds.get(kind) or [DTYPES.get(kind, np.float32)]
        likely = np.float32 if np.float32 in choice and rng.random() < 0.7 else rng.choice(choice)
        dtype = bound.setdefault(kind, likely)
        own_rank = rank if dtype is not np.int64 and rng.random() < 0.85 else rng.choice([1, 1, 1, 0, 2])
        weights.append(some_tensor(rng, f"stored{index}", dtype, own_rank))
        inputs.append("" if rng.random() < 0.03 else f"stored{index}")
        if rng.random() < 0.4 and dtype not in (np.bool_, np.int8) and inputs[-1]:
            # Not a constant for the optimiser: multiplied with a one that comes from the image's shape.
            nodes.append(helper.make_node("Shape", ["rgb"], [f"shape{index}"], start=0, end=1))
            to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            nodes.append(helper.make_node("Cast", [f"shape{index}"], [f"one{index}"], to=to))
            nodes.append(helper.make_node("Mul", [f"stored{index}", f"one{index}"], [f"input{index}"]))
            inputs[-1] = f"input{index}"
    outputs = [f"output{i}" for i in range(max(1, rng.randint(schema.min_output, min(schema.max_output, 4))))]
    nodes.append(helper.make_node(operator, inputs, outputs, **some_attributes(rng, schema)))
    for name, value in (("flat", np.array([-1])), ("end", np.zeros(1, np.uint8)), ("first", np.array(0))):
        weights.append(numpy_helper.from_array(value, name))
    next(node for node in nodes if node.output[0] == "confidence").output[0] = "green_plane"
    for name, given, made, attributes in (
        ("Cast", ["output0"], "bytes", {"to": onnx.TensorProto.UINT8}),
        ("Reshape", ["bytes", "flat"], "row", {}),
        ("Concat", ["row", "end"], "never_empty", {"axis": 0}),
        ("Gather", ["never_empty", "first"], "number", {}),
        ("Max", ["green_plane", "number"], "confidence", {}),
    ):
        nodes.append(helper.make_node(name, given, [made], **attributes))
    set_manifest(model, tiny_manifest(thermal=False, tasks=("segmentation",)))
    return model


def run_apart(path: Path) -> int:
    """Load and run a student in a process of its own; return 0 if it ran, 1 if it was refused, or minus the signal."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(20)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 3
        try:
            Student.load(path, SessionSettings(("cpu",), threads=1)).warm_up((64, 48))
            code = 0
        except (StudentError, ManifestError):
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(first: int, count: int, operators: list[str]) -> int:
    onnxruntime.set_default_logger_severity(4)
    folder, totals, bad = Path(tempfile.mkdtemp(prefix="operator-fuzz-")), Counter[int](), []
    for operator in operators or sorted(OPERATORS):
        for seed in range(first, first + count):
            path = folder / f"{operator}-{seed}.onnx"
            try:
                path.write_bytes(some_student(random.Random(f"{operator} {seed}"), operator).SerializeToString())
            except ValueError:  # the onnx package does not write every attribute
                continue
            code = run_apart(path)
            totals[code] += 1
            if code in (0, 1):
                path.unlink(missing_ok=True)
            else:
                bad.append(f"{path}: {code}")
    print(f"{totals[0]} ran, {totals[1]} were refused, {len(bad)} ended their process or raised another error")
    print(*bad, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
