"""The entrance of a route: who is let in, what everybody else is told, and what is noted of it."""

from __future__ import annotations

from typing import Any

import pytest

from app.access.audit_reads import AuditReads
from app.access.bucket import Bucket
from app.access.denials import DenialLog
from app.access.gate import Gate
from app.access.key_text import Secret, new_secret
from app.access.matrix import OPEN, RIGHTS
from app.access.rates import TenantRates, rate_of
from app.access.scope import ROOT, Key, Rate
from app.access.table import KeyTable
from app.web.problems import Problem

CONSUME = ("POST", "/v1/credits/consume")
KEYS = ("POST", "/v1/keys")


class Entries:
    """What would become entries."""

    def __init__(self) -> None:
        self.denied: list[tuple[str, str | None, str]] = []
        self.reads: list[dict[str, Any]] = []

    async def read(self, _kind: str, details: dict[str, Any]) -> None:
        self.reads.append(details)

    async def record(self, _kind: str, details: dict[str, Any]) -> None:
        self.denied.append((details["reason"], details["key_id"], details["network"]))


class House:
    """A gate with one key behind it."""

    def __init__(self) -> None:
        self.entries = Entries()
        self.denials = DenialLog(self.entries.record)
        self.table = KeyTable("the root key")
        self.reads = AuditReads(self.entries.read)
        self.gate = Gate(self.table, self.denials, self.reads)

    def give(self, key: Key) -> Secret:
        secret = new_secret()
        self.table.replace({secret.hash: key})
        return secret

    async def enter(self, row: tuple[str, str], text: str | None) -> Key | tuple[int, str]:
        entered = self.gate.entrance(*row)(None if text is None else f"Bearer {text}", lambda: "203.0.113.9")
        await self.denials.flush()
        return (entered.status, entered.code) if isinstance(entered, Problem) else entered


@pytest.fixture
def house() -> House:
    return House()


async def test_who_has_the_right_is_let_in_and_nothing_is_noted(house: House) -> None:
    key = Key("key_a", "writer")
    secret = house.give(key)

    assert await house.enter(CONSUME, secret.text) is key
    assert await house.enter(KEYS, "the root key") is ROOT
    assert house.entries.denied == []


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (Key("key_a", "reader"), "forbidden"),
        (Key("key_a", "writer", services=frozenset({"locator"})), "forbidden"),
    ],
)
async def test_a_key_without_the_right_gets_403_and_is_noted(house: House, key: Key, reason: str) -> None:
    assert await house.enter(CONSUME, house.give(key).text) == (403, "forbidden")
    assert house.entries.denied == [(reason, "key_a", "203.0.113.0/24")]


async def test_every_bad_key_gets_the_same_401_and_its_reason_is_noted(house: House) -> None:
    revoked = house.give(Key("key_a", "admin", revoked_at_ms=1))

    answers = [await house.enter(CONSUME, text) for text in (None, "x", new_secret().text, revoked.text)]

    assert answers == [(401, "unauthorized")] * 4
    assert [(reason, key_id) for reason, key_id, _ in house.entries.denied] == [
        ("missing", None), ("malformed", None), ("unknown", None), ("revoked", "key_a"),
    ]  # fmt: skip


async def test_keys_that_cannot_be_confirmed_are_no_attempt(house: House) -> None:
    assert await house.enter(CONSUME, new_secret().text) == (503, "unavailable")
    assert house.entries.denied == []


async def test_a_foreign_tenant_is_noted(house: House) -> None:
    key = Key("key_a", "writer", tenants=frozenset({"acme"}))

    seen = [house.gate.sees(key, tenant, *CONSUME, lambda: "198.51.100.7") for tenant in ("acme", "other")]
    await house.denials.flush()

    assert seen == [True, False]
    assert house.entries.denied == [("foreign_tenant", "key_a", "198.51.100.0/24")]


def test_a_route_that_stands_nowhere_has_no_entrance(house: House) -> None:
    for row in (("GET", "/v1/new"), ("PUT", "/v1/keys"), *OPEN):
        with pytest.raises(LookupError, match=row[1]):
            house.gate.entrance(*row)
    for row in RIGHTS:
        assert callable(house.gate.entrance(*row))


def test_a_request_draws_from_the_buckets_of_its_key_and_its_tenant() -> None:
    rates = TenantRates()
    rates.replace({"acme": rate_of('{"rate":10,"burst":5}')})
    free, limited = Key("k", "writer"), Key("k", "writer", rate=Rate(0.5, 1))
    of_key, of_tenant = Bucket("key", "k", 500, 1), Bucket("tenant", "acme", 10_000, 5)

    assert rates.buckets(free, None) == rates.buckets(free, "other") == ()
    assert rates.buckets(limited, None) == rates.buckets(limited, "other") == (of_key,)
    assert rates.buckets(free, "acme") == (of_tenant,)
    assert rates.buckets(limited, "acme") == (of_key, of_tenant)


async def test_who_reads_entries_is_noted_and_nobody_else(house: House) -> None:
    secret = house.give(Key("key_a", "auditor"))

    for row in (("GET", "/v1/accounts"), ("GET", "/v1/audit/checkpoint"), ("GET", "/v1/audit/entries"), CONSUME):
        await house.enter(row, secret.text)
    await house.reads.flush()

    assert house.entries.reads == [{"key_id": "key_a", "route": "GET /v1/audit/entries", "reads": 1}]
