"""The one place that reads time, and the one text form that times have on the wire."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

# Microseconds from the Unix epoch to 2000-01-01, where PostgreSQL's binary timestamptz starts.
POSTGRES_EPOCH_US: Final = 946_684_800_000_000


def now_ms() -> int:
    """Return the wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


@lru_cache(maxsize=1024)
def time_text(at_ms: int) -> str:
    """Return Unix milliseconds as RFC 3339 UTC text, always with three decimals and a `Z`."""
    second, rest_ms = divmod(at_ms, 1000)
    return f"{_second_text(second)}{rest_ms:03d}Z"


def time_of(at_ms: int) -> datetime:
    """Return Unix milliseconds as an aware datetime in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def ms_of(at: datetime) -> int:
    """Return an aware datetime as whole Unix milliseconds."""
    return round(at.timestamp() * 1000)
