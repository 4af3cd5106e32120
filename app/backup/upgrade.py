"""`shieldx migrate up` and `down`: a backup first, then the files, then a look at what came of it.

When a file fails, its own transaction is rolled back. What files before it in the same run have changed is taken back by
restoring the backup into a new database and swapping it in, but only while that loses nothing: no server runs, and
chains and row counts are those of the backup. Otherwise the database stays as it is, whole at some number between two files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from app.backup.archive import with_database
from app.backup.create import create_backup
from app.backup.databases import open_databases
from app.backup.directory import Backup, BackupDirectory, BackupRefused
from app.backup.facts import Facts, count_server_sessions, differences, read_facts, read_heads
from app.backup.journal import Journal
from app.backup.prune import prune
from app.backup.restore import load_proven
from app.db.migrate import PATIENCE, MigrationFailed, Patience, apply, migrate, prepare, revert, turn
from app.db.migrations import Migration, MigrationRefused, read_schema, with_credits
from app.db.postgres import open_owner
from app.embedded.errors import BinaryMissing

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from app.audit.entry import RowSeal


class Order(NamedTuple):
    """How a run is to be done.

    keep_days  retention of backups, applied after a good run
    backup     False makes none, for databases that are backed up in another way
    restore    False leaves the database as a failure left it
    """

    services: tuple[str, ...]
    keep_days: int
    backup: bool = True
    restore: bool = True
    seal: RowSeal | None = None
    patience: Patience = PATIENCE

    def __repr__(self) -> str:
        """Show what is no secret."""
        return f"Order({self.services}, keep_days={self.keep_days}, backup={self.backup}, restore={self.restore})"


async def migrate_up(url: str, directory: BackupDirectory, order: Order, journal: Journal) -> list[Migration]:
    """Apply what is missing and return it.

    Raises MigrationRefused and BackupRefused before anything was changed, MigrationFailed with the state that is left.
    """
    return await _change(url, directory, order, journal, None)


async def migrate_down(
    url: str, directory: BackupDirectory, order: Order, journal: Journal, to_version: int
) -> list[Migration]:
    """Take back everything of the services above `to_version`, the highest first, and return it; raises as `migrate_up`."""
    return await _change(url, directory, order, journal, to_version)


async def _change(
    url: str, directory: BackupDirectory, order: Order, journal: Journal, to_version: int | None
) -> list[Migration]:
    done: list[Migration] = []
    saved: Backup | None = None
    connection = await open_owner(url)
    try:
        async with turn(connection, order.patience):
            schema = await read_schema(connection)
            schema.refuse_changed()
            work = schema.pending(with_credits(order.services))
            if to_version is not None:
                work = _taken_back(schema.files, set(schema.applied), schema.unknown, order.services, to_version)
            if not work:
                return []
            if to_version is not None:
                await _refuse_servers(connection)
            journal.step("begin", files=[one.title for one in work])
            if schema.applied and order.backup:
                with directory.hold():
                    saved = await create_backup(url, directory, f"before {work[0].title}", journal)
            await prepare(connection)
            await _run(connection, work, done, order, journal, back=to_version is not None)
            if saved is not None:
                journal.step("look", heads=len(saved.heads))
                await _look(connection, saved)
    except (MigrationFailed, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        connection.terminate()
        if saved is None and not done:
            raise
        raise MigrationFailed(await _after_failure(error, url, directory, order, journal, saved, done)) from error
    finally:
        connection.terminate()
    journal.done("migrated", files=[one.title for one in done])
    await _prune(directory, order, journal)
    return done


async def _refuse_servers(connection: asyncpg.Connection[Any]) -> None:
    """Refuse to take away what servers may be using. Raises MigrationRefused."""
    sessions = await count_server_sessions(connection)
    if sessions:
        raise MigrationRefused(
            f"servers are running on this database ({sessions} sessions), and what is taken back may be what they use: stop "
            "all of them (kubectl scale --replicas=0, or SIGTERM), then run this again"
        )


def _taken_back(
    files: Collection[Migration], applied: set[int], unknown: Collection[Any], services: Collection[str], to_version: int
) -> list[Migration]:
    """Return what is to be taken back, the highest number first. Raises MigrationRefused."""
    chosen = [one for one in files if one.version in applied and one.version > to_version and one.service in services]
    if chosen and unknown:
        newer = ", ".join(row.title for row in unknown)
        raise MigrationRefused(f"a newer release has applied {newer}: take that back first, with the newer release")
    for one in chosen:
        if one.down is None:
            raise MigrationRefused(f"{one.title} has no .down.sql, so there is no way back behind it but a restore")
    return sorted(chosen, key=lambda one: -one.version)


async def _run(
    connection: asyncpg.Connection[Any], work: list[Migration], done: list[Migration], order: Order, journal: Journal,
    *, back: bool,
) -> None:  # fmt: skip
    bar = journal.bar(len(work), "migrate, files")
    for one in work:
        journal.step("take back" if back else "apply", file=one.title, service=one.service)
        change = revert if back else apply
        ms = await change(connection, one, order.patience, journal.warn)
        done.append(one)
        bar.update(len(done))
        journal.done("taken back" if back else "applied", file=one.title, ms=ms)
    bar.close()


async def _look(connection: asyncpg.Connection[Any], saved: Backup) -> None:
    """Refuse a schema whose chains end before those of the backup. Raises MigrationFailed."""
    heads = {head.shard: head.seq for head in await read_heads(connection)}
    for head in saved.heads:
        if heads and heads.get(head.shard, -1) < head.seq:
            raise MigrationFailed(
                f"shard {head.shard} ended at seq {head.seq} and ends at {heads.get(head.shard, -1)} now: its chain was cut"
            )


async def _after_failure(
    error: Exception, url: str, directory: BackupDirectory, order: Order, journal: Journal, saved: Backup | None,
    done: list[Migration],
) -> str:  # fmt: skip
    """Bring back what can be, and say what was done and what state is left."""
    journal.warn(str(error))
    names = ", ".join(one.title for one in done)
    if not done:
        return f"{error}. Nothing was changed"
    stays = f"{error}. {names} of this run went well and stay: the database is whole at that state"
    if saved is None:
        return stays
    by_hand = f"`shieldx restore {saved.id}` goes back to before the run"
    if not order.restore:
        return f"{stays}. {by_hand}"
    try:
        reason = await bring_back(url, saved, directory, journal, order.seal)
    except (BackupRefused, BinaryMissing, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as fault:
        reason = str(fault)
    if reason:
        journal.warn("not restored", reason=reason)
        return f"{stays}. It was not restored by itself: {reason}. {by_hand}"
    return f"{error}. The database is again as it was before this run, restored from {saved.id}"


async def bring_back(url: str, saved: Backup, directory: BackupDirectory, journal: Journal, seal: RowSeal | None) -> str:
    """Restore the backup of this run, if that loses nothing; return why it was not done, "" when it was.

    Redis needs no change then: the chains end where they ended.
    """
    connection = await open_owner(url)
    try:
        sessions = await count_server_sessions(connection)
        found = _written_since(saved, await read_facts(connection))
    finally:
        connection.terminate()
    if sessions:
        return f"servers are running on it ({sessions} sessions), and go on"
    if found:
        return f"it was written to since the backup ({found[0]})"
    journal.step("restore", backup=saved.id)
    async with open_databases(url) as databases:
        with directory.hold():
            new = await load_proven(databases, saved, directory, journal, seal)
        journal.step("swap", database=databases.name, new=new)
        kept = await databases.swap(new)
        # Somebody may have come and gone between the look and the swap; nobody writes to the old one any more.
        connection = await open_owner(with_database(url, kept))
        try:
            found = _written_since(saved, await read_facts(connection))
        finally:
            connection.terminate()
        if found:
            await databases.swap_back(kept)
            return f"it was written to meanwhile ({found[0]})"
    journal.done("restored", backup=saved.id, kept=kept)
    return ""


def _written_since(saved: Backup, facts: Facts) -> list[str]:
    """Return what differs from the backup in chains and in tables that both have; the schema differs of course."""
    rows = {name: facts.rows.get(name, count) for name, count in saved.rows.items() if name != "public.schema_migrations"}
    rows["public.schema_migrations"] = saved.rows.get("public.schema_migrations", 0)
    return differences(saved, Facts(rows, facts.heads, saved.schema))


async def _prune(directory: BackupDirectory, order: Order, journal: Journal) -> None:
    """Apply the retention; a fault there is no fault of the migration."""
    try:
        with directory.hold():
            await prune(directory, order.keep_days, journal)
    except (BackupRefused, BinaryMissing, OSError) as error:
        journal.warn(f"old backups were not removed: {error}")


async def migrate_embedded(url: str, backups: Path, keep_days: int, services: tuple[str, ...]) -> list[str]:
    """Apply what is missing when an embedded server starts, with a backup unless the database is new; return the names.

    Raises as `migrate_up` does.
    """
    connection = await open_owner(url)
    try:
        schema = await read_schema(connection)
        if not schema.applied:
            return await migrate(connection, services)
        if not schema.pending(with_credits(services)):
            return []
    finally:
        connection.terminate()
    directory = BackupDirectory(backups)
    directory.prepare()
    journal = Journal(backups, "migrate up", quiet=True)
    order = Order(services, keep_days)
    with journal.told():
        return [one.title for one in await migrate_up(url, directory, order, journal)]
