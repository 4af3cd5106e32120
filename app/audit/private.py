"""What became of the private records that entries speak of: there as committed, erased with a tombstone, or missing.

An entry of a top-up names the commitment and the key of its payment; a tombstone names the keys that were destroyed, or the
class and time up to which records were. A record that is gone without a tombstone was taken away by somebody else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.audit.report import PrivateReport
from app.privacy.payment import CLASS
from app.privacy.store import RETENTION
from app.privacy.tombstones import TOMBSTONES, Claim, Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from app.audit.entry import Record
    from app.audit.state import Findings

KEPT_MIN: Final = timedelta(hours=23)  # SHIELDX_PAYMENT_KEEP_DAYS is 1 or more; an hour for clocks that differ


class Earlier(NamedTuple):
    """What entries before those that are judged say of records that seem to be missing.

    first_at    when an entry first spoke of a record
    tombstones  those that may tell of one
    """

    first_at: Mapping[tuple[str, bytes, bytes], str]
    tombstones: Sequence[Record]


# Finds that for claims, each with the tenant of its entry.
Recall = Callable[[Mapping[Claim, str]], Awaitable[Earlier]]


async def judge_private(
    connection: asyncpg.Connection[Any], records: Sequence[Record], findings: Findings, earlier: Recall | None = None
) -> PrivateReport:
    """Hold every claim against the private records and the tombstones; note the first that is missing of each shard.

    records  top-ups with details and tombstones, proved
    earlier  finds what proved entries before `records` say of claims that seem to be missing
    """
    report = PrivateReport()
    topups = [record for record in records if record.type == "topup" and "payment" in (record.details or {})]
    if not topups:
        return report
    evidence = await Evidence.read(connection, _tombstones(records, findings))
    claims = [(record, claim_of(record)) for record in topups]
    # A key may be used again after a day, for the same payment: then two entries speak of one record.
    first_at: dict[tuple[str, bytes, bytes], str] = {}
    for _, claim in claims:
        if claim is not None:
            first_at.setdefault(claim.record, claim.at)
    lost = {
        first: record.tenant_id for record, claim in claims
        if claim is not None and evidence.state(first := claim._replace(at=first_at[claim.record])) == "missing"
    }  # fmt: skip
    if lost and earlier is not None:
        found = await earlier(lost)
        first_at |= found.first_at
        evidence.hear(_tombstones(found.tombstones, findings))
    gone: set[tuple[str, bytes, bytes]] = set()
    for record, claim in claims:
        state = "missing" if claim is None else evidence.state(claim._replace(at=first_at[claim.record]))
        setattr(report, state, getattr(report, state) + 1)
        if state == "missing":
            reason = "the private record of this entry is missing or another, and no tombstone says that it was erased"
            findings.note(record.shard, record.seq, reason)
        if claim is None or state != "erased" or claim.record in gone:
            continue
        gone.add(claim.record)
        if len(gone) == evidence.told(CLASS) + 1:
            reason = f"more private records are gone than the {evidence.told(CLASS)} of which tombstones tell; this is one"
            findings.note(record.shard, record.seq, reason)
    return report


def _tombstones(records: Iterable[Record], findings: Findings) -> list[tuple[str, Mapping[str, Any]]]:
    """Return type and details of the tombstones that are evidence; note those that cannot be true."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for one in records:
        if one.type == RETENTION and not _past(one):
            reason = "the tombstone says that records were past their time which cannot have been"
            findings.note(one.shard, one.seq, reason)
        elif one.type in TOMBSTONES:
            found.append((one.type, one.details or {}))
    return found


def _past(tombstone: Record) -> bool:
    """Return whether what a tombstone of retention says was past its time had been kept for the least time that there is."""
    try:
        before = datetime.fromisoformat(str((tombstone.details or {}).get("before")))
        return before + KEPT_MIN <= datetime.fromisoformat(tombstone.at)
    except (ValueError, TypeError, OverflowError):
        return False


def claim_of(record: Record) -> Claim | None:
    """Return what the entry of a top-up says of its private record, None when that cannot be read."""
    details = record.details or {}
    try:
        payment, key = bytes.fromhex(str(details["payment"])), bytes.fromhex(str(details["private_key"]))
    except (KeyError, ValueError):
        return None
    return Claim(record.idempotency or "", payment, key, record.at, CLASS)
