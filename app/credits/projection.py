"""What the chain folds to: accounts, reservations and refund totals, upserted with the events that changed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from app.clock import time_of
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg

    from app.audit.entry import Event

# The status that an event gives to the reservation it refers to.
_CLOSES: Final = {
    "commit": "committed",
    "abort": "aborted",
    "expire": "expired",
    "settle_out": "committed",
    "settle_in": "committed",
    "cancel_out": "aborted",
    "cancel_in": "aborted",
}
_PURPOSE: Final = {"reserve": "spend", "prepare_out": "transfer_out", "prepare_in": "transfer_in"}
_INCOMING: Final = {"prepare_in": 1, "settle_in": -1, "cancel_in": -1}
_PLAIN: Final = frozenset({"topup", "consume", "transfer"})


class CreditProjection:
    """Writes the folded rows of one shard. It may run as often as it likes: the fence precedes it."""

    def __init__(self, shard: int) -> None:
        """`shard` is what new rows are labelled with."""
        self._shard = shard

    def beyond_accounts(self, events: Sequence[Event]) -> Sequence[Event]:
        """Return the events that change more than balances, which the append itself folds."""
        return [event for event in events if event.type not in _PLAIN and event.tenant_id]

    async def apply(self, connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
        """Fold events that change more than balances; they are in seq order. Raises when a CHECK is violated."""
        await self._apply_settings(connection, events)
        await self._apply_holds(connection, events)
        await self._apply_closings(connection, events)
        await self._apply_refunds(connection, events)

    async def _apply_settings(self, connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
        settings: dict[str, tuple[str, str, datetime]] = {}
        incoming: dict[str, int] = {}
        for event in events:
            if event.type in {"account", "update"}:
                details = orjson.loads(event.details or "{}")
                text = orjson.dumps(details["settings"]).decode()
                settings[event.tenant_id] = (event.tenant_id, text, time_of(details["created_at_ms"]))
            elif event.type in _INCOMING:
                change = _INCOMING[event.type] * event.amount
                incoming[event.tenant_id] = incoming.get(event.tenant_id, 0) + change
        if settings:
            await connection.execute(query("fold_settings"), *_columns([settings[t] for t in sorted(settings)]))
        if incoming:
            await connection.execute(query("fold_incoming"), *_columns([(t, incoming[t]) for t in sorted(incoming)]))

    async def _apply_holds(self, connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
        rows = [
            (e.transaction_id, e.tenant_id, e.amount, _PURPOSE[e.type], time_of(e.at_ms), _expiry(e), e.description,
             e.metadata, e.reference)
            for e in events if e.type in _PURPOSE
        ]  # fmt: skip
        if rows:
            ids, *others = _columns(rows)
            await connection.execute(query("fold_holds"), ids, self._shard, *others)

    async def _apply_closings(self, connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
        rows = sorted(
            (e.reference or "", _CLOSES[e.type], e.amount if _CLOSES[e.type] == "committed" else 0, time_of(e.at_ms), e.seq)
            for e in events if e.type in _CLOSES
        )  # fmt: skip
        if rows:
            status = await connection.execute(query("fold_closings"), *_columns(rows))
            if status != f"UPDATE {len(rows)}":
                raise AssertionError(f"{len(rows)} reservations ended in the chain, but Postgres says {status}")

    async def _apply_refunds(self, connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
        totals = {}
        for event in events:
            if event.type == "refund":
                details = orjson.loads(event.details or "{}")
                totals[event.reference] = (event.reference, details["consumed"], details["refunded"])
        if totals:
            await connection.execute(query("fold_refunds"), *_columns([totals[key] for key in sorted(totals, key=str)]))


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _expiry(event: Event) -> datetime | None:
    if event.type != "reserve":
        return None
    expires_at_ms: int = orjson.loads(event.details or "{}")["expires_at_ms"]
    return time_of(expires_at_ms)
