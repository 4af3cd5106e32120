"""Keeps a shard in good hands: follows while another replica writes it, leads when the lock is free.

One Postgres session per shard and process. It waits for the shard's advisory lock and meanwhile listens for the
durable head; once it has the lock it raises the epoch, has the shard recovered, and lets the writer write until
the lease is lost. Then it starts over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import asyncpg
import redis.exceptions

from app.actor import ActorStopped
from app.audit.shard import shard_row
from app.audit.writer import BEAT_INTERVAL_S, POSTGRES_ANSWER_TIMEOUT_S, Fenced, Lease, RedisForgot
from app.db.postgres import cut_off
from app.db.retry import TRANSIENT, delay_ms
from app.turns import end_task, pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio.client import PubSub

    from app.audit.shard import Shard, ShardRow
    from app.audit.writer import Writer

log = logging.getLogger(__name__)

LOCK_CLASS: Final = 0x5348  # "SH": keeps our advisory locks apart from other people's
POLL_INTERVAL_S: Final = 0.25  # how often a follower tries the lock and a leader looks at the outbox
STALE_WRITER_S: Final = 3.0  # a writer beats every second; silent for this long it is paused or cut off
REFUSED_RETRY_S: Final = 2.0  # how often a refused shard is looked at again: a person may have mended it

_ROW: Final = """
SELECT epoch, generation, run_id, head_seq, head_hash, beat_at < now() - make_interval(secs => $2) AS stale
FROM ledger_shards WHERE shard = $1
"""
_RAISE_EPOCH: Final = """
UPDATE ledger_shards SET epoch = epoch + 1, writer = $2, beat_at = now() WHERE shard = $1
RETURNING epoch, generation, run_id, head_seq, head_hash
"""
_BEAT: Final = "UPDATE ledger_shards SET beat_at = now() WHERE shard = $1 AND epoch = $2"
_END_STALE: Final = """
SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN ledger_shards s ON s.shard = l.objid::int
WHERE l.locktype = 'advisory' AND l.classid = $1::int::oid AND l.objsubid = 2 AND l.granted
  AND s.shard = $2 AND s.beat_at < now() - make_interval(secs => $3)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class ShardRefused(Exception):
    """The stores contradict each other in a way that only a person can resolve; the text says which."""


class Recovery(Protocol):
    """Brings Redis and Postgres of one shard together again."""

    async def recover(self, row: ShardRow, lease: Lease) -> ShardRow:
        """Return the shard's row after Redis continues it. Raises ShardRefused."""


class Keeper:
    """The loop described above, as one task."""

    def __init__(
        self,
        shard: Shard,
        writer: Writer,
        recovery: Recovery,
        connect: Callable[[], Awaitable[asyncpg.Connection[Any]]],
        subscribe: Callable[[], Awaitable[PubSub]],
        name: str,
    ) -> None:
        """`connect` opens a Postgres session of the server's role; `subscribe` the channel on which replicas say what they
        have applied; `name` is this replica's, for people.
        """
        self._shard = shard
        self._writer = writer
        self._recovery = recovery
        self._connect = connect
        self._subscribe = subscribe
        self._name = name
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.failures = 0  # sessions in a row that ended by a fault; how long the next try waits
        self.fault = ""  # that ended the last of them

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Start the loop; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name=f"keeper s{self._shard.number:02d}")

    async def stop(self) -> None:
        """Give the lease up and end."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        while not self._stopping.is_set():
            try:
                await self._session()
            except ShardRefused as error:
                log.critical("shard refused", extra={"shard": self._shard.number, "reason": str(error)})
                self._shard.close(str(error), refused=True)
                await pause(self._stopping, REFUSED_RETRY_S)
            except (*TRANSIENT, Fenced, RedisForgot, redis.exceptions.RedisError, asyncpg.PostgresError) as error:
                reason = f"{type(error).__name__}: {error}"
                log.warning("shard closed", extra={"shard": self._shard.number, "reason": reason})
                self._shard.close(reason)
                self.fault = reason
                await pause(self._stopping, delay_ms(self.failures) / 1000)
                self.failures += 1
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return

    async def _session(self) -> None:
        async with asyncio.timeout(5):
            connection = await self._connect()
        try:
            if await self._follow(connection):
                await self._lead(connection)
        finally:
            self._shard.leading = False
            self._writer.rest()
            connection.terminate()

    async def _follow(self, connection: asyncpg.Connection[Any]) -> bool:
        """Keep the view up to date until the lock is ours (True) or the process stops (False)."""
        number = self._shard.number
        with cut_off(connection, POSTGRES_ANSWER_TIMEOUT_S):
            await connection.add_listener(f"shieldx_s{number:02d}", self._heard)
        while not self._stopping.is_set():
            with cut_off(connection, POSTGRES_ANSWER_TIMEOUT_S):
                if await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_CLASS, number):
                    await connection.remove_listener(f"shieldx_s{number:02d}", self._heard)
                    return True
                record = await connection.fetchrow(_ROW, number, STALE_WRITER_S)
                if record is not None and record["stale"]:
                    await self._end_stale(connection)
                row = shard_row(record and tuple(record)[:5])
            self._shard.learn(row.generation, row.run_id, row.head_seq)
            self._shard.seen_epoch = row.epoch
            if record is not None and record["stale"]:
                self._shard.close("the writer of the shard is silent")
            elif self._shard.state != "open" and row.generation > 0:
                self._shard.open()
            self.failures = 0
            await pause(self._stopping, POLL_INTERVAL_S)
        return False

    async def _end_stale(self, connection: asyncpg.Connection[Any]) -> None:
        """End the session of a writer that is silent, as whoever logged in: the server's role may not end others'."""
        log.warning("ending a silent writer", extra={"shard": self._shard.number})
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE NONE")
            await connection.fetch(_END_STALE, LOCK_CLASS, self._shard.number, STALE_WRITER_S)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        generation, _, seq = str(payload).partition(":")
        if int(generation) == self._shard.generation:
            self._shard.advance(int(seq))

    async def _lead(self, connection: asyncpg.Connection[Any]) -> None:
        self._shard.close("recovering")
        with cut_off(connection, POSTGRES_ANSWER_TIMEOUT_S):
            row = shard_row(await connection.fetchrow(_RAISE_EPOCH, self._shard.number, self._name))
        lease = Lease(connection, row.epoch, asyncio.get_running_loop().create_future())
        self._writer.stand_at(row.head_seq, row.head_hash)
        beating = asyncio.create_task(self._beat(row.epoch))
        try:
            row = await self._recovery.recover(row, lease)
        finally:
            await end_task(beating)
        self._shard.learn(row.generation, row.run_id, row.head_seq)
        self._shard.leading, self._shard.epoch = True, lease.epoch
        self._shard.seen_epoch = lease.epoch
        self._writer.lead(lease)
        self._shard.open()
        self.failures = 0
        log.info("shard open", extra={"shard": self._shard.number, "epoch": row.epoch, "generation": row.generation,
                                      "head_seq": row.head_seq})  # fmt: skip
        listener = asyncio.create_task(self._listen())
        try:
            await self._serve(lease)
        finally:
            await end_task(listener)

    async def _beat(self, epoch: int) -> None:
        """Show that this process lives while it recovers the shard, which may take long, over a session of its own."""
        while True:
            try:
                connection = await self._connect()
                try:
                    while True:
                        with cut_off(connection, POSTGRES_ANSWER_TIMEOUT_S):
                            await connection.execute(_BEAT, self._shard.number, epoch)
                        await asyncio.sleep(BEAT_INTERVAL_S)
                finally:
                    connection.terminate()
            except (*TRANSIENT, asyncpg.PostgresError):
                await asyncio.sleep(POLL_INTERVAL_S)

    async def _serve(self, lease: Lease) -> None:
        """Look at the outbox a few times a second until the lease is lost or the process stops."""
        while not self._stopping.is_set():
            if lease.connection.is_closed():
                raise ConnectionError("the session that holds the shard's lock is gone")
            with contextlib.suppress(ActorStopped):
                self._writer.tick()
            if await self._lost_within(lease, POLL_INTERVAL_S):
                raise Fenced(lease.lost.result())

    async def _lost_within(self, lease: Lease, seconds: float) -> bool:
        """Wait for the lease to be lost or the process to stop, and say which of them it was."""
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait(
            (stopping, cast("asyncio.Future[Any]", lease.lost)), timeout=seconds, return_when="FIRST_COMPLETED"
        )
        stopping.cancel()
        return lease.lost.done()

    async def _listen(self) -> None:
        """Poke the writer whenever another replica says that it has applied something."""
        attempt = 0
        while True:
            try:
                async with await self._subscribe() as channel:
                    attempt = 0
                    while True:
                        if await channel.get_message(timeout=1.0) is not None:
                            self._writer.poke()
            except (*TRANSIENT, redis.exceptions.RedisError):
                # The writer's own look every POLL_INTERVAL_S finds what is missed here.
                await asyncio.sleep(delay_ms(attempt) / 1000)
                attempt += 1
