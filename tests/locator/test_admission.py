"""Changes of the registry wait for their turn: a few at a time, key after key, and each key at its rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from app.access.scope import ROOT, Rate
from app.locator.admission import AT_WORK_MAX, WAITING_OF_KEY_MAX, Admission
from app.locator.api import LOCATOR
from app.locator.routes import LOCATOR_ROUTES
from app.turns import Line, Turns
from tests.locator.replicas import Clock, eventually, replicas
from tests.route_client import Reply, call, serving

PLAIN: dict[str, Any] = {"host": "10.0.0.1", "port": 8080}
SLOWEST = Rate(0.001, 1)  # one change, and the next one in a quarter of an hour
PLACE = "/v1/services/web/instances/a"


class Caller:
    """Calls of a key that change something until they are told to end."""

    def __init__(self, admission: Admission, order: list[str]) -> None:
        """`order` gets the key of each call that is let in."""
        self.admission = admission
        self.order = order
        self.ending = asyncio.Event()

    async def change(self, key_id: str) -> None:
        """Be let in, and stay."""
        async with self.admission.turn(key_id) as refusal:
            assert refusal is None
            self.order.append(key_id)
            await self.ending.wait()

    def begin(self, key_id: str, count: int) -> list[asyncio.Task[None]]:
        """Begin so many calls."""
        return [asyncio.create_task(self.change(key_id)) for _ in range(count)]


async def turns_of_the_loop(until: Callable[[], bool]) -> int:
    """Return how many turns of the event loop pass until something holds."""
    for number in range(1_000):
        if until():
            return number
        await asyncio.sleep(0)
    raise AssertionError("it never came to hold")


async def test_one_turn_of_the_loop_lets_one_change_in_and_no_more_than_32_are_at_work() -> None:
    order: list[str] = []
    caller = Caller(Admission(Clock()), order)

    calls = caller.begin("flood", 200)
    took = await turns_of_the_loop(lambda: len(order) == AT_WORK_MAX)
    for _ in range(50):
        await asyncio.sleep(0)

    assert took >= AT_WORK_MAX
    assert len(order) == AT_WORK_MAX
    assert caller.admission.waiting == 200 - AT_WORK_MAX
    caller.ending.set()
    await asyncio.gather(*calls)
    assert len(order) == 200
    assert caller.admission.waiting == 0


async def test_another_key_is_next_however_many_of_the_first_one_wait() -> None:
    order: list[str] = []
    flood, other = Caller(Admission(Clock()), order), Caller(Admission(Clock()), order)
    other.admission = flood.admission

    calls = flood.begin("flood", 500)
    await turns_of_the_loop(lambda: len(order) == AT_WORK_MAX)
    calls += other.begin("other", 2)
    await turns_of_the_loop(lambda: flood.admission.waiting == 502 - AT_WORK_MAX)
    flood.ending.set()
    await turns_of_the_loop(lambda: order.count("other") == 2)

    assert order.index("other") <= AT_WORK_MAX + 1
    assert len(order) <= AT_WORK_MAX + 4
    other.ending.set()
    await asyncio.gather(*calls)


async def test_a_key_beyond_its_burst_goes_on_at_its_rate() -> None:
    clock = Clock()
    order: list[str] = []
    caller = Caller(Admission(clock, Rate(1_000, 5)), order)
    caller.ending.set()

    calls = caller.begin("flood", 12)
    await turns_of_the_loop(lambda: len(order) == 5)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(order) == 5
    clock.now_s += 0.003
    await eventually(lambda: len(order) == 8)
    assert caller.admission.waiting == 4
    clock.now_s += 0.004
    await asyncio.gather(*calls)

    assert len(order) == 12


async def test_a_crowd_is_refused_at_once_with_429_if_the_key_asks_for_too_much_and_503_if_the_registry_is_behind() -> None:
    slow, stuck = Admission(Clock(), SLOWEST), Admission(Clock())
    crowds = [Caller(slow, []), Caller(stuck, [])]
    calls = crowds[0].begin("flood", 1) + crowds[1].begin("flood", AT_WORK_MAX)
    await turns_of_the_loop(lambda: [len(one.order) for one in crowds] == [1, AT_WORK_MAX])
    calls += [call for one in crowds for call in one.begin("flood", WAITING_OF_KEY_MAX)]
    await turns_of_the_loop(lambda: slow.waiting == stuck.waiting == WAITING_OF_KEY_MAX)
    await asyncio.sleep(0)

    limited, busy = await slow.enter("flood"), await stuck.enter("flood")

    assert limited is not None
    assert busy is not None
    assert (limited.status, limited.code, slow.limited) == (429, "rate_limited", 1)
    assert limited.headers == {
        "RateLimit-Policy": '"registrations";q=1;w=1000', "RateLimit": '"registrations";r=0;t=1000', "Retry-After": "1000",
    }  # fmt: skip
    assert (busy.status, busy.code, busy.headers, stuck.limited) == (503, "unavailable", {"Retry-After": "1"}, 0)
    for one in calls:
        one.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_that_are_refused_take_no_token_from_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.locator.admission.WAIT_MAX_S", 60.0)
    clock = Clock()
    order: list[str] = []
    caller = Caller(Admission(clock, Rate(1_000, 1)), order)
    caller.ending.set()
    await asyncio.gather(*caller.begin("flood", 1))
    calls = caller.begin("flood", WAITING_OF_KEY_MAX)
    await turns_of_the_loop(lambda: caller.admission.waiting == WAITING_OF_KEY_MAX)
    for _ in range(10):
        await asyncio.sleep(0)

    clock.now_s += 0.001
    refused = [await caller.admission.enter("flood") for _ in range(20)]
    await eventually(lambda: len(order) == 2)

    assert {(one.status, one.code) for one in refused if one is not None} == {(429, "rate_limited")}
    assert caller.admission.limited == len(refused)
    for one in calls:
        one.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_callers_who_leave_take_no_turn_and_hold_none() -> None:
    order: list[str] = []
    admission = Admission(Clock())
    caller = Caller(admission, order)
    calls = caller.begin("flood", AT_WORK_MAX + 20)
    await turns_of_the_loop(lambda: len(order) == AT_WORK_MAX)

    for one in calls:
        one.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    caller.ending.set()
    await asyncio.gather(*caller.begin("flood", AT_WORK_MAX + 1))

    assert len(order) == 2 * AT_WORK_MAX + 1
    assert admission.waiting == 0


async def test_every_change_over_http_draws_from_the_bucket_and_heartbeats_lookups_and_reports_do_not(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.locator.admission.WAIT_MAX_S", 0.005)
    async with replicas(redis_url, 1) as (one,):
        app = web.Application()
        app[LOCATOR] = one
        async with serving(app, LOCATOR_ROUTES, lambda _: ROOT) as session:

            async def put(path: str, body: Any = None) -> Reply:
                return await call(session, "PUT", path, body)

            assert (await put(PLACE, PLAIN)).status == 201
            monkeypatch.setattr(one, "admission", Admission(one.clock, SLOWEST))
            assert (await put(PLACE, PLAIN | {"port": 81})).status == 200

            refused = [
                await put(PLACE, PLAIN),
                *[await call(session, "POST", f"{PLACE}/{word}") for word in ("drain", "resume", "isolate", "reset")],
                await call(session, "DELETE", PLACE),
                await put("/v1/agent/service/register", {"Name": "web", "ID": "b", "Address": "10.0.0.2", "Port": 80}),
                await put("/v1/agent/service/deregister/a"),
                await put("/v1/agent/service/maintenance/a?enable=true"),
                await put("/v1/agent/check/fail/service:a"),
            ]
            misshapen = await put(PLACE, PLAIN | {"port": 0})
            beaten = await call(session, "POST", f"{PLACE}/heartbeat")
            found = await call(session, "GET", "/v1/services/web/lookup")
            reported = await call(
                session, "POST", "/v1/services/web/report", {"lease_id": found.body["lease_id"], "ok": True}
            )

    assert {(reply.status, reply.body["code"]) for reply in refused} == {(429, "rate_limited")}
    assert one.admission.limited == len(refused) + 1
    assert misshapen.status == 422
    assert [reply.status for reply in (beaten, found, reported)] == [200] * 3
    assert found.body["instance"]["port"] == 81


async def test_a_consul_registration_that_begins_critical_is_one_change_and_is_not_refused_half_way(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.locator.admission.WAIT_MAX_S", 0.1)
    wanted = {"Name": "web", "ID": "c", "Address": "10.0.0.2", "Port": 80, "Check": {"TTL": "10s"}}
    async with replicas(redis_url, 1) as (one,):
        app = web.Application()
        app[LOCATOR] = one
        monkeypatch.setattr(one, "admission", Admission(one.clock, SLOWEST))
        async with serving(app, LOCATOR_ROUTES, lambda _: ROOT) as session:
            made = await call(session, "PUT", "/v1/agent/service/register", wanted)
            refused = await call(session, "PUT", "/v1/agent/service/register", wanted)

        assert [made.status, refused.status] == [200, 429]
        assert one.states("web") == {"c": "down"}


async def test_answers_to_changes_are_given_so_many_in_a_turn_of_the_loop() -> None:
    given: list[int] = []
    turns = Turns(2)

    for number in range(6):
        turns.add(lambda number=number: given.append(number))  # type: ignore[misc]
    seen = []
    while len(given) < 6:
        await asyncio.sleep(0)
        seen.append(len(given))

    assert given == list(range(6))
    assert {after - before for before, after in zip([0, *seen], seen, strict=False)} <= {0, 2}


async def test_one_of_a_line_goes_on_at_each_turn_of_the_loop_and_who_leaves_holds_nobody_up() -> None:
    line, gone = Line(), []

    async def pass_through(number: int) -> None:
        await line.wait()
        gone.append(number)

    tasks = [asyncio.create_task(pass_through(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    seen = []
    while len(gone) < 5:
        await asyncio.sleep(0)
        seen.append(len(gone))
    await line.wait()

    assert gone == [0, 2, 3, 4, 5]
    assert {after - before for before, after in zip([0, *seen], seen, strict=False)} <= {0, 1}
