"""Everything of access in one process: there from the start, open once Postgres and Redis are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.access.audit_reads import AuditReads
from app.access.denials import DenialLog
from app.access.gate import Gate
from app.access.limits import Limits
from app.access.rates import TenantRates
from app.access.series import AccessSeries
from app.access.store import KeyStore
from app.access.table import KeyTable
from app.access.watch import KeyWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from app.db.redis import RedisLink
    from app.db.statements import Statements


class Access:
    """The parts, and their life.

    gate     lets requests in; before `open`, only the root key, and 503 for all others
    rates    which buckets a request draws from
    limits   draws; None before `open`
    store    keys in Postgres, for the calls; None before `open`
    denials  to be told of attempts that the gate does not see
    reads    tells the chain who read it
    series   counts for Prometheus
    """

    def __init__(self, root_key: str, record: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        """`record` puts one entry into the chain; while it cannot, denials are only counted."""
        self.table = KeyTable(root_key)
        self.denials = DenialLog(record)
        self.reads = AuditReads(record)
        self.gate = Gate(self.table, self.denials, self.reads)
        self.rates = TenantRates()
        self.limits: Limits | None = None
        self.store: KeyStore | None = None
        self._watch: KeyWatch | None = None
        self.series = AccessSeries(self)

    def open(
        self,
        statements: Statements,
        connect: Callable[[], Awaitable[asyncpg.Connection[Any]]],
        link: RedisLink,
        on_crash: Callable[[BaseException], None],
        *,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """Begin to follow keys and limits.

        connect  opens a Postgres session of the server's role; one is held for as long as this is open
        link     a connection to Redis of its own
        share    what part of all requests this process gets, for limits while Redis is away: 1 / replicas
        """
        self.store = KeyStore(statements)
        self.limits = Limits(link, share=share)
        self._watch = KeyWatch(self.table, self.rates, connect)
        self.limits.start(on_crash)
        self._watch.start(on_crash)
        self.denials.start()
        self.reads.start()

    async def close(self) -> None:
        """Record what is to be recorded, and end. Call it while the chain still takes entries."""
        await self.denials.stop()
        await self.reads.stop()
        if self._watch is not None:
            await self._watch.stop()
        if self.limits is not None:
            await self.limits.stop()
