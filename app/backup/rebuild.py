"""Redis after a restore: it forgets where the ledger was, and every shard is laid again from the restored Postgres.

No server runs meanwhile. What Redis alone knows stays: instances of services, rate limits, counters of experiments that are
newer than those of the backup.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from app.audit.keeper import Keeper
from app.audit.log import log_origin
from app.audit.shard import Shard
from app.audit.writer import Writer
from app.backup.create import CONNECT_TIMEOUT_S
from app.backup.directory import BackupRefused
from app.credits.opening import decode_item
from app.credits.operation import IdMask
from app.credits.projection import Folds
from app.credits.recovery import LedgerRecovery
from app.db.keys import applied_channel, checkpoint_key, shard_keys, shard_tag
from app.db.lua import load_script
from app.db.postgres import open_session
from app.db.redis import RedisLink, subscribe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.audit.entry import RowSeal
    from app.backup.journal import Journal
    from app.db.topology import Topology

POLL_S: Final = 0.02
FAILURES_MAX: Final = 20  # sessions of a shard that end by a fault, one after another: about 25 s, then a person must look
NAME: Final = "restore"  # of this process in ledger_shards, for people


class Mark(NamedTuple):
    """What Redis knows of a shard: -1 or 0 where it knows nothing.

    durable  the last seq that Redis has been told to be in Postgres; it is told with the batch that comes next
    applied  the last seq that it has decided: acknowledged, unless Postgres was lost before it had it
    epoch    of the writer that is laying the shard, or has died while it did
    signed   entries under the largest tree that was signed
    """

    shard: int
    generation: int
    durable: int
    applied: int
    epoch: int
    signed: int


async def read_marks(topology: Topology, shard_count: int) -> list[Mark]:
    """Ask Redis what it knows of each shard. Raises what a link raises when Redis is away."""
    marks = []
    for number in range(shard_count):
        link = RedisLink(topology, shard_tag(number))
        await link.open()
        try:
            head = await link.command("HMGET", shard_keys(number)[0], "generation", "durable", "seq", "restoring")
            signed = await link.command("HGET", checkpoint_key(number), "size")
        finally:
            await link.close()
        generation, durable, applied, epoch = (-1 if value is None else int(value) for value in head)
        marks.append(Mark(number, generation, durable, applied, epoch, int(signed or 0)))
    return marks


async def outrun(connection: asyncpg.Connection[Any], marks: Sequence[Mark], known: Sequence[tuple[int, int, int]]) -> None:
    """Raise epochs and generations of a restored database above all that Redis and the database before it knew.

    So nothing that is still on its way from before can be taken for something of now.

    known  shard, epoch and generation of the database that is replaced
    """
    for shard, epoch, generation in (*((mark.shard, mark.epoch, mark.generation) for mark in marks), *known):
        await connection.execute(
            "UPDATE ledger_shards SET epoch = greatest(epoch, $2), generation = greatest(generation, $3) WHERE shard = $1",
            shard, max(epoch, 0), max(generation, 0),
        )  # fmt: skip


async def forget(topology: Topology, marks: Sequence[Mark], entries: dict[int, int]) -> None:
    """Take from Redis where each shard's ledger was; `entries` are those that each restored chain has.

    A tree that was signed and is larger than the restored chain is forgotten too: otherwise nothing could be signed again.
    """
    for mark in marks:
        link = RedisLink(topology, shard_tag(mark.shard))
        await link.open()
        try:
            words: list[str | int] = [0, "doubt", mark.generation]
            await link.evaluate(load_script("ledger_restore"), shard_keys(mark.shard), words)
            if mark.signed > entries[mark.shard]:
                await link.command("DEL", checkpoint_key(mark.shard))
        finally:
            await link.close()


async def rebuild(database_url: str, topology: Topology, seal: RowSeal, journal: Journal) -> None:
    """Lay every shard of the ledger into Redis, as the first server would, and let go of it.

    Raises BackupRefused when a shard cannot be opened, or not within FAILURES_MAX tries, and what the recovery raises that
    a person must see.
    """
    connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    try:
        row = await connection.fetchrow("SELECT ledger_id, origin, shard_count FROM ledger")
    finally:
        connection.terminate()
    if row is None:
        return
    mask = IdMask.of(row["ledger_id"].bytes)
    bar = journal.bar(row["shard_count"], "rebuild Redis, shards")
    for number in range(row["shard_count"]):
        await _lay(number, row["origin"], mask, database_url, topology, seal)
        bar.update(number + 1)
    bar.close()


async def _lay(number: int, origin: str, mask: IdMask, database_url: str, topology: Topology, seal: RowSeal) -> None:
    """Open one shard as its writer, which lays it, and give it up again."""
    crashed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def on_crash(error: BaseException) -> None:
        if not crashed.done():
            crashed.set_result(error)

    shard = Shard(number, log_origin(origin, number))
    link = RedisLink(topology, shard_tag(number))
    writer = Writer(shard, seal, Folds(lambda: None).of, link, functools.partial(decode_item, number, mask))
    keeper = Keeper(
        shard, writer, LedgerRecovery(shard, writer, link), lambda: open_session(database_url),
        functools.partial(subscribe, topology, applied_channel(number)), NAME,
    )  # fmt: skip
    writer.start(on_crash)
    keeper.start(on_crash)
    try:
        while shard.state != "open":
            if crashed.done():
                raise crashed.result()
            if shard.state == "refused":
                raise BackupRefused(f"shard {number} cannot be laid into Redis: {shard.reason}")
            if keeper.failures >= FAILURES_MAX:
                raise BackupRefused(f"shard {number} was not laid into Redis, {keeper.failures} tries long: {keeper.fault}")
            await asyncio.sleep(POLL_S)
    finally:
        await writer.stop()
        await keeper.stop()
        await link.close()
