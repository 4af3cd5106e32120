"""One registered instance as this replica knows it: what was registered, what Redis says of it, when it was last heard.

Times are this process's monotonic seconds: nothing a client says about time counts, and no step of a clock is seen.
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern
from typing import Final, NamedTuple

import msgspec

from app.locator.instance import TTL_DEFAULT_S, WEIGHT_DEFAULT, Check, Instance, State

SUSPECT_SHARE: Final = 1 / 3  # of the time to live: 20 s of 60 s, two heartbeats of three missed
HEARTBEAT_SHARE: Final = 1 / 6  # of the time to live: the interval that clients are told
DURATIONS_MAX: Final = 256  # times to live that are one object for all that have them; there are few different ones


class Registered(msgspec.Struct, frozen=True, omit_defaults=True):
    """What Redis keeps of a registration, as JSON.

    ttl_s      silence after which it is removed; 0: never, it sends no heartbeats
    suspect_s  silence after which it is out of lookups
    owner      id of the key that registered it
    api        "consul" for what came through Consul's API, where an id names one instance among all services
    """

    host: str
    port: int
    weight: int = WEIGHT_DEFAULT
    zone: str = ""
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    ttl_s: float = TTL_DEFAULT_S
    suspect_s: float = TTL_DEFAULT_S * SUSPECT_SHARE
    check: Check | None = None
    owner: str = ""
    registered_at_ms: int = 0
    api: str = ""


encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Registered).decode


class Fact(NamedTuple):
    """What Redis says of one instance.

    lease       "up" or "suspect"
    mode        "none", "draining", "maintenance" or "isolated": what somebody has ordered
    check       "none", "passing" or "critical": what active checks, or a Consul client, have found
    body        JSON of `Registered`; empty for one that is gone
    """

    revision: int
    lease: str
    mode: str
    check: str
    generation: str
    body: str


class Record:
    """One instance of a service.

    renewed_s    when it was last heard, or the time from which its silence counts
    late_s       when it has been silent for too long, unless it is heard: what the sweep looks at
    beaten_s     when a heartbeat last came to this replica itself
    published_s  when other replicas were last told that it was heard
    verified     whether it has been heard since this replica restored it
    overdue      this replica alone takes it for suspect, because Redis cannot be asked
    """

    __slots__ = (
        "api", "beaten_s", "check", "instance", "late_s", "lease", "mode", "overdue", "owner", "published_s",
        "renewed_s", "revision", "suspect_s", "verified",
    )  # fmt: skip

    def __init__(self, service: str, id_: str, fact: Fact, now_s: float, *, verified: bool) -> None:
        """Take an instance over from Redis; its silence counts from now."""
        self.renewed_s = now_s
        self.beaten_s = float("-inf")
        self.published_s = now_s
        self.verified = verified
        self.overdue = False
        self.take(service, id_, fact)

    def take(self, service: str, id_: str, fact: Fact) -> None:
        """Take over what Redis says now."""
        registered = _decode(fact.body)
        self.revision = fact.revision
        # The same few words stand in every record: one object of each saves a fifth of the memory.
        self.lease = intern(fact.lease)
        self.mode = intern(fact.mode)
        self.check = intern(fact.check)
        self.owner = intern(registered.owner)
        self.api = intern(registered.api)
        self.suspect_s = _shared(registered.suspect_s)
        self.verified = self.verified or registered.ttl_s == 0
        self.instance = Instance.of(
            service, id_, registered.host, registered.port, generation=fact.generation, weight=registered.weight,
            zone=intern(registered.zone), tags=tuple(map(intern, registered.tags)), metadata=registered.metadata,
            ttl_s=_shared(registered.ttl_s), check=registered.check, registered_at_ms=registered.registered_at_ms,
        )  # fmt: skip
        self.renew(self.renewed_s)
        self.judge()

    def follow(self, held: Record) -> None:
        """Take over what Redis says now, as another record of the same start has it."""
        self.revision, self.lease, self.mode, self.check = held.revision, held.lease, held.mode, held.check
        self.owner, self.api, self.suspect_s, self.instance = held.owner, held.api, held.suspect_s, held.instance
        self.verified = self.verified or held.verified
        self.renew(self.renewed_s)
        self.judge()

    def renew(self, heard_s: float) -> None:
        """Let the silence count from this time."""
        self.renewed_s = heard_s
        self.late_s = heard_s + self.suspect_s if self.leased else float("inf")

    @property
    def generation(self) -> str:
        """The start of the instance that is registered."""
        return self.instance.generation

    @property
    def leased(self) -> bool:
        """Whether it has to send heartbeats."""
        return self.instance.ttl_s > 0

    def judge(self) -> bool:
        """Bring the state of `instance` up to date; returns whether it changed."""
        state = self._state()
        if state is self.instance.state:
            return False
        self.instance = msgspec.structs.replace(self.instance, state=state)
        return True

    def _state(self) -> State:
        if self.mode == "maintenance" or self.check == "critical":
            return State.DOWN
        if self.mode == "draining":
            return State.DRAINING
        if self.lease == "suspect" or self.overdue:
            return State.SUSPECT
        return State.UP if self.verified else State.UNVERIFIED

    def heard(self, now_s: float) -> bool:
        """Note a heartbeat; returns whether its state changed."""
        self.renew(now_s)
        if self.verified and not self.overdue:
            return False
        self.verified = True
        self.overdue = False
        return self.judge()

    def catch_up(self, now_s: float, silent_s: float | None) -> bool:
        """Take over that another replica has heard a restored instance so long ago; returns whether its state changed."""
        if self.verified or silent_s is None or silent_s >= self.suspect_s:
            return False
        return self.heard(max(self.renewed_s, now_s - silent_s))

    def begin(self, now_s: float, silent_s: float | None) -> None:
        """Let the silence count from now, or from when another replica has heard it, which verifies it."""
        self.published_s = now_s
        self.renew(now_s)
        if silent_s is not None and silent_s < self.suspect_s:
            self.heard(now_s - silent_s)

    def registered(self) -> Registered:
        """Return what was registered, for a Redis that has forgotten it."""
        one, facts = self.instance, self.instance.facts
        return Registered(
            facts.host, facts.port, one.weight, one.zone, one.tags, facts.metadata, one.ttl_s, self.suspect_s, one.check,
            self.owner, one.registered_at_ms, self.api,
        )  # fmt: skip


@lru_cache(DURATIONS_MAX)
def _shared(seconds: float) -> float:
    """Return one object for all durations of a length."""
    return seconds


def split_field(field: str) -> tuple[str, str]:
    """Return service and id of a field `<service>/<id>`; names hold no slash."""
    service, _, id_ = field.partition("/")
    return service, id_


def parse_fact(text: bytes) -> Fact:
    """Return what an entry of the instances' hash says."""
    revision, lease, mode, check, generation, body = text.decode().split(" ", 5)
    return Fact(int(revision), lease, mode, check, generation, body)
