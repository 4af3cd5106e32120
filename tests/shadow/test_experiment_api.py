"""/v1/experiments over HTTP: answers as documented, and a clear problem for everything else."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import orjson
import pytest

from tests.credits.ledger_client import Client, fresh
from tests.credits.test_contract import Validated
from tests.server import ROOT_KEY
from tests.shadow.conftest import until

TWO = [{"name": "a", "control": True}, {"name": "b"}]
STEPS: dict[str, Any] = {"steps": [10, 50], "min_seconds": 60, "min_samples": 5}


def body(**fields: Any) -> dict[str, Any]:
    """Return the body of an experiment of two variants."""
    return {"name": fresh("exp"), "variants": TWO, "allocation": "fixed", **fields}


async def test_answers_have_the_documented_shape(client: Client) -> None:
    check = Validated(client).check
    made = body(guardrails={"error_rate": 0.5, "latency_ms_p95": 300}, canary=STEPS)
    name = made["name"]

    await check("POST", "/v1/experiments", made)
    await check("POST", "/v1/experiments/{name}/assign", {"unit_id": "u", "attributes": {"plan": "pro"}}, name=name)
    await check("POST", "/v1/experiments/{name}/outcomes", {"event_id": "e", "success": True, "variant": "a"}, name=name)
    listed = [
        {"event_id": f"e{n}", "success": n % 3 == 0, "variant": "b", "latency_ms": 12.5, "value": 2.25} for n in range(5)
    ]
    await check("POST", "/v1/experiments/{name}/outcomes", {"outcomes": listed}, name=name)
    analysis = await check("GET", "/v1/experiments/{name}/analysis?draws=500&seed=7", name=name)
    for template in ("/v1/experiments/{name}", "/v1/experiments", "/v1/experiments/{name}/plot.svg"):
        await check("GET", template, name=name)
    for path, sent in (
        ("deploy", {"variant": "b"}), ("canary", {"action": "advance"}), ("canary", {"action": "approve"}),
        ("rollback", {"reason": "by hand"}), ("deploy", {"variant": "a"}),
    ):  # fmt: skip
        await check("POST", "/v1/experiments/{name}/" + path, sent, name=name)

    assert (analysis["draws"], analysis["seed"], analysis["samples"]) == (500, 7, 6)
    assert analysis["variants"][1]["value_mean"] == 2.25


async def test_an_experiment_is_read_listed_changed_and_archived(client: Client) -> None:
    made = body(seed=42, max_false_positive=0.01)
    path = f"/v1/experiments/{made['name']}"

    created = await client.post("/v1/experiments", made)
    page = (await client.get("/v1/experiments?limit=1000")).body
    paused = await client.call("PATCH", path, {"status": "paused"}, If_Match=created.headers["ETag"])
    stale = await client.call("PATCH", path, {"status": "running"}, If_Match=created.headers["ETag"])
    covered = await client.call("PATCH", path, {"status": "running", "coverage": 0.5})
    archived = await client.call("DELETE", path)

    assert created.status == 201
    assert (created.body["seed"], created.body["min_samples"], created.body["confidence"]) == ("42", 100, 0.95)
    assert made["name"] in [one["name"] for one in page["data"]]
    assert (paused.body["status"], stale.refusal) == ("paused", (409, "version_conflict"))
    assert (covered.body["status"], covered.body["coverage"]) == ("running", 0.5)
    assert (archived.status, archived.body["status"]) == (200, "archived")
    assert (await client.get(path)).body["status"] == "archived"
    assert (await client.call("PATCH", path, {"status": "running"})).refusal == (409, "experiment_archived")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"variants": [{"name": "a"}, {"name": "b"}]}, "/variants"),
        ({"variants": [{"name": "a", "control": True}, {"name": "b", "control": True}]}, "/variants"),
        ({"variants": [{"name": "a", "control": True}, {"name": "a"}]}, "/variants/1/name"),
        ({"variants": TWO[:1]}, "/variants"),
        ({"variants": [TWO[0], *({"name": f"v{n}"} for n in range(20))]}, "/variants"),
        ({"variants": [{"name": "a", "control": True, "weight": 0}, {"name": "b"}]}, "/variants/0/weight"),
        ({"variants": [{"name": "a", "control": True, "weight": -1}, {"name": "b"}]}, "/variants/0/weight"),
        ({"variants": [{"name": "a", "control": True, "weight": 1_000_000}, {"name": "b", "weight": 1}]}, "/variants"),
        ({"allocation": "random"}, "/allocation"),
        ({"max_false_positive": 0}, "/max_false_positive"),
        ({"max_false_positive": 1.5}, "/max_false_positive"),
        ({"confidence": 1}, "/confidence"),
        ({"min_lift": -0.1}, "/min_lift"),
        ({"min_samples": 0}, "/min_samples"),
        ({"seed": -1}, "/seed"),
        ({"seed": 1.5}, "/seed"),
        ({"coverage": 0}, "/coverage"),
        ({"guardrails": {}}, "/guardrails"),
        ({"guardrails": {"error_rate": 2}}, "/guardrails/error_rate"),
        ({"guardrails": {"latency_ms_p95": -5}}, "/guardrails/latency_ms_p95"),
        ({"canary": {"steps": [5, 5]}}, "/canary/steps"),
        ({"canary": {"steps": [0]}}, "/canary/steps/0"),
        ({"canary": {"min_seconds": -1}}, "/canary/min_seconds"),
        (
            {"canary": {"steps": [0.01]}, "variants": [{"name": "a", "control": True}, {"name": "b"}, {"name": "c"}]},
            "/variants",
        ),
        ({"coverage": 0.00015}, "/variants"),
        ({"canary": STEPS, "allocation": "thompson"}, "/canary"),
        ({"canary": STEPS, "coverage": 0.5}, "/coverage"),
        ({"allocation": "thompson", "coverage": 0.5}, "/coverage"),
        ({"name": "no spaces"}, "/name"),
        ({"owner": "me"}, "/owner"),
    ],
    ids=str,
)
async def test_a_bad_definition_is_refused_at_its_place(client: Client, fields: dict[str, Any], pointer: str) -> None:
    made = body(**fields)

    reply = await client.post("/v1/experiments", made)

    assert reply.refusal == (422, "invalid_request")
    assert pointer in [error["pointer"] for error in reply.body["errors"]]
    assert (await client.get(f"/v1/experiments/{made['name'].replace(' ', '-')}")).refusal == (404, "no_experiment")


async def test_a_body_of_many_variants_is_too_large_and_nan_is_no_json(client: Client) -> None:
    many = orjson.dumps(body(variants=[{"name": f"v{n}"} for n in range(20_000)]))
    nan = orjson.dumps(body(min_lift="?")).replace(b'"?"', b"NaN")

    assert (await client.call("POST", "/v1/experiments", data=many)).refusal == (413, "payload_too_large")
    assert (await client.call("POST", "/v1/experiments", data=nan)).refusal == (400, "malformed_json")


@pytest.mark.parametrize(
    ("outcome", "pointer"),
    [
        ({"latency_ms": -1}, "/latency_ms"),
        ({"latency_ms": 1e300}, "/latency_ms"),
        ({"value": 1e12}, "/value"),
        ({"variant": "c"}, "/variant"),
        ({"variant": None}, ""),
        ({"success": 1}, "/success"),
        ({"event_id": ""}, "/event_id"),
        ({"unit_id": "x" * 300}, "/unit_id"),
    ],
    ids=str,
)
async def test_one_bad_outcome_refuses_the_request_and_nothing_is_counted(
    client: Client, outcome: dict[str, Any], pointer: str
) -> None:
    made = body()
    path = f"/v1/experiments/{made['name']}"
    await client.done("/v1/experiments", made)
    good = {"event_id": "good", "success": True, "variant": "a"}

    alone = await client.post(path + "/outcomes", {**good, **outcome})
    listed = await client.post(path + "/outcomes", {"outcomes": [good, {**good, **outcome}]})

    assert alone.refusal == listed.refusal == (422, "invalid_request")
    assert [error["pointer"] for error in alone.body["errors"]] == [pointer]
    assert [error["pointer"] for error in listed.body["errors"]] == [f"/outcomes/1{pointer}"]
    assert (await client.get(path + "/analysis?draws=10")).body["samples"] == 0


async def test_outcomes_are_one_or_a_list_and_not_both(client: Client) -> None:
    made = body()
    path = f"/v1/experiments/{made['name']}/outcomes"
    await client.done("/v1/experiments", made)
    one = {"event_id": "e", "success": True, "variant": "a"}

    for sent in ({}, {"outcomes": []}, {"outcomes": [one], **one}, {"outcomes": [one] * 10_001}, {"event_id": "e"}):
        assert (await client.post(path, sent)).refusal == (422, "invalid_request")
    whole = await client.done(path, {"outcomes": [{**one, "event_id": f"e{n}"} for n in range(10_000)]})

    assert whole["accepted"] == 10_000


async def test_names_that_are_taken_or_unknown_are_refused(client: Client) -> None:
    made = body()
    await client.done("/v1/experiments", made)

    assert (await client.post("/v1/experiments", made)).refusal == (409, "experiment_exists")
    for method, path, sent in (
        ("GET", "", None), ("GET", "/analysis", None), ("GET", "/plot.svg", None), ("DELETE", "", None),
        ("PATCH", "", {"status": "paused"}), ("POST", "/assign", {"unit_id": "u"}), ("POST", "/deploy", {"variant": "a"}),
        ("POST", "/rollback", {"reason": "r"}), ("POST", "/canary", {"action": "advance"}),
        ("POST", "/outcomes", {"event_id": "e", "success": True, "variant": "a"}),
    ):  # fmt: skip
        assert (await client.call(method, "/v1/experiments/nobody" + path, sent)).refusal == (404, "no_experiment")


async def test_an_unsafe_deployment_names_every_failed_check_and_a_reader_may_not_try(client: Client) -> None:
    made = body(canary=STEPS)
    path = f"/v1/experiments/{made['name']}"
    await client.done("/v1/experiments", made)
    key = (await client.done("/v1/keys", {"name": "r", "role": "reader"}))["key"]

    refused = await client.post(path + "/deploy", {"variant": "b"})
    reader = await client.post(path + "/deploy", {"variant": "b"}, Authorization=f"Bearer {key}")
    blank = await client.post(path + "/deploy", {"variant": "b", "override": True, "reason": " \n "})

    assert refused.refusal == (409, "unsafe_deployment")
    checks = [one["check"] for one in refused.body["failed_checks"]]
    assert checks == ["decision", "evidence", "min_samples", "min_lift", "probability_best", "canary"]
    assert all(check in refused.body["detail"] for check in checks)
    assert reader.refusal == (403, "forbidden")
    assert (blank.refusal, blank.body["errors"][0]["pointer"]) == ((422, "invalid_request"), "/reason")


async def test_a_deployment_ends_the_test_and_a_rollback_ends_the_deployment_also_when_it_is_archived(
    client: Client,
) -> None:
    made = body(canary=STEPS)
    path = f"/v1/experiments/{made['name']}"
    await client.done("/v1/experiments", made)
    await client.done(path + "/deploy", {"variant": "b", "override": True, "reason": "we must"})

    deployed = (await client.get(path)).body["canary"]
    acted = [await client.post(path + "/canary", {"action": one}) for one in ("advance", "approve", "pause", "resume")]
    paused = await client.call("PATCH", path, {"status": "paused"})
    everybody = await client.done(path + "/assign", {"unit_id": "u"})
    await client.done(path + "/rollback", {"reason": "it was bad"})
    await client.call("DELETE", path)

    assert (deployed["status"], deployed["percent"], deployed["waiting_for"]) == ("deployed", 100, [])
    assert {one.refusal for one in (*acted, paused)} == {(409, "experiment_deployed")}
    assert everybody["variant"] == "b"
    assert (await client.done(path + "/assign", {"unit_id": "u"}))["variant"] == "a"
    assert (await client.get(path)).body["canary"]["percent"] == 0


async def test_entries_and_metrics_tell_of_experiments(client: Client) -> None:
    made = body()
    path = f"/v1/experiments/{made['name']}"
    await client.done("/v1/experiments", made)
    await client.done(path + "/outcomes", {"event_id": "e", "success": True, "variant": "b"})
    await client.done(path + "/deploy", {"variant": "b", "override": True, "reason": "we must"})

    async def recorded() -> bool:
        head = (await client.get("/ready")).body["checks"]["shard"]["shards"][0]["durable_seq"]
        rows = (await client.get(f"/v1/audit/entries?shard=0&after={max(0, head - 60)}")).body["data"]
        told = [base64.b64decode(row["entry"]) for row in rows]
        return any(b'"experiment.deploy"' in one and made["name"].encode() in one and b"we must" in one for one in told)

    async def shown() -> bool:
        async with client.session.get(client.url + "/metrics", headers={"Authorization": f"Bearer {ROOT_KEY}"}) as answer:
            text = await answer.text()
        labels = f'{{test="{made["name"]}",variant="b"}}'
        return (
            all(f"{series}{labels}" in text for series in ("shadow_test_sample_count", "shadow_test_probability_best"))
            and float(text.partition("\nshadow_deployments_without_testing ")[2].split()[0]) >= 1
        )

    await until(shown, "the series")
    await asyncio.gather(until(recorded, "the entries"))
