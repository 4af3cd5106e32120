"""All parts of access together, on real stores."""

from __future__ import annotations

from typing import Any

from app.access import calls
from app.access.calls import KeyRate, NewKey
from app.access.opening import Access
from app.access.scope import ROOT, Key
from app.db.postgres import open_session
from app.db.redis import RedisLink
from app.db.statements import Statements
from app.db.topology import make_topology
from app.web.problems import Problem
from tests.access.conftest import until

READ = ("GET", "/v1/accounts")
WRITE = ("POST", "/v1/credits/topup")


async def test_a_key_lives_from_its_making_to_its_end(statements: Statements, database_url: str, redis_url: str) -> None:
    entries: list[tuple[str, dict[str, Any]]] = []
    faults: list[BaseException] = []

    async def record(kind: str, details: dict[str, Any]) -> None:
        entries.append((kind, details))

    access = Access("the root key", record)
    read, write = access.gate.entrance(*READ), access.gate.entrance(*WRITE)
    early = read("Bearer the root key", lambda: None), read("Bearer shx_live_x", lambda: None)
    access.open(statements, lambda: open_session(database_url), RedisLink(make_topology(redis_url), "{t}:"), faults.append)
    assert access.store is not None
    assert access.limits is not None

    made = await calls.create(NewKey(name="x", role="reader", rate_limit=KeyRate(rate=0.01, burst=2)), ROOT, access.store)
    header = f"Bearer {made.key}"
    await until(lambda: isinstance(read(header, lambda: None), Key), "the key")
    key = read(header, lambda: None)
    assert isinstance(key, Key)
    refused = write(header, lambda: "2001:db8:7:8::1")
    await until(lambda: access.limits is not None and access.limits.reachable, "Redis")
    decisions = [await access.limits.check(access.rates.buckets(key, "acme")) for _ in range(3)]
    await calls.revoke(made.key_id, ROOT, access.store)
    await until(lambda: isinstance(read(header, lambda: None), Problem), "the end of the key")
    await access.close()

    assert early[0] is ROOT
    assert isinstance(early[1], Problem)
    assert isinstance(refused, Problem)
    assert [one.allowed for one in decisions] == [True, True, False]
    assert (await calls.read(made.key_id, ROOT, access.store)).last_used_at is not None
    assert {details.get("reason") for _, details in entries} >= {"malformed", "forbidden", "revoked"}
    assert {details.get("network") for _, details in entries} >= {"2001:db8:7::/48"}
    assert faults == []
