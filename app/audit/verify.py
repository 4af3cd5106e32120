"""The offline verifier: proves every entry of every chain, and that the tables hold what the chains add up to.

Everything is read in one snapshot, so a live server may go on writing. Memory grows with the number of tenants, open
reservations and refunds, not with the length of the chains.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import uvloop

from app.audit.entry import genesis_hash
from app.audit.fold import Fold
from app.audit.report import Bad, Finding, Report, ShardReport, report_json, report_text
from app.audit.rows import ROWS_SQL, Chain
from app.audit.state import REFUNDS_SQL, Findings, compare_accounts, compare_holds, compare_refunds
from app.clock import now_ms, time_text
from app.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.audit.entry import RowSeal

CONNECT_TIMEOUT_S: Final = 10.0  # a server that does not answer by then will not answer
WINDOW_ENTRIES: Final = 250_000  # per COPY: about 200 MB to read on after a bad row, and 2 s between two windows
SEQ_MIN: Final = -(2**63)  # the lowest bigint: a row below seq 0 must not stay unseen
EXIT_INTACT: Final = 0
EXIT_TAMPERED: Final = 1
EXIT_UNCHECKED: Final = 2


class CannotCheck(Exception):
    """There is nothing here that could be checked. The message says why, and what to do."""


async def verify_ledger(
    database_url: str, *, seals: Mapping[str, RowSeal], progress: Callable[[int, int], None]
) -> Report:
    """Check the ledger in the database at `database_url` and return what was found.

    seals     the known keys by key id; entries under other keys count as `signatures_unchecked`
    progress  called with entries done and entries in all
    faults    CannotCheck; OSError, TimeoutError, asyncpg errors when the database cannot be read
    """
    connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S, command_timeout=None)
    try:
        return await verify_connection(connection, seals=seals, progress=progress)
    finally:
        await connection.close()


async def verify_connection(
    connection: asyncpg.Connection[Any], *, seals: Mapping[str, RowSeal], progress: Callable[[int, int], None]
) -> Report:
    """Check the ledger behind an idle connection; otherwise as `verify_ledger`."""
    started_s = time.monotonic()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # The primary key gives the order; a sort would write the whole chain to disk first.
        await connection.execute(
            "SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; "
            "SET LOCAL jit = off; SET LOCAL statement_timeout = 0; SET LOCAL search_path = public"
        )
        verification = Verification(connection, seals, progress)
        report = await verification.run()
    report.seconds = round(time.monotonic() - started_s, 3)
    return report


class Verification:
    """One pass over a ledger: the chains in the order of their shards, then the tables."""

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        seals: Mapping[str, RowSeal],
        progress: Callable[[int, int], None],
    ) -> None:
        """`connection` stands inside a transaction whose snapshot does not move."""
        self._connection = connection
        self._seals = seals
        self._progress = progress
        self._entries_before = 0
        self._entries_total = 0
        self._signatures_unchecked = 0

    async def run(self) -> Report:
        """Check everything and return the report, its seconds still 0. Raises CannotCheck."""
        checked_at = time_text(now_ms())
        refunds = await self._connection.fetch(REFUNDS_SQL)
        fold = Fold([row["transaction_id"] for row in refunds])
        origin, shard_count = await self._ledger()
        heads = {row["shard"]: row for row in await self._connection.fetch("SELECT shard, head_seq, head_hash FROM ledger_shards")}
        self._entries_total = sum(head["head_seq"] + 1 for head in heads.values())
        shards = [await self._check_shard(number, origin, heads.pop(number, None), fold) for number in range(shard_count)]
        findings = Findings(frozenset(shard.shard for shard in shards if shard.first_bad is not None))
        await self._find_strays(shard_count, heads, findings)
        seen = await compare_accounts(self._connection, fold, findings)
        await compare_holds(self._connection, fold, findings)
        compare_refunds(refunds, fold, findings)
        trial_balance = None if findings.broken else sum(fold.system_balances().values()) + seen.balance
        if trial_balance:
            findings.note(None, None, f"the trial balance is {trial_balance}, not 0")
        for shard in shards:
            shard.first_bad = shard.first_bad or findings.first.pop(shard.shard, None)
        first_bad = _first_finding(shards, findings)
        return Report(
            ok=first_bad is None, checked_at=checked_at, shards=shards, signatures_unchecked=self._signatures_unchecked,
            accounts=seen.compared, seconds=0.0, first_bad=first_bad, trial_balance=trial_balance,
        )  # fmt: skip

    async def _ledger(self) -> tuple[str, int]:
        row = await self._connection.fetchrow("SELECT origin, shard_count FROM ledger")
        if row is not None:
            return row["origin"], row["shard_count"]
        if await self._connection.fetchval("SELECT EXISTS (SELECT FROM audit_entries)"):
            raise CannotCheck("the table ledger is empty, so the origin of the chains in audit_entries is not known")
        raise CannotCheck("the database holds no ledger yet; start `shieldx serve` on it once, or name another one")

    async def _check_shard(self, number: int, origin: str, head: asyncpg.Record | None, fold: Fold) -> ShardReport:
        chain = Chain(number, genesis_hash(f"{origin}/s{number:02d}"), self._seals, fold)
        last_seq = await self._connection.fetchval(
            "SELECT seq FROM audit_entries WHERE shard = $1 ORDER BY seq DESC LIMIT 1", number
        )
        low, high = SEQ_MIN, WINDOW_ENTRIES
        while last_seq is not None and low <= last_seq and chain.bad is None:
            await self._check_window(chain, low, high)
            if chain.bad is None and chain.next_seq <= min(high - 1, last_seq):
                chain.fail("the entry is missing")
            low, high = high, high + WINDOW_ENTRIES
        unfinished = fold.end_chain()
        bad = chain.bad or _head_fault(chain, head)
        if bad is None and unfinished is not None:
            bad = Bad(chain.next_seq - 1, unfinished)
        self._entries_before += chain.next_seq
        self._signatures_unchecked += chain.signatures_unchecked
        return ShardReport(number, chain.next_seq, -1 if head is None else head["head_seq"], bad)

    async def _check_window(self, chain: Chain, low: int, high: int) -> None:
        async def take(chunk: bytes) -> None:
            chain.feed(chunk)
            self._progress(self._entries_before + chain.next_seq, self._entries_total)

        chain.begin()
        await self._connection.copy_from_query(ROWS_SQL, chain.shard, low, high, output=take, format="binary")
        chain.end()

    async def _find_strays(self, shard_count: int, heads: Mapping[int, asyncpg.Record], findings: Findings) -> None:
        for number in heads:
            findings.note(None, None, f"ledger_shards has shard {number}, the ledger has {shard_count} shards")
        stray = await self._connection.fetchrow(
            "(SELECT shard, seq FROM audit_entries WHERE shard < 0 ORDER BY shard, seq LIMIT 1) UNION ALL "
            "(SELECT shard, seq FROM audit_entries WHERE shard >= $1 ORDER BY shard, seq LIMIT 1) LIMIT 1",
            shard_count,
        )
        if stray is not None:
            findings.note(None, stray["seq"], f"an entry stands in shard {stray['shard']}, the ledger has {shard_count}")


def _head_fault(chain: Chain, head: asyncpg.Record | None) -> Bad | None:
    """Compare where the chain ends with where ledger_shards says that it does."""
    last_seq = chain.next_seq - 1
    if head is None:
        return Bad(None, "ledger_shards has no row for this shard")
    if head["head_seq"] > last_seq:
        return Bad(chain.next_seq, f"the tail is cut: head says {head['head_seq']}, chain ends at {last_seq}")
    if head["head_seq"] < last_seq:
        return Bad(head["head_seq"] + 1, f"head says {head['head_seq']}, chain ends at {last_seq}")
    if last_seq >= 0 and head["head_hash"] != chain.last_hash:
        return Bad(last_seq, "head_hash of ledger_shards is not the hash of the last entry")
    return None


def _first_finding(shards: list[ShardReport], findings: Findings) -> Finding | None:
    for shard in shards:
        if shard.first_bad is not None:
            return Finding(shard.shard, shard.first_bad.seq, shard.first_bad.reason)
    for number, bad in findings.first.items():
        return Finding(number, bad.seq, bad.reason)
    return None


def run_verify(database_url: str, seals: Mapping[str, RowSeal], as_json: bool) -> int:  # noqa: FBT001 - the command's own flag
    """Verify, print the result on stdout, and return the exit code: 0 intact, 1 tampered, 2 could not check."""
    bar = Progress(0, "verify")
    try:
        report = uvloop.run(verify_ledger(database_url, seals=seals, progress=bar.update))
    except (CannotCheck, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        bar.close()
        sys.stderr.write(f"could not check: {_advice(error)}\n")
        return EXIT_UNCHECKED
    bar.close()
    sys.stdout.write((report_json(report) if as_json else report_text(report)) + "\n")
    return EXIT_INTACT if report.ok else EXIT_TAMPERED


def _advice(error: Exception) -> str:
    match error:
        case CannotCheck():
            return str(error)
        case asyncpg.UndefinedTableError() | asyncpg.UndefinedColumnError():
            return f"the database has no shieldx schema of this version ({error}); run `shieldx migrate`, or name another one"
        case asyncpg.InsufficientPrivilegeError():
            return f"{error}; the role needs SELECT on the ledger's tables"
        case OSError() | TimeoutError():
            return f"no connection to the database ({type(error).__name__}: {error}); is it running, is --database-url right?"
    return f"{type(error).__name__}: {error}"
