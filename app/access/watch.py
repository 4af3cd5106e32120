"""Keeps the keys and rate limits of this process equal to Postgres, and writes back when keys were last used.

A revocation is in effect on every replica that reaches Postgres within POLL_INTERVAL_S plus one query; what happens on one
that does not, `app.access.table` decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from app.access.rates import rate_of
from app.access.store import NAMED_DAYS, loaded_key
from app.clock import time_of
from app.db.postgres import cut_off
from app.db.sql import query
from app.db.watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    import asyncpg

    from app.access.rates import TenantRates
    from app.access.scope import Rate
    from app.access.table import KeyTable

log = logging.getLogger(__name__)

T = TypeVar("T")

CHANNEL: Final = "shieldx_access"
POLL_INTERVAL_S: Final = 1.0  # half of the 2 s within which a revocation must be in effect everywhere
LOOK_TIMEOUT_S: Final = 0.8  # a look that takes longer is on a dead session: a new one still fits into the 2 s
LOAD_TIMEOUT_S: Final = 5.0  # KEYS_MAX keys take about 0.1 s
SLICE: Final = 250  # rows that are converted in one turn of the event loop: about 1 ms
LAST_USE_INTERVAL_S: Final = 60.0  # how stale the shown time of last use may be

_RATES: Final = "SELECT tenant_id, settings ->> 'rate_limit' FROM credit_accounts WHERE settings ? 'rate_limit'"


class KeyWatch(Watch):
    """Follows keys and limits; writes the last use of keys down now and then, and at the end."""

    def __init__(
        self, table: KeyTable, rates: TenantRates, connect: Callable[[], Awaitable[asyncpg.Connection[Any]]]
    ) -> None:
        """`connect` opens a Postgres session of the server's role."""
        super().__init__("keys", CHANNEL, connect, interval_s=POLL_INTERVAL_S)
        self._table = table
        self._rates = rates
        self._keys_revision: int | None = None
        self._rates_revision: int | None = None
        self._written_s = time.monotonic()

    async def look(self, connection: asyncpg.Connection[Any], *, first: bool) -> None:
        """Load what has changed; then the keys are those of Postgres.

        A revision is read before what it is of: what changes in between is loaded again at the next look.
        """
        if first:
            self._keys_revision = self._rates_revision = None  # a change may have been missed without a session
        with cut_off(connection, LOOK_TIMEOUT_S):
            keys_revision, rates_revision = (await connection.fetch("SELECT keys, rates FROM access_revision"))[0]
        if keys_revision != self._keys_revision:
            with cut_off(connection, LOAD_TIMEOUT_S):
                rows = await connection.fetch(query("load_keys"), NAMED_DAYS)
            self._table.replace(dict([pair async for pair in _in_slices(rows, loaded_key)]))
            self._keys_revision = keys_revision
        else:
            self._table.confirm()
        if rates_revision != self._rates_revision:
            with cut_off(connection, LOAD_TIMEOUT_S):
                rows = await connection.fetch(_RATES)
            self._rates.replace({tenant: rate async for tenant, rate in _in_slices(rows, _rate) if rate is not None})
            self._rates_revision = rates_revision
        if time.monotonic() - self._written_s >= LAST_USE_INTERVAL_S:
            await self.leave(connection)

    async def leave(self, connection: asyncpg.Connection[Any]) -> None:
        """Write down when keys were last used."""
        used = self._table.take_used()
        self._written_s = time.monotonic()
        if not used:
            return
        try:
            with cut_off(connection, LOAD_TIMEOUT_S):
                await connection.execute(query("date_keys"), list(used), [time_of(at_ms) for at_ms in used.values()])
        except BaseException:
            self._table.put_back_used(used)
            raise


def _rate(row: asyncpg.Record) -> tuple[str, Rate | None]:
    """Return tenant and rate; no rate if it was spoilt by hand, because that must not stop the server."""
    tenant, text = row
    try:
        return tenant, rate_of(text)
    except msgspec.MsgspecError:
        log.warning("rate limit not readable", extra={"tenant": tenant})
        return tenant, None


async def _in_slices(rows: Sequence[asyncpg.Record], convert: Callable[[asyncpg.Record], T]) -> AsyncIterator[T]:
    """Yield converted rows, and let others have the event loop in between: 10,000 keys take about 40 ms."""
    for number, row in enumerate(rows):
        if number % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        yield convert(row)
