"""How two answers differ."""

from __future__ import annotations

from typing import Any

import pytest

from app.shadow.rules_difference import FIELDS_MAX, KINDS, SAME, Judged, difference


def judged(answer: Any = None, failure: str | None = None) -> Judged:
    return Judged(answer, failure, 5)


@pytest.mark.parametrize(
    ("one", "two", "kind", "fields"),
    [
        (1, 1, "same", ()), (1, 1.0, "same", ()), ({"a": [1, {"b": None}]}, {"a": [1.0, {"b": None}]}, "same", ()),
        (1, 2, "value", ("",)), ("a", "b", "value", ("",)), (True, False, "value", ("",)),
        (1, True, "type", ("",)), (1, "1", "type", ("",)), (None, 0, "type", ("",)), ([], {}, "type", ("",)),
        ({"d": "allow", "s": 1}, {"d": "deny", "s": 1}, "value", ("/d",)), ({"a": {"b": 1}}, {"a": {"b": 2}}, "value", ("/a/b",)),
        ({"a": 1}, {}, "missing_field", ("/a",)), ({}, {"a": 1}, "extra_field", ("/a",)),
        ({"a": 1, "b": 1}, {"a": 2, "c": 1}, "extra_field", ("/a", "/b", "/c")),
        ({"a": 1, "b": 1}, {"a": "1", "b": 2}, "type", ("/a", "/b")),
        ([1, 2], [1, 3], "value", ("/*",)), ([1], [1, 2], "value", ("",)), ([{"x": 1}], [{"x": 2}], "value", ("/*/x",)),
    ],
)  # fmt: skip
def test_the_gravest_kind_and_all_fields_are_told(one: Any, two: Any, kind: str, fields: tuple[str, ...]) -> None:
    assert difference(judged(one), judged(two)) == (kind, fields)


@pytest.mark.parametrize(
    ("champion", "other", "kind"),
    [(None, "a field is missing", "challenger_error"), (None, "timeout", "challenger_timeout"),
     ("a field is missing", None, "champion_error"), ("timeout", None, "champion_error"),
     ("timeout", "timeout", "same"), ("timeout", "a field is missing", "same")],
)  # fmt: skip
def test_two_failures_are_the_same_and_one_is_a_difference(champion: str | None, other: str | None, kind: str) -> None:
    assert difference(judged(1, champion), judged(1, other)) == (kind, ())


def test_ignored_fields_do_not_count_nor_does_what_is_below_them() -> None:
    one = {"id": 1, "items": [{"id": 1, "x": {"y": 1}}], "gone": 1}
    two = {"id": 2, "items": [{"id": 2, "x": {"y": 2}}], "new": 1}

    ignored = ("/id", "/items/*/id", "/items/*/x", "/gone", "/new")

    assert difference(judged(one), judged(two), ignored) == SAME
    assert difference(judged(one), judged(two), ignored[1:]).fields == ("/id",)


def test_a_key_that_may_be_data_of_a_person_is_not_in_a_pointer() -> None:
    for key in ("anna@example.com", "4111111111111111", "a b", "x" * 41, "", "id12345"):
        assert difference(judged({key: 1}), judged({key: 2})).fields == ("/*",)


def test_the_fields_of_one_difference_are_bounded() -> None:
    found = difference(judged({f"a{n}": 1 for n in range(99)}), judged({f"a{n}": 2 for n in range(99)}))

    assert len(found.fields) == FIELDS_MAX


def test_every_kind_can_be_told() -> None:
    assert len(KINDS) == 8
