"""Restoring: into a new database, which is proved before it takes the old one's place by name, and then Redis.

The old database stays beside it under the name NAME_before_TIME. A restore that is killed anywhere can be run again:
the swap is one transaction, and what was begun before it is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from app.audit.verify import CannotCheckError, verify_ledger
from app.backup.archive import load_archive, with_database
from app.backup.create import CONNECT_TIMEOUT_S
from app.backup.databases import Databases, open_databases
from app.backup.directory import BackupRefused
from app.backup.erasures import erase_again, read_erasures
from app.backup.facts import count_server_sessions, differences, read_facts
from app.backup.prune import VERSION_DIVISOR, verify_backup
from app.backup.rebuild import forget, outrun, read_marks, rebuild
from app.embedded.binaries import find_postgres_programs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.audit.entry import RowSeal
    from app.backup.directory import Backup, BackupDirectory
    from app.backup.journal import Journal
    from app.backup.rebuild import Mark
    from app.db.topology import Topology

LOST_SHOWN_MAX: Final = 5  # shards named in a refusal


class RestoreUnfinished(Exception):
    """The database is replaced, Redis is not laid from it yet; the text says what to do."""


class Restored(NamedTuple):
    """What a restore has done. `kept` is the name of the database that was there before, "" when there was none."""

    database: str
    kept: str
    entries: int


async def restore(
    url: str, backup: Backup, directory: BackupDirectory, journal: Journal, *, topology: Topology | None,
    seal: RowSeal | None, accept_loss: bool = False,
) -> Restored:  # fmt: skip
    """Put a backup in the place of the database at `url`, and lay Redis from it.

    topology     Redis of the ledger; None leaves it alone, and the first server refuses or lays it
    seal         of the ledger's rows, to check them, and needed with a topology
    accept_loss  go on although entries that were acknowledged after the backup are lost by it

    Raises BackupRefused before anything is changed, and BinaryMissing; what asyncpg and Redis raise; RestoreUnfinished.
    """
    async with open_databases(url) as databases:
        if topology is not None:
            await databases.refuse_foreign_role()
        known = await _known(databases)
        shards = max([len(backup.heads), *(row["shard"] + 1 for row in known)])
        marks = [] if topology is None else await read_marks(topology, shards)
        _refuse_loss(backup, known, marks, accept_loss=accept_loss)
        erased = await read_erasures(url) if await databases.exists(databases.name) else []
        new = await load_proven(databases, backup, directory, journal, seal)
        journal.step("outrun", database=new)
        await _outrun(with_database(url, new), marks, known)
        if erased:
            journal.done("erased again", erasures=len(erased), records=await erase_again(with_database(url, new), erased))
        journal.step("swap", database=databases.name, new=new)
        kept = await databases.swap(new)
        if kept and await _is_empty(with_database(url, kept)):
            await databases.drop(kept)
            kept = ""
    journal.done("swapped", database=databases.name, kept=kept or "nothing")
    entries = {head.shard: head.seq + 1 for head in backup.heads}
    if topology is not None and seal is not None and backup.heads:
        try:
            journal.step("rebuild Redis", shards=len(backup.heads))
            await forget(topology, [mark for mark in marks if mark.shard in entries], entries)
            await rebuild(url, topology, seal, journal)
            journal.step("verify", database=databases.name)
            await prove_chain(url, seal, journal)
        except Exception as error:
            raise RestoreUnfinished(
                f"{databases.name} is the backup {backup.id} now, but Redis was not laid from it ({type(error).__name__}: "
                f"{error}). Start no server; mend what is named, then run the same command again"
            ) from error
    return Restored(databases.name, kept, sum(entries.values()))


async def _known(databases: Databases) -> list[asyncpg.Record]:
    """Return the shards of the database that is to be replaced; refuse while servers run on it."""
    if not await databases.exists(databases.name):
        return []
    connection = await asyncpg.connect(databases.url, timeout=CONNECT_TIMEOUT_S)
    try:
        sessions = await count_server_sessions(connection)
        if sessions:
            raise BackupRefused(
                f"servers are running on {databases.name} ({sessions} sessions): stop all of them (kubectl scale "
                "--replicas=0, or SIGTERM), then run this again"
            )
        if await connection.fetchval("SELECT to_regclass('public.ledger_shards')") is None:
            return []
        return await connection.fetch("SELECT shard, epoch, generation, head_seq FROM public.ledger_shards ORDER BY shard")
    finally:
        connection.terminate()


async def _is_empty(url: str) -> bool:
    """Whether a database has no table: it was made to be restored into."""
    connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        return not (await read_facts(connection)).rows
    finally:
        await connection.close()


def _refuse_loss(backup: Backup, known: list[asyncpg.Record], marks: list[Mark], *, accept_loss: bool) -> None:
    """Refuse a backup that ends before what Postgres or Redis know to have been acknowledged.

    Without the database before it, all that Redis has decided counts: nobody else can tell what of it was acknowledged.
    """
    heads = {head.shard: head.seq for head in backup.heads}
    ends = {row["shard"]: int(row["head_seq"]) for row in known}
    for mark in marks:
        seq = mark.durable if mark.shard in ends else mark.applied
        ends[mark.shard] = max(seq, mark.signed - 1, ends.get(mark.shard, -1))
    lost = [
        f"shard {shard} ends at seq {seq}, the backup at {heads.get(shard, -1)}: {seq - heads.get(shard, -1)} entries"
        for shard, seq in sorted(ends.items())
        if seq > heads.get(shard, -1)
    ]
    if lost and not accept_loss:
        raise BackupRefused(
            f"acknowledged operations would be lost: {'; '.join(lost[:LOST_SHOWN_MAX])}. Take a newer backup, or accept the "
            "loss with --accept-loss: receipts of the lost entries will then contradict the log"
        )


async def _outrun(url: str, marks: list[Mark], known: list[asyncpg.Record]) -> None:
    connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        if await connection.fetchval("SELECT to_regclass('public.ledger_shards')") is not None:
            await outrun(connection, marks, [(row["shard"], row["epoch"], row["generation"]) for row in known])
    finally:
        await connection.close()


async def load_proven(
    databases: Databases, backup: Backup, directory: BackupDirectory, journal: Journal, seal: RowSeal | None
) -> str:
    """Load a backup into a new database and prove it: row counts, chain heads, every entry. Return its name.

    Raises BackupRefused and BinaryMissing; then the new database is gone again.
    """
    version_num = await databases.version_num()
    programs = await find_postgres_programs(version_num // VERSION_DIVISOR)
    if version_num // VERSION_DIVISOR < backup.server_version_num // VERSION_DIVISOR:
        raise BackupRefused(
            f"the backup is of PostgreSQL {backup.server_version}, the server is {version_num // VERSION_DIVISOR}: an older "
            "server cannot take it. Restore into a server of that version or a later one"
        )
    journal.step("read backup", backup=backup.id, bytes=backup.size_bytes)
    await verify_backup(directory, backup, journal)
    for name in await databases.drop_unfinished():
        journal.warn("dropped what an earlier restore has left", database=name)
    journal.step("make database", like=databases.name)
    new = await databases.make(backup)
    try:
        journal.step("load", database=new)
        await load_archive(programs, with_database(databases.url, new), directory.archive(backup.id))
        journal.step("compare", database=new)
        await prove(with_database(databases.url, new), backup, seal, journal)
    except Exception:
        await databases.drop(new)
        raise
    return new


async def prove(url: str, backup: Backup, seal: RowSeal | None, journal: Journal) -> None:
    """Compare a database with what a backup holds, then verify its chain. Raises BackupRefused."""
    connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        found = differences(backup, await read_facts(connection))
    finally:
        await connection.close()
    if found:
        raise BackupRefused(f"what was restored is not what was backed up: {'; '.join(found)}. Use another backup")
    if backup.heads:
        await prove_chain(url, seal, journal)


async def prove_chain(url: str, seal: RowSeal | None, journal: Journal) -> None:
    """Verify the whole ledger in a database, as `shieldx audit verify` does. Raises BackupRefused."""
    bar = journal.bar(0, "verify, entries")
    seals: Mapping[str, RowSeal] = {} if seal is None else {seal.key_id: seal}
    try:
        report = await verify_ledger(url, seals=seals, progress=bar.update)
    except CannotCheckError as error:
        raise BackupRefused(f"the chain cannot be checked: {error}. Use another backup") from None
    finally:
        bar.close()
    if not report.ok:
        bad = report.first_bad
        where = f"shard {bad.shard}, seq {bad.seq}: {bad.reason}" if bad else "see `shieldx audit verify`"
        raise BackupRefused(f"the chain is not intact: {where}. Use an older backup, and keep this database for inspection")
    details: dict[str, Any] = {"entries": sum(shard.entries for shard in report.shards), "accounts": report.accounts}
    if report.signatures_unchecked:
        journal.warn("seals under another key were not checked: set SHIELDX_AUDIT_KEY or SHIELDX_ROOT_KEY",
                     entries=report.signatures_unchecked)  # fmt: skip
    journal.done("chain verified", **details)


async def try_restore(url: str, backup: Backup, directory: BackupDirectory, journal: Journal, seal: RowSeal | None) -> None:
    """Restore a backup into a database of its own, prove it, and drop it again. Raises BackupRefused, BinaryMissing."""
    async with open_databases(url) as databases:
        new = await load_proven(databases, backup, directory, journal, seal)
        await databases.drop(new)
