"""Batches on demand: who is run with whom, in what order, and who gets which error."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from callers import TIMEOUT_S, Callers, Stall, waiting, without_collector

from md_perception.inference import batching
from md_perception.inference.batching import Batcher


def batches_of(
    calls: Sequence[tuple[Any, str]], max_batch: int, run: Callable[[Sequence[Any]], Sequence[Any]] = list
) -> tuple[list[list[Any]], dict[Any, Any]]:
    """Return the batches that were run, and what each item's caller got.

    calls: item and key; the first is in work until all others wait, in their order.
    """
    batcher: Batcher[Any, Any] = Batcher(max_batch)
    stall, batches, callers = Stall(), [], Callers()

    def counted(items: Sequence[Any]) -> Sequence[Any]:
        batches.append(list(items))
        stall()
        return run(items)

    for index, (item, key) in enumerate(calls):
        callers.start(item, lambda item=item, key=key: batcher(item, key, counted))
        assert stall.begun.wait(TIMEOUT_S)
        waiting(batcher, index)
    stall.go_on.set()
    callers.finish()
    assert not batcher._waiting
    assert batcher(99, "", lambda items: [-items[0]]) == -99  # it is free again
    return batches, callers.outcomes


def test_those_that_wait_are_run_together_as_soon_as_it_is_free() -> None:
    batches, outcomes = batches_of([(n, "") for n in range(4)], 8, lambda items: [10 * item for item in items])
    assert batches == [[0], [1, 2, 3]]
    assert outcomes == {0: 0, 1: 10, 2: 20, 3: 30}


def test_a_call_that_finds_it_free_is_run_at_once_and_alone() -> None:
    assert batches_of([(5, "")], 8) == ([[5]], {5: 5})


def test_no_batch_is_larger_than_the_largest() -> None:
    batches, _ = batches_of([(n, "") for n in range(6)], 2)
    assert batches == [[0], [1, 2], [3, 4], [5]]
    assert batches_of([(n, "") for n in range(3)], 1)[0] == [[0], [1], [2]]


def test_only_equal_keys_are_run_together_and_the_one_that_waits_longest_is_next() -> None:
    calls = [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a"), (5, "c")]
    assert batches_of(calls, 2)[0] == [[0], [1, 3], [2, 4], [5]]


def test_a_camera_that_calls_again_and_again_does_not_starve_another() -> None:
    # Items of one key keep coming: whenever the greedy camera is served, it asks again at once.
    batcher: Batcher[str, int] = Batcher(1)
    stall, order, callers = Stall(), [], Callers()

    def run(items: Sequence[str]) -> list[int]:
        order.extend(items)
        stall()
        return [0] * len(items)

    def greedy() -> None:
        for _ in range(20):
            batcher("greedy", "a", run)

    callers.start("greedy", greedy)
    assert stall.begun.wait(TIMEOUT_S)
    callers.start("modest", lambda: batcher("modest", "b", run))
    waiting(batcher, 1)
    stall.go_on.set()
    callers.finish()
    assert order[:2] == ["greedy", "modest"]


def test_an_exception_of_one_item_is_its_callers_alone() -> None:
    bad = ValueError("bad")
    _, outcomes = batches_of([(n, "") for n in range(4)], 8, lambda items: [bad if n == 2 else n for n in items])
    assert outcomes == {0: 0, 1: 1, 2: bad, 3: 3}


def test_an_exception_of_a_batch_is_that_of_its_callers_and_of_nobody_else() -> None:
    def run(items: Sequence[int]) -> Sequence[int]:
        if 1 in items:
            raise ValueError("broken")
        return items

    _, outcomes = batches_of([(0, "a"), (1, "a"), (2, "a"), (3, "b")], 8, run)
    assert (outcomes[0], outcomes[3]) == (0, 3)
    assert [str(outcomes[n]) for n in (1, 2)] == ["broken"] * 2


class Ended(BaseException):
    """As KeyboardInterrupt: of the thread, not of the call."""


def test_the_others_of_a_batch_whose_thread_is_ended_are_run_without_it() -> None:
    order: list[list[int]] = []

    def run(items: Sequence[int]) -> Sequence[int]:
        order.append(list(items))
        if items[0] == 1:
            raise Ended
        return items

    batcher: Batcher[int, int] = Batcher(8)
    stall, callers = Stall(), Callers()

    def stalled(items: Sequence[int]) -> Sequence[int]:
        stall()
        return run(items)

    def ended() -> str:
        try:
            batcher(1, "", stalled)
        except Ended:
            return "ended"
        return "not ended"

    callers.start(0, lambda: batcher(0, "", stalled))
    assert stall.begun.wait(TIMEOUT_S)
    callers.start(1, ended)
    waiting(batcher, 1)
    for index, key in ((2, ""), (3, ""), (4, "other")):
        callers.start(index, lambda index=index, key=key: batcher(index, key, stalled))
        waiting(batcher, index)
    stall.go_on.set()
    callers.finish()
    assert callers.outcomes == {0: 0, 1: "ended", 2: 2, 3: 3, 4: 4}
    assert order == [[0], [1, 2, 3], [2, 3], [4]]  # those that came first are first still


class Interrupted(threading.Event):
    """The turn of a call whose thread is ended at its wait, as soon as `when` is set."""

    def __init__(self, when: threading.Event) -> None:
        super().__init__()
        self.when = when

    def wait(self, timeout: float | None = None) -> bool:
        assert self.when.wait(TIMEOUT_S)
        raise Ended


@pytest.mark.parametrize("moment", ["in the queue", "in work", "its turn has come"])
def test_a_call_whose_thread_is_ended_while_it_waits_stops_nobody(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    when, gone, first = threading.Event(), threading.Event(), Stall()
    turn = Interrupted(when)

    class Call(batching._Call):
        def __init__(self, item: str, key: str) -> None:
            super().__init__(item, key)
            if item == "interrupted":
                self.turn = turn

    def run(items: Sequence[str]) -> Sequence[str]:
        first()
        if len(items) > 1:
            when.set()
            assert gone.wait(TIMEOUT_S)
            raise Ended  # the leader, too: its batch is queued again
        return items

    def call(item: str, key: str) -> str:
        try:
            return batcher(item, key, run)
        except Ended:
            return "ended"
        finally:
            if item == "interrupted":
                gone.set()

    monkeypatch.setattr(batching, "_Call", Call)
    batcher: Batcher[str, str] = Batcher(8)
    callers = Callers()
    callers.start("first", lambda: call("first", ""))
    assert first.begun.wait(TIMEOUT_S)
    queue = (["leader"] if moment == "in work" else []) + ["interrupted", "other"]
    for count, item in enumerate(queue, start=1):
        callers.start(item, lambda item=item: call(item, "b" if item == "other" else "a"))
        waiting(batcher, count)
    if moment == "in the queue":
        when.set()
        assert gone.wait(TIMEOUT_S)
        assert [one.item for one in batcher._waiting] == ["other"]
    first.go_on.set()
    if moment == "its turn has come":
        assert threading.Event.wait(turn, TIMEOUT_S)
        when.set()
    callers.finish()
    expected = {item: item for item in ("first", *queue)} | {"interrupted": "ended"}
    assert callers.outcomes == expected | ({"leader": "ended"} if moment == "in work" else {})
    assert not batcher._waiting
    assert batcher("later", "", list) == "later"


@pytest.mark.parametrize("fails", ["the batch", "an item"])
def test_an_exception_that_is_done_with_keeps_no_item(fails: str) -> None:
    class Item:
        pass

    def run(items: Sequence[Item]) -> Sequence[Exception]:
        if fails == "the batch":
            raise ValueError
        return [ValueError()]

    batcher: Batcher[Item, None] = Batcher(8)
    item = Item()
    kept = weakref.ref(item)
    with without_collector():
        with contextlib.suppress(ValueError):
            batcher(item, "", run)
        del item
        assert kept() is None
