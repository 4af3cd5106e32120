"""`shieldx migrate`, `shieldx backup` and `shieldx restore` on the console.

Exit codes of all three: 0 done; 1 it failed, and the text says what state is left; 2 refused or out of reach, and nothing
was changed; 3 (`migrate status` alone) something is to be applied.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec
import redis.exceptions
import uvloop

from app.backup.create import create_backup
from app.backup.directory import BackupRefused
from app.backup.journal import GREEN, PLAIN, RED, YELLOW, Journal
from app.backup.places import Places, backup_directory, open_places
from app.backup.prune import prune, verify_backup
from app.backup.restore import RestoreUnfinished, restore, try_restore
from app.backup.upgrade import Order, migrate_down, migrate_up
from app.db.migrate import MigrationFailed, plan
from app.db.migrations import MigrationRefused, Schema, read_schema, with_credits
from app.db.postgres import open_owner
from app.db.retry import TRANSIENT
from app.db.topology import make_topology
from app.embedded import EmbeddedFault
from app.settings import SettingRefused

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine

    from app.audit.entry import RowSeal
    from app.settings import Settings

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_REFUSED: Final = 2
EXIT_PENDING: Final = 3
_REFUSED: Final = (MigrationRefused, BackupRefused, EmbeddedFault, SettingRefused)


def run_backup_command(arguments: argparse.Namespace, settings: Settings, seal: RowSeal | None) -> int:
    """Run one of the three commands and return its exit code. `seal` is None where no key of the ledger is known."""
    runs: dict[str, Callable[[], Coroutine[Any, Any, int]]] = {
        "migrate": lambda: _migrate(arguments, settings, seal),
        "backup": lambda: _backup(arguments, settings, seal),
        "restore": lambda: _restore(arguments, settings, seal),
    }
    try:
        return uvloop.run(runs[arguments.command]())
    except (MigrationFailed, RestoreUnfinished) as error:
        return _say(str(error), EXIT_FAILED)
    except _REFUSED as error:
        return _say(str(error), EXIT_REFUSED)
    except redis.exceptions.RedisError as error:
        return _say(f"Redis: {type(error).__name__}: {error}. Is REDIS_URL right, does it run?", EXIT_REFUSED)
    except asyncpg.InsufficientPrivilegeError as error:
        return _say(f"Postgres: {error}. Use the role that owns the schema: set SHIELDX_MIGRATE_DATABASE_URL", EXIT_REFUSED)
    except (*TRANSIENT, asyncpg.PostgresError) as error:
        return _say(f"Postgres: {type(error).__name__}: {error}. Is DATABASE_URL right, does it run?", EXIT_REFUSED)


def _say(text: str, code: int) -> int:
    paint, plain = (RED, PLAIN) if sys.stderr.isatty() else ("", "")
    sys.stderr.write(f"shieldx: {paint}{text}{plain}\n")
    return code


async def _migrate(arguments: argparse.Namespace, settings: Settings, seal: RowSeal | None) -> int:
    services = tuple(arguments.service or settings.services)
    async with open_places(settings) as places:
        if arguments.action == "status":
            return await _status(places, services, as_json=arguments.json)
        if arguments.action == "plan":
            return await _plan(places, services, as_json=arguments.json)
        if arguments.action == "down" and not arguments.yes:
            raise MigrationRefused(
                f"`shieldx migrate down --to {arguments.to}` removes tables with what they hold (see the .down.sql files of "
                "the higher numbers). Add --yes to do it"
            )
        directory = backup_directory(settings)
        directory.prepare()
        journal = Journal(directory.path, f"migrate {arguments.action}")
        order = Order(
            services, settings.backup_keep_days, backup=not arguments.no_backup, restore=not arguments.no_restore, seal=seal
        )
        with journal.told():
            if arguments.action == "up":
                done = await migrate_up(places.owner_url, directory, order, journal)
            else:
                done = await migrate_down(places.owner_url, directory, order, journal, arguments.to)
        print(f"{len(done)} migrations {'applied' if arguments.action == 'up' else 'taken back'}")
        return EXIT_DONE


async def _status(places: Places, services: tuple[str, ...], *, as_json: bool) -> int:
    connection = await open_owner(places.owner_url)
    try:
        schema = await read_schema(connection)
    finally:
        connection.terminate()
    rows = _status_rows(schema, services)
    if as_json:
        print(msgspec.json.encode(rows).decode())
    else:
        colours = {"applied": GREEN, "pending": YELLOW, "changed": RED, "unknown": YELLOW}
        _print_table(rows, {row["state"]: colours[row["state"]] for row in rows})
    schema.refuse_changed()
    return EXIT_PENDING if schema.pending(with_credits(services)) else EXIT_DONE


def _status_rows(schema: Schema, services: tuple[str, ...]) -> list[dict[str, Any]]:
    changed = {one.version for one in schema.changed}
    rows: list[dict[str, Any]] = []
    for one in schema.files:
        if one.service in with_credits(services):
            applied = schema.applied.get(one.version)
            state = "changed" if one.version in changed else "applied" if applied else "pending"
            rows.append({
                "migration": one.title, "service": one.service, "state": state, "compatible": one.compatible,
                "applied_at": applied and applied.applied_at, "duration_ms": applied and applied.duration_ms,
                "app_version": applied and applied.app_version,
            })  # fmt: skip
    rows += [
        {"migration": row.title, "service": row.service, "state": "unknown", "compatible": row.compatible,
         "applied_at": row.applied_at, "duration_ms": row.duration_ms, "app_version": row.app_version}
        for row in schema.unknown
    ]  # fmt: skip
    return rows


async def _plan(places: Places, services: tuple[str, ...], *, as_json: bool) -> int:
    connection = await open_owner(places.owner_url)
    try:
        planned = await plan(connection, services)
    finally:
        connection.terminate()
    rows = [
        {"migration": one.title, "service": one.service, "compatible": one.compatible,
         "state": "would apply" if one.ran else "not tried: runs outside a transaction",
         "duration_ms": one.duration_ms if one.ran else None, "locks": ", ".join(one.locks) or "none on what is there"}
        for one in planned
    ]  # fmt: skip
    if as_json:
        print(msgspec.json.encode(rows).decode())
    elif rows:
        _print_table(rows, {})
    else:
        print("nothing to apply")
    return EXIT_DONE


async def _backup(arguments: argparse.Namespace, settings: Settings, seal: RowSeal | None) -> int:
    directory = backup_directory(settings)
    if arguments.action == "list":
        return _list(arguments, settings)
    directory.prepare()
    journal = Journal(directory.path, f"backup {arguments.action}")
    with journal.told():
        match arguments.action:
            case "create":
                async with open_places(settings) as places:
                    with directory.hold():
                        made = await create_backup(places.owner_url, directory, "manual", journal)
                        await prune(directory, settings.backup_keep_days, journal)
                print(made.id)
            case "verify":
                backup = directory.read(arguments.id)
                await verify_backup(directory, backup, journal)
                if arguments.try_restore:
                    async with open_places(settings) as places:
                        with directory.hold():
                            await try_restore(places.owner_url, backup, directory, journal, seal)
                print(f"{backup.id} is good: {backup.size_bytes} bytes, SHA-256 {backup.sha256}")
            case _:
                with directory.hold():
                    removed = await prune(directory, settings.backup_keep_days, journal)
                print(f"{len(removed)} backups removed")
    return EXIT_DONE


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    directory = backup_directory(settings)
    directory.refuse_unreadable()
    known = directory.list()
    if arguments.json:
        print(msgspec.json.encode(known).decode())
    elif known:
        _print_table([
            {"id": one.id, "finished_at": one.finished_at, "size_bytes": one.size_bytes, "schema": one.schema_version,
             "entries": sum(head.seq + 1 for head in one.heads), "app": one.app_version, "reason": one.reason}
            for one in known
        ], {})  # fmt: skip
    else:
        print(f"no backup in {directory.path}")
    return EXIT_DONE


async def _restore(arguments: argparse.Namespace, settings: Settings, seal: RowSeal | None) -> int:
    directory = backup_directory(settings)
    backup = directory.read(arguments.id)
    if (settings.database_url or settings.migrate_database_url) and not arguments.no_redis:
        if not settings.redis_url:
            raise BackupRefused("REDIS_URL: Expected the Redis of the ledger, to lay it from the backup; or add --no-redis")
        if seal is None:
            raise BackupRefused("SHIELDX_AUDIT_KEY or SHIELDX_ROOT_KEY: Expected the one of the ledger; or add --no-redis")
    journal = Journal(directory.path, "restore")
    async with open_places(settings, make=True) as places:
        topology = None if arguments.no_redis else make_topology(places.redis_url)
        try:
            with journal.told(), directory.hold():
                done = await restore(
                    places.owner_url, backup, directory, journal, topology=topology, seal=seal,
                    accept_loss=arguments.accept_loss,
                )  # fmt: skip
        finally:
            if topology is not None:
                await topology.close()
    kept = f"; the database before it is kept as {done.kept}" if done.kept else ""
    print(f"{done.database} is {backup.id} now, {done.entries} entries, verified{kept}")
    return EXIT_DONE


def _print_table(rows: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """Print rows with equal keys as columns; a cell whose text is a key of `colours` is painted on a terminal."""
    cells = [[str(name) for name in rows[0]]] + [
        ["-" if value is None else str(value) for value in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if sys.stdout.isatty():
            padded = [
                f"{colours[text]}{cell}{PLAIN}" if text in colours else cell for text, cell in zip(line, padded, strict=True)
            ]
        print("  ".join(padded).rstrip())
