"""One scenario in progress: the load, the faults that come at random moments, and the end in which all is proved."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Final

from recovery_house import REPLAYS, House
from recovery_load import Load

FAULT_AFTER_MIN_S: Final = 0.2
FAULT_AFTER_MAX_S: Final = 0.7
LOAD_AFTER_S: Final = 0.2  # what clients do once everything is ready again
OUTAGE_MIN_S: Final = 2.3
OUTAGE_MAX_S: Final = 2.9
QUIET_REPLAYS: Final = 60


class Scene:
    """What a scenario has in its hands."""

    def __init__(self, house: House, seed: int) -> None:
        """Nothing runs yet but the stores of the house."""
        self.house: Final = house
        self.random: Final = random.Random(seed)
        self._seed = seed
        self._load: Load | None = None
        self._watch: asyncio.Task[None] | None = None
        house.spoiled = True  # until this scenario has ended well

    @contextlib.asynccontextmanager
    async def load(self, *, servers: int = 1, clients: int = 16, abandon_transfers: bool = False) -> AsyncIterator[Load]:
        """Run a load on so many replicas; when the block ends, everything is ready again, answered and proved.

        abandon_transfers  clients give up most of the unanswered transfers, so that only the sweeper can finish them
        """
        load = await self._open(servers, clients)
        load.abandon_transfers = abandon_transfers
        load.start_clients()
        await load.run_for(FAULT_AFTER_MIN_S)
        yield load
        await self.house.wait_ready()
        await load.run_for(LOAD_AFTER_S)
        await load.finish()
        if abandon_transfers:
            found = await self.house.wait_transfers_closed()
            print(f"the sweeper had {found} transfers and legs to close")
            await load.settle(load.abandoned)
        await self._prove(load)

    @contextlib.asynccontextmanager
    async def quiet_load(self) -> AsyncIterator[Load]:
        """Like `load`, but nothing is asked except what the block asks."""
        load = await self._open(1, 4)
        yield load
        await self.house.wait_ready()
        await self._prove(load, sample=QUIET_REPLAYS)

    async def _open(self, servers: int, clients: int) -> Load:
        await self.house.start_servers(servers)
        self._watch = asyncio.create_task(self.house.watch_aof())
        self._load = await self.house.open_load(self._seed, clients=clients)
        return self._load

    async def _prove(self, load: Load, *, sample: int = REPLAYS) -> None:
        await self.house.prove(load, sample=sample)
        print(f"{len(load.operations)} operations, {load.summary()}")
        self.house.spoiled = False

    async def some_time(self) -> None:
        """Let the load run until a random moment."""
        await asyncio.sleep(self.random.uniform(FAULT_AFTER_MIN_S, FAULT_AFTER_MAX_S) - FAULT_AFTER_MIN_S)

    async def outage(self) -> None:
        """Let a dead store stay dead for so long that a caller who waits for it is told too late."""
        await asyncio.sleep(self.random.uniform(OUTAGE_MIN_S, OUTAGE_MAX_S))

    async def close(self) -> None:
        """End the load."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._load is not None:
            await self._load.close()
