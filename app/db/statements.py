"""Single statements over a pool, each with a time limit that holds even when the server does not answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncpg

    from app.db.pool import Pool

STATEMENT_WAIT_S: Final = 1.5  # callers hear of an outage within 2 s, the wait for a free connection included


class Statements:
    """Runs statements that stand alone. Nothing is tried again: a statement whose answer was lost may have worked."""

    def __init__(self, pool: Pool) -> None:
        """The pool is opened and closed by its owner."""
        self._pool = pool

    async def rows(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        """Return all rows of one statement. Raises what asyncpg raises, and TimeoutError after STATEMENT_WAIT_S."""
        async with asyncio.timeout(STATEMENT_WAIT_S):
            return await self._pool.rows(STATEMENT_WAIT_S, sql, values)
