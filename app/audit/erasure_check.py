"""Whether private_erasures holds what the chain tells of: none taken away, changed, or said to be in the chain that is not.

A restore does the erasures of that table again, so a row that is gone would bring somebody back from an older backup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.privacy.tombstones import TOMBSTONES

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg

    from app.audit.entry import Record
    from app.audit.state import Findings

_ROWS: Final = "SELECT erasure_id::text AS erasure_id, kind, tombstone, entered_at FROM private_erasures ORDER BY erasure_id"


async def compare_erasures(connection: asyncpg.Connection[Any], records: Iterable[Record], findings: Findings) -> None:
    """Hold private_erasures against the tombstones of the chain, in both directions; note the first that differs.

    A row whose tombstone has not been entered yet may be in the chain or not: the note that it is there comes after it.
    """
    if findings.broken:
        return
    told = {str((one.details or {}).get("entry_id")): one for one in records if one.type in TOMBSTONES}
    for row in await connection.fetch(_ROWS):
        tombstone = told.pop(row["erasure_id"], None)
        if tombstone is None and row["entered_at"] is None:
            continue
        if tombstone is None:
            findings.note(None, None, f"private_erasures has erasure {row['erasure_id']} as entered, the chain has it not")
        elif (row["kind"], msgspec.json.decode(row["tombstone"])) != (tombstone.type, tombstone.details):
            reason = f"private_erasures has another erasure {row['erasure_id']} than this entry gives"
            findings.note(tombstone.shard, tombstone.seq, reason)
    for erasure_id, tombstone in told.items():
        reason = f"private_erasures has no row for erasure {erasure_id}, which this entry gives"
        findings.note(tombstone.shard, tombstone.seq, reason)
