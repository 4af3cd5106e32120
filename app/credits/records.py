"""What Postgres knows of credits: the reads behind the API, and the refusals that are to be remembered.

Everything read here is durable, so an answer made from it never has to be taken back.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import orjson

from app.credits.operation import event_of_entry
from app.db.retry import retry
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from app.audit.entry import Event
    from app.db.pool import Pool

READ_TIMEOUT_S: Final = 1.2  # callers hear of an outage within 2 s, with the wait for a free connection included


class Account(NamedTuple):
    """One row of credit_accounts; settings as JSON text by name, controls as `app.credits.controls` says."""

    tenant_id: str
    balance: int
    reserved: int
    version: int
    created_at: datetime
    updated_at: datetime
    settings: dict[str, str]
    controls: dict[str, Any]


class Reservation(NamedTuple):
    """One row of credit_reservations."""

    reservation_id: str
    tenant_id: str
    amount: int
    committed: int
    status: str
    purpose: str
    created_at: datetime
    expires_at: datetime | None
    closed_at: datetime | None
    description: str | None
    metadata: str | None


class Seal(NamedTuple):
    """Where an event stands in the chain, and what ties it there."""

    hash: bytes
    prev_hash: bytes


def raw16(text: str) -> bytes:
    """Return the 16 bytes of 22 characters of base64url."""
    return base64.urlsafe_b64decode(text + "==")


class Records:
    """Reads, over a pool of connections of the server's role."""

    def __init__(self, pool: Pool) -> None:
        """The pool is opened and closed by its owner."""
        self._pool = pool

    async def rows(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        """Return all rows of one statement, within READ_TIMEOUT_S; transient errors are tried again meanwhile."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await retry(lambda: self._pool.rows(READ_TIMEOUT_S, sql, values))

    async def remember(self, shard: int, refusals: Sequence[tuple[dict[str, Any], bytes]]) -> None:
        """Keep refusals, so that they are the answer to a retry even if Redis forgets. Params: fields and answer."""
        # A key may stand in one batch twice, and a statement may touch its row only once.
        keyed = {fields["key"]: (fields["fp"], answer) for fields, answer in refusals}
        if keyed:
            await self.rows(
                query("remember_answers"), shard, [raw16(key) for key in keyed],
                [raw16(fp) for fp, _ in keyed.values()], [answer.decode() for _, answer in keyed.values()],
            )  # fmt: skip

    async def known_accounts(self, tenants: Iterable[str]) -> list[str]:
        """Return which of these tenants have an account."""
        rows = await self.rows("SELECT tenant_id FROM credit_accounts WHERE tenant_id = ANY($1)", list(tenants))
        return [row[0] for row in rows]

    async def accounts(self, after: str, limit: int, seen: list[str] | None) -> list[Account]:
        """Return accounts in the order of their names, from the first name beyond `after`; of `seen`, or None for all."""
        return [account_of(row) for row in await self.rows(query("accounts"), after, limit, seen)]

    async def events(self, shard: int, first: int, count: int = 1) -> list[Event]:
        """Return the events seq first .. first + count - 1 of a shard that are durable."""
        rows = await self.rows(
            "SELECT entry FROM audit_chain WHERE shard = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq",
            shard, first, first + count - 1,
        )  # fmt: skip
        return [event_of_entry(row[0]) for row in rows]

    async def events_at(self, shard: int, seqs: Sequence[int]) -> dict[int, Event]:
        """Return events of a shard by seq."""
        rows = await self.rows("SELECT seq, entry FROM audit_chain WHERE shard = $1 AND seq = ANY($2)", shard, list(seqs))
        return {row[0]: event_of_entry(row[1]) for row in rows}

    async def seal(self, shard: int, seq: int) -> Seal:
        """Return the hashes of an entry that exists."""
        rows = await self.rows("SELECT hash, prev_hash FROM audit_chain WHERE shard = $1 AND seq = $2", shard, seq)
        return Seal(rows[0][0], rows[0][1])

    async def history(
        self, tenant: str, kind: str | None, since: datetime | None, until: datetime | None, before: int, limit: int
    ) -> list[Event]:
        """Return a tenant's events below seq `before`, newest first; since is inclusive, until exclusive."""
        rows = await self.rows(query("history"), tenant, kind, since, until, before, limit)
        return [event_of_entry(row[0]) for row in rows]

    async def event_before(self, tenant: str, at: datetime) -> Event | None:
        """Return the last event of a tenant not later than `at`."""
        rows = await self.rows(query("event_before"), tenant, at)
        return event_of_entry(rows[0][0]) if rows else None

    async def reservation(self, identifier: str) -> Reservation | None:
        """Return a reservation that a tenant made, whatever became of it."""
        rows = await self.rows(query("reservation"), identifier)
        return Reservation(str(rows[0][0]), *list(rows[0])[1:]) if rows else None

    async def reservations(self, tenant: str, status: str | None, before: str, limit: int) -> list[Reservation]:
        """Return a tenant's reservations with an id below `before`, newest first."""
        rows = await self.rows(query("reservations"), tenant, status, before, limit)
        return [Reservation(str(row[0]), *list(row)[1:]) for row in rows]

    async def refunded(self, identifier: str) -> int:
        """Return what has been given back of a transaction."""
        rows = await self.rows("SELECT refunded FROM credit_refunds WHERE transaction_id = $1", identifier)
        return rows[0][0] if rows else 0

    async def trial_balance(self) -> dict[str, int]:
        """Return the balance of every system account, of all tenants and of all holds, of one instant."""
        return {row[0]: int(row[1]) for row in await self.rows(query("trial_balance"))}

    async def usage(self, tenant: str, since: datetime, until: datetime, granularity: str) -> list[asyncpg.Record]:
        """Return sums and counts by type in each whole hour or day that has any, from that of `since` to before `until`."""
        return await self.rows(query("usage"), tenant, since, until, granularity)

    async def alerts(
        self, before: int, limit: int, tenant: str | None, seen: list[str] | None, kind: str | None
    ) -> list[asyncpg.Record]:
        """Return alerts with a number below `before`, newest first; of one tenant and of those `seen`, None for any."""
        return await self.rows(query("alerts"), before, limit, tenant, seen, kind)

    async def check_heads(self) -> dict[str, Any]:
        """Compare every shard's head with the last entry of its chain. Raises AssertionError when one differs."""
        rows = await self.rows(query("check_heads"))
        for shard, head_seq, same in rows:
            assert same, f"the head of shard {shard} is not the entry at seq {head_seq}"
        return {"heads": {str(shard): head_seq for shard, head_seq, _ in rows}}


def account_of(row: asyncpg.Record) -> Account:
    """Return a row of `accounts_of.sql` or `accounts.sql`."""
    tenant, balance, reserved, version, created_at, updated_at, settings, controls = row
    return Account(
        tenant, balance, reserved, version, created_at, updated_at, orjson.loads(settings), orjson.loads(controls)
    )
