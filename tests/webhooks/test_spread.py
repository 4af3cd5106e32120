"""Messages that were put out become deliveries: each once, and no more at once than asked for."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from app.db.statements import Statements
from app.webhooks import outbox as outbox_module
from app.webhooks.calls import NewEndpoint, WebhookCalls
from app.webhooks.outbox import Message, Outbox
from tests.webhooks.conftest import HERE, KEYS

Connection = asyncpg.Connection


def message(number: int) -> Message:
    return Message(f"msg_{number}", "acme", "balance.low", 1_795_298_401_000, {"balance": number})


@pytest.fixture
def calls(outbox: Outbox) -> WebhookCalls:
    return WebhookCalls(outbox, KEYS, HERE)


async def test_putting_out_costs_one_row_whoever_wants_it_and_deliveries_are_made_in_portions(
    calls: WebhookCalls, outbox: Outbox, statements: Statements, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SPREAD_MAX", 8)
    for _ in range(3):
        await calls.create(NewEndpoint(url="https://example.com/"), "root", None)

    for number in (1, 2, 3, 3):
        await outbox_module.put_out(statements.rows, message(number))
    waiting = await owner.fetchval("SELECT count(*) FROM webhook_messages")
    made_before = await owner.fetchval("SELECT count(*) FROM webhook_deliveries")
    spread = sorted(await asyncio.gather(outbox.spread(), outbox.spread(), outbox.spread()))
    while (more := await outbox.spread()).messages:
        spread.append(more)

    assert (waiting, made_before) == (3, 0)
    assert max(one.deliveries for one in spread) == 6
    assert sum(one.messages for one in spread) == 3
    assert await owner.fetchval("SELECT count(*) FROM webhook_deliveries") == 9


async def test_a_backlog_is_spread_in_parts_however_empty_the_table_was_when_it_was_analyzed(
    calls: WebhookCalls, outbox: Outbox, statements: Statements, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SPREAD_MAX", 2)
    await calls.create(NewEndpoint(url="https://example.com/hook"), "root", None)
    await outbox_module.put_out(statements.rows, message(0))
    await owner.execute("ANALYZE webhook_messages")
    for number in range(1, 6):
        await outbox_module.put_out(statements.rows, message(number))

    spread = [(await outbox.spread()).messages for _ in range(4)]

    assert spread == [2, 2, 2, 0]


async def test_deliveries_made_as_their_endpoint_went_are_given_up(
    calls: WebhookCalls, outbox: Outbox, statements: Statements, owner: Connection
) -> None:
    made = [await calls.create(NewEndpoint(url="https://example.com/"), "root", None) for _ in range(3)]
    await outbox_module.put_out(statements.rows, message(1))
    await outbox.spread()
    await owner.execute("UPDATE webhook_endpoints SET deleted_at = now() WHERE endpoint_id = $1", made[0].endpoint_id)
    await owner.execute(
        "UPDATE webhook_endpoints SET disabled_at = now(), disabled_for = 'gone' WHERE endpoint_id = $1", made[1].endpoint_id
    )

    await outbox.forget()

    rows = await owner.fetch("SELECT endpoint_id, state, last_error FROM webhook_deliveries")
    assert {row["endpoint_id"]: (row["state"], row["last_error"]) for row in rows} == {
        made[0].endpoint_id: ("failed", "deleted"),
        made[1].endpoint_id: ("failed", "disabled"),
        made[2].endpoint_id: ("pending", None),
    }
    assert await outbox.count_pending() == 1
