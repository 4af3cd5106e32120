"""Retention: backups older than so many days go, but never the newest one that is good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.backup.archive import read_archive
from app.backup.directory import Backup, BackupRefused
from app.clock import now_ms, time_text
from app.embedded.binaries import find_postgres_programs

if TYPE_CHECKING:
    from app.backup.directory import BackupDirectory
    from app.backup.journal import Journal

DAY_MS: Final = 86_400_000
VERSION_DIVISOR: Final = 10_000  # server_version_num of 18.6 is 180006


async def verify_backup(directory: BackupDirectory, backup: Backup, journal: Journal) -> None:
    """Read a backup from end to end and compare it with its metadata. Raises BackupRefused, BinaryMissing."""
    path = directory.archive(backup.id)
    if not path.exists():
        raise BackupRefused(f"{path} is missing although {backup.id}.json is there. Use another backup")
    if path.stat().st_size != backup.size_bytes:
        raise BackupRefused(
            f"{path} has {path.stat().st_size} bytes, {backup.size_bytes} were written: it is cut off or changed. "
            "Use another backup"
        )
    programs = await find_postgres_programs(backup.server_version_num // VERSION_DIVISOR)
    if await read_archive(programs, path, journal.bar(backup.size_bytes, "verify, bytes")) != backup.sha256:
        raise BackupRefused(f"{path} does not have the SHA-256 {backup.sha256}: it has been changed. Use another backup")


async def prune(directory: BackupDirectory, keep_days: int, journal: Journal, *, now: int | None = None) -> list[str]:
    """Remove backups that ended more than `keep_days` ago, except the newest good one; return their ids.

    What is kept is read first: if no backup is good, none is removed, and BackupRefused says so. The caller holds the
    directory. `now` is in Unix ms.
    """
    bound = time_text((now_ms() if now is None else now) - keep_days * DAY_MS)
    known = directory.list()
    if not any(one.finished_at < bound for one in known):
        return []
    good = await _newest_good(directory, known, journal)
    removed = []
    for one in known:
        if one.finished_at < bound and one.id != good.id:
            journal.step("remove", backup=one.id, finished_at=one.finished_at)
            directory.remove(one)
            removed.append(one.id)
    return removed


async def _newest_good(directory: BackupDirectory, known: list[Backup], journal: Journal) -> Backup:
    for one in reversed(known):
        try:
            await verify_backup(directory, one, journal)
        except BackupRefused as error:
            journal.warn(str(error), backup=one.id)
        else:
            return one
    raise BackupRefused(
        f"no backup in {directory.path} can be read from end to end, so none was removed. "
        "Make one with `shieldx backup create`"
    )
