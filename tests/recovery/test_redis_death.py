"""Redis dies under load and comes back with all, with less than it had, or with nothing."""

from __future__ import annotations

from typing import Final

from recovery_scene import Scene

BETWEEN_S: Final = 0.2  # of load between two deaths
EVERYSEC_CUTS: Final = ("nothing", "record", "byte")  # what appendfsync everysec may lose, and where the file then ends
DEEP_CUTS: Final = ("half", "all", "flush")  # a stale replica, a lost disk, a mistake


async def test_killed_redis_loses_and_repeats_nothing(scene: Scene) -> None:
    redis = scene.house.redis
    async with scene.load() as load:
        for cut in scene.random.sample(EVERYSEC_CUTS, len(EVERYSEC_CUTS)):
            await scene.some_time()
            redis.kill()
            lost_bytes = scene.house.cut_last_second(scene.random, cut)
            print(f"{cut}: {lost_bytes} bytes of {redis.aof.name} were cut off")
            if cut == "nothing":
                await scene.outage()

            await redis.start()
            await scene.house.wait_ready()
            await load.run_for(BETWEEN_S)


async def test_redis_far_behind_or_empty_loses_and_repeats_nothing(scene: Scene) -> None:
    redis = scene.house.redis
    async with scene.load() as load:
        for cut in scene.random.sample(DEEP_CUTS, len(DEEP_CUTS)):
            await scene.some_time()
            if cut == "flush":
                print("flush")
                await redis.flush()
            else:
                redis.kill()
                print(f"{cut}: {scene.house.cut_last_second(scene.random, cut)} bytes of {redis.aof.name} were cut off")
                await redis.start()

            await scene.house.wait_ready()
            await load.run_for(BETWEEN_S)
