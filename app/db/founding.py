"""The founding of a ledger: the rows that are written once, and what they fix for ever."""

from __future__ import annotations

import secrets
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.db.migrations import MigrationRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

QUARTERS_AHEAD: Final = 2  # partitions that exist before they are needed


class LedgerRow(NamedTuple):
    """The ledger's one row: what is fixed when it is created."""

    ledger_id: bytes
    origin: str
    shard_count: int
    salt: bytes

    def __repr__(self) -> str:
        """Show all but the salt, which keys the hashes of idempotency keys."""
        return f"LedgerRow({self.origin!r}, {self.shard_count} shards)"


async def found_ledger(connection: asyncpg.Connection[Any], shard_count: int, genesis: Callable[[str], bytes]) -> LedgerRow:
    """Create the ledger's rows if there are none, make partitions ahead, and return what is fixed.

    genesis gives the first prev_hash of an origin. Raises MigrationRefused for another number of shards.
    """
    ledger_id = uuid.uuid4()
    origin = f"shieldx/{ledger_id}"
    heads = [genesis(f"{origin}/s{shard:02d}") for shard in range(shard_count)]
    async with connection.transaction():
        await connection.execute("SELECT found_ledger($1, $2, $3, $4)", ledger_id, origin, secrets.token_bytes(32), heads)
        await connection.execute("SELECT ensure_partitions(now(), now(), $1)", QUARTERS_AHEAD)
    row = await connection.fetchrow("SELECT ledger_id, origin, shard_count, idempotency_salt FROM ledger")
    if row is None:
        raise MigrationRefused("the table ledger is empty although its row has just been written")
    if row["shard_count"] != shard_count:
        raise MigrationRefused(
            f"the ledger was created with {row['shard_count']} shards, but SHIELDX_LEDGER_SHARDS says {shard_count}: "
            f"the number cannot change; start with {row['shard_count']}"
        )
    return LedgerRow(row["ledger_id"].bytes, row["origin"], row["shard_count"], row["idempotency_salt"])
