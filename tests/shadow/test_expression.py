"""The language of rules: what it means, what it refuses, and that nothing written in it runs away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shadow.bucketing import bucket_of
from app.shadow.expression import ANSWER_NODES_MAX, Expression
from app.shadow.expression_run import STEPS_MAX, BudgetSpent, EvaluationFailed
from app.shadow.expression_text import DEPTH_MAX, NODES_MAX, TEXT_MAX, ExpressionRefused
from tests.cost import least_cost_s

INPUT: dict[str, Any] = {
    "a": 5, "b": -3, "f": 2.5, "s": "Hello", "n": None, "yes": True, "l": [1, 2, 3], "m": {"x": 1, "y": "z"},
    "mix": [1, "a", 2.5, None], "big": 2**62, "e": [], "z": 0,
}  # fmt: skip

# Answers that cel-cpp, Google's implementation of CEL (cel-expr-python 0.1.3), gave to the same expressions and input.
AS_CEL = [
    ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("-7 / 2", -3), ("7 / -2", -3), ("-7 % 3", -1), ("7 % -3", 1), ("2.5 * 2.0", 5.0),
    ("1.0 / 0.0 > 1e308", True), ("'a' + \"b\"", "ab"), ("[1] + [2]", [1, 2]), ("input.a == 5.0", True), ("input.s == 1", False),
    ("input.yes == 1", False), ("input.n == 0", False), ("null == input.n", True), ("[1, 'a'] == [1.0, 'a']", True),
    ("{'x': 1, 'y': 'z'} == input.m", True), ("input.l == [1, 2]", False), ("input.a < 5.5", True), ("'a' < 'b'", True),
    ("false < true", True), ("2 in input.l", True), ("2.0 in input.l", True), ("'x' in input.m", True), ("'q' in input.m", False),
    ("null in input.mix", True), ("input.m.x", 1), ("input.m['y']", "z"), ("input.l[2]", 3), ("size(input.s)", 5),
    ("input.l.size()", 3), ("size(input.m)", 2), ("input.s.startsWith('He')", True), ("input.s.endsWith('lo')", True),
    ("input.s.contains('ell')", True), ("has(input.m.x)", True), ("has(input.m.q)", False), ("has(input.n)", True),
    ("input.q == 1 || true", True), ("true || input.q == 1", True), ("input.q == 1 && false", False),
    ("input.l.all(x, x > 0)", True), ("input.e.all(x, x > 0)", True), ("input.l.exists(x, x > 2)", True),
    ("input.e.exists(x, true)", False), ("input.mix.exists(x, x > 2)", True), ("input.mix.all(x, x > 2)", False),
    ("input.l.exists_one(x, x == 2)", True), ("input.l.exists_one(x, x > 1)", False), ("input.l.map(x, x * x)", [1, 4, 9]),
    ("input.l.filter(x, x % 2 == 1)", [1, 3]), ("input.m.exists(k, k == 'x')", True),
    ("input.l.map(x, input.l.filter(y, y > x))", [[2, 3], [3], []]), ("int('-12')", -12), ("int(2.9)", 2), ("int(-2.9)", -2),
    ("double('1.5')", 1.5), ("double(3)", 3.0), ("string(12)", "12"), ("string(true)", "true"),
    ("input.a > 3 ? 'many' : 'few'", "many"), ("false ? input.q : 1", 1), ("[1, [2, {'a': null}]]", [1, [2, {"a": None}]]),
    ("'\\u00e9\\n\\''", "\u00e9\n'"), ("size('\u00e9\U0001f600')", 2), ("-input.b", 3), ("!input.yes", False), ("--5", 5),
    ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)), ("1 - -1 // both signs", 2),
]  # fmt: skip
FAILS_IN_CEL_TOO = [
    "input.q", "input.m.q", "input.m['q']", "input.l[3]", "input.l[-1]", "input.n.x", "1 / 0", "1 % 0", "1.5 % 1.0", "1 + 'a'",
    "'a' - 'b'", "1 < 'a'", "null < null", "[1] < [2]", "1 in 'a'", "!1", "-'a'", "1 && true", "1 ? 2 : 3", "1 || false",
    "input.q || false", "input.q && true", "input.mix.all(x, x > 0)", "input.mix.exists(x, x > 5)", "input.l.map(x, x.y)",
    "input.mix.exists_one(x, x > 0)", "input.mix.filter(x, x > 0)", "9223372036854775807 + 1", "input.big * 2", "(1).size()",
    "input.s.startsWith(1)", "input.l.contains(1)", "size(1)", "int('1.5')", "int('a')", "int(1e300)", "double('a')",
    "-(-9223372036854775807 - 1)", "{'a': 1}.map(k, k + 1)", "(1).all(x, true)", "input[1]", "input.l['a']", "{'a': 1, 'a': 2}",
    "input.mix in input.m",
]  # fmt: skip
REFUSED = [
    "", " ", "1 +", "+1", "1 2", "(1", "[1", "{1", "{1 2}", "'a", '"a\nb"', "a", "foo.bar", "input.", "input.1", "input[", "f(1)",
    "input.s.matches('a+')", "size()", "size(1, 2)", "now(1)", "has(input)", "has(1)", "has(input.a == 1)", "input.l.all(x)",
    "input.l.all(1, true)", "input.l.all(input, true)", "input.l.all(x.y, true)", "x", "input.l.map(x, y)", "1.", "1e", "0x10",
    "1u", "b'a'", "'\\q'", "'\\u00'", "'\\ud800'", "'\\u0000'", "9223372036854775808", "99999999999999999999999", "1e999", "1 = 1",
    "1 <> 2", "a & b", "a; b", "`a`", "import", "if", "for (;;) {}", "lambda: 1", "__import__('os')", "input.__class__()", "\x00",
    "\u00e9", "1 ? 2", "1 : 2", "input.s.startsWith('a', 'b')", "[1,]", "@", "#", "$x", "input..a", "random(1)",
]  # fmt: skip


def answer(text: str, data: dict[str, Any] | None = None) -> Any:
    return Expression(text).evaluate(INPUT if data is None else data)[0]


@pytest.mark.parametrize(("text", "expected"), AS_CEL)
def test_an_expression_means_what_cel_says(text: str, expected: Any) -> None:
    found = answer(text)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", FAILS_IN_CEL_TOO)
def test_what_has_no_answer_in_cel_has_none_here_and_tells_nothing_of_the_input(text: str) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        answer(text)

    assert str(failed.value)
    assert not any(str(value) in str(failed.value) for value in ("Hello", 2**62, "2.5"))


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_expression_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ExpressionRefused) as refused:
        Expression(text)

    assert 0 <= refused.value.at <= len(text)
    assert "(at character " in refused.value.detail


def test_beyond_cel_numbers_mix_and_there_are_clock_chance_and_buckets() -> None:
    run = Expression("[now(), random() < 0.5, bucket('seed', input.s)]")

    found, _ = run.evaluate(INPUT, time_ms=lambda: 1_700_000_000_000, chance=lambda: 0.25)

    assert answer("input.a * 1.5 + 1") == 8.5
    assert found == [1_700_000_000_000, True, bucket_of("seed", "Hello")]
    assert answer("'ÄbC'.lowerAscii() + 'ß'.upperAscii()") == "Äbcß"


@pytest.mark.parametrize("text", ["1.0 / 0.0", "{'a': [0.0 / 0.0]}", "-1.0 / 0.0"])
def test_an_answer_that_json_cannot_carry_is_a_failure(text: str) -> None:
    with pytest.raises(EvaluationFailed, match="JSON"):
        answer(text)


DIGITS = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
LARGE: dict[str, Any] = {
    "l": list(range(300)), "t": "a" * 40_000, "big": [[number, str(number)] for number in range(3_000)], "s": "ab" * 20,
    "deep": [[[[1] * 20] * 20] * 20],
}  # fmt: skip


def nested(depth: int, macro: str, inner: str) -> str:
    for name in "abcdefghij"[:depth]:
        inner = f"{DIGITS}.{macro}({name}, {inner})"
    return inner


HOSTILE = {
    "a billion steps": nested(9, "all", "true"),
    "a billion members": nested(9, "map", "1"),
    "failures that are absorbed": nested(9, "exists", "input.q"),
    "doubling a text": "input.l.map(x, input.t + input.t)",
    "doubling a text in a macro": "[input.t].map(x, x + x + x + x + x + x + x + x)",
    "lists of lists": "input.l.map(x, input.l.map(y, input.l))",
    "comparing large lists": "input.l.all(x, input.big == input.big)",
    "comparing deep lists": "input.l.all(x, input.deep == input.deep)",
    "searching a large list": "input.l.all(x, !('q' in input.big))",
    "searching a long text": "input.l.all(x, !input.t.contains(input.s))",
    "changing a long text": "input.l.all(x, input.t.upperAscii() != '')",
    "hashing": "input.l.all(x, input.l.all(y, bucket('seed', 'a unit of some length') >= 0.0))",
    "comparing long texts": "input.l.all(x, input.l.all(y, input.t <= input.t))",
    "making objects": "input.l.map(x, input.l.map(y, {'a': {'b': {'c': x}}}))",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_expression_ends_with_its_budget_in_little_time(name: str) -> None:
    expression = Expression(HOSTILE[name])

    def work() -> None:
        with pytest.raises(BudgetSpent):
            expression.evaluate(LARGE)

    assert least_cost_s(work, 0.1) < 0.1, "5,000 steps take 1 to 4 ms of processor time"


def test_a_large_answer_is_over_the_budget_too() -> None:
    with pytest.raises(BudgetSpent):
        answer("input.l", {"l": [0] * (ANSWER_NODES_MAX + 1)})


@pytest.mark.parametrize(
    "text",
    ["(" * 2_000 + "1" + ")" * 2_000, "[" * 2_000, "!" * 4_000 + "true", "-" * 4_000 + "1", "input" + ".a" * 2_000,
     "input" + "[0" * 1_300, "1" + " + 1" * 1_000, "1" + " ? 1" * 900, "1" + " == 1" * 800, "{" * 3_000],
)  # fmt: skip
def test_a_deep_text_is_refused_and_not_followed(text: str) -> None:
    with pytest.raises(ExpressionRefused):
        Expression(text)


def test_the_limits_of_a_text_hold_exactly() -> None:
    assert answer("(" * (DEPTH_MAX - 1) + "1" + ")" * (DEPTH_MAX - 1)) == 1
    assert answer(" " * (TEXT_MAX - 1) + "1") == 1
    assert answer("[" + ",".join("1" * (NODES_MAX - 1)) + "]") == [1] * (NODES_MAX - 1)
    for text in (" " * TEXT_MAX + "1", "[" + ",".join("1" * NODES_MAX) + "]", "(" * DEPTH_MAX + "1" + ")" * DEPTH_MAX):
        with pytest.raises(ExpressionRefused):
            Expression(text)


def test_the_steps_depend_on_the_expression_and_the_input_alone() -> None:
    expression = Expression("input.l.all(x, x < 1000) && random() < 2.0 ? now() : 0")

    steps = {expression.evaluate(LARGE)[1] for _ in range(5)}

    assert steps == {10 + 300 * 4}


def test_an_evaluation_changes_neither_its_input_nor_another_one() -> None:
    data = {"l": [1, 2], "m": {"a": 1}}
    expression = Expression("input.l.map(x, [x, input.l.map(x, x + 1)]) == [] ? {} : {'m': input.m, 'l': input.l + [3]}")

    first, second = expression.evaluate(data)[0], expression.evaluate(data)[0]

    assert data == {"l": [1, 2], "m": {"a": 1}}
    assert first == second == {"m": {"a": 1}, "l": [1, 2, 3]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="input.al[]{}()'\"+-*/%<>=!&|?:, 019exs\\", max_size=40),
    st.dictionaries(st.text(max_size=3), json_values),
)
def test_any_text_over_any_input_is_refused_fails_or_answers(text: str, data: dict[str, Any]) -> None:
    try:
        found, steps = Expression(text).evaluate(data)
    except (ExpressionRefused, EvaluationFailed, BudgetSpent):
        return
    assert 0 < steps <= STEPS_MAX
    assert found is None or isinstance(found, bool | int | float | str | list | dict)


@settings(max_examples=60, deadline=None)
@given(json_values, json_values)
def test_equality_is_that_of_json_where_only_numbers_cross_their_types(one: Any, two: Any) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, list):
            return [shape(item) for item in value]
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return ("number", value) if type(value) in {int, float} else (type(value).__name__, value)

    assert answer("input.a == input.b", {"a": one, "b": two}) is (shape(one) == shape(two))
    assert answer("input.a in [input.b]", {"a": one, "b": two}) is (shape(one) == shape(two))
