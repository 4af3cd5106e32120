"""The routes of one part of the server over real sockets, without the rest of it, and calls of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from app.web.connections import ConnectionLimits, EdgeRunner
from app.web.docs import reference_routes
from app.web.edge import set_up, unauthorized
from app.web.request import Principal
from app.web.routes import Route, add_routes


@asynccontextmanager
async def serving(
    app: web.Application, routes: Sequence[Route], authenticate: Callable[[str], Principal | None]
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a server with these routes and their reference.

    authenticate  returns whom an Authorization header stands for, None for nobody
    """
    set_up(app, lambda _method, _path: lambda header, _address: authenticate(header or "") or unauthorized())
    add_routes(app, (*routes, *reference_routes(routes, title="test", version="0")))
    runner = EdgeRunner(app, ConnectionLimits(), shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield session
    await runner.cleanup()


class Reply(NamedTuple):
    """Status, body and entity tag of an answer."""

    status: int
    body: Any
    etag: str | None


async def call(
    session: aiohttp.ClientSession, method: str, path: str, body: Any = None, *, key: str = "root", **fields: str
) -> Reply:
    """Send a request with a key and further header fields."""
    headers, skip = {"Authorization": f"Bearer {key}", **fields}, ("Content-Type",) if body is None else ()
    async with session.request(method, path, json=body, headers=headers, skip_auto_headers=skip) as response:
        found = await response.json(content_type=None) if response.status != 204 else None
        return Reply(response.status, found, response.headers.get("ETag"))
