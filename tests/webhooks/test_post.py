"""One message over real sockets: what arrives, what comes back, and where nothing is sent."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ThreadedResolver

from app.webhooks.post import ANSWER_TIMEOUT_S, RETRY_AFTER_MAX_S, Outcome, Post, retry_after_s
from app.webhooks.target import TargetRefused, TargetRules
from tests.webhooks.conftest import HERE, Receiver, listening

FIELDS = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,x"}


async def test_the_body_arrives_byte_for_byte_with_the_three_fields(post: Post, receiver: Receiver) -> None:
    outcome = await post.send(receiver.url, FIELDS, b'{"a": 1}')

    assert outcome == Outcome(200, None)
    fields, body = receiver.requests[0]
    assert body == b'{"a": 1}'
    assert {name: fields[name] for name in FIELDS} == FIELDS
    assert fields["content-type"] == "application/json"
    assert "cookie" not in fields
    assert fields["user-agent"].startswith("shieldx-webhooks/")


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_any_2xx_is_an_arrival(post: Post, receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]

    assert await post.send(receiver.url, FIELDS, b"{}") == Outcome(status, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(post: Post, receiver: Receiver, status: int) -> None:
    async with listening() as other:
        receiver.statuses, receiver.fields = [status], {"Location": other.url}

        assert await post.send(receiver.url, FIELDS, b"{}") == Outcome(status, "redirect")
        assert other.requests == []
    assert len(receiver.requests) == 1


async def test_a_pause_is_heard_only_with_a_status_that_asks_for_one(post: Post, receiver: Receiver) -> None:
    receiver.fields = {"Retry-After": "120"}
    receiver.statuses = [429, 502, 503, 504, 400]

    outcomes = [await post.send(receiver.url, FIELDS, b"{}") for _ in range(5)]

    assert [outcome.retry_after_s for outcome in outcomes] == [120.0] * 4 + [None]
    assert {outcome.error for outcome in outcomes} == {"status"}


async def test_an_endpoint_that_does_not_answer_is_given_up(receiver: Receiver) -> None:
    post = Post(HERE, timeout_s=0.2)
    receiver.silent = True

    assert await post.send(receiver.url, FIELDS, b"{}") == Outcome(None, "timeout")
    await post.close()


async def test_an_endless_answer_is_not_read(post: Post, receiver: Receiver) -> None:
    receiver.endless = True
    started_s = time.monotonic()

    assert await post.send(receiver.url, FIELDS, b"{}") == Outcome(200, None)
    assert time.monotonic() - started_s < ANSWER_TIMEOUT_S / 2


async def test_nobody_there_is_a_failure(post: Post) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    assert await post.send(f"http://127.0.0.1:{port}/", FIELDS, b"{}") == Outcome(None, "connection")


async def test_https_to_a_server_without_it_is_a_failure(post: Post, receiver: Receiver) -> None:
    outcome = await post.send(receiver.url.replace("http:", "https:"), FIELDS, b"{}")

    assert outcome in {Outcome(None, "tls"), Outcome(None, "connection")}
    assert receiver.requests == []


async def test_a_certificate_that_nobody_vouches_for_is_refused(post: Post) -> None:
    """The certificate names the right address and is in date; all that it lacks is an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("untrusted.pem"))
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]

    outcome = await post.send(f"https://127.0.0.1:{port}/", FIELDS, b"{}")

    server.close()
    await server.wait_closed()
    assert outcome == Outcome(None, "tls")
    assert b"".join(seen) == b""


async def test_a_proxy_of_the_environment_is_not_used(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")

        assert await post.send(receiver.url, FIELDS, b"{}") == Outcome(200, None)
        assert proxy.requests == []


async def test_this_machine_is_refused_by_default(receiver: Receiver) -> None:
    post = Post(TargetRules(allow_http=True, ports=None))

    outcomes = [
        await post.send(url.format(receiver.port), FIELDS, b"{}")
        for url in ("http://127.0.0.1:{}/", "http://localhost:{}/", "http://[::ffff:127.0.0.1]:{}/", "http://127.1:{}/")
    ]

    await post.close()
    assert outcomes == [Outcome(None, "address")] * 4
    assert receiver.requests == []


async def test_a_name_that_leads_inside_is_refused_at_the_connection(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name passes when the endpoint is made; what it points to is seen only now, and one bad address is enough."""
    places = ["127.0.0.1"]

    async def resolve(_self: ThreadedResolver, host: str, port: int = 0, family: Any = 0) -> list[dict[str, Any]]:
        return [
            {"hostname": host, "host": place, "port": port, "family": socket.AF_INET, "proto": 0,
             "flags": socket.AI_NUMERICHOST}
            for place in places
        ]  # fmt: skip

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    url = f"http://rebinding.example:{receiver.port}/"
    strict = Post(TargetRules(allow_http=True, ports=None))
    inside = Post(HERE)

    first = await strict.send(url, FIELDS, b"{}")
    places = ["127.0.0.1", "10.0.0.1"]
    second = await inside.send(url, FIELDS, b"{}")
    places = ["127.0.0.1"]
    third = await inside.send(url, FIELDS, b"{}")

    await strict.close()
    await inside.close()
    assert (first, second, third) == (Outcome(None, "address"), Outcome(None, "address"), Outcome(200, None))
    assert len(receiver.requests) == 1


async def test_the_socket_itself_is_refused_when_nothing_else_has_looked(receiver: Receiver) -> None:
    post = Post(TargetRules(allow_http=True, ports=None, networks=(ipaddress.ip_network("10.0.0.0/8"),)))

    with pytest.raises(TargetRefused):
        await post._session.post(receiver.url)

    await post.close()
    assert receiver.requests == []


def test_a_pause_is_read_in_both_forms_and_bounded() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)

    assert retry_after_s("7") == 7.0
    assert 85 < (retry_after_s(soon) or 0) <= 90
    assert retry_after_s("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0
    assert retry_after_s("9" * 50) == retry_after_s("Fri, 31 Dec 9999 23:59:59 GMT") == RETRY_AFTER_MAX_S
    assert [retry_after_s(text) for text in (None, "", "-1", "1.5", "soon", "\u0663")] == [None] * 6
