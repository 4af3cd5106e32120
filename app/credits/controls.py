"""Quotas and low-balance thresholds of accounts: what Lua says of them in an event, and what follows. Pure.

Lua decides (`lua/lib/controls.lua`), and the event that changed something carries all of the account's state in its
details, under `controls`; so the chain's transaction can keep state and alerts together:

low           0 not above the threshold yet, 1 armed, 2 told of
used          credits that count in the window of the quota
resets_at_ms  the end of that window, Unix ms
told          percent of the quota that was told of in this window: 0, 80 or 100
count         the version with which the count began; a reservation remembers it, to be given back to this count only
alerts        what is to be told, each with its type and what was crossed
tenant_id     the tenant, in an event that has none
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from app.clock import ms_of, time_of, time_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from app.audit.entry import Event

LOW_BALANCE: Final = "credits.low_balance"
QUOTA_WARNING: Final = "credits.quota_warning"  # at 80 % of the quota, once a window
QUOTA_EXCEEDED: Final = "credits.quota_exceeded"  # when all of it is used or a spend was refused, once a window

_MARK: Final = '"controls":{'  # stands in no JSON text of somebody else: there its quotes would be escaped
_STATE: Final = ("low", "used", "resets_at_ms", "told", "count")


class Alert(NamedTuple):
    """Something to tell. `alert_id` names the entry behind it and what was crossed; `data` is a JSON object."""

    alert_id: str
    shard: int
    seq: int
    tenant_id: str
    type: str
    at_ms: int
    data: dict[str, Any]


def with_controls(details: str | None, controls: dict[str, Any]) -> str:
    """Return an event's details, canonical JSON text, with what Lua says of the account's controls."""
    return orjson.dumps({**orjson.loads(details or "{}"), "controls": controls}, option=orjson.OPT_SORT_KEYS).decode()


def changes_controls(event: Event) -> bool:
    """Whether an event says something of controls. Cheap, because every event is asked."""
    return event.details is not None and _MARK in event.details


def controls_of(event: Event) -> dict[str, Any]:
    """Return what an event says of its account's controls; empty when it says nothing."""
    if event.details is None or not changes_controls(event):
        return {}
    controls: dict[str, Any] = orjson.loads(event.details)["controls"]
    return controls


def states_of(events: Iterable[Event]) -> dict[str, str]:
    """Return the state that events leave to each tenant they change, as JSON text; the last one speaks."""
    states = {}
    for event in events:
        if changes_controls(event):
            controls = controls_of(event)
            state = {name: controls[name] for name in _STATE if name in controls}
            states[controls.get("tenant_id", event.tenant_id)] = orjson.dumps(state).decode()
    return states


def alerts_of(event: Event) -> list[Alert]:
    """Return the alerts of one event."""
    controls = controls_of(event)
    tenant_id = controls.get("tenant_id", event.tenant_id)
    alerts = []
    for told in controls.get("alerts", ()):
        kind = told["type"]
        data = {"tenant_id": tenant_id}
        if kind == LOW_BALANCE:
            data |= {"threshold": told["threshold"], "balance": event.balance, "available": event.balance - event.reserved}
        else:
            data["quota"] = {"limit": told["limit"], "period": told["period"], "used": controls["used"],
                             "resets_at": time_text(controls["resets_at_ms"])}  # fmt: skip
        # No other ledger has the transaction id, and no other leg of it the seq: receivers know messages by this.
        alert_id = f"alr_{event.transaction_id.replace('-', '')}_{event.seq}_{kind.rpartition('.')[2]}"
        alerts.append(Alert(alert_id, event.shard, event.seq, tenant_id, kind, event.at_ms, data))
    return alerts


def lua_state(settings: Mapping[str, str], controls: Mapping[str, Any], balance: int) -> str:
    """Return the field `controls` of an account in Redis, from what Postgres holds; "" when nothing is set."""
    quota = orjson.loads(settings.get("quota", "null"))
    threshold = int(settings.get("low_balance_threshold", "-1"))
    if quota is None and threshold < 0:
        return ""
    low = controls.get("low", int(0 <= threshold < balance))
    limit, period = (quota["limit"], quota["period"]) if quota else (-1, "-")
    numbers = [controls.get(name, 0) if quota else 0 for name in _STATE[1:]]
    return " ".join(map(str, [threshold, low, limit, period, *numbers]))


def window_end_ms(period: str, at_ms: int) -> int:
    """Return when the UTC hour, day or month of a time ends, Unix ms."""
    start = time_of(at_ms).replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return ms_of(start + timedelta(hours=1))
    start = start.replace(hour=0)
    if period == "day":
        return ms_of(start + timedelta(days=1))
    return ms_of((start.replace(day=1) + timedelta(days=31)).replace(day=1))


def quota_use(settings: Mapping[str, str], controls: Mapping[str, Any], at_ms: int) -> str:
    """Return the JSON text of how much of an account's quota is used in the window of a time."""
    quota = orjson.loads(settings["quota"])
    current = at_ms < controls.get("resets_at_ms", 0)
    used = controls["used"] if current else 0
    ends = controls["resets_at_ms"] if current else window_end_ms(quota["period"], at_ms)
    return f'{{"used":{used},"remaining":{max(0, quota["limit"] - used)},"resets_at":"{time_text(ends)}"}}'
