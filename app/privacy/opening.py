"""Private data in one process: there from the start, open once Postgres is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.clock import now_ms
from app.privacy.payment import CLASS
from app.privacy.store import PrivateStore
from app.privacy.tombstones import enter_tombstones

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.db.pool import Pool
    from app.privacy.envelope import MasterKeys
    from app.privacy.store import RecordFact

EXPIRY_INTERVAL_S: Final = 3_600  # data is kept for months; an hour more is nothing
RELOAD_INTERVAL_S: Final = 5  # how soon a new master key in the file is used; reading the file takes 50 us
DAY_S: Final = 86_400


class Privacy:
    """The store, and what has to be done for it now and then. `store` is None before `open`."""

    def __init__(
        self, load_keys: Callable[[], MasterKeys], record: RecordFact, keep_days: int, clock_ms: Callable[[], int] = now_ms
    ) -> None:
        """`load` comes next.

        load_keys  reads the master keys anew from where they come from; called now and then
        record     puts one entry into the chain, durably
        keep_days  how long payment data is kept
        """
        self._load_keys = load_keys
        self._masters: MasterKeys | None = None
        self._record = record
        self._limits_s = {CLASS: keep_days * DAY_S}
        self._clock_ms = clock_ms
        self._expire_at_ms = 0
        self._reload_at_ms = 0
        self.store: PrivateStore | None = None

    def load(self, masters: MasterKeys) -> None:
        """Take the master keys to begin with."""
        self._masters = masters

    def open(self, pool: Pool) -> None:
        """Begin to keep private data, over a pool of the server's role; after `load`."""
        if self._masters is None:
            raise AssertionError("the master keys have not been read")
        self.store = PrivateStore(pool, self._masters, self._record, self._clock_ms, self._load_keys)

    def reload(self) -> None:
        """Take over master keys that have changed; due every RELOAD_INTERVAL_S, in every replica."""
        if self.store is not None and self._clock_ms() >= self._reload_at_ms:
            self._reload_at_ms = self._clock_ms() + RELOAD_INTERVAL_S * 1000
            self.store.reload()

    async def round(self) -> None:
        """Enter tombstones that are missing from the chain, and once an hour destroy what is too old; for one replica.

        Raises asyncpg's errors and those of `record`: what failed is done at the next round.
        """
        if self.store is None:
            return
        if self._clock_ms() >= self._expire_at_ms:
            await self.store.expire(self._limits_s)
            self._expire_at_ms = self._clock_ms() + EXPIRY_INTERVAL_S * 1000
        await enter_tombstones(self.store, self._record)
