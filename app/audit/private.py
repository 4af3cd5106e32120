"""What became of the private records that entries speak of: there as committed, erased with a tombstone, or missing.

An entry of a top-up names the commitment and the key of its payment; a tombstone names the keys that were destroyed, or the
class and time up to which records were. A record that is gone without a tombstone was taken away by somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.audit.report import PrivateReport
from app.privacy.payment import CLASS
from app.privacy.tombstones import TOMBSTONES, Claim, Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from app.audit.entry import Record
    from app.audit.state import Findings


async def judge_private(
    connection: asyncpg.Connection[Any], records: Sequence[Record], findings: Findings, older: Iterable[Record] = ()
) -> PrivateReport:
    """Hold every claim against the private records and the tombstones; note the first that is missing of each shard.

    records  top-ups with details and tombstones, proved; older: tombstones from before them
    """
    report = PrivateReport()
    claims = [record for record in records if record.type == "topup" and "payment" in (record.details or {})]
    if not claims:
        return report
    tombstones = [(one.type, one.details or {}) for one in (*records, *older) if one.type in TOMBSTONES]
    evidence = await Evidence.read(connection, tombstones)
    for record in claims:
        claim = _claim(record)
        state = "missing" if claim is None else evidence.state(claim)
        setattr(report, state, getattr(report, state) + 1)
        if state == "missing":
            reason = "the private record of this entry is missing or another, and no tombstone says that it was erased"
            findings.note(record.shard, record.seq, reason)
    return report


def _claim(record: Record) -> Claim | None:
    details = record.details or {}
    try:
        payment, key = bytes.fromhex(str(details["payment"])), bytes.fromhex(str(details["private_key"]))
    except (KeyError, ValueError):
        return None
    return Claim(record.idempotency or "", payment, key, record.at, CLASS)
