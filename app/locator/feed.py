"""Follows what other replicas change and hear, by the stream that every script call writes to.

Each connection begins by reading all of the registry: what this replica missed is made good, what Redis has forgotten is
laid over it again. After that one blocking read waits for the stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson
import redis.exceptions

from app.actor import ActorStopped, InboxFull
from app.db.keys import LOCATOR_BEATS, LOCATOR_CHANGES, LOCATOR_HEAD, LOCATOR_INSTANCES, LOCATOR_REPLICAS
from app.db.retry import TRANSIENT
from app.locator.reading import End, Forgotten, Reading
from app.locator.record import Record, parse_fact, split_field
from app.locator.registry import fresh_incarnation
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.db.redis import RedisLink
    from app.locator.registry import Answer, Registry

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5  # how often a Redis that is away is tried
BLOCK_MS: Final = 1_000  # of one read of the stream: below the time after which a link takes Redis for dead
ENTRIES_MAX: Final = 100  # of one read: about 10 ms of work at most
SCAN_COUNT: Final = 500  # instances of one step of reading all: about 0.3 ms of Redis
DECODED_MAX: Final = 100  # instances that are decoded in one turn of the event loop: about 1.5 ms
CONFIRM_S: Final = 3.0  # after a start: how long another replica is waited for, each of which calls every second
LAYING_MAX: Final = 1_000  # forgotten instances under way to Redis: the mailbox has room for clients beside them


class FeedBroken(Exception):
    """The stream does not continue what was read before: everything has to be read again."""


class Feed:
    """One task and one connection."""

    def __init__(
        self,
        registry: Registry,
        link: RedisLink,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        on_handed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_handed` gets texts that other replicas have for this one."""
        self._registry = registry
        self._directory = registry.directory
        self._link = link
        self._clock_s = clock_s
        self._on_handed = on_handed
        self._task: asyncio.Task[None] | None = None
        self._last_id = "0-0"
        self._seen = 0  # revision up to which the stream has been followed
        self._since_ms = 0  # the registry's clock when this data was first read: heartbeats after it were heard meanwhile
        self._forgotten: dict[str, Record | End] = {}  # by Redis, and not laid again yet
        self._laying: dict[str, Record | End] = {}
        self._confirm_until_s = float("-inf")
        self.following = False
        self.loaded = False  # at least once: before that, nothing is known of any service
        self.reloads = 0
        self.away_since_s = clock_s()

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to follow, and go on trying until stopped."""
        self._task = asyncio.create_task(self._run(on_crash), name="registry feed")

    async def stop(self) -> None:
        """End; nothing is waited for."""
        if self._task is not None:
            await end_task(self._task)
        await self._link.close()

    def read_again(self) -> None:
        """Drop what was read: Redis holds other data than before."""
        self._seen = -1

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        while True:
            try:
                await self._link.open()
                await self._load()
                self.following = True
                while self._seen >= 0:
                    self._lay()
                    await self._follow()
                    await self._confirm()
            except FeedBroken:
                log.info("the registry is read again: the stream has moved on without this replica")
            except (*TRANSIENT, redis.exceptions.RedisError) as error:
                if self.following:
                    log.warning("the registry is local", extra={"reason": f"{type(error).__name__}: {error}"})
                    self.away_since_s = self._clock_s()
                self.following = False
                await asyncio.sleep(RECONNECT_S)
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                self.following = False
                on_crash(error)
                return

    async def _load(self) -> None:
        """Read the registry as a whole; the stream is then followed from where it stood before."""
        command = self._link.command
        await command("HSETNX", LOCATOR_HEAD, "incarnation", fresh_incarnation())
        newest = await command("XREVRANGE", LOCATOR_CHANGES, "+", "-", "COUNT", 1)
        incarnation, revision = await command("HMGET", LOCATOR_HEAD, "incarnation", "revision")
        self._last_id = newest[0][0].decode() if newest else "0-0"
        known = incarnation.decode()
        same = known == self._registry.incarnation
        read = Reading(
            self._directory, int(revision or 0), same=same, kept=self._forgotten.keys() | self._laying.keys()
        )  # fmt: skip
        self._seen = read.revision
        await self._read(read)
        now_s = self._clock_s()
        clock, reached = await command("HMGET", LOCATOR_HEAD, "clock", "revision")
        if self.loaded and same:
            silent_s = await self._silence(read, int(clock or 0))
        else:
            silent_s, self._since_ms = {}, int(clock or 0)
            self._confirm_until_s = now_s + CONFIRM_S
        self._registry.incarnation = known
        forgotten: list[Forgotten] = []
        for step in self._directory.reconcile(read, now_s, reached=int(reached or 0), silent_s=silent_s):
            forgotten += step
            await asyncio.sleep(0)
        self.loaded = True
        self.reloads += 1
        if forgotten:
            log.warning("redis has forgotten changes of instances; they are laid again", extra={"count": len(forgotten)})
        self._forgotten = {field: record for field, record in forgotten if field not in self._laying}

    async def _read(self, read: Reading) -> None:
        """Read all instances, and decode so many in each turn of the event loop."""
        cursor: Any = b"0"
        while True:
            cursor, found = await self._link.command("HSCAN", LOCATOR_INSTANCES, cursor, "COUNT", SCAN_COUNT)
            for number, (field, text) in enumerate(zip(found[::2], found[1::2], strict=True), 1):
                read.add(field.decode(), parse_fact(text), self._clock_s())
                if number % DECODED_MAX == 0:
                    await asyncio.sleep(0)
            if int(cursor) == 0:
                return

    async def _silence(self, read: Reading, now_ms: int) -> dict[str, float]:
        """Return for how long instances have been silent, by what the other replicas have heard: those that are new here,
        and those that were restored and heard while this replica did not follow.

        Not at the start of a process: all of them may have started just now, and then nobody has heard anything.
        """
        known = {field: self._directory.find(*split_field(field)) for field in read.fields()}
        after_ms = {
            field: 0 if record is None else self._since_ms
            for field, record in known.items()
            if record is None or not record.verified
        }
        if not after_ms or not now_ms:  # without a clock nobody has called the script on this data yet
            return {}
        beats = await self._beats(list(after_ms))
        return {
            field: (now_ms - int(at)) / 1000
            for (field, least_ms), at in zip(after_ms.items(), beats, strict=True)
            if at is not None and int(at) > least_ms
        }

    async def _confirm(self) -> None:
        """Take over what another replica has heard that was there before this one, and still is.

        At the start of a process nothing tells whether anybody listened. A replica that calls after it did; and what was
        heard since times tell how long ago they are was heard so long ago.
        """
        now_s = self._clock_s()
        if now_s >= self._confirm_until_s:
            return
        command = self._link.command
        called = await command("ZRANGE", LOCATOR_REPLICAS, f"({self._since_ms}", "+inf", "BYSCORE")
        if all(name.decode() == self._registry.replica for name in called):
            return
        self._confirm_until_s = float("-inf")
        clock, since = await command("HMGET", LOCATOR_HEAD, "clock", "since")
        restored = [f"{service.name}/{id_}" for service, id_, record in self._directory.records() if not record.verified]
        if not restored or clock is None or since is None:
            return
        beats = await self._beats(restored)
        silent_s = {
            field: max(0, int(clock) - int(at)) / 1000
            for field, at in zip(restored, beats, strict=True)
            if at is not None and int(at) >= int(since)
        }
        self._directory.confirm(silent_s, self._clock_s())

    async def _beats(self, fields: Sequence[str]) -> list[bytes | None]:
        """Return when Redis has noted the last heartbeat of each: some at a time, for others wait for the same Redis."""
        beats: list[bytes | None] = []
        for start in range(0, len(fields), SCAN_COUNT):
            beats += await self._link.command("HMGET", LOCATOR_BEATS, *fields[start : start + SCAN_COUNT])
        return beats

    def _lay(self) -> None:
        """Lay what Redis has forgotten, some at a time; what fails is tried again after the next read of the stream."""
        for field in list(islice(self._forgotten, LAYING_MAX - len(self._laying))):
            known = self._forgotten.pop(field)
            service, id_ = split_field(field)
            record = self._directory.find(service, id_)
            # Of the start that has ended, a replica that missed the end may have laid the instance again meanwhile.
            if record is not known and (
                isinstance(known, Record) or (record is not None and record.generation != known.generation)
            ):
                continue  # it was registered anew, or has ended
            self._laying[field] = known

            def settle(answer: Answer | None, _: Exception | None, field: str = field, known: Record | End = known) -> None:
                del self._laying[field]
                if answer is None:
                    self._forgotten[field] = known

            try:
                if isinstance(known, Record):
                    change = self._registry.restore(field, known, max(0.0, self._clock_s() - known.renewed_s))
                else:
                    change = self._registry.end(service, id_, known.generation)
                self._registry.submit(change, settle)
            except (InboxFull, ActorStopped) as error:
                settle(None, error)

    async def _follow(self) -> None:
        answer = await self._link.command(
            "XREAD", "COUNT", ENTRIES_MAX, "BLOCK", BLOCK_MS, "STREAMS", LOCATOR_CHANGES, self._last_id, waits=True
        )
        for _, entries in answer or ():
            for entry_id, words in entries:
                self._take({words[i]: words[i + 1] for i in range(0, len(words), 2)})
                self._last_id = entry_id.decode()

    def _take(self, entry: dict[bytes, bytes]) -> None:
        if int(entry[b"first"]) != self._seen:
            raise FeedBroken
        now_s = self._clock_s()
        changes = orjson.loads(entry[b"changes"])
        if changes:
            self._seen = changes[-1][0]
            self._directory.apply(changes, now_s)
        if entry[b"replica"].decode() != self._registry.replica:
            self._directory.hear(orjson.loads(entry[b"beats"]), now_s)
        for replica, text in orjson.loads(entry[b"handed"]):
            if replica == self._registry.replica:
                self._on_handed(text)
