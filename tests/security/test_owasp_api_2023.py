"""The OWASP API Security Top 10 of 2023, item by item, against a running server."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import Any

import pytest

from app import __version__
from tests.credits.ledger_client import AUTHORIZED, Client, fresh
from tests.server import ROOT_KEY, ShieldxServer

OPEN = {"/health", "/ready", "/openapi.json", "/docs", "/"}
MONEY = ("/v1/credits/topup", "/v1/credits/consume", "/v1/credits/reserve")
NOBODY = "0193a1b2-4111-7111-8111-111111111111"


def filled(path: str) -> str:
    """A path of the document with names that nobody has."""
    known = {"{key_id}": "key_0000000000000000", "{shard}": "0", "{tile}": "tile/0/x999/999"}
    return re.sub(r"\{[a-z_]+\}", lambda found: known.get(found[0], NOBODY), path)


def calls(document: Any) -> list[tuple[str, str]]:
    """Every documented call, its path filled in with names that nobody has."""
    return [
        (method.upper(), filled(path))
        for path, methods in document["paths"].items()
        for method in methods
        if method in {"get", "post", "put", "patch", "delete"}
    ]


# --- API1: broken object level authorization


async def test_api1_an_id_that_is_guessed_from_another_one_finds_nothing(client: Client) -> None:
    tenant = await client.tenant(100)
    spent = await client.consume(tenant, 5)
    held = await client.reserve(tenant, 5)

    for kind, known in (("transactions", spent["transaction_id"]), ("credits/reservations", held["reservation_id"])):
        number = int(known.replace("-", ""), 16)
        for change in (1, 2, 1 << 16, 1 << 40, 1 << 60):
            reply = await client.get(f"/v1/{kind}/{uuid.UUID(int=number ^ change)}")
            assert reply.status in {404, 422}
            assert tenant not in reply.raw.decode()


async def test_api1_the_key_of_one_request_shows_nothing_of_another_tenant(client: Client) -> None:
    victim, attacker = await client.tenant(100), await client.tenant(100)
    key = fresh("key")
    await client.post("/v1/credits/consume", {"tenant_id": victim, "amount": 7, "description": "secret plan"}, key=key)

    reply = await client.post("/v1/credits/consume", {"tenant_id": attacker, "amount": 7}, key=key)

    assert reply.refusal == (422, "idempotency_key_reused")
    assert victim not in reply.raw.decode()
    assert "secret" not in reply.raw.decode()


# --- API2: broken authentication


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer  ", f"Bearer {ROOT_KEY[:-1]}", f"Bearer {ROOT_KEY}x", f"Bearer {ROOT_KEY.upper()}", f"Basic {ROOT_KEY}",
     ROOT_KEY, f"Bearer {ROOT_KEY}, Bearer {ROOT_KEY}", "Bearer null", "Bearer \u00e9"],
)  # fmt: skip
async def test_api2_every_call_that_is_not_open_needs_the_exact_key(
    client: Client, document: Any, authorization: str | None
) -> None:
    for method, path in calls(document):
        reply = await client.call(method, path, Authorization=authorization)
        if path in OPEN:
            assert reply.status == 200
        else:
            assert reply.refusal == (401, "unauthorized"), (method, path)
            assert reply.headers["WWW-Authenticate"] == "Bearer"


async def test_api2_a_key_in_the_query_or_a_cookie_is_no_key(client: Client) -> None:
    for path in (
        f"/v1/accounts?key={ROOT_KEY}",
        f"/v1/accounts?access_token={ROOT_KEY}",
        f"/v1/accounts?authorization=Bearer%20{ROOT_KEY}",
    ):
        assert (await client.call("GET", path, Authorization=None)).status == 401
    reply = await client.call(
        "GET", "/v1/accounts", Authorization=None, Cookie=f"Authorization=Bearer {ROOT_KEY}", X_API_Key=ROOT_KEY
    )
    assert reply.status == 401


# --- API3: broken object property level authorization


@pytest.mark.parametrize("field", ["balance", "reserved", "available", "version", "shard", "seq", "created_at", "transaction_id", "type",
                                   "tenantId", "is_admin", "role", "__proto__", "status"])  # fmt: skip
async def test_api3_what_the_server_decides_cannot_be_sent(client: Client, field: str) -> None:
    tenant = await client.tenant(100)
    before = await client.numbers(tenant)

    replies = [await client.post(path, {"tenant_id": tenant, "amount": 1, field: 1_000_000}) for path in MONEY]
    replies.append(await client.call("PATCH", f"/v1/accounts/{tenant}", {field: 1_000_000}))
    replies.append(await client.post("/v1/accounts", {"tenant_id": fresh("t"), field: 1_000_000}))
    operations = [{"op": "consume", "tenant_id": tenant, "amount": 1, field: 1_000_000}]
    replies.append(await client.post("/v1/credits/batch", {"operations": operations}))

    assert {reply.refusal for reply in replies} == {(422, "invalid_request")}
    assert await client.numbers(tenant) == before


async def test_api3_an_answer_has_no_field_that_the_document_does_not_name(client: Client, document: Any) -> None:
    tenant = await client.tenant(100)
    account = await client.account(tenant)
    schema = document["paths"]["/v1/accounts/{tenant_id}"]["get"]["responses"]["200"]["content"]["application/json"][
        "schema"
    ]

    named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]

    assert set(account) <= set(named)


# --- API4: unrestricted resource consumption


async def test_api4_whatever_is_too_large_is_refused(client: Client) -> None:
    tenant = await client.tenant(10)
    good = {"tenant_id": tenant, "amount": 1}
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    cases = [
        ("/v1/credits/consume", json.dumps(good | {"description": "x" * 70_000}).encode(), {413}),
        ("/v1/credits/consume", json.dumps(good | {"description": "x" * 501}).encode(), {422}),
        ("/v1/credits/consume", json.dumps(good | {"metadata": {"m": "x" * 5_000}}).encode(), {422}),
        ("/v1/credits/consume", json.dumps(good | {"metadata": {"m": deep}}).encode(), {400, 422}),
        ("/v1/credits/consume", json.dumps(good | {"amount": 10**14}).encode(), {422}),
        ("/v1/credits/consume", b'{"amount":' + b"9" * 50_000 + b"}", {400, 422}),
        ("/v1/credits/consume", b"[" * 60_000, {400}),
        ("/v1/credits/reserve", json.dumps(good | {"ttl_seconds": 86_401}).encode(), {422}),
        ("/v1/credits/batch", json.dumps({"operations": [{"op": "consume", **good}] * 10_001}).encode(), {413, 422}),
        ("/v1/transactions", json.dumps({"legs": [good] * 101}).encode(), {422}),
    ]

    for path, data, statuses in cases:
        reply = await client.call("POST", path, data=data, key=fresh("key"))
        assert reply.status in statuses, (path, data[:60], reply.raw)
    for path in (
        "/v1/accounts?limit=1001",
        "/v1/accounts?limit=0",
        f"/v1/accounts/{tenant}/usage?from=2000-01-01T00:00:00Z",
        "/v1/accounts?cursor=" + "a" * 600,
    ):
        assert (await client.get(path)).status == 422
    assert (await client.call("GET", "/v1/accounts", X_Large="x" * 9_000)).status == 431
    assert (await client.get("/v1/accounts/" + "a" * 9_000)).status == 414
    assert await client.numbers(tenant) == (10, 0, 2)


# --- API5: broken function level authorization


async def test_api5_only_four_calls_are_open_and_methods_are_those_of_the_document(client: Client, document: Any) -> None:
    documented = {path: {method.upper() for method in methods} for path, methods in document["paths"].items()}

    for path, methods in documented.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - methods:
            reply = await client.call(method, filled(path), Authorization=None)
            assert reply.status == 405, (method, path)
            assert set(reply.headers["Allow"].replace(" ", "").split(",")) >= methods
    assert {path for path in documented if (await client.call("GET", path, Authorization=None)).status == 200} == OPEN


@pytest.mark.parametrize(
    "field", ["X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-For"]
)
async def test_api5_no_header_field_changes_method_path_or_rights(client: Client, field: str) -> None:
    tenant = await client.tenant(10)

    reply = await client.call("GET", f"/v1/accounts/{tenant}", **{field: "DELETE" if "Method" in field else "/health"})
    stranger = await client.call("GET", f"/v1/accounts/{tenant}", Authorization=None, **{field: "127.0.0.1"})

    assert (reply.status, stranger.status) == (200, 401)
    assert await client.numbers(tenant) == (10, 0, 2)


# --- API6: unrestricted access to sensitive business flows


async def test_api6_credits_cannot_be_won_by_repeating_or_racing(client: Client) -> None:
    tenant = await client.tenant(100)
    spent = await client.consume(tenant, 60)
    held = await client.reserve(tenant, 30)
    refund = {"transaction_id": spent["transaction_id"], "amount": 40}
    commit = f"/v1/credits/reservations/{held['reservation_id']}/commit"

    refunds = await asyncio.gather(*(client.post("/v1/credits/refund", refund) for _ in range(12)))
    commits = await asyncio.gather(*(client.post(commit, {}) for _ in range(12)))
    key = fresh("key")
    topups = await asyncio.gather(
        *(client.post("/v1/credits/topup", {"tenant_id": tenant, "amount": 5}, key=key) for _ in range(12))
    )

    assert [reply.status for reply in refunds].count(200) == 1
    assert [reply.status for reply in commits].count(200) == 1
    assert {reply.status for reply in topups} <= {200, 409}
    assert len({reply.body["transaction_id"] for reply in topups if reply.status == 200}) == 1
    assert (await client.numbers(tenant))[:2] == (100 - 60 + 40 - 30 + 5, 0)


# --- API7: server side request forgery


async def test_api7_the_server_fetches_no_address_that_a_request_names(client: Client) -> None:
    seen: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(100))
        writer.close()

    trap = await asyncio.start_server(take, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{trap.sockets[0].getsockname()[1]}/latest/meta-data"
    tenant = await client.tenant(10)
    body = {"tenant_id": tenant, "amount": 1, "description": url, "metadata": {"url": url, "webhook": url, "$ref": url}}

    async with trap:
        for path in MONEY:
            assert (await client.post(path, body, Referer=url, Origin=url, X_Forwarded_Host=url)).status == 200
        for field in ("url", "callback_url", "webhook"):
            assert (await client.post("/v1/accounts", {"tenant_id": fresh("t"), field: url})).status == 422

    assert seen == []


# --- API8: security misconfiguration


async def test_api8_answers_tell_nothing_of_the_machine_and_are_not_stored_or_sniffed(client: Client, document: Any) -> None:
    replies = [await client.call(method, path, Origin="https://evil.example") for method, path in calls(document)]
    replies += [await client.get(path) for path in ("/nothing", "/v1/accounts/%00", "/v1/accounts/..%2f..%2fetc%2fpasswd")]
    replies.append(await client.call("POST", "/v1/credits/consume", data=b"{", key=fresh("key")))

    for reply in replies:
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Cache-Control"] in {"no-store", "no-cache"}
        fields = {name.lower() for name in reply.headers}
        assert not {name for name in fields if name.startswith(("access-control-", "x-powered", "x-aspnet"))} | fields & {
            "server"
        }
        if reply.status >= 400:
            assert not re.search(r'Traceback|File "|site-packages|asyncpg|aiohttp|\.py\b', reply.raw.decode())
    docs = next(reply for reply in replies if "text/html" in reply.headers.get("Content-Type", ""))
    assert "default-src 'none'" in docs.headers["Content-Security-Policy"]
    assert docs.headers["X-Frame-Options"] == "DENY"


async def test_api8_what_is_no_http_gets_no_echo(server: ShieldxServer) -> None:
    for data in (
        b"GET /secret-thing HTTP/9.9\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: x\r\nX-Secret-Thing: secret-thing\r\n\r\n",
        b"\x16\x03\x01secret-thing\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(65_536), 15)
        writer.close()

        assert answer.startswith(b"HTTP/1.1 4")
        assert b"secret-thing" not in answer.lower()


async def test_api8_two_framings_of_one_body_are_refused(server: ShieldxServer) -> None:
    head = f"POST /v1/credits/consume HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTHORIZED['Authorization']}\r\n"
    for framing in (
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: +4\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"{head}{framing}\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(65_536), 15)
        writer.close()

        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'{"status":"ok"}' not in answer


# --- API9: improper inventory management


async def test_api9_everything_documented_exists_and_nothing_else_answers(client: Client, document: Any) -> None:
    assert document["info"]["version"] == __version__
    for method, path in calls(document):
        reply = await client.call(method, path, key=fresh("key"))
        assert reply.status != 405
        assert reply.status != 404 or reply.code != "not_found", (method, path)
    for path in ("/admin", "/debug", "/debug/pprof", "/.env", "/.git/config", "/v0/accounts", "/v2/accounts", "/api/v1/accounts", "/v1",
                 "/v1/", "/v1/accounts/", "/internal", "/actuator", "/swagger.json", "/graphql", "/console", "/status"):  # fmt: skip
        assert (await client.get(path)).refusal == (404, "not_found"), path


# --- API10: unsafe consumption of APIs


async def test_api10_text_from_outside_stays_text_wherever_it_goes(client: Client, server: ShieldxServer) -> None:
    tenant = await client.tenant(100)
    hostile = '</script><img src=x onerror=alert(1)>"\',\\ \r\n{"level":"critical"} $(id) %s {0} \'; DROP TABLE audit_entries; -- \u2028'

    body = {"tenant_id": tenant, "amount": 1, "description": hostile, "metadata": {hostile: hostile}}
    sent = await client.post(
        "/v1/credits/consume", body, X_Request_ID="forged 200 ok", User_Agent="x'; DROP TABLE audit_entries"
    )
    read = await client.get(f"/v1/accounts/{tenant}/transactions?limit=1")

    assert sent.status == 200
    assert sent.headers["X-Request-ID"] != "forged 200 ok"
    assert read.headers["Content-Type"] == "application/json"
    assert (read.body["data"][0]["description"], read.body["data"][0]["metadata"]) == (hostile, {hostile: hostile})
    for line in server.log.read_text(errors="replace").splitlines():
        assert line.startswith(("{", "shieldx ready"))
        assert '"level":"critical"' not in line
