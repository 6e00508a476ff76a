"""Tracepoints: when a frame passed which place of the node, for a benchmark that asks where the time goes.

Switched on by the environment variable of FILE_VARIABLE, before the node starts. Without it a point is the call of an
empty function, and nothing is kept. (LTTng's tracepoints cannot be set from Python.)
"""

import gc
import json
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from md_perception.files import write_whole

FILE_VARIABLE = "MD_PERCEPTION_TRACE"
"""Names the file that `write` writes."""

MAX_POINTS = 500_000
"""The newest points are kept: of a run of several minutes at 30 Hz."""


class Trace:
    """The points of a process. May be called from several threads."""

    def __init__(self) -> None:
        self._points: deque[tuple[str, int, int, int, int]] = deque(maxlen=MAX_POINTS)
        self._threads: dict[int, str] = {}
        gc.callbacks.append(self._collected)

    def point(self, place: str, stamp_ns: int) -> None:
        """Note that the frame of this stamp is here now."""
        thread = threading.get_native_id()
        if thread not in self._threads:
            self._threads[thread] = threading.current_thread().name
        self._points.append((place, stamp_ns, time.monotonic_ns(), time.thread_time_ns(), thread))

    def arrived(self, camera: str, stamp_ns: int, info: dict[str, int]) -> None:
        """Note where a message was before its callback. info: rclpy's, whose times are of the wall clock."""
        self.point(f"{camera} callback", stamp_ns)
        steady_ns, thread = time.monotonic_ns(), threading.get_native_id()
        for place, name in (("sent", "source_timestamp"), ("in reader", "received_timestamp")):
            self._points.append((f"{camera} {place}", stamp_ns, info[name] - time.time_ns() + steady_ns, 0, thread))

    def content(self) -> dict[str, Any]:
        """Return all points as [place, stamp, steady clock, CPU time of the thread, thread id], times in ns, and the
        names of the threads of Python by their id."""
        threads = {thread.native_id: thread.name for thread in threading.enumerate()} | self._threads
        return {"points": list(self._points), "threads": {str(thread): name for thread, name in threads.items()}}

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        self.point(f"garbage {info['generation']} {phase}", 0)


def _nothing(*_: Any) -> None:
    pass


_trace = Trace() if os.environ.get(FILE_VARIABLE) else None
point = _nothing if _trace is None else _trace.point
"""Trace.point, or nothing."""
arrived = _nothing if _trace is None else _trace.arrived
"""Trace.arrived, or nothing."""


def write() -> None:
    """Write what was traced, if anything was to be; say so on stderr where that cannot be done."""
    if _trace is None:
        return
    path = Path(os.environ[FILE_VARIABLE])
    try:
        write_whole(path, json.dumps(_trace.content()).encode())
    except OSError as error:
        print(f"the trace {path} ({FILE_VARIABLE}) cannot be written: {error.strerror}", file=sys.stderr)
