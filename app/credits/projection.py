"""What the chain folds to: accounts, reservations, refund totals and alerts, written with the events that changed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from app.clock import time_of
from app.credits.controls import alerts_of, changes_controls, controls_of, states_of
from app.db.sql import query
from app.webhooks.outbox import Message, put_out_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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

    def __init__(self, shard: int, wake: Callable[[], None]) -> None:
        """`shard` is what new rows are labelled with; `wake` is called once messages for webhooks are durable."""
        self._shard = shard
        self._wake = wake
        self._put_out = False

    def beyond_accounts(self, events: Sequence[Event]) -> Sequence[Event]:
        """Return the events that change more than balances, which the append itself folds."""
        return [e for e in events if (e.type not in _PLAIN and e.tenant_id) or changes_controls(e)]

    async def apply(self, connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
        """Fold events that change more than balances; they are in seq order. Raises when a CHECK is violated."""
        await self._apply_settings(connection, events)
        await self._apply_holds(connection, events)
        await self._apply_closings(connection, events)
        await self._apply_refunds(connection, events)
        await self._apply_controls(connection, events)

    def advanced(self) -> None:
        """Look whether what is durable now put messages out. Subscribed to the shard, whose head has moved."""
        if self._put_out:
            self._put_out = False
            self._wake()

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
             e.metadata, e.reference, controls_of(e).get("count"))
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

    async def _apply_controls(self, connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
        states = states_of(events)
        if not states:
            return
        await connection.execute(query("fold_controls"), *_columns([(t, states[t]) for t in sorted(states)]))
        alerts = [alert for event in events for alert in alerts_of(event)]
        if not alerts:
            return
        rows = [
            (a.alert_id, a.shard, a.seq, a.tenant_id, a.type, time_of(a.at_ms), orjson.dumps(a.data).decode())
            for a in alerts
        ]
        await connection.execute(query("fold_alerts"), *_columns(rows))
        messages = [Message(a.alert_id, a.tenant_id, a.type, a.at_ms, {"alert_id": a.alert_id, **a.data}) for a in alerts]
        self._put_out = bool(await put_out_all(connection.fetch, messages)) or self._put_out


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _expiry(event: Event) -> datetime | None:
    if event.type != "reserve":
        return None
    expires_at_ms: int = orjson.loads(event.details or "{}")["expires_at_ms"]
    return time_of(expires_at_ms)
