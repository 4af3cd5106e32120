"""Which database a command works on: the one that is set, or the embedded one, whether its server runs or not."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from app.backup.directory import BackupDirectory, BackupRefused
from app.embedded import EmbeddedServers, ServersNotRunning, read_endpoints

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.settings import Settings


class Places(NamedTuple):
    """Where a command finds things.

    owner_url     Postgres as the role that owns the schema
    database_url  Postgres as the server logs in
    redis_url     "" where none is set
    """

    owner_url: str
    database_url: str
    redis_url: str

    def __repr__(self) -> str:
        """Show no URL: they may hold passwords."""
        return "Places(...)"


def backup_directory(settings: Settings) -> BackupDirectory:
    """Return the directory of backups that is set, or the one in the data directory."""
    return BackupDirectory(Path(settings.backup_dir) if settings.backup_dir else settings.data_dir / "backups")


@asynccontextmanager
async def open_places(settings: Settings, *, make: bool = False) -> AsyncIterator[Places]:
    """Find the stores; the embedded servers run meanwhile if nobody runs them yet.

    make  allows a new, empty embedded database, to restore into

    Raises BackupRefused when nothing is set and there is no embedded database, and what the embedded servers raise.
    """
    if settings.database_url or settings.migrate_database_url:
        url = settings.migrate_database_url or settings.database_url
        yield Places(url, settings.database_url or url, settings.redis_url)
        return
    try:
        running = read_endpoints(settings.data_dir)
    except ServersNotRunning:
        running = None
    if running is not None:
        yield Places(running.admin_database_url, running.database_url, running.redis_url)
        return
    if not make and not (settings.data_dir / "postgres").exists():
        raise BackupRefused(
            f"no database: DATABASE_URL is not set, and {settings.data_dir} holds no embedded one. Set DATABASE_URL "
            "(or SHIELDX_MIGRATE_DATABASE_URL), or name the data directory with --data-dir"
        )

    def report(name: str, code: int) -> None:
        sys.stderr.write(f"the embedded server {name} ended with code {code} and is started again\n")

    async with EmbeddedServers(settings.data_dir, on_exit=report) as urls:
        yield Places(urls.admin_database_url, urls.database_url, urls.redis_url)
