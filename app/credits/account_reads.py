"""Reads of accounts: everybody who asks within one round trip to Postgres is answered from one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.actor import Actor, Ask
from app.credits.records import READ_TIMEOUT_S, Account, account_of
from app.db.postgres import cut_off
from app.db.retry import TRANSIENT, retry
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ACCOUNTS_OF: Final = query("accounts_of")
INBOX_READS_MAX: Final = 20_000  # about 2 s of reads
STATEMENT_READS_MAX: Final = 512  # accounts of one statement: about 2 ms of Postgres
ASK_TIMEOUT_S: Final = 1.6  # callers hear of an outage within 2 s


class AccountAsk(Ask[Account | None]):
    """Asks for the account of a tenant."""

    __slots__ = ("tenant",)

    def __init__(self, tenant: str) -> None:
        """`tenant` need not have one: then the answer is None."""
        super().__init__()
        self.tenant = tenant


class AccountReads(Actor[AccountAsk]):
    """Answers with accounts as their last durable event left them, at some time after the ask."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection[Any]]]) -> None:
        """`connect` opens a connection of the reads' own, again after each failure."""
        super().__init__(
            inbox_max=INBOX_READS_MAX, batch_max=STATEMENT_READS_MAX, ask_timeout_s=ASK_TIMEOUT_S, name="account reads"
        )
        self._connect = connect
        self._connection: asyncpg.Connection[Any] | None = None

    async def stop(self) -> None:
        """Finish what was accepted, then close the connection."""
        await super().stop()
        self._drop()

    async def receive(self, batch: list[AccountAsk]) -> None:
        """Read the accounts of a batch; an outage of Postgres is an answer too."""
        tenants = [ask.tenant for ask in batch]
        try:
            rows = await retry(lambda: self._read(tenants))
        except (*TRANSIENT, asyncpg.PostgresError) as error:
            for ask in batch:
                ask.fail(error)
            return
        found = {row[0]: account_of(row) for row in rows}
        for ask in batch:
            ask.answer(found.get(ask.tenant))

    async def _read(self, tenants: list[str]) -> list[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        try:
            with cut_off(self._connection, READ_TIMEOUT_S):
                return await self._connection.fetch(ACCOUNTS_OF, tenants)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
