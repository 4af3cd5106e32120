"""/v1/keys over real sockets, with the gate of the server in front."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from app.access.api import ACCESS, KEY_ROUTES
from app.access.opening import Access
from app.access.scope import Key
from app.access.table import Denial
from app.db.postgres import open_session
from app.db.redis import RedisLink
from app.db.statements import Statements
from app.db.topology import make_topology
from tests.access.conftest import until
from tests.route_client import call, serving

ROOT_KEY = "the root key of this test"


class Client:
    """Calls the server as whoever holds a key."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(self, method: str, path: str, body: Any = None, *, key: str = ROOT_KEY) -> tuple[int, Any]:
        reply = await call(self._session, method, path, body, key=key)
        return reply.status, reply.body


@pytest.fixture
async def access() -> Access:
    async def record(_kind: str, _details: dict[str, Any]) -> None:
        return None

    return Access(ROOT_KEY, record)


@pytest.fixture
async def client(access: Access) -> AsyncIterator[Client]:
    """A client of a server whose access is not open yet."""
    app = web.Application()
    app[ACCESS] = access

    def authenticate(header: str) -> Key | None:
        found = access.table.check(header)
        return None if isinstance(found, Denial) else found

    async with serving(app, KEY_ROUTES, authenticate) as session:
        yield Client(session)


@pytest.fixture
async def opened(access: Access, statements: Statements, database_url: str, redis_url: str) -> AsyncIterator[Access]:
    faults: list[BaseException] = []
    access.open(statements, lambda: open_session(database_url), RedisLink(make_topology(redis_url), "{t}:"), faults.append)
    yield access
    await access.close()
    assert faults == []


async def test_a_key_is_made_used_rotated_and_ended(client: Client, opened: Access) -> None:
    status, made = await client.call("POST", "/v1/keys", {"name": "ops", "role": "admin", "tenants": ["acme"]})
    assert status == 201
    await until(lambda: isinstance(opened.table.check(f"Bearer {made['key']}"), Key), "the key")

    status, page = await client.call("GET", "/v1/keys?limit=1", key=made["key"])
    assert (status, page["next_cursor"]) == (200, None)
    assert [key["key_id"] for key in page["data"]] == [made["key_id"]]
    assert "key" not in page["data"][0]

    status, rotated = await client.call("POST", f"/v1/keys/{made['key_id']}/rotate")
    assert (status, rotated["replaces"]) == (201, made["key_id"])
    again = await client.call("POST", f"/v1/keys/{made['key_id']}/rotate", {"overlap_seconds": 5})
    assert (again[0], again[1]["code"]) == (409, "key_rotated")

    status, ended = await client.call("DELETE", f"/v1/keys/{made['key_id']}")
    assert (status, ended["status"]) == (200, "revoked")
    await until(lambda: isinstance(opened.table.check(f"Bearer {made['key']}"), Denial), "the end")
    assert (await client.call("GET", "/v1/keys", key=made["key"]))[0] == 401
    assert (await client.call("GET", f"/v1/keys/{made['key_id']}"))[1]["status"] == "revoked"


async def test_pages_go_on_where_the_one_before_ended(client: Client, opened: Access) -> None:
    made = {(await client.call("POST", "/v1/keys", {"name": "x", "role": "reader"}))[1]["key_id"] for _ in range(3)}

    _, first = await client.call("GET", "/v1/keys?limit=2")
    _, second = await client.call("GET", f"/v1/keys?limit=2&cursor={first['next_cursor']}")

    assert {key["key_id"] for key in first["data"] + second["data"]} == made
    assert second["next_cursor"] is None
    assert (await client.call("GET", "/v1/keys?cursor=mine"))[0] == 422


async def test_a_role_without_the_right_gets_403(client: Client, opened: Access) -> None:
    _, made = await client.call("POST", "/v1/keys", {"name": "x", "role": "auditor"})
    await until(lambda: isinstance(opened.table.check(f"Bearer {made['key']}"), Key), "the key")

    status = [
        (await client.call(method, path, body, key=made["key"]))[0]
        for method, path, body in (("GET", "/v1/keys", None), ("POST", "/v1/keys", {"name": "x", "role": "admin"}),
                                   ("DELETE", f"/v1/keys/{made['key_id']}", None))
    ]  # fmt: skip

    assert status == [200, 403, 403]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [("GET", "/v1/keys/key_x", None, 422), ("GET", "/v1/keys/key_0000000000000000", None, 404),
     ("DELETE", "/v1/keys/key_0000000000000000", None, 404), ("POST", "/v1/keys", {"name": "x"}, 422),
     ("POST", "/v1/keys", {"name": "x", "role": "admin", "expires_at": "2020-01-01T00:00:00Z"}, 422),
     ("POST", "/v1/keys/key_0000000000000000/rotate", {"overlap_seconds": -1}, 422)],
)  # fmt: skip
async def test_what_means_nothing_is_refused(
    client: Client, opened: Access, method: str, path: str, body: Any, status: int
) -> None:
    assert (await client.call(method, path, body))[0] == status


async def test_before_postgres_is_known_keys_cannot_be_managed(client: Client) -> None:
    status, problem = await client.call("GET", "/v1/keys")

    assert (status, problem["code"]) == (503, "unavailable")


async def test_the_description_of_the_calls_can_be_read(client: Client) -> None:
    status, document = await client.call("GET", "/openapi.json")

    assert status == 200
    assert set(document["paths"]) >= {"/v1/keys", "/v1/keys/{key_id}", "/v1/keys/{key_id}/rotate"}
