"""Erased data is told from missing data, and every destruction gets into the chain exactly once."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from app.clock import time_text
from app.privacy.payment import Payment
from app.privacy.store import Kept, PrivateStore
from app.privacy.tombstones import Claim, Evidence, enter_tombstones
from tests.privacy.conftest import NOW_MS, Clock

PAYMENT = Payment("4111111111111111", "John Doe", "12/27")
DAY_S = 86_400


class Chain:
    """Takes notes as the ledger does: one entry for one key. It can be cut off before and after an entry."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[str, dict[str, Any]]] = {}
        self.fails: str = ""

    async def __call__(self, kind: str, details: dict[str, Any]) -> None:
        if self.fails == "before":
            raise ConnectionError("no chain")
        self.entries.setdefault(details["entry_id"], (kind, details))
        if self.fails == "after":
            raise ConnectionError("no answer")


@pytest.fixture
def chain() -> Chain:
    return Chain()


def claim(kept: Kept, at_ms: int = NOW_MS) -> Claim:
    return Claim(kept.record_id, kept.commitment, kept.dek_id, time_text(at_ms), "payment")


async def states(owner: asyncpg.Connection[Any], chain: Chain, *claims: Claim) -> list[str]:
    evidence = await Evidence.read(owner, chain.entries.values())
    return [evidence.state(one) for one in claims]


async def test_a_record_is_verified_until_it_is_erased(
    store: PrivateStore, owner: asyncpg.Connection[Any], chain: Chain
) -> None:
    claims = [claim(await store.keep(f"r{i}", "t1", f"s{i}", PAYMENT)) for i in range(2)]
    before = await states(owner, chain, *claims)

    await store.erase("s0", request_id="q", basis="gdpr-17")
    between = await states(owner, chain, *claims)
    await enter_tombstones(store, chain)

    assert before == ["verified", "verified"]
    assert between == ["erased", "verified"]
    assert await states(owner, chain, *claims) == ["erased", "verified"]


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM private_records WHERE record_id = 'r1'", "UPDATE private_records SET commitment = sha256('x')",
     "UPDATE private_records SET record_id = 'r2'"],
)  # fmt: skip
async def test_a_record_that_went_without_a_tombstone_is_missing(
    store: PrivateStore, owner: asyncpg.Connection[Any], chain: Chain, statement: str
) -> None:
    one = claim(await store.keep("r1", "t1", "s1", PAYMENT))
    await owner.execute(statement)

    assert await states(owner, chain, one) == ["missing"]


async def test_what_its_period_ended_is_erased_and_what_is_younger_is_missing_when_it_goes(
    store: PrivateStore, owner: asyncpg.Connection[Any], chain: Chain, clock: Clock
) -> None:
    old = claim(await store.keep("old", "t1", "s1", PAYMENT))
    clock.now_ms += 10 * DAY_S * 1000
    young = claim(await store.keep("young", "t1", "s1", PAYMENT), clock.now_ms)

    await store.expire({"payment": 5 * DAY_S})
    await enter_tombstones(store, chain)
    kept = await states(owner, chain, old, young)
    await owner.execute("DELETE FROM private_records")

    assert kept == ["erased", "verified"]
    assert await states(owner, chain, old, young) == ["erased", "missing"]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_tombstone_is_entered_once_even_when_the_chain_was_away(
    store: PrivateStore, chain: Chain, moment: str
) -> None:
    await store.keep("r1", "t1", "s1", PAYMENT)
    await store.erase("s1", request_id="q", basis="gdpr-17")
    chain.fails = moment
    with pytest.raises(ConnectionError):
        await enter_tombstones(store, chain)

    chain.fails = ""
    entered = [await enter_tombstones(store, chain), await enter_tombstones(store, chain)]

    assert entered == [1, 0]
    assert len(chain.entries) == 1
