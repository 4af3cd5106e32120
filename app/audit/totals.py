"""Joins proofs of ranges, in order, to what the whole ledger adds up to. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from app.audit.controls import ControlsFold
from app.audit.entry import HASH_BYTES
from app.audit.facts import added
from app.audit.fold import ALL_RULES, RULES, closing_fault
from app.audit.report import Bad
from app.audit.rows import TIME_MIN_US, link_fault, order_fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from app.audit.entry import Record, RowSeal
    from app.audit.facts import Given
    from app.audit.fold import Hold, Span, Transfer
    from app.audit.rows import Proof

SEAL_BYTES: Final = 2 * HASH_BYTES


class Account(msgspec.Struct, gc=False):
    """A tenant's state after its entry `seq`; credits, but for version, shard and seq."""

    balance: int
    reserved: int
    incoming: int
    version: int
    shard: int
    seq: int


class Refund(msgspec.Struct, gc=False):
    """What one transaction consumed and what of it was given back; `seq` is that of the last entry about it."""

    tenant_id: str
    consumed: int
    refunded: int
    shard: int
    seq: int


class Position:
    """Where a shard's chain stands: the end of the ranges that were joined."""

    def __init__(self, shard: int, genesis: bytes) -> None:
        """Stand before seq 0, whose predecessor is the 32-byte `genesis`."""
        self.shard = shard
        self.next_seq = 0
        self.last_hash = genesis
        self.at_us = TIME_MIN_US
        self.generation = 0
        self.transfer: Transfer | None = None
        self.signatures_unchecked = 0


class Totals:
    """The state of all tenants of all shards. A tenant belongs to the shard that opened its account."""

    def __init__(self, seals: Mapping[str, RowSeal], given: Given, alerts_since: str = "") -> None:
        """`seals` are the known keys by key id; `given` is what every range is folded with.

        alerts_since  the time from which on alerts are kept, as entries write it
        """
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, Hold] = {}
        self.refunds: dict[str, Refund] = {}
        self.given = given
        self.facts: dict[int, list[int]] = {}
        self.private: list[Record] = []
        self.keys: list[Record] = []
        self.controls = ControlsFold()
        self.alerts_since = alerts_since
        self._seals = {key_id.encode(): seal for key_id, seal in seals.items()}
        self._moved = [0] * len(ALL_RULES)

    def join(self, position: Position, proof: Proof) -> Bad | None:
        """Move on by a proof that begins where `position` stands; the first bad entry, if there is one."""
        found = [] if proof.bad is None else [proof.bad]
        if proof.next_seq > proof.low:
            found += self._link_faults(position, proof)
            found += self._seal_faults(position, proof)
            found += self._account_faults(proof)
            found += self._deferred_faults(position, proof)
            self.private += proof.private
            self.keys += proof.keys
            self.controls.join(proof.stated, proof.told, self.alerts_since)
            if proof.facts is not None:
                known = self.facts.get(proof.shard)
                self.facts[proof.shard] = proof.facts if known is None else added(known, proof.facts)
            position.last_hash, position.at_us = proof.last_hash, proof.last_at_us
            position.generation = proof.last_generation
            self._moved = [before + moved for before, moved in zip(self._moved, proof.moved, strict=True)]
        position.next_seq = proof.next_seq
        return min(found, key=lambda bad: -1 if bad.seq is None else bad.seq, default=None)

    def system_balances(self) -> dict[str, int]:
        """Return the balance of every system account, from what all entries moved from and to it."""
        balances: dict[str, int] = {}
        for rule, moved in zip(ALL_RULES, self._moved, strict=True):
            if not rule.debit_own:
                balances[rule.debit] = balances.get(rule.debit, 0) - moved
            if not rule.credit_own:
                balances[rule.credit] = balances.get(rule.credit, 0) + moved
        return balances

    def _link_faults(self, position: Position, proof: Proof) -> Iterable[Bad]:
        if proof.prev_hash != position.last_hash:
            yield Bad(proof.low, link_fault(proof.low))
        elif proof.first_at_us < position.at_us or proof.first_generation < position.generation:
            yield Bad(proof.low, order_fault(proof.first_generation, position.generation))

    def _seal_faults(self, position: Position, proof: Proof) -> Iterable[Bad]:
        ends = [*(seq for seq, _ in proof.key_ids[1:]), proof.next_seq]
        for (first, key_id), end in zip(proof.key_ids, ends, strict=True):
            seal = self._seals.get(key_id)
            if seal is None:
                position.signatures_unchecked += end - first
                continue
            sign, data = seal.sign, proof.seals
            for at in range((first - proof.low) * SEAL_BYTES, (end - proof.low) * SEAL_BYTES, SEAL_BYTES):
                if sign(data[at : at + HASH_BYTES]) != data[at + HASH_BYTES : at + SEAL_BYTES]:
                    yield Bad(proof.low + at // SEAL_BYTES, "the signature is not that of the hash")
                    return

    def _account_faults(self, proof: Proof) -> Iterable[Bad]:
        accounts = self.accounts
        for tenant_id, span in proof.spans.items():
            account = accounts.get(tenant_id)
            if account is None:
                if span.version_before or span.incoming_low < 0:
                    yield Bad(span.first_seq, f"tenant {tenant_id} has no account before this entry")
                accounts[tenant_id] = Account(
                    span.balance, span.reserved, span.incoming, span.version, proof.shard, span.last_seq
                )
                continue
            reason = _join_fault(tenant_id, account, span, proof.shard)
            if reason is not None:
                yield Bad(span.first_seq, reason)
            account.balance, account.reserved, account.version = span.balance, span.reserved, span.version
            account.incoming += span.incoming
            account.seq = span.last_seq

    def _deferred_faults(self, position: Position, proof: Proof) -> Iterable[Bad]:
        for record in proof.consumed:
            refund = Refund(record.tenant_id, record.amount, 0, record.shard, record.seq)
            self.refunds[record.transaction_id] = refund
        transfer = position.transfer
        for record in proof.deferred:
            if record.type == "transfer":
                reason = _NO_LEG_BEFORE if transfer is None else transfer.add(record)
            else:
                reason = self._refund(record) if record.type == "refund" else self._close(record)
            if reason is not None:
                yield Bad(record.seq, reason)
        if transfer is not None and transfer.done:
            transfer = None
        if transfer is not None and transfer.seq != proof.next_seq - 1:
            yield Bad(transfer.seq + 1, transfer.cut)
        position.transfer = proof.transfer or transfer
        for reservation_id, hold in proof.holds.items():
            if self.holds.setdefault(reservation_id, hold) is not hold:
                yield Bad(hold.seq, f"reservation {reservation_id} is opened twice")

    def _close(self, record: Record) -> str | None:
        hold = self.holds.pop(record.reference or "", None)
        purpose = RULES[record.type].closes
        if hold is None or purpose is None:
            return f"reservation {record.reference} is not open at this {record.type}"
        return closing_fault(record, hold, purpose)

    def _refund(self, record: Record) -> str | None:
        if record.reference not in self.given.refunded_ids:
            return f"credit_refunds has no row for transaction {record.reference}, which this entry refunds"
        refund = self.refunds.get(record.reference or "")
        if refund is None or refund.tenant_id != record.tenant_id or refund.seq > record.seq:
            return f"transaction {record.reference} is no earlier consume or commit of this tenant"
        refund.refunded += record.amount
        refund.seq = record.seq
        if refund.refunded > refund.consumed:
            return f"transaction {record.reference} consumed {refund.consumed}, refunded are {refund.refunded}"
        return None


_NO_LEG_BEFORE: Final = "a leg of a transfer stands without the legs before it"


def _join_fault(tenant_id: str, account: Account, span: Span, shard: int) -> str | None:
    if account.shard != shard:
        return f"tenant {tenant_id} belongs to shard {account.shard}"
    before = (span.balance_before, span.reserved_before, span.version_before)
    known = (account.balance, account.reserved, account.version)
    if before != known:
        return (
            f"the entry follows from balance, reserved, version {before} of tenant {tenant_id}, "
            f"after the entries before it they are {known}"
        )
    if account.incoming + span.incoming_low < 0:
        return f"tenant {tenant_id} receives more than was prepared for it"
    return None
