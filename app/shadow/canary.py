"""When a canary may go on to its next step: pure. Without data it holds; it never passes for want of a complaint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.shadow.tallies import counts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from app.shadow.definition import Definition, State

MS_PER_S = 1000


def waiting_for(
    definition: Definition,
    state: State,
    totals: Mapping[str, int],
    propensities: Sequence[float],
    now_ms: int,
    *,
    forced: bool = False,
) -> tuple[str, ...]:
    """Return what the next step waits for; empty when it may begin now.

    propensities  of this step: a variant that nobody gets brings no outcomes
    now_ms        of the replicas' common clock, as `State.stage_ms` is
    forced        somebody asked for the next step: neither time nor approval is waited for, but outcomes are
    """
    canary, step = definition.canary, state.step
    if canary is None or step is None or step.completed:
        return ("the canary is over",)
    if state.deployment is not None:
        return (f"nothing: {state.deployment.variant} is deployed to all units",)
    reasons = []
    if state.status != "running":
        reasons.append(f"the experiment is {state.status}")
    if state.verdict is not None and state.verdict.decision == "stopped":
        reasons.append("the test has stopped: " + "; ".join(state.verdict.reasons))
    samples = counts_of(totals, "n", len(definition.variants))
    for index, name in enumerate(definition.names):
        missing = canary.min_samples - (samples[index] - step.samples[index])
        if propensities[index] > 0 and missing > 0:
            reasons.append(f"{missing} outcomes of {name}")
    left_ms = state.began_ms + canary.min_seconds * MS_PER_S - now_ms
    if left_ms > 0 and not forced:
        reasons.append(f"{-(-left_ms // MS_PER_S)} seconds")
    if canary.requires_approval and not step.approved and not forced:
        reasons.append("approval")
    return tuple(reasons)
