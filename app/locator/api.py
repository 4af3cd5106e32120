"""The registry and lookups over HTTP: decode, ask the locator, answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec
from aiohttp import web

from app.access.api import key_of
from app.locator.balancing import STRATEGIES, Strategy
from app.locator.instance import State
from app.locator.opening import Locator
from app.locator.record import Record
from app.locator.registry import unknown_instance
from app.locator.roster import Roster
from app.locator.views import parts_of
from app.locator.wire import (
    HashKey,
    HeartbeatView,
    Registration,
    Report,
    Start,
    StrategyName,
    Summary,
    SummaryPage,
    Tag,
    Zone,
    heartbeat_s,
    registered_of,
    registered_view,
    view_of,
)
from app.web.body import Body
from app.web.problems import Problem, invalid
from app.web.routes import Answer, Handled, cursor, json_answer, limit, query
from app.web.typed import typed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from app.locator.instance import Snapshot
    from app.locator.registry import Change, Registry
    from app.web.edge import Done
    from app.web.request import Request

LOCATOR: Final = web.AppKey("locator", Locator)
TURN_INSTANCES: Final = 2_000  # looked at before others have their turn: below a millisecond

_encode: Final = msgspec.json.Encoder().encode
_REGISTRATION: Final = Body(Registration)
_START: Final = Body(Start, optional=True)
_REPORT: Final = Body(Report)


class Prompted:
    """A route that never waits: what it returns is the answer, with or without a task."""

    def __init__(self, work: Callable[[Request], Handled]) -> None:
        """`work` gets a request whose body is whole."""
        self._work = work

    async def __call__(self, request: Request) -> Handled:
        """Answer a request that came through aiohttp."""
        return self._work(request)

    def begin(self, request: Request, done: Done) -> None:
        """Answer a request that is whole (`app.web.edge.Prompt`)."""
        done(self._work(request))


def locator_of(request: Request) -> Locator:
    """Return the locator of this process."""
    return request.app[LOCATOR]


def names_of(request: Request) -> tuple[str, str]:
    """Return service and instance id of the path."""
    return request.match_info["service"], request.match_info["id"]


def record_of(request: Request) -> tuple[Roster, Record]:
    """Return service and record of the path. Raises Problem 404 `unknown_instance`, 503 `warming_up`."""
    locator = locator_of(request)
    name, id_ = names_of(request)
    service = locator.directory.get(name)
    record = None if service is None else service.records.get(id_)
    if service is None or record is None:
        locator.check_warm()
        raise unknown_instance()
    return service, record


# --- registration ---------------------------------------------------------------------------------------------------


async def register(request: Request) -> Handled:
    """PUT /v1/services/{service}/instances/{id}."""
    text = await _REGISTRATION.text(request)
    service, id_ = names_of(request)
    locator = locator_of(request)
    key_id = key_of(request).key_id
    async with locator.admission.turn(key_id) as refusal:
        body = _REGISTRATION.decode(text)
        registered = registered_of(body, key_id, locator.check_networks)
        if refusal is not None:
            raise refusal
        record, created = await locator.register(service, id_, body.generation, registered)
    return _registered(record, 201 if created else 200)


async def change(request: Request, make: Callable[[Registry], Change]) -> None:
    """Have a change made when it is the turn of the key that calls. Raises what `Locator.change` does, and Problem 429."""
    locator = locator_of(request)
    async with locator.admission.turn(key_of(request).key_id) as refusal:
        if refusal is not None:
            raise refusal
        await locator.change(make)


def _registered(record: Record, status: int = 200) -> Handled:
    return json_answer(_encode(registered_view(record, record.revision)), status=status)


async def read_instance(request: Request) -> Handled:
    """GET /v1/services/{service}/instances/{id}."""
    _, record = record_of(request)
    locator = locator_of(request)
    return json_answer(_encode(view_of(record, locator.balancer, locator.clock_s())))


def _beat(request: Request, start: Start) -> Handled:
    service, record = record_of(request)
    if start.generation is not None and start.generation != record.generation:
        raise Problem(409, "stale_generation", "The id is registered under another generation; this start was replaced.")
    locator = locator_of(request)
    locator.directory.beat(service, record.instance.id, record, locator.clock_s())
    return json_answer(_encode(HeartbeatView(record.instance.state.value, heartbeat_s(record))))


class _Heartbeat:
    """POST .../heartbeat: judged by its arrival here, told to the other replicas within a second."""

    async def __call__(self, request: Request) -> Handled:
        return _beat(request, await _START.read(request))

    def begin(self, request: Request, done: Done) -> None:
        done(_beat(request, _START.take(request)))


async def drain(request: Request) -> Handled:
    """POST .../drain."""
    return await _order(request, "draining")


async def isolate(request: Request) -> Handled:
    """POST .../isolate."""
    return await _order(request, "isolated")


async def resume(request: Request) -> Handled:
    """POST .../resume."""
    return await _order(request, "none")


async def _order(request: Request, mode: str) -> Handled:
    start = await _START.read(request)
    service, id_ = names_of(request)
    await change(request, lambda registry: registry.order(service, id_, start.generation or "", mode))
    _, record = record_of(request)
    return _registered(record)


async def reset(request: Request) -> Handled:
    """POST .../reset: closes the breaker on every replica, and ends an isolation."""
    start = await _START.read(request)
    service, id_ = names_of(request)
    _, record = record_of(request)
    if record.mode == "isolated":
        await change(request, lambda registry: registry.order(service, id_, start.generation or "", "none"))
    await change(request, lambda registry: registry.tell(service, id_, start.generation or "", "reset"))
    _, record = record_of(request)
    return _registered(record)


async def deregister(request: Request) -> Handled:
    """DELETE /v1/services/{service}/instances/{id}."""
    generation = cast("str", query(request, "generation", str, ""))
    service, id_ = names_of(request)
    await change(request, lambda registry: registry.drop(service, id_, generation))
    return Answer(b"", status=204)


# --- lists ----------------------------------------------------------------------------------------------------------


async def list_services(request: Request) -> Handled:
    """GET /v1/services."""
    locator = locator_of(request)
    locator.check_warm()
    count, after = limit(request), cursor(request) or ""
    names = sorted(name for name, service in locator.directory.services.items() if service.records and name > after)
    services = [locator.directory.services[name] for name in names[:count]]
    page = [_summary(service) async for service in in_turns(locator, services)]
    return json_answer(_encode(SummaryPage(page, page[-1].service if len(names) > count else None)))


async def in_turns(locator: Locator, services: Iterable[Roster]) -> AsyncIterator[Roster]:
    """Yield services, so many instances in each turn (`Views.turn`)."""
    seen = 0
    for service in services:
        seen += len(service.records)
        if seen >= TURN_INSTANCES:
            seen = 0
            await locator.views.turn()
        yield service


def tags_of(snapshot: Snapshot) -> list[str]:
    """Return every tag of a service."""
    return sorted({tag for one in snapshot.by_id.values() for tag in one.tags})


def _summary(service: Roster) -> Summary:
    snapshot = service.snapshot
    up = sum(one.state is State.UP for one in snapshot.by_id.values())
    return Summary(service.name, len(snapshot.by_id), up, tags_of(snapshot), snapshot.revision)


async def list_instances(request: Request) -> Handled:
    """GET /v1/services/{service}."""
    locator = locator_of(request)
    service = locator.service(request.match_info["service"])
    count, after = limit(request), cursor(request) or ""
    lets = filter_of(request)
    await locator.views.turn()
    found = sorted(id_ for id_, record in service.records.items() if id_ > after and lets(record))
    now_s = locator.clock_s()
    page = [service.records[id_] for id_ in found[:count]]
    start = _encode({"service": service.name, "index": service.snapshot.revision})[:-1] + b',"data":'
    data = await locator.views.whole(parts_of(page, lambda record: view_of(record, locator.balancer, now_s)))
    following = page[-1].instance.id if len(found) > count else None
    return json_answer(start + data + b',"next_cursor":' + _encode(following) + b"}")


def filter_of(request: Request) -> Callable[[Record], bool]:
    """Return what `?tag=&zone=&healthy=` let through; several tags must all be there. Raises Problem 422."""
    tags = {typed(text, Tag, "?tag") for text in request.query.getall("tag", ())}
    zone = cast("str | None", query(request, "zone", Zone, None))
    healthy = cast("bool | None", query(request, "healthy", bool, None))

    def lets(record: Record) -> bool:
        one = record.instance
        return (
            tags.issubset(one.tags)
            and (zone is None or one.zone == zone)
            and (healthy is None or (one.state is State.UP) == healthy)
        )

    return lets


# --- lookups --------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """What a lookup asks for."""

    strategy: Strategy = STRATEGIES[0]
    key: str = ""
    zone: str = ""
    tag: str = ""


_PLAIN: Final = Choice()
_choices: Final[dict[str, Choice]] = {}
_CHOICES_MAX: Final = 4_096  # query texts that are remembered: callers repeat a few, or have a key for each of their users


def _choice_of(request: Request) -> Choice:
    """Return what the query asks for, read once for each text. Raises Problem 422."""
    text = request.query_text
    if not text:
        return _PLAIN
    known = _choices.get(text)
    if known is None:
        strategy = query(request, "strategy", StrategyName, STRATEGIES[0])
        key, zone, tag = (query(request, name, kind, "") for name, kind in (("key", HashKey), ("zone", Zone), ("tag", Tag)))
        if strategy == "consistent_hash" and not key:
            raise invalid("?key", "Expected a key for consistent_hash")
        if len(_choices) >= _CHOICES_MAX:
            _choices.clear()
        known = _choices[text] = Choice(strategy, key, zone, tag)
    return known


def look_up(request: Request) -> Handled:
    """GET /v1/services/{service}/lookup: memory only."""
    locator = request.app[LOCATOR]
    service = locator.directory.get(request.match_info["service"])
    if service is None:
        service = locator.service(request.match_info["service"])
    strategy, key, zone, tag = _choice_of(request)
    principal = request.principal
    picked = locator.balancer.pick(
        service.snapshot, strategy, now_s=locator.clock_s(), key=key, zone=zone, tag=tag,
        client="" if principal is None else principal.key_id,
    )  # fmt: skip
    if picked is None:
        locator.series.count_lookup("none", panic=False)
        return Problem(503, "no_instance", "No instance of the service can take a call now.", headers={"Retry-After": "1"})
    locator.series.count_lookup(strategy, panic=picked.panic)
    end = b'","panic":true}' if picked.panic else b'","panic":false}'
    return json_answer(b'{"instance":' + picked.instance.json + b',"lease_id":"' + picked.lease_id.encode() + end)


def _take_report(request: Request, body: Report) -> Handled:
    locator = request.app[LOCATOR]
    name = request.match_info["service"]
    if name not in locator.directory.services:
        locator.service(name)
    result = locator.report(
        name, body.lease_id, key_of(request).key_id, ok=body.ok, latency_ms=body.latency_ms
    )  # fmt: skip
    return json_answer(b'{"result":"' + result.encode() + b'"}')


class _Reporting:
    """POST /v1/services/{service}/report."""

    async def __call__(self, request: Request) -> Handled:
        return _take_report(request, await _REPORT.read(request))

    def begin(self, request: Request, done: Done) -> None:
        done(_take_report(request, _REPORT.take(request)))


lookup: Final = Prompted(look_up)
heartbeat: Final = _Heartbeat()
report: Final = _Reporting()
