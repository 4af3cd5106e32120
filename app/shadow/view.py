"""How an experiment is shown: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.clock import ms_of, time_text
from app.shadow.canary import waiting_for
from app.shadow.wire import (
    CanaryView,
    Decision,
    DeploymentView,
    ExperimentView,
    RollbackView,
    VariantView,
)

if TYPE_CHECKING:
    from app.shadow.definition import State
    from app.shadow.experiment import Experiment


def experiment_view(experiment: Experiment, now_ms: int) -> ExperimentView:
    """Return an experiment as it stands."""
    definition, state = experiment.definition, experiment.state
    return ExperimentView(
        name=definition.name,
        status=state.status,
        variants=[VariantView(one.name, one.control, one.weight, one.value) for one in definition.variants],
        allocation=definition.allocation,
        seed=definition.seed,
        coverage=state.coverages[-1],
        min_samples=definition.min_samples,
        min_lift=definition.min_lift,
        confidence=definition.confidence,
        max_false_positive=definition.max_false_positive,
        guardrails=definition.guardrails,
        canary=_canary(experiment, now_ms),
        event=definition.event or definition.name,
        decision=decision_view(state),
        deployment=_deployment(state),
        rollback=_rollback(state),
        created_at=time_text(ms_of(experiment.created_at)),
        created_by=experiment.created_by,
        changed_at=time_text(ms_of(experiment.changed_at)),
        version=experiment.revision,
    )


def decision_view(state: State) -> Decision:
    """Return how the test stands: its verdict, or that it was stopped from outside, or that it goes on."""
    if state.verdict is not None:
        verdict = state.verdict
        return Decision(verdict.decision, verdict.variant, list(verdict.reasons), time_text(verdict.at_ms))
    if state.rollback is not None:
        return Decision("stopped", None, [f"rolled back: {state.rollback.reason}"], time_text(state.rollback.at_ms))
    if state.deployment is not None:
        return Decision("stopped", None, [f"{state.deployment.variant} was deployed"], time_text(state.deployment.at_ms))
    if state.status == "archived":
        return Decision("stopped", None, ["archived"], None)
    return Decision("running", None, [f"{one.variant} has crossed the threshold" for one in state.crossings], None)


def _canary(experiment: Experiment, now_ms: int) -> CanaryView | None:
    definition, state = experiment.definition, experiment.state
    canary, step = definition.canary, state.step
    if canary is None or step is None:
        return None
    waiting = waiting_for(definition, state, experiment.totals, experiment.split.stages[step.number], now_ms)
    status: str = "completed" if step.completed else state.status
    percent = canary.steps[step.number]
    if state.rollback is not None:
        status, percent, waiting = "rolled_back", 0.0, ()
    elif state.deployment is not None:
        everybody = state.deployment.variant != definition.names[definition.control]
        status, percent, waiting = "deployed", 100.0 if everybody else 0.0, ()
    return CanaryView(
        steps=list(canary.steps),
        min_seconds=canary.min_seconds,
        min_samples=canary.min_samples,
        requires_approval=canary.requires_approval,
        step=step.number + 1,
        percent=percent,
        status=status,
        started_at=time_text(step.started_at_ms),
        approved=step.approved,
        waiting_for=list(waiting),
    )


def _deployment(state: State) -> DeploymentView | None:
    one = state.deployment
    if one is None:
        return None
    return DeploymentView(one.variant, time_text(one.at_ms), one.by, list(one.failed), one.override)


def _rollback(state: State) -> RollbackView | None:
    one = state.rollback
    if one is None:
        return None
    verified = None if one.verified_at_ms is None else time_text(one.verified_at_ms)
    return RollbackView(time_text(one.at_ms), one.by, one.reason, verified)
