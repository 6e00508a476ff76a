"""A bag as the node would have lived it: the same intake, pairing, health and modes, on the clock of the bag.

The messages come in the order of their log times, and the log time is the clock: what waits for a partner, falls silent
or recovers does so as on the vehicle, however long the computer takes. Nothing is ever dropped for a slow student.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from md_perception.bags.make import TimedMessage
from md_perception.bags.read import Bag, BagMessage
from md_perception.bags.results import CameraTopics
from md_perception.bags.types import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE
from md_perception.bags.write import BagError
from md_perception.evaluation.records import DriveRecord, ModeChange
from md_perception.intake import IDLE_PERIOD_S, REJECTED_IN_A_ROW, TICK_S, Alone, Counters, Inspection, Intake
from md_perception.parameters import Parameters
from md_perception.results import Camera, Mode
from md_perception.sensing.health import Content, ImageForm, ModeSelector, Registers, content_of
from md_perception.sensing.images import ImageError, stamp_ns
from md_perception.sensing.pairing import NearestPairing, Paired, StampedMessage

Timed = TimedMessage | BagMessage
"""What goes by: log_ns, topic and message."""

TICK_NS, IDLE_NS = round(TICK_S * 1e9), round(IDLE_PERIOD_S * 1e9)

LIGHT_TOPIC = "/light"
"""Where a bag may say, as std_msgs/String, whether it is `day` or `night`."""

STRING = "std_msgs/msg/String"


@dataclass(frozen=True)
class DriveTopics:
    """Where the cameras are in a bag; None: not there, or not wanted. infos: of the CameraInfo, by camera."""

    rgb: str | None
    thermal: str | None
    infos: dict[Camera, str]


def find_topics(
    bag: Bag, cameras: Collection[Camera], rgb: str | None = None, thermal: str | None = None
) -> DriveTopics:
    """Find the cameras in a bag.

    cameras: that are needed. rgb, thermal: their image topics; None: those of CameraTopics, raw or compressed.
    Raises BagError, with the topics there are, where one is not there.
    """
    kinds, there = (IMAGE, COMPRESSED_IMAGE), bag.topics
    usual = CameraTopics()
    found: dict[Camera, str] = {}
    names: tuple[tuple[Camera, str | None, str], ...] = (
        ("rgb", rgb, usual.rgb),
        ("thermal", thermal, usual.thermal),
    )
    for camera, asked, standard in names:
        for name in (standard, f"{standard}/compressed") if asked is None else (asked,):
            topic = there.get(name)
            if topic is not None and topic.msgtype in kinds and topic.count:  # recorders leave empty topics behind
                found[camera] = name
                break
        else:
            if camera in cameras or asked is not None:
                images = [name for name, topic in there.items() if topic.msgtype in kinds and topic.count]
                raise BagError(
                    f"{bag.path} has no images on {asked or standard}; it has {', '.join(images) or 'none'}: say which "
                    f"topic the {camera} camera is on (--{camera}-topic)"
                )
    if len(found) == 2 and found["rgb"] == found["thermal"]:
        raise BagError(f"{found['rgb']} cannot be both cameras: --rgb-topic and --thermal-topic have to differ")
    infos = {}
    for camera, image_topic in found.items():
        info = f"{image_topic.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
        if info in there and there[info].msgtype == CAMERA_INFO:
            infos[camera] = info
    return DriveTopics(found.get("rgb"), found.get("thermal"), infos)


@dataclass(frozen=True)
class Idle:
    """A moment in STALE: a status of the node that describes no frame. Ages as in ReplayedFrame."""

    log_ns: int
    counters: Counters
    faults: tuple[str, ...]
    rgb_age_s: float
    thermal_age_s: float


@dataclass(frozen=True)
class ReplayedFrame:
    """An RGB image (in THERMAL_ONLY a thermal one), and what the node would have done with it.

    index: of the RGB image among those of the bag, from 0; in THERMAL_ONLY of the thermal one among those that came.
    log_ns: when it was decided, by the bag's clock.
    mode: whose student takes it, or, where none does, the mode at that time. served: whether a student gets it.
    alone: why it has no partner, "" with one; `damaged` for a message that is no image (rgb is None then, and so is
    thermal). waited_ns: for the partner. reference: the RGB and the thermal message of the unchanged bag that belong
    together, for a teacher; None: no partner there either. light: what the bag said last, "" nothing.
    counters, faults, ages: what the node knew.
    """

    index: int
    log_ns: int
    mode: Mode
    rgb: StampedMessage | None
    thermal: StampedMessage | None
    served: bool
    alone: str
    waited_ns: int
    counters: Counters
    faults: tuple[str, ...]
    rgb_age_s: float
    thermal_age_s: float
    light: str = ""
    reference: tuple[Any, Any] | None = None
    idle: tuple[Idle, ...] = ()


Change = Callable[[Iterator[Timed]], Iterator[Timed]]
"""What is done to the messages before the cameras are paired: a simulation."""

NoteInfo = Callable[[Camera, Any, str], None]
"""Takes a CameraInfo: of which camera, the message, its topic."""

Look = Callable[[Any, Camera], Content]
"""Looks at a picture for the health of its camera: Pipeline.look."""


class Replay:
    """One pass over a bag. Iterate over `frames` once, and say of each that is served what became of it (`ended`);
    after that, ask for `drive`.

    modes: that have a student. change: what happens to the messages first. note_info: told of each CameraInfo, as
    changed; note_original_info: as it is in the bag. with_reference: also pair the unchanged messages. look: by default
    at any picture that can be decoded, whatever unit its thermal values have. registers: see ModeSelector.
    """

    def __init__(
        self,
        bag: Bag,
        topics: DriveTopics,
        parameters: Parameters,
        modes: Collection[Mode],
        *,
        name: str,
        change: Change | None = None,
        note_info: NoteInfo = lambda camera, message, topic: None,
        note_original_info: NoteInfo = lambda camera, message, topic: None,
        with_reference: bool = False,
        look: Look | None = None,
        registers: Registers = lambda rgb_size, thermal_size: True,
    ) -> None:
        self._bag, self._topics, self._name = bag, topics, name
        self._look = look or _content
        self._change = change
        self._note_info, self._note_original_info = note_info, note_original_info
        settings, health = parameters.pairing_settings(), parameters.health_settings()
        # As the node has it: without a student that takes thermal there is nobody to wait for.
        self._pairing: NearestPairing[StampedMessage] = NearestPairing(
            settings if Mode.FUSED in modes else replace(settings, max_wait_ns=0)
        )
        selector = ModeSelector(modes, health, registers)
        self._used: dict[Camera, str | None] = {"rgb": None, "thermal": None}
        if set(modes) - {Mode.THERMAL_ONLY}:
            self._used["rgb"] = topics.rgb
        if set(modes) - {Mode.VISIBLE_ONLY}:
            self._used["thermal"] = topics.thermal
        self._given_up: deque[tuple[StampedMessage, Alone]] = deque()
        self._intake = Intake(
            self._pairing,
            selector,
            depth=None,
            clock_ns=lambda: self._now_ns,
            unpaired=lambda frame, why: self._given_up.append((frame, why)),
        )
        self._max_wait_ns = settings.max_wait_ns
        # After so long without a message nothing changes by itself any more: every timeout has ended.
        self._settled_ns = round((max(health.timeout_s, health.last_thermal_age_s) + 1) * 1e9) + settings.max_wait_ns
        self._now_ns = bag.start_ns
        self._last_log_ns, self._back_ns = bag.start_ns, 0
        self._heard_ns = bag.start_ns
        self._tick_ns = bag.start_ns + TICK_NS
        self._idle_ns = bag.start_ns + IDLE_NS
        self._idle: list[Idle] = []
        self._coming: deque[tuple[int, int]] = deque()  # stamp and index of RGB images on their way through `change`
        self._indices: dict[int, int] = {}  # of RGB frames with the intake, by identity
        self._thermal_index = -1
        self._read: dict[Camera, int] = {"rgb": 0, "thermal": 0}
        self._damaged: deque[tuple[int, int]] = deque()  # log time and index of RGB messages that are no images
        self._damaged_messages = 0
        self._light = ""
        self._frames = 0
        self._rejected_in_a_row = 0
        self._first_ns: int | None = None
        self._last_ns = 0
        self._changes: list[ModeChange] = []
        self._mode_ns: dict[str, int] = {}
        self._reference = _Reference(parameters) if with_reference else None
        self._held: deque[ReplayedFrame] = deque()

    def frames(self) -> Iterator[ReplayedFrame]:
        """Yield the frames in the order in which the node would have dealt with them.

        That is the order of the bag, but for images that overtook each other. Raises BagError.
        """
        self._look_at_the_mode()
        for timed in self._messages():
            now_ns = self._clock_of(timed.log_ns)
            yield from self._emit(self._advance(now_ns))
            self._now_ns = self._heard_ns = now_ns
            self._add(timed)
            yield from self._emit(self._settle())
        self._account_for_mode(self._now_ns)
        # What still waits for a partner waits as long as it would have; the node says no more.
        self._tick_ns = self._now_ns + self._max_wait_ns + 1
        yield from self._emit(self._advance(self._now_ns + self._max_wait_ns))
        self._last_log_ns = max(self._last_log_ns, self._last_ns)
        yield from self._emit(self._settle())
        if self._reference is not None:
            self._reference.finish()
        yield from self._emit((), at_the_end=True)

    def ended(self, rejected: bool) -> None:
        """Tell whether the last frame, which was served, could not be used."""
        self._rejected_in_a_row = self._rejected_in_a_row + 1 if rejected else 0

    @property
    def rest(self) -> tuple[Idle, ...]:
        """What the node said after the last frame."""
        return tuple(self._idle)

    @property
    def drive(self) -> DriveRecord:
        """What is known after the last frame."""
        counters = self._intake.counters()
        return DriveRecord(
            bag=self._name,
            duration_s=0.0 if self._first_ns is None else (self._last_ns - self._first_ns) / 1e9,
            damage=self._bag.damage or "",
            rgb_images=self._read["rgb"],
            thermal_images=self._read["thermal"],
            damaged_messages=self._damaged_messages,
            frames=self._frames,
            paired=counters.paired,
            late=counters.late,
            time_jumps=counters.time_jumps,
            mode_s={name: ns / 1e9 for name, ns in sorted(self._mode_ns.items())},
            changes=tuple(self._changes),
        )

    # --- Messages in --------------------------------------------------------------------------------------------------

    def _messages(self) -> Iterator[Timed]:
        wanted = [*self._topics.infos.values()]
        for topic in (self._topics.rgb, self._topics.thermal):
            if topic is not None and (self._reference is not None or topic in self._used.values()):
                wanted.append(topic)
        light = self._bag.topics.get(LIGHT_TOPIC)
        if light is not None and light.msgtype == STRING:
            wanted.append(LIGHT_TOPIC)
        messages: Iterator[Timed] = self._readable(self._bag.messages(wanted))
        return messages if self._change is None else self._change(messages)

    def _readable(self, messages: Iterator[BagMessage]) -> Iterator[Timed]:
        """Number the images, and leave out messages that cannot be deserialised: DDS would not deliver them."""
        cameras = {self._topics.rgb: "rgb", self._topics.thermal: "thermal"}
        for item in messages:
            camera: Any = cameras.get(item.topic)
            if camera is not None:
                self._first_ns = item.log_ns if self._first_ns is None else self._first_ns
                self._last_ns = max(self._last_ns, item.log_ns)
                self._read[camera] += 1
            try:
                message = item.message
            except BagError:
                self._damaged_messages += camera is not None
                if camera == "rgb" and self._used["rgb"]:
                    self._damaged.append((item.log_ns, self._read["rgb"] - 1))
                continue
            if camera == "rgb" and self._used["rgb"]:
                self._coming.append((stamp_ns(message), self._read["rgb"] - 1))
            if self._reference is not None and camera is not None:
                self._reference.add(camera, StampedMessage(message, stamp_ns(message), item.log_ns))
            if item.topic in self._topics.infos.values():
                self._note(item.topic, message, self._note_original_info)
            yield item

    def _note(self, topic: str, message: Any, note: NoteInfo) -> None:
        for camera, info in self._topics.infos.items():
            if info == topic:
                note(camera, message, topic)

    def _add(self, timed: Timed) -> None:
        message = timed.message
        if timed.topic in self._topics.infos.values():
            self._note(timed.topic, message, self._note_info)
            return
        if timed.topic == LIGHT_TOPIC:
            self._light = str(message.data).strip()
            return
        stamp = stamp_ns(message)
        frame = StampedMessage(message, stamp, self._now_ns)
        form, age_s = ImageForm.of(message), (timed.log_ns - stamp) / 1e9
        if timed.topic == self._used["rgb"]:
            self._indices[id(frame)] = self._index_of(stamp)
            self._intake.add_rgb(frame, form, age_s)
        elif timed.topic == self._used["thermal"]:
            self._thermal_index += 1
            self._intake.add_thermal(frame, form, age_s)

    def _index_of(self, stamp: int) -> int:
        """Return the place in the bag of the RGB image that comes now; those before it were dropped on the way."""
        while True:
            one, index = self._coming.popleft()
            if one == stamp:
                return index

    def _clock_of(self, log_ns: int) -> int:
        """Return the clock at a log time, with jumps backwards (of a file without its index) taken out."""
        self._back_ns += max(self._last_log_ns - log_ns, 0)
        self._last_log_ns = log_ns
        return log_ns + self._back_ns

    # --- Time ---------------------------------------------------------------------------------------------------------

    def _advance(self, to_ns: int) -> Iterator[ReplayedFrame]:
        """Let the clock run to a time, and stop wherever the node would have done something by itself."""
        while True:
            if self._tick_ns > self._heard_ns + self._settled_ns:  # a gap may be years, in a damaged file
                self._tick_ns += max(0, to_ns - self._tick_ns) // TICK_NS * TICK_NS
                self._idle_ns = max(self._idle_ns, self._tick_ns)
            deadline_ns = self._pairing.deadline_ns()
            due_ns = self._tick_ns
            if deadline_ns is not None and deadline_ns > self._now_ns:
                due_ns = min(due_ns, deadline_ns)
            if due_ns > to_ns:
                return
            self._now_ns = due_ns
            yield from self._settle()
            if due_ns == self._tick_ns:
                self._look_at_the_mode()
                self._tick_ns += TICK_NS

    def _look_at_the_mode(self) -> None:
        mode = self._intake.mode()
        if self._rejected_in_a_row >= REJECTED_IN_A_ROW:  # the cameras deliver, but nothing usable
            mode = Mode.STALE
        if not self._changes or self._changes[-1].mode is not mode:
            self._account_for_mode(self._now_ns)
            self._changes.append(ModeChange(self._now_ns, mode, self._intake.faults()))
        if mode is Mode.STALE and self._now_ns >= self._idle_ns:
            self._idle_ns = self._now_ns + IDLE_NS
            rgb_age_s, thermal_age_s = self._ages()
            self._idle.append(
                Idle(self._now_ns, self._intake.counters(), self._intake.faults(), rgb_age_s, thermal_age_s)
            )

    def _account_for_mode(self, until_ns: int) -> None:
        if self._changes:
            last = self._changes[-1]
            spent_ns = until_ns - last.log_ns
            self._mode_ns[last.mode.name] = self._mode_ns.get(last.mode.name, 0) + spent_ns

    def _ages(self) -> tuple[float, float]:
        stamps = (self._intake.newest_stamp_ns("rgb"), self._intake.newest_stamp_ns("thermal"))
        log_ns = self._now_ns - self._back_ns
        rgb, thermal = (float("nan") if stamp is None else (log_ns - stamp) / 1e9 for stamp in stamps)
        return rgb, thermal

    # --- Frames out ---------------------------------------------------------------------------------------------------

    def _settle(self) -> Iterator[ReplayedFrame]:
        """Do what the node's worker would do now, and yield the frames that are decided."""
        while self._damaged and self._damaged[0][0] <= self._last_log_ns:
            _, index = self._damaged.popleft()
            yield self._frame(index, None, None, False, "damaged", 0)
        while (task := self._intake.take(wait=False)) is not None:
            if isinstance(task, Inspection):
                self._inspect(task)
                continue
            index = self._thermal_index if task.rgb is None else self._indices.pop(id(task.rgb))
            yield from self._given_up_before(None if task.rgb is None else index)
            yield self._frame(index, task.rgb, task.thermal, True, task.alone, task.waited_ns, task.mode)
            self._intake.processed()
        yield from self._given_up_before(None)

    def _inspect(self, inspection: Inspection) -> None:
        self._intake.inspected(inspection, self._look(inspection.frame.message, inspection.camera))

    def _given_up_before(self, index: int | None) -> Iterator[ReplayedFrame]:
        """Yield the RGB frames that no student got; index: only those before it in the bag."""
        while self._given_up:
            frame, why = self._given_up[0]
            if index is not None and self._indices[id(frame)] > index:
                return
            self._given_up.popleft()
            own = self._indices.pop(id(frame))
            yield self._frame(own, frame, None, False, why, self._now_ns - frame.arrival_ns)

    def _frame(
        self,
        index: int,
        rgb: StampedMessage | None,
        thermal: StampedMessage | None,
        served: bool,
        alone: str,
        waited_ns: int,
        mode: Mode | None = None,
    ) -> ReplayedFrame:
        rgb_age_s, thermal_age_s = self._ages()
        return ReplayedFrame(
            index=index,
            log_ns=self._now_ns,
            mode=self._intake.mode() if mode is None else mode,
            rgb=rgb,
            thermal=thermal,
            served=served,
            alone=alone,
            waited_ns=waited_ns,
            counters=self._intake.counters(),
            faults=self._intake.faults(),
            rgb_age_s=rgb_age_s,
            thermal_age_s=thermal_age_s,
            light=self._light,
        )

    def _emit(self, frames: Iterable[ReplayedFrame], at_the_end: bool = False) -> Iterator[ReplayedFrame]:
        """Yield the frames, with what the node said before them; with a reference, when that is known."""
        for frame in frames:
            self._frames += 1
            idle, self._idle = tuple(self._idle), []
            frame = replace(frame, idle=idle) if idle else frame
            if self._reference is None:
                yield frame
            else:
                self._held.append(frame)
        while self._held and self._reference is not None:
            frame = self._held[0]
            if frame.rgb is not None:
                decided = self._reference.take(frame.rgb.stamp_ns)
                if decided is None and not at_the_end:
                    return
                if decided is not None and decided[1] is not None:
                    frame = replace(frame, reference=decided)
            self._held.popleft()
            yield frame


class _Reference:
    """Pairs the unchanged messages of the bag, by stamp alone: what would have been there for a teacher."""

    def __init__(self, parameters: Parameters) -> None:
        settings = parameters.pairing_settings()
        self._pairing: NearestPairing[StampedMessage] = NearestPairing(settings)
        self._capacity = 2 * settings.capacity
        self._now_ns = 0
        self._decided: deque[tuple[int, Any, Any]] = deque()

    def add(self, camera: Camera, frame: StampedMessage) -> None:
        """Take in an image; its arrival is its log time."""
        self._now_ns = max(self._now_ns, frame.arrival_ns)
        if camera == "rgb":
            self._pairing.add_rgb(frame, self._now_ns)
        else:
            self._pairing.add_thermal(frame, self._now_ns)
        self._note(self._pairing.take(self._now_ns))

    def finish(self) -> None:
        """Decide what still waits."""
        self._note(self._pairing.flush(self._now_ns))

    def take(self, stamp: int) -> tuple[Any, Any] | None:
        """Return the RGB and the thermal message (None: no partner) of a stamp, None while that is not decided."""
        for place, (one, rgb, thermal) in enumerate(self._decided):
            if one == stamp:
                del self._decided[place]
                return rgb, thermal
        return None

    def _note(self, decided: Iterable[Any]) -> None:
        for one in decided:
            thermal = one.thermal.message if isinstance(one, Paired) else None
            self._decided.append((one.rgb.stamp_ns, one.rgb.message, thermal))
            if len(self._decided) > self._capacity:  # those that a simulation has dropped
                self._decided.popleft()


def _content(message: Any, camera: Camera) -> Content:
    try:
        return content_of(message, camera)
    except ImageError as error:
        return Content.broken(str(error))
