"""The server dies under load."""

from __future__ import annotations

import pytest
from recovery_scene import Scene

KILLS = 2  # of one round


@pytest.mark.parametrize("shards", [1, 2])
async def test_killed_server_loses_and_repeats_nothing(scene: Scene, shards: int) -> None:
    async with scene.load(abandon_transfers=shards > 1):
        for _ in range(KILLS):
            await scene.some_time()
            server = scene.house.servers[0]
            server.kill()

            server.launch()
            await server.wait_ready()
