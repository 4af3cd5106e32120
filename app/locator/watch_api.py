"""Watching a service: a blocking query, or a stream of events. Both answer from the same wake-up and the same bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, cast

import msgspec

from app.access.api import key_of
from app.locator.api import locator_of
from app.locator.views import is_long, parts_of
from app.locator.wire import Index, Wait
from app.web.event_stream import event_of, event_parts, last_event_id, send_events, wants_events
from app.web.paced import send_json
from app.web.routes import Answer, Handled, query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.locator.instance import Instance, Snapshot
    from app.locator.opening import Locator
    from app.locator.roster import Roster
    from app.web.event_stream import Event
    from app.web.request import Request

WAIT_DEFAULT_S: Final = 60
JITTER_SHARE: Final = 1 / 16  # added to the wait at random, so that polls that began together do not end together
CHANGES_MAX: Final = 1_000  # instances in one change; beyond, the whole service is sent

_encode: Final = msgspec.json.Encoder().encode


async def watch(request: Request) -> Handled:
    """GET /v1/services/{service}/watch."""
    locator = locator_of(request)
    name = request.match_info["service"]
    index = cast("int | None", query(request, "index", Index, None))
    wait_s = cast("float", query(request, "wait", Wait, WAIT_DEFAULT_S))
    service = locator.service(name)
    with locator.watches.enter(key_of(request).key_id):
        if wants_events(request):
            return await _stream(request, locator, name)
        if index is not None and index == service.snapshot.revision:
            wait_s *= 1 + JITTER_SHARE * random.random()  # noqa: S311 - spread, not secret
            await locator.watches.wait(name, wait_s, request.departure())
            service = locator.service(name)
    if is_long(service.snapshot.by_id.values()):
        return await send_json(request, locator.views.in_turn(_parts(service.snapshot)), {})
    return Answer(await _whole(locator, service))


async def _whole(locator: Locator, service: Roster) -> bytes:
    """Return all of a service as JSON."""
    snapshot = service.snapshot
    found = await locator.views.list_of(
        ("watch", service.name), snapshot.revision, snapshot.by_id.values(), _told
    )  # fmt: skip
    return _start(snapshot) + found + b"}"


def _parts(snapshot: Snapshot) -> Iterator[bytes]:
    """Yield the same in parts."""
    yield _start(snapshot)
    yield from parts_of(snapshot.by_id.values(), _told)
    yield b"}"


def _start(snapshot: Snapshot) -> bytes:
    return _encode({"service": snapshot.service, "index": snapshot.revision})[:-1] + b',"instances":'


async def _stream(request: Request, locator: Locator, name: str) -> Handled:
    given = last_event_id(request)
    seen = -1 if given is None else given

    async def following() -> Event:
        nonlocal seen
        service = locator.directory.get(name)
        if service is None or service.snapshot.revision == seen:
            return b""
        event, seen = await event_since(locator, service, seen)
        return event

    def is_current() -> bool:
        service = locator.directory.get(name)
        return service is None or service.snapshot.revision == seen

    return await send_events(request, locator.watches, name, following, is_current)


async def event_since(locator: Locator, service: Roster, revision: int) -> tuple[Event, int]:
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
    if since < 0 and is_long(snapshot.by_id.values()):
        parts = event_parts("snapshot", snapshot.revision, _parts(snapshot))
        return locator.views.in_turn(parts), snapshot.revision
    if changed is None or since < 0:
        event = event_of("snapshot", snapshot.revision, await _whole(locator, service))
    else:
        put = [_told(one) for id_ in sorted(changed) if (one := snapshot.by_id.get(id_)) is not None]
        removed = sorted(id_ for id_ in changed if id_ not in snapshot.by_id)
        body = _encode({"service": service.name, "index": snapshot.revision, "put": put, "removed": removed})
        event = event_of("change", snapshot.revision, body)
    locator.views.keep(("event", service.name, since), snapshot.revision, event)
    return event, snapshot.revision


def _told(one: Instance) -> msgspec.Raw:
    return msgspec.Raw(one.json)
