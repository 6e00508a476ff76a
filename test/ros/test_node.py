"""The real node over DDS, with students whose outputs can be computed by hand (test/helpers/tiny_student.py)."""

import itertools
import json
import math
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from sensor_msgs.msg import CompressedImage, Image
from tiny_student import tiny_manifest, write_tiny_student
from vehicle import BEST_EFFORT, LATCHED, RELIABLE, header_ns, poll, soon_s
from vision_msgs.msg import Detection2DArray, LabelInfo

from md_perception.inference.session import Student
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.msg import PerceptionStatus
from md_perception.pipeline import Pipeline
from md_perception.results import Mode

MS = 1_000_000


def message_of(messages, stamp_ns):
    """Wait for the message with this stamp."""
    return poll(
        lambda: next((m for m in list(messages) if header_ns(m) == stamp_ns), None), f"a message of {stamp_ns} ns"
    )


def assert_balanced(status: PerceptionStatus, waiting: int = 0) -> None:
    ended = status.processed + status.dropped + status.unpaired_rgb + status.rejected
    assert status.received_rgb == ended + waiting


def diagnosis(messages, name: str) -> DiagnosticStatus | None:
    """Return the newest status whose name ends so."""
    if not messages:
        return None
    return next((status for status in messages[-1].status if status.name.endswith(name)), None)


def run_until(vehicle, found, send, more: int = 0) -> PerceptionStatus:
    """Send frames at 25 Hz until a new status is as wanted, and return it; then `more` frames."""
    seen = len(vehicle.statuses)

    def look():
        return next((status for status in vehicle.statuses[seen:] if found(status)), None)

    status = send_until(vehicle, look, send)
    for _ in range(more):
        send(vehicle.now_ns())
        time.sleep(0.04)
    return status


def send_until(vehicle, found, send=None):
    """Send frames, by default pairs, at 25 Hz until something is found, and return it."""
    send = send or vehicle.send_pair

    def sent():
        send(vehicle.now_ns())
        time.sleep(0.04)
        return found()

    return poll(sent, "what is sent for")


def mode_changes(capfd) -> list[dict]:
    """Return the changes of the mode in the log."""
    lines = capfd.readouterr().err.splitlines()
    return [json.loads(line[line.index("{") :]) for line in lines if '"event": "mode"' in line]


def test_configure_activate_frames_deactivate_cleanup_and_again(start_node, vehicle):
    start_node()
    for _ in range(2):
        assert vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED
        vehicle.start()
        for count in (1, 2, 3):
            stamp = vehicle.now_ns()
            vehicle.send_pair(stamp)
            status = vehicle.status_of(stamp)
            assert status.mode == PerceptionStatus.MODE_FUSED
            assert (status.received_rgb, status.processed, status.paired) == (count, count, count)
            assert_balanced(status)
        assert vehicle.deactivate()
        assert vehicle.state() == State.PRIMARY_STATE_INACTIVE
        assert vehicle.cleanup()
        # Nothing of it is left on the graph.
        poll(lambda: vehicle.node.count_publishers("/md_perception/detections") == 0, "the end of the publisher")
        assert vehicle.node.count_subscribers("/rgb/image_raw") == 0


def test_a_transition_that_the_state_does_not_allow_is_refused_and_costs_nothing(start_node, vehicle, capfd):
    start_node()
    assert not vehicle.activate()  # out of unconfigured
    assert "transition refused" in capfd.readouterr().err
    vehicle.start()
    assert not vehicle.configure()
    assert not vehicle.activate()
    stamp = vehicle.now_ns()
    vehicle.send_pair(stamp)
    assert vehicle.status_of(stamp).processed == 1


def test_an_overridden_qos_is_that_of_its_topic_alone(start_node, vehicle):
    prefix = "qos_overrides./segmentation/mask.publisher"
    start_node(**{f"{prefix}.reliability": "best_effort", f"{prefix}.depth": 1})
    for _ in range(2):
        assert vehicle.configure()
        found = {
            topic: vehicle.node.get_publishers_info_by_topic(topic)[0].qos_profile.reliability
            for topic in ("/segmentation/mask", "/segmentation/confidence", "/md_perception/status")
            if poll(lambda t=topic: vehicle.node.count_publishers(t) == 1, f"the publisher of {topic}")
        }
        assert found == {
            "/segmentation/mask": BEST_EFFORT.reliability,
            "/segmentation/confidence": RELIABLE.reliability,
            "/md_perception/status": RELIABLE.reliability,
        }
        assert vehicle.cleanup()
        poll(lambda: vehicle.node.count_publishers("/segmentation/mask") == 0, "the end of the publishers")


def test_a_qos_that_does_not_exist_leaves_the_node_unconfigured_with_the_reason(start_node, vehicle, capfd):
    start_node(**{"qos_overrides./segmentation/mask.publisher.reliability": "perhaps"})
    assert not vehicle.configure()
    error = capfd.readouterr().err
    assert "not configured: Unexpected QoS override for policy `reliability`: `perhaps`" in error
    assert "Traceback" not in error
    poll(lambda: vehicle.node.count_publishers("/md_perception/status") == 0, "the end of the other publishers")


@pytest.mark.parametrize(
    ("policy", "value", "problem"),
    [
        ("history", "perhaps", "Unexpected QoS override for policy `history`: `perhaps`"),
        ("depth", "many", "to 'many' of type 'STRING', expecting type 'INTEGER'"),
    ],
)
def test_a_qos_of_a_camera_that_does_not_exist_leaves_the_node_inactive_with_the_reason(
    start_node, vehicle, capfd, policy, value, problem
):
    start_node(**{f"qos_overrides./thermal/image_raw.subscription.{policy}": value})
    assert vehicle.configure()
    assert not vehicle.activate()
    error = capfd.readouterr().err
    assert "not activated: /thermal/image_raw: " in error
    assert problem in error
    assert "Traceback" not in error
    assert vehicle.state() == State.PRIMARY_STATE_INACTIVE
    assert vehicle.node.count_subscribers("/rgb/image_raw") == 0


def test_results_carry_the_rgb_header_and_lie_in_rgb_pixels(start_node, vehicle):
    # Arrange: an image of another size than the network's (64 x 48), left half red, green rising to the right.
    start_node()
    detections = vehicle.listen("/md_perception/detections", Detection2DArray)
    masks = vehicle.listen("/segmentation/mask", Image)
    confidences = vehicle.listen("/segmentation/confidence", Image)
    vehicle.start()
    width, height = 101, 60
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :50, 0] = 255
    pixels[..., 1] = np.arange(width)

    # Act: thermal is 20 ms older.
    stamp = 1_700_000_000_123_456_789
    vehicle.send_thermal(stamp - 20 * MS, grey=153)
    vehicle.send_rgb(stamp, pixels)
    vehicle.send_thermal(stamp + 100 * MS, grey=153)
    status = vehicle.status_of(stamp)
    found, mask, confidence = (message_of(messages, stamp) for messages in (detections, masks, confidences))

    # Assert
    for message in (status, found, mask, confidence, found.detections[0]):
        assert message.header == status.header
        assert message.header.frame_id == "rgb_optical"
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_000, 123_456_789)
    assert status.pair_offset_s == pytest.approx(-0.02)
    assert (status.student, status.precision, status.provider) == ("tiny", "fp32", "CPUExecutionProvider")
    # Score 153 / 255 = 0.6 and half of it; a quarter of it is below the threshold of 0.3 by default.
    boxes = [
        (d.results[0].hypothesis.class_id, d.bbox.center.position.x, d.bbox.center.position.y, d.bbox.size_x)
        for d in found.detections
    ]
    assert boxes == [
        ("person", 50.5, 30.0, 50.5),  # the middle half of 101 px: 25.25 to 75.75
        ("bicycle", 25.25, 30.0, 50.5),  # the left half
    ]
    assert [d.results[0].hypothesis.score for d in found.detections] == pytest.approx([0.6, 0.3])
    person = SEGMENTATION.id_of("person")
    for image, row in ((mask, [person] * 50 + [0] * 51), (confidence, list(range(width)))):
        assert (image.encoding, image.width, image.height, image.step) == ("mono8", width, height, width)
        assert list(image.data) == row * height


def test_results_equal_those_of_the_pipeline_called_directly(start_node, vehicle, students):
    """What a bag evaluation reports is what the vehicle gets."""
    start_node()
    detections = vehicle.listen("/md_perception/detections", Detection2DArray)
    masks = vehicle.listen("/segmentation/mask", Image)
    confidences = vehicle.listen("/segmentation/confidence", Image)
    vehicle.start()
    pipeline = Pipeline({Mode.FUSED: Student.load(students["fused"])})
    random = np.random.default_rng(5)
    for _ in range(3):
        stamp = vehicle.now_ns()
        rgb = vehicle.image(random.integers(0, 256, (60, 80, 3), np.uint8), "rgb8", stamp, "rgb_optical")
        thermal = vehicle.image(random.integers(80, 256, (12, 16), np.uint8), "mono8", stamp, "thermal")
        vehicle.camera("/thermal/image_raw").publish(thermal)
        vehicle.camera("/rgb/image_raw").publish(rgb)
        expected = pipeline.infer(pipeline.prepare(rgb, thermal)).output
        mask, confidence, found = (message_of(messages, stamp) for messages in (masks, confidences, detections))
        assert bytes(mask.data) == expected.segmentation.mask.tobytes()
        assert bytes(confidence.data) == expected.segmentation.confidence.tobytes()
        boxes = [
            (b.center.position.x - b.size_x / 2, b.center.position.y - b.size_y / 2, b.size_x, b.size_y)
            for b in (detection.bbox for detection in found.detections)
        ]
        left, top, right, bottom = expected.detections.boxes.T
        np.testing.assert_allclose(boxes, np.stack([left, top, right - left, bottom - top], 1), atol=1e-3)
        assert len(boxes) == 2


def test_a_late_subscriber_gets_the_label_info(start_node, vehicle):
    start_node(score_threshold=0.4)
    vehicle.start()
    stamp = vehicle.now_ns()
    vehicle.send_pair(stamp)
    vehicle.status_of(stamp)
    infos = vehicle.listen("/segmentation/label_info", LabelInfo, LATCHED)
    poll(lambda: infos, "the latched label info")
    assert [(c.class_id, c.class_name) for c in infos[0].class_map] == list(enumerate(SEGMENTATION.classes))
    assert infos[0].threshold == pytest.approx(0.4)
    (result,) = vehicle.set_parameters(score_threshold=0.5)
    assert result.successful
    poll(lambda: infos[-1].threshold == pytest.approx(0.5), "the new threshold")


def test_a_bad_student_leaves_the_node_unconfigured_with_the_reason(start_node, vehicle, tmp_path, capfd):
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"this is no ONNX file")
    start_node(student__file=str(file))
    assert not vehicle.configure()
    assert vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert vehicle.node.count_publishers("/md_perception/detections") == 0
    error = capfd.readouterr().err
    assert "not configured" in error
    assert "broken.onnx" in error
    assert "Traceback" not in error


def test_the_node_of_one_camera_prepares_no_batches(start_node, vehicle, monkeypatch):
    loaded, load = [], Student.load

    def note(path, settings):
        loaded.append(settings)
        return load(path, settings)

    monkeypatch.setattr(Student, "load", note)
    start_node(student__max_batch=4, student__threads=2)
    assert vehicle.configure()
    assert [(settings.max_batch, settings.threads) for settings in loaded] == [(1, 2)]


def test_a_missing_student_is_named(start_node, vehicle, capfd):
    start_node(student__file="/nowhere/student.onnx")
    assert not vehicle.configure()
    assert "student /nowhere/student.onnx cannot be read: No such file or directory" in capfd.readouterr().err


def test_a_bad_parameter_leaves_the_node_unconfigured_with_the_reason(start_node, vehicle, capfd):
    start_node(rgb__transport="pigeon")
    assert not vehicle.configure()
    assert vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert "rgb.transport is 'pigeon': use one of 'raw', 'compressed'" in capfd.readouterr().err


def test_students_that_disagree_on_classes_are_refused(start_node, vehicle, tmp_path, capfd):
    other = write_tiny_student(
        tmp_path / "other.onnx",
        thermal=False,
        manifest=tiny_manifest(thermal=False, detection_classes=tuple(reversed(DETECTION.classes))),
    )
    start_node(student__visible_file=str(other))
    assert not vehicle.configure()
    assert "the students disagree on the detection classes" in capfd.readouterr().err


def test_parameters_are_checked_and_applied_while_it_runs(start_node, vehicle):
    start_node()
    detections = vehicle.listen("/md_perception/detections", Detection2DArray)
    vehicle.start()

    def scores() -> list[float]:
        stamp = vehicle.now_ns()
        vehicle.send_pair(stamp)
        return [d.results[0].hypothesis.score for d in message_of(detections, stamp).detections]

    assert scores() == pytest.approx([0.6, 0.3])
    (result,) = vehicle.set_parameters(score_threshold=0.5)
    assert result.successful
    assert scores() == pytest.approx([0.6])
    (result,) = vehicle.set_parameters(score_threshold=1.5)
    assert not result.successful
    assert "score_threshold" in result.reason
    (result,) = vehicle.set_parameters(student__file="/tmp/other.onnx")
    assert not result.successful
    assert "read-only" in result.reason
    assert scores() == pytest.approx([0.6])

    # Another tolerance: 30 ms is no longer a pair.
    (result,) = vehicle.set_parameters(pairing__tolerance_s=0.01)
    assert result.successful
    stamp = vehicle.now_ns() + 1000 * MS
    vehicle.send_thermal(stamp - 30 * MS)
    vehicle.send_rgb(stamp)
    vehicle.send_thermal(stamp + 70 * MS)
    last = stamp + 70 * MS
    vehicle.send_rgb(last)
    assert vehicle.status_of(last).unpaired_rgb == 1


def test_a_missing_topic_gives_stale_statuses_and_a_diagnosis_that_names_it(start_node, vehicle):
    start_node(remap=["thermal/image_raw:=/boson/image_raw"])
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    stamp = vehicle.now_ns()
    vehicle.send_rgb(stamp)
    status = poll(lambda: next((s for s in list(vehicle.statuses) if s.unpaired_rgb == 1), None), "the unpaired frame")
    assert status.mode == PerceptionStatus.MODE_STALE
    assert status.student == ""
    assert math.isnan(status.thermal_age_s)
    assert status.rgb_age_s > 0
    assert abs(header_ns(status) - vehicle.now_ns()) < 10_000 * MS
    assert_balanced(status)
    found = poll(lambda: diagnosis(diagnoses, "thermal input"), "the diagnosis")
    assert found.level == DiagnosticStatus.ERROR
    assert "nobody publishes /boson/image_raw" in found.message
    assert "remap thermal/image_raw" in found.message
    mode = poll(lambda: diagnosis(diagnoses, "mode"), "the diagnosis of the mode")
    assert "/boson/image_raw" in mode.message


def test_one_topic_for_both_cameras_is_diagnosed(start_node, vehicle):
    start_node(remap=["thermal/image_raw:=/rgb/image_raw"])
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    send_until(
        vehicle,
        lambda: (s := diagnosis(diagnoses, "mode")) and "/rgb/image_raw: unreadable: " in s.message,
        vehicle.send_rgb,
    )
    assert "set thermal.encoding to 'grey_rgb8'" in diagnosis(diagnoses, "mode").message


def test_cameras_that_fall_silent_are_named_as_soon_as_the_mode_is_stale(start_node, vehicle, capfd):
    start_node(health__timeout_s=0.3)
    vehicle.start()
    stamp = vehicle.now_ns()
    for i in range(3):
        vehicle.send_pair(stamp + i * 40 * MS)
    vehicle.status_of(stamp + 2 * 40 * MS)
    log = ""

    def told() -> bool:
        nonlocal log
        log += capfd.readouterr().err
        return "FUSED -> STALE" in log

    poll(told, "the change of the mode")
    assert "FUSED -> STALE: no images on /rgb/image_raw and /thermal/image_raw: start the driver" in log


def test_diagnostics_describe_inputs_pairing_and_student(start_node, vehicle):
    start_node()
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    vehicle.camera("/thermal/image_raw")

    def diagnosed() -> bool:
        vehicle.send_pair(vehicle.now_ns())
        time.sleep(0.03)
        found = diagnosis(diagnoses, "rgb input")
        return found is not None and found.level == DiagnosticStatus.OK

    poll(diagnosed, "a diagnosis with images")
    values = {
        status.name.removeprefix("md_perception: "): {value.key: value.value for value in status.values}
        for status in diagnoses[-1].status
    }
    assert values["rgb input"]["topic"] == "/rgb/image_raw"
    assert values["rgb input"]["image"] == "rgb8 64x48"
    assert values["rgb input"]["offered reliability"] == values["rgb input"]["reliability"] == "reliable"
    assert float(values["rgb input"]["rate (Hz)"]) > 1
    assert values["pairing"]["policy"] == "nearest"
    assert int(values["pairing"]["paired"]) >= 1
    assert values["inference"]["FUSED student"] == "tiny"
    assert values["inference"]["FUSED provider"] == "CPUExecutionProvider"
    assert values["mode"]["mode"] == "FUSED"
    inference = diagnosis(diagnoses, "inference")
    assert inference.level == DiagnosticStatus.WARN
    assert "student tiny has never seen a real image" in inference.message


def test_auto_reliability_follows_a_best_effort_publisher(start_node, vehicle):
    start_node()
    vehicle.start()  # nobody publishes yet: the node asks for reliable
    vehicle.camera("/rgb/image_raw", qos=BEST_EFFORT)  # matches only after the node has asked anew
    stamp = vehicle.now_ns()
    vehicle.send_pair(stamp)
    assert vehicle.status_of(stamp).processed == 1
    (info,) = vehicle.node.get_subscriptions_info_by_topic("/rgb/image_raw")
    assert info.qos_profile.reliability == BEST_EFFORT.reliability
    (info,) = vehicle.node.get_subscriptions_info_by_topic("/thermal/image_raw")
    assert info.qos_profile.reliability != BEST_EFFORT.reliability


def test_an_incompatible_publisher_is_an_error_with_the_cure(start_node, vehicle, capfd):
    start_node(rgb__reliability="reliable")
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    vehicle.camera("/rgb/image_raw", qos=BEST_EFFORT, matched=False)
    found = poll(
        lambda: (s := diagnosis(diagnoses, "rgb input")) and "incompatible" in s.message and s, "the diagnosis"
    )
    assert found.level == DiagnosticStatus.ERROR
    assert "set its reliability parameter to 'auto'" in found.message
    assert "/rgb/image_raw: a publisher offers an incompatible RELIABILITY" in capfd.readouterr().err

    # The driver comes back with another QoS: the warning goes with its cause.
    vehicle.end_camera("/rgb/image_raw")
    vehicle.camera("/rgb/image_raw")
    poll(lambda: (s := diagnosis(diagnoses, "rgb input")) and "no image arrives" in s.message, "the new diagnosis")


def test_the_overlay_is_drawn_only_for_a_subscriber(start_node, vehicle, monkeypatch):
    drawn = []

    def draw(perception, *arguments):
        drawn.append(perception.stamp_ns)
        return perception.rgb

    monkeypatch.setattr("md_perception.ros.publishers.draw", draw)
    start_node()
    vehicle.start()
    first = vehicle.now_ns()
    vehicle.send_pair(first)
    vehicle.status_of(first)
    overlays = vehicle.listen("/md_perception/overlay", Image)
    vehicle.wait_for_listeners()
    second = vehicle.now_ns()
    vehicle.send_pair(second)
    overlay = message_of(overlays, second)
    assert (overlay.encoding, overlay.width, overlay.height) == ("rgb8", 64, 48)
    assert second in drawn
    assert first not in drawn


def test_an_image_that_cannot_be_decoded_costs_only_itself(start_node, vehicle, capfd):
    start_node()
    vehicle.start()
    bad, good = vehicle.now_ns(), vehicle.now_ns() + 50 * MS
    vehicle.send_thermal(bad)
    message = vehicle.image(np.zeros((48, 64, 3), np.uint8), "rgb8", bad, "rgb_optical")
    message.step = 7
    vehicle.camera("/rgb/image_raw").publish(message)
    vehicle.send_pair(good)
    status = vehicle.status_of(good)
    assert (status.received_rgb, status.rejected, status.processed) == (2, 1, 1)
    assert_balanced(status)
    error = capfd.readouterr().err
    assert "RGB image rejected: /rgb/image_raw: 64x48 rgb8 needs a step of at least 192 bytes" in error


def test_status_says_stale_while_the_cameras_deliver_but_every_image_is_rejected(start_node, vehicle):
    start_node(health__frozen_s=0.0)
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    start = vehicle.now_ns()
    colours = np.zeros((12, 16, 3), np.uint8)
    colours[..., 0] = 200  # a palette: three channels that differ
    sent = 0

    def stale() -> bool:
        nonlocal sent
        stamp = start + sent * 50 * MS
        vehicle.camera("/thermal/image_raw").publish(vehicle.image(colours, "rgb8", stamp, "thermal_optical"))
        vehicle.camera("/rgb/image_raw").publish(
            vehicle.image(np.zeros((48, 64, 3), np.uint8), "rgb8", stamp, "rgb_optical")
        )
        sent += 1
        time.sleep(0.05)
        return any(s.mode == PerceptionStatus.MODE_STALE and s.rejected >= 3 for s in vehicle.statuses)

    poll(stale, "a status that says so")
    assert all(status.processed == 0 for status in vehicle.statuses)
    reason = "every image is rejected: the warnings in the log say why"
    poll(
        lambda: stale() and any(reason in s.message for d in diagnoses for s in d.status), "the reason in /diagnostics"
    )
    good = (start + (sent + 10 + number) * 50 * MS for number in itertools.count())
    poll(
        lambda: (
            vehicle.send_pair(next(good))
            or time.sleep(0.05)
            or vehicle.statuses[-1].mode == PerceptionStatus.MODE_FUSED
        ),
        "fusion",
    )


def test_thermal_of_another_unit_than_declared_is_lost_and_the_visible_only_student_takes_over(
    start_node, vehicle, students
):
    start_node(student__visible_file=str(students["visible"]), thermal__encoding="decikelvin")
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    random = np.random.default_rng(0)

    def send(stamp_ns: int, steps_in_a_kelvin: int) -> None:
        counts = np.rint(steps_in_a_kelvin * random.normal(285, 3, (12, 16))).astype(np.uint16)
        vehicle.camera("/thermal/image_raw").publish(vehicle.image(counts, "16UC1", stamp_ns, "thermal"))
        vehicle.send_rgb(stamp_ns)

    run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_FUSED, lambda stamp: send(stamp, 10))
    status = run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_VISIBLE_ONLY, lambda stamp: send(stamp, 100))
    assert status.faults == ["thermal: unreadable"]
    assert status.rejected < 40  # not so many that the node gives up
    cure = "set thermal.encoding to 'centikelvin'"
    poll(
        lambda: (
            send(vehicle.now_ns(), 100)
            or time.sleep(0.03)
            or cure in getattr(diagnosis(diagnoses, "thermal input"), "message", "")
        ),
        "the cure in /diagnostics",
    )
    run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_FUSED, lambda stamp: send(stamp, 10))


def test_an_unforeseen_error_costs_one_frame_and_never_the_worker(start_node, vehicle, monkeypatch, capfd):
    node = start_node()
    vehicle.start()
    infer = node._pipeline.infer
    calls = []

    def fail_once(work):
        calls.append(work)
        if len(calls) == 1:
            raise MemoryError("out of GPU memory")
        return infer(work)

    monkeypatch.setattr(node._pipeline, "infer", fail_once)
    first, second = vehicle.now_ns(), vehicle.now_ns() + 50 * MS
    vehicle.send_pair(first)
    poll(lambda: calls, "the first frame")
    vehicle.send_pair(second)
    status = vehicle.status_of(second)
    assert (status.rejected, status.processed) == (1, 1)
    assert "MemoryError: out of GPU memory" in capfd.readouterr().err


def test_an_error_of_a_publisher_costs_one_frame(start_node, vehicle, monkeypatch):
    node = start_node()
    vehicle.start()
    publish, calls = node._outputs.publish, []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("the middleware is out of memory")
        return publish(*arguments)

    monkeypatch.setattr(node._outputs, "publish", fail_once)
    first, second = vehicle.now_ns(), vehicle.now_ns() + 50 * MS
    vehicle.send_pair(first)
    poll(lambda: calls, "the first frame")
    vehicle.send_pair(second)
    status = vehicle.status_of(second)
    assert (status.rejected, status.processed) == (1, 1)
    assert_balanced(status)


def test_a_last_status_that_cannot_be_published_costs_only_itself(start_node, vehicle, monkeypatch, capfd):
    def fail(*arguments):
        raise RuntimeError("the middleware is gone")

    node = start_node()
    vehicle.start()
    with monkeypatch.context() as broken:
        broken.setattr(node._outputs, "publish_status", fail)
        assert vehicle.deactivate()
    assert "RuntimeError: the middleware is gone" in capfd.readouterr().err
    assert vehicle.activate()
    stamp = vehicle.now_ns()
    vehicle.send_pair(stamp)
    assert vehicle.status_of(stamp).processed == 1


def test_what_cannot_be_released_is_told(start_node, vehicle, monkeypatch, capfd):
    node = start_node()
    assert vehicle.configure()
    destroy, calls = node._outputs.destroy, []

    def fail_once():
        calls.append(destroy())
        if len(calls) == 1:
            raise RuntimeError("the middleware is gone")

    monkeypatch.setattr(node._outputs, "destroy", fail_once)
    assert not vehicle.cleanup()
    assert "RuntimeError: the middleware is gone" in capfd.readouterr().err
    assert vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED  # by way of ErrorProcessing
    vehicle.start()


@pytest.mark.parametrize("part", ["Worker", "AlignmentWatch"])
def test_a_thread_that_cannot_be_started_leaves_the_node_inactive(start_node, vehicle, monkeypatch, capfd, part):
    def fail(self):
        raise RuntimeError("can't start new thread")

    start_node()
    assert vehicle.configure()
    with monkeypatch.context() as broken:
        broken.setattr(f"md_perception.ros.node.{part}.start", fail)
        assert not vehicle.activate()
    assert "can't start new thread" in capfd.readouterr().err
    assert vehicle.state() == State.PRIMARY_STATE_INACTIVE
    assert vehicle.activate()


def test_failures_in_a_row_lead_through_error_processing_to_unconfigured_with_the_reason(
    start_node, vehicle, monkeypatch, capfd
):
    node = start_node(health__failures_in_a_row=4)
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    infer, failing = node._pipeline.infer, True

    def fail(work):
        if failing:
            raise MemoryError("out of GPU memory")
        return infer(work)

    monkeypatch.setattr(node._pipeline, "infer", fail)
    for topic in ("/thermal/image_raw", "/rgb/image_raw"):
        vehicle.camera(topic)
    send_until(
        vehicle,
        lambda: vehicle.node.count_publishers("/md_perception/status") == 0,
        lambda stamp: vehicle.send_pair(stamp, matched=False),  # it stops listening in the midst of it
    )
    assert vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED
    reason = "4 frames in a row gave no result; the last: MemoryError('out of GPU memory')"
    assert f"failed, and unconfigured now: {reason}" in capfd.readouterr().err
    last = diagnosis(diagnoses, "mode")
    assert last.level == DiagnosticStatus.ERROR
    assert reason in last.message
    assert vehicle.statuses[-1].rejected >= 4
    assert_balanced(vehicle.statuses[-1])
    # Nothing of it is left: it can be started again.
    vehicle.start()
    stamp = vehicle.now_ns()
    vehicle.send_pair(stamp)
    assert vehicle.status_of(stamp).processed == 1


def test_a_worker_that_dies_does_not_die_silently(start_node, vehicle, monkeypatch, capfd):
    node = start_node()
    vehicle.start()
    monkeypatch.setattr(node._intake, "processed", lambda: 1 / 0)  # beside the frame, in the counting itself
    vehicle.send_pair(vehicle.now_ns())
    poll(lambda: vehicle.node.count_publishers("/md_perception/status") == 0, "the end of the publishers")
    assert vehicle.state() == State.PRIMARY_STATE_UNCONFIGURED
    error = capfd.readouterr().err
    assert "the worker has ended: ZeroDivisionError('division by zero')" in error


def test_simulated_time_without_a_clock_is_diagnosed(start_node, vehicle, monkeypatch, capfd):
    monkeypatch.setattr("md_perception.ros.node.CLOCK_PATIENCE_S", 1.0)
    start_node(use_sim_time=True)
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    found = poll(lambda: diagnosis(diagnoses, "clock"), "the diagnosis")
    assert found.level == DiagnosticStatus.WARN
    assert "use_sim_time is true but nobody publishes /clock" in found.message
    log = ""

    def told() -> bool:
        nonlocal log
        log += capfd.readouterr().err
        return "use_sim_time is true but nobody publishes /clock" in log

    poll(told, "the warning in the log")
    # Status goes out all the same, at its steady pace.
    assert poll(lambda: len(vehicle.statuses) >= 3, "statuses")
    vehicle.simulated_clock()(5_000_000_000)
    poll(lambda: (s := diagnosis(diagnoses, "clock")) and s.level == DiagnosticStatus.OK, "the end of the warning")


def test_integers_serve_where_numbers_are_wanted_and_odd_values_are_warned_of(start_node, vehicle, capfd):
    node = start_node(pairing__max_wait_s=0.0)
    assert vehicle.configure()
    assert "pairing.max_wait_s is 0: an RGB image that comes before its thermal partner" in capfd.readouterr().err
    (result,) = vehicle.set_parameters(health__timeout_s=2)
    assert result.successful
    assert node.get_parameter("health.timeout_s").value == 2.0
    (result,) = vehicle.set_parameters(health__timeout_s=0.1)
    assert result.successful
    assert "health.timeout_s is 0.1: a thermal camera of 8.7 Hz is lost whenever" in capfd.readouterr().err
    (result,) = vehicle.set_parameters(health__without_thermal="last_thermal")
    assert result.successful
    (result,) = vehicle.set_parameters(health__timeout_s=5)
    assert not result.successful
    assert "health.last_thermal_age_s 3 must be above health.timeout_s 5" in result.reason


def test_every_frame_is_accounted_for_while_the_student_is_too_slow(start_node, vehicle, monkeypatch):
    node = start_node(rgb__queue_depth=100, thermal__queue_depth=100)  # the test machine may be slow, too
    vehicle.start()
    infer = node._pipeline.infer

    def slow(work):
        time.sleep(0.05)
        return infer(work)

    monkeypatch.setattr(node._pipeline, "infer", slow)
    start, count = vehicle.now_ns(), 60
    for i in range(count):
        stamp = start + i * 10 * MS
        if i % 4 == 0 and i < 40:  # thermal stops at two thirds: most of those behind it stay alone
            vehicle.send_thermal(stamp)
        vehicle.send_rgb(stamp)
        time.sleep(0.01)
    poll(lambda: node._intake.counters().received == count, "all frames")
    assert vehicle.deactivate()
    last = poll(
        lambda: next((s for s in list(vehicle.statuses) if s.received_rgb == count and not s.student), None),
        "the status at the end",
    )
    assert last.mode == PerceptionStatus.MODE_STALE
    assert_balanced(last)
    assert last.dropped > 0
    processed = [header_ns(status) for status in vehicle.statuses if status.student]
    assert last.processed == len(processed) > 0
    assert processed == sorted(set(processed))


def test_the_visible_only_student_runs_without_thermal(start_node, vehicle, students):
    start_node(student__visible_file=str(students["visible"]), health__timeout_s=0.3)
    vehicle.start()
    status = run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_VISIBLE_ONLY and s.student, vehicle.send_rgb)
    assert math.isnan(status.pair_offset_s)
    assert status.faults == ["thermal: silent"]
    stamp = vehicle.now_ns()
    for i in range(5):
        vehicle.send_pair(stamp + i * 40 * MS)
    assert vehicle.status_of(stamp + 4 * 40 * MS).mode == PerceptionStatus.MODE_FUSED


def test_thermal_falls_silent_and_comes_back(start_node, vehicle, students, capfd):
    start_node(student__visible_file=str(students["visible"]), health__timeout_s=0.5, health__recovery_pairs=4)
    vehicle.start()
    fused, visible = PerceptionStatus.MODE_FUSED, PerceptionStatus.MODE_VISIBLE_ONLY
    run_until(vehicle, lambda s: s.mode == fused, vehicle.send_pair)
    begin = time.monotonic()
    first = run_until(vehicle, lambda s: s.mode == visible and s.student, vehicle.send_rgb)
    assert 0.4 < time.monotonic() - begin < 0.5 + soon_s()  # the last thermal image came a moment before
    later = run_until(vehicle, lambda s: s.processed >= first.processed + 3, vehicle.send_rgb)
    assert later.pair_wait_ms < 50  # nobody waits for thermal any more (max_wait_s is 150 ms)
    back = run_until(vehicle, lambda s: s.mode == fused and s.processed > later.processed, vehicle.send_pair)
    pairs = [s for s in vehicle.statuses if s.mode == visible and s.paired > later.paired]
    assert back.paired >= later.paired + 4
    assert len(pairs) >= 1
    assert_balanced(back, waiting=back.received_rgb - back.processed - back.unpaired_rgb - back.dropped)
    changes = mode_changes(capfd)
    assert [(c["from"], c["to"]) for c in changes][:2] == [("STALE", "FUSED"), ("FUSED", "VISIBLE_ONLY")]
    assert changes[1]["message"].startswith("mode FUSED -> VISIBLE_ONLY: no images on /thermal/image_raw: start the")
    assert changes[1]["faults"] == ["thermal: silent"]
    assert changes[1]["counters"]["received"] >= 1


def test_rgb_falls_silent_and_the_thermal_only_student_works_in_thermal_pixels(start_node, vehicle, students):
    start_node(student__thermal_file=str(students["thermal"]), health__timeout_s=0.3)
    masks = vehicle.listen("/segmentation/mask", Image)
    overlays = vehicle.listen("/md_perception/overlay", Image)
    detections = vehicle.listen("/md_perception/detections", Detection2DArray)
    vehicle.start()
    run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_FUSED, vehicle.send_pair)
    status = run_until(
        vehicle, lambda s: s.mode == PerceptionStatus.MODE_THERMAL_ONLY and s.student, vehicle.send_thermal
    )
    stamp = header_ns(status)
    assert status.header.frame_id == "thermal"
    assert (status.processed_thermal, status.rejected_thermal) == (1, 0)
    assert status.received_rgb == status.processed + status.unpaired_rgb + status.dropped
    assert math.isnan(status.pair_offset_s)
    assert status.faults == ["rgb: silent"]
    mask, overlay, found = (message_of(messages, stamp) for messages in (masks, overlays, detections))
    assert mask.header == overlay.header == found.header == status.header
    assert (mask.width, mask.height, overlay.width, overlay.height) == (16, 12, 16, 12)
    assert set(mask.data) == {SEGMENTATION.id_of("person")}  # 153 is above 127 everywhere
    box = found.detections[0].bbox
    assert (box.center.position.x, box.center.position.y, box.size_x, box.size_y) == (8, 6, 8, 6)


def test_the_last_thermal_image_serves_for_a_while_if_wanted(start_node, vehicle):
    start_node(health__without_thermal="last_thermal", health__timeout_s=0.3, health__last_thermal_age_s=1.5)
    vehicle.start()
    held = PerceptionStatus.MODE_LAST_THERMAL
    run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_FUSED, vehicle.send_pair, more=10)
    status = run_until(vehicle, lambda s: s.mode == held, vehicle.send_rgb)
    assert status.pair_offset_s < -0.1  # that of an image that waited for a partner
    run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_STALE, vehicle.send_rgb)
    oldest = min(s.pair_offset_s for s in vehicle.statuses if s.mode == held)
    assert -1.5 - soon_s() < oldest < -0.5


def test_a_frozen_thermal_camera_is_found_out(start_node, vehicle, students):
    start_node(student__visible_file=str(students["visible"]), health__frozen_s=0.5)
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_FUSED, vehicle.send_pair)
    still = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)

    def send(stamp_ns: int) -> None:
        vehicle.camera("/thermal/image_raw").publish(vehicle.image(still, "mono8", stamp_ns, "thermal"))
        vehicle.send_rgb(stamp_ns)

    begin = time.monotonic()
    status = run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_VISIBLE_ONLY, send)
    assert 0.4 < time.monotonic() - begin < 0.9 + soon_s()
    assert status.faults == ["thermal: frozen"]
    reason = "/thermal/image_raw: frozen: the same picture for"
    poll(
        lambda: (
            send(vehicle.now_ns()) or time.sleep(0.03) or reason in getattr(diagnosis(diagnoses, "mode"), "message", "")
        ),
        "the reason in /diagnostics",
    )
    run_until(vehicle, lambda s: s.mode == PerceptionStatus.MODE_FUSED, vehicle.send_pair)


def test_the_demo_student_has_a_companion_without_thermal(start_node, vehicle, capfd):
    start_node(student__file="demo", student__visible_file="demo")
    assert vehicle.configure()
    log = capfd.readouterr().err
    assert "student scenes-demo (FUSED, detection and segmentation)" in log
    assert "student scenes-demo-visible (VISIBLE_ONLY, detection and segmentation)" in log


def test_a_visible_only_student_by_itself_needs_no_thermal_topic(start_node, vehicle, students):
    start_node(student__file=str(students["visible"]))
    vehicle.start()
    stamp = vehicle.now_ns()
    vehicle.send_rgb(stamp)
    assert vehicle.status_of(stamp).pair_wait_ms < 100  # it does not wait for a partner
    assert vehicle.node.count_subscribers("/thermal/image_raw") == 0


def test_students_of_one_camera_each_miss_no_pairs(start_node, vehicle, students):
    start_node(student__file=str(students["visible"]), student__thermal_file=str(students["thermal"]))
    diagnoses = vehicle.listen_to_diagnostics()
    vehicle.start()
    found = send_until(
        vehicle,
        lambda: (s := diagnosis(diagnoses, "mode")) and s.message.startswith("VISIBLE_ONLY") and s,
        lambda stamp: vehicle.send_thermal(stamp) or vehicle.send_rgb(stamp + 5000 * MS),
    )
    assert found.level == DiagnosticStatus.OK
    assert diagnosis(diagnoses, "pairing") is None


def test_compressed_images_by_parameter(start_node, vehicle):
    cv2 = pytest.importorskip("cv2")
    start_node(rgb__transport="compressed")
    masks = vehicle.listen("/segmentation/mask", Image)
    vehicle.start()
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:10, :, 0] = 255
    stamp = vehicle.now_ns()
    message = CompressedImage(format="rgb8; png compressed bgr8")
    message.header = vehicle.image(pixels, "rgb8", stamp, "rgb_optical").header
    message.data.frombytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    vehicle.send_thermal(stamp)
    vehicle.camera("/rgb/image_raw/compressed", CompressedImage).publish(message)
    mask = np.frombuffer(message_of(masks, stamp).data, np.uint8).reshape(48, 64)
    assert (mask[:10] == SEGMENTATION.id_of("person")).all()
    assert (mask[10:] == 0).all()


def test_deactivation_under_load_takes_less_than_two_seconds(start_node, vehicle, monkeypatch):
    node = start_node(rgb__queue_depth=100, thermal__queue_depth=100)
    vehicle.start()
    infer = node._pipeline.infer

    def slow(work):
        time.sleep(0.3)
        return infer(work)

    monkeypatch.setattr(node._pipeline, "infer", slow)
    start = vehicle.now_ns()
    for i in range(30):
        vehicle.send_pair(start + i * 20 * MS)
    poll(lambda: node._intake.counters().received == 30, "all frames")
    begin = time.monotonic()
    assert vehicle.deactivate()
    assert time.monotonic() - begin < soon_s()
    assert vehicle.cleanup()


def test_simulated_time_gives_the_latency_and_the_waits(start_node, vehicle):
    """A clock that runs at a fifth of real time: the wait for a partner is one of simulated time."""
    start_node(use_sim_time=True, pairing__max_wait_s=0.1)
    clock = vehicle.simulated_clock()
    vehicle.start()
    vehicle.camera("/thermal/image_raw")
    vehicle.camera("/rgb/image_raw")
    base = 5_000_000_000
    clock(base)
    vehicle.send_thermal(base)
    vehicle.send_rgb(base)
    first = vehicle.status_of(base)
    # 40 ms later in the bag, 0.2 s later in reality: longer than max_wait, had it been real time.
    rgb = base + 30 * MS
    vehicle.send_rgb(rgb)
    for step in range(20):
        clock(base + 30 * MS + step * 2 * MS)
        time.sleep(0.01)
    vehicle.send_thermal(base + 60 * MS)
    status = vehicle.status_of(rgb)
    assert status.mode == PerceptionStatus.MODE_FUSED
    assert first.total_ms == pytest.approx(0, abs=1e-3)
    assert 30 <= status.total_ms <= 40
    assert status.rgb_age_s == pytest.approx(status.total_ms / 1e3, abs=2e-3)


def test_message_filters_policies_or_the_package_that_they_need(start_node, vehicle, capfd):
    start_node(pairing__policy="exact")
    try:
        import message_filters  # noqa: F401
    except ModuleNotFoundError:
        assert not vehicle.configure()
        error = capfd.readouterr().err
        assert "pairing.policy 'exact' needs message_filters" in error
        assert "ros-$ROS_DISTRO-message-filters" in error
        return
    vehicle.start()
    stamp = vehicle.now_ns()
    vehicle.send_pair(stamp)
    assert vehicle.status_of(stamp).paired == 1
