"""Every field of every body with values that it cannot have: refused with 400 or 422, and nothing moves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tests.credits.ledger_client import Client, fresh
from tests.server import ShieldxServer

NOBODY = "01890000-0000-7000-8000-000000000000"
AMOUNT = b'"amount":'
WRONG_TYPE: list[Any] = [None, True, [], {}, "", "1", 1.0, -1, [1], {"a": 1}]
BAD_NAMES: list[Any] = ["-a", ".a", "a b", "a/b", "ü", "a\n", "a" * 65, "a\x00", "{s00}"]
BAD_AMOUNTS = [
    b"0",
    b"-1",
    b"100000000000000",
    b"1.0",
    b"1e3",
    b"1E0",
    b'"1"',
    b"true",
    b"1" + b"0" * 5_000,
    b"-0",
    b"1e400",
    b"0.1",
]
BAD_IDS: list[Any] = [
    "x",
    NOBODY.upper().replace("0", "A", 1),
    NOBODY.replace("-7", "-4"),
    NOBODY[:-1],
    NOBODY + "0",
    NOBODY + "\n",
]
BAD_METADATA: list[Any] = [
    [],
    "text",
    1,
    {"a": "x" * 4_100},
    {"a": "\x00"},
    {"\x00": 1},
    {"a": 2**63},
    {"a": -(2**63) - 1},
    {"a": 1e300},
]
BAD_TEXT: list[Any] = ["x" * 501, "\x00", 1, {}]
BAD_VERSIONS: list[Any] = [-1, 10**14, "1", 1.0, True]
BAD_KEYS: list[Any] = ["", " a", "a" * 256, "ü", "a\n", 1]

# For each call: its path, a body that is right, and for every field the values that are wrong.
SPEND = {
    "tenant_id": BAD_NAMES,
    "amount": [],
    "description": BAD_TEXT,
    "metadata": BAD_METADATA,
    "expected_version": BAD_VERSIONS,
}
OPTIONAL = {
    "description", "metadata", "expected_version", "ttl_seconds", "idempotency_key", "low_balance_threshold", "quota", "rate_limit",
    "commit.amount", "refund.amount",
}  # fmt: skip
QUOTAS = [
    {},
    {"limit": 1},
    {"limit": 0, "period": "day"},
    {"limit": 1, "period": "week"},
    {"limit": 1, "period": "day", "x": 1},
]
RATES = [
    {},
    {"rate": 0, "burst": 1},
    {"rate": 1, "burst": 0},
    {"rate": -1, "burst": 1},
    {"rate": 1e7, "burst": 1},
    {"rate": 1, "burst": 1.5},
]
SETTINGS = {"low_balance_threshold": [-1, 10**14, 1.0], "quota": QUOTAS, "rate_limit": RATES, "metadata": BAD_METADATA}


def text(value: Any) -> bytes:
    """Return JSON in UTF-8, numbers of any size included."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def calls(tenant: str) -> dict[str, tuple[str, dict[str, Any], dict[str, list[Any]]]]:
    """Return for each call: path, a right body, wrong values by field."""
    spend = {"tenant_id": tenant, "amount": 1}
    return {
        "topup": ("/v1/credits/topup", spend, SPEND),
        "consume": ("/v1/credits/consume", spend, SPEND),
        "reserve": ("/v1/credits/reserve", spend, SPEND | {"ttl_seconds": [0, -1, 86_401, 1.5, "60"]}),
        "refund": (
            "/v1/credits/refund", {"transaction_id": NOBODY},
            {"transaction_id": BAD_IDS, "amount": [], "description": BAD_TEXT, "metadata": BAD_METADATA},
        ),
        "commit": (f"/v1/credits/reservations/{NOBODY}/commit", {"amount": 1}, {"amount": []}),
        "accounts": ("/v1/accounts", {"tenant_id": fresh("new")}, {"tenant_id": BAD_NAMES, **SETTINGS}),
    }  # fmt: skip


def wrong_bodies(call: str, right: dict[str, Any], fields: dict[str, list[Any]]) -> Iterator[bytes]:
    """Yield bodies with exactly one fault each."""
    for field, values in fields.items():
        optional = field in OPTIONAL or f"{call}.{field}" in OPTIONAL
        for value in (*WRONG_TYPE, *values):
            if not accepted(field, value, optional=optional):
                yield text(right | {field: value})
        if not optional:
            yield text({name: value for name, value in right.items() if name != field})
    yield text(right | {"unknown": 1})
    yield text(right | {"op": "consume"})
    yield from (b"[]", b"1", b"null", b'"text"', b"[{}]")


def accepted(field: str, value: Any, *, optional: bool) -> bool:
    """Whether a value of WRONG_TYPE happens to be right for this field."""
    if value is None:
        return optional
    if field == "description":
        return isinstance(value, str) and len(value) <= 500 and "\x00" not in value
    if field in {"tenant_id", "idempotency_key"}:
        return value == "1"
    if field == "metadata":
        return value in ({}, {"a": 1})
    return False


@pytest.fixture
async def tenant(client: Client) -> AsyncIterator[str]:
    """A tenant of which nothing may move, with no reservation and no event but its first two."""
    tenant = await client.tenant(1000)
    yield tenant
    assert await client.numbers(tenant) == (1000, 0, 2)


@pytest.mark.parametrize("call", ["topup", "consume", "reserve", "refund", "commit", "accounts"])
async def test_a_body_with_one_wrong_field_is_refused(client: Client, tenant: str, call: str) -> None:
    path, right, fields = calls(tenant)[call]

    for content in wrong_bodies(call, right, fields):
        reply = await client.call("POST", path, data=content, key=fresh("key"))

        assert reply.status in {400, 422}, (content[:200], reply.raw)
        assert reply.code in {"malformed_json", "invalid_request"}


@pytest.mark.parametrize("call", ["topup", "consume", "reserve", "refund", "commit"])
async def test_an_amount_is_a_json_integer_in_range(client: Client, tenant: str, call: str) -> None:
    path, right, _ = calls(tenant)[call]
    rest = b"".join(b'"%b":%b,' % (name.encode(), text(value)) for name, value in right.items() if name != "amount")

    for amount in BAD_AMOUNTS:
        reply = await client.call("POST", path, data=b"{" + rest + AMOUNT + amount + b"}", key=fresh("key"))

        assert reply.refusal == (422, "invalid_request"), (amount[:20], reply.raw)
        assert reply.body["errors"] == [{"pointer": "/amount", "detail": reply.body["errors"][0]["detail"]}]


def syntax_faults(right: bytes) -> Iterator[bytes]:
    """Yield texts that are no I-JSON."""
    inside = right[1:-1]
    yield from (b"", b" ", b"{", right[:-1], right + b"}", right + right, b"\xef\xbb\xbf" + right, b"'" + right + b"'")
    yield from (right.replace(b'"', b"'"), b"{" + inside + b",}", b"{," + inside + b"}", right.replace(b":", b"=", 1))
    yield b"{" + inside + b"," + inside + b"}"
    yield b"{" + inside + b',"metadata":{"a":1,"a":2}}'
    yield b"{" + inside + b',"metadata":{"a":1,"\\u0061":2}}'
    yield from (
        right.replace(b"1}", number + b"}")
        for number in (b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b"1.", b".5", b"0x1")
    )
    yield from (
        b"{" + inside + b',"description":"' + bad + b'"}' for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
    )
    yield from (
        b"{" + inside + b',"description":"' + bad + b'"}'
        for bad in (b"\\ud800", b"\\udc00\\ud800", b"\n", b"\x01", b"\\x", b"\\u12")
    )
    yield b"{" + inside + b',"metadata":' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}"
    yield b"{" + inside + b',"metadata":' + b"[" * 1000 + b"]" * 1000 + b"}"
    yield b"[" * 30_000
    yield b"{" + inside + b',"unknown":' + b"[" * 1000 + b"]" * 1000 + b"}"


@pytest.mark.parametrize("call", ["topup", "consume", "reserve"])
async def test_what_is_no_json_is_malformed(client: Client, tenant: str, call: str) -> None:
    path = f"/v1/credits/{call}"
    right = f'{{"tenant_id":"{tenant}","amount":1}}'.encode()

    for content in syntax_faults(right):
        reply = await client.call("POST", path, data=content, key=fresh("key"))

        assert reply.refusal == (400, "malformed_json"), (content[:200], reply.raw)


async def test_the_largest_right_body_is_taken(client: Client) -> None:
    tenant = await client.tenant(10)
    metadata: dict[str, Any] = {"a": "x" * (4096 - 8)}
    for _ in range(29):
        metadata = {"a": metadata} if len(text(metadata)) < 4000 else metadata
    deep: Any = 1
    for _ in range(30):
        deep = {"d": deep}

    for meta in (metadata, deep):
        reply = await client.post(
            "/v1/credits/consume", {"tenant_id": tenant, "amount": 1, "description": "😀" * 500, "metadata": meta}
        )

        assert reply.status == 200, reply.raw
        assert reply.body["metadata"] == meta


@pytest.mark.parametrize(
    "operation",
    [{}, {"op": "steal"}, {"op": None}, {"op": "account"}, {"tenant_id": "t", "amount": 1}, {"op": "consume", "tenant_id": "t"}, 1, None, [],
     {"op": "topup", "tenant_id": "t", "amount": 1.5}, {"op": "commit", "reservation_id": "x"}, {"op": "abort", "reservation_id": NOBODY, "amount": 1},
     {"op": "refund"}, {"op": "consume", "tenant_id": "t", "amount": 1, "reservation_id": NOBODY}, {"op": "reserve", "tenant_id": "t", "amount": 1, "ttl_seconds": 0},
     *({"op": "consume", "tenant_id": "t", "amount": 1, "idempotency_key": key} for key in BAD_KEYS)],
)  # fmt: skip
async def test_a_wrong_operation_refuses_its_batch(client: Client, tenant: str, operation: Any) -> None:
    right = {"op": "consume", "tenant_id": tenant, "amount": 1}

    reply = await client.post("/v1/credits/batch", {"operations": [right, operation]})

    assert reply.refusal == (422, "invalid_request")
    assert reply.body["errors"][0]["pointer"].startswith("/operations/1")


@pytest.mark.parametrize(
    "body", [{}, {"operations": None}, {"operations": {}}, {"operations": "x"}, {"operations": [], "x": 1}]
)
async def test_a_batch_is_a_list_of_operations(client: Client, body: Any) -> None:
    assert (await client.post("/v1/credits/batch", body)).refusal == (422, "invalid_request")


@pytest.mark.parametrize(
    "leg", [{}, None, 1, {"tenant_id": "t"}, {"amount": 1}, {"tenant_id": "t", "amount": 1.0}, {"tenant_id": "", "amount": 1},
            {"tenant_id": "t", "amount": "1"}, {"tenant_id": "t", "amount": 1, "x": 1}, {"tenant_id": "t", "amount": True}],
)  # fmt: skip
async def test_a_wrong_leg_refuses_its_transaction(client: Client, tenant: str, leg: Any) -> None:
    reply = await client.post("/v1/transactions", {"legs": [{"tenant_id": tenant, "amount": -1}, leg]})

    assert reply.refusal == (422, "invalid_request")
    assert reply.body["errors"][0]["pointer"].startswith("/legs")


@pytest.mark.parametrize("field", list(SETTINGS))
async def test_patch_refuses_wrong_settings(client: Client, tenant: str, field: str) -> None:
    for value in (*(one for one in WRONG_TYPE if not accepted(field, one, optional=True)), *SETTINGS[field]):
        if value in ({}, {"a": 1}) and field == "metadata":
            continue
        reply = await client.call("PATCH", f"/v1/accounts/{tenant}", data=text({field: value}))

        assert reply.status in {400, 422}, (field, value, reply.raw)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "json",
        "",
        "application/jsonp",
    ],
)
async def test_only_json_is_read(client: Client, tenant: str, kind: str) -> None:
    reply = await client.call(
        "POST", "/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=fresh("key"), Content_Type=kind
    )

    assert reply.refusal == (415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
async def test_compressed_bodies_are_not_read(client: Client, tenant: str, coding: str) -> None:
    reply = await client.call(
        "POST", "/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=fresh("key"), Content_Encoding=coding
    )

    assert reply.status in {400, 415}


async def test_a_field_of_a_struct_twice_is_refused(client: Client, tenant: str) -> None:
    for content in (
        f'{{"tenant_id":"{tenant}","amount":1,"amount":1}}',
        f'{{"tenant_id":"{tenant}","tenant_id":"{tenant}","amount":1}}',
        f'{{"tenant_id":"{tenant}","amount":1,"expected_version":null,"expected_version":null}}',
    ):
        reply = await client.call("POST", "/v1/credits/consume", data=content.encode(), key=fresh("key"))

        assert reply.refusal == (400, "malformed_json")


async def test_headers_that_never_end_are_refused(client: Client, server: ShieldxServer) -> None:
    try:
        reply = await client.call("GET", "/v1/accounts", X_Padding="a" * 20_000)
    except aiohttp.ClientError:
        return
    assert reply.status in {400, 431}
    assert server.alive
