"""`shieldx audit verify` over a database: what it may know besides, the verification, its text and exit code."""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Final

import asyncpg
import redis.exceptions
import uvloop

from app.audit.increment import verify_since
from app.audit.log import log_origin
from app.audit.memory import MemoryUnreadable, remembered_trees
from app.audit.report import EXIT_INTACT, EXIT_TAMPERED, EXIT_UNCHECKED, Report, report_json, report_text
from app.audit.trust import Trust
from app.audit.verify import CONNECT_TIMEOUT_S, CannotCheckError, ledger_of, verify_ledger
from app.db.topology import make_topology
from app.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.audit.entry import RowSeal
    from app.privacy.envelope import MasterKeys

NO_TRUST: Final = Trust()
_AWAY: Final = (OSError, TimeoutError, ValueError, redis.exceptions.RedisError, MemoryUnreadable)


def run_verify(
    database_url: str,
    seals: Mapping[str, RowSeal],
    as_json: bool,  # noqa: FBT001 - --json
    trust: Trust = NO_TRUST,
    redis_url: str = "",
    masters: MasterKeys | None = None,
) -> int:
    """Verify, print the result on stdout, and return the exit code: 0 intact, 1 tampered, 2 could not check.

    From trusted checkpoints on if there are any in `trust`, otherwise everything; in both cases the chains must have had
    the trees that the ledger's Redis remembers, if its URL is given. `masters` open private records.
    """
    bar = Progress(0, "verify")
    try:
        report = uvloop.run(_verify(database_url, redis_url, seals, trust, bar.update, masters))
    except (CannotCheckError, OSError, BrokenProcessPool, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        bar.close()
        sys.stderr.write(f"could not check: {_advice(error)}\n")
        return EXIT_UNCHECKED
    bar.close()
    sys.stdout.write((report_json(report) if as_json else report_text(report)) + "\n")
    return EXIT_INTACT if report.ok else EXIT_TAMPERED


async def _verify(
    database_url: str, redis_url: str, seals: Mapping[str, RowSeal], trust: Trust, progress: Callable[[int, int], None],
    masters: MasterKeys | None,
) -> Report:  # fmt: skip
    if redis_url:
        try:
            trust = await _recall(database_url, redis_url, trust)
        except _AWAY as error:
            reason = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"the chains are not held against what Redis remembers of them ({reason})\n")
    if trust.checkpoints:
        return await verify_since(database_url, seals=seals, progress=progress, trust=trust)
    return await verify_ledger(database_url, seals=seals, progress=progress, trust=trust, masters=masters)


async def _recall(database_url: str, redis_url: str, trust: Trust) -> Trust:
    """Add the trees that Redis remembers of the ledger's logs."""
    connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    try:
        origin, shard_count = await ledger_of(connection)
    finally:
        await connection.close()
    topology = make_topology(redis_url)
    try:
        trees = await remembered_trees(topology, [log_origin(origin, shard) for shard in range(shard_count)])
    finally:
        await topology.close()
    return trust._replace(passed=(*trust.passed, *trees))


def _advice(error: Exception) -> str:
    match error:
        case CannotCheckError():
            return str(error)
        case asyncpg.UndefinedTableError() | asyncpg.UndefinedColumnError():
            return f"no shieldx schema of this version ({error}); run `shieldx migrate up`, or name another database"
        case asyncpg.InsufficientPrivilegeError():
            return f"{error}; the role needs SELECT on the tables of the ledger"
        case OSError():
            kind = type(error).__name__
            return f"no connection to the database ({kind}: {error}); does it run, is --database-url right?"
    return f"{type(error).__name__}: {error}"
