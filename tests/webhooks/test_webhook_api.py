"""/v1/webhooks over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from app.db.statements import Statements
from app.webhooks.api import WEBHOOK_ROUTES, WEBHOOKS
from app.webhooks.opening import Webhooks
from app.webhooks.outbox import Message, Outbox
from tests import route_client
from tests.route_client import serving
from tests.webhooks.conftest import HERE, KEYS, put_out

URL = "https://127.0.0.1:9/in"  # nobody is there


class Caller(NamedTuple):
    """Whoever a key of this test stands for."""

    key_id: str
    role: str
    tenants: frozenset[str] | None


CALLERS = {
    "Bearer root": Caller("root", "admin", None),
    "Bearer acme": Caller("key_acme", "operator", frozenset({"acme"})),
}


@pytest.fixture
async def webhooks(statements: Statements) -> AsyncIterator[Webhooks]:
    """Opened, with an address of this machine allowed."""
    faults: list[BaseException] = []
    webhooks = Webhooks(KEYS, HERE._replace(allow_http=False))
    webhooks.open(statements, faults.append)
    yield webhooks
    await webhooks.close()
    assert faults == []


@pytest.fixture
async def session(webhooks: Webhooks) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a server with these webhooks."""
    async with serving_webhooks(webhooks) as session:
        yield session


def serving_webhooks(webhooks: Webhooks) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """A client of a server with these webhooks."""
    app = web.Application()
    app[WEBHOOKS] = webhooks
    return serving(app, WEBHOOK_ROUTES, CALLERS.get)


async def call(
    session: aiohttp.ClientSession, method: str, path: str, body: Any = None, *, key: str = "root"
) -> tuple[int, Any]:
    """Return status and body of an answer."""
    reply = await route_client.call(session, method, path, body, key=key)
    return reply.status, reply.body


async def test_the_life_of_an_endpoint(session: aiohttp.ClientSession, outbox: Outbox, statements: Statements) -> None:
    status, made = await call(session, "POST", "/v1/webhooks", {"url": URL, "tenant_id": "acme", "types": ["balance.low"]})
    path = f"/v1/webhooks/{made['endpoint_id']}"
    assert (status, made["secret"][:6]) == (201, "whsec_")

    for number in range(3):
        await put_out(statements.rows, Message(f"msg_{number}", "acme", "balance.low", 0, {}))
    _, first = await call(session, "GET", f"{path}/deliveries?limit=2")
    _, second = await call(session, "GET", f"{path}/deliveries?limit=2&cursor={first['next_cursor']}")
    assert [one["message_id"] for one in first["data"] + second["data"]] == ["msg_2", "msg_1", "msg_0"]
    assert second["next_cursor"] is None

    await outbox.disable(made["endpoint_id"], "gone")
    assert (await call(session, "GET", path))[1]["disabled_for"] == "gone"
    assert (await call(session, "POST", f"{path}/enable"))[1]["disabled_for"] is None

    status, rotated = await call(session, "POST", f"{path}/rotate")
    assert status == 200
    assert rotated["secret"] != made["secret"]

    assert (await call(session, "DELETE", path))[0] == 204
    assert (await call(session, "GET", path))[0] == 404
    assert (await call(session, "GET", "/v1/webhooks"))[1] == {"data": [], "next_cursor": None}


async def test_a_limited_key_sees_its_tenants_endpoints_only(session: aiohttp.ClientSession) -> None:
    _, own = await call(session, "POST", "/v1/webhooks", {"url": URL, "tenant_id": "acme"}, key="acme")
    _, foreign = await call(session, "POST", "/v1/webhooks", {"url": URL})

    _, page = await call(session, "GET", "/v1/webhooks", key="acme")
    hidden, _ = await call(session, "DELETE", f"/v1/webhooks/{foreign['endpoint_id']}", key="acme")

    assert [one["endpoint_id"] for one in page["data"]] == [own["endpoint_id"]]
    assert own["created_by"] == "key_acme"
    assert hidden == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [("POST", "/v1/webhooks", {"url": "http://hooks.example.com/"}, 422), ("POST", "/v1/webhooks", {}, 422),
     ("GET", "/v1/webhooks?cursor=mine", None, 422), ("GET", "/v1/webhooks/whe_x", None, 422),
     ("GET", "/v1/webhooks/whe_0000000000000000/deliveries", None, 404),
     ("GET", "/v1/webhooks/whe_0000000000000000/deliveries?cursor=-1", None, 422)],
)  # fmt: skip
async def test_what_means_nothing_is_refused(
    session: aiohttp.ClientSession, method: str, path: str, body: Any, status: int
) -> None:
    assert (await call(session, method, path, body))[0] == status


async def test_before_postgres_is_known_endpoints_cannot_be_managed() -> None:
    async with serving_webhooks(Webhooks(KEYS, HERE)) as session:
        status, problem = await call(session, "GET", "/v1/webhooks")

    assert (status, problem["code"]) == (503, "unavailable")


async def test_the_description_of_the_calls_can_be_read(session: aiohttp.ClientSession) -> None:
    status, document = await call(session, "GET", "/openapi.json")

    assert status == 200
    assert len([path for path in document["paths"] if path.startswith("/v1/webhooks")]) == 5
