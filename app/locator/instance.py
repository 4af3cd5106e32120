"""What a service consists of: immutable records of instances, and an immutable snapshot of all of a service.

Nothing here knows time, load or health beyond the state that the registry has judged. Load and breakers of an instance
live in `app.locator.load`, and outlive the snapshots.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WEIGHT_DEFAULT: Final = 1  # what Consul and Envoy give an instance that names none
WEIGHT_MAX: Final = 65_535  # as in SRV records (RFC 2782)
TTL_DEFAULT_S: Final = 60  # an instance that is silent for so long is removed


class State(StrEnum):
    """What the registry knows of an instance; see `Rank` in `app.locator.load` for who is offered."""

    UP = "up"  # beats, and its checks pass
    SUSPECT = "suspect"  # beats are overdue: offered only when too few others are left
    UNVERIFIED = "unverified"  # restored, not heard of since: offered only when too few others are left
    DRAINING = "draining"  # finishes what it has, gets nothing new
    DOWN = "down"  # its active checks fail: never offered


class Check(msgspec.Struct, frozen=True, gc=False):
    """An active check: an HTTP URL that must answer 2xx, or a TCP address that must accept."""

    kind: str  # "http" or "tcp"
    target: str  # URL, or host:port
    interval_s: float


class Facts(msgspec.Struct, frozen=True):
    """What clients are told of an instance; its state follows."""

    service: str
    id: str
    host: str
    port: int
    weight: int
    zone: str
    tags: list[str]
    metadata: dict[str, str]
    generation: str


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Facts).decode
_state_ends: Final = {state: f',"state":"{state.value}"}}'.encode() for state in State}


class Instance(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One instance as it was registered, and its state. A change is a new record: `msgspec.structs.replace`.

    `generation` names one start of the process: an instance that comes back with another one is new, and its breaker,
    latency and calls in flight begin anew. `weight` is its share of the calls relative to others; 0 takes none.
    Host, port and metadata stand in `told` alone: that is a third of the memory of the object, and few calls need them.
    """

    service: str
    id: str
    told: bytes  # JSON of `Facts`, without the brace that ends it
    generation: str = ""
    state: State = State.UP
    weight: int = WEIGHT_DEFAULT
    zone: str = ""
    tags: tuple[str, ...] = ()
    ttl_s: float = TTL_DEFAULT_S
    check: Check | None = None
    registered_at_ms: int = 0  # Unix milliseconds, for people

    @classmethod
    def of(
        cls,
        service: str,
        id_: str,
        host: str,
        port: int,
        *,
        generation: str = "",
        state: State = State.UP,
        weight: int = WEIGHT_DEFAULT,
        zone: str = "",
        tags: tuple[str, ...] = (),
        metadata: Mapping[str, str] | None = None,
        ttl_s: float = TTL_DEFAULT_S,
        check: Check | None = None,
        registered_at_ms: int = 0,
    ) -> Instance:
        """Return the record of what was registered."""
        facts = Facts(service, id_, host, port, weight, zone, list(tags), dict(metadata or {}), generation)
        return cls(
            service=service, id=id_, told=_encode(facts)[:-1], generation=generation, state=state, weight=weight, zone=zone,
            tags=tags, ttl_s=ttl_s, check=check, registered_at_ms=registered_at_ms,
        )  # fmt: skip

    @property
    def facts(self) -> Facts:
        """Return what it was registered with, read anew: about a microsecond."""
        return _decode(self.told + b"}")

    @property
    def json(self) -> bytes:
        """Return what clients are told: its facts and its state."""
        return self.told + _state_ends[self.state]


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """All instances of a service at one revision. Swapped as a whole, never changed, so readers need no lock.

    `changed` are the ids that differ from the snapshot of revision `before`; -1 when there is none. A reader that
    stands at `before` looks at those only.
    """

    service: str
    revision: int
    by_id: Mapping[str, Instance]
    before: int = -1
    changed: tuple[str, ...] = ()

    @classmethod
    def of(cls, service: str, instances: Iterable[Instance], revision: int = 0) -> Snapshot:
        """Return a snapshot of these instances, one for each id: the last one wins."""
        return cls(service, revision, {one.id: one for one in instances})

    def evolve(self, put: Iterable[Instance] = (), removed: Iterable[str] = (), *, revision: int) -> Snapshot:
        """Return the next snapshot: `put` added or replaced, `removed` ids gone. O(n) pointer copies, no more.

        Raises ValueError for a revision that does not rise.
        """
        if revision <= self.revision:
            raise ValueError(f"revision {revision} does not follow {self.revision}")
        by_id = dict(self.by_id)
        changed = set()
        for one in put:
            by_id[one.id] = one
            changed.add(one.id)
        for id_ in removed:
            if by_id.pop(id_, None) is not None:
                changed.add(id_)
        return Snapshot(self.service, revision, by_id, self.revision, tuple(changed))
