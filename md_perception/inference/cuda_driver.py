"""What is asked of NVIDIA's driver itself: which GPU there is, and host memory that it copies without a detour.

ONNX Runtime's Python interface can neither name the GPU nor allocate page-locked memory for its CUDA provider. The few
functions are declared as in cuda.h, where their names with `_v2` come from too. *Not run* on a GPU.
"""

import ctypes
import functools
import logging
import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

LIBRARY = "libcuda.so.1"

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every context, ONNX Runtime's too
_DEVICE = 0  # ONNX Runtime's default

_INT_P, _HANDLE_P = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_void_p)
_ARGUMENTS: dict[str, list[Any]] = {
    "cuInit": [ctypes.c_uint],
    "cuDeviceGetCount": [_INT_P],
    "cuDeviceGet": [_INT_P, ctypes.c_int],
    "cuDeviceGetName": [ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    "cuDeviceGetAttribute": [_INT_P, ctypes.c_int, ctypes.c_int],
    "cuDevicePrimaryCtxRetain": [_HANDLE_P, ctypes.c_int],
    "cuCtxPushCurrent_v2": [ctypes.c_void_p],
    "cuCtxPopCurrent_v2": [_HANDLE_P],
    "cuMemHostAlloc": [_HANDLE_P, ctypes.c_size_t, ctypes.c_uint],
    "cuMemFreeHost": [ctypes.c_void_p],
}


class CudaError(RuntimeError):
    """The driver is missing, or refused a call; the text says which."""


@dataclass(frozen=True)
class Gpu:
    """name: as the driver gives it. compute_capability: `9.0`."""

    name: str
    compute_capability: str


class Driver:
    """The driver library, initialised."""

    def __init__(self, library: Any) -> None:
        """library: a ctypes.CDLL, or what has its functions. Raises CudaError."""
        self._library = library
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        if self._library.cuInit(0) != 0:
            raise CudaError("the NVIDIA driver finds no GPU")
        self._context = ctypes.c_void_p()

    @classmethod
    @functools.cache
    def load(cls) -> "Driver":
        """Return the driver of this machine, the same each time. Raises CudaError."""
        try:
            return cls(ctypes.CDLL(LIBRARY))
        except (OSError, AttributeError):
            raise CudaError(f"there is no NVIDIA driver ({LIBRARY})") from None

    def gpu(self) -> Gpu:
        """Return the first GPU. Raises CudaError where there is none."""
        count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            raise CudaError("the NVIDIA driver finds no GPU")
        device = self._device()
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self._call("cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
        self._call("cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
        return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array in page-locked memory, which is given back with its last view. Raises CudaError."""
        size = max(1, math.prod(shape) * dtype.itemsize)
        address = ctypes.c_void_p()
        if not self._context:
            # The context of CUDA's runtime, so of ONNX Runtime; it is kept to the end of the process.
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device())
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            self._call("cuMemHostAlloc", ctypes.byref(address), size, _PORTABLE)
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        assert address.value
        buffer = (ctypes.c_ubyte * size).from_address(address.value)
        array = np.ctypeslib.as_array(buffer)
        weakref.finalize(array, self._free, address.value).atexit = False  # the driver is gone first, and frees it all
        return array[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def _free(self, address: int) -> None:
        self._library.cuCtxPushCurrent_v2(self._context)
        self._library.cuMemFreeHost(address)
        self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _device(self) -> ctypes.c_int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), _DEVICE)
        return device

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CudaError(f"the NVIDIA driver refuses {name} (error {status})")


def host_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array for copies to the GPU: page-locked where that can be had, else ordinary memory."""
    try:
        return Driver.load().pinned(shape, dtype)
    except CudaError as error:
        logger.info("copies to the GPU go through ordinary memory: %s", error)
        return np.empty(shape, dtype)
