"""Connections to Postgres that are shared: a fair gate in front of asyncpg's pool, and a breaker beside it.

Uses asyncpg's public API only. Its pool is made for SIZE_MAX connections, and opens them as they are needed; how many may
be in use is the gate's limit, which `PoolUpkeep` moves. Connections are not reset between uses: reads change nothing of a
session, and a reset costs a round trip. What changes a session (SET) does so with SET LOCAL, in a transaction.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.breaker import Admission, Breaker, BreakerPolicy, BreakerState
from app.db.gate import Gate, GateTimeout
from app.db.response_times import ResponseTimes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

SIZE_MAX: Final = 200  # connections of one process; beyond this Postgres loses more than callers win
IDLE_S: Final = 60.0  # a connection that nobody has used for so long is closed; pings keep one
HUNG_S: Final = 1.0  # a statement that its caller gives up after so long is a fault; before, it says nothing
# A probe harms nobody here, and callers try again for 0.3 s: so open only for moments, and find out often.
POLICY: Final = BreakerPolicy(open_s=0.1, open_max_s=1.0, probe_lease_s=3.0, quiet_s=10.0)

# What says that the server, or the way to it, is at fault. A statement that it refuses is an answer.
FAULTS: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class PoolAway(ConnectionError):
    """Postgres has failed several times in a row: not asked again until the time is over."""


class Held:
    """A connection in use: since when, and by which task."""

    __slots__ = ("reported", "since_s", "task")

    def __init__(self) -> None:
        """The running task takes it now."""
        self.since_s: Final = time.monotonic()
        task = asyncio.current_task()
        self.task: Final = task.get_name() if task else "no task"
        self.reported = False


class Pool:
    """A pool of connections of one role. Open it with `Pool.open`, close it with `close` or `terminate`."""

    def __init__(self, size: int) -> None:
        """Use `open` instead: it connects."""
        self.gate: Final = Gate(size)
        self.size_min: Final = size
        self.times: Final = ResponseTimes()
        self.breaker: Final = Breaker("postgres", POLICY)
        self.held: Final[set[Held]] = set()
        self.acquired = 0
        self.connected = 0  # connections opened since the start
        self.demoted = False
        self._connections: asyncpg.Pool[Any] | None = None

    @classmethod
    async def open(cls, database_url: str, size: int, *, timeout_s: float, settings: Mapping[str, str]) -> Pool:
        """Connect once and return the pool, for `size` connections at first.

        Only servers that take writes are accepted: a primary that has become a standby is not one. Raises what asyncpg
        raises when there is none.
        """
        self = cls(size)
        options: dict[str, Any] = {"target_session_attrs": "read-write", "server_settings": dict(settings)}
        self._connections = await asyncpg.create_pool(
            database_url, init_size=1, min_size=0, max_size=SIZE_MAX, max_inactive_connection_lifetime=IDLE_S,
            timeout=timeout_s, init=self._prepare, reset=_no_reset, **options,
        )  # fmt: skip
        return self

    @asynccontextmanager
    async def connection(self, timeout_s: float) -> AsyncIterator[asyncpg.Connection[Any]]:
        """Lend a connection for the block; waiting for it takes at most `timeout_s`, the work inside is not limited.

        It is dropped, not reused, when the block raises anything but an error of Postgres: it may still be busy.
        Raises GateTimeout, PoolAway, or what connecting raises.
        """
        started_s = time.monotonic()
        if not self.breaker.admits(started_s):
            raise PoolAway("Postgres is away")
        await self.gate.enter(timeout_s)
        held = Held()
        admission = self.breaker.admit(held.since_s)
        if admission is Admission.REFUSED:  # it was given up while this caller waited
            self.gate.leave()
            raise PoolAway("Postgres is away")
        probe = admission is Admission.PROBE
        self.held.add(held)
        try:
            async with self._borrowed(timeout_s - (held.since_s - started_s)) as connection:
                yield connection
        except BaseException as error:
            self._learn(error, held.since_s, probe=probe)
            raise
        else:
            self.breaker.record(time.monotonic(), ok=True, probe=probe)
        finally:
            self.held.discard(held)
            self.gate.leave()

    async def ping(self, timeout_s: float) -> float:
        """Ask whether writes are taken; returns seconds. When they are not, all connections are dropped.

        Raises what `connection` raises, and ReadOnlySQLTransactionError for a server that takes no writes.
        """
        async with asyncio.timeout(timeout_s), self.connection(timeout_s) as connection:
            started_s = time.monotonic()
            read_only = await connection.fetchval("SELECT current_setting('transaction_read_only')")
            took_s = time.monotonic() - started_s
            self.demoted = read_only == "on"
            if self.demoted:
                raise asyncpg.ReadOnlySQLTransactionError("the server takes no writes: it is a standby now")
        return took_s

    @property
    def active(self) -> int:
        """Connections in use."""
        return self.gate.inside

    @property
    def open_connections(self) -> int:
        """Connections that stand."""
        return self._connections.get_size() if self._connections else 0

    @property
    def idle(self) -> int:
        """Connections that stand and are not in use."""
        return self._connections.get_idle_size() if self._connections else 0

    @property
    def state(self) -> BreakerState:
        """Whether Postgres is asked at all."""
        return self.breaker.state(time.monotonic())

    async def drop_connections(self) -> None:
        """Replace every connection before its next use: the server behind it is another one now."""
        if self._connections is not None:
            await self._connections.expire_connections()

    def terminate(self) -> None:
        """Close all connections at once, whatever they do."""
        if self._connections is not None:
            self._connections.terminate()

    @asynccontextmanager
    async def _borrowed(self, timeout_s: float) -> AsyncIterator[asyncpg.Connection[Any]]:
        assert self._connections is not None
        pool = self._connections
        connection: Any = await pool.acquire(timeout=max(timeout_s, 0.0))
        self.acquired += 1
        try:
            yield connection
        except BaseException as error:
            if not isinstance(error, asyncpg.PostgresError):
                # Giving it back would wait for the server, which may be what does not answer.
                connection.terminate()
            raise
        finally:
            await pool.release(connection, timeout=timeout_s)

    def _learn(self, error: BaseException, since_s: float, *, probe: bool) -> None:
        """Tell the breaker what an error says of the server; one of the caller's own making says nothing."""
        now_s = time.monotonic()
        given_up = isinstance(error, asyncio.CancelledError) and now_s - since_s >= HUNG_S
        # A value that cannot be sent is the caller's, and so is waiting for a second connection inside the block.
        callers_own = isinstance(error, ValueError | GateTimeout | PoolAway)
        if given_up or (isinstance(error, FAULTS) and not callers_own):
            self.demoted = self.demoted or isinstance(error, asyncpg.ReadOnlySQLTransactionError)
            self.breaker.record(now_s, ok=False, probe=probe)
        elif isinstance(error, asyncpg.PostgresError):
            self.breaker.record(now_s, ok=True, probe=probe)
        elif probe:
            self.breaker.cancel_probe()

    async def _prepare(self, connection: asyncpg.Connection[Any]) -> None:
        self.connected += 1
        self.demoted = False
        connection.add_query_logger(self.times.take)


async def _no_reset(_connection: asyncpg.Connection[Any]) -> None:
    """Leave a connection as it is: see the module."""
