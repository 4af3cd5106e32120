"""What a chain says of accounts besides credits: their settings, the state of quotas and thresholds, the alerts. Pure.

`account` and `update` state all settings of their tenant. Any entry may state under `controls` what became of quota and
threshold; then that is the whole state, and `alerts` there are those that the entry has given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.clock import time_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.audit.entry import Record

ALERTS_KEPT_DAYS: Final = 90  # then a row of credit_alerts may go; the entry behind it stays in the chain
_SETTING: Final = frozenset({"account", "update"})
_STATE: Final = ("low", "used", "resets_at_ms", "told", "count")
_LOW: Final = "credits.low_balance"


class Stated(msgspec.Struct, array_like=True):
    """What was last said of a tenant, and by which entry: None and -1 where nothing was."""

    settings: dict[str, Any] | None = None
    settings_seq: int = -1
    controls: dict[str, Any] | None = None
    controls_seq: int = -1


class Told(msgspec.Struct, array_like=True):
    """An alert as its entry gives it."""

    shard: int
    seq: int
    tenant_id: str
    type: str
    at: str
    data: dict[str, Any]


class ControlsFold:
    """Settings, controls and alerts of a range of one chain, moved on by one entry after the other."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self.stated: dict[str, Stated] = {}
        self.told: dict[str, Told] = {}

    def take(self, record: Record) -> str | None:
        """Take a record that has details; the reason when they are none that an entry can have."""
        details = record.details or {}
        if record.type in _SETTING:
            settings = details.get("settings")
            if not isinstance(settings, dict):
                return f"the {record.type} does not say what is set"
            if settings or record.type == "update":
                stated = self._of(record.tenant_id)
                stated.settings, stated.settings_seq = settings, record.seq
        controls = details.get("controls")
        if controls is None:
            return None
        if not isinstance(controls, dict):
            return "the entry does not say what became of quota and threshold"
        stated = self._of(str(controls.get("tenant_id", record.tenant_id)))
        stated.controls = {name: controls[name] for name in _STATE if name in controls}
        stated.controls_seq = record.seq
        try:
            self.told.update(_alerts(record, controls))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            return "the entry gives an alert that cannot be read"
        return None

    def join(self, stated: dict[str, Stated], told: dict[str, Told], since: str) -> None:
        """Move on by those of a later range; alerts from before `since` are left out."""
        for tenant, later in stated.items():
            one = self._of(tenant)
            if later.settings_seq >= 0:
                one.settings, one.settings_seq = later.settings, later.settings_seq
            if later.controls_seq >= 0:
                one.controls, one.controls_seq = later.controls, later.controls_seq
        self.told.update((alert_id, alert) for alert_id, alert in told.items() if alert.at >= since)

    def _of(self, tenant: str) -> Stated:
        stated = self.stated.get(tenant)
        if stated is None:
            stated = self.stated[tenant] = Stated()
        return stated


def _alerts(record: Record, controls: dict[str, Any]) -> Iterable[tuple[str, Told]]:
    tenant = controls.get("tenant_id", record.tenant_id)
    for told in controls.get("alerts", ()):
        kind = told["type"]
        data: dict[str, Any] = {"tenant_id": tenant}
        if kind == _LOW:
            available = record.balance - record.reserved
            data |= {"threshold": told["threshold"], "balance": record.balance, "available": available}
        else:
            resets_at = time_text(controls["resets_at_ms"])
            data["quota"] = {
                "limit": told["limit"], "period": told["period"], "used": controls["used"], "resets_at": resets_at,
            }  # fmt: skip
        alert_id = f"alr_{record.transaction_id.replace('-', '')}_{record.seq}_{kind.rpartition('.')[2]}"
        yield alert_id, Told(record.shard, record.seq, tenant, kind, record.at, data)
