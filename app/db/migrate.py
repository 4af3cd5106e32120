"""The runner of migrations: applies, takes back, and tries without leaving a trace.

Runners take turns by a polled advisory lock: one that waited for it inside a statement would be in the way of another's
CREATE INDEX CONCURRENTLY, which waits for all statements (Postgres calls that a deadlock). Each file runs in one
transaction together with its row in schema_migrations, or, marked `no-transaction`, as one statement that can be run
again. So a runner that is killed anywhere leaves a schema that the next one goes on from.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from app import __version__
from app.db.migrations import (
    SHADOW_WITHOUT_HEADER,
    Migration,
    MigrationRefused,
    Planned,
    Script,
    read_schema,
    with_credits,
)
from app.settings import SERVICES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

MIGRATION_LOCK: Final = 0x5348_4D49  # "SHMI"
LOCK_POLL_S: Final = 0.1
ORPHAN_CHECK_MS: Final = 1_000  # how soon Postgres notices that a runner was killed while a statement of it runs


class Patience(NamedTuple):
    """How long a runner waits, for what.

    turn_s                for the runner before it
    lock_timeout_ms       for a lock on a table: all that come after it wait as long, so it is short, and tried again
    statement_timeout_ms  for one statement in a transaction, which holds its locks meanwhile
    alone_timeout_ms      for a statement outside one: an index of 10^9 rows takes hours, and stops nobody
    alone_lock_timeout_ms for the transactions that such a statement lets end first: nobody waits behind it
    tries                 of each file that did not get its locks
    delay_s, delay_max_s  between two tries: the first one, doubled each time, up to the most
    """

    turn_s: float = 60.0
    lock_timeout_ms: int = 2_000
    statement_timeout_ms: int = 300_000
    alone_timeout_ms: int = 21_600_000
    alone_lock_timeout_ms: int = 600_000
    tries: int = 10
    delay_s: float = 0.5
    delay_max_s: float = 15.0


PATIENCE: Final = Patience()
_BLOCKED: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


class MigrationFailed(Exception):
    """A file could not be applied. What it did in a transaction is rolled back; the text says what to do."""


async def migrate(
    connection: asyncpg.Connection[Any], services: Collection[str] = SERVICES, patience: Patience = PATIENCE
) -> list[str]:
    """Apply what is missing, without a backup, and return the names of what was applied.

    Needs the role that owns the schema. Raises MigrationRefused, MigrationFailed, and what asyncpg raises.
    """
    async with turn(connection, patience):
        await prepare(connection)
        schema = await read_schema(connection)
        schema.refuse_changed()
        pending = schema.pending(with_credits(services))
        for one in pending:
            await apply(connection, one, patience)
    return [f"{one.title}.up.sql" for one in pending]


@asynccontextmanager
async def turn(connection: asyncpg.Connection[Any], patience: Patience = PATIENCE) -> AsyncIterator[None]:
    """Be the only runner on this database. Raises MigrationRefused when another one does not end in time."""
    deadline_s = time.monotonic() + patience.turn_s
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", MIGRATION_LOCK):
        if time.monotonic() >= deadline_s:
            raise MigrationRefused(f"another migration is running on this database: {await _holder(connection)}")
        await asyncio.sleep(LOCK_POLL_S)
    try:
        await connection.execute(f"SET client_connection_check_interval = {ORPHAN_CHECK_MS}; SET idle_session_timeout = 0")
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("RESET ALL")
            await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)


async def _holder(connection: asyncpg.Connection[Any]) -> str:
    row = await connection.fetchrow(
        "SELECT a.pid, a.application_name, a.client_addr::text, a.backend_start FROM pg_locks l "
        "JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND l.objid = $1::bigint::oid "
        "AND l.classid = 0 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        MIGRATION_LOCK,
    )
    if row is None:
        return "it has ended just now, so run this again"
    where = row["client_addr"] or "this machine"
    return (
        f"session {row['pid']} from {where} since {row['backend_start']:%Y-%m-%d %H:%M:%S} UTC. Wait for it, or, if nobody "
        f"runs it any more, end it with SELECT pg_terminate_backend({row['pid']}), and run this again"
    )


async def prepare(connection: asyncpg.Connection[Any]) -> None:
    """Make schema_migrations, or bring that of an older release to the form of this one, keeping its rows.

    This is no numbered file because every numbered file needs the table to be recorded in. An older release goes on
    reading it: the columns that it knows stay.
    """
    if await connection.fetchval("SELECT to_regclass('public.schema_migrations')") is None:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS public.schema_migrations (service text NOT NULL, version int NOT NULL, "
            "name text NOT NULL, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(), "
            "duration_ms int, app_version text, compatible boolean NOT NULL DEFAULT false, PRIMARY KEY (service, version))"
        )
        return
    old = await connection.fetchval(
        "SELECT NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.schema_migrations'::regclass "
        "AND attname = 'service' AND NOT attisdropped)"
    )
    if not old:
        return
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {PATIENCE.lock_timeout_ms}")
        await connection.execute(
            "ALTER TABLE public.schema_migrations ADD COLUMN service text NOT NULL DEFAULT 'credits', "
            "ADD COLUMN duration_ms int, ADD COLUMN app_version text, ADD COLUMN compatible boolean NOT NULL DEFAULT false"
        )
        await connection.execute(
            "UPDATE public.schema_migrations SET service = 'shadow' WHERE version = ANY($1::int[])",
            sorted(SHADOW_WITHOUT_HEADER),
        )
        await connection.execute(
            "ALTER TABLE public.schema_migrations ALTER COLUMN service DROP DEFAULT, "
            "DROP CONSTRAINT schema_migrations_pkey, ADD PRIMARY KEY (service, version)"
        )


async def apply(
    connection: asyncpg.Connection[Any], one: Migration, patience: Patience = PATIENCE,
    tell: Callable[[str], None] = lambda _: None,
) -> int:  # fmt: skip
    """Apply one file and record it; return its milliseconds. Raises MigrationFailed.

    tell  is called with a sentence when the file has to be tried again
    """
    started_s = time.monotonic()

    async def record() -> None:
        await connection.execute(
            "INSERT INTO public.schema_migrations (service, version, name, checksum, duration_ms, app_version, compatible) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7)",
            one.service, one.version, one.name, one.checksum, _ms_since(started_s), __version__, one.compatible,
        )  # fmt: skip

    await _run(connection, f"{one.title}.up.sql", one.up, record, patience, tell)
    return _ms_since(started_s)


async def revert(
    connection: asyncpg.Connection[Any], one: Migration, patience: Patience = PATIENCE,
    tell: Callable[[str], None] = lambda _: None,
) -> int:  # fmt: skip
    """Take one file back and forget that it was applied; return the milliseconds. Raises MigrationFailed."""
    started_s = time.monotonic()
    assert one.down is not None, "the caller refuses what has no way back"

    async def forget() -> None:
        await connection.execute("DELETE FROM public.schema_migrations WHERE version = $1", one.version)

    await _run(connection, f"{one.title}.down.sql", one.down, forget, patience, tell)
    return _ms_since(started_s)


def _ms_since(started_s: float) -> int:
    return round((time.monotonic() - started_s) * 1000)


async def _run(
    connection: asyncpg.Connection[Any], name: str, script: Script, note: Callable[[], Any], patience: Patience,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Run a file and its note about it, again and again while others hold the locks that it needs."""
    attempt = 0
    while True:
        try:
            if script.transactional:
                async with connection.transaction():
                    await _execute(connection, script, patience)
                    await note()
            else:
                await _execute_alone(connection, name, script, patience)
                await note()
        except _BLOCKED as error:
            attempt += 1
            if attempt >= patience.tries:
                raise MigrationFailed(
                    f"{name}: others hold the locks that it needs, {attempt} tries long ({error}). Look for long "
                    "transactions in pg_stat_activity (xact_start), end them, or run this again at a quieter time"
                ) from error
            delay_s = min(patience.delay_s * 2 ** (attempt - 1), patience.delay_max_s) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads runners, keeps no secret
            tell(f"{name}: {error}; try {attempt + 1} of {patience.tries} in {delay_s:.1f} s")
            await asyncio.sleep(delay_s)
        except asyncpg.QueryCanceledError as error:
            raise MigrationFailed(
                f"{name}: {error}. It needs longer than it may hold its locks: split it, or change rows in batches"
            ) from error
        except asyncpg.PostgresError as error:
            raise MigrationFailed(f"{name}: {type(error).__name__}: {error}. Mend the file, then run this again") from error
        else:
            return


async def _execute(connection: asyncpg.Connection[Any], script: Script, patience: Patience) -> None:
    """Run a script inside the transaction that is open."""
    held = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() "
        "AND classid = 0 AND objid = $1::bigint::oid)",
        MIGRATION_LOCK,
    )
    if not held:
        raise MigrationFailed(
            "the session has lost its lock: a pooler that hands out a session per transaction stands before Postgres. "
            "Give the URL of Postgres itself in SHIELDX_MIGRATE_DATABASE_URL"
        )
    await connection.execute(
        f"SET LOCAL lock_timeout = {patience.lock_timeout_ms}; SET LOCAL statement_timeout = {patience.statement_timeout_ms}"
    )
    await connection.execute(script.text)


async def _execute_alone(connection: asyncpg.Connection[Any], name: str, script: Script, patience: Patience) -> None:
    """Run the one statement of a script outside a transaction; leave no index behind that is not valid."""
    await connection.execute(
        f"SET lock_timeout = {patience.alone_lock_timeout_ms}; SET statement_timeout = {patience.alone_timeout_ms}"
    )
    try:
        await _drop_invalid(connection, script.makes)
        try:
            await connection.execute(script.text)
        except asyncpg.PostgresError:
            await _drop_invalid(connection, script.makes)
            raise
        if script.makes and not await _index_state(connection, script.makes):
            raise MigrationFailed(f"{name}: the index {script.makes} is not there or not valid. Drop it and run this again")
    finally:
        if not connection.is_closed():
            await connection.execute("RESET lock_timeout; RESET statement_timeout")


async def _index_state(connection: asyncpg.Connection[Any], index: str) -> bool | None:
    """Return whether an index is valid, None when there is none of this name."""
    valid: bool | None = await connection.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('public.' || quote_ident($1))", index
    )
    return valid


async def _drop_invalid(connection: asyncpg.Connection[Any], index: str) -> None:
    """Drop what a CREATE INDEX CONCURRENTLY left that failed or died: IF NOT EXISTS would take it for done."""
    if index and await _index_state(connection, index) is False:
        await connection.execute(f'DROP INDEX CONCURRENTLY IF EXISTS public."{index}"')


async def plan(
    connection: asyncpg.Connection[Any], services: Collection[str] = SERVICES, patience: Patience = PATIENCE
) -> list[Planned]:
    """Run what is missing in one transaction, roll it back, and return what was seen. Raises as `migrate` does."""
    planned: list[Planned] = []
    async with turn(connection, patience):
        schema = await read_schema(connection)
        schema.refuse_changed()
        pending = schema.pending(with_credits(services))
        trial = connection.transaction()
        await trial.start()
        try:
            await prepare(connection)
            tables = await connection.fetch("SELECT oid FROM pg_class WHERE relkind IN ('r', 'p', 'm')")
            for one in pending:
                planned.append(await _try(connection, one, patience, [row["oid"] for row in tables], planned))
        except asyncpg.PostgresError as error:
            failed = f"{pending[len(planned)].title}.up.sql" if len(planned) < len(pending) else "schema_migrations"
            raise MigrationFailed(f"{failed} would fail: {type(error).__name__}: {error}") from error
        finally:
            await trial.rollback()
    return planned


async def _try(
    connection: asyncpg.Connection[Any], one: Migration, patience: Patience, before: Sequence[int],
    earlier: Sequence[Planned],
) -> Planned:  # fmt: skip
    if not one.up.transactional:
        return Planned(one.title, one.service, one.compatible, ran=False, duration_ms=0, locks=())
    started_s = time.monotonic()
    await _execute(connection, one.up, patience)
    duration_ms = _ms_since(started_s)
    rows = await connection.fetch(
        "SELECT DISTINCT c.relname || ' (' || l.mode || ')' AS lock FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
        "WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation = ANY($1::oid[]) AND l.mode IN "
        "('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') "
        "AND c.relnamespace <> 'pg_catalog'::regnamespace ORDER BY 1",
        before,
    )
    seen = {lock for planned in earlier for lock in planned.locks}
    locks = tuple(row["lock"] for row in rows if row["lock"] not in seen)
    return Planned(one.title, one.service, one.compatible, ran=True, duration_ms=duration_ms, locks=locks)
