"""The series of a server that has used all of its parts, as Prometheus' own tool and docs/metrics.md see them."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from typing import Final, NamedTuple

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.audit.test_witness import KEY_OF_WITNESS
from tests.credits.ledger_client import Client
from tests.credits.ledger_house import LedgerHouse
from tests.debian import program
from tests.metrics.traffic import exposition, until, use_experiments, use_keys, use_locator, use_money, use_webhooks
from tests.server import REPOSITORY, free_port

PROMTOOL_TIMEOUT_S: Final = 60
# Names that were given to us, in spite of the customs that promtool knows.
GIVEN: Final = {
    'credits_negative_balance_count non-histogram and non-summary metrics should not have "_count" suffix',
    'shadow_test_sample_count non-histogram and non-summary metrics should not have "_count" suffix',
    'shieldx_partition_days_ahead use base unit "seconds" instead of "days"',
}
Series = dict[str, tuple[str, frozenset[str]]]  # type and labels by name


class Busy(NamedTuple):
    """What a scrape showed of a server that has used all of its parts, and names that callers chose meanwhile."""

    text: str
    chosen: list[str]

    def value(self, line: str) -> float:
        """Return the value of one series, as it stands in the text."""
        return float(self.text.partition(f"\n{line} ")[2].split("\n", 1)[0])


async def _use_all(client: Client) -> Busy:
    tenant = await use_money(client)
    chosen = [tenant, await use_keys(client, tenant), await use_webhooks(client), await use_locator(client)]
    _, rule = await use_experiments(client)
    seen = ""

    async def whole() -> bool:
        nonlocal seen
        seen = await exposition(client)
        return all(re.search(line, seen, re.MULTILINE) for line in (
            r'^credits_operations_total\{op="expire",result="applied"\} 1\.0',
            r"^shadow_test_probability_best\{",
            r'^shieldx_webhook_deliveries_total\{result="delivered"\} 1\.0',
            r'^shieldx_log_size\{shard="1"\} [1-9]',
            r"^shieldx_rules_compared_total 1\.0",
            r"^shieldx_locator_failed_checks_total [1-9]",
            r"^shieldx_partition_days_ahead [1-9]",
            r'^shieldx_shard_leader\{shard="1"\} 1\.0',
            r'^shieldx_shard_epoch\{shard="1"\} [1-9]',
            r"^shieldx_ready 1\.0",
        ))  # fmt: skip

    await until(whole, "every part in the series")
    return Busy(seen, [*chosen, rule])


@pytest.fixture(scope="module")
def busy(house: LedgerHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    """A server with two shards and a witness that is away; it may call receivers and instances on this machine."""
    directory = tmp_path_factory.mktemp("metrics")
    server = house.server_on(
        asyncio.run(house.make_ledger()), "metrics", shards=2, revision="0123abc",
        witnesses=f"{KEY_OF_WITNESS.verifier.vkey} http://127.0.0.1:{free_port()}", backup_dir=str(directory / "backups"),
        webhook_allow_http="true", webhook_allow_networks="127.0.0.0/8", webhook_ports="0", check_networks="127.0.0.0/8",
    )  # fmt: skip

    for command in (("migrate", "up"), ("backup", "create")):
        done = server.run_command(*command)
        assert done.returncode == 0, done.stderr

    async def run() -> Busy:
        await server.start()
        async with aiohttp.ClientSession() as session:
            return await _use_all(Client(session, server.url))

    yield asyncio.run(run())
    server.stop()


def documented() -> Series:
    """Return the series of docs/metrics.md."""
    text = (REPOSITORY / "docs/metrics.md").read_text().partition("\n## What counting costs\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([\w, ]*)\| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    assert len(rows) == text.count("\n| `"), "a row of docs/metrics.md is not whole"
    return {name: (kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def shown(text: str) -> Series:
    """Return the series of a scrape; each has a sample, and every sample of it the same labels."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert len(labels) == 1, f"{family.name} has samples with the labels {labels}"
        found[family.name + "_total" * (family.type == "counter")] = (family.type, *labels)
    return found


def test_the_table_names_what_the_server_shows_and_nothing_else(busy: Busy) -> None:
    assert shown(busy.text) == documented()


def test_the_histograms_of_a_name_have_the_same_buckets_whatever_their_labels(busy: Busy) -> None:
    bounds: dict[str, dict[tuple[tuple[str, str], ...], list[str]]] = {}

    for family in text_string_to_metric_families(busy.text):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                labels = tuple(sorted(pair for pair in sample.labels.items() if pair[0] != "le"))
                bounds.setdefault(family.name, {}).setdefault(labels, []).append(sample.labels["le"])

    assert len(bounds["shieldx_postgres_roundtrip_seconds"]) > 1
    assert {name for name, found in bounds.items() if len(set(map(tuple, found.values()))) > 1} == set()


def test_promtool_finds_nothing_but_names_that_were_given(busy: Busy) -> None:
    run = subprocess.run(
        [program("promtool"), "check", "metrics"], input=busy.text, capture_output=True, text=True, check=False,
        timeout=PROMTOOL_TIMEOUT_S,
    )  # fmt: skip

    assert set((run.stdout + run.stderr).splitlines()) == GIVEN


def test_no_label_tells_of_tenants_keys_services_endpoints_or_rules(busy: Busy) -> None:
    assert [name for name in busy.chosen if name in busy.text] == []


@pytest.mark.parametrize(("line", "value"), [
    ('credits_operations_total{op="topup",result="replayed"}', 1),
    ('credits_operations_total{op="topup",result="refused"}', 1),
    ('credits_operations_total{op="consume",result="refused"}', 1),
    ('credits_operations_total{op="refund",result="applied"}', 1),
    ('credits_operations_total{op="reserve",result="applied"}', 3),
    ('credits_operations_total{op="commit",result="applied"}', 1),
    ('credits_operations_total{op="abort",result="applied"}', 1),
    ('credits_operations_total{op="expire",result="applied"}', 1),
    ('credits_operations_total{op="transfer",result="applied"}', 1),
    ('credits_operations_total{op="control",result="applied"}', 3),
    ('credits_operations_total{op="consume",result="unavailable"}', 0),
    ("credits_idempotency_collisions_total", 1),
    ("credits_negative_balance_count", 0),
    ("credits_audit_chain_integrity_errors", 0),
    ('http_requests_total{method="POST",route="/v1/credits/refund",status="200"}', 1),
    ('http_request_duration_seconds_count{method="POST",route="/v1/credits/refund",status="200"}', 1),
    ("shadow_deployments_without_testing", 1),
    ("shieldx_canary_rollbacks_total", 1),
    ('shieldx_shadow_outcomes_total{result="counted"}', 2),
    ('shieldx_shadow_outcomes_total{result="duplicate"}', 2),
    ('shieldx_shadow_outcomes_total{result="refused"}', 1),
    ('shieldx_access_denied_total{reason="missing"}', 1),
    ('shieldx_access_denied_total{reason="forbidden"}', 1),
    ('shieldx_rate_limited_total{by="key"}', 1),
    ("shieldx_webhook_backlog", 0),
    ('shieldx_recoveries_total{kind="rebuilt"}', 0),
    ('shieldx_log_cosigned_size{shard="0"}', -1),
], ids=lambda part: part if isinstance(part, str) else "")  # fmt: skip
def test_what_happened_is_counted(busy: Busy, line: str, value: float) -> None:
    assert busy.value(line) == value


def test_the_build_is_named(busy: Busy) -> None:
    assert re.search(
        r'^shieldx_build_info\{python="3\.[\d.]+",revision="0123abc",version="[\d.]+"\} 1\.0$', busy.text, re.MULTILINE
    )


def test_every_operation_has_waited_for_its_commit(busy: Busy) -> None:
    operations = sum(busy.value(f'shieldx_ledger_operations_total{{shard="{shard}"}}') for shard in (0, 1))
    commits = sum(busy.value(f'shieldx_chain_commits_total{{shard="{shard}"}}') for shard in (0, 1))
    events = sum(busy.value(f'shieldx_chain_events_total{{shard="{shard}"}}') for shard in (0, 1))

    assert 0 <= operations - busy.value("shieldx_apply_to_commit_seconds_count") <= 2  # a sweep may be on its way
    assert busy.value("shieldx_commit_seconds_count") == busy.value("shieldx_commit_batch_entries_count") == commits
    assert busy.value("shieldx_commit_batch_entries_sum") == events
