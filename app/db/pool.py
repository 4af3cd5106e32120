"""Connections to Postgres that are shared: a fair gate in front of asyncpg's pool, and a breaker beside it.

Uses asyncpg's public API only. Its pool is made for SIZE_MAX connections, and opens them as they are needed; how many may
be in use is the gate's limit, which `PoolUpkeep` moves. Connections are not reset between uses: reads change nothing of a
session, and a reset costs a round trip. What changes a session (SET) does so with SET LOCAL, in a transaction.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.breaker import STORE_POLICY, Admission, Breaker, BreakerState
from app.db.gate import Gate, GateTimeout
from app.db.response_times import ResponseTimes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from asyncpg.connection import LoggedQuery

SIZE_MAX: Final = 200  # connections of one process; beyond this Postgres loses more than callers win
IDLE_S: Final = 60.0  # a connection that nobody has used for so long is closed; pings keep one
RELEASE_S: Final = 2.0  # giving a connection back asks nothing of the server, unless a statement is being cancelled
HUNG_S: Final = 1.0  # a statement that its caller gives up after so long is a fault; before, it says nothing

# What says that the server, or the way to it, is at fault. A statement that it refuses is an answer.
FAULTS: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class PoolAway(ConnectionError):
    """Postgres has failed several times in a row: not asked again until the time is over."""


class Loan:
    """A connection in use: by which task, and since when."""

    __slots__ = ("connection", "probe", "reported", "since_s", "task")

    def __init__(self, since_s: float, *, probe: bool) -> None:
        """The running task takes it; there may be no connection yet."""
        self.connection: Any = None
        self.since_s: Final = since_s
        self.task: Final = asyncio.current_task()
        self.probe: Final = probe  # the first call after the breaker was open
        self.reported = False  # as not given back


class Pool:
    """A pool of connections of one role. Open it with `Pool.open`, close it with `close` or `terminate`."""

    def __init__(self, size: int) -> None:
        """Use `open` instead: it connects."""
        self.gate: Final = Gate(size)
        self.size_min: Final = size
        self.times: Final = ResponseTimes()
        self.breaker: Final = Breaker("postgres", STORE_POLICY)
        self.loans: Final[set[Loan]] = set()
        self.acquired = 0
        self.connected = 0  # connections opened since the start
        self.errors = 0  # faults of the server or of the way to it
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

    async def rows(self, timeout_s: float, sql: str, values: Sequence[Any]) -> list[asyncpg.Record]:
        """Return all rows of one statement. A connection is waited for at most `timeout_s`, the statement is not limited.

        The connection is dropped, not reused, after anything but an error of Postgres: it may still be busy.
        Raises GateTimeout, PoolAway, what connecting raises, and what the statement raises.
        """
        loan = await self._lend(timeout_s)
        started_s = time.monotonic()
        try:
            rows: list[asyncpg.Record] = await loan.connection.fetch(sql, *values)
        except BaseException as error:
            await self._take_back(loan, error)
            raise
        finally:
            self.times.take(sql, time.monotonic() - started_s)
        await self._take_back(loan, None)
        return rows

    @asynccontextmanager
    async def connection(self, timeout_s: float) -> AsyncIterator[asyncpg.Connection[Any]]:
        """Lend a connection for a block of statements, under the same conditions and with the same errors as `rows`."""
        loan = await self._lend(timeout_s)
        connection = loan.connection
        connection.add_query_logger(self._take_time)
        try:
            yield connection
        except BaseException as error:
            self._stop_timing(connection)
            await self._take_back(loan, error)
            raise
        self._stop_timing(connection)
        await self._take_back(loan, None)

    async def ping(self, timeout_s: float) -> float:
        """Ask whether writes are taken; returns seconds. When they are not, all connections are dropped.

        Raises what `connection` raises, and ReadOnlySQLTransactionError for a server that takes no writes.
        """
        async with asyncio.timeout(timeout_s), self.connection(timeout_s / 2) as connection:
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

    async def _lend(self, timeout_s: float) -> Loan:
        started_s = time.monotonic()
        if not self.breaker.admits(started_s):
            raise PoolAway("Postgres is away")
        await self.gate.enter(timeout_s)
        now_s = time.monotonic()
        admission = self.breaker.admit(now_s)
        if admission is Admission.REFUSED or self._connections is None:  # it was given up while this caller waited
            self.gate.leave()
            raise PoolAway("Postgres is away")
        loan = Loan(now_s, probe=admission is Admission.PROBE)
        self.loans.add(loan)
        try:
            loan.connection = await self._connections.acquire(timeout=max(timeout_s - (now_s - started_s), 0.0))
        except BaseException as error:
            await self._take_back(loan, error)
            raise
        self.acquired += 1
        return loan

    async def _take_back(self, loan: Loan, error: BaseException | None) -> None:
        """End a loan, and tell the breaker how it went."""
        try:
            if error is None:
                self.breaker.record(time.monotonic(), ok=True, probe=loan.probe)
            else:
                self._learn(error, loan)
            if loan.connection is not None and self._connections is not None:
                try:
                    if error is not None and not isinstance(error, asyncpg.PostgresError):
                        # Giving it back would wait for the server, which may be what does not answer.
                        loan.connection.terminate()
                    await self._connections.release(loan.connection, timeout=RELEASE_S)
                except Exception:
                    if error is None:
                        raise  # Else the first error tells more, and may be a cancellation that must not be lost.
        finally:
            self.loans.discard(loan)
            self.gate.leave()

    def _learn(self, error: BaseException, loan: Loan) -> None:
        """Tell the breaker what an error says of the server; one of the caller's own making says nothing."""
        now_s = time.monotonic()
        # A value that cannot be sent is the caller's, and so is waiting for a second connection inside the block.
        callers_own = isinstance(error, ValueError | GateTimeout | PoolAway)
        hasty = isinstance(error, asyncio.CancelledError | TimeoutError) and now_s - loan.since_s < HUNG_S
        refused = isinstance(error, asyncpg.PostgresError) and not isinstance(error, FAULTS)
        if callers_own or hasty or not isinstance(error, (asyncio.CancelledError, asyncpg.PostgresError, *FAULTS)):
            if loan.probe:
                self.breaker.cancel_probe()
            return
        self.demoted = self.demoted or isinstance(error, asyncpg.ReadOnlySQLTransactionError)
        answered = refused and loan.connection is not None
        self.errors += not answered
        self.breaker.record(now_s, ok=answered, probe=loan.probe)

    def _stop_timing(self, connection: asyncpg.Connection[Any]) -> None:
        with suppress(asyncpg.InterfaceError):  # it was lost meanwhile, and asyncpg has taken it back already
            connection.remove_query_logger(self._take_time)

    def _take_time(self, query: LoggedQuery) -> None:
        self.times.take(query.query, query.elapsed)

    async def _prepare(self, _connection: asyncpg.Connection[Any]) -> None:
        self.connected += 1
        self.demoted = False


async def _no_reset(_connection: asyncpg.Connection[Any]) -> None:
    """Leave a connection as it is: see the module."""
