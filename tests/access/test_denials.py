"""Denied attempts become entries, slowly, and what is left out is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.access.denials import (
    QUEUE_MAX,
    SOURCE_BURST,
    SOURCE_INTERVAL_S,
    SOURCES_MAX,
    TOTAL_BURST,
    TOTAL_INTERVAL_S,
    DenialLog,
    network_of,
)
from tests.access.conftest import until


class Chain:
    """Takes entries, or refuses them while it is closed; keeps the time of the test."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.closed = False
        self.now_s = 0.0

    async def record(self, kind: str, details: dict[str, Any]) -> None:
        if self.closed:
            raise ConnectionError("closed")
        self.entries.append((kind, details))

    def elapsed_s(self) -> float:
        return self.now_s

    @property
    def told(self) -> int:
        """Denials that the entries speak of, those that are only counted included."""
        return sum((kind == "access.denied") + details["left_out"] for kind, details in self.entries)


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def denials(chain: Chain) -> DenialLog:
    return DenialLog(chain.record, elapsed_s=chain.elapsed_s)


def attempt(denials: DenialLog, key_id: str | None = None, address: str = "203.0.113.7") -> None:
    denials.note("unknown", "GET", "/v1/accounts", key_id=key_id, address=address)


async def test_a_denial_is_an_entry_without_the_address_itself(denials: DenialLog, chain: Chain) -> None:
    attempt(denials)
    await denials.flush()

    assert chain.entries == [
        ("access.denied", {"reason": "unknown", "method": "GET", "route": "/v1/accounts", "key_id": None,
                           "network": "203.0.113.0/24", "left_out": 0})
    ]  # fmt: skip


async def test_a_flood_from_one_source_is_a_few_entries_and_a_count(denials: DenialLog, chain: Chain) -> None:
    for number in range(1_000):
        attempt(denials, address=f"203.0.113.{number % 256}")
    await denials.flush()

    assert [kind for kind, _ in chain.entries] == ["access.denied"] * SOURCE_BURST
    assert chain.told == denials.denied.total() == 1_000


async def test_a_source_may_speak_again_after_a_while(denials: DenialLog, chain: Chain) -> None:
    for _ in range(SOURCE_BURST + 3):
        attempt(denials)
    await denials.flush()
    for _ in range(2):
        chain.now_s += SOURCE_INTERVAL_S
        attempt(denials)
        attempt(denials)
    await denials.flush()

    assert [details["left_out"] for _, details in chain.entries] == [3, *[0] * (SOURCE_BURST - 1), 2, 0]
    assert chain.told == denials.denied.total()


async def test_many_sources_together_have_a_limit_too(denials: DenialLog, chain: Chain) -> None:
    for number in range(TOTAL_BURST * 3):
        attempt(denials, key_id=f"key_{number}")
    await denials.flush()
    chain.now_s += 10 * TOTAL_INTERVAL_S
    for number in range(20):
        attempt(denials, key_id=f"other_{number}")
    await denials.flush()

    assert sum(kind == "access.denied" for kind, _ in chain.entries) == TOTAL_BURST + 10
    assert chain.told == denials.denied.total()


async def test_what_was_only_counted_is_told_in_the_end(denials: DenialLog, chain: Chain) -> None:
    for _ in range(SOURCE_BURST):
        attempt(denials)
    await denials.flush()
    for _ in range(7):
        attempt(denials)

    await denials.flush(summary=False)
    before = len(chain.entries)
    await denials.flush()

    assert (before, chain.entries[-1]) == (SOURCE_BURST, ("access.denied_many", {"left_out": 7}))


async def test_a_closed_chain_loses_no_count(denials: DenialLog, chain: Chain) -> None:
    chain.closed = True
    for _ in range(SOURCE_BURST + 2):
        attempt(denials)
    await denials.flush()
    chain.closed = False

    await denials.flush()

    assert chain.entries == [("access.denied_many", {"left_out": SOURCE_BURST + 2})]


async def test_memory_is_bounded(denials: DenialLog, chain: Chain) -> None:
    for number in range(SOURCES_MAX + 100):
        chain.now_s += TOTAL_INTERVAL_S
        attempt(denials, key_id=f"key_{number}")

    assert len(denials._sources) == SOURCES_MAX
    assert len(denials._queue) == QUEUE_MAX
    assert denials.left_out == SOURCES_MAX + 100 - QUEUE_MAX


async def test_denials_are_recorded_in_the_background(denials: DenialLog, chain: Chain) -> None:
    denials.start()
    attempt(denials)
    await until(lambda: chain.told == 1, "the entry")
    attempt(denials)

    await denials.stop()

    assert chain.told == 2


async def test_an_entry_that_is_cut_off_by_the_end_is_counted(denials: DenialLog, chain: Chain) -> None:
    hanging = asyncio.Event()

    async def hang(kind: str, details: dict[str, Any]) -> None:
        hanging.set()
        await asyncio.Event().wait()

    denials._record = hang
    denials.start()
    attempt(denials)
    await hanging.wait()
    denials._record = chain.record

    await denials.stop()

    assert chain.entries == [("access.denied_many", {"left_out": 1})]


@pytest.mark.parametrize(
    ("address", "network"),
    [("203.0.113.77", "203.0.113.0/24"), ("::ffff:203.0.113.77", "203.0.113.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48"),
     ("fe80::1%eth0", "fe80::/48"), ("", "unknown"), (None, "unknown"), ("example.com", "unknown")],
)  # fmt: skip
def test_an_address_becomes_a_network(address: str | None, network: str) -> None:
    assert network_of(address) == network
