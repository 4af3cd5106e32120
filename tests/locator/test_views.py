"""Long lists as bytes: made once for a revision, kept within bounds."""

from __future__ import annotations

import orjson

from app.locator.views import KEPT_MAX, KEPT_MAX_BYTES, Views


async def test_a_list_is_made_once_for_each_revision() -> None:
    views, made = Views(), []

    def make(value: int) -> dict[str, int]:
        made.append(value)
        return {"n": value}

    first = await views.list_of("web", 7, range(250), make)
    again = await views.list_of("web", 7, range(250), make)
    later = await views.list_of("web", 8, [1], make)

    assert orjson.loads(first) == [{"n": number} for number in range(250)]
    assert again is first
    assert later == b'[{"n":1}]'
    assert len(made) == 251


async def test_what_is_kept_is_bounded_in_number_and_in_bytes() -> None:
    views = Views()
    for number in range(KEPT_MAX + 5):
        views.keep(number, 1, b"[]")
    assert views.kept(4, 1) is None
    assert views.kept(5, 1) == b"[]"

    views.keep("large", 1, b"x" * KEPT_MAX_BYTES)
    assert views.kept(KEPT_MAX + 4, 1) is None
    views.keep("large", 2, b"x")
    assert (views.kept("large", 1), views.kept("large", 2)) == (None, b"x")
