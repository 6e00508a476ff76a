"""launch/replay.launch.py on the real launch and launch_ros: a bag goes through the node, its results into a bag."""

import importlib.util
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_process import launches
from small_drives import RGB, START, write_drive
from vehicle import TIMEOUT_S

from md_perception.bags.read import Bag
from md_perception.bags.results import recorded_results

pytest.importorskip("launch_ros", reason="launch and launch_ros are only in a ROS 2 installation, not among the wheels")

FILE = Path(__file__).parents[2] / "launch" / "replay.launch.py"


@pytest.fixture
def launch() -> Iterator[Callable[..., tuple[int, str]]]:
    """Return a function that launches the file with arguments, to its end: exit status and output."""
    with launches(FILE) as start:

        def run(**arguments: object) -> tuple[int, str]:
            process = start(**arguments)
            output, _ = process.communicate(timeout=TIMEOUT_S)
            return process.returncode, output

        yield run


def load():
    spec = importlib.util.spec_from_file_location("replay_launch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values(**given: str) -> dict[str, str]:
    """Return the launch configurations of a replay, as their defaults and what is given say."""
    module = load()
    defaults = {one.name: one.default_value[0].text for one in module.ARGUMENTS if one.default_value}
    return defaults | given


def test_a_bag_is_played_to_the_active_node_and_its_results_are_recorded_on_the_clock_of_the_bag(
    launch, students, tmp_path: Path
) -> None:
    bag = write_drive(tmp_path / "drive", 40, rate_hz=10.0)
    status, output = launch(bag=bag, student=students["fused"], record=tmp_path / "out", tools="md_bag", delay=3.0)
    assert status == 0, output
    assert "published     40  /rgb/image_raw" in output
    with Bag(bag) as cameras, Bag(tmp_path / "out") as results:
        stamps = {
            item.message.header.stamp.sec * 10**9 + item.message.header.stamp.nanosec
            for item in cameras.messages([RGB])
        }
        found = list(recorded_results(results))
        assert len(found) >= 20  # on a busy machine some are dropped
        assert {one.stamp_ns for one in found} <= stamps
        statuses = [item.message for item in results.messages(["/md_perception/status"])]
        last = statuses[-1]
        assert 30 <= last.received_rgb <= 40
        ended = last.processed + last.dropped + last.unpaired_rgb + last.rejected
        assert (
            last.received_rgb - 2 <= ended <= last.received_rgb
        )  # one may still wait for its partner, one for the node
        assert last.processed >= len(found)
        assert START <= results.start_ns < START + 6 * 10**9  # and not the time of day
        assert results.topics["/segmentation/label_info"].count == 1


def test_ctrl_c_ends_the_replay_with_the_recorded_bag_in_place(students, tmp_path: Path) -> None:
    bag = write_drive(tmp_path / "drive", 20, rate_hz=10.0)
    with launches(FILE) as start:
        process = start(
            bag=bag, student=students["fused"], record=tmp_path / "out", tools="md_bag", loop="true", delay=0.0
        )
        assert process.stdout is not None
        said = ""
        while "[player" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        time.sleep(4.0)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "not played to its end" not in output
    with Bag(tmp_path / "out") as results:
        assert results.damage is None
        assert results.topics["/md_perception/status"].count > 0


def test_a_bag_that_cannot_be_played_ends_the_launch_with_an_error(launch, students, tmp_path: Path) -> None:
    (tmp_path / "no.mcap").write_bytes(b"this is no bag")
    status, output = launch(bag=tmp_path / "no.mcap", student=students["fused"], tools="md_bag")
    assert status == 1
    assert "the bag was not played to its end (exit status 1)" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bag": "/nowhere"}, "bag:=/nowhere: there is no such bag"),
        ({"bag": "/", "record": "/tmp"}, "record:=/tmp is there already"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(launch, arguments: dict[str, str], text: str) -> None:
    status, output = launch(**arguments)
    assert status == 1
    assert text in output
    assert "process started" not in output


def test_with_ros2_bag_the_same_is_asked_of_its_tools() -> None:
    module, given = load(), values(bag="drive", record="out", rate="0.5", loop="true", play_topics="/a /b")
    assert module.play_command(given, ros2=True) == [
        *("ros2", "bag", "play", "drive", "--rate", "0.5", "--clock", "100.0", "--loop"),
        *("--topics", "/a", "/b", "--delay", "1"),
    ]
    assert module.record_command(given, ros2=True) == [
        *("ros2", "bag", "record", "--use-sim-time", "--output", "out"),
        *("/md_perception/detections", "/md_perception/status", "/segmentation/mask"),
        *("/segmentation/confidence", "/segmentation/label_info"),
    ]


def test_the_results_are_recorded_where_the_node_publishes_them() -> None:
    module = load()
    assert module.result_topics(values(namespace="car")) == [
        *("/car/md_perception/detections", "/car/md_perception/status", "/car/segmentation/mask"),
        *("/car/segmentation/confidence", "/car/segmentation/label_info"),
    ]
    assert module.result_topics(values(mask_encoding="autoware_rle"))[2:] == [
        *("/autoware/mask", "/autoware/confidence", "/autoware/label_info")
    ]
    assert "/eyes/mask" in module.result_topics(values(namespace="car", mask_topic="/eyes/mask"))
    assert module.record_command(values(record="out", record_topics="/x"), ros2=False)[-1] == "/x"
