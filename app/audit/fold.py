"""What a range of a chain adds up to: every tenant's balance, the open reservations, the transfers. Pure.

Each kind of event moves money by one rule, between two named accounts. From what an entry states, the rule gives the
state before it; that must be the state which the tenant's last entry in the range has left. For the first entry of a
tenant it is an assumption, which `app.audit.totals` holds against the ranges before. So ranges can be folded at once
by several processes, and an entry that is well-formed but false is found all the same.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

import msgspec

from app.audit.controls import ControlsFold
from app.audit.entry import Record
from app.audit.facts import Facts, Given
from app.audit.key_check import KEY_ENTRIES
from app.audit.log_key_check import LOG_KEY_ENTRY
from app.privacy.tombstones import TOMBSTONES

BALANCE_MAX: Final = 10**14 - 1  # credits; the largest number that the ledger can hold exactly
TENANT_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")

Purpose = Literal["spend", "transfer_out", "transfer_in"]


class Rule(NamedTuple):
    """How one kind of event moves its amount: signs for three numbers, and the accounts it goes between.

    An account is a full name or, when `..._own`, the prefix of the tenant's id. `opens` and `closes` say what the
    reservation is for that it opens or closes; `extra` says that there is more to check than the signs; `used` that it
    counts as usage.
    """

    number: int
    balance: int
    reserved: int
    incoming: int
    debit: str
    credit: str
    debit_own: bool
    credit_own: bool
    extra: bool
    used: bool
    opens: Purpose | None
    closes: Purpose | None


def _rule(
    number: int,
    signs: tuple[int, int, int],
    sides: tuple[str, str],
    *,
    opens: Purpose | None = None,
    closes: Purpose | None = None,
    extra: bool = False,
    used: bool = False,
) -> Rule:
    debit, credit = sides
    own = debit.endswith(":"), credit.endswith(":")
    return Rule(number, *signs, debit, credit, *own, extra or bool(opens or closes), used, opens, closes)


TENANT: Final = "tenant:"
HELD: Final = "held:"
FUNDING: Final = "system:funding"
REVENUE: Final = "system:revenue"
CLEARING: Final = "system:clearing"

# The signs are those of balance, reserved and incoming. A commit also releases what its details say.
TRANSFER_OUT: Final = _rule(9, (-1, 0, 0), (TENANT, CLEARING), extra=True)
TRANSFER_IN: Final = _rule(16, (1, 0, 0), (CLEARING, TENANT), extra=True)
RULES: Final[dict[str, Rule]] = {
    "account": _rule(0, (0, 0, 0), (TENANT, TENANT), extra=True),
    "update": _rule(1, (0, 0, 0), (TENANT, TENANT)),
    "topup": _rule(2, (1, 0, 0), (FUNDING, TENANT), used=True),
    "consume": _rule(3, (-1, 0, 0), (TENANT, REVENUE), used=True),
    "refund": _rule(4, (1, 0, 0), (REVENUE, TENANT), extra=True, used=True),
    "reserve": _rule(5, (0, 1, 0), (TENANT, HELD), opens="spend"),
    "commit": _rule(6, (-1, -1, 0), (HELD, REVENUE), closes="spend", used=True),
    "abort": _rule(7, (0, -1, 0), (HELD, TENANT), closes="spend"),
    "expire": _rule(8, (0, -1, 0), (HELD, TENANT), closes="spend"),
    "transfer": TRANSFER_OUT,
    "prepare_out": _rule(10, (0, 1, 0), (TENANT, HELD), opens="transfer_out"),
    "prepare_in": _rule(11, (0, 0, 1), (TENANT, TENANT), opens="transfer_in"),
    "settle_out": _rule(12, (-1, -1, 0), (HELD, CLEARING), closes="transfer_out"),
    "settle_in": _rule(13, (1, 0, -1), (CLEARING, TENANT), closes="transfer_in"),
    "cancel_out": _rule(14, (0, -1, 0), (HELD, TENANT), closes="transfer_out"),
    "cancel_in": _rule(15, (0, 0, -1), (TENANT, TENANT), closes="transfer_in"),
}
ALL_RULES: Final = (*RULES.values(), TRANSFER_IN)
REFUNDABLE: Final = frozenset({"consume", "commit"})


class Span(msgspec.Struct, gc=False, array_like=True):
    """A tenant within a range: the state before its first entry there, and after its last.

    `incoming` and its lowest value are counted from the start of the range.
    """

    first_seq: int
    balance_before: int
    reserved_before: int
    version_before: int
    last_seq: int
    balance: int
    reserved: int
    version: int
    incoming: int = 0
    incoming_low: int = 0


class Hold(msgspec.Struct, gc=False, array_like=True):
    """An open reservation, and the entry that opened it."""

    tenant_id: str
    amount: int
    purpose: Purpose
    shard: int
    seq: int


class Transfer(msgspec.Struct, array_like=True):
    """A transfer between tenants of one shard, whose legs up to `leg` of `legs` have been seen."""

    transaction_id: str
    seq: int
    leg: int
    legs: int
    total: int

    def add(self, record: Record) -> str | None:
        """Take the next leg; the reason when it is not the next one, or the last and the sum is not 0."""
        leg, legs = detail(record, "leg"), detail(record, "legs")
        if (record.transaction_id, leg, legs) != (self.transaction_id, self.leg + 1, self.legs):
            return f"leg {leg} of {legs} of transfer {record.transaction_id} does not follow the one before"
        self.leg, self.seq = leg, record.seq
        self.total += -record.amount if record.credit == CLEARING else record.amount
        if self.done and self.total != 0:
            return f"the legs of transfer {record.transaction_id} sum to {self.total}, not to 0"
        return None

    @property
    def done(self) -> bool:
        """Whether the last leg has been seen."""
        return self.leg == self.legs

    @property
    def cut(self) -> str:
        """Say that no leg follows where one should."""
        return f"transfer {self.transaction_id} ends after leg {self.leg} of {self.legs}"


class RangeFold:
    """The state of the tenants of a range, moved on by one entry after the other."""

    def __init__(self, shard: int, low: int, given: Given) -> None:
        """`low` is the first seq of the range.

        What was consumed by refunded transactions goes to `consumed`; what can only be judged with the ranges before, to
        `deferred`; what speaks of private records, to `private`; changes of API keys and of those of the log to `keys`.
        """
        self.spans: dict[str, Span] = {}
        self.holds: dict[str, Hold] = {}
        self.consumed: list[Record] = []
        self.deferred: list[Record] = []
        self.private: list[Record] = []
        self.keys: list[Record] = []
        self.controls = ControlsFold()
        self.transfer: Transfer | None = None
        self.moved = [0] * len(ALL_RULES)
        self._low = low
        self._refunded_ids = given.refunded_ids
        self.facts = Facts(given.key) if given.key else None
        self._used_up_to = given.marks.get(shard, -1) if given.key else -1

    def apply(self, record: Record) -> str | None:  # noqa: C901, PLR0912 - inlined: this runs once for every entry
        """Move the tenant on by one record; the reason when it does not follow from the record before it."""
        kind, tenant, amount = record.type, record.tenant_id, record.amount
        rule = RULES.get(kind)
        if rule is None or not tenant:
            if kind in TOMBSTONES:
                self.private.append(record)
            elif kind in KEY_ENTRIES or kind == LOG_KEY_ENTRY:
                self.keys.append(record)
            return _outside_fault(record, rule) or self.controls.take(record)
        if self.transfer is not None and kind != "transfer":
            return self.transfer.cut
        if rule is TRANSFER_OUT and record.debit == CLEARING:
            rule = TRANSFER_IN
        number, sign, reserved_sign, incoming_sign, debit, credit, debit_own, credit_own, extra, used, _, _ = rule
        if record.debit != (debit + tenant if debit_own else debit) or record.credit != (
            credit + tenant if credit_own else credit
        ):
            return f"a {kind} of tenant {tenant} does not move from {record.debit} to {record.credit}"
        if kind in REFUNDABLE and record.transaction_id in self._refunded_ids:
            self.consumed.append(record)
        released = 0
        if extra:
            reason, released = self._extra(record, rule)
            if reason is not None:
                return reason
        balance, reserved, version = record.balance, record.reserved, record.version
        if not 0 <= reserved <= balance <= BALANCE_MAX or amount < 0 or (version < 2 and kind != "account"):
            return f"balance {balance}, reserved {reserved}, version {version} are not possible after a {kind}"
        balance_before = balance - sign * amount
        reserved_before = reserved - reserved_sign * amount + released
        span = self.spans.get(tenant)
        if span is None:
            span = self.spans[tenant] = Span(
                record.seq, balance_before, reserved_before, version - 1, record.seq, balance, reserved, version
            )
        elif span.balance != balance_before or span.reserved != reserved_before or span.version != version - 1:
            return state_fault(record, released, span.balance, span.reserved, span.version)
        span.last_seq, span.balance, span.reserved, span.version = record.seq, balance, reserved, version
        if incoming_sign:
            span.incoming += incoming_sign * amount
            span.incoming_low = min(span.incoming_low, span.incoming)
        self.moved[number] += amount
        if used and record.seq <= self._used_up_to and self.facts is not None:
            self.facts.used(record)
        if record.details is None:
            return None
        if kind == "topup":
            self.private.append(record)
        return self.controls.take(record)

    def _extra(self, record: Record, rule: Rule) -> tuple[str | None, int]:
        """Check what the signs do not say: a reason or None, and what a commit gives back besides its amount."""
        if rule.closes is not None:
            return self._close(record, rule.closes)
        if rule.opens is not None:
            hold = Hold(record.tenant_id, record.amount, rule.opens, record.shard, record.seq)
            opened = self.holds.setdefault(record.transaction_id, hold) is hold
            if self.facts is not None:
                self.facts.opened(record)
            return (None if opened else f"reservation {record.transaction_id} is opened twice"), 0
        if record.type == "refund":
            self.deferred.append(record)
            return None, 0
        if record.type == "transfer":
            return self._leg(record), 0
        if self.facts is not None:
            self.facts.account(record)
        return _opening_fault(record), 0

    def _close(self, record: Record, purpose: Purpose) -> tuple[str | None, int]:
        released = detail(record, "released") if record.type == "commit" else 0
        if released < 0:
            return "the commit does not say how much it releases", 0
        if self.facts is not None:
            self.facts.closed(record)
        hold = self.holds.pop(record.reference or "", None)
        if hold is None:
            self.deferred.append(record)
            return None, released
        return closing_fault(record, hold, purpose), released

    def _leg(self, record: Record) -> str | None:
        leg = detail(record, "leg")
        if self.transfer is None:
            if leg > 1 and record.seq - leg + 1 < self._low:
                self.deferred.append(record)
                return None
            self.transfer = Transfer(record.transaction_id, record.seq, 0, detail(record, "legs"), 0)
        reason = self.transfer.add(record)
        if self.transfer.done:
            self.transfer = None
        return reason


def detail(record: Record, name: str) -> int:
    """Return an integer of the details, -1 when it is not there; -1 satisfies no rule."""
    value = (record.details or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def closing_fault(record: Record, hold: Hold, purpose: Purpose) -> str | None:
    """Return why a record may not close this reservation."""
    if hold.tenant_id != record.tenant_id or hold.purpose != purpose:
        return f"reservation {record.reference} is for {hold.purpose}, of tenant {hold.tenant_id}"
    released = detail(record, "released") if record.type == "commit" else 0
    if hold.amount != record.amount + released:
        return f"reservation {record.reference} holds {hold.amount}, not {record.amount} and {released}"
    return None


def state_fault(record: Record, released: int, balance: int, reserved: int, version: int) -> str:
    """Say which number of a record does not follow from the tenant's state before it."""
    rule = TRANSFER_IN if record.debit == CLEARING and record.type == "transfer" else RULES[record.type]
    wanted = {
        "balance": balance + rule.balance * record.amount,
        "reserved": reserved + rule.reserved * record.amount - released,
        "version": version + 1,
    }
    name = next(name for name, value in wanted.items() if getattr(record, name) != value)
    return (
        f"the entry states {name} {getattr(record, name)} for tenant {record.tenant_id}, "
        f"after the entries before it {name} is {wanted[name]}"
    )


def _outside_fault(record: Record, rule: Rule | None) -> str | None:
    """Judge a record that moves no tenant's credits, or that no rule covers."""
    if record.tenant_id:
        return f"the event type {record.type!r} is unknown"
    if rule is not None:
        return f"a {record.type} names no tenant"
    if record.amount or record.balance or record.reserved:
        return f"a {record.type} without a tenant states credits"
    return None


def _opening_fault(record: Record) -> str | None:
    if TENANT_PATTERN.fullmatch(record.tenant_id) is None:
        return "the tenant id has characters that no tenant id can have"
    if record.version != 1 or record.amount or record.balance or record.reserved:
        return f"the account of tenant {record.tenant_id} does not begin with version 1 and no credits"
    return None
