"""Databases of one server: making a new one like another, and putting it in the other's place by name."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import asyncpg

from app.backup.archive import with_database
from app.backup.create import CONNECT_TIMEOUT_S
from app.backup.directory import BackupRefused
from app.clock import now_ms, time_of
from app.db.postgres import APP_ROLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.backup.directory import Backup

MAINTENANCE: Final = ("postgres", "template1")  # databases to stand in while another one is renamed
NAME_BYTES_MAX: Final = 63  # of an identifier, NAMEDATALEN - 1
MARK: Final = "shieldx restore"  # comment on a database that a restore has begun and not finished


def database_of(url: str) -> str:
    """Return the name of the database that a URL names. Raises BackupRefused without one."""
    name = unquote(urlsplit(url).path.strip("/"))
    if not name:
        raise BackupRefused("DATABASE_URL names no database: write postgresql://user@host/NAME")
    return name


def beside(name: str, word: str) -> str:
    """Return a name for a database beside another one: what it is, and when it was made, to the millisecond.

    A restore that was killed may be run again within the same second.
    """
    tail = f"_{word}_{time_of(now_ms()):%Y%m%d%H%M%S%f}"[:-3]
    return name.encode()[: NAME_BYTES_MAX - len(tail)].decode(errors="ignore") + tail


def quoted(name: str) -> str:
    """Return an identifier in quotes."""
    return '"' + name.replace('"', '""') + '"'


class Databases:
    """A session beside the database that it works on."""

    def __init__(self, session: asyncpg.Connection[Any], url: str) -> None:
        """Use `open_databases`. `url` is that of the database that is to be backed up or replaced."""
        self._session = session
        self.url = url
        self.name = database_of(url)

    async def exists(self, name: str) -> bool:
        """Whether there is a database of this name."""
        return await self._session.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name) is not None

    async def version_num(self) -> int:
        """The server's version, such as 180006."""
        number: int = await self._session.fetchval("SELECT current_setting('server_version_num')::int")
        return number

    async def refuse_foreign_role(self) -> None:
        """Refuse a login that may not act as the server's role, as which Redis is laid. Raises BackupRefused."""
        if not await self._session.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", APP_ROLE):
            return  # `make` makes it, and grants it
        try:
            await self._session.execute(f"SET ROLE {APP_ROLE}; RESET ROLE")
        except asyncpg.InsufficientPrivilegeError as error:
            role = await self._session.fetchval("SELECT current_user")
            raise BackupRefused(
                f"{error}: Redis is laid as the server's role. GRANT {APP_ROLE} TO {quoted(role)}, or add --no-redis"
            ) from None

    async def drop_unfinished(self) -> list[str]:
        """Drop what restores of this database have begun and, being killed, not finished; return the names."""
        rows = await self._session.fetch(
            "SELECT datname FROM pg_database d WHERE shobj_description(d.oid, 'pg_database') = $1", f"{MARK} of {self.name}"
        )
        for row in rows:
            await self._session.execute(f"DROP DATABASE {quoted(row['datname'])} WITH (FORCE)")
        return [row["datname"] for row in rows]

    async def make(self, backup: Backup) -> str:
        """Make an empty database for what a backup holds, and the server's role if it is missing; return its name."""
        name = beside(self.name, "restore")
        try:
            if not await self._session.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", APP_ROLE):
                await self._session.execute(f"CREATE ROLE {APP_ROLE} NOLOGIN")
                # Since PostgreSQL 16 whoever makes a role may grant it, but may not yet act as it.
                await self._session.execute(f"GRANT {APP_ROLE} TO CURRENT_USER")
            await self._session.execute(
                f"CREATE DATABASE {quoted(name)} TEMPLATE template0 ENCODING {_literal(backup.encoding)} "
                f"LC_COLLATE {_literal(backup.collation)} LC_CTYPE {_literal(backup.character_type)}"
            )
            await self._session.execute(f"COMMENT ON DATABASE {quoted(name)} IS {_literal(f'{MARK} of {self.name}')}")
        except asyncpg.InsufficientPrivilegeError as error:
            role = await self._session.fetchval("SELECT current_user")
            raise BackupRefused(
                f"{error}: a restore makes a new database, so the role {role} needs CREATEDB (and CREATEROLE, or somebody "
                f"makes the role {APP_ROLE} first). ALTER ROLE {quoted(role)} CREATEDB"
            ) from None
        return name

    async def drop(self, name: str) -> None:
        """Drop a database that a restore has made."""
        await self._session.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    async def _copy_settings(self, name: str) -> None:
        """Give a new database the settings and the rights to connect that the one it replaces has."""
        for row in await self._session.fetch(
            "SELECT split_part(c, '=', 1) AS key, substr(c, strpos(c, '=') + 1) AS value FROM pg_db_role_setting s "
            "JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c WHERE d.datname = $1 AND s.setrole = 0",
            self.name,
        ):
            # By way of the session, because a list such as search_path is not written as it is stored.
            await self._session.execute("SELECT set_config($1, $2, false)", row["key"], row["value"])
            await self._session.execute(f"ALTER DATABASE {quoted(name)} SET {quoted(row['key'])} FROM CURRENT")
            await self._session.execute(f"RESET {quoted(row['key'])}")
        rights = await self._session.fetch(
            "SELECT coalesce(r.rolname, '') AS grantee, a.privilege_type AS kind FROM pg_database d, aclexplode(d.datacl) a "
            "LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE d.datname = $1",
            self.name,
        )
        if rights:
            await self._session.execute(f"REVOKE ALL ON DATABASE {quoted(name)} FROM PUBLIC")
        for row in rights:
            to = quoted(row["grantee"]) if row["grantee"] else "PUBLIC"
            await self._session.execute(f"GRANT {row['kind']} ON DATABASE {quoted(name)} TO {to}")

    async def swap(self, new: str) -> str:
        """Put `new` in the place of the database, in one transaction; return the old one's new name, "" without one.

        Raises BackupRefused while anybody is connected to either.
        """
        old = beside(self.name, "before") if await self.exists(self.name) else ""
        if old:
            await self._copy_settings(new)
        try:
            async with self._session.transaction():
                if old:
                    await self._session.execute(f"ALTER DATABASE {quoted(self.name)} RENAME TO {quoted(old)}")
                await self._session.execute(f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(self.name)}")
                await self._session.execute(f"COMMENT ON DATABASE {quoted(self.name)} IS NULL")
        except asyncpg.ObjectInUseError as error:
            raise BackupRefused(
                f"the database {self.name} is in use ({error}): stop every server and every other client of it, then run "
                f"this again. {await self._clients()}"
            ) from None
        return old

    async def swap_back(self, old: str) -> None:
        """Undo a swap: the database gets its place again, and what had taken it goes."""
        replaced = beside(self.name, "restore")
        async with self._session.transaction():
            await self._session.execute(f"ALTER DATABASE {quoted(self.name)} RENAME TO {quoted(replaced)}")
            await self._session.execute(f"ALTER DATABASE {quoted(old)} RENAME TO {quoted(self.name)}")
            await self._session.execute(f"COMMENT ON DATABASE {quoted(replaced)} IS {_literal(f'{MARK} of {self.name}')}")
        await self.drop(replaced)

    async def _clients(self) -> str:
        rows = await self._session.fetch(
            "SELECT pid, usename, application_name FROM pg_stat_activity WHERE datname = $1 ORDER BY backend_start LIMIT 5",
            self.name,
        )
        who = ", ".join(f"pid {row['pid']} ({row['usename']}, {row['application_name'] or 'no name'})" for row in rows)
        return f"Connected: {who}" if who else "Nobody is connected any more"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@asynccontextmanager
async def open_databases(url: str) -> AsyncIterator[Databases]:
    """Open a session on the same server, beside the database of `url`. Raises BackupRefused, and what asyncpg raises."""
    own = database_of(url)
    last: asyncpg.PostgresError | None = None
    for name in MAINTENANCE:
        if name == own:
            continue
        try:
            session = await asyncpg.connect(with_database(url, name), timeout=CONNECT_TIMEOUT_S)
        except (asyncpg.InvalidCatalogNameError, asyncpg.InsufficientPrivilegeError) as error:
            last = error
            continue
        try:
            yield Databases(session, url)
        finally:
            session.terminate()
        return
    raise BackupRefused(
        f"no database to stand in beside {own}: the role may connect to neither of {' and '.join(MAINTENANCE)} ({last}). "
        "Grant CONNECT on one of them"
    )
