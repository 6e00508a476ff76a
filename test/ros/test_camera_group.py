"""Several cameras: nodes of one process that share their students (md_cameras), and nodes of two processes."""

import contextvars
import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from batch_student import write_batch_student
from lifecycle_msgs.msg import State
from rclpy.context import Context
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo
from vehicle import TIMEOUT_S, Spinning, Vehicle, header_ns, poll
from vision_msgs.msg import Detection2DArray

from md_perception.inference import engine_cache
from md_perception.inference.sharing import SharedStudents
from md_perception.inference.student_file import DEMO_STUDENT
from md_perception.msg import PerceptionStatus
from md_perception.ros import camera_group, node
from md_perception.ros.alignment_watch import AlignmentWatch
from md_perception.ros.benchmark import PROBE_STUDENT
from md_perception.ros.environment import node_environment
from md_perception.ros.node import PerceptionNode
from md_perception.sensing.misalignment import MisalignmentSettings

PARAMETERS = """
/**:
  ros__parameters:
    autostart: true
    student: {{file: {student}, threads: 1, max_batch: 2}}
    # The cameras of these tests send when they are told to.
    health: {{timeout_s: 60.0, failures_in_a_row: 2}}
/front/md_perception:
  ros__parameters:
    score_threshold: 0.5
/rear/md_perception:
  ros__parameters:
    score_threshold: 0.7
"""


@pytest.fixture
def batch_student(tmp_path: Path) -> Path:
    return write_batch_student(tmp_path / "batch.onnx")


@pytest.fixture
def start(start_program: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that runs a module as a process; it ends with the test whatever happens."""
    return lambda module, *arguments: start_program("-m", f"md_perception.ros.{module}", *arguments)


@pytest.fixture
def start_program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that runs Python with these arguments; it ends with the test whatever happens."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, *arguments]
        environment = os.environ | node_environment(os.environ)
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        )
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def front(context: Context) -> Iterator[Vehicle]:
    yield from _vehicle(context, "/front")


@pytest.fixture
def rear(context: Context) -> Iterator[Vehicle]:
    yield from _vehicle(context, "/rear")


def _vehicle(context: Context, namespace: str) -> Iterator[Vehicle]:
    created = Vehicle(context, namespace)
    yield created
    created.stop()


def is_active(vehicle: Vehicle) -> bool:
    return vehicle.state() == State.PRIMARY_STATE_ACTIVE


def answered(vehicle: Vehicle) -> PerceptionStatus:
    """Send pairs until one has a result, and return its status."""
    sent: list[int] = []

    def result() -> PerceptionStatus | None:
        sent.append(vehicle.now_ns())
        vehicle.send_pair(sent[-1])
        return next((s for s in list(vehicle.statuses) if header_ns(s) in sent and s.processed), None)

    return poll(result, f"a result of {vehicle.namespace}")


def fail(vehicle: Vehicle) -> None:
    """Send images that no student can be given until the node has failed."""
    topic = f"{vehicle.namespace}/rgb/image_raw"
    vehicle.end_camera(topic)
    wrong = vehicle.camera(topic)

    def failed() -> bool:
        stamp = vehicle.now_ns()
        vehicle.send_thermal(stamp, matched=False)
        wrong.publish(vehicle.image(np.zeros((48, 64), np.uint16), "16UC1", stamp, "rgb_optical"))
        return vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED

    poll(failed, f"the failure of {vehicle.namespace}")


def ended(process: subprocess.Popen[str], code: int) -> str:
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def test_two_cameras_in_one_process_go_their_own_ways(start, front, rear, batch_student, tmp_path):
    file = tmp_path / "cameras.yaml"
    file.write_text(PARAMETERS.format(student=batch_student))
    found = {
        side: side.listen(f"{side.namespace}/md_perception/detections", Detection2DArray) for side in (front, rear)
    }
    process = start("camera_group", "front", "rear", "--ros-args", "--params-file", str(file))
    for side in (front, rear):
        poll(lambda side=side: is_active(side), f"the active state of {side.namespace}")
        answered(side)

    # Each has its own parameters: the person of score 0.6 is above the threshold of one of them.
    for side, count in ((front, 1), (rear, 0)):
        message = poll(lambda side=side: next(iter(found[side]), None), f"detections of {side.namespace}")
        assert len(message.detections) == count
    names = front.node.get_node_names_and_namespaces()
    assert {("md_perception", "/front"), ("md_perception", "/rear")} <= set(names)

    # One fails and is unconfigured; the other goes on.
    fail(rear)
    assert answered(front).processed >= 1
    assert is_active(front)
    assert process.poll() is None
    # It can be brought back.
    assert rear.configure()
    assert rear.activate()
    # What failed before and works again counts as working.
    fail(front)
    answered(rear)
    assert process.poll() is None

    process.send_signal(signal.SIGTERM)
    output = ended(process, 0)
    # What a module says that knows no ROS is in the log of the camera that it is about, once.
    for name in ("front", "rear"):
        about = [line for line in output.splitlines() if "preparing the student for it" in line and f"[{name}." in line]
        assert len(about) >= 1, output
    assert output.count("failed, and unconfigured now: 2 frames in a row gave no result") == 2


BREAKING = """
import sys
from md_perception.ros import camera_group, node

class Breaking(node.PerceptionNode):
    def on_activate(self, state):
        result = super().on_activate(state)
        if self.get_namespace() == "/rear":
            self.create_subscription(node.CameraInfo, "break", self._break, 10)
        return result

    def _break(self, message):
        self.create_timer(0.0, lambda: 1 / 0)

node.PerceptionNode, node.CALLBACK_FAILURES = Breaking, 5
sys.exit(camera_group.main(sys.argv[1:]))
"""


def test_a_node_whose_callbacks_only_fail_is_released_and_told_by_the_exit_status(
    start_program, front, rear, batch_student, tmp_path
):
    file = tmp_path / "cameras.yaml"
    file.write_text(PARAMETERS.format(student=batch_student))
    process = start_program("-c", BREAKING, "front", "rear", "--ros-args", "--params-file", str(file))
    for side in (front, rear):
        poll(lambda side=side: is_active(side), f"the active state of {side.namespace}")
        answered(side)
    breaks = rear.node.create_publisher(CameraInfo, "/rear/break", 10)
    poll(breaks.get_subscription_count, "the subscription")
    breaks.publish(CameraInfo())
    topics = ("rgb/image_raw", "thermal/image_raw", "break")
    poll(lambda: not any(front.node.count_subscribers(f"/rear/{topic}") for topic in topics), "the end of /rear")
    assert front.node.count_publishers("/rear/md_perception/status") == 0
    assert answered(front).processed >= 1
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    assert "5 callbacks in a row failed: /rear/md_perception ends" in output
    assert "not all of it could be released" not in output
    assert output.count("Traceback") == output.count("ZeroDivisionError") >= 1


def test_cameras_that_all_fail_end_the_process_with_exit_code_1(start):
    parameters = ["--ros-args", "-p", "autostart:=true", "-p", "student.file:=/nowhere.onnx"]
    output = ended(start("camera_group", "front", "rear", *parameters), 1)
    assert output.count("not configured: student /nowhere.onnx cannot be read") == 2


def test_a_parameter_of_the_wrong_type_names_its_camera(start, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("/rear/md_perception:\n  ros__parameters:\n    score_threshold: high\n")
    output = ended(start("camera_group", "front", "rear", "--ros-args", "--params-file", str(file)), 1)
    assert "not started: /rear: " in output
    assert "score_threshold" in output


def test_a_namespace_for_the_process_would_make_all_nodes_one(start):
    output = ended(start("camera_group", "front", "rear", "--ros-args", "-r", "__ns:=/robot"), 1)
    assert "not started: the nodes of several cameras are all /robot/md_perception: leave out" in output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "the following arguments are required: NAME"),
        (("front", "/front/"), "a name occurs twice: /front /front"),
        (("front side",), "'front side' is no name of a ROS namespace"),
    ],
)
def test_names_that_are_none_are_a_wrong_command_line(arguments, problem, capsys):
    with pytest.raises(SystemExit) as ending:
        camera_group.main(arguments)
    assert ending.value.code == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("-r", "bad"), "Couldn't parse remap rule: '-r bad'"),
        (("--nonsense",), "after --ros-args there is no ['--nonsense']"),
        (("--params-file", "/nowhere.yaml"), "Couldn't parse params file: '--params-file /nowhere.yaml'"),
    ],
)
def test_ros_arguments_that_are_none_are_told_without_a_traceback(arguments, problem, capfd):
    assert camera_group.main(["front", "rear", "--ros-args", *arguments]) == 1
    assert f"not started: {problem}" in "".join(capfd.readouterr()).replace("Failed to parse ROS arguments: ", "")


def test_what_a_camera_s_threads_say_is_in_its_own_log(monkeypatch):
    monkeypatch.setattr(engine_cache, "HEARTBEAT_S", 0.01)
    said: dict[str, list[str]] = {"/front": [], "/rear": []}

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said[node._speaker.get()].append(record.getMessage())  # as the handlers of the nodes see it

    def work(name: str) -> None:
        node._speaker.set(name)
        watch = AlignmentWatch(lambda: 1 / 0, MisalignmentSettings(), 0.01)
        watch.start()
        with engine_cache.announced(name, Path("/cache")):
            poll(lambda: any("still building" in line for line in said[name]), "the heartbeat")
            poll(lambda: any("monitor failed" in line for line in said[name]), "the end of the monitor")
        watch.stop()

    recorder = Recorder(logging.INFO)
    logger = logging.getLogger("md_perception")
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(recorder)
    try:
        for name in said:
            contextvars.copy_context().run(work, name)
    finally:
        logger.removeHandler(recorder)
    for name, other in (("/front", "/rear"), ("/rear", "/front")):
        assert not any(f"engine for {other}" in line for line in said[name])


def test_nodes_of_one_process_share_a_student_until_the_last_is_cleaned_up(context, front, rear, batch_student):
    shared = SharedStudents()
    overrides = [Parameter("student.file", value=str(batch_student)), Parameter("student.threads", value=1)]
    nodes = [
        PerceptionNode(context=context, namespace=side.namespace, shared=shared, parameter_overrides=overrides)
        for side in (front, rear)
    ]
    spinning = [Spinning(node, context) for node in nodes]
    try:
        for side, node in zip((front, rear), nodes, strict=True):
            side.target = node
            side.start()
        students = [next(iter(node._students.values())) for node in nodes]
        assert students[0] is students[1]
        alive = weakref.ref(students.pop())
        del students
        for side in (front, rear):
            stamp = side.now_ns()
            side.send_pair(stamp)
            assert side.status_of(stamp).processed == 1

        assert rear.deactivate()
        assert rear.cleanup()
        assert alive() is not None
        stamp = front.now_ns()
        front.send_pair(stamp)
        assert front.status_of(stamp).processed == 2
        assert front.deactivate()
        assert front.cleanup()
        poll(lambda: alive() is None, "the end of the student")
    finally:
        for one in spinning:
            one.stop()


def test_nodes_of_two_processes_do_not_meet(start, front, rear, batch_student):
    """What launch/md.launch.py starts with `namespace:=front` and `namespace:=rear`."""
    parameters = ["-p", "autostart:=true", "-p", f"student.file:={batch_student}", "-p", "health.timeout_s:=60.0"]
    processes = [start("node", "--ros-args", "-r", f"__ns:={side.namespace}", *parameters) for side in (front, rear)]
    for side in (front, rear):
        poll(lambda side=side: is_active(side), f"the active state of {side.namespace}")
    answered(front)
    assert all(status.received_rgb == 0 for status in rear.statuses)
    answered(rear)
    for topic in ("segmentation/mask", "md_perception/detections", "md_perception/status"):
        for side in (front, rear):
            assert front.node.count_publishers(f"{side.namespace}/{topic}") == 1
        assert front.node.count_publishers(f"/{topic}") == 0
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        ended(process, 0)


def _cost(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return its share of the machine's memory, MB (shared pages by halves), and the CPU time that it took, s."""
    folder = Path("/proc", str(process.pid))
    pages = dict(line.split(":") for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
    times = (folder / "stat").read_text().rpartition(")")[2].split()
    return int(pages["Pss"].split()[0]) / 1024, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.long
@pytest.mark.parametrize("student", [PROBE_STUDENT, DEMO_STUDENT])
def test_one_process_for_two_cameras_costs_less_memory_than_two(start, context, student):
    """Prints memory, CPU time and latency of two cameras (640x512, 160x128) at 3 Hz, in rounds that take turns."""
    names = ["/one/front", "/one/rear", "/two/front", "/two/rear"]
    vehicles = [Vehicle(context, name) for name in names]
    settings = ["-p", "autostart:=true", "-p", f"student.file:={student}", "-p", "health.timeout_s:=60.0"]
    one = [start("camera_group", *names[:2], "--ros-args", *settings)]
    two = [start("node", "--ros-args", "-r", f"__ns:={name}", *settings) for name in names[2:]]
    random = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float, float, float]]] = {"one": [], "two": []}
    try:
        for side in vehicles:
            topic = f"{side.namespace}/rgb/image_raw"
            poll(lambda topic=topic: vehicles[0].node.count_subscribers(topic), f"a subscription of {topic}", 300.0)
        for turn in range(5):  # the first is not counted: sizes are new, memory is taken
            for name, processes, sides in (("one", one, vehicles[:2]), ("two", two, vehicles[2:])):
                begun = sum(_cost(process)[1] for process in processes)
                seen = [len(side.statuses) for side in sides]
                for _ in range(15):
                    for side in sides:
                        stamp, pixels = side.now_ns(), random.integers(0, 256, (512, 640, 3), np.uint8)
                        side.send_thermal(stamp, size=(160, 128))
                        side.send_rgb(stamp, pixels)
                    time.sleep(1 / 3)
                totals = [
                    s.total_ms for side, n in zip(sides, seen, strict=True) for s in side.statuses[n:] if s.student
                ]
                memory = sum(_cost(process)[0] for process in processes)
                cpu_ms = 1e3 * (sum(_cost(process)[1] for process in processes) - begun) / len(totals)
                if turn:
                    p50, p99 = np.percentile(totals, [50, 99])
                    found[name].append((memory, cpu_ms, p50, p99))
                    print(f"{name}: {memory:.0f} MB, {cpu_ms:.1f} ms of CPU a frame, {p50:.1f} / {p99:.1f} ms")
    finally:
        for side in vehicles:
            side.stop()
    ratios = np.median(np.array(found["one"]) / np.array(found["two"]), axis=0)
    print(f"{student.name}, one / two: memory, CPU, p50, p99 {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
    assert ratios[0] < 0.8
