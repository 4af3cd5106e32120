"""The one place that reads time, and the one text form that times have on the wire."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

# Microseconds from the Unix epoch to 2000-01-01, where PostgreSQL's binary timestamptz starts.
POSTGRES_EPOCH_US: Final = 946_684_800_000_000
LAST_MS: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z: what rounds to a later time has no text


def now_ms() -> int:
    """Return the wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat() + "."  # strftime writes the year 1 as "1"


@lru_cache(maxsize=1024)
def time_text(at_ms: int) -> str:
    """Return Unix milliseconds as RFC 3339 UTC text, always with three decimals and a `Z`."""
    second, rest_ms = divmod(at_ms, 1000)
    return f"{_second_text(second)}{rest_ms:03d}Z"


def time_of(at_ms: int) -> datetime:
    """Return Unix milliseconds as an aware datetime in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def ms_of(at: datetime) -> int:
    """Return an aware datetime as whole Unix milliseconds, at most LAST_MS."""
    return min(round(at.timestamp() * 1000), LAST_MS)
