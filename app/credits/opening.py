"""Credits of this process: opened in the background while the port already answers, closed in order."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.audit.entry import RowSeal, genesis_hash
from app.audit.keeper import Keeper
from app.audit.log import Log, log_origin
from app.audit.log_keys import LogKeys
from app.audit.memory import remembered_trees
from app.audit.pending import PendingEntries
from app.audit.shard import Shard
from app.audit.signer import ShardSigner
from app.audit.signing_keys import signers_of
from app.audit.witness import Post, Witness, WitnessFeed
from app.audit.writer import Writer
from app.clock import ms_of, now_ms
from app.credits.account_reads import AccountReads
from app.credits.book import Book
from app.credits.ledger import Ledger
from app.credits.lifecycle import Lifecycle
from app.credits.operation import IdMask, events_of_item
from app.credits.projection import Folds
from app.credits.records import Records
from app.credits.recovery import LedgerRecovery
from app.credits.replicas import BEAT_INTERVAL_S, Replicas
from app.credits.request import Fingerprints
from app.credits.rounds import Round, Rounds
from app.credits.series import ShardParts, ShardSeries
from app.credits.traced import TracedLedger, TracedWriter
from app.credits.upkeep import Upkeep
from app.credits.verification import LOOK_INTERVAL_S, DailyVerification, Subject
from app.db.founding import LedgerRow, found_ledger
from app.db.keys import LIMITS_TAG, applied_channel, shard_tag
from app.db.migrations import check_schema
from app.db.pool_series import PoolSeries
from app.db.pool_upkeep import PoolUpkeep
from app.db.postgres import open_owner, open_pool, open_reader, open_session
from app.db.redis import RedisLink, ping, redis_breaker, subscribe
from app.db.retry import TRANSIENT, delay_ms
from app.db.statements import Statements
from app.settings import SERVICES
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.access.opening import Access
    from app.audit.note import Signer
    from app.db.pool import Pool
    from app.db.topology import Topology
    from app.metrics import Metrics
    from app.privacy.opening import Privacy
    from app.webhooks.opening import Webhooks

log = logging.getLogger(__name__)

DAY_MS: Final = 86_400_000
OPEN_POLL_S: Final = 0.01  # how often the start looks whether every shard is open


class Stores(NamedTuple):
    """Where the data lives, and what this process needs to know to use it."""

    topology: Topology
    database_url: str
    owner_database_url: str
    pool_size: int
    pool_max: int
    shard_count: int
    audit_key: bytes
    replica_name: str
    verify_interval_s: int
    services: tuple[str, ...] = SERVICES

    def __repr__(self) -> str:
        """Show no secret: URLs may hold passwords."""
        return f"Stores(shard_count={self.shard_count}, replica_name={self.replica_name!r})"


class Signing(NamedTuple):
    """What the logs are signed with: seeds of Ed25519, newest first; witnesses, and how they are asked."""

    seeds: tuple[bytes, ...]
    witnesses: tuple[Witness, ...]
    post: Post

    def __repr__(self) -> str:
        """Show no seed."""
        return f"Signing({len(self.seeds)} keys, {len(self.witnesses)} witnesses)"


class Controls(NamedTuple):
    """What guards this process, tells others, and keeps private data: opened here, because all need the stores.

    archive_after_days  age in days of the end of a quarter at which it is archived, 0 for never
    """

    access: Access
    webhooks: Webhooks
    privacy: Privacy
    archive_after_days: int = 0


class Credits:
    """Owns everything of credits in this process. `book` is there once Postgres has answered."""

    def __init__(
        self,
        stores: Stores,
        signing: Signing,
        controls: Controls,
        metrics: Metrics,
        on_crash: Callable[[BaseException], None],
        *,
        traced: bool = False,
    ) -> None:
        """`on_crash` is called with a fault after which the process must not go on; `traced`: note steps of requests."""
        self._kinds = (TracedWriter, TracedLedger) if traced else (Writer, Ledger)
        self.stores: Final = stores
        self._controls = controls
        self._pending: PendingEntries | None = None
        self._signing = signing
        self._metrics = metrics
        self._on_crash = on_crash
        self._task: asyncio.Task[None] | None = None
        self._pool: Pool | None = None
        self._pool_upkeep: PoolUpkeep | None = None
        self._parts: list[ShardParts] = []
        metrics.add(ShardSeries(self._parts).collect)
        self._upkeep: Upkeep | None = None
        self._rounds: Rounds | None = None
        self._replicas: Replicas | None = None
        self.log_keys: LogKeys | None = None
        self.book: Book | None = None
        self.log: Log | None = None
        self.waiting_for = "Postgres"

    @property
    def shards(self) -> list[Shard]:
        """The shards of this process, by number; empty before Postgres has answered."""
        return [parts.shard for parts in self._parts]

    @property
    def signers(self) -> list[ShardSigner]:
        """The signers of the shards' logs, by number; empty before Postgres has answered."""
        return [parts.signer for parts in self._parts]

    def start(self) -> None:
        """Begin to open, and go on trying while Postgres is away; any other error is a crash."""
        self._task = asyncio.create_task(self._open_or_crash(), name="credits opening")

    async def record(self, kind: str, details: dict[str, Any]) -> None:
        """Append an entry that moves nothing; see `Book.record`. Raises ConnectionError before Postgres has answered."""
        if self.book is None:
            raise ConnectionError("not connected to Postgres yet")
        await self.book.record(kind, details)

    async def wait_open(self) -> None:
        """Return once every shard is open."""
        while self.book is None or any(shard.state != "open" for shard in self.shards):
            await asyncio.sleep(OPEN_POLL_S)

    async def stop(self) -> None:
        """Finish what was accepted, give the shards up, close the connections."""
        if self._task is not None:
            await end_task(self._task)
        await self._controls.access.close()
        await self._controls.webhooks.close()
        if self._pending is not None:
            await self._pending.stop()
        if self.book is not None:
            await self.book.transfers.stop()
            await self.book.account_reads.stop()
        if self._upkeep is not None:
            await self._upkeep.stop()
        if self._rounds is not None:
            await self._rounds.stop()
        if self._replicas is not None:
            await self._replicas.leave()
        await asyncio.gather(*(parts.ledger.stop() for parts in self._parts))
        await asyncio.gather(*(parts.writer.stop() for parts in self._parts))
        await asyncio.gather(*(parts.signer.stop() for parts in self._parts))
        await asyncio.gather(*(feed.stop() for parts in self._parts for feed in parts.feeds))
        await asyncio.gather(*(parts.keeper.stop() for parts in self._parts))
        await asyncio.gather(*(parts.writer.disconnect() for parts in self._parts))
        await self.stores.topology.close()
        if self._pool_upkeep is not None:
            await self._pool_upkeep.stop()
        if self._pool is not None:
            self._pool.terminate()

    async def ping(self) -> None:
        """Ask Redis for a PONG. Raises when it is away, or still taken to be for any shard."""
        await ping(self.stores.topology, shard_tag(0))
        for parts in self._parts:
            parts.ledger.refuse_if_away()

    async def _open_or_crash(self) -> None:
        try:
            await self._open()
        except Exception as error:  # noqa: BLE001 - a refused migration, a wrong URL, a fault of ours: a person has to act
            self._on_crash(error)

    async def _open(self) -> None:
        attempt = 0
        while True:
            try:
                row = await self._prepare_schema()
                self._pool = await open_pool(self.stores.database_url, self.stores.pool_size)
                break
            except TRANSIENT as error:
                self.waiting_for = f"Postgres: {type(error).__name__}"
                log.warning("waiting for postgres", extra={"reason": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(delay_ms(attempt) / 1000)
                attempt += 1
        self._pool_upkeep = PoolUpkeep(self._pool, size_max=self.stores.pool_max)
        self._pool_upkeep.start()
        self._metrics.add(PoolSeries("credits", self._pool, self._pool_upkeep).collect)
        self._start_parts(row, self._pool)

    async def _prepare_schema(self) -> LedgerRow:
        connection = await open_owner(self.stores.owner_database_url)
        try:
            ahead = await check_schema(connection, self.stores.services)
            if ahead:
                log.info("serving beside a newer release", extra={"migrations": [one.title for one in ahead]})
            return await found_ledger(connection, self.stores.shard_count, genesis_hash)
        finally:
            connection.terminate()

    def _start_parts(self, row: LedgerRow, pool: Pool) -> None:
        topology = self.stores.topology
        origins = {number: log_origin(row.origin, number) for number in range(row.shard_count)}
        keys = {number: signers_of(self._signing.seeds, origin) for number, origin in origins.items()}
        log_ = Log(pool, row.origin, {number: [one.verifier for one in signers] for number, signers in keys.items()})
        mask, seal, records = IdMask.of(row.ledger_id), RowSeal(self.stores.audit_key), Records(pool)
        make_writer, make_ledger = self._kinds
        for number in range(row.shard_count):
            shard = Shard(number, origins[number])
            tag, guard = shard_tag(number), self._metrics.guard
            # A breaker each: what one of them finds out must not keep another from trying.
            breakers = [guard(redis_breaker(f"s{number:02d}")) for _ in range(3)]
            link, ledger_link, signer_link = (RedisLink(topology, tag, breaker) for breaker in breakers)
            decode = functools.partial(decode_item, number, mask)
            folds = Folds(self._controls.webhooks.wake)
            shard.subscribe(folds.advanced)
            writer = make_writer(shard, seal, folds.of, link, decode)
            recovery = LedgerRecovery(shard, writer, link)
            keeper = Keeper(
                shard, writer, recovery,
                lambda: open_session(self.stores.database_url),
                functools.partial(subscribe, topology, applied_channel(number)), self.stores.replica_name,
            )  # fmt: skip
            ledger = make_ledger(shard, writer, ledger_link, records, mask)
            signer = ShardSigner(shard, log_, signer_link, keys[number], self._note_log_keys)
            feeds = [WitnessFeed(shard, log_, signer, one, self._signing.post) for one in self._signing.witnesses]
            self._parts.append(ShardParts(shard, writer, recovery, keeper, ledger, signer, feeds))
        for parts in self._parts:
            parts.writer.start(self._on_crash)
            parts.keeper.start(self._on_crash)
            parts.ledger.start(self._on_crash)
            parts.signer.start(self._on_crash)
            for feed in parts.feeds:
                feed.start(self._on_crash)
        self.waiting_for = "shards"
        self.log = log_
        ledgers = [parts.ledger for parts in self._parts]
        reads = AccountReads(lambda: open_reader(self.stores.database_url))
        self.book = Book(ledgers, self.shards, records, Fingerprints(row.salt), mask, reads)
        self._metrics.add(self.book.tally.collect)
        self.book.transfers.start(self._on_crash)
        self.book.account_reads.start(self._on_crash)
        statements = Statements(pool)
        replicas = self._start_rounds(statements, keys)
        link = RedisLink(topology, LIMITS_TAG, self._metrics.guard(redis_breaker("limits")))
        self._controls.access.open(
            statements, lambda: open_session(self.stores.database_url), link, self._on_crash, share=replicas.share
        )
        self._controls.webhooks.open(statements, self._on_crash)
        self._pending = PendingEntries(statements, self.record)
        self._pending.start(self._on_crash)
        self._controls.privacy.open(pool)
        lifecycle = Lifecycle(pool, range(row.shard_count), now_ms, self._controls.archive_after_days or None)
        upkeep = self._upkeep = Upkeep(records, lifecycle, self._controls.privacy, lambda: self.shards[0].leading)
        upkeep.start(self._on_crash)
        self._metrics.observe(
            "credits_negative_balance_count", "Accounts below zero, as the replica that leads counts them; others show 0",
            lambda: lifecycle.negative_balances if self.shards[0].leading else 0,
        )  # fmt: skip
        self._metrics.observe(
            "shieldx_partition_days_ahead", "Days until entries or reservations have no partition",
            lambda: float("nan") if upkeep.partitions_end is None else (ms_of(upkeep.partitions_end) - now_ms()) / DAY_MS,
        )  # fmt: skip

    async def _note_log_keys(self) -> None:
        if self.log_keys is not None:
            await self.log_keys.note()

    def _contradictions(self) -> int:
        return sum(one.shard.state == "refused" or one.signer.state == "refused" for one in self._parts)

    def _start_rounds(self, statements: Statements, signers: Mapping[int, Sequence[Signer]]) -> Replicas:
        keys = {number: [one.verifier for one in of_shard] for number, of_shard in signers.items()}
        stores, shards = self.stores, self.shards
        self._replicas = Replicas(statements, stores.replica_name)
        self.log_keys = LogKeys(statements, shards, keys)
        subject = Subject(stores.owner_database_url, stores.audit_key, keys)
        daily = DailyVerification(
            statements, shards, subject, replica=stores.replica_name, interval_s=stores.verify_interval_s,
            memory=functools.partial(remembered_trees, stores.topology, [shard.origin for shard in shards]),
        )  # fmt: skip
        self._metrics.observe(
            "credits_audit_chain_integrity_errors",
            "Faults that the last daily verification found, and shards that contradict what was durable or signed",
            lambda: daily.integrity_errors + self._contradictions(),
        )  # fmt: skip
        self._metrics.observe(
            "shieldx_verification_age_seconds", "Since the last daily verification, or the founding of the ledger",
            lambda: daily.age_s,
        )  # fmt: skip
        self._rounds = Rounds([
            Round("replicas", self._replicas.beat, BEAT_INTERVAL_S),
            Round("log keys", self.log_keys.note, BEAT_INTERVAL_S),
            Round("daily verification", daily.round, LOOK_INTERVAL_S),
        ])  # fmt: skip
        self._rounds.start(self._on_crash)
        return self._replicas


def decode_item(number: int, mask: IdMask, generation: int, op: bytes, result: bytes) -> Any:
    """Return the events of an item of a shard's outbox."""
    return events_of_item(number, generation, mask, op, result)
