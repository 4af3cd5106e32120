"""The ledger of one shard in this process: a mailbox of money operations, decided in Redis, answered when durable.

One batch is one EVALSHA. What it applied goes to the writer; the callers stay in `_applied` until the shard says
that their seq is durable, whoever writes it. When Redis turns out to be another incarnation, everything that was
applied and is not durable is submitted again: the idempotency record decides whether it is done already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import redis.exceptions

from app.actor import Actor, ActorStopped, AskTimeout, InboxFull
from app.credits.operation import Claims, Done, IdMask, Order, Outcome, Refused, first_answer, outcome_of
from app.db.keys import applied_channel, shard_keys, shard_tag
from app.db.lua import load_script
from app.db.redis import GIVE_UP_S, RedisAway, ScriptInterrupted
from app.db.retry import TRANSIENT, delay_ms
from app.metrics import STORE_BUCKETS_S, Histogram
from app.turns import Turns, end_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.actor import Reply
    from app.audit.entry import Event
    from app.audit.shard import Shard
    from app.audit.writer import Writer
    from app.credits.records import Records
    from app.db.redis import RedisLink

log = logging.getLogger(__name__)

INBOX_OPERATIONS_MAX: Final = 20_000  # two of the largest batches; about 2 s of work at 10,000/s
SCRIPT_OPERATIONS_MAX: Final = 512  # per EVALSHA: Redis answers nobody else for about 8 ms
APPLIED_MAX: Final = 4_096  # operations applied and not yet durable; beyond it Postgres is behind, so wait
ASK_TIMEOUT_S: Final = 1.6  # callers hear of an outage within 2 s
SWEEP_INTERVAL_S: Final = 0.5  # how late an expired hold may still be shown as held
SWEEP_HOLDS_MAX: Final = 256  # holds that one sweep expires: about 5 ms of Redis
AHEAD_MAX: Final = 2  # batches between Redis and durable: one that commits, one that waits for its turn
JOIN_BELOW: Final = SCRIPT_OPERATIONS_MAX // 2  # operations; a batch of this size gains nothing by growing
# Refusals that a retry with the same key may meet otherwise: they are remembered nowhere.
UNREMEMBERED: Final = frozenset({"quota_exceeded", "amount_exceeds_reservation", "refund_exceeds_consumed"})
NEVER: Final = -1  # a generation that no order can be answered in
OUTAGE_PAUSE_S: Final = 0.05  # between looks at a shard that is closed


class ScriptBroke(Exception):
    """The money script raised an error of its own, so it may have written only a part."""


class Chunk(NamedTuple):
    """Orders whose last operation was decided by one script call, with the head it left."""

    generation: int
    head: int
    members: list[Order]  # one for each operation
    orders: list[Order]
    kept: asyncio.Task[None] | None  # until Postgres has the refusals
    applied_s: float  # monotonic


class Ledger(Actor[Order]):
    """Owns the money connection to one shard. Everything that changes a balance passes through here."""

    def __init__(self, shard: Shard, writer: Writer, link: RedisLink, records: Records, mask: IdMask) -> None:
        """`link` carries nothing but ledger scripts; `records` keeps refusals in Postgres."""
        super().__init__(
            inbox_max=INBOX_OPERATIONS_MAX,
            batch_max=SCRIPT_OPERATIONS_MAX,
            ask_timeout_s=ASK_TIMEOUT_S,
            name=f"ledger s{shard.number:02d}",
        )
        self._shard = shard
        self._writer = writer
        self._link = link
        self._records = records
        self._mask = mask
        self._keys = shard_keys(shard.number)
        self._script = load_script("ledger_apply")
        self._applied: deque[Chunk] = deque()
        self._applied_operations = 0
        self._proved_generation = 0
        self._moved = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self._doubted = False
        self._settling = False
        self._turns = Turns()
        self.batches = 0
        self.operations = 0
        self.commit_waits: Final = Histogram(STORE_BUCKETS_S)  # from the script's answer until operations were durable
        self.expired = 0
        shard.subscribe(self._on_shard_change)

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Open the mailbox and start to sweep expired holds whenever this process leads."""
        super().start(on_crash)
        self._sweeper = asyncio.create_task(self._sweep_or_crash(on_crash), name=f"{self.name} sweeper")

    async def stop(self) -> None:
        """Finish what was accepted: applied and durable, or failed after its time limit."""
        if self._sweeper is not None:
            await end_task(self._sweeper)
        await super().stop()
        while self._applied and any(order.open for chunk in self._applied for order in chunk.orders):
            await self._wait_moved()
        await self._link.close()

    def submit(self, fields: list[dict[str, Any]]) -> asyncio.Future[list[Outcome]]:
        """Have operations decided in order; the future holds their outcomes once they are durable.

        Raises InboxFull, ActorStopped or ConnectionError, its future AskTimeout; then the operations may still be applied.
        """
        self.refuse_if_away()
        return self.ask(Order(fields))

    def submit_claims(self, claims: Claims) -> asyncio.Future[list[Outcome]]:
        """Have claims decided in order, as `submit` does; `claims.decided` holds the outcomes before they are durable."""
        self.refuse_if_away()
        return self.ask(claims)

    def submit_one(self, fields: dict[str, Any], reply: Reply[list[Outcome]]) -> None:
        """Have one operation decided; `reply` gets its outcome in a list, or the error, as soon as it is durable.

        Raises InboxFull, ActorStopped or ConnectionError; `reply` may get AskTimeout.
        """
        self.refuse_if_away()
        self.post(Order([fields]), reply)

    @property
    def lag(self) -> int:
        """Entries that this process has applied in Redis and that are not durable yet."""
        return max(0, self._applied[-1].head - self._shard.durable) if self._applied else 0

    def refuse_if_away(self) -> None:
        """Raise ConnectionError once the shard, or the way to it, has been closed for GIVE_UP_S: waiting is in vain."""
        if self._shard.state != "open" and time.monotonic() - self._shard.closed_at_s >= GIVE_UP_S:
            raise ConnectionError(f"the shard is closed: {self._shard.reason}")
        self._link.refuse_if_away()

    def doubt(self) -> None:
        """Have the shard rebuilt before the next operation: Postgres knows something that Redis has forgotten."""
        self._doubted = True

    async def receive(self, batch: list[Order]) -> None:
        """Decide the batch in Redis, in chunks of SCRIPT_OPERATIONS_MAX, however long Redis is away."""
        for order in batch:
            order.outcomes.clear()
        work = [(order, i) for order in batch for i in range(len(order.fields))]
        start = attempt = 0
        size = SCRIPT_OPERATIONS_MAX
        while start < len(work):
            while self._applied_operations >= APPLIED_MAX:
                await self._wait_moved()
            chunk = [(order, i) for order, i in work[start : start + size] if order.open]
            try:
                decided = not chunk or await self._decide(chunk)
            except ScriptBroke as error:
                size = self._isolate(chunk, error)
                continue
            except (*TRANSIENT, redis.exceptions.RedisError) as error:
                if isinstance(error, ScriptInterrupted):
                    self.doubt()
                log.warning("store away", extra={"shard": self._shard.number, "reason": f"{type(error).__name__}: {error}"})
                await self._link.close()
                await asyncio.sleep(error.retry_after_s if isinstance(error, RedisAway) else delay_ms(attempt) / 1000)
                attempt += 1
                continue
            if decided:
                start += size
                attempt = 0
            else:
                await self._shard.wait_change(OUTAGE_PAUSE_S)

    def _isolate(self, chunk: Sequence[tuple[Order, int]], error: ScriptBroke) -> int:
        """Have the shard rebuilt after a script broke half-way, and find the operation that breaks it.

        Scripts cannot roll back, so what this one wrote must go. From here on the batch is decided one operation
        at a time, the size that is returned; the one that breaks the script alone fails its order.
        """
        log.critical(
            "ledger script broke", extra={"shard": self._shard.number, "operations": len(chunk), "reason": str(error)}
        )
        self.doubt()
        if len(chunk) == 1:
            chunk[0][0].fail(error)
        return 1

    async def _decide(self, chunk: Sequence[tuple[Order, int]]) -> bool:
        """Run one script over a chunk. False: the shard is closed or Redis is another one, so nothing was done."""
        if not await self._prove():
            return False
        if self._doubted:
            self._doubted = False
            log.critical("redis forgot something", extra={"shard": self._shard.number})
            await self._link.evaluate(load_script("ledger_restore"), self._keys, [0, "doubt", self._proved_generation])
        generation = self._proved_generation
        channel = "" if self._shard.leading else applied_channel(self._shard.number)
        words: list[str | int | bytes] = [generation, self._shard.durable, channel, self._shard.number, *self._mask]
        words += [order.raws[i] for order, i in chunk]
        try:
            reply = await self._link.evaluate(self._script, self._keys, words)
        except redis.exceptions.ResponseError as error:
            if "script" in str(error) and not isinstance(error, redis.exceptions.NoScriptError):
                raise ScriptBroke(str(error)) from error
            raise
        if reply[0] != b"OK":
            log.warning("redis refused", extra={"shard": self._shard.number, "answer": repr(reply)})
            self._proved_generation = 0
            self._writer.poke()
            return False
        return await self._take(chunk, generation, reply)

    async def _take(self, chunk: Sequence[tuple[Order, int]], generation: int, reply: list[Any]) -> bool:
        """Hand the events on, have the refusals remembered, and let the orders wait until all of it is durable.

        False: Redis has forgotten an account, so the chunk is to be decided again after the shard is rebuilt; no
        order has got an outcome, and what the chunk applied is found by its idempotency records the next time.
        """
        first, head = int(reply[1]), int(reply[2])
        number, mask = self._shard.number, self._mask
        events: list[Event] = []
        kept: list[tuple[dict[str, Any], bytes]] = []
        missing: list[dict[str, Any]] = []
        outcomes: list[Outcome] = []
        for (order, i), answer in zip(chunk, reply[4:], strict=True):
            outcome, made = outcome_of(number, generation, mask, order.fields[i], answer)
            outcomes.append(outcome)
            events.extend(made)
            fields = order.fields[i]
            # A sweep is done without a key, and a soft claim need not survive Redis: neither is worth a statement.
            if isinstance(outcome, Refused | Done) and "key" in fields and "soft" not in fields:
                if isinstance(outcome, Refused) and outcome.code in UNREMEMBERED:
                    continue
                kept.append((fields, first_answer(answer)))
                if isinstance(outcome, Refused) and outcome.code == "no_account" and not outcome.replayed:
                    missing.append(fields)
        if head >= first:
            self._writer.offer(generation, first, head, events)
        if missing and await self._has_forgotten(missing):
            self.doubt()
            return False
        self._wait_for_durability(chunk, generation, head, outcomes, kept)
        return True

    def _wait_for_durability(
        self,
        chunk: Sequence[tuple[Order, int]],
        generation: int,
        head: int,
        outcomes: Sequence[Outcome],
        refusals: Sequence[tuple[dict[str, Any], bytes]],
    ) -> None:
        kept = asyncio.create_task(self._records.remember(self._shard.number, refusals)) if refusals else None
        orders: list[Order] = []
        for (order, i), outcome in zip(chunk, outcomes, strict=True):
            if not order.outcomes:
                order.generation = generation
            order.outcomes.append(outcome)
            if i == len(order.fields) - 1:
                orders.append(order)
                if type(order) is Claims:
                    order.foretell()
        self.batches += 1
        self.operations += len(chunk)
        self._applied.append(Chunk(generation, head, [order for order, _ in chunk], orders, kept, time.monotonic()))
        self._applied_operations += len(chunk)
        if kept is None:
            self._settle()
        else:
            kept.add_done_callback(self._on_kept)

    def _on_kept(self, kept: asyncio.Task[None]) -> None:
        if not kept.cancelled() and kept.exception() is not None:
            log.warning("refusals not kept", extra={"shard": self._shard.number, "reason": repr(kept.exception())})
        self._on_shard_change()

    async def _has_forgotten(self, refused: list[dict[str, Any]]) -> bool:
        """Whether Postgres knows an account that was missing from Redis, and still is: a missing key is never zero."""
        named = {leg["tenant_id"] for fields in refused for leg in fields.get("legs", [{"tenant_id": fields.get("tenant")}])}
        for tenant in await self._records.known_accounts(sorted(named)):
            # It may have been opened after the script looked, so look again.
            if not await self._link.command("EXISTS", f"{shard_tag(self._shard.number)}account:{tenant}"):
                return True
        return False

    async def _prove(self) -> bool:
        """Whether the link leads to the Redis that Postgres has recorded for the current generation."""
        if self._shard.state != "open":
            return False
        if self._link.is_open and self._proved_generation == self._shard.generation:
            return True
        run_id = await self._link.open()
        generation = self._shard.generation
        if run_id != self._shard.run_id:
            self._proved_generation = 0
            self._writer.poke()
            return False
        self._proved_generation = generation
        return True

    def _on_shard_change(self) -> None:
        # The next batch leaves for Redis before the answers of this one are written: both then happen at once.
        self._moved.set()
        if not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_soon(self._settle_now)

    def _settle_now(self) -> None:
        self._settling = False
        self._settle()

    def _settle(self) -> None:
        """Answer what has become durable; submit again what an older generation applied and may have lost.

        An order whose refusals could not be kept is submitted again too: its records in Redis answer it.
        """
        generation, durable = self._shard.generation, self._shard.durable
        lost: list[Order] = []
        while self._applied:
            chunk = self._applied[0]
            if chunk.kept is not None and not chunk.kept.done():
                break
            failed = chunk.kept is not None and (chunk.kept.cancelled() or chunk.kept.exception() is not None)
            if not failed and chunk.generation == generation and chunk.head > durable:
                break
            self._applied.popleft()
            self._applied_operations -= len(chunk.members)
            lost += self._release(chunk, generation, failed=failed)
        if lost:
            self.put_back(lost)

    def _release(self, chunk: Chunk, generation: int, *, failed: bool) -> list[Order]:
        """Answer the orders that end with a chunk, and return those that are to be submitted again."""
        if failed:
            for order in chunk.members:
                order.generation = NEVER
        elif chunk.generation == generation:
            self.commit_waits.take(time.monotonic() - chunk.applied_s, len(chunk.members))
        lost: list[Order] = []
        for order in chunk.orders:
            if order.generation == generation:
                self._turns.add(order.tell)
            elif order.open:
                lost.append(order)
        return lost

    async def gather(self) -> None:
        """Stay one batch ahead of the writer: a small batch that would only wait for its commit grows instead.

        So one batch is in Redis, one in Postgres, and the callers of a third are answered, all at the same time.
        """
        while self._commits_ahead() >= AHEAD_MAX and self.waiting < JOIN_BELOW and not self._stopping:
            await self._wait_moved()

    def _commits_ahead(self) -> int:
        """Return how many commits the batches that wait will take: one that has appended nothing has none of its own."""
        return len({chunk.head for chunk in self._applied})

    async def _wait_moved(self) -> None:
        self._moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OUTAGE_PAUSE_S):
                await self._moved.wait()

    async def _sweep_or_crash(self, on_crash: Callable[[BaseException], None]) -> None:
        try:
            await self._sweep()
        except ScriptBroke:
            # Every sweep would break the script again and have the shard rebuilt, so this process sweeps no more.
            log.critical("holds are not expired any more", extra={"shard": self._shard.number})
        except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
            on_crash(error)

    async def _sweep(self) -> None:
        """Expire holds that are due, in this process if it leads, so that one replica does it."""
        limit = SWEEP_HOLDS_MAX
        while True:
            expired = 0
            if self._shard.leading and self._shard.state == "open":
                try:
                    outcomes = await self.submit([{"op": "sweep", "limit": limit}])
                    expired = outcomes[0].holds if isinstance(outcomes[0], Done) else 0
                except (InboxFull, ActorStopped, AskTimeout, ConnectionError):
                    expired = 0
                self.expired += expired
            await asyncio.sleep(0 if expired == limit else SWEEP_INTERVAL_S)
