"""The table of parameters, its documentation in config/md.yaml, and what is refused with which reason."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from md_perception.parameters import TABLE, ParameterError, Parameters
from md_perception.pipeline import PipelineSettings
from md_perception.ros import parameters
from md_perception.sensing.health import HealthSettings
from md_perception.sensing.misalignment import MisalignmentSettings
from md_perception.sensing.pairing import PairingSettings
from md_perception.sensing.registration import RegistrationSettings

YAML = Path(__file__).parents[2] / "config" / "md.yaml"
DEFAULTS = {declaration.name: declaration.default for declaration in TABLE}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def test_the_yaml_file_and_the_table_have_the_same_parameters_and_defaults():
    documented = flatten(yaml.safe_load(YAML.read_text())["/**"]["ros__parameters"])
    assert documented == DEFAULTS
    assert {n: type(v) for n, v in documented.items()} == {n: type(v) for n, v in DEFAULTS.items()}


def test_the_yaml_file_marks_what_may_be_changed_while_the_node_runs():
    marked, pending = set(), False
    for line in YAML.read_text().splitlines()[6:]:
        text = line.strip()
        if text.startswith("#"):
            pending = pending or text.startswith("# [run]")
        elif text:
            if pending:
                marked.add(text.split(":")[0])
            pending = False
    assert marked == {d.name.split(".")[-1] for d in TABLE if not d.read_only}


def test_ros_reads_the_yaml_file(context):
    arguments = ["--ros-args", "--params-file", str(YAML)]
    node = Node("md_perception", context=context, cli_args=arguments, namespace="/car")
    parameters.declare(node)
    assert parameters.read(node) == Parameters.from_values(DEFAULTS)
    node.destroy_node()


def test_parameters_that_there_are_not_are_warned_of(context, capfd):
    given = [
        "score_treshold:=0.9",
        "pairing.tolerence_s:=0.1",
        "qos_overrides./x.publisher.depth:=3",
        "use_sim_time:=true",
    ]
    arguments = ["--ros-args", *(part for text in given for part in ("-p", text)), "-p", "score_threshold:=0.4"]
    node = Node("md_perception", context=context, cli_args=arguments)
    parameters.declare(node)
    assert node.get_parameter("score_threshold").value == 0.4
    said = capfd.readouterr().err
    assert "score_treshold (is it score_threshold?), pairing.tolerence_s (is it pairing.tolerance_s?); config" in said
    assert "qos" not in said
    node.destroy_node()


def test_every_parameter_is_described_and_has_a_field():
    assert {field.name for field in fields(Parameters)} == {d.field for d in TABLE}
    for declaration in TABLE:
        assert len(declaration.description) > 20, declaration.name
        descriptor = parameters.descriptor(declaration)
        assert descriptor.description == declaration.description
        assert descriptor.read_only == declaration.read_only
        declaration.check(declaration.default)


def test_defaults_are_those_of_the_rooms_that_use_them():
    defaults = Parameters.from_values(DEFAULTS)
    assert defaults.pairing_settings() == PairingSettings()
    assert defaults.misalignment_settings() == MisalignmentSettings()
    assert defaults.health_settings() == HealthSettings()
    assert defaults.pipeline_settings("rgb/image_raw", "thermal/image_raw") == PipelineSettings()


def test_values_reach_the_settings_in_their_units():
    values = DEFAULTS | {
        "pairing.tolerance_s": 0.05,
        "pairing.offset_s": -0.02,
        "pairing.max_wait_s": 0.1,
        "pairing.capacity": 8,
        "thermal.encoding": "kelvin",
        "thermal.range": [270.0, 320.0],
        "thermal.time_constant_s": 2.0,
        "registration.homography": [0.25, 0.0, 1.0, 0.0, 0.25, 2.0, 0.0, 0.0, 1.0],
        "registration.sizes": [640, 512, 160, 128],
        "registration.max_shift": 0.03,
        "student.warm_up_rgb_size": [640, 512],
        "student.providers": ["cuda", "cpu"],
    }
    found = Parameters.from_values(values)
    assert found.pairing_settings() == PairingSettings(50_000_000, -20_000_000, 100_000_000, capacity=8)
    settings = found.pipeline_settings("/cam", "/boson")
    assert settings.thermal.range == (270.0, 320.0)
    assert (settings.thermal.encoding, settings.thermal.time_constant_s) == ("kelvin", 2.0)
    assert settings.registration == RegistrationSettings(
        homography=values["registration.homography"], sizes=(640, 512, 160, 128)
    )
    assert found.misalignment_settings() == MisalignmentSettings(max_shift=0.03)
    assert (settings.rgb_topic, settings.thermal_topic) == ("/cam", "/boson")
    assert (found.rgb_size, found.thermal_size) == ((640, 512), None)
    assert found.session_settings().providers == ("cuda", "cpu")


def test_health_reaches_its_settings():
    values = DEFAULTS | {
        "health.timeout_s": 0.8,
        "health.recovery_pairs": 5,
        "health.frozen_s": 2.0,
        "health.without_thermal": "last_thermal",
        "health.last_thermal_age_s": 2.5,
        "rgb.minimum_rate_hz": 20.0,
        "thermal.minimum_rate_hz": 8.0,
    }
    expected = HealthSettings(0.8, 5, 2.0, "last_thermal", 2.5, rgb_minimum_hz=20.0, thermal_minimum_hz=8.0)
    assert Parameters.from_values(values).health_settings() == expected


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("pairing.tolerance_s", 0.0, "only images with equal stamps are partners"),
        ("pairing.max_wait_s", 0.0, "an RGB image that comes before its thermal partner never gets it"),
        ("health.timeout_s", 0.1, "a thermal camera of 8.7 Hz is lost whenever it misses an image"),
    ],
)
def test_a_value_that_is_hardly_meant_is_warned_of_with_the_cure(name, value, warning):
    assert Parameters.from_values(DEFAULTS).warnings() == []
    (found,) = Parameters.from_values(DEFAULTS | {name: value}).warnings()
    assert found.startswith(f"{name} is 0")
    assert warning in found
    equal_stamps_are_meant = DEFAULTS | {"pairing.policy": "exact", "pairing.tolerance_s": 0.0}
    assert Parameters.from_values(equal_stamps_are_meant).warnings() == []


def test_tracks_that_end_before_a_change_of_mode_are_warned_of():
    tracking = DEFAULTS | {"tracking.tracker": "norfair"}
    assert Parameters.from_values(tracking).warnings() == []
    (found,) = Parameters.from_values(tracking | {"tracking.lost_s": 1.0}).warnings()
    assert "ids do not survive a change of mode" in found


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("score_threshold", 1.01, "score_threshold is 1.01: it must lie between 0 and 1"),
        ("score_threshold", float("nan"), "score_threshold is nan: a finite number is needed"),
        ("rgb.transport", "theora", "rgb.transport is 'theora': use one of 'raw', 'compressed'"),
        ("thermal.encoding", "rgb8", "thermal.encoding is 'rgb8': use one of 'auto', 'agc8'"),
        ("thermal.range", [300.0], "thermal.range has 1 elements: 2 are needed"),
        ("thermal.range", [320.0, 270.0], "thermal.range"),
        ("thermal.range", [270.0, 320.0], "set thermal.encoding to the counts or temperatures"),
        ("thermal.range", [0.0, 1e300], "thermal.range is 1e+300: it must lie between -1e+09 and 1e+09"),
        ("registration.homography", [1.0] * 9, "is singular"),
        ("registration.homography", [1.0] * 8, "registration.homography has 8 elements: 9 are needed"),
        ("registration.sizes", [640, 512, 160, 0], "registration.sizes is [640, 512, 160, 0]: give width and height"),
        ("registration.source", "tf", "registration.source is 'tf': use one of 'homography', 'camera_info_raw'"),
        ("registration.max_shift", 0.5, "registration.max_shift is 0.5: it must lie between 0.002 and 0.15"),
        ("health.without_thermal", "go on", "use one of 'stop', 'last_thermal'"),
        ("student.providers", ["gpu"], "unknown execution providers ['gpu']"),
        ("student.warm_up_rgb_size", [640, -1], "student.warm_up_rgb_size is -1: it must lie between 0 and 16384"),
        ("student.warm_up_thermal_size", [0, 120], "student.warm_up_thermal_size is [0, 120]: give width and height"),
    ],
)
def test_a_bad_value_is_refused_with_the_reason(name, value, reason):
    with pytest.raises(ParameterError) as caught:
        Parameters.from_values(DEFAULTS | {name: value})
    assert reason in str(caught.value)


def test_the_topic_follows_from_the_transport():
    found = Parameters.from_values(DEFAULTS | {"thermal.transport": "compressed"})
    assert found.image_topic("rgb") == "rgb/image_raw"
    assert found.image_topic("thermal") == "thermal/image_raw/compressed"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("score_threshold", "high", InvalidParameterTypeException),
        ("pairing.tolerance_s", -0.1, InvalidParameterValueException),
        ("queue_depth", 0, InvalidParameterValueException),
    ],
)
def test_an_override_of_a_wrong_type_or_range_is_refused_at_declaration(context, name, value, error):
    node = Node("declared", context=context, parameter_overrides=[Parameter(name, value=value)])
    with pytest.raises(error, match=name):
        parameters.declare(node)
    node.destroy_node()


def test_integers_may_be_set_for_floats(context):
    node = Node("integers", context=context)
    parameters.declare(node)
    results = node.set_parameters([Parameter("health.timeout_s", value=2), Parameter("queue_depth", value="two")])
    assert [result.successful for result in results] == [True, False]
    assert node.get_parameter("health.timeout_s").value == 2.0
    assert isinstance(node.get_parameter("health.timeout_s").value, float)
    node.destroy_node()


def test_a_change_is_checked_together_with_the_other_values(context):
    overrides = [Parameter("thermal.encoding", value="celsius")]
    node = Node("checked", context=context, parameter_overrides=overrides)
    parameters.declare(node)
    assert parameters.check_change(node, [Parameter("score_threshold", value=0.7)]).successful
    assert parameters.check_change(node, [Parameter("somebody.elses", value=-1)]).successful
    result = parameters.check_change(node, [Parameter("thermal.polarity", value="black_hot")])
    assert not result.successful
    assert "black_hot has no meaning for temperatures (celsius)" in result.reason
    node.destroy_node()
