"""What a vehicle project demands of an evaluation, e.g. `miss_rate<=0.12,p95_ms<=50`, and whether it was met."""

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

_OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_REQUIREMENT = re.compile(r"(?:([^:<>=,]+):)?([a-z][A-Za-z0-9_]*)\s*(<=|>=|<|>)\s*(\S+)")


class GateError(ValueError):
    """A requirement that cannot be understood, or that names a figure that is not there."""


@dataclass(frozen=True)
class Requirement:
    """A bound of a figure. student: None: of every student."""

    figure: str
    sign: str
    limit: float
    student: str | None = None

    def __str__(self) -> str:
        name = self.figure if self.student is None else f"{self.student}:{self.figure}"
        return f"{name}{self.sign}{self.limit:g}"


@dataclass(frozen=True)
class Gate:
    """A requirement that was looked at.

    condition: with the student's name where there are several. value: None where it cannot be said, which meets no
    bound.
    """

    condition: str
    value: float | None
    met: bool

    def __str__(self) -> str:
        value = "unknown" if self.value is None else f"{self.value:.6g}"
        return f"{'met' if self.met else 'NOT MET'}: {self.condition} (it is {value})"


def parse_requirements(text: str) -> tuple[Requirement, ...]:
    """Read `miss_rate<=0.12,p95_ms<=50`; `NAME:miss_rate<=0.12` is about the student of this name alone.

    Raises GateError.
    """
    found = []
    for part in text.split(","):
        match = _REQUIREMENT.fullmatch(part.strip())
        limit = _number(match[4]) if match else None
        if match is None or limit is None:
            raise GateError(
                f"{part.strip()!r} is no requirement: write a figure of report.json or timing.json, then <=, >=, < or "
                "> and a number, e.g. miss_rate<=0.12"
            )
        found.append(Requirement(match[2], match[3], limit, match[1]))
    return tuple(found)


def check(requirements: tuple[Requirement, ...], figures: Mapping[str, Mapping[str, float | None]]) -> list[Gate]:
    """Look at each requirement. figures: by student and by name. Raises GateError for names that are not there."""
    gates = []
    for requirement in requirements:
        if requirement.student is not None and requirement.student not in figures:
            raise GateError(f"{requirement}: there is no student {requirement.student}; use {', '.join(figures)}")
        students = list(figures) if requirement.student is None else [requirement.student]
        for student in students:
            if requirement.figure not in figures[student]:
                raise GateError(
                    f"{requirement}: there is no figure {requirement.figure!r} in this evaluation; there are "
                    f"{', '.join(sorted(figures[student]))}"
                )
            value = figures[student][requirement.figure]
            met = value is not None and bool(_OPERATORS[requirement.sign](value, requirement.limit))
            named = Requirement(
                requirement.figure, requirement.sign, requirement.limit, student if len(figures) > 1 else None
            )
            gates.append(Gate(str(named), value, met))
    return gates


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
