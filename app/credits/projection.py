"""What the chain folds to besides balances: reservations, settings and refund totals. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_SETTINGS: Final = frozenset({"account", "update"})
_PLAIN: Final = frozenset({"topup", "consume", "transfer"})


def folds_of(events: Sequence[Event]) -> bytes | None:
    """Return the JSON of what events, in seq order, change besides balances; None when they change nothing more.

    Its form stands in sql/migrations/0009_folds.up.sql. An event without a tenant folds to nothing.
    """
    beyond = [event for event in events if event.type not in _PLAIN and event.tenant_id]
    if not beyond:
        return None
    settings = {event.tenant_id: _setting(event) for event in beyond if event.type in _SETTINGS}
    refunds = {event.reference or "": _refund(event) for event in beyond if event.type == "refund"}
    incoming: dict[str, int] = {}
    for event in beyond:
        if event.type in _INCOMING:
            incoming[event.tenant_id] = incoming.get(event.tenant_id, 0) + _INCOMING[event.type] * event.amount
    parts = {
        "holds": [_hold(event) for event in beyond if event.type in _PURPOSE],
        "closings": [_closing(event) for event in beyond if event.type in _CLOSES],
        "settings": [settings[tenant] for tenant in sorted(settings)],
        "incoming": [{"tenant": tenant, "change": incoming[tenant]} for tenant in sorted(incoming)],
        "refunds": [refunds[identifier] for identifier in sorted(refunds)],
    }
    return orjson.dumps({name: rows for name, rows in parts.items() if rows})


def _hold(event: Event) -> dict[str, Any]:
    expires_at_ms = orjson.loads(event.details or "{}")["expires_at_ms"] if event.type == "reserve" else None
    return {
        "id": event.transaction_id, "tenant": event.tenant_id, "amount": event.amount, "purpose": _PURPOSE[event.type],
        "at_ms": event.at_ms, "expires_at_ms": expires_at_ms, "description": event.description,
        "metadata": event.metadata, "transfer": event.reference,
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
