"""A stream of server-sent events (WHATWG HTML, 9.2): written no faster than it is read, and never silent for long."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from app.web.paced import begin_parts, drop, is_head, write, write_parts
from app.web.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from aiohttp import web

    from app.web.request import Request
    from app.web.watches import Watches

Event = bytes | AsyncIterator[bytes]  # whole, or in parts that are made while the client reads

PING_S: Final = 15.0  # proxies close streams that are silent for a minute

_event_id = re.compile(r"[0-9]{1,15}\Z")


def wants_events(request: Request) -> bool:
    """Whether the client asks for a stream of events."""
    return "text/event-stream" in request.headers.get("accept", "")


def event_of(kind: str, number: int, body: bytes) -> bytes:
    """Return an event as it is written; `number` is its id, and `body` is one line."""
    return b"".join(event_parts(kind, number, (body,)))


def event_parts(kind: str, number: int, parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield an event whose body is made while it is written."""
    yield f"id: {number}\nevent: {kind}\ndata: ".encode()
    yield from parts
    yield b"\n\n"


def last_event_id(request: Request) -> int | None:
    """Return what a client that resumes has read last, None for one that begins. Raises Problem 422."""
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    if _event_id.match(given) is None:
        raise invalid("Last-Event-ID:", "Expected the id of an event of this stream")
    return int(given)


async def send_events(
    request: Request, watches: Watches, name: str, following: Callable[[], Awaitable[Event]], is_current: Callable[[], bool]
) -> web.StreamResponse:
    """Answer with events until the client leaves or the server stops; HEAD: none. A client that does not read is dropped.

    name        of the watch that wakes the stream
    following   returns the next event, empty when there is none
    is_current  whether the client has all there is
    """
    response = await begin_parts(request, {"Content-Type": "text/event-stream"})
    if is_head(request):
        return response
    departure = request.departure()
    try:
        await write(request, response, b"retry: 1000\n\n")
        while not (watches.closing or departure.done()):
            event = await following() or b": still here\n\n"
            if isinstance(event, bytes):
                await write(request, response, event)
            else:
                await write_parts(request, response, event)
            if is_current():
                await watches.wait(name, PING_S, departure)
    except TimeoutError:
        drop(request)
    return response
