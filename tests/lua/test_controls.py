"""Quotas and low-balance thresholds inside the script: counted exactly, told once, in UTC windows of the script's clock."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.clock import ms_of
from app.credits.controls import lua_state, window_end_ms
from app.db.keys import shard_keys
from app.db.resources import resource_dir
from tests.lua.script_shard import NUMBER, Answer, ScriptShard

NOON: Final = datetime(2031, 5, 20, 12, 30, 0, tzinfo=UTC)


def quota(limit: int, period: str = "day") -> str:
    return json.dumps({"limit": limit, "period": period})


def at(shard: ScriptShard, moment: datetime) -> None:
    """Let the ledger's time, which never steps back, be this moment or later."""
    shard.redis.hset(shard_keys(NUMBER)[0], "at", ms_of(moment))
    shard.at = ms_of(moment)


def opened(shard: ScriptShard, balance: int = 1000, **settings_: str) -> str:
    at(shard, NOON)
    tenant = shard.tenant()
    assert shard.do("update", tenant=tenant, settings=settings_)[0] == "ok"
    assert shard.do("topup", tenant=tenant, amount=balance)[0] == "ok"
    return tenant


def controls(answer: Answer) -> dict[str, Any]:
    return dict(answer[9]) if len(answer) > 9 else {}


def told(answer: Answer) -> list[str]:
    return [alert["type"].partition(".")[2] for alert in controls(answer).get("alerts", [])]


def used(shard: ScriptShard, tenant: str) -> int:
    return int(shard.redis.hget(shard.key("account", tenant), "controls").split()[4])


def test_an_account_without_settings_says_and_keeps_nothing_of_controls(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)

    answers = [shard.do("consume", tenant=tenant, amount=1), shard.do("update", tenant=tenant, settings={"quota": None})]

    assert [len(answer) for answer in answers] == [9, 9]
    assert shard.redis.hget(shard.key("account", tenant), "controls") is None


def test_a_quota_is_spent_to_the_last_credit_and_not_beyond(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100))

    answers = [shard.do("consume", tenant=tenant, amount=amount) for amount in (60, 41, 40, 1)]

    end = ms_of(datetime(2031, 5, 21, tzinfo=UTC))
    assert [answer[0] for answer in answers] == ["ok", "quota_exceeded", "ok", "quota_exceeded"]
    assert answers[1] == ["quota_exceeded", 100, 60, "day", end, shard.at, "r"]
    assert (used(shard, tenant), shard.numbers(tenant)[0]) == (100, 900)


def test_a_quota_refuses_before_version_and_balance_are_looked_at(shard: ScriptShard) -> None:
    tenant = opened(shard, balance=5, quota=quota(10))

    answers = [shard.do("consume", tenant=tenant, amount=amount, expect=1) for amount in (11, 6)]

    assert [answer[0] for answer in answers] == ["quota_exceeded", "version_conflict"]
    assert shard.do("consume", tenant=tenant, amount=6)[0] == "insufficient_credits"
    assert used(shard, tenant) == 0


def test_a_refusal_by_quota_is_not_remembered(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(10))
    operation = shard.stamped("consume", tenant=tenant, amount=11)
    assert shard.run(operation)[0][0] == "quota_exceeded"

    shard.do("update", tenant=tenant, settings={"quota": quota(11)})

    assert shard.run(operation)[0][0] == "ok"


@pytest.mark.parametrize("period", ["hour", "day", "month"])
def test_a_window_ends_by_the_calendar_of_utc(shard: ScriptShard, period: str) -> None:
    tenant = opened(shard, quota=quota(10, period))
    end = window_end_ms(period, ms_of(NOON))
    assert shard.do("consume", tenant=tenant, amount=10)[0] == "ok"

    at(shard, datetime.fromtimestamp(end / 1000 - 1, UTC))
    before = shard.do("consume", tenant=tenant, amount=1)
    at(shard, datetime.fromtimestamp(end / 1000, UTC))
    after = shard.do("consume", tenant=tenant, amount=10)

    assert before[:5] == ["quota_exceeded", 10, 10, period, end]
    assert after[0] == "ok"
    assert controls(after)["resets_at_ms"] == window_end_ms(period, end)


def test_every_month_of_forty_years_ends_at_its_last_midnight(shard: ScriptShard) -> None:
    text = (resource_dir("lua") / "lib" / "controls.lua").read_text()
    own = text[: text.index("local function controls_of")]
    code = f"local at = tonumber(ARGV[1])\n{own}\nreturn string.format('%.0f', window_end('month'))"

    moments = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=30.4 * i) for i in range(40 * 12)]
    moments += [datetime(2100, 2, 28, 23, tzinfo=UTC), datetime(2096, 2, 29, tzinfo=UTC), datetime(2399, 12, 31, tzinfo=UTC)]
    ends = [int(shard.redis.eval(code, 0, ms_of(moment))) for moment in moments]

    assert ends == [window_end_ms("month", ms_of(moment)) for moment in moments]


def test_a_hold_counts_from_its_reserve_and_gives_back_what_it_does_not_spend(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100))

    hold = shard.hold(tenant, 90)
    refused = shard.do("consume", tenant=tenant, amount=11)
    shard.do("commit", ref=hold, amount=30)
    after_commit = used(shard, tenant)
    shard.do("abort", ref=shard.hold(tenant, 70))

    assert (refused[0], after_commit, used(shard, tenant)) == ("quota_exceeded", 30, 30)


def test_a_hold_that_is_due_does_not_count_although_no_sweep_came(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100))
    shard.hold(tenant, 100, ttl_ms=1000)
    at(shard, NOON + timedelta(seconds=2))

    answer = shard.do("consume", tenant=tenant, amount=100)

    assert (answer[0], used(shard, tenant)) == ("ok", 100)


def test_a_hold_of_an_older_count_gives_nothing_back_to_a_newer_one(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100, "hour"))
    earlier = shard.hold(tenant, 50)
    at(shard, NOON + timedelta(hours=1))
    earlier_window = shard.hold(tenant, 60, ttl_ms=86_400_000)
    shard.do("update", tenant=tenant, settings={"quota": None})
    uncounted = shard.hold(tenant, 10, ttl_ms=86_400_000)
    shard.do("update", tenant=tenant, settings={"quota": quota(100, "hour")})
    shard.do("consume", tenant=tenant, amount=20)

    for hold in (earlier, earlier_window, uncounted):
        shard.do("abort", ref=hold)

    assert used(shard, tenant) == 20


def test_a_refund_gives_nothing_back_to_the_quota(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100))
    spent = shard.do("consume", tenant=tenant, amount=60)
    evidence = {"ref": shard.id_of(spent), "consumed": 60, "refunded": 0, "generation": shard.generation}

    refund = shard.do("refund", tenant=tenant, **evidence)

    assert (refund[0], used(shard, tenant)) == ("ok", 60)
    assert controls(refund) == {}


def test_another_limit_goes_on_counting_and_another_period_begins_anew(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100))
    shard.do("consume", tenant=tenant, amount=60)

    lower = shard.do("update", tenant=tenant, settings={"quota": quota(50)})
    refused = shard.do("consume", tenant=tenant, amount=1)
    other = shard.do("update", tenant=tenant, settings={"quota": quota(50, "month")})

    assert (controls(lower)["used"], told(lower), refused[0]) == (60, ["quota_exceeded"], "quota_exceeded")
    assert (controls(other)["used"], used(shard, tenant)) == (0, 0)


def test_quota_alerts_come_once_a_window_for_each_step(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100))
    spend = lambda amount: shard.do("consume", tenant=tenant, amount=amount)  # noqa: E731

    steps = [told(spend(amount)) for amount in (79, 1, 10, 10)]
    spend(1)
    hold_is_gone = [entry for entry, _ in shard.outbox() if entry["op"] == "note"]
    at(shard, NOON + timedelta(days=1))
    next_window = told(spend(100))

    assert steps == [[], ["quota_warning"], [], ["quota_exceeded"]]
    assert hold_is_gone == []
    assert next_window == ["quota_exceeded"]


def test_the_first_refusal_of_a_window_is_an_event_and_the_others_are_not(shard: ScriptShard) -> None:
    tenant = opened(shard, quota=quota(100))
    shard.do("consume", tenant=tenant, amount=95)

    for _ in range(3):
        shard.do("consume", tenant=tenant, amount=6)
    rest = shard.do("consume", tenant=tenant, amount=5)

    notes = [(op, result) for op, result in shard.outbox() if op["op"] == "note"]
    assert [(op["kind"], result[9]["tenant_id"], result[6:8]) for op, result in notes] == [
        ("credits.quota_exceeded", tenant, ["", 0])
    ]
    assert (rest[0], told(rest)) == ("ok", [])


def test_a_low_balance_is_told_once_and_again_after_it_has_recovered(shard: ScriptShard) -> None:
    tenant = opened(shard, balance=150, low_balance_threshold="100")
    move = {-1: "consume", 1: "topup"}

    def step(amount: int) -> list[str]:
        return told(shard.do(move[-1 if amount < 0 else 1], tenant=tenant, amount=abs(amount)))

    assert [step(amount) for amount in (-49, -1, -40, 50, -5, 5, -100)] == [[], ["low_balance"], [], [], [], [], []]
    assert [step(amount) for amount in (101, -11)] == [[], ["low_balance"]]


def test_a_new_account_has_crossed_nothing_until_it_was_above_its_threshold(shard: ScriptShard) -> None:
    answer = shard.do("account", tenant="t1", settings={"low_balance_threshold": "100"})

    topup = shard.do("topup", tenant="t1", amount=101)
    spend = shard.do("consume", tenant="t1", amount=1)

    assert [told(one) for one in (answer, topup, spend)] == [[], [], ["low_balance"]]


def test_a_threshold_set_above_the_balance_is_a_crossing_unless_it_was_told(shard: ScriptShard) -> None:
    tenant = opened(shard, balance=100)

    answers = [
        shard.do("update", tenant=tenant, settings={"low_balance_threshold": text})
        for text in ("200", "300", "200", "50", None)
    ]

    assert [told(answer) for answer in answers] == [["low_balance"], [], [], [], []]
    assert controls(answers[3])["low"] == 1
    assert shard.redis.hget(shard.key("account", tenant), "controls") is None


def test_both_legs_of_a_transfer_meet_their_thresholds(shard: ScriptShard) -> None:
    giver = opened(shard, balance=150, low_balance_threshold="100")
    taker = opened(shard, balance=50, low_balance_threshold="60")

    answer = shard.do("transfer", legs=[{"tenant_id": giver, "amount": -60}, {"tenant_id": taker, "amount": 60}])

    assert [told(leg) for leg in answer[1:]] == [["low_balance"], []]
    assert [leg[8] for leg in answer[1:]] == [[1, 2, -60], [2, 2, 60]]
    assert controls(answer[2]) == {"low": 1}


def test_what_postgres_holds_lays_the_same_state(shard: ScriptShard) -> None:
    tenant = opened(shard, low_balance_threshold="100", quota=quota(500))
    state = controls(shard.do("consume", tenant=tenant, amount=420))
    known = shard.redis.hget(shard.key("account", tenant), "controls").decode()

    settings_ = {"low_balance_threshold": "100", "quota": quota(500)}

    assert lua_state(settings_, state, 580) == known
    assert lua_state({}, state, 580) == ""
    assert lua_state({"low_balance_threshold": "100"}, {}, 580) == "100 1 -1 - 0 0 0 0"


class Quota:
    """A quota in plain Python: what counts in the current hour, and what each open hold has claimed of which hour."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used: dict[int, int] = {}
        self.holds: list[tuple[str, int, int]] = []

    def spend(self, hour: int, amount: int) -> bool:
        if self.used.get(hour, 0) + amount > self.limit:
            return False
        self.used[hour] = self.used.get(hour, 0) + amount
        return True


STEPS = st.lists(
    st.tuples(st.sampled_from(["consume", "reserve", "commit", "abort", "hour"]), st.integers(1, 40)), max_size=30
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 100), steps=STEPS)
def test_any_sequence_counts_as_the_model_does(shard: ScriptShard, limit: int, steps: list[tuple[str, int]]) -> None:
    shard = ScriptShard(shard.redis)
    tenant, model, hour = opened(shard, balance=10_000, quota=quota(limit, "hour")), Quota(limit), 0

    for verb, amount in steps:
        if verb == "hour":
            hour += 1
            at(shard, NOON + timedelta(hours=hour))
        elif verb in {"consume", "reserve"}:
            answer = shard.do(verb, tenant=tenant, amount=amount, ttl_ms=86_400_000)
            assert (answer[0] == "ok") == model.spend(hour, amount)
            if verb == "reserve" and answer[0] == "ok":
                model.holds.append((shard.id_of(answer), amount, hour))
        elif model.holds:
            hold, held, of_hour = model.holds.pop(0)
            spent = min(amount, held) if verb == "commit" else 0
            assert shard.do(verb, ref=hold, **({"amount": spent} if spent else {}))[0] == "ok"
            model.used[of_hour] -= held - spent

    shard.do("topup", tenant=tenant, amount=1)
    text = shard.redis.hget(shard.key("account", tenant), "controls").decode().split()
    current = int(text[5]) == window_end_ms("hour", shard.at)
    assert (int(text[4]) if current else 0) == model.used.get(hour, 0)
