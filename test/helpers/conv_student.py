"""A visible-only student of three small convolutions, made without torch, with something before and behind them.

rgb / 255 goes through 3x3 convolutions `network.stem` (3 to 8) and `network.block` (8 to 8, added to its input), then
`network.head` (1x1, 8 to 9), whose greatest value gives the mask and, times 255 and clipped, the confidence. The 255 is
a constant of both sides of the network and of its middle, where it changes nothing: relu(x) * 255 / 255.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_student import set_manifest, tiny_manifest

from md_perception.results import UInt8Image
from md_training.data.sample import Sample

SIZE = (64, 48)
STEM, BLOCK, HEAD = "network.stem.weight", "network.block.weight", "network.head.weight"


def conv_model(gain: float = 1.0) -> onnx.ModelProto:
    """Return the graph with its manifest. gain: of the stem, whose values are within about 3 times it."""
    random = np.random.default_rng(5)

    def weights(name: str, *shape: int, scale: float = 1.0) -> TensorProto:
        values = random.normal(0, scale / np.prod(shape[1:]) ** 0.5, shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Cast", ["rgb"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "scale"], ["image"], "div"),
        helper.make_node("Conv", ["image", STEM], ["stem"], "conv_stem", pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["relu"], "relu"),
        helper.make_node("Mul", ["relu", "scale"], ["large"], "large"),
        helper.make_node("Div", ["large", "scale"], ["again"], "again"),
        helper.make_node("Conv", ["again", BLOCK], ["block"], "conv_block", pads=[1] * 4),
        helper.make_node("Add", ["block", "again"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["features"], "relu_2"),
        helper.make_node("Conv", ["features", HEAD], ["raw"], "conv_head"),
        helper.make_node("ArgMax", ["raw"], ["best"], "argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["mask"], "cast_mask", to=TensorProto.UINT8),
        helper.make_node("ReduceMax", ["raw", "axis"], ["largest"], "max", keepdims=0),
        helper.make_node("Mul", ["largest", "scale"], ["scaled"], "mul"),
        helper.make_node("Clip", ["scaled", "zero", "scale"], ["clipped"], "clip"),
        helper.make_node("Cast", ["clipped"], ["confidence"], "cast_confidence", to=TensorProto.UINT8),
    ]
    constants = [
        numpy_helper.from_array(np.float32(255), "scale"),
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        weights(STEM, 8, 3, 3, 3, scale=3 * gain),
        weights(BLOCK, 8, 8, 3, 3),
        weights(HEAD, 9, 8, 1, 1),
    ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("rgb", TensorProto.UINT8, [1, "H", "W", 3])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, "H", "W"]) for name in ("mask", "confidence")],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    set_manifest(model, tiny_manifest(thermal=False, tasks=("segmentation",), name="conv"))
    return model


def write_conv_student(path: Path, gain: float = 1.0) -> Path:
    """Write it to a file and return its path."""
    onnx.save(conv_model(gain), path)
    return path


def noise(seed: int) -> UInt8Image:
    """Return uint8 (48, 64, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3)).astype(np.uint8)


def noise_sample(seed: int, mask: UInt8Image) -> Sample:
    """Return a sample with `noise(seed)`, no boxes and this mask."""
    return Sample(
        rgb=noise(seed),
        thermal=np.zeros((24, 32), np.uint8),
        rgb_to_thermal=np.eye(3, dtype=np.float32),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        ignored=np.zeros(0, bool),
        mask=mask,
        night=False,
        name=f"noise {seed}",
    )
