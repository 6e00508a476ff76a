"""What of this package reads bytes from outside, as functions that take any bytes: a crash or a hang in one is a bug.

Each target ends normally for whatever it is given; the errors that its reader documents are swallowed, all others are
findings. `seeds` gives each of them inputs that are valid, for whoever mutates them.
"""

import contextlib
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import cv2
import numpy as np
from image_messages import header
from tiny_student import tiny_manifest, tiny_model

from md_perception.bags.injection import Injection, inject
from md_perception.bags.make import TimedMessage
from md_perception.bags.read import Bag, BagMessage
from md_perception.bags.types import IMAGE, message_store
from md_perception.bags.write import BagError, BagWriter
from md_perception.inference.manifest import MANIFEST_KEY, Manifest, ManifestError
from md_perception.inference.onnx_file import OnnxFile, OnnxFileError
from md_perception.outputs.messages import MessageBuilder
from md_perception.sensing import images, registration, thermal
from md_perception.sensing.health import content_of

T = TypeVar("T")

_ENCODINGS = [*images._LAYOUT, "", "8UC3", "32FC2", "rgb8\0", "nv21", "\ud800"]
_STORE = message_store()
_TOPIC = "/rgb/image_raw"


class Bytes:
    """Takes values off the front of bytes; zeros where they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, form: str) -> Any:
        """Return the next value of a struct format."""
        size = struct.calcsize(form)
        taken = self._data[self._at : self._at + size].ljust(size, b"\0")
        self._at += size
        return struct.unpack(form, taken)[0]

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.number("<B") % len(choices)]

    def rest(self) -> bytes:
        return self._data[self._at :]


def image(data: bytes) -> None:
    """A sensor_msgs/Image of any fields: decoded as colour, as thermal, normalised, and inspected."""
    source = Bytes(data)
    encoding = source.pick(_ENCODINGS)
    small = source.number("<B") % 2
    width, height, step = (source.number("<B" if small else "<I") for _ in range(3))
    big_endian, unit = source.number("<B"), source.pick([*thermal.TEMPERATURES, "auto", "counts", "agc8", "grey_rgb8"])
    message = SimpleNamespace(
        header=header(source.number("<I")),
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=big_endian % 2,
        data=np.frombuffer(source.rest(), np.uint8),
    )
    _decode(message, unit)


def compressed(data: bytes) -> None:
    """A sensor_msgs/CompressedImage of any format and bytes."""
    source = Bytes(data)
    formats = [
        "jpeg",
        "png",
        "rgb8; jpeg compressed bgr8",
        "mono16; png compressed",
        "bayer_rggb8; jpeg compressed",
        "",
    ]
    message_format = source.pick(formats)
    _decode(
        SimpleNamespace(header=header(), format=message_format, data=np.frombuffer(source.rest(), np.uint8)), "auto"
    )


def _decode(message: Any, unit: Any) -> None:
    with contextlib.suppress(images.ImageError):
        colour = images.to_rgb(message)
        assert colour.dtype == np.uint8
        assert colour.shape[2] == 3
    with contextlib.suppress(images.ImageError):
        images.to_thermal_values(message)
    with contextlib.suppress(images.ImageError):
        grey = thermal.ThermalNormaliser(thermal.ThermalSettings(encoding=unit))(message)
        assert grey.dtype == np.uint8
        assert grey.ndim == 2
    for camera in ("rgb", "thermal"):
        with contextlib.suppress(images.ImageError):
            content_of(message, camera)  # type: ignore[arg-type]


def cdr(data: bytes) -> None:
    """A serialised sensor_msgs/Image as it lies in a bag; what can be read goes on to the decoders and the faults."""
    item = BagMessage(_TOPIC, IMAGE, 0, data, _STORE)
    try:
        message = item.message
    except BagError:
        return
    _decode(message, "auto")
    for kind, amount in (("resize", 0.5), ("cut", 0.5), ("jump", -1.0)):
        with contextlib.suppress(images.ImageError, OverflowError):
            fault = Injection(kind, _TOPIC, 0.0, 1.0, amount)  # type: ignore[arg-type]
            list(inject([TimedMessage(0, _TOPIC, message)], [fault], 0))


def camera_info(data: bytes) -> None:
    """Two sensor_msgs/CameraInfo of any numbers, and the registration that follows from them."""
    source = Bytes(data)
    used = registration.Registration(
        registration.RegistrationSettings(
            source=source.pick(["camera_info_raw", "camera_info_rect"]), distance_m=source.pick([5.0, 1e-3, np.inf])
        )
    )
    sizes = []
    for camera in ("rgb", "thermal"):
        form = source.pick(["<e", "<f", "<d"])
        width, height = source.number("<H"), source.number("<H")
        info = SimpleNamespace(
            width=width,
            height=height,
            distortion_model=source.pick(["plumb_bob", "rational_polynomial", "equidistant", "", "other"]),
            binning_x=source.number("<B"),
            binning_y=source.number("<B"),
            roi=SimpleNamespace(width=source.number("<B"), height=source.number("<B"), x_offset=1, y_offset=2),
            d=[source.number(form) for _ in range(source.number("<B") % 15)],
            k=[source.number(form) for _ in range(9)],
            r=[source.number(form) for _ in range(9)],
            p=[source.number(form) for _ in range(12)],
        )
        used.note_camera_info(camera, info)  # type: ignore[arg-type]
        found = used._cameras.get(camera)  # type: ignore[call-overload]
        sizes.append(found.size if found else (width, height))
    with np.errstate(all="ignore"), contextlib.suppress(ValueError):
        matrix = used.matrix(*sizes)
        assert matrix.shape == (3, 3)
    used.warnings()


def manifest(data: bytes) -> None:
    """The text of a student's manifest."""
    with contextlib.suppress(ManifestError):
        Manifest.from_metadata({MANIFEST_KEY: data.decode("utf-8", "surrogateescape")}, "fuzz.onnx").summary()


def student(data: bytes) -> None:
    """A student file, up to where ONNX Runtime would get it."""
    with contextlib.suppress(OnnxFileError):
        OnnxFile.parse(data).weights_sha256()


def bag(data: bytes) -> None:
    """A file that calls itself a bag, read to its end."""
    suffix = ".db3" if data.startswith(b"SQLite") else ".mcap"
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BagError):
        path = Path(folder) / f"fuzz{suffix}"
        path.write_bytes(data)
        with Bag(path) as opened:
            for item in opened.messages():
                with contextlib.suppress(BagError):
                    _ = item.message


def parameters(data: bytes) -> None:
    """Values of the declared types for all parameters of the node: rclpy lets no others through."""
    from md_perception.parameters import TABLE, ParameterError, Parameters

    source = Bytes(data)
    values: dict[str, Any] = {declaration.name: declaration.default for declaration in TABLE}
    for _ in range(source.number("<B") % 12):
        declaration = source.pick(TABLE)
        default = declaration.default
        one = default[0] if isinstance(default, list) else default
        draw: dict[type, Callable[[], Any]] = {
            bool: lambda: bool(source.number("<B") % 2),
            int: lambda: source.number(source.pick(["<b", "<q"])),
            float: lambda: source.number(source.pick(["<e", "<d"])),
            str: lambda d=declaration: source.pick([*d.choices, "", "\0", "auto", "x" * 100]),
        }
        if isinstance(default, list):
            length = source.pick([declaration.length or 1, 0, 1, 300])
            values[declaration.name] = [draw[type(one)]() for _ in range(length)]
        else:
            values[declaration.name] = draw[type(one)]()
    with contextlib.suppress(ParameterError), np.errstate(all="ignore"):
        found = Parameters.from_values(values)
        found.warnings()
        found.pairing_settings()


def _bag_bytes(storage: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with BagWriter(Path(folder) / "seed", storage) as writer:
            writer.add_topic(_TOPIC, IMAGE)
            for number in range(3):
                message = MessageBuilder(writer.store.types.__getitem__).image(_pixels(3), "rgb8", number, "camera")
                writer.write(_TOPIC, number, message)
        (path,) = (file for file in (Path(folder) / "seed").iterdir() if file.suffix != ".yaml")
        return path.read_bytes()


def _pixels(channels: int) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def _image_seeds() -> list[bytes]:
    found = []
    for number, encoding in enumerate(_ENCODINGS):
        kind, channels = images._LAYOUT.get(encoding, ("u1", 1))
        step = 8 * channels * np.dtype(kind).itemsize
        found.append(bytes([number, 1, 8, 6, step, 0, 6, 0, 0, 0, 0]) + bytes(range(256)) * (6 * step // 256 + 1))
    return found


def _camera_info_seed() -> bytes:
    k = [100.0, 0.0, 31.5, 0.0, 100.0, 23.5, 0.0, 0.0, 1.0]
    one = struct.pack("<BHHBBBBBB", 1, 64, 48, 0, 0, 0, 0, 0, 5) + struct.pack(
        "<35f", *([0.01] * 5), *k, *np.eye(3).ravel(), *k[:3], -3.0, *k[3:6], 0.0, *k[6:], 0.0
    )
    return b"\0\0" + one + one


TARGETS: dict[str, Callable[[bytes], None]] = {
    "image": image,
    "compressed": compressed,
    "cdr": cdr,
    "camera_info": camera_info,
    "manifest": manifest,
    "student": student,
    "bag": bag,
    "parameters": parameters,
}


def seeds(target: str) -> list[bytes]:
    """Return valid inputs of a target."""
    encoded = [
        cv2.imencode(f".{kind}", _pixels(channels))[1].tobytes() for kind in ("jpg", "png") for channels in (1, 3)
    ]
    message = MessageBuilder(_STORE.types.__getitem__).image(_pixels(3), "rgb8", 10**18, "camera")
    made: dict[str, Callable[[], list[bytes]]] = {
        "image": _image_seeds,
        "compressed": lambda: [bytes([number]) + data for data in encoded for number in range(5)],
        "cdr": lambda: [bytes(_STORE.serialize_cdr(message, IMAGE))],
        "camera_info": lambda: [_camera_info_seed()],
        "manifest": lambda: [tiny_manifest().model_dump_json().encode()],
        "student": lambda: [tiny_model().SerializeToString(), tiny_model(thermal=False).SerializeToString()],
        "bag": lambda: [_bag_bytes("mcap"), _bag_bytes("sqlite3")],
        "parameters": lambda: [bytes([11]) + bytes(range(1, 120))],
    }
    return made[target]()
