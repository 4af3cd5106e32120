"""A small server on the web floor: every kind of route once, with real sockets."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from app.web import edge
from app.web.body import Body
from app.web.connections import ConnectionLimits, EdgeRunner
from app.web.fields import Amount, Cursor, Description, Input, Limit, Metadata, Name, Time
from app.web.problems import Problem
from app.web.request import Request
from app.web.routes import (
    Handled,
    Route,
    add_routes,
    cursor,
    idempotency_key,
    if_match,
    json_answer,
    limit,
    query,
    time,
)

KEY = "shx_test_0123456789"
AUTH = {"Authorization": f"Bearer {KEY}"}
JSON = {"Content-Type": "application/json"}


class Spend(Input, frozen=True):
    """Body of the sample POST."""

    tenant_id: Name
    amount: Amount
    description: Description = ""
    metadata: Metadata | None = None


class Quota(Input, frozen=True):
    """A nested body."""

    limit: Amount
    period: Literal["hour", "day"]


class Open(Input, frozen=True):
    """A body with lists and objects in it."""

    tenant_id: Name
    quota: Quota | None = None
    spends: tuple[Spend, ...] = ()


class Spent(msgspec.Struct):
    """Answer of the sample POST."""

    tenant_id: str
    amount: int
    key: str


@dataclass(frozen=True)
class Caller:
    """The principal of the sample."""

    key_id: str
    role: str


def authenticate(header: str | None) -> Caller | None:
    """One admin key and one reader key."""
    given = hashlib.sha256((header or "").encode("utf-8", "surrogateescape")).digest()
    for role, key in (("admin", KEY), ("reader", KEY + "_reader")):
        if hmac.compare_digest(given, hashlib.sha256(f"Bearer {key}".encode()).digest()):
            return Caller(role, role)
    return None


def entrance(_method: str, _path: str) -> edge.Entrance:
    """Every closed route takes both keys."""
    return lambda authorization, _: authenticate(authorization) or edge.unauthorized()


SPEND = Body(Spend, limit_bytes=4096 + 2048, timeout_s=0.3)
MAYBE = Body(Quota, optional=True)


async def spend(request: Request) -> Handled:
    """Read a body and a key."""
    key = idempotency_key(request)
    body = await SPEND.read(request)
    return json_answer(msgspec.json.encode(Spent(body.tenant_id, body.amount, key)), etag=7, replayed=key == "again")


async def look(request: Request) -> Handled:
    """Echo what the readers of the query made of it."""
    at = time(request, "at")
    seen = {
        "tenant_id": request.match_info["tenant_id"],
        "limit": limit(request),
        "cursor": cursor(request),
        "at": None if at is None else at.isoformat(),
        "kind": query(request, "kind", Literal["topup", "spend"], None),
        "deep": query(request, "deep", bool, default=False),
        "if_match": if_match(request),
        "caller": request.principal and request.principal.key_id,
        "request_id": request.request_id,
    }
    return json_answer(json.dumps(seen).encode())


async def fail(request: Request) -> Handled:
    """Every way to fail."""
    match request.match_info["how"]:
        case "value":
            message = "card 4111111111111111 is not welcome"
            raise ValueError(message)
        case "timeout":
            raise TimeoutError
        case "raised":
            raise Problem(402, "insufficient_credits", "Not enough.", available=5)
        case "gone":
            raise web.HTTPGone(text="secret text")
        case "plain":
            return web.Response(text="plain")
        case "stream":
            stream = web.StreamResponse()
            assert request.source is not None
            await stream.prepare(request.source)
            await stream.write(b"begun")
            raise ValueError
        case _:
            return Problem(503, "unavailable", "Out of reach.", headers={"Retry-After": "2"})


async def wide(_: Request) -> Handled:
    """An answer larger than every socket buffer."""
    return json_answer(b"[" + b"0," * 8_000_000 + b"0]")


async def alive(_: Request) -> Handled:
    """An open route."""
    return json_answer(b"{}")


ROUTES = (
    Route(
        "POST", "/v1/spend", spend, "Spend", "Sample",
        body=Spend, answers={200: Spent}, idempotent=True, etag=True, problems=((402,
        "insufficient_credits"),),
    ),
    Route(
        "GET", "/v1/accounts/{tenant_id}", look, "Look", "Sample",
        answers={200: None}, path_fields={"tenant_id": Name}, etag=True,
        query={"limit": Limit, "cursor": Cursor, "at": Time, "kind": Literal["topup", "spend"], "deep": bool},
    ),
    Route("GET", "/v1/fail/{how}", fail, "Fail", "Sample", answers={200: None}, streams=True),
    Route("DELETE", "/v1/fail/{how}", fail, "Fail as admin", "Sample", answers={204: None}, roles=frozenset({"admin"}),
          streams=True),
    Route("GET", "/v1/wide", wide, "Wide", "Sample", answers={200: None}),
    Route("GET", "/health", alive, "Alive", "Sample", answers={200: None}, open=True),
)  # fmt: skip


@dataclass
class Server:
    """A running sample server and what it recorded."""

    port: int
    runner: EdgeRunner
    records: list[tuple[str, str, int, float]] = field(default_factory=list)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        server = self.runner.server
        return 0 if server is None else len(server.connections)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


async def start(limits: ConnectionLimits, routes: Sequence[Route] = ROUTES) -> Server:
    """The sample server on a free port."""
    app = web.Application()
    records: list[tuple[str, str, int, float]] = []
    edge.set_up(app, entrance, lambda *record: records.append(record))
    add_routes(app, routes)
    runner = EdgeRunner(app, limits, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return Server(site.port, runner, records)


async def eventually(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    """Wait until `condition` holds; TimeoutError if it does not in time."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class RawAnswer:
    """One HTTP answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def parse(data: bytes) -> RawAnswer:
    """The first answer in `data`."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines[1:]]
    return RawAnswer(int(lines[0].split(" ")[1]), {name.lower(): value for name, value in pairs}, body)


async def exchange(port: int, *parts: bytes, deadline_s: float = 20.0) -> bytes:
    """Send bytes on a new connection, part by part, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(deadline_s):
            return await reader.read()
    finally:
        writer.close()
