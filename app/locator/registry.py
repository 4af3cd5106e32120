"""The registry: the mailbox through which registered instances change, and what all of them are.

One actor for all services of a process: what waits, of whatever service, is one script call, so a change costs less the
more there are. No service can fill the mailbox for the others: each has a share of it. What the script has changed is
applied here at once, and in the other replicas by the feed; lookups read snapshots and never come here.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import redis.exceptions

from app.actor import Actor, Ask, InboxFull
from app.db.keys import locator_keys
from app.db.lua import load_script
from app.db.retry import TRANSIENT
from app.locator.record import encode, split_field
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.db.redis import RedisLink
    from app.locator.directory import Directory
    from app.locator.record import Record, Registered

INBOX_CHANGES_MAX: Final = 20_000  # about 2 s of changes
SERVICE_CHANGES_MAX: Final = 5_000  # of them of one service
SCRIPT_CHANGES_MAX: Final = 500  # of one script call: about 5 ms of Redis
ASK_TIMEOUT_S: Final = 2.0  # callers hear of an outage within 2 s
# Between two script calls, so that changes gather: each costs every replica a copy of a service's snapshot, 0.3 ms of 20,000
# instances, and 0.5 ms around the call, whatever the number of changes in it.
CALL_GAP_S: Final = 0.005
EVICTED_SHARE_MAX: Final = 0.15  # of all instances that may be removed for silence in a minute (Eureka's figure)
EVICTED_ALWAYS: Final = 3  # a small registry must be able to lose what is gone
TOMBSTONE_MS_MIN: Final = 60_000  # an ended generation is known for at least this, and for the time to live


class Answer(NamedTuple):
    """What the script says to one change: a word of its header, and the number that comes with it."""

    word: str
    number: int


class Change(Ask[Answer]):
    """One change of one instance, as the script takes it."""

    __slots__ = ("service", "words")

    def __init__(self, service: str, words: Sequence[Any]) -> None:
        """`words` are those of the script's header; the service counts towards its share of the mailbox."""
        super().__init__()
        self.service = service
        self.words = orjson.dumps(words)


class Registry(Actor[Change]):
    """Makes changes durable in Redis and applies them to the directory of this process."""

    def __init__(
        self,
        directory: Directory,
        link: RedisLink,
        replica: str,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        on_forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_forgotten` is called when Redis turns out to hold other data than this process has seen."""
        super().__init__(
            inbox_max=INBOX_CHANGES_MAX, batch_max=SCRIPT_CHANGES_MAX, ask_timeout_s=ASK_TIMEOUT_S, name="registry"
        )
        self.directory: Final = directory
        self.replica: Final = replica
        self.replicas: tuple[str, ...] = (replica,)
        self.incarnation = ""
        self.reachable = False
        self.calls = 0  # script calls since the start
        self.changes = 0  # changes that were made since the start
        self._link = link
        self._clock_s = clock_s
        self._on_forgotten = on_forgotten
        self._pending: dict[str, int] = {}
        self._called_s = float("-inf")  # by the event loop's clock

    async def stop(self) -> None:
        """Finish what was accepted, then close the connection."""
        await super().stop()
        await self._link.close()

    def submit(self, change: Change, reply: Callable[[Answer | None, Exception | None], None]) -> None:
        """Accept a change; its answer, or the error, goes to `reply`.

        Raises InboxFull, also when only the service's share of the mailbox is used up, or ActorStopped.
        """
        service = change.service
        pending = self._pending.get(service, 0)
        if pending >= SERVICE_CHANGES_MAX:
            raise InboxFull(self.name)

        def settle(answer: Answer | None, error: Exception | None) -> None:
            left = self._pending[service] - 1
            if left:
                self._pending[service] = left
            else:
                del self._pending[service]
            reply(answer, error)

        self.post(change, settle)
        self._pending[service] = pending + 1

    async def gather(self) -> None:
        """Return at once, unless the last call was a moment ago."""
        loop = asyncio.get_running_loop()
        early_s = self._called_s + CALL_GAP_S - loop.time()
        if early_s > 0:
            await asyncio.sleep(early_s)
        self._called_s = loop.time()

    async def receive(self, batch: list[Change]) -> None:
        """Run one script for all that waits; an outage of Redis is an answer too."""
        try:
            if not self._link.is_open:
                await self._link.open()
            answers = await self._merge([change.words for change in batch])
        except (*TRANSIENT, redis.exceptions.RedisError) as error:
            self.reachable = False
            for change in batch:
                change.fail(error)
            return
        self.reachable = True
        for change, answer in zip(batch, answers, strict=True):
            change.answer(answer)

    async def _merge(self, words: list[bytes]) -> list[Answer]:
        directory = self.directory
        allowed = max(EVICTED_ALWAYS, math.ceil(directory.leased * EVICTED_SHARE_MAX))
        self.calls += 1
        incarnation, _, _, replicas, changes, answers = await self._link.evaluate(
            load_script("registry_merge"),
            locator_keys(),
            [self.replica, fresh_incarnation(), directory.index, allowed, *words],
        )
        self.replicas = tuple(sorted(name.decode() for name in replicas))  # Redis has them by their last call
        made = orjson.loads(changes)
        self.changes += len(made)
        directory.apply(made, self._clock_s())
        known, self.incarnation = self.incarnation, self.incarnation or incarnation.decode()
        if known and known != incarnation.decode():
            self._on_forgotten()
        return [_answer(text) for text in answers]

    # --- changes ----------------------------------------------------------------------------------------------------

    def put(self, service: str, id_: str, generation: str, registered: Registered, first: str = "none") -> Change:
        """Return the change that registers an instance; `first` is what its check says until it is heard."""
        kept_ms = _tombstone_ms(registered.ttl_s)
        return Change(service, ["put", f"{service}/{id_}", generation, kept_ms, encode(registered).decode(), first])

    def drop(self, service: str, id_: str, generation: str) -> Change:
        """Return the change that ends an instance; an empty generation means whichever there is."""
        record = self.directory.find(service, id_)
        ttl_s = 0.0 if record is None else record.instance.ttl_s
        return Change(service, ["drop", f"{service}/{id_}", generation, _tombstone_ms(ttl_s)])

    def end(self, service: str, id_: str, generation: str) -> Change:
        """Return the change that lays the end of a generation which Redis has forgotten."""
        return Change(service, ["end", f"{service}/{id_}", generation, TOMBSTONE_MS_MIN])

    def order(self, service: str, id_: str, generation: str, mode: str) -> Change:
        """Return the change to a mode: "none", "draining", "maintenance" or "isolated"."""
        return Change(service, ["set", f"{service}/{id_}", generation, "mode", mode])

    def found(self, service: str, id_: str, generation: str, check: str) -> Change:
        """Return the change to what a check has found: "passing" or "critical"."""
        return Change(service, ["set", f"{service}/{id_}", generation, "check", check])

    def tell(self, service: str, id_: str, generation: str, word: str) -> Change:
        """Return a change that changes nothing in Redis and reaches every replica."""
        return Change(service, ["tell", f"{service}/{id_}", generation, word])

    def beat(self, renewed: Sequence[tuple[str, str]]) -> Change:
        """Return the heartbeats of several instances, given by field and generation."""
        return Change("", ["beat", *(word for pair in renewed for word in pair)])

    def hand(self, replica: str, text: str) -> Change:
        """Return a text for another replica."""
        return Change("", ["hand", replica, text])

    def judge(self, kind: str, field: str, record: Record) -> Change:
        """Return the motion to "suspect" or "evict" an instance for its silence."""
        least_s = record.suspect_s if kind == "suspect" else record.instance.ttl_s
        return Change(split_field(field)[0], [kind, field, record.generation, int(least_s * 1000)])

    def restore(self, field: str, record: Record, silent_s: float) -> Change:
        """Return what lays an instance over a Redis that has forgotten it, or its last change."""
        words = [
            "restore", field, record.generation, record.lease, record.mode, record.check, int(silent_s * 1000),
            record.revision, _tombstone_ms(record.instance.ttl_s), encode(record.registered()).decode(),
        ]  # fmt: skip
        return Change(split_field(field)[0], words)


def fresh_incarnation() -> str:
    """Return a name for the data of a Redis that is empty: another one each time, so that losing all of it is noticed."""
    return secrets.token_hex(8)


def _tombstone_ms(ttl_s: float) -> int:
    """Return for how long an ended generation is known, by the time to live of its instance."""
    return max(TOMBSTONE_MS_MIN, int(ttl_s * 1000))


def _answer(text: bytes) -> Answer:
    word, _, number = text.decode().partition(" ")
    return Answer(word, int(number))


def refusal(answer: Answer) -> Problem | None:
    """Return the problem of an answer that means: nothing was changed."""
    match answer.word:
        case "unknown":
            return unknown_instance()
        case "stale":
            return Problem(
                409, "stale_generation",
                "The id is registered under another generation: this start of the instance has been replaced.",
            )  # fmt: skip
        case "ended":
            return Problem(
                409, "stale_generation", "This generation has ended; register again under a new one, or without one.",
            )  # fmt: skip
    return None


def unknown_instance() -> Problem:
    """Return the 404 that tells a client to register again."""
    return Problem(404, "unknown_instance", "The instance is not registered here; register it again with PUT.")
