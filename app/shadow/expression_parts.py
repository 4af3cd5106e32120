"""Each form of the language as a closure: operators, fields, calls. `app.shadow.expression` says what they mean. Pure."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Final

from app.shadow.expression_calls import FUNCTIONS, MACROS, METHODS, Said
from app.shadow.expression_run import EvaluationFailed, Part, Run, Value, equal, size_steps, whole
from app.shadow.expression_text import ExpressionRefused, Node

_NUMBERS: Final = frozenset({int, float})
_ORDERED: Final = frozenset({int, float, str, bool})


def compile_node(node: Node, names: frozenset[str]) -> Part:
    """Return what evaluates a tree. `names` are those of the macros around it. Raises ExpressionRefused."""
    build = _BUILDERS.get(node.form)
    if build is None:
        raise AssertionError(f"the parser made a node of form {node.form}")
    return build(node, names)


def weight_of(node: Node) -> int:
    """Return the steps that a tree takes: one for each part. What a macro says of each member is counted when it is said."""
    if node.form == "method" and node.value in MACROS:
        return 1 + weight_of(node.parts[0])
    return 1 + sum(map(weight_of, node.parts))


def _parts(node: Node, names: frozenset[str]) -> list[Part]:
    return [compile_node(part, names) for part in node.parts]


def _literal(node: Node, _names: frozenset[str]) -> Part:
    value = node.value

    def literal(_run: Run) -> Value:
        return value

    return literal


def _name(node: Node, names: frozenset[str]) -> Part:
    word = node.value
    if word in names:

        def bound(run: Run) -> Value:
            return run.names[word]

        return bound
    if word != "input":
        raise ExpressionRefused(node.at, "Expected input, or the name that a macro gives")

    def whole_input(run: Run) -> Value:
        return run.input

    return whole_input


def _field(node: Node, names: frozenset[str]) -> Part:
    inner, key = compile_node(node.parts[0], names), node.value

    def field(run: Run) -> Value:
        value = inner(run)
        if type(value) is not dict:
            raise EvaluationFailed("a field of something that is no object")
        if key not in value:
            raise EvaluationFailed("a field is missing")
        return value[key]

    return field


def _index(node: Node, names: frozenset[str]) -> Part:
    inner, place = _parts(node, names)

    def index(run: Run) -> Value:
        value, key = inner(run), place(run)
        if type(value) is dict and type(key) is str:
            if key not in value:
                raise EvaluationFailed("a field is missing")
            return value[key]
        if type(value) is list and type(key) is int:
            if not 0 <= key < len(value):
                raise EvaluationFailed("an index is outside its list")
            return value[key]
        raise EvaluationFailed("an index of the wrong type")

    return index


def _list(node: Node, names: frozenset[str]) -> Part:
    parts = _parts(node, names)

    def made(run: Run) -> Value:
        return [part(run) for part in parts]

    return made


def _map(node: Node, names: frozenset[str]) -> Part:
    parts = _parts(node, names)
    pairs = list(zip(parts[::2], parts[1::2], strict=True))

    def made(run: Run) -> Value:
        found: dict[str, Value] = {}
        for key_of, value_of in pairs:
            key = key_of(run)
            if type(key) is not str:
                raise EvaluationFailed("a key that is no text")
            if key in found:
                raise EvaluationFailed("a key stands twice")
            found[key] = value_of(run)
        return found

    return made


def _choice(node: Node, names: frozenset[str]) -> Part:
    condition, then, other = _parts(node, names)

    def choice(run: Run) -> Value:
        return (then if _truth(condition(run)) else other)(run)

    return choice


def _truth(value: Value) -> bool:
    if type(value) is not bool:
        raise EvaluationFailed("a condition that is no boolean")
    return value


def _junction(decisive: bool) -> Callable[[Node, frozenset[str]], Part]:  # noqa: FBT001 - which of the two truth values
    """`||` is decided by one true part, `&&` by one false one: then failures of the other parts do not count."""

    def build(node: Node, names: frozenset[str]) -> Part:
        parts = _parts(node, names)

        def junction(run: Run) -> Value:
            failed: EvaluationFailed | None = None
            for part in parts:
                try:
                    if _truth(part(run)) is decisive:
                        return decisive
                except EvaluationFailed as error:
                    failed = failed or error
            if failed is not None:
                raise failed
            return not decisive

        return junction

    return build


def _not(node: Node, names: frozenset[str]) -> Part:
    (inner,) = _parts(node, names)

    def negation(run: Run) -> Value:
        return not _truth(inner(run))

    return negation


def _negate(node: Node, names: frozenset[str]) -> Part:
    (inner,) = _parts(node, names)

    def minus(run: Run) -> Value:
        value = inner(run)
        if type(value) is int:
            return whole(-value)
        if type(value) is float:
            return -value
        raise EvaluationFailed("a sign before something that is no number")

    return minus


def _equality(*, wanted: bool) -> Callable[[Node, frozenset[str]], Part]:
    def build(node: Node, names: frozenset[str]) -> Part:
        left, right = _parts(node, names)

        def equality(run: Run) -> Value:
            return equal(left(run), right(run), run) is wanted

        return equality

    return build


def _order(compare: Callable[[Any, Any], bool]) -> Callable[[Node, frozenset[str]], Part]:
    def build(node: Node, names: frozenset[str]) -> Part:
        left, right = _parts(node, names)

        def ordered(run: Run) -> Value:
            one, two = left(run), right(run)
            kind, other = type(one), type(two)
            if (kind is not other or kind not in _ORDERED) and not (kind in _NUMBERS and other in _NUMBERS):
                raise EvaluationFailed("a comparison of types that have no order")
            if kind is str:
                run.spend(size_steps(one))
            return compare(one, two)

        return ordered

    return build


def _within(node: Node, names: frozenset[str]) -> Part:
    left, right = _parts(node, names)

    def within(run: Run) -> Value:
        wanted, place = left(run), right(run)
        if type(place) is dict and type(wanted) is str:
            return wanted in place
        if type(place) is not list:
            raise EvaluationFailed("a search in something that is no list, or for something that is no field of an object")
        run.spend(size_steps(place))
        return any(equal(wanted, one, run) for one in place)

    return within


def _plus(node: Node, names: frozenset[str]) -> Part:
    left, right = _parts(node, names)

    def plus(run: Run) -> Value:
        one, two = left(run), right(run)
        kind = type(one)
        if kind in {str, list} and type(two) is kind:
            run.spend(size_steps(one) + size_steps(two))
            return one + two
        return _number(operator.add, one, two)

    return plus


def _number(work: Callable[[Any, Any], Any], one: Value, two: Value) -> Value:
    if type(one) not in _NUMBERS or type(two) not in _NUMBERS:
        raise EvaluationFailed("arithmetic with types that have none")
    result = work(one, two)
    return whole(result) if type(result) is int else result


def _arithmetic(work: Callable[[Any, Any], Any]) -> Callable[[Node, frozenset[str]], Part]:
    def build(node: Node, names: frozenset[str]) -> Part:
        left, right = _parts(node, names)

        def arithmetic(run: Run) -> Value:
            return _number(work, left(run), right(run))

        return arithmetic

    return build


def _divided(one: Any, two: Any) -> Any:
    """Integers toward zero; doubles by IEEE 754."""
    if type(one) is int and type(two) is int:
        if two == 0:
            raise EvaluationFailed("a division by zero")
        quotient = abs(one) // abs(two)
        return quotient if (one < 0) == (two < 0) else -quotient
    if two == 0:
        if one == 0 or math.isnan(one):
            return math.nan
        return math.copysign(math.inf, one) * math.copysign(1.0, two)
    return one / two


def _remainder(one: Any, two: Any) -> Any:
    """With the sign of the first; integers only."""
    if type(one) is not int or type(two) is not int:
        raise EvaluationFailed("a remainder of something that is no integer")
    if two == 0:
        raise EvaluationFailed("a division by zero")
    rest = abs(one) % abs(two)
    return -rest if one < 0 else rest


def _call(node: Node, names: frozenset[str]) -> Part:
    if node.value == "has":
        return _has(node, names)
    function = FUNCTIONS.get(node.value)
    if function is None:
        raise ExpressionRefused(node.at, "Expected one of the functions " + ", ".join(sorted({*FUNCTIONS, "has"})))
    if len(node.parts) != function.arguments:
        raise ExpressionRefused(node.at, f"Expected {function.arguments} arguments")
    return _applied(function.work, _parts(node, names))


def _method(node: Node, names: frozenset[str]) -> Part:
    macro = MACROS.get(node.value)
    if macro is not None:
        return _macro(macro, node, names)
    method = METHODS.get(node.value)
    if method is None:
        raise ExpressionRefused(node.at, "Expected one of the methods " + ", ".join(sorted({*METHODS, *MACROS})))
    if len(node.parts) != method.arguments:
        raise ExpressionRefused(node.at, f"Expected {method.arguments - 1} arguments")
    return _applied(method.work, _parts(node, names))


def _applied(work: Callable[..., Value], parts: list[Part]) -> Part:
    def applied(run: Run) -> Value:
        return work(run, *[part(run) for part in parts])

    return applied


def _macro(work: Callable[[Run, Any, Said], Value], node: Node, names: frozenset[str]) -> Part:
    if len(node.parts) != 3 or node.parts[1].form != "name" or node.parts[1].value == "input":
        raise ExpressionRefused(node.at, "Expected a name other than input, and what is said of it")
    name = node.parts[1].value
    place = compile_node(node.parts[0], names)
    said = Said(name, compile_node(node.parts[2], names | {name}), 1 + weight_of(node.parts[2]))

    def macro(run: Run) -> Value:
        found = place(run)
        if type(found) not in {list, dict}:
            raise EvaluationFailed("a macro over something that is no list and no object")
        outer = run.names
        run.names = dict(outer)
        try:
            return work(run, found, said)
        finally:
            run.names = outer

    return macro


def _has(node: Node, names: frozenset[str]) -> Part:
    if len(node.parts) != 1 or node.parts[0].form != "field":
        raise ExpressionRefused(node.at, "Expected one field, like has(input.amount)")
    inner, key = compile_node(node.parts[0].parts[0], names), node.parts[0].value

    def has(run: Run) -> Value:
        value = inner(run)
        if type(value) is not dict:
            raise EvaluationFailed("a field of something that is no object")
        return key in value

    return has


_BUILDERS: Final[dict[str, Callable[[Node, frozenset[str]], Part]]] = {
    "literal": _literal, "name": _name, "field": _field, "index": _index, "list": _list, "map": _map, "?": _choice,
    "||": _junction(decisive=True), "&&": _junction(decisive=False), "!": _not, "negate": _negate,
    "==": _equality(wanted=True), "!=": _equality(wanted=False), "<": _order(operator.lt), "<=": _order(operator.le),
    ">": _order(operator.gt), ">=": _order(operator.ge), "in": _within, "+": _plus, "-": _arithmetic(operator.sub),
    "*": _arithmetic(operator.mul), "/": _arithmetic(_divided), "%": _arithmetic(_remainder), "call": _call,
    "method": _method,
}  # fmt: skip
