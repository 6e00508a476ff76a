"""A student of a few operators with a valid manifest, whose every output can be computed by hand.

For an RGB image of W x H, a thermal image of w x h and the matrix M:
- scores: s, s/2, s/4 with s = mean(thermal) / 255 (visible only: mean(red) / 255); labels 0, 1, 2 (person, bicycle,
  car)
- boxes: the middle half of the image; its left half; (0, 0, W * M[0][0], H * M[1][1]), which for the identity geometry
  is (0, 0, w, h) (visible only: the whole image)
- mask: 2 (person) where red is above 127, else 0; confidence: the green channel
Thermal only: the thermal image takes the place of RGB, and of its red and green channels.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from md_perception.inference.manifest import Manifest, ThermalContract
from md_perception.labels import DETECTION, SEGMENTATION

NAME = "tiny"


def tiny_manifest(
    *, rgb: bool = True, thermal: bool = True, tasks: tuple[str, ...] = ("detection", "segmentation"), **changes: Any
) -> Manifest:
    """Return the manifest of a tiny student; `changes` replace fields."""
    fields: dict[str, Any] = {
        "name": NAME,
        "role": "student",
        "tasks": tasks,
        "detection_classes": DETECTION.classes if "detection" in tasks else (),
        "segmentation_classes": SEGMENTATION.classes if "segmentation" in tasks else (),
        "inputs": (*(["rgb"] if rgb else []), *(["thermal"] if thermal else [])),
        "thermal": ThermalContract(sensor_size=(160, 120)) if thermal else None,
        "input_size": (64, 48),
        "camera_size": (64, 48),
        "precision": "fp32",
        "weights_storage": "fp32",
        "score_threshold": 0.05,
        "run_id": "tiny-test",
        "training_data": "none: made by hand",
        "seen_real_images": False,
        "git_revision": "0000000",
        "created": "2025-01-01T00:00:00Z",
        "weights_sha256": "0" * 64,
    }
    return Manifest.model_validate(fields | changes)


def tiny_model(
    *,
    rgb: bool = True,
    thermal: bool = True,
    tasks: tuple[str, ...] = ("detection", "segmentation"),
    manifest: Manifest | None = None,
) -> onnx.ModelProto:
    """Return the graph with its manifest in the metadata (or the one that is given)."""
    nodes, outputs = [], []
    constants: dict[str, np.ndarray] = {
        "height_width": np.array([1, 2], np.int64),
        "red": np.array(0, np.int64),
        "green": np.array(1, np.int64),
        "half": np.array(127, np.uint8),
        "person": np.array(2, np.uint8),
        "nothing": np.array(0, np.uint8),
        "shares": np.array([1, 0.5, 0.25], np.float32) / np.float32(255),
        "labels_of": np.array([0, 1, 2], np.int64),
        # Boxes as shares of (W, H, W, H); the last is scaled by the matrix.
        "box_shares": np.array([[0.25, 0.25, 0.75, 0.75], [0, 0, 0.5, 1]], np.float32),
        "zeros": np.zeros(2, np.float32),
        "row": np.array([1, 4], np.int64),
        "flat9": np.array([9], np.int64),
        "diagonal": np.array([0, 4], np.int64),
        "ones": np.ones(2, np.float32),
        "swap": np.array([1, 0], np.int64),
    }

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    if rgb:
        node("Gather", ["rgb", "red"], "red_plane", axis=3)
    else:
        node("Identity", ["thermal"], "red_plane")
    if "detection" in tasks:
        node("Cast", ["thermal" if thermal else "red_plane"], "heat", to=TensorProto.FLOAT)
        node("ReduceMean", ["heat"], "mean_heat", axes=[0, 1, 2], keepdims=0)
        node("Mul", ["shares", "mean_heat"], "scores")
        node("Identity", ["labels_of"], "labels")
        node("Shape", ["rgb" if rgb else "thermal"], "shape", start=1, end=3)
        node("Gather", ["shape", "swap"], "size_int")
        node("Cast", ["size_int"], "size", to=TensorProto.FLOAT)
        node("Concat", ["size", "size"], "size4", axis=0)
        node("Mul", ["box_shares", "size4"], "fixed_boxes")
        if rgb and thermal:
            node("Reshape", ["rgb_to_thermal", "flat9"], "matrix")
            node("Gather", ["matrix", "diagonal"], "scale")
        else:
            node("Identity", ["ones"], "scale")
        node("Mul", ["size", "scale"], "far_corner")
        node("Concat", ["zeros", "far_corner"], "third", axis=0)
        node("Reshape", ["third", "row"], "third_box")
        node("Concat", ["fixed_boxes", "third_box"], "boxes", axis=0)
        outputs += [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ]
    if "segmentation" in tasks:
        node("Cast", ["red_plane"], "red_int", to=TensorProto.INT32)
        node("Cast", ["half"], "half_int", to=TensorProto.INT32)
        node("Greater", ["red_int", "half_int"], "is_red")
        node("Where", ["is_red", "person", "nothing"], "mask")
        if rgb:
            node("Gather", ["rgb", "green"], "confidence", axis=3)
        else:
            node("Identity", ["thermal"], "confidence")
        outputs += [
            helper.make_tensor_value_info("mask", TensorProto.UINT8, [1, "H", "W"]),
            helper.make_tensor_value_info("confidence", TensorProto.UINT8, [1, "H", "W"]),
        ]
    inputs = []
    if rgb:
        inputs.append(helper.make_tensor_value_info("rgb", TensorProto.UINT8, [1, "H", "W", 3]))
    if thermal:
        inputs.append(helper.make_tensor_value_info("thermal", TensorProto.UINT8, [1, "h", "w"]))
    if rgb and thermal:
        inputs.append(helper.make_tensor_value_info("rgb_to_thermal", TensorProto.FLOAT, [1, 3, 3]))
    used = {name for made in nodes for name in made.input}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, NAME, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    set_manifest(model, manifest or tiny_manifest(rgb=rgb, thermal=thermal, tasks=tasks))
    return model


def set_manifest(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Put a manifest into the metadata, in place of the one that is there, with the hash of the model's weights."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda item: item.name):
        digest.update(tensor.name.encode() + numpy_helper.to_array(tensor).tobytes())
    manifest = manifest.model_copy(update={"weights_sha256": digest.hexdigest()})
    del model.metadata_props[:]
    helper.set_model_props(model, manifest.to_metadata())


def write_tiny_student(path: Path, **arguments: Any) -> Path:
    """Write `tiny_model(**arguments)` to a file and return its path."""
    onnx.save(tiny_model(**arguments), path)
    return path
