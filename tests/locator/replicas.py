"""Replicas of the locator in this process, on a real Redis, with clocks that a test turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any, Final

from app.db.topology import Topology, make_topology
from app.locator.instance import Instance, State
from app.locator.opening import Locator
from app.locator.record import Registered
from app.locator.roster import Roster
from app.metrics import Metrics

DEADLINE_S: Final = 90.0
POLL_S: Final = 0.002


class Clock:
    """Monotonic seconds that stand still until somebody turns them."""

    def __init__(self) -> None:
        """Begin anywhere."""
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class Replica(Locator):
    """A locator with a clock of its own. Its upkeep runs when the test says so."""

    def __init__(self) -> None:
        """Begin before the start."""
        self.clock: Final = Clock()
        self.metrics: Final = Metrics()
        super().__init__([ip_network("127.0.0.0/8")], self.metrics, clock_s=self.clock)
        self.crashes: list[BaseException] = []
        self.topology: Topology | None = None

    async def open(self, redis_url: str) -> None:
        """Start, and wait until the registry has been read."""
        self.topology = make_topology(redis_url)
        self.start(self.topology, self.crashes.append)
        await eventually(lambda: self.warm)

    def state(self, service: str, id_: str) -> State | None:
        """Return what lookups see of an instance."""
        found = self.directory.get(service)
        one: Instance | None = None if found is None else found.snapshot.by_id.get(id_)
        return None if one is None else one.state

    def states(self, service: str) -> dict[str, str]:
        """Return all instances of a service with their states."""
        found: Roster | None = self.directory.get(service)
        return {} if found is None else {id_: one.state.value for id_, one in sorted(found.snapshot.by_id.items())}

    def beat(self, service: str, id_: str) -> None:
        """Take a heartbeat as the HTTP call does."""
        found = self.directory.services[service]
        self.directory.beat(found, id_, found.records[id_], self.clock_s())

    async def pass_time(self, seconds: float) -> None:
        """Let seconds pass, one tick of the upkeep each, and everything that follows from it happen."""
        for _ in range(round(seconds)):
            self.clock.now_s += 1.0
            await self.tick()

    async def tick(self) -> None:
        """Run the upkeep, and wait until what it has put to Redis is decided."""
        assert self.upkeep is not None
        assert self.registry is not None
        self.upkeep.tick()
        calls, registry = self.registry.calls, self.registry
        if self.following:
            await eventually(lambda: registry.calls > calls and not registry._pending)


async def eventually(holds: Callable[[], Any], what: str = "") -> None:
    """Return once something holds; AssertionError when it does not within the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s, what or "it did not come about"
        await asyncio.sleep(POLL_S)


def instance(**fields: Any) -> Registered:
    """Return what a plain registration becomes."""
    return Registered(**{"host": "10.0.0.1", "port": 80, "owner": "k1"} | fields)


@asynccontextmanager
async def replicas(redis_url: str, count: int) -> AsyncIterator[list[Replica]]:
    """Some replicas on one Redis, for as long as the context is open. Their upkeep tasks sleep: clocks stand still."""
    made = [Replica() for _ in range(count)]
    try:
        for one in made:
            await one.open(redis_url)
        yield made
        assert [one.crashes for one in made] == [[] for _ in made]
    finally:
        for one in made:
            await one.stop()
            if one.topology is not None:
                await one.topology.close()
