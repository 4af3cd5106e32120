"""Connections: how many, how slow, how large, and what malformed HTTP is answered.

`EdgeRunner` is aiohttp's AppRunner with a server of ours. aiohttp reads and parses; this file only adds what
happens when a connection is made, when it stalls, and when its bytes are not HTTP. Nothing here runs per
received packet.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_request import BaseRequest

from app.web.answers import problem_answer
from app.web.edge import FIXED, Fixed
from app.web.fastpath import PATHS, FastConnection, Paths
from app.web.problems import Problem
from app.web.request_ids import ids

# A first header section of 16 KiB at 13 kbit/s; slower clients hold a socket only.
HEADER_TIMEOUT_S: Final = 10.0
KEEPALIVE_TIMEOUT_S: Final = 75.0  # above the 60 s that common proxies keep an idle upstream connection
WRITE_TIMEOUT_S: Final = 30.0  # a client that reads nothing for this long is gone
# The rest of a refused body that is read and dropped, so that the answer is not lost in a reset.
LINGER_S: Final = 2.0
CONNECTIONS_MAX: Final = 8192  # 8192 * 40 KiB of buffers and objects is 320 MiB
LINE_MAX_BYTES: Final = 8192  # request line; RFC 9112 asks for 8000 at least
# One header field; another number than the line's, so that an error tells which.
FIELD_MAX_BYTES: Final = 8000
HEADER_FIELDS_MAX: Final = 100  # fields of one request; a proxy chain adds about 20

REQUEST_CODE: Final = web.RequestHandler._handle_request.__code__  # noqa: SLF001 - to tell requests from connections

log = logging.getLogger("shieldx.web.connections")

_Handle = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one server. Times in seconds, sizes in bytes."""

    header_timeout_s: float = HEADER_TIMEOUT_S
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S
    write_timeout_s: float = WRITE_TIMEOUT_S
    linger_s: float = LINGER_S
    connections_max: int = CONNECTIONS_MAX
    line_max_bytes: int = LINE_MAX_BYTES
    field_max_bytes: int = FIELD_MAX_BYTES
    header_fields_max: int = HEADER_FIELDS_MAX


def problem_of(error: BaseException | None, limits: ConnectionLimits) -> Problem:
    """The problem that a parser error is, by class and limit. Its text quotes the input: unused."""
    if isinstance(error, LineTooLong):
        if error.args[1] == limits.line_max_bytes:
            return Problem(414, "uri_too_long", f"The request line is above {limits.line_max_bytes} bytes.", close=True)
        return Problem(431, "headers_too_large", f"A header field is above {limits.field_max_bytes} bytes.", close=True)
    if "Too many headers" in str(error):
        return Problem(
            431,
            "headers_too_large",
            f"There are more than {limits.header_fields_max} header fields.",
            close=True,
        )
    return Problem(400, "malformed_http", "The bytes received are not an HTTP/1.1 message.", close=True)


class EdgeConnection(FastConnection):
    """One connection: deadlines, a place in the count, and problem+json for bad HTTP."""

    def __init__(self, server: "EdgeServer", **options: Any) -> None:
        """One per accepted socket; `options` are those of `web.RequestHandler`."""
        super().__init__(server, server.paths, **options)
        self.server = server
        self.admitted = False
        self.deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with a deadline for the first header section; at the limit of connections, answer 503 and
        close.
        """
        server = self.server
        if server.open_connections >= server.limits.connections_max:
            self.force_close()
            socket = cast("asyncio.Transport", transport)  # uvloop's transports inherit no class of asyncio.
            socket.write(server.refusal())
            socket.close()
            return
        self.admitted = True
        super().connection_made(transport)
        self.deadline = self._loop.call_later(server.limits.header_timeout_s, self.close_silent)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Drop the timers with the connection."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if self.admitted:
            super().connection_lost(exc)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature.
        """Go on reading if it was paused; aiohttp calls this after every body that was read, and parses nothing again."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def close_silent(self) -> None:
        """Close if no complete header section has arrived yet. Later ones fall under the keep-alive
        timeout.
        """
        self.deadline = None
        if self._request_count == 0:
            self.force_close()

    def pause_writing(self) -> None:
        """The send buffer is full: give the client a time to read from it."""
        super().pause_writing()
        self._cancel_deadline()
        self.deadline = self._loop.call_later(self.server.limits.write_timeout_s, self.abort_unread)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._cancel_deadline()

    def abort_unread(self) -> None:
        """Drop a connection whose client does not read; what is buffered is lost."""
        self.deadline = None
        if self.transport is not None:
            self.transport.abort()

    def _cancel_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's text quotes the input.
    ) -> web.StreamResponse:
        """Answer what never reached a route: malformed HTTP, or a fault of aiohttp itself.

        faults  ConnectionResetError, which aiohttp takes quietly, when there is nobody left to answer
        """
        if isinstance(exc, ConnectionError) or request.writer.output_size:
            raise ConnectionResetError("there is no answer to give on this connection") from exc
        request_id = ids.next()
        if status == 400:
            problem = problem_of(exc, self.server.limits)
            log.info("%d %s", problem.status, problem.code, extra={"request_id": request_id})
        else:
            problem = Problem(500, "internal_error", "The server failed to handle the request.", close=True)
            log.error("fault outside a route", exc_info=exc, extra={"request_id": request_id})
        return problem_answer(problem, request_id)


class InPlaceLoop:
    """An event loop in which a request runs in the task of its connection.

    aiohttp makes a task for every request and awaits it at once. From Python 3.12 on that task starts eagerly; before,
    it costs two turns of the loop and a task. Everything else is the real loop's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` is the running one."""
        self.real = loop
        self.time = loop.time
        self.create_future = loop.create_future

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked of a loop."""
        return getattr(self.real, name)

    def create_task(self, coroutine: "CoroutineType[Any, Any, Any]") -> Awaitable[Any]:
        """A request's coroutine itself, since awaiting it is what the caller does next; else a task."""
        return coroutine if coroutine.cr_code is REQUEST_CODE else self.real.create_task(coroutine)


class EdgeServer(web.Server):
    """Makes an `EdgeConnection` per socket and counts them."""

    def __init__(
        self,
        plain: web.Server,
        fixed: Mapping[tuple[str, str], Fixed],
        paths: Paths,
        limits: ConnectionLimits,
        options: dict[str, Any],
    ) -> None:
        """Take over from the server that AppRunner made, with its request handler and request factory."""
        super().__init__(
            _dispatch(plain.request_handler, fixed, paths),
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
        )
        self.paths = paths
        self.limits = limits
        self.options = options
        self.open_connections = 0
        loop = asyncio.get_running_loop()
        self.request_loop = loop if sys.version_info >= (3, 12) else InPlaceLoop(loop)

    def __call__(self) -> EdgeConnection:
        """One connection, for the event loop."""
        return EdgeConnection(self, loop=self.request_loop, **self.options)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count an admitted connection."""
        self.open_connections += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Uncount it."""
        self.open_connections -= 1
        super().connection_lost(handler, exc)

    def refusal(self) -> bytes:
        """The whole 503 answer to a connection above the limit."""
        problem = Problem(
            503,
            "connections_exhausted",
            "The server holds as many connections as it may.",
            headers={"Retry-After": "1"},
            close=True,
        )
        return problem_answer(problem, ids.next()).encoded(close=True)


def _dispatch(handle: _Handle, fixed: Mapping[tuple[str, str], Fixed], paths: Paths) -> _Handle:
    """`handle`, but straight to the route for paths without parameters, and 404 for targets that are not paths.

    aiohttp's router costs a tenth of a short request, and for a fixed path it always finds the same. Targets that
    are not paths: CONNECT and `*` (RFC 9112 3.2.3 and 3.2.4).
    """

    async def refuse(_: BaseRequest) -> web.StreamResponse:
        problem = Problem(404, "not_found", "The request target is not a path of this server.", close=True)
        return problem_answer(problem, ids.next())

    def admit(request: BaseRequest) -> Awaitable[web.StreamResponse]:
        found = fixed.get((request.method, request.raw_path))
        if found is not None and isinstance(request, web.Request) and hdrs.EXPECT not in request.headers:
            request._match_info = found.match  # noqa: SLF001 - as Application._handle does; it gives request.app
            return found.adapted(request)
        return handle(request) if request.rel_url.raw_path.startswith("/") else refuse(request)

    async def end(answering: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        answer = await answering
        answer.force_close()
        return answer

    def admit_or_end(request: BaseRequest) -> Awaitable[web.StreamResponse]:
        return end(admit(request)) if paths.leaving else admit(request)

    return admit_or_end


class EdgeRunner(web.AppRunner):
    """AppRunner for an application whose routes come from `add_routes`."""

    def __init__(self, app: web.Application, limits: ConnectionLimits | None = None, **options: Any) -> None:
        """`options` are those of AppRunner: handle_signals, shutdown_timeout (seconds)."""
        super().__init__(app, access_log=None, **options)
        self.limits = limits or ConnectionLimits()

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        limits = self.limits
        return EdgeServer(
            plain,
            self.app.get(FIXED, {}),
            self.app.get(PATHS) or Paths(self.app),
            limits,
            {
                "access_log": None,
                "auto_decompress": False,
                "keepalive_timeout": limits.keepalive_timeout_s,
                "lingering_time": limits.linger_s,
                "max_line_size": limits.line_max_bytes,
                "max_field_size": limits.field_max_bytes,
                "max_headers": limits.header_fields_max,
            },
        )
