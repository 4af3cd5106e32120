"""Verification from trusted checkpoints: only the entries after them are read, and that the chain extends them.

What was proved when a checkpoint was taken into trust stays proved: the tree has one root for one history. The stored
hashes below the checkpoint have to give its root; then every entry above it is proved as by a whole verification, and
the state of each tenant that has one has to follow from the tenant's last entry below, and to be that of its account.
Reservations and consumes from below the checkpoint are taken as credit_reservations and credit_refunds have them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import msgspec

from app.audit.archive_check import check_archive
from app.audit.entry import ENTRY_PREFIX, Record, entry_hash, genesis_hash
from app.audit.fact_check import all_reservations
from app.audit.facts import Given
from app.audit.fold import BALANCE_MAX, Hold, Transfer, detail
from app.audit.ground import ground_fault
from app.audit.log import log_origin
from app.audit.merkle import EMPTY_ROOT, Frontier, Node, Span, inclusion_spans, root_of_inclusion, span_hash
from app.audit.private import Earlier, claim_of, judge_private
from app.audit.ranges import PLAN_SQL, Range, prove
from app.audit.report import Bad, Finding, PrivateReport, Report, ShardReport
from app.audit.state import REFUNDS_SQL, Findings, alerts_since, reading, stated_fault, told_fault
from app.audit.tiles import node_in, runs_for
from app.audit.totals import Account, Position, Refund, Totals
from app.audit.tree_check import TreeCheck, digests_of
from app.audit.verify import (
    CONNECT_TIMEOUT_S,
    HOLD_SQL,
    RANGE_ENTRIES,
    head_fault,
    ledger_of,
    size_fault,
    unknown_log_fault,
)
from app.clock import now_ms, time_text
from app.privacy.tombstones import TOMBSTONES, Evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.audit.checkpoint import Checkpoint
    from app.audit.entry import RowSeal
    from app.audit.rows import Proof
    from app.audit.trust import Trust
    from app.privacy.tombstones import Claim

_BEFORE: Final = """
    SELECT t.tenant_id, e.seq, e.balance, e.reserved, e.version FROM unnest($1::text[]) AS t (tenant_id)
    CROSS JOIN LATERAL (
      SELECT seq, balance, reserved, version FROM audit_chain
      WHERE tenant_id = t.tenant_id AND shard = $2 AND seq < $3 ORDER BY seq DESC LIMIT 1) AS e
"""
_ACCOUNTS: Final = "SELECT tenant_id, balance, reserved, version FROM credit_accounts WHERE tenant_id = ANY($1)"
_STATED: Final = """
    SELECT tenant_id, settings::text AS settings, controls::text AS controls FROM credit_accounts WHERE tenant_id = ANY($1)
"""
_ALERTS: Final = """
    SELECT alert_id, shard, seq, tenant_id, type, at, data::text AS data FROM credit_alerts WHERE alert_id = ANY($1)
"""
_HOLDS: Final = """
    SELECT reservation_id::text, tenant_id, amount, purpose FROM {} AS r
    WHERE reservation_id = ANY($1::text[]::uuid[]) AND shard = $2
"""
_REFUNDS: Final = "SELECT transaction_id::text, consumed FROM credit_refunds WHERE transaction_id = ANY($1::text[]::uuid[])"
_ENTRY: Final = "SELECT entry FROM audit_chain WHERE shard = $1 AND seq = $2"
_TOMBSTONES: Final = """
    SELECT shard, seq, entry FROM audit_chain WHERE type = ANY($1) AND (shard <> $2 OR seq < $3) ORDER BY shard, seq
"""
_TOPUPS: Final = """
    SELECT seq, entry FROM audit_chain WHERE tenant_id = ANY($1) AND shard = $2 AND seq < $3 AND type = 'topup' ORDER BY seq
"""
_HASHES: Final = (
    # Hashes of archived entries stand in audit_tree.
    """
    SELECT hash FROM (
      SELECT seq, hash FROM audit_entries WHERE shard = $1 AND seq >= $2 AND seq < $3 UNION ALL
      SELECT number, hash FROM audit_tree WHERE shard = $1 AND level = 0 AND number >= $2 AND number < $3) AS h
    ORDER BY seq
    """,
    "SELECT hash FROM audit_tree WHERE shard = $1 AND number >= $2 AND number < $3 AND level = $4 ORDER BY number",
)


async def verify_since(
    database_url: str, *, seals: Mapping[str, RowSeal], progress: Callable[[int, int], None], trust: Trust
) -> Report:
    """Check the entries after the trusted checkpoints, in the shards that these are of; as `verify_ledger` otherwise.

    The report counts the entries after the checkpoints and the tenants that they touch; it has no trial balance.
    Raises CannotCheckError for a checkpoint of another ledger.
    """
    started_s = time.monotonic()
    connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(PLAN_SQL)
            await connection.execute(HOLD_SQL)
            checked_at = time_text(now_ms())
            origin, shard_count = await ledger_of(connection)
            outside = unknown_log_fault(trust, origin, shard_count) or await ground_fault(connection)
            numbers = {log_origin(origin, number): number for number in range(shard_count)}
            given = Given(frozenset(row["transaction_id"] for row in await connection.fetch(REFUNDS_SQL)))
            since = await alerts_since(connection)
            findings = Findings(frozenset())
            spans = await check_archive(connection, shard_count, findings, counted=False)
            outside = outside or (findings.first[None].reason if findings.first else None)
            archive = Archive(spans, await all_reservations(connection))
            checkpoints = {numbers[name]: one for name, one in trust.checkpoints.items() if name in numbers}
            increments = [
                Increment(connection, number, checkpoints, trust, Totals(seals, given, since), archive)
                for number in sorted(checkpoints)
            ]
            shards = [await one.check(progress) for one in increments]
    finally:
        await connection.close()
    bad = next(((one.shard, one.first_bad) for one in shards if one.first_bad is not None), None)
    first_bad = None if bad is None else Finding(bad[0], bad[1].seq, bad[1].reason)
    if first_bad is None and outside is not None:
        first_bad = Finding(None, None, outside)
    return Report(
        ok=first_bad is None, checked_at=checked_at, shards=shards,
        signatures_unchecked=sum(one.signatures_unchecked for one in increments),
        accounts=sum(one.accounts for one in increments), seconds=round(time.monotonic() - started_s, 3),
        first_bad=first_bad, trial_balance=None,
        private=PrivateReport(
            sum(one.private.verified for one in increments), sum(one.private.erased for one in increments),
            sum(one.private.missing for one in increments),
        ),
    )  # fmt: skip


class Archive(NamedTuple):
    """What is archived: by shard, seq low to before high of entries; and the SELECT of all reservations."""

    entries: Mapping[int, Sequence[tuple[int, int]]]
    reservations: str


class Increment:
    """The entries of one shard after a trusted checkpoint."""

    def __init__(
        self, connection: asyncpg.Connection[Any], shard: int, checkpoints: Mapping[int, Checkpoint], trust: Trust,
        totals: Totals, archive: Archive,
    ) -> None:  # fmt: skip
        """`connection` stands in a snapshot; `checkpoints` are those trusted, by shard; `totals` knows the keys of seals and
        is used for this shard alone.
        """
        self._connection = connection
        self._shard = shard
        self._checkpoint = checkpoints[shard]
        self._checkpoints = checkpoints
        self._trust = trust
        self._totals = totals
        self._archive = archive
        self._frontier = Frontier()
        self.accounts = 0
        self.private = PrivateReport()
        self.signatures_unchecked = 0

    async def check(self, progress: Callable[[int, int], None]) -> ShardReport:
        """Return what was found."""
        head = await self._connection.fetchrow(
            "SELECT shard, head_seq, head_hash FROM ledger_shards WHERE shard = $1", self._shard
        )
        end = await self._connection.fetchval(
            "SELECT seq + 1 FROM audit_entries WHERE shard = $1 ORDER BY seq DESC LIMIT 1", self._shard
        ) or 0  # fmt: skip
        head_seq = -1 if head is None else head["head_seq"]
        size = self._checkpoint.size
        if end < size:
            bad: Bad | None = Bad(end, f"the chain has {end} entries, the trusted checkpoint {size}")
            return ShardReport(self._shard, 0, head_seq, bad)
        position = await self._standing()
        if position is None:
            bad = Bad(None, f"the chain does not extend the trusted checkpoint of {size} entries")
            return ShardReport(self._shard, 0, head_seq, bad)
        origin = self._checkpoint.origin
        archived = self._archive.entries.get(self._shard, ())
        tree = TreeCheck(self._connection, self._shard, origin, self._trust, self._frontier, archived)
        bad = await self._walk(position, end, tree, progress)
        bad = bad or size_fault(self._trust, position) or head_fault(position, head) or await tree.finish()
        bad = bad or await self._account_fault() or await self._controls_fault() or await self._private_fault()
        self.signatures_unchecked = position.signatures_unchecked
        return ShardReport(self._shard, position.next_seq - size, head_seq, bad, tree.signed_size)

    async def _walk(self, position: Position, end: int, tree: TreeCheck, progress: Callable[[int, int], None]) -> Bad | None:
        size = position.next_seq
        for low in range(size, end, RANGE_ENTRIES):
            proof = await prove(self._connection, Range(self._shard, low, min(low + RANGE_ENTRIES, end)), self._totals.given)
            await self._recall(proof)
            bad = self._totals.join(position, proof) or await tree.feed(digests_of(proof))
            progress(position.next_seq - size, end - size)
            if bad is not None:
                return bad
        if position.transfer is not None:
            return Bad(position.next_seq - 1, position.transfer.cut)
        return None

    async def _recall(self, proof: Proof) -> None:
        """Take over what is known from below the checkpoint about the tenants and references of this range."""
        accounts, size = self._totals.accounts, self._checkpoint.size
        unknown = [tenant for tenant in proof.spans if tenant not in accounts]
        for tenant, seq, balance, reserved, version in await self._connection.fetch(_BEFORE, unknown, self._shard, size):
            # How much was on its way to the tenant is not in that entry; so much is never missing.
            accounts[tenant] = Account(balance, reserved, BALANCE_MAX, version, self._shard, seq)
        references = [record.reference for record in proof.deferred if record.reference is not None]
        holds = _HOLDS.format(self._archive.reservations)
        for key, tenant, amount, purpose in await self._connection.fetch(holds, references, self._shard):
            self._totals.holds.setdefault(key, Hold(tenant, amount, purpose, self._shard, size - 1))
        for key, consumed in await self._connection.fetch(_REFUNDS, references):
            tenant = next(record.tenant_id for record in proof.deferred if record.reference == key)
            self._totals.refunds.setdefault(key, Refund(tenant, consumed, 0, self._shard, size - 1))

    async def _standing(self) -> Position | None:
        """Return where the chain stands at the checkpoint; None when the stored hashes do not have its root."""
        size, root, origin = self._checkpoint.size, self._checkpoint.root, self._checkpoint.origin
        if size == 0:
            return Position(self._shard, genesis_hash(origin)) if root == EMPTY_ROOT else None
        lookup = await self._nodes(self._shard, [*inclusion_spans(size - 1, size), Span(0, size), Span(size - 1, size)])
        if lookup is None:
            return None
        self._frontier = Frontier(size, lookup)
        leaf = lookup(Node(0, size - 1))
        proof = [span_hash(span, lookup) for span in inclusion_spans(size - 1, size)]
        if self._frontier.root() != root or root_of_inclusion(size - 1, size, leaf, proof) != root:
            return None
        position = Position(self._shard, leaf)
        position.next_seq = size
        position.transfer = await self._open_transfer()
        return position

    async def _open_transfer(self) -> Transfer | None:
        """Return the transfer some of whose legs stand below the checkpoint and some above, if there is one."""
        record = await self._record(self._checkpoint.size - 1)
        leg = 0 if record is None or record.type != "transfer" else detail(record, "leg")
        if record is None or leg < 1 or leg == detail(record, "legs"):
            return None
        transfer = Transfer(record.transaction_id, record.seq - leg, 0, detail(record, "legs"), 0)
        for seq in range(record.seq - leg + 1, record.seq + 1):
            one = await self._record(seq)
            if one is None or transfer.add(one) is not None:
                return None
        return transfer

    async def _record(self, seq: int) -> Record | None:
        entry = await self._connection.fetchval(_ENTRY, self._shard, seq)
        return _decoded(entry or b"")

    async def _nodes(self, shard: int, spans: Sequence[Span]) -> Callable[[Node], bytes] | None:
        found = {}
        for run in runs_for(spans):
            values = (shard, run.low, run.high, run.level) if run.level else (shard, run.low, run.high)
            rows = await self._connection.fetch(_HASHES[run.level > 0], *values)
            if len(rows) != run.high - run.low:
                return None
            found[run] = b"".join(row[0] for row in rows)
        return node_in(found)

    async def _private_fault(self) -> Bad | None:
        """Hold what the entries say of private records against those; tombstones may stand below the checkpoint."""
        findings = Findings(frozenset())
        self.private = await judge_private(self._connection, self._totals.private, findings, self._earlier)
        return findings.first.get(self._shard)

    async def _earlier(self, lost: Mapping[Claim, str]) -> Earlier:
        """Return what entries below the checkpoint, and of other shards, say of these records (with the tenant of each).

        An entry below a trusted checkpoint counts when the tree of that holds it: nobody can put one there. What lies above
        one in another shard is proved with that shard. A shard without one is taken as it is.
        """
        told: dict[tuple[str, bytes, bytes], str] = {}
        records = {claim.record for claim in lost}
        tenants = sorted(set(lost.values()))
        rows = self._connection.cursor(_TOPUPS, tenants, self._shard, self._checkpoint.size, prefetch=1_000)
        candidates = [(seq, entry, claim) async for seq, entry in rows
                      if (record := _decoded(entry)) is not None and (claim := claim_of(record)) is not None
                      and claim.record in records]  # fmt: skip
        for seq, entry, claim in candidates:
            if claim.record not in told and await self._stands(self._shard, seq, entry):
                told[claim.record] = claim.at
        first = [claim._replace(at=told.get(claim.record, claim.at)) for claim in lost]
        return Earlier(told, await self._tombstones(first))

    async def _tombstones(self, lost: Sequence[Claim]) -> list[Record]:
        """Return the tombstones below the checkpoint and of other shards that say of one of these records it is erased."""
        found = []
        rows = self._connection.cursor(_TOMBSTONES, sorted(TOMBSTONES), self._shard, self._checkpoint.size, prefetch=1_000)
        candidates = [(shard, seq, entry, record) async for shard, seq, entry in rows
                      if (record := _decoded(entry)) is not None and record.type in TOMBSTONES
                      and Evidence({}, [(record.type, record.details or {})]).tells_of(lost)]  # fmt: skip
        for shard, seq, entry, record in candidates:
            if await self._stands(shard, seq, entry):
                found.append(record)
        return found

    async def _stands(self, shard: int, seq: int, entry: bytes) -> bool:
        """Return whether the tree of a shard's trusted checkpoint has this entry at `seq`; True where none reaches it."""
        checkpoint = self._checkpoints.get(shard)
        if checkpoint is None or seq >= checkpoint.size:
            return True
        spans = inclusion_spans(seq, checkpoint.size)
        lookup = await self._nodes(shard, spans)
        if lookup is None:
            return False
        proof = [span_hash(span, lookup) for span in spans]
        return root_of_inclusion(seq, checkpoint.size, entry_hash(entry), proof) == checkpoint.root

    async def _controls_fault(self) -> Bad | None:
        findings = Findings(frozenset())
        with reading("credit_accounts or credit_alerts", findings):
            return await self._controls_difference()
        return findings.first.get(None)

    async def _controls_difference(self) -> Bad | None:
        """Hold what the entries say of settings, quotas, thresholds and alerts against the tables."""
        stated, told = self._totals.controls.stated, self._totals.controls.told
        for row in await self._connection.fetch(_STATED, list(stated)):
            one = stated[row["tenant_id"]]
            settings = row["settings"] if one.settings_seq >= 0 else "{}"
            fault = stated_fault(row["tenant_id"], one, settings, row["controls"] if one.controls_seq >= 0 else "{}")
            if fault is not None:
                return Bad(*fault)
        rows = {row["alert_id"]: row for row in await self._connection.fetch(_ALERTS, list(told))}
        for alert_id, alert in told.items():
            reason = told_fault(alert_id, alert, rows.get(alert_id))
            if reason is not None:
                return Bad(alert.seq, reason)
        return None

    async def _account_fault(self) -> Bad | None:
        """Hold the tenants of the entries that were read against credit_accounts."""
        accounts = self._totals.accounts
        rows = await self._connection.fetch(_ACCOUNTS, list(accounts))
        there = {row["tenant_id"]: tuple(row)[1:] for row in rows}
        self.accounts = len(accounts)
        faults = [
            Bad(account.seq, f"credit_accounts has balance, reserved, version {there.get(tenant)} for tenant {tenant}, "
                             f"the chain gives {(account.balance, account.reserved, account.version)}")
            for tenant, account in accounts.items()
            if there.get(tenant) != (account.balance, account.reserved, account.version)
        ]  # fmt: skip
        return min(faults, key=lambda bad: bad.seq or 0, default=None)


def _decoded(entry: bytes) -> Record | None:
    """Return what an entry below the checkpoint says, None when it cannot be read."""
    try:
        return msgspec.json.decode(entry.removeprefix(ENTRY_PREFIX), type=Record)
    except msgspec.MsgspecError:
        return None
