"""Fetches the rows of one range and proves them, in this process or in others that see the same snapshot."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import msgspec
import uvloop

from app.audit.facts import Given
from app.audit.rows import ROWS_SQL, Proof, RangeCheck

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

CONNECT_TIMEOUT_S: Final = 10.0  # as for the first connection: the server was there a moment ago
SEQ_MIN: Final = -(2**63)  # the lowest bigint: a row below seq 0 must not stay unseen
# The primary key has the order; a sort would write the whole chain to disk first.
PLAN_SQL: Final = (
    "SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; "
    "SET LOCAL jit = off; SET LOCAL statement_timeout = 0; SET LOCAL search_path = public"
)


class Range(NamedTuple):
    """The entries `low` to before `high` of a shard."""

    shard: int
    low: int
    high: int


async def prove(connection: asyncpg.Connection[Any], of: Range, given: Given) -> Proof:
    """Prove a range over a connection that stands in a transaction; `given` is what the fold has to know before."""
    check = RangeCheck(of.shard, of.low, given)

    async def take(chunk: bytes) -> None:
        check.feed(chunk)

    await connection.execute(PLAN_SQL)
    low = of.low if of.low > 0 else SEQ_MIN
    await connection.copy_from_query(ROWS_SQL, of.shard, low, of.high, output=take, format="binary")
    return check.finish(of.high)


class Crew:
    """Processes that prove ranges side by side, each over connections of its own, all in one exported snapshot."""

    def __init__(self, processes: int, database_url: str, snapshot: str, given: Given) -> None:
        """`snapshot` is the name that pg_export_snapshot() gave, and lives as long as its transaction."""
        # A fresh interpreter inherits no event loop and no socket.
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_remember_task,
            initargs=(database_url, snapshot, given),
        )
        self._ahead_max = processes + 1

    async def proofs(self, ranges: Iterable[Range]) -> AsyncIterator[Proof]:
        """Yield the proofs of all ranges in their order, while the next ones are being made."""
        loop = asyncio.get_running_loop()
        ahead: deque[asyncio.Future[bytes]] = deque()
        try:
            for one in ranges:
                ahead.append(loop.run_in_executor(self._pool, partial(_prove_apart, one)))
                if len(ahead) > self._ahead_max:
                    yield _unpack(await ahead.popleft())
            while ahead:
                yield _unpack(await ahead.popleft())
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Stop the processes, each after the range that it is at."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Proof).decode
_task: list[tuple[str, str, Given]] = []


def _remember_task(database_url: str, snapshot: str, given: Given) -> None:
    """Keep in a crew's process what all of its ranges have in common: it may be large."""
    _task[:] = [(database_url, snapshot, given)]


def _prove_apart(of: Range) -> bytes:
    database_url, snapshot, given = _task[0]
    return _pack(uvloop.run(_prove_in_snapshot(database_url, snapshot, of, given)))


async def _prove_in_snapshot(database_url: str, snapshot: str, of: Range, given: Given) -> Proof:
    connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    try:
        quoted = await connection.fetchval("SELECT quote_literal($1::text)", snapshot)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(f"SET TRANSACTION SNAPSHOT {quoted}")
            return await prove(connection, of, given)
    finally:
        await connection.close()
