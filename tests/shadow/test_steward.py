"""What follows from counts by itself, on real stores and several replicas: verdicts, rollbacks, steps; and deployments."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from app.clock import now_ms
from app.shadow import steady
from app.shadow.rules_wire import Promotion, RuleChange
from app.shadow.steward import PROBES
from app.shadow.wire import CanaryCall, Deploy, ExperimentChange, NewCanary, NewGuardrails, RollbackCall
from app.turns import end_task
from app.web.problems import Problem
from tests.credits.ledger_client import fresh
from tests.shadow.conftest import Replicas, Shadow, calls_of, made, refused, reports, state_of, tell, until, verified
from tests.shadow.rules.conftest import new_rule

GUARDED: dict[str, Any] = {"guardrails": NewGuardrails(error_rate=0.05, latency_ms_p95=500.0)}
ROLLBACK_MAX_S = 1.0


def untested_of(shadow: Shadow) -> float:
    """Return what a replica shows of deployments over failed checks, -1 while it does not know."""
    shown = shadow._metrics.text().decode().partition("\nshadow_deployments_without_testing ")[2].split()
    return float(shown[0]) if shown else -1.0


async def test_a_winner_is_recorded_with_its_inputs_and_never_changes(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one)

    await tell(one, name, [*reports("a", 3000, 300), *reports("b", 3000, 450)])
    await until(lambda: state_of(one, name).verdict is not None, "the verdict")
    verdict = (await calls_of(one).read(name)).decision
    await tell(two, name, reports("a", 9000, 3000))
    analysis = await calls_of(two).analysis(name, 100, 0)

    assert (verdict.decision, verdict.variant) == ("winner", "b")
    assert (analysis.decision, analysis.variant) == ("winner", "b")
    assert analysis.variants[1].harm_e_value is not None
    assert analysis.variants[1].harm_e_value > 50
    assert await replicas.entries(name) == ["experiment.create", "experiment.crossing", "experiment.verdict"]
    rows = await replicas.rows(
        "SELECT details::text FROM pending_entries WHERE kind = 'experiment.verdict' AND details ->> 'experiment' = $1", name
    )
    assert all(word in rows[0][0] for word in ("statistics", "max_false_positive", "null_ratio", '"code"'))


async def test_errors_on_one_replica_roll_back_on_all_within_a_second(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one, **GUARDED)
    await tell(two, name, [*reports("a", 400, 0, errors=4), *reports("b", 200, 0, errors=2)])

    await tell(two, name, reports("b", 200, 0, errors=80))
    units = [f"u{number}" for number in range(20)]

    async def everywhere() -> bool:
        given = [await shadow.assign(name, unit) for shadow in (one, two) for unit in units]
        return {assignment.reason for assignment in given} == {"rolled_back"}

    assert await until(everywhere, "the rollback") < ROLLBACK_MAX_S
    await until(lambda: state_of(two, name).rollback is not None, "the entry")
    again = await calls_of(one).roll_back(name, RollbackCall("by hand"), "key_test")
    await until(lambda: verified(one, name), "the check afterwards")

    assert again.rollback is not None
    assert again.rollback.by == "guardrail"
    assert await replicas.entries(name) == ["experiment.create", "experiment.rollback", "experiment.rollback_verified"]
    rows = await replicas.rows(
        "SELECT details ->> 'elsewhere', details ->> 'probes' FROM pending_entries "
        "WHERE kind = 'experiment.rollback_verified' AND details ->> 'experiment' = $1",
        name,
    )
    assert tuple(rows[0]) == ("0", str(PROBES))
    late = await tell(two, name, reports("b", 3, 3))
    assert (late.accepted, late.late) == (3, 3)
    for work in (
        calls_of(one).change(name, ExperimentChange(status="running"), "k", None),
        calls_of(one).deploy(name, Deploy("b", override=True, reason="r"), "k", "admin"),
    ):
        assert await refused(work) == (409, "experiment_rolled_back")


async def test_a_canary_advances_by_itself_waits_for_approval_and_records_its_steps(replicas: Replicas) -> None:
    one = await replicas.start("one")
    name = await made(
        one, canary=NewCanary(steps=[50, 100], min_seconds=0, min_samples=20, requires_approval=True), **GUARDED
    )
    calls = calls_of(one)

    empty = await refused(calls.canary(name, CanaryCall("advance"), "key_test"))
    await tell(one, name, [*reports("a", 20, 1), *reports("b", 20, 1)])
    waiting = (await calls.read(name)).canary
    await calls.canary(name, CanaryCall("approve"), "key_test")
    await until(lambda: state_of(one, name).stage == 1, "the step")
    everybody = {(await one.assign(name, f"u{number}")).variant for number in range(30)}
    await tell(one, name, reports("b", 20, 1))
    await calls.canary(name, CanaryCall("advance"), "key_test")

    view = (await calls.canary(name, CanaryCall("approve"), "key_test")).canary  # there is nothing left to approve
    assert empty == (409, "canary_waits")
    assert waiting is not None
    assert (waiting.percent, waiting.waiting_for) == (50, ["approval"])
    assert everybody == {"b"}
    assert view is not None
    assert (view.status, view.percent, view.approved) == ("completed", 100, False)
    kinds = await replicas.entries(name)
    assert kinds == ["experiment.create", "experiment.approve", "experiment.step", "experiment.canary_completed"]


async def test_no_clock_that_is_set_passes_or_holds_a_step_or_makes_evidence_too_soon(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await replicas.start("one")
    name = await made(one, canary=NewCanary(steps=[50, 60, 100], min_seconds=0, min_samples=10))
    slow = await made(one, canary=NewCanary(steps=[50, 100], min_seconds=3600, min_samples=1))
    for experiment in (name, slow):
        await tell(one, experiment, [*reports("a", 10, 1), *reports("b", 10, 1)])
    await until(lambda: state_of(one, name).stage == 1, "the step")
    await replicas.rows(
        "WITH raised AS (UPDATE shadow_revision SET revision = revision + 1 RETURNING revision) UPDATE experiments AS e "
        "SET revision = raised.revision, changed_at = now() - interval '1 day' FROM raised WHERE name = $1",
        name,
    )
    for replica, day in (("forward", 1), ("back", -1), ("alone", 1)):
        monkeypatch.setattr(steady, "now_ms", lambda day=day: now_ms() + day * 86_400_000)
        if replica == "alone":
            await one.stop()

        other = await replicas.start(replica)
        canary = (await calls_of(other).read(slow)).canary

        assert canary is not None
        assert 3_300 <= int(canary.waiting_for[-1].removesuffix(" seconds")) <= 3_600, replica
        assert (await tell(other, name, reports("b", 5, 5))).without_evidence == 5, replica
        other.catalog.get(name).state = replace(state_of(other, name), stage_ms=state_of(other, name).stage_ms - 600_000)  # type: ignore[union-attr]
        assert (await tell(other, name, reports("b", 5, 5))).without_evidence == 0, replica


async def test_a_paused_canary_holds_and_a_paused_sampler_takes_nobody_in(shadow: Shadow) -> None:
    canary = await made(shadow, canary=NewCanary(steps=[50, 100], min_seconds=0, min_samples=1))
    sampled = await made(shadow, allocation="thompson")
    known = await shadow.assign(sampled, "known")

    await calls_of(shadow).canary(canary, CanaryCall("pause"), "k")
    await calls_of(shadow).change(sampled, ExperimentChange(status="paused"), "k", None)
    await tell(shadow, canary, [*reports("a", 5, 0), *reports("b", 5, 0)])
    held = await refused(calls_of(shadow).canary(canary, CanaryCall("advance"), "k"))
    newcomer = await shadow.assign(sampled, "newcomer")
    resumed = await calls_of(shadow).canary(canary, CanaryCall("resume"), "k")

    assert held == (409, "canary_waits")
    assert (newcomer.reason, newcomer.variant, newcomer.counts) == ("paused", "a", False)
    assert await shadow.assign(sampled, "known") == known
    assert resumed.status == "running"
    experiment = shadow.catalog.get(canary)
    await until(
        lambda: experiment is not None and experiment.state.step is not None and experiment.state.step.number == 1, "a step"
    )


async def test_an_override_is_an_admins_is_recorded_and_counted(replicas: Replicas) -> None:
    shadow = await replicas.start("one")
    name = await made(shadow)
    calls = calls_of(shadow)

    with pytest.raises(Problem) as unsafe:
        await calls.deploy(name, Deploy("b"), "key_test", "operator")
    operator = await refused(calls.deploy(name, Deploy("b", override=True, reason="r"), "k", "operator"))
    silent = await refused(calls.deploy(name, Deploy("b", override=True), "k", "admin"))
    view = await calls.deploy(name, Deploy("b", override=True, reason="outage"), "key_test", "admin")

    assert (unsafe.value.status, unsafe.value.code) == (409, "unsafe_deployment")
    assert [one["check"] for one in unsafe.value.extra["failed_checks"]][:2] == ["decision", "evidence"]  # type: ignore[index, call-overload, union-attr]
    assert (operator, silent) == ((403, "forbidden"), (422, "invalid_request"))
    assert view.deployment is not None
    assert view.deployment.override_reason == "outage"
    assert (await shadow.assign(name, "anyone")).reason == "deployed"
    assert await replicas.entries(name) == ["experiment.create", "experiment.refusal", "experiment.deploy"]
    other = await replicas.start("two")
    assert [state_of(one, name).untested for one in (shadow, other)] == [1, 1]
    stored = await replicas.rows("SELECT sum(coalesce((state::jsonb ->> 'untested')::int, 0)) FROM experiments")
    await until(lambda: [untested_of(one) for one in (shadow, other)] == [stored[0][0]] * 2, "the number on both")


async def test_a_rule_that_is_promoted_over_failed_checks_counts_as_a_deployment_without_testing(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    rules = one.rules.calls
    assert rules is not None
    await until(lambda: untested_of(one) >= 0, "the rules")
    name, before = fresh("rule"), untested_of(one)
    await rules.create(new_rule(name, "1", "2"), "key_test")

    await rules.promote(name, Promotion(override=True, reason="outage"), None, "key_test", is_admin=True)
    back = await rules.promote(name, Promotion(version="v1"), None, "key_test", is_admin=False)
    await rules.change(name, RuleChange(min_samples=7), None, "key_test")
    await rules.delete(name, None, "key_test")
    three = await replicas.start("three")

    assert back.failed_checks == []
    await until(lambda: {untested_of(shadow) for shadow in (one, two, three)} == {before + 1}, "the number on all")
    told = await replicas.rows(
        "SELECT details ->> 'override', details ->> 'reason', details ->> 'failed_checks' FROM pending_entries "
        "WHERE kind = 'rule.promote' AND details ->> 'rule' = $1 ORDER BY at LIMIT 1",
        name,
    )
    assert tuple(told[0]) == ("true", "outage", '["0 of 100 comparisons have been made"]')


async def test_a_guardrail_takes_effect_while_the_stewards_statements_do_not_return(replicas: Replicas) -> None:
    one = await replicas.start("one")
    name = await made(one, **GUARDED)
    assert one._parts is not None
    steward, experiment = one._parts.steward, one.catalog.get(name)
    assert experiment is not None
    assert steward._task is not None
    await end_task(steward._task)  # from here on it is as if it waited for Postgres

    await tell(one, name, [*reports("a", 300, 0), *reports("b", 300, 0, errors=150)])
    await until(lambda: experiment.settled is not None, "the control for all")
    given = await one.assign(name, "u1")
    before = state_of(one, name).status
    await steward.look(experiment)

    assert (given.reason, before, state_of(one, name).status) == ("rolled_back", "running", "rolled_back")
    assert (await tell(one, name, reports("b", 2, 0))).late == 2
    assert await replicas.entries(name) == ["experiment.create", "experiment.rollback"]


@pytest.mark.parametrize("lost", [False, True])
async def test_a_rollback_that_a_process_owed_when_it_died_is_made_by_another_within_a_second(
    replicas: Replicas, lost: bool
) -> None:
    """Also when Redis had lost the counters, so that they began again behind where the other had seen them."""
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one, **GUARDED)
    assert one._parts is not None
    assert two._parts is not None
    await one._parts.steward.stop()  # it dies between the merge and the look
    for shadow in (one, two):
        assert shadow._parts is not None
        await shadow._parts.checkpoints.stop()
    await calls_of(two).read(name)
    if lost:
        for _ in range(3):
            await tell(one, name, reports("b", 1, 0))
        seen = await two.catalog.find(name)
        await until(lambda: seen.seq == 3, "that the other has seen them")
        await replicas.redis("DEL", *(await replicas.redis("KEYS", f"*{name}*")))

    await tell(one, name, [*reports("a", 300, 0), *reports("b", 300, 0, errors=150)])

    async def everybody() -> bool:
        return (await two.assign(name, "u")).reason == "rolled_back"

    assert await until(everybody, "the rollback") < ROLLBACK_MAX_S


async def test_a_rollback_that_a_dead_process_owed_is_made_by_the_next_one(replicas: Replicas) -> None:
    one = await replicas.start("one")
    name = await made(one, **GUARDED)
    assert one._parts is not None
    await one._parts.steward.stop()  # it dies between the merge and the look
    await tell(one, name, [*reports("a", 300, 0), *reports("b", 300, 0, errors=150)])
    await one.stop()

    two = await replicas.start("two")

    await until(lambda: state_of(two, name).status == "rolled_back", "the rollback")
