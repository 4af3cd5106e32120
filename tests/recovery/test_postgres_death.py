"""PostgreSQL dies under load, at random moments: while it idles, copies, commits."""

from __future__ import annotations

from typing import Final

from recovery_scene import Scene

KILLS: Final = 3  # of one round; each hits another moment of a transaction
COMMITTERS: Final = 24  # clients: more of them than elsewhere, so that some transaction commits at most moments
BETWEEN_S: Final = 0.1


async def test_killed_postgres_loses_and_repeats_nothing(scene: Scene) -> None:
    postgres = scene.house.postgres
    async with scene.load(clients=COMMITTERS) as load:
        for kill in range(KILLS):
            await scene.some_time()
            if kill == KILLS - 1:
                postgres.kill_backend(scene.random)
            else:
                postgres.kill()
                if kill == 0:
                    await scene.outage()
                await postgres.start()

            await scene.house.wait_ready()
            await load.run_for(BETWEEN_S)
