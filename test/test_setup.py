"""The set-up script where something is missing: one sentence that names the cure, and a status that stops `make`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A checkout in which nothing is set up yet."""
    for name in (".ci", "msg", "underlay", "config", "launch", "CMakeLists.txt", "package.xml", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "md_perception").mkdir()
    (tmp_path / "md_training").mkdir()
    return tmp_path


def _set_up(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / ".ci" / "setup", "--runtime"],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_missing_compiler_is_said_in_one_sentence_before_anything_is_made(checkout):
    result = _set_up(checkout, CXX="no-such-compiler")

    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert "a C++ compiler (no-such-compiler)" in sentence
    assert "apt-get install g++" in sentence
    assert not (checkout / ".venv").exists()


def test_network_failure_is_said_in_one_sentence_and_the_next_run_carries_on(checkout):
    nobody_listens = "http://127.0.0.1:9"
    offline = {
        name: nobody_listens for proxy in ("http_proxy", "https_proxy", "all_proxy") for name in (proxy, proxy.upper())
    } | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "no_proxy": "", "NO_PROXY": ""}

    first = _set_up(checkout, **offline)
    again = _set_up(checkout, **offline)

    for result in (first, again):
        assert result.returncode == 1
        (sentence,) = result.stderr.splitlines()
        assert "the Python package index cannot be reached" in sentence
        assert "run this again" in sentence
    # The virtual environment, which was finished, is not made anew.
    assert "virtual environment" in first.stdout
    assert "virtual environment" not in again.stdout
    assert "Python packages" in again.stdout
