"""Fixtures of the ROS tests: the node in this process, a vehicle around it, tiny students."""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.parameter import Parameter
from tiny_student import write_tiny_student
from vehicle import Spinning, Vehicle

from md_perception.ros.node import PerceptionNode


@pytest.fixture
def context() -> Iterator[Context]:
    # rclpy's nodes lie in reference cycles, and until those are collected a destroyed node's lifecycle services stay on
    # the graph: an earlier test's node would stand beside this test's under the same name.
    gc.collect()
    created = Context()
    rclpy.init(args=[], context=created)
    yield created
    rclpy.try_shutdown(context=created)


@pytest.fixture
def vehicle(context: Context) -> Iterator[Vehicle]:
    created = Vehicle(context)
    yield created
    created.stop()


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny students: `fused`, `visible` and `thermal`."""
    folder = tmp_path_factory.mktemp("students")
    return {
        "fused": write_tiny_student(folder / "fused.onnx"),
        "visible": write_tiny_student(folder / "visible.onnx", thermal=False),
        "thermal": write_tiny_student(folder / "thermal.onnx", rgb=False),
    }


@pytest.fixture
def start_node(
    context: Context, vehicle: Vehicle, students: dict[str, Path]
) -> Iterator[Callable[..., PerceptionNode]]:
    """Return a function that starts the node in this process, on the tiny fused student.

    Parameters are given with two underscores for a dot.
    """
    started: list[Spinning] = []

    def start(remap: Sequence[str] = (), **values: Any) -> PerceptionNode:
        values = {"student__file": str(students["fused"]), "student__threads": 1} | values
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
        arguments = ["--ros-args", *(part for rule in remap for part in ("-r", rule))] if remap else []
        node = PerceptionNode(context=context, parameter_overrides=overrides, cli_args=arguments)
        started.append(Spinning(node, context))
        vehicle.target = node
        return node

    yield start
    for spinning in started:
        spinning.stop()
