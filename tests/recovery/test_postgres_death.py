"""PostgreSQL dies under load, at random moments: while it idles, copies, commits."""

from __future__ import annotations

from typing import Final

import pytest
from recovery_scene import Scene

KILLS: Final = 4  # of one round; each hits another moment of a transaction


@pytest.mark.parametrize("shards", [1])
async def test_killed_postgres_loses_and_repeats_nothing(scene: Scene, shards: int) -> None:
    postgres = scene.house.postgres
    async with scene.load(clients=24) as load:
        for _ in range(KILLS):
            await scene.some_time()
            postgres.kill()

            await postgres.start()
            await scene.house.wait_ready()
            await load.run_for(0.1)
