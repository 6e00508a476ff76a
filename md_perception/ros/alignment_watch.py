"""The misalignment monitor beside the worker: a thread of its own, so that no frame ever waits for it."""

import logging
import threading
from collections.abc import Callable

from md_perception.pipeline import Work
from md_perception.sensing.misalignment import Misalignment, MisalignmentMonitor, MisalignmentSettings
from md_perception.threads import thread_in_context

logger = logging.getLogger(__name__)

WATCH_THREAD = "md_perception alignment watch"

_JOIN_S = 0.4
"""With the worker's JOIN_S less than the 2 s in which the node has to end."""


class AlignmentWatch:
    """Looks at the newest pair once a period, from `start` to `stop`, once.

    latest: returns the newest pair of the pipeline, None before the first; the same pair is not looked at twice.
    """

    def __init__(self, latest: Callable[[], Work | None], settings: MisalignmentSettings, period_s: float) -> None:
        self._latest = latest
        self._monitor = MisalignmentMonitor(settings)
        self._period_s = period_s
        self._seen: Work | None = None
        self._state: Misalignment | None = None
        self._waits = False
        self._failed = False
        self._stop = threading.Event()
        self._thread = thread_in_context(self._run, WATCH_THREAD)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a check in progress takes a few milliseconds."""
        self._stop.set()
        self._thread.join(_JOIN_S)

    def state(self) -> Misalignment | None:
        """Return what the last check said, None before the first and after a failure."""
        return self._state

    @property
    def waits(self) -> bool:
        """Whether the last period brought no new pair to compare: `state` is of an older one then."""
        return self._waits

    def problems(self) -> list[str]:
        """Return that it has failed, with the cure, once it has."""
        if not self._failed:
            return []
        return ["the misalignment monitor failed and ended, the log says why: deactivate and activate start it again"]

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self._check()
            except Exception:  # the results do not depend on it
                logger.exception("the misalignment monitor failed and ends; the results do not depend on it")
                self._failed, self._state = True, None  # what it said last would pass for what holds now
                return

    def _check(self) -> None:
        work = self._latest()
        self._waits = True
        if work is None or work is self._seen or work.rgb is None or work.thermal is None:
            return
        if work.rgb_to_thermal is None:
            return
        self._waits, self._seen = False, work
        self._state = self._monitor.check(work.rgb.image, work.thermal.image, work.rgb_to_thermal)
