"""Stores that do not answer: 503 with Retry-After within two seconds, and the truth afterwards."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psutil
import pytest

from app import operations
from app.audit import log
from app.credits import account_reads, book, ledger, records
from app.db import statements
from tests.credits.ledger_client import Client, Reply, fresh
from tests.credits.ledger_house import LedgerHouse
from tests.credits.test_legs import tenant_of
from tests.lag import Lag, disk_waited_s, starved_s
from tests.server import ShieldxServer
from tests.stores import StoreProcess

ANSWER_MAX_S = 2.0
MARGIN_S = 0.5  # of a busy test machine

REFUSED_AT_ONCE_S = 0.5
REFUSED_WITHIN = 6  # calls one after another: an outage that lasts is told at once

Freeze = Callable[[], AbstractAsyncContextManager[None]]


def family(store: StoreProcess) -> list[psutil.Process]:
    """Return a store's process and everything that it forked."""
    assert store.process is not None
    root = psutil.Process(store.process.pid)
    return [root, *root.children(recursive=True)]


@pytest.fixture(params=["redis", "postgres"])
def freeze(request: pytest.FixtureRequest, house: LedgerHouse, server: ShieldxServer, house_of_two: ShieldxServer) -> Freeze:
    """Return a context in which one store stands still; at its end every server is ready again."""
    store: StoreProcess = house.redis if request.param == "redis" else house.postgres

    @asynccontextmanager
    async def frozen() -> AsyncIterator[None]:
        stopped = family(store)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                process.send_signal(signal.SIGCONT)
            await server.wait_ready()
            await house_of_two.wait_ready()

    return frozen


@pytest.mark.parametrize(
    "longest_s",
    [
        # An actor looks eight times in each time limit for asks that are past it.
        ledger.ASK_TIMEOUT_S * 9 / 8,
        account_reads.ASK_TIMEOUT_S * 9 / 8,
        book.ANSWER_WITHIN_S,
        records.READ_TIMEOUT_S,
        log.READ_TIMEOUT_S,
        statements.STATEMENT_WAIT_S,
    ],
)
def test_every_wait_for_a_store_ends_within_two_seconds(longest_s: float) -> None:
    assert longest_s < ANSWER_MAX_S


async def timed(client: Client, tenant: str, key: str) -> tuple[float, Reply]:
    started_s = time.monotonic()
    reply = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key)
    return time.monotonic() - started_s, reply


async def timed_transfer(client: Client, giver: str, taker: str) -> tuple[float, Reply]:
    legs = [{"tenant_id": giver, "amount": -1}, {"tenant_id": taker, "amount": 1}]
    started_s = time.monotonic()
    reply = await client.post("/v1/transactions", {"legs": legs}, key=fresh("key"))
    return time.monotonic() - started_s, reply


async def test_an_outage_is_answered_503_within_two_seconds_and_retried_to_one_application(
    client: Client, wide: Client, freeze: Freeze, server: ShieldxServer, lag: Lag
) -> None:
    assert server.process is not None
    tenant = await client.tenant(100)
    pair = [await tenant_of(wide, shard, 10) for shard in (0, 1)]
    keys = [fresh("key") for _ in range(30)]
    starved_before_s, disk_before_s = starved_s(server.process.pid), disk_waited_s()

    async with freeze():
        transfers = (timed_transfer(wide, pair[i % 2], pair[1 - i % 2]) for i in range(4))
        answers = await asyncio.gather(*(timed(client, tenant, key) for key in keys), *transfers)
        lasting = [await timed(client, tenant, keys[0])]
        while lasting[-1][0] > REFUSED_AT_ONCE_S and len(lasting) < REFUSED_WITHIN:
            lasting.append(await timed(client, tenant, keys[0]))
        health = await client.call("GET", "/health", Authorization=None)
        asked_s = time.monotonic()
        ready = await client.call("GET", "/ready", Authorization=None)
        ready_s = time.monotonic() - asked_s
    late_s = lag.largest_s + starved_s(server.process.pid) - starved_before_s + disk_waited_s() - disk_before_s
    retried = [await timed(client, tenant, key) for key in keys]
    again = [await timed(client, tenant, key) for key in keys]

    assert lasting[-1][0] < REFUSED_AT_ONCE_S
    for seconds, reply in [*answers, *lasting]:
        assert reply.refusal == (503, "unavailable")
        assert int(reply.headers["Retry-After"]) >= 1
        assert seconds < ANSWER_MAX_S + MARGIN_S + late_s
    assert health.status == 200
    assert (ready.status, ready.headers["Retry-After"]) == (503, "1")
    assert ready_s < operations.CHECK_TIMEOUT_S + MARGIN_S + late_s
    assert {reply.status for _, reply in retried} == {200}
    assert [reply.raw for _, reply in again] == [reply.raw for _, reply in retried]
    assert await client.numbers(tenant) == (70, 0, 32)


async def test_a_shape_error_needs_no_store(client: Client, freeze: Freeze) -> None:
    async with freeze():
        reply = await client.post("/v1/credits/consume", {"tenant_id": "t", "amount": 0})

    assert reply.refusal == (422, "invalid_request")
