"""What this replica knows of all services: changed by the registry and the feed, read by everybody without waiting.

It is memory only: time comes in as an argument. Every service has an immutable snapshot; a change swaps it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.locator.record import Fact, Record, split_field
from app.locator.roster import Roster, own_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

ALL: Final = ""  # the name of the watch over all services: no service has it
GONE_MAX: Final = 20_000  # instances whose end is remembered: 6 MB
EMPTY_S: Final = 600.0  # a service without instances is forgotten after this
RENEWAL_SHARE: Final = 0.25  # of the time to suspicion: how often heartbeats of an instance are told to other replicas
UNCOUNTED: Final = 1  # the revision of what the present data has not counted: an index begins here, so all others are higher


class End(NamedTuple):
    """The end of an instance: at which revision, of which generation, and whether somebody has asked for it."""

    revision: int
    generation: str
    asked: bool


class Directory:
    """All services of this replica.

    index      the highest revision that was seen, or made here while Redis was away
    catalogue  the revision at which an instance was last added, removed, or got other tags
    owned      instances by the key that registered them; owned_services: in how many services those are
    checked    fields of the instances that have an active check
    renewed    heartbeats that other replicas have not been told of: field to generation
    """

    def __init__(
        self,
        *,
        on_change: Callable[[Roster], None] = lambda _: None,
        on_word: Callable[[Roster, str, str], None] = lambda _service, _id, _word: None,
        on_purge: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin with nothing.

        on_change  follows every new snapshot
        on_word    gets what was told about an instance, such as "reset"
        on_purge   gets the names of services that are forgotten
        """
        self.services: dict[str, Roster] = {}
        self.index = UNCOUNTED  # Consul's indexes begin above 0
        self.catalogue = UNCOUNTED
        self.instances = 0
        self.leased = 0
        self.owned: Counter[str] = Counter()
        self.owned_services: Counter[str] = Counter()
        self.checked: set[str] = set()
        self.renewed: dict[str, str] = {}
        self._owned_in: Counter[tuple[str, str]] = Counter()
        self._gone: OrderedDict[str, End] = OrderedDict()
        self._on_change = on_change
        self._on_word = on_word
        self._on_purge = on_purge

    def get(self, name: str) -> Roster | None:
        """Return a service that has instances, or had some in the last minutes."""
        return self.services.get(name)

    def find(self, service: str, id_: str) -> Record | None:
        """Return the record of an instance."""
        found = self.services.get(service)
        return None if found is None else found.records.get(id_)

    def holders(self, id_: str) -> list[Roster]:
        """Return the services that have an instance of this id. O(services)."""
        return [service for service in self.services.values() if id_ in service.records]

    def records(self) -> Iterable[tuple[Roster, str, Record]]:
        """Yield every record, with its service and id."""
        for service in self.services.values():
            for id_, record in service.records.items():
                yield service, id_, record

    # --- changes ----------------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Sequence[Any]], now_s: float) -> None:
        """Apply what the script has made, in its order; what is known already, or older, changes nothing."""
        touched: dict[str, dict[str, int]] = {}
        for revision, kind, field, lease, mode, check, generation, body in changes:
            name, id_ = split_field(field)
            if self._apply_one(kind, field, Fact(revision, lease, mode, check, generation, body), now_s):
                touched.setdefault(name, {})[id_] = revision
        self._publish([(self.services[name], ids, max(ids.values())) for name, ids in touched.items()], now_s)

    def _apply_one(self, kind: str, field: str, fact: Fact, now_s: float) -> bool:
        name, id_ = split_field(field)
        service = self._service(name, now_s)
        record = service.records.get(id_)
        known = self._gone.get(field) if record is None else record
        if known is not None and fact.revision <= known.revision:
            return False
        if not fact.body:
            self._remove(service, id_, End(fact.revision, fact.generation, kind == "drop"))
            return record is not None
        if record is None or record.generation != fact.generation:
            if record is not None:
                self._forget(record)
                id_ = record.instance.id  # one text for all who know the instance, and one for all of a service
            self._add(service, id_, Record(service.name, id_, fact, now_s, verified=kind != "restore"))
            return True
        self._forget(record)
        record.take(service.name, record.instance.id, fact)
        self._count(record)
        if kind in {"put", "up"}:
            record.heard(now_s)
        elif kind == "suspect" and now_s - record.beaten_s < record.suspect_s:
            self.renewed[field] = record.generation  # heard here in the meantime: the next tick says so
        elif kind not in {"set", "suspect", "restore"}:
            self._on_word(service, id_, kind)
        return True

    def _service(self, name: str, now_s: float) -> Roster:
        service = self.services.get(name)
        if service is None:
            service = self.services[name] = Roster(name, self.index, now_s)
        return service

    def _add(self, service: Roster, id_: str, record: Record) -> None:
        service.records[id_] = record
        self._gone.pop(f"{service.name}/{id_}", None)
        self._count(record)

    def _count(self, record: Record) -> None:
        self.instances += 1
        self.leased += record.leased
        self.owned[record.owner] += 1
        place = record.owner, record.instance.service
        self._owned_in[place] += 1
        self.owned_services[record.owner] += self._owned_in[place] == 1
        if record.instance.check is not None:
            self.checked.add(f"{record.instance.service}/{record.instance.id}")

    def _forget(self, record: Record) -> None:
        self.instances -= 1
        self.leased -= record.leased
        self.owned[record.owner] -= 1
        place = record.owner, record.instance.service
        self._owned_in[place] -= 1
        if not self._owned_in[place]:
            del self._owned_in[place]
            self.owned_services[record.owner] -= 1
        if record.instance.check is not None:
            self.checked.discard(f"{record.instance.service}/{record.instance.id}")
        if not self.owned[record.owner]:
            del self.owned[record.owner]
            del self.owned_services[record.owner]

    def _remove(self, service: Roster, id_: str, end: End) -> None:
        field = f"{service.name}/{id_}"
        self._gone[field] = end
        self._gone.move_to_end(field)
        if len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)
        self.renewed.pop(field, None)
        record = service.records.pop(id_, None)
        if record is not None:
            self._forget(record)

    def _publish(self, changed: Sequence[tuple[Roster, Iterable[str], int]], now_s: float, *, least: int = 0) -> None:
        """Publish services, each with ids and the revision that has changed them; the index is another one after that.

        A revision of Redis may lie below the index, where this replica has put it by itself.

        least  what the index is at least
        """
        before = self.index
        anew = [service.publish(ids, revision) for service, ids, revision in changed]
        self.index = max(before, least, *(service.snapshot.revision for service, _, _ in changed))
        if changed and self.index == before:
            self.index = own_after(before)
        if any(anew):
            self.catalogue = self.index
        for service, _, _ in changed:
            if not service.records:
                service.empty_since_s = now_s
            self._on_change(service)

    def restate(self, service: Roster, ids: Iterable[str], now_s: float) -> None:
        """Publish instances whose state this replica has judged by itself. No replica is told."""
        self._publish([(service, ids, own_after(self.index))], now_s)

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def beat(self, service: Roster, id_: str, record: Record, now_s: float) -> None:
        """Note a heartbeat that came to this replica."""
        record.beaten_s = now_s
        if record.heard(now_s):
            self.restate(service, (id_,), now_s)
        if record.lease == "suspect" or now_s - record.published_s >= record.suspect_s * RENEWAL_SHARE:
            record.published_s = now_s
            self.renewed[f"{service.name}/{id_}"] = record.generation

    def hear(self, pairs: Sequence[str], now_s: float) -> None:
        """Note heartbeats that came to another replica: fields and generations in turn."""
        restated: dict[str, list[str]] = {}
        for field, generation in zip(pairs[::2], pairs[1::2], strict=True):
            name, id_ = split_field(field)
            record = self.find(name, id_)
            if record is not None and record.generation == generation and record.heard(now_s):
                restated.setdefault(name, []).append(id_)
        for name, ids in restated.items():
            self.restate(self.services[name], ids, now_s)

    def confirm(self, silent_s: Mapping[str, float], now_s: float) -> None:
        """Take over for how long instances have been silent that other replicas have heard and this one has not."""
        restated: dict[str, list[str]] = {}
        for field, seconds in silent_s.items():
            name, id_ = split_field(field)
            record = self.find(name, id_)
            if record is not None and _catch_up(record, now_s, seconds):
                restated.setdefault(name, []).append(id_)
        for name, ids in restated.items():
            self.restate(self.services[name], ids, now_s)

    def take_renewed(self) -> list[tuple[str, str]]:
        """Return the heartbeats to tell, and forget them."""
        renewed, self.renewed = self.renewed, {}
        return list(renewed.items())

    # --- silence ----------------------------------------------------------------------------------------------------

    def extend(self, seconds: float) -> None:
        """Give every instance more time: it was this process that did not listen."""
        for _, _, record in self.records():
            record.renew(record.renewed_s + seconds)

    def silent(self, now_s: float, *, evicting: bool = True) -> list[tuple[str, Record, str]]:
        """Return field, record and motion ("suspect" or "evict") of every instance that has been silent for too long.

        evicting  whether those that are to be removed are wanted: thousands may have to wait for that for minutes
        Looks at every instance each second, so the loop does one comparison: 0.5 ms for 10,000.
        """
        late = [
            (service.name, id_, record)
            for service in self.services.values()
            for id_, record in service.records.items()
            if now_s >= record.late_s
        ]
        found = []
        for name, id_, record in late:
            if now_s - record.renewed_s >= record.instance.ttl_s:
                if evicting:
                    found.append((f"{name}/{id_}", record, "evict"))
            elif record.lease == "up":
                found.append((f"{name}/{id_}", record, "suspect"))
        return found

    def doubt(self, now_s: float) -> None:
        """Take silent instances out of lookups without asking anybody: Redis is away, and no other replica was there."""
        doubted: dict[str, list[str]] = {}
        for field, record, _ in self.silent(now_s):
            record.overdue = True
            if record.judge():
                name, id_ = split_field(field)
                doubted.setdefault(name, []).append(id_)
        for name, ids in doubted.items():
            self.restate(self.services[name], ids, now_s)

    def purge(self, now_s: float, empty_s: float = EMPTY_S) -> None:
        """Forget services that have had no instances for so long."""
        empty = [
            name for name, service in self.services.items()
            if not service.records and now_s - service.empty_since_s >= empty_s
        ]  # fmt: skip
        for name in empty:
            del self.services[name]
            self._on_purge(name)

    # --- restoring --------------------------------------------------------------------------------------------------

    def reconcile(
        self,
        facts: Mapping[str, Fact],
        revision: int,
        now_s: float,
        *,
        reached: int,
        same: bool,
        silent_s: Mapping[str, float],
        kept: AbstractSet[str] = frozenset(),
    ) -> list[tuple[str, Record | End]]:
        """Take over all that Redis holds, read after `revision` was; return what it has forgotten: instances, and ends.

        reached   the revision after all was read: what is known here beyond it, Redis counts anew
        same      whether it is the data that this process has seen before: then what is missing and older has ended, and
                  what is older than it is known here was forgotten
        silent_s  for how long instances have been silent by Redis' clock; what is not named counts as unverified
        kept      fields that are forgotten still: an earlier call returned them, and they are not laid again yet
        """
        if not same:
            self._gone.clear()
        touched: dict[str, set[str]] = {}
        forgotten: list[tuple[str, Record | End]] = []
        for field, fact in facts.items():
            name, id_ = split_field(field)
            end = self._end_of(field, fact)
            if end is not None:
                forgotten.append((field, end))
                continue
            record = self.find(name, id_)
            if record is not None and same and fact.revision < record.revision:
                forgotten.append((field, record))
            if self._take_over(name, id_, fact, now_s, same=same, silent_s=silent_s.get(field)):
                touched.setdefault(name, set()).add(id_)
        for service, id_, record in list(self.records()):
            field = f"{service.name}/{id_}"
            if field in facts:
                continue
            if same and record.revision <= revision and field not in kept:
                self._remove(service, id_, End(revision, record.generation, asked=False))
                touched.setdefault(service.name, set()).add(id_)
            else:
                record.revision = record.revision if same else UNCOUNTED
                forgotten.append((field, record))
        for field, end in [one for one in self._gone.items() if one[1].revision > reached]:
            self._gone[field] = end._replace(revision=reached)
        # A number of its own, above all that Redis has counted: the highest revision of what is left would be that of a
        # time before something ended, and who has seen it then would not hear of the end.
        own = own_after(max(reached, self.index))
        self._publish([(self.services[name], ids, own) for name, ids in touched.items()], now_s, least=revision)
        return forgotten

    def _end_of(self, field: str, fact: Fact) -> End | None:
        """Return the end that somebody has asked for and Redis has forgotten."""
        end = self._gone.get(field)
        if end is None or not end.asked or end.generation != fact.generation or end.revision < fact.revision:
            return None
        return end

    def _take_over(self, name: str, id_: str, fact: Fact, now_s: float, *, same: bool, silent_s: float | None) -> bool:
        """Take over one instance that Redis holds; returns whether anything has changed here."""
        service = self._service(name, now_s)
        record = service.records.get(id_)
        if record is None:
            self._add(service, id_, _restored(service.name, id_, fact, now_s, silent_s))
            return True
        known = same and fact.revision <= record.revision
        if record.generation == fact.generation:
            verified = _catch_up(record, now_s, silent_s)
            if known:
                return verified
            self._forget(record)
            record.take(service.name, record.instance.id, fact)
            self._count(record)
            return True
        if known:
            return False
        self._forget(record)
        self._add(service, record.instance.id, _restored(service.name, record.instance.id, fact, now_s, silent_s))
        return True


def _catch_up(record: Record, now_s: float, silent_s: float | None) -> bool:
    """Take over that another replica has heard a restored instance; returns whether its state changed."""
    if record.verified or silent_s is None or silent_s >= record.suspect_s:
        return False
    return record.heard(max(record.renewed_s, now_s - silent_s))


def _restored(service: str, id_: str, fact: Fact, now_s: float, silent_s: float | None) -> Record:
    """Return the record of an instance that this replica did not know: verified if another one has just heard it."""
    record = Record(service, id_, fact, now_s, verified=False)
    if silent_s is not None and silent_s < record.suspect_s:
        record.heard(now_s - silent_s)
    return record
