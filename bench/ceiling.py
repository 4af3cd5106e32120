"""The ceiling: the same HTTP server with nothing behind it.

One route, POST /v1/credits/consume, that answers a constant. What it serves is the most that any route
on this HTTP stack can serve on this machine, so a ratio to it tells how much the ledger itself costs.
"""

import argparse
import asyncio
import signal
from typing import Final

import uvloop
from aiohttp import web

BODY: Final = (
    b'{"transaction_id":"01930f2e-7c11-7a64-8f6e-0d2b6a3c9e51","type":"consume","tenant_id":"t0001234",'
    b'"amount":5,"balance":999999995,"reserved":0,"available":999999995,"version":42,'
    b'"created_at":"2026-11-21T12:00:00.123456Z","shard":0,"seq":1234567,"reservation_id":null,'
    b'"metadata":{"request":"a label of the kind clients send"},"description":null}'
)


async def consume(request: web.Request) -> web.Response:  # noqa: ARG001
    """Answer the constant; the body of the request is left to the server to read."""
    return web.Response(body=BODY, content_type="application/json")


async def ready(request: web.Request) -> web.Response:  # noqa: ARG001
    """Answer 200: a served constant is always ready."""
    return web.Response(body=b'{"state":"ready"}', content_type="application/json")


def make_app() -> web.Application:
    """Build a plain application: no middleware, no signals."""
    app = web.Application()
    app.add_routes([web.post("/v1/credits/consume", consume), web.get("/ready", ready)])
    return app


async def serve(app: web.Application, host: str, port: int) -> None:
    """Serve `app` without access log until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Serve on the port that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceiling", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(serve(make_app(), arguments.host, arguments.port))


if __name__ == "__main__":
    main()
