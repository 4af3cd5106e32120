"""Reads of the chain become entries: the first at once, those after it as a count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.access.audit_reads import READERS_MAX, SUMMARY_INTERVAL_S, AuditReads
from tests.access.conftest import until

ROUTE = "/v1/audit/entries"


class Chain:
    """Takes entries, or refuses them while it is closed; keeps the time of the test."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.closed = False
        self.asked = 0
        self.now_s = 0.0

    async def record(self, kind: str, details: dict[str, Any]) -> None:
        self.asked += 1
        if self.closed:
            raise ConnectionError("closed")
        assert kind == "audit.read"
        self.entries.append(details)

    def elapsed_s(self) -> float:
        return self.now_s

    @property
    def told(self) -> int:
        return sum(details["reads"] for details in self.entries)


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def reads(chain: Chain) -> AuditReads:
    return AuditReads(chain.record, elapsed_s=chain.elapsed_s)


async def test_a_thousand_pages_are_two_entries(reads: AuditReads, chain: Chain) -> None:
    for _ in range(1_000):
        reads.note("key_a", "GET", ROUTE)
        await reads.flush()
    chain.now_s += SUMMARY_INTERVAL_S
    await reads.flush()
    await reads.flush()

    assert chain.entries == [
        {"key_id": "key_a", "route": f"GET {ROUTE}", "reads": 1}, {"key_id": "key_a", "route": f"GET {ROUTE}", "reads": 999},
    ]  # fmt: skip


async def test_every_key_and_route_has_an_entry_of_its_own(reads: AuditReads, chain: Chain) -> None:
    for key_id in ("key_a", "key_b"):
        for route in (ROUTE, "/tiles/{shard}/{tile:.+}"):
            reads.note(key_id, "GET", route)
    await reads.flush()

    assert len({(one["key_id"], one["route"]) for one in chain.entries}) == 4


async def test_a_reader_that_comes_back_later_is_told_at_once_again(reads: AuditReads, chain: Chain) -> None:
    for _ in range(3):
        reads.note("key_a", "GET", ROUTE)
        await reads.flush()
        chain.now_s += SUMMARY_INTERVAL_S
        await reads.flush()

    assert [one["reads"] for one in chain.entries] == [1, 1, 1]


async def test_what_the_chain_does_not_take_is_told_later(reads: AuditReads, chain: Chain) -> None:
    chain.closed = True
    for _ in range(5):
        reads.note("key_a", "GET", ROUTE)
        await reads.flush()
    chain.closed = False
    await reads.flush()

    assert [one["reads"] for one in chain.entries] == [5]


async def test_a_chain_that_is_away_is_asked_once(reads: AuditReads, chain: Chain) -> None:
    chain.closed = True
    for number in range(50):
        reads.note(f"key_{number}", "GET", ROUTE)
    await reads.flush(everything=True)

    assert chain.asked == 1


async def test_more_readers_than_are_told_apart_are_counted_together(reads: AuditReads, chain: Chain) -> None:
    for number in range(READERS_MAX + 7):
        reads.note(f"key_{number}", "GET", ROUTE)
    await reads.flush()

    assert chain.entries[-1] == {"key_id": "", "route": "", "reads": 7}
    assert chain.told == READERS_MAX + 7


async def test_the_end_tells_what_is_untold(reads: AuditReads, chain: Chain) -> None:
    reads.start()
    reads.note("key_a", "GET", ROUTE)
    await until(lambda: chain.told == 1, "the first read is told")
    reads.note("key_a", "GET", ROUTE)
    await asyncio.sleep(0)
    await reads.stop()

    assert chain.told == 2
