"""Rules on real stores: one database and one Redis for all tests of a run, and as many replicas on them as a test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from app.db.keys import RULES_TAG
from app.db.migrate import migrate
from app.db.pool import Pool
from app.db.postgres import open_pool
from app.db.redis import RedisLink
from app.db.statements import Statements
from app.db.topology import make_topology
from app.metrics import Metrics
from app.shadow.rules_calls import RuleCalls
from app.shadow.rules_opening import Rules
from app.shadow.rules_wire import Evaluation, NewRule, NewVersion, Report
from app.web.fields import Document
from app.web.problems import Problem
from tests.credits.ledger_house import Ledger, house_of
from tests.stores import run_apart

DEADLINE_S = 90.0


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until something holds."""
    started_s = time.monotonic()
    while not await holds():
        assert time.monotonic() - started_s < DEADLINE_S, f"not in time: {what}"
        await asyncio.sleep(0.01)


async def refusal(work: Awaitable[Any]) -> tuple[int, str]:
    """Return status and code of what is refused."""
    with pytest.raises(Problem) as refused:
        await work
    return refused.value.status, refused.value.code


def new_rule(name: str, champion: str, challenger: str | None = None, **more: Any) -> NewRule:
    """Return a body that makes a rule with one or two versions, `v1` and `v2`."""
    versions = [NewVersion("v1", champion)] + ([] if challenger is None else [NewVersion("v2", challenger)])
    return NewRule(name, versions, "v1", None if challenger is None else "v2", **more)


async def evaluate(calls: RuleCalls, name: str, **data: Any) -> Any:
    """Return the champion's answer."""
    given = Document(data)
    given.size_bytes = 100
    return (await calls.evaluate(name, Evaluation(given).input)).answer


async def compared(calls: RuleCalls, name: str, count: int) -> Report:
    """Return the report once so many comparisons are in it."""
    found: list[Report] = []

    async def holds() -> bool:
        found.append(await calls.report(name, None))
        return found[-1].compared + found[-1].dropped >= count

    await until(holds, f"{count} comparisons")
    return found[-1]


class Replica:
    """One process's worth of rules."""

    def __init__(self, pool: Pool, redis_url: str) -> None:
        self.pool = pool
        self.faults: list[BaseException] = []
        self.rules = Rules(Metrics())
        self.rules.open(Statements(pool), RedisLink(make_topology(redis_url), RULES_TAG), self.faults.append)

    @property
    def calls(self) -> RuleCalls:
        assert self.rules.calls is not None
        return self.rules.calls


@pytest.fixture(scope="session")
def rules_ledger(pytestconfig: pytest.Config) -> Ledger:
    """A migrated database and a Redis for all tests of rules."""
    house = house_of(pytestconfig)  # its servers end with the thread that starts them, so not in the one below

    async def prepare() -> Ledger:
        ledger = await house.make_ledger()
        connection = await asyncpg.connect(ledger.database_url)
        await migrate(connection)
        await connection.close()
        return ledger

    return run_apart(prepare())


@pytest.fixture
async def open_replica(rules_ledger: Ledger) -> AsyncIterator[Callable[[], Awaitable[Replica]]]:
    """What opens a replica; all are closed after the test, and none may have crashed."""
    opened: list[Replica] = []

    async def open_one() -> Replica:
        opened.append(Replica(await open_pool(rules_ledger.database_url, 4), rules_ledger.redis_url))
        return opened[-1]

    yield open_one
    for replica in opened:
        await replica.rules.close()
        replica.pool.terminate()
        assert replica.faults == []


@pytest.fixture
async def replica(open_replica: Callable[[], Awaitable[Replica]]) -> Replica:
    """One replica."""
    return await open_replica()


@pytest.fixture
def calls(replica: Replica) -> RuleCalls:
    """The calls of one replica."""
    return replica.calls


@pytest.fixture
async def owner(rules_ledger: Ledger) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The owner's connection to the database."""
    connection = await asyncpg.connect(rules_ledger.database_url)
    yield connection
    await connection.close()
