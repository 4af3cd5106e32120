"""The pool of connections to Postgres, against a real one: what it lends, what it counts, how it grows and heals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from app.breaker import BreakerState
from app.db.gate import GateTimeout
from app.db.pool import FAULTS, Pool, PoolAway
from app.db.pool_series import PoolSeries
from app.db.pool_upkeep import COOL_S, INTERVAL_S, KEPT_S, PING_S, QUIET_S, STEP, WAITS_MANY, PoolUpkeep
from app.db.postgres import open_transaction
from app.metrics import Metrics
from tests.stores import PrivatePostgres, run_apart, running_postgres

WAIT_S = 10.0
PLAIN_ROLE = "pool_test_reader"


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def __call__(self) -> float:
        return self.now_s


async def open_small(url: str, size: int = 2, **settings: str) -> Pool:
    return await Pool.open(url, size, timeout_s=2.0, settings=settings)


@pytest.fixture(scope="module")
def database_url(postgres_server: PrivatePostgres) -> str:
    """URL of one database for all of this file: nothing is stored in it."""
    return run_apart(postgres_server.make_own_database())


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    opened = await open_small(database_url)
    yield opened
    opened.terminate()


async def crowd(pool: Pool, size: int, sql: str = "SELECT 1") -> None:
    """Read so many times at once."""
    await asyncio.gather(*(pool.rows(WAIT_S, sql, ()) for _ in range(size)))


async def until(look: Any, seconds: float = WAIT_S) -> None:
    """Wait until `look` returns something true."""
    deadline_s = time.monotonic() + seconds
    while not await look():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.02)


async def answers(pool: Pool) -> bool:
    try:
        return bool(await pool.rows(WAIT_S, "SELECT 1", ()))
    except FAULTS:
        return False


async def test_connections_are_reused_and_never_more_than_the_limit(pool: Pool, database_url: str) -> None:
    await crowd(pool, 300)

    session = await asyncpg.connect(database_url)
    used = await session.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") - 1
    await session.close()
    assert pool.acquired == 300
    assert pool.connected == used == 2
    assert 1 - pool.connected / pool.acquired > 0.95
    assert (pool.active, pool.idle) == (0, 2)


async def test_waiting_for_a_connection_ends_in_time_and_is_no_fault_of_postgres(pool: Pool) -> None:
    async with pool.connection(WAIT_S), pool.connection(WAIT_S):
        for _ in range(5):
            with pytest.raises(GateTimeout):
                await pool.rows(0.001, "SELECT 1", ())

    assert pool.gate.timeouts == 5
    assert pool.state is BreakerState.CLOSED
    assert await answers(pool)


async def test_statements_that_postgres_refuses_do_not_open_the_breaker(pool: Pool) -> None:
    for _ in range(20):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await pool.rows(WAIT_S, "SELECT 1 / 0", ())
        with pytest.raises(asyncpg.DataError):
            await pool.rows(WAIT_S, "SELECT $1::int", ("no number",))
        with pytest.raises(asyncpg.QueryCanceledError):
            await pool.rows(WAIT_S, "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(1)", ())

    assert pool.state is BreakerState.CLOSED


async def test_a_statement_whose_caller_is_cancelled_leaves_no_busy_connection_behind(pool: Pool) -> None:
    before = pool.connected
    tasks = [asyncio.create_task(pool.rows(WAIT_S, "SELECT pg_sleep(30)", ())) for _ in range(2)]
    while pool.active < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await crowd(pool, 4)

    assert pool.active == 0
    assert pool.connected > before
    assert pool.state is BreakerState.CLOSED


async def test_a_transaction_that_is_cancelled_ends_with_the_cancellation(pool: Pool) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with open_transaction(pool, WAIT_S, WAIT_S) as connection:
            begun.set()
            await connection.fetch("SELECT pg_sleep(60)")

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(pool.loans) == 0


async def test_many_waits_let_the_pool_grow_by_ten_and_only_after_a_pause_again(pool: Pool) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock)
    limits = []

    for seconds in (INTERVAL_S, INTERVAL_S, COOL_S):
        await crowd(pool, WAITS_MANY + 20)
        clock.now_s += seconds
        await upkeep.look()
        limits.append(pool.gate.limit)

    assert limits == [2 + STEP, 2 + STEP, 2 + 2 * STEP]


async def test_few_waits_do_not_let_it_grow(pool: Pool) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock)

    await crowd(pool, WAITS_MANY)
    clock.now_s += INTERVAL_S
    await upkeep.look()

    assert pool.gate.waits > 50
    assert pool.gate.limit == 2


async def test_slow_statements_do_not_let_it_grow(pool: Pool) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock)
    for _ in range(WAITS_MANY + 50):
        pool.gate.waits += 1

    await crowd(pool, 4, "SELECT pg_sleep(0.12)")
    clock.now_s += INTERVAL_S
    await upkeep.look()

    assert pool.gate.limit == 2


async def test_it_grows_no_further_than_its_own_limit_and_what_postgres_can_spare(database_url: str) -> None:
    owner = await asyncpg.connect(database_url)
    if not await owner.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", PLAIN_ROLE):
        await owner.execute(f"CREATE ROLE {PLAIN_ROLE}")
    pool = await open_small(database_url, role=PLAIN_ROLE)
    limits = []
    for size_max in (7, 200):
        clock = Clock()
        upkeep = PoolUpkeep(pool, size_max=size_max, clock_s=clock)
        for _ in range(9 if size_max == 200 else 1):
            pool.gate.waits += WAITS_MANY + 1
            clock.now_s += COOL_S
            await upkeep.look()
        limits.append(pool.gate.limit)
    allowed = int(await owner.fetchval("SHOW max_connections"))
    pool.terminate()
    await owner.close()

    assert limits[0] == 7
    assert 7 < limits[1] < allowed - 3


async def test_it_shrinks_a_step_for_every_quiet_minute(pool: Pool) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock)
    pool.gate.move(2 + 2 * STEP)
    limits = []

    for seconds in (QUIET_S / 2, QUIET_S / 2, QUIET_S, QUIET_S):
        clock.now_s += seconds
        await upkeep.look()
        limits.append(pool.gate.limit)

    assert limits == [2 + 2 * STEP, 2 + STEP, 2, 2]


async def test_a_ping_is_answered_fast(pool: Pool) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock)
    fastest_s = 1.0

    for _ in range(10):
        clock.now_s += PING_S
        await upkeep.look()
        fastest_s = min(fastest_s, upkeep.ping_s)

    assert 0 < fastest_s < 0.05
    assert upkeep.pings_failed == 0


async def test_a_primary_that_takes_no_writes_any_more_is_noticed_and_left_until_it_does_again(
    pool: Pool, database_url: str
) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock)
    database = database_url.split("/")[3].split("?", maxsplit=1)[0]
    owner = await asyncpg.connect(database_url)
    await owner.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    await crowd(pool, 1, "SELECT set_config('default_transaction_read_only', 'on', false)")

    clock.now_s += PING_S
    await upkeep.look()
    noticed = pool.demoted
    read = await answers(pool)
    await owner.execute("SET default_transaction_read_only = off")
    await owner.execute(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
    await until(lambda: answers(pool))
    await owner.close()

    assert noticed
    assert not read, "nothing is read from a server that may be behind"
    assert not pool.demoted


async def test_a_slow_statement_is_counted_and_logged_without_its_arguments(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "app.db.response_times"):
        await pool.rows(WAIT_S, "SELECT pg_sleep(0.11), $1::text", ("a secret",))
        await pool.rows(WAIT_S, "SELECT 1", ())
    await until(lambda: asyncio.sleep(0, pool.times.slow == 1))

    (record,) = caplog.records
    assert record.__dict__["statement"] == "SELECT pg_sleep(0.11), $1::text"
    assert record.__dict__["ms"] >= 110
    assert "secret" not in str(record.__dict__)


async def test_every_statement_is_timed_once_in_a_block_and_after_it(pool: Pool) -> None:
    for sql in ("SELECT 1", "SELECT 1 / 0"):
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            async with pool.connection(WAIT_S) as connection:
                await connection.fetch(sql)
    blocks = 2
    await until(lambda: asyncio.sleep(0, sum(pool.times.seconds.counts) >= blocks))

    await crowd(pool, 20)

    assert sum(pool.times.seconds.counts) == blocks + 20


async def test_a_ping_that_finds_all_connections_busy_says_nothing_of_postgres(pool: Pool) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock, ping_timeout_s=0.02)

    async with pool.connection(WAIT_S), pool.connection(WAIT_S):
        clock.now_s += PING_S
        await upkeep.look()

    assert upkeep.pings_failed == 0
    assert pool.state is BreakerState.CLOSED


async def test_a_connection_that_is_not_given_back_is_reported_once_with_its_task(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    upkeep = PoolUpkeep(pool, clock_s=clock)

    async with pool.connection(WAIT_S):
        for _ in range(3):
            clock.now_s += KEPT_S
            await upkeep.look()
    reports = [record for record in caplog.records if "not given back" in record.message]

    assert len(reports) == upkeep.kept == 1
    assert reports[0].__dict__["task"]


async def test_the_series_have_the_names_that_dashboards_ask_for(pool: Pool) -> None:
    metrics = Metrics()
    metrics.add(PoolSeries("a", pool, PoolUpkeep(pool)).collect)
    metrics.add(PoolSeries("b", pool).collect)

    async with pool.connection(WAIT_S):
        text = metrics.text().decode()

    for line in (
        'db_pool_connections_active{pool="a"} 1.0', 'db_pool_connections_active{pool="b"} 1.0',
        'db_pool_connections_idle{pool="a"} 0.0', 'db_pool_connections_limit{pool="a"} 2.0', 'db_pool_waits_total{pool="a"} 0.0',
        'pg_slow_queries_total{pool="a"} 0.0', 'shieldx_breaker_state{name="postgres_a"} 0.0',
    ):  # fmt: skip
        assert f"\n{line}\n" in text
    assert text.count("# TYPE db_pool_connections_active ") == 1


def test_a_restart_of_postgres_is_survived_without_a_call_that_hangs() -> None:
    async def run() -> tuple[bool, list[type[BaseException]], bool, float]:
        pool = await open_small(postgres.url("postgres"), 4)
        await crowd(pool, 20)
        postgres.stop()
        errors = [type(error) for error in await asyncio.gather(*(failure(pool) for _ in range(30)))]
        started_s = time.monotonic()
        await failure(pool)
        refused_s = time.monotonic() - started_s
        opened = pool.breaker.opened > 0
        await postgres.start()
        await until(lambda: answers(pool))
        await crowd(pool, 20)
        healed = pool.state is BreakerState.CLOSED
        pool.terminate()
        return opened, errors, healed, refused_s

    with running_postgres() as postgres:
        opened, errors, healed, refused_s = asyncio.run(run())

    assert opened
    assert healed
    assert PoolAway in errors
    assert refused_s < 0.5


async def failure(pool: Pool) -> BaseException:
    """Return what a read raises that cannot succeed."""
    try:
        await pool.rows(WAIT_S, "SELECT 1", ())
    except FAULTS as error:
        return error
    raise AssertionError("a read has succeeded although Postgres is away")
