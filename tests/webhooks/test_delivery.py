"""From the outbox to a receiver: once, again, never again; with real Postgres and real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import orjson
import pytest
from standardwebhooks.webhooks import Webhook

from app.db.statements import Statements
from app.webhooks import delivery as delivery_module
from app.webhooks.calls import NewEndpoint, SecretRotation, WebhookCalls
from app.webhooks.delivery import CONCURRENCY_MAX, OF_ENDPOINT_MAX, OF_OWNER_MAX, Deliverer
from app.webhooks.outbox import Message, Outbox, Portion
from app.webhooks.post import Post
from app.webhooks.schedule import ATTEMPTS_MAX
from app.webhooks.signature import SigningKeys
from tests.webhooks.conftest import HERE, KEYS, Receiver, listening, put_out, until

Connection = asyncpg.Connection
FAULTS: list[BaseException] = []


def message(number: int = 1, tenant: str = "acme", kind: str = "balance.low") -> Message:
    return Message(f"msg_{number}", tenant, kind, 1_795_298_401_000, {"balance": number})


@pytest.fixture
def calls(outbox: Outbox) -> WebhookCalls:
    return WebhookCalls(outbox, KEYS, HERE)


@pytest.fixture
async def deliverer(outbox: Outbox, post: Post) -> AsyncIterator[Deliverer]:
    """Not started: a test calls `round`, or starts it."""
    deliverer = Deliverer(outbox, post, KEYS)
    yield deliverer
    await deliverer.stop()
    assert FAULTS == []


async def finish(deliverer: Deliverer) -> int:
    """Do one round, and wait for the attempts that it began."""
    begun = await deliverer.round()
    await asyncio.gather(*deliverer._attempts)
    return begun


async def make_due(owner: Connection) -> None:
    await owner.execute("UPDATE webhook_deliveries SET next_at = now() WHERE state = 'pending'")
    await owner.execute("UPDATE webhook_endpoints SET not_before = NULL")


async def states(owner: Connection) -> list[tuple[Any, ...]]:
    rows = await owner.fetch("SELECT state, attempts, last_status, last_error FROM webhook_deliveries ORDER BY delivery_id")
    return [tuple(row) for row in rows]


async def test_a_message_arrives_signed(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    made = await calls.create(NewEndpoint(url=receiver.url, tenant_id="acme"), "root", None)

    count = await put_out(statements.rows, message())
    await finish(deliverer)

    fields, body = receiver.requests[0]
    told = Webhook(made.secret).verify(body, fields)
    assert count == 1
    assert told == {"type": "balance.low", "timestamp": "2026-11-21T22:00:01.000Z", "data": {"balance": 1}}
    assert fields["webhook-id"] == "msg_1"
    assert await states(owner) == [("delivered", 1, 200, None)]
    assert await finish(deliverer) == 0


async def test_a_message_goes_to_those_who_want_it(
    calls: WebhookCalls, outbox: Outbox, statements: Statements, owner: Connection
) -> None:
    wanted = [NewEndpoint(url=HERE_URL, tenant_id=tenant, types=types)
              for tenant in (None, "acme", "other") for types in (None, ["balance.low"], ["quota.used", "x"])]  # fmt: skip
    made = [await calls.create(body, "root", None) for body in wanted]
    gone = await calls.create(NewEndpoint(url=HERE_URL), "root", None)
    off = await calls.create(NewEndpoint(url=HERE_URL), "root", None)
    await calls.delete(gone.endpoint_id, "root", None)
    await outbox.disable(off.endpoint_id, "gone")

    counts = [await put_out(statements.rows, message()), await put_out(statements.rows, message())]

    told = {row[0] for row in await owner.fetch("SELECT endpoint_id FROM webhook_deliveries")}
    assert counts == [4, 0]
    assert told == {made[number].endpoint_id for number in (0, 1, 3, 4)}


HERE_URL = "http://127.0.0.1:9/"


async def test_a_message_is_put_out_with_what_it_tells_of_or_not_at_all(calls: WebhookCalls, owner: Connection) -> None:
    await calls.create(NewEndpoint(url=HERE_URL), "root", None)

    transaction = owner.transaction()
    await transaction.start()
    await put_out(owner.fetch, message())
    await transaction.rollback()

    assert await states(owner) == []


async def test_a_body_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="20000"):
        _ = Message("msg_1", "t", "x", 0, {"text": "x" * 20_000}).body


async def test_a_failure_is_tried_again_under_the_same_id_with_a_new_time(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    await calls.create(NewEndpoint(url=receiver.url), "root", None)
    await put_out(statements.rows, message())
    receiver.statuses = [500, 302]
    clock_ms = [1_795_298_401_000]
    monkeypatch.setattr(delivery_module, "now_ms", lambda: clock_ms[0])

    await finish(deliverer)
    assert await finish(deliverer) == 0, "it is not due yet"
    after_first = await states(owner)
    wait = await owner.fetchval("SELECT extract(epoch FROM next_at - now())::float8 FROM webhook_deliveries")
    for _ in range(2):
        clock_ms[0] += 5_000
        await make_due(owner)
        await finish(deliverer)

    assert after_first == [("pending", 1, 500, "status")]
    assert 3 < wait <= 6
    assert [fields["webhook-id"] for fields, _ in receiver.requests] == ["msg_1"] * 3
    assert len({fields["webhook-timestamp"] for fields, _ in receiver.requests}) == 3
    assert len({fields["webhook-signature"] for fields, _ in receiver.requests}) == 3
    assert await states(owner) == [("delivered", 3, 200, None)]


async def test_gone_disables_the_endpoint_at_once_and_says_so(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    made = await calls.create(NewEndpoint(url=receiver.url), "root", None)
    for number in range(4):
        await put_out(statements.rows, message(number))
    receiver.statuses = [410, 410]

    await finish(deliverer)

    shown = await calls.read(made.endpoint_id, None)
    assert shown.disabled_for == "gone"
    assert {state for state, *_ in await states(owner)} == {"failed"}
    assert await put_out(statements.rows, message(9)) == 0
    told = await owner.fetch("SELECT kind, details::text FROM pending_entries ORDER BY at")
    assert [row[0] for row in told] == ["webhook.create", "webhook.disable"]
    assert orjson.loads(told[1][1]) == {"endpoint_id": made.endpoint_id, "reason": "gone"}

    await calls.enable(made.endpoint_id, "root", None)
    await put_out(statements.rows, message(10))
    await finish(deliverer)
    assert (await states(owner))[-1] == ("delivered", 1, 200, None)


async def test_the_end_of_the_schedule_disables_the_endpoint(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    made = await calls.create(NewEndpoint(url=receiver.url), "root", None)
    await put_out(statements.rows, message())
    receiver.statuses = [500] * ATTEMPTS_MAX

    for _ in range(ATTEMPTS_MAX):
        await make_due(owner)
        await finish(deliverer)

    assert await states(owner) == [("failed", ATTEMPTS_MAX, 500, "status")]
    assert len(receiver.requests) == ATTEMPTS_MAX
    assert (await calls.read(made.endpoint_id, None)).disabled_for == "exhausted"


async def test_a_pause_holds_for_all_messages_of_the_endpoint_and_for_no_other(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    async with listening() as other:
        await calls.create(NewEndpoint(url=receiver.url), "root", None)
        await put_out(statements.rows, message(1))
        receiver.statuses, receiver.fields = [429], {"Retry-After": "600"}
        await finish(deliverer)
        await calls.create(NewEndpoint(url=other.url), "root", None)

        await put_out(statements.rows, message(2))
        await finish(deliverer)

        assert (len(receiver.requests), len(other.requests)) == (1, 1)
        wait = await owner.fetchval("SELECT max(extract(epoch FROM next_at - now()))::float8 FROM webhook_deliveries")
        assert wait > 590


async def test_replicas_deliver_each_message_once(
    calls: WebhookCalls, outbox: Outbox, post: Post, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    await calls.create(NewEndpoint(url=receiver.url), "root", None)
    for number in range(40):
        await put_out(statements.rows, message(number))
    replicas = [Deliverer(outbox, post, KEYS) for _ in range(3)]

    for replica in replicas:
        replica.start(FAULTS.append)
    await until(lambda: sum(replica.delivered for replica in replicas) == 40, "all messages")
    for replica in replicas:
        await replica.stop()

    ids = [fields["webhook-id"] for fields, _ in receiver.requests]
    assert sorted(ids) == sorted(f"msg_{number}" for number in range(40))
    assert await states(owner) == [("delivered", 1, 200, None)] * 40


async def test_a_replica_that_dies_leaves_its_claim_to_another(
    calls: WebhookCalls, outbox: Outbox, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    await calls.create(NewEndpoint(url=receiver.url), "root", None)
    await put_out(statements.rows, message())
    stale = (await outbox.claim(1, Portion(1, 1), 60.0))[0]

    while_claimed = await finish(deliverer)
    await owner.execute("UPDATE webhook_deliveries SET claimed_until = now() - interval '1 second'")
    after = await finish(deliverer)
    await outbox.close(stale, "failed", delivery_module.Outcome(None, "timeout"))

    assert (while_claimed, after) == (0, 1)
    assert await states(owner) == [("delivered", 2, 200, None)]


async def test_the_end_does_not_wait_for_a_slow_endpoint_and_loses_nothing(
    calls: WebhookCalls, outbox: Outbox, receiver: Receiver, statements: Statements, owner: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(delivery_module, "STOP_GRACE_S", 0.05)
    patient = Post(HERE)
    deliverer = Deliverer(outbox, patient, KEYS)
    receiver.silent = True
    await calls.create(NewEndpoint(url=receiver.url), "root", None)
    await put_out(statements.rows, message())
    deliverer.start(FAULTS.append)
    await until(lambda: bool(receiver.requests), "the attempt")

    await deliverer.stop()
    await patient.close()

    row = await owner.fetchrow("SELECT state, attempts, claimed_until > now() FROM webhook_deliveries")
    assert tuple(row) == ("pending", 1, True)
    assert deliverer._attempts == {}


async def test_a_slow_endpoint_leaves_room_for_others(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    receiver.silent = True
    async with listening() as quick:
        await calls.create(NewEndpoint(url=receiver.url), "root", None)
        for number in range(CONCURRENCY_MAX * 2):
            await put_out(statements.rows, message(number))
        await calls.create(NewEndpoint(url=quick.url), "root", None)
        await put_out(statements.rows, message(999))
        deliverer.start(FAULTS.append)

        await until(lambda: bool(quick.requests), "the quick one")

        assert len(receiver.requests) <= OF_ENDPOINT_MAX
        assert len(deliverer._attempts) <= CONCURRENCY_MAX
        receiver.silent = False
        await deliverer.stop()


async def test_a_tenant_whose_endpoints_all_hang_leaves_room_for_other_tenants(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    receiver.silent = True
    async with listening() as quick:
        for _ in range(CONCURRENCY_MAX):
            await calls.create(NewEndpoint(url=receiver.url, tenant_id="slow"), "root", None)
        for number in range(3):
            await put_out(statements.rows, message(number, tenant="slow"))
        await calls.create(NewEndpoint(url=quick.url, tenant_id="acme"), "root", None)
        await put_out(statements.rows, message(999))
        deliverer.start(FAULTS.append)

        await until(lambda: bool(quick.requests) and len(receiver.requests) == OF_OWNER_MAX, "one of each tenant")

        assert len(deliverer._attempts) <= OF_OWNER_MAX + 1
        receiver.silent = False
        await deliverer.stop()


async def test_a_tenant_with_attempts_under_way_gets_only_what_they_leave_of_its_portion(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    receiver.silent = True
    for _ in range(OF_OWNER_MAX - 1):
        await calls.create(NewEndpoint(url=receiver.url, tenant_id="slow"), "root", None)
    await put_out(statements.rows, message(1, tenant="slow"))
    first = await deliverer.round()
    for _ in range(OF_OWNER_MAX):
        await calls.create(NewEndpoint(url=receiver.url, tenant_id="slow"), "root", None)
    await put_out(statements.rows, message(2, tenant="slow"))

    later = [await deliverer.round() for _ in range(2)]

    assert (first, later) == (OF_OWNER_MAX - 1, [1, 0])
    receiver.silent = False
    await asyncio.gather(*deliverer._attempts)
    assert await finish(deliverer) == OF_OWNER_MAX, "and all of it when they have ended"


async def test_a_rotated_secret_signs_beside_the_old_one_for_the_overlap(
    calls: WebhookCalls, deliverer: Deliverer, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    made = await calls.create(NewEndpoint(url=receiver.url), "root", None)
    new = await calls.rotate(made.endpoint_id, SecretRotation(overlap_seconds=60), "root", None)
    await put_out(statements.rows, message(1))
    await finish(deliverer)
    await owner.execute("UPDATE webhook_endpoints SET old_secret_until = now()")
    await put_out(statements.rows, message(2))
    await finish(deliverer)

    (both, body), (only_new, later) = receiver.requests
    for secret in (made.secret, new.secret):
        Webhook(secret).verify(body, both)
    Webhook(new.secret).verify(later, only_new)
    assert len(both["webhook-signature"].split()) == 2
    assert len(only_new["webhook-signature"].split()) == 1
    assert new.old_secret_until is not None


async def test_an_endpoint_whose_key_the_server_lost_gets_nothing_unsigned(
    calls: WebhookCalls, outbox: Outbox, post: Post, receiver: Receiver, statements: Statements, owner: Connection
) -> None:
    made = await calls.create(NewEndpoint(url=receiver.url), "root", None)
    keys = SigningKeys(b"another key of the server")
    deliverer = Deliverer(outbox, post, keys)
    await put_out(statements.rows, message())

    await finish(deliverer)
    lost = await states(owner)
    new = await WebhookCalls(outbox, keys, HERE).rotate(made.endpoint_id, SecretRotation(), "root", None)
    await make_due(owner)
    await finish(deliverer)

    assert lost == [("pending", 1, None, "secret")]
    assert new.old_secret_until is None
    fields, body = receiver.requests[0]
    Webhook(new.secret).verify(body, fields)


async def test_an_address_that_became_an_inner_one_is_not_sent_to(
    outbox: Outbox, calls: WebhookCalls, statements: Statements, owner: Connection, receiver: Receiver
) -> None:
    from app.webhooks.target import TargetRules  # noqa: PLC0415 - only here

    await calls.create(NewEndpoint(url=receiver.url), "root", None)
    await put_out(statements.rows, message())
    strict = Post(TargetRules(allow_http=True, ports=None))
    deliverer = Deliverer(outbox, strict, KEYS)

    await finish(deliverer)

    await strict.close()
    assert await states(owner) == [("pending", 1, None, "address")]
    assert receiver.requests == []


async def test_old_deliveries_are_forgotten_and_open_ones_never(
    calls: WebhookCalls, outbox: Outbox, statements: Statements, owner: Connection
) -> None:
    await calls.create(NewEndpoint(url=HERE_URL), "root", None)
    for number in range(3):
        await put_out(statements.rows, message(number))
    await owner.execute("UPDATE webhook_deliveries SET created_at = now() - interval '1 year'")
    await owner.execute(
        "UPDATE webhook_deliveries SET state = 'delivered', closed_at = now() - interval '31 days' WHERE message_id = 'msg_0'"
    )
    await owner.execute("UPDATE webhook_deliveries SET state = 'failed', closed_at = now() WHERE message_id = 'msg_1'")

    await outbox.forget()

    left = await owner.fetch("SELECT message_id FROM webhook_deliveries ORDER BY 1")
    assert [row[0] for row in left] == ["msg_1", "msg_2"]
