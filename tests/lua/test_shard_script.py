"""What holds for every operation: keys, order, the outbox, the head; and the rebuilding of a shard."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from app.credits.operation import events_of_item, position_of
from app.db.keys import applied_channel, shard_keys
from tests.lua.script_shard import GENERATION, MASK, NUMBER, Fault, ScriptShard

DAY_S = 86_400


def legs(*pairs: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"tenant_id": tenant, "amount": amount} for tenant, amount in pairs]


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
    controls = "-1 0 46 day 10 9999999999999 0 7"
    shard.restore("accounts", "t1", 50, 15, 7, 9, 1_700_000_000_000, '{"quota":"{}"}', controls, epoch=4)
    held = [hold, "t1", 10, "spend", 9_999_999_999_999, "held", 7]
    shard.restore("holds", *held, leg, "t1", 5, "transfer_out", 0, "held", "", epoch=4)
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
    assert shard.redis.hget(shard.key("reservation", hold), "counted") == b"7"
    assert shard.do("consume", tenant="t1", amount=37)[:3] == ["quota_exceeded", 46, 10]


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
