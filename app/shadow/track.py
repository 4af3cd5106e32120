"""Tracked events as outcomes: OpenFeature's `track` has no protocol of its own, so this one is ours.

Evidence needs at most one outcome of a unit in an experiment (`app.shadow.evidence`): who tracks what a unit may do
several times makes the idempotency key from the unit, so that the first time counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from app.shadow.outcomes import add_outcomes
from app.shadow.wire import VALUE_MAX, EventId, Outcome, UnitId
from app.web.fields import Input, Name

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.shadow.catalog import Catalog
    from app.shadow.experiment import Experiment


class TrackedEvent(Input, frozen=True):
    """Body of POST /v1/track: what a unit did. A value of 0 says that it did not: then the outcome is no success."""

    event: Name
    targetingKey: UnitId  # noqa: N815 - OpenFeature's name
    idempotencyKey: EventId  # noqa: N815
    value: Annotated[float, Meta(ge=-VALUE_MAX, le=VALUE_MAX)] | None = None


class Tracked(Struct):
    """What became of an event: the experiments whose outcome it is, how many counted it, how many had counted it before."""

    experiments: list[str]
    accepted: int
    duplicates: int


class Tracking:
    """Hands tracked events to the experiments that wait for them. No state of its own."""

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        """`catalog` returns the experiments; it raises ConnectionError before they are loaded."""
        self._catalog = catalog

    async def track(self, body: TrackedEvent) -> Tracked:
        """Count an event in every experiment that waits for it and in which the unit takes part, once for its key.

        Raises what `add_outcomes` raises; a repetition then counts only where it has not been counted.
        """
        found = Tracked([], 0, 0)
        outcome = Outcome(
            event_id=body.idempotencyKey, success=body.value is None or body.value != 0, unit_id=body.targetingKey,
            value=body.value,
        )  # fmt: skip
        for experiment in self._waiting(body.event):
            if not await _takes_part(experiment, body.targetingKey):
                continue
            _, repeated = await add_outcomes(experiment, [outcome], "")
            found.experiments.append(experiment.definition.name)
            found.accepted += 1 - len(repeated)
            found.duplicates += len(repeated)
        return found

    def _waiting(self, event: str) -> list[Experiment]:
        waiting = [
            one for one in self._catalog()
            if one.settled is None and event == (one.definition.event or one.definition.name)
        ]  # fmt: skip
        return sorted(waiting, key=lambda one: one.definition.name)


async def _takes_part(experiment: Experiment, unit: str) -> bool:
    """Whether a unit is in a test: under Thompson sampling only once it was assigned."""
    if experiment.definition.allocation == "thompson":
        return (await experiment.what_units_got([unit]))[0] is not None
    return experiment.split.assign(unit).counts
