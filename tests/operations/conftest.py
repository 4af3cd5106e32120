"""The live operations stack: one for all tests of this directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.credits.ledger_house import Ledger, house_of
from tests.operations.live_stack import LiveOperations, live_operations, wait_for
from tests.operations.live_traffic import bring_traffic
from tests.stores import run_apart, running_redis, store_directory

BURN_DEADLINE_S = 90.0  # a few scrapes and evaluations, on a busy machine


@pytest.fixture(scope="package")
def operations(pytestconfig: pytest.Config) -> Iterator[LiveOperations]:
    """A server of its own on a ledger of its own, with a backup, Prometheus, Alertmanager, and traffic that was scraped."""
    house = house_of(pytestconfig)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(store_directory("operations"))
        redis = stack.enter_context(running_redis())
        ledger = Ledger(redis.url, run_apart(house.postgres.make_migrated_database()))
        server = house.server_on(ledger, "operations", shards=2, backup_dir=str(directory / "backups"))
        stack.callback(server.kill)
        backup = server.run_command("backup", "create")
        assert backup.returncode == 0, backup.stderr
        run_apart(server.start())
        live = stack.enter_context(live_operations(server, redis, ledger, directory))
        wait_for("the first scrape", lambda: live.query('up{job="credits"} == 1'))
        run_apart(bring_traffic(server.url))
        ended_s = time.time()
        wait_for("a scrape after the traffic", lambda: live.query(f'timestamp(up{{job="credits"}} == 1) > {ended_s}'))
        wait_for("the burn of the budgets", lambda: more_traffic(live), BURN_DEADLINE_S)
        yield live


def more_traffic(live: LiveOperations) -> bool:
    """Bring some more traffic; return whether Prometheus has recorded rates of it, which need requests between scrapes."""
    run_apart(bring_traffic(live.server.url, rounds=1))
    return bool(live.query("job_slo:error_budget_burn:rate5m") and live.query("job_slo:error_budget_burn:rate3d"))


@pytest.fixture
def live(operations: LiveOperations) -> LiveOperations:
    """The same stack, with the server and its Redis up: `live.query(expr)` asks Prometheus."""
    if operations.redis.process is None:
        operations.start_redis()
    if not operations.server.alive:
        run_apart(operations.server.start())
    return operations
