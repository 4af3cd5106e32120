"""Several replicas on one ledger: the one that writes the chain dies, or is paused and wakes up too late."""

from __future__ import annotations

from typing import Final

import pytest
from recovery_scene import Scene

from server import ShieldxServer

PAUSE_MIN_S: Final = 0.5  # beyond the moment in which another replica has taken the shard


async def writer_among(servers: list[ShieldxServer]) -> ShieldxServer:
    """Return a replica that writes a shard."""
    for server in servers:
        _, body = await server.readiness()
        if any(shard["leading"] for shard in body["checks"]["shard"]["shards"]):
            return server
    raise AssertionError("nobody writes")


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


@pytest.mark.parametrize("shards", [1, 2])
async def test_paused_writer_cannot_write_after_it_was_replaced(scene: Scene, shards: int) -> None:
    house = scene.house
    async with scene.load(servers=2) as load:
        await scene.some_time()
        paused = await writer_among(house.servers)
        paused.pause()
        await load.run_for(PAUSE_MIN_S)
        await scene.some_time()

        paused.resume()
        await load.run_for(PAUSE_MIN_S)
