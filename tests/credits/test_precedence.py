"""Which of several errors is answered, and what every answer carries."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson
import pytest

from tests.credits.ledger_client import AUTHORIZED, Client, fresh
from tests.server import ShieldxServer

CONSUME = "/v1/credits/consume"
TOO_LARGE = b'{"tenant_id":"' + b"a" * 70_000 + b'"}'
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic cm9vdDpyb290", "bearer\twrong"]
)
async def test_without_a_valid_key_nothing_else_is_looked_at(client: Client, authorization: str | None) -> None:
    replies = [
        await client.call("POST", CONSUME, data=content, Authorization=authorization, Content_Type=kind)
        for content, kind in (
            (b"{}", "application/json"),
            (TOO_LARGE, "application/json"),
            (b"\xff", "text/plain"),
            (b"", None),
        )
    ]

    for reply in replies:
        assert reply.refusal == (401, "unauthorized")
        assert reply.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_case_insensitive(client: Client, scheme: str) -> None:
    key = AUTHORIZED["Authorization"].removeprefix("Bearer ")

    reply = await client.call("GET", "/v1/accounts", Authorization=f"{scheme} {key}")

    assert reply.status == 200


async def test_size_comes_before_shape(client: Client) -> None:
    reply = await client.call("POST", CONSUME, data=TOO_LARGE, key=fresh("key"))

    assert reply.refusal == (413, "payload_too_large")


async def test_media_type_and_shape_come_before_the_key(client: Client) -> None:
    media = await client.call("POST", CONSUME, data=b"{}", Content_Type="text/plain")
    broken = await client.call("POST", CONSUME, data=b"{")
    shape = await client.call("POST", CONSUME, {"amount": 1})
    key = await client.call("POST", CONSUME, {"tenant_id": fresh("nobody"), "amount": 1})

    assert [reply.refusal for reply in (media, broken, shape, key)] == [
        (415, "unsupported_media_type"), (400, "malformed_json"), (422, "invalid_request"), (400, "idempotency_key_missing"),
    ]  # fmt: skip


async def test_shape_comes_before_business(client: Client) -> None:
    tenant = await client.tenant()

    both = await client.post(CONSUME, {"tenant_id": tenant, "amount": -1})
    version = await client.post(CONSUME, {"tenant_id": tenant, "amount": 1, "expected_version": 9})
    funds = await client.post(CONSUME, {"tenant_id": tenant, "amount": 1})

    assert [reply.refusal for reply in (both, version, funds)] == [
        (422, "invalid_request"), (409, "version_conflict"), (402, "insufficient_credits"),
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json", "/docs", "/"])
async def test_open_paths_need_no_key(client: Client, path: str) -> None:
    reply = await client.call("GET", path, Authorization=None)

    assert reply.status == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1/accounts", "/v1/ledger/trial-balance"])
async def test_other_paths_need_one(client: Client, path: str) -> None:
    reply = await client.call("GET", path, Authorization=None)

    assert reply.refusal == (401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CONSUME, {"POST"}), ("DELETE", "/v1/accounts/t", {"GET", "HEAD", "PATCH"}), ("PUT", "/v1/accounts", {"GET", "HEAD", "POST"}),
     ("POST", "/health", {"GET", "HEAD"})],
)  # fmt: skip
async def test_a_wrong_method_names_the_right_ones(client: Client, method: str, path: str, allowed: set[str]) -> None:
    reply = await client.call(method, path)

    assert reply.refusal == (405, "method_not_allowed")
    assert set(reply.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/credits", "/v1/credits/steal", "/v1/accounts/", "/v2/accounts", "/v1/accounts/a/b/c"]
)
async def test_an_unknown_path_is_not_found(client: Client, path: str) -> None:
    assert (await client.call("POST", path)).refusal == (404, "not_found")


@pytest.mark.parametrize("tenant", ["-a", ".a", "a" * 65, "a%20b", "%00", "a%2Fb", "%C3%BC", "a%0A"])
async def test_a_tenant_that_cannot_be_is_refused_in_the_path(client: Client, tenant: str) -> None:
    reply = await client.get(f"/v1/accounts/{tenant}")

    assert reply.refusal in {(422, "invalid_request"), (404, "not_found")}


@pytest.mark.parametrize("given", ["my-id", "A" * 128, "trace:1.2_3"])
async def test_a_request_id_is_taken_and_returned(client: Client, given: str) -> None:
    refused = await client.call("POST", CONSUME, X_Request_ID=given)
    served = await client.call("GET", "/v1/accounts", X_Request_ID=given)

    assert refused.headers["X-Request-ID"] == refused.body["request_id"] == given
    assert served.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "a b", "A" * 129, "ü", '"quoted"'])
async def test_a_request_id_is_made_where_none_can_be_taken(client: Client, given: str | None) -> None:
    replies = [await client.call("POST", CONSUME, X_Request_ID=given) for _ in range(2)]

    made = {reply.headers["X-Request-ID"] for reply in replies}
    assert len(made) == 2
    assert given not in made
    assert all(REQUEST_ID.fullmatch(one) for one in made)


async def test_a_problem_has_every_member_and_no_input(client: Client) -> None:
    reply = await client.post(CONSUME, {"tenant_id": "4111111111111111 ", "amount": "4111111111111111"})

    assert reply.headers["Content-Type"] == "application/problem+json"
    assert set(reply.body) == {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert reply.body["type"] == "urn:shieldx:problem:invalid_request"
    assert b"4111" not in reply.raw


async def send_raw(server: ShieldxServer, content: bytes, *, cut: bool = False) -> bytes:
    """Send bytes and return what comes back; `cut` closes our side first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(content)
    await writer.drain()
    if cut:
        writer.write_eof()
    try:
        async with asyncio.timeout(15):
            return await reader.read(65_536)
    finally:
        writer.close()


def raw_consume(body: bytes, length: int, key: str) -> bytes:
    return (
        f"POST {CONSUME} HTTP/1.1\r\nHost: t\r\nAuthorization: {AUTHORIZED['Authorization']}\r\nIdempotency-Key: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode() + body


async def test_a_body_cut_short_moves_nothing(client: Client, server: ShieldxServer) -> None:
    tenant = await client.tenant(10)
    body = f'{{"tenant_id":"{tenant}","amount":1}}'.encode()

    answer = await send_raw(server, raw_consume(body[:-3], len(body), fresh("key")), cut=True)

    assert not answer.startswith(b"HTTP/1.1 200")
    assert b" 500 " not in answer[:20]
    assert await client.numbers(tenant) == (10, 0, 2)


async def test_a_client_that_leaves_does_not_stop_its_operation(client: Client, server: ShieldxServer) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = f'{{"tenant_id":"{tenant}","amount":1}}'.encode()

    for i in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw_consume(body, len(body), f"{key}-{i}"))
        await writer.drain()
        writer.transport.abort()
        del reader
    replies = [await client.post(CONSUME, {"tenant_id": tenant, "amount": 1}, key=f"{key}-{i}") for i in range(20)]

    assert {reply.status for reply in replies} == {200}
    assert await client.numbers(tenant) == (80, 0, 22)


async def test_a_batch_whose_client_has_left_is_finished(client: Client, server: ShieldxServer) -> None:
    tenant = await client.tenant(5_000)
    body = orjson.dumps({"operations": [{"op": "consume", "tenant_id": tenant, "amount": 1}] * 5_000})
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw_consume(body, len(body), fresh("key")).replace(b"consume HTTP", b"batch HTTP", 1))
    await writer.drain()
    while (await client.numbers(tenant))[0] == 5_000:
        await asyncio.sleep(0)

    writer.transport.abort()

    async with asyncio.timeout(20):
        while (await client.numbers(tenant))[0] > 0:
            await asyncio.sleep(0.01)
    assert await client.numbers(tenant) == (0, 0, 5_002)


async def test_a_batch_above_sixteen_mebibytes_is_refused_before_it_is_read(server: ShieldxServer) -> None:
    answer = await send_raw(server, raw_consume(b"{", 16 * 1024 * 1024 + 1, "k").replace(b"consume HTTP", b"batch HTTP", 1))

    assert answer.startswith(b"HTTP/1.1 413")


async def test_both_ports_serve_the_same_ledger(client: Client, server: ShieldxServer) -> None:
    tenant = await client.tenant(10)
    shadow = Client(client.session, f"http://127.0.0.1:{server.shadow_port}")

    body: Any = await shadow.consume(tenant, 4)

    assert (body["balance"], await client.numbers(tenant)) == (6, (6, 0, 3))


async def test_head_answers_like_get_without_a_body(client: Client) -> None:
    tenant = await client.tenant(10)
    shown = await client.get(f"/v1/accounts/{tenant}")

    reply = await client.call("HEAD", f"/v1/accounts/{tenant}")

    assert (reply.status, reply.raw) == (200, b"")
    assert reply.headers["ETag"] == '"2"'
    assert reply.headers["Content-Length"] == str(len(shown.raw))
