"""CPU time of the edge per request, beside aiohttp alone. Run it by hand: `python tests/web/edge_cost.py`.

Each variant is a server process of its own on a free port; one client process sends the same POST over 16
keep-alive connections. The figure is CPU time of the server process per request, socket calls included, the
lowest and the median of 15 turns, variants taking turns so that a busy machine hits all alike.
"""

import asyncio
import hmac
import json
import multiprocessing
import statistics
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import cast

import uvloop
from aiohttp import web
from web_sample import AUTH, ROUTES, Caller, exchange, parse

from app.web import edge
from app.web.connections import EdgeRunner
from app.web.routes import Handled, Route, add_routes, json_answer

CONNECTIONS = 16
REQUESTS = 250
TURNS = 15
PATH = "/v1/spend"
BODY = b'{"tenant_id":"t1","amount":5,"description":"abc"}'
ANSWER = b'{"tenant_id":"t1","amount":5,"key":"0123456789abcdef"}'
HEAD = (
    f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {AUTH['Authorization']}\r\n"
    f"Content-Type: application/json\r\nIdempotency-Key: 0123456789abcdef\r\nContent-Length: {len(BODY)}\r\n\r\n"
)
AUTHORIZATION = AUTH["Authorization"].encode()
CALLER = Caller("root", "admin")
REQUEST = HEAD.encode() + BODY


async def constant(_: web.Request) -> web.StreamResponse:
    """A constant, the way aiohttp documents it."""
    return web.Response(body=ANSWER, content_type="application/json")


async def decoded(request: web.Request) -> web.StreamResponse:
    """A constant after reading the body the way aiohttp documents it."""
    await request.json(loads=json.loads)
    return web.Response(body=ANSWER, content_type="application/json")


async def constant_answer(_: web.Request) -> Handled:
    """A constant through `json_answer`."""
    return json_answer(ANSWER)


async def spent(_: web.Request) -> web.StreamResponse:
    """CPU seconds of this process so far."""
    return web.json_response(time.process_time())


def one_key(header: str | None) -> Caller | None:
    """The cheapest authenticator that compares in constant time."""
    return CALLER if hmac.compare_digest((header or "").encode(), AUTHORIZATION) else None


def runner_of(name: str) -> web.AppRunner:
    """The server of one variant."""
    app = web.Application()
    app.router.add_get("/cpu", spent)
    if name.startswith("bare"):
        app.router.add_post(PATH, decoded if "json" in name else constant)
        return web.AppRunner(app, access_log=None)
    edge.set_up(app, lambda _method, _path: lambda header, _address: one_key(header) or edge.unauthorized(), lambda *_: None)
    own = Route("POST", PATH, constant_answer, "Constant", "Cost")
    add_routes(app, ROUTES if "body" in name else [own])
    return EdgeRunner(app)


def serve(name: str, ready: Connection) -> None:
    """Serve one variant until the process is ended."""

    async def run() -> None:
        runner = runner_of(name)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.send(site.port)
        await asyncio.Event().wait()

    uvloop.run(run())


class Sender(asyncio.Protocol):
    """One connection that sends the next request when it has the answer to the one before."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        """Resolve `done` after the last answer."""
        self.done = done
        self.left = REQUESTS
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        """Count one answer: each is one small write."""
        assert self.transport is not None
        assert data.startswith(b"HTTP/1.1 200"), data
        self.left -= 1
        if self.left:
            self.transport.write(REQUEST)
        else:
            self.transport.close()
            self.done.set_result(None)


async def cpu_seconds(port: int) -> float:
    """CPU time that the server on `port` has spent."""
    head = b"GET /cpu HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    return float(parse(await exchange(port, head)).json())


async def turn(port: int) -> float:
    """Microseconds of server CPU per request over one turn."""
    loop = asyncio.get_running_loop()
    before = await cpu_seconds(port)
    ends = [loop.create_future() for _ in range(CONNECTIONS)]
    for end in ends:
        await loop.create_connection(partial(Sender, end), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return (await cpu_seconds(port) - before) / (CONNECTIONS * REQUESTS) * 1e6


async def measure(ports: dict[str, int]) -> dict[str, list[float]]:
    """All turns of all variants."""
    turns: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(TURNS):
        for name, port in ports.items():
            turns[name].append(await turn(port))
    return turns


def main() -> None:
    """Print one line per variant."""
    names = ("bare, constant", "bare, request.json()", "edge, constant", "edge, key and body")
    ports: dict[str, int] = {}
    processes = []
    for name in names:
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=serve, args=(name, theirs), daemon=True)
        process.start()
        processes.append(process)
        ports[name] = mine.recv()
    for name, turns in uvloop.run(measure(ports)).items():
        print(f"{name:22} {min(turns):6.1f} us lowest {statistics.median(turns):6.1f} us median")
    for process in processes:
        process.kill()


if __name__ == "__main__":
    main()
