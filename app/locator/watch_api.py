"""Watching a service: a blocking query, or a stream of events. Both answer from the same wake-up and the same bytes."""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING, Final, cast

import msgspec
from aiohttp import web

from app.access.api import key_of
from app.locator.api import locator_of
from app.locator.wire import Index, Wait
from app.web.edge import stamp
from app.web.problems import invalid
from app.web.routes import Answer, Handled, query

if TYPE_CHECKING:
    from app.locator.directory import Roster
    from app.locator.instance import Instance
    from app.locator.opening import Locator
    from app.web.request import Request

WAIT_DEFAULT_S: Final = 60
JITTER_SHARE: Final = 1 / 16  # added to the wait at random, so that polls that began together do not end together
PING_S: Final = 15.0  # proxies close streams that are silent for a minute
WRITE_TIMEOUT_S: Final = 10.0  # a client that has not read for so long is dropped; it resumes with Last-Event-ID
PART_BYTES: Final = 32 * 1024  # of a large event: half of what a transport holds before the writer waits
CHANGES_MAX: Final = 1_000  # instances in one change; beyond, the whole service is sent

_encode: Final = msgspec.json.Encoder().encode
_event_id = re.compile(r"[0-9]{1,15}\Z")


async def watch(request: Request) -> Handled:
    """GET /v1/services/{service}/watch."""
    locator = locator_of(request)
    name = request.match_info["service"]
    index = cast("int | None", query(request, "index", Index, None))
    wait_s = cast("float", query(request, "wait", Wait, WAIT_DEFAULT_S))
    service = locator.service(name)
    with locator.watches.enter(key_of(request).key_id):
        if "text/event-stream" in request.headers.get("accept", ""):
            return await _stream(request, locator, name)
        if index is not None and index == service.snapshot.revision:
            wait_s *= 1 + JITTER_SHARE * random.random()  # noqa: S311 - spread, not secret
            await locator.watches.wait(name, wait_s, request.departure())
            service = locator.service(name)
    return Answer(await _whole(locator, service))


async def _whole(locator: Locator, service: Roster) -> bytes:
    """Return all of a service as JSON."""
    snapshot = service.snapshot
    found = await locator.views.list_of(
        ("watch", service.name), snapshot.revision, snapshot.by_id.values(), _told
    )  # fmt: skip
    return _encode({"service": service.name, "index": snapshot.revision})[:-1] + b',"instances":' + found + b"}"


async def _stream(request: Request, locator: Locator, name: str) -> Handled:
    source = request.source
    if source is None:
        raise AssertionError("a route that streams has aiohttp's request")
    given = request.headers.get("last-event-id")
    if given is not None and _event_id.match(given) is None:
        raise invalid("Last-Event-ID:", "Expected the id of an event of this stream")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    stamp(response, request.request_id)
    await response.prepare(source)
    seen = -1 if given is None else int(given)
    try:
        await _send(response, b"retry: 1000\n\n")
        while not locator.watches.closing and not request.gone:
            service = locator.directory.get(name)
            if service is not None and service.snapshot.revision != seen:
                event, seen = await event_since(locator, service, seen)
            else:
                event = b": still here\n\n"
            await _send(response, event)
            service = locator.directory.get(name)
            if service is None or service.snapshot.revision == seen:
                await locator.watches.wait(name, PING_S, request.departure())
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


async def event_since(locator: Locator, service: Roster, revision: int) -> tuple[bytes, int]:
    """Return the event that leads from a revision to now, and the revision it leads to.

    A `change` names the instances that were put and removed; a `snapshot` names all, when the revision is not one that
    this replica remembers.
    """
    snapshot = service.snapshot
    # All that stand at the same revision get, and hold while they read, the same bytes.
    changed = service.changed_since(revision)
    since = -1 if changed is None or len(changed) > CHANGES_MAX else revision
    kept = locator.views.kept(("event", service.name, since), snapshot.revision)
    if kept is not None:
        return kept, snapshot.revision
    if changed is None or since < 0:
        event = _event("snapshot", snapshot.revision, await _whole(locator, service))
    else:
        put = [_told(one) for id_ in sorted(changed) if (one := snapshot.by_id.get(id_)) is not None]
        removed = sorted(id_ for id_ in changed if id_ not in snapshot.by_id)
        body = _encode({"service": service.name, "index": snapshot.revision, "put": put, "removed": removed})
        event = _event("change", snapshot.revision, body)
    locator.views.keep(("event", service.name, since), snapshot.revision, event)
    return event, snapshot.revision


def _told(one: Instance) -> msgspec.Raw:
    return msgspec.Raw(one.json)


def _event(kind: str, revision: int, body: bytes) -> bytes:
    return f"id: {revision}\nevent: {kind}\ndata: ".encode() + body + b"\n\n"
