"""Answers in parts: whole for who reads, and not made for who does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from web_sample import AUTH, KEY, start

from app.web import paced
from app.web.connections import ConnectionLimits
from app.web.event_stream import send_events
from app.web.paced import send_json
from app.web.request import Request
from app.web.routes import Handled, Route
from app.web.watches import Watches

PARTS = 600
PART = b"0" * 65_536  # 39 MB in all: far more than sockets hold


class Long:
    """A route whose answer is made in parts, which it counts."""

    def __init__(self) -> None:
        self.made = 0
        self.ended = asyncio.Event()

    async def __call__(self, request: Request) -> Handled:
        try:
            return await send_json(request, self._parts(), {"X-Consul-Index": "7"})
        finally:
            self.ended.set()

    async def _parts(self) -> AsyncIterator[bytes]:
        yield b'"'
        for _ in range(PARTS):
            self.made += 1
            yield PART
        yield b'"'


async def test_a_client_that_reads_gets_all_and_one_that_does_not_is_dropped_and_nothing_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paced, "WRITE_TIMEOUT_S", 0.1)
    long = Long()
    route = Route("GET", "/v1/long", long, "Long", "Sample", answers={200: None}, streams=True)
    server = await start(ConnectionLimits(linger_s=0.2), [route])
    try:
        async with aiohttp.ClientSession(server.url) as client, client.get("/v1/long", headers=AUTH) as answer:
            whole = await answer.read()
            assert answer.headers["X-Consul-Index"] == "7"
            assert answer.headers["X-Request-ID"]
        long.made = 0
        long.ended.clear()

        with socket.socket() as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            idle.connect(("127.0.0.1", server.port))
            idle.sendall(f"GET /v1/long HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
            await asyncio.wait_for(long.ended.wait(), 20)

        assert len(whole) == 2 + PARTS * len(PART)
        assert long.made < PARTS // 2
    finally:
        await server.runner.cleanup()


async def test_head_gets_no_content_and_the_connection_carries_the_next_answer() -> None:
    watches = Watches()

    async def events(request: Request) -> Handled:
        async def following() -> bytes:
            return b": never\n\n"

        return await send_events(request, watches, "any", following, lambda: True)

    routes = [
        Route("GET", path, work, "Long", "Sample", answers={200: None}, streams=True)
        for path, work in (("/v1/long", Long()), ("/v1/events", events))
    ]
    server = await start(ConnectionLimits(linger_s=0.2), routes)
    try:
        for path in ("/v1/long", "/v1/events"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            ask = f"{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            writer.write(f"HEAD {ask}\r\nHEAD {ask}Connection: close\r\n\r\n".encode())
            said = await asyncio.wait_for(reader.read(), 20)
            writer.close()

            assert said.count(b"HTTP/1.1 200 OK\r\n") == 2
            assert len(said.replace(b"\r\n\r\n", b"")) == len(said) - 8
            assert said.endswith(b"\r\n\r\n")
            assert len(said) < 2_000
    finally:
        watches.close()
        await server.runner.cleanup()
