"""The fast path: a request that arrives whole and plain runs its route without aiohttp's machinery.

aiohttp's parser, request, payload stream, writer and task cost 80 to 100 microseconds a request, several times the
work of a route. What this file takes is a strict subset of HTTP/1.1 (RFC 9112), a few dozen lines of it, that one
regular expression describes; everything else, down to the first byte that is not in it, goes to aiohttp. A
connection may change between the two at every boundary of a request that both agree on.
"""

from __future__ import annotations

import asyncio
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from aiohttp import web

from app.turns import Turns
from app.web.answers import Answer
from app.web.request import Request

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from app.web.edge import Begun, Enclosed

HEAD_MAX_BYTES: Final = 4096  # above the heads of ordinary clients, below every limit of the edge
FIELDS_MAX: Final = 64  # likewise
HELD_MAX_BYTES: Final = 256 * 1024  # of a request whose rest is on its way: what one read of uvloop brings
# How long a head waits for its body here; then aiohttp reads on, with its own limits. Many clients send the two in
# two packets, microseconds apart.
HOLD_S: Final = 0.05
KNOWN_PATHS_MAX: Final = 4_096  # paths with parameters whose route is remembered: 2 MB
BACKLOG_MAX_BYTES: Final = 64 * 1024  # pipelined behind the request that is answered; then reading stops

# Request line and fields: no folding, no control characters, no percent-encoding, nothing beyond ASCII.
_HEAD: Final = re.compile(
    rb"(GET|POST|PUT|PATCH|DELETE) (/[\w/.:~-]*)(?:\?([\w.:~=&-]*))? HTTP/1\.1\r\n"
    rb"((?:[\w!#$%&'*+.^`|~-]+:[\t\x20-\x7e]*\r\n)+)\r\n",
    re.ASCII,
)
_LENGTH: Final = re.compile(r"[0-9]{1,7}\Z", re.ASCII)
# Fields that change how a message is framed or read: aiohttp's business.
_DEMANDING: Final = frozenset({"transfer-encoding", "expect", "upgrade", "te", "trailer"})
_BODILESS: Final = frozenset({"GET", "DELETE"})


class Head(NamedTuple):
    """The head of a request of the subset. `size` counts its bytes, `length` those of the body."""

    method: str
    path: str
    query_text: str
    headers: dict[str, str]
    size: int
    length: int


def parse_head(data: bytes) -> Head | None:
    """Return the head that `data` begins with, or None when it is not whole or not in the subset. Pure."""
    match = _HEAD.match(data, 0, HEAD_MAX_BYTES)
    if match is None:
        return None
    method, path, query_text, fields = match.groups(b"")
    headers: dict[str, str] = {}
    lines = fields.decode("ascii").split("\r\n")
    lines.pop()
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
    if len(headers) != len(lines) or len(lines) > FIELDS_MAX or "host" not in headers or not _DEMANDING.isdisjoint(headers):
        return None
    if headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    length = headers.get("content-length", "0")
    if _LENGTH.match(length) is None:
        return None
    verb = method.decode()
    size = int(length)
    if size and verb in _BODILESS:
        return None
    return Head(verb, path.decode(), query_text.decode(), headers, match.end(), size)


class Taker(NamedTuple):
    """What answers a path: as a coroutine, or without one."""

    enclosed: Enclosed
    begun: Begun | None


class Paths:
    """Which route answers a method and path: a dictionary for those without parameters, a list for the others."""

    def __init__(self, app: web.Application) -> None:
        """Begin empty; `app` is what requests belong to."""
        self.app: Final = app
        self.turns: Final = Turns()
        self.leaving = False  # the process ends soon: every answer ends its connection, so that clients go elsewhere
        self._fixed: dict[tuple[str, str], Taker] = {}
        self._shaped: dict[str, list[tuple[re.Pattern[str], Taker]]] = {}
        self._find_shaped = lru_cache(maxsize=KNOWN_PATHS_MAX)(self._match)  # callers repeat the names of a few services

    def add(self, method: str, template: str, taker: Taker) -> None:
        """Let `taker` answer a template such as /v1/accounts/{tenant_id}; the first that fits wins."""
        if "{" not in template:
            self._fixed[method, template] = taker
            return
        pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^{}/]+)", re.escape(template)) + r"\Z")
        self._shaped.setdefault(method, []).append((pattern, taker))

    def find(self, method: str, path: str) -> tuple[Taker, Mapping[str, str]] | None:
        """Return the route and its path parameters, or None when aiohttp has to say what is wrong."""
        taker = self._fixed.get((method, path))
        if taker is not None:
            return taker, {}
        return self._find_shaped(method, path)

    def _match(self, method: str, path: str) -> tuple[Taker, Mapping[str, str]] | None:
        for pattern, shaped in self._shaped.get(method, ()):
            match = pattern.match(path)
            if match is not None:
                return shaped, match.groupdict()
        return None


_tasks: Final[set[asyncio.Task[None]]] = set()  # the event loop itself refers to tasks only weakly
PATHS: Final[web.AppKey[Paths]] = web.AppKey("paths", Paths)


def start_task(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine as a task: at once where Python can (3.12), else from the next turn of the loop."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, eager_start=True)
    else:
        task = loop.create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


class FastConnection(web.RequestHandler):
    """A connection that answers plain requests itself and gives aiohttp the rest.

    `_aligned` says that aiohttp's parser stands between two requests once `_body_left` more bytes have been fed to
    it. After bytes that only aiohttp can frame it is False for good, and the connection is aiohttp's.
    """

    def __init__(self, server: web.Server, paths: Paths, **options: Any) -> None:
        """`options` are those of `web.RequestHandler`."""
        super().__init__(server, **options)
        self._paths = paths
        self._aligned = True
        self._body_left = 0
        self._serving = False
        self._queued = False  # for a turn, with a backlog
        self._half_closed = False  # by the client, while it is served
        self._full = False  # the backlog, so that reading is paused
        self._answered: asyncio.Future[None] | None = None
        self._backlog = b""
        self._hold: asyncio.TimerHandle | None = None
        self._departure: asyncio.Future[None] | None = None
        self._last_bytes = b""  # of the last head, and what they say: many clients send the same one again and again
        self._last_head: Head | None = None

    def data_received(self, data: bytes) -> None:
        """Take bytes: for the request that is read, behind the one that is answered, or as new ones."""
        if not self._aligned:
            super().data_received(data)
            return
        self._backlog += data
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self._serving:
            if len(self._backlog) > BACKLOG_MAX_BYTES and not self._full and self.transport is not None:
                self._full = True
                self.transport.pause_reading()
        elif not self._queued:
            self._queued = True
            self._paths.turns.add(self._go_on)

    def _go_on(self) -> None:
        self._queued = False
        data, self._backlog = self._backlog, b""
        if data and self.transport is not None:
            self._advance(data, may_hold=not self._half_closed)
            if self._half_closed and not self._serving:
                self._cut_off()

    def eof_received(self) -> bool | None:  # type: ignore[override] # aiohttp's returns nothing, which closes.
        """A client that sends no more still gets the answers to what it sent (RFC 9112 9.6); then the connection ends."""
        if self._hold is not None:
            self._hold.cancel()
            self._let_go()
        self._half_closed = self._serving or self._queued
        self._depart()
        return self._half_closed or self._cut_off() or super().eof_received()

    def _cut_off(self) -> bool:
        """Have aiohttp refuse a body whose rest will not come; return whether there is one to refuse."""
        request = self._current_request
        body = self._messages[-1][1] if self._messages else None if request is None else request.content
        if body is None or body.is_eof():
            return False
        body.set_exception(web.RequestPayloadError("the client ended its side before the body was complete"))
        self._lingering_time = 0.0  # there is nothing left to read
        self._close = True
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget what was not complete; a request that runs goes on, its answer is dropped."""
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        self._backlog = b""
        self._depart()
        super().connection_lost(exc)

    def departure(self) -> asyncio.Future[None]:
        """Return what ends once the client sends no more: one that has closed cannot be told from one that still reads."""
        if self._departure is None:
            self._departure = self._loop.create_future()
            if self._half_closed or self.transport is None:
                self._depart()
        return self._departure

    def _depart(self) -> None:
        if self._departure is not None and not self._departure.done():
            self._departure.set_result(None)

    def _process_keepalive(self) -> None:
        """Close the connection when it has been idle for its time; one whose request runs is not idle."""
        if self._serving:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Let the request that runs be answered within `timeout` seconds, then close as aiohttp does."""
        if self._serving:
            self._answered = self._loop.create_future()
            await asyncio.wait({self._answered}, timeout=timeout)
        transport = self.transport
        await super().shutdown(timeout)
        if transport is not None:
            transport.abort()  # Without effect once it is closed; else its client reads nothing, and time is up.

    def _advance(self, data: bytes, *, may_hold: bool) -> None:
        """Take one request after the other from `data`, until one is being answered or the rest is not ours."""
        while data:
            if self._body_left:
                part = data[: self._body_left]
                self._body_left -= len(part)
                super().data_received(part)
                data = data[len(part) :]
                continue
            head = self._head_of(data)
            if head is None:
                self._aligned = False
                super().data_received(data)
                return
            size = head.size + head.length
            found = self._paths.find(head.method, head.path) if self._idle else None
            if found is not None and len(data) >= size:
                self._backlog = data[size:]
                self._serve(found[0], found[1], head, data[head.size : size])
                return
            if found is not None and may_hold and size <= HELD_MAX_BYTES:
                self._backlog = data
                self._hold = self._loop.call_later(HOLD_S, self._let_go)
                return
            part = data[:size]
            self._body_left = size - len(part)
            super().data_received(part)
            data = data[len(part) :]

    def _head_of(self, data: bytes) -> Head | None:
        """Return what `parse_head` returns. The same bytes are not parsed twice in a row: that is a tenth of a lookup."""
        head = self._last_head
        if head is None or not data.startswith(self._last_bytes):
            head = parse_head(data)
            if head is not None:
                self._last_bytes, self._last_head = data[: head.size], head
        return head

    @property
    def _idle(self) -> bool:
        """Whether aiohttp waits for a request, so that an answer of ours is the next one due."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._close and not self._force_close

    def _let_go(self) -> None:
        """Give aiohttp a request whose body takes its time."""
        self._hold = None
        data, self._backlog = self._backlog, b""
        self._advance(data, may_hold=False)

    def _serve(self, taker: Taker, match_info: Mapping[str, str], head: Head, body: bytes) -> None:
        self._serving = True
        self._request_count += 1
        request = Request(
            self._paths.app, head.method, head.path, match_info, head.query_text, head.headers, body, self.transport
        )
        if taker.begun is not None:
            taker.begun(request, self._respond)
        else:
            start_task(self._run(taker.enclosed, request))

    async def _run(self, enclosed: Enclosed, request: Request) -> None:
        try:
            self._respond(await enclosed(request))
        except ConnectionError:
            self.force_close()
            self._finish()

    def _respond(self, response: web.StreamResponse) -> None:
        """Write the answer of the request that is served, and go on with what came in the meantime."""
        answer = cast("Answer", response)
        transport = self.transport
        if transport is not None and not transport.is_closing():
            close = answer.closes or self._close or self._paths.leaving
            transport.write(answer.encoded(close=close))
            if close:
                self.force_close()
            elif self.writing_paused:
                start_task(self._drain())
                return
        self._finish()

    async def _drain(self) -> None:
        """Serve on once the client has read what was written to it."""
        try:
            await self._drain_helper()
        except ConnectionError:
            self.force_close()
        self._finish()

    def _finish(self) -> None:
        self._serving = False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        if self._backlog and self.transport is not None:
            if self._full and len(self._backlog) <= BACKLOG_MAX_BYTES:
                self._full = False
                self.transport.resume_reading()
            self._queued = True
            self._paths.turns.add(self._go_on)
        elif self._half_closed:
            self.force_close()
