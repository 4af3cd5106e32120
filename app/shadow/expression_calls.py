"""The functions, methods and macros of the language of rules. Pure, but for the clock and the chance that a run brings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from app.shadow.bucketing import bucket_of
from app.shadow.expression_run import EvaluationFailed, Part, Run, Value, size_steps, whole

UNIT_MAX: Final = 1_024  # characters of what `bucket` hashes: its hash goes over them one by one, in Python

_integer = re.compile(r"[+-]?[0-9]{1,19}\Z")
_double = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?\Z")


class Call(NamedTuple):
    """What a function or method does, and of how many values, that on its left included."""

    arguments: int
    work: Callable[..., Value]


def _text(value: Value) -> str:
    if type(value) is not str:
        raise EvaluationFailed("a method of texts on something else")
    return value


def _size(_run: Run, value: Value) -> int:
    """`size(x)`, `x.size()`: characters of a text, members of a list or object."""
    if type(value) not in {str, list, dict}:
        raise EvaluationFailed("the size of something that has none")
    return len(value)


def _int(_run: Run, value: Value) -> int:
    """`int(x)`: of an integer, a double (toward zero), or a text of digits."""
    if type(value) is int:
        return value
    if type(value) is float and math.isfinite(value):
        return whole(int(value))
    if type(value) is str and _integer.match(value):
        return whole(int(value))
    raise EvaluationFailed("something that is no integer")


def _double_of(_run: Run, value: Value) -> float:
    """`double(x)`: of a number, or a text of one."""
    if type(value) in {int, float}:
        return float(value)
    if type(value) is str and _double.match(value):
        return float(value)
    raise EvaluationFailed("something that is no double")


def _string(_run: Run, value: Value) -> str:
    """`string(x)`: of a text, integer or boolean."""
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    return _text(value)


def _pair(work: Callable[[str, str], bool]) -> Callable[[Run, Value, Value], bool]:
    def tested(run: Run, value: Value, part: Value) -> bool:
        text, wanted = _text(value), _text(part)
        run.spend(size_steps(text) + size_steps(wanted))
        return work(text, wanted)

    return tested


_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_UPPER: Final = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}


def _translated(table: dict[int, int]) -> Callable[[Run, Value], str]:
    def changed(run: Run, value: Value) -> str:
        text = _text(value)
        run.spend(4 * size_steps(text))
        return text.translate(table)

    return changed


def _bucket(run: Run, seed: Value, unit: Value) -> float:
    """`bucket(seed, unit)`: where a unit stands in [0, 1), by the hash that experiments use (GrowthBook's version 2)."""
    name, key = _text(seed), _text(unit)
    if len(name) + len(key) > UNIT_MAX:
        raise EvaluationFailed("a bucket of a text that is too long")
    run.spend(len(name) + len(key))
    return bucket_of(name, key)


class Said(NamedTuple):
    """What a macro says of each member: under which name, by which part, and what saying it once takes."""

    name: str
    part: Part
    steps: int


Members = list[Value] | dict[str, Value]  # of an object its keys


def _each(run: Run, said: Said, member: Value) -> Value:
    run.spend(said.steps)
    run.names[said.name] = member
    return said.part(run)


def _holds(run: Run, said: Said, member: Value) -> bool:
    value = _each(run, said, member)
    if type(value) is not bool:
        raise EvaluationFailed("a condition that is no boolean")
    return value


def _decided(run: Run, found: Members, said: Said, *, decisive: bool) -> bool:
    """Whether one member gives the value that decides; then failures of the others do not count."""
    failed: EvaluationFailed | None = None
    for member in found:
        try:
            if _holds(run, said, member) is decisive:
                return True
        except EvaluationFailed as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return False


def _all(run: Run, found: Members, said: Said) -> bool:
    return not _decided(run, found, said, decisive=False)


def _exists(run: Run, found: Members, said: Said) -> bool:
    return _decided(run, found, said, decisive=True)


def _exists_one(run: Run, found: Members, said: Said) -> bool:
    return sum(_holds(run, said, member) for member in found) == 1


def _filter(run: Run, found: Members, said: Said) -> list[Value]:
    return [member for member in found if _holds(run, said, member)]


def _mapped(run: Run, found: Members, said: Said) -> list[Value]:
    return [_each(run, said, member) for member in found]


FUNCTIONS: Final[dict[str, Call]] = {
    "size": Call(1, _size),
    "int": Call(1, _int),
    "double": Call(1, _double_of),
    "string": Call(1, _string),
    "bucket": Call(2, _bucket),
    "now": Call(0, lambda run: run.time_ms()),
    "random": Call(0, lambda run: run.chance()),
}
METHODS: Final[dict[str, Call]] = {
    "size": Call(1, _size),
    "startsWith": Call(2, _pair(str.startswith)),
    "endsWith": Call(2, _pair(str.endswith)),
    "contains": Call(2, _pair(str.__contains__)),
    "lowerAscii": Call(1, _translated(_LOWER)),
    "upperAscii": Call(1, _translated(_UPPER)),
}
MACROS: Final[dict[str, Callable[[Run, Members, Said], Value]]] = {
    "all": _all,
    "exists": _exists,
    "exists_one": _exists_one,
    "filter": _filter,
    "map": _mapped,
}
