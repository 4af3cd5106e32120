"""Whether the tables that the chains fold to hold what the chains say: accounts, open reservations, refunds."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from app.audit.controls import ALERTS_KEPT_DAYS, Stated, Told
from app.audit.report import Bad
from app.clock import ms_of, time_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import asyncpg

    from app.audit.fold import Hold
    from app.audit.totals import Account, Totals

# What the rows of a table raise that hold values which no server writes: a time before Christ, NaN, JSON of another form.
UNREADABLE: Final = (
    ArithmeticError, ValueError, TypeError, AttributeError, LookupError, RecursionError, msgspec.MsgspecError,
)  # fmt: skip
NOTHING_STATED: Final = Stated()
TEXT_MAX: Final = 2_000  # characters of a garbled setting that a report shows
PREFETCH_ROWS: Final = 10_000  # per round trip of a cursor: about 2 MB

ACCOUNTS_SQL: Final = """
    SELECT tenant_id, shard, balance, reserved, incoming, version, settings::text, controls::text FROM credit_accounts
"""
ALERTS_SQL: Final = "SELECT alert_id, shard, seq, tenant_id, type, at, data::text AS data FROM credit_alerts WHERE at >= $1"
HOLDS_SQL: Final = """
    SELECT reservation_id::text, shard, tenant_id, amount, purpose
    FROM credit_reservations WHERE status = 'held'
"""
REFUNDS_SQL: Final = "SELECT transaction_id::text, consumed, refunded FROM credit_refunds"
ENTRY_OF_SQL: Final = "SELECT seq FROM audit_chain WHERE shard = $1 AND transaction_id = $2::text::uuid LIMIT 1"
STATUS_SQL: Final = "SELECT status FROM credit_reservations WHERE reservation_id = $1::text::uuid"


class AccountsSeen(NamedTuple):
    """How many accounts were compared, and the sum of all balances in the table."""

    compared: int
    balance: int


class Findings:
    """The first fault of each shard, by seq; of faults that have no entry the one that was found first."""

    def __init__(self, broken: frozenset[int]) -> None:
        """`broken` are the shards whose chain is bad: what follows from them cannot be compared."""
        self.broken: Final = broken
        self.first: dict[int | None, Bad] = {}

    def note(self, shard: int | None, seq: int | None, reason: str) -> None:
        """Keep a fault if it comes before the one that is known of its shard."""
        known = self.first.get(shard)
        if known is None or (seq is not None and (known.seq is None or seq < known.seq)):
            self.first[shard] = Bad(seq, reason)


@contextmanager
def reading(table: str, findings: Findings) -> Iterator[None]:
    """Note a table that cannot be read as a fault of the ledger: whoever garbles a row would stop the verifier otherwise."""
    try:
        yield
    except UNREADABLE as error:
        findings.note(None, None, f"{table} has a row that cannot be read ({type(error).__name__}: {error})")


async def compare_accounts(connection: asyncpg.Connection[Any], totals: Totals, findings: Findings) -> AccountsSeen:
    """Hold credit_accounts against the totals, in both directions. Uses the totals' accounts up."""
    compared = total = 0
    async for row in connection.cursor(ACCOUNTS_SQL, prefetch=PREFETCH_ROWS):
        tenant_id, shard, balance, reserved, incoming, version, settings, controls = row
        total += balance
        account = totals.accounts.pop(tenant_id, None)
        stated = totals.controls.stated.pop(tenant_id, NOTHING_STATED)
        if (shard if account is None else account.shard) in findings.broken:
            continue
        compared += 1
        if account is None:
            findings.note(shard, None, f"credit_accounts has tenant {tenant_id}, the chain has not")
        elif (account.balance, account.reserved, account.incoming, account.version, account.shard) != (
            balance, reserved, incoming, version, shard,
        ):  # fmt: skip
            findings.note(account.shard, account.seq, _account_fault(tenant_id, account, row))
        elif fault := stated_fault(tenant_id, stated, settings, controls):
            findings.note(account.shard, *fault)
    for tenant_id, account in totals.accounts.items():
        if account.shard not in findings.broken:
            findings.note(account.shard, account.seq, f"credit_accounts has no row for tenant {tenant_id}")
    return AccountsSeen(compared, total)


def _account_fault(tenant_id: str, account: Account, row: asyncpg.Record) -> str:
    name = next(
        name for name in ("balance", "reserved", "incoming", "version", "shard") if row[name] != getattr(account, name)
    )
    return f"credit_accounts has {name} {row[name]} for tenant {tenant_id}, the chain gives {getattr(account, name)}"


def stated_fault(tenant_id: str, stated: Stated, settings: str, controls: str) -> tuple[int | None, str] | None:
    """Return where an account's settings and controls, JSON text, differ from what the chain states: seq and reason."""
    pairs = (("settings", settings, stated.settings, stated.settings_seq),
             ("controls", controls, stated.controls, stated.controls_seq))  # fmt: skip
    for name, text, wanted, seq in pairs:
        if (text != "{}" or wanted) and _json(text) != (wanted or {}):
            known = "{}" if wanted is None else msgspec.json.encode(wanted, order="deterministic").decode()
            reason = f"credit_accounts has {name} {text[:TEXT_MAX]} for tenant {tenant_id}, the chain gives {known}"
            return (None if seq < 0 else seq), reason
    return None


def _json(text: str) -> Any:
    """Return what JSON text says; None, which no server writes, when it is nested too deep to be read."""
    try:
        return msgspec.json.decode(text)
    except (RecursionError, msgspec.MsgspecError):
        return None


async def alerts_since(connection: asyncpg.Connection[Any]) -> str:
    """Return from when on alerts are kept, by the database's clock, as entries write times; an hour's grace included."""
    since = await connection.fetchval("SELECT now() - make_interval(days => $1, hours => -1)", ALERTS_KEPT_DAYS)
    return time_text(ms_of(since))


async def compare_alerts(connection: asyncpg.Connection[Any], totals: Totals, findings: Findings) -> None:
    """Hold the alerts that are to be kept against credit_alerts, in both directions. Uses the totals' up."""
    told = totals.controls.told
    since = datetime.fromisoformat(totals.alerts_since)
    async for row in connection.cursor(ALERTS_SQL, since, prefetch=PREFETCH_ROWS):
        alert = told.pop(row["alert_id"], None)
        shard, seq = (row["shard"], row["seq"]) if alert is None else (alert.shard, alert.seq)
        reason = told_fault(row["alert_id"], alert, row)
        if reason is not None and shard not in findings.broken:
            findings.note(shard, seq, reason)
    for alert_id, alert in told.items():
        if alert.shard not in findings.broken:
            findings.note(alert.shard, alert.seq, told_fault(alert_id, alert, None) or "")


def told_fault(alert_id: str, alert: Told | None, row: asyncpg.Record | None) -> str | None:
    """Return how an alert of the chain and its row, at most one of them None, differ."""
    if row is None:
        return f"credit_alerts has no row for alert {alert_id}, which this entry gives"
    if alert is None:
        return f"credit_alerts has alert {alert_id}, the chain has not"
    at, data = time_text(ms_of(row["at"])), _json(row["data"])
    if Told(row["shard"], row["seq"], row["tenant_id"], row["type"], at, data) != alert:
        return f"credit_alerts has another alert {alert_id} than this entry gives"
    return None


async def compare_holds(connection: asyncpg.Connection[Any], totals: Totals, findings: Findings) -> None:
    """Hold the open reservations against credit_reservations, in both directions. Uses the totals' up."""
    surplus: dict[int, str] = {}
    async for reservation_id, shard, tenant_id, amount, purpose in connection.cursor(HOLDS_SQL, prefetch=PREFETCH_ROWS):
        hold = totals.holds.pop(reservation_id, None)
        if (shard if hold is None else hold.shard) in findings.broken:
            continue
        if hold is None:
            surplus.setdefault(shard, reservation_id)
        elif (hold.shard, hold.tenant_id, hold.amount, hold.purpose) != (shard, tenant_id, amount, purpose):
            findings.note(
                hold.shard, hold.seq,
                f"credit_reservations has reservation {reservation_id} with {amount} of tenant {tenant_id} for {purpose}, "
                f"the chain with {hold.amount} of tenant {hold.tenant_id} for {hold.purpose}",
            )  # fmt: skip
    for shard, reservation_id in surplus.items():
        seq = await connection.fetchval(ENTRY_OF_SQL, shard, reservation_id)
        findings.note(shard, seq, f"credit_reservations has reservation {reservation_id} as held, the chain has not")
    missing = min(
        ((hold.seq, key, hold) for key, hold in totals.holds.items() if hold.shard not in findings.broken), default=None
    )
    if missing is not None:
        await _note_missing_hold(connection, missing[1], missing[2], findings)


async def _note_missing_hold(
    connection: asyncpg.Connection[Any], reservation_id: str, hold: Hold, findings: Findings
) -> None:
    status = await connection.fetchval(STATUS_SQL, reservation_id)
    there = "has no row for it" if status is None else f"says {status}"
    reason = f"reservation {reservation_id} is held by the chain, credit_reservations {there}"
    findings.note(hold.shard, hold.seq, reason)


def compare_refunds(rows: Sequence[asyncpg.Record], totals: Totals, findings: Findings) -> None:
    """Hold rows of credit_refunds against what the chains consumed and refunded."""
    for transaction_id, consumed, refunded in rows:
        refund = totals.refunds.get(transaction_id)
        if refund is None:
            if not findings.broken:
                findings.note(None, None, f"credit_refunds names transaction {transaction_id}, which consumed nothing")
        elif refund.shard not in findings.broken and (refund.consumed, refund.refunded) != (consumed, refunded):
            findings.note(
                refund.shard, refund.seq,
                f"credit_refunds has {refunded} of {consumed} for transaction {transaction_id}, "
                f"the chain gives {refund.refunded} of {refund.consumed}",
            )  # fmt: skip
