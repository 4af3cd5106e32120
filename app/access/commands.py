"""`shieldx keys`: make, list, rotate and end keys on the console, straight in Postgres.

Whoever can do this owns the database, so it asks for no key. What it changes is in effect on every running server like a
change over HTTP, and becomes an entry of the chain as soon as one runs.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec

from app.access import calls
from app.access.calls import NewKey, Rotation
from app.access.scope import ROLES, SERVICE_NAMES, Key
from app.access.store import KeyStore
from app.clock import now_ms, time_of
from app.db.postgres import open_pool
from app.db.retry import TRANSIENT
from app.db.statements import Statements
from app.web.problems import Problem, invalid

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from app.access.calls import KeyView

CONSOLE: Final = Key(key_id="console", role="admin")
PAGE: Final = 1_000  # keys of one read
EXIT_REFUSED: Final = 2
_COLUMNS: Final = ("key_id", "shown", "name", "role", "status", "tenants", "services", "expires_at", "last_used_at")


def add_parsers(commands: Any) -> Any:
    """Add the sub-commands of `keys` to the sub-parsers of the console command; return those of `keys`, to add more."""
    actions = commands.add_parser("keys", help="API keys").add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and print it, this once")
    create.add_argument("--name", required=True, help="what people call it")
    create.add_argument("--role", required=True, choices=ROLES)
    create.add_argument(
        "--tenant", action="append", dest="tenants", metavar="TENANT", help="limit it to this tenant; repeat"
    )
    create.add_argument("--service", action="append", dest="services", choices=SERVICE_NAMES, help="limit it; repeat")
    create.add_argument("--expires-days", type=float, help="days until it ends; by default it does not")
    create.add_argument("--rate", type=float, help="requests a second that it may make; by default no limit")
    create.add_argument("--burst", type=int, help="requests at once, with --rate")
    listing = actions.add_parser("list", help="list keys, ended ones too")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    revoke = actions.add_parser("revoke", help="end a key at once")
    rotate = actions.add_parser("rotate", help="make the successor of a key and print it; the old one ends later")
    rotate.add_argument("--overlap-seconds", type=int, default=calls.OVERLAP_DEFAULT_S, help="how long both are valid")
    for parser in (revoke, rotate):
        parser.add_argument("key_id")
    for parser in (create, listing, revoke, rotate):
        parser.add_argument("--database-url", help="Postgres (DATABASE_URL; default: the embedded one)")
        parser.add_argument("--data-dir", dest="data_dir", help="data directory of the embedded servers")
    return actions


def run_keys(arguments: argparse.Namespace, database_url: str) -> int:
    """Run one sub-command on a database; return the exit code: 0 done, 2 refused or out of reach."""
    try:
        return asyncio.run(_run(arguments, database_url))
    except Problem as problem:
        reason = " ".join([problem.detail, *(f"{error.pointer}: {error.detail}." for error in problem.errors)])
    except msgspec.ValidationError as error:
        reason = str(error).replace("`", "")
    except (asyncpg.UndefinedTableError, asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError):
        reason = "the database has no keys of this release yet: run `shieldx migrate up` on it"
    except (*TRANSIENT, asyncpg.PostgresError) as error:
        reason = f"Postgres: {type(error).__name__}: {error}"
    print(f"shieldx: {reason}", file=sys.stderr)
    return EXIT_REFUSED


async def _run(arguments: argparse.Namespace, database_url: str) -> int:
    pool = await open_pool(database_url, 1)
    try:
        store = KeyStore(Statements(pool))
        match arguments.action:
            case "create":
                made = await calls.create(_new_key(arguments), CONSOLE, store)
                print(f"{made.key_id}: this is the only time that the key is shown", file=sys.stderr)
                print(made.key)
            case "list":
                _print_list(await _all_keys(store), as_json=arguments.json)
            case "revoke":
                ended = await calls.revoke(arguments.key_id, CONSOLE, store)
                print(f"{ended.key_id} is revoked since {ended.revoked_at}")
            case _:
                body = msgspec.convert({"overlap_seconds": arguments.overlap_seconds}, Rotation)
                rotated = await calls.rotate(arguments.key_id, body, CONSOLE, store)
                print(f"{rotated.key_id} replaces {rotated.replaces}, which ends {rotated.old_expires_at}", file=sys.stderr)
                print(rotated.key)
        return 0
    finally:
        pool.terminate()


def _new_key(arguments: argparse.Namespace) -> NewKey:
    body: dict[str, Any] = {"name": arguments.name, "role": arguments.role}
    for name in ("tenants", "services"):
        if getattr(arguments, name) is not None:
            body[name] = getattr(arguments, name)
    if arguments.expires_days is not None:
        try:
            body["expires_at"] = time_of(now_ms()) + timedelta(days=arguments.expires_days)
        except (OverflowError, ValueError):  # ValueError: it is no number, such as nan
            raise invalid("/expires_at", "Expected a time before the year 10000") from None
    if arguments.rate is not None or arguments.burst is not None:
        body["rate_limit"] = {
            name: value for name, value in (("rate", arguments.rate), ("burst", arguments.burst)) if value is not None
        }
    return msgspec.convert(body, NewKey)


async def _all_keys(store: KeyStore) -> list[KeyView]:
    found: list[KeyView] = []
    after: str | None = ""
    while after is not None:
        page, after = await calls.list_keys(CONSOLE, store, after, PAGE)
        found += page
    return found


def _print_list(keys: Sequence[KeyView], *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(keys).decode())
        return
    rows = [_COLUMNS, *(tuple(_cell(getattr(key, name)) for name in _COLUMNS) for key in keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: str | list[str] | None) -> str:
    if value is None:
        return "-"
    return ",".join(value) if isinstance(value, list) else value
