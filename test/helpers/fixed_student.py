"""The tiny student as `export --fixed` makes it: every shape a number, detections padded to PADDED rows."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_student import set_manifest, tiny_manifest, tiny_model

RGB_SIZE, THERMAL_SIZE = (64, 48), (16, 12)
"""(width, height) px of the only images that it takes."""

PADDED = 5
"""Rows of the detections, three of which the tiny student fills."""


def fixed_model(*, padding_score: float = -1.0, front: bool = False) -> onnx.ModelProto:
    """Return the graph. padding_score: of the rows that are none; front: put these first, which no export does."""
    model = tiny_model()
    rest = PADDED - 3
    padding = {
        "boxes": np.zeros((rest, 4), np.float32),
        "scores": np.full(rest, padding_score, np.float32),
        "labels": np.zeros(rest, np.int64),
    }
    for name, rows in padding.items():
        for node in model.graph.node:
            if node.output[0] == name:
                node.output[0] = f"{name}.found"
        model.graph.initializer.append(numpy_helper.from_array(rows, f"{name}.none"))
        parts = [f"{name}.found", f"{name}.none"]
        model.graph.node.append(helper.make_node("Concat", parts[::-1] if front else parts, [name], axis=0))
    (width, height), (thermal_width, thermal_height) = RGB_SIZE, THERMAL_SIZE
    shapes = {
        "rgb": (TensorProto.UINT8, [1, height, width, 3]),
        "thermal": (TensorProto.UINT8, [1, thermal_height, thermal_width]),
        "boxes": (TensorProto.FLOAT, [PADDED, 4]),
        "scores": (TensorProto.FLOAT, [PADDED]),
        "labels": (TensorProto.INT64, [PADDED]),
        "mask": (TensorProto.UINT8, [1, height, width]),
        "confidence": (TensorProto.UINT8, [1, height, width]),
    }
    for value in (*model.graph.input, *model.graph.output):
        if value.name in shapes:
            value.CopyFrom(helper.make_tensor_value_info(value.name, *shapes[value.name]))
    set_manifest(model, tiny_manifest(camera_size=(640, 480)))  # of the training: the graph is for a smaller camera
    return model


def write_fixed_student(path: Path, **arguments: object) -> Path:
    """Write `fixed_model(**arguments)` to a file and return its path."""
    onnx.save(fixed_model(**arguments), path)  # type: ignore[arg-type]
    return path
