"""Several replicas on one ledger: the one that writes the chain dies, or is paused and wakes up too late."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import pytest
from recovery_scene import Scene

from tests.server import ShieldxServer

SLOW_LINK_S: Final = 0.25  # each way: the dozen calls of a rebuild then take longer than a writer may be silent
TAKEOVER_TIMEOUT_S: Final = 120.0  # a writer counts as gone after 3 s of silence
AWAKE_S: Final = 0.5


async def writer_among(servers: list[ShieldxServer]) -> ShieldxServer:
    """Return a replica that writes a shard."""
    for server in servers:
        _, body = await server.readiness()
        if any(shard["leading"] for shard in body["checks"]["shard"]["shards"]):
            return server
    raise AssertionError("nobody writes")


async def wait_for_a_writer(servers: list[ShieldxServer], generation_min: int) -> int:
    """Wait until one of the replicas writes in this generation of Redis or a later one; return the generation."""
    deadline_s = time.monotonic() + TAKEOVER_TIMEOUT_S
    while True:
        views = [(await server.readiness())[1] for server in servers]
        for shard in (shard for view in views for shard in view["checks"]["shard"]["shards"]):
            if shard["leading"] and shard["generation"] >= generation_min:
                return int(shard["generation"])
        assert time.monotonic() < deadline_s, f"nobody writes: {views}\n{servers[0].log_tail}"
        await asyncio.sleep(0.02)


async def wait_for_all_shards(server: ShieldxServer) -> None:
    """Wait until this replica writes every shard."""
    deadline_s = time.monotonic() + TAKEOVER_TIMEOUT_S
    while True:
        _, body = await server.readiness()
        if all(shard["leading"] for shard in body["checks"]["shard"]["shards"]):
            return
        assert time.monotonic() < deadline_s, f"{server.name} has not taken over: {body}\n{server.log_tail}"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("shards", [1, 2])
async def test_killed_writers_are_replaced(scene: Scene, shards: int) -> None:
    house = scene.house
    async with scene.load(servers=2, abandon_transfers=shards > 1) as load:
        await scene.some_time()
        first = await writer_among(house.servers)
        first.kill()
        await house.wait_ready()
        await load.run_for(0.3)

        house.servers.remove(first)
        third = house.add_server()
        await third.start()
        await scene.some_time()
        second = house.servers[0]
        second.kill()
        house.servers.remove(second)
        await house.wait_ready()


async def test_paused_writer_cannot_write_after_it_was_replaced(scene: Scene) -> None:
    house = scene.house
    async with scene.load(servers=2) as load:
        await scene.some_time()
        paused = await writer_among(house.servers)
        paused.pause()
        other = next(server for server in house.servers if server is not paused)
        await wait_for_all_shards(other)
        await scene.some_time()

        paused.resume()
        await load.run_for(AWAKE_S)


async def test_long_recovery_is_not_taken_for_a_silent_writer(proxied_scene: Scene) -> None:
    house = proxied_scene.house
    async with proxied_scene.load(servers=2):
        await proxied_scene.some_time()
        generation = await wait_for_a_writer(house.servers, 1)
        house.proxies["redis"].slow_down(SLOW_LINK_S)
        await house.redis.flush()

        await wait_for_a_writer(house.servers, generation + 1)
        house.proxies["redis"].slow_down(0)
