"""Any bytes into everything that reads bytes from outside: no crash, no hang (pytest's timeout), no unbounded memory.

`coverage_guided.py` beside this file looks for longer.
"""

import resource
from importlib.util import find_spec

import pytest
from fuzz_targets import TARGETS, image, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MOST_BYTES = 400_000_000
"""By which the largest memory of this process may grow through one target."""


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes with a few of them overwritten, put in, taken out or repeated."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 16))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 8, b"\xff" * 8, data[at : at + length]]))
        )
        data[at : at + length] = piece
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def inputs(target: str) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=400), *(damaged(valid) for valid in seeds(target)))


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes_are_read_or_refused(target: str) -> None:
    if target == "parameters" and find_spec("rclpy") is None:
        pytest.skip("the parameters are read with ROS 2: run through `make test`, or source .ci/env.sh")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(inputs(target))
    def read(data: bytes) -> None:
        TARGETS[target](data)

    read()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES, f"{target} took {grown / 1e6:.0f} MB"


@pytest.mark.parametrize("target", TARGETS)
def test_the_valid_inputs_are_read(target: str) -> None:
    if target == "parameters" and find_spec("rclpy") is None:
        pytest.skip("the parameters are read with ROS 2: run through `make test`, or source .ci/env.sh")
    for data in seeds(target):
        TARGETS[target](data)


def test_a_bug_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr("md_perception.sensing.images._plain_view", stumble)
    with pytest.raises(IndexError, match="a bug"):
        image(seeds("image")[0])
