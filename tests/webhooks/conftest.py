"""A receiver that listens on this machine and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from aiohttp import web

from app.db.sql import query
from app.db.statements import Statements
from app.webhooks import outbox as outbox_module
from app.webhooks.outbox import Message, Outbox
from app.webhooks.post import Post
from app.webhooks.signature import SigningKeys
from app.webhooks.target import TargetRules

DEADLINE_S = 90.0
HERE = TargetRules(
    allow_http=True, ports=None, networks=(ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
)
KEYS = SigningKeys(b"a key of the server for tests")


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    started_s = time.monotonic()
    while not holds():
        assert time.monotonic() - started_s < DEADLINE_S, f"not in time: {what}"
        await asyncio.sleep(0.01)


async def put_out(fetch: Callable[..., Awaitable[list[asyncpg.Record]]], message: Message) -> int:
    """Put a message out and make deliveries of it at once; return how many that are."""
    await outbox_module.put_out(fetch, message)
    return int((await fetch(query("spread_messages"), outbox_module.SPREAD_MAX))[0]["deliveries"])


class Receiver:
    """An HTTP server of a customer."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []  # what the next requests are answered; then 200
        self.fields: dict[str, str] = {}
        self.silent = False
        self.endless = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.requests]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(({name.lower(): text for name, text in request.headers.items()}, await request.read()))
        while self.silent:
            await asyncio.sleep(0.01)
        response = web.StreamResponse(status=self.statuses.pop(0) if self.statuses else 200, headers=self.fields)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while self.endless:
                await response.write(b"x" * 65_536)
        return response


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", receiver.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        receiver.silent = receiver.endless = False
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with listening() as receiver:
        yield receiver


@pytest.fixture
def outbox(statements: Statements) -> Outbox:
    return Outbox(statements)


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    """A client that may reach this machine, by explicit rules."""
    post = Post(HERE)
    yield post
    await post.close()
