"""All experiments that this process knows, by name, and the one way to change one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from app.shadow.definition import State
from app.shadow.experiment import Experiment
from app.shadow.store import Entry
from app.turns import answer_from_task
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from app.actor import Reply
    from app.shadow.assignment import Assignment
    from app.shadow.counters import Counters, Place
    from app.shadow.definition import Definition
    from app.shadow.store import ExperimentStore, Row

TRIES_MAX: Final = 5  # replicas that change the same experiment at once; each try reads what the other made of it

# What is to become of a state: the next one and what the chain is to say, or None to leave it. It may raise Problem.
Plan = Callable[[State], tuple[State, list[Entry]] | None]


def no_experiment() -> Problem:
    """Return the refusal for a name that no experiment has."""
    return Problem(404, "no_experiment", "There is no experiment with this name.")


class Catalog:
    """Experiments in memory; Postgres is asked only for names that are not known here yet."""

    def __init__(
        self,
        store: ExperimentStore,
        counters: Counters,
        on_crash: Callable[[BaseException], None],
        on_merged: Callable[[Experiment], None],
        on_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin empty.

        on_merged   hears of every merge of an experiment
        on_changed  is called when one was made, or stands elsewhere than before
        """
        self.store: Final = store
        self._counters = counters
        self._on_crash = on_crash
        self._on_merged = on_merged
        self._on_changed = on_changed
        self._experiments: dict[str, Experiment] = {}
        self.revision = 0  # up to which all changes are known here
        self.newest: Experiment | None = None  # the one that was changed last
        self.changes = 0  # that this process has taken over; they need not come in the order of their revisions

    def __len__(self) -> int:
        """Return how many experiments are known."""
        return len(self._experiments)

    def __iter__(self) -> Iterator[Experiment]:
        """Yield the experiments, as they are now, in no order."""
        return iter(list(self._experiments.values()))

    def take(self, row: Row) -> Experiment:
        """Take over a row: a new experiment, or a newer state of a known one."""
        known = self._experiments.get(row.name)
        if known is None:
            known = self._experiments[row.name] = Experiment(
                row, self._counters, self.store, self._on_crash, self._on_merged
            )
            self._changed(known)
        elif row.revision > known.revision:
            self._adopt(known, row.state, row.revision, row.changed_at)
        return known

    def _adopt(self, experiment: Experiment, state: State, revision: int, at: datetime) -> None:
        experiment.adopt(state, revision, at)
        self._changed(experiment)

    def _changed(self, experiment: Experiment) -> None:
        if self.newest is None or experiment.revision >= self.newest.revision:
            self.newest = experiment
        self.changes += 1
        self._on_changed()

    async def catch_up(self, revision: int) -> None:
        """Know a change that another replica has told of, before the watch brings it. Raises what Postgres raises."""
        if self.newest is None or revision > self.newest.revision:
            for row in await self.store.beyond(self.revision):
                self.take(row)

    def get(self, name: str) -> Experiment | None:
        """Return an experiment that is known here, None for another."""
        return self._experiments.get(name)

    async def find(self, name: str) -> Experiment:
        """Return an experiment, also one that another replica has made a moment ago. Raises Problem 404."""
        known = self._experiments.get(name)
        if known is not None:
            return known
        row = await self.store.find(name)
        if row is None:
            raise no_experiment()
        return self.take(row)

    async def assign(self, name: str, unit_id: str) -> Assignment:
        """Return what a unit gets in an experiment: the same at any time, on every replica.

        Raises Problem 404, and for Thompson sampling what Redis raises.
        """
        experiment = self._experiments.get(name) or await self.find(name)
        return experiment.assign_at_once(unit_id) or await experiment.assign(unit_id)

    def assign_soon(self, name: str, unit_id: str, reply: Reply[Assignment]) -> None:
        """Tell `reply` what `assign` returns or raises: without a task, unless there is more to do than one round trip."""
        experiment = self._experiments.get(name)
        if experiment is None:
            answer_from_task(self.assign(name, unit_id), reply)
        else:
            experiment.assign_soon(unit_id, reply)

    def page(self, after: str, limit: int) -> tuple[list[Experiment], str | None]:
        """Return experiments by name from the first beyond `after`, and the next `after`."""
        names = sorted(name for name in self._experiments if name > after)
        return [self._experiments[name] for name in names[:limit]], names[limit - 1] if len(names) > limit else None

    async def behind(self, experiments: Sequence[Experiment]) -> list[tuple[Place, Experiment]]:
        """Return those of which Redis holds what was not seen here, each with the place there. Raises what Redis raises."""
        places = await self._counters.places([one.definition.name for one in experiments])
        found = zip(places, experiments, strict=True)
        return [(at, one) for at, one in found if at is not None and one.is_behind(at.seq, at.born)]

    async def create(self, definition: Definition, state: State, maker: str) -> Experiment:
        """Make an experiment. Raises Problem 409 `experiment_exists` or `too_many_experiments`."""
        details = {
            "experiment": definition.name, "actor": maker, "definition": msgspec.to_builtins(definition),
            "coverage": state.coverages[-1],
        }  # fmt: skip
        row = await self.store.create(definition, state, maker, details)
        if row is not None:
            return self.take(row)
        if await self.store.find(definition.name) is not None:
            raise Problem(409, "experiment_exists", "There is, or was, an experiment with this name; choose another.")
        raise Problem(409, "too_many_experiments", "There are as many experiments as there may be.")

    async def change(self, experiment: Experiment, plan: Plan) -> bool:
        """Change where an experiment stands, in Postgres and then here; return False when nothing was to be changed.

        Raises Problem 409 `version_conflict` when others are always faster, what the plan and what Postgres raise.
        """
        name = experiment.definition.name
        for _ in range(TRIES_MAX):
            planned = plan(experiment.state)
            if planned is None:
                return False
            state, entries = planned
            told = [Entry(entry.kind, {"experiment": name, **entry.details}) for entry in entries]
            made = await self.store.change(name, experiment.revision, state, told)
            if made is not None:
                if made[0] > experiment.revision:
                    self._adopt(experiment, state, *made)
                return True
            row = await self.store.find(name)
            if row is None:
                raise no_experiment()
            self.take(row)
        raise Problem(409, "version_conflict", "The experiment is being changed by others; try again.")
