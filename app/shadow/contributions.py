"""What outcomes that are to be merged add, looked up once for all that add the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from app.actor import Ask
from app.shadow.counters import Known, Work
from app.shadow.tallies import Class, added, evidence_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from app.shadow.definition import Definition

FIELDS_CACHED: Final = 10_000  # of what outcomes add, which many have in common: 1 MB


class Counted(NamedTuple):
    """One outcome, ready to be merged: its event, what it adds, its value in thousandths, its unit, "" for one of its own.

    odd  whether the unit is to be quarantined
    """

    event: str
    what: Class
    value: int = 0
    unit: str = ""
    odd: bool = False


class Add(Ask[list[int]]):
    """Merge outcomes, at most BATCH_MAX; the answer is which of them were repetitions, by place.

    known  the counters with whose weights and units they were sorted
    """

    __slots__ = ("known", "outcomes", "weight")

    def __init__(self, outcomes: Sequence[Counted], known: Known) -> None:
        """Weigh as much as there are outcomes."""
        super().__init__()
        self.known = known
        self.outcomes = outcomes
        self.weight = len(outcomes)


class Contributions:
    """What the classes of outcomes of one experiment add; the most of it is remembered."""

    def __init__(self, definition: Definition, weights_of: Callable[[int], Sequence[float]]) -> None:
        """`weights_of` returns a version of the weights, or raises."""
        self._definition = definition
        self._weights_of = weights_of
        self._classes: dict[Class, tuple[list[str | int], list[list[str | int]]]] = {}
        self._fields = 0

    def forget(self) -> None:
        """Look everything up again, with the weights and the split of from now on."""
        self._classes.clear()
        self._fields = 0

    def work(self, batch: Iterable[Sequence[Counted]]) -> Work:
        """Return what one merge of all these outcomes is to do. Raises what `weights_of` raises."""
        work = Work([], [], [], [], [])
        places: dict[Class, int] = {}
        for outcomes in batch:
            for event, one, value, unit, odd in outcomes:
                place = places.get(one)
                if place is None:
                    place = places[one] = len(work.classes) + 1
                    fields, evidence = self._adds(one)
                    work.classes.append(fields)
                    work.evidence.append(evidence)
                    counted = one.fate == "counted" and one.latency is not None
                    work.latencies.append(f"{one.variant}:{one.latency}" if counted else "")
                work.events.extend((event, place, value, unit))
                if odd:
                    work.odd.append(unit)
        return work

    def _adds(self, one: Class) -> tuple[list[str | int], list[list[str | int]]]:
        found = self._classes.get(one)
        if found is None:
            fixed = self._definition.allocation == "fixed"
            weights = () if fixed or one.shares is None else self._weights_of(one.shares)
            found = added(one), evidence_of(self._definition, one, weights)
            size = len(found[0]) + sum(map(len, found[1]))
            self._fields += size
            if self._fields > FIELDS_CACHED:
                self._classes.clear()
                self._fields = size
            self._classes[one] = found
        return found
