"""Changes to a ledger as somebody makes them who may write to the database: with or without the key of the seals."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from app.audit.entry import ENTRY_PREFIX, Event, RowSeal, entry_bytes, entry_hash


async def change(session: asyncpg.Connection[Any], statement: str, *values: object) -> None:
    """Run a statement that must change exactly one row."""
    status = await session.execute(statement, *values)
    assert status.split()[-1] == "1", f"{status}: {statement}"


async def rewrite(session: asyncpg.Connection[Any], seq: int, entry: bytes, seal: RowSeal | None = None) -> bytes:
    """Put other bytes in the place of an entry, with their right hash, and a right signature if there is a seal."""
    digest = entry_hash(entry)
    await change(session, "UPDATE audit_entries SET entry = $2, hash = $3 WHERE seq = $1", seq, entry, digest)
    if seal is not None:
        await change(session, "UPDATE audit_entries SET signature = $2 WHERE seq = $1", seq, seal.sign(digest))
    return digest


async def entry_of(session: asyncpg.Connection[Any], seq: int) -> bytes:
    """Return the bytes of an entry."""
    entry = await session.fetchval("SELECT entry FROM audit_entries WHERE seq = $1", seq)
    assert isinstance(entry, bytes)
    return entry


def replaced(entry: bytes, old: str, new: str) -> bytes:
    """Return an entry with one piece of its text changed."""
    assert entry.count(old.encode()) == 1, f"{old} stands {entry.count(old.encode())} times in {entry!r}"
    return entry.replace(old.encode(), new.encode())


def record_of(entry: bytes) -> dict[str, Any]:
    """Return the record of an entry, its keys in order."""
    record = msgspec.json.decode(entry.removeprefix(ENTRY_PREFIX))
    assert isinstance(record, dict)
    return record


async def rewrite_from(
    session: asyncpg.Connection[Any], events: list[Event], seq: int, prev_hash: bytes, seal: RowSeal
) -> None:
    """Rewrite the chain from `seq` to its end as it would be with these events, columns, hashes, seals and head.

    The packed hashes, which nothing needs, go away.
    """
    for event in events[seq:]:
        entry = entry_bytes(event, prev_hash)
        digest = entry_hash(entry)
        await change(
            session,
            "UPDATE audit_entries SET entry = $2, hash = $3, prev_hash = $4, signature = $5, amount = $6, balance = $7, "
            "reserved = $8, version = $9 WHERE seq = $1",
            event.seq, entry, digest, prev_hash, seal.sign(digest), event.amount, event.balance, event.reserved,
            event.version,
        )  # fmt: skip
        prev_hash = digest
    await change(session, "UPDATE ledger_shards SET head_hash = $1", prev_hash)
    await session.execute("DELETE FROM audit_leaf_tiles")
