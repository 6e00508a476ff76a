"""Threads that call something in a known order, and have to wait for each other."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

from md_perception.inference.batching import Batcher

TIMEOUT_S = 60.0


class Stall:
    """Lets the first call into something go on only when it is told to, so that others have to wait."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(TIMEOUT_S)


class Callers:
    """Threads that call something in a known order. outcomes: what each got, a result or an exception."""

    def __init__(self) -> None:
        self.outcomes: dict[Any, Any] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: Any, call: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self.outcomes[name] = call()
            except Exception as error:
                self.outcomes[name] = error

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


def waiting(batcher: Batcher, count: int) -> None:
    """Wait until so many calls are queued."""
    tick, left_s = threading.Event(), TIMEOUT_S
    while len(batcher._waiting) < count:
        assert left_s > 0
        left_s -= 0.002
        tick.wait(0.002)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Free only what nothing refers to: what needs the garbage collector keeps its images for seconds."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
