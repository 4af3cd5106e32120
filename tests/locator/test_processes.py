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

DEADLINE_S = 90.0
TTL_S = 6  # suspect after 2 s, removed after 6


class Pair:
    """Two replicas and their clients."""

    def __init__(self, servers: list[ShieldxServer], session: aiohttp.ClientSession) -> None:
        """Both run."""
        self.servers = servers
        self.clients = [Client(session, server.url) for server in servers]

    async def put(self, replica: int, service: str, id_: str, **fields: Any) -> None:
        """Register an instance on a replica."""
        body = {"host": "10.0.0.1", "port": 80, "ttl_seconds": 600} | fields
        reply = await self.clients[replica].call("PUT", f"/v1/services/{service}/instances/{id_}", body)
        assert reply.status in {200, 201}, reply.raw

    async def states(self, replica: int, service: str) -> dict[str, str]:
        """Return what a replica says of a service."""
        reply = await self.clients[replica].get(f"/v1/services/{service}")
        return {one["id"]: one["state"] for one in reply.body["data"]} if reply.status == 200 else {}

    async def beat(self, service: str, *ids: str, replica: int = 0) -> None:
        """Send heartbeats to a replica."""
        for id_ in ids:
            await self.clients[replica].post(f"/v1/services/{service}/instances/{id_}/heartbeat")

    async def until(self, replica: int, service: str, holds: Callable[[dict[str, str]], bool], *beating: str) -> None:
        """Return once a replica says what is expected; meanwhile some instances send heartbeats to the second one."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not holds(seen := await self.states(replica, service)):
            assert time.monotonic() < deadline_s, seen
            await self.beat(service, *beating, replica=1)
            await asyncio.sleep(0.05)


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
    ids = ("a", "b", "c")
    await pair.put(0, service, "a")
    await pair.until(1, service, lambda seen: seen == {"a": "up"})

    # Paused: what happens meanwhile is there as soon as it goes on, and nobody has died because it did not listen.
    pair.servers[1].pause()
    await pair.put(0, service, "b")
    await pair.put(0, service, "short", ttl_seconds=TTL_S)
    paused_s = time.monotonic()
    while time.monotonic() < paused_s + TTL_S / 2:
        await pair.beat(service, "a", "b", "short")
        await asyncio.sleep(0.05)
    pair.servers[1].resume()
    await pair.until(1, service, lambda seen: seen == {"a": "up", "b": "up", "short": "up"}, "a", "b", "short")

    # Killed: the other goes on alone, and the next start restores what it did not see.
    pair.servers[1].kill()
    await pair.put(0, service, "c")
    await pair.servers[1].start()
    restored = await pair.states(1, service)
    assert set(restored) >= set(ids)
    assert {restored[id_] for id_ in ids} <= {"unverified", "up"}
    assert (await pair.clients[1].get(f"/v1/services/{service}/lookup")).status == 200

    # Both agree when one falls silent, and the others are heard through the replica that was killed.
    for replica in (0, 1):
        await pair.until(replica, service, lambda seen: seen == dict.fromkeys(ids, "up"), *ids)
