"""What samples show."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shadow.rules_masking import CUT, DEPTH_MAX, HIDDEN_MAX, MASKED, MEMBERS_MAX, TEXT_MAX, VALUES_MAX, Sample
from tests.cost import least_cost_s

CARD = "4111111111111111"


def mask(value: Any, names: frozenset[str] = frozenset()) -> Any:
    """Return what a sample shows of an input with this in it."""
    return Sample(names).input({"x": value})["x"]


@pytest.mark.parametrize(
    "name",
    ["email", "Email", "user_email", "phone", "mobileNumber", "card", "cardNumber", "pan", "cvv", "iban", "password", "api_key",
     "token", "Authorization", "cookie", "first_name", "address", "ip", "client_ip", "birthdate", "ssn", "user", "customer_id",
     "tel", "recipient", "payee"],
)  # fmt: skip
def test_what_stands_under_a_private_name_is_masked_whatever_it_is(name: str) -> None:
    assert mask({name: {"deep": [1, 2]}, "amount": 5}) == {name: MASKED, "amount": 5}


@pytest.mark.parametrize(
    "name", ["amount", "country", "plan", "score", "items", "total", "currency", "tier", "ratio", "zone"]
)
def test_what_a_comparison_is_read_for_stays(name: str) -> None:
    assert mask({name: 5}) == {name: 5}


@pytest.mark.parametrize(
    "text",
    [CARD, "4111 1111 1111 1111", "4111-1111-1111-1111", "pay 4111.1111.1111.1111 now", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
     "\u0664\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661", "x4111111111111111y",
     "anna@example.com", "mail anna@example.com, please", "shx_live_0123456789abcdefghijklmnop",
     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.sig1", "4111_1111_1111_1111", "4111\n1111\n1111\n1111",
     "4111    1111    1111    1111", "anna\uff20example.com", "+49 170 123456"],
)  # fmt: skip
def test_a_text_that_looks_private_is_masked_under_any_name(text: str) -> None:
    shown = str(mask({"plan": text, "list": [text]}))

    assert MASKED in shown
    assert text not in shown
    assert not re.search(r"\d{5}", shown)


@pytest.mark.parametrize("number", [int(CARD), -int(CARD), float(CARD), 10**11, 4.111111111111111, 0.4111111111111111])
def test_a_number_never_shows_the_digits_of_a_card(number: float) -> None:
    assert not re.search(r"1{8}", repr(mask({"plan": number})))


def test_a_key_that_is_data_is_not_shown() -> None:
    shown = mask({CARD: 1, "anna@example.com": 2, "x" * 65: 3, "plan": 4})

    assert shown == {"*": MASKED, "plan": 4}


def test_further_names_are_masked_as_the_rule_says() -> None:
    assert mask({"Plan": 1, "tier": 2}, frozenset({"plan"})) == {"Plan": MASKED, "tier": 2}


def test_a_sample_is_bounded_in_every_direction() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]

    shown = mask({"deep": deep, "long": "ab " * 9_000, "list": [1] * 999, "plan": {f"a{n}": n for n in range(999)}})

    assert str(shown["deep"]) == "[" * (DEPTH_MAX - 1) + f"'{CUT}'" + "]" * (DEPTH_MAX - 1)
    assert len(shown["long"]) == TEXT_MAX + len(CUT)
    assert len(shown["list"]) == len(shown["plan"]) == MEMBERS_MAX + 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.just(CARD) | st.just(int(CARD)) | st.just("4111 1111-1111 1111"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just(CARD), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_no_card_number_survives_in_any_structure_and_the_input_stays(value: Any) -> None:
    before = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)

    shown = orjson.dumps(mask(value)).decode()

    assert not re.search(r"4\D{0,3}1(\D{0,3}1){10}", shown)
    assert orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS) == before


@pytest.mark.parametrize("made", ["Anna Lind", "Dear ANNA LIND!", "anna lind", 71_234_567, "id 71234567"])
def test_an_answer_that_was_made_from_a_private_field_is_masked_under_any_name(made: Any) -> None:
    sample = Sample(frozenset({"plan"}))
    sample.input({"customer": {"parts": [{"first": "Anna Lind"}]}, "plan": 71_234_567, "tier": "gold"})

    shown = sample.answer({"label": made, "list": [made], "tier": "gold", str(made): 1})

    assert shown == {"label": MASKED, "list": [MASKED], "tier": "gold", "*": 1}


def test_a_text_of_the_expression_is_shown_although_the_input_has_it_under_a_private_name() -> None:
    sample = Sample(said=['input.amount > 1 ? "review" : "allow"'])
    sample.input({"comment": "Review", "note": "revue"})

    assert sample.answer(["review", "revue", "it is revue"]) == ["review", MASKED, MASKED]


def test_with_more_private_values_than_can_be_looked_for_an_answer_shows_no_text_but_those_of_the_expression() -> None:
    sample = Sample(said=["'allow'"])
    sample.input({"name": [f"person {number}" for number in range(HIDDEN_MAX + 1)]})

    assert sample.answer({"a": "allow", "b": "person 0", "c": 5}) == {"*": 5}


def test_a_sample_shows_a_bounded_number_of_values() -> None:
    shown = str(mask([[1] * MEMBERS_MAX] * MEMBERS_MAX))

    assert shown.count("1") <= VALUES_MAX < shown.count("1") + shown.count(CUT)


@pytest.mark.parametrize("run", ["a", "-", "a@", "1,", "a1", "\u00e9", "+1", "_1"])
def test_masking_the_longest_input_takes_a_few_milliseconds_whatever_its_texts(run: str) -> None:
    texts = [run * (800 // len(run))] * MEMBERS_MAX

    assert least_cost_s(lambda: mask(texts), 0.05) < 0.05
