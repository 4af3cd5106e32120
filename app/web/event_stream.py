"""A stream of server-sent events (WHATWG HTML, 9.2): written no faster than it is read, and never silent for long."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from aiohttp import web

from app.web.edge import stamp
from app.web.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.web.request import Request
    from app.web.watches import Watches

PING_S: Final = 15.0  # proxies close streams that are silent for a minute
WRITE_TIMEOUT_S: Final = 10.0  # a client that has not read for so long is dropped; it resumes with Last-Event-ID
PART_BYTES: Final = 32 * 1024  # of a large event: half of what a transport holds before the writer waits

_event_id = re.compile(r"[0-9]{1,15}\Z")


def wants_events(request: Request) -> bool:
    """Whether the client asks for a stream of events."""
    return "text/event-stream" in request.headers.get("accept", "")


def event_of(kind: str, number: int, body: bytes) -> bytes:
    """Return an event as it is written; `number` is its id, and `body` is one line."""
    return f"id: {number}\nevent: {kind}\ndata: ".encode() + body + b"\n\n"


def last_event_id(request: Request) -> int | None:
    """Return what a client that resumes has read last, None for one that begins. Raises Problem 422."""
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    if _event_id.match(given) is None:
        raise invalid("Last-Event-ID:", "Expected the id of an event of this stream")
    return int(given)


async def send_events(
    request: Request, watches: Watches, name: str, following: Callable[[], Awaitable[bytes]], is_current: Callable[[], bool]
) -> web.StreamResponse:
    """Answer with events until the client leaves or the server stops.

    name        of the watch that wakes the stream
    following   returns the next event, empty when there is none
    is_current  whether the client has all there is
    """
    source = request.source
    if source is None:
        raise AssertionError("a route that streams has aiohttp's request")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    stamp(response, request.request_id)
    await response.prepare(source)
    departure = request.departure()
    try:
        await _send(response, b"retry: 1000\n\n")
        while not (watches.closing or departure.done()):
            await _send(response, await following() or b": still here\n\n")
            if is_current():
                await watches.wait(name, PING_S, departure)
    except TimeoutError:
        _drop(source)
    return response


async def _send(response: web.StreamResponse, event: bytes) -> None:
    """Write an event no faster than it is read: a slow client holds one part of it, and not a copy of the whole.

    Raises TimeoutError when nothing of a part can be written for WRITE_TIMEOUT_S.
    """
    for start in range(0, len(event), PART_BYTES):
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await response.write(event[start : start + PART_BYTES])


def _drop(source: web.Request) -> None:
    """Cut the connection of a client that does not read; what was to be written to it is forgotten."""
    if source.transport is not None:
        source.transport.abort()
    raise ConnectionResetError("the client reads nothing")
