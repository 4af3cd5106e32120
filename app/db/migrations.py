"""The migration files, what each says of itself, and how they compare with what a database has had applied.

sql/migrations/NNNN_name.up.sql and .down.sql. The comment at the top of a file is its header:

    -- service: credits            whose schema it is: credits, shadow or locator; needed from 0012 on
    -- migrate: compatible         servers of the release before go on serving beside it (an expand step)
    -- migrate: no-transaction     one statement that cannot run in a transaction, such as CREATE INDEX CONCURRENTLY
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import orjson

from app import __version__
from app.db.resources import resource_dir
from app.settings import SERVICES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

# The files up to here were applied before they had headers, and a header would change their checksums.
LAST_WITHOUT_HEADER: Final = 11
SHADOW_WITHOUT_HEADER: Final = frozenset({10, 11})  # the others of them are of credits

_NAME: Final = re.compile(r"(\d{4})_(\w+)\.up\.sql\Z")
_HEADER: Final = re.compile(r"-- *(service|migrate): *(.+?) *\Z")
_FLAGS: Final = frozenset({"no-transaction", "compatible"})
# What may run outside a transaction: each can be run again after a death in the middle of it.
_ALONE: Final = re.compile(
    r"(CREATE (UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS|DROP INDEX CONCURRENTLY IF EXISTS|VACUUM|ANALYZE)\b", re.IGNORECASE
)
_INDEX: Final = re.compile(r"\bINDEX CONCURRENTLY IF NOT EXISTS (\w+) ON\b", re.IGNORECASE)


class MigrationRefused(Exception):
    """The schema in the database and the files do not belong together; the text says which, why, and what to do."""


class Script(NamedTuple):
    """One file: its text, whether it runs in a transaction, and the index that it makes outside one, if any."""

    text: str
    transactional: bool
    makes: str = ""


class Migration(NamedTuple):
    """One numbered change. `checksum` is the SHA-256 of the .up.sql file in hex; `down` is None where there is none."""

    version: int
    name: str
    service: str
    checksum: str
    compatible: bool
    up: Script
    down: Script | None

    @property
    def title(self) -> str:
        """Number and name, as in the file name."""
        return f"{self.version:04d}_{self.name}"


class Applied(NamedTuple):
    """A row of schema_migrations. `duration_ms` and `app_version` are None of what older releases applied."""

    version: int
    name: str
    service: str
    checksum: str
    applied_at: str
    duration_ms: int | None
    app_version: str | None
    compatible: bool

    @property
    def title(self) -> str:
        """Number and name, as in the file name."""
        return f"{self.version:04d}_{self.name}"


class Schema(NamedTuple):
    """The files beside what a database has."""

    files: tuple[Migration, ...]
    applied: Mapping[int, Applied]

    @property
    def version(self) -> int:
        """The highest number that is applied, 0 for none."""
        return max(self.applied, default=0)

    @property
    def changed(self) -> list[Migration]:
        """Files that are not what was applied under their number."""
        return [one for one in self.files if one.version in self.applied and not _same(one, self.applied[one.version])]

    @property
    def unknown(self) -> list[Applied]:
        """What is applied and has no file here: a newer release has migrated."""
        known = {one.version for one in self.files}
        return [row for version, row in sorted(self.applied.items()) if version not in known]

    def pending(self, services: Collection[str]) -> list[Migration]:
        """Return the files of these services that are not applied, in the order of their numbers."""
        return [one for one in self.files if one.version not in self.applied and one.service in services]

    def refuse_changed(self) -> None:
        """Raise MigrationRefused when a file is not what was applied."""
        if self.changed:
            names = ", ".join(f"{one.title}.up.sql" for one in self.changed)
            raise MigrationRefused(
                f"{names}: changed since it was applied, so the schema is not what the file says. "
                "Put the file back as it was, and write what is to change into a new migration."
            )


def _same(file: Migration, row: Applied) -> bool:
    return (file.checksum, file.service) == (row.checksum, row.service)


def with_credits(services: Collection[str]) -> tuple[str, ...]:
    """Return these services and credits, in their usual order: every service stands on the tables of credits."""
    return tuple(name for name in SERVICES if name == "credits" or name in services)


def read_migrations(directory: Path | None = None) -> tuple[Migration, ...]:
    """Return the migrations of a directory, by default those of this release, in order.

    Raises MigrationRefused for a file that says nothing sound of itself, or a number that two files have.
    """
    directory = directory or resource_dir("sql") / "migrations"
    found: dict[int, Migration] = {}
    for path in sorted(directory.glob("*.up.sql")):
        one = _read_migration(path)
        if one.version in found:
            raise MigrationRefused(f"{path.name}: {found[one.version].title} has this number too; give it the next free one")
        found[one.version] = one
    return tuple(found[version] for version in sorted(found))


def _read_migration(path: Path) -> Migration:
    match = _NAME.match(path.name)
    if match is None:
        raise MigrationRefused(f"{path.name}: the name must be NNNN_name.up.sql")
    version = int(match[1])
    script, service, flags = _read_script(path)
    if version <= LAST_WITHOUT_HEADER:
        service = "shadow" if version in SHADOW_WITHOUT_HEADER else "credits"
    elif service not in SERVICES:
        raise MigrationRefused(f"{path.name}: needs a line `-- service: NAME` at its top, NAME one of {', '.join(SERVICES)}")
    down = path.with_name(f"{match[1]}_{match[2]}.down.sql")
    return Migration(
        version, match[2], service, hashlib.sha256(script.text.encode()).hexdigest(), "compatible" in flags, script,
        _read_script(down)[0] if down.exists() else None,
    )  # fmt: skip


def _read_script(path: Path) -> tuple[Script, str, frozenset[str]]:
    """Return the script of a file, and the service and flags that its header names."""
    text = path.read_text()
    service, flags = "", set()
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        match = _HEADER.match(line)
        if match is None:
            continue
        if match[1] == "service":
            service = match[2]
        else:
            flags |= {word.strip() for word in match[2].split(",")}
    if flags - _FLAGS:
        raise MigrationRefused(
            f"{path.name}: the header says `-- migrate: {', '.join(sorted(flags - _FLAGS))}`; "
            f"it may say {', '.join(sorted(_FLAGS))}"
        )
    if "no-transaction" not in flags:
        return Script(text, transactional=True), service, frozenset(flags)
    return _alone(path.name, text), service, frozenset(flags)


def _alone(name: str, text: str) -> Script:
    statement = re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", text)).strip().rstrip(";").strip()
    if ";" in re.sub(r"'[^']*'", "", statement) or not _ALONE.match(statement):
        raise MigrationRefused(
            f"{name}: outside a transaction may stand one statement only, and one that can be run again: "
            "CREATE [UNIQUE] INDEX CONCURRENTLY IF NOT EXISTS, DROP INDEX CONCURRENTLY IF EXISTS, VACUUM or ANALYZE"
        )
    index = _INDEX.search(statement)
    return Script(statement, transactional=False, makes=index[1] if index else "")


async def read_applied(connection: asyncpg.Connection[Any]) -> dict[int, Applied]:
    """Return what a database has had applied, by number; nothing for a new one. Changes nothing.

    The table may be that of an older release, which knew no services. Raises MigrationRefused when it cannot be read.
    """
    if await connection.fetchval("SELECT to_regclass('public.schema_migrations')") is None:
        return {}
    try:
        rows = await connection.fetch("SELECT to_jsonb(m)::text AS row FROM public.schema_migrations m ORDER BY version")
    except asyncpg.InsufficientPrivilegeError:
        role = await connection.fetchval("SELECT current_user")
        raise MigrationRefused(
            f"the role {role} may not read the table schema_migrations: run `shieldx migrate up` as the role that owns the "
            "schema, which grants it to shieldx_app, and grant shieldx_app to this role"
        ) from None
    return {row["version"]: _applied(row) for row in (orjson.loads(record["row"]) for record in rows)}


def _applied(row: dict[str, Any]) -> Applied:
    version = row["version"]
    return Applied(
        version, row["name"], row.get("service") or ("shadow" if version in SHADOW_WITHOUT_HEADER else "credits"),
        row["checksum"], row["applied_at"], row.get("duration_ms"), row.get("app_version"), row.get("compatible") or False,
    )  # fmt: skip


async def read_schema(connection: asyncpg.Connection[Any], files: Sequence[Migration] | None = None) -> Schema:
    """Return the files, by default those of this release, beside what a database has. Raises MigrationRefused."""
    return Schema(tuple(read_migrations() if files is None else files), await read_applied(connection))


async def check_schema(connection: asyncpg.Connection[Any], services: Collection[str] = SERVICES) -> list[Applied]:
    """Refuse a schema that this release cannot serve these services on; change nothing.

    Returns what a newer release has applied and marked as compatible: beside that this one may go on.
    Raises MigrationRefused.
    """
    schema = await read_schema(connection)
    schema.refuse_changed()
    pending = schema.pending(with_credits(services))
    if pending:
        raise MigrationRefused(
            f"the schema of the database is behind: shieldx {__version__} needs {', '.join(one.title for one in pending)}. "
            "Run `shieldx migrate up` with the same DATABASE_URL, then start again"
        )
    strange = [row for row in schema.unknown if not row.compatible and row.service in with_credits(services)]
    if strange:
        by = ", ".join(f"{row.title} (shieldx {row.app_version or 'of an unknown version'})" for row in strange)
        raise MigrationRefused(
            f"the schema of the database is ahead of shieldx {__version__} by {by}, not marked as compatible with older "
            "releases. Start the newer release, or take it back with that release's `shieldx migrate down`"
        )
    return schema.unknown


class Planned(NamedTuple):
    """What a dry run found of one file.

    ran     False of what cannot run in a transaction and so was not tried
    locks   relations that were there before, which it locks against writes, each with the lock's mode
    """

    title: str
    service: str
    compatible: bool
    ran: bool
    duration_ms: int
    locks: tuple[str, ...]
