"""Faults are real, and so are the server, Prometheus, Alertmanager and the call that the pager gets."""

from __future__ import annotations

import aiohttp
import asyncpg

from tests.credits.ledger_client import fresh
from tests.operations.live_stack import ALERT_TOKEN, LiveOperations, wait_for
from tests.operations.live_traffic import Patient
from tests.operations.shipped import rules
from tests.operations.test_alert_rules import names_in
from tests.stores import run_apart

INTEGRITY_DEADLINE_S = 90.0  # a look every 30 s, a verification in a process of the lowest priority, a busy machine


def test_every_rule_is_evaluated_and_every_series_that_one_reads_is_there(live: LiveOperations) -> None:
    read = {name for rule in rules() for name in names_in(rule["expr"])}

    def missing() -> set[str]:
        return read - live.names()

    wait_for("every series that a rule reads", lambda: not missing())
    assert live.rule_faults() == {}


def test_a_killed_server_pages_and_its_return_resolves_the_page(live: LiveOperations) -> None:
    before = len(live.pager.deliveries)

    live.server.kill()
    page = wait_for("the page", lambda: live.pager.received("page", "CreditsServiceDown", after=before))
    run_apart(live.server.start())
    wait_for("the end", lambda: live.pager.received("page", "CreditsServiceDown", "resolved", after=before))

    assert page.authorization == f"Bearer {ALERT_TOKEN}"
    (alert,) = page.body["alerts"]
    assert alert["labels"] == {
        "alertname": "CreditsServiceDown", "severity": "critical", "priority": "P0",
    }  # fmt: skip
    assert alert["annotations"]["runbook_url"].endswith("docs/runbook.md#creditsservicedown")


def test_a_redis_that_dies_pages_and_its_return_is_told_to_who_is_on_duty(live: LiveOperations) -> None:
    before = len(live.pager.deliveries)
    wait_for("a known generation", lambda: live.query("count_over_time(shieldx_shard_generation[20s] offset 20s)"))

    live.redis.kill()
    wait_for("the page", lambda: live.pager.received("page", "CreditsNotReady", after=before))
    live.start_redis()
    wait_for("the end", lambda: live.pager.received("page", "CreditsNotReady", "resolved", after=before))
    told = wait_for("the word", lambda: live.pager.received("duty", "CreditsRedisReplaced", after=before))

    assert {alert["labels"]["shard"] for alert in told.body["alerts"]} <= {"0", "1"}
    assert live.pager.received("page", "CreditsServiceDown", after=before) is None


def test_a_client_that_uses_keys_twice_is_no_reason_to_wake_anybody(live: LiveOperations) -> None:
    """The traffic of the stack has such a client."""
    wait_for("the alert", lambda: "CreditsIdempotencyCollisions" in live.firing())

    assert live.pager.received("page", "CreditsIdempotencyCollisions") is None
    assert live.pager.received("duty", "CreditsIdempotencyCollisions") is None


async def deploy_untested(url: str) -> int:
    """Give all units a variant for which there is no evidence, as an admin may; return the status."""
    name = fresh("unsafe")
    async with aiohttp.ClientSession() as session:
        client = Patient(session, url)
        variants = [{"name": "old", "control": True}, {"name": "new"}]
        await client.post("/v1/experiments", {"name": name, "allocation": "fixed", "variants": variants})
        body = {"variant": "new", "override": True, "reason": "a test of the alarm"}
        return (await client.post(f"/v1/experiments/{name}/deploy", body)).status


def test_a_deployment_against_failed_checks_pages(live: LiveOperations) -> None:
    before = len(live.pager.deliveries)
    wait_for("a known number", lambda: live.query("min_over_time(shadow_deployments_without_testing[1s])"))

    assert run_apart(deploy_untested(live.server.url)) == 200

    page = wait_for("the page", lambda: live.pager.received("page", "ShadowUnsafeDeployment", after=before))
    assert page.names() == {"ShadowUnsafeDeployment"}


# What an owner of the database can write past the server, each with what takes it back. The ledger is made older, so that its
# first daily verification is due.
TAMPERED = """
  ALTER TABLE credit_accounts DROP CONSTRAINT credit_accounts_balance_check, DROP CONSTRAINT credit_accounts_check;
  INSERT INTO credit_accounts (tenant_id, shard, balance, reserved, version, created_at, updated_at)
    VALUES ('below-zero', 0, -5, 0, 1, now(), now());
  UPDATE audit_entries SET amount = amount + 1 WHERE shard = 0 AND seq = 2;
  UPDATE ledger SET created_at = created_at - interval '2 days'"""
UNDONE = """
  DELETE FROM credit_accounts WHERE tenant_id = 'below-zero';
  ALTER TABLE credit_accounts ADD CHECK (balance BETWEEN 0 AND 99999999999999), ADD CHECK (reserved BETWEEN 0 AND balance);
  UPDATE audit_entries SET amount = amount - 1 WHERE shard = 0 AND seq = 2;
  UPDATE ledger SET created_at = created_at + interval '2 days'"""


async def write_past_the_server(database_url: str, statements: str) -> None:
    """Run statements as the superuser, all or none."""
    session = await asyncpg.connect(database_url)
    try:
        await session.execute(statements)
    finally:
        await session.close()


def test_books_that_were_written_past_the_server_page(live: LiveOperations) -> None:
    before = len(live.pager.deliveries)
    pager, database_url = live.pager, live.ledger.database_url

    run_apart(write_past_the_server(database_url, TAMPERED))
    try:
        pages = wait_for(
            "both pages",
            lambda: [
                page
                for alert in ("CreditsNegativeBalanceDetected", "CreditsAuditLogChainBroken")
                if (page := pager.received("page", alert, after=before))
            ][1:],
            INTEGRITY_DEADLINE_S,
        )
    finally:
        run_apart(write_past_the_server(database_url, UNDONE))

    assert [page.body["commonLabels"]["priority"] for page in pages] == ["P0"]
