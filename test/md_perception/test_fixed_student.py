"""Students of fixed shapes: which images they take, and what their padded rows become."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fixed_student import RGB_SIZE, THERMAL_SIZE, write_fixed_student
from onnx import TensorProto, helper
from tiny_student import tiny_model, write_tiny_student

from md_perception.inference.manifest import ManifestError
from md_perception.inference.onnx_file import OnnxFile, OnnxFileError
from md_perception.inference.session import SessionSettings, Student, StudentError
from md_perception.inference.student_file import StudentFile
from md_perception.pipeline import Pipeline
from md_perception.results import Mode
from md_perception.sensing.registration import sampling_matrix

CPU = SessionSettings(providers=("cpu",), threads=1)
MATRIX = sampling_matrix(RGB_SIZE, THERMAL_SIZE)


def run(student: Student) -> list[float]:
    output = student.run(np.zeros((48, 64, 3), np.uint8), np.full((12, 16), 204, np.uint8), MATRIX)
    assert output.detections is not None
    assert output.detections.boxes.shape == (len(output.detections), 4)
    assert len(output.detections.labels) == len(output.detections)
    return output.detections.scores.tolist()


def test_padding_rows_are_no_detections(tmp_path: Path) -> None:
    plain = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    fixed = Student.load(write_fixed_student(tmp_path / "fixed.onnx"), CPU)
    assert run(fixed) == run(plain) == pytest.approx([0.8, 0.4, 0.2])


def test_a_score_of_zero_is_a_detection(tmp_path: Path) -> None:
    student = Student.load(write_fixed_student(tmp_path / "zero.onnx", padding_score=0.0), CPU)
    assert run(student) == pytest.approx([0.8, 0.4, 0.2, 0, 0])


def test_detections_behind_padding_are_an_error(tmp_path: Path) -> None:
    student = Student.load(write_fixed_student(tmp_path / "front.onnx", front=True), CPU)
    with pytest.raises(StudentError, match="contradict each other: detections come after rows that stand for none"):
        run(student)


def test_another_size_is_refused_before_a_frame_comes(tmp_path: Path) -> None:
    path = write_fixed_student(tmp_path / "fixed.onnx")
    student = Student.load(path, CPU)
    problem = (
        "exported for rgb images of 64x48 px alone, not of 640x512 px: export it for that size, or without --fixed"
    )
    with pytest.raises(StudentError, match=problem):
        student.warm_up((640, 512), THERMAL_SIZE)
    with pytest.raises(StudentError, match="for thermal images of 16x12 px alone, not of 160x128"):
        student.warm_up(RGB_SIZE, (160, 128))
    with pytest.raises(StudentError, match="for rgb images of 64x48 px alone, not of 48x64"):
        student.run(np.zeros((64, 48, 3), np.uint8), np.zeros((12, 16), np.uint8), MATRIX)
    with pytest.raises(StudentError, match="alone, not of 640x512"):  # what the node is told, as early as it can be
        Student.load(path, SessionSettings(providers=("cpu",), rgb_size=(640, 512)))
    assert run(student) == pytest.approx([0.8, 0.4, 0.2])


def test_it_is_warmed_up_for_its_own_size_not_for_that_of_its_training(tmp_path: Path) -> None:
    student = Student.load(write_fixed_student(tmp_path / "fixed.onnx"), CPU)
    assert student.manifest.camera_size == (640, 480)
    assert student.sizes == (RGB_SIZE, THERMAL_SIZE)
    assert Pipeline({Mode.FUSED: student}).warm_up() > 0


def test_sizes_of_dynamic_students_are_those_of_training_and_a_session_is_made_for_those_asked_for(
    tmp_path: Path,
) -> None:
    path = write_tiny_student(tmp_path / "tiny.onnx")
    settings = SessionSettings(("cpu",), rgb_size=(32, 24), thermal_size=(8, 6))
    for asked, first in ((CPU, ((64, 48), (160, 120))), (settings, ((32, 24), (8, 6)))):
        student = Student.load(path, asked)
        assert student.sizes == ((64, 48), (160, 120))
        assert list(student._services) == [first]
    thermal_only = write_tiny_student(tmp_path / "thermal.onnx", rgb=False)
    assert Student.load(thermal_only, CPU).sizes == (None, (160, 120))


def test_a_file_knows_which_shapes_are_known(tmp_path: Path) -> None:
    fixed = StudentFile.read(write_fixed_student(tmp_path / "fixed.onnx"))
    assert fixed.static({})
    assert fixed.padded
    assert fixed.output_shapes({})["boxes"] == ("float32", (5, 4))
    tiny = StudentFile.read(write_tiny_student(tmp_path / "tiny.onnx"))
    dimensions = tiny.dimensions((64, 48), (16, 12))
    assert dimensions == {"W": 64, "H": 48, "w": 16, "h": 12}
    assert tiny.input_shapes(dimensions) == {"rgb": (1, 48, 64, 3), "thermal": (1, 12, 16), "rgb_to_thermal": (1, 3, 3)}
    assert tiny.output_shapes(dimensions) == {"mask": ("uint8", (1, 48, 64)), "confidence": ("uint8", (1, 48, 64))}
    assert not tiny.static(dimensions)  # any number of detections
    assert not tiny.padded
    mask_only = StudentFile.read(write_tiny_student(tmp_path / "mask.onnx", tasks=("segmentation",)))
    assert mask_only.static(dimensions)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ([4, "H", "W", 3], r"rgb has the shape \[4, 'any', 'any', 3\], not \[1, 'any', 'any', 3\]"),
        ([1, "H", "W", 4], "rgb has the shape"),
        ([1, 0, "W", 3], "rgb has the shape"),
        ([1, 20000, "W", 3], "rgb has the shape"),
        ([1, -1, "W", 3], "rgb has the shape"),
    ],
)
def test_shapes_that_no_camera_has_are_refused(shape: list[int | str], problem: str, tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("rgb", TensorProto.UINT8, shape))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ManifestError, match=problem):
        Student.load(tmp_path / "other.onnx")


def test_one_name_for_different_sides_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("thermal", TensorProto.UINT8, [1, "H", "W"]))
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(StudentError, match="gives sides of 64 and 160 px one name, 'W': export it again"):
        Student.load(tmp_path / "one.onnx", CPU)


def test_a_dimension_is_a_size_a_name_or_any_but_not_two_of_them() -> None:
    file = OnnxFile()
    assert file._dimension(memoryview(b"\x08\x40")) == 64
    assert file._dimension(memoryview(b"\x12\x01W")) == "W"
    assert file._dimension(memoryview(b"\x12\x00")) is None
    assert file._dimension(memoryview(b"")) is None
    with pytest.raises(OnnxFileError, match="a dimension has both a size and a name"):
        file._dimension(memoryview(b"\x08\x40\x12\x01W"))


def test_images_of_another_rank_are_an_error_of_the_student(tmp_path: Path) -> None:
    student = Student.load(write_tiny_student(tmp_path / "tiny.onnx"), CPU)
    with pytest.raises(StudentError, match=r"takes no rgb image of shape \[48, 64\]"):
        student.run(np.zeros((48, 64), np.uint8), np.zeros((12, 16), np.uint8), MATRIX)
