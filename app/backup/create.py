"""Making a backup: space is checked, one snapshot is dumped and counted, and the archive is read again before it counts."""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING, Final

import asyncpg

from app import __version__
from app.backup.archive import read_archive, write_archive
from app.backup.directory import Backup, BackupRefused, Failure
from app.backup.facts import read_facts
from app.backup.prune import VERSION_DIVISOR
from app.clock import now_ms, time_of, time_text
from app.embedded.binaries import find_postgres_programs
from app.embedded.directory import sync_directory

if TYPE_CHECKING:
    from app.backup.directory import BackupDirectory
    from app.backup.journal import Journal

CONNECT_TIMEOUT_S: Final = 10.0  # a server that does not answer by then will not answer
SPACE_FACTOR: Final = 2  # times the last archive: it has grown since, and the file system has other users
SPACE_RESERVE_BYTES: Final = 64 << 20  # left free whatever the size, for logs and metadata

_ABOUT: Final = """
SELECT current_database() AS name, pg_database_size(current_database()) AS size_bytes,
       pg_encoding_to_char(encoding) AS encoding, datcollate, datctype,
       current_setting('server_version_num')::int AS version_num, current_setting('server_version') AS version
FROM pg_database WHERE datname = current_database()
"""


async def create_backup(url: str, directory: BackupDirectory, reason: str, journal: Journal) -> Backup:
    """Back up the database at `url` into a directory that the caller holds; return what is known of the backup.

    Raises BackupRefused, BinaryMissing, and what asyncpg raises; then no backup is there, and the failure is noted.
    """
    try:
        return await _create(url, directory, reason, journal)
    except BaseException as error:
        directory.note_failure(Failure(time_text(now_ms()), f"{type(error).__name__}: {error}"))
        raise


async def _create(url: str, directory: BackupDirectory, reason: str, journal: Journal) -> Backup:
    started_ms = now_ms()
    connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        about = await connection.fetchrow(_ABOUT)
        assert about is not None, "the current database is in pg_database"
        programs = await find_postgres_programs(about["version_num"] // VERSION_DIVISOR)
        earlier = directory.list()
        expected_bytes = earlier[-1].size_bytes if earlier else 0
        journal.step("space", directory=str(directory.path), **_check_space(directory, expected_bytes, about["size_bytes"]))
        backup_id = f"shieldx-{time_of(started_ms):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        partial = directory.path / f"{backup_id}.dump.partial"
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            journal.step("dump", backup=backup_id, database_bytes=about["size_bytes"])
            bar = journal.bar(expected_bytes, "dump, bytes")
            size_bytes, sha256 = await write_archive(programs, url, snapshot, partial, bar)
            journal.step("count", backup=backup_id, bytes=size_bytes)
            facts = await read_facts(connection)
    finally:
        connection.terminate()
    finished_at = time_text(now_ms())
    journal.step("check", backup=backup_id, sha256=sha256)
    if await read_archive(programs, partial, journal.bar(size_bytes, "check, bytes")) != sha256:
        raise BackupRefused(f"{partial} does not hold what was written to it: the disk is failing. Use another directory")
    partial.rename(directory.archive(backup_id))
    sync_directory(directory.path)
    backup = Backup(
        id=backup_id, reason=reason, database=about["name"], started_at=time_text(started_ms), finished_at=finished_at,
        verified_at=time_text(now_ms()), app_version=__version__, server_version_num=about["version_num"],
        server_version=about["version"], pg_dump_version=".".join(map(str, programs.version)),
        schema_version=facts.schema_version, schema=facts.schema, database_size_bytes=about["size_bytes"],
        size_bytes=size_bytes, sha256=sha256, rows=facts.rows, heads=facts.heads, encoding=about["encoding"],
        collation=about["datcollate"], character_type=about["datctype"],
    )  # fmt: skip
    journal.step("keep", backup=backup_id)
    directory.write(backup)
    journal.done("backup made", backup=backup_id, bytes=size_bytes, ms=now_ms() - started_ms, rows=sum(facts.rows.values()))
    return backup


def _check_space(directory: BackupDirectory, last_bytes: int, database_bytes: int) -> dict[str, int]:
    """Refuse when the archive may not fit: twice the last one, or the whole database when there is none yet."""
    needed = (SPACE_FACTOR * last_bytes or database_bytes) + SPACE_RESERVE_BYTES
    free = shutil.disk_usage(directory.path).free
    if free < needed:
        raise BackupRefused(
            f"{directory.path} has {free >> 20} MiB free, and a backup may need {needed >> 20} MiB. Free space there, "
            "remove old ones with `shieldx backup prune`, or name another directory with --backup-dir"
        )
    return {"free_bytes": free, "needed_bytes": needed}
