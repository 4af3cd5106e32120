"""Slow, many, silent, deaf and malformed clients, on raw sockets."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator

import pytest
from web_sample import AUTH, Server, eventually, exchange, parse, start

from app.web.connections import FIELD_MAX_BYTES, HEADER_FIELDS_MAX, LINE_MAX_BYTES, ConnectionLimits

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def strict() -> AsyncIterator[Server]:
    """A server with short deadlines and few places."""
    running = await start(
        ConnectionLimits(
            header_timeout_s=0.3,
            keepalive_timeout_s=0.6,
            write_timeout_s=0.3,
            linger_s=0.1,
            connections_max=60,
        )
    )
    yield running
    await running.runner.cleanup()


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/spend HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n" + body


MALFORMED = {
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "lower case method": b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "unknown method": b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "wrong version": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "space in a name": b"GET /health HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n",
    "space before the colon": b"GET /health HTTP/1.1\r\nHost: x\r\nA : c\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n",
    "folded line": b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "bare CR": b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\rX: y\r\n\r\n",
    "NUL in a value": b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
    "length that is text": post(b"Content-Length: ten", b"x" * 10),
    "negative length": post(b"Content-Length: -1"),
    "signed length": post(b"Content-Length: +5", b"hello"),
    "length of 30 digits": post(b"Content-Length: " + b"9" * 30),
    "two lengths": post(b"Content-Length: 5\r\nContent-Length: 6", b"hello!"),
    "list of lengths": post(b"Content-Length: 5, 5", b"hello"),
    "length and chunks": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "chunks and length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked", b"0\r\n\r\n"),
    "chunked not last": post(b"Transfer-Encoding: chunked, gzip", b"0\r\n\r\n"),
    "obscured chunked": post(b"Transfer-Encoding: xchunked", b"0\r\n\r\n"),
    "chunk size that is no number": post(b"Transfer-Encoding: chunked", b"zz\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than its size": post(b"Transfer-Encoding: chunked", b"2\r\nhello\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_http_is_a_problem_and_leaves_no_trace(
    server: Server, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)

    answer = parse(await exchange(server.port, MALFORMED[name]))

    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.json()["code"] == "malformed_http"
    assert [record for record in caplog.records if record.levelno > logging.INFO or record.exc_info] == []


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /" + b"a" * LINE_MAX_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long"),
        (HEALTH[:-2] + b"A: " + b"a" * (FIELD_MAX_BYTES + 1) + b"\r\n\r\n", 431, "headers_too_large"),
        (HEALTH[:-2] + b"a" * (FIELD_MAX_BYTES + 1) + b": b\r\n\r\n", 431, "headers_too_large"),
        (HEALTH[:-2] + b"A: b\r\n" * HEADER_FIELDS_MAX + b"\r\n", 431, "headers_too_large"),
    ],
)
async def test_oversized_head_names_what_is_too_large(server: Server, request_bytes: bytes, status: int, code: str) -> None:
    answer = parse(await exchange(server.port, request_bytes))

    assert (answer.status, answer.json()["code"]) == (status, code)


async def test_head_at_the_limit_of_fields_is_taken(server: Server) -> None:
    fields = b"A: b\r\n" * (HEADER_FIELDS_MAX - 2) + b"Connection: close\r\n\r\n"

    answer = parse(await exchange(server.port, HEALTH[:-2] + fields))

    assert answer.status == 200


@pytest.mark.parametrize("target", [b"CONNECT example.org:443", b"OPTIONS *"])
async def test_target_that_is_no_path_is_a_problem(server: Server, target: bytes) -> None:
    answer = parse(await exchange(server.port, target + b" HTTP/1.1\r\nHost: x\r\n\r\n"))

    assert answer.status == 404
    assert answer.json()["code"] == "not_found"


async def test_absolute_target_is_routed_by_its_path(server: Server) -> None:
    line = b"GET http://elsewhere.example/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    assert parse(await exchange(server.port, line)).status == 200


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    missing = b"GET /missing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    data = await exchange(server.port, HEALTH + HEALTH + missing)

    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d{3}) ", data)] == [200, 200, 404]


async def test_garbage_behind_a_good_request_is_answered_after_it(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEALTH)
    first = await reader.readuntil(b"{}")
    writer.write(b"\x00garbage\r\n\r\n")
    second = await reader.read()
    writer.close()

    assert [parse(first).status, parse(second).status] == [200, 400]


async def test_fifty_clients_that_drip_their_headers_are_closed_and_others_are_served(strict: Server) -> None:
    async def drip() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", strict.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        answer = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(5):
            while not answer.done():
                writer.write(b"A: b\r\n")
                await asyncio.wait([answer], timeout=0.05)
        writer.close()
        return answer.exception() is not None or answer.result() == b""

    slow = [asyncio.ensure_future(drip()) for _ in range(50)]
    good = parse(await exchange(strict.port, HEALTH))

    assert good.status == 200
    assert await asyncio.gather(*slow) == [True] * 50


async def test_silent_connection_is_closed(strict: Server) -> None:
    assert await exchange(strict.port) == b""


async def test_idle_connection_is_closed_after_the_keep_alive_timeout(strict: Server) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    data = await exchange(strict.port, HEALTH)

    assert parse(data).status == 200
    assert loop.time() - began >= 0.5


async def test_connection_above_the_limit_is_answered_503_and_closed_until_one_ends() -> None:
    server = await start(ConnectionLimits(connections_max=3))
    held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
    await eventually(lambda: server.connections == 3)

    refused = parse(await exchange(server.port))
    held[0][1].close()
    await eventually(lambda: server.connections == 2)
    taken = parse(await exchange(server.port, HEALTH[:-2] + b"Connection: close\r\n\r\n"))

    for _, writer in held:
        writer.close()
    await server.runner.cleanup()
    assert refused.status == 503
    assert refused.json()["code"] == "connections_exhausted"
    assert refused.headers["retry-after"] == "1"
    assert taken.status == 200


async def test_client_that_does_not_read_its_answer_is_dropped(strict: Server) -> None:
    head = f"GET /v1/wide HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", strict.port, limit=1024)
    writer.write(head.encode())
    await reader.readexactly(100)
    held = strict.connections

    await eventually(lambda: strict.connections == 0)

    writer.close()
    assert held == 1


async def test_client_that_reads_slowly_gets_its_whole_answer(strict: Server) -> None:
    head = f"GET /v1/wide HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {AUTH['Authorization']}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", strict.port, limit=1024)
    writer.write(head.encode())
    size = 0
    while chunk := await reader.read(1 << 20):
        size += len(chunk)
        await asyncio.sleep(0)
    writer.close()

    assert size > 16_000_000
