"""Shadow in this process, on the stores of the session: as many replicas on one pair of stores as a test asks for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import asyncpg
import pytest
from redis.asyncio import Redis

from app.db.migrate import migrate
from app.metrics import Metrics
from app.shadow.calls import ExperimentCalls
from app.shadow.definition import Definition, State, Variant
from app.shadow.opening import Places, Shadow
from app.shadow.wire import NewExperiment, NewVariant, Outcome, Outcomes, Taken
from app.web.problems import Problem
from tests.credits.ledger_client import fresh
from tests.credits.ledger_house import Ledger, house_of

DEADLINE_S: Final = 90.0
POLL_S: Final = 0.01
PAIR: Final = (NewVariant("a", control=True), NewVariant("b"))

_stores: dict[str, Ledger] = {}


async def until(holds: Callable[[], Awaitable[bool] | bool], what: str, deadline_s: float = DEADLINE_S) -> float:
    """Wait until something holds; return how many seconds that took."""
    started_s = time.monotonic()
    while True:
        found = holds()
        if (await found) if isinstance(found, Awaitable) else found:
            return time.monotonic() - started_s
        assert time.monotonic() - started_s < deadline_s, f"not in time: {what}"
        await asyncio.sleep(POLL_S)


def pair(name: str = "x", **fields: Any) -> Definition:
    """Return a definition of two variants, `a` the control."""
    variants = (Variant("a", control=True), Variant("b"))
    return Definition(**{"name": name, "variants": variants, "allocation": "fixed", "seed": "s"} | fields)


def new(name: str, **fields: Any) -> NewExperiment:
    """Return the body of an experiment of two variants."""
    return NewExperiment(**{"name": name, "variants": list(PAIR), "allocation": "fixed"} | fields)


class Replicas:
    """Replicas of shadow on one pair of stores."""

    def __init__(self, ledger: Ledger, stack: contextlib.AsyncExitStack) -> None:
        """They end with `stack`."""
        self.ledger = ledger
        self._stack = stack
        self.crashes: list[BaseException] = []

    async def start(self, name: str = "one") -> Shadow:
        """Return one more replica, open."""
        shadow = Shadow(Metrics(), self.crashes.append)
        shadow.start(Places(*self.ledger, name), lambda: True)
        self._stack.push_async_callback(shadow.stop)
        await asyncio.wait_for(shadow.wait_open(), DEADLINE_S)
        return shadow

    async def redis(self, *words: str) -> Any:
        """Run a command on the Redis of the replicas."""
        async with Redis.from_url(self.ledger.redis_url) as client:
            return await client.execute_command(*words)

    async def rows(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        """Run a statement as the owner of the database."""
        connection = await asyncpg.connect(self.ledger.database_url)
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()

    async def entries(self, experiment: str) -> list[str]:
        """Return the kinds of entries about an experiment, in their order."""
        rows = await self.rows(
            "SELECT kind FROM pending_entries WHERE details ->> 'experiment' = $1 ORDER BY at, kind", experiment
        )
        return [row[0] for row in rows]


def calls_of(shadow: Shadow) -> ExperimentCalls:
    """Return the calls of an open replica."""
    assert shadow.calls is not None
    return shadow.calls


async def tell(shadow: Shadow, name: str, outcomes: list[Outcome]) -> Taken:
    """Report outcomes to a replica."""
    return await calls_of(shadow).outcomes(name, Outcomes(outcomes=outcomes))


def reports(
    variant: str, count: int, successes: int, *, errors: int = 0, prefix: str | None = None, latency_ms: float | None = None
) -> list[Outcome]:
    """Return outcomes of a variant: the first ones succeed, the first ones fail with an error."""
    prefix = prefix or fresh("event")
    return [
        Outcome(f"{prefix}-{number}", number < successes, variant=variant, error=number < errors, latency_ms=latency_ms)
        for number in range(count)
    ]


async def made(shadow: Shadow, **fields: Any) -> str:
    """Make an experiment and return its name."""
    name = fresh("exp")
    await calls_of(shadow).create(new(name, **fields), "key_test")
    return name


async def samples(shadow: Shadow, name: str) -> list[int]:
    """Return the outcomes of each variant, as all replicas have counted them."""
    analysis = await calls_of(shadow).analysis(name, 100, 0)
    return [one.samples for one in analysis.variants]


def state_of(shadow: Shadow, name: str) -> State:
    """Return where an experiment stands on a replica."""
    experiment = shadow.catalog.get(name)
    assert experiment is not None
    return experiment.state


def verified(shadow: Shadow, name: str) -> bool:
    """Whether a replica knows that a rollback was seen to be in effect."""
    rollback = state_of(shadow, name).rollback
    return rollback is not None and rollback.verified_at_ms is not None


async def refused(work: Any) -> tuple[int, str]:
    """Return status and code of what is refused."""
    with pytest.raises(Problem) as found:
        await work
    return found.value.status, found.value.code


@pytest.fixture
async def stores(pytestconfig: pytest.Config) -> Ledger:
    """The stores that the tests of this directory share, with the schema in them."""
    if "shadow" not in _stores:
        ledger = _stores["shadow"] = await house_of(pytestconfig).make_ledger()
        connection = await asyncpg.connect(ledger.database_url)
        await migrate(connection)
        await connection.close()
    return _stores["shadow"]


@pytest.fixture
async def replicas(stores: Ledger) -> AsyncIterator[Replicas]:
    async with contextlib.AsyncExitStack() as stack:
        house = Replicas(stores, stack)
        yield house
    assert house.crashes == []


@pytest.fixture
async def shadow(replicas: Replicas) -> Shadow:
    return await replicas.start()
