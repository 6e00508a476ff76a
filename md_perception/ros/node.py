"""The lifecycle node: it wires topics, parameters and timers to the rooms that do the work."""

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

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
from sensor_msgs.msg import CompressedImage, Image

from md_perception.inference.manifest import ManifestError
from md_perception.inference.session import Student, StudentError
from md_perception.pipeline import Pipeline
from md_perception.results import Camera, Mode
from md_perception.ros import diagnostics, parameters, qos
from md_perception.ros.clocks import arrival_clock
from md_perception.ros.intake import Counters, Intake, Pairing
from md_perception.ros.parameters import ParameterError, Parameters
from md_perception.ros.publishers import Publishers
from md_perception.ros.synchronisers import SynchronizerPairing
from md_perception.ros.worker import Ages, Worker
from md_perception.sensing.health import ModeSelector
from md_perception.sensing.images import is_compressed, stamp_ns
from md_perception.sensing.pairing import NearestPairing, PairingSettings, StampedMessage

NODE_NAME = "md_perception"
DEMO_STUDENT = Path(__file__).parents[1] / "students" / "demo.onnx"

IDLE_PERIOD_S = 0.25
"""Period of the status in STALE, and of the look at the mode."""

QOS_PERIOD_S = 1.0
"""How often the publishers of the camera topics are looked at."""

LOG_PERIOD_S = 5.0
"""Repeated errors of frames are logged at most so often."""

REMINDER_S = 600.0
"""The warning that the student never saw a real image comes again after so long."""


class ConfigurationError(Exception):
    """What keeps the node from being configured; the text says what to do."""


class PerceptionNode(LifecycleNode):
    """See README.md for topics and parameters.

    unconfigured: parameters are declared. inactive: students are loaded and warm, publishers advertised. active:
    subscriptions and the worker exist. All callbacks run on one executor thread; the worker is the only other.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Raise rclpy's parameter exceptions for overrides of a wrong type or out of range. kwargs: of rclpy's Node."""
        super().__init__(NODE_NAME, **kwargs)
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
        self._cameras: dict[Camera, _CameraInput] = {}
        self._intake: Intake | None = None
        self._worker: Worker | None = None
        self._timers_of_activity: list[Any] = []
        self._mode = Mode.STALE
        self._diagnosed = Counters()

    # Lifecycle. rclpy swallows exceptions of these callbacks, so each ends in a return value and a reason in the log.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, load and warm up the students, advertise the topics."""
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
        result = super().on_activate(state)  # enables the publishers
        try:
            self._activate()
        except Exception:
            self.get_logger().error(f"not activated, by an unforeseen error:\n{traceback.format_exc()}")
            self._deactivate()
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and end the worker; the last status has the final counters."""
        self._deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release students and publishers."""
        self._unconfigure()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from whatever state."""
        self._deactivate()
        self._unconfigure()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node is unconfigured then."""
        self._deactivate()
        self._unconfigure()
        return super().on_error(state)

    def destroy_node(self) -> None:
        """Release everything, from whatever state."""
        self._deactivate()
        self._unconfigure()
        super().destroy_node()

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
        self._make_pairing(self._values.pairing_settings())  # a policy that cannot be had is said here
        students = self._load_students(self._values)
        settings = self._values.pipeline_settings(
            *(self.resolve_topic_name(f"{camera}/image_raw") for camera in ("rgb", "thermal"))
        )
        self._pipeline = Pipeline(students, settings)
        self.get_logger().info("warming up")
        seconds = self._pipeline.warm_up(self._values.rgb_size, self._values.thermal_size)
        self.get_logger().info(f"warm after {seconds:.2f} s")
        try:
            self._outputs = Publishers(self, *_classes(students))
        except RuntimeError as error:  # rclpy's, for a QoS override that is none
            raise ConfigurationError(str(error)) from None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)

    def _load_students(self, wanted: Parameters) -> dict[Mode, Student]:
        students: dict[Mode, Student] = {}
        for parameter, file in (
            ("student.file", wanted.student_file or str(DEMO_STUDENT)),
            ("student.visible_file", wanted.student_visible_file),
        ):
            if not file:
                continue
            start = time.monotonic()
            self.get_logger().info(f"loading student {file}")
            student = Student.load(Path(file).expanduser(), wanted.session_settings())
            mode = Mode.FUSED if student.uses_thermal else Mode.VISIBLE_ONLY
            if mode in students or (parameter == "student.visible_file" and mode is Mode.FUSED):
                raise ConfigurationError(
                    f"{parameter} {file} is a student for {mode.name}: student.visible_file is for a student of RGB "
                    "alone, beside one in student.file that takes thermal"
                )
            students[mode] = student
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
        self._intake = Intake(
            self._make_pairing(self._pairing_settings(self._values)),
            ModeSelector(self._pipeline.students.keys(), self._values.health_settings()),
            depth=self._values.queue_depth,
            clock_ns=clock_ns,
            poll_s=poll_s,
        )
        self._cameras = {
            "rgb": _CameraInput(self, "rgb", self._values, self._intake.add_rgb, clock_ns),
        }
        if Mode.FUSED in self._pipeline.students:
            self._cameras["thermal"] = _CameraInput(self, "thermal", self._values, self._intake.add_thermal, clock_ns)
        self._worker = Worker(
            self._intake,
            self._pipeline,
            self._outputs,
            now_ns=self._now_ns,
            ages=self._ages,
            warn=lambda text: self.get_logger().warning(text, throttle_duration_sec=LOG_PERIOD_S),
            error=lambda text: self.get_logger().error(text, throttle_duration_sec=LOG_PERIOD_S),
        )
        self._mode = Mode.STALE
        self._diagnosed = Counters()
        self._worker.start()
        # Steady timers: they go on while a simulated clock stands still.
        for period_s, callback in (
            (IDLE_PERIOD_S, self._on_idle_timer),
            (QOS_PERIOD_S, self._on_qos_timer),
            (diagnostics.PERIOD_S, self._on_diagnostics_timer),
            (REMINDER_S, lambda: self._warn_of_unreal(self._students)),
        ):
            self._timers_of_activity.append(self.create_timer(period_s, callback, clock=self._steady))

    def _deactivate(self) -> None:
        for timer in self._timers_of_activity:
            self.destroy_timer(timer)
        self._timers_of_activity.clear()
        for camera in self._cameras.values():
            camera.subscription.destroy()
        if self._worker is not None and self._intake is not None and self._outputs is not None:
            if not self._worker.stop():
                self.get_logger().error("the frame in work did not end in time; it is left behind")
            if self.context.ok():
                self._outputs.publish_status(self._worker.idle_status(Mode.STALE))
            counters = self._intake.counters()
            self.get_logger().info(
                f"{counters.received} RGB images: {counters.processed} processed, {counters.dropped} dropped, "
                f"{counters.unpaired} unpaired, {counters.rejected} rejected"
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

    def _on_idle_timer(self) -> None:
        """Log a change of the mode, once; say in STALE that nothing else comes."""
        if self._worker is None or self._intake is None or self._outputs is None:
            return
        mode = self._mode_now(self._intake, self._worker)
        if mode is not self._mode:
            self.get_logger().info(f"mode {self._mode.name} -> {mode.name}{self._why_stale(mode, ': ')}")
            self._mode = mode
        if mode is Mode.STALE:
            self._outputs.publish_status(self._worker.idle_status(mode))

    def _on_qos_timer(self) -> None:
        for camera in self._cameras.values():
            camera.subscription.update()

    def _on_diagnostics_timer(self) -> None:
        if self._worker is None or self._intake is None or self._values is None:
            return
        ages, counters, mode = self._ages(), self._intake.counters(), self._mode_now(self._intake, self._worker)
        statuses = [
            camera.diagnose(ages.rgb_s if name == "rgb" else ages.thermal_s) for name, camera in self._cameras.items()
        ]
        statuses += [
            diagnostics.pairing_status(
                self._values.pairing_policy, counters, self._diagnosed, self._intake.thermal_period_ns()
            ),
            diagnostics.inference_status(
                [self._student_state(mode, student) for mode, student in self._students.items()],
                self._worker.timings(),
                self._cameras["rgb"].rate_hz(),
            ),
            diagnostics.mode_status(mode, self._why_stale(mode), counters, self._diagnosed),
        ]
        self._diagnosed = counters
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
        now_ns = self._now_ns()
        return Ages(*(self._cameras[name].age_s(now_ns) if name in self._cameras else math.nan for name in _CAMERAS))

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
        )

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

    def _why_stale(self, mode: Mode, separator: str = "") -> str:
        """Say what is missing in STALE, and what to do."""
        if mode is not Mode.STALE or not self._cameras or self._values is None:
            return ""
        timeout_s = self._values.health_timeout_s
        silent = [camera.topic for camera in self._cameras.values() if camera.silent_s() > timeout_s]
        if silent:
            return f"{separator}no images on {' and '.join(silent)}: start the driver, or remap the topic"
        if self._worker is not None and self._worker.only_rejects:
            return f"{separator}every RGB image is rejected: the warnings in the log say why"
        return f"{separator}no RGB image finds a thermal partner: see the clocks of the cameras, and pairing.offset_s"


_CAMERAS: tuple[Camera, ...] = ("rgb", "thermal")


class _CameraInput:
    """One camera: its subscription, and what diagnostics want to know. On the executor's thread, but for age_s."""

    def __init__(
        self,
        node: PerceptionNode,
        camera: Camera,
        wanted: Parameters,
        add: Callable[[StampedMessage], None],
        clock_ns: Callable[[], int],
    ) -> None:
        compressed = (wanted.rgb_transport if camera == "rgb" else wanted.thermal_transport) == "compressed"
        self._camera = camera
        self._add = add
        self._clock_ns = clock_ns
        self._monitor = diagnostics.InputMonitor()
        self.subscription = qos.CameraSubscription(
            node,
            CompressedImage if compressed else Image,
            f"{camera}/image_raw/compressed" if compressed else f"{camera}/image_raw",
            self._on_message,
            wish=wanted.rgb_reliability if camera == "rgb" else wanted.thermal_reliability,
            depth=wanted.rgb_queue_depth if camera == "rgb" else wanted.thermal_queue_depth,
            warn=lambda text: node.get_logger().warning(text),
            changed=lambda text: node.get_logger().info(text),
        )

    @property
    def topic(self) -> str:
        """The resolved topic name."""
        return self.subscription.topic

    def age_s(self, now_ns: int) -> float:
        """Return the time since the newest stamp, NaN before the first image. now_ns: the node's clock."""
        newest_ns = self._monitor.newest_stamp_ns
        return math.nan if newest_ns is None else (now_ns - newest_ns) / 1e9

    def rate_hz(self) -> float:
        """Return the images per second of the last seconds."""
        return self._monitor.rate_hz(self._clock_ns())

    def silent_s(self) -> float:
        """Return the time since an image arrived, infinite before the first."""
        return self._monitor.silent_s(self._clock_ns())

    def diagnose(self, age_s: float) -> DiagnosticStatus:
        """Return the status for /diagnostics. age_s: of the newest stamp."""
        return diagnostics.input_status(self._camera, self.subscription.state(), self._monitor, self._clock_ns(), age_s)

    def _on_message(self, message: Any) -> None:
        arrival_ns, stamp = self._clock_ns(), stamp_ns(message)
        description = message.format if is_compressed(message) else _described(message)
        self._monitor.note(arrival_ns, stamp, description)
        self._add(StampedMessage(message, stamp, arrival_ns))


class _RosLogHandler(logging.Handler):
    """Carries the log lines of the package's modules, which know no ROS, into the node's log."""

    def __init__(self, node: PerceptionNode) -> None:
        super().__init__(logging.INFO)
        self._node = node

    def emit(self, record: logging.LogRecord) -> None:
        logger, text = self._node.get_logger(), record.getMessage()
        # One call site for each severity: rclpy keeps the severity of a call site.
        if record.levelno >= logging.ERROR:
            logger.error(text)
        elif record.levelno >= logging.WARNING:
            logger.warning(text)
        else:
            logger.info(text)


def _described(message: Image) -> str:
    return f"{message.encoding} {message.width}x{message.height}"


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

    Returns 0, or 1 where it could not be started. Where MD_PERCEPTION_PARENT names a process id, it also ends when that
    process or its parent is gone, as a `ros2 launch` that gets SIGTERM goes without ending its nodes.
    """
    # Our own handlers: rclpy's would shut the context down before the node could say its last status.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        node = PerceptionNode()
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        rclpy.logging.get_logger(NODE_NAME).fatal(f"not started: {error}")
        rclpy.shutdown()
        return 1
    try:
        return _spin(node, stop)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _spin(node: PerceptionNode, stop: threading.Event) -> int:
    """Serve the node on a thread of its own, so that this one, the main thread, is free for signals."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    # Executor.shutdown from another thread destroys what the spinning thread waits for, and
    # spin_until_future_complete adds one callback to its future at every turn (https://github.com/ros2/rclpy/pull/1702):
    # a node that runs for days would grow by gigabytes. A guard condition ends the last turn instead.
    finish = threading.Event()
    wake = node.create_guard_condition(lambda: None)
    failed = threading.Event()

    def spin() -> None:
        try:
            while not finish.is_set():
                executor.spin_once()
        except ExternalShutdownException:
            pass
        except Exception:
            node.get_logger().fatal(f"a callback failed:\n{traceback.format_exc()}")
            failed.set()
        stop.set()

    def autostart() -> None:
        node.destroy_timer(timer)
        success = TransitionCallbackReturn.SUCCESS
        if node.trigger_configure() != success or node.trigger_activate() != success:
            failed.set()
            stop.set()

    timer: Any = None
    if node.get_parameter("autostart").value:
        timer = node.create_timer(0.0, autostart, clock=Clock(clock_type=ClockType.STEADY_TIME))
    thread = threading.Thread(target=spin, name="md_perception executor")
    thread.start()
    parent_is_gone = _parent_watch()
    while not stop.wait(0.5):
        if parent_is_gone():
            node.get_logger().warning("the process that started this node is gone: ending")
            break
    finish.set()
    wake.trigger()
    thread.join()
    executor.shutdown()
    if rclpy.ok():
        with contextlib.suppress(rclpy_implementation.RCLError):  # somebody has shut it down already
            node.trigger_shutdown()
    return 1 if failed.is_set() else 0


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
