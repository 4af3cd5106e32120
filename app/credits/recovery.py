"""Bring Redis and Postgres of one shard together, before the shard serves. Postgres decides.

continue  the same Redis, no gap: append what its outbox has beyond Postgres
adopt     Redis was restarted, but what it holds continues what Postgres has: append, then a new generation
rebuild   Redis is empty, behind, or unsound: lay Postgres over it, then a new generation
refuse    Postgres lacks what Redis knows to have been durable: an older backup was restored; a person decides

Postgres learns a new generation before Redis does, so no script of an older one is accepted in between.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from app.audit.keeper import ShardRefused
from app.audit.shard import Shard, ShardRow, shard_row
from app.audit.writer import POSTGRES_ANSWER_TIMEOUT_S, Fenced, Lease, RedisForgot, Writer
from app.clock import ms_of, now_ms, time_of
from app.credits.controls import lua_state
from app.db.founding import QUARTERS_AHEAD
from app.db.keys import checkpoint_key, shard_keys, shard_tag
from app.db.lua import load_script
from app.db.postgres import cut_off
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import asyncpg

    from app.db.redis import RedisLink

log = logging.getLogger(__name__)

REMEMBER_MS: Final = 86_400_000  # as long as an answer is given again
ROWS_PER_CALL: Final = 500  # rows laid into Redis by one script call: about 2 ms of its time
PAGE_TIMEOUT_S: Final = 30.0  # the first page of a large table may wait for a scan
SCAN_COUNT: Final = 1_000  # keys looked at per SCAN step

_KEYS: Final = re.compile(rb'"fingerprint":"([\w-]{22})".*?"idempotency":"([\w-]{22})"')
_LEGS: Final = re.compile(rb'[{,]"leg":(\d+),"legs":(\d+)\}')

Plan = Literal["continue", "adopt", "rebuild"]


class LedgerRecovery:
    """Recovers one shard over the writer's own connections."""

    def __init__(self, shard: Shard, writer: Writer, link: RedisLink) -> None:
        """`link` is the writer's connection to Redis, opened here."""
        self._shard = shard
        self._writer = writer
        self._link = link
        self._keys = shard_keys(shard.number)
        self.adopted = 0  # since the start
        self.rebuilt = 0

    async def recover(self, row: ShardRow, lease: Lease) -> ShardRow:
        """Return the shard's row once Redis continues it. Raises ShardRefused, Fenced, or a transient error."""
        run_id = await self._link.open()
        known = await self._link.command("HMGET", self._keys[0], "generation", "seq", "durable", "restoring", "at")
        plan = self._plan(row, run_id, known)
        # The ledger's own time decides in which quarter an event falls, even where a clock was far off. It is 0 as long as
        # the chain is empty, which is no time: partitions since 1970 would be made.
        at = time_of(int(known[4] or 0) or now_ms())
        await self._execute(lease, "SELECT ensure_partitions(least($1, now()), greatest($1, now()), $2)", at, QUARTERS_AHEAD)
        if plan != "rebuild":
            try:
                if plan == "adopt":
                    await self._record_generation(lease, row.generation + 1, run_id)
                await self._writer.drain(lease, row.generation)
            except RedisForgot as error:
                log.warning("outbox unusable", extra={"shard": self._shard.number, "reason": str(error)})
                plan = "rebuild"
        log.info("recovery", extra={"shard": self._shard.number, "plan": plan, "run_id": run_id})
        generation = row.generation
        if plan == "adopt":
            generation += 1
            await self._restore(lease.epoch, "hold")
            async with lease.connection.transaction(isolation="repeatable_read", readonly=True):
                await self._lay_refusals(lease)
            await self._restore(lease.epoch, "adopt", generation, self._writer.head_seq)
            self.adopted += 1
        elif plan == "rebuild":
            generation += 1
            await self._record_generation(lease, generation, run_id)
            await self._rebuild(lease, generation)
            self.rebuilt += row.generation > 0  # laying the first generation of a new ledger recovers nothing
        with cut_off(lease.connection, POSTGRES_ANSWER_TIMEOUT_S):
            final = await lease.connection.fetchrow(
                "SELECT epoch, generation, run_id, head_seq, head_hash FROM ledger_shards WHERE shard = $1",
                self._shard.number,
            )
        return shard_row(final)

    def _plan(self, row: ShardRow, run_id: str, known: Sequence[bytes | None]) -> Plan:
        generation, seq, durable = (int(value) if value is not None else -1 for value in known[:3])
        if generation > row.generation or (generation == row.generation and durable > row.head_seq):
            raise ShardRefused(
                f"Postgres ends at generation {row.generation}, seq {row.head_seq}, but Redis knows of generation "
                f"{generation}, seq {durable}: seq {row.head_seq + 1} is missing from Postgres, which looks like an "
                f"older backup. Restore the newer database, or empty this Redis to go on from the older one."
            )
        if generation != row.generation or generation <= 0 or seq < row.head_seq or known[3] is not None:
            return "rebuild"
        return "continue" if run_id == row.run_id else "adopt"

    async def _execute(self, lease: Lease, sql: str, *values: Any) -> str:
        with cut_off(lease.connection, POSTGRES_ANSWER_TIMEOUT_S):
            return await lease.connection.execute(sql, *values)

    async def _pages(self, lease: Lease, sql: str) -> AsyncIterator[list[asyncpg.Record]]:
        """Return the rows of a statement about this shard in pages, each within PAGE_TIMEOUT_S."""
        with cut_off(lease.connection, PAGE_TIMEOUT_S):
            cursor = await lease.connection.cursor(sql, self._shard.number)
        while True:
            with cut_off(lease.connection, PAGE_TIMEOUT_S):
                rows = await cursor.fetch(ROWS_PER_CALL)
            if not rows:
                return
            yield rows

    async def _record_generation(self, lease: Lease, generation: int, run_id: str) -> None:
        status = await self._execute(
            lease,
            "UPDATE ledger_shards SET generation = $3, run_id = $4 WHERE shard = $1 AND epoch = $2",
            self._shard.number, lease.epoch, generation, run_id,
        )  # fmt: skip
        if status != "UPDATE 1":
            raise Fenced(f"shard {self._shard.number} has another writer")

    async def _restore(self, epoch: int, verb: str, *words: str | int | bytes) -> None:
        answer = await self._link.evaluate(load_script("ledger_restore"), self._keys, [epoch, verb, *words])
        if answer[0] != b"OK":
            raise Fenced(f"shard {self._shard.number} is being restored at epoch {int(answer[1])}")

    async def _rebuild(self, lease: Lease, generation: int) -> None:
        await self._restore(lease.epoch, "close")
        await self._clear(lease.epoch)
        async with lease.connection.transaction(isolation="repeatable_read", readonly=True):
            await self._lay_accounts(lease)
            await self._lay_holds(lease)
            last_at_ms = await self._lay_answers(lease)
            await self._lay_refusals(lease)
        await self._restore(lease.epoch, "open", generation, self._writer.head_seq, last_at_ms)

    async def _clear(self, epoch: int) -> None:
        pattern = shard_tag(self._shard.number) + "*"
        cursor = 0
        while True:
            cursor, keys = await self._link.command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            # What was signed about the shard's tree stays known: that memory guards against a chain that went back.
            doomed = [key for key in keys if key != checkpoint_key(self._shard.number).encode()]
            if doomed:
                await self._restore(epoch, "clear", *doomed)
            cursor = int(cursor)
            if cursor == 0:
                return

    async def _lay(self, lease: Lease, verb: str, rows: Sequence[Sequence[str | int | bytes]]) -> None:
        for start in range(0, len(rows), ROWS_PER_CALL):
            words = [word for one in rows[start : start + ROWS_PER_CALL] for word in one]
            await self._restore(lease.epoch, verb, *words)

    async def _lay_accounts(self, lease: Lease) -> None:
        sql = (
            "SELECT tenant_id, balance, reserved, incoming, version, created_at, settings, controls "
            "FROM credit_accounts WHERE shard = $1"
        )
        async for rows in self._pages(lease, sql):
            await self._lay(lease, "accounts", [[*row[:5], ms_of(row[5]), row[6], _controls(row)] for row in rows])

    async def _lay_holds(self, lease: Lease) -> None:
        sql = (
            "SELECT reservation_id, tenant_id, amount, purpose, expires_at, counted FROM credit_reservations "
            "WHERE shard = $1 AND status = 'held'"
        )
        async for rows in self._pages(lease, sql):
            await self._lay(
                lease, "holds",
                [[str(r[0]), r[1], r[2], r[3], ms_of(r[4]) if r[4] else 0, "held", r[5] or ""] for r in rows],
            )  # fmt: skip

    async def _lay_answers(self, lease: Lease) -> int:
        """Lay the idempotency records of the last day; return the time of the chain's last entry, Unix ms."""
        now = now_ms()
        sql = "SELECT seq, at, entry FROM audit_entries WHERE shard = $1 AND at > now() - interval '24 hours'"
        async for rows in self._pages(lease, sql):
            await self._lay(lease, "answers", [word for seq, at, entry in rows if (word := _answer(seq, at, entry, now))])
        with cut_off(lease.connection, PAGE_TIMEOUT_S):
            last = await lease.connection.fetchval(
                "SELECT at FROM audit_entries WHERE shard = $1 AND seq = $2", self._shard.number, self._writer.head_seq
            )
        return ms_of(last) if last is not None else 0

    async def _lay_refusals(self, lease: Lease) -> None:
        """Lay the refusals and batch keys of the last day: they have no seq, so Redis may have lost the newest."""
        now = now_ms()
        async for rows in self._pages(lease, query("remembered_answers")):
            await self._lay(lease, "answers", [[r[0], r[1] + r[2], _seconds_left(ms_of(r[3]), now)] for r in rows])


def _controls(row: asyncpg.Record) -> str:
    return lua_state(orjson.loads(row["settings"]), orjson.loads(row["controls"]), row["balance"])


def _seconds_left(at_ms: int, now: int) -> int:
    return max(1, (at_ms + REMEMBER_MS - now) // 1000)


def _answer(seq: int, at: Any, entry: bytes, now: int) -> list[str | int | bytes] | None:
    """Return hash, value and seconds to live of the idempotency record of an entry, if it stands for one."""
    found = _KEYS.search(entry)
    if found is None:
        return None
    answer = b'["ok",%d]' % seq
    if legs := _LEGS.search(entry):
        if legs[1] != b"1":
            return None
        answer = b'["ok",%d,%d]' % (seq, int(legs[2]))
    return [found[2], found[1] + answer, _seconds_left(ms_of(at), now)]
