"""Long lists as bytes: made once for a revision, kept within bounds."""

from __future__ import annotations

import asyncio
import contextlib

import orjson
from aiohttp import web

from app.locator.api import LOCATOR
from app.locator.prometheus_api import prometheus_targets
from app.locator.record import encode
from app.locator.views import KEPT_MAX, KEPT_MAX_BYTES, SLICE, WHOLE_MAX_BYTES, Views, is_long, parts_of
from app.web.request import Request
from app.web.routes import Answer
from tests.locator.fleet import fleet, instance
from tests.locator.replicas import instance as registered
from tests.locator.replicas import replicas


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


async def test_all_who_ask_at_once_get_the_same_and_who_leaves_takes_it_from_nobody() -> None:
    views, made = Views(), []

    def make(value: int) -> int:
        made.append(value)
        return value

    first, *others = [asyncio.create_task(views.list_of("web", 7, range(250), make)) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    bodies = await asyncio.gather(*others)

    assert len(made) == 250
    assert all(body is bodies[0] for body in bodies)
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert first.cancelled()


async def test_long_lists_are_made_one_part_for_each_turn_of_the_loop_however_many_ask() -> None:
    views, turns, made_in = Views(), 0, []

    def make(value: int) -> int:
        made_in.append(turns)
        return value

    readers = [asyncio.create_task(views.whole(parts_of(range(3 * SLICE), make))) for _ in range(4)]
    while not all(reader.done() for reader in readers):
        turns += 1
        await asyncio.sleep(0)

    assert len(made_in) == 4 * 3 * SLICE
    assert max(made_in.count(turn) for turn in set(made_in)) == SLICE
    assert orjson.loads(readers[0].result()) == list(range(3 * SLICE))


def test_parts_make_an_array_of_any_length() -> None:
    for size in (0, 1, SLICE, SLICE + 1):
        assert orjson.loads(b"".join(parts_of(range(size), lambda value: value))) == list(range(size))


def test_a_list_is_long_by_what_its_instances_tell() -> None:
    large = instance(1, metadata={f"k{number}": "v" * 1_000 for number in range(4)})

    assert not is_long(fleet(1_000).by_id.values())
    assert is_long([large] * (WHOLE_MAX_BYTES // 4_000))


async def test_prometheus_is_never_given_a_kept_list_of_an_index_that_knows_more(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        app = web.Application()
        app[LOCATOR] = one
        request = Request(app, "GET", "/v1/sd/prometheus", {}, "", {}, None, None)

        asking = asyncio.create_task(prometheus_targets(request))
        await asyncio.sleep(0)
        one.directory.apply([[7, "put", "web/a", "up", "none", "none", "g1", encode(registered()).decode()]], 0.0)
        await asking
        answer = await prometheus_targets(request)

        assert isinstance(answer, Answer)
        assert len(orjson.loads(answer.body)) == 1
