"""The readers of headers and queries, through a real server."""

import aiohttp
import pytest
from web_sample import AUTH, JSON, Server, exchange, parse

SPEND = b'{"tenant_id":"t1","amount":5}'


async def key_seen(client: aiohttp.ClientSession, given: str) -> tuple[int, str]:
    async with client.post("/v1/spend", data=SPEND, headers={**AUTH, **JSON, "Idempotency-Key": given}) as answer:
        body = await answer.json()
        return answer.status, body.get("key", body.get("code"))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("k", "k"),
        ('"k"', "k"),
        ("a b", "a b"),
        ('"a b"', "a b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('a"b', 'a"b'),
        ("x" * 255, "x" * 255),
        ('"' + "x" * 255 + '"', "x" * 255),
        ("~!@#$%^&*()", "~!@#$%^&*()"),
    ],
)
async def test_bare_and_quoted_keys_are_the_same_key(client: aiohttp.ClientSession, given: str, key: str) -> None:
    assert await key_seen(client, given) == (200, key)


@pytest.mark.parametrize("given", ["", "x" * 256, '"' + "x" * 256 + '"', '""', '"', '"a', '"a"b', '"a\\b"', "é", "a\tb"])
async def test_key_that_is_not_printable_ascii_of_1_to_255_is_invalid(client: aiohttp.ClientSession, given: str) -> None:
    assert await key_seen(client, given) == (400, "idempotency_key_invalid")


async def test_call_without_a_key_is_400(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/spend", data=SPEND, headers={**AUTH, **JSON}) as answer:
        assert answer.status == 400
        assert (await answer.json())["code"] == "idempotency_key_missing"


async def test_two_keys_are_invalid(client: aiohttp.ClientSession) -> None:
    headers = [*AUTH.items(), *JSON.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")]

    async with client.post("/v1/spend", data=SPEND, headers=headers) as answer:
        assert (await answer.json())["code"] == "idempotency_key_invalid"


async def test_replay_is_marked(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/spend", data=SPEND, headers={**AUTH, **JSON, "Idempotency-Key": "again"}) as answer:
        assert answer.headers["Idempotent-Replayed"] == "true"


async def look(client: aiohttp.ClientSession, query: str, **headers: str) -> tuple[int, dict[str, object]]:
    async with client.get(f"/v1/accounts/t1?{query}", headers={**AUTH, **headers}) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("query", "name", "value"),
    [
        ("", "limit", 100),
        ("limit=1", "limit", 1),
        ("limit=1000", "limit", 1000),
        ("cursor=abc-_=", "cursor", "abc-_="),
        ("at=2026-01-31T23:59:59Z", "at", "2026-01-31T23:59:59+00:00"),
        ("at=2026-01-31T23:59:59.123Z", "at", "2026-01-31T23:59:59.123000+00:00"),
        ("kind=spend", "kind", "spend"),
        ("deep=true", "deep", True),
        ("deep=false", "deep", False),
    ],
)
async def test_query_parameter_is_read(client: aiohttp.ClientSession, query: str, name: str, value: object) -> None:
    status, seen = await look(client, query)

    assert (status, seen[name]) == (200, value)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=", "limit=1.0", "limit=1e2", "limit=%2B5", "limit=05", "limit=1_0",
        "limit=%D9%A3", "limit=99999999999999999999", "limit=1&limit=2", "cursor=", "cursor=%00", "cursor=a%0a",
        "at=2026-01-31", "at=2026-01-31T23:59:59", "at=2026-01-31T23:59:59%2B01:00", "at=2026-01-31t23:59:59z",
        "at=2026-02-30T00:00:00Z", "at=1767225600", "kind=refund", "kind=", "deep=1", "deep=True",
    ],
)  # fmt: skip
async def test_query_parameter_of_the_wrong_shape_is_422_at_its_name(client: aiohttp.ClientSession, query: str) -> None:
    status, problem = await look(client, query)

    assert status == 422
    assert problem["errors"][0]["pointer"] == "?" + query.partition("=")[0]  # type: ignore[index]
    assert "refund" not in problem["errors"][0]["detail"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("given", "version"), [('"7"', 7), ("7", 7), ("0", 0), ("*", None), ('"9007199254740991"', 2**53 - 1)]
)
async def test_if_match_is_a_version(client: aiohttp.ClientSession, given: str, version: int | None) -> None:
    status, seen = await look(client, "", **{"If-Match": given})

    assert (status, seen["if_match"]) == (200, version)


@pytest.mark.parametrize("given", ['W/"7"', '"7', '7"', '"x"', '"7", "8"', "-1", "07", "", "99999999999999999999"])
async def test_if_match_that_is_not_one_strong_version_is_422(client: aiohttp.ClientSession, given: str) -> None:
    status, problem = await look(client, "", **{"If-Match": given})

    assert status == 422
    assert problem["errors"][0]["pointer"] == "If-Match:"  # type: ignore[index]


async def test_old_client_may_keep_its_connection(server: Server) -> None:
    kept = b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    last = b"GET /health HTTP/1.0\r\n\r\n"

    data = await exchange(server.port, kept + last)

    first = parse(data)
    assert first.headers["connection"] == "keep-alive"
    assert parse(data[data.rindex(b"HTTP/1.1") :]).headers["connection"] == "close"
