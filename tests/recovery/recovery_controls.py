"""What quotas and thresholds must have come to, worked out from what the chain moved, by rules of our own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

SETTINGS: Final = {"low_balance_threshold": 30, "quota": {"limit": 10**13, "period": "month"}}  # no load reaches that limit


@dataclass
class Expected:
    """Per tenant that has them: whether it is low (0, 1, 2) and what counts in its month; and every alert."""

    low: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    alerts: set[tuple[str, str, int, int]] = field(default_factory=set)


def expected_controls(entries: Iterable[dict[str, Any]]) -> Expected:
    """Return what entries, in order of shard and seq, must have made of the tenants' controls."""
    expected = Expected()
    counts: dict[tuple[str, str], int] = defaultdict(int)
    held: dict[str, tuple[str, str]] = {}
    months: dict[str, str] = {}
    for record in entries:
        tenant, kind, amount, month = record["tenant_id"], record["type"], record["amount"], record["at"][:7]
        if kind == "account" and record["details"]["settings"].get("quota"):
            assert orjson.loads(record["details"]["settings"]["quota"]) == SETTINGS["quota"]
            expected.low[tenant] = 0
        if tenant not in expected.low:
            continue
        if kind in {"consume", "reserve"}:
            months[tenant] = month
            counts[tenant, month] += amount
        if kind == "reserve":
            held[record["transaction_id"]] = tenant, month
        elif kind in {"commit", "abort", "expire"}:
            counts[held[record["reference"]]] -= record["details"]["released"] if kind == "commit" else amount
        _cross(expected, record)
    expected.used = {tenant: counts[tenant, month] for tenant, month in months.items()}
    return expected


def _cross(expected: Expected, record: dict[str, Any]) -> None:
    tenant, balance, threshold = record["tenant_id"], record["balance"], SETTINGS["low_balance_threshold"]
    before = expected.low[tenant]
    assert isinstance(threshold, int)
    if balance > threshold + (3 if before == 2 else 0):
        expected.low[tenant] = 1
    elif before == 1 and balance <= threshold:
        expected.low[tenant] = 2
        expected.alerts.add((tenant, "credits.low_balance", record["shard"], record["seq"]))


def compare_controls(
    entries: Iterable[dict[str, Any]],
    alerts: list[tuple[str, str, int, int]],
    tables: dict[str, dict[str, int]],
    redis: dict[str, str | None],
) -> list[str]:
    """Return where alerts, Postgres and Redis are not what the chain must have made of them."""
    expected = expected_controls(entries)
    faults = []
    if len(alerts) != len(set(alerts)) or set(alerts) != expected.alerts:
        faults.append(
            f"alerts: {len(alerts)}, missing {expected.alerts - set(alerts)}, too many {set(alerts) - expected.alerts}"
        )
    for tenant, low in expected.low.items():
        used = expected.used.get(tenant, 0)
        found, words = tables[tenant], (redis[tenant] or "").split()
        if (found["low"], found["used"]) != (low, used):
            faults.append(f"{tenant}: controls in Postgres are {found}, not low {low} and used {used}")
        if [words[1], words[4]] != [str(low), str(used)]:
            faults.append(f"{tenant}: controls in Redis are {words}, not low {low} and used {used}")
    return faults
