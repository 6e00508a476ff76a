"""What the launch files share, which needs neither launch nor ROS."""

from pathlib import Path

import pytest

from md_perception.ros.environment import STUDENTS, check_parameter_file, node_environment, overrides


def test_launch_arguments_override_the_parameter_file_and_empty_ones_do_not() -> None:
    arguments = {"student": "fused.onnx", "visible_student": "", "thermal_student": "", "use_sim_time": ""}
    assert overrides(arguments, STUDENTS) == {"student.file": "fused.onnx"}
    assert overrides(arguments | {"use_sim_time": "true"}, {}) == {"use_sim_time": True}
    assert overrides(arguments | {"use_sim_time": "false"}, {}) == {"use_sim_time": False}


def test_a_parameter_file_that_is_there_is_taken_and_another_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "md.yaml"
    file.touch()
    check_parameter_file({"params_file": str(file)}, "params_file")
    for wrong in (tmp_path, tmp_path / "no.yaml"):
        with pytest.raises(RuntimeError, match=r"^params_file:=.*: there is no such file; give the path"):
            check_parameter_file({"params_file": str(wrong)}, "params_file")


@pytest.mark.parametrize(
    ("environment", "profile"),
    [
        ({}, True),
        ({"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, True),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, False),
        ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/mine.xml"}, False),
        ({"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}, False),
        ({"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}, False),
    ],
)
def test_the_transport_is_set_unless_the_user_has_chosen_one(environment: dict[str, str], profile: bool) -> None:
    added = node_environment(environment)
    assert ("FASTRTPS_DEFAULT_PROFILES_FILE" in added) == profile
    if profile:
        assert Path(added["FASTRTPS_DEFAULT_PROFILES_FILE"]).name == "fastdds.xml"
        assert Path(added["FASTRTPS_DEFAULT_PROFILES_FILE"]).exists()
    assert not environment.keys() & added.keys()
    assert added["MALLOC_MMAP_THRESHOLD_"] == "1073741824"
    assert "MALLOC_TOP_PAD_" not in node_environment({"MALLOC_TOP_PAD_": "1"})
