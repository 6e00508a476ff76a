"""Batches on demand: calls of several threads that find the session busy are answered together when it is free.

Nobody waits for others to come, so that a single camera is as fast as without (Triton's dynamic batching, without its
queue delay).
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Call(Generic[Item, Result]):
    """One thread's item. turn: set when it has an outcome, or is to lead the next batch."""

    def __init__(self, item: Item, key: Hashable) -> None:
        self.item, self.key = item, key
        self.turn = threading.Event()
        self.outcome: Result | Exception | None = None


class Batcher(Generic[Item, Result]):
    """Runs the items of all threads that call it, one batch at a time.

    The thread that has waited longest leads: it takes along those that wait with the same key, in their order, and
    runs them all. So the oldest call is in the next batch whatever its key, and no thread starves.
    """

    def __init__(self, max_batch: int) -> None:
        """max_batch: most items of a batch."""
        self.max_batch = max_batch
        self._lock = threading.Lock()
        self._busy = False
        self._waiting: deque[_Call[Item, Result]] = deque()

    def __call__(
        self, item: Item, key: Hashable, run: Callable[[Sequence[Item]], Sequence[Result | Exception]]
    ) -> Result:
        """Return the result of an item, or raise its exception.

        key: items run together have equal ones. run: returns for each item of a batch its result, or the exception that
        its caller alone is to get; what it raises itself goes to every caller of the batch.
        """
        call: _Call[Item, Result] = _Call(item, key)
        with self._lock:
            leads = not self._busy
            if leads:
                self._busy = True
            else:
                self._waiting.append(call)
        if not leads:
            call.turn.wait()
        if call.outcome is None:
            self._lead(call, run)
        outcome = call.outcome
        assert outcome is not None
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del call, outcome  # its traceback holds this frame, which would hold it and the images
        return outcome

    def _lead(self, leader: _Call[Item, Result], run: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        """Run the next batch, and hand over to the oldest call that waits then."""
        with self._lock:
            like = [call for call in self._waiting if call.key == leader.key][: self.max_batch - 1]
            for call in like:
                self._waiting.remove(call)
        batch = [leader, *like]
        try:
            try:
                outcomes: Sequence[Result | Exception] = run([call.item for call in batch])
            except Exception as error:
                outcomes = [error] * len(batch)
            for call, outcome in zip(batch, outcomes, strict=True):
                call.outcome = outcome
        finally:
            with self._lock:
                # Without an outcome: this thread is being ended. The others have lost nothing but time.
                self._waiting.extendleft(call for call in reversed(like) if call.outcome is None)
                following = self._waiting.popleft() if self._waiting else None
                self._busy = following is not None
            for call in like:
                if call.outcome is not None:
                    call.turn.set()
            if following is not None:
                following.turn.set()
