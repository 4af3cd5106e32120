"""Pending entries reach the chain at least once, one replica at a time, oldest first."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from app.actor import InboxFull
from app.audit import pending
from app.audit.pending import PendingEntries
from app.db.statements import Statements


class Chain:
    """Takes entries, or fails with what it is told to."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.fault: Exception | None = None

    async def record(self, kind: str, details: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        self.entries.append((kind, details))


async def write(owner: asyncpg.Connection[Any], count: int) -> None:
    await owner.execute(
        "INSERT INTO pending_entries (kind, details, at) "
        "SELECT 'key.create', json_build_object('n', n), now() + n * interval '1 ms' FROM generate_series(1, $1::int) n",
        count,
    )


async def test_every_entry_is_recorded_once_in_its_order(owner: asyncpg.Connection[Any], statements: Statements) -> None:
    chain = Chain()
    await write(owner, 5)
    drain = PendingEntries(statements, chain.record)

    counts = [await drain.drain(), await drain.drain()]

    assert counts == [5, 0]
    assert [details["n"] for _, details in chain.entries] == [1, 2, 3, 4, 5]
    assert {kind for kind, _ in chain.entries} == {"key.create"}
    assert len({details["entry_id"] for _, details in chain.entries}) == 5
    assert all(details["at"].endswith("Z") for _, details in chain.entries)


async def test_replicas_do_not_take_the_same_entry(owner: asyncpg.Connection[Any], statements: Statements) -> None:
    chain = Chain()
    await write(owner, 150)

    await asyncio.gather(*(PendingEntries(statements, chain.record).drain() for _ in range(4)))
    await PendingEntries(statements, chain.record).drain()

    assert sorted(details["n"] for _, details in chain.entries) == list(range(1, 151))


async def test_what_a_dead_replica_claimed_comes_again_under_the_same_id(
    owner: asyncpg.Connection[Any], statements: Statements
) -> None:
    chain = Chain()
    await write(owner, 1)
    chain.fault = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        await PendingEntries(statements, chain.record).drain()
    chain.fault = None

    before = await PendingEntries(statements, chain.record).drain()
    await owner.execute("UPDATE pending_entries SET claimed_until = now() - interval '1 second'")
    after = await PendingEntries(statements, chain.record).drain()

    assert (before, after) == (0, 1)
    assert chain.entries[0][1]["entry_id"] == str(await owner.fetchval("SELECT entry_id FROM pending_entries"))


async def test_a_chain_that_is_closed_for_a_while_is_waited_for(
    owner: asyncpg.Connection[Any], statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "CLAIM_S", 0.02)
    monkeypatch.setattr(pending, "DRAIN_INTERVAL_S", 0.02)
    chain, faults = Chain(), []
    chain.fault = InboxFull("full")
    await write(owner, 2)
    drain = PendingEntries(statements, chain.record)
    drain.start(faults.append)
    while not await owner.fetchval("SELECT count(*) FROM pending_entries WHERE claimed_until IS NOT NULL"):
        await asyncio.sleep(0.01)
    chain.fault = None

    while await owner.fetchval("SELECT count(*) FROM pending_entries WHERE recorded_at IS NULL"):
        await asyncio.sleep(0.01)

    await drain.stop()
    assert {details["n"] for _, details in chain.entries} == {1, 2}
    assert faults == []
