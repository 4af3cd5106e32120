"""Migrations: sql/migrations/NNNN_name.up.sql, each in one transaction, each applied once, in order.

Runners take turns by a polled advisory lock, so that replicas that start together do not collide. A migration whose
text has changed since it was applied is refused: the schema would not be what the file says.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.db.resources import resource_dir

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

MIGRATION_LOCK: Final = 0x5348_4D49  # "SHMI"
LOCK_POLL_S: Final = 0.1
LOCK_WAIT_MAX_S: Final = 60.0
QUARTERS_AHEAD: Final = 2  # partitions that exist before they are needed

_NAME: Final = re.compile(r"(\d{4})_(\w+)\.up\.sql\Z")


class MigrationRefused(Exception):
    """The schema in the database and the files do not belong together; the text says which and why."""


class LedgerRow(NamedTuple):
    """The ledger's one row: what is fixed when it is created."""

    ledger_id: bytes
    origin: str
    shard_count: int
    salt: bytes

    def __repr__(self) -> str:
        """Show all but the salt, which keys the hashes of idempotency keys."""
        return f"LedgerRow({self.origin!r}, {self.shard_count} shards)"


async def migrate(connection: asyncpg.Connection[Any]) -> list[str]:
    """Apply what is missing and return the names of what was applied. Needs the role that owns the schema."""
    async with asyncio.timeout(LOCK_WAIT_MAX_S):
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", MIGRATION_LOCK):
            await asyncio.sleep(LOCK_POLL_S)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (version int PRIMARY KEY, name text NOT NULL, "
            "checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row[0]: row[1] for row in await connection.fetch("SELECT version, checksum FROM schema_migrations")}
        applied = []
        for path in sorted((resource_dir("sql") / "migrations").glob("*.up.sql")):
            match = _NAME.match(path.name)
            if match is None:
                raise MigrationRefused(f"{path.name}: the name must be NNNN_name.up.sql")
            version, text = int(match[1]), path.read_text()
            checksum = hashlib.sha256(text.encode()).hexdigest()
            if version in done:
                if done[version] != checksum:
                    raise MigrationRefused(f"{path.name} has changed since it was applied; add a new migration instead")
                continue
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '5s'")
                await connection.execute(text)
                await connection.execute(
                    "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                    version, match[2], checksum,
                )  # fmt: skip
            applied.append(path.name)
        return applied
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)


async def found_ledger(connection: asyncpg.Connection[Any], shard_count: int, genesis: Callable[[str], bytes]) -> LedgerRow:
    """Create the ledger's rows if there are none, make partitions ahead, and return what is fixed.

    genesis gives the first prev_hash of an origin. Raises MigrationRefused for another number of shards.
    """
    async with connection.transaction():
        created = await connection.fetchval(
            "INSERT INTO ledger (ledger_id, origin, shard_count, idempotency_salt) "
            "VALUES ($1::uuid, 'shieldx/' || ($1::uuid)::text, $2, $3) ON CONFLICT DO NOTHING RETURNING origin",
            uuid.uuid4(), shard_count, secrets.token_bytes(32),
        )  # fmt: skip
        if created is not None:
            for shard in range(shard_count):
                await connection.execute(
                    "INSERT INTO ledger_shards (shard, head_hash) VALUES ($1, $2)",
                    shard, genesis(f"{created}/s{shard:02d}"),
                )  # fmt: skip
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
