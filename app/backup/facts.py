"""What a database holds, in one snapshot: row counts, chain heads, schema. Compared after a restore, and after a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.backup.directory import Head, SchemaRow
from app.db.migrations import read_applied

if TYPE_CHECKING:
    import asyncpg

    from app.backup.directory import Backup

TABLES_SHOWN_MAX: Final = 5  # of those that differ; more would hide the point

_TABLES: Final = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
ORDER BY 1
"""
# Sessions of servers: each replica holds some for as long as it runs.
_SERVERS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'shieldx' AND pid <> pg_backend_pid()
"""


class Facts(NamedTuple):
    """Row counts by table, chain heads by shard, and the migrations that are applied."""

    rows: dict[str, int]
    heads: tuple[Head, ...]
    schema: tuple[SchemaRow, ...]

    @property
    def schema_version(self) -> int:
        """The highest number that is applied, 0 for none."""
        return max((row.version for row in self.schema), default=0)


async def read_facts(connection: asyncpg.Connection[Any]) -> Facts:
    """Read them, in the transaction that the caller has open or each by itself. Reads every table once."""
    names = [row["name"] for row in await connection.fetch(_TABLES)]
    rows = {}
    for name in names:
        rows[name] = await connection.fetchval(f"SELECT count(*) FROM {name}")  # noqa: S608 - quoted by format('%I')
    return Facts(rows, await read_heads(connection), await _read_schema(connection))


async def read_heads(connection: asyncpg.Connection[Any]) -> tuple[Head, ...]:
    """Return where each chain ends; nothing before the ledger was founded."""
    if await connection.fetchval("SELECT to_regclass('public.ledger_shards')") is None:
        return ()
    rows = await connection.fetch("SELECT shard, generation, head_seq, head_hash FROM public.ledger_shards ORDER BY shard")
    return tuple(Head(row["shard"], row["generation"], row["head_seq"], row["head_hash"].hex()) for row in rows)


async def _read_schema(connection: asyncpg.Connection[Any]) -> tuple[SchemaRow, ...]:
    applied = (await read_applied(connection)).values()
    return tuple(SchemaRow(row.service, row.version, row.name, row.checksum) for row in applied)


async def count_server_sessions(connection: asyncpg.Connection[Any]) -> int:
    """Return how many sessions of running servers this database has."""
    number: int = await connection.fetchval(_SERVERS)
    return number


def differences(backup: Backup, facts: Facts) -> list[str]:
    """Return how a database differs from what a backup says it holds, in words; nothing when it does not."""
    found = []
    if backup.heads != facts.heads:
        found.append(f"chain heads are {_shown(facts.heads)}, the backup has {_shown(backup.heads)}")
    if backup.schema != facts.schema:
        found.append(f"the schema is at {facts.schema_version}, the backup at {backup.schema_version}")
    names = sorted(backup.rows.keys() | facts.rows.keys())
    counts = [(name, facts.rows.get(name), backup.rows.get(name)) for name in names]
    differing = [f"{name} has {here} rows, the backup {there}" for name, here, there in counts if here != there]
    found += differing[:TABLES_SHOWN_MAX]
    if len(differing) > TABLES_SHOWN_MAX:
        found.append(f"{len(differing) - TABLES_SHOWN_MAX} more tables differ")
    return found


def _shown(heads: tuple[Head, ...]) -> str:
    return ", ".join(f"s{head.shard:02d} at seq {head.seq}" for head in heads) or "none"
