"""The queue between callbacks and worker: which frame is next, and that every RGB frame is counted exactly once."""

import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from md_perception.intake import Counters, Inspection, Intake, Job
from md_perception.results import Camera, Mode
from md_perception.sensing.health import Content, HealthSettings, ImageForm, ModeSelector
from md_perception.sensing.pairing import NearestPairing, PairingSettings, StampedMessage

MS = 1_000_000


class Clock:
    """A steady clock that the test moves."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * MS

    def __call__(self) -> int:
        return self.now_ns

    def frame(self, stamp_ms: float) -> StampedMessage:
        return StampedMessage(f"message of {stamp_ms} ms", round(stamp_ms * MS), self.now_ns)


FUSED_ALONE = (Mode.FUSED,)
BOTH = (Mode.FUSED, Mode.VISIBLE_ONLY)
ALL = (*BOTH, Mode.THERMAL_ONLY)


def make(clock: Clock, students: tuple[Mode, ...] = FUSED_ALONE, depth: int = 4) -> Intake:
    selector = ModeSelector(students, HealthSettings(timeout_s=1.0, recovery_pairs=3))
    return Intake(NearestPairing(PairingSettings(max_wait_ns=150 * MS)), selector, depth=depth, clock_ns=clock)


def feed_pairs(intake: Intake, clock: Clock, stamps_ms: range) -> None:
    """Add pairs with equal stamps, each `stamps_ms.step` after the last."""
    for stamp in stamps_ms:
        clock.now_ns += stamps_ms.step * MS
        intake.add_thermal(clock.frame(stamp))
        intake.add_rgb(clock.frame(stamp))


def assert_balanced(counters: Counters) -> None:
    ended = counters.processed + counters.dropped + counters.unpaired + counters.rejected
    assert counters.received == ended + counters.waiting


def test_however_many_images_come_only_a_few_are_alive() -> None:
    """The node's memory: docs/reliability.md."""
    clock = Clock()
    intake = make(clock, depth=4)
    alive: dict[str, list[weakref.ref[StampedMessage]]] = {"rgb": [], "thermal": []}
    form = ImageForm("camera", (4, 3), "mono8")

    def add(camera: Camera, stamp_ms: int) -> None:
        frame = StampedMessage("image", stamp_ms * MS, clock.now_ns)
        alive[camera].append(weakref.ref(frame))
        (intake.add_rgb if camera == "rgb" else intake.add_thermal)(frame, form)

    def number(camera: Camera) -> int:
        return sum(reference() is not None for reference in alive[camera])

    for stamp in range(0, 9000, 30):  # nobody takes them
        clock.now_ns += 30 * MS
        add("thermal", stamp)
        add("rgb", stamp)
        assert number("rgb") <= 4  # the queue, the newest of which waits to be looked at
        assert number("thermal") <= 6  # those of the queue, and what a next RGB image may want, 60 ms back
    for stamp in range(9000, 18000, 30):  # without thermal images
        clock.now_ns += 30 * MS
        add("rgb", stamp)
        assert number("rgb") <= 4 + 6  # and those that wait for a partner, 150 ms
    while isinstance(job := intake.take(wait=False), Job | Inspection):
        intake.processed() if isinstance(job, Job) else intake.inspected(job, Content(np.ones((3, 4), np.uint8)))
    del job
    clock.now_ns += 1000 * MS
    intake.take(wait=False)
    assert number("rgb") == 0
    assert number("thermal") <= 3


def test_a_worker_that_keeps_up_gets_every_frame_in_order() -> None:
    clock = Clock()
    intake = make(clock)
    feed_pairs(intake, clock, range(0, 120, 40))  # three pairs wait, 40 ms apart
    stamps = []
    for _ in range(3):
        item = intake.take(wait=False)
        assert item is not None
        assert item.thermal is not None
        stamps.append(item.rgb.stamp_ns // MS)
        clock.now_ns += 10 * MS  # a cycle of 10 ms is less than the period of 40 ms
        intake.processed()
    assert stamps == [0, 40, 80]
    assert intake.counters() == Counters(received=3, processed=3, paired=3, thermal_received=3)


def test_a_slow_worker_gets_the_newest_frame_and_the_others_are_dropped() -> None:
    clock = Clock()
    intake = make(clock)
    feed_pairs(intake, clock, range(0, 80, 40))
    first = intake.take(wait=False)
    assert first is not None
    assert first.rgb.stamp_ns == 0
    feed_pairs(intake, clock, range(80, 200, 40))  # three more come in 120 ms, while it works
    intake.processed()
    second = intake.take(wait=False)
    assert second is not None
    assert second.rgb.stamp_ns == 160 * MS
    counters = intake.counters()
    assert (counters.dropped, counters.processed, counters.waiting) == (3, 1, 1)
    assert_balanced(counters)


def test_the_queue_is_bounded_while_the_worker_is_stuck() -> None:
    clock = Clock()
    intake = make(clock, depth=2)
    feed_pairs(intake, clock, range(0, 400, 40))
    counters = intake.counters()
    assert (counters.received, counters.waiting, counters.dropped) == (10, 2, 8)


def test_without_a_visible_only_student_a_frame_without_partner_is_unpaired() -> None:
    clock = Clock()
    intake = make(clock)
    intake.add_rgb(clock.frame(0))
    assert intake.take(wait=False) is None  # it still waits for thermal
    assert intake.counters().waiting == 1
    clock.now_ns += 151 * MS
    assert intake.take(wait=False) is None
    assert intake.counters() == Counters(received=1, unpaired=1, alone=1)
    assert intake.mode() is Mode.STALE


def test_the_visible_only_student_takes_over_after_the_timeout_and_hands_back_after_three_pairs() -> None:
    clock = Clock()
    intake = make(clock, BOTH)
    feed_pairs(intake, clock, range(0, 40, 40))
    jobs: list[Job] = []

    def work() -> None:
        while (job := intake.take(wait=False)) is not None:
            jobs.append(job)
            intake.processed()

    work()
    assert intake.mode() is Mode.FUSED
    for stamp in range(100, 1500, 100):  # thermal is silent for 1.4 s
        clock.now_ns += 100 * MS
        intake.add_rgb(clock.frame(stamp))
        work()
    assert intake.mode() is Mode.VISIBLE_ONLY
    clock.now_ns += 151 * MS
    work()
    counters = intake.counters()
    alone = [job.rgb.stamp_ns // MS for job in jobs if job.thermal is None]
    # FUSED holds for 1 s after the pair at 0. Then those that still wait (900, 1000) go with the next one at once, and
    # a worker that was away for more than a period takes the newest.
    assert alone == [1100, 1200, 1300, 1400]
    assert (counters.unpaired, counters.processed, counters.dropped) == (8, 5, 2)
    assert (counters.paired, counters.alone) == (1, 14)
    jobs.clear()
    for stamp in range(2000, 2160, 40):
        feed_pairs(intake, clock, range(stamp, stamp + 40, 40))
        work()
    assert [job.mode for job in jobs] == [Mode.VISIBLE_ONLY] * 2 + [Mode.FUSED] * 2
    assert [job.thermal is None for job in jobs] == [True, True, False, False]
    assert_balanced(intake.counters())


def test_no_frame_waits_for_thermal_while_the_visible_only_student_runs() -> None:
    """At 30 Hz the takeover comes one frame after the timeout, and from then on every frame goes at once."""
    clock = Clock()
    intake = make(clock, BOTH)
    feed_pairs(intake, clock, range(0, 330, 33))
    lost_ns = clock.now_ns
    taken: list[tuple[int, int]] = []  # when, and how long it had waited, ns
    for stamp in range(330, 3300, 33):
        clock.now_ns += 33 * MS
        intake.add_rgb(clock.frame(stamp))
        while (job := intake.take(wait=False)) is not None:
            if job.thermal is None:
                taken.append((clock.now_ns - lost_ns, job.waited_ns))
            intake.processed()
    first_ns, _ = taken[0]
    assert 1000 * MS < first_ns <= 1033 * MS
    # The first is the one that was there at the takeover; nobody waits after that, and none is left out.
    assert [waited for at, waited in taken if at > first_ns] == [0] * 59
    assert [round(at / MS) for at, _ in taken][-1] == 33 * 90


def test_the_visible_only_student_gets_frames_in_their_order_and_follows_a_jump_of_time() -> None:
    clock = Clock()
    intake = make(clock, (Mode.VISIBLE_ONLY,), depth=9)
    for stamp in (1000, 1040, 1120, 1080, 1160, 20, 60):  # 1080 is overtaken; then the bag begins anew
        clock.now_ns += 40 * MS
        intake.add_rgb(clock.frame(stamp))
    stamps = []
    while (job := intake.take(wait=False)) is not None:
        stamps.append(job.rgb.stamp_ns // MS)
        intake.processed()
    assert stamps == [1000, 1040, 1120, 1160, 20, 60]
    assert intake.counters().unpaired == 1
    assert_balanced(intake.counters())


def test_a_frame_that_comes_after_all_waiting_is_over_is_given_up_without_thermal_too() -> None:
    clock = Clock()
    intake = make(clock, (Mode.VISIBLE_ONLY,), depth=99)
    for stamp in (*range(1000, 1440, 40), 1090):  # the pairing has given up all before 1280
        clock.now_ns += 40 * MS
        intake.add_rgb(clock.frame(stamp))
    stamps = []
    while (job := intake.take(wait=False)) is not None:
        stamps.append(job.rgb.stamp_ns // MS)
        intake.processed()
    assert stamps == [*range(1000, 1440, 40)]
    assert (intake.counters().unpaired, intake.counters().late) == (1, 1)
    assert_balanced(intake.counters())


def test_thermal_frames_are_processed_by_themselves_and_counted_while_rgb_is_lost() -> None:
    clock = Clock()
    intake = make(clock, (Mode.FUSED, Mode.THERMAL_ONLY), depth=2)
    feed_pairs(intake, clock, range(0, 80, 40))
    while intake.take(wait=False) is not None:
        intake.processed()
    jobs: list[Job] = []
    for stamp in range(200, 2200, 100):  # RGB is silent
        clock.now_ns += 100 * MS
        intake.add_thermal(clock.frame(stamp))
        if stamp < 1600 and (job := intake.take(wait=False)) is not None:
            jobs.append(job)
            intake.processed() if len(jobs) > 1 else intake.rejected()
    assert {(job.mode, job.rgb) for job in jobs} == {(Mode.THERMAL_ONLY, None)}
    assert [job.thermal.stamp_ns // MS for job in jobs] == [1200, 1300, 1400, 1500]  # 1.1 s after the last RGB frame
    counters = intake.counters()
    assert (counters.thermal_rejected, counters.thermal_processed) == (1, 3)
    assert (counters.thermal_dropped, counters.thermal_waiting) == (4, 2)  # of the last six, while nobody took them
    assert (counters.received, counters.processed, counters.waiting) == (2, 2, 0)
    assert counters.thermal_received == 22
    intake.close()
    assert intake.counters().thermal_dropped == 6


FORM = ImageForm("camera", "mono8", (4, 3))


def test_the_last_good_thermal_frame_goes_with_every_rgb_frame_while_thermal_is_lost() -> None:
    clock = Clock()
    selector = ModeSelector((Mode.FUSED,), HealthSettings(without_thermal="last_thermal", last_thermal_age_s=2.0))
    intake = Intake(NearestPairing(PairingSettings()), selector, depth=4, clock_ns=clock)
    random = np.random.default_rng(0)
    jobs: list[Job] = []

    def work() -> None:
        while (task := intake.take(wait=False)) is not None:
            if isinstance(task, Inspection):
                intake.inspected(task, Content(random.integers(0, 256, 12)))
            else:
                jobs.append(task)
                intake.processed()

    for stamp in range(0, 4000, 40):
        clock.now_ns += 40 * MS
        if stamp <= 400 or stamp == 1600:  # a single image is no return of the camera
            intake.add_thermal(clock.frame(stamp), FORM)
        intake.add_rgb(clock.frame(stamp), FORM)
        work()
    last = [job for job in jobs if job.mode is Mode.LAST_THERMAL]
    # Looked at every 200 ms: at 0 the mode was not FUSED yet, then at 200 and 400.
    assert {job.thermal.stamp_ns // MS for job in last} == {400}
    # From the frame after the timeout (1400) to two seconds after that image; nobody waited.
    assert [job.rgb.stamp_ns // MS for job in last] == [1440, *range(1480, 2401, 40)]
    assert intake.mode() is Mode.STALE
    assert_balanced(intake.counters())


def test_pictures_are_offered_for_inspection_five_times_a_second_whatever_becomes_of_the_frames() -> None:
    clock = Clock()
    intake = make(clock, depth=1)
    seen: list[tuple[str, int]] = []
    for stamp in range(0, 2000, 40):  # without partners, so that nothing is ever processed
        clock.now_ns += 40 * MS
        intake.add_rgb(clock.frame(stamp), FORM)
        if stamp % 120 == 0:
            intake.add_thermal(clock.frame(stamp + 10_000), FORM)
        while (task := intake.take(wait=False)) is not None:
            assert isinstance(task, Inspection)
            seen.append((task.camera, task.frame.stamp_ns // MS % 10_000))
            intake.inspected(task, Content(np.zeros(12, np.uint8), dark=True))
    assert [at for camera, at in seen if camera == "rgb"] == list(range(0, 2000, 200))
    assert [at for camera, at in seen if camera == "thermal"] == list(range(0, 2000, 240))
    assert intake.faults() == ("rgb: dark", "thermal: dark")
    assert intake.report("rgb").form == FORM


def test_no_frame_waits_for_an_inspection_unless_that_is_overdue() -> None:
    clock = Clock()
    intake = make(clock)
    order: list[tuple[str, int]] = []

    def take() -> bool:
        task = intake.take(wait=False)
        if isinstance(task, Inspection):
            order.append(("look", task.frame.stamp_ns // MS))
            intake.inspected(task, Content(np.zeros(12, np.uint8)))
        elif task is not None:
            assert task.rgb is not None
            order.append(("frame", task.rgb.stamp_ns // MS))
            intake.processed()
        return task is not None

    def send(stamp: int) -> None:
        clock.now_ns += 100 * MS
        intake.add_thermal(clock.frame(stamp))
        intake.add_rgb(clock.frame(stamp), FORM)

    for stamp in (0, 100, 200):  # a worker that keeps up
        send(stamp)
        while take():
            pass
    assert order == [("look", 0), ("frame", 0), ("frame", 100), ("frame", 200), ("look", 200)]

    order.clear()
    for stamp in (300, 400, 500, 600):  # a worker that is busy
        send(stamp)
    while take():
        pass
    assert order[0] == ("look", 600)  # 400 ms after the last: the frames have to wait


def test_closing_counts_what_waits_as_dropped_and_ends_take() -> None:
    clock = Clock()
    intake = make(clock)
    feed_pairs(intake, clock, range(0, 80, 40))
    clock.now_ns += 100 * MS
    intake.add_rgb(clock.frame(200))  # undecided
    intake.close()
    assert intake.take() is None
    intake.add_rgb(clock.frame(240))  # a callback that was still under way
    counters = intake.counters()
    assert (counters.received, counters.dropped, counters.waiting) == (3, 3, 0)


def test_take_wakes_up_for_the_deadline_of_a_frame_and_for_close() -> None:
    pairing = NearestPairing[StampedMessage](PairingSettings(max_wait_ns=30 * MS))
    intake = Intake(pairing, ModeSelector(FUSED_ALONE), depth=4)
    got: list[Job | Inspection | None] = []

    def worker() -> None:
        got.append(intake.take())

    thread = threading.Thread(target=worker)
    start = time.monotonic()
    thread.start()
    time.sleep(0.01)  # most likely it sleeps by now, without a deadline
    intake.add_rgb(StampedMessage(None, 0, time.monotonic_ns()))
    while intake.counters().unpaired == 0 and time.monotonic() - start < 5:
        time.sleep(0.001)
    assert time.monotonic() - start >= 0.03
    assert intake.counters() == Counters(received=1, unpaired=1, alone=1)
    intake.close()
    thread.join(5)
    assert got == [None]
    assert time.monotonic() - start < 2


def test_ending_a_frame_that_nobody_took_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no frame is in work"):
        make(Clock()).processed()


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.sampled_from(["rgb", "thermal", "take", "wait"]), st.integers(0, 1500)), min_size=1, max_size=80
    ),
    students=st.sampled_from([FUSED_ALONE, BOTH, ALL, (Mode.THERMAL_ONLY,)]),
    depth=st.integers(1, 4),
)
def test_every_frame_is_counted_exactly_once(
    events: list[tuple[str, int]], students: tuple[Mode, ...], depth: int
) -> None:
    clock = Clock()
    intake = make(clock, students, depth)
    received = thermal = 0
    for what, number in events:
        if what == "rgb":
            intake.add_rgb(clock.frame(number))
            received += 1
        elif what == "thermal":
            intake.add_thermal(clock.frame(number))
            thermal += 1
        elif what == "wait":
            clock.now_ns += number * MS
        elif intake.take(wait=False) is not None:
            clock.now_ns += number // 10 * MS
            if number % 3 == 0:
                intake.rejected()
            else:
                intake.processed()
        counters = intake.counters()
        assert (counters.received, counters.thermal_received) == (received, thermal)
        assert_balanced(counters)
    intake.close()
    assert intake.counters().waiting == 0
    assert_balanced(intake.counters())
