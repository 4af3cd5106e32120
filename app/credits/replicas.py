"""How many processes serve this ledger: each dates a row in Postgres, and counts those that are dated lately."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Final

import asyncpg

from app.db.retry import TRANSIENT
from app.db.sql import query

if TYPE_CHECKING:
    from app.db.statements import Statements

BEAT_INTERVAL_S: Final = 2.0  # how late others learn of a new replica
LIVE_S: Final = 7.0  # three beats may be lost; then a replica that died does not count any more


class Replicas:
    """Knows the number, also while Postgres is away: then it is what it was."""

    def __init__(self, statements: Statements, name: str) -> None:
        """Two processes of one name count as two."""
        self._statements = statements
        self._name = f"{name}/{secrets.token_hex(4)}"
        self.count = 1

    def share(self) -> float:
        """Return what part of all requests comes to this process, where they are spread evenly."""
        return 1.0 / self.count

    async def beat(self) -> None:
        """Date this process's row and count. Raises what asyncpg raises, and TimeoutError."""
        rows = await self._statements.rows(query("beat_replica"), self._name, LIVE_S)
        self.count = 1 + rows[0]["others"]

    async def leave(self) -> None:
        """Take the row away, so that the others count right at once; an outage leaves it to run out."""
        with contextlib.suppress(*TRANSIENT, asyncpg.PostgresError, asyncio.CancelledError):
            await self._statements.rows("DELETE FROM replicas WHERE replica = $1", self._name)
