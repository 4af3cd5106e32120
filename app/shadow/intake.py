"""Merges the outcomes of one request, again when Redis forgot in the middle of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.shadow.counters import RESTORES_MAX, Forgot
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.shadow.contributions import Counted
    from app.shadow.experiment import Experiment


async def take_in(experiment: Experiment, sort: Callable[[], Awaitable[list[Counted]]]) -> tuple[list[Counted], set[int]]:
    """Merge the outcomes that `sort` returns; return them, and the places of repetitions.

    A request that met a Redis which had forgotten the experiment is sorted and merged again as a whole, since what was
    restored may have other weights and units, and what had been merged by then may be gone; events keep what is not from
    counting twice. Raises what `sort` and `Experiment.merge` raise, and Forgot.
    """
    new: set[int] = set()
    repeated: set[int] = set()
    for _ in range(RESTORES_MAX):
        await experiment.prepare()
        known = experiment.known
        try:
            outcomes = await sort()
        except Problem as refused:
            raise (_refused_midway(refused, len(new)) if new else refused) from None
        forgot, again = await experiment.merge(outcomes, known)
        new |= set(range(len(outcomes))) - forgot - again
        repeated |= again
        if not forgot:
            return outcomes, repeated - new
    raise Forgot(experiment.definition.name)


def _refused_midway(refused: Problem, merged: int) -> Problem:
    """Return the refusal of outcomes of which some had been merged before Redis forgot; nobody knows how many of them."""
    detail = (
        f"Some outcomes cannot be counted. Redis lost data in the middle of the request: of the others, up to {merged} were"
        " counted. Send those again, with their event ids: none counts twice."
    )
    return Problem(refused.status, refused.code, detail, errors=refused.errors, counted_at_most=merged)
