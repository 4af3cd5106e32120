"""Redis dies under load, comes back with less than it had, or with nothing."""

from __future__ import annotations

import pytest
from recovery_scene import Scene


@pytest.mark.parametrize("cut", ["nothing", "record", "byte", "half", "all"])
async def test_killed_redis_loses_and_repeats_nothing(scene: Scene, cut: str) -> None:
    redis = scene.house.redis
    async with scene.load():
        await scene.some_time()
        redis.kill()
        lost_bytes = 0 if cut == "nothing" else scene.house.cut_last_second(scene.random, cut)
        print(f"{lost_bytes} bytes of {redis.aof.name} were cut off")

        await redis.start()


async def test_flushed_redis_loses_and_repeats_nothing(scene: Scene) -> None:
    async with scene.load():
        await scene.some_time()

        await scene.house.redis.flush()
