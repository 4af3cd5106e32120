"""The network to Redis or to PostgreSQL stops forwarding, in one direction or both, and comes back in several ways."""

from __future__ import annotations

from typing import Final

import pytest
from recovery_scene import Scene
from stall_proxy import Direction, End

DIRECTIONS: Final[tuple[Direction, ...]] = ("to_store", "from_store", "both")
STORES: Final = ("redis", "postgres")


@pytest.mark.parametrize("end", ["goes_on", "drops", "forgets"])
async def test_stalled_store_is_told_to_callers_in_time(proxied_scene: Scene, end: End) -> None:
    house, pick = proxied_scene.house, proxied_scene.random
    async with proxied_scene.load() as load:
        for store in pick.sample(STORES, len(STORES)):
            direction = pick.choice(DIRECTIONS)
            print(f"the way to {store} stalls: {direction}")
            await proxied_scene.some_time()
            house.proxies[store].stall(direction)
            await proxied_scene.outage()

            house.proxies[store].release(end)
            await house.wait_ready()
            await load.run_for(0.1)
