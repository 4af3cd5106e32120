"""The server dies under load."""

from __future__ import annotations

import pytest
from recovery_scene import Scene


@pytest.mark.parametrize("shards", [1, 2])
async def test_killed_server_loses_and_repeats_nothing(scene: Scene, shards: int) -> None:
    async with scene.load(abandon_transfers=shards > 1):
        await scene.some_time()
        server = scene.house.servers[0]
        server.kill()

        await server.start()
