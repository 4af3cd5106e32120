"""The life of a rule over its calls, on real stores."""

from __future__ import annotations

import hashlib
from typing import Any

import asyncpg
import msgspec
import orjson
import pytest

from app.shadow import rules_store, rules_trial
from app.shadow.rules_calls import RuleCalls
from app.shadow.rules_difference import KINDS
from app.shadow.rules_wire import NewVersion, Promotion, RuleChange
from app.web.body import Body
from app.web.problems import Problem
from tests.credits.ledger_client import fresh
from tests.shadow.rules.conftest import Replica, compared, evaluate, new_rule, refusal

DECIDE = "input.amount > 1000 ? {'d': 'review', 's': 1} : {'d': 'allow', 's': 0}"
STRICTER = "input.amount > 900 ? {'d': 'review', 's': 1} : {'d': 'allow', 's': 0}"


async def entries(owner: asyncpg.Connection[Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    rows = await owner.fetch(
        "SELECT kind, details::text FROM pending_entries WHERE details ->> 'rule' = $1 ORDER BY at", name
    )
    return [(row[0], orjson.loads(row[1])) for row in rows]


async def test_a_caller_gets_the_champions_answer_and_the_report_tells_how_the_challengers_differ(calls: RuleCalls) -> None:
    made = await calls.create(new_rule(fresh("rule"), DECIDE, STRICTER), "root")

    answers = [(await evaluate(calls, made.name, amount=amount))["d"] for amount in (1, 950, 960, 2000)]
    report = await compared(calls, made.name, 4)

    assert answers == ["allow", "allow", "allow", "review"]
    assert (report.champion, report.challenger, report.trial, report.fresh) == ("v1", "v2", 1, True)
    assert (report.evaluated, report.compared, report.champion_failed, report.dropped) == (4, 4, 0, 0)
    assert report.differences == dict.fromkeys(KINDS, 0) | {"same": 2, "value": 2}
    assert [(one.pointer, one.differences, one.noise, one.flagged) for one in report.fields] == [
        ("/d", 2, 0, True), ("/s", 2, 0, True)
    ]  # fmt: skip
    assert report.champion_us.p95 is not None
    assert report.challenger_us.p95 is not None


async def test_samples_show_no_private_field_and_no_card_number(calls: RuleCalls, owner: asyncpg.Connection[Any]) -> None:
    name = (await calls.create(new_rule(fresh("rule"), "input", "{}", masked_fields=["Shade"]), "root")).name
    card = "4111111111111111"

    await evaluate(
        calls, name, amount=950, email="a@b.de", card=card, plan=f"{card[:4]} {card[4:8]} {card[8:12]} {card[12:]}",
        number=int(card), shade="blue",
    )  # fmt: skip
    report = await compared(calls, name, 1)
    await calls._exchange.checkpoint()
    kept = await owner.fetch("SELECT sample FROM rule_samples s JOIN rules r USING (rule_id) WHERE r.name = $1", name)

    sample = report.samples[0]
    assert (sample.kind, sample.noisy, sample.champion["answer"]["amount"]) == ("missing_field", False, 950)
    assert sample.input["amount"] == 950
    assert sample.input["shade"] == sample.input["email"] == "[masked]"
    text = msgspec.json.encode(report).decode() + kept[0][0]
    assert not any(part in text for part in (card, "1111", "a@b.de", "blue"))


async def test_noise_of_the_clock_and_of_chance_is_not_the_challengers(calls: RuleCalls) -> None:
    noisy = "{'roll': random(), 'ok': true}"
    name = (await calls.create(new_rule(fresh("rule"), noisy, noisy), "root")).name

    for _ in range(30):
        await evaluate(calls, name, a=1)
    report = await compared(calls, name, 30)

    assert report.differences["value"] == report.both == 30
    assert (report.challenger_only, report.noise_only, report.statement.verdict) == (0, 0, "no_difference_found")
    assert [(one.pointer, one.flagged) for one in report.fields] == [("/roll", False)]
    assert report.statement.excess_rate == 0
    assert report.samples[0].noisy


async def test_a_challenger_that_fails_or_runs_away_costs_the_caller_nothing(calls: RuleCalls) -> None:
    digits = "[0,1,2,3,4,5,6,7,8,9]"
    endless = f"{digits}.all(a, {digits}.all(b, {digits}.all(c, {digits}.all(d, {digits}.all(e, true)))))"
    name = (await calls.create(new_rule(fresh("rule"), "1", f"input.a == 1 ? input.q : {endless}"), "root")).name

    answers = [await evaluate(calls, name, a=a) for a in (1, 2, 1)]
    report = await compared(calls, name, 3)

    assert answers == [1, 1, 1]
    assert report.differences == dict.fromkeys(KINDS, 0) | {"challenger_error": 2, "challenger_timeout": 1}
    assert {sample.challenger["failure"] for sample in report.samples} == {"a field is missing", "timeout"}


async def test_a_champion_without_an_answer_is_refused_clearly_and_compared(calls: RuleCalls) -> None:
    name = (await calls.create(new_rule(fresh("rule"), "input.amount > 5", "true"), "root")).name

    with pytest.raises(Problem) as refused:
        await evaluate(calls, name, amount="secret text")
    report = await compared(calls, name, 1)

    assert (refused.value.status, refused.value.code) == (422, "rule_failed")
    assert "secret" not in refused.value.detail
    assert refused.value.extra == {"version": "v1"}
    assert (report.champion_failed, report.differences["champion_error"]) == (1, 1)


async def test_nothing_is_compared_before_the_caller_has_the_answer(replica: Replica, calls: RuleCalls) -> None:
    name = (await calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    trials = replica.rules.trials
    assert trials is not None

    await evaluate(calls, name, a=1)

    assert (trials.waiting, trials.compared) == (1, 0)
    assert (await compared(calls, name, 1)).compared == trials.compared == 1


async def test_what_does_not_fit_is_dropped_and_counted(
    replica: Replica, calls: RuleCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = (await calls.create(new_rule(fresh("rule"), "input.a", "input.a"), "root")).name
    monkeypatch.setattr(rules_trial, "WAITING_MAX", 5)

    answers = [await evaluate(calls, name, a=number) for number in range(12)]
    report = await compared(calls, name, 12)

    assert answers == list(range(12))
    assert (report.compared, report.dropped) == (5, 7)
    monkeypatch.setattr(rules_trial, "WAITING_BYTES_MAX", 250)
    for number in range(4):
        await evaluate(calls, name, a=number)
    again = await compared(calls, name, 16)
    assert (again.compared, again.dropped) == (7, 9)
    assert replica.rules.trials is not None
    assert replica.rules.trials.dropped == 9


async def test_only_a_share_is_compared_where_the_rule_says_so(replica: Replica, calls: RuleCalls) -> None:
    name = (await calls.create(new_rule(fresh("rule"), "1", "1", shadow_rate=0.25), "root")).name
    assert replica.rules.trials is not None
    draws = iter([0.1, 0.25, 0.9, 0.2])
    replica.rules.trials._draw = lambda: next(draws)

    for _ in range(4):
        await evaluate(calls, name, a=1)
    report = await compared(calls, name, 2)

    assert (report.compared, report.sampled_out) == (2, 2)


async def test_a_promotion_is_refused_with_every_failed_check_until_the_challenger_is_known(
    calls: RuleCalls, owner: asyncpg.Connection[Any]
) -> None:
    name = (await calls.create(new_rule(fresh("rule"), "1", "input.a > 0 ? 2 : input.q", min_samples=2), "root")).name
    await evaluate(calls, name, a=0)
    await compared(calls, name, 1)

    with pytest.raises(Problem) as refused:
        await calls.promote(name, Promotion(), None, "key_1", is_admin=False)
    failed = refused.value.extra["failed_checks"]

    assert (refused.value.status, refused.value.code) == (409, "unsafe_deployment")
    assert isinstance(failed, list)
    assert [str(one).split()[0] for one in failed] == ["1", "the"]
    assert await refusal(calls.promote(name, Promotion(override=True), None, "k", is_admin=False)) == (403, "forbidden")
    assert await refusal(calls.promote(name, Promotion(override=True), None, "k", is_admin=True)) == (422, "invalid_request")
    forced = await calls.promote(name, Promotion(override=True, reason="we know"), None, "root", is_admin=True)
    assert (forced.rule.champion, forced.rule.challenger, forced.rule.trial) == ("v2", None, 2)
    assert forced.failed_checks == failed
    kinds = [kind for kind, _ in await entries(owner, name)]
    assert kinds == ["rule.create", "rule.promotion_refused", "rule.promote"]
    told = (await entries(owner, name))[-1][1]
    assert (told["actor"], told["reason"], told["inputs"]["compared"]) == ("root", "we know", 1)


async def test_a_challenger_that_was_compared_often_enough_is_promoted_and_can_be_taken_back(calls: RuleCalls) -> None:
    made = await calls.create(new_rule(fresh("rule"), DECIDE, STRICTER, min_samples=3), "root")
    for _ in range(3):
        await evaluate(calls, made.name, amount=950)
    before = await compared(calls, made.name, 3)

    promoted = await calls.promote(made.name, Promotion(), made.version, "root", is_admin=False)
    after = await evaluate(calls, made.name, amount=950)
    back = await calls.promote(made.name, Promotion(version="v1"), None, "root", is_admin=False)

    assert promoted.failed_checks == back.failed_checks == []
    assert (after["d"], back.rule.champion) == ("review", "v1")
    assert await refusal(calls.promote(made.name, Promotion(), None, "root", is_admin=True)) == (409, "no_challenger")
    assert await refusal(calls.promote(made.name, Promotion(version="v9"), None, "root", is_admin=True)) == (
        422, "invalid_request"
    )  # fmt: skip
    old = await calls.report(made.name, 1)
    assert (old.champion, old.challenger, old.compared) == ("v1", "v2", before.compared)
    assert (await calls.report(made.name, None)).compared == 0
    assert await refusal(calls.report(made.name, 99)) == (422, "invalid_request")


async def test_a_change_adds_versions_and_another_comparison_begins_from_zero(
    calls: RuleCalls, owner: asyncpg.Connection[Any]
) -> None:
    made = await calls.create(new_rule(fresh("rule"), "1", "2"), "root")
    await evaluate(calls, made.name, a=1)
    await compared(calls, made.name, 1)

    named = await calls.change(made.name, RuleChange(description="new", min_samples=7), made.version, "root")
    other = await calls.change(
        made.name, RuleChange(versions=[NewVersion("v3", "{'a': 1}")], challenger="v3"), named.version, "root"
    )
    ignoring = await calls.change(made.name, RuleChange(ignored_fields=["/a"]), None, "root")
    ended = await calls.change(made.name, RuleChange(challenger=None), None, "root")

    assert (named.trial, other.trial, ignoring.trial, ended.trial) == (1, 2, 3, 4)
    assert (named.description, named.min_samples, other.challenger, ended.challenger) == ("new", 7, "v3", None)
    assert [one.name for one in ended.versions] == ["v1", "v2", "v3"]
    await evaluate(calls, made.name, a=1)
    assert (await compared(calls, made.name, 0)).evaluated == 1
    told = await entries(owner, made.name)
    assert [kind for kind, _ in told] == ["rule.create", *["rule.change"] * 4]
    assert told[2][1]["versions"] == {"v3": hashlib.sha256(b"{'a': 1}").hexdigest()}


@pytest.mark.parametrize(
    ("change", "status"),
    [(RuleChange(challenger="v9"), 422), (RuleChange(challenger="v1"), 422), (RuleChange(versions=[NewVersion("v1", "3")]), 422),
     (RuleChange(versions=[NewVersion("v4", "3 +")]), 422), (RuleChange(versions=[NewVersion("a", "1"), NewVersion("a", "1")]), 422)],
)  # fmt: skip
async def test_a_change_that_is_wrong_changes_nothing(calls: RuleCalls, change: RuleChange, status: int) -> None:
    made = await calls.create(new_rule(fresh("rule"), "1", "2"), "root")

    assert (await refusal(calls.change(made.name, change, None, "root")))[0] == status
    assert await calls.read(made.name) == made


async def test_a_change_that_was_meant_for_another_revision_is_refused(calls: RuleCalls) -> None:
    made = await calls.create(new_rule(fresh("rule"), "1", "2", min_samples=1), "root")
    await calls.change(made.name, RuleChange(description="x"), made.version, "root")

    for late in (
        calls.change(made.name, RuleChange(description="y"), made.version, "root"), calls.delete(made.name, made.version, "root"),
        calls.promote(made.name, Promotion(), made.version, "root", is_admin=True),
    ):  # fmt: skip
        assert await refusal(late) == (409, "version_conflict")


async def test_a_rule_that_was_taken_away_is_gone_and_its_name_is_free(calls: RuleCalls) -> None:
    name = (await calls.create(new_rule(fresh("rule"), "1", "2"), "root")).name
    await evaluate(calls, name, a=1)
    await compared(calls, name, 1)

    await calls.delete(name, None, "root")

    for call in (calls.read(name), calls.report(name, None), calls.delete(name, None, "root"), evaluate(calls, name, a=1)):
        assert await refusal(call) == (404, "no_rule")
    await calls.create(new_rule(name, "3", "2"), "root")
    assert await evaluate(calls, name, a=1) == 3
    assert (await compared(calls, name, 1)).evaluated == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (new_rule("r", "1 +"), "/versions/0/expression"), (new_rule("r", "1", "input.s.matches('a')"), "/versions/1/expression"),
        (msgspec.structs.replace(new_rule("r", "1"), champion="v9"), "/champion"),
        (msgspec.structs.replace(new_rule("r", "1"), challenger="v9"), "/challenger"),
        (msgspec.structs.replace(new_rule("r", "1"), challenger="v1"), "/challenger"),
        (msgspec.structs.replace(new_rule("r", "1"), versions=[NewVersion("v1", "1")] * 2), "/versions/1/name"),
    ],
)  # fmt: skip
async def test_a_rule_that_is_wrong_is_not_made(calls: RuleCalls, body: Any, pointer: str) -> None:
    with pytest.raises(Problem) as refused:
        await calls.create(body, "root")

    assert (refused.value.status, refused.value.errors[0].pointer) == (422, pointer)
    assert await refusal(calls.read("r")) == (404, "no_rule")


async def test_names_stand_once_and_rules_are_bounded_and_paged(calls: RuleCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = fresh("page")
    names = [f"{prefix}-{number}" for number in range(3)]
    for name in names:
        await calls.create(new_rule(name, "1"), "root")

    assert await refusal(calls.create(new_rule(names[0], "2"), "root")) == (409, "rule_exists")
    first, after = await calls.page(prefix, 2)
    second, _ = await calls.page(after or "", 1)
    assert [rule.name for rule in first + second] == names
    monkeypatch.setattr(rules_store, "RULES_MAX", 1)
    assert await refusal(calls.create(new_rule(fresh("rule"), "1"), "root")) == (409, "too_many_rules")


@pytest.mark.parametrize(
    "text",
    ["{}", '{"name": "r", "versions": [], "champion": "v1"}', '{"name": "a/b", "versions": [{"name": "v", "expression": "1"}], "champion": "v"}',
     '{"name": "r", "versions": [{"name": "v", "expression": ""}], "champion": "v"}',
     '{"name": "r", "versions": [{"name": "v", "expression": "1"}], "champion": "v", "shadow_rate": 0}',
     '{"name": "r", "versions": [{"name": "v", "expression": "1"}], "champion": "v", "ignored_fields": ["a"]}',
     '{"name": "r", "versions": [{"name": "v", "expression": "1", "code": "x"}], "champion": "v"}'],
)  # fmt: skip
def test_a_body_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(Problem) as refused:
        Body(type(new_rule("r", "1"))).decode(text.encode())

    assert refused.value.status == 422
