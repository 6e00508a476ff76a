"""What `colcon build` leaves: modules and messages as one Python package, executables, launch files, configuration."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("first", ["source tree", "install tree"])
def test_modules_and_messages_are_one_package_whichever_tree_comes_first(first):
    installed = next(path for path in sys.path if Path(path, "md_perception", "msg").is_dir())
    path = [str(ROOT), installed] if first == "source tree" else [installed, str(ROOT)]
    program = (
        f"import sys; sys.path[:0] = {path!r}\n"
        "import md_perception.msg, md_perception.labels\n"
        "print(md_perception.msg.PerceptionStatus.MODE_FUSED, md_perception.labels.UNLABELED_ID)"
    )

    result = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=False)

    assert result.stdout.split() == ["1", "255"], result.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_console_script_is_an_executable_of_ros2_run(name):
    # What `ros2 run` lists: files in lib/<package> that may be executed.
    executable = Path(get_package_prefix("md_perception"), "lib", "md_perception", name)

    assert os.access(executable, os.X_OK), executable
    assert SCRIPTS[name].partition(":")[0] in executable.read_text()


def test_installed_executable_runs():
    executable = Path(get_package_prefix("md_perception"), "lib", "md_perception", "md_bag")

    result = subprocess.run([executable, "make", "--help"], cwd="/", capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "--thermal-encoding" in result.stdout


def test_configuration_and_launch_files_are_installed():
    share = Path(get_package_share_directory("md_perception"))

    assert {path.name for path in (ROOT / "config").iterdir()} <= {path.name for path in (share / "config").iterdir()}
    assert {path.name for path in (ROOT / "launch").glob("*.py")} <= {
        path.name for path in (share / "launch").iterdir()
    }
