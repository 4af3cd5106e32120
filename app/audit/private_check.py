"""Whether private records can be opened by the master key, and hold what the chain commits to: for whoever has that key.

Without the key a verifier sees commitments and key ids. With it, a data key that was garbled, a value or salt that was
changed or moved to another record, and a masked form that shows something else are found before anybody needs them. What is
opened is compared and forgotten: nothing of it reaches the report.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.privacy.envelope import DataKey, MasterKeys, Place, Sealed
from app.privacy.payment import SALT_BYTES, Payment, commitment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from app.audit.entry import Record
    from app.audit.state import Findings

PREFETCH_ROWS: Final = 1_000
_ROWS: Final = """
    SELECT k.subject, k.dek_id, k.kek_id, k.wrapped, r.record_id, r.class, r.tenant_id, r.commitment, r.shown::text AS shown,
           r.salt, r.sealed
    FROM private_keys k LEFT JOIN private_records r USING (subject, dek_id) ORDER BY k.dek_id, r.record_id
"""


async def open_private(
    connection: asyncpg.Connection[Any], masters: MasterKeys, records: Sequence[Record], findings: Findings
) -> None:
    """Open every data key and private record; note the first of each shard that is not what it was.

    records  the proved top-ups, which say where a record belongs; a record of none is noted outside the chain
    """
    places = {record.idempotency: (record.shard, record.seq) for record in records if record.type == "topup"}
    key: DataKey | None = None
    tried = b""
    async for row in connection.cursor(_ROWS, prefetch=PREFETCH_ROWS):
        shard, seq = places.get(row["record_id"], (None, None))
        if row["dek_id"] != tried:
            tried = row["dek_id"]
            key = _unwrapped(masters, row)
        if key is None:
            given = (
                "cannot be unwrapped" if row["kek_id"] in masters.ids else "is wrapped by a master key that was not given"
            )
            findings.note(shard, seq, f"the data key {tried.hex()} of private records {given}")
        elif row["record_id"] is not None and (fault := record_fault(row, key)) is not None:
            findings.note(shard, seq, f"private record {row['record_id']} {fault}")


def record_fault(row: Mapping[str, Any], key: DataKey) -> str | None:
    """Return why a row of private_records is not what its commitment was made for, None when it is."""
    place = Place(row["tenant_id"], row["subject"], row["record_id"], "values")
    try:
        content, salt = key.decrypt(row["sealed"], place), key.decrypt(row["salt"], place._replace(field="salt"))
    except Sealed:
        return "cannot be opened: a value was changed, or is that of another record"
    if len(salt) != SALT_BYTES or not hmac.compare_digest(commitment(salt, row["class"], content), row["commitment"]):
        return "does not hold what its commitment says"
    try:
        shown = msgspec.json.decode(content, type=Payment).shown()
    except msgspec.MsgspecError:
        return "holds no payment"
    return None if msgspec.json.decode(row["shown"]) == shown else "shows another masked form than that of what it holds"


def _unwrapped(masters: MasterKeys, row: Mapping[str, Any]) -> DataKey | None:
    try:
        return masters.unwrap(row["kek_id"], row["wrapped"], row["subject"], row["dek_id"])
    except Sealed:
        return None
