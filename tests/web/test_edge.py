"""What the edge does around every route."""

import gc
import logging
import re
import weakref

import aiohttp
import pytest
from web_sample import AUTH, JSON, KEY, Server, exchange, parse, start

from app.web.connections import ConnectionLimits
from app.web.edge import HEADERS_MAX_BYTES
from app.web.problems import Problem
from app.web.request import Request
from app.web.request_ids import RequestIds
from app.web.routes import Handled, Route


async def test_request_id_of_the_client_is_taken_and_returned(client: aiohttp.ClientSession) -> None:
    headers = {**AUTH, "X-Request-ID": "trace.01:a_b-c"}

    async with client.get("/v1/accounts/t1", headers=headers) as answer:
        assert answer.headers["X-Request-ID"] == "trace.01:a_b-c"
        assert (await answer.json())["request_id"] == "trace.01:a_b-c"


@pytest.mark.parametrize("given", ["", "a b", "é", "a" * 129, '"x"', "a\tb"])
async def test_request_id_that_is_not_well_formed_is_replaced(client: aiohttp.ClientSession, given: str) -> None:
    async with client.get("/health", headers={"X-Request-ID": given}) as answer:
        assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", answer.headers["X-Request-ID"])


def test_request_ids_differ_within_and_between_processes() -> None:
    ids = RequestIds()
    first, second = ids.next(), ids.next()
    ids.restart()
    other = ids.next()

    assert len({first, second, other, first.split("-")[0] + "-1"}) == 3


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
        "Bearer \udce9",
    ],
)  # fmt: skip
async def test_call_without_a_valid_key_is_401(client: aiohttp.ClientSession, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("utf-8", "replace").decode()}

    async with client.get("/v1/accounts/t1", headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await answer.json())["code"] == "unauthorized"


async def test_key_comes_before_every_other_check(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/spend?x=1", data=b"x" * 100_000) as answer:
        assert answer.status == 401


async def test_role_decides_between_403_and_the_route(client: aiohttp.ClientSession) -> None:
    reader = {"Authorization": f"Bearer {KEY}_reader"}

    async with client.delete("/v1/fail/plain", headers=reader) as refused:
        assert refused.status == 403
        assert (await refused.json())["code"] == "forbidden"
    async with client.delete("/v1/fail/plain", headers=AUTH) as taken:
        assert taken.status == 200


async def test_open_route_needs_no_key(client: aiohttp.ClientSession) -> None:
    async with client.get("/health") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/", 404, None),
        ("GET", "/v1/accounts/", 404, None),
        ("GET", "/nothing?x=1", 404, None),
        ("GET", "/v1/spend", 405, "POST"),
        ("PUT", "/v1/accounts/t1", 405, "GET, HEAD"),
        ("OPTIONS", "/v1/fail/x", 405, "DELETE, GET, HEAD"),
        ("TRACE", "/health", 405, "GET, HEAD"),
    ],
)
async def test_unknown_path_and_method_are_problems_for_everyone(
    client: aiohttp.ClientSession, method: str, path: str, status: int, allow: str | None
) -> None:
    async with client.request(method, path) as answer:
        assert answer.status == status
        assert answer.headers.get("Allow") == allow
        assert answer.content_type == "application/problem+json"


async def test_problem_carries_its_members_and_headers(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/fail/raised", headers={**AUTH, "X-Request-ID": "r1"}) as raised:
        assert raised.status == 402
        assert await raised.json() == {
            "type": "urn:shieldx:problem:insufficient_credits",
            "title": "Not enough credits",
            "status": 402,
            "detail": "Not enough.",
            "code": "insufficient_credits",
            "request_id": "r1",
            "available": 5,
        }
    async with client.get("/v1/fail/returned", headers=AUTH) as returned:
        assert returned.status == 503
        assert returned.headers["Retry-After"] == "2"


@pytest.mark.parametrize("how", ["value", "timeout"])
async def test_exception_of_a_route_is_a_generic_500_and_one_log_entry(
    client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with client.get(f"/v1/fail/{how}", headers={**AUTH, "X-Request-ID": "r1"}) as answer:
        body = await answer.text()

    assert answer.status == 500
    assert '"code":"internal_error"' in body
    assert "4111" not in body
    assert [vars(record)["request_id"] for record in caplog.records if record.levelno == logging.ERROR] == ["r1"]


async def test_http_exception_of_aiohttp_becomes_a_problem_without_its_text(
    client: aiohttp.ClientSession,
) -> None:
    async with client.get("/v1/fail/gone", headers=AUTH) as answer:
        assert answer.status == 410
        assert answer.content_type == "application/problem+json"
        assert "secret" not in await answer.text()


async def test_answer_that_had_begun_is_cut_off_when_its_route_fails(server: Server) -> None:
    head = f"GET /v1/fail/stream HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\n\r\n".encode()

    data = await exchange(server.port, head)

    assert b"begun" in data
    assert data.count(b"HTTP/1.1") == 1
    assert not data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", ["/v1/accounts/t1", "/v1/fail/plain", "/nothing", "/health"])
async def test_every_answer_carries_the_security_headers(client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(path, headers=AUTH) as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Request-ID"]
        assert "aiohttp" not in answer.headers.get("Server", "") or path == "/v1/fail/plain"


async def test_answers_are_recorded_under_the_route_template(client: aiohttp.ClientSession, server: Server) -> None:
    for method, path in (
        ("GET", "/v1/accounts/t1"),
        ("GET", "/nothing/4111111111111111"),
        ("GET", "/v1/fail/value"),
    ):
        async with client.request(method, path, headers=AUTH):
            pass

    assert [record[:3] for record in server.records] == [
        ("GET", "/v1/accounts/{tenant_id}", 200),
        ("GET", "unknown", 404),
        ("GET", "/v1/fail/{how}", 500),
    ]
    assert all(0 < record[3] < 5 for record in server.records)


async def test_path_parameter_is_checked(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/accounts/a%0a", headers=AUTH) as answer:
        assert answer.status == 422
        assert (await answer.json())["errors"][0]["pointer"] == "{tenant_id}"


async def test_unknown_query_parameter_is_refused(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/accounts/t1?limits=5", headers=AUTH) as answer:
        assert answer.status == 422
        assert "limits" not in (await answer.json())["errors"][0]["detail"].split(", ")


async def test_head_has_the_headers_of_get_and_no_body(server: Server) -> None:
    answer = parse(await exchange(server.port, b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))

    assert answer.status == 200
    assert answer.headers["content-length"] == "2"
    assert answer.body == b""


async def test_header_section_above_the_limit_is_431(client: aiohttp.ClientSession) -> None:
    fields = {f"X-Filler-{n}": "a" * 4000 for n in range(HEADERS_MAX_BYTES // 4000 + 1)}

    async with client.get("/health", headers=fields) as answer:
        assert answer.status == 431
        assert (await answer.json())["code"] == "headers_too_large"


async def test_expectation_100_continue_is_met_and_any_other_is_417(server: Server) -> None:
    body = b'{"tenant_id":"t1","amount":5}'
    start = (
        f"POST /v1/spend HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\nIdempotency-Key: k\r\n"
        f"Connection: close\r\nContent-Type: {JSON['Content-Type']}\r\nContent-Length: {len(body)}\r\n"
    )

    met = await exchange(server.port, f"{start}Expect: 100-continue\r\n\r\n".encode(), body)
    other = parse(await exchange(server.port, f"{start}Expect: tea\r\n\r\n".encode(), body))

    assert met.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert other.status == 417
    assert other.json()["code"] == "expectation_failed"


async def test_refusals_are_logged_by_their_weight(client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "shieldx.web")
    for path in ("/v1/fail/raised", "/v1/fail/returned", "/v1/accounts/t1"):
        async with client.get(path, headers=AUTH):
            pass

    assert [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "shieldx.web"] == [
        ("INFO", "GET /v1/fail/{how} 402"),
        ("WARNING", "GET /v1/fail/{how} 503"),
        ("DEBUG", "GET /v1/accounts/{tenant_id} 200"),
    ]


async def test_a_refused_request_is_freed_with_its_answer_and_not_by_the_cyclic_collector() -> None:
    class Held:
        """Something that the route has in hand when it refuses."""

    held: list[weakref.ref[Held]] = []

    async def refuse(_: Request) -> Handled:
        mine = Held()
        held.append(weakref.ref(mine))
        refused = Problem(409, "stale_generation", "Another one is registered.")
        try:
            _ = {}["cause"]
        except LookupError as error:
            raise refused from error

    served = await start(ConnectionLimits(), [Route("GET", "/v1/refuse", refuse, "Refuse", "Sample", answers={200: None})])
    gc.disable()
    try:
        async with aiohttp.ClientSession(served.url) as session, session.get("/v1/refuse", headers=AUTH) as answer:
            status = answer.status
        left = [one() for one in held]
    finally:
        gc.enable()
        await served.runner.cleanup()

    assert status == 409
    assert left == [None]
