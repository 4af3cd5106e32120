"""The check of a key: one lookup, no I/O, and the same answer to everybody who is not let in."""

from __future__ import annotations

import asyncio

import pytest

from app.access.key_text import new_secret
from app.access.scope import ROOT, Key, covers, may_see, may_use, tenant_filter
from app.access.table import UNCONFIRMED_MAX_S, Denial, KeyTable, problem_of

ROOT_KEY = "the root key of this test"


class Clock:
    """Wall and elapsed time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def wall_ms(self) -> int:
        return int(self.now_s * 1000)

    def elapsed_s(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> KeyTable:
    return KeyTable(ROOT_KEY, wall_ms=clock.wall_ms, elapsed_s=clock.elapsed_s)


def bearer(text: str) -> str:
    return f"Bearer {text}"


def test_a_known_key_is_let_in_and_its_use_is_noted(table: KeyTable, clock: Clock) -> None:
    secret = new_secret()
    key = Key("key_a", "writer")
    table.replace({secret.hash: key})

    assert table.check(bearer(secret.text)) is key
    assert table.check("bEARER " + secret.text) is key
    assert table.take_used() == {"key_a": clock.wall_ms()}
    assert table.take_used() == {}


def test_the_check_does_not_await() -> None:
    assert not asyncio.iscoroutinefunction(KeyTable.check)


def test_the_root_key_is_admin_whatever_is_loaded(table: KeyTable, clock: Clock) -> None:
    assert table.check(bearer(ROOT_KEY)) is ROOT
    table.replace({})
    clock.now_s += UNCONFIRMED_MAX_S * 10

    assert table.check(bearer(ROOT_KEY)) is ROOT
    assert table.take_used() == {}


@pytest.mark.parametrize("header", [None, "", "Basic eDp5", ROOT_KEY, "Bearer", "Bearer" + ROOT_KEY])
def test_a_request_without_a_bearer_key_lacks_one(table: KeyTable, header: str | None) -> None:
    assert table.check(header) == Denial("missing")


@pytest.mark.parametrize("text", ["", " ", "x", "shx_live_", ROOT_KEY + " ", "\udcff"])
def test_what_is_no_key_is_refused_before_anything_was_loaded(table: KeyTable, text: str) -> None:
    assert table.check(bearer(text)) == Denial("malformed")


def test_an_unknown_key_is_refused_as_unknown_only_once_the_keys_are_loaded(table: KeyTable) -> None:
    stranger = bearer(new_secret().text)

    assert table.check(stranger) == Denial("unconfirmed")
    table.replace({})
    assert table.check(stranger) == Denial("unknown")


def test_a_key_ends_at_its_time_to_the_millisecond(table: KeyTable, clock: Clock) -> None:
    secret = new_secret()
    table.replace({secret.hash: Key("key_a", "reader", expires_at_ms=clock.wall_ms() + 1)})

    assert isinstance(table.check(bearer(secret.text)), Key)
    clock.now_s += 0.001
    assert table.check(bearer(secret.text)) == Denial("expired", "key_a")


def test_a_revoked_key_is_refused_by_name_even_when_nothing_is_confirmed(table: KeyTable, clock: Clock) -> None:
    secret = new_secret()
    table.replace({secret.hash: Key("key_a", "admin", revoked_at_ms=1)})
    clock.now_s += UNCONFIRMED_MAX_S * 2

    assert table.check(bearer(secret.text)) == Denial("revoked", "key_a")
    assert table.take_used() == {}


def test_known_keys_outlive_an_outage_of_postgres_for_a_named_time(table: KeyTable, clock: Clock) -> None:
    secret = new_secret()
    table.replace({secret.hash: Key("key_a", "writer")})

    clock.now_s += UNCONFIRMED_MAX_S
    assert isinstance(table.check(bearer(secret.text)), Key)
    clock.now_s += 1
    assert table.check(bearer(secret.text)) == Denial("unconfirmed", "key_a")
    table.confirm()
    assert isinstance(table.check(bearer(secret.text)), Key)


def test_nothing_is_confirmed_before_it_was_loaded(table: KeyTable) -> None:
    table.confirm()

    assert table.unconfirmed_s == float("inf")


def test_a_stored_hash_cannot_stand_for_the_root_key(table: KeyTable) -> None:
    from app.access.key_text import key_hash  # noqa: PLC0415 - only here

    table.replace({key_hash(ROOT_KEY): Key("key_a", "reader", revoked_at_ms=1)})

    assert table.check(bearer(ROOT_KEY)) is ROOT


def test_every_reason_of_a_bad_key_has_the_same_answer() -> None:
    bad = [problem_of(Denial(reason, "key_a")) for reason in ("missing", "malformed", "unknown", "revoked", "expired")]

    assert {(p.status, p.code, p.detail, str(p.headers)) for p in bad} == {
        (401, "unauthorized", bad[0].detail, "{'WWW-Authenticate': 'Bearer'}")
    }
    away = problem_of(Denial("unconfirmed"))
    assert (away.status, away.code) == (503, "unavailable")


def test_use_that_could_not_be_written_is_kept_unless_newer(table: KeyTable, clock: Clock) -> None:
    secret = new_secret()
    table.replace({secret.hash: Key("key_a", "reader")})
    table.check(bearer(secret.text))
    lost = table.take_used()
    clock.now_s += 5
    table.check(bearer(secret.text))

    table.put_back_used(lost | {"key_b": 7})

    assert table.take_used() == {"key_a": clock.wall_ms(), "key_b": 7}


def test_a_tenant_outside_a_keys_limit_does_not_exist_for_it() -> None:
    limited, free = Key("k", "writer", tenants=frozenset({"b", "a"})), Key("k", "writer")

    assert [may_see(limited, tenant) for tenant in ("a", "b", "c", "")] == [True, True, False, False]
    assert may_see(free, "c")
    assert (tenant_filter(limited), tenant_filter(free)) == (["a", "b"], None)


def test_a_service_outside_a_keys_limit_is_closed_to_it() -> None:
    key = Key("k", "writer", services=frozenset({"shadow"}))

    assert [may_use(key, service) for service in ("shadow", "credits", "")] == [True, False, True]
    assert may_use(Key("k", "writer"), "locator")


def test_a_key_covers_only_what_it_reaches_itself() -> None:
    limited = Key("k", "admin", tenants=frozenset({"a", "b"}), services=frozenset({"credits"}))

    assert covers(limited, ["a"], ["credits"])
    assert not covers(limited, None, ["credits"])
    assert not covers(limited, ["a", "c"], ["credits"])
    assert not covers(limited, ["a"], None)
    assert covers(Key("k", "admin"), None, None)
