"""A student of a few operators that takes batches, whose every output can be computed by hand.

For each image, with the mean m of its thermal image, W x H of its RGB image and its matrix M: where m > 127.5 one
person (label 0) with the score m / 255 and the box (0, 0, W * M[0][0], H * M[1][1]), else none. mask: 2 (person) where
red is above 127, else 0. confidence: the green channel.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_student import set_manifest, tiny_manifest


def batch_model(first: int = 0) -> onnx.ModelProto:
    """Return the graph with its manifest. first: number of the first image; 0 is right."""
    nodes = [
        helper.make_node("Cast", ["thermal"], ["heat"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["heat"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Greater", ["mean", "half"], ["hot"]),
        helper.make_node("NonZero", ["hot"], ["where"]),
        helper.make_node("Reshape", ["where", "flat"], ["rows"]),
        helper.make_node("Add", ["rows", "first"], ["image_index"]),
        helper.make_node("Div", ["mean", "levels"], ["shares"]),
        helper.make_node("Gather", ["shares", "rows"], ["scores"]),
        helper.make_node("Mul", ["rows", "zero"], ["labels"]),
        helper.make_node("Shape", ["rgb"], ["height_width"], start=1, end=3),
        helper.make_node("Gather", ["height_width", "swap"], ["size_int"]),
        helper.make_node("Cast", ["size_int"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["rgb_to_thermal", "nine"], ["matrices"]),
        helper.make_node("Gather", ["matrices", "diagonal"], ["scale"], axis=1),
        helper.make_node("Mul", ["scale", "size"], ["corners"]),
        helper.make_node("Gather", ["corners", "rows"], ["corner"]),
        helper.make_node("Sub", ["corner", "corner"], ["origin"]),
        helper.make_node("Concat", ["origin", "corner"], ["boxes"], axis=1),
        helper.make_node("Gather", ["rgb", "red"], ["red_plane"], axis=3),
        helper.make_node("Cast", ["red_plane"], ["red_float"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["red_float", "half"], ["is_red"]),
        helper.make_node("Where", ["is_red", "person", "nothing"], ["mask"]),
        helper.make_node("Gather", ["rgb", "green"], ["confidence"], axis=3),
    ]
    constants = {
        "first": np.int64(first),
        "half": np.float32(127.5),
        "levels": np.float32(255),
        "flat": np.array([-1], np.int64),
        "nine": np.array([-1, 9], np.int64),
        "zero": np.int64(0),
        "swap": np.array([1, 0], np.int64),
        "diagonal": np.array([0, 4], np.int64),
        "red": np.int64(0),
        "green": np.int64(1),
        "person": np.uint8(2),
        "nothing": np.uint8(0),
    }
    inputs = [
        helper.make_tensor_value_info("rgb", TensorProto.UINT8, ["B", "H", "W", 3]),
        helper.make_tensor_value_info("thermal", TensorProto.UINT8, ["B", "h", "w"]),
        helper.make_tensor_value_info("rgb_to_thermal", TensorProto.FLOAT, ["B", 3, 3]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("image_index", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("mask", TensorProto.UINT8, ["B", "H", "W"]),
        helper.make_tensor_value_info("confidence", TensorProto.UINT8, ["B", "H", "W"]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "batch", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    set_manifest(model, tiny_manifest(name="batch", format_version=2))
    return model


def write_batch_student(path: Path) -> Path:
    """Write it to a file and return its path."""
    onnx.save(batch_model(), path)
    return path
