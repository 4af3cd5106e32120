"""/v1/rules over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import jsonschema
import pytest
from aiohttp import web

from app.access.api import ACCESS
from app.access.opening import Access
from app.access.scope import Key
from app.metrics import Metrics
from app.shadow.rules_api import RULE_ROUTES, RULES
from app.shadow.rules_opening import Rules
from tests.credits.ledger_client import fresh
from tests.route_client import call, serving
from tests.shadow.rules.conftest import Replica, compared

VERSIONS = [{"name": "v1", "expression": "{'d': input.a > 1}"}, {"name": "v2", "expression": "{'d': input.a > 2}"}]
CARD = "4111111111111111"

CALLERS = {"Bearer root": Key("root", "admin"), "Bearer run": Key("key_run", "operator")}


async def unrecorded(_kind: str, _details: dict[str, Any]) -> None:
    """What entries of denied attempts go to here."""


@pytest.fixture
async def session(replica: Replica) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a server with the rules of one replica."""
    async with serving_rules(replica.rules) as session:
        yield session


def serving_rules(rules: Rules) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """A client of a server with these rules."""
    app = web.Application()
    app[RULES] = rules
    app[ACCESS] = Access("a root key that nobody uses", unrecorded)
    return serving(app, RULE_ROUTES, CALLERS.get)


async def test_the_life_of_a_rule(session: aiohttp.ClientSession, replica: Replica) -> None:
    name = fresh("http")
    made = await call(
        session, "POST", "/v1/rules",
        {"name": name, "versions": VERSIONS, "champion": "v1", "challenger": "v2", "min_samples": 2},
    )  # fmt: skip
    path = f"/v1/rules/{name}"
    assert (made.status, made.etag) == (201, f'"{made.body["version"]}"')
    assert (await call(session, "GET", path)).body == made.body

    answers = [await call(session, "POST", f"{path}/evaluate", {"input": {"a": a, "pan": CARD}}) for a in (1, 2)]
    assert [one.body for one in answers] == [
        {"name": name, "version": "v1", "answer": {"d": False}}, {"name": name, "version": "v1", "answer": {"d": True}}
    ]  # fmt: skip
    await compared(replica.calls, name, 2)
    report = await call(session, "GET", f"{path}/report?trial=1")
    assert (report.body["compared"], report.body["differences"]["value"]) == (2, 1)
    assert CARD not in str(report.body)

    stale = await call(session, "POST", f"{path}/promote", key="run", **{"If-Match": '"0"'})
    promoted = await call(session, "POST", f"{path}/promote", key="run", **{"If-Match": str(made.etag)})
    assert (stale.status, stale.body["code"], promoted.status) == (409, "version_conflict", 200)
    assert (promoted.body["rule"]["champion"], promoted.etag) == ("v2", f'"{promoted.body["rule"]["version"]}"')

    changed = await call(session, "PATCH", path, {"challenger": "v1"})
    assert (changed.status, changed.body["challenger"], changed.body["trial"]) == (200, "v1", 3)
    assert (await call(session, "DELETE", path)).status == 204
    assert (await call(session, "GET", path)).body["code"] == "no_rule"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [("POST", "/v1/rules", {}, 422, "invalid_request"), ("GET", "/v1/rules?cursor=~", None, 422, "invalid_request"),
     ("GET", "/v1/rules/~", None, 422, "invalid_request"), ("GET", "/v1/rules/nobody/report?trial=0", None, 422, "invalid_request"),
     ("GET", "/v1/rules/nobody/report", None, 404, "no_rule"), ("POST", "/v1/rules/nobody/evaluate", {"input": {}}, 404, "no_rule"),
     ("POST", "/v1/rules/nobody/evaluate", {"input": [1]}, 422, "invalid_request"),
     ("POST", "/v1/rules/nobody/evaluate", {"input": {"a": "x" * 50_000}}, 422, "invalid_request"),
     ("POST", "/v1/rules/nobody/evaluate", {"input": {"a": "x" * 70_000}}, 413, "payload_too_large"),
     ("POST", "/v1/rules/nobody/promote", {"override": 1}, 422, "invalid_request")],
)  # fmt: skip
async def test_what_means_nothing_is_refused(
    session: aiohttp.ClientSession, method: str, path: str, body: Any, status: int, code: str
) -> None:
    reply = await call(session, method, path, body)

    assert (reply.status, reply.body["code"]) == (status, code)


async def test_an_override_needs_the_role_admin(session: aiohttp.ClientSession) -> None:
    name = fresh("http")
    await call(session, "POST", "/v1/rules", {"name": name, "versions": VERSIONS, "champion": "v1", "challenger": "v2"})

    refused = await call(session, "POST", f"/v1/rules/{name}/promote", {"override": True, "reason": "now"}, key="run")
    forced = await call(session, "POST", f"/v1/rules/{name}/promote", {"override": True, "reason": "now"})

    assert (refused.status, forced.status) == (403, 200)
    assert forced.body["failed_checks"] == ["0 of 100 comparisons have been made"]


async def test_before_the_stores_are_known_rules_cannot_be_used() -> None:
    async with serving_rules(Rules(Metrics())) as session:
        reply = await call(session, "GET", "/v1/rules")

    assert (reply.status, reply.body["code"]) == (503, "unavailable")


async def test_every_answer_is_as_the_document_says(session: aiohttp.ClientSession, replica: Replica) -> None:
    name = fresh("http")
    await call(session, "POST", "/v1/rules", {"name": name, "versions": VERSIONS, "champion": "v1", "challenger": "v2"})
    await call(session, "POST", f"/v1/rules/{name}/evaluate", {"input": {"a": 2}})
    await compared(replica.calls, name, 1)
    document = (await call(session, "GET", "/openapi.json")).body

    for path, template in (("", ""), (f"/{name}", "/{name}"), (f"/{name}/report", "/{name}/report")):
        answers = document["paths"][f"/v1/rules{template}"]["get"]["responses"]["200"]["content"]["application/json"]
        schema = answers["schema"] | {"components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate((await call(session, "GET", f"/v1/rules{path}")).body)

    assert len([path for path in document["paths"] if path.startswith("/v1/rules")]) == 5


def test_the_metrics_tell_what_was_compared_and_dropped() -> None:
    metrics = Metrics()
    Rules(metrics)

    text = metrics.text().decode()

    assert {"shieldx_rules_compared_total 0.0", "shieldx_rules_dropped_total 0.0", "shieldx_rules_waiting 0.0"} <= set(
        text.splitlines()
    )
