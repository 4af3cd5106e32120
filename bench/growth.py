"""What an operation costs as accounts and chain rows become many."""

from collections.abc import Callable, Sequence
from typing import Final

import asyncpg
import msgspec
import redis.asyncio

from bench.load import LoadSpec
from bench.plain_postgres import query_text
from bench.rounds import Pace, measure
from bench.scenarios import SETUP_BATCH_CONNECTIONS, make_accounts
from bench.servers import Servers
from bench.workloads import Consume, ConsumeBatch

ACCOUNT_STEPS: Final = (1_000, 100_000, 1_000_000)
CHAIN_STEPS: Final = (1_000_000, 10_000_000)
CONNECTIONS: Final = 128
FILL_BATCH: Final = 1_000  # operations per batch while the chain is filled
FILL_SECONDS: Final = 10.0  # seconds of filling between two looks at the number of rows


class Stored(msgspec.Struct, frozen=True):
    """What the databases hold at one moment."""

    chain_rows: int
    redis_bytes: int  # the data set alone
    redis_used_bytes: int  # with the tables of keys, buffers and the outbox that waits to be trimmed
    postgres_bytes: int
    wal_bytes: int


class GrowthPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Throughput and cost of consume at one size; bytes are growth over the run per operation."""

    step: str
    accounts: int
    chain_rows: int
    operations_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    redis_bytes_per_operation: float
    redis_used_bytes_per_operation: float
    postgres_bytes_per_operation: float
    wal_bytes_per_operation: float
    chain_table_bytes_per_row: float
    redis_dataset_bytes: int
    postgres_bytes: int
    server_memory_bytes: int


class Storage:
    """Asks both databases how much they hold."""

    def __init__(self, servers: Servers) -> None:
        """Use the databases of `servers`.

        faults  ValueError when no databases run
        """
        if servers.endpoints is None:
            raise ValueError("growth needs the databases of shieldx")
        self._endpoints = servers.endpoints

    async def look(self) -> Stored:
        """Read the sizes; the counts of rows come from the chain's head, not from a scan."""
        connection = await asyncpg.connect(self._endpoints.admin_database_url)
        try:
            row = await connection.fetchrow(query_text("storage"))
        finally:
            await connection.close()
        client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(self._endpoints.redis_url)
        try:
            memory = await client.info("memory")
        finally:
            await client.aclose()
        if row is None:
            raise ValueError("the query for sizes returned no row")
        return Stored(
            chain_rows=row["chain_rows"],
            redis_bytes=memory["used_memory_dataset"],
            redis_used_bytes=memory["used_memory"],
            postgres_bytes=row["postgres_bytes"],
            wal_bytes=row["wal_bytes"],
        )

    async def chain_table_bytes(self) -> int:
        """Size of the chain's table with its indexes and partitions."""
        connection = await asyncpg.connect(self._endpoints.admin_database_url)
        try:
            size: int = await connection.fetchval(query_text("chain_table"))
        finally:
            await connection.close()
        return size


async def grow(
    servers: Servers,
    pace: Pace,
    *,
    existing: int,
    accounts: Sequence[int] = ACCOUNT_STEPS,
    chain_rows: Sequence[int] = CHAIN_STEPS,
    tell: Callable[[str], None],
) -> list[GrowthPoint]:
    """Measure consume at each number of accounts, then at each number of chain rows.

    existing              accounts that were made before
    accounts, chain_rows  ascending; steps below what exists already are measured as they are
    faults                SetupError and the faults of `bench.rounds.measure`
    """
    storage = Storage(servers)
    points = []
    for wanted in accounts:
        if wanted > existing:
            await make_accounts(servers, existing, wanted - existing, bar=pace.bar)
            existing = wanted
        points.append(await _measure_point(servers, storage, pace, f"{wanted:,} accounts", existing))
        tell(f"{points[-1].step}: {points[-1].operations_per_s:,.0f} ops/s")
    for rows in chain_rows:
        await _fill(servers, storage, pace, tenants=existing, rows=rows)
        points.append(await _measure_point(servers, storage, pace, f"{rows:,} chain rows", existing))
        tell(f"{points[-1].step}: {points[-1].operations_per_s:,.0f} ops/s")
    return points


async def _fill(servers: Servers, storage: Storage, pace: Pace, *, tenants: int, rows: int) -> None:
    while (held := (await storage.look()).chain_rows) < rows:
        spec = LoadSpec(
            label=f"fill the chain {held:,}/{rows:,}",
            origin=servers.origin("shieldx"),
            workload=ConsumeBatch(tenants, FILL_BATCH),
            connections=SETUP_BATCH_CONNECTIONS,
            seconds=FILL_SECONDS,
            warmup_seconds=0.0,
            bar=pace.bar,
        )
        measured = await measure(spec, servers.processes["shieldx"].pid)
        if not measured.load.operations:
            raise RuntimeError(f"filling the chain stopped at {held} rows: {measured.load.statuses}")


async def _measure_point(servers: Servers, storage: Storage, pace: Pace, step: str, accounts: int) -> GrowthPoint:
    before = await storage.look()
    spec = LoadSpec(
        label=step,
        origin=servers.origin("shieldx"),
        workload=Consume(accounts),
        connections=CONNECTIONS,
        seconds=pace.seconds,
        bar=pace.bar,
    )
    measured = await measure(spec, servers.processes["shieldx"].pid)
    after = await storage.look()
    # Rows, not answers: the warm-up and the drain store as well.
    stored = max(1, after.chain_rows - before.chain_rows)
    load = measured.load
    return GrowthPoint(
        step=step,
        accounts=accounts,
        chain_rows=after.chain_rows,
        operations_per_s=load.operations_per_s,
        p50_ms=load.tasks.p50_ms,
        p99_ms=load.tasks.p99_ms,
        errors=load.errors,
        redis_bytes_per_operation=(after.redis_bytes - before.redis_bytes) / stored,
        redis_used_bytes_per_operation=(after.redis_used_bytes - before.redis_used_bytes) / stored,
        postgres_bytes_per_operation=(after.postgres_bytes - before.postgres_bytes) / stored,
        wal_bytes_per_operation=(after.wal_bytes - before.wal_bytes) / stored,
        chain_table_bytes_per_row=await storage.chain_table_bytes() / max(1, after.chain_rows),
        redis_dataset_bytes=after.redis_bytes,
        postgres_bytes=after.postgres_bytes,
        server_memory_bytes=measured.server.memory_bytes,
    )
