"""Server, Redis and PostgreSQL die at once, and Redis comes back without its last second."""

from __future__ import annotations

import pytest
from recovery_scene import Scene

from tests.server import ShieldxServer
from tests.stores import StoreProcess


@pytest.mark.parametrize(("shards", "cut"), [(1, "byte"), (2, "record")])
async def test_killed_house_loses_and_repeats_nothing(scene: Scene, shards: int, cut: str) -> None:
    house = scene.house
    async with scene.load(abandon_transfers=shards > 1):
        await scene.some_time()
        parts: list[ShieldxServer | StoreProcess] = [house.servers[0], house.redis, house.postgres]
        scene.random.shuffle(parts)
        for part in parts:
            part.kill()
        print(f"{house.cut_last_second(scene.random, cut)} bytes of the append-only file were cut off")

        scene.random.shuffle(parts)
        for part in parts:
            part.launch()
        await house.redis.wait_ready()
        await house.postgres.wait_ready()
        await house.servers[0].wait_ready()
