import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_messages import compressed_message, image_message
from tiny_student import tiny_manifest, write_tiny_student

from md_perception.inference.manifest import ThermalContract
from md_perception.inference.session import SessionSettings, Student
from md_perception.pipeline import PREPARED_SIZES, NotReady, Pipeline, PipelineSettings, RejectedFrame
from md_perception.results import Mode, Perception
from md_perception.sensing.pairing import PairingSettings
from md_perception.sensing.registration import RegistrationSettings
from md_perception.sensing.thermal import ThermalSettings

MS = 1_000_000
CPU = SessionSettings(providers=("cpu",))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student.load(write_tiny_student(tmp_path_factory.mktemp("fused") / "tiny.onnx"), CPU)


@pytest.fixture(scope="module")
def visible(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student.load(write_tiny_student(tmp_path_factory.mktemp("visible") / "v.onnx", thermal=False), CPU)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student.load(write_tiny_student(tmp_path_factory.mktemp("thermal") / "t.onnx", rgb=False), CPU)


def rgb_pixels(seed: int = 0, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def rgb_message(seed: int = 0, stamp_ns: int = 1_000 * MS, size: tuple[int, int] = (64, 48), **arguments: Any) -> Any:
    return image_message(rgb_pixels(seed, size), "rgb8", stamp_ns=stamp_ns, frame_id="rgb_optical", **arguments)


def thermal_message(value: int = 204, stamp_ns: int = 990 * MS, size: tuple[int, int] = (16, 12)) -> Any:
    pixels = np.full((size[1], size[0]), value, np.uint8)
    return image_message(pixels, "mono8", stamp_ns=stamp_ns, frame_id="thermal_optical")


def process(pipeline: Pipeline, *messages: Any) -> Perception:
    return pipeline.infer(pipeline.prepare(*messages))


def test_a_pair_becomes_a_perception_with_the_header_of_rgb(fused: Student) -> None:
    settings = PipelineSettings(score_threshold=0.3, pairing=PairingSettings(offset_ns=-15 * MS))
    pipeline = Pipeline({Mode.FUSED: fused}, settings)

    perception = pipeline.infer(pipeline.prepare(rgb_message(), thermal_message(), pair_wait_ms=12.5))

    assert (perception.stamp_ns, perception.frame_id) == (1_000 * MS, "rgb_optical")
    assert (perception.mode, perception.size) == (Mode.FUSED, (64, 48))
    assert perception.pair_offset_ns == -25 * MS  # 990 - 15 - 1000
    np.testing.assert_array_equal(perception.rgb, rgb_pixels())
    # Scores 0.8, 0.4 and 0.2, of which the threshold leaves two.
    np.testing.assert_allclose(perception.output.detections.scores, [0.8, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(perception.output.segmentation.mask, np.where(rgb_pixels()[..., 0] > 127, 2, 0))
    assert perception.times.pair_wait_ms == 12.5
    assert perception.times.decode_ms > 0
    assert perception.times.inference_ms > 0


def test_a_frame_without_thermal_goes_to_the_visible_only_student(fused: Student, visible: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused, Mode.VISIBLE_ONLY: visible}, PipelineSettings(score_threshold=0))
    perception = process(pipeline, rgb_message())
    assert perception.mode is Mode.VISIBLE_ONLY
    assert perception.pair_offset_ns is None
    expected = rgb_pixels()[..., 0].mean() / 255
    assert perception.output.detections.scores[0] == pytest.approx(expected, rel=1e-5)


def test_a_frame_without_thermal_is_rejected_where_no_student_takes_it(fused: Student) -> None:
    with pytest.raises(RejectedFrame, match="no student for VISIBLE_ONLY"):
        Pipeline({Mode.FUSED: fused}).prepare(rgb_message())


def test_a_thermal_frame_alone_gives_results_in_its_pixels_under_its_header(fused: Student, alone: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused, Mode.THERMAL_ONLY: alone}, PipelineSettings(score_threshold=0))
    assert pipeline.warm_up() > 0
    perception = process(pipeline, None, thermal_message(204))
    assert (perception.stamp_ns, perception.frame_id) == (990 * MS, "thermal_optical")
    assert (perception.mode, perception.size, perception.pair_offset_ns) == (Mode.THERMAL_ONLY, (16, 12), None)
    np.testing.assert_allclose(perception.output.detections.boxes[0], [4, 3, 12, 9])  # the middle half of 16 x 12
    assert perception.output.detections.scores[0] == pytest.approx(0.8)
    assert perception.output.segmentation.mask.tolist() == [[2] * 16] * 12
    np.testing.assert_array_equal(perception.rgb, np.full((12, 16, 3), 204))  # for the overlay, in grey
    with pytest.raises(RejectedFrame, match="no student for THERMAL_ONLY"):
        Pipeline({Mode.FUSED: fused}).prepare(None, thermal_message())


def test_the_last_thermal_image_goes_through_the_fused_student_and_says_so(fused: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused})
    work = pipeline.prepare(
        rgb_message(stamp_ns=3_000 * MS), thermal_message(stamp_ns=990 * MS), mode=Mode.LAST_THERMAL
    )
    perception = pipeline.infer(work)
    assert (perception.mode, perception.stamp_ns) == (Mode.LAST_THERMAL, 3_000 * MS)
    assert perception.pair_offset_ns == -2_010 * MS
    np.testing.assert_allclose(perception.output.detections.scores, [0.8, 0.4], rtol=1e-6)
    assert pipeline.student_of(Mode.LAST_THERMAL) is fused


@pytest.mark.parametrize("kind", ["bgr8", "padded", "png"])
def test_every_form_of_the_same_image_gives_the_same_result(fused: Student, kind: str) -> None:
    message = {
        "bgr8": image_message(rgb_pixels()[..., ::-1], "bgr8"),
        "padded": rgb_message(padding=7),
        "png": compressed_message(rgb_pixels(), "png"),
    }[kind]
    pipeline = Pipeline({Mode.FUSED: fused})
    result, expected = (
        process(pipeline, message, thermal_message()),
        process(pipeline, rgb_message(), thermal_message()),
    )
    np.testing.assert_array_equal(result.output.segmentation.mask, expected.output.segmentation.mask)
    np.testing.assert_array_equal(result.output.segmentation.confidence, expected.output.segmentation.confidence)


def test_the_homography_reaches_the_graph(fused: Student) -> None:
    # The third box is (0, 0, W * M[0][0], H * M[1][1]): 64 * 0.5 and 48 * 0.25.
    homography = [0.5, 0, 3, 0, 0.25, 2, 0, 0, 1]
    pipeline = Pipeline(
        {Mode.FUSED: fused},
        PipelineSettings(registration=RegistrationSettings(homography=homography), score_threshold=0),
    )
    np.testing.assert_allclose(
        process(pipeline, rgb_message(), thermal_message()).output.detections.boxes[2][2:], [32, 12]
    )


def test_without_a_homography_the_matrix_follows_the_image_sizes(fused: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused}, PipelineSettings(score_threshold=0))
    for size in [(16, 12), (20, 10)]:
        boxes = process(pipeline, rgb_message(), thermal_message(size=size)).output.detections.boxes
        np.testing.assert_allclose(boxes[2], [0, 0, *size], rtol=1e-6)


def test_new_sizes_are_announced_once_before_they_are_warmed_up(
    fused: Student, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "md_perception.pipeline")
    pipeline = Pipeline({Mode.FUSED: fused})
    for size in [(64, 48), (64, 48), (80, 60), (80, 60)]:
        process(pipeline, rgb_message(size=size), thermal_message())
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 4
    assert texts[0] == "FUSED input is RGB 64x48, thermal 16x12, the first: preparing the student for it"
    assert texts[1].startswith("the student for FUSED is prepared after ")
    assert texts[2].startswith("FUSED input is RGB 80x60, thermal 16x12, it was RGB 64x48, thermal 16x12: preparing")


def test_sizes_that_keep_changing_are_told_now_and_then_with_their_number_and_prepared_once(
    fused: Student, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "md_perception.pipeline")
    pipeline = Pipeline({Mode.FUSED: fused})
    now_s, warmed = [100.0], []
    monkeypatch.setattr("md_perception.pipeline.time.monotonic", lambda: now_s[0])
    warm_up = fused.warm_up
    monkeypatch.setattr(fused, "warm_up", lambda *sizes: warmed.append(sizes) or warm_up(*sizes))
    for index in range(21):  # 20 changes in 4 s
        process(pipeline, rgb_message(size=((64, 48), (80, 60))[index % 2]), thermal_message())
        now_s[0] += 0.2
    texts = [record.getMessage() for record in caplog.records]
    assert [text for text in texts if " input is " in text] == [
        "FUSED input is RGB 64x48, thermal 16x12, the first: preparing the student for it",
        "FUSED input is RGB 80x60, thermal 16x12, it was RGB 64x48, thermal 16x12: preparing the student for it",
    ]
    assert warmed == [((64, 48), (16, 12)), ((80, 60), (16, 12))]
    now_s[0] += 5.0
    process(pipeline, rgb_message(size=(80, 60)), thermal_message())
    assert caplog.records[-1].getMessage() == (
        "FUSED input is RGB 80x60, thermal 16x12, it was RGB 64x48, thermal 16x12, after 19 more changes"
    )
    for width in range(81, 81 + PREPARED_SIZES):
        process(pipeline, rgb_message(size=(width, 60)), thermal_message())
    process(pipeline, rgb_message(size=(80, 60)), thermal_message())  # so long ago that it is prepared anew
    assert warmed[-1] == ((80, 60), (16, 12))
    for width in (82, 90, 82):  # 82 was prepared first, but is in use
        process(pipeline, rgb_message(size=(width, 60)), thermal_message())
    assert warmed[-1] == ((90, 60), (16, 12))


def test_after_a_warm_up_with_the_right_sizes_nothing_is_announced(
    fused: Student, visible: Student, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "md_perception.pipeline")
    pipeline = Pipeline({Mode.FUSED: fused, Mode.VISIBLE_ONLY: visible})
    # The sizes of the tiny students' manifest: 64x48 and 160x120.
    assert pipeline.warm_up() > 0
    process(pipeline, rgb_message(), thermal_message(size=(160, 120)))
    process(pipeline, rgb_message())
    assert caplog.records == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda rgb, thermal: rgb.__dict__.update(data=rgb.data[:-1]), "/front: 64x48 rgb8"),
        (lambda rgb, thermal: rgb.__dict__.update(encoding="nonsense"), "/front: encoding 'nonsense'"),
        (lambda rgb, thermal: thermal.__dict__.update(width=0), "/flir: an mono8 image of 0x12 px"),
        (lambda rgb, thermal: thermal.__dict__.update(encoding="16UC1", width=8), "/flir carries 16UC1"),
    ],
)
def test_a_bad_message_costs_that_frame_only(fused: Student, spoil: Any, reason: str) -> None:
    pipeline = Pipeline({Mode.FUSED: fused}, PipelineSettings(rgb_topic="/front", thermal_topic="/flir"))
    rgb, thermal = rgb_message(), thermal_message()
    spoil(rgb, thermal)
    with pytest.raises(RejectedFrame, match=reason):
        pipeline.prepare(rgb, thermal)
    assert len(process(pipeline, rgb_message(), thermal_message()).output.detections) == 2


def test_an_image_that_the_homography_does_not_fit_is_rejected(fused: Student) -> None:
    homography = [1, 0, 0, 0, 1, 0, -1 / 32, 0, 1]
    settings = PipelineSettings(registration=RegistrationSettings(homography=homography))
    with pytest.raises(RejectedFrame, match="horizon inside the 64x48"):
        Pipeline({Mode.FUSED: fused}, settings).prepare(rgb_message(), thermal_message())


def test_images_of_another_size_than_was_calibrated_are_no_failure_of_the_node(
    fused: Student,
) -> None:
    settings = RegistrationSettings(homography=[0.25, 0, 0, 0, 0.25, 0, 0, 0, 1], sizes=(64, 48, 16, 12))
    pipeline = Pipeline({Mode.FUSED: fused}, PipelineSettings(registration=settings))
    with pytest.raises(NotReady, match="made for RGB 64x48 and thermal 16x12, but the images are 64x48 and 8x6"):
        pipeline.prepare(rgb_message(), thermal_message(size=(8, 6)))
    assert len(process(pipeline, rgb_message(), thermal_message()).output.detections) == 2


def test_a_failure_of_the_student_is_a_rejected_frame(fused: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused})
    work = pipeline.prepare(rgb_message(), thermal_message())
    with pytest.raises(RejectedFrame, match="failed on CPUExecutionProvider"):
        pipeline.infer(replace(work, rgb=replace(work.rgb, image=work.rgb.image.astype(np.float32))))


def test_inference_in_threads_gives_the_same_as_one_after_the_other(fused: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused}, PipelineSettings(score_threshold=0))
    works = [pipeline.prepare(rgb_message(seed), thermal_message(10 * seed)) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(pipeline.infer, works))
    for work, result in zip(works, threaded, strict=True):
        expected = pipeline.infer(work)
        np.testing.assert_array_equal(result.output.detections.scores, expected.output.detections.scores)
        np.testing.assert_array_equal(result.output.segmentation.mask, expected.output.segmentation.mask)


def test_the_gain_control_is_that_of_the_students_training(tmp_path: Path) -> None:
    # Percentiles 0 and 100 of 300..400 K: 350 K becomes 127.5, rounded up; trained otherwise it would not.
    contract = ThermalContract(sensor_size=(3, 1), percentiles=(0.0, 100.0), minimum_span_k=1.0)
    student = Student.load(
        write_tiny_student(
            tmp_path / "s.onnx", manifest=tiny_manifest(thermal=True).model_copy(update={"thermal": contract})
        ),
        CPU,
    )
    pipeline = Pipeline({Mode.FUSED: student}, PipelineSettings(thermal=ThermalSettings(encoding="kelvin")))
    kelvin = image_message(np.array([[300, 350, 400]], np.float32), "32FC1")
    assert pipeline.prepare(rgb_message(), kelvin).thermal.image.tolist() == [[0, 128, 255]]


def test_the_smallest_span_is_that_of_the_students_training(tmp_path: Path) -> None:
    contract = ThermalContract(sensor_size=(3, 1), percentiles=(0.0, 100.0), minimum_span_k=40.0)
    manifest = tiny_manifest(thermal=True).model_copy(update={"thermal": contract})
    student = Student.load(write_tiny_student(tmp_path / "s.onnx", manifest=manifest), CPU)
    pipeline = Pipeline({Mode.FUSED: student}, PipelineSettings(thermal=ThermalSettings(encoding="kelvin")))
    kelvin = image_message(np.array([[290, 300, 310]], np.float32), "32FC1")
    # 20 K in the middle of 40: a quarter, the half and three quarters of 255, rounded.
    assert pipeline.prepare(rgb_message(), kelvin).thermal.image.tolist() == [[64, 128, 191]]


def test_thermal_that_is_not_what_it_is_said_to_be_is_no_picture_for_its_health(fused: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused}, PipelineSettings(thermal=ThermalSettings(encoding="decikelvin")))
    kelvin = np.random.default_rng(0).normal(285, 3, (12, 16))
    good = image_message(np.rint(10 * kelvin).astype(np.uint16), "16UC1")
    assert pipeline.look(good, "thermal").unreadable == ""
    wrong = image_message(np.rint(100 * kelvin).astype(np.uint16), "16UC1")
    assert "set thermal.encoding to 'centikelvin'" in pipeline.look(wrong, "thermal").unreadable
    palette = image_message(rgb_pixels(size=(16, 12)), "rgb8")
    assert "needs mono16" in pipeline.look(palette, "thermal").unreadable
    assert pipeline.look(palette, "rgb").unreadable == ""
    # What has a fault of its own keeps it: nothing of it is a temperature.
    dark = pipeline.look(image_message(np.zeros((12, 16), np.uint16), "16UC1"), "thermal")
    assert (dark.dark, dark.unreadable) == (True, "")
    cut = image_message(np.rint(10 * kelvin).astype(np.uint16), "16UC1")
    cut.height = 13
    assert "needs 416 bytes" in pipeline.look(cut, "thermal").unreadable


def test_a_student_of_a_fixed_range_gets_it_from_temperatures_only(tmp_path: Path) -> None:
    contract = ThermalContract(sensor_size=(3, 1), coding="fixed_range", range_k=(273.15, 373.15))
    manifest = tiny_manifest().model_copy(update={"thermal": contract})
    student = Student.load(write_tiny_student(tmp_path / "s.onnx", manifest=manifest), CPU)
    pipeline = Pipeline({Mode.FUSED: student}, PipelineSettings(thermal=ThermalSettings(encoding="celsius")))
    celsius = image_message(np.array([[0, 50, 100]], np.float32), "32FC1")
    assert pipeline.prepare(rgb_message(), celsius).thermal.image.tolist() == [[0, 128, 255]]
    with pytest.raises(ValueError, match=r"fixed range .* set thermal\.encoding"):
        Pipeline({Mode.FUSED: student})


def test_students_have_to_fit_their_modes(fused: Student, visible: Student) -> None:
    with pytest.raises(ValueError, match="takes RGB and thermal and cannot serve VISIBLE_ONLY"):
        Pipeline({Mode.VISIBLE_ONLY: fused})
    with pytest.raises(ValueError, match="takes RGB alone and cannot serve FUSED"):
        Pipeline({Mode.FUSED: visible})
    with pytest.raises(ValueError, match="at least one student"):
        Pipeline({})
    with pytest.raises(ValueError, match="no student can be given for STALE"):
        Pipeline({Mode.STALE: fused})


def test_threshold_and_offset_may_change_between_frames(fused: Student) -> None:
    pipeline = Pipeline({Mode.FUSED: fused}, PipelineSettings(score_threshold=0))
    assert len(process(pipeline, rgb_message(), thermal_message()).output.detections) == 3
    pipeline.settings = replace(pipeline.settings, score_threshold=0.5, pairing=PairingSettings(offset_ns=4 * MS))
    perception = process(pipeline, rgb_message(), thermal_message())
    assert len(perception.output.detections) == 1
    assert perception.pair_offset_ns == -6 * MS


def test_the_score_threshold_has_bounds() -> None:
    with pytest.raises(ValueError, match="score_threshold"):
        PipelineSettings(score_threshold=1.5)
