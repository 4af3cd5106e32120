"""The calls of /v1/experiments: from a decoded body to an answer. HTTP is around them, the stores below."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from app.shadow.analysis import Analysis, analysis_of
from app.shadow.decision import belief, inputs_of, look_at
from app.shadow.definition import COVERAGES_MAX, Deployment
from app.shadow.deployment import deployment_inputs, failed_checks
from app.shadow.outcomes import add_outcomes, listed, taken
from app.shadow.plot import posterior_svg
from app.shadow.store import Entry
from app.shadow.tallies import counts_of
from app.shadow.view import experiment_view
from app.shadow.wire import Assigned, ExperimentPage, ExperimentView, Taken, check_shares, definition_of, first_state
from app.web.problems import Problem, invalid

if TYPE_CHECKING:
    from app.actor import Reply
    from app.shadow.assignment import Assignment
    from app.shadow.catalog import Catalog
    from app.shadow.definition import State
    from app.shadow.deployment import Failed
    from app.shadow.experiment import Experiment
    from app.shadow.steady import CommonClock, SteadyClock
    from app.shadow.steward import Steward
    from app.shadow.wire import (
        AssignCall,
        CanaryCall,
        Deploy,
        ExperimentChange,
        NewExperiment,
        Outcomes,
        RollbackCall,
    )
    from app.web.problems import JsonValue

Planned = tuple["State", list[Entry]] | None


def archived() -> Problem:
    """Return the refusal for an experiment that is over and put away."""
    return Problem(409, "experiment_archived", "The experiment is archived: it takes no outcomes and no changes.")


def rolled_back() -> Problem:
    """Return the refusal for a change after a rollback, which is final."""
    return Problem(409, "experiment_rolled_back", "The experiment was rolled back for good; make a new one.")


def deployed() -> Problem:
    """Return the refusal for a change of a test that has ended with a deployment."""
    detail = "A variant is deployed to all units and the test is over; deploy another one, or roll back."
    return Problem(409, "experiment_deployed", detail)


class ExperimentCalls:
    """What the calls need, and the calls. `actor` is the id of the key that calls."""

    def __init__(self, catalog: Catalog, steward: Steward, clock: SteadyClock, common: CommonClock) -> None:
        """Everything is open. `clock` says when something was, `common` how long a stage has held."""
        self._catalog = catalog
        self._steward = steward
        self._clock = clock
        self._common = common
        self.taken: Final = Counter[str]()  # outcomes since the start, by `app.shadow.series.OUTCOME_RESULTS`
        self._thread = asyncio.Semaphore(1)  # one analysis at a time: the other core belongs to everybody else

    async def create(self, body: NewExperiment, actor: str) -> ExperimentView:
        """POST /v1/experiments. 201. refuses  409 `experiment_exists`, `too_many_experiments`; 422."""
        definition = definition_of(body)
        state = first_state(definition, body.coverage, self._clock.now_ms(), self._common.ms())
        return self._view(await self._catalog.create(definition, state, actor))

    def page(self, after: str, limit: int) -> ExperimentPage:
        """GET /v1/experiments: by name from the first beyond `after`."""
        experiments, following = self._catalog.page(after, limit)
        return ExperimentPage([self._view(one) for one in experiments], following)

    async def read(self, name: str) -> ExperimentView:
        """GET /v1/experiments/{name}. refuses  404."""
        return self._view(await self._catalog.find(name))

    async def change(self, name: str, body: ExperimentChange, actor: str, version: int | None) -> ExperimentView:
        """PATCH /v1/experiments/{name}: pause, resume, another coverage. refuses  404; 409; 422."""
        experiment = await self._catalog.find(name)
        if body.status is None and body.coverage is None:
            raise invalid("", "Expected status, coverage or both")
        if body.coverage is not None and experiment.definition.allocation != "fixed":
            raise invalid("/coverage", "Expected none: Thompson sampling takes every unit")
        if body.coverage is not None and experiment.definition.canary is not None:
            raise invalid("/coverage", "Expected none: the steps of the canary decide on the coverage")

        def plan(state: State) -> Planned:
            _check_version(experiment, version)
            _check_tested(state)
            after, entries = state, []
            if body.status is not None and body.status != state.status:
                after = msgspec.structs.replace(after, status=body.status)
                entries.append(
                    Entry("experiment.pause" if body.status == "paused" else "experiment.resume", {"actor": actor})
                )
            if body.coverage is not None and body.coverage != state.coverages[-1]:
                if len(state.coverages) >= COVERAGES_MAX:
                    raise Problem(409, "too_many_changes", "The coverage has been changed as often as it may.")
                coverages = (*state.coverages, body.coverage)
                after = msgspec.structs.replace(after, coverages=coverages, stage_ms=self._common.ms())
                check_shares(experiment.definition, after, "/coverage")
                details = {"actor": actor, "before": state.coverages[-1], "after": body.coverage}
                entries.append(Entry("experiment.coverage", details))
            return (after, entries) if entries else None

        await self._catalog.change(experiment, plan)
        return self._view(experiment)

    async def archive(self, name: str, actor: str, version: int | None) -> ExperimentView:
        """DELETE /v1/experiments/{name}: end it and keep it readable. 200, and again 200. refuses  404; 409."""
        experiment = await self._catalog.find(name)

        def plan(state: State) -> Planned:
            if state.status == "archived":
                return None
            _check_version(experiment, version)
            look = look_at(experiment.definition, experiment.totals, experiment.cells)
            details = {"actor": actor, "before": state.status, "inputs": inputs_of(experiment.definition, look)}
            return msgspec.structs.replace(state, status="archived"), [Entry("experiment.archive", details)]

        await self._catalog.change(experiment, plan)
        return self._view(experiment)

    async def assign(self, name: str, body: AssignCall) -> Assigned:
        """POST /v1/experiments/{name}/assign. refuses  404."""
        return _assigned(await self._catalog.assign(name, body.unit_id))

    def assign_soon(self, name: str, body: AssignCall, reply: Reply[Assigned]) -> None:
        """The same for a caller that is no task: `reply` gets what `assign` returns or raises, now or later."""

        def given(one: Assignment | None, error: Exception | None) -> None:
            reply(None if one is None else _assigned(one), error)

        self._catalog.assign_soon(name, body.unit_id, given)

    async def outcomes(self, name: str, body: Outcomes) -> Taken:
        """POST /v1/experiments/{name}/outcomes: all of them, once merged. refuses  404; 409; 422, then none is counted."""
        experiment = await self._catalog.find(name)
        if experiment.state.status == "archived":
            raise archived()
        outcomes, place = listed(body)
        try:
            told = taken(*await add_outcomes(experiment, outcomes, place))
        except Problem:
            self.taken["refused"] += len(outcomes)
            raise
        self.taken.update({
            "counted": told.accepted - told.late - told.quarantined, "duplicate": told.duplicates, "late": told.late,
            "quarantined": told.quarantined,
        })  # fmt: skip
        return told

    async def analysis(self, name: str, draws: int, seed: int) -> Analysis:
        """GET /v1/experiments/{name}/analysis. refuses  404."""
        experiment = await self._catalog.find(name)
        await experiment.refresh()
        async with self._thread:
            return await asyncio.to_thread(
                analysis_of, experiment.definition, experiment.state, experiment.totals, experiment.latency,
                experiment.cells, draws, seed,
            )  # fmt: skip

    async def plot(self, name: str) -> str:
        """GET /v1/experiments/{name}/plot.svg: the posteriors. refuses  404."""
        experiment = await self._catalog.find(name)
        await experiment.refresh()
        names, totals = experiment.definition.names, experiment.totals
        successes, samples = (counts_of(totals, letter, len(names)) for letter in "sn")
        async with self._thread:
            return await asyncio.to_thread(posterior_svg, names, successes, samples)

    async def deploy(self, name: str, body: Deploy, actor: str, role: str) -> ExperimentView:
        """POST /v1/experiments/{name}/deploy: from now on all units get the variant. 200, and again 200 for the same one.

        refuses  404; 409 `unsafe_deployment` with every failed check; 403 for an override without the role admin; 422
        """
        experiment = await self._catalog.find(name)
        index = experiment.definition.index_of(body.variant)
        if index is None:
            raise invalid("/variant", "Expected the name of a variant of this experiment")
        if body.override and role != "admin":
            raise Problem(403, "forbidden", "Only a key with the role admin may override failed checks.")
        if body.override and body.reason is None:
            raise invalid("/reason", "Expected a reason for the override")
        _check_open(experiment.state)
        if experiment.state.deployment is not None and experiment.state.deployment.variant == body.variant:
            return self._view(experiment)
        await experiment.refresh()
        totals, cells = experiment.totals, experiment.cells
        look = look_at(experiment.definition, totals, cells)
        posterior = await asyncio.to_thread(belief, experiment.definition, look)
        inputs = deployment_inputs(experiment.definition, totals, cells, look, posterior)
        refused: tuple[Failed, ...] = ()

        def plan(state: State) -> Planned:
            nonlocal refused
            _check_open(state)
            failed = failed_checks(experiment.definition, state, totals, cells, look, posterior, index)
            names = tuple(one.check for one in failed)
            details = {"actor": actor, "variant": body.variant, "failed": [list(one) for one in failed], "inputs": inputs}
            refused = () if body.override else failed
            if refused:
                return None
            override = body.reason if failed else None
            deployment = Deployment(body.variant, self._clock.now_ms(), actor, names, override)
            entry = Entry("experiment.deploy", details | {"override": override, "previous": _deployed(state)})
            after = msgspec.structs.replace(state, deployment=deployment, untested=state.untested + bool(failed))
            return after, [entry]

        await self._catalog.change(experiment, plan)
        if refused:
            await self._refuse(experiment, body.variant, actor, refused, inputs)
        return self._view(experiment)

    async def roll_back(self, name: str, body: RollbackCall, actor: str) -> ExperimentView:
        """POST /v1/experiments/{name}/rollback: all units get the control, for good. 200, again 200. refuses  404; 409."""
        experiment = await self._catalog.find(name)
        if experiment.state.status == "archived":
            raise archived()
        look = look_at(experiment.definition, experiment.totals, experiment.cells)
        await self._steward.roll_back(experiment, actor, body.reason, inputs_of(experiment.definition, look))
        return self._view(experiment)

    async def canary(self, name: str, body: CanaryCall, actor: str) -> ExperimentView:
        """POST /v1/experiments/{name}/canary: pause, resume, advance, approve. refuses  404; 409."""
        experiment = await self._catalog.find(name)
        if experiment.definition.canary is None:
            raise Problem(409, "no_canary", "The experiment has no canary.")
        _check_tested(experiment.state)
        if body.action == "advance":
            await experiment.refresh()
            waiting = await self._steward.step(experiment, by=actor, forced=True)
            if waiting:
                detail = "The next step cannot begin; it waits for: " + "; ".join(waiting) + "."
                raise Problem(409, "canary_waits", detail, waiting_for=list(waiting))
            return self._view(experiment)
        status = {"pause": "paused", "resume": "running"}.get(body.action)

        def plan(state: State) -> Planned:
            _check_tested(state)
            if status is None:
                if state.step is None or state.step.approved or state.step.completed:
                    return None
                approved = msgspec.structs.replace(state.step, approved=True)
                details = {"actor": actor, "step": state.step.number + 1}
                return msgspec.structs.replace(state, step=approved), [Entry("experiment.approve", details)]
            if state.status == status:
                return None
            return msgspec.structs.replace(state, status=status), [Entry(f"experiment.{body.action}", {"actor": actor})]

        await self._catalog.change(experiment, plan)
        self._steward.notice(experiment)
        return self._view(experiment)

    async def _refuse(
        self, experiment: Experiment, variant: str, actor: str, failed: tuple[Failed, ...], inputs: dict[str, object]
    ) -> None:
        details = {
            "experiment": experiment.definition.name, "variant": variant, "actor": actor,
            "failed": [list(one) for one in failed], "inputs": inputs,
        }  # fmt: skip
        await self._catalog.store.note(Entry("experiment.refusal", details))
        checks: list[JsonValue] = [{"check": one.check, "detail": one.detail} for one in failed]
        detail = "The deployment is not safe; failed checks: " + ", ".join(one.check for one in failed) + "."
        raise Problem(409, "unsafe_deployment", detail, failed_checks=checks)

    def _view(self, experiment: Experiment) -> ExperimentView:
        return experiment_view(experiment, self._common.ms())


def _assigned(given: Assignment) -> Assigned:
    return Assigned(given.variant, given.reason, given.counts, given.propensity)


def _check_open(state: State) -> None:
    if state.status == "archived":
        raise archived()
    if state.status == "rolled_back":
        raise rolled_back()


def _check_tested(state: State) -> None:
    _check_open(state)
    if state.deployment is not None:
        raise deployed()


def _check_version(experiment: Experiment, version: int | None) -> None:
    if version is not None and version != experiment.revision:
        raise Problem(409, "version_conflict", "The experiment has changed; read it again.")


def _deployed(state: State) -> str | None:
    return None if state.deployment is None else state.deployment.variant
