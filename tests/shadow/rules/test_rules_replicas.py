"""Two replicas count one trial: nothing twice, nothing lost, whichever store forgets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from app.db.keys import RULES_TAG, rule_samples_key, rule_trial_key
from app.db.postgres import open_pool
from app.db.redis import RedisLink
from app.db.topology import make_topology
from app.shadow.rules_wire import Promotion, RuleChange
from tests.credits.ledger_client import fresh
from tests.credits.ledger_house import Ledger
from tests.shadow.rules.conftest import Replica, compared, evaluate, new_rule, refusal, until

Open = Callable[[], Awaitable[Replica]]


async def forget(ledger: Ledger, replica: Replica, name: str) -> None:
    """Delete what Redis has of a rule's trial."""
    assert replica.rules.book is not None
    rule = await replica.rules.book.fresh(name)
    assert rule is not None
    link = RedisLink(make_topology(ledger.redis_url), RULES_TAG)
    await link.open()
    await link.command("DEL", rule_trial_key(rule.rule_id, rule.trial), rule_samples_key(rule.rule_id, rule.trial, "value"))
    await link.close()


async def test_two_replicas_show_one_report(open_replica: Open) -> None:
    one, two = await open_replica(), await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "input.a", "input.a > 1 ? 0 : input.a"), "root")).name

    for number in range(10):
        await asyncio.gather(evaluate(one.calls, name, a=number), evaluate(two.calls, name, a=number))
    first, second = await compared(one.calls, name, 20), await compared(two.calls, name, 20)

    assert (first.evaluated, first.compared, first.differences["value"]) == (20, 20, 16)
    assert msgspec.structs.replace(first, samples=[]) == msgspec.structs.replace(second, samples=[])
    assert {sample.at for sample in first.samples} == {sample.at for sample in second.samples}


async def test_another_replica_follows_a_change_within_a_moment(open_replica: Open) -> None:
    one, two = await open_replica(), await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    assert await evaluate(two.calls, name, a=1) == 1

    await one.calls.promote(name, Promotion(override=True, reason="now"), None, "root", is_admin=True)

    async def promoted() -> bool:
        return bool(await evaluate(two.calls, name, a=1) == 2)

    await until(promoted, "the other replica answers with the new champion")
    await one.calls.delete(name, None, "root")

    async def gone() -> bool:
        assert two.rules.book is not None
        return two.rules.book.get(name) is None

    await until(gone, "the other replica forgets the rule")
    assert await refusal(two.calls.evaluate(name, msgspec.convert({}, dict))) == (404, "no_rule")


async def test_counts_and_samples_outlive_processes_and_an_emptied_redis(open_replica: Open, rules_ledger: Ledger) -> None:
    one = await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    for _ in range(3):
        await evaluate(one.calls, name, a=1)
    before = await compared(one.calls, name, 3)

    await one.rules.close()
    await forget(rules_ledger, one, name)
    two = await open_replica()
    after = await two.calls.report(name, None)
    await evaluate(two.calls, name, a=1)
    more = await compared(two.calls, name, 4)

    assert msgspec.structs.replace(after, samples=[]) == msgspec.structs.replace(before, samples=[])
    assert len(after.samples) == 3
    assert (more.evaluated, more.differences["value"], len(more.samples)) == (4, 4, 4)


async def test_a_redis_that_forgets_under_running_replicas_costs_no_count(open_replica: Open, rules_ledger: Ledger) -> None:
    one, two = await open_replica(), await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    for replica in (one, two):
        await evaluate(replica.calls, name, a=1)
        assert replica.rules.exchange is not None
        await compared(replica.calls, name, 1)
        await replica.rules.exchange.checkpoint()

    await forget(rules_ledger, one, name)
    await evaluate(one.calls, name, a=1)

    first, second = await compared(one.calls, name, 3), await compared(two.calls, name, 3)
    assert first.compared == second.compared == 3


async def test_the_first_crossing_is_kept_by_whoever_sees_it_and_the_verdict_never_flips(
    open_replica: Open, rules_ledger: Ledger, owner: asyncpg.Connection[Any]
) -> None:
    one, two = await open_replica(), await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "input.a", "input.a > 19 ? input.a : 0"), "root")).name

    async def crossings() -> list[asyncpg.Record]:
        return await owner.fetch(
            "SELECT details FROM pending_entries WHERE kind = 'rule.crossing' AND details ->> 'rule' = $1", name
        )

    for number in range(1, 20):
        await evaluate((one, two)[number % 2].calls, name, a=number)

    async def crossed() -> bool:
        return bool(await crossings())

    await until(crossed, "the entry, although nobody asked for a report")
    await one.rules.close()
    await two.rules.close()
    await owner.execute("DELETE FROM rule_tallies")
    await forget(rules_ledger, one, name)
    report = await (await open_replica()).calls.report(name, None)

    details = json.loads((await crossings())[0]["details"])
    assert len(await crossings()) == 1
    assert details["inputs"]["verdict"] == report.statement.verdict == "differs"
    assert details["inputs"]["challenger_only"] <= 19
    assert (report.compared, report.statement.crossed_at is not None) == (0, True)


async def test_publishing_twice_counts_once(open_replica: Open) -> None:
    one, two = await open_replica(), await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    await evaluate(one.calls, name, a=1)
    await compared(one.calls, name, 1)
    exchange = one.rules.exchange
    assert exchange is not None
    assert one.rules.trials is not None

    for _ in range(3):
        one.rules.trials.changed.update(one.rules.trials.tallies)
        await exchange.publish()
        await exchange.checkpoint()

    assert (await compared(two.calls, name, 1)).compared == 1


async def test_a_former_trial_is_kept_and_no_longer_held_in_memory(open_replica: Open) -> None:
    one = await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    await evaluate(one.calls, name, a=1)
    await compared(one.calls, name, 1)
    await one.calls.change(name, RuleChange(challenger=None), None, "root")
    assert one.rules.exchange is not None
    assert one.rules.trials is not None

    await one.rules.exchange.publish()
    await one.rules.exchange.checkpoint()

    assert one.rules.trials.tallies == {}
    assert (await one.calls.report(name, 1)).compared == 1


async def test_a_report_without_redis_says_so_and_tells_what_postgres_has(
    open_replica: Open, rules_ledger: Ledger, tmp_path: Path
) -> None:
    one = await open_replica()
    name = (await one.calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    await evaluate(one.calls, name, a=1)
    await compared(one.calls, name, 1)
    await one.rules.close()

    cut_off = Replica(await open_pool(rules_ledger.database_url, 2), f"unix://{tmp_path}/nobody")
    answered = await evaluate(cut_off.calls, name, a=1)
    report = await compared(cut_off.calls, name, 2)
    await cut_off.rules.close()
    cut_off.pool.terminate()

    assert answered == 1
    assert (report.fresh, report.compared, len(report.samples)) == (False, 2, 2)
    assert cut_off.faults == []
    later = await open_replica()
    assert (await later.calls.report(name, None)).compared == 2
