"""Fetches the rows of one range and proves them, in this process or in another one that sees the same snapshot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import uvloop

from app.audit.rows import ROWS_SQL, RangeCheck

if TYPE_CHECKING:
    from app.audit.rows import Proof

CONNECT_TIMEOUT_S: Final = 10.0  # as for the first connection: the server was there a moment ago
SEQ_MIN: Final = -(2**63)  # the lowest bigint: a row below seq 0 must not stay unseen
# The primary key has the order; a sort would write the whole chain to disk first.
PLAN_SQL: Final = (
    "SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; "
    "SET LOCAL jit = off; SET LOCAL statement_timeout = 0; SET LOCAL search_path = public"
)


class Range(NamedTuple):
    """The entries `low` to before `high` of a shard, and the transactions that credit_refunds lists."""

    shard: int
    low: int
    high: int
    refunded_ids: frozenset[str]


async def prove(connection: asyncpg.Connection[Any], of: Range) -> Proof:
    """Prove a range over a connection that stands in a transaction."""
    check = RangeCheck(of.shard, of.low, of.refunded_ids)

    async def take(chunk: bytes) -> None:
        check.feed(chunk)

    await connection.execute(PLAN_SQL)
    low = of.low if of.low > 0 else SEQ_MIN
    await connection.copy_from_query(ROWS_SQL, of.shard, low, of.high, output=take, format="binary")
    return check.finish(of.high)


def prove_in_process(database_url: str, snapshot: str, of: Range) -> Proof:
    """Prove a range over a connection of its own, in an exported snapshot. Made to run in another process."""
    return uvloop.run(_prove_apart(database_url, snapshot, of))


async def _prove_apart(database_url: str, snapshot: str, of: Range) -> Proof:
    connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    try:
        quoted = await connection.fetchval("SELECT quote_literal($1::text)", snapshot)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(f"SET TRANSACTION SNAPSHOT {quoted}")
            return await prove(connection, of)
    finally:
        await asyncio.shield(connection.close())
