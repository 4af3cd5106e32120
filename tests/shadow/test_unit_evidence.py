"""What is evidence: one success, one error, one slow call of a unit, and only with the share that the unit had."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from app.shadow.assignment import Split
from app.shadow.decision import belief, gates_of, look_at
from app.shadow.definition import Canary, CanaryStep, Crossing, State
from app.shadow.evidence import harm_e_value
from app.shadow.experiment import Experiment
from app.shadow.tallies import Class, added, evidence_of, expected_of, statistic
from app.shadow.wire import NewGuardrails, Outcome
from tests.shadow.conftest import Replicas, Shadow, calls_of, made, pair, tell, until


def experiment_of(shadow: Shadow, name: str) -> Experiment:
    """Return an experiment of a replica."""
    found = shadow.catalog.get(name)
    assert found is not None
    return found


async def totals_of(shadow: Shadow, name: str) -> Counter[str]:
    """Return the counters of all replicas."""
    experiment = experiment_of(shadow, name)
    await experiment.refresh()
    return Counter(experiment.totals)


@pytest.mark.parametrize(("allocation", "kinds"), [("fixed", ("S0:0", "S0:1")), ("thompson", ("S:1.0", "S:1.1"))])
async def test_a_second_success_of_a_unit_counts_and_is_no_evidence_on_any_replica_nor_after_a_flush(
    replicas: Replicas, allocation: str, kinds: tuple[str, str]
) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one, allocation=allocation)
    units = [f"u{number}" for number in range(20)]
    await asyncio.gather(*(one.assign(name, unit) for unit in units))

    first = [Outcome(f"first {unit}", True, unit_id=unit) for unit in units]
    await tell(one, name, [*first, *(Outcome(f"same call {unit}", True, unit_id=unit) for unit in units)])
    await tell(two, name, [Outcome(f"other replica {unit}", True, unit_id=unit) for unit in units])
    seq = experiment_of(two, name).seq

    async def saved() -> bool:
        rows = await replicas.rows("SELECT seq FROM experiment_counters WHERE name = $1", name)
        return bool(rows[0][0] >= seq)

    await until(saved, "a checkpoint", deadline_s=5.0)
    await replicas.redis("FLUSHDB")
    await tell(one, name, [Outcome(f"after the flush {unit}", True, unit_id=unit) for unit in units])

    totals = await totals_of(two, name)
    assert totals["s0"] + totals["s1"] == 80
    assert totals[kinds[0]] + totals[kinds[1]] == 20
    assert (totals["told"], totals["carried"], totals["again"]) == (20, 20, 60)
    observed, expected = expected_of(experiment_of(two, name).definition, totals, experiment_of(two, name).cells)
    assert (sum(observed), round(sum(expected), 3), totals["exposed"]) == (20, 20, 20)


async def test_a_guardrail_sees_the_calls_of_a_unit_up_to_its_first_error_and_its_first_slow_call(shadow: Shadow) -> None:
    name = await made(shadow, guardrails=NewGuardrails(error_rate=0.05, latency_ms_p95=100.0))
    told = [(False, 1.0), (True, 1.0), (True, 500.0), (False, 500.0)]

    for number, (error, latency_ms) in enumerate(told):
        await tell(shadow, name, [Outcome(f"e{number}", False, unit_id="u", error=error, latency_ms=latency_ms)])
    await tell(shadow, name, [Outcome(f"own {n}", False, variant="a", error=True, latency_ms=1.0) for n in range(3)])

    totals = await totals_of(shadow, name)
    both = {field: totals[f"{field}0"] + totals[f"{field}1"] for field in ("e", "o", "FE", "TE", "E0:", "FO", "TO", "O0:")}
    assert both == {"e": 5, "o": 2, "FE": 4, "TE": 5, "E0:": 4, "FO": 1, "TO": 6, "O0:": 1}


@pytest.mark.parametrize("allocation", ["fixed", "thompson"])
async def test_the_shares_are_asked_of_units_and_not_of_how_often_each_is_seen(shadow: Shadow, allocation: str) -> None:
    name = await made(shadow, allocation=allocation, seed="shares")
    given = {f"u{number}": (await shadow.assign(name, f"u{number}")).variant for number in range(200)}
    many = [
        Outcome(f"{unit} {n}", False, unit_id=unit) for unit, got in given.items() for n in range(8 if got == "b" else 1)
    ]

    await tell(shadow, name, many)
    fair = await calls_of(shadow).analysis(name, 100, 0)

    assert fair.srm_p_value > 0.001
    assert {one.name: one.units for one in fair.variants} == Counter(given.values())
    assert sum(one.samples for one in fair.variants) == len(many)


@pytest.mark.parametrize("allocation", ["fixed", "thompson"])
async def test_a_variant_whose_units_do_not_come_back_is_a_mismatch(shadow: Shadow, allocation: str) -> None:
    name = await made(shadow, allocation=allocation, seed="shares")
    given = {f"u{number}": (await shadow.assign(name, f"u{number}")).variant for number in range(200)}
    lost = {unit for unit, got in given.items() if got == "b" and unit.endswith(("0", "1", "2", "3", "4", "5"))}

    await tell(shadow, name, [Outcome(f"{unit} {n}", False, unit_id=unit) for unit in {*given} - lost for n in range(3)])
    await tell(shadow, name, [Outcome(f"own {n}", False, variant=variant) for variant in "ab" for n in range(5)])

    assert (await calls_of(shadow).analysis(name, 100, 0)).srm_p_value < 0.001


async def test_units_beyond_those_that_can_be_remembered_are_not_held_against_the_shares(
    shadow: Shadow, replicas: Replicas
) -> None:
    name = await made(shadow)
    await tell(shadow, name, [Outcome("e1", True, unit_id="u1")])
    await replicas.redis("HINCRBY", f"{{x:{name}}}:totals", "exposed", "4999999")

    await tell(shadow, name, [Outcome("e2", True, unit_id="u2"), Outcome("e3", True, unit_id="u1")])

    totals = await totals_of(shadow, name)
    assert (totals["X0:0"] + totals["X0:1"], totals["exposed"]) == (1, 5_000_000)
    assert (totals["S0:0"] + totals["S0:1"], totals["again"]) == (2, 1)


async def test_evidence_ends_where_the_statistic_does_and_outcomes_go_on(shadow: Shadow, replicas: Replicas) -> None:
    name = await made(shadow)
    await tell(shadow, name, [Outcome("e1", True, variant="a")])
    key = f"{{x:{name}}}:totals"
    await replicas.redis("HINCRBY", key, "S0:0", "3999998999")
    await replicas.redis("HINCRBY", key, "carried", "3999998998")

    for number in range(3):
        await tell(shadow, name, [Outcome(f"late {number}", True, variant="b")])

    totals = await totals_of(shadow, name)
    experiment = experiment_of(shadow, name)
    look = look_at(experiment.definition, totals, experiment.cells)
    assert (totals["s1"], totals["S0:1"], totals["carried"], totals["again"]) == (3, 1, 3_999_999_000, 2)
    assert look.harm_e_values[0] > 50


async def test_the_weights_that_are_kept_are_those_that_were_drawn_with(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one, allocation="thompson")
    await one.assign(name, "u")
    weights = (1 / 3, 1 - 1 / 3)

    await experiment_of(one, name).weigh(weights)
    await two.assign(name, "v")
    await two.assign(name, "w")

    assert experiment_of(one, name).weights[1] == weights
    assert experiment_of(two, name).weights[1] == weights


@pytest.mark.parametrize("reports_variant", [True, False], ids=["with its variant", "without"])
def test_outcomes_that_come_after_a_step_are_no_evidence_of_harm(reports_variant: bool) -> None:
    definition = pair(canary=Canary((50.0, 75.0, 100.0)))
    before, after = (Split(definition, State(step=CanaryStep(number, 0, (0, 0)))) for number in (0, 1))
    totals: Counter[str] = Counter()

    for number in range(2000):
        seen = before.place(f"u{number}")
        assert seen is not None
        placed = after.place(f"u{number}", seen[1] if reports_variant else None)
        assert placed is not None
        what = Class(placed[1], success=True, shares=placed[0])
        for fields in (added(what)[1:], *(piece[2:] for piece in evidence_of(definition, what, ()))):
            totals.update(dict(zip(map(str, fields[::2]), map(int, fields[1::2]), strict=True)))

    sums = statistic(definition, totals, after.cells, "S", 1)
    assert harm_e_value(sums) < 3
    assert 1400 < sum(sums[:2]) < 1600
    assert totals["unshared"] == 2000 - sum(sums[:2])


def test_rates_that_drift_while_the_weights_change_are_no_lift() -> None:
    definition = pair(allocation="thompson")
    totals: Counter[str] = Counter()
    for weights, rate in (((0.5, 0.5), 0.1), ((0.1, 0.9), 0.4)):
        for index, weight in enumerate(weights):
            outcomes = round(2000 * weight)
            for success, count in ((True, round(outcomes * rate)), (False, outcomes - round(outcomes * rate))):
                what = Class(index, success=success, shares=0)
                fields = [*added(what)[1:]]
                for piece in evidence_of(definition, what, weights):
                    fields += piece[2:]
                totals.update({str(field): int(part) * count for field, part in zip(fields[::2], fields[1::2], strict=True)})
    look = look_at(definition, totals, {})
    posterior = belief(definition, look)
    state = State(crossings=(Crossing("b", harm=False, at_ms=1, inputs={}),))

    gates = {gate.name: gate for gate in gates_of(definition, state, look, posterior, 1)}

    assert (posterior.lift[1] or 0) > 0.5
    assert not gates["min_lift"].holds
    assert gates["evidence"].holds
