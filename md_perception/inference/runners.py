"""How a session is called: with arrays as they are, or through buffers that stay on a GPU."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from md_perception.inference.cuda_driver import host_array

Arrays = dict[str, np.ndarray]


class PlainRunner:
    """Inputs are read where they lie and results belong to the caller, so that on a CPU nothing is copied.

    May be called from several threads: they share the session's weights and take turns at its threads.
    """

    def __init__(self, session: "onnxruntime.InferenceSession", outputs: Sequence[str]) -> None:
        self._session, self._outputs = session, list(outputs)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name. feeds: the inputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))


class BoundRunner:
    """For a GPU: inputs go through page-locked memory into buffers that stay, results are copied out once.

    The buffers are made for the sizes of the last images: cameras of several sizes need a runner each (`beside`).
    A CUDA graph reads and writes the addresses that it was captured with, so it needs `fixed` to name every output.
    May be called from several threads, one of which runs at a time. *Not run* on a GPU; tests run it on the CPU device.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        outputs: Sequence[str],
        fixed: Mapping[str, tuple[str, tuple[int, ...]]],
        device: str = "cuda",
    ) -> None:
        """fixed: dtype and shape of the outputs whose shape never changes. device: ONNX Runtime's name of it."""
        self._session, self._outputs, self._device = session, outputs, device
        self._lock = threading.Lock()
        self._binding = session.io_binding()
        self._inputs: dict[str, onnxruntime.OrtValue] = {}
        self._staged: Arrays = {}
        self._results = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, device, 0)
            for name, (dtype, shape) in fixed.items()
        }
        for name, value in self._results.items():
            self._binding.bind_ortvalue_output(name, value)
        self._others = [name for name in outputs if name not in self._results]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name. feeds: the inputs by name."""
        with self._lock:
            for name, array in feeds.items():
                self._put(name, array)
            for name in self._others:
                self._binding.bind_output(name, self._device, 0)  # anew: the last one has the shape of the last run
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
            names = (*self._results, *self._others)  # in the order in which they were bound
            return dict(zip(names, self._binding.copy_outputs_to_cpu(), strict=True))

    def beside(self) -> "BoundRunner":
        """Return one with buffers of its own for images of other sizes; the two take turns at the session."""
        runner = BoundRunner(self._session, self._outputs, {}, self._device)
        runner._lock = self._lock
        return runner

    def _put(self, name: str, array: np.ndarray) -> None:
        staged = self._staged.get(name)
        if staged is None or staged.shape != array.shape or staged.dtype != array.dtype:
            make = np.empty if self._device == "cpu" else host_array
            staged = self._staged[name] = make(array.shape, array.dtype)
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                list(array.shape), array.dtype.type, self._device, 0
            )
            self._inputs[name] = value
            self._binding.bind_ortvalue_input(name, value)
        np.copyto(staged, array)
        self._inputs[name].update_inplace(staged)
