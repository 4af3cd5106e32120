"""Experiments on real stores, several replicas in one process: what is counted, and what is remembered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from app.shadow.contributions import Counted
from app.shadow.counters import Forgot, Merged
from app.shadow.definition import FLOOR, CanaryStep
from app.shadow.intake import take_in
from app.shadow.outcomes import SLICE, Sorter
from app.shadow.tallies import Class
from app.shadow.thompson import draw, with_floor
from app.shadow.wire import ExperimentChange, NewCanary, NewVariant, Outcome, Outcomes, Taken
from app.web.problems import Problem
from tests.credits.ledger_client import fresh
from tests.shadow.conftest import Replicas, Shadow, calls_of, made, new, refused, reports, samples, tell, until


async def test_an_event_counts_once_whichever_replica_hears_of_it_and_after_a_restart(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one)
    told = reports("b", 700, 7)

    first, second = await asyncio.gather(tell(one, name, told), tell(two, name, told))
    await one.stop()
    third = await tell(await replicas.start("three"), name, told[:50])

    assert first.accepted + second.accepted == 700
    assert first.duplicates + second.duplicates == 700
    assert (third.accepted, third.duplicates) == (0, 50)
    assert await samples(two, name) == [0, 700]


async def test_a_repetition_within_one_request_counts_once(shadow: Shadow) -> None:
    name = await made(shadow)

    taken = await tell(shadow, name, [*reports("a", 3, 0, prefix="same"), *reports("b", 3, 0, prefix="same")])

    assert taken == Taken(3, 3, 0, 0, 0)
    assert await samples(shadow, name) == [3, 0]


async def test_a_sampled_unit_keeps_its_variant_on_every_replica_and_after_new_weights(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one, allocation="thompson")
    units = [f"u{number}" for number in range(40)]

    before = await asyncio.gather(*(one.assign(name, unit) for unit in units))
    same_time = await asyncio.gather(*(shadow.assign(name, "both") for shadow in (one, two)))
    await tell(one, name, [*reports("b", 300, 200), *reports("a", 300, 10)])
    experiment = one.catalog.get(name)
    assert experiment is not None
    await until(lambda: experiment.version > 0, "new weights")
    fresh_units = [await two.assign(name, f"late-{number}") for number in range(60)]

    assert await asyncio.gather(*(two.assign(name, unit) for unit in units)) == before
    assert same_time[0] == same_time[1]
    assert {one.version for one in before} == {0}
    assert sum(given.variant == "b" for given in fresh_units if given.version) > 40
    assert all((given.propensity or 0) >= FLOOR - 1e-9 for given in fresh_units)


async def test_the_probability_that_is_told_is_that_of_the_draw_from_the_first_unit_on_and_on_every_replica(
    replicas: Replicas,
) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    rare = [NewVariant("a", control=True, weight=99.0), NewVariant("b", weight=1.0)]
    name = await made(one, allocation="thompson", variants=rare)
    ahead, behind = one.catalog.get(name), (await two.catalog.find(name))
    assert ahead is not None
    given = {unit: await one.assign(name, unit) for unit in (f"first-{number}" for number in range(100))}
    await behind.prepare()
    await ahead.weigh((0.3, 0.7))  # two has not heard of it
    for shadow, prefix in ((one, "ahead"), (two, "behind"), (two, "after"), (await replicas.start("three"), "started")):
        given |= {unit: await shadow.assign(name, unit) for unit in (f"{prefix}-{number}" for number in range(50))}

    texts = await replicas.redis("HVALS", f"{{x:{name}}}:weights")
    kept = [with_floor((0.99, 0.01), FLOOR), *(tuple(orjson.loads(text)) for text in texts)]

    assert [one.version for one in given.values()].count(0) >= 101
    assert kept[1] == (0.3, 0.7)
    for unit, assignment in given.items():
        weights = kept[assignment.version or 0]
        assert assignment.index == draw(ahead.definition.seed, unit, weights)
        assert assignment.propensity == weights[assignment.index] >= FLOOR


async def test_many_units_that_come_first_and_at_once_ask_postgres_once(replicas: Replicas) -> None:
    one = await replicas.start("one")
    name = await made(one, allocation="thompson")
    two = await replicas.start("two")
    assert two._parts is not None
    before = two._parts.pool.acquired

    given = await asyncio.gather(*(two.assign(name, f"u{number}") for number in range(100)))
    await replicas.redis("FLUSHDB")
    later = await asyncio.gather(*(two.assign(name, f"v{number}") for number in range(100)))

    assert two._parts.pool.acquired - before < 40
    assert {one.variant for one in (*given, *later)} == {"a", "b"}
    assert replicas.crashes == []


async def test_outcomes_of_sampled_units_carry_evidence_and_those_without_unit_do_not(shadow: Shadow) -> None:
    name = await made(shadow, allocation="thompson")
    given = [await shadow.assign(name, f"u{number}") for number in range(20)]

    by_unit = await tell(shadow, name, [Outcome(f"u{n}", True, unit_id=f"u{n}") for n in range(20)])
    by_variant = await tell(shadow, name, reports("a", 5, 5))
    totals = await calls_of(shadow).analysis(name, 100, 0)

    assert (by_unit.without_evidence, by_variant.without_evidence) == (0, 5)
    assert totals.without_evidence == 5
    assert totals.variants[1].samples == sum(one.variant == "b" for one in given)
    assert totals.srm_p_value > 0.001


async def test_an_unknown_unit_refuses_the_whole_request(shadow: Shadow) -> None:
    sampled, fixed = await made(shadow, allocation="thompson"), await made(shadow, coverage=0.01)
    given = {f"u{n}": await shadow.assign(fixed, f"u{n}") for n in range(50)}
    outside = next(unit for unit, one in given.items() if not one.counts)
    await shadow.assign(sampled, "known")

    both = [Outcome("e1", True, unit_id="known"), Outcome("e2", True, unit_id="never")]

    assert await refused(tell(shadow, sampled, both)) == (422, "unknown_unit")
    assert await refused(tell(shadow, fixed, [Outcome("e1", True, unit_id=outside)])) == (422, "unknown_unit")
    assert await samples(shadow, sampled) == [0, 0]


async def test_a_unit_that_is_seen_in_two_variants_is_quarantined_everywhere(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one)
    mine = (await one.assign(name, "u1")).variant
    other = "b" if mine == "a" else "a"

    taken = await tell(one, name, [Outcome("e1", True, unit_id="u1"), Outcome("e2", True, unit_id="u1", variant=other)])
    await tell(two, name, reports("a", 1, 0))
    later = await tell(two, name, [Outcome("e3", True, unit_id="u1", variant=mine)])

    assert (taken.accepted, taken.quarantined, later.quarantined) == (2, 1, 1)
    analysis = await calls_of(two).analysis(name, 100, 0)
    assert (analysis.samples, analysis.quarantined) == (2, 2)


async def test_a_flushed_redis_costs_nothing_that_was_saved(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    fixed, sampled = await made(one), await made(one, allocation="thompson")
    told = reports("b", 600, 60)
    before = [await one.assign(sampled, f"u{number}") for number in range(30)]
    await tell(one, fixed, told)

    async def saved() -> bool:
        rows = await replicas.rows("SELECT seq FROM experiment_counters WHERE name = ANY ($1)", [fixed, sampled])
        places = await asyncio.gather(*(replicas.redis("HGET", f"{{x:{name}}}:state", "saved") for name in (fixed, sampled)))
        return all(row[0] > 0 for row in rows) and all(places)

    async def restored() -> list[dict[str, Any]]:
        return [(await shadow.check())["restored"]["since_start"] for shadow in (one, two)]

    await until(saved, "a checkpoint", deadline_s=5.0)
    before_loss = await restored()
    await replicas.redis("FLUSHDB")
    again = await asyncio.gather(tell(one, fixed, told[:300]), tell(two, fixed, told[300:]))

    told_by_ready = await restored()
    assert before_loss == [{"experiments": 0, "last_at": None}] * 2
    assert sum(found["experiments"] for found in told_by_ready) >= 1
    assert all((found["last_at"] is not None) is (found["experiments"] > 0) for found in told_by_ready)
    both = [Outcome("known", True, unit_id="u3"), Outcome("unknown", True, variant="a")]
    assert (await tell(two, sampled, both)).accepted == 2
    assert [one.duplicates for one in again] == [300, 300]
    assert await samples(two, fixed) == [0, 600]
    assert [await two.assign(sampled, f"u{number}") for number in range(30)] == before


@pytest.mark.parametrize("allocation", ["fixed", "thompson"])
async def test_outcomes_are_sorted_again_as_often_as_redis_forgets_between_and_no_more_than_three_times(
    replicas: Replicas, allocation: Any
) -> None:
    shadow = await replicas.start()
    name = await made(shadow, allocation=allocation)
    experiment = shadow.catalog.get(name)
    assert experiment is not None
    sorts = 0

    async def sort(forgets: int) -> list[Counted]:
        nonlocal sorts
        sorts += 1
        if sorts <= forgets:
            await replicas.redis("DEL", f"{{x:{name}}}:state")
        return [Counted(str(number), Class(0, success=True)) for number in range(600)]

    merged, repeated = await take_in(experiment, partial(sort, 2))
    counted, took, sorts = await samples(shadow, name), sorts, 0
    with pytest.raises(Forgot):
        await take_in(experiment, partial(sort, 9))

    assert (len(merged), repeated, counted, took, sorts) == (600, set(), [600, 0], 3, 3)


async def test_outcomes_that_were_sorted_before_a_restore_are_sorted_again_before_they_are_merged(
    replicas: Replicas,
) -> None:
    shadow = await replicas.start()
    name = await made(shadow, allocation="thompson")
    experiment = shadow.catalog.get(name)
    assert experiment is not None
    born: list[str] = []

    async def sort() -> list[Counted]:
        born.append(experiment.known.born)
        if len(born) == 1:
            await replicas.redis("DEL", f"{{x:{name}}}:state")
            await experiment.restore()  # as another call does meanwhile: what comes here still knows the weights of before
        return [Counted(str(number), Class(0, success=True)) for number in range(10)]

    merged, repeated = await take_in(experiment, sort)

    assert (len(merged), repeated) == (10, set())
    assert born == [born[0], experiment.known.born]
    assert born[0] != born[1]


def losing(shadow: Shadow, name: str, lose: Callable[[], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a replica lose its Redis right after the next merge of an experiment."""
    experiment = shadow.catalog.get(name)
    assert experiment is not None
    merge = experiment._counters.merge

    async def merge_and_lose(*words: Any, **options: Any) -> Merged:
        merged = await merge(*words, **options)
        monkeypatch.undo()
        await lose()
        return merged

    monkeypatch.setattr(experiment._counters, "merge", merge_and_lose)


async def test_a_request_in_the_middle_of_which_redis_forgot_is_counted_as_a_whole(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = await replicas.start()
    name = await made(shadow)
    told = [*reports("a", 400, 0), *reports("b", 300, 3)]
    losing(shadow, name, lambda: replicas.redis("FLUSHDB"), monkeypatch)

    taken = await tell(shadow, name, told)

    assert (taken.accepted, taken.duplicates) == (700, 0)
    assert await samples(shadow, name) == [400, 300]
    assert (await tell(shadow, name, told)).duplicates == 700


async def test_a_request_that_is_refused_after_redis_forgot_in_its_middle_says_that_some_may_be_counted(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = await replicas.start()
    name = await made(shadow, allocation="thompson")
    assert shadow._parts is not None
    await shadow._parts.checkpoints.stop()  # so that the units are lost with Redis
    await asyncio.gather(*(shadow.assign(name, f"u{number}") for number in range(400)))
    told = [Outcome(f"e{number}", True, unit_id=f"u{number}") for number in range(400)]
    losing(shadow, name, lambda: replicas.redis("FLUSHDB"), monkeypatch)

    with pytest.raises(Problem) as midway:
        await tell(shadow, name, told)
    with pytest.raises(Problem) as again:
        await tell(shadow, name, told)

    assert (midway.value.status, midway.value.code) == (422, "unknown_unit")
    assert "up to 250 were counted" in midway.value.detail
    assert midway.value.extra == {"counted_at_most": 250}
    assert "none was" in again.value.detail


async def test_outcomes_are_sorted_by_where_the_experiment_stands_when_they_are_looked_at(shadow: Shadow) -> None:
    name = await made(shadow, canary=NewCanary(steps=[50, 60, 100], min_seconds=3600, min_samples=10))
    experiment = shadow.catalog.get(name)
    assert experiment is not None
    told = reports("b", SLICE + 10, 0)

    sorting = asyncio.create_task(Sorter(experiment, "").sort(told))
    await asyncio.sleep(0)  # the first outcomes are looked at
    following = replace(experiment.state, step=CanaryStep(1, 0, (0, 0)), stage_ms=experiment.state.stage_ms)
    experiment.adopt(following, experiment.revision, experiment.changed_at)
    found = await sorting

    assert [one.what.shares for one in found] == [0] * SLICE + [None] * 10


async def test_a_redis_that_has_gone_back_in_time_is_found_out_and_restored_at_the_start(replicas: Replicas) -> None:
    one = await replicas.start("one")
    name, unused = await made(one), await made(one)
    await tell(one, name, reports("a", 10, 1))
    old = await replicas.redis("DUMP", f"{{x:{name}}}:totals")
    seq = await replicas.redis("HGET", f"{{x:{name}}}:state", "seq")
    await tell(one, name, reports("a", 90, 9))
    await one.stop()
    await replicas.redis("RESTORE", f"{{x:{name}}}:totals", "0", old, "REPLACE")
    await replicas.redis("HSET", f"{{x:{name}}}:state", "seq", seq)

    two = await replicas.start("two")

    assert await samples(two, name) == [100, 0]
    assert two.restored["from_postgres"] >= 1
    assert two.restored["unused"] >= 1
    assert two.catalog.get(unused) is not None


async def test_the_outcomes_of_a_replica_that_died_are_saved_by_another(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one)
    assert one._parts is not None
    await one._parts.checkpoints.stop()  # from here on `one` saves nothing: as a process that is gone

    await tell(one, name, reports("a", 10, 1))

    async def saved() -> bool:
        rows = await replicas.rows("SELECT totals FROM experiment_counters WHERE name = $1", name)
        return '"n0":10' in rows[0][0]

    await until(saved, "the checkpoint of the other", deadline_s=5.0)
    assert two.catalog.get(name) is not None


async def test_two_replicas_that_change_at_once_both_have_their_way(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one)

    await calls_of(two).read(name)
    await asyncio.gather(
        calls_of(one).change(name, ExperimentChange(coverage=0.5), "k", None),
        calls_of(two).change(name, ExperimentChange(status="paused"), "k", None),
    )

    rows = await replicas.rows("SELECT state FROM experiments WHERE name = $1", name)
    assert '"status":"paused"' in rows[0][0]
    assert '"coverages":[1.0,0.5]' in rows[0][0]


async def test_an_archived_experiment_takes_nothing_and_its_name_stays_taken(shadow: Shadow) -> None:
    name = await made(shadow)
    calls = calls_of(shadow)

    view = await calls.archive(name, "k", None)

    assert (view.status, (await calls.archive(name, "k", None)).version) == ("archived", view.version)
    assert await refused(tell(shadow, name, reports("a", 1, 0))) == (409, "experiment_archived")
    assert await refused(calls.outcomes(name, Outcomes(event_id="e", success=True, variant="a"))) == (
        409,
        "experiment_archived",
    )
    assert await refused(calls.create(new(name), "k")) == (409, "experiment_exists")
    assert (await shadow.assign(name, "u")).reason == "archived"


async def test_a_start_with_a_thousand_experiments_takes_less_than_two_seconds(replicas: Replicas) -> None:
    one = await replicas.start("one")
    name = await made(one)
    await tell(one, name, reports("a", 20, 3))
    await one.stop()
    prefix = fresh("many")
    await replicas.rows(
        "WITH base AS (SELECT definition, state, created_by FROM experiments WHERE name = $1), "
        "made AS (INSERT INTO experiments (name, definition, state, revision, created_by) "
        "SELECT $2 || i, replace(definition, $1, $2 || i), state, 1000000 + i, created_by "
        "FROM base, generate_series(1, 1000) AS i RETURNING name) "
        "INSERT INTO experiment_counters (name, seq, totals) SELECT name, 5, $3 FROM made",
        name, prefix, '{"n0":20,"s0":3,"S0:0":3,"N0:0":20}',
    )  # fmt: skip
    await replicas.rows("UPDATE shadow_revision SET revision = 1001000")

    started_s = time.monotonic()
    two = await replicas.start("two")
    first_s = time.monotonic() - started_s
    await two.stop()
    started_s = time.monotonic()
    three = await replicas.start("three")

    assert time.monotonic() - started_s < 2.0
    assert first_s < 4.0  # all of them had to be laid into Redis
    assert (two.restored["from_postgres"], three.restored["from_postgres"]) == (1000, 0)
    assert await samples(three, f"{prefix}777") == [20, 0]
    assert await samples(three, name) == [20, 0]
    await replicas.rows("DELETE FROM experiment_counters WHERE name LIKE $1", prefix + "%")
    await replicas.rows("DELETE FROM experiments WHERE name LIKE $1", prefix + "%")
