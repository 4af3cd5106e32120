"""The 429 of a spend that a quota does not cover."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from app.clock import time_of, time_text
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

_WINDOW_S: Final = {"hour": 3_600, "day": 86_400}
DETAIL: Final = "The quota of the tenant does not cover the amount in this window; Retry-After says when the next begins."


def quota_problem(values: Sequence[Any]) -> Problem:
    """Return the problem of a refusal `quota_exceeded`; `values` as Lua gives them.

    Header fields as those of a rate limit (`app.access.bucket`), under the policy `quota`; its unit is credits.
    """
    limit, used, period, resets_at_ms, at_ms = values
    last_day = time_of(resets_at_ms) - timedelta(days=1)
    window_s = _WINDOW_S.get(period, last_day.day * 86_400)
    left, wait_s = max(0, limit - used), -(-(resets_at_ms - at_ms) // 1000)
    headers = {
        "Retry-After": str(wait_s),
        "RateLimit-Policy": f'"quota";q={limit};qu="credits";w={window_s}',
        "RateLimit": f'"quota";r={left};t={wait_s}',
    }
    quota = {"limit": limit, "period": period, "used": used, "remaining": left, "resets_at": time_text(resets_at_ms)}
    return Problem(429, "quota_exceeded", DETAIL, headers=headers, quota=quota)
