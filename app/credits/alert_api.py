"""GET /v1/alerts: what was told of low balances and quotas. HTTP only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
import orjson
from msgspec import Struct

from app.access.api import key_of
from app.access.scope import tenant_filter
from app.clock import ms_of, time_text
from app.credits.api import book_of
from app.credits.permits import no_account, sees
from app.credits.reads import SEQ_END, decode_cursor, encode_cursor
from app.web.fields import Name
from app.web.routes import Handled, cursor, json_answer, limit, query

if TYPE_CHECKING:
    import asyncpg

    from app.web.request import Request

AlertType = Literal["credits.low_balance", "credits.quota_warning", "credits.quota_exceeded"]


class QuotaAlert(Struct):
    """The quota that an alert is about, as it was then."""

    limit: int
    period: str
    used: int
    resets_at: str


class AlertView(Struct, omit_defaults=True):
    """An alert, and the entry behind it: `threshold`, `balance` and `available` of a low balance, `quota` of a quota."""

    alert_id: str
    type: str
    tenant_id: str
    created_at: str
    shard: int
    seq: int
    threshold: int | None = None
    balance: int | None = None
    available: int | None = None
    quota: QuotaAlert | None = None


class AlertPage(Struct):
    """A page of alerts, newest first."""

    data: list[AlertView]
    next_cursor: str | None


def _view(row: asyncpg.Record) -> AlertView:
    data: dict[str, Any] = orjson.loads(row["data"]) | {
        "alert_id": row["alert_id"], "type": row["type"], "created_at": time_text(ms_of(row["at"])),
        "shard": row["shard"], "seq": row["seq"],
    }  # fmt: skip
    return msgspec.convert(data, AlertView)


async def alerts(request: Request) -> Handled:
    """GET /v1/alerts: of all tenants that the key sees, or of one."""
    count, before = limit(request), decode_cursor(cursor(request), int, SEQ_END)
    tenant, kind = query(request, "tenant_id", Name, None), query(request, "type", AlertType, None)
    if tenant is not None and not sees(request, tenant):
        raise no_account()
    rows = await book_of(request).records.alerts(before, count + 1, tenant, tenant_filter(key_of(request)), kind)
    following = encode_cursor(rows[count - 1]["alert_no"]) if len(rows) > count else None
    return json_answer(msgspec.json.encode(AlertPage([_view(row) for row in rows[:count]], following)))
