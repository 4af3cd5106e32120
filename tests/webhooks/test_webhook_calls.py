"""Endpoints over the calls: who may see and make which, and what is shown once."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec
import pytest

from app.db.statements import Statements
from app.web.problems import Problem
from app.webhooks import outbox as outbox_module
from app.webhooks.calls import NewEndpoint, SecretRotation, WebhookCalls
from app.webhooks.outbox import Message, Outbox
from app.webhooks.target import TargetRules
from tests.webhooks.conftest import KEYS, put_out

URL = "https://hooks.example.com/in"


@pytest.fixture
def calls(outbox: Outbox) -> WebhookCalls:
    return WebhookCalls(outbox, KEYS, TargetRules())


async def refusal(work: Any) -> tuple[int, str]:
    with pytest.raises(Problem) as refused:
        await work
    return refused.value.status, refused.value.code


async def test_the_secret_is_shown_once_and_is_nowhere_in_the_database(
    calls: WebhookCalls, owner: asyncpg.Connection[Any]
) -> None:
    made = await calls.create(NewEndpoint(url=URL, types=["b.c", "a"]), "root", None)

    listed, _ = await calls.page(None, "", 10)
    text = msgspec.json.encode(listed).decode()
    dump = str(await owner.fetch("SELECT w::text FROM webhook_endpoints w UNION ALL SELECT p::text FROM pending_entries p"))
    assert made.secret.startswith("whsec_")
    assert made.secret not in text + dump
    assert URL not in str(await owner.fetch("SELECT details::text FROM pending_entries"))
    assert (made.types, listed[0].endpoint_id) == (["a", "b.c"], made.endpoint_id)


async def test_a_limited_key_sees_and_makes_endpoints_of_its_tenants_only(calls: WebhookCalls) -> None:
    own = await calls.create(NewEndpoint(url=URL, tenant_id="acme"), "key_t", ["acme"])
    foreign = await calls.create(NewEndpoint(url=URL, tenant_id="other"), "root", None)
    everybodys = await calls.create(NewEndpoint(url=URL), "root", None)

    assert await refusal(calls.create(NewEndpoint(url=URL), "key_t", ["acme"])) == (403, "forbidden")
    assert await refusal(calls.create(NewEndpoint(url=URL, tenant_id="other"), "key_t", ["acme"])) == (404, "no_account")
    assert [one.endpoint_id for one in (await calls.page(["acme"], "", 10))[0]] == [own.endpoint_id]
    for hidden in (foreign.endpoint_id, everybodys.endpoint_id, "whe_" + "0" * 16):
        for call in (
            calls.read(hidden, ["acme"]), calls.delete(hidden, "key_t", ["acme"]), calls.enable(hidden, "key_t", ["acme"]),
            calls.rotate(hidden, SecretRotation(), "key_t", ["acme"]), calls.deliveries(hidden, ["acme"]),
        ):  # fmt: skip
            assert await refusal(call) == (404, "no_webhook")
    assert len((await calls.page(None, "", 10))[0]) == 3


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com/", "https://127.0.0.1/", "https://a.internal/", "ftp://x", "hooks"]
)
async def test_a_url_that_leads_inside_is_refused_without_being_echoed(calls: WebhookCalls, url: str) -> None:
    with pytest.raises(Problem) as refused:
        await calls.create(NewEndpoint(url=url), "root", None)

    assert (refused.value.status, refused.value.errors[0].pointer) == (422, "/url")
    assert url not in refused.value.errors[0].detail


async def test_a_deleted_endpoint_is_gone_with_what_waited_for_it(
    calls: WebhookCalls, statements: Statements, owner: asyncpg.Connection[Any]
) -> None:
    made = await calls.create(NewEndpoint(url=URL), "root", None)
    await put_out(statements.rows, Message("msg_1", "t", "x", 0, {}))

    await calls.delete(made.endpoint_id, "root", None)

    assert await refusal(calls.read(made.endpoint_id, None)) == (404, "no_webhook")
    assert await owner.fetchval("SELECT state FROM webhook_deliveries") == "failed"
    kinds = await owner.fetch("SELECT kind FROM pending_entries ORDER BY at")
    assert [row[0] for row in kinds] == ["webhook.create", "webhook.delete"]


async def test_two_rotations_at_once_are_one_and_a_refusal(calls: WebhookCalls, outbox: Outbox) -> None:
    made = await calls.create(NewEndpoint(url=URL), "root", None)
    stale = await outbox.find(made.endpoint_id)
    assert stale is not None

    new = await calls.rotate(made.endpoint_id, SecretRotation(), "root", None)
    again = await outbox.rotate(stale, KEYS.current_id, 0.0, "root")

    assert again is None
    assert new.secret != made.secret


async def test_deliveries_and_endpoints_are_paged(calls: WebhookCalls, statements: Statements) -> None:
    made = [await calls.create(NewEndpoint(url=URL), "root", None) for _ in range(3)]
    for number in range(3):
        await put_out(statements.rows, Message(f"msg_{number}", "t", "x", 0, {}))

    first, after = await calls.page(None, "", 2)
    second, end = await calls.page(None, after or "", 2)
    newest, before = await calls.deliveries(made[0].endpoint_id, None, limit=2)
    oldest, none = await calls.deliveries(made[0].endpoint_id, None, before=before or 0, limit=2)

    assert {one.endpoint_id for one in first + second} == {one.endpoint_id for one in made}
    assert (end, none) == (None, None)
    assert [one.message_id for one in newest + oldest] == ["msg_2", "msg_1", "msg_0"]


async def test_there_are_no_more_endpoints_than_the_limit(calls: WebhookCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "ENDPOINTS_MAX", 1)
    made = await calls.create(NewEndpoint(url=URL), "root", None)

    assert await refusal(calls.create(NewEndpoint(url=URL), "root", None)) == (409, "too_many_webhooks")
    await calls.delete(made.endpoint_id, "root", None)
    await calls.create(NewEndpoint(url=URL), "root", None)


async def test_one_tenant_cannot_have_all_endpoints(calls: WebhookCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "ENDPOINTS_OF_TENANT_MAX", 1)
    await calls.create(NewEndpoint(url=URL, tenant_id="a"), "root", None)
    await calls.create(NewEndpoint(url=URL), "root", None)

    assert await refusal(calls.create(NewEndpoint(url=URL, tenant_id="a"), "root", None)) == (409, "too_many_webhooks")
    assert await refusal(calls.create(NewEndpoint(url=URL), "root", None)) == (409, "too_many_webhooks")
    await calls.create(NewEndpoint(url=URL, tenant_id="b"), "root", None)


@pytest.mark.parametrize(
    "body",
    [{}, {"url": ""}, {"url": URL, "types": []}, {"url": URL, "types": ["A b"]}, {"url": URL, "secret": "x"},
     {"url": URL, "tenant_id": "a/b"}, {"url": URL, "types": ["x\n"]}],
)  # fmt: skip
def test_a_body_that_means_nothing_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, NewEndpoint)
