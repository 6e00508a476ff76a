"""The lifecycle node: it wires topics, parameters and timers to the rooms that do the work."""

import contextlib
import contextvars
import gc
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo

from md_perception.inference.manifest import ManifestError
from md_perception.inference.session import Student, StudentError
from md_perception.inference.sharing import SharedStudents
from md_perception.intake import IDLE_PERIOD_S, TICK_S, Counters, Intake, Pairing
from md_perception.parameters import ParameterError, Parameters
from md_perception.pipeline import Pipeline, mode_of
from md_perception.results import Camera, Mode
from md_perception.ros import diagnostics, parameters, qos, security, tracing
from md_perception.ros.alignment_watch import AlignmentWatch
from md_perception.ros.camera_input import CameraInput
from md_perception.ros.clocks import Metronome, arrival_clock
from md_perception.ros.publishers import Publishers
from md_perception.ros.synchronisers import SynchronizerPairing
from md_perception.ros.worker import WORKER_THREAD, Worker
from md_perception.sensing.health import Fault, ImageForm, ModeSelector
from md_perception.sensing.pairing import NearestPairing, PairingSettings, StampedMessage
from md_perception.sensing.registration import Registration
from md_perception.status import Ages
from md_perception.threads import thread_in_context

T = TypeVar("T")

NODE_NAME = "md_perception"
QOS_PERIOD_S = 1.0
"""How often the publishers of the camera topics are looked at."""

LOG_PERIOD_S = 5.0
"""Repeated errors of frames are logged at most so often."""

REMINDER_S = 600.0
"""The warning that the student never saw a real image comes again after so long."""

CLOCK_PATIENCE_S = 3.0
"""A simulated clock that does not move for so long, and that nobody publishes, is warned of."""

_ENDING_POLL_S = 0.02
"""How often a configure in progress looks whether the process is to end."""

CALLBACK_FAILURES = 100
"""Callbacks that fail one after the other before the executor is given up."""


LOADER_THREAD = "md_perception loader"


class ConfigurationError(Exception):
    """What keeps the node from being configured; the text says what to do."""


class PerceptionNode(LifecycleNode):
    """See README.md for topics and parameters.

    unconfigured: parameters are declared. inactive: students are loaded and warm, publishers advertised. active:
    subscriptions and the worker exist. All callbacks run on one executor thread; beside it run the worker and the
    alignment watch and, during configure, a loader.
    """

    def __init__(self, *, shared: SharedStudents | None = None, **kwargs: Any) -> None:
        """Raise rclpy's parameter exceptions for overrides of a wrong type or out of range.

        shared: where the students come from that other nodes of the process have, too. kwargs: of rclpy's Node.
        """
        super().__init__(NODE_NAME, **kwargs)
        self._shared = shared
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._after_set_parameters)
        self._survive_impossible_transitions()
        # (rclpy's Node has a _parameters and a _publishers of its own.)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._log_handler = _RosLogHandler(self)
        self._values: Parameters | None = None
        self._pipeline: Pipeline | None = None
        self._outputs: Publishers | None = None
        self._diagnostics: Any = None
        self._cameras: dict[Camera, CameraInput] = {}
        self._intake: Intake | None = None
        self._worker: Worker | None = None
        self._watch: AlignmentWatch | None = None
        self._camera_infos: list[Any] = []
        self._tick: Any = None
        self._metronomes: dict[str, Metronome] = {}
        self._mode = Mode.STALE
        self._diagnosed = Counters()
        self._failure = ""
        self._ending = threading.Event()
        self._loaded_on: dict[Mode, str] = {}
        self.on_failure: Callable[[], None] = lambda: None
        """Called after ErrorProcessing, on the executor's thread."""
        self.on_activated: Callable[[], None] = lambda: None
        """Called when it has become active, on the executor's thread."""

    # Lifecycle. rclpy swallows exceptions of these callbacks, so each ends in a return value and a reason in the log.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, load and warm up the students, advertise the topics."""
        _speaker.set(self.get_fully_qualified_name())
        try:
            self._configure()
        except (ConfigurationError, ParameterError, StudentError, ManifestError, ValueError) as error:
            self.get_logger().error(f"not configured: {error}")
        except Exception:
            self.get_logger().error(f"not configured, by an unforeseen error:\n{traceback.format_exc()}")
        else:
            return super().on_configure(state)
        self._unconfigure()
        return TransitionCallbackReturn.FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Publish the label info, start the worker, subscribe."""
        _speaker.set(self.get_fully_qualified_name())
        result = super().on_activate(state)  # enables the publishers
        try:
            self._activate()
        except ConfigurationError as error:
            self.get_logger().error(f"not activated: {error}")
        except Exception:
            self.get_logger().error(f"not activated, by an unforeseen error:\n{traceback.format_exc()}")
        else:
            self.on_activated()
            return result
        self._release(self._deactivate)
        super().on_deactivate(state)
        return TransitionCallbackReturn.FAILURE

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and end the worker; the last status has the final counters. A failure ends in ErrorProcessing."""
        if not self._release(self._deactivate) or self._failure:
            return TransitionCallbackReturn.ERROR
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release students and publishers."""
        if not self._release(self._unconfigure):
            return TransitionCallbackReturn.ERROR
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from whatever state."""
        if not self._release(self._deactivate, self._unconfigure):
            return TransitionCallbackReturn.ERROR
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node is unconfigured then."""
        self._failure = ""
        if not self._release(self._deactivate, self._unconfigure):
            return TransitionCallbackReturn.ERROR
        return super().on_error(state)

    def destroy_node(self) -> None:
        """Release everything, from whatever state."""
        self._release(self._deactivate, self._unconfigure)
        super().destroy_node()

    def end_configure(self) -> None:
        """End a configure in progress, at once. May be called from another thread."""
        self._ending.set()

    def _release(self, *steps: Callable[[], None]) -> bool:
        """Take all steps, whatever becomes of the others; return whether each went well, with the reason in the log."""
        well = True
        for step in steps:
            try:
                step()
            except Exception:
                self.get_logger().error(f"not all of it could be released:\n{traceback.format_exc()}")
                well = False
        return well

    def _survive_impossible_transitions(self) -> None:
        """Answer a request for a transition that the state does not allow with `success: false`, as rclcpp does.

        Jazzy's rclpy raises out of the service instead, which ends the process (https://github.com/ros2/rclpy/issues/1209).
        """
        service = self._service_change_state
        change_state = service.callback

        def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            try:
                return change_state(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().error(f"transition refused: {error}")
                response.success = False
                return response

        service.callback = answer

    def _configure(self) -> None:
        logging.getLogger("md_perception").addHandler(self._log_handler)
        logging.getLogger("md_perception").setLevel(logging.INFO)
        self._values = parameters.read(self)
        self._warn_of_values(self._values)
        self._make_pairing(self._values.pairing_settings())  # a policy that cannot be had is said here
        students = self._load_students(self._values)
        settings = self._values.pipeline_settings(
            *(self.resolve_topic_name(self._values.image_topic(camera)) for camera in _CAMERAS)
        )
        self._pipeline = Pipeline(students, settings)
        self.get_logger().info("warming up")
        warm_up = partial(self._pipeline.warm_up, self._values.rgb_size, self._values.thermal_size)
        self.get_logger().info(f"warm after {self._unless_ending(warm_up):.2f} s")
        try:
            self._outputs = Publishers(self, *_classes(students), self._values.navigation_settings())
        except _QOS_ERRORS as error:
            raise ConfigurationError(str(error)) from None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)

    def _unless_ending(self, work: Callable[[], T]) -> T:
        """Do what may take minutes inside ONNX Runtime on a thread that is left behind when the process is to end."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        thread_in_context(run, LOADER_THREAD).start()
        while not wait([future], timeout=_ENDING_POLL_S).done:
            if self._ending.is_set():
                raise ConfigurationError("the node is asked to end")
        return future.result()

    def _load_students(self, wanted: Parameters) -> dict[Mode, Student]:
        students: dict[Mode, Student] = {}
        for parameter, file in wanted.student_files().items():
            start = time.monotonic()
            self.get_logger().info(f"loading student {file}")
            settings = wanted.session_settings()
            load = Student.load if self._shared is None else self._shared.load
            if self._shared is None:  # one camera has no batches to prepare the student for
                settings = replace(settings, max_batch=1)
            student = self._unless_ending(partial(load, file, settings))
            mode = mode_of(student)
            if mode in students or mode is not _MODE_OF_FILE.get(parameter, mode):
                raise ConfigurationError(
                    f"{parameter} {file} is a student for {mode.name}: student.visible_file is for a student of RGB "
                    "alone, student.thermal_file for one of thermal alone, beside one in student.file that takes more"
                )
            students[mode] = student
            self._loaded_on[mode] = student.provider
            self.get_logger().info(
                f"student {student.manifest.name} ({mode.name}, {' and '.join(student.manifest.tasks)}) on "
                f"{student.provider}, {student.precision}, after {time.monotonic() - start:.2f} s"
            )
        self._warn_of_unreal(students)
        return students

    def _activate(self) -> None:
        assert self._values is not None
        assert self._pipeline is not None
        assert self._outputs is not None
        clock_ns, poll_s = arrival_clock(self)
        self._outputs.publish_label_info(self._values.score_threshold, self._now_ns())
        registers = self._pipeline.registration.registers  # holds no student, which would be freed late
        self._intake = Intake(
            self._make_pairing(self._pairing_settings(self._values)),
            ModeSelector(self._pipeline.students.keys(), self._values.health_settings(), registers),
            depth=self._values.queue_depth,
            clock_ns=clock_ns,
            poll_s=poll_s,
        )
        students = self._pipeline.students.values()
        if any(student.uses_rgb for student in students):
            self._subscribe("rgb", self._values, self._intake.add_rgb, clock_ns)
        if any(student.uses_thermal for student in students):
            self._subscribe("thermal", self._values, self._intake.add_thermal, clock_ns)
        worker = Worker(
            self._intake,
            self._pipeline,
            self._outputs,
            now_ns=self._now_ns,
            ages=self._ages,
            warn=lambda text: self.get_logger().warning(text, throttle_duration_sec=LOG_PERIOD_S),
            error=lambda text: self.get_logger().error(text, throttle_duration_sec=LOG_PERIOD_S),
            failures_in_a_row=self._values.health_failures_in_a_row,
        )
        self._mode = Mode.STALE
        self._diagnosed = Counters()
        self._follow_registration(self._pipeline, self._values)
        worker.start()
        self._worker = worker  # not before: a thread that could not be started cannot be waited for
        self._metronomes = {
            "status": Metronome(IDLE_PERIOD_S),
            "diagnostics": Metronome(diagnostics.PERIOD_S),
            "qos": Metronome(QOS_PERIOD_S),
            "reminder": Metronome(REMINDER_S),
        }
        # A steady timer: it goes on while a simulated clock stands still.
        self._tick = self.create_timer(TICK_S, self._on_tick, clock=self._steady)

    def _subscribe(
        self,
        camera: Camera,
        wanted: Parameters,
        add: Callable[[StampedMessage, ImageForm, float], None],
        clock_ns: Callable[[], int],
    ) -> None:
        try:
            self._cameras[camera] = CameraInput(self, camera, wanted, add, clock_ns)
        except _QOS_ERRORS as error:
            raise ConfigurationError(f"{self.resolve_topic_name(wanted.image_topic(camera))}: {error}") from None

    def _follow_registration(self, pipeline: Pipeline, wanted: Parameters) -> None:
        """Listen to camera_info where the registration comes from there, and watch for cameras that move."""
        if Mode.FUSED not in pipeline.students:
            return
        if pipeline.registration.uses_camera_info:
            for camera in _CAMERAS:
                topic = self.resolve_topic_name(f"{camera}/camera_info")
                note = partial(_note_camera_info, pipeline.registration, camera, topic)
                self._camera_infos.append(
                    self.create_subscription(CameraInfo, f"{camera}/camera_info", note, qos.CAMERA_INFO)
                )
        if wanted.registration_monitor_period_s > 0:
            watch = AlignmentWatch(
                lambda: pipeline.latest_pair, wanted.misalignment_settings(), wanted.registration_monitor_period_s
            )
            watch.start()
            self._watch = watch

    def _deactivate(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        for subscription in self._camera_infos:
            self.destroy_subscription(subscription)
        self._camera_infos.clear()
        if self._tick is not None:
            self.destroy_timer(self._tick)
            self._tick = None
        for camera in self._cameras.values():
            camera.subscription.destroy()
        if self._worker is not None and self._intake is not None and self._outputs is not None:
            if not self._worker.stop():
                self.get_logger().error("the frame in work did not end in time; it is left behind")
            if self.context.ok():
                try:
                    self._outputs.publish_status(self._worker.idle_status(Mode.STALE))
                except Exception:  # the node is deactivated all the same
                    self.get_logger().error(f"the last status could not be published:\n{traceback.format_exc()}")
            self._worker.let_go()
            counters = self._intake.counters()
            self.get_logger().info(
                f"{counters.received} RGB images: {counters.processed} processed, {counters.dropped} dropped, "
                f"{counters.unpaired} unpaired, {counters.rejected} rejected; {counters.thermal_received} thermal "
                f"images: {counters.thermal_processed} processed by themselves"
            )
        self._worker = self._intake = None
        self._cameras = {}

    def _unconfigure(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
        if self._diagnostics is not None:
            self.destroy_publisher(self._diagnostics)
        self._values = self._pipeline = self._outputs = self._diagnostics = None
        logging.getLogger("md_perception").removeHandler(self._log_handler)

    # Timers and parameters

    def _on_tick(self) -> None:
        """Look at the mode and at the worker; do what is due."""
        if self._worker is None or self._intake is None or self._outputs is None:
            return
        if self._worker.failure:
            self._fail(self._worker.failure)
            return
        now_ns, steady_ns = self._now_ns(), time.monotonic_ns()
        mode = self._mode_now(self._intake, self._worker)
        if mode is not self._mode:
            self._log_mode_change(self._intake, mode, now_ns)
            self._mode = mode
        if self._metronomes["status"].due(now_ns, steady_ns) and mode is Mode.STALE:
            self._outputs.publish_status(self._worker.idle_status(mode))
        # Steady: publishers come and go in our time.
        if self._metronomes["qos"].due(steady_ns, steady_ns):
            for camera in self._cameras.values():
                camera.subscription.update()
        if self._metronomes["reminder"].due(steady_ns, steady_ns):
            self._warn_of_unreal(self._students)
        if self._metronomes["diagnostics"].due(now_ns, steady_ns):
            self._diagnose(self._intake, self._worker, mode, self._metronomes["diagnostics"].stands_s(steady_ns))

    def _log_mode_change(self, intake: Intake, mode: Mode, now_ns: int) -> None:
        """Log one line of JSON: for people, and for what reads logs."""
        reason = self._why(mode)
        entry = {
            "event": "mode",
            "from": self._mode.name,
            "to": mode.name,
            "message": f"mode {self._mode.name} -> {mode.name}" + (f": {reason}" if reason else ""),
            "time": now_ns / 1e9,
            "faults": intake.faults(),
            "counters": vars(intake.counters()),
        }
        self.get_logger().info(json.dumps(entry, ensure_ascii=False))

    def _fail(self, reason: str) -> None:
        """Go through ErrorProcessing to the unconfigured state."""
        self._failure = reason
        self.get_logger().error(
            f"failed, and unconfigured now: {reason}; mend the cause, then configure and activate again"
        )
        self._publish_diagnostics([diagnostics.failure_status(reason)])
        self.trigger_deactivate()
        self.on_failure()

    def _diagnose(self, intake: Intake, worker: Worker, mode: Mode, clock_stands_s: float) -> None:
        assert self._values is not None
        tracing.point("diagnosis", 0)
        ages, counters = self._ages(), intake.counters()
        reports = {name: intake.report(name) for name in self._cameras}
        statuses = [
            diagnostics.input_status(
                name, camera.subscription.state(), reports[name], ages.rgb_s if name == "rgb" else ages.thermal_s
            )
            for name, camera in self._cameras.items()
        ]
        statuses += [
            diagnostics.inference_status(
                [self._student_state(mode, student) for mode, student in self._students.items()],
                worker.timings(),
                next(iter(reports.values())).rate_hz,  # that of RGB, where there is RGB
            ),
            diagnostics.mode_status(mode, self._why(mode), counters, self._diagnosed),
        ]
        if self._pipeline is not None and Mode.FUSED in self._pipeline.students:
            statuses += [
                diagnostics.pairing_status(
                    self._values.pairing_policy, counters, self._diagnosed, intake.thermal_period_ns()
                ),
                diagnostics.registration_status(
                    self._values.registration_source,
                    self._pipeline.registration.warnings() + ([] if self._watch is None else self._watch.problems()),
                    None if self._watch is None else self._watch.state(),
                    self._watch is not None and self._watch.waits,
                ),
            ]
        obstacles = None if self._outputs is None else self._outputs.obstacles
        if obstacles is not None:
            statuses.append(diagnostics.obstacles_status(obstacles, mode))
        if self.get_parameter("use_sim_time").value:
            publishers = self.count_publishers("/clock")
            statuses.append(diagnostics.clock_status(publishers, clock_stands_s))
            if not publishers and clock_stands_s > CLOCK_PATIENCE_S:
                self.get_logger().warning(diagnostics.NO_CLOCK, throttle_duration_sec=10 * LOG_PERIOD_S)
        self._diagnosed = counters
        self._publish_diagnostics(statuses)
        tracing.point("diagnosed", 0)

    def _publish_diagnostics(self, statuses: list[DiagnosticStatus]) -> None:
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(
            diagnostics.diagnostic_array(stamp, self.get_fully_qualified_name().lstrip("/"), statuses)
        )

    def _on_set_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        return parameters.check_change(self, changed)

    def _after_set_parameters(self, changed: list[Parameter]) -> None:
        """Apply what may be changed while the node runs."""
        if self._values is None or self._pipeline is None or self._outputs is None:
            return
        before, now = self._values, parameters.read(self)
        if now == before:
            return  # the QoS overrides of a topic, which are declared when it is made
        self._values = now
        self._warn_of_values(now)
        self._pipeline.settings = replace(
            self._pipeline.settings, pairing=now.pairing_settings(), score_threshold=now.score_threshold
        )
        if self._intake is not None:
            self._intake.change(self._pairing_settings(now), now.health_settings())
            if now.score_threshold != before.score_threshold:
                self._outputs.publish_label_info(now.score_threshold, self._now_ns())

    # What the parts ask for

    @property
    def _students(self) -> Mapping[Mode, Student]:
        return {} if self._pipeline is None else self._pipeline.students

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _ages(self) -> Ages:
        now_ns, intake = self._now_ns(), self._intake
        stamps = [None if intake is None else intake.newest_stamp_ns(camera) for camera in _CAMERAS]
        return Ages(*(math.nan if stamp is None else (now_ns - stamp) / 1e9 for stamp in stamps))

    def _pairing_settings(self, values: Parameters) -> PairingSettings:
        settings = values.pairing_settings()
        # Without a student that takes thermal there is nobody to wait for.
        return settings if Mode.FUSED in self._students else replace(settings, max_wait_ns=0)

    def _make_pairing(self, settings: PairingSettings) -> Pairing:
        assert self._values is not None
        policy = self._values.pairing_policy
        if policy == "nearest":
            return NearestPairing[StampedMessage](settings)
        try:
            return SynchronizerPairing(policy, settings)
        except ModuleNotFoundError as error:
            raise ConfigurationError(str(error)) from None

    def _student_state(self, mode: Mode, student: Student) -> diagnostics.StudentState:
        assert self._values is not None
        return diagnostics.StudentState(
            name=student.manifest.name,
            run_id=student.manifest.run_id,
            mode=mode,
            provider=student.provider,
            precision=student.precision,
            asked=tuple(self._values.student_providers),
            seen_real_images=student.manifest.seen_real_images,
            loaded_on=self._loaded_on[mode],
            unavailable=student.unavailable,
        )

    def _warn_of_values(self, values: Parameters) -> None:
        for text in values.warnings():
            self.get_logger().warning(text)

    def _warn_of_unreal(self, students: Mapping[Mode, Student]) -> None:
        for student in students.values():
            if not student.manifest.seen_real_images:
                self.get_logger().warning(
                    f"student {student.manifest.name} has never seen a real image: use it to try the package out, and "
                    "train one for your cameras"
                )

    @staticmethod
    def _mode_now(intake: Intake, worker: Worker) -> Mode:
        """Return the operating mode: that of the cameras, STALE where they deliver but every frame is rejected."""
        return Mode.STALE if worker.only_rejects else intake.mode()

    def _why(self, mode: Mode) -> str:
        """Say why it is STALE, or less than the students allow, and what to do; "" where nothing is missing."""
        if self._values is None or self._intake is None or mode is self._best_mode():
            return ""
        timeout_s = self._values.health_timeout_s
        # Not by topic: both cameras may be remapped to one by mistake.
        reports = [(camera.topic, self._intake.report(name)) for name, camera in self._cameras.items()]
        silent = [topic for topic, report in reports if report.silent_s > timeout_s]
        if silent:
            return f"no images on {' and '.join(silent)}: start the driver, or remap the topic"
        rejects = self._worker is not None and self._worker.only_rejects
        reasons = ["every image is rejected: the warnings in the log say why"] if rejects else []
        reasons += [
            f"{topic}: {fault.value}: {report.faults[fault]}"
            for topic, report in reports
            for fault in (Fault.FROZEN, Fault.DARK, Fault.SATURATED, Fault.UNREADABLE)
            if fault in report.faults
        ]
        if self._pipeline is not None and Mode.FUSED in self._students:
            rgb_size, thermal_size = (report.size for _, report in reports)
            reasons += filter(None, [self._pipeline.registration.problem(rgb_size, thermal_size)])
            reasons = reasons or [
                "no RGB image finds a thermal partner: see the clocks of the cameras, and pairing.offset_s"
            ]
        return "; ".join(reasons)

    def _best_mode(self) -> Mode | None:
        """Return the mode in which nothing is missing: the first, as ModeSelector chooses, with a student."""
        preferred = (Mode.FUSED, Mode.VISIBLE_ONLY, Mode.THERMAL_ONLY)
        return next((mode for mode in preferred if mode in self._students), None)


_QOS_ERRORS = (RuntimeError, InvalidParameterTypeException)
"""What rclpy raises for a QoS override that is none."""

_CAMERAS: tuple[Camera, ...] = ("rgb", "thermal")
_MODE_OF_FILE = {"student.visible_file": Mode.VISIBLE_ONLY, "student.thermal_file": Mode.THERMAL_ONLY}


def _note_camera_info(registration: Registration, camera: Camera, topic: str, message: CameraInfo) -> None:
    registration.note_camera_info(camera, message, topic)


_speaker: contextvars.ContextVar[str] = contextvars.ContextVar("speaker", default="")
"""Name of the node whose thread this is: there may be several in the process."""


class _RosLogHandler(logging.Handler):
    """Carries the log lines of the package's modules, which know no ROS, into the log of the node whose thread they
    come from; those of nobody's thread into every node's.
    """

    def __init__(self, node: PerceptionNode) -> None:
        super().__init__(logging.INFO)
        self._node = node

    def emit(self, record: logging.LogRecord) -> None:
        if _speaker.get() not in ("", self._node.get_fully_qualified_name()):
            return
        logger, text = self._node.get_logger(), self.format(record)  # with the traceback, where there is one
        # One call site for each severity: rclpy keeps the severity of a call site.
        if record.levelno >= logging.ERROR:
            logger.error(text)
        elif record.levelno >= logging.WARNING:
            logger.warning(text)
        else:
            logger.info(text)


def _classes(students: Mapping[Mode, Student]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the detection and the segmentation classes, on which all students have to agree."""
    found: dict[str, tuple[str, ...]] = {"detection": (), "segmentation": ()}
    for student in students.values():
        manifest = student.manifest
        for task, classes in (
            ("detection", manifest.detection_classes),
            ("segmentation", manifest.segmentation_classes),
        ):
            if found[task] and classes and found[task] != classes:
                raise ConfigurationError(
                    f"the students disagree on the {task} classes: {', '.join(found[task])} and {', '.join(classes)}; "
                    "use students that were trained for the same classes"
                )
            found[task] = found[task] or classes
    return found["detection"], found["segmentation"]


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; with `autostart`, bring it to the active state first.

    Returns 0, or 1 where it could not be started, where its callbacks failed one after the other, or, with `autostart`,
    where the node failed. Where MD_PERCEPTION_PARENT names a process id, it also ends when that process or its parent
    is gone, as a `ros2 launch` that gets SIGTERM goes without ending its nodes.
    """
    return serve(args, None)


def serve(args: list[str] | None, cameras: Sequence[str] | None) -> int:
    """Run a node for each camera, as `main` runs its one; return the exit status.

    args: the command line. cameras: namespaces of nodes that share their students; None: the one node.
    One that fails leaves the others at work; with `autostart`, the process ends with 1 when all have failed. One that
    had to be given up is released, and makes the exit status 1 whenever the process ends.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    # Our own handlers: rclpy's would shut the context down before the node could say its last status.
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # an argument that is none, or a security without keys
        return not_started(error)
    try:
        code = _run(stop, cameras)
    finally:
        rclpy.try_shutdown()
        tracing.write()
        gc.collect()  # what is left of the node goes, and with it the shared memory of the middleware
    if any(thread.name in (LOADER_THREAD, WORKER_THREAD) for thread in threading.enumerate()):
        # It is still inside ONNX Runtime, which the interpreter would take apart beneath it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(stop: threading.Event, cameras: Sequence[str] | None) -> int:
    shared = None if cameras is None else SharedStudents()
    nodes: list[PerceptionNode] = []
    try:
        for camera in cameras or (None,):
            try:
                nodes.append(PerceptionNode(namespace=camera, shared=shared))
            except (InvalidParameterTypeException, InvalidParameterValueException) as error:
                whose = "" if camera is None else f"{camera}: "
                rclpy.logging.get_logger(NODE_NAME).fatal(f"not started: {whose}{error}{parameters.hint(error)}")
                return 1
            except rclpy_implementation.RCLError as error:
                return not_started(error)
        names = [node.get_fully_qualified_name() for node in nodes]
        if len(set(names)) < len(names):
            rclpy.logging.get_logger(NODE_NAME).fatal(
                f"not started: the nodes of several cameras are all {names[0]}: leave out the remapping of __ns or "
                "__node, and write the namespace into the names of the cameras"
            )
            return 1
        return _spin(nodes, stop)
    finally:
        for node in nodes:
            node.destroy_node()


def not_started(error: Exception) -> int:
    """Say what rclpy stumbled over before there was a node; return the exit status."""
    unknown = isinstance(error, rclpy_implementation.UnknownROSArgsError)
    text = f"after --ros-args there is no {error}" if unknown else str(error)
    cure = security.cure(text, os.environ)
    rclpy.logging.get_logger(NODE_NAME).fatal(f"not started: {text}" + (f"; {cure}" if cure else ""))
    return 1


class _Served:
    """A node with a thread of its own that serves it, so that the main thread is free for signals."""

    def __init__(self, node: PerceptionNode, on_end: Callable[[], None]) -> None:
        """on_end: called on that thread when the node has failed, or is served no longer."""
        self._node, self._on_end = node, on_end
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        # Executor.shutdown from another thread destroys what the spinning thread waits for, and
        # spin_until_future_complete adds one callback to its future at every turn
        # (https://github.com/ros2/rclpy/pull/1702): a node that runs for days would grow by gigabytes. A guard
        # condition ends the last turn instead.
        self._finish = threading.Event()
        self._wake = node.create_guard_condition(lambda: None)
        self._failed, self._given_up, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._spin, name="md_perception executor")
        self._timer: Any = None
        if node.get_parameter("autostart").value:
            self._timer = node.create_timer(0.0, self._autostart, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether its autostart has failed, or the node after it, and nobody has activated it again."""
        return self._failed.is_set()

    @property
    def was_given_up(self) -> bool:
        """Whether its callbacks failed one after the other, so that it was released; it cannot be brought back."""
        return self._given_up.is_set()

    @property
    def is_down(self) -> bool:
        """Whether it has failed, or is served no longer."""
        return self.has_failed or self.was_given_up or self._ended.is_set()

    def ask_to_end(self) -> None:
        """Let the thread end."""
        self._finish.set()
        self._node.end_configure()
        with contextlib.suppress(rclpy_implementation.InvalidHandle):  # it was given up
            self._wake.trigger()

    def end(self) -> None:
        """Wait for the thread, and shut the node down."""
        self._thread.join()
        self._executor.shutdown()
        if rclpy.ok() and not self.was_given_up:
            with contextlib.suppress(rclpy_implementation.RCLError):  # somebody has shut it down already
                self._node.trigger_shutdown()

    def _spin(self) -> None:
        failures = 0
        while not self._finish.is_set() and failures < CALLBACK_FAILURES:
            try:
                self._executor.spin_once()
            except ExternalShutdownException:
                break
            except Exception:  # a request that rclpy itself stumbles over, for one: it must not end the node
                failures += 1
                self._node.get_logger().error(
                    f"a callback failed; the node goes on:\n{traceback.format_exc()}",
                    throttle_duration_sec=LOG_PERIOD_S,
                )
            else:
                failures = 0
        if failures == CALLBACK_FAILURES:
            self._give_up()
        self._ended.set()
        self._on_end()

    def _give_up(self) -> None:
        """Release all of a node that nobody serves any more: its worker would go on, and publish."""
        self._given_up.set()
        self._node.get_logger().fatal(
            f"{CALLBACK_FAILURES} callbacks in a row failed: {self._node.get_fully_qualified_name()} ends"
        )
        try:
            self._node.destroy_node()
        except Exception:
            self._node.get_logger().error(f"not all of it could be released:\n{traceback.format_exc()}")

    def _fail(self) -> None:
        self._failed.set()
        self._on_end()

    def _autostart(self) -> None:
        self._node.destroy_timer(self._timer)
        self._node.on_failure, self._node.on_activated = self._fail, self._failed.clear
        success = TransitionCallbackReturn.SUCCESS
        active = self._node.trigger_configure() == success and self._node.trigger_activate() == success
        if not active and not self._finish.is_set():  # by a signal, it is no failure
            self._fail()


def _spin(nodes: Sequence[PerceptionNode], stop: threading.Event) -> int:
    """Serve the nodes until the process is to end, or none is left."""

    def on_end() -> None:
        if all(one.is_down for one in served):
            stop.set()

    served = [_Served(node, on_end) for node in nodes]
    for one in served:
        one.start()
    parent_is_gone = _parent_watch()
    while not stop.wait(0.5):
        if parent_is_gone():
            nodes[0].get_logger().warning("the process that started this node is gone: ending")
            break
    for one in served:
        one.ask_to_end()
    # At once: each may have to wait for its frame in work.
    others = [threading.Thread(target=one.end) for one in served[1:]]
    for thread in others:
        thread.start()
    served[0].end()
    for thread in others:
        thread.join()
    return 1 if any(one.was_given_up for one in served) or all(one.has_failed for one in served) else 0


def _parent_watch() -> Callable[[], bool]:
    """Return a function that says whether the process that started this one is gone, if it asked to be watched."""
    named = os.environ.get("MD_PERCEPTION_PARENT", "")
    if not named.isdigit():
        return lambda: False
    parent = os.getppid()

    def is_gone() -> bool:
        try:
            os.kill(int(named), 0)  # sends nothing, but fails without the process
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return os.getppid() != parent

    return is_gone


if __name__ == "__main__":
    sys.exit(main())
