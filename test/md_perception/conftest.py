"""What several tests of the runtime share."""

import pytest

from md_perception.inference import session


@pytest.fixture
def bound_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a provider whose buffers are bound, as those of a GPU are."""
    monkeypatch.setitem(session.DEVICES, "CPUExecutionProvider", "cpu")
