"""Every verb of ledger_apply and every refusal, on each server."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from app.credits.operation import events_of_item, position_of
from app.db.keys import applied_channel, shard_keys
from tests.lua.script_shard import GENERATION, MASK, NUMBER, Fault, ScriptShard

MAX = 10**14 - 1
NOBODY = "01890000-0000-7000-8000-000000000000"
DAY_S = 86_400


def test_an_account_begins_empty_with_its_settings(shard: ScriptShard) -> None:
    answer = shard.do("account", tenant="t1", settings={"quota": '{"limit":1}'})

    assert answer == ["ok", 0, shard.at, 0, 0, 1, "t1", 0, [shard.at, {"quota": '{"limit":1}'}]]
    assert shard.numbers("t1") == (0, 0, 1)
    assert shard.redis.hget(shard.key("account", "t1"), "quota") == b'{"limit":1}'


def test_a_second_account_is_refused(shard: ScriptShard) -> None:
    tenant = shard.tenant(5)

    assert shard.do("account", tenant=tenant, settings={}) == ["account_exists", "r"]
    assert shard.numbers(tenant) == (5, 0, 2)


def test_update_sets_and_takes_away(shard: ScriptShard) -> None:
    shard.do("account", tenant="t1", settings={"quota": "1", "metadata": "{}"})

    opened = shard.at
    answer = shard.do("update", tenant="t1", settings={"quota": None, "rate_limit": "2"})

    assert answer[3:] == [0, 0, 2, "t1", 0, [opened, {"rate_limit": "2", "metadata": "{}"}]]
    fields = shard.redis.hgetall(shard.key("account", "t1"))
    assert (fields[b"rate_limit"], fields[b"metadata"], fields[b"version"]) == (b"2", b"{}", b"2")
    assert b"quota" not in fields


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


def test_a_key_is_applied_once_and_replayed_with_its_first_answer(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    operation = shard.stamped("consume", tenant=tenant, amount=10)

    first, second, third = shard.run(operation, operation | {"rid": "other"}, operation)

    assert first[0] == "ok"
    assert second == third == ["replay", ["ok", first[1]]]
    assert shard.numbers(tenant) == (90, 0, 3)
    assert DAY_S - 5 <= shard.redis.ttl(shard.key("idem", operation["key"])) <= DAY_S


def test_a_key_of_another_request_is_reused(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    operation = shard.stamped("consume", tenant=tenant, amount=10)

    _, second = shard.run(operation, operation | {"fp": "0" * 22})

    assert second == ["reused"]
    assert shard.numbers(tenant) == (90, 0, 3)


def test_a_replayed_transfer_names_its_first_seq_and_its_legs(shard: ScriptShard) -> None:
    giver, taker = shard.tenant(100), shard.tenant()
    operation = shard.stamped("transfer", legs=legs((giver, -1), (taker, 1)))

    first, second = shard.run(operation, operation)

    assert second == ["replay", ["ok", first[1][1], 2]]


def test_a_refusal_is_replayed_with_the_first_request_id(shard: ScriptShard) -> None:
    tenant = shard.tenant(1)
    operation = shard.stamped("consume", tenant=tenant, amount=2)

    first, _, second = shard.run(operation, shard.stamped("topup", tenant=tenant, amount=9), operation | {"rid": "late"})

    assert (first, second) == (["insufficient_credits", 1, "r"], ["replay", ["insufficient_credits", 1, "r"]])


def test_a_claim_is_kept_for_its_request(shard: ScriptShard) -> None:
    claim = {"op": "claim", "key": "batch", "fp": "a" * 22}

    assert shard.run(claim, claim, claim | {"fp": "b" * 22}) == [["claimed"], ["replay", ["claimed"]], ["reused"]]


def test_a_batch_is_decided_in_order(shard: ScriptShard) -> None:
    tenant = shard.tenant()

    answers = shard.run(
        *(shard.stamped(verb, tenant=tenant, amount=5) for verb in ("consume", "topup", "consume", "consume"))
    )

    assert [answer[0] for answer in answers] == ["insufficient_credits", "ok", "ok", "insufficient_credits"]


def test_a_large_batch_leaves_whole_events_in_order(shard: ScriptShard) -> None:
    tenant = shard.tenant(10**6)

    answers = shard.run(*(shard.stamped("consume", tenant=tenant, amount=1) for _ in range(512)))
    events = shard.outbox()

    assert len(events) == shard.seq + 1 == 514
    assert [result for _, result in events[2:]] == answers
    assert {op["amount"] for op, _ in events[2:]} == {1}


def test_an_event_of_the_outbox_is_the_event_of_the_answer(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    operation = shard.stamped("consume", tenant=tenant, amount=1, desc="naïve 😀 \u2028", meta='{"a":"\\u0001"}')
    answer = shard.run(operation)[0]

    op, result = shard.outbox()[-1]
    event = events_of_item(NUMBER, GENERATION, MASK, json.dumps(op).encode(), json.dumps(result).encode())

    assert result == answer
    assert (event.description, event.metadata, event.seq) == (operation["desc"], operation["meta"], shard.seq)
    assert event.transaction_id == shard.id_of(answer)
    assert position_of(event.transaction_id, MASK) == (NUMBER, shard.seq)
    assert shard.redis.exists(shard.key("reservation", event.transaction_id)) == 0


def test_a_reservation_is_kept_under_the_id_that_its_event_has(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)

    for _ in range(20):
        answer = shard.do("reserve", tenant=tenant, amount=1, ttl_ms=1000)

        assert shard.redis.exists(shard.key("reservation", shard.id_of(answer))) == 1


def test_time_never_goes_back(shard: ScriptShard) -> None:
    tenant = shard.tenant(100)
    future = shard.at + 3_600_000
    shard.redis.hset(shard_keys(NUMBER)[0], "at", future)

    answer = shard.do("consume", tenant=tenant, amount=1)

    assert answer[2] == future


def test_a_shard_without_head_is_forgotten(shard: ScriptShard) -> None:
    shard.redis.flushdb()

    with pytest.raises(Fault, match="FORGOT"):
        shard.do("account", tenant="t", settings={})
    assert shard.redis.dbsize() == 0


def test_another_generation_is_refused(shard: ScriptShard) -> None:
    before = shard.dump()
    for generation in (GENERATION - 1, GENERATION + 1):
        shard.generation = generation

        with pytest.raises(Fault, match="GENERATION"):
            shard.do("account", tenant="t", settings={})
    assert shard.dump() == before


def test_a_redis_behind_postgres_is_refused(shard: ScriptShard) -> None:
    shard.tenant(100)
    before = shard.dump()
    shard.durable = shard.seq + 1

    with pytest.raises(Fault, match="BEHIND"):
        shard.do("account", tenant="t", settings={})
    assert shard.dump() == before


def test_what_is_durable_leaves_the_outbox(shard: ScriptShard) -> None:
    tenant = shard.tenant(10_000)
    for _ in range(5):
        shard.run(*(shard.stamped("consume", tenant=tenant, amount=1) for _ in range(500)))
    shard.durable = shard.seq - 1

    shard.do("consume", tenant=tenant, amount=1)

    seqs = [result[1] for _, result in shard.outbox()]
    assert seqs[-2:] == [shard.seq - 1, shard.seq]
    assert len(seqs) < shard.seq
    assert shard.redis.hget(shard_keys(NUMBER)[0], "durable") == str(shard.durable).encode()


def test_followers_are_told_the_highest_seq(shard: ScriptShard) -> None:
    channel = applied_channel(NUMBER)
    with shard.redis.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(channel)
        assert listener.get_message(timeout=1) is None
        shard.channel = channel

        shard.tenant(5)
        shard.do("consume", tenant="nobody", amount=1)
        shard.do("consume", tenant="nobody", amount=1)

        heard = []
        while (message := listener.get_message(timeout=0.2)) is not None:
            heard.append(int(message["data"]))
    assert heard == [0, 1]


def test_restore_lays_accounts_holds_and_answers(shard: ScriptShard) -> None:
    shard.tenant(5)
    hold = "01890000-0000-7000-8000-000000000001"
    leg = "01890000-0000-7000-8000-000000000002"
    assert shard.restore("close", epoch=4) == [b"OK"]
    with pytest.raises(Fault, match="FORGOT"):
        shard.do("topup", tenant="t1", amount=1)

    shard.restore("clear", *shard.redis.keys("*"), epoch=4)
    shard.restore("accounts", "t1", 50, 15, 7, 9, 1_700_000_000_000, '{"quota":"{}"}', epoch=4)
    shard.restore(
        "holds", hold, "t1", 10, "spend", 9_999_999_999_999, "held", leg, "t1", 5, "transfer_out", 0, "held", epoch=4
    )
    shard.restore("answers", "known", "f" * 22 + '["ok",3]', 60, epoch=4)
    assert shard.restore("open", GENERATION + 1, 41, 1_700_000_000_001, epoch=4) == [b"OK"]
    shard.generation, shard.durable, shard.seq = GENERATION + 1, 41, 41

    assert shard.numbers("t1") == (50, 15, 9)
    assert shard.run({"op": "consume", "tenant": "t1", "amount": 1, "key": "known", "fp": "f" * 22}) == [
        ["replay", ["ok", 3]]
    ]
    assert shard.do("consume", tenant="t1", amount=36) == ["insufficient_credits", 35, "r"]
    assert shard.do("commit", ref=hold)[1:2] + shard.do("settle", ref=leg, purpose="transfer_out")[1:2] == [42, 43]
    assert shard.numbers("t1") == (35, 0, 11)
    assert 0 < shard.redis.ttl(shard.key("idem", "known")) <= 60


def test_an_older_epoch_cannot_restore(shard: ScriptShard) -> None:
    shard.restore("close", epoch=5)

    for verb, words in (("close", ()), ("accounts", ("t1", 1, 0, 0, 1, 1, "{}")), ("open", (9, 9, 9))):
        assert shard.restore(verb, *words, epoch=4) == [b"FENCED", 5]
    assert shard.redis.hgetall(shard_keys(NUMBER)[0]) == {b"restoring": b"5"}


def test_restore_clears_only_its_own_shard(shard: ScriptShard) -> None:
    shard.tenant(5)
    shard.redis.set("{s08}:account:other", "stays")
    shard.redis.set("foreign", "stays")
    shard.restore("close", epoch=2)

    shard.restore("clear", *shard.redis.keys("*"), epoch=2)

    assert set(shard.redis.keys("*")) == {b"{s08}:account:other", b"foreign", shard_keys(NUMBER)[0].encode()}


def test_doubt_closes_only_the_generation_that_is_doubted(shard: ScriptShard) -> None:
    shard.restore("doubt", GENERATION - 1, epoch=0)
    tenant = shard.tenant(1)

    shard.restore("doubt", GENERATION, epoch=0)

    with pytest.raises(Fault, match="FORGOT"):
        shard.do("consume", tenant=tenant, amount=1)


def test_one_hundred_consumers_of_fifty_credits_get_fifty(shard: ScriptShard, server_url: str) -> None:
    tenant = shard.tenant(50)
    operations = [shard.stamped("consume", tenant=tenant, amount=1) for _ in range(100)]
    barrier = threading.Barrier(10)

    def consume(mine: list[dict[str, Any]]) -> list[str]:
        with redis.Redis.from_url(server_url) as connection:
            consumer = shard.over(connection)
            barrier.wait()
            return [consumer.run(operation)[0][0] for operation in mine]

    with ThreadPoolExecutor(10) as pool:
        codes = [code for part in pool.map(consume, [operations[i::10] for i in range(10)]) for code in part]

    assert sorted(codes) == ["insufficient_credits"] * 50 + ["ok"] * 50
    assert shard.numbers(tenant) == (0, 0, 52)
