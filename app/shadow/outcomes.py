"""From reported outcomes to what is merged: whose they are, which class they fall into, what is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from app.shadow.contributions import Counted
from app.shadow.intake import take_in
from app.shadow.journal import event_number, unit_number
from app.shadow.tallies import THOUSAND, Class, latency_bucket
from app.shadow.wire import Outcome, Outcomes, Taken
from app.web.problems import FieldError, Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from app.shadow.experiment import Experiment

SLICE: Final = 256  # outcomes that are looked at in one turn of the event loop: about 2 ms
ERRORS_MAX: Final = 100  # wrong places that one answer names

_NOBODY: Final = "Expected a unit_id, a variant, or both"
_NO_VARIANT: Final = "Expected the name of a variant of this experiment"
_UNKNOWN_UNIT: Final = "Expected a unit that takes part: assign it first, or leave its outcome out"


def listed(body: Outcomes) -> tuple[list[Outcome], str]:
    """Return the outcomes of a body, and what the pointer to one begins with. Raises Problem 422 for a mixed body."""
    single = {name: getattr(body, name) for name in body.__struct_fields__ if name != "outcomes"}
    if body.outcomes is not None:
        mixed = [name for name, value in single.items() if value is not None]
        if mixed:
            detail = "Expected it inside an item of outcomes"
            errors = [FieldError(f"/{name}", detail) for name in mixed]
            raise Problem(422, "invalid_request", "The body has invalid fields.", errors=errors)
        return body.outcomes, "/outcomes/{}"
    missing = [name for name in ("event_id", "success") if single[name] is None]
    if missing or body.event_id is None or body.success is None:
        errors = [FieldError(f"/{name}", "Required field is missing") for name in missing]
        raise Problem(422, "invalid_request", "The body has invalid fields.", errors=errors)
    one = Outcome(body.event_id, body.success, body.variant, body.unit_id, body.latency_ms, bool(body.error), body.value)
    return [one], ""


class Sorter:
    """Sorts the outcomes of one request; refuses all of them when one is wrong."""

    def __init__(self, experiment: Experiment, place: str) -> None:
        """`place` is the pointer to an outcome, with {} for its number."""
        self._experiment = experiment
        self._definition = experiment.definition
        self._ended = False
        self._quiet_ms = 0
        guardrails = self._definition.guardrails
        self._limit_ms = None if guardrails is None else guardrails.latency_ms_p95
        self._place = place
        self.errors: list[FieldError] = []

    async def sort(self, outcomes: Sequence[Outcome]) -> list[Counted]:
        """Return the outcomes ready to be merged by a prepared experiment.

        Raises Problem 422 naming the wrong ones, and what Redis raises.
        """
        self._look()
        sampled = await self._sampled(outcomes)
        sorted_: list[Counted] = []
        for number, outcome in enumerate(outcomes):
            if number % SLICE == 0:
                if number:
                    await asyncio.sleep(0)
                self._look()
            one = self._one(number, outcome, sampled)
            if one is not None:
                sorted_.append(one)
        if self.errors:
            code = "unknown_unit" if all(one.detail == _UNKNOWN_UNIT for one in self.errors) else "invalid_request"
            detail = (
                "Some outcomes cannot be counted, and none was." if len(outcomes) > 1 else "The outcome cannot be counted."
            )
            raise Problem(422, code, detail, errors=self.errors[:ERRORS_MAX])
        return sorted_

    def _look(self) -> None:
        """See where the experiment stands: it may go on to another stage, or end, whenever others have their turn."""
        self._quiet_ms = self._experiment.quiet_ms
        self._ended = self._ended or self._experiment.settled is not None

    async def _sampled(self, outcomes: Sequence[Outcome]) -> dict[str, tuple[int, int] | None]:
        """Return version and variant of all units, under Thompson sampling."""
        if self._definition.allocation == "fixed" or self._ended:
            return {}
        units = list(dict.fromkeys(one.unit_id for one in outcomes if one.unit_id is not None))
        return dict(zip(units, await self._experiment.what_units_got(units), strict=True)) if units else {}

    def _one(self, number: int, outcome: Outcome, sampled: dict[str, tuple[int, int] | None]) -> Counted | None:
        """Return one outcome, or None after noting what is wrong with it."""
        reported = None if outcome.variant is None else self._definition.index_of(outcome.variant)
        if outcome.variant is not None and reported is None:
            self._wrong(number, "/variant", _NO_VARIANT)
            return None
        unit = outcome.unit_id
        if unit is None and reported is None:
            self._wrong(number, "", _NOBODY)
            return None
        if self._ended:
            return Counted(event_number(outcome.event_id), Class(reported or 0, "late"))
        if unit is None:
            assert reported is not None
            fixed = self._definition.allocation == "fixed"
            shares = self._experiment.split.cell_without_unit(self._quiet_ms) if fixed else None
            return self._counted(outcome, reported, shares)
        given = self._given(unit, reported, sampled)
        if given is None:
            self._wrong(number, "/unit_id", _UNKNOWN_UNIT)
            return None
        shares, index = given
        another = reported is not None and reported != index
        unit_text = unit_number(unit)
        if another or unit_text in self._experiment.odd:
            return Counted(event_number(outcome.event_id), Class(index, "quarantined"), 0, unit_text, odd=True)
        return self._counted(outcome, index, shares, unit_text)

    def _given(
        self, unit: str, reported: int | None, sampled: dict[str, tuple[int, int] | None]
    ) -> tuple[int | None, int] | None:
        """Return the shares that a unit was assigned with and its variant; None when it takes no part.

        Under a fixed split a unit may still report what it had at an earlier stage of it.
        """
        if self._definition.allocation == "thompson":
            return sampled.get(unit)
        return self._experiment.split.place(unit, reported)

    def _counted(self, outcome: Outcome, index: int, shares: int | None, unit: str = "") -> Counted:
        latency_ms = outcome.latency_ms
        over = self._limit_ms is not None and latency_ms is not None and latency_ms > self._limit_ms
        what = Class(
            index, "counted", outcome.success, outcome.error, over,
            None if latency_ms is None else latency_bucket(latency_ms), outcome.value is not None, shares,
        )  # fmt: skip
        value = 0 if outcome.value is None else round(outcome.value * THOUSAND)
        return Counted(event_number(outcome.event_id), what, value, unit)

    def _wrong(self, number: int, field: str, detail: str) -> None:
        self.errors.append(FieldError(self._place.format(number) + field, detail))


def taken(sorted_: Sequence[Counted], repeated: Collection[int]) -> Taken:
    """Return the answer to outcomes, of which those at the places `repeated` had been taken before."""
    new = [one.what for place, one in enumerate(sorted_) if place not in repeated]
    return Taken(
        accepted=len(new),
        duplicates=len(repeated),
        late=sum(what.fate == "late" for what in new),
        quarantined=sum(what.fate == "quarantined" for what in new),
        without_evidence=sum(what.fate == "counted" and what.shares is None for what in new),
    )


async def add_outcomes(experiment: Experiment, outcomes: list[Outcome], place: str) -> tuple[list[Counted], set[int]]:
    """Sort outcomes and merge them; return them as sorted, and the places of repetitions.

    Raises Problem, and what `take_in` raises.
    """
    return await take_in(experiment, lambda: Sorter(experiment, place).sort(outcomes))
