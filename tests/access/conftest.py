"""Keys in a database, and how a test waits for what follows from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from app.access.store import KeyStore
from app.db.statements import Statements

DEADLINE_S = 90.0
POLL_S = 0.01


async def until(holds: Callable[[], bool], what: str) -> float:
    """Wait until something holds; return how many seconds that took."""
    started_s = time.monotonic()
    while not holds():
        assert time.monotonic() - started_s < DEADLINE_S, f"not in time: {what}"
        await asyncio.sleep(POLL_S)
    return time.monotonic() - started_s


@pytest.fixture
def store(statements: Statements) -> KeyStore:
    return KeyStore(statements)
