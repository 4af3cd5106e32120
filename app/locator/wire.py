"""Bodies of the locator's calls, as they are sent and answered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from app.clock import now_ms, time_text
from app.locator.balancing import STRATEGIES
from app.locator.instance import TTL_DEFAULT_S, WEIGHT_DEFAULT, WEIGHT_MAX, Check, Facts
from app.locator.record import HEARTBEAT_SHARE, SUSPECT_SHARE, Record, Registered
from app.locator.target import CheckRefused, check_literal, http_target, is_host, tcp_target
from app.web.fields import NAME_PATTERN, Input
from app.web.problems import FieldError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.locator.pick import Balancer
    from app.locator.target import IPNetwork

TAGS_MAX: Final = 64
METADATA_MAX: Final = 64  # entries
LABELS_MAX_BYTES: Final = 4_096  # tags and metadata of one instance together, encoded: 200 MB for 50,000 instances
TTL_MIN_S: Final = 5  # below, a slow second of a client looks like its death
TTL_MAX_S: Final = 86_400
CHECK_INTERVAL_DEFAULT_S: Final = 10
CHECK_INTERVAL_MIN_S: Final = 1
CHECK_INTERVAL_MAX_S: Final = 3_600

_key = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="1 to 64 characters; starts with a letter or digit.")]
Host = Annotated[
    str, Meta(min_length=1, max_length=253, description="Name or IP address; an IPv6 address without brackets.")
]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Tag = Annotated[str, Meta(pattern=r"^[!-+\--~]{1,128}\Z", description="1 to 128 printable ASCII characters, no comma.")]
Zone = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:-]{0,63})?\Z")]
Generation = Annotated[
    str, Meta(pattern=NAME_PATTERN, description="Names one start of the instance, for example a UUID made at its start.")
]
Text = Annotated[str, Meta(max_length=1_024, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Seconds = Annotated[int, Meta(ge=CHECK_INTERVAL_MIN_S, le=CHECK_INTERVAL_MAX_S)]
LeaseId = Annotated[str, Meta(pattern=r"^[!-~]{1,160}\Z", description="`lease_id` of the lookup.")]
StrategyName = Annotated[
    Literal["p2c", "round_robin", "least_connections", "weighted_random", "response_time", "consistent_hash"],
    Meta(description=f"How to choose; {STRATEGIES[0]} by default."),
]
HashKey = Annotated[str, Meta(min_length=1, max_length=512, description="What consistent_hash hashes.")]
Index = Annotated[int, Meta(ge=0, le=10**15, description="`index` of the answer before: waits for a change after it.")]
Wait = Annotated[int, Meta(ge=1, le=600, description="Seconds to wait for a change; 60 by default.")]


class NewCheck(Input, frozen=True):
    """An active check: `http` is a path on the instance's port or a URL on its host, `tcp` is `host:port` on its host."""

    http: Annotated[str, Meta(min_length=1, max_length=1_000)] | None = None
    tcp: Annotated[str, Meta(min_length=1, max_length=300)] | None = None
    interval_seconds: Seconds = CHECK_INTERVAL_DEFAULT_S


class Registration(Input, frozen=True):
    """Body of the PUT that registers an instance.

    ttl_seconds 0 is for an instance that sends no heartbeats; it then needs a check.
    """

    host: Host
    port: Port
    weight: Annotated[int, Meta(ge=0, le=WEIGHT_MAX, description="Share of the calls; 0 takes none.")] = WEIGHT_DEFAULT
    zone: Zone = ""
    tags: Annotated[list[Tag], Meta(max_length=TAGS_MAX)] = msgspec.field(default_factory=list)
    metadata: Annotated[dict[str, Text], Meta(max_length=METADATA_MAX)] = msgspec.field(default_factory=dict)
    ttl_seconds: Annotated[int, Meta(ge=0, le=TTL_MAX_S)] = TTL_DEFAULT_S
    generation: Generation | None = None
    check: NewCheck | None = None


class Start(Input, frozen=True):
    """Body of heartbeat and drain: which start of the instance is meant. Without it, whichever is registered."""

    generation: Generation | None = None


class Report(Input, frozen=True):
    """Body of a report. `ok` is false for faults of the instance alone: no connection, a timeout, a 5xx."""

    lease_id: LeaseId
    ok: bool
    latency_ms: Annotated[float, Meta(ge=0, le=3_600_000)] | None = None


class CheckView(Struct, frozen=True):
    """An active check, and what it has found."""

    kind: Literal["http", "tcp"]
    target: str
    interval_seconds: float
    status: Literal["none", "passing", "critical"]


class LoadReport(Struct, frozen=True):
    """What this replica knows of an instance's calls."""

    in_flight: int
    latency_ms: float | None
    picks: int
    reports: int
    failures: int


class InstanceFacts(Facts, frozen=True):
    """An instance as it was registered, and its state."""

    state: Literal["up", "suspect", "draining", "down", "unverified"]


class InstanceView(InstanceFacts, frozen=True):
    """The same, and what this replica knows of it besides."""

    ttl_seconds: float
    mode: Literal["none", "draining", "maintenance", "isolated"]
    breaker: Literal["closed", "open", "half_open"]
    load: LoadReport
    registered_at: str
    index: int
    check: CheckView | None = None


class RegisteredView(Struct, frozen=True):
    """Answer to a registration. `heartbeat_seconds`: send one at this interval, up to 10 % earlier or later."""

    service: str
    id: str
    generation: str
    state: Literal["up", "suspect", "draining", "down", "unverified"]
    index: int
    ttl_seconds: float
    heartbeat_seconds: float


class HeartbeatView(Struct, frozen=True):
    """Answer to a heartbeat."""

    state: Literal["up", "suspect", "draining", "down", "unverified"]
    heartbeat_seconds: float


class Summary(Struct, frozen=True):
    """One service of the list."""

    service: str
    instances: int
    up: int
    tags: list[str]
    index: int


class SummaryPage(Struct, frozen=True):
    """Services, by name."""

    data: list[Summary]
    next_cursor: str | None = None


class InstancePage(Struct, frozen=True):
    """Instances of a service, by id, and the revision of the service."""

    service: str
    index: int
    data: list[InstanceView]
    next_cursor: str | None = None


class Found(Struct, frozen=True):
    """Answer to a lookup. `panic`: so few are healthy that others were offered as well."""

    instance: InstanceFacts
    lease_id: str
    panic: bool = False


class Received(Struct, frozen=True):
    """What became of a report: `handed_on` to the replica that lent the lease."""

    result: Literal["counted", "late", "repeated", "handed_on"]


class Watched(Struct, frozen=True):
    """All instances of a service, and the revision to wait for the next change with."""

    service: str
    index: int
    instances: list[InstanceFacts]


def registered_of(body: Registration, owner: str, check_networks: Sequence[IPNetwork]) -> Registered:
    """Return what Redis keeps of a registration. Raises Problem 422 for what the field types cannot say.

    check_networks  networks that active checks may reach although they are special
    """
    errors = [FieldError(pointer, detail) for pointer, detail in _wrong_parts(body)]
    check = None
    if body.check is not None and not errors:
        try:
            check = check_of(body.check, body.host, body.port)
            check_literal(body.host, check_networks)
        except CheckRefused as error:
            errors.append(FieldError("/check", str(error)))
    if errors:
        raise Problem(422, "invalid_request", "The body has invalid fields.", errors=errors)
    return Registered(
        body.host, body.port, body.weight, body.zone, tuple(dict.fromkeys(body.tags)), dict(body.metadata),
        float(body.ttl_seconds), body.ttl_seconds * SUSPECT_SHARE, check, owner, now_ms(),
    )  # fmt: skip


def _wrong_parts(body: Registration) -> list[tuple[str, str]]:
    wrong = []
    if not is_host(body.host):
        wrong.append(("/host", "Expected a host name, or an IP address in its usual form"))
    if 0 < body.ttl_seconds < TTL_MIN_S:
        wrong.append(("/ttl_seconds", f"Expected 0, or {TTL_MIN_S} to {TTL_MAX_S}"))
    if body.ttl_seconds == 0 and body.check is None:
        wrong.append(("/ttl_seconds", "Expected a check for an instance that sends no heartbeats"))
    if body.check is not None and (body.check.http is None) == (body.check.tcp is None):
        wrong.append(("/check", "Expected http or tcp"))
    if any(_key.match(key) is None for key in body.metadata):
        wrong.append(("/metadata", "Expected keys of 1 to 64 letters, digits, _ . and -, not beginning with a digit"))
    if len(msgspec.json.encode((body.tags, body.metadata))) > LABELS_MAX_BYTES:
        wrong.append(("/metadata", f"Expected at most {LABELS_MAX_BYTES} bytes of tags and metadata together"))
    return wrong


def check_of(check: NewCheck, host: str, port: int) -> Check:
    """Return a check in the form that is kept. Raises CheckRefused for a target that is not the instance itself."""
    if check.http is not None:
        http_target(check.http, host, port)
        return Check("http", check.http, float(check.interval_seconds))
    tcp_target(check.tcp or "", host)
    return Check("tcp", check.tcp or "", float(check.interval_seconds))


def heartbeat_s(record: Record) -> float:
    """Return the interval at which an instance should send heartbeats."""
    return round(min(record.suspect_s / 2, record.instance.ttl_s * HEARTBEAT_SHARE), 3)


def view_of(record: Record, balancer: Balancer, now_s: float) -> InstanceView:
    """Return an instance for lists."""
    one = record.instance
    seen = balancer.view(one.service, one.id, now_s)
    load = LoadReport(0, None, 0, 0, 0)
    breaker: Any = "closed"
    if seen is not None:
        latency_ms = None if seen.latency_ms is None else round(seen.latency_ms, 3)
        load = LoadReport(seen.in_flight, latency_ms, seen.picks, seen.reports, seen.failures)
        breaker = seen.breaker.value
    check = None
    if one.check is not None:
        kind: Any = one.check.kind
        status: Any = record.check
        check = CheckView(kind, one.check.target, one.check.interval_s, status)
    mode: Any = record.mode
    return InstanceView(
        **msgspec.structs.asdict(one.facts), state=one.state.value, ttl_seconds=one.ttl_s, mode=mode, breaker=breaker,
        load=load, registered_at=time_text(one.registered_at_ms), index=record.revision, check=check,
    )  # fmt: skip


def registered_view(record: Record, index: int) -> RegisteredView:
    """Return the answer to a registration, or to a change of it."""
    one = record.instance
    return RegisteredView(
        one.service, one.id, one.generation, one.state.value, index, one.ttl_s, heartbeat_s(record)
    )  # fmt: skip
