"""The network to Redis or to PostgreSQL stops forwarding, in one direction or both, and comes back in several ways."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from recovery_scene import Scene
from stall_proxy import Direction, End

DIRECTIONS: Final[tuple[Direction, ...]] = ("to_store", "from_store", "both")
STALL_MIN_S: Final = 2.6  # long enough that a caller who waits for its end is told too late
STALL_MAX_S: Final = 4.0


@pytest.mark.parametrize("end", ["goes_on", "drops", "forgets"])
@pytest.mark.parametrize("store", ["redis", "postgres"])
async def test_stalled_store_is_told_to_callers_in_time(proxied_scene: Scene, store: str, end: End) -> None:
    proxy = proxied_scene.house.proxies[store]
    direction = proxied_scene.random.choice(DIRECTIONS)
    print(f"stalls {direction}")
    async with proxied_scene.load():
        await proxied_scene.some_time()
        proxy.stall(direction)
        await asyncio.sleep(proxied_scene.random.uniform(STALL_MIN_S, STALL_MAX_S))

        proxy.release(end)
