"""Threads that work for the one that makes them."""

import contextvars
import threading
from collections.abc import Callable
from functools import partial


def thread_in_context(target: Callable[[], None], name: str) -> threading.Thread:
    """Return a daemon thread, not started, with a copy of the context of the calling thread.

    A new thread begins with an empty context; the log of a process with several nodes asks there whose thread it is.
    """
    return threading.Thread(target=partial(contextvars.copy_context().run, target), name=name, daemon=True)
