"""One connection to Redis that carries scripts, never repeats one by itself, and leaves a Redis alone that is away.

A breaker stands before it. What counts as a fault is a connection that cannot be made and an answer that does not come;
a connection that is lost is none, because the next one tells. While the breaker is open nothing is tried: calls fail at
once, and one attempt at a time finds out whether Redis is back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from app.breaker import STORE_POLICY, Admission, Breaker
from app.db.topology import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.client import PubSub
    from redis.asyncio.connection import AbstractConnection

    from app.db.lua import Script
    from app.db.topology import Topology

# A batch takes about 10 ms. Beyond this the server or the network is stuck, and callers are told within 2 s.
ANSWER_TIMEOUT_S: Final = 1.5
GIVE_UP_S: Final = 1.0  # what starts again within this is worth waiting for; callers of what is away longer hear it at once
_NON_LOCAL: Final = "non local key"  # what a Redis Cluster says when a script meets a key that has left for another server


class KeysElsewhere(ConnectionError):
    """The keys live on another server, or are on their way there: nothing was done. The next `open` finds them."""


class ScriptInterrupted(KeysElsewhere):
    """Keys left for another server of the Cluster while a script ran: it may have written a part."""


class RedisAway(ConnectionError):
    """Redis has failed several times in a row: not asked again until `retry_after_s` have passed."""

    def __init__(self, retry_after_s: float) -> None:
        """Seconds from now."""
        super().__init__("Redis is away")
        self.retry_after_s = retry_after_s


def redis_breaker(name: str) -> Breaker:
    """Return a breaker for the links that lead to one place; `name` is its label in the metrics."""
    return Breaker(f"redis {name}", STORE_POLICY)


class RedisLink:
    """One connection, used by one task at a time. After any error it is closed: nothing is sent twice."""

    def __init__(
        self,
        topology: Topology,
        tag: str,
        breaker: Breaker | None = None,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tag` begins every key that the link is used for. The connection is opened by `open`, not here.

        breaker  shared by the links that lead to the same keys; without one the link has its own
        """
        self._topology = topology
        self._tag = tag
        self._breaker = breaker or redis_breaker(tag)
        self._clock_s = clock_s
        self._failing_since_s: float | None = None
        self._connection: AbstractConnection | None = None

    @property
    def is_open(self) -> bool:
        """Whether a connection stands. It may still turn out to be dead at the next command."""
        return self._connection is not None

    def refuse_if_away(self) -> None:
        """Raise RedisAway when the connection is closed, has failed for GIVE_UP_S, and is not to be tried now."""
        if self._connection is None and self._failing_since_s is not None:
            now_s = self._clock_s()
            if now_s - self._failing_since_s >= GIVE_UP_S and not self._breaker.admits(now_s):
                raise RedisAway(self._breaker.retry_at_s - now_s)

    async def open(self) -> str:
        """Connect to where the keys live now and return that server's run_id: which incarnation of Redis it is.

        Raises RedisAway, without having tried, while the breaker is open.
        """
        await self.close()
        now_s = self._clock_s()
        admission = self._breaker.admit(now_s)
        if admission is Admission.REFUSED:
            raise RedisAway(self._breaker.retry_at_s - now_s)
        probe = admission is Admission.PROBE
        try:
            run_id = await self._connect()
        except Exception:
            self._fail(probe=probe)
            raise
        except BaseException:
            if probe:
                self._breaker.cancel_probe()
            raise
        self._failing_since_s = None
        self._breaker.record(self._clock_s(), ok=True, probe=probe)
        return run_id

    def _fail(self, *, probe: bool = False) -> None:
        now_s = self._clock_s()
        self._failing_since_s = self._failing_since_s or now_s
        self._breaker.record(now_s, ok=False, probe=probe)

    async def _connect(self) -> str:
        pool = await self._topology.pool(self._tag)
        connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
            self._connection = connection
            info: bytes = await self.command("INFO", "server")
        except BaseException as error:
            self._topology.trips.errors += self._connection is None and not isinstance(error, asyncio.CancelledError)
            self._topology.outdate()
            self._connection = None
            await connection.disconnect(nowait=True)
            raise
        for line in info.splitlines():
            if line.startswith(b"run_id:"):
                return line[7:].strip().decode()
        raise ConnectionError("INFO server names no run_id")

    async def close(self) -> None:
        """Drop the connection, whatever is in flight on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def command(self, *words: str | int | bytes, waits: bool = False) -> Any:
        """Send one command and return its answer. Any error closes the link, except an error reply.

        waits  the server answers when there is something to tell: that is no round trip
        Raises KeysElsewhere, with the link closed, for the replies by which a server says that it is the wrong one.
        """
        connection = self._connection
        if connection is None:
            raise ConnectionError("the link to Redis is closed")
        trips = self._topology.trips
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await connection.send_command(*words)
                answer = await connection.read_response()
        except ResponseError as error:
            elsewhere = _elsewhere(error)
            if elsewhere is None:
                raise
            trips.errors += 1
            self._topology.outdate()
            await self.close()
            raise elsewhere from error
        except BaseException as error:
            trips.errors += not isinstance(error, asyncio.CancelledError)
            self._topology.outdate()
            await self.close()
            if isinstance(error, TimeoutError):
                self._fail()
            raise
        if not waits:
            trips.seconds.take(time.monotonic() - started_s)
        return answer

    async def evaluate(self, script: Script, keys: Sequence[str], words: Sequence[str | int | bytes]) -> Any:
        """Run a script by its SHA-1; when the server has not seen it, load it first.

        NOSCRIPT is the one error after which sending again is safe: nothing has run.
        """
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *words)
        except NoScriptError:
            return await self.command("EVAL", script.text, len(keys), *keys, *words)


def _elsewhere(error: ResponseError) -> KeysElsewhere | None:
    """Return what an error reply means for a link, None when it says nothing about where keys live."""
    if isinstance(error, MovedError | AskError | TryAgainError | ClusterDownError | ReadOnlyError):
        return KeysElsewhere(str(error))
    return ScriptInterrupted(str(error)) if _NON_LOCAL in str(error) else None


async def ping(topology: Topology, tag: str) -> None:
    """Ask the server that keys with this hash tag live on for a PONG. Raises when it is away."""
    await Redis(connection_pool=await topology.pool(tag)).ping()


async def subscribe(topology: Topology, channel: str) -> PubSub:
    """Return a subscription to a channel, at the server that its hash tag belongs to. Close it with `aclose`.

    A published message reaches the subscribers of every server of a Redis Cluster; the tag only spreads them.
    """
    client = Redis(connection_pool=await topology.pool(channel))
    messages = client.pubsub(ignore_subscribe_messages=True)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await messages.subscribe(channel)
    except BaseException:
        topology.outdate()
        await messages.aclose()  # type: ignore[no-untyped-call]
        raise
    return messages
