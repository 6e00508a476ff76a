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
    """One thread's item. turn: set when it has an outcome, or is to lead the next batch. left: its thread is ended."""

    def __init__(self, item: Item, key: Hashable) -> None:
        self.item, self.key = item, key
        self.turn = threading.Event()
        self.outcome: Result | Exception | None = None
        self.left = False


class Batcher(Generic[Item, Result]):
    """Runs the items of all threads that call it, one batch at a time.

    The thread that has waited longest leads: it takes along those that wait with the same key, in their order, and
    runs them all. So the oldest call is in the next batch whatever its key, and no thread starves.
    """

    def __init__(self, max_batch: int) -> None:
        """max_batch: most items of a batch; may be changed at any time."""
        self.max_batch = max_batch
        self._lock = threading.Lock()
        self._leader: _Call[Item, Result] | None = None
        self._waiting: deque[_Call[Item, Result]] = deque()

    def __call__(
        self, item: Item, key: Hashable, run: Callable[[Sequence[Item]], Sequence[Result | Exception]]
    ) -> Result:
        """Return the result of an item, or raise its exception.

        key: items run together have equal ones. run: returns for each item of a batch its result, or the exception that
        its caller alone is to get; what it raises itself goes to every caller of the batch.
        """
        call: _Call[Item, Result] = _Call(item, key)
        try:
            with self._lock:
                self._waiting.append(call)
                if self._leader is None:
                    self._hand_over()
            call.turn.wait()
            if call.outcome is None:
                self._lead(call, run)
        except BaseException:  # this thread is being ended: Ctrl-C in the main thread, for one
            self._leave(call)
            raise
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
        batch = [leader]
        try:
            self._take_along(batch)
            _settle(batch, _outcomes(run, [call.item for call in batch]))
        finally:
            self._finish(batch)
            del leader, batch  # as in __call__: the frames below an exception's are held by it, too

    def _take_along(self, batch: list[_Call[Item, Result]]) -> None:
        """Add those that wait with the key of a batch."""
        with self._lock:
            batch += [call for call in self._waiting if call.key == batch[0].key][: self.max_batch - 1]
            for call in batch[1:]:
                self._waiting.remove(call)

    def _finish(self, batch: Sequence[_Call[Item, Result]]) -> None:
        """Tell those of a batch that it is over, and hand over."""
        with self._lock:
            like = batch[1:]
            # Without an outcome: this thread is being ended. The others have lost nothing but time.
            self._waiting.extendleft(call for call in reversed(like) if call.outcome is None and not call.left)
            for call in like:
                if call.outcome is not None:
                    call.turn.set()
            self._hand_over()

    def _leave(self, call: _Call[Item, Result]) -> None:
        """Take a call out wherever it is, so that nobody waits for its thread."""
        with self._lock:
            call.left = True  # where it is in work, what comes of it is nobody's
            if call in self._waiting:
                self._waiting.remove(call)
            if self._leader is call:
                self._hand_over()

    def _hand_over(self) -> None:
        """Let the oldest call that waits lead, if any; the lock is held."""
        self._leader = self._waiting.popleft() if self._waiting else None
        if self._leader is not None:
            self._leader.turn.set()


def _outcomes(
    run: Callable[[Sequence[Item]], Sequence[Result | Exception]], items: Sequence[Item]
) -> Sequence[Result | Exception]:
    """Return what comes of a batch."""
    try:
        return run(items)
    except Exception as error:
        return [error] * len(items)


def _settle(batch: Sequence[_Call[Item, Result]], outcomes: Sequence[Result | Exception]) -> None:
    """Give each call its outcome. Raises ValueError where they are not as many."""
    for call, outcome in zip(batch, outcomes, strict=True):
        call.outcome = outcome
