"""What the chain adds up to: every tenant's balance, the open reservations, the refunds. Pure.

Each kind of event moves money by one rule, between two named accounts. The fold applies the rule to the state before
the event and holds the result against what the entry states, so an entry that is well-formed but false is found.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, NamedTuple

import msgspec

BALANCE_MAX: Final = 10**14 - 1  # credits; the largest number that the ledger can hold exactly
TENANT_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
Purpose = Literal["spend", "transfer_out", "transfer_in"]
Json = int | str | bool | list[Any] | dict[str, Any] | None


class Record(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The record inside an entry. Its fields stand in the order of canonical JSON, so encoding gives that form."""

    amount: int
    at: str
    balance: int
    credit: str
    debit: str
    description: str | None
    details: dict[str, Json] | None
    fingerprint: str | None
    generation: int
    idempotency: str | None
    metadata: str | None
    prev_hash: str
    reference: str | None
    reserved: int
    schema: int
    seq: int
    shard: int
    tenant_id: str
    transaction_id: str
    type: str
    version: int


class Rule(msgspec.Struct, frozen=True):
    """How one kind of event moves its amount: signs for three numbers, and the accounts it goes between.

    An account is a full name, or, when `..._own`, the prefix of the tenant's id. `opens` and `closes` say for what
    the reservation is that it opens or closes; `extra` says that there is more to check than the signs.
    """

    index: int
    balance: int
    reserved: int
    incoming: int
    debit: str
    credit: str
    debit_own: bool
    credit_own: bool
    opens: Purpose | None
    closes: Purpose | None
    extra: bool


def _rule(
    index: int, signs: tuple[int, int, int], debit: str, credit: str,
    *, opens: Purpose | None = None, closes: Purpose | None = None, extra: bool = False,
) -> Rule:  # fmt: skip
    own = debit.endswith(":"), credit.endswith(":")
    return Rule(index, *signs, debit, credit, *own, opens, closes, extra or bool(opens or closes))


TENANT: Final = "tenant:"
HELD: Final = "held:"
FUNDING: Final = "system:funding"
REVENUE: Final = "system:revenue"
CLEARING: Final = "system:clearing"

# The signs are those of balance, reserved and incoming. A commit also gives back what its details call released.
TRANSFER_OUT: Final = _rule(9, (-1, 0, 0), TENANT, CLEARING, extra=True)
TRANSFER_IN: Final = _rule(16, (1, 0, 0), CLEARING, TENANT, extra=True)
RULES: Final[dict[str, Rule]] = {
    "account": _rule(0, (0, 0, 0), TENANT, TENANT, extra=True),
    "update": _rule(1, (0, 0, 0), TENANT, TENANT),
    "topup": _rule(2, (1, 0, 0), FUNDING, TENANT),
    "consume": _rule(3, (-1, 0, 0), TENANT, REVENUE),
    "refund": _rule(4, (1, 0, 0), REVENUE, TENANT, extra=True),
    "reserve": _rule(5, (0, 1, 0), TENANT, HELD, opens="spend"),
    "commit": _rule(6, (-1, -1, 0), HELD, REVENUE, closes="spend"),
    "abort": _rule(7, (0, -1, 0), HELD, TENANT, closes="spend"),
    "expire": _rule(8, (0, -1, 0), HELD, TENANT, closes="spend"),
    "transfer": TRANSFER_OUT,
    "prepare_out": _rule(10, (0, 1, 0), TENANT, HELD, opens="transfer_out"),
    "prepare_in": _rule(11, (0, 0, 1), TENANT, TENANT, opens="transfer_in"),
    "settle_out": _rule(12, (-1, -1, 0), HELD, CLEARING, closes="transfer_out"),
    "settle_in": _rule(13, (1, 0, -1), CLEARING, TENANT, closes="transfer_in"),
    "cancel_out": _rule(14, (0, -1, 0), HELD, TENANT, closes="transfer_out"),
    "cancel_in": _rule(15, (0, 0, -1), TENANT, TENANT, closes="transfer_in"),
}
ALL_RULES: Final = (*RULES.values(), TRANSFER_IN)
REFUNDABLE: Final = frozenset({"consume", "commit"})


class Account(msgspec.Struct, gc=False):
    """A tenant's state after its event `seq`; credits, but for version, shard and seq."""

    balance: int
    reserved: int
    incoming: int
    version: int
    shard: int
    seq: int


class Hold(NamedTuple):
    """An open reservation, and the entry that opened it."""

    tenant_id: str
    amount: int
    purpose: Purpose
    shard: int
    seq: int


class Refund(msgspec.Struct):
    """What was consumed by one transaction and what of it was given back; 0 until an entry says so."""

    tenant_id: str = ""
    consumed: int = 0
    refunded: int = 0
    shard: int | None = None
    seq: int | None = None


class Transfer(msgspec.Struct):
    """A transfer between tenants of one shard, of which `leg` legs of `legs` have been seen; `total` ends at 0."""

    transaction_id: str
    seq: int
    leg: int
    legs: int
    total: int


class Fold:
    """The state of all tenants, moved on by one entry after the other, one shard after the other."""

    def __init__(self, refunded_ids: list[str]) -> None:
        """`refunded_ids` are the transactions that credit_refunds lists: only their consumption is remembered."""
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, Hold] = {}
        self.refunds: dict[str, Refund] = {transaction_id: Refund() for transaction_id in refunded_ids}
        self._transfer: Transfer | None = None
        self._moved = [0] * len(ALL_RULES)

    def apply(self, record: Record) -> str | None:
        """Move the tenant on by one record; the reason when it does not follow from the state before it."""
        kind, tenant, amount = record.type, record.tenant_id, record.amount
        rule = RULES.get(kind)
        if rule is None or not tenant:
            return _outside_fault(record, rule)
        if self._transfer is not None and kind != "transfer":
            return _unfinished(self._transfer)
        if rule is TRANSFER_OUT and record.debit == CLEARING:
            rule = TRANSFER_IN
        account = self.accounts.get(tenant) or self._open(record)
        if account is None:
            return f"tenant {tenant!r} has no account before this {kind}"
        debit = rule.debit + tenant if rule.debit_own else rule.debit
        credit = rule.credit + tenant if rule.credit_own else rule.credit
        if record.debit != debit or record.credit != credit:
            return f"the accounts are {record.debit} and {record.credit}, a {kind} moves from {debit} to {credit}"
        if self.refunds and kind in REFUNDABLE and record.transaction_id in self.refunds:
            self.refunds[record.transaction_id] = Refund(tenant, amount, 0, record.shard, record.seq)
        released = 0
        if rule.extra:
            reason, released = self._extra(record, rule, account)
            if reason is not None:
                return reason
        balance = account.balance + rule.balance * amount
        reserved = account.reserved + rule.reserved * amount - released
        incoming = account.incoming + rule.incoming * amount
        version = account.version + 1
        if record.balance != balance or record.reserved != reserved or record.version != version:
            return _state_fault(record, balance, reserved, version)
        if not 0 <= reserved <= balance <= BALANCE_MAX or incoming < 0 or amount < 0 or account.shard != record.shard:
            return _impossible(record, account, balance, reserved, incoming)
        account.balance, account.reserved, account.incoming = balance, reserved, incoming
        account.version, account.seq = version, record.seq
        self._moved[rule.index] += amount
        return None

    def system_balances(self) -> dict[str, int]:
        """Return the balance of every system account, from what all entries moved from and to it."""
        balances: dict[str, int] = {}
        for rule, moved in zip(ALL_RULES, self._moved, strict=True):
            if not rule.debit_own:
                balances[rule.debit] = balances.get(rule.debit, 0) - moved
            if not rule.credit_own:
                balances[rule.credit] = balances.get(rule.credit, 0) + moved
        return balances

    def end_chain(self) -> str | None:
        """Leave a shard's chain behind; the reason when it ends within a transfer."""
        transfer, self._transfer = self._transfer, None
        return None if transfer is None else _unfinished(transfer)

    def _open(self, record: Record) -> Account | None:
        if record.type != "account" or TENANT_PATTERN.fullmatch(record.tenant_id) is None:
            return None
        account = Account(0, 0, 0, 0, record.shard, record.seq)
        self.accounts[record.tenant_id] = account
        return account

    def _extra(self, record: Record, rule: Rule, account: Account) -> tuple[str | None, int]:
        """Do what the signs do not say: return a reason or None, and what a commit gives back besides its amount."""
        if rule.opens is not None:
            hold = Hold(record.tenant_id, record.amount, rule.opens, record.shard, record.seq)
            opened = self.holds.setdefault(record.transaction_id, hold) is hold
            return (None if opened else f"reservation {record.transaction_id} is opened twice"), 0
        if rule.closes is not None:
            return self._close(record, rule.closes)
        if record.type == "refund":
            return self._refund(record), 0
        if record.type == "transfer":
            return self._leg(record, rule), 0
        if record.type == "account" and (account.version or record.amount):
            return f"tenant {record.tenant_id} has an account already", 0
        return None, 0

    def _close(self, record: Record, purpose: Purpose) -> tuple[str | None, int]:
        released = _detail(record, "released") if record.type == "commit" else 0
        hold = self.holds.pop(record.reference or "", None)
        if hold is None:
            return f"reservation {record.reference} is not open at this {record.type}", 0
        if hold.tenant_id != record.tenant_id or hold.purpose != purpose:
            return f"reservation {record.reference} is tenant {hold.tenant_id}'s, for {hold.purpose}", 0
        if released < 0 or hold.amount != record.amount + released:
            return f"reservation {record.reference} holds {hold.amount}, not {record.amount} and {released}", 0
        return None, released

    def _refund(self, record: Record) -> str | None:
        refund = self.refunds.get(record.reference or "")
        if refund is None:
            return f"credit_refunds has no row for transaction {record.reference}, which this entry refunds"
        if refund.seq is None or refund.tenant_id != record.tenant_id:
            return f"no earlier consume or commit of the tenant is transaction {record.reference}"
        refund.refunded += record.amount
        refund.seq = record.seq
        if refund.refunded > refund.consumed:
            return f"{refund.refunded} are refunded of transaction {record.reference}, which consumed {refund.consumed}"
        return None

    def _leg(self, record: Record, rule: Rule) -> str | None:
        leg, legs = _detail(record, "leg"), _detail(record, "legs")
        if leg == 1 and self._transfer is None and legs > 1:
            self._transfer = Transfer(record.transaction_id, record.seq, 0, legs, 0)
        transfer = self._transfer
        if transfer is None or (transfer.transaction_id, transfer.leg + 1, transfer.legs) != (
            record.transaction_id, leg, legs,
        ):  # fmt: skip
            return f"leg {leg} of {legs} of transfer {record.transaction_id} does not follow the leg before it"
        transfer.leg, transfer.seq = leg, record.seq
        transfer.total += rule.balance * record.amount
        if leg == legs:
            self._transfer = None
            if transfer.total != 0:
                return f"the legs of transfer {record.transaction_id} sum to {transfer.total}, not to 0"
        return None


def _unfinished(transfer: Transfer) -> str:
    return f"transfer {transfer.transaction_id} ends after leg {transfer.leg} of {transfer.legs}"


def _detail(record: Record, name: str) -> int:
    """Return an integer of the details, -1 when it is not there; -1 satisfies no rule."""
    value = (record.details or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _outside_fault(record: Record, rule: Rule | None) -> str | None:
    """Judge a record that moves no tenant's credits, or that no rule covers."""
    if record.tenant_id:
        return f"the event type {record.type!r} is unknown"
    if rule is not None:
        return f"a {record.type} without a tenant"
    if record.amount or record.balance or record.reserved:
        return f"a {record.type} without a tenant states credits"
    return None


def _state_fault(record: Record, balance: int, reserved: int, version: int) -> str:
    wanted = {"balance": balance, "reserved": reserved, "version": version}
    name = next(name for name, value in wanted.items() if getattr(record, name) != value)
    return (
        f"the entry states {name} {getattr(record, name)} for tenant {record.tenant_id}, "
        f"the entries before it and this {record.type} of {record.amount} give {wanted[name]}"
    )


def _impossible(record: Record, account: Account, balance: int, reserved: int, incoming: int) -> str:
    if account.shard != record.shard:
        return f"tenant {record.tenant_id} belongs to shard {account.shard}"
    return f"amount {record.amount} leads to balance {balance}, reserved {reserved}, incoming {incoming}"
