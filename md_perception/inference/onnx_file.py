"""What an ONNX file says of itself, read from its bytes before any runtime sees them.

ONNX Runtime would follow external data to other files and only then hand out the metadata, and the `onnx` package is
no dependency of the runtime. So this walks the protobuf wire format (https://protobuf.dev/programming-guides/encoding)
with the field numbers of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1  # TensorProto.DataLocation
_MAX_DEPTH = 32

_ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
"""TensorProto.DataType, as far as students use it."""

# Message type -> field number -> message type of that field, for all paths that lead to nodes and tensors.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}


class OnnxFileError(ValueError):
    """Bytes that are not an ONNX model."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the graph. dtype: numpy's name. rank: number of dimensions, None where not stated."""

    name: str
    dtype: str
    rank: int | None


@dataclass
class OnnxFile:
    """What was found.

    metadata: metadata_props. inputs, outputs: of the main graph. domains: of all nodes, "" is ONNX itself.
    local_domains: of the functions that the model brings along. external_tensors: names of tensors whose values lie in
    other files.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    local_domains: set[str] = field(default_factory=set)
    external_tensors: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, data: bytes) -> "OnnxFile":
        """Read a serialised ModelProto. Raises OnnxFileError where it is none."""
        found = cls()
        try:
            found._walk("Model", memoryview(data), 0)
        except (IndexError, UnicodeDecodeError) as error:
            raise OnnxFileError(f"it is not an ONNX model, or it is cut off ({error})") from None
        if not found.outputs:
            raise OnnxFileError("it is not an ONNX model: it has no graph with outputs")
        return found

    def _walk(self, kind: str, data: memoryview, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise OnnxFileError(f"its graph is nested deeper than {_MAX_DEPTH} levels")
        if kind == "Tensor":
            self._tensor(data)
            return
        for number, value in _fields(data):
            if isinstance(value, int):
                continue
            child = _CHILDREN[kind].get(number)
            if child:
                self._walk(child, value, depth + 1)
            elif kind == "Model" and number == 14:
                entry = dict(_fields(value))
                self.metadata[_text(entry.get(1))] = _text(entry.get(2))
            elif kind == "Graph" and depth == 1 and number in (11, 12):
                (self.inputs if number == 11 else self.outputs).append(_tensor_info(value))
            elif kind == "Node" and number == 7:
                self.domains.add(_text(value))
            elif kind == "Function" and number == 10:
                self.local_domains.add(_text(value))

    def _tensor(self, data: memoryview) -> None:
        name, external = "", False
        for number, value in _fields(data):
            if number == 8:
                name = _text(value)
            external |= number == 13 or (number == 14 and value == _EXTERNAL)
        if external:
            self.external_tensors.append(name)


def _tensor_info(data: memoryview) -> TensorInfo:
    """Read a ValueInfoProto: name = 1, type = 2 {tensor_type = 1 {elem_type = 1, shape = 2 {dim = 1, ...}}}."""
    value_info = dict(_fields(data))
    tensor = dict(_fields(_message(dict(_fields(_message(value_info.get(2)))).get(1))))
    element, shape = tensor.get(1, 0), tensor.get(2)
    return TensorInfo(
        name=_text(value_info.get(1)),
        dtype=_ELEMENT_TYPES.get(element, f"type {element}") if isinstance(element, int) else "",
        rank=None if shape is None else sum(number == 1 for number, _ in _fields(_message(shape))),
    )


def _fields(data: memoryview) -> Iterator[tuple[int, "int | memoryview"]]:
    """Yield (field number, value) of a message; strings, bytes and messages come as views, nothing is copied."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        wire_type = key & 7
        if wire_type == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire_type == _BYTES:
            length, at = _varint(data, at)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise OnnxFileError(f"it is not an ONNX model: wire type {wire_type} at byte {at}")
        if at + length > end:
            raise OnnxFileError(f"it is not an ONNX model, or it is cut off: a field of {length} bytes at byte {at}")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return (value, index behind it)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise OnnxFileError(f"it is not an ONNX model: a number of more than ten bytes at byte {at - 10}")


def _message(value: "int | memoryview | None") -> memoryview:
    return value if isinstance(value, memoryview) else memoryview(b"")


def _text(value: "int | memoryview | None") -> str:
    return bytes(_message(value)).decode()
