"""What an ONNX file says of itself, read from its bytes before any runtime sees them.

A student file comes from somebody else, and ONNX Runtime, written in C++ for models of one's own, follows external data
to other files, runs whatever operators it knows and takes the memory that the file asks for. So this reads every field
of the protobuf wire format (https://protobuf.dev/programming-guides/encoding) against a table of what students consist
of (numbers from https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3) and lists whatever else is there in `foreign`.
The table has no message that contains itself, so that there is nothing to nest.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

MAX_FIELDS: Final = 200_000
"""Most fields of a file, each number of a packed list counted; a ResNet-18 student has 8000. ONNX Runtime makes up to
1 KB of a field of two bytes."""

MAX_NODES: Final = 10_000
"""Most operators of a graph."""

MAX_RANK: Final = 8
"""Most dimensions of a stored tensor."""

_MAX_DIMENSION = 2**31 - 1

_ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
"""TensorProto.DataType, as far as students use it."""

_Kind = str
"""Name of a message type of `_TABLE`, or one of the three plain ones."""

_NUMBER, _TEXT, _RAW = "number", "text", "raw"  # a varint or a float; bytes that are a text; other bytes
_PLAIN_WIRE_TYPES = {_NUMBER: (_VARINT, _FIXED32), _TEXT: (_BYTES,), _RAW: (_BYTES,)}

# Message type -> field number -> (kind of the value, whether it is a list).
_TABLE: dict[_Kind, dict[int, tuple[_Kind, bool]]] = {
    "Model": {
        1: (_NUMBER, False),  # ir_version
        2: (_TEXT, False),  # producer_name
        3: (_TEXT, False),  # producer_version
        4: (_TEXT, False),  # domain
        5: (_NUMBER, False),  # model_version
        6: (_TEXT, False),  # doc_string
        7: ("Graph", False),
        8: ("OperatorSet", True),
        14: ("Entry", True),  # metadata_props
    },
    "OperatorSet": {1: (_TEXT, False), 2: (_NUMBER, False)},
    "Entry": {1: (_TEXT, False), 2: (_TEXT, False)},
    "Graph": {
        1: ("Node", True),
        2: (_TEXT, False),  # name
        5: ("Tensor", True),  # initializer
        10: (_TEXT, False),  # doc_string
        11: ("ValueInfo", True),  # input
        12: ("ValueInfo", True),  # output
        13: ("ValueInfo", True),  # value_info
        16: ("Entry", True),  # metadata_props
    },
    "Node": {
        1: (_TEXT, True),  # input
        2: (_TEXT, True),  # output
        3: (_TEXT, False),  # name
        4: (_TEXT, False),  # op_type
        5: ("Attribute", True),
        6: (_TEXT, False),  # doc_string
        7: (_TEXT, False),  # domain
        9: ("Entry", True),  # metadata_props
    },
    "Attribute": {
        1: (_TEXT, False),  # name
        2: (_NUMBER, False),  # f
        3: (_NUMBER, False),  # i
        4: (_RAW, False),  # s
        5: ("Tensor", False),
        7: (_NUMBER, True),  # floats
        8: (_NUMBER, True),  # ints
        9: (_RAW, True),  # strings
        13: (_TEXT, False),  # doc_string
        20: (_NUMBER, False),  # type
    },
    "Tensor": {
        1: (_NUMBER, True),  # dims
        2: (_NUMBER, False),  # data_type
        8: (_TEXT, False),  # name
        9: (_RAW, False),  # raw_data
        12: (_TEXT, False),  # doc_string
        13: ("Entry", True),  # external_data
        14: (_NUMBER, False),  # data_location
        16: ("Entry", True),  # metadata_props
    },
    "ValueInfo": {1: (_TEXT, False), 2: ("Type", False), 3: (_TEXT, False), 4: ("Entry", True)},
    "Type": {1: ("TensorType", False), 6: (_TEXT, False)},
    "TensorType": {1: (_NUMBER, False), 2: ("Shape", False)},
    "Shape": {1: ("Dimension", True)},
    "Dimension": {1: (_NUMBER, False), 2: (_TEXT, False), 3: (_TEXT, False)},
}

# What the fields that the table lacks are for, to tell the user.
_FOREIGN = {
    ("Model", 20): "training steps",
    ("Model", 25): "functions of its own",
    ("Graph", 15): "sparse tensors",
    ("Attribute", 6): "subgraphs",
    ("Attribute", 11): "subgraphs",
    ("Attribute", 22): "sparse tensors",
    ("Attribute", 23): "sparse tensors",
    ("Type", 4): "sequences",
    ("Type", 5): "maps",
    ("Type", 8): "sparse tensors",
    ("Type", 9): "optional values",
} | {("Tensor", number): "tensors that are not stored as raw bytes" for number in (3, 4, 5, 6, 7, 10, 11)}

_Values = dict[int, list["int | memoryview"]]
"""Field number -> its values in order of the file."""


class OnnxFileError(ValueError):
    """Bytes that are not an ONNX model, or one beyond the limits."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the graph.

    dtype: numpy's name. shape: of each dimension its size, the name that stands for it, or None; None as a whole where
    not even the number of dimensions is stated.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None where not stated."""
        return None if self.shape is None else len(self.shape)


@dataclass
class OnnxFile:
    """What was found.

    metadata: metadata_props. inputs, outputs: of the graph. operators: (domain, type) of all nodes, "" is ONNX itself.
    integers: (operator type, attribute, value) of all attributes that are integers or lists of them.
    omitting: types of the operators that leave out an input before their last.
    domains: those that the file imports. external_tensors: names of tensors whose values lie in other files.
    weights: name and bytes of the stored tensors of the graph. foreign: what students do not have, in words.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    operators: set[tuple[str, str]] = field(default_factory=set)
    integers: set[tuple[str, str, int]] = field(default_factory=set, repr=False)
    omitting: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    external_tensors: list[str] = field(default_factory=list)
    weights: list[tuple[str, memoryview]] = field(default_factory=list, repr=False)
    foreign: set[str] = field(default_factory=set)
    _fields_left: int = field(default=MAX_FIELDS, repr=False)

    @classmethod
    def parse(cls, data: bytes) -> "OnnxFile":
        """Read a serialised ModelProto. Raises OnnxFileError where it is none, or beyond the limits of this module."""
        found = cls()
        try:
            found._model(memoryview(data))
        except (IndexError, UnicodeDecodeError) as error:
            raise OnnxFileError(f"it is not an ONNX model, or it is cut off ({error})") from None
        if not found.outputs:
            raise OnnxFileError("it is not an ONNX model: it has no graph with outputs")
        return found

    def weights_sha256(self) -> str:
        """Return the hash of all stored tensors, name and bytes, in order of their names: the manifest's."""
        digest = hashlib.sha256()
        for name, values in sorted(self.weights, key=lambda item: item[0]):
            digest.update(name.encode())
            digest.update(values)
        return digest.hexdigest()

    def _model(self, data: memoryview) -> None:
        model = self._read("Model", data)
        for entry in model.get(14, ()):
            values = self._read("Entry", entry)
            key = _text(values, 1)
            if key in self.metadata:
                raise OnnxFileError(f"it is not an ONNX model: its metadata have two entries {key[:80]!r}")
            self.metadata[key] = _text(values, 2)
        for operator_set in model.get(8, ()):
            self.domains.add(_text(self._read("OperatorSet", operator_set), 1))
        for graph in model.get(7, ()):
            self._graph(graph)

    def _graph(self, data: "int | memoryview") -> None:
        graph = self._read("Graph", data)
        nodes = graph.get(1, ())
        if len(nodes) > MAX_NODES:
            raise OnnxFileError(f"its graph has {len(nodes)} operators: a student has at most {MAX_NODES}")
        for node in nodes:
            self._node(node)
        for tensor in graph.get(5, ()):
            self.weights.append(self._tensor(tensor))
        self.inputs += [self._value_info(value) for value in graph.get(11, ())]
        self.outputs += [self._value_info(value) for value in graph.get(12, ())]
        for value in graph.get(13, ()):
            self._value_info(value)
        self._entries(graph, 16)

    def _node(self, data: "int | memoryview") -> None:
        node = self._read("Node", data)
        operator = _text(node, 4)
        self.operators.add((_text(node, 7), operator))
        if any(isinstance(name, memoryview) and not name for name in node.get(1, ())):
            self.omitting.add(operator)
        for data_of_one in node.get(5, ()):
            attribute = self._read("Attribute", data_of_one)
            name = _text(attribute, 1)
            for number in (*attribute.get(3, ()), *attribute.get(8, ())):
                if isinstance(number, int):  # 64 bits, two's complement
                    self.integers.add((operator, name, (number + 2**63) % 2**64 - 2**63))
            for tensor in attribute.get(5, ()):
                self._tensor(tensor)
        self._entries(node, 9)

    def _tensor(self, data: "int | memoryview") -> tuple[str, memoryview]:
        """Check a stored tensor; return its name and bytes."""
        tensor = self._read("Tensor", data)
        self._entries(tensor, 16)
        name, raw = _text(tensor, 8), _bytes(tensor, 9)
        if 13 in tensor or _number(tensor, 14):  # data_location: 1 is elsewhere, everything above is not defined
            self.external_tensors.append(name)
            return name, raw
        dtype = _ELEMENT_TYPES.get(_number(tensor, 2))
        if dtype is None:
            self.foreign.add(f"tensors of type {_number(tensor, 2)}")
            return name, raw
        shape = [size for size in tensor.get(1, ()) if isinstance(size, int)]
        if len(shape) > MAX_RANK or any(size > _MAX_DIMENSION for size in shape):
            raise OnnxFileError(f"its tensor {name[:80]!r} has dimensions that cannot be: {shape[: MAX_RANK + 1]}")
        if math.prod(shape) * np.dtype(dtype).itemsize != len(raw) and not self.foreign:
            raise OnnxFileError(f"its tensor {name[:80]!r} of {shape} {dtype} has {len(raw)} bytes")
        return name, raw

    def _value_info(self, data: "int | memoryview") -> TensorInfo:
        value_info = self._read("ValueInfo", data)
        self._entries(value_info, 4)
        dtype, shape = "", None
        for a_type in value_info.get(2, ()):
            for tensor_data in self._read("Type", a_type).get(1, ()):
                tensor = self._read("TensorType", tensor_data)
                dtype = _ELEMENT_TYPES.get(_number(tensor, 1), f"type {_number(tensor, 1)}")
                for stated in tensor.get(2, ()):
                    shape = tuple(self._dimension(data) for data in self._read("Shape", stated).get(1, ()))
        return TensorInfo(_text(value_info, 1), dtype, shape)

    def _dimension(self, data: "int | memoryview") -> int | str | None:
        dimension = self._read("Dimension", data)
        if len(dimension.keys() & {1, 2}) == 2:
            raise OnnxFileError("it is not an ONNX model: a dimension has both a size and a name")
        if 1 in dimension:
            return min(_number(dimension, 1), _MAX_DIMENSION + 1)  # 64 bits: a negative one counts as impossible too
        return _text(dimension, 2) or None

    def _entries(self, message: _Values, number: int) -> None:
        for entry in message.get(number, ()):
            self._read("Entry", entry)

    def _read(self, kind: _Kind, data: "int | memoryview") -> _Values:
        """Return the fields of a message that the table has; the others are noted as foreign.

        Nothing is copied. A field that should be there once and is there twice is an error: which one counts, or
        whether they are merged, would be for ONNX Runtime's parser to decide.
        """
        assert isinstance(data, memoryview)  # the table says so
        values: _Values = {}
        for number, wire_type, value in _fields(data):
            self._count(1)
            known = _TABLE[kind].get(number)
            if known is None:
                self.foreign.add(_FOREIGN.get((kind, number), f"field {number} of {kind}"))
                continue
            child, many = known
            if many and child == _NUMBER and wire_type == _BYTES:
                values.setdefault(number, []).extend(self._packed(kind, number, value))
                continue
            if wire_type not in _PLAIN_WIRE_TYPES.get(child, (_BYTES,)):
                raise OnnxFileError(f"it is not an ONNX model: field {number} of {kind} has wire type {wire_type}")
            if number in values and not many:
                raise OnnxFileError(f"it is not an ONNX model: field {number} of a {kind} occurs twice")
            values.setdefault(number, []).append(value)
        return values

    def _packed(self, kind: _Kind, number: int, data: "int | memoryview") -> "list[int | memoryview]":
        """Return the numbers of a packed list; those of floats stay views."""
        assert isinstance(data, memoryview)
        if (kind, number) == ("Attribute", 7):
            self._count(len(data) // 4)
            return [data[at : at + 4] for at in range(0, len(data), 4)]
        numbers: list[int | memoryview] = []
        at = 0
        while at < len(data):
            self._count(1)
            value, at = _varint(data, at)
            numbers.append(value)
        return numbers

    def _count(self, fields: int) -> None:
        self._fields_left -= fields
        if self._fields_left < 0:
            raise OnnxFileError(f"it has more than {MAX_FIELDS} fields: no student is so large")


def _fields(data: memoryview) -> Iterator[tuple[int, int, "int | memoryview"]]:
    """Yield (field number, wire type, value) of a message; all but varints come as views, nothing is copied."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < 2**29:
            raise OnnxFileError(f"it is not an ONNX model: field number {number} at byte {at}")
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            length, at = _varint(data, at)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise OnnxFileError(f"it is not an ONNX model: wire type {wire_type} at byte {at}")
        if at + length > end:
            raise OnnxFileError(f"it is not an ONNX model, or it is cut off: a field of {length} bytes at byte {at}")
        yield number, wire_type, data[at : at + length]
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


def _number(message: _Values, number: int) -> int:
    """Return a number that is there at most once; 0 by default."""
    (value,) = message.get(number, [0])
    return value if isinstance(value, int) else 0


def _bytes(message: _Values, number: int) -> memoryview:
    (value,) = message.get(number, [memoryview(b"")])
    return value if isinstance(value, memoryview) else memoryview(b"")


def _text(message: _Values, number: int) -> str:
    return bytes(_bytes(message, number)).decode()
