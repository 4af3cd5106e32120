"""Hands what Postgres holds as pending entries to the chain: changes of keys and webhooks, made by whichever process.

A change writes its pending entry in its own transaction, so that none is made without one, not even on the console.
An entry is handed over at least once: after a crash in between it comes again, under the same `entry_id`, which
whoever records it takes for the idempotency key.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import orjson
import redis.exceptions

from app.actor import ActorStopped, AskTimeout, InboxFull
from app.clock import ms_of, time_text
from app.db.retry import TRANSIENT, delay_ms
from app.db.sql import query
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.db.statements import Statements

log = logging.getLogger(__name__)

DRAIN_INTERVAL_S: Final = 1.0  # how often a replica looks; the change itself has happened long before
CLAIM_S: Final = 30.0  # far beyond the time that a chain commit may take; then another replica takes over
CLAIMED_MAX: Final = 100  # entries of one round

# What a ledger that is closed, full or recovering raises: the entry waits for the next round.
_LATER: Final = (
    *TRANSIENT, ActorStopped, AskTimeout, InboxFull, asyncpg.PostgresError, redis.exceptions.RedisError,
)  # fmt: skip


class PendingEntries:
    """Drains the table in the background; every replica runs one."""

    def __init__(self, statements: Statements, record: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        """`record` puts one entry into the chain and returns once it is durable there.

        It gets the kind and the details, which carry `entry_id` and `at`, and must record one `entry_id` only once.
        """
        self._statements = statements
        self._record = record
        self._task: asyncio.Task[None] | None = None

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to drain; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="pending entries")

    async def stop(self) -> None:
        """End; what was claimed and not recorded is taken by another replica when the claim ends."""
        if self._task is not None:
            await end_task(self._task)

    async def drain(self) -> int:
        """Record what is pending and unclaimed, oldest first; return how many entries that were."""
        rows = await self._statements.rows(query("claim_entries"), CLAIMED_MAX, CLAIM_S)
        for row in sorted(rows, key=lambda row: row["at"]):
            details = orjson.loads(row["details"])
            await self._record(row["kind"], details | {"entry_id": str(row["entry_id"]), "at": time_text(ms_of(row["at"]))})
            await self._statements.rows(
                "UPDATE pending_entries SET recorded_at = now() WHERE entry_id = $1", row["entry_id"]
            )
        return len(rows)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        failures = 0
        while True:
            try:
                count = await self.drain()
                failures = 0
                if count < CLAIMED_MAX:
                    await asyncio.sleep(DRAIN_INTERVAL_S)
            except _LATER as error:
                log.warning("pending entries wait", extra={"reason": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(max(DRAIN_INTERVAL_S, delay_ms(failures) / 1000))
                failures += 1
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return
