"""Who may import whom: the runtime runs without PyTorch, and all of it but `ros` without ROS."""

import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import md_perception

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "md_perception"


def _modules(inside_ros: bool) -> list[str]:
    names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "md_perception.")]
    return [name for name in names if name.startswith("md_perception.ros") == inside_ros and "__main__" not in name]


def _loaded_after_import(modules: list[str], packages: set[str]) -> list[str]:
    """Return which of the packages a fresh Python has loaded after it imported the modules."""
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted({packages!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_runtime_outside_ros_imports_neither_ros_nor_torch_nor_training():
    modules = _modules(inside_ros=False)

    assert "md_perception.results" in modules
    assert "md_perception.sensing.thermal" in modules
    assert _loaded_after_import(modules, {"rclpy", "launch", "torch", "torchvision", "md_training"}) == []


def test_ros_modules_import_neither_torch_nor_training():
    pytest.importorskip("rclpy")

    modules = _modules(inside_ros=True)

    assert _loaded_after_import(modules, {"rclpy", "torch", "torchvision", "md_training"}) == ["rclpy"]


def test_pipeline_does_not_import_the_scene_world():
    assert _loaded_after_import(["md_perception.pipeline"], {"md_perception.scenes"}) == []


def test_boundary_check_sees_a_forbidden_import():
    # The check above would be worth nothing if it did not see this one.
    assert _loaded_after_import(["json", "sqlite3"], {"sqlite3", "torch"}) == ["sqlite3"]


def test_version_is_the_same_in_python_and_in_the_ros_package():
    assert re.search(r"<version>(.+)</version>", (ROOT / "package.xml").read_text())[1] == md_perception.__version__


def test_console_scripts_name_functions_that_are_there_and_are_read_by_cmake():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script_line = re.search(r'set\(script_line "(.+)"\)', (ROOT / "CMakeLists.txt").read_text())[1].replace('\\"', '"')
    lines = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if re.match(script_line, line)]

    assert {line.partition(" ")[0] for line in lines} == set(project["scripts"])
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
        assert f"def {function}(" in source, target
