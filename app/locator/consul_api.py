"""The part of Consul's HTTP API that Prometheus (consul_sd), Traefik and Consul's clients use.

Blocking queries are Consul's: `?index=&wait=`, X-Consul-Index, a sixteenth of jitter. An index that is not the present
one is answered at once, also a higher one, which another replica may have given.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app import __version__
from app.access.api import key_of
from app.locator import consul
from app.locator.api import change, in_turns, locator_of, tags_of
from app.locator.consul import DATACENTER, NODE
from app.locator.directory import ALL
from app.locator.registry import unknown_instance
from app.locator.views import is_long, parts_of
from app.web.body import read_json
from app.web.paced import send_json
from app.web.problems import invalid
from app.web.routes import Answer, Handled, json_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from app.locator.opening import Locator
    from app.locator.record import Record
    from app.locator.registry import Change, Registry
    from app.locator.roster import Roster
    from app.web.request import Request

WAIT_DEFAULT_S: Final = 300.0  # Consul's
WAIT_MAX_S: Final = 600.0
JITTER_SHARE: Final = 1 / 16

_encode: Final = msgspec.json.Encoder().encode


def _fields(index: int) -> dict[str, str]:
    return {"X-Consul-Index": str(index), "X-Consul-KnownLeader": "true", "X-Consul-LastContact": "0"}


def _answer(body: bytes, index: int) -> Handled:
    return Answer(body, fields="".join(f"{name}: {value}\r\n" for name, value in _fields(index).items()))


async def _answer_list(
    request: Request, subject: tuple[Any, ...], index: int, found: list[Record], make: Callable[[Record], Any]
) -> Handled:
    views = locator_of(request).views
    if views.kept(subject, index) is None and is_long(record.instance for record in found):
        return await send_json(request, views.in_turn(parts_of(found, make)), _fields(index))
    return _answer(await views.list_of(subject, index, found, make), index)


async def _wait(request: Request, name: str, index_now: Callable[[], int]) -> None:
    """Wait until the index is another than the one that the caller has seen; do not wait for one who names none."""
    locator = locator_of(request)
    locator.check_warm()
    given = request.query.get("index", "")
    if not given:
        return
    if not given.isascii() or not given.isdigit() or len(given) > 15:
        raise invalid("?index", "Expected a number")
    wait_s = WAIT_DEFAULT_S
    if request.query.get("wait"):
        wait_s = min(consul.seconds_of(request.query["wait"], "?wait"), WAIT_MAX_S)
    till_s = locator.clock_s() + wait_s * (1 + JITTER_SHARE * random.random())  # noqa: S311 - spread, not secret
    with locator.watches.enter(key_of(request).key_id):
        departure = request.departure()
        while int(given) == index_now() and not (locator.watches.closing or departure.done()):
            left_s = till_s - locator.clock_s()
            if left_s <= 0:
                break
            await locator.watches.wait(name, left_s, departure)


def _index_of(locator: Locator, name: str) -> int:
    service = locator.directory.get(name)
    return locator.directory.index if service is None else service.snapshot.revision


async def _records(request: Request, name: str) -> tuple[list[Record], int]:
    """Return the instances of a service that `?tag=&passing` let through, and its index."""
    locator = locator_of(request)
    await _wait(request, name, lambda: _index_of(locator, name))
    await locator.views.turn()
    service = locator.directory.get(name)
    tags = request.query.getall("tag", ())
    passing = "passing" in request.query and request.query["passing"] not in {"0", "false"}
    found = [
        record for record in (service.records.values() if service is not None else ())
        if consul.tags_match(record, tags) and (not passing or consul.status_of(record) == "passing")
    ]  # fmt: skip
    return found, _index_of(locator, name)


async def _listed(request: Request, kind: str, make: Callable[[Record], Any]) -> Handled:
    name = request.match_info["service"]
    found, index = await _records(request, name)
    tags = tuple(sorted(request.query.getall("tag", ())))
    subject = (kind, name, tags, request.query.get("passing"))
    return await _answer_list(request, subject, index, found, make)


async def health_service(request: Request) -> Handled:
    """GET /v1/health/service/{service}."""
    return await _listed(request, "health", consul.health_entry)


async def health_checks(request: Request) -> Handled:
    """GET /v1/health/checks/{service}."""
    return await _listed(request, "checks", consul.health_check)


async def catalog_service(request: Request) -> Handled:
    """GET /v1/catalog/service/{service}."""
    return await _listed(request, "catalog", consul.catalog_entry)


async def health_state(request: Request) -> Handled:
    """GET /v1/health/state/{state}: checks of all services."""
    state = request.match_info["state"]
    locator = locator_of(request)
    await _wait(request, ALL, lambda: locator.directory.index)
    await locator.views.turn()
    index = locator.directory.index
    found = [
        record for _, _, record in locator.directory.records() if state in {"any", consul.status_of(record)}
    ]  # fmt: skip
    return await _answer_list(request, ("state", state), index, found, consul.health_check)


async def catalog_services(request: Request) -> Handled:
    """GET /v1/catalog/services: names to tags. Its index changes with names, ids and tags alone."""
    directory = locator_of(request).directory
    await _wait(request, ALL, lambda: directory.catalogue)
    index, listed = directory.catalogue, {}
    services = [service for _, service in sorted(directory.services.items())]
    async for service in in_turns(locator_of(request), services):
        if service.records:
            listed[service.name] = tags_of(service.snapshot)
    return _answer(_encode(listed), index)


async def catalog_datacenters(_request: Request) -> Handled:
    """GET /v1/catalog/datacenters."""
    return json_answer(_encode([DATACENTER]))


async def catalog_nodes(request: Request) -> Handled:
    """GET /v1/catalog/nodes: there is one."""
    node = consul.Node("", NODE, "127.0.0.1", DATACENTER, {}, {}, 1, 1)
    return _answer(_encode([node]), locator_of(request).directory.catalogue)


async def agent_self(_request: Request) -> Handled:
    """GET /v1/agent/self."""
    config = {"Datacenter": DATACENTER, "NodeName": NODE, "Server": True, "Version": __version__}
    member = {"Name": NODE, "Addr": "127.0.0.1", "Port": 0, "Status": 1, "Tags": {"dc": DATACENTER, "role": "consul"}}
    return json_answer(_encode({"Config": config, "Member": member, "Meta": {}}))


async def agent_services(request: Request) -> Handled:
    """GET /v1/agent/services."""
    return await _by_id(request, lambda record: record.instance.id, consul.agent_service)


async def agent_checks(request: Request) -> Handled:
    """GET /v1/agent/checks."""
    return await _by_id(request, lambda record: f"service:{record.instance.id}", consul.health_check)


async def _by_id(request: Request, name: Callable[[Record], str], make: Callable[[Record], Any]) -> Handled:
    """Answer with an object of all instances that came by this API: elsewhere ids repeat from service to service."""
    locator = locator_of(request)
    locator.check_warm()
    await locator.views.turn()
    found = {name(record): record for _, _, record in locator.directory.records() if record.api == "consul"}
    members = parts_of(found.items(), lambda pair: msgspec.Raw(_encode(pair[0]) + b":" + _encode(make(pair[1]))))
    # The parts of an array, whose brackets are the first and the last byte, become those of an object.
    return await send_json(request, locator.views.in_turn(_in_braces(members)), {})


def _in_braces(parts: Iterator[bytes]) -> Iterator[bytes]:
    first = next(parts)
    yield b"{" + (first[1:] if first != b"[]" else b"}")
    for part in parts:
        yield part if part != b"]" else b"}"


async def agent_service(request: Request) -> Handled:
    """GET /v1/agent/service/{id}."""
    record = _record(request, request.match_info["id"])
    return json_answer(_encode(consul.agent_service(record)))


async def agent_register(request: Request) -> Handled:
    """PUT /v1/agent/service/register."""
    key_id = key_of(request).key_id
    locator = locator_of(request)
    asked = consul.read_registration(await read_json(request), key_id, locator.check_networks)
    async with locator.admission.turn(key_id) as refusal:
        if refusal is not None:
            raise refusal
        others = [one for one in _holders(locator, asked.id) if one.name != asked.service]
        # One change with its first state: of two, the second may be lost with Redis, and what is to begin critical passes.
        first = "critical" if asked.critical else "none"
        await locator.register(asked.service, asked.id, None, asked.registered, first=first)
        for service in others:
            old = service.records.get(asked.id)
            if old is not None and old.api == "consul":
                await locator.change(lambda registry, name=service.name: registry.drop(name, asked.id, ""))  # type: ignore[misc]
    return _done()


async def agent_deregister(request: Request) -> Handled:
    """PUT /v1/agent/service/deregister/{id}."""
    record = _record(request, request.match_info["id"])
    one = record.instance
    await change(request, lambda registry: registry.drop(one.service, one.id, record.generation))
    return _done()


async def agent_maintenance(request: Request) -> Handled:
    """PUT /v1/agent/service/maintenance/{id}?enable="""
    enable = request.query.get("enable", "").lower()
    if enable not in {"true", "false"}:
        raise invalid("?enable", "Expected true or false")
    one = _record(request, request.match_info["id"]).instance
    mode = "maintenance" if enable == "true" else "none"
    await change(request, lambda registry: registry.order(one.service, one.id, "", mode))
    return _done()


async def check_pass(request: Request) -> Handled:
    """PUT /v1/agent/check/pass/{check_id}, and warn: the instance is heard."""
    return await _checked(request, "passing")


async def check_fail(request: Request) -> Handled:
    """PUT /v1/agent/check/fail/{check_id}."""
    return await _checked(request, "critical")


async def check_update(request: Request) -> Handled:
    """PUT /v1/agent/check/update/{check_id}, with `{"Status": "passing" | "warning" | "critical"}`."""
    body = await read_json(request)
    status = body.get("Status", body.get("status")) if isinstance(body, dict) else None
    if status not in ("passing", "warning", "critical"):
        raise invalid("/Status", "Expected passing, warning or critical")
    return await _checked(request, "critical" if status == "critical" else "passing")


async def _checked(request: Request, found: str) -> Handled:
    locator = locator_of(request)
    record = _record(request, consul.id_of_check(request.match_info["check_id"]))
    service = locator.service(record.instance.service)
    locator.directory.beat(service, record.instance.id, record, locator.clock_s())
    if record.check != found and (found == "critical" or record.check == "critical"):
        await change(request, _finding(record, found))
    return _done()


def _finding(record: Record, found: str) -> Callable[[Registry], Change]:
    one = record.instance
    return lambda registry: registry.found(one.service, one.id, record.generation, found)


def _holders(locator: Locator, id_: str) -> list[Roster]:
    locator.check_warm()
    return locator.directory.holders(id_)


def _record(request: Request, id_: str) -> Record:
    """Return the one instance of an id. Raises Problem 404 `unknown_instance`, 409 `ambiguous_id`."""
    holders: Iterable[Roster] = _holders(locator_of(request), id_)
    records = [service.records[id_] for service in holders]
    own = [record for record in records if record.api == "consul"] or records
    if not own:
        raise unknown_instance()
    if len(own) > 1:
        raise consul.ambiguous()
    return own[0]


def _done() -> Handled:
    return json_answer(b"")
