"""The daily verification of the whole ledger: by one replica, in a process of its own at the lowest priority.

What it found is an entry of the chain, a row in Postgres, and a metric of every replica. It knows more than a verifier
that comes from outside: the keys that sign here, how long each chain was, in this process's memory and at the last
verification, and which trees Redis remembers; so a chain that was cut or rewritten below what was signed does not pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import orjson
import redis.exceptions

from app.audit.entry import RowSeal
from app.audit.memory import MemoryUnreadable
from app.audit.report import Report, report_json
from app.audit.trust import Trust, read_keys
from app.audit.verify import CannotCheckError, verify_ledger
from app.clock import ms_of, now_ms, time_of
from app.db.retry import TRANSIENT
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

    from app.audit.checkpoint import Checkpoint
    from app.audit.note import Verifier
    from app.audit.shard import Shard
    from app.db.statements import Statements

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 30.0  # how often a replica looks whether a verification is due, and what the last one found
CLAIM_MS: Final = 300_000  # a replica that is silent for so long is taken for dead, and another one begins anew
BEAT_S: Final = 60.0  # how often a running verification renews its claim
RETRY_MS: Final = 600_000  # after a verification that could not be done
NICENESS: Final = 19  # it has a day; whoever serves callers comes first

_UNCHECKED: Final = (CannotCheckError, asyncpg.PostgresError, asyncpg.InterfaceError, *TRANSIENT)
_SPAWN: Final = get_context("spawn")  # a fork would take the event loop along


class Subject(NamedTuple):
    """What is verified: the database, as a role that may read all of it; the key of its seals; its logs' keys by shard."""

    database_url: str
    audit_key: bytes
    keys: Mapping[int, Sequence[Verifier]]

    def __repr__(self) -> str:
        """Show neither the key nor the URL, which may hold a password."""
        return f"Subject({len(self.keys)} logs)"


def _verify_into(
    sender: Connection, database_url: str, audit_key: bytes, vkeys: Sequence[str], sizes: dict[int, int],
    passed: tuple[Checkpoint, ...],
) -> None:  # fmt: skip
    """Verify a ledger in a process of its own; send the report, or the reason why there is none."""
    os.nice(NICENESS)
    seal = RowSeal(audit_key)
    trust = Trust(keys=read_keys(vkeys), sizes=sizes, passed=passed)
    work = verify_ledger(database_url, seals={seal.key_id: seal}, progress=lambda *_: None, trust=trust, processes=1)
    try:
        sender.send(asyncio.run(work))
    except _UNCHECKED as error:
        sender.send(f"{type(error).__name__}: {error}")


class DailyVerification:
    """Every replica has one; the one that writes shard 0 does the work. Times are Unix ms of `clock`."""

    def __init__(
        self,
        statements: Statements,
        shards: Sequence[Shard],
        subject: Subject,
        *,
        replica: str,
        interval_s: int,
        memory: Callable[[], Awaitable[tuple[Checkpoint, ...]]],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        """`interval_s` lies between two verifications, and between the founding of the ledger and the first.

        memory  asks Redis for the trees that it remembers of the logs
        """
        self._statements = statements
        self._shards = shards
        self._subject = subject
        self._replica = replica
        self._interval_ms = interval_s * 1000
        self._clock = clock
        self._memory = memory
        self._last_ms: int | None = None
        self.integrity_errors = 0

    @property
    def age_s(self) -> float:
        """Seconds since the last verification ended, or since the ledger was founded; 0 before Postgres was asked."""
        return 0.0 if self._last_ms is None else max(0.0, (self._clock() - self._last_ms) / 1000)

    async def round(self) -> None:
        """Learn what the last verification found; verify if it is due and this process's turn.

        Raises what asyncpg raises, and TimeoutError.
        """
        await self._learn()
        if not self._shards[0].leading:
            return
        now = self._clock()
        rows = await self._statements.rows(
            query("claim_verification"), time_of(now), time_of(now + CLAIM_MS), time_of(now - self._interval_ms),
            time_of(now - RETRY_MS), self._replica,
        )  # fmt: skip
        if rows:
            await self._verify(rows[0]["verification_id"], rows[0]["sizes"] or [])
            await self._learn()

    async def _learn(self) -> None:
        row = (await self._statements.rows(query("last_verification")))[0]
        self._last_ms, self.integrity_errors = ms_of(row["ended_at"]), row["faults"]

    async def _verify(self, verification_id: Any, found_sizes: Sequence[int]) -> None:
        """Verify, and keep what was found; what could not be done is tried again later."""
        led = [shard for shard in self._shards if shard.leading]
        vkeys = [verifier.vkey for shard in led for verifier in self._subject.keys[shard.number]]
        sizes = {shard.number: shard.durable + 1 for shard in self._shards}
        for number, size in enumerate(found_sizes):
            sizes[number] = max(size, sizes.get(number, 0))
        try:
            report = await self._report(verification_id, vkeys, sizes, await self._remembered())
        except CannotCheckError as error:
            log.warning("ledger not verified", extra={"reason": str(error)})
            await self._finish(verification_id, None, None)
            return
        faults = sum(shard.first_bad is not None for shard in report.shards)
        faults += not report.ok and not faults
        if faults:
            bad = report.first_bad
            log.critical(
                "ledger tampered with",
                extra={"faults": faults, "reason": bad.reason if bad else "", "report": report_json(report)},
            )
        await self._finish(verification_id, faults, report)

    async def _remembered(self) -> tuple[Checkpoint, ...]:
        """Return what Redis remembers now, before the chains are read; nothing while it cannot be asked."""
        try:
            return await self._memory()
        except (MemoryUnreadable, redis.exceptions.RedisError, *TRANSIENT) as error:
            log.warning("verifying without what Redis remembers", extra={"reason": f"{type(error).__name__}: {error}"})
            return ()

    async def _report(
        self, verification_id: Any, vkeys: list[str], sizes: dict[int, int], passed: tuple[Checkpoint, ...]
    ) -> Report:
        """Return what a child process finds; it is killed when this is cancelled. Raises CannotCheckError."""
        receiver, sender = _SPAWN.Pipe(duplex=False)
        subject, loop, told = self._subject, asyncio.get_running_loop(), asyncio.Event()
        words = (sender, subject.database_url, subject.audit_key, vkeys, sizes, passed)
        child = _SPAWN.Process(target=_verify_into, args=words, daemon=True)
        child.start()
        sender.close()
        loop.add_reader(receiver.fileno(), told.set)
        try:
            while not await _within(told, BEAT_S):
                with contextlib.suppress(*TRANSIENT, asyncpg.PostgresError):
                    await self._statements.rows(
                        "UPDATE ledger_verifications SET claimed_until = $2 WHERE verification_id = $1",
                        verification_id, time_of(self._clock() + CLAIM_MS),
                    )  # fmt: skip
            found: Report | str = receiver.recv()
        except EOFError:
            found = "the verifying process has ended"
        finally:
            loop.remove_reader(receiver.fileno())
            receiver.close()
            child.kill()
            child.join()
        if isinstance(found, str):
            raise CannotCheckError(found)
        return found

    async def _finish(self, verification_id: Any, faults: int | None, report: Report | None) -> None:
        sizes = None if report is None else [shard.entries for shard in report.shards]
        await self._statements.rows(
            query("finish_verification"), verification_id, time_of(self._clock()), faults, sizes,
            None if report is None else report_json(report), None if report is None else _details(report, faults or 0),
        )  # fmt: skip


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but not longer than this; return whether it has come."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _details(report: Report, faults: int) -> str:
    """Return what the entry says: integers and texts only, as the canonical form wants."""
    bad = report.first_bad
    return orjson.dumps({
        "ok": report.ok, "faults": faults, "checked_at": report.checked_at, "took_ms": round(report.seconds * 1000),
        "accounts": report.accounts, "signatures_unchecked": report.signatures_unchecked,
        "shards": [{"shard": s.shard, "entries": s.entries, "signed_size": s.signed_size} for s in report.shards],
        "first_bad": None if bad is None else {"shard": bad.shard, "seq": bad.seq, "reason": bad.reason},
    }).decode()  # fmt: skip
