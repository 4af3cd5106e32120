"""The sub-commands and flags of `shieldx migrate`, `shieldx backup` and `shieldx restore`."""

from __future__ import annotations

from typing import Any

from app.settings import SERVICES


def add_backup_parsers(commands: Any) -> None:
    """Add `migrate`, `backup` and `restore` to the sub-parsers of the console command."""
    migrating = commands.add_parser("migrate", help="the schema of the database: apply, take back, look, try")
    actions = migrating.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="make a backup, then apply every migration that is missing")
    down = actions.add_parser("down", help="make a backup, then take migrations back, with what their tables hold")
    down.add_argument("--to", type=int, required=True, metavar="VERSION", help="the highest number that stays")
    down.add_argument("--yes", action="store_true", help="do it: what the tables hold is gone then")
    status = actions.add_parser("status", help="list migrations; exit 0 when all are applied, 3 when some are not")
    planning = actions.add_parser("plan", help="run what is missing in a transaction, roll it back, and tell what it locks")
    for parser in (up, down):
        parser.add_argument("--no-backup", action="store_true", help="make none; for databases that are backed up otherwise")
        parser.add_argument("--no-restore", action="store_true", help="leave the database as a failure leaves it")
    for parser in (up, down, status, planning):
        parser.add_argument("--service", action="append", choices=SERVICES, help="this one and credits; repeat; default all")
    for parser in (status, planning):
        parser.add_argument("--json", action="store_true", help="print one JSON array")
    backing = commands.add_parser("backup", help="backups of the database").add_subparsers(dest="action", required=True)
    create = backing.add_parser("create", help="make one, read it again, and remove old ones")
    verify = backing.add_parser("verify", help="read one from end to end and compare it with its metadata")
    verify.add_argument("id", nargs="?", default="latest", help="default: the newest")
    verify.add_argument("--restore", action="store_true", dest="try_restore",
                        help="also restore it into a database of its own, verify the chain there, and drop it")  # fmt: skip
    listing = backing.add_parser("list", help="list them, oldest first")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    pruning = backing.add_parser("prune", help="remove old ones, never the newest good one")
    for parser in (create, pruning, up, down):
        parser.add_argument(
            "--keep-days", "--backup-keep-days", dest="backup_keep_days", help="days for which backups are kept"
        )
    restoring = commands.add_parser("restore", help="put a backup in the database's place, and lay Redis from it")
    restoring.add_argument("id", help="of the backup, or latest")
    restoring.add_argument("--accept-loss", action="store_true", help="lose what was acknowledged after the backup")
    restoring.add_argument("--no-redis", action="store_true", help="leave Redis alone")
    for parser in (up, down, status, planning, create, verify, listing, pruning, restoring):
        parser.add_argument("--data-dir", dest="data_dir", help="data directory of the embedded servers")
        parser.add_argument("--backup-dir", dest="backup_dir", help="default: backups in the data directory")
