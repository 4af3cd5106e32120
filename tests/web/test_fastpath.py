"""The fast path: what it takes, and that nobody can tell it from aiohttp."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web_sample import KEY, ROUTES, Server, eventually, exchange, parse, start

from app.web.connections import ConnectionLimits
from app.web.fastpath import HEAD_MAX_BYTES, parse_head
from app.web.request import Request
from app.web.routes import Handled, Route, json_answer

BODY = b'{"tenant_id":"t1","amount":5}'
FIELDS = (
    b"Host: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\nContent-Type: application/json\r\nX-Request-ID: r1\r\n"
)  # fmt: skip


def spend(key: bytes = b"k1", body: bytes = BODY, extra: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        b"POST /v1/spend HTTP/1.1\r\n" + FIELDS + b"Idempotency-Key: " + key + b"\r\n" + extra
        + b"Content-Length: " + str(size).encode() + b"\r\n\r\n" + body
    )  # fmt: skip


LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """All answers on a connection, without the fields that change from one to the next."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
        answer = parse(head + b"\r\n\r\n" + rest[:length])
        fields = {name: value for name, value in answer.headers.items() if name not in {"date", "x-request-id"}}
        body = re.sub(rb'"request_id":"[^"]*"', b"", answer.body)
        found.append((answer.status, fields, body))
        data = rest[length:]
    return found


def through_aiohttp(server: Server) -> int:
    """How many requests aiohttp's own machinery has run."""
    plain = server.runner.server
    assert plain is not None
    return plain.requests_count


async def test_plain_request_is_answered_without_aiohttp(server: Server) -> None:
    before = through_aiohttp(server)

    data = await exchange(server.port, spend() + LAST)

    assert [status for status, _, _ in answers(data)] == [200, 200]
    assert json.loads(answers(data)[0][2])["key"] == "k1"
    # The last one says Connection: close, which is aiohttp's business.
    assert through_aiohttp(server) == before + 1


async def test_body_in_a_packet_of_its_own_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.fastpath.HOLD_S", 10.0)
    before = through_aiohttp(server)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    whole = spend()
    writer.write(whole[: -len(BODY)])
    await writer.drain()
    await asyncio.sleep(0.005)
    writer.write(BODY)
    answer = parse(await reader.readuntil(b"}"))

    assert answer.status == 200
    assert through_aiohttp(server) == before
    writer.close()


async def test_body_that_takes_long_is_left_to_aiohttp_and_its_time_limit(server: Server) -> None:
    before = through_aiohttp(server)

    data = await exchange(server.port, spend()[:-5])

    assert parse(data).status == 408
    assert through_aiohttp(server) == before + 1


async def test_pipelined_requests_are_answered_in_order_whoever_answers_them(server: Server) -> None:
    keys = [f"k{i}" for i in range(200)]
    sent = b"".join(spend(k.encode(), extra=b"Expect: 100-continue\r\n" if i % 7 == 3 else b"") for i, k in enumerate(keys))

    data = await exchange(server.port, sent + LAST)

    seen = [json.loads(body).get("key") for _, _, body in answers(data.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))]
    assert seen == [*keys, None]


async def test_a_head_like_the_one_before_brings_its_own_body_and_its_own_key(server: Server) -> None:
    other = BODY.replace(b"1", b"2")
    assert len(other) == len(BODY)
    assert other != BODY
    foreign = spend().replace(KEY.encode(), KEY.encode()[:-1] + b"0")
    sent = [spend(), spend(body=other), spend(), foreign, spend(), spend(extra=b"A: b\r\n"), spend(b"k2"), spend(b"k2")]
    alone = [answers(await exchange(server.port, one + LAST))[0] for one in sent]

    together = answers(await exchange(server.port, b"".join(sent) + LAST))[:-1]

    assert [status for status, _, _ in together] == [200, 200, 200, 401, 200, 200, 200, 200]
    assert together == alone
    assert together[0] != together[1]


async def test_a_flood_of_pipelined_requests_is_read_no_faster_than_it_is_answered(server: Server) -> None:
    data = await exchange(server.port, spend() * 3000 + LAST, deadline_s=30)

    assert len(answers(data)) == 3001


@pytest.mark.parametrize(
    "sent",
    [
        spend(),
        spend(body=b"{"),
        spend(body=b'{"tenant_id":"t1","amount":0}'),
        spend(body=b'{"tenant_id":"t1","amount":5,"amount":5}'),
        spend(body=b""),
        spend(key=b"again"),
        spend(key=b""),
        spend(extra=b"If-Match: 7\r\n"),
        spend(extra=b"Content-Encoding: gzip\r\n"),
        spend(body=b'{"tenant_id":"' + b"x" * 7000 + b'"}'),
        spend().replace(b"/v1/spend", b"/v1/spend?a=b"),
        spend().replace(b"/v1/spend", b"/v1/nowhere"),
        spend().replace(b"POST", b"PUT"),
        spend().replace(b"application/json", b"text/plain"),
        spend().replace(KEY.encode(), b"wrong"),
        b"GET /v1/accounts/t1 HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET /v1/accounts/t1?limit=5&cursor=abc HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET /v1/accounts/t1?limit=5&limit=6 HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET /v1/accounts/t1? HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET /v1/accounts/t1?limit= HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET /v1/accounts/t%201 HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET /v1/accounts/../t1 HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET //v1/accounts/t1 HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"GET /v1/accounts/ HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"DELETE /v1/fail/raised HTTP/1.1\r\n" + FIELDS + b"\r\n",
    ],
)
async def test_answer_is_the_same_whole_and_byte_by_byte(server: Server, sent: bytes) -> None:
    whole = await exchange(server.port, sent + LAST)

    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for i in range(min(len(sent), 700)):
        writer.write(sent[i : i + 1])
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(sent[700:] + LAST)
    slowly = await reader.read()
    writer.close()

    assert answers(whole) == answers(slowly)


NOT_PLAIN = {
    "cut head": spend()[:60],
    "HTTP/1.0": spend().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "lower case method": spend().replace(b"POST", b"post"),
    "no host": spend().replace(b"Host: x\r\n", b""),
    "a field twice": spend(extra=b"host: y\r\n"),
    "two lengths": spend(extra=b"Content-Length: 29\r\n"),
    "chunked": spend(extra=b"Transfer-Encoding: chunked\r\n"),
    "expectation": spend(extra=b"Expect: 100-continue\r\n"),
    "upgrade": spend(extra=b"Upgrade: websocket\r\n"),
    "close": spend(extra=b"Connection: close\r\n"),
    "folded": spend(extra=b"A: b\r\n c\r\n"),
    "bare CR": spend(extra=b"A: b\rc\r\n"),
    "bare LF": spend(extra=b"A: b\nC: d\r\n"),
    "LF only": spend().replace(b"\r\n", b"\n"),
    "NUL": spend(extra=b"A: b\x00\r\n"),
    "beyond ASCII": spend(extra="A: é\r\n".encode()),
    "space in a name": spend(extra=b"A B: c\r\n"),
    "space before the colon": spend(extra=b"A : c\r\n"),
    "no name": spend(extra=b": c\r\n"),
    "no colon": spend(extra=b"nothing\r\n"),
    "signed length": spend().replace(b"Length: 29", b"Length: +29"),
    "length of letters": spend().replace(b"Length: 29", b"Length: 2x"),
    "empty length": spend().replace(b"Length: 29", b"Length: "),
    "GET with a body": spend().replace(b"POST", b"GET"),
    "absolute target": spend().replace(b"/v1/spend", b"http://x/v1/spend"),
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "fragment": spend().replace(b"/v1/spend", b"/v1/spend#x"),
    "percent": spend().replace(b"/v1/spend", b"/v1/%73pend"),
    "space in the target": spend().replace(b"/v1/spend", b"/v1/ spend"),
    "long head": spend(extra=b"A: " + b"x" * HEAD_MAX_BYTES + b"\r\n"),
    "many fields": spend(extra=b"".join(b"A%d: b\r\n" % i for i in range(80))),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_in_the_subset_is_left_to_aiohttp(name: str) -> None:
    assert parse_head(NOT_PLAIN[name]) is None


TOKEN = st.text(st.sampled_from("!#$%&'*+-.^_`|~azAZ09"), min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


@given(st.dictionaries(TOKEN, VALUE, max_size=8), st.binary(max_size=40))
def test_head_of_the_subset_is_taken_apart_as_it_was_put_together(fields: dict[str, str], body: bytes) -> None:
    own = {name: value for name, value in fields.items() if name.lower() not in {"te", "host", "expect"}}
    own = {name.lower(): value for name, value in own.items()}
    lines = "".join(f"{name}:{value}\r\n" for name, value in own.items())
    data = f"POST /a/b HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body

    head = parse_head(data)

    assert head is not None
    assert (head.method, head.path, data[head.size :], head.length) == ("POST", "/a/b", body, len(body))
    assert head.headers == {"host": "h", "content-length": str(len(body))} | {n: v.strip(" \t") for n, v in own.items()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(spend()) - 1), st.sampled_from([b"\x00", b"\r", b"\n", b" ", b":", b"\xff", b"A", b"%"]))
async def test_one_wrong_byte_is_answered_alike_whole_and_in_two_parts(server: Server, place: int, byte: bytes) -> None:
    sent = spend()
    sent = sent[:place] + byte + sent[place + 1 :]

    whole = await exchange(server.port, sent + LAST)
    parts = await exchange(server.port, sent[:20], sent[20:] + LAST)

    # Only the first: what follows a wrong length depends on the packets that aiohttp gets.
    assert answers(whole)[0][0] == answers(parts)[0][0]


@pytest.fixture
async def gated() -> AsyncIterator[tuple[Server, asyncio.Event, list[str]]]:
    """A server with a route that answers when it is told to."""
    gate, done = asyncio.Event(), list[str]()

    async def wait(_: Request) -> Handled:
        done.append("began")
        await gate.wait()
        done.append("ran")
        return json_answer(b'{"waited":true}')

    running = await start(
        ConnectionLimits(keepalive_timeout_s=0.2),
        (*ROUTES, Route("GET", "/wait", wait, "Wait", "Sample", answers={200: None}, open=True)),
    )
    yield running, gate, done
    await running.runner.cleanup()


WAIT = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_request_that_runs_at_shutdown_is_answered(gated: tuple[Server, asyncio.Event, list[str]]) -> None:
    server, gate, done = gated
    asking = asyncio.create_task(exchange(server.port, WAIT))
    await eventually(lambda: done == ["began"])

    stopping = asyncio.create_task(server.runner.cleanup())
    await asyncio.sleep(0.05)
    gate.set()

    assert answers(await asking)[0][2] == b'{"waited":true}'
    await stopping


async def test_client_that_will_send_no_more_gets_its_answers(gated: tuple[Server, asyncio.Event, list[str]]) -> None:
    server, gate, _ = gated
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    writer.write(WAIT + spend() + WAIT)
    writer.write_eof()
    gate.set()

    async with asyncio.timeout(5):
        assert [status for status, _, _ in answers(await reader.read())] == [200, 200, 200]
    writer.close()


@pytest.mark.parametrize("extra", [b"", b"Expect: 100-continue\r\n"], ids=["plain", "through aiohttp"])
@pytest.mark.parametrize("pauses", [0, 1, 5], ids=["at once", "while held", "while read"])
async def test_body_that_its_client_cuts_short_is_refused(
    gated: tuple[Server, asyncio.Event, list[str]], pauses: int, extra: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server, _, _ = gated
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    writer.write(spend(extra=extra)[:-5])
    for _ in range(pauses):
        await asyncio.sleep(0.02)
    writer.write_eof()

    async with asyncio.timeout(5):
        data = (await reader.read()).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert answers(data)[0][0] == 400
    assert b'"malformed_http"' in data
    await eventually(lambda: not server.connections)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    writer.close()


async def test_request_of_a_client_that_left_runs_to_its_end(gated: tuple[Server, asyncio.Event, list[str]]) -> None:
    server, gate, done = gated
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(WAIT)
    await eventually(lambda: done == ["began"])

    writer.transport.abort()
    gate.set()

    await eventually(lambda: done == ["began", "ran"] and not server.connections)


async def test_connection_outlives_its_keep_alive_time_while_a_request_runs_and_not_after(
    gated: tuple[Server, asyncio.Event, list[str]],
) -> None:
    server, gate, _ = gated
    asking = asyncio.create_task(exchange(server.port, WAIT))

    ended, _ = await asyncio.wait({asking}, timeout=0.5)
    assert not ended
    gate.set()

    assert answers(await asking)[0][0] == 200
