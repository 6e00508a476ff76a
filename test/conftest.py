"""What all tests share: strict ROS messages, hypothesis without deadlines, and the real data where it is there."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# Before the first message module is imported: a wrong type in a message field is an error where it is set.
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")

# How long one example takes says nothing on a machine that is busy with something else. The same examples every time:
# who looks for new ones sets HYPOTHESIS_PROFILE=search.
settings.register_profile("md_perception", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "md_perception"))

# A training machine has no ROS, a vehicle no PyTorch: there the rest is tested. `make test` always has both.
_NEEDS = {"ros": "rclpy", "md_training": "torch"}
collect_ignore = [folder for folder, module in _NEEDS.items() if find_spec(module) is None]


def pytest_report_header() -> list[str]:
    """Say what is left out, and why."""
    return [
        f"test/{folder} is left out: {_NEEDS[folder]} is not installed (`make test` sets it up)"
        for folder in collect_ignore
    ]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real RGB-thermal data: MD_DATA, or ../shared/data beside the repository; skips without it."""
    folder = Path(os.environ.get("MD_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there (MD_DATA names another folder)")
    return folder
