"""The node's parameters in ROS: declared from the table of md_perception.parameters, read, checked when they change."""

import difflib
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node
from rclpy.parameter import Parameter

from md_perception.parameters import TABLE, Declaration, ParameterError, Parameters


def descriptor(declaration: Declaration) -> ParameterDescriptor:
    """Return the descriptor that tools such as `ros2 param describe` show."""
    described = ParameterDescriptor(description=declaration.description, read_only=declaration.read_only)
    if declaration.choices:
        described.additional_constraints = "one of: " + ", ".join(repr(choice) for choice in declaration.choices)
    if declaration.bounds is not None and isinstance(declaration.default, float):
        low, high = declaration.bounds
        described.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif declaration.bounds is not None and isinstance(declaration.default, int):
        low, high = (int(bound) for bound in declaration.bounds)
        described.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return described


def declare(node: Node) -> None:
    """Declare every parameter of the table on the node, and let integers stand for floats when they are set.

    Raises rclpy's InvalidParameterTypeException or InvalidParameterValueException for an override of the wrong type or
    out of range. Overrides of parameters that there are not, which rclpy ignores, are warned of: not refused, as a file
    may be for several nodes.
    """
    for declaration in TABLE:
        node.declare_parameter(declaration.name, declaration.default, descriptor(declaration))
    node.add_pre_set_parameters_callback(_with_floats)
    # rclpy has no public name for them. Those of QoS are declared with their topics.
    given = [name for name in node._parameter_overrides if not name.startswith("qos_overrides.")]
    if unknown := [name for name in given if not node.has_parameter(name)]:
        node.get_logger().warning(
            f"ignored, as there are no such parameters: {', '.join(map(_with_likeness, unknown))}; config/md.yaml has "
            "them all"
        )


def _with_likeness(name: str) -> str:
    like = difflib.get_close_matches(name, [declaration.name for declaration in TABLE], n=1)
    return f"{name} (is it {like[0]}?)" if like else name


def hint(error: Exception) -> str:
    """Return what to write instead, for an error of `declare`; "" where that is plain."""
    if isinstance(error, InvalidParameterTypeException) and "INTEGER" in str(error) and "DOUBLE" in str(error):
        return "; write the number with a decimal point (1.0 for 1)"
    return ""


def _with_floats(given: list[Parameter]) -> list[Parameter]:
    """Return parameters to be set, with floats for the integers that people write for them."""
    floats = {d.name for d in TABLE if isinstance(d.default, float)}
    float_arrays = {d.name for d in TABLE if isinstance(d.default, list) and isinstance(d.default[0], float)}
    return [
        Parameter(p.name, value=float(p.value))
        if p.name in floats and p.type_ == Parameter.Type.INTEGER
        else Parameter(p.name, value=[float(number) for number in p.value])
        if p.name in float_arrays and p.type_ == Parameter.Type.INTEGER_ARRAY
        else p
        for p in given
    ]


def read(node: Node) -> Parameters:
    """Read all parameters from the node. Raises ParameterError."""
    return Parameters.from_values({d.name: _plain(node.get_parameter(d.name).value) for d in TABLE})


def check_change(node: Node, changed: list[Parameter]) -> SetParametersResult:
    """Say whether the changed parameters go together with the others, and why not; for on_set_parameters callbacks."""
    values = {d.name: _plain(node.get_parameter(d.name).value) for d in TABLE}
    values |= {parameter.name: _plain(parameter.value) for parameter in changed if parameter.name in values}
    try:
        Parameters.from_values(values)
    except ParameterError as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)


def _plain(value: Any) -> Any:
    """Arrays come as array.array or as a list."""
    return list(value) if not isinstance(value, bool | int | float | str) else value
