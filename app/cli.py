"""The console command `shieldx`: its sub-commands, flags and exit codes."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from app import __version__
from app.access.commands import add_parsers, run_keys
from app.backup.directory import BackupRefused
from app.backup.parsers import add_backup_parsers
from app.db.migrate import MigrationFailed
from app.db.migrations import MigrationRefused
from app.embedded import EmbeddedFault, existing_root_key, read_endpoints, root_key
from app.settings import DESCRIPTIONS, SettingRefused, Settings, read_settings, variable_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.audit.entry import RowSeal
    from app.privacy.envelope import MasterKeys

EXIT_REFUSED: Final = 2  # the command line or the settings are wrong, or a check could not be made
_SECRET: Final = frozenset({
    "root_key", "audit_key", "checkpoint_keys", "master_keys", "webhook_key", "webhook_old_key", "redis_url", "database_url",
    "migrate_database_url", "traces_url",
})  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shieldx", description="Credits that are durable and provable.")
    parser.add_argument("--version", action="version", version=f"shieldx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the server in the foreground")
    for field in msgspec.structs.fields(Settings):
        if field.name not in _SECRET:  # secrets on a command line are visible to every user of the machine
            default = f"; default {_shown(field.default)}" if field.default is not msgspec.NODEFAULT else ""
            serve.add_argument(
                f"--{field.name.replace('_', '-')}", dest=field.name,
                help=f"{DESCRIPTIONS[field.name]} ({variable_of(field.name)}{default})".replace("%", "%%"),
            )  # fmt: skip
    for name, text in (("urls", "print the URLs of the embedded servers"), ("key", "print the embedded root key")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--data-dir", dest="data_dir", help="directory of the running server")
    audit = commands.add_parser("audit", help="check the chain").add_subparsers(dest="action", required=True)
    verify = audit.add_parser("verify", help="walk every chain: exit 0 intact, 1 tampered, 2 could not check")
    verify.add_argument("--database-url", help="Postgres to check (DATABASE_URL; default: the embedded one)")
    verify.add_argument("--data-dir", dest="data_dir", help="data directory with the embedded servers and the root key")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.add_argument("--receipt", type=Path, help="check one receipt file instead, without a database")
    verify.add_argument("--entry", type=Path, help="file with the bytes of the entry, for a receipt that does not hold them")
    verify.add_argument("--key", action="append", default=[], help="verifier key of a log: name+hash+key; may be repeated")
    verify.add_argument(
        "--witness", action="append", default=[], help="key of a witness that must have cosigned the receipt"
    )
    verify.add_argument("--checkpoint", action="append", default=[], type=Path,
                        help="file with a trusted checkpoint that the chain must pass through; may be repeated")  # fmt: skip
    verify.add_argument("--from-checkpoint", action="append", default=[], type=Path,
                        help="file with a trusted checkpoint: check only what came after it; may be repeated")  # fmt: skip
    verify.add_argument("--master-key-file", metavar="FILE", type=Path,
                        help="file with the master keys of private data: opens every private record")  # fmt: skip
    verify.add_argument("--size", action="append", default=[],
                        help="[SHARD:]SIZE: how many entries the chain is known to have had; may be repeated")  # fmt: skip
    keys = add_parsers(commands)
    rotate = keys.add_parser(
        "rotate-master",
        help="make a new master key in the data directory, or take the first one that is set, and wrap all data keys by it",
    )
    rotate.add_argument("--database-url", help="Postgres (DATABASE_URL; default: the embedded one)")
    rotate.add_argument("--data-dir", dest="data_dir", help="data directory with the embedded servers")
    payment = commands.add_parser("payment", help="private data").add_subparsers(dest="action", required=True)
    show = payment.add_parser("show", help="print the payment of a top-up in the clear; the chain tells that it was read")
    show.add_argument("transaction_id")
    show.add_argument("--purpose", required=True, help="why it is read, such as a case number; stands in the chain")
    show.add_argument("--database-url", help="Postgres (DATABASE_URL; default: the embedded one)")
    show.add_argument("--data-dir", dest="data_dir", help="data directory with the embedded servers and the master key")
    add_backup_parsers(commands)
    replay = commands.add_parser("replay", help="play a file of metered requests against a server")
    replay.add_argument("file", type=Path, help="CSV with TIMESTAMP, ContextTokens, GeneratedTokens")
    replay.add_argument("--url", default="http://127.0.0.1:5004")
    replay.add_argument("--key", help="bearer key (SHIELDX_ROOT_KEY; default: the embedded one)")
    replay.add_argument("--data-dir", dest="data_dir", help="data directory to read the embedded root key from")
    replay.add_argument("--speed", type=float, default=0.0, help="times real time; 0: as fast as possible")
    replay.add_argument("--tenants", type=int, default=10)
    replay.add_argument("--connections", type=int, default=32)
    replay.add_argument("--patience-seconds", type=float, default=60.0, help="how long to retry while the server is away")
    replay.add_argument("--run", dest="run_name", help="name of the run; the same name plays on where it stopped")
    replay.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _shown(default: object) -> str:
    """Return a default as it would be typed."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _data_dir(arguments: argparse.Namespace) -> Path:
    return Path(arguments.data_dir or os.environ.get("SHIELDX_DATA_DIR") or ".shieldx")


def _database_url(arguments: argparse.Namespace) -> str:
    """Return the URL of Postgres that is given, or else that of the embedded one. Raises what `read_endpoints` raises."""
    given: str | None = arguments.database_url or os.environ.get("DATABASE_URL")
    return given or read_endpoints(_data_dir(arguments)).admin_database_url


def _serve(arguments: argparse.Namespace) -> int:
    from app.main import serve  # noqa: PLC0415 - the other commands start faster without the server
    from app.web.logs import configure_logging  # noqa: PLC0415

    settings = read_settings({k: v for k, v in vars(arguments).items() if k in DESCRIPTIONS}, os.environ)
    configure_logging(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))


def _named_masters(path: Path) -> MasterKeys:
    """Return the master keys in a file. Raises MasterKeyRefused, OSError."""
    from app.privacy.envelope import MasterKeyRefused, read_master_keys  # noqa: PLC0415

    masters = read_master_keys({"SHIELDX_MASTER_KEY_FILE": str(path)})
    if masters is None:
        raise MasterKeyRefused(f"{path} has no master key")
    return masters


def _audit(arguments: argparse.Namespace) -> int:
    from app.audit.command import run_verify  # noqa: PLC0415
    from app.audit.offline import run_receipt  # noqa: PLC0415
    from app.audit.trust import TrustRefused, read_trust  # noqa: PLC0415
    from app.privacy.envelope import MasterKeyRefused  # noqa: PLC0415

    if arguments.receipt is not None:
        return run_receipt(arguments.receipt, arguments.key, arguments.witness, arguments.entry, as_json=arguments.json)
    try:
        trust = read_trust(arguments.key, arguments.from_checkpoint, arguments.size, arguments.checkpoint)
        masters = None if arguments.master_key_file is None else _named_masters(arguments.master_key_file)
    except (TrustRefused, MasterKeyRefused, OSError) as error:
        print(f"could not check: {error}", file=sys.stderr)
        return EXIT_REFUSED

    if masters is not None and trust.checkpoints:
        print("could not check: a whole verification opens private records: leave --from-checkpoint out", file=sys.stderr)
        return EXIT_REFUSED

    data_dir = _data_dir(arguments)
    settings = read_settings({"data_dir": str(data_dir)}, {k: v for k, v in os.environ.items() if k.endswith("_KEY")})
    url, redis_url = arguments.database_url or os.environ.get("DATABASE_URL"), ""
    if not arguments.database_url:  # a database that is named may be a copy, of which this Redis knows nothing
        redis_url = os.environ.get("REDIS_URL", "")
    if not url:
        endpoints = read_endpoints(data_dir)
        url, redis_url = endpoints.admin_database_url, endpoints.redis_url
    seal = _seal(settings)
    return run_verify(url, {} if seal is None else {seal.key_id: seal}, arguments.json, trust, redis_url, masters)


def _keys(arguments: argparse.Namespace) -> int:
    url = _database_url(arguments)
    if arguments.action == "rotate-master":
        from app.main import MASTER_KEY_FILE  # noqa: PLC0415
        from app.privacy.rotation import run_rotation  # noqa: PLC0415

        given = os.environ.get("SHIELDX_MASTER_KEYS") or os.environ.get("SHIELDX_MASTER_KEY_FILE")
        return run_rotation(url, None if given else _data_dir(arguments) / MASTER_KEY_FILE)
    return run_keys(arguments, url)


def _payment(arguments: argparse.Namespace) -> int:
    from app.credits.payment_command import run_disclosure  # noqa: PLC0415
    from app.main import checked_master_keys  # noqa: PLC0415

    data_dir = _data_dir(arguments)
    given = {k: v for k, v in os.environ.items() if k.startswith("SHIELDX_MASTER_KEY")}
    masters = checked_master_keys(read_settings({"data_dir": str(data_dir)}, given))
    url = _database_url(arguments)
    return run_disclosure(url, masters, arguments.transaction_id, arguments.purpose)


def _seal(settings: Settings) -> RowSeal | None:
    """Return the seal of the ledger's rows, None where no key is known."""
    from app.audit.entry import RowSeal  # noqa: PLC0415
    from app.audit.signing_keys import audit_key  # noqa: PLC0415

    if not settings.root_key and not settings.audit_key and not (settings.data_dir / "root.key").exists():
        return None
    return RowSeal(audit_key(settings, settings.root_key or root_key(settings.data_dir)))


def _backup(arguments: argparse.Namespace) -> int:
    from app.backup.commands import run_backup_command  # noqa: PLC0415

    flags = {name: getattr(arguments, name, None) for name in ("data_dir", "backup_dir", "backup_keep_days")}
    environment = dict(os.environ)
    owner, server = environment.get("SHIELDX_MIGRATE_DATABASE_URL"), environment.get("DATABASE_URL")
    if not environment.get("REDIS_URL"):  # needed to serve, and to restore, which says so
        environment |= {"SHIELDX_MIGRATE_DATABASE_URL": owner or server or "", "DATABASE_URL": ""}
    elif owner and not server:
        environment["DATABASE_URL"] = owner
    settings = read_settings(flags, environment)
    if arguments.command == "restore" and not settings.database_url and not settings.migrate_database_url:
        root_key(settings.data_dir)  # a new data directory gets one, as at the first start of a server
    return run_backup_command(arguments, settings, _seal(settings))


def _replay(arguments: argparse.Namespace) -> int:
    from app.replay import ReplayOptions, run_replay  # noqa: PLC0415

    key = arguments.key or os.environ.get("SHIELDX_ROOT_KEY") or existing_root_key(_data_dir(arguments))
    given = {k: v for k, v in vars(arguments).items() if k in ReplayOptions.__struct_fields__}
    return run_replay(ReplayOptions(**given | {"key": key}))


def _urls(arguments: argparse.Namespace) -> int:
    urls = read_endpoints(_data_dir(arguments))
    print(f"REDIS_URL={urls.redis_url}\nDATABASE_URL={urls.admin_database_url}")
    return 0


def _key(arguments: argparse.Namespace) -> int:
    print(existing_root_key(_data_dir(arguments)))
    return 0


_RUNS: Final = {
    "serve": _serve, "urls": _urls, "key": _key, "audit": _audit, "keys": _keys, "payment": _payment,
    "migrate": _backup, "backup": _backup, "restore": _backup, "replay": _replay,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return _RUNS[parsed.command](parsed)
    except (SettingRefused, EmbeddedFault, MigrationRefused, MigrationFailed, BackupRefused) as error:
        print(f"shieldx: {error}", file=sys.stderr)
        return EXIT_REFUSED
