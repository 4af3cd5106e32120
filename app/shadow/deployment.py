"""What must hold before all units get a variant: pure. Every check that fails is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from app.shadow.decision import gates_of, winner_inputs
from app.shadow.guardrail import guardrail_inputs, trip_of
from app.shadow.srm import ALARM_P_VALUE, srm_p_value
from app.shadow.tallies import expected_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.shadow.decision import Look
    from app.shadow.definition import Definition, State
    from app.shadow.posterior import Posterior
    from app.shadow.tallies import Cells


class Failed(NamedTuple):
    """A check that does not hold, and why."""

    check: str
    detail: str


def failed_checks(
    definition: Definition,
    state: State,
    totals: Mapping[str, int],
    cells: Cells,
    look: Look,
    posterior: Posterior,
    index: int,
) -> tuple[Failed, ...]:
    """Return every check that stands against deploying a variant; the control may always be deployed.

    A verdict stands for the conditions that it was given under: they are not judged again by what came later.
    """
    if index == definition.control:
        return ()
    name = definition.names[index]
    failed = []
    verdict = state.verdict
    if verdict is None or verdict.decision != "winner" or verdict.variant != name:
        known = "running" if verdict is None else verdict.decision
        failed.append(Failed("decision", f"the test has not made {name} its winner; its decision is {known}"))
        failed += [
            Failed(gate.name, gate.detail) for gate in gates_of(definition, state, look, posterior, index) if not gate.holds
        ]
    p_value = srm_p_value(*expected_of(definition, totals, cells))
    if p_value < ALARM_P_VALUE:
        failed.append(Failed("sample_ratio", f"the variants do not have their shares of units: p = {p_value:.2g}"))
    trip = trip_of(definition, totals, cells)
    if trip is not None:
        failed.append(Failed("guardrails", trip.reason))
    if state.step is not None and not state.step.completed:
        failed.append(Failed("canary", f"the canary is at step {state.step.number + 1} and not over"))
    if state.status == "paused":
        failed.append(Failed("running", "the experiment is paused"))
    return tuple(failed)


def deployment_inputs(
    definition: Definition, totals: Mapping[str, int], cells: Cells, look: Look, posterior: Posterior
) -> dict[str, Any]:
    """Return the counts that `failed_checks` judges: enough to do it again with what the chain said before."""
    units, expected = expected_of(definition, totals, cells)
    return winner_inputs(definition, look, posterior) | {
        "units": dict(zip(definition.names, units, strict=True)),
        "units_expected": dict(zip(definition.names, expected, strict=True)),
        "srm_p_value": srm_p_value(units, expected), "srm_alarm_p_value": ALARM_P_VALUE,
        "guardrails": guardrail_inputs(definition, totals, cells),
    }  # fmt: skip
