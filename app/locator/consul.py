"""Our instances in Consul's words, and Consul's registrations in ours: pure.

What Prometheus, Traefik and Consul's clients read and send, from Consul's HTTP API (agent, catalog, health). All
instances stand on one node, because there is one registry and no agent beside each of them; so an id names one
instance among all services, as it does on one agent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from app.clock import now_ms
from app.locator.instance import WEIGHT_MAX, Check, State
from app.locator.record import Record, Registered
from app.locator.target import CheckRefused, check_literal, http_target, is_host, tcp_target
from app.locator.wire import CHECK_INTERVAL_DEFAULT_S, LABELS_MAX_BYTES, METADATA_MAX, TAGS_MAX, TTL_MAX_S
from app.web.fields import check_name
from app.web.problems import Problem, invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from app.locator.target import IPNetwork

NODE: Final = "shieldx"
DATACENTER: Final = "shieldx"
CRITICAL_FOR_S: Final = 72 * 3600  # what Consul gives a failed node before it reaps it
DEREGISTER_MIN_S: Final = 60  # Consul's least DeregisterCriticalServiceAfter
DEREGISTER_MAX_S: Final = 365 * 24 * 3600  # for so long the end of a start is remembered: not for all time

CheckState = Literal["any", "passing", "warning", "critical"]
CheckId = Annotated[
    str, Meta(pattern=r"^(service:)?[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z", description="`service:` and an instance id.")
]

_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_part = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_duration = re.compile(rf"(?:{_part.pattern})+\Z")
_tag = re.compile(r"[ -~]{1,128}\Z")
_meta_key = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")

# Unverified instances pass: after our own restart nothing is known against them, and a client drops what does not pass.
_STATUS: Final = {
    State.UP: "passing", State.UNVERIFIED: "passing", State.SUSPECT: "critical", State.DRAINING: "critical",
    State.DOWN: "critical",
}  # fmt: skip


class Weights(Struct, frozen=True, rename="pascal"):
    """DNS weights."""

    passing: int
    warning: int


class Node(Struct, frozen=True, rename="pascal"):
    """The node, with the address of the instance that it is shown for."""

    id: str = msgspec.field(name="ID")
    node: str
    address: str
    datacenter: str
    tagged_addresses: dict[str, str]
    meta: dict[str, str]
    create_index: int
    modify_index: int


class AgentEntry(Struct, frozen=True, rename="pascal"):
    """An instance in health and agent answers."""

    id: str = msgspec.field(name="ID")
    service: str
    tags: list[str]
    meta: dict[str, str]
    port: int
    address: str
    tagged_addresses: dict[str, Any]
    weights: Weights
    create_index: int
    modify_index: int
    datacenter: str
    enable_tag_override: bool = False


class HealthCheck(Struct, frozen=True, rename="pascal"):
    """The one check of an instance: what its state amounts to."""

    node: str
    check_id: str = msgspec.field(name="CheckID")
    name: str
    status: str
    notes: str
    output: str
    service_id: str = msgspec.field(name="ServiceID")
    service_name: str
    service_tags: list[str]
    type: str
    definition: dict[str, Any]
    create_index: int
    modify_index: int


class HealthEntry(Struct, frozen=True, rename="pascal"):
    """An element of /v1/health/service."""

    node: Node
    service: AgentEntry
    checks: list[HealthCheck]


class CatalogEntry(Struct, frozen=True, rename="pascal"):
    """An element of /v1/catalog/service."""

    id: str = msgspec.field(name="ID")
    node: str
    address: str
    datacenter: str
    tagged_addresses: dict[str, str]
    node_meta: dict[str, str]
    service_id: str = msgspec.field(name="ServiceID")
    service_name: str
    service_tags: list[str]
    service_address: str
    service_port: int
    service_meta: dict[str, str]
    service_weights: Weights
    create_index: int
    modify_index: int
    service_enable_tag_override: bool = False


def status_of(record: Record) -> str:
    """Return "passing" or "critical"."""
    return _STATUS[record.instance.state]


def node_of(record: Record) -> Node:
    """Return the node of an instance."""
    return Node("", NODE, record.instance.facts.host, DATACENTER, {}, {}, 1, 1)


def agent_service(record: Record) -> AgentEntry:
    """Return an instance as an agent knows it."""
    one, facts = record.instance, record.instance.facts
    return AgentEntry(
        one.id, one.service, facts.tags, facts.metadata, facts.port, facts.host, {}, Weights(one.weight, one.weight),
        record.revision, record.revision, DATACENTER,
    )  # fmt: skip


def health_check(record: Record) -> HealthCheck:
    """Return the check of an instance."""
    one = record.instance
    kind = one.check.kind if one.check is not None else "ttl" if record.leased else ""
    return HealthCheck(
        NODE, f"service:{one.id}", f"Service '{one.service}' check", status_of(record), "", f"state: {one.state.value}",
        one.id, one.service, list(one.tags), kind, {}, record.revision, record.revision,
    )  # fmt: skip


def health_entry(record: Record) -> HealthEntry:
    """Return an instance with node and check."""
    return HealthEntry(node_of(record), agent_service(record), [health_check(record)])


def catalog_entry(record: Record) -> CatalogEntry:
    """Return an instance as the catalogue lists it."""
    one, facts = record.instance, record.instance.facts
    return CatalogEntry(
        "", NODE, facts.host, DATACENTER, {}, {}, one.id, one.service, facts.tags, facts.host, facts.port, facts.metadata,
        Weights(one.weight, one.weight), record.revision, record.revision,
    )  # fmt: skip


def seconds_of(text: object, pointer: str) -> float:
    """Return a Go duration, such as "1m30s" or "120000ms", in seconds. Raises Problem 422 at `pointer`."""
    if not isinstance(text, str) or len(text) > 40 or _duration.match(text) is None:
        raise invalid(pointer, 'Expected a duration such as "10s" or "1m30s"')
    return sum(float(number) * _UNITS_S[unit] for number, unit in _part.findall(text))


def tags_match(record: Record, tags: Iterable[str]) -> bool:
    """Whether an instance has all of the tags; Consul compares them without regard to case."""
    own = {tag.lower() for tag in record.instance.tags}
    return all(tag.lower() in own for tag in tags)


class Registering(Struct, frozen=True):
    """A registration as Consul's clients send it, read.

    critical  whether it begins critical, as TTL checks do that name no status
    """

    service: str
    id: str
    registered: Registered
    critical: bool


def read_registration(body: object, owner: str, check_networks: Sequence[IPNetwork]) -> Registering:
    """Return the registration in the JSON of PUT /v1/agent/service/register. Raises Problem 422.

    check_networks  networks that active checks may reach although they are special
    """
    fields = _fields(body, "")
    service, id_ = fields.get("name"), fields.get("id") or fields.get("name")
    for name, text in (("/Name", service), ("/ID", id_)):
        if not isinstance(text, str) or not check_name(text):
            raise invalid(name, "Expected 1 to 64 of A-Z a-z 0-9 . _ : - beginning with a letter or digit")
    host, port = fields.get("address") or "127.0.0.1", fields.get("port") or 0
    if not isinstance(host, str) or not is_host(host):
        raise invalid("/Address", "Expected a host name, or an IP address in its usual form")
    if type(port) is not int or not 1 <= port <= 65_535:
        raise invalid("/Port", "Expected 1 to 65535")
    tags, meta = _labels(fields)
    weight = _weight(fields.get("weights"))
    check, ttl_s, suspect_s, critical = _checks(fields, host, check_networks)
    registered = Registered(host, port, weight, "", tags, meta, ttl_s, suspect_s, check, owner, now_ms(), "consul")
    return Registering(str(service), str(id_), registered, critical)


def _fields(body: object, pointer: str) -> dict[str, Any]:
    """Return the members of an object by their names in lower case: Consul does not tell cases apart."""
    if not isinstance(body, dict):
        raise invalid(pointer, "Expected an object")
    return {str(name).lower().replace("_", ""): value for name, value in body.items()}


def _labels(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    tags, meta = fields.get("tags") or [], fields.get("meta") or {}
    if not isinstance(tags, list) or len(tags) > TAGS_MAX or not all(
        isinstance(tag, str) and _tag.match(tag) for tag in tags
    ):  # fmt: skip
        raise invalid("/Tags", f"Expected at most {TAGS_MAX} texts of 1 to 128 printable ASCII characters")
    if not isinstance(meta, dict) or len(meta) > METADATA_MAX or not all(
        _meta_key.match(key) and isinstance(value, str) and len(value) <= 1_024 for key, value in meta.items()
    ):  # fmt: skip
        raise invalid("/Meta", f"Expected at most {METADATA_MAX} texts of up to 1,024 characters")
    if len(msgspec.json.encode((tags, meta))) > LABELS_MAX_BYTES:
        raise invalid("/Meta", f"Expected at most {LABELS_MAX_BYTES} bytes of tags and metadata together")
    return tuple(dict.fromkeys(tags)), meta


def _weight(given: object) -> int:
    if given is None:
        return 1
    weight = _fields(given, "/Weights").get("passing", 1)
    if type(weight) is not int or not 0 <= weight <= WEIGHT_MAX:
        raise invalid("/Weights", f"Expected Passing of 0 to {WEIGHT_MAX}")
    return weight


def _checks(fields: Mapping[str, Any], host: str, allowed: Sequence[IPNetwork]) -> tuple[Check | None, float, float, bool]:
    """Return the active check, the silence that removes, the silence that makes critical, and how it begins."""
    given = fields.get("checks") or []
    if not isinstance(given, list):
        raise invalid("/Checks", "Expected an array")
    given = given + ([fields["check"]] if fields.get("check") else [])
    active: Check | None = None
    ttl_s, remove_s, critical = 0.0, float(CRITICAL_FOR_S), False
    for number, one in enumerate(given):
        pointer = f"/Checks/{number}"
        check = _fields(one, pointer)
        if check.get("deregistercriticalserviceafter"):
            asked_s = seconds_of(check["deregistercriticalserviceafter"], pointer)
            if asked_s > DEREGISTER_MAX_S:
                raise invalid(pointer, f"Expected DeregisterCriticalServiceAfter of at most {DEREGISTER_MAX_S // 3600}h")
            remove_s = max(float(DEREGISTER_MIN_S), asked_s)
        if check.get("ttl"):
            ttl_s = seconds_of(check["ttl"], pointer)
            if not 1 <= ttl_s <= TTL_MAX_S:
                raise invalid(pointer, f"Expected a TTL of 1 to {TTL_MAX_S} s")
            critical = check.get("status") not in ("passing", "warning")
        elif check.get("http") or check.get("tcp"):
            if active is not None:
                raise invalid(pointer, "Expected at most one HTTP or TCP check")
            active = _active(check, host, allowed, pointer)
        else:
            raise invalid(pointer, "Expected a check of TTL, HTTP or TCP")
    return active, ttl_s + remove_s if ttl_s else 0.0, ttl_s, critical and bool(ttl_s)


def _active(check: Mapping[str, Any], host: str, allowed: Sequence[IPNetwork], pointer: str) -> Check:
    kind = "http" if check.get("http") else "tcp"
    target = check[kind]
    interval_s = seconds_of(check["interval"], pointer) if check.get("interval") else float(CHECK_INTERVAL_DEFAULT_S)
    if not isinstance(target, str) or len(target) > 1_000 or not 1 <= interval_s <= 3_600:
        raise invalid(pointer, "Expected a URL or host:port, and an interval of 1 s to 1 h")
    try:
        if kind == "http":
            http_target(target, host, 1)
        else:
            tcp_target(target, host)
        check_literal(host, allowed)
    except CheckRefused as error:
        raise invalid(pointer, str(error)) from None
    return Check(kind, target, interval_s)


def id_of_check(check_id: str) -> str:
    """Return the instance id of a check id: `service:<id>`, or with the number that Consul gives several checks."""
    return check_id.removeprefix("service:")


def ambiguous() -> Problem:
    """Return the 409 for an id that several services have, of which Consul's API can only mean one."""
    return Problem(409, "ambiguous_id", "Several services have an instance of this id; use /v1/services/{service}/...")
