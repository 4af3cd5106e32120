"""Two server processes behind one Redis: one registry through SIGKILL, SIGSTOP, restarts and a Redis that is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from tests.credits.ledger_client import Client, fresh
from tests.credits.ledger_house import house_of
from tests.server import ShieldxServer

DEADLINE_S = 20.0
VISIBLE_S = 0.1
TTL_S = 6  # suspect after 2 s, removed after 6


class Pair:
    """Two replicas and their clients."""

    def __init__(self, servers: list[ShieldxServer], session: aiohttp.ClientSession) -> None:
        """Both run."""
        self.servers = servers
        self.clients = [Client(session, server.url) for server in servers]

    async def put(self, replica: int, service: str, id_: str, **fields: Any) -> None:
        """Register an instance on a replica."""
        body = {"host": "10.0.0.1", "port": 80, "ttl_seconds": 60} | fields
        reply = await self.clients[replica].call("PUT", f"/v1/services/{service}/instances/{id_}", body)
        assert reply.status in {200, 201}, reply.raw

    async def states(self, replica: int, service: str) -> dict[str, str]:
        """Return what a replica says of a service."""
        reply = await self.clients[replica].get(f"/v1/services/{service}")
        return {one["id"]: one["state"] for one in reply.body["data"]} if reply.status == 200 else {}

    async def until(self, replica: int, service: str, holds: Callable[[dict[str, str]], bool]) -> float:
        """Return the seconds until a replica says what is expected."""
        began_s = time.monotonic()
        while not holds(seen := await self.states(replica, service)):
            assert time.monotonic() < began_s + DEADLINE_S, seen
            await asyncio.sleep(0.005)
        return time.monotonic() - began_s


@pytest.fixture
async def pair(pytestconfig: pytest.Config) -> AsyncIterator[Pair]:
    house = house_of(pytestconfig)
    ledger = await house.make_ledger()
    servers = [house.server_on(ledger, f"locator-{number}") for number in range(2)]
    for server in servers:
        server.launch()
    for server in servers:
        await server.wait_ready()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as session:
        yield Pair(servers, session)
    for server in servers:
        server.kill()


async def test_two_replicas_show_one_registry_through_kills_and_pauses(pair: Pair) -> None:
    service = fresh("web")
    await pair.put(0, service, "a")
    assert await pair.until(1, service, lambda seen: seen == {"a": "up"}) < 10 * VISIBLE_S

    # Paused: what happens meanwhile is there as soon as it goes on, and nobody has died because it did not listen.
    pair.servers[1].pause()
    await pair.put(0, service, "b")
    await pair.put(0, service, "short", ttl_seconds=TTL_S)
    beating = asyncio.create_task(beat(pair, service, "short"))
    await asyncio.sleep(0)
    await pair.until(0, service, lambda seen: len(seen) == 3)
    while beating_for(beating) < TTL_S / 2:
        await asyncio.sleep(0.05)
    pair.servers[1].resume()
    await pair.until(1, service, lambda seen: seen == {"a": "up", "b": "up", "short": "up"})

    # Killed: the other goes on alone, and the next start restores what it did not see.
    pair.servers[1].kill()
    await pair.put(0, service, "c")
    await pair.servers[1].start()
    restored = await pair.states(1, service)
    assert set(restored) == {"a", "b", "c", "short"}
    assert set(restored.values()) <= {"unverified", "up"}
    assert (await pair.clients[1].get(f"/v1/services/{service}/lookup")).status == 200
    await pair.until(1, service, lambda seen: seen["short"] == "up")

    # Both agree when an instance falls silent.
    beating.cancel()
    await pair.until(0, service, lambda seen: "short" not in seen)
    await pair.until(1, service, lambda seen: "short" not in seen)
    for id_ in ("a", "b", "c"):
        await pair.clients[1].done(f"/v1/services/{service}/instances/{id_}/heartbeat")
    assert await pair.states(0, service) == await pair.states(1, service) == dict.fromkeys("abc", "up")


_began: dict[asyncio.Task[None], float] = {}


def beating_for(task: asyncio.Task[None]) -> float:
    """Return for how many seconds a task has run."""
    return time.monotonic() - _began.setdefault(task, time.monotonic())


async def beat(pair: Pair, service: str, id_: str) -> None:
    """Send heartbeats to the first replica, as often as an instance is told to."""
    while True:
        await pair.clients[0].done(f"/v1/services/{service}/instances/{id_}/heartbeat")
        await asyncio.sleep(TTL_S / 6)
