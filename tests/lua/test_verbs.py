"""Every verb of ledger_apply and every refusal, on each server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app.db.keys import shard_keys
from tests.lua.script_shard import GENERATION, NUMBER, ScriptShard

MAX = 10**14 - 1
NOBODY = "01890000-0000-7000-8000-000000000000"
DAY_S = 86_400


def test_an_account_begins_empty_with_its_settings(shard: ScriptShard) -> None:
    answer = shard.do("account", tenant="t1", settings={"metadata": '{"limit":1}'})

    assert answer == ["ok", 0, shard.at, 0, 0, 1, "t1", 0, [shard.at, {"metadata": '{"limit":1}'}]]
    assert shard.numbers("t1") == (0, 0, 1)
    assert shard.redis.hget(shard.key("account", "t1"), "metadata") == b'{"limit":1}'


def test_a_second_account_is_refused(shard: ScriptShard) -> None:
    tenant = shard.tenant(5)

    assert shard.do("account", tenant=tenant, settings={}) == ["account_exists", "r"]
    assert shard.numbers(tenant) == (5, 0, 2)


def test_update_sets_and_takes_away(shard: ScriptShard) -> None:
    shard.do("account", tenant="t1", settings={"owner": "1", "metadata": "{}"})

    opened = shard.at
    answer = shard.do("update", tenant="t1", settings={"owner": None, "rate_limit": "2"})

    assert answer[3:] == [0, 0, 2, "t1", 0, [opened, {"rate_limit": "2", "metadata": "{}"}]]
    fields = shard.redis.hgetall(shard.key("account", "t1"))
    assert (fields[b"rate_limit"], fields[b"metadata"], fields[b"version"]) == (b"2", b"{}", b"2")
    assert b"owner" not in fields


def test_topup_and_consume_move_exactly_their_amount(shard: ScriptShard) -> None:
    tenant = shard.tenant()

    assert shard.do("topup", tenant=tenant, amount=100)[3:] == [100, 0, 2, tenant, 100, None]
    assert shard.do("consume", tenant=tenant, amount=30)[3:] == [70, 0, 3, tenant, 30, None]
    assert shard.do("consume", tenant=tenant, amount=71) == ["insufficient_credits", 70, "r"]
    assert shard.do("consume", tenant=tenant, amount=70)[3:] == [0, 0, 4, tenant, 70, None]
    assert shard.numbers(tenant) == (0, 0, 4)


@pytest.mark.parametrize("verb", ["update", "topup", "consume", "reserve", "prepare_in", "prepare_out"])
def test_a_missing_account_is_never_read_as_zero(shard: ScriptShard, verb: str) -> None:
    before = shard.dump()

    answer = shard.do(verb, key="k", tenant="nobody", amount=1, ttl_ms=1000, settings={})

    assert answer == ["no_account", "r"]
    assert set(shard.dump()) - set(before) == {shard.key("idem", "k").encode()}


@pytest.mark.parametrize("verb", ["update", "topup", "consume", "reserve"])
def test_another_version_is_a_conflict(shard: ScriptShard, verb: str) -> None:
    tenant = shard.tenant(10)

    stale = shard.do(verb, tenant=tenant, amount=1, ttl_ms=1000, settings={}, expect=1)
    fits = shard.do(verb, tenant=tenant, amount=1, ttl_ms=1000, settings={}, expect=2)

    assert stale == ["version_conflict", 2, "r"]
    assert fits[0] == "ok"


def test_numbers_at_the_limits_are_exact(shard: ScriptShard) -> None:
    tenant = shard.tenant()

    assert shard.do("topup", tenant=tenant, amount=MAX)[3] == MAX
    assert shard.do("topup", tenant=tenant, amount=1) == ["balance_limit_exceeded", "r"]
    hold = shard.do("reserve", tenant=tenant, amount=MAX - 1, ttl_ms=DAY_S * 1000)
    assert hold[3:5] == [MAX, MAX - 1]
    assert shard.do("consume", tenant=tenant, amount=2) == ["insufficient_credits", 1, "r"]
    assert shard.do("commit", ref=shard.id_of(hold), amount=MAX - 2)[3:] == [2, 0, 4, tenant, MAX - 2, 1]
    assert shard.redis.hget(shard.key("account", tenant), "balance") == b"2"
    spent = shard.do("consume", tenant=tenant, amount=2)
    refund = {"tenant": tenant, "ref": shard.id_of(spent), "consumed": MAX, "refunded": 0, "generation": GENERATION}
    assert shard.do("refund", **refund, amount=MAX)[3:] == [MAX, 0, 6, tenant, MAX, MAX]
    assert shard.redis.get(shard.key("refunds", refund["ref"])) == str(MAX).encode()


def test_reserve_holds_and_commit_spends(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)

    answer = shard.do("reserve", tenant=tenant, amount=60, ttl_ms=5000)
    hold = shard.id_of(answer)

    assert answer[3:] == [100, 60, 3, tenant, 60, shard.at + 5000]
    assert shard.redis.zscore(shard_keys(NUMBER)[2], hold) == shard.at + 5000
    assert shard.do("reserve", tenant=tenant, amount=41, ttl_ms=1) == ["insufficient_credits", 40, "r"]
    assert shard.do("commit", ref=hold, amount=61) == ["amount_exceeds_reservation", 60, "r"]
    assert shard.status(hold) == "held"
    assert shard.do("commit", ref=hold, amount=25)[3:] == [75, 0, 4, tenant, 25, 35]
    assert (shard.status(hold), shard.numbers(tenant)) == ("committed", (75, 0, 4))
    assert shard.redis.zcard(shard_keys(NUMBER)[2]) == shard.redis.zcard(shard.key("holds", tenant)) == 0


def test_commit_without_amount_spends_all_that_is_held(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)

    assert shard.do("commit", ref=shard.hold(tenant, 60))[3:] == [40, 0, 4, tenant, 60, 0]


def test_abort_gives_back(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    hold = shard.hold(tenant, 60)

    assert shard.do("abort", ref=hold)[3:] == [100, 0, 4, tenant, 60, None]
    assert (shard.status(hold), shard.numbers(tenant)) == ("aborted", (100, 0, 4))


@pytest.mark.parametrize(("end", "status"), [("commit", "committed"), ("abort", "aborted")])
@pytest.mark.parametrize("verb", ["commit", "abort"])
def test_a_closed_reservation_stays_closed(shard: ScriptShard, end: str, status: str, verb: str) -> None:
    tenant = shard.tenant(100)
    hold = shard.hold(tenant, 60)
    shard.do(end, ref=hold)
    before = shard.numbers(tenant)

    assert shard.do(verb, ref=hold) == [f"reservation_{status}", "r"]
    assert shard.numbers(tenant) == before


@pytest.mark.parametrize("verb", ["commit", "abort", "settle", "cancel"])
def test_what_redis_does_not_know_is_unknown_and_not_remembered(shard: ScriptShard, verb: str) -> None:
    before = shard.dump()

    assert shard.do(verb, ref=NOBODY, purpose="transfer_out") == ["unknown"]
    assert shard.dump() == before


def test_a_refusal_that_postgres_established_is_remembered(shard: ScriptShard) -> None:
    operation = shard.stamped("commit", key="k", ref=NOBODY)

    refused = shard.run(operation | {"refuse": '["no_reservation"]'})
    again = shard.run(operation)

    assert (refused, again) == ([["no_reservation", "r"]], [["replay", ["no_reservation", "r"]]])


def due(shard: ScriptShard, tenant: str, amount: int) -> str:
    """Make a hold and wait until its time has come."""
    answer = shard.do("reserve", tenant=tenant, amount=amount, ttl_ms=1)
    while time.time() * 1000 <= answer[-1] + 1:
        time.sleep(0.001)
    return shard.id_of(answer)


@pytest.mark.parametrize("verb", ["commit", "abort"])
def test_a_late_end_expires_the_hold_itself(shard: ScriptShard, verb: str) -> None:
    tenant = shard.tenant(100)
    hold = due(shard, tenant, 60)

    first, second = shard.run(shard.stamped(verb, ref=hold), shard.stamped(verb, ref=hold))

    assert first == second == ["reservation_expired", "r"]
    assert (shard.status(hold), shard.numbers(tenant)) == ("expired", (100, 0, 4))
    assert shard.outbox()[-1] == ({"op": "expire", "ref": hold}, ["ok", shard.seq, shard.at, 100, 0, 4, tenant, 60, None])


def test_an_expired_hold_does_not_block_a_spend(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    holds = [due(shard, tenant, 45) for _ in range(2)]
    alive = shard.hold(tenant, 10)

    answer = shard.do("consume", tenant=tenant, amount=90)

    assert answer[3:6] == [10, 10, 8]
    assert [shard.status(hold) for hold in (*holds, alive)] == ["expired", "expired", "held"]
    assert [result[5] for _, result in shard.outbox()[-3:]] == [6, 7, 8]


def test_holds_that_are_due_stay_when_the_spend_does_not_need_them(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    hold = due(shard, tenant, 45)

    shard.do("consume", tenant=tenant, amount=55)

    assert shard.status(hold) == "held"


def test_a_refused_spend_still_expires_what_is_due(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    hold = due(shard, tenant, 45)

    assert shard.do("consume", tenant=tenant, amount=101) == ["insufficient_credits", 100, "r"]
    assert (shard.status(hold), shard.numbers(tenant)) == ("expired", (100, 0, 4))
    assert len(shard.outbox()) == shard.seq + 1


def test_a_sweep_expires_at_most_its_limit(shard: ScriptShard) -> None:
    tenants = [shard.tenant(10) for _ in range(5)]
    for tenant in tenants:
        due(shard, tenant, 10)
    alive = shard.hold(shard.tenant(10), 10)

    swept = [shard.run({"op": "sweep", "limit": 3})[0] for _ in range(3)]

    assert swept == [["swept", 3], ["swept", 2], ["swept", 0]]
    assert {shard.numbers(tenant) for tenant in tenants} == {(10, 0, 4)}
    assert shard.status(alive) == "held"


def test_a_sweep_begins_with_the_hold_that_was_due_first(shard: ScriptShard) -> None:
    tenant = shard.tenant(10)
    later, sooner = shard.hold(tenant, 1, ttl_ms=20), due(shard, tenant, 1)
    while time.time() * 1000 <= shard.redis.zscore(shard_keys(NUMBER)[2], later):
        time.sleep(0.001)

    shard.run({"op": "sweep", "limit": 1})

    assert (shard.status(later), shard.status(sooner)) == ("held", "expired")


def test_a_closed_reservation_is_forgotten_after_a_day(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    committed, aborted, expired, alive = (
        shard.hold(tenant, 1),
        shard.hold(tenant, 1),
        due(shard, tenant, 1),
        shard.hold(tenant, 1),
    )
    shard.do("commit", ref=committed)
    shard.do("abort", ref=aborted)
    shard.run({"op": "sweep", "limit": 9})

    lives = [shard.redis.ttl(shard.key("reservation", hold)) for hold in (committed, aborted, expired, alive)]

    assert all(DAY_S - 5 <= life <= DAY_S for life in lives[:3])
    assert lives[3] == -1


def refund(shard: ScriptShard, tenant: str, **fields: Any) -> list[Any]:
    evidence = {"ref": NOBODY, "consumed": 40, "refunded": 0, "generation": GENERATION}
    return shard.do("refund", tenant=tenant, **(evidence | fields))


def test_refunds_stop_at_what_was_consumed(shard: ScriptShard) -> None:
    tenant = shard.tenant(10)

    assert refund(shard, tenant, amount=15)[3:] == [25, 0, 3, tenant, 15, 15]
    assert refund(shard, tenant, amount=26) == ["refund_exceeds_consumed", 25, "r"]
    assert refund(shard, tenant)[3:] == [50, 0, 4, tenant, 25, 40]
    assert refund(shard, tenant) == ["already_refunded", "r"]
    assert refund(shard, tenant, amount=1) == ["already_refunded", "r"]


def test_what_postgres_knows_of_refunds_counts_when_redis_knows_less(shard: ScriptShard) -> None:
    tenant = shard.tenant(10)

    assert refund(shard, tenant, refunded=39)[3:] == [11, 0, 3, tenant, 1, 40]
    assert refund(shard, tenant, refunded=0) == ["already_refunded", "r"]


def test_evidence_of_another_generation_is_asked_for_again(shard: ScriptShard) -> None:
    tenant = shard.tenant(10)

    assert refund(shard, tenant, generation=GENERATION - 1) == ["unknown"]
    assert shard.numbers(tenant) == (10, 0, 2)


def test_a_refund_stops_at_the_balance_limit(shard: ScriptShard) -> None:
    tenant = shard.tenant(MAX - 39)

    assert refund(shard, tenant) == ["balance_limit_exceeded", "r"]
    assert refund(shard, tenant, amount=39)[3] == MAX


def legs(*pairs: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"tenant_id": tenant, "amount": amount} for tenant, amount in pairs]


def test_a_transfer_moves_all_legs_as_following_events(shard: ScriptShard) -> None:
    giver, taker = shard.tenant(100), shard.tenant(5)

    answer = shard.do("transfer", legs=legs((giver, -30), (taker, 10), (giver, -1), (taker, 21)))

    assert answer[0] == "many"
    assert [part[3:] for part in answer[1:]] == [
        [70, 0, 3, giver, 30, [1, 4, -30]], [15, 0, 3, taker, 10, [2, 4, 10]],
        [69, 0, 4, giver, 1, [3, 4, -1]], [36, 0, 4, taker, 21, [4, 4, 21]],
    ]  # fmt: skip
    assert [part[1] for part in answer[1:]] == [shard.seq - 3, shard.seq - 2, shard.seq - 1, shard.seq]


@pytest.mark.parametrize(
    ("amounts", "refusal"),
    [((-101, 101), ["insufficient_credits", 100, 0, "r"]), ((-60, 101, -41), ["insufficient_credits", 40, 2, "r"]),
     ((101, -60, -41), ["insufficient_credits", 40, 2, "r"])],
)  # fmt: skip
def test_a_transfer_with_an_uncovered_leg_changes_nothing(
    shard: ScriptShard, amounts: tuple[int, ...], refusal: list[Any]
) -> None:
    giver, taker = shard.tenant(100), shard.tenant()
    seq = shard.seq

    answer = shard.do("transfer", legs=legs(*((giver if amount < 0 else taker, amount) for amount in amounts)))

    assert answer == refusal
    assert (shard.numbers(giver), shard.numbers(taker), shard.seq) == ((100, 0, 2), (0, 0, 1), seq)


def test_a_transfer_to_nobody_or_over_the_limit_changes_nothing(shard: ScriptShard) -> None:
    giver, full = shard.tenant(100), shard.tenant(MAX)

    assert shard.do("transfer", legs=legs((giver, -1), ("nobody", 1))) == ["no_account", 1, "r"]
    assert shard.do("transfer", legs=legs((giver, -1), (full, 1))) == ["balance_limit_exceeded", 1, "r"]
    assert (shard.numbers(giver), shard.numbers(full)) == ((100, 0, 2), (MAX, 0, 2))


def test_a_transfer_needs_no_holds_that_are_due(shard: ScriptShard) -> None:
    giver, taker = shard.tenant(100), shard.tenant()
    hold = due(shard, giver, 100)

    answer = shard.do("transfer", legs=legs((giver, -100), (taker, 100)))

    assert answer[0] == "many"
    assert (shard.status(hold), shard.numbers(giver)) == ("expired", (0, 0, 5))


@pytest.mark.parametrize(
    ("verb", "numbers", "status"), [("settle", (40, 0, 4), "committed"), ("cancel", (100, 0, 4), "aborted")]
)
def test_a_prepared_outgoing_leg_is_held_then_settled_or_cancelled(
    shard: ScriptShard, verb: str, numbers: tuple[int, ...], status: str
) -> None:
    tenant = shard.tenant(100)
    answer = shard.do("prepare_out", tenant=tenant, amount=60, ref=NOBODY)
    hold = shard.id_of(answer)

    assert (answer[3:5], shard.redis.zcard(shard_keys(NUMBER)[2])) == ([100, 60], 0)
    assert shard.do("consume", tenant=tenant, amount=41) == ["insufficient_credits", 40, "r"]
    assert shard.do("commit", ref=hold) == ["no_reservation", "r"]
    assert shard.do("abort", ref=hold) == ["no_reservation", "r"]
    assert shard.do(verb, ref=hold, purpose="transfer_out")[3:6] == list(numbers)
    assert shard.do("settle", ref=hold, purpose="transfer_out") == [f"reservation_{status}", "r"]
    assert shard.numbers(tenant) == numbers


@pytest.mark.parametrize(("verb", "numbers"), [("settle", (MAX, 0, 4)), ("cancel", (MAX - 60, 0, 4))])
def test_a_prepared_incoming_leg_keeps_its_room(shard: ScriptShard, verb: str, numbers: tuple[int, ...]) -> None:
    tenant = shard.tenant(MAX - 60)
    hold = shard.id_of(shard.do("prepare_in", tenant=tenant, amount=60, ref=NOBODY))

    assert shard.do("topup", tenant=tenant, amount=1) == ["balance_limit_exceeded", "r"]
    assert shard.do("prepare_in", tenant=tenant, amount=1, ref=NOBODY) == ["balance_limit_exceeded", "r"]
    assert shard.do("consume", tenant=tenant, amount=MAX - 59) == ["insufficient_credits", MAX - 60, "r"]
    assert shard.do(verb, ref=hold, purpose="transfer_in")[3:6] == list(numbers)
    assert shard.redis.hget(shard.key("account", tenant), "incoming") == b"0"


def test_prepare_is_refused_like_a_spend(shard: ScriptShard) -> None:
    tenant = shard.tenant(10)

    assert shard.do("prepare_out", tenant=tenant, amount=11, ref=NOBODY) == ["insufficient_credits", 10, "r"]
    assert shard.do("settle", ref=shard.hold(tenant, 1), purpose="transfer_out") == ["no_reservation", "r"]
