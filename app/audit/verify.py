"""The offline verifier: proves every entry of every chain, and that the tables hold what the chains add up to.

Everything is read in one snapshot, so a live server may go on writing. A chain is proved range by range, in several
processes when it is long. Memory grows with the number of tenants, open reservations, refunds and private records,
not with the length of the chains.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.audit.archive_check import check_archive
from app.audit.entry import HASH_BYTES, genesis_hash
from app.audit.erasure_check import compare_erasures
from app.audit.fact_check import compare_facts, read_marks
from app.audit.facts import Given
from app.audit.ground import ground_fault
from app.audit.key_check import compare_keys
from app.audit.log import log_origin
from app.audit.log_key_check import compare_log_keys
from app.audit.merkle import Frontier
from app.audit.private import judge_private
from app.audit.private_check import open_private
from app.audit.ranges import Crew, Range, prove
from app.audit.report import Bad, Finding, Report, ShardReport
from app.audit.state import (
    REFUNDS_SQL,
    Findings,
    alerts_since,
    compare_accounts,
    compare_alerts,
    compare_holds,
    compare_refunds,
    reading,
)
from app.audit.totals import Position, Totals
from app.audit.tree_check import TreeCheck, digests_of, has_packed
from app.audit.trust import Trust
from app.clock import now_ms, time_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from app.audit.entry import RowSeal
    from app.audit.rows import Proof
    from app.privacy.envelope import MasterKeys

CONNECT_TIMEOUT_S: Final = 10.0  # a server that does not answer by then will not answer
RANGE_ENTRIES: Final = 50_000  # about half a second of work, and 40 MB to read on after a bad row
INLINE_RANGES: Final = 3  # up to here one process is done before others have started
NO_TRUST: Final = Trust()
# Before the snapshot is taken: a quarter that is archived later would be in neither, no partition any more for the catalog
# and not archived yet for the snapshot. Archiving gives way, and is tried again.
HOLD_SQL: Final = "LOCK TABLE public.audit_entries, public.credit_reservations IN ACCESS SHARE MODE"


class CannotCheckError(Exception):
    """There is nothing here that could be checked. The message says why, and what to do."""


async def verify_ledger(
    database_url: str,
    *,
    seals: Mapping[str, RowSeal],
    progress: Callable[[int, int], None],
    processes: int | None = None,
    range_entries: int = RANGE_ENTRIES,
    trust: Trust = NO_TRUST,
    masters: MasterKeys | None = None,
) -> Report:
    """Check the ledger in the database at `database_url` and return what was found.

    seals      the known keys by key id; entries under other keys count as `signatures_unchecked`
    progress   called with entries done and entries in all
    trust      keys that must have signed the newest checkpoints, and sizes that the chains must have
    processes  how many prove ranges; by default one for each processor, and only this one for a short chain
    masters    the master keys of private data, to open every private record; without them only commitments are compared
    faults     CannotCheckError; OSError, TimeoutError, asyncpg errors when the database cannot be read
    """
    connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    try:
        verification = Verification(connection, seals, progress, range_entries, trust, masters)
        if processes is None:
            total = await connection.fetchval("SELECT coalesce(sum(head_seq + 1), 0)::bigint FROM ledger_shards")
            processes = 1 if total <= INLINE_RANGES * range_entries else len(os.sched_getaffinity(0))
        return await verification.run(processes, database_url)
    finally:
        await connection.close()


class Verification:
    """One pass over a ledger: the chains in the order of their shards, then the tables."""

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        seals: Mapping[str, RowSeal],
        progress: Callable[[int, int], None],
        range_entries: int,
        trust: Trust = NO_TRUST,
        masters: MasterKeys | None = None,
    ) -> None:
        """`connection` is idle, and stays in use until `run` is over."""
        self._connection = connection
        self._seals = seals
        self._progress = progress
        self._range_entries = range_entries
        self._trust = trust
        self._masters = masters
        self._crew: Crew | None = None
        self._entries_before = 0
        self._entries_total = 0
        self._signatures_unchecked = 0

    async def run(self, processes: int = 1, database_url: str = "") -> Report:
        """Check everything and return the report. Raises CannotCheckError.

        More than one process needs the `database_url`, because each connects by itself.
        """
        started_s = time.monotonic()
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute("SET LOCAL search_path = public; SET LOCAL statement_timeout = 0")
            await self._connection.execute(HOLD_SQL)
            refunds = await self._connection.fetch(REFUNDS_SQL)
            given = Given(
                frozenset(row["transaction_id"] for row in refunds), secrets.token_bytes(HASH_BYTES),
                await read_marks(self._connection),
            )  # fmt: skip
            if processes > 1:
                snapshot = await self._connection.fetchval("SELECT pg_export_snapshot()")
                self._crew = Crew(processes, database_url, snapshot, given)
            try:
                report = await self._check_ledger(refunds, given)
            finally:
                if self._crew is not None:
                    self._crew.close()
        report.seconds = round(time.monotonic() - started_s, 3)
        return report

    async def _check_ledger(self, refunds: Sequence[asyncpg.Record], given: Given) -> Report:
        checked_at = time_text(now_ms())
        origin, shard_count = await ledger_of(self._connection)
        outside = unknown_log_fault(self._trust, origin, shard_count) or await ground_fault(self._connection)
        totals = Totals(self._seals, given, await alerts_since(self._connection))
        rows = await self._connection.fetch("SELECT shard, head_seq, head_hash FROM ledger_shards")
        heads = {row["shard"]: row for row in rows}
        self._entries_total = sum(head["head_seq"] + 1 for head in heads.values())
        archive = Findings(frozenset())
        archived = await check_archive(self._connection, shard_count, archive)
        shards = []
        for number in range(shard_count):
            log_name = log_origin(origin, number)
            position = Position(number, genesis_hash(log_name))
            tree = TreeCheck(self._connection, number, log_name, self._trust, Frontier(), archived.get(number, ()))
            shards.append(await self._check_shard(position, heads.pop(number, None), totals, tree))
        findings = Findings(frozenset(shard.shard for shard in shards if shard.first_bad is not None))
        if outside is not None:
            findings.note(None, None, outside)
        if None in archive.first:
            findings.note(None, None, archive.first[None].reason)
        await self._find_strays(shard_count, heads, findings)
        seen = await compare_accounts(self._connection, totals, findings)
        with reading("credit_alerts", findings):
            await compare_alerts(self._connection, totals, findings)
        await compare_holds(self._connection, totals, findings)
        compare_refunds(refunds, totals, findings)
        await compare_facts(self._connection, given.key, totals.facts, findings)
        await self._compare_told(origin, totals, findings)
        private = await judge_private(self._connection, totals.private, findings)
        if self._masters is not None:
            await open_private(self._connection, self._masters, totals.private, findings)
        trial_balance = None if findings.broken else sum(totals.system_balances().values()) + seen.balance
        if trial_balance:
            findings.note(None, None, f"the trial balance is {trial_balance}, not 0")
        for shard in shards:
            shard.first_bad = shard.first_bad or findings.first.pop(shard.shard, None)
        first_bad = _first_finding(shards, findings)
        return Report(
            ok=first_bad is None,
            checked_at=checked_at,
            shards=shards,
            signatures_unchecked=self._signatures_unchecked,
            accounts=seen.compared,
            seconds=0.0,
            first_bad=first_bad,
            trial_balance=trial_balance,
            private=private,
        )

    async def _compare_told(self, origin: str, totals: Totals, findings: Findings) -> None:
        """Hold the tables of which entries without a tenant tell against those."""
        with reading("api_keys or pending_entries", findings):
            await compare_keys(self._connection, totals.keys, findings)
        with reading("log_keys or pending_entries", findings):
            await compare_log_keys(self._connection, origin, totals.keys, findings)
        with reading("private_erasures", findings):
            await compare_erasures(self._connection, totals.private, findings)

    async def _check_shard(
        self, position: Position, head: asyncpg.Record | None, totals: Totals, tree: TreeCheck
    ) -> ShardReport:
        last_seq = await self._connection.fetchval("SELECT max(seq) FROM audit_chain WHERE shard = $1", position.shard)
        bad = None
        if last_seq is not None:
            async for proof in self._proofs(position.shard, last_seq, totals.given):
                bad = totals.join(position, proof) or await tree.feed(digests_of(proof))
                self._progress(self._entries_before + position.next_seq, self._entries_total)
                if bad is not None:
                    break
        bad = bad or size_fault(self._trust, position) or head_fault(position, head) or await tree.finish()
        if bad is None and position.transfer is not None:
            bad = Bad(position.next_seq - 1, position.transfer.cut)
        entries = position.next_seq if bad is None or bad.seq is None else min(bad.seq, position.next_seq)
        self._entries_before += position.next_seq
        self._signatures_unchecked += position.signatures_unchecked
        return ShardReport(position.shard, entries, -1 if head is None else head["head_seq"], bad, tree.signed_size)

    async def _proofs(self, shard: int, last_seq: int, given: Given) -> AsyncIterator[Proof]:
        """Yield the proofs of all ranges of a shard, in order."""
        ranges = (
            Range(shard, low, min(low + self._range_entries, last_seq + 1))
            for low in range(0, max(last_seq, 0) + 1, self._range_entries)
        )
        if self._crew is not None:
            async for proof in self._crew.proofs(ranges):
                yield proof
            return
        for one in ranges:
            yield await prove(self._connection, one, given)

    async def _find_strays(self, shard_count: int, heads: Mapping[int, asyncpg.Record], findings: Findings) -> None:
        """Look for what belongs to no shard of the ledger. `heads` are those that no shard has claimed."""
        for number in heads:
            findings.note(None, None, f"ledger_shards has shard {number}, the ledger has {shard_count} shards")
        packed = ("audit_leaf_tiles",) if await has_packed(self._connection) else ()
        for table in ("audit_tree", "audit_checkpoints", *packed):
            other = await self._connection.fetchval(
                f"(SELECT shard FROM {table} WHERE shard < 0 LIMIT 1) UNION ALL "  # noqa: S608 - one of those above
                f"(SELECT shard FROM {table} WHERE shard >= $1 LIMIT 1) LIMIT 1", shard_count,
            )  # fmt: skip
            if other is not None:
                findings.note(None, None, f"{table} has shard {other}, the ledger has {shard_count} shards")
        stray = await self._connection.fetchrow(
            "(SELECT shard, seq FROM audit_chain WHERE shard < 0 ORDER BY shard, seq LIMIT 1) UNION ALL "
            "(SELECT shard, seq FROM audit_chain WHERE shard >= $1 ORDER BY shard, seq LIMIT 1) LIMIT 1",
            shard_count,
        )
        if stray is not None:
            where = f"an entry stands in shard {stray['shard']}"
            findings.note(None, stray["seq"], f"{where}, the ledger has {shard_count} shards")


async def ledger_of(connection: asyncpg.Connection[Any]) -> tuple[str, int]:
    """Return the origin of the ledger and its number of shards. Raises CannotCheckError."""
    row = await connection.fetchrow("SELECT origin, shard_count FROM ledger")
    if row is not None:
        return row["origin"], row["shard_count"]
    if await connection.fetchval("SELECT EXISTS (SELECT FROM audit_chain)"):
        raise CannotCheckError("the table ledger is empty: the origin of the chains is not known")
    raise CannotCheckError("the database holds no ledger yet: start `shieldx serve` on it, or name another")


def unknown_log_fault(trust: Trust, origin: str, shard_count: int) -> str | None:
    """Return that the ledger lacks a log of which something is known. Raises CannotCheckError if it is another ledger's."""
    name = trust.unknown_log(origin, shard_count)
    if name is None:
        return None
    if not name.startswith(f"{origin}/"):
        raise CannotCheckError(f"a key or checkpoint that was given is of the log {name}, the ledger here is {origin}")
    return f"the log {name} is known from elsewhere, the ledger has {shard_count} shards"


def size_fault(trust: Trust, position: Position) -> Bad | None:
    """Compare where the chain ends with the size that is remembered of it: a tail that was cut off shows."""
    remembered = trust.sizes.get(position.shard, 0)
    if position.next_seq >= remembered:
        return None
    return Bad(position.next_seq, f"the chain has {position.next_seq} entries, {remembered} are remembered")


def head_fault(position: Position, head: asyncpg.Record | None) -> Bad | None:
    """Compare where the chain ends with where ledger_shards says that it does."""
    last_seq = position.next_seq - 1
    if head is None:
        return Bad(None, "ledger_shards has no row for this shard")
    if head["head_seq"] != last_seq:
        ends = f"head says {head['head_seq']}, chain ends at {last_seq}"
        return Bad(min(head["head_seq"], last_seq) + 1, ends)
    if last_seq >= 0 and head["head_hash"] != position.last_hash:
        return Bad(last_seq, "head_hash of ledger_shards is not the hash of the last entry")
    return None


def _first_finding(shards: list[ShardReport], findings: Findings) -> Finding | None:
    for shard in shards:
        if shard.first_bad is not None:
            return Finding(shard.shard, shard.first_bad.seq, shard.first_bad.reason)
    for number, bad in findings.first.items():
        return Finding(number, bad.seq, bad.reason)
    return None
