"""What the chain folds to besides balances: reservations, settings, refund totals, controls and alerts. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from app.credits.controls import alerts_of, changes_controls, controls_of, states_of
from app.webhooks.outbox import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.audit.entry import Event
    from app.credits.controls import Alert

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
_SETTINGS: Final = frozenset({"account", "update"})
_PLAIN: Final = frozenset({"topup", "consume", "transfer"})


def folds_of(events: Sequence[Event]) -> bytes | None:
    """Return the JSON of what events, in seq order, change besides balances; None when they change nothing more.

    Its form stands in sql/migrations/0009_folds.up.sql. An event without a tenant folds to nothing, unless it says what
    became of some tenant's controls.
    """
    beyond = [e for e in events if (e.type not in _PLAIN and e.tenant_id) or changes_controls(e)]
    if not beyond:
        return None
    settings = {event.tenant_id: _setting(event) for event in beyond if event.type in _SETTINGS}
    refunds = {event.reference or "": _refund(event) for event in beyond if event.type == "refund"}
    incoming: dict[str, int] = {}
    for event in beyond:
        if event.type in _INCOMING:
            incoming[event.tenant_id] = incoming.get(event.tenant_id, 0) + _INCOMING[event.type] * event.amount
    states = states_of(beyond)
    parts = {
        "holds": [_hold(event) for event in beyond if event.type in _PURPOSE],
        "closings": [_closing(event) for event in beyond if event.type in _CLOSES],
        "settings": [settings[tenant] for tenant in sorted(settings)],
        "incoming": [{"tenant": tenant, "change": incoming[tenant]} for tenant in sorted(incoming)],
        "refunds": [refunds[identifier] for identifier in sorted(refunds)],
        "controls": [{"tenant": tenant, "state": states[tenant]} for tenant in sorted(states)],
        "alerts": [_alert(alert) for event in beyond for alert in alerts_of(event)],
    }
    return orjson.dumps({name: rows for name, rows in parts.items() if rows})


class Folds:
    """The folds of one shard's writer, and the word to the deliverer once the alerts among them are durable."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is told that there may be messages to deliver."""
        self._wake = wake
        self._alerts = False

    def of(self, events: Sequence[Event]) -> bytes | None:
        """Return what `folds_of` does."""
        folds = folds_of(events)
        if folds is not None and b'"alerts":[' in folds:
            self._alerts = True
        return folds

    def advanced(self) -> None:
        """Note that the durable head has moved. To be subscribed to the shard."""
        if self._alerts:
            self._alerts = False
            self._wake()


def _alert(alert: Alert) -> dict[str, Any]:
    message = Message(alert.alert_id, alert.tenant_id, alert.type, alert.at_ms, {"alert_id": alert.alert_id, **alert.data})
    return {
        "id": alert.alert_id, "seq": alert.seq, "tenant": alert.tenant_id, "type": alert.type, "at_ms": alert.at_ms,
        "data": orjson.dumps(alert.data).decode(), "body": message.body,
    }  # fmt: skip


def _hold(event: Event) -> dict[str, Any]:
    expires_at_ms = orjson.loads(event.details or "{}")["expires_at_ms"] if event.type == "reserve" else None
    return {
        "id": event.transaction_id, "tenant": event.tenant_id, "amount": event.amount, "purpose": _PURPOSE[event.type],
        "at_ms": event.at_ms, "expires_at_ms": expires_at_ms, "description": event.description,
        "metadata": event.metadata, "transfer": event.reference, "counted": controls_of(event).get("count"),
    }  # fmt: skip


def _closing(event: Event) -> dict[str, Any]:
    status = _CLOSES[event.type]
    committed = event.amount if status == "committed" else 0
    return {"id": event.reference, "status": status, "committed": committed, "at_ms": event.at_ms, "seq": event.seq}


def _setting(event: Event) -> dict[str, Any]:
    details = orjson.loads(event.details or "{}")
    text = orjson.dumps(details["settings"]).decode()
    return {"tenant": event.tenant_id, "settings": text, "created_at_ms": details["created_at_ms"]}


def _refund(event: Event) -> dict[str, Any]:
    details = orjson.loads(event.details or "{}")
    return {"id": event.reference, "consumed": details["consumed"], "refunded": details["refunded"]}
