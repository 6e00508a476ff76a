"""The student of md_benchmark (md_perception/students/probe.onnx), which costs next to nothing and detects ten objects.

    python test/helpers/probe_student.py md_perception/students/probe.onnx

Whatever it sees, it says: ten persons of score 0.9 in a row, and the red channel's upper bits as mask (0..3), the green
channel as confidence. It takes RGB and thermal and both tasks, so that the node does all that it does around a student.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_student import set_manifest, tiny_manifest

OBJECTS = 10
SCORE = 0.9
BOX_SHARES = np.array([[index / OBJECTS, 0.4, (index + 0.5) / OBJECTS, 0.8] for index in range(OBJECTS)], np.float32)
"""Boxes as shares of width and height, xyxy."""


def probe_model() -> onnx.ModelProto:
    """Return the graph with its manifest."""
    constants = {
        "box_shares": BOX_SHARES,
        "scores_of": np.full(OBJECTS, SCORE, np.float32),
        "labels_of": np.zeros(OBJECTS, np.int64),
        "swap": np.array([1, 0], np.int64),
        "red": np.array(0, np.int64),
        "green": np.array(1, np.int64),
        "sixty_four": np.array(64, np.uint8),
    }
    nodes = [
        helper.make_node("Shape", ["rgb"], ["shape"], start=1, end=3),
        helper.make_node("Gather", ["shape", "swap"], ["size_int"]),
        helper.make_node("Cast", ["size_int"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["size", "size"], ["size4"], axis=0),
        helper.make_node("Mul", ["box_shares", "size4"], ["boxes"]),
        helper.make_node("Identity", ["scores_of"], ["scores"]),
        helper.make_node("Identity", ["labels_of"], ["labels"]),
        helper.make_node("Gather", ["rgb", "red"], ["red_plane"], axis=3),
        helper.make_node("Div", ["red_plane", "sixty_four"], ["mask"]),
        helper.make_node("Gather", ["rgb", "green"], ["confidence"], axis=3),
    ]
    inputs = [
        helper.make_tensor_value_info("rgb", TensorProto.UINT8, [1, "H", "W", 3]),
        helper.make_tensor_value_info("thermal", TensorProto.UINT8, [1, "h", "w"]),
        helper.make_tensor_value_info("rgb_to_thermal", TensorProto.FLOAT, [1, 3, 3]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [OBJECTS, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [OBJECTS]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, [OBJECTS]),
        helper.make_tensor_value_info("mask", TensorProto.UINT8, [1, "H", "W"]),
        helper.make_tensor_value_info("confidence", TensorProto.UINT8, [1, "H", "W"]),
    ]
    used = {name for made in nodes for name in made.input}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    set_manifest(model, tiny_manifest(name="probe", run_id="probe", camera_size=(640, 512), input_size=(640, 512)))
    return model


if __name__ == "__main__":
    onnx.save(probe_model(), Path(sys.argv[1]))
