"""Parameter files of the node, read without ROS: what the node would refuse is refused."""

from pathlib import Path

import pytest

from md_perception.inference.session import SessionSettings
from md_perception.inference.student_file import DEMO_STUDENT, DEMO_VISIBLE_STUDENT
from md_perception.parameters import ParameterError, Parameters

CONFIG = Path(__file__).parents[2] / "config"


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_the_documented_file_has_the_defaults() -> None:
    assert Parameters.read(CONFIG / "md.yaml") == Parameters.defaults() == Parameters.read()


def test_sections_of_namespaces_and_changes_beside_the_file_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "front:\n  md_perception:\n    ros__parameters:\n      use_sim_time: true\n      pairing: {tolerance_s: 0.02}\n"
        "      qos_overrides: {/segmentation/mask: {publisher: {depth: 1}}}\n",
    )
    found = Parameters.read(path, {"thermal.range": "[280.0, 320.0]", "thermal.encoding": "centikelvin"})
    assert (found.pairing_tolerance_s, found.thermal_range) == (0.02, [280.0, 320.0])
    assert found.pairing_settings().tolerance_ns == 20_000_000


def test_the_students_of_this_package_have_a_name() -> None:
    def files(**cameras: str) -> dict[str, Path]:
        return Parameters.read(changes={f"student.{name}": file for name, file in cameras.items()}).student_files()

    both = {"student.file": DEMO_STUDENT, "student.visible_file": DEMO_VISIBLE_STUDENT}
    assert files() == {"student.file": DEMO_STUDENT}
    assert files(file="demo", visible_file="demo") == both
    given = files(visible_file="~/visible.onnx", thermal_file="demo")  # there is no such student of this package
    assert given["student.visible_file"] == Path.home() / "visible.onnx"
    assert given["student.thermal_file"] == Path("demo")


def test_students_are_run_as_the_parameters_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Parameters.defaults().session_settings() == SessionSettings()
    monkeypatch.setenv("HOME", "/home/somebody")
    changes = {
        "student.providers": "[tensorrt, cpu]",
        "student.threads": "2",
        "student.cuda_graphs": "false",
        "student.engine_cache": "~/engines",
        "student.warm_up_rgb_size": "[640, 512]",
    }
    assert Parameters.read(None, changes).session_settings() == SessionSettings(
        ("tensorrt", "cpu"), 2, cuda_graphs=False, engine_cache=Path("/home/somebody/engines"), rgb_size=(640, 512)
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pairing: {tolerance_s: 1}", "is 1, which is not of the type of 0.06; write the number with a decimal point"),
        ("pairing: {tolerance_s: fast}", "pairing.tolerance_s is 'fast'"),
        ("autostart: 1", "autostart is 1, which is not of the type of False"),
        ("pairing: {tolerances: 1.0}", "there is no parameter pairing.tolerances"),
        ("pairing: {tolerance_s: 11.0}", "must lie between 0 and 10"),
        ("thermal: {range: [1, 2]}", r"thermal.range is \[1, 2\]"),
        ("pairing: {policy: best}", "use one of 'nearest'"),
    ],
)
def test_what_the_node_would_refuse_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=problem):
        Parameters.read(write(tmp_path, f"/**:\n  ros__parameters:\n    {text}\n"))


@pytest.mark.parametrize("text", ["", "a: 1", "[1, 2]", "/**: {ros__parameters: }", "a: [", "\0"])
def test_what_is_no_parameter_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"params\.yaml"):
        Parameters.read(write(tmp_path, text))
    with pytest.raises(ParameterError, match=r"missing\.yaml cannot be read"):
        Parameters.read(tmp_path / "missing.yaml")
