"""Making, listing, rotating and ending keys, against a real Postgres."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import orjson
import pytest

from app.access import calls
from app.access import store as store_module
from app.access.calls import KeyRate, NewKey, Rotation
from app.access.key_text import is_well_formed, key_hash
from app.access.scope import ROOT, Key
from app.access.store import KeyStore
from app.web.problems import Problem

Connection = asyncpg.Connection
WRITER = NewKey(name="gateway", role="writer", tenants=["b", "a"], services=["credits"])


def soon(**delta: float) -> datetime:
    return datetime.now(UTC) + timedelta(**delta)


async def entries(owner: Connection) -> list[tuple[str, dict[str, Any]]]:
    rows = await owner.fetch("SELECT kind, details::text FROM pending_entries ORDER BY at")
    return [(row[0], orjson.loads(row[1])) for row in rows]


async def refusal(work: Any) -> tuple[int, str]:
    with pytest.raises(Problem) as refused:
        await work
    return refused.value.status, refused.value.code


async def test_a_key_is_shown_once_and_only_its_hash_is_kept(store: KeyStore, owner: Connection) -> None:
    made = await calls.create(WRITER, ROOT, store)

    assert is_well_formed(made.key)
    assert (made.role, made.tenants, made.services, made.status) == ("writer", ["a", "b"], ["credits"], "active")
    row = dict(await owner.fetchrow("SELECT * FROM api_keys"))
    assert row["hash"] == key_hash(made.key)
    secret = made.key[len(made.shown) :]
    dump = str(await owner.fetch("SELECT k::text FROM api_keys k UNION ALL SELECT p::text FROM pending_entries p"))
    assert secret not in dump
    listed, _ = await calls.list_keys(ROOT, store, "", 10)
    assert secret not in msgspec.json.encode(listed).decode()
    assert [key.key_id for key in listed] == [made.key_id]


async def test_every_change_and_what_is_said_of_it_are_one(store: KeyStore, owner: Connection) -> None:
    made = await calls.create(WRITER, ROOT, store)
    rotated = await calls.rotate(made.key_id, Rotation(overlap_seconds=60), ROOT, store)
    await calls.revoke(rotated.key_id, Key("key_x", "admin"), store)

    told = await entries(owner)

    assert [kind for kind, _ in told] == ["key.create", "key.rotate", "key.revoke"]
    assert told[0][1] == {
        "actor": "root", "key_id": made.key_id, "role": "writer", "tenants": ["b", "a"], "services": ["credits"],
        "expires_at": None, "rate_milli": None, "burst": None, "hash": key_hash(made.key).hex(),
    }  # fmt: skip
    assert (told[1][1]["new_key_id"], told[1][1]["hash"]) == (rotated.key_id, key_hash(rotated.key).hex())
    assert told[2][1] == {"actor": "key_x", "key_id": rotated.key_id}


async def test_what_is_said_fits_into_an_entry(store: KeyStore, owner: Connection) -> None:
    made = await calls.create(
        msgspec.structs.replace(WRITER, rate_limit=KeyRate(rate=0.5, burst=9), expires_at=soon(days=1)), ROOT, store
    )
    await calls.rotate(made.key_id, Rotation(), ROOT, store)

    def fits(value: Any) -> bool:
        if isinstance(value, dict):
            return all(re.fullmatch("[a-z0-9_]+", name) and fits(one) for name, one in value.items())
        return all(map(fits, value)) if isinstance(value, list) else isinstance(value, str | int | bool | None)

    told = await entries(owner)
    assert all(fits(details) for _, details in told)
    assert (told[0][1]["rate_milli"], told[0][1]["burst"]) == (500, 9)


async def test_a_change_that_fails_says_nothing(store: KeyStore, owner: Connection) -> None:
    await owner.execute("ALTER TABLE api_keys ADD CHECK (name <> 'gateway')")

    with pytest.raises(asyncpg.CheckViolationError):
        await calls.create(WRITER, ROOT, store)

    assert await entries(owner) == []


async def test_rotation_leaves_both_keys_valid_for_the_overlap(store: KeyStore) -> None:
    made = await calls.create(msgspec.structs.replace(WRITER, rate_limit=KeyRate(rate=5.0, burst=9)), ROOT, store)

    new = await calls.rotate(made.key_id, Rotation(overlap_seconds=3600), ROOT, store)

    old = await calls.read(made.key_id, ROOT, store)
    assert (new.role, new.tenants, new.services, new.rate_limit) == (old.role, old.tenants, old.services, old.rate_limit)
    assert (old.status, old.replaced_by, new.replaces) == ("rotated", new.key_id, old.key_id)
    assert old.expires_at == new.old_expires_at
    left = datetime.fromisoformat(new.old_expires_at) - datetime.now(UTC)
    assert timedelta(seconds=3590) < left <= timedelta(seconds=3600)
    assert new.key != made.key


async def test_rotation_never_prolongs_the_old_key(store: KeyStore) -> None:
    end = soon(minutes=5)
    made = await calls.create(msgspec.structs.replace(WRITER, expires_at=end), ROOT, store)

    new = await calls.rotate(made.key_id, Rotation(overlap_seconds=86_400), ROOT, store)

    assert new.old_expires_at == made.expires_at
    lifetime = datetime.fromisoformat(new.expires_at or "") - datetime.fromisoformat(new.created_at)
    assert abs(lifetime - timedelta(minutes=5)) < timedelta(seconds=2)


async def test_rotation_without_overlap_ends_the_old_key_at_once(store: KeyStore) -> None:
    made = await calls.create(WRITER, ROOT, store)

    await calls.rotate(made.key_id, Rotation(overlap_seconds=0), ROOT, store)

    assert (await calls.read(made.key_id, ROOT, store)).status == "expired"


async def test_a_key_has_one_successor_even_when_two_ask_at_once(store: KeyStore) -> None:
    made = await calls.create(WRITER, ROOT, store)

    results = await asyncio.gather(
        *(calls.rotate(made.key_id, Rotation(), ROOT, store) for _ in range(4)), return_exceptions=True
    )

    codes = [result.code for result in results if isinstance(result, Problem)]
    assert codes == ["key_rotated"] * 3
    assert len((await calls.list_keys(ROOT, store, "", 10))[0]) == 2


async def test_an_ended_key_has_no_successor(store: KeyStore, owner: Connection) -> None:
    first, second = await calls.create(WRITER, ROOT, store), await calls.create(WRITER, ROOT, store)
    await calls.revoke(first.key_id, ROOT, store)
    await owner.execute("UPDATE api_keys SET expires_at = now() WHERE key_id = $1", second.key_id)

    assert await refusal(calls.rotate(first.key_id, Rotation(), ROOT, store)) == (409, "key_revoked")
    assert await refusal(calls.rotate(second.key_id, Rotation(), ROOT, store)) == (409, "key_expired")


async def test_revoking_twice_is_revoking_once(store: KeyStore, owner: Connection) -> None:
    made = await calls.create(WRITER, ROOT, store)

    first = await calls.revoke(made.key_id, ROOT, store)
    second = await calls.revoke(made.key_id, ROOT, store)

    assert (first.status, first.revoked_at) == ("revoked", second.revoked_at)
    assert [kind for kind, _ in await entries(owner)] == ["key.create", "key.revoke"]


async def test_a_limited_admin_makes_and_sees_only_what_it_reaches_itself(store: KeyStore) -> None:
    outside = await calls.create(WRITER, ROOT, store)
    actor = Key("key_t", "admin", tenants=frozenset({"a"}), services=frozenset({"credits"}))

    inherited = await calls.create(NewKey(name="x", role="reader"), actor, store)

    assert (inherited.tenants, inherited.services) == (["a"], ["credits"])
    assert await refusal(calls.create(WRITER, actor, store)) == (403, "forbidden")
    assert [key.key_id for key in (await calls.list_keys(actor, store, "", 10))[0]] == [inherited.key_id]
    for call in (calls.read, calls.revoke):
        assert await refusal(call(outside.key_id, actor, store)) == (404, "no_key")
    assert await refusal(calls.rotate(outside.key_id, Rotation(), actor, store)) == (404, "no_key")
    assert await refusal(calls.read("key_" + "0" * 16, ROOT, store)) == (404, "no_key")


async def test_a_key_that_ends_makes_none_that_outlives_it(store: KeyStore) -> None:
    end = soon(hours=1)
    actor = Key("key_t", "admin", expires_at_ms=int(end.timestamp() * 1000))

    forever = await calls.create(NewKey(name="x", role="reader"), actor, store)
    longer = await calls.create(NewKey(name="x", role="reader", expires_at=soon(days=1)), actor, store)

    for key in (forever, longer):
        assert abs(datetime.fromisoformat(key.expires_at or "") - end) < timedelta(seconds=1)


async def test_an_end_in_the_past_is_refused(store: KeyStore) -> None:
    body = msgspec.structs.replace(WRITER, expires_at=soon(seconds=-1))

    assert await refusal(calls.create(body, ROOT, store)) == (422, "invalid_request")


async def test_there_are_no_more_keys_than_the_limit(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEYS_MAX", 2)
    made = [await calls.create(WRITER, ROOT, store) for _ in range(2)]

    assert await refusal(calls.create(WRITER, ROOT, store)) == (409, "too_many_keys")
    await calls.revoke(made[0].key_id, ROOT, store)
    await calls.create(WRITER, ROOT, store)


async def test_pages_hold_every_key_once(store: KeyStore) -> None:
    made = {(await calls.create(WRITER, ROOT, store)).key_id for _ in range(5)}

    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page, after = await calls.list_keys(ROOT, store, after, 2)
        seen += [key.key_id for key in page]

    assert seen == sorted(made)


@pytest.mark.parametrize(
    "body",
    [
        {"role": "writer"}, {"name": "x"}, {"name": "", "role": "writer"}, {"name": "x", "role": "root"},
        {"name": "x", "role": "writer", "tenants": []}, {"name": "x", "role": "writer", "services": ["billing"]},
        {"name": "x\u0000", "role": "writer"}, {"name": "x", "role": "writer", "key": "mine"},
        {"name": "x", "role": "writer", "rate_limit": {"rate": 0, "burst": 1}},
        {"name": "x", "role": "writer", "tenants": ["a/b"]},
    ],
)  # fmt: skip
def test_a_body_that_means_nothing_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, NewKey)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE api_keys SET role = 'admin'", "UPDATE api_keys SET hash = sha256('x')", "UPDATE api_keys SET tenants = NULL",
     "DELETE FROM api_keys", "TRUNCATE api_keys CASCADE", "DELETE FROM pending_entries", "UPDATE pending_entries SET kind = 'x'",
     "DROP TRIGGER api_keys_changed ON api_keys"],
)  # fmt: skip
async def test_the_server_cannot_change_what_a_key_may_do(owner: Connection, statement: str) -> None:
    await owner.execute("SET ROLE shieldx_app")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await owner.execute(statement)
