"""What this replica knows of all services: changed by the registry and the feed, read by everybody without waiting.

It is memory only: time comes in as an argument. Every service has an immutable snapshot; a change swaps it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final

from app.locator.reading import End, Forgotten
from app.locator.record import Fact, Record, split_field
from app.locator.roster import Roster, own_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from app.locator.reading import Reading

ALL: Final = ""  # the name of the watch over all services: no service has it
GONE_MAX: Final = 20_000  # instances whose end is remembered: 6 MB
EMPTY_S: Final = 600.0  # a service without instances is forgotten after this
RENEWAL_SHARE: Final = 0.25  # of the time to suspicion: how often heartbeats of an instance are told to other replicas
UNCOUNTED: Final = 1  # the revision of what the present data has not counted: an index begins here, so all others are higher
STEP_INSTANCES: Final = 400  # that are taken over from a whole reading at once: about 5 ms


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

    def _publish(self, changed: Sequence[tuple[Roster, Iterable[str], int]], now_s: float) -> None:
        """Publish services, each with ids and the revision that has changed them; the index is another one after that.

        A revision of Redis may lie below the index, where this replica has put it by itself.
        """
        before = self.index
        anew = [service.publish(ids, revision) for service, ids, revision in changed]
        self.index = max([before, *(service.snapshot.revision for service, _, _ in changed)])
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
            if record is not None and record.catch_up(now_s, seconds):
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
        self, read: Reading, now_s: float, *, reached: int, silent_s: Mapping[str, float]
    ) -> Iterator[list[Forgotten]]:
        """Take over all that Redis holds, some services in each step; yield what it has forgotten: instances, and ends.

        reached   the revision after all was read: what is known here beyond it, Redis counts anew
        silent_s  for how long instances have been silent by Redis' clock; what is not named counts as unverified

        Others may have their turn between two steps: what a step has touched is published with it, each service as a
        whole, and what changes in between is newer than what was read, or comes again by the stream.
        """
        if not read.same:
            self._gone.clear()
        weight, forgotten = 0, list[Forgotten]()
        for field, end in [one for one in self._gone.items() if one[1].revision > reached]:
            self._gone[field] = end._replace(revision=reached)
            if end.asked:  # laid also when Redis has no such instance: who has missed the end may lay that again
                forgotten.append((field, end))
        touched: dict[str, set[str]] = {}
        for name, some, missing in self._parts(read):
            weight += 1 + len(some) + len(missing)
            ids = self._take_some(name, some, read, now_s, silent_s, forgotten)
            ids |= self._end_some(name, missing, read, forgotten)
            if ids:
                touched.setdefault(name, set()).update(ids)
            if weight >= STEP_INSTANCES:
                self._publish_own(touched, reached, now_s)
                yield forgotten
                weight, forgotten, touched = 0, [], {}
        self._publish_own(touched, reached, now_s)
        self.index = max(self.index, read.revision)
        yield forgotten

    def _parts(self, read: Reading) -> Iterator[tuple[str, list[tuple[str, Record]], list[str]]]:
        """Yield services with some of what is held of them, and some of what is missing.

        What was there goes on by parts, as by changes that follow each other: what is missing ends last. A service that
        was not there begins with all of its instances, for nobody is to take some of them for the whole.
        """
        for name in [*read.seen, *(name for name in self.services if name not in read.seen)]:
            held = list(read.held.get(name, {}).items())
            service, seen = self.services.get(name), read.seen.get(name, set())
            begun = service is not None and bool(service.records)
            size = STEP_INSTANCES if begun else max(1, len(held))
            for start in range(0, len(held), size):
                yield name, held[start : start + size], []
            missing = [id_ for id_ in service.records if id_ not in seen] if service is not None else []
            for start in range(0, len(missing), STEP_INSTANCES):
                yield name, [], missing[start : start + STEP_INSTANCES]

    def _take_some(
        self, name: str, some: Sequence[tuple[str, Record]], read: Reading, now_s: float, silent_s: Mapping[str, float],
        forgotten: list[Forgotten],
    ) -> set[str]:  # fmt: skip
        """Take over instances that are held, without publishing them; return the ids that have changed."""
        touched = set()
        for id_, held in some:
            field = f"{name}/{id_}"
            end = self._end_of(field, held)
            if end is not None:
                forgotten.append((field, end))
                continue
            record = self.find(name, id_)
            if record is not None and read.same and held.revision < record.revision:
                forgotten.append((field, record))
            if self._take_over(name, id_, held, now_s, same=read.same, silent_s=silent_s.get(field)):
                touched.add(id_)
        return touched

    def _end_some(self, name: str, missing: Sequence[str], read: Reading, forgotten: list[Forgotten]) -> set[str]:
        """End instances that Redis does not hold, unless it has forgotten them; return the ids that have ended."""
        touched, service = set(), self.services.get(name)
        for id_ in missing:
            record = None if service is None else service.records.get(id_)
            if service is None or record is None:
                continue
            field = f"{name}/{id_}"
            if read.same and record.revision <= read.revision and field not in read.kept:
                self._remove(service, id_, End(read.revision, record.generation, asked=False))
                touched.add(id_)
            else:
                record.revision = record.revision if read.same else UNCOUNTED
                forgotten.append((field, record))
        return touched

    def _publish_own(self, touched: Mapping[str, set[str]], reached: int, now_s: float) -> None:
        # A number of its own, above all that Redis has counted: the highest revision of what is left would be that of a
        # time before something ended, and who has seen it then would not hear of the end.
        own = own_after(max(reached, self.index))
        self._publish([(self.services[name], ids, own) for name, ids in touched.items()], now_s)

    def _end_of(self, field: str, held: Record) -> End | None:
        """Return the end that somebody has asked for and Redis has forgotten."""
        end = self._gone.get(field)
        if end is None or not end.asked or end.generation != held.generation or end.revision < held.revision:
            return None
        return end

    def _take_over(self, name: str, id_: str, held: Record, now_s: float, *, same: bool, silent_s: float | None) -> bool:
        """Take over one instance that Redis holds; returns whether anything has changed here."""
        service = self._service(name, now_s)
        record = service.records.get(id_)
        known = record is not None and same and held.revision <= record.revision
        if record is not None and record.generation == held.generation:
            verified = record.catch_up(now_s, silent_s)
            if known:
                return verified
            self._forget(record)
            record.follow(held)
            self._count(record)
            return True
        if known:
            return False
        if record is not None:
            self._forget(record)
        held.begin(now_s, silent_s)
        self._add(service, id_, held)
        return True
