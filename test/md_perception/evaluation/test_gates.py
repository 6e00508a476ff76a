"""What --require understands, and when a requirement is met."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_perception.evaluation.gates import Gate, GateError, Requirement, check, parse_requirements
from md_perception.evaluation.timing import Timing

FIGURES = {"a": {"miss_rate": 0.12, "p95_ms": 50.0, "ap": None}, "b": {"miss_rate": 0.2, "p95_ms": 10.0, "ap": 0.5}}


def test_requirements_are_bounds_of_figures_of_all_students_or_of_one() -> None:
    assert parse_requirements("miss_rate<=0.12, p95_ms < 5e1,new-1:ap50>=.5,ap>0") == (
        Requirement("miss_rate", "<=", 0.12),
        Requirement("p95_ms", "<", 50.0),
        Requirement("ap50", ">=", 0.5, "new-1"),
        Requirement("ap", ">", 0.0),
    )


@pytest.mark.parametrize(
    "text",
    ["", "miss_rate", "miss_rate=0.1", "miss_rate==0.1", "<=3", "a<=x", "a<=nan", "a<=inf", "a<=1,", "a<=1 b<=2"],
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(GateError, match="is no requirement: write a figure"):
        parse_requirements(text)


@given(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
    st.sampled_from(["<=", ">=", "<", ">"]),
    st.floats(-1e6, 1e6).map(lambda value: float(f"{value:g}")),
    st.none() | st.from_regex(r"[A-Za-z0-9_.+-]{1,8}", fullmatch=True),
)
def test_what_is_printed_is_read_again(figure: str, sign: str, limit: float, student: str | None) -> None:
    requirement = Requirement(figure, sign, limit, student)
    assert parse_requirements(str(requirement)) == (requirement,)


def test_a_gate_is_met_at_its_bound_and_told_with_its_value() -> None:
    gates = check(parse_requirements("miss_rate<=0.12,b:p95_ms<10"), FIGURES)
    assert gates == [
        Gate("a:miss_rate<=0.12", 0.12, True),
        Gate("b:miss_rate<=0.12", 0.2, False),
        Gate("b:p95_ms<10", 10.0, False),
    ]
    assert [str(gate) for gate in gates[:2]] == [
        "met: a:miss_rate<=0.12 (it is 0.12)",
        "NOT MET: b:miss_rate<=0.12 (it is 0.2)",
    ]


def test_a_figure_that_cannot_be_said_meets_no_bound() -> None:
    (gate,) = check(parse_requirements("a:ap>=0"), FIGURES)
    assert (gate.value, gate.met) == (None, False)
    assert "it is unknown" in str(gate)


def test_names_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(GateError, match="no figure 'mis_rate' in this evaluation; there are ap, miss_rate, p95_ms"):
        check(parse_requirements("mis_rate<=1"), FIGURES)
    with pytest.raises(GateError, match="there is no student c; use a, b"):
        check(parse_requirements("c:ap<=1"), FIGURES)


def test_times_are_nearest_ranks_of_all_frames_by_stage() -> None:
    frames = [{"total s": float(number), "score": 1.0} for number in range(1, 101)] + [{"score": 3.0}]
    timing = Timing.of(frames, ["here"], 2)
    assert timing.stages["total s"].p95_ms == 95.0
    assert timing.stages["score"].count == 101
    figures = timing.figures("s")
    assert (figures["p50_ms"], figures["p95_ms"], figures["p99_ms"]) == (50.0, 95.0, 99.0)
    assert figures["inference_p95_ms"] is None
    assert timing.content()["machines"] == ["here"]
