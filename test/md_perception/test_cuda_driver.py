"""The calls of NVIDIA's driver, through ctypes, to functions of cuda.h's signatures that keep account of them."""

import ctypes
import gc
import re
import sys
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path

import numpy as np
import pytest

from md_perception.inference import cuda_driver
from md_perception.inference.cuda_driver import CudaError, Driver, Gpu

_INT_P, _HANDLE_P = POINTER(c_int), POINTER(c_void_p)
CONTEXT = 0x7FFF_1234_5678_9ABC  # without argtypes ctypes would cut it to 32 bits
HEADER = "nvidia/cu13/include/cuda.h"


class FakeLibrary:
    """libcuda.so.1 with one GPU and host memory of ctypes' own. fail: functions that return an error."""

    def __init__(self, gpus: int = 1, fail: tuple[str, ...] = ()) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, ctypes.Array] = {}
        self.contexts: list[int | None] = []
        self._add("cuInit", fail, [c_uint], lambda flags: None)
        self._add("cuDeviceGetCount", fail, [_INT_P], lambda count: self._store(count, gpus))
        self._add("cuDeviceGet", fail, [_INT_P, c_int], lambda device, ordinal: self._store(device, 70 + ordinal))
        self._add("cuDeviceGetName", fail, [c_void_p, c_int, c_int], self._name)
        self._add("cuDeviceGetAttribute", fail, [_INT_P, c_int, c_int], self._attribute)
        self._add("cuDevicePrimaryCtxRetain", fail, [_HANDLE_P, c_int], lambda out, _: self._store(out, CONTEXT))
        self._add("cuCtxPushCurrent_v2", fail, [c_void_p], self.contexts.append)
        self._add("cuCtxPopCurrent_v2", fail, [_HANDLE_P], lambda out: self._store(out, self.contexts.pop()))
        self._add("cuMemHostAlloc", fail, [_HANDLE_P, c_size_t, c_uint], self._allocate)
        self._add("cuMemFreeHost", fail, [c_void_p], self._free)

    def _add(self, name: str, fail: tuple[str, ...], arguments: list, action) -> None:
        def function(*given: object) -> int:
            self.calls.append(name)
            if name in fail:
                return 2
            action(*given)
            return 0

        setattr(self, name, ctypes.CFUNCTYPE(c_int, *arguments)(function))

    @staticmethod
    def _store(pointer, value: int | None) -> None:
        pointer[0] = value

    @staticmethod
    def _name(buffer: int, length: int, device: int) -> None:
        assert (length, device) == (256, 70)
        (c_char * length).from_address(buffer).value = b"NVIDIA Imaginary 9000"

    @staticmethod
    def _attribute(out, attribute: int, device: int) -> None:
        out[0] = {75: 9, 76: 1}[attribute]

    def _allocate(self, out, size: int, flags: int) -> None:
        assert flags == 1
        assert self.contexts == [CONTEXT]
        buffer = (c_char * size)()
        out[0] = ctypes.addressof(buffer)
        self.memory[out[0]] = buffer

    def _free(self, address: int) -> None:
        assert self.contexts == [CONTEXT]
        del self.memory[address]


def test_the_gpu_is_named_with_its_compute_capability() -> None:
    assert Driver(FakeLibrary()).gpu() == Gpu("NVIDIA Imaginary 9000", "9.1")


@pytest.mark.parametrize(("gpus", "fail"), [(0, ()), (1, ("cuInit",))])
def test_a_driver_without_a_gpu_says_so(gpus: int, fail: tuple[str, ...]) -> None:
    with pytest.raises(CudaError, match="the NVIDIA driver finds no GPU"):
        Driver(FakeLibrary(gpus, fail)).gpu()


def test_a_missing_driver_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnothing.so.1")
    Driver.load.__func__.cache_clear()
    with pytest.raises(CudaError, match=r"there is no NVIDIA driver \(libnothing\.so\.1\)"):
        Driver.load()


def test_pinned_memory_lives_as_long_as_its_last_view() -> None:
    library = FakeLibrary()
    driver = Driver(library)
    array = driver.pinned((2, 3), np.dtype(np.float32))
    assert (array.shape, array.dtype) == ((2, 3), np.float32)
    array[:] = [[1, 2, 3], [4, 5, 6]]
    (address,) = library.memory
    assert address == array.ctypes.data
    assert np.frombuffer(library.memory[address], np.float32).tolist() == [1, 2, 3, 4, 5, 6]
    row = array[1]
    del array
    gc.collect()
    assert address in library.memory
    assert row.tolist() == [4, 5, 6]
    del row
    gc.collect()
    assert library.memory == {}
    assert library.contexts == []
    driver.pinned((4,), np.dtype(np.uint8))
    assert library.calls.count("cuDevicePrimaryCtxRetain") == 1


def test_the_context_is_left_and_ordinary_memory_serves_where_none_can_be_pinned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = FakeLibrary(fail=("cuMemHostAlloc",))
    monkeypatch.setattr(Driver, "load", classmethod(lambda cls: driver))
    driver = Driver(library)
    with caplog.at_level("INFO"):
        array = cuda_driver.host_array((2, 2), np.dtype(np.uint8))
    assert array.shape == (2, 2)
    assert library.contexts == []
    assert "refuses cuMemHostAlloc (error 2)" in caplog.text


def test_prototypes_are_those_of_cuda_h() -> None:
    header = next((Path(folder) for folder in sys.path if (Path(folder) / HEADER).is_file()), None)
    if header is None:
        pytest.skip("NVIDIA's cuda.h is not installed")
    text = (header / HEADER).read_text(encoding="utf-8", errors="replace")
    kinds = dict.fromkeys(("int", "CUdevice", "CUdevice_attribute"), c_int) | {"unsigned int": c_uint}
    kinds |= {"size_t": c_size_t, "CUcontext": c_void_p, "void *": c_void_p, "char *": c_char_p}
    kinds |= dict.fromkeys(("int *", "CUdevice *"), _INT_P) | dict.fromkeys(("CUcontext *", "void **"), _HANDLE_P)
    for name, arguments in cuda_driver._ARGUMENTS.items():
        plain = name.removesuffix("_v2")
        assert (re.search(rf"#define {plain}\s+{plain}_v2\b", text) is not None) == name.endswith("_v2"), name
        declared = re.search(rf"CUresult CUDAAPI {plain}\(([^)]*)\);", text)
        assert declared is not None, name
        types = [re.sub(r"(\w+)$", "", part.strip()).strip() for part in declared[1].split(",")]
        assert [kinds[kind] for kind in types] == arguments, name
