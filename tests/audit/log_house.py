"""A log on real stores: a chain that is there already and becomes durable entry by entry, and signers for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from app.audit.checkpoint import Opened, open_checkpoint
from app.audit.entry import Event
from app.audit.log import Log
from app.audit.note import Signer, Verifier
from app.audit.shard import Shard
from app.audit.signer import ShardSigner
from app.db.pool import Pool
from app.db.postgres import open_pool
from app.db.redis import RedisLink
from app.db.topology import Topology, make_topology
from tests.audit.chain import ORIGIN, make_chain

if TYPE_CHECKING:
    from tests.audit.conftest import LedgerDatabase

EPOCH = 3
BUSY_TIMEOUT_S = 20.0  # these tests are about what is read, not how fast on a machine that does other work
SEED = bytes(range(32))
LOG_ORIGIN = f"{ORIGIN}/s00"
KEY = Signer(LOG_ORIGIN, SEED)


@dataclass
class LogHouse:
    """Shard 0 of a ledger whose chain is in Postgres; `shard.durable` says how much of it counts."""

    database: LedgerDatabase
    pool: Pool
    redis: Redis
    links: Topology
    log: Log
    shard: Shard
    leaves: list[bytes] = field(default_factory=list)
    signers: list[ShardSigner] = field(default_factory=list)

    def signer(
        self, *keys: Signer, shard: Shard | None = None, note_keys: Callable[[], Awaitable[None]] | None = None
    ) -> ShardSigner:
        """Return a signer as a process has after its start; KEY is the key if none is named."""
        link = RedisLink(self.links, "{t}:")
        self.signers.append(ShardSigner(shard or self.shard, self.log, link, keys or (KEY,), note_keys))
        return self.signers[-1]

    async def write(self, events: Sequence[Event]) -> None:
        """Write the ledger of these events, none of which the shard's view knows to be durable yet."""
        await make_chain(self.database.session, events)
        await self.database.session.execute("UPDATE ledger_shards SET epoch = $1", EPOCH)
        await self.learn()

    async def learn(self) -> None:
        """Read the hashes of the chain as it is now."""
        rows = await self.database.session.fetch("SELECT hash FROM audit_entries WHERE shard = 0 ORDER BY seq")
        self.leaves = [row[0] for row in rows]

    async def opened(self, *verifiers: Verifier) -> Opened:
        """Return the newest checkpoint, verified."""
        return open_checkpoint((await self.log.checkpoint(0)).note, verifiers or [KEY.verifier])

    async def cut(self, size: int) -> None:
        """Make Postgres what an older backup of it holds: `size` entries, and what was signed up to there."""
        session = self.database.session
        await session.execute("DELETE FROM audit_entries WHERE seq >= $1", size)
        await session.execute("DELETE FROM audit_checkpoints WHERE size > $1", size)
        await session.execute("DELETE FROM audit_leaf_tiles WHERE (number + 1) * 256 > $1", size)
        await session.execute("DELETE FROM audit_tree WHERE (number + 1) << (8 * level) > $1", size)
        await session.execute(
            "UPDATE ledger_shards SET head_seq = $1, head_hash = (SELECT hash FROM audit_entries WHERE seq = $1)", size - 1
        )


@asynccontextmanager
async def log_house(database: LedgerDatabase, redis_url: str) -> AsyncIterator[LogHouse]:
    """A house without a ledger in it yet."""
    pool = await open_pool(database.url, 3)
    links = make_topology(redis_url)
    redis = Redis.from_url(redis_url)
    shard = Shard(0, LOG_ORIGIN)
    shard.leading, shard.epoch = True, EPOCH
    house = LogHouse(database, pool, redis, links, Log(pool, ORIGIN, read_timeout_s=BUSY_TIMEOUT_S), shard)
    try:
        yield house
    finally:
        for signer in house.signers:
            await signer.stop()
        await redis.aclose()
        await links.close()
        pool.terminate()
