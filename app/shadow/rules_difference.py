"""How two answers of a rule differ: one word for the report, and the fields. Pure."""

from __future__ import annotations

import re
from typing import Any, Final, Literal, NamedTuple, get_args

FIELDS_MAX: Final = 50  # fields named of one difference; an answer that differs in more differs everywhere
ANYTHING: Final = "*"  # stands in a pointer for an index, and for a key that is no name but data

Kind = Literal[
    "same", "value", "type", "missing_field", "extra_field", "challenger_error", "challenger_timeout", "champion_error"
]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

_named = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}\Z")
_digits = re.compile(r"[0-9]{5}")


class Judged(NamedTuple):
    """What became of one evaluation.

    answer   JSON value; None when it failed
    failure  None, `timeout` when the budget was spent, or why there is no answer: words of ours, nothing of the input
    us       microseconds that it took
    """

    answer: Any
    failure: str | None
    us: int


class Difference(NamedTuple):
    """How an answer differs from the champion's: the gravest kind, and RFC 6901 pointers to what differs."""

    kind: Kind
    fields: tuple[str, ...] = ()


SAME: Final = Difference("same")
TIMEOUT: Final = "timeout"


def difference(champion: Judged, other: Judged, ignored: tuple[str, ...] = ()) -> Difference:
    """Return how another evaluation differs from the champion's.

    ignored  pointers to fields that do not count, with all below them; `*` for every element of a list
    """
    if champion.failure is not None or other.failure is not None:
        return _of_failures(champion, other)
    found: list[tuple[Kind, str]] = []
    _walk(champion.answer, other.answer, "", ignored, found)
    if not found:
        return SAME
    gravest = max((kind for kind, _ in found), key=KINDS.index)
    return Difference(gravest, tuple(dict.fromkeys(pointer for _, pointer in found))[:FIELDS_MAX])


def _of_failures(champion: Judged, other: Judged) -> Difference:
    """Two evaluations that fail are the same, whatever the reason: neither decides anything."""
    if other.failure is None:
        return Difference("champion_error")
    if champion.failure is None:
        return Difference("challenger_timeout" if other.failure == TIMEOUT else "challenger_error")
    return SAME


def _walk(one: Any, two: Any, at: str, ignored: tuple[str, ...], found: list[tuple[Kind, str]]) -> None:
    if at in ignored:
        return
    if type(one) is dict and type(two) is dict:
        _walk_members(one, two, at, ignored, found)
    elif type(one) is list and type(two) is list:
        if len(one) != len(two):
            found.append(("value", at))
        for first, second in zip(one, two, strict=False):
            _walk(first, second, f"{at}/{ANYTHING}", ignored, found)
    elif _sort(one) != _sort(two):
        found.append(("type", at))
    elif one != two:
        found.append(("value", at))


def _walk_members(
    one: dict[str, Any], two: dict[str, Any], at: str, ignored: tuple[str, ...], found: list[tuple[Kind, str]]
) -> None:
    for key in one | two:
        place = f"{at}/{pointer_part(key)}"
        if key in one and key in two:
            _walk(one[key], two[key], place, ignored, found)
        elif place not in ignored:
            found.append(("missing_field" if key in one else "extra_field", place))


def _sort(value: Any) -> type:
    return float if type(value) is int else type(value)


def pointer_part(key: str) -> str:
    """Return a key as a part of a pointer; one that may be data of a person or a number of a card is not shown."""
    return key if _named.match(key) and not _digits.search(key) else ANYTHING
